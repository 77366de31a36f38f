//! Whole messages of any size over a SEQPACKET socket.
//!
//! A message is one datagram, so that it arrives whole or not at all, whoever dies meanwhile. What
//! does not fit travels inside of it as a descriptor: a large body in a sealed memfd, descriptors
//! beyond what one datagram may carry in a carrier, a socket in which they lie ready.
//!
//! | the datagram | is |
//! |---|---|
//! | first byte | [`BODY_IN_MEMFD`], [`CARRIER`], [`BATCH`], added up; or [`NOTICE`], alone |
//! | further bytes | the body; with a memfd nothing that counts, see [`WEIGHT`] |
//! | descriptors | the memfd, the carrier, the first of the message's own |

use std::io::{self, IoSlice};

use bytes::Bytes;

use super::Attachment;
use super::transfer::MAX_HANDLES;
use crate::sys::memory::{self, Frozen};
use crate::sys::socket::{self, MAX_FDS, Mode};
use crate::sys::{self, AsFd, BorrowedFd, Fd};

/// The largest body that goes inside of the datagram.
pub(crate) const INLINE: usize = 64 << 10;
/// The largest body that is read of a child or a parent, however much they announce.
pub(crate) const LIMIT: usize = 1 << 30;
/// How long a datagram is whose body lies in a memfd: as heavy as a large one, so that the socket fills up
/// also with messages whose bytes it does not hold.
const WEIGHT: usize = 32 << 10;
/// How much of a body is written to its memfd at a time: some 50 µs.
const PIECE: usize = 128 << 10;
/// How many of a message's descriptors go beside its datagram: room is left for the memfd and the carrier.
const BESIDE: usize = MAX_FDS - 2;
/// How many descriptors are taken of one message: an order to a child has some of its own beside those
/// of the arguments.
const MOST_HANDLES: usize = MAX_HANDLES + 16;

/// The first byte says what the first descriptors are. No fault report begins with such a byte.
const BODY_IN_MEMFD: u8 = 1;
pub(crate) const CARRIER: u8 = 2;
/// The body is several messages, each after its length.
pub(crate) const BATCH: u8 = 4;
/// No message: from now on messages may come with descriptors, and a reader should look whether these fit
/// before it takes them.
pub(crate) const NOTICE: u8 = 8;

/// What a message needs beside its datagram. Made once, however often sending has to be tried: first
/// [`new`](Self::new), then [`pack`](Self::pack) until it says true, then [`send`](Self::send).
#[derive(Debug)]
pub(crate) struct Packed {
    body: Option<Fd>,
    /// How much of the body lies there; `None` once it is complete.
    written: Option<usize>,
    carrier: Option<Fd>,
}

impl Packed {
    /// For a body of `len` bytes.
    pub(crate) fn new(len: usize, attachments: &[Attachment]) -> io::Result<Self> {
        let body =
            if len > INLINE { Some(memory::growing("tokio-multiprocess-message", len)?) } else { None };
        Ok(Self { written: body.as_ref().map(|_| 0), body, ..Self::beside(attachments)? })
    }

    /// For a body that goes elsewhere: there is nothing to pack then, and nothing to be sent from here.
    pub(crate) fn beside(attachments: &[Attachment]) -> io::Result<Self> {
        let carrier = match attachments.get(BESIDE..) {
            Some(rest) if !rest.is_empty() => {
                let rest: Vec<_> = rest.iter().map(|attachment| attachment.0.as_fd()).collect();
                Some(carrier(&rest)?)
            }
            _ => None,
        };
        Ok(Self { body: None, written: None, carrier })
    }

    /// Whether there are too many descriptors to go beside one datagram.
    pub(crate) fn has_carrier(&self) -> bool {
        self.carrier.is_some()
    }

    /// What goes beside the datagram.
    pub(crate) fn descriptors<'a>(&'a self, attachments: &'a [Attachment]) -> Vec<BorrowedFd<'a>> {
        let special = [&self.body, &self.carrier].into_iter().flatten().map(|fd| fd.as_fd());
        special.chain(attachments.iter().take(BESIDE).map(|attachment| attachment.0.as_fd())).collect()
    }

