//! Clones of this process that are its siblings: children of its own parent.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

use libc::{c_int, c_long, c_void};
use nix::errno::Errno;

use super::thread_count;
use crate::sys::{Mechanism, without};

/// Reads where the kernel clears this thread's id when it ends, which is where glibc keeps it.
const PR_GET_TID_ADDRESS: c_int = 40;

/// Which side of a [`clone_sibling`] this is.
#[derive(Debug)]
pub(crate) enum Sibling {
    /// Only this process's parent can reap the sibling. The pidfd is close-on-exec, and missing
    /// if the environment says to do without.
    Parent {
        pid: i32,
        pidfd: Option<OwnedFd>,
    },
    Child,
}

/// Copies this single-threaded process; the copy is a child of this process's parent, which
/// therefore learns its exit status even when this process is long gone.
///
/// Handlers that libraries have registered for `fork` are not called.
///
/// # Errors
/// `Unsupported` with more than one thread, which the copy would lack while their locks stay
/// taken, and with a libc other than glibc, which would keep the wrong thread id in the copy.
pub(crate) fn clone_sibling() -> io::Result<Sibling> {
    if !cfg!(target_env = "gnu") {
        return Err(unsupported("sibling processes need glibc"));
    }
    if thread_count()? > 1 {
        return Err(unsupported("only a single-threaded process can be cloned"));
    }
    let mut pidfd: RawFd = -1;
    let robust = RobustList::get();
    let pid = clone(&mut pidfd, tid_address())?;
    if pid == 0 {
        robust.set();
        return Ok(Sibling::Child);
    }
    // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Sibling::Parent { pid, pidfd })
}

fn unsupported(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// The libc's record of this thread's id, which the kernel has to correct in the copy; null if the
/// kernel does not say where it is, and then `abort` in the copy ends by an illegal instruction.
fn tid_address() -> *mut c_int {
    let mut address: *mut c_int = null_mut();
    // SAFETY: this option stores one pointer through its argument.
    let result = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut address) };
    if result == 0 { address } else { null_mut() }
}

/// The bare call: 0 in the copy, which goes on with a copy of this stack.
fn clone(pidfd: &mut RawFd, tid: *mut c_int) -> io::Result<i32> {
    let mut flags = libc::CLONE_PARENT;
    if !without(Mechanism::Pidfd) {
        flags |= libc::CLONE_PIDFD;
    }
    if !tid.is_null() {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    // SAFETY: all-zero is a valid `clone_args`: no flags, no stack, nothing to store.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64;
    args.pidfd = &raw mut *pidfd as u64;
    args.child_tid = tid as u64;
    // The signal at the end is this process's own, and has to be zero here.

    // SAFETY: without CLONE_VM both sides have memory of their own, as after a fork, and there
    // was but one thread. `pidfd` is room for an int; `tid` is where the libc keeps this thread's
    // id, and is written in the copy alone.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    let result = match Errno::result(result) {
        // Unknown to an old kernel, or to a sandbox.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            // SAFETY: as above.
            Errno::result(unsafe { clone_by_position(flags, pidfd, tid) })
        }
        result => result,
    };
    Ok(result? as i32)
}

/// The older call, whose last two arguments change places between architectures.
///
/// # Safety
/// As of the system call: the pointers are valid for what `flags` has stored through them.
unsafe fn clone_by_position(flags: c_int, pidfd: *mut RawFd, tid: *mut c_int) -> c_long {
    let (stack, tls) = (null_mut::<c_void>(), null_mut::<c_void>());
    let flags = flags as c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: handed on to the caller.
    return unsafe { libc::syscall(libc::SYS_clone, flags, stack, pidfd, tid, tls) };
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: handed on to the caller.
    return unsafe { libc::syscall(libc::SYS_clone, flags, stack, pidfd, tls, tid) };
}

/// The head of this thread's list of robust mutexes, which the kernel forgets in a copy.
struct RobustList {
    head: *mut c_void,
    len: usize,
}

impl RobustList {
    fn get() -> Self {
        let (mut head, mut len) = (null_mut(), 0usize);
        // SAFETY: stores one pointer and one size; on failure both stay as they are.
        unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
        RobustList { head, len }
    }

    fn set(&self) {
        if !self.head.is_null() {
            // SAFETY: the head that the libc itself registered, at the same address in the copy.
            unsafe { libc::syscall(libc::SYS_set_robust_list, self.head, self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::super::super::fd::poll_readable;
    use super::super::{Exit, Fork, exit_now, fork, getpid, gettid, pidfd_open, try_wait};
    use super::*;

    fn wait(pidfd: &OwnedFd) -> Exit {
        let watchdog = Some(Duration::from_secs(20));
        assert!(poll_readable(pidfd.as_fd(), watchdog).unwrap());
        try_wait(pidfd.as_fd()).unwrap().unwrap()
    }

    #[test]
    fn only_a_single_thread_may_clone() {
        std::thread::scope(|s| {
            s.spawn(|| {
                let error = clone_sibling().unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            });
        });
    }

    /// Forks a server that makes a sibling, tells its pid and exits; returns pidfds of both.
    fn served(sibling: impl FnOnce() -> i32) -> (OwnedFd, OwnedFd) {
        let (read_end, write_end) = nix::unistd::pipe().unwrap();
        let server = match fork().unwrap() {
            Fork::Parent { pid } => pidfd_open(pid).unwrap(),
            Fork::Child => exit_now(match clone_sibling() {
                Ok(Sibling::Parent { pid, pidfd }) => {
                    let told = nix::unistd::write(&write_end, &pid.to_ne_bytes()) == Ok(4);
                    let not_ours = pidfd.is_none_or(|pidfd| {
                        try_wait(pidfd.as_fd()).is_ok_and(|e| !matches!(e, Some(Exit::Code(_))))
                    });
                    i32::from(!(told && not_ours))
                }
                Ok(Sibling::Child) => sibling(),
                Err(_) => 2,
            }),
        };
        drop(write_end);
        let mut pid = [0; 4];
        File::from(read_end).read_exact(&mut pid).unwrap();
        (server, pidfd_open(i32::from_ne_bytes(pid)).unwrap())
    }

    #[test]
    fn the_parent_reaps_the_sibling_of_a_dead_server() {
        let this = getpid();
        let (server, sibling) = served(|| {
            let ours = nix::unistd::getppid().as_raw() == this && gettid() == getpid();
            i32::from(!ours) + 50
        });
        assert_eq!(wait(&server), Exit::Code(0));
        assert_eq!(wait(&sibling), Exit::Code(50));
    }

    #[test]
    fn a_sibling_can_abort_and_start_threads() {
        let (server, sibling) = served(|| {
            let joined = std::thread::Builder::new().spawn(|| 5).map(|t| t.join());
            if !matches!(joined, Ok(Ok(5))) {
                return 1;
            }
            // The libc signals the thread whose id it remembers.
            // SAFETY: takes an integer only.
            unsafe { libc::raise(libc::SIGTERM) };
            2
        });
        assert_eq!(wait(&server), Exit::Code(0));
        let (signal, core) = (libc::SIGTERM, false);
        assert_eq!(wait(&sibling), Exit::Signal { signal, core });
    }

    #[test]
    fn the_older_call_does_the_same() {
        let mut pidfd = -1;
        let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: the copy ends at once by _exit; `pidfd` is room for an int.
        let pid = unsafe { clone_by_position(flags, &mut pidfd, null_mut()) };
        if pid == 0 {
            exit_now(3);
        }
        assert!(pid > 0);
        // SAFETY: just opened for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        assert_eq!(wait(&pidfd), Exit::Code(3));
    }
}
