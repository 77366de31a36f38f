//! The memory and the world as the protocols see them.

use std::sync::atomic::Ordering;

use crate::sys::identity;
use crate::sys::memory::Shared;

/// Who a process is, for as long as anything remembers it: never zero, the two highest bits clear, and of no
/// two processes the same, not even of two that had the same number after one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity(pub(crate) u64);

/// Words in shared memory, by their place in bytes.
///
/// Each method is one access, before which a process may die: what follows in a protocol may never come.
pub(crate) trait Words {
    /// How many cells there are.
    fn cells(&self) -> usize;
    fn load(&self, at: usize, order: Ordering) -> u64;
    fn store(&self, at: usize, value: u64, order: Ordering);
    /// Sequentially consistent, whether it succeeds or not.
    fn compare_exchange(&self, at: usize, current: u64, new: u64) -> Result<u64, u64>;
    fn fetch_or(&self, at: usize, bits: u64, order: Ordering) -> u64;
    fn fetch_and(&self, at: usize, bits: u64, order: Ordering) -> u64;
    /// Sequentially consistent: between a store and a load that must not be exchanged.
    fn fence(&self);
}

/// Who acts, and who is dead.
pub(crate) trait World {
    fn me(&self) -> Identity;
    /// True only if it is certain: a process that is stopped, hidden, or cannot be asked for is not dead.
    fn is_dead(&self, who: Identity) -> bool;
}

/// The real world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Here;

impl World for Here {
    #[inline]
    fn me(&self) -> Identity {
        Identity(identity::me())
    }

    fn is_dead(&self, who: Identity) -> bool {
        identity::is_dead(who.0)
    }
}

impl Words for Shared {
    #[inline]
    fn cells(&self) -> usize {
        super::CELLS
    }

    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u64 {
        kill_point();
        self.atomic_u64(at).load(order)
    }

    #[inline]
    fn store(&self, at: usize, value: u64, order: Ordering) {
        kill_point();
        self.atomic_u64(at).store(value, order);
    }

    #[inline]
    fn compare_exchange(&self, at: usize, current: u64, new: u64) -> Result<u64, u64> {
        kill_point();
        self.atomic_u64(at).compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
    }

    #[inline]
    fn fetch_or(&self, at: usize, bits: u64, order: Ordering) -> u64 {
        kill_point();
        self.atomic_u64(at).fetch_or(bits, order)
    }

    #[inline]
    fn fetch_and(&self, at: usize, bits: u64, order: Ordering) -> u64 {
        kill_point();
        self.atomic_u64(at).fetch_and(bits, order)
    }

    #[inline]
    fn fence(&self) {
        kill_point();
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Where a process may be killed that a test has put on its way: before each access to what is shared.
#[cfg(not(test))]
#[inline]
pub(crate) fn kill_point() {}

#[cfg(test)]
pub(crate) use kill_points::pass as kill_point;

#[cfg(test)]
pub(crate) mod kill_points {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// How many this process still passes.
    static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

    /// Has this process killed at the point of this number, from here on, counted from zero.
    pub(crate) fn kill_at(number: u64) {
        LEFT.store(number, Ordering::SeqCst);
    }

    pub(crate) fn pass() {
        if LEFT.load(Ordering::Relaxed) != u64::MAX && LEFT.fetch_sub(1, Ordering::SeqCst) == 0 {
            let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
        }
    }
}
