//! This crate beside procspawn, ipc-channel, rayon, workers made by hand with `tokio::process`, and CPython:
//! `cargo run --release` in this directory, with the names of what is to be compared, or all of it.
//! `starts-of-large` wants a `cargo build --release --features large` first.
//!
//! All take turns, round by round. CPython's rounds are runs of `anchors.py`; without a `python3`
//! they are left out. rayon's are on threads, and show what processes cost.

mod anchor;
mod by_hand;
mod channel;
mod channel_crew;
mod connections;
#[path = "../../support/contender.rs"]
mod contender;
#[path = "../../support/crew.rs"]
mod crew;
#[path = "../../support/goods.rs"]
mod goods;
mod kills;
mod locks;
mod once;
mod payloads;
#[path = "../../support/peer.rs"]
mod peer;
#[path = "../../support/queue_crew.rs"]
mod queue_crew;
mod queues;
#[path = "../../support/mod.rs"]
mod support;

use std::process::Command;

use anchor::anchor;
use futures::StreamExt;
use rayon::prelude::*;
use support::{Bound, Figure, each, heading, share};
use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess as mp;

const ROUNDS: usize = 5;
const PROCESSES: usize = 2;

fn main() {
    by_hand::enter();
    once::enter();
    // procspawn's children come this way.
    procspawn::init();
    let chosen: Vec<_> = std::env::args().skip(1).collect();
    let wants = |what: &str| chosen.is_empty() || chosen.iter().any(|name| name == what);
    let python =
        Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !python {
        println!("no python3 here: without CPython");
    }
    if wants("starts-of-large") {
        once::compare();
    }
    if wants("starts") {
        let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
        // Before there are other threads: `fork` is refused beside them.
        starts(&current, python);
    }
    let multi = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if wants("pools") {
        pools(&multi, python);
    }
    if wants("kills") {
        kills::compare(&multi, python);
    }
    if wants("connections") {
        // As most who wait for one connection at a time.
        let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
        connections::compare(&current, python);
    }
    if wants("locks") {
        let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
        locks::compare(&current, python);
    }
    if wants("queues") {
        let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
        queues::compare(&current, python);
    }
    if wants("payloads") {
        payloads::compare(&multi, python);
    }
}

fn square(x: u64) -> u64 {
    x * x
}

fn starts(runtime: &Runtime, python: bool) {
    const STARTS: usize = 20;
    let mut figures: Vec<_> = mp::get_all_start_methods()
        .iter()
        .map(|method| {
            let context = mp::Context::new(*method);
            runtime.block_on(start_and_join(&context));
            (context, *method, Figure::new(method.to_string()), Figure::new(format!("CPython, {method}")))
        })
        .collect();
    let mut peer = Figure::new("procspawn, a process for each call");
    for _ in 0..ROUNDS {
        for (context, method, ours, cpython) in &mut figures {
            ours.push(each(STARTS, || runtime.block_on(start_and_join(context))));
            if python {
                cpython.push(anchor(&format!("start_join_{method}"), PROCESSES, STARTS, 0));
            }
        }
        peer.push(each(STARTS, || procspawn::spawn((), |()| ()).join().expect("its end")));
    }
    heading("start + join");
    for (_, method, ours, cpython) in &figures {
        if python {
            cpython.print();
            ours.print_against(cpython, Bound::None);
        } else {
            ours.print();
        }
        if *method == mp::StartMethod::Spawn {
            peer.print_against(ours, Bound::None);
        }
    }
}

async fn start_and_join(context: &mp::Context) {
    let child = context.process(|| {}, ()).start().await.expect("a child");
    assert!(child.join().await.expect("its end").success());
}

/// Does as many operations.
type Run<'a> = Box<dyn Fn(u32) + 'a>;

/// One workload, as each that knows it does it.
struct Workload<'a> {
    name: &'static str,
    /// What `anchors.py` calls it.
    anchor: &'static str,
    count: u32,
    at_least: Bound,
    ours: Run<'a>,
    peers: Vec<(&'static str, Run<'a>)>,
}

