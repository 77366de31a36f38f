//! Connections beside bare sockets: `cargo bench --bench connection`; against other channels between
//! processes: `connections` in the package `benches/compare`.

#[path = "support/peer.rs"]
mod peer;
mod support;

use peer::{Kind, Peer, Work};
use support::{Bound, Figure, KeptOn, heading};
use tokio::runtime::{Builder, Runtime};

const ROUNDS: usize = 15;
const ALL: [Kind; 3] = [Kind::Bare, Kind::Pipe, Kind::Listener];

fn main() {
    let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let multi = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    round_trips("64 B there and back, multi_thread runtime", &multi);
    // Who is at the other end is on another one.
    let _here = KeptOn::processor(0);
    round_trips("64 B there and back, current_thread runtime", &current);
    one_way(&current);
    for (title, size, count) in [
        ("16 KiB one way, each", 16 << 10, 2_000),
        ("1 MiB one way, each", 1 << 20, 100),
        ("64 MiB one way, each", 64 << 20, 3),
    ] {
        throughput(title, &current, size, count);
    }
}

fn round_trips(title: &str, runtime: &Runtime) {
    const TRIPS: u32 = 2_000;
    let mut peers = ALL.map(|kind| runtime.block_on(Peer::start(kind, Work::Echo)));
    let mut figures = ALL.map(|kind| Figure::new(kind.name()));
    for _ in 0..ROUNDS {
        for (peer, figure) in peers.iter_mut().zip(&mut figures) {
            figure.push(runtime.block_on(peer.round_trips(TRIPS)));
        }
    }
    heading(title);
    print(&figures, Bound::Times(1.15));
    peers.into_iter().for_each(|peer| runtime.block_on(peer.stop()));
}

fn one_way(runtime: &Runtime) {
    const COUNT: u32 = 50_000;
    let work = Work::Values { count: COUNT };
    let mut peers = ALL.map(|kind| runtime.block_on(Peer::start(kind, work)));
    let mut sent = ALL.map(|kind| Figure::new(kind.name()));
    let mut fed = [Kind::Pipe, Kind::Listener].map(|kind| Figure::new(format!("{}, as a Sink", kind.name())));
    for _ in 0..ROUNDS {
        for (peer, figure) in peers.iter_mut().zip(&mut sent) {
            figure.push(runtime.block_on(peer.send(COUNT)));
        }
        for (peer, figure) in peers[1..].iter_mut().zip(&mut fed) {
            figure.push(runtime.block_on(peer.feed(COUNT)));
        }
    }
    heading("64 B one way, each");
    print(&sent, Bound::None);
    for figure in &fed {
        figure.print_against(&sent[0], Bound::None);
    }
    peers.into_iter().for_each(|peer| runtime.block_on(peer.stop()));
}

fn throughput(title: &str, runtime: &Runtime, size: usize, count: u32) {
    let mut peers = ALL.map(|kind| runtime.block_on(Peer::start(kind, Work::Bytes { size, count })));
    let mut figures = ALL.map(|kind| Figure::new(kind.name()));
    for _ in 0..ROUNDS {
        for (peer, figure) in peers.iter_mut().zip(&mut figures) {
            figure.push(runtime.block_on(peer.send_bytes(size, count)));
        }
    }
    heading(title);
    print(&figures, Bound::None);
    peers.into_iter().for_each(|peer| runtime.block_on(peer.stop()));
}

fn print(figures: &[Figure], bound: Bound) {
    let (bare, ours) = figures.split_first().expect("the bare one");
    bare.print();
    for figure in ours {
        figure.print_against(bare, bound);
    }
}
