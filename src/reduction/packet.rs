//! Whole messages of any size over a SEQPACKET socket.
//!
//! A message is one datagram, so that it arrives whole or not at all, whoever dies meanwhile. What
//! does not fit travels inside of it as a descriptor: a large body in a memfd, descriptors beyond
//! what one datagram may carry in a carrier, a socket in which they lie ready.

use crate::sys::{AsFd, BorrowedFd};
use std::io::{self, IoSlice};

use super::Attachment;
use crate::sys::Fd;
use crate::sys::memory;
use crate::sys::socket::{self, MAX_FDS, Mode};

/// The largest body that goes inside of the datagram.
pub(crate) const INLINE: usize = 64 << 10;
/// The largest body that is read, however much a peer announces.
const LIMIT: usize = 1 << 30;
/// How long a datagram is whose body lies in a memfd: as heavy as a large one, so that the socket fills up
/// also with messages whose bytes it does not hold.
const WEIGHT: usize = 32 << 10;

/// The first byte says what the first descriptors are. No fault report begins with such a byte.
const BODY_IN_MEMFD: u8 = 1;
const CARRIER: u8 = 2;
/// The body is several messages, each after its length.
pub(crate) const BATCH: u8 = 4;

/// A message as it was received.
#[derive(Debug)]
pub(crate) enum Packet {
    Message {
        body: Vec<u8>,
        attachments: Vec<Fd>,
    },
    /// A datagram that is not ours: what a fault handler could send with nothing but `send`.
    Raw(Vec<u8>),
    /// The peer is gone.
    End,
}

/// Sends one message: the concatenation of `parts`, with descriptors beside.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[&[u8]],
    attachments: &[Attachment],
    mode: Mode,
) -> io::Result<()> {
    Packed::new(parts, attachments)?.send(socket, parts, attachments, mode)
}

/// What a message needs beside its datagram. Made once, however often it has to be tried.
#[derive(Debug)]
pub(crate) struct Packed {
    body: Option<Fd>,
    carrier: Option<Fd>,
}

impl Packed {
    pub(crate) fn new(parts: &[&[u8]], attachments: &[Attachment]) -> io::Result<Self> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if len > LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message over 1 GiB"));
        }
        let body = if len > INLINE {
            let body = memory::memfd("tokio-multiprocess-message", len)?;
            let mut offset = 0;
            for part in parts {
                memory::write_all_at(body.as_fd(), offset, part)?;
                offset += part.len();
            }
            memory::seal_frozen(body.as_fd())?;
            Some(body)
        } else {
            None
        };
        let carrier = match attachments.get(BESIDE..) {
            Some(rest) if !rest.is_empty() => Some(carrier(rest)?),
            _ => None,
        };
        Ok(Self { body, carrier })
    }

    /// Sends it; `parts` and `attachments` are the same as when it was made.
    pub(crate) fn send(
        &self,
        socket: BorrowedFd<'_>,
        parts: &[&[u8]],
        attachments: &[Attachment],
        mode: Mode,
    ) -> io::Result<()> {
        let mut head = [0];
        let mut descriptors = Vec::with_capacity(attachments.len().min(MAX_FDS));
        for (special, flag) in [(&self.body, BODY_IN_MEMFD), (&self.carrier, CARRIER)] {
            if let Some(special) = special {
                head[0] |= flag;
                descriptors.push(special.as_fd());
            }
        }
        descriptors.extend(attachments.iter().take(BESIDE).map(|attachment| attachment.0.as_fd()));
        if self.body.is_some() {
            let weight = [0; WEIGHT - 1];
            return socket::send(socket, &[IoSlice::new(&head), IoSlice::new(&weight)], &descriptors, mode);
        }
        let mut slices = vec![IoSlice::new(&head)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        socket::send(socket, &slices, &descriptors, mode)
    }
}

/// How many of a message's descriptors go beside its datagram: room is left for the memfd and the carrier.
const BESIDE: usize = MAX_FDS - 2;

/// A socket in which descriptors lie ready, and after them the end.
fn carrier(attachments: &[Attachment]) -> io::Result<Fd> {
    let (carrier, fill) = socket::seqpacket_pair()?;
    for some in attachments.chunks(MAX_FDS) {
        let fds: Vec<_> = some.iter().map(|attachment| attachment.0.as_fd()).collect();
        socket::send(fill.as_fd(), &[IoSlice::new(&[CARRIER])], &fds, Mode::Try)?;
    }
    Ok(carrier)
}

/// Where the body of a datagram is.
#[derive(Debug)]
pub(crate) enum Body {
    /// After its head.
    Inline,
    /// There as well, several.
    Batch,
    Memfd(Fd),
}

/// Says what a datagram is, and leaves in `fds` the message's own; `None` if it is not ours.
pub(crate) fn open(head: u8, fds: &mut Vec<Fd>) -> io::Result<Option<Body>> {
    let in_memfd = usize::from(head & BODY_IN_MEMFD != 0);
    let in_carrier = usize::from(head & CARRIER != 0);
    if head & !(BODY_IN_MEMFD | CARRIER | BATCH) != 0 || fds.len() < in_memfd + in_carrier {
        return Ok(None);
    }
    let carrier = fds.splice(in_memfd..in_memfd + in_carrier, []).next();
    let memfd = fds.splice(..in_memfd, []).next();
    if let Some(carrier) = carrier {
        while receive_datagram(carrier.as_fd(), &mut [0], fds, Mode::Try)? > 0 {}
    }
    Ok(Some(match memfd {
        Some(memfd) => Body::Memfd(memfd),
        None if head & BATCH != 0 => Body::Batch,
        None => Body::Inline,
    }))
}

/// Receives one message. `Try` gives `WouldBlock` if none is there.
pub(crate) fn receive(socket: BorrowedFd<'_>, mode: Mode) -> io::Result<Packet> {
    // Asked for first: most messages are small, and a newborn process pays for each page it touches.
    let mut body = vec![0; socket::next_len(socket, mode)?.min(INLINE + 1)];
    let mut attachments = Vec::new();
    let len = receive_datagram(socket, &mut body, &mut attachments, mode)?;
    if len == 0 {
        return Ok(Packet::End);
    }
    body.truncate(len);
    match open(body[0], &mut attachments)? {
        None | Some(Body::Batch) => return Ok(Packet::Raw(body)),
        Some(Body::Memfd(memfd)) => body = memory::read_all(memfd.as_fd(), LIMIT)?,
        Some(Body::Inline) => drop(body.drain(..1)),
    }
    Ok(Packet::Message { body, attachments })
}

/// The length of what was received; 0 is the end.
fn receive_datagram(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    fds: &mut Vec<Fd>,
    mode: Mode,
) -> io::Result<usize> {
    let received = socket::recv(socket, buf, fds, mode)?;
    if received.fds_truncated {
        return Err(io::Error::other("descriptors were lost: this process is at its limit"));
    }
    if received.truncated {
        return Err(io::Error::other("a message was cut short"));
    }
    Ok(received.len)
}
