//! The pure part: what each primitive does to its words in shared memory, without I/O and without a clock.
//!
//! Everything here is generic over the memory ([`Words`]) and over who lives ([`World`]), so that tests can
//! run the same code over a memory that lets a process die, or stop, before any access it makes.
//!
//! | bytes | are |
//! |---|---|
//! | 0..64 | what never changes: see `object` |
//! | [`STATE`].. | eight words of the primitive's own |
//! | [`SLEEPERS`].. | for each cell a bit: its process has sleepers |
//! | [`CELLS_AT`].. | cells: identity, count, and the name of the process's door |

pub(crate) mod bells;
pub(crate) mod cells;
#[cfg(all(test, multiprocess))]
pub(crate) mod model;
pub(crate) mod owner;
pub(crate) mod permits;
pub(crate) mod rounds;
pub(crate) mod signal;
pub(crate) mod tally;
pub(crate) mod tickets;
pub(crate) mod words;

pub(crate) use words::{Here, Identity, Words, World};

/// Where the primitive's own words lie.
pub(crate) const STATE: usize = 64;
/// Where the bits of who sleeps lie: four words.
pub(crate) const SLEEPERS: usize = 128;
/// Where the cells begin, how many there are, and how long one is.
pub(crate) const CELLS_AT: usize = 192;
pub(crate) const CELLS: usize = 250;
pub(crate) const CELL: usize = 32;

/// A process's place in an object, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell(pub(crate) usize);

impl Cell {
    /// Where its process's identity is; zero in a free one.
    pub(crate) fn identity(self) -> usize {
        CELLS_AT + self.0 * CELL
    }

    /// Where the primitive counts what its process holds.
    pub(crate) fn count(self) -> usize {
        self.identity() + 8
    }

    /// Where the two words of the name of its process's door are.
    pub(crate) fn door(self) -> usize {
        self.identity() + 16
    }
}
