//! The tally: a number that processes share, with what each of them has in it, changed together.
//!
//! A semaphore's free permits and who holds the others, the parties inside of a barrier and whose they are:
//! two words change, and a process may die between the two. So the first of them, the central word, says
//! everything at once:
//!
//! | bits of the central word | are |
//! |---|---|
//! | 22 | the value |
//! | 3 | the state, if what is built upon the tally has any |
//! | 8 | the cell whose count changes too |
//! | 3 | how: not at all, one more, one less, none any more, none and its process takes leave |
//! | 28 | the number of this change |
//!
//! | bits of a cell's count | are |
//! |---|---|
//! | 35 | the count |
//! | 1 | its process has taken leave, and may end |
//! | 28 | the number of the last change that was made to it |
//!
//! A change is one compare-and-swap of the central word. From then on it has happened, whoever dies. What it
//! means for the count is carried over by whoever comes next, before the next change: [`Tally::settled`].
//! Nobody waits for anybody.
//!
//! Why somebody who is late with that does no harm. She has read the central word, then a count whose number
//! is another, then the central word again, unchanged: so that count is from before the change, and what she
//! makes of it is what anybody makes of it. If another was quicker, the count has the change's number, her
//! compare-and-swap finds another word than she has read, and does nothing. It finds the same only if the
//! numbers have gone round in the meantime, which are 268,435,456 changes, to the very same count.
//!
//! And why nobody takes a change for made that is not: a number that the cell's count has already, from a
//! round before, is left out for it.

use std::sync::atomic::Ordering;

use super::{CELLS, Cell, STATE, Words};

const CENTRAL: usize = STATE;

const VALUE_BITS: u32 = 22;
const STATE_SHIFT: u32 = VALUE_BITS;
const CELL_SHIFT: u32 = STATE_SHIFT + 3;
const CHANGE_SHIFT: u32 = CELL_SHIFT + 8;
const NUMBER_SHIFT: u32 = CHANGE_SHIFT + 3;

const COUNT_BITS: u32 = 35;
const LEFT: u64 = 1 << COUNT_BITS;
const _: () = assert!(COUNT_BITS < NUMBER_SHIFT);

/// The highest value.
pub(crate) const LIMIT: u32 = bits(VALUE_BITS) as u32;

/// As many ones.
const fn bits(number: u32) -> u64 {
    (1 << number) - 1
}

/// What happens to a cell's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Stays = 0,
    Up = 1,
    Down = 2,
    Clear = 3,
    /// Of nothing.
    Leave = 4,
}

/// What can be read off a tally, and what is to be read off it next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) value: u32,
    pub(crate) state: u8,
    cell: Cell,
    change: Change,
}

impl Standing {
    /// Nobody has any part in it.
    pub(crate) const fn new(value: u32) -> Self {
        Self { value, state: 0, cell: Cell(0), change: Change::Stays }
    }

    pub(crate) fn with_value(self, value: u32) -> Self {
        Self { value, ..self }
    }

    pub(crate) fn with_state(self, state: u8) -> Self {
        Self { state, ..self }
    }

    /// What the cell has in it changes at the same time.
    pub(crate) fn with(self, cell: Cell, change: Change) -> Self {
        Self { cell, change, ..self }
    }

    /// The central word.
    fn word(self, number: u64) -> u64 {
        let Self { value, state, cell, change } = self;
        // More there are only if somebody has scribbled.
        let value = value.min(LIMIT);
        debug_assert!(state < 8 && cell.0 < 256);
        u64::from(value)
            | u64::from(state) << STATE_SHIFT
            | (cell.0 as u64) << CELL_SHIFT
            | (change as u64) << CHANGE_SHIFT
            | number << NUMBER_SHIFT
    }

