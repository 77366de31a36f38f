//! What all queues are made of: one memory with a ring, two locks and four bells.
//!
//! | bytes | are |
//! |---|---|
//! | 0.. | the parts, [`Part`], each an [`Object`] of 8 KiB |
//! | [`WORDS_AT`].. | the ring's words, [`SHUT_DOWN`], the table of extents |
//! | [`DATA_AT`].. | the ring's bytes |
//! | [`MAPPED`].. | extents, which nobody maps |
//!
//! Whoever puts or gets takes the lock of that side, looks, acts and gives it back within one poll: no lock is
//! ever held by a future that somebody might not poll. Who has to wait sleeps for the condition (an item, a
//! slot, room) and not for the lock; each attempt takes the lock anew.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::error::{GetError, PutErrorKind};
use super::item::{Arrived, Item, Parts};
use super::{acks, feeder, slots};
use crate::error::{Error, Result};
use crate::reduction::{Attachment, Descriptor};
use crate::ring::many::{Front, Layout, Mark, Ring};
use crate::ring::parcels::{Opened, Parcels, Place};
use crate::ring::{Corrupt, extents};
use crate::synchronize::object::{Kind, Object, SIZE};
use crate::synchronize::protocol::{Cell, Here, Identity, World, bells, cells};
use crate::synchronize::wait::{proceed, sleep, wait};
use crate::synchronize::{LOCK, Lock};
use crate::sys::fd::is_exhausted;
use crate::sys::kept::Kept;
use crate::sys::memory::{self, Shared};
use crate::sys::per_process::{PerProcess, process_token};
use crate::sys::socket::is_full;
use crate::sys::{self, AsFd, BorrowedFd, Fd};
use crate::util::lock;

/// How many bytes the ring has.
pub(super) const CAPACITY: usize = 1 << 20;
/// What sleeps for one thing has a part of its own, so that whoever is rung for can use what the ring is for.
#[derive(Clone, Copy)]
enum Part {
    /// Who joins the queue, and what was got and not acknowledged.
    Done,
    Producers,
    Consumers,
    /// Who gets, and all who have the queue.
    Items,
    /// Who puts or reserves, and what is held that is not in the ring.
    Slots,
    /// What waits for room.
    Room,
}

impl Part {
    const COUNT: usize = 6;

    const fn at(self) -> usize {
        self as usize * SIZE
    }
}

const WORDS_AT: usize = Part::COUNT * SIZE;
const LAYOUT: Layout = Layout { tail: WORDS_AT, head: WORDS_AT + 128, data: DATA_AT, capacity: CAPACITY };
/// 1 once nothing more is put.
const SHUT_DOWN: usize = WORDS_AT + 256;
const EXTENTS: extents::Layout =
    extents::Layout { table: WORDS_AT + 1024, entries: 64, head: LAYOUT.head, tail: LAYOUT.tail };
const DATA_AT: usize = WORDS_AT + 4096;
const _: () = assert!(EXTENTS.table + EXTENTS.entries * extents::ENTRY <= DATA_AT);
const MAPPED: usize = DATA_AT + CAPACITY;
const _: () = assert!(MAPPED <= extents::REGION);
const WHOLE: usize = (EXTENTS.entries + 1) * extents::REGION;

type Extents<'a> = extents::Extents<'a, Shared, Here, BorrowedFd<'a>>;
type Claimed<'a> = extents::Claimed<'a, Shared, Here, BorrowedFd<'a>>;
type Extent<'a> = extents::Reserved<'a, Shared, Here, BorrowedFd<'a>>;

/// The ring, as an object of one part finds it.
fn ring_from(object: &Object, part: Part) -> Ring<&Shared> {
    let Layout { tail, head, data, capacity } = LAYOUT;
    let layout = Layout { tail: tail - part.at(), head: head - part.at(), data: data - part.at(), capacity };
    Ring::new(object.words(), layout)
}

