//! Queues of each kind, by how many use them and what goes through: `cargo bench --bench queue`; beside
//! other queues: `queues` in the package `benches/compare`.
//!
//! `cargo bench --bench queue -- --plot FILE.svg` draws the throughput by size of item instead, and writes
//! what it draws into `FILE.csv`.

#[path = "support/crew.rs"]
mod crew;
#[path = "support/goods.rs"]
mod goods;
#[path = "support/plot.rs"]
mod plot;
#[path = "support/queue_crew.rs"]
mod queue_crew;
mod support;
#[path = "support/throughput.rs"]
mod throughput;

use std::path::Path;

use crew::{Crew, Work};
use goods::{Goods, NewBlobs, Numbers, OneBlob, SharedBytes, Vecs};
use queue_crew::Line;
use support::{Bound, Figure, KeptOn, heading, share};
use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess as mp;

const ROUNDS: usize = 9;
const NUMBERS: Work = Work { count: 240_000, size: 0 };
const LARGE: Work = Work { count: 240, size: 1 << 20 };

fn main() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut args = std::env::args().skip(1);
    if args.any(|arg| arg == "--plot") {
        let path = args.next().expect("--plot FILE.svg");
        return runtime.block_on(throughput::draw(Path::new(&path)));
    }
    alone(&runtime);
    round_trips(&runtime);
    for maxsize in [0, 100] {
        numbers(&runtime, maxsize);
    }
    large(&runtime);
}

/// Put and got by one process, one by one.
fn alone(runtime: &Runtime) {
    const COUNT: u32 = 200_000;
    let _here = KeptOn::processor(0);
    let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
    let queues = [0, 100].map(|maxsize| mp::Queue::new(maxsize).expect("a queue"));
    let mut tokio = Figure::new("Tokio's mpsc, of 100");
    let mut figures = ["Queue, unbounded", "Queue, of 100"].map(Figure::new);
    let mut tried = Figure::new("Queue, of 100: try_put, try_get");
    for _ in 0..ROUNDS {
        tokio.push(share(COUNT, || {
            runtime.block_on(async {
                for number in 0..u64::from(COUNT) {
                    sender.send(number).await.expect("sent");
                    assert_eq!(receiver.recv().await, Some(number));
                }
            });
        }));
        for (figure, queue) in figures.iter_mut().zip(&queues) {
            figure.push(share(COUNT, || {
                runtime.block_on(async {
                    for number in 0..u64::from(COUNT) {
                        queue.put(number).await.expect("put");
                        assert_eq!(queue.get().await.expect("an item"), number);
                    }
                });
            }));
        }
        tried.push(share(COUNT, || {
            for number in 0..u64::from(COUNT) {
                queues[1].try_put(number).expect("put");
                assert_eq!(queues[1].try_get().expect("an item"), number);
            }
        }));
    }
    heading("u64 put and got by one process");
    tokio.print();
    figures.iter().for_each(|figure| figure.print_against(&tokio, Bound::None));
    tried.print_against(&tokio, Bound::None);
}

/// Sends back what it gets, by either way, until it cannot get anything by the second.
async fn echo(there: mp::Queue<u64>, back: mp::Queue<u64>, mut pipe: mp::Connection) {
    let _elsewhere = KeptOn::processor(1);
    let queues = async {
        loop {
            back.put(there.get().await.expect("a number")).await.expect("put");
        }
    };
    let pipe = async {
        while let Ok(number) = pipe.recv::<u64>().await {
            pipe.send(&number).await.expect("sent");
        }
    };
    tokio::select! {
        () = queues => {}
        () = pipe => {}
    }
}

