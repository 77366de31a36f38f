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
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::reduction::Handle;
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
    /// A part of the task's name.
    task: String,
    when: When,
    fault: Fault,
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

    /// The `nth` item, counted from 1, of the tasks whose name contains `task`. The name is that of
    /// the function with its path, as errors tell it; an empty `task` means all.
    pub fn on(self, task: impl Into<String>, nth: u64, fault: Fault) -> Self {
        self.rule(task, When::Nth(nth), fault)
    }

    /// Every item of the tasks whose name contains `task`.
    pub fn always(self, task: impl Into<String>, fault: Fault) -> Self {
        self.rule(task, When::Always, fault)
    }

    /// About one item in `one_in` of the tasks whose name contains `task`: which numbers they have is
    /// decided by the seed. None if `one_in` is 0.
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
    counts: Handle,
}

impl Plan {
    pub(crate) fn new(faults: Faults) -> io::Result<Self> {
        let counts = memory::memfd("tokio-multiprocess-faults", COUNT * faults.rules.len().max(1))?;
        memory::seal_fixed_size(counts.as_fd())?;
        Ok(Self { rules: faults.rules, counts: Handle::new(counts) })
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
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| task.contains(&rule.task)) {
            // Also behind the rule that has its way: each counts for itself.
            let number = self.counts.atomic_u64(COUNT * index).fetch_add(1, Ordering::Relaxed) + 1;
            if rule.when.is_now(number) {
                drawn.get_or_insert(rule.fault);
            }
        }
        drawn
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
