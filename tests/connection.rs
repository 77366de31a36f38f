//! Connections made by `pipe`: what they carry, what they promise, and to whom.

#![cfg(target_os = "linux")]

mod support;

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use support::{current_thread, guard, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Connection, Error, RecvHalf, SendHalf};

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

/// Sends back what it gets, until it gets nothing.
fn echo(mut conn: Connection) {
    mp::block_on(async {
        loop {
            let message = conn.recv_bytes().await.unwrap();
            if message.is_empty() {
                return;
            }
            conn.send_bytes(&message).await.unwrap();
        }
    })
    .unwrap();
}

// conformance: _TestConnection.test_spawn_close
#[test]
fn an_end_given_to_a_child_is_closed_here_at_once() {
    run_each(60, async |context| {
        let (mut here, there) = mp::pipe().unwrap();
        let child = context.process(echo, (there,)).start().await.unwrap();
        here.send_bytes(b"hello").await.unwrap();
        assert_eq!(here.recv_bytes().await.unwrap(), "hello");
        here.send_bytes(b"").await.unwrap();
        assert!(child.join().await.unwrap().success());
        // Nobody else has held the other end.
        assert!(here.recv_bytes().await.unwrap_err().is_eof());
    });
}

// conformance: _TestConnection.test_sendbytes
#[test]
fn parts_of_bytes_are_slices() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let letters: Vec<u8> = (b'a'..=b'z').collect();
        for part in [5..26, 7..15, 26..26, 26..26, 0..26] {
            here.send_bytes(&letters[part.clone()]).await.unwrap();
            assert_eq!(there.recv_bytes().await.unwrap(), letters[part]);
        }
    });
}

// conformance: _TestConnection.test_context
#[test]
fn a_closed_end_says_so() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        here.send(&1729).await.unwrap();
        assert_eq!(there.recv::<i32>().await.unwrap(), 1729);
        for conn in [&mut here, &mut there] {
            assert!(!conn.is_closed());
            conn.close();
            conn.close();
            assert!(conn.is_closed());
            assert!(conn.recv::<i32>().await.unwrap_err().is_closed());
            assert!(conn.recv_bytes().await.unwrap_err().is_closed());
            assert!(conn.send(&1).await.unwrap_err().is_closed());
            assert!(conn.send_bytes(b"1").await.unwrap_err().is_closed());
            assert!(conn.poll().unwrap_err().is_closed());
            assert!(conn.poll_timeout(Duration::ZERO).await.unwrap_err().is_closed());
            assert!(conn.readable().await.unwrap_err().is_closed());
            assert!(conn.flush().await.unwrap_err().is_closed());
            assert!(conn.share().unwrap_err().is_closed());
            assert!(matches!(conn.stream::<u8>().next().await, Some(Err(error)) if error.is_closed()));
            assert!(conn.sink::<u8>().send(1).await.unwrap_err().is_closed());
        }
        let (mut recv, mut send) = here.split();
        assert!(recv.is_closed() && send.is_closed());
        assert!(recv.recv::<u8>().await.unwrap_err().is_closed());
        assert!(send.send(&1).await.unwrap_err().is_closed());
        assert!(recv.reunite(send).is_err());
    });
}

// conformance: _TestConnection.test_missing_fd_transfer
#[test]
fn a_handle_that_did_not_come_is_an_error_of_that_message() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        // What a blob's message says, without what goes beside it.
        here.send(&0u32).await.unwrap();
        here.send(&mp::Blob::new(b"whole").unwrap()).await.unwrap();
        let error = there.recv::<mp::Blob>().await.unwrap_err();
        assert!(matches!(&error, Error::Decode(why) if why.to_string().contains("no handle 0")), "{error}");
        assert_eq!(&there.recv::<mp::Blob>().await.unwrap()[..], b"whole");
    });
}

// conformance: _TestPoll.test_empty_string
#[test]
fn an_empty_message_can_be_seen_and_stays() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        assert!(!there.poll().unwrap());
        assert!(!there.poll_timeout(Duration::from_millis(1)).await.unwrap());
        here.send_bytes(b"").await.unwrap();
        for _ in 0..2 {
            assert!(there.poll().unwrap());
            assert!(there.poll_timeout(Duration::ZERO).await.unwrap());
            there.readable().await.unwrap();
        }
        assert_eq!(there.recv_bytes().await.unwrap(), "");
        assert!(!there.poll().unwrap());
        drop(here);
        assert!(there.poll().unwrap());
    });
}

const WORDS: [&str; 8] = ["hello", "", "a", "b", "", "bye", "", "lop"];

