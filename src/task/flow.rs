//! A flow of items over a SEQPACKET socket, with the back-pressure of that socket.
//!
//! A packet holds several small items, or one with what goes beside it. An item that is too large
//! for that lies in a sealed memfd beside a packet that is as heavy as the largest: so the socket
//! fills up also with items whose bytes it does not hold. The last packet says that it is the last:
//! a flow that ends without it was cut short.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

use crate::process::reactor;
use crate::reduction::{Attachment, Attachments, CodecError, Incoming, Peer, decode, encode};
use crate::sys::memory::Frozen;
use crate::sys::reactor::Registered;
use crate::sys::socket::{self, MAX_FDS, Mode};
use crate::sys::{AsFd, BorrowedFd, Fd};

/// How many bytes of items go into a packet, and how large one may be that is not in a memfd.
const PACKET: usize = 32 << 10;
/// An item starts with its length.
const ITEM_HEAD: usize = size_of::<u32>();
/// How long to wait for what nobody tells of: memory, or descriptors that are under way.
const SHORTAGE: Duration = Duration::from_millis(1);

// What a packet begins with.
const ITEMS: u8 = 0;
const LARGE: u8 = 1;
const END: u8 = 2;

/// Items that are to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    packets: VecDeque<(Vec<u8>, Attachments)>,
}

impl Outgoing {
    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether there is so much that it should be sent before more is added.
    pub(crate) fn is_full(&self) -> bool {
        self.packets.len() > 1 || self.packets.front().is_some_and(|(bytes, _)| bytes.len() >= PACKET)
    }

    pub(crate) fn add<T: Serialize + ?Sized>(&mut self, item: &T, peer: Peer) -> Result<(), CodecError> {
        let (mut bytes, open) = match self.packets.pop_back() {
            Some((bytes, attachments)) if attachments.is_empty() && bytes.len() < PACKET => (bytes, true),
            full => {
                self.packets.extend(full);
                (vec![ITEMS], false)
            }
        };
        let start = bytes.len();
        bytes.extend_from_slice(&[0; ITEM_HEAD]);
        let encoded = encode(item, &mut bytes, peer);
        let len = bytes.len() - start - ITEM_HEAD;
        if let Ok(attachments) = &encoded
            && attachments.is_empty()
            && len <= PACKET
        {
            bytes[start..start + ITEM_HEAD].copy_from_slice(&(len as u32).to_le_bytes());
            self.packets.push_back((bytes, Attachments::new()));
            return Ok(());
        }
        // It goes alone, or not at all.
        let alone = encoded.and_then(|attachments| packet(&bytes[start + ITEM_HEAD..], attachments));
        if open {
            bytes.truncate(start);
            self.packets.push_back((bytes, Attachments::new()));
        }
        self.packets.push_back(alone?);
        Ok(())
    }

    /// Says that no more items come.
    pub(crate) fn end(&mut self) {
        self.packets.push_back((vec![END], Attachments::new()));
    }

    /// Sends all that there is. After an error the rest is still there.
    ///
    /// # Errors
    /// `WouldBlock`, or what `is_full` knows, if it cannot be sent now; `is_gone` knows when nobody
    /// is there to read.
    fn send(&mut self, socket: BorrowedFd<'_>, mode: Mode) -> io::Result<()> {
        while let Some((bytes, attachments)) = self.packets.front() {
            let fds: Vec<_> = attachments.iter().map(|attachment| attachment.0.as_fd()).collect();
            socket::send(socket, &[IoSlice::new(bytes)], &fds, mode)?;
            self.packets.pop_front();
        }
        Ok(())
    }

    /// Sends all that there is, and blocks the thread until there is room.
    pub(crate) fn send_blocking(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            match self.send(socket, Mode::Wait) {
                Err(error) if socket::is_full(&error) => std::thread::sleep(SHORTAGE),
                result => return result,
            }
        }
    }

    /// Sends all that there is, and waits until there is room.
    pub(crate) async fn send_all(&mut self, socket: &Registered) -> io::Result<()> {
        loop {
            match self.send(socket.as_fd(), Mode::Try) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.write_edge().await,
                Err(error) if socket::is_full(&error) => reactor::sleep(SHORTAGE).await?,
                result => return result,
            }
        }
    }
}

/// A packet with one item.
fn packet(item: &[u8], mut attachments: Attachments) -> Result<(Vec<u8>, Attachments), CodecError> {
    if attachments.len() > MAX_FDS - 1 {
        return Err(CodecError::custom("more than 252 handles in one item"));
    }
    if item.len() > PACKET {
        let body = Frozen::create(item).map_err(CodecError::custom)?;
        attachments.insert(0, Attachment(body.into()));
        let mut heavy = vec![0; PACKET];
        heavy[0] = LARGE;
        return Ok((heavy, attachments));
    }
    let mut bytes = vec![ITEMS];
    bytes.extend_from_slice(&(item.len() as u32).to_le_bytes());
    bytes.extend_from_slice(item);
    Ok((bytes, attachments))
}

/// What [`Arriving::receive`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Items, or the flow's end.
    Packet,
    /// Nobody is left who could send.
    Gone,
}

/// Items that have arrived.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    body: Body,
    /// How far it was read.
    at: usize,
    attachments: Vec<Fd>,
    ended: bool,
}

#[derive(Debug)]
enum Body {
    Inline(Vec<u8>),
    Large(Frozen),
}

impl Default for Body {
    fn default() -> Self {
        Self::Inline(Vec::new())
    }
}

impl Arriving {
    /// Whether the sender has said that nothing follows.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next item that is here.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Option<Result<T, CodecError>> {
        let bytes = match &self.body {
            Body::Large(all) => {
                let attachments = std::mem::take(&mut self.attachments);
                let item = decode(Incoming { bytes: all, attachments });
                self.body = Body::default();
                return Some(item);
            }
            Body::Inline(bytes) => &bytes[self.at..],
        };
        let (head, rest) = bytes.split_first_chunk::<ITEM_HEAD>()?;
        let len = u32::from_le_bytes(*head) as usize;
        let Some(bytes) = rest.get(..len) else {
            self.body = Body::default();
            self.at = 0;
            return Some(Err(CodecError::custom("a packet of items is malformed")));
        };
        self.at += ITEM_HEAD + len;
        // Only an item that came alone has any.
        let attachments = std::mem::take(&mut self.attachments);
        Some(decode(Incoming { bytes, attachments }))
    }

    /// Takes the next packet; to be called once all items of the last one were read.
    ///
    /// # Errors
    /// `WouldBlock` in [`Mode::Try`] if there is none.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, mode: Mode) -> io::Result<Found> {
        let mut bytes = vec![0; socket::next_len(socket, mode)?];
        let mut attachments = Vec::new();
        let received = socket::recv(socket, &mut bytes, &mut attachments, mode)?;
        if received.fds_truncated {
            return Err(io::Error::other("descriptors were lost: this process is at its limit"));
        }
        bytes.truncate(received.len);
        (self.at, self.body) = match bytes.first() {
            None => return Ok(Found::Gone),
            Some(&ITEMS) => (1, Body::Inline(bytes)),
            Some(&LARGE) if !attachments.is_empty() => {
                (0, Body::Large(Frozen::map(attachments.remove(0).as_fd())?))
            }
            Some(&END) => {
                self.ended = true;
                (0, Body::default())
            }
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        };
        self.attachments = attachments;
        Ok(Found::Packet)
    }
}
