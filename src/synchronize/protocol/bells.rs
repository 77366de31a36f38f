//! Who sleeps: a bit for each cell whose process has sleepers.
//!
//! Who wants to sleep sets its bit, and looks once more whether it has to. Who has changed something looks at
//! the bits, clears one, and rings at the door of its process. A full fence stands between the two steps on
//! both sides, so at least one sees what the other did: either the sleeper sees the change, or the bit is
//! seen. Whoever finds, after it was rung for, that it leaves something for others, goes on ringing.
//!
//! A process may die with a bell in its hands, or be stopped. Then those who sleep look again by themselves,
//! at the next tick: nothing here has to be certain.

use std::sync::atomic::Ordering;

use super::{Cell, SLEEPERS, Words};

const BITS: usize = 64;

/// Says that the cell's process has sleepers. They look again after this.
pub(crate) fn announce(words: &impl Words, cell: Cell) {
    words.fetch_or(word(cell), bit(cell), Ordering::SeqCst);
    words.fence();
}

/// Says that it has none any more.
pub(crate) fn withdraw(words: &impl Words, cell: Cell) {
    words.fetch_and(word(cell), !bit(cell), Ordering::SeqCst);
}

/// Whether anybody sleeps, after this process has changed something.
#[inline]
pub(crate) fn anyone(words: &impl Words) -> bool {
    words.fence();
    anyone_else(words)
}

/// As [`anyone`], of another object after the same change.
#[inline]
pub(crate) fn anyone_else(words: &impl Words) -> bool {
    lines(words).any(|line| words.load(line, Ordering::Relaxed) != 0)
}

/// Takes out one who sleeps, the first from a cell on, and round: that is for who calls to ring.
#[inline]
pub(crate) fn call(words: &impl Words, from: usize) -> Option<Cell> {
    // Mostly nobody does.
    if anyone(words) { find(words, from) } else { None }
}

#[cold]
fn find(words: &impl Words, from: usize) -> Option<Cell> {
    let (first, before) = (from / BITS, (1 << (from % BITS)) - 1);
    let lines = words.cells().div_ceil(BITS);
    // The line in which the first one is comes twice: at last for those before that one.
    (0..=lines).find_map(|i| {
        let line = (first + i) % lines;
        let wanted = match i {
            0 => !before,
            _ if i == lines => before,
            _ => u64::MAX,
        };
        loop {
            let bits = words.load(SLEEPERS + 8 * line, Ordering::Relaxed) & wanted;
            let cell = Cell(line * BITS + bits.trailing_zeros() as usize);
            // Beyond the last cell there are bits only if somebody has scribbled.
            if bits == 0 || cell.0 >= words.cells() {
                return None;
            }
            // Another may have been faster.
            if take(words, cell) {
                return Some(cell);
            }
        }
    })
}

/// Takes out the sleepers of one cell, if there are any.
pub(crate) fn call_at(words: &impl Words, cell: Cell) -> bool {
    words.fence();
    words.load(word(cell), Ordering::Relaxed) & bit(cell) != 0 && take(words, cell)
}

fn take(words: &impl Words, cell: Cell) -> bool {
    words.fetch_and(word(cell), !bit(cell), Ordering::SeqCst) & bit(cell) != 0
}

#[inline]
fn lines(words: &impl Words) -> impl Iterator<Item = usize> {
    (0..words.cells().div_ceil(BITS)).map(|i| SLEEPERS + 8 * i)
}

fn word(cell: Cell) -> usize {
    SLEEPERS + cell.0 / BITS * 8
}

fn bit(cell: Cell) -> u64 {
    1 << (cell.0 % BITS)
}
