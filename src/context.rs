//! Start methods, and the context that carries one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;

use bytemuck::Pod;
use serde::{Deserialize, Serialize};

use crate::connection::{Connection, RecvHalf, SendHalf};
use crate::error::{Error, Result};
use crate::function::{Func, Target};
use crate::pool::PoolBuilder;
use crate::process::ProcessBuilder;
use crate::queues::{JoinableQueue, Queue, SimpleQueue};
use crate::reduction::Message;
use crate::sharedctypes::{Array, RawArray, RawValue, Value};
use crate::synchronize::{
    Barrier, BarrierBuilder, BoundedSemaphore, Condition, ConditionLock, Event, Lock, RLock, Semaphore,
};
use crate::sys::per_process::PerProcess;
use crate::util::lock;

/// How a child process comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StartMethod {
    /// Executes this program anew: the child shares nothing with its parent. The default.
    Spawn,
    /// A server process, started once, forks each child: as clean as `Spawn` but faster, and what
    /// preloaded functions set up is shared copy-on-write.
    ForkServer,
    /// Copies this process, statics and all.
    Fork,
}

impl fmt::Display for StartMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Spawn => "spawn",
            Self::ForkServer => "forkserver",
            Self::Fork => "fork",
        })
    }
}

impl FromStr for StartMethod {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "spawn" => Ok(Self::Spawn),
            "forkserver" => Ok(Self::ForkServer),
            "fork" => Ok(Self::Fork),
            _ => Err(Error::invalid(format!("no start method `{name}`: spawn, forkserver or fork"))),
        }
    }
}

/// A start method to make processes with. Every constructor of this crate is also a method here.
///
/// The default context takes the process-wide method when it is first used: see
/// [`set_start_method`].
///
/// ```no_run
/// use tokio_multiprocess as mp;
/// # async fn demo() -> mp::Result<()> {
/// let ctx = mp::Context::new(mp::StartMethod::ForkServer);
/// let child = ctx.process(|name: String| println!("hello {name}"), ("bob".to_owned(),)).start().await?;
/// child.join().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    method: Option<StartMethod>,
    vouched: bool,
}

impl Context {
    /// A context with a start method of its own.
    pub fn new(method: StartMethod) -> Self {
        Self { method: Some(method), vouched: false }
    }

    /// A context that forks although other threads run in this process.
    ///
    /// # Safety
    /// In the child only the forking thread goes on. A lock that another thread held at that
    /// instant (std's, the allocator's if it does not handle forks, one of a C library) stays
    /// locked there for ever, and data it guarded may be half-written. The caller vouches that
    /// neither the target nor what it uses takes such a lock or relies on such data. glibc's
    /// allocator and stdio handle forks.
    #[allow(unsafe_code, reason = "the promise is the caller's, and `unsafe` is how Rust says so")]
    pub unsafe fn fork_with_threads() -> Self {
        Self { method: Some(StartMethod::Fork), vouched: true }
    }

    /// The start method that children of this context get. Fixes the default context's.
    pub fn start_method(&self) -> StartMethod {
        self.method.unwrap_or_else(|| *lock(DEFAULT.get()).get_or_insert(StartMethod::Spawn))
    }

    /// The default context's start method if it is fixed, without fixing it; this context's own
    /// if it has one. Python's `get_start_method(allow_none=True)`.
    pub fn start_method_if_set(&self) -> Option<StartMethod> {
        self.method.or_else(|| *lock(DEFAULT.get()))
    }

    /// Sets the default context's method, as the free function does.
    ///
    /// # Errors
    /// [`Error::ContextSet`] on a context with a method of its own, which cannot be changed.
    pub fn set_start_method(&self, method: impl Into<Option<StartMethod>>, force: bool) -> Result<()> {
        match self.method {
            Some(own) => Err(Error::ContextSet(own)),
            None => set_start_method(method, force),
        }
    }

    /// This context for `None`, else one with the method.
    pub fn get_context(&self, method: impl Into<Option<StartMethod>>) -> Self {
        method.into().map_or_else(|| self.clone(), Self::new)
    }

    /// A process in the making: [`Process::builder`](crate::Process::builder) with this context.
    pub fn process<F, A, M>(&self, target: F, args: A) -> ProcessBuilder
    where
        F: Target<A, M>,
        A: Message,
        M: 'static,
    {
        ProcessBuilder::new(target, args).context(self.clone())
    }

    /// A pool in the making: [`Pool::builder`](crate::Pool::builder) with this context.
    pub fn pool(&self) -> PoolBuilder {
        PoolBuilder::new().context(self.clone())
    }

    /// Two connected ends: [`pipe`](crate::pipe). No start method makes a difference to it.
    pub fn pipe(&self) -> Result<(Connection, Connection)> {
        crate::pipe()
    }

    /// An end that receives and one that sends: [`simplex_pipe`](crate::simplex_pipe).
    pub fn simplex_pipe(&self) -> Result<(RecvHalf, SendHalf)> {
        crate::simplex_pipe()
    }

    /// A lock: [`Lock::new`](crate::Lock::new). No start method makes a difference to it, nor to what follows.
    pub fn lock(&self) -> Result<Lock> {
        Lock::new()
    }

    /// A lock that its holder may take again: [`RLock::new`](crate::RLock::new).
    pub fn rlock(&self) -> Result<RLock> {
        RLock::new()
    }

    /// A semaphore: [`Semaphore::new`](crate::Semaphore::new).
    pub fn semaphore(&self, permits: usize) -> Result<Semaphore> {
        Semaphore::new(permits)
    }

    /// A semaphore with a bound: [`BoundedSemaphore::new`](crate::BoundedSemaphore::new).
    pub fn bounded_semaphore(&self, permits: usize) -> Result<BoundedSemaphore> {
        BoundedSemaphore::new(permits)
    }

