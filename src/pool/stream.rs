//! A function over all items, and their results one by one.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_core::Stream;
use futures_util::StreamExt;

use super::call::{Call, Options, common_options, retry_option};
use super::feed::Feed;
use super::feeder::{Fed, Feeder};
use super::result::register;
use super::scheduler::Spec;
use super::shared::{Job, Owner};
use super::wire::Answer;
use crate::error::{Error, Result, TaskError};
use crate::reduction::Message;
use crate::util::lock;

type Item<R> = Result<R, TaskError>;

struct StreamJob<R> {
    spec: Spec,
    arrivals: Mutex<Arrivals<R>>,
}

struct Arrivals<R> {
    /// What is there, by position from `taken` on if in order, else as it came.
    results: VecDeque<Option<Item<R>>>,
    ordered: bool,
    taken: u64,
    waker: Option<Waker>,
}

impl<R> Arrivals<R> {
    fn put(&mut self, index: u64, result: Item<R>) {
        if !self.ordered {
            return self.results.push_back(Some(result));
        }
        let Some(place) = index.checked_sub(self.taken) else { return };
        let place = place as usize;
        if self.results.len() <= place {
            self.results.resize_with(place + 1, || None);
        }
        self.results[place] = Some(result);
    }

    /// Moves what may be given out; registers for more if that is nothing.
    fn take(&mut self, cx: &Context<'_>, into: &mut VecDeque<Item<R>>) {
        while let Some(result) = self.results.front_mut().and_then(Option::take) {
            self.results.pop_front();
            self.taken += 1;
            into.push_back(result);
        }
        if into.is_empty() {
            register(&mut self.waker, cx);
        }
    }
}

impl<R: Message> Job for StreamJob<R> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn answer(&self, answers: &mut dyn Iterator<Item = Answer<'_>>, wakers: &mut Vec<Waker>) {
        // Foreign code decodes, and may look at this very stream.
        let results: Vec<_> = answers.map(|answer| (answer.index, answer.decode())).collect();
        let mut arrivals = lock(&self.arrivals);
        results.into_iter().for_each(|(index, result)| arrivals.put(index, result));
        wakers.extend(arrivals.waker.take());
    }

    fn lose(&self, items: Range<u64>, error: TaskError, wakers: &mut Vec<Waker>) {
        let mut arrivals = lock(&self.arrivals);
        items.for_each(|index| arrivals.put(index, Err(error.clone())));
        wakers.extend(arrivals.waker.take());
    }
}

/// The results of a function over all items, as they are wanted: see
/// [`Pool::imap`](super::Pool::imap).
///
/// Nothing happens before it is polled. While it is, the input is read ahead as far as
/// [`buffer_size`](Self::buffer_size) allows. Dropped, the items that have not begun are withdrawn;
/// those that run end, unless [`kill_on_drop`](Self::kill_on_drop) was asked for. A stream that has
/// begun and is held without being polled keeps [`Pool::join`](super::Pool::join) waiting.
///
/// If the input itself panics, the results of what was read before come first, then
/// [`NotStarted::Input`](crate::NotStarted::Input) once, then the end.
#[must_use = "streams do nothing unless polled"]
pub struct MapStream<R: Message> {
    state: State<R>,
    /// The pool lives as long as its streams.
    owner: Owner,
    /// Results that were taken over and not given out. Behind a lock that nobody takes, as they
    /// need not be `Sync`.
    here: Mutex<VecDeque<Item<R>>>,
}

/// Results are kept, but none is pinned.
impl<R: Message> Unpin for MapStream<R> {}

enum State<R: Message> {
    Idle(Box<Idle<R>>),
    Running(Box<Running<R>>),
    Over,
}

struct Idle<R> {
    call: Call,
    feed: Feed,
    ordered: bool,
    options: Options<R>,
}

struct Running<R: Message> {
    job: Arc<StreamJob<R>>,
    owner: Owner,
    kill_on_drop: bool,
    feeder: Option<Feeder>,
    /// How many items there are, and what ended them too early, once the input is read.
    end: Option<(u64, Option<TaskError>)>,
}

impl<R: Message> MapStream<R> {
    pub(super) fn new(owner: Owner, call: Call, feed: Feed, ordered: bool) -> Self {
        let idle = Idle { call, feed, ordered, options: Options::default() };
        Self { state: State::Idle(Box::new(idle)), owner, here: Mutex::default() }
    }

