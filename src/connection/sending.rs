//! The sending direction, whoever holds it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::task::coop;

use super::frames::MAX_MESSAGE;
use super::link::{ArrivedWriter, HEADROOM, Parcel, Writer};
use super::port::Port;
use super::receiving::{State, arrived, duplicate, no_bytes, sender};
use super::stream;
use crate::error::{Error, Result};
use crate::reduction::packet::Packed;
use crate::reduction::{Attachments, Codec, Departures, Moves, Peer, encode_uncommitted};
use crate::sys::{self, AsFd, Fd};

/// How many bytes of room are kept for the next message.
const KEPT: usize = 64 << 10;

/// How many bytes are gathered before they are sent, and how long a message may be to be gathered.
const BATCH: usize = 32 << 10;

/// How many bytes are sooner copied behind a header than sent from where they are.
const COPIED: usize = 4 << 10;

/// A descriptor and what sends over it.
#[derive(Debug)]
pub(super) struct Sending {
    port: Port,
    writer: Writer,
    /// Who reads the messages.
    peer: Peer,
    max: usize,
    /// The message that is being sent, after the room for its header.
    scratch: Vec<u8>,
    /// What was fed and is not sent yet: messages, each after its length, after the room for a header.
    batch: Vec<u8>,
    /// What was fed after them and goes by itself, being large or having handles.
    alone: Option<Alone>,
    /// Its end is the end of all that the peer will receive, even if the descriptor stays open for the
    /// other direction.
    hangs_up: bool,
}

#[derive(Debug)]
struct Alone {
    front: Vec<u8>,
    handles: Attachments,
    departures: Option<Departures>,
    packed: Option<Packed>,
}

impl Sending {
    pub(super) fn new(fd: Arc<Fd>, writer: Writer, peer: Peer) -> Self {
        Self {
            port: Port::new(fd),
            writer,
            peer,
            max: MAX_MESSAGE,
            scratch: Vec::new(),
            batch: Vec::new(),
            alone: None,
            hangs_up: false,
        }
    }

