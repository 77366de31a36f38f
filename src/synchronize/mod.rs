//! Locks, semaphores, conditions, events and barriers between processes.

mod condition;
mod event;
mod exchange;
mod lock;
#[allow(dead_code, reason = "until all of them are there")]
mod object;
#[allow(dead_code, unused_imports, reason = "until all of them are there")]
mod protocol;
mod rlock;
mod wait;

pub use condition::{Condition, ConditionGuard, ConditionLock};
pub use event::Event;
pub use lock::{Lock, LockGuard, OwnedLockGuard};
pub use rlock::{RLock, RLockGuard};
