//! What a pool's workers hold for their tasks, and what a task knows of itself.

#![cfg(target_os = "linux")]

mod support;

use std::cell::Cell;
use std::collections::HashSet;
use std::error::Error as StdError;
use std::rc::Rc;
use std::time::{Duration, Instant};

use support::{Notebook, note, noted, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Failure, NotStarted, Pool, Ran, TaskError};

/// Neither a message nor `Send`.
struct Counter {
    step: u64,
    sum: Rc<Cell<u64>>,
}

fn load(notebook: String, step: u64) -> Counter {
    note(&notebook, "loaded");
    Counter { step, sum: Rc::default() }
}

fn add(counter: &mut Counter, n: u64) -> u64 {
    counter.sum.set(counter.sum.get() + counter.step * n);
    counter.sum.get()
}

async fn add_later(counter: &mut Counter, n: u64) -> Result<u64, Failure> {
    let sum = counter.sum.clone();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(sum.get(), counter.sum.get());
    Ok(add(counter, n))
}

fn refuse(_: &mut Counter) -> Result<(), Box<dyn StdError + Send + Sync>> {
    Err("not today".into())
}

#[test]
fn every_kind_of_function_takes_the_state() {
    run_each(60, async |context| {
        let notebook = Notebook::new();
        let builder = Pool::builder().context(context).processes(1).state(load, (notebook.path(), 10));
        let pool = builder.build().await.unwrap();
        assert_eq!(pool.apply(add, (1,)).await.unwrap(), 10);
        assert_eq!(pool.apply(add_later, (2,)).await.unwrap(), 30);
        assert_eq!(pool.starmap(add, [(1,), (1,)]).await.unwrap(), [40, 50]);
        assert_eq!(pool.apply(|counter: &mut Counter| counter.sum.get(), ()).await.unwrap(), 50);
        let later = pool.apply(async |counter: &mut Counter, n: u64| add(counter, n), (1,)).await;
        assert_eq!(later.unwrap(), 60);
        let error = pool.apply(refuse, ()).await.unwrap_err();
        assert!(matches!(&error, TaskError::Returned(why) if why.to_string() == "not today"), "{error:?}");
        let with = pool.map(|n: u64| mp::task::with_state(|counter: &mut Counter| add(counter, n)), [1, 2]);
        assert_eq!(with.await.unwrap(), [70, 90]);
        assert_eq!(notebook.count("loaded"), 1);
    });
}

#[test]
fn each_worker_loads_once_after_the_initializer() {
    fn initialize(notebook: String) {
        note(&notebook, "initialized");
    }
    fn load(notebook: String) -> u32 {
        assert!(noted(&notebook, "initialized") > 0);
        note(&notebook, format!("{} loaded", std::process::id()));
        std::process::id()
    }
    run(60, async {
        let notebook = Notebook::new();
        let builder = Pool::builder().processes(3).initializer(initialize, (notebook.path(),));
        let pool = builder.state(load, (notebook.path(),)).build().await.unwrap();
        pool.ready().await.unwrap();
        let pids = pool.starmap(|pid: &mut u32| (*pid, std::process::id()), vec![(); 100]).await.unwrap();
        assert!(pids.iter().all(|(loaded, here)| loaded == here));
        assert_eq!(notebook.count("initialized"), 3);
        let loaded: HashSet<_> =
            notebook.notes().into_iter().filter(|note| note.contains("loaded")).collect();
        assert_eq!((loaded.len(), notebook.notes().len()), (3, 6));
    });
}

#[test]
fn a_state_that_cannot_be_loaded_is_reported() {
    fn fails(why: String) -> Result<u32, Failure> {
        Err(Failure::msg(why))
    }
    async fn fails_later() -> Result<Rc<u32>, Box<dyn StdError + Send + Sync>> {
        tokio::task::yield_now().await;
        Ok(Rc::new("no number".parse()?))
    }
    fn panics() -> u32 {
        panic!("no state for you")
    }
    run(60, async {
        let builder = || Pool::builder().processes(1);
        for (builder, why) in [
            (builder().try_state(fails, ("the disk is full".to_owned(),)), "the disk is full"),
            (builder().try_state(fails_later, ()), "invalid digit"),
            (builder().state(panics, ()), "no state for you"),
        ] {
            let error = builder.build().await.unwrap_err().to_string();
            assert!(error.contains("its state could not be loaded") && error.contains(why), "{error}");
            // There is no task that could not start.
            assert!(error.starts_with("no worker could be started"), "{error}");
        }
        let later = builder().try_state(async |n: u32| Ok::<_, Failure>(Rc::new(n)), (7,));
        let pool = later.build().await.unwrap();
        assert_eq!(pool.apply(|state: &mut Rc<u32>| **state, ()).await.unwrap(), 7);
    });
}

