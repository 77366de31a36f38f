//! What a pool does for its callers: the calls, their options, their results and errors.

#![cfg(target_os = "linux")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize, Serializer};
use support::{Notebook, eventually, note, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Error, Failure, NotStarted, Pool, Ran, TaskError};

async fn pool(context: mp::Context, processes: usize) -> Pool {
    Pool::builder().context(context).processes(processes).build().await.unwrap()
}

fn square(x: u64) -> u64 {
    x * x
}

fn multiply(a: u64, b: u64) -> u64 {
    a * b
}

fn parse(text: String) -> Result<i64, Failure> {
    Ok(text.parse::<i64>()?)
}

fn pid(_: u64) -> u32 {
    std::process::id()
}

fn endless(_: u32) {
    loop {
        std::thread::park();
    }
}

fn hold(notebook: String) {
    note(&notebook, "held");
    pass_gate(&notebook);
}

/// An input that panics at its item number `at`.
fn failing(length: u64, at: u64) -> impl Iterator<Item = u64> + Send + 'static {
    (0..length).inspect(move |item| assert!(*item != at, "the input fails"))
}

/// An input that tells its length and fails at its first step.
struct Sized(u64);

impl Iterator for Sized {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        panic!("the input fails")
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0 as usize, Some(self.0 as usize))
    }
}

impl ExactSizeIterator for Sized {}

fn assert_input_error(error: &TaskError) {
    assert!(
        matches!(error, TaskError::NotStarted(NotStarted::Input(why)) if why.contains("the input fails")),
        "{error:?}"
    );
    assert_eq!(error.ran(), Ran::No);
}

#[derive(Serialize, Deserialize, Default)]
struct Options {
    x: u64,
    wait: Option<Duration>,
}

fn square_with(options: Options) -> u64 {
    if let Some(time) = options.wait {
        std::thread::sleep(time);
    }
    options.x * options.x
}

// conformance: _TestPool.test_apply
#[test]
fn apply() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        assert_eq!(pool.apply(square, (5,)).await.unwrap(), 25);
        assert_eq!(pool.apply(square_with, (Options { x: 3, ..Options::default() },)).await.unwrap(), 9);
    });
}

#[test]
fn every_kind_of_function_is_a_task() {
    async fn later(x: u64) -> u64 {
        tokio::task::yield_now().await;
        x + 1
    }
    async fn later_or_not(text: String) -> Result<i64, Failure> {
        tokio::task::yield_now().await;
        parse(text)
    }
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        assert_eq!(pool.apply(|| 7u8, ()).await.unwrap(), 7);
        pool.apply(|_: u8| (), (1,)).await.unwrap();
        let sum = |a: u8, b: u16, c: u32, d: u64, e: i8, f: i16, g: i32, h: i64| {
            i64::from(a)
                + i64::from(b)
                + i64::from(c)
                + d as i64
                + i64::from(e)
                + i64::from(f)
                + i64::from(g)
                + h
        };
        assert_eq!(pool.apply(sum, (1, 2, 3, 4, 5, 6, 7, 8)).await.unwrap(), 36);
        assert_eq!(pool.apply(later, (41,)).await.unwrap(), 42);
        assert_eq!(pool.apply(later_or_not, ("7".to_owned(),)).await.unwrap(), 7);
        assert_eq!(pool.map(later, 0..4).await.unwrap(), [1, 2, 3, 4]);
        assert_eq!(pool.map(|x| async move { x * 2 }, vec![1u8, 2]).await.unwrap(), [2, 4]);
        let error = pool.apply(later_or_not, ("x".to_owned(),)).await.unwrap_err();
        assert!(matches!(error, TaskError::Returned(_)), "{error:?}");
    });
}

#[test]
fn closures_infer_their_argument_from_the_items() {
    run(20, async {
        let pool = Pool::new(2).await.unwrap();
        assert_eq!(
            pool.map(|text| text.len(), vec!["a".to_owned(), "bcd".to_owned()]).await.unwrap(),
            [1, 3]
        );
        assert_eq!(pool.starmap(|a, b| a + b, vec![(1u8, 2u8), (3, 4)]).await.unwrap(), [3, 7]);
        let lengths: Vec<usize> =
            pool.imap(|text| text.len(), vec!["ab".to_owned()]).try_collect().await.unwrap();
        assert_eq!(lengths, [2]);
    });
}

// conformance: _TestPool.test_starmap
#[test]
fn starmap() {
    run_each(30, async |context| {
        let pool = pool(context, 4).await;
        let pairs = |n: u64| (0..n).zip((0..n).rev());
        let expected = |n| pairs(n).map(|(a, b)| a * b).collect::<Vec<_>>();
        assert_eq!(pool.starmap(multiply, pairs(10)).await.unwrap(), expected(10));
        assert_eq!(pool.starmap(multiply, pairs(100)).chunk_size(20).await.unwrap(), expected(100));
        assert_eq!(pool.starmap(multiply, pairs(100)).chunk_size(20).submit().await.unwrap(), expected(100));
    });
}

#[test]
fn map_is_in_order_whatever_the_chunks() {
    run_each(60, async |context| {
        let pool = pool(context, 3).await;
        let expected: Vec<u64> = (0..1000).map(square).collect();
        for chunk in [1, 7, 100, 999, 1000, 5000] {
            assert_eq!(pool.map(square, 0..1000).chunk_size(chunk).await.unwrap(), expected, "{chunk}");
        }
        assert_eq!(pool.map(square, 0..1000).await.unwrap(), expected);
        // An input that does not tell its length.
        assert_eq!(pool.map(square, (0..2000).filter(|x| *x < 1000)).await.unwrap(), expected);
    });
}

