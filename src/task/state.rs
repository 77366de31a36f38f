//! The value that a worker holds for its tasks.

use std::any::{Any, type_name};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    /// Of the thread that runs tasks: a worker has one.
    static STATE: RefCell<Slot> = const { RefCell::new(Slot::None) };
}

enum Slot {
    None,
    Here {
        value: Box<dyn Any>,
        name: &'static str,
    },
    /// A task has it.
    Taken,
    /// A task panicked with it in its hands: nobody knows what it left.
    Lost,
}

/// Gives this thread its state.
pub(crate) fn put<S: 'static>(state: S) {
    let fresh = Slot::Here { value: Box::new(state), name: type_name::<S>() };
    // What was there may look at the state when it is dropped.
    drop(STATE.replace(fresh));
}

/// Drops this thread's state, if it has one.
pub(crate) fn clear() {
    drop(STATE.replace(Slot::None));
}

/// Whether there was a state that a panic has spoilt.
pub(crate) fn is_lost() -> bool {
    STATE.with_borrow(|slot| matches!(slot, Slot::Lost))
}

/// Whether a type is what a function returns that may fail or is async, and hardly meant as a state.
fn is_unfinished(name: &str) -> bool {
    name.starts_with("core::result::Result<")
        || name.ends_with("{{closure}}")
        || name.contains("dyn core::future::future::Future<")
}

/// The state, out of its place until this is dropped.
pub(crate) struct Taken<S: 'static>(Option<Box<S>>);

/// Takes the state, or says why it cannot be had.
pub(crate) fn take<S: 'static>() -> Result<Taken<S>, String> {
    let wanted = type_name::<S>();
    STATE.with_borrow_mut(|slot| match std::mem::replace(slot, Slot::Taken) {
        Slot::Here { value, name } => value.downcast().map(|state| Taken(Some(state))).map_err(|value| {
            *slot = Slot::Here { value, name };
            let hint = if is_unfinished(name) {
                ": for a load that may fail, or waits, use `try_state`"
            } else {
                ""
            };
            format!("the task wants a `{wanted}`, and the state is a `{name}`{hint}")
        }),
        other => {
            let why = match other {
                Slot::None => "there is none here: see `PoolBuilder::state`",
                Slot::Lost => "a task panicked while it had it",
                Slot::Taken | Slot::Here { .. } => "it is in use already",
            };
            *slot = other;
            Err(format!("no state `{wanted}`: {why}"))
        }
    })
}

impl<S> Deref for Taken<S> {
    type Target = S;

    fn deref(&self) -> &S {
        self.0.as_ref().expect("given back by `drop` alone")
    }
}

impl<S> DerefMut for Taken<S> {
    fn deref_mut(&mut self) -> &mut S {
        self.0.as_mut().expect("given back by `drop` alone")
    }
}

impl<S> Drop for Taken<S> {
    fn drop(&mut self) {
        let slot = match self.0.take() {
            Some(value) if !std::thread::panicking() => Slot::Here { value, name: type_name::<S>() },
            _ => Slot::Lost,
        };
        STATE.set(slot);
    }
}

/// Lends the worker's [state](crate::PoolBuilder::state) to a closure: for tasks that do not take
/// `&mut S` themselves, such as those of [`Pool::map`](crate::Pool::map).
///
/// ```no_run
/// # use tokio_multiprocess as mp;
/// # struct Model { factor: u64 }
/// # async fn demo(pool: mp::Pool) -> mp::Result<()> {
/// let scaled = pool.map(|x: u64| mp::task::with_state(|model: &mut Model| model.factor * x), 0..100).await?;
/// # Ok(()) }
/// ```
///
/// # Panics
/// If there is no state of this type: on another thread than the task's, outside of a pool's worker
/// (whose initializer comes before the state), within a task that has it, and nested. If the
/// closure panics the worker is replaced after this task, with a state that is loaded anew.
#[track_caller]
pub fn with_state<S: 'static, R>(f: impl FnOnce(&mut S) -> R) -> R {
    match take::<S>() {
        Ok(mut state) => f(&mut state),
        Err(why) => panic!("{why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn the_state_is_lent_to_one_at_a_time_and_given_back() {
        put(7u32);
        assert!(take::<u64>().err().unwrap().contains("`u32`"));
        with_state(|state: &mut u32| {
            *state += 1;
            assert!(take::<u32>().err().unwrap().contains("in use"));
        });
        assert_eq!(with_state(|state: &mut u32| *state), 8);
        assert!(std::thread::spawn(|| take::<u32>().is_err()).join().unwrap());
    }

    #[test]
    fn a_panic_spoils_it() {
        put(String::new());
        assert!(catch_unwind(|| with_state(|_: &mut u8| ())).is_err());
        assert!(!is_lost());
        assert!(catch_unwind(|| with_state(|_: &mut String| panic!("on purpose"))).is_err());
        assert!(is_lost() && take::<String>().is_err());
        put(1u8);
        assert!(!is_lost());
    }
}
