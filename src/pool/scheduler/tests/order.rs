//! Who goes first, and what share each gets: tenants that always have more to do, on workers whose
//! time is played.

use super::*;

const MS: u64 = 1_000_000;

/// How a tenant's tasks go.
#[derive(Clone, Copy)]
enum Way {
    /// They end after so long.
    Ends(u64),
    /// Each kills its worker after so long.
    Dies(u64),
    /// They never end, and have a timeout.
    Hangs(u64),
}

struct Tenant {
    class: Class,
    way: Way,
    /// So many of its tasks wait or run at any time.
    backlog: usize,
}

fn tenant(key: &str, way: Way, backlog: usize) -> Tenant {
    Tenant { class: class(0, key), way, backlog }
}

/// A tenant without a name has no key.
fn class(priority: i32, key: &str) -> Class {
    Class { priority, key: (!key.is_empty()).then(|| key.into()) }
}

/// What the played workers and their tenants come to.
struct Scene {
    play: Play,
    tenants: Vec<Tenant>,
    /// How long a worker's start takes.
    start: u64,
    starting: Vec<(u64, WorkerId)>,
    submitted: Vec<usize>,
    done: Vec<usize>,
    /// Worker time by tenant.
    used: Vec<u64>,
    /// The most workers that had a tenant's task at a time.
    spread: Vec<usize>,
}

impl Scene {
    fn new(processes: usize, tenants: Vec<Tenant>) -> Self {
        let number = tenants.len();
        Self {
            play: Play::new(processes, None),
            tenants,
            start: 0,
            starting: Vec::new(),
            submitted: vec![0; number],
            done: vec![0; number],
            used: vec![0; number],
            spread: vec![0; number],
        }
    }

    fn submit(&mut self, tenant: usize) {
        let number = self.tenants.len() * self.submitted[tenant] + tenant;
        self.submitted[tenant] += 1;
        let Tenant { class, way, .. } = &self.tenants[tenant];
        let timeout = match way {
            Way::Hangs(time) => Some(Duration::from_nanos(*time)),
            Way::Ends(_) | Way::Dies(_) => None,
        };
        self.play.submit(&ask_as(number, timeout, 0, class.clone()), 1);
    }

    fn running(&self, id: WorkerId) -> Option<(usize, u64)> {
        let played = self.play.workers[&id].0.borrow();
        played.running.map(|(_, job)| (job % self.tenants.len(), played.began_at))
    }

    /// When a worker's item ends by itself.
    fn end(&self, id: WorkerId) -> Option<u64> {
        let (tenant, began) = self.running(id)?;
        match self.tenants[tenant].way {
            Way::Ends(time) | Way::Dies(time) => Some(began + time),
            Way::Hangs(_) => None,
        }
    }

    fn ids(&self) -> Vec<WorkerId> {
        self.play.workers.keys().copied().collect()
    }

    /// Lets a time pass, from one event to the next.
    fn pass(&mut self, time: u64) {
        let end = self.play.now + time;
        while self.play.now < end {
            for tenant in 0..self.tenants.len() {
                let missing =
                    (self.tenants[tenant].backlog + self.done[tenant]).saturating_sub(self.submitted[tenant]);
                (0..missing).for_each(|_| self.submit(tenant));
            }
            while let Some(id) = self.play.scheduler.start_due(self.play.now) {
                self.starting.push((self.play.now + self.start, id));
            }
            let ends = self.ids().into_iter().filter_map(|id| self.end(id));
            let starts = self.starting.iter().map(|(at, _)| *at);
            let next = ends.chain(starts).chain(self.play.scheduler.next_deadline()).chain([end]).min();
            self.play.now = next.unwrap_or(end).max(self.play.now);
            self.events();
            for ((job, _), _) in std::mem::take(&mut self.play.told) {
                self.done[job % self.tenants.len()] += 1;
            }
        }
    }

