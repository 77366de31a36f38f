//! What a pool's handles, its jobs and its supervisor share.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};

use super::call::Defaults;
use super::channel::Attached;
use super::feed::Piece;
use super::scheduler::{Effects, Phase, Run, Scheduler, Spec, Ticket};
use super::wire::Answer;
use crate::error::{Error, NotStarted, TaskError};
use crate::reduction::Peer;
use crate::sys::per_process::process_token;
use crate::sys::{self, AsFd, Fd};
use crate::util::lock;

/// Who asked for something, and hears what came of it. Called without the pool's lock; whom to
/// wake is only noted, as many answers come at once.
pub(super) trait Job: Send + Sync {
    fn spec(&self) -> &Spec;
    /// Whether it is one item and cannot become more.
    fn is_single(&self) -> bool {
        false
    }
    fn answer(&self, answers: &mut dyn Iterator<Item = Answer<'_>>, wakers: &mut Vec<Waker>);
    /// Items that nobody runs any more.
    fn lose(&self, items: Range<u64>, error: TaskError, wakers: &mut Vec<Waker>);
}

impl Ticket for Arc<dyn Job> {
    fn spec(&self) -> &Spec {
        (**self).spec()
    }

    fn is(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(self), Arc::as_ptr(other))
    }

    fn is_single(&self) -> bool {
        (**self).is_single()
    }
}

pub(super) type PoolScheduler = Scheduler<Arc<dyn Job>, Attached>;
pub(super) type PoolEffects = Effects<Arc<dyn Job>, Arc<Fd>>;

/// What can be waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) ready: usize,
    /// How many workers there should be.
    pub(super) wanted: usize,
    pub(super) broken: Option<String>,
    /// It has nothing left to do.
    pub(super) ends: bool,
    pub(super) done: bool,
}

struct Core {
    scheduler: PoolScheduler,
    /// When the timer will ring.
    armed: u64,
    /// Runs that were let in and have not left the queue, where that is limited.
    admitted: usize,
}

pub(super) struct Shared {
    core: Mutex<Core>,
    timer: Fd,
    /// Something happened that the supervisor looks after.
    pub(super) attention: Notify,
    pub(super) status: watch::Sender<Status>,
    /// Why the first start that failed did, for who builds the pool.
    pub(super) start_error: Mutex<Option<Error>>,
    /// Where the supervisor runs.
    pub(super) runtime: Handle,
    /// The process whose pool this is: in a fork of it there is nothing but a copy of memory.
    owner: u64,
    /// The scheduler's word for it, for who only wants to know how finely to cut.
    processes: AtomicUsize,
    /// How many jobs there were.
    jobs: AtomicU64,
    room: Option<Arc<Semaphore>>,
    pub(super) defaults: Defaults,
    /// Who reads what is sent.
    pub(super) peer: Peer,
    /// What its workers' names begin with.
    name: String,
}

impl Shared {
    pub(super) fn new(
        scheduler: PoolScheduler,
        timer: Fd,
        processes: usize,
        max_pending: Option<usize>,
        defaults: Defaults,
        peer: Peer,
        name: String,
    ) -> Self {
        Self {
            core: Mutex::new(Core { scheduler, armed: u64::MAX, admitted: 0 }),
            timer,
            attention: Notify::new(),
            status: watch::Sender::default(),
            start_error: Mutex::default(),
            runtime: Handle::current(),
            owner: process_token(),
            processes: AtomicUsize::new(processes),
            jobs: AtomicU64::new(0),
            room: max_pending.map(|max| Arc::new(Semaphore::new(max))),
            defaults,
            peer,
            name,
        }
    }

    pub(super) fn processes(&self) -> usize {
        self.processes.load(Ordering::Relaxed)
    }

    /// `None` in a fork of the pool's process.
    pub(super) fn resize(&self, processes: usize) -> Option<()> {
        let wanted = self.with(|scheduler, now| {
            self.processes.store(processes, Ordering::Relaxed);
            scheduler.resize(processes, now);
            scheduler.wanted()
        })?;
        // Not left to the supervisor, which sees no difference if it is put back before it looks.
        self.status.send_modify(|status| status.wanted = wanted);
        Some(())
    }

    /// How it is now, which the supervisor publishes. `None` in a fork of the pool's process.
    pub(super) fn current_status(&self) -> Option<Status> {
        self.with(|scheduler, _| Status {
            ready: scheduler.ready_workers(),
            wanted: scheduler.wanted(),
            broken: scheduler.broken().map(str::to_owned),
            ends: scheduler.wants_end(),
            done: scheduler.is_done(),
        })
    }

    /// A number for a new job.
    pub(super) fn next_job(&self) -> u64 {
        self.jobs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The name of a worker that has this number.
    pub(super) fn worker_name(&self, number: impl fmt::Display) -> String {
        format!("{}-{number}", self.name)
    }

    /// What lets one run in; its permit is to be forgotten.
    pub(super) fn permits(&self) -> Option<Arc<Semaphore>> {
        self.room.clone()
    }

    /// Acts on the scheduler and carries out what follows. `None` in a fork of the pool's process,
    /// where the lock may be held by a thread that is not there.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut PoolScheduler, u64) -> R) -> Option<R> {
        let (result, effects) = self.locked(0, act)?;
        self.carry_out(effects);
        Some(result)
    }

