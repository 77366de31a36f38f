//! How many workers there are, and what becomes of those that do not do what they should.

use super::*;
use crate::pool::health::Health;

const SECOND: u64 = 1_000_000_000;

fn elastic(least: usize, most: usize) -> Size {
    Size { least: Some(least), idle: Duration::from_secs(1), ..fixed(most) }
}

impl Play {
    fn begin(&self, id: WorkerId) {
        self.workers[&id].0.borrow_mut().step(self.now);
        assert!(self.workers[&id].0.borrow().running.is_some());
    }

    fn finish(&mut self, id: WorkerId) {
        self.workers[&id].0.borrow_mut().step(self.now);
        self.drain(id);
    }

    fn at(&mut self, now: u64) {
        self.now = now;
        self.scheduler.tick(now);
        self.effects();
        self.start();
    }

    /// The workers that hold something.
    fn busy(&self) -> Vec<WorkerId> {
        let busy = self.workers.iter().filter(|(_, worker)| !worker.0.borrow().inbox.is_empty());
        busy.map(|(id, _)| *id).collect()
    }

    fn told_to_stop(&self) -> Vec<WorkerId> {
        let told = self.workers.iter().filter(|(_, worker)| worker.0.borrow().told_to_stop);
        told.map(|(id, _)| *id).collect()
    }
}

#[test]
fn an_elastic_pool_grows_while_tasks_wait_and_shrinks_when_idle() {
    let mut play = Play::sized(elastic(1, 3), None);
    play.start();
    assert_eq!(play.workers.len(), 1);
    for job in 0..5 {
        play.submit(&ask(job, None, 0), 1);
        play.start();
    }
    assert_eq!(play.workers.len(), 3);
    assert_eq!(play.scheduler.health(0), Health::Busy);
    // Answered to the end; then all are idle from the same time on.
    play.settle();
    let idle = play.now;
    play.at(idle + SECOND / 2);
    assert!(play.told_to_stop().is_empty());
    play.at(idle + SECOND);
    assert_eq!(play.told_to_stop().len(), 2);
    let left = play.workers.keys().find(|id| !play.told_to_stop().contains(id)).copied();
    for id in play.told_to_stop() {
        play.die(id);
    }
    assert_eq!(play.pick(0), left);
    // As long as it is alone nothing has to be looked after, however long it is idle.
    play.at(idle + 100 * SECOND);
    assert_eq!(play.scheduler.next_deadline(), None);
    assert_eq!((play.workers.len(), play.scheduler.health(play.now)), (1, Health::Ready));
}

#[test]
fn tasks_that_only_their_key_holds_up_start_no_worker() {
    let mut play = Play::sized(elastic(1, 3), None);
    play.scheduler = play.scheduler.ordered(Some(1), None);
    play.start();
    let class = |key: &str| Class { priority: 0, key: Some(key.into()) };
    for job in 0..3 {
        play.submit(&ask_as(job, None, 0, class("busy")), 1);
        play.start();
    }
    assert_eq!((play.workers.len(), play.scheduler.pending_runs()), (1, 2));
    play.submit(&ask_as(3, None, 0, class("other")), 1);
    play.start();
    assert_eq!((play.workers.len(), play.scheduler.pending_runs()), (2, 2));
    play.settle();
}

#[test]
fn a_pool_may_shrink_to_nothing_and_comes_back() {
    let mut play = Play::sized(elastic(0, 2), None);
    play.start();
    assert!(play.workers.is_empty() && play.scheduler.health(0) == Health::Ready);
    for round in 0..2 {
        play.submit(&ask(round, None, 0), 1);
        play.settle();
        assert!(play.told[&(round, 0)].is_none());
        play.at(play.now + 2 * SECOND);
        for id in play.told_to_stop() {
            play.die(id);
        }
        assert!(play.workers.is_empty());
    }
}

#[test]
fn a_lazy_pool_waits_for_the_first_task() {
    let mut play = Play::sized(Size { asleep: true, ..fixed(3) }, None);
    play.start();
    assert!(play.workers.is_empty() && play.scheduler.next_deadline().is_none());
    assert_eq!(play.scheduler.health(0), Health::Ready);
    play.submit(&ask(0, None, 0), 1);
    play.start();
    assert_eq!(play.workers.len(), 3);
}

