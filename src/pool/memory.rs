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
    pub(super) fn is_too_much(&mut self, own: &Own) -> bool {
        let now = sys::fd::monotonic_ns();
        if now - self.looked_at < LOOK_EVERY {
            return false;
        }
        self.looked_at = now;
        // What cannot be looked at is left alone.
        own.anonymous().is_ok_and(|held| held > self.limit)
    }
}

/// What there is ahead of an item with a limit, and what keeps the item from one huge allocation as
/// long as this lives.
#[derive(Debug)]
pub(super) struct Limited {
    /// `None` if that cannot be seen: then no growth is, either.
    pub(super) held: Option<u64>,
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
    /// Nothing but the kernel's own limit is enforced without `own`.
    pub(super) fn begin(limit: u64, own: Option<&Own>, group: Option<Arc<Group>>) -> Self {
        let look = own.and_then(|own| own.look().ok());
        let data = look.as_ref().and_then(|look| {
            let most = limit.saturating_mul(2).saturating_add(SLACK).saturating_add(look.data);
            DataLimit::lower(most).ok()
        });
        let group = group.filter(|group| cgroup::limit_memory(&group.used, &group.max, limit).is_ok());
        Self { held: look.and_then(|look| look.held.ok()), _data: data, group }
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
