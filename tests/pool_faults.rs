//! What a pool makes of bad input and bad luck.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "some of the bad luck has to be made")]

mod support;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use futures::stream::{StreamExt, TryStreamExt};
use nix::sys::signal::{SigHandler, Signal, kill, killpg, raise, signal};
use nix::unistd::Pid;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use support::{Notebook, PATIENCE, eventually, note, noted, pass_gate, run, run_each, runs};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Error, NotStarted, Pool, Ran, TaskError, WorkerDied};

async fn pool(context: mp::Context, processes: usize) -> Pool {
    Pool::builder().context(context).processes(processes).build().await.unwrap()
}

fn square(x: u64) -> u64 {
    x * x
}

fn pid() -> i32 {
    std::process::id() as i32
}

fn held(notebook: String) {
    note(&notebook, "held");
    pass_gate(&notebook);
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

fn no_core_dumps() {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Death {
    Kill,
    Abort,
    Segfault,
    Overflow,
    Exit,
}

const DEATHS: [Death; 5] = [Death::Kill, Death::Abort, Death::Segfault, Death::Overflow, Death::Exit];

fn deeper(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    if page[0] == u64::MAX { 0 } else { deeper(depth + 1) + page[1] }
}

fn die(death: Death) {
    no_core_dumps();
    match death {
        Death::Kill => support::kill_9(pid()),
        Death::Abort => std::process::abort(),
        // SAFETY: nothing can be at this address, so nothing is overwritten: the process ends.
        Death::Segfault => unsafe { std::ptr::without_provenance_mut::<u8>(16).write_volatile(1) },
        Death::Overflow => _ = std::hint::black_box(deeper(0)),
        Death::Exit => std::process::exit(3),
    }
}

fn assert_death(died: &WorkerDied, death: Death) {
    let expected = match death {
        Death::Kill => (None, Some(Signal::SIGKILL as i32)),
        Death::Abort => (None, Some(Signal::SIGABRT as i32)),
        Death::Segfault => (None, Some(Signal::SIGSEGV as i32)),
        Death::Overflow => (died.exit.code(), died.exit.signal()),
        Death::Exit => (Some(3), None),
    };
    assert_eq!((died.exit.code(), died.exit.signal()), expected, "{death:?}: {died:?}");
    assert_eq!(died.exit.stack_overflow(), death == Death::Overflow, "{death:?}: {died:?}");
}

fn worker_died(error: TaskError) -> WorkerDied {
    assert_eq!(error.ran(), Ran::Maybe);
    match error {
        TaskError::WorkerDied(died) => *died,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_death_is_told_with_its_exit_and_the_end_of_stderr() {
    fn cry(death: Death) {
        // Not by `eprintln!`, which libtest keeps to itself in a forked child, too.
        writeln!(std::io::stderr(), "in {}: about to {death:?}", pid()).unwrap();
        die(death);
    }
    run_each(60, async |context| {
        let pool = pool(context, 2).await;
        for death in DEATHS {
            let error = pool.apply(cry, (death,)).await.unwrap_err();
            let told = error.to_string();
            let died = worker_died(error);
            assert_death(&died, death);
            let cry = format!("in {}: about to {death:?}\n", died.pid);
            assert!(died.stderr_tail.contains(&cry), "{died:?}");
            assert!(died.task.contains("cry") && told.contains("cry"), "{died:?}: {told}");
            assert!(told.contains(&died.exit.to_string()), "{told}");
            assert_eq!(pool.apply(square, (5,)).await.unwrap(), 25);
        }
    });
}

/// One item in a chunk takes none of the others with it.
#[test]
fn a_death_is_one_tasks_alone() {
    run_each(60, async |context| {
        let pool = pool(context, 2).await;
        for chunk in [1, 4, 30] {
            let notebook = Notebook::new();
            let path = notebook.path();
            let task = |(x, path): (usize, String)| {
                note(&path, x);
                if x % 6 == 2 {
                    die(DEATHS[x / 6]);
                }
                x
            };
            let items = (0..30).map(move |x| (x, path.clone()));
            let results: Vec<_> = pool.imap(task, items).chunk_size(chunk).collect().await;
            assert_eq!(results.len(), 30);
            for (x, result) in results.into_iter().enumerate() {
                match result {
                    Ok(value) => assert!(value == x && x % 6 != 2),
                    Err(error) => {
                        assert_eq!(x % 6, 2, "{error:?}");
                        assert_death(&worker_died(error), DEATHS[x / 6]);
                    }
                }
            }
            // The others of its chunk ran on, none of them twice.
            notebook.assert_no_repetition();
            assert_eq!(notebook.notes().len(), 30);
        }
        let error = pool
            .map(
                |x: u64| {
                    if x == 7 {
                        die(Death::Exit)
                    }
                },
                0..20,
            )
            .await
            .unwrap_err();
        assert_death(&worker_died(error), Death::Exit);
    });
}

#[test]
fn the_tail_of_stderr_is_its_end() {
    fn chatter(lines: usize) {
        for line in 0..lines {
            eprintln!("line {line}");
        }
        support::kill_9(pid());
    }
    fn raw() {
        std::io::stderr().write_all(b"not text: \xff\xfe").unwrap();
        support::kill_9(pid());
    }
    run(40, async {
        let pool = Pool::new(1).await.unwrap();
        let died = worker_died(pool.apply(chatter, (3,)).await.unwrap_err());
        assert_eq!(died.stderr_tail, "line 0\nline 1\nline 2\n");
        // More than a pipe holds.
        let died = worker_died(pool.apply(chatter, (20_000,)).await.unwrap_err());
        assert!(died.stderr_tail.ends_with("line 19998\nline 19999\n"), "{}", died.stderr_tail);
        assert!((2048..=4096).contains(&died.stderr_tail.len()), "{} bytes", died.stderr_tail.len());
        let died = worker_died(pool.apply(raw, ()).await.unwrap_err());
        assert!(died.stderr_tail.starts_with("not text: "), "{died:?}");
    });
}

/// Who else keeps the worker's stderr open does not keep its death back.
#[test]
fn a_death_is_told_though_stderr_stays_open() {
    run(40, async {
        let pool = Pool::new(1).await.unwrap();
        let worker = pool.apply(pid, ()).await.unwrap();
        let stderr = format!("/proc/{worker}/fd/2");
        let _kept = std::fs::OpenOptions::new().write(true).open(stderr).unwrap();
        let cry = || {
            eprint!("the end");
            support::kill_9(pid());
        };
        let died = worker_died(pool.apply(cry, ()).await.unwrap_err());
        assert_eq!((died.pid, &*died.stderr_tail), (worker, "the end"));
        assert_eq!(pool.apply(square, (2,)).await.unwrap(), 4);
    });
}

#[test]
fn a_process_that_dies_after_its_task() {
    fn die_later(notebook: String) {
        std::thread::spawn(move || {
            pass_gate(&notebook);
            std::process::exit(1);
        });
    }
    run_each(40, async |context| {
        let pool = pool(context, 1).await;
        for _ in 0..3 {
            let worker = pool.apply(pid, ()).await.unwrap();
            let notebook = Notebook::new();
            pool.apply(die_later, (notebook.path(),)).await.unwrap();
            notebook.open_gate();
            eventually("its end", || !runs(worker)).await;
            assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
        }
    });
}

#[test]
fn other_threads_of_a_worker_may_panic() {
    run_each(40, async |context| {
        let pool = pool(context, 1).await;
        let worker = pool.apply(pid, ()).await.unwrap();
        let panics = || std::thread::spawn(|| panic!("in a thread of its own")).join().is_err();
        assert!(pool.apply(panics, ()).await.unwrap());
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
    });
}

#[test]
fn every_kind_of_panic_keeps_the_worker() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    run_each(40, async |context| {
        let pool = pool(context, 1).await;
        let worker = pool.apply(pid, ()).await.unwrap();
        let message = async |call: mp::Apply<()>| match call.await.unwrap_err() {
            TaskError::Panicked(panic) => panic.message,
            other => panic!("{other:?}"),
        };
        assert_eq!(message(pool.apply(|| -> () { panic!("plain") }, ())).await, "plain");
        assert_eq!(message(pool.apply(|x: u8| -> () { panic!("formatted {x}") }, (1,))).await, "formatted 1");
        assert_eq!(message(pool.apply(|| drop(Bomb), ())).await, "in drop");
        assert!(!message(pool.apply(|| -> () { std::panic::panic_any(7) }, ())).await.is_empty());
        let later = async || -> () {
            tokio::task::yield_now().await;
            panic!("later");
        };
        assert_eq!(message(pool.apply(later, ())).await, "later");
        let long = message(pool.apply(|| -> () { panic!("{}", "x".repeat(1 << 20)) }, ())).await;
        assert_eq!(long.len(), 1 << 20);
        // A hook of the worker's own is no obstacle.
        pool.apply(|| std::panic::set_hook(Box::new(|_| ())), ()).await.unwrap();
        assert_eq!(message(pool.apply(|| -> () { panic!("hooked") }, ())).await, "hooked");
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
    });
}

/// Is written well and read badly, or the other way round.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bad {
    Write,
    Read,
    ReadPanic,
    WritePanic,
}

impl Serialize for Bad {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Write => Err(serde::ser::Error::custom("refuses to be written")),
            Self::WritePanic => panic!("panics when written"),
            Self::Read => serializer.serialize_u8(0),
            Self::ReadPanic => serializer.serialize_u8(1),
        }
    }
}

