use std::io;

use super::{BorrowedFd, Fd, unsupported};

pub(crate) fn unnamed(_: usize) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn link(_: BorrowedFd<'_>, _: &str) -> io::Result<()> {
    unsupported()
}
pub(crate) fn open_named(_: &str) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn identity_of(_: &str) -> io::Result<(u64, u64)> {
    unsupported()
}
pub(crate) fn unlink(_: &str) -> io::Result<()> {
    unsupported()
}
pub(crate) fn is_open_elsewhere(_: BorrowedFd<'_>) -> io::Result<bool> {
    unsupported()
}
pub(crate) fn read_exact_at(_: BorrowedFd<'_>, _: usize, _: &mut [u8]) -> io::Result<()> {
    unsupported()
}

#[derive(Debug)]
pub(crate) struct Unsealed(());

impl Unsealed {
    pub(crate) fn map(_: BorrowedFd<'_>) -> io::Result<Self> {
        unsupported()
    }
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        std::ptr::null_mut()
    }
    pub(crate) fn len(&self) -> usize {
        0
    }
}
