//! Functions as values: what may run in another process, and how it is found there.
//!
//! A function item or a closure that captures nothing has no bytes: its type says all. For each
//! such type the compiler makes one [`Entry`](crate::sys::image::Entry) that decodes arguments,
//! calls, and encodes what comes back; its place in the image is what travels. Under another
//! build a function goes by the name that [`register!`](crate::register) gave it.

/// Invokes a macro for each number of arguments that a function may have.
macro_rules! all_arities {
    ($with:ident) => {
        $with!();
        $with!(A1);
        $with!(A1 A2);
        $with!(A1 A2 A3);
        $with!(A1 A2 A3 A4);
        $with!(A1 A2 A3 A4 A5);
        $with!(A1 A2 A3 A4 A5 A6);
        $with!(A1 A2 A3 A4 A5 A6 A7);
        $with!(A1 A2 A3 A4 A5 A6 A7 A8);
    };
}

mod named;
mod outcome;
mod source;
mod stateful;

use std::any::{TypeId, type_name};
use std::future::Future;
use std::pin::Pin;

use serde::{Deserialize, Serialize};

pub(crate) use self::named::FnId;
pub use self::named::Func;
#[doc(hidden)]
pub use self::named::Registration;
use self::outcome::Settled;
pub(crate) use self::outcome::exit_number;
pub use self::outcome::{Exit, Outcome, Return};
pub(crate) use self::source::source_entry;
pub use self::source::{Source, Yields};
pub(crate) use self::stateful::{Always, Trying, load_entry};
pub use self::stateful::{Load, Loaded};
use crate::error::RemoteError;
use crate::reduction::{Attachments, CodecError, Incoming, Message, decode, encode, parent};
use crate::sys::image::{Entry, recreate};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// The code of a task: what it gives goes back to the caller.
pub(crate) type TaskCode = fn(Incoming<'_>, &mut Vec<u8>) -> TaskRun;
/// The code of a process's target: what it gives is an exit code.
pub(crate) type TargetCode = fn(Incoming<'_>) -> Result<TargetRun, CodecError>;

/// A task that was called.
pub(crate) enum TaskRun {
    /// A sync function: it has run, and its value was appended to the buffer.
    Done(Result<Attachments, TaskFailure>),
    /// An async one: whoever called it drives it.
    Pending(BoxFuture<Written>),
    /// One that stays on this thread, as it holds the worker's state.
    Here(LocalFuture<Written>),
}

/// The bytes of a value, and what goes beside them or why there is none.
pub(crate) type Written = (Vec<u8>, Result<Attachments, TaskFailure>);

/// A target that was called.
#[doc(hidden)]
#[allow(missing_debug_implementations, reason = "holds a future, and nobody sees one")]
pub enum TargetRun {
    Done(u8),
    Pending(LocalFuture<u8>),
}

/// Why a call gave no value, other than by a panic.
#[doc(hidden)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TaskFailure {
    Arguments(String),
    State(String),
    Returned(RemoteError),
    Unencodable { reason: String, value: String },
}

/// A function that can be a task: its value travels back to the caller.
///
/// Every function item and every closure that captures nothing, sync or async, with up to eight
/// arguments that are [`Message`]s and an [`Outcome`]. Before the arguments it may take `&mut S`: the
/// [state](crate::PoolBuilder::state) of its pool's workers. The trait is sealed; `M` tells the kinds
/// of functions apart and is always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run as a task with the arguments `{A}`",
    note = "a task is a function or a closure without captures, `Copy + Send + Sync + 'static`, \
            whose arguments are given as one tuple and can be sent to another process: pass what \
            it would capture as an argument",
    note = "or what it returns cannot be sent back: it must be a value that serde can write and read, \
            or `Result<T, mp::Failure>` of such a value, into which any error converts by `?`; many values, \
            as an iterator or a `Stream`, are for `Pool::stream`",
    note = "the state of a pool's worker comes before the arguments, as `&mut S`"
)]
pub trait Task<A, M>: sealed::Function<A, M> {
    /// What the caller gets.
    type Value: Message;
    #[doc(hidden)]
    fn call_task(self, args: A) -> Settled<Self::Value>;
}

/// A function that can be the target of a process: what it returns decides the exit code.
///
/// As [`Task`], but with an [`Exit`] in place of an outcome.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the target of a process with the arguments `{A}`",
    note = "a target is a function or a closure without captures, `Copy + Send + Sync + 'static`, \
            whose arguments are given as one tuple and can be sent to another process, and which \
            returns what `main` may return"
)]
pub trait Target<A, M>: sealed::Function<A, M> {
    #[doc(hidden)]
    fn call_target(self, args: A) -> TargetRun;
}