fn round_trips(runtime: &Runtime) {
    const TRIPS: u32 = 2_000;
    // Who is at the other end is on another one.
    let _here = KeptOn::processor(0);
    let [there, back] = [0, 0].map(|maxsize| mp::Queue::new(maxsize).expect("a queue"));
    let (mut pipe, theirs) = mp::pipe().expect("a pipe");
    let args = (there.clone(), back.clone(), theirs);
    let process =
        runtime.block_on(async { mp::Process::builder(echo, args).start().await.expect("a child") });
    let mut connection = Figure::new("pipe()");
    let mut queues = Figure::new("two queues");
    for _ in 0..ROUNDS {
        connection.push(share(TRIPS, || {
            runtime.block_on(async {
                for number in 0..u64::from(TRIPS) {
                    pipe.send(&number).await.expect("sent");
                    assert_eq!(pipe.recv::<u64>().await.expect("the same"), number);
                }
            });
        }));
        queues.push(share(TRIPS, || {
            runtime.block_on(async {
                for number in 0..u64::from(TRIPS) {
                    there.put(number).await.expect("put");
                    assert_eq!(back.get().await.expect("the same"), number);
                }
            });
        }));
    }
    heading("u64 there and back");
    connection.print();
    queues.print_against(&connection, Bound::None);
    drop(pipe);
    runtime.block_on(process.join()).expect("its end");
}

/// Those who take turns.
#[derive(Default)]
struct Crews(Vec<(Figure, Crew)>);

impl Crews {
    async fn add<G: Goods>(
        &mut self,
        name: &str,
        line: impl Line<Item = G::Item>,
        puts: usize,
        gets: usize,
        work: Work,
    ) {
        self.0.push((Figure::new(name), queue_crew::start::<_, G>(line, puts, gets, work).await));
    }

    /// Prints all others against the first.
    async fn compare(mut self, title: &str) {
        for _ in 0..ROUNDS {
            for (figure, crew) in &mut self.0 {
                figure.push(crew.round().await);
            }
        }
        heading(title);
        let [(first, _), others @ ..] = &self.0[..] else { panic!("nobody is here") };
        first.print();
        others.iter().for_each(|(figure, _)| figure.print_against(first, Bound::None));
        for (_, crew) in self.0 {
            crew.stop().await;
        }
    }
}

fn numbers(runtime: &Runtime, maxsize: usize) {
    let queue = || mp::Queue::new(maxsize).expect("a queue");
    runtime.block_on(async {
        let mut crews = Crews::default();
        for (puts, gets) in [(1, 1), (4, 1), (1, 4), (4, 4)] {
            let name = format!("Queue, {puts} to {gets}");
            crews.add::<Numbers>(&name, queue(), puts, gets, NUMBERS).await;
        }
        let joinable = mp::JoinableQueue::new(maxsize).expect("a queue");
        crews.add::<Numbers>("JoinableQueue, 1 to 1", joinable, 1, 1, NUMBERS).await;
        if maxsize == 0 {
            let simple = mp::SimpleQueue::new().expect("a queue");
            crews.add::<Numbers>("SimpleQueue, 1 to 1", simple, 1, 1, NUMBERS).await;
        }
        let slots = if maxsize == 0 { "any number of".to_owned() } else { maxsize.to_string() };
        crews.compare(&format!("u64 through a queue of {slots} items, each")).await;
    });
}

fn large(runtime: &Runtime) {
    runtime.block_on(async {
        let mut crews = Crews::default();
        crews.add::<Vecs>("Vec<u8>", mp::Queue::new(0).expect("a queue"), 1, 1, LARGE).await;
        crews.add::<SharedBytes>("Bytes", mp::Queue::new(0).expect("a queue"), 1, 1, LARGE).await;
        crews
            .add::<NewBlobs>("Blob, a new one each time", mp::Queue::new(0).expect("a queue"), 1, 1, LARGE)
            .await;
        crews
            .add::<OneBlob>("Blob, the same each time", mp::Queue::new(0).expect("a queue"), 1, 1, LARGE)
            .await;
        crews.compare("1 MiB through a queue, 1 to 1, each").await;
    });
}
