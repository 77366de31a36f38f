//! Connections and runtimes: none, several, in turn and at a time, undriven, gone.

#![cfg(target_os = "linux")]

mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{SinkExt, poll};
use support::{current_thread, guard, multi_thread};
use tokio::runtime::Runtime;
use tokio::task::coop::unconstrained;
use tokio_multiprocess as mp;
use tokio_multiprocess::Connection;

fn runtimes() -> [Runtime; 2] {
    [current_thread(), multi_thread()]
}

/// Waits once for a message that is not there, so that the connection is registered.
fn wait_in_vain(runtime: &Runtime, conn: &mut Connection) {
    runtime.block_on(async {
        assert!(poll!(pin!(conn.recv::<u32>())).is_pending());
        // The reactor is asked, too.
        tokio::task::yield_now().await;
        assert!(poll!(pin!(conn.recv::<u32>())).is_pending());
    });
}

/// Has the peer send once this waits.
fn exchange(runtime: &Runtime, conn: &mut Connection, mut peer: Connection, value: u32) -> Connection {
    runtime.block_on(async {
        let sending = async {
            tokio::task::yield_now().await;
            peer.send(&value).await.unwrap();
        };
        let (received, ()) = tokio::join!(conn.recv::<u32>(), sending);
        assert_eq!(received.unwrap(), value);
    });
    peer
}

#[test]
fn it_waits_on_one_runtime_after_the_other() {
    let _guard = guard(60);
    // Made outside of any.
    let (mut conn, mut peer) = mp::pipe().unwrap();
    let (all, mut value) = (runtimes(), 0);
    for _ in 0..3 {
        for runtime in &all {
            wait_in_vain(runtime, &mut conn);
            peer = exchange(runtime, &mut conn, peer, value);
            value += 1;
        }
    }
}

#[test]
fn it_outlives_runtimes() {
    let _guard = guard(60);
    let (mut conn, mut peer) = mp::pipe().unwrap();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = None;
    for value in 0..20 {
        for runtime in runtimes() {
            peer = exchange(&runtime, &mut conn, peer, value);
            wait_in_vain(&runtime, &mut conn);
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
        // What was registered there is not kept.
        let now = descriptors();
        assert!(now <= *before.get_or_insert(now), "{now} descriptors after {value}");
    }
}

#[test]
fn a_runtime_that_nobody_drives_holds_nothing_up() {
    let _guard = guard(60);
    let (mut conn, mut peer) = mp::pipe().unwrap();
    let (idle, driven) = (current_thread(), current_thread());
    wait_in_vain(&idle, &mut conn);
    for value in 0..3 {
        peer = exchange(&driven, &mut conn, peer, value);
        wait_in_vain(&idle, &mut conn);
    }
    // Room to send is waited for in the same way.
    idle.block_on(unconstrained(async { while poll!(pin!(conn.send(&0u32))).is_ready() {} }));
    driven.block_on(async {
        let mut sending = pin!(conn.send(&1u32));
        assert!(poll!(&mut sending).is_pending());
        let receiving = async { while peer.recv::<u32>().await.unwrap() == 0 {} };
        let (sent, ()) = tokio::join!(sending, receiving);
        sent.unwrap();
    });
    drop(idle);
}

#[test]
fn a_call_that_began_on_one_runtime_goes_on_after_its_end() {
    let _guard = guard(60);
    for (first, second) in runtimes().into_iter().zip(runtimes()) {
        let (mut conn, mut peer) = mp::pipe().unwrap();
        let (mut recv, mut send) = conn.split();
        let mut receiving = Box::pin(recv.recv::<u32>());
        first.block_on(unconstrained(async {
            assert!(poll!(&mut receiving).is_pending());
            while poll!(pin!(send.send(&0u32))).is_ready() {}
        }));
        let mut sending = Box::pin(send.send(&7u32));
        first.block_on(async { assert!(poll!(&mut sending).is_pending()) });
        drop(first);
        second.block_on(async {
            let answering = async {
                while peer.recv::<u32>().await.unwrap() != 7 {}
                peer.send(&8u32).await.unwrap();
            };
            let (received, sent, ()) = tokio::join!(receiving, sending, answering);
            sent.unwrap();
            assert_eq!(received.unwrap(), 8);
        });
        conn = recv.reunite(send).unwrap();
        drop(peer);
        assert!(second.block_on(conn.recv::<u32>()).unwrap_err().is_eof());
    }
}

#[test]
fn its_halves_work_on_two_runtimes_at_a_time() {
    const COUNT: u32 = 5000;
    let _guard = guard(60);
    let [here, there] = runtimes();
    let (conn, mut echo) = mp::pipe().unwrap();
    let (mut recv, mut send) = conn.split();
    let echoing = there.spawn(async move {
        while let Ok(value) = echo.recv::<u32>().await {
            echo.send(&value).await.unwrap();
        }
    });
    let sending = there.spawn(async move {
        for value in 0..COUNT {
            send.send(&value).await.unwrap();
        }
    });
    here.block_on(async {
        for value in 0..COUNT {
            assert_eq!(recv.recv::<u32>().await.unwrap(), value);
        }
        sending.await.unwrap();
        echoing.await.unwrap();
    });
}

#[test]
fn looking_needs_no_runtime_and_waiting_takes_any() {
    let _guard = guard(60);
    let (conn, mut peer) = mp::pipe().unwrap();
    let peek = |runtime: &Runtime, time| runtime.block_on(conn.poll_timeout(time)).unwrap();
    for runtime in runtimes() {
        assert!(!conn.poll().unwrap() && !peek(&runtime, Duration::from_millis(1)));
    }
    // The clock is the kernel's.
    let paused =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    assert!(!peek(&paused, Duration::from_millis(1)));
    for runtime in runtimes() {
        runtime.block_on(async {
            let (ready, sent) = tokio::join!(conn.readable(), peer.send(&1u8));
            ready.unwrap();
            sent.unwrap();
        });
        assert!(conn.poll().unwrap() && peek(&runtime, Duration::ZERO));
    }
}

/// Who always has something to receive lets others have their turn.
#[test]
fn a_flood_leaves_others_their_turn() {
    const COUNT: usize = 2000;
    let _guard = guard(60);
    current_thread().block_on(async {
        let (mut conn, peer) = mp::pipe().unwrap();
        let mut sink = peer.into_sink::<u8>();
        for _ in 0..COUNT {
            sink.feed(1).await.unwrap();
        }
        sink.flush().await.unwrap();
        let turned = Arc::new(AtomicBool::new(false));
        let turn = turned.clone();
        let reading = tokio::spawn(async move {
            for _ in 0..COUNT {
                conn.recv::<u8>().await.unwrap();
            }
            assert!(turned.load(Ordering::Relaxed), "nobody else had a turn");
        });
        let other = tokio::spawn(poll_fn(move |_| {
            turn.store(true, Ordering::Relaxed);
            std::task::Poll::Ready(())
        }));
        reading.await.unwrap();
        other.await.unwrap();
    });
}
