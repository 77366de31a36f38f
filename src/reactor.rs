//! Waiting for a descriptor on whatever runtime is there.

use crate::sys::{AsFd, BorrowedFd};
use std::future::poll_fn;
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
    // The end of the runtime is no room.
    poll_fn(|cx| registered.poll_write_edge(cx)).await
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

#[cfg(all(test, multiprocess))]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn the_end_of_the_runtime_is_not_room_to_write() {
        use std::io::Write;

        let (mut full, _peer) = UnixStream::pair().unwrap();
        full.set_nonblocking(true).unwrap();
        while full.write(&[0; 4096]).is_ok() {}
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let mut writable = pin!(writable(full.as_fd()));
        let mut cx = Context::from_waker(Waker::noop());
        {
            let _there = runtime.enter();
            assert!(writable.as_mut().poll(&mut cx).is_pending());
        }
        drop(runtime);
        let polled = writable.poll(&mut cx);
        assert!(matches!(polled, std::task::Poll::Ready(Err(_))), "{polled:?}");
    }
}
