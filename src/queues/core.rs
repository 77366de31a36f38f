//! What all queues are made of: one memory with a ring, two locks and four bells.
//!
//! Whoever puts or gets takes the lock of that side, looks, acts and gives it back within one poll: no lock is
//! ever held by a future that somebody might not poll. Who has to wait sleeps for the condition (an item, a
//! slot, room) and not for the lock; each attempt takes the lock anew.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::memory::{
    DONE, EXTENTS, Extents, ITEMS, LAYOUT, MAPPED, Part, ROOM, SHUT_DOWN, SLOTS, WHOLE, parts,
};
use crate::error::{Error, Result};
use crate::reduction::{Attachment, Descriptor};
use crate::ring::many::Ring;
use crate::ring::parcels::Parcels;
use crate::synchronize::object::Object;
use crate::synchronize::protocol::{Here, Identity, Words, World, bells, cells};
use crate::synchronize::wait::Sleeper;
use crate::synchronize::{LOCK, Lock};
use crate::sys::kept::Kept;
use crate::sys::memory::{self, Shared};
use crate::sys::per_process::{PerProcess, process_token};
use crate::sys::{self, AsFd, Fd};
use crate::util::lock;

/// What a queue is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Design {
    /// How many items it takes; 0: any number.
    pub(super) max: u32,
    /// Whether what was got is to be acknowledged.
    pub(super) joinable: bool,
    /// Whether what finds no room waits in its process, and not with who puts it.
    pub(super) feeds: bool,
}

impl Design {
    const JOINABLE: u64 = 1 << 32;
    const FEEDS: u64 = 1 << 33;

    fn word(self) -> u64 {
        let flag = |set, flag| if set { flag } else { 0 };
        u64::from(self.max) | flag(self.joinable, Self::JOINABLE) | flag(self.feeds, Self::FEEDS)
    }

    fn of(word: u64) -> Self {
        Self { max: word as u32, joinable: word & Self::JOINABLE != 0, feeds: word & Self::FEEDS != 0 }
    }
}

/// A queue. Clones are the same one, and so is what arrives in a message where there is one already.
#[derive(Clone)]
pub(super) struct Core(pub(super) Arc<Inner>);

pub(super) struct Inner {
    _kept: Kept,
    pub(super) fd: Arc<Fd>,
    pub(super) parcels: Parcels,
    pub(super) design: Design,
    pub(super) producers: Lock,
    pub(super) consumers: Lock,
    pub(super) items: Object,
    pub(super) slots: Object,
    pub(super) room: Object,
    pub(super) done: Object,
    pub(super) ring: Ring<Shared>,
    pub(super) memory: Shared,
    /// What this process does with the queue: its token, and the flags.
    pub(super) state: AtomicU64,
    /// Of those who get here, and of those who put.
    pub(super) gets: Flow,
    pub(super) puts: Flow,
}

/// This process has closed its handle.
pub(super) const CLOSED: u64 = 1;
/// Items of this process wait for room: others get behind them.
pub(super) const WAITING: u64 = 2;
/// The end of this process does not wait for those.
const ABANDONS: u64 = 4;
const FLAGS: u32 = 3;

/// How often who does not sleep tries to get a lock.
const LOOKS: usize = 20;

/// A side's lock, held for some instants of one poll.
pub(super) struct Held<'a> {
    lock: &'a Lock,
    by: Identity,
}

impl<'a> Held<'a> {
    pub(super) fn spin(lock: &'a Lock) -> Option<Self> {
        let by = Here.me();
        // Made before it is known whether it is ours, it would give back what another thread here holds.
        lock.spin(by).then(|| Self { lock, by })
    }

    /// Tries for a little, as those who have a lock mostly have it for less than a microsecond, and then, once,
    /// whether it is a dead one's.
    pub(super) fn patient(lock: &'a Lock) -> Option<Self> {
        for _ in 0..LOOKS {
            if let Some(held) = Self::spin(lock) {
                return Some(held);
            }
            std::thread::yield_now();
        }
        Self::try_take(lock)
    }

    /// Also from a dead one, if there is no contention.
    pub(super) fn try_take(lock: &'a Lock) -> Option<Self> {
        let by = Here.me();
        lock.try_take(by).then(|| Self { lock, by })
    }

    pub(super) async fn wait(lock: &'a Lock) -> Result<Self> {
        let by = Here.me();
        lock.take(by).await?;
        Ok(Self { lock, by })
    }

