//! Events between processes, of which some die.

#![cfg(target_os = "linux")]

mod support;

use std::pin::pin;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures::poll;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::process::{Call, Meeting};
use support::{Random, alone, current_thread, guard, kill_9, methods, multi_thread, run, run_each, watchdog};
use tokio::task::coop::unconstrained;
use tokio_multiprocess::Event;

const WATCHDOG: u64 = 120;
const NEVER: Duration = Duration::from_millis(100);
const SURELY: Duration = Duration::from_secs(60);

async fn set_later(event: Event) {
    tokio::time::sleep(NEVER).await;
    event.set().unwrap();
}

// conformance: _TestEvent.test_event
#[test]
fn it_is_set_and_cleared_and_waited_for() {
    run_each(WATCHDOG, async |context| {
        let event = Event::new().unwrap();
        assert!(!event.is_set());
        assert!(!event.wait_timeout(Duration::ZERO).await.unwrap());
        let begin = Instant::now();
        assert!(!event.wait_timeout(NEVER).await.unwrap());
        assert!(begin.elapsed() >= NEVER);
        event.set().unwrap();
        assert!(event.is_set());
        event.wait().await.unwrap();
        assert!(event.wait_timeout(Duration::ZERO).await.unwrap());
        assert!(event.wait_timeout(SURELY).await.unwrap());
        event.clear().unwrap();
        assert!(!event.is_set());
        let child = context.process(set_later, (event.clone(),)).start().await.unwrap();
        event.wait().await.unwrap();
        assert!(event.is_set());
        child.join().await.unwrap();
    });
}

// conformance: _TestEvent.test_repr
#[test]
fn its_debug_form_says_whether_it_is_set() {
    run(WATCHDOG, async {
        let event = Event::new().unwrap();
        let shown = || format!("{event:?}");
        assert!(shown().ends_with(" unset"));
        event.set().unwrap();
        assert!(shown().ends_with(" set"));
        event.clear().unwrap();
        assert!(shown().ends_with(" unset"));
    });
}

/// Says that it waits, and for what number of waits it was let through.
async fn wait_and_say(event: Event, meeting: String) {
    let mut call = Call::to(&meeting);
    let waiting = event.wait();
    call.say("waiting");
    waiting.await.unwrap();
    call.say("through");
}

#[test]
fn who_waited_is_let_through_though_it_is_cleared_at_once() {
    run_each(WATCHDOG, async |context| {
        let event = Event::new().unwrap();
        let meeting = Meeting::new();
        let (mut children, mut callers) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let target = (event.clone(), meeting.address());
            children.push(context.process(wait_and_say, target).start().await.unwrap());
            callers.push(meeting.accept().await);
        }
        let mut tasks = Vec::new();
        for _ in 0..2 {
            tasks.push(tokio::spawn(wait_and_say(event.clone(), meeting.address())));
            callers.push(meeting.accept().await);
        }
        let (there, address) = (event.clone(), meeting.address());
        let thread = std::thread::spawn(move || current_thread().block_on(wait_and_say(there, address)));
        callers.push(meeting.accept().await);
        let mut here = pin!(event.wait());
        assert!(poll!(&mut here).is_pending());
        for caller in &mut callers {
            assert_eq!(caller.hear().await.unwrap(), "waiting");
        }
        event.set().unwrap();
        event.clear().unwrap();
        for caller in &mut callers {
            assert_eq!(caller.hear().await.unwrap(), "through");
        }
        here.await.unwrap();
        assert!(!event.is_set());
        // But not who comes after that.
        assert!(!event.wait_timeout(Duration::ZERO).await.unwrap());
        thread.join().unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        for child in children {
            assert!(child.join().await.unwrap().success());
        }
    });
}

#[test]
fn a_wait_begins_with_the_call() {
    run(WATCHDOG, async {
        let event = Event::new().unwrap();
        let (waiting, within) = (event.wait(), event.wait_timeout(SURELY));
        event.set().unwrap();
        event.clear().unwrap();
        waiting.await.unwrap();
        assert!(within.await.unwrap());
    });
}

#[test]
fn who_is_stopped_holds_nobody_up_and_is_let_through_later() {
    run_each(WATCHDOG, async |context| {
        let event = Event::new().unwrap();
        let meeting = Meeting::new();
        let target = (event.clone(), meeting.address());
        let child = context.process(wait_and_say, target).start().await.unwrap();
        let mut caller = meeting.accept().await;
        assert_eq!(caller.hear().await.unwrap(), "waiting");
        kill(Pid::from_raw(child.pid()), Signal::SIGSTOP).unwrap();
        for _ in 0..1000 {
            let mut here = pin!(event.wait());
            assert!(poll!(&mut here).is_pending());
            event.set().unwrap();
            event.clear().unwrap();
            here.await.unwrap();
        }
        kill(Pid::from_raw(child.pid()), Signal::SIGCONT).unwrap();
        assert_eq!(caller.hear().await.unwrap(), "through");
        assert!(child.join().await.unwrap().success());
    });
}

