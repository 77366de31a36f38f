//! Files and sockets as messages.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::transfer::{Attachment, attach, detach};
use crate::sys::{AsFd, AsRawFd, BorrowedFd, Fd, OwnedFd, RawFd};

/// A file, socket or pipe in a message: whoever receives it has the same open file, by a descriptor of
/// its own.
///
/// It can be sent wherever values can: as a process's or task's argument or result, over a connection, in
/// a queue, up to 1,024 in one message. Sending a handle duplicates it: the one here stays usable, and
/// may be dropped or closed as soon as the message was sent. Over a TCP connection it cannot be sent.
///
/// ```
/// use std::fs::File;
/// use std::io::{Seek, Write};
/// use tokio_multiprocess as mp;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let (mut here, mut there) = mp::pipe()?;
/// let log = mp::Handle::new(tempfile::tempfile()?);
/// here.send(&("write here", &log)).await?;
///
/// let (words, file): (String, mp::Handle<File>) = there.recv().await?;
/// write!(file.into_inner()?, "{words}!")?;
///
/// let mut log = log.into_inner()?;
/// log.rewind()?;
/// assert_eq!(std::io::read_to_string(log)?, "write here!");
/// # Ok(()) }
/// ```
///
/// # For several processes
///
/// An argument is taken by value, so each process is given a handle of its own: here, to accept at one
/// address.
///
/// ```no_run
/// use std::net::TcpListener;
/// use tokio_multiprocess as mp;
///
/// fn serve(listener: mp::Handle<TcpListener>) -> mp::Result<()> {
///     let listener = listener.into_inner()?;
///     loop {
///         let (_client, address) = listener.accept()?;
///         println!("{} serves {address}", std::process::id());
///     }
/// }
///
/// # #[tokio::main] async fn main() -> mp::Result<()> {
/// let listener = mp::Handle::new(TcpListener::bind("127.0.0.1:8080")?);
/// let mut workers = Vec::new();
/// for _ in 0..4 {
///     workers.push(mp::Process::builder(serve, (listener.try_clone()?,)).start().await?);
/// }
/// # Ok(()) }
/// ```
///
/// # What the two ends share
///
/// All that belongs to the open file and not to its descriptor: the position in a file, its locks, and
/// whether it blocks. Tokio's sockets and pipes do not block, so a handle that was sent as Tokio's and is
/// received as std's gives `WouldBlock` where others wait, until `set_nonblocking(false)`: which then
/// harms who reads it with Tokio elsewhere. Received as Tokio's it is made non-blocking, also for the
/// sender. Bytes go to whoever reads them first.
pub struct Handle<T>(Held<T>);

enum Held<T> {
    Value(T),
    /// As it arrived, with nobody having asked for it yet.
    Descriptor(Fd),
}

impl<T: Transferable> Handle<T> {
    /// Makes `value` one that can be sent.
    pub fn new(value: T) -> Self {
        Self(Held::Value(value))
    }

    /// Another handle of the same open file, as if it was received.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(Held::Descriptor(self.as_fd().try_clone_to_owned()?)))
    }

    /// The value, unless the handle was received or cloned: then only [`into_inner`](Self::into_inner) gives it.
    pub fn get_ref(&self) -> Option<&T> {
        match &self.0 {
            Held::Value(value) => Some(value),
            Held::Descriptor(_) => None,
        }
    }

    /// The value itself. Of a received handle, one of Tokio's is now registered with the current runtime.
    ///
    /// That a descriptor is what the sender says is not looked at, except for Tokio's pipes: if it is
    /// something else, using it gives errors.
    ///
    /// # Errors
    /// For a received one of Tokio's: outside of a runtime, or when it cannot be registered.
    ///
    /// # Panics
    /// For the same: on a runtime whose I/O is not enabled.
    pub fn into_inner(self) -> io::Result<T> {
        match self.0 {
            Held::Value(value) => Ok(value),
            Held::Descriptor(fd) => T::open(fd),
        }
    }
}

impl<T: AsFd> AsFd for Handle<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Held::Value(value) => value.as_fd(),
            Held::Descriptor(fd) => fd.as_fd(),
        }
    }
}

impl<T: AsFd> AsRawFd for Handle<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<T: AsFd> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.as_raw_fd())
    }
}

/// Sends a duplicate.
impl<T: Transferable> Serialize for Handle<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fd = self.as_fd().try_clone_to_owned().map_err(S::Error::custom)?;
        attach(Attachment(Arc::new(fd)))?.serialize(serializer)
    }
}

impl<'de, T: Transferable> Deserialize<'de> for Handle<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)?;
        Ok(Self(Held::Descriptor(detach(index)?)))
    }
}

/// What a [`Handle`] can hold: descriptors, files, and the sockets and pipes of std and Tokio. The trait
/// is sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel in a `Handle`",
    label = "no file, socket, pipe or owned descriptor of std's or Tokio's"
)]
pub trait Transferable: AsFd + Sized + sealed::Open {}

mod sealed {
    use super::{Fd, io};

    #[diagnostic::on_unimplemented(
        message = "`{Self}` cannot travel in a `Handle`",
        label = "no file, socket, pipe or owned descriptor of std's or Tokio's"
    )]
    pub trait Open: Sized {
        fn open(fd: Fd) -> io::Result<Self>;
    }
}

macro_rules! of_std {
    ($($type:ty)*) => {$(
        impl Transferable for $type {}

        impl sealed::Open for $type {
            fn open(fd: Fd) -> io::Result<Self> {
                Ok(fd.into())
            }
        }
    )*};
}

macro_rules! of_tokio {
    ($($type:ty: $open:expr;)*) => {$(
        impl Transferable for $type {}

        impl sealed::Open for $type {
            fn open(fd: Fd) -> io::Result<Self> {
                // Tokio would panic.
                tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
                let open: fn(Fd) -> io::Result<Self> = $open;
                open(fd)
            }
        }
    )*};
}

/// Makes a socket of std's non-blocking and gives it to Tokio.
macro_rules! socket {
    ($std:ty) => {
        |fd| {
            let socket = <$std>::from(fd);
            socket.set_nonblocking(true)?;
            Self::from_std(socket)
        }
    };
}

of_std! {
    OwnedFd
    File
    io::PipeReader
    io::PipeWriter
    std::net::TcpListener
    std::net::TcpStream
    std::net::UdpSocket
    std::os::unix::net::UnixDatagram
    std::os::unix::net::UnixListener
    std::os::unix::net::UnixStream
}

of_tokio! {
    tokio::net::TcpListener: socket!(std::net::TcpListener);
    tokio::net::TcpStream: socket!(std::net::TcpStream);
    tokio::net::UdpSocket: socket!(std::net::UdpSocket);
    tokio::net::UnixDatagram: socket!(std::os::unix::net::UnixDatagram);
    tokio::net::UnixListener: socket!(std::os::unix::net::UnixListener);
    tokio::net::UnixStream: socket!(std::os::unix::net::UnixStream);
    tokio::net::unix::pipe::Receiver: Self::from_owned_fd;
    tokio::net::unix::pipe::Sender: Self::from_owned_fd;
}
