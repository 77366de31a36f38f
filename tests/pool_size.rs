//! How many workers a pool has: elastic, lazy, spare and fresh ones, and its health.

#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Notebook, eventually, note, pass_gate, run, run_each};
use tokio_multiprocess::{Error, Failure, Health, Pool, TaskError};

fn pid() -> i32 {
    std::process::id() as i32
}

fn hold(notebook: String) -> i32 {
    note(&notebook, "held");
    pass_gate(&notebook);
    pid()
}

fn spin() {
    loop {
        std::thread::park();
    }
}

fn pids(pool: &Pool) -> BTreeSet<i32> {
    pool.worker_pids().into_iter().collect()
}

#[test]
fn an_elastic_pool_has_as_many_workers_as_there_is_work() {
    run_each(60, async |context| {
        let pool = Pool::builder()
            .context(context)
            .processes(3)
            .min_processes(1)
            .idle_timeout(Duration::from_millis(50))
            .build()
            .await
            .unwrap();
        pool.ready().await.unwrap();
        assert_eq!((pids(&pool).len(), pool.health()), (1, Health::Ready));
        let book = Notebook::new();
        let held: Vec<_> = (0..5).map(|_| pool.apply(hold, (book.path(),)).submit()).collect();
        book.wait_for("held", 3).await;
        assert_eq!((pids(&pool).len(), pool.health()), (3, Health::Busy));
        book.open_gate();
        for result in held {
            result.await.unwrap();
        }
        eventually("the others have gone", || pids(&pool).len() == 1).await;
        let left = pids(&pool);
        assert_eq!(pool.apply(pid, ()).await.unwrap(), *left.first().unwrap());
        pool.close();
        pool.join().await.unwrap();
        assert_eq!(pool.health(), Health::Closed);
    });
}

#[test]
fn a_pool_without_a_minimum_goes_to_sleep_and_wakes_up() {
    run(30, async {
        let pool = Pool::builder()
            .processes(2)
            .min_processes(0)
            .idle_timeout(Duration::from_millis(20))
            .build()
            .await
            .unwrap();
        let first = pool.apply(pid, ()).await.unwrap();
        eventually("nobody is left", || pids(&pool).is_empty() && !support::runs(first)).await;
        assert_eq!(pool.health(), Health::Ready);
        assert_ne!(pool.apply(pid, ()).await.unwrap(), first);
    });
}

#[test]
fn a_lazy_pool_starts_with_its_first_task_or_on_demand() {
    run(30, async {
        for by_task in [true, false] {
            let pool = Pool::builder().processes(2).lazy().build().await.unwrap();
            assert!(pids(&pool).is_empty());
            assert_eq!(pool.health(), Health::Ready);
            if by_task {
                assert_eq!(pool.map(|x: u32| x + 1, 0..3).await.unwrap(), [1, 2, 3]);
            }
            pool.ready().await.unwrap();
            assert_eq!(pids(&pool).len(), 2);
        }
        let unused = Pool::builder().lazy().build().await.unwrap();
        unused.close();
        unused.join().await.unwrap();
    });
}

#[test]
fn a_spare_steps_in_at_once() {
    run_each(60, async |context| {
        let book = Notebook::new();
        let slow = |path: String| note(&path, "initialized");
        let pool = Pool::builder()
            .context(context)
            .processes(1)
            .spares(1)
            .initializer(slow, (book.path(),))
            .build()
            .await
            .unwrap();
        pool.ready().await.unwrap();
        let before = pids(&pool);
        assert_eq!(before.len(), 2);
        let late = pool.apply(spin, ()).timeout(Duration::from_millis(20)).submit();
        let next = pool.apply(pid, ()).submit();
        assert!(matches!(late.await, Err(TaskError::TimedOut)));
        // Not one that had to be started for it.
        assert!(before.contains(&next.await.unwrap()));
        pool.ready().await.unwrap();
        assert_eq!(book.count("initialized"), 3);
    });
}

#[test]
fn at_most_so_many_run_whatever_the_spares() {
    run(30, async {
        let pool = Pool::builder().processes(1).spares(2).build().await.unwrap();
        pool.ready().await.unwrap();
        let book = Notebook::new();
        let held: Vec<_> = (0..2).map(|_| pool.apply(hold, (book.path(),)).submit()).collect();
        book.wait_for("held", 1).await;
        eventually("it is busy", || pool.health() == Health::Busy).await;
        assert_eq!(book.count("held"), 1);
        book.open_gate();
        for result in held {
            result.await.unwrap();
        }
        assert_eq!(book.count("held"), 2);
    });
}

#[test]
fn a_fresh_worker_for_each_task() {
    run_each(60, async |context| {
        let pool =
            Pool::builder().context(context).processes(2).fresh_worker_per_task().build().await.unwrap();
        let workers = pool.map(|_| pid(), 0..20).await.unwrap();
        assert_eq!(workers.iter().collect::<BTreeSet<_>>().len(), 20);
        pool.ready().await.unwrap();
        assert_eq!(pids(&pool).len(), 4);
        assert!(pids(&pool).is_disjoint(&workers.into_iter().collect()));
    });
}