#[test]
fn spares_run_nothing_until_somebody_dies() {
    let mut play = Play::sized(Size { spares: Some(1), ..fixed(2) }, None);
    play.start();
    assert_eq!(play.workers.len(), 3);
    for job in 0..3 {
        play.submit(&ask(job, None, 0), 1);
    }
    let (busy, waiting) = (play.busy(), play.scheduler.pending_runs());
    assert_eq!((busy.len(), waiting), (2, 1));
    play.begin(busy[0]);
    // Not the replacement, which does not exist yet, but the spare takes over.
    play.die(busy[0]);
    assert_eq!((play.busy().len(), play.scheduler.pending_runs()), (2, 0));
    play.start();
    assert_eq!(play.workers.len(), 3);
}

#[test]
fn a_fresh_worker_for_each_task_is_a_spare_before() {
    let mut play = Play::sized(Size { spares: None, ..fixed(2) }, Some(1));
    play.start();
    for job in 0..4 {
        play.submit(&ask(job, None, 0), 1);
    }
    play.start();
    // Two run their only task; for each of them there is somebody else by now.
    assert_eq!((play.busy(), play.workers.len()), (vec![0, 1], 6));
    play.begin(0);
    play.finish(0);
    assert_eq!(play.busy(), [1, 2]);
}

#[test]
fn a_pool_can_be_resized() {
    let mut play = Play::started(1);
    let mut jobs = 0;
    let mut fill = |play: &mut Play, count: usize| {
        for _ in 0..count {
            play.submit(&ask(jobs, None, 0), 1);
            jobs += 1;
        }
    };
    fill(&mut play, 3);
    play.scheduler.resize(3, 0);
    play.start();
    assert_eq!((play.workers.len(), play.busy().len()), (3, 3));
    play.begin(0);
    play.begin(1);
    play.scheduler.resize(1, 0);
    // What was not begun is taken back, and waits for the one that stays.
    assert_eq!((play.scheduler.pending_runs(), play.scheduler.pids().len()), (1, 1));
    play.finish(1);
    play.finish(0);
    play.settle();
    assert_eq!(play.told.values().filter(|error| error.is_none()).count(), 3);
    assert_eq!(play.told_to_stop().len(), 2);
}

#[test]
fn a_resized_pool_keeps_the_minimum_that_was_asked_for() {
    let mut play = Play::sized(elastic(2, 4), None);
    for (processes, wanted) in [(1, 1), (4, 2), (2, 2), (8, 2)] {
        play.scheduler.resize(processes, 0);
        assert_eq!(play.scheduler.wanted(), wanted, "of {processes}");
    }
    let mut play = Play::new(2, None);
    play.scheduler.resize(4, 0);
    assert_eq!(play.scheduler.wanted(), 4);
}

#[test]
fn as_many_spares_as_workers_follow_their_number() {
    let mut play = Play::sized(Size { spares: None, ..fixed(2) }, Some(1));
    for processes in [3, 1] {
        play.scheduler.resize(processes, 0);
        assert_eq!(play.scheduler.wanted(), 2 * processes);
    }
    let mut play = Play::sized(Size { spares: Some(1), ..fixed(2) }, Some(1));
    play.scheduler.resize(3, 0);
    assert_eq!(play.scheduler.wanted(), 4);
}

/// One that cannot be told yet is not wanted when it comes.
#[test]
fn a_worker_that_is_being_started_can_be_too_many() {
    let mut play = Play::new(2, None);
    let (first, second) = (play.scheduler.start_due(0).unwrap(), play.scheduler.start_due(0).unwrap());
    play.scheduler.resize(1, 0);
    assert_eq!(play.scheduler.next_deadline(), None, "nothing to do, and it would spin");
    let (stays, goes) = (Wire::default(), Wire::default());
    play.scheduler.started(first, stays.clone(), 0);
    play.scheduler.started(second, goes.clone(), 0);
    assert!(goes.0.borrow().killed && !stays.0.borrow().killed);
}

#[test]
fn a_worker_that_does_not_end_is_killed_after_a_while() {
    for has_done_its_number in [false, true] {
        let mut play = Play::sized(fixed(1), has_done_its_number.then_some(1));
        play.start();
        play.submit(&ask(0, None, 0), 1);
        play.begin(0);
        if !has_done_its_number {
            play.scheduler.close(0);
        }
        // As long as it runs its task it has all the time in the world.
        play.at(100 * SECOND);
        assert!(!play.workers[&0].0.borrow().killed);
        play.finish(0);
        play.at(100 * SECOND + 5 * SECOND - 1);
        assert!(!play.workers[&0].0.borrow().killed);
        play.at(100 * SECOND + 5 * SECOND);
        assert!(play.workers[&0].0.borrow().killed);
        assert!(play.told[&(0, 0)].is_none());
    }
}

