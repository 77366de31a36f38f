//! A function over all items, and their values in one vector.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use super::call::{Call, Options, common_options, retry_option};
use super::feed::Feed;
use super::feeder::{Fed, Feeder};
use super::result::{AsyncResult, Settles, Slot};
use super::scheduler::Spec;
use super::shared::{Job, Owner};
use super::wire::Answer;
use crate::error::{NotStarted, TaskError};
use crate::reduction::Message;
use crate::util::lock;

struct MapJob<R> {
    spec: Spec,
    slot: Slot<Vec<R>>,
    state: Mutex<Progress<R>>,
}

struct Progress<R> {
    values: Vec<Option<R>>,
    answered: u64,
    /// How many items there are, once that is known.
    total: Option<u64>,
    /// The first error by position.
    error: Option<(u64, TaskError)>,
    /// The feeder, and how few items must be outstanding before it goes on.
    feeder: Option<(u64, Waker)>,
    fed: u64,
    /// The rest of the input is not to be read.
    abandoned: bool,
}

impl<R> Progress<R> {
    fn put(&mut self, index: u64, result: Result<R, TaskError>) {
        self.answered += 1;
        match result {
            Ok(value) => {
                let index = index as usize;
                if self.values.len() <= index {
                    self.values.resize_with(index + 1, || None);
                }
                self.values[index] = Some(value);
            }
            Err(error) => self.fail(index, error),
        }
    }

    fn fail(&mut self, index: u64, error: TaskError) {
        if self.error.as_ref().is_none_or(|(first, _)| index < *first) {
            self.error = Some((index, error));
        }
    }

    /// All values and the error, if this was the last that it waited for.
    fn finish(&mut self) -> Option<(Vec<Option<R>>, Option<TaskError>)> {
        (self.total == Some(self.answered))
            .then(|| (std::mem::take(&mut self.values), self.error.take().map(|(_, error)| error)))
    }
}

impl<R: Message> MapJob<R> {
    /// Notes progress, and tells whoever waits for it.
    fn update(&self, wakers: &mut Vec<Waker>, note: impl FnOnce(&mut Progress<R>)) {
        let mut progress = lock(&self.state);
        note(&mut progress);
        let outstanding = progress.fed.saturating_sub(progress.answered);
        wakers.extend(progress.feeder.take_if(|(few, _)| outstanding <= *few).map(|(_, waker)| waker));
        let finished = progress.finish();
        drop(progress);
        if let Some((values, error)) = finished {
            let result = error.map_or_else(|| Ok(values.into_iter().flatten().collect()), Err);
            wakers.extend(self.slot.settle(result));
        }
    }

    /// Says how many items there were, and what ended them too early.
    fn close(&self, total: u64, error: Option<TaskError>) {
        let mut wakers = Vec::new();
        self.update(&mut wakers, |progress| {
            progress.total = Some(total);
            if let Some(error) = error {
                progress.fail(total, error);
            }
        });
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<R: Message> Job for MapJob<R> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn answer(&self, answers: &mut dyn Iterator<Item = Answer<'_>>, wakers: &mut Vec<Waker>) {
        // Foreign code decodes, and may look at this very map.
        let results: Vec<_> = answers.map(|answer| (answer.index, answer.decode())).collect();
        self.update(wakers, |progress| {
            results.into_iter().for_each(|(index, result)| progress.put(index, result))
        });
    }

    fn lose(&self, items: Range<u64>, error: TaskError, wakers: &mut Vec<Waker>) {
        self.update(wakers, |progress| items.for_each(|index| progress.put(index, Err(error.clone()))));
    }
}

impl<R: Message> Settles<Vec<R>> for MapJob<R> {
    fn slot(&self) -> &Slot<Vec<R>> {
        &self.slot
    }

    fn abandon(&self) {
        let mut progress = lock(&self.state);
        progress.abandoned = true;
        let feeder = progress.feeder.take();
        drop(progress);
        if let Some((_, waker)) = feeder {
            waker.wake();
        }
    }
}

/// Feeds a map until its input ends.
struct Driver<R: Message> {
    job: Arc<MapJob<R>>,
    feeder: Option<Feeder>,
}

impl<R: Message> Driver<R> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { job, feeder: Some(feeder) } = self else { return Poll::Ready(()) };
        loop {
            let abandoned = lock(&job.state).abandoned;
            let fed = if abandoned {
                Fed::Over(Some(TaskError::Aborted { began: false }))
            } else {
                feeder.poll(cx, || lock(&job.state).answered)
            };
            match fed {
                Fed::Over(error) => {
                    job.close(feeder.next, error);
                    self.feeder = None;
                    return Poll::Ready(());
                }
                Fed::Enough(few) => {
                    let mut progress = lock(&job.state);
                    progress.fed = feeder.next;
                    if progress.abandoned {
                        continue;
                    }
                    if progress.fed.saturating_sub(progress.answered) > few {
                        progress.feeder = Some((few, cx.waker().clone()));
                        return Poll::Pending;
                    }
                }
                Fed::Later => return Poll::Pending,
            }
        }
    }
}

impl<R: Message> Drop for Driver<R> {
    /// An input that nobody reads to its end must not leave anybody waiting.
    fn drop(&mut self) {
        if let Some(feeder) = &self.feeder {
            self.job.close(feeder.next, Some(TaskError::NotStarted(NotStarted::Closed)));
        }
    }
}

