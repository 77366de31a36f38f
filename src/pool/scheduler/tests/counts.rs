//! What is counted of what a pool comes through.

use super::*;
use crate::pool::stats::{Ends, Quantiles, WorkerState};

const MS: u64 = 1_000_000;

#[test]
fn waiting_and_running_are_told_apart_and_timed() {
    let mut play = Play::started(1);
    for job in 0..3 {
        play.submit(&ask(job, None, 0), 1);
    }
    play.workers[&0].0.borrow_mut().step(0);
    let (stats, _) = play.scheduler.stats(20 * MS);
    assert_eq!((stats.waiting, stats.running, stats.workers.len()), (2, 1, 1));
    let worker = &stats.workers[0];
    assert_eq!((worker.state, worker.task.as_deref()), (WorkerState::Running, Some("task")));
    assert_eq!(worker.running_for, Some(Duration::from_millis(20)));
    let waiting: Vec<_> = stats.queues.iter().map(|queue| (queue.priority, queue.runs)).collect();
    assert_eq!(waiting, [(0, 2)]);
    // Each takes 100 ms, so the second waits for 100 and the third for 200.
    for round in 1..=3 {
        play.now = round * 100 * MS;
        play.workers[&0].0.borrow_mut().step(play.now);
        play.drain(0);
        play.workers[&0].0.borrow_mut().step(play.now);
    }
    let (stats, times) = play.scheduler.stats(play.now);
    assert_eq!((stats.done, stats.waiting, stats.running), (3, 0, 0));
    assert_eq!((stats.workers[0].state, stats.workers[0].answered), (WorkerState::Idle, 3));
    let (wait, run) = (Quantiles::from(&times.wait), Quantiles::from(&times.run));
    let near =
        |time: Duration, ms: u64| time.as_nanos().abs_diff((ms * MS).into()) <= u128::from(ms * MS / 50);
    assert!(wait.count == 3 && near(wait.p50, 100) && near(wait.max, 200), "{wait:?}");
    assert!(run.count == 3 && near(run.p50, 100) && near(run.p99, 100), "{run:?}");
    assert_eq!((wait.sum, run.sum), (Duration::from_millis(300), Duration::from_millis(300)));
    // What was before does not count twice.
    play.submit(&ask(3, None, 0), 1);
    play.settle();
    let (_, later) = play.scheduler.stats(play.now);
    assert_eq!(Quantiles::from(&later.since(&times).run).count, 1);
}

#[test]
fn each_end_has_its_cause() {
    let mut play = Play::sized(fixed(1), Some(2));
    let next = |play: &mut Play| {
        if play.workers.is_empty() {
            play.now = play.now.max(play.scheduler.next_deadline().expect("a start"));
            play.start();
        }
        *play.workers.keys().next().expect("a worker")
    };
    // It crashes in a task, and another one idle.
    for job in 0..2 {
        let id = next(&mut play);
        if job == 0 {
            play.submit(&ask(job, None, 1), 1);
            play.workers[&id].0.borrow_mut().step(play.now);
        }
        play.die(id);
        // The task is tried again.
        play.start();
        play.settle();
    }
    let (stats, _) = play.scheduler.stats(play.now);
    assert_eq!((stats.ends.crashed, stats.restarts, stats.retried), (2, 2, 1));
    // It is late with a task.
    play.submit(&ask(2, Some(Duration::from_millis(1)), 0), 1);
    let id = next(&mut play);
    play.workers[&id].0.borrow_mut().step(play.now);
    play.now += 2 * MS;
    play.scheduler.tick(play.now);
    play.die(id);
    let (stats, times) = play.scheduler.stats(play.now);
    assert_eq!((stats.ends.timed_out, stats.failed), (1, 1));
    assert_eq!(times.run.histogram.max() / MS, 2, "how long it ran counts although it was killed");
    // It was aborted.
    let aborted = ask(3, None, 0);
    play.submit(&aborted, 1);
    let id = next(&mut play);
    play.workers[&id].0.borrow_mut().step(play.now);
    play.scheduler.abort(&aborted, true, play.now);
    play.effects();
    play.die(id);
    // It could not be started.
    next(&mut play);
    let failing = play.scheduler.start_due(play.now);
    assert_eq!(failing, None, "there is one");
    let id = *play.workers.keys().next().unwrap();
    play.scheduler.resize(2, play.now);
    let failing = play.scheduler.start_due(play.now).expect("a second one");
    play.scheduler.start_failed(failing, "no".to_owned(), false, play.now);
    play.scheduler.resize(1, play.now);
    // It broke the protocol.
    play.scheduler.kill(id);
    play.die(id);
    let (stats, _) = play.scheduler.stats(play.now);
    let expected =
        Ends { crashed: 2, timed_out: 1, aborted: 1, unready: 1, unresponsive: 1, ..Ends::default() };
    assert_eq!(stats.ends, expected);
}
