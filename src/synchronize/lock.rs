//! Mutual exclusion.

use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::object::{Kind, Object, SIZE};
use super::protocol::owner::{self, Attempt, UNNAMED};
use super::protocol::{Here, Identity, World, bells};
use super::wait::{Sleeper, proceed, sleep, within};
use crate::error::{Error, Result};
use crate::reduction::Attachment;
use crate::sys::memory::Shared;

/// How often who comes looks whether it is free, before it sleeps. From one look to the next it pauses twice as
/// long: each look takes the word's line of memory away from who works with it. In all it is some 3 µs; most
/// sections are shorter.
const LOOKS: u32 = 7;

pub(crate) static KIND: Kind = Kind {
    code: 1,
    name: "lock",
    ready,
    passes_on: true,
    reap: |_, _| {},
    claimed: |_, _| {},
    holds: |_, _| false,
};

/// A lock between processes. Python's `Lock`.
///
/// Whoever holds it does so by a guard, and gives it back when the guard is dropped, or when the process
/// dies: the next one takes it then, and is [told](LockGuard::previous_owner_died). A process that is
/// stopped is not dead, and holds it until it goes on.
///
/// It excludes all tasks, threads and processes that share it, also two tasks of one process. It cannot be
/// taken twice: see [`RLock`](crate::RLock) for that. To take and to give back an uncontended one costs no
/// system call. Nobody waits for ever behind others that come later: who has slept for 10 ms goes before them.
/// Whoever sleeps is woken when it is given back. A death is seen by those who come, at once, and by those who
/// sleep at their next look: after a tenth of a second, once they have slept for two seconds half a second.
///
/// It works between processes of one PID namespace (and time namespace): elsewhere it does not arrive. Where the
/// processes are in different network namespaces, who sleeps is woken by its own looks alone. A guard that is
/// forgotten holds it until the process ends.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn add(lock: mp::Lock, total: mp::RawValue<u64>) -> mp::Result<()> {
///     let _guard = lock.acquire().await?;
///     total.set(total.get() + 1);
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let (lock, total) = (mp::Lock::new()?, mp::RawValue::new(0)?);
/// let mut children = Vec::new();
/// for _ in 0..3 {
///     children.push(mp::Process::builder(add, (lock.clone(), total.clone())).start().await?);
/// }
/// for child in children {
///     child.join().await?;
/// }
/// assert_eq!(total.get(), 3);
/// # Ok(()) }
/// ```
///
/// Clones are the same lock, and so is what arrives in a message. It costs a descriptor and 8 KiB of memory
/// for all, and up to 250 processes can wait for it at a time.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Lock {
    object: Object,
}

impl Lock {
    /// A new lock, which nobody holds. It needs no runtime.
    ///
    /// # Errors
    /// When there are no descriptors or no memory left, and on platforms without processes.
    pub fn new() -> Result<Self> {
        Self::with_room(0)
    }

    /// Where what has room in its memory begins: see [`with_room`](Self::with_room).
    pub(crate) const ROOM_AT: usize = SIZE;

    /// [`new`](Self::new), with so many bytes after what it needs itself, all zero.
    pub(crate) fn with_room(extra: usize) -> Result<Self> {
        Ok(Self { object: Object::create(&KIND, 0, extra)? })
    }

    pub(crate) fn memory(&self) -> &Shared {
        self.object.words()
    }

    pub(crate) fn attachment(&self) -> Attachment {
        self.object.attachment()
    }

