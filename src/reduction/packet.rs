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
const INLINE: usize = 64 << 10;
/// The largest body that is read, however much a peer announces.
const LIMIT: usize = 1 << 30;

/// The first byte says what the first descriptors are. No fault report begins with such a byte.
const BODY_IN_MEMFD: u8 = 1;
const CARRIER: u8 = 2;

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
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    if len > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message over 1 GiB"));
    }
    let mut head = 0;
    let mut descriptors: Vec<BorrowedFd<'_>> =
        attachments.iter().map(|attachment| attachment.0.as_fd()).collect();
    // Room is left for the carrier and the memfd.
    let carrier = if descriptors.len() > MAX_FDS - 2 {
        Some(carrier(&descriptors.split_off(MAX_FDS - 2))?)
    } else {
        None
    };
    if let Some(carrier) = &carrier {
        head |= CARRIER;
        descriptors.insert(0, carrier.as_fd());
    }
    if len <= INLINE {
        let head = [head];
        let mut slices = vec![IoSlice::new(&head)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        return socket::send(socket, &slices, &descriptors, mode);
    }
    let body = memory::memfd("tokio-multiprocess-message", len)?;
    let mut offset = 0;
    for part in parts {
        memory::write_all_at(body.as_fd(), offset, part)?;
        offset += part.len();
    }
    head |= BODY_IN_MEMFD;
    descriptors.insert(0, body.as_fd());
    socket::send(socket, &[IoSlice::new(&[head])], &descriptors, mode)
}

/// A socket in which descriptors lie ready, and after them the end.
fn carrier(descriptors: &[BorrowedFd<'_>]) -> io::Result<Fd> {
    let (carrier, fill) = socket::seqpacket_pair()?;
    for some in descriptors.chunks(MAX_FDS) {
        socket::send(fill.as_fd(), &[IoSlice::new(&[CARRIER])], some, Mode::Try)?;
    }
    Ok(carrier)
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
    let head = body[0];
    let in_memfd = usize::from(head & BODY_IN_MEMFD != 0);
    let in_carrier = usize::from(head & CARRIER != 0);
    body.truncate(len);
    if head & !(BODY_IN_MEMFD | CARRIER) != 0 || attachments.len() < in_memfd + in_carrier {
        return Ok(Packet::Raw(body));
    }
    let carrier = attachments.splice(in_memfd..in_memfd + in_carrier, []).next();
    let memfd = attachments.splice(..in_memfd, []).next();
    if let Some(carrier) = carrier {
        while receive_datagram(carrier.as_fd(), &mut [0], &mut attachments, Mode::Try)? > 0 {}
    }
    match memfd {
        Some(memfd) => body = memory::read_all(memfd.as_fd(), LIMIT)?,
        None => drop(body.drain(..1)),
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
