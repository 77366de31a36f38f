//! Queues without a feeder.

#![cfg(target_os = "linux")]

mod support;

use std::time::Duration;

use mp::{GetError, PutErrorKind, SimpleQueue};
use support::process::{Call, Meeting};
use support::{run, run_each};
use tokio_multiprocess as mp;

const SOON: Duration = Duration::from_secs(20);

// conformance: TestSimpleQueue.test_empty
#[test]
fn whether_it_is_empty_is_seen_everywhere() {
    async fn tells(queue: SimpleQueue<bool>) -> mp::Result<()> {
        queue.put(queue.is_empty()).await?;
        queue.put(queue.is_empty()).await?;
        Ok(())
    }
    run_each(60, async |context| {
        let queue = SimpleQueue::new().unwrap();
        assert!(queue.is_empty());
        let child = context.process(tells, (queue.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert!(!queue.is_empty());
        assert!(queue.get().await.unwrap());
        assert!(!queue.get().await.unwrap());
        assert!(queue.is_empty());
    });
}

// conformance: TestSimpleQueue.test_close
// conformance: TestSimpleQueue.test_closed
#[test]
fn a_closed_one_neither_takes_nor_gives() {
    run(60, async {
        let queue = SimpleQueue::new().unwrap();
        queue.put(1).await.unwrap();
        queue.close();
        queue.close();
        let error = queue.put(2).await.unwrap_err();
        assert_eq!((error.item, matches!(error.kind, PutErrorKind::Closed)), (2, true));
        assert!(matches!(queue.get().await, Err(GetError::Closed)));
        assert!(matches!(queue.try_get(), Err(GetError::Closed)));
        assert!(matches!(queue.get_timeout(SOON).await, Err(GetError::Closed)));
    });
}

#[test]
fn all_ways_to_put_and_its_end() {
    run(60, async {
        let queue = SimpleQueue::new().unwrap();
        let mut put = 0u8;
        while queue.try_put(vec![put; 100_000]).is_ok() {
            put += 1;
        }
        assert!(put >= 9 && queue.len() == usize::from(put));
        let late = queue.put_timeout(vec![put; 100_000], Duration::from_millis(1)).await.unwrap_err();
        assert!(late.is_full() && !late.is_closed() && !late.is_shut_down());
        assert_eq!(queue.get().await.unwrap(), vec![0; 100_000]);
        queue.put_timeout(late.item, SOON).await.unwrap();
        assert!(!queue.is_shut_down());
        queue.shutdown().unwrap();
        assert!(queue.is_shut_down() && !queue.is_closed());
        let error = queue.try_put(vec![]).unwrap_err();
        assert!(error.is_shut_down() && mp::Error::from(error).is_shut_down());
        for number in 1..=put {
            assert_eq!(queue.try_get().unwrap(), vec![number; 100_000]);
        }
        let error = queue.try_get().unwrap_err();
        assert!(error.is_shut_down() && !error.is_closed() && !error.is_empty());
        queue.close();
        assert!(queue.is_closed() && queue.get().await.unwrap_err().is_closed());
    });
}

/// What is put is out of its process's hands, and who finds no room waits for it.
#[test]
fn what_was_put_outlives_who_put_it() {
    async fn puts(queue: SimpleQueue<Vec<u8>>, address: String) -> mp::Result<()> {
        for number in 0..20 {
            queue.put(vec![number; 100_000]).await?;
        }
        Call::to(&address).say("all put");
        std::future::pending::<()>().await;
        Ok(())
    }
    run_each(60, async |context| {
        let (queue, meeting) = (SimpleQueue::new().unwrap(), Meeting::new());
        let child = context.process(puts, (queue.clone(), meeting.address())).start().await.unwrap();
        for number in 0..10 {
            assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number; 100_000]);
        }
        assert_eq!(meeting.word().await, "all put");
        queue.put(vec![255; 1_000_000]).await.unwrap();
        child.kill().unwrap();
        child.join().await.unwrap();
        for number in 10..20 {
            assert_eq!(queue.try_get().unwrap(), vec![number; 100_000]);
        }
        assert_eq!(queue.try_get().unwrap(), vec![255; 1_000_000]);
        assert!(queue.is_empty());
    });
}

#[test]
fn a_put_that_waits_for_room_can_be_dropped() {
    run(60, async {
        let queue = SimpleQueue::new().unwrap();
        let mut put = 0u64;
        let full = loop {
            let item = vec![put as u8; 100_000];
            match tokio::time::timeout(Duration::from_millis(20), queue.put(item)).await {
                Ok(done) => done.unwrap(),
                Err(elapsed) => break elapsed,
            }
            put += 1;
        };
        assert!(put >= 9, "{full} after {put}");
        for number in 0..put {
            assert_eq!(queue.try_get().unwrap(), vec![number as u8; 100_000]);
        }
        assert!(queue.is_empty());
        queue.put(vec![1; 3]).await.unwrap();
        assert_eq!(queue.try_get().unwrap(), [1; 3]);
        assert!(queue.is_empty());
    });
}
