//! Who sleeps in this process, and who wakes them.
//!
//! A process has one door, at which others ring, and on each runtime that something has slept on a watcher: a
//! task that answers the door, and looks by itself at every tick, as who ought to have rung may have died. It
//! does not matter which watcher answers: a `Waker` wakes on any runtime.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::time::Duration;

use tokio::io::Interest;
use tokio::runtime::{Handle, Id};
use tokio::task::yield_now;

use super::object::{Object, Place, WeakObject};
use super::protocol::bells;
use crate::sys::door::{Door, Ring};
use crate::sys::per_process::PerProcess;
use crate::sys::reactor::Registered;
use crate::sys::{self, AsFd, Fd};
use crate::util::lock;

/// How long who sleeps relies on being rung for: at first, and after [`SETTLED`] ticks.
const TICK: Duration = Duration::from_millis(100);
const SLOW_TICK: Duration = Duration::from_millis(500);
const SETTLED: u32 = 20;

#[derive(Default)]
pub(crate) struct Exchange {
    door: OnceLock<Door>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rooms: BTreeMap<Place, Room>,
    /// The objects of this process, so that one that arrives again is the same.
    objects: BTreeMap<u64, WeakObject>,
    /// On which runtimes there are watchers.
    watchers: HashMap<Id, Arc<Ticker>>,
    /// The number of the next sleeper.
    next: u64,
}

/// What somebody wants who sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Something that is given to one and to no other.
    #[default]
    Take,
    /// To know that there is something: all of them are told, and what it is goes to others all the same.
    Look,
}

/// Those who sleep for one object.
struct Room {
    object: Object,
    takers: Line,
    onlookers: Line,
}

/// Some of them, in the order in which they came.
#[derive(Default)]
struct Line {
    sleepers: VecDeque<Sleeper>,
    /// How many were not told to look again.
    asleep: usize,
}

struct Sleeper {
    number: u64,
    /// Gone once it was told to look again, until it does so.
    waker: Option<Waker>,
}

impl Exchange {
    pub(crate) fn get() -> &'static Self {
        static EXCHANGE: PerProcess<Exchange> = PerProcess::new(Exchange::default);
        EXCHANGE.get()
    }
}

impl Exchange {
    /// The object that is this one: itself, or one that was here before and is the `same`.
    pub(crate) fn known(&self, object: Object, same: impl Fn(&Object) -> bool) -> Object {
        let mut state = lock(&self.state);
        let there = state.objects.get(&object.key()).and_then(WeakObject::upgrade);
        let known = match &there {
            Some(there) if same(there) => there.clone(),
            _ => {
                state.objects.insert(object.key(), object.downgrade());
                object.clone()
            }
        };
        // What ends here ends without the lock, which its end takes as well.
        drop(state);
        drop((object, there));
        known
    }

    /// The object of this key is gone, unless there is another one.
    pub(crate) fn forget(&self, key: u64) {
        let mut state = lock(&self.state);
        if state.objects.get(&key).is_some_and(|object| !object.lives()) {
            state.objects.remove(&key);
        }
    }

    /// Puts somebody to sleep for an object, who looks once more before it does sleep.
    ///
    /// # Errors
    /// When the object, or this process, has no room.
    ///
    /// # Panics
    /// Outside of a runtime, and on one without I/O.
    pub(crate) fn enter(&'static self, object: &Object, aim: Aim, waker: &Waker) -> crate::Result<u64> {
        let cell = object.cell()?;
        object.put_door(cell, self.door()?.name());
        self.watch()?;
        // Wakers are made and end without the lock: they are others' code, and may come back here.
        let waker = Some(waker.clone());
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        let room = state.rooms.entry(object.place()).or_insert_with(|| Room::new(object));
        let line = room.line(aim);
        line.sleepers.push_back(Sleeper { number, waker });
        line.asleep += 1;
        state.watchers.values().for_each(|ticker| ticker.start_anew());
        bells::announce(object.words(), cell);
        Ok(number)
    }

    /// Somebody who sleeps for an object looks again, and says whether it was told to.
    ///
    /// # Errors
    /// As those of [`enter`](Self::enter). It sleeps on then.
    pub(crate) fn stir(
        &'static self,
        object: &Object,
        aim: Aim,
        number: u64,
        waker: &Waker,
    ) -> crate::Result<bool> {
        self.watch()?;
        let cell = object.cell()?;
        let waker = waker.clone();
        let mut state = lock(&self.state);
        let before = state.rooms.get_mut(&object.place()).and_then(|room| {
            let line = room.line(aim);
            let before = line.find(number)?.waker.replace(waker);
            line.asleep += usize::from(before.is_none());
            Some(before)
        });
        bells::announce(object.words(), cell);
        drop(state);
        Ok(matches!(before, Some(None)))
    }

