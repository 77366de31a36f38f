//! The handshakes that a listener has under way: a bounded set of futures, the oldest of which is
//! given up when there is no room or its time is over. Pure: the clock is the caller's.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

use crate::util::lock;

type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Futures that all have the same time, so that the oldest is the first whose time is over. Each is
/// polled only when it was woken, whoever polls the set then.
pub(super) struct Pending<T> {
    /// By age.
    running: BTreeMap<u64, Handshake<T>>,
    next: u64,
    limit: usize,
    woken: Arc<Woken>,
}

struct Handshake<T> {
    run: Running<T>,
    /// On the caller's clock.
    deadline: u64,
    notice: Arc<Notice>,
}

/// Who is to be polled, and who does that.
#[derive(Default)]
struct Woken {
    list: Mutex<Vec<u64>>,
    driver: AtomicWaker,
}

/// Notes that one future is to be polled.
struct Notice {
    id: u64,
    noted: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.noted.swap(true, Ordering::AcqRel) {
            lock(&self.woken.list).push(self.id);
            self.woken.driver.wake();
        }
    }
}

impl<T> Pending<T> {
    /// An empty set with room for `limit`, which is one at least.
    pub(super) fn new(limit: usize) -> Self {
        Self { running: BTreeMap::new(), next: 0, limit: limit.max(1), woken: Arc::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Adds one that has time until `deadline`, for the caller to poll. If there is no room, the oldest
    /// goes.
    pub(super) fn begin(&mut self, deadline: u64, run: impl Future<Output = T> + Send + 'static) {
        if self.running.len() >= self.limit {
            self.give_up_oldest();
        }
        let id = self.next;
        self.next += 1;
        let notice = Arc::new(Notice { id, noted: AtomicBool::new(true), woken: self.woken.clone() });
        lock(&self.woken.list).push(id);
        self.running.insert(id, Handshake { run: Box::pin(run), deadline, notice });
    }

    /// Drops the oldest; false if there is none.
    pub(super) fn give_up_oldest(&mut self) -> bool {
        let oldest = self.running.pop_first();
        if oldest.is_some() {
            tracing::debug!("the oldest handshake is given up for want of room");
        }
        oldest.is_some()
    }

    /// Drops those whose time is over, and gives the deadline of the next.
    pub(super) fn give_up_overdue(&mut self, now: u64) -> Option<u64> {
        loop {
            let oldest = self.running.first_entry()?;
            if oldest.get().deadline > now {
                return Some(oldest.get().deadline);
            }
            oldest.remove();
            tracing::debug!("a handshake is given up at its deadline");
        }
    }

    /// Has each of them polled: what would wake them may be gone with a runtime.
    pub(super) fn wake_all(&self) {
        for handshake in self.running.values() {
            handshake.notice.wake_by_ref();
        }
    }

    /// The outcome of one that has ended. Pending while none has, also when there is none; whoever
    /// polled last is woken then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        self.woken.driver.register(cx.waker());
        // Those alone that were woken until now: one that wakes itself must not keep us here.
        let mut due = std::mem::take(&mut *lock(&self.woken.list)).into_iter();
        while let Some(id) = due.next() {
            // It may have been given up.
            let Some(handshake) = self.running.get_mut(&id) else { continue };
            handshake.notice.noted.store(false, Ordering::Release);
            let waker = Waker::from(handshake.notice.clone());
            if let Poll::Ready(outcome) = handshake.run.as_mut().poll(&mut Context::from_waker(&waker)) {
                self.running.remove(&id);
                lock(&self.woken.list).extend(due);
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({} of {})", self.running.len(), self.limit)
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;
    use tokio::sync::oneshot;

    use super::*;

    fn poll<T>(set: &mut Pending<T>) -> Poll<T> {
        set.poll(&mut Context::from_waker(noop_waker_ref()))
    }

    /// One that ends with what it is sent, and with `None` when that cannot come any more.
    fn begin(set: &mut Pending<Option<u32>>, deadline: u64) -> oneshot::Sender<u32> {
        let (end, ended) = oneshot::channel();
        set.begin(deadline, async { ended.await.ok() });
        end
    }

    #[test]
    fn each_outcome_comes_once_in_whatever_order() {
        let mut set = Pending::new(8);
        let ends: Vec<_> = (0..4).map(|_| begin(&mut set, 1)).collect();
        assert!(poll(&mut set).is_pending());
        for (n, end) in ends.into_iter().enumerate().rev() {
            end.send(n as u32).unwrap();
        }
        let outcomes: Vec<_> = (0..4).map(|_| poll(&mut set)).collect();
        assert_eq!(outcomes, [3, 2, 1, 0].map(|n| Poll::Ready(Some(n))));
        assert!(poll(&mut set).is_pending() && set.len() == 0);
    }

    #[test]
    fn a_full_set_gives_up_its_oldest() {
        let mut set = Pending::new(2);
        let (first, second, third) = (begin(&mut set, 1), begin(&mut set, 1), begin(&mut set, 1));
        assert!(first.is_closed() && !second.is_closed());
        assert_eq!(set.len(), 2);
        third.send(3).unwrap();
        assert_eq!(poll(&mut set), Poll::Ready(Some(3)));
        assert!(set.give_up_oldest() && second.is_closed());
        assert!(!set.give_up_oldest() && poll(&mut set).is_pending());
    }

    #[test]
    fn the_overdue_go_and_the_next_deadline_is_known() {
        let mut set = Pending::new(8);
        let ends = [10, 20, 30].map(|deadline| begin(&mut set, deadline));
        assert_eq!(set.give_up_overdue(9), Some(10));
        assert_eq!(set.give_up_overdue(20), Some(30));
        assert_eq!(ends.map(|end| end.is_closed()), [true, true, false]);
        assert_eq!(set.give_up_overdue(30), None);
        assert_eq!(set.len(), 0);
    }

    #[test]
    fn only_the_woken_are_polled() {
        let polls = Arc::new(Mutex::new(Vec::new()));
        let mut set = Pending::new(8);
        for n in 0..3 {
            let polls = polls.clone();
            let waits = std::future::poll_fn(move |_| {
                lock(&polls).push(n);
                Poll::<()>::Pending
            });
            set.begin(1, waits);
        }
        assert!(poll(&mut set).is_pending() && poll(&mut set).is_pending());
        assert_eq!(std::mem::take(&mut *lock(&polls)), [0, 1, 2]);
        set.wake_all();
        set.wake_all();
        assert!(poll(&mut set).is_pending());
        assert_eq!(*lock(&polls), [0, 1, 2]);
    }

    #[test]
    fn one_that_wakes_itself_does_not_keep_the_others_waiting() {
        let mut set = Pending::new(8);
        set.begin(
            1,
            std::future::poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::Pending
            }),
        );
        set.begin(1, async { 7 });
        assert_eq!(poll(&mut set), Poll::Ready(7));
        assert!(poll(&mut set).is_pending());
    }

    #[tokio::test]
    async fn who_polled_last_is_woken() {
        let mut set = Pending::new(8);
        let end = begin(&mut set, 1);
        assert!(poll(&mut set).is_pending());
        let outcome = std::future::poll_fn(|cx| set.poll(cx));
        let (outcome, ()) = tokio::join!(outcome, async { end.send(1).unwrap() });
        assert_eq!(outcome, Some(1));
    }
}
