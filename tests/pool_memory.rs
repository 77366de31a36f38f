//! Limits on the memory of a pool's workers.

#![cfg(target_os = "linux")]

mod support;

use std::process::Command;

use support::{PATIENCE, eventually, processes_with, run, run_each};
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

/// The shell itself holds next to nothing; `tail` keeps a line that has no end.
#[test]
fn what_a_task_has_started_counts() {
    run(60, async {
        let pool = Pool::builder().processes(1).build().await.unwrap();
        let shell =
            |line: String| assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
        let line = "head -c 1000m /dev/zero | tail >/dev/null; sleep 1000.0625".to_owned();
        let error = pool.apply(shell, (line,)).memory_limit(64 * MIB).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        eventually("the end of all of it", || processes_with("1000.0625").is_empty()).await;
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
        let line = "setsid sh -c 'head -c 1000m /dev/zero | tail >/dev/null; sleep 1000.1875' &".to_owned();
        let error = pool.apply(leaving, (line,)).memory_limit(64 * MIB).await.unwrap_err();
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
        eventually("the end of all of it", || processes_with("1000.1875").is_empty()).await;
        pool.terminate().await.unwrap();
    });
}

/// The root of cgroup v2, if it is here and this process may make groups in it.
fn cgroups() -> Option<std::path::PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    let root = std::path::PathBuf::from(mount.split(' ').nth(1)?);
    let own = root.join(format!("pool-memory-test-{}", pid()));
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
        pool.apply(start_escapee, ("1000.125".to_owned(),)).await.unwrap();
        eventually("the escapee", || !processes_with("1000.125").is_empty()).await;
        pool.terminate().await.unwrap();
        drop(pool);
        eventually("its end", || processes_with("1000.125").is_empty()).await;
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
