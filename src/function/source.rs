//! Functions that give many values: what they return flows to the caller as it comes.

use std::any::{TypeId, type_name};
use std::error::Error as StdError;
use std::marker::PhantomData;

use futures_core::Stream;
use futures_util::StreamExt;
use serde::ser::Error as _;
use tokio::io::Interest;

use super::outcome::{Return, markers};
use super::{LocalFuture, TaskCode, TaskFailure, TaskRun, sealed, unencodable, write_value, written};
use crate::error::{Failure, RemoteError};
use crate::reduction::{CodecError, Descriptor, Incoming, Message, decode, parent};
use crate::sys::Fd;
use crate::sys::image::{Entry, recreate};
use crate::sys::reactor::Registered;
use crate::task::flow::{self, Spilled};
use markers::{Async, Boxed, Fallible};

/// The way back to the caller.
#[doc(hidden)]
#[derive(Debug)]
pub struct Port(Fd);

/// A flow on its way, or at its end.
#[doc(hidden)]
#[allow(missing_debug_implementations, reason = "holds a future, and nobody sees one")]
pub enum Poured {
    Now(Result<(), TaskFailure>),
    Later(LocalFuture<Result<(), TaskFailure>>),
}

/// A function for [`Pool::stream`](crate::Pool::stream): as a [`Task`](super::Task), but what it
/// returns [`Yields`] many values.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot give a stream of values with the arguments `{A}`",
    note = "it is a function or a closure without captures, `Copy + Send + Sync + 'static`, whose \
            arguments are given as one tuple and can be sent to another process, and which returns an \
            iterator or a `Stream` of values, or a future of one"
)]
pub trait Source<A, M>: sealed::Function<A, M> {
    /// What the caller gets, many times.
    type Item: Message;
    #[doc(hidden)]
    fn pour(self, args: A, port: Port) -> Poured;
}

/// What a function that gives many values may return: an iterator or a `Stream` of values or of
/// `Result`s as [tasks](super::Outcome) return them; a `Result` of one with a
/// [`Failure`] or a boxed error, or a future of any of these. None need be `Send`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not give a stream of values",
    note = "it must be an iterator or a `Stream` whose items can be sent to another process, a \
            `Result<_, mp::Failure>` of one, or a future of one of these"
)]
pub trait Yields<M> {
    /// What the caller gets, many times.
    type Item: Message;
    #[doc(hidden)]
    fn pour(self, port: Port) -> Poured;
}

#[derive(Debug)]
pub enum Iterated<M> {
    #[doc(hidden)]
    _Marker(PhantomData<M>),
}

#[derive(Debug)]
pub enum Streamed<M> {
    #[doc(hidden)]
    _Marker(PhantomData<M>),
}

impl<I, M> Yields<Iterated<M>> for I
where
    I: Iterator<Item: Return<M>>,
{
    type Item = <I::Item as Return<M>>::Value;

    fn pour(self, Port(socket): Port) -> Poured {
        let poured = flow::pour_all(self.map(Return::into_result), &socket, parent());
        Poured::Now(poured.map_err(spilled::<Self::Item>))
    }
}

impl<S, M> Yields<Streamed<M>> for S
where
    S: Stream<Item: Return<M>> + 'static,
    M: 'static,
{
    type Item = <S::Item as Return<M>>::Value;

    fn pour(self, port: Port) -> Poured {
        Poured::Later(Box::pin(pour_stream(self, port)))
    }
}

impl<F, M> Yields<Async<M>> for F
where
    F: Future<Output: Yields<M>> + 'static,
{
    type Item = <F::Output as Yields<M>>::Item;

    fn pour(self, port: Port) -> Poured {
        Poured::Later(Box::pin(async move {
            match self.await.pour(port) {
                Poured::Now(result) => result,
                Poured::Later(future) => future.await,
            }
        }))
    }
}

impl<Y: Yields<M>, M> Yields<(Fallible, M)> for Result<Y, Failure> {
    type Item = Y::Item;

    fn pour(self, port: Port) -> Poured {
        match self {
            Ok(source) => source.pour(port),
            Err(failure) => Poured::Now(Err(TaskFailure::Returned(failure.into()))),
        }
    }
}

impl<Y: Yields<M>, M> Yields<(Boxed, M)> for Result<Y, Box<dyn StdError + Send + Sync>> {
    type Item = Y::Item;

    fn pour(self, port: Port) -> Poured {
        match self {
            Ok(source) => source.pour(port),
            Err(error) => Poured::Now(Err(TaskFailure::Returned(RemoteError::new(&*error)))),
        }
    }
}

async fn pour_stream<S, M>(stream: S, Port(socket): Port) -> Result<(), TaskFailure>
where
    S: Stream<Item: Return<M>>,
{
    type Item<S, M> = <<S as Stream>::Item as Return<M>>::Value;
    let registered = Registered::new(socket, Interest::READABLE | Interest::WRITABLE);
    let socket = registered.map_err(|error| spilled::<Item<S, M>>(Spilled::Unsent(error)))?;
    flow::pour(stream.map(Return::into_result), &socket, parent()).await.map_err(spilled::<Item<S, M>>)
}

fn spilled<T>(why: Spilled<RemoteError>) -> TaskFailure {
    match why {
        Spilled::Source(error) => TaskFailure::Returned(error),
        Spilled::Unencodable(error) => unencodable::<T>(error),
        Spilled::Unsent(error) => unencodable::<T>(CodecError::custom(error)),
    }
}

/// The marker of a function that gives many values.
#[derive(Debug)]
pub enum AsSource<M> {
    #[doc(hidden)]
    _Marker(PhantomData<M>),
}

macro_rules! arities {
    ($($arg:ident)*) => {
        impl<F, R, M, $($arg,)*> sealed::Function<($($arg,)*), AsSource<M>> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Yields<M>,
        {}

        impl<F, R, M, $($arg,)*> Source<($($arg,)*), AsSource<M>> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Yields<M>,
        {
            type Item = R::Item;
            #[allow(non_snake_case)]
            fn pour(self, ($($arg,)*): ($($arg,)*), port: Port) -> Poured {
                self($($arg),*).pour(port)
            }
        }
    };
}

all_arities!(arities);

/// The entry of a function that gives many values: a task without a value, whose arguments are the
/// socket for the items and a tuple.
pub(crate) const fn source_entry<F: Source<A, M>, A: Message, M: 'static>(_: F) -> &'static Entry<TaskCode> {
    const { &Entry::new(run_source::<F, A, M>, type_name::<F>, TypeId::of::<F>) }
}

fn run_source<F: Source<A, M>, A: Message, M>(args: Incoming<'_>, out: &mut Vec<u8>) -> TaskRun {
    let decoded = decode::<(Descriptor, A)>(args).map_err(|error| error.to_string());
    let opened = decoded.and_then(|(socket, args)| match socket.into_fd() {
        Ok(socket) => Ok((Port(socket), args)),
        Err(error) => Err(error.to_string()),
    });
    match opened {
        Ok((port, args)) => match recreate::<F>().pour(args, port) {
            Poured::Now(result) => TaskRun::Done(result.and_then(|()| write_value(Ok(()), out))),
            Poured::Later(future) => TaskRun::Here(Box::pin(async move {
                match future.await {
                    Ok(()) => written(Ok(())),
                    Err(failure) => (Vec::new(), Err(failure)),
                }
            })),
        },
        Err(why) => TaskRun::Done(Err(TaskFailure::Arguments(why))),
    }
}
