//! A slot that is reserved.

use std::fmt;

use super::error::{PutError, PutErrorKind};
use super::putting::Slot;
use super::queue::Queue;
use crate::error::Error;
use crate::reduction::Message;
use crate::sys::per_process::process_token;

/// A slot of a [`Queue`] that is reserved until this is used or dropped, or its process dies.
#[must_use = "the slot is given back when this is dropped"]
pub struct Permit<'a, T> {
    queue: &'a Queue<T>,
    /// A copy of this process has reserved nothing by its copy of this.
    owner: u64,
}

impl<'a, T> Permit<'a, T> {
    /// For a slot that was reserved.
    pub(super) fn new(queue: &'a Queue<T>) -> Self {
        Self { queue, owner: process_token() }
    }
}

impl<T: Message> Permit<'_, T> {
    /// Puts an item into the slot. It needs no runtime, and does not wait.
    ///
    /// # Errors
    /// With the item: when it cannot be encoded, when the queue was closed or shut down meanwhile, when no memory
    /// or descriptor is left. The slot is given back.
    ///
    /// # Panics
    /// If the item's `Serialize` panics.
    pub fn send(self, item: T) -> Result<(), PutError<T>> {
        if self.owner != process_token() {
            return Err(PutError { item, kind: PutErrorKind::Failed(Error::NotOwner) });
        }
        let put = self.queue.try_put_for(item, Slot::Reserved);
        if put.is_ok() {
            std::mem::forget(self);
        }
        put
    }
}

impl<T> Drop for Permit<'_, T> {
    fn drop(&mut self) {
        if self.owner == process_token() {
            self.queue.core().give_back();
        }
    }
}

impl<T> fmt::Debug for Permit<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
