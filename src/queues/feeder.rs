//! Items that wait in the process that put them, until there is room in the ring.
//!
//! A thread moves those of all queues, on a runtime of its own: that of who put may be busy, not be driven or end, and
//! others wait for what he has put. It begins with the first item that is left, and ends soon after the last. Each
//! item is moved once, in order: one at a time moves those of a queue, within one poll.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinSet, yield_now};

use super::core::Core;
use super::item::Item;
use super::putting::Fed;
use crate::error::{Error, Result};
use crate::process::active_children;
use crate::reactor;
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
    /// Rung by who has moved some, or tried to.
    stepped: Notify,
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
}

/// Those that are not empty.
#[derive(Default)]
struct Backlogs {
    of: BTreeMap<Place, Arc<Backlog>>,
    /// Tells who feeds of a new one. Closed, if that has come to an end that was not its own.
    feeder: Option<UnboundedSender<Arc<Backlog>>>,
    /// Whether the end of this process knows of them.
    has_finalizer: bool,
}

/// What is to be fed.
type Fresh = UnboundedReceiver<Arc<Backlog>>;

static BACKLOGS: PerProcess<Mutex<Backlogs>> = PerProcess::new(Mutex::default);

/// Puts an item behind those that wait.
pub(super) fn push(core: &Core, item: &mut Item) {
    let mut backlogs = lock(BACKLOGS.get());
    let (backlog, fresh) = match backlogs.of.entry(core.items().place()) {
        Entry::Occupied(there) => (there.get().clone(), None),
        Entry::Vacant(free) => {
            let backlog = free.insert(Arc::new(Backlog::of(core.clone())));
            (backlog.clone(), Some(backlog.clone()))
        }
    };
    // With the lock: who empties it sees that it is not empty, or this sees that it is there no more.
    let mut line = lock(&backlog.line);
    line.items.push_back(item.waiting());
    line.came += 1;
    drop(line);
    core.set_waiting(true);
    let first = !std::mem::replace(&mut backlogs.has_finalizer, true);
    let without_feeder = backlogs.tell(fresh);
    drop(backlogs);
    if first {
        Finalize::new(i32::MIN, finish);
    }
    without_feeder.into_iter().for_each(start);
}

impl Backlogs {
    /// Tells who feeds of a new one. If there is nobody, gives all to who is to begin.
    fn tell(&mut self, fresh: Option<Arc<Backlog>>) -> Option<Fresh> {
        if let Some(feeder) = self.feeder.as_ref().filter(|feeder| !feeder.is_closed()) {
            if let Some(fresh) = fresh {
                // It ends with the lock of this, so it is still there.
                let _ = feeder.send(fresh);
            }
            return None;
        }
        let (feeder, all) = unbounded_channel();
        for backlog in self.of.values() {
            let _ = feeder.send(backlog.clone());
        }
        self.feeder = Some(feeder);
        Some(all)
    }
}

/// Moves what this process has put by now and what waits here.
///
/// # Errors
/// If it cannot be moved, as somebody has written over the queue's memory.
pub(super) async fn flush(core: &Core) -> Result<()> {
    let Some(backlog) = of(core) else { return Ok(()) };
    let came = lock(&backlog.line).came;
    // There may have been no thread for it when the items came.
    let without_feeder = lock(BACKLOGS.get()).tell(None);
    without_feeder.into_iter().for_each(start);
    loop {
        // What there is room for need not wait for the feeder.
        let fed = backlog.step();
        let stepped = backlog.stepped.notified();
        let (gone, lost) = backlog.gone();
        if gone >= came && lost {
            return Err(Error::Malformed("items of this process are lost: its memory was written over"));
        } else if gone >= came {
            return Ok(());
        }
        match fed {
            Ok(Fed::All | Fed::Some) => yield_now().await,
            _ => stepped.await,
        }
    }
}

/// Whether something waits.
pub(super) fn is_waiting(core: &Core) -> bool {
    of(core).is_some()
}

fn of(core: &Core) -> Option<Arc<Backlog>> {
    lock(BACKLOGS.get()).of.get(&core.items().place()).cloned()
}

/// Has a thread feed them.
fn start(fresh: Fresh) {
    let Err(error) = sys::threads::spawn("mp-feeder", || run(fresh)) else { return };
    tracing::warn!(%error, "no thread for items that wait: the runtime of who puts has to do");
    if let Ok(runtime) = Handle::try_current()
        && let Some(all) = lock(BACKLOGS.get()).tell(None)
    {
        runtime.spawn(feed_all(all));
    }
}

