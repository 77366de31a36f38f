//! Functions that give many values.

#![cfg(target_os = "linux")]

mod support;

use std::error::Error as StdError;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use serde_bytes::ByteBuf;
use support::{Notebook, eventually, guard, kill_9, note, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Blob, Failure, NotStarted, Pool, TaskError, TaskStream};

fn count(n: u64) -> impl Iterator<Item = u64> {
    0..n
}

fn stream_of(n: u64) -> impl Stream<Item = u64> {
    stream::iter(0..n)
}

async fn later(n: u64) -> Result<impl Stream<Item = Result<u64, Failure>>, Failure> {
    tokio::task::yield_now().await;
    Ok(stream::iter((0..n).map(Ok)).then(|item| async move {
        tokio::task::yield_now().await;
        item
    }))
}

fn boxed(n: u64) -> Pin<Box<dyn Stream<Item = u64>>> {
    Box::pin(stream_of(n))
}

async fn iterator_later(n: u64) -> Result<Box<dyn Iterator<Item = u64>>, Box<dyn StdError + Send + Sync>> {
    Ok(Box::new(count(n)))
}

async fn all<R: mp::Message>(stream: TaskStream<R>) -> (Vec<R>, Option<TaskError>) {
    let mut items: Vec<_> = stream.collect().await;
    let error = items.pop_if(|last| last.is_err()).and_then(Result::err);
    (items.into_iter().map(Result::unwrap).collect(), error)
}

/// What notes its end.
struct NotesEnd(String);

impl Drop for NotesEnd {
    fn drop(&mut self) {
        note(&self.0, "dropped");
    }
}

/// Gives numbers for ever.
fn endless(notebook: String) -> impl Iterator<Item = u64> {
    let end = NotesEnd(notebook);
    (0..).inspect(move |_| {
        let _ = &end;
    })
}

/// Gives one number and then nothing for ever.
fn silent(notebook: String) -> impl Stream<Item = u64> {
    let end = NotesEnd(notebook);
    stream::iter([7]).chain(stream::pending()).inspect(move |_| {
        let _ = &end;
    })
}

#[test]
fn every_kind_of_source_gives_all_its_values() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
        const N: u64 = 3_000;
        for stream in [
            pool.stream(count, (N,)),
            pool.stream(stream_of, (N,)),
            pool.stream(later, (N,)),
            pool.stream(boxed, (N,)),
            pool.stream(iterator_later, (N,)),
            pool.stream(|a: u64, b: u64| a..b, (0, N)),
        ] {
            let items: Vec<u64> = stream.try_collect().await.unwrap();
            assert!(items.into_iter().eq(0..N));
        }
        assert_eq!(all(pool.stream(|| std::iter::empty::<u8>(), ())).await.0, [0u8; 0]);
    });
}

#[test]
fn values_of_any_size_with_handles_keep_their_order() {
    fn mixed(n: usize) -> impl Iterator<Item = (usize, ByteBuf, Option<Blob>)> {
        (0..n).map(|i| {
            let blob = (i % 3 == 0).then(|| Blob::new(vec![i as u8; 5000]).unwrap());
            (i, ByteBuf::from(vec![i as u8; [1, 40_000, 100, 3 << 20][i % 4]]), blob)
        })
    }
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        for source in [pool.stream(mixed, (50,)), pool.stream(|n: usize| stream::iter(mixed(n)), (50,))] {
            let items: Vec<_> = source.try_collect().await.unwrap();
            assert_eq!(items.len(), 50);
            for (i, (number, bytes, blob)) in items.iter().enumerate() {
                assert_eq!(*number, i);
                assert!(
                    bytes.len() == [1, 40_000, 100, 3 << 20][i % 4] && bytes.iter().all(|b| *b == i as u8)
                );
                assert_eq!(blob.as_ref().map(|blob| blob.len()), (i % 3 == 0).then_some(5000));
            }
        }
    });
}

/// Whoever reads slowly holds the function up, also if its values are large.
#[test]
fn a_slow_reader_holds_the_function_up() {
    fn counted(notebook: String, size: usize) -> impl Iterator<Item = ByteBuf> {
        (0..1000).map(move |_| {
            note(&notebook, "made");
            ByteBuf::from(vec![7; size])
        })
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        for (size, most) in [(10_000, 200), (1 << 20, 100)] {
            let notebook = Notebook::new();
            let mut stream = pool.stream(counted, (notebook.path(), size));
            let mut taken = 1;
            assert_eq!(stream.next().await.unwrap().unwrap().len(), size);
            // Long enough that it would have gone on if it could.
            let mut seen = 0;
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let made = notebook.count("made");
                if std::mem::replace(&mut seen, made) == made {
                    break;
                }
            }
            assert!(seen < most, "{seen} values of {size} bytes for one that was read");
            while let Some(item) = stream.next().await {
                assert_eq!(item.unwrap().len(), size);
                taken += 1;
            }
            assert_eq!(taken, 1000);
        }
    });
}

