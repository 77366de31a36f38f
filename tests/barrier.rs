//! Barriers between processes, whose parties die.

#![cfg(target_os = "linux")]

mod support;

use std::future::Future;
use std::pin::pin;
use std::sync::{LazyLock, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::process::{Call, Meeting};
use support::{
    PATIENCE, Random, current_thread, eventually, guard, guard_with, kill_9, methods, multi_thread, run,
    run_each,
};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Barrier, Context as Starts, Func, Process, RawArray, RawValue};

const WATCHDOG: u64 = 120;
const PARTIES: usize = 5;

/// What a future gives at once.
fn once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn is_broken<T: std::fmt::Debug>(result: Result<T, mp::Error>) -> bool {
    result.unwrap_err().is_broken_barrier()
}

async fn all_succeed(children: Vec<Process>) {
    for child in children {
        assert!(child.join().await.unwrap().success());
    }
}

/// Rounds in lockstep: whoever is through finds that all have come.
async fn lockstep(barrier: Barrier, came: RawArray<u64>) {
    for round in 0..came.len() {
        came.fetch_add(round, 1);
        barrier.wait().await.unwrap();
        assert_eq!(came.get(round), PARTIES as u64);
        if let Some(after_next) = Some(round + 2).filter(|round| *round < came.len()) {
            assert_eq!(came.get(after_next), 0);
        }
    }
}

async fn in_lockstep(context: Starts, rounds: usize) {
    let barrier = Barrier::new(PARTIES).unwrap();
    let came = RawArray::<u64>::new(rounds).unwrap();
    let mut children = Vec::new();
    for _ in 0..PARTIES - 2 {
        children.push(context.process(lockstep, (barrier.clone(), came.clone())).start().await.unwrap());
    }
    let thread = std::thread::spawn({
        let there = lockstep(barrier.clone(), came.clone());
        move || current_thread().block_on(there)
    });
    lockstep(barrier.clone(), came).await;
    all_succeed(children).await;
    thread.join().unwrap();
    // Those who went without breaking it have taken leave of it.
    assert_eq!((barrier.n_waiting(), barrier.broken()), (0, false));
}

// conformance: _TestBarrier.test_barrier
#[test]
fn nobody_passes_before_all_have_come() {
    run_each(WATCHDOG, async |context| in_lockstep(context, 2).await);
}

// conformance: _TestBarrier.test_barrier_10
#[test]
fn nobody_enters_a_round_before_all_have_left_the_last_one() {
    run_each(WATCHDOG, async |context| {
        in_lockstep(context.clone(), 10).await;
        in_lockstep(context, 300).await;
    });
}

// conformance: _TestBarrier.test_wait_return
#[test]
fn each_party_gets_another_number() {
    run_each(WATCHDOG, async |context| {
        let barrier = Barrier::new(PARTIES).unwrap();
        let numbers = RawArray::<u64>::new(PARTIES).unwrap();
        let party = async |barrier: Barrier, numbers: RawArray<u64>| {
            numbers.fetch_add(barrier.wait().await.unwrap(), 1);
        };
        let mut children = Vec::new();
        for _ in 1..PARTIES {
            children.push(context.process(party, (barrier.clone(), numbers.clone())).start().await.unwrap());
        }
        party(barrier, numbers.clone()).await;
        all_succeed(children).await;
        assert_eq!(numbers.to_vec(), [1; PARTIES]);
    });
}

// conformance: _TestBarrier.test_abort
#[test]
fn one_that_aborts_breaks_it_for_all() {
    run_each(WATCHDOG, async |context| {
        let barrier = Barrier::new(PARTIES).unwrap();
        let broken = RawValue::new(0_u64).unwrap();
        let party = async |barrier: Barrier, broken: RawValue<u64>| {
            if barrier.wait().await.unwrap() == 2 {
                barrier.abort().unwrap();
            } else {
                assert!(is_broken(barrier.wait().await));
                broken.fetch_add(1);
            }
            assert!(is_broken(barrier.wait().await));
        };
        let mut children = Vec::new();
        for _ in 1..PARTIES {
            children.push(context.process(party, (barrier.clone(), broken.clone())).start().await.unwrap());
        }
        party(barrier.clone(), broken.clone()).await;
        all_succeed(children).await;
        assert!(barrier.broken());
        assert_eq!((broken.get(), barrier.n_waiting()), (PARTIES as u64 - 1, 0));
    });
}

