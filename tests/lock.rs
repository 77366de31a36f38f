//! Locks between processes, whose holders and waiters die.

mod support;

use std::fs;
use std::future::Future;
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::process::{Call, Meeting};
use support::{
    Random, current_thread, eventually, guard, guard_with, kill_9, methods, multi_thread, run, run_each,
};
use tokio_multiprocess as mp;
use tokio_multiprocess::Lock;

const WATCHDOG: u64 = 120;

/// Adds one in a way that loses count without a lock.
fn add(path: &str) {
    let count: u64 = fs::read_to_string(path).unwrap().parse().unwrap();
    std::thread::yield_now();
    fs::write(path, (count + 1).to_string()).unwrap();
}

/// A future that is dropped after its first poll.
fn once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

// conformance: _TestLock.test_lock_context
#[test]
fn a_guard_holds_it_for_a_scope() {
    run(WATCHDOG, async {
        let lock = Lock::new().unwrap();
        {
            let guard = lock.acquire().await.unwrap();
            assert!(lock.locked() && lock.try_acquire().unwrap().is_none());
            assert!(!guard.previous_owner_died());
        }
        assert!(!lock.locked());
        let owned = lock.acquire_owned().await.unwrap();
        let short = lock.acquire_timeout(Duration::from_millis(50)).await.unwrap();
        assert!(short.is_none() && lock.acquire_timeout(Duration::ZERO).await.unwrap().is_none());
        drop(owned);
        assert!(lock.acquire_timeout(Duration::ZERO).await.unwrap().is_some());
    });
}

#[test]
fn what_is_released_by_the_wrong_one_stays() {
    run(WATCHDOG, async {
        let lock = Lock::new().unwrap();
        assert!(matches!(lock.release(), Err(mp::Error::TooManyReleases)));
        let guard = lock.acquire().await.unwrap();
        assert!(matches!(lock.release(), Err(mp::Error::NotOwner)));
        drop(guard);
        // Handed over: taken here, given back in another process.
        lock.acquire_raw().await.unwrap();
        let release = |lock: Lock| lock.release().unwrap();
        let child = mp::Process::builder(release, (lock.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert!(!lock.locked());
    });
}

async fn hammer(lock: Lock, path: String, times: u32) {
    for _ in 0..times {
        let _guard = lock.acquire().await.unwrap();
        add(&path);
    }
}

#[test]
fn any_mix_of_tasks_threads_and_processes_excludes_each_other() {
    run_each(WATCHDOG, async |context| {
        let lock = Lock::new().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "0").unwrap();
        let path = || file.path().to_str().unwrap().to_owned();
        let mut children = Vec::new();
        for _ in 0..3 {
            children.push(context.process(hammer, (lock.clone(), path(), 200)).start().await.unwrap());
        }
        let tasks: Vec<_> = (0..3).map(|_| tokio::spawn(hammer(lock.clone(), path(), 100))).collect();
        let (there, at) = (lock.clone(), path());
        let thread = std::thread::spawn(move || current_thread().block_on(hammer(there, at, 100)));
        for task in tasks {
            task.await.unwrap();
        }
        for child in children {
            assert!(child.join().await.unwrap().success());
        }
        thread.join().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1000");
    });
}

async fn hold(lock: Lock, meeting: String) {
    let _guard = lock.acquire().await.unwrap();
    Call::to(&meeting).say("held");
    std::future::pending::<()>().await;
}

#[test]
fn the_lock_of_a_killed_holder_goes_to_the_next() {
    run_each(WATCHDOG, async |context| {
        let lock = Lock::new().unwrap();
        let meeting = Meeting::new();
        let child = context.process(hold, (lock.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "held");
        assert!(lock.try_acquire().unwrap().is_none());
        let waiting = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire_owned().await.unwrap().previous_owner_died() }
        });
        // Stopped is not dead.
        kill(Pid::from_raw(child.pid()), Signal::SIGSTOP).unwrap();
        assert!(lock.acquire_timeout(Duration::from_millis(700)).await.unwrap().is_none());
        let begin = Instant::now();
        kill_9(child.pid());
        assert!(waiting.await.unwrap());
        eprintln!("taken over after {:?}", begin.elapsed());
        child.join().await.unwrap();
        // Until somebody says that all is well.
        let guard = lock.acquire().await.unwrap();
        assert!(guard.previous_owner_died());
        guard.acknowledge();
        drop(guard);
        assert!(!lock.acquire().await.unwrap().previous_owner_died());
    });
}

static STATIC: LazyLock<Lock> = LazyLock::new(|| Lock::new().unwrap());

