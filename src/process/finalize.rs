//! Actions for the end of a process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use crate::sys::per_process::{PerProcess, process_token};
use crate::util::lock;

type Action = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Finalizers {
    next: u64,
    /// By falling priority, then the youngest first.
    pending: BTreeMap<(std::cmp::Reverse<i32>, std::cmp::Reverse<u64>), Action>,
}

static FINALIZERS: PerProcess<Mutex<Finalizers>> = PerProcess::new(Mutex::default);

/// An action that runs once: when it is called, or when the process ends.
///
/// At the end, finalizers run by falling priority, the youngest of equals first. Those of a
/// parent do not run in its children. Dropping this value leaves the action in place.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// static DONE: AtomicBool = AtomicBool::new(false);
///
/// let finalizer = tokio_multiprocess::util::Finalize::new(10, || DONE.store(true, Ordering::SeqCst));
/// assert!(finalizer.call());
/// assert!(DONE.load(Ordering::SeqCst) && !finalizer.call());
/// ```
pub struct Finalize {
    key: (std::cmp::Reverse<i32>, std::cmp::Reverse<u64>),
    owner: u64,
}

impl Finalize {
    /// Registers `action` for the end of this process.
    pub fn new(priority: i32, action: impl FnOnce() + Send + 'static) -> Self {
        super::exit::install_hook();
        let mut finalizers = lock(FINALIZERS.get());
        finalizers.next += 1;
        let key = (std::cmp::Reverse(priority), std::cmp::Reverse(finalizers.next));
        finalizers.pending.insert(key, Box::new(action));
        Self { key, owner: process_token() }
    }

    /// Runs the action now, if it has not run; says whether it did.
    pub fn call(&self) -> bool {
        let action = self.take();
        let found = action.is_some();
        if let Some(action) = action {
            action();
        }
        found
    }

    /// Forgets the action; says whether it was still pending.
    pub fn cancel(&self) -> bool {
        self.take().is_some()
    }

    /// Whether the action has neither run nor been cancelled.
    pub fn still_active(&self) -> bool {
        self.owner == process_token() && lock(FINALIZERS.get()).pending.contains_key(&self.key)
    }

    fn take(&self) -> Option<Action> {
        if self.owner != process_token() {
            return None;
        }
        lock(FINALIZERS.get()).pending.remove(&self.key)
    }
}

impl fmt::Debug for Finalize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finalize")
            .field("priority", &self.key.0.0)
            .field("active", &self.still_active())
            .finish()
    }
}

/// Runs what is registered, also what is registered meanwhile. A panic ends one action only.
pub(super) fn run_finalizers() {
    loop {
        // The lock must not be held while an action runs: it may register or cancel others.
        let next = lock(FINALIZERS.get()).pending.pop_first();
        let Some((_, action)) = next else { break };
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// They are all run at once, so one test at a time has some.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn finalizers_run_by_priority_then_youngest_first() {
        let _alone = lock(&ALONE);
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |n: i32| {
            let order = order.clone();
            move || lock(&order).push(n)
        };
        let cancelled = Finalize::new(7, note(0));
        let _kept: Vec<_> = [(1, 4), (5, 2), (5, 1), (-1, 5), (1, 3)]
            .map(|(priority, n)| Finalize::new(priority, note(n)))
            .into();
        assert!(cancelled.cancel() && !cancelled.call() && !cancelled.still_active());
        run_finalizers();
        assert_eq!(*lock(&order), [1, 2, 3, 4, 5]);
    }

    // conformance: _TestFinalize.test_thread_safety
    #[test]
    fn finalizers_are_made_called_and_cancelled_while_others_run() {
        const EACH: usize = 5_000;
        static RAN: AtomicUsize = AtomicUsize::new(0);
        let _alone = lock(&ALONE);
        let count = || {
            RAN.fetch_add(1, Ordering::Relaxed);
        };
        let cancelled = thread::scope(|scope| {
            let makers: Vec<_> = (0..3)
                .map(|maker| {
                    scope.spawn(move || {
                        let mut cancelled = 0;
                        for number in 0..EACH {
                            let priority = (number * 7919 + maker) % 11;
                            // What it does may make and cancel others.
                            let finalizer = Finalize::new(priority as i32, move || {
                                // Or somebody else was faster, and has run it.
                                Finalize::new(0, || ()).cancel();
                                count();
                            });
                            match number % 3 {
                                0 => drop(finalizer.call()),
                                1 => cancelled += usize::from(finalizer.cancel()),
                                _ => {}
                            }
                        }
                        cancelled
                    })
                })
                .collect();
            while makers.iter().any(|maker| !maker.is_finished()) {
                run_finalizers();
            }
            makers.into_iter().map(|maker| maker.join().unwrap()).sum::<usize>()
        });
        run_finalizers();
        // Each ran once, unless it was cancelled before.
        assert_eq!(RAN.load(Ordering::Relaxed) + cancelled, 3 * EACH);
    }
}
