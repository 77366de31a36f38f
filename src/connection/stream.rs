//! A link of frames in a byte stream: a socket of a listener, a pipe of somebody else's.
//!
//! What is read is what is there, so that several small messages cost one call; of a large one, no more
//! than what is missing, so that its bytes are read to where they stay. What is written is one call for
//! a small message; one that was begun goes out whole, by [`linger`](super::linger) if nobody waits for it.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize, Serializer, ser};
use tokio::io::ReadBuf;

use super::beside::{Beside, Caution, Taken};
use super::frames::{Fault, Header};
use super::linger::{self, CHUNK, Rest, Ticket};
use super::link::{self, Delivery, HEADROOM, Parcel, Wanted};
use super::port::Port;
use crate::error::{Error, Result};
use crate::reduction::Descriptor;
use crate::reduction::packet::{self, Opened, Packed};
use crate::sys::socket::stream::{self, Kind};
use crate::sys::{self, AsFd, BorrowedFd, Fd, socket};

/// How much is read at once while nothing larger is known to come.
const READ: usize = 64 << 10;
/// How much memory a reader keeps while it has nothing.
const KEPT: usize = 4 << 10;
/// How long to wait for what nobody tells of: memory, or descriptors that are under way.
const SHORTAGE: Duration = Duration::from_millis(1);

thread_local! {
    /// Where small messages are read to: no connection needs such a room of its own.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(crate) struct Reader {
    kind: Kind,
    /// What was read; what lies before `at` was given out.
    buffer: Vec<u8>,
    at: usize,
    /// Where in the stream `at` is.
    position: u64,
    beside: Beside<Fd>,
    caution: Caution,
    /// A message whose descriptors did not all fit.
    laden: Option<(Bytes, Opened)>,
    ended: bool,
    fault: Option<Fault>,
}

/// What was found out about the next frame.
enum Found {
    /// It is all there; how long its header is.
    Whole(Header, usize),
    /// So many bytes are missing at least.
    Missing(usize),
}

impl Reader {
    pub(crate) fn new(kind: Kind, open: bool) -> Self {
        Self {
            kind,
            buffer: Vec::new(),
            at: 0,
            position: 0,
            beside: Beside::default(),
            caution: Caution::default(),
            laden: None,
            ended: false,
            fault: (!open).then_some(Fault::NotOpen("the descriptor is not open for reading")),
        }
    }

    /// Whether the next message, the end or a fault is known to who takes messages up to this maximum.
    pub(crate) fn holds_message(&self, max: usize) -> bool {
        self.ended || self.laden.is_some() || !matches!(self.look(max), Ok(Found::Missing(_)))
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.fault.is_some()
    }

