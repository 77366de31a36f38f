//! Whole messages of any size over a SEQPACKET socket.
//!
//! A small message is one datagram; the body of a large one, and descriptors beyond what one
//! datagram may carry, go in a memfd and in datagrams ahead of it. Whoever dies in between leaves
//! no half of a message: the last datagram makes it.

use std::io::{self, IoSlice};
use crate::sys::{AsFd, BorrowedFd};

use super::Attachment;
use crate::sys::memory;
use crate::sys::socket::{self, MAX_FDS, Mode};
use crate::sys::Fd;

/// The largest body that goes inside of the datagram.
const INLINE: usize = 64 << 10;
/// The largest body that is read, however much a peer announces.
const LIMIT: usize = 1 << 30;

const BODY_HERE: u8 = 0;
const BODY_IN_MEMFD: u8 = 1;
const MORE_DESCRIPTORS: u8 = 2;

/// A message as it was received.
#[derive(Debug)]
pub(crate) enum Packet {
    Message { body: Vec<u8>, attachments: Vec<Fd> },
    /// A datagram that is not ours: what a fault handler could send with nothing but `send`.
    Raw(Vec<u8>),
    /// The peer is gone.
    End,
}

/// Sends one message: the concatenation of `parts`, with descriptors beside.
pub(crate) fn send(socket: BorrowedFd<'_>, parts: &[&[u8]], attachments: &[Attachment], mode: Mode) -> io::Result<()> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    if len > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message over 1 GiB"));
    }
    let mut descriptors: Vec<BorrowedFd<'_>> = attachments.iter().map(|attachment| attachment.0.as_fd()).collect();
    // The memfd of a body takes the first place in the last datagram.
    while descriptors.len() > MAX_FDS - 1 {
        let rest = descriptors.split_off(MAX_FDS);
        socket::send(socket, &[IoSlice::new(&[MORE_DESCRIPTORS])], &descriptors, mode)?;
        descriptors = rest;
    }
    if len <= INLINE {
        let mut slices = vec![IoSlice::new(&[BODY_HERE])];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        return socket::send(socket, &slices, &descriptors, mode);
    }
    let body = memory::memfd("tokio-multiprocess-message", len)?;
    let mut offset = 0;
    for part in parts {
        memory::write_all_at(body.as_fd(), offset, part)?;
        offset += part.len();
    }
    descriptors.insert(0, body.as_fd());
    socket::send(socket, &[IoSlice::new(&[BODY_IN_MEMFD])], &descriptors, mode)
}

/// Receives one message. `Try` gives `WouldBlock` if none is there.
pub(crate) fn receive(socket: BorrowedFd<'_>, mode: Mode) -> io::Result<Packet> {
    let mut body = vec![0; INLINE + 1];
    let mut attachments = Vec::new();
    loop {
        let ahead = attachments.len();
        let received = socket::recv(socket, &mut body, &mut attachments, mode)?;
        if received.fds_truncated {
            return Err(io::Error::other("descriptors were lost: this process is at its limit"));
        }
        if received.len == 0 {
            return Ok(Packet::End);
        }
        match body[0] {
            BODY_HERE => {
                body.truncate(received.len);
                body.drain(..1);
                return Ok(Packet::Message { body, attachments });
            }
            BODY_IN_MEMFD if attachments.len() > ahead => {
                let memfd = attachments.remove(ahead);
                let body = memory::read_all(memfd.as_fd(), LIMIT)?;
                return Ok(Packet::Message { body, attachments });
            }
            MORE_DESCRIPTORS => {}
            _ => {
                body.truncate(received.len);
                return Ok(Packet::Raw(body));
            }
        }
    }
}
