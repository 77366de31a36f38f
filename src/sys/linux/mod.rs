//! The Linux face: one file for each of the kernel's subjects.

pub(crate) mod cgroup;
mod children;
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
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod reactor;
pub(crate) mod shm;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod threads;
pub(crate) mod usage;
pub(crate) mod worker;

pub(crate) use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, OwnedFd as Fd, RawFd};
