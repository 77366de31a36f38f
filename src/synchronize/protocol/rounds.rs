//! A barrier's rounds: a [`Tally`] whose value is how many parties are inside, whose counts are how many of
//! each process, and whose state is the [`Phase`].
//!
//! | from | to | when |
//! |---|---|---|
//! | filling | draining | the last party arrives and there is no action |
//! | filling | acting | the last party arrives: it runs the action |
//! | acting | draining | the action is done |
//! | draining, resetting | filling | the last party leaves |
//! | filling, acting, resetting | broken | `abort`; a process dies; a party runs out of time, or fails in the action |
//! | draining | closing | `abort`; a process dies |
//! | closing | broken | the last party leaves |
//! | filling, acting, broken | resetting, or filling if nobody is inside | `reset` |
//! | closing | draining | `reset` |
//!
//! Who is inside sees each change of phase that is of its concern, as its round ends with its own leaving at
//! the earliest: neither does a barrier that drains fill again before, nor one that is reset. Who comes while
//! it drains waits outside. Who has been let through is through, whatever happens to the barrier.
//!
//! A process whose cell is in the barrier has arrived there at least once. It takes the cell with it when it
//! leaves for good, or takes leave before it ends as it should. If it dies instead, the others would wait for
//! it in vain: so its death breaks the round that goes on, or if that is past, and those inside are on their
//! way out, the next one.

use super::tally::{Change, LIMIT, Standing, Tally};
use super::{Cell, Identity, Words, World, cells};

/// What goes on inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Parties arrive, and wait.
    Filling = 0,
    /// All are there, and one of them runs the action.
    Acting = 1,
    /// All are through, and leave.
    Draining = 2,
    /// They leave with an error; then it is as new.
    Resetting = 3,
    /// They leave with an error, and nobody enters until it is reset.
    Broken = 4,
    /// All are through, and leave; then it is broken.
    Closing = 5,
}

impl Phase {
    /// What comes of it if the barrier breaks.
    fn breaking(self) -> Self {
        match self {
            Self::Filling | Self::Acting | Self::Resetting | Self::Broken => Self::Broken,
            Self::Draining | Self::Closing => Self::Closing,
        }
    }

    /// Whether nobody enters until it is reset.
    pub(crate) fn is_broken(self) -> bool {
        self == self.breaking()
    }
}

/// What became of somebody who came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is inside, and others are missing.
    Waits,
    /// It is inside, and was the last: all can leave.
    Completes,
    /// It is inside, and was the last: it has to run the action.
    Acts,
    /// It is outside, until those inside have left.
    Early,
    /// It is outside, as the barrier is broken.
    Broken,
}

/// What somebody found who has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Which of the parties it was, counted from the last to leave; `None` if the round was not passed.
    pub(crate) index: Option<usize>,
    /// Whether others can go on only now.
    pub(crate) frees: bool,
}

/// A barrier's rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds<'a, W> {
    tally: Tally<'a, W>,
    parties: u32,
}

impl Standing {
    pub(crate) fn phase(self) -> Phase {
        match self.state {
            0 => Phase::Filling,
            1 => Phase::Acting,
            2 => Phase::Draining,
            3 => Phase::Resetting,
            4 => Phase::Broken,
            _ => Phase::Closing,
        }
    }

    fn with_phase(self, phase: Phase) -> Self {
        self.with_state(phase as u8)
    }

    /// Without so many of those inside. The last one shuts the door behind it.
    fn without(self, parties: u32) -> Self {
        let left = self.with_value(self.value.saturating_sub(parties));
        match left.phase() {
            Phase::Draining | Phase::Resetting if left.value == 0 => left.with_phase(Phase::Filling),
            Phase::Closing if left.value == 0 => left.with_phase(Phase::Broken),
            _ => left,
        }
    }
}

impl<'a, W: Words> Rounds<'a, W> {
    /// How many parties there may be at most.
    pub(crate) const LIMIT: u32 = LIMIT;

    /// Of an object whose words are zero at first.
    pub(crate) fn of(words: &'a W, parties: u32) -> Self {
        Self { tally: Tally(words), parties }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.tally.standing().phase()
    }

    /// How many have arrived and wait for others.
    pub(crate) fn waiting(&self) -> u32 {
        let now = self.tally.standing();
        if now.phase() == Phase::Filling { now.value } else { 0 }
    }

