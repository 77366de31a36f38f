//! Connections inside of messages: they move, whole and with all that they hold, or they stay.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "to fork among libtest's threads has to be vouched for")]

mod support;

use std::fs::File;
use std::future::Future;
use std::io::{self, PipeWriter, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, TryFutureExt, join_all};
use futures::{SinkExt, poll};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize, Serializer};
use support::{current_thread, eventually, guard, multi_thread, run, run_each};
use tokio::task::JoinHandle;
use tokio_multiprocess as mp;
use tokio_multiprocess::{Client, Connection, Handle, Listener, Process, RecvHalf, SendHalf, Waitable};

/// Says whether a connection works in both directions, whoever has its other end.
async fn assert_connected(a: &mut Connection, b: &mut Connection) {
    a.send("there").await.unwrap();
    b.send("and back").await.unwrap();
    assert_eq!(b.recv::<String>().await.unwrap(), "there");
    assert_eq!(a.recv::<String>().await.unwrap(), "and back");
}

/// A value that cannot be written.
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not today"))
    }
}

fn content(mut file: File) -> String {
    file.rewind().unwrap();
    io::read_to_string(file).unwrap()
}

// conformance: _TestConnection.test_fd_transfer
#[test]
fn a_file_goes_to_a_child_over_a_connection() {
    run_each(120, |context| async move {
        let (mut here, there) = mp::pipe().unwrap();
        let child = context.process(write_bar, (there,)).start().await.unwrap();
        let file = tempfile::tempfile().unwrap();
        here.send(&Handle::new(file.try_clone().unwrap())).await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!(content(file), "bar");
    });
}

async fn write_bar(mut conn: Connection) {
    let file: Handle<File> = conn.recv().await.unwrap();
    file.into_inner().unwrap().write_all(b"bar").unwrap();
}

// conformance: _TestConnection.test_large_fd_transfer
#[test]
fn numbers_of_descriptors_may_be_large_on_both_sides() {
    run_each(120, |context| async move {
        let (mut here, there) = mp::pipe().unwrap();
        let target = async |conn: Connection| {
            let null = || OwnedFd::from(File::open("/dev/null").unwrap());
            let taken: Vec<_> = std::iter::repeat_with(null).take_while(|fd| fd.as_raw_fd() < 256).collect();
            assert!(taken.len() > 200);
            write_bar(conn).await;
        };
        let child = context.process(target, (there,)).start().await.unwrap();
        let file = tempfile::tempfile().unwrap();
        let number = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(300)).unwrap();
        assert!(number >= 300);
        let path = format!("/proc/self/fd/{number}");
        let large = Handle::new(File::options().read(true).append(true).open(path).unwrap());
        nix::unistd::close(number).unwrap();
        here.send(&large).await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!(content(file), "bar");
    });
}

// conformance: _TestPicklingConnections.test_access
#[test]
fn each_half_works_in_a_child_and_is_gone_from_here() {
    run_each(120, |context| async move {
        let (mut recv, send) = mp::simplex_pipe().unwrap();
        let target = async |mut send: SendHalf| send.send("hallo").await.unwrap();
        let child = context.process(target, (send,)).start().await.unwrap();
        assert_eq!(recv.recv::<String>().await.unwrap(), "hallo");
        // No copy of the end is left here.
        assert!(recv.recv::<String>().await.unwrap_err().is_eof());
        assert!(child.join().await.unwrap().success());

        let (recv, mut send) = mp::simplex_pipe().unwrap();
        let target = async |mut recv: RecvHalf| recv.recv::<u64>().await.unwrap() * 2;
        let child = context.spawn(target, (recv,)).await.unwrap();
        send.send(&333u64).await.unwrap();
        assert_eq!(child.await.unwrap(), 666);
        assert!(send.send(&0).await.unwrap_err().is_eof());
    });
}

