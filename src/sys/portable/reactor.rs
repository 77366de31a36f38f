use std::io;

use super::{AsFd, BorrowedFd, Fd, unsupported};

#[derive(Debug)]
pub(crate) struct Registered(Fd);

impl AsFd for Registered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Registered {
    pub(crate) fn new(_: impl Into<std::sync::Arc<Fd>>, _: tokio::io::Interest) -> io::Result<Self> {
        unsupported()
    }
    #[allow(clippy::unused_async, reason = "the shape of the other face")]
    pub(crate) async fn edge(&self) {}
    #[allow(clippy::unused_async, reason = "the shape of the other face")]
    pub(crate) async fn edge_or_end(&self) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn poll_edge(&self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(unsupported())
    }
    pub(crate) fn poll_write_edge(&self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(unsupported())
    }
    #[allow(clippy::unused_async, reason = "the shape of the other face")]
    pub(crate) async fn write_edge(&self) {}
    #[allow(clippy::unused_async, reason = "the shape of the other face")]
    pub(crate) async fn readable(&self) -> io::Result<()> {
        unsupported()
    }
}
