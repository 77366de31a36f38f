//! What every process has one of.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::memory::WipedOnFork;

/// A number that this process has and no copy of it: it is zero again in a forked child, also
/// when foreign code forked, and is then drawn anew.
pub(crate) fn process_token() -> u64 {
    static PAGE: OnceLock<WipedOnFork> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let token = PAGE.get_or_init(WipedOnFork::new).atomic();
    match token.load(Ordering::Acquire) {
        0 => {
            let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
            token
                .compare_exchange(0, fresh, Ordering::AcqRel, Ordering::Acquire)
                .map_or_else(|set| set, |_| fresh)
        }
        set => set,
    }
}

/// A value that each process makes for itself.
///
/// A forked child starts with its own instead of its parent's, whose locks some thread may have
/// held at that instant, and whose threads are not there. The parent's is left where it is: its
/// destructors would act on what belongs to the parent.
pub(crate) struct PerProcess<T: 'static> {
    current: AtomicPtr<Owned<T>>,
    make: fn() -> T,
}

struct Owned<T> {
    token: u64,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        Self { current: AtomicPtr::new(std::ptr::null_mut()), make }
    }

    pub(crate) fn get(&'static self) -> &'static T {
        let token = process_token();
        loop {
            let current = self.current.load(Ordering::Acquire);
            // SAFETY: null, or published below from a box that is never freed.
            match unsafe { current.as_ref() } {
                Some(owned) if owned.token == token => return &owned.value,
                _ => {
                    let fresh = Box::into_raw(Box::new(Owned { token, value: (self.make)() }));
                    // Whoever loses this race leaks an empty value, once in a process's life.
                    let _ =
                        self.current.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Exit, Fork, exit_now, fork, pidfd_open, try_wait};

    #[test]
    fn a_forked_child_has_its_own() {
        static VALUE: PerProcess<AtomicU64> = PerProcess::new(|| AtomicU64::new(1));
        VALUE.get().store(2, Ordering::SeqCst);
        let token = process_token();
        match fork().unwrap() {
            Fork::Child => {
                let fresh = VALUE.get().load(Ordering::SeqCst) == 1 && process_token() != token;
                exit_now(if fresh { 0 } else { 1 })
            }
            Fork::Parent { pid } => {
                let child = pidfd_open(pid).unwrap();
                super::super::fd::poll_readable(std::os::fd::AsFd::as_fd(&child), None).unwrap();
                assert_eq!(try_wait(std::os::fd::AsFd::as_fd(&child)).unwrap(), Some(Exit::Code(0)));
            }
        }
        assert_eq!(VALUE.get().load(Ordering::SeqCst), 2);
        assert_eq!(process_token(), token);
    }
}
