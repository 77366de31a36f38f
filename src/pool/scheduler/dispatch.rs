//! Which run goes to which worker, and what comes back from workers for others.

use super::quarantine::Verdict;
use super::{LOOK, Lane, Run, Scheduler, Sent, Ticket, WorkerId};
use crate::error::NotStarted;

/// How soon a run that found no room is tried again, if no reply comes before.
const RETRY: u64 = 10_000_000;

impl<J: Ticket, L: Lane<J>> Scheduler<J, L> {
    /// Hands pending runs to workers as far as these want them.
    pub(super) fn dispatch(&mut self, now: u64) {
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
    pub(super) fn balance(&mut self, now: u64) {
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

    /// Has a worker be replaced, if it is wanted, and end when it has answered what it runs.
    pub(super) fn retire(&mut self, index: usize, now: u64) {
        let rest = self.workers[index].retire(now);
        self.give_back(index, rest);
        self.effects.bells.extend(self.workers[index].lane.as_ref().and_then(Lane::bell));
        // Its replacement can start at once.
        self.effects.attention = true;
    }

    /// Queues, before others, what a worker was given and has not begun.
    pub(super) fn give_back(&mut self, index: usize, runs: Vec<Run<J>>) {
        for run in runs.into_iter().rev() {
            self.queue.give_back(self.workers[index].id, run);
        }
    }
}
