//! Connections over byte streams: sockets and pipes that others have made.

#![cfg(target_os = "linux")]

mod support;

use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures::{FutureExt, SinkExt, StreamExt};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{setsockopt, sockopt};
use support::limits::limited;
use support::{alone, current_thread, guard, multi_thread, run, watchdog};
use tokio::task::coop::unconstrained;
use tokio_multiprocess as mp;
use tokio_multiprocess::reduction::{Codec, MessagePack};
use tokio_multiprocess::{Blob, Connection, Error};

fn unix() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixStream::pair().unwrap();
    (a.into(), b.into())
}

fn tcp() -> (OwnedFd, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    // The kernel would let them grow to what a large message is here.
    for end in [&a, &b] {
        setsockopt(end, sockopt::SndBuf, &(64 << 10)).unwrap();
        setsockopt(end, sockopt::RcvBuf, &(64 << 10)).unwrap();
    }
    (a.into(), b.into())
}

/// The end that sends comes first.
fn pipe() -> (OwnedFd, OwnedFd) {
    let (reads, writes) = nix::unistd::pipe().unwrap();
    (writes, reads)
}

type Pair = fn() -> (OwnedFd, OwnedFd);

const PAIRS: [(&str, Pair); 3] = [("unix", unix), ("tcp", tcp), ("pipe", pipe)];

fn connection(fd: OwnedFd) -> Connection {
    Connection::from_fd(fd).unwrap()
}

/// Bytes that tell where in which message they are.
fn message(len: usize, seed: usize) -> Vec<u8> {
    // A length that divides none of those that anybody uses.
    let pattern: Vec<u8> = (0..8191).map(|i| (i ^ (i >> 8) ^ seed) as u8).collect();
    let mut bytes = pattern.repeat(len / pattern.len() + 1);
    bytes.truncate(len);
    bytes
}

