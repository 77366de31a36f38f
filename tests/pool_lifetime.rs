//! How workers and pools begin and end.

#![cfg(target_os = "linux")]

mod support;

use std::collections::{BTreeSet, HashMap};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{StreamExt, TryStreamExt};
use support::{Notebook, eventually, note, noted, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Error, Failure, NotStarted, Pool, Ran, TaskError};

fn square(x: u64) -> u64 {
    x * x
}

fn pid() -> i32 {
    std::process::id() as i32
}

/// Writes down who ran it.
fn sign(notebook: &str) {
    note(notebook, pid());
}

fn is_sorted_set(pids: &[i32]) -> BTreeSet<i32> {
    let set: BTreeSet<i32> = pids.iter().copied().collect();
    assert_eq!(set.len(), pids.len(), "{pids:?}");
    set
}

/// The pool's workers once there are as many as there should be.
async fn full(pool: &Pool) -> BTreeSet<i32> {
    eventually("all workers", || {
        let pids = pool.worker_pids();
        pids.len() == pool.processes() && pids.iter().all(|pid| support::runs(*pid))
    })
    .await;
    is_sorted_set(&pool.worker_pids())
}

// conformance: _TestPoolWorkerLifetime.test_pool_worker_lifetime
#[test]
fn workers_are_replaced_after_their_tasks() {
    run_each(60, async |context| {
        let pool =
            Pool::builder().context(context).processes(3).max_tasks_per_child(10).build().await.unwrap();
        let before = full(&pool).await;
        let results: Vec<_> = (0..100).map(|x| pool.apply(square, (x,)).submit()).collect();
        for (x, result) in (0..).zip(results) {
            assert_eq!(result.await.unwrap(), x * x);
        }
        let after = full(&pool).await;
        assert_ne!(before, after);
        // Three workers cannot have done it, so none of the first is left.
        assert!(before.is_disjoint(&after), "{before:?} {after:?}");
        pool.close();
        pool.join().await.unwrap();
    });
}

// conformance: _TestPoolWorkerLifetime.test_pool_worker_lifetime_early_close
#[test]
fn workers_are_replaced_after_close() {
    run_each(60, async |context| {
        let pool =
            Pool::builder().context(context).processes(3).max_tasks_per_child(1).build().await.unwrap();
        let slow = |x: u64| {
            std::thread::sleep(Duration::from_millis(100));
            x * x
        };
        let results: Vec<_> = (0..6).map(|x| pool.apply(slow, (x,)).submit()).collect();
        pool.close();
        pool.join().await.unwrap();
        for (x, mut result) in (0..).zip(results) {
            assert!(result.ready());
            assert_eq!(result.get_timeout(Duration::ZERO).await.unwrap(), x * x);
        }
    });
}

// conformance: _TestPoolWorkerLifetime.test_pool_maxtasksperchild_invalid
#[test]
fn a_worker_without_tasks_is_refused() {
    run(20, async {
        let error = Pool::builder().processes(1).max_tasks_per_child(0).build().await.unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
    });
}

#[test]
fn no_worker_runs_more_than_its_tasks() {
    run_each(90, async |context| {
        for (limit, chunk) in [(1, 1), (1, 7), (4, 7), (7, 3)] {
            let builder = Pool::builder().context(context.clone()).processes(2);
            let pool = builder.max_tasks_per_child(limit).build().await.unwrap();
            let notebook = Notebook::new();
            let path = notebook.path();
            let task = |x: u64, path: String| {
                sign(&path);
                x
            };
            let items = (0..30).map(move |x| (x, path.clone()));
            assert_eq!(
                pool.starmap(task, items).chunk_size(chunk).await.unwrap(),
                (0..30).collect::<Vec<_>>()
            );
            let mut tasks = HashMap::new();
            for pid in notebook.notes() {
                *tasks.entry(pid).or_insert(0usize) += 1;
            }
            assert_eq!(tasks.values().sum::<usize>(), 30);
            assert!(tasks.values().all(|count| *count <= limit), "{limit}: {tasks:?}");
        }
    });
}

/// Tasks that fail are tasks too.
#[test]
fn failed_tasks_count_for_the_lifetime() {
    run_each(60, async |context| {
        let pool =
            Pool::builder().context(context).processes(1).max_tasks_per_child(2).build().await.unwrap();
        let mut pids = Vec::new();
        for _ in 0..3 {
            pids.push(pool.apply(pid, ()).await.unwrap());
            assert!(pool.apply(|| -> u8 { panic!("on purpose") }, ()).await.is_err());
        }
        is_sorted_set(&pids);
    });
}

