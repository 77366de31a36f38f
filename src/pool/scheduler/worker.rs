//! One worker as the scheduler sees it: what it was given, and how far it has come.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Class, IN_FLIGHT, LOOK, Lane, Run, Sample, Sent, Ticket, WorkerId};
use crate::error::TaskError;
use crate::pool::channel::SLOTS;
use crate::pool::wire::Tag;
use crate::ring::Corrupt;

/// After so long it is looked whether the only item of a worker was begun: if not, it is stopped, or
/// the machine has no time for it, and another may take the item.
const STALL: u64 = 100_000_000;
/// How long a worker that has been told to end, or has done its number of tasks, has for that; and
/// how long one that begins nothing has to show life.
const GRACE: Duration = Duration::from_secs(5);
/// How long it is at most until the next look at the memory of an item with a limit.
const SAMPLE_EVERY: u64 = 10_000_000;
/// Less work than this is not worth taking from a worker.
const WORTH_ROBBING: u64 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its process is being started.
    Starting,
    /// Its process is there and initializes.
    Warming,
    Ready,
    /// It has asked to be replaced, and is told to end when it has answered what it runs.
    Retiring,
    /// It was told to end.
    Stopping,
    Killed,
}

/// A run that a worker was given and has not done with.
#[derive(Debug)]
pub(super) struct InFlight<J> {
    seq: u32,
    pub(super) run: Run<J>,
    answered: u32,
    /// How long it had waited for its worker.
    waited: u64,
    /// How many of these answers are in its worker's tally or went into an earlier one.
    tallied: u32,
    /// The worker begins no item from here on: the run's length, or less if it was withdrawn.
    limit: u32,
    withdrawn: bool,
}

impl<J: Ticket> InFlight<J> {
    /// The answers that were in no tally yet.
    fn tally(&mut self) -> Option<Tally> {
        let answers = self.answered - std::mem::replace(&mut self.tallied, self.answered);
        (answers > 0).then(|| Tally {
            class: self.run.job.spec().class.clone(),
            items: u64::from(answers),
            waited: self.waited,
        })
    }
}

/// Answers to items of one run.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) class: Class,
    pub(super) items: u64,
    pub(super) waited: u64,
}

#[derive(Debug)]
pub(super) struct Worker<J, L> {
    pub(super) id: WorkerId,
    pub(super) state: State,
    /// The way to it, once its process is there.
    pub(super) lane: Option<L>,
    /// In the order in which it runs them. Its replies come in this order.
    pub(super) runs: VecDeque<InFlight<J>>,
    /// What was answered since the accounts were settled.
    pub(super) tally: Vec<Tally>,
    /// Up to when its time was charged to who uses it.
    billed: u64,
    /// As long as it is not ready, its time is charged to who made it necessary.
    pub(super) payer: Option<Class>,
    next_seq: u32,
    /// How many items more it may be given, if that is limited.
    budget: Option<u32>,
    unanswered: u64,
    /// It was seen to run its only item.
    looked: bool,
    /// All that it held was taken back, as it had begun nothing of it: it gets no more before it
    /// shows life.
    silent: bool,
    /// It had no room for a run; a reply or mere time may change that.
    full: bool,
    /// How long it takes for an item, on average, in nanoseconds.
    item_time: Option<u64>,
    /// When it last answered, or else was given something to do.
    pub(super) since: u64,
    /// When the running item is overdue, if that is known better than by `since`.
    deadline: Option<u64>,
    /// The item whose deadline was put off: once is all that a late beginning can ask for.
    put_off: Option<Tag>,
    /// When to look how much memory the running item takes, if that is known better than by `since`.
    sample_at: Option<u64>,
    /// Somebody is looking.
    sampling: bool,
    /// What its last run was that it has answered whole.
    last_task: Option<&'static str>,
    /// How many items it has answered.
    pub(super) answered_items: u64,
    /// The pool does without it.
    pub(super) dismissed: bool,
    /// The item that it was killed for, and what that gets.
    pub(super) doomed: Option<(Tag, TaskError)>,
    /// When it must be ready, once its process runs.
    pub(super) ready_by: Option<u64>,
    /// It has been ready.
    pub(super) was_ready: bool,
    /// Why it did not become ready: what it said of its initializer, or that it took too long.
    pub(super) failure: Option<String>,
}

