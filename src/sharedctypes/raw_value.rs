//! A value without a lock.

use std::fmt;

use bytemuck::Pod;
use serde::{Deserialize, Serialize};

use super::integer::sealed::Place;
use super::plain::Plain;
use super::{Integer, Raw, Value, sealed};
use crate::Lock;

/// A value in memory that processes share, without a lock: a number, or a record of plain data.
///
/// Clones are the same value, and so is one that was sent: as an argument, in a message, or found in a
/// static of a forked child. It lives as long as anybody holds it. Creating one needs no runtime, and
/// nothing about it waits.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let done = mp::RawValue::new(0u64)?;
/// let work = |done: mp::RawValue<u64>| _ = done.fetch_add(1);
/// let children = [
///     mp::Process::builder(work, (done.clone(),)).start().await?,
///     mp::Process::builder(work, (done.clone(),)).start().await?,
/// ];
/// for child in &children {
///     child.join().await?;
/// }
/// assert_eq!(done.get(), 2);
/// # Ok(()) }
/// ```
///
/// # Plain data
///
/// A value is its bytes, and another process may have written any: so its type is one of which all bytes
/// are a value, [`bytemuck::Pod`]. Numbers are, arrays of them, and `#[repr(C)]` structs that derive `Pod`,
/// which takes the crate `bytemuck` with its feature `derive`. References, `String` and `bool` are not.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// #[repr(C)]
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
/// struct Point {
///     x: f64,
///     y: f64,
/// }
///
/// let point = mp::RawValue::new(Point { x: 1.0, y: 0.0 })?;
/// point.set(Point { y: 2.0, ..point.get() });
/// assert_eq!((point.get().x, point.get().y), (1.0, 2.0));
/// # Ok::<(), mp::Error>(())
/// ```
///
/// # When several act at once
///
/// Reads and writes that race are always defined. A value of 1, 2, 4 or 8 bytes is read as somebody has
/// written it, never half; of a larger one, parts may be of several writers. Who reads what another has
/// written sees all that the writer did before. What must be read, changed and written as one is for the
/// `fetch_` methods of an [`Integer`], or for a lock: see [`Value`].
///
/// # Costs
///
/// A descriptor and a page of memory of the kernel's in each process that holds it.
///
/// What arrives is refused if it is not a value whose type is as large as that asked for; that it is the
/// very same type is the programs' to see to.
#[doc(alias = "sharedctypes")]
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound(serialize = "", deserialize = "T: Pod"))]
pub struct RawValue<T>(pub(super) Plain<T>);

impl<T: Pod> RawValue<T> {
    /// A new one.
    ///
    /// # Errors
    /// When no descriptor or no memory is left, and on platforms without processes.
    pub fn new(value: T) -> crate::Result<Self> {
        let new = Self(Plain::zeroed(1)?);
        new.set(value);
        Ok(new)
    }

    /// What is there now.
    pub fn get(&self) -> T {
        let mut value = T::zeroed();
        self.0.read(0, std::slice::from_mut(&mut value));
        value
    }

    /// Replaces it.
    pub fn set(&self, value: T) {
        self.0.write(0, &[value]);
    }
}

/// Each is one step, which nothing that others do comes between, and gives the value before.
impl<T: Integer> RawValue<T> {
    /// Adds to it; it wraps around at its type's ends.
    pub fn fetch_add(&self, number: T) -> T {
        self.fetch(|value| value.wrapped_add(number))
    }

    /// Subtracts from it; it wraps around at its type's ends.
    pub fn fetch_sub(&self, number: T) -> T {
        self.fetch(|value| value.wrapped_sub(number))
    }

    /// Raises it to this number if it is lower.
    pub fn fetch_max(&self, number: T) -> T {
        self.fetch(|value| value.max(number))
    }

    /// Lowers it to this number if it is higher.
    pub fn fetch_min(&self, number: T) -> T {
        self.fetch(|value| value.min(number))
    }

    /// Replaces it.
    pub fn swap(&self, number: T) -> T {
        self.fetch(|_| number)
    }

    /// Replaces it if it is `current`.
    ///
    /// # Errors
    /// With the value that is there instead.
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        self.fetch_update(|value| (value == current).then_some(new))
    }

    /// Replaces it by what `f` makes of it, which is called again as long as others are faster.
    ///
    /// # Errors
    /// With the value that is there, if `f` gives `None` for it.
    pub fn fetch_update(&self, f: impl FnMut(T) -> Option<T>) -> Result<T, T> {
        T::exchange(Place(&self.0, 0), f)
    }

    fn fetch(&self, mut f: impl FnMut(T) -> T) -> T {
        self.fetch_update(|value| Some(f(value))).unwrap_or_else(|value| value)
    }
}

impl<T> Clone for RawValue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for RawValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawValue<{}>", std::any::type_name::<T>())
    }
}

impl<T> sealed::Sealed for RawValue<T> {}

impl<T: Pod> Raw for RawValue<T> {
    type Synchronized = Value<T>;

    fn copied(&self) -> crate::Result<Self> {
        Self::new(self.get())
    }

    fn synchronized(&self, lock: &Lock) -> crate::Result<Value<T>> {
        Value::over(self, lock)
    }
}
