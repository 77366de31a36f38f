//! How values travel: the codec, and the handles that go beside the bytes.
//!
//! A value becomes bytes by its [`Codec`]; what cannot be bytes (descriptors) goes beside them as
//! attachments, for which the bytes hold an index. While a value is encoded or decoded, the
//! attachments stand in a scope of this thread. Serialising a handle outside of such a scope is an
//! error, and a nested scope (a `Serialize` that itself sends) leaves the outer one alone.
//!
//! Most handles are duplicated by that. What can be in one place only, such as an end of a pipe,
//! moves: it is gone from here once the message is committed, and as before if that fails.

mod blob;
mod codec;
#[cfg(multiprocess)]
pub(crate) mod handle;
mod movable;
pub(crate) mod packet;
mod transfer;

pub use blob::Blob;
#[cfg(feature = "python")]
pub(crate) use codec::{Bytes, Depth};
pub use codec::{Codec, CodecError, MessagePack};
#[cfg(multiprocess)]
pub use handle::Transferable;
pub(crate) use movable::{Movable, Moves};
pub(crate) use packet::carrier;
use transfer::Copies;
pub(crate) use transfer::set_other_build_than_parent;
pub(crate) use transfer::{
    Attachment, Attachments, Departures, Descriptor, Incoming, MAX_HANDLES, Peer, parent, peer, writer,
};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What can be sent to another process: anything that serde can write and read back.
///
/// `&str` and other borrowed types cannot: there would be nobody on the other side to borrow
/// from. Send a `String`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent to another process",
    label = "not a message",
    note = "messages implement `serde::Serialize` and `serde::de::DeserializeOwned`; borrowed types \
            such as `&str` cannot be rebuilt on the other side: send an owned `String`"
)]
pub trait Message: Serialize + DeserializeOwned + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Send + 'static> Message for T {}

/// Appends `value` to `out` and gives what travels beside it. What moves is gone from here: this is
/// for who owns what is sent. On an error `out` is as before and every handle where it was.
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
    peer: Peer,
) -> Result<Attachments, CodecError> {
    let (attachments, departures) = encode_uncommitted::<MessagePack, T>(value, out, peer)?;
    departures.commit();
    Ok(attachments)
}

/// As [`encode`], in any format, for who may still fail to send it: what moves is gone once that is
/// committed, and back if it is dropped.
pub(crate) fn encode_uncommitted<C: Codec, T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
    peer: Peer,
) -> Result<(Attachments, Departures), CodecError> {
    transfer::outgoing(peer, Copies::One, || C::encode(value, out))
}

/// As [`encode`], for a message that several processes will get: nothing can move with it.
pub(crate) fn encode_for_several<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
    peer: Peer,
) -> Result<Attachments, CodecError> {
    let encode = || codec::encode_into(value, out);
    transfer::outgoing(peer, Copies::Several, encode).map(|(attachments, _)| attachments)
}

/// Reads a value back, with the handles that came beside it, from a process of this family.
pub(crate) fn decode<T: DeserializeOwned>(message: Incoming<'_>) -> Result<T, CodecError> {
    decode_from::<MessagePack, T>(message, Peer::AnyBuild)
}

/// As [`decode`], in any format and from whomever.
pub(crate) fn decode_from<C: Codec, T: DeserializeOwned>(
    message: Incoming<'_>,
    writer: Peer,
) -> Result<T, CodecError> {
    let Incoming { bytes, attachments } = message;
    transfer::incoming(writer, attachments, || C::decode(bytes))
}
