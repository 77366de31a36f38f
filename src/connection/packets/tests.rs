use std::pin::pin;
use std::task::Waker;

use super::*;
use crate::connection::Connection;
use crate::sys::{fd, memory};

/// A connection, and the bare socket at its other end.
fn connection() -> (Connection, Fd) {
    let (a, b) = socket::seqpacket_pair().unwrap();
    (crate::connection::pipe::end(a), b)
}

/// What a future gives at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it has to wait"),
    }
}

fn next(conn: &mut Connection) -> Result<Bytes> {
    now(conn.recv_bytes())
}

fn send(socket: &Fd, bytes: &[u8], fds: &[Fd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    socket::send(socket.as_fd(), &[IoSlice::new(bytes)], &fds, Mode::Try).unwrap();
}

#[test]
fn what_is_no_message_is_an_error_and_the_next_one_comes() {
    let bell = || fd::eventfd().unwrap();
    let (mut conn, peer) = connection();
    let unsealed = memory::memfd("test", 100_000).unwrap();
    let long = vec![0; 80 << 10];
    let cases: [(&[u8], Vec<Fd>); 11] = [
        // No head of ours.
        (&[16, 1, 2], vec![]),
        (&[255], vec![bell()]),
        // Batches whose lengths say too much, or too little, or nothing.
        (&[packet::BATCH], vec![]),
        (&[packet::BATCH, 0, 0, 0], vec![]),
        (&[packet::BATCH, 0, 0, 0, 2, 1], vec![]),
        (&[packet::BATCH, 0, 0, 0, 1, 1, 0], vec![]),
        (&[packet::BATCH, 255, 255, 255, 255, 1], vec![]),
        // Descriptors that are not there, or are not what they should be.
        (&[1], vec![]),
        (&[1], vec![unsealed]),
        (&[2], vec![bell()]),
        // Longer than any packet.
        (&long, vec![]),
    ];
    for (bytes, fds) in cases {
        send(&peer, bytes, &fds);
        send(&peer, &[0, b'x'], &[]);
        let error = next(&mut conn).unwrap_err();
        assert!(!error.is_eof() && !error.is_closed(), "{error}");
        assert_eq!(next(&mut conn).unwrap(), "x", "after {error}");
    }
    // A batch is all its messages, also empty ones.
    send(&peer, &[packet::BATCH, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2], &[]);
    assert_eq!(next(&mut conn).unwrap(), "");
    assert_eq!(next(&mut conn).unwrap(), &[1, 2][..]);
    drop(peer);
    assert!(next(&mut conn).unwrap_err().is_eof());
}

#[test]
fn what_was_read_ahead_is_looked_at_when_it_travels() {
    let read = |frames: &[u8]| {
        let mut bytes = Vec::new();
        crate::reduction::encode(&("Frames", frames), &mut bytes, crate::reduction::Peer::AnyBuild).unwrap();
        crate::reduction::decode::<(String, Checked)>(crate::reduction::Incoming::bytes(&bytes))
    };
    #[derive(Deserialize)]
    struct Checked(#[serde(deserialize_with = "frames")] Bytes);
    assert_eq!(read(&[0, 0, 0, 1, 7]).unwrap().1.0, &[0, 0, 0, 1, 7][..]);
    for malformed in [&[][..], &[0, 0, 0], &[0, 0, 0, 2, 7], &[0, 0, 0, 1, 7, 0]] {
        assert!(read(malformed).is_err(), "{malformed:?}");
    }
}

#[test]
fn several_waiting_messages_cost_one_call_and_a_shared_end_takes_one_at_a_time() {
    let left = |peer: &Fd, conn: &mut Connection| {
        for i in 0..20 {
            send(peer, &[0, i], &[]);
        }
        // The appetite grows with what was there before.
        for i in 0..10 {
            assert_eq!(next(conn).unwrap(), &[i][..]);
        }
        let socket = conn.inner.with(|inner| inner.fd().clone()).unwrap();
        (0..)
            .take_while(|_| socket::recv(socket.as_fd(), &mut [0; 8], &mut Vec::new(), Mode::Try).is_ok())
            .count()
    };
    let (mut conn, peer) = connection();
    assert!(left(&peer, &mut conn) < 10);
    let (mut conn, peer) = connection();
    let other = conn.share().unwrap();
    assert_eq!(left(&peer, &mut conn), 10);
    drop(other);
}

#[test]
fn what_has_descriptors_stays_in_the_socket_until_its_turn_comes() {
    let (socket, peer) = socket::seqpacket_pair().unwrap();
    let bell = [fd::eventfd().unwrap()];
    let descriptors: [usize; 7] = [0, 0, 0, 1, 0, 1, 1];
    for (ahead, turns) in [(None, &[3, 2, 1, 1][..]), (Some(false), &[1; 7])] {
        for (i, count) in descriptors.iter().enumerate() {
            send(&peer, &[0, i as u8], &bell[..*count]);
        }
        let mut reader = Reader { ahead, ..Reader::wary() };
        let mut taken = 0;
        for turn in turns {
            reader.appetite = BATCH;
            reader.fill(socket.as_fd()).unwrap();
            for _ in 0..*turn {
                let message = reader.take(usize::MAX).unwrap().unwrap().unwrap();
                assert_eq!(
                    (&message.body[..], message.handles.len()),
                    (&[taken as u8][..], descriptors[taken])
                );
                taken += 1;
            }
            assert!(!reader.holds_message(), "more than {turn} at a time, {ahead:?}");
        }
        assert_eq!(taken, descriptors.len());
        assert_eq!(reader.fill(socket.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        socket::look_at_next(socket.as_fd()).unwrap();
    }
}

#[test]
fn a_message_that_is_too_long_loses_itself_alone_when_it_is_read_ahead() {
    let (socket, peer) = socket::seqpacket_pair().unwrap();
    for bytes in [&[0, 1][..], &vec![0; 80 << 10], &[0, 2]] {
        send(&peer, bytes, &[]);
    }
    let mut reader = Reader { appetite: BATCH, ..Reader::wary() };
    let mut next = || {
        while !reader.holds_message() {
            reader.fill(socket.as_fd()).unwrap();
        }
        reader.take(usize::MAX).map(|message| message.unwrap().unwrap().body)
    };
    assert_eq!(next().unwrap(), &[1][..]);
    assert!(matches!(next(), Err(Error::Malformed(_))));
    assert_eq!(next().unwrap(), &[2][..]);
}

#[test]
fn what_has_descriptors_is_looked_at_however_many_are_taken_unseen() {
    for before in 0..2 * BATCH {
        let (mut here, there) = crate::pipe().unwrap();
        for _ in 0..before {
            now(here.send_bytes(b"x")).unwrap();
        }
        now(here.send(&crate::Handle::new(fd::eventfd().unwrap()))).unwrap();
        let mut reader = Reader::default();
        let socket = there.inner.with(|inner| inner.fd().clone()).unwrap();
        // As hungry as it can be: all that waits, as far as it may go.
        let mut taken = 0;
        while !reader.wary {
            reader.appetite = BATCH;
            reader.fill(socket.as_fd()).unwrap();
            while reader.holds_message() {
                assert!(reader.take(usize::MAX).unwrap().unwrap().unwrap().handles.is_empty());
                taken += 1;
            }
        }
        assert_eq!(taken, before);
    }
}

#[test]
fn an_end_that_is_shared_shows_its_next_message_to_all_who_look() {
    let (socket, peer) = socket::seqpacket_pair().unwrap();
    let mut reader = Reader::wary();
    assert_eq!(reader.fill(socket.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    reader.share(socket.as_fd()).unwrap();
    send(&peer, &[0, 1, 2], &[]);
    send(&peer, &[0, 1], &[]);
    for _ in 0..2 {
        let seen = socket::recv_duplicates(socket.as_fd(), &mut [0; 8], &mut Vec::new(), Mode::Try);
        assert_eq!(seen.unwrap().len, 3);
    }
}