// conformance: _TestPoll.test_strings
#[test]
fn messages_that_come_by_and_by_are_seen_by_polling() {
    fn say(mut conn: SendHalf) {
        for word in WORDS {
            mp::block_on(async { conn.send(word).await.unwrap() }).unwrap();
        }
    }
    run_each(60, async |context| {
        let (mut recv, send) = mp::simplex_pipe().unwrap();
        let child = context.process(say, (send,)).start().await.unwrap();
        for word in WORDS {
            while !recv.poll_timeout(Duration::from_millis(10)).await.unwrap() {}
            assert_eq!(recv.recv::<String>().await.unwrap(), word);
        }
        assert!(child.join().await.unwrap().success());
    });
}

// conformance: _TestPoll.test_boundaries
#[test]
fn who_only_polls_takes_nothing() {
    fn look(mut conn: RecvHalf, mut done: Connection) {
        mp::block_on(async {
            assert!(conn.poll_timeout(Duration::from_secs(60)).await.unwrap());
            conn.readable().await.unwrap();
            done.send(&conn.share().unwrap().poll().unwrap()).await.unwrap();
        })
        .unwrap();
    }
    run_each(60, async |context| {
        let (mut recv, mut send) = mp::simplex_pipe().unwrap();
        let (mut done, theirs) = mp::pipe().unwrap();
        let child = context.process(look, (recv.share().unwrap(), theirs)).start().await.unwrap();
        send.send_bytes(b"first").await.unwrap();
        send.send_bytes(b"second").await.unwrap();
        assert!(done.recv::<bool>().await.unwrap());
        assert!(child.join().await.unwrap().success());
        assert_eq!(recv.recv_bytes().await.unwrap(), "first");
        assert_eq!(recv.recv_bytes().await.unwrap(), "second");
    });
}

#[test]
fn what_was_read_ahead_is_polled_and_travels() {
    fn sum(mut conn: Connection, mut answer: Connection) {
        mp::block_on(async {
            assert!(conn.poll_timeout(Duration::ZERO).await.unwrap());
            assert_eq!(conn.recv::<i32>().await.unwrap(), 8);
            let mut values = Vec::new();
            for _ in 0..3 {
                assert!(conn.poll().unwrap());
                conn.readable().await.unwrap();
                values.push(conn.recv::<(String, mp::Blob)>().await.unwrap());
            }
            assert!(!conn.poll().unwrap());
            let text: Vec<_> = values.iter().map(|(text, blob)| format!("{text}{}", blob.len())).collect();
            answer.send(&text).await.unwrap();
            assert!(conn.recv::<u8>().await.unwrap_err().is_eof());
        })
        .unwrap();
    }
    run_each(60, async |context| {
        let (mut here, mut there) = mp::pipe().unwrap();
        // The appetite grows with what was there: 1, 2, 4, and then all the rest.
        for value in 0..9 {
            here.send(&value).await.unwrap();
        }
        for blob in 1..4 {
            let blob = mp::Blob::new(vec![b'x'; blob]).unwrap();
            here.send(&("text", blob)).await.unwrap();
        }
        for value in 0..8 {
            assert_eq!(there.recv::<i32>().await.unwrap(), value);
        }
        assert!(there.poll().unwrap());
        let (mut answer, theirs) = mp::pipe().unwrap();
        let child = context.process(sum, (there, theirs)).start().await.unwrap();
        assert_eq!(answer.recv::<Vec<String>>().await.unwrap(), ["text1", "text2", "text3"]);
        drop(here);
        assert!(child.join().await.unwrap().success());
    });
}

#[test]
fn a_connection_moves_when_its_message_is_sent_and_only_then() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let (mut inner, mut other) = mp::pipe().unwrap();
        // It fails to encode: here still.
        struct Fails<'a>(&'a Connection);
        impl serde::Serialize for Fails<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)?;
                Err(serde::ser::Error::custom("on purpose"))
            }
        }
        assert!(matches!(here.send(&Fails(&inner)).await, Err(Error::Encode(_))));
        inner.send(&1).await.unwrap();
        // It is dropped before there is room: here still.
        let filling = async {
            while futures::poll!(std::pin::pin!(here.send_bytes(&[0; 1000]))).is_ready() {}
            assert!(futures::poll!(std::pin::pin!(here.send(&inner))).is_pending());
        };
        tokio::task::coop::unconstrained(filling).await;
        inner.send(&2).await.unwrap();
        while there.poll().unwrap() {
            assert_eq!(there.recv_bytes().await.unwrap().len(), 1000);
        }
        // Nobody is there: here still.
        let (mut lonely, gone) = mp::pipe().unwrap();
        drop(gone);
        assert!(lonely.send(&inner).await.unwrap_err().is_eof());
        inner.send(&3).await.unwrap();
        here.send(&inner).await.unwrap();
        assert!(inner.is_closed() && inner.send(&4).await.unwrap_err().is_closed());
        let mut moved: Connection = there.recv().await.unwrap();
        moved.send(&4).await.unwrap();
        for expected in 1..5 {
            assert_eq!(other.recv::<i32>().await.unwrap(), expected);
        }
        drop(moved);
        assert!(other.recv::<i32>().await.unwrap_err().is_eof());
    });
}

