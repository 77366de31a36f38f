//! Process-based parallelism for Tokio: Python's `multiprocessing`, as objects that are awaited.
//!
//! Run a function in another process from async Rust. If it times out or crashes, it dies; with
//! `kill_on_drop` also when its caller leaves. Your service does not. **The death of any process at
//! any instant neither hangs, corrupts nor loses anything that belongs to the others.**
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
//!     let product = pool.apply(|a: u64, b: u64| a * b, (6, 7)).await?;
//!     assert_eq!((squares[9], product), (81, 42));
//!     Ok(())
//! }
//! ```
//!
//! # In the first minute
//!
//! - **A function is any `fn` or closure without captures**, sync or async, with up to eight
//!   arguments given as one tuple. Nothing is registered, `main` stays as it is. What a closure
//!   would capture is passed as an argument; the compiler refuses captures and says so.
//! - **`main` never runs in a child.** A child is recognised before `main`, so what `main` sets up
//!   (tracing, configuration, a runtime) is not there: do it in the pool's `initializer`, or pass
//!   it as an argument.
//! - **Arguments and results are messages**: whatever serde can write and read back. `&str` cannot
//!   be rebuilt on the other side; send a `String`. Large bytes travel as a [`Blob`], uncopied.
//! - **Sync code waits with [`block_on`]**, in a target or task, as async code does with `.await`.
//!
//! # From Python
//!
//! | Python | here |
//! |---|---|
//! | `Process(target=f, args=a).start()` | [`Process::builder(f, a)`](Process::builder)`.start().await?` |
//! | a subclass of `Process` with `run` | [`Run`] and [`Process::from_run`] |
//! | `p.join()`, `p.exitcode`, `p.sentinel` | [`Process::join`], [`exit_code`](Process::exit_code), [`sentinel`](Process::sentinel) |
//! | `get_context("spawn")` | [`Context::new`]`(`[`StartMethod::Spawn`]`)` |
//! | `set_start_method`, `set_executable`, `set_forkserver_preload` | the same names |
//! | `current_process()`, `parent_process()`, `active_children()` | the same names |
//! | `Pool(4)` | [`Pool::new`]`(4).await?` |
//! | `pool.apply_async(f, args)` | [`pool.apply(f, args)`](Pool::apply)`.submit()` |
//! | `pool.imap_unordered(f, xs)` | [`pool.imap_unordered(f, xs)`](Pool::imap_unordered), a stream |
//! | `Pipe()`, `Pipe(duplex=False)` | [`pipe()?`](pipe), [`simplex_pipe()?`](simplex_pipe) |
//! | `conn.send(x)`, `conn.recv()`, `conn.poll(1)` | [`Connection::send`], [`recv`](Connection::recv), [`poll_timeout`](Connection::poll_timeout) |
//! | `Listener(address, authkey=key)`, `Client(address, authkey=key)` | [`Listener::bind(address)`](Listener::bind)`.authkey(&key).await?`, [`Client::connect(address)`](Client::connect) likewise |
//! | `connection.wait(objects, timeout)` | [`wait`], [`wait_timeout`], and [`WaitSet`] for many |
//! | `Queue(10)`, `JoinableQueue()`, `SimpleQueue()` | [`Queue::new`]`(10)?`, [`JoinableQueue::new`]`(0)?`, [`SimpleQueue::new`]`()?` |
//! | `q.put(x)`, `q.get()`, `q.put_nowait(x)`, `q.get(timeout=1)` | [`q.put(x).await?`](Queue::put), [`q.get().await?`](Queue::get), [`q.try_put(x)?`](Queue::try_put), [`get_timeout`](Queue::get_timeout) |
//! | `q.join_thread()`, `q.cancel_join_thread()` | [`join_feeder`](Queue::join_feeder), [`cancel_join_feeder`](Queue::cancel_join_feeder) |
//! | functions in queues and messages | [`Func`] |
//! | `Lock()`, `with lock:` | [`Lock::new`]`()?`, `let guard = `[`lock.acquire().await?`](Lock::acquire); [`RLock`] likewise |
//! | `Semaphore(n)`, `BoundedSemaphore(n)` | [`Semaphore::new`]`(n)?`, [`BoundedSemaphore::new`]`(n)?` |
//! | `Event()`, `Condition(lock)`, `Barrier(n, action)` | [`Event::new`]`()?`, [`Condition::new`]`(lock)?`, [`Barrier::builder`]`(n)` |
//! | `Value("q", 0)`, `Array("d", 10)`, `RawValue`, `RawArray` | [`Value::new`]`(0_i64)?`, [`Array::new`]`(10)?`, [`RawValue`], [`RawArray`] |
//! | `SharedMemory(create=True, size=n)`, `ShareableList` | [`SharedMemory::create`]`(n)?`, [`ShareableList`] |
//! | `sys.exit(reason)` in a child | [`exit`] |
//! | `util.Finalize`, `register_after_fork` | [`util::Finalize`], [`register_after_fork`] |
//!
//! # Start methods
//!
//! | | [`Spawn`](StartMethod::Spawn), the default | [`ForkServer`](StartMethod::ForkServer) | [`Fork`](StartMethod::Fork) |
//! |---|---|---|---|
//! | the child is | this program, executed anew | a copy of a small server | a copy of this process |
//! | statics | as at program start | as preloaded | as they are here |
//! | other threads here | no matter | no matter | refused, unless vouched for |
//!
//! # For a service
//!
//! The guide [`docs::pool`] has a section, with an example that runs, on each thing that decides whether
//! one can bet a service on a pool: memory, killing for certain, state, streams, evidence, fairness,
//! size, insight, tests with faults. [`doctor()`] says what the machine lacks.
//!
//! # Between processes
//!
//! A [`pipe`] joins two processes, whichever they are: its ends are arguments and messages like any
//! other value, and move to whom they are sent. A [`Listener`] takes connections from processes that have
//! nothing in common with this one, CPython's among them (feature `python`). The module [`connection`]
//! says what each promises. Files and sockets travel as a [`Handle`].
//!
//! # Queues
//!
//! A [`Queue`] passes items from many processes to many, a [`JoinableQueue`] is told when they are done, and what a
//! [`SimpleQueue`] has taken survives who has put it. Whoever dies at whatever instant takes along what it had in
//! hand and nothing else. The guide [`docs::queue`] says which to take, and what each promises.
//!
//! # Locks and shared memory
//!
//! [`Lock`], [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`] and [`Barrier`] work between
//! any mix of tasks, threads and processes, and travel as arguments and in messages. Whoever dies with one in its
//! hands holds up nobody. [`Value`] and [`Array`] are plain data with a lock, [`RawValue`] and [`RawArray`] without
//! one; [`SharedMemory`] and [`ShareableList`] have names by which other programs find them.
//!
//! # Costs
//!
//! A child costs its parent two descriptors (its pidfd and a socket), and a pool's worker seven in
//! all; the soft limit of descriptors is raised to the hard one at the first start. A worker is two
//! processes: itself, and its guardian, which waits for its end. What is shared costs one descriptor in each
//! process, and a process that has to wait for such a thing one more for all of them.
//!
//! # Platforms
//!
//! Processes need 64-bit Linux 5.10 or newer. Elsewhere the crate compiles, and starting a process gives
//! [`Error::Unsupported`].