    fn events(&mut self) {
        let now = self.play.now;
        for (_, id) in self.starting.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.play.greet(id);
        }
        for id in self.ids() {
            if self.end(id).is_some_and(|end| end <= now) {
                self.finish(id);
            }
        }
        self.play.scheduler.tick(now);
        self.play.effects();
        for id in self.ids() {
            if self.play.workers[&id].0.borrow().killed {
                self.finish(id);
            }
        }
        for id in self.ids() {
            // What was withdrawn is passed over at once.
            while self.running(id).is_none() && !self.play.workers[&id].0.borrow().inbox.is_empty() {
                self.play.workers[&id].0.borrow_mut().step(now);
                self.play.drain(id);
            }
        }
        for tenant in 0..self.tenants.len() {
            let busy = self.ids().into_iter().filter_map(|id| self.running(id));
            let spread = busy.filter(|(other, _)| *other == tenant).count();
            self.spread[tenant] = self.spread[tenant].max(spread);
        }
    }

    fn finish(&mut self, id: WorkerId) {
        let (now, running) = (self.play.now, self.running(id));
        if let Some((tenant, began)) = running {
            self.used[tenant] += now - began;
        }
        let killed = self.play.workers[&id].0.borrow().killed;
        if killed || running.is_some_and(|(tenant, _)| matches!(self.tenants[tenant].way, Way::Dies(_))) {
            return self.play.die(id);
        }
        self.play.workers[&id].0.borrow_mut().step(now);
        self.play.drain(id);
    }

    /// What share of all workers' time each has got.
    fn shares(&self) -> Vec<f64> {
        let all = self.play.now as f64 * self.play.scheduler.size.most as f64;
        self.used.iter().map(|used| *used as f64 / all).collect()
    }
}

#[test]
fn keys_share_the_workers_time_however_long_their_tasks_take() {
    let tenants = vec![
        tenant("quick", Way::Ends(MS / 2), 50),
        tenant("slow", Way::Ends(30 * MS), 200),
        tenant("", Way::Ends(7 * MS), 10),
    ];
    let mut scene = Scene::new(4, tenants);
    scene.pass(3_000 * MS);
    for share in scene.shares() {
        assert!((0.31..0.36).contains(&share), "{:?}", scene.shares());
    }
}

#[test]
fn tasks_that_hang_are_charged_for_all_their_time() {
    let tenants = vec![
        tenant("good", Way::Ends(5 * MS), 20),
        tenant("bad", Way::Hangs(300 * MS), 20),
        tenant("worse", Way::Hangs(1_000 * MS), 20),
    ];
    let mut scene = Scene::new(4, tenants);
    scene.start = 10 * MS;
    scene.pass(20_000 * MS);
    assert!(scene.shares()[0] > 0.8 / 3.0, "{:?}", scene.shares());
    assert!(scene.shares()[1] > 0.5 / 3.0, "{:?}", scene.shares());
}

/// Before their first timeout nobody knows of them, but that they run and run.
#[test]
fn tasks_that_hang_do_not_take_one_worker_after_the_other() {
    let tenants = vec![tenant("bad", Way::Hangs(60_000 * MS), 20), tenant("good", Way::Ends(5 * MS), 20)];
    let mut scene = Scene::new(4, tenants);
    scene.pass(2_000 * MS);
    assert_eq!(scene.spread[0], 2);
    assert!(scene.shares()[1] > 0.45, "{:?}", scene.shares());
}

/// Who kills workers pays for their replacement, else the others would.
#[test]
fn the_start_of_a_worker_is_charged_to_who_killed_the_former() {
    let tenants = vec![tenant("good", Way::Ends(5 * MS), 20), tenant("bad", Way::Dies(MS), 20)];
    let mut scene = Scene::new(2, tenants);
    scene.start = 30 * MS;
    scene.pass(5_000 * MS);
    assert!((0.4..0.6).contains(&scene.shares()[0]), "{:?}", scene.shares());
}

#[test]
fn a_limited_key_is_on_so_many_workers_and_no_others_suffer() {
    let tenants = vec![tenant("limited", Way::Ends(5 * MS), 50), tenant("free", Way::Ends(5 * MS), 50)];
    let mut scene = Scene::new(4, tenants);
    scene.play.scheduler = scene.play.scheduler.ordered(Some(1), None);
    scene.tenants[1].class.key = None;
    scene.pass(1_000 * MS);
    assert_eq!(scene.spread[0], 1);
    assert!(scene.shares()[0] > 0.23 && scene.shares()[1] > 0.7, "{:?}", scene.shares());
}