impl<'de> Deserialize<'de> for Bad {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Err(D::Error::custom("refuses to be read")),
            _ => panic!("panics when read"),
        }
    }
}

#[test]
fn arguments_that_cannot_be_encoded() {
    run_each(40, async |context| {
        let pool = pool(context, 1).await;
        let ran = |_: Bad, path: String| note(&path, "ran");
        let notebook = Notebook::new();
        let error = pool.apply(ran, (Bad::Write, notebook.path())).await.unwrap_err();
        let TaskError::NotStarted(NotStarted::Unencodable(reason)) = &error else { panic!("{error:?}") };
        assert!(reason.to_string().contains("refuses to be written"), "{reason}");
        assert_eq!(error.ran(), Ran::No);
        let error = pool.apply(ran, (Bad::Write, notebook.path())).submit().await.unwrap_err();
        assert_eq!(error.ran(), Ran::No);
        // One bad item is one bad item.
        #[derive(Debug)]
        struct Maybe(u64);
        impl Serialize for Maybe {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if self.0 == 3 {
                    Err(serde::ser::Error::custom("three"))
                } else {
                    self.0.serialize(serializer)
                }
            }
        }
        impl<'de> Deserialize<'de> for Maybe {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                u64::deserialize(deserializer).map(Self)
            }
        }
        for chunk in [1, 4, 10] {
            let results: Vec<_> =
                pool.imap(|x: Maybe| x.0, (0..10).map(Maybe)).chunk_size(chunk).collect().await;
            assert_eq!(results.len(), 10);
            for (x, result) in (0..).zip(results) {
                match result {
                    Ok(value) => assert!(value == x && x != 3),
                    Err(TaskError::NotStarted(NotStarted::Unencodable(_))) => assert_eq!(x, 3),
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        let error = pool.map(|x: Maybe| x.0, (0..10).map(Maybe)).await.unwrap_err();
        assert_eq!(error.ran(), Ran::No);
        assert_eq!(notebook.count("ran"), 0);
    });
}

#[test]
fn arguments_that_cannot_be_decoded() {
    run_each(40, async |context| {
        let pool = pool(context, 1).await;
        let worker = pool.apply(pid, ()).await.unwrap();
        let notebook = Notebook::new();
        let ran = |_: Bad, path: String| note(&path, "ran");
        let error = pool.apply(ran, (Bad::Read, notebook.path())).await.unwrap_err();
        let TaskError::NotStarted(NotStarted::Arguments(reason)) = &error else { panic!("{error:?}") };
        assert!(reason.contains("refuses to be read"), "{reason}");
        assert_eq!(error.ran(), Ran::No);
        // A panic in the reading is as good as any.
        let error = pool.apply(ran, (Bad::ReadPanic, notebook.path())).await.unwrap_err();
        assert!(error.to_string().contains("panics when read"), "{error}");
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
        assert_eq!(notebook.count("ran"), 0);
    });
}

#[test]
fn results_that_cannot_be_decoded() {
    run_each(40, async |context| {
        let pool = pool(context, 1).await;
        let worker = pool.apply(pid, ()).await.unwrap();
        let error = pool.apply(|| Bad::Read, ()).await.unwrap_err();
        assert!(
            matches!(&error, TaskError::Undecodable(why) if why.to_string().contains("refuses to be read")),
            "{error:?}"
        );
        assert_eq!(error.ran(), Ran::Yes);
        // A panic in the reading is that task's, wherever the pool reads.
        let error = pool.apply(|| Bad::ReadPanic, ()).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert_eq!(error.ran(), Ran::Yes);
        let results: Vec<_> = pool.imap(|_: u8| Bad::Read, 0..5).collect().await;
        assert!(
            results.len() == 5
                && results.iter().all(|result| matches!(result, Err(TaskError::Undecodable(_))))
        );
        let error = pool.map(|_: u8| Bad::Read, 0..5).await.unwrap_err();
        assert!(matches!(error, TaskError::Undecodable(_)), "{error:?}");
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
    });
}

#[test]
fn results_whose_writing_fails_keep_the_worker() {
    run_each(40, async |context| {
        let pool = pool(context, 1).await;
        let worker = pool.apply(pid, ()).await.unwrap();
        let error = pool.apply(|| Bad::Write, ()).await.unwrap_err();
        assert!(
            matches!(&error, TaskError::Unencodable { reason, .. } if reason.contains("refuses")),
            "{error:?}"
        );
        let error = pool.apply(|| Bad::WritePanic, ()).await.unwrap_err();
        assert!(error.to_string().contains("panics when written"), "{error}");
        assert_eq!(error.ran(), Ran::Yes);
        let error = pool.apply(|_: Bad| (), (Bad::Write,)).await.unwrap_err();
        assert_eq!(error.ran(), Ran::No);
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
    });
}

/// The caller's own panic while its arguments are written does not spoil the pool.
#[test]
fn arguments_whose_writing_panics() {
    run(30, async {
        let pool = Pool::new(1).await.unwrap();
        let copy = pool.clone();
        // At the call, at the first poll, or as an error: it must not be lost, and nobody hang.
        let told = tokio::spawn(async move { copy.apply(|_: Bad| (), (Bad::WritePanic,)).await }).await;
        assert!(!matches!(told, Ok(Ok(()))));
        assert_eq!(pool.map(square, 0..10).await.unwrap()[9], 81);
    });
}

#[test]
fn a_timeout_kills_what_runs() {
    run_each(60, async |context| {
        let pool = pool(context, 2).await;
        let notebook = Notebook::new();
        let call = pool.apply(note_pid_and_spin, (notebook.path(),)).timeout(Duration::from_millis(100));
        let error = call.await.unwrap_err();
        assert!(matches!(error, TaskError::TimedOut), "{error:?}");
        assert_eq!(error.ran(), Ran::Maybe);
        assert!(Error::from(error).is_timeout());
        let killed: i32 = notebook.notes()[0].parse().unwrap();
        eventually("the worker's end", || !runs(killed)).await;
        // Async tasks too.
        let late = pool.apply(async || std::future::pending::<()>().await, ());
        assert!(matches!(late.timeout(Duration::from_millis(50)).await, Err(TaskError::TimedOut)));
        eventually("two workers", || pool.worker_pids().len() == 2).await;
        assert_eq!(pool.map(square, 0..10).timeout(PATIENCE).await.unwrap()[9], 81);
    });
}

fn note_pid_and_spin(notebook: String) {
    note(&notebook, pid());
    spin();
}

/// Of a chunk only the item that ran too long.
#[test]
fn a_timeout_is_each_items_own() {
    run_each(60, async |context| {
        let pool = pool(context, 2).await;
        let notebook = Notebook::new();
        let path = notebook.path();
        let task = |x: u64, path: String| {
            note(&path, x);
            // All of them together take longer than one may.
            std::thread::sleep(Duration::from_millis(30));
            if x == 5 {
                spin();
            }
            x
        };
        let limit = Duration::from_millis(300);
        let call = pool.starmap(task, (0..30).map(move |x| (x, path.clone()))).chunk_size(15).timeout(limit);
        assert!(matches!(call.await, Err(TaskError::TimedOut)));
        notebook.assert_no_repetition();
        assert_eq!(notebook.notes().len(), 30);
    });
}

/// The time that a task waits for its turn is not counted.
#[test]
fn a_timeout_is_of_execution() {
    run_each(60, async |context| {
        let pool = pool(context, 1).await;
        let first = pool.apply(|| std::thread::sleep(Duration::from_millis(500)), ()).submit();
        let limit = Duration::from_millis(250);
        let behind: Vec<_> = (0..10).map(|x| pool.apply(square, (x,)).timeout(limit).submit()).collect();
        let stream = pool.imap(square, 0..10).timeout(limit);
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap()[9], 81);
        for (x, result) in (0..).zip(behind) {
            assert_eq!(result.await.unwrap(), x * x);
        }
        first.await.unwrap();
    });
}

