//! What connections promise to who drops futures, whatever they are made of.

use std::future::{Future, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_multiprocess as mp;

use super::{Random, current_thread, multi_thread};

/// What becomes of a message whose `send` is dropped before it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// It is not sent.
    Unsent,
    /// It goes out whole if any of it has.
    Whole,
}

/// How many sends, and how many recvs, are dropped before they are ready, in each of two directions.
const DROPS: usize = 5_000;

/// The last message.
const LAST: u64 = u64::MAX;

/// Drops `recv`s and `send`s at random points, in both directions at a time, on both kinds of runtime:
/// no message is lost, doubled, torn or out of order.
pub(crate) fn drop_futures_of(make: impl Fn() -> (mp::Connection, mp::Connection), dropped: Dropped) {
    for runtime in [current_thread(), multi_thread()] {
        let mut random = Random::new();
        runtime.block_on(async {
            let (here, there) = make();
            let ((here_recv, here_send), (there_recv, there_send)) = (here.split(), there.split());
            let forth = direction(here_send, there_recv, dropped, random.next());
            let back = direction(there_send, here_recv, dropped, random.next());
            tokio::join!(forth, back);
        });
    }
}

async fn direction(mut send: mp::SendHalf, mut recv: mp::RecvHalf, dropped: Dropped, seed: u64) {
    let (given_up, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let enough = {
        let (given_up, refused) = (given_up.clone(), refused.clone());
        move || [&given_up, &refused].iter().all(|drops| drops.load(Ordering::Relaxed) >= DROPS)
    };
    let (mut send_random, mut recv_random) = (Random::from_seed(seed), Random::from_seed(!seed));
    let sender = tokio::spawn(async move {
        let mut fates = Vec::new();
        for id in 0.. {
            if enough() {
                break;
            }
            let message = message(id, &mut send_random);
            let sent = attempt(send.send_bytes(&message), &mut send_random).await;
            fates.push(sent.is_some());
            match sent {
                Some(sent) => sent.unwrap(),
                None => drop(given_up.fetch_add(1, Ordering::Relaxed)),
            }
        }
        send.send_bytes(&LAST.to_le_bytes()).await.unwrap();
        fates
    });
    let receiver = tokio::spawn(async move {
        let mut ids = Vec::new();
        loop {
            let Some(message) = attempt(recv.recv_bytes(), &mut recv_random).await else {
                refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let message = message.unwrap();
            let (id, rest) = message.split_first_chunk::<8>().expect("an id");
            let id = u64::from_le_bytes(*id);
            if id == LAST {
                return ids;
            }
            assert!(rest == vec![id as u8; rest.len()], "message {id} is torn");
            ids.push(id);
        }
    });
    let (fates, ids) = (sender.await.unwrap(), receiver.await.unwrap());
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "doubled, or out of order");
    let mut arrived = ids.iter().peekable();
    for (id, sent) in (0..).zip(fates) {
        let came = arrived.next_if(|next| **next == id).is_some();
        assert!(came || !sent, "message {id} is lost");
        assert!(!came || sent || dropped == Dropped::Whole, "message {id} was sent although it was dropped");
    }
}

/// Mostly small ones; some around what fits into one packet, some much larger.
fn message(id: u64, random: &mut Random) -> Vec<u8> {
    let len = match random.below(200) {
        0 => 1 << 20,
        1..=9 => (64 << 10) - 1 + random.below(3) as usize,
        _ => 8 + random.below(200) as usize,
    };
    let mut message = vec![id as u8; len];
    message[..8].copy_from_slice(&id.to_le_bytes());
    message
}

/// Polls a future until it is ready, or gives it up at a random point.
async fn attempt<F: Future>(future: F, random: &mut Random) -> Option<F::Output> {
    let yields = random.below(4);
    match random.below(8) {
        // One poll.
        0..=2 => tokio::select! {
            biased;
            output = future => Some(output),
            () = ready(()) => None,
        },
        // One, or none.
        3 => tokio::select! {
            output = future => Some(output),
            () = ready(()) => None,
        },
        4..=6 => tokio::select! {
            biased;
            output = future => Some(output),
            () = async { for _ in 0..yields { tokio::task::yield_now().await } } => None,
        },
        _ => Some(future.await),
    }
}
