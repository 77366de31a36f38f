//! What lies between the scheduler and its driver: the way to a worker, what is said of workers, and
//! what is to be done.

use std::ops::Range;

use super::{Run, WorkerId};
use crate::error::{NotStarted, TaskError};
use crate::pool::wire::Tag;

/// What became of handing a run over.
#[derive(Debug)]
pub(in crate::pool) enum Sent {
    Yes,
    /// Not now: when the worker has taken something there may be room.
    NoRoom,
    /// Not ever.
    Impossible(NotStarted),
    Corrupt,
}

/// The way to a worker that is there.
pub(in crate::pool) trait Lane<J> {
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
pub(in crate::pool) struct Death {
    pub(in crate::pool) exit: crate::ExitStatus,
    pub(in crate::pool) stderr_tail: String,
    /// It was refused memory.
    pub(in crate::pool) out_of_memory: bool,
}

/// How much memory a worker holds is to be found out, for an item that it runs.
#[derive(Debug)]
pub(in crate::pool) struct Sample {
    pub(in crate::pool) worker: WorkerId,
    pub(in crate::pool) tag: Tag,
    /// Below so many bytes no exact figure is needed.
    pub(in crate::pool) enough: u64,
}

/// Replies of one run, for its job: those within `frames` of what was drained.
#[derive(Debug)]
pub(in crate::pool) struct Delivery<J> {
    pub(in crate::pool) job: J,
    pub(in crate::pool) base: u64,
    pub(in crate::pool) frames: Range<usize>,
    pub(in crate::pool) what: Delivered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Delivered {
    Answers,
    /// One answer, too large to be decoded on the spot.
    LargeAnswer,
    /// What an item reports while it runs.
    Progress,
}

/// Items that nobody will run any more.
#[derive(Debug)]
pub(in crate::pool) struct Lost<J> {
    pub(in crate::pool) job: J,
    pub(in crate::pool) items: Range<u64>,
    pub(in crate::pool) error: TaskError,
}

/// What the driver must do.
#[derive(Debug)]
pub(in crate::pool) struct Effects<J, B> {
    pub(in crate::pool) deliveries: Vec<Delivery<J>>,
    pub(in crate::pool) lost: Vec<Lost<J>>,
    pub(in crate::pool) bells: Vec<B>,
    /// Jobs that nothing here refers to any more. The last reference to one drops its caller's
    /// results, which must not happen under the lock.
    pub(in crate::pool) retired: Vec<J>,
    /// The driver has something to look after: a start, a stop, a deadline.
    pub(in crate::pool) attention: bool,
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
