//! All interleavings of processes that put and get large items, and die or stop before any access they make.
//!
//! What nobody dies in is a [`Book`] of what the extents hold. What is freed there is wiped, so whoever reads
//! what was freed, or was another's meanwhile, finds something else than what was put.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use loom::thread;

use super::super::*;
use crate::synchronize::protocol::model::{Actor, Fate, Model, each_death, each_stop, explore, preemptions};

const HEAD: usize = 0;
const TAIL: usize = 8;
const PRODUCERS: usize = 16;
const CONSUMERS: usize = 24;
/// Where nothing is: a process may die before an access to it.
const NOTHING: usize = 32;
const FRAMES: usize = 40;
const TABLE: usize = 72;

/// What is written and read of an item.
const ITEM: usize = 2;
/// How long an item is said to be: some of its memory is given back whenever it is freed, so that who frees what
/// is another's is found out.
const LARGE: usize = KEPT + 1;
/// The longest table here.
const ENTRIES: usize = 2;

/// More accesses than are made here by anybody.
const MANY: usize = 100;
/// Who comes when all others are gone.
const LAST: u64 = 60;

#[derive(Debug, Default)]
struct Book {
    bytes: [[u8; ITEM]; ENTRIES],
    /// Up to where an extent has memory.
    memory: [usize; ENTRIES],
    /// Whether none of it can be given back.
    refuses: bool,
    /// The items that were read.
    taken: Vec<u8>,
}

#[derive(Clone)]
struct Scene {
    model: Model,
    book: Arc<Mutex<Book>>,
    entries: usize,
    len: usize,
}

struct Process {
    actor: Actor,
    scene: Scene,
}

#[derive(Clone, Copy)]
struct Bytes<'a>(&'a Process);

impl Bytes<'_> {
    fn step(&self) -> MutexGuard<'_, Book> {
        self.0.actor.load(NOTHING, Relaxed);
        self.0.scene.book.lock().unwrap()
    }
}

impl Store for Bytes<'_> {
    fn admits(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let entry = at / REGION - 1;
        let mut book = self.step();
        book.bytes[entry].copy_from_slice(bytes);
        book.memory[entry] = book.memory[entry].max(self.0.scene.len);
        Ok(())
    }

    fn read(&self, at: usize, _: usize, into: &mut Vec<u8>) -> io::Result<()> {
        (0..ITEM).for_each(|i| into.push(self.step().bytes[at / REGION - 1][i]));
        Ok(())
    }

    fn is_written(&self, _: usize, _: usize) -> io::Result<bool> {
        Ok(true)
    }

    fn punch(&self, at: usize, len: usize) -> io::Result<()> {
        let (entry, at) = (at / REGION - 1, at % REGION);
        let mut book = self.step();
        if book.refuses {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        book.bytes[entry] = [0; ITEM];
        if book.memory[entry] <= at + len {
            book.memory[entry] = book.memory[entry].min(at);
        }
        Ok(())
    }
}

impl World for Process {
    /// Who has ended does nothing more: what is dropped here then is like a copy's.
    fn me(&self) -> Identity {
        if std::thread::panicking() { Identity(0) } else { self.actor.me() }
    }

    fn is_dead(&self, who: Identity) -> bool {
        self.actor.is_dead(who)
    }
}

impl Process {
    fn extents(&self) -> Extents<'_, Actor, Self, Bytes<'_>> {
        let layout = Layout { table: TABLE, entries: self.scene.entries, head: HEAD, tail: TAIL };
        Extents::new(&self.actor, self, Bytes(self), layout)
    }

    /// Takes a lock if it is free, or a dead one's.
    fn lock(&self, at: usize) -> bool {
        let owner = self.actor.load(at, Relaxed);
        let is_free = owner == 0 || self.is_dead(Identity(owner));
        is_free && self.actor.compare_exchange(at, owner, self.me().0).is_ok()
    }

    fn unlock(&self, at: usize) {
        self.actor.store(at, 0, Release);
    }

    fn put(&self, item: u8) {
        let Some(reserved) = self.extents().reserve(self.scene.len).unwrap() else { return };
        reserved.write(0, &[item; ITEM]).unwrap();
        if !self.lock(PRODUCERS) {
            return;
        }
        let tail = self.actor.load(TAIL, Relaxed);
        let frame = reserved.entry() as u64 | u64::from(item) << 8;
        reserved.commit(tail).unwrap();
        self.actor.store(FRAMES + 8 * tail as usize, frame, Relaxed);
        self.actor.store(TAIL, tail + 1, Release);
        self.unlock(PRODUCERS);
    }