    pub(super) async fn send<C: Codec, T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.flush_fed().await?;
        start(&mut self.scratch);
        let encoded = encode_uncommitted::<C, T>(value, &mut self.scratch, self.peer);
        let (handles, departures) = encoded.map_err(Error::Encode)?;
        self.send_scratch(&[], &handles, Some(departures)).await
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.flush_fed().await?;
        start(&mut self.scratch);
        let (copied, rest) = if bytes.len() <= COPIED { (bytes, &[][..]) } else { (&[][..], bytes) };
        self.scratch.extend_from_slice(copied);
        self.send_scratch(rest, &Attachments::new(), None).await
    }

    /// Sends what is in the scratch, and `rest` after it.
    async fn send_scratch(
        &mut self,
        rest: &[u8],
        handles: &Attachments,
        departures: Option<Departures>,
    ) -> Result<()> {
        let Self { port, writer, scratch, max, .. } = self;
        let mut parcel = Parcel { departures, ..Parcel::new(scratch, rest, handles) };
        check(parcel.len(), *max)?;
        poll_fn(|cx| {
            let coop = ready!(coop::poll_proceed(cx));
            let sent = ready!(writer.poll_send(port, &mut parcel, cx));
            coop.made_progress();
            Poll::Ready(sent)
        })
        .await?;
        drop(parcel);
        if scratch.capacity() > KEPT {
            *scratch = Vec::new();
        }
        Ok(())
    }

    /// Ready when another message can be fed.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.alone.is_none() && self.batch.len() < BATCH {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush_fed(cx)
    }

    /// Takes a message, to send it together with others.
    pub(super) fn feed<C: Codec, T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        start(&mut self.scratch);
        let encoded = encode_uncommitted::<C, T>(value, &mut self.scratch, self.peer);
        let (handles, departures) = encoded.map_err(Error::Encode)?;
        let len = self.scratch.len() - HEADROOM;
        check(len, self.max)?;
        if handles.is_empty() && len <= BATCH {
            if self.batch.is_empty() {
                start(&mut self.batch);
            }
            self.batch.extend_from_slice(&(len as u32).to_be_bytes());
            self.batch.extend_from_slice(&self.scratch[HEADROOM..]);
        } else {
            let front = std::mem::take(&mut self.scratch);
            self.alone = Some(Alone { front, handles, departures: Some(departures), packed: None });
        }
        Ok(())
    }

    /// Sends what was fed. What there is no room for yet, in the link or for its descriptors, stays for
    /// another attempt; a message that cannot go by itself is told of once and lost, as in a `send`.
    pub(super) fn poll_flush_fed(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Self { port, writer, batch, alone, .. } = self;
        if batch.len() > HEADROOM {
            let coop = ready!(coop::poll_proceed(cx));
            let nothing = Attachments::new();
            let mut parcel = Parcel { batch: true, ..Parcel::new(batch, &[], &nothing) };
            let sent = writer.poll_send(port, &mut parcel, cx);
            drop(parcel);
            // If it was begun and is not out, the link sees to the rest.
            if sent.is_ready() || !batch.is_empty() {
                ready!(sent)?;
            }
            coop.made_progress();
            batch.truncate(HEADROOM);
        }
        if let Some(Alone { front, handles, departures, packed }) = alone {
            let mut parcel = Parcel {
                packed: packed.take(),
                departures: departures.take(),
                ..Parcel::new(front, &[], handles)
            };
            let sent = writer.poll_send(port, &mut parcel, cx);
            (*packed, *departures) = (parcel.packed.take(), parcel.departures.take());
            drop(parcel);
            // As above.
            let begun = front.is_empty();
            let again = match &sent {
                Poll::Ready(Err(Error::Io(error))) => sys::fd::is_exhausted(error),
                sent => sent.is_pending(),
            };
            if begun || !again {
                *alone = None;
            }
            if !begun || sent.is_ready() {
                ready!(sent)?;
            }
        }
        batch.shrink_to(KEPT);
        Poll::Ready(Ok(()))
    }

    async fn flush_fed(&mut self) -> Result<()> {
        if self.has_fed() { poll_fn(|cx| self.poll_flush_fed(cx)).await } else { Ok(()) }
    }

    fn has_fed(&self) -> bool {
        self.batch.len() > HEADROOM || self.alone.is_some()
    }

    /// Ready once all that was fed or begun is with the kernel.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_flush_fed(cx))?;
        self.writer.poll_flush(cx)
    }

    pub(super) fn set_max_message(&mut self, max: usize) {
        self.max = max;
    }

    /// Whether the peer is told when this ends.
    pub(super) fn set_hangs_up(&mut self, hangs_up: bool) {
        self.hangs_up = hangs_up && !self.writer.is_shared();
    }

    /// Ends it, as opposed to its going elsewhere.
    pub(super) fn close(self) {
        if self.hangs_up {
            self.writer.hang_up(self.port.as_fd());
        }
    }

    /// What writes to a byte stream, if nothing has to be written before.
    pub(super) fn stream(&mut self) -> Result<&mut stream::Writer> {
        let has_fed = self.has_fed();
        match &mut self.writer {
            Writer::Stream(_) if has_fed => {
                Err(Error::invalid("messages were fed that are not sent yet: flush the connection first"))
            }
            Writer::Stream(writer) => Ok(writer),
            Writer::Packets(_) => Err(no_bytes()),
        }
    }

    /// Another hand on the same descriptor.
    pub(super) fn share(&mut self) -> Result<Self> {
        let writer = self.writer.share()?;
        self.hangs_up = false;
        Ok(Self { max: self.max, ..Self::new(self.port.fd().clone(), writer, self.peer) })
    }

    pub(super) fn fd(&self) -> &Arc<Fd> {
        self.port.fd()
    }

    /// What the other process has to know, but for the descriptor.
    pub(super) fn state<E: serde::ser::Error>(&self) -> Result<impl Serialize, E> {
        if self.has_fed() {
            return Err(E::custom("this connection was fed messages that are not sent yet: flush it first"));
        }
        let end = State { link: &self.writer, peer_is_family: self.peer.is_family(), max_message: self.max };
        Ok(SendingState { end, hangs_up: self.hangs_up })
    }

    pub(super) fn resume(fd: Arc<Fd>, state: SendingState<ArrivedWriter>) -> Result<Self> {
        let SendingState { end, hangs_up } = state;
        let (peer, max) = (end.peer(), end.max_message());
        Ok(Self { max, hangs_up, ..Self::new(fd.clone(), end.link.over(&fd, sender())?, peer) })
    }
}

/// What the other process has to know, but for the descriptor.
#[derive(Serialize, Deserialize)]
pub(super) struct SendingState<L> {
    end: State<L>,
    hangs_up: bool,
}

/// Empties a buffer but for the room for a header.
fn start(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEADROOM, 0);
}

fn check(len: usize, max: usize) -> Result<()> {
    if len <= max { Ok(()) } else { Err(Error::TooLong { len: len as u64, max }) }
}

impl Moves for Sending {
    const NAME: &'static str = "connection";

    fn is_shared(&self) -> bool {
        self.writer.is_shared()
    }
}

impl Serialize for Sending {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (duplicate(self.fd())?, self.state()?).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sending {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (handle, state) = Deserialize::deserialize(deserializer)?;
        Self::resume(arrived(handle)?, state).map_err(de::Error::custom)
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::connection::link;
    use crate::reduction::MessagePack;

    #[test]
    fn a_large_message_that_is_fed_is_not_copied() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = Fd::from(socket);
        let (_, writer) = link::open(&fd).unwrap();
        let mut sending = Sending::new(Arc::new(fd), writer, Peer::Stranger);
        sending.feed::<MessagePack, _>("small").unwrap();
        let large = Bytes::from(vec![7; 2 * BATCH]);
        sending.scratch.reserve(2 * large.len());
        let encoded_at = sending.scratch.as_ptr();
        sending.feed::<MessagePack, _>(&large).unwrap();
        assert_eq!(sending.alone.as_ref().unwrap().front.as_ptr(), encoded_at);
    }
}