    /// The same for who carries it out himself, or brings runs that were let in.
    pub(super) fn locked<R>(
        &self,
        admitted: usize,
        act: impl FnOnce(&mut PoolScheduler, u64) -> R,
    ) -> Option<(R, PoolEffects)> {
        if self.owner != process_token() {
            return None;
        }
        let mut core = lock(&self.core);
        let now = sys::fd::monotonic_ns();
        let result = act(&mut core.scheduler, now);
        let wanted = core.scheduler.next_deadline().unwrap_or(u64::MAX);
        if wanted < core.armed {
            core.armed = wanted;
            // Zero would disarm it in the kernel, and is made one there.
            let _ = sys::fd::arm_timer(
                self.timer.as_fd(),
                Some(Duration::from_nanos(wanted.saturating_sub(now))),
            );
        }
        if let Some(room) = &self.room {
            core.admitted += admitted;
            let left = core.admitted.saturating_sub(core.scheduler.pending_runs());
            core.admitted -= left;
            room.add_permits(left);
        }
        Some((result, core.scheduler.take_effects()))
    }

    /// Has the timer, which has rung, be armed anew when something wants it.
    pub(super) fn disarmed(&self) {
        lock(&self.core).armed = u64::MAX;
    }

    /// When the timer will ring.
    pub(super) fn armed(&self) -> u64 {
        lock(&self.core).armed
    }

    /// Does what is to be done without the lock, deliveries excepted. Retired jobs go with it.
    pub(super) fn carry_out(&self, effects: PoolEffects) {
        for bell in effects.bells {
            sys::fd::ring(bell.as_fd());
        }
        let mut wakers = Vec::new();
        for lost in effects.lost {
            lost.job.lose(lost.items, lost.error, &mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
        if effects.attention {
            self.attention.notify_one();
        }
    }

    pub(super) fn begin_job(&self) -> Result<(), NotStarted> {
        self.with(|scheduler, _| scheduler.begin_job()).unwrap_or_else(|| Err(foreign()))
    }

    pub(super) fn end_job(&self) {
        self.with(|scheduler, now| scheduler.end_job(now));
    }

    /// Submits runs of an open job, and says how many items it is good to have outstanding.
    pub(super) fn submit(&self, runs: &mut Vec<Run<Arc<dyn Job>>>) -> u64 {
        let submitted = self.locked(runs.len(), |scheduler, now| {
            for run in runs.drain(..) {
                scheduler.submit(run, now);
            }
            scheduler.window()
        });
        let Some((window, effects)) = submitted else { return 0 };
        self.carry_out(effects);
        window
    }

    /// Submits a job of one item, for which a permit was taken or not.
    pub(super) fn submit_single(&self, job: Arc<dyn Job>, piece: Piece, permitted: bool) {
        let lost = match piece {
            Piece::Refused(error) => Some((job, error)),
            Piece::Run { count, body } => {
                let run = Run::new(job.clone(), 0, count, body);
                match self.locked(usize::from(permitted), |scheduler, now| scheduler.submit_new(run, now)) {
                    Some(((), effects)) => {
                        self.carry_out(effects);
                        None
                    }
                    None => Some((job, TaskError::NotStarted(foreign()))),
                }
            }
        };
        if let Some((job, error)) = lost {
            let mut wakers = Vec::new();
            job.lose(0..1, error, &mut wakers);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    pub(super) fn abort(&self, job: Arc<dyn Job>, kill: bool) {
        self.with(|scheduler, now| scheduler.abort(&job, kill, now));
    }

    /// `None` in a fork of the pool's process.
    pub(super) fn phase(&self) -> Option<Phase> {
        self.with(|scheduler, _| scheduler.phase())
    }
}

pub(super) fn foreign() -> NotStarted {
    NotStarted::NoWorker("the pool belongs to the process that this one was forked from".to_owned())
}

/// Keeps a pool running. The last one to go terminates it.
#[derive(Clone)]
pub(super) struct Owner(Arc<Last>);

struct Last(Arc<Shared>);

impl Owner {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(Arc::new(Last(shared)))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        let dropped = self.0.with(|scheduler, _| {
            let running = scheduler.phase() == Phase::Running;
            let unfinished = scheduler.has_unfinished();
            scheduler.terminate();
            running.then_some(unfinished)
        });
        match dropped.flatten() {
            Some(true) => crate::log::warn(format_args!("a running pool was dropped with tasks in it")),
            // Many a `main` ends so: it is for those alone to see who look at all that happens.
            Some(false) => tracing::warn!("a running pool was dropped: it was neither closed nor terminated"),
            None => {}
        }
    }
}