    /// Whether there was one, and nobody else was at it.
    fn get(&self) -> bool {
        if !self.lock(CONSUMERS) {
            return false;
        }
        let head = self.actor.load(HEAD, Relaxed);
        if head == self.actor.load(TAIL, Acquire) {
            self.unlock(CONSUMERS);
            return false;
        }
        let frame = self.actor.load(FRAMES + 8 * head as usize, Relaxed);
        let claimed = self.extents().claim(frame as usize & 0xff, head).expect("the frame's entry is there");
        self.actor.store(HEAD, head + 1, Release);
        self.unlock(CONSUMERS);
        let (item, mut bytes) = ((frame >> 8) as u8, Vec::new());
        claimed.read(&mut bytes).unwrap();
        assert_eq!(bytes, [item; ITEM], "it is as it was put");
        let mut book = self.scene.book.lock().unwrap();
        assert!(!book.taken.contains(&item), "nobody else has read it");
        book.taken.push(item);
        true
    }

    fn owner(&self, entry: usize) -> u64 {
        self.actor.load(self.extents().owner(entry), Acquire)
    }
}

impl Scene {
    fn new(entries: usize, len: usize) -> Self {
        Self { model: Model::new(), book: Arc::default(), entries, len }
    }

    fn process(&self, number: u64, fate: Fate) -> Process {
        Process { actor: self.model.actor(number, fate), scene: self.clone() }
    }

    /// Has a process act beside the others. Whether it was ended.
    fn spawn(&self, number: u64, fate: Fate, act: fn(&Process)) -> thread::JoinHandle<bool> {
        let process = self.process(number, fate);
        thread::spawn(move || process.actor.act(|_| act(&process)).is_none())
    }

    /// Has a process act, and die after that.
    fn bury(&self, number: u64, act: fn(&Process)) {
        let process = self.process(number, Fate::Dies(MANY));
        process.actor.act(|actor| {
            act(&process);
            (0..=MANY).for_each(|_| _ = actor.load(NOTHING, Relaxed));
        });
        assert!(process.actor.has_ended());
    }

    /// All that is in the ring is there, and all else is free. So many items may be gone with consumers.
    fn assert_sound(&self, gone: usize) {
        let last = self.process(LAST, Fate::Lives);
        let committed = last.actor.load(TAIL, Acquire) as usize;
        while last.get() {}
        last.extents().reap();
        let book = self.book.lock().unwrap();
        assert!(committed - book.taken.len() <= gone, "{book:?}, of {committed}");
        assert!(book.memory.iter().sum::<usize>() <= KEPT, "{book:?}");
        let memory = book.memory;
        drop(book);
        for (entry, memory) in memory.into_iter().enumerate().take(self.entries) {
            assert_eq!(last.owner(entry), 0);
            let spare = last.actor.load(last.extents().spare(entry), Relaxed);
            assert!(memory as u64 <= spare, "{memory} are kept, said are {spare}");
        }
    }
}

/// For each two accesses before which two processes die. It multiplies, so that fewer interleavings have to do.
fn each_two_deaths(model: fn([Fate; 2]) -> [bool; 2]) {
    for first in 0.. {
        let mut any = false;
        for second in 0.. {
            let ended = Arc::new([false; 2].map(AtomicBool::new));
            let seen = ended.clone();
            explore(preemptions() - 1, move || {
                let ends = model([first, second].map(Fate::Dies));
                ends.iter().zip(&*seen).for_each(|(end, seen)| _ = seen.fetch_or(*end, Ordering::Relaxed));
            });
            let [one, two] = [0, 1].map(|i| ended[i].load(Ordering::Relaxed));
            any |= one;
            if !two {
                break;
            }
        }
        if !any {
            return assert!(first > 5, "it makes some accesses");
        }
    }
}

fn a_producer_ends(fate: Fate) -> bool {
    let scene = Scene::new(1, LARGE);
    let mortal = scene.spawn(1, fate, |process| process.put(1));
    // It needs that extent itself, and puts its frame where the other's may have been meant to be.
    let other = scene.process(2, Fate::Lives);
    other.put(2);
    other.get();
    let ended = mortal.join().unwrap();
    scene.assert_sound(0);
    ended
}

#[test]
fn what_a_dead_producer_was_writing_is_free_and_what_it_had_put_is_there() {
    each_death(preemptions(), a_producer_ends);
}

fn a_consumer_ends(fate: Fate) -> bool {
    let scene = Scene::new(1, LARGE);
    scene.bury(1, |process| process.put(1));
    let mortal = scene.spawn(2, fate, |process| _ = process.get());
    let other = scene.process(3, Fate::Lives);
    other.get();
    other.put(2);
    let ended = mortal.join().unwrap();
    scene.assert_sound(usize::from(ended));
    ended
}

#[test]
fn what_a_dead_consumer_was_reading_is_free_and_what_it_had_not_taken_is_there() {
    each_death(preemptions(), a_consumer_ends);
}

fn a_reaper_ends(fate: Fate) -> bool {
    let scene = Scene::new(1, LARGE);
    scene.bury(1, |process| process.put(1));
    let mortal = scene.spawn(2, fate, |process| process.extents().reap());
    let other = scene.process(3, Fate::Lives);
    assert!(other.get());
    other.put(2);
    let ended = mortal.join().unwrap();
    scene.assert_sound(0);
    ended
}

