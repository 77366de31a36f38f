//! Cells: a place for each process in an object.
//!
//! | identity | set by | means |
//! |---|---|---|
//! | 0 | its process, when it drops its last handle; whoever reaps it | free |
//! | a process's | that process, by a compare-and-swap from 0 | that process's, alive or dead |

use std::sync::atomic::Ordering;

use super::{Cell, Identity, Words, World};

/// Takes a free cell, if need be one of a dead process, of which `reap` says that it has taken all that
/// belongs to it out.
pub(crate) fn claim(words: &impl Words, world: &impl World, reap: impl Fn(Cell)) -> Option<Cell> {
    let free = || {
        all(words).find(|cell| {
            words.load(cell.identity(), Ordering::Relaxed) == 0
                && words.compare_exchange(cell.identity(), 0, world.me().0).is_ok()
        })
    };
    free().or_else(|| {
        dead(words, world).for_each(|(cell, owner)| {
            reap(cell);
            clear(words, cell, owner);
        });
        free()
    })
}

/// Frees a cell that is this process's own, or a dead one's from which all was taken. Whoever is slow in that
/// does not free it for a second time, under the next process.
pub(crate) fn clear(words: &impl Words, cell: Cell, owner: Identity) {
    let _ = words.compare_exchange(cell.identity(), owner.0, 0);
}

/// Whose it is, if it is anybody's.
pub(crate) fn owner(words: &impl Words, cell: Cell) -> Option<Identity> {
    match words.load(cell.identity(), Ordering::Acquire) {
        0 => None,
        identity => Some(Identity(identity)),
    }
}

/// All of them, free or not.
pub(crate) fn all(words: &impl Words) -> impl Iterator<Item = Cell> {
    (0..words.cells()).map(Cell)
}

/// Those of dead processes. It costs some 10 µs for each cell that is taken.
pub(crate) fn dead(words: &impl Words, world: &impl World) -> impl Iterator<Item = (Cell, Identity)> {
    all(words).filter_map(|cell| Some((cell, owner(words, cell)?))).filter(|(_, owner)| world.is_dead(*owner))
}
