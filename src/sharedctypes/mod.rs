//! Values and arrays in memory that processes share: see [`Value`], [`Array`], and those without locks.
//!
//! There is no heap that all of them share. Each has a sealed piece of memory of its own from the kernel, which
//! is zero at first, lives as long as anybody holds it, in a message too, and goes back by itself, whoever dies.

mod array;
mod held;
mod integer;
mod plain;
mod raw_array;
mod raw_value;
mod value;

pub use array::{Array, ArrayGuard};
pub use integer::Integer;
pub use raw_array::RawArray;
pub use raw_value::RawValue;
pub use value::{Value, ValueGuard};

use crate::Lock;

/// A new object with what is in this one now: a [`RawValue`] of a value, a [`RawArray`] of an array.
///
/// Who writes to it meanwhile may be seen in parts.
///
/// # Errors
/// When no descriptor or no memory is left.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// let original = mp::RawArray::from_items([1u8, 2, 3])?;
/// let copy = mp::copy(&original)?;
/// original.fill(0);
/// assert_eq!(copy.to_vec(), [1, 2, 3]);
/// # Ok::<(), mp::Error>(())
/// ```
pub fn copy<R: Raw>(raw: &R) -> crate::Result<R> {
    raw.copied()
}

/// The same object with a lock: a [`Value`] of a [`RawValue`], an [`Array`] of a [`RawArray`].
///
/// The lock is a new one, and what this returns is what has it: who makes another of the same object makes
/// another lock, which does not keep the first one's holders away. Who uses the object by `raw` needs none.
///
/// # Errors
/// When no descriptor or no memory is left.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let raw = mp::RawValue::new(1)?;
/// let value = mp::synchronized(&raw)?;
/// *value.lock().await? += 1;
/// assert_eq!(raw.get(), 2);
/// # Ok(()) }
/// ```
pub fn synchronized<R: Raw>(raw: &R) -> crate::Result<R::Synchronized> {
    raw.synchronized(&Lock::new()?)
}

/// As [`synchronized`], with a lock that it shares with whatever else that protects.
///
/// # Errors
/// When no memory is left.
pub fn synchronized_with_lock<R: Raw>(raw: &R, lock: &Lock) -> crate::Result<R::Synchronized> {
    raw.synchronized(lock)
}

/// A [`RawValue`] or a [`RawArray`]. The trait is sealed.
#[doc(hidden)]
pub trait Raw: Sized + sealed::Sealed {
    type Synchronized;
    #[doc(hidden)]
    fn copied(&self) -> crate::Result<Self>;
    #[doc(hidden)]
    fn synchronized(&self, lock: &Lock) -> crate::Result<Self::Synchronized>;
}

mod sealed {
    pub trait Sealed {}
}