// conformance: _TestBarrier.test_reset
#[test]
fn a_reset_lets_go_who_waits_and_then_it_is_as_new() {
    run_each(WATCHDOG, async |context| {
        let barrier = Barrier::new(PARTIES).unwrap();
        let counts = RawArray::<u64>::new(2).unwrap();
        let party = async |barrier: Barrier, counts: RawArray<u64>| {
            if barrier.wait().await.unwrap() == 2 {
                eventually("all others wait", || barrier.n_waiting() == PARTIES - 1).await;
                barrier.reset().unwrap();
            } else {
                assert!(is_broken(barrier.wait().await));
                counts.fetch_add(0, 1);
            }
            barrier.wait().await.unwrap();
            counts.fetch_add(1, 1);
        };
        let mut children = Vec::new();
        for _ in 1..PARTIES {
            children.push(context.process(party, (barrier.clone(), counts.clone())).start().await.unwrap());
        }
        party(barrier.clone(), counts.clone()).await;
        all_succeed(children).await;
        assert!(!barrier.broken());
        assert_eq!(counts.to_vec(), [PARTIES as u64 - 1, PARTIES as u64]);
    });
}

// conformance: _TestBarrier.test_default_timeout
#[test]
fn the_default_time_out_breaks_it_and_another_goes_before_it() {
    run_each(WATCHDOG, async |context| {
        let limit = Duration::from_millis(500);
        let barrier = Barrier::builder(PARTIES).timeout(limit).build().unwrap();
        let broken = RawValue::new(0_u64).unwrap();
        let party = async |barrier: Barrier, broken: RawValue<u64>| {
            if barrier.wait_timeout(Duration::from_secs(30)).await.unwrap() == PARTIES - 1 {
                // It comes late.
                eventually("they gave up", || barrier.broken()).await;
            }
            assert!(is_broken(barrier.wait().await));
            broken.fetch_add(1);
        };
        let mut children = Vec::new();
        for _ in 1..PARTIES {
            children.push(context.process(party, (barrier.clone(), broken.clone())).start().await.unwrap());
        }
        party(barrier.clone(), broken.clone()).await;
        all_succeed(children).await;
        assert_eq!(broken.get(), PARTIES as u64);
        // One try.
        barrier.reset().unwrap();
        assert!(is_broken(barrier.wait_timeout(Duration::ZERO).await));
        assert!(barrier.broken());
    });
}

// conformance: _TestBarrier.test_single_thread
#[test]
fn one_party_never_waits() {
    let _guard = guard(WATCHDOG);
    // And needs no runtime.
    let barrier = Barrier::new(1).unwrap();
    assert_eq!(once(barrier.wait()).unwrap().unwrap(), 0);
    assert_eq!(once(barrier.wait()).unwrap().unwrap(), 0);
    for context in methods() {
        current_thread().block_on(async {
            let twice = async |barrier: Barrier| {
                assert_eq!(barrier.wait().await.unwrap(), 0);
                assert_eq!(barrier.wait().await.unwrap(), 0);
            };
            let child = context.process(twice, (barrier.clone(),)).start().await.unwrap();
            assert!(child.join().await.unwrap().success());
        });
    }
    assert!(!barrier.broken());
}

/// Passes a barrier of one party, which is `own`, and waits then at another.
async fn come(own: Barrier, barrier: Barrier, meeting: String) {
    own.wait().await.unwrap();
    let mut waiting = pin!(barrier.wait());
    assert!(futures::poll!(&mut waiting).is_pending());
    Call::to(&meeting).say("waits");
    waiting.await.unwrap();
}

#[test]
fn a_party_that_is_killed_breaks_it() {
    run_each(WATCHDOG, async |context| {
        let (own, barrier) = (Barrier::new(1).unwrap(), Barrier::new(3).unwrap());
        let meeting = Meeting::new();
        let args = (own.clone(), barrier.clone(), meeting.address());
        let child = context.process(come, args).start().await.unwrap();
        assert_eq!(meeting.word().await, "waits");
        assert_eq!(barrier.n_waiting(), 1);
        let there = barrier.clone();
        let waiting = tokio::spawn(async move { there.wait().await });
        eventually("both wait", || barrier.n_waiting() == 2).await;
        // Stopped is not dead.
        kill(Pid::from_raw(child.pid()), Signal::SIGSTOP).unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(!waiting.is_finished() && !barrier.broken() && barrier.n_waiting() == 2);
        let begin = Instant::now();
        kill_9(child.pid());
        assert!(is_broken(waiting.await.unwrap()));
        eprintln!("broken after {:?}", begin.elapsed());
        assert!(is_broken(barrier.wait().await) && barrier.broken());
        child.join().await.unwrap();
        // At the other one it had been, and would be missed.
        assert!(own.broken());
        for barrier in [own, barrier] {
            barrier.reset().unwrap();
            assert!(!barrier.broken());
            let parties = (0..barrier.parties()).map(|_| barrier.wait());
            let mut numbers = futures::future::try_join_all(parties).await.unwrap();
            numbers.sort_unstable();
            assert!(numbers.into_iter().eq(0..barrier.parties()));
        }
    });
}

