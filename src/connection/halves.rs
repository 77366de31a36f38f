//! The two directions of a connection, each of which is something by itself.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::coop;

use super::link::{Delivery, HEADROOM, Parcel, Reader, Writer};
use super::port::Port;
use super::wait::{Buffered, Source, sealed};
use crate::error::{Error, Result};
use crate::process::reactor;
use crate::reduction::{
    Attachments, Codec, Departures, Incoming, MessagePack, Peer, decode_from, encode_uncommitted,
};
use crate::sys::{self, AsFd, Fd};

/// How long a message may be unless another maximum is set, in bytes: 1 GiB.
const MAX_MESSAGE: usize = 1 << 30;

/// How many bytes of room a sender keeps for its next message.
const KEPT: usize = 64 << 10;

/// The end of a connection that receives.
pub struct RecvHalf<C = MessagePack> {
    inner: Option<Receiving>,
    codec: PhantomData<fn() -> C>,
}

#[derive(Debug)]
struct Receiving {
    port: Port,
    reader: Reader,
    /// Whether the reader holds messages, for who waits for several things.
    buffered: Arc<Buffered>,
    peer: Peer,
    max: usize,
}

/// The end of a connection that sends.
pub struct SendHalf<C = MessagePack> {
    inner: Option<Sending>,
    codec: PhantomData<fn() -> C>,
}

#[derive(Debug)]
struct Sending {
    port: Port,
    writer: Writer,
    peer: Peer,
    max: usize,
    /// The message that is being sent, after the room for its header.
    scratch: Vec<u8>,
}

impl Receiving {
    /// Receives the next message, of at most `max` bytes or what the connection allows.
    async fn next(&mut self, max: usize) -> Result<Delivery> {
        poll_fn(|cx| self.poll_next(max, cx)).await
    }

    fn decode<C: Codec, T: DeserializeOwned>(&self, message: Delivery) -> Result<T> {
        let Delivery { body, handles } = message;
        let message = Incoming { bytes: &body, attachments: handles };
        decode_from::<C, T>(message, self.peer).map_err(Error::Decode)
    }

    fn poll_next(&mut self, max: usize, cx: &mut Context<'_>) -> Poll<Result<Delivery>> {
        let coop = ready!(coop::poll_proceed(cx));
        let next = ready!(self.reader.poll_next(&mut self.port, max.min(self.max), cx));
        coop.made_progress();
        self.buffered.set(self.reader.holds_message());
        Poll::Ready(next.and_then(|next| next.ok_or(Error::Eof)))
    }
}

impl Sending {
    /// Empties the scratch and encodes a message there.
    fn encode<C: Codec, T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(Attachments, Departures)> {
        self.start();
        encode_uncommitted::<C, T>(value, &mut self.scratch, self.peer).map_err(Error::Encode)
    }

    fn start(&mut self) {
        self.scratch.clear();
        self.scratch.resize(HEADROOM, 0);
    }

    /// Sends what is in the scratch, and `rest` after it.
    async fn send(&mut self, rest: &[u8], handles: &Attachments) -> Result<()> {
        let Self { port, writer, scratch, max, .. } = self;
        let mut parcel = Parcel::new(scratch, rest, handles);
        if parcel.len() > *max {
            return Err(Error::TooLong { len: parcel.len() as u64, max: *max });
        }
        let sent = poll_fn(|cx| {
            let coop = ready!(coop::poll_proceed(cx));
            let sent = ready!(writer.poll_send(port, &mut parcel, cx));
            coop.made_progress();
            Poll::Ready(sent)
        });
        sent.await?;
        if scratch.capacity() > KEPT {
            *scratch = Vec::new();
        }
        Ok(())
    }
}

impl<C> RecvHalf<C> {
    pub(super) fn new(fd: impl Into<Arc<Fd>>, reader: Reader) -> Self {
        let (port, buffered) = (Port::new(fd), Arc::default());
        let inner = Receiving { port, reader, buffered, peer: Peer::AnyBuild, max: MAX_MESSAGE };
        Self { inner: Some(inner), codec: PhantomData }
    }

    fn here(&mut self) -> Result<&mut Receiving> {
        self.inner.as_mut().ok_or(Error::Closed("connection"))
    }

    fn peek(&self) -> Result<&Receiving> {
        self.inner.as_ref().ok_or(Error::Closed("connection"))
    }

    /// Receives the bytes of the next message: what [`SendHalf::send_bytes`] has sent, or the encoding
    /// of a value, whose handles are closed then.
    ///
    /// # Errors
    /// As those of [`recv`](Self::recv), but for those of decoding.
    ///
    /// # Cancel safety
    /// Nothing is lost: the message is there for the next call.
    pub async fn recv_bytes(&mut self) -> Result<Bytes> {
        Ok(self.here()?.next(usize::MAX).await?.body)
    }

    /// Receives the bytes of the next message into `buf`, and says how many they are.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`], with the whole message in it, if `buf` is shorter; else as those of
    /// [`recv_bytes`](Self::recv_bytes).
    ///
    /// # Cancel safety
    /// As that of [`recv`](Self::recv).
    pub async fn recv_bytes_into(&mut self, buf: &mut [u8]) -> Result<usize> {
        let message = self.recv_bytes().await?;
        match buf.get_mut(..message.len()) {
            Some(room) => room.copy_from_slice(&message),
            None => return Err(Error::BufferTooShort(message)),
        }
        Ok(message.len())
    }

