//! A queue without a feeder.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::error::{GetError, PutError};
use super::queue::Queue;
use crate::error::Result;
use crate::reduction::Message;

/// A queue without a feeder: what is put is in shared memory when `put` returns, and survives the death of who
/// has put it. Python's `SimpleQueue`.
///
/// It takes as many items as have room in 1 MiB, and waits for room; larger items lie beside that. What it
/// can do is as with a [`Queue`].
#[derive(Serialize)]
#[serde(transparent, bound = "")]
pub struct SimpleQueue<T> {
    queue: Queue<T>,
}

impl<T> SimpleQueue<T> {
    /// A new queue.
    ///
    /// # Errors
    /// When there are no descriptors or no memory left, and on platforms without processes.
    pub fn new() -> Result<Self> {
        Ok(Self { queue: Queue::with(0, false, false)? })
    }

    pub(super) fn queue(&self) -> &Queue<T> {
        &self.queue
    }

    /// How many items were put and not got: see [`Queue::len`].
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there is no item.
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Closes this process's handle: see [`Queue::close`].
    pub fn close(&self) {
        self.queue.close();
    }

    /// Whether this process has closed its handle.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Has nothing put any more, by whichever process: see [`Queue::shutdown`].
    ///
    /// # Errors
    /// As those of [`Queue::shutdown`].
    pub fn shutdown(&self) -> Result<()> {
        self.queue.shutdown()
    }

    /// Whether it was shut down, by whichever process: see [`Queue::is_shut_down`].
    pub fn is_shut_down(&self) -> bool {
        self.queue.is_shut_down()
    }
}

impl<T: Message> SimpleQueue<T> {
    /// Puts an item, once there is room.
    ///
    /// # Errors
    /// As those of [`Queue::put`].
    ///
    /// # Cancel safety
    /// As that of [`Queue::put`].
    ///
    /// # Panics
    /// As [`Queue::put`] does.
    pub async fn put(&self, item: T) -> Result<(), PutError<T>> {
        self.queue.put(item).await
    }

    /// Puts an item, if there is room within so long: see [`Queue::put_timeout`].
    ///
    /// # Errors
    /// As those of [`Queue::put_timeout`].
    ///
    /// # Cancel safety
    /// As that of [`Queue::put`].
    ///
    /// # Panics
    /// As [`Queue::put`] does.
    pub async fn put_timeout(&self, item: T, time: Duration) -> Result<(), PutError<T>> {
        self.queue.put_timeout(item, time).await
    }

    /// Puts an item if there is room: see [`Queue::try_put`].
    ///
    /// # Errors
    /// [`PutErrorKind::Full`](super::PutErrorKind::Full) if there is none, and as those of [`Queue::try_put`].
    ///
    /// # Panics
    /// As [`Queue::try_put`] does.
    pub fn try_put(&self, item: T) -> Result<(), PutError<T>> {
        self.queue.try_put(item)
    }

    /// Gets the next item, once there is one: see [`Queue::get`].
    ///
    /// # Errors
    /// As those of [`Queue::get`].
    ///
    /// # Cancel safety
    /// As that of [`Queue::get`].
    ///
    /// # Panics
    /// As [`Queue::get`] does.
    pub async fn get(&self) -> Result<T, GetError> {
        self.queue.get().await
    }

    /// Gets the next item, if there is one within so long: see [`Queue::get_timeout`].
    ///
    /// # Errors
    /// As those of [`Queue::get_timeout`].
    ///
    /// # Cancel safety
    /// As that of [`Queue::get`].
    ///
    /// # Panics
    /// As [`Queue::get`] does.
    pub async fn get_timeout(&self, time: Duration) -> Result<T, GetError> {
        self.queue.get_timeout(time).await
    }

    /// Gets the next item if there is one: see [`Queue::try_get`].
    ///
    /// # Errors
    /// As those of [`Queue::try_get`].
    pub fn try_get(&self) -> Result<T, GetError> {
        self.queue.try_get()
    }
}

impl<'de, T> Deserialize<'de> for SimpleQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Queue::deserialize_if(deserializer, |design| !design.feeds).map(|queue| Self { queue })
    }
}

impl<T> Clone for SimpleQueue<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T> fmt::Debug for SimpleQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimpleQueue").field("is_empty", &self.is_empty()).finish()
    }
}
