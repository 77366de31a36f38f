//! Which worker runs what: a state machine without I/O or clock. `../README.md` has the states.
//!
//! It is told what happened (a submission, replies, a death, a passing deadline) with the time in
//! nanoseconds, acts on workers through their [`Lane`], and leaves in [`Effects`] what its driver
//! must do once the lock is released: answer jobs and ring bells.

mod counts;
mod quarantine;
mod queue;
mod size;
mod worker;

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use self::counts::Counts;
pub(super) use self::counts::Times;
use self::quarantine::{Mark, Quarantine, Verdict};
pub(super) use self::queue::Class;
use self::queue::Queue;
pub(super) use self::size::Size;
use self::size::Starts;
use self::worker::{State, Worker};
use super::call::OnProgress;
use super::wire::{Body, Kind, Reply, RunHead, Tag};
use crate::error::{NotStarted, TaskError, WorkerDied};
use crate::function::FnId;
use crate::ring::{Corrupt, frames};

/// What all runs of a job have in common.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    /// The job's number, unique in its pool; 0 is the initializer's.
    pub(super) id: u64,
    /// How workers find the function, or why they cannot.
    pub(super) function: Result<FnId, String>,
    /// The function's name, for people.
    pub(super) name: &'static str,
    pub(super) timeout: Option<Duration>,
    /// How much more memory each item may take, in bytes.
    pub(super) memory_limit: Option<u64>,
    /// How often an item is tried again after its worker died.
    pub(super) retries: u32,
    pub(super) class: Class,
    /// Who hears what its items report while they run.
    pub(super) progress: Option<OnProgress>,
}

/// Who wants the answers.
pub(super) trait Ticket: Clone {
    fn spec(&self) -> &Spec;
    fn is(&self, other: &Self) -> bool;
}

/// Consecutive items of a job, for one worker.
#[derive(Clone, Debug)]
pub(super) struct Run<J> {
    pub(super) job: J,
    /// The job's number for the first item.
    pub(super) first: u64,
    pub(super) count: u32,
    /// How often it was begun before; over zero only for runs of one item.
    pub(super) attempt: u32,
    /// When it came to the queue.
    submitted: u64,
    /// What few runs have.
    past: Option<Box<Past>>,
    pub(super) body: Body,
}

/// What came before of a run of one item.
#[derive(Clone, Debug, Default)]
struct Past {
    /// How the last attempt ended.
    failure: Option<TaskError>,
    /// It was let out of quarantine to see how it ends.
    probe: Option<Mark>,
}

impl<J: Clone> Run<J> {
    pub(super) fn new(job: J, first: u64, count: u32, body: Body) -> Self {
        Self { job, first, count, attempt: 0, submitted: 0, past: None, body }
    }

    /// The job's numbers for its items.
    fn items(&self) -> Range<u64> {
        self.first..self.first + u64::from(self.count)
    }

    /// The items from `begin` on.
    fn rest(&self, begin: u32) -> Self {
        Self {
            job: self.job.clone(),
            first: self.first + u64::from(begin),
            count: self.count - begin,
            attempt: self.attempt,
            submitted: self.submitted,
            past: self.past.clone(),
            body: self.body.skip(begin),
        }
    }

    fn probe(&self) -> Option<Mark> {
        self.past.as_ref()?.probe
    }

    /// Parts it behind `count` items.
    fn split(self, count: u32) -> (Self, Option<Self>) {
        if count >= self.count {
            return (self, None);
        }
        let rest = self.rest(count);
        let head = Self { count, body: self.body.take(count), ..self };
        (head, Some(rest))
    }
}

impl<J: Ticket> Run<J> {
    /// What its worker is told of it.
    pub(super) fn head(&self, seq: u32) -> RunHead {
        let Spec { id, timeout, memory_limit, progress, .. } = self.job.spec();
        // Zero says that there is no limit.
        let timeout = timeout.map(|timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1));
        RunHead {
            seq,
            count: self.count,
            job: *id,
            first: self.first,
            attempt: self.attempt,
            timeout: timeout.unwrap_or(0),
            memory_limit: memory_limit.map_or(0, |limit| limit.max(1)),
            reports: progress.is_some(),
        }
    }
}

/// What became of handing a run over.
#[derive(Debug)]
pub(super) enum Sent {
    Yes,
    /// Not now: when the worker has taken something there may be room.
    NoRoom,
    /// Not ever.
    Impossible(NotStarted),
    Corrupt,
}