// conformance: _TestPool.test_map_async
#[test]
fn map_async() {
    run_each(30, async |context| {
        let pool = pool(context, 4).await;
        let result = pool.map(square, 0..10).submit();
        assert_eq!(result.await.unwrap(), (0..10).map(square).collect::<Vec<_>>());
    });
}

/// What the callbacks of a call were given.
type Calls = Arc<Mutex<Vec<String>>>;

fn calls() -> (Calls, Calls) {
    Default::default()
}

fn taken(calls: &Calls) -> Vec<String> {
    std::mem::take(&mut calls.lock().unwrap())
}

// conformance: _TestPool.test_map_async_callbacks
#[test]
fn map_async_callbacks() {
    run_each(30, async |context| {
        let pool = pool(context, 4).await;
        let (values, errors) = calls();
        for (text, expected) in [("1", true), ("a", false)] {
            let (values_, errors_) = (values.clone(), errors.clone());
            let mut result = pool
                .map(parse, vec![text.to_owned()])
                .callback(move |value| values_.lock().unwrap().push(format!("{value:?}")))
                .error_callback(move |error: &TaskError| match error {
                    TaskError::Returned(error) => errors_.lock().unwrap().push(error.kind().to_owned()),
                    other => errors_.lock().unwrap().push(other.to_string()),
                })
                .submit();
            result.wait().await;
            // They have run by now: callbacks come before those who wait.
            let (values, errors) = (taken(&values), taken(&errors));
            if expected {
                assert_eq!((values, errors), (vec!["[1]".to_owned()], vec![]));
            } else {
                assert!(values.is_empty());
                assert!(errors.len() == 1 && errors[0].ends_with("ParseIntError"), "{errors:?}");
            }
            assert!(result.ready());
            assert_eq!(result.successful(), Some(expected));
            assert_eq!(result.await.is_ok(), expected);
        }
    });
}

#[test]
fn callbacks_of_every_kind_of_call() {
    run(30, async {
        let pool = Pool::new(2).await.unwrap();
        let (values, errors) = calls();
        let push = |calls: &Calls| {
            let calls = calls.clone();
            move |text: String| calls.lock().unwrap().push(text)
        };
        let (value, error) = (push(&values), push(&errors));
        let call = pool.apply(square, (3,)).callback(move |nine| value(nine.to_string()));
        let call = call.error_callback(move |failed: &TaskError| error(failed.to_string()));
        assert_eq!(call.await.unwrap(), 9);
        assert_eq!((taken(&values), taken(&errors)), (vec!["9".to_owned()], vec![]));

        // Also those of a call that never begins.
        let error = push(&errors);
        let call = pool
            .apply(square, (3,))
            .error_callback(move |aborted: &TaskError| error(format!("{:?}", aborted.ran())));
        let notebook = Notebook::new();
        let holding: Vec<_> = (0..2).map(|_| pool.apply(hold, (notebook.path(),)).submit()).collect();
        notebook.wait_for("held", 2).await;
        let result = call.submit();
        result.abort();
        assert!(result.await.is_err());
        assert_eq!(taken(&errors), ["No"]);
        notebook.open_gate();
        futures::future::try_join_all(holding).await.unwrap();

        // A callback may use the pool, and one that panics hurts nobody.
        let (again, then) = (pool.clone(), Arc::new(Mutex::new(None)));
        let next = then.clone();
        let call = pool.apply(square, (4,)).callback(move |sixteen: &u64| {
            *next.lock().unwrap() = Some(again.apply(square, (*sixteen,)).submit());
            panic!("a callback that panics");
        });
        assert_eq!(call.await.unwrap(), 16);
        let follower = then.lock().unwrap().take().unwrap();
        assert_eq!(follower.await.unwrap(), 256);
        let again = pool.clone();
        let (told, hear) = tokio::sync::oneshot::channel();
        let call = pool.apply(std::thread::park, ()).error_callback(move |_| {
            again.worker_pids();
            told.send(again.map(square, 0..3).submit()).unwrap();
        });
        let result = call.submit();
        result.abort();
        assert!(result.await.is_err());
        assert_eq!(hear.await.unwrap().await.unwrap(), [0, 1, 4]);
    });
}

// conformance: _TestPool.test_map_chunksize
#[test]
fn a_map_of_nothing_is_there_at_once() {
    run_each(20, async |context| {
        let pool = pool(context, 2).await;
        let mut result = pool.map(square, []).chunk_size(1).submit();
        assert_eq!(result.get_timeout(support::PATIENCE).await.unwrap(), Vec::<u64>::new());
    });
}

// conformance: _TestPool.test_map_handle_iterable_exception
#[test]
fn map_of_an_input_that_fails() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        for _ in 0..2 {
            assert_input_error(&pool.map(square, failing(1, 0)).chunk_size(1).await.unwrap_err());
        }
        assert_input_error(&pool.map(square, failing(10, 3)).chunk_size(1).await.unwrap_err());
        for _ in 0..2 {
            assert_input_error(&pool.map(square, Sized(1)).chunk_size(1).await.unwrap_err());
        }
        assert_input_error(&pool.map(square, failing(10, 3)).submit().await.unwrap_err());
        assert_eq!(pool.map(square, 0..10).await.unwrap()[9], 81);
    });
}

