use loom::thread;

use super::super::model::{Actor, Fate, Model};
use super::super::{Cell, bells};
use super::*;

/// What the lock protects: three words that are equal whenever nobody is inside.
const DATA: [usize; 2] = [STATE + 32, STATE + 40];

/// Longer than any actor here lives.
const LIVES: usize = 26;

fn plain(actor: &Actor, attempt: Attempt) -> bool {
    try_take(actor, actor, actor.me(), attempt)
}

const LOOKS: Attempt = Attempt { slept: false, leaves_word: false, starves: false, looks: true };

/// Goes in, and finds it as it should be: in order, unless somebody died inside.
fn pass(actor: &Actor, attempt: Attempt) {
    if !plain(actor, attempt) {
        return;
    }
    let [a, b] = DATA.map(|at| actor.load(at, Ordering::Relaxed));
    assert!(a == b || was_bequeathed(actor), "somebody is inside");
    DATA.iter().for_each(|at| actor.store(*at, a + 1, Ordering::Relaxed));
    acknowledge(actor);
    assert!(give_back(actor, actor.me()).is_some(), "it was taken away");
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

#[test]
fn nobody_goes_in_beside_another_whoever_dies() {
    for at in 0..LIVES {
        check(move || {
            let memory = Model::new();
            let threads: Vec<_> = [(1, Fate::Dies(at)), (2, Fate::Lives)]
                .map(|(number, fate)| {
                    let actor = memory.actor(number, fate);
                    thread::spawn(move || {
                        actor.act(|actor| (0..2).for_each(|_| pass(actor, LOOKS)));
                        actor.accesses()
                    })
                })
                .into_iter()
                .collect();
            for thread in threads {
                assert!(thread.join().unwrap() < LIVES);
            }
            // Whatever became of them, it can be taken, and its owner's death is told.
            let last = memory.actor(3, Fate::Lives);
            let held = holder(&last);
            assert!(plain(&last, LOOKS));
            assert!(held.is_none() || was_bequeathed(&last));
            assert!(give_back(&last, last.me()).is_some());
        });
    }
}

#[test]
fn two_deaths_after_one_another_are_survived_too() {
    for at in 0..8 {
        check(move || {
            let memory = Model::new();
            // One is inside, and dies there.
            let first = memory.actor(1, Fate::Dies(2));
            first.act(|actor| pass(actor, LOOKS));
            let heirs = [(2, Fate::Dies(at)), (3, Fate::Lives)].map(|(number, fate)| {
                let actor = memory.actor(number, fate);
                thread::spawn(move || {
                    actor.act(|actor| pass(actor, LOOKS));
                })
            });
            heirs.into_iter().for_each(|heir| heir.join().unwrap());
            let last = memory.actor(4, Fate::Lives);
            assert!(plain(&last, LOOKS));
        });
    }
}

#[test]
fn whoever_is_stopped_keeps_it() {
    for at in 0..LIVES {
        check(move || {
            let memory = Model::new();
            let stopped = memory.actor(1, Fate::Stops(at));
            let other = memory.actor(2, Fate::Lives);
            let thread = thread::spawn(move || {
                stopped.act(|actor| pass(actor, LOOKS));
            });
            other.act(|actor| pass(actor, LOOKS));
            thread.join().unwrap();
            assert!(!was_bequeathed(&other));
            let free = holder(&other).is_none();
            assert_eq!(plain(&other, LOOKS), free);
        });
    }
}

/// One step of who waits: as `wait` and `Lock` make it.
fn sleep(actor: &Actor, cell: Cell) -> bool {
    if plain(actor, Attempt::default()) {
        return false;
    }
    bells::announce(actor, cell);
    !plain(actor, Attempt { leaves_word: true, looks: true, ..Attempt::default() })
}

fn is_announced(actor: &Actor, cell: Cell) -> bool {
    actor.load(super::super::SLEEPERS, Ordering::SeqCst) & 1 << cell.0 != 0
}

#[test]
fn whoever_sleeps_while_it_is_held_is_called_when_it_is_given_back() {
    check(|| {
        let memory = Model::new();
        let holder_ = memory.actor(1, Fate::Lives);
        assert!(plain(&holder_, Attempt::default()));
        let sleepers = [2, 3].map(|number| {
            let actor = memory.actor(number, Fate::Lives);
            thread::spawn(move || sleep(&actor, Cell(number as usize)))
        });
        let rings = give_back(&holder_, holder_.me()).unwrap();
        let called = if rings { bells::call(&holder_, 0) } else { None };
        let asleep = sleepers.map(|sleeper| sleeper.join().unwrap());
        let last = memory.actor(4, Fate::Lives);
        // Free, and somebody sleeps whom nobody has called: that would be a lost wake-up.
        if holder(&last).is_none() && asleep.contains(&true) {
            assert!(called.is_some());
        }
        // Whoever sleeps and was not called is there for the next one to call.
        for (i, asleep) in asleep.into_iter().enumerate() {
            let cell = Cell(i + 2);
            assert!(!asleep || called == Some(cell) || is_announced(&last, cell));
        }
    });
}

#[test]
fn who_comes_steps_back_behind_who_starves_but_nobody_is_kept_out() {
    check(|| {
        let memory = Model::new();
        let [first, starving, new] = [1, 2, 3].map(|number| memory.actor(number, Fate::Lives));
        let slept = Attempt { slept: true, ..LOOKS };
        assert!(plain(&first, LOOKS));
        assert!(!plain(&starving, Attempt { leaves_word: true, starves: true, ..slept }));
        assert_eq!(give_back(&first, first.me()), Some(true));
        assert!(!plain(&new, LOOKS));
        assert!(plain(&starving, slept));
        assert_eq!(give_back(&starving, starving.me()), Some(true));
        assert!(plain(&new, LOOKS));
        // It may be this process that holds it: to leave word there takes nothing.
        assert!(!plain(&new, Attempt { leaves_word: true, ..LOOKS }));
        assert_eq!(give_back(&new, new.me()), Some(true));
        assert_eq!(give_back(&new, new.me()), None);
    });
}

/// Whoever was faster than a sleeper that was called gives it back with a call as well.
#[test]
fn a_sleeper_for_whom_somebody_else_was_faster_is_called_again() {
    const SLEEPERS: Cell = Cell(2);
    check(|| {
        let memory = Model::new();
        let [faster, watcher] = [1, 2].map(|number| memory.actor(number, Fate::Lives));
        // The word is as who gave it back before has left it: without any.
        assert!(plain(&faster, Attempt::default()));
        let giver = thread::spawn(move || {
            let rings = give_back(&faster, faster.me()).unwrap();
            rings && bells::call(&faster, 0) == Some(SLEEPERS)
        });
        bells::announce(&watcher, SLEEPERS);
        let wakes = is_free_or_told(&watcher, &watcher, false);
        assert!(giver.join().unwrap() || wakes);
    });
}