#[test]
fn the_last_to_come_finds_that_one_who_waited_is_dead() {
    run_each(WATCHDOG, async |context| {
        let (own, barrier) = (Barrier::new(1).unwrap(), Barrier::new(2).unwrap());
        let meeting = Meeting::new();
        let args = (own, barrier.clone(), meeting.address());
        let child = context.process(come, args).start().await.unwrap();
        assert_eq!(meeting.word().await, "waits");
        kill_9(child.pid());
        child.join().await.unwrap();
        assert!(is_broken(once(barrier.wait()).unwrap()));
    });
}

#[test]
fn one_that_is_killed_without_having_come_or_ends_as_it_should_breaks_nothing() {
    run_each(WATCHDOG, async |context| {
        let barrier = Barrier::new(2).unwrap();
        let meeting = Meeting::new();
        let look = async |barrier: Barrier, meeting: String| {
            assert_eq!(barrier.n_waiting(), 0);
            Call::to(&meeting).say("looks");
            std::future::pending::<()>().await;
        };
        let child = context.process(look, (barrier.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "looks");
        kill_9(child.pid());
        child.join().await.unwrap();
        assert!(!barrier.broken());
        // Others come and go, and others again in their place.
        for _ in 0..3 {
            let pass = async |barrier: Barrier| {
                barrier.wait().await.unwrap();
            };
            let child = context.process(pass, (barrier.clone(),)).start().await.unwrap();
            barrier.wait().await.unwrap();
            assert!(child.join().await.unwrap().success());
            assert!(!barrier.broken());
        }
    });
}

#[test]
fn killed_at_any_instant_parties_block_nobody() {
    run_each(WATCHDOG, async |context| {
        let barrier = Barrier::new(3).unwrap();
        let passed = RawValue::new(0_u64).unwrap();
        let go_round = async |barrier: Barrier, passed: RawValue<u64>| {
            loop {
                match barrier.wait().await {
                    Ok(_) => drop(passed.fetch_add(1)),
                    // One of them.
                    Err(_) => barrier.reset().unwrap(),
                }
            }
        };
        let mut random = Random::new();
        let start =
            async || context.process(go_round, (barrier.clone(), passed.clone())).start().await.unwrap();
        let mut children = Vec::new();
        for _ in 0..3 {
            children.push(start().await);
        }
        for _ in 0..25 {
            let before = passed.get();
            eventually("they go on", || passed.get() > before).await;
            tokio::time::sleep(Duration::from_micros(random.below(10_000))).await;
            let child = children.swap_remove(random.below(3) as usize);
            child.kill().unwrap();
            assert_eq!(child.join().await.unwrap().signal(), Some(9));
            children.push(start().await);
        }
        for child in children {
            child.kill().unwrap();
            child.join().await.unwrap();
        }
        // Nothing is left of them.
        barrier.reset().unwrap();
        assert_eq!((barrier.n_waiting(), barrier.broken()), (0, false));
        let mut parties = [0; 3].map(|_| Box::pin(barrier.wait()));
        assert!(futures::poll!(&mut parties[0]).is_pending() && futures::poll!(&mut parties[1]).is_pending());
        for number in futures::future::try_join_all(parties).await.unwrap() {
            assert!(number < 3);
        }
    });
}

/// Where the action finds what it counts in: it takes no arguments. Each process sets it.
static COUNT: OnceLock<String> = OnceLock::new();

/// Appends a byte to a file.
async fn count() {
    use std::io::Write;
    tokio::task::yield_now().await;
    let mut file = std::fs::File::options().append(true).create(true).open(COUNT.get().unwrap()).unwrap();
    file.write_all(b".").unwrap();
}

fn counted() -> u64 {
    std::fs::metadata(COUNT.get().unwrap()).map_or(0, |file| file.len())
}

#[test]
fn the_action_runs_once_a_round_before_anybody_passes() {
    const ROUNDS: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    for (i, context) in methods().into_iter().enumerate() {
        let _guard = guard(WATCHDOG);
        multi_thread().block_on(async {
            let barrier = Barrier::builder(3).action(Func::new(count)).build().unwrap();
            let path = dir.path().join(i.to_string()).to_str().unwrap().to_owned();
            let party = async |barrier: Barrier, path: String| {
                COUNT.set(path).unwrap();
                for round in 1..=ROUNDS {
                    barrier.wait().await.unwrap();
                    let now = counted();
                    assert!(now == round || now == round + 1, "{now} in round {round}");
                }
            };
            let mut children = Vec::new();
            for _ in 0..3 {
                let args = (barrier.clone(), path.clone());
                children.push(context.process(party, args).start().await.unwrap());
            }
            all_succeed(children).await;
            assert_eq!(std::fs::metadata(&path).unwrap().len(), ROUNDS);
            assert!(!barrier.broken());
        });
    }
}

/// Waits at a barrier whose action fails, with two parties, and tells what came of it.
async fn meet_failure(context: &Starts, action: Func<(), ()>) -> (mp::Result<usize>, bool) {
    let barrier = Barrier::builder(2).action(action).build().unwrap();
    let meeting = Meeting::new();
    let child = context
        .process(
            async |barrier: Barrier, meeting: String| {
                let mut waiting = pin!(barrier.wait());
                assert!(futures::poll!(&mut waiting).is_pending());
                Call::to(&meeting).say("waits");
                assert!(is_broken(waiting.await));
            },
            (barrier.clone(), meeting.address()),
        )
        .start()
        .await
        .unwrap();
    assert_eq!(meeting.word().await, "waits");
    let there = barrier.clone();
    let result = tokio::spawn(async move { there.wait().await }).await;
    let panicked = result.is_err();
    assert!(child.join().await.unwrap().success() && barrier.broken());
    assert!(is_broken(barrier.wait().await));
    (result.unwrap_or(Err(mp::Error::BrokenBarrier)), panicked)
}

fn panics() {
    panic!("not today either");
}

#[test]
fn an_action_that_fails_breaks_it() {
    run_each(WATCHDOG, async |context| {
        let fails = Func::new(|| Err::<(), _>(mp::Failure::msg("not today")));
        let (result, panicked) = meet_failure(&context, fails).await;
        assert!(!panicked && result.unwrap_err().to_string().contains("not today"));
        let (_, panicked) = meet_failure(&context, Func::new(panics)).await;
        assert!(panicked);
    });
}

#[test]
fn one_that_dies_or_is_dropped_in_the_action_breaks_it() {
    run_each(WATCHDOG, async |context| {
        let action = Func::new(std::future::pending::<()>);
        let barrier = Barrier::builder(2).action(action).build().unwrap();
        let there = barrier.clone();
        let waiting = tokio::spawn(async move { there.wait().await });
        eventually("it waits", || barrier.n_waiting() == 1).await;
        let wait = async |barrier: Barrier| drop(barrier.wait().await);
        let child = context.process(wait, (barrier.clone(),)).start().await.unwrap();
        eventually("the action runs", || barrier.n_waiting() == 0).await;
        assert!(!barrier.broken() && !waiting.is_finished());
        kill_9(child.pid());
        assert!(is_broken(waiting.await.unwrap()));
        child.join().await.unwrap();

        barrier.reset().unwrap();
        let mut first = Box::pin(barrier.wait());
        assert!(futures::poll!(&mut first).is_pending());
        let mut second = Box::pin(barrier.wait());
        assert!(futures::poll!(&mut second).is_pending());
        drop(second);
        assert!(is_broken(first.await));

        // One that waits, and one that acts, for too long.
        barrier.reset().unwrap();
        let mut first = Box::pin(barrier.wait_timeout(Duration::from_millis(50)));
        assert!(futures::poll!(&mut first).is_pending());
        let second = barrier.wait_timeout(PATIENCE);
        let (first, second) = futures::join!(first, async {
            let mut second = pin!(second);
            assert!(futures::poll!(&mut second).is_pending());
            eventually("the first one gave up", || barrier.broken()).await;
        });
        assert!(is_broken(first));
        let () = second;
    });
}

#[test]
fn waits_that_are_cancelled_leave_it_as_it_was() {
    let _guard = guard(WATCHDOG);
    for runtime in [current_thread(), multi_thread()] {
        let mut random = Random::new();
        // Else each poll beyond Tokio's budget would be in vain.
        runtime.block_on(tokio::task::unconstrained(async {
            let barrier = Barrier::new(4).unwrap();
            for _ in 0..17_000 {
                // One too few.
                let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(barrier.wait())).collect();
                let polled = random.below(4) as usize;
                for waiting in &mut waiting[..polled] {
                    assert!(futures::poll!(waiting).is_pending());
                }
                assert_eq!(barrier.n_waiting(), polled);
                while !waiting.is_empty() {
                    drop(waiting.swap_remove(random.below(waiting.len() as u64) as usize));
                }
                assert_eq!(barrier.n_waiting(), 0);
            }
            // All have come; those who go without having noticed have come as well.
            for _ in 0..2_000 {
                let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(barrier.wait())).collect();
                for waiting in &mut waiting[..3] {
                    assert!(futures::poll!(waiting).is_pending());
                }
                assert!(futures::poll!(&mut waiting[3]).is_ready());
                // Not before these have left.
                let mut early = Box::pin(barrier.wait());
                assert!(futures::poll!(&mut early).is_pending() && barrier.n_waiting() == 0);
                waiting.truncate(random.below(4) as usize);
                for waiting in waiting {
                    assert!(waiting.await.unwrap() < 3);
                }
                assert!(futures::poll!(&mut early).is_pending() && barrier.n_waiting() == 1);
            }
            assert_eq!((barrier.n_waiting(), barrier.broken()), (0, false));
        }));
    }
}