/// A frame as CPython writes it.
fn frame(body: &[u8]) -> Vec<u8> {
    [&i32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// Reads a frame as CPython does; `None` is the end.
fn read_frame(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut head = [0; 4];
    from.read_exact(&mut head).ok()?;
    let mut body = vec![0; i32::from_be_bytes(head).try_into().unwrap()];
    from.read_exact(&mut body).expect("a whole message");
    Some(body)
}

/// Begins with a future, and drops it. That its task has used up its budget does not keep it from beginning.
async fn begin<F: Future>(future: F) {
    let mut future = pin!(unconstrained(future));
    let begun = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await;
    assert!(begun, "there was room for all of it");
}

#[test]
fn messages_of_all_sizes_go_over_every_kind_of_stream() {
    const SIZES: [usize; 12] = [0, 1, 64, 4091, 4092, 4096, 65_532, 65_536, 65_537, 1 << 20, 0, 3 << 20];
    run(60, async {
        for (name, pair) in PAIRS {
            let (sends, receives) = pair();
            let mut there = connection(receives);
            let sender = tokio::spawn(async move {
                let mut here = connection(sends);
                for size in SIZES {
                    here.send_bytes(&message(size, size)).await.unwrap();
                    here.send(&message(size, 1)).await.unwrap();
                }
            });
            for size in SIZES {
                assert!(there.recv_bytes().await.unwrap() == message(size, size), "{name}: {size}");
                assert!(there.recv::<Vec<u8>>().await.unwrap() == message(size, 1), "{name}: {size}");
            }
            assert!(matches!(there.recv_bytes().await, Err(Error::Eof)), "{name}");
            assert!(matches!(there.recv::<u8>().await, Err(Error::Eof)), "{name}");
            sender.await.unwrap();
        }
    });
}

#[test]
fn a_connection_of_two_directions_answers() {
    run(60, async {
        for (name, pair) in &PAIRS[..2] {
            let (here, there) = pair();
            let (mut here, mut there) = (connection(here), connection(there));
            let echo = tokio::spawn(async move {
                while let Ok(message) = there.recv_bytes().await {
                    there.send_bytes(&message).await.unwrap();
                }
            });
            for size in [0, 5, 100_000] {
                here.send_bytes(&message(size, 3)).await.unwrap();
                assert!(here.recv_bytes().await.unwrap() == message(size, 3), "{name}");
            }
            drop(here);
            echo.await.unwrap();
        }
    });
}

#[test]
fn frames_are_those_of_cpython() {
    run(60, async {
        let (here, mut peer) = UnixStream::pair().unwrap();
        let mut here = connection(here.into());
        here.send_bytes(b"abc").await.unwrap();
        here.send_bytes(b"").await.unwrap();
        let mut bytes = [0; 11];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0\x03abc\0\0\0\0");
        // The long form, though the short one would do.
        peer.write_all(b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x02hi\0\0\0\0").unwrap();
        assert_eq!(here.recv_bytes().await.unwrap(), "hi");
        assert_eq!(here.recv_bytes().await.unwrap(), "");
    });
}

#[test]
fn what_was_read_ahead_is_known_of() {
    run(60, async {
        for (name, pair) in PAIRS {
            let (sends, receives) = pair();
            let mut raw = std::fs::File::from(sends);
            let mut there = connection(receives);
            raw.write_all(&[frame(b"one"), frame(b"two"), frame(b"three")[..6].to_vec()].concat()).unwrap();
            assert!(there.poll().unwrap(), "{name}");
            assert_eq!(there.recv_bytes().await.unwrap(), "one");
            // It is not in the descriptor any more.
            assert!(there.poll().unwrap() && there.poll_timeout(Duration::ZERO).await.unwrap(), "{name}");
            there.readable().await.unwrap();
            assert_eq!(there.recv_bytes().await.unwrap(), "two");
            assert!(!there.poll().unwrap(), "{name}: half a message");
            raw.write_all(&frame(b"three")[6..]).unwrap();
            assert_eq!(there.recv_bytes().await.unwrap(), "three");
            assert!(!there.poll().unwrap(), "{name}");
            drop(raw);
            there.readable().await.unwrap();
            assert!(there.recv_bytes().await.unwrap_err().is_eof());
            assert!(there.poll().unwrap(), "{name}: the end");
        }
    });
}

#[test]
fn half_a_message_is_none_whatever_was_allowed_before() {
    run(60, async {
        for (name, pair) in PAIRS {
            let (sends, receives) = pair();
            let mut raw = std::fs::File::from(sends);
            let mut there = connection(receives);
            let second = frame(&message(300, 2));
            raw.write_all(&[frame(b"zero"), frame(b"one"), second[..100].to_vec()].concat()).unwrap();
            assert_eq!(there.recv_bytes().await.unwrap(), "zero");
            // As in a handshake, which allows for less.
            assert_eq!(mp::connection::auth::Link::recv_bytes(&mut there, 256).await.unwrap(), "one");
            assert!(!there.poll().unwrap(), "{name}");
            assert!(mp::wait_timeout(&[&there], Duration::ZERO).await.unwrap().is_empty(), "{name}");
            // Of which it is known that it is too long, that can be told at once.
            there.set_max_message(299);
            assert!(there.poll().unwrap(), "{name}");
            assert_eq!(mp::wait_timeout(&[&there], Duration::ZERO).await.unwrap(), [0], "{name}");
            there.set_max_message(300);
            raw.write_all(&second[100..]).unwrap();
            there.readable().await.unwrap();
            assert!(there.recv_bytes().await.unwrap() == message(300, 2), "{name}");
        }
    });
}

// conformance: TestInvalidHandle.test_invalid_handles
#[test]
fn numbers_of_nothing_are_errors() {
    let _guard = guard(60);
    let refused = |number| {
        let error = Connection::try_from_raw_fd(number).unwrap_err();
        matches!(&error, Error::Io(e) if e.raw_os_error() == Some(nix::libc::EBADF))
    };
    assert!(refused(-1) && refused(i32::MAX) && refused(1 << 20));
    let (a, b) = UnixStream::pair().unwrap();
    let closed = a.as_raw_fd();
    let mut over_b = Connection::try_from_raw_fd(b.as_raw_fd()).unwrap();
    drop(a);
    assert!(refused(closed));
    // The number's owner may close it: the connection has its own.
    drop(b);
    assert!(over_b.poll().unwrap());
    assert!(current_thread().block_on(over_b.recv_bytes()).unwrap_err().is_eof());
}

#[test]
fn what_carries_no_messages_is_refused() {
    let _guard = guard(60);
    let file = tempfile::tempfile().unwrap();
    let datagrams = std::os::unix::net::UnixDatagram::unbound().unwrap();
    for fd in [OwnedFd::from(file), datagrams.into()] {
        assert!(matches!(Connection::from_fd(fd), Err(Error::Io(e)) if e.to_string().contains("cannot be")
            || e.to_string().contains("can be")));
    }
    // A direction that is not there says so, and does not hang.
    current_thread().block_on(async {
        let (writes, reads) = pipe();
        let (mut writes, mut reads) = (connection(writes), connection(reads));
        for _ in 0..2 {
            assert!(writes.poll().unwrap());
            let error = writes.recv_bytes().await.unwrap_err();
            assert!(error.to_string().contains("not open for reading"), "{error}");
            let error = reads.send_bytes(b"x").await.unwrap_err();
            assert!(error.to_string().contains("not open for writing"), "{error}");
        }
    });
}

#[test]
fn a_pipes_two_ends_are_halves() {
    run(60, async {
        let (writes, reads) = pipe();
        let (mut recv, mut send) =
            (mp::RecvHalf::from_fd(reads).unwrap(), mp::SendHalf::from_fd(writes).unwrap());
        send.send(&("one", 2)).await.unwrap();
        assert_eq!(recv.recv::<(String, u8)>().await.unwrap(), ("one".to_owned(), 2));
        drop(recv);
        assert!(send.send(&1).await.unwrap_err().is_eof());
    });
}

// conformance: TestTimeouts.test_timeout
#[test]
fn nobody_who_shares_the_open_file_sees_that_it_is_waited_for() {
    run(60, async {
        for (name, pair) in PAIRS {
            let (sends, receives) = pair();
            let shared = receives.try_clone().unwrap();
            let (mut here, mut there) = (connection(sends), connection(receives));
            // As a program does that wants its own calls to end.
            let time = nix::sys::time::TimeVal::new(0, 1000);
            let _ = setsockopt(&shared, sockopt::ReceiveTimeout, &time);
            begin(there.recv_bytes()).await;
            begin(there.recv_bytes()).await;
            let received = tokio::spawn(async move { there.recv_bytes().await });
            here.send_bytes(&message(1 << 20, 0)).await.unwrap();
            assert!(received.await.unwrap().unwrap() == message(1 << 20, 0), "{name}");
            let flags = OFlag::from_bits_retain(fcntl(&shared, FcntlArg::F_GETFL).unwrap());
            assert!(!flags.contains(OFlag::O_NONBLOCK), "{name}");
        }
    });
}

/// More than the kernel takes at once.
const LARGE: usize = 3 << 20;

/// Reads all there is as CPython would, on a thread: the large message and those that follow.
fn expect(from: OwnedFd, following: usize) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = std::io::BufReader::new(std::fs::File::from(from));
        let large = read_frame(&mut from).expect("the message that was begun");
        let is_value =
            || MessagePack::decode::<Vec<u8>>(&large).is_ok_and(|large| large == message(LARGE, 1));
        assert!(large == message(LARGE, 1) || is_value());
        for i in 0..following {
            assert!(read_frame(&mut from).expect("a message after it") == message(100_000 * i, i));
        }
        assert_eq!(read_frame(&mut from), None);
    })
}

