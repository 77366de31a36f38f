use std::io;

use super::{AsFd, BorrowedFd, Fd, RawFd, unsupported};

#[derive(Debug)]
pub(crate) struct Epoll(Fd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        unsupported()
    }
    pub(crate) fn insert(&self, _: BorrowedFd<'_>, _: u64) -> io::Result<bool> {
        unsupported()
    }
    pub(crate) fn arm(&self, _: RawFd, _: u64) -> bool {
        false
    }
    pub(crate) fn is_there(&self, _: RawFd, _: u64) -> bool {
        false
    }
    pub(crate) fn remove(&self, _: RawFd) {}
    pub(crate) fn take(&self, _: usize) -> io::Result<Vec<u64>> {
        unsupported()
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(crate) fn which_readable(_: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
    unsupported()
}