impl<J: Ticket, L: Lane<J>> Worker<J, L> {
    pub(super) fn new(id: WorkerId, budget: Option<u32>, payer: Option<Class>, now: u64) -> Self {
        Self {
            id,
            state: State::Starting,
            lane: None,
            runs: VecDeque::new(),
            tally: Vec::new(),
            billed: now,
            payer,
            next_seq: 0,
            budget,
            unanswered: 0,
            looked: false,
            silent: false,
            full: false,
            item_time: None,
            since: 0,
            deadline: None,
            put_off: None,
            sample_at: None,
            sampling: false,
            last_task: None,
            answered_items: 0,
            dismissed: false,
            doomed: None,
            ready_by: None,
            was_ready: false,
            failure: None,
        }
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.lane.as_ref().and_then(Lane::pid)
    }

    /// Items that it was given, may begin or has begun, and has not answered.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// How many items more it may be given.
    pub(super) fn may_take(&self) -> u32 {
        self.budget.unwrap_or(u32::MAX)
    }

    /// Whether it counts: one that goes or will go soon is replaced.
    pub(super) fn is_kept(&self) -> bool {
        matches!(self.state, State::Starting | State::Warming | State::Ready) && self.may_take() > 0
    }

    /// How many items it is good to have with it: one, as long as nothing says that they are quick.
    pub(super) fn wanted(&self) -> u64 {
        match (self.state, self.item_time) {
            (State::Ready, Some(time)) => (IN_FLIGHT / time.max(10)).max(1),
            (State::Ready, None) => 1,
            _ => 0,
        }
    }

    pub(super) fn wants_more(&self, now: u64) -> bool {
        self.state == State::Ready
            && self.may_take() > 0
            && !self.full
            && !self.silent
            && self.runs.len() < SLOTS
            && self.unanswered < self.wanted()
            && !self.is_stuck(now)
    }

    /// Whether what it runs takes so long that nothing should wait behind it.
    fn is_stuck(&self, now: u64) -> bool {
        self.unanswered > 0 && now.saturating_sub(self.since) >= LOOK
    }

    /// When to look whether it is stuck with more than it runs, has answers that it did not ring
    /// for, or runs nothing at all.
    pub(super) fn look_at(&self) -> Option<u64> {
        match self.unanswered {
            _ if self.state != State::Ready => None,
            0 => None,
            1 => (!self.looked).then_some(self.since + STALL),
            _ => Some(self.since + LOOK),
        }
    }

    /// Takes back what waits behind a long item, or for a worker that does not run.
    pub(super) fn relieve(&mut self, now: u64) -> Vec<Run<J>> {
        if self.look_at().is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.looked = self.unanswered == 1;
        if self.looked && !self.begun().is_empty() {
            return Vec::new();
        }
        let rest = self.take_back_all();
        if self.unanswered == 0 {
            self.silent = true;
            self.since = now;
        }
        rest
    }

    /// What it had no room for may be tried again.
    pub(super) fn may_have_room(&mut self) {
        self.full = false;
    }

    /// It says that it takes runs.
    pub(super) fn is_ready(&mut self, now: u64) {
        self.state = State::Ready;
        self.was_ready = true;
        self.since = now;
    }

    /// Whether it can be expected to run something.
    pub(super) fn serves(&self) -> bool {
        self.state == State::Ready && self.may_take() > 0 && !self.silent
    }

    /// Since when it could run something and has nothing to.
    pub(super) fn idle_since(&self) -> Option<u64> {
        (self.state == State::Ready && self.unanswered == 0).then_some(self.since)
    }

    /// Whether a task keeps it busy. What a killed one ran is as good as ended.
    pub(super) fn runs_something(&self) -> bool {
        self.unanswered > 0 && self.state != State::Killed
    }

    /// Whether it is being started, or initializes.
    pub(super) fn is_on_its_way(&self) -> bool {
        matches!(self.state, State::Starting | State::Warming)
    }

    /// Since when it should end, or show life, and has nothing to do before.
    fn ends_since(&self) -> Option<u64> {
        let is_of_no_use = self.may_take() == 0 || self.silent;
        let ends = self.state == State::Stopping || self.state == State::Ready && is_of_no_use;
        (ends && self.unanswered == 0 && self.lane.is_some()).then_some(self.since)
    }

