//! Getting, and acknowledging what was got.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::task::coop;

use super::core::{CLOSED, Core, Held, Inner};
use super::error::GetError;
use super::item::{Arrived, Parts};
use super::memory::{CAPACITY, Claimed, Part, SHUT_DOWN, unfinished_from};
use super::{acks, slots};
use crate::error::{Error, Result};
use crate::ring::Corrupt;
use crate::ring::many::{Front, Mark};
use crate::ring::parcels::{Opened, Place};
use crate::synchronize::object::Object;
use crate::synchronize::protocol::{Cell, Here, Words, bells};
use crate::synchronize::wait::{Sleeper, proceed, sleep, wait};

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

/// An item that was taken, and that nobody gets if this is dropped: then there is nothing to acknowledge either.
pub(super) struct Lost<'a>(pub(super) &'a Core);

impl Lost<'_> {
    pub(super) fn found(self) {
        std::mem::forget(self);
    }
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        if self.0.design().joinable {
            let _ = self.0.acknowledge();
        }
    }
}

impl Core {
    /// Takes the next item, once there is one.
    pub(super) async fn get(&self, item: &mut Arrived) -> Result<(), GetError> {
        proceed().await;
        let mut taken = self.take_now(item, false);
        loop {
            taken = match taken? {
                Taken::Item => return Ok(()),
                Taken::Busy => self.take(item, Some(Held::wait(&self.0.consumers).await?), || false),
                Taken::Empty if self.brings_item() => self.take_now(item, false),
                Taken::Empty => {
                    sleep(&self.0.items, |turn| {
                        let looks = || !turn.slept || self.0.items.takes_turn();
                        let taken = self.take(item, Held::spin(&self.0.consumers), looks);
                        (!matches!(taken, Ok(Taken::Empty))).then_some(taken)
                    })
                    .await?
                }
            };
        }
    }

    /// Takes what is there, and notes if it was for who has not `slept`.
    fn take_now(&self, item: &mut Arrived, slept: bool) -> Result<Taken, GetError> {
        let taken = self.take(item, Held::spin(&self.0.consumers), || false);
        if !slept && matches!(taken, Ok(Taken::Item)) {
            self.0.gets.found();
        }
        taken
    }

    /// Whether an item may come sooner than who sleeps for it is woken.
    fn brings_item(&self) -> bool {
        self.0.gets.brings(self.0.items.words(), || self.0.ring.items() > 0)
    }

    /// [`get`](Self::get) for who polls by hand.
    pub(super) fn poll_get(
        &self,
        item: &mut Arrived,
        sleeper: &mut Sleeper,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), GetError>> {
        let coop = ready!(coop::poll_proceed(cx));
        let mut taken = self.take_now(item, sleeper.is_asleep());
        loop {
            taken = match taken {
                Ok(Taken::Busy) => {
                    let held = ready!(Held::poll_wait(&self.0.consumers, sleeper, cx))?;
                    self.take(item, Some(held), || false)
                }
                Ok(Taken::Empty) if self.brings_item() => self.take_now(item, sleeper.is_asleep()),
                Ok(Taken::Empty) => ready!(sleeper.poll_asleep(&self.0.items, cx, |turn| {
                    let looks = || !turn.slept || self.0.items.takes_turn();
                    let taken = self.take(item, Held::spin(&self.0.consumers), looks);
                    (!matches!(taken, Ok(Taken::Empty))).then_some(taken)
                }))?,
                done => {
                    coop.made_progress();
                    sleeper.get_up();
                    return Poll::Ready(done.map(drop));
                }
            };
        }
    }

    /// Takes the next item if there is one. Where others have the lock for long there may be none though there
    /// is.
    pub(super) fn try_get(&self, item: &mut Arrived) -> Result<(), GetError> {
        let held = Held::patient(&self.0.consumers);
        match self.take(item, held, || self.0.items.takes_turn())? {
            Taken::Item => Ok(()),
            Taken::Empty | Taken::Busy => Err(GetError::Empty),
        }
    }

