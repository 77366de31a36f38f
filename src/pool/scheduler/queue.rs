//! What waits for a worker, and in which order it goes: levels by priority, and in a level a fair
//! share of the workers' time for each key.
//!
//! Each key has an account of the worker time that it has used in its level, and the one that has
//! used least is next (start-time fair queueing). What its items in flight will take counts
//! in advance, by what such items took before. A key that has not waited for a while begins
//! with as much as the last one had that was served: it neither pays for being away nor saves up.
//! Tasks without a key are one key more. A level in which nothing waits and nothing runs forgets.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::{Run, Ticket, WorkerId};

/// What is assumed of a key's items as long as none was answered, in nanoseconds.
const UNKNOWN: u64 = 1_000_000;

/// Where a task stands among others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::pool) struct Class {
    /// Higher ones go first.
    pub(in crate::pool) priority: i32,
    /// Whose share it uses.
    pub(in crate::pool) key: Option<Arc<str>>,
}

/// One key's runs and what it has used.
#[derive(Debug)]
struct Account<J> {
    key: Option<Arc<str>>,
    runs: VecDeque<Run<J>>,
    /// Worker time, in nanoseconds.
    used: u64,
    /// Items that workers hold and have not answered.
    in_flight: u64,
    /// How long an item takes on average.
    item_time: Option<u64>,
}

impl<J> Account<J> {
    fn new(key: Option<Arc<str>>) -> Self {
        Self { key, runs: VecDeque::new(), used: 0, in_flight: 0, item_time: None }
    }

    /// By this it is compared with others.
    fn time(&self) -> u64 {
        let expected = self.in_flight.saturating_mul(self.item_time.unwrap_or(UNKNOWN));
        self.used.saturating_add(expected)
    }

    fn catch_up(&mut self, time: u64) {
        self.used += time.saturating_sub(self.time());
    }

    fn is_idle(&self) -> bool {
        self.runs.is_empty() && self.in_flight == 0
    }
}

impl<J: Ticket> Account<J> {
    /// Takes out the runs of a job.
    fn remove(&mut self, job: &J) -> Vec<Run<J>> {
        // From both ends: calls that are given up together mostly are so in their order, or against it.
        let len = self.runs.len();
        let mut places = (0..len.div_ceil(2)).flat_map(|near| [near, len - 1 - near]);
        let Some(at) = places.find(|at| self.runs[*at].job.is(job)) else { return Vec::new() };
        if job.is_single() {
            return self.runs.remove(at).into_iter().collect();
        }
        let runs = std::mem::take(&mut self.runs).into_iter();
        let (gone, stays): (Vec<_>, Vec<_>) = runs.partition(|run| run.job.is(job));
        self.runs = stays.into();
        gone
    }
}

/// The tasks of one priority.
#[derive(Debug)]
struct Level<J> {
    priority: i32,
    /// The first is that of the tasks without a key.
    accounts: Vec<Account<J>>,
    names: HashMap<Arc<str>, usize>,
    /// Places of accounts that were forgotten.
    free: Vec<usize>,
    /// Those in which runs wait, by their time.
    order: BTreeSet<(u64, usize)>,
    /// The time of the account that was served last, as far as that went on.
    now: u64,
    in_flight: u64,
}

impl<J> Level<J> {
    fn new(priority: i32) -> Self {
        Self {
            priority,
            accounts: vec![Account::new(None)],
            names: HashMap::new(),
            free: Vec::new(),
            order: BTreeSet::new(),
            now: 0,
            in_flight: 0,
        }
    }

    fn find(&self, key: Option<&Arc<str>>) -> Option<usize> {
        match key {
            None => Some(0),
            Some(key) => self.names.get(key).copied(),
        }
    }

    fn find_or_open(&mut self, key: Option<&Arc<str>>) -> usize {
        if let Some(id) = self.find(key) {
            return id;
        }
        if self.free.is_empty() && self.accounts.len() == self.accounts.capacity() {
            self.sweep();
        }
        let account = Account::new(key.cloned());
        let id = match self.free.pop() {
            Some(id) => {
                self.accounts[id] = account;
                id
            }
            None => {
                self.accounts.push(account);
                self.accounts.len() - 1
            }
        };
        self.names.extend(key.cloned().map(|key| (key, id)));
        id
    }

    /// Forgets the keys for which it makes no difference.
    fn sweep(&mut self) {
        let Self { accounts, names, free, now, .. } = self;
        names.retain(|_, id| {
            let needed = !accounts[*id].is_idle() || accounts[*id].used > *now;
            free.extend((!needed).then_some(*id));
            needed
        });
        // Not again before as many have come as are looked at.
        if free.len() < accounts.len() / 2 {
            accounts.reserve(accounts.len());
        }
    }

