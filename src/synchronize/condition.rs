//! Waiting for what others change under a lock.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize};

use super::lock::{Lock, OwnedLockGuard};
use super::object::{Kind, Object, Place};
use super::protocol::{Cell, Here, Identity, World, tickets};
use super::rlock::{RLock, RLockGuard};
use super::wait::{Turn, wait, within};
use crate::error::{Error, Result};
use crate::sys::per_process::PerProcess;
use crate::util::lock;

static KIND: Kind = Kind {
    code: 4,
    name: "condition",
    ready,
    passes_on: false,
    reap: |object, cell| tickets::take_out(object.words(), cell, |cell| object.call_at(cell)),
    claimed: |_, _| {},
    holds: |_, _| false,
};

fn ready(object: &Object, looks: bool) -> usize {
    if looks {
        tickets::reap(object.words(), &Here, |cell| object.call_at(cell));
    }
    object.own_cell().map_or(0, |cell| tickets::notified(object.words(), cell))
}

/// Those of this process who wait for each condition.
static LINES: PerProcess<Mutex<BTreeMap<Place, tickets::Line>>> =
    PerProcess::new(|| Mutex::new(BTreeMap::new()));

fn in_line<R>(object: &Object, act: impl FnOnce(&mut tickets::Line) -> R) -> R {
    let mut lines = lock(LINES.get());
    let line = lines.entry(object.place()).or_default();
    let result = act(line);
    if line.is_empty() {
        lines.remove(&object.place());
    }
    result
}

/// What processes change and wait for under one lock. Python's `Condition`.
///
/// Who holds the lock, by a [guard](ConditionGuard), may [wait](ConditionGuard::wait) to be notified: that gives
/// the lock back, and takes it again before it returns. Who has changed something [notifies](ConditionGuard::notify)
/// some, or all, of those who wait at that instant.
///
/// It is made over a lock that others may use as well, also other conditions.
///
/// # When a process dies
/// One that waits, notifies, or was notified may do so at any instant. Instead of what it may have taken along,
/// **all others who wait are woken**, as soon as its death is seen. So a wait may end for nothing: look at what
/// is waited for again, or leave that to [`wait_for`](ConditionGuard::wait_for). That it held the lock, and may
/// have left what it protects half done, is [told](ConditionGuard::previous_owner_died).
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn open(condition: mp::Condition, doors: mp::RawValue<u32>) -> Result<(), mp::Failure> {
///     let guard = condition.lock().await?;
///     doors.set(doors.get() + 1);
///     guard.notify_all()?;
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let (condition, doors) = (mp::Condition::new(mp::Lock::new()?)?, mp::RawValue::new(0)?);
/// let mut children = Vec::new();
/// for _ in 0..2 {
///     children.push(mp::spawn(open, (condition.clone(), doors.clone())).await?);
/// }
/// let guard = condition.lock().await?.wait_for(|| doors.get() == 2).await?;
/// drop(guard);
/// for child in children {
///     child.await?;
/// }
/// # Ok(()) }
/// ```
///
/// Clones are the same condition, and so is what arrives in a message. Besides its lock's, it costs a descriptor
/// and 8 KiB of memory for all, and up to 250 processes can use it at a time.
#[derive(Clone, Serialize)]
pub struct Condition {
    object: Object,
    lock: ConditionLock,
}

/// What a [`Condition`] can be made over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ConditionLock {
    /// A lock that can be taken once.
    Lock(Lock),
    /// One that its holder can take again. A wait gives all of it back, and then takes as much again.
    RLock(RLock),
}

impl From<Lock> for ConditionLock {
    fn from(lock: Lock) -> Self {
        Self::Lock(lock)
    }
}

impl From<RLock> for ConditionLock {
    fn from(lock: RLock) -> Self {
        Self::RLock(lock)
    }
}

impl From<&Lock> for ConditionLock {
    fn from(lock: &Lock) -> Self {
        Self::Lock(lock.clone())
    }
}

impl From<&RLock> for ConditionLock {
    fn from(lock: &RLock) -> Self {
        Self::RLock(lock.clone())
    }
}

impl ConditionLock {
    async fn acquire(&self) -> Result<Held> {
        Ok(match self {
            Self::Lock(lock) => Held::Lock(lock.acquire_owned().await?),
            Self::RLock(lock) => Held::RLock(lock.acquire().await?),
        })
    }

    /// Whether who asks may hold it: of a lock only the process is known, and not even that if it is held raw.
    fn may_be_held(&self) -> bool {
        match self {
            Self::Lock(lock) => lock.may_be_held_here(),
            Self::RLock(lock) => lock.is_owned(),
        }
    }
}

