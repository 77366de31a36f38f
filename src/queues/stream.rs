//! Queues as streams and sinks.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::{FusedStream, Stream};
use futures_sink::Sink;
use tokio::task::coop;

use super::error::{GetError, SinkError};
use super::feeder;
use super::item::Arrived;
use super::putting::Slot;
use super::queue::Queue;
use super::simple::SimpleQueue;
use crate::error::Error;
use crate::reduction::Message;
use crate::synchronize::wait::Sleeper;
use crate::sys::per_process::process_token;

/// The items of a queue that this gets, one after the other: see [`Queue::stream`].
///
/// It ends once the queue was shut down and all is got, or this process has closed it. An item that cannot be
/// decoded is an error, and the next one follows; so it may be after each other error but
/// [`Malformed`](crate::Error::Malformed), somebody having written over the queue's memory: that is the last.
///
/// It takes an item when it gives it, and none ahead. So it may be dropped at any time, or be asked by turns with
/// others, and nothing is lost. What is kept for later by an adaptor, such as `buffered` or `peekable`, is that
/// adaptor's.
///
/// It is a handle of the queue: as long as it has not ended, it keeps the queue open. Its waiting can be done on any
/// runtime, each time on another.
///
/// # Panics
/// If it has to wait outside of a runtime, or on one without I/O.
#[must_use = "streams do nothing unless polled"]
pub struct QueueStream<T> {
    /// Gone at the end.
    queue: Option<Queue<T>>,
    sleeper: Sleeper,
    /// Room for the next item, while this waits for it.
    item: Option<Arrived>,
}

impl<T> QueueStream<T> {
    fn of(queue: Queue<T>) -> Self {
        Self { queue: Some(queue), sleeper: Sleeper::default(), item: None }
    }
}

impl<T: Message> Stream for QueueStream<T> {
    type Item = Result<T, GetError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { queue, sleeper, item } = self.get_mut();
        let Some(open) = queue else { return Poll::Ready(None) };
        let room = item.get_or_insert_with(Arrived::new);
        Poll::Ready(match ready!(open.core().poll_get(room, sleeper, cx)) {
            Ok(()) => item.take().map(|item| open.read(item)),
            Err(GetError::ShutDown | GetError::Closed) => {
                (*queue, *item) = (None, None);
                None
            }
            Err(error) => {
                // It may be so for ever, and who skips errors would not come to rest.
                if let GetError::Failed(Error::Malformed(_)) = error {
                    (*queue, *item) = (None, None);
                }
                Some(Err(error))
            }
        })
    }
}

impl<T: Message> FusedStream for QueueStream<T> {
    fn is_terminated(&self) -> bool {
        self.queue.is_none()
    }
}

/// What puts items into a queue: see [`Queue::sink`].
///
/// To be ready is to have a slot [reserved](Queue::reserve), so that what is sent then does not wait: a queue that
/// is full holds up who sends. A queue without a limit is always ready. The slot is used by the next item, or
/// given back when the sink is closed or dropped; a sink that is ready and not used holds it, and who gets from a
/// queue that was shut down waits for it.
///
/// To flush it is to [flush](Queue::flush) the queue: nothing that this process has put waits for room after
/// that. To close it flushes, and gives the slot back; the queue stays open.
///
/// # Errors
/// With the item, if that was not put: when it cannot be encoded, when the queue is closed or shut down, when no memory
/// or descriptor is left. The sink may be used on.
///
/// # Panics
/// If it has to wait outside of a runtime, or on one without I/O; and if an item's `Serialize` panics.
#[must_use = "sinks do nothing unless polled"]
pub struct QueueSink<T> {
    queue: Queue<T>,
    sleeper: Sleeper,
    /// Which process has a slot reserved: a copy of it has none.
    reserved: Option<u64>,
    /// While it waits for that.
    flush: Option<Flush>,
}

type Flush = Pin<Box<dyn Future<Output = crate::Result<()>> + Send + Sync>>;

impl<T> QueueSink<T> {
    fn of(queue: Queue<T>) -> Self {
        Self { queue, sleeper: Sleeper::default(), reserved: None, flush: None }
    }

    fn is_reserved(&self) -> bool {
        self.reserved == Some(process_token())
    }

    fn give_back(&mut self) {
        self.sleeper.get_up();
        if self.is_reserved() {
            self.queue.core().give_back();
        }
        self.reserved = None;
    }

