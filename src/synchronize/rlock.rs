//! Mutual exclusion that its holder may enter again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, ThreadId};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use tokio::task;

use super::lock::{Lock, ready};
use super::object::{Kind, Object, Place};
use super::protocol::{Here, Identity, World};
use super::wait::within;
use crate::error::{Error, Result};
use crate::sys::per_process::PerProcess;
use crate::util::lock;

static KIND: Kind = Kind {
    code: 2,
    name: "lock that can be taken again",
    ready,
    passes_on: true,
    reap: |_, _| {},
    claimed: |_, _| {},
    holds: |_, _| false,
};

/// A lock between processes that its holder may take again. Python's `RLock`.
///
/// It is a [`Lock`](crate::Lock) but for one thing: who holds it takes it once more at once, and it is free for
/// others when all that was taken is given back. If the process dies, all of it is, and the next one is
/// [told](RLockGuard::previous_owner_died).
///
/// # Who holds it
/// The Tokio task that has taken it; outside of tasks, as in the future that a runtime blocks on, in sync code
/// and in threads, the thread. What is asked is who polls the call that takes it. So
/// - a task may go from one thread to another, and holds it still;
/// - futures of one task that run at a time (`join!`, `select!`) are one holder, and **do not exclude each
///   other**: use a [`Lock`](crate::Lock) between those;
/// - a future that takes it on the outside and is then spawned is another holder inside: what waits there for
///   what the outside holds waits for ever. Use the guard's [`reenter`](RLockGuard::reenter), which asks nobody;
/// - a guard may be sent to another task or thread, and gives back what it holds wherever it is dropped. The
///   holder stays the one that took it.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let lock = mp::RLock::new()?;
/// let outer = lock.acquire().await?;
/// let inner = lock.acquire().await?;
/// drop(outer);
/// assert!(lock.locked());
/// drop(inner);
/// assert!(!lock.locked());
/// # Ok(()) }
/// ```
///
/// Clones are the same lock, and so is what arrives in a message. It costs a descriptor and 8 KiB of memory
/// for all, and up to 250 processes can wait for it at a time.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct RLock {
    lock: Lock,
}

/// Who in a process holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Task(task::Id),
    Thread(ThreadId),
}

impl Holder {
    fn current() -> Self {
        task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}

/// What a holder has, from when it took the lock first until it has given back the last. It is that as long as
/// anybody has a part in it, so nothing has to be counted.
struct Hold {
    lock: Lock,
    holder: Holder,
    /// A copy of this process holds nothing by its copy of this.
    process: Identity,
    /// Not while its holder waits for a condition, nor after such a wait was given up.
    holds: AtomicBool,
    /// Parts that no guard has: they keep what they are a part of.
    raw: Mutex<Vec<Arc<Hold>>>,
}

type Holds = BTreeMap<Place, (Holder, Weak<Hold>)>;

/// What this process holds. In its memory alone: nobody else asks.
static HOLDS: PerProcess<Mutex<Holds>> = PerProcess::new(Mutex::default);

impl Hold {
    /// Of a lock that has just been taken.
    fn new(lock: &Lock) -> Arc<Self> {
        let hold = Arc::new(Self {
            lock: lock.clone(),
            holder: Holder::current(),
            process: Here.me(),
            holds: AtomicBool::new(false),
            raw: Mutex::default(),
        });
        hold.begin();
        hold
    }

    fn begin(self: &Arc<Self>) {
        self.holds.store(true, Ordering::SeqCst);
        lock(HOLDS.get()).insert(self.lock.object().place(), (self.holder, Arc::downgrade(self)));
    }

    fn end(&self) {
        if self.holds.swap(false, Ordering::SeqCst) && self.process == Here.me() {
            // Before the next one puts in what it has.
            lock(HOLDS.get()).remove(&self.lock.object().place());
            self.lock.give_back(self.process);
        }
    }

    /// What whoever asks holds.
    fn current(of: &Lock) -> Option<Arc<Self>> {
        let holds = lock(HOLDS.get());
        let (holder, hold) = holds.get(&of.object().place())?;
        // The strong one must not outlive its last part.
        if *holder == Holder::current() { hold.upgrade() } else { None }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.end();
    }
}

impl RLock {
    /// A new lock, which nobody holds. It needs no runtime.
    ///
    /// # Errors
    /// When there are no descriptors or no memory left, and on platforms without processes.
    pub fn new() -> Result<Self> {
        Ok(Self { lock: Lock::of(Object::create(&KIND, 0, 0)?) })
    }

