//! A connection as a stream of bytes again, for `tokio_util::codec::Framed`.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{fmt, io};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::codec::{Framed, FramedParts};

use super::FrameCodec;
use super::connection::{Connection, Duplex};
use super::port::Port;
use super::stream::{Writer, read_bytes};
use crate::error::{Error, Result};
use crate::reduction::MessagePack;
use crate::sys::AsFd;
use crate::sys::socket::shut_down;
use crate::sys::socket::stream::Kind;

/// The bytes of a connection, in both directions.
///
/// Made by [`Connection::into_framed`]. Like a connection it is used from any runtime. Handles that come
/// beside the bytes are closed.
#[derive(Debug)]
pub struct ByteStream {
    kind: Kind,
    reads: Port,
    writes: Port,
    /// It may have begun a message before, whose rest comes first.
    writer: Writer,
}

impl<C> Connection<C> {
    /// The connection as a [`Framed`](https://docs.rs/tokio-util/latest/tokio_util/codec/struct.Framed.html) of messages in bytes, which is a stream and a sink, and whose
    /// codec can be replaced (`Framed::map_codec`). What was read ahead comes first out of it.
    ///
    /// ```
    /// use futures::{SinkExt, StreamExt};
    /// use tokio_multiprocess::Connection;
    ///
    /// # #[cfg(target_os = "linux")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tokio_multiprocess::Result<()> {
    /// let (here, there) = std::os::unix::net::UnixStream::pair()?;
    /// let mut here = Connection::from_fd(here.into())?;
    /// let mut there = Connection::from_fd(there.into())?.into_framed()?;
    /// here.send_bytes(b"ping").await?;
    /// assert_eq!(there.next().await.unwrap()?, "ping");
    /// there.send("pong".into()).await?;
    /// assert_eq!(here.recv_bytes().await?, "pong");
    /// # Ok(())
    /// # }
    /// # #[cfg(not(target_os = "linux"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// For a connection of packets, as [`pipe`](crate::pipe) makes it: there is no stream of bytes,
    /// and its messages are a [`stream`](Self::stream) and a [`sink`](Self::sink).
    /// For one that is closed, has failed in receiving, or was fed messages that are not sent. The
    /// connection is in the error, as it was.
    #[allow(clippy::result_large_err, reason = "the connection comes back, without an allocation")]
    pub fn into_framed(mut self) -> Result<Framed<ByteStream, FrameCodec>, IntoFramedError<C>> {
        match self.inner.get_mut().and_then(framed) {
            Ok(framed) => Ok(framed),
            Err(error) => Err(IntoFramedError { connection: self, error }),
        }
    }
}

/// Takes what it needs, once all of it is there.
fn framed(duplex: &mut Duplex) -> Result<Framed<ByteStream, FrameCodec>> {
    let (fd, max) = (duplex.fd().clone(), duplex.recv.max_message());
    let (reader, writer) = (duplex.recv.stream()?, duplex.send.stream()?);
    let (kind, unread) = reader.take_unread()?;
    let stream =
        ByteStream { kind, reads: Port::new(fd.clone()), writes: Port::new(fd), writer: writer.take() };
    let mut parts = FramedParts::new::<bytes::Bytes>(stream, FrameCodec::new().max_message(max));
    parts.read_buf = BytesMut::from(&unread[..]);
    Ok(Framed::from_parts(parts))
}

/// Why a connection is no stream of bytes, and the connection: see [`Connection::into_framed`].
pub struct IntoFramedError<C = MessagePack> {
    /// As it was.
    pub connection: Connection<C>,
    /// What stands in the way.
    pub error: Error,
}

impl<C> fmt::Debug for IntoFramedError<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connection, error } = self;
        f.debug_struct("IntoFramedError").field("connection", connection).field("error", error).finish()
    }
}

impl<C> fmt::Display for IntoFramedError<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<C> std::error::Error for IntoFramedError<C> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// For who has no more use for the connection.
impl<C> From<IntoFramedError<C>> for Error {
    fn from(IntoFramedError { error, .. }: IntoFramedError<C>) -> Self {
        error
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            ready!(this.reads.poll_readable(cx))?;
            match read_bytes(&mut this.reads, this.kind, buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => this.reads.clear_readable(),
                result => {
                    coop.made_progress();
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        let written = ready!(this.writer.poll_write(&mut this.writes, buf, cx));
        coop.made_progress();
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writer.poll_flush(cx).map_err(Error::into_io)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.writer.poll_flush(cx).map_err(Error::into_io))?;
        // A pipe ends when it is dropped.
        shut_down(this.writes.as_fd());
        Poll::Ready(Ok(()))
    }
}
