//! The scheduler against workers that are played: whatever they and their callers do, in whatever
//! order, each item is answered once.

mod counts;
mod size;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::error::Ran;
use crate::function::FnId;
use crate::pool::wire::{Body, Kind, Reply, Tag};
use crate::process::ExitStatus;
use crate::ring::{Corrupt, frames};
use crate::sys::process::Exit;

mod order;

#[derive(Clone, Debug)]
struct Ask {
    number: usize,
    single: bool,
    spec: Rc<Spec>,
}

impl Ticket for Ask {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn is(&self, other: &Self) -> bool {
        self.number == other.number
    }

    fn is_single(&self) -> bool {
        self.single
    }
}

fn limited(number: usize, limit: u64) -> Ask {
    let mut ask = ask(number, None, 0);
    Rc::make_mut(&mut ask.spec).memory_limit = Some(limit);
    ask
}

fn ask(number: usize, timeout: Option<Duration>, retries: u32) -> Ask {
    ask_as(number, timeout, retries, Class::default())
}

fn ask_as(number: usize, timeout: Option<Duration>, retries: u32, class: Class) -> Ask {
    let spec = Spec {
        id: 0,
        function: Ok(FnId::Place(0)),
        name: "task",
        timeout,
        memory_limit: None,
        retries,
        class,
        progress: None,
    };
    Ask { number, single: false, spec: Rc::new(spec) }
}

fn run(job: &Ask, count: u32) -> Run<Ask> {
    let items = [1, 0, 0, 0, 7].repeat(count as usize);
    Run::new(job.clone(), 0, count, Body { items: items.into(), ..Body::default() })
}

/// What a worker process would hold: the runs in its ring, and the words of their slots.
#[derive(Debug, Default)]
struct Played {
    inbox: VecDeque<(u32, u32, usize)>,
    slots: BTreeMap<u32, (u32, bool)>,
    /// The item that it runs.
    running: Option<(Tag, usize)>,
    began_at: u64,
    outbox: Vec<u8>,
    killed: bool,
    told_to_stop: bool,
    room: bool,
}

impl Played {
    fn reply(&mut self, kind: Kind, tag: Tag) {
        let head = Reply::head(kind, tag, &Body::default());
        self.outbox.extend_from_slice(&(head.len() as u32).to_le_bytes());
        self.outbox.extend_from_slice(&head);
    }

    /// Asks to be replaced, which workers do between items.
    fn retire(&mut self) {
        if self.running.is_none() {
            self.reply(Kind::Retire, Tag { seq: u32::MAX, index: 0 });
        }
    }

    /// Does the next thing that a worker does.
    fn step(&mut self, now: u64) {
        if let Some((tag, _)) = self.running.take() {
            return self.reply(Kind::Value, tag);
        }
        let Some((seq, count, job)) = self.inbox.front().copied() else { return };
        let (begun, cancelled) = self.slots.get_mut(&seq).expect("its slot was set up");
        let tag = Tag { seq, index: *begun };
        *begun += 1;
        self.began_at = now;
        if *cancelled {
            self.inbox.pop_front();
            return self.reply(Kind::Skipped, tag);
        }
        if *begun == count {
            self.inbox.pop_front();
        }
        self.running = Some((tag, job));
    }
}

#[derive(Clone, Debug, Default)]
struct Wire(Rc<RefCell<Played>>);

impl Lane<Ask> for Wire {
    type Bell = ();

    fn send(&mut self, seq: u32, run: &Run<Ask>) -> Sent {
        let mut played = self.0.borrow_mut();
        if !played.room {
            return Sent::NoRoom;
        }
        assert!(run.count > 0 && run.body.items.len() == 5 * run.count as usize);
        played.inbox.push_back((seq, run.count, run.job.number));
        played.slots.insert(seq, (0, false));
        Sent::Yes
    }

    fn withdraw(&self, seq: u32) -> u32 {
        let mut played = self.0.borrow_mut();
        let slot = played.slots.get_mut(&seq).expect("a run that was sent");
        assert!(!std::mem::replace(&mut slot.1, true), "withdrawn twice");
        slot.0
    }

    fn begun(&self, seq: u32) -> u32 {
        self.0.borrow().slots[&seq].0
    }

    fn began_at(&self) -> u64 {
        self.0.borrow().began_at
    }

    fn began_with(&self) -> u64 {
        1000
    }

    fn stop(&mut self) -> bool {
        self.0.borrow_mut().told_to_stop = true;
        true
    }

    fn kill(&self) {
        self.0.borrow_mut().killed = true;
    }

    fn bell(&self) -> Option<()> {
        None
    }

    fn pid(&self) -> Option<i32> {
        Some(1)
    }
}

fn death() -> Death {
    Death {
        exit: ExitStatus::new(Exit::Signal { signal: 9, core: false }, false),
        stderr_tail: String::new(),
        out_of_memory: false,
    }
}