#[test]
fn who_frees_what_the_dead_had_may_die_of_it_and_takes_nothing_that_is_in_use() {
    each_death(preemptions(), a_reaper_ends);
}

#[test]
fn who_frees_what_a_dead_producer_had_may_die_of_it() {
    each_two_deaths(|fates| {
        let scene = Scene::new(1, LARGE);
        let acts: [fn(&Process); 2] =
            [|process| process.put(1), |process| drop(process.extents().reserve(LARGE).unwrap())];
        let [one, two] = [0, 1].map(|i| scene.spawn(i as u64 + 1, fates[i], acts[i]));
        let ended = [one, two].map(|mortal| mortal.join().unwrap());
        scene.assert_sound(0);
        ended
    });
}

#[test]
fn who_gets_what_a_dead_consumer_was_at_may_die_of_it() {
    each_two_deaths(|fates| {
        let scene = Scene::new(1, LARGE);
        scene.bury(1, |process| process.put(1));
        let acts: [fn(&Process); 2] = [
            |process| _ = process.get(),
            |process| {
                process.get();
                process.extents().reap();
            },
        ];
        let [one, two] = [0, 1].map(|i| scene.spawn(i as u64 + 2, fates[i], acts[i]));
        let ended = [one, two].map(|mortal| mortal.join().unwrap());
        scene.assert_sound(ended.into_iter().filter(|ended| *ended).count());
        ended
    });
}

fn one_is_stopped(fate: Fate) -> bool {
    let scene = Scene::new(1, LARGE);
    let stopped = scene.spawn(1, fate, |process| {
        process.put(1);
        process.get();
    });
    scene.process(2, Fate::Lives).put(2);
    let ended = stopped.join().unwrap();
    let last = scene.process(LAST, Fate::Lives);
    while last.get() {}
    last.extents().reap();
    match last.owner(0) {
        0 => assert_eq!(scene.book.lock().unwrap().bytes[0], [0; ITEM]),
        // What it has is its own, for when it goes on.
        1 => assert!(last.extents().reserve(LARGE).unwrap().is_none()),
        // It is in the ring still, of which the stopped one has the lock.
        other => assert_eq!((other, last.actor.load(CONSUMERS, Relaxed)), (2, 1)),
    }
    ended
}

/// A small item lies in the memory of a large one.
fn who_has_more_than_it_needs_ends(fate: Fate, refuses: bool) -> bool {
    let scene = Scene::new(1, KEPT);
    let waste = |process: &Process| {
        let reserved = process.extents().reserve(process.scene.len).unwrap().unwrap();
        reserved.write(0, &[1; ITEM]).unwrap();
    };
    scene.bury(1, waste);
    assert_eq!(scene.book.lock().unwrap().memory[0], KEPT);
    let small = Scene { len: PAGE, ..scene };
    small.book.lock().unwrap().refuses = refuses;
    let mortal = small.process(2, fate);
    let acts = || {
        waste(&mortal);
        drop(mortal.extents().reserve(2 * PAGE).unwrap());
    };
    let ended = mortal.actor.act(|_| acts()).is_none();
    small.assert_sound(0);
    small.book.lock().unwrap().refuses = false;
    waste(&small.process(3, Fate::Lives));
    assert_eq!(small.book.lock().unwrap().memory[0], PAGE);
    ended
}

#[test]
fn memory_beyond_an_item_is_told_of_whoever_dies_when_until_it_is_given_back() {
    each_death(0, |fate| who_has_more_than_it_needs_ends(fate, false));
}

#[test]
fn memory_that_could_not_be_given_back_is_told_of_and_given_back_later() {
    each_death(0, |fate| who_has_more_than_it_needs_ends(fate, true));
}

#[test]
fn what_is_kept_wholly_is_freed_by_no_call() {
    explore(1, || {
        let scene = Scene::new(1, ITEM);
        let process = scene.process(1, Fate::Lives);
        process.put(1);
        assert!(process.get());
        assert_eq!((process.owner(0), scene.book.lock().unwrap().bytes[0]), (0, [1; ITEM]));
    });
}

#[test]
fn who_is_stopped_keeps_what_it_has() {
    each_stop(preemptions(), one_is_stopped);
}

fn two_free(fate: Fate) -> bool {
    let scene = Scene::new(2, KEPT);
    let waste = |process: &Process| {
        let reserved = process.extents().reserve(KEPT).unwrap().unwrap();
        reserved.write(0, &[1; ITEM]).unwrap();
    };
    let mortal = scene.spawn(1, fate, waste);
    let other = scene.spawn(2, Fate::Lives, waste);
    other.join().unwrap();
    let ended = mortal.join().unwrap();
    scene.assert_sound(0);
    ended
}

#[test]
fn of_all_that_is_free_no_more_memory_is_kept_than_the_limit() {
    each_death(preemptions(), two_free);
}
