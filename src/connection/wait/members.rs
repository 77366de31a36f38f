//! Who is in a set, and who of them is ready.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::sync::Arc;

use super::buffered::{Bell, Watching};
use super::condition::{Conditions, Onlooker};
use super::waitable::Held;
use crate::error::Result;
use crate::sys::epoll::Epoll;
use crate::sys::{self, AsRawFd, BorrowedFd, Fd, RawFd};

/// How many members a look tells of by the kernel's word, and how many by their own: so that it stays
/// below a hundred microseconds.
const MOST: usize = 256;

/// A member of a [`WaitSet`](crate::WaitSet). A set never gives the same key twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitKey(u64);

/// The members of a set, over the entries of its epoll.
///
/// An entry reports once and is then silent until the next look arms it again. To arm it is to ask the
/// kernel, too, whether its number still means its file: so no entry is told of whose file is closed
/// here while others hold it open, and the kernel's own, which nobody can reach any more, reports once
/// at most.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: HashMap<WaitKey, Member>,
    /// Those of which the kernel knows nothing.
    conditions: Conditions,
    /// What the kernel knows, by its tokens: each descriptor once, whatever members share it.
    entries: HashMap<u64, Entry>,
    /// The latest entry of each number. An earlier one is of a file that is closed here.
    numbers: HashMap<RawFd, u64>,
    /// Members that may be ready by their own word, each once: who was told of goes to the back.
    hot: VecDeque<WaitKey>,
    /// Entries that have reported.
    silent: Vec<u64>,
    /// Keys and tokens so far.
    count: u64,
    /// Looks so far.
    looks: u64,
}

#[derive(Debug)]
struct Member {
    entry: u64,
    /// Of one that is more than a descriptor: by this it is seen, too, when it is gone.
    watching: Option<Watching>,
    /// What stays open with it.
    _kept: Option<Arc<Fd>>,
    /// Whether it is among those that may be ready by their own word.
    hot: bool,
    /// In which look it was last told of.
    told: u64,
}

#[derive(Debug)]
struct Entry {
    number: RawFd,
    keys: Vec<WaitKey>,
    /// Of a file that is always ready, which the kernel does not take: what tells it from another that
    /// has its number later.
    file: Option<(u64, u64)>,
}

/// What a look has found.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) ready: Vec<WaitKey>,
    /// Whether it asked all there are to ask. Else those that it left out may be ready, also if it found
    /// nobody: nothing that waits would hear of them, as they have said so already.
    pub(super) whole: bool,
    /// To be dropped without the lock.
    pub(super) closed: Vec<Onlooker>,
}

/// What a member itself says, whatever the kernel says.
enum Word {
    Ready,
    Nothing,
    Gone,
}

impl Members {
    /// Adds a member; true if it is ready by its own word.
    pub(super) fn enter(
        &mut self,
        object: &Held<'_>,
        epoll: &Epoll,
        bell: &Arc<Bell>,
    ) -> io::Result<(WaitKey, bool)> {
        let object = match object {
            Held::Open(open) => open,
            Held::Condition(condition) => {
                let key = WaitKey(self.next());
                return Ok((key, self.conditions.enter(key, condition, bell)));
            }
        };
        let entry = self.entry_of(object.fd(), epoll)?;
        let key = WaitKey(self.next());
        let watching = object.buffered.as_ref().map(|buffered| buffered.watch(bell, key.0));
        self.members.insert(key, Member { entry, watching, _kept: object.kept.clone(), hot: false, told: 0 });
        self.entries.get_mut(&entry).expect("it is there").keys.push(key);
        let ready = matches!(self.word(key), Word::Ready);
        if ready {
            self.heat(key);
        }
        Ok((key, ready))
    }

    /// Removes a member; false if there is none.
    pub(super) fn remove(&mut self, key: WaitKey, epoll: &Epoll) -> bool {
        let Some(member) = self.members.remove(&key) else { return false };
        let entry = self.entries.get_mut(&member.entry).expect("it has this member");
        entry.keys.retain(|other| *other != key);
        if entry.keys.is_empty() {
            self.abandon(member.entry, epoll);
        }
        true
    }

    /// Removes a member that is a condition, to be dropped without the lock.
    pub(super) fn remove_condition(&mut self, key: WaitKey) -> Option<Onlooker> {
        self.conditions.remove(key)
    }

    /// Sleeps for all conditions; false if there is something to look for.
    pub(super) fn sleep(&mut self) -> Result<bool> {
        self.conditions.sleep()
    }

