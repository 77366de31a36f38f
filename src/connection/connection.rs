//! A connection: both directions in one hand.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::adaptors::{MessageSink, Messages};
use super::auth;
use super::halves::{RecvHalf, SendHalf};
use super::link::{self, Reader, Writer};
use super::receiving::{Receiving, arrived, duplicate};
use super::sending::Sending;
use super::wait::{Source, sealed, wait, wait_timeout};
use crate::error::{Error, Result};
use crate::reduction::{Codec, MessagePack, Movable, Moves, Peer};
use crate::sys::Fd;

/// One end of a connection, over which whole messages go both ways.
///
/// It is used from any runtime, also from several in turn, and whatever became of those that it was used
/// on before. Dropping it closes it, and the peer sees the end once it has received what was sent.
///
/// # In a message
/// Sent in a message, or given to a process as an argument, a connection moves: with the message it is
/// gone from here, and each later call gives [`Error::Closed`]. What was read ahead goes along. If the
/// message comes to nothing, it is as it was. For an end that several processes use there is
/// [`share`](Self::share).
///
/// A task of a [`Pool`](crate::Pool) may have to be sent again, so the pool holds on to what moved with it
/// until the task has ended: only then does the peer see the end, also if the task drops the connection
/// before. Of a [`SendHalf`] that it drops the peer is told at once.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tokio_multiprocess::Result<()> {
/// # use tokio_multiprocess::{Connection, pipe};
/// let (mut here, mut there) = pipe()?;
/// let (inner, mut other) = pipe()?;
/// here.send(&inner).await?;
/// assert!(inner.is_closed());
/// let mut inner: Connection = there.recv().await?;
/// inner.send("arrived").await?;
/// assert_eq!(other.recv::<String>().await?, "arrived");
/// # Ok(()) }
/// ```
pub struct Connection<C = MessagePack> {
    pub(super) inner: Movable<Duplex>,
    codec: PhantomData<fn() -> C>,
}

/// Both directions over one descriptor.
#[derive(Debug)]
pub(super) struct Duplex {
    pub(super) recv: Receiving,
    pub(super) send: Sending,
}

impl Duplex {
    pub(super) fn new(recv: Receiving, mut send: Sending) -> Self {
        // It ends with its descriptor.
        send.set_hangs_up(false);
        Self { recv, send }
    }

    pub(super) fn fd(&self) -> &Arc<Fd> {
        self.recv.fd()
    }
}

impl<C> Connection<C> {
    pub(super) fn new(fd: Fd, reader: Reader, writer: Writer, peer: Peer) -> Self {
        let fd = Arc::new(fd);
        Self::of(Duplex::new(Receiving::new(fd.clone(), reader, peer), Sending::new(fd, writer, peer)))
    }

    /// The end of a connection at whose other end may be no process of this family.
    pub(super) fn of_stranger(socket: Fd) -> Result<Self> {
        let (reader, writer) = link::open(&socket)?;
        Ok(Self::new(socket, reader, writer, Peer::Stranger))
    }

    pub(super) fn of(duplex: impl Into<Option<Duplex>>) -> Self {
        Self { inner: Movable::new(duplex), codec: PhantomData }
    }

    fn recv_half(&mut self) -> Result<&mut Receiving> {
        Ok(&mut self.inner.get_mut()?.recv)
    }

    fn send_half(&mut self) -> Result<&mut Sending> {
        Ok(&mut self.inner.get_mut()?.send)
    }

    /// Receives the bytes of the next message: see [`RecvHalf::recv_bytes`].
    ///
    /// # Cancel safety
    /// As that of [`recv`](Self::recv).
    pub async fn recv_bytes(&mut self) -> Result<Bytes> {
        self.recv_half()?.recv_bytes().await
    }

    /// Receives the bytes of the next message into `buf`: see [`RecvHalf::recv_bytes_into`].
    ///
    /// # Cancel safety
    /// As that of [`recv`](Self::recv).
    pub async fn recv_bytes_into(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.recv_half()?.recv_bytes_into(buf).await
    }

    /// Whether a call to receive would be ready at once: see [`RecvHalf::poll`].
    pub fn poll(&self) -> Result<bool> {
        self.inner.with(|inner| inner.recv.poll())?
    }

    /// As [`poll`](Self::poll), after waiting for at most `timeout` by the kernel's clock.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tokio_multiprocess::Result<()> {
    /// use std::time::Duration;
    ///
    /// let (mut here, mut there) = tokio_multiprocess::pipe()?;
    /// assert!(!here.poll()?);
    /// assert!(!here.poll_timeout(Duration::from_millis(5)).await?);
    /// there.send("something").await?;
    /// assert!(here.poll()?);
    /// assert_eq!(here.recv::<String>().await?, "something");
    /// # Ok(()) }
    /// ```
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
    /// [`RecvHalf::readable`].
    ///
    /// # Errors
    /// [`Error::Closed`] if it is closed or has moved, also if that happens while this waits,
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