#[test]
fn a_task_that_wants_another_state_does_not_start() {
    run(60, async {
        let pool = Pool::builder().processes(1).state(|| 1u8, ()).build().await.unwrap();
        let error = pool.apply(add, (1,)).await.unwrap_err();
        assert_eq!(error.ran(), Ran::No);
        let TaskError::NotStarted(NotStarted::State(why)) = &error else { panic!("{error:?}") };
        assert!(why.contains("Counter") && why.contains("`u8`"), "{why}");
        let error = pool.apply(add_later, (1,)).await.unwrap_err();
        assert!(matches!(error, TaskError::NotStarted(NotStarted::State(_))), "{error:?}");
        // Nothing has come of it to the state.
        assert_eq!(pool.apply(|n: &mut u8| *n, ()).await.unwrap(), 1);
        let fallible = || Ok::<_, Failure>(Counter { step: 1, sum: Rc::default() });
        let pool = Pool::builder().processes(1).state(fallible, ()).build().await.unwrap();
        let error = pool.apply(add, (1,)).await.unwrap_err().to_string();
        assert!(error.contains("Result<") && error.contains("try_state"), "{error}");
        let none = mp::spawn(add, (1,)).await.unwrap().await.unwrap_err();
        assert!(matches!(&none, TaskError::NotStarted(NotStarted::State(_))), "{none:?}");
    });
}

/// Writes a line when it is dropped.
struct Note(String);

impl Drop for Note {
    fn drop(&mut self) {
        note(&self.0, "dropped");
    }
}

/// By each start method, as it is not left to the end of a thread.
#[test]
fn the_state_is_dropped_at_an_orderly_end() {
    run_each(60, async |context| {
        let notebook = Notebook::new();
        let builder = Pool::builder().processes(2).context(context);
        let pool = builder.state(Note, (notebook.path(),)).build().await.unwrap();
        pool.ready().await.unwrap();
        pool.close();
        pool.join().await.unwrap();
        assert_eq!(notebook.count("dropped"), 2);
    });
}

#[test]
fn a_panic_with_the_state_in_hand_costs_the_worker_and_nothing_else() {
    run(60, async {
        let notebook = Notebook::new();
        let builder = Pool::builder().processes(1).state(load, (notebook.path(), 1));
        let pool = builder.build().await.unwrap();
        assert_eq!(pool.apply(add, (5,)).await.unwrap(), 5);
        // One chunk: what follows the panic is run by another worker, with a state of its own.
        let items = pool.starmap(
            |counter: &mut Counter, n: u64| {
                assert!(n != 2, "on purpose");
                add(counter, n)
            },
            [(1,), (2,), (3,), (4,)],
        );
        let error = items.chunk_size(4).await.unwrap_err();
        assert!(matches!(&error, TaskError::Panicked(panic) if panic.message == "on purpose"), "{error:?}");
        assert_eq!(pool.apply(add, (0,)).await.unwrap(), 7);
        assert_eq!(notebook.count("loaded"), 2);
        // The same while it waits with the state in its hands.
        let waiting = async |counter: &mut Counter| {
            tokio::task::yield_now().await;
            assert!(counter.step == 0, "on purpose");
        };
        assert!(matches!(pool.apply(waiting, ()).await, Err(TaskError::Panicked(_))));
        assert_eq!(pool.apply(add, (2,)).await.unwrap(), 2);
        // A panic elsewhere costs nothing.
        let elsewhere = |n: u64| assert!(n == 0, "without it");
        assert!(matches!(pool.apply(elsewhere, (1,)).await, Err(TaskError::Panicked(_))));
        assert_eq!(pool.apply(add, (1,)).await.unwrap(), 3);
        assert_eq!(notebook.count("loaded"), 3);
    });
}

#[test]
fn a_task_knows_itself() {
    fn about() -> (u64, u64, u32, bool, String, String) {
        let current = mp::task::current().unwrap();
        let id = current.id();
        let names = (current.name().to_owned(), current.worker().to_owned());
        (id.job, id.item, current.attempt(), current.deadline().is_some(), names.0, names.1)
    }
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(2).name("knower").build().await.unwrap();
        let (job, item, attempt, limited, name, worker) = pool.apply(about, ()).await.unwrap();
        assert_eq!((item, attempt, limited), (0, 0, false));
        assert!(name.ends_with("about") && worker.starts_with("knower-"), "{name} {worker}");
        let map = pool.map(|_: u8| about(), vec![0; 100]).chunk_size(7).await.unwrap();
        assert!(map.iter().all(|about| about.0 == map[0].0 && about.0 != job));
        assert!(map.iter().map(|about| about.1).eq(0..100));
        assert!(mp::task::current().is_none());
        let elsewhere = || std::thread::spawn(|| mp::task::current().is_none()).join().unwrap();
        assert!(pool.apply(elsewhere, ()).await.unwrap());
    });
}

#[test]
fn a_task_knows_its_deadline_and_attempt() {
    fn left() -> Duration {
        mp::task::current().unwrap().deadline().unwrap().saturating_duration_since(Instant::now())
    }
    fn die_twice() -> u32 {
        match mp::task::current().unwrap().attempt() {
            attempt @ 2.. => attempt,
            _ => std::process::abort(),
        }
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let hour = Duration::from_secs(3600);
        let before = Instant::now();
        let first = pool.apply(left, ()).timeout(hour).await.unwrap();
        assert!(first <= hour && first + before.elapsed() >= hour, "{first:?}");
        // Each item has its own.
        let all = pool.map(|_: u8| left(), [0; 20]).chunk_size(20).timeout(hour).await.unwrap();
        assert!(all.iter().all(|left| *left <= hour && *left + before.elapsed() >= hour), "{all:?}");
        assert_eq!(pool.apply(die_twice, ()).retries(2).await.unwrap(), 2);
    });
}
