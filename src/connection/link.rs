//! What a connection sends over and receives from: the same interface for each kind of link.

use std::task::{Context, Poll};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::packets;
use super::port::Port;
use crate::error::Result;
use crate::reduction::Attachments;
use crate::reduction::packet::Packed;
use crate::sys::Fd;

/// Room before a body, for the header that a link puts there.
pub(crate) const HEADROOM: usize = 12;

/// The length that each message of a batch begins with: big-endian, as in CPython's frames.
pub(crate) const FRAME_HEAD: usize = size_of::<u32>();

/// A message as it has arrived.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) body: Bytes,
    pub(crate) handles: Vec<Fd>,
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
}

impl<'a> Parcel<'a> {
    pub(crate) fn new(front: &'a mut Vec<u8>, rest: &'a [u8], handles: &'a Attachments) -> Self {
        Self { front, rest, handles, batch: false, packed: None }
    }

    /// How long the body is.
    pub(crate) fn len(&self) -> usize {
        self.front.len() - HEADROOM + self.rest.len()
    }
}

/// The end of a link that receives. In a message it takes along what was read ahead.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reader {
    Packets(packets::Reader),
}

impl Reader {
    /// The next message; `None` is the end. Nothing is lost when it is not polled again.
    pub(crate) fn poll_next(
        &mut self,
        port: &mut Port,
        max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Delivery>>> {
        match self {
            Self::Packets(packets) => packets.poll_next(port, max, cx),
        }
    }

    /// Whether the next message, or an error, is known without looking at the descriptor.
    pub(crate) fn holds_message(&self) -> bool {
        match self {
            Self::Packets(packets) => packets.holds_message(),
        }
    }

    /// Another reader of the same descriptor. From now on neither reads ahead, and each message goes to
    /// one of them.
    ///
    /// # Errors
    /// Where messages would tear.
    pub(crate) fn share(&mut self) -> Result<Self> {
        match self {
            Self::Packets(packets) => Ok(Self::Packets(packets.share())),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Packets(packets) => packets.is_shared(),
        }
    }
}

/// The end of a link that sends.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Writer {
    Packets(packets::Writer),
}

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
        }
    }

    /// Ready once nothing that was begun is left to be sent.
    pub(crate) fn poll_flush(&mut self, _port: &mut Port, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self {
            // A packet is with the kernel, or was never begun.
            Self::Packets(_) => Poll::Ready(Ok(())),
        }
    }

    /// Another writer to the same descriptor.
    ///
    /// # Errors
    /// As those of [`Reader::share`].
    pub(crate) fn share(&mut self) -> Result<Self> {
        match self {
            Self::Packets(packets) => Ok(Self::Packets(packets.share())),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Packets(packets) => packets.is_shared(),
        }
    }
}
