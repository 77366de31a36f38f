//! Storms: workers killed at random instants, calls given up at random instants, pools by the
//! hundred. Short by default; `TOKIO_MULTIPROCESS_STORM_SECONDS` says how long each test rages, all
//! start methods together, and `TOKIO_MULTIPROCESS_STORM_SEED` repeats one.

#![cfg(target_os = "linux")]

mod support;

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use support::{Notebook, Random, eventually, methods, note, run};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Pool, Ran, TaskError};

/// How long a storm goes on; none for the short one, which is a fixed amount of work.
fn storm_time() -> Option<Duration> {
    let seconds = std::env::var("TOKIO_MULTIPROCESS_STORM_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("a number of seconds")))
}

/// Rounds until a start method's part of the time is over, but at least one.
fn rounds() -> impl Iterator<Item = u32> {
    let (begin, time) = (Instant::now(), storm_time().unwrap_or_default() / 3);
    (0..).take_while(move |round| *round == 0 || begin.elapsed() < time)
}

/// Time for a storm beyond its own.
fn watchdog() -> u64 {
    120 + 3 * storm_time().unwrap_or_default().as_secs()
}

/// Kills a worker at random every so often, until it is dropped.
struct Killer {
    stop: Arc<AtomicBool>,
    kills: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Killer {
    fn start(pool: &Pool, every: Duration, mut random: Random) -> Self {
        let (stop, kills) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (pool, stopped, counter) = (pool.clone(), stop.clone(), kills.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                std::thread::sleep(every);
                let pids = pool.worker_pids();
                if !pids.is_empty() {
                    support::kill_9(pids[random.below(pids.len() as u64) as usize]);
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { stop, kills, thread: Some(thread) }
    }

    fn kills(&self) -> usize {
        self.kills.load(Ordering::SeqCst)
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

const TASKS: u64 = 2000;
const KILL_EVERY: Duration = Duration::from_millis(5);

/// Some work, so that a kill finds somebody at it.
fn work(x: u64, notebook: String) -> u64 {
    note(&notebook, x);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_micros(300) {
        std::hint::spin_loop();
    }
    x * x
}

async fn four(context: &mp::Context) -> Pool {
    Pool::builder().context(context.clone()).processes(4).build().await.unwrap()
}

#[test]
fn workers_die_and_each_task_is_answered() {
    run(watchdog(), async {
        for context in methods() {
            for _ in rounds() {
                let (pool, notebook) = (four(&context).await, Notebook::new());
                let killer = Killer::start(&pool, KILL_EVERY, Random::new());
                let results: Vec<_> =
                    (0..TASKS).map(|x| pool.apply(work, (x, notebook.path())).submit()).collect();
                let mut died = 0;
                for (x, result) in (0..).zip(results) {
                    match result.await {
                        Ok(value) => assert_eq!(value, x * x),
                        Err(error @ TaskError::WorkerDied(_)) => {
                            assert_eq!(error.ran(), Ran::Maybe);
                            died += 1;
                        }
                        Err(other) => panic!("{x}: {other:?}"),
                    }
                }
                eprintln!("{}: {} kills, {died} tasks died", context.start_method(), killer.kills());
                assert!(died <= killer.kills());
                drop(killer);
                // What was answered was run once, and nothing twice.
                notebook.assert_no_repetition();
                pool.close();
                pool.join().await.unwrap();
            }
        }
    });
}

#[test]
fn workers_die_and_with_retries_all_return() {
    run(watchdog(), async {
        for context in methods() {
            for round in rounds() {
                let (pool, notebook) = (four(&context).await, Notebook::new());
                let killer = Killer::start(&pool, KILL_EVERY, Random::new());
                let path = notebook.path();
                let items = move || {
                    let path = path.clone();
                    (0..TASKS).map(move |x| (x, path.clone()))
                };
                let expected: Vec<u64> = (0..TASKS).map(|x| x * x).collect();
                let values: Vec<u64> = match round % 3 {
                    0 => {
                        let call = |(x, path)| pool.apply(work, (x, path)).retries(1000).submit();
                        let results: Vec<_> = items().map(call).collect();
                        futures::future::try_join_all(results).await.unwrap()
                    }
                    1 => pool.starmap(work, items()).retries(1000).await.unwrap(),
                    _ => {
                        let stream = pool.imap(|(x, path): (u64, String)| work(x, path), items());
                        futures::TryStreamExt::try_collect(stream.chunk_size(7).retries(1000)).await.unwrap()
                    }
                };
                assert_eq!(values, expected);
                eprintln!(
                    "{}: {} kills, {} runs",
                    context.start_method(),
                    killer.kills(),
                    notebook.notes().len()
                );
                assert!(notebook.notes().len() <= TASKS as usize + killer.kills());
            }
        }
    });
}

#[test]
fn workers_die_and_what_they_started_dies_too() {
    fn start_sleep(x: u64, marker: String) -> u64 {
        drop(Command::new("sh").args(["-c", &format!("sleep 600; true {marker}")]).spawn().unwrap());
        x
    }
    run(watchdog(), async {
        for context in methods() {
            for _ in rounds() {
                let pool = four(&context).await;
                let killer = Killer::start(&pool, KILL_EVERY, Random::new());
                let marker = format!("storm-{}-{}", std::process::id(), context.start_method());
                // Each leaves two processes, so the short storm is for fewer tasks.
                let tasks = if storm_time().is_some() { TASKS } else { TASKS / 5 };
                let calls =
                    (0..tasks).map(|x| pool.apply(start_sleep, (x, marker.clone())).retries(1000).submit());
                for (x, result) in (0..).zip(calls.collect::<Vec<_>>()) {
                    assert_eq!(result.await.unwrap(), x);
                }
                eprintln!("{}: {} kills", context.start_method(), killer.kills());
                drop(killer);
                pool.close();
                pool.join().await.unwrap();
                eventually("no sleeper", || support::processes_with(&marker).is_empty()).await;
            }
        }
    });
}

/// Kept in kB: what this process has in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn hundreds_of_pools_leave_nothing() {
    let pools = async |context: &mp::Context, count: u64| {
        for i in 0..count {
            let pool = Pool::builder().context(context.clone()).processes(2).build().await.unwrap();
            assert_eq!(pool.apply(|x: u64| x + 1, (i,)).await.unwrap(), i + 1);
            match i % 3 {
                0 => {
                    pool.close();
                    pool.join().await.unwrap();
                }
                1 => pool.terminate().await.unwrap(),
                _ => drop(pool),
            }
        }
    };
    run(watchdog(), async {
        for context in methods() {
            for round in rounds() {
                // The allocator and the kernel have their own ideas at first.
                pools(&context, 20).await;
                let before = resident();
                pools(&context, 100).await;
                eventually("no children but the fork server", || support::children().len() <= 1).await;
                let after = resident();
                eprintln!("{round}, {}: {before} kB, then {after} kB", context.start_method());
                assert!(after < before + 4096, "{before} kB grew to {after} kB");
            }
        }
    });
}

/// Every kind of call, given up at random instants, with and without its worker: the pool goes on,
/// and what nobody gave up comes.
#[test]
fn calls_are_given_up() {
    run(watchdog(), async {
        for context in methods() {
            for _ in rounds() {
                let (pool, notebook) = (four(&context).await, Notebook::new());
                let mut random = Random::new();
                let (mut kept, mut left) = (FuturesUnordered::new(), 0);
                for x in 0..600u64 {
                    let patience = Duration::from_micros(random.below(3000));
                    let kill = random.below(3) == 0;
                    let key = 1000 * x;
                    let path = notebook.path();
                    let items = (key..key + 20).zip(std::iter::repeat(path.clone()));
                    let given_up = match random.below(5) {
                        0 => {
                            let call = pool.apply(work, (key, path));
                            let call = if kill { call.kill_on_drop() } else { call };
                            tokio::time::timeout(patience, call).await.map(drop).is_err()
                        }
                        1 => {
                            let call = pool.apply(work, (key, path));
                            let result = if kill { call.kill_on_drop() } else { call }.submit();
                            tokio::time::timeout(patience, result).await.map(drop).is_err()
                        }
                        2 => {
                            let call = pool.starmap(work, items).chunk_size(1 + random.below(7) as usize);
                            let call = if kill { call.kill_on_drop() } else { call };
                            tokio::time::timeout(patience, call).await.map(drop).is_err()
                        }
                        3 => {
                            let stream = pool.imap(|(x, path): (u64, String)| work(x, path), items);
                            let stream = stream.chunk_size(1 + random.below(7) as usize);
                            let mut stream = if kill { stream.kill_on_drop() } else { stream };
                            let end = async {
                                // Others' deaths are none of its own: but an abort by a neighbour
                                // would be.
                                while let Some(result) = stream.next().await {
                                    result.unwrap();
                                }
                            };
                            tokio::time::timeout(patience, end).await.is_err()
                        }
                        _ => {
                            kept.push(pool.apply(work, (key, path)).submit());
                            false
                        }
                    };
                    left += usize::from(given_up);
                }
                while let Some(result) = kept.next().await {
                    result.unwrap();
                }
                eprintln!("{}: {left} given up, {} runs", context.start_method(), notebook.notes().len());
                notebook.assert_no_repetition();
                assert_eq!(pool.map(|x: u64| x + 1, 0..100).await.unwrap()[99], 100);
                assert_eq!(pool.processes(), 4);
                eventually("four workers", || pool.worker_pids().len() == 4).await;
                pool.close();
                pool.join().await.unwrap();
            }
        }
    });
}

/// All of it at a time: deaths, timeouts, short lives, withdrawals, retries. Each item is answered
/// once, and begun no more often than it may be.
#[test]
fn everything_at_once() {
    const RETRIES: u32 = 3;
    fn task(x: u64, notebook: String) -> u64 {
        note(&notebook, x);
        match x % 17 {
            3 => support::kill_9(std::process::id() as i32),
            5 => loop {
                std::hint::spin_loop();
            },
            7 => panic!("on purpose"),
            _ => {}
        }
        x
    }
    run(watchdog(), async {
        for context in methods() {
            for _ in rounds() {
                let builder = Pool::builder().context(context.clone()).processes(4);
                let pool = builder.max_tasks_per_child(40).build().await.unwrap();
                let notebook = Notebook::new();
                let mut random = Random::new();
                let killer = Killer::start(&pool, Duration::from_millis(20), Random::new());
                let mut calls = Vec::new();
                for x in 0..400u64 {
                    let call = pool.apply(task, (x, notebook.path()));
                    let call =
                        call.timeout(Duration::from_millis(30)).retries(if x % 2 == 0 { 0 } else { RETRIES });
                    let result = call.submit();
                    if random.below(10) == 0 {
                        result.abort();
                    }
                    calls.push(result);
                }
                for (x, result) in (0..).zip(calls) {
                    match result.await {
                        Ok(value) => assert!(value == x && ![3, 5, 7].contains(&(x % 17))),
                        Err(TaskError::Panicked(panic)) => {
                            assert!(x % 17 == 7 && panic.message == "on purpose")
                        }
                        Err(TaskError::WorkerDied(_) | TaskError::TimedOut | TaskError::Aborted { .. }) => {}
                        Err(other) => panic!("{x}: {other:?}"),
                    }
                }
                drop(killer);
                let mut runs = HashMap::new();
                for x in notebook.notes() {
                    *runs.entry(x.parse::<u64>().unwrap()).or_insert(0u32) += 1;
                }
                for (x, runs) in runs {
                    assert!(runs <= if x % 2 == 0 { 1 } else { 1 + RETRIES }, "{x} was begun {runs} times");
                }
                assert_eq!(pool.apply(|x: u64| x, (5,)).retries(3).await.unwrap(), 5);
            }
        }
    });
}
