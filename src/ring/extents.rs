//! Items that are too large for the ring.
//!
//! The frame of such an item names an entry of a table, and the item lies in that entry's own part of the
//! file: [`REGION`] bytes, sparse, and never mapped. So there is nothing to allocate but an entry, and no memory
//! that could be found missing in the middle of an access. `README.md` beside this file has the argument for
//! each instant of death.
//!
//! | bytes of an entry | are | set by |
//! |---|---|---|
//! | 0..8 | who has it; 0: nobody | who takes it, by a compare-and-swap; who frees it |
//! | 8..16 | the ring's word under which its frame lies, and one; [`NONE`]: under none | its producer, before that frame; who frees it |
//! | 16..24 | the length of the item, in bytes | its producer |
//! | 24..32 | how much memory it keeps that no item is in | who takes or frees it |
//!
//! An entry has no memory beyond its length and what it keeps together, and a free one none beyond what it keeps.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::Corrupt;
use crate::error::{Error, Result};
use crate::synchronize::protocol::words::kill_point;
use crate::synchronize::protocol::{Identity, Words, World};
use crate::sys::BorrowedFd;
use crate::sys::memory;

/// How long an entry's part of the file is. That of the first one begins at as much, behind the ring. Where
/// addresses are shorter than that no queue can be made.
pub(crate) const REGION: usize = 1 << if usize::BITS < 64 { 24 } else { 36 };
/// How many bytes an entry of the table has.
pub(crate) const ENTRY: usize = 32;

/// How much memory all entries keep that no item is in, for items to come. With all of its memory there
/// already an item of 1 MiB is through three to four times as fast as with none, and with half of it hardly
/// faster.
const KEPT: usize = 16 << 20;
/// As much is written, or given back, at a time: others who want to do so with the same file wait meanwhile.
const PIECE: usize = 4 << 20;
const PAGE: usize = 4096;

/// What stands for no place in the ring; for one it is its word and one, which is never zero, as places in the
/// ring are multiples of 8.
const NONE: u64 = 0;

/// Where the words are in their memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) table: usize,
    pub(crate) entries: usize,
    /// The ring's words: between them frames lie.
    pub(crate) head: usize,
    pub(crate) tail: usize,
}

/// Where the items' bytes are.
pub(crate) trait Store: Copy {
    /// Whether an item of `len` bytes could be written that ends at `end`.
    fn admits(&self, end: usize, len: usize) -> io::Result<()>;
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()>;
    /// Appends.
    fn read(&self, at: usize, len: usize, into: &mut Vec<u8>) -> io::Result<()>;
    /// Whether all of that was written, and has memory.
    fn is_written(&self, at: usize, len: usize) -> io::Result<bool>;
    /// Gives memory back.
    fn punch(&self, at: usize, len: usize) -> io::Result<()>;
}

impl Store for BorrowedFd<'_> {
    fn admits(&self, end: usize, len: usize) -> io::Result<()> {
        memory::admits(end, len)
    }

    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        kill_point();
        memory::write_all_at(*self, at, bytes)
    }

    fn read(&self, at: usize, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        kill_point();
        memory::read_at(*self, at, len, into)
    }

    fn is_written(&self, at: usize, len: usize) -> io::Result<bool> {
        memory::is_written(*self, at, len)
    }

    fn punch(&self, at: usize, len: usize) -> io::Result<()> {
        kill_point();
        memory::punch(*self, at, len)
    }
}

/// The extents of a queue, as one process sees them.
#[derive(Debug)]
pub(crate) struct Extents<'a, W, E, S> {
    words: &'a W,
    world: &'a E,
    store: S,
    layout: Layout,
}

impl<W, E, S: Copy> Clone for Extents<'_, W, E, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W, E, S: Copy> Copy for Extents<'_, W, E, S> {}

impl<'a, W: Words, E: World, S: Store> Extents<'a, W, E, S> {
    /// Of a table that was zeros once.
    pub(crate) fn new(words: &'a W, world: &'a E, store: S, layout: Layout) -> Self {
        Self { words, world, store, layout }
    }

    /// Room for an item. `None` if all entries are taken, also after a look for those of dead processes.
    ///
    /// # Errors
    /// `ENOMEM` if the machine has not so much memory, `EFBIG` if an extent is never so long, or this process may
    /// not write so far into a file.
    pub(crate) fn reserve(self, len: usize) -> io::Result<Option<Reserved<'a, W, E, S>>> {
        if len > REGION {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.store.admits(region(self.layout.entries), len)?;
        let taken = self.take(len).or_else(|| {
            self.reap();
            self.take(len)
        });
        Ok(taken.map(|hold| Reserved { hold, len }))
    }

