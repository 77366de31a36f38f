//! A queue whose items are acknowledged.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

use super::queue::Queue;
use crate::error::Result;

/// A [`Queue`] whose items are to be acknowledged, and which can be waited for until all are. Python's
/// `JoinableQueue`.
///
/// It can do all that a queue can, by dereferencing to one.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn work(tasks: mp::JoinableQueue<u64>) -> mp::Result<()> {
///     // Until it ends with the program, as a daemon does.
///     loop {
///         let task = tasks.get().await?;
///         println!("{task} is done");
///         tasks.task_done()?;
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let tasks = mp::JoinableQueue::new(0)?;
/// let _worker = mp::Process::builder(work, (tasks.clone(),)).daemon(true).start().await?;
/// for task in 0..10 {
///     tasks.put(task).await?;
/// }
/// assert_eq!(tasks.join().await?, 0);
/// # Ok(()) }
/// ```
///
/// What a process has got and not acknowledged when it dies counts as done, since nobody else could do it;
/// [`join`](Self::join) says how many these were. If [`get`](Queue::get) gives an error there is nothing to
/// acknowledge, also if the item is gone by that. A process that has got 16,777,215 items and acknowledged none
/// of them gets no more.
#[derive(Serialize)]
#[serde(transparent, bound = "")]
pub struct JoinableQueue<T> {
    queue: Queue<T>,
}

impl<T> JoinableQueue<T> {
    /// A new queue: see [`Queue::new`].
    ///
    /// # Errors
    /// As those of [`Queue::new`].
    pub fn new(max: usize) -> Result<Self> {
        Ok(Self { queue: Queue::with(max, true, true)? })
    }

    pub(super) fn queue(&self) -> &Queue<T> {
        &self.queue
    }

    /// Says that an item is done that was got. Items are not told apart: it is one of this process's, or if
    /// it has none, one of another process's, which may have passed it on.
    ///
    /// # Errors
    /// [`Error::TooManyTaskDone`](crate::Error::TooManyTaskDone) if nobody has got any that is not done.
    pub fn task_done(&self) -> Result<()> {
        self.queue.core().acknowledge()
    }

    /// Waits until all that was put is done, and says how many items, since the queue was made, were got by
    /// processes that died before they said so (up to 65,535 for each that used it).
    ///
    /// # Errors
    /// When more than 250 processes have the queue, or no descriptor is left to be woken by.
    ///
    /// # Cancel safety
    /// Nothing is consumed: dropping it and calling again is the same as waiting on.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    pub async fn join(&self) -> Result<u64> {
        self.queue.core().join().await
    }
}

impl<'de, T> Deserialize<'de> for JoinableQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Queue::deserialize_if(deserializer, |design| design.joinable).map(|queue| Self { queue })
    }
}

impl<T> Deref for JoinableQueue<T> {
    type Target = Queue<T>;

    fn deref(&self) -> &Queue<T> {
        &self.queue
    }
}

impl<T> Clone for JoinableQueue<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T> fmt::Debug for JoinableQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinableQueue").field("len", &self.len()).field("max_size", &self.max_size()).finish()
    }
}