    fn of(word: u64) -> Self {
        let cell = Cell((word >> CELL_SHIFT & bits(8)) as usize);
        let change = match word >> CHANGE_SHIFT & bits(3) {
            // Of no cell that there is: somebody has scribbled.
            _ if cell.0 >= CELLS => Change::Stays,
            0 => Change::Stays,
            1 => Change::Up,
            2 => Change::Down,
            3 => Change::Clear,
            _ => Change::Leave,
        };
        Self {
            value: (word & bits(VALUE_BITS)) as u32,
            state: (word >> STATE_SHIFT & bits(3)) as u8,
            cell: if cell.0 < CELLS { cell } else { Cell(0) },
            change,
        }
    }
}

/// The number of a change, of a central word or of a count.
fn number(word: u64) -> u64 {
    word >> NUMBER_SHIFT
}

/// The one after it.
fn next(number: u64) -> u64 {
    (number + 1) & bits(64 - NUMBER_SHIFT)
}

/// An object's tally.
#[derive(Debug)]
pub(crate) struct Tally<'a, W>(pub(crate) &'a W);

impl<W> Clone for Tally<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Tally<'_, W> {}

impl<W: Words> Tally<'_, W> {
    /// Before anybody else knows the object, whose words are zero.
    pub(crate) fn begin(self, standing: Standing) {
        self.0.store(CENTRAL, standing.word(0), Ordering::Release);
    }

    /// How it stands; it may be otherwise at once.
    pub(crate) fn standing(self) -> Standing {
        Standing::of(self.0.load(CENTRAL, Ordering::SeqCst))
    }

    /// Makes the change that `step` says, in one instant, or none if it says why not.
    ///
    /// `step` is called until nobody else came between. It may read [counts](Self::count), which are right
    /// if its change is made.
    pub(crate) fn update<T, E>(
        self,
        mut step: impl FnMut(Standing) -> Result<(Standing, T), E>,
    ) -> Result<T, E> {
        loop {
            let word = self.settled();
            let before = Standing { cell: Cell(0), change: Change::Stays, ..Standing::of(word) };
            let (after, result) = step(before)?;
            let mut new = next(number(word));
            if after.change != Change::Stays && number(self.count_word(after.cell)) == new {
                new = next(new);
            }
            if self.0.compare_exchange(CENTRAL, word, after.word(new)).is_ok() {
                return Ok(result);
            }
        }
    }

    /// What a cell has in the tally: in a step of [`update`](Self::update), for the central word that it
    /// began with. Elsewhere, once this is [settled](Self::settle), for all that those have done who change
    /// it no more.
    pub(crate) fn count(self, cell: Cell) -> u64 {
        self.count_word(cell) & bits(COUNT_BITS)
    }

    /// Whether a cell's process has taken leave, and nothing of it came after that. As [`count`](Self::count).
    pub(crate) fn has_left(self, cell: Cell) -> bool {
        self.count_word(cell) & LEFT != 0
    }

    /// Has the last change reach its cell.
    pub(crate) fn settle(self) {
        self.settled();
    }

    fn count_word(self, cell: Cell) -> u64 {
        self.0.load(cell.count(), Ordering::SeqCst)
    }

    /// A central word whose change has reached the cell's count.
    fn settled(self) -> u64 {
        let mut word = self.0.load(CENTRAL, Ordering::SeqCst);
        loop {
            let Standing { cell, change, .. } = Standing::of(word);
            if change == Change::Stays {
                return word;
            }
            let old = self.count_word(cell);
            if number(old) == number(word) {
                return word;
            }
            // The count may be newer than the change, whose number it had and has no more. Then this shows.
            let again = self.0.load(CENTRAL, Ordering::SeqCst);
            if again != word {
                word = again;
                continue;
            }
            let count = old & bits(COUNT_BITS);
            let count = match change {
                Change::Stays => count,
                Change::Up => count + 1,
                Change::Down => count.saturating_sub(1),
                Change::Clear => 0,
                Change::Leave => LEFT,
            };
            // If it fails, another was quicker; then the same was done.
            let _ = self.0.compare_exchange(cell.count(), old, count | number(word) << NUMBER_SHIFT);
            return word;
        }
    }
}

#[cfg(all(test, multiprocess))]
mod tests;