/// It is stopped, say. Another gets what it holds, and it gets nothing before it shows life.
#[test]
fn an_idle_worker_that_does_not_run_gives_back_what_it_was_given() {
    for count in [1, 2] {
        let mut play = Play::started(2);
        for (job, worker) in [(0, 0), (1, 1)] {
            play.submit(&ask(job, None, 0), 1);
            play.begin(worker);
        }
        play.now = 1_000;
        play.finish(0);
        // It is known to be quick; the other one is busy.
        for job in 0..count {
            play.submit(&ask(2 + job, None, 0), 1);
        }
        assert_eq!(play.scheduler.pending_runs(), 0);
        // The busy one is looked at as well.
        for _ in 0..2 {
            if play.scheduler.pending_runs() > 0 {
                break;
            }
            play.now = play.scheduler.next_deadline().expect("a look at it");
            play.scheduler.tick(play.now);
        }
        assert_eq!(play.scheduler.pending_runs(), count);
        play.finish(1);
        let seen = play.workers[&0].0.borrow().inbox.len();
        play.workers[&1].0.borrow_mut().step(play.now);
        play.finish(1);
        assert_eq!(play.workers[&0].0.borrow().inbox.len(), seen, "it was given more");
        // It goes on, passes over what is not its own any more, and counts again.
        for _ in 0..count {
            play.workers[&0].0.borrow_mut().step(play.now);
            play.drain(0);
        }
        for job in 10..13 {
            play.submit(&ask(job, None, 0), 1);
        }
        assert!(!play.workers[&0].0.borrow().inbox.is_empty());
        play.settle();
        assert!(play.told.values().all(Option::is_none));
    }
}

/// All may be stopped, and then somebody has to go for others to come.
#[test]
fn a_worker_that_shows_no_life_is_killed_after_a_while_and_replaced() {
    let mut play = Play::started(1);
    play.now = 1_000;
    play.submit(&ask(0, Some(Duration::from_secs(1)), 0), 1);
    play.at(play.scheduler.next_deadline().expect("a look at it"));
    assert_eq!(play.scheduler.pending_runs(), 1);
    assert_eq!(play.scheduler.health(play.now), Health::Starting);
    let silent = play.now;
    play.at(silent + 5 * SECOND - 1);
    assert!(!play.workers[&0].0.borrow().killed);
    play.at(silent + 5 * SECOND);
    assert_eq!(play.workers.len(), 2, "the next one need not wait for its end");
    play.drive_out();
    play.settle();
    assert!(play.told[&(0, 0)].is_none());
    let (stats, _) = play.scheduler.stats(play.now);
    assert_eq!((stats.ends.unresponsive, stats.restarts), (1, 1));
}

#[test]
fn a_worker_that_shows_life_again_is_not_killed() {
    let mut play = Play::started(1);
    play.now = 1_000;
    play.submit(&ask(0, None, 0), 1);
    play.at(play.scheduler.next_deadline().expect("a look at it"));
    assert_eq!(play.scheduler.pending_runs(), 1);
    play.at(play.now + 4 * SECOND);
    // It passes over what is not its own any more, and gets it anew.
    play.finish(0);
    assert_eq!(play.scheduler.pending_runs(), 0);
    play.begin(0);
    play.at(play.now + 100 * SECOND);
    assert!(!play.workers[&0].0.borrow().killed);
    play.finish(0);
    assert!(play.told[&(0, 0)].is_none());
}

/// Counted from when there is a process, as that is what can be killed.
#[test]
fn workers_that_do_not_become_ready_in_time_break_the_pool() {
    let mut play = Play::new(2, None);
    play.scheduler = play.scheduler.starting_within(Some(Duration::from_secs(1)));
    play.submit(&ask(0, None, 0), 1);
    let mut starts = 0;
    while play.scheduler.broken().is_none() {
        play.now = play.scheduler.next_deadline().expect("another try");
        for id in std::iter::from_fn(|| play.scheduler.start_due(play.now)).collect::<Vec<_>>() {
            starts += 1;
            let wire = Wire::default();
            play.workers.insert(id, wire.clone());
            play.now += SECOND;
            play.scheduler.started(id, wire, play.now);
            play.now += SECOND - 1;
            play.scheduler.tick(play.now);
            assert!(!play.workers[&id].0.borrow().killed);
            play.now += 1;
            play.scheduler.tick(play.now);
            assert!(play.workers[&id].0.borrow().killed);
            play.die(id);
        }
    }
    let (stats, _) = play.scheduler.stats(play.now);
    assert_eq!((starts, stats.ends.unready, stats.restarts), (4, 4, 0));
    let Health::Broken { why, .. } = play.scheduler.health(play.now) else { panic!() };
    assert!(why.contains("start_timeout"), "{why}");
    assert!(matches!(play.told[&(0, 0)], Some(TaskError::NotStarted(NotStarted::NoWorker(_)))));
}

