//! Connections over descriptors that somebody else has made.

use std::sync::Arc;

use super::connection::Connection;
use super::halves::{RecvHalf, SendHalf};
use super::link;
use super::receiving::Receiving;
use super::sending::Sending;
use crate::error::Result;
use crate::reduction::Peer;
use crate::sys::{self, OwnedFd, RawFd};

impl Connection {
    /// A connection over a descriptor: a socket, a pipe, a terminal.
    ///
    /// Over a socket or pipe of bytes go [frames](super::FrameCodec) as CPython's
    /// `multiprocessing.connection` reads and writes them, and handles too if it is a Unix socket. Over a
    /// Unix socket of packets (`SOCK_SEQPACKET`) go the packets of [`pipe`](crate::pipe). A direction
    /// that the descriptor is not open for gives an error when it is used. Who is at the other end is not
    /// known, so functions go by their names.
    ///
    /// Its open file stays blocking or not, as it was: other processes may share it. It should be in no
    /// other use while the connection is, as messages would be torn.
    ///
    /// Of a pipe or a terminal no call says that it must not block: it is asked first, and then read or
    /// written. Whoever else reads or writes there in between has that call block, and the thread with it.
    /// And where `SIGPIPE` is not ignored, as Rust programs ignore it and all processes of this crate do,
    /// it ends a process that sends over a pipe that nobody reads. Sockets know neither; over a pipe or
    /// terminal that arrives from a [stranger](super#who-is-at-the-other-end) there is no connection.
    ///
    /// # Errors
    /// For what is neither of these, such as a file on a disk.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::of_stranger(fd)
    }

    /// [`from_fd`](Self::from_fd) for the number of a descriptor, which stays open and whose it is: the
    /// connection has a duplicate.
    ///
    /// # Errors
    /// `EBADF` (an [`Error::Io`](crate::Error::Io)) for a number at which nothing is open, such as −1;
    /// and as those of [`from_fd`](Self::from_fd).
    pub fn try_from_raw_fd(number: RawFd) -> Result<Self> {
        Self::from_fd(sys::fd::duplicate(number)?)
    }
}

impl RecvHalf {
    /// The end that receives over a descriptor, such as the first of a pipe's: see
    /// [`Connection::from_fd`].
    ///
    /// # Errors
    /// As those of [`Connection::from_fd`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let (reader, _) = link::open(&fd)?;
        Ok(Self::new(Receiving::new(Arc::new(fd), reader, Peer::Stranger)))
    }
}

impl SendHalf {
    /// The end that sends over a descriptor, such as the second of a pipe's: see
    /// [`Connection::from_fd`].
    ///
    /// # Errors
    /// As those of [`Connection::from_fd`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let (_, writer) = link::open(&fd)?;
        Ok(Self::new(Sending::new(Arc::new(fd), writer, Peer::Stranger)))
    }
}
