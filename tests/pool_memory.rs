//! Limits on the memory of a pool's workers.

#![cfg(target_os = "linux")]

mod support;

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::StreamExt as _;
use nix::sys::resource::{Resource, setrlimit};
use support::{PATIENCE, eventually, processes_with, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Error, Pool, Ran, TaskError};

const MIB: u64 = 1 << 20;

fn pid() -> u32 {
    std::process::id()
}

/// Keeps so many bytes for good.
fn leak(bytes: u64) -> u32 {
    // Written to, or the kernel would give nothing for it.
    vec![1_u8; bytes as usize].leak();
    pid()
}

#[test]
fn a_worker_that_grows_is_replaced_between_tasks() {
    run_each(60, |context| async move {
        let pool = Pool::builder().context(context).processes(1).max_memory_per_child(256 * MIB);
        let pool = pool.build().await.unwrap();
        let first = pool.apply(pid, ()).await.unwrap();
        // Less than the limit: it stays.
        assert_eq!(pool.apply(leak, (16 * MIB,)).await.unwrap(), first);
        assert_eq!(pool.apply(pid, ()).await.unwrap(), first);
        assert_eq!(pool.apply(leak, (300 * MIB,)).await.unwrap(), first);
        eventually("another worker", || !pool.worker_pids().contains(&(first as i32))).await;
        assert_ne!(pool.apply(pid, ()).await.unwrap(), first);
        pool.terminate().await.unwrap();
    });
}

/// Whatever is in its hands when a worker asks to be replaced: each item is run once.
#[test]
fn replacing_workers_costs_no_item() {
    run(120, async {
        let pool = Pool::builder().processes(2).max_memory_per_child(64 * MIB).build().await.unwrap();
        let workers = pool.map(leak, vec![4 * MIB; 200]).await.unwrap();
        assert_eq!(workers.len(), 200);
        let distinct: std::collections::HashSet<_> = workers.iter().collect();
        assert!(distinct.len() >= 5, "{} workers leaked 800 MiB", distinct.len());
        pool.close();
        pool.join().await.unwrap();
    });
}

/// Grows until somebody puts an end to it.
fn grow() {
    let mut held = Vec::new();
    loop {
        held.push(vec![1_u8; MIB as usize]);
    }
}

#[test]
fn a_task_that_grows_past_its_limit_is_killed() {
    run_each(60, |context| async move {
        let pool =
            Pool::builder().context(context).processes(2).memory_limit(64 * MIB).build().await.unwrap();
        let beside = pool.apply(|| std::thread::sleep(PATIENCE / 100), ()).submit();
        let error = pool.apply(grow, ()).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { limit } if limit == 64 * MIB), "{error}");
        assert_eq!(error.ran(), Ran::Maybe);
        // The call's own goes before the pool's.
        let error = pool.map(|_: u8| grow(), [0]).memory_limit(32 * MIB).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { limit } if limit == 32 * MIB), "{error}");
        pool.apply(leak, (48 * MIB,)).await.unwrap();
        beside.await.unwrap();
        pool.terminate().await.unwrap();
    });
}

/// Untouched memory is nothing that a look could find.
#[test]
fn one_huge_allocation_fails_at_once() {
    run_each(60, |context| async move {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let huge = |bytes: u64| std::hint::black_box(vec![0_u8; bytes as usize]).len();
        let error = pool.apply(huge, (1024 * MIB,)).memory_limit(16 * MIB).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        // In the same worker, before and after one with a limit.
        pool.apply(huge, (1024 * MIB,)).await.unwrap();
        pool.apply(huge, (MIB,)).memory_limit(16 * MIB).await.unwrap();
        pool.apply(huge, (1024 * MIB,)).await.unwrap();
        pool.terminate().await.unwrap();
    });
}