/// How many items were put and are not done, and how many were left behind by who died.
fn unfinished_from(object: &Object, part: Part, looks: bool) -> (u64, u64) {
    let slots = object.words().from(Part::Slots.at() - part.at());
    let done = object.words().from(Part::Done.at() - part.at());
    let ring = ring_from(object, part);
    loop {
        // In the order in which items go, so that none is missed.
        let waiting = slots::held(&slots, &Here, looks).waiting;
        let head = ring.head();
        let in_ring = ring.tail().items_since(head);
        let acks::Standing { taken, left } = acks::standing(&done, &Here, head.sequence(), looks);
        if ring.head() == head {
            return (u64::from(waiting) + in_ring + taken, left);
        }
    }
}

fn is_shut_down_from(object: &Object, part: Part) -> bool {
    object.words().atomic_u64(SHUT_DOWN - part.at()).load(Ordering::Acquire) != 0
}

static ITEMS: Kind = Kind {
    code: 7,
    name: "queue",
    ready: |object, _| match ring_from(object, Part::Items).items() {
        0 if is_shut_down_from(object, Part::Items) => usize::MAX,
        items => items as usize,
    },
    passes_on: true,
    reap: |_, _| {},
    claimed: |_, _| {},
    // A process that uses the queue has one as long as it has the queue.
    holds: |_, _| false,
};

static SLOTS: Kind = Kind {
    code: 8,
    name: "queue",
    ready: |object, looks| {
        if is_shut_down_from(object, Part::Slots) {
            return usize::MAX;
        }
        let held = slots::held(object.words(), &Here, looks).all();
        let used = ring_from(object, Part::Slots).items() + held;
        object.configuration().saturating_sub(used) as usize
    },
    passes_on: true,
    reap: |_, _| {},
    claimed: |words, cell| slots::claimed(words, cell),
    holds: |words, cell| slots::held_at(words, cell).all() > 0,
};

static ROOM: Kind = Kind {
    code: 9,
    name: "queue",
    ready: |object, _| {
        let may_go_on = ring_from(object, Part::Room).free() > 0 || is_shut_down_from(object, Part::Room);
        if may_go_on { usize::MAX } else { 0 }
    },
    passes_on: false,
    reap: |_, _| {},
    claimed: |_, _| {},
    holds: |_, _| false,
};

static DONE: Kind = Kind {
    code: 10,
    name: "queue",
    ready: |object, looks| match unfinished_from(object, Part::Done, looks) {
        (0, _) => usize::MAX,
        _ => 0,
    },
    passes_on: false,
    reap: |_, _| {},
    claimed: |words, cell| acks::claimed(words, cell),
    holds: |words, cell| acks::holds(words, cell),
};

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
pub(super) struct Core(Arc<Inner>);

pub(super) struct Inner {
    _kept: Kept,
    fd: Arc<Fd>,
    parcels: Parcels,
    design: Design,
    producers: Lock,
    consumers: Lock,
    pub(super) items: Object,
    slots: Object,
    room: Object,
    done: Object,
    ring: Ring<Shared>,
    memory: Shared,
    /// What this process does with the queue: its token, and the flags.
    state: AtomicU64,
}

/// This process has closed its handle.
const CLOSED: u64 = 1;
/// Items of this process wait for room: others get behind them.
const WAITING: u64 = 2;
/// The end of this process does not wait for those.
const ABANDONS: u64 = 4;
const FLAGS: u32 = 3;

/// What became of an offer.
pub(super) enum Offer {
    /// It was put, and what was offered is empty.
    Put,
    /// Somebody else has the lock.
    Busy,
    /// There is no slot.
    Full,
    /// There is a slot, and no room; only where nothing waits in its process.
    NoRoom,
}

/// For what slot an item is put.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Free,
    /// One that this process has reserved.
    Reserved,
}

/// What became of an attempt to get.
pub(super) enum Taken {
    /// It is where it was to go.
    Item,
    Empty,
    /// Somebody else has the lock.
    Busy,
}

