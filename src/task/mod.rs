//! What a task can do while it runs in a pool's worker.
//!
//! - [`current`]: which task this is, which attempt, how much time it has.
//! - [`progress`]: tell the caller how far it is.
//! - [`with_state`]: what the worker holds for its tasks.
//! - [`Input`]: a stream of values into the task.

pub(crate) mod flow;
mod input;
pub(crate) mod state;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use self::input::{Blocking, Input};
pub use self::state::with_state;
use crate::reduction::{encode, parent};
use crate::sys;

/// Which task of its pool this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TaskId {
    /// The call: each `apply`, `map` or stream has a number, unique in its pool. Retries keep it.
    pub job: u64,
    /// The item of the call, from 0 on; 0 where there is only one.
    pub item: u64,
}

/// As `job:item`.
impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.job, self.item)
    }
}

/// A task that runs in a worker: see [`current`].
///
/// A clone may go to other threads. It describes the task also after its end, when
/// [`progress`](Self::progress) does nothing any more.
#[derive(Clone)]
pub struct Current {
    id: TaskId,
    attempt: u32,
    deadline: Option<Instant>,
    name: &'static str,
    worker: Arc<Worker>,
}

/// What all tasks of a worker have in common.
pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) reports: Arc<dyn Reports>,
}

/// Where a worker's tasks say how far they are.
pub(crate) trait Reports: Send + Sync {
    /// Whether the caller of the task wants to hear of it, and it still runs.
    fn wants(&self, id: TaskId) -> bool;
    /// Passes it on, unless there is no room just now.
    fn report(&self, id: TaskId, value: &[u8]);
}

thread_local! {
    /// What runs on this thread.
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// A worker's run, as far as its tasks may know of it.
pub(crate) struct Running {
    pub(crate) id: TaskId,
    pub(crate) attempt: u32,
    /// In nanoseconds; 0 for none.
    pub(crate) timeout: u64,
    /// When the item began, by the kernel's clock, if it has a timeout.
    pub(crate) began_at: u64,
    pub(crate) name: &'static str,
    pub(crate) worker: Arc<Worker>,
}

/// Says what runs on this thread from now on.
pub(crate) fn set_running(running: Option<Running>) {
    RUNNING.set(running);
}

/// The next item of the same run has begun.
pub(crate) fn set_item(item: u64, began_at: u64) {
    RUNNING.with_borrow_mut(|running| {
        if let Some(running) = running {
            running.id.item = item;
            running.began_at = began_at;
        }
    });
}

/// The task that runs on this thread; `None` outside of a pool's worker, in its initializer, and on
/// threads that the task itself has started, to which it can give its own.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// fn which() -> u64 {
///     let current = mp::task::current().expect("a task");
///     assert_eq!(current.attempt(), 0);
///     current.id().item
/// }
///
/// #[tokio::main]
/// async fn main() -> mp::Result<()> {
///     let pool = mp::Pool::new(2).await?;
///     assert_eq!(pool.apply(which, ()).await?, 0);
///     assert_eq!(pool.map(|_: u8| which(), [7, 7, 7]).await?, [0, 1, 2]);
///     assert!(mp::task::current().is_none());
///     Ok(())
/// }
/// ```
pub fn current() -> Option<Current> {
    RUNNING.with_borrow(|running| {
        let running = running.as_ref()?;
        let Running { id, attempt, timeout, began_at, name, .. } = *running;
        let deadline = (timeout > 0).then(|| {
            let left = began_at.saturating_add(timeout).saturating_sub(sys::fd::monotonic_ns());
            Instant::now().checked_add(Duration::from_nanos(left))
        });
        Some(Current { id, attempt, deadline: deadline.flatten(), name, worker: running.worker.clone() })
    })
}

/// [`Current::progress`] of the task that runs on this thread; outside of a task it does nothing.
pub fn progress<P: Serialize + ?Sized>(value: &P) {
    if let Some(current) = current() {
        current.progress(value);
    }
}

impl Current {
    /// Which task it is.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// How often it was begun before, in a worker that died or was killed meanwhile: 0 in the first
    /// attempt, more only with [`retries`](crate::Apply::retries).
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When its timeout is over and it is killed; `None` without a timeout.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The name of its function's type.
    pub fn name(&self) -> &str {
        self.name
    }

    /// The name of its worker.
    pub fn worker(&self) -> &str {
        &self.worker.name
    }

    /// Tells the caller how far the task is, if the call was made with a
    /// [`progress`](crate::Apply::progress) callback; otherwise the value is not even encoded.
    ///
    /// It never waits. What is reported while the pool cannot keep up, from two threads at the same
    /// instant, after the task's end, or cannot be encoded, is dropped: each value should say all
    /// ("70 of 100"), not what came since the last one. A value has 32 KiB at most and holds no
    /// handles (blobs, descriptors); what is beyond that is dropped as well, and logged.
    pub fn progress<P: Serialize + ?Sized>(&self, value: &P) {
        if !self.worker.reports.wants(self.id) {
            return;
        }
        let mut bytes = Vec::new();
        match encode(value, &mut bytes, parent()) {
            Ok(attachments) if attachments.is_empty() => self.worker.reports.report(self.id, &bytes),
            Ok(_) => crate::log::warn(format_args!("{}: a progress report cannot hold handles", self.name)),
            Err(error) => {
                crate::log::warn(format_args!("{}: a progress report cannot be encoded: {error}", self.name))
            }
        }
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("id", &self.id)
            .field("attempt", &self.attempt)
            .field("deadline", &self.deadline)
            .field("name", &self.name)
            .field("worker", &self.worker.name)
            .finish()
    }
}