    pub(crate) fn poll_next(
        &mut self,
        port: &mut Port,
        wanted: Wanted,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Delivery>>> {
        if let Some((body, opened)) = self.laden.take() {
            return Poll::Ready(self.unload(body, opened).map(Some));
        }
        let mut read = 0;
        loop {
            let missing = match self.look(wanted.max) {
                Ok(Found::Whole(header, size)) => return Poll::Ready(self.take(header, size).map(Some)),
                Ok(Found::Missing(_)) if self.ended => return Poll::Ready(Ok(None)),
                Ok(Found::Missing(missing)) => missing,
                Err(fault) => return Poll::Ready(Err(self.fail(fault))),
            };
            if read >= CHUNK {
                // Others want their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(port.poll_readable(cx))?;
            match self.fill(port, missing, wanted.bare) {
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => port.clear_readable(),
                // What is there stays there, until there is room for its descriptors.
                Err(error) if sys::fd::is_exhausted(&error) => return Poll::Ready(Err(error.into())),
                Err(error) => return Poll::Ready(Err(self.fail(Fault::of(&error)))),
            }
        }
    }

    /// For who reads on by bytes: the kind of the stream, and what was read ahead.
    ///
    /// # Errors
    /// If something else was read, which stays here.
    pub(super) fn take_unread(&mut self) -> Result<(Kind, Vec<u8>)> {
        match self.fault {
            Some(fault) => Err(fault.into()),
            None if self.laden.is_some() => {
                Err(Error::invalid("a message waits here for room for its handles"))
            }
            None => Ok((self.kind, self.buffer.split_off(self.at))),
        }
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn look(&self, max: usize) -> Result<Found, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let unread = self.unread();
        let missing = match Header::read(unread, max)? {
            None => {
                self.beside.check_begun(self.position)?;
                Header::missing(unread.len())
            }
            Some((header, size)) => {
                let len = size.saturating_add(header.len);
                let frame = self.position..self.position + len as u64;
                self.beside.check(&frame, header.beside.into())?;
                match len.checked_sub(unread.len()) {
                    Some(missing) if missing > 0 => missing,
                    _ => return Ok(Found::Whole(header, size)),
                }
            }
        };
        if self.ended && !unread.is_empty() { Err(Fault::Cut) } else { Ok(Found::Missing(missing)) }
    }

    /// Nothing can be read any more, so nothing has to be kept.
    fn fail(&mut self, fault: Fault) -> Error {
        self.fault = Some(fault);
        (self.buffer, self.at, self.beside) = (Vec::new(), 0, Beside::default());
        fault.into()
    }

    /// Takes a frame that is all there.
    fn take(&mut self, header: Header, size: usize) -> Result<Delivery> {
        let (start, end) = (self.at + size, self.at + size + header.len);
        self.position += (end - self.at) as u64;
        let body = if end == self.buffer.len() && self.buffer.capacity() / 2 <= header.len {
            let mut whole = Bytes::from(std::mem::take(&mut self.buffer));
            whole.advance(start);
            self.at = 0;
            whole
        } else {
            // Whoever keeps it keeps no more than that.
            self.at = end;
            Bytes::copy_from_slice(&self.buffer[start..end])
        };
        if self.at == self.buffer.len() {
            self.at = 0;
            self.buffer.clear();
            if self.buffer.capacity() > KEPT {
                self.buffer = Vec::new();
            }
        }
        self.caution.heed(header.beside > 0);
        let handles = match self.beside.take(header.beside.into()) {
            Taken::All(handles) => handles,
            Taken::Lost => return Err(link::lost().into()),
        };
        if !header.carrier {
            return Ok(Delivery { body, handles });
        }
        match packet::open(packet::CARRIER, handles) {
            Some(opened) => self.unload(body, opened),
            None => Err(self.fail(Fault::Malformed("a frame has its descriptors in none"))),
        }
    }

    /// Completes a message, most of whose descriptors lie in a socket beside it.
    fn unload(&mut self, body: Bytes, mut opened: Opened) -> Result<Delivery> {
        match opened.unload() {
            Ok(()) => Ok(Delivery { body, handles: opened.handles }),
            Err(error) => {
                if sys::fd::is_exhausted(&error) {
                    self.laden = Some((body, opened));
                }
                Err(error.into())
            }
        }
    }

    /// Reads once, and says how much that was. What is read `bare` are bytes of this frame alone.
    fn fill(&mut self, port: &mut Port, missing: usize, bare: bool) -> io::Result<usize> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let (kind, cautious, fd) = (self.kind, self.caution.is_due(), port.as_fd());
        let (start, mut fds) = (self.position + self.buffer.len() as u64, Vec::new());
        let mut read = |into: &mut Vec<u8>, most| match (bare, cautious) {
            (true, _) => stream::read(fd, kind, into, most, None),
            (false, true) => stream::read_if_room(fd, into, most, &mut fds),
            (false, false) => stream::read(fd, kind, into, most, Some(&mut fds)),
        };
        let (most, received) = if missing > READ || bare {
            let most = missing.min(CHUNK);
            if self.buffer.capacity() - self.buffer.len() < most {
                // Only what has come is a reason to believe that the rest comes.
                self.buffer.reserve_exact(missing.min(CHUNK.max(self.buffer.len())));
            }
            (most, read(&mut self.buffer, most)?)
        } else {
            ROOM.with_borrow_mut(|room| {
                room.clear();
                let received = read(room, READ)?;
                self.buffer.extend_from_slice(room);
                io::Result::Ok((READ, received))
            })?
        };
        let beside = !fds.is_empty() || received.fds_truncated;
        // A read also ends where descriptors come; and of a terminal it is a line.
        if received.len < most && !beside && kind != Kind::File {
            port.clear_readable();
        }
        if beside {
            self.caution.heed(true);
        }
        self.ended = received.len == 0;
        self.beside.arrive(start..start + received.len as u64, fds, received.fds_truncated && !bare);
        Ok(received.len)
    }
}

/// Reads what is there, as bytes.
pub(super) fn read_bytes(port: &mut Port, kind: Kind, into: &mut ReadBuf<'_>) -> io::Result<()> {
    ROOM.with_borrow_mut(|room| {
        room.clear();
        let most = into.remaining().min(READ);
        let received = stream::read(port.as_fd(), kind, room, most, None)?;
        if received.len < most && kind == Kind::Socket {
            port.clear_readable();
        }
        into.put_slice(room);
        Ok(())
    })
}

#[derive(Debug)]
pub(crate) struct Writer {
    kind: Kind,
    /// Of a message that was begun and, for all that is known, is not out.
    begun: Option<Arc<Ticket>>,
    fault: Option<Fault>,
    /// The kernel had no memory, which nobody tells the end of.
    shortage: bool,
    /// When to try again after that.
    retry: Option<Port>,
}

/// A message whose first byte is out. If it is dropped, somebody else writes the rest.
#[derive(Debug)]
pub(crate) struct Begun<'a> {
    fd: Arc<Fd>,
    kind: Kind,
    front: Vec<u8>,
    rest: &'a [u8],
    /// How much of both is out.
    at: usize,
    ticket: Arc<Ticket>,
}

