//! Locks, semaphores, conditions, events and barriers between processes.

#[allow(dead_code, unused_imports, reason = "until all of them are there")]
mod protocol;
