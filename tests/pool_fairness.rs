//! Order among tasks: priorities, shares and limits of keys, quarantine.

#![cfg(target_os = "linux")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use futures::stream::TryStreamExt;
use support::{Notebook, note, noted, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{NotStarted, Pool, Ran, TaskError};

async fn pool(processes: usize) -> Pool {
    let pool = Pool::new(processes).await.unwrap();
    pool.ready().await.unwrap();
    pool
}

fn square(x: u64) -> u64 {
    x * x
}

fn held(notebook: String, line: String) {
    note(&notebook, line);
    pass_gate(&notebook);
}

fn noting(notebook: String, line: String) {
    note(&notebook, line);
}

/// Work that leaves the processor alone.
fn lasting(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

fn hanging() {
    loop {
        std::thread::park();
    }
}

/// A callback that counts its calls.
fn counted<T>(count: &Arc<AtomicUsize>) -> impl FnOnce(&T) + Send + 'static {
    let count = count.clone();
    move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    }
}

fn quarantined(result: &Result<(), TaskError>) -> Option<u32> {
    match result {
        Err(TaskError::NotStarted(NotStarted::Quarantined { deaths })) => Some(*deaths),
        _ => None,
    }
}

#[test]
fn higher_priorities_go_first() {
    run_each(60, |context| async move {
        let notebook = Notebook::new();
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let first = pool.apply(held, (notebook.path(), "first".to_owned())).submit();
        notebook.wait_for("first", 1).await;
        let mut waiting = Vec::new();
        for (priority, line) in [(0, "c"), (-1, "e"), (7, "a"), (0, "d"), (i32::MIN, "f"), (7, "b")] {
            let call = pool.apply(noting, (notebook.path(), line.to_owned()));
            waiting.push(call.priority(priority).submit());
        }
        notebook.open_gate();
        first.await.unwrap();
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(notebook.notes(), ["first", "a", "b", "c", "d", "e", "f"]);
    });
}

#[test]
fn who_has_few_tasks_does_not_wait_for_who_has_many() {
    run(60, async {
        let pool = pool(2).await;
        let done = Arc::new(AtomicUsize::new(0));
        let submit = |_| pool.apply(lasting, (2,)).key("many").callback(counted(&done)).submit();
        let many: Vec<_> = (0..400).map(submit).collect();
        let few = pool.map(lasting, [2; 20]).chunk_size(1).key("few");
        few.await.unwrap();
        // As many as the few, and what was begun before.
        let done = done.load(Ordering::SeqCst);
        assert!(done < 200, "{done}");
        drop(many);
    });
}

#[test]
fn tasks_that_hang_use_up_the_share_of_their_key_alone() {
    run(60, async {
        let pool = pool(2).await;
        let late = Arc::new(AtomicUsize::new(0));
        let hang = |_| {
            let call = pool.apply(hanging, ()).timeout(Duration::from_millis(100)).key("bad");
            call.error_callback(counted(&late)).submit()
        };
        let bad: Vec<_> = (0..60).map(hang).collect();
        let good = (0..100).map(|_| pool.apply(lasting, (1,)).key("good"));
        for result in join_all(good).await {
            result.unwrap();
        }
        let late = late.load(Ordering::SeqCst);
        assert!(late < 30, "{late}");
        drop(bad);
    });
}

#[test]
fn tasks_without_a_key_are_not_overrun_by_keys() {
    run(60, async {
        let pool = pool(1).await;
        let done = Arc::new(AtomicUsize::new(0));
        let submit = |_| pool.apply(lasting, (2,)).key("many").callback(counted(&done)).submit();
        let many: Vec<_> = (0..300).map(submit).collect();
        pool.imap(lasting, [2; 10]).try_collect::<Vec<()>>().await.unwrap();
        assert!(done.load(Ordering::SeqCst) < 150);
        drop(many);
    });
}