impl Condition {
    /// A new one over a [`Lock`] or an [`RLock`]. It needs no runtime.
    ///
    /// # Errors
    /// When there are no descriptors or no memory left, and on platforms without processes.
    pub fn new(lock: impl Into<ConditionLock>) -> Result<Self> {
        Ok(Self { object: Object::create(&KIND, 0, 0)?, lock: lock.into() })
    }

    /// Takes the lock. A task that holds an [`RLock`] takes it once more.
    ///
    /// # Cancel safety
    /// Dropped, it has not taken it, and keeps nobody else from it.
    ///
    /// # Errors
    /// When more than 250 processes wait for the lock, or no descriptor is left to be woken by.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    #[doc(alias = "acquire")]
    pub async fn lock(&self) -> Result<ConditionGuard> {
        Ok(ConditionGuard { held: self.lock.acquire().await?, condition: self.clone() })
    }

    /// [`ConditionGuard::notify`] for who holds the lock by other means, such as [`Lock::acquire_raw`].
    ///
    /// # Errors
    /// [`Error::NotOwner`] if the lock is not held by who asks. Of a [`Lock`] that somebody holds raw, or
    /// another task of this process, that cannot be known, and the answer is what was asked for. Else as there.
    pub fn notify(&self, n: usize) -> Result<usize> {
        if !self.lock.may_be_held() {
            return Err(Error::NotOwner);
        }
        // So that this process's death is seen to, wherever between two waiters it comes.
        self.object.cell()?;
        Ok(self.give(n))
    }

    /// [`notify`](Self::notify) for all who wait.
    ///
    /// # Errors
    /// As those of [`notify`](Self::notify).
    pub fn notify_all(&self) -> Result<usize> {
        self.notify(usize::MAX)
    }

    /// How many wait and have not been notified, at this instant. A process that was killed counts until its
    /// death is seen.
    pub fn waiting(&self) -> usize {
        tickets::waiting(self.object.words())
    }

    fn give(&self, n: usize) -> usize {
        tickets::notify(self.object.words(), n, |cell| self.object.call_at(cell))
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Own(Object);

        impl<'de> Deserialize<'de> for Own {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Object::deserialize(&KIND, deserializer).map(Self)
            }
        }

        #[derive(Deserialize)]
        #[serde(rename = "Condition")]
        struct Parts {
            object: Own,
            lock: ConditionLock,
        }

        let Parts { object: Own(object), lock } = Parts::deserialize(deserializer)?;
        Ok(Self { object, lock })
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition").field("lock", &self.lock).field("waiting", &self.waiting()).finish()
    }
}

/// How the lock is held.
#[derive(Debug)]
enum Held {
    Lock(OwnedLockGuard),
    RLock(RLockGuard),
}

/// Holds a [`Condition`]'s lock until it is dropped. It borrows nothing.
///
/// Its waits consume it and return it, as the lock is held by others meanwhile.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct ConditionGuard {
    /// First, so that it is dropped before the handles that it needs.
    held: Held,
    condition: Condition,
}