    /// A party comes. If it is inside then, it has to leave: by [`pass`](Self::pass) or
    /// [`withdraw`](Self::withdraw).
    ///
    /// The last one to come looks whether the others are alive, before it lets them through.
    pub(crate) fn arrive(&self, world: &impl World, cell: Cell, has_action: bool) -> Arrival {
        let mut has_looked = false;
        loop {
            let arrival = self.tally.update(|now| {
                match now.phase() {
                    Phase::Filling => {}
                    Phase::Broken | Phase::Closing => return Err(Some(Arrival::Broken)),
                    Phase::Acting | Phase::Draining | Phase::Resetting => return Err(Some(Arrival::Early)),
                }
                let inside = now.with_value(now.value + 1).with(cell, Change::Up);
                if inside.value < self.parties {
                    Ok((inside, Arrival::Waits))
                } else if !has_looked {
                    Err(None)
                } else if has_action {
                    Ok((inside.with_phase(Phase::Acting), Arrival::Acts))
                } else {
                    Ok((inside.with_phase(Phase::Draining), Arrival::Completes))
                }
            });
            match arrival {
                Ok(arrival) | Err(Some(arrival)) => return arrival,
                Err(None) => has_looked = true,
            }
            self.bury(world);
        }
    }

    /// One of those inside leaves, if its round has ended.
    pub(crate) fn pass(&self, cell: Cell) -> Option<Left> {
        let left = self.tally.update(|now| {
            let passed = match now.phase() {
                Phase::Filling | Phase::Acting => return Err(()),
                Phase::Draining | Phase::Closing => true,
                Phase::Resetting | Phase::Broken => false,
            };
            let after = now.without(1).with(cell, Change::Down);
            let index = passed.then_some(after.value as usize);
            Ok((after, Left { index, frees: after.phase() != now.phase() }))
        });
        left.ok()
    }

    /// One of those inside leaves, however it stands, and if others would still need it, breaks their round if
    /// it says so. Whether they can go on by that.
    pub(crate) fn withdraw(&self, cell: Cell, breaks: bool) -> bool {
        let left = self.tally.update(|now| {
            let after = match now.phase() {
                Phase::Filling | Phase::Acting if breaks => now.with_phase(Phase::Broken),
                _ => now,
            };
            let after = after.without(1).with(cell, Change::Down);
            Ok::<_, std::convert::Infallible>((after, after.phase() != now.phase()))
        });
        let Ok(frees) = left;
        frees
    }

    /// A process is about to end, and none of its parties is inside: it will not be missed. If one comes after
    /// that all the same, it will.
    pub(crate) fn take_leave(&self, cell: Cell) {
        let _ = self.tally.update(|now| {
            if self.tally.count(cell) == 0 { Ok((now.with(cell, Change::Leave), ())) } else { Err(()) }
        });
    }

    /// The action is done: all can leave, if nothing has happened to them meanwhile.
    pub(crate) fn acted(&self) -> bool {
        let done = self.tally.update(|now| {
            if now.phase() == Phase::Acting { Ok((now.with_phase(Phase::Draining), ())) } else { Err(()) }
        });
        done.is_ok()
    }

    /// Breaks it. Those who are through leave as if nothing had happened.
    pub(crate) fn abort(&self) {
        let Ok(()) = self.tally.update(|now| {
            Ok::<_, std::convert::Infallible>((now.with_phase(now.phase().breaking()).without(0), ()))
        });
    }

    /// Makes it as new, once all have left who are inside. Those who are on their way out are let go.
    pub(crate) fn reset(&self, world: &impl World) {
        // Who has died so far was one of the old round, and must not break the new one. It breaks the old one,
        // so that it is broken if this process dies too, before it comes to reset it.
        self.bury(world);
        let _ = self.tally.update(|now| match now.phase() {
            Phase::Draining | Phase::Resetting => Err(()),
            Phase::Closing => Ok((now.with_phase(Phase::Draining), ())),
            Phase::Filling | Phase::Acting | Phase::Broken => {
                Ok((now.with_phase(Phase::Resetting).without(0), ()))
            }
        });
    }

    /// Takes out who is dead, and breaks the barrier by it. Whether others can go on by that. It takes some
    /// 10 µs for each process.
    pub(crate) fn bury(&self, world: &impl World) -> bool {
        let dead = cells::dead(self.tally.0, world);
        dead.fold(false, |frees, (cell, dead)| self.reap(cell, dead) | frees)
    }

    /// The same for one.
    pub(crate) fn reap(&self, cell: Cell, dead: Identity) -> bool {
        let frees = self.tally.update(|now| {
            // The barrier is broken before the cell is cleared, and reset only after that: whoever is late here
            // and still finds it the dead one's, with this central word, does not break what was reset.
            if cells::owner(self.tally.0, cell) != Some(dead) {
                return Err(());
            }
            let held = self.tally.count(cell);
            if held == 0 && (now.phase().is_broken() || self.tally.has_left(cell)) {
                return Err(());
            }
            let after = now.with_phase(now.phase().breaking());
            let after = after.without(u32::try_from(held).unwrap_or(u32::MAX)).with(cell, Change::Clear);
            Ok((after, after.phase() != now.phase()))
        });
        cells::clear(self.tally.0, cell, dead);
        frees.unwrap_or(false)
    }

    /// How many of this process's parties, or of a dead one's, are inside.
    pub(crate) fn held(&self, cell: Cell) -> u64 {
        self.tally.settle();
        self.tally.count(cell)
    }
}