#[test]
fn a_connection_moves_on_and_on_with_what_it_holds() {
    async fn child(mut conn: Connection) {
        assert_eq!(conn.recv::<u32>().await.unwrap(), 1);
        let context = mp::Context::new(mp::StartMethod::Spawn);
        let grandchild = context.process(grandchild, (conn,)).start().await.unwrap();
        assert!(grandchild.join().await.unwrap().success());
    }
    async fn grandchild(mut conn: Connection) {
        assert_eq!(conn.recv::<u32>().await.unwrap(), 2);
        let (large, file): (Vec<u8>, Handle<File>) = conn.recv().await.unwrap();
        assert_eq!(large.len(), 1 << 20);
        file.into_inner().unwrap().write_all(b"grandchild").unwrap();
        assert_eq!(conn.recv::<u32>().await.unwrap(), 4);
        assert_eq!(conn.recv::<u32>().await.unwrap(), 5);
        conn.send("all").await.unwrap();
        assert!(conn.recv::<u32>().await.unwrap_err().is_eof());
    }
    run_each(120, |context| async move {
        let (mut here, mut there) = mp::pipe().unwrap();
        let file = tempfile::tempfile().unwrap();
        here.send(&0).await.unwrap();
        // So that it reads ahead with the next.
        assert_eq!(there.recv::<u32>().await.unwrap(), 0);
        for n in 0..=2 {
            here.send(&n).await.unwrap();
        }
        here.send(&(vec![1u8; 1 << 20], Handle::new(file.try_clone().unwrap()))).await.unwrap();
        here.send(&4).await.unwrap();
        assert_eq!(there.recv::<u32>().await.unwrap(), 0);
        let child = context.process(child, (there,)).start().await.unwrap();
        here.send(&5).await.unwrap();
        assert_eq!(here.recv::<String>().await.unwrap(), "all");
        drop(here);
        assert!(child.join().await.unwrap().success());
        assert_eq!(content(file), "grandchild");
    });
}

#[test]
fn what_was_sent_is_closed_here() {
    run(60, async {
        let (mut here, there) = mp::pipe().unwrap();
        let (mut moved, mut peer) = mp::pipe().unwrap();
        here.send(&moved).await.unwrap();
        assert!(moved.is_closed() && moved.send(&1).await.unwrap_err().is_closed());
        assert!(moved.recv::<u8>().await.unwrap_err().is_closed() && moved.poll().unwrap_err().is_closed());
        let error = here.send(&moved).await.unwrap_err();
        assert!(matches!(error, mp::Error::Encode(_)), "{error}");
        // The last one who had it is gone, though `moved` is still a variable here.
        drop(there);
        assert!(peer.recv::<u8>().await.unwrap_err().is_eof());
    });
}

/// What can be waited for, and moves.
#[derive(Serialize, Deserialize)]
enum Waited {
    Connection(Connection),
    Half(RecvHalf),
    Listener(Listener),
}

impl Waited {
    /// Waits for it by each of the calls that there are, and tells what they say.
    async fn wait(&self) -> Vec<mp::Result<()>> {
        const LONG: Duration = Duration::from_secs(3_000);
        let object: &dyn Waitable = match self {
            Self::Connection(conn) => conn,
            Self::Half(half) => half,
            Self::Listener(listener) => listener,
        };
        let mut waits: Vec<BoxFuture<'_, mp::Result<()>>> = vec![
            Box::pin(async move { mp::wait(&[object]).await.map(drop) }),
            Box::pin(async move { mp::wait_timeout(&[object], LONG).await.map(drop) }),
        ];
        match self {
            Self::Connection(conn) => {
                waits.extend([conn.readable().boxed(), conn.poll_timeout(LONG).map_ok(drop).boxed()])
            }
            Self::Half(half) => {
                waits.extend([half.readable().boxed(), half.poll_timeout(LONG).map_ok(drop).boxed()])
            }
            Self::Listener(_) => {}
        }
        for wait in &mut waits {
            assert!(poll!(wait).is_pending());
        }
        join_all(waits).await
    }
}

/// Whether each of several waits was told that what it waited for is gone.
fn are_closed(waits: &[Vec<mp::Result<()>>]) -> bool {
    waits.iter().flatten().all(|wait| wait.as_ref().is_err_and(mp::Error::is_closed))
}

/// Waits for each object in a task, which is waiting when this is ready.
async fn wait_in_tasks(objects: &Arc<Vec<Waited>>) -> JoinHandle<Vec<Vec<mp::Result<()>>>> {
    let (say, waiting) = tokio::sync::oneshot::channel();
    let objects = objects.clone();
    let waits = tokio::spawn(async move {
        let mut waits = join_all(objects.iter().map(Waited::wait));
        assert!(poll!(&mut waits).is_pending());
        say.send(()).unwrap();
        waits.await
    });
    waiting.await.unwrap();
    waits
}

async fn hold(mut conn: Connection) {
    let _objects: Vec<Waited> = conn.recv().await.unwrap();
    conn.send("here").await.unwrap();
    std::future::pending::<()>().await;
}