// conformance: _TestPool.test_async
#[test]
fn submit() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        let options = Options { x: 7, wait: Some(Duration::from_millis(100)) };
        let mut result = pool.apply(square_with, (options,)).submit();
        assert_eq!(result.successful(), None);
        assert_eq!((&mut result).await.unwrap(), 49);
    });
}

// conformance: _TestPool.test_async_timeout
#[test]
fn a_wait_that_times_out() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        let notebook = Notebook::new();
        let mut result = pool
            .apply(
                |path: String| {
                    hold(path);
                    49
                },
                (notebook.path(),),
            )
            .submit();
        for _ in 0..3 {
            let error = result.get_timeout(Duration::from_millis(30)).await.unwrap_err();
            assert!(matches!(error, Error::Timeout) && error.is_timeout(), "{error:?}");
        }
        assert!(!result.wait_timeout(Duration::ZERO).await);
        assert!(!result.ready() && result.successful().is_none());
        // The task goes on, and the handle too.
        notebook.open_gate();
        assert!(result.wait_timeout(support::PATIENCE).await);
        assert!(result.ready() && result.successful() == Some(true));
        assert_eq!(result.get_timeout(Duration::ZERO).await.unwrap(), 49);
        assert_eq!(notebook.count("held"), 1);

        let mut endless = pool
            .apply(
                || -> u8 {
                    loop {
                        std::thread::park()
                    }
                },
                (),
            )
            .submit();
        assert!(endless.get_timeout(Duration::from_millis(100)).await.unwrap_err().is_timeout());
        pool.terminate().await.unwrap();
        pool.join().await.unwrap();
        assert!(endless.await.is_err());
    });
}

// conformance: _TestPool.test_imap
#[test]
fn imap() {
    run_each(30, async |context| {
        let pool = pool(context, 4).await;
        for (length, chunk) in [(10, 1), (1000, 100)] {
            let mut stream = pool.imap(square, 0..length).chunk_size(chunk);
            for x in 0..length {
                assert_eq!(stream.next().await.unwrap().unwrap(), x * x);
            }
            for _ in 0..3 {
                assert!(stream.next().await.is_none());
            }
        }
        let squares: Vec<u64> = pool.imap(square, 0..10).try_collect().await.unwrap();
        assert_eq!(squares, (0..10).map(square).collect::<Vec<_>>());
    });
}

// conformance: _TestPool.test_imap_handle_iterable_exception
#[test]
fn imap_of_an_input_that_fails() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        for (length, at, chunk, before) in
            [(1, 0, 1, 0), (1, 0, 1, 0), (10, 3, 1, 3), (20, 7, 2, 6), (20, 7, 4, 4)]
        {
            let mut stream = pool.imap(square, failing(length, at)).chunk_size(chunk);
            for x in 0..before {
                assert_eq!(stream.next().await.unwrap().unwrap(), x * x);
            }
            // The chunk that was being read is lost with the input.
            assert_input_error(&stream.next().await.unwrap().unwrap_err());
            assert!(stream.next().await.is_none());
            assert!(stream.next().await.is_none());
        }
        assert_eq!(pool.apply(square, (2,)).await.unwrap(), 4);
    });
}

// conformance: _TestPool.test_imap_unordered
#[test]
fn imap_unordered() {
    run_each(30, async |context| {
        let pool = pool(context, 4).await;
        for (length, chunk) in [(10, 1), (1000, 1), (1000, 100)] {
            let stream = pool.imap_unordered(square, 0..length).chunk_size(chunk);
            let mut squares: Vec<u64> = stream.try_collect().await.unwrap();
            squares.sort_unstable();
            assert_eq!(squares, (0..length).map(square).collect::<Vec<_>>());
        }
    });
}

// conformance: _TestPool.test_imap_unordered_handle_iterable_exception
#[test]
fn imap_unordered_of_an_input_that_fails() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        for (length, at, chunk) in [(1, 0, 1), (1, 0, 1), (10, 3, 1), (20, 7, 2)] {
            let results: Vec<_> =
                pool.imap_unordered(square, failing(length, at)).chunk_size(chunk).collect().await;
            let mut expected: Vec<u64> = (0..at).map(square).collect();
            let mut errors = 0;
            for result in results {
                match result {
                    Ok(value) => {
                        let place = expected.iter().position(|known| *known == value);
                        expected.remove(place.unwrap_or_else(|| panic!("{value} is wrong or came twice")));
                    }
                    Err(error) => {
                        assert_input_error(&error);
                        errors += 1;
                    }
                }
            }
            assert_eq!(errors, 1);
            assert!(expected.len() < chunk, "{expected:?} are missing");
        }
    });
}

#[test]
fn one_worker_keeps_the_order() {
    run_each(30, async |context| {
        let pool = pool(context, 1).await;
        let squares: Vec<u64> = pool.imap_unordered(square, 0..500).try_collect().await.unwrap();
        assert_eq!(squares, (0..500).map(square).collect::<Vec<_>>());
    });
}

/// Unordered means that what is done comes, whatever was begun before it.
#[test]
fn imap_unordered_does_not_wait_for_the_slow() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        let notebook = Notebook::new();
        let items = vec![(0, notebook.path()), (1, String::new()), (2, String::new())];
        let task = |item: (u32, String)| {
            if !item.1.is_empty() {
                pass_gate(&item.1);
            }
            item.0
        };
        let mut stream = pool.imap_unordered(task, items.clone());
        let mut first = [stream.next().await.unwrap().unwrap(), stream.next().await.unwrap().unwrap()];
        first.sort_unstable();
        assert_eq!(first, [1, 2]);
        notebook.open_gate();
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        assert!(stream.next().await.is_none());
    });
}