    /// Sends bytes as they are: see [`SendHalf::send_bytes`].
    ///
    /// # Cancel safety
    /// As that of [`send`](Self::send).
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.send_half()?.send_bytes(bytes).await
    }

    /// Waits until all that was begun, or fed to a [`sink`](Self::sink), is with the kernel.
    ///
    /// # Cancel safety
    /// What is left goes out with the next call.
    pub async fn flush(&mut self) -> Result<()> {
        let send = self.send_half()?;
        poll_fn(|cx| send.poll_flush(cx)).await
    }

    /// How long a message may be, in bytes, in both directions: 1 GiB unless another maximum is set. The
    /// peer has its own. Of a closed connection it changes nothing.
    pub fn set_max_message(&mut self, max: usize) {
        if let Ok(Duplex { recv, send }) = self.inner.get_mut() {
            recv.set_max_message(max);
            send.set_max_message(max);
        }
    }

    /// Another handle of this end, which can be sent to another process while this one stays. Any number
    /// of processes may then send over the end and receive from it; each message is whole and goes to one
    /// of them.
    ///
    /// From now on neither handle takes more out of the socket than it gives, at a system call or two for
    /// each message; messages that were fed to a [`sink`](Self::sink) together are received together. If a
    /// process dies, the messages that it has received are lost, and no others. The peer sees the end when
    /// the last handle is closed.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tokio_multiprocess::Result<()> {
    /// use tokio_multiprocess::{Connection, Process, pipe};
    ///
    /// async fn work(mut jobs: Connection) {
    ///     // Whoever is free takes the next one.
    ///     while let Ok(job) = jobs.recv::<u64>().await {
    ///         let _ = jobs.send(&(job * job)).await;
    ///     }
    /// }
    ///
    /// let (mut here, mut there) = pipe()?;
    /// let mut workers = Vec::new();
    /// for _ in 0..4 {
    ///     workers.push(Process::builder(work, (there.share()?,)).start().await?);
    /// }
    /// drop(there);
    ///
    /// let (mut results, mut jobs) = here.split();
    /// for job in 0..100u64 {
    ///     jobs.send(&job).await?;
    /// }
    /// let mut sum = 0;
    /// for _ in 0..100 {
    ///     sum += results.recv::<u64>().await?;
    /// }
    /// assert_eq!(sum, 328_350);
    /// // The workers see the end.
    /// drop(jobs);
    /// for worker in workers {
    ///     worker.join().await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Closed`]; and on a byte stream (connections of a listener, or of a descriptor), where
    /// messages of several processes would tear.
    pub fn share(&mut self) -> Result<Self> {
        let Duplex { recv, send } = self.inner.get_mut()?;
        Ok(Self::of(Duplex::new(recv.share()?, send.share()?)))
    }

    /// Closes this end; messages that were not received are lost. Later calls are errors
    /// ([`Error::Closed`]), but closing again is not.
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
    pub fn with_codec<D: Codec>(mut self) -> Connection<D> {
        Connection::of(self.inner.take().ok())
    }

    /// The two directions, for two tasks. [`RecvHalf::reunite`] puts them together again.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tokio_multiprocess::Result<()> {
    /// let (here, mut there) = tokio_multiprocess::pipe()?;
    /// let (mut recv, mut send) = here.split();
    /// let sending = tokio::spawn(async move {
    ///     send.send("question").await?;
    ///     Ok::<_, tokio_multiprocess::Error>(send)
    /// });
    /// assert_eq!(there.recv::<String>().await?, "question");
    /// there.send("answer").await?;
    /// assert_eq!(recv.recv::<String>().await?, "answer");
    ///
    /// let send = sending.await.unwrap()?;
    /// let mut here = recv.reunite(send).expect("they are of one connection");
    /// here.send("as before").await?;
    /// # Ok(()) }
    /// ```
    #[must_use = "a half that is dropped is closed"]
    pub fn split(mut self) -> (RecvHalf<C>, SendHalf<C>) {
        let halves = self.inner.take().map(|Duplex { recv, mut send }| {
            send.set_hangs_up(true);
            (recv, send)
        });
        let (recv, send) = halves.ok().unzip();
        (RecvHalf::new(recv), SendHalf::new(send))
    }
}

