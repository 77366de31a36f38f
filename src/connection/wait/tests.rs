use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;

use futures::FutureExt;

use super::*;
use std::sync::Arc;

/// A socket and what was read from it ahead.
struct Reader {
    socket: Arc<OwnedFd>,
    buffered: Arc<Buffered>,
}

impl Reader {
    fn pair() -> (Self, UnixStream) {
        let (socket, peer) = UnixStream::pair().unwrap();
        (Self { socket: Arc::new(socket.into()), buffered: Arc::default() }, peer)
    }
}

impl waitable::sealed::Sealed for Reader {
    fn source(&self) -> Result<Source<'_>> {
        Ok(Source::buffered(&self.socket, &self.buffered, "reader"))
    }
}

fn now(set: &WaitSet) -> Vec<WaitKey> {
    set.wait_timeout(Duration::ZERO).now_or_never().expect("no time").unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn what_was_read_ahead_is_told_though_the_socket_is_idle() {
    let ((reader, _peer), (idle, _end)) = (Reader::pair(), Reader::pair());
    let set = WaitSet::new().unwrap();
    reader.buffered.set(true);
    set.insert(&idle).unwrap();
    let key = set.insert(&reader).unwrap();
    assert_eq!(wait(&[&idle, &reader]).now_or_never().unwrap().unwrap(), [1]);
    assert_eq!((now(&set), now(&set)), (vec![key], vec![key]));

    reader.buffered.set(false);
    assert_eq!(wait_timeout(&[&idle, &reader], Duration::ZERO).now_or_never().unwrap().unwrap(), []);
    assert_eq!(now(&set), []);
    reader.buffered.set(true);
    assert_eq!(now(&set), [key]);
}

#[test]
fn what_is_read_ahead_meanwhile_wakes() {
    let ((reader, _peer), (idle, _end)) = (Reader::pair(), Reader::pair());
    let set = WaitSet::new().unwrap();
    let key = set.insert(&reader).unwrap();
    for _ in 0..200 {
        reader.buffered.set(false);
        let begin = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                reader.buffered.set(true);
            });
            runtime().block_on(async {
                begin.wait();
                let objects: [&dyn Waitable; 2] = [&idle, &reader];
                let (few, many) = tokio::join!(wait(&objects), set.wait());
                assert_eq!((few.unwrap(), many.unwrap()), (vec![1], vec![key]));
            });
        });
    }
}

#[test]
fn a_reader_that_is_gone_is_not_told_of_though_its_socket_is_open() {
    let (Reader { socket, buffered }, mut peer) = Reader::pair();
    let reader = Reader { socket: Arc::new(socket.try_clone().unwrap()), buffered };
    let set = WaitSet::new().unwrap();
    let key = set.insert(&reader).unwrap();
    let other = set.insert(&socket).unwrap();
    reader.buffered.set(true);
    peer.write_all(b"x").unwrap();
    assert_eq!(now(&set), [key, other]);
    // Its number stays, as that of a half of a connection does.
    let Reader { socket: _half, buffered } = reader;
    drop(buffered);
    assert_eq!((now(&set), now(&set)), (vec![other], vec![other]));
    assert!(!set.remove(key) && set.remove(other));
}

/// Each is told of once in so many calls that tell of all.
#[test]
fn many_that_are_ready_are_told_of_in_turn() {
    const MANY: usize = 700;
    let readers: Vec<_> = (0..MANY).map(|_| Reader::pair()).collect();
    let set = WaitSet::new().unwrap();
    for (reader, _) in &readers {
        set.insert(reader).unwrap();
        reader.buffered.set(true);
    }
    let told = |calls: usize| {
        let mut told: Vec<_> = (0..calls).flat_map(|_| now(&set)).collect();
        told.sort_unstable();
        told.dedup();
        told.len()
    };
    assert_eq!((told(2), told(3)), (512, MANY));
    for (reader, _) in &readers {
        reader.buffered.set(false);
    }
    assert_eq!(told(3), 0);
    let (readers, peers): (Vec<_>, Vec<_>) = readers.into_iter().unzip();
    drop(peers);
    assert_eq!((told(1), told(3)), (256, MANY));
    drop(readers);
    assert_eq!(told(3), 0);
}

/// More than one look asks.
const MANY: usize = 300;

/// What is ready is told of, however many before it only seemed to be.
#[test]
fn one_that_is_ready_is_found_behind_many_that_are_not() {
    let set = WaitSet::new().unwrap();
    let readers: Vec<_> = (0..MANY).map(|_| Reader::pair()).collect();
    let keys: Vec<_> = readers.iter().map(|(reader, _)| set.insert(reader).unwrap()).collect();
    let (last, others) = readers.split_last().unwrap();
    let seem_ready = |ready: bool| others.iter().for_each(|(reader, _)| reader.buffered.set(ready));
    let found = [keys[MANY - 1]];

    seem_ready(true);
    last.0.buffered.set(true);
    seem_ready(false);
    assert_eq!(now(&set), found);

    last.0.buffered.set(false);
    seem_ready(true);
    last.0.buffered.set(true);
    seem_ready(false);
    let waited = async { tokio::time::timeout(Duration::from_secs(30), set.wait()).await };
    assert_eq!(runtime().block_on(waited).expect("it is ready").unwrap(), found);
}

/// Has the reactor tell what there is, and leaves so much of the task's budget.
async fn leave_budget(budget: usize) {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    for _ in budget..128 {
        tokio::task::coop::consume_budget().await;
    }
}

/// Who gives up a look in the middle leaves the rest of it to whoever else waits.
#[test]
fn a_look_that_is_given_up_is_taken_over() {
    // With what budget somebody is polled who then gives up.
    for budget in 0..4 {
        let set = WaitSet::new().unwrap();
        // Closed here and open elsewhere: each has one report, of nobody.
        let ghosts: Vec<_> = (0..2 * MANY)
            .map(|_| {
                let (socket, peer) = UnixStream::pair().unwrap();
                set.insert(&socket).unwrap();
                (socket.try_clone().unwrap(), peer)
            })
            .collect();
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let key = set.insert(&socket).unwrap();
        runtime().block_on(async {
            let mut given_up = Box::pin(set.wait());
            let mut waits = Box::pin(set.wait());
            assert!(futures::poll!(&mut given_up).is_pending());
            // It looks, and does not come to wait for the kernel.
            leave_budget(1).await;
            assert!(futures::poll!(&mut waits).is_pending());
            for (_, peer) in &ghosts {
                (&mut &*peer).write_all(b"x").unwrap();
            }
            peer.write_all(b"x").unwrap();
            leave_budget(budget).await;
            let _ = futures::poll!(&mut given_up);
            drop(given_up);
            let told = tokio::time::timeout(Duration::from_secs(30), waits).await;
            assert_eq!(told.expect("somebody looks").unwrap(), [key], "{budget}");
        });
    }
}
