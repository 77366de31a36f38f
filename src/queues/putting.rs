//! Putting: into the ring if there is room, else behind what waits in this process.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::coop;

use super::core::{CLOSED, Core, Held, WAITING};
use super::error::PutErrorKind;
use super::feeder::{self, Line};
use super::item::Item;
use super::memory::{Extent, WHOLE};
use super::slots;
use crate::error::Result;
use crate::ring::many::Room;
use crate::synchronize::protocol::{Here, Words};
use crate::synchronize::wait::{Sleeper, proceed, sleep, within};
use crate::sys::fd::is_exhausted;
use crate::sys::memory;
use crate::sys::socket::is_full;
use crate::util::lock;

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

/// How an item is offered.
#[derive(Clone, Copy)]
struct Manner {
    /// Looks who is dead before it says that there is no slot.
    looks: bool,
    /// Leaves the item in this process if there is no room, if that is what the queue does.
    leaves: bool,
}

impl Manner {
    const LEAVES: Self = Self { looks: false, leaves: true };
}

/// How long who puts waits for room before the item waits without him. Half of the ring is mostly free again before
/// that, if anybody gets: so who is faster than that one does not leave ever more behind.
const PATIENCE: Duration = Duration::from_millis(5);

/// For what slot an item is put.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Free,
    /// One that this process has reserved.
    Reserved,
}

/// A slot that a future has reserved for what it puts.
struct Reservation<'a> {
    core: &'a Core,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.core.give_back();
    }
}

/// Waits for so long as is worth it before an item is left in its process; not at all where nobody could wake it: outside
/// of a runtime, or for want of descriptors.
async fn patiently<T>(wait: impl Future<Output = Result<T>>) -> Option<T> {
    Handle::try_current().ok()?;
    within(PATIENCE, wait).await.ok().flatten()
}

impl Core {
    /// Puts an item for a slot, and waits until there is one. If it fails the item is where it was.
    pub(super) async fn put(&self, item: &mut Item) -> Result<(), PutErrorKind> {
        item.pack()?;
        if item.is_large() {
            return self.put_large(item).await;
        }
        proceed().await;
        let leaves = AtomicBool::new(false);
        let offer = |item: &mut Item, held, looks| {
            self.offer(
                item,
                Slot::Free,
                &mut None,
                held,
                Manner { looks, leaves: leaves.load(Ordering::Relaxed) },
            )
        };
        // For who has not slept.
        let at_once = |item: &mut Item| {
            let offered = offer(item, Held::spin(&self.0.producers), false);
            if matches!(offered, Ok(Offer::Put)) {
                self.0.puts.found();
            }
            offered
        };
        let mut offered = at_once(item);
        loop {
            offered = match offered? {
                Offer::Put => return Ok(()),
                Offer::Busy => offer(item, Some(Held::wait(&self.0.producers).await?), false),
                Offer::Full if self.brings_slot() => at_once(item),
                Offer::Full => {
                    // Each attempt looks who is dead: it is that, or nothing, for which it was woken.
                    sleep(&self.0.slots, |_| {
                        let offered = offer(item, Held::spin(&self.0.producers), true);
                        (!matches!(offered, Ok(Offer::Full))).then_some(offered)
                    })
                    .await?
                }
                Offer::NoRoom => {
                    let room = self.once_there_is_room(|| offer(item, Held::spin(&self.0.producers), false));
                    if !self.design().feeds {
                        room.await?
                    } else if let Some(offered) = patiently(room).await {
                        offered
                    } else {
                        leaves.store(true, Ordering::Relaxed);
                        offer(item, Held::patient(&self.0.producers), false)
                    }
                }
            };
        }
    }

    /// Makes an offer whenever there may be room, until there is.
    async fn once_there_is_room(
        &self,
        mut offer: impl FnMut() -> Result<Offer, PutErrorKind>,
    ) -> Result<Result<Offer, PutErrorKind>> {
        sleep(&self.0.room, |_| {
            let offered = offer();
            (!matches!(offered, Ok(Offer::NoRoom))).then_some(offered)
        })
        .await
    }

    /// The slot first, as extents are few.
    async fn put_large(&self, item: &mut Item) -> Result<(), PutErrorKind> {
        self.reserve().await?;
        let reserved = Reservation { core: self };
        let mut offered = self.offer_large(item)?;
        loop {
            offered = match offered {
                Offer::Put => {
                    std::mem::forget(reserved);
                    return Ok(());
                }
                Offer::Busy => {
                    self.producers_pause().await?;
                    self.offer_large(item)?
                }
                // Of a queue without a feeder: until there is a place for it.
                Offer::Full | Offer::NoRoom => self.once_there_is_room(|| self.offer_large(item)).await??,
            };
        }
    }

