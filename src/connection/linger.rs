//! The rests of messages that nobody sends any more.
//!
//! A message whose first byte is in a byte stream has to go out whole: the peer waits for the rest of it,
//! and takes whatever comes next for that. So when a send is given up in the middle, a thread that
//! needs no runtime writes the rest. It begins with the first such message and ends soon after the last.
//!
//! While the connection is there, a peer may take as long as it likes. Once it is gone, nobody is left to
//! give up a peer that reads no more, so the thread does: see [`GIVE_UP`].

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::frames::Fault;
use crate::sys::per_process::PerProcess;
use crate::sys::socket::stream::{self, Kind};
use crate::sys::{self, AsFd, Fd, socket};
use crate::util::{Finalize, lock};

/// How many bytes a single call moves at most: about what takes 50 µs.
pub(super) const CHUNK: usize = 256 << 10;
/// How long the thread waits for more to do.
const IDLE: Duration = Duration::from_millis(100);
/// How long to wait for memory in the kernel, which nobody tells of.
const SHORTAGE: Duration = Duration::from_millis(1);
/// For how long a peer may take nothing of a rest whose connection is gone. Then its descriptor is closed,
/// so that the peer sees the end in the middle of a message. It is looked for at least as often.
pub(super) const GIVE_UP: Duration = Duration::from_secs(30);
/// How long a process that ends waits for peers to take what was begun.
const AT_EXIT: Duration = Duration::from_secs(1);

/// What the sender of a message that was begun knows of its rest.
#[derive(Debug, Default)]
pub(super) struct Ticket(Mutex<Status>);

#[derive(Debug, Default)]
enum Status {
    /// The send goes on.
    #[default]
    Held,
    /// The send was given up, and the thread has the rest.
    Lingers {
        /// Who waits for the end of it.
        waker: Option<Waker>,
        /// Nothing comes after it.
        hangs_up: bool,
    },
    Done,
    Failed(Fault),
}

impl Ticket {
    /// Ready when the rest is out, or cannot go out.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Result<(), Fault>> {
        match &mut *lock(&self.0) {
            // Its future was forgotten: else it would have been finished, or dropped.
            Status::Held => Poll::Ready(Err(Fault::Torn)),
            Status::Lingers { waker, .. } => {
                // There may have been no thread for it yet.
                start().map_err(|error| Fault::of(&error))?;
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Status::Done => Poll::Ready(Ok(())),
            Status::Failed(fault) => Poll::Ready(Err(*fault)),
        }
    }

    /// Has the peer told, after the rest, that nothing more comes. False if there is no rest.
    pub(super) fn hang_up(&self) -> bool {
        match &mut *lock(&self.0) {
            Status::Lingers { hangs_up, .. } => {
                *hangs_up = true;
                true
            }
            _ => false,
        }
    }

    /// Whether the rest is out.
    pub(super) fn is_done(&self) -> bool {
        matches!(*lock(&self.0), Status::Done)
    }

    fn finish(&self, fd: &Fd, result: &io::Result<()>) {
        let status = match result {
            Ok(()) => Status::Done,
            Err(error) => Status::Failed(Fault::of(error)),
        };
        let before = std::mem::replace(&mut *lock(&self.0), status);
        if let Status::Lingers { waker, hangs_up } = before {
            if hangs_up {
                socket::shut_down(fd.as_fd());
            }
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// The rest of a message.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) fd: Arc<Fd>,
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
    pub(super) ticket: Arc<Ticket>,
    /// How much of it is out.
    pub(super) at: usize,
    /// Since when the peer has taken nothing of it.
    pub(super) since: Instant,
}

impl Rest {
    /// Writes what there is room for; `None` while something is left and may go out.
    fn go_on(&mut self, has_room: bool, now: Instant) -> Option<io::Result<()>> {
        match has_room.then(|| self.write(now)).flatten() {
            None if self.is_abandoned() && now.duration_since(self.since) >= GIVE_UP => {
                tracing::warn!(left = self.bytes.len() - self.at, "a peer takes no more: its message is cut");
                Some(Err(io::ErrorKind::TimedOut.into()))
            }
            end => end,
        }
    }

    /// Whether the connection is gone that it was sent over.
    fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.ticket) == 1
    }

    fn write(&mut self, now: Instant) -> Option<io::Result<()>> {
        let left = &self.bytes[self.at..];
        match stream::write(self.fd.as_fd(), self.kind, [&left[..left.len().min(CHUNK)], &[]], &[]) {
            Ok(count) => (self.at, self.since) = (self.at + count, now),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if socket::is_full(&error) => std::thread::sleep(SHORTAGE),
            Err(error) => return Some(Err(error)),
        }
        (self.at == self.bytes.len()).then_some(Ok(()))
    }
}

#[derive(Debug, Default)]
struct Linger {
    /// What the thread has not seen yet.
    fresh: Vec<Rest>,
    /// How many are not finished.
    unfinished: usize,
    /// Rings the thread, if there is one.
    bell: Option<Arc<Fd>>,
    waits_at_exit: bool,
}