    /// Somebody sleeps for an object no more. What it leaves, and what it was called for if it goes without
    /// it, is others'.
    pub(crate) fn leave(&self, object: &Object, aim: Aim, number: u64) {
        let mut state = lock(&self.state);
        let mut left = None;
        let mut empty = None;
        if let Some(room) = state.rooms.get_mut(&object.place()) {
            left = room.line(aim).remove(number);
            if room.takers.sleepers.is_empty() && room.onlookers.sleepers.is_empty() {
                empty = state.rooms.remove(&object.place());
                // With the lock, so that a bit always means that somebody is in the room.
                if let Some(cell) = object.own_cell() {
                    bells::withdraw(object.words(), cell);
                }
            }
        }
        drop(state);
        drop((left, empty));
        // Also for who was rung for at this door and is not there any more.
        self.attend(object, false);
    }

    /// Wakes as many of those who sleep here for an object as could go on; if none of them would take anything,
    /// and somebody could, rings elsewhere. At a tick, it also looks who is dead.
    pub(crate) fn attend(&self, object: &Object, tick: bool) {
        let kind = object.kind();
        let state = lock(&self.state);
        let (takers, onlookers) = state
            .rooms
            .get(&object.place())
            .map_or((0, 0), |room| (room.takers.asleep, room.onlookers.asleep));
        let anyone = takers + onlookers > 0;
        if anyone && let Some(cell) = object.own_cell() {
            // Before the look: what changes after it is rung for.
            bells::announce(object.words(), cell);
        }
        drop(state);
        let passes_on = kind.passes_on && takers == 0;
        if !anyone && !passes_on {
            return;
        }
        let ready = match (kind.ready)(object, anyone && tick && object.takes_turn()) {
            0 => return,
            // Who ought to have gone on has not: it was not rung for, or is not polled any more.
            _ if tick => usize::MAX,
            ready => ready,
        };
        self.wake(object, ready);
        if passes_on {
            object.call_one();
        }
    }

    /// Has all who sleep here for an object look again, for what only this process knows.
    pub(crate) fn wake_all(&self, object: &Object) {
        self.wake(object, usize::MAX);
    }

