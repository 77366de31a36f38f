//! The counts of a queue while processes die or stop before any access they make, in all interleavings with up
//! to two preemptions.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use loom::thread;

use super::super::{acks, slots};
use crate::synchronize::protocol::model::{Actor, Fate, Model, each_death, each_stop};
use crate::synchronize::protocol::{Cell, Identity, STATE, Words, World};

/// The lock of a side.
const LOCK: usize = STATE + 16;
/// How many items were taken, which stands for the ring's head.
const HEAD: usize = STATE + 24;

/// Who comes when all others are gone.
const LAST: u64 = 60;

/// What has happened: nobody dies in it.
#[derive(Debug, Default)]
struct Book {
    /// Who holds a slot.
    holders: Vec<u64>,
    /// Who has taken an item and not acknowledged it.
    takers: Vec<u64>,
}

impl Book {
    fn remove(of: &mut Vec<u64>, who: u64) {
        let at = of.iter().position(|there| *there == who).expect("it has one");
        of.swap_remove(at);
    }
}

#[derive(Clone)]
struct Scene {
    model: Model,
    book: Arc<Mutex<Book>>,
}

struct Process {
    actor: Actor,
    cell: Cell,
    scene: Scene,
}

impl Scene {
    /// Processes with numbers of 1 to 3 have cells, and the last one.
    fn new() -> Self {
        let scene = Self { model: Model::new(), book: Arc::default() };
        let setup = scene.model.actor(LAST, Fate::Lives);
        for number in 1..=3 {
            setup.store(Cell(number as usize - 1).identity(), number, Ordering::SeqCst);
        }
        setup.store(Cell(3).identity(), LAST, Ordering::SeqCst);
        scene
    }

    fn process(&self, number: u64, fate: Fate) -> Process {
        let cell = Cell(if number == LAST { 3 } else { number as usize - 1 });
        Process { actor: self.model.actor(number, fate), cell, scene: self.clone() }
    }

    fn spawn<R: 'static>(&self, number: u64, fate: Fate, act: fn(&Process) -> R) -> thread::JoinHandle<bool> {
        let process = self.process(number, fate);
        thread::spawn(move || process.actor.act(|_| act(&process)).is_none())
    }

    /// How many items a process has taken and not acknowledged.
    fn taken_by(&self, who: u64) -> u64 {
        self.book.lock().unwrap().takers.iter().filter(|taker| **taker == who).count() as u64
    }
}

impl Process {
    fn number(&self) -> u64 {
        self.actor.me().0
    }

    /// Takes the lock if it is free, or a dead one's.
    fn lock(&self) -> bool {
        let owner = self.actor.load(LOCK, Ordering::Relaxed);
        let is_free = owner == 0 || self.actor.is_dead(Identity(owner));
        is_free && self.actor.compare_exchange(LOCK, owner, self.number()).is_ok()
    }

    fn unlock(&self) {
        self.actor.store(LOCK, 0, Ordering::Release);
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.scene.book.lock().unwrap()
    }

    /// Reserves the only slot, if it is free.
    fn reserve(&self) -> bool {
        if !self.lock() {
            return false;
        }
        let is_free = slots::held_with_lock(&self.actor, &self.actor, true).all() == 0;
        if is_free {
            slots::update(&self.actor, self.cell, |held| slots::Held { reserved: held.reserved + 1, ..held });
            let others = self.book().holders.clone();
            let is_dead = |holder: &u64| self.actor.is_dead(Identity(*holder));
            assert!(others.iter().all(is_dead), "there is one slot");
            self.book().holders.push(self.number());
        }
        self.unlock();
        is_free
    }

    /// Uses what it has reserved for an item that waits, which then goes.
    fn put(&self) {
        slots::update(&self.actor, self.cell, |_| slots::Held { reserved: 0, waiting: 1 });
        // Ahead, as somebody else may have it right after that.
        let mut book = self.book();
        Book::remove(&mut book.holders, self.number());
        drop(book);
        slots::update(&self.actor, self.cell, |_| slots::Held::default());
    }

    /// Takes an item.
    fn take(&self) -> bool {
        if !self.lock() {
            return false;
        }
        let head = self.actor.load(HEAD, Ordering::Relaxed);
        acks::intend(&self.actor, self.cell, head);
        self.actor.store(HEAD, head + 1, Ordering::Release);
        self.book().takers.push(self.number());
        acks::count(&self.actor, self.cell, head + 1);
        self.unlock();
        true
    }

    fn acknowledge(&self) {
        assert!(acks::acknowledge(&self.actor, &self.actor, Some(self.cell)));
        Book::remove(&mut self.book().takers, self.number());
    }

