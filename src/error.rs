//! Errors: one for each thing that can be told apart, and [`Error`], into which all convert.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::reduction::CodecError;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of this crate.
///
/// Match on it, or ask its predicates: they go on working when variants are added. Its `Debug` is
/// its message, as that is what a `main` that returns it prints.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The time allowed ran out; nothing was consumed.
    #[error("timed out")]
    Timeout,
    /// The object was closed on this side.
    #[error("{0} is closed")]
    Closed(&'static str),
    /// The process has not ended yet.
    #[error("process {0} is still running")]
    StillRunning(i32),
    /// A process cannot wait for itself.
    #[error("a process cannot join itself")]
    JoinSelf,
    /// Only the process that started a child can wait for it or end it.
    #[error("only the process that started a child can do this")]
    NotChild,
    /// A daemon, which a pool's worker is too, tried to start a child.
    #[error("daemonic processes are not allowed to have children")]
    DaemonicChild,
    /// A process was started before its own start had finished.
    #[error(
        "this process is itself still starting: a child may start processes only once its target \
         runs; without the `init-hook` feature, call `freeze_support()` first thing in `main`"
    )]
    Bootstrapping,
    /// A child did not come to run its target.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A value could not be written for another process. Nothing was sent.
    #[error("cannot encode: {0}")]
    Encode(#[source] CodecError),
    /// An argument outside of what the function takes.
    #[error("{0}")]
    InvalidArgument(String),
    /// The default start method was already fixed, by use or by an earlier call.
    #[error("the start method is already set to {0}; use `force` to change it")]
    ContextSet(crate::StartMethod),
    /// Processes need Linux.
    #[error("starting processes is not supported on this platform")]
    Unsupported,
    /// A task did not return its value.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The peer could not be authenticated.
    #[error(transparent)]
    Authentication(crate::connection::AuthError),
    /// The peer is gone, and all that it has sent was received.
    #[error("the connection has ended")]
    Eof,
    /// The message is longer than the buffer given for it. Here it is, whole: it will not be received
    /// again.
    #[error("the message has {} bytes, more than there was room for", .0.len())]
    BufferTooShort(bytes::Bytes),
    /// The message is longer than the connection's maximum.
    #[error("a message of {len} bytes is over the maximum of {max}")]
    TooLong {
        /// Its length in bytes.
        len: u64,
        /// What is allowed, in bytes.
        max: usize,
    },
    /// A message arrived that is not what was asked for. It is gone; the next one can be received.
    #[error("cannot decode: {0}")]
    Decode(#[source] CodecError),
    /// What arrived is no message.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// Whoever calls this does not hold it, or holds it by a guard, which gives it back itself.
    #[error("it is not held by whoever calls this, or by a guard, which gives it back itself")]
    NotOwner,
    /// Given back more often than it was taken.
    #[error("released more often than acquired")]
    TooManyReleases,
    /// The barrier was broken: by a process that died, a wait that timed out, or `abort`.
    #[error("the barrier is broken")]
    BrokenBarrier,
    /// A queue has no slot free, or had none within the time allowed.
    #[error("the queue is full")]
    Full,
    /// A queue has no item, or had none within the time allowed.
    #[error("the queue is empty")]
    Empty,
    /// A queue was shut down, by whichever process.
    #[error("the queue was shut down")]
    ShutDown,
    /// More items were acknowledged than were got.
    #[error("task_done was called more often than items were got")]
    TooManyTaskDone,
    /// SIGINT arrived during [`block_on`](crate::block_on).
    #[error("interrupted by SIGINT")]
    Interrupted,
}

impl Error {
    /// The time allowed ran out: of a wait, after which one may wait again, or of a task, which is
    /// final ([`Error::Task`]).
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout | Self::Task(TaskError::TimedOut) => true,
            Self::Io(e) => e.kind() == io::ErrorKind::TimedOut,
            Self::Start(e) => matches!(e, StartError::Deadline(_)),
            _ => false,
        }
    }

    /// The object was closed on this side.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_) | Self::Task(TaskError::NotStarted(NotStarted::Closed)))
    }

    /// A queue was shut down: nothing is put any more, or all is got.
    pub fn is_shut_down(&self) -> bool {
        matches!(self, Self::ShutDown)
    }

    /// For an interface that knows these alone.
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Self::Io(error) => error,
            Self::Eof => io::ErrorKind::UnexpectedEof.into(),
            error @ (Self::TooLong { .. } | Self::Malformed(_)) => {
                io::Error::new(io::ErrorKind::InvalidData, error)
            }
            error => io::Error::other(error),
        }
    }

    /// The peer of a connection is gone: [`Error::Eof`] from what receives, a broken pipe from what
    /// sends. A message that was cut short is another error.
    pub fn is_eof(&self) -> bool {
        match self {
            Self::Eof => true,
            Self::Io(e) => e.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }

    /// Nothing has the name that was asked for.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::NotFound)
    }

    /// Something has the name that was to be given.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::AlreadyExists)
    }

    /// The process has not ended yet.
    pub fn is_still_running(&self) -> bool {
        matches!(self, Self::StillRunning(_))
    }

    /// The default context was already fixed.
    pub fn is_already_set(&self) -> bool {
        matches!(self, Self::ContextSet(_))
    }

    /// The peer could not be authenticated.
    pub fn is_authentication(&self) -> bool {
        matches!(self, Self::Authentication(_))
    }

    /// A queue has no slot free.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full)
    }

    /// A queue has no item.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// The barrier is broken.
    pub fn is_broken_barrier(&self) -> bool {
        matches!(self, Self::BrokenBarrier)
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::InvalidArgument(what.into())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// For what can be made of anything that converts, by whoever has the very thing.
impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// A link that breaks during the handshake is no failed authentication.
impl From<crate::connection::AuthError> for Error {
    fn from(error: crate::connection::AuthError) -> Self {
        match error {
            crate::connection::AuthError::Io(error) => Self::Io(error),
            error => Self::Authentication(error),
        }
    }
}

/// Why a child did not come to run its target.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The executable is missing, not executable, or the kernel refused it.
    #[error("cannot execute {program}: {source}")]
    Execute {
        /// What was to be executed.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The child runs another build, and the function has no registered name.
    #[error(
        "the child runs another build of this program, and {function} has no name there: register \
         it in both with `register!`"
    )]
    OtherBuild {
        /// The function's type name.
        function: String,
    },
    /// The child said why it cannot run the target.
    #[error("the child could not start: {0}")]
    Refused(String),
    /// The child ended before it said hello.
    #[error("the child ended before its target ran ({0}); does its executable link this crate?")]
    Exited(crate::ExitStatus),
    /// Nothing was heard of the child within the time allowed, so it was killed.
    #[error("the child said nothing for {0:?} and was killed")]
    Deadline(std::time::Duration),
    /// The fork server cannot be used.
    #[error("fork server: {0}")]
    ForkServer(String),
    /// A fork in a process whose other threads may hold locks.
    #[error(
        "refusing to fork: {0} threads that are not this crate's run in this process, and one may \
         hold a lock that the child would wait for; use spawn or forkserver, or vouch for it with \
         `Context::fork_with_threads`"
    )]
    Threads(usize),
    /// The function lies in a shared library, which the child does not load.
    #[error(
        "the function lies outside of the main program: a shared library needs `set_executable` \
         with a program that registers it"
    )]
    OutsideProgram,
}

