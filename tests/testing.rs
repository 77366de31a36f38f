//! Faults on purpose: each does what it says, to the item that it was planned for and to no other.

#![cfg(target_os = "linux")]

mod support;

use std::time::{Duration, Instant};

use futures::stream::{StreamExt, TryStreamExt};
use mp::testing::{Fault, Faults};
use nix::sys::signal::Signal;
use support::{Notebook, Random, eventually, note, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Pool, PoolBuilder, Ran, TaskError};

const LONG: Duration = Duration::from_secs(3_600);

/// One worker, with the faults: a process, then a thread.
fn both(faults: &Faults) -> [PoolBuilder; 2] {
    [Pool::builder(), Pool::builder().in_process()].map(|builder| builder.processes(1).faults(faults.clone()))
}

fn square(x: u64) -> u64 {
    x * x
}

fn noting((x, notebook): (u64, String)) -> u64 {
    note(&notebook, x);
    x
}

fn assert_killed(error: &TaskError) {
    let TaskError::WorkerDied(died) = error else { panic!("{error:?}") };
    assert_eq!(died.exit.signal(), Some(Signal::SIGKILL as i32), "{died:?}");
    assert_eq!(error.ran(), Ran::Maybe);
}

/// The state of a process, as the kernel names it.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

#[test]
fn death_before_the_task() {
    run_each(60, async |context| {
        let faults = Faults::new().on("noting", 2, Fault::DieBefore);
        for builder in both(&faults) {
            let pool = builder.context(context.clone()).build().await.unwrap();
            let notebook = Notebook::new();
            let item = |x| ((x, notebook.path()),);
            assert_eq!(pool.apply(noting, item(1)).await.unwrap(), 1);
            assert_killed(&pool.apply(noting, item(2)).await.unwrap_err());
            assert_eq!(pool.apply(noting, item(3)).await.unwrap(), 3);
            assert_eq!(notebook.notes(), ["1", "3"]);
        }
    });
}

#[test]
fn a_retry_meets_the_next_number() {
    run(60, async {
        let faults = Faults::new().on("", 1, Fault::DieBefore).on("", 2, Fault::DieInReply);
        for builder in both(&faults) {
            let pool = builder.build().await.unwrap();
            let notebook = Notebook::new();
            let call = pool.apply(noting, ((7, notebook.path()),)).retries(2);
            assert_eq!(call.await.unwrap(), 7);
            // Not at the first attempt.
            assert_eq!(notebook.count(7), 2);
        }
    });
}

#[test]
fn death_while_the_task_runs() {
    fn held(notebook: String) {
        note(&notebook, "held");
        pass_gate(&notebook);
        note(&notebook, "let go");
    }
    run(60, async {
        let soon = Faults::new().on("held", 1, Fault::DieDuring(Duration::from_millis(30)));
        let [builder, _] = both(&soon);
        let pool = builder.build().await.unwrap();
        let notebook = Notebook::new();
        assert_killed(&pool.apply(held, (notebook.path(),)).await.unwrap_err());
        notebook.open_gate();
        assert_eq!(pool.apply(square, (2,)).await.unwrap(), 4);
        assert_eq!(notebook.count("let go"), 0);

        // A short task does not get away with its life.
        for builder in both(&Faults::new().on("noting", 1, Fault::DieDuring(LONG))) {
            let pool = builder.build().await.unwrap();
            let notebook = Notebook::new();
            assert_killed(&pool.apply(noting, ((1, notebook.path()),)).await.unwrap_err());
            assert_eq!(notebook.notes(), ["1"]);
            assert_eq!(pool.apply(square, (2,)).await.unwrap(), 4);
        }
    });
}

/// Also when the half of the answer that goes beside the ring was sent.
#[test]
fn death_in_the_reply() {
    fn large((length, notebook): (usize, String)) -> Vec<u8> {
        note(&notebook, length);
        vec![1; length]
    }
    run(60, async {
        for length in [10, 1 << 20] {
            for builder in both(&Faults::new().on("large", 1, Fault::DieInReply)) {
                let pool = builder.build().await.unwrap();
                let notebook = Notebook::new();
                let item = || ((length, notebook.path()),);
                assert_killed(&pool.apply(large, item()).await.unwrap_err());
                assert_eq!(notebook.count(length), 1);
                assert_eq!(pool.apply(large, item()).await.unwrap().len(), length);
            }
        }
    });
}

#[test]
fn death_after_the_reply_loses_nothing() {
    run_each(60, async |context| {
        for builder in both(&Faults::new().on("noting", 5, Fault::DieAfterReply)) {
            let pool = builder.context(context.clone()).build().await.unwrap();
            let before = pool.worker_pids();
            let notebook = Notebook::new();
            let path = notebook.path();
            let items = (0..40).map(move |x| (x, path.clone()));
            let results: Vec<u64> = pool.imap(noting, items).chunk_size(20).try_collect().await.unwrap();
            assert_eq!(results, (0..40).collect::<Vec<_>>());
            assert_eq!(notebook.notes().len(), 40);
            if let [pid] = before[..] {
                eventually("another worker", || !pool.worker_pids().contains(&pid)).await;
            }
        }
    });
}

