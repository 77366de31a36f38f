//! Descriptors: doorbells and timers, and care of the descriptor table itself.
//!
//! What takes a bare number rather than a `BorrowedFd` is meant for a process that has just begun
//! and in which nothing yet relies on the table: a child before its bootstrap.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Once;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::unistd::{read, write};

/// What is wrong when a descriptor that was sent here finds no number left.
pub(crate) fn exhausted() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// Whether an error says that this process has no number for a descriptor left.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMFILE)
}

/// A doorbell: a non-blocking, close-on-exec eventfd at zero.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    Ok(EventFd::from_flags(flags)?.into())
}

/// Rings a doorbell; one that is already full is as good as rung.
pub(crate) fn ring(fd: BorrowedFd) {
    while write(fd, &1u64.to_ne_bytes()) == Err(Errno::EINTR) {}
}

/// Blocks the thread until the doorbell has been rung, and takes all rings at once.
pub(crate) fn wait_ring(fd: BorrowedFd) -> io::Result<()> {
    loop {
        poll_readable(fd, None)?;
        match read(fd, &mut [0; 8]) {
            Ok(_) => return Ok(()),
            // Another waiter was faster.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A disarmed timer on the monotonic clock, non-blocking and close-on-exec.
pub(crate) fn timerfd() -> io::Result<OwnedFd> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    Ok(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?.into())
}

/// Arms a timer to fire once; `None` disarms it. Either way an unread expiry is forgotten.
pub(crate) fn arm_timer(fd: BorrowedFd, after: Option<Duration>) -> io::Result<()> {
    let zero = *TimeSpec::from_duration(Duration::ZERO).as_ref();
    // A zero time would disarm.
    let value = after.map_or(zero, |d| *timespec(d.max(Duration::from_nanos(1))).as_ref());
    let spec = libc::itimerspec { it_interval: zero, it_value: value };
    // SAFETY: `spec` outlives the call, and a null pointer declines the old value.
    let result = unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
    Errno::result(result)?;
    Ok(())
}

/// The monotonic clock in nanoseconds; it is the same clock in every process of this machine.
pub(crate) fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("Linux always has a monotonic clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// What tells an open file from others: its device and its number there. Some files without a name
/// share one, such as doorbells.
pub(crate) fn identity(fd: BorrowedFd) -> io::Result<(u64, u64)> {
    let stat = nix::sys::stat::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// [`identity`] of what is open at a number now, if anything is.
pub(crate) fn identity_at(fd: RawFd) -> Option<(u64, u64)> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes to `stat`, which outlives the call, and says EBADF for a number that is
    // closed.
    let result = unsafe { libc::fstat(fd, stat.as_mut_ptr()) };
    Errno::result(result).ok()?;
    // SAFETY: the call has succeeded, so it was filled in.
    let stat = unsafe { stat.assume_init() };
    Some((stat.st_dev, stat.st_ino))
}

/// A pipe whose end for reading, the first, does not block.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reads, writes) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(reads.as_fd(), true)?;
    Ok((reads, writes))
}

/// Reads once; 0 bytes are the end.
pub(crate) fn read_some(fd: BorrowedFd, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match read(fd, into) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// How many bytes are in the pipe that is this process's stderr.
pub(crate) fn unread_stderr() -> io::Result<u64> {
    let mut len: libc::c_int = 0;
    // SAFETY: this request writes one such integer, which outlives the call.
    Errno::result(unsafe { libc::ioctl(libc::STDERR_FILENO, libc::FIONREAD, &raw mut len) })?;
    Ok(u64::try_from(len).unwrap_or(0))
}

/// Sets or clears `O_NONBLOCK`, which everybody who shares the open file description will see.
fn set_nonblocking(fd: BorrowedFd, nonblocking: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, nonblocking);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Blocks the thread until `fd` is readable, hung up or in error (`true`), or time is up (`false`).
pub(crate) fn poll_readable(fd: BorrowedFd, timeout: Option<Duration>) -> io::Result<bool> {
    // What lies beyond the clock's range is for ever.
    let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = deadline.map(|d| timespec(d.saturating_duration_since(Instant::now())));
        match ppoll(&mut [PollFd::new(fd, PollFlags::POLLIN)], left, None) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Blocks the thread until one of `fds` is readable or hung up, the time is up, or the doorbell was
/// rung, which is then taken.
pub(crate) fn poll_any(fds: &[BorrowedFd], bell: BorrowedFd, time: Option<Duration>) {
    let all = fds.iter().chain([&bell]);
    let mut polled: Vec<_> = all.map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    while ppoll(&mut polled, time.map(timespec), None) == Err(Errno::EINTR) {}
    let _ = read(bell, &mut [0; 8]);
}

/// A duration for the kernel, which takes at most a signed number of seconds.
fn timespec(duration: Duration) -> TimeSpec {
    TimeSpec::from_duration(duration.min(Duration::from_secs(i64::MAX as u64)))
}

/// Raises the soft limit on open descriptors to the hard one, once in a process.
pub(crate) fn raise_fd_limit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
            && soft < hard
        {
            // Refused: then the soft limit is what there is.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    });
}

/// The numbers of all open descriptors, as `/proc` tells.
///
/// # Errors
/// Without `/proc`, or without one descriptor left to read it with.
pub(crate) fn open_fds() -> io::Result<Vec<RawFd>> {
    let mut fds = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        fds.extend(entry?.file_name().to_str().and_then(|n| n.parse::<RawFd>().ok()));
    }
    // The directory was itself in the list and is closed by now.
    fds.retain(|&fd| is_open(fd));
    Ok(fds)
}

/// Closes every descriptor from `first` on, whoever owns it.
pub(crate) fn close_from(first: RawFd) {
    // The raw call, since not every libc has the wrapper.
    // SAFETY: takes three integers and touches no memory; that nobody relies on those numbers
    // any more is what the caller decides.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == 0 {
        return;
    }
    // Some sandboxes do not know the call.
    let fds = open_fds().unwrap_or_else(|_| {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        (0..RawFd::try_from(limit).unwrap_or(RawFd::MAX)).collect()
    });
    for fd in fds.into_iter().filter(|&fd| fd >= first) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Closes these numbers, in a copy of a process that never uses what owned them there.
pub(crate) fn close_inherited(fds: &[RawFd]) {
    for &fd in fds.iter().filter(|fd| **fd > 2) {
        // SAFETY: takes an integer; the owners are in code to which this copy never returns.
        unsafe { libc::close(fd) };
    }
}

/// Puts a silent socket in place of every open descriptor above 2 that is not in `keep`.
///
/// For a forked child's first act. Closing the inherited descriptors would free their numbers,
/// and an inherited owner that is dropped later would close, or deregister from its parent's
/// epoll, whatever had taken its number; so the numbers stay taken and mean nothing. Silent and
/// not at its end: a new Tokio runtime in the child reads the inherited pipe of Tokio's signals,
/// and panics at an end of file there.
pub(crate) fn replace_all_except(keep: &[RawFd]) -> io::Result<()> {
    let fds = open_fds()?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (silent, peer) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
    for fd in fds.into_iter().filter(|fd| *fd > 2 && !keep.contains(fd)) {
        match replace(silent.as_fd(), fd, libc::O_CLOEXEC) {
            // A number beyond the limit, which was lowered since: once closed, nobody gets it.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => close_inherited(&[fd]),
            replaced => replaced?,
        }
    }
    // Open for as long as the process lives.
    let _ = peer.into_raw_fd();
    Ok(())
}

/// Makes `/dev/null` this process's standard input.
pub(crate) fn null_stdin() -> io::Result<()> {
    dup2_onto(open_null(OFlag::O_RDONLY)?, 0)
}

/// Makes `/dev/null` this process's standard output.
pub(crate) fn null_stdout() -> io::Result<()> {
    dup2_onto(open_null(OFlag::O_WRONLY)?, 1)
}

/// Opens `/dev/null` at each of 0, 1 and 2 that is closed, so that no other file ever lands there.
pub(crate) fn sanitize_stdio() -> io::Result<()> {
    for fd in 0..=2 {
        if !is_open(fd) {
            dup2_onto(open_null(OFlag::O_RDWR)?, fd)?;
        }
    }
    Ok(())
}

/// Takes ownership of a number that this process was started with, and makes it close-on-exec.
///
/// The caller claims that the number was handed over to it and that nobody else in this process
/// owns it: each number may be claimed once.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub(crate) fn from_raw_checked(raw: RawFd) -> io::Result<OwnedFd> {
    if !is_open(raw) {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: it is open, and sole ownership is the caller's claim.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Another descriptor for the open file at this number, whoever owns that.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub(crate) fn duplicate(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only; a number at which nothing is open is an error.
    let copy = Errno::result(unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Moves a descriptor to the number `target`, replacing what is there; programs started from here
/// inherit it.
pub(crate) fn dup2_onto(fd: OwnedFd, target: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let _ = fd.into_raw_fd();
        return Ok(());
    }
    replace(fd.as_fd(), target, 0)
}

/// `dup3` onto a bare number. nix wants to own the target, and nobody owns these.
fn replace(fd: BorrowedFd, target: RawFd, flags: libc::c_int) -> io::Result<()> {
    loop {
        // SAFETY: takes integers only; that nobody relies on what is open at `target` is what
        // the callers of this module decide.
        match Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), target, flags) }) {
            Ok(_) => return Ok(()),
            // Somebody is just opening that number.
            Err(Errno::EINTR | Errno::EBUSY) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn open_null(mode: OFlag) -> io::Result<OwnedFd> {
    Ok(open("/dev/null", mode | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes integers only, and says EBADF for a number that is closed.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, dup, fork, pipe};

    use super::*;

    /// Runs `test` in a forked child, where the descriptor table may be ruined; it must not panic.
    fn in_child(test: impl FnOnce() -> bool) {
        // SAFETY: the child calls no lock but glibc's allocator, which survives a fork, and _exit.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => exits_with_zero(child),
            // SAFETY: ends the process without running anybody's code.
            ForkResult::Child => unsafe { libc::_exit(i32::from(!test())) },
        }
    }

    fn exits_with_zero(child: Pid) {
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    }

    fn cloexec(fd: BorrowedFd) -> bool {
        fcntl(fd, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0
    }

    #[test]
    fn a_rung_bell_wakes_once() {
        let bell = eventfd().unwrap();
        assert!(cloexec(bell.as_fd()));
        assert!(!poll_readable(bell.as_fd(), Some(Duration::ZERO)).unwrap());
        ring(bell.as_fd());
        ring(bell.as_fd());
        wait_ring(bell.as_fd()).unwrap();
        assert!(!poll_readable(bell.as_fd(), Some(Duration::ZERO)).unwrap());
    }

    #[test]
    fn a_full_bell_can_be_rung() {
        let bell = eventfd().unwrap();
        write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        ring(bell.as_fd());
        wait_ring(bell.as_fd()).unwrap();
    }

    #[test]
    fn a_bell_rung_later_wakes_a_blocked_thread() {
        let bell = eventfd().unwrap();
        std::thread::scope(|s| {
            let waiter = s.spawn(|| wait_ring(bell.as_fd()));
            ring(bell.as_fd());
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_timer_fires_at_zero_and_not_when_disarmed() {
        let timer = timerfd().unwrap();
        let watchdog = Some(Duration::from_secs(20));
        arm_timer(timer.as_fd(), Some(Duration::ZERO)).unwrap();
        assert!(poll_readable(timer.as_fd(), watchdog).unwrap());
        arm_timer(timer.as_fd(), None).unwrap();
        assert!(!poll_readable(timer.as_fd(), Some(Duration::ZERO)).unwrap());
        arm_timer(timer.as_fd(), Some(Duration::from_millis(1))).unwrap();
        assert!(poll_readable(timer.as_fd(), watchdog).unwrap());
        arm_timer(timer.as_fd(), Some(Duration::MAX)).unwrap();
        assert!(!poll_readable(timer.as_fd(), Some(Duration::ZERO)).unwrap());
    }

    #[test]
    fn a_poll_ends_in_time_or_on_hang_up() {
        let (a, b) = UnixStream::pair().unwrap();
        let before = monotonic_ns();
        assert!(!poll_readable(a.as_fd(), Some(Duration::from_millis(5))).unwrap());
        assert!(monotonic_ns() - before >= 5_000_000);
        drop(b);
        assert!(poll_readable(a.as_fd(), Some(Duration::MAX)).unwrap());
    }

    #[test]
    fn blocking_mode_is_set_and_cleared() {
        let (read_end, _write_end) = pipe().unwrap();
        set_nonblocking(read_end.as_fd(), true).unwrap();
        assert_eq!(read(&read_end, &mut [0]), Err(Errno::EAGAIN));
        set_nonblocking(read_end.as_fd(), false).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&read_end, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn the_limit_becomes_the_hard_one() {
        raise_fd_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }

    #[test]
    fn open_descriptors_are_listed_without_the_directory() {
        in_child(|| {
            let before = open_fds().unwrap_or_default();
            let bell = eventfd();
            let after = open_fds().unwrap_or_default();
            let number = bell.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            before.contains(&0) == is_open(0) && after.len() == before.len() + 1 && after.contains(&number)
        });
    }

    #[test]
    fn closing_leaves_what_is_below() {
        let (kept, other) = UnixStream::pair().unwrap();
        let high = fcntl(&other, FcntlArg::F_DUPFD_CLOEXEC(500)).unwrap();
        in_child(|| {
            close_from(high);
            is_open(kept.as_raw_fd()) && !is_open(high)
        });
        drop(from_raw_checked(high).unwrap());
    }

    #[test]
    fn replaced_descriptors_are_taken_but_silent() {
        let (kept, lost) = UnixStream::pair().unwrap();
        lost.set_nonblocking(true).unwrap();
        in_child(|| {
            let replaced = replace_all_except(&[kept.as_raw_fd()]).is_ok();
            // Nothing can be written to the parent's end from here any more.
            replaced
                && cloexec(lost.as_fd())
                && read(&lost, &mut [0]) == Err(Errno::EAGAIN)
                && write(&lost, b"lost") == Ok(4)
                && write(&kept, b"x") == Ok(1)
        });
        assert_eq!(read(&lost, &mut [0; 4]), Ok(1));
    }

    #[test]
    fn standard_streams_are_mended() {
        in_child(|| {
            close_from(0);
            let stdin = null_stdin().is_ok();
            let all = sanitize_stdio().is_ok();
            let inherited = (0..=2).all(|fd| {
                // SAFETY: F_GETFD takes integers only.
                unsafe { libc::fcntl(fd, libc::F_GETFD) == 0 }
            });
            stdin && all && inherited && !is_open(3)
        });
    }

    #[test]
    fn what_lies_beyond_the_limit_is_closed() {
        in_child(|| {
            let beyond = eventfd().is_ok_and(|fd| dup2_onto(fd, 200).is_ok());
            let lowered = setrlimit(Resource::RLIMIT_NOFILE, 100, 100).is_ok();
            beyond && lowered && replace_all_except(&[]).is_ok() && !is_open(200)
        });
    }

    #[test]
    fn only_an_open_number_can_be_claimed() {
        assert!(from_raw_checked(1 << 20).is_err());
        assert!(from_raw_checked(-1).is_err());
        let raw = dup(eventfd().unwrap()).unwrap().into_raw_fd();
        let fd = from_raw_checked(raw).unwrap();
        assert!(cloexec(fd.as_fd()));
    }

    #[test]
    fn moving_onto_itself_only_clears_close_on_exec() {
        let fd = eventfd().unwrap();
        let raw = fd.as_raw_fd();
        dup2_onto(fd, raw).unwrap();
        let fd = from_raw_checked(raw).unwrap();
        ring(fd.as_fd());
        assert!(poll_readable(fd.as_fd(), Some(Duration::ZERO)).unwrap());
    }
}