// conformance: _TestPool.test_make_pool
#[test]
fn make_pool() {
    run_each(30, async |context| {
        let error = Pool::builder().context(context.clone()).processes(0).build().await.unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        let pool = pool(context, 3).await;
        assert_eq!(pool.processes(), 3);
        support::eventually("three workers", || pool.worker_pids().len() == 3).await;
        let mut pids = pool.worker_pids();
        assert!(pids.iter().all(|pid| support::runs(*pid)));
        pids.dedup();
        assert_eq!(pids.len(), 3);
    });
    run(20, async {
        assert!(matches!(Pool::new(0).await.unwrap_err(), Error::InvalidArgument(_)));
        let pool = Pool::builder().build().await.unwrap();
        assert_eq!(pool.processes(), mp::usable_cpu_count());
    });
}

// conformance: _TestPool.test_terminate
#[test]
fn terminate_does_not_wait_for_the_work() {
    run_each(40, async |context| {
        let pool = pool(context, 4).await;
        let mut result = pool.map(endless, 0..10_000).chunk_size(1).submit();
        assert!(!result.wait_timeout(Duration::from_millis(20)).await);
        let pids = pool.worker_pids();
        pool.terminate().await.unwrap();
        pool.join().await.unwrap();
        assert!(pids.iter().all(|pid| !support::runs(*pid)));
        let () = match result.await {
            Ok(units) => panic!("{} results of endless tasks", units.len()),
            Err(error) => assert!(error.ran() != Ran::Yes, "{error:?}"),
        };
    });
}

// conformance: _TestPool.test_empty_iterable
#[test]
fn nothing_gives_nothing() {
    run_each(30, async |context| {
        let pool = pool(context, 1).await;
        assert!(pool.map(square, []).await.unwrap().is_empty());
        assert!(pool.starmap(multiply, []).await.unwrap().is_empty());
        assert!(pool.imap(square, []).next().await.is_none());
        assert!(pool.imap_unordered(square, []).next().await.is_none());
        assert!(pool.map_stream(square, stream::empty()).next().await.is_none());
        assert!(pool.map(square, []).submit().await.unwrap().is_empty());
        pool.close();
        pool.join().await.unwrap();
    });
}

fn assert_closed<T: std::fmt::Debug>(result: Result<T, TaskError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, TaskError::NotStarted(NotStarted::Closed)), "{error:?}");
    assert_eq!(error.ran(), Ran::No);
    assert!(Error::from(error).is_closed());
}

// conformance: _TestPool.test_context
#[test]
fn a_scope_ends_in_terminate() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        let scope = pool.clone();
        assert_eq!(scope.map(square, 0..10).await.unwrap()[3], 9);
        scope.terminate().await.unwrap();
        assert_closed(pool.map(square, 0..10).submit().await);
    });
}

// conformance: _TestPool.test_enter
#[test]
fn a_closed_pool_takes_nothing() {
    run_each(30, async |context| {
        let pool = pool(context, 1).await;
        let before = pool.apply(square, (2,)).submit();
        let unpolled = pool.apply(square, (3,));
        pool.close();
        assert_closed(pool.apply(square, (3,)).await);
        assert_closed(pool.apply(square, (3,)).submit().await);
        assert_closed(pool.map(square, 0..3).await);
        assert_closed(pool.imap(square, 0..3).next().await.unwrap());
        assert_closed(pool.imap_unordered(square, 0..3).next().await.unwrap());
        assert_closed(pool.map_stream(square, stream::iter(0..3)).next().await.unwrap());
        assert_closed(unpolled.await);
        assert_eq!(before.await.unwrap(), 4);
        pool.join().await.unwrap();
        assert_closed(pool.apply(square, (3,)).await);
    });
}

#[track_caller]
fn line_after() -> u32 {
    std::panic::Location::caller().line() + 1
}

// conformance: _TestPool.test_traceback
#[test]
fn a_panic_comes_back_with_its_trace() {
    fn fails(n: u32) -> u32 {
        let expected = line_after();
        panic!("{n}: line {expected}");
    }
    run_each(30, async |context| {
        let pool = pool(context, 1).await;
        let worker = pool.apply(pid, (0,)).await.unwrap();
        let error = pool.apply(fails, (123,)).await.unwrap_err();
        assert_eq!(error.ran(), Ran::Yes);
        let TaskError::Panicked(panic) = &error else { panic!("{error:?}") };
        let line = panic.message.strip_prefix("123: line ").unwrap();
        assert!(panic.location.starts_with(&format!("{}:{line}:", file!())), "{panic:?}");
        assert!(panic.task.contains("fails"), "{panic:?}");
        assert_eq!(panic.pid, worker as i32);
        if std::env::var_os("RUST_BACKTRACE").is_none_or(|value| value != "0") {
            assert!(panic.backtrace.contains("fails"), "{}", panic.backtrace);
            assert!(format!("{panic:#}").contains(&panic.backtrace));
        }
        let shown = error.to_string();
        assert!(shown.contains(&panic.message) && shown.contains(&panic.location), "{shown}");

        // What fails here has no trace from over there.
        assert_input_error(&pool.map(square, failing(3, 1)).await.unwrap_err());
        assert_eq!(pool.apply(pid, (0,)).await.unwrap(), worker);
    });
}

