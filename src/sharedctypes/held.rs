//! A copy of shared items, for who holds their lock.

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use super::plain::Plain;
use crate::synchronize::LockGuard;

/// What a guard consists of: a copy of all items, which is put in their place when this is dropped, if it
/// was borrowed to be changed.
pub(super) struct Held<'a, T: Pod, C: AsRef<[T]>> {
    pub(super) guard: LockGuard<'a>,
    plain: &'a Plain<T>,
    copy: C,
    changed: bool,
    /// Whether the thread was unwinding already when it took the lock: it is then not what is done under
    /// the lock that has failed.
    unwinding: bool,
}

impl<'a, T: Pod, C: AsRef<[T]>> Held<'a, T, C> {
    /// The copy is one that was made since the lock was taken.
    pub(super) fn new(guard: LockGuard<'a>, plain: &'a Plain<T>, copy: C) -> Self {
        Self { guard, plain, copy, changed: false, unwinding: std::thread::panicking() }
    }
}

impl<T: Pod, C: AsRef<[T]>> Deref for Held<'_, T, C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.copy
    }
}

impl<T: Pod, C: AsRef<[T]>> DerefMut for Held<'_, T, C> {
    fn deref_mut(&mut self) -> &mut C {
        self.changed = true;
        &mut self.copy
    }
}

impl<T: Pod, C: AsRef<[T]>> Drop for Held<'_, T, C> {
    fn drop(&mut self) {
        let failed = std::thread::panicking() && !self.unwinding;
        if self.changed && !failed && self.guard.is_own() {
            self.plain.commit(self.copy.as_ref());
        }
    }
}

/// What values and arrays with locks have in common.
macro_rules! synchronized {
    ($object:ident, $raw:ident, $guard:ident, $what:literal) => {
        impl<T: Pod> $object<T> {
            /// Over what is there already, with this lock, which may be that of others as well.
            pub(super) fn over(raw: &$raw<T>, lock: &Lock) -> Result<Self> {
                raw.0.prepare_commits()?;
                Ok(Self { lock: lock.clone(), raw: raw.clone() })
            }

            #[doc = concat!("Takes the lock, and then a copy of the ", $what, ".")]
            ///
            /// # Cancel safety
            /// Dropped, it has not taken it, and keeps nobody else from it.
            ///
            /// # Errors
            /// As those of [`Lock::acquire`].
            ///
            /// # Panics
            /// If it has to wait outside of a runtime, or on one without I/O.
            pub async fn lock(&self) -> Result<$guard<'_, T>> {
                Ok(self.held(self.lock.acquire().await?))
            }

            /// [`lock`](Self::lock) if nobody holds it, or a dead process does. It needs no runtime, and waits
            /// for nothing.
            ///
            /// # Errors
            /// As those of [`Lock::try_acquire`].
            pub fn try_lock(&self) -> Result<Option<$guard<'_, T>>> {
                Ok(self.lock.try_acquire()?.map(|guard| self.held(guard)))
            }

            /// [`lock`](Self::lock), waiting so long at most; `None` if it is still held then.
            ///
            /// # Cancel safety
            /// As that of [`lock`](Self::lock).
            ///
            /// # Errors
            /// As those of [`lock`](Self::lock).
            pub async fn lock_timeout(&self, time: Duration) -> Result<Option<$guard<'_, T>>> {
                Ok(self.lock.acquire_timeout(time).await?.map(|guard| self.held(guard)))
            }

            /// Its lock: to hold it for longer, or over several objects.
            pub fn get_lock(&self) -> &Lock {
                &self.lock
            }

            #[doc = concat!("The ", $what, " without the lock.")]
            ///
            /// Who writes to it and does not hold the lock may have it overwritten by who does.
            pub fn get_obj(&self) -> &$raw<T> {
                &self.raw
            }
        }

        impl<T> Clone for $object<T> {
            fn clone(&self) -> Self {
                Self { lock: self.lock.clone(), raw: self.raw.clone() }
            }
        }

        impl<T> fmt::Debug for $object<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($object)).field("obj", &self.raw).field("lock", &self.lock).finish()
            }
        }

        impl<T> Serialize for $object<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                let apart = Some(&self.raw.0).filter(|plain| !plain.is_beside(&self.lock));
                (&self.lock, apart).serialize(serializer)
            }
        }

        impl<'de, T: Pod> Deserialize<'de> for $object<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let (lock, apart) = Deserialize::deserialize(deserializer)?;
                let plain = Plain::arrived(&lock, apart).map_err(D::Error::custom)?;
                Ok(Self { lock, raw: $raw(plain) })
            }
        }

        impl<T: Pod> $guard<'_, T> {
            /// Whether a process died that held the lock, and nobody has [acknowledged](Self::acknowledge) it
            /// since. What it was about to change is as it was; what it meant to do elsewhere as well may not
            /// be done.
            pub fn previous_owner_died(&self) -> bool {
                self.0.guard.previous_owner_died()
            }

            /// Says that all is sound again, after [`previous_owner_died`](Self::previous_owner_died).
            pub fn acknowledge(&self) {
                self.0.guard.acknowledge();
            }
        }

        impl<T: Pod + fmt::Debug> fmt::Debug for $guard<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($guard)).field(&&**self).finish()
            }
        }
    };
}
pub(super) use synchronized;
