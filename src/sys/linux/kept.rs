//! Descriptors that a forked child keeps, though they were not transferred: those of statics that several
//! processes share.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lives on in forked children, unlike what `PerProcess` holds.
static KEPT: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// As long as it lives, children that the start method `fork` makes have the descriptor too, under the same
/// number.
#[derive(Debug)]
pub(crate) struct Kept(RawFd);

impl Kept {
    /// It is to be dropped before the descriptor is closed.
    pub(crate) fn new(fd: BorrowedFd) -> Self {
        kept().insert(fd.as_raw_fd());
        Self(fd.as_raw_fd())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        kept().remove(&self.0);
    }
}

/// Those that are kept now. While this lives no other thread changes them, or holds their lock in a copy of
/// this process.
pub(crate) fn kept() -> MutexGuard<'static, BTreeSet<RawFd>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}
