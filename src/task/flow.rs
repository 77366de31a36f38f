//! A flow of items over a SEQPACKET socket, with the back-pressure of that socket.
//!
//! A packet holds several small items, or one with what goes beside it. An item that is too large
//! for that lies in a sealed memfd beside a packet that is as heavy as the largest: so the socket
//! fills up also with items whose bytes it does not hold. The first packet says that it is the first,
//! and the last that it is the last: who misses one of them has not seen the whole flow.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};
use tokio::io::Interest;
use tokio::task::coop;

use crate::reactor;
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
/// The sender has failed; the reason follows as text.
const FAILED: u8 = 3;
/// In a first packet, added to the others.
const FIRST: u8 = 128;

/// Items that are to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    packets: VecDeque<(Vec<u8>, Attachments)>,
    /// The first packet has left.
    begun: bool,
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

    /// Says why no more items come.
    pub(crate) fn fail(&mut self, why: &str) {
        let why = &why.as_bytes()[..why.len().min(PACKET)];
        self.packets.push_back(([&[FAILED], why].concat(), Attachments::new()));
    }

    /// Sends all that there is. After an error the rest is still there.
    ///
    /// # Errors
    /// `WouldBlock`, or what `is_full` knows, if it cannot be sent now; `is_gone` knows when nobody
    /// is there to read.
    fn send(&mut self, socket: BorrowedFd<'_>, mode: Mode) -> io::Result<()> {
        while let Some((bytes, attachments)) = self.packets.front_mut() {
            bytes[0] |= if self.begun { 0 } else { FIRST };
            let fds: Vec<_> = attachments.iter().map(|attachment| attachment.0.as_fd()).collect();
            socket::send(socket, &[IoSlice::new(bytes)], &fds, mode)?;
            self.packets.pop_front();
            self.begun = true;
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

/// What [`Inlet::poll_packet`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Items, or the flow's end.
    Packet,
    /// Nobody is left who could send.
    Gone,
}

/// Items that have arrived.
#[derive(Debug, Default)]
struct Arriving {
    body: Body,
    /// How far it was read.
    at: usize,
    attachments: Vec<Fd>,
    begun: bool,
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
    fn next<T: DeserializeOwned>(&mut self) -> Option<Result<T, CodecError>> {
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

    fn receive(&mut self, socket: BorrowedFd<'_>, mode: Mode) -> io::Result<Found> {
        let mut bytes = vec![0; socket::next_len(socket, mode)?];
        let mut attachments = Vec::new();
        let received = socket::recv(socket, &mut bytes, &mut attachments, mode)?;
        if received.fds_truncated {
            return Err(io::Error::other("descriptors were lost: this process is at its limit"));
        }
        bytes.truncate(received.len);
        let Some(kind) = bytes.first() else { return Ok(Found::Gone) };
        if !std::mem::replace(&mut self.begun, true) && kind & FIRST == 0 {
            return Err(io::Error::other("another attempt has read some of it before"));
        }
        (self.at, self.body) = match kind & !FIRST {
            ITEMS => (1, Body::Inline(bytes)),
            LARGE if !attachments.is_empty() => (0, Body::Large(Frozen::map(attachments.remove(0).as_fd())?)),
            END => {
                self.ended = true;
                (0, Body::default())
            }
            FAILED => return Err(io::Error::other(String::from_utf8_lossy(&bytes[1..]).into_owned())),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        self.attachments = attachments;
        Ok(Found::Packet)
    }
}

/// The reader's end of a flow, on whatever runtime polls it.
#[derive(Debug)]
pub(crate) struct Inlet {
    socket: Arc<Fd>,
    /// Another number for it, with the runtime that polls.
    registered: Option<Registered>,
    arriving: Arriving,
}

impl Inlet {
    pub(crate) fn new(socket: Arc<Fd>) -> Self {
        Self { socket, registered: None, arriving: Arriving::default() }
    }

    /// The socket, as long as nothing was read of it.
    pub(crate) fn untouched(&self) -> Option<&Arc<Fd>> {
        (!self.arriving.begun).then_some(&self.socket)
    }

    /// Whether the sender has said that nothing follows.
    pub(crate) fn has_ended(&self) -> bool {
        self.arriving.ended
    }

    /// The next item that is here.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Option<Result<T, CodecError>> {
        self.arriving.next()
    }

    /// Takes the next packet, as soon as it is there; to be called once all items of the last one
    /// were read.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime with I/O.
    pub(crate) fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Found>> {
        loop {
            if let Some(found) = self.try_packet()? {
                return Poll::Ready(Ok(found));
            }
            let registered = match &self.registered {
                Some(registered) => registered,
                None => {
                    let socket = self.socket.try_clone()?;
                    self.registered.insert(Registered::new(socket, Interest::READABLE)?)
                }
            };
            if ready!(registered.poll_edge(cx)).is_err() {
                // Its runtime has ended; this may be another one.
                self.registered = None;
            }
        }
    }

    /// Takes the next packet if it is there.
    pub(crate) fn try_packet(&mut self) -> io::Result<Option<Found>> {
        match self.arriving.receive(self.socket.as_fd(), Mode::Try) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            found => found.map(Some),
        }
    }

    /// Takes the next packet, and blocks the thread until it is there.
    pub(crate) fn wait_packet(&mut self) -> io::Result<Found> {
        self.arriving.receive(self.socket.as_fd(), Mode::Wait)
    }
}

/// Why a flow ended before its source did.
#[derive(Debug)]
pub(crate) enum Spilled<E> {
    /// An item was an error.
    Source(E),
    Unencodable(CodecError),
    /// It could not be sent, though somebody was there to read it.
    Unsent(io::Error),
}

/// Sends each item at once, as nobody knows how long the iterator takes for the next. That nobody
/// reads them ends it as well.
pub(crate) fn pour_all<T: Serialize, E>(
    items: impl Iterator<Item = Result<T, E>>,
    socket: &Fd,
    peer: Peer,
) -> Result<(), Spilled<E>> {
    let mut out = Outgoing::default();
    for item in items {
        out.add(&item.map_err(Spilled::Source)?, peer).map_err(Spilled::Unencodable)?;
        match out.send_blocking(socket.as_fd()) {
            Ok(()) => {}
            result => return sent(result),
        }
    }
    out.end();
    sent(out.send_blocking(socket.as_fd()))
}

enum Step<E> {
    Send,
    End,
    Failed(Spilled<E>),
    /// Nobody listens any more.
    Gone,
}

/// Waits until somebody begins to read the flow that is to come; false if nobody will. Until then
/// nothing is in the socket that counts: values beside which descriptors go, which are large ones too,
/// count against a limit that all processes of a user share.
pub(crate) async fn is_wanted(socket: &Registered) -> bool {
    // No values: the reader takes it, and goes on to the first packet that has some.
    let opening = [ITEMS | FIRST];
    if socket::send(socket.as_fd(), &[IoSlice::new(&opening)], &[], Mode::Try).is_err() {
        return false;
    }
    while socket::has_unread(socket.as_fd()) {
        socket.write_edge().await;
    }
    let silence = socket::next_len(socket.as_fd(), Mode::Try);
    silence.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Sends together what is ready together. That nobody reads it ends it as well, also while it waits.
pub(crate) async fn pour<T: Serialize, E>(
    items: impl Stream<Item = Result<T, E>>,
    socket: &Registered,
    peer: Peer,
) -> Result<(), Spilled<E>> {
    let mut items = pin!(items);
    let mut out = Outgoing::default();
    loop {
        let step = poll_fn(|cx| {
            loop {
                match items.as_mut().poll_next(cx) {
                    Poll::Ready(Some(Ok(item))) => match out.add(&item, peer) {
                        Ok(()) if out.is_full() => return Poll::Ready(Step::Send),
                        Ok(()) => {}
                        Err(error) => return Poll::Ready(Step::Failed(Spilled::Unencodable(error))),
                    },
                    Poll::Ready(Some(Err(error))) => {
                        return Poll::Ready(Step::Failed(Spilled::Source(error)));
                    }
                    Poll::Ready(None) => return Poll::Ready(Step::End),
                    Poll::Pending if !out.is_empty() => return Poll::Ready(Step::Send),
                    Poll::Pending => break,
                }
            }
            // The reader says nothing, so all that can be heard is that it is gone.
            while let Poll::Ready(edge) = socket.poll_edge(cx) {
                match socket::next_len(socket.as_fd(), Mode::Try) {
                    Err(error) if edge.is_ok() && error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => return Poll::Ready(Step::Gone),
                }
            }
            Poll::Pending
        })
        .await;
        // A source that is always ready and a reader as quick must not keep the thread.
        coop::consume_budget().await;
        match step {
            Step::Gone => return Ok(()),
            Step::Send => match out.send_all(socket).await {
                Ok(()) => {}
                result => return sent(result),
            },
            Step::End => {
                out.end();
                return sent(out.send_all(socket).await);
            }
            Step::Failed(why) => {
                sent(out.send_all(socket).await)?;
                return Err(why);
            }
        }
    }
}

/// A reader that is gone wants nothing, so nothing went wrong.
fn sent<E>(result: io::Result<()>) -> Result<(), Spilled<E>> {
    match result {
        Err(error) if !socket::is_gone(&error) => Err(Spilled::Unsent(error)),
        _ => Ok(()),
    }
}
