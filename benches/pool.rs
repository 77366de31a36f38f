//! A pool beside what it stands on: a socket, a copy in memory, the start of a process.
//! `cargo bench --bench pool`; against other pools: the package `benches/compare`.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::{Bound, Figure, heading, once, said, share};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess as mp;

const ROUNDS: usize = 9;

fn main() {
    let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let multi = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    round_trips("one task at a time, current_thread runtime", &current);
    round_trips("one task at a time, multi_thread runtime", &multi);
    multi.block_on(blobs());
    multi.block_on(kills());
    multi.block_on(memory());
}

fn square(x: u64) -> u64 {
    x * x
}

async fn pool(processes: usize) -> mp::Pool {
    let pool = mp::Pool::new(processes).await.expect("a pool");
    pool.ready().await.expect("all its workers");
    pool
}

fn round_trips(title: &str, runtime: &Runtime) {
    const TRIPS: u32 = 2_000;
    let mut bare = Figure::new("bare Tokio UnixStream, 64 B there and back");
    let mut apply = Figure::new("Pool::apply");
    let (pool, mut echo) = runtime.block_on(async { (pool(1).await, Echo::start().await) });
    for _ in 0..ROUNDS {
        bare.push(share(TRIPS, || {
            runtime.block_on(async {
                for _ in 0..TRIPS {
                    echo.round_trip().await;
                }
            });
        }));
        apply.push(share(TRIPS, || {
            runtime.block_on(async {
                for x in 0..u64::from(TRIPS) {
                    assert_eq!(pool.apply(square, (x,)).await.expect("its square"), x * x);
                }
            });
        }));
    }
    runtime.block_on(echo.stop());
    heading(title);
    bare.print();
    apply.print_against(&bare, Bound::Times(1.3));
}

/// A process that sends back what it gets.
struct Echo {
    process: mp::Process,
    stream: UnixStream,
}

impl Echo {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("echo");
        let listener = UnixListener::bind(&path).expect("a listener");
        let process = mp::Process::builder(echo, (path,)).start().await.expect("a child");
        let (stream, _) = listener.accept().await.expect("a connection");
        Self { process, stream }
    }

    async fn round_trip(&mut self) {
        let mut message = [7; 64];
        self.stream.write_all(&message).await.expect("sent");
        self.stream.read_exact(&mut message).await.expect("received");
    }

    async fn stop(self) {
        drop(self.stream);
        self.process.join().await.expect("its end");
    }
}

async fn echo(path: PathBuf) {
    let mut stream = UnixStream::connect(path).await.expect("a connection");
    let mut message = [0; 64];
    while stream.read_exact(&mut message).await.is_ok() {
        stream.write_all(&message).await.expect("sent");
    }
}

async fn blobs() {
    const SIZE: usize = 64 << 20;
    let mut copied = Figure::new("memcpy of 64 MiB");
    let mut made = Figure::new("Blob::new of 64 MiB");
    let mut sent = Figure::new("64 MiB Blob to a worker and back");
    let pool = pool(1).await;
    let source = vec![7u8; SIZE];
    let mut target = source.clone();
    for _ in 0..ROUNDS {
        copied.push(once(|| target.copy_from_slice(std::hint::black_box(&source))));
        std::hint::black_box(&target);
        let begin = Instant::now();
        let blob = mp::Blob::new(&source).expect("a blob");
        made.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        let back = pool.apply(|blob: mp::Blob| blob, (blob,)).await.expect("the same");
        sent.push(begin.elapsed().as_secs_f64());
        assert_eq!((back.len(), back.last()), (SIZE, Some(&7)));
    }
    heading("a large value");
    copied.print();
    made.print_against(&copied, Bound::None);
    sent.print_against(&copied, Bound::Times(2.0));
}

/// A task that never ends is killed: when its processor is free, and when the next task is done.
async fn kills() {
    const LIMIT: Duration = Duration::from_millis(30);
    let mut started = Figure::new("start of a process");
    let mut freed = Figure::new("time limit over -> its worker is gone");
    let mut replaced = Figure::new("time limit over -> the next task is done");
    let pool = pool(1).await;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let child = mp::Process::builder(|| {}, ()).start().await.expect("a child");
        started.push(begin.elapsed().as_secs_f64());
        child.join().await.expect("its end");

        pool.apply(square, (1,)).await.expect("a warm worker");
        let [worker] = pool.worker_pids()[..] else { panic!("one worker") };
        // The task begins a little later than this, so both figures are upper bounds.
        let over = Instant::now() + LIMIT;
        let killed = pool.apply(spin, ()).timeout(LIMIT).await;
        assert!(matches!(killed, Err(mp::TaskError::TimedOut)), "{killed:?}");
        while alive(worker) {
            std::hint::spin_loop();
        }
        freed.push(over.elapsed().as_secs_f64());
        pool.apply(square, (1,)).await.expect("a new worker");
        replaced.push(over.elapsed().as_secs_f64());
    }
    heading("kill by timeout");
    started.print();
    freed.print_within(Duration::from_millis(5));
    replaced.print_against(&started, Bound::Times(3.0));
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

/// Whether the process is there and not a zombie.
fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, state)| !state.starts_with(" Z"))
}

/// What an idle worker costs: pages that it shares with nobody.
async fn memory() {
    const LIMIT: u64 = 2 << 10;
    let pool = pool(2).await;
    pool.map(square, 0..10_000u64).await.expect("squares");
    println!("\nprivate memory of an idle worker, in KiB");
    for pid in pool.worker_pids() {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a worker");
        let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
        let private: u64 = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
        println!("worker {pid}: {private:>6}  at most {LIMIT}: {}", said(private <= LIMIT));
    }
}