    /// Looks who is ready; `told` are the tokens of those whose flag has gone up.
    pub(super) fn look(&mut self, epoll: &Epoll, told: Vec<u64>) -> io::Result<Look> {
        self.looks += 1;
        for id in mem::take(&mut self.silent) {
            self.arm(id, epoll);
        }
        told.into_iter().for_each(|token| self.heat(WaitKey(token)));
        let mut ready = Vec::new();
        for _ in 0..self.hot.len().min(MOST) {
            self.ask_hottest(epoll, &mut ready);
        }
        let reports = epoll.take(MOST)?;
        let closed = self.conditions.look(MOST, &mut ready);
        for &id in &reports {
            self.reported(id, epoll, &mut ready);
        }
        Ok(Look { whole: self.hot.is_empty() && reports.len() < MOST, ready, closed })
    }

    fn ask_hottest(&mut self, epoll: &Epoll, ready: &mut Vec<WaitKey>) {
        let Some(key) = self.hot.pop_front() else { return };
        match (self.word(key), self.members.get_mut(&key)) {
            (Word::Ready, Some(member)) => {
                member.tell(key, self.looks, ready);
                self.hot.push_back(key);
            }
            (Word::Nothing, Some(member)) => member.hot = false,
            _ => drop(self.remove(key, epoll)),
        }
    }

    /// Takes a report of the kernel's.
    fn reported(&mut self, id: u64, epoll: &Epoll, ready: &mut Vec<WaitKey>) {
        // Else it is one that was forgotten while others held its file open.
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let mut bare = false;
        entry.keys.retain(|key| {
            let watching = self.members.get(key).and_then(|member| member.watching.as_ref());
            bare |= watching.is_none();
            let here = watching.is_none_or(|watching| watching.is_set().is_some());
            if !here {
                self.members.remove(key);
            }
            here
        });
        if entry.keys.is_empty() {
            return self.abandon(id, epoll);
        }
        // Nothing but its number says whether a bare descriptor is still the same.
        if bare && !epoll.is_there(entry.number, id) {
            return self.forget(id);
        }
        self.silent.push(id);
        for key in &entry.keys {
            let member = self.members.get_mut(key).expect("it has this entry");
            member.tell(*key, self.looks, ready);
        }
    }

    fn word(&self, key: WaitKey) -> Word {
        let Some(member) = self.members.get(&key) else { return Word::Gone };
        let is_set = match &member.watching {
            Some(watching) => watching.is_set(),
            None => Some(false),
        };
        let Entry { number, file, .. } = &self.entries[&member.entry];
        match (is_set, file) {
            (None, _) => Word::Gone,
            (_, Some(file)) if sys::fd::identity_at(*number) != Some(*file) => Word::Gone,
            (Some(false), None) => Word::Nothing,
            _ => Word::Ready,
        }
    }

    fn heat(&mut self, key: WaitKey) {
        if let Some(member) = self.members.get_mut(&key)
            && !mem::replace(&mut member.hot, true)
        {
            self.hot.push_back(key);
        }
    }

    /// The entry of a descriptor, armed.
    fn entry_of(&mut self, fd: BorrowedFd<'_>, epoll: &Epoll) -> io::Result<u64> {
        let number = fd.as_raw_fd();
        if let Some(&known) = self.numbers.get(&number)
            && self.arm(known, epoll)
        {
            return Ok(known);
        }
        let id = self.next();
        let file = if epoll.insert(fd, id)? { None } else { Some(sys::fd::identity(fd)?) };
        self.entries.insert(id, Entry { number, keys: Vec::new(), file });
        self.numbers.insert(number, id);
        Ok(id)
    }

    /// Has an entry report again. If its file is closed here, it leaves with its members (false).
    fn arm(&mut self, id: u64, epoll: &Epoll) -> bool {
        let Some(Entry { number, file, .. }) = self.entries.get(&id) else { return false };
        let here = match file {
            Some(file) => sys::fd::identity_at(*number) == Some(*file),
            None => epoll.arm(*number, id),
        };
        if !here {
            self.forget(id);
        }
        here
    }

    /// Drops an entry without members, here and in the kernel.
    fn abandon(&mut self, id: u64, epoll: &Epoll) {
        if let Some(entry) = self.entries.get(&id)
            // Else the kernel has another one by this number.
            && self.numbers.get(&entry.number) == Some(&id)
        {
            epoll.remove(entry.number);
        }
        self.forget(id);
    }

    /// Drops an entry with its members.
    fn forget(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if self.numbers.get(&entry.number) == Some(&id) {
            self.numbers.remove(&entry.number);
        }
        for key in entry.keys {
            self.members.remove(&key);
        }
    }

    /// A number that no key and no token has had.
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

impl Member {
    /// Tells of it, once in a look.
    fn tell(&mut self, key: WaitKey, look: u64, ready: &mut Vec<WaitKey>) {
        if mem::replace(&mut self.told, look) != look {
            ready.push(key);
        }
    }
}
