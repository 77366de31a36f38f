//! A meeting of a number of parties.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::object::{Kind, Object, WeakObject};
use super::protocol::rounds::{Arrival, Left, Phase, Rounds};
use super::protocol::{Cell, Here, Identity, World, bells, cells};
use super::wait::{wait, within};
use crate::error::{Error, Result};
use crate::function::Func;
use crate::sys::memory::Shared;
use crate::sys::per_process::PerProcess;
use crate::util::{Finalize, lock};

pub(super) static KIND: Kind = Kind {
    code: 6,
    name: "barrier",
    ready: |object, looks| {
        if looks && rounds(object).bury(&Here) {
            call_all(object);
        }
        match rounds(object).phase() {
            Phase::Acting => 0,
            // Some may stand outside until the round before is over.
            _ => usize::MAX,
        }
    },
    passes_on: false,
    reap: |object, cell| {
        let dead = cells::owner(object.words(), cell).filter(|owner| Here.is_dead(*owner));
        if dead.is_some_and(|dead| rounds(object).reap(cell, dead)) {
            call_all(object);
        }
    },
    claimed: |_, _| {},
    holds: |words, cell| Rounds::of(words, 0).held(cell) > 0,
};

fn rounds(object: &Object) -> Rounds<'_, Shared> {
    Rounds::of(object.words(), object.configuration().min(u64::from(Rounds::<Shared>::LIMIT)) as u32)
}

fn call_all(object: &Object) {
    if bells::anyone(object.words()) {
        object.call_all();
    }
}

/// This process's cell: it has come, and if it ends as it should, it will take leave. What holds it by then,
/// such as a static, is not dropped.
fn cell(object: &Object) -> Result<Cell> {
    static CAME_TO: PerProcess<Mutex<Option<Vec<WeakObject>>>> = PerProcess::new(Mutex::default);
    fn take_leave() {
        let came_to = lock(CAME_TO.get()).take().unwrap_or_default();
        for object in came_to.iter().filter_map(WeakObject::upgrade) {
            if let Some(cell) = object.own_cell() {
                rounds(&object).take_leave(cell);
            }
        }
    }
    if let Some(cell) = object.own_cell() {
        return Ok(cell);
    }
    {
        let mut came_to = lock(CAME_TO.get());
        let came_to = came_to.get_or_insert_with(|| {
            // After all others, which may still come.
            Finalize::new(i32::MIN, take_leave);
            Vec::new()
        });
        came_to.retain(WeakObject::lives);
        came_to.push(object.downgrade());
    }
    object.cell()
}

/// Lets a number of parties through once all of them have come. Python's `Barrier`.
///
/// Parties are tasks and threads of any processes that share the barrier. Once all are through, it can be used
/// again: nobody enters the next round before everybody has left the last one.
///
/// It **breaks** if a party waits in vain: if one times out, if [`abort`](Self::abort) is called, if the
/// action fails, or if a process dies that has come to the barrier at least once, and has neither dropped its
/// last handle nor ended as it should. Everybody who waits then, and everybody who comes, gets
/// [`Error::BrokenBarrier`], until it is [`reset`](Self::reset). Of a process that never came nobody knows that
/// it ought to have: time-outs are for that. One that is stopped is not dead, and is waited for.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// async fn work(barrier: mp::Barrier) -> mp::Result<()> {
///     // Everybody prepares something, and nobody goes on before all are ready.
///     barrier.wait().await?;
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let barrier = mp::Barrier::new(3)?;
/// let one = mp::Process::builder(work, (barrier.clone(),)).start().await?;
/// let other = mp::Process::builder(work, (barrier.clone(),)).start().await?;
/// assert!(barrier.wait().await? < 3);
/// one.join().await?;
/// other.join().await?;
/// # Ok(()) }
/// ```
///
/// Clones are the same barrier, and so is what arrives in a message; the action and the default time-out go
/// with it. It costs a descriptor and 8 KiB of memory for all, and up to 250 processes can use it at a time.
#[derive(Clone, Serialize)]
pub struct Barrier {
    object: Object,
    action: Option<Func<(), ()>>,
    timeout: Option<Duration>,
}

