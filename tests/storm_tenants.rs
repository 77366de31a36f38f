//! The storm that a service meets: three tenants share a pool, and two of them send whatever can go
//! wrong. Short by default; `TOKIO_MULTIPROCESS_STORM_SECONDS` says how long it rages, all start
//! methods together, and `TOKIO_MULTIPROCESS_STORM_SEED` repeats one.

#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_bytes::ByteBuf;
use support::{Random, eventually, processes_with, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Pool, TaskError};

const MIB: usize = 1 << 20;
const LARGE: usize = 64 * MIB;
const LIMIT: u64 = 256 << 20;
const TIMEOUT: Duration = Duration::from_millis(150);
/// How many tasks each tenant has in the pool at any time: enough to be backlogged.
const BACKLOG: usize = 8;

/// How long each phase goes on for one start method.
fn phase() -> Duration {
    let seconds = std::env::var("TOKIO_MULTIPROCESS_STORM_SECONDS").ok();
    let seconds = seconds.map_or(12, |seconds| seconds.parse::<u64>().expect("a number of seconds"));
    Duration::from_secs(seconds) / 12
}

/// Takes a worker's time and hardly a processor's: on a machine with few of these it is the pool
/// that is measured. Gives how much it took, in nanoseconds.
fn good() -> u64 {
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(4));
    begin.elapsed().as_nanos() as u64
}

/// What a bad tenant's task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
enum Evil {
    Panic,
    Abort,
    Overflow,
    Leak,
    Loop,
    Escape,
    Flood,
    Large,
}

const EVILS: [Evil; 8] = [
    Evil::Panic,
    Evil::Abort,
    Evil::Overflow,
    Evil::Leak,
    Evil::Loop,
    Evil::Escape,
    Evil::Flood,
    Evil::Large,
];

#[allow(unconditional_recursion, reason = "that is the point")]
fn overflow(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 64]);
    overflow(depth + 1) + room[depth as usize % 64]
}

/// `mark` is how long the escapees sleep: no other process has that in its command line.
#[allow(clippy::zombie_processes, reason = "that is the point as well")]
fn bad(evil: Evil, mark: String) -> ByteBuf {
    match evil {
        Evil::Panic => panic!("on purpose"),
        Evil::Abort => std::process::abort(),
        Evil::Overflow => ByteBuf::from([overflow(0) as u8]),
        Evil::Leak => loop {
            std::mem::forget(std::hint::black_box(vec![1u8; MIB]));
            std::thread::sleep(Duration::from_micros(200));
        },
        Evil::Escape => {
            // One leaves the session, the other its parents as well.
            Command::new("setsid").args(["sleep", &mark]).spawn().unwrap();
            let twice = format!("(setsid sleep {mark} &) &");
            Command::new("sh").args(["-c", &twice]).status().unwrap();
            loop {
                std::hint::spin_loop();
            }
        }
        Evil::Loop => loop {
            std::hint::spin_loop();
        },
        Evil::Flood => loop {
            eprintln!("{}", "all work and no play makes a pool a dull pool ".repeat(20));
        },
        Evil::Large => ByteBuf::from(vec![7; LARGE]),
    }
}

/// Each has the error that it deserves, and no other.
fn judge(evil: Evil, result: Result<ByteBuf, TaskError>) {
    let signal = |error: &TaskError| match error {
        TaskError::WorkerDied(died) => died.exit.signal(),
        _ => None,
    };
    match (evil, result) {
        (Evil::Panic, Err(TaskError::Panicked(panic))) => assert_eq!(panic.message, "on purpose"),
        (Evil::Abort, Err(error)) if signal(&error) == Some(Signal::SIGABRT as i32) => {}
        (Evil::Overflow, Err(TaskError::WorkerDied(died))) => {
            assert!(died.exit.stack_overflow(), "{died:?}");
        }
        (Evil::Leak, Err(TaskError::MemoryLimit { limit })) => assert_eq!(limit, LIMIT),
        (Evil::Loop | Evil::Escape | Evil::Flood, Err(TaskError::TimedOut)) => {}
        (Evil::Large, Ok(value)) => assert!(value.len() == LARGE && value[LARGE - 1] == 7),
        (evil, result) => panic!("{evil:?}: {:?}", result.map(|value| value.len())),
    }
}

/// Keeps the good tenant's tasks in the pool until told to stop, and adds up the workers' time that
/// they had, in nanoseconds.
async fn good_tenant(pool: &Pool, stop: &AtomicBool, had: &AtomicU64) {
    let lanes = (0..BACKLOG).map(|_| async {
        while !stop.load(Ordering::Relaxed) {
            had.fetch_add(pool.apply(good, ()).key("good").await.unwrap(), Ordering::Relaxed);
        }
    });
    futures::future::join_all(lanes).await;
}

async fn bad_tenant(pool: &Pool, key: &str, seed: u64, mark: &str, stop: &AtomicBool) -> BTreeMap<Evil, u64> {
    let lanes = (0..BACKLOG as u64).map(|lane| async move {
        let mut random = Random::from_seed(seed ^ (lane << 7));
        let mut counts = BTreeMap::<Evil, u64>::new();
        while !stop.load(Ordering::Relaxed) {
            let evil = EVILS[random.below(EVILS.len() as u64) as usize];
            let call = pool.apply(bad, (evil, mark.to_owned())).key(key).memory_limit(LIMIT);
            let endless = matches!(evil, Evil::Loop | Evil::Escape | Evil::Flood);
            // The others come to their own end, on a busy machine late.
            let timeout = if endless { TIMEOUT } else { support::PATIENCE };
            judge(evil, call.timeout(timeout).await);
            *counts.entry(evil).or_default() += 1;
        }
        counts
    });
    let mut all = BTreeMap::<Evil, u64>::new();
    for (evil, count) in futures::future::join_all(lanes).await.into_iter().flatten() {
        *all.entry(evil).or_default() += count;
    }
    all
}

