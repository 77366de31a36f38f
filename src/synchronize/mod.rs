//! Locks, semaphores, conditions, events and barriers between processes.

mod barrier;
mod condition;
mod event;
pub(crate) mod exchange;
#[cfg(all(test, multiprocess))]
pub(crate) mod heap;
mod lock;
pub(crate) mod object;
pub(crate) mod protocol;
mod rlock;
mod semaphore;
#[cfg(all(test, multiprocess))]
pub(crate) mod tests;
pub(crate) mod wait;

pub use barrier::{Barrier, BarrierBuilder};
pub use condition::{Condition, ConditionGuard, ConditionLock};
pub use event::Event;
pub(crate) use lock::KIND as LOCK;
pub use lock::{Lock, LockGuard, OwnedLockGuard};
pub use rlock::{RLock, RLockGuard};
pub use semaphore::{BoundedSemaphore, OwnedSemaphoreGuard, Semaphore, SemaphoreGuard};
