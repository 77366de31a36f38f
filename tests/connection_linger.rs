//! What a process has begun to send when it ends: it goes out if somebody takes it, and holds nobody up.

#![cfg(target_os = "linux")]

mod support;

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::pin::pin;

use support::run_each;
use tokio_multiprocess::util::Finalize;
use tokio_multiprocess::{Connection, Context, Handle, Process};

/// How long a message is of which the kernel holds a small part.
const LARGE: usize = 1 << 20;

/// Begins with a message, gives it up and ends. Tells when all that keeps the process is the rest of it.
async fn begin_and_end(mut conn: Connection, ending: Handle<PipeWriter>) {
    let mut ending = ending.into_inner().unwrap();
    Finalize::new(0, move || ending.write_all(b".").unwrap());
    let message = vec![7; LARGE];
    let mut send = pin!(conn.send_bytes(&message));
    assert!(futures::poll!(&mut send).is_pending());
}

/// A process that does so, where its message arrives, and where it tells of its end.
async fn process(context: Context) -> (Process, UnixStream, PipeReader) {
    let (sends, receives) = UnixStream::pair().unwrap();
    let conn = Connection::from_fd(sends.into()).unwrap();
    let (ends, ending) = io::pipe().unwrap();
    let process = context.process(begin_and_end, (conn, Handle::new(ending))).start().await.unwrap();
    (process, receives, ends)
}

/// All that comes, in small pieces: the frame of the message if it is whole.
fn read_slowly(mut from: UnixStream) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 1 << 10]);
    while let count @ 1.. = from.read(&mut piece).unwrap() {
        all.extend_from_slice(&piece[..count]);
        std::thread::yield_now();
    }
    all
}

#[test]
fn who_ends_waits_for_a_slow_reader() {
    run_each(120, |context| async {
        let (process, receives, mut ends) = process(context).await;
        let reader = std::thread::spawn(move || {
            ends.read_exact(&mut [0]).unwrap();
            read_slowly(receives)
        });
        assert!(process.join().await.unwrap().success());
        let frame = [&(LARGE as i32).to_be_bytes()[..], &[7; LARGE]].concat();
        assert!(reader.join().unwrap() == frame);
    });
}

#[test]
fn who_ends_does_not_wait_for_whoever_does_not_read() {
    run_each(120, |context| async {
        let (process, receives, _ends) = process(context).await;
        assert!(process.join().await.unwrap().success());
        let arrived = read_slowly(receives).len();
        assert!((1..LARGE).contains(&arrived), "{arrived} bytes");
    });
}