/// A signal stops a process's threads one after another.
fn stands_still(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut stats = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap());
    stats.all(|stat| stat.rsplit(") ").next().is_some_and(|state| state.starts_with('T')))
}

#[test]
fn a_stopped_worker_is_freed_by_the_timeout() {
    run_each(60, async |context| {
        let pool = pool(context, 1).await;
        let stop = || raise(Signal::SIGSTOP).unwrap();
        let stopped = pool.apply(stop, ()).timeout(Duration::from_millis(100)).submit();
        let behind: Vec<_> = (0..5).map(|x| pool.apply(square, (x,)).submit()).collect();
        assert!(matches!(stopped.await, Err(TaskError::TimedOut)));
        for (x, result) in (0..).zip(behind) {
            assert_eq!(result.await.unwrap(), x * x);
        }
        // One that was stopped while it was idle: the task goes to another, or is told off in time.
        let stopped = pool.apply(pid, ()).await.unwrap();
        kill(Pid::from_raw(stopped), Signal::SIGSTOP).unwrap();
        eventually("its standstill", || stands_still(stopped)).await;
        let elsewhere = pool.apply(pid, ()).timeout(Duration::from_millis(100)).await;
        assert!(elsewhere.is_ok_and(|pid| pid != stopped) || pool.apply(square, (3,)).await.unwrap() == 9);
        eventually("its end", || !runs(stopped)).await;
        // A pool that ends does not wait for one either.
        kill(Pid::from_raw(pool.apply(pid, ()).await.unwrap()), Signal::SIGSTOP).unwrap();
        pool.terminate().await.unwrap();
        pool.join().await.unwrap();
    });
}

