//! Waiting for a descriptor on whatever runtime is there.

use crate::sys::{AsFd, BorrowedFd};
use std::io;
use std::time::Duration;

use tokio::io::Interest;

use crate::sys;
use crate::sys::reactor::Registered;

/// Waits until `fd` is readable, without reading.
///
/// A duplicate is registered, for the length of the wait: so any number of tasks may wait for one
/// descriptor, on any runtimes, whichever of them end. It costs about two microseconds, and what
/// is waited for here (the end of a process, its handshake) takes a hundred.
pub(crate) async fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let registered = Registered::new(fd.try_clone_to_owned()?, Interest::READABLE)?;
    registered.readable().await
}

/// The same for room to write.
pub(crate) async fn writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let registered = Registered::new(fd.try_clone_to_owned()?, Interest::WRITABLE)?;
    registered.write_edge().await;
    Ok(())
}

/// [`readable`] with a limit by the kernel's clock; false when it ran out.
pub(crate) async fn readable_within(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    if sys::fd::poll_readable(fd, Some(Duration::ZERO))? {
        return Ok(true);
    }
    if timeout.is_zero() {
        return Ok(false);
    }
    tokio::select! {
        biased;
        ready = readable(fd) => ready.map(|()| true),
        over = sleep(timeout) => over.map(|()| false),
    }
}

/// Sleeps by the kernel's clock.
pub(crate) async fn sleep(duration: Duration) -> io::Result<()> {
    Deadline::after(duration)?.over().await
}

/// A point in time by the kernel's clock: a paused or missing Tokio clock makes no difference.
#[derive(Debug)]
pub(crate) struct Deadline(sys::Fd);

impl Deadline {
    pub(crate) fn after(duration: Duration) -> io::Result<Self> {
        let timer = sys::fd::timerfd()?;
        sys::fd::arm_timer(timer.as_fd(), Some(duration))?;
        Ok(Self(timer))
    }

    pub(crate) async fn over(&self) -> io::Result<()> {
        readable(self.0.as_fd()).await
    }
}
