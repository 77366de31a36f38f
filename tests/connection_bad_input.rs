//! What connections over byte streams make of peers that send nonsense, or leave in the middle of sense.

#![cfg(target_os = "linux")]

mod support;

use std::fs::File;
use std::future::Future;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;

use futures::StreamExt;
use futures::stream::FusedStream;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use proptest::prelude::*;
use serde::Serialize;
use support::{current_thread, guard, run, watchdog};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Connection, Error, RecvHalf};

/// An end as others write to it, and a connection that receives.
fn unix() -> (File, Connection) {
    let (a, b) = UnixStream::pair().unwrap();
    (OwnedFd::from(a).into(), Connection::from_fd(b.into()).unwrap())
}

fn tcp() -> (File, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    (OwnedFd::from(a).into(), Connection::from_fd(b.into()).unwrap())
}

fn pipe() -> (File, Connection) {
    let (reads, writes) = nix::unistd::pipe().unwrap();
    (writes.into(), Connection::from_fd(reads).unwrap())
}

type Pair = fn() -> (File, Connection);

const PAIRS: [(&str, Pair); 3] = [("unix", unix), ("tcp", tcp), ("pipe", pipe)];

/// The long form of a header.
fn long(len: u64) -> Vec<u8> {
    [&[255; 4][..], &len.to_be_bytes()].concat()
}

/// A header that announces so many descriptors.
fn announces(count: u64, len: u64) -> Vec<u8> {
    long(count << 48 | len)
}

const CARRIER: u64 = 0x100;

