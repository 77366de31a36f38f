//! The scheduler against workers that are played: whatever they and their callers do, in whatever
//! order, each item is answered once.

mod acts;
mod counts;
mod order;
mod runs;
mod size;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::*;
use crate::error::Ran;
use crate::function::FnId;
use crate::pool::wire::{Body, Kind, Reply, Tag};
use crate::process::ExitStatus;
use crate::ring::Corrupt;
use crate::ring::single::frames;
use crate::sys::process::Exit;

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
