//! What a connection sends over and receives from: the same interface for each kind of link.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::port::Port;
use super::{packets, stream};
use crate::error::{Error, Result};
use crate::reduction::packet::Packed;
use crate::reduction::{Attachments, Departures, Peer};
use crate::sys::socket::shut_down;
use crate::sys::socket::stream::{Kind, directions, kind};
use crate::sys::{AsFd, BorrowedFd, Fd};

/// Room before a body, for the header that a link puts there.
pub(crate) const HEADROOM: usize = 12;

/// The length that each message of a batch begins with: big-endian, as in CPython's frames.
pub(crate) const FRAME_HEAD: usize = size_of::<u32>();

/// What is taken of a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// How long a message may be.
    pub(crate) max: usize,
    /// Of a peer that has proved nothing yet: its bytes alone, and of a stream none that come after the
    /// message, as descriptors may be beside those.
    pub(crate) bare: bool,
}

/// A message as it has arrived.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) body: Bytes,
    pub(crate) handles: Vec<Fd>,
}

/// What becomes of a message whose descriptors found no room, where it could not be looked at first: not
/// an error that says that there is no room, as it is of no use to try again.
pub(super) fn lost() -> io::Error {
    io::Error::other("it came with descriptors for which there was no room, and is lost")
}

/// What is to be sent.
#[derive(Debug)]
pub(crate) struct Parcel<'a> {
    /// [`HEADROOM`] bytes, and after them the body or its beginning.
    pub(crate) front: &'a mut Vec<u8>,
    /// What follows it: the body again, where it need not be copied.
    pub(crate) rest: &'a [u8],
    pub(crate) handles: &'a Attachments,
    /// The body is a run of messages, each after its length (`FRAME_HEAD`).
    pub(crate) batch: bool,
    /// What a link has made of it in an attempt that was in vain.
    pub(crate) packed: Option<Packed>,
    /// What is gone from here as soon as nothing can keep the message back.
    pub(crate) departures: Option<Departures>,
    /// Its first byte is out, and `front` is empty. If it is dropped, the rest goes out all the same.
    pub(crate) begun: Option<stream::Begun<'a>>,
}

impl<'a> Parcel<'a> {
    pub(crate) fn new(front: &'a mut Vec<u8>, rest: &'a [u8], handles: &'a Attachments) -> Self {
        Self { front, rest, handles, batch: false, packed: None, departures: None, begun: None }
    }

    /// What departs with it is gone from here.
    pub(crate) fn commit(&mut self) {
        if let Some(departures) = self.departures.take() {
            departures.commit();
        }
    }

    /// Whether it was begun and left to somebody else, who sends the rest.
    pub(crate) fn is_left(&self) -> bool {
        self.begun.is_none() && self.front.is_empty()
    }

    /// How long the body is.
    pub(crate) fn len(&self) -> usize {
        self.front.len() - HEADROOM + self.rest.len()
    }
}

/// The end of a link that receives. In a message it takes along what was read ahead.
#[derive(Debug, Serialize)]
pub(crate) enum Reader {
    Packets(packets::Reader),
    Stream(stream::Reader),
}