fn run(fresh: Fresh) {
    loop {
        match Builder::new_current_thread().enable_io().build() {
            Ok(runtime) => return runtime.block_on(feed_all(fresh)),
            Err(error) => tracing::debug!(%error, "no runtime for items that wait"),
        }
        // For want of descriptors. Most items need none.
        let mut backlogs = lock(BACKLOGS.get());
        let all: Vec<_> = backlogs.of.values().cloned().collect();
        if all.is_empty() {
            backlogs.feeder = None;
            return;
        }
        drop(backlogs);
        all.iter().for_each(|backlog| backlog.move_what_has_room());
        std::thread::sleep(PAUSE);
    }
}

/// Feeds each until it is empty, and ends when there has been none for a while.
async fn feed_all(mut fresh: Fresh) {
    let mut fed = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(backlog) = fresh.recv() => drop(fed.spawn(async move {
                // Whose waker panics is told by that; items go on.
                while AssertUnwindSafe(backlog.feed()).catch_unwind().await.is_err() {
                    pause().await;
                }
            })),
            Some(_) = fed.join_next() => {}
            _ = reactor::sleep(PAUSE), if fed.is_empty() => {
                let mut backlogs = lock(BACKLOGS.get());
                if fresh.is_empty() {
                    backlogs.feeder = None;
                    return;
                }
            }
        }
    }
}

impl Backlog {
    fn of(core: Core) -> Self {
        Self { core, line: Mutex::default(), mover: Mutex::default(), stepped: Notify::new() }
    }

    /// How many are moved or lost, and whether any is lost.
    fn gone(&self) -> (u64, bool) {
        let line = lock(&self.line);
        (line.gone, line.lost)
    }

    /// Moves what waits, until nothing does.
    async fn feed(&self) {
        loop {
            let stepped = self.stepped.notified();
            let waited = match self.step() {
                Ok(Fed::All) => return,
                Ok(Fed::Some) => {
                    yield_now().await;
                    continue;
                }
                Ok(Fed::Elsewhere) => {
                    stepped.await;
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

    /// Moves without waiting for anything.
    fn move_what_has_room(&self) {
        while matches!(self.step(), Ok(Fed::Some)) {}
    }

    /// Moves some, unless somebody else is at it.
    fn step(&self) -> Result<Fed> {
        let mover = match self.mover.try_lock() {
            Ok(mover) => mover,
            Err(TryLockError::Poisoned(mover)) => mover.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(Fed::Elsewhere),
        };
        let fed = self.core.feed(&self.line);
        let is_done = matches!(fed, Ok(Fed::All)) && self.end();
        drop(mover);
        self.stepped.notify_waiters();
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
        // Nothing is left to move, so that ends it.
        let _ = self.step();
    }
}

/// Waits, for a shorter time if there is no descriptor to wait with.
async fn pause() {
    if reactor::sleep(PAUSE).await.is_err() {
        std::thread::sleep(PAUSE / 20);
        yield_now().await;
    }
}

const PAUSE: Duration = Duration::from_millis(100);

/// For how long nobody was there: who was given the queue may not have read that yet.
const ALONE: Duration = Duration::from_secs(1);

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
        Err(error) => {
            tracing::debug!(%error, "no thread for items that wait");
            move_all_by_steps();
        }
    }
}

fn move_all() {
    match Builder::new_current_thread().enable_io().build() {
        // All at once, as somebody may get from one only after another.
        Ok(runtime) => loop {
            let waiting = waited_for();
            if waiting.is_empty() {
                return;
            }
            let all = waiting.iter().map(|backlog| feed_as_long_as_shared(backlog));
            runtime.block_on(join_all(all));
        },
        Err(error) => {
            tracing::debug!(%error, "no runtime for items that wait");
            move_all_by_steps();
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
        let mut since = Instant::now();
        while since.elapsed() < ALONE {
            if backlog.may_be_got() {
                since = Instant::now();
            }
            pause().await;
        }
    };
    tokio::select! {
        biased;
        () = backlog.feed() => {}
        () = abandoned => backlog.lose(&NOBODY),
    }
}

/// For want of a thread, or of descriptors: more slowly.
fn move_all_by_steps() {
    let mut since = Instant::now();
    loop {
        let waiting = waited_for();
        waiting.iter().for_each(|backlog| backlog.move_what_has_room());
        if waiting.iter().any(|backlog| backlog.may_be_got()) {
            since = Instant::now();
        } else if since.elapsed() >= ALONE || waiting.is_empty() {
            return waiting.iter().for_each(|backlog| backlog.lose(&NOBODY));
        }
        std::thread::sleep(PAUSE);
    }
}

const NOBODY: &str = "no other process has the queue";