#[test]
fn a_key_has_as_many_workers_as_it_may() {
    run(60, async {
        let notebook = Notebook::new();
        let pool = Pool::builder().processes(3).key_limit(1).build().await.unwrap();
        pool.ready().await.unwrap();
        let hold = |line: &str| pool.apply(held, (notebook.path(), line.to_owned())).key("one").submit();
        let first = hold("first");
        notebook.wait_for("first", 1).await;
        // However it is called, and whatever its priority.
        let second = hold("second");
        let third = pool.apply(noting, (notebook.path(), "third".to_owned())).key("one").priority(9).submit();
        let others = pool.map(square, 0..1_000).chunk_size(1);
        assert_eq!(others.await.unwrap()[31], 961);
        assert_eq!(pool.map(square, 0..100).key("other").await.unwrap()[9], 81);
        assert_eq!(notebook.notes(), ["first"]);
        notebook.open_gate();
        for task in [first, second, third] {
            task.await.unwrap();
        }
        assert_eq!(notebook.notes(), ["first", "third", "second"]);
        // Nobody is left with a claim: the key can be used as before.
        assert_eq!(pool.imap(square, 0..1_000).key("one").try_collect::<Vec<_>>().await.unwrap()[5], 25);
    });
}

#[test]
fn a_limited_key_goes_on_when_its_worker_dies() {
    run(60, async {
        let pool = Pool::builder().processes(2).key_limit(1).build().await.unwrap();
        for _ in 0..3 {
            let died = pool.apply(|| -> () { std::process::abort() }, ()).key("k").submit();
            let next = pool.apply(square, (4,)).key("k").submit();
            assert!(matches!(died.await, Err(TaskError::WorkerDied(_))));
            assert_eq!(next.await.unwrap(), 16);
        }
    });
}

/// Kills its worker unless the notebook says that it is healed.
fn poison(notebook: String, _number: u32) {
    if noted(&notebook, "healed") == 0 {
        note(&notebook, "death");
        std::process::abort();
    }
}

#[test]
fn what_kills_workers_is_kept_away() {
    run_each(60, |context| async move {
        let notebook = Notebook::new();
        let pool = Pool::builder().context(context).processes(2).quarantine(2, Duration::from_secs(600));
        let pool = pool.build().await.unwrap();
        let poisoned = |number| pool.apply(poison, (notebook.path(), number));
        for _ in 0..2 {
            assert!(matches!(poisoned(1).await, Err(TaskError::WorkerDied(_))));
        }
        let refused = poisoned(1).await;
        assert_eq!(quarantined(&refused), Some(2));
        assert_eq!(refused.unwrap_err().ran(), Ran::No);
        assert_eq!(notebook.count("death"), 2);
        // The same function with other arguments is another task.
        assert!(matches!(poisoned(2).await, Err(TaskError::WorkerDied(_))));
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
    });
}

#[test]
fn in_time_one_is_let_through_and_frees_the_others() {
    run(60, async {
        let notebook = Notebook::new();
        let pool =
            Pool::builder().processes(1).quarantine(1, Duration::from_millis(200)).build().await.unwrap();
        let poisoned = || pool.apply(poison, (notebook.path(), 1));
        assert!(matches!(poisoned().await, Err(TaskError::WorkerDied(_))));
        note(&notebook.path(), "healed");
        loop {
            match poisoned().await {
                Ok(()) => break,
                refused => assert_eq!(quarantined(&refused), Some(1)),
            }
        }
        for result in join_all((0..20).map(|_| poisoned())).await {
            result.unwrap();
        }
        assert_eq!(notebook.count("death"), 1);
    });
}