#[test]
fn what_ends_it_too_early_comes_last() {
    fn fails(n: u64) -> impl Iterator<Item = Result<u64, Failure>> {
        (0..n).map(Ok).chain([Err(Failure::msg("no more")), Ok(99)])
    }
    fn panics(n: u64) -> impl Iterator<Item = u64> {
        (0..=n).inspect(move |i| assert!(*i < n, "on purpose"))
    }
    fn dies(n: u64) -> impl Stream<Item = u64> {
        stream::iter(0..=n).then(move |i| async move {
            tokio::task::yield_now().await;
            if i == n {
                std::process::abort();
            }
            i
        })
    }
    fn hangs(n: u64) -> impl Stream<Item = u64> {
        stream::iter(0..n).chain(stream::pending())
    }
    fn never(_: u64) -> Result<std::ops::Range<u64>, Failure> {
        Err(Failure::msg("not even begun"))
    }
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let (items, error) = all(pool.stream(fails, (500,))).await;
        assert!(items.into_iter().eq(0..500));
        assert!(
            matches!(&error, Some(TaskError::Returned(why)) if why.to_string() == "no more"),
            "{error:?}"
        );
        let (items, error) = all(pool.stream(panics, (500,))).await;
        assert!(items.into_iter().eq(0..500));
        assert!(matches!(&error, Some(TaskError::Panicked(why)) if why.message == "on purpose"), "{error:?}");
        let (items, error) = all(pool.stream(dies, (500,))).await;
        assert!(items.into_iter().eq(0..500));
        assert!(matches!(&error, Some(TaskError::WorkerDied(_))), "{error:?}");
        let (items, error) = all(pool.stream(hangs, (500,)).timeout(Duration::from_millis(500))).await;
        assert!(items.into_iter().eq(0..500));
        assert!(matches!(&error, Some(TaskError::TimedOut)), "{error:?}");
        let (items, error) = all(pool.stream(never, (500,))).await;
        assert!(items.is_empty() && matches!(&error, Some(TaskError::Returned(_))), "{error:?}");
        assert_eq!(pool.apply(|| 1u8, ()).await.unwrap(), 1);
    });
}

#[test]
fn dropped_it_ends_the_function() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let notebook = Notebook::new();
        let pid = pool.apply(std::process::id, ()).await.unwrap();
        let mut numbers = pool.stream(endless, (notebook.path(),));
        assert_eq!(numbers.next().await.unwrap().unwrap(), 0);
        drop(numbers);
        notebook.wait_for("dropped", 1).await;
        let mut numbers = pool.stream(silent, (notebook.path(),));
        assert_eq!(numbers.next().await.unwrap().unwrap(), 7);
        drop(numbers);
        notebook.wait_for("dropped", 2).await;
        // The worker lives on.
        assert_eq!(pool.apply(std::process::id, ()).await.unwrap(), pid);
        // Or does not.
        let mut numbers = pool.stream(silent, (notebook.path(),)).kill_on_drop();
        assert_eq!(numbers.next().await.unwrap().unwrap(), 7);
        drop(numbers);
        assert_ne!(pool.apply(std::process::id, ()).await.unwrap(), pid);
        assert_eq!(notebook.count("dropped"), 2);
    });
}

#[test]
fn dropped_before_its_turn_it_never_begins() {
    fn begins(notebook: String) -> std::iter::Once<u8> {
        note(&notebook, "begun");
        std::iter::once(1)
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let notebook = Notebook::new();
        let held = pool.apply(|notebook: String| pass_gate(&notebook), (notebook.path(),)).submit();
        // Never polled, and polled once.
        drop(pool.stream(begins, (notebook.path(),)));
        let mut stream = pool.stream(begins, (notebook.path(),));
        assert!(futures::poll!(stream.next()).is_pending());
        drop(stream);
        notebook.open_gate();
        held.await.unwrap();
        pool.close();
        let refused = all(pool.stream(begins, (notebook.path(),))).await;
        assert!(matches!(refused.1, Some(TaskError::NotStarted(NotStarted::Closed))));
        pool.join().await.unwrap();
        assert_eq!(notebook.count("begun"), 0);
    });
}

#[test]
fn a_worker_killed_from_outside_ends_its_streams_only() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
        let notebook = Notebook::new();
        let mut first = pool.stream(|| stream::iter([std::process::id()]).chain(stream::pending()), ());
        let mut other = pool.stream(silent, (notebook.path(),));
        let pid = first.next().await.unwrap().unwrap();
        assert_eq!(other.next().await.unwrap().unwrap(), 7);
        kill_9(pid as i32);
        assert!(matches!(first.next().await, Some(Err(TaskError::WorkerDied(_)))));
        assert!(first.next().await.is_none());
        assert!(futures::poll!(other.next()).is_pending());
    });
}

#[test]
fn streams_move_between_runtimes() {
    let _guard = guard(60);
    let (one, other) = (support::multi_thread(), support::current_thread());
    let pool = one.block_on(Pool::new(1)).unwrap();
    let third = support::current_thread();
    let mut numbers = pool.stream(count, (100_000,));
    assert_eq!(third.block_on(numbers.next()).unwrap().unwrap(), 0);
    // The runtime it waited on has ended.
    drop(third);
    let rest: Vec<u64> = other.block_on(numbers.try_collect()).unwrap();
    assert!(rest.into_iter().eq(1..100_000));
    one.block_on(async {
        pool.terminate().await.unwrap();
    });
}

#[test]
fn streams_leave_nothing_behind() {
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        // The runtime for async functions is made for the first of them.
        assert_eq!(pool.stream(stream_of, (1,)).count().await, 1);
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let theirs =
            async || pool.apply(|| std::fs::read_dir("/proc/self/fd").unwrap().count(), ()).await.unwrap();
        let (here, there) = (descriptors(), theirs().await);
        for n in 0..200u64 {
            let mut stream = pool.stream(stream_of, (n,));
            if n % 3 == 0 {
                let _ = stream.next().await;
            } else {
                assert_eq!(stream.by_ref().count().await as u64, n);
            }
        }
        eventually("all descriptors closed", || descriptors() <= here).await;
        assert!(theirs().await <= there);
    });
}
