//! The one way in which everything here waits.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::task::coop;

use super::exchange::{Aim, Exchange};
use super::object::Object;
use crate::error::{Error, Result};
use crate::reactor;

/// After how long a sleeper goes before those who come.
const STARVES: Duration = Duration::from_millis(10);

/// How an attempt stands among others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    /// If this attempt is in vain it sleeps, and others are told to ring.
    pub(crate) announced: bool,
    /// It was woken, or looks again after a tick.
    pub(crate) slept: bool,
    /// It has slept for more than 10 ms.
    pub(crate) starves: bool,
}

/// Tries until an attempt succeeds, and sleeps in between. Dropped while it sleeps, it leaves everything as it
/// was; what it was woken for goes to others.
///
/// # Errors
/// When the object is used by too many processes, or this one has no descriptors left to be woken by.
///
/// # Panics
/// If it has to sleep outside of a runtime, or on one without I/O.
pub(crate) async fn wait<T>(object: &Object, mut attempt: impl FnMut(Turn) -> Option<T>) -> Result<T> {
    let mut sleeper = Sleeper::default();
    poll_fn(|cx| sleeper.poll(object, cx, &mut attempt)).await
}

/// Of a task that always succeeds at once, others of its thread have their turn too.
#[inline]
pub(crate) async fn proceed() {
    poll_fn(|cx| coop::poll_proceed(cx).map(|coop| coop.made_progress())).await;
}

/// [`wait`], after a first attempt that was in vain.
pub(crate) async fn sleep<T>(object: &Object, mut attempt: impl FnMut(Turn) -> Option<T>) -> Result<T> {
    let mut sleeper = Sleeper::default();
    poll_fn(|cx| sleeper.poll_asleep(object, cx, &mut attempt)).await
}

/// [`wait`] and what else can be waited for, for a limited time by the kernel's clock: `None` when it is over.
/// Without any time, it is tried once.
pub(crate) async fn within<T, E: From<Error>>(
    time: Duration,
    wait: impl Future<Output = Result<T, E>>,
) -> Result<Option<T>, E> {
    let mut wait = pin!(wait);
    if time.is_zero() {
        // Whatever of its turn the task has had already.
        return match coop::unconstrained(poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx)))).await {
            Poll::Ready(done) => done.map(Some),
            Poll::Pending => Ok(None),
        };
    }
    tokio::select! {
        biased;
        done = wait => done.map(Some),
        over = reactor::sleep(time) => over.map(|()| None).map_err(|error| Error::from(error).into()),
    }
}

/// [`wait`] for those who poll it by hand: one who sleeps, from an attempt that was in vain until one that
/// succeeds, or until it is dropped. It may do so again and again, each time for whatever object.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    aim: Aim,
    asleep: Option<Asleep>,
}

#[derive(Debug)]
struct Asleep {
    object: Object,
    aim: Aim,
    number: u64,
    since: Instant,
    slept: bool,
}

impl Sleeper {
    /// Whether it has lain down since it last got up.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.is_some()
    }

    /// One who takes nothing, whose attempts are looks.
    pub(crate) fn onlooker() -> Self {
        Self { aim: Aim::Look, asleep: None }
    }

    /// One step of [`wait`]. While it is pending, the task is woken when there is something to be had.
    pub(crate) fn poll<T>(
        &mut self,
        object: &Object,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(Turn) -> Option<T>,
    ) -> Poll<Result<T>> {
        let coop = ready!(coop::poll_proceed(cx));
        let at_once = if self.asleep.is_none() { attempt(Turn::default()) } else { None };
        let done = match at_once {
            Some(done) => Ok(done),
            None => ready!(self.poll_asleep(object, cx, attempt)),
        };
        coop.made_progress();
        Poll::Ready(done)
    }

    /// [`poll`](Self::poll), if a first attempt was in vain already.
    pub(crate) fn poll_asleep<T>(
        &mut self,
        object: &Object,
        cx: &mut Context<'_>,
        attempt: impl FnOnce(Turn) -> Option<T>,
    ) -> Poll<Result<T>> {
        let done = match self.lie_down(object, cx) {
            Ok(turn) => Ok(ready!(attempt(turn).map_or(Poll::Pending, Poll::Ready))),
            Err(error) => Err(error),
        };
        self.get_up();
        Poll::Ready(done)
    }

    /// It sleeps no more; what it was woken for goes to others.
    pub(crate) fn get_up(&mut self) {
        self.asleep = None;
    }

    /// Goes to sleep for this object and no other, or again after it was woken. It has to try once more before
    /// it relies on that, and sleeps until a successful [`poll`](Self::poll), or until it is dropped.
    ///
    /// # Errors
    /// As those of [`wait`].
    ///
    /// # Panics
    /// As [`wait`] does.
    pub(crate) fn lie_down(&mut self, object: &Object, cx: &mut Context<'_>) -> Result<Turn> {
        self.asleep.take_if(|asleep| asleep.object.place() != object.place());
        let aim = self.aim;
        let asleep = match &mut self.asleep {
            Some(asleep) => {
                asleep.slept |= Exchange::get().stir(object, aim, asleep.number, cx.waker())?;
                asleep
            }
            none => {
                let number = Exchange::get().enter(object, aim, cx.waker())?;
                none.insert(Asleep {
                    object: object.clone(),
                    aim,
                    number,
                    since: Instant::now(),
                    slept: false,
                })
            }
        };
        let starves = asleep.since.elapsed() >= STARVES;
        Ok(Turn { announced: true, slept: asleep.slept, starves })
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        Exchange::get().leave(&self.object, self.aim, self.number);
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::super::heap::Heap;
    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// One who polls by hand, and how often it was woken.
    #[derive(Default)]
    struct Taker {
        sleeper: Sleeper,
        task: Arc<Task>,
    }

    impl Taker {
        fn poll(&mut self, heap: &Heap) -> Poll<()> {
            let waker = Waker::from(self.task.clone());
            self.sleeper.poll(&heap.0, &mut Context::from_waker(&waker), |_| heap.take()).map(Result::unwrap)
        }

        fn woken(&self) -> usize {
            self.task.0.load(Ordering::SeqCst)
        }
    }

    fn in_runtime(test: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        test();
    }

    #[test]
    fn who_polls_by_hand_sleeps_again_and_again() {
        in_runtime(|| {
            let (heap, mut taker) = (Heap::new(), Taker::default());
            for round in 0..3 {
                assert!(taker.poll(&heap).is_pending() && taker.poll(&heap).is_pending());
                heap.add();
                heap.add();
                assert_eq!((taker.woken(), taker.poll(&heap)), (round + 1, Poll::Ready(())));
                // It sleeps no more, and does not have to.
                assert_eq!(taker.poll(&heap), Poll::Ready(()));
            }
        });
    }

    #[test]
    fn who_is_woken_and_goes_leaves_it_to_the_next() {
        in_runtime(|| {
            let [heap, other] = [Heap::new(), Heap::new()];
            let [mut first, mut second, mut third] = [(); 3].map(|()| Taker::default());
            for taker in [&mut first, &mut second, &mut third] {
                assert!(taker.poll(&heap).is_pending());
            }
            heap.add();
            assert_eq!([&first, &second, &third].map(Taker::woken), [1, 0, 0]);
            drop(first);
            assert_eq!([&second, &third].map(Taker::woken), [1, 0]);
            // It goes to sleep for something else.
            assert!(second.poll(&other).is_pending());
            assert_eq!((third.woken(), third.poll(&heap)), (1, Poll::Ready(())));
            other.add();
            assert_eq!((second.woken(), second.poll(&other)), (2, Poll::Ready(())));
        });
    }
}