/// Who waits for something keeps it neither from moving nor from ending: it ends with its new owner.
#[test]
fn who_waits_is_told_that_it_has_moved_and_keeps_nothing_open() {
    let _guard = guard(120);
    // Its tasks do not even hear of it.
    let idle = current_thread();
    let mut peers = None;
    let (objects, unheard) = idle.block_on(async {
        let (packets, packets_peer) = mp::pipe().unwrap();
        let (bytes, bytes_peer) = UnixStream::pair().unwrap();
        let [bytes, bytes_peer] = [bytes, bytes_peer].map(|end| Connection::from_fd(end.into()).unwrap());
        let (half, half_peer) = mp::simplex_pipe().unwrap();
        let listener = Listener::bind(("127.0.0.1", 0)).await.unwrap();
        peers = Some((packets_peer, bytes_peer, half_peer, listener.address().clone()));
        let objects = Arc::new(vec![
            Waited::Connection(packets),
            Waited::Connection(bytes),
            Waited::Half(half),
            Waited::Listener(listener),
        ]);
        let unheard = wait_in_tasks(&objects).await;
        (objects, unheard)
    });
    multi_thread().block_on(async {
        let (mut packets, mut bytes, mut half, address) = peers.unwrap();
        let heard = wait_in_tasks(&objects).await;
        let (mut here, there) = mp::pipe().unwrap();
        let child = Process::builder(hold, (there,)).start().await.unwrap();
        here.send(&*objects).await.unwrap();
        assert_eq!(here.recv::<String>().await.unwrap(), "here");
        assert!(are_closed(&heard.await.unwrap()));
        assert!(!unheard.is_finished());

        child.kill().unwrap();
        assert!(packets.recv::<u8>().await.unwrap_err().is_eof());
        assert!(bytes.recv::<u8>().await.unwrap_err().is_eof());
        child.join().await.unwrap();
        assert!(half.send(&0).await.unwrap_err().is_eof());
        let refused = Client::connect(address).await.unwrap_err();
        assert!(
            matches!(&refused, mp::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused),
            "{refused}"
        );
    });
    assert!(are_closed(&idle.block_on(unheard).unwrap()));
}

/// A half is gone by itself, though its descriptor stays with the other.
#[test]
fn who_waits_for_a_half_is_told_that_it_has_moved() {
    run(60, async {
        let (mut here, _there) = mp::pipe().unwrap();
        let (conn, _peer) = mp::pipe().unwrap();
        let (recv, _send) = conn.split();
        let objects = Arc::new(vec![Waited::Half(recv)]);
        let waits = wait_in_tasks(&objects).await;
        here.send(&*objects).await.unwrap();
        assert!(are_closed(&waits.await.unwrap()));
    });
}

#[test]
fn who_waits_for_a_listener_is_told_that_it_is_closed() {
    run(60, async {
        let objects = Arc::new(vec![Waited::Listener(Listener::temporary().await.unwrap())]);
        let waits = wait_in_tasks(&objects).await;
        let Waited::Listener(listener) = &objects[0] else { unreachable!() };
        listener.close();
        assert!(are_closed(&waits.await.unwrap()));
    });
}

/// A message that comes to nothing has changed nothing for who waits.
#[test]
fn who_waits_for_what_stays_waits_on() {
    run(60, async {
        let (mut here, _there) = mp::pipe().unwrap();
        let (conn, mut peer) = mp::pipe().unwrap();
        let objects = Arc::new(vec![Waited::Connection(conn)]);
        let waits = wait_in_tasks(&objects).await;
        here.send(&(&*objects, Unwritable)).await.unwrap_err();
        peer.send("hello").await.unwrap();
        assert!(waits.await.unwrap().into_iter().flatten().all(|wait| wait.is_ok()));
    });
}

