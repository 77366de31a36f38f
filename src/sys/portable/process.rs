use std::ffi::{CStr, CString};
use std::io;

use super::{AsFd, BorrowedFd, Fd, RawFd, unsupported};

pub(crate) const ESRCH: i32 = 3;

pub(crate) fn is_shortage(_: &io::Error) -> bool {
    false
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal { signal: i32, core: bool },
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Held(Fd);

impl Held {
    pub(crate) fn open(_: i32) -> io::Result<Self> {
        unsupported()
    }
    pub(crate) fn by_pidfd(_: i32, pidfd: Fd) -> Self {
        Self(pidfd)
    }
    pub(crate) fn exit(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    pub(crate) fn has_exited(&self) -> bool {
        true
    }
    pub(crate) fn try_wait(&self) -> io::Result<Option<Exit>> {
        unsupported()
    }
    pub(crate) fn signal(&self, _: i32) -> io::Result<()> {
        unsupported()
    }
}

pub(crate) struct Exec<'a> {
    pub(crate) program: &'a CStr,
    pub(crate) args: &'a [CString],
    pub(crate) env: &'a [CString],
    pub(crate) fds: &'a [(BorrowedFd<'a>, RawFd)],
    pub(crate) shielded: bool,
}

pub(crate) enum Fork {
    Parent { pid: i32 },
    Child,
}

pub(crate) enum Sibling {
    Parent { pid: i32, pidfd: Option<Fd> },
    Child,
}

pub(crate) fn getpid() -> i32 {
    std::process::id() as i32
}
pub(crate) fn posix_spawn(_: &Exec<'_>) -> io::Result<i32> {
    unsupported()
}
pub(crate) fn kill_and_wait(_: i32) {}
pub(crate) fn gettid() -> i32 {
    0
}
pub(crate) fn join_group_of(_: i32) -> io::Result<()> {
    unsupported()
}
pub(crate) fn pidfd_open(_: i32) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn is_refusal(_: &io::Error) -> bool {
    false
}
pub(crate) fn pidfd_signal(_: BorrowedFd<'_>, _: i32) -> io::Result<()> {
    unsupported()
}
pub(crate) fn pidfd_signal_group(_: BorrowedFd<'_>, _: i32) -> io::Result<()> {
    unsupported()
}
pub(crate) fn kill_group(_: i32, _: i32) -> io::Result<()> {
    unsupported()
}
pub(crate) fn set_own_group() -> io::Result<()> {
    unsupported()
}
pub(crate) fn peek_exited(_: BorrowedFd<'_>) -> bool {
    true
}
pub(crate) fn fork() -> io::Result<Fork> {
    unsupported()
}
pub(crate) fn clone_sibling() -> io::Result<Sibling> {
    unsupported()
}
pub(crate) fn exit_now(code: i32) -> ! {
    std::process::exit(code)
}
pub(crate) fn exit_with_handlers(code: i32) -> ! {
    std::process::exit(code)
}
pub(crate) fn at_exit(_: extern "C" fn()) {}
pub(crate) fn flush_c_stdio() {}
pub(crate) fn thread_count() -> io::Result<u64> {
    unsupported()
}
pub(crate) fn set_title(_: &str) {}
