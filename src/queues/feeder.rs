//! Items that wait in the process that put them, until there is room in the ring.
//!
//! A thread moves them, on a runtime of its own: that of who put may be busy, not be driven or end, and others wait
//! for what he has put. Who flushes moves them, too. Each item is moved once, in order: one at a time moves, within
//! one poll.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Builder;
use tokio::task::{spawn_blocking, yield_now};

use super::core::Core;
use super::item::Item;
use super::putting::Fed;
use crate::error::{Error, Result};
use crate::process::active_children;
use crate::synchronize::object::Place;
use crate::sys;
use crate::sys::per_process::PerProcess;
use crate::util::{Finalize, lock};

/// What waits in this process for one queue.
struct Backlog {
    core: Core,
    line: Mutex<Line>,
    /// Held by who moves items; never across an await.
    mover: Mutex<()>,
}

/// The items, and what became of those before them.
#[derive(Default)]
pub(super) struct Line {
    pub(super) items: VecDeque<Item>,
    /// How many have come, ever, and how many are gone: moved or lost.
    came: u64,
    pub(super) gone: u64,
    /// Whether somebody has written over the queue's memory, so that some are lost.
    lost: bool,
    /// Whether a thread is at it.
    is_fed: bool,
}

#[derive(Default)]
struct Backlogs {
    of: BTreeMap<Place, Arc<Backlog>>,
    /// Whether the end of this process knows of them.
    has_finalizer: bool,
}

/// Those that are not empty.
static BACKLOGS: PerProcess<Mutex<Backlogs>> = PerProcess::new(Mutex::default);

/// Puts an item behind those that wait.
pub(super) fn push(core: &Core, item: &mut Item) {
    let mut backlogs = lock(BACKLOGS.get());
    let new = || Arc::new(Backlog { core: core.clone(), line: Mutex::default(), mover: Mutex::default() });
    let backlog = backlogs.of.entry(core.items().place()).or_insert_with(new).clone();
    // With the lock: who empties it sees that it is not empty, or this sees that it is there no more.
    let mut line = lock(&backlog.line);
    line.items.push_back(item.waiting());
    line.came += 1;
    let begins = !std::mem::replace(&mut line.is_fed, true);
    drop(line);
    core.set_waiting(true);
    let first = !std::mem::replace(&mut backlogs.has_finalizer, true);
    drop(backlogs);
    if first {
        Finalize::new(i32::MIN, finish);
    }
    if begins {
        start(backlog);
    }
}

/// Moves what this process has put by now and what waits here.
///
/// # Errors
/// If it cannot be moved, as somebody has written over the queue's memory.
pub(super) async fn flush(core: &Core) -> Result<()> {
    let Some(backlog) = of(core) else { return Ok(()) };
    let came = lock(&backlog.line).came;
    backlog.feed_until(|line| line.gone >= came).await;
    let lost = lock(&backlog.line).lost;
    if lost {
        Err(Error::Malformed("items of this process are lost: its memory was written over"))
    } else {
        Ok(())
    }
}

/// Whether something waits.
pub(super) fn is_waiting(core: &Core) -> bool {
    of(core).is_some()
}

fn of(core: &Core) -> Option<Arc<Backlog>> {
    lock(BACKLOGS.get()).of.get(&core.items().place()).cloned()
}

/// Has a thread feed a backlog until it is empty.
fn start(backlog: Arc<Backlog>) {
    let feeding = Feeding(backlog);
    let run = move || {
        let Feeding(backlog) = &feeding;
        loop {
            match Builder::new_current_thread().enable_io().build() {
                Ok(runtime) => return runtime.block_on(backlog.feed_until(|_| false)),
                // For want of descriptors: there may be some again.
                Err(error) => tracing::debug!(%error, "no runtime for items that wait"),
            }
            std::thread::sleep(PAUSE);
        }
    };
    if let Err(error) = sys::threads::spawn("mp-feeder", run) {
        tracing::warn!(%error, "no thread for items that wait: they go with the next one");
    }
}

/// What the thread has. If it ends early, or there was none to be had, the next item that is left begins another.
struct Feeding(Arc<Backlog>);

impl Drop for Feeding {
    fn drop(&mut self) {
        lock(&self.0.line).is_fed = false;
    }
}

impl Backlog {
    /// Moves what waits, until nothing does or it `is_enough`.
    async fn feed_until(&self, is_enough: impl Fn(&Line) -> bool) {
        loop {
            let fed = self.step();
            if matches!(fed, Ok(Fed::All)) || is_enough(&lock(&self.line)) {
                return;
            }
            let waited = match fed {
                Ok(Fed::All | Fed::Some) => {
                    yield_now().await;
                    continue;
                }
                Ok(Fed::Busy) => self.core.producers_pause().await,
                Ok(Fed::NoRoom) => self.core.room(|| !matches!(self.step(), Ok(Fed::NoRoom))).await,
                Err(error) => Err(error),
            };
            match waited {
                Ok(()) => {}
                Err(error @ Error::Malformed(_)) => self.lose(&error),
                // For want of memory or descriptors, or as too many processes have the queue: that may end.
                Err(error) => {
                    tracing::debug!(%error, "items wait for what the system lacks");
                    pause().await;
                }
            }
        }
    }

