//! A pool of worker processes.
//!
//! ```no_run
//! use tokio_multiprocess as mp;
//!
//! fn square(x: u64) -> u64 {
//!     x * x
//! }
//!
//! #[tokio::main]
//! async fn main() -> mp::Result<()> {
//!     let pool = mp::Pool::new(4).await?;
//!     let squares = pool.map(square, 0..1_000).await?;
//!     assert_eq!(squares[12], 144);
//!     let product = pool.apply(|a: u64, b: u64| a * b, (6, 7)).await?;
//!     assert_eq!(product, 42);
//!     Ok(())
//! }
//! ```
//!
//! A task is any function or closure without captures, sync or async: see [`Task`]. Each worker
//! runs one item at a time. What a worker's death costs is the item that it ran, and nothing else:
//! what it held beside is given to others. `README.md` beside the source says how.
//!
//! `main` does not run in a worker; what it sets up belongs in an
//! [`initializer`](PoolBuilder::initializer).

mod apply;
mod builder;
mod call;
mod channel;
mod drain;
mod feed;
mod feeder;
mod health;
mod host;
mod map;
mod memory;
mod output;
mod result;
mod scheduler;
mod shared;
mod stats;
mod stream;
mod supervisor;
mod task_stream;
mod wire;
mod worker;

use std::fmt;
use std::time::Duration;

use futures_core::Stream;

pub use self::apply::Apply;
pub use self::builder::PoolBuilder;
use self::call::Call;
pub use self::drain::DrainReport;
use self::feed::{Feed, Items, Piece, StreamItems};
pub use self::health::Health;
pub use self::map::Map;
pub use self::output::Output;
pub use self::result::AsyncResult;
use self::scheduler::Phase;
use self::shared::{Owner, Status};
pub use self::stats::{Ends, Quantiles, Stats, Waiting, Watch, WorkerState, WorkerStats};
pub use self::stream::MapStream;
pub use self::task_stream::TaskStream;
use crate::error::{Error, NotStarted, Result, TaskError};
use crate::function::{Outcome, Source, Task, TaskCode, source_entry, task_entry};
use crate::reduction::{Descriptor, Message, encode};
use crate::sys::image::Entry;
use crate::sys::socket::seqpacket_pair;

/// A pool of worker processes. Clones are handles of the same pool.
///
/// Any thread and any runtime may use it. It belongs to the runtime on which it was built: when
/// that ends, its workers are killed and what is pending fails. When the last handle is gone (a
/// call, a stream or a result that is being waited for counts as one) it is
/// [terminated](Self::terminate).
#[derive(Clone)]
pub struct Pool {
    owner: Owner,
}

impl Pool {
    /// A pool of so many workers with default settings.
    ///
    /// # Errors
    /// As [`PoolBuilder::build`].
    pub async fn new(processes: usize) -> Result<Self> {
        Self::builder().processes(processes).build().await
    }

    /// A pool in the making.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }

    /// Calls `f` in a worker. The arguments, one tuple, are encoded here and now.
    ///
    /// # Errors
    /// [`TaskError`] says why there is no value, and [whether the task ran](TaskError::ran).
    ///
    /// # Cancel safety
    /// See [`Apply`] for what dropping it does.
    #[doc(alias = "apply_async")]
    pub fn apply<F, A, M>(&self, f: F, args: A) -> Apply<F::Value>
    where
        F: Task<A, M>,
        A: Message,
        M: 'static,
    {
        Apply::new(self.owner.clone(), self.call(task_entry(f)), self.single(&args))
    }

