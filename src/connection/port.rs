//! A descriptor, and where it is registered.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::Interest;
use tokio::runtime::{Handle, Id};

use crate::sys::reactor::Registered;
use crate::sys::{self, AsFd, BorrowedFd, Fd};

/// A descriptor that waits on whatever runtime polls it.
///
/// Each direction is registered when it first has to wait, with the runtime that polls then. A later
/// wait on another runtime moves the registration there: the former one may have ended, or be one that
/// nobody drives any more. That costs two system calls, once for each change.
#[derive(Debug)]
pub(crate) struct Port {
    fd: Arc<Fd>,
    reads: Direction,
    writes: Direction,
}

#[derive(Debug)]
struct Direction {
    interest: Interest,
    /// Nothing has shown that an attempt would be in vain, so none has to wait.
    ready: bool,
    registered: Option<(Id, Registered)>,
}

impl Port {
    pub(crate) fn new(fd: impl Into<Arc<Fd>>) -> Self {
        let direction = |interest| Direction { interest, ready: true, registered: None };
        // Who waits for an answer is told as well that the question was read, as Tokio's own sockets are: so
        // its processor is out of its sleep when the answer comes, which is a fifth of a round trip.
        let reads = direction(Interest::READABLE | Interest::WRITABLE);
        Self { fd: fd.into(), reads, writes: direction(Interest::WRITABLE) }
    }

    /// What is readable after a while, by the kernel's clock.
    pub(crate) fn after(time: Duration) -> io::Result<Self> {
        let timer = sys::fd::timerfd()?;
        sys::fd::arm_timer(timer.as_fd(), Some(time))?;
        let mut port = Self::new(timer);
        port.clear_readable();
        Ok(port)
    }

    /// The descriptor, for another port or another owner.
    pub(crate) fn fd(&self) -> &Arc<Fd> {
        &self.fd
    }

    /// Ready when an attempt to read may succeed: the first one always, even without a runtime. Who
    /// finds out that there is nothing (left) says so by [`clear_readable`](Self::clear_readable).
    ///
    /// # Errors
    /// When there is no room for a registration, or the current runtime is shutting down.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime with I/O.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.reads.poll(&self.fd, cx)
    }

    /// Has the next poll not wait if nobody on this runtime, or there is none, could tell what has come
    /// meanwhile.
    pub(crate) fn expect_readable(&mut self) {
        let told = || {
            let (runtime, _) = self.reads.registered.as_ref()?;
            Some(*runtime == Handle::try_current().ok()?.id())
        };
        self.reads.ready = self.reads.ready || told() != Some(true);
    }

    /// Has the next poll wait for something new to read.
    pub(crate) fn clear_readable(&mut self) {
        self.reads.ready = false;
    }

    /// As [`poll_readable`](Self::poll_readable), for room to write.
    pub(crate) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writes.poll(&self.fd, cx)
    }

    /// Has the next poll wait for new room.
    pub(crate) fn clear_writable(&mut self) {
        self.writes.ready = false;
    }
}

impl Direction {
    fn poll(&mut self, fd: &Arc<Fd>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ready {
            let Some((runtime, registered)) = &self.registered else {
                self.registered = Some(register(fd, self.interest)?);
                continue;
            };
            // The edge is taken before the attempt: what happens after the attempt is another one.
            let edge = if self.interest.is_readable() {
                registered.poll_edge(cx)
            } else {
                registered.poll_write_edge(cx)
            };
            match edge {
                Poll::Ready(Ok(())) => self.ready = true,
                Poll::Pending if *runtime == Handle::current().id() => return Poll::Pending,
                // It is another runtime's, or that of one that has ended.
                Poll::Ready(Err(_)) | Poll::Pending => self.registered = None,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A new registration tells at once what is there already.
fn register(fd: &Arc<Fd>, interest: Interest) -> io::Result<(Id, Registered)> {
    let registered = match Registered::new(fd.clone(), interest) {
        // A runtime takes each number once, and another direction, or somebody else, has it there.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Registered::new(fd.try_clone()?, interest)
        }
        registered => registered,
    };
    Ok((Handle::current().id(), registered?))
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