    fn poll_flush_now(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SinkError<T>>> {
        if self.flush.is_none() && feeder::is_waiting(self.queue.core()) {
            let core = self.queue.core().clone();
            self.flush = Some(Box::pin(async move { feeder::flush(&core).await }));
        }
        let flushed = match &mut self.flush {
            Some(flush) => ready!(flush.as_mut().poll(cx)),
            None => Ok(()),
        };
        self.flush = None;
        Poll::Ready(flushed.map_err(|error| SinkError { item: None, kind: error.into() }))
    }
}

impl<T: Message> Sink<T> for QueueSink<T> {
    type Error = SinkError<T>;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SinkError<T>>> {
        let this = self.get_mut();
        if this.queue.max_size().is_none() || this.is_reserved() {
            ready!(coop::poll_proceed(cx)).made_progress();
            return Poll::Ready(Ok(()));
        }
        match ready!(this.queue.core().poll_reserve(&mut this.sleeper, cx)) {
            Ok(()) => {
                this.reserved = Some(process_token());
                Poll::Ready(Ok(()))
            }
            Err(kind) => Poll::Ready(Err(SinkError { item: None, kind })),
        }
    }

    fn start_send(self: Pin<&mut Self>, item: T) -> Result<(), SinkError<T>> {
        let this = self.get_mut();
        let slot = if this.is_reserved() { Slot::Reserved } else { Slot::Free };
        let put = this.queue.try_put_for(item, slot);
        match &put {
            // It is the item's.
            Ok(()) => this.reserved = None,
            Err(_) => this.give_back(),
        }
        Ok(put?)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SinkError<T>>> {
        self.get_mut().poll_flush_now(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SinkError<T>>> {
        let this = self.get_mut();
        this.give_back();
        this.poll_flush_now(cx)
    }
}

impl<T> Drop for QueueSink<T> {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl<T> Queue<T> {
    /// The items that this gets from now on, as a stream. There may be several, and calls of
    /// [`get`](Self::get) beside them: each item comes to one of them.
    ///
    /// ```
    /// use futures::{SinkExt, StreamExt, stream};
    /// use tokio_multiprocess as mp;
    ///
    /// async fn lengths(words: mp::Queue<String>, lengths: mp::Queue<usize>) -> mp::Result<()> {
    ///     let each = words.stream().map(|word| Ok(word?.len()));
    ///     each.forward(lengths.sink().sink_err_into::<mp::Error>()).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
    /// let (words, counts) = (mp::Queue::new(2)?, mp::Queue::new(2)?);
    /// let child = mp::Process::builder(lengths, (words.clone(), counts.clone())).start().await?;
    ///
    /// let all = stream::iter(["some", "words", "or", "others"]).map(|word| Ok(word.to_owned()));
    /// let (sent, lengths) = tokio::join!(
    ///     async {
    ///         all.forward(words.sink()).await?;
    ///         words.shutdown()
    ///     },
    ///     counts.stream().take(4).map(Result::unwrap).collect::<Vec<_>>(),
    /// );
    /// sent?;
    /// assert_eq!(lengths, [4, 5, 2, 6]);
    /// child.join().await?;
    /// # Ok(()) }
    /// ```
    pub fn stream(&self) -> QueueStream<T> {
        QueueStream::of(self.clone())
    }

    /// What puts items into it, as a sink.
    pub fn sink(&self) -> QueueSink<T> {
        QueueSink::of(self.clone())
    }
}

impl<T> SimpleQueue<T> {
    /// The items that this gets from now on, as a stream: see [`Queue::stream`].
    pub fn stream(&self) -> QueueStream<T> {
        self.queue().stream()
    }
}

impl<T> fmt::Debug for QueueStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueStream").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for QueueSink<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSink").field("queue", &self.queue).finish_non_exhaustive()
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt, SinkExt, StreamExt, poll};

    use super::super::core::Held;
    use super::*;

    /// Of a lock that another task of this process holds, too, which has the same identity.
    #[test]
    fn who_polls_by_hand_waits_for_a_lock_that_others_hold() {
        const SOON: Duration = Duration::from_secs(20);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let queue = Queue::new(1).unwrap();
            let (mut stream, mut sink) = (queue.stream(), queue.sink());
            // It sleeps for an item first.
            assert!(poll!(stream.next()).is_pending());
            let locks = [&queue.core().0.producers, &queue.core().0.consumers];
            let [producers, consumers] = locks.map(|lock| Held::try_take(lock).unwrap());
            for lock in locks {
                assert!(Held::spin(lock).is_none() && Held::try_take(lock).is_none() && lock.locked());
            }
            let mut send = sink.send(7u8);
            assert!(poll!(&mut send).is_pending() && poll!(stream.next()).is_pending());
            drop(producers);
            tokio::time::timeout(SOON, send).await.unwrap().unwrap();
            assert!(stream.next().now_or_never().is_none());
            let mut next = stream.next();
            assert!(poll!(&mut next).is_pending());
            drop(consumers);
            assert_eq!(tokio::time::timeout(SOON, next).await.unwrap().unwrap().unwrap(), 7);
        });
    }
}
