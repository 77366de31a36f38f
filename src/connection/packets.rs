//! A link of packets: a pair of SEQPACKET sockets, as `pipe()` makes it.
//!
//! A message is one datagram, so that it is whole or not at all, whoever dies and whoever shares an
//! end. Its form is that of [`packet`].

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::link::{Delivery, FRAME_HEAD, HEADROOM, Parcel};
use super::port::Port;
use crate::error::{Error, Result};
use crate::reduction::packet::{self, Body, INLINE, Packed};
use crate::sys::socket::{self, BATCH, Datagram, Mode};
use crate::sys::{self, AsFd, BorrowedFd};

/// How long to wait for what nobody tells of: memory, or descriptors that are under way.
const SHORTAGE: Duration = Duration::from_millis(1);

/// Up to which length messages are gathered in one buffer, and how large that becomes: whoever keeps one
/// message keeps all of its buffer.
const SMALL: usize = 1 << 10;
const GATHERED: usize = 64 << 10;

/// What has arrived and was not received yet.
#[derive(Debug)]
enum Arrived {
    /// Messages without handles, each after its length.
    Frames(Bytes),
    Message(Delivery),
    /// A message that cannot be received.
    Lost(Error),
}

#[derive(Debug)]
pub(crate) struct Reader {
    arrived: VecDeque<Arrived>,
    /// How many messages to ask the socket for.
    appetite: usize,
    ended: bool,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { arrived: VecDeque::new(), appetite: 1, ended: false }
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
        loop {
            if let Some(next) = self.try_next(port, max)? {
                return Poll::Ready(Ok(next));
            }
            ready!(port.poll_readable(cx))?;
        }
    }

    /// The next message if it is there; `None` inside is the end.
    fn try_next(&mut self, port: &mut Port, max: usize) -> Result<Option<Option<Delivery>>> {
        loop {
            match self.arrived.front_mut() {
                Some(Arrived::Frames(frames)) => {
                    let len = frames.get_u32() as usize;
                    let body = frames.split_to(len);
                    if frames.is_empty() {
                        self.arrived.pop_front();
                    }
                    if len > max {
                        return Err(Error::TooLong { len: len as u64, max });
                    }
                    return Ok(Some(Some(Delivery { body, handles: Vec::new() })));
                }
                Some(_) => match self.arrived.pop_front() {
                    Some(Arrived::Message(message)) => return Ok(Some(Some(message))),
                    Some(Arrived::Lost(why)) => return Err(why),
                    _ => {}
                },
                None if self.ended => return Ok(Some(None)),
                None => match self.fill(port.as_fd(), max) {
                    Ok(true) => {}
                    Ok(false) => port.clear_readable(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        port.clear_readable();
                        return Ok(None);
                    }
                    Err(error) => return Err(error.into()),
                },
            }
        }
    }

    /// Takes what waits in the socket, and says whether there may be more.
    fn fill(&mut self, socket: BorrowedFd<'_>, max: usize) -> io::Result<bool> {
        let mut frames = Vec::new();
        let asked = self.appetite;
        let count = socket::recv_batch(socket, asked, |datagram| {
            if self.ended || (frames.len() < GATHERED && take_frames(&datagram, &mut frames)) {
                return;
            }
            self.close_frames(&mut frames);
            if take_frames(&datagram, &mut frames) {
                return;
            }
            match arrived(datagram, max) {
                Some(arrived) => self.arrived.push_back(arrived),
                None => self.ended = true,
            }
        })?;
        self.close_frames(&mut frames);
        let more = count == asked;
        self.appetite = if more { (2 * asked).min(BATCH) } else { count + 1 };
        Ok(more)
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

/// Takes a message apart; `None` is the end.
fn arrived(datagram: Datagram<'_>, max: usize) -> Option<Arrived> {
    let (head, bytes) = datagram.bytes.split_first()?;
    let message = if datagram.truncated {
        Err(Error::Malformed("it is longer than any packet"))
    } else if datagram.fds_truncated {
        Err(Error::Io(sys::fd::exhausted()))
    } else {
        message(*head, bytes, datagram.fds, max)
    };
    Some(message.map_or_else(Arrived::Lost, Arrived::Message))
}

fn message(head: u8, bytes: &[u8], handles: Vec<sys::Fd>, max: usize) -> Result<Delivery> {
    let opened = packet::open(head, handles).filter(|opened| !matches!(opened.body, Body::Batch));
    let mut opened = opened.ok_or(Error::Malformed("it is no packet of this crate's"))?;
    opened.unload()?;
    let body = opened.body.bytes(|| Bytes::copy_from_slice(bytes), max)?;
    Ok(Delivery { body, handles: opened.handles })
}

#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// When to try again, if there was a shortage.
    retry: Option<Port>,
}

impl Writer {
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
            if !is_packed(parcel)? {
                // The next piece is for when others have had their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(port.poll_writable(cx))?;
            match send(port.as_fd(), parcel) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => port.clear_writable(),
                Err(error) if socket::is_full(&error) => self.retry = Some(after(SHORTAGE)?),
                Err(error) if socket::is_reset(&error) => {}
                result => return Poll::Ready(Ok(result?)),
            }
        }
    }
}

/// What is readable after a while.
fn after(time: Duration) -> io::Result<Port> {
    let timer = sys::fd::timerfd()?;
    sys::fd::arm_timer(timer.as_fd(), Some(time))?;
    let mut port = Port::new(timer);
    port.clear_readable();
    Ok(port)
}

/// Goes on with what the message needs beside its datagram, and says whether there is all.
fn is_packed(parcel: &mut Parcel<'_>) -> io::Result<bool> {
    if parcel.len() <= INLINE && parcel.handles.is_empty() {
        return Ok(true);
    }
    let packed = match &mut parcel.packed {
        Some(packed) => packed,
        None => {
            let packed = Packed::new(parcel.front.len() - HEADROOM + parcel.rest.len(), parcel.handles)?;
            parcel.packed.insert(packed)
        }
    };
    packed.pack(&[&parcel.front[HEADROOM..], parcel.rest])
}

/// Sends all of it, or nothing.
fn send(socket: BorrowedFd<'_>, parcel: &mut Parcel<'_>) -> io::Result<()> {
    if let Some(packed) = &parcel.packed {
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
