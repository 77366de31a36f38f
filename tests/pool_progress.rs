//! What tasks report while they run.

#![cfg(target_os = "linux")]

mod support;

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use support::{Notebook, eventually, pass_gate, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Pool, TaskError};

/// What a callback has heard.
#[derive(Clone)]
struct Heard<P>(Arc<Mutex<Vec<P>>>);

impl<P: Send + Clone + 'static> Heard<P> {
    fn new() -> (Self, impl FnMut(P) + Send + 'static) {
        let heard = Self(Arc::default());
        let theirs = heard.clone();
        (heard, move |report| theirs.0.lock().unwrap().push(report))
    }

    fn all(&self) -> Vec<P> {
        self.0.lock().unwrap().clone()
    }
}

fn in_steps(steps: u64, notebook: String) -> u64 {
    for step in 1..=steps {
        mp::task::progress(&(step, steps));
    }
    pass_gate(&notebook);
    steps
}

#[test]
fn a_task_reports_before_its_end() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let notebook = Notebook::new();
        let (heard, listener) = Heard::<(u64, u64)>::new();
        let call = pool.apply(in_steps, (3, notebook.path())).progress(listener).submit();
        eventually("all reports while it runs", || heard.all() == [(1, 3), (2, 3), (3, 3)]).await;
        assert!(!call.ready());
        notebook.open_gate();
        assert_eq!(call.await.unwrap(), 3);
        // Without a listener nothing is said.
        assert_eq!(pool.apply(in_steps, (3, notebook.path())).await.unwrap(), 3);
        assert_eq!(heard.all().len(), 3);
    });
}

#[test]
fn the_items_of_maps_and_streams_report() {
    use futures::StreamExt;
    fn twice(x: u64) -> u64 {
        mp::task::progress(&x);
        2 * x
    }
    run(60, async {
        let pool = Pool::new(2).await.unwrap();
        let (heard, listener) = Heard::<u64>::new();
        let values = pool.map(twice, 0..100).progress(listener).await.unwrap();
        assert!(values.into_iter().eq((0..100).map(|x| 2 * x)));
        let mut all = heard.all();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..100));
        let (heard, listener) = Heard::<u64>::new();
        let stream: Vec<_> = pool.imap(twice, 0..10).progress(listener).collect().await;
        assert!(stream.iter().all(Result::is_ok));
        assert_eq!(heard.all().len(), 10);
    });
}

#[test]
fn other_threads_report_until_the_task_ends() {
    fn elsewhere() -> bool {
        let current = mp::task::current().unwrap();
        let reporter = current.clone();
        std::thread::spawn(move || reporter.progress("from a thread")).join().unwrap();
        KEPT.replace(Some(current)).is_none()
    }
    thread_local! {
        static KEPT: RefCell<Option<mp::task::Current>> = const { RefCell::new(None) };
    }
    fn late() -> u64 {
        // It is over, and this task is another one.
        KEPT.with_borrow(|kept| kept.as_ref().unwrap().progress("too late"));
        mp::task::progress("in time");
        mp::task::current().unwrap().id().job
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let (heard, listener) = Heard::<String>::new();
        assert!(pool.apply(elsewhere, ()).progress(listener).await.unwrap());
        assert_eq!(heard.all(), ["from a thread"]);
        let (late_heard, listener) = Heard::<String>::new();
        pool.apply(late, ()).progress(listener).await.unwrap();
        assert_eq!(late_heard.all(), ["in time"]);
        assert_eq!(heard.all().len(), 1);
    });
}

/// More than the ring holds, while nobody can take it: it does not wait, and the result comes.
#[test]
fn a_flood_of_reports_neither_blocks_nor_is_kept() {
    fn flood() -> usize {
        for number in 0..10_000u64 {
            mp::task::progress(&(number, vec![0u32; 250]));
        }
        mp::task::progress(&vec![u32::MAX; 100_000]);
        7
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let (heard, listener) = Heard::<(u64, Vec<u32>)>::new();
        assert_eq!(pool.apply(flood, ()).progress(listener).await.unwrap(), 7);
        let numbers: Vec<_> = heard.all().into_iter().map(|(number, _)| number).collect();
        assert!(!numbers.is_empty() && numbers.is_sorted());
    });
}

#[test]
fn a_listener_that_panics_or_wants_another_type_harms_nothing() {
    fn report() -> u8 {
        mp::task::progress("text");
        1
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        assert_eq!(pool.apply(report, ()).progress(|_: String| panic!("on purpose")).await.unwrap(), 1);
        let (heard, listener) = Heard::<u64>::new();
        assert_eq!(pool.apply(report, ()).progress(listener).await.unwrap(), 1);
        assert!(heard.all().is_empty());
        // Outside of a task.
        mp::task::progress("nobody");
    });
}

/// The reports of one that dies come before its error.
#[test]
fn reports_outlive_their_worker() {
    fn die() {
        mp::task::progress("last words");
        std::process::abort();
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let (heard, listener) = Heard::<String>::new();
        let error = pool.apply(die, ()).progress(listener).retries(1).await.unwrap_err();
        assert!(matches!(error, TaskError::WorkerDied(_)), "{error:?}");
        assert_eq!(heard.all(), ["last words", "last words"]);
    });
}
