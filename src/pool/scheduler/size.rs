//! How many workers there should be, when the next one may start, and which one is too many.

use std::cmp::Reverse;
use std::time::Duration;

use super::worker::{Worker, after};
use super::{Lane, Phase, Scheduler, Ticket, WorkerId};
use crate::error::NotStarted;
use crate::pool::health::Health;

/// How many workers a pool has.
#[derive(Clone, Copy, Debug)]
pub(in crate::pool) struct Size {
    /// At most so many run something at a time.
    pub(in crate::pool) most: usize,
    /// So many there are although there is nothing to do; if this does not say, as many as may be.
    pub(in crate::pool) least: Option<usize>,
    /// So many more there are, ready, to step in for others; if this does not say, as many again.
    pub(in crate::pool) spares: Option<usize>,
    /// Who has nothing to do for so long goes, if there are others enough.
    pub(in crate::pool) idle: Duration,
    /// Nobody is wanted before the first task.
    pub(in crate::pool) asleep: bool,
}

impl Size {
    fn least(&self) -> usize {
        self.least.map_or(self.most, |least| least.min(self.most))
    }

    fn spares(&self) -> usize {
        self.spares.unwrap_or(self.most)
    }

    /// How many there should be when so many run something, and so many runs wait.
    fn wanted(&self, running: usize, waiting: usize) -> usize {
        if self.asleep { 0 } else { (running + waiting).clamp(self.least(), self.most) + self.spares() }
    }
}

/// The breaker: spaces starts that lead nowhere, and refuses calls after many of them.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// Failed ones since a worker was last ready.
    failures: u32,
    /// Workers in a row that died, although they were ready, before they had begun anything.
    barren: u32,
    /// How long a worker's process may run until the worker is ready.
    pub(super) timeout: Option<Duration>,
    /// No worker is started before.
    not_before: u64,
    /// Why there are no workers, after many failed starts.
    broken: Option<String>,
}

impl Starts {
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// A worker is ready.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.broken = None;
    }

    /// Workers are of use: something was answered, or begun.
    pub(super) fn bore_fruit(&mut self) {
        self.barren = 0;
    }

    /// From 10 ms, doubling, to 5 s.
    fn back_off(&mut self, times: u32, now: u64) {
        self.not_before = after(now, Duration::from_millis(5 << times.min(10)));
    }
}

impl<J: Ticket, L: Lane<J>> Scheduler<J, L> {
    /// How many workers there should be.
    pub(in crate::pool) fn wanted(&self) -> usize {
        // Asked at each call and each answer, so no further than need be.
        if self.size.asleep || self.size.least() == self.size.most {
            return self.size.wanted(0, 0);
        }
        let running = self.workers.iter().filter(|worker| worker.is_kept() && worker.unanswered() > 0);
        // Runs that only the limit of their key holds up would not run on one more either.
        let waiting = if self.queue.has_for(self.next_worker) { self.pending_runs() } else { 0 };
        self.size.wanted(running.count(), waiting)
    }

    fn kept(&self) -> usize {
        self.workers.iter().filter(|worker| worker.is_kept()).count()
    }

    /// Whether one worker more may run something. Spares are idle until somebody makes room, as he
    /// ends or is killed.
    pub(super) fn has_room(&self) -> bool {
        self.workers.iter().filter(|worker| worker.runs_something()).count() < self.size.most
    }

    /// Whether a worker should be started as soon as that is allowed.
    pub(super) fn lacks_worker(&self) -> bool {
        if self.wants_end() {
            return false;
        }
        if self.starts.broken.is_some() {
            // Half open: one start at a time probes whether it works again.
            return !self.workers.iter().any(|worker| worker.is_on_its_way());
        }
        self.kept() < self.wanted()
    }

    /// Wants workers from now on, if it was waiting for the first task.
    pub(in crate::pool) fn wake_up(&mut self) {
        if std::mem::take(&mut self.size.asleep) {
            self.effects.attention = true;
        }
    }

