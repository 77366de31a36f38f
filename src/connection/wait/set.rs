//! Many objects that are waited for again and again.

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::Interest;
use tokio::runtime::{self, Handle};
use tokio::task::coop;

use super::Waitable;
use super::buffered::Bell;
use super::members::{Look, Members, WaitKey};
use super::waitable::Source;
use crate::error::Result;
use crate::reactor;
use crate::sys::AsFd;
use crate::sys::epoll::Epoll;
use crate::sys::reactor::Registered;
use crate::util::lock;

/// Objects of which one wants to know, again and again, which are ready.
///
/// Where [`wait`](crate::wait) looks at each of its objects in each call, a set remembers them, and a
/// call costs what the ready ones cost, however many the others are: with ten thousand connections, as
/// with a hundred, some hundred nanoseconds if nothing is ready, some microseconds if one is, and little
/// more than a bare Tokio socket takes if it has to be woken. To enter or remove a member costs some
/// microseconds. [Queues](crate::Queue) and [events](crate::Event) alone are looked at one by one, some ten
/// nanoseconds each.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tokio_multiprocess::Result<()> {
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
/// use tokio_multiprocess::WaitSet;
///
/// let (reads, mut writes) = UnixStream::pair()?;
/// let (idle, _writes) = UnixStream::pair()?;
///
/// let set = WaitSet::new()?;
/// let key = set.insert(&reads)?;
/// set.insert(&idle)?;
///
/// writes.write_all(b"something")?;
/// assert_eq!(set.wait().await?, [key]);
/// assert_eq!(set.wait().await?, [key]); // as nobody has read it
/// # Ok(())
/// # }
/// ```
///
/// Of processes and connections, each by its key:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tokio_multiprocess::Result<()> {
/// use std::collections::HashMap;
/// use tokio_multiprocess::{Connection, Process, WaitSet, pipe};
///
/// async fn work(mut conn: Connection, n: u64) -> tokio_multiprocess::Result<()> {
///     conn.send(&(n * n)).await
/// }
///
/// let set = WaitSet::new()?;
/// let (mut connections, mut children) = (HashMap::new(), HashMap::new());
/// for n in 1..=3 {
///     let (here, there) = pipe()?;
///     let child = Process::builder(work, (there, n)).start().await?;
///     connections.insert(set.insert(&here)?, here);
///     children.insert(set.insert(&child)?, child);
/// }
///
/// let mut sum = 0;
/// while !(connections.is_empty() && children.is_empty()) {
///     for key in set.wait().await? {
///         if let Some(conn) = connections.get_mut(&key) {
///             match conn.recv::<u64>().await {
///                 Ok(square) => sum += square,
///                 // Its end, or an error: dropped, it leaves the set.
///                 Err(_) => drop(connections.remove(&key)),
///             }
///         } else if let Some(child) = children.remove(&key) {
///             set.remove(key);
///             child.join().await?;
///         }
///     }
/// }
/// assert_eq!(sum, 14);
/// # Ok(())
/// # }
/// ```
///
/// # Members
/// A set borrows nothing, and keeps nothing open but a [`Sentinel`](crate::Sentinel) or an
/// [`Event`](crate::Event), which hold nothing of anybody's: all others are used, moved, closed and dropped
/// as if it were not there. So `set.insert(&process.sentinel()?)` tells of the process's end, while a
/// connection or socket has to be kept by somebody: one that is closed or dropped leaves by itself and is
/// not told of any more, also when another process has the same open file; its key may still be
/// [removed](Self::remove). Only somebody who replaces the file behind a number with `dup2`, there and back,
/// can mislead it.
///
/// To insert an object twice gives two keys, which are ready together.
///
/// # Fairness
/// A call tells of a few hundred members at most. Those that it leaves out come first in the next one,
/// so who serves all that he is told of serves all that are ready.
///
/// # Runtimes
/// A set is made without a runtime and used on any, by several tasks at once, which are all told of
/// whatever is ready. Insertions and removals count for calls that are waiting already.
///
/// # Costs
/// One descriptor, and one more as long as it is registered with a runtime.
pub struct WaitSet {
    epoll: Epoll,
    /// Rung when something is ready that the kernel does not tell of, and by each call that takes
    /// reports, which others wait for as well.
    bell: Arc<Bell>,
    members: Mutex<Members>,
    /// Where it waited last. A call on another runtime moves it there; others that still wait keep
    /// their own.
    registered: Mutex<Option<(runtime::Id, Arc<Registered>)>>,
}

