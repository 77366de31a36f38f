//! The tally, a semaphore's permits and a barrier's rounds, while processes die or stop before any access
//! they make, in all interleavings with up to two preemptions.
//!
//! Whatever an actor does goes through a [`Ledger`], which nobody dies in: it books what each change of the
//! central word means in the instant in which it is made. What the tally says is held against it in the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use loom::thread;

use super::super::model::{Actor, CELLS, Fate, Model};
use super::super::permits::Permits;
use super::super::rounds::{Arrival, Left, Phase, Rounds};
use super::super::words::{Identity, Words, World};
use super::super::{Cell, cells};
use super::{CENTRAL, Change, NUMBER_SHIFT, Standing, Tally, bits, next, number};

/// What has happened.
#[derive(Debug, Default)]
struct Book {
    /// What each cell has in the tally.
    counts: [u64; CELLS],
    /// Each standing, from the second on.
    standings: Vec<Standing>,
}

/// An actor whose changes are booked.
struct Ledger {
    actor: Actor,
    book: Arc<Mutex<Book>>,
}

impl Words for Ledger {
    fn cells(&self) -> usize {
        self.actor.cells()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.actor.load(at, order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.actor.store(at, value, order);
    }

    /// Nothing comes between the access and what is booked: the model changes actors at accesses only.
    fn compare_exchange(&self, at: usize, current: u64, new: u64) -> Result<u64, u64> {
        let result = self.actor.compare_exchange(at, current, new);
        if at == CENTRAL && result.is_ok() {
            let mut book = self.book.lock().unwrap();
            let standing = Standing::of(new);
            let count = &mut book.counts[standing.cell.0];
            match standing.change {
                Change::Stays => {}
                Change::Up => *count += 1,
                Change::Down => *count = count.checked_sub(1).expect("what goes down has been up"),
                Change::Clear => *count = 0,
                Change::Leave => assert_eq!(*count, 0),
            }
            book.standings.push(standing);
        }
        result
    }

    fn fetch_or(&self, at: usize, bits: u64, order: Ordering) -> u64 {
        self.actor.fetch_or(at, bits, order)
    }

    fn fetch_and(&self, at: usize, bits: u64, order: Ordering) -> u64 {
        self.actor.fetch_and(at, bits, order)
    }

    fn fence(&self) {
        self.actor.fence();
    }
}

impl World for Ledger {
    fn me(&self) -> Identity {
        self.actor.me()
    }

    fn is_dead(&self, who: Identity) -> bool {
        self.actor.is_dead(who)
    }
}

/// A memory and its book.
#[derive(Clone)]
struct Scene {
    model: Model,
    book: Arc<Mutex<Book>>,
}

/// The cell of an actor; actors have numbers from 1 on.
fn cell(actor: u64) -> Cell {
    Cell(actor as usize - 1)
}

/// Who comes when all the others are gone: it neither dies nor stops.
const LAST: u64 = 60;

impl Scene {
    /// With a cell for each actor.
    fn new(actors: u64) -> Self {
        let scene = Self { model: Model::new(), book: Arc::default() };
        let setup = scene.actor(LAST, Fate::Lives);
        for actor in 1..=actors {
            setup.store(cell(actor).identity(), actor, Ordering::SeqCst);
        }
        scene
    }

    fn actor(&self, number: u64, fate: Fate) -> Ledger {
        Ledger { actor: self.model.actor(number, fate), book: self.book.clone() }
    }

    /// Has an actor act beside the others. Whether it came to an end of it before its own.
    fn spawn(
        &self,
        number: u64,
        fate: Fate,
        act: impl FnOnce(&Ledger) + 'static,
    ) -> thread::JoinHandle<bool> {
        let ledger = self.actor(number, fate);
        thread::spawn(move || ledger.actor.act(|_| act(&ledger)).is_some())
    }