// On docs.rs, where the compiler is a nightly one: items say which feature they need. That processes need
// Linux is said above.
#![cfg_attr(docsrs, feature(doc_cfg), doc(auto_cfg(hide(multiprocess))))]

mod authkey;
mod bootstrap;
pub mod connection;
mod context;
mod control;
#[cfg(any(doc, doctest))]
pub mod docs;
pub mod doctor;
mod error;
mod fork;
mod forkserver;
mod function;
#[cfg(all(multiprocess, any(fuzzing, test)))]
#[doc(hidden)]
pub mod fuzz;
mod log;
mod pool;
mod process;
#[cfg(feature = "python")]
pub mod python;
mod queues;
mod reactor;
#[doc(alias = "reducer")]
pub mod reduction;
pub mod resource_tracker;
mod ring;
pub mod shared_memory;
mod sharedctypes;
mod spawn;
mod synchronize;
mod sys;
pub mod task;
pub mod testing;
pub mod util;

pub use async_trait::async_trait;
pub use authkey::AuthKey;
pub use bootstrap::{block_on, freeze_support, require_freeze_support};
pub use connection::{
    Address, Client, Connection, DigestPolicy, Family, Listener, RecvHalf, SendHalf, WaitKey, WaitSet,
    Waitable, pipe, simplex_pipe, wait, wait_timeout,
};
pub use context::{
    Context, OnPreloadError, StartMethod, allow_connection_pickling, get_all_start_methods, get_context,
    get_executable, get_start_method, set_executable, set_forkserver_preload, set_start_method,
};
pub use doctor::doctor;
pub use error::{
    Error, Failure, NotStarted, Ran, RemoteError, RemotePanic, Result, StartError, TaskError, WorkerDied,
};
pub use function::{Exit, Func, Load, Loaded, Outcome, Return, Source, Target, Task, Yields};
pub use log::{LogLevel, Logger, get_logger, log_to_stderr};
pub use pool::{
    Apply, AsyncResult, DrainReport, Ends, Health, Map, MapStream, Output, Pool, PoolBuilder, Quantiles,
    Stats, TaskStream, Waiting, Watch, WorkerState, WorkerStats,
};
pub use process::{
    CurrentProcess, ExitReason, ExitStatus, JoinHandle, ParentProcess, Process, ProcessBuilder, Run,
    Sentinel, active_children, cpu_count, current_process, exit, parent_process, spawn, usable_cpu_count,
};
pub use queues::{
    GetError, JoinableQueue, Permit, PutError, PutErrorKind, Queue, QueueSink, QueueStream, SimpleQueue,
    SinkError,
};
#[cfg(multiprocess)]
pub use reduction::handle::Handle;
pub use reduction::{Blob, Message};
pub use shared_memory::{ShareableList, ShareableValue, SharedMemory, SharedMemoryBuilder};
pub use sharedctypes::{
    Array, ArrayGuard, Integer, RawArray, RawValue, Value, ValueGuard, copy, synchronized,
    synchronized_with_lock,
};
pub use synchronize::{
    Barrier, BarrierBuilder, BoundedSemaphore, Condition, ConditionGuard, ConditionLock, Event, Lock,
    LockGuard, OwnedLockGuard, OwnedSemaphoreGuard, RLock, RLockGuard, Semaphore, SemaphoreGuard,
};
pub use util::register_after_fork;

#[doc(hidden)]
pub mod __private {
    pub use crate::function::Registration;
    pub use inventory;
}
