use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;

use std::pin::pin;

use futures::FutureExt;

use super::*;
use crate::synchronize::heap::Heap;
use crate::synchronize::object::Object;
use crate::synchronize::wait::Sleeper;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// A process's end of a heap, as one of a queue: it can be closed, and is so when it is dropped.
#[derive(Debug)]
struct End {
    heap: Heap,
    open: Arc<AtomicBool>,
}

#[derive(Debug)]
struct NotEmpty(Heap, Arc<AtomicBool>);

impl End {
    fn of(heap: &Heap) -> Self {
        Self { heap: heap.clone(), open: Arc::new(AtomicBool::new(true)) }
    }

    fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
        self.heap.0.wake_here();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close();
    }
}

impl waitable::sealed::Sealed for End {
    fn source(&self) -> Result<Source<'_>> {
        Ok(Source::condition(NotEmpty(self.heap.clone(), self.open.clone())))
    }
}

impl Condition for NotEmpty {
    fn name(&self) -> &'static str {
        "heap"
    }

    fn object(&self) -> Option<Object> {
        self.1.load(Ordering::SeqCst).then(|| self.0.0.clone())
    }

    fn is_met(&self) -> Option<bool> {
        self.1.load(Ordering::SeqCst).then(|| self.0.len() > 0)
    }
}

fn look(objects: &[&dyn Waitable]) -> Result<Vec<usize>> {
    wait_timeout(objects, Duration::ZERO).now_or_never().expect("no time")
}

#[test]
fn conditions_are_levels_and_need_no_runtime() {
    let (heap, empty) = (Heap::new(), Heap::new());
    let [end, idle] = [&heap, &empty].map(End::of);
    let (reader, _peer) = Reader::pair();
    let objects: [&dyn Waitable; 5] = [&idle, &end, &reader, &end, &idle];
    let set = WaitSet::new().unwrap();
    let keys: Vec<_> = objects.iter().map(|object| set.insert(object).unwrap()).collect();
    assert_eq!((look(&objects).unwrap(), now(&set)), (vec![], vec![]));
    heap.add();
    reader.buffered.set(true);
    let mut told = now(&set);
    told.sort();
    assert_eq!((look(&objects).unwrap(), told), (vec![1, 2, 3], keys[1..4].to_vec()));
    heap.take().unwrap();
    assert_eq!((look(&objects).unwrap(), now(&set)), (vec![2], vec![keys[2]]));
    reader.buffered.set(false);
    assert_eq!((look(&objects).unwrap(), now(&set)), (vec![], vec![]));

    heap.add();
    assert!(set.remove(keys[1]) && !set.remove(keys[1]));
    assert_eq!(now(&set), [keys[3]]);
}

/// Also those who have slept before, and those who look when nobody drives a runtime.
#[test]
fn who_waits_for_a_condition_is_told_again_and_again() {
    let heap = Heap::new();
    let (end, (idle, _peer)) = (End::of(&heap), Reader::pair());
    let sets = [(); 2].map(|()| WaitSet::new().unwrap());
    let keys = [0, 1].map(|i| {
        sets[i].insert(&idle).unwrap();
        sets[i].insert(&end).unwrap()
    });
    let objects: [&dyn Waitable; 2] = [&idle, &end];
    for round in 0..300 {
        runtime().block_on(async {
            let mut waits = pin!(async { tokio::join!(sets[0].wait(), sets[1].wait(), wait(&objects)) });
            if round % 3 > 0 {
                assert!(futures::poll!(&mut waits).is_pending());
            }
            std::thread::scope(|scope| drop(scope.spawn(|| heap.add())));
            let told = tokio::time::timeout(Duration::from_secs(30), waits).await.expect("they are told");
            assert_eq!((told.0.unwrap(), told.1.unwrap()), (vec![keys[0]], vec![keys[1]]));
            assert_eq!(told.2.unwrap(), [1]);
        });
        assert_eq!((now(&sets[0]), now(&sets[1])), (vec![keys[0]], vec![keys[1]]));
        heap.take().unwrap();
        assert_eq!((now(&sets[0]), now(&sets[1])), (vec![], vec![]));
    }
}

