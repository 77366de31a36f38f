//! Locks and the like, uncontended and contended: `cargo bench --bench synchronize`; beside CPython's: `locks`
//! in the package `benches/compare`.

#[path = "support/contender.rs"]
mod contender;
mod support;

use std::sync::Mutex;
use std::time::Duration;

use contender::Contender;
use support::{Figure, KeptOn, heading, share};
use tokio::runtime::{Builder, Runtime};
use tokio::task::coop::unconstrained;
use tokio_multiprocess as mp;

const ROUNDS: usize = 15;
const COUNT: u32 = 200_000;

fn main() {
    let _here = KeptOn::processor(0);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    uncontended(&runtime);
    contended(&runtime);
}

fn uncontended(runtime: &Runtime) {
    let (std_mutex, tokio_mutex) = (Mutex::new(()), tokio::sync::Mutex::new(()));
    let lock = mp::Lock::new().expect("a lock");
    let mut figures = [
        "std's Mutex, in one process",
        "Tokio's Mutex, in one process",
        "Lock: acquire",
        "Lock: acquire, outside of Tokio's budget",
        "Lock: try_acquire",
    ]
    .map(Figure::new);
    for _ in 0..ROUNDS {
        let [std, tokio, acquired, alone, tried] = &mut figures;
        let each = |operation: &dyn Fn()| share(COUNT, || (0..COUNT).for_each(|_| operation()));
        std.push(each(&|| drop(std_mutex.lock().expect("free"))));
        tokio.push(runtime.block_on(async {
            share_async(async {
                for _ in 0..COUNT {
                    drop(tokio_mutex.lock().await);
                }
            })
            .await
        }));
        acquired.push(runtime.block_on(share_async(contender::take(&lock, COUNT))));
        alone.push(runtime.block_on(unconstrained(share_async(contender::take(&lock, COUNT)))));
        tried.push(each(&|| drop(lock.try_acquire().expect("a lock").expect("free"))));
    }
    heading("taken and given back by one alone");
    let [std, tokio, acquired, alone, tried] = &figures;
    std.print();
    tokio.print();
    acquired.print_within(Duration::from_nanos(25));
    // A task that never waits has to let others go on after each 128 of anything: that is the runtime's share.
    alone.print_within(Duration::from_nanos(25));
    tried.print();
}

async fn share_async(all: impl Future<Output = ()>) -> f64 {
    let begin = std::time::Instant::now();
    all.await;
    begin.elapsed().as_secs_f64() / f64::from(COUNT)
}

fn contended(runtime: &Runtime) {
    let mut contender = runtime.block_on(Contender::start(COUNT));
    let mut figure = Figure::new("Lock");
    for _ in 0..ROUNDS {
        figure.push(runtime.block_on(contender.round()));
    }
    heading("taken and given back by two processes at a time, each");
    figure.print();
    runtime.block_on(contender.stop());
}