/// A command that can be found again, whoever its parent may be by then.
fn sleeper(marker: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("sleep 600; true {marker}")]);
    command
}

fn start_sleeper_and_spin(marker: String) {
    drop(sleeper(&marker).spawn().unwrap());
    spin();
}

#[test]
fn what_a_killed_task_had_started_dies_with_it() {
    run_each(60, async |context| {
        let pool = pool(context.clone(), 2).await;
        let marker = |what: &str| format!("sleeper-{}-{}-{what}", pid(), context.start_method());
        let gone = async |marker: &str| {
            eventually("no sleeper", || support::processes_with(marker).is_empty()).await
        };

        let timed_out = marker("timed-out");
        let call =
            pool.apply(start_sleeper_and_spin, (timed_out.clone(),)).timeout(Duration::from_millis(150));
        assert!(matches!(call.await, Err(TaskError::TimedOut)));
        gone(&timed_out).await;

        let aborted = marker("aborted");
        let result = pool.apply(start_sleeper_and_spin, (aborted.clone(),)).submit();
        eventually("a sleeper", || !support::processes_with(&aborted).is_empty()).await;
        result.abort();
        let error = result.await.unwrap_err();
        assert!(matches!(error, TaskError::Aborted { began: true }), "{error:?}");
        gone(&aborted).await;

        let dropped = marker("dropped");
        let mut call = pool.apply(start_sleeper_and_spin, (dropped.clone(),)).kill_on_drop();
        assert!(futures::poll!(&mut call).is_pending());
        eventually("a sleeper", || !support::processes_with(&dropped).is_empty()).await;
        drop(call);
        gone(&dropped).await;

        let died = marker("died");
        let dies = |marker: String| -> () {
            drop(sleeper(&marker).spawn().unwrap());
            std::process::abort();
        };
        worker_died(pool.apply(dies, (died.clone(),)).await.unwrap_err());
        gone(&died).await;

        let terminated = marker("terminated");
        let result = pool.apply(start_sleeper_and_spin, (terminated.clone(),)).submit();
        eventually("a sleeper", || !support::processes_with(&terminated).is_empty()).await;
        pool.terminate().await.unwrap();
        assert!(result.await.is_err());
        gone(&terminated).await;
    });
}