    /// The counts have become what the changes said.
    fn assert_booked(&self) {
        let last = self.actor(LAST, Fate::Lives);
        let tally = Tally(&last);
        tally.settle();
        let counts: Vec<u64> = (0..CELLS).map(|i| tally.count(Cell(i))).collect();
        assert_eq!(counts, self.book.lock().unwrap().counts);
    }
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// For each access that an actor makes, explores what happens if its end comes before it.
fn each_end(end: fn(usize) -> Fate, preemptions: usize, model: fn(Fate) -> bool) {
    let mut at = 0;
    loop {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        explore(preemptions, move || {
            if model(end(at)) {
                seen.store(true, Ordering::Relaxed);
            }
        });
        if !ended.load(Ordering::Relaxed) {
            break;
        }
        at += 1;
    }
    assert!(at > 5, "it makes some accesses");
}

/// The same for two actors, where the second one buries the first.
fn each_two_ends(preemptions: usize, model: fn(Fate, Fate) -> (bool, bool)) {
    let mut first = 0;
    loop {
        let ended = Arc::new(AtomicBool::new(false));
        for second in 0.. {
            let (seen, other) = (ended.clone(), Arc::new(AtomicBool::new(false)));
            let other_seen = other.clone();
            explore(preemptions, move || {
                let (one, two) = model(Fate::Dies(first), Fate::Dies(second));
                seen.fetch_or(one, Ordering::Relaxed);
                other_seen.fetch_or(two, Ordering::Relaxed);
            });
            if !other.load(Ordering::Relaxed) {
                break;
            }
        }
        if !ended.load(Ordering::Relaxed) {
            break;
        }
        first += 1;
    }
    assert!(first > 5, "it makes some accesses");
}

mod permits {
    use super::*;

    /// Holds one permit for a moment.
    fn visit(ledger: &Ledger, number: u64) {
        let permits = Permits::of(ledger, 1);
        if permits.take(Some(cell(number))) {
            permits.give_back(cell(number));
        }
    }

    /// Free ones and held ones are as many as ever, at each step.
    fn assert_kept(scene: &Scene, permits: u64) {
        let book = scene.book.lock().unwrap();
        let mut held = [0_u64; CELLS];
        for standing in &book.standings {
            let count = &mut held[standing.cell.0];
            match standing.change {
                Change::Stays => {}
                Change::Up => *count += 1,
                Change::Down => *count -= 1,
                Change::Clear | Change::Leave => *count = 0,
            }
            assert_eq!(u64::from(standing.value) + held.iter().sum::<u64>(), permits, "{book:?}");
        }
    }

    /// All are free once the dead are buried.
    fn assert_all_back(scene: &Scene) {
        scene.assert_booked();
        let last = scene.actor(LAST, Fate::Lives);
        let permits = Permits::of(&last, 1);
        permits.bury(&last);
        scene.assert_booked();
        assert_kept(scene, 1);
        assert_eq!(permits.free(), 1);
    }

    fn one_dies(fate: Fate) -> bool {
        let scene = Scene::new(2);
        Permits::begin(&scene.actor(LAST, Fate::Lives), 1);
        let mortal = scene.spawn(1, fate, |ledger| visit(ledger, 1));
        let other = scene.spawn(2, Fate::Lives, |ledger| {
            visit(ledger, 2);
            Permits::of(ledger, 1).bury(ledger);
        });
        let lived = mortal.join().unwrap();
        assert!(other.join().unwrap());
        assert_all_back(&scene);
        !lived
    }

    #[test]
    fn a_dead_ones_permits_come_back() {
        each_end(Fate::Dies, 2, one_dies);
    }

    fn gravedigger_dies(first: Fate, second: Fate) -> (bool, bool) {
        let scene = Scene::new(2);
        Permits::begin(&scene.actor(LAST, Fate::Lives), 1);
        let mortal = scene.spawn(1, first, |ledger| visit(ledger, 1));
        let other = scene.spawn(2, second, |ledger| {
            Permits::of(ledger, 1).bury(ledger);
        });
        let ends = (!mortal.join().unwrap(), !other.join().unwrap());
        assert_all_back(&scene);
        ends
    }

