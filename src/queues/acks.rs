//! Which items of a joinable queue were taken and not acknowledged: pure.
//!
//! The count of a process's cell says how many it has taken and not acknowledged, how many those have left
//! behind who had the cell before and died, and where the ring's head was after the last one that was counted, as
//! a number of items. An item is taken by the ring's head alone, and counted after that; so that there is no instant at which it is nowhere, the
//! intent is noted before:
//!
//! | step, with the consumers' lock | after a death here |
//! |---|---|
//! | 1 the last intent is carried out, if it was not | |
//! | 2 the intent: whose cell, where the head will be | nothing was taken: the head is not there, or by somebody else's intent |
//! | 3 the head | the item counts as this one's, by the intent; step 1 of the next one counts it |
//! | 4 the count | it counts as this one's |
//!
//! Whoever asks how many are unfinished reads in the order in which items go: waiting, in the ring, taken; and
//! again if any of them moved meanwhile.

use std::sync::atomic::Ordering;

use crate::synchronize::protocol::{Cell, STATE, Words, World, cells};

/// Where the intent lies: the number of the cell and one, and where the head will be; 0 if there is none.
const INTENT: usize = STATE;

const NUMBER_BITS: u32 = 24;
const NUMBER: u64 = (1 << NUMBER_BITS) - 1;
const LEFT: u64 = (1 << 16) - 1;
const TAKEN: u64 = (1 << 24) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    taken: u64,
    /// By dead ones that had the cell before.
    left: u64,
    /// Where the head was after the one that was counted last.
    head: u64,
}

impl Count {
    fn of(word: u64) -> Self {
        Self { taken: word & TAKEN, left: word >> 24 & LEFT, head: word >> 40 }
    }

    fn word(self) -> u64 {
        self.taken.min(TAKEN) | self.left.min(LEFT) << 24 | self.head << 40
    }

    fn counted(self, head: u64) -> Self {
        Self { taken: self.taken + 1, head, ..self }
    }
}

/// How things stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Taken by living ones, and not acknowledged.
    pub(super) taken: u64,
    /// Taken by ones that died before they acknowledged.
    pub(super) left: u64,
}

/// The cell is this process's now: what was taken by a dead one is left behind.
pub(super) fn claimed(words: &impl Words, cell: Cell) {
    update(words, cell, |count| Some(Count { taken: 0, left: count.left + count.taken, ..count }));
}

/// Whether a process has taken something that it has not acknowledged.
pub(super) fn holds(words: &impl Words, cell: Cell) -> bool {
    Count::of(words.load(cell.count(), Ordering::Acquire)).taken > 0
}

/// Before an item is taken for a cell's process. With the consumers' lock; `head` is where the ring's head is.
pub(super) fn intend(words: &impl Words, cell: Cell, head: u64) {
    // What a dead one has taken and not counted.
    if let Some(of) = uncounted(words, head) {
        count(words, of, head);
    }
    words.store(INTENT, (cell.0 as u64 + 1) << NUMBER_BITS | next(head), Ordering::SeqCst);
}

/// After that; `head` is where it is now.
pub(super) fn count(words: &impl Words, cell: Cell, head: u64) {
    update(words, cell, |count| Some(count.counted(head)));
}

/// Acknowledges one: this process's, or, if it has none, somebody else's, who may have given it to us. False if
/// there is none.
pub(super) fn acknowledge(words: &impl Words, world: &impl World, own: Option<Cell>) -> bool {
    let take =
        |cell| update(words, cell, |count| Some(Count { taken: count.taken.checked_sub(1)?, ..count }));
    own.is_some_and(take)
        || cells::all(words).any(|cell| {
            let owner = cells::owner(words, cell);
            holds(words, cell) && owner.is_some_and(|owner| !world.is_dead(owner)) && take(cell)
        })
}

/// How many are taken, and were left behind; to be asked again if the ring's head was another one before than
/// after.
pub(super) fn standing(words: &impl Words, world: &impl World, head: u64, looks: bool) -> Standing {
    let mut standing = Standing::default();
    let last = uncounted(words, head);
    for cell in cells::all(words) {
        let mut count = Count::of(words.load(cell.count(), Ordering::Acquire));
        count.taken += u64::from(last == Some(cell));
        if count == (Count { taken: 0, left: 0, ..count }) {
            continue;
        }
        standing.left += count.left;
        let dead = || cells::owner(words, cell).is_none_or(|owner| world.is_dead(owner));
        if count.taken > 0 && looks && dead() {
            standing.left += count.taken;
        } else {
            standing.taken += count.taken;
        }
    }
    standing
}

/// Whose intent the last one was, if its item was taken and not counted.
fn uncounted(words: &impl Words, head: u64) -> Option<Cell> {
    let word = words.load(INTENT, Ordering::SeqCst);
    let cell = Cell((word >> NUMBER_BITS).checked_sub(1)? as usize);
    let taken = cell.0 < words.cells() && word & NUMBER == head;
    let counted = || Count::of(words.load(cell.count(), Ordering::Acquire)).head == head;
    (taken && !counted()).then_some(cell)
}

fn next(number: u64) -> u64 {
    (number + 1) & NUMBER
}

fn update(words: &impl Words, cell: Cell, change: impl Fn(Count) -> Option<Count>) -> bool {
    let mut word = words.load(cell.count(), Ordering::Relaxed);
    loop {
        let Some(new) = change(Count::of(word)) else { return false };
        match words.compare_exchange(cell.count(), word, new.word()) {
            Ok(_) => return true,
            Err(now) => word = now,
        }
    }
}
