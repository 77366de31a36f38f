//! The orderly end of a pool, in bounded time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Pool;
use crate::error::{Error, Ran, Result};
use crate::reactor::Deadline;

/// What came of a pool's tasks at its end: see [`Pool::shutdown`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Tasks that came to an end of their own meanwhile, with a value or an error.
    pub finished: u64,
    /// Tasks that ran at the deadline, and were killed with their workers.
    pub killed: u64,
    /// Tasks that still waited at the deadline, and never ran.
    pub withdrawn: u64,
    /// How many of those killed and withdrawn there were by each name.
    pub unfinished: BTreeMap<String, u64>,
    /// How long it took, until the last worker's end.
    pub took: Duration,
}

impl DrainReport {
    /// Whether no task was lost.
    pub fn is_complete(&self) -> bool {
        self.killed == 0 && self.withdrawn == 0
    }
}

impl Pool {
    /// Ends it in bounded time: takes no more calls, lets those that there are run to their end, and
    /// [terminates](Self::terminate) what is not done at the deadline, which is by the kernel's
    /// clock. Returns when all workers have ended, which may be a moment later.
    ///
    /// # Errors
    /// [`Error::Io`] without a descriptor for the timer, and then nothing was done;
    /// [`Error::NotChild`] in a process that was forked from the pool's own.
    ///
    /// # Panics
    /// Outside of a runtime with I/O enabled.
    ///
    /// # Cancel safety
    /// The pool is closed with the first poll. It can be called again, with the whole time anew.
    pub async fn shutdown(&self, deadline: Duration) -> Result<DrainReport> {
        let begin = Instant::now();
        let deadline = Deadline::after(deadline)?;
        let shared = self.owner.shared();
        let close = |scheduler: &mut super::shared::PoolScheduler, now| {
            scheduler.close(now);
            scheduler.finished()
        };
        let before = shared.with(close).ok_or(Error::NotChild)?;
        tokio::select! {
            biased;
            _ = self.status(|status| status.done) => {}
            over = deadline.over() => over?,
        }
        let ended = shared.locked(0, |scheduler, _| {
            let finished = scheduler.finished();
            scheduler.terminate();
            finished
        });
        let (finished, effects) = ended.ok_or(Error::NotChild)?;
        let mut report = DrainReport { finished: finished - before, ..DrainReport::default() };
        for lost in &effects.lost {
            let items = lost.items.end - lost.items.start;
            let never_ran = lost.error.ran() == Ran::No;
            *if never_ran { &mut report.withdrawn } else { &mut report.killed } += items;
            *report.unfinished.entry(lost.job.spec().name.to_owned()).or_default() += items;
        }
        shared.carry_out(effects);
        self.status(|status| status.done).await;
        report.took = begin.elapsed();
        Ok(report)
    }
}