    /// Calls `f` in a worker, and gives the many values that it returns as they come: those of an
    /// iterator or of a `Stream`. The first that is an `Err` ends it.
    ///
    /// ```
    /// use futures::StreamExt;
    /// use tokio_multiprocess as mp;
    ///
    /// fn primes(below: u32) -> impl Iterator<Item = u32> {
    ///     (2..below).filter(|n| (2..*n).all(|d| n % d != 0))
    /// }
    ///
    /// #[tokio::main]
    /// async fn main() -> mp::Result<()> {
    ///     let pool = mp::Pool::new(1).await?;
    ///     let mut primes = pool.stream(primes, (20,));
    ///     let mut sum = 0;
    ///     while let Some(prime) = primes.next().await {
    ///         sum += prime?;
    ///     }
    ///     assert_eq!(sum, 2 + 3 + 5 + 7 + 11 + 13 + 17 + 19);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Cancel safety
    /// Waiting for the next value loses nothing. See [`TaskStream`] for what dropping it does.
    pub fn stream<F, A, M>(&self, f: F, args: A) -> TaskStream<F::Item>
    where
        F: Source<A, M>,
        A: Message,
        M: 'static,
    {
        let (socket, args) = match seqpacket_pair() {
            Ok((ours, theirs)) => (Some(ours), self.single(&(Descriptor::new(theirs), args))),
            Err(error) => {
                let why = NotStarted::Unencodable(serde::ser::Error::custom(error));
                (None, Piece::Refused(TaskError::NotStarted(why)))
            }
        };
        TaskStream::new(Apply::new(self.owner.clone(), self.call(source_entry(f)), args), socket)
    }

    /// Calls `f` for each item, and gives the values in the order of the items.
    ///
    /// All items run, also if some fail; then the error is that of the first by position.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); [`NotStarted::Input`] if the iterator panics.
    ///
    /// # Cancel safety
    /// See [`Map`] for what dropping it does.
    #[doc(alias = "map_async")]
    pub fn map<F, I, R, M>(&self, f: F, items: I) -> Map<R::Value>
    where
        I: IntoIterator<IntoIter: Send + 'static, Item: Message>,
        F: Fn(I::Item) -> R + Copy + Send + Sync + 'static,
        R: Outcome<M>,
        M: 'static,
    {
        Map::new(
            self.owner.clone(),
            self.call(unary::<F, I::Item, R, M>(f)),
            self.items(items, |item| (item,)),
        )
    }

    /// Calls `f` for each tuple of arguments: [`map`](Self::map) for functions of several.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    ///
    /// # Cancel safety
    /// As [`map`](Self::map).
    #[doc(alias = "starmap_async")]
    pub fn starmap<F, I, M>(&self, f: F, tuples: I) -> Map<F::Value>
    where
        I: IntoIterator<IntoIter: Send + 'static, Item: Message>,
        F: Task<I::Item, M>,
        M: 'static,
    {
        Map::new(self.owner.clone(), self.call(task_entry(f)), self.items(tuples, |tuple| tuple))
    }

    /// Calls `f` for each item, and gives the results in the order of the items as they are
    /// wanted. The input is read as far ahead as [`buffer_size`](MapStream::buffer_size) says.
    pub fn imap<F, I, R, M>(&self, f: F, items: I) -> MapStream<R::Value>
    where
        I: IntoIterator<IntoIter: Send + 'static, Item: Message>,
        F: Fn(I::Item) -> R + Copy + Send + Sync + 'static,
        R: Outcome<M>,
        M: 'static,
    {
        self.results(self.call(unary::<F, I::Item, R, M>(f)), self.items(items, |item| (item,)), true)
    }

    /// As [`imap`](Self::imap), but the results come as they are there. One worker keeps the order.
    pub fn imap_unordered<F, I, R, M>(&self, f: F, items: I) -> MapStream<R::Value>
    where
        I: IntoIterator<IntoIter: Send + 'static, Item: Message>,
        F: Fn(I::Item) -> R + Copy + Send + Sync + 'static,
        R: Outcome<M>,
        M: 'static,
    {
        self.results(self.call(unary::<F, I::Item, R, M>(f)), self.items(items, |item| (item,)), false)
    }

    /// As [`imap`](Self::imap), for the items of a stream. What is there goes to the workers; a
    /// chunk does not wait for items that are not.
    pub fn map_stream<F, S, R, M>(&self, f: F, items: S) -> MapStream<R::Value>
    where
        S: Stream<Item: Message> + Send + 'static,
        F: Fn(S::Item) -> R + Copy + Send + Sync + 'static,
        R: Outcome<M>,
        M: 'static,
    {
        self.results(self.call(unary::<F, S::Item, R, M>(f)), self.stream_items(items), true)
    }

