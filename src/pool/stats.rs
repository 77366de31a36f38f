//! What a pool does and has done.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::Interest;

use super::health::Health;
use super::scheduler::{Distribution, Times};
use super::shared::Shared;
use crate::sys::reactor::Registered;
use crate::sys::{self, AsFd, Fd};

/// What a pool does at one moment, and what it has done so far: see
/// [`Pool::stats`](super::Pool::stats).
///
/// A task here is one item of a call: a `map` over a thousand has a thousand.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// What can be expected of it.
    pub health: Health,
    /// Tasks that no worker has begun.
    pub waiting: u64,
    /// What of these no worker holds, by priority and key; only those of which there is something.
    pub queues: Vec<Waiting>,
    /// Workers that run a task, or are being killed for one.
    pub running: usize,
    /// All workers that there are, spares and those on their way out too.
    pub workers: Vec<WorkerStats>,
    /// Tasks that gave a value.
    pub done: u64,
    /// Tasks that ran, or may have, and gave none.
    pub failed: u64,
    /// Tasks that were refused or withdrawn and never ran.
    pub unrun: u64,
    /// How often a task was put up again after its worker's death.
    pub retried: u64,
    /// Workers that were ready, and are or will be replaced.
    pub restarts: u64,
    /// Why workers have ended.
    pub ends: Ends,
    /// How long tasks waited until they were handed to a worker. A worker of quick tasks holds up
    /// to a millisecond's work, in which they wait on.
    pub wait: Quantiles,
    /// How long tasks ran. For quick ones, answers of which come several at a time, it is the
    /// average of those.
    pub run: Quantiles,
}

/// What waits at one place of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// The priority of the tasks.
    pub priority: i32,
    /// Their key, if they have one.
    pub key: Option<Arc<str>>,
    /// How many calls' tasks; a chunk of a `map` counts as one.
    pub runs: usize,
}

/// One worker at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The name of its process or thread.
    pub name: String,
    /// The id of its process, if it has one of its own by now.
    pub pid: Option<i32>,
    /// What it is at.
    pub state: WorkerState,
    /// The name of the task that it runs.
    pub task: Option<String>,
    /// For how long it has run that.
    pub running_for: Option<Duration>,
    /// How many tasks it has answered.
    pub answered: u64,
    /// How many bytes of anonymous memory it and what it has started hold. None if it has no
    /// process of its own, or that cannot be seen.
    pub memory: Option<u64>,
}

/// What a worker is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// It is being started, or initializes.
    Starting,
    /// It has nothing to do.
    Idle,
    /// It runs a task.
    Running,
    /// It was told to end, or has done its number of tasks.
    Stopping,
    /// It was killed, and the kernel has not reported its end yet.
    Killed,
}

/// How many workers ended for which reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ends {
    /// As they were told to, or after their number of tasks.
    pub regular: u64,
    /// By a signal that the pool did not send.
    pub crashed: u64,
    /// By an `exit` of their own.
    pub exited: u64,
    /// Killed for a task that took too long.
    pub timed_out: u64,
    /// Killed for a task that was aborted.
    pub aborted: u64,
    /// Killed for a task that took too much memory.
    pub out_of_memory: u64,
    /// Killed since they did not begin or end in time, or said what makes no sense.
    pub unresponsive: u64,
    /// Before they were ready: they could not be started, or their initializer failed.
    pub unready: u64,
}

/// How times are distributed, to a hundredth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quantiles {
    /// Of how many tasks; without any the times are zero.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: Duration,
    /// Nine of ten took no longer.
    pub p90: Duration,
    /// 99 of a hundred took no longer.
    pub p99: Duration,
    /// None took longer.
    pub max: Duration,
    /// All took together, exactly: with `count` what a Prometheus summary has.
    pub sum: Duration,
}

impl From<&Distribution> for Quantiles {
    fn from(Distribution { histogram: times, sum }: &Distribution) -> Self {
        const SECOND: u128 = 1_000_000_000;
        let at = |quantile| Duration::from_nanos(times.value_at_quantile(quantile));
        Self {
            count: times.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: Duration::from_nanos(times.max()),
            sum: Duration::new((sum / SECOND) as u64, (sum % SECOND) as u32),
        }
    }
}

/// What a pool does now; times are those since `before`. `None` in a fork of the pool's process.
pub(super) fn collect(shared: &Shared, before: Option<&Times>) -> Option<(Stats, Times)> {
    let (mut stats, times) = shared.with(|scheduler, now| scheduler.stats(now))?;
    for worker in &mut stats.workers {
        worker.name = shared.worker_name(&worker.name);
        // Not under the lock: it reads files.
        worker.memory = worker.pid.and_then(|pid| sys::usage::of_tree(pid, u64::MAX).ok());
    }
    let recent = match before {
        Some(before) => times.clone().since(before),
        None => times.clone(),
    };
    (stats.wait, stats.run) = ((&recent.wait).into(), (&recent.run).into());
    Some((stats, times))
}

/// What a pool does, time and again: see [`Pool::watch`](super::Pool::watch).
#[must_use = "streams do nothing unless polled"]
pub struct Watch {
    shared: Arc<Shared>,
    every: Duration,
    /// From the first item on.
    timer: Option<Timer>,
    before: Option<Times>,
    over: bool,
}

/// More often than this it would do nothing else.
const SHORTEST_PERIOD: Duration = Duration::from_millis(1);

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, every: Duration) -> Self {
        Self { shared, every: every.max(SHORTEST_PERIOD), timer: None, before: None, over: false }
    }

    /// Waits for the time of the next item; the first comes at once.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(timer) = &self.timer {
            ready!(timer.rings.poll_edge(cx))?;
        } else {
            let fd = sys::fd::timerfd()?;
            self.timer = Some(Timer { rings: Registered::new(fd.try_clone()?, Interest::READABLE)?, fd });
        }
        if let Some(timer) = &self.timer {
            sys::fd::arm_timer(timer.fd.as_fd(), Some(self.every))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// By the kernel's clock, which nobody can pause.
#[derive(Debug)]
struct Timer {
    fd: Fd,
    rings: Registered,
}

impl Stream for Watch {
    type Item = Stats;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Stats>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Err(error) = ready!(self.poll_time(cx)) {
            crate::log::warn(format_args!("a pool is not watched any more: {error}"));
            self.over = true;
            return Poll::Ready(None);
        }
        let is_done = self.shared.status.borrow().done;
        let (stats, times) = match collect(&self.shared, self.before.as_ref()) {
            Some((stats, times)) => (Some(stats), Some(times)),
            None => (None, None),
        };
        self.over = is_done || stats.is_none();
        self.before = times;
        Poll::Ready(stats)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("every", &self.every).finish_non_exhaustive()
    }
}
