//! A pool among runtimes: used from others than its own, outlived by it or outliving it, polled by
//! one thread only, with a clock that stands still.

#![cfg(target_os = "linux")]

mod support;

use std::sync::mpsc;
use std::time::Duration;

use futures::executor::block_on as block_on_anything;
use futures::stream::{StreamExt, TryStreamExt};
use support::{Notebook, current_thread, eventually_blocking, guard, methods, multi_thread, note, pass_gate};
use tokio::runtime::Runtime;
use tokio_multiprocess as mp;
use tokio_multiprocess::{Pool, Ran, TaskError};

fn square(x: u64) -> u64 {
    x * x
}

fn held(notebook: String) {
    note(&notebook, "held");
    pass_gate(&notebook);
}

fn build(runtime: &Runtime, context: mp::Context, processes: usize) -> Pool {
    runtime.block_on(Pool::builder().context(context).processes(processes).build()).unwrap()
}

/// Every way to use a pool.
async fn use_it(pool: &Pool) {
    assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
    assert_eq!(pool.apply(square, (4,)).submit().await.unwrap(), 16);
    assert_eq!(pool.map(square, 0..100).await.unwrap()[99], 9801);
    let streamed: Vec<u64> = pool.imap(square, 0..100).try_collect().await.unwrap();
    assert_eq!(streamed[99], 9801);
    let mut streamed: Vec<u64> = pool.imap_unordered(square, 0..100).try_collect().await.unwrap();
    streamed.sort_unstable();
    assert_eq!(streamed[99], 9801);
    let failed = pool.apply(|| -> u8 { std::process::abort() }, ()).await.unwrap_err();
    assert!(matches!(failed, TaskError::WorkerDied(_)), "{failed:?}");
    let late = pool
        .apply(
            || loop {
                std::hint::spin_loop()
            } as (),
            (),
        )
        .timeout(Duration::from_millis(20))
        .await;
    assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
}

#[test]
fn used_from_other_runtimes() {
    let _guard = guard(60);
    for context in methods() {
        let home = multi_thread();
        let pool = build(&home, context, 2);
        multi_thread().block_on(use_it(&pool));
        current_thread().block_on(use_it(&pool));
        home.block_on(use_it(&pool));
        // Several at the same time.
        let others = (0..3).map(|_| {
            let pool = pool.clone();
            std::thread::spawn(move || current_thread().block_on(use_it(&pool)))
        });
        for other in others.collect::<Vec<_>>() {
            other.join().unwrap();
        }
    }
}

/// The futures need nothing but a waker.
#[test]
fn used_without_a_runtime() {
    let _guard = guard(40);
    for context in methods() {
        let home = multi_thread();
        let pool = build(&home, context, 2);
        block_on_anything(use_it(&pool));
        block_on_anything(async {
            let mut result = pool.apply(square, (7,)).submit();
            result.wait().await;
            assert_eq!(result.await.unwrap(), 49);
            pool.close();
            pool.join().await.unwrap();
        });
    }
}

/// A future may begin on one runtime and end on another.
#[test]
fn futures_that_move() {
    let _guard = guard(40);
    let home = multi_thread();
    let pool = build(&home, mp::Context::default(), 1);
    let notebook = Notebook::new();
    let mut call = pool.apply(held, (notebook.path(),));
    let path = notebook.path();
    let mut stream = pool.imap(
        |item: (u64, String)| {
            pass_gate(&item.1);
            item.0
        },
        (0..50).map(move |x| (x, path.clone())),
    );
    multi_thread().block_on(async {
        assert!(futures::poll!(&mut call).is_pending());
        assert!(futures::poll!(stream.next()).is_pending());
    });
    notebook.open_gate();
    current_thread().block_on(&mut call).unwrap();
    assert_eq!(block_on_anything(stream.next()).unwrap().unwrap(), 0);
    let rest: Vec<u64> = home.block_on(stream.try_collect()).unwrap();
    assert_eq!(rest, (1..50).collect::<Vec<_>>());
}

#[test]
fn on_a_current_thread_runtime() {
    let _guard = guard(60);
    for context in methods() {
        let home = current_thread();
        let pool = build(&home, context, 2);
        home.block_on(use_it(&pool));
        // It makes progress only while somebody polls it, but submitting needs no progress.
        let result = pool.apply(square, (12,)).submit();
        let failing = pool.apply(|| -> u8 { panic!("on purpose") }, ()).submit();
        assert_eq!(home.block_on(result).unwrap(), 144);
        assert!(home.block_on(failing).is_err());
        home.block_on(async {
            pool.close();
            pool.join().await.unwrap();
        });
    }
}

