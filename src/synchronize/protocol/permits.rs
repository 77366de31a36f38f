//! A semaphore's permits: a [`Tally`] whose value is how many are free, and whose counts are how many guards
//! each process has.

use super::tally::{Change, LIMIT, Standing, Tally};
use super::{Cell, Identity, Words, World, cells};

/// A semaphore's permits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permits<'a, W> {
    tally: Tally<'a, W>,
    /// How many there may be free: more come from nowhere but a release that nothing went before.
    bound: u32,
}

/// There are as many as there may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<'a, W: Words> Permits<'a, W> {
    /// How many may be free at all.
    pub(crate) const LIMIT: u32 = LIMIT;

    /// Of an object whose permits have [begun](Self::begin).
    pub(crate) fn of(words: &'a W, bound: u32) -> Self {
        Self { tally: Tally(words), bound }
    }

    /// Before anybody else knows the object.
    pub(crate) fn begin(words: &'a W, free: u32) {
        Tally(words).begin(Standing::new(free));
    }

    /// How many are free.
    pub(crate) fn free(&self) -> u32 {
        self.tally.standing().value
    }

    /// Takes one, if one is free: for a guard in the process of that cell, or for nobody in particular.
    pub(crate) fn take(&self, holder: Option<Cell>) -> bool {
        let took = self.tally.update(|now| match now.value {
            0 => Err(()),
            free => Ok((part(now.with_value(free - 1), holder, Change::Up), ())),
        });
        took.is_ok()
    }

    /// Gives one back that a guard in the process of that cell has. If strangers released so many that there
    /// is no place for it, it is none: who drops a guard cannot be told.
    pub(crate) fn give_back(&self, holder: Cell) {
        let Ok(()) = self.tally.update(|now| {
            let free = now.value.saturating_add(1).min(self.bound);
            Ok::<_, std::convert::Infallible>((now.with_value(free).with(holder, Change::Down), ()))
        });
    }

    /// Adds one that nobody in particular had.
    pub(crate) fn add(&self) -> Result<(), Full> {
        self.tally.update(|now| {
            if now.value < self.bound { Ok((now.with_value(now.value + 1), ())) } else { Err(Full) }
        })
    }

    /// Frees what the guards of dead processes had, and says how many that were. It looks after those who have
    /// any, which takes some 10 µs for each.
    pub(crate) fn bury(&self, world: &impl World) -> u32 {
        let words = self.tally.0;
        // What somebody changed who is dead by now has reached its cell after this.
        self.tally.settle();
        let holders = cells::all(words).filter(|cell| self.tally.count(*cell) > 0);
        let holders = holders.filter_map(|cell| Some((cell, cells::owner(words, cell)?)));
        let freed = holders.filter(|(_, owner)| world.is_dead(*owner)).map(|(cell, dead)| {
            let held = self.reap(cell, dead);
            cells::clear(words, cell, dead);
            held
        });
        freed.fold(0, u32::saturating_add)
    }

    /// Frees what a dead process's guards had. How many were that, if it was not done already?
    pub(crate) fn reap(&self, cell: Cell, dead: Identity) -> u32 {
        let freed = self.tally.update(|now| {
            let held = self.tally.count(cell);
            // It may have been done, and the cell be another's by now. What is seen here is so for the central
            // word that is compared: that process would have changed it to have anything in the cell.
            if held == 0 || cells::owner(self.tally.0, cell) != Some(dead) {
                return Err(());
            }
            let held = u32::try_from(held).unwrap_or(u32::MAX);
            let free = now.value.saturating_add(held).min(self.bound);
            Ok((now.with_value(free).with(cell, Change::Clear), held))
        });
        freed.unwrap_or(0)
    }

    /// What the guards in this process's cell, or in a dead one's, have.
    pub(crate) fn held(&self, cell: Cell) -> u64 {
        self.tally.settle();
        self.tally.count(cell)
    }
}

fn part(standing: Standing, holder: Option<Cell>, change: Change) -> Standing {
    match holder {
        Some(cell) => standing.with(cell, change),
        None => standing,
    }
}
