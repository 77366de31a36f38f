//! Which worker runs what: a state machine without I/O or clock. `../README.md` has the states.
//!
//! It is told what happened (a submission, replies, a death, a passing deadline) with the time in
//! nanoseconds, acts on workers through their [`Lane`], and leaves in [`Effects`] what its driver
//! must do once the lock is released: answer jobs and ring bells.

mod counts;
mod dispatch;
mod ends;
mod lane;
mod quarantine;
mod queue;
mod replies;
mod run;
mod size;
mod worker;

use std::collections::VecDeque;
use std::time::Duration;

use self::counts::Counts;
pub(super) use self::counts::{Distribution, Times};
pub(super) use self::lane::{Death, Delivered, Delivery, Effects, Lane, Lost, Sample, Sent};
use self::quarantine::Quarantine;
pub(super) use self::queue::Class;
use self::queue::Queue;
pub(super) use self::run::{Run, Spec, Ticket};
pub(super) use self::size::Size;
use self::size::Starts;
use self::worker::{State, Worker};
use super::wire::Tag;
use crate::error::{NotStarted, TaskError};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Running,
    /// No new jobs; those that there are run to their end.
    Closed,
    /// Everything ends now.
    Terminated,
}

pub(super) type WorkerId = u32;

/// A worker in flight holds about so much work, so that neither side waits for the other's bell.
const IN_FLIGHT: u64 = 1_000_000;
/// After so long without an answer a worker's ring is looked at, rung or not, and what it holds
/// beside the item that it runs goes to others.
const LOOK: u64 = 1_000_000;

#[derive(Debug)]
pub(super) struct Scheduler<J, L: Lane<J>> {
    size: Size,
    max_tasks: Option<u32>,
    phase: Phase,
    workers: Vec<Worker<J, L>>,
    queue: Queue<J>,
    quarantine: Option<Quarantine>,
    /// When the time that is passing was last charged.
    charged: u64,
    /// Whose tasks have killed workers that are not replaced yet: they pay for that.
    payers: VecDeque<Class>,
    /// Jobs that may still submit.
    open_jobs: usize,
    next_worker: WorkerId,
    starts: Starts,
    counts: Counts,
    retry_at: Option<u64>,
    effects: Effects<J, L::Bell>,
}

impl<J: Ticket, L: Lane<J>> Scheduler<J, L> {
    pub(super) fn new(size: Size, max_tasks: Option<u32>) -> Self {
        Self {
            size,
            max_tasks,
            phase: Phase::Running,
            workers: Vec::new(),
            queue: Queue::new(None),
            quarantine: None,
            charged: 0,
            payers: VecDeque::new(),
            open_jobs: 0,
            next_worker: 0,
            starts: Starts::default(),
            counts: Counts::new(),
            retry_at: None,
            effects: Effects::default(),
        }
    }

    /// How many workers may hold items of one key at a time, and how many deaths of workers keep a
    /// task away for how long.
    pub(super) fn ordered(mut self, key_limit: Option<usize>, quarantine: Option<(u32, Duration)>) -> Self {
        self.queue = Queue::new(key_limit);
        self.quarantine = quarantine.map(|(deaths, time)| Quarantine::new(deaths, time));
        self
    }

    /// How long a worker's process may run until the worker is ready.
    pub(super) fn starting_within(mut self, timeout: Option<Duration>) -> Self {
        self.starts.timeout = timeout;
        self
    }

    pub(super) fn take_effects(&mut self) -> Effects<J, L::Bell> {
        for lost in &self.effects.lost {
            self.counts.lost(lost);
        }
        std::mem::take(&mut self.effects)
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether it is over: no worker is left and none will be.
    pub(super) fn is_done(&self) -> bool {
        self.workers.is_empty() && self.wants_end()
    }

    pub(super) fn broken(&self) -> Option<&str> {
        self.starts.broken()
    }

    pub(super) fn ready_workers(&self) -> usize {
        self.workers.iter().filter(|worker| worker.state == State::Ready && worker.is_kept()).count()
    }

    pub(super) fn pids(&self) -> Vec<i32> {
        self.workers.iter().filter(|worker| worker.is_kept()).filter_map(Worker::pid).collect()
    }

    pub(super) fn has_unfinished(&self) -> bool {
        !self.queue.is_empty() || self.workers.iter().any(|worker| worker.unanswered() > 0)
    }

    /// How many items it is good to have submitted and not answered.
    pub(super) fn window(&self) -> u64 {
        let wanted: u64 = self.workers.iter().map(Worker::wanted).sum();
        2 * wanted.max(self.size.most as u64)
    }

    /// The function that a worker runs, or else has run last.
    pub(super) fn task_of(&self, id: WorkerId) -> Option<&'static str> {
        self.workers.iter().find(|worker| worker.id == id)?.task()
    }

