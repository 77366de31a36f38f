//! A connection: both directions in one hand.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::halves::{RecvHalf, SendHalf};
use super::link::{Reader, Writer};
use super::wait::{Source, sealed};
use crate::error::Result;
use crate::reduction::{Codec, MessagePack};
use crate::sys::Fd;

/// One end of a connection, over which whole messages go both ways.
///
/// Made by [`pipe`](crate::connection::pipe). It is used from any runtime, also from several in turn; it is
/// closed when it is dropped.
pub struct Connection<C = MessagePack> {
    recv: RecvHalf<C>,
    send: SendHalf<C>,
}

impl<C> Connection<C> {
    pub(super) fn new(fd: Arc<Fd>, reader: Reader, writer: Writer) -> Self {
        Self { recv: RecvHalf::new(fd.clone(), reader), send: SendHalf::new(fd, writer) }
    }

    /// Receives the bytes of the next message: see [`RecvHalf::recv_bytes`].
    ///
    /// # Cancel safety
    /// As that of [`recv`](Self::recv).
    pub async fn recv_bytes(&mut self) -> Result<Bytes> {
        self.recv.recv_bytes().await
    }

    /// Receives the bytes of the next message into `buf`: see [`RecvHalf::recv_bytes_into`].
    ///
    /// # Cancel safety
    /// As that of [`recv`](Self::recv).
    pub async fn recv_bytes_into(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.recv.recv_bytes_into(buf).await
    }

    /// Whether a call to receive would be ready at once: see [`RecvHalf::poll`].
    pub fn poll(&self) -> Result<bool> {
        self.recv.poll()
    }

    /// As [`poll`](Self::poll), after waiting for at most `timeout` by the kernel's clock.
    ///
    /// # Cancel safety
    /// Nothing is consumed.
    pub async fn poll_timeout(&self, timeout: Duration) -> Result<bool> {
        self.recv.poll_timeout(timeout).await
    }

    /// Waits until a call to receive would be ready at once: see [`RecvHalf::readable`].
    ///
    /// # Cancel safety
    /// Nothing is consumed.
    pub async fn readable(&self) -> Result<()> {
        self.recv.readable().await
    }

    /// Sends bytes as they are: see [`SendHalf::send_bytes`].
    ///
    /// # Cancel safety
    /// As that of [`send`](Self::send).
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.send.send_bytes(bytes).await
    }

    /// Waits until all that was begun is with the kernel.
    ///
    /// # Cancel safety
    /// The rest goes out with the next call.
    pub async fn flush(&mut self) -> Result<()> {
        self.send.flush().await
    }

    /// Closes this end; messages that were not received are lost. Later calls are errors
    /// ([`Error::Closed`](crate::Error::Closed)), but closing again is not.
    pub fn close(&mut self) {
        self.recv.close();
        self.send.close();
    }

    /// Whether it was closed here.
    pub fn is_closed(&self) -> bool {
        self.recv.is_closed()
    }

    /// The two directions, for two tasks.
    pub fn split(self) -> (RecvHalf<C>, SendHalf<C>) {
        (self.recv, self.send)
    }
}

impl<C: Codec> Connection<C> {
    /// Receives the next message: see [`RecvHalf::recv`].
    ///
    /// # Cancel safety
    /// Nothing is lost: if the future is dropped, the message is there for the next call.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.recv.recv().await
    }

    /// Sends a value as one message: see [`SendHalf::send`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the message was sent whole or not at all; which of both is not known
    /// then.
    pub async fn send<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.send.send(value).await
    }
}

impl<C> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_closed() { "Connection(closed)" } else { "Connection(open)" })
    }
}

/// As its receiving half.
impl<C> sealed::Sealed for Connection<C> {
    fn source(&self) -> Result<Source<'_>> {
        self.recv.source()
    }
}
