//! A descriptor with Tokio's reactor: the only thing of Tokio's that asks for a promise.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Fd;

/// A descriptor that is registered with the runtime it was made on. Only shared access is given
/// out, so nobody can put another descriptor into its place.
#[derive(Debug)]
pub(crate) struct Registered(AsyncFd<Arc<Fd>>);

impl Registered {
    /// # Errors
    /// `AlreadyExists` if the same descriptor is registered there already: register a duplicate.
    ///
    /// # Panics
    /// Outside of a runtime, and on one whose builder did not enable I/O.
    pub(crate) fn new(fd: impl Into<Arc<Fd>>, interest: Interest) -> io::Result<Self> {
        // SAFETY: the descriptor is owned, also by us if shared, so it is open and the same until this is
        // dropped, and `as_raw_fd` of an `OwnedFd` always gives the same number.
        let registered = unsafe { AsyncFd::register_with_interest(fd.into(), interest) };
        registered.map(Self).map_err(io::Error::from)
    }

    /// As [`edge`](Self::edge), for room to write.
    pub(crate) async fn write_edge(&self) {
        if let Ok(mut guard) = self.0.writable().await {
            guard.clear_ready();
        }
    }

    /// Waits until it is readable, without reading.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(|_| ())
    }

    /// Waits for something to have happened since the last call, for who looks again after each.
    /// An error of the reactor, which is the runtime's end, counts as well.
    pub(crate) async fn edge(&self) {
        if let Ok(mut guard) = self.0.readable().await {
            guard.clear_ready();
        }
    }

    /// As [`edge`](Self::edge), and the end of the runtime is an error.
    pub(crate) async fn edge_or_end(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }

    /// As [`edge`](Self::edge), for one task alone, which is told of the reactor's end.
    pub(crate) fn poll_edge(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_read_ready(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// As [`poll_edge`](Self::poll_edge), for room to write.
    pub(crate) fn poll_write_edge(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_write_ready(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Registered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