/// Somebody may have quoted such words, or have failed under no limit in a process of its own.
#[test]
fn words_from_before_the_task_are_not_its_own() {
    run_each(60, |context| async move {
        let pool = Pool::builder().context(context).processes(1).memory_limit(64 * MIB);
        let pool = pool.build().await.unwrap();
        let talk_or_die = |dies: bool| {
            if dies {
                std::process::abort();
            }
            eprintln!("memory allocation of 1 bytes failed");
        };
        for _ in 0..20 {
            // In one go, so that the words may be read long after the second item has begun.
            let mut outcomes = pool.imap(talk_or_die, [false, true]).chunk_size(2);
            outcomes.next().await.unwrap().unwrap();
            let error = outcomes.next().await.unwrap().unwrap_err();
            assert!(matches!(error, TaskError::WorkerDied(_)), "{error}");
        }
        pool.terminate().await.unwrap();
    });
}

#[test]
fn what_was_there_before_the_task_does_not_count() {
    run_each(60, |context| async move {
        let pool = Pool::builder().context(context).processes(1).memory_limit(32 * MIB);
        let pool = pool.initializer(leak, (200 * MIB,)).build().await.unwrap();
        // Long enough for several looks.
        pool.apply(|| std::thread::sleep(PATIENCE / 200), ()).await.unwrap();
        let error = pool.apply(grow, ()).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        pool.terminate().await.unwrap();
    });
}

/// How long a `sleep` takes that no other test starts.
fn seconds(test: u32) -> String {
    format!("1000.{test}{}", pid())
}

/// The shell itself holds next to nothing; `tail` keeps a line that has no end.
#[test]
fn what_a_task_has_started_counts() {
    run(60, async {
        let pool = Pool::builder().processes(1).build().await.unwrap();
        let shell =
            |line: String| assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
        let mark = seconds(1);
        let line = format!("head -c 1000m /dev/zero | tail >/dev/null; sleep {mark}");
        let error = pool.apply(shell, (line,)).memory_limit(64 * MIB).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        eventually("the end of all of it", || processes_with(&mark).is_empty()).await;
        pool.terminate().await.unwrap();
    });
}

#[test]
fn no_memory_at_all_is_no_limit() {
    run(30, async {
        let refused = Pool::builder().max_memory_per_child(0).build().await.unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument(_)), "{refused}");
        let refused = Pool::builder().memory_limit(0).build().await.unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument(_)), "{refused}");
    });
}

/// It belongs to the worker's guardian then.
#[test]
fn what_has_left_the_task_counts_as_well() {
    run(60, async {
        let pool = Pool::builder().processes(1).build().await.unwrap();
        let leaving = |line: String| {
            assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
            std::thread::sleep(PATIENCE);
        };
        let mark = seconds(2);
        let line = format!("setsid sh -c 'head -c 1000m /dev/zero | tail >/dev/null; sleep {mark}' &");
        let error = pool.apply(leaving, (line,)).memory_limit(64 * MIB).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        eventually("the end of all of it", || processes_with(&mark).is_empty()).await;
        pool.terminate().await.unwrap();
    });
}

/// Leaves this process without a free descriptor.
fn use_up_descriptors() -> Vec<std::fs::File> {
    let most = 100;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect()
}

/// Nor do the limits of later tasks.
#[test]
fn a_limit_needs_no_descriptor_in_the_worker() {
    run_each(60, |context| async move {
        let pool = Pool::builder().context(context).processes(1).memory_limit(32 * MIB);
        let pool = pool.max_memory_per_child(300 * MIB).build().await.unwrap();
        let exhaust = || {
            std::mem::forget(use_up_descriptors());
            pid()
        };
        let huge = |bytes: u64| std::hint::black_box(vec![0_u8; bytes as usize]).len();
        pool.apply(exhaust, ()).await.unwrap();
        let error = pool.apply(huge, (1024 * MIB,)).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        pool.apply(exhaust, ()).await.unwrap();
        let error = pool.apply(grow, ()).memory_limit(128 * MIB).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        let first = pool.apply(exhaust, ()).await.unwrap();
        pool.apply(leak, (350 * MIB,)).memory_limit(500 * MIB).await.unwrap();
        eventually("another worker", || !pool.worker_pids().contains(&(first as i32))).await;
        pool.terminate().await.unwrap();
    });
}

