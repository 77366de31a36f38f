//! Functions around the state of a pool's worker: those that load it, and tasks that take it.

use std::any::{TypeId, type_name};
use std::error::Error as StdError;
use std::marker::PhantomData;

use super::outcome::{Return, Settled, markers};
use super::{Task, TaskCode, TaskFailure, TaskRun, run_settled, sealed};
use crate::error::{Failure, RemoteError};
use crate::reduction::{Incoming, Message, decode};
use crate::sys::image::{Entry, recreate};
use crate::task::state;
use markers::{Async, Boxed, Fallible, Now};

/// The marker of a sync task that takes the state `S`.
#[derive(Debug)]
pub enum WithState<S, M> {
    #[doc(hidden)]
    _Marker(PhantomData<(fn() -> S, M)>),
}

/// The marker of an async one.
#[derive(Debug)]
pub enum WithStateAsync<S, M> {
    #[doc(hidden)]
    _Marker(PhantomData<(fn() -> S, M)>),
}

/// A function whose value becomes the state of a worker: see
/// [`PoolBuilder::state`](crate::PoolBuilder::state).
///
/// As [`Task`], but what it returns stays in the worker: it need not be a message, nor `Send`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot load a worker's state with the arguments `{A}`",
    note = "it is a function or a closure without captures, `Copy + Send + Sync + 'static`, whose \
            arguments are given as one tuple and can be sent to another process; for `try_state` it \
            returns `Result<S, mp::Failure>`, a `Result` with a boxed error, or a future of one"
)]
pub trait Load<A, M>: sealed::Function<A, M> {
    #[doc(hidden)]
    fn load(self, args: A) -> Settled<()>;
}

/// The marker of a function that always has a state to give.
#[derive(Debug)]
pub enum Always<S> {
    #[doc(hidden)]
    _Marker(PhantomData<fn() -> S>),
}

/// The marker of a function that may fail to.
#[derive(Debug)]
pub enum Trying<M> {
    #[doc(hidden)]
    _Marker(PhantomData<M>),
}

/// A state or why there is none.
#[doc(hidden)]
pub trait Attempt<M> {
    type State: 'static;
    fn into_state(self) -> Result<Self::State, RemoteError>;
}

impl<S: 'static> Attempt<Fallible> for Result<S, Failure> {
    type State = S;
    fn into_state(self) -> Result<S, RemoteError> {
        self.map_err(RemoteError::from)
    }
}

impl<S: 'static> Attempt<Boxed> for Result<S, Box<dyn StdError + Send + Sync>> {
    type State = S;
    fn into_state(self) -> Result<S, RemoteError> {
        self.map_err(|error| RemoteError::new(&*error))
    }
}

/// What a function that may fail to load a worker's state returns: `Result<S, Failure>`, a `Result`
/// with a boxed error, or a future of one of these.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not what a function that may fail to load a worker's state returns",
    note = "it returns `Result<S, mp::Failure>`, a `Result` with a boxed error, or a future of one"
)]
pub trait Loaded<M> {
    #[doc(hidden)]
    fn put(self) -> Settled<()>;
}

impl<T: Attempt<M>, M> Loaded<Now<M>> for T {
    fn put(self) -> Settled<()> {
        Settled::Now(self.into_state().map(state::put))
    }
}

impl<F, R, M> Loaded<Async<M>> for F
where
    F: Future<Output = R> + 'static,
    R: Attempt<M>,
{
    fn put(self) -> Settled<()> {
        Settled::Here(Box::pin(async move { self.await.into_state().map(state::put) }))
    }
}

macro_rules! arities {
    ($($arg:ident)*) => {
        impl<F, S, R, M, $($arg,)*> sealed::Function<($($arg,)*), WithState<S, M>> for F
        where
            F: Fn(&mut S, $($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Return<M>,
        {}

        impl<F, S, R, M, $($arg,)*> Task<($($arg,)*), WithState<S, M>> for F
        where
            F: Fn(&mut S, $($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Return<M>,
            S: 'static,
        {
            type Value = R::Value;
            #[allow(non_snake_case)]
            fn call_task(self, ($($arg,)*): ($($arg,)*)) -> Settled<R::Value> {
                match state::take::<S>() {
                    Ok(mut state) => Settled::Now(self(&mut state, $($arg),*).into_result()),
                    Err(why) => Settled::Stateless(why),
                }
            }
        }

        impl<F, S, R, M, $($arg,)*> sealed::Function<($($arg,)*), WithStateAsync<S, M>> for F
        where
            F: AsyncFn(&mut S, $($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Return<M>,
        {}

        impl<F, S, R, M, $($arg,)*> Task<($($arg,)*), WithStateAsync<S, M>> for F
        where
            F: AsyncFn(&mut S, $($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Return<M>,
            S: 'static,
            $($arg: 'static,)*
        {
            type Value = R::Value;
            #[allow(non_snake_case)]
            fn call_task(self, ($($arg,)*): ($($arg,)*)) -> Settled<R::Value> {
                match state::take::<S>() {
                    Ok(mut state) => Settled::Here(Box::pin(async move {
                        self(&mut state, $($arg),*).await.into_result()
                    })),
                    Err(why) => Settled::Stateless(why),
                }
            }
        }

        impl<F, S, $($arg,)*> sealed::Function<($($arg,)*), Always<S>> for F
        where
            F: Fn($($arg),*) -> S + Copy + Send + Sync + 'static,
        {}

        impl<F, S, $($arg,)*> Load<($($arg,)*), Always<S>> for F
        where
            F: Fn($($arg),*) -> S + Copy + Send + Sync + 'static,
            S: 'static,
        {
            #[allow(non_snake_case)]
            fn load(self, ($($arg,)*): ($($arg,)*)) -> Settled<()> {
                state::put(self($($arg),*));
                Settled::Now(Ok(()))
            }
        }

        impl<F, R, M, $($arg,)*> sealed::Function<($($arg,)*), Trying<M>> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Loaded<M>,
        {}

        impl<F, R, M, $($arg,)*> Load<($($arg,)*), Trying<M>> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Loaded<M>,
        {
            #[allow(non_snake_case)]
            fn load(self, ($($arg,)*): ($($arg,)*)) -> Settled<()> {
                self($($arg),*).put()
            }
        }
    };
}

all_arities!(arities);

/// The entry of a function that loads a state: a task without a value.
pub(crate) const fn load_entry<F: Load<A, M>, A: Message, M: 'static>(_: F) -> &'static Entry<TaskCode> {
    const { &Entry::new(run_load::<F, A, M>, type_name::<F>, TypeId::of::<F>) }
}

fn run_load<F: Load<A, M>, A: Message, M>(args: Incoming<'_>, out: &mut Vec<u8>) -> TaskRun {
    match decode::<A>(args) {
        Ok(args) => run_settled(recreate::<F>().load(args), out),
        Err(error) => TaskRun::Done(Err(TaskFailure::Arguments(error.to_string()))),
    }
}