static LINGER: PerProcess<(Mutex<Linger>, Condvar)> = PerProcess::new(Default::default);

/// Has the thread write the rest of a message.
pub(super) fn give(rest: Rest) {
    *lock(&rest.ticket.0) = Status::Lingers { waker: None, hangs_up: false };
    {
        let mut linger = lock(&LINGER.get().0);
        linger.fresh.push(rest);
        linger.unfinished += 1;
        if !std::mem::replace(&mut linger.waits_at_exit, true) {
            drop(linger);
            Finalize::new(i32::MIN, finish);
        }
    }
    if let Err(error) = start() {
        tracing::warn!(%error, "no thread for the rest of a message: it waits for the next one");
    }
}

/// Sees to it that the thread runs and looks at what is there.
fn start() -> io::Result<()> {
    let mut linger = lock(&LINGER.get().0);
    match &linger.bell {
        Some(bell) => sys::fd::ring(bell.as_fd()),
        None => {
            let bell = Arc::new(sys::fd::eventfd()?);
            let own = bell.clone();
            sys::threads::spawn("mp-linger", move || run(&own))?;
            linger.bell = Some(bell);
        }
    }
    Ok(())
}

fn run(bell: &Fd) {
    let (linger, finished) = LINGER.get();
    let (mut rests, mut idle) = (Vec::<Rest>::new(), false);
    loop {
        let mut shared = lock(linger);
        rests.append(&mut shared.fresh);
        if rests.is_empty() && idle {
            shared.bell = None;
            return;
        }
        drop(shared);
        idle = rests.is_empty();
        let fds: Vec<_> = rests.iter().map(|rest| rest.fd.as_fd()).collect();
        let looks = stream::wait_writable(&fds, bell.as_fd(), Some(if idle { IDLE } else { GIVE_UP }));
        let mut looks = looks.into_iter();
        let now = Instant::now();
        let mut ended = 0;
        rests.retain_mut(|rest| {
            let end = rest.go_on(looks.next() == Some(true), now);
            if let Some(result) = &end {
                ended += 1;
                rest.ticket.finish(&rest.fd, result);
            }
            end.is_none()
        });
        if ended > 0 {
            lock(linger).unfinished -= ended;
            finished.notify_all();
        }
    }
}

/// Waits, for a bounded time, until nothing is left.
fn finish() {
    let (linger, finished) = LINGER.get();
    let unfinished = finished.wait_timeout_while(lock(linger), AT_EXIT, |linger| linger.unfinished > 0);
    drop(unfinished.unwrap_or_else(PoisonError::into_inner));
}

#[cfg(all(test, multiprocess))]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::socket::stream::read;

    #[test]
    fn the_end_is_told_also_when_the_rest_could_not_be_written() {
        for result in [Ok(()), Err(io::Error::other("no"))] {
            let (here, mut there) = UnixStream::pair().unwrap();
            let ticket = Ticket(Mutex::new(Status::Lingers { waker: None, hangs_up: false }));
            assert!(ticket.hang_up());
            let here = Fd::from(here);
            ticket.finish(&here, &result);
            // The descriptor is still open.
            assert_eq!(there.read(&mut [0]).unwrap(), 0);
            assert!(!ticket.hang_up(), "from now on the half itself has to tell it");
        }
    }

    /// The rest of a message that is more than there is room for, what its sender has of it, and the peer.
    fn rest() -> (Rest, Arc<Ticket>, Fd) {
        let (fd, peer) = UnixStream::pair().unwrap();
        let (fd, ticket) = (Arc::new(fd.into()), Arc::<Ticket>::default());
        let (bytes, since) = (vec![7; 1 << 20], Instant::now());
        (Rest { fd, kind: Kind::Unix, bytes, ticket: ticket.clone(), at: 0, since }, ticket, peer.into())
    }

    /// Writes until there is no room.
    fn fill(rest: &mut Rest, now: Instant) {
        let mut before = None;
        while before.replace(rest.at) != Some(rest.at) {
            assert!(rest.go_on(true, now).is_none());
        }
    }

    fn read_all(peer: &Fd) {
        while read(peer.as_fd(), Kind::Unix, &mut Vec::new(), CHUNK, None).is_ok() {}
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up_once_the_connection_is_gone() {
        let (mut rest, ticket, peer) = rest();
        let mut now = rest.since;
        fill(&mut rest, now);
        // Its sender may have more patience.
        now += 10 * GIVE_UP;
        assert!(rest.go_on(false, now).is_none() && rest.go_on(true, now).is_none());
        drop(ticket);
        // Room that comes just in time is used, and the time begins anew.
        read_all(&peer);
        fill(&mut rest, now);
        now += GIVE_UP - Duration::from_millis(1);
        assert!(rest.go_on(false, now).is_none());
        now += Duration::from_millis(1);
        let error = rest.go_on(true, now).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
