//! Queues beside ipc-channel and CPython's.

use tokio::runtime::Runtime;
use tokio_multiprocess as mp;

use crate::anchor::anchor;
use crate::channel_crew::{self, Channel, NewMemory, OneMemory, Raw, Values};
use crate::crew::{Crew, Work};
use crate::goods::{Goods, NewBlobs, Numbers, OneBlob, SharedBytes, Vecs};
use crate::queue_crew;
use crate::support::{Bound, Figure, heading};

const ROUNDS: usize = 9;
const NUMBERS: Work = Work { count: 400_000, size: 0 };
const LARGE: Work = Work { count: 200, size: 1 << 20 };

pub(crate) fn compare(runtime: &Runtime, python: bool) {
    numbers(runtime, python);
    large(runtime, python);
}

/// Takes part in each round.
struct Side<'a> {
    runtime: &'a Runtime,
    figure: Figure,
    crew: Crew,
}

impl<'a> Side<'a> {
    /// This crate's.
    fn queue<G: Goods>(runtime: &'a Runtime, name: &str, puts: usize, work: Work) -> Self {
        let crew = runtime.block_on(async {
            let queue = mp::Queue::new(0).expect("a queue");
            queue_crew::start::<_, G>(queue, puts, 1, work).await
        });
        Self { runtime, figure: Figure::new(name), crew }
    }

    fn channel<C: Channel>(runtime: &'a Runtime, name: &str, sends: usize, work: Work) -> Self {
        let crew = runtime.block_on(channel_crew::start::<C>(sends, work));
        Self { runtime, figure: Figure::new(name), crew }
    }

    fn round(&mut self) {
        self.figure.push(self.runtime.block_on(self.crew.round()));
    }

    fn stop(self) -> Figure {
        self.runtime.block_on(self.crew.stop());
        self.figure
    }
}

fn numbers(runtime: &Runtime, python: bool) {
    const PUTS: [usize; 2] = [1, 4];
    let channels = Work { count: NUMBERS.count / 4, ..NUMBERS };
    let mut ours = PUTS.map(|puts| Side::queue::<Numbers>(runtime, "Queue", puts, NUMBERS));
    let mut theirs =
        PUTS.map(|puts| Side::channel::<Values<Numbers>>(runtime, "ipc-channel", puts, channels));
    let mut cpython = PUTS.map(|_| Figure::new("CPython's Queue"));
    for _ in 0..ROUNDS {
        ours.iter_mut().chain(&mut theirs).for_each(Side::round);
        if python {
            for (figure, puts) in cpython.iter_mut().zip(PUTS) {
                figure.push(anchor("queue_items", puts, NUMBERS.count as usize / 16, 0));
            }
        }
    }
    let ([one, four], theirs) = (ours.map(Side::stop), theirs.map(Side::stop));
    heading("u64, 1 process puts, and 1 gets, each");
    if python {
        cpython[0].print();
        one.print_against(&cpython[0], Bound::Faster(40.0));
    }
    theirs[0].print();
    one.print_against(&theirs[0], Bound::Faster(10.0));
    heading("u64, 4 processes put, and 1 gets, each");
    if python {
        cpython[1].print();
        four.print_against(&cpython[1], Bound::None);
    }
    theirs[1].print();
    four.print_against(&theirs[1], Bound::None);
    println!("beside the queue into which 1 process puts:");
    four.print_against(&one, Bound::Times(2.0));
}

fn large(runtime: &Runtime, python: bool) {
    let mut theirs = vec![
        Side::channel::<Values<Vecs>>(runtime, "IpcSender<Vec<u8>>", 1, LARGE),
        Side::channel::<Values<SharedBytes>>(runtime, "IpcSender<Bytes>", 1, LARGE),
        Side::channel::<Raw>(runtime, "IpcBytesSender", 1, LARGE),
    ];
    let mut shared = vec![
        Side::channel::<Values<NewMemory>>(runtime, "IpcSharedMemory, a new one each time", 1, LARGE),
        Side::channel::<Values<OneMemory>>(runtime, "IpcSharedMemory, the same each time", 1, LARGE),
    ];
    let mut bytes = vec![
        Side::queue::<Vecs>(runtime, "Queue<Vec<u8>>", 1, LARGE),
        Side::queue::<SharedBytes>(runtime, "Queue<Bytes>", 1, LARGE),
    ];
    let mut blobs = vec![
        Side::queue::<NewBlobs>(runtime, "Queue<Blob>, a new one each time", 1, LARGE),
        Side::queue::<OneBlob>(runtime, "Queue<Blob>, the same each time", 1, LARGE),
    ];
    let mut cpython = Figure::new("CPython's Queue");
    for _ in 0..ROUNDS {
        for sides in [&mut theirs, &mut shared, &mut bytes, &mut blobs] {
            sides.iter_mut().for_each(Side::round);
        }
        if python {
            cpython.push(anchor("queue_items", 1, LARGE.count as usize / 2, LARGE.size));
        }
    }
    let [mut theirs, shared, bytes, blobs] =
        [theirs, shared, bytes, blobs].map(|sides| sides.into_iter().map(Side::stop).collect::<Vec<_>>());
    heading("1 MiB, 1 process puts, and 1 gets, and looks at each page, each");
    theirs.sort_by(|one, other| one.typical().total_cmp(&other.typical()));
    let fastest = &theirs[0];
    fastest.print();
    theirs[1..].iter().chain(&shared).for_each(|figure| figure.print_against(fastest, Bound::None));
    if python {
        cpython.print_against(fastest, Bound::None);
    }
    bytes.iter().for_each(|figure| figure.print_against(fastest, Bound::Faster(1.5)));
    blobs.iter().for_each(|figure| figure.print_against(fastest, Bound::Faster(5.0)));
}
