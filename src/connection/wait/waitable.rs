//! What can be waited for.

use std::sync::{Arc, Weak};

use super::Buffered;
use super::condition::Condition;
use crate::error::{Error, Result};
use crate::sys::{AsFd, BorrowedFd, Fd};

/// What [`wait`](crate::wait) and [`WaitSet`](crate::WaitSet) take.
///
/// It is ready when reading from it would not block: something is there, or its end, or an error that
/// reading would tell. That is so of
///
/// - a [`Connection`](crate::Connection) or [`RecvHalf`](crate::RecvHalf): a message or its end is
///   there, in the socket or already in the reader;
/// - a [`Listener`](crate::Listener): somebody has come. With a key he may still turn out to be nobody
///   who may come in, so an `accept` after that may wait long, for him to prove it or for others. And the
///   handshakes under way go on only while somebody accepts: a server with a key keeps an `accept` going
///   rather than waiting for its listener;
/// - a [`Sentinel`](crate::Sentinel) or [`Process`](crate::Process): the process has ended;
/// - a [`Queue`](crate::Queue), [`JoinableQueue`](crate::JoinableQueue) or
///   [`SimpleQueue`](crate::SimpleQueue): an item is there, or the queue was shut down and nothing will come. Of
///   several processes that wait for one item all may be told, and one gets it: a `get` after that may wait,
///   where [`try_get`](crate::Queue::try_get) does not;
/// - an [`Event`](crate::Event): it is set;
/// - descriptors, files, pipes and sockets of std's and Tokio's: as `poll(2)` says. Regular files are
///   always ready; listeners are when somebody calls.
///
/// In a list with others each is a `&dyn Waitable`:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tokio_multiprocess::Result<()> {
/// use tokio_multiprocess as mp;
///
/// let (here, _there) = mp::pipe()?;
/// let children = [mp::Process::without_target().start().await?];
///
/// let mut objects: Vec<&dyn mp::Waitable> = vec![&here];
/// objects.extend(children.iter().map(|child| child as &dyn mp::Waitable));
/// assert_eq!(mp::wait(&objects).await?, [1]);
/// # Ok(())
/// # }
/// ```
///
/// Tokio's own sockets remember what Tokio's reactor has seen, which may come a little later than the
/// kernel's word: after a `wait`, read from them with an async method and not with `try_read`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be waited for",
    label = "neither a connection, a listener, a process, a sentinel, a queue, an event, nor a descriptor",
    note = "`wait` takes `&[&dyn Waitable]`: a reference to each object by itself"
)]
pub trait Waitable: sealed::Sealed + Send + Sync {}

impl<T: sealed::Sealed + Send + Sync + ?Sized> Waitable for T {}

pub(crate) mod sealed {
    use super::{Result, Source};

    #[diagnostic::on_unimplemented(
        message = "`{Self}` cannot be waited for",
        label = "neither a connection, a listener, a process, a sentinel, a queue, an event, nor a descriptor",
        note = "`wait` takes `&[&dyn Waitable]`: a reference to each object by itself"
    )]
    pub trait Sealed {
        /// # Errors
        /// When the object is closed.
        #[doc(hidden)]
        fn source(&self) -> Result<Source<'_>>;
    }
}

/// By what an object tells that it is ready.
///
/// However long somebody waits by it, it keeps nothing open that might move: a connection that does must
/// end with its new owner.
#[derive(Debug)]
pub struct Source<'a>(Kind<'a>);