    /// Takes the lock: at once if this task, or outside of tasks this thread, holds it already; else once nobody
    /// does.
    ///
    /// # Cancel safety
    /// Dropped, it has not taken it, and keeps nobody else from it.
    ///
    /// # Errors
    /// When more than 250 processes wait, or no descriptor is left to be woken by.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O.
    pub async fn acquire(&self) -> Result<RLockGuard> {
        if let Some(hold) = Hold::current(&self.lock) {
            return Ok(RLockGuard { hold });
        }
        self.lock.take(Here.me()).await?;
        Ok(RLockGuard { hold: Hold::new(&self.lock) })
    }

    /// Takes the lock if nobody holds it, or who asks, or a dead process. It needs no runtime, and waits for
    /// nothing.
    ///
    /// # Errors
    /// None today.
    pub fn try_acquire(&self) -> Result<Option<RLockGuard>> {
        let hold = Hold::current(&self.lock)
            .or_else(|| self.lock.try_take(Here.me()).then(|| Hold::new(&self.lock)));
        Ok(hold.map(|hold| RLockGuard { hold }))
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
    pub async fn acquire_timeout(&self, time: Duration) -> Result<Option<RLockGuard>> {
        within(time, self.acquire()).await
    }

    /// [`acquire`](Self::acquire) without a guard: for the same task, or thread, to [`release`](Self::release).
    /// If the process dies, it is given back; if only the task ends, it is not.
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
        let RLockGuard { hold } = self.acquire().await?;
        lock(&hold.raw).push(hold.clone());
        Ok(())
    }

    /// Gives back what one [`acquire_raw`](Self::acquire_raw) of the same task, or thread, has taken.
    ///
    /// # Errors
    /// [`Error::NotOwner`] if another holds it, or this one by guards alone; [`Error::TooManyReleases`] if
    /// nobody does.
    pub fn release(&self) -> Result<()> {
        let held = Hold::current(&self.lock);
        let part = held.as_ref().and_then(|hold| lock(&hold.raw).pop());
        match part {
            Some(_) => Ok(()),
            None if self.locked() => Err(Error::NotOwner),
            None => Err(Error::TooManyReleases),
        }
    }

    /// Whether anybody holds it at this instant.
    pub fn locked(&self) -> bool {
        self.lock.locked()
    }

    /// Whether this task, or outside of tasks this thread, holds it.
    pub fn is_owned(&self) -> bool {
        Hold::current(&self.lock).is_some()
    }
}

impl<'de> Deserialize<'de> for RLock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { lock: Lock::of(Object::deserialize(&KIND, deserializer)?) })
    }
}

impl fmt::Debug for RLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RLock").field("locked", &self.locked()).finish()
    }
}

/// Has a part in holding an [`RLock`], until it is dropped. It borrows nothing.
#[must_use = "the lock is given back when the last of these is dropped"]
pub struct RLockGuard {
    hold: Arc<Hold>,
}

impl RLockGuard {
    /// Takes the lock once more, whoever asks: for code that runs in another task, or is handed the guard.
    ///
    /// # Errors
    /// [`Error::NotOwner`] if the lock is not held: while a condition is waited for that has given it back, and
    /// after such a wait was dropped.
    pub fn reenter(&self) -> Result<Self> {
        let holds = self.hold.holds.load(Ordering::SeqCst);
        holds.then(|| Self { hold: self.hold.clone() }).ok_or(Error::NotOwner)
    }

    /// Whether a process died that held the lock, and nobody has [acknowledged](Self::acknowledge) it since:
    /// what the lock protects may be half done.
    pub fn previous_owner_died(&self) -> bool {
        self.hold.lock.was_bequeathed()
    }

    /// Says that what the lock protects is sound again, after
    /// [`previous_owner_died`](Self::previous_owner_died).
    pub fn acknowledge(&self) {
        self.hold.lock.acknowledge();
    }

    /// Gives all back for a time, however often it was taken.
    pub(super) fn suspend(&self) {
        self.hold.end();
    }

    /// Takes nothing again.
    pub(super) fn abandon(&self) {
        lock(&self.hold.raw).clear();
    }

    /// Takes all again.
    pub(super) async fn resume(&self) -> Result<()> {
        self.hold.lock.take(self.hold.process).await?;
        self.hold.begin();
        Ok(())
    }
}

impl fmt::Debug for RLockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RLockGuard").field("holder", &self.hold.holder).finish_non_exhaustive()
    }
}