#[test]
fn a_returned_error_comes_back_with_its_sources() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot read `{text}`")]
    struct Unreadable {
        text: String,
        source: std::num::ParseIntError,
    }
    fn read(text: String) -> Result<i64, Failure> {
        Ok(text.parse().map_err(|source| Unreadable { text: text.clone(), source })?)
    }
    fn boxed(text: String) -> Result<i64, Box<dyn std::error::Error + Send + Sync>> {
        Ok(text.parse()?)
    }
    run(20, async {
        let pool = Pool::new(1).await.unwrap();
        let error = pool.apply(read, ("x".to_owned(),)).await.unwrap_err();
        assert_eq!(error.ran(), Ran::Yes);
        let TaskError::Returned(returned) = &error else { panic!("{error:?}") };
        assert_eq!(returned.to_string(), "cannot read `x`");
        assert!(returned.kind().ends_with("Unreadable"), "{}", returned.kind());
        let source = std::error::Error::source(returned).unwrap();
        assert_eq!(source.to_string(), "x".parse::<i64>().unwrap_err().to_string());
        let error = pool.apply(boxed, ("x".to_owned(),)).await.unwrap_err();
        assert!(matches!(error, TaskError::Returned(_)), "{error:?}");
        assert_eq!(pool.apply(boxed, ("-5".to_owned(),)).await.unwrap(), -5);
    });
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Refusal {
    Odd(u64),
}

fn half(x: u64) -> Result<u64, Refusal> {
    if x.is_multiple_of(2) { Ok(x / 2) } else { Err(Refusal::Odd(x)) }
}

// conformance: _TestPool.test_wrapped_exception
#[test]
fn an_error_of_the_callers_own_type_comes_back_as_it_is() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        assert_eq!(pool.apply(half, (3,)).await.unwrap(), Err(Refusal::Odd(3)));
        assert_eq!(pool.map(half, 0..3).await.unwrap(), [Ok(0), Err(Refusal::Odd(1)), Ok(1)]);
        let streamed: Vec<_> = pool.imap(half, 0..3).try_collect().await.unwrap();
        assert_eq!(streamed, [Ok(0), Err(Refusal::Odd(1)), Ok(1)]);
        assert_eq!(pool.apply(half, (5,)).submit().await.unwrap(), Err(Refusal::Odd(5)));
    });
}

// conformance: _TestPool.test_map_no_failfast
#[test]
fn map_runs_all_before_it_fails() {
    fn fail(notebook: String, late: bool) -> Result<(), Failure> {
        if late {
            // Not before the pool knows of the other one's failure.
            pass_gate(&notebook);
        }
        note(&notebook, if late { "last" } else { "first" });
        Err(Failure::msg(if late { "last " } else { "first " }.to_owned() + &"x".repeat(1 << 20)))
    }
    run_each(40, async |context| {
        let pool = pool(context, 2).await;
        let notebook = Notebook::new();
        let items = [(notebook.path(), true), (notebook.path(), false)];
        let failing = pool.starmap(fail, items).chunk_size(1).submit();
        eventually("the first failure", || pool.stats().unwrap().failed == 1).await;
        assert!(!failing.ready());
        notebook.open_gate();
        let error = failing.await.unwrap_err();
        assert_eq!(notebook.notes(), ["first", "last"]);
        // The first by position, not by time.
        let message = error.to_string();
        assert!(
            message.len() > 1 << 20 && message.contains("last "),
            "{} bytes: {message:.80}",
            message.len()
        );
        pool.close();
        pool.join().await.unwrap();
    });
}

/// A value that no codec can write.
#[derive(Debug, Deserialize)]
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("this is not written"))
    }
}

// conformance: _TestPoolWorkerErrors.test_async_error_callback
#[test]
fn error_callback() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        let (values, errors) = calls();
        let (values_, errors_) = (values.clone(), errors.clone());
        let fail = || -> Result<u8, Failure> { Err(Failure::msg("no such key")) };
        let mut result = pool
            .apply(fail, ())
            .callback(move |value: &u8| values_.lock().unwrap().push(value.to_string()))
            .error_callback(move |error: &TaskError| errors_.lock().unwrap().push(error.to_string()))
            .submit();
        let error = result.get_timeout(support::PATIENCE).await.unwrap_err();
        assert!(matches!(&error, Error::Task(TaskError::Returned(_))), "{error:?}");
        assert_eq!(error.to_string(), "no such key");
        assert_eq!((taken(&values), taken(&errors)), (vec![], vec!["no such key".to_owned()]));
    });
}

// conformance: _TestPoolWorkerErrors.test_unpickleable_result
#[test]
fn a_result_that_cannot_be_written() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        support::eventually("two workers", || pool.worker_pids().len() == 2).await;
        let pids = pool.worker_pids();
        for _ in 0..20 {
            let (_, errors) = calls();
            let errors_ = errors.clone();
            let call = pool.apply(|| Unwritable, ());
            let call =
                call.error_callback(move |error: &TaskError| errors_.lock().unwrap().push(error.to_string()));
            let error = call.submit().await.unwrap_err();
            let TaskError::Unencodable { reason, value } = &error else { panic!("{error:?}") };
            assert!(reason.contains("this is not written"), "{reason}");
            assert!(value.contains("Unwritable"), "{value}");
            assert_eq!(error.ran(), Ran::Yes);
            assert_eq!(taken(&errors), [error.to_string()]);
        }
        assert_eq!(pool.worker_pids(), pids);
        assert_eq!(pool.apply(square, (2,)).await.unwrap(), 4);
    });
}

