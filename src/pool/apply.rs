//! One call of a function in a worker.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio_util::sync::PollSemaphore;

use super::call::{Call, Options, common_options, retry_option};
use super::feed::Piece;
use super::result::{AsyncResult, Settles, Slot};
use super::scheduler::Spec;
use super::shared::{Job, Owner};
use super::wire::Answer;
use crate::error::TaskError;
use crate::reduction::Message;

struct ApplyJob<R> {
    spec: Spec,
    slot: Slot<R>,
}

impl<R: Message> Job for ApplyJob<R> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn is_single(&self) -> bool {
        true
    }

    fn answer(&self, answers: &mut dyn Iterator<Item = Answer<'_>>, wakers: &mut Vec<Waker>) {
        for answer in answers {
            wakers.extend(self.slot.settle(answer.decode()));
        }
    }

    fn lose(&self, _: Range<u64>, error: TaskError, wakers: &mut Vec<Waker>) {
        wakers.extend(self.slot.settle(Err(error)));
    }
}

impl<R: Message> Settles<R> for ApplyJob<R> {
    fn slot(&self) -> &Slot<R> {
        &self.slot
    }
}

/// A call of a function in a worker: see [`Pool::apply`](super::Pool::apply).
///
/// Nothing happens before it is awaited or [submitted](Self::submit). Dropped after that, the task
/// runs on and its result goes, unless [`kill_on_drop`](Self::kill_on_drop) was asked for.
#[must_use = "a call does nothing unless awaited or submitted"]
pub struct Apply<R> {
    state: State<R>,
}

enum State<R> {
    Idle(Box<Idle<R>>),
    Submitted(AsyncResult<R>),
    Moved,
}

struct Idle<R> {
    owner: Owner,
    call: Call,
    args: Piece,
    options: Options<R>,
    permits: Option<PollSemaphore>,
}

impl<R: Message> Apply<R> {
    pub(super) fn new(owner: Owner, call: Call, args: Piece) -> Self {
        let permits = owner.shared().permits().map(PollSemaphore::new);
        let idle = Idle { owner, call, args, options: Options::default(), permits };
        Self { state: State::Idle(Box::new(idle)) }
    }

    fn with(mut self, set: impl FnOnce(&mut Options<R>)) -> Self {
        self.set(set);
        self
    }

    pub(super) fn set(&mut self, set: impl FnOnce(&mut Options<R>)) {
        if let State::Idle(idle) = &mut self.state {
            set(&mut idle.options);
        }
    }

    common_options!();
    retry_option!();

    /// Runs with the value before anybody gets it. It should be quick: the pool's supervisor, or
    /// whoever finds out, runs it. A panic in it is caught and logged.
    pub fn callback(self, callback: impl FnOnce(&R) + Send + 'static) -> Self {
        self.with(|options| options.callbacks().value = Some(Box::new(callback)))
    }

    /// As [`callback`](Self::callback), with the error.
    pub fn error_callback(self, callback: impl FnOnce(&TaskError) + Send + 'static) -> Self {
        self.with(|options| options.callbacks().error = Some(Box::new(callback)))
    }

    /// Hands the task over now, to be waited for later. Needs no runtime, and does not wait for
    /// the pool's limit of waiting tasks.
    #[doc(alias = "apply_async")]
    pub fn submit(mut self) -> AsyncResult<R> {
        match std::mem::replace(&mut self.state, State::Moved) {
            State::Idle(idle) => idle.start(false),
            State::Submitted(result) => result,
            State::Moved => unreachable!("only `submit` moves it, and consumes it"),
        }
    }
}

impl<R> Apply<R> {
    /// If it has not begun it never will.
    pub(super) fn withdraw(&self) {
        if let State::Submitted(result) = &self.state {
            result.withdraw();
        }
    }
}

impl<R: Message> Idle<R> {
    fn start(self, permitted: bool) -> AsyncResult<R> {
        let spec = self.options.spec(&self.call);
        let kill_on_drop = self.options.kills_on_drop(&self.call);
        let job = Arc::new(ApplyJob { spec, slot: Slot::new(self.options.into_callbacks()) });
        self.owner.shared().submit_single(job.clone(), self.args, permitted);
        AsyncResult::new(job, self.owner, kill_on_drop)
    }
}

impl<R: Message> Future for Apply<R> {
    type Output = Result<R, TaskError>;

    /// # Panics
    /// When the result was taken already.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Idle(idle) = &mut self.state {
            let permitted = match (&mut idle.permits, &idle.args) {
                // The pool gives the permit back when the task leaves its queue.
                (Some(permits), Piece::Run { .. }) => {
                    ready!(permits.poll_acquire(cx)).map(|permit| permit.forget()).is_some()
                }
                // What cannot be sent never comes to the queue.
                (None, _) | (_, Piece::Refused(_)) => false,
            };
            if let State::Idle(idle) = std::mem::replace(&mut self.state, State::Moved) {
                self.state = State::Submitted(idle.start(permitted));
            }
        }
        match &mut self.state {
            State::Submitted(result) => Pin::new(result).poll(cx),
            State::Idle(_) | State::Moved => unreachable!("it was submitted just now"),
        }
    }
}

impl<R> fmt::Debug for Apply<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let submitted = !matches!(self.state, State::Idle(_));
        f.debug_struct("Apply").field("submitted", &submitted).finish_non_exhaustive()
    }
}