    /// Has so many workers from now on, at most. Those that are too many end when they have done
    /// what they run.
    pub(in crate::pool) fn resize(&mut self, processes: usize, now: u64) {
        self.size.most = processes;
        self.effects.attention = true;
        self.tick(now);
    }

    /// The next worker to start now, if one is wanted.
    pub(in crate::pool) fn start_due(&mut self, now: u64) -> Option<WorkerId> {
        if !self.lacks_worker() {
            self.payers.clear();
            return None;
        }
        if now < self.starts.not_before {
            return None;
        }
        let id = self.next_worker;
        self.next_worker += 1;
        self.workers.push(Worker::new(id, self.max_tasks, self.payers.pop_front(), now));
        Some(id)
    }

    /// When a worker can be started that is missing, or has to go that is too many.
    pub(super) fn next_change(&self) -> Option<u64> {
        if self.lacks_worker() {
            return Some(self.starts.not_before);
        }
        self.surplus().map(|(_, at)| at)
    }

    /// A worker did not come to be, and `hopeless` says that the next one will not either.
    pub(in crate::pool) fn start_failed(&mut self, id: WorkerId, why: String, hopeless: bool, now: u64) {
        self.workers.retain(|worker| worker.id != id);
        self.counts.unstarted();
        if hopeless {
            self.starts.failures = self.starts.failures.max(self.most_failures());
        }
        self.failed(why, now);
        self.wind_down(now);
    }

    /// How many starts may fail before the pool says that it cannot work.
    fn most_failures(&self) -> u32 {
        self.wanted().min(self.size.most) as u32 + 1
    }

    pub(super) fn failed(&mut self, why: String, now: u64) {
        self.starts.failures += 1;
        self.starts.back_off(self.starts.failures, now);
        self.effects.attention = true;
        if self.ready_workers() == 0 && self.starts.failures > self.most_failures() {
            for run in self.queue.drain() {
                self.lose(run, NotStarted::NoWorker(why.clone()));
            }
            self.starts.broken = Some(why);
        }
    }

    /// A worker that was ready has died before it had begun anything.
    pub(super) fn was_barren(&mut self, now: u64) {
        self.starts.barren += 1;
        if self.is_barren() {
            self.starts.back_off(self.starts.barren, now);
            self.effects.attention = true;
        }
    }

    /// Whether more workers than the pool has were of no use, one after another.
    fn is_barren(&self) -> bool {
        self.starts.barren as usize > self.size.most
    }

    /// The worker that goes next, and when, if there are too many.
    fn surplus(&self) -> Option<(usize, u64)> {
        let count = self.kept();
        if count <= self.wanted() {
            return None;
        }
        let kept = self.workers.iter().enumerate().filter(|(_, worker)| worker.is_kept());
        if count > self.size.most + self.size.spares() {
            let leisurely = kept.min_by_key(|(index, worker)| (worker.unanswered(), Reverse(*index)));
            return leisurely.map(|(index, _)| (index, 0));
        }
        let idle = kept.filter_map(|(index, worker)| Some((worker.idle_since()?, index)));
        idle.min().map(|(since, index)| (index, after(since, self.size.idle)))
    }

    /// Sends those home that are too many.
    pub(super) fn shrink(&mut self, now: u64) {
        while let Some((index, _)) = self.surplus().filter(|(_, at)| *at <= now) {
            self.workers[index].dismissed = true;
            self.retire(index, now);
        }
    }

    /// What can be expected of it.
    pub(in crate::pool) fn health(&self, now: u64) -> Health {
        let next_try = Duration::from_nanos(self.starts.not_before.saturating_sub(now));
        let nobody = !self.workers.iter().any(Worker::serves);
        match &self.starts.broken {
            _ if self.phase != Phase::Running => Health::Closed,
            Some(why) => Health::Broken { why: why.clone(), next_try },
            None if nobody && self.is_barren() => {
                let why = "workers die as soon as they are ready".to_owned();
                Health::Broken { why, next_try }
            }
            None if nobody && self.wanted() > 0 => Health::Starting,
            None if self.pending_runs() > 0 && !self.has_room() => Health::Busy,
            None => Health::Ready,
        }
    }
}
