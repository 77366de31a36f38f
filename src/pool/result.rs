//! Where results wait for whoever asked for them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use super::shared::{Job, Owner};
use crate::error::{Error, Result, TaskError};
use crate::util::lock;

type Callback<T> = Box<dyn FnOnce(&T) + Send>;

/// What runs when a result is there, before anybody gets it.
pub(super) struct Callbacks<R> {
    pub(super) value: Option<Callback<R>>,
    pub(super) error: Option<Callback<TaskError>>,
}

impl<R> Default for Callbacks<R> {
    fn default() -> Self {
        Self { value: None, error: None }
    }
}

impl<R> Callbacks<R> {
    fn run(self, result: &Result<R, TaskError>) {
        let called = catch_unwind(AssertUnwindSafe(|| match (result, self.value, self.error) {
            (Ok(value), Some(callback), _) => callback(value),
            (Err(error), _, Some(callback)) => callback(error),
            _ => {}
        }));
        if called.is_err() {
            crate::log::warn(format_args!("a pool's result callback panicked"));
        }
    }
}

enum State<R> {
    Waiting(Option<Waker>),
    Done(Result<R, TaskError>),
    /// It was, and whether it was a value.
    Taken(bool),
}

/// A result that comes once and is taken once.
pub(super) struct Slot<R> {
    state: Mutex<State<R>>,
    callbacks: Mutex<Callbacks<R>>,
}

impl<R> Slot<R> {
    pub(super) fn new(callbacks: Callbacks<R>) -> Self {
        Self { state: Mutex::new(State::Waiting(None)), callbacks: Mutex::new(callbacks) }
    }

    /// Fills it. A second result is not listened to.
    pub(super) fn settle(&self, result: Result<R, TaskError>) -> Option<Waker> {
        // The lock is not held while they run: they may look at this very result.
        let callbacks = std::mem::take(&mut *lock(&self.callbacks));
        callbacks.run(&result);
        let mut state = lock(&self.state);
        match &mut *state {
            State::Waiting(waker) => {
                let waker = waker.take();
                *state = State::Done(result);
                waker
            }
            State::Done(_) | State::Taken(_) => None,
        }
    }

    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Result<R, TaskError>> {
        let mut state = lock(&self.state);
        if let State::Waiting(waker) = &mut *state {
            register(waker, cx);
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, State::Taken(false)) {
            State::Done(result) => {
                *state = State::Taken(result.is_ok());
                Poll::Ready(result)
            }
            taken => {
                *state = taken;
                panic!("this result was taken already")
            }
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *lock(&self.state) {
            State::Waiting(waker) => {
                register(waker, cx);
                Poll::Pending
            }
            State::Done(_) | State::Taken(_) => Poll::Ready(()),
        }
    }

    /// Whether it is filled, and if so, whether with a value.
    fn successful(&self) -> Option<bool> {
        match &*lock(&self.state) {
            State::Waiting(_) => None,
            State::Done(result) => Some(result.is_ok()),
            State::Taken(was_value) => Some(*was_value),
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.successful().is_some()
    }
}

pub(super) fn register(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(known) => known.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

/// A job with one result for all.
pub(super) trait Settles<R>: Job {
    fn slot(&self) -> &Slot<R>;
    /// Nobody wants what was not submitted yet.
    fn abandon(&self) {}
}

/// The result of a submitted call: Python's `AsyncResult`, as a future.
///
/// Dropping it lets the task run on and its result go, unless the call was made with
/// `kill_on_drop`.
#[must_use = "a submitted task runs anyway, but nobody hears of its error"]
pub struct AsyncResult<R> {
    job: Arc<dyn Settles<R>>,
    owner: Owner,
    kill_on_drop: bool,
}

impl<R> AsyncResult<R> {
    pub(super) fn new(job: Arc<dyn Settles<R>>, owner: Owner, kill_on_drop: bool) -> Self {
        Self { job, owner, kill_on_drop }
    }

    /// If the task has not begun it never will; if it runs, it goes on.
    pub(super) fn withdraw(&self) {
        if !self.ready() {
            self.owner.shared().abort(self.job.clone(), false);
        }
    }

    /// Whether the result is there.
    pub fn ready(&self) -> bool {
        self.job.slot().is_settled()
    }

    /// Whether the result is a value; `None` as long as it is not there.
    pub fn successful(&self) -> Option<bool> {
        self.job.slot().successful()
    }

    /// Waits until the result is there, and leaves it there.
    ///
    /// # Cancel safety
    /// Nothing is consumed.
    pub async fn wait(&mut self) {
        std::future::poll_fn(|cx| self.job.slot().poll_ready(cx)).await;
    }

    /// Waits for as long as `timeout`, and says whether the result is there.
    ///
    /// # Cancel safety
    /// Nothing is consumed.
    ///
    /// # Panics
    /// Outside of a Tokio runtime with time enabled: it is Tokio's clock that limits this wait.
    pub async fn wait_timeout(&mut self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, self.wait()).await.is_ok()
    }

    /// Waits for the result for as long as `timeout`. The task neither ends nor is its result lost
    /// when that time is over: ask again, or await this.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it is not there in time; the task's own error.
    ///
    /// # Cancel safety
    /// Nothing is consumed before this returns the result.
    ///
    /// # Panics
    /// As [`wait_timeout`](Self::wait_timeout), and once the result was taken.
    #[doc(alias = "get")]
    pub async fn get_timeout(&mut self, timeout: Duration) -> Result<R> {
        match tokio::time::timeout(timeout, self).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// Ends the task. If it has not begun it never will; if it runs, its worker is killed with all
    /// that it has started, and replaced. The result is then [`TaskError::Aborted`], unless another
    /// one came first.
    pub fn abort(&self) {
        self.job.abandon();
        self.owner.shared().abort(self.job.clone(), true);
    }
}

impl<R> Future for AsyncResult<R> {
    type Output = Result<R, TaskError>;

    /// # Panics
    /// When the result was taken already.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        let result = ready!(self.job.slot().poll_take(cx));
        coop.made_progress();
        Poll::Ready(result)
    }
}

impl<R> Drop for AsyncResult<R> {
    fn drop(&mut self) {
        if self.kill_on_drop && !self.ready() {
            self.abort();
        }
    }
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult").field("successful", &self.successful()).finish_non_exhaustive()
    }
}