    /// [`wait`](Self::wait) for who polls by hand.
    pub(super) fn poll_wait(
        lock: &'a Lock,
        sleeper: &mut Sleeper,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self>> {
        let by = Here.me();
        lock.poll_take(by, sleeper, cx).map_ok(|()| Self { lock, by })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.lock.give_back(self.by);
    }
}

/// How many of those who came found what they came for, at once: whether more of it may be about to come.
#[derive(Default)]
pub(super) struct Flow(AtomicU32);

/// How many have to find it before anybody spins for more: where nobody can bring any meanwhile, as on a single processor,
/// each pays an eighth of a spin in vain.
const FLOW: u32 = 8;
/// How many pauses of the processor lie between two looks, and for how long who is about to sleep looks.
const SPINS: u32 = 128;
const SPIN_FOR: Duration = Duration::from_micros(5);

impl Flow {
    /// Who came found it without sleeping.
    pub(super) fn found(&self) {
        let found = self.0.load(Ordering::Relaxed);
        if found < FLOW {
            self.0.store(found + 1, Ordering::Relaxed);
        }
    }

    /// Whether it `is_there` within the time that it takes to wake a sleeper, which costs both sides as much. Only
    /// in a flow, as else it mostly is not; behind those who sleep for it already; and looked for rarely, as each
    /// look holds up the other side.
    pub(super) fn brings(&self, sleepers: &impl Words, is_there: impl Fn() -> bool) -> bool {
        if self.0.load(Ordering::Relaxed) < FLOW || bells::anyone_else(sleepers) {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < SPIN_FOR {
            (0..SPINS).for_each(|_| std::hint::spin_loop());
            if is_there() {
                // Another may be faster: who comes back for more sleeps.
                self.0.store(FLOW - 1, Ordering::Relaxed);
                return true;
            }
        }
        self.0.store(0, Ordering::Relaxed);
        false
    }
}

/// The queues of this process by their keys, so that one that arrives again is the same.
type Known = Vec<(u64, Weak<Inner>)>;

static KNOWN: PerProcess<Mutex<Known>> = PerProcess::new(Mutex::default);

impl Core {
    /// # Errors
    /// When there are no descriptors or no memory left, and on platforms without processes.
    pub(super) fn create(design: Design) -> Result<Self> {
        memory::admits(WHOLE, MAPPED)?;
        let fd = memory::sparse("tokio-multiprocess-queue", WHOLE, MAPPED)?;
        memory::seal_fixed_size(fd.as_fd())?;
        let memory = Shared::map_first(fd.as_fd(), MAPPED)?;
        for (part, kind) in parts() {
            let configuration = match part {
                Part::Items => design.word(),
                Part::Slots => u64::from(design.max),
                _ => 0,
            };
            Object::lay(&memory.tail_from(part.at()), kind, configuration)?;
        }
        Self::adopt(fd, Parcels::new()?, memory, &mut lock(KNOWN.get()))
    }

    /// What has arrived in a message, from whomever.
    pub(super) fn open(fd: Fd, parcels: Parcels) -> Result<Self> {
        let memory = Shared::map_first(fd.as_fd(), MAPPED)?;
        let key = Object::key_at(&memory.tail_from(Part::Items.at()));
        let identity = sys::fd::identity(fd.as_fd())?;
        let same = |inner: &Arc<Inner>| sys::fd::identity(inner.fd.as_fd()).is_ok_and(|of| of == identity);
        // Held all the while, so that it is not there twice.
        let mut known = lock(KNOWN.get());
        let of_this_key = known.iter().filter(|(of, _)| *of == key);
        let there: Vec<_> = of_this_key.filter_map(|(_, inner)| inner.upgrade()).collect();
        match there.iter().find(|inner| same(inner)) {
            Some(inner) => Ok(Self(inner.clone())),
            None => Self::adopt(fd, parcels, memory, &mut known),
        }
    }

    fn adopt(fd: Fd, parcels: Parcels, memory: Shared, known: &mut Known) -> Result<Self> {
        if memory::len(fd.as_fd())? != WHOLE {
            return Err(Error::Malformed("it is another object than expected"));
        }
        let fd = Arc::new(fd);
        let part = |part: Part, kind| Object::part(&fd, memory.tail_from(part.at()), kind);
        let items = part(Part::Items, &ITEMS)?;
        let inner = Arc::new(Inner {
            _kept: Kept::new(fd.as_fd()),
            design: Design::of(items.configuration()),
            producers: Lock::of(part(Part::Producers, &LOCK)?),
            consumers: Lock::of(part(Part::Consumers, &LOCK)?),
            slots: part(Part::Slots, &SLOTS)?,
            room: part(Part::Room, &ROOM)?,
            done: part(Part::Done, &DONE)?,
            items,
            ring: Ring::new(memory.tail_from(0), LAYOUT),
            memory: memory.tail_from(0),
            state: AtomicU64::new(0),
            gets: Flow::default(),
            puts: Flow::default(),
            parcels,
            fd,
        });
        let core = Self(inner);
        core.flags()?;
        known.retain(|(_, inner)| inner.strong_count() > 0);
        known.push((core.0.items.key(), Arc::downgrade(&core.0)));
        Ok(core)
    }