    /// As [`map_stream`](Self::map_stream), but the results come as they are there.
    pub fn map_stream_unordered<F, S, R, M>(&self, f: F, items: S) -> MapStream<R::Value>
    where
        S: Stream<Item: Message> + Send + 'static,
        F: Fn(S::Item) -> R + Copy + Send + Sync + 'static,
        R: Outcome<M>,
        M: 'static,
    {
        self.results(self.call(unary::<F, S::Item, R, M>(f)), self.stream_items(items), false)
    }

    /// Takes no new calls from now on; those that have begun, their futures polled or submitted,
    /// are run to their end. The workers end after that.
    pub fn close(&self) {
        self.owner.shared().with(|scheduler, now| scheduler.close(now));
    }

    /// Kills the workers, each with all that it has started, and waits for their end. Tasks that ran fail
    /// with [`TaskError::Aborted`], the others with [`NotStarted::Closed`].
    ///
    /// # Errors
    /// [`Error::NotChild`] in a process that was forked from the pool's own.
    ///
    /// # Cancel safety
    /// The kill comes with the first poll; what is cancelled is the waiting.
    pub async fn terminate(&self) -> Result<()> {
        let shared = self.owner.shared();
        shared.with(|scheduler, _| scheduler.terminate()).ok_or(Error::NotChild)?;
        self.status(|status| status.done).await;
        Ok(())
    }

    /// Waits until a closed or terminated pool has done all that it had to, and its workers have
    /// ended. Streams that have begun and are neither polled nor dropped keep it waiting.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] before [`close`](Self::close) or [`terminate`](Self::terminate);
    /// [`Error::NotChild`] in a process that was forked from the pool's own.
    ///
    /// # Cancel safety
    /// It can be called again.
    pub async fn join(&self) -> Result<()> {
        if self.owner.shared().phase().ok_or(Error::NotChild)? == Phase::Running {
            return Err(Error::invalid("the pool is still running: close or terminate it before `join`"));
        }
        self.status(|status| status.done).await;
        Ok(())
    }

    /// Waits until all workers that it wants at this time are ready, spares included: started, and
    /// their initializers done. A [lazy](PoolBuilder::lazy) pool wants them from then on.
    ///
    /// # Errors
    /// [`NotStarted::NoWorker`] if they cannot be, [`NotStarted::Closed`] if the pool ends;
    /// [`Error::NotChild`] in a process that was forked from the pool's own.
    ///
    /// # Cancel safety
    /// It can be called again.
    pub async fn ready(&self) -> Result<()> {
        self.owner.shared().with(|scheduler, _| scheduler.wake_up()).ok_or(Error::NotChild)?;
        self.until(|status| status.ready >= status.wanted).await
    }

    /// How many tasks may run at a time: the number of its workers, but for spares, and for those
    /// that an elastic pool has not started or has let go.
    pub fn processes(&self) -> usize {
        self.owner.shared().processes()
    }

    /// Lets so many tasks run at a time from now on. Missing workers are started; of those that are
    /// too many the idle ones end at once, the others when they have done what they run. The
    /// minimum of an [elastic](PoolBuilder::min_processes) pool stays, though at a time when this is
    /// less no more than this are kept; so do [spares](PoolBuilder::spares), unless they are as many
    /// as the workers by [default](PoolBuilder::fresh_worker_per_task).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is zero; [`Error::NotChild`] in a process that was forked
    /// from the pool's own.
    pub fn resize(&self, processes: usize) -> Result<()> {
        if processes == 0 {
            return Err(Error::invalid("`processes` must be at least 1"));
        }
        self.owner.shared().resize(processes).ok_or(Error::NotChild)
    }

    /// What can be expected of it at this moment. [`Health::Closed`] in a process that was forked
    /// from the pool's own.
    pub fn health(&self) -> Health {
        self.owner.shared().with(|scheduler, now| scheduler.health(now)).unwrap_or(Health::Closed)
    }

    /// What it does at this moment and has done so far. It reads what each worker's memory is from
    /// `/proc` on the caller's thread, which takes the longer the more processes tasks have started.
    ///
    /// # Errors
    /// [`Error::NotChild`] in a process that was forked from the pool's own.
    pub fn stats(&self) -> Result<Stats> {
        let (stats, _) = stats::collect(self.owner.shared(), None).ok_or(Error::NotChild)?;
        Ok(stats)
    }

