//! What workers say.

use super::worker::{State, after};
use super::{Delivered, Delivery, Lane, Phase, Run, Scheduler, Ticket, WorkerId};
use crate::pool::wire::{Kind, Reply};
use crate::ring::Corrupt;
use crate::ring::single::frames;

impl<J: Ticket, L: Lane<J>> Scheduler<J, L> {
    /// The process of a worker runs: from now on it can be killed.
    pub(in crate::pool) fn started(&mut self, id: WorkerId, lane: L, now: u64) {
        let too_late = self.wants_end();
        let ready_by = self.starts.timeout.map(|timeout| after(now, timeout));
        let Some(worker) = self.find(id) else { return };
        worker.lane = Some(lane);
        worker.ready_by = ready_by;
        if worker.state == State::Starting && !too_late {
            worker.state = State::Warming;
        } else {
            // Nobody wants it any more.
            worker.dismissed = true;
            worker.kill();
        }
    }

    /// Takes what a worker has published, as [frames]. After an error the worker must go.
    pub(in crate::pool) fn replies(&mut self, id: WorkerId, bytes: &[u8], now: u64) -> Result<(), Corrupt> {
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
    pub(in crate::pool) fn kill(&mut self, id: WorkerId) {
        if let Some(worker) = self.find(id) {
            worker.kill();
        }
    }
}