#[test]
fn a_stalled_worker_is_stopped_until_it_is_killed() {
    run(60, async {
        let [builder, _] = both(&Faults::new().on("", 1, Fault::Stall));
        let pool = builder.build().await.unwrap();
        let [pid] = pool.worker_pids()[..] else { panic!("one worker") };
        let call = pool.apply(square, (3,)).submit();
        eventually("it is stopped", || state(pid) == Some('T')).await;
        call.abort();
        assert!(matches!(call.await, Err(TaskError::Aborted { began: true })));
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
    });
}

#[test]
fn a_task_that_hangs_times_out() {
    run(60, async {
        for fault in [Fault::Hang, Fault::Stall] {
            for builder in both(&Faults::new().on("", 1, fault)) {
                let pool = builder.build().await.unwrap();
                let late = pool.apply(square, (3,)).timeout(Duration::from_millis(50)).await.unwrap_err();
                assert!(matches!(late, TaskError::TimedOut), "{late:?}");
                assert_eq!(pool.apply(square, (3,)).timeout(LONG).await.unwrap(), 9);
            }
        }
    });
}

#[test]
fn a_flood_is_in_the_way_of_nothing_and_its_end_is_kept() {
    run(60, async {
        let faults = Faults::new().on("", 1, Fault::Flood(128 << 10)).on("", 2, Fault::DieBefore);
        let [builder, _] = both(&faults);
        let pool = builder.build().await.unwrap();
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
        let TaskError::WorkerDied(died) = pool.apply(square, (3,)).await.unwrap_err() else { panic!() };
        assert!(died.stderr_tail.len() == 4096 && died.stderr_tail.contains("a flood of"), "{died:?}");
    });
}

#[test]
fn garbage_costs_the_item_alone() {
    run(60, async {
        for builder in both(&Faults::new().on("noting", 3, Fault::Garble)) {
            let pool = builder.build().await.unwrap();
            let notebook = Notebook::new();
            let path = notebook.path();
            let items = (0..20).map(move |x| (x, path.clone()));
            let results: Vec<_> = pool.imap(noting, items).chunk_size(1).collect().await;
            let [error] = &results.iter().filter_map(|result| result.as_ref().err()).collect::<Vec<_>>()[..]
            else {
                panic!("{results:?}")
            };
            assert_killed(error);
            notebook.assert_no_repetition();
            assert_eq!(notebook.notes().len(), 20);
        }
    });
}

#[test]
fn a_slow_one_comes_late() {
    const DELAY: Duration = Duration::from_millis(50);
    run(60, async {
        for builder in both(&Faults::new().always("square", Fault::Slow(DELAY))) {
            let pool = builder.build().await.unwrap();
            for x in 0..2 {
                let begin = Instant::now();
                assert_eq!(pool.apply(square, (x,)).await.unwrap(), x * x);
                assert!(begin.elapsed() >= DELAY);
            }
        }
    });
}

/// Whoever runs them, and whoever else has died meanwhile.
#[test]
fn items_are_counted_over_all_workers() {
    fn cube(x: u64) -> u64 {
        x * x * x
    }
    run(60, async {
        let faults = Faults::new().on("square", 3, Fault::DieBefore).on("square", 30, Fault::DieBefore);
        let pool = Pool::builder().processes(3).faults(faults).build().await.unwrap();
        assert_eq!(pool.map(cube, 0..50).await.unwrap().len(), 50);
        let results: Vec<_> = pool.imap(square, 0..60).chunk_size(1).collect().await;
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 2);
        results.iter().filter_map(|result| result.as_ref().err()).for_each(assert_killed);
    });
}

#[test]
fn a_seed_gives_the_same_faults_again() {
    run(60, async {
        let mut runs = Vec::new();
        for seed in [1, 1, 2] {
            for builder in both(&Faults::new().random("square", seed, 4, Fault::DieInReply)) {
                let pool = builder.build().await.unwrap();
                let mut failed = Vec::new();
                for x in 0..24 {
                    failed.push(pool.apply(square, (x,)).await.is_err());
                }
                assert!(failed.contains(&true) && failed.contains(&false), "{failed:?}");
                runs.push(failed);
            }
        }
        assert!(runs[..4].iter().all(|run| *run == runs[0]), "{runs:?}");
        assert_eq!(runs[4], runs[5]);
        assert_ne!(runs[0], runs[4]);
    });
}

/// With enough retries each item has its value, whatever goes wrong and whoever it happens to.
#[test]
fn a_storm_of_faults_loses_nothing() {
    const KINDS: [Fault; 7] = [
        Fault::DieBefore,
        Fault::DieDuring(Duration::from_millis(1)),
        Fault::DieInReply,
        Fault::DieAfterReply,
        Fault::Garble,
        Fault::Hang,
        Fault::Slow(Duration::from_millis(1)),
    ];
    run(120, async {
        let mut random = Random::new();
        let plan = |plan: Faults, fault| plan.random("square", random.next(), 60, fault);
        let faults = KINDS.into_iter().fold(Faults::new(), plan);
        for builder in both(&faults) {
            let pool = builder.processes(3).build().await.unwrap();
            let call = pool.map(square, 0..1_500).chunk_size(7).retries(50);
            let squares = call.timeout(Duration::from_millis(100)).await.unwrap();
            assert_eq!(squares, (0..1_500).map(square).collect::<Vec<_>>());
        }
    });
}
