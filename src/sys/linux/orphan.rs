//! Processes that do not outlive their parent, however it ends.
//!
//! A parent holds the only write end of a pipe, its lifeline. Each child has the kernel send it
//! SIGKILL when that end is closed, which the kernel itself does when the parent dies. Nothing in
//! the child has to run for it: it may be stopped, spin, or block every signal.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::c_int;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{getpgrp, getpid, pipe2};

use super::fd::poll_readable;

/// Which signal tells of readiness, instead of SIGIO. The same number on all architectures.
const F_SETSIG: c_int = 10;

/// The two ends of a lifeline, both close-on-exec: the children's, for reading, and the one that
/// the parent alone may ever hold, for writing. Nothing is ever written.
pub(crate) fn lifeline() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// Has the kernel kill this process, or its whole group, as soon as the lifeline's other end is
/// closed; and that is at once if it is closed already.
///
/// It lasts as long as the descriptor that is returned, and so no longer than this process: what
/// is left of a group whose member has died is for its parent to kill.
///
/// # Errors
/// Without `/proc`.
pub(crate) fn die_with(lifeline: BorrowedFd, whole_group: bool) -> io::Result<OwnedFd> {
    // The owner and the signal belong to the open file description, so each child needs its own.
    let path = format!("/proc/self/fd/{}", lifeline.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let own = open(path.as_str(), flags, Mode::empty())?;
    // A negative number stands for a group.
    let owner = if whole_group { -getpgrp().as_raw() } else { getpid().as_raw() };
    set(own.as_fd(), libc::F_SETOWN, owner)?;
    choose_kill(own.as_fd())?;
    fcntl(&own, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_ASYNC))?;
    // Of a hang-up before this moment no signal tells.
    if poll_readable(own.as_fd(), Some(std::time::Duration::ZERO))? {
        if whole_group {
            nix::sys::signal::killpg(getpgrp(), Signal::SIGKILL)?;
        }
        nix::sys::signal::kill(getpid(), Signal::SIGKILL)?;
    }
    Ok(own)
}

/// Makes SIGKILL the signal that tells of readiness, once that is asked for.
pub(crate) fn choose_kill(fd: BorrowedFd) -> io::Result<()> {
    set(fd, F_SETSIG, libc::SIGKILL)
}

fn set(fd: BorrowedFd, what: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: both commands, which nix lacks, take one integer.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), what, value) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::File;
    use std::io::Read;
    use std::time::Duration;

    use nix::sys::signal::SigSet;

    use super::super::fd::replace_all_except;
    use super::super::process::{
        Exec, Exit, Fork, exit_now, fork, getpid, pidfd_open, pidfd_signal, posix_spawn, set_own_group,
        try_wait,
    };
    use super::*;

    const WATCHDOG: Option<Duration> = Some(Duration::from_secs(20));

    fn ended(pidfd: &OwnedFd) -> bool {
        poll_readable(pidfd.as_fd(), WATCHDOG).unwrap()
    }

    fn tell(report: &OwnedFd, pid: i32) {
        let _ = nix::unistd::write(report, &pid.to_ne_bytes());
    }

    fn never_ends() -> ! {
        loop {
            nix::unistd::pause();
        }
    }

    /// Starts a parent with one child, which arms itself and then does as `child` says; `child`
    /// reports as many pids as `pids`. Kills the parent, and expects the end of all of them.
    fn dies_with_its_parent(group: bool, pids: usize, child: impl FnOnce(&OwnedFd)) {
        let (report, report_in) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let parent = match fork().unwrap() {
            Fork::Parent { pid } => pidfd_open(pid).unwrap(),
            Fork::Child => {
                // Not to hold what other tests wait for the end of.
                let kept = replace_all_except(&[report_in.as_raw_fd()]);
                let Ok((read_end, write_end)) = kept.and_then(|()| lifeline()) else {
                    exit_now(1);
                };
                if let Ok(Fork::Parent { .. }) = fork() {
                    never_ends();
                }
                drop(write_end);
                let armed = set_own_group().and_then(|()| die_with(read_end.as_fd(), group));
                if armed.is_ok() {
                    child(&report_in);
                    never_ends();
                }
                exit_now(2);
            }
        };
        drop(report_in);
        let mut report = File::from(report);
        let children: Vec<OwnedFd> = (0..pids)
            .map(|_| {
                let mut pid = [0; 4];
                report.read_exact(&mut pid).unwrap();
                pidfd_open(i32::from_ne_bytes(pid)).unwrap()
            })
            .collect();
        for child in &children {
            assert!(!poll_readable(child.as_fd(), Some(Duration::ZERO)).unwrap());
        }
        pidfd_signal(parent.as_fd(), libc::SIGKILL).unwrap();
        assert!(ended(&parent));
        try_wait(parent.as_fd()).unwrap();
        for child in &children {
            assert!(ended(child));
        }
    }

    #[test]
    fn a_waiting_child_dies() {
        dies_with_its_parent(false, 1, |report| tell(report, getpid()));
    }

    #[test]
    fn a_spinning_child_dies() {
        dies_with_its_parent(false, 1, |report| {
            tell(report, getpid());
            loop {
                std::hint::spin_loop();
            }
        });
    }

    #[test]
    fn a_child_that_blocks_signals_dies() {
        dies_with_its_parent(false, 1, |report| {
            let _ = SigSet::all().thread_block();
            tell(report, getpid());
        });
    }

    #[test]
    fn a_stopped_child_dies() {
        dies_with_its_parent(false, 1, |report| {
            // A helper tells once the stop is complete.
            let stopped = getpid();
            if let Ok(Fork::Child) = fork() {
                let stat = format!("/proc/{stopped}/stat");
                while std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") T ")) {
                    std::thread::yield_now();
                }
                tell(report, stopped);
                exit_now(0);
            }
            let _ = nix::sys::signal::raise(Signal::SIGSTOP);
        });
    }

    #[test]
    fn a_group_dies_with_the_programs_in_it() {
        dies_with_its_parent(true, 2, |report| {
            let args = ["sleep", "1000"].map(|a| CString::new(a).unwrap());
            let program = posix_spawn(&Exec {
                program: c"/bin/sleep",
                args: &args,
                env: &[],
                fds: &[],
                shielded: false,
            });
            tell(report, getpid());
            tell(report, program.unwrap_or(0));
        });
    }

    #[test]
    fn who_arms_too_late_dies_at_once() {
        for group in [false, true] {
            let child = match fork().unwrap() {
                Fork::Parent { pid } => pidfd_open(pid).unwrap(),
                Fork::Child => {
                    // Made here, where no other test's child can hold the other end.
                    let hung_up = set_own_group().and_then(|()| lifeline()).map(|ends| ends.0);
                    let _armed = hung_up.and_then(|end| die_with(end.as_fd(), group));
                    exit_now(1)
                }
            };
            assert!(ended(&child));
            let (signal, core) = (libc::SIGKILL, false);
            let exit = try_wait(child.as_fd()).unwrap();
            assert_eq!(exit, Some(Exit::Signal { signal, core }));
        }
    }
}
