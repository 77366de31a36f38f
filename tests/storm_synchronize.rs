//! A storm over all that synchronises: eight processes use everything at random, while every 10 ms one of them
//! is killed and replaced. Short by default; `TOKIO_MULTIPROCESS_STORM_SECONDS` says how long it rages, all
//! start methods together, and `TOKIO_MULTIPROCESS_STORM_SEED` repeats one.

#![cfg(target_os = "linux")]

mod support;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use support::{Random, kill_9, run_each};
use tokio_multiprocess as mp;

const WORKERS: usize = 8;
const KILL_EVERY: Duration = Duration::from_millis(10);
/// How long anybody waits at most for what others hold, whoever dies.
const LONGEST: Duration = Duration::from_secs(1);
/// How long who waits for something that may not come does so.
const MOMENT: Duration = Duration::from_millis(5);

/// What excludes others, each with a counter of its own.
const EXCLUSIVE: [&str; 4] = ["Lock", "RLock", "Semaphore", "Condition"];
const LOCK: usize = 0;
const RLOCK: usize = 1;
const SEMAPHORE: usize = 2;
const CONDITION: usize = 3;

#[derive(Clone, Serialize, Deserialize)]
struct Shared {
    lock: mp::Lock,
    rlock: mp::RLock,
    semaphore: mp::Semaphore,
    condition: mp::Condition,
    event: mp::Event,
    barrier: mp::Barrier,
    /// How often something was counted under each.
    totals: mp::RawArray<u64>,
    /// For each and each worker, how often it began to count, and how often it had counted.
    begun: mp::RawArray<u64>,
    done: mp::RawArray<u64>,
    /// How long anybody had to wait for each, in µs.
    longest: mp::RawArray<u64>,
}

impl Shared {
    fn new() -> Self {
        let array = |len| mp::RawArray::new(len).unwrap();
        let slots = EXCLUSIVE.len() * WORKERS;
        Self {
            lock: mp::Lock::new().unwrap(),
            rlock: mp::RLock::new().unwrap(),
            semaphore: mp::Semaphore::new(1).unwrap(),
            condition: mp::Condition::new(mp::Lock::new().unwrap()).unwrap(),
            event: mp::Event::new().unwrap(),
            barrier: mp::Barrier::new(2).unwrap(),
            totals: array(EXCLUSIVE.len()),
            begun: array(slots),
            done: array(slots),
            longest: array(EXCLUSIVE.len()),
        }
    }

    /// Counts in a way that loses count if anybody else does so at the same time. The worker says before what it
    /// is going to do, and after that it has done it.
    fn count(&self, what: usize, worker: usize) {
        let slot = what * WORKERS + worker;
        self.begun.set(slot, self.begun.get(slot) + 1);
        let total = self.totals.get(what);
        std::hint::spin_loop();
        self.totals.set(what, total + 1);
        self.done.set(slot, self.done.get(slot) + 1);
    }

    fn waited(&self, what: usize, since: Instant) {
        let took = since.elapsed().as_micros() as u64;
        let _ = self.longest.fetch_update(what, |longest| (took > longest).then_some(took));
    }

    async fn use_one(&self, worker: usize, random: &mut Random) -> mp::Result<()> {
        let begin = Instant::now();
        // Mostly what excludes others and lets them in again at once.
        match if random.below(16) > 0 { random.below(3) } else { 3 + random.below(3) } {
            0 => {
                let _guard = self.lock.acquire().await?;
                self.waited(LOCK, begin);
                self.count(LOCK, worker);
            }
            1 => {
                let guard = self.rlock.acquire().await?;
                let _again = guard.reenter()?;
                self.waited(RLOCK, begin);
                self.count(RLOCK, worker);
            }
            2 => {
                let _permit = self.semaphore.acquire().await?;
                self.waited(SEMAPHORE, begin);
                self.count(SEMAPHORE, worker);
            }
            3 => {
                let guard = self.condition.lock().await?;
                self.waited(CONDITION, begin);
                self.count(CONDITION, worker);
                match random.below(3) {
                    0 => drop(guard.wait_timeout(MOMENT).await?),
                    1 => drop(guard.notify(1)?),
                    _ => drop(guard.notify_all()?),
                }
            }
            4 => match random.below(3) {
                0 => drop(self.event.wait_timeout(MOMENT).await?),
                1 => self.event.set()?,
                _ => self.event.clear()?,
            },
            _ => match self.barrier.wait_timeout(MOMENT).await {
                Err(error) if error.is_broken_barrier() || error.is_timeout() => self.barrier.reset()?,
                passed => drop(passed?),
            },
        }
        Ok(())
    }
}

