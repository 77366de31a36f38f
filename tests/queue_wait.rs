//! `wait` and `WaitSet` with what stands in shared memory: queues and events.

#![cfg(target_os = "linux")]

mod support;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, poll};
use support::{PATIENCE, current_thread, guard, kill_9, multi_thread, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Event, GetError, JoinableQueue, PutErrorKind, Queue, SimpleQueue};
use tokio_multiprocess::{WaitKey, WaitSet, Waitable, wait, wait_timeout};

const WATCHDOG: u64 = 120;

/// What is ready, without waiting.
fn look(objects: &[&dyn Waitable]) -> mp::Result<Vec<usize>> {
    wait_timeout(objects, Duration::ZERO).now_or_never().expect("no time passes")
}

fn now(set: &WaitSet) -> Vec<WaitKey> {
    set.wait_timeout(Duration::ZERO).now_or_never().expect("no time passes").unwrap()
}

fn unwrap<T>(put: Result<T, impl Into<mp::Error>>) -> T {
    put.map_err(Into::into).unwrap()
}

#[test]
fn they_are_ready_as_long_as_there_is_an_item() {
    let _guard = guard(WATCHDOG);
    let (queue, simple) = (Queue::new(0).unwrap(), SimpleQueue::new().unwrap());
    let (joinable, event) = (JoinableQueue::new(2).unwrap(), Event::new().unwrap());
    let (pipe, mut peer) = mp::pipe().unwrap();
    let objects: [&dyn Waitable; 6] = [&queue, &pipe, &simple, &joinable, &event, &queue];
    let set = WaitSet::new().unwrap();
    let keys = objects.map(|object| set.insert(object).unwrap());
    let ready = |expected: &[usize]| {
        assert_eq!(look(&objects).unwrap(), expected);
        for _ in 0..2 {
            let mut told = now(&set);
            told.sort();
            assert_eq!(told, expected.iter().map(|&index| keys[index]).collect::<Vec<_>>());
        }
    };
    ready(&[]);
    for item in [1, 2] {
        unwrap(queue.try_put(item));
    }
    unwrap(simple.put("x".to_owned()).now_or_never().expect("there is room"));
    ready(&[0, 2, 5]);
    assert_eq!(queue.try_get().unwrap(), 1);
    unwrap(joinable.try_put(()));
    event.set().unwrap();
    current_thread().block_on(peer.send(&1)).unwrap();
    ready(&[0, 1, 2, 3, 4, 5]);
    assert_eq!(queue.try_get().unwrap(), 2);
    event.clear().unwrap();
    joinable.try_get().unwrap();
    // Also what is not acknowledged is got.
    ready(&[1, 2]);
    // Who gets would not wait.
    queue.shutdown().unwrap();
    ready(&[0, 1, 2, 5]);
    assert!(matches!(queue.try_get(), Err(GetError::ShutDown)));
    joinable.close();
    assert!(matches!(look(&objects), Err(mp::Error::Closed(_))));
    assert!(set.insert(&joinable).unwrap_err().is_closed());
}

async fn square(tasks: Queue<u64>, results: SimpleQueue<u64>, go: Event) {
    go.wait().await.unwrap();
    while let Ok(task) = tasks.get().await {
        unwrap(results.put(task * task).await);
    }
}

#[test]
fn what_another_process_puts_or_sets_is_waited_for() {
    run_each(WATCHDOG, async |context| {
        let (tasks, results, go) =
            (Queue::new(1).unwrap(), SimpleQueue::new().unwrap(), Event::new().unwrap());
        let child =
            context.process(square, (tasks.clone(), results.clone(), go.clone())).start().await.unwrap();
        let set = WaitSet::new().unwrap();
        let (of_results, of_child) = (set.insert(&results).unwrap(), set.insert(&child).unwrap());
        let objects: [&dyn Waitable; 3] = [&child, &go, &results];
        let setter = context.process(async |go: Event| go.set().unwrap(), (go.clone(),)).start().await;
        assert_eq!(wait(&objects).await.unwrap(), [1]);
        go.clear().unwrap();
        for task in 0..300 {
            unwrap(tasks.put(task).await);
            if task % 2 == 0 {
                assert_eq!(wait(&objects).await.unwrap(), [2]);
            } else {
                assert_eq!(set.wait().await.unwrap(), [of_results]);
            }
            assert_eq!(results.try_get().unwrap(), task * task);
        }
        tasks.shutdown().unwrap();
        assert_eq!((wait(&objects).await.unwrap(), set.wait().await.unwrap()), (vec![0], vec![of_child]));
        child.join().await.unwrap();
        setter.unwrap().join().await.unwrap();
    });
}

async fn count_up(queue: Queue<u64>) {
    for number in 0.. {
        unwrap(queue.put(number).await);
    }
}

