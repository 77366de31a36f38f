//! What a pool has come through so far.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::worker::{State, Worker};
use super::{Death, Lane, Lost, Scheduler, Ticket};
use crate::error::{Ran, TaskError};
use crate::pool::stats::{Ends, Quantiles, Stats, Waiting, WorkerState, WorkerStats};
use crate::pool::wire::Kind;

/// Below this many nanoseconds times are not told from each other.
const SHORTEST: u64 = 64;
/// Longer times count as this.
const LONGEST: u64 = 7 * 24 * 3600 * 1_000_000_000;
/// In decimal digits: times are off by a hundredth at most.
const PRECISION: u8 = 2;

/// Times of items, in nanoseconds.
#[derive(Clone, Debug)]
pub(in crate::pool) struct Distribution {
    pub(in crate::pool) histogram: Histogram<u64>,
    pub(in crate::pool) sum: u128,
}

impl Distribution {
    fn new() -> Self {
        let histogram =
            Histogram::new_with_bounds(SHORTEST, LONGEST, PRECISION).expect("bounds that are far apart");
        Self { histogram, sum: 0 }
    }

    fn record(&mut self, time: u64, items: u64) {
        self.histogram.saturating_record_n(time, items);
        self.sum += u128::from(time) * u128::from(items);
    }

    fn subtract(&mut self, before: &Self) {
        self.histogram.subtract(&before.histogram).expect("what came later has all that there was before");
        self.sum -= before.sum;
    }
}

/// How long items waited and how long they ran.
#[derive(Clone, Debug)]
pub(in crate::pool) struct Times {
    pub(in crate::pool) wait: Distribution,
    pub(in crate::pool) run: Distribution,
}

impl Times {
    fn new() -> Self {
        Self { wait: Distribution::new(), run: Distribution::new() }
    }

    /// Takes off what was counted up to an earlier time.
    pub(in crate::pool) fn since(mut self, before: &Self) -> Self {
        self.wait.subtract(&before.wait);
        self.run.subtract(&before.run);
        self
    }
}

#[derive(Debug)]
pub(super) struct Counts {
    /// Items that came, refused ones too.
    submitted: u64,
    /// Those that gave a value.
    done: u64,
    /// Those that ran and gave none.
    failed: u64,
    /// Those that never ran.
    unrun: u64,
    retried: u64,
    restarts: u64,
    ends: Ends,
    times: Times,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self {
            submitted: 0,
            done: 0,
            failed: 0,
            unrun: 0,
            retried: 0,
            restarts: 0,
            ends: Ends::default(),
            times: Times::new(),
        }
    }

    pub(super) fn submitted(&mut self, items: u32) {
        self.submitted += u64::from(items);
    }

    #[inline]
    pub(super) fn answered(&mut self, kind: Kind) {
        *if kind == Kind::Value { &mut self.done } else { &mut self.failed } += 1;
    }

    pub(super) fn lost<J>(&mut self, lost: &Lost<J>) {
        let items = lost.items.end - lost.items.start;
        *if lost.error.ran() == Ran::No { &mut self.unrun } else { &mut self.failed } += items;
    }

    pub(super) fn retried(&mut self) {
        self.retried += 1;
    }

    pub(super) fn waited(&mut self, time: u64, items: u64) {
        self.times.wait.record(time, items);
    }

    pub(super) fn ran(&mut self, time: u64, items: u64) {
        self.times.run.record(time, items);
    }

    /// A worker could not be started.
    pub(super) fn unstarted(&mut self) {
        self.ends.unready += 1;
    }

    /// A worker has ended; `unwanted` says that the pool does without it.
    pub(super) fn ended<J: Ticket, L: Lane<J>>(
        &mut self,
        worker: &Worker<J, L>,
        death: &Death,
        unwanted: bool,
    ) {
        let ends = &mut self.ends;
        self.restarts += u64::from(worker.was_ready && !unwanted);
        let limited = worker.current().is_some_and(|flight| flight.run.job.spec().memory_limit.is_some());
        let by_itself = if death.exit.signal().is_some() { &mut ends.crashed } else { &mut ends.exited };
        let cause = match (&worker.doomed, worker.state) {
            (Some((_, TaskError::TimedOut)), _) => &mut ends.timed_out,
            (Some((_, TaskError::Aborted { .. })), _) => &mut ends.aborted,
            (Some((_, TaskError::MemoryLimit { .. })), _) => &mut ends.out_of_memory,
            _ if limited && death.out_of_memory => &mut ends.out_of_memory,
            (_, State::Killed) if unwanted => &mut ends.regular,
            _ if !worker.was_ready => &mut ends.unready,
            (_, State::Killed) => &mut ends.unresponsive,
            (_, State::Ready) if worker.may_take() > 0 => by_itself,
            // It was to end, and did as it should.
            _ if death.exit.success() => &mut ends.regular,
            _ => by_itself,
        };
        *cause += 1;
    }

    fn settled(&self) -> u64 {
        self.done + self.failed + self.unrun
    }
}

impl<J: Ticket, L: Lane<J>> Scheduler<J, L> {
    /// How many items have come to an end of their own, with a value or an error.
    pub(in crate::pool) fn finished(&self) -> u64 {
        self.counts.done + self.counts.failed
    }

    /// All but what its driver knows: names of workers, their memory, quantiles.
    pub(in crate::pool) fn stats(&self, now: u64) -> (Stats, Times) {
        let counts = &self.counts;
        let running = self.workers.iter().filter(|worker| worker.unanswered() > 0).count();
        let unfinished = counts.submitted.saturating_sub(counts.settled());
        let waiting = self.queue.waiting();
        let stats = Stats {
            health: self.health(now),
            waiting: unfinished.saturating_sub(running as u64),
            queues: waiting.map(|(priority, key, runs)| Waiting { priority, key, runs }).collect(),
            running,
            workers: self.workers.iter().map(|worker| worker_stats(worker, now)).collect(),
            done: counts.done,
            failed: counts.failed,
            unrun: counts.unrun,
            retried: counts.retried,
            restarts: counts.restarts,
            ends: counts.ends.clone(),
            wait: Quantiles::default(),
            run: Quantiles::default(),
        };
        (stats, counts.times.clone())
    }
}

fn worker_stats<J: Ticket, L: Lane<J>>(worker: &Worker<J, L>, now: u64) -> WorkerStats {
    let task = worker.current().map(|flight| flight.run.job.spec().name);
    WorkerStats {
        // Its name begins with the pool's, which is not known here.
        name: (worker.id + 1).to_string(),
        pid: worker.pid(),
        state: match worker.state {
            State::Starting | State::Warming => WorkerState::Starting,
            State::Ready | State::Retiring | State::Stopping if task.is_some() => WorkerState::Running,
            State::Ready if worker.may_take() > 0 => WorkerState::Idle,
            State::Ready | State::Retiring | State::Stopping => WorkerState::Stopping,
            State::Killed => WorkerState::Killed,
        },
        task: task.map(str::to_owned),
        running_for: task.map(|_| Duration::from_nanos(now.saturating_sub(worker.since))),
        answered: worker.answered_items,
        memory: None,
    }
}
