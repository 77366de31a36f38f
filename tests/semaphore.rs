//! Semaphores between processes, whose holders and waiters die.

#![cfg(target_os = "linux")]

mod support;

use std::fs::File;
use std::future::Future;
use std::pin::pin;
use std::sync::{LazyLock, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::process::{Call, Meeting};
use support::{
    PATIENCE, Random, current_thread, eventually, guard, guard_with, kill_9, methods, multi_thread, run,
    run_each,
};
use tokio_multiprocess as mp;
use tokio_multiprocess::{BoundedSemaphore, Semaphore};

const WATCHDOG: u64 = 120;

/// What a future gives at once.
fn once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// From two permits down to none and back.
async fn walk(semaphore: Semaphore) {
    assert_eq!(semaphore.value(), 2);
    semaphore.acquire_raw().await.unwrap();
    assert_eq!(semaphore.value(), 1);
    semaphore.acquire_raw().await.unwrap();
    assert_eq!(semaphore.value(), 0);
    assert!(semaphore.try_acquire().unwrap().is_none());
    assert_eq!(semaphore.value(), 0);
    semaphore.release().unwrap();
    assert_eq!(semaphore.value(), 1);
    semaphore.release().unwrap();
    assert_eq!(semaphore.value(), 2);
}

// conformance: _TestSemaphore.test_semaphore
#[test]
fn it_counts_up_and_down_and_beyond_what_it_began_with() {
    run_each(WATCHDOG, async |context| {
        let semaphore = Semaphore::new(2).unwrap();
        walk(semaphore.clone()).await;
        let go_on = async |semaphore: Semaphore| {
            walk(semaphore.clone()).await;
            semaphore.release().unwrap();
            assert_eq!(semaphore.value(), 3);
            semaphore.release().unwrap();
        };
        let child = context.process(go_on, (semaphore.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!(semaphore.value(), 4);
        assert_eq!(format!("{semaphore:?}"), "Semaphore { value: 4 }");
    });
}

// conformance: _TestSemaphore.test_bounded_semaphore
#[test]
fn a_bounded_one_is_not_released_beyond_what_it_began_with() {
    run_each(WATCHDOG, async |context| {
        let semaphore = BoundedSemaphore::new(2).unwrap();
        walk((*semaphore).clone()).await;
        let go_on = async |semaphore: BoundedSemaphore| {
            assert!(matches!(semaphore.release(), Err(mp::Error::TooManyReleases)));
            walk((*semaphore).clone()).await;
            assert!(matches!(semaphore.release(), Err(mp::Error::TooManyReleases)));
        };
        let child = context.process(go_on, (semaphore.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        // A stranger's release takes a guard's place, and the guard cannot be told.
        let guard = semaphore.acquire().await.unwrap();
        semaphore.release().unwrap();
        drop(guard);
        assert_eq!(semaphore.value(), 2);
        assert_eq!(format!("{semaphore:?}"), "BoundedSemaphore { value: 2, bound: 2 }");
    });
}

// conformance: _TestSemaphore.test_timeout
#[test]
fn it_is_waited_for_for_a_limited_time() {
    run_each(WATCHDOG, async |context| {
        let semaphore = Semaphore::new(0).unwrap();
        let wait = async |semaphore: Semaphore| {
            assert!(semaphore.try_acquire().unwrap().is_none());
            assert!(semaphore.acquire_timeout(Duration::ZERO).await.unwrap().is_none());
            let (begin, time) = (Instant::now(), Duration::from_millis(100));
            assert!(semaphore.acquire_timeout(time).await.unwrap().is_none());
            assert!(begin.elapsed() >= time);
        };
        wait(semaphore.clone()).await;
        let child = context.process(wait, (semaphore.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        semaphore.release().unwrap();
        assert!(semaphore.acquire_timeout(Duration::ZERO).await.unwrap().is_some());
    });
}

/// Takes a place of the two that there are, which a holder of one of two permits must find.
fn take_place(places: &str) -> Flock<File> {
    let place = |number| {
        let file = File::options().create(true).append(true).open(format!("{places}/{number}")).unwrap();
        Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
    };
    place(0).or_else(|| place(1)).expect("no more than two hold permits")
}

async fn visit(semaphore: Semaphore, places: String, times: usize) {
    for i in 0..times {
        let _guard = match i % 3 {
            0 => semaphore.acquire().await.unwrap(),
            1 => semaphore.acquire_timeout(PATIENCE).await.unwrap().unwrap(),
            _ => match semaphore.try_acquire().unwrap() {
                Some(guard) => guard,
                None => continue,
            },
        };
        let _place = take_place(&places);
        tokio::task::yield_now().await;
    }
}

#[test]
fn any_mix_of_tasks_threads_and_processes_shares_the_permits() {
    run_each(WATCHDOG, async |context| {
        let semaphore = Semaphore::new(2).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let places = || dir.path().to_str().unwrap().to_owned();
        let mut children = Vec::new();
        for _ in 0..3 {
            children.push(context.process(visit, (semaphore.clone(), places(), 300)).start().await.unwrap());
        }
        let tasks: Vec<_> = (0..3).map(|_| tokio::spawn(visit(semaphore.clone(), places(), 200))).collect();
        let there = visit(semaphore.clone(), places(), 200);
        let thread = std::thread::spawn(move || current_thread().block_on(there));
        for task in tasks {
            task.await.unwrap();
        }
        for child in children {
            assert!(child.join().await.unwrap().success());
        }
        thread.join().unwrap();
        assert_eq!(semaphore.value(), 2);
    });
}

/// Holds two permits, one by a guard that it forgets, and has one asked for.
async fn hold(semaphore: Semaphore, meeting: String) {
    std::mem::forget(semaphore.acquire().await.unwrap());
    let _guard = semaphore.acquire_owned().await.unwrap();
    let mut waiting = pin!(semaphore.acquire());
    assert!(futures::poll!(&mut waiting).is_pending());
    Call::to(&meeting).say("held");
    std::future::pending::<()>().await;
}

#[test]
fn the_permits_of_a_killed_holder_come_back() {
    run_each(WATCHDOG, async |context| {
        let semaphore = Semaphore::new(2).unwrap();
        let meeting = Meeting::new();
        let child = context.process(hold, (semaphore.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "held");
        assert!(semaphore.try_acquire().unwrap().is_none());
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let semaphore = semaphore.clone();
                tokio::spawn(async move { semaphore.acquire_owned().await.unwrap() })
            })
            .collect();
        // Stopped is not dead.
        kill(Pid::from_raw(child.pid()), Signal::SIGSTOP).unwrap();
        assert!(semaphore.acquire_timeout(Duration::from_millis(700)).await.unwrap().is_none());
        let begin = Instant::now();
        kill_9(child.pid());
        let mut guards = Vec::new();
        for waiting in waiting {
            guards.push(waiting.await.unwrap());
        }
        eprintln!("both taken over after {:?}", begin.elapsed());
        child.join().await.unwrap();
        assert_eq!(semaphore.value(), 0);
        drop(guards);
        assert_eq!(semaphore.value(), 2);
    });
}

#[test]
fn one_try_finds_what_the_dead_have_left() {
    run_each(WATCHDOG, async |context| {
        let semaphore = Semaphore::new(2).unwrap();
        let meeting = Meeting::new();
        let child = context.process(hold, (semaphore.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "held");
        kill_9(child.pid());
        child.join().await.unwrap();
        let first = semaphore.try_acquire().unwrap().unwrap();
        let second = once(semaphore.acquire()).unwrap().unwrap();
        assert!(semaphore.try_acquire().unwrap().is_none());
        drop((first, second));
        assert_eq!(semaphore.value(), 2);
    });
}

#[test]
fn a_process_that_ends_gives_back_what_it_forgot_but_not_what_nobody_holds() {
    run_each(WATCHDOG, async |context| {
        let semaphore = Semaphore::new(3).unwrap();
        let forget = async |semaphore: Semaphore| {
            std::mem::forget(semaphore.acquire().await.unwrap());
            semaphore.acquire_raw().await.unwrap();
        };
        let child = context.process(forget, (semaphore.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!(semaphore.value(), 1);
        let first = semaphore.try_acquire().unwrap().unwrap();
        let second = semaphore.try_acquire().unwrap().unwrap();
        assert!(semaphore.try_acquire().unwrap().is_none());
        drop((first, second));
        semaphore.release().unwrap();
        assert_eq!(semaphore.value(), 3);
    });
}

#[test]
fn killed_at_any_instant_holders_and_waiters_leave_all_permits() {
    run_each(WATCHDOG, async |context| {
        let semaphore = Semaphore::new(2).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random::new();
        let start = async || {
            let places = dir.path().to_str().unwrap().to_owned();
            context.process(visit, (semaphore.clone(), places, usize::MAX)).start().await.unwrap()
        };
        let mut children = Vec::new();
        for _ in 0..4 {
            children.push(start().await);
        }
        for _ in 0..40 {
            // Whatever they are at.
            tokio::time::sleep(Duration::from_micros(random.below(10_000))).await;
            let child = children.swap_remove(random.below(4) as usize);
            child.kill().unwrap();
            assert_eq!(child.join().await.unwrap().signal(), Some(9));
            let guard = semaphore.acquire_timeout(PATIENCE).await.unwrap().expect("nobody waits for long");
            drop(guard);
            children.push(start().await);
        }
        for child in children {
            child.kill().unwrap();
            assert_eq!(child.join().await.unwrap().signal(), Some(9));
        }
        let first = semaphore.try_acquire().unwrap().unwrap();
        let second = semaphore.acquire_timeout(PATIENCE).await.unwrap().unwrap();
        assert!(semaphore.try_acquire().unwrap().is_none());
        drop((first, second));
        assert_eq!(semaphore.value(), 2);
    });
}

static STATIC: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(1).unwrap());

#[test]
fn a_static_is_the_same_in_a_forked_child() {
    let _guard = guard_with(WATCHDOG, &STATIC);
    let [.., fork] = &methods()[..] else { unreachable!() };
    multi_thread().block_on(async {
        let held = STATIC.acquire().await.unwrap();
        let meeting = Meeting::new();
        let use_it = async |meeting: String| {
            assert!(STATIC.try_acquire().unwrap().is_none());
            Call::to(&meeting).say("held");
            let _guard = STATIC.acquire().await.unwrap();
            // It can be sent on, too.
            let (mut a, mut b) = mp::pipe().unwrap();
            a.send(&*STATIC).await.unwrap();
            let same: Semaphore = b.recv().await.unwrap();
            assert_eq!(same.value(), 0);
        };
        let child = fork.process(use_it, (meeting.address(),)).start().await.unwrap();
        assert_eq!(meeting.word().await, "held");
        drop(held);
        assert!(child.join().await.unwrap().success());
        assert_eq!(STATIC.value(), 1);
    });
}

#[test]
fn what_is_dropped_in_a_copy_of_the_process_gives_nothing_back() {
    static HELD: Mutex<Option<mp::OwnedSemaphoreGuard>> = Mutex::new(None);
    let _guard = guard(WATCHDOG);
    let [.., fork] = &methods()[..] else { unreachable!() };
    multi_thread().block_on(async {
        let semaphore = Semaphore::new(1).unwrap();
        *HELD.lock().unwrap() = Some(semaphore.acquire_owned().await.unwrap());
        let child = fork.process(|| drop(HELD.lock().unwrap().take()), ()).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!(semaphore.value(), 0);
        drop(HELD.lock().unwrap().take());
        assert_eq!(semaphore.value(), 1);
    });
}

#[test]
fn acquisitions_that_are_cancelled_leave_it_as_it_was() {
    let _guard = guard(WATCHDOG);
    for runtime in [current_thread(), multi_thread()] {
        let mut random = Random::new();
        runtime.block_on(async {
            let semaphore = Semaphore::new(2).unwrap();
            let mut got = 0;
            for i in 0..17_000 {
                let held = semaphore.acquire().await.unwrap();
                let other = if i % 3 > 0 { Some(semaphore.acquire().await.unwrap()) } else { None };
                let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(semaphore.acquire())).collect();
                for waiting in &mut waiting {
                    got += usize::from(futures::poll!(waiting).is_ready());
                }
                // Now they are called, or will have been when they go.
                let at = random.below(4) as usize;
                let (mut other, mut held) = (other, Some(held));
                for step in 0..4 {
                    if step == at {
                        drop((held.take(), other.take()));
                    } else if !waiting.is_empty() {
                        drop(waiting.swap_remove(random.below(waiting.len() as u64) as usize));
                    }
                }
                drop((held, other, waiting));
                assert_eq!(semaphore.value(), 2);
            }
            assert!(got > 0);
        });
    }
}

#[test]
fn one_that_is_called_and_goes_has_the_next_called() {
    run(WATCHDOG, async {
        let semaphore = Semaphore::new(1).unwrap();
        let held = semaphore.acquire().await.unwrap();
        let (here, there) = (semaphore.clone(), semaphore.clone());
        let mut first = Box::pin(here.acquire());
        assert!(futures::poll!(&mut first).is_pending());
        let second = tokio::spawn(async move { drop(there.acquire().await.unwrap()) });
        tokio::task::yield_now().await;
        drop(held);
        drop(first);
        eventually("the second one gets it", || second.is_finished()).await;
        assert_eq!(semaphore.value(), 1);
    });
}

#[test]
fn it_works_across_runtimes_and_outlives_them() {
    let _guard = guard(WATCHDOG);
    let semaphore = Semaphore::new(1).unwrap();
    let held = once(semaphore.acquire()).unwrap().unwrap();
    let (first, second) = (current_thread(), multi_thread());
    let mut waiting = Box::pin(semaphore.acquire());
    first.block_on(async { assert!(futures::poll!(&mut waiting).is_pending()) });
    drop(first);
    second.block_on(async {
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(held);
        let held = waiting.await.unwrap();
        assert_eq!(semaphore.value(), 0);
        drop(held);
    });
    drop(second);
    let owned = once(semaphore.acquire_owned()).unwrap().unwrap();
    assert!(semaphore.try_acquire().unwrap().is_none());
    drop(owned);
    assert_eq!(semaphore.value(), 1);
}

#[test]
fn what_is_no_such_semaphore_is_an_error() {
    run(WATCHDOG, async {
        let many = Semaphore::new(4_194_303).unwrap();
        assert!(matches!(many.release(), Err(mp::Error::TooManyReleases)));
        for permits in [4_194_304, usize::MAX] {
            assert!(matches!(Semaphore::new(permits), Err(mp::Error::InvalidArgument(_))));
            assert!(matches!(BoundedSemaphore::new(permits), Err(mp::Error::InvalidArgument(_))));
        }
        let (mut a, mut b) = mp::pipe().unwrap();
        a.send(&mp::Lock::new().unwrap()).await.unwrap();
        assert!(matches!(b.recv::<Semaphore>().await, Err(mp::Error::Decode(_))));
        a.send(&Semaphore::new(2).unwrap()).await.unwrap();
        assert!(matches!(b.recv::<BoundedSemaphore>().await, Err(mp::Error::Decode(_))));
        // A bounded one is a semaphore, and keeps its bound.
        a.send(&BoundedSemaphore::new(2).unwrap()).await.unwrap();
        assert!(b.recv::<Semaphore>().await.unwrap().release().is_err());
    });
}