/// While the limit holds it back it must not collect a claim to be first for long afterwards.
#[test]
fn a_limited_key_does_not_save_up() {
    let mut tenants: Vec<_> = (0..8).map(|key| tenant(&key.to_string(), Way::Ends(5 * MS), 0)).collect();
    tenants[0].backlog = 20;
    tenants[1].backlog = 20;
    tenants[1].class.key = None;
    let mut scene = Scene::new(4, tenants);
    scene.play.scheduler = scene.play.scheduler.ordered(Some(1), None);
    scene.pass(1_000 * MS);
    scene.tenants.iter_mut().for_each(|tenant| tenant.backlog = 20);
    let before = scene.used[0];
    scene.pass(1_000 * MS);
    let share = (scene.used[0] - before) as f64 / (4_000 * MS) as f64;
    assert!((0.10..0.15).contains(&share), "{share}");
}

#[test]
fn a_key_that_comes_back_neither_pays_nor_saves_up() {
    let mut scene = Scene::new(1, vec![tenant("away", Way::Ends(MS), 0), tenant("there", Way::Ends(MS), 20)]);
    for away in [0, 20, 0, 20] {
        scene.tenants[0].backlog = away;
        // Of what it has left behind nothing is to be seen.
        scene.pass(30 * MS);
        let before = scene.used.clone();
        scene.pass(200 * MS);
        let used: Vec<_> = scene.used.iter().zip(before).map(|(used, before)| used - before).collect();
        if away > 0 {
            assert!(used.iter().all(|used| (90 * MS..=110 * MS).contains(used)), "{used:?}");
        }
    }
}

#[test]
fn higher_priorities_go_first_and_in_one_key_the_oldest() {
    let mut play = Play::started(1);
    play.submit(&ask(0, None, 0), 1);
    let order =
        [(1, 0, "a"), (2, 5, "a"), (3, 0, "a"), (4, -5, ""), (5, 5, ""), (6, 5, "a"), (7, i32::MIN, "")];
    for (job, priority, key) in order {
        play.submit(&ask_as(job, None, 0, class(priority, key)), 1);
    }
    let mut seen = Vec::new();
    while play.scheduler.has_unfinished() {
        play.now += 10 * MS;
        let wire = play.workers[&0].clone();
        wire.0.borrow_mut().step(play.now);
        seen.extend(wire.0.borrow().running.map(|(_, job)| job));
        play.drain(0);
    }
    let place = |job| seen.iter().position(|seen| *seen == job);
    assert_eq!(seen.len(), 8);
    assert_eq!([seen[0], seen[6], seen[7]], [0, 4, 7]);
    assert!(place(2) < place(6) && place(1) < place(3) && place(6).max(place(5)) < place(1), "{seen:?}");
}

#[test]
fn what_was_taken_back_goes_to_the_front_of_its_key() {
    let mut queue = Queue::new(None);
    for job in 0..3 {
        queue.push(run(&ask_as(job, None, 0, class(1, "a")), 4));
    }
    let taken = queue.take(7, 3).expect("a part of the first");
    assert_eq!((taken.job.number, taken.count, queue.len(), queue.in_flight()), (0, 3, 3, 3));
    queue.give_back(7, taken);
    let order: Vec<_> =
        std::iter::from_fn(|| queue.take(7, 9)).map(|run| (run.job.number, run.first)).collect();
    assert_eq!(order, [(0, 0), (0, 3), (1, 0), (2, 0)]);
    assert_eq!(queue.in_flight(), 12);
}

#[test]
fn keys_that_are_gone_cost_nothing() {
    let mut queue = Queue::new(Some(1));
    // Somebody is always there, so the level never forgets everything at once.
    queue.push(run(&ask(0, None, 0), 1_000_000));
    for number in 0..10_000 {
        let class = class(0, &number.to_string());
        queue.push(run(&ask_as(number, None, 0, class.clone()), 1));
        for _ in 0..2 {
            let run = queue.take(0, 1).expect("both are there");
            queue.answered(0, &run.job.spec().class, 1, 10, 10);
        }
    }
    assert!(queue.accounts() < 100, "{}", queue.accounts());
}

