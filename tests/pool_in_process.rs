//! The pool on threads: what is as with processes, and what cannot be.

#![cfg(target_os = "linux")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{StreamExt, TryStreamExt};
use support::{Notebook, children, eventually, note, noted, pass_gate, run};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Failure, NotStarted, Pool, Ran, TaskError};

async fn pool(threads: usize) -> Pool {
    Pool::builder().in_process().processes(threads).build().await.unwrap()
}

fn square(x: u64) -> u64 {
    x * x
}

fn held(notebook: String) {
    note(&notebook, "held");
    pass_gate(&notebook);
    note(&notebook, "let go");
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// How many threads of this process have a name that begins so.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}

#[test]
fn calls_of_every_kind_without_a_process() {
    static CALLED: AtomicUsize = AtomicUsize::new(0);
    run(60, async {
        let before = children();
        let pool = pool(2).await;
        pool.ready().await.unwrap();
        let pid = pool.apply(std::process::id, ()).await.unwrap();
        assert_eq!(pid, std::process::id());
        assert_eq!((children(), pool.worker_pids()), (before, vec![]));
        let squares = pool.map(square, 0..10_000).await.unwrap();
        assert_eq!(squares, (0..10_000).map(square).collect::<Vec<_>>());
        let streamed: Vec<u64> = pool.imap(square, 0..100).try_collect().await.unwrap();
        assert_eq!(streamed[99], 99 * 99);
        let products = pool.starmap(|a: u64, b: u64| a * b, [(2, 3), (4, 5)]).await.unwrap();
        assert_eq!(products, [6, 20]);
        let name = pool.apply(thread_name, ()).await.unwrap();
        assert!(name.starts_with("PoolWorker-"), "{name}");
        // Statics are this process's.
        let call = |_: u32| CALLED.fetch_add(1, Ordering::SeqCst);
        pool.map(call, 0..50).await.unwrap();
        assert_eq!(CALLED.load(Ordering::SeqCst), 50);
        let blob = mp::Blob::new(vec![7; 3 << 20]).unwrap();
        let back = pool.apply(|blob: mp::Blob| blob, (blob,)).await.unwrap();
        assert_eq!((back.len(), back[1 << 20]), (3 << 20, 7));
        let long = pool.apply(|bytes: Vec<u8>| bytes, (vec![1; 2 << 20],)).await.unwrap();
        assert_eq!(long.len(), 2 << 20);
        pool.close();
        pool.join().await.unwrap();
        eventually("no thread", || threads("PoolWorker") == 0).await;
    });
}

#[test]
fn errors_are_as_those_of_processes() {
    fn refuse(x: i64) -> Result<i64, Failure> {
        if x == 0 { Err(Failure::msg("nothing")) } else { Ok(x) }
    }
    fn panicking(_: u64) -> u64 {
        panic!("so be it")
    }
    run(60, async {
        let pool = pool(1).await;
        let panicked = pool.apply(panicking, (1,)).await.unwrap_err();
        let TaskError::Panicked(panic) = &panicked else { panic!("{panicked:?}") };
        assert_eq!((&panic.message[..], panic.pid), ("so be it", std::process::id() as i32));
        assert!(panic.location.contains(file!()) && panic.task.contains("panicking"), "{panic:?}");
        assert!(matches!(pool.apply(refuse, (0,)).await, Err(TaskError::Returned(_))));
        assert_eq!(pool.apply(refuse, (1,)).await.unwrap(), 1);
        pool.close();
        let closed = pool.apply(square, (1,)).await.unwrap_err();
        assert!(matches!(closed, TaskError::NotStarted(NotStarted::Closed)), "{closed:?}");
    });
}

/// The thread runs on, and what it says at its end goes to nobody.
#[test]
fn a_timeout_is_told_at_once_and_a_new_thread_takes_its_place() {
    run(60, async {
        let pool = pool(1).await;
        let notebook = Notebook::new();
        let path = notebook.path();
        let late = pool.apply(held, (path.clone(),)).timeout(Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(late, TaskError::TimedOut), "{late:?}");
        assert_eq!(late.ran(), Ran::Maybe);
        assert_eq!(pool.map(square, 0..100).await.unwrap()[9], 81);
        assert_eq!(notebook.count("let go"), 0);
        notebook.open_gate();
        notebook.wait_for("let go", 1).await;
        eventually("the old thread's end", || threads("PoolWorker") == 1).await;
        assert_eq!(pool.map(square, 0..100).await.unwrap()[9], 81);
    });
}

/// What waits in the ring of a thread that is given up runs elsewhere, and once.
#[test]
fn what_was_not_begun_runs_elsewhere() {
    fn work((x, path): (u64, String)) -> u64 {
        if x == 0 {
            held(path);
        } else {
            note(&path, format_args!("item {x}"));
        }
        x
    }
    run(60, async {
        let pool = pool(1).await;
        let notebook = Notebook::new();
        let path = notebook.path();
        let items = (0..20).map(move |x| (x, path.clone()));
        let results: Vec<_> =
            pool.imap(work, items).chunk_size(20).timeout(Duration::from_millis(100)).collect().await;
        assert!(matches!(results[0], Err(TaskError::TimedOut)), "{:?}", results[0]);
        assert!(results[1..].iter().all(Result::is_ok), "{results:?}");
        notebook.open_gate();
        notebook.wait_for("let go", 1).await;
        notebook.assert_no_repetition();
    });
}

#[test]
fn abort_and_terminate_wait_for_no_task() {
    run(60, async {
        let pool = pool(2).await;
        let notebook = Notebook::new();
        let result = pool.apply(held, (notebook.path(),)).submit();
        let other = pool.apply(held, (notebook.path(),)).submit();
        notebook.wait_for("held", 2).await;
        result.abort();
        let aborted = result.await.unwrap_err();
        assert!(matches!(aborted, TaskError::Aborted { began: true }), "{aborted:?}");
        pool.terminate().await.unwrap();
        let aborted = other.await.unwrap_err();
        assert!(matches!(aborted, TaskError::Aborted { began: true }), "{aborted:?}");
        assert_eq!(notebook.count("let go"), 0);
        notebook.open_gate();
        eventually("the threads' end", || threads("PoolWorker") == 0).await;
    });
}

/// A thread that is given up while its replies find no room would wait for room for ever.
#[test]
fn a_dropped_pool_leaves_no_thread() {
    fn verbose(x: u64) -> Vec<u64> {
        vec![x; 3_000]
    }
    run(60, async {
        for _ in 0..20 {
            let pool = pool(2).await;
            let mut results = pool.imap(verbose, 0..10_000).buffer_size(500);
            assert_eq!(results.next().await.unwrap().unwrap().len(), 3_000);
        }
        eventually("the threads' end", || threads("PoolWorker") == 0).await;
    });
}

#[test]
fn the_end_of_its_runtime_ends_the_threads() {
    let _guard = support::guard(60);
    let notebook = Notebook::new();
    let runtime = support::multi_thread();
    let (pool, result) = runtime.block_on(async {
        let pool = pool(1).await;
        let result = pool.apply(held, (notebook.path(),)).submit();
        notebook.wait_for("held", 1).await;
        (pool, result)
    });
    drop(runtime);
    let error = support::current_thread().block_on(result).unwrap_err();
    assert!(matches!(error, TaskError::Aborted { began: true }), "{error:?}");
    drop(pool);
    notebook.open_gate();
    support::eventually_blocking("the thread's end", || threads("PoolWorker") == 0);
}

#[test]
fn initializers_and_limits_of_tasks() {
    thread_local! {
        static GREETING: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
    }
    fn greet(word: String) {
        GREETING.set(word);
    }
    fn fail() {
        panic!("not today")
    }
    fn greeting() -> (String, String) {
        (GREETING.with_borrow(Clone::clone), thread_name())
    }
    run(60, async {
        let builder = Pool::builder().in_process().processes(1).max_tasks_per_child(2);
        let pool = builder.initializer(greet, ("hello".to_owned(),)).build().await.unwrap();
        let mut names = Vec::new();
        for _ in 0..6 {
            let (word, name) = pool.apply(greeting, ()).await.unwrap();
            assert_eq!(word, "hello");
            names.push(name);
        }
        let changes = names.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 2, "{names:?}");

        let broken = Pool::builder().in_process().processes(1).initializer(fail, ());
        let error = broken.build().await.unwrap_err().to_string();
        assert!(error.contains("not today"), "{error}");
    });
}