// conformance: TestStdinBadfiledescriptor.test_pool_in_process
#[test]
fn a_child_has_a_pool_of_its_own() {
    async fn child() {
        let pool = Pool::new(4).await.unwrap();
        let squares = pool.map(square, 0..7).await.unwrap();
        assert_eq!(squares, (0..7).map(square).collect::<Vec<_>>());
        pool.close();
        pool.join().await.unwrap();
    }
    run_each(60, async |context| {
        let child = context.process(child, ()).start().await.unwrap();
        assert_eq!(child.join().await.unwrap().exit_code(), 0);
    });
}

#[test]
fn a_daemon_or_a_worker_has_none() {
    async fn refused() -> String {
        let error = Pool::new(1).await.unwrap_err();
        if matches!(error, Error::DaemonicChild) { "refused".to_owned() } else { format!("{error:?}") }
    }
    run_each(30, async |context| {
        let daemon = context.process(async || assert_eq!(refused().await, "refused"), ()).daemon(true);
        assert_eq!(daemon.start().await.unwrap().join().await.unwrap().exit_code(), 0);
        let pool = pool(context, 1).await;
        assert_eq!(pool.apply(refused, ()).await.unwrap(), "refused");
    });
}

#[test]
fn streams_as_inputs() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        let (send, receive) = futures::channel::mpsc::channel(1);
        let mut results = pool.map_stream(square, receive);
        let mut send = Some(send);
        // One at a time: each result comes although the input has not ended.
        for x in 0..10 {
            let sender = send.as_mut().unwrap();
            futures::SinkExt::send(sender, x).await.unwrap();
            assert_eq!(results.next().await.unwrap().unwrap(), x * x);
        }
        drop(send.take());
        assert!(results.next().await.is_none());

        let mut squares: Vec<u64> =
            pool.map_stream_unordered(square, stream::iter(0..100)).try_collect().await.unwrap();
        squares.sort_unstable();
        assert_eq!(squares, (0..100).map(square).collect::<Vec<_>>());
        let chunked = pool.map_stream(square, stream::iter(0..100)).chunk_size(7);
        assert_eq!(chunked.try_collect::<Vec<_>>().await.unwrap(), squares);
    });
}

/// A pool as a stage between two streams, and a chain of two such stages.
#[test]
fn stages_in_a_row() {
    run(30, async {
        let (first, second) = (Pool::new(1).await.unwrap(), Pool::new(1).await.unwrap());
        let squares = first.imap(square, 0..50).map(Result::unwrap);
        let results: Vec<u64> = second.map_stream(|x| x + 1, squares).try_collect().await.unwrap();
        assert_eq!(results, (0..50).map(|x| x * x + 1).collect::<Vec<_>>());
    });
}

#[test]
fn look_ahead_is_bounded() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        for (chunk, buffer) in [(1, 4), (5, 20)] {
            let pulled = Arc::new(AtomicUsize::new(0));
            let counter = pulled.clone();
            let endless = (0u64..).inspect(move |_| {
                counter.fetch_add(1, Ordering::SeqCst);
            });
            let mut stream = pool.imap(square, endless).chunk_size(chunk).buffer_size(buffer);
            // Lazy: nothing is read before somebody wants a result.
            assert_eq!(pulled.load(Ordering::SeqCst), 0);
            for taken in 1..=100 {
                stream.next().await.unwrap().unwrap();
                let pulled = pulled.load(Ordering::SeqCst);
                assert!(pulled <= taken + buffer, "{pulled} read when {taken} were taken");
            }
        }
        // Without options there is a bound too.
        let pulled = Arc::new(AtomicUsize::new(0));
        let counter = pulled.clone();
        let endless = std::iter::repeat_with(move || counter.fetch_add(1, Ordering::SeqCst) as u64);
        let mut stream = pool.imap_unordered(square, endless);
        stream.next().await.unwrap().unwrap();
        assert!(pulled.load(Ordering::SeqCst) < 100_000);
    });
}

#[test]
fn next_timeout_loses_nothing() {
    run_each(30, async |context| {
        let pool = pool(context, 1).await;
        let notebook = Notebook::new();
        let path = notebook.path();
        let items = (0..3u32).map(move |x| (x, path.clone()));
        let mut stream = pool.imap(
            |item: (u32, String)| {
                pass_gate(&item.1);
                item.0
            },
            items,
        );
        for _ in 0..5 {
            let error = stream.next_timeout(Duration::from_millis(10)).await.unwrap_err();
            assert!(error.is_timeout(), "{error:?}");
        }
        notebook.open_gate();
        for x in 0..3 {
            let next = stream.next_timeout(support::PATIENCE).await.unwrap();
            assert_eq!(next, Some(x));
        }
        assert!(stream.next_timeout(support::PATIENCE).await.unwrap().is_none());
        assert!(stream.next_timeout(Duration::ZERO).await.unwrap().is_none());
    });
}

#[test]
fn one_failure_in_a_stream_is_one_item() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        for chunk in [1, 3, 20] {
            let results: Vec<_> = pool
                .imap(
                    |x: u64| {
                        assert!(x % 7 != 3);
                        x
                    },
                    0..20,
                )
                .chunk_size(chunk)
                .collect()
                .await;
            assert_eq!(results.len(), 20);
            for (x, result) in (0..20).zip(results) {
                match result {
                    Ok(value) => assert!(value == x && x % 7 != 3),
                    Err(error) => {
                        assert!(x % 7 == 3 && matches!(error, TaskError::Panicked(_)), "{x}: {error:?}")
                    }
                }
            }
        }
    });
}