/// Whether a failed task may have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ran {
    /// It did not begin.
    No,
    /// It began, and how far it came is unknown.
    Maybe,
    /// It ran to its end.
    Yes,
}

/// Why a task did not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotStarted {
    /// The pool was closed or terminated before the task's turn.
    #[error("the pool is closed")]
    Closed,
    /// It was withdrawn before its turn.
    #[error("withdrawn before it began")]
    Withdrawn,
    /// Its arguments cannot be encoded.
    #[error("its arguments cannot be encoded: {0}")]
    Unencodable(CodecError),
    /// Its arguments did not decode in the worker.
    #[error("its arguments could not be decoded: {0}")]
    Arguments(String),
    /// Its worker has not the state that it takes.
    #[error("{0}")]
    State(String),
    /// The iterator that gives the items panicked.
    #[error("the input ended in a panic: {0}")]
    Input(String),
    /// No worker could be started, or each failed in its initializer.
    #[error("no worker could be started: {0}")]
    NoWorker(String),
    /// The same task has killed too many workers of late: see
    /// [`PoolBuilder::quarantine`](crate::PoolBuilder::quarantine).
    #[error("in quarantine, as {deaths} workers have died of it")]
    Quarantined {
        /// How many.
        deaths: u32,
    },
}

impl NotStarted {
    /// What the message of a task begins with. That there is no worker says all by itself, also where a
    /// pool could not be built and there is no task yet.
    fn what(&self) -> &'static str {
        if matches!(self, Self::NoWorker(_)) { "" } else { "the task did not start: " }
    }
}

