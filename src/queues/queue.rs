//! The queue.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::core::{Core, Design};
use super::error::{GetError, PutError, PutErrorKind};
use super::feeder;
use super::getting::Lost;
use super::item::{Arrived, Item};
use super::permit::Permit;
use super::putting::Slot;
use crate::error::{Error, Result};
use crate::reduction::{Descriptor, Message, Peer, peer};
use crate::ring::parcels::Parcels;
use crate::synchronize::wait::within;

/// A queue between processes, which any number of tasks, threads and processes put items into and get items out
/// of. Python's `Queue`.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn square(numbers: mp::Queue<u64>, squares: mp::Queue<u64>) -> mp::Result<()> {
///     loop {
///         match numbers.get().await {
///             Ok(number) => squares.put(number * number).await?,
///             Err(mp::GetError::ShutDown) => return Ok(()),
///             Err(error) => return Err(error.into()),
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let (numbers, squares) = (mp::Queue::new(10)?, mp::Queue::new(0)?);
/// let child = mp::Process::builder(square, (numbers.clone(), squares.clone())).start().await?;
/// for number in 0..100 {
///     numbers.put(number).await?;
/// }
/// // Who gets is told once all is got.
/// numbers.shutdown()?;
/// child.join().await?;
/// assert_eq!(squares.len(), 100);
/// # Ok(()) }
/// ```
///
/// # What dies, and what does not
///
/// A process that is killed at whatever instant takes along what it had in hand: the items that it got, those
/// that [wait](Self::flush) in it for room, and at most one for each task or thread that was just putting or getting.
/// Everything else is got once, whole, and in the order in which its process put it. Nobody waits for a dead one. A
/// process that is *stopped* within a put or a get, which takes less than a microsecond for a small item, holds up
/// those that put, or those that get, until it goes on or is killed.
///
/// # Order, slots and room
///
/// What one task puts is got in the order in which it put it. A queue of `n` slots takes `n` items; put waits for
/// a slot. The items lie in shared memory of 1 MiB, and larger ones beside it; if a queue takes more items than
/// have room there, put waits for room, 5 ms at most; then the items wait in the process that put them, and a thread of
/// that process, the feeder, moves them as there is room, whatever its runtimes do. When a process ends in the regular
/// way, it stays until its items are moved (see [`cancel_join_feeder`](Self::cancel_join_feeder)), as long as any other
/// process has the queue, or it has a child that is no daemon, which may be given the queue yet, and a second more.
///
/// An item is written and read back in the poll that puts or gets it, at about 1 ms for 1 MiB: send large bytes as a
/// [`Blob`](crate::Blob), of which nothing is copied.
///
/// Clones are the same queue, and so is what arrives in a message. A queue costs some 1.1 MiB of shared memory for
/// all, and three descriptors in each process. Up to 250 processes can have it at a time, of one PID namespace;
/// it does not leave the family of processes that a program starts.
pub struct Queue<T> {
    core: Core,
    /// It gives and takes items, and has none.
    items: PhantomData<fn(T) -> T>,
}

impl<T> Queue<T> {
    /// A new queue that takes so many items at a time; 0: any number. It needs no runtime.
    ///
    /// # Errors
    /// When there are no descriptors or no memory left, if `max` is over 4,294,967,295, and on platforms without
    /// processes. Where files are limited to less than 4.1 TiB (`ulimit -f`) there are no queues, and this fails by
    /// `EFBIG`: a queue's memory is a sparse file of that length, of which only what is used takes memory.
    pub fn new(max: usize) -> Result<Self> {
        Self::with(max, false, true)
    }

    pub(super) fn with(max: usize, joinable: bool, feeds: bool) -> Result<Self> {
        let max =
            u32::try_from(max).map_err(|_| Error::invalid("a queue takes at most 4,294,967,295 items"))?;
        Ok(Self::of(Core::create(Design { max, joinable, feeds })?))
    }

    fn of(core: Core) -> Self {
        Self { core, items: PhantomData }
    }

