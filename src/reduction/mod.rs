//! How values travel: the codec, and the handles that go beside the bytes.
//!
//! A value becomes bytes by its [`Codec`]; what cannot be bytes (descriptors) goes beside them as
//! attachments, for which the bytes hold an index. While a value is encoded or decoded, the
//! attachments stand in a scope of this thread. Serialising a handle outside of such a scope is an
//! error, and a nested scope (a `Serialize` that itself sends) leaves the outer one alone.

mod blob;
mod codec;
pub(crate) mod packet;
mod transfer;

pub use blob::Blob;
pub use codec::{Codec, CodecError, MessagePack};
pub(crate) use transfer::set_other_build_than_parent;
pub(crate) use transfer::{Attachment, Attachments, Handle, Incoming, Peer, parent, peer};

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

/// Appends `value` to `out` and gives what travels beside it. On an error `out` is as before and
/// every handle where it was.
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
    peer: Peer,
) -> Result<Attachments, CodecError> {
    transfer::outgoing(peer, || codec::encode_into(value, out))
}

/// Reads a value back, with the handles that came beside it.
pub(crate) fn decode<T: DeserializeOwned>(message: Incoming<'_>) -> Result<T, CodecError> {
    let Incoming { bytes, attachments } = message;
    transfer::incoming(attachments, || codec::decode(bytes))
}