#[test]
fn first_error_by_position() {
    run_each(30, async |context| {
        let pool = pool(context, 3).await;
        let notebook = Notebook::new();
        let path = notebook.path();
        let task = |x: u32, path: String| {
            note(&path, x);
            assert!(x < 5, "item {x}");
            x
        };
        let error =
            pool.starmap(task, (0..60).map(move |x| (x, path.clone()))).chunk_size(2).await.unwrap_err();
        assert!(matches!(&error, TaskError::Panicked(panic) if panic.message == "item 5"), "{error:?}");
        let mut notes: Vec<u32> = notebook.notes().iter().map(|note| note.parse().unwrap()).collect();
        notes.sort_unstable();
        assert_eq!(notes, (0..60).collect::<Vec<_>>());
    });
}

#[test]
fn sizes_from_nothing_to_many_times_the_ring() {
    run_each(60, async |context| {
        let pool = pool(context, 2).await;
        for size in [0, 1, 64 << 10, (64 << 10) + 1, (256 << 10) - 8, 256 << 10, (256 << 10) + 1, 600_000] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let echo = |mut bytes: Vec<u8>| {
                bytes.push(255);
                bytes
            };
            let echoed = pool.apply(echo, (bytes.clone(),)).await.unwrap();
            assert!(echoed.split_last() == Some((&255, &bytes[..])), "{size} bytes");
        }
        // Large in one direction only.
        assert_eq!(pool.apply(|bytes: Vec<u8>| bytes.len(), (vec![7; 1 << 20],)).await.unwrap(), 1 << 20);
        assert!(pool.apply(|| vec![7u8; 1 << 20], ()).await.unwrap() == vec![7; 1 << 20]);
        // Many at a time, so that the rings fill up in both directions.
        let echoed = pool.map(|text: String| text, (0..200).map(|i| "x".repeat(i * 100)));
        let lengths: Vec<usize> = echoed.await.unwrap().iter().map(String::len).collect();
        assert_eq!(lengths, (0..200).map(|i| i * 100).collect::<Vec<_>>());
        let big: Vec<_> = pool.imap(|i: u8| vec![i; 300 << 10], 0..10).try_collect().await.unwrap();
        assert!(
            big.iter().zip(0..).all(|(bytes, i)| bytes.len() == 300 << 10 && bytes.iter().all(|b| *b == i))
        );
    });
}

#[test]
fn blobs_travel_both_ways() {
    fn double(blob: mp::Blob) -> mp::Blob {
        mp::Blob::new(blob.iter().map(|byte| byte.wrapping_mul(2)).collect::<Vec<_>>()).unwrap()
    }
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        let blob = mp::Blob::new(vec![21; 1 << 20]).unwrap();
        assert_eq!(pool.apply(double, (blob.clone(),)).await.unwrap()[..], vec![42; 1 << 20]);
        let doubled = pool.map(double, (0..20).map(|i| mp::Blob::new([i]).unwrap())).await.unwrap();
        assert!(doubled.iter().zip(0..).all(|(blob, i)| blob[..] == [2 * i]));
        // Several in one message, also when a chunk holds many such messages.
        let pairs = (0..30u8).map(|i| (mp::Blob::new([i]).unwrap(), mp::Blob::new([i, i]).unwrap()));
        let swapped = pool.starmap(|a: mp::Blob, b: mp::Blob| (b, a), pairs).chunk_size(10).await.unwrap();
        assert!(swapped.iter().zip(0..).all(|((b, a), i)| a[..] == [i] && b[..] == [i, i]));
        drop((doubled, swapped, blob));
    });
}