    /// A condition: [`Condition::new`](crate::Condition::new).
    pub fn condition(&self, lock: impl Into<ConditionLock>) -> Result<Condition> {
        Condition::new(lock)
    }

    /// An event: [`Event::new`](crate::Event::new).
    pub fn event(&self) -> Result<Event> {
        Event::new()
    }

    /// A barrier in the making: [`Barrier::builder`](crate::Barrier::builder).
    pub fn barrier(&self, parties: usize) -> BarrierBuilder {
        Barrier::builder(parties)
    }

    /// A value with a lock: [`Value::new`](crate::Value::new).
    pub fn value<T: Pod>(&self, value: T) -> Result<Value<T>> {
        Value::new(value)
    }

    /// Values with a lock, all zero: [`Array::new`](crate::Array::new).
    pub fn array<T: Pod>(&self, len: usize) -> Result<Array<T>> {
        Array::new(len)
    }

    /// A value: [`RawValue::new`](crate::RawValue::new).
    pub fn raw_value<T: Pod>(&self, value: T) -> Result<RawValue<T>> {
        RawValue::new(value)
    }

    /// Values, all zero: [`RawArray::new`](crate::RawArray::new).
    pub fn raw_array<T: Pod>(&self, len: usize) -> Result<RawArray<T>> {
        RawArray::new(len)
    }

    /// A queue of so many slots, or, with 0, any number: [`Queue::new`](crate::Queue::new).
    pub fn queue<T: Message>(&self, max: usize) -> Result<Queue<T>> {
        Queue::new(max)
    }

    /// A queue whose items are acknowledged: [`JoinableQueue::new`](crate::JoinableQueue::new).
    pub fn joinable_queue<T: Message>(&self, max: usize) -> Result<JoinableQueue<T>> {
        JoinableQueue::new(max)
    }

    /// A queue without a feeder: [`SimpleQueue::new`](crate::SimpleQueue::new).
    pub fn simple_queue<T: Message>(&self) -> Result<SimpleQueue<T>> {
        SimpleQueue::new()
    }

    pub(crate) fn vouched(&self) -> bool {
        self.vouched
    }
}

/// What is set once for the whole process.
static DEFAULT: PerProcess<Mutex<Option<StartMethod>>> = PerProcess::new(Mutex::default);
static EXECUTABLE: PerProcess<Mutex<Option<PathBuf>>> = PerProcess::new(Mutex::default);
static PRELOAD: PerProcess<Mutex<Preload>> = PerProcess::new(Mutex::default);

/// The default context, or one with the method given.
pub fn get_context(method: impl Into<Option<StartMethod>>) -> Context {
    Context::default().get_context(method)
}

/// Sets the start method of the default context; `None` lets it be chosen again at the next use.
///
/// # Errors
/// [`Error::ContextSet`] if it is set already, by this function or by first use, and `force` is
/// false.
pub fn set_start_method(method: impl Into<Option<StartMethod>>, force: bool) -> Result<()> {
    let mut default = lock(DEFAULT.get());
    match *default {
        Some(set) if !force => Err(Error::ContextSet(set)),
        _ => {
            *default = method.into();
            Ok(())
        }
    }
}

/// The default context's start method, which this fixes; with `allow_none`, `None` if it is not
/// fixed yet.
pub fn get_start_method(allow_none: bool) -> Option<StartMethod> {
    let context = Context::default();
    if allow_none { context.start_method_if_set() } else { Some(context.start_method()) }
}

/// The start methods that this platform has, the default first.
pub fn get_all_start_methods() -> &'static [StartMethod] {
    if cfg!(multiprocess) { &[StartMethod::Spawn, StartMethod::ForkServer, StartMethod::Fork] } else { &[] }
}

/// Which program children of `spawn` and of the fork server run; by default this one, by its
/// inode, even if its file was replaced meanwhile.
///
/// Another build than this one must link this crate as well, and find its functions by name: see
/// [`register!`](crate::register). A missing or foreign program is an error when a child starts.
pub fn set_executable(program: impl AsRef<Path>) {
    *lock(EXECUTABLE.get()) = Some(program.as_ref().to_owned());
}

/// What [`set_executable`] chose, if it was called.
pub fn get_executable() -> Option<PathBuf> {
    lock(EXECUTABLE.get()).clone()
}

/// Does nothing: handles can always be sent in messages here. Python has had to ask for it once,
/// and programs that are carried over may.
pub fn allow_connection_pickling() {}

/// What the fork server does when a preloaded function fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OnPreloadError {
    /// Goes on with the next one and says nothing, as Python does.
    #[default]
    Ignore,
    /// Goes on, with a line on stderr.
    Warn,
    /// Ends, so that starting a child is an error.
    Fail,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Preload {
    pub(crate) functions: Vec<Func<(), ()>>,
    pub(crate) on_error: OnPreloadError,
}

/// Functions that the fork server runs once, before its first child: what they load into statics
/// is shared with every child, copy-on-write. Takes effect when the server is next started.
///
/// A preloaded function may open files, which children then have; it must leave no thread behind:
/// a server with more than one thread refuses to start, as a fork would not copy the others.
pub fn set_forkserver_preload(functions: impl IntoIterator<Item = Func<(), ()>>, on_error: OnPreloadError) {
    *lock(PRELOAD.get()) = Preload { functions: functions.into_iter().collect(), on_error };
}

pub(crate) fn preload() -> Preload {
    lock(PRELOAD.get()).clone()
}

/// Takes over what a child has from its parent.
pub(crate) fn inherit(method: StartMethod, executable: Option<PathBuf>) {
    *lock(DEFAULT.get()) = Some(method);
    *lock(EXECUTABLE.get()) = executable;
}