    /// The same time and again: at once, then every so often by the kernel's clock, at most a
    /// thousand times a second. Its quantiles are of the tasks since the item before.
    ///
    /// It does not keep the pool: its last item tells of the pool's end. Items that are not taken
    /// are not made. It belongs to the runtime that polls it first, and ends with that.
    ///
    /// # Panics
    /// When polled outside of a runtime with I/O enabled.
    pub fn watch(&self, every: Duration) -> Watch {
        Watch::new(self.owner.shared().clone(), every)
    }

    /// The process ids of its workers at this moment. Each may be replaced at any time. Those of a
    /// pool that is [in-process](PoolBuilder::in_process) have none.
    pub fn worker_pids(&self) -> Vec<i32> {
        self.owner.shared().with(|scheduler, _| scheduler.pids()).unwrap_or_default()
    }

    async fn status(&self, is_it: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.owner.shared().status.subscribe();
        let found = status.wait_for(is_it).await;
        found.map(|status| status.clone()).expect("the sender lives as long as this pool")
    }

    /// Waits for a condition of a pool that goes on.
    async fn until(&self, is_it: impl Fn(&Status) -> bool) -> Result<()> {
        let shared = self.owner.shared();
        let mut changes = shared.status.subscribe();
        loop {
            changes.mark_unchanged();
            // Not what was published last: that may be older than what the caller did just now.
            let status = shared.current_status().ok_or(Error::NotChild)?;
            match status {
                status if is_it(&status) => return Ok(()),
                Status { broken: Some(why), .. } => {
                    return Err(TaskError::NotStarted(NotStarted::NoWorker(why)).into());
                }
                Status { done: true, .. } => return Err(TaskError::NotStarted(NotStarted::Closed).into()),
                _ => {}
            }
            changes.changed().await.expect("the sender lives as long as this pool");
        }
    }

    fn peer(&self) -> crate::reduction::Peer {
        self.owner.shared().peer
    }

    fn call(&self, entry: &'static Entry<TaskCode>) -> Call {
        let shared = self.owner.shared();
        Call::new(shared.next_job(), entry, self.peer(), shared.defaults)
    }

    fn single<A: serde::Serialize>(&self, args: &A) -> Piece {
        let mut buffer = vec![0; wire::ITEM_HEAD];
        match encode(args, &mut buffer, self.peer()) {
            Ok(attachments) => feed::single(buffer, attachments),
            Err(error) => Piece::Refused(TaskError::NotStarted(NotStarted::Unencodable(error))),
        }
    }

    fn items<I, A>(&self, items: I, args: fn(I::Item) -> A) -> Feed
    where
        I: IntoIterator<IntoIter: Send + 'static>,
        I::Item: 'static,
        A: Message,
    {
        self.feed(Items { items: items.into_iter(), args, peer: self.peer() })
    }

    fn stream_items<S: Stream<Item: Message> + Send + 'static>(&self, items: S) -> Feed {
        self.feed(StreamItems { items: Box::pin(items), args: |item| (item,), peer: self.peer() })
    }

    fn feed(&self, source: impl feed::Source + 'static) -> Feed {
        Feed::new(Box::new(source))
    }

    fn results<R: Message>(&self, call: Call, feed: Feed, ordered: bool) -> MapStream<R> {
        MapStream::new(self.owner.clone(), call, feed, ordered)
    }
}

/// The entry of a function of one argument that is known by what it does, so that closures need
/// not name their argument's type.
fn unary<F, T, R, M>(f: F) -> &'static Entry<TaskCode>
where
    F: Fn(T) -> R + Copy + Send + Sync + 'static,
    T: Message,
    R: Outcome<M>,
    M: 'static,
{
    task_entry::<F, (T,), _>(f)
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.owner.shared();
        f.debug_struct("Pool")
            .field("processes", &shared.processes())
            .field("state", &shared.phase())
            .field("workers", &self.worker_pids())
            .finish()
    }
}