    #[test]
    fn who_buries_may_die_of_it_too() {
        each_two_ends(1, gravedigger_dies);
    }

    fn one_stops(fate: Fate) -> bool {
        let scene = Scene::new(2);
        Permits::begin(&scene.actor(LAST, Fate::Lives), 1);
        let mortal = scene.spawn(1, fate, |ledger| visit(ledger, 1));
        let other = scene.spawn(2, Fate::Lives, |ledger| {
            Permits::of(ledger, 1).bury(ledger);
            visit(ledger, 2);
        });
        let went_on = mortal.join().unwrap();
        assert!(other.join().unwrap());
        scene.assert_booked();
        assert_kept(&scene, 1);
        // What it holds it keeps.
        let last = scene.actor(LAST, Fate::Lives);
        let permits = Permits::of(&last, 1);
        assert_eq!(permits.bury(&last), 0);
        assert_eq!(u64::from(permits.free()) + permits.held(cell(1)), 1);
        !went_on
    }

    #[test]
    fn who_is_stopped_keeps_its_permits() {
        each_end(Fate::Stops, 2, one_stops);
    }

    /// Two bury one, and the cell is at once another's, who takes a permit in it.
    #[test]
    fn a_cells_next_process_is_not_buried_for_the_last() {
        explore(3, || {
            let scene = Scene::new(1);
            let last = scene.actor(LAST, Fate::Lives);
            Permits::begin(&last, 1);
            assert!(Permits::of(&last, 1).take(Some(cell(1))));
            assert!(!scene.spawn(1, Fate::Dies(0), |ledger| visit(ledger, 1)).join().unwrap());
            let slow = scene.spawn(2, Fate::Lives, |ledger| {
                Permits::of(ledger, 1).bury(ledger);
            });
            let quick = scene.spawn(3, Fate::Lives, |ledger| {
                let permits = Permits::of(ledger, 1);
                permits.bury(ledger);
                if ledger.compare_exchange(cell(1).identity(), 0, 3).is_ok() {
                    assert!(permits.take(Some(cell(1))));
                }
            });
            assert!(slow.join().unwrap() && quick.join().unwrap());
            scene.assert_booked();
            assert_kept(&scene, 1);
            let permits = Permits::of(&last, 1);
            let held = u64::from(cells::owner(&last, cell(1)) == Some(Identity(3)));
            assert_eq!((permits.held(cell(1)), u64::from(permits.free())), (held, 1 - held));
        });
    }

    #[test]
    fn the_bound_holds() {
        explore(2, || {
            let scene = Scene::new(1);
            let last = scene.actor(LAST, Fate::Lives);
            Permits::begin(&last, 2);
            let permits = Permits::of(&last, 2);
            assert!(permits.add().is_err());
            assert!(permits.take(None) && permits.take(Some(cell(1))) && !permits.take(None));
            permits.add().unwrap();
            permits.add().unwrap();
            // For this one strangers have left no place.
            permits.give_back(cell(1));
            assert_eq!((permits.free(), permits.held(cell(1))), (2, 0));
            assert!(permits.add().is_err());
        });
    }

    #[test]
    fn numbers_go_round() {
        explore(2, || {
            let scene = Scene::new(2);
            let last = scene.actor(LAST, Fate::Lives);
            // The next change has a number that the first one's cell bears from a round before.
            let before = bits(64 - NUMBER_SHIFT);
            last.store(CENTRAL, Standing::new(3).word(before), Ordering::SeqCst);
            last.store(cell(1).count(), next(before) << NUMBER_SHIFT, Ordering::SeqCst);
            let permits = Permits::of(&last, 3);
            for taken in 1..=3 {
                assert!(permits.take(Some(cell(1))));
                assert_eq!(permits.held(cell(1)), taken);
            }
            assert_eq!(number(last.load(CENTRAL, Ordering::SeqCst)), 3);
            scene.assert_booked();
        });
    }
}

mod rounds {
    use super::*;

