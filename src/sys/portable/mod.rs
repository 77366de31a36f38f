//! What stands in for the kernel where processes cannot be started.
//!
//! The same names as on Linux, so that no other room needs to know where it is. What would give a
//! descriptor says `Unsupported`, so what takes one is never reached.

pub(crate) mod cgroup;
pub(crate) mod door;
pub(crate) mod env;
pub(crate) mod epoll;
pub(crate) mod fault;
pub(crate) mod fd;
pub(crate) mod guardian;
pub(crate) mod identity;
pub(crate) mod init;
pub(crate) mod interrupt;
pub(crate) mod kept;
pub(crate) mod memory;
pub(crate) mod net;
pub(crate) mod orphan;
pub(crate) mod per_process;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod reactor;
pub(crate) mod shm;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod threads;
pub(crate) mod usage;
pub(crate) mod worker;

use std::io;
use std::marker::PhantomData;

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) type RawFd = i32;

/// A descriptor: nothing here makes one.
#[derive(Debug)]
pub(crate) struct Fd(());

#[derive(Clone, Copy, Debug)]
pub(crate) struct BorrowedFd<'a>(PhantomData<&'a Fd>);

impl BorrowedFd<'_> {
    pub(crate) fn try_clone_to_owned(&self) -> io::Result<Fd> {
        unsupported()
    }
}

pub(crate) trait AsFd {
    fn as_fd(&self) -> BorrowedFd<'_>;
}

pub(crate) trait AsRawFd {
    fn as_raw_fd(&self) -> RawFd;
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        BorrowedFd(PhantomData)
    }
}

impl AsFd for BorrowedFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        *self
    }
}

impl AsRawFd for BorrowedFd<'_> {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

impl Fd {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        unsupported()
    }
}