fn fixed(processes: usize) -> Size {
    Size { most: processes, least: None, spares: Some(0), idle: Duration::MAX, asleep: false }
}

/// A pool that is played, and what its callers were told.
struct Play {
    scheduler: Scheduler<Ask, Wire>,
    workers: BTreeMap<WorkerId, Wire>,
    now: u64,
    /// By job and item: how it was answered, and that only once.
    told: BTreeMap<(usize, u64), Option<TaskError>>,
}

impl Play {
    fn new(processes: usize, max_tasks: Option<u32>) -> Self {
        Self::sized(fixed(processes), max_tasks)
    }

    fn sized(size: Size, max_tasks: Option<u32>) -> Self {
        let scheduler = Scheduler::new(size, max_tasks);
        Self { scheduler, workers: BTreeMap::new(), now: 0, told: BTreeMap::new() }
    }

    fn started(processes: usize) -> Self {
        let mut play = Self::new(processes, None);
        play.start();
        play
    }

    fn start(&mut self) {
        while let Some(id) = self.scheduler.start_due(self.now) {
            self.greet(id);
        }
    }

    /// A worker's process is there and ready.
    fn greet(&mut self, id: WorkerId) {
        let wire = Wire::default();
        wire.0.borrow_mut().room = true;
        wire.0.borrow_mut().reply(Kind::Ready, Tag { seq: u32::MAX, index: 0 });
        self.workers.insert(id, wire.clone());
        self.scheduler.started(id, wire, self.now);
        self.drain(id);
    }

    fn tell(&mut self, job: usize, item: u64, error: Option<TaskError>) {
        assert!(self.told.insert((job, item), error).is_none(), "job {job} is told twice of item {item}");
    }

    fn drain(&mut self, id: WorkerId) {
        let bytes = std::mem::take(&mut self.workers[&id].0.borrow_mut().outbox);
        self.scheduler.replies(id, &bytes, self.now).expect("a worker that keeps to the protocol");
        let effects = self.scheduler.take_effects();
        for delivery in effects.deliveries {
            for frame in frames(&bytes[delivery.frames]) {
                let reply = Reply::parse(frame.unwrap()).unwrap();
                self.tell(delivery.job.number, delivery.base + u64::from(reply.tag.index), None);
            }
        }
        self.carry_out(effects.lost);
    }

    fn effects(&mut self) {
        let effects = self.scheduler.take_effects();
        assert!(effects.deliveries.is_empty());
        self.carry_out(effects.lost);
    }

    fn carry_out(&mut self, lost: Vec<Lost<Ask>>) {
        for Lost { job, items, error } in lost {
            for item in items {
                self.tell(job.number, item, Some(error.clone()));
            }
        }
    }

    fn die(&mut self, id: WorkerId) {
        self.drain(id);
        self.workers.remove(&id);
        self.scheduler.died(id, &death(), self.now);
        self.effects();
    }

    fn submit(&mut self, job: &Ask, count: u32) {
        self.scheduler.submit_new(run(job, count), self.now);
        self.effects();
    }

    /// The worker at this place, however many there are.
    fn pick(&self, which: usize) -> Option<WorkerId> {
        self.workers.keys().nth(which % self.workers.len().max(1)).copied()
    }

    /// Has those die that were killed.
    fn drive_out(&mut self) {
        let killed = self.workers.iter().filter(|(_, worker)| worker.0.borrow().killed);
        for id in killed.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.die(id);
        }
    }

    /// How many workers run something.
    fn running(&self) -> usize {
        let workers = self.workers.values().map(|worker| worker.0.borrow());
        workers.filter(|worker| worker.running.is_some() && !worker.killed).count()
    }

    /// Lets everything come to its end.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.now += 100_000;
            self.start();
            for id in self.workers.keys().copied().collect::<Vec<_>>() {
                let wire = self.workers[&id].clone();
                wire.0.borrow_mut().room = true;
                if wire.0.borrow().killed {
                    self.die(id);
                } else {
                    wire.0.borrow_mut().step(self.now);
                    self.drain(id);
                }
            }
            self.scheduler.tick(self.now);
            self.effects();
            if !self.scheduler.has_unfinished() {
                if self.scheduler.phase() != Phase::Terminated {
                    assert_eq!(self.scheduler.queue.in_flight(), 0);
                }
                return;
            }
        }
        panic!("no end: {:?}", self.scheduler);
    }
}