    fn standing(&self, looks: bool) -> acks::Standing {
        loop {
            let head = self.actor.load(HEAD, Ordering::Acquire);
            let standing = acks::standing(&self.actor, &self.actor, head, looks);
            if self.actor.load(HEAD, Ordering::Acquire) == head {
                return standing;
            }
        }
    }

    /// Of so many items, how many are not done, as far as this one knows who is dead.
    fn unfinished(&self, items: u64) -> u64 {
        loop {
            let head = self.actor.load(HEAD, Ordering::Acquire);
            let taken = acks::standing(&self.actor, &self.actor, head, false).taken;
            if self.actor.load(HEAD, Ordering::Acquire) == head {
                return items - head + taken;
            }
        }
    }
}

const RESERVE_AND_PUT: fn(&Process) = |process| {
    if process.reserve() {
        process.put();
    }
};

fn two_reserve(fate: Fate) -> bool {
    let scene = Scene::new();
    let mortal = scene.spawn(1, fate, RESERVE_AND_PUT);
    let other = scene.spawn(2, Fate::Lives, RESERVE_AND_PUT);
    let ended = mortal.join().unwrap();
    other.join().unwrap();
    let last = scene.process(LAST, Fate::Lives);
    match fate {
        // It has what it has, and the lock perhaps.
        Fate::Stops(_) if ended => {
            let held = slots::held(&last.actor, &last.actor, true).all();
            let holders = scene.book.lock().unwrap().holders.len() as u64;
            assert!(held >= holders && held <= 1, "{held} {holders}");
        }
        _ => assert!(last.reserve(), "the dead hold nothing"),
    }
    ended
}

#[test]
fn one_slot_is_one_processs_and_no_dead_ones() {
    each_death(2, two_reserve);
}

#[test]
fn who_is_stopped_keeps_its_slot() {
    each_stop(2, two_reserve);
}

const TAKE_AND_ACKNOWLEDGE: fn(&Process) = |process| {
    if process.take() {
        process.acknowledge();
    }
};

fn two_take(fate: Fate) -> bool {
    let scene = Scene::new();
    let mortal = scene.spawn(1, fate, TAKE_AND_ACKNOWLEDGE);
    let other = scene.spawn(2, Fate::Lives, Process::take);
    let ended = mortal.join().unwrap();
    other.join().unwrap();
    let [left, taken] = [1, 2].map(|who| scene.taken_by(who));
    let last = scene.process(LAST, Fate::Lives);
    let stands = |taken| assert_eq!(last.standing(true), acks::Standing { taken, left });
    stands(taken);
    // Also if its cell is another's, and after the next item.
    let head = last.actor.load(HEAD, Ordering::Relaxed);
    if ended {
        last.actor.store(Cell(0).identity(), LAST, Ordering::SeqCst);
        acks::claimed(&last.actor, Cell(0), head);
        stands(taken);
    }
    assert!(last.take());
    stands(taken + 1);
    last.acknowledge();
    if taken > 0 {
        scene.process(2, Fate::Lives).acknowledge();
    }
    stands(0);
    ended
}

#[test]
fn what_was_taken_is_counted_once_as_taken_or_left() {
    each_death(2, two_take);
}

/// Somebody who asks meanwhile.
const ASK: fn(&Process) = |process| {
    if process.unfinished(1) == 0 {
        assert!(process.book().takers.is_empty());
    }
};

fn one_takes_and_one_asks(fate: Fate) -> bool {
    let scene = Scene::new();
    let asks = scene.spawn(2, Fate::Lives, ASK);
    let mortal = scene.spawn(1, fate, TAKE_AND_ACKNOWLEDGE);
    asks.join().unwrap();
    mortal.join().unwrap()
}

#[test]
fn nobody_is_told_that_all_is_done_while_something_is_not() {
    each_death(2, one_takes_and_one_asks);
}

fn a_cell_is_claimed(fate: Fate) -> bool {
    let scene = Scene::new();
    let dead = scene.process(1, Fate::Lives);
    assert!(dead.take());
    // It has died with the count to be made.
    dead.actor.store(dead.cell.count(), 0, Ordering::SeqCst);
    let next = scene.spawn(2, fate, Process::take);
    let claims = scene.spawn(3, Fate::Lives, |process| {
        process.actor.store(Cell(0).identity(), 3, Ordering::SeqCst);
        let head = process.actor.load(HEAD, Ordering::Acquire);
        acks::claimed(&process.actor, Cell(0), head);
    });
    let ended = next.join().unwrap();
    claims.join().unwrap();
    let by_next = scene.taken_by(2);
    let (taken, left) = if ended { (0, 1 + by_next) } else { (by_next, 1) };
    assert_eq!(scene.process(LAST, Fate::Lives).standing(true), acks::Standing { taken, left });
    ended
}

#[test]
fn what_a_dead_one_has_not_counted_is_counted_by_one_other() {
    each_death(2, a_cell_is_claimed);
}
