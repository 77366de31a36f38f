//! Queues as streams and sinks.

#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeSet;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::stream::{self, FusedStream};
use futures::{FutureExt, SinkExt, StreamExt, TryStreamExt, poll};
use serde::{Deserialize, Serialize, Serializer};
use support::{PATIENCE, Random, current_thread, guard, multi_thread, run, run_each};
use tokio::time::timeout;
use tokio_multiprocess as mp;
use tokio_multiprocess::{
    GetError, JoinableQueue, PutErrorKind, Queue, QueueSink, QueueStream, SimpleQueue, SinkError,
};

const WATCHDOG: u64 = 120;

fn is_free<T: Send + Sync + Unpin + 'static>() {}

#[test]
fn they_go_anywhere_whatever_the_items_are() {
    is_free::<QueueStream<Rc<u8>>>();
    is_free::<QueueSink<Rc<u8>>>();
}

async fn squares(numbers: Queue<u64>, squares: JoinableQueue<u64>) -> mp::Result<()> {
    let each = numbers.stream().err_into().map_ok(|number| number * number);
    each.forward(squares.sink().sink_err_into::<mp::Error>()).await
}

#[test]
fn streams_and_sinks_go_through_processes_and_combinators() {
    run_each(WATCHDOG, async |context| {
        const NUMBERS: u64 = 3_000;
        let (numbers, results) = (Queue::new(4).unwrap(), JoinableQueue::new(3).unwrap());
        let child = context.process(squares, (numbers.clone(), results.clone())).start().await.unwrap();
        let put = async {
            stream::iter(0..NUMBERS).map(Ok).forward(numbers.sink()).await.unwrap();
            numbers.shutdown().unwrap();
        };
        let got = async {
            let first: Vec<_> = results.stream().take(10).try_collect().await.unwrap();
            let chunks = results.stream().take(NUMBERS as usize - 10).chunks(7);
            let each =
                chunks.map(|chunk| async move { chunk.into_iter().map(Result::unwrap).collect::<Vec<_>>() });
            let rest = each.buffered(3).concat().await;
            [first, rest].concat()
        };
        let ((), got) = tokio::join!(put, got);
        assert!(got.into_iter().eq((0..NUMBERS).map(|number| number * number)));
        assert!(child.join().await.unwrap().success());
    });
}

#[test]
fn a_stream_ends_with_its_queue_and_stays_so() {
    run(WATCHDOG, async {
        let queue = Queue::new(0).unwrap();
        let (mut first, mut second) = (queue.stream(), queue.stream());
        assert!(poll!(first.next()).is_pending() && poll!(second.next()).is_pending());
        for item in 0..3 {
            queue.try_put(item).unwrap();
        }
        queue.shutdown().unwrap();
        assert_eq!(first.next().await.unwrap().unwrap(), 0);
        assert!(!first.is_terminated());
        let rest: Vec<_> = timeout(PATIENCE, first.by_ref().try_collect()).await.unwrap().unwrap();
        assert_eq!(rest, [1, 2]);
        assert!(timeout(PATIENCE, second.next()).await.unwrap().is_none());
        for stream in [&mut first, &mut second] {
            assert!(stream.is_terminated() && stream.next().await.is_none());
        }

        let queue = SimpleQueue::<u64>::new().unwrap();
        let mut stream = queue.stream();
        let mut next = stream.next();
        assert!(poll!(&mut next).is_pending());
        queue.put(1).await.unwrap();
        queue.close();
        // The item is others'.
        assert!(timeout(PATIENCE, next).await.unwrap().is_none());
        assert!(stream.is_terminated() && stream.next().await.is_none());
    });
}

#[test]
fn a_slow_consumer_holds_up_who_puts() {
    run(WATCHDOG, async {
        let queue = Queue::new(3).unwrap();
        let (mut sink, mut other) = (queue.sink(), queue.sink());
        let mut stream = queue.stream();
        for item in 0..2 {
            sink.feed(item).await.unwrap();
        }
        // The last slot is reserved by who is ready, as often as it says so.
        for _ in 0..2 {
            assert!(poll!(futures::future::poll_fn(|cx| sink.poll_ready_unpin(cx))).is_ready());
        }
        assert!(queue.is_full() && queue.try_put(9).unwrap_err().is_full());
        let mut feed = other.feed(3);
        assert!(poll!(&mut feed).is_pending());
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        timeout(PATIENCE, feed).await.unwrap().unwrap();
        assert!(sink.start_send_unpin(2).is_ok());
        assert_eq!(queue.len(), 3);
        let mut more = sink.send(4);
        assert!(poll!(&mut more).is_pending());
        let got: Vec<_> = stream.by_ref().take(2).try_collect().await.unwrap();
        assert_eq!(got, [1, 3]);
        timeout(PATIENCE, more).await.unwrap().unwrap();
        queue.shutdown().unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [2, 4]);
    });
}

