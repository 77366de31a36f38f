//! What workers write: inherited, or line by line as events.

#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::process::abort;
use std::sync::{Mutex, Once};

use support::{current_thread, eventually, guard, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Output, Pool, TaskError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The events of workers, each as its fields.
static SEEN: Mutex<Vec<BTreeMap<&'static str, String>>> = Mutex::new(Vec::new());

struct Collector;

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "tokio_multiprocess::worker"
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        SEEN.lock().unwrap().push(fields.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Collector).unwrap());
    SEEN.lock().unwrap().clear();
}

/// The lines that were seen of a stream.
fn lines(stream: &str) -> Vec<String> {
    let seen = SEEN.lock().unwrap();
    seen.iter().filter(|event| event["stream"] == stream).map(|event| event["message"].clone()).collect()
}

fn count(stream: &str) -> usize {
    SEEN.lock().unwrap().iter().filter(|event| event["stream"] == stream).count()
}

async fn traced(context: mp::Context) -> Pool {
    collect();
    Pool::builder().context(context).processes(1).name("Scribe").output(Output::Trace).build().await.unwrap()
}

// Not by `println!`: what a test prints its harness captures, also in a copy of its process.

fn speak(text: String) {
    std::io::stdout().write_all(format!("out: {text}\n").as_bytes()).unwrap();
    write_raw(format!("err: {text}\n").into_bytes());
}

fn write_raw(bytes: Vec<u8>) {
    std::io::stderr().write_all(&bytes).unwrap();
}

fn last_words() {
    write_raw(b"half a line".to_vec());
    abort();
}

#[test]
fn lines_are_events_with_worker_task_and_stream() {
    run_each(60, |context| async move {
        let pool = traced(context).await;
        pool.apply(speak, ("hello".to_owned(),)).await.unwrap();
        eventually("both lines", || count("stdout") + count("stderr") >= 2).await;
        for (stream, line) in [("stdout", "out: hello"), ("stderr", "err: hello")] {
            let seen = SEEN.lock().unwrap();
            let event = seen.iter().find(|event| event["stream"] == stream).unwrap();
            assert_eq!(event["message"], line);
            assert!(event["worker"].starts_with("Scribe-"), "{event:?}");
            assert!(event["task"].ends_with("speak"), "{event:?}");
        }
        pool.terminate().await.unwrap();
    });
}

#[test]
fn long_lines_are_cut_and_what_is_not_utf8_is_replaced() {
    run(60, async {
        let pool = traced(mp::get_context(None)).await;
        pool.apply(write_raw, (b"\xff!\n".to_vec(),)).await.unwrap();
        pool.apply(write_raw, (vec![b'x'; 20_000],)).await.unwrap();
        pool.apply(write_raw, (b"\n".to_vec(),)).await.unwrap();
        eventually("four lines", || count("stderr") >= 4).await;
        let lines = lines("stderr");
        assert_eq!(lines[0], "\u{fffd}!");
        assert_eq!(lines[1..].iter().map(String::len).collect::<Vec<_>>(), [8192, 8192, 20_000 - 2 * 8192]);
        pool.terminate().await.unwrap();
    });
}

#[test]
fn the_end_of_a_dead_worker_is_seen_and_in_its_error() {
    run_each(60, |context| async move {
        let pool = traced(context).await;
        let error = pool.apply(last_words, ()).await.unwrap_err();
        let TaskError::WorkerDied(died) = error else { panic!("{error}") };
        assert!(died.stderr_tail.contains("half a line"), "{died:?}");
        eventually("the line without an end", || {
            let seen = SEEN.lock().unwrap();
            seen.iter().any(|event| {
                event["message"].contains("half a line")
                    && event.get("task").is_some_and(|task| task.ends_with("last_words"))
            })
        })
        .await;
        pool.terminate().await.unwrap();
    });
}

/// On one thread, with everybody else's work.
#[test]
fn a_flood_starves_nobody_and_is_not_piled_up() {
    const LINES: usize = 50_000;
    let flood = || {
        let mut out = std::io::stdout().lock();
        for _ in 0..LINES {
            out.write_all(b"a line of a flood that is of some length\n").unwrap();
        }
    };
    let _guard = guard(120);
    collect();
    current_thread().block_on(async {
        let pool = Pool::builder().processes(2).name("Flood").output(Output::Trace).build().await.unwrap();
        let flooding = pool.apply(flood, ()).submit();
        eventually("its beginning", || count("stdout") > 0).await;
        let mut before = count("stdout");
        let mut calls = 0;
        // The worker waits for its lines to be taken, and a task that takes none goes between them.
        while before < LINES / 2 {
            pool.apply(|| (), ()).await.unwrap();
            calls += 1;
            before = count("stdout");
        }
        assert!(calls > 10, "{calls} calls while half of the flood was taken");
        flooding.await.unwrap();
        eventually("all lines", || count("stdout") >= LINES).await;
        assert_eq!(count("stdout"), LINES);
        pool.terminate().await.unwrap();
    });
    SEEN.lock().unwrap().clear();
}

#[test]
fn where_it_is_inherited_stdout_is_this_process_s() {
    run_each(60, |context| async move {
        let place = || std::fs::read_link("/proc/self/fd/1").unwrap();
        let pool = Pool::builder().context(context.clone()).processes(1).build().await.unwrap();
        assert_eq!(pool.apply(place, ()).await.unwrap(), place());
        pool.terminate().await.unwrap();
        let pool = traced(context).await;
        let theirs = pool.apply(place, ()).await.unwrap();
        assert!(theirs != place() && theirs.to_string_lossy().starts_with("pipe:"), "{theirs:?}");
        pool.terminate().await.unwrap();
    });
}
