//! A child in its parent's hands: its exit is seen, and a signal for it reaches nobody else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::super::fd::{eventfd, ring};
use super::super::threads;
use super::{Exit, Whom, peek_exited, pidfd_open, pidfd_signal, status_of, wait_for};

/// A child of this process.
///
/// Where a sandbox refuses pidfds, a thread per child waits for its exit and rings a bell in their
/// place: a thread for all would have to wait for any child, and so to wake up again and again for
/// foreign ones that nobody reaps. What is done by number is then sound as long as nobody else
/// reaps this process's children, and the owner reaps only what [`has_exited`](Held::has_exited).
#[derive(Debug)]
pub(crate) struct Held {
    pid: i32,
    /// Readable from its exit on: a pidfd, or a bell that is never drained.
    exit: OwnedFd,
    by_number: bool,
}

impl Held {
    /// Takes hold of a child that has not been reaped.
    ///
    /// # Errors
    /// `ESRCH` if it has, by somebody else.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        match pidfd_open(pid) {
            Ok(pidfd) => Ok(Self::by_pidfd(pid, pidfd)),
            Err(error) if is_refusal(&error) => Self::by_number(pid),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn by_pidfd(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, exit: pidfd, by_number: false }
    }

    fn by_number(pid: i32) -> io::Result<Self> {
        if !is_child(pid) {
            return Err(Errno::ESRCH.into());
        }
        let exit = eventfd()?;
        let bell = exit.try_clone()?;
        threads::spawn("mp-watch", move || {
            // Also if it is no child any more: somebody has reaped it then.
            while wait_for(Whom::Pid(pid), libc::WEXITED | libc::WNOWAIT) == Err(Errno::EINTR) {}
            ring(bell.as_fd());
        })?;
        Ok(Self { pid, exit, by_number: true })
    }

    /// What is readable once it has exited, and stays so.
    pub(crate) fn exit(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }

    pub(crate) fn has_exited(&self) -> bool {
        peek_exited(self.exit())
    }

    /// Reaps it if it has exited, and says how; `None` while it runs.
    pub(crate) fn try_wait(&self) -> io::Result<Option<Exit>> {
        let whom = if self.by_number { Whom::Pid(self.pid) } else { Whom::Pidfd(self.exit()) };
        status_of(whom, || self.has_exited())
    }

    /// Sends it a signal. It must not have been reaped by its owner.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        if !self.by_number {
            match pidfd_signal(self.exit(), signal) {
                // By a sandbox that lets the fork server have pidfds all the same.
                Err(error) if is_refusal(&error) => {}
                result => return result,
            }
        }
        if !is_child(self.pid) {
            return Err(Errno::ESRCH.into());
        }
        // SAFETY: takes integers only. nix knows no real-time signals.
        Errno::result(unsafe { libc::kill(self.pid, signal) })?;
        Ok(())
    }
}

/// Whether the kernel, or a sandbox before it, has refused the call itself.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
}

/// Whether there is such a child, or what is left of it until it is reaped.
fn is_child(pid: i32) -> bool {
    let looked = wait_for(Whom::Pid(pid), libc::WEXITED | libc::WNOWAIT | libc::WNOHANG);
    !matches!(looked, Err(Errno::ECHILD))
}

#[cfg(test)]
mod tests {
    use super::super::super::fd::poll_readable;
    use super::super::{Fork, exit_now, fork};
    use super::*;

    fn child(f: impl FnOnce() -> i32) -> i32 {
        match fork().unwrap() {
            Fork::Parent { pid } => pid,
            Fork::Child => exit_now(f()),
        }
    }

    fn sleeper() -> i32 {
        child(|| {
            loop {
                nix::unistd::pause();
            }
        })
    }

    fn killed_and_reaped(held: &Held) {
        assert!(!held.has_exited());
        assert_eq!(held.try_wait().unwrap(), None);
        held.signal(libc::SIGKILL).unwrap();
        let watchdog = Some(std::time::Duration::from_secs(20));
        assert!(poll_readable(held.exit(), watchdog).unwrap());
        // A zombie takes signals.
        held.signal(libc::SIGKILL).unwrap();
        let killed = Exit::Signal { signal: libc::SIGKILL, core: false };
        assert_eq!(held.try_wait().unwrap(), Some(killed));
        assert_eq!(held.try_wait().unwrap(), Some(Exit::Unknown));
        assert_eq!(held.signal(libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_child_is_held_with_and_without_a_pidfd() {
        let pid = sleeper();
        killed_and_reaped(&Held::by_pidfd(pid, pidfd_open(pid).unwrap()));
        killed_and_reaped(&Held::by_number(sleeper()).unwrap());
    }

    #[test]
    fn who_is_no_child_is_not_held_by_its_number() {
        let error = Held::by_number(super::super::getpid()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn an_exit_is_seen_also_if_somebody_else_reaps() {
        let pid = sleeper();
        let held = Held::by_number(pid).unwrap();
        super::super::kill_and_wait(pid);
        let watchdog = Some(std::time::Duration::from_secs(20));
        assert!(poll_readable(held.exit(), watchdog).unwrap());
        assert_eq!(held.try_wait().unwrap(), Some(Exit::Unknown));
    }
}
