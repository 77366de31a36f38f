//! A number of permits.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::object::{Kind, Object};
use super::protocol::permits::{Full, Permits};
use super::protocol::{Cell, Here, Identity, STATE, World, bells, cells};
use super::wait::{wait, within};
use crate::error::{Error, Result};
use crate::sys::memory::Shared;

/// Not zero while somebody has slept for long.
const STARVING: usize = STATE + 48;

pub(super) static KIND: Kind = Kind {
    code: 3,
    name: "semaphore",
    ready: |object, looks| {
        let permits = permits(object);
        if looks {
            permits.bury(&Here);
        }
        permits.free() as usize
    },
    passes_on: true,
    reap: |object, cell| {
        let dead = cells::owner(object.words(), cell).filter(|owner| Here.is_dead(*owner));
        if dead.is_some_and(|dead| permits(object).reap(cell, dead) > 0) {
            object.call_one();
        }
    },
    claimed: |_, _| {},
    holds: |words, cell| Permits::of(words, 0).held(cell) > 0,
};

/// In what a semaphore is made with, beside the bound of one that has one.
const BOUNDED: u64 = 1 << 32;

fn permits(object: &Object) -> Permits<'_, Shared> {
    let configuration = object.configuration();
    let is_bounded = configuration & BOUNDED != 0;
    let bound = if is_bounded { configuration as u32 } else { u32::MAX };
    Permits::of(object.words(), bound.min(Permits::<Shared>::LIMIT))
}

/// A number of permits that processes share. Python's `Semaphore`.
///
/// A permit is held by a guard. It comes back when the guard is dropped, or when its process dies. A process
/// that is stopped is not dead, and keeps what it holds until it goes on. Tasks and threads of all processes
/// that share a semaphore may use it. Without contention, taking a permit and giving it back costs no system
/// call.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn visit(doors: mp::Semaphore) -> mp::Result<()> {
///     let _permit = doors.acquire().await?;
///     // No more than two are here at any time.
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let doors = mp::Semaphore::new(2)?;
/// let mut children = Vec::new();
/// for _ in 0..3 {
///     children.push(mp::Process::builder(visit, (doors.clone(),)).start().await?);
/// }
/// for child in children {
///     child.join().await?;
/// }
/// assert_eq!(doors.value(), 2);
/// # Ok(()) }
/// ```
///
/// Who comes may go before those who sleep, unless one has slept for 10 ms; among those who sleep in a process,
/// who came first is woken first.
///
/// Clones are the same semaphore, and so is what arrives in a message. It costs a descriptor and 8 KiB of
/// memory for all, and up to 250 processes can use it at a time. There may be up to 4,194,303 free permits.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Semaphore {
    object: Object,
}

impl Semaphore {
    /// A new semaphore with so many free permits. It needs no runtime.
    ///
    /// # Errors
    /// With more than 4,194,303 permits; when there are no descriptors or no memory left; and on platforms
    /// without processes.
    pub fn new(permits: usize) -> Result<Self> {
        Self::create(permits, |_| 0)
    }

    fn create(permits: usize, configuration: impl FnOnce(u32) -> u64) -> Result<Self> {
        let limit = Permits::<Shared>::LIMIT;
        let free = u32::try_from(permits).ok().filter(|permits| *permits <= limit);
        let Some(free) = free else {
            return Err(Error::invalid(format!("a semaphore has up to {limit} permits, not {permits}")));
        };
        let object = Object::create(&KIND, configuration(free), 0)?;
        Permits::begin(object.words(), free);
        Ok(Self { object })
    }

    /// Takes a permit, once one is free.
    ///
    /// # Cancel safety
    /// Dropped, it has taken none, and keeps nobody else from one.
    ///
    /// # Errors
    /// When more than 250 processes use the semaphore, or no descriptor is left to be woken by.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    pub async fn acquire(&self) -> Result<SemaphoreGuard<'_>> {
        let cell = self.object.cell()?;
        self.take(Some(cell)).await?;
        Ok(SemaphoreGuard { semaphore: self, cell, owner: Here.me() })
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
    pub async fn acquire_owned(&self) -> Result<OwnedSemaphoreGuard> {
        let cell = self.object.cell()?;
        self.take(Some(cell)).await?;
        Ok(OwnedSemaphoreGuard { semaphore: self.clone(), cell, owner: Here.me() })
    }