#[test]
fn what_a_task_leaves_behind_goes_with_its_worker() {
    run_each(60, async |context| {
        for orderly in [true, false] {
            let pool = pool(context.clone(), 1).await;
            let marker = format!("leftover-{}-{}-{orderly}", pid(), context.start_method());
            pool.apply(|marker: String| drop(sleeper(&marker).spawn().unwrap()), (marker.clone(),))
                .await
                .unwrap();
            eventually("a sleeper", || !support::processes_with(&marker).is_empty()).await;
            if orderly {
                pool.close();
                pool.join().await.unwrap();
            }
            drop(pool);
            eventually("no sleeper", || support::processes_with(&marker).is_empty()).await;
        }
    });
}

fn run_and_die(notebook: String, survivors: usize) -> usize {
    note(&notebook, "ran");
    let times = noted(&notebook, "ran");
    if times < survivors {
        support::kill_9(pid());
    }
    times
}

#[test]
fn retries_are_counted() {
    run_each(90, async |context| {
        for retries in [0, 1, 3] {
            // A fresh one each time: one that sees nothing but deaths replaces workers slowly.
            let pool = pool(context.clone(), 2).await;
            let notebook = Notebook::new();
            let call = pool.apply(run_and_die, (notebook.path(), usize::MAX)).retries(retries);
            assert_death(&worker_died(call.await.unwrap_err()), Death::Kill);
            assert_eq!(notebook.count("ran"), 1 + retries as usize);
        }
        // Tried again until it comes through, and no more.
        let pool = pool(context, 2).await;
        let notebook = Notebook::new();
        let call = pool.apply(run_and_die, (notebook.path(), 3)).retries(1000);
        assert_eq!(call.await.unwrap(), 3);
        assert_eq!(notebook.count("ran"), 3);
        // As an item among others.
        let notebooks: Vec<_> = (0..6).map(|_| Notebook::new()).collect();
        let items: Vec<_> =
            notebooks.iter().enumerate().map(|(i, notebook)| (notebook.path(), i % 3)).collect();
        let times = pool.starmap(run_and_die, items).chunk_size(3).retries(2).await.unwrap();
        assert_eq!(times, [1, 1, 2, 1, 1, 2]);
        // A timeout is a death too.
        let notebook = Notebook::new();
        let call = pool.apply(
            |path: String| {
                note(&path, "ran");
                spin()
            },
            (notebook.path(),),
        );
        let late = call.timeout(Duration::from_millis(50)).retries(2).await;
        assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
        assert_eq!(notebook.count("ran"), 3);
    });
}

/// What the task itself says is not tried again.
#[test]
fn retries_are_for_deaths_alone() {
    run(30, async {
        let pool = Pool::new(1).await.unwrap();
        let notebook = Notebook::new();
        let panics = |path: String| -> u8 {
            note(&path, "ran");
            panic!("on purpose")
        };
        assert!(pool.apply(panics, (notebook.path(),)).retries(5).await.is_err());
        let fails = |path: String| -> Result<u8, mp::Failure> {
            note(&path, "ran");
            Err(mp::Failure::msg("no"))
        };
        assert!(pool.apply(fails, (notebook.path(),)).retries(5).await.is_err());
        let unwritable = |path: String| {
            note(&path, "ran");
            Bad::Write
        };
        assert!(pool.apply(unwritable, (notebook.path(),)).retries(5).await.is_err());
        assert_eq!(notebook.count("ran"), 3);
    });
}

#[test]
fn tasks_behind_a_dead_one_run_elsewhere_once() {
    run_each(60, async |context| {
        for processes in [1, 2] {
            let pool = pool(context.clone(), processes).await;
            let notebook = Notebook::new();
            let first = pool
                .apply(
                    |path: String| {
                        note(&path, "first");
                        spin()
                    },
                    (notebook.path(),),
                )
                .submit();
            let task = |x: u64, path: String| {
                note(&path, x);
                x
            };
            let behind: Vec<_> = (0..50).map(|x| pool.apply(task, (x, notebook.path())).submit()).collect();
            notebook.wait_for("first", 1).await;
            // Which of the two it is need not be known: the idle one is replaced as well.
            pool.worker_pids().into_iter().for_each(support::kill_9);
            worker_died(first.await.unwrap_err());
            let mut lost = 0;
            for (x, result) in (0..).zip(behind) {
                match result.await {
                    Ok(value) => assert_eq!(value, x),
                    // It was running on the other worker just then.
                    Err(error) => {
                        worker_died(error);
                        lost += 1;
                    }
                }
            }
            assert!(lost < processes, "{lost} lost");
            notebook.assert_no_repetition();
        }
    });
}

