//! Tasks that have killed workers, and are kept from doing so again for a while.
//!
//! A task is known by its mark: function, bytes of its arguments, and the open files beside them.
//! Marks are taken only when a worker dies, and as long as there are records to compare with.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::time::Duration;

use super::{Run, Ticket};

/// What a task is recognised by.
pub(super) type Mark = u64;

/// What is to be done with a task that has a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Refuse {
        deaths: u32,
    },
    /// One is let through, to see if it is still as bad.
    Probe,
}

#[derive(Debug)]
struct Record {
    /// Workers that died of it, each not long after the one before.
    deaths: u32,
    /// How long this counts.
    until: u64,
}

#[derive(Debug)]
pub(super) struct Quarantine {
    /// So many deaths are too many.
    limit: u32,
    time: u64,
    hasher: RandomState,
    records: HashMap<Mark, Record>,
    /// When to look for what can be forgotten.
    sweep_at: u64,
}

impl Quarantine {
    pub(super) fn new(limit: u32, time: Duration) -> Self {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self { limit, time, hasher: RandomState::new(), records: HashMap::new(), sweep_at: 0 }
    }

    /// The marks of a run's items.
    pub(super) fn marks<J: Ticket>(&self, run: &Run<J>) -> impl Iterator<Item = Mark> {
        let mut common = self.hasher.build_hasher();
        run.job.spec().function.hash(&mut common);
        common.write_u64(run.body.mark);
        run.body.each().map(move |item| {
            let mut hasher = common.clone();
            hasher.write(item);
            hasher.finish()
        })
    }

    /// Whether there is anybody to look for.
    pub(super) fn is_alert(&mut self, now: u64) -> bool {
        if !self.records.is_empty() && now >= self.sweep_at {
            self.sweep_at = now.saturating_add(self.time);
            // Those who could be let through, and did not come.
            self.records.retain(|_, record| now < record.until.saturating_add(self.time));
        }
        !self.records.is_empty()
    }

    /// A worker died of a run of one item. True if that was one too many.
    pub(super) fn killed<J: Ticket>(&mut self, run: &Run<J>, now: u64) -> bool {
        let Some(mark) = self.marks(run).next() else { return false };
        let limit = self.limit;
        let record = self.records.entry(mark).or_insert(Record { deaths: 0, until: now });
        if record.deaths < limit && now >= record.until {
            record.deaths = 0;
        }
        record.deaths = record.deaths.saturating_add(1);
        record.until = now.saturating_add(self.time);
        record.deaths >= limit
    }

    /// It was let through and came to its end.
    pub(super) fn acquit(&mut self, mark: Mark) {
        self.records.remove(&mark);
    }

    pub(super) fn is_quarantined(&self, mark: Mark) -> bool {
        self.records.get(&mark).is_some_and(|record| record.deaths >= self.limit)
    }

    /// What to do with one that is in quarantine. If nothing is heard of one that was let through,
    /// another may try after the same time.
    pub(super) fn judge(&mut self, mark: Mark, now: u64) -> Verdict {
        match self.records.get_mut(&mark) {
            Some(record) if now < record.until => Verdict::Refuse { deaths: record.deaths },
            Some(record) => {
                record.until = now.saturating_add(self.time);
                Verdict::Probe
            }
            None => Verdict::Probe,
        }
    }
}
