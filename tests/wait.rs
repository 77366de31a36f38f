//! `wait` and `WaitSet`: they tell of what is ready, of all of it, as long as it is, and of nothing else.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "a number that is closed cannot be borrowed otherwise")]

mod support;

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use support::{Notebook, Random, current_thread, guard, multi_thread, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{WaitKey, WaitSet, Waitable, wait, wait_timeout};

const NONE: [usize; 0] = [];

/// What a set tells of without waiting, sorted.
fn now(set: &WaitSet) -> Vec<WaitKey> {
    let mut keys = set.wait_timeout(Duration::ZERO).now_or_never().expect("no time passes").unwrap();
    keys.sort();
    keys
}

/// What [`wait_timeout`] tells of without waiting.
fn look(objects: &[&dyn Waitable]) -> Vec<usize> {
    wait_timeout(objects, Duration::ZERO).now_or_never().expect("no time passes").unwrap()
}

fn sockets<const N: usize>() -> ([UnixStream; N], [UnixStream; N]) {
    let (reads, writes): (Vec<_>, Vec<_>) = (0..N).map(|_| UnixStream::pair().unwrap()).unzip();
    (reads.try_into().unwrap(), writes.try_into().unwrap())
}

fn is_send_and_sync(_: impl Send + Sync) {}

#[test]
fn what_waits_may_be_sent_to_other_threads() {
    let set = WaitSet::new().unwrap();
    let objects: [&dyn Waitable; 0] = [];
    is_send_and_sync(set.wait());
    is_send_and_sync(set.wait_timeout(Duration::ZERO));
    is_send_and_sync(wait(&objects));
    is_send_and_sync(wait_timeout(&objects, Duration::ZERO));
}

// conformance: TestWait.test_wait_timeout
#[test]
fn nothing_ready_gives_nothing_when_the_time_is_up() {
    run(60, async {
        const LIMIT: Duration = Duration::from_millis(150);
        let (a, mut b) = mp::pipe().unwrap();
        let set = WaitSet::new().unwrap();
        let [key, _] = [&a, &b].map(|end| set.insert(end).unwrap());
        let begin = Instant::now();
        assert_eq!(wait_timeout(&[&a, &b], LIMIT).await.unwrap(), NONE);
        assert!(begin.elapsed() >= LIMIT);
        assert_eq!(set.wait_timeout(LIMIT).await.unwrap(), []);
        assert!(begin.elapsed() >= 2 * LIMIT);
        b.send("hello").await.unwrap();
        assert_eq!(wait_timeout(&[&a, &b], 2 * support::PATIENCE).await.unwrap(), [0]);
        assert_eq!(set.wait_timeout(2 * support::PATIENCE).await.unwrap(), [key]);
    });
}

// conformance: TestWait.test_neg_timeout
#[test]
fn a_timeout_of_nothing_looks_and_needs_no_runtime() {
    let _guard = guard(60);
    let ([a, b], [_, mut writes]) = sockets();
    let set = WaitSet::new().unwrap();
    set.insert(&a).unwrap();
    // Its peer is gone.
    assert_eq!((look(&[&a, &b]), now(&set).len()), (vec![0], 1));
    let (idle, _end) = UnixStream::pair().unwrap();
    assert_eq!(look(&[&idle, &b]), NONE);
    writes.write_all(b"x").unwrap();
    assert_eq!(look(&[&idle, &b]), [1]);
}

/// Tokio's clock stands still, or jumps to the next timer when there is nothing to do.
#[test]
fn a_timeout_goes_by_the_kernels_clock() {
    let _guard = guard(60);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        const LIMIT: Duration = Duration::from_millis(100);
        let (idle, _end) = UnixStream::pair().unwrap();
        let set = WaitSet::new().unwrap();
        set.insert(&idle).unwrap();
        let (begin, tokios) = (Instant::now(), tokio::time::Instant::now());
        assert_eq!(wait_timeout(&[&idle], LIMIT).await.unwrap(), NONE);
        assert_eq!(set.wait_timeout(LIMIT).await.unwrap(), []);
        assert!(begin.elapsed() >= 2 * LIMIT && tokios.elapsed() == Duration::ZERO);
    });
}

