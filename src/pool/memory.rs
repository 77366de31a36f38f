//! How much memory workers hold.

use crate::sys;

/// How often a worker looks at most, in nanoseconds.
const LOOK_EVERY: u64 = 1_000_000;

/// A worker's look at its own memory, between items.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    limit: u64,
    looked_at: u64,
}

impl MemoryWatch {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, looked_at: 0 }
    }

    /// Whether this process holds more than the limit, if it is time to look.
    pub(super) fn is_too_much(&mut self) -> bool {
        let now = sys::fd::monotonic_ns();
        if now - self.looked_at < LOOK_EVERY {
            return false;
        }
        self.looked_at = now;
        // What cannot be looked at is left alone.
        sys::usage::own_anonymous().is_ok_and(|held| held > self.limit)
    }
}
