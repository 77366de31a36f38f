//! How long a call takes by the size of what goes there and back, one at a time and several at once.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio_multiprocess as mp;

use crate::anchor::anchor;
use crate::by_hand::Worker;
use crate::support::{Bound, Figure, heading};

const ROUNDS: usize = 5;
const SIZES: [usize; 7] = [8, 64, 1 << 10, 16 << 10, 256 << 10, 4 << 20, 64 << 20];
/// How many calls are under way when it is several; `anchors.py` has the same.
const SEVERAL: usize = 8;
/// What goes there in a round, about, and how many calls that may be.
const VOLUME: usize = 64 << 20;
const MOST: usize = 2_000;
/// Byte by byte, as serde sees them, more than this takes longer than anybody wants to wait.
const MOST_IN_A_VEC: usize = 4 << 20;

pub(crate) fn compare(runtime: &Runtime, python: bool) {
    for size in SIZES {
        let count = (VOLUME / size).clamp(SEVERAL / 2, MOST);
        for at_once in [1, SEVERAL] {
            runtime.block_on(echoes(size, count, at_once, python));
        }
    }
}

fn echo<T>(value: T) -> T {
    value
}

async fn echoes(size: usize, count: usize, at_once: usize, python: bool) {
    let mut hand = Worker::start().await;
    let pool = mp::Pool::new(1).await.expect("a pool");
    let bytes = Bytes::from(vec![7; size]);
    let blob = mp::Blob::new(&bytes).expect("a blob");
    let mut by_hand = Figure::new("by hand");
    let mut ours = Figure::new("apply with Bytes");
    let mut vecs = Figure::new("apply with a Vec<u8>");
    let mut blobs = Figure::new("apply with a Blob that is there");
    let mut cpython = Figure::new("CPython's pool");
    for _ in 0..ROUNDS {
        by_hand.push(each(count, hand.echo_all(&bytes, count, at_once)).await);
        ours.push(each(count, apply(&pool, &bytes, count, at_once)).await);
        if size <= MOST_IN_A_VEC {
            vecs.push(each(count, apply(&pool, &bytes.to_vec(), count, at_once)).await);
        }
        blobs.push(each(count, apply(&pool, &blob, count, at_once)).await);
        if python {
            let workload = if at_once == 1 { "payload_one" } else { "payload_several" };
            cpython.push(anchor(workload, 1, count, size));
        }
    }
    hand.end().await;
    heading(&format!("{} there and back, {at_once} at a time", said(size)));
    by_hand.print();
    ours.print_against(&by_hand, Bound::None);
    if size <= MOST_IN_A_VEC {
        vecs.print_against(&by_hand, Bound::None);
    }
    blobs.print_against(&by_hand, Bound::None);
    if python {
        cpython.print_against(&by_hand, Bound::None);
    }
}

/// What one of as many calls takes, in seconds.
async fn each(count: usize, all: impl Future<Output = ()>) -> f64 {
    let begin = Instant::now();
    all.await;
    begin.elapsed().as_secs_f64() / count as f64
}

/// Keeps some calls under way until as many are done.
async fn apply<T: mp::Message + Clone>(pool: &mp::Pool, value: &T, count: usize, at_once: usize) {
    if at_once == 1 {
        for _ in 0..count {
            pool.apply(echo::<T>, (value.clone(),)).await.expect("the same");
        }
        return;
    }
    let mut under_way: VecDeque<mp::AsyncResult<T>> = VecDeque::new();
    for _ in 0..count {
        if under_way.len() == at_once {
            under_way.pop_front().expect("the oldest").await.expect("the same");
        }
        under_way.push_back(pool.apply(echo::<T>, (value.clone(),)).submit());
    }
    for call in under_way {
        call.await.expect("the same");
    }
}

fn said(size: usize) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..1_048_576 => format!("{} KiB", size >> 10),
        _ => format!("{} MiB", size >> 20),
    }
}
