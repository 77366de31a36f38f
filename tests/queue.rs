//! Queues: order, slots, sizes, handles, ends.

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use mp::{GetError, PutErrorKind, Queue};
use serde::{Deserialize, Serialize};
use support::process::{Call, Meeting};
use support::{current_thread, guard, methods, multi_thread, run, run_each};
use tokio_multiprocess as mp;

/// Long enough for whatever happens, and short enough for a test.
const SOON: Duration = Duration::from_secs(20);

async fn put_all(queue: Queue<u64>, range: std::ops::Range<u64>) -> mp::Result<()> {
    for number in range {
        queue.put(number).await?;
    }
    Ok(())
}

#[test]
fn items_come_out_in_order() {
    run(60, async {
        let queue = Queue::new(0).unwrap();
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
        let queue = Queue::new(2).unwrap();
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

async fn echo(there: Queue<Vec<u8>>, back: Queue<Vec<u8>>) -> mp::Result<()> {
    while let Ok(item) = there.get().await {
        back.put(item).await?;
    }
    Ok(())
}

#[test]
fn items_of_any_size_come_back() {
    run(60, async {
        let (there, back) = (Queue::new(16).unwrap(), Queue::new(16).unwrap());
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
        let queue = Queue::new(0).unwrap();
        for number in 0..100u64 {
            queue.put(vec![number as u8; 100_000]).await.unwrap();
        }
        assert_eq!(queue.len(), 100);
        for number in 0..100u64 {
            assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number as u8; 100_000]);
        }
        queue.flush().await.unwrap();
        assert!(queue.is_empty());
    });
}

#[test]
fn handles_travel_with_items() {
    run(60, async {
        let queue = Queue::new(0).unwrap();
        let (reads, mut writes) = std::io::pipe().unwrap();
        queue.put((5u64, mp::Handle::new(reads))).await.unwrap();
        let (number, handle) = queue.get().await.unwrap();
        writes.write_all(b"through").unwrap();
        drop(writes);
        let mut text = String::new();
        handle.into_inner().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((number, text.as_str()), (5, "through"));
        let blobs = Queue::new(0).unwrap();
        blobs.put(vec![mp::Blob::new([7; 100_000]).unwrap(); 300]).await.unwrap();
        assert!(blobs.get().await.unwrap().iter().all(|blob| blob[..] == [7; 100_000]));
    });
}

async fn fork_row(queue: Queue<u64>) -> mp::Result<()> {
    put_all(queue, 10..20).await
}

// conformance: _TestQueue.test_fork
#[test]
fn a_child_does_not_end_before_its_items_are_put() {
    run(60, async {
        let queue = Queue::new(0).unwrap();
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
    is_all::<Queue<Item>>();
    is_all::<mp::JoinableQueue<Item>>();
    is_all::<mp::SimpleQueue<Item>>();
    is_all::<mp::Permit<'static, Item>>();
    run(60, async {
        let queue = Queue::<Item>::new(0).unwrap();
        let simple = mp::SimpleQueue::<Item>::new().unwrap();
        is_send(&queue.put(Item::new(1)));
        is_send(&queue.put_timeout(Item::new(1), SOON));
        is_send(&(queue.get(), queue.get_timeout(SOON), queue.reserve(), queue.flush()));
        is_send(&(simple.put(Item::new(1)), simple.get()));
    });
}

const MOMENT: Duration = Duration::from_millis(50);

/// Gets what is there by all calling forms, and says what it got.
/// A large item, too, is put only if there is a slot, and takes one.
#[test]
fn a_large_item_takes_one_slot() {
    let large = || vec![1u8; 300_000];
    let queue = Queue::new(1).unwrap();
    for _ in 0..3 {
        queue.try_put(large()).unwrap();
        assert_eq!((queue.len(), queue.is_full()), (1, true));
        assert!(queue.try_put(large()).unwrap_err().is_full());
        assert_eq!(queue.try_get().unwrap(), large());
        queue.try_reserve().unwrap().send(large()).unwrap();
        assert!(queue.is_full() && queue.try_reserve().is_err());
        assert_eq!(queue.try_get().unwrap(), large());
    }
    queue.shutdown().unwrap();
    assert!(matches!(queue.try_put(large()).unwrap_err().kind, PutErrorKind::ShutDown));
    assert!(matches!(queue.try_get(), Err(GetError::ShutDown)));
}

async fn takes_six(queue: Queue<u64>, address: String) {
    let mut got = vec![queue.try_get().unwrap(), queue.get().await.unwrap()];
    got.push(queue.get_timeout(Duration::ZERO).await.unwrap());
    for _ in 0..3 {
        got.push(queue.get_timeout(SOON).await.unwrap());
    }
    Call::to(&address).say(format_args!("{got:?}"));
}

// conformance: _TestQueue.test_put
#[test]
fn all_ways_to_put() {
    run_each(60, async |context| {
        let (queue, meeting) = (Queue::new(6).unwrap(), Meeting::new());
        assert!(queue.is_empty() && !queue.is_full() && queue.max_size() == Some(6));
        queue.put(1).await.unwrap();
        queue.try_put(2).unwrap();
        queue.put_timeout(3, SOON).await.unwrap();
        queue.put_timeout(4, Duration::ZERO).await.unwrap();
        queue.reserve().await.unwrap().send(5).unwrap();
        queue.try_reserve().unwrap().send(6).unwrap();
        assert!(!queue.is_empty() && queue.is_full() && queue.len() == 6);
        assert!(queue.try_put(7).unwrap_err().is_full());
        assert!(queue.put_timeout(7, Duration::ZERO).await.unwrap_err().is_full());
        assert!(matches!(queue.try_reserve(), Err(mp::Error::Full)));
        let begin = Instant::now();
        assert!(queue.put_timeout(7, MOMENT).await.unwrap_err().is_full());
        assert!(begin.elapsed() >= MOMENT);
        let child = context.process(takes_six, (queue.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "[1, 2, 3, 4, 5, 6]");
        child.join().await.unwrap();
        assert!(queue.is_empty() && !queue.is_full());
    });
}

// conformance: _TestQueue.test_get
#[test]
fn all_ways_to_get() {
    run_each(60, async |context| {
        let queue = Queue::new(0).unwrap();
        assert!(queue.is_empty());
        let child = context.process(put_all, (queue.clone(), 2..6)).start().await.unwrap();
        child.join().await.unwrap();
        assert!(!queue.is_empty());
        assert_eq!(queue.get().await.unwrap(), 2);
        assert_eq!(queue.try_get().unwrap(), 3);
        assert_eq!(queue.get_timeout(SOON).await.unwrap(), 4);
        assert_eq!(queue.get_timeout(Duration::ZERO).await.unwrap(), 5);
        assert!(queue.is_empty());
        assert!(queue.try_get().unwrap_err().is_empty());
        assert!(queue.get_timeout(Duration::ZERO).await.unwrap_err().is_empty());
        let begin = Instant::now();
        assert!(queue.get_timeout(MOMENT).await.unwrap_err().is_empty());
        assert!(begin.elapsed() >= MOMENT);
    });
}

// conformance: _TestQueue.test_qsize
#[test]
fn its_length_is_known_at_once() {
    run(60, async {
        let queue = Queue::new(0).unwrap();
        let mut seen = vec![queue.len()];
        for put in [true, true, false, false] {
            if put {
                queue.put(1).await.unwrap();
            } else {
                queue.get().await.unwrap();
            }
            seen.push(queue.len());
        }
        assert_eq!(seen, [0, 1, 2, 1, 0]);
    });
}

// conformance: _TestQueue.test_timeout
#[test]
fn a_get_waits_for_as_long_as_it_was_told() {
    run(60, async {
        let queue = Queue::<u64>::new(0).unwrap();
        let begin = Instant::now();
        assert!(queue.get_timeout(Duration::from_millis(200)).await.unwrap_err().is_empty());
        assert!(begin.elapsed() >= Duration::from_millis(200));
    });
}

/// What its number says: an item; one that cannot be written; one that panics instead; one that cannot be read.
#[derive(Debug, PartialEq)]
struct Moody(u64);

const UNWRITABLE: u64 = 1001;
const PANICS: u64 = 1002;
const UNREADABLE: u64 = 1003;

impl Serialize for Moody {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            UNWRITABLE => Err(serde::ser::Error::custom("not today")),
            PANICS => panic!("on purpose"),
            number => number.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Moody {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            UNREADABLE => Err(serde::de::Error::custom("not tomorrow")),
            number => Ok(Self(number)),
        }
    }
}

// conformance: _TestQueue.test_queue_feeder_donot_stop_onexc
// conformance: _TestQueue.test_queue_feeder_on_queue_feeder_error
#[test]
fn what_cannot_be_encoded_comes_back_and_takes_no_slot() {
    run(60, async {
        let queue = Queue::new(1).unwrap();
        let assert_back = |put: Result<(), mp::PutError<Moody>>| {
            let error = put.unwrap_err();
            assert_eq!((error.item, error.kind.to_string().contains("not today")), (Moody(UNWRITABLE), true));
            assert!(matches!(error.kind, PutErrorKind::Encode(_)));
        };
        for _ in 0..3 {
            assert_back(queue.put(Moody(UNWRITABLE)).await);
            assert_back(queue.try_put(Moody(UNWRITABLE)));
            assert_back(queue.put_timeout(Moody(UNWRITABLE), SOON).await);
            assert_back(queue.try_reserve().unwrap().send(Moody(UNWRITABLE)));
            assert!(queue.is_empty() && !queue.is_full());
            queue.put(Moody(1)).await.unwrap();
            assert_eq!(queue.len(), 1);
            assert_eq!(queue.get().await.unwrap(), Moody(1));
            assert!(queue.is_empty());
        }
    });
}

#[test]
fn who_panics_while_encoding_takes_no_slot_and_locks_nothing() {
    run(60, async {
        let queue = Queue::new(1).unwrap();
        for _ in 0..3 {
            let put = tokio::spawn({
                let queue = queue.clone();
                async move { queue.put(Moody(PANICS)).await }
            });
            assert!(put.await.unwrap_err().is_panic());
            let send = std::panic::AssertUnwindSafe(|| queue.try_reserve().unwrap().send(Moody(PANICS)));
            assert!(std::panic::catch_unwind(send).is_err());
            queue.try_put(Moody(1)).unwrap();
            assert_eq!(queue.try_get().unwrap(), Moody(1));
        }
    });
}

/// A queue that is another one's where it arrives.
enum Retyped {
    Words(Queue<String>),
    Numbers(Queue<u64>),
}

impl Serialize for Retyped {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Words(queue) => queue.serialize(serializer),
            Self::Numbers(queue) => queue.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Retyped {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Queue::deserialize(deserializer).map(Self::Numbers)
    }
}

#[test]
fn what_cannot_be_decoded_is_an_error_and_the_next_one_is_fine() {
    fn mistaken(queue: Retyped) {
        let Retyped::Numbers(queue) = queue else { panic!("it was read as numbers") };
        assert!(matches!(queue.try_get(), Err(GetError::Decode(_))));
        assert_eq!(queue.try_get().unwrap_err().to_string(), "the queue is empty");
        queue.try_put(5).unwrap();
    }
    run_each(60, async |context| {
        let words = Queue::new(0).unwrap();
        words.put("a word".to_owned()).await.unwrap();
        let child = context.process(mistaken, (Retyped::Words(words.clone()),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert!(matches!(words.try_get(), Err(GetError::Decode(_))));
        words.put("the next".to_owned()).await.unwrap();
        assert_eq!(words.try_get().unwrap(), "the next");
    });
    run(60, async {
        let queue = Queue::new(0).unwrap();
        for number in [1, UNREADABLE, 2] {
            queue.put(Moody(number)).await.unwrap();
        }
        assert_eq!(queue.get().await.unwrap(), Moody(1));
        let Err(GetError::Decode(error)) = queue.get().await else { panic!("it cannot be read") };
        assert!(error.to_string().contains("not tomorrow"), "{error}");
        assert_eq!(queue.get().await.unwrap(), Moody(2));
        assert!(queue.is_empty());
    });
}

// conformance: _TestQueue.test_closed_queue_put_get_exceptions
#[test]
fn a_closed_handle_is_this_processs_alone() {
    fn goes_on(queue: Queue<u64>) {
        assert_eq!(queue.try_get().unwrap(), 1);
        queue.try_put(2).unwrap();
    }
    run_each(60, async |context| {
        for queue in [Queue::new(0).unwrap(), (*mp::JoinableQueue::new(0).unwrap()).clone()] {
            queue.put(1).await.unwrap();
            assert!(queue.join_feeder().await.is_err(), "it is not closed yet");
            queue.close();
            queue.close();
            let error = queue.put(3).await.unwrap_err();
            assert_eq!((error.item, error.kind.to_string()), (3, "the queue is closed".to_owned()));
            assert!(matches!(queue.try_put(3).unwrap_err().kind, PutErrorKind::Closed));
            assert!(matches!(queue.put_timeout(3, SOON).await.unwrap_err().kind, PutErrorKind::Closed));
            assert!(matches!(queue.get().await, Err(GetError::Closed)));
            assert!(matches!(queue.try_get(), Err(GetError::Closed)));
            assert!(matches!(queue.get_timeout(SOON).await, Err(GetError::Closed)));
            assert!(matches!(queue.reserve().await, Err(error) if error.is_closed()));
            assert!(matches!(queue.try_reserve(), Err(error) if error.is_closed()));
            queue.join_feeder().await.unwrap();
            let child = context.process(goes_on, (queue.clone(),)).start().await.unwrap();
            assert!(child.join().await.unwrap().success());
            assert_eq!(queue.len(), 1);
        }
    });
}

#[test]
fn who_waits_learns_that_it_was_closed_or_shut_down() {
    run(60, async {
        for shuts in [false, true] {
            let (full, empty) = (Queue::new(1).unwrap(), Queue::<u64>::new(1).unwrap());
            full.put(1).await.unwrap();
            let end = async {
                tokio::task::yield_now().await;
                for queue in [&full, &empty] {
                    if shuts { queue.shutdown().unwrap() } else { queue.close() }
                }
            };
            let (put, reserved, got, ()) = tokio::join!(full.put(2), full.reserve(), empty.get(), end);
            let put = put.unwrap_err();
            assert_eq!(put.item, 2);
            if shuts {
                assert!(matches!(put.kind, PutErrorKind::ShutDown));
                assert!(matches!(reserved, Err(mp::Error::ShutDown)));
                assert!(matches!(got, Err(GetError::ShutDown)));
                assert_eq!(full.get().await.unwrap(), 1);
                assert!(matches!(full.get().await, Err(GetError::ShutDown)));
            } else {
                assert!(matches!(put.kind, PutErrorKind::Closed));
                assert!(reserved.unwrap_err().is_closed());
                assert!(matches!(got, Err(GetError::Closed)));
            }
        }
    });
}

/// Of what others have reserved before something may still come.
#[test]
fn a_queue_that_is_shut_down_is_over_once_permits_are_used_or_dropped() {
    run(60, async {
        let queue = Queue::<u64>::new(2).unwrap();
        let permit = queue.reserve().await.unwrap();
        queue.shutdown().unwrap();
        let begin = Instant::now();
        let (got, ()) = tokio::join!(queue.get(), async {
            tokio::time::sleep(MOMENT).await;
            drop(permit);
        });
        assert!(matches!(got, Err(GetError::ShutDown)));
        assert!(begin.elapsed() >= MOMENT);
    });
}

#[test]
fn a_permit_is_a_slot() {
    fn reserves(queue: Queue<u64>, address: String) {
        let _permits = [queue.try_reserve().unwrap(), queue.try_reserve().unwrap()];
        let mut call = Call::to(&address);
        call.say("reserved");
        call.hear();
    }
    run_each(60, async |context| {
        let (queue, meeting) = (Queue::new(3).unwrap(), Meeting::new());
        let permit = queue.reserve().await.unwrap();
        assert!(queue.is_empty() && !queue.is_full());
        let other = context.process(reserves, (queue.clone(), meeting.address())).start().await.unwrap();
        let mut call = meeting.accept().await;
        assert_eq!(call.hear().await.unwrap(), "reserved");
        assert!(queue.is_full() && queue.is_empty());
        assert!(queue.try_put(0).unwrap_err().is_full());
        drop(permit);
        queue.try_put(1).unwrap();
        assert!(queue.try_put(0).unwrap_err().is_full());
        // It waits for a slot that a killed process had.
        let (put, ()) = tokio::join!(queue.put(2), async { other.kill().unwrap() });
        put.unwrap();
        queue.try_reserve().unwrap().send(3).unwrap();
        assert!(queue.try_reserve().is_err());
        other.join().await.unwrap();
        for number in 1..4 {
            assert_eq!(queue.try_get().unwrap(), number);
        }
    });
}

async fn passes_on(queue: Queue<u64>) -> mp::Result<()> {
    fn puts_one(queue: Queue<u64>) {
        queue.try_put(1).unwrap();
    }
    let child = mp::Process::builder(puts_one, (queue.clone(),)).start().await?;
    queue.put(2).await?;
    child.join().await?;
    Ok(())
}

// conformance: TestStartMethod.test_nested_startmethod
#[test]
fn a_child_passes_it_on() {
    run_each(60, async |context| {
        let queue = Queue::new(0).unwrap();
        let child = context.process(passes_on, (queue.clone(),)).start().await.unwrap();
        let mut got = [queue.get_timeout(SOON).await.unwrap(), queue.get_timeout(SOON).await.unwrap()];
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        assert!(child.join().await.unwrap().success());
    });
}

/// Also a queue, which is the same one where it arrives, and where it was already.
#[test]
fn queues_are_items() {
    async fn answers(requests: Queue<(u64, Queue<u64>)>) -> mp::Result<()> {
        while let Ok((number, answers)) = requests.get().await {
            answers.put(number * number).await?;
        }
        Ok(())
    }
    run_each(60, async |context| {
        let requests = Queue::new(0).unwrap();
        let child = context.process(answers, (requests.clone(),)).start().await.unwrap();
        for number in 0..20 {
            let answer = Queue::new(1).unwrap();
            requests.put((number, answer.clone())).await.unwrap();
            assert_eq!(answer.get_timeout(SOON).await.unwrap(), number * number);
        }
        requests.shutdown().unwrap();
        assert!(child.join().await.unwrap().success());
        let queues = Queue::new(0).unwrap();
        let inner = Queue::<u64>::new(0).unwrap();
        queues.put(inner.clone()).await.unwrap();
        let same = queues.get().await.unwrap();
        inner.close();
        assert!(matches!(same.try_put(1).unwrap_err().kind, PutErrorKind::Closed));
    });
}

/// It moves once it is put, and stays where it was if it is not.
#[test]
fn connections_are_items() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Carries(mp::Connection, Moody);
    run(60, async {
        let (here, mut there) = mp::pipe().unwrap();
        let queue = Queue::new(1).unwrap();
        let error = queue.put(Carries(here, Moody(UNWRITABLE))).await.unwrap_err();
        let Carries(mut here, _) = error.item;
        here.send(&1).await.unwrap();
        assert_eq!(there.recv::<u64>().await.unwrap(), 1);
        let permit = queue.reserve().await.unwrap();
        let error = queue.try_put(Carries(here, Moody(1))).unwrap_err();
        assert!(error.is_full());
        let Carries(mut here, _) = error.item;
        here.send(&2).await.unwrap();
        assert_eq!(there.recv::<u64>().await.unwrap(), 2);
        permit.send(Carries(here, Moody(1))).unwrap();
        let Carries(mut here, _) = queue.get().await.unwrap();
        here.send(&3).await.unwrap();
        assert_eq!(there.recv::<u64>().await.unwrap(), 3);
    });
}

fn megabytes(queue: &Queue<Vec<u8>>, count: u8) {
    for number in 0..count {
        queue.try_put(vec![number; 200_000]).unwrap();
    }
}

async fn gets_megabytes(queue: &Queue<Vec<u8>>, count: u8) {
    for number in 0..count {
        assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number; 200_000]);
    }
    assert!(queue.is_empty());
}

#[test]
fn what_waits_is_moved_when_its_runtime_has_ended() {
    let _guard = guard(60);
    for first in [multi_thread, current_thread] {
        let (queue, runtime) = (Queue::new(0).unwrap(), first());
        runtime.block_on(async { megabytes(&queue, 20) });
        drop(runtime);
        for second in [multi_thread, current_thread] {
            second().block_on(async {
                gets_megabytes(&queue, 20).await;
                megabytes(&queue, 20);
            });
        }
        current_thread().block_on(gets_megabytes(&queue, 20));
    }
}

#[test]
fn what_waits_is_moved_without_a_runtime() {
    let _guard = guard(60);
    let queue = Queue::new(0).unwrap();
    megabytes(&queue, 20);
    let mut got = 0;
    while got < 20 {
        match queue.try_get() {
            Ok(item) => {
                assert_eq!(item, vec![got; 200_000]);
                got += 1;
            }
            Err(error) => assert!(error.is_empty(), "{error}"),
        }
    }
}

/// One that nobody polls any more does not hold up who flushes on another one.
#[test]
fn what_waits_can_be_flushed_on_any_runtime() {
    let _guard = guard(60);
    let (queue, idle) = (Queue::new(0).unwrap(), current_thread());
    idle.block_on(async { megabytes(&queue, 20) });
    let get = async {
        for number in 0..20 {
            assert_eq!(queue.get().await.unwrap(), vec![number; 200_000]);
        }
    };
    current_thread().block_on(async { tokio::join!(queue.flush(), get) }).0.unwrap();
    assert!(queue.is_empty());
}
