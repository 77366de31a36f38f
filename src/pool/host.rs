//! What a worker runs in: a process, or a thread of this one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::watch;

use super::channel::Leash;
use super::wire::Setup;
use super::worker;
use crate::bootstrap;
use crate::error::Result;
use crate::process::{ExitStatus, GROUPER, Process};
use crate::sys;
use crate::sys::cgroup::Cgroup;
use crate::sys::process::Exit;

/// What the pool needs of it. Clones are handles of the same.
#[derive(Clone, Debug)]
pub(super) enum Host {
    /// With the group that it is in, if it has one of its own.
    Process(Process, Option<Arc<Cgroup>>),
    Thread(Thread),
}

impl Host {
    /// Waits until it has ended.
    pub(super) async fn exited(&self) {
        match self {
            Self::Process(process, _) => {
                // If it cannot be watched, it is as good as gone: better dead than unseen.
                if process.exited().await.is_err() {
                    process.kill_tree();
                    let _ = process.join().await;
                }
            }
            Self::Thread(thread) => thread.exited().await,
        }
    }

    /// Kills a process and all that it has started. A thread is given up: it counts as dead at
    /// once, and ends when its task does.
    pub(super) fn kill(&self) {
        match self {
            Self::Process(process, cgroup) => {
                process.kill_tree();
                cgroup.iter().for_each(|cgroup| cgroup.kill());
            }
            Self::Thread(thread) => thread.give_up(),
        }
    }

    /// How it ended, if it has; a process is gone for good then.
    pub(super) fn reap(&self) -> Option<ExitStatus> {
        match self {
            Self::Process(process, _) => process.reap(),
            Self::Thread(thread) => thread.end().map(|exit| ExitStatus::new(exit, false)),
        }
    }

    /// Ends the group that it was in, once it has ended, and says whether the kernel killed it for
    /// want of memory there.
    pub(super) async fn end_group(&self) -> bool {
        let Self::Process(_, Some(cgroup)) = self else { return false };
        let cgroup = cgroup.clone();
        GROUPER.run(move || cgroup.end()).await.unwrap_or(false)
    }

    /// Of a process of its own.
    pub(super) fn pid(&self) -> Option<i32> {
        match self {
            Self::Process(process, _) => Some(process.pid()),
            Self::Thread(_) => None,
        }
    }
}

/// A worker on a thread. No thread can be killed: one that is given up runs on, unheard, until its
/// task ends.
#[derive(Clone, Debug)]
pub(super) struct Thread {
    leash: Leash,
    /// How it ended, as a process would have.
    end: Arc<watch::Sender<Option<Exit>>>,
}

impl Thread {
    /// # Errors
    /// When there can be no further thread.
    pub(super) fn start(name: String, setup: Setup, leash: Leash) -> Result<Self> {
        let end = Arc::new(watch::Sender::new(None));
        let ours = Self { leash, end: end.clone() };
        // Not one of `sys::threads`: what locks a task holds nobody knows, so a fork must not leave
        // it behind.
        std::thread::Builder::new().name(name).spawn(move || {
            let worker = || bootstrap::with_own_runtime(|| worker::serve(setup));
            let exit = match catch_unwind(AssertUnwindSafe(worker)) {
                Ok(Ok(code)) => Exit::Code(i32::from(code)),
                // It was given up, or dies of a fault.
                Ok(Err(_)) | Err(_) => KILLED,
            };
            end.send_if_modified(|end| end.is_none() && end.replace(exit).is_none());
        })?;
        Ok(ours)
    }

    async fn exited(&self) {
        let _ = self.end.subscribe().wait_for(Option::is_some).await;
    }

    fn end(&self) -> Option<Exit> {
        *self.end.borrow()
    }

    fn give_up(&self) {
        self.leash.let_go();
        self.end.send_if_modified(|end| end.is_none() && end.replace(KILLED).is_none());
    }
}

const KILLED: Exit = Exit::Signal { signal: sys::signal::KILL, core: false };