/// Lets the only worker of a pool run what it holds; it dies of jobs whose number is odd.
fn work(play: &mut Play) {
    while play.scheduler.has_unfinished() {
        play.now += MS / 10;
        play.start();
        let id = play.pick(0).expect("it was just started");
        let wire = play.workers[&id].clone();
        wire.0.borrow_mut().step(play.now);
        let poison = wire.0.borrow().running.is_some_and(|(_, job)| job % 2 == 1);
        if poison { play.die(id) } else { play.drain(id) }
    }
}

/// A pool of one worker that refuses what two have died of for 100 ms.
fn strict() -> Play {
    let mut play = Play::new(1, None);
    play.scheduler = play.scheduler.ordered(None, Some((2, Duration::from_millis(100))));
    play.start();
    play
}

/// A job for one item, which is what tells one task from another.
fn task(play: &mut Play, job: usize, item: u8, retries: u32) {
    let items = [1, 0, 0, 0, item].to_vec();
    let body = Body { items: items.into(), ..Body::default() };
    play.scheduler.submit_new(Run::new(ask(job, None, retries), 0, 1, body), play.now);
    play.effects();
}

fn outcome(play: &Play, job: usize) -> &Option<TaskError> {
    &play.told[&(job, 0)]
}

fn is_refused(play: &Play, job: usize) -> bool {
    matches!(outcome(play, job), Some(TaskError::NotStarted(NotStarted::Quarantined { .. })))
}

#[test]
fn what_has_killed_too_many_workers_is_refused_and_nothing_else() {
    let mut play = strict();
    for job in [1, 3, 5] {
        task(&mut play, job, 7, 0);
        task(&mut play, job + 1, 8, 0);
        work(&mut play);
    }
    assert!(!is_refused(&play, 1) && !is_refused(&play, 3));
    assert!(matches!(outcome(&play, 5), Some(TaskError::NotStarted(NotStarted::Quarantined { deaths: 2 }))));
    for job in [2, 4, 6] {
        assert!(outcome(&play, job).is_none());
    }
    // Among others in one run, it alone is kept back.
    let items = [7, 8, 7, 9].iter().flat_map(|item| [1, 0, 0, 0, *item]).collect::<Vec<_>>();
    let body = Body { items: items.into(), ..Body::default() };
    play.scheduler.submit_new(Run::new(ask(8, None, 0), 0, 4, body), play.now);
    play.effects();
    work(&mut play);
    let refused: Vec<_> = (0..4).map(|item| play.told[&(8, item)].is_some()).collect();
    assert_eq!(refused, [true, false, true, false]);
}

#[test]
fn after_its_time_one_is_let_through() {
    let mut play = strict();
    for job in [1, 3] {
        task(&mut play, job, 7, 0);
        work(&mut play);
    }
    // Still as bad: only one has found out.
    play.now += 100 * MS;
    for job in [5, 7, 9] {
        task(&mut play, job, 7, 0);
    }
    work(&mut play);
    let refused = [5, 7, 9].map(|job| is_refused(&play, job));
    assert_eq!(refused, [false, true, true]);
    task(&mut play, 11, 7, 0);
    assert!(is_refused(&play, 11));
    // Better now: the next ones go as ever.
    play.now += 100 * MS;
    task(&mut play, 12, 7, 0);
    work(&mut play);
    task(&mut play, 14, 7, 0);
    work(&mut play);
    assert!(outcome(&play, 12).is_none() && outcome(&play, 14).is_none());
}

#[test]
fn a_probe_that_is_taken_back_goes_nevertheless() {
    let mut play = strict();
    for job in [1, 3] {
        task(&mut play, job, 7, 0);
        work(&mut play);
    }
    play.now += 100 * MS;
    play.start();
    task(&mut play, 2, 7, 0);
    // Its worker dies before it begins.
    let id = play.pick(0).expect("a worker");
    play.die(id);
    work(&mut play);
    assert!(outcome(&play, 2).is_none());
}