/// Each thread drives its own futures: one that blocks holds up no other's timers.
#[test]
fn a_blocking_future_holds_up_no_other_thread() {
    async fn block(notebook: String) {
        held(notebook);
    }
    async fn wait() -> bool {
        tokio::time::sleep(Duration::from_millis(1)).await;
        true
    }
    run(60, async {
        let pool = pool(2).await;
        let notebook = Notebook::new();
        let blocked = pool.apply(block, (notebook.path(),)).submit();
        notebook.wait_for("held", 1).await;
        assert!(pool.apply(wait, ()).await.unwrap());
        assert!(pool.apply(|| mp::block_on(wait()).unwrap(), ()).await.unwrap());
        assert_eq!(noted(&notebook.path(), "let go"), 0);
        notebook.open_gate();
        blocked.await.unwrap();
    });
}

/// Where no process may be started.
#[test]
fn daemons_and_workers_may_have_one() {
    async fn nested(x: u64) -> Result<u64, Failure> {
        let pool = Pool::builder().in_process().processes(2).build().await?;
        Ok(pool.map(square, 0..x).await?.iter().sum())
    }
    run(60, async {
        let workers = Pool::new(1).await.unwrap();
        assert_eq!(workers.apply(nested, (4,)).await.unwrap(), 14);
        let threads = pool(1).await;
        assert_eq!(threads.apply(nested, (4,)).await.unwrap(), 14);
    });
}