impl Reader {
    /// The next message; `None` is the end. Nothing is lost when it is not polled again.
    pub(crate) fn poll_next(
        &mut self,
        port: &mut Port,
        wanted: Wanted,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Delivery>>> {
        match self {
            Self::Packets(packets) => packets.poll_next(port, wanted.max, cx),
            Self::Stream(stream) => stream.poll_next(port, wanted, cx),
        }
    }

    /// Whether the next message up to this maximum, or an error, is known without looking at the descriptor.
    pub(crate) fn holds_message(&self, max: usize) -> bool {
        match self {
            Self::Packets(packets) => packets.holds_message(),
            Self::Stream(stream) => stream.holds_message(max),
        }
    }

    /// Whether nothing can be received any more, after an error.
    pub(crate) fn has_failed(&self) -> bool {
        match self {
            // The next packet is whole, whatever became of one.
            Self::Packets(_) => false,
            Self::Stream(stream) => stream.has_failed(),
        }
    }

    /// Another reader of the same descriptor. From now on neither reads ahead, and each message goes to
    /// one of them.
    ///
    /// # Errors
    /// Where messages would tear.
    pub(crate) fn share(&mut self, fd: BorrowedFd<'_>) -> Result<Self> {
        match self {
            Self::Packets(packets) => Ok(Self::Packets(packets.share(fd)?)),
            Self::Stream(_) => Err(torn()),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Packets(packets) => packets.is_shared(),
            Self::Stream(_) => false,
        }
    }
}

/// A [`Reader`] as it arrives in a message. What kind it is, its descriptor has to say too.
#[derive(Deserialize)]
pub(crate) enum ArrivedReader {
    Packets(packets::Reader),
    Stream(stream::Unread),
}

impl ArrivedReader {
    /// The reader, over the descriptor that has come with it.
    ///
    /// # Errors
    /// If the descriptor is of another kind, or the two contradict each other. And for a pipe or terminal of
    /// a stranger's: whoever else has it could make a call block that must not.
    pub(crate) fn over(self, fd: &Fd, writer: Peer) -> Result<Reader> {
        match (self, open_arrived(fd, writer)?) {
            (Self::Packets(reader), (Reader::Packets(_), _)) => Ok(Reader::Packets(reader)),
            (Self::Stream(unread), (Reader::Stream(reader), _)) => Ok(Reader::Stream(reader.resume(unread)?)),
            _ => Err(ANOTHER_KIND),
        }
    }
}

/// The end of a link that sends.
#[derive(Debug, Serialize)]
pub(crate) enum Writer {
    Packets(packets::Writer),
    Stream(stream::Writer),
}

/// A [`Writer`] as it arrives in a message.
#[derive(Deserialize)]
pub(crate) enum ArrivedWriter {
    Packets(packets::Writer),
    Stream(()),
}

impl ArrivedWriter {
    /// As [`ArrivedReader::over`].
    pub(crate) fn over(self, fd: &Fd, writer: Peer) -> Result<Writer> {
        match (self, open_arrived(fd, writer)?) {
            (Self::Packets(writer), (_, Writer::Packets(_))) => Ok(Writer::Packets(writer)),
            (Self::Stream(()), (_, writer @ Writer::Stream(_))) => Ok(writer),
            _ => Err(ANOTHER_KIND),
        }
    }
}

fn open_arrived(fd: &Fd, writer: Peer) -> Result<(Reader, Writer)> {
    if !writer.is_family() && kind(fd.as_fd())? == Kind::File {
        return Err(Error::invalid("a stranger's pipe or terminal cannot be a connection"));
    }
    open(fd)
}

const ANOTHER_KIND: Error = Error::Malformed("a connection has come with a descriptor of another kind");

impl Writer {
    /// Ready once all of it is with the kernel.
    pub(crate) fn poll_send(
        &mut self,
        port: &mut Port,
        parcel: &mut Parcel<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        match self {
            Self::Packets(packets) => packets.poll_send(port, parcel, cx),
            Self::Stream(stream) => stream.poll_send(port, parcel, cx),
        }
    }

    /// Ready once nothing that was begun is left to be sent.
    pub(crate) fn poll_flush(&mut self, cx: &Context<'_>) -> Poll<Result<()>> {
        match self {
            // A packet is with the kernel, or was never begun.
            Self::Packets(_) => Poll::Ready(Ok(())),
            Self::Stream(stream) => stream.poll_flush(cx),
        }
    }

    /// Tells the peer that nothing more comes, once all that was begun is out.
    pub(crate) fn hang_up(&self, fd: BorrowedFd<'_>) {
        match self {
            Self::Packets(_) => shut_down(fd),
            Self::Stream(stream) => stream.hang_up(fd),
        }
    }

    /// Another writer to the same descriptor.
    ///
    /// # Errors
    /// As those of [`Reader::share`].
    pub(crate) fn share(&mut self) -> Result<Self> {
        match self {
            Self::Packets(packets) => Ok(Self::Packets(packets.share())),
            Self::Stream(_) => Err(torn()),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Packets(packets) => packets.is_shared(),
            Self::Stream(_) => false,
        }
    }
}

fn torn() -> Error {
    Error::invalid("an end of a byte stream cannot be shared: messages would tear")
}

/// The ends of a link over this descriptor.
///
/// # Errors
/// If it is nothing over which messages can go.
pub(crate) fn open(fd: &Fd) -> Result<(Reader, Writer)> {
    Ok(match kind(fd.as_fd())? {
        Kind::Packets => {
            (Reader::Packets(packets::Reader::wary()), Writer::Packets(packets::Writer::default()))
        }
        kind => {
            let (reads, writes) = directions(fd.as_fd())?;
            let (reader, writer) = (stream::Reader::new(kind, reads), stream::Writer::new(kind, writes));
            (Reader::Stream(reader), Writer::Stream(writer))
        }
    })
}