#[test]
fn what_cannot_be_sent_stays() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let (mut other, mut peer) = mp::pipe().unwrap();
        let (recv, send) = mp::simplex_pipe().unwrap();
        peer.send("unread").await.unwrap();
        peer.send("buffered").await.unwrap();
        assert_eq!(other.recv::<String>().await.unwrap(), "unread");

        let error = here.send(&(&other, &recv, &send, Unwritable)).await.unwrap_err();
        assert!(error.to_string().contains("not today"), "{error}");
        let error = here.send(&(&other, &other)).await.unwrap_err();
        assert!(error.to_string().contains("already in a message"), "{error}");
        let bells: Vec<_> = (0..1025).map(|_| Handle::new(File::open("/dev/null").unwrap())).collect();
        assert!(matches!(here.send(&(&other, &bells)).await, Err(mp::Error::Encode(_))));
        drop(bells);
        here.set_max_message(1000);
        let error = here.send(&(&other, vec![0u8; 1000])).await.unwrap_err();
        assert!(matches!(error, mp::Error::TooLong { .. }), "{error}");
        here.set_max_message(1 << 30);
        // Given up while it waits for room.
        let message = vec![0u8; 32 << 10];
        let mut poll = Context::from_waker(Waker::noop());
        while pin!(here.send(&message)).poll(&mut poll).is_ready() {}
        {
            let value = (&other, &recv, &message);
            let mut given_up = pin!(here.send(&value));
            assert!(given_up.as_mut().poll(&mut poll).is_pending());
            assert!(other.is_closed() && recv.is_closed());
        }
        assert!(!other.is_closed() && !recv.is_closed());
        while there.poll().unwrap() {
            assert_eq!(there.recv::<Vec<u8>>().await.unwrap(), message);
        }
        // Nobody there.
        drop(there);
        assert!(here.send(&(&other, recv, send)).await.unwrap_err().is_eof());

        assert_eq!(other.recv::<String>().await.unwrap(), "buffered");
        assert_connected(&mut other, &mut peer).await;
    });
}

#[test]
fn a_task_takes_a_connection() {
    run_each(120, |context| async move {
        let pool = context.pool().processes(2).build().await.unwrap();
        let answer = async |mut conn: Connection, mut log: SendHalf| {
            while let Ok(n) = conn.recv::<u64>().await {
                conn.send(&(n + 1)).await.unwrap();
            }
            log.send("over").await.unwrap();
            conn
        };
        let (mut here, there) = mp::pipe().unwrap();
        let (mut log, theirs) = mp::simplex_pipe().unwrap();
        let task = pool.apply(answer, (there, theirs)).submit();
        for n in 0..10 {
            here.send(&n).await.unwrap();
            assert_eq!(here.recv::<u64>().await.unwrap(), n + 1);
        }
        here.send("no number").await.unwrap();
        assert_eq!(log.recv::<String>().await.unwrap(), "over");
        // It came back as the task's value.
        let mut there = task.await.unwrap();
        assert_connected(&mut here, &mut there).await;
        pool.shutdown(support::PATIENCE).await.unwrap();
    });
}

#[test]
fn a_message_to_all_workers_takes_shared_ends_only() {
    run(120, async {
        let ready = async |mut log: SendHalf| log.send("ready").await.unwrap();
        let (mut recv, mut send) = mp::simplex_pipe().unwrap();
        let shared = send.share().unwrap();
        let (_, unshared) = mp::simplex_pipe().unwrap();
        let error =
            mp::Pool::builder().processes(2).initializer(ready, (unshared,)).build().await.unwrap_err();
        assert!(error.to_string().contains("share()"), "{error}");
        let pool = mp::Pool::builder().processes(2).initializer(ready, (shared,)).build().await.unwrap();
        for _ in 0..2 {
            assert_eq!(recv.recv::<String>().await.unwrap(), "ready");
        }
        pool.shutdown(support::PATIENCE).await.unwrap();
    });
}

#[test]
fn connections_lie_in_messages_of_connections_in_messages() {
    run(60, async {
        for buffered in [false, true] {
            let (mut a, mut b) = mp::pipe().unwrap();
            let (mut c, mut d) = mp::pipe().unwrap();
            let (e, mut f) = mp::pipe().unwrap();
            f.send("deep").await.unwrap();
            if buffered {
                // The second is read ahead with the first.
                c.send("first").await.unwrap();
                c.send("second").await.unwrap();
                assert_eq!(d.recv::<String>().await.unwrap(), "first");
            }
            c.send(&e).await.unwrap();
            if buffered {
                assert_eq!(d.recv::<String>().await.unwrap(), "second");
            }
            a.send(&d).await.unwrap();
            let mut d: Connection = b.recv().await.unwrap();
            let mut e: Connection = d.recv().await.unwrap();
            assert_eq!(e.recv::<String>().await.unwrap(), "deep");
            assert_connected(&mut e, &mut f).await;
            assert_connected(&mut d, &mut c).await;
        }
    });
}

