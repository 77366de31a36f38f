//! Faults on purpose, for tests of what is built on pools.
//!
//! A test says which items meet which [`Fault`] and gives that to a pool. Nothing in the tasks
//! changes, and the same plan on the same items gives the same faults again.
//!
//! ```
//! use tokio_multiprocess as mp;
//! use mp::testing::{Fault, Faults};
//!
//! fn charge(cents: u64) -> u64 {
//!     cents
//! }
//!
//! # #[cfg(target_os = "linux")]
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> mp::Result<()> {
//!     let faults = Faults::new().on("charge", 2, Fault::DieBefore);
//!     let pool = mp::Pool::builder().processes(1).faults(faults).build().await?;
//!     assert_eq!(pool.apply(charge, (5,)).await?, 5);
//!     let error = pool.apply(charge, (5,)).await.unwrap_err();
//!     assert!(matches!(error, mp::TaskError::WorkerDied(_)));
//!     assert_eq!(pool.apply(charge, (5,)).await?, 5);
//!     Ok(())
//! }
//! # #[cfg(not(target_os = "linux"))]
//! # fn main() {}
//! ```
//!
//! A pool whose workers are threads of the test's own process is made by
//! [`PoolBuilder::in_process`](crate::PoolBuilder::in_process).

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::reduction::Descriptor;
use crate::sys::AsFd;
use crate::sys::memory::{self, Shared};

/// What goes wrong with an item, or with the worker that has begun it.
///
/// The item counts as begun: its caller is told what happened to it, and with `.retries(n)` it
/// runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Fault {
    /// The worker is killed, as by the kernel for want of memory, before the task's first line.
    DieBefore,
    /// It is killed when the task has run for so long, or at the task's end if that is earlier: some
    /// of what the task does is done, and its value never comes. A thread of an in-process pool
    /// cannot be stopped in the middle, and dies at the task's end.
    DieDuring(Duration),
    /// It is killed while it answers: all is done, what goes beside the answer is sent, the answer
    /// itself is not.
    DieInReply,
    /// It is killed right behind the answer: the value arrives. Items that it held and has not
    /// begun run elsewhere.
    DieAfterReply,
    /// The worker stops as by `SIGSTOP`, before the task's first line: not dead, but without a sign of
    /// life. Only a timeout, an abort or the pool's end by force gets rid of it. A thread hangs.
    Stall,
    /// The task does not begin and never ends; the worker lives.
    Hang,
    /// The worker writes so many bytes to stderr in one go, before the task.
    Flood(usize),
    /// In place of its answer the worker writes what means nothing. The pool kills it for that.
    Garble,
    /// The task begins so much later.
    Slow(Duration),
}

/// Which items of a pool meet which [`Fault`]: see [`PoolBuilder::faults`](crate::PoolBuilder::faults).
///
/// Items are counted over all workers of the pool, in the order in which they begin, and each
/// attempt counts; with one worker that is the order of the calls. Of several rules that want a fault
/// for the same item the first has its way.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Rule {
    /// The task's name, or its last segments; all if it is empty.
    task: String,
    when: When,
    fault: Fault,
}

impl Rule {
    fn means(&self, name: &str) -> bool {
        let is_end_of = |name: &str| {
            name.strip_suffix(&self.task).is_some_and(|path| path.is_empty() || path.ends_with("::"))
        };
        self.task.is_empty() || is_end_of(name) || is_end_of(without_types(name))
    }
}

/// The name of a generic function without what it was given for its parameters.
fn without_types(name: &str) -> &str {
    if !name.ends_with('>') {
        return name;
    }
    let mut open = 0;
    for (at, byte) in name.bytes().enumerate().rev() {
        match byte {
            b'>' if !name[..at].ends_with('-') => open += 1,
            b'<' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return &name[..at];
        }
    }
    name
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum When {
    Nth(u64),
    Always,
    Random { seed: u64, one_in: u64 },
}

impl When {
    /// Whether it is the turn of the item with this number, from 1.
    fn is_now(&self, number: u64) -> bool {
        match *self {
            Self::Nth(nth) => number == nth,
            Self::Always => true,
            Self::Random { seed, one_in } => one_in > 0 && mix(seed ^ mix(number)).is_multiple_of(one_in),
        }
    }
}

/// Spreads numbers that lie close together over all there are.
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 29).wrapping_mul(0xd6e8_feb8_6659_fd93);
    number ^ number >> 32
}

impl Faults {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The `nth` item, counted from 1, of the tasks of that name, which is the function's with as much
    /// of its path before it as you like: `infer` means `app::work::infer` and `app::infer::<T>`, not
    /// `app::inference`, and `work::{{closure}}` the closures in `work`. An empty `task` means all.
    ///
    /// When the pool ends without so many items, that is logged as a warning: the name may be wrong.
    pub fn on(self, task: impl Into<String>, nth: u64, fault: Fault) -> Self {
        self.rule(task, When::Nth(nth), fault)
    }

    /// Every item of the tasks of that name: see [`on`](Self::on).
    pub fn always(self, task: impl Into<String>, fault: Fault) -> Self {
        self.rule(task, When::Always, fault)
    }

    /// About one item in `one_in` of the tasks of that name (see [`on`](Self::on)): which numbers they
    /// have is decided by the seed. None if `one_in` is 0.
    pub fn random(self, task: impl Into<String>, seed: u64, one_in: u64, fault: Fault) -> Self {
        self.rule(task, When::Random { seed, one_in }, fault)
    }

