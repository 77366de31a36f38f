//! Functions that give many values, and those that take them.

#![cfg(target_os = "linux")]

mod support;

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use serde_bytes::ByteBuf;
use support::{Notebook, eventually, guard, kill_9, note, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::task::Input;
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
        assert_eq!(all(pool.stream(std::iter::empty::<u8>, ())).await.0, [0u8; 0]);
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

/// A stream that notes its end.
fn noted<S: Stream>(notebook: &Notebook, stream: S) -> impl Stream<Item = S::Item> + use<S> {
    let end = NotesEnd(notebook.path());
    stream.inspect(move |_| {
        let _ = &end;
    })
}

fn sum(input: Input<u64>) -> Result<u64, Failure> {
    let mut sum = 0;
    for value in input {
        sum += value?;
    }
    Ok(sum)
}

async fn sum_later(input: Input<u64>) -> Result<u64, Failure> {
    Ok(input.try_fold(0, async |sum, value| Ok(sum + value)).await?)
}

#[test]
fn a_task_reads_a_stream() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(2).build().await.unwrap();
        const N: u64 = 20_000;
        let notebook = Notebook::new();
        let input = || Input::new(noted(&notebook, stream::iter(0..N))).unwrap();
        assert_eq!(pool.apply(sum, (input(),)).await.unwrap(), N * (N - 1) / 2);
        assert_eq!(pool.apply(sum_later, (input(),)).await.unwrap(), N * (N - 1) / 2);
        let slow = stream::iter(0..10u64).then(async |n| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            n
        });
        assert_eq!(pool.apply(sum_later, (Input::new(slow).unwrap(),)).await.unwrap(), 45);
        assert_eq!(pool.apply(sum, (Input::new(stream::empty()).unwrap(),)).await.unwrap(), 0);
        notebook.wait_for("dropped", 2).await;
    });
}

#[test]
fn inputs_hold_values_of_any_size_and_handles() {
    fn lengths(input: Input<(ByteBuf, Option<Blob>)>) -> Result<Vec<(usize, usize)>, Failure> {
        input
            .into_iter()
            .map(|value| Ok(value.map(|(bytes, blob)| (bytes.len(), blob.map_or(0, |blob| blob.len())))?))
            .collect()
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let value = |len: usize, blob: Option<usize>| {
            (ByteBuf::from(vec![1; len]), blob.map(|len| Blob::new(vec![2; len]).unwrap()))
        };
        let values = [
            value(1, None),
            value(2 << 20, Some(7)),
            value(3, Some(1 << 20)),
            value(40_000, None),
            value(0, None),
        ];
        let input = Input::new(stream::iter(values)).unwrap();
        let lengths = pool.apply(lengths, (input,)).await.unwrap();
        assert_eq!(lengths, [(1, 0), (2 << 20, 7), (3, 1 << 20), (40_000, 0), (0, 0)]);
    });
}

/// What waits for its task costs no more than the caller's stream does.
#[test]
fn nothing_is_read_before_the_task_asks_for_it() {
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let input = || {
            let count = read.clone();
            let counts = move |n: &u64| _ = count.fetch_add(*n, Ordering::Relaxed);
            Input::new(stream::iter(0..10u64).inspect(counts)).unwrap()
        };
        let (input, unread) = (input(), input());
        for _ in 0..10 {
            pool.apply(|| (), ()).await.unwrap();
        }
        assert_eq!(read.load(Ordering::Relaxed), 0);
        drop(unread);
        assert_eq!(pool.apply(sum, (input,)).await.unwrap(), 45);
        assert_eq!(read.load(Ordering::Relaxed), 45);
    });
}