/// What the future says if it is ready soon.
async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..10 {
        if let std::task::Poll::Ready(output) = futures::poll!(future.as_mut()) {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

fn is_cut(error: &Error) -> bool {
    matches!(error, Error::Io(e) if e.kind() == ErrorKind::UnexpectedEof) && !error.is_eof()
}

#[test]
fn a_peer_that_leaves_at_any_byte_is_told_of() {
    run(120, async {
        // Frames of each form, and where each ends.
        let frames = [b"\0\0\0\x03abc".to_vec(), vec![0; 4], [long(2), b"hi".to_vec()].concat()];
        let bodies: [&[u8]; 3] = [b"abc", b"", b"hi"];
        let stream = frames.concat();
        let ends = [0, 7, 11, 25];
        assert_eq!(stream.len(), ends[3]);
        for (name, pair) in PAIRS {
            for cut in 0..=stream.len() {
                let (mut peer, mut connection) = pair();
                peer.write_all(&stream[..cut]).unwrap();
                drop(peer);
                let whole = ends[1..].iter().filter(|end| **end <= cut).count();
                for body in &bodies[..whole] {
                    assert_eq!(connection.recv_bytes().await.unwrap(), *body, "{name}: {cut}");
                }
                for _ in 0..2 {
                    let error = connection.recv_bytes().await.unwrap_err();
                    let right = if ends.contains(&cut) { error.is_eof() } else { is_cut(&error) };
                    assert!(right, "{name}: {cut}: {error}");
                    assert!(connection.poll().unwrap());
                }
            }
        }
    });
}

#[test]
fn a_message_that_comes_byte_by_byte_is_one() {
    run(60, async {
        for (name, pair) in PAIRS {
            let (mut peer, mut connection) = pair();
            for byte in [long(5), b"hello".to_vec()].concat() {
                assert!(at_once(connection.recv_bytes()).await.is_none(), "{name}");
                peer.write_all(&[byte]).unwrap();
            }
            assert_eq!(connection.recv_bytes().await.unwrap(), "hello", "{name}");
        }
    });
}

#[test]
fn nonsense_is_an_error_as_soon_as_it_is_known() {
    run(60, async {
        let malformed = |error: &Error| matches!(error, Error::Malformed(_));
        let too_long = |error: &Error| matches!(error, Error::TooLong { max, .. } if *max == 1 << 30);
        type Right<'a> = &'a dyn Fn(&Error) -> bool;
        let nonsense: [(Vec<u8>, Right<'_>); 8] = [
            ((-2i32).to_be_bytes().to_vec(), &malformed),
            (i32::MIN.to_be_bytes().to_vec(), &malformed),
            (b"\xffPOST / HTTP/1.1\r\n".to_vec(), &malformed),
            (b"GET / HTTP/1.1\r\n".to_vec(), &too_long),
            (long(1 << 40), &too_long),
            (long(10 << 30), &too_long),
            (long(u64::MAX), &too_long),
            (((1i32 << 30) + 1).to_be_bytes().to_vec(), &too_long),
        ];
        for (name, pair) in PAIRS {
            for (bytes, right) in &nonsense {
                let (mut peer, mut connection) = pair();
                peer.write_all(b"\0\0\0\x02ok").unwrap();
                peer.write_all(bytes).unwrap();
                assert_eq!(connection.recv_bytes().await.unwrap(), "ok");
                // The peer stays, and says no more: the error does not wait for it, and is final.
                for _ in 0..3 {
                    let error = connection.recv_bytes().await.unwrap_err();
                    assert!(right(&error), "{name}: {bytes:?}: {error}");
                    assert!(connection.poll().unwrap());
                }
                // A well-formed frame after it is not taken for one.
                peer.write_all(b"\0\0\0\x02no").unwrap();
                assert!(right(&connection.recv_bytes().await.unwrap_err()));
            }
        }
    });
}

#[test]
fn the_limit_is_what_was_set() {
    run(60, async {
        for (name, pair) in PAIRS {
            let (mut peer, mut connection) = pair();
            connection.set_max_message(3);
            peer.write_all(b"\0\0\0\x03abc\0\0\0\x04abcd").unwrap();
            assert_eq!(connection.recv_bytes().await.unwrap(), "abc");
            let error = connection.recv_bytes().await.unwrap_err();
            assert!(matches!(error, Error::TooLong { len: 4, max: 3 }), "{name}: {error}");
        }
        let (_peer, mut connection) = unix();
        connection.set_max_message(3);
        let error = connection.send_bytes(b"long").await.unwrap_err();
        assert!(matches!(error, Error::TooLong { len: 4, max: 3 }), "{error}");
        connection.send_bytes(b"len").await.unwrap();
    });
}

/// How much memory this process has asked for, in bytes.
fn virtual_memory() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').next().unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn what_is_only_announced_takes_no_memory() {
    run(60, async {
        for (name, pair) in PAIRS {
            let before = virtual_memory();
            let mut open = Vec::new();
            for _ in 0..8 {
                let (mut peer, mut connection) = pair();
                connection.set_max_message(20 << 30);
                peer.write_all(&[long(10 << 30), b"a few bytes".to_vec()].concat()).unwrap();
                assert!(at_once(connection.recv_bytes()).await.is_none(), "{name}");
                open.push((peer, connection));
            }
            let grown = virtual_memory().saturating_sub(before);
            assert!(grown < 256 << 20, "{name}: {grown} bytes more");
            for (peer, mut connection) in open {
                drop(peer);
                assert!(is_cut(&connection.recv_bytes().await.unwrap_err()), "{name}");
            }
        }
    });
}

/// Sends bytes, and descriptors beside the first.
fn send_with(peer: &File, bytes: &[u8], count: usize) -> io::Result<()> {
    // Not of the peer's end: that would not close while somebody has it.
    let file = File::open("/dev/null").unwrap();
    let fds: Vec<RawFd> = vec![file.as_raw_fd(); count];
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(peer.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::empty(), None)?;
    assert_eq!(sent, bytes.len());
    Ok(())
}

#[test]
fn descriptors_and_what_announces_them_must_fit() {
    run(60, async {
        let hi = |head: Vec<u8>| [head, b"hi".to_vec()].concat();
        let short = || b"\0\0\0\x02hi".to_vec();
        /// So many bytes and descriptors, sent together.
        type Part = (Vec<u8>, usize);
        // What is sent; how many messages come before the error.
        let sent: Vec<(Vec<Part>, usize)> = vec![
            // Announced, and not there: at all, or in full.
            (vec![(hi(announces(1, 2)), 0)], 0),
            (vec![(hi(announces(3, 2)), 2)], 0),
            (vec![(hi(announces(1, 2)), 1), (hi(announces(1, 2)), 0)], 1),
            // There, and not announced: with any byte, and too many.
            (vec![(short(), 1), (short(), 0)], 0),
            (vec![(short(), 0), (short(), 1)], 1),
            (vec![(b"\0\0\0\x02h".to_vec(), 0), (b"i".to_vec(), 1)], 0),
            (vec![(hi(announces(2, 2)), 3)], 0),
            (vec![(long(1 << 29), 253)], 0),
            (vec![(announces(1, 100), 1), (b"x".to_vec(), 1)], 0),
            // A carrier that is none.
            (vec![(hi(announces(CARRIER, 2)), 0)], 0),
        ];
        for (i, (parts, whole)) in sent.iter().enumerate() {
            // All at once, and each part only when the one before it was read.
            for slowly in [false, true] {
                let (peer, mut connection) = unix();
                let mut received = 0;
                let mut failure = None;
                for (bytes, count) in parts {
                    send_with(&peer, bytes, *count).unwrap();
                    while let (true, None) = (slowly, &failure) {
                        match at_once(connection.recv_bytes()).await {
                            None => break,
                            Some(Ok(_)) => received += 1,
                            Some(Err(error)) => failure = Some(error),
                        }
                    }
                }
                // The peer stays: what can be known is known.
                while failure.is_none() {
                    match connection.recv_bytes().await {
                        Ok(_) => received += 1,
                        Err(error) => failure = Some(error),
                    }
                }
                assert!(matches!(failure, Some(Error::Malformed(_))), "{i}, slowly {slowly}: {failure:?}");
                assert_eq!(received, *whole, "{i}, slowly {slowly}");
                assert!(matches!(connection.recv_bytes().await, Err(Error::Malformed(_))), "{i}");
            }
        }
        // What is right is not refused.
        let (peer, mut connection) = unix();
        send_with(&peer, &short(), 0).unwrap();
        send_with(&peer, &hi(announces(253, 2)), 253).unwrap();
        send_with(&peer, &short(), 0).unwrap();
        for _ in 0..3 {
            assert_eq!(connection.recv_bytes().await.unwrap(), "hi");
        }
    });
}

/// How many numbers of this process are this file.
fn numbers_of(file: &std::path::Path) -> usize {
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap();
    numbers.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == file)).count()
}

