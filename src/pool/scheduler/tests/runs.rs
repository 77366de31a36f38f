//! What becomes of runs whose workers die, hang, are full, or have enough.

use super::*;

/// A reply that says so may never come: what is missing may be others' to give back.
#[test]
fn a_worker_without_room_is_tried_again_in_time() {
    let mut play = Play::started(1);
    let wire = play.workers[&0].clone();
    wire.0.borrow_mut().room = false;
    play.submit(&ask(0, None, 0), 1);
    for room in [false, true] {
        assert!(wire.0.borrow().inbox.is_empty());
        wire.0.borrow_mut().room = room;
        play.now = play.scheduler.next_deadline().expect("another try");
        play.scheduler.tick(play.now);
    }
    assert_eq!(wire.0.borrow().inbox.len(), 1);
}

#[test]
fn what_a_dead_worker_had_not_begun_goes_to_another() {
    let mut play = Play::started(1);
    let job = ask(0, None, 0);
    play.submit(&job, 10);
    let first = play.pick(0).unwrap();
    // It hands out one item as long as it does not know how long they take.
    play.workers[&first].0.borrow_mut().step(0);
    play.die(first);
    play.settle();
    let lost: Vec<_> = play.told.values().flatten().collect();
    assert!(matches!(lost[..], [TaskError::WorkerDied(_)]), "{lost:?}");
    assert_eq!(play.told.len(), 10);
}

#[test]
fn an_answer_published_before_the_death_counts() {
    let mut play = Play::started(1);
    play.submit(&ask(0, None, 0), 1);
    let first = play.pick(0).unwrap();
    play.workers[&first].0.borrow_mut().step(0);
    play.workers[&first].0.borrow_mut().step(0);
    play.die(first);
    assert!(play.told[&(0, 0)].is_none());
}

#[test]
fn a_late_item_is_killed_and_the_others_are_not() {
    let mut play = Play::started(2);
    let (late, other) = (ask(0, Some(Duration::from_millis(1)), 0), ask(1, None, 0));
    play.submit(&late, 1);
    play.submit(&other, 1);
    for id in [0, 1] {
        play.workers[&id].0.borrow_mut().step(0);
    }
    assert_eq!(play.scheduler.next_deadline(), Some(1_000_000));
    play.scheduler.tick(999_999);
    assert!(!play.workers[&0].0.borrow().killed);
    play.scheduler.tick(1_000_000);
    assert!(play.workers[&0].0.borrow().killed && !play.workers[&1].0.borrow().killed);
    play.settle();
    assert!(matches!(play.told[&(0, 0)], Some(TaskError::TimedOut)));
    assert!(play.told[&(1, 0)].is_none());
}

#[test]
fn a_worker_that_does_not_begin_is_killed_and_its_item_runs_elsewhere() {
    let mut play = Play::started(1);
    play.submit(&ask(0, Some(Duration::from_millis(1)), 0), 1);
    play.scheduler.tick(2_000_000);
    assert!(play.workers[&0].0.borrow().killed);
    play.now = 2_000_000;
    play.settle();
    assert!(play.told[&(0, 0)].is_none());
}

#[test]
fn aborting_tells_whether_it_had_begun() {
    let mut play = Play::started(1);
    let (running, waiting) = (ask(0, None, 0), ask(1, None, 0));
    play.submit(&running, 1);
    play.submit(&waiting, 1);
    play.workers[&0].0.borrow_mut().step(0);
    for job in [&waiting, &running] {
        play.scheduler.abort(job, true, 0);
        play.effects();
    }
    play.settle();
    let ran = |job| play.told[&(job, 0)].as_ref().unwrap().ran();
    assert_eq!((ran(0), ran(1)), (Ran::Maybe, Ran::No));
}

#[test]
fn nothing_waits_behind_a_long_item() {
    let mut play = Play::started(1);
    play.submit(&ask(0, None, 0), 1);
    let first = play.pick(0).unwrap();
    play.now = 10_000;
    play.workers[&first].0.borrow_mut().step(0);
    play.workers[&first].0.borrow_mut().step(0);
    play.drain(first);
    // Now it is known to be quick, and holds several.
    let job = ask(1, None, 0);
    play.submit(&job, 1);
    play.submit(&job, 1);
    play.workers[&first].0.borrow_mut().step(play.now);
    assert_eq!(play.scheduler.pending_runs(), 0);
    play.now += LOOK;
    play.scheduler.tick(play.now);
    assert_eq!(play.scheduler.pending_runs(), 1);
}