    /// What somebody has found out so far: an index, or that the round is broken.
    type Found = Arc<Mutex<Option<Option<usize>>>>;

    /// Comes, and goes if it can at once.
    fn visit(ledger: &Ledger, number: u64, parties: u32, has_action: bool, found: &Found) {
        let rounds = Rounds::of(ledger, parties);
        match rounds.arrive(ledger, cell(number), has_action) {
            Arrival::Broken => *found.lock().unwrap() = Some(None),
            Arrival::Early => panic!("nobody comes twice"),
            arrival => {
                if arrival == Arrival::Acts {
                    rounds.acted();
                }
                try_leave(ledger, number, parties, found);
            }
        }
    }

    fn try_leave(ledger: &Ledger, number: u64, parties: u32, found: &Found) {
        if let Some(Left { index, .. }) = Rounds::of(ledger, parties).pass(cell(number)) {
            *found.lock().unwrap() = Some(index);
        }
    }

    /// Nobody passed before all were there, and the value has always been how many were inside.
    fn assert_order(scene: &Scene, parties: u32) {
        let book = scene.book.lock().unwrap();
        let mut inside = [0_u64; CELLS];
        let mut before = Standing::new(0);
        for standing in &book.standings {
            let count = &mut inside[standing.cell.0];
            match standing.change {
                Change::Stays => {}
                Change::Up => *count += 1,
                Change::Down => *count -= 1,
                Change::Clear | Change::Leave => *count = 0,
            }
            assert_eq!(inside.iter().sum::<u64>(), u64::from(standing.value), "{book:?}");
            if before.phase() == Phase::Filling && matches!(standing.phase(), Phase::Acting | Phase::Draining)
            {
                assert_eq!(standing.value, parties, "{book:?}");
            }
            if matches!(standing.phase(), Phase::Draining | Phase::Closing) {
                assert_ne!(standing.value, 0, "{book:?}");
            }
            before = *standing;
        }
    }

    /// Two parties, of which one ends; the other takes it out, and leaves in the end.
    fn one_ends(fate: Fate, has_action: bool) -> (bool, Scene, Option<Option<usize>>) {
        let scene = Scene::new(2);
        let (found, others) = (Found::default(), Found::default());
        let find = found.clone();
        let mortal = scene.spawn(1, fate, move |ledger| visit(ledger, 1, 2, has_action, &find));
        let find = others.clone();
        let other = scene.spawn(2, Fate::Lives, move |ledger| {
            visit(ledger, 2, 2, has_action, &find);
            Rounds::of(ledger, 2).bury(ledger);
        });
        let lived = mortal.join().unwrap();
        assert!(other.join().unwrap());
        let last = scene.actor(LAST, Fate::Lives);
        Rounds::of(&last, 2).bury(&last);
        for (number, found) in [(1, &found), (2, &others)] {
            if found.lock().unwrap().is_none() && (number == 2 || lived) {
                try_leave(&last, number, 2, found);
            }
        }
        scene.assert_booked();
        assert_order(&scene, 2);
        if lived {
            let mut indices = [*found.lock().unwrap(), *others.lock().unwrap()];
            indices.sort();
            assert_eq!(indices, [Some(Some(0)), Some(Some(1))]);
            assert_eq!(Rounds::of(&last, 2).phase(), Phase::Filling);
        }
        let others = *others.lock().unwrap();
        (!lived, scene, others)
    }

    fn one_dies(fate: Fate, has_action: bool) -> bool {
        let (died, scene, other) = one_ends(fate, has_action);
        if died {
            // It got through, as the dead one was there, or was broken; it does not wait any more.
            assert!(other.is_some(), "{scene:?}", scene = scene.book);
            // And the next round will have to do without.
            let last = scene.actor(LAST, Fate::Lives);
            let rounds = Rounds::of(&last, 2);
            rounds.bury(&last);
            assert_eq!((rounds.phase(), Tally(&last).standing().value), (Phase::Broken, 0));
            assert_eq!(cells::owner(&last, cell(1)), None);
            rounds.reset(&last);
            rounds.bury(&last);
            assert_eq!(rounds.phase(), Phase::Filling);
            scene.assert_booked();
        }
        died
    }

