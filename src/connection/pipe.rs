//! Pairs of connected ends.

use super::connection::Connection;
use super::halves::{RecvHalf, SendHalf};
use super::link::{Reader, Writer};
use super::receiving::Receiving;
use super::sending::Sending;
use crate::error::Result;
use crate::reduction::Peer;
use crate::sys::{Fd, socket};

/// Two connected ends, each of which sends and receives. Python's `Pipe()`.
///
/// A message over it is whole or not at all, whichever process dies at whatever instant. Up to 64 KiB go
/// through the socket, more through sealed memory beside it. Each end costs one descriptor, and a second
/// while it waits in both directions on one runtime.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tokio_multiprocess::Result<()> {
/// let (mut here, mut there) = tokio_multiprocess::pipe()?;
/// here.send(&("hello", 1)).await?;
/// assert_eq!(there.recv::<(String, u8)>().await?, ("hello".to_owned(), 1));
/// # Ok(()) }
/// ```
///
/// # Errors
/// When there are no descriptors left, and on platforms without processes.
#[doc(alias = "Pipe")]
pub fn pipe() -> Result<(Connection, Connection)> {
    let (a, b) = socket::seqpacket_pair()?;
    Ok((end(a), end(b)))
}

/// An end that receives and one that sends to it. Python's `Pipe(duplex=False)`.
///
/// # Errors
/// As those of [`pipe`].
#[doc(alias = "Pipe")]
pub fn simplex_pipe() -> Result<(RecvHalf, SendHalf)> {
    let (a, b) = socket::seqpacket_pair()?;
    Ok((
        RecvHalf::new(Receiving::new(a.into(), Reader::Packets(Default::default()), FAMILY)),
        SendHalf::new(Sending::new(b.into(), Writer::Packets(Default::default()), FAMILY)),
    ))
}

/// Wherever the ends travel, they stay in the family.
const FAMILY: Peer = Peer::AnyBuild;

pub(super) fn end(socket: Fd) -> Connection {
    let (reader, writer) = (Reader::Packets(Default::default()), Writer::Packets(Default::default()));
    Connection::new(socket, reader, writer, FAMILY)
}
