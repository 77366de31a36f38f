//! A stream of values into a task.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_util::StreamExt;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::Interest;

use super::flow::{self, Found, Inlet, Outgoing, Spilled};
use crate::error::{Error, Result};
use crate::reduction::{Attachment, Descriptor, Message, Peer};
use crate::sys::reactor::Registered;
use crate::sys::socket::seqpacket_pair;

/// A stream of values that a task reads while it runs: an argument, or a part of one.
///
/// The caller makes one [of a stream](Self::new); the task has a `Stream`, or in sync code a
/// blocking iterator, of the same values. They come with back-pressure: the caller's stream is not
/// polled before the task begins to read, and later not while some hundred KiB wait in a socket.
///
/// ```
/// use futures::stream;
/// use tokio_multiprocess as mp;
///
/// fn sum(numbers: mp::task::Input<u64>) -> Result<u64, mp::Failure> {
///     let mut sum = 0;
///     for number in numbers {
///         sum += number?;
///     }
///     Ok(sum)
/// }
///
/// #[tokio::main]
/// async fn main() -> mp::Result<()> {
///     let pool = mp::Pool::new(1).await?;
///     let numbers = mp::task::Input::new(stream::iter(1..=100))?;
///     assert_eq!(pool.apply(sum, (numbers,)).await?, 5050);
///     Ok(())
/// }
/// ```
///
/// The values end with an error if the caller's stream panics, its runtime ends, or a value cannot
/// be encoded: one that just ends is complete. When the task has ended, or drops it, the caller's
/// stream is dropped.
///
/// It can be read once. A task that is run again after its worker died finds an error if the first
/// attempt has read anything of it.
pub struct Input<T> {
    inlet: Inlet,
    over: bool,
    values: PhantomData<fn() -> T>,
}

impl<T: Message> Input<T> {
    /// Has a task on the current runtime read `values` and send them on, from when they are asked for.
    ///
    /// # Errors
    /// When no descriptor is left.
    ///
    /// # Panics
    /// Outside of a Tokio runtime with I/O enabled.
    pub fn new(values: impl Stream<Item = T> + Send + 'static) -> Result<Self> {
        let (socket, theirs) = seqpacket_pair()?;
        let socket = Registered::new(socket, Interest::READABLE | Interest::WRITABLE)?;
        tokio::spawn(async move {
            if !flow::is_wanted(&socket).await {
                return;
            }
            let values = values.map(Ok::<T, std::convert::Infallible>);
            let why = match flow::pour(values, &socket, Peer::AnyBuild).await {
                Ok(()) => return,
                Err(Spilled::Source(never)) => match never {},
                Err(Spilled::Unencodable(error)) => {
                    format!("a value of the input cannot be encoded: {error}")
                }
                Err(Spilled::Unsent(error)) => format!("the input cannot be sent: {error}"),
            };
            let mut last = Outgoing::default();
            last.fail(&why);
            // Whether anybody reads it is all the same.
            let _ = last.send_all(&socket).await;
        });
        Ok(Self::read(Attachment(theirs.into())))
    }

    /// The next value, and blocks the thread until it is there; `None` after the last one.
    ///
    /// # Errors
    /// As the items of this as a `Stream`: what the caller's side has failed of, or that it is gone;
    /// after that comes nothing. A value that cannot be decoded, after which others may follow.
    pub fn next_blocking(&mut self) -> Option<Result<T>> {
        loop {
            if let Some(value) = self.inlet.next() {
                return Some(value.map_err(undecodable));
            }
            if self.over || self.inlet.has_ended() {
                return None;
            }
            let found = self.inlet.wait_packet();
            if let Some(error) = self.failure(found) {
                return Some(Err(error));
            }
        }
    }

    fn read(socket: Attachment) -> Self {
        Self { inlet: Inlet::new(socket.0), over: false, values: PhantomData }
    }

    /// What must be told of it.
    fn failure(&mut self, found: io::Result<Found>) -> Option<Error> {
        let error = match found {
            Ok(Found::Packet) => return None,
            Ok(Found::Gone) => io::Error::new(io::ErrorKind::UnexpectedEof, "the input was cut short"),
            Err(error) => error,
        };
        self.over = true;
        Some(error.into())
    }
}

fn undecodable(error: crate::reduction::CodecError) -> Error {
    io::Error::new(io::ErrorKind::InvalidData, error).into()
}

impl<T: Message> Stream for Input<T> {
    type Item = Result<T>;

    /// # Panics
    /// Outside of a Tokio runtime with I/O enabled.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            if let Some(value) = this.inlet.next() {
                coop.made_progress();
                return Poll::Ready(Some(value.map_err(undecodable)));
            }
            if this.over || this.inlet.has_ended() {
                return Poll::Ready(None);
            }
            let found = ready!(this.inlet.poll_packet(cx));
            if let Some(error) = this.failure(found) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

/// The values of an [`Input`] in sync code: each step blocks the thread until the next is there.
#[derive(Debug)]
pub struct Blocking<T>(Input<T>);

impl<T: Message> Iterator for Blocking<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_blocking()
    }
}

impl<T: Message> IntoIterator for Input<T> {
    type Item = Result<T>;
    type IntoIter = Blocking<T>;

    fn into_iter(self) -> Blocking<T> {
        Blocking(self)
    }
}

impl<T> Serialize for Input<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let socket = self.inlet.untouched();
        let socket = socket.ok_or_else(|| serde::ser::Error::custom("some of the input was read already"))?;
        Descriptor(Attachment(socket.clone())).serialize(serializer)
    }
}

impl<'de, T: Message> Deserialize<'de> for Input<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Descriptor::deserialize(deserializer).map(|handle| Self::read(handle.0))
    }
}

impl<T> fmt::Debug for Input<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("over", &(self.over || self.inlet.has_ended())).finish_non_exhaustive()
    }
}