#[derive(Clone, Debug)]
enum Act {
    Submit {
        count: u32,
        timeout: bool,
        retries: u32,
        priority: i32,
        key: Option<u8>,
    },
    Step(usize),
    Drain(usize),
    Die(usize),
    /// Published, but not taken before the death is seen: the driver takes it then.
    Full(usize),
    Abort {
        job: usize,
        kill: bool,
    },
    /// It asks to be replaced.
    Retire(usize),
    Resize(usize),
    Wait(u64),
    Close,
    Terminate,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..40u32, any::<bool>(), 0..3u32, -1..2, prop::option::of(0..3u8)).prop_map(
            |(count, timeout, retries, priority, key)| Act::Submit { count, timeout, retries, priority, key }
        ),
        20 => (0..4usize).prop_map(Act::Step),
        10 => (0..4usize).prop_map(Act::Drain),
        2 => (0..4usize).prop_map(Act::Die),
        1 => (0..4usize).prop_map(Act::Full),
        2 => (0..10usize, any::<bool>()).prop_map(|(job, kill)| Act::Abort { job, kill }),
        1 => (0..4usize).prop_map(Act::Retire),
        1 => (1..4usize).prop_map(Act::Resize),
        6 => (0..3_000_000u64).prop_map(Act::Wait),
        1 => Just(Act::Close),
    ]
}

fn play(acts: Vec<Act>, mut play: Play, terminate: bool) {
    play.start();
    let mut jobs: Vec<(Ask, u32)> = Vec::new();
    let mut most = play.scheduler.size.most;
    for act in acts.into_iter().chain(terminate.then_some(Act::Terminate)) {
        match act {
            Act::Submit { count, timeout, retries, priority, key } => {
                let class = Class { priority, key: key.map(|key| key.to_string().into()) };
                let timeout = timeout.then_some(Duration::from_millis(2));
                let job = ask_as(jobs.len(), timeout, retries, class);
                play.submit(&job, count);
                jobs.push((job, count));
            }
            Act::Step(which) => {
                if let Some(id) = play.pick(which) {
                    let wire = play.workers[&id].clone();
                    let mut played = wire.0.borrow_mut();
                    if !played.killed {
                        played.step(play.now);
                    }
                }
            }
            Act::Drain(which) => play.pick(which).into_iter().for_each(|id| play.drain(id)),
            Act::Die(which) => play.pick(which).into_iter().for_each(|id| play.die(id)),
            Act::Full(which) => {
                if let Some(id) = play.pick(which) {
                    let mut played = play.workers[&id].0.borrow_mut();
                    played.room = !played.room;
                }
            }
            Act::Retire(which) => {
                if let Some(id) = play.pick(which) {
                    play.workers[&id].0.borrow_mut().retire();
                }
            }
            Act::Resize(processes) => {
                most = most.max(processes);
                play.scheduler.resize(processes, play.now);
                play.effects();
            }
            Act::Abort { job, kill } => {
                if let Some((job, _)) = jobs.get(job) {
                    play.scheduler.abort(job, kill, play.now);
                    play.effects();
                }
            }
            Act::Wait(time) => {
                play.now += time;
                play.start();
                for id in play.workers.keys().copied().collect::<Vec<_>>() {
                    play.drain(id);
                }
                // The second time for those who are too many only since what waited was handed out.
                for _ in 0..2 {
                    play.scheduler.tick(play.now);
                    play.effects();
                    play.start();
                }
                let next = play.scheduler.next_deadline();
                assert!(next.is_none_or(|next| next > play.now), "it spins: {:?}", play.scheduler);
                play.drive_out();
            }
            Act::Close => {
                play.scheduler.close(play.now);
                play.effects();
            }
            Act::Terminate => {
                play.scheduler.terminate();
                play.effects();
            }
        }
        assert!(play.running() <= most);
    }
    play.settle();
    for (job, count) in &jobs {
        for item in 0..u64::from(*count) {
            assert!(
                play.told.contains_key(&(job.number, item)),
                "job {} never hears of item {item}",
                job.number
            );
        }
    }
    let all: usize = jobs.iter().map(|(_, count)| *count as usize).sum();
    assert_eq!(play.told.len(), all);
    let (stats, _) = play.scheduler.stats(play.now);
    let values = play.told.values().filter(|error| error.is_none()).count();
    let unrun = play.told.values().flatten().filter(|error| error.ran() == Ran::No).count();
    assert_eq!((stats.done, stats.unrun), (values as u64, unrun as u64));
    assert_eq!((stats.failed, stats.waiting), ((all - values - unrun) as u64, 0));
}

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn each_item_is_answered_once(
        acts in prop::collection::vec(act(), 0..150),
        processes in 1..4usize,
        max_tasks in prop::option::of(1..20u32),
        terminate in any::<bool>(),
        key_limit in prop::option::of(1..3usize),
        quarantine in prop::option::of(1..3u32),
        size in (prop::option::of(0..4usize), prop::option::of(0..3usize), any::<bool>()),
    ) {
        let (least, spares, asleep) = size;
        let idle = Duration::from_millis(2);
        let size = Size { most: processes, least, spares, idle, asleep };
        let mut pool = Play::sized(size, max_tasks);
        let quarantine = quarantine.map(|deaths| (deaths, Duration::from_millis(3)));
        pool.scheduler = pool.scheduler.ordered(key_limit, quarantine);
        play(acts, pool, terminate);
    }
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