#[test]
fn a_header_that_comes_slowly_brings_no_more_descriptors_than_a_frame_has() {
    run(60, async {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (peer, mut connection) = unix();
        let mut most = 0;
        let error = loop {
            let fds = vec![file.as_raw_fd(); 253];
            let rights = [ControlMessage::ScmRights(&fds)];
            let sent = [IoSlice::new(&[255])];
            sendmsg::<()>(peer.as_raw_fd(), &sent, &rights, MsgFlags::empty(), None).unwrap();
            let received = at_once(connection.recv_bytes()).await;
            most = most.max(numbers_of(file.path()));
            if let Some(received) = received {
                break received.unwrap_err();
            }
        };
        assert!(matches!(error, Error::Malformed(_)), "{error}");
        assert!(most <= 1 + 2 * 253, "{most}");
        assert_eq!(numbers_of(file.path()), 1);
    });
}

#[test]
fn no_descriptors_can_be_announced_where_none_travel() {
    run(60, async {
        for (name, pair) in &PAIRS[1..] {
            let (mut peer, mut connection) = pair();
            peer.write_all(&announces(1, 2)).unwrap();
            let error = connection.recv_bytes().await.unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{name}: {error}");
        }
    });
}

#[test]
fn a_carrier_of_nonsense_loses_one_message() {
    run(60, async {
        let (peer, mut connection) = unix();
        let announced = [announces(CARRIER | 1, 2), b"hi".to_vec()].concat();
        let send = |carrier: &OwnedFd| {
            let fds = [carrier.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            let bytes = [IoSlice::new(&announced)];
            sendmsg::<()>(peer.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
        };
        let sockets =
            || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        // No socket; one whose other end goes on; one with more than a message may have; one of bytes,
        // of which none is ever taken.
        send(&tempfile::tempfile().unwrap().into());
        let (endless, kept) = sockets();
        send(&endless);
        let (full, fill) = sockets();
        for _ in 0..6 {
            send_with(&File::from(fill.try_clone().unwrap()), b"x", 250).unwrap();
        }
        drop(fill);
        send(&full);
        let (bytes, mut fill) = UnixStream::pair().unwrap();
        fill.write_all(b"x").unwrap();
        send(&bytes.into());
        for i in 0..4 {
            let error = connection.recv_bytes().await.unwrap_err();
            assert!(matches!(error, Error::Io(_) | Error::Malformed(_)), "{i}: {error}");
        }
        (&peer).write_all(b"\0\0\0\x02ok").unwrap();
        assert_eq!(connection.recv_bytes().await.unwrap(), "ok");
        drop(kept);
    });
}

#[test]
fn whatever_comes_ends_in_an_error_or_the_end() {
    let _watchdog = watchdog(120);
    let runtime = current_thread();
    let byte = prop_oneof![3 => Just(0u8), 2 => Just(255), 1 => any::<u8>()];
    let pieces = proptest::collection::vec((proptest::collection::vec(byte, 1..20), 0usize..3), 0..6);
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(pieces in pieces)| {
        runtime.block_on(async {
            let (peer, mut connection) = unix();
            for (bytes, count) in &pieces {
                send_with(&peer, bytes, *count).unwrap();
            }
            drop(peer);
            let total: usize = pieces.iter().map(|(bytes, _)| bytes.len()).sum();
            let mut received = 0;
            let error = loop {
                match connection.recv_bytes().await {
                    Ok(_) => received += 1,
                    Err(error) => break error,
                }
            };
            assert!(received <= total / 4);
            let expected = matches!(error, Error::Eof | Error::Malformed(_) | Error::TooLong { .. }) || is_cut(&error);
            assert!(expected, "{error}");
        });
    });
}

#[test]
fn a_peer_that_resets_its_connection_is_no_clean_end() {
    let _guard = guard(60);
    current_thread().block_on(async {
        let (peer, mut connection) = tcp();
        connection.send_bytes(b"never read").await.unwrap();
        // Closed with unread bytes, a TCP socket resets the connection.
        while !nix::poll::poll(
            &mut [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&peer), nix::poll::PollFlags::POLLIN)],
            nix::poll::PollTimeout::NONE,
        )
        .is_ok_and(|ready| ready > 0)
        {}
        drop(peer);
        for _ in 0..2 {
            let error = connection.recv_bytes().await.unwrap_err();
            assert!(matches!(&error, Error::Io(e) if e.kind() == ErrorKind::ConnectionReset), "{error}");
        }
        // A Unix socket has lost nothing that its peer has sent.
        let (mut peer, mut connection) = unix();
        connection.send_bytes(b"never read").await.unwrap();
        peer.write_all(b"\0\0\0\x04last").unwrap();
        drop(peer);
        assert_eq!(connection.recv_bytes().await.unwrap(), "last");
        assert!(connection.recv_bytes().await.unwrap_err().is_eof());
    });
}

