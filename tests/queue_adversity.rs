//! Queues at limits: of descriptors, of runtimes that nobody drives, of copies, of themselves.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "fork")]

mod support;

use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use mp::Queue;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use support::limits::limited;
use support::process::{Call, Meeting};
use support::{guard_with, multi_thread, run, run_each};
use tokio_multiprocess as mp;

const SOON: Duration = Duration::from_secs(5);

/// What was put is not lost because the feeder cannot sleep for want of descriptors.
#[test]
fn a_feeder_in_a_runtime_outlasts_a_want_of_descriptors() {
    run(60, async {
        let queue = Queue::new(0).unwrap();
        let starved = limited(0);
        for number in 0..20u8 {
            queue.put(vec![number; 200_000]).await.unwrap();
        }
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        drop(starved);
        assert_eq!(queue.len(), 20);
        for number in 0..20 {
            assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number; 200_000]);
        }
    });
}

async fn ends_without_descriptors(queue: Queue<Vec<u8>>, address: String) -> mp::Result<()> {
    for number in 0..20 {
        queue.put(vec![number; 200_000]).await?;
    }
    Call::to(&address).say("all put");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    Ok(())
}

#[test]
fn the_end_of_a_process_without_descriptors_waits_until_all_is_moved() {
    run_each(60, async |context| {
        let (queue, meeting) = (Queue::new(0).unwrap(), Meeting::new());
        let args = (queue.clone(), meeting.address());
        let child = context.process(ends_without_descriptors, args).start().await.unwrap();
        assert_eq!(meeting.word().await, "all put");
        tokio::time::sleep(Duration::from_millis(700)).await;
        for number in 0..20 {
            let got = queue.get_timeout(SOON).await.ok();
            assert!(got.is_some(), "item {number} is lost; the child: {:?}", child.exit_code());
        }
        let status = child.join().await.unwrap();
        assert!(status.success(), "{status:?}");
    });
}

/// One runtime that is not driven does not hold up what others put.
#[test]
fn a_runtime_that_is_not_driven_holds_up_nobody_elses_items() {
    let _guard = support::guard(60);
    let queue = Queue::new(0).unwrap();
    let [idle, busy] =
        [(); 2].map(|()| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    idle.block_on(async {
        for number in 0..20u8 {
            queue.put(vec![number; 200_000]).await.unwrap();
        }
    });
    busy.block_on(async {
        queue.put(vec![20; 200_000]).await.unwrap();
        for number in 0..=20 {
            let got = queue.get_timeout(SOON).await;
            assert!(got.is_ok(), "item {number} of another runtime never comes: {got:?}");
        }
    });
}

static STATIC: LazyLock<Queue<u64>> = LazyLock::new(|| Queue::new(1).unwrap());
static PERMIT: Mutex<Option<mp::Permit<'static, u64>>> = Mutex::new(None);

#[test]
fn a_copy_sends_nothing_by_a_copy_of_a_permit() {
    async fn copy(address: String) -> mp::Result<()> {
        let permit = PERMIT.lock().unwrap().take().unwrap();
        let sent = permit.send(7);
        Call::to(&address).say(if sent.is_ok() { "sent" } else { "refused" });
        Ok(())
    }
    let _guard = guard_with(60, &STATIC);
    // SAFETY: no other thread of this test holds a lock that the child takes.
    let context = unsafe { mp::Context::fork_with_threads() };
    multi_thread().block_on(async {
        let meeting = Meeting::new();
        *PERMIT.lock().unwrap() = Some(STATIC.reserve().await.unwrap());
        let child = context.process(copy, (meeting.address(),)).start().await.unwrap();
        let word = meeting.word().await;
        child.join().await.unwrap();
        let permit = PERMIT.lock().unwrap().take().unwrap();
        permit.send(8).unwrap();
        assert!(STATIC.len() <= 1, "{word}: a queue of one slot has {} items", STATIC.len());
    });
}

#[derive(Serialize, Deserialize)]
struct Carried(Option<Queue<Carried>>);

/// A queue that goes through itself again and again, and with others beside.
#[test]
fn a_queue_goes_through_itself() {
    run(60, async {
        let mut queue: Queue<Carried> = Queue::new(0).unwrap();
        for round in 0..300 {
            let clone = queue.clone();
            let put = queue.put_timeout(Carried(Some(clone)), SOON).await;
            assert!(put.is_ok(), "{round} {put:?}");
            let got = queue.get_timeout(SOON).await;
            assert!(got.is_ok(), "{round}");
            queue = got.ok().unwrap().0.unwrap();
        }
        // Nested: each one lies in the next.
        let mut inner: Queue<Carried> = Queue::new(0).unwrap();
        for depth in 0..40 {
            let outer = Queue::new(0).unwrap();
            outer.put_timeout(Carried(Some(inner)), SOON).await.unwrap();
            assert!(tokio::time::timeout(SOON, outer.flush()).await.is_ok(), "depth {depth}");
            inner = outer;
        }
        for depth in 0..40 {
            let got = inner.get_timeout(SOON).await;
            assert!(got.is_ok(), "out {depth}");
            inner = got.ok().unwrap().0.unwrap();
        }
    });
}

static NESTED: LazyLock<Queue<Nested>> = LazyLock::new(|| Queue::new(0).unwrap());

#[derive(Debug)]
struct Nested(u64, Vec<u8>);

impl Serialize for Nested {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0 > 0 {
            NESTED.try_put(Nested(self.0 - 1, vec![self.0 as u8; 300_000])).unwrap();
        }
        (self.0, &self.1).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (number, bytes) = <(u64, Vec<u8>)>::deserialize(from)?;
        if number < 10 {
            let _ = NESTED.try_get();
        }
        Ok(Self(number, bytes))
    }
}

#[test]
fn items_put_and_get_while_they_are_written_and_read() {
    let _guard = guard_with(60, &NESTED);
    multi_thread().block_on(async {
        for size in [10, 250_000, 300_000] {
            NESTED.put(Nested(20, vec![1; size])).await.unwrap();
            NESTED.flush().await.unwrap();
            assert_eq!(NESTED.len(), 21);
            while let Ok(item) = NESTED.try_get() {
                assert!(item.1.iter().all(|byte| *byte == item.1[0]));
            }
            assert!(NESTED.is_empty());
        }
    });
}

/// Who waits for an extent is woken when there is one, and not by a tick.
#[test]
fn who_waits_for_an_extent_is_woken_when_it_is_free() {
    run(60, async {
        let queue = mp::SimpleQueue::new().unwrap();
        let mut slow = 0;
        for _ in 0..64 {
            queue.put("x".repeat(300_000)).await.unwrap();
        }
        for _ in 0..10 {
            let putter = queue.clone();
            let puts = tokio::spawn(async move { putter.put("x".repeat(300_000)).await.unwrap() });
            tokio::time::sleep(Duration::from_millis(5)).await;
            queue.get().await.unwrap();
            let began = std::time::Instant::now();
            puts.await.unwrap();
            slow += u32::from(began.elapsed() > Duration::from_millis(40));
        }
        assert_eq!(slow, 0, "of 10 were woken by a tick");
    });
}
