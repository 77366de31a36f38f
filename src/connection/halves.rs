//! The two directions of a connection, each of which is something by itself.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::adaptors::{MessageSink, Messages};
use super::connection::{Connection, Duplex};
use super::receiving::Receiving;
use super::sending::Sending;
use super::wait::{Source, sealed, wait, wait_timeout};
use crate::error::Result;
use crate::reduction::{Codec, MessagePack, Movable};

/// The end of a connection that receives: of [`simplex_pipe`](super::simplex_pipe), or of
/// [`Connection::split`].
///
/// Its end tells the peer nothing as long as the other half lives: what the peer sends then fills the
/// socket, and waits there. Sending one in a message moves it, as it does a [`Connection`].
pub struct RecvHalf<C = MessagePack> {
    pub(super) inner: Movable<Receiving>,
    codec: PhantomData<fn() -> C>,
}

/// The end of a connection that sends: of [`simplex_pipe`](super::simplex_pipe), or of
/// [`Connection::split`].
///
/// When it is dropped, the peer sees the end once it has received what was sent, even if the other half
/// lives on. A process that is killed drops nothing: if this half was sent there and the other one lives
/// elsewhere, the peer sees the end only with that. The two ends of a
/// [`simplex_pipe`](super::simplex_pipe) have no such other half. Messages that were [fed](Self::sink) and not flushed are lost then. Sending one in a message
/// moves it, as it does a [`Connection`].
pub struct SendHalf<C = MessagePack> {
    pub(super) inner: Movable<Sending>,
    codec: PhantomData<fn() -> C>,
}

impl<C> RecvHalf<C> {
    pub(super) fn new(inner: impl Into<Option<Receiving>>) -> Self {
        Self { inner: Movable::new(inner), codec: PhantomData }
    }

    /// Receives the bytes of the next message: what [`SendHalf::send_bytes`] has sent, or the encoding
    /// of a value, whose handles are closed then.
    ///
    /// # Errors
    /// As those of [`recv`](Self::recv), but for those of decoding.
    ///
    /// # Cancel safety
    /// As that of [`recv`](Self::recv).
    pub async fn recv_bytes(&mut self) -> Result<Bytes> {
        self.inner.get_mut()?.recv_bytes().await
    }

    /// Receives the bytes of the next message into `buf`, and says how many they are.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`](crate::Error::BufferTooShort), with the whole message in it, if `buf` is
    /// shorter; else as those of [`recv_bytes`](Self::recv_bytes).
    ///
    /// # Cancel safety
    /// As that of [`recv`](Self::recv).
    pub async fn recv_bytes_into(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.inner.get_mut()?.recv_bytes_into(buf).await
    }

    /// Whether a call to receive would be ready at once: with a message, an error, or the end. It looks
    /// and takes nothing, and needs no runtime. Of a shared end, another process may be faster.
    ///
    /// Over a stream of bytes, the first bytes of a message count as one while nobody has read them, as they
    /// do in CPython: to receive it may still mean to wait for the others. Of a pipe the same is true once at
    /// most, if the peer was about to send its first handle or its first message over 64 KiB and gave up.
    pub fn poll(&self) -> Result<bool> {
        self.inner.with(|inner| inner.poll())?
    }

    /// As [`poll`](Self::poll), after waiting for at most `timeout` by the kernel's clock.
    ///
    /// # Errors
    /// As those of [`readable`](Self::readable).
    ///
    /// # Panics
    /// If it has to wait outside of a runtime with I/O.
    ///
    /// # Cancel safety
    /// Nothing is consumed.
    pub async fn poll_timeout(&self, timeout: Duration) -> Result<bool> {
        Ok(!wait_timeout(&[self], timeout).await?.is_empty())
    }

    /// Waits until a call to receive would be ready at once, and takes nothing: see
    /// [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed) if it is closed or has moved, also if that happens while this waits,
    /// which does not keep it open; and when no descriptor is left to wait with.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime with I/O.
    ///
    /// # Cancel safety
    /// Nothing is consumed.
    pub async fn readable(&self) -> Result<()> {
        wait(&[self]).await.map(drop)
    }

    /// How long a message may be, in bytes: 1 GiB unless another maximum is set. Of a closed half it
    /// changes nothing.
    pub fn set_max_message(&mut self, max: usize) {
        if let Ok(inner) = self.inner.get_mut() {
            inner.set_max_message(max);
        }
    }

    /// Another handle of this end, for another process: see [`Connection::share`].
    ///
    /// # Errors
    /// As those of [`Connection::share`].
    pub fn share(&mut self) -> Result<Self> {
        Ok(Self::new(self.inner.get_mut()?.share()?))
    }