impl WaitSet {
    /// An empty set.
    ///
    /// # Errors
    /// When no descriptor is left; where processes are not supported.
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            bell: Arc::default(),
            members: Mutex::default(),
            registered: Mutex::default(),
        })
    }

    /// Enters an object, which somebody has to keep unless it is a [`Sentinel`](crate::Sentinel): see
    /// [members](Self#members). If it is ready, waiting calls are told of it.
    ///
    /// # Errors
    /// When it is closed, and when the kernel has no room (`fs.epoll.max_user_watches`).
    pub fn insert(&self, object: &(impl Waitable + ?Sized)) -> Result<WaitKey> {
        self.enter(&object.source()?)
    }

    pub(super) fn enter(&self, source: &Source<'_>) -> Result<WaitKey> {
        let (key, ready) = lock(&self.members).enter(&source.hold()?, &self.epoll, &self.bell)?;
        if ready {
            self.bell.ring();
        }
        Ok(key)
    }

    /// Removes a member, of which no call that begins later will tell. False if it was removed already, or
    /// a call has noticed that it is closed.
    pub fn remove(&self, key: WaitKey) -> bool {
        let condition = lock(&self.members).remove_condition(key);
        condition.is_some() || lock(&self.members).remove(key, &self.epoll)
    }

    /// Waits until members are ready, and tells which: each once, in no particular order. They are
    /// told of again by the next call if they are still ready then. In an empty set it waits for one to
    /// be inserted.
    ///
    /// # Errors
    /// When no descriptor is left to wait with.
    ///
    /// # Panics
    /// If it has to wait outside of a Tokio runtime with I/O.
    ///
    /// # Cancel safety
    /// Nothing is consumed: dropping the future and calling again is the same as waiting on.
    pub async fn wait(&self) -> Result<Vec<WaitKey>> {
        coop::consume_budget().await;
        loop {
            // Before the look, so that what happens after it is heard.
            let mut rung = pin!(self.bell.rung());
            let ready = self.look().await?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            self.doze(&mut rung).await?;
        }
    }

    /// Has `answer` asked again and again until it has one: at once, and whenever a member is ready or gone.
    pub(super) async fn ask<T>(&self, mut answer: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            let mut rung = pin!(self.bell.rung());
            // If it finds somebody it rings, and there is another: until then the kernel is silent of him.
            self.look().await?;
            if let Some(answer) = answer()? {
                return Ok(answer);
            }
            self.doze(&mut rung).await?;
        }
    }

    /// Waits for something to happen: a bell that was heard since before the last look, or a report.
    async fn doze(&self, rung: impl Future<Output = ()>) -> Result<()> {
        if !lock(&self.members).sleep()? {
            return Ok(());
        }
        let (runtime, registered) = self.register()?;
        tokio::select! {
            () = rung => {}
            edge = registered.edge_or_end() => if edge.is_err() {
                // Of a runtime that had the same number and has ended.
                lock(&self.registered).take_if(|(id, _)| *id == runtime);
            }
        }
        Ok(())
    }

    /// As [`wait`](Self::wait), for as long as `timeout` by the kernel's clock: if nothing is ready
    /// then, it tells of nothing. Zero looks without waiting, also outside of a runtime.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait).
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<Vec<WaitKey>> {
        coop::consume_budget().await;
        let ready = self.look().await?;
        if !ready.is_empty() || timeout.is_zero() {
            return Ok(ready);
        }
        tokio::select! {
            biased;
            ready = self.wait() => ready,
            over = reactor::sleep(timeout) => {
                over?;
                Ok(self.look().await?)
            }
        }
    }

    /// Who is ready now. It goes on while those that it has asked are none of them ready, as those whose
    /// messages were read meanwhile, or whose files are closed here, and there are others.
    async fn look(&self) -> io::Result<Vec<WaitKey>> {
        loop {
            let Look { ready, whole, closed } = lock(&self.members).look(&self.epoll, self.bell.take())?;
            drop(closed);
            if !ready.is_empty() || !whole {
                // Others may have looked before these were ready, and wait for reports that are taken
                // now; or this future is dropped before it has asked everybody.
                self.bell.ring();
            }
            if !ready.is_empty() || whole {
                return Ok(ready);
            }
            coop::consume_budget().await;
        }
    }

    fn register(&self) -> io::Result<(runtime::Id, Arc<Registered>)> {
        let here = Handle::current().id();
        let mut slot = lock(&self.registered);
        if let Some((runtime, registered)) = &*slot
            && *runtime == here
        {
            return Ok((here, registered.clone()));
        }
        // A duplicate, as somebody may still wait with an earlier registration on this runtime.
        let fd = self.epoll.as_fd().try_clone_to_owned()?;
        let registered = Arc::new(Registered::new(fd, Interest::READABLE)?);
        *slot = Some((here, registered.clone()));
        Ok((here, registered))
    }
}

impl fmt::Debug for WaitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitSet").finish_non_exhaustive()
    }
}