/// Why a task gave no value.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// It did not begin.
    #[error("{what}{0}", what = .0.what())]
    NotStarted(NotStarted),
    /// It panicked. The worker lives on, unless the task had the pool's
    /// [state](crate::PoolBuilder::state) in its hands.
    #[error("{0}")]
    Panicked(RemotePanic),
    /// It returned an error.
    #[error(transparent)]
    Returned(RemoteError),
    /// It ran longer than its `timeout`; its worker was killed.
    #[error("the task ran past its timeout and was killed")]
    TimedOut,
    /// It needed more memory than its `memory_limit`; its worker was killed.
    #[error("the task needed more than its limit of {limit} bytes of memory and was killed")]
    MemoryLimit {
        /// How much more it might have taken than there was when it began, in bytes.
        limit: u64,
    },
    /// It was aborted by its caller; if it was running, its worker was killed.
    #[error("the task was aborted{}", if *began { " while it ran" } else { "" })]
    Aborted {
        /// Whether it had begun.
        began: bool,
    },
    /// Its worker died while it ran.
    #[error("the worker died while it ran {}: {}", .0.task, .0.exit)]
    WorkerDied(Box<WorkerDied>),
    /// Its result could not be encoded in the worker, which lives on.
    #[error("the result, a {value}, cannot be encoded: {reason}")]
    Unencodable {
        /// What the codec said.
        reason: String,
        /// The type of the value.
        value: String,
    },
    /// Its result does not fit the type asked for.
    #[error("the result cannot be decoded: {0}")]
    Undecodable(CodecError),
}

impl TaskError {
    /// Whether the task may have run, which decides if it can be tried again.
    pub fn ran(&self) -> Ran {
        match self {
            Self::NotStarted(_) | Self::Aborted { began: false } => Ran::No,
            Self::TimedOut
            | Self::MemoryLimit { .. }
            | Self::Aborted { began: true }
            | Self::WorkerDied(_) => Ran::Maybe,
            Self::Panicked(_) | Self::Returned(_) | Self::Unencodable { .. } | Self::Undecodable(_) => {
                Ran::Yes
            }
        }
    }
}

/// A worker's death, as far as it is known.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerDied {
    /// How it ended, and where, if it crashed: see [`ExitStatus::fault_address`](crate::ExitStatus::fault_address).
    pub exit: crate::ExitStatus,
    /// The end of what it wrote to stderr: at most 4 KiB.
    pub stderr_tail: String,
    /// The function that it ran.
    pub task: String,
    /// Its process id; 0 for a thread of an in-process pool.
    pub pid: i32,
}

/// A panic in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemotePanic {
    /// The panic's message.
    pub message: String,
    /// `file:line:column`.
    pub location: String,
    /// The stack where it panicked; empty under `RUST_BACKTRACE=0`.
    pub backtrace: String,
    /// The function that panicked.
    pub task: String,
    /// The process where it happened.
    pub pid: i32,
}

impl fmt::Display for RemotePanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, location, task, pid, .. } = self;
        write!(f, "{task} panicked in process {pid} at {location}: {message}")?;
        if f.alternate() && !self.backtrace.is_empty() {
            write!(f, "\n{}", self.backtrace)?;
        }
        Ok(())
    }
}

/// An error that a task returned: its message and the chain of its sources (the first 32), as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteError {
    message: String,
    source: Option<Box<RemoteError>>,
    kind: String,
}

impl RemoteError {
    /// Writes an error down, with its sources.
    pub fn new<E: StdError + ?Sized>(error: &E) -> Self {
        /// A chain may be a circle, and a message must not nest without end.
        const SOURCES: usize = 32;
        let sources = std::iter::successors(error.source(), |&error| error.source()).take(SOURCES);
        let texts: Vec<String> = sources.map(ToString::to_string).collect();
        let source = texts.into_iter().rev().fold(None, |source, message| {
            Some(Box::new(Self { message, source, kind: "dyn Error".to_owned() }))
        });
        Self { message: error.to_string(), kind: std::any::type_name::<E>().to_owned(), source }
    }

    /// The Rust type of the error where it was returned; `dyn Error` for boxed ones.
    pub fn kind(&self) -> &str {
        &self.kind
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for RemoteError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The error side of a fallible task: any error becomes one by `?`. Text is none: for a message alone
/// there is [`Failure::msg`].
///
/// It is not an `Error` itself, as that would forbid the conversion; and not a message: what
/// travels is the [`RemoteError`] made of it.
pub struct Failure(RemoteError);

impl<E: StdError> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(RemoteError::new(&error))
    }
}

impl Failure {
    /// A failure that is only a message.
    pub fn msg(message: impl fmt::Display) -> Self {
        Self(RemoteError { message: message.to_string(), source: None, kind: "message".to_owned() })
    }
}

impl From<Failure> for RemoteError {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

/// The message and its sources, a line each: what `main` and a process target print.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, "\n  caused by: {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
