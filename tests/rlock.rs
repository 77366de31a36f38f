//! Locks between processes that their holders may take again.

#![cfg(target_os = "linux")]

mod support;

use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use futures::poll;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::process::{Call, Meeting};
use support::{
    Notebook, Random, alone, current_thread, guard, kill_9, methods, multi_thread, note, run, run_each,
    watchdog,
};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Error, RLock, RLockGuard};

const WATCHDOG: u64 = 120;
const NEVER: Duration = Duration::from_millis(100);

async fn nest(lock: RLock) {
    for depth in 0..3 {
        assert_eq!(lock.is_owned(), depth > 0);
        lock.acquire_raw().await.unwrap();
    }
    for _ in 0..3 {
        assert!(lock.locked() && lock.is_owned());
        lock.release().unwrap();
    }
    assert!(!lock.locked());
    assert!(matches!(lock.release(), Err(Error::TooManyReleases)));
    assert!(!lock.locked());
}

// conformance: _TestLock.test_rlock
#[test]
fn it_is_given_back_as_often_as_it_was_taken() {
    run_each(WATCHDOG, async |context| {
        let lock = RLock::new().unwrap();
        nest(lock.clone()).await;
        tokio::spawn(nest(lock.clone())).await.unwrap();
        let there = lock.clone();
        std::thread::spawn(move || current_thread().block_on(nest(there))).join().unwrap();
        let child = context.process(nest, (lock,)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
    });
}

async fn is_anothers(lock: RLock) {
    assert!(!lock.is_owned() && lock.locked());
    assert!(lock.try_acquire().unwrap().is_none());
    assert!(lock.acquire_timeout(NEVER).await.unwrap().is_none());
    assert!(matches!(lock.release(), Err(Error::NotOwner)));
    assert!(lock.locked());
}

#[test]
fn a_stranger_neither_takes_nor_releases_it() {
    run_each(WATCHDOG, async |context| {
        let lock = RLock::new().unwrap();
        let outer = lock.acquire().await.unwrap();
        // Guards are not given back by hand.
        assert!(matches!(lock.release(), Err(Error::NotOwner)));
        for raw in [false, true] {
            if raw {
                lock.acquire_raw().await.unwrap();
            }
            tokio::spawn(is_anothers(lock.clone())).await.unwrap();
            let there = lock.clone();
            std::thread::spawn(move || current_thread().block_on(is_anothers(there))).join().unwrap();
            let child = context.process(is_anothers, (lock.clone(),)).start().await.unwrap();
            assert!(child.join().await.unwrap().success());
        }
        drop(outer);
        assert!(lock.is_owned());
        lock.release().unwrap();
        assert!(!lock.locked() && !lock.is_owned());
    });
}

#[test]
fn guards_nest_in_any_order_and_go_anywhere() {
    run(WATCHDOG, async {
        let lock = RLock::new().unwrap();
        let outer = lock.acquire().await.unwrap();
        let inner = lock.acquire().await.unwrap();
        let third = lock.try_acquire().unwrap().unwrap();
        let fourth = lock.acquire_timeout(Duration::ZERO).await.unwrap().unwrap();
        drop((outer, third));
        assert!(lock.locked() && lock.is_owned());
        // Another task is another holder, but may be handed a part.
        let there = lock.clone();
        let fifth = tokio::spawn(async move {
            assert!(there.try_acquire().unwrap().is_none());
            inner.reenter().unwrap()
        })
        .await
        .unwrap();
        drop(fourth);
        assert!(lock.is_owned());
        std::thread::spawn(move || drop(fifth)).join().unwrap();
        assert!(!lock.locked());
    });
}

#[test]
fn the_holder_is_the_task_wherever_it_runs() {
    run(WATCHDOG, async {
        let lock = RLock::new().unwrap();
        let task = |lock: RLock| async move {
            for _ in 0..200 {
                let outer = lock.acquire().await.unwrap();
                // Here it may go to another thread.
                tokio::task::yield_now().await;
                let inner = lock.acquire().await.unwrap();
                drop(outer);
                tokio::task::yield_now().await;
                assert!(lock.is_owned());
                drop(inner);
            }
        };
        let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(task(lock.clone()))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(!lock.locked());
    });
}

async fn hold(lock: RLock, meeting: String) {
    let _outer = lock.acquire().await.unwrap();
    let _inner = lock.acquire().await.unwrap();
    lock.acquire_raw().await.unwrap();
    Call::to(&meeting).say("held");
    std::future::pending::<()>().await;
}

#[test]
fn all_that_a_killed_holder_has_taken_goes_to_the_next() {
    run_each(WATCHDOG, async |context| {
        let lock = RLock::new().unwrap();
        let meeting = Meeting::new();
        let child = context.process(hold, (lock.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "held");
        kill(Pid::from_raw(child.pid()), Signal::SIGSTOP).unwrap();
        assert!(lock.acquire_timeout(Duration::from_millis(300)).await.unwrap().is_none());
        let waiting = tokio::spawn({
            let lock = lock.clone();
            async move {
                let guard = lock.acquire().await.unwrap();
                assert!(guard.previous_owner_died());
                let inner = lock.acquire().await.unwrap();
                inner.acknowledge();
            }
        });
        let begin = Instant::now();
        kill_9(child.pid());
        waiting.await.unwrap();
        eprintln!("taken over after {:?}", begin.elapsed());
        child.join().await.unwrap();
        assert!(!lock.acquire().await.unwrap().previous_owner_died());
        nest(lock).await;
    });
}

/// Enters and leaves a section at various depths, and writes down if it was not alone.
async fn sections(lock: RLock, notebook: String, seed: u64) {
    let mut random = Random::from_seed(seed);
    let inside = std::path::Path::new(&notebook).join("inside");
    note(&notebook, "started");
    loop {
        let mut held = vec![lock.acquire().await.unwrap()];
        let died = held[0].previous_owner_died();
        let left = std::fs::remove_file(&inside).is_ok();
        if left && !died {
            note(&notebook, "not alone");
        }
        held[0].acknowledge();
        std::fs::File::create(&inside).unwrap();
        for _ in 0..random.below(4) {
            held.push(lock.acquire().await.unwrap());
        }
        std::fs::remove_file(&inside).unwrap();
        while held.len() > 1 {
            drop(held.swap_remove(random.below(held.len() as u64) as usize));
        }
    }
}

#[test]
fn a_storm_of_deaths_lets_never_two_in() {
    run_each(WATCHDOG, async |context| {
        let mut random = Random::new();
        let lock = RLock::new().unwrap();
        let notebook = Notebook::new();
        let mut children = Vec::new();
        for i in 0..16 {
            let target = (lock.clone(), notebook.path(), random.next());
            children.push(context.process(sections, target).start().await.unwrap());
            notebook.wait_for("started", i + 1).await;
            if children.len() > 3 {
                tokio::time::sleep(Duration::from_micros(random.below(5000))).await;
                let child = children.swap_remove(random.below(4) as usize);
                kill_9(child.pid());
                child.join().await.unwrap();
            }
        }
        for child in children {
            child.kill().unwrap();
            child.join().await.unwrap();
        }
        assert_eq!(notebook.count("not alone"), 0);
        nest(lock).await;
    });
}

#[test]
fn acquisitions_that_are_cancelled_leave_it_as_it_was() {
    let _guard = guard(WATCHDOG);
    for runtime in [current_thread(), multi_thread()] {
        let mut random = Random::new();
        runtime.block_on(async {
            let lock = RLock::new().unwrap();
            // It is held by others, in whose name it is not taken again here.
            let (there, mut got) = (lock.clone(), 0);
            for _ in 0..10_000 {
                let held = tokio::spawn(lock_it(there.clone())).await.unwrap();
                let mut waiting = [(); 5].map(|()| Box::pin(lock.acquire()));
                for one in &mut waiting {
                    assert!(poll!(one).is_pending());
                }
                if random.below(2) == 0 {
                    drop(held);
                }
                if random.below(3) == 0 {
                    for one in waiting {
                        got += usize::from(futures::FutureExt::now_or_never(one).is_some());
                    }
                }
            }
            assert!(got > 0);
            assert!(!lock.locked() && !lock.is_owned());
            nest(lock).await;
        });
    }
}

async fn lock_it(lock: RLock) -> RLockGuard {
    lock.acquire().await.unwrap()
}

static STATIC: LazyLock<RLock> = LazyLock::new(|| RLock::new().unwrap());

#[test]
fn what_a_copy_of_the_process_has_holds_nothing() {
    static HELD: Mutex<Option<RLockGuard>> = Mutex::new(None);
    // Not with a check for leaks, as the static stays.
    let (_alone, _watchdog) = (alone(), watchdog(WATCHDOG));
    LazyLock::force(&STATIC);
    let [.., fork] = &methods()[..] else { unreachable!() };
    multi_thread().block_on(async {
        *HELD.lock().unwrap() = Some(STATIC.acquire().await.unwrap());
        let copy = || {
            assert!(!STATIC.is_owned() && STATIC.try_acquire().unwrap().is_none());
            drop(HELD.lock().unwrap().take());
            assert!(STATIC.locked());
        };
        let child = fork.process(copy, ()).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert!(STATIC.locked() && STATIC.is_owned());
        drop(HELD.lock().unwrap().take());
        assert!(!STATIC.locked());
    });
}

#[test]
fn it_needs_no_runtime_but_to_wait() {
    let _guard = guard(WATCHDOG);
    let lock = RLock::new().unwrap();
    let outer = lock.try_acquire().unwrap().unwrap();
    let inner = lock.try_acquire().unwrap().unwrap();
    drop(outer);
    // The thread goes on holding it, in whatever runtime.
    for runtime in [current_thread(), multi_thread()] {
        runtime.block_on(async {
            drop(lock.acquire().await.unwrap());
            tokio::spawn(is_anothers(lock.clone())).await.unwrap();
        });
    }
    drop(inner);
    mp::block_on(nest(lock.clone())).unwrap();
    assert!(format!("{lock:?}").contains("locked: false"));
}
