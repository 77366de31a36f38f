//! Queues with processes that are killed at each of their accesses to what they share.

mod model;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use serde_bytes::ByteBuf;

use super::{JoinableQueue, Queue, SimpleQueue};
use crate::reduction::Blob;
use crate::sharedctypes::RawValue;
use crate::synchronize::protocol::bells;
use crate::synchronize::tests::{at_each_point, now};

/// Too large for the ring.
const LARGE: usize = 300 << 10;
/// How many extents a queue has.
const EXTENTS: usize = 64;

/// A number, bytes that follow from it, and that many handles.
type Item = (u8, ByteBuf, Vec<Blob>);

fn item(number: u8, size: usize, handles: usize) -> Item {
    (number, ByteBuf::from(vec![number; size]), vec![Blob::new([number; 9]).unwrap(); handles])
}

fn number((number, bytes, blobs): Item) -> u8 {
    assert!(bytes.iter().all(|byte| *byte == number));
    assert!(blobs.iter().all(|blob| blob[..] == [number; 9]));
    number
}

fn small(of: u8) -> Item {
    item(of, 5, 0)
}

/// Takes all that is there.
fn drain(queue: &Queue<Item>) -> Vec<u8> {
    std::iter::from_fn(|| match queue.try_get() {
        Ok(item) => Some(number(item)),
        Err(error) => {
            assert!(error.is_empty(), "{error}");
            None
        }
    })
    .collect()
}

/// The queue is empty, and has all of its slots.
fn assert_is_as_new(queue: &Queue<Item>) {
    assert_eq!((queue.len(), queue.is_full()), (0, false));
    let max = queue.max_size().unwrap_or(3) as u8;
    for number in 0..max {
        queue.try_put(small(number)).unwrap();
    }
    if queue.max_size().is_some() {
        assert!(queue.try_put(small(max)).unwrap_err().is_full());
    }
    assert_eq!(drain(queue), (0..max).collect::<Vec<_>>());
}