/// Not even until those look who look on; a tick would tell all, but it is slow.
#[test]
fn who_looks_on_keeps_nothing_from_who_takes() {
    const ROUNDS: u32 = 100;
    let heap = Heap::new();
    let end = End::of(&heap);
    let set = WaitSet::new().unwrap();
    let key = set.insert(&end).unwrap();
    let begin = std::time::Instant::now();
    runtime().block_on(async {
        for _ in 0..ROUNDS {
            let mut looks = Box::pin(set.wait());
            assert!(futures::poll!(&mut looks).is_pending());
            let heap = heap.clone();
            let taker = heap.clone();
            let takes = tokio::spawn(async move {
                let mut sleeper = Sleeper::default();
                std::future::poll_fn(|cx| sleeper.poll(&taker.0, cx, |_| taker.take())).await
            });
            tokio::task::yield_now().await;
            heap.add();
            takes.await.unwrap().unwrap();
            assert!(futures::poll!(&mut looks).is_pending());
            heap.add();
            assert_eq!(looks.await.unwrap(), [key]);
            heap.take().unwrap();
        }
    });
    assert!(begin.elapsed() < ROUNDS * Duration::from_millis(50), "{:?}", begin.elapsed());
}

/// One that comes to be met, or is closed, at the last moment, and nobody rings for it.
#[derive(Debug)]
struct Sly {
    heap: Heap,
    asked: AtomicBool,
    then: Option<bool>,
}

impl Condition for Sly {
    fn name(&self) -> &'static str {
        "sly one"
    }

    fn object(&self) -> Option<Object> {
        self.asked.store(true, Ordering::SeqCst);
        Some(self.heap.0.clone())
    }

    fn is_met(&self) -> Option<bool> {
        if self.asked.load(Ordering::SeqCst) { self.then } else { Some(false) }
    }
}

#[test]
fn who_goes_to_sleep_looks_again() {
    for then in [Some(true), None] {
        let sly = |heap| Source::condition(Sly { heap, asked: AtomicBool::new(false), then });
        let heap = Heap::new();
        let set = WaitSet::new().unwrap();
        let key = set.enter(&sly(heap.clone())).unwrap();
        runtime().block_on(async {
            let told = pin!(set.wait()).now_or_never();
            assert_eq!(told.map(Result::unwrap), then.map(|_| vec![key]));
            let named = wait_longer(&[sly(heap)]).now_or_never().expect("at once");
            match then {
                Some(_) => assert_eq!(named.unwrap(), [0]),
                None => assert!(matches!(named, Err(Error::Closed("sly one")))),
            }
        });
        assert_eq!(set.remove(key), then.is_some());
    }
}

#[test]
fn what_is_closed_leaves_and_is_an_error_for_who_names_it() {
    let [heap, other] = [Heap::new(), Heap::new()];
    let set = WaitSet::new().unwrap();
    for how in 0..2 {
        let (end, idle) = (End::of(&heap), End::of(&other));
        let key = set.insert(&end).unwrap();
        heap.add();
        assert_eq!(now(&set), [key]);
        heap.take().unwrap();
        runtime().block_on(async {
            // Asleep, and not: closed before anybody waits.
            let mut waits = Box::pin(set.wait());
            if how == 0 {
                assert!(futures::poll!(&mut waits).is_pending());
            }
            let objects: [&dyn Waitable; 2] = [&idle, &end];
            let mut named = Box::pin(wait(&objects));
            assert!(futures::poll!(&mut named).is_pending());
            end.close();
            let told = tokio::time::timeout(Duration::from_secs(30), named).await.expect("it is closed");
            assert!(matches!(told, Err(Error::Closed("heap"))), "{told:?}");
            heap.add();
            assert!(futures::poll!(&mut waits).is_pending());
            assert!(matches!(look(&objects), Err(Error::Closed("heap"))));
            heap.take().unwrap();
        });
        assert!(!set.remove(key));
    }
    // A set keeps nothing of what has left it.
    let end = End::of(&heap);
    let open = Arc::downgrade(&end.open);
    set.insert(&end).unwrap();
    drop(end);
    assert_eq!((now(&set), open.strong_count()), (vec![], 0));
}

#[test]
fn conditions_that_are_met_are_told_of_in_turn() {
    const MANY: usize = 600;
    let heap = Heap::new();
    let ends: Vec<_> = (0..MANY).map(|_| End::of(&heap)).collect();
    let set = WaitSet::new().unwrap();
    let keys: Vec<_> = ends.iter().map(|end| set.insert(end).unwrap()).collect();
    heap.add();
    let mut told: Vec<_> = (0..3).flat_map(|_| now(&set)).collect();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told, keys);
    assert_eq!(runtime().block_on(set.wait()).unwrap().len(), 256);
}
