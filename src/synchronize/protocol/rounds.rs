//! A barrier's rounds: a [`Tally`] whose value is how many parties are inside, whose counts are how many of
//! each process, and whose state is the [`Phase`].
//!
//! | from | to | when |
//! |---|---|---|
//! | filling | draining | the last party arrives and there is no action |
//! | filling | acting | the last party arrives: it runs the action |
//! | acting | draining | the action is done |
//! | draining, resetting | filling | the last party leaves |
//! | filling, acting | broken | a party dies, runs out of time, or fails in the action |
//! | any | broken | `abort` |
//! | filling, acting, broken | resetting, or filling if nobody is inside | `reset` |
//!
//! Who is inside sees each change of phase that is of its concern, as its round ends with its own leaving at
//! the earliest: neither does a barrier that drains fill again before, nor one that is reset. Who comes while
//! it drains waits outside.
//!
//! A process whose cell is in the barrier has arrived there at least once. It takes it with it when it leaves
//! for good. If it dies instead, the others wait for it in vain: the round is broken, or if it is past, and
//! those inside are on their way out, the next one, as the dead one's cell stays until then.

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
            _ => Phase::Broken,
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
    pub(crate) fn arrive(&self, cell: Cell, has_action: bool) -> Arrival {
        let arrival = self.tally.update(|now| {
            match now.phase() {
                Phase::Filling => {}
                Phase::Broken => return Err(Arrival::Broken),
                Phase::Acting | Phase::Draining | Phase::Resetting => return Err(Arrival::Early),
            }
            let inside = now.with_value(now.value + 1).with(cell, Change::Up);
            Ok(if inside.value < self.parties {
                (inside, Arrival::Waits)
            } else if has_action {
                (inside.with_phase(Phase::Acting), Arrival::Acts)
            } else {
                (inside.with_phase(Phase::Draining), Arrival::Completes)
            })
        });
        arrival.unwrap_or_else(|outside| outside)
    }

    /// One of those inside leaves, if its round has ended.
    pub(crate) fn pass(&self, cell: Cell) -> Option<Left> {
        let left = self.tally.update(|now| {
            let passed = match now.phase() {
                Phase::Filling | Phase::Acting => return Err(()),
                Phase::Draining => true,
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

    /// The action is done: all can leave, if nothing has happened to them meanwhile.
    pub(crate) fn acted(&self) -> bool {
        let done = self.tally.update(|now| {
            if now.phase() == Phase::Acting { Ok((now.with_phase(Phase::Draining), ())) } else { Err(()) }
        });
        done.is_ok()
    }

    /// Breaks it, whatever goes on.
    pub(crate) fn abort(&self) {
        let Ok(()) =
            self.tally.update(|now| Ok::<_, std::convert::Infallible>((now.with_phase(Phase::Broken), ())));
    }

    /// Makes it as new, once all have left who are inside. Those who are on their way out are let go.
    pub(crate) fn reset(&self, world: &impl World) {
        // Who has died so far was one of the old round, and must not break the new one. It breaks the old one,
        // so that it is broken if this process dies too, before it comes to reset it.
        self.bury(world);
        let _ = self.tally.update(|now| match now.phase() {
            Phase::Draining | Phase::Resetting => Err(()),
            _ if now.value == 0 => Ok((now.with_phase(Phase::Filling), ())),
            _ => Ok((now.with_phase(Phase::Resetting), ())),
        });
    }

    /// Takes out who is dead, and breaks the round by it. Whether others can go on by that. It takes some
    /// 10 µs for each process.
    pub(crate) fn bury(&self, world: &impl World) -> bool {
        let dead = cells::dead(self.tally.0, world);
        dead.fold(false, |frees, (cell, dead)| self.reap(cell, dead) | frees)
    }

    /// The same for one.
    pub(crate) fn reap(&self, cell: Cell, dead: Identity) -> bool {
        let mut frees = false;
        // First out of a round that it has passed, then breaking the next one.
        while let Ok(changes) = self.tally.update(|now| {
            // The cell is cleared only once the barrier is broken, and the barrier is reset only after that:
            // whoever is late here and finds it this process's still, with this central word, has it from
            // before.
            if cells::owner(self.tally.0, cell) != Some(dead) {
                return Err(now.phase());
            }
            let held = self.tally.count(cell);
            let breaks = matches!(now.phase(), Phase::Filling | Phase::Acting);
            if held == 0 && !breaks {
                return Err(now.phase());
            }
            let after = if breaks { now.with_phase(Phase::Broken) } else { now };
            let after = after.without(u32::try_from(held).unwrap_or(u32::MAX)).with(cell, Change::Clear);
            Ok((after, after.phase() != now.phase()))
        }) {
            frees |= changes;
        }
        if self.phase() == Phase::Broken {
            cells::clear(self.tally.0, cell, dead);
        }
        frees
    }

    /// How many of this process's parties, or of a dead one's, are inside.
    pub(crate) fn held(&self, cell: Cell) -> u64 {
        self.tally.settle();
        self.tally.count(cell)
    }
}
