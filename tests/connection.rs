//! Connections made by `pipe`: what they carry, what they promise, and to whom.

#![cfg(target_os = "linux")]

mod support;

use support::run;
use tokio_multiprocess as mp;
use tokio_multiprocess::Error;

#[test]
fn messages_of_all_sizes_arrive_as_they_were_sent() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        // Around each border: of what is gathered, of what goes inside of a packet.
        let sizes = [0, 1, 64, 1023, 1024, 1025, 32 << 10, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20];
        let message = |size: usize| -> Vec<u8> { (0..size).map(|i| (i * 7 + size) as u8).collect() };
        let sender = tokio::spawn(async move {
            for size in sizes {
                here.send_bytes(&message(size)).await.unwrap();
                here.send(&message(size)).await.unwrap();
            }
            here
        });
        for size in sizes {
            assert!(there.recv_bytes().await.unwrap() == message(size), "{size} bytes");
            assert!(there.recv::<Vec<u8>>().await.unwrap() == message(size), "{size} bytes as a value");
        }
        drop(sender.await.unwrap());
        assert!(there.recv::<u8>().await.unwrap_err().is_eof());
        assert!(matches!(there.recv_bytes().await, Err(Error::Eof)));
        assert!(there.send(&1).await.unwrap_err().is_eof());
    });
}

#[test]
fn a_pipe_of_one_direction() {
    run(60, async {
        let (mut recv, mut send) = mp::simplex_pipe().unwrap();
        send.send("one").await.unwrap();
        send.send_bytes(b"two").await.unwrap();
        assert_eq!(recv.recv::<String>().await.unwrap(), "one");
        assert_eq!(recv.recv_bytes().await.unwrap(), "two");
        drop(send);
        assert!(recv.recv_bytes().await.unwrap_err().is_eof());
    });
}