/// A slot comes back when the sink that has it is closed or dropped, or when its item is none.
#[test]
fn a_sink_keeps_no_slot() {
    run(WATCHDOG, async {
        let queue = Queue::new(1).unwrap();
        let mut sink = queue.sink();
        let ready = async |sink: &mut QueueSink<Picky>| {
            let ready = futures::future::poll_fn(|cx| sink.poll_ready_unpin(cx));
            timeout(PATIENCE, ready).await.unwrap().unwrap();
            assert!(queue.is_full());
        };
        ready(&mut sink).await;
        let error = sink.start_send_unpin(Picky(13)).unwrap_err();
        assert_eq!(error.item.unwrap().0, 13);
        assert!(matches!(error.kind, PutErrorKind::Encode(_)) && !queue.is_full());

        ready(&mut sink).await;
        let mut waits = queue.sink();
        let mut waits = waits.send(Picky(1));
        assert!(poll!(&mut waits).is_pending());
        sink.close().await.unwrap();
        timeout(PATIENCE, waits).await.unwrap().unwrap();
        assert_eq!(queue.get().await.unwrap().0, 1);

        ready(&mut sink).await;
        let mut reserves = pin!(queue.reserve());
        assert!(poll!(&mut reserves).is_pending());
        drop(sink);
        timeout(PATIENCE, reserves).await.unwrap().unwrap().send(Picky(2)).unwrap();

        // Who is ready when it is shut down holds up nobody who gets.
        assert_eq!(queue.get().await.unwrap().0, 2);
        let mut sink = queue.sink();
        ready(&mut sink).await;
        queue.shutdown().unwrap();
        let error = sink.start_send_unpin(Picky(3)).unwrap_err();
        assert!(matches!((error.item, error.kind), (Some(Picky(3)), PutErrorKind::ShutDown)));
        assert!(matches!(timeout(PATIENCE, queue.get()).await.unwrap(), Err(GetError::ShutDown)));
        let none = sink.send(Picky(4)).await.unwrap_err();
        assert!(matches!(none, SinkError { item: None, kind: PutErrorKind::ShutDown, .. }));
        assert!(matches!(mp::Error::from(none), mp::Error::ShutDown));
    });
}

/// No thirteen.
#[derive(Debug, Deserialize)]
struct Picky(u64);

impl Serialize for Picky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == 13 {
            return Err(serde::ser::Error::custom("thirteen"));
        }
        self.0.serialize(serializer)
    }
}

/// Reads what was not written for it.
#[derive(Debug, PartialEq, Serialize)]
struct Even(u64);

impl<'de> Deserialize<'de> for Even {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            even if even % 2 == 0 => Ok(Self(even)),
            odd => Err(serde::de::Error::custom(format_args!("{odd} is odd"))),
        }
    }
}

#[test]
fn after_an_item_that_cannot_be_decoded_comes_the_next() {
    run(WATCHDOG, async {
        let queue = Queue::new(0).unwrap();
        let mut sink = queue.sink();
        sink.send_all(&mut stream::iter((0..5).map(|number| Ok(Even(number))))).await.unwrap();
        queue.shutdown().unwrap();
        let got: Vec<_> = queue.stream().collect().await;
        assert_eq!(got.len(), 5);
        for (number, got) in got.into_iter().enumerate() {
            match got {
                Ok(even) => assert_eq!(even, Even(number as u64)),
                Err(GetError::Decode(_)) => assert!(number % 2 == 1),
                Err(other) => panic!("{other}"),
            }
        }
    });
}

