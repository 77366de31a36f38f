//! Which items of a joinable queue were taken and not acknowledged: pure.
//!
//! The count of a process's cell says how many it has taken and not acknowledged, how many those have left
//! behind who had the cell before and died, and where the ring's head was after the last one that was counted, as
//! a number of items. An item is taken by the ring's head alone, and counted after that; so that there is no
//! instant at which it is nowhere, the intent is noted before:
//!
//! | step, with the consumers' lock | after a death here |
//! |---|---|
//! | 1 what the last one has taken is counted, if it was not | |
//! | 2 the intent: whose cell, where the head will be | nothing was taken: the head is not there, or by somebody else's intent |
//! | 3 the head | the item counts as this one's, by the intent |
//! | 4 the count | it counts as this one's |
//!
//! What a dead one has not counted is counted by the next one's step 1, or by who claims its cell, if that is
//! earlier. Both may do so at the same time: the count itself says for which head it was done, so it is done once.
//!
//! Whoever asks how many are unfinished reads in the order in which items go: waiting, in the ring, taken. If it
//! finds none it reads what waits and both ends of the ring once more: there is none only if none of them has moved.

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

    /// With the item that has brought the head there, which is its process's.
    fn up_to(self, head: u64) -> Self {
        if self.head == head { self } else { self.counted(head) }
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

/// The cell is this process's now: what was taken by a dead one is left behind. `head` is where the ring's head
/// is.
pub(super) fn claimed(words: &impl Words, cell: Cell, head: u64) {
    let has_last = last(words, head) == Some(cell);
    update(words, cell, |count| {
        let count = if has_last { count.up_to(head) } else { count };
        Some(Count { taken: 0, left: count.left + count.taken, ..count })
    });
}

/// Whether no more can be counted for a process: it has taken as many as can be, and acknowledged none.
pub(super) fn is_full(words: &impl Words, cell: Cell) -> bool {
    Count::of(words.load(cell.count(), Ordering::Relaxed)).taken >= TAKEN
}

/// Whether a process has taken something that it has not acknowledged.
pub(super) fn holds(words: &impl Words, cell: Cell) -> bool {
    Count::of(words.load(cell.count(), Ordering::Acquire)).taken > 0
}

/// Before an item is taken for a cell's process. With the consumers' lock; `head` is where the ring's head is.
pub(super) fn intend(words: &impl Words, cell: Cell, head: u64) {
    // What a dead one may have taken and not counted.
    if let Some(of) = last(words, head) {
        update(words, of, |count| Some(count.up_to(head)));
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

/// How many are taken, and were left behind. That none is taken holds only if nothing was put or taken meanwhile.
pub(super) fn standing(words: &impl Words, world: &impl World, head: u64, looks: bool) -> Standing {
    let mut standing = Standing::default();
    let last = last(words, head);
    for cell in cells::all(words) {
        let mut count = Count::of(words.load(cell.count(), Ordering::Acquire));
        if last == Some(cell) {
            count = count.up_to(head);
        }
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

/// Who has brought the head where it is.
fn last(words: &impl Words, head: u64) -> Option<Cell> {
    let word = words.load(INTENT, Ordering::SeqCst);
    let cell = Cell((word >> NUMBER_BITS).checked_sub(1)? as usize);
    (cell.0 < words.cells() && word & NUMBER == head).then_some(cell)
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

#[cfg(all(test, multiprocess))]
mod tests {
    use loom::thread;

    use super::*;
    use crate::synchronize::protocol::model::{Actor, Fate, Model, each_death, explore};

    /// Where the ring's head is, in a word that nothing else uses here.
    const HEAD: usize = STATE + 8;

    fn head(actor: &Actor) -> u64 {
        actor.load(HEAD, Ordering::SeqCst)
    }

    /// What a process does that has the queue from now on.
    fn claim(actor: &Actor) -> Cell {
        let cell = cells::claim(actor, actor, |_| ()).unwrap();
        claimed(actor, cell, head(actor));
        cell
    }

    /// Takes an item, with the consumers' lock.
    fn take(actor: &Actor, cell: Cell) {
        let before = head(actor);
        intend(actor, cell, before);
        actor.store(HEAD, next(before), Ordering::SeqCst);
        count(actor, cell, next(before));
    }

    /// What was taken is somebody's at each instant: of who has died it is left behind, whoever gets the cell, and
    /// whether that or the next item is earlier.
    #[test]
    fn what_a_dead_process_has_taken_is_left_behind_once() {
        each_death(2, |fate| {
            let model = Model::new();
            // All cells but one are taken, so that one comes to have another process.
            let others: Vec<_> = (10..12).map(|number| claim(&model.actor(number, Fate::Lives))).collect();
            let consumer = model.actor(1, Fate::Lives);
            let cell = claim(&consumer);
            let dying = model.actor(2, fate);
            dying.act(|dying| take(dying, claim(dying)));
            let ended = dying.has_ended();
            let taken = head(&consumer);
            let joiner = model.actor(3, Fate::Lives);
            let claims = ended.then(|| thread::spawn(move || claim(&joiner)));
            take(&consumer, cell);
            if let Some(claims) = claims {
                claims.join().unwrap();
            }
            let Standing { taken: mine, left } = standing(&consumer, &consumer, head(&consumer), true);
            assert_eq!((mine, left), if ended { (1, taken) } else { (2, 0) });
            drop(others);
            ended
        });
    }

    #[test]
    fn who_asks_meanwhile_counts_none_twice() {
        explore(3, || {
            let model = Model::new();
            let dead = model.actor(1, Fate::Lives);
            let cell = claim(&dead);
            // It has taken an item, and not counted it.
            intend(&dead, cell, 0);
            dead.store(HEAD, 1, Ordering::SeqCst);
            let consumer = model.actor(2, Fate::Lives);
            let next = claim(&consumer);
            let joiner = model.actor(3, Fate::Lives);
            let asks = thread::spawn(move || standing(&joiner, &joiner, 1, true));
            intend(&consumer, next, 1);
            assert_eq!(asks.join().unwrap(), Standing { taken: 1, left: 0 });
        });
    }
}
