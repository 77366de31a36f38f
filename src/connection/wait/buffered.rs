//! What a reader holds that its descriptor no longer shows.

use std::mem;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use crate::util::lock;

const READY: u8 = 1;
const WATCHED: u8 = 2;

/// Whether an object is ready whatever its descriptor says, and who wants to be told of that.
///
/// A reader takes several messages out of its socket at once, which the kernel then takes for idle.
/// The flag belongs to whoever owns the reader; any thread may look at it. It ends with the reader,
/// of which it tells as well: so who watches it learns that the object is gone.
#[derive(Debug, Default)]
pub(crate) struct Buffered {
    /// Both bits in one word, so that of a flag that goes up and a watcher that comes at the same
    /// time one sees the other.
    state: AtomicU8,
    watchers: Mutex<Vec<(Arc<Bell>, u64)>>,
}

impl Buffered {
    /// To be called by the reader's owner alone, whenever it may have changed. Where nothing has, it
    /// costs a plain load.
    pub(crate) fn set(&self, ready: bool) {
        if self.is_set() == ready {
            return;
        }
        if !ready {
            self.state.fetch_and(!READY, Ordering::AcqRel);
        } else if self.state.fetch_or(READY, Ordering::AcqRel) & WATCHED != 0 {
            let watchers = lock(&self.watchers).clone();
            watchers.iter().for_each(|(bell, token)| bell.tell(*token));
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.state.load(Ordering::Acquire) & READY != 0
    }

    /// Has `bell` told each time the flag goes up from now on, and when it ends. Whether it is up already is for the
    /// caller to ask afterwards.
    pub(crate) fn watch(self: &Arc<Self>, bell: &Arc<Bell>, token: u64) -> Watching {
        let mut watchers = lock(&self.watchers);
        watchers.push((bell.clone(), token));
        self.state.fetch_or(WATCHED, Ordering::AcqRel);
        Watching { buffered: Arc::downgrade(self), bell: bell.clone(), token }
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        let watchers = self.watchers.get_mut().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().for_each(|(bell, token)| bell.tell(*token));
    }
}

/// One who watches a flag, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    buffered: Weak<Buffered>,
    bell: Arc<Bell>,
    token: u64,
}

impl Watching {
    /// The flag; `None` when the reader is gone.
    pub(crate) fn is_set(&self) -> Option<bool> {
        self.buffered.upgrade().map(|buffered| buffered.is_set())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let Some(buffered) = self.buffered.upgrade() else { return };
        let mut watchers = lock(&buffered.watchers);
        watchers.retain(|(bell, token)| !Arc::ptr_eq(bell, &self.bell) || *token != self.token);
        if watchers.is_empty() {
            buffered.state.fetch_and(!WATCHED, Ordering::AcqRel);
        }
    }
}

/// Whom flags tell that they have gone up, or ended.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    told: Mutex<Vec<u64>>,
    rung: Notify,
}

impl Bell {
    fn tell(&self, token: u64) {
        lock(&self.told).push(token);
        self.ring();
    }

    /// Wakes all who wait.
    pub(crate) fn ring(&self) {
        self.rung.notify_waiters();
    }

    /// The tokens of flags that have gone up or ended since the last call. A flag that went down
    /// meanwhile is among them.
    pub(crate) fn take(&self) -> Vec<u64> {
        mem::take(&mut lock(&self.told))
    }

    /// Waits until it is rung. What happens after this call (not: after the first poll) is heard.
    pub(crate) fn rung(&self) -> impl Future<Output = ()> + '_ {
        self.rung.notified()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_flag_tells_when_it_goes_up_and_only_then() {
        let (buffered, bell) = (Arc::new(Buffered::default()), Arc::new(Bell::default()));
        buffered.set(true);
        let watching = buffered.watch(&bell, 7);
        assert_eq!(watching.is_set(), Some(true));
        buffered.set(true);
        buffered.set(false);
        assert_eq!((watching.is_set(), bell.take()), (Some(false), vec![]));

        let rung = bell.rung();
        buffered.set(true);
        assert_eq!((rung.now_or_never(), bell.take()), (Some(()), vec![7]));
        assert_eq!(bell.rung().now_or_never(), None);
    }

    #[test]
    fn who_watches_no_more_is_told_no_more() {
        let (buffered, bell) = (Arc::new(Buffered::default()), Arc::new(Bell::default()));
        let [first, second] = [1, 2].map(|token| buffered.watch(&bell, token));
        drop(first);
        buffered.set(true);
        assert_eq!(bell.take(), [2]);
        drop(second);
        assert_eq!(buffered.state.load(Ordering::SeqCst), READY);
        assert_eq!(Arc::strong_count(&bell), 1);
    }

    #[test]
    fn a_flag_ends_with_its_reader() {
        let (buffered, bell) = (Arc::new(Buffered::default()), Arc::new(Bell::default()));
        let watching = buffered.watch(&bell, 1);
        let rung = bell.rung();
        drop(buffered);
        assert_eq!((watching.is_set(), rung.now_or_never(), bell.take()), (None, Some(()), vec![1]));
    }

    /// Of a flag that goes up and a watcher that comes meanwhile, one sees the other.
    #[test]
    fn no_flag_goes_up_unseen() {
        for _ in 0..2_000 {
            let (buffered, bell) = (Arc::new(Buffered::default()), Arc::new(Bell::default()));
            let (watching, seen) = std::thread::scope(|scope| {
                scope.spawn(|| buffered.set(true));
                let watching = buffered.watch(&bell, 1);
                let seen = watching.is_set() == Some(true);
                (watching, seen)
            });
            assert!(seen || bell.take() == [1]);
            drop(watching);
        }
    }
}
