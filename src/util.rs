//! What runs when a process forks or ends, and how this crate takes its locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use crate::process::Finalize;

/// Locks, whatever happened to an earlier holder: the data under this crate's locks is valid
/// between any two statements.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type AfterFork = Box<dyn Fn() + Send + Sync>;

/// Lives on in forked children, unlike what [`PerProcess`] holds: that is its purpose. The lock is
/// only held for an instant, never while an action runs.
static AFTER_FORK: Mutex<Vec<std::sync::Arc<AfterFork>>> = Mutex::new(Vec::new());

/// Has `action` run first thing in every child that the start method `fork` makes of this process
/// from now on, in the order of registration: to make anew what a copied process must not share,
/// such as random state or caches of open connections.
pub fn register_after_fork(action: impl Fn() + Send + Sync + 'static) {
    lock(&AFTER_FORK).push(std::sync::Arc::new(Box::new(action)));
}

/// Keeps the list from being locked by another thread while the process is copied.
pub(crate) fn hold_after_fork() -> impl Drop {
    lock(&AFTER_FORK)
}

pub(crate) fn run_after_fork() {
    let actions = lock(&AFTER_FORK).clone();
    for action in actions {
        action();
    }
}