    /// Changes an account, and puts it where it belongs then.
    fn change<T>(&mut self, id: usize, change: impl FnOnce(&mut Account<J>) -> T) -> T {
        let account = &mut self.accounts[id];
        let before = (!account.runs.is_empty()).then(|| (account.time(), id));
        let result = change(account);
        let after = (!account.runs.is_empty()).then(|| (account.time(), id));
        if before != after {
            // In this order, since a set that becomes empty gives its memory back.
            self.order.extend(after);
            before.map(|entry| self.order.remove(&entry));
        }
        result
    }

    fn is_idle(&self) -> bool {
        self.order.is_empty() && self.in_flight == 0
    }

    fn forget(&mut self) {
        self.now = self.now.max(self.accounts[0].used);
        self.accounts.truncate(1);
        self.names.clear();
        self.free.clear();
    }
}

/// Which workers hold unanswered items of which key, and how many may.
#[derive(Debug)]
struct Holders {
    limit: Option<usize>,
    of: HashMap<Arc<str>, Vec<(WorkerId, u64)>>,
}

impl Holders {
    /// Whether a worker may be given items of a key.
    fn may_take(&self, worker: WorkerId, key: Option<&Arc<str>>) -> bool {
        let (Some(limit), Some(key)) = (self.limit, key) else { return true };
        let Some(holders) = self.of.get(key) else { return true };
        holders.len() < limit || holders.iter().any(|(holder, _)| *holder == worker)
    }

    fn add(&mut self, worker: WorkerId, key: Option<&Arc<str>>, items: u64) {
        let (Some(_), Some(key)) = (self.limit, key) else { return };
        let holders = self.of.entry(key.clone()).or_default();
        match holders.iter_mut().find(|(holder, _)| *holder == worker) {
            Some((_, held)) => *held += items,
            None => holders.push((worker, items)),
        }
    }

    fn remove(&mut self, worker: WorkerId, key: Option<&Arc<str>>, items: u64) {
        let Some(key) = key else { return };
        let Some(holders) = self.of.get_mut(key) else { return };
        if let Some((_, held)) = holders.iter_mut().find(|(holder, _)| *holder == worker) {
            *held = held.saturating_sub(items);
        }
        holders.retain(|(_, held)| *held > 0);
        if holders.is_empty() {
            self.of.remove(key);
        }
    }
}

/// The runs that wait, and the accounts of those that workers hold.
#[derive(Debug)]
pub(super) struct Queue<J> {
    /// The highest priority first.
    levels: Vec<Level<J>>,
    len: usize,
    holders: Holders,
}

impl<J: Ticket> Queue<J> {
    /// `key_limit` says how many workers may hold items of one key at a time.
    pub(super) fn new(key_limit: Option<usize>) -> Self {
        // This level stays, as most tasks come and go there.
        let levels = vec![Level::new(0)];
        Self { levels, len: 0, holders: Holders { limit: key_limit, of: HashMap::new() } }
    }

