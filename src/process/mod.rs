//! Processes: made, watched, waited for, ended.
//!
//! ```no_run
//! use tokio_multiprocess as mp;
//!
//! #[tokio::main]
//! async fn main() -> mp::Result<()> {
//!     let child = mp::Process::builder(|name: String| println!("hello {name}"), ("bob".to_owned(),))
//!         .name("greeter")
//!         .start()
//!         .await?;
//!     assert!(child.join().await?.success());
//!     Ok(())
//! }
//! ```
//!
//! `main` never runs in the child, so what `main` sets up (tracing, configuration) is not there:
//! pass it as an argument. A child has stdin at `/dev/null`, stdout and stderr of its parent, and
//! of other descriptors only those that its arguments carry.

mod builder;
mod child;
mod current;
mod exit;
mod exit_status;
mod finalize;
mod hand;
mod sentinel;
mod start;
mod table;
mod task;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use self::builder::{ProcessBuilder, Run};
use self::child::Child;
pub use self::current::{
    CurrentProcess, ParentProcess, cpu_count, current_process, parent_process, usable_cpu_count,
};
pub(crate) use self::current::{Identity, Phase, is_up, set_phase};
pub use self::exit::{ExitReason, exit};
pub(crate) use self::exit::{Leaving, flush, leave, set_leaving};
pub use self::exit_status::ExitStatus;
pub use self::finalize::Finalize;
pub(crate) use self::hand::{GROUPER, LOOKER};
pub use self::sentinel::Sentinel;
pub use self::table::active_children;
pub use self::task::{JoinHandle, spawn};
pub(crate) use self::task::{catch, panic_message, remote_task};
use crate::authkey::AuthKey;
use crate::connection::wait::Source;
use crate::connection::wait::sealed::Sealed;
use crate::error::{Error, Result};
use crate::function::Target;
use crate::reactor;
use crate::reduction::Message;
use crate::sys::{self, BorrowedFd};

/// How often a guardian is set going that may be stopped, as long as its end is all that is waited for.
const LOOK: Duration = Duration::from_secs(1);

/// After so many looks a guardian is killed: by itself it gives up long before, unless somebody holds
/// it, as a debugger does.
pub(crate) const HELD_UP: u32 = 10;

/// What is said of a child when it is made.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) daemon: bool,
    pub(crate) authkey: AuthKey,
    /// Who started it.
    pub(crate) parent: i32,
    /// Whether it belongs to this crate (a fork server, a pool's worker) and not to the program.
    pub(crate) internal: bool,
}

/// A child process.
///
/// Clones are handles of the same process. Dropping the last one detaches it: the process goes on,
/// is reaped when it ends, and, unless it is a daemon, is still waited for when this process ends.
/// A daemon is killed when its parent ends, however that ends.
#[derive(Clone)]
pub struct Process {
    child: Arc<Child>,
    about: Arc<About>,
    /// Shared by all handles, so that the last one's end is noticed.
    last: Arc<LastHandle>,
    closed: Arc<AtomicBool>,
}

/// Hands a child that nobody holds any more to the reaper.
#[derive(Debug)]
pub(crate) struct LastHandle(Arc<Child>);

impl Drop for LastHandle {
    fn drop(&mut self) {
        if self.0.is_ours() {
            table::adopt(self.0.clone());
        }
    }
}

impl Process {
    /// A process in the making: `target` with its arguments as one tuple. Nothing runs before
    /// [`start`](ProcessBuilder::start).
    pub fn builder<F, A, M>(target: F, args: A) -> ProcessBuilder
    where
        F: Target<A, M>,
        A: Message,
        M: 'static,
    {
        ProcessBuilder::new(target, args)
    }

    /// A process without a target: it starts and ends with exit code 0.
    pub fn without_target() -> ProcessBuilder {
        ProcessBuilder::without_target()
    }

    /// A process that runs a value: Python's subclass of `Process` with its own `run`.
    #[doc(alias = "run")]
    pub fn from_run<T: Run>(value: T) -> ProcessBuilder {
        ProcessBuilder::new(builder::run_value::<T>, (value,))
    }

    /// The first handle of a child that was just born.
    fn new(child: Arc<Child>, about: Arc<About>) -> Self {
        let last = Arc::new(LastHandle(child.clone()));
        let process = Self { child, about, last, closed: Arc::default() };
        table::enter(&process);
        process
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Its name: as given, or `Process-` and the path of child numbers that leads to it.
    pub fn name(&self) -> &str {
        &self.about.name
    }

    /// Whether it ends with its parent.
    pub fn daemon(&self) -> bool {
        self.about.daemon
    }

    /// The secret that it started with.
    pub fn authkey(&self) -> &AuthKey {
        &self.about.authkey
    }

    /// Whether it has not ended. True for one that is stopped.
    pub fn is_alive(&self) -> bool {
        self.exit_code().is_none()
    }

    /// How it ended, as Python says it: its exit code, `-N` for signal N, 255 where nobody knows
    /// (see [`ExitStatus::is_unknown`]); `None` while it runs, and after [`close`](Self::close).
    #[doc(alias = "exitcode")]
    pub fn exit_code(&self) -> Option<i32> {
        self.exit_status().map(|status| status.exit_code())
    }

    /// How it ended; `None` while it runs, and after [`close`](Self::close).
    pub fn exit_status(&self) -> Option<ExitStatus> {
        if self.closed.load(Ordering::SeqCst) {
            return None;
        }
        let status = self.child.status();
        if status.is_some() {
            table::leave(&self.child);
        }
        status
    }

    /// Waits for its end. Any number of tasks may, on any runtimes.
    ///
    /// # Errors
    /// In another process than the one that started it, and after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Nothing is consumed: dropping the future and calling again is the same as waiting on.
    pub async fn join(&self) -> Result<ExitStatus> {
        loop {
            self.check()?;
            if let Some(status) = self.exit_status() {
                return Ok(status);
            }
            reactor::readable(self.child.exit()).await?;
        }
    }

    /// Waits for its end for as long as `timeout` by the kernel's clock; `None` if it runs then.
    /// Zero asks without waiting.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    ///
    /// # Cancel safety
    /// As [`join`](Self::join).
    pub async fn join_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        self.check()?;
        reactor::readable_within(self.child.exit(), timeout).await?;
        Ok(self.exit_status())
    }