#[test]
fn items_of_a_map_are_told_apart() {
    run(60, async {
        let pool =
            Pool::builder().processes(1).quarantine(1, Duration::from_secs(600)).build().await.unwrap();
        let risky = |x: u64| if x == 7 { std::process::abort() } else { x };
        assert!(matches!(pool.apply(risky, (7,)).await, Err(TaskError::WorkerDied(_))));
        let results = pool.imap(risky, 0..100).chunk_size(20);
        let results: Vec<_> = futures::StreamExt::collect(results).await;
        for (x, result) in results.into_iter().enumerate() {
            match (x, result) {
                (7, Err(TaskError::NotStarted(NotStarted::Quarantined { deaths: 1 }))) => {}
                (x, Ok(value)) if x != 7 => assert_eq!(value, x as u64),
                (x, result) => panic!("{x}: {result:?}"),
            }
        }
    });
}

#[test]
fn retries_and_timeouts_lead_into_quarantine_and_aborts_do_not() {
    run(60, async {
        let notebook = Notebook::new();
        let pool =
            Pool::builder().processes(1).quarantine(2, Duration::from_secs(600)).build().await.unwrap();
        let again = pool.apply(poison, (notebook.path(), 1)).retries(50).await;
        assert!(matches!(again, Err(TaskError::WorkerDied(_))), "{again:?}");
        assert_eq!(notebook.count("death"), 2);

        let late = || pool.apply(hanging, ()).timeout(Duration::from_millis(20));
        for _ in 0..2 {
            assert!(matches!(late().await, Err(TaskError::TimedOut)));
        }
        assert_eq!(quarantined(&late().await), Some(2));

        for times in 1..4 {
            let task = pool.apply(held, (notebook.path(), "aborted".to_owned())).submit();
            notebook.wait_for("aborted", times).await;
            task.abort();
            assert!(matches!(task.await, Err(TaskError::Aborted { began: true })));
        }
    });
}

fn crash_on(blob: mp::Blob) {
    if blob.first() == Some(&1) {
        std::process::abort();
    }
}

#[test]
fn a_blob_is_the_same_as_its_clones() {
    run(60, async {
        let pool =
            Pool::builder().processes(1).quarantine(1, Duration::from_secs(600)).build().await.unwrap();
        let blob = mp::Blob::new([1; 100_000]).unwrap();
        assert!(matches!(pool.apply(crash_on, (blob.clone(),)).await, Err(TaskError::WorkerDied(_))));
        assert_eq!(quarantined(&pool.apply(crash_on, (blob,)).await), Some(1));
        pool.apply(crash_on, (mp::Blob::new([0; 100_000]).unwrap(),)).await.unwrap();
    });
}

/// Large arguments have no name by which they could be recognised, but a call that is retried is.
#[test]
fn a_large_argument_is_recognised_within_its_call() {
    fn crash(bytes: Vec<u8>) {
        drop(bytes);
        std::process::abort();
    }
    run(60, async {
        let pool =
            Pool::builder().processes(1).quarantine(2, Duration::from_secs(600)).build().await.unwrap();
        let result = pool.apply(crash, (vec![1; 100_000],)).retries(1_000).await;
        assert!(matches!(result, Err(TaskError::WorkerDied(_))), "{result:?}");
    });
}

#[test]
fn threads_keep_the_same_order() {
    run(60, async {
        let notebook = Notebook::new();
        let pool = Pool::builder().in_process().processes(1).build().await.unwrap();
        let first = pool.apply(held, (notebook.path(), "first".to_owned())).submit();
        notebook.wait_for("first", 1).await;
        let low = pool.apply(noting, (notebook.path(), "low".to_owned())).submit();
        let high = pool.apply(noting, (notebook.path(), "high".to_owned())).priority(1).submit();
        notebook.open_gate();
        for task in [first, low, high] {
            task.await.unwrap();
        }
        assert_eq!(notebook.notes(), ["first", "high", "low"]);
    });
}

#[test]
fn zeros_are_refused() {
    run(60, async {
        for builder in [Pool::builder().key_limit(0), Pool::builder().quarantine(0, Duration::from_secs(1))] {
            assert!(matches!(builder.build().await, Err(mp::Error::InvalidArgument(_))));
        }
    });
}