#[test]
fn its_runtime_shuts_down() {
    let _guard = guard(60);
    for context in methods() {
        for home in [multi_thread(), current_thread()] {
            let pool = build(&home, context.clone(), 2);
            let notebook = Notebook::new();
            let begun: Vec<_> = (0..2).map(|_| pool.apply(held, (notebook.path(),)).submit()).collect();
            let waiting: Vec<_> = (0..50).map(|_| pool.apply(held, (notebook.path(),)).submit()).collect();
            let mut stream = pool.imap(square, 0..50);
            home.block_on(async {
                notebook.wait_for("held", 2).await;
                assert!(futures::poll!(stream.next()).is_pending());
            });
            let pids = pool.worker_pids();
            let waiter = std::thread::spawn(move || block_on_anything(futures::future::join_all(waiting)));
            drop(home);
            for result in waiter.join().unwrap() {
                assert_eq!(result.unwrap_err().ran(), Ran::No);
            }
            for result in block_on_anything(futures::future::join_all(begun)) {
                assert_eq!(result.unwrap_err().ran(), Ran::Maybe);
            }
            let streamed: Vec<_> = block_on_anything(stream.collect());
            assert!(streamed.iter().any(Result::is_err));
            // And are reaped, although the pool is still held.
            eventually_blocking("the workers' end", || {
                let children = support::children();
                pids.iter().all(|pid| !support::runs(*pid) && !children.contains(pid))
            });

            // What comes after is refused, on whatever runtime, and nothing hangs.
            let other = multi_thread();
            assert_eq!(other.block_on(async { pool.apply(square, (1,)).await }).unwrap_err().ran(), Ran::No);
            assert_eq!(block_on_anything(pool.apply(square, (1,)).submit()).unwrap_err().ran(), Ran::No);
            assert!(block_on_anything(pool.map(square, 0..10)).is_err());
            assert!(block_on_anything(pool.imap(square, 0..10).next()).unwrap().is_err());
            assert!(pool.worker_pids().is_empty());
            other.block_on(async {
                pool.close();
                pool.join().await.unwrap();
                pool.terminate().await.unwrap();
            });
        }
    }
}

/// A shutdown that waits for nobody, while a waiter is on another thread.
#[test]
fn its_runtime_shuts_down_in_the_background() {
    let _guard = guard(30);
    let home = multi_thread();
    let pool = build(&home, mp::Context::default(), 2);
    let notebook = Notebook::new();
    let result = pool.apply(held, (notebook.path(),)).submit();
    home.block_on(notebook.wait_for("held", 1));
    home.shutdown_background();
    assert_eq!(block_on_anything(result).unwrap_err().ran(), Ran::Maybe);
}

/// A worker is being started when the runtime goes.
#[test]
fn its_runtime_shuts_down_while_workers_start() {
    let _guard = guard(60);
    for context in methods() {
        for _ in 0..10 {
            let home = multi_thread();
            let pool = build(&home, context.clone(), 3);
            for pid in pool.worker_pids() {
                support::kill_9(pid);
            }
            let result = pool.map(square, 0..100).submit();
            drop(home);
            // Some may have been done: what counts is that an answer comes.
            let _ = block_on_anything(result);
        }
        // Also with nobody but the builder's future there.
        for step in 0..10 {
            let home = multi_thread();
            let (done, is_done) = mpsc::channel::<()>();
            let builder = Pool::builder().context(context.clone()).processes(2);
            home.spawn(async move {
                let _done = done;
                builder.build().await
            });
            let _ = is_done.recv_timeout(Duration::from_millis(step));
            drop(home);
        }
    }
}

#[test]
fn dropped_outside_of_any_runtime() {
    let _guard = guard(60);
    for context in methods() {
        let home = multi_thread();
        let pool = build(&home, context.clone(), 2);
        let notebook = Notebook::new();
        let result = pool.apply(held, (notebook.path(),)).submit();
        home.block_on(notebook.wait_for("held", 1));
        let pids = pool.worker_pids();
        std::thread::spawn(move || drop((pool, result))).join().unwrap();
        eventually_blocking("the workers' end", || pids.iter().all(|pid| !support::runs(*pid)));

        // On a runtime that is not polled any more; or on one that is gone.
        for keep in [true, false] {
            let home = current_thread();
            let pool = build(&home, context.clone(), 2);
            let (call, stream) = (pool.apply(square, (1,)), pool.imap(square, 0..10));
            let result = pool.map(square, 0..10).submit();
            let pids = pool.worker_pids();
            let home = keep.then_some(home);
            drop(pool);
            drop((call, stream, result));
            drop(home);
            eventually_blocking("the workers' end", || pids.iter().all(|pid| !support::runs(*pid)));
        }
    }
}

