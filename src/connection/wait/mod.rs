//! Waiting for many objects at once: [`wait`] for a few and once, [`WaitSet`] for many and again.
//!
//! Readiness is a level, not an event: what is ready stays so, call after call, until somebody has read
//! it. Nothing is read by waiting.

mod buffered;
mod condition;
mod members;
mod set;
#[cfg(test)]
mod tests;
mod waitable;

use std::time::Duration;

use tokio::task::coop;

pub(crate) use buffered::Buffered;
pub(crate) use condition::Condition;
pub use members::WaitKey;
pub use set::WaitSet;
pub use waitable::Waitable;
pub(crate) use waitable::{Source, sealed};

use waitable::Held;

use crate::error::{Error, Result};
use crate::reactor;
use crate::sys;

/// Waits until objects are ready, and tells which: the indexes of all that are, in ascending order.
///
/// What is ready was not touched: the next call tells of it again, unless somebody has read it. An end
/// counts as ready, and so does an error. The same object may be there several times. To wait for
/// nothing at all would last for ever, so it is over at once and tells of nothing.
///
/// Whoever waits for the same objects again and again, or for very many, is better off with a
/// [`WaitSet`]: if nothing is ready yet, a call costs about a microsecond for each object, and a few
/// descriptors as long as it waits.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tokio_multiprocess::Result<()> {
/// use tokio_multiprocess as mp;
///
/// let (reads, writes) = std::io::pipe()?;
/// let child = mp::Process::without_target().start().await?;
///
/// // The child ends; nobody writes.
/// assert_eq!(mp::wait(&[&reads, &child]).await?, [1]);
/// drop(writes);
/// assert_eq!(mp::wait(&[&reads, &child]).await?, [0, 1]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Closed`](crate::Error::Closed) when one of the objects is closed or has moved, also if that
/// happens while it waits, which keeps nothing open; and when no descriptor is left to wait with.
///
/// # Panics
/// If it has to wait outside of a Tokio runtime with I/O.
///
/// # Cancel safety
/// Nothing is consumed: dropping the future and calling again is the same as waiting on.
#[doc(alias = "connection.wait")]
pub async fn wait(objects: &[&dyn Waitable]) -> Result<Vec<usize>> {
    coop::consume_budget().await;
    let sources = sources(objects)?;
    let ready = which_ready(&sources)?;
    if ready.is_empty() && !objects.is_empty() { wait_longer(&sources).await } else { Ok(ready) }
}

/// As [`wait`], for as long as `timeout` by the kernel's clock: if nothing is ready then, it tells of
/// nothing. Zero looks without waiting, also outside of a runtime.
///
/// # Errors
/// As [`wait`].
///
/// # Panics
/// As [`wait`].
///
/// # Cancel safety
/// As [`wait`].
pub async fn wait_timeout(objects: &[&dyn Waitable], timeout: Duration) -> Result<Vec<usize>> {
    coop::consume_budget().await;
    let sources = sources(objects)?;
    let ready = which_ready(&sources)?;
    if !ready.is_empty() || objects.is_empty() || timeout.is_zero() {
        return Ok(ready);
    }
    tokio::select! {
        biased;
        ready = wait_longer(&sources) => ready,
        over = reactor::sleep(timeout) => {
            over?;
            which_ready(&sources)
        }
    }
}

fn sources<'a>(objects: &[&'a dyn Waitable]) -> Result<Vec<Source<'a>>> {
    objects.iter().map(|object| object.source()).collect()
}

fn which_ready(sources: &[Source<'_>]) -> Result<Vec<usize>> {
    let objects = sources.iter().map(Source::hold).collect::<Result<Vec<_>>>()?;
    let fds: Vec<_> = objects.iter().filter_map(Held::fd).collect();
    let mut readable = sys::epoll::which_readable(&fds)?.into_iter();
    let mut ready = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        let is_ready = match object {
            Held::Open(open) => readable.next() == Some(true) || open.is_set(),
            Held::Condition(condition) => condition.is_met().ok_or(Error::Closed(condition.name()))?,
        };
        ready.extend(is_ready.then_some(index));
    }
    Ok(ready)
}

async fn wait_longer(sources: &[Source<'_>]) -> Result<Vec<usize>> {
    let set = WaitSet::new()?;
    for source in sources {
        set.enter(source)?;
    }
    // The set would tell of some, in its own order, and of nobody who is gone.
    set.ask(|| Ok(Some(which_ready(sources)?).filter(|ready| !ready.is_empty()))).await
}