/// Without a descriptor it cannot see how much there is below it ahead of a task.
#[test]
fn a_worker_that_cannot_look_below_it_is_replaced() {
    run(60, async {
        let pool = Pool::builder().processes(1).build().await.unwrap();
        let exhaust = |seconds: String| {
            let child = Command::new("sleep").arg(seconds).spawn().unwrap();
            std::mem::forget((child, use_up_descriptors()));
            pid()
        };
        let first = pool.apply(exhaust, (seconds(4),)).await.unwrap();
        pool.apply(|| (), ()).memory_limit(64 * MIB).await.unwrap();
        eventually("another worker", || !pool.worker_pids().contains(&(first as i32))).await;
        pool.terminate().await.unwrap();
    });
}

/// It is no reason either to go on making groups.
#[test]
fn a_pool_without_descriptors_makes_no_groups() {
    let Some(path) = cgroups() else {
        return eprintln!("skipped: no cgroup v2 in which this process may make groups");
    };
    async fn child(path: std::path::PathBuf) {
        let hoard = use_up_descriptors();
        let refused = Pool::builder().processes(1).cgroup(&path).build().await.unwrap_err();
        assert!(matches!(refused, Error::Io(_)), "{refused}");
        assert_eq!(groups_in_use(&path), 0);
        drop(hoard);
        let pool = Pool::builder().processes(1).cgroup(&path).build().await.unwrap();
        // To die and to be told of takes none.
        let hoard = use_up_descriptors();
        let error =
            pool.apply(std::thread::sleep, (10 * PATIENCE,)).timeout(PATIENCE / 100).await.unwrap_err();
        assert!(matches!(error, TaskError::TimedOut), "{error}");
        drop(hoard);
        pool.terminate().await.unwrap();
    }
    run(60, async {
        let child = mp::Process::builder(child, (path.clone(),)).start().await.unwrap();
        assert_eq!(child.join().await.unwrap().exit_code(), 0);
        std::fs::remove_dir(&path).unwrap();
    });
}

/// Counted without a descriptor: each directory below is a link.
fn groups_in_use(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).unwrap().nlink() - 2
}

/// The root of cgroup v2, if it is here and this process may make groups in it.
fn cgroups() -> Option<std::path::PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    let root = std::path::PathBuf::from(mount.split(' ').nth(1)?);
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let own = root.join(format!("pool-memory-test-{}-{number}", pid()));
    std::fs::create_dir(&own).ok().map(|()| own)
}

fn groups_in(path: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Starts what leaves the worker's process group and session at once, and goes on.
fn start_escapee(seconds: String) {
    let line = format!("setsid sleep {seconds} &");
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
}

#[test]
fn a_worker_s_group_dies_with_it_and_is_removed() {
    run_each(60, |context| async move {
        let Some(path) = cgroups() else {
            return eprintln!("skipped: no cgroup v2 in which this process may make groups");
        };
        let pool = Pool::builder().context(context).processes(2).cgroup(&path).memory_limit(64 * MIB);
        let pool = pool.build().await.unwrap();
        pool.ready().await.unwrap();
        assert_eq!(groups_in(&path).len(), 2);
        let own = || std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let group = pool.apply(own, ()).await.unwrap();
        assert!(group.contains("tokio-multiprocess-") && own() != group, "{group}");
        // The limit holds with whatever controllers there are.
        let error = pool.apply(grow, ()).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        let mark = seconds(3);
        pool.apply(start_escapee, (mark.clone(),)).await.unwrap();
        eventually("the escapee", || !processes_with(&mark).is_empty()).await;
        pool.terminate().await.unwrap();
        drop(pool);
        eventually("its end", || processes_with(&mark).is_empty()).await;
        eventually("the groups' removal", || groups_in(&path).is_empty()).await;
        std::fs::remove_dir(&path).unwrap();
    });
}

#[test]
fn a_directory_that_is_no_group_is_refused() {
    run(30, async {
        let refused = Pool::builder().cgroup("/").build().await.unwrap_err();
        assert!(refused.to_string().contains("cgroup"), "{refused}");
    });
}