    fn rule(mut self, task: impl Into<String>, when: When, fault: Fault) -> Self {
        self.rules.push(Rule { task: task.into(), when, fault });
        self
    }
}

/// The plan as it travels to workers, which all count in the same memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    rules: Vec<Rule>,
    counts: Descriptor,
}

impl Plan {
    pub(crate) fn new(faults: Faults) -> io::Result<Self> {
        let counts = memory::memfd("tokio-multiprocess-faults", COUNT * faults.rules.len().max(1))?;
        memory::seal_fixed_size(counts.as_fd())?;
        Ok(Self { rules: faults.rules, counts: Descriptor::new(counts) })
    }

    /// Says, at the pool's end, which rules had no item to meet.
    pub(crate) fn warn_of_unmet(&self) {
        let Ok(injector) = Injector::new(self.clone()) else { return };
        for (Rule { task, fault, .. }, nth, items) in injector.unmet() {
            crate::log::warn(format_args!(
                "no item {nth} of tasks called {task:?} met {fault:?}: there were {items} of them"
            ));
        }
    }
}

/// A rule's count in the memory, in bytes.
const COUNT: usize = size_of::<u64>();

/// The plan in a worker.
#[derive(Debug)]
pub(crate) struct Injector {
    rules: Vec<Rule>,
    counts: Shared,
}

impl Injector {
    pub(crate) fn new(plan: Plan) -> io::Result<Self> {
        Ok(Self { rules: plan.rules, counts: Shared::map(plan.counts.into_fd()?.as_fd())? })
    }

    /// What the next item of a task is to meet.
    pub(crate) fn draw(&self, task: &str) -> Option<Fault> {
        let mut drawn = None;
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.means(task)) {
            // Also behind the rule that has its way: each counts for itself.
            let number = self.count(index).fetch_add(1, Ordering::Relaxed) + 1;
            if rule.when.is_now(number) {
                drawn.get_or_insert(rule.fault);
            }
        }
        drawn
    }

    fn count(&self, rule: usize) -> &AtomicU64 {
        self.counts.atomic_u64(COUNT * rule)
    }

    /// The rules for an item that there was not, with its number and how many items there were.
    fn unmet(&self) -> impl Iterator<Item = (&Rule, u64, u64)> {
        self.rules.iter().enumerate().filter_map(|(index, rule)| {
            let When::Nth(nth) = rule.when else { return None };
            let items = self.count(index).load(Ordering::Relaxed);
            (items < nth).then_some((rule, nth, items))
        })
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use super::*;

    fn injectors(faults: Faults) -> [Injector; 2] {
        let plan = Plan::new(faults).unwrap();
        [Injector::new(plan.clone()).unwrap(), Injector::new(plan).unwrap()]
    }

    #[test]
    fn workers_count_together_and_rules_apart() {
        let faults = Faults::new().on("b", 2, Fault::Stall).on("", 3, Fault::Hang).on("a", 2, Fault::Garble);
        let [one, two] = injectors(faults);
        assert_eq!(one.draw("a"), None);
        assert_eq!(two.draw("b"), None);
        // The third of all and the second of its name: the rule that was given first decides.
        assert_eq!(one.draw("b"), Some(Fault::Stall));
        assert_eq!(two.draw("a"), Some(Fault::Garble));
        assert_eq!([one.draw("a"), one.draw("b"), two.draw("c")], [None; 3]);
    }

    #[test]
    fn a_task_is_named_by_the_end_of_its_path() {
        let means = |task: &str, name| {
            Rule { task: task.to_owned(), when: When::Always, fault: Fault::Hang }.means(name)
        };
        for name in ["app::work::infer", "app::infer<alloc::vec::Vec<u8>>", "infer<fn(u8) -> u8>", "infer"] {
            assert!(means("infer", name) && means("", name), "{name}");
        }
        assert!(means("work::infer", "app::work::infer") && means("infer<u8>", "app::infer<u8>"));
        assert!(means("work::{{closure}}", "app::work::{{closure}}"));
        for name in
            ["app::inference", "app::re_infer", "infer::other", "app::infer::{{closure}}", "f<app::infer>"]
        {
            assert!(!means("infer", name), "{name}");
        }
    }

    #[test]
    fn rules_without_an_item_to_meet_are_known() {
        let faults = Faults::new().on("a", 1, Fault::Hang).on("a", 3, Fault::Hang).on("c", 1, Fault::Hang);
        let [one, two] = injectors(faults.always("d", Fault::Hang));
        one.draw("a");
        two.draw("a");
        let unmet: Vec<_> = one.unmet().map(|(rule, nth, items)| (rule.task.as_str(), nth, items)).collect();
        assert_eq!(unmet, [("a", 3, 2), ("c", 1, 0)]);
    }

    #[test]
    fn a_seed_gives_the_same_again_and_about_the_share_asked_for() {
        let draw = |seed| {
            let [one, _] = injectors(Faults::new().random("", seed, 5, Fault::DieBefore));
            (0..10_000).map(|_| one.draw("x").is_some()).collect::<Vec<_>>()
        };
        let first = draw(7);
        assert!(first == draw(7) && first != draw(8));
        let share = first.iter().filter(|fault| **fault).count();
        assert!((1_800..2_200).contains(&share), "{share}");
        let [none, _] = injectors(Faults::new().random("", 1, 0, Fault::Hang));
        assert!((0..100).all(|_| none.draw("x").is_none()));
    }
}
