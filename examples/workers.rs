//! A few workers that call whatever functions they find in a queue, and hand the results back by another one. The
//! parent adds up the first squares this way: first all products, then their sum, two by two.
//!
//! ```sh
//! cargo run --release --example workers
//! ```
//!
//! This is the bare pattern, to build on. A `Pool` does all of it, and tells which task was lost when a worker dies.

use std::time::Duration;

use tokio_multiprocess as mp;

const WORKERS: usize = 4;
const SQUARES: i64 = 20;

/// A worker that dies takes along what it had in hand, so nobody should wait for a result for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// A function as a value: any of two numbers that returns a third.
type Operation = mp::Func<(i64, i64), i64>;

/// `None` has the worker stop that gets it.
type Task = Option<(Operation, (i64, i64))>;

/// The number, and how it came about.
type Done = (i64, String);

fn times(a: i64, b: i64) -> i64 {
    a * b
}

fn plus(a: i64, b: i64) -> i64 {
    a + b
}

/// What each worker runs.
async fn work(tasks: mp::Queue<Task>, done: mp::Queue<Done>) -> mp::Result<()> {
    let me = mp::current_process().name();
    while let Some((operation, operands)) = tasks.get().await? {
        let value = operation.call(operands).await?;
        let how = format!("{me}: {}{operands:?} = {value}", operation.name());
        done.put((value, how)).await?;
    }
    Ok(())
}

/// Some result, whichever is there first.
async fn next(done: &mp::Queue<Done>) -> mp::Result<i64> {
    let (value, how) = done.get_timeout(PATIENCE).await?;
    println!("{how}");
    Ok(value)
}

#[tokio::main]
async fn main() -> mp::Result<()> {
    let (tasks, done) = (mp::Queue::new(0)?, mp::Queue::new(0)?);
    let (times, plus) = (mp::Func::new(times), mp::Func::new(plus));

    // The first tasks wait for the workers, as a queue needs nobody on its other side.
    for n in 1..=SQUARES {
        tasks.put(Some((times, (n, n)))).await?;
    }
    let mut workers = Vec::new();
    for n in 1..=WORKERS {
        // Whatever becomes of this process, they end with it.
        let worker = mp::Process::builder(work, (tasks.clone(), done.clone())).daemon(true);
        workers.push(worker.name(format!("worker-{n}")).start().await?);
    }

    // Of any two results, the sum is one more task; one result less is to come with each.
    for _ in 1..SQUARES {
        let pair = (next(&done).await?, next(&done).await?);
        tasks.put(Some((plus, pair))).await?;
    }
    let sum = next(&done).await?;

    for _ in &workers {
        tasks.put(None).await?;
    }
    for worker in workers {
        worker.join().await?;
    }
    println!("the first {SQUARES} squares add up to {sum}");
    assert_eq!(sum, SQUARES * (SQUARES + 1) * (2 * SQUARES + 1) / 6);
    Ok(())
}
