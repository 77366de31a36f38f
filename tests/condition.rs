//! Conditions between processes, of which some die.

#![cfg(target_os = "linux")]

mod support;

use std::pin::pin;
use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::{FutureExt, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::process::{Call, Meeting};
use support::{
    Notebook, PATIENCE, Random, alone, current_thread, eventually, guard, kill_9, methods, multi_thread,
    note, run, run_each, watchdog,
};
use tokio::task::coop::unconstrained;
use tokio_multiprocess as mp;
use tokio_multiprocess::{Condition, ConditionLock, Error, Lock, Process, RLock, RawValue};

const WATCHDOG: u64 = 120;
const NEVER: Duration = Duration::from_millis(100);
const SURELY: Duration = Duration::from_secs(60);

fn over_lock() -> Condition {
    Condition::new(Lock::new().unwrap()).unwrap()
}

fn over_rlock() -> Condition {
    Condition::new(RLock::new().unwrap()).unwrap()
}

async fn notify(condition: &Condition, n: usize) -> usize {
    condition.lock().await.unwrap().notify(n).unwrap()
}

/// Nobody holds the lock, nobody waits, and it works.
async fn assert_idle(condition: &Condition) {
    assert_eq!(condition.waiting(), 0);
    let guard = condition.lock().now_or_never().expect("nobody holds the lock").unwrap();
    assert_eq!(guard.notify_all().unwrap(), 0);
    let mut waiting = pin!(unconstrained(guard.wait()));
    assert!(poll!(&mut waiting).is_pending());
    assert_eq!((condition.waiting(), notify(condition, 2).await), (1, 1));
    drop(waiting.await.unwrap());
}

/// Waits once, and notes what came of it.
async fn wait_once(condition: Condition, time: Option<Duration>, notebook: String) {
    let guard = condition.lock().await.unwrap();
    let (_guard, woken) = match time {
        Some(time) => guard.wait_timeout(time).await.unwrap(),
        None => (guard.wait().await.unwrap(), true),
    };
    note(&notebook, if woken { "woken" } else { "in vain" });
}

fn in_thread(future: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || current_thread().block_on(future))
}

