//! Processes that share one end of a connection are killed at random instants. Short by default;
//! `TOKIO_MULTIPROCESS_STORM_SECONDS` says how long it rages, all start methods together, and
//! `TOKIO_MULTIPROCESS_STORM_SEED` repeats one.

#![cfg(target_os = "linux")]

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use support::{Random, guard, methods, multi_thread};
use tokio_multiprocess as mp;
use tokio_multiprocess::Connection;

fn storm_time() -> Duration {
    let seconds = std::env::var("TOKIO_MULTIPROCESS_STORM_SECONDS");
    Duration::from_secs_f64(seconds.map_or(3.0, |seconds| seconds.parse().expect("a number of seconds")))
}

/// What goes there and back. What it should hold follows from its number, so that a tear is seen.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Bytes(u64, Vec<u8>),
    /// With a handle beside it.
    Blob(u64, mp::Blob),
    Stop,
}

/// Mostly small ones; some around what fits into one packet, some much larger.
fn content(id: u64) -> Vec<u8> {
    let len = match id % 128 {
        0 => 1 << 20,
        1..=3 => (64 << 10) - 10 + id as usize % 20,
        _ => id as usize % 200,
    };
    vec![id as u8; len]
}

fn order(id: u64) -> Order {
    let bytes = content(id);
    if id % 16 == 5 { Order::Blob(id, mp::Blob::new(bytes).unwrap()) } else { Order::Bytes(id, bytes) }
}

/// The number of an order that is whole.
fn whole(answer: &Order) -> u64 {
    let (id, bytes) = match answer {
        Order::Bytes(id, bytes) => (*id, &bytes[..]),
        Order::Blob(id, blob) => (*id, &blob[..]),
        Order::Stop => panic!("not an answer"),
    };
    assert!(bytes == content(id), "order {id} is torn");
    id
}

/// Sends back what it gets, one at a time.
fn work(mut shared: Connection) {
    mp::block_on(async {
        loop {
            match shared.recv::<Order>().await.unwrap() {
                Order::Stop => return,
                order => {
                    whole(&order);
                    shared.send(&order).await.unwrap();
                }
            }
        }
    })
    .unwrap();
}

/// Four at one end, each replaced when it is killed.
#[test]
fn those_who_share_an_end_are_killed_and_no_message_but_theirs_is_lost() {
    let _guard = guard(120 + 3 * storm_time().as_secs());
    for context in methods() {
        multi_thread().block_on(storm(&context, storm_time() / 3));
    }
}

async fn storm(context: &mp::Context, time: Duration) {
    let mut random = Random::new();
    let (ours, mut theirs) = mp::pipe().unwrap();
    let (mut recv, mut send) = ours.split();
    let start = async |theirs: &mut Connection| {
        context.process(work, (theirs.share().unwrap(),)).start().await.unwrap()
    };
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(start(&mut theirs).await);
    }
    let begin = Instant::now();
    let sending = tokio::spawn(async move {
        let mut id = 0;
        while begin.elapsed() < time {
            send.send(&order(id)).await.unwrap();
            id += 1;
        }
        (send, id)
    });
    // It ends when nobody can send any more.
    let receiving = tokio::spawn(async move {
        let mut answered = HashSet::new();
        loop {
            match recv.recv::<Order>().await {
                Ok(answer) => {
                    let id = whole(&answer);
                    assert!(answered.insert(id), "order {id} was answered twice");
                }
                Err(error) if error.is_eof() => return answered,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let mut kills = 0;
    while !sending.is_finished() {
        tokio::time::sleep(Duration::from_micros(random.below(8000))).await;
        let victim = random.below(4) as usize;
        support::kill_9(workers[victim].pid());
        workers[victim].join().await.unwrap();
        workers[victim] = start(&mut theirs).await;
        kills += 1;
    }
    let (mut send, sent) = sending.await.unwrap();
    drop(theirs);
    for _ in 0..4 {
        send.send(&Order::Stop).await.unwrap();
    }
    for worker in workers {
        assert!(worker.join().await.unwrap().success());
    }
    let answered = receiving.await.unwrap();
    let lost = sent as usize - answered.len();
    eprintln!("{}: {kills} kills, {sent} sent, {lost} lost", context.start_method());
    assert!(lost <= kills, "{lost} lost by {kills} kills");
}
