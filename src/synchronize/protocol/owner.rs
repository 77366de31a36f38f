//! The owner: a word that says who holds a lock.
//!
//! | bits | mean | set by | cleared by |
//! |---|---|---|---|
//! | 0..62 | who holds it; 0: nobody | who takes it, in one step from 0 or from a dead one | who gives it back |
//! | [`WAITERS`] | somebody may sleep for it | who is about to sleep; who takes it after it has slept | who gives it back, who then rings |
//! | [`STARVING`] | somebody has slept for long: only who has slept may take it | that one | who takes it |
//!
//! Who holds it is part of what the compare-and-swap writes, so there is no instant at which it is taken and
//! nobody knows by whom.

use std::sync::atomic::Ordering;

use super::{Identity, STATE, Words, World};

const OWNER: u64 = (1 << 62) - 1;
const WAITERS: u64 = 1 << 62;
const STARVING: u64 = 1 << 63;

/// Where it is told that an owner died with it: 1 until that is acknowledged.
const BEQUEATHED: usize = STATE + 8;

/// Who has it by nobody's name, for any process to give it back: never dead.
pub(crate) const UNNAMED: Identity = Identity(OWNER);

/// How somebody asks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attempt {
    /// Has slept for it, and goes before who comes now.
    pub(crate) slept: bool,
    /// Is about to sleep, and has announced that: leaves word with whoever holds it.
    pub(crate) leaves_word: bool,
    /// Has slept for long.
    pub(crate) starves: bool,
    /// Looks whether the owner is alive, which takes 10 to 30 µs.
    pub(crate) looks: bool,
}

/// Takes it, if nobody has it or a dead one.
pub(crate) fn try_take(words: &impl Words, world: &impl World, taker: Identity, attempt: Attempt) -> bool {
    let mut looked = None;
    let mut word = words.load(STATE, Ordering::Relaxed);
    loop {
        let owner = Identity(word & OWNER);
        let mut is_dead = || {
            if looked != Some(owner) && attempt.looks && owner != UNNAMED && world.is_dead(owner) {
                looked = Some(owner);
            }
            looked == Some(owner)
        };
        let goes_before = word & STARVING == 0 || attempt.slept;
        let inherits = owner.0 != 0 && goes_before && is_dead();
        let takes = inherits || owner.0 == 0 && goes_before;
        let new = if takes {
            // Who has slept cannot know whether others do.
            taker.0 | if attempt.slept { WAITERS } else { word & WAITERS }
        } else if attempt.leaves_word {
            word | WAITERS | if attempt.starves { STARVING } else { 0 }
        } else {
            return false;
        };
        if new == word {
            return false;
        }
        match words.compare_exchange(STATE, word, new) {
            Ok(_) => {
                // After, as before it somebody else could take it, be told, and acknowledge. Who dies in between
                // is the next one's dead owner.
                if inherits {
                    words.store(BEQUEATHED, 1, Ordering::Relaxed);
                }
                return takes;
            }
            Err(now) => word = now,
        }
    }
}

/// Gives it back, and says whether to ring. `None` if it is not this owner's.
pub(crate) fn give_back(words: &impl Words, owner: Identity) -> Option<bool> {
    let mut word = words.load(STATE, Ordering::Relaxed);
    while word & OWNER == owner.0 {
        match words.compare_exchange(STATE, word, word & STARVING) {
            Ok(_) => return Some(word & WAITERS != 0),
            Err(now) => word = now,
        }
    }
    None
}

/// Who has it.
pub(crate) fn holder(words: &impl Words) -> Option<Identity> {
    match words.load(STATE, Ordering::Acquire) & OWNER {
        0 => None,
        owner => Some(Identity(owner)),
    }
}

/// Whether it could be taken, by who has slept; else leaves word that somebody sleeps for it. With `looks`, a
/// dead owner's can be taken.
pub(crate) fn is_free_or_told(words: &impl Words, world: &impl World, looks: bool) -> bool {
    let mut word = words.load(STATE, Ordering::Acquire);
    loop {
        let owner = Identity(word & OWNER);
        if owner.0 == 0 || looks && owner != UNNAMED && world.is_dead(owner) {
            return true;
        }
        if word & WAITERS != 0 {
            return false;
        }
        match words.compare_exchange(STATE, word, word | WAITERS) {
            Ok(_) => return false,
            Err(now) => word = now,
        }
    }
}

/// Takes back that somebody starves: it waits no more.
pub(crate) fn starves_no_more(words: &impl Words) {
    words.fetch_and(STATE, !STARVING, Ordering::Relaxed);
}

/// Whether an owner died with it, and nobody has acknowledged that. For who holds it.
pub(crate) fn was_bequeathed(words: &impl Words) -> bool {
    words.load(BEQUEATHED, Ordering::Relaxed) != 0
}

/// Acknowledges it. For who holds it.
pub(crate) fn acknowledge(words: &impl Words) {
    words.store(BEQUEATHED, 0, Ordering::Relaxed);
}

#[cfg(all(test, multiprocess))]
mod tests;