/// A set keeps a sentinel that was made for it alone, until it is removed.
#[test]
fn a_set_keeps_its_sentinels() {
    run(120, async {
        let notebook = Notebook::new();
        let gate = (notebook.path(),);
        let child = mp::Process::builder(|path: String| pass_gate(&path), gate).start().await.unwrap();
        let set = WaitSet::new().unwrap();
        let [first, second] = [0; 2].map(|_| set.insert(&child.sentinel().unwrap()).unwrap());
        assert_eq!(now(&set), []);
        notebook.open_gate();
        assert!(!set.wait().await.unwrap().is_empty());
        child.join().await.unwrap();
        drop(child);
        assert_eq!(now(&set), [first, second]);
        assert!(set.remove(first));
        assert_eq!(now(&set), [second]);
        assert!(set.remove(second));
        assert_eq!(now(&set), []);
    });
}

// conformance: TestWait.test_wait_integer
#[test]
fn sentinels_and_connections_are_waited_for_together() {
    run_each(120, async |context| {
        let notebook = Notebook::new();
        let child =
            context.process(|path: String| pass_gate(&path), (notebook.path(),)).start().await.unwrap();
        let sentinel = child.sentinel().unwrap();
        let ((a, mut to_a), (b, mut to_b)) = (mp::pipe().unwrap(), mp::pipe().unwrap());
        let raw = sentinel.as_fd();
        let objects: [&dyn Waitable; 5] = [&a, &sentinel, &b, &child, &raw];
        let set = WaitSet::new().unwrap();
        let keys: Vec<_> = objects.iter().map(|object| set.insert(object).unwrap()).collect();
        assert_eq!((look(&objects), now(&set)), (vec![], vec![]));

        let ready = async |expected: &[usize]| {
            // Each of the three becomes ready by itself.
            while wait(&objects).await.unwrap() != expected {}
            assert_eq!(wait(&objects).await.unwrap(), expected);
            let expected: Vec<_> = expected.iter().map(|&index| keys[index]).collect();
            assert_eq!((now(&set), now(&set)), (expected.clone(), expected));
        };
        let (ended, ()) = tokio::join!(wait(&objects), async { notebook.open_gate() });
        assert!(ended.unwrap().iter().all(|index| [1, 3, 4].contains(index)));
        ready(&[1, 3, 4]).await;
        to_a.send(&1).await.unwrap();
        ready(&[0, 1, 3, 4]).await;
        to_b.send(&1).await.unwrap();
        ready(&[0, 1, 2, 3, 4]).await;
        assert_eq!(child.join().await.unwrap().exit_code(), 0);
        ready(&[0, 1, 2, 3, 4]).await;
        child.close().unwrap();
        assert!(wait(&[&child]).await.unwrap_err().is_closed() && set.insert(&child).is_err());
    });
}

fn write_numbers(address: SocketAddr, slow: bool) {
    let mut socket = TcpStream::connect(address).unwrap();
    let mut random = Random::from_seed(std::process::id().into());
    for number in 0..10u8 {
        if slow {
            std::thread::sleep(Duration::from_millis(random.below(30)));
        }
        socket.write_all(&[number]).unwrap();
    }
}

// conformance: TestWait.test_wait_socket_slow
#[test]
fn what_processes_write_to_sockets_is_collected_to_the_last_byte() {
    run_each(120, async |context| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        for slow in [false, true] {
            let mut writers = Vec::new();
            for _ in 0..4 {
                writers.push(context.process(write_numbers, (address, slow)).start().await.unwrap());
            }
            let mut sockets = Vec::new();
            let mut numbers = [0; 10];
            for _ in 0..4 {
                assert_eq!(wait(&[&listener]).await.unwrap(), [0]);
                sockets.push(listener.accept().unwrap().0);
            }
            while !sockets.is_empty() {
                let objects: Vec<_> = sockets.iter().map(|socket| socket as &dyn Waitable).collect();
                for index in wait(&objects).await.unwrap().into_iter().rev() {
                    let mut byte = [0];
                    match sockets[index].read(&mut byte).unwrap() {
                        0 => drop(sockets.swap_remove(index)),
                        _ => numbers[usize::from(byte[0])] += 1,
                    }
                }
            }
            assert_eq!(numbers, [4; 10]);
            for writer in writers {
                assert!(writer.join().await.unwrap().success());
            }
        }
    });
}