impl Begun<'_> {
    fn left(&self) -> [&[u8]; 2] {
        let in_rest = self.at.saturating_sub(self.front.len());
        [&self.front[self.at.min(self.front.len())..], &self.rest[in_rest..]]
    }

    fn is_out(&self) -> bool {
        self.at == self.front.len() + self.rest.len()
    }

    /// What is left, for who needs no borrowed bytes. Its own ones are not copied, however many they are.
    fn leave(&mut self) -> Rest {
        let (bytes, at) = match self.rest {
            [] => (std::mem::take(&mut self.front), self.at),
            _ => (self.left().concat(), 0),
        };
        let (fd, ticket) = (self.fd.clone(), self.ticket.clone());
        Rest { fd, kind: self.kind, bytes, at, ticket, since: Instant::now() }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.is_out() {
            linger::give(self.leave());
        }
    }
}

/// What one call may take of this.
fn chunk([front, rest]: [&[u8]; 2]) -> [&[u8]; 2] {
    let front = &front[..front.len().min(CHUNK)];
    [front, &rest[..rest.len().min(CHUNK - front.len())]]
}

impl Writer {
    pub(crate) fn new(kind: Kind, open: bool) -> Self {
        let fault = (!open).then_some(Fault::NotOpen("the descriptor is not open for writing"));
        Self { kind, begun: None, fault, shortage: false, retry: None }
    }

