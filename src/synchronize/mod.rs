//! Locks, semaphores, conditions, events and barriers between processes.

mod exchange;
mod lock;
#[allow(dead_code, reason = "until all of them are there")]
mod object;
#[allow(dead_code, unused_imports, reason = "until all of them are there")]
mod protocol;
mod wait;

pub use lock::{Lock, LockGuard, OwnedLockGuard};