    /// Writes the next piece of a large body, the concatenation of `parts`, and says whether all is
    /// done. Each call takes some 50 µs at most: between two of them a task should yield.
    ///
    /// # Errors
    /// When there is no memory left.
    pub(crate) fn pack(&mut self, parts: &[&[u8]]) -> io::Result<bool> {
        let (Some(body), Some(mut written)) = (&self.body, self.written) else { return Ok(true) };
        let (mut skip, mut room) = (written, PIECE);
        for part in parts {
            let rest = &part[skip.min(part.len())..];
            let piece = &rest[..rest.len().min(room)];
            skip = skip.saturating_sub(part.len());
            memory::write_all_at(body.as_fd(), written, piece)?;
            written += piece.len();
            room -= piece.len();
        }
        // With room left there was nothing more to write.
        let complete = room > 0;
        if complete {
            memory::seal_frozen(body.as_fd())?;
        }
        self.written = (!complete).then_some(written);
        Ok(complete)
    }

    /// Sends it; `parts` and `attachments` are the same as when it was made.
    pub(crate) fn send(
        &self,
        socket: BorrowedFd<'_>,
        parts: &[&[u8]],
        attachments: &[Attachment],
        mode: Mode,
    ) -> io::Result<()> {
        let flag = |special: &Option<Fd>, flag| if special.is_some() { flag } else { 0 };
        let head = [flag(&self.body, BODY_IN_MEMFD) | flag(&self.carrier, CARRIER)];
        let descriptors = self.descriptors(attachments);
        if self.body.is_some() {
            let weight = [0; WEIGHT - 1];
            return socket::send(socket, &[IoSlice::new(&head), IoSlice::new(&weight)], &descriptors, mode);
        }
        let mut slices = vec![IoSlice::new(&head)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        socket::send(socket, &slices, &descriptors, mode)
    }
}

/// A socket in which descriptors lie ready, each [`MAX_FDS`] of them in a message, and after them the end.
pub(crate) fn carrier(fds: &[BorrowedFd<'_>]) -> io::Result<Fd> {
    let (carrier, fill) = socket::seqpacket_pair()?;
    for some in fds.chunks(MAX_FDS) {
        socket::send(fill.as_fd(), &[IoSlice::new(&[CARRIER])], some, Mode::Try)?;
    }
    Ok(carrier)
}

/// Where the body of a datagram is.
#[derive(Debug)]
pub(crate) enum Body {
    /// After the first byte.
    Inline,
    /// There as well, several.
    Batch,
    Memfd(Fd),
}

impl Body {
    /// The body, of which `inline` is what stands after the first byte. What lies in a memfd is
    /// neither copied nor touched.
    ///
    /// # Errors
    /// `Malformed` for memory that somebody could still change or take away under its reader, `TooLong`
    /// for a body over `max`.
    pub(crate) fn bytes(&self, inline: impl FnOnce() -> Bytes, max: usize) -> crate::Result<Bytes> {
        let body = match self {
            Self::Inline | Self::Batch => inline(),
            Self::Memfd(memfd) if memory::is_frozen(memfd.as_fd()) => {
                // Looked at before it is mapped: what is announced may be larger than all addresses.
                let len = memory::len(memfd.as_fd())?;
                if len > max {
                    return Err(crate::Error::TooLong { len: len as u64, max });
                }
                Bytes::from_owner(Frozen::map(memfd.as_fd())?)
            }
            Self::Memfd(_) => return Err(crate::Error::Malformed("the memory of its body is not sealed")),
        };
        if body.len() > max {
            return Err(crate::Error::TooLong { len: body.len() as u64, max });
        }
        Ok(body)
    }
}

/// A datagram that was taken apart.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) body: Body,
    /// The message's own descriptors, once [`unload`](Self::unload) has succeeded.
    pub(crate) handles: Vec<Fd>,
    carrier: Option<Fd>,
}

/// Says what a datagram is, by its first byte and the descriptors that came with it; `None` if it is not
/// ours.
pub(crate) fn open(head: u8, mut fds: Vec<Fd>) -> Option<Opened> {
    if head & !(BODY_IN_MEMFD | CARRIER | BATCH) != 0 {
        return None;
    }
    let has = |flag| head & flag != 0;
    if fds.len() < usize::from(has(BODY_IN_MEMFD)) + usize::from(has(CARRIER)) {
        return None;
    }
    // A batch is of small messages without handles.
    if has(BATCH) && (head != BATCH || !fds.is_empty()) {
        return None;
    }
    let body = match head {
        BATCH => Body::Batch,
        _ if has(BODY_IN_MEMFD) => Body::Memfd(fds.remove(0)),
        _ => Body::Inline,
    };
    let carrier = if has(CARRIER) { Some(fds.remove(0)) } else { None };
    Some(Opened { body, handles: fds, carrier })
}

impl Opened {
    /// What [`open`] would make the same of.
    pub(crate) fn parts(&self) -> (u8, Vec<&Fd>) {
        let (mut head, mut fds) = (0, Vec::new());
        if let Body::Memfd(memfd) = &self.body {
            head |= BODY_IN_MEMFD;
            fds.push(memfd);
        }
        if let Some(carrier) = &self.carrier {
            head |= CARRIER;
            fds.push(carrier);
        }
        fds.extend(&self.handles);
        (head, fds)
    }

