//! An event: one word, `generation << 1 | set`.
//!
//! Each change from unset to set begins a generation. Who waits remembers the generation in which it began,
//! so that it sees that the event was set even if it was cleared before the waiter came to look.

use std::sync::atomic::Ordering;

use super::{STATE, Words};

const SET: u64 = 1;

/// In which generation a wait began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u64);

impl Generation {
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// Sets it. What is set already stays so, and in its generation: nobody waits for that one any more.
pub(crate) fn set(words: &impl Words) {
    let mut now = words.load(STATE, Ordering::SeqCst);
    while now & SET == 0 {
        match words.compare_exchange(STATE, now, now.wrapping_add(2) | SET) {
            Ok(_) => return,
            Err(other) => now = other,
        }
    }
}

pub(crate) fn clear(words: &impl Words) {
    words.fetch_and(STATE, !SET, Ordering::SeqCst);
}

pub(crate) fn is_set(words: &impl Words) -> bool {
    words.load(STATE, Ordering::SeqCst) & SET != 0
}

/// Where a wait begins.
pub(crate) fn generation(words: &impl Words) -> Generation {
    Generation(words.load(STATE, Ordering::SeqCst) >> 1)
}

/// Whether a wait that began then is over: the event is set, or has been since.
pub(crate) fn is_over(words: &impl Words, since: Generation) -> bool {
    let now = words.load(STATE, Ordering::SeqCst);
    now & SET != 0 || Generation(now >> 1) != since
}

#[cfg(all(test, multiprocess))]
mod tests {
    use loom::thread;

    use super::super::model::{Fate, Model, each_death, each_stop, explore};
    use super::*;

    #[test]
    fn it_is_set_and_cleared() {
        explore(0, || {
            let actor = Model::new().actor(1, Fate::Lives);
            assert!(!is_set(&actor));
            let first = generation(&actor);
            assert!(!is_over(&actor, first));
            set(&actor);
            assert!(is_set(&actor) && is_over(&actor, first));
            // Set twice is set once.
            let second = generation(&actor);
            set(&actor);
            assert_eq!(generation(&actor), second);
            assert!(is_over(&actor, second));
            // Who has waited is through all the same; who comes now waits.
            clear(&actor);
            assert!(!is_set(&actor) && is_over(&actor, first));
            assert!(!is_over(&actor, generation(&actor)));
        });
    }

    /// Wherever one who sets and clears ends: if it has set, who has waited is through; if it has not, not,
    /// and others set and clear as if it had never been.
    #[test]
    fn who_sets_may_end_anywhere() {
        fn model(fate: Fate) -> bool {
            let model = Model::new();
            let waiter = model.actor(1, Fate::Lives);
            let since = generation(&waiter);
            let (setter, other) = (model.actor(2, fate), model.actor(3, Fate::Lives));
            let setting = thread::spawn(move || {
                let has_set = setter.act(set).is_some();
                setter.act(clear);
                (has_set, setter.has_ended())
            });
            let clearing = thread::spawn(move || clear(&other));
            let seen = is_over(&waiter, since);
            let (has_set, has_ended) = setting.join().unwrap();
            clearing.join().unwrap();
            assert_eq!(is_over(&waiter, since), has_set);
            assert!(has_set || !seen);
            set(&waiter);
            assert!(is_set(&waiter) && is_over(&waiter, since));
            has_ended
        }
        each_death(3, model);
        each_stop(3, model);
    }

    /// Two who set and clear at a time.
    #[test]
    fn no_generation_is_lost() {
        explore(3, || {
            let model = Model::new();
            let waiter = model.actor(1, Fate::Lives);
            let since = generation(&waiter);
            let setting = [2, 3].map(|number| {
                let setter = model.actor(number, Fate::Lives);
                thread::spawn(move || {
                    set(&setter);
                    clear(&setter);
                })
            });
            for thread in setting {
                thread.join().unwrap();
            }
            assert!(is_over(&waiter, since) && !is_set(&waiter));
        });
    }
}
