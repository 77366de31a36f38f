//! Items that wait in the process that put them, until there is room in the ring.
//!
//! A feeder moves them: a task on the runtime of who put the first one; if there was none, or it has ended, a
//! thread. Several may run at a time; each item is moved once, in order.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::{Builder, Handle};
use tokio::task::yield_now;

use super::core::Core;
use super::item::Item;
use super::putting::Fed;
use crate::error::{Error, Result};
use crate::process::active_children;
use crate::reactor;
use crate::sys;
use crate::sys::per_process::PerProcess;
use crate::util::{Finalize, lock};

/// What waits in this process for one queue.
#[derive(Default)]
struct Backlog {
    items: Mutex<VecDeque<Item>>,
}

#[derive(Default)]
struct Backlogs {
    of: HashMap<u64, Waiting>,
    /// Whether the end of this process waits for them.
    waited_for: bool,
}

struct Waiting {
    backlog: Arc<Backlog>,
    core: Core,
}

/// Those that are not empty.
static BACKLOGS: PerProcess<Mutex<Backlogs>> = PerProcess::new(Mutex::default);

/// Puts an item behind those that wait.
pub(super) fn push(core: &Core, item: &mut Item) {
    let mut backlogs = lock(BACKLOGS.get());
    let begins = !backlogs.of.contains_key(&core.items().key());
    let waiting = backlogs
        .of
        .entry(core.items().key())
        .or_insert_with(|| Waiting { backlog: Arc::default(), core: core.clone() });
    // With the lock: who empties it sees that it is not empty, or this sees that it is there no more.
    lock(&waiting.backlog.items).push_back(item.waiting());
    core.set_waiting(true);
    let backlog = waiting.backlog.clone();
    let first = !std::mem::replace(&mut backlogs.waited_for, true);
    drop(backlogs);
    if first {
        Finalize::new(i32::MIN, finish);
    }
    if begins {
        start(Feeder { core: Some(core.clone()), backlog });
    }
}

/// Moves what waits in this process, until nothing does: who feeds it may be on a runtime that is not polled.
pub(super) async fn flush(core: &Core) {
    while let Some(backlog) = of(core) {
        feed(core, &backlog).await;
    }
}

/// Whether something waits.
pub(super) fn is_waiting(core: &Core) -> bool {
    of(core).is_some()
}

fn of(core: &Core) -> Option<Arc<Backlog>> {
    lock(BACKLOGS.get()).of.get(&core.items().key()).map(|waiting| waiting.backlog.clone())
}

/// Has it fed by the runtime that is there, or by a thread.
fn start(feeder: Feeder) {
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(feeder.run())),
        Err(_) => feeder.start_thread(),
    }
}

struct Feeder {
    /// Gone once nothing waits.
    core: Option<Core>,
    backlog: Arc<Backlog>,
}

impl Feeder {
    async fn run(mut self) {
        if let Some(core) = self.core.clone() {
            feed(&core, &self.backlog).await;
        }
        self.core = None;
    }

    fn start_thread(mut self) {
        let (core, backlog) = (self.core.take(), self.backlog.clone());
        let run = move || {
            let feeder = Self { core, backlog };
            loop {
                match Builder::new_current_thread().enable_io().build() {
                    Ok(runtime) => return runtime.block_on(feeder.run()),
                    // For want of descriptors: there may be some again.
                    Err(error) => tracing::debug!(%error, "no runtime for items that wait"),
                }
                std::thread::sleep(LOOK_EVERY);
            }
        };
        if let Err(error) = sys::threads::spawn("mp-feeder", run) {
            tracing::error!(%error, "no thread for items that wait: they go when the process ends");
        }
    }
}

impl Drop for Feeder {
    /// The runtime has ended in the middle.
    fn drop(&mut self) {
        if self.core.is_some() {
            Self { core: self.core.take(), backlog: self.backlog.clone() }.start_thread();
        }
    }
}