    /// Has all descriptors out of the carrier.
    ///
    /// # Errors
    /// `EMFILE` at the limit of this process: none is lost, those that are here stay, and the next call
    /// goes on. What others it gives are final: `InvalidData` if there are too many of them.
    pub(crate) fn unload(&mut self) -> io::Result<()> {
        let malformed = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        while let Some(carrier) = &self.carrier {
            let had = self.handles.len();
            match take_from(carrier.as_fd(), &mut self.handles) {
                Ok(false) => self.carrier = None,
                // Each round brings some, or there would be no last one: of a socket of bytes, or one
                // that somebody goes on to fill.
                Ok(true) if self.handles.len() == had => {
                    return malformed("a carrier of handles has something else in it");
                }
                Ok(true) if self.handles.len() > MOST_HANDLES => {
                    return malformed("more than 1024 handles in one message");
                }
                Ok(true) => {}
                // It is filled before it is sent.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return malformed("a carrier of handles has no end");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A message as it was received.
#[derive(Debug)]
pub(crate) enum Packet {
    Message {
        body: Bytes,
        attachments: Vec<Fd>,
    },
    /// A datagram that is not ours: what a fault handler could send with nothing but `send`.
    Raw(Vec<u8>),
    /// The peer is gone.
    End,
}

/// Receives one message. `Try` gives `WouldBlock` if none is there.
pub(crate) fn receive(socket: BorrowedFd<'_>, mode: Mode) -> io::Result<Packet> {
    // Asked for first: most messages are small, and a newborn process pays for each page it touches.
    let mut bytes = vec![0; socket::next_len(socket, mode)?.min(INLINE + 1)];
    let mut fds = Vec::new();
    let len = receive_datagram(socket, &mut bytes, &mut fds, mode)?;
    bytes.truncate(len);
    let Some(&head) = bytes.first() else { return Ok(Packet::End) };
    let Some(mut opened) = open(head, fds) else { return Ok(Packet::Raw(bytes)) };
    opened.unload()?;
    let body = opened.body.bytes(|| Bytes::from(bytes).slice(1..), LIMIT).map_err(io::Error::other)?;
    Ok(Packet::Message { body, attachments: opened.handles })
}

/// Receives what lies ready in a carrier; false at the end. If the descriptors do not fit below the
/// limit of this process they stay there, and the error is `EMFILE`.
fn take_from(carrier: BorrowedFd<'_>, fds: &mut Vec<Fd>) -> io::Result<bool> {
    let before = fds.len();
    let seen = socket::recv_duplicates(carrier, &mut [0], fds, Mode::Try)?;
    if seen.fds_truncated {
        fds.truncate(before);
        return Err(sys::fd::exhausted());
    }
    socket::skip(carrier)?;
    Ok(seen.len > 0)
}

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

#[cfg(all(test, multiprocess))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sys::socket::seqpacket_pair;

    fn send(socket: &Fd, parts: &[&[u8]], attachments: &[Attachment]) {
        let len = parts.iter().map(|part| part.len()).sum();
        let mut packed = Packed::new(len, attachments).unwrap();
        while !packed.pack(parts).unwrap() {}
        packed.send(socket.as_fd(), parts, attachments, Mode::Try).unwrap();
    }

    fn attachments(count: usize) -> Vec<Attachment> {
        let bell = Attachment(Arc::new(sys::fd::eventfd().unwrap()));
        vec![bell; count]
    }

    fn received(socket: &Fd) -> (Bytes, Vec<Fd>) {
        match receive(socket.as_fd(), Mode::Try).unwrap() {
            Packet::Message { body, attachments } => (body, attachments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_of_any_size_arrive_as_they_were_sent() {
        let (a, b) = seqpacket_pair().unwrap();
        for len in [0, 1, INLINE, INLINE + 1, PIECE, 2 * PIECE, 3 * PIECE + 1] {
            let bytes: Vec<u8> = (0..len).map(|i| (i / 3) as u8).collect();
            for (cut, handles) in [(0, 0), (len / 3, 1), (len, BESIDE + 1)] {
                let (first, second) = bytes.split_at(cut);
                send(&a, &[first, &[], second], &attachments(handles));
                let (body, fds) = received(&b);
                assert!(body == bytes && fds.len() == handles, "{len} {handles}");
            }
        }
    }

    #[test]
    fn hundreds_of_handles_arrive_in_order() {
        let (a, b) = seqpacket_pair().unwrap();
        let files: Vec<_> = (0..600).map(|_| Fd::from(tempfile::tempfile().unwrap())).collect();
        let of =
            |fds: &[Fd]| -> Vec<_> { fds.iter().map(|fd| sys::fd::identity(fd.as_fd()).unwrap()).collect() };
        let sent = of(&files);
        let files: Vec<_> = files.into_iter().map(|file| Attachment(Arc::new(file))).collect();
        send(&a, &[b"many"], &files);
        let (body, fds) = received(&b);
        assert_eq!((&body[..], of(&fds)), (&b"many"[..], sent));
    }

    #[test]
    fn a_full_socket_is_tried_again_with_the_same_memory() {
        let (a, b) = seqpacket_pair().unwrap();
        let body = vec![7; INLINE + 1];
        let mut packed = Packed::new(body.len(), &[]).unwrap();
        while !packed.pack(&[&body]).unwrap() {}
        let memory = sys::fd::identity(packed.body.as_ref().unwrap().as_fd()).unwrap();
        let attempt = |packed: &Packed| packed.send(a.as_fd(), &[&body], &[], Mode::Try);
        // Bodies that are not in the socket fill it nevertheless.
        let fit = (0..100).take_while(|_| attempt(&packed).is_ok()).count();
        assert!((1..100).contains(&fit), "{fit} times");
        assert!(packed.pack(&[&body]).unwrap(), "what is complete stays so");
        let mut fds = Vec::new();
        receive_datagram(b.as_fd(), &mut vec![0; WEIGHT], &mut fds, Mode::Try).unwrap();
        assert_eq!(sys::fd::identity(fds[0].as_fd()).unwrap(), memory);
        while receive_datagram(b.as_fd(), &mut vec![0; WEIGHT], &mut fds, Mode::Try).is_ok() {}
        attempt(&packed).unwrap();
        assert!(received(&b).0 == body);
    }

    #[test]
    fn a_large_body_is_packed_in_pieces() {
        let body = vec![1; 5 * PIECE];
        let mut packed = Packed::new(body.len(), &[]).unwrap();
        let pieces = (0..100).take_while(|_| !packed.pack(&[&body[..10], &body[10..]]).unwrap()).count();
        assert_eq!(pieces, 5);
    }

    #[test]
    fn memory_that_can_change_is_no_body() {
        let bytes = |memfd: Fd, max| Body::Memfd(memfd).bytes(Bytes::new, max);
        let unsealed = memory::memfd("test", 8).unwrap();
        let writable = memory::memfd("test", 8).unwrap();
        memory::seal_fixed_size(writable.as_fd()).unwrap();
        let no_memory = Fd::from(std::fs::File::open("/proc/self/exe").unwrap());
        for memfd in [unsealed, writable, no_memory, sys::fd::eventfd().unwrap()] {
            assert!(matches!(bytes(memfd, 100), Err(crate::Error::Malformed(_))));
        }
        assert_eq!(&bytes(Frozen::create(b"12345678").unwrap(), 8).unwrap()[..], b"12345678");
        let too_long = bytes(Frozen::create(b"12345678").unwrap(), 7);
        assert!(matches!(too_long, Err(crate::Error::TooLong { len: 8, max: 7 })));
        // More than any machine has, and nothing of it is there.
        let absurd = memory::growing("test", 0).unwrap();
        std::fs::File::from(absurd.try_clone().unwrap()).set_len(1 << 50).unwrap();
        memory::seal_frozen(absurd.as_fd()).unwrap();
        assert!(matches!(bytes(absurd, LIMIT), Err(crate::Error::TooLong { .. })));
    }

    #[test]
    fn what_is_not_ours_is_told_from_what_is() {
        let fds = |count| -> Vec<Fd> { (0..count).map(|_| sys::fd::eventfd().unwrap()).collect() };
        assert!(open(8, fds(1)).is_none() && open(b'F', Vec::new()).is_none());
        assert!(open(BODY_IN_MEMFD, Vec::new()).is_none() && open(CARRIER | BODY_IN_MEMFD, fds(1)).is_none());
        assert!(open(BATCH, fds(1)).is_none() && open(BATCH | CARRIER, fds(1)).is_none());
        assert!(matches!(open(BATCH, Vec::new()).unwrap().body, Body::Batch));
        let opened = open(BODY_IN_MEMFD, fds(3)).unwrap();
        assert!(matches!(opened.body, Body::Memfd(_)) && opened.handles.len() == 2);
        let (a, b) = seqpacket_pair().unwrap();
        socket::send(a.as_fd(), &[IoSlice::new(b"Fault")], &[], Mode::Try).unwrap();
        assert!(matches!(receive(b.as_fd(), Mode::Try), Ok(Packet::Raw(bytes)) if bytes == b"Fault"));
        drop(a);
        assert!(matches!(receive(b.as_fd(), Mode::Try), Ok(Packet::End)));
    }

    #[test]
    fn a_carrier_that_never_ends_or_says_nothing_is_no_trap() {
        let (carrier, fill) = seqpacket_pair().unwrap();
        let bells = attachments(MAX_FDS);
        let bells: Vec<_> = bells.iter().map(|bell| bell.0.as_fd()).collect();
        for _ in 0..MOST_HANDLES / MAX_FDS + 1 {
            socket::send(fill.as_fd(), &[IoSlice::new(&[0])], &bells, Mode::Try).unwrap();
        }
        let mut opened = open(CARRIER, vec![carrier]).unwrap();
        assert!(opened.unload().unwrap_err().to_string().contains("1024"));
        // One whose other end is still open.
        let (carrier, _fill) = seqpacket_pair().unwrap();
        let error = open(CARRIER, vec![carrier]).unwrap().unload().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(open(CARRIER, vec![sys::fd::eventfd().unwrap()]).unwrap().unload().is_err());
        // A socket of bytes, of which none is ever taken; one that somebody goes on to fill with nothing.
        let (stream, fill_stream) = std::os::unix::net::UnixStream::pair().unwrap();
        let (packets, fill_packets) = seqpacket_pair().unwrap();
        for (carrier, fill) in [(stream.into(), Fd::from(fill_stream)), (packets, fill_packets)] {
            socket::send(fill.as_fd(), &[IoSlice::new(&[CARRIER])], &bells[..1], Mode::Try).unwrap();
            socket::send(fill.as_fd(), &[IoSlice::new(&[CARRIER])], &[], Mode::Try).unwrap();
            let error = open(CARRIER, vec![carrier]).unwrap().unload().unwrap_err();
            assert!(error.to_string().contains("something else"), "{error}");
        }
    }
}