mod sealed {
    #[doc(hidden)]
    pub trait Function<A, M>: Copy + Send + Sync + 'static {}

    /// Which of the two roles a marker belongs to.
    #[derive(Debug)]
    pub enum AsTask<M> {
        #[doc(hidden)]
        _Marker(std::marker::PhantomData<M>),
    }
    #[derive(Debug)]
    pub enum AsTarget<M> {
        #[doc(hidden)]
        _Marker(std::marker::PhantomData<M>),
    }
}
use sealed::{AsTarget, AsTask};

macro_rules! arities {
    ($($arg:ident)*) => {
        impl<F, R, M, $($arg,)*> sealed::Function<($($arg,)*), AsTask<M>> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Outcome<M>,
        {}

        impl<F, R, M, $($arg,)*> Task<($($arg,)*), AsTask<M>> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Outcome<M>,
        {
            type Value = R::Value;
            #[allow(non_snake_case)]
            fn call_task(self, ($($arg,)*): ($($arg,)*)) -> Settled<R::Value> {
                self($($arg),*).settle()
            }
        }

        impl<F, R, M, $($arg,)*> sealed::Function<($($arg,)*), AsTarget<M>> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Exit<M>,
        {}

        impl<F, R, M, $($arg,)*> Target<($($arg,)*), AsTarget<M>> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Exit<M>,
        {
            #[allow(non_snake_case)]
            fn call_target(self, ($($arg,)*): ($($arg,)*)) -> TargetRun {
                self($($arg),*).exit()
            }
        }
    };
}

all_arities!(arities);

/// The entry of a task: a constant, so that it has a place in the image. The value proves that the
/// function's type is inhabited.
pub(crate) const fn task_entry<F: Task<A, M>, A: Message, M: 'static>(_: F) -> &'static Entry<TaskCode> {
    const { &Entry::new(run_task::<F, A, M>, type_name::<F>, TypeId::of::<F>) }
}

/// The entry of a target.
pub(crate) const fn target_entry<F: Target<A, M>, A: Message, M: 'static>(
    _: F,
) -> &'static Entry<TargetCode> {
    const { &Entry::new(run_target::<F, A, M>, type_name::<F>, TypeId::of::<F>) }
}

fn run_task<F: Task<A, M>, A: Message, M>(args: Incoming<'_>, out: &mut Vec<u8>) -> TaskRun {
    let args = match decode::<A>(args) {
        Ok(args) => args,
        Err(error) => return TaskRun::Done(Err(TaskFailure::Arguments(error.to_string()))),
    };
    run_settled(recreate::<F>().call_task(args), out)
}

fn run_settled<T: Message>(settled: Settled<T>, out: &mut Vec<u8>) -> TaskRun {
    match settled {
        Settled::Now(result) => TaskRun::Done(write_value(result, out)),
        Settled::Later(future) => TaskRun::Pending(Box::pin(async move { written(future.await) })),
        Settled::Here(future) => TaskRun::Here(Box::pin(async move { written(future.await) })),
        Settled::Stateless(why) => TaskRun::Done(Err(TaskFailure::State(why))),
    }
}

fn written<T: Message>(result: Result<T, RemoteError>) -> Written {
    let mut out = Vec::new();
    let written = write_value(result, &mut out);
    (out, written)
}

fn write_value<T: Message>(
    result: Result<T, RemoteError>,
    out: &mut Vec<u8>,
) -> Result<Attachments, TaskFailure> {
    let value = result.map_err(TaskFailure::Returned)?;
    encode(&value, out, parent()).map_err(unencodable::<T>)
}

fn unencodable<T>(error: CodecError) -> TaskFailure {
    TaskFailure::Unencodable { reason: error.to_string(), value: std::any::type_name::<T>().to_owned() }
}

fn run_target<F: Target<A, M>, A: Message, M>(args: Incoming<'_>) -> Result<TargetRun, CodecError> {
    Ok(recreate::<F>().call_target(decode::<A>(args)?))
}

/// Drives a called task to its end by `wait`; its value's bytes, if it is async, come with it.
pub(crate) fn finish(
    run: TaskRun,
    wait: impl FnOnce(LocalFuture<Written>) -> Written,
) -> (Option<Vec<u8>>, Result<Attachments, TaskFailure>) {
    let future: LocalFuture<Written> = match run {
        TaskRun::Done(result) => return (None, result),
        TaskRun::Pending(future) => future,
        TaskRun::Here(future) => future,
    };
    let (bytes, result) = wait(future);
    (Some(bytes), result)
}
