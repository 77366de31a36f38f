//! How much memory workers hold.

use std::sync::Arc;

use super::output::LastWords;
use crate::process::ExitStatus;
use crate::sys::usage::{DataLimit, Own};
use crate::sys::{self, Fd, cgroup};

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

/// What there is ahead of an item with a limit, and what keeps the item from one huge allocation as
/// long as this lives.
#[derive(Debug)]
pub(super) struct Limited {
    pub(super) held: u64,
    _data: Option<DataLimit>,
    group: Option<Arc<Group>>,
}

/// The memory of a worker's control group: what is used, and how much may be.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) used: Fd,
    pub(super) max: Fd,
}

/// How much more than twice an item's limit may be mapped: runtimes map stacks and arenas that they
/// hardly use.
const SLACK: u64 = 64 << 20;

impl Limited {
    pub(super) fn begin(limit: u64, group: Option<Arc<Group>>) -> Self {
        // Where nothing can be read nothing is enforced: no growth is seen beyond all there is.
        let Own { held, data } = Own::look().unwrap_or(Own { held: u64::MAX, data: u64::MAX });
        let most = limit.saturating_mul(2).saturating_add(SLACK).saturating_add(data);
        let group = group.filter(|group| cgroup::limit_memory(&group.used, &group.max, limit).is_ok());
        Self { held, _data: DataLimit::lower(most).ok(), group }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.group.iter().for_each(|group| cgroup::lift_limit(&group.max));
    }
}

/// Whether a worker ended for want of memory, as far as its last words say: Rust's allocator aborts.
pub(super) fn was_refused_memory(exit: ExitStatus, words: &LastWords) -> bool {
    exit.signal() == Some(sys::signal::ABRT) && words.refused_memory
}