async fn send_numbers(mut send: mp::SendHalf, writer: u32, slow: bool) {
    let mut random = Random::from_seed(u64::from(writer) + 7);
    for number in 0..10u32 {
        if slow {
            tokio::time::sleep(Duration::from_millis(random.below(30))).await;
        }
        send.send(&(writer, number)).await.unwrap();
    }
}

// conformance: TestWait.test_wait
// conformance: TestWait.test_wait_slow
#[test]
fn what_processes_send_is_collected_to_the_last_message() {
    run_each(120, async |context| {
        for slow in [false, true] {
            let (mut writers, mut readers, mut received) = (Vec::new(), Vec::new(), BTreeSet::new());
            for writer in 0..4 {
                let (recv, send) = mp::simplex_pipe().unwrap();
                readers.push(recv);
                writers.push(context.process(send_numbers, (send, writer, slow)).start().await.unwrap());
            }
            while !readers.is_empty() {
                let objects: Vec<_> = readers.iter().map(|reader| reader as &dyn Waitable).collect();
                for index in wait(&objects).await.unwrap().into_iter().rev() {
                    match readers[index].recv::<(u32, u32)>().await {
                        Ok(message) => assert!(received.insert(message)),
                        Err(error) => {
                            assert!(error.is_eof());
                            readers.swap_remove(index);
                        }
                    }
                }
            }
            let all = (0..4).flat_map(|writer| (0..10).map(move |number| (writer, number)));
            assert!(received.into_iter().eq(all));
            for writer in writers {
                assert!(writer.join().await.unwrap().success());
            }
        }
    });
}

async fn send_without_end(mut sends: Vec<mp::SendHalf>) {
    for number in 0u64.. {
        for send in &mut sends {
            send.send(&number).await.unwrap();
        }
    }
}

/// Of each pipe every message that was sent is received, in order, up to the end that comes when its
/// writer is killed.
#[test]
fn a_set_counts_every_message_of_writers_that_are_killed() {
    const WRITERS: usize = 8;
    const PIPES: usize = 64 / WRITERS;
    run(240, async {
        let mut random = Random::new();
        let set = WaitSet::new().unwrap();
        let (mut readers, mut writers) = (std::collections::HashMap::new(), Vec::new());
        for _ in 0..WRITERS {
            let mut sends = Vec::new();
            for _ in 0..PIPES {
                let (recv, send) = mp::simplex_pipe().unwrap();
                readers.insert(set.insert(&recv).unwrap(), (recv, 0));
                sends.push(send);
            }
            writers.push(mp::Process::builder(send_without_end, (sends,)).start().await.unwrap());
        }
        let mut received = 0;
        while !readers.is_empty() {
            if received >= 2_000 && random.below(50) == 0 && !writers.is_empty() {
                let writer = writers.swap_remove(random.below(writers.len() as u64) as usize);
                writer.kill().unwrap();
                writer.join().await.unwrap();
            }
            for key in set.wait().await.unwrap() {
                let (recv, next) = readers.get_mut(&key).expect("it is no ghost");
                match recv.recv::<u64>().await {
                    Ok(number) => {
                        assert_eq!(number, *next);
                        *next += 1;
                        received += 1;
                    }
                    Err(error) => {
                        assert!(error.is_eof(), "{error}");
                        readers.remove(&key);
                    }
                }
            }
        }
        assert_eq!((writers.len(), now(&set)), (0, vec![]));
    });
}

