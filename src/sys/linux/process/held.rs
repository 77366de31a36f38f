//! A child in its parent's hands: its exit is seen, and a signal for it reaches nobody else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use nix::errno::Errno;

use super::super::fd::{eventfd, ring};
use super::super::per_process::PerProcess;
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
    /// Takes hold of a child.
    ///
    /// # Errors
    /// `ESRCH` if somebody else has reaped it, where there are pidfds. Where there are none it
    /// counts as one that has exited.
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
        let exit = eventfd()?;
        let watch = Watch { pid, bell: exit.try_clone()? };
        // A statement of its own: the lock is free again when a thread is started.
        let idle = idle().pop();
        match idle {
            // It can only fail if the thread is gone, and it never ends.
            Some(thread) => thread.send(watch).map_err(io::Error::other)?,
            None => watch.on_new_thread()?,
        }
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

/// What a thread does that stands in for a pidfd.
struct Watch {
    pid: i32,
    bell: OwnedFd,
}

/// The threads that have nothing to watch. They are kept for the next child, as one that ends may
/// be caught by a fork while it holds a lock of std's; so there are as many as there ever were
/// children at a time.
static IDLE: PerProcess<Mutex<Vec<mpsc::Sender<Watch>>>> = PerProcess::new(Mutex::default);

fn idle() -> MutexGuard<'static, Vec<mpsc::Sender<Watch>>> {
    IDLE.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    fn on_new_thread(self) -> io::Result<()> {
        let (sender, next) = mpsc::channel();
        threads::spawn("mp-watch", move || {
            for watch in std::iter::once(self).chain(next) {
                watch.until_exit();
                idle().push(sender.clone());
            }
        })?;
        Ok(())
    }

    /// Waits, and rings, also if it is no child any more: somebody has reaped it then.
    fn until_exit(self) {
        while wait_for(Whom::Pid(self.pid), libc::WEXITED | libc::WNOWAIT) == Err(Errno::EINTR) {}
        ring(self.bell.as_fd());
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
    fn who_is_no_child_counts_as_gone_and_gets_no_signal() {
        let held = Held::by_number(super::super::getpid()).unwrap();
        assert!(poll_readable(held.exit(), Some(std::time::Duration::from_secs(20))).unwrap());
        assert_eq!(held.try_wait().unwrap(), Some(Exit::Unknown));
        assert_eq!(held.signal(libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
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