    fn find(&mut self, id: WorkerId) -> Option<&mut Worker<J, L>> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    // Submitting.

    /// Lets a job submit, also after `close`. To be ended by [`end_job`](Self::end_job).
    pub(super) fn begin_job(&mut self) -> Result<(), NotStarted> {
        if self.phase != Phase::Running {
            return Err(NotStarted::Closed);
        }
        self.open_jobs += 1;
        Ok(())
    }

    pub(super) fn end_job(&mut self, now: u64) {
        self.open_jobs -= 1;
        self.wind_down(now);
    }

    pub(super) fn pending_runs(&self) -> usize {
        self.queue.len()
    }

    /// Takes the only run of a new job.
    pub(super) fn submit_new(&mut self, run: Run<J>, now: u64) {
        match self.phase {
            Phase::Running => self.submit(run, now),
            Phase::Closed | Phase::Terminated => {
                self.counts.submitted(run.count);
                self.lose(run, NotStarted::Closed);
            }
        }
    }

    /// Takes a run of an open job.
    pub(super) fn submit(&mut self, mut run: Run<J>, now: u64) {
        self.counts.submitted(run.count);
        run.submitted = now;
        if self.phase == Phase::Terminated {
            return self.lose(run, NotStarted::Closed);
        }
        if let Some(why) = self.starts.broken() {
            let why = NotStarted::NoWorker(why.to_owned());
            return self.lose(run, why);
        }
        self.wake_up();
        self.queue.push(run);
        self.dispatch(now);
    }

    fn lose(&mut self, run: Run<J>, why: NotStarted) {
        // What was tried before has run, and what came of that says more.
        let items = run.items();
        let error = run.past.and_then(|past| past.failure).unwrap_or(TaskError::NotStarted(why));
        self.effects.lost.push(Lost { items, job: run.job, error });
    }

    // Time.

    /// When [`tick`](Self::tick) wants to be called next.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let timeouts = self.workers.iter().filter_map(Worker::deadline);
        let looks = self.workers.iter().filter_map(Worker::look_at);
        let samples = self.workers.iter().filter_map(Worker::sample_at);
        timeouts.chain(looks).chain(samples).chain(self.retry_at).chain(self.next_change()).min()
    }

    /// Does what time has brought. What workers had published must have been taken just before.
    pub(super) fn tick(&mut self, now: u64) {
        if self.retry_at.take_if(|at| *at <= now).is_some() {
            self.workers.iter_mut().for_each(Worker::may_have_room);
        }
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let overdue = worker.deadline().is_some_and(|deadline| deadline <= now);
            let mut rest = if overdue { worker.overdue(now) } else { Vec::new() };
            rest.append(&mut worker.relieve(now));
            self.give_back(index, rest);
        }
        self.shrink(now);
        self.dispatch(now);
        self.balance(now);
    }

    /// The looks at workers' memory that are due. Each is answered by [`sampled`](Self::sampled).
    pub(super) fn samples_due(&mut self, now: u64) -> Vec<Sample> {
        self.workers.iter_mut().filter_map(|worker| worker.sample(now)).collect()
    }

    /// Takes how many bytes of memory a worker and what it has started hold, if that is known.
    pub(super) fn sampled(&mut self, id: WorkerId, tag: Tag, held: Option<u64>, now: u64) {
        let Some(worker) = self.workers.iter_mut().find(|worker| worker.id == id) else { return };
        for run in worker.sampled(tag, held, now).into_iter().rev() {
            self.queue.give_back(id, run);
        }
        self.dispatch(now);
    }
}

#[cfg(test)]
mod tests;
