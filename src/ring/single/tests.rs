//! The protocol as a step machine: each shared access is one step, and a schedule says whose turn
//! it is. A side that gets no turn any more has died, or was stopped: for the other it is the same.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex};

use super::*;

const PRODUCER: usize = 0;
const CONSUMER: usize = 1;
const HEAD: usize = 0;
const TAIL: usize = 8;
const ASLEEP: usize = 16;
const LAYOUT: Layout = Layout { head: HEAD, tail: TAIL, data: 24, capacity: 16 };

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Whose step is next; `None` when nobody is stopped any more.
    turn: Option<usize>,
    done: [bool; 2],
    /// No more steps: who asks for one is dead.
    dead: [bool; 2],
    tails: Vec<u64>,
    bell: bool,
}

struct Table {
    state: Mutex<State>,
    changed: Condvar,
}

/// A side's access to the table: waits for its turn before each step.
struct Steps {
    table: Arc<Table>,
    side: usize,
}

impl Steps {
    fn step<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.table.state.lock().unwrap();
        while state.turn != Some(self.side) && !state.dead[self.side] {
            state = self.table.changed.wait(state).unwrap();
        }
        if state.dead[self.side] {
            drop(state);
            resume_unwind(Box::new("dead"));
        }
        let result = act(&mut state);
        state.turn = None;
        self.table.changed.notify_all();
        result
    }
}

impl Memory for Steps {
    fn load(&self, at: usize, _: Ordering) -> u64 {
        self.step(|state| u64::from_le_bytes(state.bytes[at..at + 8].try_into().unwrap()))
    }

    fn store(&self, at: usize, value: u64, _: Ordering) {
        self.step(|state| {
            state.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            if at == TAIL {
                state.tails.push(value);
            }
        });
    }

    fn swap(&self, at: usize, value: u64, _: Ordering) -> u64 {
        self.step(|state| {
            let old = u64::from_le_bytes(state.bytes[at..at + 8].try_into().unwrap());
            state.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            old
        })
    }

    /// In two steps, so that a side can be caught with half of it.
    fn copy_in(&self, at: usize, bytes: &[u8]) {
        let (a, b) = bytes.split_at(bytes.len() / 2);
        for (at, half) in [(at, a), (at + a.len(), b)] {
            if !half.is_empty() {
                self.step(|state| state.bytes[at..at + half.len()].copy_from_slice(half));
            }
        }
    }

    fn copy_out(&self, at: usize, len: usize, into: &mut Vec<u8>) {
        for range in [at..at + len / 2, at + len / 2..at + len] {
            if !range.is_empty() {
                self.step(|state| into.extend_from_slice(&state.bytes[range]));
            }
        }
    }
}

const FRAMES: [&[u8]; 4] = [b"one", b"and two", b"", b"three!"];

/// Pushes all frames, rings when it must, gives up when there is no room for long.
fn produce(memory: Arc<Steps>) {
    let mut producer = Producer::new(memory.clone(), LAYOUT);
    let doze = Doze::new(memory.clone(), ASLEEP);
    for frame in FRAMES {
        let mut tries = 0;
        while !producer.try_push(&[&frame[..frame.len() / 2], &frame[frame.len() / 2..]]).unwrap() {
            tries += 1;
            if tries > 100 {
                return;
            }
        }
        if doze.must_ring() {
            memory.step(|state| state.bell = true);
        }
    }
}

/// Takes frames until the last, sleeping in between.
fn consume(memory: Arc<Steps>, taken: &Mutex<Vec<u8>>) {
    let mut consumer = Consumer::new(memory.clone(), LAYOUT);
    let doze = Doze::new(memory.clone(), ASLEEP);
    let enough = FRAMES.iter().map(|frame| frame.len() + LENGTH).sum::<usize>();
    loop {
        while consumer.drain(&mut taken.lock().unwrap()).unwrap() {}
        if taken.lock().unwrap().len() == enough {
            return;
        }
        doze.announce();
        if consumer.is_empty() {
            // Asleep: no step until the bell.
            while !memory.step(|state| std::mem::take(&mut state.bell)) {}
        }
        doze.awake();
    }
}

/// Gives `side` up to `count` steps.
fn run(table: &Table, side: usize, count: usize) {
    for _ in 0..count {
        let mut state = table.state.lock().unwrap();
        if state.done[side] {
            return;
        }
        state.turn = Some(side);
        table.changed.notify_all();
        while state.turn.is_some() && !state.done[side] {
            state = table.changed.wait(state).unwrap();
        }
        state.turn = None;
    }
}