    /// How many runs wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many runs wait, by priority and key.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (i32, Option<Arc<str>>, usize)> {
        self.levels.iter().flat_map(|level| {
            level.order.iter().map(|(_, id)| {
                let account = &level.accounts[*id];
                (level.priority, account.key.clone(), account.runs.len())
            })
        })
    }

    pub(super) fn push(&mut self, run: Run<J>) {
        self.put(run, VecDeque::push_back);
    }

    /// Takes back, to the front, what a worker was given and has not begun.
    pub(super) fn give_back(&mut self, worker: WorkerId, run: Run<J>) {
        let (class, items) = (run.job.spec().class.clone(), u64::from(run.count));
        self.put(run, VecDeque::push_front);
        self.done(worker, &class, items);
    }

    fn put(&mut self, run: Run<J>, put: fn(&mut VecDeque<Run<J>>, Run<J>)) {
        let class = &run.job.spec().class;
        let at = self.find(class.priority).unwrap_or_else(|at| {
            self.levels.insert(at, Level::new(class.priority));
            at
        });
        let level = &mut self.levels[at];
        let (id, now) = (level.find_or_open(class.key.as_ref()), level.now);
        level.change(id, |account| {
            if account.runs.is_empty() {
                account.catch_up(now);
            }
            put(&mut account.runs, run);
        });
        self.len += 1;
    }

    fn find(&self, priority: i32) -> Result<usize, usize> {
        self.levels.binary_search_by(|level| priority.cmp(&level.priority))
    }

    /// Whether anything waits that a worker may be given.
    pub(super) fn has_for(&self, worker: WorkerId) -> bool {
        match self.holders.limit {
            None => !self.is_empty(),
            Some(_) => self.levels.iter().any(|level| self.next_in(level, worker).is_some()),
        }
    }

    /// Whether a worker may be given items of a class.
    pub(super) fn may_take(&self, worker: WorkerId, class: &Class) -> bool {
        self.holders.may_take(worker, class.key.as_ref())
    }

    fn next_in(&self, level: &Level<J>, worker: WorkerId) -> Option<(u64, usize)> {
        let may_take = |id: usize| self.holders.may_take(worker, level.accounts[id].key.as_ref());
        level.order.iter().find(|(_, id)| may_take(*id)).copied()
    }

    /// The run that is next for a worker, or as much of it as it should have.
    pub(super) fn take(&mut self, worker: WorkerId, most: u32) -> Option<Run<J>> {
        let (at, next) = (self.levels.iter().enumerate())
            .find_map(|(at, level)| self.next_in(level, worker).map(|next| (at, next)))?;
        let level = &mut self.levels[at];
        let (time, id) = next;
        level.now = level.now.max(time);
        // Who may not go now does not save up for later.
        let passed: Vec<_> = level.order.range(..next).map(|(_, id)| *id).collect();
        for id in passed {
            level.change(id, |account| account.catch_up(time));
        }
        let run = level.change(id, |account| {
            let (run, rest) = account.runs.pop_front()?.split(most);
            self.len -= usize::from(rest.is_none());
            if let Some(rest) = rest {
                account.runs.push_front(rest);
            }
            account.in_flight += u64::from(run.count);
            Some(run)
        })?;
        level.in_flight += u64::from(run.count);
        self.holders.add(worker, run.job.spec().class.key.as_ref(), u64::from(run.count));
        Some(run)
    }

    /// A worker has answered items of a class, which took so long each and used so much time.
    pub(super) fn answered(&mut self, worker: WorkerId, class: &Class, items: u64, each: u64, used: u64) {
        self.let_go(worker, class, items, |account| {
            account.used = account.used.saturating_add(used);
            account.item_time = Some(account.item_time.map_or(each, |known| (3 * known + each) / 4));
        });
    }

    /// A worker does not hold so many items of a class any more.
    pub(super) fn done(&mut self, worker: WorkerId, class: &Class, items: u64) {
        self.let_go(worker, class, items, |_| {});
    }

    fn let_go(&mut self, worker: WorkerId, class: &Class, items: u64, note: impl FnOnce(&mut Account<J>)) {
        self.holders.remove(worker, class.key.as_ref(), items);
        let Ok(at) = self.find(class.priority) else { return };
        let level = &mut self.levels[at];
        let Some(id) = level.find(class.key.as_ref()) else { return };
        level.change(id, |account| {
            account.in_flight = account.in_flight.saturating_sub(items);
            note(account);
        });
        level.in_flight = level.in_flight.saturating_sub(items);
        self.tidy(at);
    }

    fn tidy(&mut self, at: usize) {
        let level = &mut self.levels[at];
        if level.is_idle() {
            match level.priority {
                0 => level.forget(),
                _ => drop(self.levels.remove(at)),
            }
        }
    }

    /// Notes worker time that a class has used, for an item that has been running for so long: others
    /// of it will hardly be quicker.
    pub(super) fn charge(&mut self, class: &Class, time: u64, running: u64) {
        if let Ok(at) = self.find(class.priority)
            && let Some(id) = self.levels[at].find(class.key.as_ref())
        {
            self.levels[at].change(id, |account| {
                account.used = account.used.saturating_add(time);
                if running > account.item_time.unwrap_or(UNKNOWN) {
                    account.item_time = Some(running);
                }
            });
        }
    }

    /// Takes out what waits of a job.
    pub(super) fn remove(&mut self, job: &J) -> Vec<Run<J>> {
        let Class { priority, key } = &job.spec().class;
        let Ok(at) = self.find(*priority) else { return Vec::new() };
        let level = &mut self.levels[at];
        let Some(id) = level.find(key.as_ref()) else { return Vec::new() };
        let gone = level.change(id, |account| account.remove(job));
        self.len -= gone.len();
        self.tidy(at);
        gone
    }

    /// Takes out all that waits.
    pub(super) fn drain(&mut self) -> Vec<Run<J>> {
        let mut gone = Vec::with_capacity(self.len);
        for at in (0..self.levels.len()).rev() {
            let level = &mut self.levels[at];
            while let Some((_, id)) = level.order.first().copied() {
                level.change(id, |account| gone.extend(account.runs.drain(..)));
            }
            self.tidy(at);
        }
        self.len = 0;
        gone
    }

    /// Items that workers hold.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> u64 {
        self.levels.iter().map(|level| level.in_flight).sum()
    }

    #[cfg(test)]
    pub(super) fn accounts(&self) -> usize {
        self.levels.iter().map(|level| level.accounts.len()).sum()
    }
}
