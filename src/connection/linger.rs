//! The rests of messages that nobody sends any more.
//!
//! A message whose first byte is in a byte stream has to go out whole: the peer waits for the rest of it,
//! and takes whatever comes next for that. So when a send is given up in the middle, a thread that
//! needs no runtime writes the rest. It begins with the first such message and ends soon after the last.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

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
}

impl Rest {
    /// Writes what there is room for; `None` while something is left.
    fn write(&mut self) -> Option<io::Result<()>> {
        let left = &self.bytes[self.at..];
        match stream::write(self.fd.as_fd(), self.kind, [&left[..left.len().min(CHUNK)], &[]], &[]) {
            Ok(count) => self.at += count,
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
        let looks = stream::wait_writable(&fds, bell.as_fd(), idle.then_some(IDLE));
        let mut looks = looks.into_iter();
        let mut ended = 0;
        rests.retain_mut(|rest| {
            let end = if looks.next() == Some(true) { rest.write() } else { None };
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
}
