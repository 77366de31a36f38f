//! Connections beside ipc-channel, bare sockets and CPython's.

use tokio::runtime::Runtime;

use crate::anchor::anchor;
use crate::channel::Channel;
use crate::peer::{Kind, Peer, SIZE, Work};
use crate::support::{Bound, Figure, KeptOn, heading};

const ROUNDS: usize = 15;
const KINDS: [Kind; 3] = [Kind::Bare, Kind::Pipe, Kind::Listener];

pub(crate) fn compare(runtime: &Runtime, python: bool) {
    // Who is at the other end is on another one.
    let _here = KeptOn::processor(0);
    round_trips(runtime, python);
    values(runtime, python);
    bytes(runtime, python, "64 B of bytes one way, each", SIZE, 50_000);
    bytes(runtime, python, "16 KiB one way, each", 16 << 10, 4_000);
    bytes(runtime, python, "1 MiB one way, each", 1 << 20, 100);
}

/// All who take part.
struct Parties {
    peers: [Peer; 3],
    channel: Channel,
}

impl Parties {
    async fn start(work: Work) -> Self {
        let [bare, pipe, listener] = KINDS.map(|kind| Peer::start(kind, work));
        Self { peers: [bare.await, pipe.await, listener.await], channel: Channel::start(work).await }
    }

    async fn stop(self) {
        for peer in self.peers {
            peer.stop().await;
        }
        self.channel.stop().await;
    }
}

fn figures() -> ([Figure; 3], Figure, Figure) {
    (KINDS.map(|kind| Figure::new(kind.name())), Figure::new("ipc-channel"), Figure::new("CPython's Pipe"))
}

fn round_trips(runtime: &Runtime, python: bool) {
    const TRIPS: u32 = 2_000;
    let mut parties = runtime.block_on(Parties::start(Work::Echo));
    let (mut trips, mut channel, mut cpython) = figures();
    for _ in 0..ROUNDS {
        for (peer, figure) in parties.peers.iter_mut().zip(&mut trips) {
            figure.push(runtime.block_on(peer.round_trips(TRIPS)));
        }
        channel.push(parties.channel.round_trips(TRIPS));
        if python {
            cpython.push(anchor("connection_trips", 1, TRIPS as usize, SIZE));
        }
    }
    heading("64 B there and back");
    let [bare, ours @ ..] = &trips;
    bare.print();
    ours.iter().for_each(|figure| figure.print_against(bare, Bound::Times(1.15)));
    channel.print_against(bare, Bound::None);
    if python {
        cpython.print_against(bare, Bound::None);
    }
    runtime.block_on(parties.stop());
}

fn values(runtime: &Runtime, python: bool) {
    const COUNT: u32 = 50_000;
    let mut parties = runtime.block_on(Parties::start(Work::Values { count: COUNT }));
    let (mut sent, mut channel, mut cpython) = figures();
    let [_, ours @ ..] = KINDS;
    let mut fed = ours.map(|kind| Figure::new(format!("{}, as a Sink", kind.name())));
    for _ in 0..ROUNDS {
        channel.push(parties.channel.send(COUNT));
        for (peer, figure) in parties.peers.iter_mut().zip(&mut sent) {
            figure.push(runtime.block_on(peer.send(COUNT)));
        }
        for (peer, figure) in parties.peers[1..].iter_mut().zip(&mut fed) {
            figure.push(runtime.block_on(peer.feed(COUNT)));
        }
        if python {
            cpython.push(anchor("connection_one_way", 1, COUNT as usize, SIZE));
        }
    }
    heading("values of 64 B one way, each");
    channel.print();
    let [bare, sent @ ..] = &sent;
    sent.iter().for_each(|figure| figure.print_against(&channel, Bound::Faster(2.0)));
    fed.iter().for_each(|figure| figure.print_against(&channel, Bound::Faster(6.0)));
    bare.print_against(&channel, Bound::None);
    if python {
        cpython.print_against(&channel, Bound::None);
    }
    runtime.block_on(parties.stop());
}

fn bytes(runtime: &Runtime, python: bool, title: &str, size: usize, count: u32) {
    let mut parties = runtime.block_on(Parties::start(Work::Bytes { size, count }));
    let (mut sent, mut channel, mut cpython) = figures();
    for _ in 0..ROUNDS {
        channel.push(parties.channel.send_bytes(size, count));
        for (peer, figure) in parties.peers.iter_mut().zip(&mut sent) {
            figure.push(runtime.block_on(peer.send_bytes(size, count)));
        }
        if python {
            cpython.push(anchor("connection_one_way", 1, count as usize, size));
        }
    }
    heading(title);
    channel.print();
    sent.iter().for_each(|figure| figure.print_against(&channel, Bound::None));
    if python {
        cpython.print_against(&channel, Bound::None);
    }
    runtime.block_on(parties.stop());
}