    /// Whether a call to receive would be ready at once: with a message, or with the end. It looks and
    /// takes nothing, and needs no runtime.
    pub fn poll(&self) -> Result<bool> {
        let inner = self.peek()?;
        Ok(inner.reader.holds_message() || sys::fd::poll_readable(inner.port.as_fd(), Some(Duration::ZERO))?)
    }

    /// As [`poll`](Self::poll), after waiting for at most `timeout` by the kernel's clock.
    ///
    /// # Cancel safety
    /// Nothing is consumed.
    pub async fn poll_timeout(&self, timeout: Duration) -> Result<bool> {
        let inner = self.peek()?;
        Ok(inner.reader.holds_message() || reactor::readable_within(inner.port.as_fd(), timeout).await?)
    }

    /// Waits until a call to receive would be ready at once, and takes nothing. Of a shared end another
    /// process may be faster.
    ///
    /// # Errors
    /// When no descriptor is left to wait with.
    ///
    /// # Cancel safety
    /// Nothing is consumed.
    pub async fn readable(&self) -> Result<()> {
        if !self.poll()? {
            reactor::readable(self.peek()?.port.as_fd()).await?;
        }
        Ok(())
    }

    /// Closes this direction; messages that were not received are lost. Later calls are errors
    /// ([`Error::Closed`]), but closing again is not.
    pub fn close(&mut self) {
        self.inner = None;
    }

    /// Whether it was closed here.
    pub fn is_closed(&self) -> bool {
        self.inner.is_none()
    }
}

impl<C: Codec> RecvHalf<C> {
    /// Receives the next message.
    ///
    /// # Errors
    /// [`Error::Eof`] when the peer is gone and all that it has sent was received. [`Error::Decode`] if
    /// the message is no `T`, and [`Error::TooLong`] if it is over the maximum: that message is gone then,
    /// and the next one can be received.
    ///
    /// # Cancel safety
    /// Nothing is lost: if the future is dropped, the message is there for the next call.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T> {
        let inner = self.here()?;
        let message = inner.next(usize::MAX).await?;
        inner.decode::<C, T>(message)
    }
}

impl<C> SendHalf<C> {
    pub(super) fn new(fd: impl Into<Arc<Fd>>, writer: Writer) -> Self {
        let inner = Sending {
            port: Port::new(fd),
            writer,
            peer: Peer::AnyBuild,
            max: MAX_MESSAGE,
            scratch: Vec::new(),
        };
        Self { inner: Some(inner), codec: PhantomData }
    }

    fn here(&mut self) -> Result<&mut Sending> {
        self.inner.as_mut().ok_or(Error::Closed("connection"))
    }

    /// Sends bytes as they are: one message, also if there are none.
    ///
    /// # Errors
    /// As those of [`send`](Self::send), but for those of encoding.
    ///
    /// # Cancel safety
    /// As that of [`send`](Self::send).
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let inner = self.here()?;
        inner.start();
        inner.send(bytes, &Attachments::new()).await
    }

    /// Waits until all that was begun is with the kernel.
    ///
    /// # Cancel safety
    /// The rest goes out with the next call.
    pub async fn flush(&mut self) -> Result<()> {
        let Sending { port, writer, .. } = self.here()?;
        poll_fn(|cx| writer.poll_flush(port, cx)).await
    }

    /// Closes this direction. Later calls are errors ([`Error::Closed`]), but closing again is not.
    pub fn close(&mut self) {
        self.inner = None;
    }

    /// Whether it was closed here.
    pub fn is_closed(&self) -> bool {
        self.inner.is_none()
    }
}

impl<C: Codec> SendHalf<C> {
    /// Sends a value as one message, and waits until there is room for it.
    ///
    /// # Errors
    /// [`Error::Encode`] if the value cannot be written, [`Error::TooLong`] if it is over the maximum: then
    /// nothing was sent. A broken pipe (see [`Error::is_eof`]) if nobody is there to receive it.
    ///
    /// # Cancel safety
    /// If the future is dropped, the message was sent whole or not at all; which of both is not known
    /// then.
    pub async fn send<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        let inner = self.here()?;
        let (handles, departures) = inner.encode::<C, T>(value)?;
        inner.send(&[], &handles).await?;
        departures.commit();
        Ok(())
    }
}

impl<C> fmt::Debug for RecvHalf<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_closed() { "closed" } else { "open" };
        write!(f, "RecvHalf({state})")
    }
}

impl<C> fmt::Debug for SendHalf<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_closed() { "closed" } else { "open" };
        write!(f, "SendHalf({state})")
    }
}

/// Ready when a message, its end or an error is there.
impl<C> sealed::Sealed for RecvHalf<C> {
    fn source(&self) -> Result<Source<'_>> {
        let inner = self.peek()?;
        Ok(Source::buffered(inner.port.fd().clone(), inner.buffered.clone()))
    }
}
