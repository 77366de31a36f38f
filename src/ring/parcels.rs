//! Descriptors beside the items of a ring with many producers and many consumers.
//!
//! The descriptors of an item are its [`Parcel`], which travels as one message through a socket that all
//! processes share, beside the ring. Frame and message name each other: the frame has the parcel's [`Label`],
//! the message a tag with the same producer and the frame's ticket, the word of the ring's tail under which it
//! is committed. `README.md` beside this file has the argument for each instant of death.
//!
//! A ring whose items have no handles pays two descriptors in each process, and nothing else: the socket is
//! touched for frames with a label only.
//!
//! # Limits
//!
//! By default 555 parcels fit into the socket, 683 where the system allows larger buffers. What is in flight
//! counts against `RLIMIT_NOFILE` of the *user* as well, all sockets together, but not for who has
//! `CAP_SYS_RESOURCE`. Of each item so many descriptors are in flight as it has handles, and those of its
//! carriers. Both ends of that are "full": [`is_full`](crate::sys::socket::is_full).

use std::io::{self, IoSlice};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::reduction::{Attachment, Attachments, Descriptor, MAX_HANDLES, carrier};
use crate::synchronize::protocol::words::kill_point;
use crate::sys::kept::Kept;
use crate::sys::socket::{self, MAX_FDS, Mode};
use crate::sys::{self, AsFd, Fd, identity};

/// How many messages are thrown away in one go: more than the socket holds, so that somebody who goes on to
/// fill it with what means nothing keeps nobody under the lock.
const MOST: usize = 8 << 10;

/// What a frame says of its parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// Who has sent the message: see [`identity`].
    producer: u64,
    /// How many descriptors there are.
    count: u32,
}

impl Label {
    pub(crate) const LEN: usize = 12;

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.producer.to_le_bytes());
        bytes[8..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// Takes the label off the bytes of a frame; `None` if they are too few.
    pub(crate) fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (producer, rest) = bytes.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let label = Self { producer: u64::from_le_bytes(*producer), count: u32::from_le_bytes(*count) };
        Some((label, rest))
    }
}

/// What a message says of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    producer: u64,
    /// No two frames that are in the ring at the same time have the same. Several *messages* may: a producer
    /// that died before its commit has left the ticket to the next one.
    ticket: u64,
}

impl Tag {
    const LEN: usize = 16;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.producer.to_le_bytes());
        bytes[8..].copy_from_slice(&self.ticket.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [producer, ticket] = [0, 8].map(|at| {
            let word = bytes[at..].first_chunk().expect("there are two words");
            u64::from_le_bytes(*word)
        });
        Self { producer, ticket }
    }
}

/// Where the frame of a ticket is, by the ring's words as they are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before the head, or nowhere.
    Past,
    /// In the ring.
    Queued,
    /// At the tail: the next frame that is committed will have this ticket.
    Next,
}

/// The descriptors that go beside one item. Made once, however often sending has to be tried.
#[derive(Debug)]
pub(crate) struct Parcel {
    count: u32,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Loose(Attachments),
    /// The only one, or the carrier of all.
    Packed(Arc<Fd>),
}

impl Parcel {
    /// `None` if nothing goes beside the item.
    pub(crate) fn new(attachments: Attachments) -> Option<Self> {
        let count = u32::try_from(attachments.len()).expect("a message has few handles");
        (count > 0).then_some(Self { count, content: Content::Loose(attachments) })
    }

    /// What this process's frame has to say of it.
    pub(crate) fn label(&self) -> Label {
        Label { producer: identity::me(), count: self.count }
    }

    /// Makes the carriers that it needs, unless that is done: some 30 µs for each, which need no lock.
    /// [`Parcels::send`] would do it under one.
    ///
    /// # Errors
    /// [Full](crate::sys::socket::is_full) when too many of the user's descriptors are in flight;
    /// [exhausted](crate::sys::fd::is_exhausted) when this process has none left to make a carrier of. It can
    /// be tried again.
    pub(crate) fn pack(&mut self) -> io::Result<()> {
        self.packed().map(drop)
    }

