//! Limits on the memory of a pool's workers.

#![cfg(target_os = "linux")]

mod support;

use support::{eventually, run, run_each};
use tokio_multiprocess::{Error, Pool};

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

#[test]
fn no_memory_at_all_is_no_limit() {
    run(30, async {
        let refused = Pool::builder().max_memory_per_child(0).build().await.unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument(_)), "{refused}");
    });
}
