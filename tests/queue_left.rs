//! What killed processes leave in queues, for those who sleep meanwhile.

mod support;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use support::process::{Call, Meeting, forever};
use support::run_each;
use tokio_multiprocess as mp;

/// Gets an item and does nothing with it.
async fn take(queue: mp::JoinableQueue<u64>, test: String) {
    queue.get().await.unwrap();
    Call::to(&test).say("taken");
    forever();
}

async fn reserve(queue: mp::Queue<u64>, test: String) {
    let _permit = queue.reserve().await.unwrap();
    Call::to(&test).say("reserved");
    forever();
}

/// Has a future begin to sleep.
#[track_caller]
fn assert_sleeps(future: std::pin::Pin<&mut impl Future>) {
    assert!(matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
}

#[test]
fn who_joins_is_woken_when_a_consumer_dies() {
    run_each(60, async |context: mp::Context| {
        let (queue, meeting) = (mp::JoinableQueue::new(0).unwrap(), Meeting::new());
        queue.put(1).await.unwrap();
        let child = context.process(take, (queue.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "taken");
        let mut join = pin!(queue.join());
        assert_sleeps(join.as_mut());
        child.kill().unwrap();
        assert_eq!(join.await.unwrap(), 1);
        child.join().await.unwrap();
    });
}

#[test]
fn who_waits_for_a_slot_gets_that_of_a_dead_process() {
    run_each(60, async |context: mp::Context| {
        let (queue, meeting) = (mp::Queue::new(1).unwrap(), Meeting::new());
        let child = context.process(reserve, (queue.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "reserved");
        let mut put = pin!(queue.put(1));
        assert_sleeps(put.as_mut());
        child.kill().unwrap();
        put.await.unwrap();
        child.join().await.unwrap();
        assert_eq!(queue.get().await.unwrap(), 1);
    });
}