static LOADED: AtomicU64 = AtomicU64::new(0);

fn load(value: u64) {
    LOADED.fetch_add(value, Ordering::SeqCst);
}

#[test]
fn initializer_runs_once_in_each_worker_before_its_tasks() {
    run_each(60, async |context| {
        let builder = Pool::builder().context(context).processes(2).max_tasks_per_child(3);
        let pool = builder.initializer(load, (7,)).build().await.unwrap();
        let seen = pool.map(|_: u64| LOADED.load(Ordering::SeqCst), 0..30).chunk_size(1).await.unwrap();
        assert_eq!(seen, [7; 30]);
        assert_eq!(LOADED.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn initializer_may_be_async_and_what_it_starts_goes_on() {
    async fn start() {
        tokio::spawn(async {
            loop {
                LOADED.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    async fn grows() {
        let before = LOADED.load(Ordering::SeqCst);
        while LOADED.load(Ordering::SeqCst) < before + 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    run_each(30, async |context| {
        let pool =
            Pool::builder().context(context).processes(1).initializer(start, ()).build().await.unwrap();
        pool.apply(grows, ()).await.unwrap();
    });
}

/// What a pool gives that can have no workers: the text of the error, from `build` or from a task.
async fn hopeless(builder: mp::PoolBuilder) -> String {
    let error = match builder.build().await {
        Err(error) => error,
        Ok(pool) => {
            let error = pool.apply(square, (1,)).await.unwrap_err();
            assert_eq!(error.ran(), Ran::No);
            // It stays so, and nobody waits.
            for _ in 0..3 {
                let error = pool.map(square, 0..10).await.unwrap_err();
                assert!(matches!(error, TaskError::NotStarted(NotStarted::NoWorker(_))), "{error:?}");
            }
            error.into()
        }
    };
    assert!(matches!(&error, Error::Task(TaskError::NotStarted(NotStarted::NoWorker(_)))), "{error:?}");
    error.to_string()
}

#[test]
fn an_initializer_that_always_fails() {
    fn returns(path: String) -> Result<(), Failure> {
        note(&path, "begun");
        Err(Failure::msg("no configuration"))
    }
    fn panics(path: String) {
        note(&path, "begun");
        panic!("cannot go on");
    }
    fn exits(path: String) {
        note(&path, "begun");
        std::process::exit(3);
    }
    fn dies(path: String) {
        note(&path, "begun");
        support::kill_9(pid());
    }
    run_each(90, async |context| {
        let notebook = Notebook::new();
        let builder = || Pool::builder().context(context.clone()).processes(2);
        let path = || (notebook.path(),);
        let told = hopeless(builder().initializer(returns, path())).await;
        assert!(told.contains("no configuration"), "{told}");
        let told = hopeless(builder().initializer(panics, path())).await;
        assert!(told.contains("cannot go on"), "{told}");
        let told = hopeless(builder().initializer(exits, path())).await;
        assert!(told.contains("exit code 3"), "{told}");
        let told = hopeless(builder().initializer(dies, path())).await;
        assert!(told.contains("SIGKILL"), "{told}");
        // Nobody spins: four pools have tried a few times each.
        assert!(notebook.count("begun") < 80, "{} starts", notebook.count("begun"));
    });
}

#[test]
fn an_initializer_that_fails_at_first() {
    fn unlucky(path: String) {
        note(&path, "begun");
        assert!(noted(&path, "begun") > 2, "not yet");
    }
    run_each(60, async |context| {
        let notebook = Notebook::new();
        let builder = Pool::builder().context(context).processes(1).initializer(unlucky, (notebook.path(),));
        let pool = builder.build().await.unwrap();
        assert_eq!(pool.apply(square, (9,)).await.unwrap(), 81);
        assert_eq!(notebook.count("begun"), 3);
    });
}

#[test]
fn ready_waits_for_all_workers() {
    fn take_turns(path: String) {
        pass_gate(&path);
        note(&path, "ready");
    }
    run_each(30, async |context| {
        let notebook = Notebook::new();
        let builder =
            Pool::builder().context(context).processes(3).initializer(take_turns, (notebook.path(),));
        notebook.open_gate();
        let pool = builder.build().await.unwrap();
        pool.ready().await.unwrap();
        assert_eq!(notebook.count("ready"), 3);
        pool.terminate().await.unwrap();
        assert!(pool.ready().await.is_err());
    });
}

#[test]
fn join_before_close_is_an_error() {
    run_each(30, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        assert!(pool.join().await.is_err());
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
        pool.close();
        pool.close();
        pool.join().await.unwrap();
        pool.join().await.unwrap();
        assert!(pool.worker_pids().is_empty());
        pool.terminate().await.unwrap();
        pool.terminate().await.unwrap();
        pool.join().await.unwrap();
    });
}

#[test]
fn close_lets_all_finish_and_join_waits_for_it() {
    run_each(30, async |context| {
        let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
        let notebook = Notebook::new();
        let task = |x: u64, path: String| {
            pass_gate(&path);
            note(&path, x);
        };
        let results: Vec<_> = (0..20).map(|x| pool.apply(task, (x, notebook.path())).submit()).collect();
        let path = notebook.path();
        let map = pool.starmap(task, (20..40).map(move |x| (x, path.clone()))).submit();
        let path = notebook.path();
        // A stream that was begun is read to its end, also beyond its look-ahead.
        let mut stream = pool.imap(
            |item: (u64, String)| {
                pass_gate(&item.1);
                note(&item.1, item.0)
            },
            (40..100).map(move |x| (x, path.clone())),
        );
        assert!(stream.next_timeout(Duration::from_millis(5)).await.is_err());
        let pids = pool.worker_pids();
        pool.close();
        // Any number may wait, and give up waiting.
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_millis(5), pool.join()).await.is_err());
        }
        assert_eq!(notebook.notes().len(), 0);
        let joins = (0..3).map(|_| {
            tokio::spawn({
                let pool = pool.clone();
                async move { pool.join().await }
            })
        });
        let joins: Vec<_> = joins.collect();
        notebook.open_gate();
        let streamed: Vec<()> = stream.try_collect().await.unwrap();
        assert_eq!(streamed.len(), 60);
        for join in joins {
            join.await.unwrap().unwrap();
        }
        assert!(pids.iter().all(|pid| !support::runs(*pid)));
        assert!(results.iter().all(mp::AsyncResult::ready) && map.ready());
        map.await.unwrap();
        notebook.assert_no_repetition();
        assert_eq!(notebook.notes().len(), 100);
    });
}

#[test]
fn workers_end_by_the_exit_path() {
    fn begin(path: String) {
        mp::util::Finalize::new(0, move || note(&path, "finalized"));
    }
    run_each(60, async |context| {
        let notebook = Notebook::new();
        let builder = Pool::builder().context(context).processes(2).max_tasks_per_child(5);
        let pool = builder.initializer(begin, (notebook.path(),)).build().await.unwrap();
        let first = full(&pool).await;
        pool.map(square, 0..20).await.unwrap();
        pool.close();
        pool.join().await.unwrap();
        assert!(notebook.count("finalized") >= 4, "{first:?}: {:?}", notebook.notes());

        // Terminated ones have no time for it.
        let notebook = Notebook::new();
        let builder = Pool::builder().processes(2).initializer(begin, (notebook.path(),));
        let pool = builder.build().await.unwrap();
        pool.terminate().await.unwrap();
        assert_eq!(notebook.count("finalized"), 0);
    });
}

#[test]
fn terminate_says_what_had_begun() {
    run_each(30, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let notebook = Notebook::new();
        let held = |path: String| {
            note(&path, "held");
            pass_gate(&path);
        };
        let begun = pool.apply(held, (notebook.path(),)).submit();
        let waiting: Vec<_> = (0..300).map(|_| pool.apply(held, (notebook.path(),)).submit()).collect();
        notebook.wait_for("held", 1).await;
        pool.terminate().await.unwrap();
        assert_eq!(begun.await.unwrap_err().ran(), Ran::Maybe);
        for result in waiting {
            let error = result.await.unwrap_err();
            assert_eq!(error.ran(), Ran::No, "{error:?}");
        }
        assert_eq!(notebook.count("held"), 1);
    });
}

#[test]
fn the_last_handle_ends_it() {
    run_each(30, async |context| {
        let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
        let pids = full(&pool).await;
        let other = pool.clone();
        drop(pool);
        assert_eq!(other.apply(square, (2,)).await.unwrap(), 4);
        // A stream counts as a handle.
        let mut stream = other.imap(square, 0..1000);
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        drop(other);
        let rest: Vec<u64> = stream.by_ref().try_collect().await.unwrap();
        assert_eq!(rest, (1..1000).map(square).collect::<Vec<_>>());
        assert!(pids.iter().all(|pid| support::runs(*pid)));
        drop(stream);
        eventually("the workers' end", || pids.iter().all(|pid| !support::runs(*pid))).await;
    });
}

/// A result that is waited for counts as a handle too.
#[test]
fn results_of_a_dropped_pool() {
    run_each(30, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let notebook = Notebook::new();
        let pids = pool.worker_pids();
        let held = |path: String| {
            note(&path, "held");
            pass_gate(&path);
        };
        let first = pool.apply(held, (notebook.path(),)).submit();
        let second = pool.apply(square, (6,));
        let forgotten = pool.apply(held, (notebook.path(),)).submit();
        drop(pool);
        notebook.wait_for("held", 1).await;
        notebook.open_gate();
        first.await.unwrap();
        assert_eq!(second.await.unwrap(), 36);
        drop(forgotten);
        eventually("the worker's end", || pids.iter().all(|pid| !support::runs(*pid))).await;
    });
}

#[test]
fn idle_workers_that_die_are_replaced() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
        let before = full(&pool).await;
        before.iter().for_each(|pid| support::kill_9(*pid));
        eventually("other workers", || {
            let now = pool.worker_pids();
            now.len() == 2 && now.iter().all(|pid| !before.contains(pid) && support::runs(*pid))
        })
        .await;
        // No task was there to suffer from it.
        assert_eq!(pool.map(square, 0..10).await.unwrap()[9], 81);
    });
}

