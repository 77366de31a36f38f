//! Who waits for a listener's next peer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use tokio::runtime::{Handle, Id};

use crate::util::lock;

/// The calls of `accept` under way. Whichever is polled drives the listener for all, with this as the
/// waker; what happens then wakes all of them, since nobody knows which of them will be polled again.
///
/// All: on the runtime that the listener was driven from last, where the events come from. Calls on
/// others, which would take the listener over to theirs, and back, are woken when one has ended.
#[derive(Default)]
pub(super) struct Callers(Mutex<State>);

#[derive(Default)]
struct State {
    /// In the order of their calls.
    waiting: BTreeMap<u64, (Option<Id>, Waker)>,
    next: u64,
    driven: Option<Id>,
}

/// One call, which ends when this is dropped.
pub(super) struct Caller<'a> {
    id: u64,
    callers: &'a Callers,
}

impl Callers {
    pub(super) fn call(&self) -> Caller<'_> {
        let mut state = lock(&self.0);
        state.next += 1;
        Caller { id: state.next, callers: self }
    }

    /// Notes from where the listener is driven now, and tells whether it was from elsewhere before.
    pub(super) fn driven_from(&self, runtime: Id) -> bool {
        lock(&self.0).driven.replace(runtime) != Some(runtime)
    }

    /// Has every call look again, on whatever runtime.
    pub(super) fn wake_everyone(&self) {
        let woken = std::mem::take(&mut lock(&self.0).waiting);
        woken.into_values().for_each(|(_, waker)| waker.wake());
    }
}

impl Wake for Callers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = lock(&self.0);
        let driven = state.driven;
        let (woken, others): (BTreeMap<_, _>, _) =
            std::mem::take(&mut state.waiting).into_iter().partition(|(_, (runtime, _))| *runtime == driven);
        state.waiting = others;
        drop(state);
        woken.into_values().for_each(|(_, waker)| waker.wake());
    }
}

impl Caller<'_> {
    /// Whom to wake for this call from now on.
    pub(super) fn waits(&self, cx: &Context<'_>) {
        let runtime = Handle::try_current().ok().map(|runtime| runtime.id());
        let former = lock(&self.callers.0).waiting.insert(self.id, (runtime, cx.waker().clone()));
        // Not under the lock: a task may end with its last waker, and calls with it.
        drop(former);
    }
}

/// What this call has polled may be on a runtime that nobody drives any more, or not have been polled
/// to the end.
impl Drop for Caller<'_> {
    fn drop(&mut self) {
        let own = lock(&self.callers.0).waiting.remove(&self.id);
        drop(own);
        self.callers.wake_everyone();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A call that waits, and how often it was woken.
    fn wait<'a>(callers: &'a Callers) -> (Caller<'a>, Arc<Counter>) {
        let (caller, counter) = (callers.call(), Arc::new(Counter::default()));
        caller.waits(&Context::from_waker(&counter.clone().into()));
        (caller, counter)
    }

    #[test]
    fn what_happens_wakes_all_of_the_runtime_and_an_end_wakes_the_others_too() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (one, other) = (runtime(), runtime());
        let callers = Arc::new(Callers::default());
        let (_foreign, elsewhere) = {
            let _there = other.enter();
            assert!(callers.driven_from(Handle::current().id()));
            wait(&callers)
        };
        let _here = one.enter();
        assert!(callers.driven_from(Handle::current().id()));
        assert!(!callers.driven_from(Handle::current().id()));
        let ((first, a), (second, b)) = (wait(&callers), wait(&callers));
        let woken = || [&a, &b, &elsewhere].map(|counter| counter.0.load(Ordering::Relaxed));
        callers.wake_by_ref();
        assert_eq!(woken(), [1, 1, 0]);
        // Who was not polled since is not woken again.
        callers.wake_by_ref();
        assert_eq!(woken(), [1, 1, 0]);
        for (n, caller) in [&first, &second].into_iter().enumerate() {
            caller.waits(&Context::from_waker(&[&a, &b][n].clone().into()));
        }
        drop(first);
        assert_eq!(woken(), [1, 2, 1]);
        drop(second);
        assert!(lock(&callers.0).waiting.is_empty());
    }
}