/// The dead have no extents: as many large items as there are extents go into the queue's memory.
fn assert_has_extents(queue: &Queue<Item>) {
    for of in 0..EXTENTS as u8 {
        queue.try_put(item(of, LARGE, 0)).unwrap();
    }
    assert!(pin!(queue.flush()).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    assert_eq!(drain(queue), (0..EXTENTS as u8).collect::<Vec<_>>());
}

/// Of so many that put one after the other, each is killed at another point.
fn who_puts(max: usize, put: impl Fn(&Queue<Item>)) {
    let queue = Queue::new(max).unwrap();
    at_each_point(
        || {
            queue.try_put(small(0)).unwrap();
            queue.clone()
        },
        async |_| {},
        put,
        |queue, ended| {
            let len = queue.len();
            if max > 0 {
                assert_eq!(queue.is_full(), len == max);
            }
            let numbers = drain(queue);
            assert_eq!(numbers.len(), len);
            assert!(numbers == [0, 1] || !ended && numbers == [0], "{numbers:?}");
            assert_is_as_new(queue);
        },
    );
    if max == 0 {
        assert_has_extents(&queue);
    }
}

#[test]
fn an_item_is_put_or_not_whatever_its_process_died_at() {
    who_puts(2, |queue| now(queue.put(small(1))));
    who_puts(2, |queue| now(queue.reserve()).send(small(1)).unwrap());
}

#[test]
fn a_large_item_is_put_or_not_whatever_its_process_died_at() {
    who_puts(0, |queue| now(queue.put(item(1, LARGE, 1))));
}

#[test]
fn an_item_with_handles_is_put_or_not_whatever_its_process_died_at() {
    who_puts(2, |queue| now(queue.put(item(1, 5, 2))));
}

#[test]
fn a_slot_is_free_again_whatever_who_reserved_it_died_at() {
    at_each_point(
        || Queue::<Item>::new(1).unwrap(),
        async |_| {},
        |queue| drop(now(queue.reserve())),
        |queue, _| assert_is_as_new(queue),
    );
}

#[test]
fn what_waits_for_room_ends_with_its_process_and_nothing_else_does() {
    const SIZE: usize = 200 << 10;
    at_each_point(
        || Queue::new(8).unwrap(),
        async |_| {},
        |queue| {
            // Five of them have room.
            for of in 0..8 {
                queue.try_put(item(of, SIZE, 0)).unwrap();
            }
            // The feeder has its turn, until it sleeps for room.
            let room = queue.core().0.room.words();
            while !bells::anyone_else(room) {
                std::thread::sleep(Duration::from_micros(100));
            }
        },
        |queue, ended| {
            let len = queue.len();
            let numbers = drain(queue);
            assert_eq!(numbers.len(), len);
            assert_eq!(numbers, (0..len as u8).collect::<Vec<_>>());
            assert!(len == 5 || !ended && len < 5, "{len}");
            assert_is_as_new(queue);
        },
    );
}

/// Of so many that get one after the other, each is killed at another point.
fn who_gets(max: usize, first: impl Fn() -> Item) {
    let queue = Queue::new(max).unwrap();
    at_each_point(
        || {
            for item in [first(), item(1, 5, 1), small(2)] {
                queue.try_put(item).unwrap();
            }
            queue.clone()
        },
        async |_| {},
        |queue| assert_eq!(number(now(queue.get())), 0),
        |queue, ended| {
            let len = queue.len();
            let numbers = drain(queue);
            assert_eq!(numbers.len(), len);
            assert!(numbers == [1, 2] || !ended && numbers == [0, 1, 2], "{numbers:?}");
            assert_is_as_new(queue);
        },
    );
    if max == 0 {
        assert_has_extents(&queue);
    }
}

#[test]
fn an_item_is_got_or_is_still_there_whatever_who_gets_it_died_at() {
    who_gets(3, || small(0));
    who_gets(3, || item(0, 5, 2));
    who_gets(0, || item(0, LARGE, 2));
}

#[test]
fn a_simple_queue_loses_what_is_in_hand_alone() {
    at_each_point(
        || {
            let queue = SimpleQueue::new().unwrap();
            now(queue.put(small(0)));
            now(queue.put(small(1)));
            queue
        },
        async |_| {},
        |queue| {
            number(now(queue.get()));
            now(queue.put(small(2)));
        },
        |queue, ended| {
            let mut numbers = Vec::new();
            while !queue.is_empty() {
                numbers.push(number(now(queue.get())));
            }
            assert!(numbers == [1, 2] || !ended && (numbers == [1] || numbers == [0, 1]), "{numbers:?}");
        },
    );
}

#[test]
fn what_was_got_and_not_acknowledged_is_counted_once_whatever_who_got_it_died_at() {
    at_each_point(
        || {
            let queue = JoinableQueue::new(3).unwrap();
            for of in 0..3 {
                queue.try_put(small(of)).unwrap();
            }
            (queue, RawValue::<u8>::new(0).unwrap())
        },
        async |_| {},
        |(queue, step)| {
            number(now(queue.get()));
            step.set(1);
            queue.task_done().unwrap();
            step.set(2);
            number(now(queue.get()));
            step.set(3);
        },
        |(queue, step), _| {
            let is_joined = || pin!(queue.join()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
            assert!(!is_joined());
            let numbers = drain(queue);
            let taken = 3 - numbers.len() as u64;
            assert_eq!(numbers, (taken as u8..3).collect::<Vec<_>>());
            for _ in numbers {
                assert!(!is_joined());
                queue.task_done().unwrap();
            }
            assert!(queue.task_done().is_err());
            let left = now(queue.join());
            match step.get() {
                0 => assert_eq!(left, taken),
                // It has acknowledged it, or not.
                1 => assert!(taken == 1 && left <= 1),
                _ => assert_eq!(left, taken - 1),
            }
            assert_is_as_new(queue);
        },
    );
}

#[test]
fn who_waits_for_an_item_gets_the_next_whatever_who_put_one_died_at() {
    at_each_point(
        || Queue::new(2).unwrap(),
        async |queue: Queue<Item>| assert!([1, 2].contains(&number(queue.get().await.unwrap()))),
        |queue| now(queue.put(small(1))),
        |queue, ended| {
            if !ended {
                queue.try_put(small(2)).unwrap();
            }
        },
    );
}

#[test]
fn who_waits_for_a_slot_gets_one_whatever_who_had_it_died_at() {
    let full = || {
        let queue = Queue::new(1).unwrap();
        queue.try_put(small(0)).unwrap();
        queue
    };
    at_each_point(
        full,
        async |queue: Queue<Item>| queue.put(small(1)).await.unwrap(),
        |queue| drop(now(queue.get())),
        |queue, ended| {
            // Else it was not got, and who waits goes on waiting, rightly.
            if !ended && queue.len() == 1 {
                queue.try_get().unwrap();
            }
        },
    );
}

#[test]
fn who_waits_until_all_is_done_is_told_whatever_the_last_died_at() {
    at_each_point(
        || {
            let queue = JoinableQueue::new(1).unwrap();
            queue.try_put(small(0)).unwrap();
            queue
        },
        async |queue: JoinableQueue<Item>| assert!(queue.join().await.unwrap() <= 1),
        |queue| {
            number(now(queue.get()));
            queue.task_done().unwrap();
        },
        |queue, ended| {
            if !ended && queue.try_get().is_ok() {
                queue.task_done().unwrap();
            }
        },
    );
}

#[test]
fn who_waits_for_an_item_learns_that_it_is_over_whatever_who_said_so_died_at() {
    at_each_point(
        || Queue::new(2).unwrap(),
        async |queue: Queue<Item>| drop(queue.get().await.unwrap_err()),
        |queue| queue.shutdown().unwrap(),
        |queue, ended| {
            let over = matches!(queue.try_get(), Err(super::GetError::ShutDown));
            assert!(over || !ended);
            if !over {
                queue.shutdown().unwrap();
            }
        },
    );
}
