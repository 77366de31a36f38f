//! Everything with processes that are killed at each of their accesses to what they share.

use std::fmt::Debug;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::protocol::words::kill_points::kill_at;
use super::{Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore};
use crate::sys::AsFd;
use crate::sys::fd::poll_readable;
use crate::sys::process::{Exit, Fork, exit_now, fork, pidfd_open, try_wait};

/// More points than any operation has.
const POINTS: u64 = 1000;
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What needs not wait.
pub(crate) fn now<T, E: Debug>(future: impl Future<Output = Result<T, E>>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done.unwrap(),
        Poll::Pending => panic!("it waits"),
    }
}

/// Whether a copy of this process came to the end of what it does, being killed at the point of a number.
fn ends(point: u64, act: impl Fn()) -> bool {
    match fork().unwrap() {
        Fork::Child => {
            kill_at(point);
            // Beyond this there is another process's thread.
            let acted = catch_unwind(AssertUnwindSafe(act));
            exit_now(i32::from(acted.is_err()))
        }
        Fork::Parent { pid } => {
            let child = pidfd_open(pid).unwrap();
            poll_readable(child.as_fd(), None).unwrap();
            match try_wait(child.as_fd()).unwrap().unwrap() {
                Exit::Code(0) => true,
                Exit::Signal { .. } => false,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// For each point at which who acts can be killed, and once to its end: what was made, then, while this process
/// waits as `wait` does, that is to be so afterwards.
pub(crate) fn at_each_point<T: Clone, W: Future<Output = ()>>(
    make: impl Fn() -> T,
    wait: impl Fn(T) -> W,
    act: impl Fn(&T),
    then: impl Fn(&T, bool),
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for point in 0..POINTS {
        let shared = make();
        let ended = runtime.block_on(async {
            let mut waiting: Pin<Box<W>> = Box::pin(wait(shared.clone()));
            // It sleeps before anything happens, if it has to at all.
            let early = futures_poll(&mut waiting).await;
            let ended = ends(point, || act(&shared));
            then(&shared, ended);
            if !early {
                tokio::time::timeout(PATIENCE, waiting).await.expect("nobody waits for the dead");
            }
            ended
        });
        if ended {
            assert!(point > 0, "there are points");
            return;
        }
    }
    panic!("it never came to its end");
}

async fn futures_poll(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_ready())).await
}

#[test]
fn a_lock_is_free_again_whatever_its_holder_died_at() {
    at_each_point(
        || Lock::new().unwrap(),
        async |_| {},
        |lock| drop(now(lock.acquire())),
        |lock, ended| {
            let guard = lock.try_acquire().unwrap().expect("the dead hold nothing");
            assert!(!ended || !guard.previous_owner_died());
        },
    );
}

#[test]
fn a_recursive_lock_is_free_again_whatever_its_holder_died_at() {
    at_each_point(
        || RLock::new().unwrap(),
        async |_| {},
        |lock| {
            let guard = now(lock.acquire());
            drop(guard.reenter().unwrap());
        },
        |lock, _| {
            let guard = lock.try_acquire().unwrap().expect("the dead hold nothing");
            drop(guard.reenter().unwrap());
            drop(guard);
            assert!(!lock.locked());
        },
    );
}

#[test]
fn who_waits_for_a_lock_gets_it_whatever_its_holder_died_at() {
    // The holder is the process that acts: it takes it before it passes points.
    at_each_point(
        || (Lock::new().unwrap(), Lock::new().unwrap()),
        async |_| {},
        |(first, second)| {
            let held = now(first.acquire());
            drop(now(second.acquire()));
            drop(held);
        },
        |locks, _| {
            for lock in [&locks.0, &locks.1] {
                drop(lock.try_acquire().unwrap().expect("the dead hold nothing"));
            }
        },
    );
}

#[test]
fn permits_come_back_whatever_their_holder_died_at() {
    at_each_point(
        || Semaphore::new(2).unwrap(),
        async |_| {},
        |semaphore| {
            let first = now(semaphore.acquire());
            drop(now(semaphore.acquire()));
            drop(first);
        },
        |semaphore, _| {
            let both = [(); 2].map(|()| semaphore.try_acquire().unwrap().expect("the dead hold nothing"));
            assert!(semaphore.try_acquire().unwrap().is_none());
            drop(both);
            assert_eq!(semaphore.value(), 2);
        },
    );
    at_each_point(
        || BoundedSemaphore::new(1).unwrap(),
        async |_| {},
        |semaphore| drop(now(semaphore.acquire())),
        |semaphore, _| {
            drop(semaphore.try_acquire().unwrap().expect("the dead hold nothing"));
            assert!(semaphore.release().is_err());
        },
    );
}

#[test]
fn an_event_is_set_or_not_whatever_who_sets_it_died_at() {
    at_each_point(
        || Event::new().unwrap(),
        async |event: Event| event.wait().await.unwrap(),
        |event| event.set().unwrap(),
        |event, ended| {
            assert!(!ended || event.is_set());
            // Else nobody has set it, and who waits goes on waiting, rightly.
            if !event.is_set() {
                event.set().unwrap();
            }
        },
    );
}

#[test]
fn who_waits_for_a_condition_is_woken_by_the_next_whatever_the_first_died_at() {
    at_each_point(
        || Condition::new(Lock::new().unwrap()).unwrap(),
        async |condition: Condition| drop(condition.lock().await.unwrap().wait().await.unwrap()),
        |condition| assert_eq!(now(condition.lock()).notify(1).unwrap(), 1),
        |condition, ended| {
            if !ended {
                let guard = now(condition.lock());
                guard.notify_all().unwrap();
            }
        },
    );
}

#[test]
fn who_waits_at_a_barrier_passes_or_is_told_whatever_the_other_died_at() {
    at_each_point(
        || Barrier::new(2).unwrap(),
        async |barrier: Barrier| match barrier.wait().await {
            Ok(index) => assert!(index < 2),
            Err(error) => assert!(error.is_broken_barrier(), "{error}"),
        },
        |barrier| match pin!(barrier.wait()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(passed) => drop(passed.unwrap()),
            Poll::Pending => panic!("the other is there"),
        },
        |barrier, ended| {
            // One that died before it had arrived at all is none of those who are known to come.
            if !ended && barrier.n_waiting() == 1 && !barrier.broken() {
                barrier.abort().unwrap();
            }
        },
    );
}
