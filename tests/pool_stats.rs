//! What a pool tells of itself, and its orderly end.

#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use support::{Notebook, eventually, note, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Health, Pool, TaskError, WorkerState};

fn square(x: u64) -> u64 {
    x * x
}

fn hold(notebook: String) {
    note(&notebook, mp::current_process().name());
    note(&notebook, "held");
    pass_gate(&notebook);
}

fn spin() {
    loop {
        std::thread::park();
    }
}

fn crash() {
    support::kill_9(std::process::id() as i32);
}

fn leave() {
    std::process::exit(3)
}

#[test]
fn what_runs_and_what_waits_is_told() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(2).name("Mill").build().await.unwrap();
        pool.ready().await.unwrap();
        let book = Notebook::new();
        let held: Vec<_> = (0..5).map(|_| pool.apply(hold, (book.path(),)).submit()).collect();
        let urgent = pool.apply(hold, (book.path(),)).priority(3).key("us").submit();
        book.wait_for("held", 2).await;
        let stats = pool.stats().unwrap();
        assert_eq!((stats.running, stats.waiting, stats.health), (2, 4, Health::Busy));
        let queues: Vec<_> =
            stats.queues.iter().map(|queue| (queue.priority, queue.key.as_deref(), queue.runs)).collect();
        assert_eq!(queues, [(3, Some("us"), 1), (0, None, 3)]);
        let mut pids = pool.worker_pids();
        for worker in &stats.workers {
            assert_eq!(worker.state, WorkerState::Running);
            assert!(worker.name.starts_with("Mill-") && worker.task.as_ref().unwrap().contains("hold"));
            assert!(worker.running_for.is_some() && worker.memory.unwrap() > 4096);
            assert_eq!(book.count(&worker.name), 1);
            pids.retain(|pid| Some(*pid) != worker.pid);
        }
        assert!(pids.is_empty());
        book.open_gate();
        for result in held {
            result.await.unwrap();
        }
        urgent.await.unwrap();
        let stats = pool.stats().unwrap();
        assert_eq!((stats.done, stats.waiting, stats.running), (6, 0, 0));
        assert_eq!((stats.wait.count, stats.run.count), (6, 6));
        assert!(stats.run.p50 <= stats.run.max && stats.run.max > Duration::ZERO);
    });
}

#[test]
fn deaths_are_counted_by_cause() {
    run(60, async {
        let pool = Pool::builder().processes(1).build().await.unwrap();
        assert!(matches!(pool.apply(crash, ()).await, Err(TaskError::WorkerDied(_))));
        assert!(matches!(pool.apply(crash, ()).retries(1).await, Err(TaskError::WorkerDied(_))));
        let late = pool.apply(spin, ()).timeout(Duration::from_millis(20)).await;
        assert!(matches!(late, Err(TaskError::TimedOut)));
        let book = Notebook::new();
        let held = pool.apply(hold, (book.path(),)).submit();
        book.wait_for("held", 1).await;
        held.abort();
        assert!(matches!(held.await, Err(TaskError::Aborted { .. })));
        assert!(matches!(pool.apply(leave, ()).await, Err(TaskError::WorkerDied(_))));
        assert_eq!(pool.map(square, 0..1_000).await.unwrap().len(), 1_000);
        let stats = pool.stats().unwrap();
        assert_eq!((stats.done, stats.failed, stats.retried, stats.restarts), (1_000, 5, 1, 6));
        let ends = stats.ends;
        assert_eq!((ends.crashed, ends.timed_out, ends.aborted, ends.exited), (3, 1, 1, 1));
        assert_eq!(stats.run.count, 1_006);
        pool.close();
        pool.join().await.unwrap();
        assert_eq!(pool.stats().unwrap().ends.regular, 1);
    });
}

/// By the kernel's clock, whatever the runtime's does; and the pool does not wait for it.
#[test]
fn a_watch_goes_on_until_the_pool_has_ended() {
    let _guard = support::guard(40);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let pool = Pool::new(1).await.unwrap();
        let mut watch = pool.watch(Duration::from_millis(5));
        assert_eq!(watch.next().await.unwrap().health, Health::Ready);
        pool.map(square, 0..100).await.unwrap();
        // What was done in between, and then nothing.
        let mut counts = Vec::new();
        while counts.last() != Some(&0) || counts.len() < 2 {
            let stats = watch.next().await.unwrap();
            counts.push(stats.run.count);
            assert_eq!(stats.done, 100);
        }
        assert_eq!(counts.iter().sum::<u64>(), 100);
        drop(pool);
        let rest: Vec<_> = watch.collect().await;
        assert_eq!(rest.last().unwrap().health, Health::Closed);
    });
}

#[test]
fn shutdown_lets_finish_what_can() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
        let results: Vec<_> = (0..20).map(|x| pool.apply(square, (x,)).submit()).collect();
        let report = pool.shutdown(Duration::from_secs(600)).await.unwrap();
        assert!(report.is_complete() && report.unfinished.is_empty(), "{report:?}");
        for (x, result) in (0..).zip(results) {
            assert_eq!(result.await.unwrap(), x * x);
        }
        assert_eq!(pool.health(), Health::Closed);
        assert!(matches!(pool.apply(square, (1,)).await, Err(TaskError::NotStarted(_))));
    });
}

#[test]
fn shutdown_ends_in_time_what_does_not() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
        pool.ready().await.unwrap();
        let book = Notebook::new();
        let held: Vec<_> = (0..2).map(|_| pool.apply(hold, (book.path(),)).submit()).collect();
        book.wait_for("held", 2).await;
        let waiting: Vec<_> = (0..3).map(|x| pool.apply(square, (x,)).submit()).collect();
        let workers = pool.worker_pids();
        let report = pool.shutdown(Duration::from_millis(50)).await.unwrap();
        assert_eq!((report.finished, report.killed, report.withdrawn), (0, 2, 3));
        assert!(!report.is_complete() && report.took >= Duration::from_millis(50));
        let name = |part: &str| report.unfinished.iter().find(|(name, _)| name.contains(part)).unwrap().1;
        assert_eq!((*name("hold"), *name("square")), (2, 3));
        assert!(!workers.into_iter().any(support::runs));
        for result in held {
            assert!(matches!(result.await, Err(TaskError::Aborted { began: true })));
        }
        for result in waiting {
            assert!(matches!(result.await, Err(TaskError::NotStarted(_))));
        }
        // Again: there is nothing left.
        assert!(pool.shutdown(Duration::ZERO).await.unwrap().is_complete());
    });
}

/// Its time is over before it has begun, and still it says so instead of hanging.
#[test]
fn shutdown_of_a_pool_whose_runtime_has_ended() {
    let _guard = support::guard(30);
    let first = support::multi_thread();
    let pool = first.block_on(Pool::new(1)).unwrap();
    drop(first);
    let report = support::current_thread().block_on(pool.shutdown(Duration::from_secs(600))).unwrap();
    assert!(report.is_complete());
}

#[test]
fn an_in_process_pool_tells_the_same() {
    run(30, async {
        let pool = Pool::builder().processes(1).in_process().build().await.unwrap();
        assert_eq!(pool.map(square, 0..10).await.unwrap().len(), 10);
        let stats = pool.stats().unwrap();
        assert_eq!((stats.done, stats.workers[0].pid, stats.workers[0].memory), (10, None, None));
        eventually("it is idle", || pool.stats().unwrap().workers[0].state == WorkerState::Idle).await;
        let unfinished: BTreeMap<String, u64> =
            pool.shutdown(Duration::from_secs(60)).await.unwrap().unfinished;
        assert!(unfinished.is_empty());
    });
}