/// Moves what waits, until nothing does.
async fn feed(core: &Core, backlog: &Backlog) {
    loop {
        let fed = core.feed(&mut lock(&backlog.items));
        core.call_after_feed();
        let step = match fed {
            Ok(Some(Fed::All)) if is_done(core, backlog) => return,
            Ok(Some(Fed::All | Fed::Some)) => {
                yield_now().await;
                Ok(())
            }
            Ok(None) => core.producers_pause().await,
            Ok(Some(Fed::NoRoom)) => wait_for_room(core, backlog).await,
            // Of memory, or of descriptors: there may be some again.
            Err(Error::Io(error)) => {
                tracing::debug!(%error, "items wait for what the system lacks");
                wait_for_room(core, backlog).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = step {
            tracing::error!(%error, "items that waited for room are lost");
            core.forget_waiting(std::mem::take(&mut *lock(&backlog.items)));
        }
    }
}

async fn wait_for_room(core: &Core, backlog: &Backlog) -> Result<()> {
    let mut looks = 0;
    core.room(|| {
        looks += 1;
        // What it was woken for may be room enough: that shows when it is tried.
        looks > 1 || lock(&backlog.items).front_mut().is_none_or(|item| core.may_have_room(item))
    })
    .await
}

/// Forgets an empty one. What is put from now on goes straight to the ring, or to a new one.
fn is_done(core: &Core, backlog: &Backlog) -> bool {
    let mut backlogs = lock(BACKLOGS.get());
    if !lock(&backlog.items).is_empty() {
        return false;
    }
    // Another feeder may have been faster, and what waits now is another backlog.
    if let Some(waiting) = backlogs.of.get(&core.items().key())
        && std::ptr::eq(&*waiting.backlog, backlog)
    {
        core.set_waiting(false);
        let ended = backlogs.of.remove(&core.items().key());
        drop(backlogs);
        drop(ended);
    }
    true
}

/// How often it is looked whether anybody is left who could get.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// In how many looks nobody was there: who was given the queue may not have read that yet.
const ALONE: u32 = 10;

/// At the end of this process: moves what waits. Who is to get it may take as long as it likes; once nobody else
/// has the queue, it is over.
fn finish() {
    if lock(BACKLOGS.get()).of.is_empty() {
        return;
    }
    // Whoever ends this process may be within a runtime.
    let moved = sys::threads::spawn("mp-feeder", || {
        Builder::new_current_thread().enable_io().build().map(|runtime| runtime.block_on(move_all()))
    });
    match moved.map(JoinHandle::join) {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) | Err(error) => tracing::error!(%error, "items that waited for room are lost"),
        Ok(Err(_)) => {
            tracing::error!("items that waited for room are lost by a panic")
        }
    }
}

async fn move_all() {
    loop {
        let waiting: Vec<_> = {
            let backlogs = lock(BACKLOGS.get());
            let waited_for = backlogs.of.values().filter(|waiting| waiting.core.is_waited_for());
            waited_for.map(|waiting| (waiting.core.clone(), waiting.backlog.clone())).collect()
        };
        if waiting.is_empty() {
            return;
        }
        // All at once, as somebody may get from one only after another.
        join_all(waiting.iter().map(|(core, backlog)| feed_as_long_as_shared(core, backlog))).await;
    }
}

async fn feed_as_long_as_shared(core: &Core, backlog: &Backlog) {
    let abandoned = async {
        let mut alone = 0;
        while alone < ALONE {
            // A child may have to begin before it has the queue. The end of this process waits for it anyway.
            let may_get = core.is_shared() || active_children().iter().any(|child| !child.daemon());
            alone = if may_get { 0 } else { alone + 1 };
            if reactor::sleep(LOOK_EVERY).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = feed(core, backlog) => {}
        () = abandoned => {
            core.forget_waiting(std::mem::take(&mut *lock(&backlog.items)));
            is_done(core, backlog);
        }
    }
}
