//! How messages become bytes: the [`Codec`] trait and [`MessagePack`], the codec that everything
//! uses.
//!
//! # The default format
//!
//! MessagePack in its usual clothes: structs are maps of field names, tuples and sequences arrays,
//! a unit variant is its name and any other variant a map `{name: content}`. Two things that
//! serde's types ask for have no form in plain MessagePack, and a third has a slow one, so the
//! format adds:
//!
//! | written | means |
//! |---|---|
//! | byte `0xC1`, unused by MessagePack | `Some` around a value that would itself read as `None` |
//! | extension 1 | a sequence or tuple of `u8` and nothing else, as raw bytes |
//! | extension 2 | an `i128` or `u128` beyond 64 bits that fits `i128`, big-endian |
//! | extension 3 | a `u128` beyond `i128::MAX`, big-endian |
//!
//! Whatever needs none of these is read by any MessagePack reader, and what such writers write is
//! read here.

mod byte;
mod de;
mod ser;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "python")]
pub(crate) use de::Bytes;

/// The byte before a value that is `Some` but would read as `None`.
const SOME: u8 = 0xC1;
/// MessagePack's nil.
const NIL: u8 = 0xC0;
/// Extension: a sequence of `u8`.
const EXT_BYTES: i8 = 1;
/// Extension: a signed integer of 128 bits.
const EXT_I128: i8 = 2;
/// Extension: an unsigned integer of 128 bits.
const EXT_U128: i8 = 3;

/// A wire format for messages.
///
/// Both ends of a conversation must use the same codec.
pub trait Codec: Send + Sync + 'static {
    /// Appends the encoding of `value` to `out`.
    ///
    /// # Errors
    ///
    /// When the value cannot be said in this format, or its own `Serialize` fails; `out` is then as
    /// it was.
    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads one value that occupies all of `bytes`.
    ///
    /// # Errors
    ///
    /// When `bytes` is not the encoding of a `T`, ends early, or goes on after it.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError>;
}

/// The default codec: MessagePack, extended so that every type of serde's data model comes back as
/// it was sent.
///
/// Structs travel as maps of field names, so `skip_serializing_if`, `default`, `flatten` and every
/// way of tagging enums work; nested `Option`s keep their depth; a `Vec<u8>` travels as raw bytes
/// without `serde_bytes`.
///
/// Values may nest to a depth of 128 (arrays, maps and enum contents each count one), in both
/// directions. A string, byte array, sequence or map holds at most `u32::MAX` bytes or elements.
///
/// Decoding treats its input as hostile: no declared length is believed before its bytes are there,
/// and no input panics or overflows the stack.
///
/// Two limits are serde's own, for the buffer in which it holds what is flattened, untagged or
/// internally tagged: `i128` and `u128` do not pass through it, nor do types that have another form
/// in formats for people, such as [`IpAddr`](std::net::IpAddr).
#[derive(Debug, Clone, Copy, Default)]
pub struct MessagePack;

impl Codec for MessagePack {
    #[inline]
    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        encode_into(value, out)
    }

    #[inline]
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        decode(bytes)
    }
}

/// Appends the default encoding of `value` to `out`; on error `out` is as it was.
#[inline]
pub(crate) fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let before = out.len();
    match value.serialize(ser::Serializer::new(out)) {
        Ok(_) => Ok(()),
        Err(error) => {
            out.truncate(before);
            Err(error)
        }
    }
}

/// Reads one value in the default encoding that occupies all of `bytes`.
#[inline]
pub(crate) fn decode<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, CodecError> {
    let value = T::deserialize(de::Deserializer::new(&mut bytes))?;
    if bytes.is_empty() {
        Ok(value)
    } else {
        Err(CodecError::new(&format!("{} bytes follow the value", bytes.len())))
    }
}

/// Why a value could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecError {
    message: Box<str>,
}

impl CodecError {
    #[cold]
    pub(crate) fn new(message: &str) -> Self {
        Self { message: message.into() }
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CodecError {}

impl serde::ser::Error for CodecError {
    #[cold]
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self::new(&message.to_string())
    }
}

impl serde::de::Error for CodecError {
    #[cold]
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self::new(&message.to_string())
    }
}

/// How deep a value lies in its message.
///
/// Both directions count alike, so that what can be encoded can be decoded.
#[derive(Clone, Copy, Default)]
pub(crate) struct Depth {
    /// Containers around the value.
    containers: u8,
    /// `Option`s directly around it. They may occupy no bytes at all, and a type that recurses
    /// through them alone would never come to an end without a limit of their own.
    options: u8,
}

impl Depth {
    const LIMIT: u8 = 128;

    /// The depth of what lies in a container here.
    #[inline]
    pub(crate) fn in_container(self) -> Result<Self, CodecError> {
        self.in_containers(1)
    }

    /// The depth of what lies in `levels` containers here.
    #[inline]
    fn in_containers(self, levels: usize) -> Result<Self, CodecError> {
        let containers = usize::from(self.containers) + levels;
        if containers > usize::from(Self::LIMIT) {
            return Err(Self::exceeded());
        }
        Ok(Self { containers: containers as u8, options: 0 })
    }

    /// The depth of what lies in an `Option` here.
    #[inline]
    pub(crate) fn in_option(self) -> Result<Self, CodecError> {
        if self.options == Self::LIMIT {
            return Err(Self::exceeded());
        }
        Ok(Self { options: self.options + 1, ..self })
    }

    #[cold]
    fn exceeded() -> CodecError {
        CodecError::new("the value is nested too deeply")
    }
}