#[test]
fn a_static_is_the_same_in_a_forked_child() {
    let _guard = guard_with(WATCHDOG, &STATIC);
    let [.., fork] = &methods()[..] else { unreachable!() };
    multi_thread().block_on(async {
        let held = STATIC.acquire().await.unwrap();
        let meeting = Meeting::new();
        let use_it = async |meeting: String| {
            let mut call = Call::to(&meeting);
            assert!(STATIC.try_acquire().unwrap().is_none());
            call.say("held");
            let guard = STATIC.acquire().await.unwrap();
            // It can be sent on, too.
            let (mut a, mut b) = mp::pipe().unwrap();
            a.send(&*STATIC).await.unwrap();
            let same: Lock = b.recv().await.unwrap();
            assert!(same.locked());
            drop(guard);
            assert!(!same.locked());
        };
        let child = fork.process(use_it, (meeting.address(),)).start().await.unwrap();
        assert_eq!(meeting.word().await, "held");
        drop(held);
        assert!(child.join().await.unwrap().success());
        assert!(!STATIC.locked());
    });
}

#[test]
fn what_is_dropped_in_a_copy_of_the_process_gives_nothing_back() {
    let _guard = guard(WATCHDOG);
    let [.., fork] = &methods()[..] else { unreachable!() };
    static HELD: std::sync::Mutex<Option<mp::OwnedLockGuard>> = std::sync::Mutex::new(None);
    multi_thread().block_on(async {
        let lock = Lock::new().unwrap();
        *HELD.lock().unwrap() = Some(lock.acquire_owned().await.unwrap());
        let child = fork.process(|| drop(HELD.lock().unwrap().take()), ()).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert!(lock.locked());
        drop(HELD.lock().unwrap().take());
        assert!(!lock.locked());
    });
}

#[test]
fn acquisitions_that_are_cancelled_leave_it_as_it_was() {
    let _guard = guard(WATCHDOG);
    for runtime in [current_thread(), multi_thread()] {
        let mut random = Random::new();
        runtime.block_on(async {
            let lock = Lock::new().unwrap();
            let mut got = 0;
            for i in 0..50_000 {
                let held = if i % 3 > 0 { Some(lock.acquire().await.unwrap()) } else { None };
                let mut first = Box::pin(lock.acquire());
                let mut second = Box::pin(lock.acquire());
                let polled = [futures::poll!(&mut first).is_ready(), futures::poll!(&mut second).is_ready()];
                got += usize::from(polled[0]) + usize::from(polled[1]);
                if random.below(2) == 0 {
                    drop(first);
                    drop(held);
                } else {
                    drop(held);
                    // It was called, and goes without having looked.
                    drop(first);
                }
                if random.below(4) == 0 {
                    drop(second.await.unwrap());
                } else {
                    drop(second);
                }
                assert!(!lock.locked());
            }
            assert!(got > 0);
            drop(lock.acquire_timeout(Duration::ZERO).await.unwrap().unwrap());
        });
    }
}

#[test]
fn one_that_is_called_and_goes_has_the_next_called() {
    run(WATCHDOG, async {
        let lock = Lock::new().unwrap();
        let held = lock.acquire().await.unwrap();
        let (lock_1, lock_2) = (lock.clone(), lock.clone());
        let mut first = Box::pin(lock_1.acquire());
        assert!(futures::poll!(&mut first).is_pending());
        let second = tokio::spawn(async move { drop(lock_2.acquire().await.unwrap()) });
        eventually("both sleep", || !second.is_finished()).await;
        tokio::task::yield_now().await;
        drop(held);
        drop(first);
        tokio::time::timeout(support::PATIENCE, second).await.unwrap().unwrap();
    });
}

#[test]
fn it_works_across_runtimes_and_outlives_them() {
    let _guard = guard(WATCHDOG);
    let lock = Lock::new().unwrap();
    let held = once(lock.acquire()).unwrap().unwrap();
    let (first, second) = (current_thread(), multi_thread());
    let mut waiting = Box::pin(lock.acquire());
    first.block_on(async { assert!(futures::poll!(&mut waiting).is_pending()) });
    drop(first);
    second.block_on(async {
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(held);
        drop(waiting.await.unwrap());
    });
    drop(second);
    assert!(lock.try_acquire().unwrap().is_some());
}

#[test]
fn what_is_no_lock_is_an_error() {
    run(WATCHDOG, async {
        let (mut a, mut b) = mp::pipe().unwrap();
        let file = || mp::Handle::new(fs::File::open("/dev/null").unwrap());
        a.send(&file()).await.unwrap();
        assert!(matches!(b.recv::<Lock>().await, Err(mp::Error::Decode(_))));
        a.send(&mp::Blob::new(vec![0; 8192]).unwrap()).await.unwrap();
        assert!(matches!(b.recv::<Lock>().await, Err(mp::Error::Decode(_))));
        // The same lock is the same again.
        let lock = Lock::new().unwrap();
        for _ in 0..300 {
            a.send(&lock).await.unwrap();
        }
        let mut same = Vec::new();
        for _ in 0..300 {
            same.push(b.recv::<Lock>().await.unwrap());
        }
        let guard = same[0].acquire().await.unwrap();
        assert!(same[299].locked() && lock.locked());
        drop(guard);
    });
}