#[test]
fn all_kinds_of_objects_are_waited_for_together() {
    run(60, async {
        let (reads, writes) = std::io::pipe().unwrap();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (tokios, mut to_tokios) = tokio::net::UnixStream::pair().unwrap();
        let (owned, mut to_owned) = UnixStream::pair().unwrap();
        let owned = std::sync::Arc::new(OwnedFd::from(owned));
        let (recv, mut send) = mp::simplex_pipe().unwrap();
        let (connection, peer) = mp::pipe().unwrap();
        let file = Box::new(std::fs::File::open("/proc/self/exe").unwrap());
        let null = std::fs::File::open("/dev/null").unwrap();
        let borrowed = owned.as_fd();
        let objects: [&dyn Waitable; 10] =
            [&reads, &listener, &udp, &tokios, &owned, &recv, &connection, &file, &null, &borrowed];
        let set = WaitSet::new().unwrap();
        let keys: Vec<_> = objects.iter().map(|object| set.insert(object).unwrap()).collect();
        let mut ready = BTreeSet::from([7, 8]);
        let check = |ready: &BTreeSet<usize>| {
            assert!(look(&objects).iter().eq(ready));
            let keys: Vec<_> = ready.iter().map(|&index| keys[index]).collect();
            assert_eq!((now(&set), now(&set)), (keys.clone(), keys));
        };
        check(&ready);
        to_owned.write_all(b"x").unwrap();
        ready.extend([4, 9]);
        check(&ready);
        send.send_bytes(b"").await.unwrap();
        ready.insert(5);
        check(&ready);
        udp.send_to(b"", udp.local_addr().unwrap()).unwrap();
        ready.insert(2);
        check(&ready);
        tokio::io::AsyncWriteExt::write_all(&mut to_tokios, b"x").await.unwrap();
        ready.insert(3);
        check(&ready);
        let _caller = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        ready.insert(1);
        check(&ready);
        drop((writes, peer));
        ready.extend([0, 6]);
        check(&ready);
        OwnedFd::try_clone(&owned).map(UnixStream::from).unwrap().read_exact(&mut [0]).unwrap();
        ready.remove(&4);
        ready.remove(&9);
        check(&ready);
    });
}

#[test]
fn the_same_object_may_be_there_twice() {
    run(60, async {
        let ([a, b], [mut to_a, _end]) = sockets();
        let set = WaitSet::new().unwrap();
        let keys = [set.insert(&a).unwrap(), set.insert(&b).unwrap(), set.insert(&a).unwrap()];
        assert_eq!((look(&[&a, &b, &a]), now(&set)), (vec![], vec![]));
        let objects: [&dyn Waitable; 3] = [&a, &b, &a];
        let write = async { to_a.write_all(b"x").unwrap() };
        assert_eq!(tokio::join!(wait(&objects), write).0.unwrap(), [0, 2]);
        assert_eq!(now(&set), [keys[0], keys[2]]);
        assert!(set.remove(keys[0]) && !set.remove(keys[0]));
        assert_eq!(now(&set), [keys[2]]);
        assert!(set.remove(keys[2]) && now(&set).is_empty());
        let again = set.insert(&a).unwrap();
        assert!(!keys.contains(&again));
        assert_eq!(now(&set), [again]);
    });
}

#[test]
fn to_wait_for_nothing_is_over_at_once() {
    run(60, async {
        assert_eq!(wait(&[]).await.unwrap(), NONE);
        assert_eq!(wait_timeout(&[], 2 * support::PATIENCE).await.unwrap(), NONE);
        // But somebody may still put something into a set.
        let set = WaitSet::new().unwrap();
        let (ended, _) = UnixStream::pair().unwrap();
        let (ready, key) = tokio::join!(set.wait(), async { set.insert(&ended).unwrap() });
        assert_eq!(ready.unwrap(), [key]);
    });
}