async fn trouble(event: Event, meeting: String) {
    let mut call = Call::to(&meeting);
    call.say("here");
    loop {
        event.set().unwrap();
        event.clear().unwrap();
        event.wait_timeout(Duration::from_micros(100)).await.unwrap();
    }
}

/// Who sets, clears and waits is killed at any instant; the others go on being let through.
#[test]
fn the_death_of_those_who_use_it_keeps_nobody_waiting() {
    run_each(WATCHDOG, async |context| {
        let mut random = Random::new();
        let (event, go) = (Event::new().unwrap(), Event::new().unwrap());
        let meeting = Meeting::new();
        for _ in 0..15 {
            let target = (event.clone(), meeting.address());
            let child = context.process(trouble, target).start().await.unwrap();
            assert_eq!(meeting.word().await, "here");
            let waiting = tokio::spawn({
                let go = go.clone();
                async move { go.wait_timeout(SURELY).await.unwrap() }
            });
            tokio::time::sleep(Duration::from_micros(random.below(3000))).await;
            kill_9(child.pid());
            child.join().await.unwrap();
            // What is left of it is in order.
            event.clear().unwrap();
            assert!(!event.wait_timeout(Duration::ZERO).await.unwrap());
            let mut here = pin!(event.wait());
            assert!(poll!(&mut here).is_pending());
            event.set().unwrap();
            here.await.unwrap();
            go.set().unwrap();
            assert!(waiting.await.unwrap());
            go.clear().unwrap();
        }
    });
}

#[test]
fn waits_that_are_cancelled_leave_it_as_it_was() {
    let _guard = guard(WATCHDOG);
    for runtime in [current_thread(), multi_thread()] {
        let mut random = Random::new();
        runtime.block_on(unconstrained(async {
            let event = Event::new().unwrap();
            let mut waiting = Vec::new();
            for _ in 0..50_000 {
                let mut one = Box::pin(event.wait());
                assert!(poll!(&mut one).is_pending());
                match random.below(4) {
                    0 => drop(one),
                    1 => waiting.push(one),
                    2 => {
                        event.set().unwrap();
                        event.clear().unwrap();
                        // Through, but nobody asks.
                        drop(one);
                        while random.below(3) > 0
                            && let Some(other) = waiting.pop()
                        {
                            other.await.unwrap();
                        }
                        waiting.clear();
                    }
                    _ => {
                        event.set().unwrap();
                        one.await.unwrap();
                        event.clear().unwrap();
                        waiting.clear();
                    }
                }
            }
            waiting.clear();
            assert!(!event.is_set() && !event.wait_timeout(Duration::ZERO).await.unwrap());
            event.set().unwrap();
            event.wait().await.unwrap();
        }));
    }
}

#[test]
fn it_needs_no_runtime_but_to_wait_and_outlives_all() {
    let _guard = guard(WATCHDOG);
    let event = Event::new().unwrap();
    drop(event.wait());
    event.set().unwrap();
    event.clear().unwrap();
    drop(Event::new().unwrap());
    for _ in 0..3 {
        for runtime in [current_thread(), multi_thread()] {
            let waiting = runtime.spawn({
                let event = event.clone();
                async move { event.wait().await.unwrap() }
            });
            let mut here = Box::pin(event.wait());
            runtime.block_on(async { assert!(poll!(&mut here).is_pending()) });
            // Another runtime is driven meanwhile, this one may not be.
            let other = current_thread();
            other.block_on(async {
                let mut there = pin!(event.wait());
                assert!(poll!(&mut there).is_pending());
                event.set().unwrap();
                there.await.unwrap();
            });
            runtime.block_on(waiting).unwrap();
            event.clear().unwrap();
            drop(runtime);
            other.block_on(here).unwrap();
        }
    }
}

static STATIC: LazyLock<Event> = LazyLock::new(|| Event::new().unwrap());

#[test]
fn a_static_is_the_same_in_a_forked_child() {
    // Not with a check for leaks, as the static stays.
    let (_alone, _watchdog) = (alone(), watchdog(WATCHDOG));
    LazyLock::force(&STATIC);
    let [.., fork] = &methods()[..] else { unreachable!() };
    multi_thread().block_on(async {
        let mut here = pin!(STATIC.wait());
        assert!(poll!(&mut here).is_pending());
        let child = fork.process(|| STATIC.set().unwrap(), ()).start().await.unwrap();
        here.await.unwrap();
        child.join().await.unwrap();
        STATIC.clear().unwrap();
        let meeting = Meeting::new();
        let wait = async |meeting: String| wait_and_say(STATIC.clone(), meeting).await;
        let child = fork.process(wait, (meeting.address(),)).start().await.unwrap();
        let mut caller = meeting.accept().await;
        assert_eq!(caller.hear().await.unwrap(), "waiting");
        STATIC.set().unwrap();
        assert_eq!(caller.hear().await.unwrap(), "through");
        assert!(child.join().await.unwrap().success());
    });
}
