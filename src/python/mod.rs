//! Objects for CPython: the codec [`Pickle`] and the value [`Object`].
//!
//! With [`Pickle`] as its codec, a connection speaks with Python's `multiprocessing.connection`: what
//! `send` sends there is what `recv` gives here, and the other way round. Messages of bytes need
//! neither this module nor the feature `python`.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use tokio_multiprocess::python::Pickle;
//! use tokio_multiprocess::reduction::Codec;
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! struct Job {
//!     path: String,
//!     size: Option<(u32, u32)>,
//! }
//!
//! # fn main() -> Result<(), tokio_multiprocess::reduction::CodecError> {
//! // What CPython makes of {"path": "a.png", "size": (640, 480)}
//! let pickle = b"\x80\x04\x95#\0\0\0\0\0\0\0}\x94(\x8c\x04path\x94\x8c\x05a.png\x94\
//!                \x8c\x04size\x94M\x80\x02M\xe0\x01\x86\x94u.";
//! let job: Job = Pickle::decode(pickle)?;
//! assert_eq!(job, Job { path: "a.png".to_owned(), size: Some((640, 480)) });
//! # Ok(())
//! # }
//! ```
//!
//! A listener for Python's clients, which `Client(address, authkey=key)` reaches:
//!
//! ```no_run
//! # async fn demo() -> tokio_multiprocess::Result<()> {
//! use tokio_multiprocess::python::{Object, Pickle};
//! use tokio_multiprocess::{AuthKey, Listener};
//!
//! let key = AuthKey::new("secret");
//! let listener = Listener::bind("/run/jobs.sock").authkey(&key).await?;
//! let mut conn = listener.accept().await?.with_codec::<Pickle>();
//! let anything: Object = conn.recv().await?;
//! conn.send(&("got", anything)).await?;
//! # Ok(()) }
//! ```
//!
//! Before 3.12 CPython proves that it holds a key by MD5 only: that takes the feature `md5` and
//! `DigestPolicy::Md5`. `examples/python_peer.rs` is a whole program that talks with the `python3` of the
//! machine, as listener and as client.
//!
//! # What is what
//!
//! | Rust | is sent as | and is read from |
//! |---|---|---|
//! | `bool` | `bool` | `bool` |
//! | integers, up to `i128` and `u128` | `int` | `int` that fits |
//! | [`BigInt`] | `int` | `int` |
//! | `f32`, `f64` | `float` | `float`, `int` |
//! | `char`, `String`, `&str` | `str` | `str` |
//! | `Vec<u8>`, bytes of `serde_bytes` | `bytes` | `bytes`, `bytearray`, a list of `int`s |
//! | other sequences, sets | `list` | `list`, `tuple`, `set`, `frozenset` |
//! | tuples, arrays, tuple structs | `tuple` | the same |
//! | maps | `dict` | `dict`, or an instance: below |
//! | structs | `dict` with `str` keys | the same, or a sequence of the fields |
//! | newtype structs | what they hold | the same |
//! | `Option` | `None`, or what is in it | the same |
//! | `()`, unit structs | `None` | `None`, `()` |
//! | a unit variant | its name, as `str` | the same |
//! | another variant | `{name: content}` | the same |
//! | [`Object`] | what it says | anything |
//!
//! - An **empty** `Vec<u8>` is sent as an empty list, since serde does not tell of what it is empty; one
//!   of `serde_bytes`, or an [`Object`], is always `bytes`.
//! - `Some(None)` is `None`: Python has but one.
//! - A sequence for a dict's key is sent as a tuple, since Python has no use for lists there; a map or
//!   struct for a key is an error.
//! - An **instance** of a class is read as its attributes: of a dataclass, a struct. If it has none, as
//!   what was set in it (`OrderedDict`, `defaultdict`), appended to it, or as the tuple of arguments it
//!   was made with: an exception's, say. Classes and functions themselves fit an [`Object`] only, which
//!   also has the names of the classes of instances.
//! - Parts that several others share are read once for each; what contains itself is an error.
//! - A `str` with lone surrogates is an error.
//!
//! # What a peer can do
//!
//! In Python, to unpickle is to run what the sender says. Here a pickle is data: what it would have
//! Python import, make or call is kept as names and arguments, or skipped.
//!
//! Protocols 0 to 5 are read, 4 is written. References to anything outside of the message (persistent
//! ids, the extension registry, out-of-band buffers) are refused. Values may nest to a depth of 128 in
//! both directions. Hostile input gives an error, never a panic; reading takes time in proportion to the
//! message's length, and memory of at most about 100 times that: `set_max_message` is the measure for
//! it. Parts that are shared may add 128 MiB to that.

mod bigint;
mod de;
mod graph;
mod machine;
mod object;
mod opcodes;
mod ser;
#[cfg(test)]
mod tests;
mod text;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use bigint::{BigInt, OutOfRange};
pub use object::{Global, Instance, Object};

use crate::reduction::{Codec, CodecError};

/// The codec of Python's `multiprocessing.connection`: see the [module](self).
#[derive(Debug, Clone, Copy, Default)]
#[doc(alias = "pickle")]
pub struct Pickle;

impl Codec for Pickle {
    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let before = out.len();
        out.extend([opcodes::PROTO, opcodes::WRITTEN]);
        match value.serialize(ser::Serializer::new(out)) {
            Ok(_) => {
                out.push(opcodes::STOP);
                Ok(())
            }
            Err(error) => {
                out.truncate(before);
                Err(error)
            }
        }
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        decode_within(graph::ALLOWANCE, bytes)
    }
}

/// Decodes a message that may grow by so many bytes through sharing.
fn decode_within<T: DeserializeOwned>(allowance: usize, bytes: &[u8]) -> Result<T, CodecError> {
    let graph = machine::run(bytes, allowance)?;
    T::deserialize(de::Deserializer::new(&graph))
}