#[test]
fn withdrawn_tasks_never_run() {
    run_each(60, async |context| {
        let pool = pool(context, 1).await;
        let notebook = Notebook::new();
        let first = pool.apply(held, (notebook.path(),)).submit();
        notebook.wait_for("held", 1).await;
        let task = |what: String, path: String| note(&path, what);
        let call = |what: &str| pool.apply(task, (what.to_owned(), notebook.path()));

        // The first of them lie in the worker's queue already, the others in the pool's.
        let aborted: Vec<_> = (0..300).map(|_| call("aborted").submit()).collect();
        aborted.iter().for_each(mp::AsyncResult::abort);
        let mut killed: Vec<_> = (0..300).map(|_| call("killed").kill_on_drop()).collect();
        for call in &mut killed {
            assert!(futures::poll!(call).is_pending());
        }
        drop(killed);
        drop((0..10).map(|_| call("killed").kill_on_drop().submit()).collect::<Vec<_>>());
        // Never asked for.
        drop(call("lazy"));
        // Given up by their callers, but begun by nobody's leave: Python's way.
        let mut left = call("left");
        assert!(futures::poll!(&mut left).is_pending());
        drop(left);
        drop(call("left").submit());
        let path = notebook.path();
        let items = (0..100).map(move |_| ("streamed".to_owned(), path.clone()));
        let mut stream = pool.imap(|(what, path): (String, String)| note(&path, what), items);
        assert!(futures::poll!(stream.next()).is_pending());
        drop(stream);
        let path = notebook.path();
        let mut map =
            pool.starmap(task, (0..100).map(move |_| ("mapped".to_owned(), path.clone()))).kill_on_drop();
        assert!(futures::poll!(&mut map).is_pending());
        drop(map);

        for result in aborted {
            let error = result.await.unwrap_err();
            assert!(matches!(error, TaskError::Aborted { began: false }), "{error:?}");
            assert_eq!(error.ran(), Ran::No);
        }
        notebook.open_gate();
        // Nothing that was withdrawn has cost the running task its worker.
        first.await.unwrap();
        call("last").await.unwrap();
        notebook.wait_for("left", 2).await;
        let mut notes = notebook.notes();
        notes.sort_unstable();
        assert_eq!(notes, ["held", "last", "left", "left"]);
    });
}

#[test]
fn abort_after_the_end_changes_nothing() {
    run(20, async {
        let pool = Pool::new(1).await.unwrap();
        let result = pool.apply(square, (3,)).submit();
        eventually("the result", || result.ready()).await;
        result.abort();
        assert_eq!(result.successful(), Some(true));
        assert_eq!(result.await.unwrap(), 9);
        let worker = pool.apply(pid, ()).await.unwrap();
        let mut call = pool.apply(square, (4,)).kill_on_drop();
        assert_eq!((&mut call).await.unwrap(), 16);
        drop(call);
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
    });
}

#[test]
fn a_dropped_stream_withdraws_and_may_kill() {
    run_each(60, async |context| {
        for kills in [false, true] {
            let pool = pool(context.clone(), 2).await;
            let notebook = Notebook::new();
            let path = notebook.path();
            let task = |(x, path): (u64, String)| {
                note(&path, format!("begun {x}"));
                pass_gate(&path);
                note(&path, format!("done {x}"));
            };
            let stream = pool.imap_unordered(task, (0..).map(move |x| (x, path.clone()))).buffer_size(50);
            let mut stream = if kills { stream.kill_on_drop() } else { stream };
            assert!(futures::poll!(stream.next()).is_pending());
            eventually("two begun", || notebook.notes().len() == 2).await;
            let workers = pool.worker_pids();
            drop(stream);
            if kills {
                eventually("the workers' end", || workers.iter().all(|pid| !runs(*pid))).await;
            }
            notebook.open_gate();
            pool.map(square, 0..100).await.unwrap();
            pool.close();
            pool.join().await.unwrap();
            let notes = notebook.notes();
            let count = |what| notes.iter().filter(|note| note.starts_with(what)).count();
            assert_eq!((count("begun"), count("done")), (2, if kills { 0 } else { 2 }), "{notes:?}");
        }
    });
}

/// Signals for a terminal's group, or a service's, are the parent's business.
#[test]
fn group_signals_do_not_reach_tasks() {
    run_each(40, async |context| {
        let pool = pool(context, 1).await;
        let notebook = Notebook::new();
        let worker = pool.apply(pid, ()).await.unwrap();
        let result = pool.apply(held, (notebook.path(),)).submit();
        notebook.wait_for("held", 1).await;
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            kill(Pid::from_raw(worker), signal).unwrap();
            killpg(Pid::from_raw(worker), signal).unwrap();
        }
        notebook.open_gate();
        result.await.unwrap();
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
        // What a task starts is an ordinary process again.
        let ended = || {
            let mut child = Command::new("sleep").arg("600").spawn().unwrap();
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
            child.wait().unwrap().code().is_none()
        };
        assert!(pool.apply(ended, ()).await.unwrap());
    });
}

/// Runs in a child, since it changes what a whole process has one of; and is not a daemon there.
async fn isolated(target: impl AsyncFn(mp::Context) -> mp::Process) {
    for context in support::methods() {
        let method = context.start_method();
        let child = target(context).await;
        let ended = child.join().await.unwrap();
        assert!(ended.success(), "{method}: {ended}");
    }
}

async fn still_works(method: mp::StartMethod) {
    let context = support::methods().into_iter().find(|context| context.start_method() == method);
    let pool = pool(context.unwrap(), 2).await;
    assert_eq!(pool.map(square, 0..10).await.unwrap()[9], 81);
    let error = pool.apply(die, (Death::Abort,)).await.unwrap_err();
    assert!(matches!(error, TaskError::WorkerDied(_)), "{error:?}");
    let late = pool.apply(spin, ()).timeout(Duration::from_millis(50)).await;
    assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
    assert_eq!(pool.map(square, 0..10).await.unwrap()[9], 81);
    pool.close();
    pool.join().await.unwrap();
}