#[test]
fn failing_initializers_break_the_pool_and_the_first_success_mends_it() {
    let mut play = Play::new(2, None);
    let mut starts = 0;
    while play.scheduler.broken().is_none() {
        while let Some(id) = play.scheduler.start_due(play.now) {
            starts += 1;
            play.scheduler.start_failed(id, "no".to_owned(), false, play.now);
        }
        let next = play.scheduler.next_deadline().expect("another try");
        assert!(next > play.now, "it spins");
        play.now = next;
    }
    assert!(starts <= 6, "{starts}");
    play.submit(&ask(0, None, 0), 1);
    assert!(matches!(play.told[&(0, 0)], Some(TaskError::NotStarted(NotStarted::NoWorker(_)))));
    play.now = play.scheduler.next_deadline().expect("it goes on trying").max(play.now);
    play.start();
    assert!(play.scheduler.broken().is_none());
    play.submit(&ask(1, None, 0), 1);
    play.settle();
    assert!(play.told[&(1, 0)].is_none());
}

#[test]
fn a_worker_is_given_no_more_than_its_budget() {
    let mut play = Play::new(1, Some(3));
    play.start();
    play.submit(&ask(0, None, 0), 7);
    for _ in 0..1000 {
        play.now += 1000;
        for id in play.workers.keys().copied().collect::<Vec<_>>() {
            let wire = play.workers[&id].clone();
            wire.0.borrow_mut().step(play.now);
            play.drain(id);
            let begun: u32 = wire.0.borrow().slots.values().map(|(begun, _)| begun).sum();
            assert!(begun <= 3);
            // It ends by itself.
            if begun == 3 && wire.0.borrow().running.is_none() {
                play.die(id);
            }
        }
        play.start();
    }
    assert_eq!(play.told.values().filter(|error| error.is_none()).count(), 7);
}

/// The looks are the same ones; what they find is another matter.
#[test]
fn an_item_that_holds_too_much_is_killed_and_others_are_not() {
    // It held 1000 bytes when it began.
    for (held, dies) in [(Some(1000), false), (Some(6000), false), (Some(6001), true), (None, false)] {
        let mut play = Play::started(1);
        play.submit(&limited(0, 5000), 1);
        play.submit(&ask(1, None, 0), 1);
        let first = play.workers[&0].clone();
        first.0.borrow_mut().step(0);
        assert!(play.scheduler.samples_due(0).is_empty());
        let due = play.scheduler.next_deadline().expect("a look at its memory");
        let samples = play.scheduler.samples_due(due);
        assert_eq!((samples.len(), samples[0].enough), (1, 6000));
        assert!(play.scheduler.samples_due(due).is_empty(), "nobody looks twice at a time");
        play.scheduler.sampled(0, samples[0].tag, held, due);
        assert_eq!(first.0.borrow().killed, dies, "{held:?}");
        play.settle();
        match &play.told[&(0, 0)] {
            Some(TaskError::MemoryLimit { limit: 5000 }) if dies => {}
            told => assert!(told.is_none() && !dies, "{told:?}"),
        }
        assert!(play.told[&(1, 0)].is_none());
    }
}

/// There may have been no descriptor for it.
#[test]
fn what_could_not_be_looked_at_is_looked_at_again() {
    let mut play = Play::started(1);
    play.submit(&limited(0, 5000), 1);
    let worker = play.workers[&0].clone();
    worker.0.borrow_mut().step(0);
    for held in [None, None, Some(6001)] {
        play.now = play.scheduler.next_deadline().expect("a look at its memory").max(play.now);
        let sample = play.scheduler.samples_due(play.now).pop().expect("it is due");
        assert!(!worker.0.borrow().killed && play.now < 100_000_000, "{}", play.now);
        play.scheduler.sampled(0, sample.tag, held, play.now);
    }
    assert!(worker.0.borrow().killed);
}