    /// The item of a frame, for who has the consumers' lock and has found that frame at `ticket`, the ring's
    /// head. What follows at once is that the head goes past the frame: what is claimed and dropped is gone.
    pub(crate) fn claim(self, entry: usize, ticket: u64) -> Result<Claimed<'a, W, E, S>, Corrupt> {
        if entry >= self.layout.entries
            || self.words.load(self.ticket(entry), Acquire) != ticket.wrapping_add(1)
        {
            return Err(Corrupt);
        }
        // Its producer, or a consumer that died before the head went on.
        let before = self.words.load(self.owner(entry), Relaxed);
        if before == 0 {
            return Err(Corrupt);
        }
        let hold = self.hold(entry, before).ok_or(Corrupt)?;
        let len = self.words.load(self.length(entry), Relaxed);
        let len = usize::try_from(len).ok().filter(|&len| len <= REGION).ok_or(Corrupt)?;
        Ok(Claimed { hold, len })
    }

    /// Frees what dead processes had and no frame in the ring has: what they were writing, and what they were
    /// reading. It costs some 10 µs for each entry that somebody else is writing or reading.
    pub(crate) fn reap(&self) {
        for entry in 0..self.layout.entries {
            let owner = self.words.load(self.owner(entry), Acquire);
            // Looked for twice: once as that is cheaper than to ask for its owner, and once after that, as only of
            // one that is dead nothing more comes.
            let is_left = owner != 0
                && !self.is_queued(entry)
                && self.world.is_dead(Identity(owner))
                && !self.is_queued(entry);
            if is_left {
                drop(self.hold(entry, owner));
            }
        }
    }

    /// Whether a frame in the ring has it; also if that is another's, under a place at which its own should
    /// have been.
    fn is_queued(&self, entry: usize) -> bool {
        let ticket = self.words.load(self.ticket(entry), Acquire);
        if ticket == NONE {
            return false;
        }
        let [head, tail] = [self.layout.head, self.layout.tail].map(|at| self.words.load(at, Acquire));
        ticket.wrapping_sub(1).wrapping_sub(head) < tail.wrapping_sub(head)
    }

    /// Takes a free entry: one with so much memory, or as much of it as there is.
    fn take(self, len: usize) -> Option<Hold<'a, W, E, S>> {
        let len = len as u64;
        loop {
            let is_free = |entry: &usize| self.words.load(self.owner(*entry), Relaxed) == 0;
            let usable = |entry: &usize| self.words.load(self.spare(*entry), Relaxed).min(len);
            let entry = (0..self.layout.entries).rev().filter(is_free).max_by_key(usable)?;
            if let Some(hold) = self.hold(entry, 0) {
                let spare = self.words.load(self.spare(entry), Relaxed);
                // In this order, or whoever dies in between has said too little.
                self.words.store(self.length(entry), len, Relaxed);
                self.words.store(self.spare(entry), spare.saturating_sub(len), Relaxed);
                return Some(hold);
            }
        }
    }

    /// Makes an entry this process's.
    fn hold(self, entry: usize, before: u64) -> Option<Hold<'a, W, E, S>> {
        let owner = self.world.me();
        let taken = self.words.compare_exchange(self.owner(entry), before, owner.0).is_ok();
        // Made before it is known whether it is ours, it would free another's.
        taken.then(|| Hold { extents: self, entry, owner })
    }

    /// Frees an entry of this process's. Whoever dies on the way has said enough for this to be begun anew.
    fn free(&self, entry: usize) {
        let len = usize::try_from(self.words.load(self.length(entry), Relaxed))
            .map_or(REGION, |len| len.min(REGION));
        // The item, and beyond it what there is of a larger one before it.
        let spare = usize::try_from(self.words.load(self.spare(entry), Relaxed)).unwrap_or(REGION);
        let there = len.saturating_add(spare).min(REGION).next_multiple_of(PAGE);
        let wanted = len.next_multiple_of(PAGE).min(KEPT);
        // Only `spare` tells of what is beyond the item: it says something else when that is gone.
        let mut left = self.give_back(entry, wanted, there);
        if left == wanted {
            left = self.give_back(entry, self.keep(entry, wanted), wanted);
        }
        self.words.store(self.spare(entry), left as u64, Relaxed);
        self.words.store(self.ticket(entry), NONE, Relaxed);
        self.words.store(self.owner(entry), 0, Release);
    }

    /// Gives back what memory there is from `kept` to `there`, the last first. How much there is after that: more
    /// than `kept` if the system refuses.
    fn give_back(&self, entry: usize, kept: usize, there: usize) -> usize {
        let mut left = there;
        // Mostly not at all: it waits for who writes to the same file, and has him wait.
        while left > kept {
            let at = left.saturating_sub(PIECE).max(kept);
            if self.store.punch(region(entry) + at, left - at).is_err() {
                break;
            }
            left = at;
        }
        left
    }

    /// Says how much memory an entry is going to keep: so much, or less if it would be too much with that of
    /// the others.
    fn keep(&self, entry: usize, wanted: usize) -> usize {
        self.words.store(self.spare(entry), wanted as u64, Relaxed);
        // Of those who do this at the same time, who comes later sees what the others say.
        self.words.fence();
        let others = (0..self.layout.entries).filter(|&other| other != entry);
        let others =
            others.fold(0, |sum: u64, other| sum.saturating_add(self.words.load(self.spare(other), Relaxed)));
        let kept = wanted.min(KEPT.saturating_sub(usize::try_from(others).unwrap_or(KEPT)));
        self.words.store(self.spare(entry), kept as u64, Relaxed);
        kept
    }

    fn owner(&self, entry: usize) -> usize {
        self.layout.table + entry * ENTRY
    }

    fn ticket(&self, entry: usize) -> usize {
        self.owner(entry) + 8
    }

    fn length(&self, entry: usize) -> usize {
        self.owner(entry) + 16
    }

    fn spare(&self, entry: usize) -> usize {
        self.owner(entry) + 24
    }
}