    /// Hands it a run, or gives the run back and says why.
    pub(super) fn send(&mut self, run: Run<J>, now: u64) -> Option<(Run<J>, Sent)> {
        let Some(lane) = &mut self.lane else { return Some((run, Sent::NoRoom)) };
        match lane.send(self.next_seq, &run) {
            Sent::Yes => {}
            sent => {
                match sent {
                    Sent::Corrupt => self.kill(),
                    _ => self.full = matches!(sent, Sent::NoRoom),
                }
                return Some((run, sent));
            }
        }
        if self.unanswered == 0 {
            self.since = now;
            self.billed = now;
            self.looked = false;
        }
        self.unanswered += u64::from(run.count);
        self.budget = self.budget.map(|budget| budget - run.count);
        let (seq, limit) = (self.next_seq, run.count);
        let waited = now.saturating_sub(run.submitted);
        self.runs.push_back(InFlight { seq, run, answered: 0, waited, tallied: 0, limit, withdrawn: false });
        self.next_seq = seq.wrapping_add(1);
        None
    }

    /// Notes an answer, and gives the run if it was its last.
    #[inline]
    pub(super) fn answered(&mut self, tag: Tag) -> Result<Option<Run<J>>, Corrupt> {
        let front = self.runs.front_mut().ok_or(Corrupt)?;
        if front.seq != tag.seq || front.answered != tag.index || front.answered >= front.limit {
            return Err(Corrupt);
        }
        front.answered += 1;
        self.unanswered = self.unanswered.saturating_sub(1);
        self.answered_items += 1;
        self.silent = false;
        if front.answered < front.run.count {
            return Ok(None);
        }
        Ok(self.finished())
    }

    /// Notes that its first run is over.
    fn finished(&mut self) -> Option<Run<J>> {
        let mut done = self.runs.pop_front()?;
        self.tally.extend(done.tally());
        self.last_task = Some(done.run.job.spec().name);
        Some(done.run)
    }

    /// Counts the answers of the run that it is at, which are not all.
    pub(super) fn tally_front(&mut self) {
        self.tally.extend(self.runs.front_mut().and_then(InFlight::tally));
    }

    /// The job of the item that reports, and that job's number for the run's first item.
    pub(super) fn reporting(&self, tag: Tag) -> Option<(J, u64)> {
        let front = self.runs.front()?;
        let runs = front.seq == tag.seq && front.answered == tag.index && front.answered < front.limit;
        runs.then(|| (front.run.job.clone(), front.run.first))
    }

    /// Notes that it has passed over the withdrawn rest of a run, and gives that run.
    pub(super) fn skipped(&mut self, tag: Tag) -> Result<Option<Run<J>>, Corrupt> {
        let passed =
            |front: &InFlight<J>| front.seq == tag.seq && front.withdrawn && front.answered == front.limit;
        let Some(front) = self.runs.front_mut().filter(|front| passed(front)) else { return Err(Corrupt) };
        self.tally.extend(front.tally());
        self.silent = false;
        Ok(self.runs.pop_front().map(|done| done.run))
    }

    /// The time since this was last asked for.
    pub(super) fn bill(&mut self, now: u64) -> u64 {
        now.saturating_sub(std::mem::replace(&mut self.billed, now))
    }

    /// How long it has been at an item, as far as that can be seen.
    pub(super) fn running_for(&self, now: u64) -> u64 {
        if self.unanswered > 0 { now.saturating_sub(self.since) } else { 0 }
    }

    /// Whose time passes: that of what it runs, or of who has it started.
    pub(super) fn class(&self) -> Option<&Class> {
        self.payer.as_ref().or_else(|| self.current().map(|flight| &flight.run.job.spec().class))
    }

    /// Learns from replies how long its items take, and says how long these took.
    pub(super) fn learn(&mut self, answered: u64, now: u64) -> Option<u64> {
        self.full = false;
        let time = now.saturating_sub(self.since).checked_div(answered)?;
        self.item_time = Some(self.item_time.map_or(time, |known| (3 * known + time) / 4));
        self.since = now;
        self.looked = false;
        self.deadline = None;
        self.sample_at = None;
        Some(time)
    }

    /// Whether it holds so much that an idle worker should have some of it.
    pub(super) fn is_worth_robbing(&self, now: u64) -> bool {
        let work = self.item_time.map(|time| time.saturating_mul(self.unanswered));
        let known_long = now.saturating_sub(self.since) >= WORTH_ROBBING;
        self.state == State::Ready
            && self.unanswered > 1
            && (known_long || work.is_none_or(|work| work >= WORTH_ROBBING))
    }

