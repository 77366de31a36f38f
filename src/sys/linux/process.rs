//! Processes: starting, forking, cloning, signalling, waiting for and ending them.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid};

use super::fd::poll_readable;
use crate::sys::{Mechanism, without};

mod clone;
mod held;
pub(crate) use clone::{Sibling, clone_sibling};
pub(crate) use held::{Held, is_refusal};

/// Whether something failed for want of what may be there later: processes, memory, descriptors.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE))
}

/// What the kernel says of a process that is not there.
pub(crate) const ESRCH: i32 = libc::ESRCH;

pub(crate) fn getpid() -> i32 {
    nix::unistd::getpid().as_raw()
}

pub(crate) fn gettid() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// A program to start.
///
/// It gets `/dev/null` as 0, inherits 1 and 2, and has every signal unblocked and at its default.
pub(crate) struct Exec<'a> {
    pub program: &'a CStr,
    pub args: &'a [CString],
    /// `K=V` each; nothing else is inherited.
    pub env: &'a [CString],
    /// What the child gets, and under which number; a number named here wins over the above.
    pub fds: &'a [(BorrowedFd<'a>, RawFd)],
    /// Whether it leads a session of its own and has every signal blocked instead, from its first
    /// instruction on: no group's or terminal's reaches it.
    pub shielded: bool,
}

/// Starts a program and returns its pid.
pub(crate) fn posix_spawn(exec: &Exec) -> io::Result<i32> {
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_open(0, "/dev/null", OFlag::O_RDONLY, Mode::empty())?;
    let highest = exec.fds.iter().map(|&(_, to)| to).max().unwrap_or(0);
    let is_target = |number| number == 0 || exec.fds.iter().any(|&(_, to)| to == number);
    // Owns the copies until the child has them.
    let mut copies = Vec::new();
    for &(source, target) in exec.fds {
        let mut number = source.as_raw_fd();
        // An earlier action would have overwritten it; and whether a copy onto itself clears
        // close-on-exec depends on the libc.
        if is_target(number) {
            let copy = fcntl(source, FcntlArg::F_DUPFD_CLOEXEC(highest + 1))?;
            // SAFETY: just made, and nobody else knows of it.
            copies.push(unsafe { OwnedFd::from_raw_fd(copy) });
            number = copy;
        }
        actions.add_dup2(number, target)?;
    }

    let mut attr = PosixSpawnAttr::init()?;
    let mut flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
    if exec.shielded {
        flags |= PosixSpawnFlags::from_bits_retain(libc::POSIX_SPAWN_SETSID.into());
    }
    attr.set_sigdefault(&SigSet::all())?;
    attr.set_sigmask(&if exec.shielded { SigSet::all() } else { SigSet::empty() })?;
    attr.set_flags(flags)?;
    let pid = nix::spawn::posix_spawn(exec.program, &actions, &attr, exec.args, exec.env)?;
    Ok(pid.as_raw())
}

/// Kills a child of this process and waits until it is gone. It has not been reaped yet, so the
/// number is its own.
pub(crate) fn kill_and_wait(pid: i32) {
    let pid = Pid::from_raw(pid);
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    while nix::sys::wait::waitpid(pid, None) == Err(Errno::EINTR) {}
}

/// A close-on-exec descriptor that stands for the process and is readable once it has exited.
///
/// # Errors
/// `ESRCH` when there is no such process, not even a zombie; `ENOSYS` or `EPERM` where a sandbox
/// keeps pidfds away, or the environment says to do without.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    if without(Mechanism::Pidfd) {
        return Err(Errno::ENOSYS.into());
    }
    // SAFETY: takes integers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: just opened, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal to exactly that process, were its pid taken by another in the meantime.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null `siginfo_t` asks for the one that `kill` would send.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    Errno::result(result)?;
    Ok(())
}

/// Sends a signal to every process of the group that this one leads or has led, were its number
/// long another's.
///
/// # Errors
/// On kernels before 6.9, too, which cannot.
pub(crate) fn pidfd_signal_group(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;
    let (fd, flags) = (pidfd.as_raw_fd(), PIDFD_SIGNAL_PROCESS_GROUP);
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null `siginfo_t` asks for the one that `kill` would send.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, flags) };
    Errno::result(result)?;
    Ok(())
}

/// Sends a signal to every process of a group.
///
/// # Errors
/// `InvalidInput` for group 1 and below, which `kill` understands as “everybody”, or as our own.
pub(crate) fn kill_group(pgid: i32, signal: i32) -> io::Result<()> {
    if pgid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: takes integers only. nix knows no real-time signals.
    Errno::result(unsafe { libc::kill(-pgid, signal) })?;
    Ok(())
}

