//! A memory for tests in which processes die.
//!
//! The actors are threads of a loom model, so that all interleavings are tried, and what weak memory orders
//! allow. One that is mortal dies before the access that its lifetime says: it never makes it, and whoever
//! asks is told from then on that it is dead. One that is stopped there makes none either, and nobody is
//! told.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

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
}

/// What it unwinds with.
struct Ended;

impl Model {
    pub(crate) fn new() -> Self {
        let words = (0..(CELLS_AT + CELLS * CELL) / 8).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Memory { words, dead: AtomicU64::new(0) }))
    }

    /// The process with this number, of 1 to 60.
    pub(crate) fn actor(&self, number: u64, fate: Fate) -> Actor {
        Actor { memory: self.clone(), number, fate, accesses: Cell::new(0) }
    }
}

impl Actor {
    /// What it does before its end; `None` if the end came first.
    pub(crate) fn act<R>(&self, act: impl FnOnce(&Self) -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(|| act(self))) {
            Ok(value) => Some(value),
            Err(payload) if payload.is::<Ended>() => None,
            Err(payload) => resume_unwind(payload),
        }
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

    fn swap(&self, at: usize, value: u64, order: Ordering) -> u64 {
        self.word(at).swap(value, order)
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