/// A function over all items: see [`Pool::map`](super::Pool::map).
///
/// Nothing happens before it is awaited or [submitted](Self::submit). While it is polled the input
/// is read little by little, as workers need it. Dropped, the items that have not begun are
/// withdrawn; those that run end, unless [`kill_on_drop`](Self::kill_on_drop) was asked for.
#[must_use = "a map does nothing unless awaited or submitted"]
pub struct Map<R: Message> {
    state: State<R>,
}

enum State<R: Message> {
    Idle(Box<Idle<R>>),
    Running { driver: Box<Driver<R>>, owner: Owner, kill_on_drop: bool },
    Moved,
}

struct Idle<R> {
    owner: Owner,
    call: Call,
    feed: Feed,
    options: Options<Vec<R>>,
}

impl<R: Message> Map<R> {
    pub(super) fn new(owner: Owner, call: Call, feed: Feed) -> Self {
        Self { state: State::Idle(Box::new(Idle { owner, call, feed, options: Options::default() })) }
    }

    fn with(mut self, set: impl FnOnce(&mut Options<Vec<R>>)) -> Self {
        if let State::Idle(idle) = &mut self.state {
            set(&mut idle.options);
        }
        self
    }

    common_options!();
    retry_option!();

    /// How many items are read and handed over together, at least one. By default a quarter of a
    /// worker's share if the input knows its length, as in Python, and 16 otherwise. If a worker
    /// dies, only the item that it runs is lost, whatever the chunk.
    #[doc(alias = "chunksize")]
    pub fn chunk_size(self, items: usize) -> Self {
        self.with(|options| options.chunk_size = Some(items.max(1)))
    }

    /// Runs with the values before anybody gets them. It should be quick: the pool's supervisor, or
    /// whoever finds out, runs it. A panic in it is caught and logged.
    pub fn callback(self, callback: impl FnOnce(&Vec<R>) + Send + 'static) -> Self {
        self.with(|options| options.callbacks().value = Some(Box::new(callback)))
    }

    /// As [`callback`](Self::callback), with the error.
    pub fn error_callback(self, callback: impl FnOnce(&TaskError) + Send + 'static) -> Self {
        self.with(|options| options.callbacks().error = Some(Box::new(callback)))
    }

    /// Starts now, to be waited for later: a task on the pool's runtime reads the input.
    #[doc(alias = "map_async")]
    pub fn submit(mut self) -> AsyncResult<Vec<R>> {
        self.start();
        match std::mem::replace(&mut self.state, State::Moved) {
            State::Running { mut driver, owner, kill_on_drop } => {
                let job = driver.job.clone();
                owner.shared().runtime.spawn(std::future::poll_fn(move |cx| driver.poll(cx)));
                AsyncResult::new(job, owner, kill_on_drop)
            }
            State::Idle(_) | State::Moved => unreachable!("it was started just now"),
        }
    }

    fn start(&mut self) {
        if let State::Idle(_) = self.state
            && let State::Idle(idle) = std::mem::replace(&mut self.state, State::Moved)
        {
            self.state = idle.start();
        }
    }
}

impl<R: Message> Idle<R> {
    fn start(mut self: Box<Self>) -> State<R> {
        let spec = self.options.spec(&self.call);
        let items = self.feed.at_least();
        self.feed.chunk = self.options.chunk_size.unwrap_or_else(|| match items {
            0 => 16,
            // Smaller than the longest run anyway, so that input is read as it is needed.
            items => items.div_ceil(4 * self.owner.shared().processes()).min(4096),
        });
        let progress = Progress {
            values: Vec::new(),
            answered: 0,
            total: None,
            error: None,
            feeder: None,
            fed: 0,
            abandoned: false,
        };
        let kill_on_drop = self.options.kills_on_drop(&self.call);
        let slot = Slot::new(self.options.into_callbacks());
        let job = Arc::new(MapJob { spec, slot, state: Mutex::new(progress) });
        let feeder = match Feeder::new(job.clone(), self.owner.clone(), self.feed, None) {
            Ok(feeder) => Some(feeder),
            Err(why) => {
                job.close(0, Some(TaskError::NotStarted(why)));
                None
            }
        };
        let driver = Box::new(Driver { job, feeder });
        State::Running { driver, owner: self.owner, kill_on_drop }
    }
}

impl<R: Message> Future for Map<R> {
    type Output = Result<Vec<R>, TaskError>;

    /// # Panics
    /// When the result was taken already.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        self.start();
        let State::Running { driver, .. } = &mut self.state else { unreachable!("it was started just now") };
        // The feeder waits for room, the slot for the result: either wakes this task.
        let _ = driver.poll(cx);
        let result = ready!(driver.job.slot.poll_take(cx));
        coop.made_progress();
        Poll::Ready(result)
    }
}

impl<R: Message> Drop for Map<R> {
    fn drop(&mut self) {
        if let State::Running { driver, owner, kill_on_drop } = &mut self.state
            && !driver.job.slot.is_settled()
        {
            owner.shared().abort(driver.job.clone(), *kill_on_drop);
        }
    }
}

impl<R: Message> fmt::Debug for Map<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let submitted = !matches!(self.state, State::Idle(_));
        f.debug_struct("Map").field("submitted", &submitted).finish_non_exhaustive()
    }
}
