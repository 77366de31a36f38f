//! Several producers and several consumers at one queue, of whom one each is killed in the middle of its work. What
//! these two had in hand is found missing and done again: the sum of all primes below a million comes out right.
//!
//! ```sh
//! cargo run --release --example producer_consumer
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_multiprocess as mp;

const PRODUCERS: u64 = 4;
const CONSUMERS: u64 = 3;

/// A job is its number: it stands for so many numbers from `job * NUMBERS` on.
const NUMBERS: u64 = 250;
const JOBS_EACH: u64 = 1_000;
const JOBS: u64 = PRODUCERS * JOBS_EACH;

/// The sum of all primes below `JOBS * NUMBERS`.
const EXPECTED: u64 = 37_550_402_023;

/// Producers are never farther ahead than this.
const SLOTS: usize = 100;

fn is_prime(n: u64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

async fn produce(jobs: mp::JoinableQueue<u64>, first: u64) -> mp::Result<()> {
    for job in first..first + JOBS_EACH {
        jobs.put(job).await?;
    }
    Ok(())
}

async fn consume(jobs: mp::JoinableQueue<u64>, sums: mp::SimpleQueue<(u64, u64)>) -> mp::Result<()> {
    loop {
        let job = match jobs.get().await {
            Err(mp::GetError::ShutDown) => return Ok(()),
            job => job?,
        };
        let sum = (job * NUMBERS..(job + 1) * NUMBERS).filter(|n| is_prime(*n)).sum();
        // The result first. Who dies between the two lines has its job done twice, which the job's number shows;
        // the other way round the job might be lost.
        sums.put((job, sum)).await?;
        jobs.task_done()?;
    }
}

async fn run() -> mp::Result<u64> {
    let jobs = mp::JoinableQueue::new(SLOTS)?;
    // What is put into a simple queue is there, whatever becomes of who has put it. All sums have room in it, so
    // nobody has to take them out meanwhile.
    let sums = mp::SimpleQueue::new()?;
    let (mut producers, mut consumers) = (Vec::new(), Vec::new());
    for n in 0..PRODUCERS {
        let producer = mp::Process::builder(produce, (jobs.clone(), n * JOBS_EACH));
        producers.push(producer.name(format!("producer-{n}")).daemon(true).start().await?);
    }
    for n in 0..CONSUMERS {
        let consumer = mp::Process::builder(consume, (jobs.clone(), sums.clone()));
        consumers.push(consumer.name(format!("consumer-{n}")).daemon(true).start().await?);
    }

    let mut done = BTreeMap::new();
    while done.len() < 20 {
        let (job, sum) = sums.get().await?;
        done.insert(job, sum);
    }
    for victim in [&producers[0], &consumers[0]] {
        victim.kill()?;
        println!("{} was killed: {}", victim.name(), victim.join().await?);
    }

    for producer in producers {
        producer.join().await?;
    }
    let left = jobs.join().await?;
    done.extend(std::iter::from_fn(|| sums.try_get().ok()));
    let missing: Vec<u64> = (0..JOBS).filter(|job| !done.contains_key(job)).collect();
    println!("{} of {JOBS} jobs are missing; the killed consumer has not acknowledged {left}", missing.len());

    for job in missing {
        jobs.put(job).await?;
    }
    // It counts from the beginning on, so it says the same again: nobody else has died.
    assert_eq!(jobs.join().await?, left);
    done.extend(std::iter::from_fn(|| sums.try_get().ok()));
    // The consumers come to their ends.
    jobs.shutdown()?;
    for consumer in consumers {
        consumer.join().await?;
    }
    Ok(done.values().sum())
}

#[tokio::main]
async fn main() -> mp::Result<()> {
    let sum =
        tokio::time::timeout(Duration::from_secs(60), run()).await.expect("nobody waits for the dead")?;
    println!("the primes below {} add up to {sum}", JOBS * NUMBERS);
    assert_eq!(sum, EXPECTED);
    Ok(())
}
