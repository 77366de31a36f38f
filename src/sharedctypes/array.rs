//! An array with a lock.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use bytemuck::Pod;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::held::{Held, synchronized};
use super::plain::Plain;
use super::raw_array::RawArray;
use crate::Result;
use crate::synchronize::{Lock, LockGuard};

/// An array in memory that processes share, of fixed length and with a lock.
///
/// It is to a [`Value`](super::Value) as an array is to a value: its guard is a slice, which is a copy of all
/// items, and takes their place as a whole.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn sort(numbers: mp::Array<i32>) -> mp::Result<()> {
///     numbers.lock().await?.sort();
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let numbers = mp::Array::from_items([3, 1, 2])?;
/// numbers.lock().await?[1..].copy_from_slice(&[7, 5]);
/// mp::Process::builder(sort, (numbers.clone(),)).start().await?.join().await?;
/// assert_eq!(*numbers.lock().await?, [3, 5, 7]);
/// # Ok(()) }
/// ```
///
/// # Large ones
///
/// To take the lock costs a copy of the array, and another if it was changed; and the array takes twice its
/// size of memory. Who changes a few items of many does better to hold [`get_lock`](Self::get_lock), and write
/// those to [`get_obj`](Self::get_obj): at the price that one who dies in the middle leaves some of them
/// written.
#[doc(alias("SynchronizedArray", "SynchronizedString"))]
pub struct Array<T> {
    lock: Lock,
    raw: RawArray<T>,
}

/// An [`Array`]'s lock, held until this is dropped, and a copy of the items.
#[must_use = "the lock is given back when this is dropped"]
pub struct ArrayGuard<'a, T: Pod>(Held<'a, T, Vec<T>>);

impl<T: Pod> Array<T> {
    /// So many items, all zero, with a lock of their own. It needs no runtime.
    ///
    /// # Errors
    /// When no descriptor or no memory is left, or the machine does not have so much; and on platforms
    /// without processes.
    pub fn new(len: usize) -> Result<Self> {
        let (lock, plain) = Plain::with_lock(len)?;
        Ok(Self { lock, raw: RawArray(plain) })
    }

    /// These items, with a lock of their own.
    ///
    /// # Errors
    /// As those of [`new`](Self::new).
    pub fn from_items(items: impl IntoIterator<Item = T>) -> Result<Self> {
        Self::from_slice(&items.into_iter().collect::<Vec<_>>())
    }

    /// A copy of these items, with a lock of their own.
    ///
    /// # Errors
    /// As those of [`new`](Self::new).
    pub fn from_slice(items: &[T]) -> Result<Self> {
        let new = Self::new(items.len())?;
        new.raw.write(0, items);
        Ok(new)
    }

    /// These items, with a lock that they share with whatever else that protects.
    ///
    /// # Errors
    /// As those of [`new`](Self::new).
    pub fn with_lock(lock: &Lock, items: impl IntoIterator<Item = T>) -> Result<Self> {
        Self::over(&RawArray::from_items(items)?, lock)
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    fn held<'a>(&'a self, guard: LockGuard<'a>) -> ArrayGuard<'a, T> {
        ArrayGuard(Held::new(guard, &self.raw.0, self.raw.to_vec()))
    }
}

synchronized!(Array, RawArray, ArrayGuard, "array");

impl<T: Pod> Deref for ArrayGuard<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pod> DerefMut for ArrayGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