    /// The same, for another owner of the descriptor.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.kind, true))
    }

    pub(crate) fn poll_send(
        &mut self,
        port: &mut Port,
        parcel: &mut Parcel<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        if parcel.begun.is_none() {
            ready!(self.poll_flush(cx))?;
            if parcel.is_left() {
                return Poll::Ready(Ok(()));
            }
        }
        let mut written = 0;
        loop {
            if written >= CHUNK {
                // Others want their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Err(error) = ready!(self.poll_room(port, cx)) {
                // A message that was begun goes out all the same, so it is not said to have failed.
                return if parcel.begun.take().is_some() {
                    self.poll_flush(cx)
                } else {
                    Poll::Ready(Err(error.into()))
                };
            }
            let result = match &mut parcel.begun {
                None => self.begin(port, parcel),
                Some(begun) => stream::write(port.as_fd(), self.kind, chunk(begun.left()), &[])
                    .inspect(|count| begun.at += count),
            };
            match result {
                Ok(_) if parcel.begun.as_ref().is_none_or(Begun::is_out) => {
                    self.begun = None;
                    return Poll::Ready(Ok(()));
                }
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => port.clear_writable(),
                Err(error) if socket::is_full(&error) => self.shortage = true,
                Err(error) => {
                    if let Some(begun) = &mut parcel.begun {
                        // The rest has nowhere to go.
                        begun.at = begun.front.len() + begun.rest.len();
                        (self.begun, self.fault) = (None, Some(Fault::of(&error)));
                    }
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    /// Ready when an attempt to write may succeed.
    ///
    /// # Errors
    /// When there is nothing left to wait with.
    fn poll_room(&mut self, port: &mut Port, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.shortage) {
            self.retry = Some(Port::after(SHORTAGE)?);
        }
        if let Some(retry) = &mut self.retry {
            ready!(retry.poll_readable(cx))?;
            self.retry = None;
        }
        port.poll_writable(cx)
    }

    /// Writes bytes as they are, once nothing of an earlier message is left, and says how many.
    pub(super) fn poll_write(
        &mut self,
        port: &mut Port,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx)).map_err(Error::into_io)?;
        loop {
            ready!(port.poll_writable(cx))?;
            match stream::write(port.as_fd(), self.kind, chunk([bytes, &[]]), &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => port.clear_writable(),
                result => return Poll::Ready(result),
            }
        }
    }

    /// Ready once nothing of an earlier message is left.
    pub(crate) fn poll_flush(&mut self, cx: &Context<'_>) -> Poll<Result<()>> {
        if let Some(begun) = &self.begun {
            let out = ready!(begun.poll(cx));
            self.begun = None;
            self.fault = out.err();
        }
        Poll::Ready(self.fault.map_or(Ok(()), |fault| Err(fault.into())))
    }

    /// Tells the peer that nothing more comes, after the rest of what was begun.
    pub(crate) fn hang_up(&self, fd: BorrowedFd<'_>) {
        if !self.begun.as_ref().is_some_and(|begun| begun.hang_up()) {
            socket::shut_down(fd);
        }
    }

    /// Writes the header and as much as there is room for. What remains is a message that was begun.
    fn begin(&mut self, port: &Port, parcel: &mut Parcel<'_>) -> io::Result<usize> {
        let (len, handles) = (parcel.len(), parcel.handles);
        if parcel.packed.is_none() && !handles.is_empty() {
            parcel.packed = Some(Packed::beside(handles)?);
        }
        let beside = parcel.packed.as_ref().map_or(Vec::new(), |packed| packed.descriptors(handles));
        let carrier = parcel.packed.as_ref().is_some_and(Packed::has_carrier);
        let mut room = [0; HEADROOM];
        let start = if parcel.batch {
            // Its messages have their headers.
            HEADROOM
        } else {
            let header = Header { len, beside: beside.len() as u8, carrier }.write(&mut room);
            HEADROOM - header.len()
        };
        parcel.front[start..HEADROOM].copy_from_slice(&room[start..]);
        let all = [&parcel.front[start..], parcel.rest];
        let total = all[0].len() + all[1].len();
        let count = stream::write(port.as_fd(), self.kind, chunk(all), &beside)?;
        if count < total {
            let ticket = Arc::<Ticket>::default();
            self.begun = Some(ticket.clone());
            parcel.begun = Some(Begun {
                fd: port.fd().clone(),
                kind: self.kind,
                front: std::mem::take(parcel.front),
                rest: parcel.rest,
                at: start + count,
                ticket,
            });
        }
        parcel.commit();
        Ok(count)
    }
}

