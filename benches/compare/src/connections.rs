//! Connections beside ipc-channel, bare sockets and CPython's.

use tokio::runtime::Runtime;

use crate::anchor::anchor;
use crate::channel::Channel;
use crate::peer::{Kind, Peer, Work};
use crate::support::{Bound, Figure, heading};

const ROUNDS: usize = 9;

pub(crate) fn compare(runtime: &Runtime, python: bool) {
    round_trips(runtime, python);
    one_way(runtime, "64 B one way, each", 64, 100_000, Bound::Faster(2.0), python);
    one_way(runtime, "16 KiB one way, each", 16 << 10, 4_000, Bound::None, python);
    one_way(runtime, "1 MiB one way, each", 1 << 20, 100, Bound::None, python);
}

fn round_trips(runtime: &Runtime, python: bool) {
    const TRIPS: u32 = 3_000;
    let work = Work::Echo { size: 64 };
    let [mut bare, mut ours] = [Kind::Bare, Kind::Pipe].map(|kind| runtime.block_on(Peer::start(kind, work)));
    let channel = runtime.block_on(Channel::start(work));
    let mut bares = Figure::new(Kind::Bare.name());
    let mut trips = Figure::new(Kind::Pipe.name());
    let mut channels = Figure::new("ipc-channel");
    let mut cpython = Figure::new("CPython's Pipe");
    for _ in 0..ROUNDS {
        bares.push(runtime.block_on(bare.round_trips(TRIPS)));
        trips.push(runtime.block_on(ours.round_trips(TRIPS)));
        channels.push(channel.round_trips(TRIPS));
        if python {
            cpython.push(anchor("connection_trips", 1, TRIPS as usize, 64));
        }
    }
    heading("64 B there and back");
    bares.print();
    trips.print_against(&bares, Bound::Times(1.15));
    channels.print_against(&bares, Bound::None);
    if python {
        cpython.print_against(&bares, Bound::None);
    }
    runtime.block_on(async {
        bare.stop().await;
        ours.stop().await;
        channel.stop().await;
    });
}

/// All against ipc-channel; `sent` is what is asked of `send`.
fn one_way(runtime: &Runtime, title: &str, size: usize, count: u32, sent: Bound, python: bool) {
    let work = Work::Take { size, count };
    let [mut bare, mut ours] = [Kind::Bare, Kind::Pipe].map(|kind| runtime.block_on(Peer::start(kind, work)));
    let channel = runtime.block_on(Channel::start(work));
    let mut channels = Figure::new("ipc-channel");
    let mut sends = Figure::new("pipe(), send");
    let mut feeds = Figure::new("pipe(), feed of a Sink");
    let mut bares = Figure::new(Kind::Bare.name());
    let mut cpython = Figure::new("CPython's Pipe");
    for _ in 0..ROUNDS {
        channels.push(channel.send(size, count));
        sends.push(runtime.block_on(ours.send(size, count)));
        feeds.push(runtime.block_on(ours.feed(size, count)));
        bares.push(runtime.block_on(bare.send(size, count)));
        if python {
            cpython.push(anchor("connection_one_way", 1, count as usize, size));
        }
    }
    heading(title);
    channels.print();
    sends.print_against(&channels, sent);
    // Batches are for small messages.
    feeds.print_against(&channels, if size < 1 << 10 { Bound::Faster(6.0) } else { Bound::None });
    bares.print_against(&channels, Bound::None);
    if python {
        cpython.print_against(&channels, Bound::None);
    }
    runtime.block_on(async {
        bare.stop().await;
        ours.stop().await;
        channel.stop().await;
    });
}