async fn work(shared: Shared, worker: usize, seed: u64) -> mp::Result<()> {
    let mut random = Random::from_seed(seed);
    loop {
        shared.use_one(worker, &mut random).await?;
    }
}

#[test]
fn everything_goes_on_whoever_is_killed() {
    let seconds = std::env::var("TOKIO_MULTIPROCESS_STORM_SECONDS").map_or(3, |s| s.parse().unwrap());
    run_each(120 + 2 * seconds, async |context| {
        let mut random = Random::new();
        let shared = Shared::new();
        let mut lost = [0; EXCLUSIVE.len()];
        let start = async |worker: usize, seed| {
            context.process(work, (shared.clone(), worker, seed)).daemon(true).start().await.unwrap()
        };
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            workers.push(start(worker, random.next()).await);
        }
        let (begin, mut kills) = (Instant::now(), 0);
        let mut killed = async |worker: usize, process: &mp::Process| {
            kill_9(process.pid());
            let status = process.join().await.unwrap();
            assert_eq!(status.signal(), Some(9), "a worker ended by itself: {status:?}");
            for (what, lost) in lost.iter_mut().enumerate() {
                let slot = what * WORKERS + worker;
                let (begun, done) = (shared.begun.get(slot), shared.done.get(slot));
                assert!(begun - done <= 1);
                *lost += begun - done;
                shared.done.set(slot, begun);
            }
        };
        while begin.elapsed() < Duration::from_secs(seconds) / 3 {
            tokio::time::sleep(KILL_EVERY).await;
            let worker = random.below(WORKERS as u64) as usize;
            killed(worker, &workers[worker]).await;
            workers[worker] = start(worker, random.next()).await;
            kills += 1;
        }
        for (worker, process) in workers.iter().enumerate() {
            killed(worker, process).await;
        }

        for (what, name) in EXCLUSIVE.into_iter().enumerate() {
            let begun: u64 = shared.begun.read(what * WORKERS..(what + 1) * WORKERS).iter().sum();
            let (total, longest) = (shared.totals.get(what), shared.longest.get(what));
            eprintln!("{name}: {total} in {kills} kills, {} lost, longest wait {longest} µs", begun - total);
            assert!(total > 0 && total <= begun && begun - total <= lost[what], "{name}: {lost:?}");
            assert!(longest < LONGEST.as_micros() as u64, "{name}: {longest} µs");
        }
        // Everything is as it was, and can be used.
        drop(shared.lock.acquire().await.unwrap());
        drop(shared.rlock.acquire().await.unwrap());
        drop(shared.semaphore.acquire().await.unwrap());
        assert_eq!(shared.semaphore.value(), 1);
        let (guard, notified) = shared.condition.lock().await.unwrap().wait_timeout(MOMENT).await.unwrap();
        drop((guard, notified));
        shared.event.set().unwrap();
        assert!(shared.event.wait_timeout(Duration::ZERO).await.unwrap());
        shared.barrier.reset().unwrap();
        let both = tokio::join!(shared.barrier.wait(), shared.barrier.wait());
        assert_eq!(both.0.unwrap() + both.1.unwrap(), 1);
    });
}