#[test]
fn a_message_goes_out_whole_though_its_send_is_dropped() {
    run(60, async {
        for (name, pair) in PAIRS {
            for by_value in [false, true] {
                eprintln!("{name}, by value: {by_value}");
                let (sends, receives) = pair();
                let mut here = connection(sends);
                if by_value {
                    begin(here.send(&message(LARGE, 1))).await;
                } else {
                    begin(here.send_bytes(&message(LARGE, 1))).await;
                }
                // One that waits for its turn is not begun.
                begin(here.send_bytes(b"never")).await;
                begin(here.flush()).await;
                let reader = expect(receives, 3);
                for i in 0..3 {
                    here.send_bytes(&message(100_000 * i, i)).await.unwrap();
                }
                here.flush().await.unwrap();
                drop(here);
                reader.join().unwrap();
            }
        }
    });
}

#[test]
fn a_message_goes_out_whole_though_its_connection_is_dropped() {
    run(60, async {
        for (_, pair) in PAIRS {
            let (sends, receives) = pair();
            let mut here = connection(sends);
            begin(here.send_bytes(&message(LARGE, 1))).await;
            drop(here);
            expect(receives, 0).join().unwrap();

            let (sends, receives) = pair();
            let (recv, mut send) = connection(sends).split();
            begin(send.send(&message(LARGE, 1))).await;
            send.close();
            drop((send, recv));
            expect(receives, 0).join().unwrap();
        }
    });
}

