//! The frames of a byte stream, as CPython's `multiprocessing.connection` speaks them.
//!
//! ```text
//! i32, big-endian: the length       then so many bytes
//! FF FF FF FF, u64, big-endian      the same for more than 0x7fffffff bytes
//! ```
//!
//! A frame beside which descriptors go has the long form, with what CPython never needs: the upper 16
//! bits of its length say how many there are. They ride with the frame's first byte.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::Error;

/// How long a message may be unless another maximum is set, in bytes: 1 GiB.
pub(super) const MAX_MESSAGE: usize = 1 << 30;

/// What the short length of a frame in the long form is.
const LONG: i32 = -1;
/// How many bits of a long length are a length.
const LEN_BITS: u32 = 48;
/// Above the length: how many descriptors are beside the frame.
const BESIDE: u64 = 0xff;
/// Above that: the first of them is a socket in which the others are.
const CARRIER: u64 = 0x100;

/// Why a byte stream cannot be read on. There is no way to find the next frame after it, so it can be
/// said again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Malformed(&'static str),
    TooLong {
        len: u64,
        max: usize,
    },
    /// The end came inside of a frame.
    Cut,
    /// The stream itself failed, with this error's number.
    System(i32),
    /// A message was begun, and nobody has its rest.
    Torn,
    /// The descriptor is of the other direction.
    NotOpen(&'static str),
}

impl Fault {
    /// For an error that must be told again: what comes after it is not what it seems.
    pub(crate) fn of(error: &std::io::Error) -> Self {
        error.raw_os_error().map_or(Self::Torn, Self::System)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(what) => Self::Malformed(what),
            Fault::TooLong { len, max } => Self::TooLong { len, max },
            Fault::System(number) => std::io::Error::from_raw_os_error(number).into(),
            Fault::NotOpen(how) => std::io::Error::new(std::io::ErrorKind::PermissionDenied, how).into(),
            Fault::Torn => std::io::Error::other("the stream was left in the middle of a message").into(),
            Fault::Cut => std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "the peer's end came in the middle of a message",
            )
            .into(),
        }
    }
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// The length of the body.
    pub(crate) len: usize,
    /// How many descriptors go beside it.
    pub(crate) beside: u8,
    /// The first of them holds those that are handed out.
    pub(crate) carrier: bool,
}

impl Header {
    /// The size of the longest one.
    pub(crate) const MAX_SIZE: usize = size_of::<i32>() + size_of::<u64>();

    /// Writes it to the end of `room`, and gives that part.
    pub(crate) fn write(self, room: &mut [u8; Self::MAX_SIZE]) -> &[u8] {
        let Self { len, beside, carrier } = self;
        let flags = u64::from(beside) | if carrier { CARRIER } else { 0 };
        match i32::try_from(len) {
            Ok(len) if flags == 0 => {
                let start = Self::MAX_SIZE - size_of::<i32>();
                room[start..].copy_from_slice(&len.to_be_bytes());
                &room[start..]
            }
            _ => {
                let (short, long) = room.split_at_mut(size_of::<i32>());
                short.copy_from_slice(&LONG.to_be_bytes());
                long.copy_from_slice(&(len as u64 | flags << LEN_BITS).to_be_bytes());
                room
            }
        }
    }

    /// How many bytes are missing at least of a header of which so many are there.
    pub(crate) fn missing(there: usize) -> usize {
        let short = size_of::<i32>();
        if there < short { short - there } else { Self::MAX_SIZE - there }
    }