    #[test]
    fn a_death_breaks_this_round_or_the_next() {
        each_end(Fate::Dies, 2, |fate| one_dies(fate, false));
    }

    #[test]
    fn a_death_in_the_action_does_too() {
        each_end(Fate::Dies, 2, |fate| one_dies(fate, true));
    }

    #[test]
    fn who_is_stopped_breaks_nothing() {
        each_end(Fate::Stops, 2, |fate| {
            let (stopped, scene, other) = one_ends(fate, true);
            if stopped {
                let last = scene.actor(LAST, Fate::Lives);
                let phase = Rounds::of(&last, 2).phase();
                assert_ne!(phase, Phase::Broken);
                assert_eq!(other.is_none(), matches!(phase, Phase::Filling | Phase::Acting));
            }
            stopped
        });
    }

    fn gravedigger_dies(first: Fate, second: Fate) -> (bool, bool) {
        let scene = Scene::new(2);
        let found = Found::default();
        let last = scene.actor(LAST, Fate::Lives);
        assert_eq!(Rounds::of(&last, 2).arrive(&last, cell(2), false), Arrival::Waits);
        let find = found.clone();
        let mortal = scene.spawn(1, first, move |ledger| visit(ledger, 1, 2, false, &find));
        // It has never been to the barrier.
        let other = scene.spawn(3, second, |ledger| {
            Rounds::of(ledger, 2).bury(ledger);
        });
        let ends = (!mortal.join().unwrap(), !other.join().unwrap());
        let rounds = Rounds::of(&last, 2);
        rounds.bury(&last);
        let left = rounds.pass(cell(2)).expect("it does not wait any more");
        let came = scene.book.lock().unwrap().standings.iter().any(|s| s.phase() == Phase::Draining);
        assert_eq!(left.index.is_some(), came);
        rounds.bury(&last);
        scene.assert_booked();
        assert_order(&scene, 2);
        if ends.0 {
            assert_eq!((rounds.phase(), Tally(&last).standing().value), (Phase::Broken, 0));
        }
        ends
    }

    #[test]
    fn who_buries_may_die_of_it_too() {
        each_two_ends(1, gravedigger_dies);
    }

    /// One of two withdraws, or breaks the round, while the other comes.
    #[test]
    fn who_goes_early_is_missed_or_has_been_there() {
        for breaks in [false, true] {
            explore(3, move || {
                let scene = Scene::new(2);
                let found = Found::default();
                let quitter = scene.spawn(1, Fate::Lives, move |ledger| {
                    let rounds = Rounds::of(ledger, 2);
                    if !matches!(rounds.arrive(ledger, cell(1), false), Arrival::Broken | Arrival::Early) {
                        rounds.withdraw(cell(1), breaks);
                    }
                });
                let find = found.clone();
                let other = scene.spawn(2, Fate::Lives, move |ledger| visit(ledger, 2, 2, false, &find));
                assert!(quitter.join().unwrap() && other.join().unwrap());
                let last = scene.actor(LAST, Fate::Lives);
                if found.lock().unwrap().is_none() {
                    try_leave(&last, 2, 2, &found);
                }
                scene.assert_booked();
                assert_order(&scene, 2);
                let passed =
                    scene.book.lock().unwrap().standings.iter().any(|s| s.phase() == Phase::Draining);
                let phase = Rounds::of(&last, 2).phase();
                match *found.lock().unwrap() {
                    Some(Some(_)) => assert!(passed && phase == Phase::Filling),
                    Some(None) => assert!(breaks && phase == Phase::Broken),
                    None => assert!(!breaks && !passed && phase == Phase::Filling),
                }
            });
        }
    }

