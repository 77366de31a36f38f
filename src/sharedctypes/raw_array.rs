//! An array without a lock.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use bytemuck::Pod;
use serde::{Deserialize, Serialize};

use super::integer::sealed::Place;
use super::plain::Plain;
use super::{Array, Integer, Raw, sealed};
use crate::Lock;

/// An array in memory that processes share, of fixed length and without a lock.
///
/// It is to a [`RawValue`](super::RawValue) as an array is to a value: all that is said there of plain data,
/// of clones, of what it costs and of who acts at once holds here of each item.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let numbers = mp::RawArray::from_items(1..=5u32)?;
/// let sums = |numbers: mp::RawArray<u32>| {
///     for i in 1..numbers.len() {
///         numbers.set(i, numbers.get(i - 1) + numbers.get(i));
///     }
/// };
/// mp::Process::builder(sums, (numbers.clone(),)).start().await?.join().await?;
/// assert_eq!(numbers.read(1..4), [3, 6, 10]);
/// # Ok(()) }
/// ```
///
/// Indices and ranges are as those of slices: outside of the array they panic.
#[doc(alias = "sharedctypes")]
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound(serialize = "", deserialize = "T: Pod"))]
pub struct RawArray<T>(pub(super) Plain<T>);

impl<T: Pod> RawArray<T> {
    /// So many items, all zero.
    ///
    /// # Errors
    /// When no descriptor or no memory is left, or the machine does not have so much; and on platforms
    /// without processes.
    pub fn new(len: usize) -> crate::Result<Self> {
        Ok(Self(Plain::zeroed(len)?))
    }

    /// These items.
    ///
    /// # Errors
    /// As those of [`new`](Self::new).
    pub fn from_items(items: impl IntoIterator<Item = T>) -> crate::Result<Self> {
        Self::from_slice(&items.into_iter().collect::<Vec<_>>())
    }

    /// A copy of these items.
    ///
    /// # Errors
    /// As those of [`new`](Self::new).
    pub fn from_slice(items: &[T]) -> crate::Result<Self> {
        let new = Self::new(items.len())?;
        new.write(0, items);
        Ok(new)
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item at `index`.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, index: usize) -> T {
        let mut item = T::zeroed();
        self.0.read(index, std::slice::from_mut(&mut item));
        item
    }

    /// Replaces the item at `index`.
    ///
    /// # Panics
    /// If there is none.
    pub fn set(&self, index: usize, item: T) {
        self.write(index, &[item]);
    }

    /// A copy of some items: `read(2..5)`, `read(..)`.
    ///
    /// # Panics
    /// If the range begins after its end, or ends after the array's.
    pub fn read(&self, range: impl RangeBounds<usize>) -> Vec<T> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len(),
        };
        assert!(start <= end, "the range begins at {start} but ends at {end}");
        self.0.read_vec(start, end - start)
    }

    /// A copy of all items.
    pub fn to_vec(&self) -> Vec<T> {
        self.read(..)
    }

    /// Copies the items from `index` on into `items`, as many as that has.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn read_into(&self, index: usize, items: &mut [T]) {
        self.0.read(index, items);
    }

    /// Replaces the items from `index` on by these.
    ///
    /// # Panics
    /// If they reach beyond the array's end; then nothing is written.
    pub fn write(&self, index: usize, items: &[T]) {
        self.0.write(index, items);
    }

    /// Replaces all items by this one.
    pub fn fill(&self, item: T) {
        const AT_ONCE: usize = 256;
        let items = [item; AT_ONCE];
        for index in (0..self.len()).step_by(AT_ONCE) {
            self.write(index, &items[..AT_ONCE.min(self.len() - index)]);
        }
    }
}

/// Each is one step, which nothing that others do comes between, and gives the item before.
impl<T: Integer> RawArray<T> {
    /// Adds to the item at `index`; it wraps around at its type's ends.
    ///
    /// # Panics
    /// If there is none.
    pub fn fetch_add(&self, index: usize, number: T) -> T {
        self.fetch_update(index, |item| Some(item.wrapped_add(number))).unwrap_or_else(|item| item)
    }

    /// Replaces the item at `index` by what `f` makes of it, which is called again as long as others are
    /// faster.
    ///
    /// # Errors
    /// With the item that is there, if `f` gives `None` for it.
    ///
    /// # Panics
    /// If there is none.
    pub fn fetch_update(&self, index: usize, f: impl FnMut(T) -> Option<T>) -> Result<T, T> {
        T::exchange(Place(&self.0, index), f)
    }
}

/// Byte strings, that end with a zero or with the array.
impl RawArray<u8> {
    /// The bytes before the first zero.
    pub fn value(&self) -> Vec<u8> {
        let mut bytes = self.to_vec();
        bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
        bytes
    }

    /// Replaces the string. What lies beyond its end stays.
    ///
    /// # Errors
    /// If it is longer than the array.
    pub fn set_value(&self, value: &[u8]) -> crate::Result<()> {
        if value.len() > self.len() {
            let why = format!("{} bytes do not fit into an array of {}", value.len(), self.len());
            return Err(crate::Error::InvalidArgument(why));
        }
        self.write(0, value);
        if value.len() < self.len() {
            self.set(value.len(), 0);
        }
        Ok(())
    }
}

impl<T> Clone for RawArray<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for RawArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawArray<{}>({} items)", std::any::type_name::<T>(), self.0.len())
    }
}

impl<T> sealed::Sealed for RawArray<T> {}

impl<T: Pod> Raw for RawArray<T> {
    type Synchronized = Array<T>;

    fn copied(&self) -> crate::Result<Self> {
        Self::from_slice(&self.to_vec())
    }

    fn synchronized(&self, lock: &Lock) -> crate::Result<Array<T>> {
        Array::over(self, lock)
    }
}