impl ConditionGuard {
    /// Gives the lock back, waits to be notified, and takes the lock again. It may return for nothing when a
    /// process has died, so what is waited for has to be looked at again.
    ///
    /// An [`RLock`] is given back wholly, however often it was taken, and is as before after that.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the lock to others, and what it was notified for as well: another who waits is notified
    /// instead. Of an [`RLock`] that was taken more than once, the outer guards hold nothing any more.
    ///
    /// # Errors
    /// When more than 250 processes use the condition or its lock, or no descriptor is left to be woken by. The
    /// lock is then given back.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    pub async fn wait(self) -> Result<Self> {
        Ok(Waiter::new(self)?.wait(None).await?.0)
    }

    /// [`wait`](Self::wait) for so long at most; false if that was in vain. To take the lock again may take
    /// longer. Without any time, the lock is given back and taken again.
    ///
    /// # Cancel safety
    /// As that of [`wait`](Self::wait).
    ///
    /// # Errors
    /// As those of [`wait`](Self::wait).
    ///
    /// # Panics
    /// As [`wait`](Self::wait) does.
    pub async fn wait_timeout(self, time: Duration) -> Result<(Self, bool)> {
        Waiter::new(self)?.wait(Some(time)).await
    }

    /// Waits until `is_so` is true. It is asked at first, and each time after this was notified, with the lock
    /// held; it must not wait for anything itself.
    ///
    /// # Cancel safety
    /// As that of [`wait`](Self::wait).
    ///
    /// # Errors
    /// As those of [`wait`](Self::wait).
    ///
    /// # Panics
    /// As [`wait`](Self::wait) does. If `is_so` panics, the lock is given back.
    pub async fn wait_for(mut self, mut is_so: impl FnMut() -> bool) -> Result<Self> {
        while !is_so() {
            self = self.wait().await?;
        }
        Ok(self)
    }

    /// [`wait_for`](Self::wait_for) for so long at most, however often it is notified in that time; false if
    /// `is_so` is false after it.
    ///
    /// # Cancel safety
    /// As that of [`wait`](Self::wait).
    ///
    /// # Errors
    /// As those of [`wait`](Self::wait).
    ///
    /// # Panics
    /// As [`wait_for`](Self::wait_for) does.
    pub async fn wait_for_timeout(
        mut self,
        time: Duration,
        mut is_so: impl FnMut() -> bool,
    ) -> Result<(Self, bool)> {
        // One that cannot be said is never.
        let deadline = Instant::now().checked_add(time);
        let mut is_over = false;
        loop {
            if is_so() {
                return Ok((self, true));
            }
            if is_over {
                return Ok((self, false));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            (self, _) = Waiter::new(self)?.wait(left).await?;
            is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
        }
    }

    /// Notifies up to `n` who wait, or all of them if they are fewer, and says how many. They go on once they
    /// have got the lock. Of one process it is those who have waited longest; processes take turns.
    ///
    /// # Errors
    /// When more than 250 processes use the condition.
    pub fn notify(&self, n: usize) -> Result<usize> {
        self.condition.object.cell()?;
        Ok(self.condition.give(n))
    }

    /// [`notify`](Self::notify) for all who wait.
    ///
    /// # Errors
    /// As those of [`notify`](Self::notify).
    pub fn notify_all(&self) -> Result<usize> {
        self.notify(usize::MAX)
    }

    /// Whether a process died that held the lock, and nobody has [acknowledged](Self::acknowledge) it since:
    /// what the lock protects may be half done.
    pub fn previous_owner_died(&self) -> bool {
        match &self.held {
            Held::Lock(guard) => guard.previous_owner_died(),
            Held::RLock(guard) => guard.previous_owner_died(),
        }
    }

    /// Says that what the lock protects is sound again, after
    /// [`previous_owner_died`](Self::previous_owner_died).
    pub fn acknowledge(&self) {
        match &self.held {
            Held::Lock(guard) => guard.acknowledge(),
            Held::RLock(guard) => guard.acknowledge(),
        }
    }
}

/// Somebody who waits, from before it gives the lock back until it has it again.
struct Waiter {
    condition: Condition,
    cell: Cell,
    /// A copy of this process does not wait by its copy of this.
    process: Identity,
    /// The lock, as long as it is held.
    held: Option<Held>,
    /// What it has of an `RLock`, when that is not held.
    suspended: Option<RLockGuard>,
    /// Its place, as long as it waits.
    place: Option<tickets::Place>,
    /// It was notified, as another has to be if it does not come to tell.
    notified: bool,
}

impl Waiter {
    fn new(guard: ConditionGuard) -> Result<Self> {
        let ConditionGuard { held, condition } = guard;
        let cell = condition.object.cell()?;
        Ok(Self {
            condition,
            cell,
            process: Here.me(),
            held: Some(held),
            suspended: None,
            place: None,
            notified: false,
        })
    }

    async fn wait(mut self, time: Option<Duration>) -> Result<(ConditionGuard, bool)> {
        let object = self.condition.object.clone();
        let waiting = wait(&object, |turn| self.look(turn).then_some(()));
        match time {
            None => waiting.await?,
            Some(time) => {
                within(time, waiting).await?;
                self.leave();
            }
        }
        let held = match (self.held.take(), &self.suspended) {
            (Some(held), _) => held,
            (None, Some(guard)) => {
                guard.resume().await?;
                Held::RLock(self.suspended.take().expect("it is there, as just seen"))
            }
            (None, None) => self.condition.lock.acquire().await?,
        };
        let notified = std::mem::take(&mut self.notified);
        Ok((ConditionGuard { held, condition: self.condition.clone() }, notified))
    }

    /// At first it gets into the line. Then it is put to sleep, and only after that gives the lock back: so who
    /// comes next sleeps after it as well, and those who are woken first are those who are meant.
    fn look(&mut self, turn: Turn) -> bool {
        let (object, cell) = (&self.condition.object, self.cell);
        if !turn.announced {
            self.place = Some(in_line(object, |line| line.enter(object.words(), cell)));
            return false;
        }
        match self.held.take() {
            Some(Held::RLock(guard)) => {
                guard.suspend();
                self.suspended = Some(guard);
            }
            Some(Held::Lock(guard)) => drop(guard),
            None => {}
        }
        let is_notified = self
            .place
            .as_ref()
            .is_some_and(|place| in_line(object, |line| line.is_notified(object.words(), cell, place)));
        if is_notified {
            self.leave();
        }
        is_notified
    }

    fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            let object = &self.condition.object;
            self.notified = in_line(object, |line| line.leave(object.words(), self.cell, place));
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.process == Here.me() {
            self.leave();
            if self.notified {
                self.condition.give(1);
            }
        }
        if let Some(guard) = &self.suspended {
            guard.abandon();
        }
    }
}