#[test]
fn many_callers_at_once() {
    run_each(60, async |context| {
        let pool = pool(context, 4).await;
        let callers = (0..200u64).map(|i| {
            let pool = pool.clone();
            tokio::spawn(async move {
                assert_eq!(pool.apply(square, (i,)).await.unwrap(), i * i);
                let sum: u64 = pool.map(|x| x + 1, vec![i; 20]).await.unwrap().iter().sum();
                assert_eq!(sum, 20 * (i + 1));
                let last = pool.imap(square, 0..10).try_fold(0, async |_, x| Ok(x)).await.unwrap();
                assert_eq!(last, 81);
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
    });
}

#[test]
fn a_call_does_nothing_until_it_is_wanted() {
    run(20, async {
        let pool = Pool::new(1).await.unwrap();
        let notebook = Notebook::new();
        let lazy = pool.apply(|path: String| note(&path, "ran"), (notebook.path(),));
        assert_eq!(pool.apply(square, (2,)).await.unwrap(), 4);
        assert_eq!(notebook.count("ran"), 0);
        lazy.await.unwrap();
        assert_eq!(notebook.count("ran"), 1);
        let eager = pool.apply(|path: String| note(&path, "ran"), (notebook.path(),)).submit();
        notebook.wait_for("ran", 2).await;
        eager.await.unwrap();
    });
}

#[test]
fn max_pending_holds_submissions_back() {
    run_each(30, async |context| {
        let pool = Pool::builder().context(context).processes(1).max_pending(2).build().await.unwrap();
        let notebook = Notebook::new();
        let results: Vec<_> = (0..10u64)
            .map(|i| {
                pool.apply(
                    |i: u64, path: String| {
                        pass_gate(&path);
                        note(&path, i);
                        i
                    },
                    (i, notebook.path()),
                )
                .submit()
            })
            .collect();
        assert!(results.iter().all(|result| !result.ready()));
        // One that is dropped while it waits for its turn takes no place.
        let mut waiting = Box::pin(pool.apply(square, (1,)));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(waiting);
        notebook.open_gate();
        for (i, result) in (0..).zip(results) {
            assert_eq!(result.await.unwrap(), i);
        }
        notebook.assert_no_repetition();
        assert_eq!(pool.map(square, 0..100).await.unwrap().len(), 100);
        let streamed: Vec<u64> = pool.imap(square, 0..100).try_collect().await.unwrap();
        assert_eq!(streamed.len(), 100);
    });
}

/// Of the pool's few places none is lost to what never came to wait.
#[test]
fn arguments_that_cannot_be_encoded_take_no_place_of_max_pending() {
    struct Secret;
    impl serde::Serialize for Secret {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("a secret"))
        }
    }
    impl<'de> serde::Deserialize<'de> for Secret {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Ok(Self)
        }
    }
    run(30, async {
        let pool = Pool::builder().processes(1).max_pending(1).build().await.unwrap();
        for _ in 0..3 {
            let error = pool.apply(|_: Secret| (), (Secret,)).await.unwrap_err();
            assert!(matches!(error, TaskError::NotStarted(NotStarted::Unencodable(_))), "{error:?}");
            let mut stream = pool.stream(|_: Secret| 0..3, (Secret,));
            assert!(stream.next().await.unwrap().is_err());
        }
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
    });
}

#[test]
fn an_idle_worker_takes_over_what_waits_behind_a_slow_task() {
    run_each(30, async |context| {
        let pool = pool(context, 2).await;
        let notebook = Notebook::new();
        let path = notebook.path();
        // The first item holds its worker up: the others must all get past it.
        let items = (0..40u32).map(move |i| (i, path.clone()));
        let task = |i: u32, path: String| {
            if i == 0 {
                pass_gate(&path);
            }
            note(&path, i);
            i
        };
        let result = pool.starmap(task, items).chunk_size(10).submit();
        support::eventually("39 notes", || notebook.notes().len() == 39).await;
        assert!(!result.ready());
        notebook.open_gate();
        assert_eq!(result.await.unwrap(), (0..40).collect::<Vec<_>>());
        notebook.assert_no_repetition();
    });
}

#[test]
fn worker_names_are_the_pools() {
    run(20, async {
        let pool = Pool::builder().processes(1).name("mill").build().await.unwrap();
        let name = pool.apply(|| mp::current_process().name(), ()).await.unwrap();
        assert!(name.contains("mill"), "{name}");
        assert!(pool.apply(|| mp::current_process().daemon(), ()).await.unwrap());
    });
}

#[test]
fn sync_code_waits_with_block_on() {
    let _guard = support::guard(20);
    let runtime = support::multi_thread();
    let pool = runtime.block_on(Pool::new(2)).unwrap();
    let caller = std::thread::spawn({
        let pool = pool.clone();
        move || mp::block_on(pool.apply(square, (6,))).unwrap().unwrap()
    });
    assert_eq!(caller.join().unwrap(), 36);
}

/// Results that are there are taken with Tokio's consent: others get their turn.
#[test]
fn ready_results_spend_the_coop_budget() {
    let _guard = support::guard(20);
    support::current_thread().block_on(async {
        let pool = Pool::new(1).await.unwrap();
        let results: Vec<_> = (0..1000).map(|x| pool.apply(square, (x,)).submit()).collect();
        support::eventually("all results", || results.iter().all(mp::AsyncResult::ready)).await;
        let ran = Arc::new(AtomicBool::new(false));
        let other = ran.clone();
        let other = tokio::spawn(async move { other.store(true, Ordering::SeqCst) });
        for result in results {
            result.await.unwrap();
        }
        assert!(ran.load(Ordering::SeqCst));
        other.await.unwrap();
    });
}

#[test]
fn futures_are_send_sync_unpin_and_static() {
    fn check<T: Send + Sync + Unpin + 'static>() {}
    fn check_value<T: Send + Sync + Unpin + 'static>(value: T) {
        drop(value);
    }
    check::<Pool>();
    check::<mp::PoolBuilder>();
    // Values that are themselves not `Sync`.
    type Value = std::cell::Cell<u8>;
    check::<mp::Apply<Value>>();
    check::<mp::Map<Value>>();
    check::<mp::AsyncResult<Value>>();
    check::<mp::MapStream<Value>>();
    run(20, async {
        let pool = Pool::new(1).await.unwrap();
        // Nor need inputs be.
        let items = std::iter::repeat_with(|| Value::new(1)).take(2);
        check_value(pool.apply(|cell: Value| cell, (Value::new(1),)));
        check_value(pool.map(|cell: Value| cell, items.clone()));
        check_value(pool.imap(|cell: Value| cell, items));
        check_value(pool.map_stream(|cell: Value| cell, stream::iter([Value::new(1)])));
    });
}

#[test]
fn a_pool_has_defaults_that_calls_override() {
    run(60, async {
        let builder = || Pool::builder().processes(1);
        let hasty = builder().timeout(Duration::from_millis(50)).build().await.unwrap();
        assert!(matches!(hasty.apply(endless, (1,)).await, Err(TaskError::TimedOut)));
        assert!(matches!(hasty.map(endless, [1]).await, Err(TaskError::TimedOut)));
        let longer = || std::thread::sleep(Duration::from_millis(200));
        hasty.apply(longer, ()).timeout(Duration::MAX).await.unwrap();

        let tidy = builder().kill_on_drop().build().await.unwrap();
        drop(tidy.apply(endless, (1,)).submit());
        // There is one worker only, which would never come to this.
        tidy.apply(|| (), ()).await.unwrap();
    });
}