#[test]
fn a_message_goes_out_whole_though_its_runtime_ends() {
    let _guard = guard(60);
    for (_, pair) in PAIRS {
        for runtime in [current_thread(), multi_thread()] {
            let (sends, receives) = pair();
            let (first, begun) = std::sync::mpsc::channel();
            runtime.spawn(async move {
                let mut here = connection(sends);
                let large = message(LARGE, 1);
                let mut send = pin!(here.send_bytes(&large));
                std::future::poll_fn(|cx| {
                    let poll = send.as_mut().poll(cx);
                    let _ = first.send(());
                    poll
                })
                .await
                .unwrap();
            });
            runtime.block_on(async {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            });
            begun.recv().unwrap();
            runtime.shutdown_background();
            expect(receives, 0).join().unwrap();
        }
    }
}

#[test]
fn a_connection_outlives_the_runtime_in_which_its_message_was_begun() {
    let _guard = guard(60);
    let (sends, receives) = unix();
    let mut here = connection(sends);
    current_thread().block_on(begin(here.send_bytes(&message(LARGE, 1))));
    let reader = expect(receives, 2);
    current_thread().block_on(async {
        for i in 0..2 {
            here.send_bytes(&message(100_000 * i, i)).await.unwrap();
        }
    });
    drop(here);
    reader.join().unwrap();
}

#[test]
fn a_forgotten_send_is_told_of() {
    // What is forgotten is not given back.
    let (_alone, _watchdog) = (alone(), watchdog(60));
    current_thread().block_on(async {
        let (sends, receives) = unix();
        let mut here = connection(sends);
        let large = message(LARGE, 1);
        let mut send = Box::pin(here.send_bytes(&large));
        assert!(futures::poll!(send.as_mut()).is_pending());
        std::mem::forget(send);
        let error = here.send_bytes(b"in the middle of it").await.unwrap_err();
        assert!(error.to_string().contains("in the middle of a message"), "{error}");
        assert!(here.send_bytes(b"again").await.is_err());
        drop(receives);
    });
}

#[test]
fn a_peer_that_leaves_in_the_middle_of_a_rest_is_told_of() {
    run(60, async {
        for (name, pair) in PAIRS {
            let (sends, receives) = pair();
            let mut here = connection(sends);
            begin(here.send_bytes(&message(LARGE, 1))).await;
            drop(receives);
            let error = here.flush().await.unwrap_err();
            assert!(matches!(error, Error::Io(_)), "{name}: {error}");
            assert!(here.send_bytes(b"x").await.is_err(), "{name}");
        }
    });
}