/// Stops all after a phase; gives how many workers the good tenant had on average in the last four
/// fifths of it. Before that the pool knows nothing of what it is given.
async fn for_a_phase(stop: &AtomicBool, had: &AtomicU64) -> f64 {
    tokio::time::sleep(phase() / 5).await;
    let (begin, before) = (Instant::now(), had.load(Ordering::Relaxed));
    tokio::time::sleep(phase() * 4 / 5).await;
    stop.store(true, Ordering::Relaxed);
    (had.load(Ordering::Relaxed) - before) as f64 / begin.elapsed().as_nanos() as f64
}

/// Runs the good tenant alone, then beside the bad ones, and gives how many workers it had in each.
async fn rage(builder: mp::PoolBuilder, seeds: [u64; 2]) -> (f64, f64) {
    // Seconds that nobody else sleeps.
    let mark = format!("86399.{}", std::process::id());
    let pool = builder.processes(4).spares(2).output(mp::Output::Trace).build().await.unwrap();
    pool.ready().await.unwrap();

    let (stop, had) = (AtomicBool::new(false), AtomicU64::new(0));
    let (alone, ()) = tokio::join!(for_a_phase(&stop, &had), good_tenant(&pool, &stop, &had));

    let resident_before = resident();
    let (stop, had) = (AtomicBool::new(false), AtomicU64::new(0));
    let (beside, (), one, two) = tokio::join!(
        for_a_phase(&stop, &had),
        good_tenant(&pool, &stop, &had),
        bad_tenant(&pool, "bad", seeds[0], &mark, &stop),
        bad_tenant(&pool, "worse", seeds[1], &mark, &stop),
    );
    eprintln!("the good tenant had {alone:.2} workers alone, {beside:.2} beside {one:?} and {two:?}");

    let stats = pool.stats().unwrap();
    eprintln!("{:?}, wait {:?}, run {:?}", stats.ends, stats.wait, stats.run);
    let of = |evils: &[Evil]| -> u64 {
        evils.iter().map(|evil| one.get(evil).unwrap_or(&0) + two.get(evil).unwrap_or(&0)).sum()
    };
    assert_eq!(stats.ends.timed_out, of(&[Evil::Loop, Evil::Escape, Evil::Flood]));
    assert_eq!(stats.ends.out_of_memory, of(&[Evil::Leak]));
    assert_eq!(stats.ends.crashed, of(&[Evil::Abort, Evil::Overflow]));
    assert_eq!((stats.waiting, stats.running, stats.unrun), (0, 0, 0));

    pool.close();
    pool.join().await.unwrap();
    eventually("escaped processes are gone", || processes_with(&mark).is_empty()).await;
    assert_eq!(groups_left(), Vec::<std::path::PathBuf>::new());
    // Not one of the large results, of which there were many.
    let grown = resident().saturating_sub(resident_before);
    eprintln!("{} KiB more in memory", grown >> 10);
    assert!(grown < LARGE, "{grown} bytes more in memory");
    (alone, beside)
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Control groups of this process's workers.
fn groups_left() -> Vec<std::path::PathBuf> {
    let name = format!("tokio-multiprocess-{}-", std::process::id());
    let mut left = Vec::new();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        left.extend(
            entries.map(|entry| entry.path()).filter(|path| {
                path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(&name))
            }),
        );
    }
    left
}

/// Has a storm for each start method; gives how much the good tenant had of what it has alone.
fn storm(settings: impl Fn(mp::PoolBuilder) -> mp::PoolBuilder) -> f64 {
    let mut random = Random::new();
    let seeds = [random.next(), random.next()];
    let sums = Mutex::new((0.0, 0.0));
    run_each(180 + 4 * phase().as_secs(), |context| {
        let (builder, sums) = (settings(Pool::builder().context(context)), &sums);
        async move {
            let (alone, beside) = rage(builder, seeds).await;
            let mut sums = sums.lock().unwrap();
            *sums = (sums.0 + alone, sums.1 + beside);
        }
    });
    let (alone, beside) = sums.into_inner().unwrap();
    beside / alone
}

/// How much of its share the good tenant must get at least. A phase must be long beside a single
/// task of the others, so the short storm looks for starvation only.
fn least_share() -> f64 {
    if phase() >= Duration::from_secs(5) { 0.8 } else { 0.2 }
}

/// All three have more to do than workers can: a third of the workers' time is the good one's.
#[test]
fn a_backlogged_tenant_has_its_fair_share() {
    let share = storm(|builder| builder);
    assert!(share >= least_share() / 3.0, "{share} of what it has alone");
}

/// With a worker for each tenant at most, one that needs no more has all that it has alone.
#[test]
fn a_capped_neighbour_takes_nothing() {
    let share = storm(|builder| builder.key_limit(1));
    assert!(share >= least_share(), "{share} of what it has alone");
}
