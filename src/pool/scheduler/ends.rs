//! How jobs, workers and the pool end.

use super::run::Past;
use super::{Death, Lane, Lost, Phase, Run, Scheduler, Ticket, WorkerId};
use crate::error::{NotStarted, TaskError, WorkerDied};

impl<J: Ticket, L: Lane<J>> Scheduler<J, L> {
    /// A worker has ended, and all that it had published was taken.
    pub(in crate::pool) fn died(&mut self, id: WorkerId, death: &Death, now: u64) {
        let Some(index) = self.workers.iter().position(|worker| worker.id == id) else { return };
        let mut worker = self.workers.remove(index);
        let pid = worker.pid().unwrap_or_default();
        for run in worker.take_back_all().into_iter().rev() {
            self.queue.give_back(id, run);
        }
        let time = worker.bill(now);
        let unwanted = worker.dismissed || self.wants_end();
        self.counts.ended(&worker, death, unwanted);
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
        if worker.was_ready {
            match worker.is_kept() && !was_of_use {
                true => self.was_barren(now),
                false => self.starts.bore_fruit(),
            }
        } else if !unwanted {
            let unsaid = || format!("a worker ended before it was ready: {}", death.exit);
            let why = worker.failure.take().unwrap_or_else(unsaid);
            self.failed(why, now);
        }
        self.effects.retired.extend(worker.runs.drain(..).map(|flight| flight.run.job));
        self.dispatch(now);
        self.wind_down(now);
    }

    /// Nobody wants a job's items any more. What was not begun is lost; what runs is killed with
    /// its worker if `kill` says so.
    pub(in crate::pool) fn abort(&mut self, job: &J, kill: bool, now: u64) {
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
    pub(in crate::pool) fn close(&mut self, now: u64) {
        self.phase = self.phase.max(Phase::Closed);
        self.wind_down(now);
    }

    /// Ends everything: all that is not answered is lost, all workers are killed.
    pub(in crate::pool) fn terminate(&mut self) {
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
    pub(in crate::pool) fn abandon(&mut self) -> Vec<L> {
        self.terminate();
        std::mem::take(&mut self.workers).into_iter().filter_map(|worker| worker.lane).collect()
    }

    /// Whether there is nothing to do and never will be.
    pub(in crate::pool) fn wants_end(&self) -> bool {
        match self.phase {
            Phase::Running => false,
            Phase::Closed => self.open_jobs == 0 && !self.has_unfinished(),
            Phase::Terminated => true,
        }
    }

    /// Sends the workers home once there is nothing left for them to do.
    pub(super) fn wind_down(&mut self, now: u64) {
        if self.wants_end() {
            for worker in &mut self.workers {
                worker.stop(now);
                self.effects.bells.extend(worker.lane.as_ref().and_then(Lane::bell));
            }
            self.effects.attention = true;
        }
    }
}
