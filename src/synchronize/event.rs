//! A flag that is waited for.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::object::{Kind, Object};
use super::protocol::signal;
use super::wait::{wait, within};
use crate::error::Result;

static KIND: Kind = Kind {
    code: 5,
    name: "event",
    ready: |object, _| if has_been_set(object) { usize::MAX } else { 0 },
    passes_on: false,
    reap: |_, _| {},
    claimed: |_, _| {},
    holds: |_, _| false,
};

/// Whether this process's sleepers may not know yet that it was set: the cell counts the generation in which
/// they were woken last.
fn has_been_set(object: &Object) -> bool {
    let Some(cell) = object.own_cell() else { return false };
    let now = signal::generation(object.words()).number();
    let last = object.words().atomic_u64(cell.count()).swap(now, Ordering::SeqCst);
    now != last || signal::is_set(object.words())
}

/// A flag between processes that is waited for. Python's `Event`.
///
/// It is unset at first. While it is [set](Self::set) nobody waits; [clear](Self::clear) unsets it. Who was
/// waiting when it was set is let through, also if it is cleared at once. It belongs to nobody: the death of a
/// process changes nothing, and who waits for a process to set it that has died waits on, for others to set it.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn race(start: mp::Event) -> Result<(), mp::Failure> {
///     Ok(start.wait().await?)
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let start = mp::Event::new()?;
/// let mut runners = Vec::new();
/// for _ in 0..2 {
///     runners.push(mp::spawn(race, (start.clone(),)).await?);
/// }
/// start.set()?;
/// for runner in runners {
///     runner.await?;
/// }
/// # Ok(()) }
/// ```
///
/// Clones are the same event, and so is what arrives in a message. It costs a descriptor and 8 KiB of memory
/// for all, and up to 250 processes can wait for it at a time.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Event {
    object: Object,
}

impl Event {
    /// A new one, unset. It needs no runtime.
    ///
    /// # Errors
    /// When there are no descriptors or no memory left, and on platforms without processes.
    pub fn new() -> Result<Self> {
        Ok(Self { object: Object::create(&KIND, 0, 0)? })
    }

    /// Sets it, and lets all through who wait. One that is set already stays so. It needs no runtime.
    ///
    /// # Errors
    /// None today.
    pub fn set(&self) -> Result<()> {
        signal::set(self.object.words());
        // Also if it was set: whoever did that may have died before it rang.
        self.object.call_all();
        Ok(())
    }

    /// Unsets it: who comes from now on waits. It needs no runtime.
    ///
    /// # Errors
    /// None today.
    pub fn clear(&self) -> Result<()> {
        signal::clear(self.object.words());
        Ok(())
    }

    /// Whether it is set at this instant.
    pub fn is_set(&self) -> bool {
        signal::is_set(self.object.words())
    }

    /// Waits until it is set, or was set after this call, before the future was polled as well.
    ///
    /// # Cancel safety
    /// Dropped, it has changed nothing.
    ///
    /// # Errors
    /// When more than 250 processes wait, or no descriptor is left to be woken by.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    pub fn wait(&self) -> impl Future<Output = Result<()>> + Send + Sync + '_ {
        let since = signal::generation(self.object.words());
        wait(&self.object, move |_| signal::is_over(self.object.words(), since).then_some(()))
    }

    /// [`wait`](Self::wait) for so long at most; false if that was in vain. Without any time it is tried once.
    ///
    /// # Cancel safety
    /// As that of [`wait`](Self::wait).
    ///
    /// # Errors
    /// As those of [`wait`](Self::wait).
    ///
    /// # Panics
    /// As [`wait`](Self::wait) does.
    pub fn wait_timeout(&self, time: Duration) -> impl Future<Output = Result<bool>> + Send + Sync + '_ {
        let wait = self.wait();
        async move { Ok(within(time, wait).await?.is_some()) }
    }
}

impl Event {
    pub(crate) fn object(&self) -> &Object {
        &self.object
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { object: Object::deserialize(&KIND, deserializer)? })
    }
}

/// `Event set` or `Event unset`.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "Event set" } else { "Event unset" })
    }
}