    /// Closes this half; messages that were not received are lost. Later calls are errors
    /// ([`Error::Closed`](crate::Error::Closed)), but closing again is not.
    pub fn close(&mut self) {
        // There is nothing to close if it is closed, or was sent away.
        let _ = self.inner.take();
    }

    /// Whether it was closed here, or has moved to another process.
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    /// The same with another codec, which the peer must use as well.
    #[must_use = "it moves into what is returned"]
    pub fn with_codec<D: Codec>(mut self) -> RecvHalf<D> {
        RecvHalf::new(self.inner.take().ok())
    }

    /// Puts a connection together again.
    ///
    /// # Errors
    /// If the halves do not come from the same [`split`](Connection::split), or one is closed; both are
    /// in the error.
    #[allow(clippy::result_large_err, reason = "both halves come back, without an allocation")]
    pub fn reunite(mut self, mut send: SendHalf<C>) -> Result<Connection<C>, ReuniteError<C>> {
        let one = |recv: &mut Receiving| send.inner.with(|send| Arc::ptr_eq(recv.fd(), send.fd()));
        match self.inner.with(one) {
            Ok(Ok(true)) => {}
            _ => return Err(ReuniteError(self, send)),
        }
        match (self.inner.take(), send.inner.take()) {
            (Ok(recv), Ok(send)) => Ok(Connection::of(Duplex::new(recv, send))),
            // Nobody else could have taken them since.
            _ => Err(ReuniteError(self, send)),
        }
    }
}

impl<C: Codec> RecvHalf<C> {
    /// Receives the next message, whose type has to be said: `recv::<String>()`, or
    /// `let text: String = …`.
    ///
    /// # Errors
    /// [`Error::Eof`](crate::Error::Eof) when the peer is gone and all that it has sent was received;
    /// [`Error::Decode`](crate::Error::Decode) if the message is no `T`, and
    /// [`Error::TooLong`](crate::Error::TooLong) if it is over the maximum: that message is gone then,
    /// and the next one can be received. Over a stream of bytes nothing can be received after one that is
    /// too long, is no message or was cut short: each later call gives the same error. When there are no
    /// numbers left for the descriptors that come
    /// with a message, that is an error, which can be tried again unless it says that they are lost.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime with I/O.
    ///
    /// # Cancel safety
    /// Nothing is lost: if the future is dropped, the message is there for the next call.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.inner.get_mut()?.recv::<C, T>().await
    }

    /// The messages as a stream, which ends where [`recv`](Self::recv) gives
    /// [`Error::Eof`](crate::Error::Eof).
    pub fn stream<T: DeserializeOwned>(&mut self) -> Messages<&mut Self, T> {
        Messages::new(self)
    }

    /// As [`stream`](Self::stream), with the half inside.
    pub fn into_stream<T: DeserializeOwned>(self) -> Messages<Self, T> {
        Messages::new(self)
    }
}

impl<C> SendHalf<C> {
    pub(super) fn new(inner: impl Into<Option<Sending>>) -> Self {
        Self { inner: Movable::new(inner), codec: PhantomData }
    }

    /// Sends bytes as they are: one message, also if there are none.
    ///
    /// # Errors
    /// As those of [`send`](Self::send), but for those of encoding.
    ///
    /// # Cancel safety
    /// As that of [`send`](Self::send).
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.inner.get_mut()?.send_bytes(bytes).await
    }

    /// Waits until all that was begun, or fed to a [`sink`](Self::sink), is with the kernel.
    ///
    /// # Cancel safety
    /// What is left goes out with the next call.
    pub async fn flush(&mut self) -> Result<()> {
        let inner = self.inner.get_mut()?;
        std::future::poll_fn(|cx| inner.poll_flush(cx)).await
    }

    /// How long a message may be, in bytes: 1 GiB unless another maximum is set. The peer has its own. Of
    /// a closed half it changes nothing.
    pub fn set_max_message(&mut self, max: usize) {
        if let Ok(inner) = self.inner.get_mut() {
            inner.set_max_message(max);
        }
    }

    /// Another handle of this end, for another process: see [`Connection::share`].
    ///
    /// # Errors
    /// As those of [`Connection::share`].
    pub fn share(&mut self) -> Result<Self> {
        Ok(Self::new(self.inner.get_mut()?.share()?))
    }

    /// Closes this half, as dropping it does. Later calls are errors
    /// ([`Error::Closed`](crate::Error::Closed)), but closing again is not.
    pub fn close(&mut self) {
        // There is nothing to close if it is closed, or was sent away.
        if let Ok(inner) = self.inner.take() {
            inner.close();
        }
    }

    /// Whether it was closed here, or has moved to another process.
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    /// The same with another codec, which the peer must use as well.
    #[must_use = "it moves into what is returned"]
    pub fn with_codec<D: Codec>(mut self) -> SendHalf<D> {
        SendHalf::new(self.inner.take().ok())
    }
}