    /// Sends SIGTERM. No error if it has ended.
    ///
    /// # Errors
    /// After [`close`](Self::close), or if the kernel refuses.
    pub fn terminate(&self) -> Result<()> {
        self.signal(sys::signal::TERM)
    }

    /// Sends SIGKILL. No error if it has ended.
    ///
    /// # Errors
    /// As [`terminate`](Self::terminate).
    pub fn kill(&self) -> Result<()> {
        self.signal(sys::signal::KILL)
    }

    /// Sends SIGINT. No error if it has ended.
    ///
    /// # Errors
    /// As [`terminate`](Self::terminate).
    pub fn interrupt(&self) -> Result<()> {
        self.signal(sys::signal::INT)
    }

    fn signal(&self, signal: i32) -> Result<()> {
        self.check()?;
        if self.is_alive() {
            self.child.signal(signal)?;
        }
        Ok(())
    }

    /// Gives up what this handle and its clones hold. Later calls are errors; a second `close` is
    /// none.
    ///
    /// # Errors
    /// [`Error::StillRunning`] while it runs.
    pub fn close(&self) -> Result<()> {
        if !self.closed.load(Ordering::SeqCst) {
            if self.is_alive() {
                return Err(Error::StillRunning(self.pid()));
            }
            self.closed.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// What is ready once it has ended; usable after this handle is gone.
    ///
    /// # Errors
    /// After [`close`](Self::close), and when no descriptor is left.
    pub fn sentinel(&self) -> Result<Sentinel> {
        Ok(Sentinel::new(self.end()?.try_clone_to_owned()?))
    }

    /// What is readable once it has ended.
    ///
    /// # Errors
    /// In another process than the one that started it, and after [`close`](Self::close).
    pub(crate) fn end(&self) -> Result<BorrowedFd<'_>> {
        self.check()?;
        Ok(self.child.exit())
    }

    fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            Err(Error::Closed("the process handle"))
        } else if !self.child.is_ours() {
            Err(Error::NotChild)
        } else {
            Ok(())
        }
    }

    /// Waits for its end without reaping it, so that its group can still be killed safely; behind
    /// a guardian, for the end of all that it has started.
    pub(crate) async fn exited(&self) -> Result<()> {
        if self.child.is_guardian() {
            // A worker that cannot be killed outlives its guardian. Without pidfds its end is not seen.
            let ward = self.child.ward();
            if let Some(ward) = ward {
                tokio::select! {
                    ended = reactor::readable(ward) => ended?,
                    ended = reactor::readable(self.child.exit()) => ended?,
                }
            }
            let _ = self.child.signal(sys::signal::CONT);
            let mut looks = 0;
            while !reactor::readable_within(self.child.exit(), LOOK).await? {
                looks += u32::from(ward.is_some());
                let held_up = looks >= HELD_UP;
                let _ = self.child.signal(if held_up { sys::signal::KILL } else { sys::signal::CONT });
            }
        }
        Ok(reactor::readable(self.child.exit()).await?)
    }

    /// SIGKILL for it and what it has started. Must come before it is reaped.
    pub(crate) fn kill_tree(&self) {
        self.child.kill_tree();
    }

    /// Its status, if it has ended; the first call after that reaps it.
    pub(crate) fn reap(&self) -> Option<ExitStatus> {
        self.exit_status()
    }
}

/// Handles are equal if they stand for the same process.
impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.child, &other.child)
    }
}

impl Eq for Process {}

/// Ready when it has ended.
impl Sealed for Process {
    fn source(&self) -> Result<Source<'_>> {
        Ok(Source::bare(self.end()?))
    }
}

/// As Python shows it: `<Process name='Process-1' pid=7 parent=6 stopped exitcode=-SIGTERM daemon>`.
impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let About { name, daemon, parent, .. } = &*self.about;
        write!(f, "<Process name='{name}' pid={} parent={parent}", self.pid())?;
        match self.exit_status() {
            _ if self.closed.load(Ordering::SeqCst) => write!(f, " closed")?,
            None => write!(f, " started")?,
            Some(status) => match status.signal() {
                Some(signal) => write!(f, " stopped exitcode=-{}", sys::signal::name(signal))?,
                None => write!(f, " stopped exitcode={}", status.exit_code())?,
            },
        }
        f.write_str(if *daemon { " daemon>" } else { ">" })
    }
}
