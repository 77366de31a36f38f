//! Queues whose items are acknowledged.

#![cfg(target_os = "linux")]

mod support;

use std::time::Duration;

use mp::{GetError, JoinableQueue, Message, Queue, SimpleQueue};
use serde::{Deserialize, Serialize};
use support::process::{Call, Meeting};
use support::{Random, kill_9, run, run_each};
use tokio_multiprocess as mp;

const SOON: Duration = Duration::from_secs(20);

/// What is sent as one type and arrives as another.
enum Crossed<A, B> {
    Sent(A),
    Arrived(B),
}

impl<A: Serialize, B> Serialize for Crossed<A, B> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Sent(queue) => queue.serialize(serializer),
            Self::Arrived(_) => unreachable!("it is sent once"),
        }
    }
}

impl<'de, A, B: Deserialize<'de>> Deserialize<'de> for Crossed<A, B> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        B::deserialize(deserializer).map(Self::Arrived)
    }
}

fn arrives_as<A: Message, B: Message>(queue: A) -> bool {
    let carrier = SimpleQueue::new().unwrap();
    let [put, got] = [carrier.clone(), carrier];
    futures::executor::block_on(put.put(Crossed::<A, B>::Sent(queue))).unwrap();
    match got.try_get() {
        Ok(crossed) => matches!(crossed, Crossed::Arrived(_)),
        Err(GetError::Decode(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Read as another type it would not do what that one says.
#[test]
fn a_queue_arrives_as_what_it_is() {
    type Items = Vec<u8>;
    let plain = || Queue::<Items>::new(0).unwrap();
    let joinable = || JoinableQueue::<Items>::new(0).unwrap();
    let simple = || SimpleQueue::<Items>::new().unwrap();
    assert!(!arrives_as::<_, JoinableQueue<Items>>(plain()));
    assert!(!arrives_as::<_, JoinableQueue<Items>>(simple()));
    assert!(!arrives_as::<_, SimpleQueue<Items>>(plain()));
    assert!(!arrives_as::<_, SimpleQueue<Items>>(joinable()));
    assert!(!arrives_as::<_, Queue<Items>>(simple()));
    assert!(arrives_as::<_, Queue<Items>>(joinable()) && arrives_as::<_, Queue<Items>>(plain()));
    assert!(
        arrives_as::<_, JoinableQueue<Items>>(joinable()) && arrives_as::<_, SimpleQueue<Items>>(simple())
    );
}

async fn works(queue: JoinableQueue<Option<u64>>) -> mp::Result<()> {
    while let Some(_task) = queue.get().await? {
        tokio::time::sleep(Duration::from_millis(20)).await;
        queue.task_done()?;
    }
    queue.task_done()
}

// conformance: _TestQueue.test_task_done
#[test]
fn join_returns_when_all_are_acknowledged() {
    run_each(60, async |context| {
        let queue = JoinableQueue::new(0).unwrap();
        let mut workers = Vec::new();
        for _ in 0..4 {
            workers.push(context.process(works, (queue.clone(),)).start().await.unwrap());
        }
        for task in 0..10 {
            queue.put(Some(task)).await.unwrap();
        }
        assert_eq!(queue.join().await.unwrap(), 0);
        assert!(queue.is_empty());
        assert!(matches!(queue.task_done(), Err(mp::Error::TooManyTaskDone)));
        for _ in &workers {
            queue.put(None).await.unwrap();
        }
        for worker in workers {
            assert!(worker.join().await.unwrap().success());
        }
        assert_eq!(queue.join().await.unwrap(), 0);
    });
}

#[test]
fn too_much_is_acknowledged_by_nobody() {
    fn acknowledges(queue: JoinableQueue<u64>) {
        // It has got none itself; another process that lives has.
        queue.task_done().unwrap();
        assert!(matches!(queue.task_done(), Err(mp::Error::TooManyTaskDone)));
    }
    run_each(60, async |context| {
        let queue = JoinableQueue::new(0).unwrap();
        queue.put(1).await.unwrap();
        assert!(matches!(queue.task_done(), Err(mp::Error::TooManyTaskDone)), "it was not got");
        queue.get().await.unwrap();
        let child = context.process(acknowledges, (queue.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert!(matches!(queue.task_done(), Err(mp::Error::TooManyTaskDone)));
        assert_eq!(queue.join().await.unwrap(), 0);
    });
}

fn takes_and_waits(queue: JoinableQueue<u64>, address: String) {
    for _ in 0..3 {
        queue.try_get().unwrap();
    }
    queue.task_done().unwrap();
    let mut call = Call::to(&address);
    call.say("it has two");
    call.hear();
}

#[test]
fn what_a_dead_one_had_got_is_done_and_counted() {
    run_each(60, async |context| {
        let (queue, meeting) = (JoinableQueue::new(0).unwrap(), Meeting::new());
        for number in 0..4 {
            queue.put(number).await.unwrap();
        }
        for killed in [true, false] {
            let args = (queue.clone(), meeting.address());
            let child = context.process(takes_and_waits, args).start().await.unwrap();
            let mut call = meeting.accept().await;
            assert_eq!(call.hear().await.unwrap(), "it has two");
            assert_eq!(queue.get().await.unwrap(), 3);
            queue.task_done().unwrap();
            if killed {
                // While somebody waits for it.
                let (joined, ()) = tokio::join!(queue.join(), async { kill_9(child.pid()) });
                assert_eq!(joined.unwrap(), 2);
            } else {
                call.say("go").await;
                assert_eq!(queue.join().await.unwrap(), 4);
            }
            child.join().await.unwrap();
            // What a dead one had can be acknowledged by nobody else.
            assert!(matches!(queue.task_done(), Err(mp::Error::TooManyTaskDone)));
            for number in 0..4 {
                queue.put(number).await.unwrap();
            }
        }
        for _ in 0..4 {
            queue.try_get().unwrap();
            queue.task_done().unwrap();
        }
        assert_eq!(queue.join().await.unwrap(), 4);
    });
}

async fn acknowledges(queue: JoinableQueue<u64>, done: mp::RawValue<u64>) -> mp::Result<()> {
    loop {
        match queue.get().await {
            Ok(_) => {
                queue.task_done()?;
                done.fetch_add(1);
            }
            Err(GetError::ShutDown) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// At whatever instant a consumer is killed, each item is acknowledged or counted.
#[test]
fn killed_consumers_leave_nothing_unaccounted() {
    const ITEMS: u64 = 60_000;
    const KILLS: u64 = 12;
    run(120, async {
        let mut random = Random::new();
        let queue = JoinableQueue::new(0).unwrap();
        let done = mp::RawValue::new(0u64).unwrap();
        let context = mp::Context::new(mp::StartMethod::ForkServer);
        let start = || context.process(acknowledges, (queue.clone(), done.clone())).start();
        let mut consumers = [start().await.unwrap(), start().await.unwrap()];
        let put = async {
            for number in 0..ITEMS {
                queue.put(number).await.unwrap();
            }
        };
        let kill = async {
            for _ in 0..KILLS {
                tokio::time::sleep(Duration::from_millis(1 + random.below(20))).await;
                let consumer = &mut consumers[random.below(2) as usize];
                kill_9(consumer.pid());
                *consumer = start().await.unwrap();
            }
        };
        tokio::join!(put, kill);
        let left = queue.join().await.unwrap();
        assert!(left <= KILLS, "{left}");
        queue.shutdown().unwrap();
        for consumer in consumers {
            assert!(consumer.join().await.unwrap().success());
        }
        // A killed one may have acknowledged one, and not said so.
        let counted = done.get() + left;
        assert!((ITEMS - KILLS..=ITEMS).contains(&counted), "{counted}");
    });
}

/// Cannot be read if it is odd.
#[derive(Debug, PartialEq)]
struct Even(u64);

impl Serialize for Even {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Even {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            99 => panic!("on purpose"),
            odd if odd % 2 == 1 => Err(serde::de::Error::custom("odd")),
            even => Ok(Self(even)),
        }
    }
}

/// Who got an error has nothing to acknowledge, and nobody waits for that.
#[test]
fn what_cannot_be_decoded_is_done() {
    run(60, async {
        let queue = JoinableQueue::new(0).unwrap();
        for number in [1, 2, 3, 99] {
            queue.put(Even(number)).await.unwrap();
        }
        assert!(matches!(queue.try_get(), Err(GetError::Decode(_))));
        assert_eq!(queue.get().await.unwrap(), Even(2));
        assert!(matches!(queue.get_timeout(SOON).await, Err(GetError::Decode(_))));
        let get = tokio::spawn({
            let queue = queue.clone();
            async move { queue.get().await }
        });
        assert!(get.await.unwrap_err().is_panic());
        queue.task_done().unwrap();
        assert!(matches!(queue.task_done(), Err(mp::Error::TooManyTaskDone)));
        assert_eq!(queue.join().await.unwrap(), 0);
    });
}

/// What waits in a process for room is not done either.
#[test]
fn join_waits_for_what_waits_for_room() {
    async fn works(queue: JoinableQueue<Vec<u8>>) -> mp::Result<()> {
        while queue.get().await.is_ok() {
            queue.task_done()?;
        }
        Ok(())
    }
    run(60, async {
        let queue = JoinableQueue::new(0).unwrap();
        for _ in 0..30 {
            queue.put(vec![1; 100_000]).await.unwrap();
        }
        let child = mp::Process::builder(works, (queue.clone(),)).start().await.unwrap();
        assert_eq!(queue.join().await.unwrap(), 0);
        assert!(queue.is_empty());
        queue.shutdown().unwrap();
        assert!(child.join().await.unwrap().success());
    });
}