/// A stage in a pipeline: many values in, many values out, as they come.
#[test]
fn values_go_in_and_out_at_the_same_time() {
    fn doubled(input: Input<u64>) -> impl Stream<Item = Result<u64, Failure>> {
        input.map(|value| Ok(2 * value?))
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let mut doubled = pool.stream(doubled, (Input::new(receiver).unwrap(),));
        for n in 0..100 {
            // The next value depends on the last answer.
            sender.unbounded_send(n).unwrap();
            assert_eq!(doubled.next().await.unwrap().unwrap(), 2 * n);
        }
        drop(sender);
        assert!(doubled.next().await.is_none());
    });
}

#[test]
fn the_callers_stream_is_dropped_with_its_reader() {
    fn first(mut input: Input<u64>) -> Result<u64, Failure> {
        Ok(input.next_blocking().unwrap()?)
    }
    fn dies(mut input: Input<u64>) -> Result<u64, Failure> {
        let _ = input.next_blocking();
        std::process::abort();
    }
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let notebook = Notebook::new();
        let endless = || Input::new(noted(&notebook, stream::iter(0u64..))).unwrap();
        let waiting = || Input::new(noted(&notebook, stream::iter([7]).chain(stream::pending()))).unwrap();
        assert_eq!(pool.apply(first, (endless(),)).await.unwrap(), 0);
        notebook.wait_for("dropped", 1).await;
        assert_eq!(pool.apply(first, (waiting(),)).await.unwrap(), 7);
        notebook.wait_for("dropped", 2).await;
        for (input, dropped) in [(endless(), 3), (waiting(), 4)] {
            assert!(matches!(pool.apply(dies, (input,)).await, Err(TaskError::WorkerDied(_))));
            notebook.wait_for("dropped", dropped).await;
        }
        // Never sent.
        drop(waiting());
        notebook.wait_for("dropped", 5).await;
    });
}

#[test]
fn an_input_that_is_cut_short_or_read_before_is_an_error() {
    fn read_all(input: Input<u64>) -> (u64, Option<String>) {
        let mut values: Vec<_> = input.into_iter().collect();
        let error = values.pop_if(|last| last.is_err()).and_then(Result::err).map(|error| error.to_string());
        assert!(values.iter().all(Result::is_ok));
        (values.len() as u64, error)
    }
    fn dies_once(mut input: Input<u64>) -> (u64, Option<String>) {
        if mp::task::current().unwrap().attempt() == 0 {
            let _ = input.next_blocking();
            std::process::abort();
        }
        read_all(input)
    }
    fn dies_unread(input: Input<u64>) -> (u64, Option<String>) {
        if mp::task::current().unwrap().attempt() == 0 {
            std::process::abort();
        }
        read_all(input)
    }
    #[derive(serde::Deserialize)]
    struct Secret(#[allow(dead_code, reason = "only its type matters")] u64);
    impl serde::Serialize for Secret {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("a secret"))
        }
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let panics = stream::iter(0..10u64).inspect(|n| assert!(*n < 5, "on purpose"));
        let (_, error) = pool.apply(read_all, (Input::new(panics).unwrap(),)).await.unwrap();
        assert!(error.as_ref().is_some_and(|error| error.contains("cut short")), "{error:?}");
        let all = || Input::new(stream::iter(0..1_000_000u64)).unwrap();
        let (_, error) = pool.apply(dies_once, (all(),)).retries(1).await.unwrap();
        assert!(error.as_ref().is_some_and(|error| error.contains("another attempt")), "{error:?}");
        assert_eq!(pool.apply(dies_unread, (all(),)).retries(1).await.unwrap(), (1_000_000, None));
        let secret = Input::new(stream::iter([Secret(1)])).unwrap();
        let why = pool.apply(
            |mut input: Input<Secret>| input.next_blocking().unwrap().err().unwrap().to_string(),
            (secret,),
        );
        let why = why.await.unwrap();
        assert!(why.contains("a secret"), "{why}");
        // Read by who made it.
        let here: Vec<u64> = all().take(3).try_collect().await.unwrap();
        assert_eq!(here, [0, 1, 2]);
    });
}