#[test]
fn what_is_closed_is_an_error() {
    run(60, async {
        // SAFETY: nothing is open at so high a number, and it is only looked at.
        let closed = unsafe { BorrowedFd::borrow_raw(1 << 20) };
        let set = WaitSet::new().unwrap();
        let is_ebadf = |error: mp::Error| matches!(error, mp::Error::Io(e) if e.raw_os_error() == Some(9));
        assert!(is_ebadf(wait(&[&closed]).await.unwrap_err()));
        assert!(is_ebadf(set.insert(&closed).unwrap_err()));
        let (mut connection, _peer) = mp::pipe().unwrap();
        connection.close();
        assert!(wait(&[&connection]).await.unwrap_err().is_closed());
        assert!(wait_timeout(&[&connection], Duration::ZERO).await.unwrap_err().is_closed());
        assert!(set.insert(&connection).unwrap_err().is_closed());
    });
}

/// Read ahead they are in the reader, and the socket has nothing to tell.
#[test]
fn messages_that_were_read_ahead_are_told_of_one_by_one() {
    run(60, async {
        let ((mut recv, mut send), (idle, _end)) = (mp::simplex_pipe().unwrap(), mp::pipe().unwrap());
        let set = WaitSet::new().unwrap();
        let key = set.insert(&recv).unwrap();
        set.insert(&idle).unwrap();
        for round in 1..20 {
            for number in 0..round {
                send.send(&number).await.unwrap();
            }
            for number in 0..round {
                assert_eq!(wait(&[&idle, &recv]).await.unwrap(), [1]);
                assert_eq!(set.wait().await.unwrap(), [key]);
                assert_eq!(recv.recv::<usize>().await.unwrap(), number);
            }
            assert_eq!((look(&[&idle, &recv]), now(&set)), (vec![], vec![]));
        }
        drop(send);
        assert_eq!(set.wait().await.unwrap(), [key]);
        assert!(recv.recv::<usize>().await.unwrap_err().is_eof());
        assert_eq!((wait(&[&idle, &recv]).await.unwrap(), now(&set)), (vec![1], vec![key]));
        drop(recv);
        assert_eq!(now(&set), []);
    });
}

/// The open file lives on in a duplicate, as it does in another process, and with it the kernel's entry.
#[test]
fn who_was_dropped_does_not_haunt_the_set() {
    run(60, async {
        let set = WaitSet::new().unwrap();
        let ([bare, other], [mut to_bare, mut to_other]) = sockets();
        let held = bare.try_clone().unwrap();
        let key = set.insert(&bare).unwrap();
        drop(bare);
        to_bare.write_all(b"x").unwrap();
        assert_eq!((now(&set), now(&set)), (vec![], vec![]));
        assert!(!set.remove(key));

        // Another file has the number, which is in the set or not.
        let key = set.insert(&held).unwrap();
        let held_too = held.try_clone().unwrap();
        let number = replace(held, other.try_clone().unwrap());
        assert_eq!(now(&set), []);
        let new = set.insert(&number).unwrap();
        assert_eq!((now(&set), set.remove(key)), (vec![], false));
        to_other.write_all(b"x").unwrap();
        assert_eq!((now(&set), now(&set)), (vec![new], vec![new]));
        assert!(set.remove(new));
        assert_eq!(now(&set), []);
        drop(held_too);

        // As before, and nobody looks until the number has a new owner.
        let [first, second] = [&other, &other].map(|other| other.try_clone().unwrap());
        let key = set.insert(&first).unwrap();
        let (idle, _end) = UnixStream::pair().unwrap();
        let number = replace(first, idle);
        let new = set.insert(&number).unwrap();
        assert_eq!((now(&set), now(&set)), (vec![], vec![]));
        assert!(!set.remove(key) && set.remove(new));
        drop(second);
    });
}

/// As those of a server that hands its connections on: they are open elsewhere, and the kernel goes on to
/// tell of them.
#[test]
fn connections_that_have_moved_hide_nobody() {
    run(60, async {
        let (mut here, mut worker) = mp::pipe().unwrap();
        let set = WaitSet::new().unwrap();
        let (mut moved, mut clients) = (Vec::new(), Vec::new());
        for _ in 0..600 {
            let (conn, client) = mp::pipe().unwrap();
            set.insert(&conn).unwrap();
            here.send(&conn).await.unwrap();
            moved.push(worker.recv::<mp::Connection>().await.unwrap());
            clients.push(client);
        }
        let (stays, client) = mp::pipe().unwrap();
        let key = set.insert(&stays).unwrap();
        clients.push(client);
        for client in &mut clients {
            client.send(&1).await.unwrap();
        }
        assert_eq!(set.wait().await.unwrap(), [key]);
    });
}