    /// `tidies` says whether to look for what dead processes have left, if there is nothing to take.
    fn take(
        &self,
        item: &mut Arrived,
        held: Option<Held<'_>>,
        tidies: impl FnOnce() -> bool,
    ) -> Result<Taken, GetError> {
        if self.flags()? & CLOSED != 0 {
            return Err(GetError::Closed);
        }
        let Some(held) = held else { return Ok(Taken::Busy) };
        let ring = &self.0.ring;
        let Some(front) = ring.front().map_err(Error::from)? else {
            if tidies() {
                self.0.parcels.sweep(|ticket| self.place(ticket)).map_err(Error::from)?;
                drop(held);
                self.extents().reap();
            } else {
                drop(held);
            }
            return if self.is_over() { Err(GetError::ShutDown) } else { Ok(Taken::Empty) };
        };
        // Before anything is taken, as there may be no cell.
        let acknowledges = if self.design().joinable { Some(self.acknowledging_cell()?) } else { None };
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

    /// Where this process's item is counted.
    fn acknowledging_cell(&self) -> Result<Cell> {
        let cell = self.0.done.cell()?;
        if acks::is_full(self.0.done.words(), cell) {
            return Err(Error::invalid(
                "this process has got 16,777,215 items and acknowledged none of them",
            ));
        }
        Ok(cell)
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
        let beside = beside.map(|(parts, parcel, extent)| {
            item.body_at = parts.body_at;
            item.attachments = parcel.map_or_else(Vec::new, Opened::consume);
            extent
        });
        drop(held);
        // Without the lock, as it calls wakers.
        let lost = Lost(self);
        let read = match beside {
            None => Err(Corrupt.into()),
            Some(None) => Ok(()),
            Some(Some(extent)) => {
                item.bytes.clear();
                item.body_at = 0;
                extent.read(&mut item.bytes)
            }
        };
        // Once the extent is free again, too.
        self.ring_after_get(true);
        read?;
        lost.found();
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
        let waits_for_room = bells::anyone(self.0.room.words());
        if self.design().max != 0 && bells::anyone_else(self.0.slots.words()) {
            self.0.slots.call_one();
        }
        // Half of the ring, so that each bell is for many items.
        if waits_for_room && (had_beside || self.0.ring.free() >= CAPACITY as u64 / 2) {
            self.0.room.call_all();
        }
    }

    /// Whether nothing will ever be got any more.
    fn is_over(&self) -> bool {
        if !self.is_shut_down() {
            return false;
        }
        // Who counts an item without the lock looks whether it was shut down after that.
        self.0.slots.words().fence();
        // Who has the lock may have come before that, and put something yet; who comes later does not. It is not
        // taken for that: to give it back would call wakers, and this is asked under locks.
        self.0.producers.is_idle()
            && slots::held(self.0.slots.words(), &Here, true).all() == 0
            && self.0.ring.items() == 0
    }

    /// After something is held no more: who gets may have waited for that alone.
    pub(super) fn call_if_over(&self) {
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

    /// Whether no slot is free, at an instant that is over by now. With `looks`, the dead hold none.
    pub(super) fn is_full(&self, looks: bool) -> bool {
        let max = u64::from(self.design().max);
        max != 0 && slots::held(self.0.slots.words(), &Here, looks).all() + self.0.ring.items() >= max
    }

    /// Acknowledges an item that was got.
    pub(super) fn acknowledge(&self) -> Result<()> {
        let done = &self.0.done;
        if !acks::acknowledge(done.words(), &Here, done.own_cell()) {
            return Err(Error::TooManyTaskDone);
        }
        self.call_if_done();
        Ok(())
    }

    /// After an item was acknowledged, or counts as waiting no more: tells those who join, if it was the last.
    pub(super) fn call_if_done(&self) {
        let done = &self.0.done;
        if bells::anyone(done.words()) && unfinished_from(done, Part::Done, false).0 == 0 {
            done.call_all();
        }
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
