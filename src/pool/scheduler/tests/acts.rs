//! Whatever happens, in whatever order.

use proptest::prelude::*;

use super::*;

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
