//! The one way in which everything here waits.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::coop;

use super::exchange::Exchange;
use super::object::Object;
use crate::error::Result;
use crate::reactor;

/// After how long a sleeper goes before those who come.
const STARVES: Duration = Duration::from_millis(10);

/// How an attempt stands among others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    /// If this attempt is in vain it sleeps, and others are told to ring.
    pub(crate) announced: bool,
    /// It was woken, or looks again after a tick.
    pub(crate) slept: bool,
    /// It has slept for more than 10 ms.
    pub(crate) starves: bool,
}

/// Tries until an attempt succeeds, and sleeps in between. Dropped while it sleeps, it leaves everything as it
/// was; what it was woken for goes to others.
///
/// # Errors
/// When the object is used by too many processes, or this one has no descriptors left to be woken by.
///
/// # Panics
/// If it has to sleep outside of a runtime, or on one without I/O.
pub(crate) async fn wait<T>(object: &Object, mut attempt: impl FnMut(Turn) -> Option<T>) -> Result<T> {
    proceed().await;
    match attempt(Turn::default()) {
        Some(done) => Ok(done),
        None => sleep(object, attempt).await,
    }
}

/// Of a task that always succeeds at once, others of its thread have their turn too.
#[inline]
pub(crate) async fn proceed() {
    poll_fn(|cx| coop::poll_proceed(cx).map(|coop| coop.made_progress())).await;
}

/// [`wait`], after a first attempt that was in vain.
pub(crate) async fn sleep<T>(object: &Object, mut attempt: impl FnMut(Turn) -> Option<T>) -> Result<T> {
    let mut waiting = Waiting { object, sleeper: None };
    poll_fn(|cx| waiting.poll(cx, &mut attempt)).await
}

/// [`wait`] and what else can be waited for, for a limited time by the kernel's clock: `None` when it is over.
/// Without any time, it is tried once.
pub(crate) async fn within<T>(time: Duration, wait: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    let mut wait = pin!(wait);
    if time.is_zero() {
        // Whatever of its turn the task has had already.
        return match coop::unconstrained(poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx)))).await {
            Poll::Ready(done) => done.map(Some),
            Poll::Pending => Ok(None),
        };
    }
    tokio::select! {
        biased;
        done = wait => done.map(Some),
        over = reactor::sleep(time) => Ok(over.map(|()| None)?),
    }
}

struct Waiting<'a> {
    object: &'a Object,
    sleeper: Option<Asleep>,
}

struct Asleep {
    number: u64,
    since: Instant,
    slept: bool,
}

impl Waiting<'_> {
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut impl FnMut(Turn) -> Option<T>,
    ) -> Poll<Result<T>> {
        let sleeper = match &mut self.sleeper {
            None => {
                let number = Exchange::get().enter(self.object, cx.waker())?;
                self.sleeper.insert(Asleep { number, since: Instant::now(), slept: false })
            }
            Some(sleeper) => {
                sleeper.slept |= Exchange::get().stir(self.object, sleeper.number, cx.waker())?;
                sleeper
            }
        };
        let turn =
            Turn { announced: true, slept: sleeper.slept, starves: sleeper.since.elapsed() >= STARVES };
        let Some(done) = attempt(turn) else { return Poll::Pending };
        Poll::Ready(Ok(done))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(sleeper) = &self.sleeper {
            Exchange::get().leave(self.object, sleeper.number);
        }
    }
}