/// Runs both sides by turns of these lengths; then only those in `survivors` go on, to their end.
/// Gives what was published and what was taken.
fn play(turns: &[(usize, usize)], survivors: &[usize]) -> (Vec<u64>, Vec<u8>, [bool; 2]) {
    let state = State { bytes: vec![0; LAYOUT.data + LAYOUT.capacity], ..State::default() };
    let table = Arc::new(Table { state: Mutex::new(state), changed: Condvar::new() });
    let taken = Mutex::new(Vec::new());
    let mut finished = [false; 2];
    let steps = |side| Arc::new(Steps { table: table.clone(), side });
    let end = |side: usize, result: std::thread::Result<()>| {
        table.state.lock().unwrap().done[side] = true;
        table.changed.notify_all();
        result.is_ok()
    };
    let produce = || end(PRODUCER, catch_unwind(AssertUnwindSafe(|| produce(steps(PRODUCER)))));
    let consume = || end(CONSUMER, catch_unwind(AssertUnwindSafe(|| consume(steps(CONSUMER), &taken))));
    std::thread::scope(|scope| {
        let producer = scope.spawn(produce);
        let consumer = scope.spawn(consume);
        for (side, count) in turns {
            run(&table, *side, *count);
        }
        // Who watches a process learns of its death and looks once more, rung or not.
        table.state.lock().unwrap().bell |= !survivors.contains(&PRODUCER);
        // The survivors alternate, for many more steps than the longest way to the end has.
        for _ in 0..400 {
            for side in survivors {
                run(&table, *side, 1);
            }
            if survivors.iter().all(|side| table.state.lock().unwrap().done[*side]) {
                break;
            }
        }
        table.state.lock().unwrap().dead = [true; 2];
        table.changed.notify_all();
        finished = [producer.join().unwrap(), consumer.join().unwrap()];
    });
    let tails = std::mem::take(&mut table.state.lock().unwrap().tails);
    (tails, taken.into_inner().unwrap_or_else(|dead| dead.into_inner()), finished)
}

/// What the first frames look like in the ring.
fn written(frames: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        bytes.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        bytes.extend_from_slice(frame);
    }
    bytes
}

fn schedules() -> impl Iterator<Item = [(usize, usize); 3]> {
    let steps = || (0..12).chain([20, 30]);
    steps().flat_map(move |a| {
        steps().step_by(2).flat_map(move |b| {
            [0, 1, 4].into_iter().flat_map(move |c| {
                [[(PRODUCER, a), (CONSUMER, b), (PRODUCER, c)], [(CONSUMER, a), (PRODUCER, b), (CONSUMER, c)]]
            })
        })
    })
}

#[test]
fn every_frame_is_taken_once_under_every_schedule() {
    for turns in schedules() {
        let (_, taken, finished) = play(&turns, &[PRODUCER, CONSUMER]);
        // Finished means that no wake-up was lost either.
        assert_eq!(finished, [true; 2], "{turns:?}");
        assert_eq!(taken, written(&FRAMES), "{turns:?}");
    }
}

#[test]
fn what_a_dead_producer_published_is_taken_and_nothing_torn() {
    for turns in schedules() {
        let (tails, taken, _) = play(&turns, &[CONSUMER]);
        // It sleeps at last, or has all; either way it has just what was published.
        let published = written(&FRAMES[..tails.len()]);
        assert_eq!(tails.last().copied().unwrap_or_default(), published.len() as u64);
        assert_eq!(taken, published, "{turns:?}");
    }
}

#[test]
fn a_dead_consumer_costs_nothing_but_room() {
    for turns in schedules() {
        let (tails, taken, finished) = play(&turns, &[PRODUCER]);
        assert!(finished[PRODUCER], "{turns:?}");
        assert!(written(&FRAMES[..tails.len()]).starts_with(&taken), "{turns:?}");
    }
}

#[test]
fn a_peer_that_lies_is_found_out() {
    let state = || State { bytes: vec![0; LAYOUT.data + LAYOUT.capacity], ..State::default() };
    let memory = |bytes: &dyn Fn(&mut Vec<u8>)| {
        let mut state = state();
        bytes(&mut state.bytes);
        Arc::new(Plain(Mutex::new(state.bytes)))
    };
    let far = (LAYOUT.capacity as u64 + 1).to_le_bytes();
    let tail_too_far = memory(&|bytes| bytes[TAIL..TAIL + 8].copy_from_slice(&far));
    assert_eq!(Consumer::new(tail_too_far, LAYOUT).drain(&mut Vec::new()), Err(Corrupt));
    let head_far = memory(&|bytes| bytes[HEAD..HEAD + 8].copy_from_slice(&far));
    let mut producer = Producer::new(head_far, LAYOUT);
    assert_eq!(producer.try_push(&[b"twelve bytes"]), Ok(true));
    assert_eq!(producer.try_push(&[b"x"]), Err(Corrupt));
    assert_eq!(frames(&[9, 0, 0, 0, 1]).collect::<Vec<_>>(), [Err(Corrupt)]);
    assert_eq!(frames(&[0, 0]).collect::<Vec<_>>(), [Err(Corrupt)]);
}

struct Plain(Mutex<Vec<u8>>);

impl Memory for Plain {
    fn load(&self, at: usize, _: Ordering) -> u64 {
        u64::from_le_bytes(self.0.lock().unwrap()[at..at + 8].try_into().unwrap())
    }

    fn store(&self, at: usize, value: u64, _: Ordering) {
        self.0.lock().unwrap()[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn swap(&self, at: usize, value: u64, order: Ordering) -> u64 {
        let old = self.load(at, order);
        self.store(at, value, order);
        old
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        self.0.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn copy_out(&self, at: usize, len: usize, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.0.lock().unwrap()[at..at + len]);
    }
}
