//! Submits a job's input little by little, so that neither memory nor its poller's time runs out.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio_util::sync::PollSemaphore;

use super::feed::{Feed, Piece, Stopped};
use super::scheduler::Run;
use super::shared::{Job, Owner};
use crate::error::{NotStarted, TaskError};
use crate::sys;

/// How long one poll may read input, in nanoseconds.
const TURN: u64 = 100_000;
/// So many runs are submitted under one lock.
const BATCH: usize = 64;
/// Encoded input that waits or runs stays near this, in bytes.
const WINDOW_BYTES: u64 = 4 << 20;

/// Where feeding stands.
#[derive(Debug)]
pub(super) enum Fed {
    /// All input was submitted, or it panicked.
    Over(Option<TaskError>),
    /// Enough is on its way; more is wanted once no more than so many items are.
    Enough(u64),
    /// Whoever polls will be woken for more.
    Later,
}

pub(super) struct Feeder {
    job: Arc<dyn Job>,
    owner: Owner,
    feed: Feed,
    /// How many items were read.
    pub(super) next: u64,
    bytes: u64,
    /// The length of the longest run so far.
    run: u64,
    window: u64,
    /// A look-ahead that the caller has chosen.
    fixed: Option<u64>,
    permits: Option<PollSemaphore>,
    runs: Vec<Run<Arc<dyn Job>>>,
    failure: Option<TaskError>,
}

impl Feeder {
    /// # Errors
    /// If the pool takes no new jobs.
    pub(super) fn new(
        job: Arc<dyn Job>,
        owner: Owner,
        feed: Feed,
        fixed: Option<usize>,
    ) -> Result<Self, NotStarted> {
        owner.shared().begin_job()?;
        let permits = owner.shared().permits().map(PollSemaphore::new);
        let fixed = fixed.map(|fixed| fixed as u64);
        Ok(Self {
            job,
            owner,
            feed,
            next: 0,
            bytes: 0,
            run: 1,
            window: 0,
            fixed,
            permits,
            runs: Vec::new(),
            failure: None,
        })
    }

    /// Whether so many items on their way leave room for so many more that it is worth while.
    pub(super) fn is_hungry(&self, outstanding: u64) -> bool {
        outstanding <= self.window() / 2
    }

    fn window(&self) -> u64 {
        self.fixed.unwrap_or_else(|| {
            // A few runs for each worker, or what fast workers can use, but not too many bytes.
            let runs = 4 * self.run * self.owner.shared().processes() as u64;
            let affordable = WINDOW_BYTES / (self.bytes / self.next.max(1)).max(1);
            self.window.min(affordable).max(runs)
        })
    }

    /// Reads and submits until `done` items leave enough outstanding.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, done: impl Fn() -> u64) -> Fed {
        let begin = sys::fd::monotonic_ns();
        loop {
            let fed = self.poll_batch(cx, &done);
            if !self.runs.is_empty() {
                self.window = self.owner.shared().submit(&mut self.runs);
            }
            match fed {
                None if sys::fd::monotonic_ns() - begin < TURN => {}
                None => {
                    cx.waker().wake_by_ref();
                    return Fed::Later;
                }
                Some(fed) => return fed,
            }
        }
    }

    fn poll_batch(&mut self, cx: &mut Context<'_>, done: impl Fn() -> u64) -> Option<Fed> {
        while self.runs.len() < BATCH {
            if self.poll_pieces(cx).is_pending() {
                return Some(Fed::Later);
            }
            if self.feed.is_over() {
                return Some(Fed::Over(self.failure.take()));
            }
            let (outstanding, window) = (self.next.saturating_sub(done()), self.window());
            if outstanding >= window {
                return Some(Fed::Enough(window / 2));
            }
            match self.feed.read(cx, (window - outstanding) as usize) {
                Stopped::Full | Stopped::End => {}
                Stopped::Waiting if self.feed.pieces.is_empty() => return Some(Fed::Later),
                Stopped::Waiting => {}
                Stopped::Panicked(message) => {
                    self.failure = Some(TaskError::NotStarted(NotStarted::Input(message)))
                }
            }
        }
        None
    }

    /// Numbers what was read, as far as the pool's limit lets it in.
    fn poll_pieces(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(piece) = self.feed.pieces.first() {
            if let (Some(permits), Piece::Run { .. }) = (&mut self.permits, piece) {
                // The pool gives the permit back when the run leaves its queue.
                if let Some(permit) = ready!(permits.poll_acquire(cx)) {
                    permit.forget();
                }
            }
            let first = self.next;
            match self.feed.pieces.remove(0) {
                Piece::Run { count, body } => {
                    self.next += u64::from(count);
                    self.run = self.run.max(u64::from(count));
                    self.bytes += body.items.len() as u64;
                    self.runs.push(Run::new(self.job.clone(), first, count, body));
                }
                Piece::Refused(error) => {
                    self.next += 1;
                    let mut wakers = Vec::new();
                    self.job.lose(first..self.next, error, &mut wakers);
                    wakers.into_iter().for_each(std::task::Waker::wake);
                }
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.owner.shared().end_job();
    }
}