#[test]
fn what_is_found_of_an_item_does_not_count_for_the_next() {
    let mut play = Play::started(1);
    play.submit(&limited(0, 5000), 1);
    play.submit(&limited(1, 5000), 1);
    let worker = play.workers[&0].clone();
    worker.0.borrow_mut().step(0);
    play.now = 10_000_000;
    let sample = play.scheduler.samples_due(play.now).pop().expect("it is due");
    worker.0.borrow_mut().step(play.now);
    play.drain(0);
    worker.0.borrow_mut().step(play.now);
    play.scheduler.sampled(0, sample.tag, Some(u64::MAX), play.now);
    assert!(!worker.0.borrow().killed);
    play.settle();
    assert!(play.told.values().all(Option::is_none));
}

#[test]
fn who_is_refused_memory_has_come_to_the_limit_if_there_is_one() {
    let mut play = Play::started(2);
    play.submit(&limited(0, 5000), 1);
    play.submit(&ask(1, None, 0), 1);
    for id in [0, 1] {
        play.workers[&id].0.borrow_mut().step(0);
        play.scheduler.died(id, &Death { out_of_memory: true, ..death() }, 0);
        play.effects();
    }
    assert!(matches!(play.told[&(0, 0)], Some(TaskError::MemoryLimit { limit: 5000 })));
    assert!(matches!(play.told[&(1, 0)], Some(TaskError::WorkerDied(_))));
}

/// It is not told to end before it has answered what it had begun by then.
#[test]
fn a_worker_that_retires_is_replaced_at_once_and_answers_what_it_runs() {
    let mut play = Play::started(1);
    play.submit(&ask(0, None, 0), 1);
    play.now = 10_000;
    let first = play.workers[&0].clone();
    first.0.borrow_mut().step(0);
    first.0.borrow_mut().step(0);
    play.drain(0);
    // Now it is known to be quick, and holds several.
    play.submit(&ask(1, None, 0), 3);
    first.0.borrow_mut().retire();
    first.0.borrow_mut().step(play.now);
    play.drain(0);
    assert_eq!(play.scheduler.pending_runs(), 1);
    assert!(!first.0.borrow().told_to_stop);
    play.start();
    assert_eq!(play.workers.len(), 2);
    first.0.borrow_mut().step(play.now);
    play.drain(0);
    assert!(first.0.borrow().told_to_stop && !first.0.borrow().killed);
    // Saying it again changes nothing.
    first.0.borrow_mut().retire();
    play.settle();
    assert!(play.told.len() == 4 && play.told.values().all(Option::is_none));
}

#[test]
fn closing_sends_workers_home_when_all_is_done() {
    let mut play = Play::started(1);
    play.submit(&ask(0, None, 0), 2);
    play.scheduler.close(play.now);
    play.submit(&ask(1, None, 0), 1);
    assert!(matches!(play.told[&(1, 0)], Some(TaskError::NotStarted(NotStarted::Closed))));
    assert!(!play.workers[&0].0.borrow().told_to_stop);
    play.settle();
    assert!(play.workers[&0].0.borrow().told_to_stop && !play.scheduler.is_done());
    play.die(0);
    assert!(play.scheduler.is_done());
}

#[test]
fn a_timeout_beyond_all_time_never_comes() {
    let mut play = Play::started(1);
    play.now = 1_000_000_000;
    play.submit(&ask(0, Some(Duration::from_secs(1 << 55)), 0), 1);
    let worker = play.workers[&0].clone();
    worker.0.borrow_mut().step(play.now);
    play.now += 1_000_000_000_000;
    play.scheduler.tick(play.now);
    assert!(!worker.0.borrow().killed);
    assert_eq!(play.scheduler.next_deadline(), Some(u64::MAX));
}