/// The way to a worker that is there.
pub(super) trait Lane<J> {
    type Bell;
    fn send(&mut self, seq: u32, run: &Run<J>) -> Sent;
    /// Lets the worker begin no more of a run, and says how many items it had begun.
    fn withdraw(&self, seq: u32) -> u32;
    /// How many items of a run it has begun.
    fn begun(&self, seq: u32) -> u32;
    /// When it began the item that it began last, if that was of a run with a timeout.
    fn began_at(&self) -> u64;
    /// How much memory it held when it began the item that it began last, if that has a limit.
    fn began_with(&self) -> u64;
    /// Tells it to end; false if that cannot be said now.
    fn stop(&mut self) -> bool;
    /// Kills it and all that it has started.
    fn kill(&self);
    /// The bell to ring, if it sleeps.
    fn bell(&self) -> Option<Self::Bell>;
    /// Of a worker that has a process of its own.
    fn pid(&self) -> Option<i32>;
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub(super) struct Death {
    pub(super) exit: crate::ExitStatus,
    pub(super) stderr_tail: String,
    /// It was refused memory.
    pub(super) out_of_memory: bool,
}

/// How much memory a worker holds is to be found out, for an item that it runs.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) worker: WorkerId,
    pub(super) tag: Tag,
    /// Below so many bytes no exact figure is needed.
    pub(super) enough: u64,
}

/// Replies of one run, for its job: those within `frames` of what was drained.
#[derive(Debug)]
pub(super) struct Delivery<J> {
    pub(super) job: J,
    pub(super) base: u64,
    pub(super) frames: Range<usize>,
    pub(super) what: Delivered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    Answers,
    /// One answer, too large to be decoded on the spot.
    LargeAnswer,
    /// What an item reports while it runs.
    Progress,
}

/// Items that nobody will run any more.
#[derive(Debug)]
pub(super) struct Lost<J> {
    pub(super) job: J,
    pub(super) items: Range<u64>,
    pub(super) error: TaskError,
}

/// What the driver must do.
#[derive(Debug)]
pub(super) struct Effects<J, B> {
    pub(super) deliveries: Vec<Delivery<J>>,
    pub(super) lost: Vec<Lost<J>>,
    pub(super) bells: Vec<B>,
    /// Jobs that nothing here refers to any more. The last reference to one drops its caller's
    /// results, which must not happen under the lock.
    pub(super) retired: Vec<J>,
    /// The driver has something to look after: a start, a stop, a deadline.
    pub(super) attention: bool,
}