    /// Whether both are the same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.object.place() == other.object.place()
    }

    /// Takes the lock, once nobody else holds it.
    ///
    /// # Cancel safety
    /// Dropped, it has not taken it, and keeps nobody else from it.
    ///
    /// # Errors
    /// When more than 250 processes wait, or no descriptor is left to be woken by.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    pub async fn acquire(&self) -> Result<LockGuard<'_>> {
        let owner = Here.me();
        self.take(owner).await?;
        Ok(LockGuard { lock: self, owner })
    }

    /// [`acquire`](Self::acquire) with a guard that borrows nothing.
    ///
    /// # Cancel safety
    /// As that of [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As those of [`acquire`](Self::acquire).
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire) does.
    pub async fn acquire_owned(&self) -> Result<OwnedLockGuard> {
        let owner = Here.me();
        self.take(owner).await?;
        Ok(OwnedLockGuard { lock: self.clone(), owner })
    }

    /// Takes the lock if nobody holds it, or a dead process does. It needs no runtime, and waits for nothing.
    ///
    /// # Errors
    /// None today.
    pub fn try_acquire(&self) -> Result<Option<LockGuard<'_>>> {
        let owner = Here.me();
        // Made before it is known whether it is ours, a guard would give back the one of another task.
        Ok(self.try_take(owner).then(|| LockGuard { lock: self, owner }))
    }

    /// [`acquire`](Self::acquire) for so long at most; `None` if it is still held then. Without any time it
    /// is tried once.
    ///
    /// # Cancel safety
    /// As that of [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As those of [`acquire`](Self::acquire).
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire) does.
    pub async fn acquire_timeout(&self, time: Duration) -> Result<Option<LockGuard<'_>>> {
        within(time, self.acquire()).await
    }

    /// Takes the lock in nobody's name: for whoever calls [`release`](Self::release), in any process. As
    /// nobody is known to hold it, **it stays taken if the process dies** that was to give it back.
    ///
    /// # Cancel safety
    /// As that of [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As those of [`acquire`](Self::acquire).
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire) does.
    pub async fn acquire_raw(&self) -> Result<()> {
        self.take(UNNAMED).await
    }

    /// Gives back what [`acquire_raw`](Self::acquire_raw) has taken, here or in any other process.
    ///
    /// # Errors
    /// [`Error::TooManyReleases`] if nobody holds it, and [`Error::NotOwner`] if somebody does by a guard.
    pub fn release(&self) -> Result<()> {
        if self.give_back(UNNAMED) {
            return Ok(());
        }
        Err(if self.locked() { Error::NotOwner } else { Error::TooManyReleases })
    }

    /// Whether anybody holds it at this instant, be it a process that has died and whose death nobody has seen.
    pub fn locked(&self) -> bool {
        owner::holder(self.object.words()).is_some()
    }

    /// Whether nobody who lives has it.
    pub(crate) fn is_idle(&self) -> bool {
        let holder = owner::holder(self.object.words());
        holder.is_none_or(|owner| owner != UNNAMED && Here.is_dead(owner))
    }

    /// What another kind of lock is made of.
    pub(crate) fn of(object: Object) -> Self {
        Self { object }
    }

    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// Whether this process holds it, or nobody knows who does.
    pub(super) fn may_be_held_here(&self) -> bool {
        owner::holder(self.object.words()).is_some_and(|owner| owner == Here.me() || owner == UNNAMED)
    }

    pub(crate) async fn take(&self, taker: Identity) -> Result<()> {
        proceed().await;
        if self.spin(taker) {
            return Ok(());
        }
        let mut starving = Starving { object: &self.object, starves: false };
        sleep(&self.object, |turn| {
            let attempt =
                Attempt { slept: turn.slept, leaves_word: true, starves: turn.starves, looks: true };
            let taken = owner::try_take(self.object.words(), &Here, taker, attempt);
            starving.starves = turn.starves && !taken;
            taken.then_some(())
        })
        .await
    }

    /// One step of [`take`](Self::take), after a first attempt that was in vain. Who polls by hand may cease to do
    /// so, and so does not have others step back.
    pub(crate) fn poll_take(
        &self,
        taker: Identity,
        sleeper: &mut Sleeper,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        sleeper.poll_asleep(&self.object, cx, |turn| {
            let attempt = Attempt { slept: turn.slept, leaves_word: true, starves: false, looks: true };
            owner::try_take(self.object.words(), &Here, taker, attempt).then_some(())
        })
    }

    /// Takes it, if it is free or soon will be. That its owner is dead nobody looks here.
    #[inline]
    pub(crate) fn spin(&self, taker: Identity) -> bool {
        let words = self.object.words();
        (0..LOOKS).any(|look| {
            let taken = owner::try_take(words, &Here, taker, Attempt::default());
            if !taken {
                (0..1 << look).for_each(|_| std::hint::spin_loop());
            }
            taken
        })
    }

    pub(crate) fn try_take(&self, taker: Identity) -> bool {
        let words = self.object.words();
        if owner::try_take(words, &Here, taker, Attempt::default()) {
            return true;
        }
        // Those who starve go before, if they live: else nobody is at their doors.
        let last = Attempt { slept: !bells::anyone(words), looks: true, ..Attempt::default() };
        let taken = owner::try_take(words, &Here, taker, last);
        if !taken && owner::holder(words).is_none() {
            self.object.call_one();
        }
        taken
    }

    /// Whether it was this owner's.
    pub(crate) fn give_back(&self, owner: Identity) -> bool {
        let given = owner::give_back(self.object.words(), owner);
        if given == Some(true) {
            self.object.call_one();
        }
        given.is_some()
    }

    pub(super) fn was_bequeathed(&self) -> bool {
        owner::was_bequeathed(self.object.words())
    }

    pub(super) fn acknowledge(&self) {
        owner::acknowledge(self.object.words());
    }
}

/// One may take it, or those who sleep on have left word with whoever holds it.
pub(super) fn ready(object: &Object, looks: bool) -> usize {
    usize::from(owner::is_free_or_told(object.words(), &Here, looks))
}

/// Has those who come step back, and is dropped before it could go first itself.
struct Starving<'a> {
    object: &'a Object,
    starves: bool,
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        if self.starves {
            owner::starves_no_more(self.object.words());
        }
    }
}

impl<'de> Deserialize<'de> for Lock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { object: Object::deserialize(&KIND, deserializer)? })
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("locked", &self.locked()).finish()
    }
}

/// Holds a [`Lock`] until it is dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct LockGuard<'a> {
    lock: &'a Lock,
    /// A copy of this process holds nothing by its copy of the guard.
    owner: Identity,
}

/// Holds a [`Lock`] until it is dropped, and borrows nothing.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct OwnedLockGuard {
    lock: Lock,
    owner: Identity,
}

/// What both guards can do.
macro_rules! guard {
    ($guard:ty) => {
        impl $guard {
            /// Whether a process died that held the lock, and nobody has [acknowledged](Self::acknowledge) it
            /// since: what the lock protects may be half done.
            pub fn previous_owner_died(&self) -> bool {
                self.lock.was_bequeathed()
            }

            /// Whether this process holds it: a copy of the one that took it does not.
            pub(crate) fn is_own(&self) -> bool {
                self.owner == Here.me()
            }

            /// Says that what the lock protects is sound again, after
            /// [`previous_owner_died`](Self::previous_owner_died).
            pub fn acknowledge(&self) {
                self.lock.acknowledge();
            }
        }

        impl Drop for $guard {
            fn drop(&mut self) {
                if self.is_own() {
                    self.lock.give_back(self.owner);
                }
            }
        }
    };
}

guard!(LockGuard<'_>);
guard!(OwnedLockGuard);
