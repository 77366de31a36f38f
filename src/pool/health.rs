//! What can be expected of a pool.

use std::time::Duration;

/// How a pool is at one moment: see [`Pool::health`](super::Pool::health).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// No worker is ready yet, or none of them shows life. Calls wait for one.
    Starting,
    /// It can run a task at once, or start a worker for it.
    Ready,
    /// As many tasks run as may, and others wait.
    Busy,
    /// No worker can be had. When starts fail, calls fail at once; the pool goes on trying, with one
    /// start at a time, and the first worker that is ready mends it. When workers are killed from
    /// outside as soon as they are ready, calls wait for one that lasts.
    Broken {
        /// What the last try came to.
        why: String,
        /// How long it waits before it tries again; zero while it tries.
        next_try: Duration,
    },
    /// It takes no more calls.
    Closed,
}

impl Health {
    /// Whether calls that are made now will run, sooner or later.
    pub fn is_fit(&self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Busy)
    }
}