    /// Reads one that has arrived, if it is of the type that it is taken for: that is nothing that its bytes say.
    pub(super) fn deserialize_if<'de, D: Deserializer<'de>>(
        deserializer: D,
        fits: impl FnOnce(Design) -> bool,
    ) -> Result<Self, D::Error> {
        let (fd, parcels) = <(Descriptor, Parcels)>::deserialize(deserializer)?;
        let fd = fd.into_fd().map_err(de::Error::custom)?;
        let core =
            Core::open(fd, parcels).map_err(|error| de::Error::custom(format_args!("no queue: {error}")))?;
        if !fits(core.design()) {
            return Err(de::Error::custom("it is a queue of another kind"));
        }
        Ok(Self::of(core))
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    /// How many items it takes at a time; `None`: any number.
    pub fn max_size(&self) -> Option<usize> {
        Some(self.core.design().max as usize).filter(|max| *max > 0)
    }

    /// How many items were put and not got, those included that wait for room. Python's `qsize`.
    ///
    /// While others put and get it may be another number by the time it is known.
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.core.len() as usize
    }

    /// Whether there is no item. See [`len`](Self::len).
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no slot. Slots that are [reserved](Self::reserve) are taken.
    #[doc(alias = "full")]
    pub fn is_full(&self) -> bool {
        self.core.is_full(true)
    }

    /// Closes this process's handle, for all its clones: putting and getting are errors from now on. What was
    /// put is got by others, also what waits here for room. A second time is fine. Other processes' handles
    /// stay as they are.
    pub fn close(&self) {
        self.core.close();
    }

    /// Whether this process has closed its handle.
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    /// Waits until nothing that this process has put by now waits here for room any more: from then on it survives
    /// this process's death.
    ///
    /// # Errors
    /// If that cannot be, as somebody has written over the queue's memory.
    ///
    /// # Cancel safety
    /// Nothing is lost: what waits is moved all the same.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    pub async fn flush(&self) -> Result<()> {
        feeder::flush(&self.core).await
    }

    /// As [`flush`](Self::flush), for a queue that this process has [closed](Self::close). Python's `join_thread`.
    ///
    /// # Errors
    /// If it is not closed, and as those of [`flush`](Self::flush).
    ///
    /// # Cancel safety
    /// As that of [`flush`](Self::flush).
    ///
    /// # Panics
    /// As [`flush`](Self::flush) does.
    #[doc(alias = "join_thread")]
    pub async fn join_feeder(&self) -> Result<()> {
        if !self.core.is_closed() {
            return Err(Error::invalid("a queue's feeder can be joined once the queue is closed"));
        }
        self.flush().await
    }

    /// Has this process end without waiting for what it has put and what waits here for room: that is lost
    /// then. Python's `cancel_join_thread`.
    ///
    /// # Errors
    /// When more than 250 processes have the queue.
    #[doc(alias = "cancel_join_thread")]
    pub fn cancel_join_feeder(&self) -> Result<()> {
        self.core.abandon()
    }

    /// Has nothing put any more, by whichever process: who puts, or waits to, gets an error. What was put
    /// before is still got; then, who gets is told that it is over. A second time is fine. Of what has slots
    /// [reserved](Self::reserve), those who get wait until these are given back.
    ///
    /// # Errors
    /// None today.
    pub fn shutdown(&self) -> Result<()> {
        self.core.shut_down();
        Ok(())
    }

    /// Whether it was shut down, by whichever process. What was put before may still be there.
    pub fn is_shut_down(&self) -> bool {
        self.core.is_shut_down()
    }

    /// Reserves a slot, once there is one: what is put by the permit does not wait.
    ///
    /// # Errors
    /// When the queue is closed or shut down.
    ///
    /// # Cancel safety
    /// Dropped, it has reserved nothing.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    pub async fn reserve(&self) -> Result<Permit<'_, T>> {
        self.core.reserve().await?;
        Ok(Permit::new(self))
    }

    /// Reserves a slot if there is one.
    ///
    /// # Errors
    /// [`Error::Full`], and as those of [`reserve`](Self::reserve).
    pub fn try_reserve(&self) -> Result<Permit<'_, T>> {
        self.core.try_reserve()?;
        Ok(Permit::new(self))
    }
}

impl<T: Message> Queue<T> {
    /// Puts an item, once there is a slot for it.
    ///
    /// # Errors
    /// With the item: when it cannot be encoded, which takes no slot; when the queue is closed or shut down, also
    /// if that happens while it waits; when no memory or descriptor is left.
    ///
    /// # Cancel safety
    /// Dropped, it has not put the item, which is dropped with it. Who wants to keep it [reserves](Self::reserve)
    /// a slot first.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O: sync code waits by [`block_on`](crate::block_on).
    /// And if the item's `Serialize` panics, which takes no slot.
    pub async fn put(&self, item: T) -> Result<(), PutError<T>> {
        // The item itself is not looked at while this waits: it may be of a type that no two threads may look at.
        let put = match Item::encode(&item) {
            Ok(mut encoded) => self.core.put(&mut encoded).await,
            Err(error) => Err(PutErrorKind::Encode(error)),
        };
        put.map_err(|kind| PutError { item, kind })
    }

