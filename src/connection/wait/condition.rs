//! What is ready by what stands in memory that processes share: no descriptor tells of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use super::buffered::Bell;
use super::members::WaitKey;
use super::waitable::{Source, sealed};
use crate::error::Result;
use crate::synchronize::Event;
use crate::synchronize::exchange::Exchange;
use crate::synchronize::object::Object;
use crate::synchronize::wait::Sleeper;

/// Something that is so or not, and for whose becoming so one sleeps.
pub(crate) trait Condition: fmt::Debug + Send + Sync {
    /// What it is a condition of.
    fn name(&self) -> &'static str;

    /// For what who waits for it sleeps; `None` once that is closed in this process. Whoever closes it wakes
    /// those who sleep here.
    fn object(&self) -> Option<Object>;

    /// Whether it is so at this instant; `None` once it is closed in this process.
    fn is_met(&self) -> Option<bool>;
}

/// The conditions of a set. Who waits sleeps for each of them, as an onlooker: what it is told of may be for
/// others.
///
/// All are asked in each look. To ask costs less than to know who need not be asked, and who was told is no proof:
/// whoever ought to have rung may have died, and who is to answer the door may be a runtime that nobody drives.
#[derive(Debug, Default)]
pub(super) struct Conditions(VecDeque<Onlooker>);

/// One that looks at a condition, until it is dropped: that takes locks and wakes others, so not with a lock of
/// one's own.
#[derive(Debug)]
pub(super) struct Onlooker {
    key: WaitKey,
    condition: Arc<dyn Condition>,
    sleeper: Sleeper,
    told: Arc<Told>,
}

/// Whether an onlooker has to go to sleep again.
#[derive(Debug)]
struct Told {
    told: AtomicBool,
    bell: Arc<Bell>,
}

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.told.store(true, Ordering::SeqCst);
        self.bell.ring();
    }
}

impl Conditions {
    /// Adds one; true if it is met.
    pub(super) fn enter(&mut self, key: WaitKey, condition: &Arc<dyn Condition>, bell: &Arc<Bell>) -> bool {
        let told = Arc::new(Told { told: AtomicBool::new(true), bell: bell.clone() });
        let condition = condition.clone();
        let is_met = condition.is_met() == Some(true);
        self.0.push_back(Onlooker { key, condition, sleeper: Sleeper::onlooker(), told });
        is_met
    }

    pub(super) fn remove(&mut self, key: WaitKey) -> Option<Onlooker> {
        let at = self.0.iter().position(|onlooker| onlooker.key == key)?;
        self.0.remove(at)
    }

    /// Tells of those that are met, of so many at most; the others come first in the next look. Gives back those
    /// who are closed.
    pub(super) fn look(&mut self, most: usize, ready: &mut Vec<WaitKey>) -> Vec<Onlooker> {
        let (mut closed, most) = (Vec::new(), ready.len() + most);
        for _ in 0..self.0.len() {
            if ready.len() == most {
                break;
            }
            let Some(onlooker) = self.0.pop_front() else { break };
            match onlooker.condition.is_met() {
                None => closed.push(onlooker),
                Some(is_met) => {
                    ready.extend(is_met.then_some(onlooker.key));
                    self.0.push_back(onlooker);
                }
            }
        }
        closed
    }

    /// Sleeps for all of them; false if one was met or closed meanwhile.
    ///
    /// # Errors
    /// When too many processes sleep for one of them, or this one has no descriptors left to be woken by.
    ///
    /// # Panics
    /// Outside of a runtime, and on one without I/O.
    pub(super) fn sleep(&mut self) -> Result<bool> {
        if !self.0.is_empty() {
            // Those who sleep already may do so by a runtime that has ended.
            Exchange::get().watch()?;
        }
        for onlooker in &mut self.0 {
            if !onlooker.sleep()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Onlooker {
    fn sleep(&mut self) -> Result<bool> {
        // Who was not told since has nothing to look for.
        if !self.told.told.swap(false, Ordering::SeqCst) {
            return Ok(true);
        }
        let Some(object) = self.condition.object() else { return Ok(false) };
        let waker = Waker::from(self.told.clone());
        let asleep = self.sleeper.lie_down(&object, &mut Context::from_waker(&waker));
        asleep.inspect_err(|_| self.told.told.store(true, Ordering::SeqCst))?;
        Ok(self.condition.is_met() == Some(false))
    }
}

/// It is ready while it is set.
impl sealed::Sealed for Event {
    fn source(&self) -> Result<Source<'_>> {
        Ok(Source::condition(self.clone()))
    }
}

/// Nobody closes it, and nobody misses what is left of it in a set.
impl Condition for Event {
    fn name(&self) -> &'static str {
        "event"
    }

    fn object(&self) -> Option<Object> {
        Some(Self::object(self).clone())
    }

    fn is_met(&self) -> Option<bool> {
        Some(self.is_set())
    }
}
