//! A value with a lock.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use bytemuck::Pod;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::held::{Held, synchronized};
use super::plain::Plain;
use super::raw_value::RawValue;
use crate::Result;
use crate::synchronize::{Lock, LockGuard};

/// A value in memory that processes share, with a lock: for what must be read, changed and written as one.
///
/// Whoever holds the lock does so by a guard, which has a copy of the value. When the guard is dropped, the
/// copy takes the value's place, if it was borrowed to be changed.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn deposit(balance: mp::Value<i64>, amount: i64) -> mp::Result<()> {
///     *balance.lock().await? += amount;
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let balance = mp::Value::new(100)?;
/// let children = [
///     mp::Process::builder(deposit, (balance.clone(), 30)).start().await?,
///     mp::Process::builder(deposit, (balance.clone(), -50)).start().await?,
/// ];
/// for child in &children {
///     child.join().await?;
/// }
/// assert_eq!(*balance.lock().await?, 80);
/// # Ok(()) }
/// ```
///
/// # Whoever dies
///
/// The copy takes the value's place in one instant. If its process is killed before that, or it is dropped by a
/// panic, the value is as if it had never begun. The next one that takes the lock is
/// [told](ValueGuard::previous_owner_died) of a process that was killed; after a panic there is nothing to tell.
///
/// # Several under one lock
///
/// A lock can be supplied, be it that of another value. It is taken once for all of them:
///
/// ```
/// use tokio_multiprocess as mp;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let total = mp::Value::new(0u64)?;
/// let count = mp::Value::with_lock(total.get_lock(), 0u64)?;
///
/// let mut guard = total.lock().await?;
/// *guard += 7;
/// count.get_obj().fetch_add(1);
/// drop(guard);
/// assert_eq!(*total.lock().await?, 7);
/// assert_eq!(*count.lock().await?, 1);
/// # Ok(()) }
/// ```
///
/// As with every [`Lock`], who holds it and waits for it waits for ever: a task that has a guard must not call
/// [`lock`](Self::lock) again, nor that of another value with the same lock.
///
/// # Costs
///
/// A descriptor and 12 KiB of memory, and one descriptor and 4 KiB with a lock that was supplied. What plain
/// data is, and what holds of who reads [without the lock](Self::get_obj), says [`RawValue`].
#[doc(alias = "Synchronized")]
pub struct Value<T> {
    lock: Lock,
    raw: RawValue<T>,
}

/// A [`Value`]'s lock, held until this is dropped, and a copy of the value.
#[must_use = "the lock is given back when this is dropped"]
pub struct ValueGuard<'a, T: Pod>(Held<'a, T, [T; 1]>);

impl<T: Pod> Value<T> {
    /// A new one, with a lock of its own. It needs no runtime.
    ///
    /// # Errors
    /// When no descriptor or no memory is left, and on platforms without processes.
    pub fn new(value: T) -> Result<Self> {
        let (lock, plain) = Plain::with_lock(1)?;
        plain.write(0, &[value]);
        Ok(Self { lock, raw: RawValue(plain) })
    }

    /// A new one, with a lock that it shares with whatever else that protects.
    ///
    /// # Errors
    /// As those of [`new`](Self::new).
    pub fn with_lock(lock: &Lock, value: T) -> Result<Self> {
        Self::over(&RawValue::new(value)?, lock)
    }

    fn held<'a>(&'a self, guard: LockGuard<'a>) -> ValueGuard<'a, T> {
        ValueGuard(Held::new(guard, &self.raw.0, [self.raw.get()]))
    }
}

synchronized!(Value, RawValue, ValueGuard, "value");

impl<T: Pod> Deref for ValueGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        let [value] = &*self.0;
        value
    }
}

impl<T: Pod> DerefMut for ValueGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        let [value] = &mut *self.0;
        value
    }
}