    /// [`put`](Self::put) for so long at most. Without any time it is tried once.
    ///
    /// # Errors
    /// [`PutErrorKind::Full`] when the time is over, and as those of [`put`](Self::put).
    ///
    /// # Cancel safety
    /// As that of [`put`](Self::put).
    ///
    /// # Panics
    /// As [`put`](Self::put) does.
    pub async fn put_timeout(&self, item: T, time: Duration) -> Result<(), PutError<T>> {
        let put = match Item::encode(&item) {
            Ok(mut encoded) => within(time, self.core.put(&mut encoded)).await,
            Err(error) => Err(PutErrorKind::Encode(error)),
        };
        put.and_then(|put| put.ok_or(PutErrorKind::Full)).map_err(|kind| PutError { item, kind })
    }

    /// Puts an item if there is a slot. It needs no runtime.
    ///
    /// Where another process is in the middle of a put for longer than some microseconds, because it was stopped
    /// or there are more processes than processors, a queue with slots may seem full.
    ///
    /// # Errors
    /// [`PutErrorKind::Full`], and as those of [`put`](Self::put).
    ///
    /// # Panics
    /// If the item's `Serialize` panics, which takes no slot.
    #[doc(alias = "put_nowait")]
    pub fn try_put(&self, item: T) -> Result<(), PutError<T>> {
        self.try_put_for(item, Slot::Free)
    }

    pub(super) fn try_put_for(&self, item: T, slot: Slot) -> Result<(), PutError<T>> {
        let encoded = Item::encode(&item).map_err(PutErrorKind::Encode);
        match encoded.and_then(|mut encoded| self.core.try_put(&mut encoded, slot)) {
            Ok(()) => Ok(()),
            Err(kind) => Err(PutError { item, kind }),
        }
    }

    /// Gets the next item, once there is one.
    ///
    /// # Errors
    /// When the queue is closed, also if that happens while it waits; when it was shut down and is empty; when the
    /// item is not of this type, and the item is gone then; and when no memory or descriptor is left, and the item is
    /// not gone, unless it is larger than 256 KiB and there is no memory for it.
    ///
    /// # Cancel safety
    /// Dropped, it has got nothing: nothing is lost.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O: sync code waits by [`block_on`](crate::block_on).
    pub async fn get(&self) -> Result<T, GetError> {
        let mut item = Arrived::new();
        self.core.get(&mut item).await?;
        self.read(item)
    }

    /// [`get`](Self::get) for so long at most. Without any time it is tried once.
    ///
    /// # Errors
    /// [`GetError::Empty`] when the time is over, and as those of [`get`](Self::get).
    ///
    /// # Cancel safety
    /// As that of [`get`](Self::get).
    ///
    /// # Panics
    /// As [`get`](Self::get) does.
    pub async fn get_timeout(&self, time: Duration) -> Result<T, GetError> {
        within(time, self.get()).await?.ok_or(GetError::Empty)
    }

    /// Gets the next item if there is one. It needs no runtime.
    ///
    /// Where another process is in the middle of a get for longer than some microseconds, because it was stopped
    /// or there are more processes than processors, a queue may seem empty. So may one whose next item waits in its
    /// process for room.
    ///
    /// # Errors
    /// [`GetError::Empty`], and as those of [`get`](Self::get).
    #[doc(alias = "get_nowait")]
    pub fn try_get(&self) -> Result<T, GetError> {
        let mut item = Arrived::new();
        self.core.try_get(&mut item)?;
        self.read(item)
    }

    pub(super) fn read(&self, item: Arrived) -> Result<T, GetError> {
        let lost = Lost(&self.core);
        let value = item.decode().map_err(GetError::Decode)?;
        lost.found();
        Ok(value)
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self::of(self.core.clone())
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.len()).field("max_size", &self.max_size()).finish()
    }
}

/// Sending it sends its descriptors.
impl<T> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !peer().is_none_or(Peer::is_family) {
            return Err(serde::ser::Error::custom("a queue does not leave its family of processes"));
        }
        self.core.content().serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A joinable one is one, too.
        Self::deserialize_if(deserializer, |design| design.feeds)
    }
}