/// Where an entry's part of the file begins.
fn region(entry: usize) -> usize {
    (entry + 1) * REGION
}

/// An entry that is this process's until this is dropped.
#[derive(Debug)]
struct Hold<'a, W: Words, E: World, S: Store> {
    extents: Extents<'a, W, E, S>,
    entry: usize,
    /// A copy of this process holds nothing by its copy of this.
    owner: Identity,
}

impl<W: Words, E: World, S: Store> Hold<'_, W, E, S> {
    fn is_own(&self) -> bool {
        self.owner == self.extents.world.me()
    }

    fn check_own(&self) -> Result<()> {
        if self.is_own() { Ok(()) } else { Err(Error::NotOwner) }
    }
}

impl<W: Words, E: World, S: Store> Drop for Hold<'_, W, E, S> {
    fn drop(&mut self) {
        if self.is_own() {
            self.extents.free(self.entry);
        }
    }
}

/// Room for an item, which is free again if this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved<'a, W: Words, E: World, S: Store> {
    hold: Hold<'a, W, E, S>,
    len: usize,
}

impl<W: Words, E: World, S: Store> Reserved<'_, W, E, S> {
    /// What the frame says.
    pub(crate) fn entry(&self) -> usize {
        self.hold.entry
    }

    /// Writes a part of the item. It blocks for some 0.1 to 0.4 ms for each MiB.
    ///
    /// # Errors
    /// When there is no memory, or this is a copy of the process that reserved it.
    ///
    /// # Panics
    /// If it is longer than what was reserved.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        assert!(at <= self.len && bytes.len() <= self.len - at, "it was to be smaller");
        self.hold.check_own()?;
        let start = region(self.hold.entry) + at;
        for (i, piece) in bytes.chunks(PIECE).enumerate() {
            self.hold.extents.store.write(start + i * PIECE, piece)?;
        }
        Ok(())
    }

    /// Says that it is all written, and belongs to the frame that is going to lie at `ticket`. For who has the
    /// producers' lock, and then copies that frame, and has the ring's tail go past it: until then that may come
    /// to nothing by its death only.
    ///
    /// # Errors
    /// If this is a copy of the process that reserved it.
    pub(crate) fn commit(self, ticket: u64) -> Result<()> {
        self.hold.check_own()?;
        let extents = &self.hold.extents;
        extents.words.store(extents.ticket(self.hold.entry), ticket.wrapping_add(1), Release);
        std::mem::forget(self.hold);
        Ok(())
    }
}

/// An item that is out of the ring. Its extent is free once this is dropped.
#[derive(Debug)]
pub(crate) struct Claimed<'a, W: Words, E: World, S: Store> {
    hold: Hold<'a, W, E, S>,
    len: usize,
}

impl<W: Words, E: World, S: Store> Claimed<'_, W, E, S> {
    /// Appends the item. It blocks for some 0.1 to 0.3 ms for each MiB.
    ///
    /// # Errors
    /// When there is no memory, the length cannot be, or this is a copy of the process that claimed it. What was
    /// appended then is no item.
    pub(crate) fn read(&self, into: &mut Vec<u8>) -> Result<()> {
        self.hold.check_own()?;
        let (store, at) = (self.hold.extents.store, region(self.hold.entry));
        // So much memory as a scribbled length says is not asked for unless somebody has written as much.
        if self.len > KEPT && !store.is_written(at, self.len)? {
            return Err(Error::Malformed("its length is not that of what was written"));
        }
        Ok(store.read(at, self.len, into)?)
    }
}

#[cfg(all(test, multiprocess))]
mod tests;