/// Makes this process the leader of a new group.
pub(crate) fn set_own_group() -> io::Result<()> {
    let this = Pid::from_raw(0);
    Ok(nix::unistd::setpgid(this, this)?)
}

/// Makes this process a member of another's group.
///
/// # Errors
/// When that process is not there, or belongs to another session.
pub(crate) fn join_group_of(pid: i32) -> io::Result<()> {
    let group = nix::unistd::getpgid(Some(Pid::from_raw(pid)))?;
    Ok(nix::unistd::setpgid(Pid::from_raw(0), group)?)
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    /// `core` says whether its memory was dumped.
    Signal {
        signal: i32,
        core: bool,
    },
    /// Somebody else has taken the status, or nobody was to have it (`SIGCHLD` ignored).
    Unknown,
}

/// Whom [`wait_for`] waits for.
#[derive(Clone, Copy)]
pub(super) enum Whom<'a> {
    Pidfd(BorrowedFd<'a>),
    Pid(i32),
    /// Whichever child.
    Any,
}

/// `waitid`, which nix cannot express: death by a real-time signal would be lost.
pub(super) fn wait_for(whom: Whom<'_>, flags: i32) -> nix::Result<Option<(i32, Exit)>> {
    let (kind, id) = match whom {
        Whom::Pidfd(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd()),
        Whom::Pid(pid) => (libc::P_PID, pid),
        Whom::Any => (libc::P_ALL, 0),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is room for a `siginfo_t`.
    Errno::result(unsafe { libc::waitid(kind, id as libc::id_t, info.as_mut_ptr(), flags) })?;
    // SAFETY: zeroed before, and filled by `waitid` if there is something to tell.
    let info = unsafe { info.assume_init() };
    // SAFETY: these fields are what `waitid` fills; all zero if nobody has exited.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        code => Exit::Signal { signal: status, core: code == libc::CLD_DUMPED },
    };
    Ok((pid != 0).then_some((pid, exit)))
}

/// Reaps the process if it has exited, and says how; `None` while it runs.
///
/// Of a process that is not a child of this one the exit is seen, but not its status.
fn status_of(whom: Whom<'_>, has_exited: impl FnOnce() -> bool) -> io::Result<Option<Exit>> {
    match wait_for(whom, libc::WEXITED | libc::WNOHANG) {
        Err(Errno::EINTR) => Ok(None),
        Err(Errno::ECHILD) => Ok(has_exited().then_some(Exit::Unknown)),
        result => Ok(result?.map(|(_, exit)| exit)),
    }
}

/// Whether the process has exited; its status stays for who waits.
pub(crate) fn peek_exited(pidfd: BorrowedFd) -> bool {
    poll_readable(pidfd, Some(Duration::ZERO)).unwrap_or(false)
}

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub(crate) enum Fork {
    Parent { pid: i32 },
    Child,
}

/// Copies this process; in the copy, only the calling thread lives on.
///
/// The caller guarantees that the child never waits for another thread of its past: no lock that
/// one may have held at this instant, no inherited runtime, no drop of inherited owners. The
/// allocator and standard I/O of the libc are usable.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: that the child only does what is sound in a copy is the caller's guarantee.
    Ok(match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Fork::Parent { pid: child.as_raw() },
        ForkResult::Child => Fork::Child,
    })
}

/// Ends the process at once: no exit handlers, no flushing.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process without running anybody's code.
    unsafe { libc::_exit(code) }
}

/// Ends the process after Rust's and the libc's exit handlers, which flush standard I/O.
pub(crate) fn exit_with_handlers(code: i32) -> ! {
    std::process::exit(code)
}

/// Has `f` called when the process ends through [`exit_with_handlers`].
pub(crate) fn at_exit(f: extern "C" fn()) {
    // SAFETY: `f` has the type that is asked for and lives as long as the program. It can only
    // fail for want of memory, and then `f` is not called.
    unsafe { libc::atexit(f) };
}

/// Writes out what C code of this process has buffered for its streams.
pub(crate) fn flush_c_stdio() {
    // SAFETY: null stands for all open streams, each of which the libc locks.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// The ids of this process's threads.
pub(crate) fn threads() -> io::Result<Vec<i32>> {
    let mut tids = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        tids.extend(entry?.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    }
    Ok(tids)
}

/// How many threads this process has, at the price of one system call.
pub(crate) fn thread_count() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    // A directory has one link more for each that lies in it, and two to begin with.
    match std::fs::metadata("/proc/self/task")?.nlink().checked_sub(2) {
        None | Some(0) => Ok(threads()?.len() as u64),
        Some(count) => Ok(count),
    }
}

