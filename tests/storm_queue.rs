//! Storms over queues: four processes put numbered items and four get them, while every 20 ms one of the eight is
//! killed and replaced. Each says in shared memory what it is about to do and what it has done, so it is known
//! what a killed one had in hand: nothing else may be missing, nothing comes twice, torn or out of order, and
//! nobody stands still.
//!
//! Short by default. `TOKIO_MULTIPROCESS_STORM_SECONDS` says how long each storm rages,
//! `TOKIO_MULTIPROCESS_STORM_ITEMS` how many items the one of small items goes on for at least, and
//! `TOKIO_MULTIPROCESS_STORM_SEED` repeats one.

#![cfg(target_os = "linux")]

mod support;

use std::io::{PipeReader, Read, Write};
use std::ops::{Range, RangeInclusive};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use support::{PATIENCE, Random, guard, kill_9, methods, multi_thread};
use tokio_multiprocess as mp;

/// As many put, and as many get.
const SIDE: usize = 4;
const KILL_EVERY: Duration = Duration::from_millis(20);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long nothing at all may be got, whoever dies.
const LONGEST: Duration = Duration::from_secs(1);
/// How many items are put before it is waited until they are all in the queue's memory.
const BATCH: u64 = 16;
/// How many items each may put.
const MOST: u64 = 1 << 24;
/// How many large items a queue has room for, and how large one is that is surely large.
const EXTENTS: usize = 64;
const LARGE: usize = 300 << 10;
/// How long who gets waits before it looks whether all is over.
const MOMENT: Duration = Duration::from_millis(20);

/// How large items are: of so many, the first is between 8 B and 100 KiB, the second as `large`.
#[derive(Clone, Serialize, Deserialize)]
struct Sizes {
    of: u64,
    large: Range<u64>,
    /// Whether some have handles.
    handles: bool,
}

/// Evenly distributed by magnitude.
fn within(range: Range<u64>, random: &mut Random) -> usize {
    let (low, high) = ((range.start as f64).ln(), (range.end as f64).ln());
    (low + (high - low) * random.below(1 << 20) as f64 / (1 << 20) as f64).exp() as usize
}

#[derive(Debug, Serialize, Deserialize)]
struct Item {
    producer: usize,
    number: u64,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
    pipe: Option<mp::Handle<PipeReader>>,
    blob: Option<mp::Blob>,
}

impl Item {
    /// All of it follows from whose it is, and its number.
    fn new(producer: usize, number: u64, sizes: &Sizes) -> Self {
        let mut random = Self::random(producer, number);
        let size = match random.below(sizes.of) {
            0 => within(8..100 << 10, &mut random),
            1 => within(sizes.large.clone(), &mut random),
            _ => 8 + random.below(120) as usize,
        };
        let kind = if sizes.handles { random.below(4) } else { 0 };
        let pipe = (kind == 1).then(|| {
            let (reads, mut writes) = std::io::pipe().unwrap();
            writes.write_all(&number.to_le_bytes()).unwrap();
            mp::Handle::new(reads)
        });
        let blob = (kind == 2).then(|| mp::Blob::new(number.to_le_bytes()).unwrap());
        Self { producer, number, body: bytes(size, &mut random).collect(), pipe, blob }
    }