/// Looking at it once is enough.
#[test]
fn a_worker_that_has_begun_its_only_item_is_left_alone() {
    let mut play = Play::started(1);
    play.now = 1_000;
    play.submit(&ask(0, None, 0), 1);
    play.begin(0);
    play.now = play.scheduler.next_deadline().expect("a look at it");
    play.scheduler.tick(play.now);
    assert_eq!((play.scheduler.pending_runs(), play.scheduler.next_deadline()), (0, None));
}

#[test]
fn a_broken_pool_tries_one_start_at_a_time() {
    let mut play = Play::new(3, None);
    while play.scheduler.broken().is_none() {
        play.now = play.scheduler.next_deadline().expect("another try");
        let due: Vec<_> = std::iter::from_fn(|| play.scheduler.start_due(play.now)).collect();
        for id in due {
            play.scheduler.start_failed(id, "no luck".to_owned(), false, play.now);
        }
    }
    let Health::Broken { why, next_try } = play.scheduler.health(play.now) else { panic!() };
    assert!(why == "no luck" && next_try > Duration::ZERO);
    play.now += next_try.as_nanos() as u64;
    let probe = play.scheduler.start_due(play.now).expect("a probe");
    assert_eq!(play.scheduler.start_due(play.now), None);
    assert_eq!(play.scheduler.next_deadline(), None, "nothing to do, and it would spin");
    let wire = Wire::default();
    wire.0.borrow_mut().room = true;
    play.workers.insert(probe, wire.clone());
    play.scheduler.started(probe, wire.clone(), play.now);
    assert!(matches!(play.scheduler.health(play.now), Health::Broken { .. }));
    wire.0.borrow_mut().reply(Kind::Ready, Tag { seq: u32::MAX, index: 0 });
    play.drain(probe);
    assert_eq!(play.scheduler.health(play.now), Health::Ready);
    play.start();
    assert_eq!(play.workers.len(), 3);
}

/// Also one that wants no worker while there is nothing to do: else it could never be mended.
#[test]
fn a_broken_pool_tries_again_although_nobody_waits() {
    let mut play = Play::sized(elastic(0, 1), None);
    play.submit(&ask(0, None, 0), 1);
    let only = play.scheduler.start_due(0).unwrap();
    play.scheduler.start_failed(only, "hopeless".to_owned(), true, 0);
    play.effects();
    assert!(matches!(play.told[&(0, 0)], Some(TaskError::NotStarted(NotStarted::NoWorker(_)))));
    play.now = play.scheduler.next_deadline().expect("another try");
    play.start();
    assert_eq!((play.workers.len(), play.scheduler.health(play.now)), (1, Health::Ready));
}

/// However many it might have: it wants one, and sees soon enough that there is none to be had.
#[test]
fn an_elastic_pool_is_broken_by_as_many_failures_as_it_wants_workers() {
    let mut play = Play::sized(elastic(0, 64), None);
    play.submit(&ask(0, None, 0), 1);
    let mut starts = 0;
    while play.scheduler.broken().is_none() {
        play.now = play.scheduler.next_deadline().expect("another try");
        while let Some(id) = play.scheduler.start_due(play.now) {
            starts += 1;
            play.scheduler.start_failed(id, "no".to_owned(), false, play.now);
        }
    }
    assert!(starts <= 3, "{starts}");
}

#[test]
fn workers_that_die_as_soon_as_they_are_ready_are_told_of() {
    let mut play = Play::started(1);
    for _ in 0..3 {
        play.start();
        assert_eq!(play.scheduler.health(play.now), Health::Ready);
        let id = play.pick(0).unwrap();
        play.die(id);
        play.now = play.scheduler.next_deadline().expect("another try").max(play.now);
    }
    assert!(matches!(play.scheduler.health(play.now), Health::Broken { .. }));
}
