//! Queues: order, slots, sizes, handles, ends.

mod support;

use std::io::{Read, Write};
use std::time::Duration;

use support::{methods, run};
use tokio_multiprocess as mp;

/// Long enough for whatever happens, and short enough for a test.
const SOON: Duration = Duration::from_secs(20);

async fn put_all(queue: mp::Queue<u64>, range: std::ops::Range<u64>) -> mp::Result<()> {
    for number in range {
        queue.put(number).await?;
    }
    Ok(())
}

#[test]
fn items_come_out_in_order() {
    run(60, async {
        let queue = mp::Queue::new(0).unwrap();
        for context in methods() {
            let child = context.process(put_all, (queue.clone(), 0..10_000)).start().await.unwrap();
            for number in 0..10_000 {
                assert_eq!(queue.get_timeout(SOON).await.unwrap(), number);
            }
            child.join().await.unwrap();
            assert!(queue.try_get().unwrap_err().is_empty());
        }
    });
}

#[test]
fn a_full_queue_has_room_again_once_something_is_got() {
    run(60, async {
        let queue = mp::Queue::new(2).unwrap();
        queue.put(1).await.unwrap();
        queue.try_put(2).unwrap();
        assert!(queue.is_full() && queue.len() == 2);
        assert!(queue.try_put(3).unwrap_err().is_full());
        assert!(queue.put_timeout(3, Duration::from_millis(10)).await.unwrap_err().is_full());
        let (put, got) = tokio::join!(queue.put(3), async { queue.get().await });
        put.unwrap();
        assert_eq!(got.unwrap(), 1);
        assert_eq!((queue.get().await.unwrap(), queue.get().await.unwrap()), (2, 3));
        assert!(queue.is_empty());
    });
}

async fn echo(there: mp::Queue<Vec<u8>>, back: mp::Queue<Vec<u8>>) -> mp::Result<()> {
    while let Ok(item) = there.get().await {
        back.put(item).await?;
    }
    Ok(())
}

#[test]
fn items_of_any_size_come_back() {
    run(60, async {
        let (there, back) = (mp::Queue::new(16).unwrap(), mp::Queue::new(16).unwrap());
        let child = mp::Process::builder(echo, (there.clone(), back.clone())).start().await.unwrap();
        for size in [0, 1, 7, 100, 5_000, 262_000, 262_144, 300_000, 1 << 20, 5_000_000] {
            let item: Vec<u8> = (0..size).map(|i| (i * 7) as u8).collect();
            there.put(item.clone()).await.unwrap();
            assert!(back.get_timeout(SOON).await.unwrap() == item, "{size}");
        }
        there.shutdown().unwrap();
        child.join().await.unwrap();
    });
}

#[test]
fn more_than_there_is_room_for_waits_in_its_process() {
    run(60, async {
        let queue = mp::Queue::new(0).unwrap();
        for number in 0..100u64 {
            queue.put(vec![number as u8; 100_000]).await.unwrap();
        }
        assert_eq!(queue.len(), 100);
        for number in 0..100u64 {
            assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number as u8; 100_000]);
        }
        queue.flush().await;
        assert!(queue.is_empty());
    });
}

#[test]
fn handles_travel_with_items() {
    run(60, async {
        let queue = mp::Queue::new(0).unwrap();
        let (reads, mut writes) = std::io::pipe().unwrap();
        queue.put((5u64, mp::Handle::new(reads))).await.unwrap();
        let (number, handle) = queue.get().await.unwrap();
        writes.write_all(b"through").unwrap();
        drop(writes);
        let mut text = String::new();
        handle.into_inner().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((number, text.as_str()), (5, "through"));
        let blobs = mp::Queue::new(0).unwrap();
        blobs.put(vec![mp::Blob::new([7; 100_000]).unwrap(); 300]).await.unwrap();
        assert!(blobs.get().await.unwrap().iter().all(|blob| blob[..] == [7; 100_000]));
    });
}

async fn fork_row(queue: mp::Queue<u64>) -> mp::Result<()> {
    put_all(queue, 10..20).await
}

// conformance: _TestQueue.test_fork
#[test]
fn a_child_does_not_end_before_its_items_are_put() {
    run(60, async {
        let queue = mp::Queue::new(0).unwrap();
        put_all(queue.clone(), 0..10).await.unwrap();
        let child = mp::Process::builder(fork_row, (queue.clone(),)).start().await.unwrap();
        child.join().await.unwrap();
        for number in 0..20 {
            assert_eq!(queue.try_get().unwrap(), number);
        }
        assert!(queue.try_get().unwrap_err().is_empty());
    });
}

#[test]
fn what_is_got_is_to_be_acknowledged() {
    run(60, async {
        let queue = mp::JoinableQueue::new(0).unwrap();
        assert_eq!(queue.join().await.unwrap(), 0);
        queue.put(1).await.unwrap();
        queue.put(2).await.unwrap();
        assert!(queue.task_done().is_err());
        queue.get().await.unwrap();
        queue.task_done().unwrap();
        assert!(queue.task_done().is_err());
        queue.get().await.unwrap();
        let (joined, ()) = tokio::join!(queue.join(), async { queue.task_done().unwrap() });
        assert_eq!(joined.unwrap(), 0);
    });
}

/// A queue, its permits and futures go from thread to thread, whatever its items may do.
#[test]
fn futures_are_send_whatever_the_items_are() {
    fn is_send<T: Send>(_: &T) {}
    fn is_all<T: Send + Sync + Unpin + 'static>() {}
    type Item = std::cell::Cell<u64>;
    is_all::<mp::Queue<Item>>();
    is_all::<mp::JoinableQueue<Item>>();
    is_all::<mp::SimpleQueue<Item>>();
    is_all::<mp::Permit<'static, Item>>();
    run(60, async {
        let queue = mp::Queue::<Item>::new(0).unwrap();
        let simple = mp::SimpleQueue::<Item>::new().unwrap();
        is_send(&queue.put(Item::new(1)));
        is_send(&queue.put_timeout(Item::new(1), SOON));
        is_send(&(queue.get(), queue.get_timeout(SOON), queue.reserve(), queue.flush()));
        is_send(&(simple.put(Item::new(1)), simple.get()));
    });
}
