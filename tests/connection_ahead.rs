//! What a connection takes out of its socket before it is asked for, and what it leaves there.

#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;

use futures::SinkExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{Random, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Connection, Error, Handle, SendHalf};

const SMALL: u32 = 128;
const MESSAGES: usize = 20;
const HANDLES: usize = 40;

/// Has room for the handles of one message and a few more.
fn receive_with_little_room(mut conn: Connection) {
    mp::block_on(async {
        for i in 0..SMALL {
            assert_eq!(conn.recv::<u32>().await.unwrap(), i);
            if i == 0 {
                let room: Vec<_> = (0..HANDLES + 8).map(|_| File::open("/dev/null").unwrap()).collect();
                let highest = room.iter().map(|file| file.as_raw_fd()).max().unwrap();
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
                setrlimit(Resource::RLIMIT_NOFILE, highest as u64 + 1, hard).unwrap();
            }
        }
        let mut held = Vec::new();
        for i in 0..MESSAGES {
            if i == MESSAGES / 2 {
                for _ in 0..3 {
                    let error = conn.recv::<Vec<Handle<File>>>().await.unwrap_err();
                    let exhausted = Some(nix::errno::Errno::EMFILE as i32);
                    assert!(matches!(&error, Error::Io(e) if e.raw_os_error() == exhausted), "{error}");
                }
            }
            held.clear();
            let handles: Vec<Handle<File>> = conn.recv().await.unwrap();
            assert_eq!(handles.len(), HANDLES, "message {i}");
            if i == MESSAGES / 2 - 1 {
                held = handles;
            }
        }
        assert_eq!(conn.recv::<String>().await.unwrap(), "after");
    })
    .unwrap();
}

#[test]
fn handles_are_taken_only_where_there_is_room_for_them() {
    run_each(60, async |context| {
        let (mut here, there) = mp::pipe().unwrap();
        // All of it waits before any is received.
        for i in 0..SMALL {
            here.send(&i).await.unwrap();
        }
        let null = Handle::new(File::open("/dev/null").unwrap());
        for _ in 0..MESSAGES {
            here.send(&[&null; HANDLES].as_slice()).await.unwrap();
        }
        here.send("after").await.unwrap();
        let child = context.process(receive_with_little_room, (there,)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
    });
}

/// A number, and what it says how many of there are.
type Message = (usize, Vec<u8>, Vec<mp::Blob>);

/// How many bytes and blobs the messages have that are sent one after another; several in one group are
/// fed together.
fn traffic(seed: u64, groups: usize) -> Vec<Vec<(usize, usize)>> {
    let mut random = Random::from_seed(seed);
    let mut below = |n: u64| random.below(n) as usize;
    (0..groups)
        .map(|_| match below(32) {
            0..4 => vec![(below(100), 1 + below(20))],
            4 => vec![(below(200_000), 260)],
            5 => vec![((64 << 10) - 300 + below(400), 0)],
            6 => vec![(below(300_000), below(3))],
            7..12 => (0..1 + below(40)).map(|_| (below(300), 0)).collect(),
            _ => vec![(below(1500), 0)],
        })
        .collect()
}

async fn send(mut conn: SendHalf, groups: Vec<Vec<(usize, usize)>>) {
    let mut number = 0;
    let mut message = |(bytes, blobs): (usize, usize)| -> Message {
        number += 1;
        let blob = || mp::Blob::new(number.to_string().as_bytes()).unwrap();
        (number - 1, vec![number as u8; bytes], (0..blobs).map(|_| blob()).collect())
    };
    for group in groups {
        if let [alone] = group[..] {
            conn.send(&message(alone)).await.unwrap();
        } else {
            let mut sink = conn.sink::<Message>();
            for one in group {
                sink.feed(message(one)).await.unwrap();
            }
            sink.flush().await.unwrap();
        }
    }
}

/// The number of a message that is as it was sent.
fn whole((number, bytes, blobs): Message, sent: &[(usize, usize)]) -> usize {
    assert_eq!((bytes.len(), blobs.len()), sent[number], "message {number}");
    assert!(bytes.iter().all(|byte| *byte == (number + 1) as u8), "message {number}");
    assert!(blobs.iter().all(|blob| blob[..] == *(number + 1).to_string().as_bytes()), "message {number}");
    number
}

#[test]
fn messages_of_all_kinds_arrive_in_their_order() {
    run(120, async {
        let mut random = Random::new();
        for _ in 0..8 {
            let groups = traffic(random.next(), 200);
            let sent = groups.concat();
            let (mut recv, half) = mp::simplex_pipe().unwrap();
            let sender = tokio::spawn(send(half, groups));
            for number in 0..sent.len() {
                // Sometimes much waits, and sometimes little.
                for _ in 0..random.below(3) {
                    tokio::task::yield_now().await;
                }
                assert_eq!(whole(recv.recv().await.unwrap(), &sent), number);
            }
            assert!(recv.recv::<Message>().await.unwrap_err().is_eof());
            sender.await.unwrap();
        }
    });
}

/// Receives what is left, and tells what that was.
fn receive_the_rest(mut one: Connection, mut other: Connection, seed: u64, groups: usize) {
    let sent = traffic(seed, groups).concat();
    mp::block_on(async {
        let mut numbers = Vec::new();
        for conn in [&mut one, &mut other] {
            loop {
                match conn.recv::<Message>().await {
                    Ok(message) => numbers.push(whole(message, &sent)),
                    Err(end) if end.is_eof() => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        one.send(&numbers).await.unwrap();
    })
    .unwrap();
}

#[test]
fn an_end_is_used_alone_then_shared_and_then_moved() {
    const GROUPS: usize = 300;
    run_each(120, async |context| {
        let seed = Random::new().next();
        let groups = traffic(seed, GROUPS);
        let sent = groups.concat();
        let (here, mut one) = mp::pipe().unwrap();
        let (mut answers, half) = here.split();
        let sender = tokio::spawn(send(half, groups));
        let mut numbers = Vec::new();
        for _ in 0..sent.len() / 3 {
            numbers.push(whole(one.recv().await.unwrap(), &sent));
        }
        assert!(numbers.iter().copied().eq(0..numbers.len()));
        let mut other = one.share().unwrap();
        for _ in 0..sent.len() / 6 {
            numbers.push(whole(one.recv().await.unwrap(), &sent));
            numbers.push(whole(other.recv().await.unwrap(), &sent));
        }
        let args = (one, other, seed, GROUPS);
        let child = context.process(receive_the_rest, args).start().await.unwrap();
        numbers.extend(answers.recv::<Vec<usize>>().await.unwrap());
        assert_eq!(numbers.len(), sent.len());
        assert_eq!(numbers.into_iter().collect::<BTreeSet<_>>().len(), sent.len());
        assert!(child.join().await.unwrap().success());
        sender.await.unwrap();
    });
}