/// A build that is given up leaves nothing behind, wherever it stood.
#[test]
fn build_is_cancel_safe() {
    run_each(60, async |context| {
        let mut built = 0;
        for step in 0..40u64 {
            let builder = Pool::builder().context(context.clone()).processes(2);
            let build = tokio::time::timeout(Duration::from_micros(step * step * 10), builder.build());
            if let Ok(pool) = build.await {
                assert_eq!(pool.unwrap().apply(square, (step,)).await.unwrap(), step * step);
                built += 1;
            }
        }
        eprintln!("{built} of 40 were built");
    });
}

static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
static POOL: OnceLock<Pool> = OnceLock::new();

const PROGRAM: &str = "TOKIO_MULTIPROCESS_TEST_PROGRAM";

#[test]
#[ignore = "the program of the next test, which runs it in a process of its own"]
fn program_with_a_pool_in_a_static() {
    let program = std::env::var(PROGRAM).unwrap_or_else(|_| "spawn kept".to_owned());
    let runtime = support::multi_thread();
    let context = mp::Context::new(program.split(' ').next().unwrap().parse().unwrap());
    let pids = runtime.block_on(async {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let pool = POOL.get_or_init(|| pool);
        assert_eq!(pool.map(square, 0..10).await.unwrap()[9], 81);
        pool.worker_pids()
    });
    if program.ends_with("kept") {
        RUNTIME.get_or_init(|| runtime);
    }
    println!("worker {}", pids[0]);
}

