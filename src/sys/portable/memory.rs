use std::io;
use std::sync::atomic::AtomicU64;

use super::{BorrowedFd, Fd, unsupported};

pub(crate) fn memfd(_: &str, _: usize) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn sparse(_: &str, _: usize, _: usize) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn allocate(_: BorrowedFd<'_>, _: usize) -> io::Result<()> {
    unsupported()
}
pub(crate) fn write_all_at(_: BorrowedFd<'_>, _: usize, _: &[u8]) -> io::Result<()> {
    unsupported()
}
pub(crate) fn admits(_: usize, _: usize) -> io::Result<()> {
    unsupported()
}
pub(crate) fn read_at(_: BorrowedFd<'_>, _: usize, _: usize, _: &mut Vec<u8>) -> io::Result<()> {
    unsupported()
}
pub(crate) fn punch(_: BorrowedFd<'_>, _: usize, _: usize) -> io::Result<()> {
    unsupported()
}
pub(crate) fn is_written(_: BorrowedFd<'_>, _: usize, _: usize) -> io::Result<bool> {
    unsupported()
}
pub(crate) fn growing(_: &str, _: usize) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn seal_frozen(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}
pub(crate) fn len(_: BorrowedFd<'_>) -> io::Result<usize> {
    unsupported()
}
pub(crate) fn is_frozen(_: BorrowedFd<'_>) -> bool {
    false
}

pub(crate) fn seal_fixed_size(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}

#[derive(Debug)]
pub(crate) struct Shared(AtomicU64);

impl Shared {
    pub(crate) fn map(_: BorrowedFd<'_>) -> io::Result<Self> {
        unsupported()
    }
    pub(crate) fn map_first(_: BorrowedFd<'_>, _: usize) -> io::Result<Self> {
        unsupported()
    }
    pub(crate) fn tail_from(&self, _: usize) -> Self {
        Self(AtomicU64::new(0))
    }
    pub(crate) fn len(&self) -> usize {
        0
    }
    pub(crate) fn write(&self, _: usize, _: &[u8]) {}
    pub(crate) fn append_to(&self, _: usize, _: usize, _: &mut Vec<u8>) {}
    pub(crate) fn load_into(&self, _: usize, _: &mut [u8]) {}
    pub(crate) fn store_from(&self, _: usize, _: &[u8]) {}
    pub(crate) fn update<const N: usize>(
        &self,
        _: usize,
        mut f: impl FnMut([u8; N]) -> Option<[u8; N]>,
    ) -> [u8; N] {
        f([0; N]).unwrap_or([0; N])
    }
    pub(crate) fn atomic_u64(&self, _: usize) -> &AtomicU64 {
        &self.0
    }
}

impl std::ops::Deref for Frozen {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &[]
    }
}

#[derive(Debug)]
pub(crate) struct Frozen(());

impl Frozen {
    pub(crate) fn create(_: &[u8]) -> io::Result<Fd> {
        unsupported()
    }
    pub(crate) fn map(_: BorrowedFd<'_>) -> io::Result<Self> {
        unsupported()
    }
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &[]
    }
}