    /// Wakes those who sleep here for an object: as many as would take something, and whoever looks on.
    fn wake(&self, object: &Object, takers: usize) {
        let mut wakers = Vec::new();
        if let Some(room) = lock(&self.state).rooms.get_mut(&object.place()) {
            room.takers.call(takers, &mut wakers);
            room.onlookers.call(usize::MAX, &mut wakers);
        }
        for waker in wakers {
            // It is others' code: if it panics, those after it are woken all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    /// The objects for which somebody sleeps; those of one key, or all.
    fn rooms(&self, key: Option<u64>) -> Vec<Object> {
        let state = lock(&self.state);
        let range = key.map_or((0, 0)..=(u64::MAX, usize::MAX), |key| (key, 0)..=(key, usize::MAX));
        state.rooms.range(range).map(|(_, room)| room.object.clone()).collect()
    }

    /// Rings at another process's door.
    pub(crate) fn ring(&self, name: [u64; 2], key: u64) -> Ring {
        // Without one of its own nothing can be sent from here: the other looks by itself, at its tick.
        self.door().map_or(Ring::Full, |door| door.ring(name, key))
    }

    fn door(&self) -> io::Result<&Door> {
        if let Some(door) = self.door.get() {
            return Ok(door);
        }
        // Whoever is slower closes its own again.
        let door = Door::open()?;
        Ok(self.door.get_or_init(|| door))
    }

    /// Sees to it that somebody watches on this runtime.
    ///
    /// # Errors
    /// When no descriptor is left.
    ///
    /// # Panics
    /// Outside of a runtime, and on one without I/O.
    pub(crate) fn watch(&'static self) -> io::Result<()> {
        let runtime = Handle::current();
        // Held all the while, as a runtime can watch a door but once.
        let mut state = lock(&self.state);
        if state.watchers.contains_key(&runtime.id()) {
            return Ok(());
        }
        let timer = Arc::new(sys::fd::timerfd()?);
        let watcher = Watcher {
            door: Registered::new(self.door()?.socket().clone(), Interest::READABLE)?,
            rings: Registered::new(timer.clone(), Interest::READABLE)?,
            ticker: Arc::new(Ticker::new(timer)),
            exchange: self,
            runtime: runtime.id(),
        };
        // Who comes from another runtime may sleep already, and those of that one look no more.
        watcher.ticker.start_anew();
        state.watchers.insert(runtime.id(), watcher.ticker.clone());
        drop(state);
        runtime.spawn(watcher.run());
        Ok(())
    }
}

impl Room {
    fn new(object: &Object) -> Self {
        Self { object: object.clone(), takers: Line::default(), onlookers: Line::default() }
    }

    fn line(&mut self, aim: Aim) -> &mut Line {
        match aim {
            Aim::Take => &mut self.takers,
            Aim::Look => &mut self.onlookers,
        }
    }
}

impl Line {
    fn place(&self, number: u64) -> Option<usize> {
        self.sleepers.binary_search_by_key(&number, |sleeper| sleeper.number).ok()
    }

    fn find(&mut self, number: u64) -> Option<&mut Sleeper> {
        let at = self.place(number)?;
        self.sleepers.get_mut(at)
    }

    fn remove(&mut self, number: u64) -> Option<Sleeper> {
        let left = self.sleepers.remove(self.place(number)?)?;
        self.asleep -= usize::from(left.waker.is_some());
        Some(left)
    }

    /// Tells so many of them to look again, the first ones.
    fn call(&mut self, most: usize, wakers: &mut Vec<Waker>) {
        let before = wakers.len();
        wakers.extend(self.sleepers.iter_mut().filter_map(|sleeper| sleeper.waker.take()).take(most));
        self.asleep -= wakers.len() - before;
    }
}

/// Wakes a watcher up from time to time while anybody sleeps.
struct Ticker {
    timer: Arc<Fd>,
    runs: AtomicBool,
    /// How many there have been since somebody came.
    ticks: AtomicU32,
}

impl Ticker {
    fn new(timer: Arc<Fd>) -> Self {
        Self { timer, runs: AtomicBool::new(false), ticks: AtomicU32::new(0) }
    }

    /// Somebody has come.
    fn start_anew(&self) {
        let slow = self.ticks.swap(0, Ordering::SeqCst) >= SETTLED;
        if !self.runs.swap(true, Ordering::SeqCst) || slow {
            self.arm(TICK);
        }
    }

    fn go_on(&self) {
        let settled = self.ticks.fetch_add(1, Ordering::SeqCst) >= SETTLED;
        if !self.runs.swap(true, Ordering::SeqCst) {
            self.arm(if settled { SLOW_TICK } else { TICK });
        }
    }

    fn arm(&self, after: Duration) {
        // It is given a valid descriptor and time, and cannot fail.
        let _ = sys::fd::arm_timer(self.timer.as_fd(), Some(after));
    }
}

/// What answers the door, on one runtime. It ends with the runtime.
struct Watcher {
    exchange: &'static Exchange,
    door: Registered,
    rings: Registered,
    ticker: Arc<Ticker>,
    runtime: Id,
}

impl Watcher {
    async fn run(self) {
        loop {
            tokio::select! {
                edge = self.door.edge_or_end() => match edge {
                    Ok(()) => self.answer(),
                    Err(_) => return,
                },
                edge = self.rings.edge_or_end() => match edge {
                    Ok(()) => self.tick().await,
                    Err(_) => return,
                },
            }
        }
    }

    fn answer(&self) {
        let (mut rings, mut key) = (0, 0);
        let Some(door) = self.exchange.door.get() else { return };
        door.drain(|rung| {
            rings += 1;
            key = rung;
        });
        // Of several, others may have found no room.
        let rooms = match rings {
            0 => Vec::new(),
            1 => self.exchange.rooms(Some(key)),
            _ => self.exchange.rooms(None),
        };
        rooms.iter().for_each(|object| self.exchange.attend(object, false));
    }

    /// Looks at all for which somebody sleeps, as far as nobody was rung for it.
    async fn tick(&self) {
        // Before the look: who comes after it starts the ticker again.
        self.ticker.runs.store(false, Ordering::SeqCst);
        let rooms = self.exchange.rooms(None);
        if rooms.is_empty() {
            return;
        }
        self.ticker.go_on();
        for object in rooms {
            self.exchange.attend(&object, true);
            yield_now().await;
            // Whoever is rung for does not wait for all these looks.
            self.answer();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut state = lock(&self.exchange.state);
        if state.watchers.get(&self.runtime).is_some_and(|ticker| Arc::ptr_eq(ticker, &self.ticker)) {
            state.watchers.remove(&self.runtime);
        }
    }
}