    /// Reads the header that `bytes` begin with, and gives its size too; `None` while it is not
    /// all there.
    pub(crate) fn read(bytes: &[u8], max: usize) -> Result<Option<(Self, usize)>, Fault> {
        let Some((short, rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let (raw, size) = match i32::from_be_bytes(*short) {
            LONG => match rest.first_chunk() {
                Some(long) => (u64::from_be_bytes(*long), Self::MAX_SIZE),
                None => return Ok(None),
            },
            len => match u64::try_from(len) {
                Ok(len) => (len, size_of::<i32>()),
                Err(_) => return Err(Fault::Malformed("the length of a frame is negative")),
            },
        };
        let (len, flags) = (raw & ((1 << LEN_BITS) - 1), raw >> LEN_BITS);
        if flags & !(BESIDE | CARRIER) != 0 {
            // Nothing that we say, so the length it is for CPython.
            return Err(Fault::TooLong { len: raw, max });
        }
        match usize::try_from(len) {
            Ok(len) if len <= max => {
                let (beside, carrier) = ((flags & BESIDE) as u8, flags & CARRIER != 0);
                Ok(Some((Self { len, beside, carrier }, size)))
            }
            _ => Err(Fault::TooLong { len, max }),
        }
    }
}

/// CPython's frames, for [`tokio_util::codec::Framed`](https://docs.rs/tokio-util/latest/tokio_util/codec/struct.Framed.html)
/// over any byte stream.
///
/// A frame is a signed 32-bit length in network byte order and so many bytes; for more than
/// `0x7fffffff` bytes the length is −1 and an unsigned one of 64 bits follows. Each frame is one message,
/// that of zero bytes too.
///
/// No memory is set aside for what a peer only announces. Descriptors cannot travel this way: a frame
/// that announces some is an error.
///
/// # Errors
/// [`Error::TooLong`] beyond the limit in both directions, [`Error::Malformed`] for what is no frame,
/// and an [`Error::Io`] of kind `UnexpectedEof` if the stream ends inside of a frame. What is read after
/// such an error is the same error again, as nobody knows where the next frame begins.
///
/// # Examples
/// ```
/// use bytes::Bytes;
/// use futures::{SinkExt, StreamExt};
/// use tokio_multiprocess::connection::FrameCodec;
/// use tokio_util::codec::Framed;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tokio_multiprocess::Result<()> {
/// let (here, there) = tokio::io::duplex(64);
/// let mut here = Framed::new(here, FrameCodec::new());
/// let mut there = Framed::new(there, FrameCodec::new().max_message(1 << 20));
/// here.send(Bytes::from("hello")).await?;
/// assert_eq!(there.next().await.unwrap()?, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FrameCodec {
    max: usize,
}

impl FrameCodec {
    /// With a limit of 1 GiB a message.
    pub fn new() -> Self {
        Self { max: MAX_MESSAGE }
    }

    /// Limits the length of a message, in bytes.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max = bytes;
        self
    }
}

impl Default for FrameCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for FrameCodec {
    type Item = Bytes;
    type Error = Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Error> {
        let Some((header, size)) = Header::read(buffer, self.max)? else { return Ok(None) };
        if header.beside > 0 || header.carrier {
            return Err(Error::Malformed("a frame announces descriptors where none can travel"));
        }
        if buffer.len() - size < header.len {
            return Ok(None);
        }
        buffer.advance(size);
        Ok(Some(buffer.split_to(header.len).freeze()))
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Error> {
        match self.decode(buffer)? {
            None if !buffer.is_empty() => Err(Fault::Cut.into()),
            frame => Ok(frame),
        }
    }
}

impl Encoder<Bytes> for FrameCodec {
    type Error = Error;

    fn encode(&mut self, message: Bytes, buffer: &mut BytesMut) -> Result<(), Error> {
        let len = message.len();
        if len > self.max {
            return Err(Error::TooLong { len: len as u64, max: self.max });
        }
        let mut room = [0; Header::MAX_SIZE];
        let header = Header { len, ..Header::default() }.write(&mut room);
        buffer.reserve(header.len() + len);
        buffer.put_slice(header);
        buffer.put_slice(&message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 64;

    /// What a stream says as a whole: its frames, and how it ends.
    #[derive(Debug, PartialEq)]
    struct Told {
        frames: Vec<Vec<u8>>,
        fault: Option<String>,
    }

    /// The same, read off the bytes by hand.
    fn oracle(stream: &[u8]) -> Told {
        let (mut frames, mut at) = (Vec::new(), 0);
        let fault = loop {
            let rest = &stream[at..];
            let number =
                |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            let cut = Some(Error::from(Fault::Cut).to_string());
            let (len, size) = match rest {
                [] => break None,
                [255, 255, 255, 255, long @ ..] if long.len() >= 8 => (number(&long[..8]), 12),
                [255, 255, 255, 255, ..] => break cut,
                [128..=255, _, _, _, ..] => {
                    break Some(Error::Malformed("the length of a frame is negative").to_string());
                }
                [_, _, _, _, ..] => (number(&rest[..4]), 4),
                _ => break cut,
            };
            if len >> 57 != 0 {
                break Some(Error::TooLong { len, max: MAX }.to_string());
            }
            let body = len & 0xffff_ffff_ffff;
            if body > MAX as u64 {
                break Some(Error::TooLong { len: body, max: MAX }.to_string());
            }
            if body != len {
                let what = "a frame announces descriptors where none can travel";
                break Some(Error::Malformed(what).to_string());
            }
            match rest.get(size..size + len as usize) {
                Some(body) => frames.push(body.to_vec()),
                None => break cut,
            }
            at += size + len as usize;
        };
        Told { frames, fault }
    }

    /// What the codec makes of a stream that arrives in such pieces.
    fn decoded(pieces: &[&[u8]]) -> Told {
        let mut codec = FrameCodec::new().max_message(MAX);
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match codec.decode(&mut buffer) {
                    Ok(Some(frame)) => frames.push(frame.to_vec()),
                    Ok(None) => break,
                    Err(error) => return Told { frames, fault: Some(error.to_string()) },
                }
            }
            assert!(buffer.len() < Header::MAX_SIZE + MAX, "a whole frame was left");
        }
        let end = codec.decode_eof(&mut buffer);
        assert!(!matches!(end, Ok(Some(_))), "nothing was left");
        Told { frames, fault: end.err().map(|error| error.to_string()) }
    }