#[test]
fn halves_end_and_reunite() {
    run(60, async {
        let (here, mut there) = mp::pipe().unwrap();
        let (mut recv, send) = here.split();
        // Those of another do not belong here.
        let (_, stranger) = mp::pipe().unwrap().0.split();
        let error = recv.reunite(stranger).unwrap_err();
        assert!(error.to_string().contains("halves"));
        recv = error.0;
        let mut here = recv.reunite(send).unwrap();
        here.send(&1).await.unwrap();
        let (mut recv, mut send) = here.split();
        // Both wait at a time, on one runtime.
        let writing = tokio::spawn(async move {
            for i in 0..20_000u64 {
                send.send(&(i, "some text to fill the socket")).await.unwrap();
            }
        });
        let reading = tokio::spawn(async move {
            for i in 0..20_000u64 {
                assert_eq!(recv.recv::<(u64, String)>().await.unwrap().0, i);
            }
            recv
        });
        assert_eq!(there.recv::<u8>().await.unwrap(), 1);
        for i in 0..20_000u64 {
            assert_eq!(there.recv::<(u64, String)>().await.unwrap().0, i);
            there.send(&(i, "back")).await.unwrap();
        }
        writing.await.unwrap();
        // The half that sends is gone, and that is the end, though the other goes on.
        assert!(there.recv::<u8>().await.unwrap_err().is_eof());
        let mut recv = reading.await.unwrap();
        there.send(&"more").await.unwrap();
        assert_eq!(recv.recv::<String>().await.unwrap(), "more");
    });
}

#[test]
fn fed_messages_go_together_and_in_order() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let sizes = || (0..3000usize).map(|i| if i % 500 == 499 { 100_000 } else { i % 70 });
        let writing = tokio::spawn(async move {
            let mut sink = here.sink::<Vec<u8>>();
            for size in sizes() {
                sink.feed(vec![size as u8; size]).await.unwrap();
            }
            // A send after it is behind it.
            here.send("then").await.unwrap();
            let mut sink = here.into_sink::<mp::Blob>();
            sink.feed(mp::Blob::new(b"blob").unwrap()).await.unwrap();
            sink.close().await.unwrap();
            sink.into_inner()
        });
        let mut stream = there.stream::<Vec<u8>>();
        for size in sizes() {
            assert!(stream.next().await.unwrap().unwrap() == vec![size as u8; size]);
        }
        assert_eq!(there.recv::<String>().await.unwrap(), "then");
        assert_eq!(&there.recv::<mp::Blob>().await.unwrap()[..], b"blob");
        let mut here = writing.await.unwrap();
        // What is not flushed is not sent, and what is too long is not fed.
        here.set_max_message(10);
        let mut sink = here.sink::<&str>();
        sink.feed("waits").await.unwrap();
        assert!(matches!(sink.feed("is much too long").await, Err(Error::TooLong { .. })));
        assert!(!there.poll().unwrap());
        here.flush().await.unwrap();
        drop(here);
        let mut stream = there.into_stream::<String>();
        assert_eq!(stream.next().await.unwrap().unwrap(), "waits");
        assert!(stream.next().await.is_none() && stream.next().await.is_none());
    });
}

#[test]
fn limits_are_told_and_only_the_message_is_lost() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        there.set_max_message(100);
        for len in [101, 5000, 1 << 20] {
            here.send_bytes(&vec![1; len]).await.unwrap();
            here.send_bytes(&[2; 100]).await.unwrap();
            let error = there.recv_bytes().await.map(|got| got.len()).unwrap_err();
            assert!(matches!(error, Error::TooLong { len: told, max: 100 } if told == len as u64), "{error}");
            assert_eq!(there.recv_bytes().await.unwrap().len(), 100);
        }
        let error = there.send_bytes(&[0; 101]).await.unwrap_err();
        assert!(matches!(error, Error::TooLong { len: 101, max: 100 }));
        assert!(!here.poll().unwrap());
        // A buffer that is too short loses nothing.
        here.send_bytes(b"four").await.unwrap();
        let Err(Error::BufferTooShort(message)) = there.recv_bytes_into(&mut [0; 3]).await else { panic!() };
        assert_eq!(message, "four");
        here.send_bytes(b"four").await.unwrap();
        let mut buffer = [0; 5];
        assert_eq!(there.recv_bytes_into(&mut buffer).await.unwrap(), 4);
        assert_eq!(&buffer, b"four\0");
        // What is no `u8` is lost, and nothing else.
        here.send("text").await.unwrap();
        here.send(&5).await.unwrap();
        assert!(matches!(there.recv::<u8>().await, Err(Error::Decode(_))));
        assert_eq!(there.recv::<u8>().await.unwrap(), 5);
    });
}