/// What lies beside an item that is next to be taken.
type Beside<'a> = (Parts, Option<Opened<'a>>, Option<Claimed<'a>>);

/// A slot that a future has reserved for what it puts.
struct Reservation<'a> {
    core: &'a Core,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.core.give_back();
    }
}

/// A side's lock, held for some instants of one poll.
struct Held<'a> {
    lock: &'a Lock,
    by: Identity,
}

impl<'a> Held<'a> {
    fn spin(lock: &'a Lock) -> Option<Self> {
        let by = Here.me();
        lock.spin(by).then_some(Self { lock, by })
    }

    /// Also from a dead one, if there is no contention.
    fn try_take(lock: &'a Lock) -> Option<Self> {
        let by = Here.me();
        lock.try_take(by).then_some(Self { lock, by })
    }

    async fn wait(lock: &'a Lock) -> Result<Self> {
        let by = Here.me();
        lock.take(by).await?;
        Ok(Self { lock, by })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.lock.give_back(self.by);
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
        for (part, kind) in Self::parts() {
            let configuration = match part {
                Part::Items => design.word(),
                Part::Slots => u64::from(design.max),
                _ => 0,
            };
            Object::lay(&memory.from(part.at()), kind, configuration)?;
        }
        Self::adopt(fd, Parcels::new()?, memory, &mut lock(KNOWN.get()))
    }