    /// The run of which [`take_back_last`](Self::take_back_last) takes.
    pub(super) fn last(&self) -> Option<&Run<J>> {
        self.runs.iter().rfind(|flight| !flight.withdrawn).map(|flight| &flight.run)
    }

    /// Takes back of its last run what it has not begun.
    pub(super) fn take_back_last(&mut self) -> Option<Run<J>> {
        (0..self.runs.len())
            .rev()
            .find(|index| !self.runs[*index].withdrawn)
            .and_then(|index| self.take_back(index))
    }

    /// Takes back all that it has not begun.
    pub(super) fn take_back_all(&mut self) -> Vec<Run<J>> {
        (0..self.runs.len()).filter_map(|index| self.take_back(index)).collect()
    }

    /// Takes back what it has not begun of a job.
    pub(super) fn take_back_of(&mut self, job: &J) -> Vec<Run<J>> {
        (0..self.runs.len())
            .filter_map(|index| if self.runs[index].run.job.is(job) { self.take_back(index) } else { None })
            .collect()
    }

    fn take_back(&mut self, index: usize) -> Option<Run<J>> {
        let flight = &mut self.runs[index];
        if flight.withdrawn {
            return None;
        }
        // Withdrawing twice would count the worker's own discovery of it as an item.
        flight.withdrawn = true;
        flight.limit = self.lane.as_ref()?.withdraw(flight.seq).clamp(flight.answered, flight.run.count);
        let rest = flight.run.count - flight.limit;
        self.unanswered = self.unanswered.saturating_sub(u64::from(rest));
        self.budget = self.budget.map(|budget| budget + rest);
        (rest > 0).then(|| flight.run.rest(flight.limit))
    }

    /// The items that it has begun and not answered; what it runs is the last of them. Others
    /// are answered, and the answers were not taken yet.
    pub(super) fn begun(&self) -> Vec<(Tag, Run<J>)> {
        let mut begun = Vec::new();
        for flight in &self.runs {
            let limit = match (&self.lane, flight.withdrawn) {
                (Some(lane), false) => lane.begun(flight.seq).clamp(flight.answered, flight.run.count),
                _ => flight.limit,
            };
            begun.extend(
                (flight.answered..limit)
                    .map(|index| (Tag { seq: flight.seq, index }, flight.run.single(index))),
            );
        }
        begun
    }