#[test]
fn a_pool_grows_and_shrinks_under_load() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let (first, second) = (Notebook::new(), Notebook::new());
        let held: Vec<_> = (0..3).map(|_| pool.apply(hold, (first.path(),)).submit()).collect();
        first.wait_for("held", 1).await;
        pool.resize(3).unwrap();
        pool.ready().await.unwrap();
        first.wait_for("held", 3).await;
        assert_eq!((pool.processes(), pids(&pool).len()), (3, 3));
        pool.resize(1).unwrap();
        // Two run to the end, as they have begun, and end.
        let more: Vec<_> = (0..2).map(|_| pool.apply(hold, (second.path(),)).submit()).collect();
        first.open_gate();
        for result in held {
            result.await.unwrap();
        }
        second.wait_for("held", 1).await;
        eventually("one is left", || pids(&pool).len() == 1).await;
        assert_eq!(second.count("held"), 1);
        second.open_gate();
        for result in more {
            assert!(pids(&pool).contains(&result.await.unwrap()));
        }
        assert!(matches!(pool.resize(0), Err(Error::InvalidArgument(_))));
    });
}

/// Stopped, it would keep the pool's end waiting for ever.
#[test]
fn a_worker_that_does_not_end_is_killed() {
    run(40, async {
        let pool = Pool::new(2).await.unwrap();
        pool.ready().await.unwrap();
        let workers = pids(&pool);
        kill(Pid::from_raw(*workers.first().unwrap()), Signal::SIGSTOP).unwrap();
        pool.close();
        pool.join().await.unwrap();
        assert!(!workers.into_iter().any(support::runs));
    });
}

#[test]
fn a_stopped_idle_worker_costs_no_task() {
    run(40, async {
        let pool = Pool::new(2).await.unwrap();
        pool.ready().await.unwrap();
        let stopped = *pids(&pool).first().unwrap();
        kill(Pid::from_raw(stopped), Signal::SIGSTOP).unwrap();
        // One at a time, so that each could go to the stopped one.
        for _ in 0..20 {
            assert_ne!(pool.apply(pid, ()).await.unwrap(), stopped);
        }
        kill(Pid::from_raw(stopped), Signal::SIGCONT).unwrap();
        let book = Notebook::new();
        let held: Vec<_> = (0..2).map(|_| pool.apply(hold, (book.path(),)).submit()).collect();
        book.wait_for("held", 2).await;
        book.open_gate();
        let mut ran = BTreeSet::new();
        for result in held {
            ran.insert(result.await.unwrap());
        }
        assert!(ran.contains(&stopped));
    });
}

/// There is nobody else, so that the task waits for one that takes the place of a stopped one.
#[test]
fn stopped_workers_are_replaced() {
    run(60, async {
        let pool = Pool::new(2).await.unwrap();
        pool.ready().await.unwrap();
        let stopped = pids(&pool);
        stopped.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap());
        assert!(!stopped.contains(&pool.apply(pid, ()).await.unwrap()));
        eventually("both are counted", || pool.stats().unwrap().ends.unresponsive == 2).await;
        assert!(!stopped.iter().any(|pid| support::runs(*pid)));
    });
}

fn hang() {
    spin();
}

#[test]
fn a_load_that_hangs_is_given_up() {
    run_each(60, async |context| {
        let builder = Pool::builder().context(context).processes(1).start_timeout(Duration::from_millis(300));
        let error = builder.state(hang, ()).build().await.unwrap_err();
        assert!(error.to_string().contains("start_timeout"), "{error}");
    });
}

/// Fails as long as a file is not there.
fn need(path: String) -> Result<(), Failure> {
    std::fs::read(path).map(drop).map_err(Failure::from)
}

#[test]
fn health_tells_broken_from_busy_and_the_first_ready_worker_mends() {
    run_each(60, async |context| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("needed").to_str().unwrap().to_owned();
        let pool = Pool::builder()
            .context(context)
            .processes(1)
            .lazy()
            .initializer(need, (path.clone(),))
            .build()
            .await
            .unwrap();
        let error = pool.apply(pid, ()).await.unwrap_err();
        assert!(error.to_string().contains("initializer"), "{error}");
        let Health::Broken { why, .. } = pool.health() else { panic!("{:?}", pool.health()) };
        assert!(why.contains("initializer") && !pool.health().is_fit());
        assert!(pool.ready().await.is_err());
        std::fs::write(&path, "").unwrap();
        eventually("it is mended", || pool.health() == Health::Ready).await;
        pool.apply(pid, ()).await.unwrap();
    });
}

#[test]
fn numbers_that_make_no_sense() {
    run(20, async {
        let more_than_there_are = Pool::builder().processes(1).min_processes(2).build().await;
        assert!(matches!(more_than_there_are, Err(Error::InvalidArgument(_))));
    });
}