#[test]
fn ends_that_hold_each_other_are_collected() {
    run(60, async {
        // The pipe tells when the messages in which it lies are gone.
        let (mut reader, writer) = io::pipe().unwrap();
        let token = Handle::new(writer);
        let (mut a, b) = mp::pipe().unwrap();
        a.send(&(&b, &token)).await.unwrap();
        let (mut c, d) = mp::pipe().unwrap();
        let (mut e, f) = mp::pipe().unwrap();
        c.send(&(&f, &token)).await.unwrap();
        e.send(&(&d, &token)).await.unwrap();
        drop(token);
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop((a, c, e));
        eventually("all is collected", || matches!(reader.read(&mut [0]), Ok(0))).await;
    });
}

/// Allows this process so many descriptors more than it has, until it is dropped.
struct Limit(u64, u64);

impl Limit {
    fn room_for(more: u64) -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let lowest = fcntl(io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(0)).unwrap();
        nix::unistd::close(lowest).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, lowest as u64 + more, hard).unwrap();
        Self(soft, hard)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NOFILE, self.0, self.1).unwrap();
    }
}

#[test]
fn at_the_limit_of_descriptors_nothing_is_lost() {
    run(60, async {
        let tokens = |count: usize| -> (io::PipeReader, Vec<Handle<PipeWriter>>) {
            let (reader, writer) = io::pipe().unwrap();
            (reader, (0..count).map(|_| Handle::new(writer.try_clone().unwrap())).collect())
        };
        for count in [3, 200, 600] {
            let (mut here, mut there) = mp::pipe().unwrap();
            let (reader, writers) = tokens(count);
            here.send(&(count, writers)).await.unwrap();
            here.send("after").await.unwrap();
            for room in [0, 2, count as u64 - 1] {
                let _limit = Limit::room_for(room);
                let error = there.recv::<(usize, Vec<Handle<PipeWriter>>)>().await.unwrap_err();
                assert!(matches!(&error, mp::Error::Io(e) if e.raw_os_error() == Some(24)), "{error}");
            }
            let (told, writers): (usize, Vec<Handle<PipeWriter>>) = there.recv().await.unwrap();
            assert_eq!((told, writers.len()), (count, count));
            for writer in writers {
                writer.into_inner().unwrap().write_all(b".").unwrap();
            }
            assert_eq!(io::read_to_string(reader).unwrap().len(), count);
            assert_eq!(there.recv::<String>().await.unwrap(), "after");
        }
    });
}

/// What has come once may come again, wherever both ends have gone meanwhile.
#[test]
fn ends_that_moved_lose_nothing_at_the_limit_of_descriptors() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let file = || Handle::new(File::open("/dev/null").unwrap());
        here.send(&file()).await.unwrap();
        there.recv::<Handle<File>>().await.unwrap();
        let (mut from, mut to) = mp::pipe().unwrap();
        from.send(&(here, there)).await.unwrap();
        let (mut here, mut there): (Connection, Connection) = to.recv().await.unwrap();
        here.send(&file()).await.unwrap();
        {
            let _limit = Limit::room_for(0);
            let error = there.recv::<Handle<File>>().await.unwrap_err();
            assert!(matches!(&error, mp::Error::Io(e) if e.raw_os_error() == Some(24)), "{error}");
        }
        there.recv::<Handle<File>>().await.unwrap();
    });
}

/// What is fed stays until there is a descriptor for it; if there is nobody for it, what it moves stays.
#[test]
fn what_was_fed_waits_for_descriptors_but_not_for_the_dead() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let (mut other, mut peer) = mp::pipe().unwrap();
        let large = vec![7u8; 100 << 10];
        let mut sink = here.sink::<(Option<&Connection>, &[u8])>();
        sink.feed((None, &large)).await.unwrap();
        for _ in 0..2 {
            let _limit = Limit::room_for(0);
            let error = sink.flush().await.unwrap_err();
            assert!(matches!(&error, mp::Error::Io(e) if e.raw_os_error() == Some(24)), "{error}");
        }
        sink.flush().await.unwrap();
        assert!(there.recv::<(Option<Connection>, Vec<u8>)>().await.unwrap().1 == large);
        drop(there);
        sink.feed((Some(&other), &[])).await.unwrap();
        assert!(sink.flush().await.unwrap_err().is_eof());
        assert_connected(&mut other, &mut peer).await;
    });
}