    fn random(producer: usize, number: u64) -> Random {
        let mut random =
            Random::from_seed(((number << 4) | (producer as u64 + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        random.next();
        random
    }

    fn assert_whole(mut self, sizes: &Sizes) {
        let expected = Self::new(self.producer, self.number, sizes);
        assert!(self.body == expected.body, "torn: {} of {}", self.number, self.producer);
        assert_eq!(self.pipe.is_some(), expected.pipe.is_some());
        assert_eq!(self.blob.as_deref(), expected.blob.as_deref());
        if let Some(pipe) = self.pipe.take() {
            let mut number = Vec::new();
            pipe.into_inner().unwrap().read_to_end(&mut number).unwrap();
            assert_eq!(number, self.number.to_le_bytes(), "another item's pipe");
        }
    }
}

fn bytes(size: usize, random: &mut Random) -> impl Iterator<Item = u8> {
    let words = std::iter::repeat_with(|| random.next().to_le_bytes()).take(size.div_ceil(8));
    words.flatten().take(size)
}

/// What is counted, by each process for itself.
#[derive(Clone, Copy)]
enum Count {
    /// Items that somebody was about to put.
    Begun,
    /// Those of them that a put has returned for.
    Put,
    /// Those of them that wait in that process no more.
    Flushed,
    /// Attempts to get.
    Tried,
    /// Of those, what has come of them is known.
    Known,
    /// Items that were got.
    Got,
    /// Those that somebody was about to acknowledge.
    Acknowledging,
    Acknowledged,
}

#[derive(Clone, Serialize, Deserialize)]
enum Kind {
    Plain(mp::Queue<Item>),
    Joinable(mp::JoinableQueue<Item>),
}

#[derive(Clone, Serialize, Deserialize)]
struct Shared {
    kind: Kind,
    sizes: Sizes,
    counts: mp::RawArray<u64>,
    /// For each who puts a bit for each item.
    arrived: mp::RawArray<u64>,
    /// 1: nothing more is put; 2: nor got.
    over: mp::RawValue<u8>,
}

impl Shared {
    fn new(kind: Kind, sizes: Sizes) -> Self {
        Self {
            kind,
            sizes,
            counts: mp::RawArray::new((Count::Acknowledged as usize + 1) * SIDE).unwrap(),
            arrived: mp::RawArray::new(SIDE * (MOST / 64) as usize).unwrap(),
            over: mp::RawValue::new(0).unwrap(),
        }
    }

    fn queue(&self) -> &mp::Queue<Item> {
        match &self.kind {
            Kind::Plain(queue) => queue,
            Kind::Joinable(queue) => queue,
        }
    }

    fn get(&self, count: Count, who: usize) -> u64 {
        self.counts.get(count as usize * SIDE + who)
    }

    fn set(&self, count: Count, who: usize, value: u64) {
        self.counts.set(count as usize * SIDE + who, value);
    }

    fn add(&self, count: Count, who: usize) {
        self.set(count, who, self.get(count, who) + 1);
    }

    fn sum(&self, count: Count) -> u64 {
        (0..SIDE).map(|who| self.get(count, who)).sum()
    }

    fn word(producer: usize, number: u64) -> (usize, u64) {
        (producer * (MOST / 64) as usize + (number / 64) as usize, 1 << (number % 64))
    }

    fn has_arrived(&self, producer: usize, number: u64) -> bool {
        let (word, bit) = Self::word(producer, number);
        self.arrived.get(word) & bit != 0
    }
}

async fn put(shared: Shared, who: usize, seed: u64) -> mp::Result<()> {
    let mut random = Random::from_seed(seed);
    let queue = shared.queue();
    while shared.over.get() == 0 {
        for _ in 0..=random.below(BATCH) {
            let number = shared.get(Count::Begun, who);
            assert!(number < MOST, "it has room for more");
            shared.set(Count::Begun, who, number + 1);
            let item = Item::new(who, number, &shared.sizes);
            match random.below(8) {
                0 => queue.reserve().await?.send(item)?,
                1 => {
                    let mut item = item;
                    while let Err(error) = queue.put_timeout(item, MOMENT).await {
                        assert!(error.is_full(), "{error}");
                        item = error.item;
                    }
                }
                _ => queue.put(item).await?,
            }
            shared.set(Count::Put, who, number + 1);
        }
        queue.flush().await.unwrap();
        shared.set(Count::Flushed, who, shared.get(Count::Put, who));
    }
    Ok(())
}

async fn get(shared: Shared, who: usize, seed: u64) -> mp::Result<()> {
    let mut random = Random::from_seed(seed);
    let queue = shared.queue();
    // Of each who puts, the number of the last one that came here, and one.
    let mut next = [0; SIDE];
    loop {
        shared.add(Count::Tried, who);
        let got = match random.below(8) {
            0 => queue.try_get(),
            _ => queue.get_timeout(MOMENT).await,
        };
        let item = match got {
            Ok(item) => item,
            Err(error) if error.is_empty() => {
                shared.add(Count::Known, who);
                if shared.over.get() == 2 {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let (producer, number) = (item.producer, item.number);
        let (word, bit) = Shared::word(producer, number);
        let before = shared.arrived.fetch_update(word, |bits| Some(bits | bit)).unwrap();
        assert!(before & bit == 0, "twice: {number} of {producer}");
        assert!(number >= next[producer], "{number} of {producer} comes after {}", next[producer]);
        next[producer] = number + 1;
        shared.add(Count::Got, who);
        shared.add(Count::Known, who);
        item.assert_whole(&shared.sizes);
        if let Kind::Joinable(queue) = &shared.kind {
            shared.add(Count::Acknowledging, who);
            queue.task_done()?;
            shared.add(Count::Acknowledged, who);
        }
    }
}

/// Items of which it is not known whether they were put: of one who puts and was killed.
struct Doubt {
    producer: usize,
    numbers: Range<u64>,
}

/// What killed ones had in hand.
#[derive(Default)]
struct InHand {
    doubts: Vec<Doubt>,
    /// Of those who get.
    tries: u64,
}

impl InHand {
    fn of_killed(&mut self, shared: &Shared, worker: usize) {
        let who = worker % SIDE;
        if worker < SIDE {
            let [begun, put, flushed] =
                [Count::Begun, Count::Put, Count::Flushed].map(|count| shared.get(count, who));
            assert!(begun - put <= 1 && put - flushed <= BATCH, "{begun} {put} {flushed}");
            self.doubts.push(Doubt { producer: who, numbers: flushed..begun });
            shared.set(Count::Put, who, begun);
            shared.set(Count::Flushed, who, begun);
        } else {
            let (tried, known) = (shared.get(Count::Tried, who), shared.get(Count::Known, who));
            assert!(tried - known <= 1);
            self.tries += tried - known;
            shared.set(Count::Known, who, tried);
        }
    }
}

/// Looks again and again whether something was got, and says for how long at most nothing was.
async fn longest_pause(shared: Shared) -> Duration {
    let (mut got, mut looks, mut longest) = (0, 0, 0);
    while shared.over.get() == 0 {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = shared.sum(Count::Got);
        // Looks, and not time: where this process has no turn nobody may have one.
        looks = if now == got { looks + 1 } else { 0 };
        (got, longest) = (now, longest.max(looks));
    }
    LOOK_EVERY * longest
}

fn seconds() -> u64 {
    std::env::var("TOKIO_MULTIPROCESS_STORM_SECONDS").map_or(1, |seconds| seconds.parse().unwrap())
}

/// Runs a storm for so long, and at least until so many items were got.
async fn storm(context: &mp::Context, shared: &Shared, time: Duration, items: u64) {
    let mut random = Random::new();
    let start = async |worker: usize, seed| {
        let (shared, who) = (shared.clone(), worker % SIDE);
        let process = if worker < SIDE {
            context.process(put, (shared, who, seed))
        } else {
            context.process(get, (shared, who, seed))
        };
        process.daemon(true).start().await.unwrap()
    };
    let mut workers = Vec::new();
    for worker in 0..2 * SIDE {
        workers.push(start(worker, random.next()).await);
    }
    let watcher = tokio::spawn(longest_pause(shared.clone()));
    let (begin, mut kills, mut in_hand) = (Instant::now(), 0, InHand::default());
    while begin.elapsed() < time || shared.sum(Count::Got) < items {
        tokio::time::sleep(KILL_EVERY).await;
        let worker = random.below(2 * SIDE as u64) as usize;
        kill_9(workers[worker].pid());
        let status = workers[worker].join().await.unwrap();
        assert_eq!(status.signal(), Some(9), "a worker ended by itself: {status:?}");
        in_hand.of_killed(shared, worker);
        workers[worker] = start(worker, random.next()).await;
        kills += 1;
    }
    let took = begin.elapsed();
    for over in [1, 2] {
        shared.over.set(over);
        for worker in workers.drain(..SIDE) {
            let status = worker.join().await.unwrap();
            assert!(status.success(), "{status:?}");
        }
    }
    let pause = watcher.await.unwrap();
    let got = shared.sum(Count::Got);
    eprintln!("{got} items in {took:.1?} and {kills} kills, longest pause {pause:?}");
    assert!(got > 0 && pause < LONGEST, "{pause:?}");
    let lost = count_lost(shared, &in_hand);
    assert_all_is_as_it_was(shared, lost).await;
}

/// How many items were lost by those who got them, at least and at most.
fn count_lost(shared: &Shared, in_hand: &InHand) -> RangeInclusive<u64> {
    let missing = |producer, numbers: Range<u64>| {
        numbers.filter(|&number| !shared.has_arrived(producer, number)).count() as u64
    };
    let all = (0..SIDE).map(|producer| missing(producer, 0..shared.get(Count::Begun, producer))).sum();
    // Whoever dies while it puts takes the last ones along.
    let not_put = in_hand.doubts.iter().map(|Doubt { producer, numbers }| {
        let last = numbers.clone().rev().find(|&number| shared.has_arrived(*producer, number));
        numbers.end - last.map_or(numbers.start, |last| last + 1)
    });
    let not_put: u64 = not_put.sum();
    eprintln!(
        "missing: {all}; {not_put} of them not put, or got, by who was killed, and {} got by {} who were killed",
        all - not_put,
        in_hand.tries
    );
    assert!(all - not_put <= in_hand.tries, "each of them had one in hand at most");
    all - not_put..=all
}

/// The queue is empty, all of its slots and extents are free, and what was got and not acknowledged is known.
async fn assert_all_is_as_it_was(shared: &Shared, lost: RangeInclusive<u64>) {
    let queue = shared.queue();
    assert!(queue.is_empty() && !queue.is_full(), "{queue:?}");
    if let Kind::Joinable(queue) = &shared.kind {
        let joined = tokio::time::timeout(PATIENCE, queue.join()).await;
        let left = joined.expect("nobody waits for what the dead have got").unwrap();
        let arrived: u64 = shared.arrived.to_vec().iter().map(|word| u64::from(word.count_ones())).sum();
        let least = arrived + lost.start() - shared.sum(Count::Acknowledging);
        let most = arrived + lost.end() - shared.sum(Count::Acknowledged);
        eprintln!("{left} left behind, of {least} to {most}");
        assert!((least..=most).contains(&left));
    }
    let item = |size| Item { producer: 0, number: 0, body: vec![1; size], pipe: None, blob: None };
    let slots = queue.max_size().unwrap_or(100);
    for _ in 0..slots {
        queue.try_put(item(8)).unwrap();
    }
    assert_eq!(queue.is_full(), queue.max_size().is_some());
    assert_eq!(queue.len(), slots);
    for _ in 0..slots {
        assert_eq!(queue.get_timeout(PATIENCE).await.unwrap().body.len(), 8);
    }
    let large = slots.min(EXTENTS);
    for _ in 0..large {
        queue.try_put(item(LARGE)).unwrap();
    }
    tokio::time::timeout(PATIENCE, queue.flush()).await.expect("the dead have no extents").unwrap();
    for _ in 0..large {
        assert_eq!(queue.get_timeout(PATIENCE).await.unwrap().body.len(), LARGE);
    }
    queue.shutdown().unwrap();
    assert!(matches!(queue.try_get(), Err(mp::GetError::ShutDown)));
}

#[test]
fn of_small_items_none_is_lost_but_what_the_dead_had_in_hand() {
    let items = std::env::var("TOKIO_MULTIPROCESS_STORM_ITEMS").map_or(0, |items| items.parse().unwrap());
    let _guard = guard(240 + 3 * seconds() + items / 10_000);
    for context in methods() {
        let fastest = context.start_method() == mp::StartMethod::ForkServer;
        eprintln!("start method: {}", context.start_method());
        let shared = Shared::new(
            Kind::Plain(mp::Queue::new(1000).unwrap()),
            Sizes { of: 64, large: 8..100, handles: false },
        );
        let time = Duration::from_secs(seconds()) / 3;
        multi_thread().block_on(storm(&context, &shared, time, if fastest { items } else { 0 }));
    }
}

#[test]
fn of_large_items_and_those_with_handles_none_is_lost_but_what_the_dead_had_in_hand() {
    let _guard = guard(240 + 3 * seconds());
    let sizes = Sizes { of: 8, large: 300 << 10..2 << 20, handles: true };
    let shared = Shared::new(Kind::Plain(mp::Queue::new(0).unwrap()), sizes);
    let context = mp::Context::new(mp::StartMethod::ForkServer);
    multi_thread().block_on(storm(&context, &shared, Duration::from_secs(seconds()), 0));
}

#[test]
fn what_the_dead_have_got_and_not_acknowledged_is_known() {
    let _guard = guard(240 + 3 * seconds());
    let sizes = Sizes { of: 32, large: 300 << 10..1 << 20, handles: true };
    let shared = Shared::new(Kind::Joinable(mp::JoinableQueue::new(100).unwrap()), sizes);
    let context = mp::Context::new(mp::StartMethod::ForkServer);
    multi_thread().block_on(storm(&context, &shared, Duration::from_secs(seconds()), 0));
}
