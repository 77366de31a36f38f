//! Processes and runtimes: any, several, none, paused, gone; and starts that nobody waits for.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::time::{Duration, Instant};

use support::process::{Call, Meeting, forever, methods, run, run_sync, runtime};
use tokio_multiprocess as mp;

fn wait(address: String) {
    Call::to(&address).hear();
}

fn many_threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn any_number_of_tasks_join_on_any_runtimes() {
    run_sync(|| {
        let (here, there) = (runtime(), many_threads());
        for ctx in methods() {
            here.block_on(async {
                let meeting = Meeting::new();
                let child = ctx.process(wait, (meeting.address(),)).start().await.unwrap();
                let caller = meeting.accept().await;
                let joins = |on: &tokio::runtime::Handle| {
                    let join = |child: mp::Process| async move { child.join().await.unwrap().code() };
                    (0..50).map(|_| on.spawn(join(child.clone()))).collect::<Vec<_>>()
                };
                let (mut joined, elsewhere) =
                    (joins(&tokio::runtime::Handle::current()), joins(there.handle()));
                joined.extend(elsewhere);
                let mut joining = Box::pin(child.join());
                assert!(futures::poll!(&mut joining).is_pending());
                // One that is given up takes nothing from the others.
                drop(joining);
                drop(caller);
                for code in joined {
                    assert_eq!(code.await.unwrap(), Some(0));
                }
            });
        }
    });
}

#[test]
fn a_process_outlives_the_runtime_that_started_it() {
    run_sync(|| {
        for ctx in methods() {
            for first in [runtime(), many_threads()] {
                let second = runtime();
                let meeting = second.block_on(async { Meeting::new() });
                let args = (meeting.address(),);
                let child = first.block_on(ctx.process(wait, args).start()).unwrap();
                first.shutdown_timeout(Duration::from_secs(10));
                assert!(child.is_alive());
                second.block_on(async {
                    drop(meeting.accept().await);
                    assert_eq!(child.join().await.unwrap().code(), Some(0));
                });
            }
        }
    });
}

#[test]
fn a_join_that_began_on_one_runtime_can_go_on_after_its_end() {
    run_sync(|| {
        let child = runtime().block_on(mp::Process::builder(forever, ()).start()).unwrap();
        let mut joining = Box::pin(async { child.join().await });
        let first = runtime();
        first.block_on(async { assert!(futures::poll!(&mut joining).is_pending()) });
        drop(first);
        child.kill().unwrap();
        // The wait itself belongs to the runtime that is gone: an error, or the end, and no hang.
        runtime().block_on(async {
            match joining.await {
                Ok(status) => assert_eq!(status.exit_code(), -9),
                Err(mp::Error::Io(_)) => {}
                Err(other) => panic!("{other:?}"),
            }
            assert_eq!(child.join().await.unwrap().exit_code(), -9);
        });
    });
}

#[test]
fn without_any_runtime_a_process_can_be_asked_and_ended() {
    run_sync(|| {
        for ctx in methods() {
            let builder = std::thread::spawn(move || ctx.process(forever, ())).join().unwrap();
            let child = runtime().block_on(builder.start()).unwrap();
            std::thread::spawn(move || {
                assert!(child.is_alive());
                assert_eq!(mp::active_children(), std::slice::from_ref(&child));
                child.kill().unwrap();
                let sentinel = child.sentinel().unwrap();
                support::process::eventually("it ends", || sentinel.is_ready());
                assert_eq!(child.exit_code(), Some(-9));
                assert_eq!(mp::block_on(child.join()).unwrap().unwrap().signal(), Some(9));
            })
            .join()
            .unwrap();
        }
    });
}

#[test]
fn a_paused_clock_fires_no_deadline() {
    run_sync(|| {
        let paused =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        paused.block_on(async {
            let meeting = Meeting::new();
            for ctx in methods() {
                // Paused, Tokio's clock jumps to the next of its timers whenever nothing else is to be
                // done: an hour is over at once.
                let before = tokio::time::Instant::now();
                tokio::time::sleep(Duration::from_secs(3600)).await;
                assert!(before.elapsed() >= Duration::from_secs(3600));

                let builder = ctx.process(wait, (meeting.address(),)).start_timeout(Duration::from_secs(100));
                let child = builder.start().await.unwrap();
                let real = Instant::now();
                let timeout = Duration::from_millis(50);
                assert_eq!(child.join_timeout(timeout).await.unwrap(), None);
                assert!(real.elapsed() >= timeout);
                let joining = child.join_timeout(Duration::from_secs(100));
                let (status, ()) = tokio::join!(joining, async { drop(meeting.accept().await) });
                assert_eq!(status.unwrap().unwrap().code(), Some(0));
            }
        });
    });
}

/// A sequence that can be had again: its start is in every message of a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn starts_that_are_given_up_leave_nothing() {
    run(async {
        let seed = std::process::id() as u64 | 1;
        println!("seed {seed}");
        let mut random = Random(seed);
        for ctx in methods() {
            // What a whole start takes here, as the range to stop in.
            let begun = Instant::now();
            let child = ctx.process(forever, ()).start().await.unwrap();
            let whole = begun.elapsed().as_micros() as u64;
            child.kill().unwrap();
            child.join().await.unwrap();
            let mut given_up = 0;
            for _ in 0..200 {
                let start = ctx.process(forever, ()).start();
                let patience = Duration::from_micros(random.below(whole * 3 / 2));
                tokio::select! {
                    biased;
                    child = start => {
                        let child = child.unwrap();
                        child.kill().unwrap();
                        child.join().await.unwrap();
                    }
                    () = precisely(patience) => given_up += 1,
                }
            }
            assert!(given_up > 0, "{ctx:?}");
        }
        assert!(mp::active_children().is_empty());
    });
}

/// Ends after so long, also in the midst of a millisecond, where Tokio's timers do not.
async fn precisely(patience: Duration) {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        tokio::task::yield_now().await;
    }
}