/// A half that receives, as it is written in a message.
#[derive(Serialize)]
struct Moved {
    link: Link,
    peer_is_family: bool,
    max_message: usize,
}

#[derive(Serialize)]
enum Link {
    Packets { arrived: Vec<()>, shared: bool, ended: bool },
    Stream { bytes: bytes::Bytes, beside: Vec<Part>, ended: bool },
}

#[derive(Serialize)]
struct Part {
    start: u64,
    end: u64,
    handles: Vec<mp::Handle<OwnedFd>>,
    lost: bool,
}

/// Where the descriptors are said to be that came beside the bytes.
fn moved(bytes: &'static [u8], parts: &[(u64, u64)]) -> Moved {
    let handle = || mp::Handle::new(OwnedFd::from(tempfile::tempfile().unwrap()));
    let part = |&(start, end)| Part { start, end, handles: vec![handle()], lost: false };
    let beside = parts.iter().map(part).collect();
    let link = Link::Stream { bytes: bytes.into(), beside, ended: false };
    Moved { link, peer_is_family: true, max_message: usize::MAX }
}

#[test]
fn what_a_stranger_says_of_an_end_that_it_sends_is_not_believed() {
    run(60, async {
        let (here, mut there) = unix();
        let mut here = Connection::from_fd(here.into()).unwrap();
        let message = b"\0\0\0\x02hi";
        // Parts that are empty, run backwards, overlap, or end behind the bytes.
        let wrong: [&[(u64, u64)]; 6] =
            [&[(0, 0)], &[(5, 3)], &[(0, 4), (3, 6)], &[(0, 7)], &[(u64::MAX, u64::MAX)], &[(0, u64::MAX)]];
        for parts in wrong {
            let (_kept, socket) = UnixStream::pair().unwrap();
            let socket = mp::Handle::new(OwnedFd::from(socket));
            here.send(&(socket, moved(message, parts))).await.unwrap();
            let error = there.recv::<RecvHalf>().await.unwrap_err();
            assert!(matches!(error, Error::Decode(_)), "{parts:?}: {error}");
        }
        // A descriptor of another kind.
        let packets = Link::Packets { arrived: vec![], shared: false, ended: false };
        let packets = Moved { link: packets, ..moved(b"", &[]) };
        let (_kept, socket) = UnixStream::pair().unwrap();
        here.send(&(mp::Handle::new(OwnedFd::from(socket)), packets)).await.unwrap();
        assert!(matches!(there.recv::<RecvHalf>().await, Err(Error::Decode(_))));
        let (socket, _kept) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        here.send(&(mp::Handle::new(socket), moved(b"", &[]))).await.unwrap();
        assert!(matches!(there.recv::<RecvHalf>().await, Err(Error::Decode(_))));
        // One that could block.
        let (pipe, _kept) = nix::unistd::pipe().unwrap();
        here.send(&(mp::Handle::new(pipe), moved(b"", &[]))).await.unwrap();
        assert!(matches!(there.recv::<RecvHalf>().await, Err(Error::Decode(_))));
        // What is right is taken; but no limit beyond the usual one.
        let (mut peer, socket) = UnixStream::pair().unwrap();
        here.send(&(mp::Handle::new(OwnedFd::from(socket)), moved(message, &[]))).await.unwrap();
        let mut half: RecvHalf = there.recv().await.unwrap();
        assert_eq!(half.recv_bytes().await.unwrap(), "hi");
        peer.write_all(&long(1 << 31)).unwrap();
        let error = half.recv_bytes().await.unwrap_err();
        assert!(matches!(error, Error::TooLong { max, .. } if max == 1 << 30), "{error}");
    });
}

#[test]
fn a_stream_of_messages_ends_with_the_first_error_that_is_for_good() {
    run(60, async {
        for (name, pair) in PAIRS {
            for bad in [&b"\xffGET / HTTP"[..], &b"\0\0\0\x05cut"[..]] {
                let (mut peer, connection) = pair();
                // The second is no number, and the third is there all the same.
                peer.write_all(b"\0\0\0\x01\x01\0\0\0\x01\xc0\0\0\0\x01\x02").unwrap();
                peer.write_all(bad).unwrap();
                drop(peer);
                let mut messages = connection.into_stream::<u8>();
                assert_eq!(messages.next().await.unwrap().unwrap(), 1, "{name}");
                assert!(matches!(messages.next().await, Some(Err(Error::Decode(_)))), "{name}");
                assert_eq!(messages.next().await.unwrap().unwrap(), 2, "{name}");
                let error = messages.next().await.unwrap().unwrap_err();
                assert!(matches!(error, Error::Malformed(_)) || is_cut(&error), "{name}: {error}");
                assert!(messages.is_terminated() && messages.next().await.is_none(), "{name}");
            }
        }
    });
}