#[test]
fn retries_and_kill_on_drop() {
    static BEGUN: AtomicU32 = AtomicU32::new(0);
    static FREE: AtomicBool = AtomicBool::new(false);
    fn slow_at_first() -> u32 {
        let n = BEGUN.fetch_add(1, Ordering::SeqCst);
        while n == 0 && !FREE.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        n
    }
    run(60, async {
        let pool = pool(1).await;
        let call = pool.apply(slow_at_first, ()).timeout(Duration::from_millis(50)).retries(3);
        assert!(call.await.unwrap() > 0);
        FREE.store(true, Ordering::SeqCst);

        let notebook = Notebook::new();
        let call = pool.apply(held, (notebook.path(),)).kill_on_drop();
        tokio::select! {
            result = call => panic!("{result:?}"),
            () = notebook.wait_for("held", 1) => {}
        }
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
        assert_eq!(notebook.count("let go"), 0);
        notebook.open_gate();
    });
}

/// One state for each thread, not one for the process.
#[test]
fn state_streams_and_progress() {
    fn load(first: u64) -> Vec<u64> {
        vec![first]
    }
    fn push(state: &mut Vec<u64>, x: u64) -> Vec<u64> {
        state.push(x);
        state.clone()
    }
    fn count(n: u32) -> impl Iterator<Item = u32> {
        mp::task::progress(&n);
        0..n
    }
    run(60, async {
        let builder = Pool::builder().in_process().processes(1).state(load, (1,));
        let one = builder.build().await.unwrap();
        let other = Pool::builder().in_process().processes(1).state(load, (9,)).build().await.unwrap();
        assert_eq!(one.apply(push, (2,)).await.unwrap(), [1, 2]);
        assert_eq!(other.apply(push, (8,)).await.unwrap(), [9, 8]);
        assert_eq!(one.apply(push, (3,)).await.unwrap(), [1, 2, 3]);

        let numbers: Vec<u32> = one.stream(count, (1_000,)).try_collect().await.unwrap();
        assert_eq!(numbers, (0..1_000).collect::<Vec<_>>());
        // Told to end while the task waits for its reader.
        let mut numbers = one.stream(count, (1_000_000,));
        assert_eq!(numbers.next().await.unwrap().unwrap(), 0);
        drop(numbers);
        assert_eq!(one.apply(push, (4,)).await.unwrap(), [1, 2, 3, 4]);

        let (told, heard) = std::sync::mpsc::channel();
        let call = one.apply(|| mp::task::progress(&7u32), ()).progress(move |n: u32| told.send(n).unwrap());
        call.await.unwrap();
        assert_eq!(heard.try_recv(), Ok(7));
    });
}