#[test]
fn one_that_comes_early_breaks_nothing_by_timing_out() {
    run(WATCHDOG, async {
        let barrier = Barrier::new(2).unwrap();
        let mut first = Box::pin(barrier.wait());
        assert!(futures::poll!(&mut first).is_pending());
        assert_eq!(barrier.wait().await.unwrap(), 1);
        // The first one has not left.
        assert!(barrier.wait_timeout(Duration::from_millis(20)).await.unwrap_err().is_timeout());
        let there = barrier.clone();
        let early = tokio::spawn(async move { there.wait().await });
        tokio::task::yield_now().await;
        assert_eq!(first.await.unwrap(), 0);
        eventually("the early one comes in", || barrier.n_waiting() == 1).await;
        barrier.wait().await.unwrap();
        early.await.unwrap().unwrap();
        assert!(!barrier.broken());
    });
}

#[test]
fn it_works_across_runtimes_and_outlives_them() {
    let _guard = guard(WATCHDOG);
    let barrier = Barrier::new(2).unwrap();
    let (first, second) = (current_thread(), multi_thread());
    let mut waiting = Box::pin(barrier.wait());
    first.block_on(async { assert!(futures::poll!(&mut waiting).is_pending()) });
    drop(first);
    second.block_on(async {
        assert!(futures::poll!(&mut waiting).is_pending());
        let there = barrier.clone();
        let other = std::thread::spawn(move || current_thread().block_on(there.wait()).unwrap());
        let number = waiting.await.unwrap();
        assert_eq!(number + other.join().unwrap(), 1);
    });
    drop(second);
    // What is dropped outside of a runtime leaves, too.
    let mut waiting = Box::pin(barrier.wait());
    current_thread().block_on(async { assert!(futures::poll!(&mut waiting).is_pending()) });
    assert_eq!(barrier.n_waiting(), 1);
    drop(waiting);
    assert_eq!(barrier.n_waiting(), 0);
}