#[test]
fn deaths_far_apart_do_not_add_up_and_aborts_do_not_count() {
    let mut play = strict();
    for job in [1, 3, 5] {
        task(&mut play, job, 7, 0);
        work(&mut play);
        assert!(!is_refused(&play, job));
        play.now += 101 * MS;
    }
    for job in [2, 4, 6] {
        play.start();
        let aborted = ask(job, None, 0);
        play.submit(&aborted, 1);
        let id = play.pick(0).expect("a worker");
        play.workers[&id].0.borrow_mut().step(play.now);
        play.scheduler.abort(&aborted, true, play.now);
        play.die(id);
        assert!(matches!(outcome(&play, job), Some(TaskError::Aborted { began: true })));
    }
}

/// It has run: "not started" would be a lie.
#[test]
fn retries_end_where_the_quarantine_begins() {
    let mut play = strict();
    task(&mut play, 1, 7, 100);
    work(&mut play);
    assert!(matches!(outcome(&play, 1), Some(TaskError::WorkerDied(_))));
    assert_eq!(play.scheduler.next_worker, 2);
    task(&mut play, 3, 7, 100);
    work(&mut play);
    assert!(is_refused(&play, 3));
}

#[test]
fn what_was_tried_before_is_never_said_not_to_have_started() {
    for ending in 0..3 {
        let mut play = Play::started(1);
        let job = ask(1, None, 9);
        play.submit(&job, 1);
        play.workers[&0].0.borrow_mut().step(0);
        play.die(0);
        assert!(play.told.is_empty());
        match ending {
            0 => play.scheduler.terminate(),
            1 => play.scheduler.abort(&job, true, 0),
            _ => play.scheduler.abort(&job, false, 0),
        }
        play.effects();
        assert_eq!(outcome(&play, 1).as_ref().map(TaskError::ran), Some(Ran::Maybe), "{ending}");
    }
}

/// What is given up costs no more the more there is that waits: else these would take many minutes.
#[test]
fn a_hundred_thousand_waiting_calls_are_given_up() {
    const CALLS: usize = 100_000;
    let own_keys: fn(usize) -> String = |call| call.to_string();
    for (key, backwards) in [(own_keys, false), (|_| String::new(), false), (|_| String::new(), true)] {
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut play = Play::started(1);
            let calls: Vec<_> = (0..CALLS)
                .map(|call| Ask { single: true, ..ask_as(call, None, 0, class(0, &key(call))) })
                .collect();
            calls.iter().for_each(|call| play.submit(call, 1));
            let mut given_up: Vec<_> = calls.iter().skip(1).collect();
            if backwards {
                given_up.reverse();
            }
            for call in given_up {
                play.scheduler.abort(call, true, play.now);
            }
            play.effects();
            done.send((play.told.len(), play.scheduler.pending_runs())).expect("somebody waits");
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(120)), Ok((CALLS - 1, 0)));
    }
}

#[test]
fn a_job_is_given_up_wherever_its_runs_wait() {
    let mut queue = Queue::new(None);
    let (one, other) = (ask(0, None, 0), ask(1, None, 0));
    let single = Ask { single: true, ..ask(2, None, 0) };
    let runs = [&one, &other, &one, &single, &other, &one];
    runs.into_iter().for_each(|job| queue.push(run(job, 2)));
    for (job, left) in [(&single, 5), (&single, 5), (&one, 2), (&other, 0)] {
        let before = queue.len();
        let gone = queue.remove(job);
        assert!(gone.iter().all(|run| run.job.is(job)));
        assert_eq!((gone.len(), queue.len()), (before - left, left));
    }
    assert!(queue.take(0, 1).is_none());
}

#[test]
fn a_time_beyond_all_measure_is_the_longest_there_is() {
    let mut queue = Queue::new(None);
    let (one, other) = (class(0, "one"), class(0, "other"));
    for class in [&one, &one, &other] {
        let job = ask_as(0, None, 0, class.clone());
        queue.push(Run::new(job, 0, u32::MAX, Body::default()));
        queue.charge(class, 1, 1 << 40);
    }
    while queue.take(0, u32::MAX).is_some() {}
    for class in [&one, &other] {
        queue.charge(class, 1, 0);
        queue.answered(0, class, 1, 1, 1);
    }
    assert!(queue.is_empty());
}