#[test]
fn a_large_message_is_as_large_in_memory_and_no_larger() {
    run(120, async {
        const SIZE: usize = 100 << 20;
        let (sends, receives) = unix();
        let mut there = connection(receives);
        let sender = tokio::spawn(async move {
            let mut here = connection(sends);
            here.send_bytes(&vec![7; SIZE]).await.unwrap();
            here.send_bytes(b"after it").await.unwrap();
        });
        let received = there.recv_bytes().await.unwrap();
        assert!(received.len() == SIZE && received.iter().all(|byte| *byte == 7));
        assert_eq!(there.recv_bytes().await.unwrap(), "after it");
        sender.await.unwrap();
        // There is nothing besides: the bytes lie where they were read to.
        let whole: Vec<u8> = received.into();
        assert!(whole.capacity() <= SIZE + 12);
    });
}

/// Sends and receives that are dropped at any point lose, double and tear nothing.
async fn storm(sends: OwnedFd, receives: OwnedFd) {
    const MESSAGES: usize = 5_000;
    // Ends in the middle of large ones too, and mostly in small ones.
    let len = |i: usize| if i.is_multiple_of(50) { 400_000 } else { (i * 37) % 3_000 };
    let sender = tokio::spawn(async move {
        let mut here = connection(sends);
        let mut sent = Vec::new();
        for i in 0..MESSAGES {
            let bytes = [&(i as u32).to_be_bytes()[..], &message(len(i), i)].concat();
            let turns = i % 4;
            let send = pin!(here.send_bytes(&bytes));
            // Whether it was sent is not known if it was dropped.
            let whole = patience(send, turns).await;
            sent.push(whole.map(Result::unwrap).is_some());
        }
        here.flush().await.unwrap();
        sent
    });
    let mut there = connection(receives);
    let mut received = Vec::new();
    for turns in (0..4).cycle() {
        match patience(pin!(there.recv_bytes()), turns).await {
            None => tokio::task::yield_now().await,
            Some(Ok(bytes)) => {
                let i = u32::from_be_bytes(*bytes.first_chunk().unwrap()) as usize;
                assert!(bytes[4..] == message(len(i), i), "message {i} is torn");
                received.push(i);
            }
            Some(Err(error)) => {
                assert!(matches!(error, Error::Eof), "{error}");
                break;
            }
        }
    }
    let sent = sender.await.unwrap();
    assert!(received.is_sorted_by(|a, b| a < b), "doubled, or out of order");
    let lost = (0..MESSAGES).find(|i| sent[*i] && received.binary_search(i).is_err());
    assert_eq!(lost, None);
}

