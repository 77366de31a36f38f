//! A process that contends for a lock.

use std::time::Instant;

use tokio_multiprocess as mp;

use crate::support::KeptOn;

/// As the other side: takes it and gives it back, so many times in each round.
async fn contend(lock: mp::Lock, mut parent: mp::Connection, count: u32) {
    let _elsewhere = KeptOn::processor(1);
    while parent.send(&()).await.is_ok() && parent.recv::<()>().await.is_ok() {
        take(&lock, count).await;
        parent.send(&()).await.expect("the parent");
    }
}

/// Takes it and gives it back, so many times.
pub(crate) async fn take(lock: &mp::Lock, count: u32) {
    for _ in 0..count {
        drop(lock.acquire().await.expect("the lock"));
    }
}

pub(crate) struct Contender {
    lock: mp::Lock,
    count: u32,
    child: mp::Connection,
    process: mp::Process,
}

impl Contender {
    /// Each of the two takes it `count` times a round.
    pub(crate) async fn start(count: u32) -> Self {
        let lock = mp::Lock::new().expect("a lock");
        let (child, there) = mp::pipe().expect("a pipe");
        let args = (lock.clone(), there, count);
        let process = mp::Process::builder(contend, args).start().await.expect("a child");
        Self { lock, count, child, process }
    }

    /// What one acquisition takes, of those of both, in seconds.
    pub(crate) async fn round(&mut self) -> f64 {
        self.child.recv::<()>().await.expect("that it is ready");
        let begin = Instant::now();
        self.child.send(&()).await.expect("the child");
        take(&self.lock, self.count).await;
        self.child.recv::<()>().await.expect("that it is done");
        begin.elapsed().as_secs_f64() / f64::from(2 * self.count)
    }

    pub(crate) async fn stop(self) {
        drop(self.child);
        self.process.join().await.expect("its end");
    }
}
