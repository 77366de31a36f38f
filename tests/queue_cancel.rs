//! Puts, reservations and gets that are given up: dropped after some polls, timed out, aborted. What was given up
//! has not happened, whatever has is seen once, and no slot is gone.
//!
//! `TOKIO_MULTIPROCESS_STORM_CANCELS` says how many there are of each at least, and
//! `TOKIO_MULTIPROCESS_STORM_SEED` repeats them.

#![cfg(target_os = "linux")]

mod support;

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use support::{PATIENCE, Random, current_thread, guard, multi_thread};
use tokio::task::yield_now;
use tokio_multiprocess as mp;

/// How many tasks put, and how many get.
const TASKS: u64 = 4;
/// Fewer than there are tasks, so that there is something to wait for.
const SLOTS: usize = 3;
/// Too large for the ring.
const LARGE: usize = 300 << 10;

/// What is added for a number that was put, and for one that was got.
const PUT: u32 = 1;
const GOT: u32 = 1 << 16;

#[derive(Debug, Serialize, Deserialize)]
struct Item {
    number: u64,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Shared {
    queue: mp::Queue<Item>,
    numbers: mp::RawArray<u32>,
    /// How many puts, and how many gets, were given up.
    given_up: mp::RawArray<u64>,
}

async fn yields(times: u64) {
    for _ in 0..times {
        yield_now().await;
    }
}

/// Has something done or gives it up, at random.
async fn perhaps<T: Send + 'static>(
    random: &mut Random,
    act: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    match random.below(4) {
        0 => {
            let mut act = pin!(act);
            for _ in 0..random.below(4) {
                if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(act.as_mut().poll(cx))).await {
                    return Some(done);
                }
                yield_now().await;
            }
            None
        }
        1 => tokio::time::timeout(Duration::from_micros(random.below(2000)), act).await.ok(),
        2 => {
            let times = random.below(4);
            tokio::select! {
                biased;
                done = act => Some(done),
                () = yields(times) => None,
            }
        }
        _ => {
            let task = tokio::spawn(act);
            yields(random.below(4)).await;
            task.abort();
            match task.await {
                Ok(done) => Some(done),
                Err(error) if error.is_cancelled() => None,
                Err(error) => resume_unwind(error.into_panic()),
            }
        }
    }
}

async fn put_some(shared: Shared, numbers: std::ops::Range<u64>, mut random: Random) {
    for number in numbers {
        let queue = shared.queue.clone();
        let body = vec![0; if random.below(64) == 0 { LARGE } else { 8 }];
        let (item, holds, sends) = (Item { number, body }, random.below(3), random.below(4) > 0);
        let act = async move {
            if holds == 0 {
                queue.put(item).await.unwrap();
                return true;
            }
            let permit = queue.reserve().await.unwrap();
            yields(holds - 1).await;
            if sends {
                permit.send(item).unwrap();
            }
            sends
        };
        match perhaps(&mut random, act).await {
            Some(true) => drop(shared.numbers.fetch_add(number as usize, PUT)),
            Some(false) => {}
            None => drop(shared.given_up.fetch_add(0, 1)),
        }
    }
}

async fn get_some(shared: Shared, mut random: Random) {
    loop {
        let queue = shared.queue.clone();
        match perhaps(&mut random, async move { queue.get().await }).await {
            Some(Ok(item)) => drop(shared.numbers.fetch_add(item.number as usize, GOT)),
            Some(Err(mp::GetError::ShutDown)) => return,
            Some(Err(error)) => panic!("{error}"),
            None => drop(shared.given_up.fetch_add(1, 1)),
        }
    }
}

fn runtime(multi: bool) -> tokio::runtime::Runtime {
    if multi { multi_thread() } else { current_thread() }
}

/// Some tasks at a time, in one process.
fn put_all(shared: Shared, multi: bool, seed: u64) {
    let each = shared.numbers.len() as u64 / TASKS;
    runtime(multi).block_on(async {
        let random = |task| Random::from_seed(seed.wrapping_add(task << 40));
        let tasks = (0..TASKS)
            .map(|task| tokio::spawn(put_some(shared.clone(), task * each..(task + 1) * each, random(task))));
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        shared.queue.flush().await.unwrap();
    });
}

fn get_all(shared: Shared, multi: bool, seed: u64) {
    runtime(multi).block_on(async {
        let random = |task| Random::from_seed(seed.wrapping_add(task << 40));
        let tasks = (0..TASKS).map(|task| tokio::spawn(get_some(shared.clone(), random(task))));
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

#[test]
fn what_is_given_up_has_not_happened() {
    let cancels: u64 = std::env::var("TOKIO_MULTIPROCESS_STORM_CANCELS").map_or(500, |n| n.parse().unwrap());
    let _guard = guard(120 + cancels / 100);
    let mut random = Random::new();
    for multi in [false, true] {
        let mut given_up = [0, 0];
        while given_up.iter().any(|count| *count < cancels / 2) {
            multi_thread().block_on(round(multi, &mut random, &mut given_up));
        }
        eprintln!("several threads: {multi}; given up: {} puts, {} gets", given_up[0], given_up[1]);
    }
}

/// With one kind of runtime where items are put, and the other one where they are got.
async fn round(multi: bool, random: &mut Random, given_up: &mut [u64; 2]) {
    let shared = Shared {
        queue: mp::Queue::new(SLOTS).unwrap(),
        numbers: mp::RawArray::new(2000).unwrap(),
        given_up: mp::RawArray::new(2).unwrap(),
    };
    let gets = mp::Process::builder(get_all, (shared.clone(), !multi, random.next())).start().await.unwrap();
    let puts = mp::Process::builder(put_all, (shared.clone(), multi, random.next())).start().await.unwrap();
    assert!(puts.join().await.unwrap().success());
    // All slots are there again once all is got.
    let mut permits = Vec::new();
    for slot in 0..SLOTS {
        let permit = tokio::time::timeout(PATIENCE, shared.queue.reserve()).await;
        permits.push(permit.unwrap_or_else(|_| panic!("slot {slot} is gone")).unwrap());
    }
    assert!(shared.queue.try_reserve().is_err(), "there are no more");
    assert!(shared.queue.is_empty());
    drop(permits);
    shared.queue.shutdown().unwrap();
    assert!(gets.join().await.unwrap().success());
    for number in 0..shared.numbers.len() {
        let seen = shared.numbers.get(number);
        assert!(seen == 0 || seen == PUT + GOT, "{number}: {seen:#x}");
    }
    for (sum, side) in given_up.iter_mut().zip(0..) {
        *sum += shared.given_up.get(side);
    }
}
