//! What synchronises, in the hands of those who use it badly: wakers that act when they are woken or dropped,
//! futures that nobody polls, runtimes that end, and memory that somebody has scribbled over.

#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use support::process::{Call, Meeting};
use support::{PATIENCE, current_thread, guard, kill_9, multi_thread, run};
use tokio_multiprocess as mp;

const WATCHDOG: u64 = 120;

fn once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[test]
fn a_time_out_of_nothing_tries_whatever_of_its_turn_a_task_has_had() {
    run(WATCHDOG, async {
        let (lock, rlock) = (mp::Lock::new().unwrap(), mp::RLock::new().unwrap());
        let (semaphore, event) = (mp::Semaphore::new(1).unwrap(), mp::Event::new().unwrap());
        event.set().unwrap();
        for _ in 0..1000 {
            assert!(lock.acquire_timeout(Duration::ZERO).await.unwrap().is_some());
            assert!(rlock.acquire_timeout(Duration::ZERO).await.unwrap().is_some());
            assert!(semaphore.acquire_timeout(Duration::ZERO).await.unwrap().is_some());
            assert!(event.wait_timeout(Duration::ZERO).await.unwrap());
        }
    });
}

/// Has something that ends with it.
struct Owner(#[allow(dead_code, reason = "it is dropped")] Mutex<Option<mp::OwnedLockGuard>>);

impl Wake for Owner {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_waker_may_give_back_the_lock_that_is_waited_for_when_it_is_dropped() {
    run(WATCHDOG, async {
        for leaves in [false, true] {
            let lock = mp::Lock::new().unwrap();
            let held = lock.acquire_owned().await.unwrap();
            let waker = Waker::from(Arc::new(Owner(Mutex::new(Some(held)))));
            let mut waiting = Box::pin(lock.acquire());
            assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            if !leaves {
                // Another waker takes its place.
                let _ = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
            drop(waiting);
            assert!(lock.try_acquire().unwrap().is_some());
        }
    });
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

#[test]
fn a_waker_that_panics_keeps_nobody_else_asleep() {
    run(WATCHDOG, async {
        let event = mp::Event::new().unwrap();
        let mut first = Box::pin(event.wait());
        let panics = Waker::from(Arc::new(Panics));
        assert!(first.as_mut().poll(&mut Context::from_waker(&panics)).is_pending());
        let mut second = Box::pin(event.wait());
        assert!(futures::poll!(&mut second).is_pending());
        event.set().unwrap();
        tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap();
    });
}

#[test]
fn futures_that_nobody_polls_keep_nobody_else_asleep() {
    run(WATCHDOG, async {
        let lock = mp::Lock::new().unwrap();
        let held = lock.acquire().await.unwrap();
        let mut idle: Vec<_> = (0..100).map(|_| Box::pin(lock.acquire())).collect();
        for future in &mut idle {
            assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let mut last = Box::pin(lock.acquire());
        assert!(futures::poll!(&mut last).is_pending());
        drop(held);
        // One after another, they would take a tick each.
        drop(tokio::time::timeout(Duration::from_secs(8), last).await.unwrap().unwrap());
    });
}

async fn hold(lock: mp::Lock, meeting: String) {
    let _guard = lock.acquire().await.unwrap();
    Call::to(&meeting).say("held");
    std::future::pending::<()>().await;
}

#[test]
fn a_death_is_seen_by_who_has_come_from_a_runtime_that_ended() {
    let _guard = guard(WATCHDOG);
    let lock = mp::Lock::new().unwrap();
    let (first, second) = (current_thread(), multi_thread());
    let mut waiting = Box::pin(lock.acquire());
    let child = second.block_on(async {
        let meeting = Meeting::new();
        let child = mp::Process::builder(hold, (lock.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "held");
        child
    });
    first.block_on(async { assert!(futures::poll!(&mut waiting).is_pending()) });
    drop(first);
    second.block_on(async {
        assert!(futures::poll!(&mut waiting).is_pending());
        kill_9(child.pid());
        let guard = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
        assert!(guard.previous_owner_died());
        drop(guard);
        child.join().await.unwrap();
    });
}

/// The memory of objects that were made since.
fn objects(before: &[String]) -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let paths = entries.map(|entry| entry.path().to_str().unwrap().to_owned());
    let is_object = |path: &String| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("tokio-multiprocess-object"))
    };
    paths.filter(|path| is_object(path) && !before.contains(path)).collect()
}

fn scribble(path: &str, at: u64, word: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&word.to_ne_bytes(), at).unwrap();
}

/// Nothing sensible is asked of it but that it panics nowhere, and that nobody else notices.
#[test]
fn memory_that_somebody_has_scribbled_over_panics_nobody() {
    run(WATCHDOG, async {
        let words =
            [1, 1 << 63, u64::MAX, u64::MAX >> 2, 255 << 25 | 1 << 33 | 7, (1 << 22) - 1, u64::MAX << 32];
        for word in words {
            // The state, the sleepers, the first cell, and what the object was made with.
            for at in [24, 64, 72, 128, 128 + 24, 192, 200, 208] {
                let before = objects(&[]);
                let semaphore = mp::Semaphore::new(1).unwrap();
                let barrier = mp::Barrier::new(2).unwrap();
                let event = mp::Event::new().unwrap();
                let lock = mp::Lock::new().unwrap();
                let condition = mp::Condition::new(&lock).unwrap();
                drop(once(semaphore.acquire()));
                drop(once(barrier.wait()));
                drop(once(event.wait()));
                let mut waiting = Box::pin(condition.lock().await.unwrap().wait());
                assert!(futures::poll!(&mut waiting).is_pending());
                for path in objects(&before) {
                    scribble(&path, at, word);
                }
                drop(semaphore.try_acquire());
                drop(semaphore.release());
                drop(once(barrier.wait()));
                drop((barrier.abort(), barrier.reset()));
                drop((event.set(), event.clear()));
                drop(waiting);
                drop(lock.try_acquire());
                drop(lock.release());
                if let Some(guard) = once(condition.lock()) {
                    let _ = guard.and_then(|guard| guard.notify(1));
                }
            }
        }
        // Who sleeps for something else is woken as ever.
        let lock = mp::Lock::new().unwrap();
        let held = lock.acquire().await.unwrap();
        let mut waiting = Box::pin(lock.acquire());
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(held);
        drop(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap());
    });
}
