//! Connections as streams and sinks.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::{FusedStream, Stream};
use futures_sink::Sink;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::halves::{RecvHalf, SendHalf};
use super::receiving::Receiving;
use super::sending::Sending;
use crate::error::{Error, Result};
use crate::reduction::Codec;

/// What messages can be received from.
pub(super) trait Receives {
    type Codec;

    fn receiving(&mut self) -> Result<&mut Receiving>;
}

/// What messages can be sent over.
pub(super) trait Sends {
    type Codec;

    fn sending(&mut self) -> Result<&mut Sending>;
}

impl<C> Receives for RecvHalf<C> {
    type Codec = C;

    fn receiving(&mut self) -> Result<&mut Receiving> {
        self.inner.get_mut()
    }
}

impl<C> Sends for SendHalf<C> {
    type Codec = C;

    fn sending(&mut self) -> Result<&mut Sending> {
        self.inner.get_mut()
    }
}

impl<R: Receives> Receives for &mut R {
    type Codec = R::Codec;

    fn receiving(&mut self) -> Result<&mut Receiving> {
        (**self).receiving()
    }
}

impl<S: Sends> Sends for &mut S {
    type Codec = S::Codec;

    fn sending(&mut self) -> Result<&mut Sending> {
        (**self).sending()
    }
}

/// The messages that arrive over a connection: see [`RecvHalf::stream`].
///
/// It ends with the peer. An error is an item, after which the next message may come: of one that is no
/// `T`, or was lost. After an error that is for good the stream ends too: when the connection is closed,
/// and when its bytes are not, or no longer, messages. Dropping it loses nothing.
#[derive(Debug)]
#[must_use = "streams do nothing unless they are polled"]
pub struct Messages<R, T> {
    from: R,
    ended: bool,
    item: PhantomData<fn() -> T>,
}

impl<R, T> Messages<R, T> {
    pub(super) fn new(from: R) -> Self {
        Self { from, ended: false, item: PhantomData }
    }

    /// What the messages come from.
    pub fn into_inner(self) -> R {
        self.from
    }
}

impl<R, T> Stream for Messages<R, T>
where
    R: Receives<Codec: Codec> + Unpin,
    T: DeserializeOwned,
{
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let (item, failed) = match self.from.receiving() {
            Ok(receiving) => {
                let item = ready!(receiving.poll_recv::<R::Codec, T>(cx));
                (item, receiving.has_failed())
            }
            Err(closed) => (Err(closed), true),
        };
        let end = matches!(item, Err(Error::Eof));
        self.ended = end || failed;
        Poll::Ready(if end { None } else { Some(item) })
    }
}

impl<R, T> FusedStream for Messages<R, T>
where
    R: Receives<Codec: Codec> + Unpin,
    T: DeserializeOwned,
{
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

/// Messages that go out together: see [`SendHalf::sink`].
///
/// Closing it flushes it, and leaves the connection open. Dropping it leaves what was fed and not flushed
/// with the connection, which sends it before the next message or by `flush`.
#[derive(Debug)]
#[must_use = "what is fed goes out when the sink is flushed"]
pub struct MessageSink<S, T> {
    over: S,
    item: PhantomData<fn(T)>,
}

impl<S, T> MessageSink<S, T> {
    pub(super) fn new(over: S) -> Self {
        Self { over, item: PhantomData }
    }

    /// What the messages go over.
    pub fn into_inner(self) -> S {
        self.over
    }
}

impl<S, T> Sink<T> for MessageSink<S, T>
where
    S: Sends<Codec: Codec> + Unpin,
    T: Serialize,
{
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.over.sending()?.poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, item: T) -> Result<()> {
        self.over.sending()?.feed::<S::Codec, T>(&item)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.over.sending()?.poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_flush(cx)
    }
}