#[test]
fn dropped_inside_of_another_runtime() {
    let _guard = guard(30);
    let home = multi_thread();
    let pool = build(&home, mp::Context::default(), 2);
    let pids = pool.worker_pids();
    current_thread().block_on(async move {
        let mut stream = pool.imap_unordered(square, 0..1000);
        stream.next().await.unwrap().unwrap();
        drop((stream, pool));
    });
    eventually_blocking("the workers' end", || pids.iter().all(|pid| !support::runs(*pid)));
}

/// By the pool itself: a callback holds the last handle.
#[test]
fn dropped_by_a_callback() {
    let _guard = guard(30);
    let home = multi_thread();
    for _ in 0..10 {
        let pool = build(&home, mp::Context::default(), 1);
        let last = pool.clone();
        let result = pool.apply(square, (2,)).callback(move |_: &u64| drop(last)).submit();
        drop(pool);
        // The value was there before the pool went; or the drop came first.
        if let Ok(value) = home.block_on(result) {
            assert_eq!(value, 4);
        }
    }
}

/// Deadlines are the kernel's: a clock that jumps as soon as all are idle fires none of them.
#[test]
fn a_paused_clock() {
    let _guard = guard(60);
    for context in methods() {
        let home =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        home.block_on(async {
            let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
            let slow = |x: u64| {
                std::thread::sleep(Duration::from_millis(150));
                x * x
            };
            assert_eq!(pool.apply(slow, (3,)).timeout(Duration::from_secs(600)).await.unwrap(), 9);
            let map = pool.map(slow, 0..4).chunk_size(2).timeout(Duration::from_secs(600));
            assert_eq!(map.await.unwrap(), [0, 1, 4, 9]);
            // While timers of others jump ahead.
            let day = tokio::spawn(tokio::time::sleep(Duration::from_secs(86_400)));
            assert_eq!(pool.apply(slow, (4,)).timeout(Duration::from_secs(600)).await.unwrap(), 16);
            day.await.unwrap();
            // And one that is due fires though the clock stands still.
            let late = pool
                .apply(
                    || loop {
                        std::hint::spin_loop()
                    } as (),
                    (),
                )
                .timeout(Duration::from_millis(50))
                .await;
            assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
            assert_eq!(pool.apply(square, (5,)).await.unwrap(), 25);
            pool.close();
            pool.join().await.unwrap();
        });
    }
}

/// Only I/O is on: the pool's own deadlines need no timer of Tokio's.
#[test]
fn without_tokios_timer() {
    let _guard = guard(30);
    let home = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build().unwrap();
    let pool = build(&home, mp::Context::default(), 2);
    home.block_on(use_it(&pool));
}

/// Without I/O nothing can be done, but it can be said.
#[test]
fn without_tokios_io() {
    let _guard = guard(30);
    let home = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let built =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| home.block_on(Pool::new(1)).map(drop)));
    assert!(!matches!(built, Ok(Ok(()))));
}

/// In the child of a `fork` the parent's pool is no pool: an error says so, and the parent's
/// workers are not disturbed, nor when the child ends.
#[test]
fn in_a_forked_child() {
    static POOL: std::sync::OnceLock<Pool> = std::sync::OnceLock::new();
    async fn child() {
        let pool = POOL.get().expect("a copy of the parent's memory");
        assert!(pool.apply(square, (1,)).await.is_err());
        assert!(pool.map(square, 0..3).await.is_err());
        assert!(pool.imap(square, 0..3).next().await.unwrap().is_err());
        drop(pool.clone());
        let own = Pool::new(1).await.unwrap();
        assert_eq!(own.apply(square, (3,)).await.unwrap(), 9);
    }
    let _alone = support::alone();
    let _watchdog = support::watchdog(30);
    let home = multi_thread();
    home.block_on(async {
        let pool = Pool::new(2).await.unwrap();
        let pool = POOL.get_or_init(|| pool);
        let child = methods()[2].process(child, ()).start().await.unwrap();
        assert_eq!(child.join().await.unwrap().exit_code(), 0);
        assert_eq!(pool.apply(square, (4,)).await.unwrap(), 16);
        pool.terminate().await.unwrap();
    });
}