    /// Moves some. Whoever else is at it has it done.
    fn step(&self) -> Result<Fed> {
        let mover = match self.mover.try_lock() {
            Ok(mover) => mover,
            Err(TryLockError::Poisoned(mover)) => mover.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(Fed::Some),
        };
        let fed = self.core.feed(&self.line);
        let is_done = matches!(fed, Ok(Fed::All)) && self.end();
        drop(mover);
        // Without any lock, as wakers are others' code.
        self.core.call_after_feed();
        match fed {
            Ok(Fed::All) if !is_done => Ok(Fed::Some),
            fed => fed,
        }
    }

    /// Forgets an empty one: what is put from now on goes straight to the ring, or to a new one. False if it is
    /// not empty. With the mover's lock, so that no item is on its way.
    fn end(&self) -> bool {
        let mut backlogs = lock(BACKLOGS.get());
        if !lock(&self.line).items.is_empty() {
            return false;
        }
        // It may have ended before, and what waits now is another.
        let place = self.core.items().place();
        if backlogs.of.get(&place).is_some_and(|now| std::ptr::eq(&**now, self)) {
            self.core.set_waiting(false);
            let ended = backlogs.of.remove(&place);
            drop(backlogs);
            drop(ended);
        }
        true
    }

    /// Whether there is anybody to get it. A child may have to begin before it has the queue; the end of this
    /// process waits for it anyway.
    fn may_be_got(&self) -> bool {
        self.core.is_shared() || active_children().iter().any(|child| !child.daemon())
    }

    /// Gives up what waits.
    fn lose(&self, why: &dyn fmt::Display) {
        tracing::error!(%why, "items that waited for room are lost");
        let mut line = lock(&self.line);
        let items = std::mem::take(&mut line.items);
        line.gone += items.len() as u64;
        line.lost = true;
        drop(line);
        self.core.forget_waiting(items);
    }
}

/// Waits without a descriptor, as there may be none.
async fn pause() {
    let _ = spawn_blocking(|| std::thread::sleep(PAUSE)).await;
}

const PAUSE: Duration = Duration::from_millis(100);

/// In how many looks nobody was there: who was given the queue may not have read that yet.
const ALONE: u32 = 10;

/// At the end of this process: moves what waits. Who is to get it may take as long as it likes; once nobody else
/// has the queue, it is over.
fn finish() {
    if lock(BACKLOGS.get()).of.is_empty() {
        return;
    }
    // Whoever ends this process may be within a runtime.
    match sys::threads::spawn("mp-feeder", move_all).map(JoinHandle::join) {
        Ok(Ok(())) => {}
        Ok(Err(_)) => tracing::error!("items that waited for room are lost by a panic"),
        Err(error) => tracing::error!(%error, "items that waited for room are lost"),
    }
}

fn move_all() {
    let mut alone = 0;
    loop {
        let waiting = waited_for();
        if waiting.is_empty() {
            return;
        }
        match Builder::new_current_thread().enable_io().build() {
            // All at once, as somebody may get from one only after another.
            Ok(runtime) => {
                let all = waiting.iter().map(|backlog| feed_as_long_as_shared(backlog));
                runtime.block_on(join_all(all));
            }
            // For want of descriptors: it goes without a runtime, too, but more slowly.
            Err(error) => {
                tracing::debug!(%error, "no runtime for items that wait");
                waiting.iter().for_each(|backlog| _ = backlog.step());
                alone = if waiting.iter().any(|backlog| backlog.may_be_got()) { 0 } else { alone + 1 };
                if alone == ALONE {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Those for which the end of this process waits.
fn waited_for() -> Vec<Arc<Backlog>> {
    let backlogs = lock(BACKLOGS.get());
    backlogs.of.values().filter(|backlog| backlog.core.is_waited_for()).cloned().collect()
}

async fn feed_as_long_as_shared(backlog: &Backlog) {
    let abandoned = async {
        let mut alone = 0;
        while alone < ALONE {
            alone = if backlog.may_be_got() { 0 } else { alone + 1 };
            pause().await;
        }
    };
    tokio::select! {
        biased;
        () = backlog.feed_until(|_| false) => {}
        () = abandoned => {
            backlog.lose(&"no other process has the queue");
            let _ = backlog.step();
        }
    }
}
