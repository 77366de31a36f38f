//! Locks beside CPython's.

use tokio::runtime::Runtime;

use crate::anchor::anchor;
use crate::contender::{Contender, take};
use crate::support::{Bound, Figure, KeptOn, heading, share};
use tokio_multiprocess as mp;

const ROUNDS: usize = 9;
const COUNT: u32 = 200_000;

pub(crate) fn compare(runtime: &Runtime, python: bool) {
    // Who contends is on another one.
    let _here = KeptOn::processor(0);
    let lock = mp::Lock::new().expect("a lock");
    let mut contender = runtime.block_on(Contender::start(COUNT));
    let workloads = [
        ("taken and given back by one alone", "lock_uncontended"),
        ("taken and given back by two processes at a time, each", "lock_contended"),
    ];
    let mut figures = workloads.map(|_| (Figure::new("Lock"), Figure::new("CPython's Lock")));
    for _ in 0..ROUNDS {
        let [(alone, _), (contended, _)] = &mut figures;
        alone.push(share(COUNT, || runtime.block_on(take(&lock, COUNT))));
        contended.push(runtime.block_on(contender.round()));
        if python {
            for ((_, cpython), (_, workload)) in figures.iter_mut().zip(workloads) {
                cpython.push(anchor(workload, 1, COUNT as usize, 0));
            }
        }
    }
    for ((ours, cpython), ((title, _), bound)) in
        figures.iter().zip(workloads.into_iter().zip([Bound::None, Bound::Times(0.5)]))
    {
        heading(title);
        if python {
            cpython.print();
            ours.print_against(cpython, bound);
        } else {
            ours.print();
        }
    }
    runtime.block_on(contender.stop());
}
