//! The receiving direction, whoever holds it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::task::coop;

use super::auth::{AuthError, CHALLENGE};
use super::frames::MAX_MESSAGE;
use super::link::{ArrivedReader, Delivery, Reader, Wanted};
use super::port::Port;
use super::stream;
use super::wait::{Buffered, Source};
use crate::error::{Error, Result};
use crate::reduction::{Codec, Descriptor, Incoming, Moves, Peer, decode_from, writer};
use crate::sys::{self, AsFd, Fd};

/// No limit but that of the connection.
const ANY: Wanted = Wanted { max: usize::MAX, bare: false };

/// A descriptor and what receives from it.
#[derive(Debug)]
pub(super) struct Receiving {
    port: Port,
    reader: Reader,
    /// Whether the reader holds messages, for who waits for several things.
    buffered: Arc<Buffered>,
    /// Who writes the messages.
    peer: Peer,
    max: usize,
}

impl Receiving {
    pub(super) fn new(fd: Arc<Fd>, reader: Reader, peer: Peer) -> Self {
        Self { port: Port::new(fd), reader, buffered: Arc::default(), peer, max: MAX_MESSAGE }
    }

    fn poll_next(&mut self, wanted: Wanted, cx: &mut Context<'_>) -> Poll<Result<Delivery>> {
        let coop = ready!(coop::poll_proceed(cx));
        let wanted = Wanted { max: wanted.max.min(self.max), ..wanted };
        if !self.buffered.is_set() {
            self.port.expect_readable();
        }
        let next = ready!(self.reader.poll_next(&mut self.port, wanted, cx));
        coop.made_progress();
        self.buffered.set(self.holds_message());
        Poll::Ready(next.and_then(|next| next.ok_or(Error::Eof)))
    }

    pub(super) async fn recv_bytes(&mut self) -> Result<Bytes> {
        // Handles that came along are closed: nobody could name them.
        Ok(poll_fn(|cx| self.poll_next(ANY, cx)).await?.body)
    }

    /// Receives of a peer that has proved nothing yet, and can make this process hold nothing but so
    /// many bytes.
    pub(super) async fn recv_bare(&mut self, max: usize) -> Result<Bytes> {
        Ok(poll_fn(|cx| self.poll_next(Wanted { max, bare: true }, cx)).await?.body)
    }

    pub(super) async fn recv_bytes_into(&mut self, buf: &mut [u8]) -> Result<usize> {
        let message = self.recv_bytes().await?;
        match buf.get_mut(..message.len()) {
            Some(room) => room.copy_from_slice(&message),
            None => return Err(Error::BufferTooShort(message)),
        }
        Ok(message.len())
    }

    pub(super) async fn recv<C: Codec, T: DeserializeOwned>(&mut self) -> Result<T> {
        poll_fn(|cx| self.poll_recv::<C, T>(cx)).await
    }

    pub(super) fn poll_recv<C: Codec, T: DeserializeOwned>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<T>> {
        let Delivery { body, handles } = ready!(self.poll_next(ANY, cx))?;
        let message = Incoming { bytes: &body, attachments: handles };
        Poll::Ready(decode_from::<C, T>(message, self.peer).map_err(|error| {
            // What a listener with a key says first to who has connected without one.
            if !self.peer.is_family() && body.starts_with(CHALLENGE) {
                return AuthError::KeyWanted.into();
            }
            Error::Decode(error)
        }))
    }

    /// Whether a call to receive would be ready at once.
    pub(super) fn poll(&self) -> Result<bool> {
        Ok(self.holds_message() || sys::fd::poll_readable(self.port.as_fd(), Some(Duration::ZERO))?)
    }

    pub(super) fn holds_message(&self) -> bool {
        // Not by what the last call allowed: that of a handshake is far less.
        self.reader.holds_message(self.max)
    }

    /// Whether each later call gives the same error.
    pub(super) fn has_failed(&self) -> bool {
        self.reader.has_failed()
    }

    /// By what one sees that something can be received, for who waits without holding on to this.
    pub(super) fn source(&self) -> Source<'static> {
        Source::buffered(self.fd(), &self.buffered, Self::NAME)
    }

    pub(super) fn set_max_message(&mut self, max: usize) {
        self.max = max;
        self.buffered.set(self.holds_message());
    }

    pub(super) fn max_message(&self) -> usize {
        self.max
    }

    /// What reads from a byte stream.
    pub(super) fn stream(&mut self) -> Result<&mut stream::Reader> {
        match &mut self.reader {
            Reader::Stream(reader) => Ok(reader),
            Reader::Packets(_) => Err(no_bytes()),
        }
    }

    /// Another hand on the same descriptor. From now on neither takes more than it receives.
    pub(super) fn share(&mut self) -> Result<Self> {
        let reader = self.reader.share(self.port.as_fd())?;
        Ok(Self { max: self.max, ..Self::new(self.port.fd().clone(), reader, self.peer) })
    }

    pub(super) fn fd(&self) -> &Arc<Fd> {
        self.port.fd()
    }

    /// What the other process has to know, but for the descriptor.
    pub(super) fn state(&self) -> impl Serialize {
        State { link: &self.reader, peer_is_family: self.peer.is_family(), max_message: self.max }
    }

    pub(super) fn resume(fd: Arc<Fd>, state: State<ArrivedReader>) -> Result<Self> {
        let (peer, max) = (state.peer(), state.max_message());
        let this = Self { max, ..Self::new(fd.clone(), state.link.over(&fd, sender())?, peer) };
        this.buffered.set(this.holds_message());
        Ok(this)
    }
}

pub(super) fn no_bytes() -> Error {
    Error::invalid("a pipe of packets has no stream of bytes to frame: `stream` and `sink` give its messages")
}

/// What the other process has to know of an end, beside the descriptor. A stranger is believed nothing
/// that could do harm.
#[derive(Serialize, Deserialize)]
pub(super) struct State<L> {
    pub(super) link: L,
    pub(super) peer_is_family: bool,
    pub(super) max_message: usize,
}

impl<L> State<L> {
    /// Who is at the other end. A stranger may not say that somebody is of the family.
    pub(super) fn peer(&self) -> Peer {
        if self.peer_is_family && sender().is_family() { Peer::AnyBuild } else { Peer::Stranger }
    }

    /// How long a message may be. A stranger sets no limit to which it may fill this process.
    pub(super) fn max_message(&self) -> usize {
        if sender().is_family() { self.max_message } else { self.max_message.min(MAX_MESSAGE) }
    }
}

/// Who has written the message that is being decoded.
pub(super) fn sender() -> Peer {
    writer().unwrap_or(Peer::Stranger)
}

/// A duplicate, for a message.
pub(super) fn duplicate<E: serde::ser::Error>(fd: &Arc<Fd>) -> Result<Descriptor, E> {
    fd.try_clone().map(Descriptor::new).map_err(E::custom)
}

/// What arrived in a message.
pub(super) fn arrived<E: serde::de::Error>(handle: Descriptor) -> Result<Arc<Fd>, E> {
    handle.into_fd().map(Arc::new).map_err(E::custom)
}

impl Moves for Receiving {
    const NAME: &'static str = "connection";

    fn is_shared(&self) -> bool {
        // What it holds is for one process alone.
        self.reader.is_shared() && !self.holds_message()
    }
}

impl Serialize for Receiving {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (duplicate(self.fd())?, self.state()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Receiving {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (handle, state) = Deserialize::deserialize(deserializer)?;
        Self::resume(arrived(handle)?, state).map_err(de::Error::custom)
    }
}