#[test]
fn a_worker_that_claims_to_begin_later_and_later_is_killed() {
    let mut play = Play::started(1);
    play.submit(&ask(0, Some(Duration::from_millis(2)), 0), 1);
    let worker = play.workers[&0].clone();
    worker.0.borrow_mut().step(play.now);
    for _ in 0..2 {
        assert!(!worker.0.borrow().killed);
        play.now = play.scheduler.next_deadline().expect("a deadline");
        worker.0.borrow_mut().began_at = u64::MAX;
        play.scheduler.tick(play.now);
    }
    assert!(worker.0.borrow().killed && play.now <= 5_000_000);
    play.die(0);
    assert!(matches!(play.told[&(0, 0)], Some(TaskError::TimedOut)));
}

#[test]
fn an_answer_that_more_should_follow_is_corrupt() {
    let mut play = Play::started(1);
    play.submit(&ask(0, None, 0), 1);
    let worker = play.workers[&0].clone();
    worker.0.borrow_mut().step(0);
    worker.0.borrow_mut().step(0);
    let mut bytes = std::mem::take(&mut worker.0.borrow_mut().outbox);
    let flags = size_of::<u32>() + 1;
    assert_ne!(bytes[flags], 0);
    bytes[flags] = 0;
    assert_eq!(play.scheduler.replies(0, &bytes, 0), Err(Corrupt));
    assert!(play.scheduler.take_effects().deliveries.is_empty());
}

#[test]
fn a_report_is_no_answer_and_comes_from_what_runs() {
    let mut play = Play::started(1);
    let jobs = [ask(0, None, 0), ask(1, None, 0)];
    play.submit(&jobs[0], 2);
    let worker = play.workers[&0].clone();
    let tag = |index| Tag { seq: 0, index };
    worker.0.borrow_mut().step(0);
    worker.0.borrow_mut().reply(Kind::Progress, tag(0));
    worker.0.borrow_mut().step(0);
    worker.0.borrow_mut().reply(Kind::Progress, tag(0));
    let bytes = std::mem::take(&mut worker.0.borrow_mut().outbox);
    // The last one comes after the answer.
    assert_eq!(play.scheduler.replies(0, &bytes, 0), Err(Corrupt));
    let delivered: Vec<_> = play.scheduler.take_effects().deliveries.iter().map(|it| it.what).collect();
    assert_eq!(delivered, [Delivered::Progress, Delivered::Answers]);
}

/// What was withdrawn is kept until its worker has passed over it, or is gone.
#[test]
fn no_job_is_dropped_inside() {
    for dies in [false, true] {
        let mut play = Play::started(1);
        let job = ask(0, None, 0);
        play.submit(&job, 1);
        play.scheduler.abort(&job, false, 0);
        play.effects();
        let held = Rc::downgrade(&job.spec);
        drop(job);
        let worker = play.workers[&0].clone();
        worker.0.borrow_mut().step(0);
        let bytes = std::mem::take(&mut worker.0.borrow_mut().outbox);
        match dies {
            true => play.scheduler.died(0, &death(), 0),
            false => play.scheduler.replies(0, &bytes, 0).expect("it was told to skip"),
        }
        assert_eq!(held.strong_count(), 1);
        let effects = play.scheduler.take_effects();
        assert_eq!(effects.retired.len(), 1);
        drop(effects);
        assert_eq!(held.strong_count(), 0);
    }
}

#[test]
fn an_abandoned_pool_holds_no_worker() {
    let mut play = Play::started(2);
    play.submit(&ask(0, None, 0), 1);
    let wire = Rc::downgrade(&play.workers[&0].0);
    play.workers.clear();
    let lanes = play.scheduler.abandon();
    play.effects();
    assert!(lanes.iter().all(|lane| lane.0.borrow().killed) && lanes.len() == 2);
    drop(lanes);
    assert_eq!(wire.strong_count(), 0);
    assert!(play.scheduler.is_done() && play.told.contains_key(&(0, 0)));
}

/// Its start was under way when the pool was terminated, and could not be stopped any more.
#[test]
fn a_worker_that_comes_after_the_end_is_killed() {
    let mut play = Play::new(1, None);
    let id = play.scheduler.start_due(play.now).unwrap();
    play.scheduler.terminate();
    let wire = Wire::default();
    play.scheduler.started(id, wire.clone(), play.now);
    assert!(wire.0.borrow().killed);
}