static STATIC: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(2).unwrap());

#[test]
fn a_static_is_the_same_in_a_forked_child() {
    let _guard = guard_with(WATCHDOG, &STATIC);
    let [.., fork] = &methods()[..] else { unreachable!() };
    multi_thread().block_on(async {
        let wait = async || {
            let barrier = STATIC.clone();
            barrier.wait().await.unwrap();
        };
        let child = fork.process(wait, ()).start().await.unwrap();
        STATIC.wait().await.unwrap();
        assert!(child.join().await.unwrap().success());
        // It has not dropped its handle, but it has ended as it should.
        assert_eq!((STATIC.n_waiting(), STATIC.broken()), (0, false));
    });
}

#[test]
fn what_is_no_barrier_is_an_error() {
    run(WATCHDOG, async {
        for parties in [0, 4_194_304, usize::MAX] {
            let error = Barrier::new(parties).unwrap_err();
            assert!(matches!(&error, mp::Error::InvalidArgument(why) if why.contains("parties")), "{error}");
        }
        let (mut a, mut b) = mp::pipe().unwrap();
        a.send(&mp::Lock::new().unwrap()).await.unwrap();
        assert!(matches!(b.recv::<Barrier>().await, Err(mp::Error::Decode(_))));
        a.send(&Barrier::builder(3).timeout(Duration::from_millis(1)).build().unwrap()).await.unwrap();
        let barrier: Barrier = b.recv().await.unwrap();
        assert_eq!(barrier.parties(), 3);
        assert_eq!(format!("{barrier:?}"), "Barrier { parties: 3, waiting: 0, broken: false }");
        assert!(is_broken(barrier.wait().await));
    });
}