/// Makes a [`Barrier`].
#[derive(Clone, Debug)]
#[must_use = "the barrier is made by `build`"]
pub struct BarrierBuilder {
    parties: usize,
    action: Option<Func<(), ()>>,
    timeout: Option<Duration>,
}

impl BarrierBuilder {
    /// What one of the parties runs in each round, once all have come and before anybody goes on: the one that
    /// came last.
    ///
    /// If it returns an error or panics, the barrier is broken: the error, or the panic, is that party's, the
    /// others get [`Error::BrokenBarrier`].
    pub fn action(mut self, action: Func<(), ()>) -> Self {
        self.action = Some(action);
        self
    }

    /// How long each [`wait`](Barrier::wait) waits at most.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// The barrier. It needs no runtime.
    ///
    /// # Errors
    /// Without any parties, or with more than 4,194,303; when there are no descriptors or no memory left; and
    /// on platforms without processes.
    pub fn build(self) -> Result<Barrier> {
        let Self { parties, action, timeout } = self;
        let limit = Rounds::<Shared>::LIMIT;
        if !(1..=limit as usize).contains(&parties) {
            return Err(Error::invalid(format!("a barrier has 1 to {limit} parties, not {parties}")));
        }
        Ok(Barrier { object: Object::create(&KIND, parties as u64, 0)?, action, timeout })
    }
}

impl Barrier {
    /// A new barrier for so many parties. It needs no runtime.
    ///
    /// # Errors
    /// As those of [`BarrierBuilder::build`].
    pub fn new(parties: usize) -> Result<Self> {
        Self::builder(parties).build()
    }

    /// For one with an action, or a default time-out.
    pub fn builder(parties: usize) -> BarrierBuilder {
        BarrierBuilder { parties, action: None, timeout: None }
    }

    /// Waits until all parties have come. Each of them gets another number below
    /// [`parties`](Self::parties); so exactly one gets 0.
    ///
    /// The [time-out](BarrierBuilder::timeout) given to the builder applies, as in
    /// [`wait_timeout`](Self::wait_timeout).
    ///
    /// # Cancel safety
    /// Dropped while others are missing, it has not come. Dropped once all have come, it has: the others go
    /// on. Dropped while it runs the action, it breaks the barrier.
    ///
    /// # Errors
    /// [`Error::BrokenBarrier`]; [`Error::Task`] if it is this party that runs the action, and the action
    /// fails; when more than 250 processes use the barrier, or no descriptor is left to be woken by.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime, or on one without I/O; and if the action panics.
    pub async fn wait(&self) -> Result<usize> {
        match self.timeout {
            Some(time) => self.wait_timeout(time).await,
            None => self.party()?.go_through().await,
        }
    }

    /// [`wait`](Self::wait) for so long at most; the barrier is broken after that. The default time-out does
    /// not apply.
    ///
    /// # Cancel safety
    /// As that of [`wait`](Self::wait).
    ///
    /// # Errors
    /// [`Error::BrokenBarrier`] also if the time is over; but [`Error::Timeout`] if this party could not come
    /// in before, as those of the last round had not left: that breaks nothing.
    pub async fn wait_timeout(&self, time: Duration) -> Result<usize> {
        let mut party = self.party()?;
        match within(time, party.go_through()).await? {
            Some(index) => Ok(index),
            None => party.give_up(),
        }
    }

    /// Breaks the barrier: all who wait get an error, and all who come. Those who are on their way out of a
    /// complete round are not disturbed.
    ///
    /// # Errors
    /// None today.
    pub fn abort(&self) -> Result<()> {
        self.rounds().abort();
        call_all(&self.object);
        Ok(())
    }

    /// Makes the barrier as new, also if it is broken. Those who wait get [`Error::BrokenBarrier`]; those who
    /// are on their way out of a complete round are not disturbed.
    ///
    /// # Errors
    /// None today.
    pub fn reset(&self) -> Result<()> {
        self.rounds().reset(&Here);
        call_all(&self.object);
        Ok(())
    }