async fn join(children: Vec<Process>, threads: Vec<JoinHandle<()>>) {
    for child in children {
        assert!(child.join().await.unwrap().success());
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// So many processes and so many threads that wait.
async fn waiters(
    context: &mp::Context,
    condition: &Condition,
    time: Option<Duration>,
    notebook: &Notebook,
    each: usize,
) -> (Vec<Process>, Vec<JoinHandle<()>>) {
    let (mut children, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..each {
        let args = || (condition.clone(), time, notebook.path());
        children.push(context.process(wait_once, args()).start().await.unwrap());
        let (condition, time, notebook) = args();
        threads.push(in_thread(wait_once(condition, time, notebook)));
    }
    (children, threads)
}

// conformance: _TestCondition.test_notify
#[test]
fn a_notification_wakes_one() {
    run_each(WATCHDOG, async |context| {
        for condition in [over_lock(), over_rlock()] {
            let notebook = Notebook::new();
            let (children, threads) = waiters(&context, &condition, None, &notebook, 1).await;
            eventually("both wait", || condition.waiting() == 2).await;
            assert_eq!(notebook.count("woken"), 0);
            for woken in 1..=2 {
                assert_eq!(notify(&condition, 1).await, 1);
                notebook.wait_for("woken", woken).await;
                assert_eq!((notebook.count("woken"), condition.waiting()), (woken, 2 - woken));
            }
            join(children, threads).await;
            assert_idle(&condition).await;
        }
    });
}

// conformance: _TestCondition.test_notify_all
#[test]
fn all_are_notified_but_those_who_have_given_up() {
    run_each(WATCHDOG, async |context| {
        let condition = over_lock();
        let notebook = Notebook::new();
        let (children, threads) = waiters(&context, &condition, Some(NEVER), &notebook, 3).await;
        join(children, threads).await;
        assert_eq!((notebook.count("in vain"), condition.waiting()), (6, 0));
        let (children, threads) = waiters(&context, &condition, None, &notebook, 3).await;
        eventually("all wait", || condition.waiting() == 6).await;
        assert_eq!(notebook.count("woken"), 0);
        let guard = condition.lock().await.unwrap();
        assert_eq!((guard.notify_all().unwrap(), condition.waiting()), (6, 0));
        // They have to wait for the lock.
        assert_eq!(notebook.count("woken"), 0);
        drop(guard);
        join(children, threads).await;
        assert_eq!(notebook.count("woken"), 6);
        assert_idle(&condition).await;
    });
}

/// Sets it to 0, and waits until it is 4.
async fn begin_and_wait(condition: Condition, state: RawValue<u32>) {
    let guard = condition.lock().await.unwrap();
    state.set(0);
    guard.notify(1).unwrap();
    let _guard = guard.wait_for(|| state.get() == 4).await.unwrap();
    assert_eq!(state.get(), 4);
}

// conformance: _TestCondition.test_waitfor
#[test]
fn what_is_waited_for_is_looked_at_again_and_again() {
    run_each(WATCHDOG, async |context| {
        let (condition, state) = (over_rlock(), RawValue::new(u32::MAX).unwrap());
        let guard = condition.lock().await.unwrap();
        let child =
            context.process(begin_and_wait, (condition.clone(), state.clone())).start().await.unwrap();
        drop(guard.wait_for(|| state.get() == 0).await.unwrap());
        for step in 1..=4 {
            eventually("the child waits again", || condition.waiting() == 1).await;
            let guard = condition.lock().await.unwrap();
            state.set(step);
            assert_eq!(guard.notify(1).unwrap(), 1);
        }
        assert!(child.join().await.unwrap().success());
    });
}

/// Notifies three times, each time after the other waits again.
async fn notify_three_times(condition: Condition, meeting: String) {
    let mut call = Call::to(&meeting);
    for _ in 0..3 {
        while notify(&condition, 1).await == 0 {
            tokio::task::yield_now().await;
        }
    }
    call.say("notified");
}

// conformance: _TestCondition.test_waitfor_timeout
#[test]
fn a_limit_is_one_for_all_rounds() {
    run_each(WATCHDOG, async |context| {
        let condition = over_lock();
        let meeting = Meeting::new();
        let target = (condition.clone(), meeting.address());
        let child = context.process(notify_three_times, target).start().await.unwrap();
        let mut caller = meeting.accept().await;
        let (mut rounds, limit, begin) = (0, Duration::from_millis(600), Instant::now());
        let is_so = || {
            rounds += 1;
            false
        };
        let guard = condition.lock().await.unwrap();
        let (guard, reached) = guard.wait_for_timeout(limit, is_so).await.unwrap();
        let time = begin.elapsed();
        drop(guard);
        assert!(!reached && time >= limit, "{time:?}");
        // At first, after each notification, and at the end.
        assert!(rounds >= 2);
        // Those it still has to give find nobody, unless somebody waits.
        while poll!(pin!(caller.hear())).is_pending() {
            let guard = condition.lock().await.unwrap();
            drop(guard.wait_timeout(Duration::from_millis(1)).await.unwrap());
        }
        assert!(child.join().await.unwrap().success());
        let guard = condition.lock().await.unwrap();
        assert!(guard.wait_for_timeout(Duration::MAX, || true).await.unwrap().1);
        assert_idle(&condition).await;
    });
}

async fn notify_when_waited_for(condition: Condition) {
    while notify(&condition, 1).await == 0 {
        tokio::task::yield_now().await;
    }
}

/// Blocks in a wait until SIGINT comes.
fn wait_until_interrupted(condition: Condition, meeting: String) {
    let waiting = async {
        let guard = condition.lock().await.unwrap();
        Call::to(&meeting).say("locked");
        guard.wait_timeout(SURELY).await.map(drop)
    };
    assert!(matches!(mp::block_on(waiting), Err(Error::Interrupted)));
    // As it was broken off, the lock is free, and can be taken again.
    mp::block_on(assert_idle(&condition)).unwrap();
    Call::to(&meeting).say("idle");
}

// conformance: _TestCondition.test_wait_result
#[test]
fn a_wait_says_whether_it_was_in_vain() {
    run_each(WATCHDOG, async |context| {
        let condition = over_lock();
        let guard = condition.lock().await.unwrap();
        let (guard, woken) = guard.wait_timeout(Duration::ZERO).await.unwrap();
        assert!(!woken);
        let begin = Instant::now();
        let (guard, woken) = guard.wait_timeout(NEVER).await.unwrap();
        assert!(!woken && begin.elapsed() >= NEVER);
        let child = context.process(notify_when_waited_for, (condition.clone(),)).start().await.unwrap();
        let (guard, woken) = guard.wait_timeout(SURELY).await.unwrap();
        assert!(woken);
        drop(guard);
        assert!(child.join().await.unwrap().success());

        let meeting = Meeting::new();
        let target = (condition.clone(), meeting.address());
        let child = context.process(wait_until_interrupted, target).start().await.unwrap();
        assert_eq!(meeting.word().await, "locked");
        eventually("it waits", || condition.waiting() == 1).await;
        kill(Pid::from_raw(child.pid()), Signal::SIGINT).unwrap();
        assert_eq!(meeting.word().await, "idle");
        assert!(child.join().await.unwrap().success());
        assert_idle(&condition).await;
    });
}

#[test]
fn who_does_not_hold_the_lock_cannot_notify() {
    run_each(WATCHDOG, async |context| {
        async fn cannot(condition: Condition) {
            assert!(matches!(condition.notify(1), Err(Error::NotOwner)));
            assert!(matches!(condition.notify_all(), Err(Error::NotOwner)));
        }
        for (lock, rlock) in [(Some(Lock::new().unwrap()), None), (None, Some(RLock::new().unwrap()))] {
            let over: ConditionLock = match (&lock, &rlock) {
                (Some(lock), _) => lock.into(),
                (_, Some(rlock)) => rlock.into(),
                _ => unreachable!(),
            };
            let condition = Condition::new(over).unwrap();
            cannot(condition.clone()).await;
            let guard = condition.lock().await.unwrap();
            assert_eq!(condition.notify(1).unwrap(), 0);
            // Of a lock, not to say of which task it is, the process is known; of the other, the task.
            let child = context.process(cannot, (condition.clone(),)).start().await.unwrap();
            assert!(child.join().await.unwrap().success());
            if rlock.is_some() {
                tokio::spawn(cannot(condition.clone())).await.unwrap();
            }
            let mut waiting = pin!(unconstrained(guard.wait()));
            assert!(poll!(&mut waiting).is_pending());
            cannot(condition.clone()).await;
            match (&lock, &rlock) {
                (Some(lock), _) => {
                    lock.acquire_raw().await.unwrap();
                    assert_eq!(condition.notify(1).unwrap(), 1);
                    lock.release().unwrap();
                }
                (_, Some(rlock)) => {
                    rlock.acquire_raw().await.unwrap();
                    assert_eq!(condition.notify_all().unwrap(), 1);
                    rlock.release().unwrap();
                }
                _ => unreachable!(),
            }
            drop(waiting.await.unwrap());
        }
    });
}

/// Plays a ball to and fro: whoever has it notifies the other, and waits for it to come back.
async fn play(condition: Condition, ball: RawValue<u32>, mine: u32) {
    let mut guard = condition.lock().await.unwrap();
    while ball.get() < 2000 {
        if ball.get() % 2 == mine {
            ball.set(ball.get() + 1);
            guard.notify(1).unwrap();
        } else {
            guard = guard.wait().await.unwrap();
        }
    }
}

/// Who notifies and then waits does not wake itself by that, and who is woken need not wait for a tick.
#[test]
fn a_notification_is_for_those_who_were_there() {
    run_each(WATCHDOG, async |context| {
        for beyond in [false, true] {
            let (condition, ball) = (over_lock(), RawValue::new(0u32).unwrap());
            let here = tokio::spawn(play(condition.clone(), ball.clone(), 0));
            if beyond {
                let target = (condition.clone(), ball, 1);
                let child = context.process(play, target).start().await.unwrap();
                assert!(child.join().await.unwrap().success());
            } else {
                tokio::spawn(play(condition.clone(), ball, 1)).await.unwrap();
            }
            here.await.unwrap();
            assert_idle(&condition).await;
        }
    });
}

#[test]
fn those_who_came_first_are_woken_first() {
    run(WATCHDOG, async {
        let condition = over_lock();
        let mut waiting = Vec::new();
        for _ in 0..5 {
            let guard = condition.lock().await.unwrap();
            waiting.push(Box::pin(unconstrained(guard.wait())));
            assert!(poll!(waiting.last_mut().unwrap()).is_pending());
        }
        for _ in 0..5 {
            assert_eq!(notify(&condition, 1).await, 1);
            let mut ready = Vec::new();
            for (i, one) in waiting.iter_mut().enumerate() {
                if poll!(one).is_ready() {
                    ready.push(i);
                }
            }
            assert_eq!(ready, [0]);
            drop(waiting.remove(0));
        }
        assert_idle(&condition).await;
    });
}

#[test]
fn who_gives_up_passes_on_what_it_was_notified_for() {
    run_each(WATCHDOG, async |context| {
        for condition in [over_lock(), over_rlock()] {
            // This process's cell comes before the child's, so it is notified first.
            assert_idle(&condition).await;
            for before_the_lock in [true, false] {
                let notebook = Notebook::new();
                let mut here = Box::pin(unconstrained(condition.lock().await.unwrap().wait()));
                assert!(poll!(&mut here).is_pending());
                let target = (condition.clone(), None, notebook.path());
                let child = context.process(wait_once, target).start().await.unwrap();
                eventually("it waits", || condition.waiting() == 2).await;
                let guard = condition.lock().await.unwrap();
                let mut given = 0;
                while !poll!(&mut here).is_ready() && given == 0 {
                    given = guard.notify(1).unwrap();
                }
                assert_eq!(condition.waiting(), 1);
                if !before_the_lock {
                    // It has taken the notification, and waits for the lock.
                    assert!(poll!(&mut here).is_pending());
                }
                assert_eq!(notebook.count("woken"), 0);
                drop(here);
                drop(guard);
                notebook.wait_for("woken", 1).await;
                assert!(child.join().await.unwrap().success());
                assert_eq!(condition.waiting(), 0);
            }
            assert_idle(&condition).await;
        }
    });
}

/// The child is notified, and killed before it can do anything about it.
#[test]
fn what_a_dead_one_was_notified_for_goes_to_others() {
    run_each(WATCHDOG, async |context| {
        let condition = over_lock();
        let notebook = Notebook::new();
        let target = (condition.clone(), None, notebook.path());
        // Its cell is the first.
        let child = context.process(wait_once, target).start().await.unwrap();
        eventually("it waits", || condition.waiting() == 1).await;
        let here = tokio::spawn({
            let condition = condition.clone();
            async move { drop(condition.lock().await.unwrap().wait().await.unwrap()) }
        });
        eventually("both wait", || condition.waiting() == 2).await;
        kill(Pid::from_raw(child.pid()), Signal::SIGSTOP).unwrap();
        assert_eq!(notify(&condition, 1).await, 1);
        // Who is stopped keeps what it has. Some ticks pass.
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(!here.is_finished());
        let begin = Instant::now();
        kill_9(child.pid());
        here.await.unwrap();
        eprintln!("woken {:?} after the death", begin.elapsed());
        child.join().await.unwrap();
        assert_idle(&condition).await;
    });
}

#[test]
fn who_is_stopped_holds_nobody_up_and_is_woken_later() {
    run_each(WATCHDOG, async |context| {
        let condition = over_lock();
        let notebook = Notebook::new();
        let (children, threads) = waiters(&context, &condition, None, &notebook, 2).await;
        eventually("all wait", || condition.waiting() == 4).await;
        let stopped = Pid::from_raw(children[0].pid());
        kill(stopped, Signal::SIGSTOP).unwrap();
        assert_eq!(notify(&condition, 4).await, 4);
        notebook.wait_for("woken", 3).await;
        assert_eq!(notebook.count("woken"), 3);
        kill(stopped, Signal::SIGCONT).unwrap();
        notebook.wait_for("woken", 4).await;
        join(children, threads).await;
        assert_idle(&condition).await;
    });
}

#[test]
fn an_rlock_is_given_back_wholly_and_taken_again_as_often() {
    run_each(WATCHDOG, async |context| {
        let rlock = RLock::new().unwrap();
        let condition = Condition::new(&rlock).unwrap();
        let outer = rlock.acquire().await.unwrap();
        rlock.acquire_raw().await.unwrap();
        let guard = condition.lock().await.unwrap();
        let child = context.process(notify_when_waited_for, (condition.clone(),)).start().await.unwrap();
        let (guard, woken) = guard.wait_timeout(SURELY).await.unwrap();
        assert!(woken && rlock.is_owned());
        child.join().await.unwrap();
        drop(guard);
        assert!(rlock.is_owned());
        rlock.release().unwrap();
        assert!(rlock.is_owned());
        drop(outer);
        assert!(!rlock.locked());

        // What waits in vain for ever, and is dropped, leaves nothing to the guards outside of it.
        let outer = rlock.acquire().await.unwrap();
        rlock.acquire_raw().await.unwrap();
        let mut waiting = Box::pin(unconstrained(condition.lock().await.unwrap().wait()));
        assert!(poll!(&mut waiting).is_pending());
        assert!(!rlock.locked() && matches!(outer.reenter(), Err(Error::NotOwner)));
        drop(waiting);
        assert!(!rlock.locked());
        let other = rlock.acquire().await.unwrap();
        drop(outer);
        assert!(rlock.is_owned());
        assert!(matches!(rlock.release(), Err(Error::NotOwner)));
        drop(other);
        assert_idle(&condition).await;
    });
}

/// Takes from a store as long as there is anything in it.
async fn consume(condition: Condition, store: RawValue<u64>, meeting: String) {
    Call::to(&meeting).say("here");
    loop {
        let guard = condition.lock().await.unwrap();
        let _guard = guard.wait_for(|| store.get() > 0).await.unwrap();
        store.set(store.get() - 1);
    }
}

/// Puts something into a store for ever.
async fn produce(condition: Condition, store: RawValue<u64>, meeting: String) {
    Call::to(&meeting).say("here");
    loop {
        let guard = condition.lock().await.unwrap();
        store.set(store.get() + 1);
        guard.notify(1).unwrap();
        drop(guard);
        tokio::task::yield_now().await;
    }
}

/// Consumers are killed at any instant; those who live find all that is there.
#[test]
fn a_storm_of_deaths_among_those_who_wait_loses_no_notification() {
    run_each(WATCHDOG, async |context| {
        let mut random = Random::new();
        let (condition, store) = (over_lock(), RawValue::new(0u64).unwrap());
        let meeting = Meeting::new();
        let mut children = Vec::new();
        let mut longest = Duration::ZERO;
        for _ in 0..14 {
            let target = (condition.clone(), store.clone(), meeting.address());
            children.push(context.process(consume, target).start().await.unwrap());
            assert_eq!(meeting.word().await, "here");
            if children.len() < 4 {
                continue;
            }
            let victim = children.swap_remove(random.below(4) as usize);
            let end = Instant::now() + Duration::from_micros(random.below(4000));
            while Instant::now() < end {
                let guard = condition.lock().await.unwrap();
                store.set(store.get() + 1);
                guard.notify(1).unwrap();
            }
            kill_9(victim.pid());
            let begin = Instant::now();
            eventually("all is consumed", || store.get() == 0).await;
            longest = longest.max(begin.elapsed());
            victim.join().await.unwrap();
        }
        eprintln!("all was consumed after {longest:?} at most");
        for child in children {
            child.kill().unwrap();
            child.join().await.unwrap();
        }
        // Who waits sees that they are dead.
        let guard = condition.lock().await.unwrap();
        drop(guard.wait_for_timeout(PATIENCE, || condition.waiting() == 0).await.unwrap());
        assert_idle(&condition).await;
    });
}

/// Producers are killed at any instant, also between what they change and what they tell.
#[test]
fn a_storm_of_deaths_among_those_who_notify_keeps_nobody_waiting() {
    run_each(WATCHDOG, async |context| {
        let mut random = Random::new();
        let (condition, store) = (over_lock(), RawValue::new(0u64).unwrap());
        let meeting = Meeting::new();
        let consuming = tokio::spawn({
            let (condition, store) = (condition.clone(), store.clone());
            async move {
                let mut consumed = 0u64;
                loop {
                    let guard = condition.lock().await.unwrap();
                    let (_guard, some) = guard.wait_for_timeout(PATIENCE, || store.get() > 0).await.unwrap();
                    assert!(some, "nobody has told");
                    if store.get() == u64::MAX {
                        return consumed;
                    }
                    store.set(store.get() - 1);
                    consumed += 1;
                }
            }
        });
        for _ in 0..12 {
            let target = (condition.clone(), store.clone(), meeting.address());
            let child = context.process(produce, target).start().await.unwrap();
            assert_eq!(meeting.word().await, "here");
            tokio::time::sleep(Duration::from_micros(random.below(4000))).await;
            kill_9(child.pid());
            eventually("all is consumed", || store.get() == 0).await;
            child.join().await.unwrap();
        }
        let guard = condition.lock().await.unwrap();
        store.set(u64::MAX);
        guard.notify(1).unwrap();
        drop(guard);
        eprintln!("{} consumed", consuming.await.unwrap());
        assert_idle(&condition).await;
    });
}

#[test]
fn waits_that_are_cancelled_leave_it_as_it_was() {
    let _guard = guard(WATCHDOG);
    for runtime in [current_thread(), multi_thread()] {
        let mut random = Random::new();
        runtime.block_on(unconstrained(async {
            for condition in [over_lock(), over_rlock()] {
                let mut waiting = Vec::new();
                let (mut came_back, mut cancelled) = (0, 0);
                while cancelled < 25_000 {
                    let guard = condition.lock().await.unwrap();
                    let mut one = Box::pin(guard.wait());
                    // Before it has begun.
                    if random.below(8) == 0 {
                        drop(one);
                        cancelled += 1;
                        continue;
                    }
                    assert!(poll!(&mut one).is_pending());
                    waiting.push(one);
                    assert_eq!(condition.waiting(), waiting.len());
                    if waiting.len() < 4 {
                        continue;
                    }
                    let n = random.below(5) as usize;
                    let guard = condition.lock().await.unwrap();
                    assert_eq!(guard.notify(n).unwrap(), n);
                    // Some take the notification, and wait for the lock.
                    for one in &mut waiting {
                        if random.below(2) == 0 {
                            assert!(poll!(one).is_pending());
                        }
                    }
                    // Whoever goes, as many are woken of those who stay, as far as they are.
                    while waiting.len() > random.below(4) as usize {
                        drop(waiting.swap_remove(random.below(waiting.len() as u64) as usize));
                        cancelled += 1;
                    }
                    drop(guard);
                    let mut woken = 0;
                    for mut one in std::mem::take(&mut waiting) {
                        match poll!(&mut one) {
                            std::task::Poll::Ready(guard) => {
                                drop(guard.unwrap());
                                woken += 1;
                            }
                            std::task::Poll::Pending => waiting.push(one),
                        }
                    }
                    let stayed = woken + waiting.len();
                    assert_eq!(woken, n.min(stayed), "of {stayed}");
                    came_back += woken;
                    cancelled += waiting.len();
                    waiting.clear();
                }
                assert!(came_back > 100);
                drop(waiting);
                assert_idle(&condition).await;
            }
        }));
    }
}

#[test]
fn it_needs_no_runtime_but_to_wait_and_outlives_all() {
    let _guard = guard(WATCHDOG);
    let condition = over_lock();
    drop(over_rlock());
    for _ in 0..3 {
        let (first, second) = (current_thread(), multi_thread());
        let mut waiting = [&first, &second, &first].map(|runtime| {
            let guard = runtime.block_on(condition.lock()).unwrap();
            let mut waiting = Box::pin(unconstrained(guard.wait()));
            runtime.block_on(async { assert!(poll!(&mut waiting).is_pending()) });
            waiting
        });
        assert_eq!(condition.waiting(), 3);
        // Nobody drives the first one.
        let there = condition.clone();
        second.block_on(async {
            assert_eq!(tokio::spawn(async move { notify(&there, 2).await }).await.unwrap(), 2);
            drop((&mut waiting[1]).await.unwrap());
        });
        first.block_on(async { drop((&mut waiting[0]).await.unwrap()) });
        // One that began there goes on elsewhere.
        drop(first);
        second.block_on(async {
            assert_eq!(notify(&condition, 1).await, 1);
            let [_, _, last] = &mut waiting;
            drop(last.await.unwrap());
        });
        drop(second);
        drop(waiting);
        assert_eq!(condition.waiting(), 0);
    }
    current_thread().block_on(assert_idle(&condition));
}

static STATIC: LazyLock<Condition> = LazyLock::new(over_rlock);

#[test]
fn a_static_is_the_same_in_a_forked_child() {
    // Not with a check for leaks, as the static stays.
    let (_alone, _watchdog) = (alone(), watchdog(WATCHDOG));
    LazyLock::force(&STATIC);
    let [.., fork] = &methods()[..] else { unreachable!() };
    multi_thread().block_on(async {
        // The copy of this wait is not one.
        let mut here = Box::pin(unconstrained(STATIC.lock().await.unwrap().wait()));
        assert!(poll!(&mut here).is_pending());
        let child = async || {
            drop(STATIC.lock().await.unwrap().wait_timeout(Duration::ZERO).await.unwrap());
            assert_eq!(notify(&STATIC, 5).await, 1);
        };
        let child = fork.process(child, ()).start().await.unwrap();
        drop(here.await.unwrap());
        assert!(child.join().await.unwrap().success());
        assert_idle(&STATIC).await;
    });
}
