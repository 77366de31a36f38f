//! What functions may return.

use std::error::Error as StdError;
use std::future::Future;
use std::process::{ExitCode, Termination};

use super::{BoxFuture, LocalFuture, TargetRun};
use crate::error::{Failure, RemoteError};
use crate::reduction::Message;

/// A call's result, at once or later.
#[doc(hidden)]
#[allow(missing_debug_implementations, reason = "holds a future, and nobody sees one")]
pub enum Settled<T> {
    Now(Result<T, RemoteError>),
    Later(BoxFuture<Result<T, RemoteError>>),
    /// To be driven on this thread.
    Here(LocalFuture<Result<T, RemoteError>>),
    /// The function was not called, as the worker's state cannot be had.
    Stateless(String),
}

/// Markers by which the compiler tells kinds of return types apart. Never named by users.
#[doc(hidden)]
pub(crate) mod markers {
    use std::marker::PhantomData;

    #[derive(Debug)]
    pub enum Plain {}
    #[derive(Debug)]
    pub enum Fallible {}
    #[derive(Debug)]
    pub enum Boxed {}
    #[derive(Debug)]
    pub enum Now<M> {
        _Marker(PhantomData<M>),
    }
    #[derive(Debug)]
    pub enum Async<M> {
        _Marker(PhantomData<M>),
    }
}
use markers::{Async, Boxed, Fallible, Now, Plain};

/// What a task may return at once: see [`Outcome`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be returned by a task",
    note = "a task returns a value that serde can write and read, or `Result<T, mp::Failure>` of one"
)]
pub trait Return<M> {
    /// What the caller gets.
    type Value: Message;
    #[doc(hidden)]
    fn into_result(self) -> Result<Self::Value, RemoteError>;
}

impl<T: Message> Return<Plain> for T {
    type Value = T;
    fn into_result(self) -> Result<T, RemoteError> {
        Ok(self)
    }
}

impl<T: Message> Return<Fallible> for Result<T, Failure> {
    type Value = T;
    fn into_result(self) -> Result<T, RemoteError> {
        self.map_err(RemoteError::from)
    }
}

impl<T: Message> Return<Boxed> for Result<T, Box<dyn StdError + Send + Sync>> {
    type Value = T;
    fn into_result(self) -> Result<T, RemoteError> {
        self.map_err(|error| RemoteError::new(&*error))
    }
}

/// What a task may return: a [`Message`]; a `Result` of one whose error is [`Failure`] or a boxed
/// `dyn Error + Send + Sync`, which reaches the caller as
/// [`TaskError::Returned`](crate::TaskError::Returned); or a future of one of these that is `Send`.
///
/// A `Result` whose error is itself a message is a plain value: the caller gets it as it is.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be returned by a task",
    note = "a task returns a value that serde can write and read, `Result<T, mp::Failure>`, or a \
            future of one of these"
)]
pub trait Outcome<M> {
    /// What the caller gets.
    type Value: Message;
    #[doc(hidden)]
    fn settle(self) -> Settled<Self::Value>;
}

impl<T: Return<M>, M> Outcome<Now<M>> for T {
    type Value = T::Value;
    fn settle(self) -> Settled<T::Value> {
        Settled::Now(self.into_result())
    }
}

impl<F, R, M> Outcome<Async<M>> for F
where
    F: Future<Output = R> + Send + 'static,
    R: Return<M>,
{
    type Value = R::Value;
    fn settle(self) -> Settled<R::Value> {
        Settled::Later(Box::pin(async move { self.await.into_result() }))
    }
}

/// What a process's target may return: all that `main` may (std's [`Termination`]), or a future
/// of it. An `Err` is printed on stderr with its sources, and the exit code is 1.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be returned by the target of a process",
    note = "a target returns what `main` may return, or a future of it; to get a value back from \
            another process use `mp::spawn` or a pool"
)]
pub trait Exit<M> {
    #[doc(hidden)]
    fn exit(self) -> TargetRun;
}

impl<T: Termination> Exit<Plain> for T {
    fn exit(self) -> TargetRun {
        TargetRun::Done(exit_number(self.report()))
    }
}

impl<F> Exit<Async<Plain>> for F
where
    F: Future<Output: Termination> + 'static,
{
    fn exit(self) -> TargetRun {
        TargetRun::Pending(Box::pin(async move { exit_number(self.await.report()) }))
    }
}

/// An `ExitCode` does not tell its number, but it can be compared with all there are.
pub(crate) fn exit_number(code: ExitCode) -> u8 {
    (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap_or(1)
}