    /// The function that it runs, or else has run last.
    pub(super) fn task(&self) -> Option<&'static str> {
        let begun = self.current().filter(|flight| {
            flight.withdrawn || self.lane.as_ref().is_some_and(|lane| lane.begun(flight.seq) > 0)
        });
        begun.map(|flight| flight.run.job.spec().name).or(self.last_task)
    }

    /// The first run that is not done with.
    pub(super) fn current(&self) -> Option<&InFlight<J>> {
        self.runs.iter().find(|flight| flight.answered < flight.limit)
    }

    /// When to look whether it takes too long for what it runs, to be ready, or to end.
    pub(super) fn deadline(&self) -> Option<u64> {
        if self.state == State::Killed {
            return None;
        }
        if self.state == State::Warming {
            return self.ready_by;
        }
        if let Some(since) = self.ends_since() {
            return Some(after(since, GRACE));
        }
        let timeout = self.current()?.run.job.spec().timeout?;
        self.deadline.or(Some(after(self.since, timeout)))
    }

    /// Looks at what it runs when the time for that may be over. If it is, the worker is killed;
    /// gives what others must run then.
    pub(super) fn overdue(&mut self, now: u64) -> Vec<Run<J>> {
        if self.state == State::Warming {
            self.failure = Some("a worker was not ready within the `start_timeout`".to_owned());
            self.kill();
            return Vec::new();
        }
        if self.ends_since().is_some() {
            self.kill();
            return Vec::new();
        }
        let (Some(lane), Some(current)) = (&self.lane, self.current()) else { return Vec::new() };
        let Some(timeout) = current.run.job.spec().timeout else { return Vec::new() };
        let tag = Tag { seq: current.seq, index: current.answered };
        let has_begun = current.withdrawn || lane.begun(current.seq) > current.answered;
        // The worker's word for it: neither is it believed about the future, nor twice.
        let deadline = after(lane.began_at().min(now), timeout);
        if has_begun && deadline > now && self.put_off != Some(tag) {
            // It began later than it could have.
            self.deadline = Some(deadline);
            self.put_off = Some(tag);
            return Vec::new();
        }
        // From here on it cannot begin anything, so what is seen now stays true until the kill.
        let rest = self.take_back_all();
        match self.begun().last() {
            Some((running, _)) if has_begun && *running == tag => {
                self.doomed = Some((tag, TaskError::TimedOut));
                self.kill();
            }
            // It has come further meanwhile.
            Some(_) => {
                self.since = now;
                self.deadline = None;
            }
            // In all this time it has not even begun: it is stopped, or worse.
            None => self.kill(),
        }
        rest
    }

    /// When to look how much memory it holds.
    pub(super) fn sample_at(&self) -> Option<u64> {
        if self.state == State::Killed || self.sampling {
            return None;
        }
        let limit = self.current()?.run.job.spec().memory_limit?;
        Some(self.sample_at.unwrap_or(self.since.saturating_add(sample_interval(limit))))
    }

    /// Has somebody look how much memory it holds, if that is due.
    pub(super) fn sample(&mut self, now: u64) -> Option<Sample> {
        if self.sample_at()? > now {
            return None;
        }
        let (lane, current) = (self.lane.as_ref()?, self.current()?);
        let limit = current.run.job.spec().memory_limit?;
        if !current.withdrawn && lane.begun(current.seq) <= current.answered {
            self.sample_at = Some(now + sample_interval(limit));
            return None;
        }
        let tag = Tag { seq: current.seq, index: current.answered };
        let sample = Sample { worker: self.id, tag, enough: lane.began_with().saturating_add(limit) };
        self.sampling = true;
        Some(sample)
    }

    /// Takes what was found out about an item that it was running. If that holds more than it may,
    /// the worker is killed; gives what others must run then.
    pub(super) fn sampled(&mut self, tag: Tag, held: Option<u64>, now: u64) -> Vec<Run<J>> {
        self.sampling = false;
        let (Some(lane), Some(current)) = (&self.lane, self.current()) else { return Vec::new() };
        let Some(limit) = current.run.job.spec().memory_limit else { return Vec::new() };
        if tag != (Tag { seq: current.seq, index: current.answered }) {
            return Vec::new();
        }
        // Without a descriptor nothing can be seen, and a moment later there may be one.
        let Some(held) = held else {
            self.sample_at = Some(now + SAMPLE_EVERY);
            return Vec::new();
        };
        if let Some(left) = limit.checked_sub(held.saturating_sub(lane.began_with())) {
            self.sample_at = Some(now + sample_interval(left));
            return Vec::new();
        }
        // As with a deadline: nothing else can begin, so what is seen now stays true.
        let rest = self.take_back_all();
        if self.begun().last().is_some_and(|(running, _)| *running == tag) {
            self.doomed = Some((tag, TaskError::MemoryLimit { limit }));
            self.kill();
        }
        rest
    }

    /// Tells it to end, in a friendly way if it listens.
    pub(super) fn stop(&mut self, now: u64) {
        match self.state {
            State::Stopping | State::Killed => {}
            // There is nobody yet, to be told or to be killed.
            State::Starting => self.state = State::Stopping,
            State::Warming => self.kill(),
            State::Ready | State::Retiring => {
                self.state = State::Stopping;
                if self.unanswered == 0 {
                    self.since = now;
                }
                if !self.lane.as_mut().is_some_and(Lane::stop) {
                    self.kill();
                }
            }
        }
    }

    /// It asks to be replaced. It may have been told to end meanwhile.
    pub(super) fn wants_to_retire(&mut self) {
        if self.state == State::Ready {
            self.state = State::Retiring;
        }
    }

    /// Gives what others must run as it is to be replaced, and lets it end as soon as it has
    /// answered the rest.
    pub(super) fn retire(&mut self, now: u64) -> Vec<Run<J>> {
        self.wants_to_retire();
        let rest = self.take_back_all();
        if self.unanswered == 0 {
            self.stop(now);
        }
        rest
    }

    pub(super) fn kill(&mut self) {
        if let Some(lane) = &self.lane {
            self.state = State::Killed;
            lane.kill();
        }
    }
}

/// How long to wait until the next look, with so many bytes left: a process can hardly take four in
/// a nanosecond.
fn sample_interval(left: u64) -> u64 {
    (left / 4).clamp(1_000_000, SAMPLE_EVERY)
}

/// The time after a pause, which may be longer than there is time.
pub(super) fn after(begin: u64, pause: Duration) -> u64 {
    begin.saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX))
}