/// Puts a socket at the number of another.
fn replace(old: UnixStream, new: UnixStream) -> UnixStream {
    // SAFETY: the number has one owner, here, and it owns what the call puts there.
    let mut owner = unsafe { OwnedFd::from_raw_fd(old.into_raw_fd()) };
    nix::unistd::dup3(new, &mut owner, nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    owner.into()
}

#[test]
fn a_file_leaves_when_it_is_closed() {
    run(60, async {
        let set = WaitSet::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        let key = set.insert(&file).unwrap();
        assert_eq!((set.wait().await.unwrap(), now(&set)), (vec![key], vec![key]));
        let held = file.try_clone().unwrap();
        drop(file);
        assert_eq!(now(&set), []);
        let key = set.insert(&held).unwrap();
        assert_eq!(now(&set), [key]);
        assert!(set.remove(key) && now(&set).is_empty());
    });
}

/// Polls once.
fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Futures that are dropped at any point take nothing with them.
#[test]
fn dropped_waits_lose_nothing() {
    run(120, async {
        const MESSAGES: u32 = 3_000;
        let (sockets, ends) = sockets::<2>();
        let writers = ends.map(|mut to| {
            std::thread::spawn(move || {
                for number in 0..MESSAGES {
                    to.write_all(&number.to_ne_bytes()).unwrap();
                    if number % 7 == 0 {
                        std::thread::yield_now();
                    }
                }
                to
            })
        });
        let set = WaitSet::new().unwrap();
        let keys = [0, 1].map(|index| set.insert(&sockets[index]).unwrap());
        let objects: [&dyn Waitable; 2] = [&sockets[0], &sockets[1]];
        let mut random = Random::new();
        let mut counts = [0; 2];
        while counts != [MESSAGES; 2] {
            match random.below(4) {
                0 => {
                    drop(poll(pin!(set.wait())));
                    drop(poll(pin!(wait(&objects))));
                }
                1 => tokio::select! {
                    _ = set.wait() => {}
                    _ = wait(&objects) => {}
                    () = tokio::task::yield_now() => {}
                },
                _ => {}
            }
            let ready = if random.below(2) == 0 {
                let ready = set.wait().await.unwrap();
                (0..2).filter(|index| ready.contains(&keys[*index])).collect()
            } else {
                wait(&objects).await.unwrap()
            };
            for index in ready {
                let mut number = [0; 4];
                (&sockets[index]).read_exact(&mut number).unwrap();
                assert_eq!(u32::from_ne_bytes(number), counts[index]);
                counts[index] += 1;
            }
        }
        assert_eq!((look(&objects), now(&set)), (vec![], vec![]));
        writers.into_iter().for_each(|writer| drop(writer.join().unwrap()));
    });
}

/// All who wait for one set are told, although a report that one has taken is gone for the others.
#[test]
fn several_tasks_wait_for_one_set() {
    let _guard = guard(120);
    let (runtimes, other) = ([multi_thread(), multi_thread()], current_thread());
    let set = std::sync::Arc::new(WaitSet::new().unwrap());
    let (mut socket, mut writes) = UnixStream::pair().unwrap();
    let key = set.insert(&socket).unwrap();
    for _ in 0..1_000 {
        let waiters: Vec<_> = (0..6)
            .map(|index| {
                let set = set.clone();
                runtimes[index % 2].spawn(async move { set.wait().await.unwrap() })
            })
            .collect();
        writes.write_all(b"x").unwrap();
        other.block_on(async {
            assert_eq!(set.wait().await.unwrap(), [key]);
            for waiter in waiters {
                assert_eq!(waiter.await.unwrap(), [key]);
            }
        });
        socket.read_exact(&mut [0]).unwrap();
        assert_eq!(now(&set), []);
    }
}

/// Made without a runtime, used on one after another, whichever have ended.
#[test]
fn a_set_outlives_its_runtimes() {
    let _guard = guard(120);
    let set = WaitSet::new().unwrap();
    let (mut socket, mut writes) = UnixStream::pair().unwrap();
    let key = set.insert(&socket).unwrap();
    let (begin, begun) = mpsc::channel();
    let writer = std::thread::spawn(move || {
        for () in begun {
            writes.write_all(b"x").unwrap();
        }
    });
    let kept = multi_thread();
    for round in 0..6 {
        let runtime = if round % 2 == 0 { current_thread() } else { multi_thread() };
        for runtime in [&runtime, &kept, &runtime] {
            runtime.block_on(async {
                assert!(poll(pin!(set.wait())).is_pending());
                begin.send(()).unwrap();
                assert_eq!(set.wait().await.unwrap(), [key]);
                socket.read_exact(&mut [0]).unwrap();
                assert_eq!(set.wait_timeout(Duration::from_millis(1)).await.unwrap(), []);
            });
        }
    }
    drop(begin);
    writer.join().unwrap();
}

/// What a naive observer knows of a socket.
struct Known {
    /// Until it is dropped.
    ours: Option<UnixStream>,
    peer: Option<UnixStream>,
    unread: usize,
    keys: Vec<WaitKey>,
    /// A duplicate of ours, by which the open file outlives it.
    held: Option<UnixStream>,
}

impl Known {
    fn is_ready(&self) -> bool {
        self.unread > 0 || self.peer.is_none()
    }
}

/// Sockets come and go, are written to, read, inserted and removed at random, and what is told of is at
/// each moment what a plain list says.
#[test]
fn a_set_is_as_a_list_of_its_members() {
    let _guard = guard(240);
    let mut random = Random::new();
    let set = WaitSet::new().unwrap();
    let mut all: Vec<Known> = Vec::new();
    let mut removed = Vec::new();
    let mut ghosts = VecDeque::new();
    for step in 0..30_000 {
        let index = random.below(60) as usize;
        if index >= all.len() {
            let (ours, peer) = UnixStream::pair().unwrap();
            let held = (random.below(3) == 0).then(|| ours.try_clone().unwrap());
            all.push(Known { ours: Some(ours), peer: Some(peer), unread: 0, keys: Vec::new(), held });
            continue;
        }
        let known = &mut all[index];
        match random.below(12) {
            0..3 => known.keys.extend(known.ours.as_ref().map(|ours| set.insert(ours).unwrap())),
            3 => {
                if let Some(key) = known.keys.pop() {
                    assert!(set.remove(key));
                    removed.push(key);
                }
            }
            4..7 => {
                if let Some(peer) = &mut known.peer {
                    peer.write_all(b"x").unwrap();
                    known.unread += 1;
                }
            }
            7..10 => {
                if known.unread > 0 {
                    known.ours.as_mut().unwrap().read_exact(&mut [0]).unwrap();
                    known.unread -= 1;
                }
            }
            10 => known.peer = None,
            _ => {
                let mut known = all.swap_remove(index);
                drop(known.ours.take());
                // What is left of it lives on for a while, and has something to tell.
                if let (Some(peer), Some(_)) = (&mut known.peer, &known.held) {
                    peer.write_all(b"x").unwrap();
                }
                ghosts.push_back(known);
                ghosts.drain(..ghosts.len().saturating_sub(20));
            }
        }
        if random.below(3) == 0 {
            let mut expected: Vec<_> =
                all.iter().filter(|known| known.is_ready()).flat_map(|known| known.keys.clone()).collect();
            expected.sort();
            assert_eq!(now(&set), expected, "in step {step}");
        }
        if random.below(50) == 0 {
            let objects: Vec<_> = all.iter().map(|known| known.ours.as_ref().unwrap() as _).collect();
            let ready = all.iter().enumerate().filter(|(_, known)| known.is_ready());
            assert!(ready.map(|(index, _)| index).eq(look(&objects)));
        }
    }
    assert!(removed.into_iter().all(|key| !set.remove(key)));
}