#[test]
fn without_a_runtime_what_is_there_can_be_received() {
    let _guard = guard(60);
    let (mut here, mut there) = mp::pipe().unwrap();
    let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
    assert!(!there.poll().unwrap());
    for i in 0..3 {
        assert!(std::pin::pin!(here.send(&i)).poll(cx).is_ready());
    }
    assert!(there.poll().unwrap());
    for i in 0..3 {
        let std::task::Poll::Ready(Ok(got)) = std::pin::pin!(there.recv::<i32>()).poll(cx) else { panic!() };
        assert_eq!(got, i);
    }
    current_thread().block_on(async { here.send(&1).await.unwrap() });
    assert!(there.poll().unwrap());
}

/// A context of a start method, for a child that has been told which.
#[allow(unsafe_code, reason = "to fork among threads has to be vouched for")]
fn context_of(method: mp::StartMethod) -> mp::Context {
    match method {
        // SAFETY: what runs in the copy takes no lock that another thread may hold.
        mp::StartMethod::Fork => unsafe { mp::Context::fork_with_threads() },
        method => mp::Context::new(method),
    }
}

/// Says its level, and has the next one say its own over the same end.
async fn descend(level: u32, method: mp::StartMethod, mut shared: SendHalf) {
    let below = if level < 3 {
        let args = (level + 1, method, shared.share().unwrap());
        Some(context_of(method).process(descend, args).start().await.unwrap())
    } else {
        None
    };
    for i in 0..100u32 {
        shared.send(&(level, i)).await.unwrap();
    }
    if let Some(below) = below {
        assert!(below.join().await.unwrap().success());
    }
}

#[test]
fn three_levels_of_processes_write_to_one_end() {
    run_each(60, async |context| {
        let (mut recv, send) = mp::simplex_pipe().unwrap();
        let top = context.process(descend, (1, context.start_method(), send)).start().await.unwrap();
        let mut next = [0; 4];
        while let Ok((level, i)) = recv.recv::<(usize, u32)>().await {
            assert_eq!(i, next[level], "of level {level}");
            next[level] += 1;
        }
        // The end came once the last of them was gone.
        assert_eq!(next, [0, 100, 100, 100]);
        assert!(top.join().await.unwrap().success());
    });
}

#[test]
fn what_was_fed_and_not_sent_does_not_travel() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let (mut inner, mut other) = mp::pipe().unwrap();
        inner.sink::<u8>().feed(7).await.unwrap();
        let error = here.send(&inner).await.unwrap_err();
        assert!(error.to_string().contains("flush"), "{error}");
        inner.flush().await.unwrap();
        here.send(&inner).await.unwrap();
        assert_eq!(other.recv::<u8>().await.unwrap(), 7);
        drop(there.recv::<Connection>().await.unwrap());
    });
}

#[test]
fn handles_that_find_no_room_wait_for_some() {
    fn receive(mut conn: Connection) {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let limit = |soft| setrlimit(Resource::RLIMIT_NOFILE, soft, soft.max(1000)).unwrap();
        mp::block_on(async {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            conn.send(&"next").await.unwrap();
            conn.readable().await.unwrap();
            limit(5);
            for _ in 0..3 {
                let error = conn.recv::<Vec<mp::Blob>>().await.unwrap_err();
                let Error::Io(error) = error else { panic!("{error}") };
                assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EMFILE as i32), "{error}");
            }
            limit(hard.min(1000));
            let blobs: Vec<mp::Blob> = conn.recv().await.unwrap();
            assert_eq!(blobs.len(), 30);
        })
        .unwrap();
    }
    run_each(60, async |context| {
        let (mut here, there) = mp::pipe().unwrap();
        let child = context.process(receive, (there,)).start().await.unwrap();
        assert_eq!(here.recv::<String>().await.unwrap(), "next");
        let blobs: Vec<_> = (0..30).map(|_| mp::Blob::new(b"1").unwrap()).collect();
        here.send(&blobs).await.unwrap();
        assert!(child.join().await.unwrap().success());
    });
}