fn pools(runtime: &Runtime, python: bool) {
    let pool = runtime.block_on(mp::Pool::new(PROCESSES)).expect("a pool");
    let processes = procspawn::Pool::new(PROCESSES).expect("a pool");
    let threads = rayon::ThreadPoolBuilder::new().num_threads(PROCESSES).build().expect("a pool");
    let (pool, processes, threads) = (&pool, &processes, &threads);
    let workloads = [
        Workload {
            name: "Pool::map of 1,000,000 squares",
            anchor: "pool_map",
            count: 1_000_000,
            at_least: Bound::Faster(3.0),
            ours: Box::new(|count| {
                let squares = runtime.block_on(pool.map(square, 0..u64::from(count))).expect("squares");
                assert_eq!(squares.last(), Some(&square(u64::from(count) - 1)));
            }),
            peers: vec![(
                "rayon, on threads",
                Box::new(|count| {
                    let squares: Vec<_> =
                        threads.install(|| (0..u64::from(count)).into_par_iter().map(square).collect());
                    assert_eq!(squares.last(), Some(&square(u64::from(count) - 1)));
                }),
            )],
        },
        Workload {
            name: "Pool::imap of 30,000 squares, chunk 1",
            anchor: "pool_imap",
            count: 30_000,
            at_least: Bound::Faster(30.0),
            ours: Box::new(|count| {
                let squares = pool.imap(square, 0..u64::from(count));
                assert_eq!(runtime.block_on(squares.count()), count as usize);
            }),
            peers: vec![],
        },
        Workload {
            name: "20,000 x submit",
            anchor: "pool_submit",
            count: 20_000,
            at_least: Bound::Faster(30.0),
            ours: Box::new(|count| {
                runtime.block_on(async {
                    let submit = |x| pool.apply(square, (x,)).submit();
                    let pending: Vec<_> = (0..u64::from(count)).map(submit).collect();
                    for result in pending {
                        result.await.expect("a square");
                    }
                });
            }),
            peers: vec![(
                "procspawn's pool",
                Box::new(|count| {
                    // By and by: each call that is pending holds descriptors there.
                    let all: Vec<_> = (0..u64::from(count)).collect();
                    for some in all.chunks(100) {
                        let pending: Vec<_> = some.iter().map(|x| processes.spawn(*x, square)).collect();
                        for handle in pending {
                            handle.join().expect("a square");
                        }
                    }
                }),
            )],
        },
        Workload {
            name: "Pool::apply, one at a time",
            anchor: "pool_apply",
            count: 3_000,
            at_least: Bound::None,
            ours: Box::new(|count| {
                runtime.block_on(async {
                    for x in 0..u64::from(count) {
                        pool.apply(square, (x,)).await.expect("a square");
                    }
                });
            }),
            peers: vec![(
                "procspawn's pool",
                Box::new(|count| {
                    for x in 0..u64::from(count) {
                        processes.spawn(x, square).join().expect("a square");
                    }
                }),
            )],
        },
    ];
    for workload in &workloads {
        workload.compare(python);
    }
}

impl Workload<'_> {
    fn compare(&self, python: bool) {
        let mut ours = Figure::new("this crate, each");
        let mut cpython = Figure::new("CPython");
        let mut peers: Vec<_> = self.peers.iter().map(|(name, run)| (Figure::new(*name), run)).collect();
        // Workers that are warm, as CPython's are.
        (self.ours)(self.count.min(1_000));
        for _ in 0..ROUNDS {
            ours.push(share(self.count, || (self.ours)(self.count)));
            for (figure, run) in &mut peers {
                figure.push(share(self.count, || run(self.count)));
            }
            if python {
                cpython.push(anchor(self.anchor, PROCESSES, self.count as usize, 0));
            }
        }
        heading(self.name);
        if python {
            cpython.print();
            ours.print_against(&cpython, self.at_least);
        } else {
            ours.print();
        }
        for (figure, _) in &peers {
            figure.print_against(&ours, Bound::None);
        }
    }
}