    /// What has arrived in a message, from whomever.
    pub(super) fn open(fd: Fd, parcels: Parcels) -> Result<Self> {
        let memory = Shared::map_first(fd.as_fd(), MAPPED)?;
        let key = Object::key_at(&memory.from(Part::Items.at()));
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

    fn parts() -> [(Part, &'static Kind); Part::COUNT] {
        [
            (Part::Done, &DONE),
            (Part::Producers, &LOCK),
            (Part::Consumers, &LOCK),
            (Part::Items, &ITEMS),
            (Part::Slots, &SLOTS),
            (Part::Room, &ROOM),
        ]
    }

    fn adopt(fd: Fd, parcels: Parcels, memory: Shared, known: &mut Known) -> Result<Self> {
        if memory::len(fd.as_fd())? != WHOLE {
            return Err(Error::Malformed("it is another object than expected"));
        }
        let fd = Arc::new(fd);
        let part = |part: Part, kind| Object::part(&fd, memory.from(part.at()), kind);
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
            ring: Ring::new(memory.from(0), LAYOUT),
            memory: memory.from(0),
            state: AtomicU64::new(0),
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

    fn extents(&self) -> Extents<'_> {
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
    fn flags(&self) -> Result<u64> {
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
        if self.flags().is_ok() {
            self.0.state.fetch_or(CLOSED, Ordering::AcqRel);
            let Inner { items, slots, room, .. } = &*self.0;
            [items, slots, room].into_iter().for_each(Object::wake_here);
        }
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

    fn is_shut_down(&self) -> bool {
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

/// Putting.
impl Core {
    /// Puts an item for a slot, and waits until there is one. If it fails the item is where it was.
    pub(super) async fn put(&self, item: &mut Item) -> Result<(), PutErrorKind> {
        item.pack()?;
        if item.is_large() {
            return self.put_large(item).await;
        }
        proceed().await;
        let offer = |item: &mut Item, held, looks| self.offer(item, Slot::Free, &mut None, held, looks);
        let mut offered = offer(item, Held::spin(&self.0.producers), false);
        loop {
            offered = match offered? {
                Offer::Put => return Ok(()),
                Offer::Busy => offer(item, Some(Held::wait(&self.0.producers).await?), false),
                Offer::Full => {
                    sleep(&self.0.slots, |_| {
                        let offered = offer(item, Held::spin(&self.0.producers), true);
                        (!matches!(offered, Ok(Offer::Full))).then_some(offered)
                    })
                    .await?
                }
                Offer::NoRoom => {
                    sleep(&self.0.room, |_| {
                        let offered = offer(item, Held::spin(&self.0.producers), false);
                        (!matches!(offered, Ok(Offer::NoRoom))).then_some(offered)
                    })
                    .await?
                }
            };
        }
    }

    /// The slot first, as extents are few.
    async fn put_large(&self, item: &mut Item) -> Result<(), PutErrorKind> {
        self.reserve().await?;
        let reserved = Reservation { core: self };
        loop {
            let mut extent = self.lay_out(item)?;
            let offered = match self.offer(item, Slot::Reserved, &mut extent, self.patient_hold(), false)? {
                Offer::Busy => {
                    let held = Held::wait(&self.0.producers).await?;
                    self.offer(item, Slot::Reserved, &mut extent, Some(held), false)?
                }
                offered => offered,
            };
            if let Offer::Put = offered {
                std::mem::forget(reserved);
                return Ok(());
            }
            drop(extent);
            // Of a queue without a feeder: until there is a place for it.
            let mut looks = 0;
            sleep(&self.0.room, |_| {
                looks += 1;
                (looks > 1).then_some(())
            })
            .await?;
        }
    }

    /// Writes a large item to an extent; `None` if it is not large, or there is none.
    fn lay_out(&self, item: &Item) -> Result<Option<Extent<'_>>> {
        if !item.is_large() || self.flags()? & WAITING != 0 {
            return Ok(None);
        }
        let extent = self.extents().reserve(item.body().len())?;
        if let Some(extent) = &extent {
            extent.write(0, item.body())?;
        }
        Ok(extent)
    }

    fn patient_hold(&self) -> Option<Held<'_>> {
        patient(|| Held::try_take(&self.0.producers))
    }

    /// Puts an item now. Where others have the lock for long it may be full though it is not: of a queue that
    /// takes any number, the item waits with this process's others then.
    pub(super) fn try_put(&self, item: &mut Item, slot: Slot) -> Result<(), PutErrorKind> {
        item.pack()?;
        let mut extent = self.lay_out(item)?;
        match self.offer(item, slot, &mut extent, self.patient_hold(), true)? {
            Offer::Put => Ok(()),
            Offer::Busy if self.design().feeds && (self.design().max == 0 || slot == Slot::Reserved) => {
                self.wait_in_process(item, slot)
            }
            Offer::Busy | Offer::Full | Offer::NoRoom => Err(PutErrorKind::Full),
        }
    }

    fn offer(
        &self,
        item: &mut Item,
        slot: Slot,
        extent: &mut Option<Extent<'_>>,
        held: Option<Held<'_>>,
        looks: bool,
    ) -> Result<Offer, PutErrorKind> {
        let flags = self.flags()?;
        if flags & CLOSED != 0 {
            return Err(PutErrorKind::Closed);
        }
        let Some(held) = held else { return Ok(Offer::Busy) };
        // With the lock: see `is_over`.
        if self.is_shut_down() {
            return Err(PutErrorKind::ShutDown);
        }
        if slot == Slot::Free && !self.has_slot(looks) {
            return Ok(Offer::Full);
        }
        if flags & WAITING == 0 && self.publish(item, extent)? {
            self.give_up(slot);
            drop(held);
            self.0.items.call_one();
            return Ok(Offer::Put);
        }
        if !self.design().feeds {
            return Ok(Offer::NoRoom);
        }
        // With the lock, under which there was a slot for it.
        self.count_waiting(slot)?;
        drop(held);
        feeder::push(self, item);
        Ok(Offer::Put)
    }

    /// Leaves an item with this process's others, without the lock.
    fn wait_in_process(&self, item: &mut Item, slot: Slot) -> Result<(), PutErrorKind> {
        self.count_waiting(slot)?;
        // After it counts: whoever is told that the queue is over has seen that it does not.
        if self.is_shut_down() {
            self.count_fewer_waiting(1);
            self.call_if_over();
            return Err(PutErrorKind::ShutDown);
        }
        feeder::push(self, item);
        Ok(())
    }

    fn count_waiting(&self, slot: Slot) -> Result<()> {
        let cell = self.0.slots.cell()?;
        slots::update(self.0.slots.words(), cell, |held| slots::Held {
            reserved: held.reserved.saturating_sub(u32::from(slot == Slot::Reserved)),
            waiting: held.waiting + 1,
        });
        Ok(())
    }

    /// What was reserved is used, or not needed.
    pub(super) fn give_up(&self, slot: Slot) {
        if slot == Slot::Reserved
            && let Some(cell) = self.0.slots.own_cell()
        {
            slots::update(self.0.slots.words(), cell, |held| slots::Held {
                reserved: held.reserved.saturating_sub(1),
                ..held
            });
        }
    }

    /// As [`give_up`](Self::give_up), for others to have.
    pub(super) fn give_back(&self) {
        self.give_up(Slot::Reserved);
        self.0.slots.call_one();
        self.call_if_over();
    }

    /// Reserves a slot once there is one.
    pub(super) async fn reserve(&self) -> Result<(), PutErrorKind> {
        proceed().await;
        let mut reserved = self.reserve_now(Held::spin(&self.0.producers), false);
        loop {
            reserved = match reserved? {
                Offer::Put => return Ok(()),
                Offer::Busy => {
                    let held = Held::wait(&self.0.producers).await?;
                    self.reserve_now(Some(held), false)
                }
                Offer::Full | Offer::NoRoom => {
                    sleep(&self.0.slots, |_| {
                        let reserved = self.reserve_now(Held::spin(&self.0.producers), true);
                        (!matches!(reserved, Ok(Offer::Full))).then_some(reserved)
                    })
                    .await?
                }
            };
        }
    }

    pub(super) fn try_reserve(&self) -> Result<(), PutErrorKind> {
        match self.reserve_now(patient(|| Held::try_take(&self.0.producers)), true)? {
            Offer::Put => Ok(()),
            _ => Err(PutErrorKind::Full),
        }
    }

    fn reserve_now(&self, held: Option<Held<'_>>, looks: bool) -> Result<Offer, PutErrorKind> {
        if self.flags()? & CLOSED != 0 {
            return Err(PutErrorKind::Closed);
        }
        let Some(_held) = held else { return Ok(Offer::Busy) };
        if self.is_shut_down() {
            return Err(PutErrorKind::ShutDown);
        }
        if !self.has_slot(looks) {
            return Ok(Offer::Full);
        }
        let cell = self.0.slots.cell()?;
        slots::update(self.0.slots.words(), cell, |held| slots::Held { reserved: held.reserved + 1, ..held });
        Ok(Offer::Put)
    }

    /// Whether one more item may be put. With the producers' lock, under which no other slot is taken. With `looks`,
    /// as who is about to sleep or was woken does, if there is none it is asked whether those live who hold some.
    fn has_slot(&self, looks: bool) -> bool {
        let max = u64::from(self.design().max);
        if max == 0 {
            return true;
        }
        let in_ring = self.0.ring.items();
        let held = |looks| slots::held_with_lock(self.0.slots.words(), &Here, looks).all();
        in_ring + held(false) < max || looks && in_ring + held(true) < max
    }

    /// Puts an item into the ring, a large one by the extent in which it lies; false if there is no room. With
    /// the producers' lock.
    fn publish(&self, item: &mut Item, extent: &mut Option<Extent<'_>>) -> Result<bool> {
        let ring = &self.0.ring;
        let reference = extent.as_ref().map(|extent| item.reference(extent.entry()));
        let len = reference.as_ref().map_or(item.frame().len(), Vec::len);
        // The last to be asked, as a parcel that was sent is not called back.
        if extent.is_none() && item.is_large() || !ring.has_room(len)? || !self.send_parcel(item)? {
            return Ok(false);
        }
        if let Some(extent) = extent.take() {
            extent.commit(ring.tail().0)?;
        }
        ring.push(reference.as_deref().unwrap_or(item.frame()))?;
        item.commit();
        Ok(true)
    }

    /// Sends the handles of the item that is put next; false if there is no room.
    fn send_parcel(&self, item: &mut Item) -> Result<bool> {
        let Some(parcel) = item.parcel() else { return Ok(true) };
        match self.0.parcels.send(self.0.ring.tail().0, parcel) {
            Ok(()) => Ok(true),
            Err(error) if is_full(&error) || is_exhausted(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is room for an item; of one with handles, or in an extent, that shows when it is tried.
    pub(super) fn may_have_room(&self, item: &mut Item) -> bool {
        !item.is_large() && item.parcel().is_none() && self.0.ring.free() >= item.frame().len() as u64
    }

    /// Moves some of what waits in this process into the ring; `None` if others have the lock. After that
    /// [`call_after_feed`](Self::call_after_feed) is to be called.
    pub(super) fn feed(&self, waiting: &mut VecDeque<Item>) -> Result<Option<Fed>> {
        // Of a large one ahead of the lock; those behind it have their turn next time.
        let mut extent = match waiting.front() {
            Some(item) if item.is_large() => {
                let extent = self.extents().reserve(item.body().len())?;
                let Some(extent) = extent else { return Ok(Some(Fed::NoRoom)) };
                extent.write(0, item.body())?;
                Some(extent)
            }
            _ => None,
        };
        let Some(_held) = self.patient_hold() else { return Ok(None) };
        let mut moved = 0;
        let mut fed = Fed::All;
        while let Some(item) = waiting.front_mut() {
            let has_extent = extent.is_some();
            if moved == MOST || item.is_large() && !has_extent {
                fed = Fed::Some;
                break;
            }
            if !self.publish(item, &mut extent)? {
                fed = Fed::NoRoom;
                break;
            }
            moved += 1;
            waiting.pop_front();
            self.count_fewer_waiting(1);
        }
        Ok(Some(fed))
    }

    fn count_fewer_waiting(&self, fewer: usize) {
        if let Some(cell) = self.0.slots.own_cell() {
            slots::update(self.0.slots.words(), cell, |held| slots::Held {
                waiting: held.waiting.saturating_sub(fewer as u32),
                ..held
            });
        }
    }

    /// Gives up items that waited: nobody will get them.
    pub(super) fn forget_waiting(&self, items: VecDeque<Item>) {
        self.count_fewer_waiting(items.len());
        self.0.slots.call_all();
        self.0.done.call_all();
    }

    /// After items were moved: tells who gets. Without any lock, as wakers are others' code.
    pub(super) fn call_after_feed(&self) {
        self.0.items.call_one();
        self.call_if_over();
    }

    /// Waits until nobody else has the producers' lock.
    pub(super) async fn producers_pause(&self) -> Result<()> {
        drop(Held::wait(&self.0.producers).await?);
        Ok(())
    }

    /// Waits until there may be room for the first of those that wait.
    pub(super) async fn room(&self, mut has_room: impl FnMut() -> bool) -> Result<()> {
        sleep(&self.0.room, |_| has_room().then_some(())).await
    }

    /// Has what is put from now on wait, or not. With the lock of what waits.
    pub(super) fn set_waiting(&self, waits: bool) {
        if waits {
            self.0.state.fetch_or(WAITING, Ordering::AcqRel);
        } else {
            self.0.state.fetch_and(!WAITING, Ordering::AcqRel);
        }
    }
}

/// How many items are moved while the lock is held.
const MOST: usize = 64;

/// How far what waited was moved.
pub(super) enum Fed {
    All,
    /// There may be room for more.
    Some,
    NoRoom,
}

/// Getting.
impl Core {
    /// Takes the next item, once there is one.
    pub(super) async fn get(&self, item: &mut Arrived) -> Result<(), GetError> {
        proceed().await;
        let mut taken = self.take(item, Held::spin(&self.0.consumers), false);
        loop {
            taken = match taken? {
                Taken::Item => return Ok(()),
                Taken::Busy => self.take(item, Some(Held::wait(&self.0.consumers).await?), false),
                Taken::Empty => {
                    sleep(&self.0.items, |turn| {
                        let looks = turn.slept && self.0.items.takes_turn();
                        let taken = self.take(item, Held::spin(&self.0.consumers), looks);
                        (!matches!(taken, Ok(Taken::Empty))).then_some(taken)
                    })
                    .await?
                }
            };
        }
    }

    /// Takes the next item if there is one. Where others have the lock for long there may be none though there
    /// is.
    pub(super) fn try_get(&self, item: &mut Arrived) -> Result<(), GetError> {
        match self.take(item, patient(|| Held::try_take(&self.0.consumers)), true)? {
            Taken::Item => Ok(()),
            Taken::Empty | Taken::Busy => Err(GetError::Empty),
        }
    }

    fn take(&self, item: &mut Arrived, held: Option<Held<'_>>, looks: bool) -> Result<Taken, GetError> {
        if self.flags()? & CLOSED != 0 {
            return Err(GetError::Closed);
        }
        let Some(held) = held else { return Ok(Taken::Busy) };
        let ring = &self.0.ring;
        let Some(front) = ring.front().map_err(Error::from)? else {
            if looks {
                self.tidy()?;
            }
            drop(held);
            return if self.is_over() { Err(GetError::ShutDown) } else { Ok(Taken::Empty) };
        };
        // Before anything is taken, as there may be no cell.
        let acknowledges = if self.design().joinable { Some(self.0.done.cell()?) } else { None };
        item.bytes.clear();
        ring.copy_out(&front, &mut item.bytes);
        if front.flags != 0 {
            return self.take_with_beside(item, &front, held, acknowledges);
        }
        self.commit(&front, acknowledges);
        drop(held);
        item.body_at = 0;
        self.ring_after_get(false);
        Ok(Taken::Item)
    }

    /// The item is this process's from here on. With the consumers' lock.
    fn commit(&self, front: &Front, acknowledges: Option<Cell>) {
        let Some(cell) = acknowledges else { return self.0.ring.take(front) };
        acks::intend(self.0.done.words(), cell, front.ticket.sequence());
        self.0.ring.take(front);
        acks::count(self.0.done.words(), cell, self.0.ring.head().sequence());
    }

    /// [`take`](Self::take), of an item that lies in an extent, or has handles.
    #[cold]
    fn take_with_beside(
        &self,
        item: &mut Arrived,
        front: &Front,
        held: Held<'_>,
        acknowledges: Option<Cell>,
    ) -> Result<Taken, GetError> {
        let beside = self.open_beside(front, &item.bytes)?;
        self.commit(front, acknowledges);
        let Some((parts, parcel, extent)) = beside else {
            return Err(GetError::Failed(Corrupt.into()));
        };
        item.body_at = parts.body_at;
        item.attachments = parcel.map_or_else(Vec::new, |parcel| parcel.consume());
        drop(held);
        self.ring_after_get(true);
        if let Some(extent) = extent {
            item.bytes.clear();
            item.body_at = 0;
            extent.read(&mut item.bytes)?;
        }
        Ok(Taken::Item)
    }

    /// Opens what lies beside an item: `None` if it is not there. With the consumers' lock, and before the item
    /// is taken: if this fails the item stays.
    fn open_beside(&self, front: &Front, bytes: &[u8]) -> Result<Option<Beside<'_>>> {
        let Some(parts) = Parts::of(front.flags, bytes) else { return Ok(None) };
        let parcel = match parts.label {
            None => None,
            Some(label) => match self.0.parcels.peek(label, front.ticket.0, |ticket| self.place(ticket))? {
                None => return Ok(None),
                opened => opened,
            },
        };
        let extent = match parts.extent.map(|entry| self.extents().claim(entry, front.ticket.0)) {
            None => None,
            Some(Ok(extent)) => Some(extent),
            Some(Err(Corrupt)) => return Ok(None),
        };
        Ok(Some((parts, parcel, extent)))
    }

    fn place(&self, ticket: u64) -> Place {
        // The head first: what is taken meanwhile is not taken for what comes next.
        let head = self.0.ring.head();
        Mark(ticket).place(head, self.0.ring.tail())
    }

    /// Tells those who wait for a slot, or for room.
    fn ring_after_get(&self, had_beside: bool) {
        if self.design().max != 0 {
            self.0.slots.call_one();
        }
        // Half of the ring, so that each ring is for many items.
        let enough = || had_beside || self.0.ring.free() >= CAPACITY as u64 / 2;
        if bells::anyone(self.0.room.words()) && enough() {
            self.0.room.call_all();
        }
    }

    /// Throws away what dead processes have left beside the ring. With the consumers' lock, when there is nothing
    /// to take.
    fn tidy(&self) -> Result<()> {
        self.extents().reap();
        Ok(self.0.parcels.sweep(|ticket| self.place(ticket))?)
    }

    /// Whether nothing will ever be got any more.
    fn is_over(&self) -> bool {
        if !self.is_shut_down() {
            return false;
        }
        // Who has the lock may have come before that, and put something yet; who comes later does not.
        let Some(_held) = Held::try_take(&self.0.producers) else { return false };
        slots::held(self.0.slots.words(), &Here, true).all() == 0 && self.0.ring.items() == 0
    }

    /// After something is held no more: who gets may have waited for that alone.
    fn call_if_over(&self) {
        if self.is_shut_down() {
            self.0.items.call_all();
        }
    }

    /// Whether who gets would not have to wait.
    pub(super) fn gives(&self) -> bool {
        self.0.ring.items() > 0 || self.is_over()
    }

    /// How many items there are, at an instant during the call: in the ring and with those who put them.
    pub(super) fn len(&self) -> u64 {
        let waiting = slots::held(self.0.slots.words(), &Here, true).waiting;
        u64::from(waiting) + self.0.ring.items()
    }

    pub(super) fn is_full(&self) -> bool {
        let max = u64::from(self.design().max);
        max != 0 && slots::held(self.0.slots.words(), &Here, true).all() + self.0.ring.items() >= max
    }

    /// Acknowledges an item that was got.
    pub(super) fn acknowledge(&self) -> Result<()> {
        let done = &self.0.done;
        if !acks::acknowledge(done.words(), &Here, done.own_cell()) {
            return Err(Error::TooManyTaskDone);
        }
        if bells::anyone(done.words()) && unfinished_from(done, Part::Done, false).0 == 0 {
            done.call_all();
        }
        Ok(())
    }

    /// Waits until all that was put is done, and says how many were left behind.
    pub(super) async fn join(&self) -> Result<u64> {
        // Each attempt looks who is dead: it is woken for that, too, and asks only for those who have taken some.
        wait(&self.0.done, |_| match unfinished_from(&self.0.done, Part::Done, true) {
            (0, left) => Some(left),
            _ => None,
        })
        .await
    }

    /// Has nothing put any more.
    pub(super) fn shut_down(&self) {
        self.0.memory.atomic_u64(SHUT_DOWN).store(1, Ordering::SeqCst);
        let Inner { items, slots, room, .. } = &*self.0;
        [items, slots, room].into_iter().for_each(Object::call_all);
    }
}

/// Tries for a little, as those who have a lock mostly have it for less than a microsecond.
fn patient<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..LOOKS {
        if let Some(done) = attempt() {
            return Some(done);
        }
        std::thread::yield_now();
    }
    attempt()
}

const LOOKS: usize = 20;
