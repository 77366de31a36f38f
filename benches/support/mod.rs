//! Measuring by turns. A machine's speed drifts while other things run on it, so what is compared
//! is measured in the same rounds, one after the other, and judged by the ratio within each round.
//! Absolute numbers are printed for orientation.

#![allow(dead_code, reason = "each of the programs that include this uses a part of it")]

use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// What one operation takes in seconds, once for each round.
#[derive(Debug)]
pub(crate) struct Figure {
    name: String,
    rounds: Vec<f64>,
}

/// What the design asks of a figure, measured against another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// It takes at most so many times what the other takes.
    Times(f64),
    /// It is at least so many times as fast as the other.
    Faster(f64),
    /// Nothing: shown to compare.
    None,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), rounds: Vec::new() }
    }

    /// Enters what one operation took in this round, in seconds.
    pub(crate) fn push(&mut self, each: f64) {
        self.rounds.push(each);
    }

    /// Prints the figure alone.
    pub(crate) fn print(&self) {
        println!("{}", self.columns());
    }

    /// Prints the figure beside what it is compared with, and whether it keeps its bound.
    pub(crate) fn print_against(&self, base: &Figure, bound: Bound) {
        let times = median(self.rounds.iter().zip(&base.rounds).map(|(own, base)| own / base).collect());
        let verdict = match bound {
            Bound::Times(limit) => {
                format!("{times:6.2} x {}, at most {limit} x: {}", base.name, said(times <= limit))
            }
            Bound::Faster(factor) => {
                let faster = 1.0 / times;
                format!(
                    "{faster:6.1} x as fast as {}, at least {factor} x: {}",
                    base.name,
                    said(faster >= factor)
                )
            }
            Bound::None => format!("{times:6.2} x {}", base.name),
        };
        println!("{}  {verdict}", self.columns());
    }

    /// Prints the figure beside a limit that is a time.
    pub(crate) fn print_within(&self, limit: Duration) {
        let verdict = said(self.typical() <= limit.as_secs_f64());
        println!("{}  at most {limit:?}: {verdict}", self.columns());
    }

    /// What one operation took in the median of the rounds, in seconds.
    pub(crate) fn typical(&self) -> f64 {
        median(self.rounds.clone())
    }

    fn columns(&self) -> String {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let [min, max] = [sorted.first(), sorted.last()].map(|end| time(end.copied().unwrap_or(f64::NAN)));
        format!("{:<40} {} ({min} .. {max})", self.name, time(median(sorted)))
    }
}

/// Prints a heading, and what the columns are.
pub(crate) fn heading(title: &str) {
    println!("\n{title}: median of the rounds (least .. most)");
}

pub(crate) fn said(holds: bool) -> &'static str {
    if holds { "holds" } else { "MISSES" }
}

/// What one of `count` operations takes in the median, each timed by itself; in seconds.
pub(crate) fn each(count: usize, mut operation: impl FnMut()) -> f64 {
    median((0..count).map(|_| once(&mut operation)).collect())
}

/// What one of `count` operations takes on average if `all` does them; in seconds.
pub(crate) fn share(count: u32, all: impl FnOnce()) -> f64 {
    once(all) / f64::from(count)
}

/// What an operation takes, in seconds.
pub(crate) fn once(operation: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    operation();
    begin.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s "),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s if s >= 1e-6 => (s * 1e6, "µs"),
        s => (s * 1e9, "ns"),
    };
    format!("{value:7.2} {unit}")
}

/// This thread on one processor, and on those from before once this is dropped.
///
/// Two processes that talk take a third of the time if the scheduler has put both on the same one: then
/// chance would decide, not what is compared.
#[must_use]
#[derive(Debug)]
pub(crate) struct KeptOn(CpuSet);

impl KeptOn {
    /// Where there is no such processor, nothing changes.
    pub(crate) fn processor(number: usize) -> Self {
        let mut one = CpuSet::new();
        let _ = one.set(number);
        Self::on(|_| one)
    }

    /// Any but this one, if there are others.
    pub(crate) fn others(number: usize) -> Self {
        Self::on(|mut all| {
            let _ = all.unset(number);
            all
        })
    }

    fn on(which: impl FnOnce(CpuSet) -> CpuSet) -> Self {
        let this_thread = Pid::from_raw(0);
        let before = sched_getaffinity(this_thread).expect("the processors");
        let _ = sched_setaffinity(this_thread, &which(before));
        Self(before)
    }
}

impl Drop for KeptOn {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}