#[derive(Debug)]
enum Kind<'a> {
    /// The descriptor tells all.
    Bare(BorrowedFd<'a>),
    /// The same, and a set keeps it open as long as it is a member.
    Kept(Arc<Fd>),
    /// Of an object in a cell that lends nothing, as it may leave at any time.
    Cell { fd: Weak<Fd>, buffered: Weak<Buffered>, name: &'static str },
    /// No descriptor tells of it.
    Condition(Arc<dyn Condition>),
}

impl<'a> Source<'a> {
    pub(crate) fn bare(fd: BorrowedFd<'a>) -> Self {
        Self(Kind::Bare(fd))
    }

    /// Of what holds nothing of anybody's open, so that who is inserted into a set may be dropped.
    pub(crate) fn kept(fd: Arc<Fd>) -> Self {
        Self(Kind::Kept(fd))
    }

    /// Of an object in a cell, which is there as long as `buffered` is. It is ready when either is.
    pub(crate) fn buffered(fd: &Arc<Fd>, buffered: &Arc<Buffered>, name: &'static str) -> Self {
        Self(Kind::Cell { fd: Arc::downgrade(fd), buffered: Arc::downgrade(buffered), name })
    }

    /// Of what is ready when a condition is met, and gone when that is closed. A set keeps the condition.
    pub(crate) fn condition(condition: impl Condition + 'static) -> Self {
        Self(Kind::Condition(Arc::new(condition)))
    }

    /// The object itself, for a look and no longer.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn hold(&self) -> Result<Held<'a>> {
        let (fd, buffered, kept) = match &self.0 {
            Kind::Bare(fd) => (Descriptor::Borrowed(*fd), None, None),
            Kind::Kept(fd) => (Descriptor::Shared(fd.clone()), None, Some(fd.clone())),
            Kind::Cell { fd, buffered, name } => match (fd.upgrade(), buffered.upgrade()) {
                (Some(fd), buffered @ Some(_)) => (Descriptor::Shared(fd), buffered, None),
                _ => return Err(Error::Closed(name)),
            },
            Kind::Condition(condition) => return Ok(Held::Condition(condition.clone())),
        };
        Ok(Held::Open(Open { fd, buffered, kept }))
    }
}

/// What is asked whether it is ready.
#[derive(Debug)]
pub(super) enum Held<'a> {
    Open(Open<'a>),
    Condition(Arc<dyn Condition>),
}

impl Held<'_> {
    /// The descriptor that tells of it, if one does.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Open(open) => Some(open.fd()),
            Self::Condition(_) => None,
        }
    }
}

/// An object that stays open meanwhile.
#[derive(Debug)]
pub(super) struct Open<'a> {
    fd: Descriptor<'a>,
    /// What it holds besides what the descriptor tells of.
    pub(super) buffered: Option<Arc<Buffered>>,
    /// What a set keeps open.
    pub(super) kept: Option<Arc<Fd>>,
}

#[derive(Debug)]
enum Descriptor<'a> {
    Borrowed(BorrowedFd<'a>),
    Shared(Arc<Fd>),
}

impl Open<'_> {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Descriptor::Borrowed(fd) => *fd,
            Descriptor::Shared(fd) => fd.as_fd(),
        }
    }

    /// Whether it is ready whatever the descriptor says.
    pub(super) fn is_set(&self) -> bool {
        self.buffered.as_ref().is_some_and(|buffered| buffered.is_set())
    }
}

macro_rules! through {
    ($($pointer:ty),*) => {$(
        impl<T: sealed::Sealed + ?Sized> sealed::Sealed for $pointer {
            fn source(&self) -> Result<Source<'_>> {
                (**self).source()
            }
        }
    )*};
}

through!(&T, &mut T, Box<T>, Arc<T>);

#[cfg(multiprocess)]
macro_rules! descriptors {
    ($($object:ty),* $(,)?) => {$(
        impl sealed::Sealed for $object {
            fn source(&self) -> Result<Source<'_>> {
                Ok(Source::bare(self.as_fd()))
            }
        }
    )*};
}

#[cfg(multiprocess)]
descriptors!(
    BorrowedFd<'_>,
    Fd,
    std::fs::File,
    std::io::Stdin,
    std::io::PipeReader,
    std::process::ChildStdout,
    std::process::ChildStderr,
    std::net::TcpListener,
    std::net::TcpStream,
    std::net::UdpSocket,
    std::os::unix::net::UnixListener,
    std::os::unix::net::UnixStream,
    std::os::unix::net::UnixDatagram,
    tokio::net::TcpListener,
    tokio::net::TcpStream,
    tokio::net::UdpSocket,
    tokio::net::UnixListener,
    tokio::net::UnixStream,
    tokio::net::UnixDatagram,
    tokio::net::unix::pipe::Receiver,
);