impl<J, B> Default for Effects<J, B> {
    fn default() -> Self {
        Self {
            deliveries: Vec::new(),
            lost: Vec::new(),
            bells: Vec::new(),
            retired: Vec::new(),
            attention: false,
        }
    }
}

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
/// How soon a run that found no room is tried again, if no reply comes before.
const RETRY: u64 = 10_000_000;

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

    /// Hands pending runs to workers as far as these want them.
    fn dispatch(&mut self, now: u64) {
        if !self.queue.is_empty() && now.saturating_sub(self.charged) >= LOOK {
            self.charge(now);
        }
        while !self.queue.is_empty() {
            let room = self.has_room();
            let takers = self.workers.iter().enumerate().filter(|(_, worker)| {
                worker.wants_more(now) && (room || worker.unanswered() > 0) && self.queue.has_for(worker.id)
            });
            let Some((index, worker)) = takers.min_by_key(|(_, worker)| worker.unanswered()) else { break };
            // Items that take long are handed out one by one, whatever the chunk.
            let most = worker.wanted().min(u64::from(worker.may_take()));
            let Some(run) = self.queue.take(worker.id, most as u32) else { break };
            let Some(run) = self.vet(worker.id, run, now) else { continue };
            let worker = &mut self.workers[index];
            match worker.send(run, now) {
                None => {
                    self.effects.bells.extend(worker.lane.as_ref().and_then(Lane::bell));
                    // Its replacement can start while it does its last items.
                    self.effects.attention |= !worker.is_kept();
                }
                Some((run, Sent::Impossible(why))) => {
                    self.queue.done(worker.id, &run.job.spec().class, u64::from(run.count));
                    self.lose(run, why);
                }
                Some((run, _)) => {
                    self.retry_at.get_or_insert(now + RETRY);
                    self.queue.give_back(worker.id, run);
                }
            }
        }
    }

    /// The part of a run that may go now, if the quarantine leaves anything of it.
    fn vet(&mut self, worker: WorkerId, run: Run<J>, now: u64) -> Option<Run<J>> {
        let Some(quarantine) = self.quarantine.as_mut().filter(|_| run.probe().is_none()) else {
            return Some(run);
        };
        if !quarantine.is_alert(now) {
            return Some(run);
        }
        let mut marks = quarantine.marks(&run).zip(0..);
        let bad = marks.find(|(mark, _)| quarantine.is_quarantined(*mark));
        drop(marks);
        let Some((mark, good)) = bad else { return Some(run) };
        // What stands before it goes first.
        let (mut run, rest) = run.split(good.max(1));
        if let Some(rest) = rest {
            self.queue.give_back(worker, rest);
        }
        if good > 0 {
            return Some(run);
        }
        match quarantine.judge(mark, now) {
            Verdict::Probe => {
                run.past.get_or_insert_default().probe = Some(mark);
                Some(run)
            }
            Verdict::Refuse { deaths } => {
                self.queue.done(worker, &run.job.spec().class, 1);
                self.lose(run, NotStarted::Quarantined { deaths });
                None
            }
        }
    }

    /// Charges the time that is passing: long items count while they run.
    fn charge(&mut self, now: u64) {
        self.charged = now;
        for worker in &mut self.workers {
            let time = worker.bill(now);
            if let Some(class) = worker.class() {
                self.queue.charge(class, time, worker.running_for(now));
            }
        }
    }

    /// Gives idle workers what others hold and have not begun.
    fn balance(&mut self, now: u64) {
        while self.has_room() {
            let queue = &self.queue;
            let mut workers = self.workers.iter();
            let idle = workers.find(|worker| worker.wants_more(now) && worker.unanswered() == 0);
            let Some(idle) = idle.map(|worker| worker.id).filter(|idle| !queue.has_for(*idle)) else { break };
            let loaded = self.workers.iter_mut().filter(|worker| {
                let may_take = |run: &Run<J>| queue.may_take(idle, &run.job.spec().class);
                worker.is_worth_robbing(now) && worker.last().is_some_and(may_take)
            });
            let Some(victim) = loaded.max_by_key(|worker| worker.unanswered()) else { break };
            let Some(run) = victim.take_back_last() else { break };
            // Half of it will find its way back, as the victim is then the least busy.
            let half = run.count.div_ceil(2);
            let (goes, stays) = run.split(half);
            for run in stays.into_iter().chain([goes]) {
                self.queue.give_back(victim.id, run);
            }
            self.dispatch(now);
        }
    }

    // What workers do.

    /// The process of a worker runs: from now on it can be killed.
    pub(super) fn started(&mut self, id: WorkerId, lane: L) {
        let too_late = self.wants_end();
        let Some(worker) = self.find(id) else { return };
        worker.lane = Some(lane);
        if worker.state == State::Starting && !too_late {
            worker.state = State::Warming;
        } else {
            // Nobody wants it any more.
            worker.dismissed = true;
            worker.kill();
        }
    }

    /// Takes what a worker has published, as [frames]. After an error the worker must go.
    pub(super) fn replies(&mut self, id: WorkerId, bytes: &[u8], now: u64) -> Result<(), Corrupt> {
        let Some(index) = self.workers.iter().position(|worker| worker.id == id) else { return Ok(()) };
        if self.phase == Phase::Terminated {
            // Its items were told of already.
            return Ok(());
        }
        let result = self.read_replies(index, bytes, now);
        self.settle(index, now);
        if self.workers[index].state == State::Retiring {
            self.retire(index, now);
        }
        self.retry_at = None;
        self.dispatch(now);
        self.balance(now);
        self.wind_down(now);
        result
    }

    /// Closes the accounts of what a worker has answered.
    fn settle(&mut self, index: usize, now: u64) {
        let worker = &mut self.workers[index];
        worker.tally_front();
        let answered = worker.tally.iter().map(|tally| tally.items).sum();
        let Some(each) = worker.learn(answered, now) else { return };
        self.starts.bore_fruit();
        let time = worker.bill(now) / answered;
        self.counts.ran(each, answered);
        for same in worker.tally.chunk_by(|one, next| one.class == next.class) {
            same.iter().for_each(|tally| self.counts.waited(tally.waited, tally.items));
            let items = same.iter().map(|tally| tally.items).sum();
            self.queue.answered(worker.id, &same[0].class, items, each, time * items);
        }
        worker.tally.clear();
    }

    fn read_replies(&mut self, index: usize, bytes: &[u8], now: u64) -> Result<(), Corrupt> {
        let worker = &mut self.workers[index];
        let mut all = frames(bytes);
        let mut start = 0;
        // The run whose replies the last delivery holds, if more of them can join.
        let mut open = None;
        while let Some(frame) = all.next() {
            let reply = Reply::parse(frame?)?;
            let end = bytes.len() - all.rest();
            match reply.kind {
                // Nothing that is called gives several values.
                Kind::Value | Kind::Failed | Kind::Panicked if !reply.is_last() => return Err(Corrupt),
                Kind::Value | Kind::Failed | Kind::Panicked => {
                    let finished = worker.answered(reply.tag)?;
                    if let Some(mark) = finished.as_ref().and_then(Run::probe) {
                        self.quarantine.as_mut().into_iter().for_each(|quarantine| quarantine.acquit(mark));
                    }
                    self.counts.answered(reply.kind);
                    match self.effects.deliveries.last_mut() {
                        Some(last) if open == Some(reply.tag.seq) && !reply.is_large() => {
                            last.frames.end = end
                        }
                        _ => {
                            let (job, base) = match (finished, worker.runs.front()) {
                                (Some(run), _) => (run.job, run.first),
                                (None, Some(front)) => (front.run.job.clone(), front.run.first),
                                (None, None) => return Err(Corrupt),
                            };
                            let large = reply.is_large();
                            let what = if large { Delivered::LargeAnswer } else { Delivered::Answers };
                            self.effects.deliveries.push(Delivery { job, base, frames: start..end, what });
                            open = (!large).then_some(reply.tag.seq);
                        }
                    }
                }
                Kind::Progress => {
                    let (job, base) = worker.reporting(reply.tag).ok_or(Corrupt)?;
                    let what = Delivered::Progress;
                    self.effects.deliveries.push(Delivery { job, base, frames: start..end, what });
                    open = None;
                }
                Kind::Skipped => self.effects.retired.extend(worker.skipped(reply.tag)?.map(|run| run.job)),
                Kind::Ready if worker.state == State::Warming => {
                    worker.is_ready(now);
                    let time = worker.bill(now);
                    if let Some(payer) = worker.payer.take() {
                        self.queue.charge(&payer, time, 0);
                    }
                    self.starts.succeeded();
                    self.effects.attention = true;
                }
                Kind::Broken if worker.state == State::Warming => {
                    worker.failure = Some(String::from_utf8_lossy(reply.payload).into_owned());
                }
                // It may have been told to end meanwhile.
                Kind::Retire if !worker.is_on_its_way() => {
                    worker.wants_to_retire();
                    // No part of a run's answers, though it may stand between them.
                    open = None;
                }
                Kind::Ready | Kind::Broken | Kind::Retire => return Err(Corrupt),
            }
            start = end;
        }
        Ok(())
    }

    /// A worker broke the protocol: whatever it says from now on cannot be relied upon.
    pub(super) fn kill(&mut self, id: WorkerId) {
        if let Some(worker) = self.find(id) {
            worker.kill();
        }
    }

    /// A worker has ended, and all that it had published was taken.
    pub(super) fn died(&mut self, id: WorkerId, death: &Death, now: u64) {
        let Some(index) = self.workers.iter().position(|worker| worker.id == id) else { return };
        let mut worker = self.workers.remove(index);
        let pid = worker.pid().unwrap_or_default();
        for run in worker.take_back_all().into_iter().rev() {
            self.queue.give_back(id, run);
        }
        let time = worker.bill(now);
        self.counts.ended(&worker, death, worker.dismissed || self.wants_end());
        if worker.current().is_some() {
            self.counts.ran(now.saturating_sub(worker.since), 1);
        }
        // What is left is what it ran.
        if let Some(class) = worker.class().cloned() {
            self.queue.charge(&class, time, worker.running_for(now));
            self.payers.push_back(class);
        }
        let begun = worker.begun();
        let was_of_use = worker.answered_items > 0 || !begun.is_empty();
        for (tag, run) in begun.into_iter().rev() {
            let doomed = worker.doomed.take_if(|(doomed, _)| *doomed == tag);
            let limit = run.job.spec().memory_limit.filter(|_| death.out_of_memory);
            let error = match (doomed, limit) {
                (Some((_, error)), _) => error,
                (None, Some(limit)) => TaskError::MemoryLimit { limit },
                (None, None) => TaskError::WorkerDied(Box::new(WorkerDied {
                    exit: death.exit,
                    stderr_tail: death.stderr_tail.clone(),
                    task: run.job.spec().name.to_owned(),
                    pid,
                })),
            };
            // An abort is no fault of the task.
            let its_own = !matches!(error, TaskError::Aborted { .. });
            let refused =
                its_own && self.quarantine.as_mut().is_some_and(|quarantine| quarantine.killed(&run, now));
            let again = its_own && !refused && run.attempt < run.job.spec().retries;
            if again && self.phase != Phase::Terminated {
                self.counts.retried();
                let past = Some(Box::new(Past { failure: Some(error), probe: None }));
                self.queue.give_back(id, Run { attempt: run.attempt + 1, past, ..run });
            } else {
                self.queue.done(id, &run.job.spec().class, u64::from(run.count));
                self.effects.lost.push(Lost { items: run.items(), job: run.job, error });
            }
        }
        match worker.state {
            State::Starting | State::Warming => {
                let why = worker
                    .failure
                    .take()
                    .unwrap_or_else(|| format!("a worker ended before it was ready: {}", death.exit));
                self.failed(why, now);
            }
            State::Ready if worker.is_kept() && !was_of_use => self.was_barren(now),
            State::Ready | State::Retiring | State::Stopping | State::Killed => self.starts.bore_fruit(),
        }
        self.effects.retired.extend(worker.runs.drain(..).map(|flight| flight.run.job));
        self.dispatch(now);
        self.wind_down(now);
    }

    /// The function that a worker runs, or else has run last.
    pub(super) fn task_of(&self, id: WorkerId) -> Option<&'static str> {
        self.workers.iter().find(|worker| worker.id == id)?.task()
    }

    fn find(&mut self, id: WorkerId) -> Option<&mut Worker<J, L>> {
        self.workers.iter_mut().find(|worker| worker.id == id)
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
        self.retry_at.take_if(|at| *at <= now);
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

    // Ends.

    /// Nobody wants a job's items any more. What was not begun is lost; what runs is killed with
    /// its worker if `kill` says so.
    pub(super) fn abort(&mut self, job: &J, kill: bool, now: u64) {
        let mut unbegun = self.queue.remove(job);
        for worker in &mut self.workers {
            for run in worker.take_back_of(job) {
                self.queue.done(worker.id, &run.job.spec().class, u64::from(run.count));
                unbegun.push(run);
            }
            if kill && worker.begun().iter().any(|(_, run)| run.job.is(job)) {
                for run in worker.take_back_all().into_iter().rev() {
                    self.queue.give_back(worker.id, run);
                }
                // The last that it began is all that it can be running.
                if let Some((tag, _)) = worker.begun().pop().filter(|(_, run)| run.job.is(job)) {
                    worker.doomed = Some((tag, TaskError::Aborted { began: true }));
                    worker.kill();
                }
            }
        }
        for run in unbegun {
            match kill {
                false => self.lose(run, NotStarted::Withdrawn),
                true => {
                    let error = TaskError::Aborted { began: run.attempt > 0 };
                    self.effects.lost.push(Lost { items: run.items(), job: run.job, error });
                }
            }
        }
        self.dispatch(now);
        self.wind_down(now);
    }

    /// Takes no new jobs from now on.
    pub(super) fn close(&mut self, now: u64) {
        self.phase = self.phase.max(Phase::Closed);
        self.wind_down(now);
    }

    /// Ends everything: all that is not answered is lost, all workers are killed.
    pub(super) fn terminate(&mut self) {
        self.phase = Phase::Terminated;
        for run in self.queue.drain() {
            self.lose(run, NotStarted::Closed);
        }
        for index in 0..self.workers.len() {
            for run in self.workers[index].take_back_all() {
                self.lose(run, NotStarted::Closed);
            }
            let worker = &mut self.workers[index];
            for (_, run) in worker.begun() {
                let error = TaskError::Aborted { began: true };
                self.effects.lost.push(Lost { items: run.items(), job: run.job, error });
            }
            self.effects.retired.extend(worker.runs.drain(..).map(|flight| flight.run.job));
            worker.kill();
        }
        self.effects.attention = true;
    }

    /// Ends everything when nobody will see the workers' ends, and gives what is held of them, to
    /// be dropped without the lock.
    pub(super) fn abandon(&mut self) -> Vec<L> {
        self.terminate();
        std::mem::take(&mut self.workers).into_iter().filter_map(|worker| worker.lane).collect()
    }

    /// Whether there is nothing to do and never will be.
    pub(super) fn wants_end(&self) -> bool {
        match self.phase {
            Phase::Running => false,
            Phase::Closed => self.open_jobs == 0 && !self.has_unfinished(),
            Phase::Terminated => true,
        }
    }

    /// Sends the workers home once there is nothing left for them to do.
    fn wind_down(&mut self, now: u64) {
        if self.wants_end() {
            for worker in &mut self.workers {
                worker.stop(now);
                self.effects.bells.extend(worker.lane.as_ref().and_then(Lane::bell));
            }
            self.effects.attention = true;
        }
    }
}

#[cfg(test)]
mod tests;