/// What a reader has in a message, beside its descriptor.
#[derive(Serialize, Deserialize)]
pub(crate) struct Unread {
    bytes: Bytes,
    beside: Vec<Part>,
    ended: bool,
}

/// Descriptors, and from where to where in the unread bytes is what was read with them.
#[derive(Serialize, Deserialize)]
struct Part {
    start: usize,
    end: usize,
    handles: Vec<Descriptor>,
    lost: bool,
}

impl Reader {
    /// The same as a reader that was here before, in whose place it has come.
    ///
    /// # Errors
    /// If the parts of what was read contradict each other.
    pub(crate) fn resume(mut self, unread: Unread) -> Result<Self> {
        let mut before = 0;
        for Part { start, end, handles, lost } in unread.beside {
            if !(before <= start && start < end && end <= unread.bytes.len()) {
                return Err(Error::Malformed("descriptors have come with bytes that are not there"));
            }
            before = end;
            let fds = handles.into_iter().map(Descriptor::into_fd).collect::<io::Result<_>>()?;
            self.beside.arrive(start as u64..end as u64, fds, lost);
            self.caution.heed(true);
        }
        (self.buffer, self.ended) = (unread.bytes.into(), unread.ended);
        Ok(self)
    }
}

impl Serialize for Reader {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.fault {
            None if self.laden.is_none() => {}
            Some(Fault::NotOpen(_)) => {}
            None => return Err(ser::Error::custom("a message waits here for room for its handles")),
            Some(fault) => return Err(ser::Error::custom(Error::from(fault))),
        }
        let beside = self.beside.iter().map(|(part, fds, lost)| {
            // What was read with them may begin with frames that were taken.
            let [start, end] = [part.start, part.end].map(|at| at.saturating_sub(self.position) as usize);
            let handles = fds.iter().map(|fd| fd.try_clone().map(Descriptor::new));
            Ok(Part { start, end, handles: handles.collect::<io::Result<_>>()?, lost })
        });
        let beside = beside.collect::<io::Result<_>>().map_err(ser::Error::custom)?;
        let bytes = Bytes::copy_from_slice(self.unread());
        Unread { bytes, beside, ended: self.ended }.serialize(serializer)
    }
}

impl Serialize for Writer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.begun.as_ref().is_some_and(|begun| !begun.is_done()) {
            return Err(ser::Error::custom(
                "a message that was begun is not out yet: flush the connection first",
            ));
        }
        match self.fault {
            // The descriptor tells it.
            None | Some(Fault::NotOpen(_)) => serializer.serialize_unit(),
            Some(fault) => Err(ser::Error::custom(Error::from(fault))),
        }
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_a_send_leaves_is_copied_only_if_it_is_borrowed() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let fd = Arc::new(Fd::from(socket));
        let begun = |rest, at| {
            let front = b"headerfront".to_vec();
            Begun { fd: fd.clone(), kind: Kind::Unix, front, rest, at, ticket: Arc::default() }
        };
        let mut own = begun(&[], 8);
        let place = own.front.as_ptr();
        let left = own.leave();
        assert_eq!((left.bytes.as_ptr(), &left.bytes[left.at..]), (place, &b"ont"[..]));
        for (at, expected) in [(8, &b"ontrest"[..]), (11, b"rest"), (13, b"st")] {
            let mut begun = begun(b"rest", at);
            let left = begun.leave();
            assert_eq!(&left.bytes[left.at..], expected);
            begun.at = begun.front.len() + begun.rest.len();
        }
        own.at = own.front.len();
    }
}
