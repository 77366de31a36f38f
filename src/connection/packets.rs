//! A link of packets: a pair of SEQPACKET sockets, as `pipe()` makes it.
//!
//! A message is one datagram, so that it is whole or not at all, whoever dies and whoever shares an
//! end. Its form is that of [`packet`].

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::link::{self, Delivery, FRAME_HEAD, HEADROOM, Parcel};
use super::port::Port;
use crate::error::{Error, Result};
use crate::reduction::Descriptor;
use crate::reduction::packet::{self, Body, INLINE, Opened, Packed};
use crate::sys::socket::{self, BATCH, Datagram, Mode};
use crate::sys::{self, AsFd, BorrowedFd, Fd};

/// How long to wait for what nobody tells of: memory, or descriptors that are under way.
const SHORTAGE: Duration = Duration::from_millis(1);

/// Up to which length messages are gathered in one buffer, and how large that becomes: whoever keeps one
/// message keeps all of its buffer.
const SMALL: usize = 1 << 10;
const GATHERED: usize = 64 << 10;

/// What has arrived and was not received yet.
#[derive(Debug, Serialize, Deserialize)]
enum Arrived {
    /// Messages without handles, each after its length.
    #[serde(deserialize_with = "frames")]
    Frames(Bytes),
    Packet(Unopened),
    /// A message that cannot be received.
    #[serde(with = "lost")]
    Lost(Error),
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reader {
    arrived: VecDeque<Arrived>,
    /// Others receive from the same socket.
    shared: bool,
    /// Messages may have descriptors, and are looked at before they are taken.
    wary: bool,
    ended: bool,
    /// Whether the socket can be read ahead, as soon as that was tried.
    #[serde(skip)]
    ahead: Option<bool>,
    /// How many messages the socket last had, and one.
    #[serde(skip)]
    appetite: usize,
}

impl Reader {
    /// Receives of a writer that may give no notice of descriptors.
    pub(crate) fn wary() -> Self {
        Self { wary: true, ..Self::default() }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn share(&mut self, socket: BorrowedFd<'_>) -> io::Result<Self> {
        socket::look_at_next(socket)?;
        self.shared = true;
        Ok(Self { shared: true, ..Self::default() })
    }

    pub(crate) fn holds_message(&self) -> bool {
        !self.arrived.is_empty() || self.ended
    }

    pub(crate) fn poll_next(
        &mut self,
        port: &mut Port,
        max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Delivery>>> {
        if let Some(next) = self.take(max)? {
            return Poll::Ready(Ok(next));
        }
        loop {
            // Before each attempt, so that none is made of which it is known that it is in vain.
            ready!(port.poll_readable(cx))?;
            match self.fill(port.as_fd()) {
                Ok(true) => {}
                Ok(false) => port.clear_readable(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => port.clear_readable(),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            if let Some(next) = self.take(max)? {
                return Poll::Ready(Ok(next));
            }
        }
    }

    /// The next message of those that have arrived; `None` inside is the end.
    fn take(&mut self, max: usize) -> Result<Option<Option<Delivery>>> {
        match self.arrived.front_mut() {
            Some(Arrived::Frames(frames)) => {
                let len = frames.get_u32() as usize;
                let body = frames.split_to(len);
                if frames.is_empty() {
                    self.arrived.pop_front();
                }
                deliver(Delivery { body, handles: Vec::new() }, max)
            }
            Some(Arrived::Packet(packet)) => {
                // What does not fit below the limit of descriptors stays here until it does.
                if let Err(error) = packet.opened.unload() {
                    if !sys::fd::is_exhausted(&error) {
                        self.arrived.pop_front();
                    }
                    return Err(error.into());
                }
                let message = packet.deliver(max);
                self.arrived.pop_front();
                message.map(|message| Some(Some(message)))
            }
            Some(Arrived::Lost(why)) => {
                let why = std::mem::replace(why, Error::Eof);
                self.arrived.pop_front();
                Err(why)
            }
            None => Ok(self.ended.then_some(None)),
        }
    }

    /// Takes what waits in the socket, and says whether there may be more. What comes with descriptors
    /// stays there until these fit below the limit.
    fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut frames = Vec::new();
        let asked = self.appetite.clamp(1, BATCH);
        let wary = self.wary;
        let alone = self.shared || wary && !*self.ahead.get_or_insert_with(|| socket::look_ahead(socket));
        let push = |datagram: Datagram<'_>| self.push(datagram, &mut frames);
        let (count, more) = if alone {
            socket::recv_next(socket, push).map(|()| (1, true))?
        } else if wary {
            socket::recv_ahead(socket, asked, push)?
        } else {
            socket::recv_unseen(socket, asked, push)?
        };
        self.close_frames(&mut frames);
        self.appetite = if count == asked { 2 * asked } else { count + 1 };
        Ok(more)
    }

    fn push(&mut self, datagram: Datagram<'_>, frames: &mut Vec<u8>) {
        if self.ended {
            return;
        }
        if frames.len() > GATHERED {
            self.close_frames(frames);
        }
        if datagram.bytes == [packet::NOTICE] {
            self.wary = true;
        } else if !take_frames(&datagram, frames) {
            self.close_frames(frames);
            match arrived(datagram) {
                Some(arrived) => self.arrived.push_back(arrived),
                None => self.ended = true,
            }
        }
    }

    fn close_frames(&mut self, frames: &mut Vec<u8>) {
        if !frames.is_empty() {
            self.arrived.push_back(Arrived::Frames(std::mem::take(frames).into()));
        }
    }
}

/// Takes a message, or a batch, that is nothing but bytes. False if it is something else.
fn take_frames(datagram: &Datagram<'_>, frames: &mut Vec<u8>) -> bool {
    if !datagram.fds.is_empty() || datagram.fds_truncated || datagram.truncated {
        return false;
    }
    match datagram.bytes {
        [0, body @ ..] if body.len() <= SMALL => {
            frames.extend_from_slice(&(body.len() as u32).to_be_bytes());
            frames.extend_from_slice(body);
            true
        }
        [packet::BATCH, batch @ ..] if is_run_of_frames(batch) => {
            frames.extend_from_slice(batch);
            true
        }
        _ => false,
    }
}

/// Whether bytes are messages, at least one, each after its length.
fn is_run_of_frames(mut bytes: &[u8]) -> bool {
    while let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEAD>() {
        match rest.get(u32::from_be_bytes(*head) as usize..) {
            Some([]) => return true,
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
    false
}

fn deliver(message: Delivery, max: usize) -> Result<Option<Option<Delivery>>> {
    match message.body.len() {
        len if len > max => Err(Error::TooLong { len: len as u64, max }),
        _ => Ok(Some(Some(message))),
    }
}

/// A message that is not just a few bytes.
#[derive(Debug)]
struct Unopened {
    opened: Opened,
    inline: Bytes,
}

impl Unopened {
    fn new(head: u8, fds: Vec<Fd>, inline: &[u8]) -> Option<Self> {
        let opened = packet::open(head, fds)?;
        let inline = match opened.body {
            Body::Inline => Bytes::copy_from_slice(inline),
            Body::Memfd(_) => Bytes::new(),
            Body::Batch => return None,
        };
        Some(Self { opened, inline })
    }

    fn deliver(&mut self, max: usize) -> Result<Delivery> {
        let body = self.opened.body.bytes(|| self.inline.clone(), max)?;
        Ok(Delivery { body, handles: std::mem::take(&mut self.opened.handles) })
    }
}

/// As it arrived.
impl Serialize for Unopened {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (head, fds) = self.opened.parts();
        let handles: io::Result<Vec<_>> = fds.iter().map(|fd| fd.try_clone().map(Descriptor::new)).collect();
        (head, handles.map_err(ser::Error::custom)?, &self.inline).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Unopened {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (head, handles, inline) = <(u8, Vec<Descriptor>, Bytes)>::deserialize(deserializer)?;
        let fds: io::Result<_> = handles.into_iter().map(Descriptor::into_fd).collect();
        Self::new(head, fds.map_err(de::Error::custom)?, &inline)
            .ok_or_else(|| de::Error::custom("malformed message"))
    }
}

/// Takes a datagram apart; `None` is the end.
fn arrived(datagram: Datagram<'_>) -> Option<Arrived> {
    let (head, bytes) = datagram.bytes.split_first()?;
    let lost = if datagram.truncated {
        Error::Malformed("it is longer than any packet")
    } else if datagram.fds_truncated {
        link::lost().into()
    } else {
        match Unopened::new(*head, datagram.fds, bytes) {
            Some(packet) => return Some(Arrived::Packet(packet)),
            None => Error::Malformed("it is no packet of this crate's"),
        }
    };
    Some(Arrived::Lost(lost))
}

/// Frames from a message: from whomever, so they are looked at.
fn frames<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let frames = Bytes::deserialize(deserializer)?;
    if is_run_of_frames(&frames) { Ok(frames) } else { Err(de::Error::custom("malformed messages")) }
}

/// An error in a message keeps its text.
mod lost {
    use super::*;

    pub(super) fn serialize<S: Serializer>(error: &Error, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(error)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Error, D::Error> {
        Ok(io::Error::other(String::deserialize(deserializer)?).into())
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Writer {
    /// Others send over the same socket.
    shared: bool,
    /// How many notices of descriptors have been sent.
    notices: usize,
    /// When to try again, if there was a shortage.
    #[serde(skip)]
    retry: Option<Port>,
}

impl Writer {
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn share(&mut self) -> Self {
        self.shared = true;
        Self { shared: true, notices: self.notices, retry: None }
    }

    pub(crate) fn poll_send(
        &mut self,
        port: &mut Port,
        parcel: &mut Parcel<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        loop {
            if let Some(retry) = &mut self.retry {
                ready!(retry.poll_readable(cx))?;
                self.retry = None;
            }
            match is_packed(parcel) {
                Ok(true) => {}
                Ok(false) => {
                    // The next piece is for when others have had their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // Filling a carrier puts descriptors under way, as sending does.
                Err(error) if socket::is_crowded(&error) => {
                    self.retry = Some(Port::after(SHORTAGE)?);
                    continue;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            ready!(port.poll_writable(cx))?;
            match self.send(port.as_fd(), parcel) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => port.clear_writable(),
                Err(error) if socket::is_full(&error) => self.retry = Some(Port::after(SHORTAGE)?),
                Err(error) if socket::is_reset(&error) => {}
                result => {
                    result?;
                    parcel.commit();
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Sends all of it, or nothing but notices.
    fn send(&mut self, socket: BorrowedFd<'_>, parcel: &mut Parcel<'_>) -> io::Result<()> {
        if let Some(packed) = &parcel.packed {
            // As many as a reader may take without a look: so none that it takes so is what follows them.
            while self.notices < BATCH {
                socket::try_send_bytes(socket, &[packet::NOTICE])?;
                self.notices += 1;
            }
            let parts = [&parcel.front[HEADROOM..], parcel.rest];
            return packed.send(socket, &parts, parcel.handles, Mode::Try);
        }
        parcel.front[HEADROOM - 1] = if parcel.batch { packet::BATCH } else { 0 };
        let front = &parcel.front[HEADROOM - 1..];
        if parcel.rest.is_empty() {
            return socket::try_send_bytes(socket, front);
        }
        socket::send(socket, &[IoSlice::new(front), IoSlice::new(parcel.rest)], &[], Mode::Try)
    }
}

/// Goes on with what the message needs beside its datagram, and says whether there is all.
fn is_packed(parcel: &mut Parcel<'_>) -> io::Result<bool> {
    if parcel.len() <= INLINE && parcel.handles.is_empty() {
        return Ok(true);
    }
    let packed = match &mut parcel.packed {
        Some(packed) => packed,
        None => {
            let packed = Packed::new(parcel.len(), parcel.handles)?;
            parcel.packed.insert(packed)
        }
    };
    packed.pack(&[&parcel.front[HEADROOM..], parcel.rest])
}

#[cfg(all(test, multiprocess))]
mod tests;