/// Polls a future so many times at most.
async fn patience<F: Future + Unpin>(mut future: F, turns: usize) -> Option<F::Output> {
    for _ in 0..turns {
        if let Poll::Ready(output) = futures::poll!(&mut future) {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

#[test]
fn ten_thousand_dropped_calls_lose_double_and_tear_nothing() {
    run(120, async {
        for (name, pair) in PAIRS {
            eprintln!("{name}");
            let (sends, receives) = pair();
            storm(sends, receives).await;
        }
    });
}

#[test]
fn handles_travel_over_a_unix_socket() {
    run(60, async {
        let (here, there) = unix();
        let (mut here, mut there) = (connection(here), connection(there));
        // Beside one message, before and after others, and more than one call to the kernel takes.
        for count in [1, 2, 0, 251, 252, 0, 600, 1024, 1] {
            let blobs: Vec<_> = (0..count).map(|i| Blob::new(message(100 + i, i)).unwrap()).collect();
            let sender = async {
                here.send("before").await.unwrap();
                here.send(&(blobs, message(300_000, count))).await.unwrap();
                here.send("after").await.unwrap();
            };
            let receiver = async {
                assert_eq!(there.recv::<String>().await.unwrap(), "before");
                let (blobs, bytes): (Vec<Blob>, Vec<u8>) = there.recv().await.unwrap();
                assert!(bytes == message(300_000, count));
                assert_eq!(blobs.len(), count);
                assert!(blobs.iter().enumerate().all(|(i, blob)| blob[..] == message(100 + i, i)));
                assert_eq!(there.recv::<String>().await.unwrap(), "after");
            };
            tokio::join!(sender, receiver);
        }
        // Several that wait together.
        for i in 0..20 {
            here.send(&(i, Blob::new(message(i, i)).unwrap())).await.unwrap();
            here.send(&i).await.unwrap();
        }
        for i in 0..20 {
            let (number, blob): (usize, Blob) = there.recv().await.unwrap();
            assert!(number == i && blob[..] == message(i, i));
            assert_eq!(there.recv::<usize>().await.unwrap(), i);
        }
    });
}

#[test]
fn handles_do_not_travel_over_other_streams() {
    run(60, async {
        for (_, pair) in &PAIRS[1..] {
            let (here, there) = pair();
            let (mut here, mut there) = (connection(here), connection(there));
            let error = here.send(&Blob::new(b"x").unwrap()).await.unwrap_err();
            assert!(error.to_string().contains("Unix sockets only"), "{error}");
            // Nothing of it went out.
            here.send(&1).await.unwrap();
            assert_eq!(there.recv::<i32>().await.unwrap(), 1);
        }
    });
}

#[test]
fn what_was_fed_and_cannot_travel_is_told_of_once() {
    run(60, async {
        for (_, pair) in &PAIRS[1..] {
            let (here, there) = pair();
            let (mut here, mut there) = (connection(here), connection(there));
            let (mut other, mut peer) = mp::pipe().unwrap();
            let mut sink = here.sink::<&Connection>();
            sink.feed(&other).await.unwrap();
            let error = sink.flush().await.unwrap_err();
            assert!(error.to_string().contains("Unix sockets only"), "{error}");
            sink.flush().await.unwrap();
            here.send(&1).await.unwrap();
            assert_eq!(there.recv::<i32>().await.unwrap(), 1);
            // It did not go anywhere.
            peer.send(&2).await.unwrap();
            assert_eq!(other.recv::<i32>().await.unwrap(), 2);
        }
    });
}

#[test]
fn handles_that_do_not_fit_wait_until_they_do() {
    run(60, async {
        let (here, there) = unix();
        let (mut here, mut there) = (connection(here), connection(there));
        let blobs = || (0..4).map(|i| Blob::new(message(10, i)).unwrap()).collect::<Vec<_>>();
        here.send(&blobs()).await.unwrap();
        assert_eq!(there.recv::<Vec<Blob>>().await.unwrap().len(), 4);
        here.send(&blobs()).await.unwrap();
        {
            let _limited = limited(2);
            for _ in 0..2 {
                let error = there.recv::<Vec<Blob>>().await.unwrap_err();
                assert!(
                    matches!(&error, Error::Io(e) if e.raw_os_error() == Some(nix::libc::EMFILE)),
                    "{error}"
                );
            }
        }
        let blobs = there.recv::<Vec<Blob>>().await.unwrap();
        assert!(blobs.iter().enumerate().all(|(i, blob)| blob[..] == message(10, i)));
    });
}

#[test]
fn a_message_that_was_begun_needs_no_more_descriptors() {
    run(60, async {
        let (other, _kept) = unix();
        let mut other = connection(other);
        // Whoever writes rests is there.
        begin(other.send_bytes(&message(LARGE, 0))).await;
        let (sends, receives) = unix();
        let mut here = connection(sends);
        // The runtime knows of one direction; for the other it takes another number.
        begin(here.recv_bytes()).await;
        let large = message(LARGE, 1);
        let mut send = Box::pin(here.send_bytes(&large));
        let limited = limited(0);
        assert!(futures::poll!(send.as_mut()).is_pending(), "it is left to somebody else");
        drop(limited);
        let reader = expect(receives, 1);
        send.as_mut().await.unwrap();
        drop(send);
        here.send_bytes(&message(0, 0)).await.unwrap();
        drop(here);
        reader.join().unwrap();
    });
}

#[test]
fn the_first_handles_that_do_not_fit_are_the_loss_of_their_message_alone() {
    run(60, async {
        let (here, there) = unix();
        let (mut here, mut there) = (connection(here), connection(there));
        let blobs: Vec<_> = (0..4).map(|i| Blob::new(message(10, i)).unwrap()).collect();
        here.send("before").await.unwrap();
        here.send(&blobs).await.unwrap();
        here.send("after").await.unwrap();
        {
            let _limited = limited(2);
            assert_eq!(there.recv::<String>().await.unwrap(), "before");
            let error = there.recv::<Vec<Blob>>().await.unwrap_err();
            assert!(error.to_string().ends_with("and is lost"), "{error}");
        }
        assert_eq!(there.recv::<String>().await.unwrap(), "after");
        here.send(&blobs).await.unwrap();
        assert_eq!(there.recv::<Vec<Blob>>().await.unwrap().len(), 4);
    });
}

#[test]
fn framed_goes_on_where_the_connection_was() {
    run(60, async {
        for (name, pair) in &PAIRS[..2] {
            let (here, there) = pair();
            let mut raw = std::fs::File::from(here);
            let mut there = connection(there);
            raw.write_all(&[frame(b"one"), frame(b"two"), frame(b"three")[..5].to_vec()].concat()).unwrap();
            assert_eq!(there.recv_bytes().await.unwrap(), "one");
            // A message that was begun comes before those of the framed one.
            begin(there.send_bytes(&message(LARGE, 1))).await;
            let mut framed = there.into_framed().unwrap();
            assert_eq!(framed.next().await.unwrap().unwrap(), "two", "{name}");
            raw.write_all(&frame(b"three")[5..]).unwrap();
            assert_eq!(framed.next().await.unwrap().unwrap(), "three", "{name}");
            let reader = expect(raw.try_clone().unwrap().into(), 3);
            for i in 0..3 {
                framed.send(message(100_000 * i, i).into()).await.unwrap();
            }
            framed.close().await.unwrap();
            reader.join().unwrap();
            raw.write_all(&frame(b"four")[..7]).unwrap();
            drop(raw);
            assert!(framed.next().await.unwrap().is_err(), "{name}: the end came inside of a message");
        }
    });
}

#[test]
fn what_cannot_be_framed_comes_back() {
    run(60, async {
        let (here, mut there) = mp::pipe().unwrap();
        let mut refused = here.into_framed().unwrap_err();
        assert!(matches!(refused.error, Error::InvalidArgument(_)), "{refused}");
        refused.connection.send(&1).await.unwrap();
        assert_eq!(there.recv::<i32>().await.unwrap(), 1);

        let (here, there) = unix();
        let (mut here, mut there) = (connection(here), connection(there));
        here.sink().feed(2).await.unwrap();
        let mut refused = here.into_framed().unwrap_err();
        assert!(refused.to_string().contains("flush"), "{refused}");
        refused.connection.flush().await.unwrap();
        assert_eq!(there.recv::<i32>().await.unwrap(), 2);
        let mut framed = refused.connection.into_framed().unwrap();
        // As the codec writes a small number.
        framed.send(b"\x03"[..].into()).await.unwrap();
        assert_eq!(there.recv::<i32>().await.unwrap(), 3);

        there.close();
        assert!(matches!(there.into_framed().unwrap_err().into(), Error::Closed(_)));
    });
}

#[test]
fn a_half_that_hangs_up_does_so_after_what_it_has_begun() {
    run(60, async {
        for (name, pair) in &PAIRS[..2] {
            let (here, there) = pair();
            let (mut recv, mut send) = connection(here).split();
            begin(send.send_bytes(&message(LARGE, 1))).await;
            drop(send);
            let answer = std::fs::File::from(there.try_clone().unwrap());
            // To its end, while the other direction stays open.
            expect(there, 0).join().unwrap();
            (&answer).write_all(&frame(b"all of it")).unwrap();
            assert_eq!(recv.recv_bytes().await.unwrap(), "all of it", "{name}");
        }
    });
}

#[test]
fn messages_are_fed_together() {
    run(60, async {
        for (name, pair) in PAIRS {
            let (sends, receives) = pair();
            let (here, there) = (connection(sends), connection(receives));
            let (all_read, is_read) = tokio::sync::oneshot::channel();
            let sender = tokio::spawn(async move {
                let mut sink = here.into_sink::<Vec<u8>>();
                for i in 0..3_000 {
                    sink.feed(message(i % 700, i)).await.unwrap();
                    if i % 500 == 0 {
                        sink.feed(message(300_000, i)).await.unwrap();
                    }
                }
                sink.flush().await.unwrap();
                is_read.await.unwrap();
                // More than the kernel takes: begun, and mostly not out when the sink is dropped.
                sink.feed(message(LARGE, 1)).await.unwrap();
                let _ = unconstrained(sink.flush()).now_or_never();
            });
            let mut received = there.into_stream::<Vec<u8>>();
            for i in 0..3_000 {
                assert!(received.next().await.unwrap().unwrap() == message(i % 700, i), "{name}: {i}");
                if i % 500 == 0 {
                    assert!(received.next().await.unwrap().unwrap() == message(300_000, i), "{name}: {i}");
                }
            }
            all_read.send(()).unwrap();
            assert!(received.next().await.unwrap().unwrap() == message(LARGE, 1), "{name}");
            assert!(received.next().await.is_none(), "{name}");
            sender.await.unwrap();
        }
    });
}

#[test]
fn an_end_moves_with_what_it_has_read() {
    run(60, async {
        let (mut over, mut arrives) = mp::pipe().unwrap();
        let (here, there) = unix();
        let (mut here, mut there) = (connection(here), connection(there));
        here.send(&1).await.unwrap();
        here.send(&(2, Blob::new(b"beside").unwrap())).await.unwrap();
        here.send(&3).await.unwrap();
        assert_eq!(there.recv::<i32>().await.unwrap(), 1);
        // It was read together with the first.
        assert!(there.poll().unwrap());
        over.send(&there).await.unwrap();
        assert!(there.is_closed());
        let mut there: Connection = arrives.recv().await.unwrap();
        let (two, blob): (i32, Blob) = there.recv().await.unwrap();
        assert!(two == 2 && blob[..] == *b"beside");
        assert_eq!(there.recv::<i32>().await.unwrap(), 3);
        there.send(&4).await.unwrap();
        assert_eq!(here.recv::<i32>().await.unwrap(), 4);
        // Nobody else writes what was begun here.
        begin(there.send_bytes(&message(LARGE, 1))).await;
        let error = over.send(&there).await.unwrap_err();
        assert!(error.to_string().contains("flush"), "{error}");
        assert!(here.recv_bytes().await.unwrap() == message(LARGE, 1));
        there.flush().await.unwrap();
        over.send(&there).await.unwrap();
        assert!(here.share().is_err());
    });
}

#[test]
fn a_connection_is_used_from_one_runtime_after_the_other() {
    let _guard = guard(60);
    for (_, pair) in PAIRS {
        let (sends, receives) = pair();
        let (mut here, mut there) = (connection(sends), connection(receives));
        for runtime in [current_thread(), multi_thread(), current_thread()] {
            runtime.block_on(async {
                let received = async {
                    begin(there.recv_bytes()).await;
                    there.recv_bytes().await.unwrap()
                };
                let sent = here.send_bytes(b"over each of them");
                let (received, sent) = tokio::join!(received, sent);
                sent.unwrap();
                assert_eq!(received, "over each of them");
            });
        }
    }
}

#[test]
fn what_is_there_is_received_without_a_runtime() {
    let _guard = guard(60);
    for (name, pair) in PAIRS {
        let (sends, receives) = pair();
        let mut raw = std::fs::File::from(sends);
        let mut there = connection(receives);
        for i in 0..3 {
            raw.write_all(&frame(&message(10, i))).unwrap();
            // It is there for certain.
            while !there.poll().unwrap() {}
            let received = there.recv_bytes().now_or_never().expect("no wait");
            assert!(received.unwrap() == message(10, i), "{name}");
        }
    }
}