    /// Headers of all kinds, bodies that fit them or not, and noise.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let len = prop_oneof![4 => 0..=MAX as u64 + 2, 1 => any::<u64>()];
        let frame = (len, any::<bool>(), vec(any::<u8>(), 0..MAX + 2), any::<bool>()).prop_map(
            |(len, long, mut body, fits)| {
                let mut frame = match i32::try_from(len) {
                    Ok(len) if !long => len.to_be_bytes().to_vec(),
                    _ => [&[255; 4][..], &len.to_be_bytes()].concat(),
                };
                if fits {
                    body.resize(len.min(MAX as u64) as usize, 7);
                }
                frame.extend(body);
                frame
            },
        );
        let noise = vec(prop_oneof![Just(0u8), Just(255), any::<u8>()], 0..24);
        vec(prop_oneof![6 => frame, 1 => noise], 0..5).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn any_stream_in_any_two_pieces_is_what_it_is_as_a_whole(stream in streams()) {
            let told = oracle(&stream);
            for at in 0..=stream.len() {
                prop_assert_eq!(&decoded(&[&stream[..at], &stream[at..]]), &told);
            }
        }

        #[test]
        fn so_is_one_that_comes_byte_by_byte(stream in streams()) {
            prop_assert_eq!(decoded(&stream.chunks(1).collect::<Vec<_>>()), oracle(&stream));
        }

        #[test]
        fn what_is_encoded_is_read_by_the_oracle(messages in vec(vec(any::<u8>(), 0..=MAX), 0..6)) {
            let (mut codec, mut stream) = (FrameCodec::new().max_message(MAX), BytesMut::new());
            for message in &messages {
                codec.encode(message.clone().into(), &mut stream).unwrap();
            }
            prop_assert_eq!(oracle(&stream), Told { frames: messages, fault: None });
        }

        #[test]
        fn a_header_is_read_as_it_was_written(
            len in 0..1u64 << LEN_BITS,
            shift in 0..LEN_BITS,
            beside: u8,
            carrier: bool,
        ) {
            let header = Header { len: (len >> shift) as usize, beside, carrier };
            let mut room = [0; Header::MAX_SIZE];
            let bytes = header.write(&mut room);
            let short = header.len <= i32::MAX as usize && beside == 0 && !carrier;
            prop_assert_eq!(bytes.len(), if short { 4 } else { 12 });
            prop_assert_eq!(Header::read(bytes, usize::MAX), Ok(Some((header, bytes.len()))));
            for end in 0..bytes.len() {
                prop_assert_eq!(Header::read(&bytes[..end], usize::MAX), Ok(None));
            }
        }
    }

    #[test]
    fn what_is_announced_is_judged_before_it_comes_and_takes_no_memory() {
        let long = |len: u64| [&[255; 4][..], &len.to_be_bytes()].concat();
        let read = |bytes: &[u8]| Header::read(bytes, MAX_MESSAGE).unwrap_err();
        assert!(matches!(read(&(-2i32).to_be_bytes()), Fault::Malformed(_)));
        assert!(matches!(read(&i32::MIN.to_be_bytes()), Fault::Malformed(_)));
        for len in [10 << 30, 1 << 40, u64::MAX, 1 << 60] {
            assert_eq!(read(&long(len)), Fault::TooLong { len, max: MAX_MESSAGE });
        }
        let (mut codec, mut buffer) = (FrameCodec::new().max_message(10 << 30), BytesMut::new());
        buffer.extend_from_slice(&long(10 << 30));
        assert!(codec.decode(&mut buffer).unwrap().is_none());
        assert!(buffer.capacity() < 1024);
    }

    #[test]
    fn too_long_a_message_is_not_written() {
        let (mut codec, mut buffer) = (FrameCodec::new().max_message(3), BytesMut::new());
        let error = codec.encode(Bytes::from("long"), &mut buffer).unwrap_err();
        assert!(matches!(error, Error::TooLong { len: 4, max: 3 }));
        assert!(buffer.is_empty());
        codec.encode(Bytes::from("len"), &mut buffer).unwrap();
        assert_eq!(&buffer[..], b"\0\0\0\x03len");
    }
}