// conformance: _TestPoolWorkerLifetime.test_worker_finalization_via_atexit_handler_of_multiprocessing
#[test]
fn a_pool_in_a_static_holds_nobody_up() {
    let _guard = support::guard(90);
    for method in [mp::StartMethod::Spawn, mp::StartMethod::ForkServer] {
        for runtime in ["kept", "dropped"] {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "program_with_a_pool_in_a_static", "--ignored", "--nocapture"]);
            command.env(PROGRAM, format!("{method} {runtime}")).stdin(Stdio::null());
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let told = String::from_utf8(output.stdout).unwrap();
            let worker = told.lines().find_map(|line| line.split("worker ").nth(1)).unwrap().parse().unwrap();
            support::eventually_blocking("the worker's end", || !support::runs(worker));
        }
    }
}

/// A process that ends by its last line takes its pool with it, also as a child.
#[test]
fn a_child_with_a_pool_in_a_static_ends() {
    async fn child(notebook: String) {
        let pool = Pool::new(1).await.unwrap();
        assert_eq!(pool.apply(square, (2,)).await.unwrap(), 4);
        note(&notebook, pool.worker_pids()[0]);
        POOL.get_or_init(|| pool);
    }
    run_each(60, async |context| {
        let notebook = Notebook::new();
        let child = context.process(child, (notebook.path(),)).start().await.unwrap();
        assert_eq!(child.join().await.unwrap().exit_code(), 0);
        let worker = notebook.notes()[0].parse().unwrap();
        eventually("the worker's end", || !support::runs(worker)).await;
    });
}
