//! The start of workers in a program that has just been started itself: the first, and those that
//! follow. `src/bin/large.rs` is a program of 200 MB for it.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tokio::runtime::Builder;
use tokio_multiprocess as mp;

use crate::by_hand::Worker;
use crate::support::{Bound, Figure, heading};

const ARGUMENT: &str = "--once";
const ROUNDS: usize = 5;
const WARM: usize = 15;

/// How workers are started.
const WAYS: [&str; 4] = ["by-hand", "spawn", "forkserver", "fork"];

/// Starts workers one way if that is what this process is for, and prints what the first took, and
/// the others in the median.
pub(crate) fn enter() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some(ARGUMENT) {
        return;
    }
    let way = args.next().expect("a way");
    // One without threads, as `fork` wants it.
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let first = runtime.block_on(start(&way));
    let mut others: Vec<_> = (0..WARM).map(|_| runtime.block_on(start(&way))).collect();
    others.sort_by(f64::total_cmp);
    println!("{first} {}", others[WARM / 2]);
    std::process::exit(0);
}

/// Until the first answer; in seconds.
async fn start(way: &str) -> f64 {
    let begin = Instant::now();
    if way == "by-hand" {
        let worker = Worker::start().await;
        let time = begin.elapsed().as_secs_f64();
        worker.end().await;
        return time;
    }
    let context = mp::Context::new(way.parse().expect("a start method"));
    let pool = mp::Pool::builder().context(context).processes(1).build().await.expect("a pool");
    pool.apply(|| {}, ()).await.expect("an answer");
    let time = begin.elapsed().as_secs_f64();
    pool.terminate().await.expect("its end");
    time
}

pub(crate) fn compare() {
    let small = std::env::current_exe().expect("this program");
    let large = small.with_file_name("large");
    if !large.exists() {
        println!("\nno large program: `cargo build --release --features large` makes it");
        return;
    }
    for (size, program) in [("this program", &small), ("one of 200 MB", &large)] {
        let mut figures = WAYS
            .map(|way| [format!("{way}, cold"), format!("{way}, warm")].map(|name| (way, Figure::new(name))));
        for _ in 0..ROUNDS {
            for [(way, cold), (_, warm)] in &mut figures {
                evict(program);
                let output = Command::new(program).args([ARGUMENT, way]).output().expect("it runs");
                let text = String::from_utf8_lossy(&output.stdout);
                let (first, others) = text.trim().split_once(' ').unwrap_or_else(|| panic!("{output:?}"));
                cold.push(first.parse().expect("a time"));
                warm.push(others.parse().expect("a time"));
            }
        }
        heading(&format!("start of a worker until its first answer, {size}"));
        let [[(_, by_hand), (_, by_hand_warm)], others @ ..] = &figures;
        by_hand.print();
        others.iter().for_each(|[(_, cold), _]| cold.print_against(by_hand, Bound::None));
        by_hand_warm.print();
        others.iter().for_each(|[_, (_, warm)]| warm.print_against(by_hand_warm, Bound::None));
    }
}

/// Has the kernel forget what it keeps of a file. What a running process has mapped stays.
fn evict(program: &Path) {
    let file = File::open(program).expect("a program");
    file.sync_all().expect("written");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("forgotten");
}