impl<C: Codec> Connection<C> {
    /// Receives the next message, whose type has to be said: `recv::<String>()`, or
    /// `let text: String = …`. See [`RecvHalf::recv`].
    ///
    /// # Errors
    /// [`Error::Eof`] when the peer is gone and all that it has sent was received, and those of
    /// [`RecvHalf::recv`].
    ///
    /// # Cancel safety
    /// Nothing is lost: if the future is dropped, the message is there for the next call.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.recv_half()?.recv::<C, T>().await
    }

    /// Sends a value as one message: whatever serde can write, and files and sockets as a
    /// `Handle`. See [`SendHalf::send`].
    ///
    /// # Errors
    /// As those of [`SendHalf::send`].
    ///
    /// # Cancel safety
    /// As that of [`SendHalf::send`]: over a pipe of this crate's, the message was not sent if the future
    /// is dropped before it is ready.
    pub async fn send<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.send_half()?.send::<C, T>(value).await
    }

    /// The messages that arrive as a stream, which ends where [`recv`](Self::recv) gives [`Error::Eof`].
    /// Its methods, and those of a [`sink`](Self::sink), are those of the crate `futures`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tokio_multiprocess::Result<()> {
    /// use futures::{SinkExt, TryStreamExt};
    ///
    /// let (mut here, mut there) = tokio_multiprocess::pipe()?;
    /// let mut sink = there.sink::<u32>();
    /// for n in 1..=100 {
    ///     // Small messages are gathered...
    ///     sink.feed(n).await?;
    /// }
    /// // ... and go out together.
    /// sink.flush().await?;
    /// drop(there);
    ///
    /// let numbers: Vec<u32> = here.stream::<u32>().try_collect().await?;
    /// assert_eq!(numbers.len(), 100);
    /// # Ok(()) }
    /// ```
    pub fn stream<T: DeserializeOwned>(&mut self) -> Messages<&mut Self, T> {
        Messages::new(self)
    }

    /// As [`stream`](Self::stream), with the connection inside.
    pub fn into_stream<T: DeserializeOwned>(self) -> Messages<Self, T> {
        Messages::new(self)
    }

    /// A sink for messages, which sends small ones together: see [`SendHalf::sink`].
    pub fn sink<T: Serialize>(&mut self) -> MessageSink<&mut Self, T> {
        MessageSink::new(self)
    }

    /// As [`sink`](Self::sink), with the connection inside.
    pub fn into_sink<T: Serialize>(self) -> MessageSink<Self, T> {
        MessageSink::new(self)
    }
}

impl<C> super::adaptors::Receives for Connection<C> {
    type Codec = C;

    fn receiving(&mut self) -> Result<&mut Receiving> {
        self.recv_half()
    }
}

impl<C> super::adaptors::Sends for Connection<C> {
    type Codec = C;

    fn sending(&mut self) -> Result<&mut Sending> {
        self.send_half()
    }
}

/// The handshake runs over messages of bytes.
#[async_trait]
impl<C> auth::Link for Connection<C> {
    async fn send_bytes(&mut self, frame: &[u8]) -> io::Result<()> {
        Connection::send_bytes(self, frame).await.map_err(Error::into_io)
    }

    async fn recv_bytes(&mut self, max_len: usize) -> io::Result<Bytes> {
        match self.recv_half() {
            Ok(recv) => recv.recv_bare(max_len).await.map_err(Error::into_io),
            Err(closed) => Err(closed.into_io()),
        }
    }
}

/// Says whether it is open.
impl<C> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_closed() { "Connection(closed)" } else { "Connection(open)" })
    }
}

impl Moves for Duplex {
    const NAME: &'static str = "connection";

    fn is_shared(&self) -> bool {
        self.recv.is_shared() && self.send.is_shared()
    }
}

impl Serialize for Duplex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (duplicate(self.fd())?, self.recv.state(), self.send.state()?).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Duplex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (handle, recv, send) = Deserialize::deserialize(deserializer)?;
        let fd = arrived(handle)?;
        let recv = Receiving::resume(fd.clone(), recv).map_err(de::Error::custom)?;
        Ok(Self::new(recv, Sending::resume(fd, send).map_err(de::Error::custom)?))
    }
}

/// Moves it to another process: see [above](Self#in-a-message).
impl<C> Serialize for Connection<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.inner.serialize(serializer)
    }
}

impl<'de, C> Deserialize<'de> for Connection<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { inner: Movable::deserialize(deserializer)?, codec: PhantomData })
    }
}

/// As its receiving half.
impl<C> sealed::Sealed for Connection<C> {
    fn source(&self) -> Result<Source<'_>> {
        self.inner.with(|inner| inner.recv.source())
    }
}
