//! The children that this process has, and the thread that reaps those whom nobody waits for.

use crate::sys::{AsFd, BorrowedFd};
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::child::Child;
use super::{LastHandle, Process};
use crate::control::{self, Report};
use crate::sys::per_process::PerProcess;
use crate::sys::socket::Mode;
use crate::sys::{self, Fd};
use crate::util::lock;

/// One line of the table: a child, what is said of it, and its handles if there are any.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) child: Arc<Child>,
    pub(crate) about: Arc<super::About>,
    last: Weak<LastHandle>,
    closed: Arc<AtomicBool>,
}

static TABLE: PerProcess<Mutex<Vec<Entry>>> = PerProcess::new(Mutex::default);

pub(crate) fn enter(process: &Process) {
    super::exit::install_hook();
    let Process { child, about, last, closed } = process.clone();
    lock(TABLE.get()).push(Entry { child, about, last: Arc::downgrade(&last), closed });
}

pub(crate) fn leave(child: &Arc<Child>) {
    lock(TABLE.get()).retain(|entry| !Arc::ptr_eq(&entry.child, child));
}

/// The children that have not ended. Those that have are reaped, as in Python.
pub fn active_children() -> Vec<Process> {
    let children = alive().into_iter().filter(|entry| !entry.about.internal);
    children
        .map(|Entry { child, about, last, closed }| {
            // All handles may be gone; then this is again the first.
            let last = last.upgrade().unwrap_or_else(|| Arc::new(LastHandle(child.clone())));
            Process { child, about, last, closed }
        })
        .collect()
}

/// All that have not ended, pool workers and the like too.
pub(crate) fn alive() -> Vec<Entry> {
    let all = lock(TABLE.get()).clone();
    // This crate's own are reaped by who started them, which has to kill their group first.
    let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|entry| entry.about.internal);
    let (ended, mut alive): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|entry| entry.child.status().is_some());
    alive.extend(own.into_iter().filter(|entry| !entry.child.has_exited()));
    for entry in ended {
        leave(&entry.child);
    }
    alive
}

/// Whom the reaper looks after.
enum Ward {
    Child {
        child: Arc<Child>,
        /// When it is killed if it has not ended.
        until: Option<Instant>,
    },
    /// Asked of the fork server by somebody who gave up before it was born: its end of the
    /// control socket, on which its id may still come, and how long it has then.
    Unborn { control: Arc<Fd>, grace: Duration },
}

#[derive(Default)]
struct Reaper {
    wards: Mutex<Vec<Arc<Ward>>>,
    /// Once its thread runs: what wakes it.
    bell: Mutex<Option<&'static Fd>>,
}

static REAPER: PerProcess<Reaper> = PerProcess::new(Reaper::default);

/// Sees to it that a child is reaped when it ends, without any runtime.
pub(crate) fn adopt(child: Arc<Child>) {
    if child.status().is_some() {
        leave(&child);
    } else {
        look_after(Ward::Child { child, until: None });
    }
}

/// Sees to it that a child which is not wanted any more dies, at once or after some time.
pub(crate) fn dismiss(child: Arc<Child>, grace: Duration) {
    look_after(Ward::dismissed(child, grace));
}

/// The same for one that is not known yet.
pub(crate) fn dismiss_unborn(control: Arc<Fd>, grace: Duration) {
    look_after(Ward::Unborn { control, grace });
}

fn look_after(ward: Ward) {
    let reaper = REAPER.get();
    lock(&reaper.wards).push(Arc::new(ward));
    // Where no descriptor or thread is to be had, the next one that comes here tries again.
    if let Ok(bell) = reaper.bell() {
        sys::fd::ring(bell.as_fd());
    }
}

impl Reaper {
    /// The bell of the thread, which is started if need be.
    fn bell(&'static self) -> io::Result<&'static Fd> {
        let mut bell = lock(&self.bell);
        if let Some(bell) = *bell {
            return Ok(bell);
        }
        let fresh = sys::fd::eventfd()?;
        let theirs = fresh.try_clone()?;
        sys::threads::spawn("mp-reaper", move || self.reap_for_ever(&theirs))?;
        Ok(*bell.insert(Box::leak(Box::new(fresh))))
    }

    fn reap_for_ever(&self, bell: &Fd) {
        loop {
            let wards = lock(&self.wards).clone();
            let waited: Vec<_> = wards.iter().map(|ward| ward.descriptor()).collect();
            let until = wards.iter().filter_map(|ward| ward.until()).min();
            let time = until.map(|until| until.saturating_duration_since(Instant::now()));
            sys::fd::poll_any(&waited, bell.as_fd(), time);
            for ward in &wards {
                if let Some(next) = ward.look() {
                    let mut wards = lock(&self.wards);
                    wards.retain(|kept| !Arc::ptr_eq(kept, ward));
                    wards.extend(next.map(Arc::new));
                }
            }
        }
    }
}

impl Ward {
    fn dismissed(child: Arc<Child>, grace: Duration) -> Self {
        if grace.is_zero() {
            child.kill_tree();
            return Self::Child { child, until: None };
        }
        Self::Child { child, until: Instant::now().checked_add(grace) }
    }

    fn until(&self) -> Option<Instant> {
        match self {
            Self::Child { until, .. } => *until,
            Self::Unborn { .. } => None,
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Child { child, .. } => child.exit(),
            Self::Unborn { control, .. } => control.as_fd(),
        }
    }

    /// `None` to go on waiting, else who is to be waited for in its place.
    fn look(&self) -> Option<Option<Self>> {
        match self {
            Self::Child { child, until } => {
                if child.status().is_some() {
                    leave(child);
                    return Some(None);
                }
                let over = until.is_some_and(|until| until <= Instant::now());
                over.then(|| Some(Self::dismissed(child.clone(), Duration::ZERO)))
            }
            Self::Unborn { control, grace } => loop {
                let mut report = match control::receive::<Report>(control.as_fd(), Mode::Try) {
                    Ok(Some(letter)) => letter.head,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                    Ok(None) | Err(_) => break Some(None),
                };
                match Child::announced(&mut report, control) {
                    Ok(None) => {}
                    Ok(Some(child)) => break Some(Some(Self::dismissed(child, *grace))),
                    Err(_) => break Some(None),
                }
            },
        }
    }
}