    /// Offers a large item for a slot that was reserved. It is written ahead of the lock.
    fn offer_large(&self, item: &mut Item) -> Result<Offer, PutErrorKind> {
        let mut extent = self.lay_out(item)?;
        self.offer(item, Slot::Reserved, &mut extent, Held::patient(&self.0.producers), Manner::LEAVES)
    }

    /// Writes a large item to an extent; `None` if it is not large, or there is none.
    fn lay_out(&self, item: &Item) -> Result<Option<Extent<'_>>> {
        if !item.is_large() {
            return Ok(None);
        }
        // Before it is left to wait for an extent that can never be.
        memory::admits(WHOLE, item.body().len())?;
        if self.flags()? & WAITING != 0 {
            return Ok(None);
        }
        if self.0.slots.takes_turn() {
            self.extents().reap();
        }
        let extent = self.extents().reserve(item.body().len())?;
        if let Some(extent) = &extent {
            extent.write(0, item.body())?;
        }
        Ok(extent)
    }

    /// Puts an item now. Where others have the lock for long it may be full though it is not: of a queue that
    /// takes any number, the item waits with this process's others then.
    pub(super) fn try_put(&self, item: &mut Item, slot: Slot) -> Result<(), PutErrorKind> {
        item.pack()?;
        if slot == Slot::Free && item.is_large() && self.design().max != 0 {
            // The slot first, as it takes long to write the item.
            self.try_reserve()?;
            let reserved = Reservation { core: self };
            self.try_put(item, Slot::Reserved)?;
            std::mem::forget(reserved);
            return Ok(());
        }
        let mut extent = self.lay_out(item)?;
        let manner = Manner { looks: true, ..Manner::LEAVES };
        match self.offer(item, slot, &mut extent, Held::patient(&self.0.producers), manner)? {
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
        manner: Manner,
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
        if slot == Slot::Free && !self.has_slot(manner.looks) {
            return Ok(Offer::Full);
        }
        if flags & WAITING == 0 && self.publish(item, extent)? {
            self.give_up(slot);
            drop(held);
            self.0.items.call_one();
            return Ok(Offer::Put);
        }
        // Behind those that wait already it waits as well.
        if !self.design().feeds || !manner.leaves && flags & WAITING == 0 {
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
        self.0.slots.words().fence();
        if self.is_shut_down() {
            // A reservation is given up by who has it.
            self.count_fewer_waiting(1);
            if slot == Slot::Reserved {
                self.count_reserved()?;
            }
            self.call_if_over();
            return Err(PutErrorKind::ShutDown);
        }
        feeder::push(self, item);
        Ok(())
    }

    fn count_reserved(&self) -> Result<()> {
        let cell = self.0.slots.cell()?;
        slots::update(self.0.slots.words(), cell, |held| slots::Held { reserved: held.reserved + 1, ..held });
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
        let mut reserved = self.reserve_now(false);
        loop {
            reserved = match reserved? {
                Offer::Put => return Ok(()),
                Offer::Full if self.brings_slot() => self.reserve_now(false),
                Offer::Busy => {
                    let held = Held::wait(&self.0.producers).await?;
                    self.reserve_with(Some(held), false)
                }
                Offer::Full | Offer::NoRoom => {
                    sleep(&self.0.slots, |_| {
                        let reserved = self.reserve_with(Held::spin(&self.0.producers), true);
                        (!matches!(reserved, Ok(Offer::Full))).then_some(reserved)
                    })
                    .await?
                }
            };
        }
    }

    /// [`reserve`](Self::reserve) for who polls by hand.
    pub(super) fn poll_reserve(
        &self,
        sleeper: &mut Sleeper,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), PutErrorKind>> {
        let coop = ready!(coop::poll_proceed(cx));
        let mut reserved = self.reserve_now(sleeper.is_asleep());
        loop {
            reserved = match reserved {
                Ok(Offer::Full) if self.brings_slot() => self.reserve_now(sleeper.is_asleep()),
                Ok(Offer::Busy) => {
                    let held = ready!(Held::poll_wait(&self.0.producers, sleeper, cx))?;
                    self.reserve_with(Some(held), false)
                }
                Ok(Offer::Full | Offer::NoRoom) => ready!(sleeper.poll_asleep(&self.0.slots, cx, |_| {
                    let reserved = self.reserve_with(Held::spin(&self.0.producers), true);
                    (!matches!(reserved, Ok(Offer::Full))).then_some(reserved)
                }))?,
                done => {
                    coop.made_progress();
                    sleeper.get_up();
                    return Poll::Ready(done.map(drop));
                }
            };
        }
    }

    pub(super) fn try_reserve(&self) -> Result<(), PutErrorKind> {
        match self.reserve_with(Held::patient(&self.0.producers), true)? {
            Offer::Put => Ok(()),
            _ => Err(PutErrorKind::Full),
        }
    }

    /// Reserves what there is, and notes if it was for who has not `slept`.
    fn reserve_now(&self, slept: bool) -> Result<Offer, PutErrorKind> {
        let reserved = self.reserve_with(Held::spin(&self.0.producers), false);
        if !slept && matches!(reserved, Ok(Offer::Put)) {
            self.0.puts.found();
        }
        reserved
    }

    fn reserve_with(&self, held: Option<Held<'_>>, looks: bool) -> Result<Offer, PutErrorKind> {
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
        self.count_reserved()?;
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

    /// Whether a slot may come sooner than who sleeps for it is woken.
    fn brings_slot(&self) -> bool {
        self.0.puts.brings(self.0.slots.words(), || !self.is_full(false))
    }

    /// Puts an item into the ring, a large one by the extent in which it lies; false if there is no room. With
    /// the producers' lock.
    fn publish(&self, item: &mut Item, extent: &mut Option<Extent<'_>>) -> Result<bool> {
        let ring = &self.0.ring;
        let reference = extent.as_ref().map(|extent| item.reference(extent.entry()));
        let len = reference.as_ref().map_or(item.frame().len(), Vec::len);
        // The last to be asked, as a parcel that was sent is not called back.
        let room = if extent.is_none() && item.is_large() { None } else { ring.room(len)? };
        let Some(room) = room else { return Ok(false) };
        if !self.send_parcel(item, &room)? {
            return Ok(false);
        }
        if let Some(extent) = extent.take() {
            extent.commit(room.ticket().0)?;
        }
        ring.push(room, reference.as_deref().unwrap_or(item.frame()));
        item.commit();
        Ok(true)
    }

    /// Sends the handles of the item that is put next; false if there is no room.
    fn send_parcel(&self, item: &mut Item, room: &Room) -> Result<bool> {
        let Some(parcel) = item.parcel() else { return Ok(true) };
        match self.0.parcels.send(room.ticket().0, parcel) {
            Ok(()) => Ok(true),
            Err(error) if is_full(&error) || is_exhausted(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves some of what waits in this process into the ring. After that
    /// [`call_after_feed`](Self::call_after_feed) is to be called. One at a time.
    pub(super) fn feed(&self, line: &Mutex<Line>) -> Result<Fed> {
        let mut moved = 0;
        let mut held = None;
        while moved < MOST {
            let Some(mut item) = lock(line).items.pop_front() else { return Ok(Fed::All) };
            let fed = self.feed_one(&mut item, &mut held);
            if !matches!(fed, Ok(Fed::All)) {
                lock(line).items.push_front(item);
                return fed;
            }
            lock(line).gone += 1;
            self.count_fewer_waiting(1);
            moved += 1;
        }
        Ok(Fed::Some)
    }

    /// Moves one: [`Fed::All`] of it or nothing.
    fn feed_one<'a>(&'a self, item: &mut Item, held: &mut Option<Held<'a>>) -> Result<Fed> {
        // A large one is written without the lock.
        let mut extent = None;
        if item.is_large() {
            *held = None;
            extent = self.extents().reserve(item.body().len())?;
            let Some(extent) = &extent else { return Ok(Fed::NoRoom) };
            extent.write(0, item.body())?;
        }
        if held.is_none() {
            *held = Held::patient(&self.0.producers);
        }
        if held.is_none() {
            return Ok(Fed::Busy);
        }
        Ok(if self.publish(item, &mut extent)? { Fed::All } else { Fed::NoRoom })
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
        self.call_if_over();
    }

    /// After items were moved: tells who gets. Without any lock, as wakers are others' code.
    pub(super) fn call_after_feed(&self) {
        self.0.items.call_one();
        self.call_if_over();
        // Who has acknowledged an item before it counted as waiting no more has told nobody.
        self.call_if_done();
    }

    /// Waits until nobody else has the producers' lock.
    pub(super) async fn producers_pause(&self) -> Result<()> {
        drop(Held::wait(&self.0.producers).await?);
        Ok(())
    }

    /// Waits until it `has_room`, and asks whenever there may be some.
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
    /// Others have the lock.
    Busy,
    /// Somebody else is moving them.
    Elsewhere,
    NoRoom,
}