    /// How many have come and wait for others at this instant.
    pub fn n_waiting(&self) -> usize {
        self.rounds().waiting() as usize
    }

    /// Whether the barrier is broken. It looks after the processes that have come, at some 10 µs for each.
    pub fn broken(&self) -> bool {
        if !self.rounds().phase().is_broken() {
            self.bury();
        }
        self.rounds().phase().is_broken()
    }

    /// How many parties there have to be.
    pub fn parties(&self) -> usize {
        self.object.configuration() as usize
    }

    fn rounds(&self) -> Rounds<'_, Shared> {
        rounds(&self.object)
    }

    fn bury(&self) {
        if self.rounds().bury(&Here) {
            call_all(&self.object);
        }
    }

    fn party(&self) -> Result<Party<'_>> {
        Ok(Party {
            barrier: self,
            cell: cell(&self.object)?,
            process: Here.me(),
            inside: false,
            breaks: false,
        })
    }
}

impl<'de> Deserialize<'de> for Barrier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Memory(Object);
        impl<'de> Deserialize<'de> for Memory {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Object::deserialize(&KIND, deserializer).map(Self)
            }
        }
        #[derive(Deserialize)]
        #[serde(rename = "Barrier")]
        struct Parts {
            object: Memory,
            action: Option<Func<(), ()>>,
            timeout: Option<Duration>,
        }
        let Parts { object, action, timeout } = Parts::deserialize(deserializer)?;
        Ok(Self { object: object.0, action, timeout })
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Barrier");
        debug.field("parties", &self.parties()).field("waiting", &self.n_waiting());
        debug.field("broken", &self.rounds().phase().is_broken()).finish()
    }
}

/// Somebody who has come to a barrier. Dropped, it leaves.
struct Party<'a> {
    barrier: &'a Barrier,
    cell: Cell,
    /// A copy of this process is not inside by its copy of this.
    process: Identity,
    inside: bool,
    /// If it leaves early, the others are not to wait for another in its place.
    breaks: bool,
}

impl Party<'_> {
    async fn go_through(&mut self) -> Result<usize> {
        let Barrier { object, action, .. } = self.barrier;
        let arrival = wait(object, |_| self.arrive(action.is_some())).await?;
        match arrival {
            Arrival::Broken | Arrival::Early => {
                // It may be this one that has found somebody dead.
                call_all(object);
                return Err(Error::BrokenBarrier);
            }
            Arrival::Completes => call_all(object),
            Arrival::Acts => {
                if let Some(action) = action {
                    self.breaks = true;
                    action.call(()).await?;
                    self.breaks = false;
                }
                if self.barrier.rounds().acted() {
                    call_all(object);
                }
            }
            Arrival::Waits => {}
        }
        wait(object, |_| self.pass()).await?
    }

    /// `None` as long as others have not left the round before.
    fn arrive(&mut self, has_action: bool) -> Option<Arrival> {
        let arrival = self.barrier.rounds().arrive(&Here, self.cell, has_action);
        self.inside = matches!(arrival, Arrival::Waits | Arrival::Completes | Arrival::Acts);
        (arrival != Arrival::Early).then_some(arrival)
    }

    /// `None` as long as others are missing.
    fn pass(&mut self) -> Option<Result<usize>> {
        let Left { index, frees } = self.barrier.rounds().pass(self.cell)?;
        self.inside = false;
        if frees {
            call_all(&self.barrier.object);
        }
        Some(index.ok_or(Error::BrokenBarrier))
    }

    /// The time is over.
    fn give_up(mut self) -> Result<usize> {
        if !self.inside {
            return Err(Error::Timeout);
        }
        self.breaks = true;
        // It may have been let through, and not have noticed yet.
        self.pass().unwrap_or(Err(Error::BrokenBarrier))
    }
}

impl Drop for Party<'_> {
    fn drop(&mut self) {
        if self.inside && self.process == Here.me() && self.barrier.rounds().withdraw(self.cell, self.breaks)
        {
            call_all(&self.barrier.object);
        }
    }
}