#[test]
fn stdout_and_stderr_closed() {
    async fn child(method: mp::StartMethod, descriptors: Vec<i32>) {
        for descriptor in descriptors {
            nix::unistd::close(descriptor).unwrap();
        }
        still_works(method).await;
    }
    run(90, async {
        for closed in [vec![1], vec![2], vec![0, 1, 2]] {
            isolated(async |context| {
                context.process(child, (context.start_method(), closed.clone())).start().await.unwrap()
            })
            .await;
        }
        // By a task in its worker.
        let pool = Pool::new(1).await.unwrap();
        pool.apply(|| (0..3).for_each(|fd| _ = nix::unistd::close(fd)), ()).await.unwrap();
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
        let silenced = |path: String| {
            let file = File::create(path).unwrap();
            assert!(file.as_raw_fd() >= 0);
            println!("into nothing, or into the file");
            eprintln!("likewise");
        };
        pool.apply(silenced, (Notebook::new().path() + "/../x",)).await.ok();
        assert_eq!(pool.apply(square, (4,)).await.unwrap(), 16);
    });
}

#[test]
fn sigchld_ignored() {
    async fn child(method: mp::StartMethod) {
        // SAFETY: no handler, so no code runs.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.unwrap();
        still_works(method).await;
    }
    run(
        90,
        isolated(async |context| context.process(child, (context.start_method(),)).start().await.unwrap()),
    );
}

#[test]
fn children_reaped_by_somebody_else() {
    async fn child(method: mp::StartMethod) {
        std::thread::spawn(|| {
            loop {
                if nix::sys::wait::wait().is_err() {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        });
        still_works(method).await;
    }
    run(
        90,
        isolated(async |context| context.process(child, (context.start_method(),)).start().await.unwrap()),
    );
}

#[test]
fn executables_that_are_none() {
    async fn child(program: String) {
        mp::set_executable(&program);
        let error = Pool::new(2).await.unwrap_err();
        assert!(error.to_string().contains(&program), "{error}");
    }
    run(60, async {
        let notebook = Notebook::new();
        for program in ["/nonexistent/program".to_owned(), notebook.path() + "/notes"] {
            for method in [mp::StartMethod::Spawn, mp::StartMethod::ForkServer] {
                let started =
                    mp::Context::new(method).process(child, (program.clone(),)).start().await.unwrap();
                assert_eq!(started.join().await.unwrap().exit_code(), 0, "{program}");
            }
        }
    });
}

/// The end does not wait for what is not there yet.
#[test]
fn a_worker_that_never_gets_started() {
    async fn child(program: String) {
        let pool =
            Pool::builder().context(mp::Context::new(mp::StartMethod::Spawn)).processes(1).build().await;
        let pool = pool.unwrap();
        mp::set_executable(&program);
        support::kill_9(pool.worker_pids()[0]);
        eventually("its replacement", || !support::processes_with(&program).is_empty()).await;
        pool.terminate().await.unwrap();
        eventually("no replacement", || support::processes_with(&program).is_empty()).await;
    }
    // By itself the start would fail after a minute.
    run(40, async {
        use std::os::unix::fs::PermissionsExt as _;
        let notebook = Notebook::new();
        let program = notebook.path() + "/silent";
        std::fs::write(&program, "#!/bin/sh\nkill -STOP $$\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let child =
            mp::Context::new(mp::StartMethod::Spawn).process(child, (program,)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
    });
}

static INHERITED: Mutex<Option<Pool>> = Mutex::new(None);

#[test]
fn a_fork_of_the_pools_process_has_no_pool() {
    async fn child() {
        let pool = INHERITED.lock().unwrap().clone().expect("a copy");
        assert!(matches!(pool.ready().await, Err(Error::NotChild)));
        assert!(matches!(pool.join().await, Err(Error::NotChild)));
        assert!(matches!(pool.terminate().await, Err(Error::NotChild)));
        assert_eq!(pool.apply(square, (3,)).await.unwrap_err().ran(), Ran::No);
    }
    run(30, async {
        let pool = Pool::new(1).await.unwrap();
        *INHERITED.lock().unwrap() = Some(pool.clone());
        // SAFETY: what runs in the child takes no lock that another thread may hold.
        let fork = unsafe { mp::Context::fork_with_threads() };
        let child = fork.process(child, ()).start().await.unwrap();
        INHERITED.lock().unwrap().take();
        assert!(child.join().await.unwrap().success());
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
    });
}

/// Reading it takes until the test says so.
#[derive(Serialize)]
struct Slow;

static READING: Barrier = Barrier::new(2);

impl<'de> Deserialize<'de> for Slow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        READING.wait();
        READING.wait();
        <()>::deserialize(deserializer).map(|()| Self)
    }
}

#[test]
fn a_stream_can_be_polled_while_a_result_is_read() {
    run(30, async {
        let pool = Pool::new(1).await.unwrap();
        let mut stream = pool.imap(|_: u8| Slow, [1]);
        assert!(futures::poll!(stream.next()).is_pending());
        tokio::task::block_in_place(|| READING.wait());
        assert!(futures::poll!(stream.next()).is_pending());
        tokio::task::block_in_place(|| READING.wait());
        assert!(stream.next().await.unwrap().is_ok());
        assert!(stream.next().await.is_none());
    });
}

/// No descriptors left: an error, and the pool works again when there are some.
#[test]
fn out_of_descriptors() {
    async fn child() {
        use nix::sys::resource::{Resource, setrlimit};
        let pool = Pool::new(1).await.unwrap();
        assert_eq!(pool.apply(square, (3,)).await.unwrap(), 9);
        setrlimit(Resource::RLIMIT_NOFILE, 80, 80).unwrap();
        let mut hoard = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            hoard.push(file);
        }
        assert!(Pool::new(2).await.is_err());
        // A worker that is there needs none.
        assert_eq!(pool.map(square, 0..100).await.unwrap()[9], 81);
        // Nor does its end hang.
        worker_died(pool.apply(die, (Death::Kill,)).await.unwrap_err());
        hoard.clear();
        assert_eq!(pool.apply(square, (5,)).retries(0).await.unwrap(), 25);
    }
    run(60, async {
        let child = mp::Process::builder(child, ()).start().await.unwrap();
        assert_eq!(child.join().await.unwrap().exit_code(), 0);
    });
}

#[test]
fn the_parent_is_killed() {
    async fn parent(notebook: String, marker: String) {
        let pool = Pool::new(3).await.unwrap();
        let busy = |marker: String, path: String| {
            drop(sleeper(&marker).spawn().unwrap());
            note(&path, pid());
            spin();
        };
        let results: Vec<_> =
            (0..2).map(|_| pool.apply(busy, (marker.clone(), notebook.clone())).submit()).collect();
        pool.apply(|path: String| note(&path, pid()), (notebook,)).await.unwrap();
        futures::future::join_all(results).await;
    }
    run_each(60, async |context| {
        let notebook = Notebook::new();
        let marker = format!("orphan-{}-{}", pid(), context.start_method());
        let parent = context.process(parent, (notebook.path(), marker.clone())).start().await.unwrap();
        eventually("three workers", || notebook.notes().len() == 3).await;
        eventually("two sleepers", || support::processes_with(&marker).len() >= 2).await;
        let workers: Vec<i32> = notebook.notes().iter().map(|note| note.parse().unwrap()).collect();
        parent.kill().unwrap();
        parent.join().await.unwrap();
        eventually("no workers", || workers.iter().all(|pid| !runs(*pid))).await;
        eventually("no sleepers", || support::processes_with(&marker).is_empty()).await;
    });
}

/// Big messages in both directions when their worker dies at any moment.
#[test]
fn deaths_amid_big_messages() {
    run_each(60, async |context| {
        let pool = pool(context, 2).await;
        let echo = |bytes: Vec<u8>| {
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_micros(u64::from(pid().unsigned_abs()) * 37 % 3000));
                support::kill_9(pid());
            });
            bytes
        };
        let bytes: Vec<u8> = (0..400_000).map(|i| (i % 253) as u8).collect();
        for _ in 0..10 {
            // An echo that came back whole may have left its worker moments to live, amid this task.
            assert_eq!(pool.apply(square, (3,)).retries(9).await.unwrap(), 9);
            match pool.apply(echo, (bytes.clone(),)).await {
                Ok(echoed) => assert!(echoed == bytes),
                Err(error) => assert_death(&worker_died(error), Death::Kill),
            }
        }
        assert_eq!(pool.apply(|bytes: Vec<u8>| bytes.len(), (bytes,)).retries(3).await.unwrap(), 400_000);
    });
}

