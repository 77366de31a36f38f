//! Who holds slots of a queue that are not in its ring: pure.
//!
//! The count of a process's cell says how many it has reserved, and how many items of its own wait in it for
//! room in the ring. They belong to nobody else, so they end with the process: those of a dead one do not count.
//!
//! | change | by whom |
//! |---|---|
//! | more are held | that process; if the queue is bounded, with the producers' lock, under which it has looked whether there is a slot |
//! | a reservation becomes a waiting item | that process |
//! | fewer are held | that process, at any time |
//! | none | who claims the cell of a dead one, before it uses it |
//!
//! A bit for each cell says whether to look at it at all. It is set ahead of the count, and taken back with the
//! producers' lock of a bounded queue.

use std::sync::atomic::Ordering;

use crate::synchronize::protocol::{Cell, STATE, Words, World, cells};

const BITS: usize = 64;

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) reserved: u32,
    /// Items that wait for room.
    pub(super) waiting: u32,
}

impl Held {
    fn of(word: u64) -> Self {
        Self { reserved: word as u32, waiting: (word >> 32) as u32 }
    }

    fn word(self) -> u64 {
        u64::from(self.waiting) << 32 | u64::from(self.reserved)
    }

    pub(super) fn all(self) -> u64 {
        u64::from(self.reserved) + u64::from(self.waiting)
    }
}

/// The cell is this process's now: it holds nothing yet.
pub(super) fn claimed(words: &impl Words, cell: Cell) {
    words.store(cell.count(), 0, Ordering::Relaxed);
}

pub(super) fn held_at(words: &impl Words, cell: Cell) -> Held {
    Held::of(words.load(cell.count(), Ordering::Acquire))
}

/// Changes what this process holds.
pub(super) fn update(words: &impl Words, cell: Cell, change: impl Fn(Held) -> Held) {
    let mut word = words.load(cell.count(), Ordering::Relaxed);
    loop {
        let new = change(Held::of(word)).word();
        if new != 0 {
            announce(words, cell);
        }
        match words.compare_exchange(cell.count(), word, new) {
            Ok(_) => return,
            Err(now) => word = now,
        }
    }
}

fn announce(words: &impl Words, cell: Cell) {
    let (line, bit) = (STATE + cell.0 / BITS * 8, 1 << (cell.0 % BITS));
    if words.load(line, Ordering::Relaxed) & bit == 0 {
        words.fetch_or(line, bit, Ordering::SeqCst);
    }
}

/// What all hold who are not known to be dead. To ask that costs some 10 µs for each, so it is done with
/// `looks` alone.
pub(super) fn held(words: &impl Words, world: &impl World, looks: bool) -> Held {
    let mut all = Held::default();
    for cell in announced(words) {
        let held = held_at(words, cell);
        if held != Held::default() && !(looks && is_dead(words, world, cell)) {
            all.reserved = all.reserved.saturating_add(held.reserved);
            all.waiting = all.waiting.saturating_add(held.waiting);
        }
    }
    all
}

/// As [`held`], and forgets who holds nothing. With the producers' lock of a bounded queue.
pub(super) fn held_with_lock(words: &impl Words, world: &impl World, looks: bool) -> Held {
    for cell in announced(words) {
        if held_at(words, cell) == Held::default() {
            words.fetch_and(STATE + cell.0 / BITS * 8, !(1 << (cell.0 % BITS)), Ordering::SeqCst);
        }
    }
    held(words, world, looks)
}

fn is_dead(words: &impl Words, world: &impl World, cell: Cell) -> bool {
    cells::owner(words, cell).is_none_or(|owner| world.is_dead(owner))
}

fn announced(words: &impl Words) -> impl Iterator<Item = Cell> {
    (0..words.cells().div_ceil(BITS))
        .flat_map(move |line| {
            let mut bits = words.load(STATE + 8 * line, Ordering::Acquire);
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(Cell(line * BITS + bit))
            })
        })
        .filter(|cell| cell.0 < words.cells())
}
