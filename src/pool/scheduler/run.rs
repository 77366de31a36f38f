//! What is handed to workers: runs, which are consecutive items of a job.

use std::ops::Range;
use std::time::Duration;

use super::Class;
use super::quarantine::Mark;
use crate::error::TaskError;
use crate::function::FnId;
use crate::pool::call::OnProgress;
use crate::pool::wire::{Body, RunHead};

/// What all runs of a job have in common.
#[derive(Clone, Debug)]
pub(in crate::pool) struct Spec {
    /// The job's number, unique in its pool; 0 is the initializer's.
    pub(in crate::pool) id: u64,
    /// How workers find the function, or why they cannot.
    pub(in crate::pool) function: Result<FnId, String>,
    /// The function's name, for people.
    pub(in crate::pool) name: &'static str,
    pub(in crate::pool) timeout: Option<Duration>,
    /// How much more memory each item may take, in bytes.
    pub(in crate::pool) memory_limit: Option<u64>,
    /// How often an item is tried again after its worker died.
    pub(in crate::pool) retries: u32,
    pub(in crate::pool) class: Class,
    /// Who hears what its items report while they run.
    pub(in crate::pool) progress: Option<OnProgress>,
}

/// Who wants the answers.
pub(in crate::pool) trait Ticket: Clone {
    fn spec(&self) -> &Spec;
    fn is(&self, other: &Self) -> bool;
    /// Whether all of it is one item: who has found its run need look no further.
    fn is_single(&self) -> bool;
}

/// Consecutive items of a job, for one worker.
#[derive(Clone, Debug)]
pub(in crate::pool) struct Run<J> {
    pub(in crate::pool) job: J,
    /// The job's number for the first item.
    pub(in crate::pool) first: u64,
    pub(in crate::pool) count: u32,
    /// How often it was begun before; over zero only for runs of one item.
    pub(in crate::pool) attempt: u32,
    /// When it came to the queue.
    pub(super) submitted: u64,
    /// What few runs have.
    pub(super) past: Option<Box<Past>>,
    pub(in crate::pool) body: Body,
}

/// What came before of a run of one item.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    /// How the last attempt ended.
    pub(super) failure: Option<TaskError>,
    /// It was let out of quarantine to see how it ends.
    pub(super) probe: Option<Mark>,
}

impl<J: Clone> Run<J> {
    pub(in crate::pool) fn new(job: J, first: u64, count: u32, body: Body) -> Self {
        Self { job, first, count, attempt: 0, submitted: 0, past: None, body }
    }

    /// The job's numbers for its items.
    pub(super) fn items(&self) -> Range<u64> {
        self.first..self.first + u64::from(self.count)
    }

    /// The items from `begin` on.
    pub(super) fn rest(&self, begin: u32) -> Self {
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

    pub(super) fn probe(&self) -> Option<Mark> {
        self.past.as_ref()?.probe
    }

    /// Parts it behind `count` items.
    pub(super) fn split(self, count: u32) -> (Self, Option<Self>) {
        if count >= self.count {
            return (self, None);
        }
        let rest = self.rest(count);
        let head = Self { count, body: self.body.take(count), ..self };
        (head, Some(rest))
    }

    /// One of its items.
    pub(super) fn single(&self, index: u32) -> Self {
        let rest = self.rest(index);
        rest.split(1).0
    }
}

impl<J: Ticket> Run<J> {
    /// What its worker is told of it.
    pub(in crate::pool) fn head(&self, seq: u32) -> RunHead {
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
            memory_limit: memory_limit.unwrap_or(0),
            reports: progress.is_some(),
        }
    }
}