    /// Takes a permit if one is free, or held by a dead process. It needs no runtime, and waits for nothing.
    ///
    /// # Errors
    /// When more than 250 processes use the semaphore.
    pub fn try_acquire(&self) -> Result<Option<SemaphoreGuard<'_>>> {
        let cell = self.object.cell()?;
        let taken = self.permits().take(Some(cell)) || self.bury() && self.permits().take(Some(cell));
        Ok(taken.then(|| SemaphoreGuard { semaphore: self, cell, owner: Here.me() }))
    }

    /// [`acquire`](Self::acquire) for so long at most; `None` if no permit is free then. Without any time it
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
    pub async fn acquire_timeout(&self, time: Duration) -> Result<Option<SemaphoreGuard<'_>>> {
        within(time, self.acquire()).await
    }

    /// Takes a permit in nobody's name: for whoever calls [`release`](Self::release), in any process. As
    /// nobody is known to hold it, **it is gone if the process dies** that was to give it back.
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
        self.take(None).await
    }

    /// Adds a permit: one that [`acquire_raw`](Self::acquire_raw) has taken, here or elsewhere, or a new one,
    /// beyond those that the semaphore had at first.
    ///
    /// # Errors
    /// [`Error::TooManyReleases`] if there are as many as there may be: those that a [`BoundedSemaphore`] had
    /// at first.
    pub fn release(&self) -> Result<()> {
        self.permits().add().map_err(|Full| Error::TooManyReleases)?;
        self.call_one();
        Ok(())
    }

    /// How many permits are free at this instant. Those of a process that has died count when its death is
    /// seen, by whoever asks for a permit in vain.
    #[doc(alias = "get_value")]
    pub fn value(&self) -> usize {
        self.permits().free() as usize
    }

    fn permits(&self) -> Permits<'_, Shared> {
        permits(&self.object)
    }

    async fn take(&self, holder: Option<Cell>) -> Result<()> {
        let mut starving = Starving { semaphore: self, starves: false };
        wait(&self.object, |turn| {
            if !turn.slept && self.somebody_starves() {
                return None;
            }
            // Who sleeps already is woken at a tick by whoever looks then.
            let looks = turn.announced && !turn.slept && self.object.takes_turn();
            let taken = self.permits().take(holder) || looks && self.bury() && self.permits().take(holder);
            match taken {
                true if turn.slept && self.somebody_starves() => self.set_starving(false),
                false if turn.starves => {
                    starving.starves = true;
                    self.set_starving(true);
                }
                _ => {}
            }
            taken.then_some(())
        })
        .await
    }

    fn somebody_starves(&self) -> bool {
        self.object.words().atomic_u64(STARVING).load(Ordering::Relaxed) != 0
    }

    fn set_starving(&self, starves: bool) {
        self.object.words().atomic_u64(STARVING).store(u64::from(starves), Ordering::Relaxed);
    }

    /// Whether the dead had any.
    fn bury(&self) -> bool {
        let freed = self.permits().bury(&Here);
        if freed > 1 {
            self.call_one();
        }
        freed > 0
    }

    fn give_back(&self, cell: Cell) {
        self.permits().give_back(cell);
        self.call_one();
    }

    /// Whoever is woken sees to the next one if there are more.
    fn call_one(&self) {
        if bells::anyone(self.object.words()) {
            self.object.call_one();
        }
    }
}

/// Has those who come sleep first. It is no more than a hint: of one that dies, those who come take it back after
/// a tick.
struct Starving<'a> {
    semaphore: &'a Semaphore,
    starves: bool,
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        if self.starves {
            self.semaphore.set_starving(false);
        }
    }
}

impl<'de> Deserialize<'de> for Semaphore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { object: Object::deserialize(&KIND, deserializer)? })
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("value", &self.value()).finish()
    }
}

/// A [`Semaphore`] that never has more free permits than at first: to [release](Semaphore::release) one too
/// many is an error. Python's `BoundedSemaphore`.
///
/// ```
/// # fn main() -> tokio_multiprocess::Result<()> {
/// let semaphore = tokio_multiprocess::BoundedSemaphore::new(2)?;
/// assert!(semaphore.release().is_err());
/// let guard = semaphore.try_acquire()?;
/// assert!(guard.is_some() && semaphore.value() == 1);
/// # Ok(()) }
/// ```
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct BoundedSemaphore(Semaphore);

impl BoundedSemaphore {
    /// A new semaphore with so many free permits, and never more. It needs no runtime.
    ///
    /// # Errors
    /// As those of [`Semaphore::new`].
    pub fn new(permits: usize) -> Result<Self> {
        Semaphore::create(permits, |bound| u64::from(bound) | BOUNDED).map(Self)
    }
}

impl Deref for BoundedSemaphore {
    type Target = Semaphore;

    fn deref(&self) -> &Semaphore {
        &self.0
    }
}

impl<'de> Deserialize<'de> for BoundedSemaphore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let semaphore = Semaphore::deserialize(deserializer)?;
        if semaphore.object.configuration() & BOUNDED == 0 {
            return Err(de::Error::custom("no bounded semaphore, but one without a bound"));
        }
        Ok(Self(semaphore))
    }
}

impl fmt::Debug for BoundedSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = self.object.configuration() & !BOUNDED;
        f.debug_struct("BoundedSemaphore").field("value", &self.value()).field("bound", &bound).finish()
    }
}

/// Holds a permit of a [`Semaphore`] until it is dropped.
#[derive(Debug)]
#[must_use = "the permit is given back when this is dropped"]
pub struct SemaphoreGuard<'a> {
    semaphore: &'a Semaphore,
    cell: Cell,
    /// A copy of this process holds nothing by its copy of the guard.
    owner: Identity,
}

/// Holds a permit of a [`Semaphore`] until it is dropped, and borrows nothing.
#[derive(Debug)]
#[must_use = "the permit is given back when this is dropped"]
pub struct OwnedSemaphoreGuard {
    semaphore: Semaphore,
    cell: Cell,
    owner: Identity,
}

macro_rules! guard {
    ($guard:ty) => {
        impl Drop for $guard {
            fn drop(&mut self) {
                if self.owner == Here.me() {
                    self.semaphore.give_back(self.cell);
                }
            }
        }
    };
}

guard!(SemaphoreGuard<'_>);
guard!(OwnedSemaphoreGuard);