    fn packed(&mut self) -> io::Result<&Fd> {
        if let Content::Loose(attachments) = &self.content {
            self.content = Content::Packed(pack(attachments)?);
        }
        match &self.content {
            Content::Packed(fd) => Ok(fd),
            Content::Loose(_) => unreachable!("it was packed just now"),
        }
    }
}

/// One descriptor for all of some. Each carrier is a socket with a single message, so that a look at it sees
/// all that it holds; what is too much for one is in carriers that lie in a carrier.
fn pack(attachments: &[Attachment]) -> io::Result<Arc<Fd>> {
    let carrying = |fds: &[&Arc<Fd>]| {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        carrier(&fds).map(Arc::new)
    };
    match attachments {
        [one] => Ok(one.0.clone()),
        few if few.len() <= MAX_FDS => {
            carrying(&few.iter().map(|attachment| &attachment.0).collect::<Vec<_>>())
        }
        many => {
            let carriers: Vec<_> = many.chunks(MAX_FDS).map(pack).collect::<io::Result<_>>()?;
            carrying(&carriers.iter().collect::<Vec<_>>())
        }
    }
}

/// Opens duplicates of all that [`pack`] made one descriptor of, and leaves it as it is. `false` if something
/// else is in it.
///
/// # Errors
/// Exhausted at the limit of this process.
fn unpack(fd: Fd, count: usize, into: &mut Vec<Fd>) -> io::Result<bool> {
    if count == 1 {
        into.push(fd);
        return Ok(true);
    }
    let mut inner = Vec::new();
    // It was filled before it was sent: what has nothing in it never was a carrier.
    let Ok(seen) = socket::recv_duplicates(fd.as_fd(), &mut [0], &mut inner, Mode::Try) else {
        return Ok(false);
    };
    drop(fd);
    let parts: Vec<_> = if count <= MAX_FDS {
        vec![1; count]
    } else {
        (0..count).step_by(MAX_FDS).map(|done| (count - done).min(MAX_FDS)).collect()
    };
    if inner.len() < parts.len() && seen.fds_truncated {
        return Err(sys::fd::exhausted());
    }
    if inner.len() != parts.len() {
        return Ok(false);
    }
    for (fd, count) in inner.into_iter().zip(parts) {
        if !unpack(fd, count, into)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The socket of one ring, in this process.
///
/// All that sends is done with the producers' lock in hand, and all that receives with the consumers'.
/// Nothing waits.
#[derive(Debug)]
pub(crate) struct Parcels {
    _kept: [Kept; 2],
    sending: Arc<Fd>,
    receiving: Arc<Fd>,
}

impl Parcels {
    /// A new socket.
    ///
    /// # Errors
    /// When there are no descriptors left, and on platforms without processes.
    pub(crate) fn new() -> io::Result<Self> {
        let (sending, receiving) = socket::seqpacket_pair()?;
        Ok(Self::of(Arc::new(sending), Arc::new(receiving)))
    }

    fn of(sending: Arc<Fd>, receiving: Arc<Fd>) -> Self {
        let _kept = [&sending, &receiving].map(|fd| Kept::new(fd.as_fd()));
        Self { _kept, sending, receiving }
    }

    /// Sends what belongs to the frame that is committed next, with its label. The last step before that
    /// commit: what could still refuse the item has been asked, as a parcel is not called back.
    ///
    /// # Errors
    /// As those of [`Parcel::pack`], and [full](crate::sys::socket::is_full) when there is no room in the
    /// socket. Nothing was sent then, and it can be tried again.
    pub(crate) fn send(&self, ticket: u64, parcel: &mut Parcel) -> io::Result<()> {
        let tag = Tag { producer: parcel.label().producer, ticket };
        let fd = parcel.packed()?;
        kill_point();
        socket::send(self.sending.as_fd(), &[IoSlice::new(&tag.to_bytes())], &[fd.as_fd()], Mode::Try)
    }

    /// Opens all descriptors of the frame at the head, which has this label and ticket. They are the caller's
    /// once the new head is stored and [`Opened::consume`] called; dropped before, nothing has happened.
    ///
    /// `None`: the parcel is not there, or is not what the label says. Somebody has interfered, and the item
    /// is lost; those behind it are not.
    ///
    /// # Errors
    /// [Exhausted](crate::sys::fd::is_exhausted) when not all of them have a number in this process. The
    /// item stays whole where it is, for whoever has more.
    pub(crate) fn peek(
        &self,
        label: Label,
        ticket: u64,
        place: impl Fn(u64) -> Place,
    ) -> io::Result<Option<Opened<'_>>> {
        let count = label.count as usize;
        if !(1..=MAX_HANDLES).contains(&count) {
            return Ok(None);
        }
        let wanted = Tag { producer: label.producer, ticket };
        // One of a frame further back says that this one's is gone.
        let is_later = |tag: Tag| tag.ticket != ticket && place(tag.ticket) != Place::Past;
        if self.discard_until(|tag| tag == wanted || is_later(tag))? != Some(wanted) {
            return Ok(None);
        }
        let mut found = Vec::new();
        kill_point();
        let seen = socket::recv_duplicates(self.receiving.as_fd(), &mut [0], &mut found, Mode::Try)?;
        if found.is_empty() && seen.fds_truncated {
            return Err(sys::fd::exhausted());
        }
        let Ok([fd]) = <[Fd; 1]>::try_from(found) else { return Ok(None) };
        let mut fds = Vec::with_capacity(count);
        let whole = unpack(fd, count, &mut fds)?;
        Ok(whole.then_some(Opened { parcels: self, fds }))
    }

    /// Throws away what dead processes have left in front: parcels whose frames were never committed, or are
    /// taken. What such a one holds open is closed by that, and not only when the next parcel is looked for:
    /// for who finds the ring empty and is about to sleep.
    ///
    /// # Errors
    /// When the socket is none.
    pub(crate) fn sweep(&self, place: impl Fn(u64) -> Place) -> io::Result<()> {
        let is_needed = |tag: Tag| match place(tag.ticket) {
            Place::Past => false,
            Place::Queued => true,
            // The words are looked at again after its death: it has committed before that, or never will.
            Place::Next => !identity::is_dead(tag.producer) || place(tag.ticket) != Place::Next,
        };
        self.discard_until(is_needed).map(drop)
    }

    /// Throws messages away until one `stays`, whose tag this gives; `None` if there is no such one.
    /// Descriptors are not opened for that.
    fn discard_until(&self, stays: impl Fn(Tag) -> bool) -> io::Result<Option<Tag>> {
        for _ in 0..MOST {
            let mut bytes = [0; Tag::LEN];
            kill_point();
            let len = match socket::peek(self.receiving.as_fd(), &mut bytes, Mode::Try) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                len => len?,
            };
            let tag = Tag::from_bytes(bytes);
            if len == Tag::LEN && stays(tag) {
                return Ok(Some(tag));
            }
            kill_point();
            socket::skip(self.receiving.as_fd())?;
        }
        Ok(None)
    }
}

/// Sending it sends its descriptors.
impl Serialize for Parcels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [&self.sending, &self.receiving].map(|fd| Descriptor(Attachment(fd.clone()))).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Parcels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [sending, receiving] = <[Descriptor; 2]>::deserialize(deserializer)?;
        Ok(Self::of(sending.0.0, receiving.0.0))
    }
}

/// The descriptors of an item that is not taken yet.
#[derive(Debug)]
#[must_use = "dropped, its descriptors are closed, and its message stays"]
pub(crate) struct Opened<'a> {
    parcels: &'a Parcels,
    fds: Vec<Fd>,
}

impl Opened<'_> {
    /// The new head is stored, so that the item is this process's: takes its message away. The consumers'
    /// lock was not given back since [`Parcels::peek`].
    pub(crate) fn consume(self) -> Vec<Fd> {
        kill_point();
        // What stays for want of success is thrown away by its tag.
        let _ = socket::skip(self.parcels.receiving.as_fd());
        self.fds
    }
}

#[cfg(all(test, multiprocess))]
mod tests;