#[test]
fn to_flush_is_to_have_all_in_shared_memory() {
    run(WATCHDOG, async {
        const ITEMS: u8 = 40;
        let queue = Queue::new(0).unwrap();
        let mut sink = queue.sink();
        for item in 0..ITEMS {
            // Five times what the ring has room for, and none lies beside it.
            sink.feed(vec![item; 128 << 10]).await.unwrap();
        }
        let mut stream = queue.stream();
        {
            let mut flush = sink.flush();
            assert!(poll!(&mut flush).is_pending());
            let mut got = 0;
            let flushed = loop {
                tokio::select! {
                    biased;
                    flushed = &mut flush => break flushed,
                    item = stream.next() => {
                        assert_eq!(item.unwrap().unwrap(), vec![got; 128 << 10]);
                        got += 1;
                    }
                }
            };
            flushed.unwrap();
            assert!(got > 0 && usize::from(ITEMS - got) == queue.len());
        }
        // Nothing waits any more.
        assert!(sink.flush().now_or_never().unwrap().is_ok());
        assert!(sink.close().now_or_never().unwrap().is_ok());
        queue.shutdown().unwrap();
        stream.try_collect::<Vec<_>>().await.unwrap();
    });
}

async fn put_by_sinks(queue: Queue<u64>, first: u64, last: u64) -> mp::Result<()> {
    let mut random = Random::from_seed(first + 1);
    let mut next = first;
    while next < last {
        let mut sink = queue.sink();
        for _ in 0..random.below(5) {
            if next == last {
                break;
            }
            // Given up while it waits for a slot, or when it has one.
            let ready = futures::future::poll_fn(|cx| sink.poll_ready_unpin(cx));
            match random.below(3) {
                0 => drop(timeout(Duration::from_micros(random.below(200)), ready).await),
                1 => drop(ready.now_or_never()),
                _ => {
                    ready.await?;
                    sink.start_send_unpin(next)?;
                    next += 1;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn streams_and_sinks_that_are_dropped_at_whatever_point_lose_nothing() {
    run(WATCHDOG, async {
        const ITEMS: u64 = 3_000;
        const PRODUCERS: u64 = 2;
        let queue = Queue::new(3).unwrap();
        let mut children = Vec::new();
        for producer in 0..PRODUCERS {
            let (first, last) = (producer * ITEMS, (producer + 1) * ITEMS);
            let child = mp::Process::builder(put_by_sinks, (queue.clone(), first, last));
            children.push(child.start().await.unwrap());
        }
        let consumers = (1..=3).map(|seed| {
            let queue = queue.clone();
            tokio::spawn(async move {
                let mut random = Random::from_seed(seed);
                let (mut got, mut stream) = (Vec::new(), queue.stream());
                loop {
                    match random.below(4) {
                        0 => stream = queue.stream(),
                        1 => got.extend(stream.next().now_or_never().flatten()),
                        2 => {
                            let some = Duration::from_micros(random.below(300));
                            got.extend(timeout(some, stream.next()).await.ok().flatten());
                        }
                        _ => match stream.next().await {
                            Some(item) => got.push(item),
                            None => return got,
                        },
                    }
                }
            })
        });
        let consumers: Vec<_> = consumers.collect();
        for child in children {
            assert!(child.join().await.unwrap().success());
        }
        queue.shutdown().unwrap();
        let mut all = BTreeSet::new();
        for consumer in consumers {
            let mut last = [None; PRODUCERS as usize];
            for item in timeout(PATIENCE, consumer).await.unwrap().unwrap() {
                let item = item.unwrap();
                // In order, and once.
                let of_its_producer = &mut last[(item / ITEMS) as usize];
                assert!(*of_its_producer < Some(item) && all.insert(item));
                *of_its_producer = Some(item);
            }
        }
        assert!(all.into_iter().eq(0..PRODUCERS * ITEMS));
        assert!(!queue.is_full() && queue.is_empty());
    });
}

/// Each wait is on another runtime, of which some have ended.
#[test]
fn they_go_from_runtime_to_runtime() {
    let _guard = guard(WATCHDOG);
    let queue = Queue::new(1).unwrap();
    let (mut sink, mut stream) = (queue.sink(), queue.stream());
    for round in 0..20 {
        for runtime in [current_thread(), multi_thread()] {
            runtime.block_on(async {
                assert!(poll!(stream.next()).is_pending());
            });
        }
        current_thread().block_on(async {
            let later = std::thread::spawn({
                let queue = queue.clone();
                move || queue.try_put(round).unwrap()
            });
            assert_eq!(timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap(), round);
            later.join().unwrap();
        });
        multi_thread().block_on(async {
            sink.send(round).await.unwrap();
            assert!(poll!(sink.send(9)).is_pending());
        });
        current_thread().block_on(async {
            let (sent, got) = tokio::join!(sink.feed(round + 1), stream.next());
            sent.unwrap();
            assert_eq!(got.unwrap().unwrap(), round);
            assert_eq!(stream.next().await.unwrap().unwrap(), round + 1);
        });
    }
}