    /// One thread of a process comes once more while another sees to the end.
    #[test]
    fn who_takes_leave_is_not_missed() {
        explore(3, || {
            let scene = Scene::new(2);
            let last = scene.actor(LAST, Fate::Lives);
            let comes = scene.spawn(1, Fate::Lives, |ledger| {
                let rounds = Rounds::of(ledger, 2);
                assert_eq!(rounds.arrive(ledger, cell(1), false), Arrival::Waits);
                rounds.withdraw(cell(1), false);
            });
            let ends = scene.spawn(1, Fate::Lives, |ledger| Rounds::of(ledger, 2).take_leave(cell(1)));
            assert!(comes.join().unwrap() && ends.join().unwrap());
            assert!(!scene.spawn(1, Fate::Dies(0), |ledger| ledger.fence()).join().unwrap());
            let rounds = Rounds::of(&last, 2);
            rounds.bury(&last);
            scene.assert_booked();
            let changes = scene.book.lock().unwrap().standings.iter().map(|s| s.change).collect::<Vec<_>>();
            let left = changes[changes.len() - 1] == Change::Leave;
            assert_eq!(rounds.phase(), if left { Phase::Filling } else { Phase::Broken });
            assert_eq!(cells::owner(&last, cell(1)), None);
        });
    }

    /// It has died before the reset, and others take notice while that goes on.
    #[test]
    fn a_reset_has_no_more_to_do_with_the_dead() {
        explore(2, || {
            let scene = Scene::new(2);
            let last = scene.actor(LAST, Fate::Lives);
            assert_eq!(Rounds::of(&last, 2).arrive(&last, cell(1), false), Arrival::Waits);
            assert!(!scene.spawn(1, Fate::Dies(0), |ledger| ledger.fence()).join().unwrap());
            let resets = scene.spawn(3, Fate::Lives, |ledger| Rounds::of(ledger, 2).reset(ledger));
            let other = scene.spawn(2, Fate::Lives, |ledger| {
                Rounds::of(ledger, 2).bury(ledger);
            });
            assert!(resets.join().unwrap() && other.join().unwrap());
            let rounds = Rounds::of(&last, 2);
            assert!(!rounds.bury(&last));
            scene.assert_booked();
            assert_eq!((rounds.phase(), Tally(&last).standing().value), (Phase::Filling, 0));
        });
    }

    /// A reset while one of two is inside and the other comes: those inside leave, broken or through, and
    /// then it is as new.
    #[test]
    fn a_reset_lets_go_who_is_inside() {
        explore(2, || {
            let scene = Scene::new(2);
            let last = scene.actor(LAST, Fate::Lives);
            let founds = [Found::default(), Found::default()];
            assert_eq!(Rounds::of(&last, 2).arrive(&last, cell(1), false), Arrival::Waits);
            let resets = scene.spawn(3, Fate::Lives, |ledger| Rounds::of(ledger, 2).reset(ledger));
            let find = founds[1].clone();
            let comes = scene.spawn(2, Fate::Lives, move |ledger| {
                // Who is early comes again, once the last one has left.
                if Rounds::of(ledger, 2).arrive(ledger, cell(2), false) != Arrival::Early {
                    try_leave(ledger, 2, 2, &find);
                }
            });
            assert!(resets.join().unwrap() && comes.join().unwrap());
            try_leave(&last, 1, 2, &founds[0]);
            let rounds = Rounds::of(&last, 2);
            if founds[1].lock().unwrap().is_none() && rounds.held(cell(2)) > 0 {
                try_leave(&last, 2, 2, &founds[1]);
            }
            assert!(founds[0].lock().unwrap().is_some());
            scene.assert_booked();
            assert_order(&scene, 2);
            assert_eq!((rounds.phase(), Tally(&last).standing().value), (Phase::Filling, 0));
        });
    }
}