    fn with(mut self, set: impl FnOnce(&mut Options<R>)) -> Self {
        if let State::Idle(idle) = &mut self.state {
            set(&mut idle.options);
        }
        self
    }

    common_options!();
    retry_option!();

    /// How many items are read and handed over together, one by default. If a worker dies, only
    /// the item that it runs is lost, whatever the chunk.
    #[doc(alias = "chunksize")]
    pub fn chunk_size(self, items: usize) -> Self {
        self.with(|options| options.chunk_size = Some(items.max(1)))
    }

    /// How many items may be read and not given out yet, at least one. By default it is a few
    /// chunks for each worker, and more for items that take less than a millisecond.
    #[doc(alias = "buffersize")]
    pub fn buffer_size(self, items: usize) -> Self {
        self.with(|options| options.buffer_size = Some(items.max(1)))
    }

    /// The next result, if it is there in time; `None` after the last one.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it is not: nothing is lost, ask again. The item's own error.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    ///
    /// # Panics
    /// Outside of a Tokio runtime with time enabled: it is Tokio's clock that limits this wait.
    #[doc(alias = "next")]
    pub async fn next_timeout(&mut self, timeout: Duration) -> Result<Option<R>> {
        match tokio::time::timeout(timeout, self.next()).await {
            Ok(next) => Ok(next.transpose()?),
            Err(_) => Err(Error::Timeout),
        }
    }
}

impl<R: Message> Idle<R> {
    fn start(mut self: Box<Self>, owner: &Owner) -> State<R> {
        let spec = self.options.spec(&self.call);
        self.feed.chunk = self.options.chunk_size.unwrap_or(1);
        let arrivals = Arrivals { results: VecDeque::new(), ordered: self.ordered, taken: 0, waker: None };
        let job = Arc::new(StreamJob { spec, arrivals: Mutex::new(arrivals) });
        let feeder = Feeder::new(job.clone(), owner.clone(), self.feed, self.options.buffer_size);
        let (feeder, end) = match feeder {
            Ok(feeder) => (Some(feeder), None),
            Err(why) => (None, Some((0, Some(TaskError::NotStarted(why))))),
        };
        State::Running(Box::new(Running {
            job,
            owner: owner.clone(),
            kill_on_drop: self.options.kills_on_drop(&self.call),
            feeder,
            end,
        }))
    }
}

impl<R: Message> Running<R> {
    fn feed(&mut self, cx: &mut Context<'_>, held: usize) {
        let Some(feeder) = &mut self.feeder else { return };
        let given = || lock(&self.job.arrivals).taken.saturating_sub(held as u64);
        // Not for each single item, but in handfuls.
        if held > 0 && !feeder.is_hungry(feeder.next.saturating_sub(given())) {
            return;
        }
        if let Fed::Over(error) = feeder.poll(cx, given) {
            self.end = Some((feeder.next, error));
            self.feeder = None;
        }
    }
}

impl<R: Message> Stream for MapStream<R> {
    type Item = Item<R>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        let Self { state, owner, here } = self.get_mut();
        let here = here.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Idle(_) = state
            && let State::Idle(idle) = std::mem::replace(state, State::Over)
        {
            *state = idle.start(owner);
        }
        let State::Running(running) = state else { return Poll::Ready(None) };
        if here.is_empty() {
            lock(&running.job.arrivals).take(cx, here);
        }
        running.feed(cx, here.len());
        if here.is_empty() {
            // What was fed may have been refused at once.
            lock(&running.job.arrivals).take(cx, here);
        }
        if let Some(item) = here.pop_front() {
            coop.made_progress();
            return Poll::Ready(Some(item));
        }
        let taken = lock(&running.job.arrivals).taken;
        let Some((_, error)) = running.end.as_mut().filter(|(total, _)| *total == taken) else {
            return Poll::Pending;
        };
        coop.made_progress();
        let error = error.take();
        if error.is_none() {
            *state = State::Over;
        }
        Poll::Ready(error.map(Err))
    }
}

impl<R: Message> Drop for Running<R> {
    fn drop(&mut self) {
        let all = self.end.as_ref().map(|(total, _)| *total);
        if all != Some(lock(&self.job.arrivals).taken) {
            self.owner.shared().abort(self.job.clone(), self.kill_on_drop);
        }
    }
}

impl<R: Message> fmt::Debug for MapStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Idle(_) => "idle",
            State::Running(_) => "running",
            State::Over => "over",
        };
        f.debug_struct("MapStream").field("state", &state).finish_non_exhaustive()
    }
}