/// Names the calling thread, which for the main thread is what `ps` shows: at most 15 bytes, cut
/// at a character, and at a NUL.
pub(crate) fn set_title(name: &str) {
    let name = name.split('\0').next().unwrap_or_default();
    let end = (0..=15).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    let mut title = [0; 16];
    title[..end].copy_from_slice(&name.as_bytes()[..end]);
    if let Ok(title) = CStr::from_bytes_until_nul(&title) {
        // Cosmetic: nothing hangs on it.
        let _ = nix::sys::prctl::set_name(title);
    }
}

/// For tests, which know their children by bare pidfds.
#[cfg(test)]
pub(crate) fn try_wait(pidfd: BorrowedFd) -> io::Result<Option<Exit>> {
    status_of(Whom::Pidfd(pidfd), || peek_exited(pidfd))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::super::signal;
    use super::*;

    const WATCHDOG: Option<Duration> = Some(Duration::from_secs(20));

    /// Forks a child that runs `f` and exits with what it returns; `f` must not panic.
    fn in_child(f: impl FnOnce() -> i32) -> OwnedFd {
        match fork().unwrap() {
            Fork::Parent { pid } => pidfd_open(pid).unwrap(),
            Fork::Child => exit_now(f()),
        }
    }

    fn wait(pidfd: &OwnedFd) -> Exit {
        assert!(poll_readable(pidfd.as_fd(), WATCHDOG).unwrap());
        try_wait(pidfd.as_fd()).unwrap().unwrap()
    }

    fn shell(script: &str, fds: &[(BorrowedFd, RawFd)]) -> OwnedFd {
        let args = ["sh", "-c", script].map(|a| CString::new(a).unwrap());
        let exec = Exec {
            program: c"/bin/sh",
            args: &args,
            env: &[c"GREETING=hello".to_owned()],
            fds,
            shielded: false,
        };
        pidfd_open(posix_spawn(&exec).unwrap()).unwrap()
    }

    fn pipe() -> (File, OwnedFd) {
        let (read_end, write_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        (File::from(read_end), write_end)
    }

    fn read_all(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_program_gets_its_environment_and_descriptors_only() {
        let (output, write_end) = pipe();
        let script = "echo $GREETING $# >&2; readlink /proc/$$/fd/0 >&2; \
                      ls /proc/$$/fd | grep -vx 10 | tr '\\n' ' ' >&2; exit 7";
        let child = shell(script, &[(write_end.as_fd(), 2)]);
        drop(write_end);
        let text = read_all(output);
        assert!(text.starts_with("hello 0\n/dev/null\n0 1 2 "), "{text}");
        assert_eq!(wait(&child), Exit::Code(7));
    }

    #[test]
    fn descriptors_may_swap_or_keep_their_numbers() {
        // In a child of its own, where 100 and 101 are free to use.
        let (mut output, write_end) = pipe();
        let report = write_end.as_fd();
        let child = in_child(|| {
            let (Ok((zero, zero_in)), Ok((one, one_in))) = (nix::unistd::pipe(), nix::unistd::pipe()) else {
                return 1;
            };
            let written = nix::unistd::write(&zero_in, b"zero\n").is_ok()
                && nix::unistd::write(&one_in, b"one\n").is_ok();
            drop((zero_in, one_in));
            let place = |fd: &OwnedFd, target: RawFd| {
                let copy = fd.try_clone()?;
                super::super::fd::dup2_onto(copy, target)?;
                super::super::fd::from_raw_checked(target)
            };
            let (Ok(zero), Ok(one), Ok(kept)) = (
                place(&zero, 100),
                place(&one, 101),
                report.try_clone_to_owned().and_then(|fd| place(&fd, 102)),
            ) else {
                return 2;
            };
            let fds = [(zero.as_fd(), 101), (one.as_fd(), 100), (kept.as_fd(), 102)];
            let script = "(cat /proc/self/fd/100; cat /proc/self/fd/101) > /proc/self/fd/102";
            let shell = shell(script, &fds);
            let exited = wait(&shell) == Exit::Code(0);
            i32::from(!(written && exited))
        });
        drop(write_end);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(wait(&child), Exit::Code(0));
        assert_eq!(text, "one\nzero\n");
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let exec = Exec { program: c"/nonexistent", args: &[], env: &[], fds: &[], shielded: false };
        let error = posix_spawn(&exec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn signals_of_a_program_are_at_their_defaults() {
        let (output, write_end) = pipe();
        // Ignored and blocked here, which a plain exec would hand down.
        let child = in_child(|| {
            signal::reset_signals();
            signal::default_sigpipe_ignored();
            let blocked = SigSet::all().thread_block().is_ok();
            let script = "exec grep -E '^Sig(Blk|Ign)' /proc/self/status >&2";
            let shell = shell(script, &[(write_end.as_fd(), 2)]);
            i32::from(!(blocked && wait(&shell) == Exit::Code(0)))
        });
        drop(write_end);
        let text = read_all(output);
        let set = |name: &str| {
            let hex = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(hex.trim(), 16).unwrap()
        };
        assert_eq!(set("SigBlk:"), 0);
        // glibc keeps 32 and 33 to itself.
        assert_eq!(set("SigIgn:") & !(0b11 << 31), 0);
        assert_eq!(wait(&child), Exit::Code(0));
    }

    #[test]
    fn a_group_dies_whole() {
        let (output, write_end) = pipe();
        let script = "sleep 1000 & echo ready >&2; wait";
        let pid_fd = in_child(|| {
            if set_own_group().is_err() {
                return 1;
            }
            // What the shell and its `sleep` hold of the pipe is all that anybody holds.
            let shell = shell(script, &[(write_end.as_fd(), 2)]);
            super::super::fd::close_from(3);
            std::mem::forget(shell);
            loop {
                nix::unistd::pause();
            }
        });
        drop(write_end);
        let mut output = output;
        output.read_exact(&mut [0; 6]).unwrap();
        let pid = pid_of(&pid_fd);
        kill_group(pid, libc::SIGKILL).unwrap();
        // The end comes when `sleep`, which holds the pipe too, is gone.
        assert_eq!(read_all(output), "");
        let killed = Exit::Signal { signal: libc::SIGKILL, core: false };
        assert_eq!(wait(&pid_fd), killed);
        for pgid in [1, 0, -1, i32::MIN] {
            let error = kill_group(pgid, 0).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    fn pid_of(pidfd: &OwnedFd) -> i32 {
        let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
        let info = std::fs::read_to_string(path).unwrap();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        pid.unwrap().trim().parse().unwrap()
    }

    #[test]
    fn exits_are_seen_before_and_by_waiting() {
        let (mut gate, write_end) = pipe();
        let child = in_child(|| {
            // Blocks until the parent has closed its end; its own copy has to go first.
            // SAFETY: the parent's owner of this number does not exist in this process.
            unsafe { libc::close(write_end.as_raw_fd()) };
            let _ = gate.read(&mut [0]);
            42
        });
        assert!(!peek_exited(child.as_fd()));
        assert_eq!(try_wait(child.as_fd()).unwrap(), None);
        drop(write_end);
        assert!(poll_readable(child.as_fd(), WATCHDOG).unwrap());
        assert!(peek_exited(child.as_fd()));
        assert_eq!(try_wait(child.as_fd()).unwrap(), Some(Exit::Code(42)));
        assert_eq!(try_wait(child.as_fd()).unwrap(), Some(Exit::Unknown));
    }

    #[test]
    fn real_time_signals_are_told() {
        let signal = libc::SIGRTMIN() + 3;
        let child = in_child(|| {
            loop {
                nix::unistd::pause();
            }
        });
        pidfd_signal(child.as_fd(), signal).unwrap();
        let core = false;
        assert_eq!(wait(&child), Exit::Signal { signal, core });
        assert!(pidfd_signal(child.as_fd(), 0).is_err());
    }

    #[test]
    fn a_process_that_is_no_child_has_no_status() {
        let parent = pidfd_open(nix::unistd::getppid().as_raw()).unwrap();
        assert_eq!(try_wait(parent.as_fd()).unwrap(), None);
    }

    #[test]
    fn handlers_run_at_exit() {
        extern "C" fn handler() {
            exit_now(9);
        }
        let child = in_child(|| {
            at_exit(handler);
            flush_c_stdio();
            exit_with_handlers(0)
        });
        assert_eq!(wait(&child), Exit::Code(9));
    }

    #[test]
    fn a_forked_child_has_one_thread_and_may_lead_a_group() {
        assert!(threads().unwrap().contains(&gettid()));
        let parent = getpid();
        let child = in_child(|| {
            let alone = threads().is_ok_and(|tids| tids == [getpid()]) && gettid() == getpid();
            let led = set_own_group().is_ok() && nix::unistd::getpgrp().as_raw() == getpid();
            i32::from(!(alone && led && nix::unistd::getppid().as_raw() == parent))
        });
        assert_eq!(wait(&child), Exit::Code(0));
    }

    #[test]
    fn titles_are_cut_at_a_character() {
        std::thread::spawn(|| {
            let title = || nix::sys::prctl::get_name().unwrap().into_string().unwrap();
            set_title("worker");
            assert_eq!(title(), "worker");
            set_title("fourteen bytesé");
            assert_eq!(title(), "fourteen bytes");
            set_title("a\0b");
            assert_eq!(title(), "a");
        })
        .join()
        .unwrap();
    }
}