    /// What goes into a message for it.
    pub(super) fn content(&self) -> (Descriptor, &Parcels) {
        (Descriptor(Attachment(self.0.fd.clone())), &self.0.parcels)
    }

    pub(super) fn extents(&self) -> Extents<'_> {
        Extents::new(&self.0.memory, &Here, self.0.fd.as_fd(), EXTENTS)
    }

    pub(super) fn design(&self) -> Design {
        self.0.design
    }

    pub(super) fn items(&self) -> &Object {
        &self.0.items
    }

    /// What this process does with the queue.
    #[inline]
    pub(super) fn flags(&self) -> Result<u64> {
        let state = self.0.state.load(Ordering::Acquire);
        if state >> FLAGS == process_token() { Ok(state & ((1 << FLAGS) - 1)) } else { self.begin(state) }
    }

    /// This process uses the queue from now on, and nothing of what the one did that it is a copy of.
    #[cold]
    fn begin(&self, before: u64) -> Result<u64> {
        // So that others know that somebody is there.
        self.0.items.cell()?;
        let begun = process_token() << FLAGS;
        let _ = self.0.state.compare_exchange(before, begun, Ordering::AcqRel, Ordering::Acquire);
        Ok(self.0.state.load(Ordering::Acquire) & ((1 << FLAGS) - 1))
    }

    /// Whether any other living process has the queue.
    pub(super) fn is_shared(&self) -> bool {
        let words = self.0.items.words();
        cells::all(words)
            .filter_map(|cell| cells::owner(words, cell))
            .any(|owner| owner != Here.me() && !Here.is_dead(owner))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.flags().is_ok_and(|flags| flags & CLOSED != 0)
    }

    /// Closes this process's handle.
    pub(super) fn close(&self) {
        if let Err(error) = self.flags() {
            return tracing::warn!(%error, "a queue that this process cannot use is not closed, either");
        }
        self.0.state.fetch_or(CLOSED, Ordering::AcqRel);
        let Inner { items, slots, room, .. } = &*self.0;
        [items, slots, room].into_iter().for_each(Object::wake_here);
    }

    /// Has the end of this process not wait for what waits for room.
    pub(super) fn abandon(&self) -> Result<()> {
        self.flags()?;
        self.0.state.fetch_or(ABANDONS, Ordering::AcqRel);
        Ok(())
    }

    /// Whether the end of this process waits for what waits for room.
    pub(super) fn is_waited_for(&self) -> bool {
        self.flags().is_ok_and(|flags| flags & ABANDONS == 0)
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.0.memory.atomic_u64(SHUT_DOWN).load(Ordering::Acquire) != 0
    }

    pub(super) fn downgrade(&self) -> WeakCore {
        WeakCore(Arc::downgrade(&self.0))
    }
}

/// A [`Core`] that may be gone.
pub(super) struct WeakCore(Weak<Inner>);

impl WeakCore {
    pub(super) fn upgrade(&self) -> Option<Core> {
        self.0.upgrade().map(Core)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Sets that it is a member of learn that it is not any more.
        self.items.wake_here();
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use super::*;
    use crate::queues::{GetError, JoinableQueue, PutErrorKind, Queue};

    /// As if so many others as there can be had a part of the queue.
    fn crowd(core: &Core, part: Part) {
        let words = core.0.memory.tail_from(part.at());
        for cell in cells::all(&words) {
            let _ = crate::synchronize::protocol::Words::compare_exchange(
                &words,
                cell.identity(),
                0,
                Here.me().0,
            );
        }
    }

    fn says_so(error: &Error) {
        assert!(error.to_string().contains("250 processes"), "{error}");
    }

    #[test]
    fn one_process_too_many_is_told() {
        let queue = Queue::<u64>::new(2).unwrap();
        let core = queue.core();
        crowd(core, Part::Items);
        let fd = core.0.fd.as_fd().try_clone_to_owned().unwrap();
        let arrives = Core::adopt(fd, Parcels::new().unwrap(), core.0.memory.tail_from(0), &mut Vec::new());
        says_so(&arrives.err().unwrap());
    }

    #[test]
    fn who_cannot_hold_a_slot_or_an_item_leaves_it() {
        let queue = JoinableQueue::<u64>::new(2).unwrap();
        queue.try_put(1).unwrap();
        crowd(queue.core(), Part::Slots);
        crowd(queue.core(), Part::Done);
        says_so(&queue.try_reserve().err().unwrap());
        let Err(GetError::Failed(error)) = queue.try_get() else { panic!("it has no cell") };
        says_so(&error);
        assert_eq!(queue.len(), 1);
        // What needs no cell goes on.
        queue.try_put(2).unwrap();
        assert!(matches!(queue.try_put(3).unwrap_err().kind, PutErrorKind::Full));
    }
}