/// A value whose drop counts, for leaks of what callers gave and were given.
#[derive(Debug, Serialize, Deserialize)]
struct Counted(u64);

static LIVING: AtomicU32 = AtomicU32::new(0);

impl Counted {
    fn new(x: u64) -> Self {
        LIVING.fetch_add(1, Ordering::SeqCst);
        Self(x)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        LIVING.fetch_sub(1, Ordering::SeqCst);
    }
}

// conformance: _TestPool.test_release_task_refs
#[test]
fn arguments_are_let_go() {
    run_each(40, async |context| {
        let pool = pool(context, 2).await;
        let counted = |x: Counted| x.0;
        assert_eq!(pool.map(counted, (0..10).map(Counted::new)).await.unwrap()[9], 9);
        assert_eq!(pool.apply(counted, (Counted::new(3),)).await.unwrap(), 3);
        let streamed: Vec<u64> = pool.imap(counted, (0..10).map(Counted::new)).try_collect().await.unwrap();
        assert_eq!(streamed.len(), 10);
        drop(pool.map(counted, (0..10).map(Counted::new).collect::<Vec<_>>()));
        drop(pool.imap(counted, (0..10).map(Counted::new).collect::<Vec<_>>()));
        drop(pool.apply(counted, (Counted::new(3),)));
        eventually("no argument", || LIVING.load(Ordering::SeqCst) == 0).await;
    });
}

#[test]
fn a_task_that_forks_leaves_no_second_worker() {
    run(60, async {
        let pool = mp::Pool::new(1).await.unwrap();
        let fork = |panics: bool| {
            // SAFETY: the copy runs nothing but what this crate does with a task that came back.
            let pid = unsafe { libc::fork() };
            assert!(pid != 0 || !panics, "in the copy");
            pid
        };
        for panics in [false, true] {
            let pid = pool.apply(fork, (panics,)).await.unwrap();
            assert!(pid > 0);
        }
        let square = |x: u64| x * x;
        let squares = pool.map(square, 0..500).await.unwrap();
        assert_eq!(squares, (0..500).map(|x| x * x).collect::<Vec<_>>());
    });
}
