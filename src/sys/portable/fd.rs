use std::io;
use std::time::Duration;

use super::{BorrowedFd, Fd, RawFd, unsupported};

pub(crate) fn eventfd() -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn ring(_: BorrowedFd<'_>) {}
pub(crate) fn wait_ring(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}
pub(crate) fn monotonic_ns() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
pub(crate) fn identity(_: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    unsupported()
}
pub(crate) fn identity_at(_: RawFd) -> Option<(u64, u64)> {
    None
}
pub(crate) fn exhausted() -> io::Error {
    io::ErrorKind::Unsupported.into()
}
pub(crate) fn is_exhausted(_: &io::Error) -> bool {
    false
}
pub(crate) fn pipe() -> io::Result<(Fd, Fd)> {
    unsupported()
}
pub(crate) fn read_some(_: BorrowedFd<'_>, _: &mut [u8]) -> io::Result<usize> {
    unsupported()
}
pub(crate) fn unread_stderr() -> io::Result<u64> {
    unsupported()
}
pub(crate) fn timerfd() -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn arm_timer(_: BorrowedFd<'_>, _: Option<Duration>) -> io::Result<()> {
    unsupported()
}
pub(crate) fn poll_readable(_: BorrowedFd<'_>, _: Option<Duration>) -> io::Result<bool> {
    unsupported()
}
pub(crate) fn poll_any(_: &[BorrowedFd<'_>], _: BorrowedFd<'_>, _: Option<Duration>) {}
pub(crate) fn raise_fd_limit() {}
pub(crate) fn open_fds() -> io::Result<Vec<RawFd>> {
    unsupported()
}
pub(crate) fn close_from(_: RawFd) {}
pub(crate) fn close_inherited(_: &[RawFd]) {}
pub(crate) fn replace_all_except(_: &[RawFd]) -> io::Result<()> {
    unsupported()
}
pub(crate) fn null_stdin() -> io::Result<()> {
    unsupported()
}
pub(crate) fn null_stdout() -> io::Result<()> {
    unsupported()
}
pub(crate) fn sanitize_stdio() -> io::Result<()> {
    unsupported()
}
pub(crate) fn from_raw_checked(_: RawFd) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn dup2_onto(_: Fd, _: RawFd) -> io::Result<()> {
    unsupported()
}
pub(crate) fn duplicate(_: RawFd) -> io::Result<Fd> {
    unsupported()
}
