//! All interleavings of producers and consumers, one of which dies before any access it makes.

use std::sync::{Arc, Mutex};

use loom::thread;

use super::*;
use crate::synchronize::protocol::model::{Actor, Fate, Model, each_death, each_stop};
use crate::synchronize::protocol::{Identity, Words, World};

const PRODUCERS: usize = 0;
const CONSUMERS: usize = 8;
/// With room for two frames.
const LAYOUT: Layout = Layout { tail: 16, head: 32, data: 48, capacity: 16 };

/// Who comes when all others are gone.
const LAST: u64 = 60;

/// Of items that are single bytes.
#[derive(Debug, Default)]
struct Book {
    put: Vec<u8>,
    got: Vec<u8>,
}

#[derive(Clone)]
struct Scene {
    model: Model,
    book: Arc<Mutex<Book>>,
}

/// What an actor has as memory: bytes are in words, so each word of a copy is an access.
struct Bytes<'a>(&'a Actor);

impl Memory for Bytes<'_> {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        Words::load(self.0, at, order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        Words::store(self.0, at, value, order);
    }

    fn swap(&self, _: usize, _: u64, _: Ordering) -> u64 {
        unreachable!("the lock sees to that")
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        for (i, piece) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            Words::store(self.0, at + 8 * i, u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn copy_out(&self, at: usize, len: usize, into: &mut Vec<u8>) {
        assert!(at % 8 + len <= 8, "frames are short here");
        let word = Words::load(self.0, at - at % 8, Ordering::Relaxed).to_le_bytes();
        into.extend_from_slice(&word[at % 8..at % 8 + len]);
    }
}

type Act = fn(&Process) -> bool;

struct Process {
    actor: Actor,
    book: Arc<Mutex<Book>>,
}

impl Process {
    fn ring(&self) -> Ring<Bytes<'_>> {
        Ring::new(Bytes(&self.actor), LAYOUT)
    }

    /// Takes a lock if it is free, or a dead one's.
    fn lock(&self, at: usize) -> bool {
        let owner = Words::load(&self.actor, at, Ordering::Relaxed);
        let is_free = owner == 0 || self.actor.is_dead(Identity(owner));
        is_free && self.actor.compare_exchange(at, owner, self.actor.me().0).is_ok()
    }

    fn unlock(&self, at: usize) {
        Words::store(&self.actor, at, 0, Ordering::Release);
    }

    /// Whether nobody else was at it, and there was room.
    fn put(&self, item: u8) -> bool {
        if !self.lock(PRODUCERS) {
            return false;
        }
        let mut frame = vec![0, 0, 0, 0, item, item];
        seal(&mut frame, 0);
        let ring = self.ring();
        let room = ring.room(frame.len()).unwrap();
        let put = room.map(|room| ring.push(room, &frame)).is_some();
        if put {
            self.book.lock().unwrap().put.push(item);
        }
        self.unlock(PRODUCERS);
        put
    }

    /// Whether nobody else was at it, and there was one.
    fn get(&self) -> bool {
        if !self.lock(CONSUMERS) {
            return false;
        }
        let front = self.ring().front().unwrap();
        if let Some(front) = &front {
            let mut bytes = Vec::new();
            self.ring().copy_out(front, &mut bytes);
            self.ring().take(front);
            assert_eq!(bytes[0], bytes[1]);
            self.book.lock().unwrap().got.push(bytes[0]);
        }
        self.unlock(CONSUMERS);
        front.is_some()
    }
}

impl Scene {
    /// A ring that has gone round, and has one item.
    fn new() -> Self {
        let scene = Self { model: Model::new(), book: Arc::default() };
        let setup = scene.process(LAST, Fate::Lives);
        assert!(setup.put(1) && setup.get() && setup.put(2));
        scene
    }

    fn process(&self, number: u64, fate: Fate) -> Process {
        Process { actor: self.model.actor(number, fate), book: self.book.clone() }
    }

    fn spawn(&self, number: u64, fate: Fate, act: Act) -> thread::JoinHandle<bool> {
        let process = self.process(number, fate);
        thread::spawn(move || process.actor.act(|_| act(&process)).is_none())
    }

    /// What was put is got, once, in order, and there is room for as much as ever.
    fn assert_sound(&self) {
        let last = self.process(LAST, Fate::Lives);
        let left = last.ring().items();
        assert_eq!((0..left).take_while(|_| last.get()).count() as u64, left);
        assert!(!last.get());
        {
            let book = self.book.lock().unwrap();
            assert_eq!(book.put, book.got);
        }
        assert!(last.put(8) && last.put(9) && !last.put(10));
        assert!(last.get() && last.get() && !last.get());
    }
}

const PUT: [Act; 2] = [|process| process.put(3), |process| process.put(4)];
const GET: Act = Process::get;

/// One dies at what it does, beside two that live.
fn one_dies(fate: Fate, act: Act, others: [Act; 2]) -> bool {
    let scene = Scene::new();
    let mortal = scene.spawn(1, fate, act);
    let [two, three] = others;
    let others = [scene.spawn(2, Fate::Lives, two), scene.spawn(3, Fate::Lives, three)];
    let ended = mortal.join().unwrap();
    for other in others {
        other.join().unwrap();
    }
    scene.assert_sound();
    ended
}

#[test]
fn what_a_producer_has_put_is_got_whatever_it_died_at() {
    each_death(1, |fate| one_dies(fate, PUT[0], [PUT[1], GET]));
}

#[test]
fn what_a_consumer_has_not_taken_others_get_whatever_it_died_at() {
    each_death(1, |fate| one_dies(fate, GET, [GET, PUT[0]]));
}

fn a_producer_stops(fate: Fate) -> bool {
    let scene = Scene::new();
    let stopped = scene.spawn(1, fate, PUT[0]);
    // The other side goes on, without it.
    let other = scene.spawn(2, Fate::Lives, |process| {
        assert!(process.get());
        true
    });
    other.join().unwrap();
    let stopped = stopped.join().unwrap();
    while scene.process(LAST, Fate::Lives).get() {}
    let book = scene.book.lock().unwrap();
    assert_eq!(book.put, book.got);
    stopped
}

#[test]
fn who_gets_goes_on_while_one_that_puts_is_stopped() {
    each_stop(2, a_producer_stops);
}

/// All four at a time, of which nobody dies.
#[test]
fn what_two_put_two_get() {
    crate::synchronize::protocol::model::explore(1, || {
        let scene = Scene::new();
        let acts = [PUT[0], PUT[1], GET, GET];
        let others: Vec<_> =
            (1..).zip(acts).map(|(number, act)| scene.spawn(number, Fate::Lives, act)).collect();
        for other in others {
            other.join().unwrap();
        }
        scene.assert_sound();
    });
}
