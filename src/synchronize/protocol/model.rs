//! A memory for tests in which processes die.
//!
//! The actors are threads of a loom model, so that all interleavings are tried, and what weak memory orders
//! allow. One that is mortal dies before the access that its lifetime says: it never makes it, and whoever
//! asks is told from then on that it is dead. One that is stopped there makes none either, and nobody is
//! told.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;

use super::words::{Identity, Words, World};
use super::{CELL, CELLS_AT};

/// How many cells such a memory has.
pub(crate) const CELLS: usize = 4;

struct Memory {
    words: Vec<AtomicU64>,
    /// A bit for each actor.
    dead: AtomicU64,
}

/// The shared memory, all zero.
#[derive(Clone)]
pub(crate) struct Model(Arc<Memory>);

/// How an actor ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Lives,
    /// Before its access of this number, from zero on.
    Dies(usize),
    Stops(usize),
}

/// A process.
pub(crate) struct Actor {
    memory: Model,
    number: u64,
    fate: Fate,
    accesses: Cell<usize>,
    has_ended: Cell<bool>,
}

/// What it unwinds with.
struct Ended;

/// Tries all interleavings of a model's threads that take at most so many turns away from one that could go
/// on.
pub(crate) fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// For models of which two take minutes in a build that is not optimised: one, or two if the environment asks for
/// it, as `.ci/run` does.
pub(crate) fn preemptions() -> usize {
    let is_thorough = std::env::var("TOKIO_MULTIPROCESS_MODELS").is_ok_and(|models| models == "thorough");
    if is_thorough { 2 } else { 1 }
}

/// Explores a model for each way in which an actor of it may end: not at all, or by death before each of its
/// accesses. The model says whether the actor has ended.
pub(crate) fn each_death(preemptions: usize, model: impl Fn(Fate) -> bool + Copy + Send + Sync + 'static) {
    each_end(preemptions, Fate::Dies, model);
}

/// The same for an actor that may be stopped.
pub(crate) fn each_stop(preemptions: usize, model: impl Fn(Fate) -> bool + Copy + Send + Sync + 'static) {
    each_end(preemptions, Fate::Stops, model);
}

fn each_end(
    preemptions: usize,
    end: fn(usize) -> Fate,
    model: impl Fn(Fate) -> bool + Copy + Send + Sync + 'static,
) {
    explore(preemptions, move || assert!(!model(Fate::Lives)));
    for at in 0.. {
        // Of loom's none, as it goes from one execution to the next.
        let has_ended = std::sync::Arc::new(AtomicBool::new(false));
        let seen = has_ended.clone();
        explore(preemptions, move || {
            if model(end(at)) {
                seen.store(true, Ordering::Relaxed);
            }
        });
        if !has_ended.load(Ordering::Relaxed) {
            return;
        }
    }
}

impl Model {
    pub(crate) fn new() -> Self {
        let words = (0..(CELLS_AT + CELLS * CELL) / 8).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Memory { words, dead: AtomicU64::new(0) }))
    }

    /// The process with this number, of 1 to 60.
    pub(crate) fn actor(&self, number: u64, fate: Fate) -> Actor {
        Actor { memory: self.clone(), number, fate, accesses: Cell::new(0), has_ended: Cell::new(false) }
    }
}

impl Actor {
    /// What it does before its end; `None` if the end came first.
    pub(crate) fn act<R>(&self, act: impl FnOnce(&Self) -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(|| act(self))) {
            Ok(value) => Some(value),
            Err(payload) if payload.is::<Ended>() => {
                self.has_ended.set(true);
                None
            }
            Err(payload) => resume_unwind(payload),
        }
    }

    /// Whether it is dead or stopped, and has come to that in an [`act`](Self::act).
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// How many accesses it has made.
    pub(crate) fn accesses(&self) -> usize {
        self.accesses.get()
    }

    fn step(&self) {
        let made = self.accesses.replace(self.accesses.get() + 1);
        match self.fate {
            Fate::Dies(at) if made == at => {
                self.memory.0.dead.fetch_or(1 << self.number, Ordering::SeqCst);
                resume_unwind(Box::new(Ended));
            }
            Fate::Stops(at) if made == at => resume_unwind(Box::new(Ended)),
            _ => {}
        }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8));
        self.step();
        &self.memory.0.words[at / 8]
    }
}

impl Words for Actor {
    fn cells(&self) -> usize {
        CELLS
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.word(at).load(order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.word(at).store(value, order);
    }

    fn compare_exchange(&self, at: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.word(at).compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
    }

    fn fetch_or(&self, at: usize, bits: u64, order: Ordering) -> u64 {
        self.word(at).fetch_or(bits, order)
    }

    fn fetch_and(&self, at: usize, bits: u64, order: Ordering) -> u64 {
        self.word(at).fetch_and(bits, order)
    }

    fn fence(&self) {
        self.step();
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl World for Actor {
    fn me(&self) -> Identity {
        Identity(self.number)
    }

    fn is_dead(&self, who: Identity) -> bool {
        self.memory.0.dead.load(Ordering::SeqCst) & (1 << who.0) != 0
    }
}