#[test]
fn all_that_a_killed_process_has_put_is_told_of() {
    run(WATCHDOG, async {
        for kills in 0..10 {
            let queue = Queue::new(20).unwrap();
            let child = mp::Process::builder(count_up, (queue.clone(),)).daemon(true).start().await.unwrap();
            let objects: [&dyn Waitable; 2] = [&queue, &child];
            let set = WaitSet::new().unwrap();
            let of_queue = set.insert(&queue).unwrap();
            set.insert(&child).unwrap();
            let mut next = 0;
            loop {
                let (told, ended) = if next % 2 == 0 {
                    let ready = wait(&objects).await.unwrap();
                    (ready.contains(&0), ready == [1])
                } else {
                    let ready = set.wait().await.unwrap();
                    (ready.contains(&of_queue), !ready.contains(&of_queue))
                };
                if ended {
                    break;
                }
                // Of this process alone, so that nobody else has got it.
                assert!(told && queue.try_get().unwrap() == next);
                next += 1;
                if next == 100 + 13 * kills {
                    kill_9(child.pid());
                }
            }
            assert!(queue.try_get().is_err_and(|error| error.is_empty()));
            child.join().await.unwrap();
        }
    });
}

/// Waits for items again and again, and leaves them to others.
async fn look_on(queue: Queue<u64>, told: Queue<()>) {
    let set = WaitSet::new().unwrap();
    set.insert(&queue).unwrap();
    unwrap(told.put(()).await);
    loop {
        assert_eq!(set.wait().await.unwrap().len(), 1);
        unwrap(told.put(()).await);
        while !now(&set).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Each put rings for one process; at the next tick, all look, but that is slow.
#[test]
fn who_looks_on_elsewhere_keeps_no_item_from_who_gets() {
    const ROUNDS: usize = 200;
    const LOOKERS: usize = 3;
    run(WATCHDOG, async {
        let (queue, told) = (Queue::new(0).unwrap(), Queue::new(0).unwrap());
        let mut lookers = Vec::new();
        for _ in 0..LOOKERS {
            let looker = mp::Process::builder(look_on, (queue.clone(), told.clone())).daemon(true);
            lookers.push(looker.start().await.unwrap());
        }
        for _ in 0..LOOKERS {
            told.get().await.unwrap();
        }
        let (mut took, mut rounds) = (Duration::ZERO, 0);
        while told.len() < ROUNDS {
            // It polls only what was woken.
            let mut get = FuturesUnordered::from_iter([queue.get()]);
            assert!(poll!(get.next()).is_pending());
            let begin = Instant::now();
            unwrap(queue.try_put(rounds));
            assert_eq!(get.next().await.unwrap().unwrap(), rounds);
            took += begin.elapsed();
            rounds += 1;
        }
        assert!(took < ROUNDS as u32 * Duration::from_millis(20), "{took:?}");
        for looker in lookers {
            looker.kill().unwrap();
            looker.join().await.unwrap();
        }
    });
}

/// Gets what it is told of, as often as it is faster than others.
async fn scavenge(queue: Queue<u64>, got: Queue<u64>) {
    loop {
        assert_eq!(wait(&[&queue]).await.unwrap(), [0]);
        match queue.try_get() {
            Ok(item) => unwrap(got.put(item).await),
            Err(GetError::Empty) => {}
            Err(GetError::ShutDown) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn of_several_that_wait_for_an_item_one_gets_it() {
    run_each(WATCHDOG, async |context| {
        const ITEMS: u64 = 2_000;
        let (queue, got) = (Queue::new(3).unwrap(), Queue::new(0).unwrap());
        let mut children = Vec::new();
        for _ in 0..2 {
            children.push(context.process(scavenge, (queue.clone(), got.clone())).start().await.unwrap());
        }
        let here = tokio::spawn(scavenge(queue.clone(), got.clone()));
        for item in 0..ITEMS {
            unwrap(queue.put(item).await);
        }
        queue.shutdown().unwrap();
        here.await.unwrap();
        for child in children {
            assert!(child.join().await.unwrap().success());
        }
        let mut all: Vec<_> = std::iter::from_fn(|| got.try_get().ok()).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..ITEMS));
    });
}

async fn put_when_told(queue: Queue<u64>, go: Queue<u64>) {
    while let Ok(item) = go.get().await {
        unwrap(queue.put(item).await);
    }
}

/// Who slept by one runtime is woken by the next; whoever sleeps by one that nobody drives keeps nothing from
/// others.
#[test]
fn a_set_goes_from_runtime_to_runtime() {
    let _guard = guard(WATCHDOG);
    let (queue, go) = (Queue::new(0).unwrap(), Queue::new(0).unwrap());
    let putter = mp::Process::builder(put_when_told, (queue.clone(), go.clone()));
    let putter = multi_thread().block_on(putter.start()).unwrap();
    let set = WaitSet::new().unwrap();
    let key = set.insert(&queue).unwrap();
    let idle = current_thread();
    for round in 0..20 {
        let (ends, next) = (current_thread(), multi_thread());
        for runtime in [&ends, &idle] {
            assert_eq!(runtime.block_on(set.wait_timeout(Duration::from_millis(1))).unwrap(), []);
        }
        drop(ends);
        next.block_on(async {
            let mut waits = pin!(set.wait());
            assert!(poll!(&mut waits).is_pending());
            unwrap(go.try_put(round));
            let told = tokio::time::timeout(PATIENCE, waits).await.expect("it is told");
            assert_eq!(told.unwrap(), [key]);
        });
        // Nobody drives a runtime here.
        assert_eq!((now(&set), look(&[&queue]).unwrap()), (vec![key], vec![0]));
        assert_eq!(queue.try_get().unwrap(), round);
        assert_eq!((now(&set), look(&[&queue]).unwrap()), (vec![], vec![]));
    }
    go.shutdown().unwrap();
    multi_thread().block_on(putter.join()).unwrap();
}

#[test]
fn who_waits_for_a_queue_learns_that_it_is_closed() {
    run(WATCHDOG, async {
        let (queue, other) = (Queue::new(1).unwrap(), Queue::<u64>::new(0).unwrap());
        unwrap(queue.try_put(1));
        queue.try_get().unwrap();
        let objects: [&dyn Waitable; 2] = [&other, &queue];
        let set = WaitSet::new().unwrap();
        let [of_other, of_queue] = objects.map(|object| set.insert(object).unwrap());
        {
            let (mut waits, mut told) = (pin!(wait(&objects)), pin!(set.wait()));
            let mut gets = pin!(queue.get());
            assert!(poll!(&mut waits).is_pending() && poll!(&mut told).is_pending());
            assert!(poll!(&mut gets).is_pending());
            queue.close();
            let waits = tokio::time::timeout(PATIENCE, waits).await.expect("it is told");
            assert!(waits.unwrap_err().is_closed());
            let gets = tokio::time::timeout(PATIENCE, gets).await.expect("it is told");
            assert!(matches!(gets, Err(GetError::Closed)));
            assert!(poll!(&mut told).is_pending());
            unwrap(other.try_put(1));
            assert_eq!(told.await.unwrap(), [of_other]);
        }
        assert!(set.remove(of_other) && !set.remove(of_queue));

        let full = Queue::new(1).unwrap();
        unwrap(full.try_put(1));
        let (mut puts, mut reserves) = (pin!(full.put(2)), pin!(full.reserve()));
        assert!(poll!(&mut puts).is_pending() && poll!(&mut reserves).is_pending());
        full.close();
        let puts = tokio::time::timeout(PATIENCE, puts).await.expect("it is told");
        assert!(matches!(puts.unwrap_err().kind, PutErrorKind::Closed));
        let reserves = tokio::time::timeout(PATIENCE, reserves).await.expect("it is told");
        assert!(reserves.unwrap_err().is_closed());
    });
}

/// A set keeps nobody's queue, and no descriptor of one.
#[test]
fn a_queue_that_is_dropped_leaves() {
    run(WATCHDOG, async {
        let set = WaitSet::new().unwrap();
        for asleep in [false, true] {
            let queue = Queue::new(0).unwrap();
            unwrap(queue.try_put(1));
            let of_queue = set.insert(&queue).unwrap();
            assert_eq!(now(&set), [of_queue]);
            queue.try_get().unwrap();
            let again = set.insert(&queue.clone()).unwrap();
            let mut told = Box::pin(set.wait());
            if asleep {
                assert!(poll!(&mut told).is_pending());
            } else {
                unwrap(queue.try_put(2));
            }
            drop(queue);
            assert!(poll!(&mut told).is_pending());
            assert!(!set.remove(of_queue) && !set.remove(again));
        }
        drop(set);
    });
}

/// Waits that are given up at whatever point take nothing, and no bell either.
#[test]
fn waits_that_are_given_up_keep_nothing_from_others() {
    run(WATCHDOG, async {
        const ITEMS: u64 = 500;
        let queue = Queue::new(0).unwrap();
        let set = WaitSet::new().unwrap();
        set.insert(&queue).unwrap();
        let begin = Instant::now();
        for item in 0..ITEMS {
            let mut gets = FuturesUnordered::from_iter([queue.get()]);
            let mut given_up = (Box::pin(set.wait()), Box::pin(async { wait(&[&queue]).await.unwrap() }));
            assert!(poll!(&mut given_up.0).is_pending() && poll!(&mut given_up.1).is_pending());
            assert!(poll!(gets.next()).is_pending());
            unwrap(queue.try_put(item));
            if item % 2 == 0 {
                drop(given_up);
            }
            assert_eq!(gets.next().await.unwrap().unwrap(), item);
        }
        assert!(begin.elapsed() < PATIENCE);
    });
}