impl<C: Codec> SendHalf<C> {
    /// Sends a value as one message, and waits until there is room for it. Handles in it go along:
    /// connections move, all else is duplicated. A file or socket by itself is no value for serde: it is
    /// sent as a `Handle`.
    ///
    /// # Errors
    /// [`Error::Encode`](crate::Error::Encode) if the value cannot be written,
    /// [`Error::TooLong`](crate::Error::TooLong) if it is over the maximum, a broken pipe (see
    /// [`Error::is_eof`](crate::Error::is_eof)) if nobody is there to receive it. Nothing was sent then,
    /// and what would have moved is still here. Over a stream of bytes, though, the error may come when
    /// the message was begun, such as when the peer leaves in the middle of it: each later call fails too
    /// then.
    ///
    /// # Panics
    /// If it has to wait outside of a runtime with I/O.
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, the message was not sent. Over a stream of bytes that
    /// is so until its first byte is out; from then on all of it goes out, also if this end is dropped: a
    /// thread writes the rest, for as long as the peer takes to read it, but at a regular exit of this
    /// process for no more than a second. If this end is dropped or closed and the peer has read nothing
    /// for 30 s (to a minute), the rest is given up: the peer then sees the end in the middle of a message.
    /// Of [`send_bytes`](Self::send_bytes)'s argument, what is left is copied for that, once.
    pub async fn send<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.inner.get_mut()?.send::<C, T>(value).await
    }

    /// A sink for messages, which gathers small ones until it is flushed or there are 32 KiB of them:
    /// they go out together, at a fraction of the cost.
    ///
    /// What cannot be sent, as handles over TCP, is an error of the call that was to send it, and is not
    /// tried again, except for want of descriptors.
    pub fn sink<T: Serialize>(&mut self) -> MessageSink<&mut Self, T> {
        MessageSink::new(self)
    }

    /// As [`sink`](Self::sink), with the half inside.
    pub fn into_sink<T: Serialize>(self) -> MessageSink<Self, T> {
        MessageSink::new(self)
    }
}

impl<C> Drop for SendHalf<C> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Two halves that do not belong together.
pub struct ReuniteError<C = MessagePack>(
    /// The half that receives.
    pub RecvHalf<C>,
    /// The half that sends.
    pub SendHalf<C>,
);

impl<C> fmt::Debug for ReuniteError<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReuniteError").field(&self.0).field(&self.1).finish()
    }
}

impl<C> fmt::Display for ReuniteError<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("these are not the two halves of one connection")
    }
}

impl<C> std::error::Error for ReuniteError<C> {}

macro_rules! travels {
    ($($half:ident)*) => {$(
        /// Says whether it is open.
        impl<C> fmt::Debug for $half<C> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let state = if self.is_closed() { "closed" } else { "open" };
                write!(f, concat!(stringify!($half), "({})"), state)
            }
        }

        /// Moves it to another process: see [`Connection`].
        impl<C> Serialize for $half<C> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.inner.serialize(serializer)
            }
        }

        impl<'de, C> Deserialize<'de> for $half<C> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self { inner: Movable::deserialize(deserializer)?, codec: PhantomData })
            }
        }
    )*};
}

travels!(RecvHalf SendHalf);

/// Ready when a message, its end or an error is there.
impl<C> sealed::Sealed for RecvHalf<C> {
    fn source(&self) -> Result<Source<'_>> {
        self.inner.with(|inner| inner.source())
    }
}

macro_rules! descriptors {
    ($($object:ident)*) => {$(
        /// The number of the descriptor, -1 once it is closed. It is this object's: to be looked at, not
        /// to be read from. There is no `AsFd`, as a connection may move away while it is borrowed.
        #[cfg(multiprocess)]
        impl<C> crate::sys::AsRawFd for $object<C> {
            fn as_raw_fd(&self) -> crate::sys::RawFd {
                self.inner.with(|inner| inner.fd().as_raw_fd()).unwrap_or(-1)
            }
        }
    )*};
}

descriptors!(RecvHalf SendHalf Connection);
