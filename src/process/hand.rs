//! Threads of this crate's for what takes longer than a reactor should wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};

use crate::error::{Error, Result};
use crate::sys;
use crate::sys::per_process::PerProcess;
use crate::util::lock;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that does one job after another, there from the first on: not one of Tokio's blocking
/// pool, whose threads would stand in the way of a fork.
pub(crate) struct Hand {
    name: &'static str,
    jobs: PerProcess<Mutex<Option<mpsc::Sender<Job>>>>,
}

/// Starts processes.
pub(crate) static STARTER: Hand = Hand::new("mp-starter");
/// Looks how much memory workers hold: their limits must not wait for starts.
pub(crate) static LOOKER: Hand = Hand::new("mp-looker");
/// Makes and removes control groups, for which the kernel may take its time.
pub(crate) static GROUPER: Hand = Hand::new("mp-grouper");

impl Hand {
    const fn new(name: &'static str) -> Self {
        Self { name, jobs: PerProcess::new(Mutex::default) }
    }

    /// Has it do a job. If nobody waits for the result any more, that is dropped there.
    ///
    /// # Errors
    /// When there can be no thread, or the job panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &'static self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.give(Box::new(move || drop(done.send(job()))))?;
        result.await.map_err(|_| Error::Closed(self.name))
    }

    fn give(&'static self, job: Job) -> Result<()> {
        let mut known = lock(self.jobs.get());
        let sender = match &*known {
            Some(sender) => sender,
            None => {
                let (sender, jobs) = mpsc::channel::<Job>();
                sys::threads::spawn(self.name, move || {
                    // A panic is the job's own; its waiter sees that no result comes.
                    jobs.into_iter().for_each(|job| drop(catch_unwind(AssertUnwindSafe(job))));
                })?;
                known.insert(sender)
            }
        };
        sender.send(job).map_err(|_| Error::Closed(self.name))
    }
}
