//! What a pool and its worker say: frames in the two rings, parcels on the socket.
//!
//! A frame holds everything of ordinary size. What cannot be bytes, and bodies that a ring should
//! not hold, go in a parcel: one datagram with descriptors, sent *before* its frame is published.
//! A frame's reader therefore never waits for a parcel whose sender died.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};

use crate::error::{RemotePanic, TaskError};
use crate::function::{FnId, TaskFailure};
use crate::reduction::{Attachments, CodecError, Descriptor, Incoming, Peer, decode, encode};
use crate::ring::Corrupt;
use crate::ring::single::Frames;
use crate::sys::memory::Frozen;
use crate::sys::socket::{self, MAX_FDS, Mode};
use crate::sys::{self, AsFd, BorrowedFd, Fd};

/// The largest body inside of a frame; eight fit a ring.
pub(super) const INLINE: usize = 32 << 10;

/// What a worker is started with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(super) memory: Descriptor,
    pub(super) bell: Descriptor,
    pub(super) parent_bell: Descriptor,
    pub(super) socket: Descriptor,
    /// By which it enters a group of its own, first thing.
    pub(super) cgroup: Option<Descriptor>,
    /// What that group uses of memory, and how much it may.
    pub(super) group_memory: Option<(Descriptor, Descriptor)>,
    /// Its process is its own, and so are the limits on it.
    pub(super) own_process: bool,
    /// What it is called.
    pub(super) name: String,
    /// What the first frames are.
    pub(super) preparations: Vec<Preparation>,
    /// After so many items it ends by itself.
    pub(super) max_tasks: Option<u32>,
    /// When it holds more memory than so many bytes, it asks to be replaced.
    pub(super) max_memory: Option<u64>,
    /// What is to go wrong.
    pub(super) faults: Option<crate::testing::Plan>,
}

/// What a worker does before it takes runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Preparation {
    Initializer,
    State,
}

impl Preparation {
    /// Says what went wrong.
    pub(super) fn failed(self, why: TaskError) -> String {
        match self {
            Self::Initializer => format!("its initializer failed: {why}"),
            Self::State => format!("its state could not be loaded: {why}"),
        }
    }
}

/// The items of a run as they travel.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    /// Each item behind its length; empty if the only item is large.
    pub(super) items: Bytes,
    /// The only item, if it is large.
    pub(super) large: Option<Arc<Fd>>,
    /// What goes beside the only item.
    pub(super) attachments: Attachments,
    /// What tells the files beside it from others, taken once so that comparing needs no look at them.
    pub(super) mark: u64,
}

impl Body {
    /// One item, wherever it fits. The buffer's first four bytes are room for its length.
    pub(super) fn single(mut buffer: Vec<u8>, attachments: Attachments) -> io::Result<Self> {
        if attachments.len() > MAX_FDS - 1 {
            return Err(io::Error::other("more than 252 handles in one message"));
        }
        let len = buffer.len() - ITEM_HEAD;
        if len > INLINE {
            let large = Frozen::create(&buffer[ITEM_HEAD..])?;
            let items = Bytes::new();
            return Ok(Self { items, large: Some(Arc::new(large)), attachments, mark: 0 }.marked());
        }
        buffer[..ITEM_HEAD].copy_from_slice(&(len as u32).to_le_bytes());
        Ok(Self { items: buffer.into(), large: None, attachments, mark: 0 }.marked())
    }

    fn marked(self) -> Self {
        let mut hasher = DefaultHasher::new();
        for fd in self.files() {
            // A file that cannot be told from others is like any other.
            sys::fd::identity(fd).ok().hash(&mut hasher);
        }
        Self { mark: if self.has_parcel() { hasher.finish() } else { 0 }, ..self }
    }

    fn has_parcel(&self) -> bool {
        self.large.is_some() || !self.attachments.is_empty()
    }

    pub(super) fn send_parcel(&self, socket: BorrowedFd<'_>, tag: Tag, mode: Mode) -> io::Result<()> {
        if !self.has_parcel() {
            return Ok(());
        }
        let fds: Vec<_> = self.files().collect();
        socket::send(socket, &[IoSlice::new(&tag.to_bytes())], &fds, mode)
    }

    fn flags(&self) -> u8 {
        u8::from(self.has_parcel()) * PARCEL + u8::from(self.large.is_some()) * LARGE
    }

    /// The items' bytes, of a large one none.
    pub(super) fn each(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.items[..];
        let large = self.large.iter().map(|_| &[][..]);
        large.chain(std::iter::from_fn(move || {
            let len = ITEM_HEAD + rest.get(..ITEM_HEAD).map(item_len)?;
            let item;
            (item, rest) = rest.split_at(len);
            Some(item)
        }))
    }

    /// What travels beside the only item.
    fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let attached = self.attachments.iter().map(|attachment| attachment.0.as_fd());
        self.large.iter().map(|large| large.as_fd()).chain(attached)
    }

    /// The part from item `begin` on, for runs of several items; these have no parcels.
    pub(super) fn skip(&self, begin: u32) -> Self {
        if begin == 0 {
            return self.clone();
        }
        let mut at = 0;
        for _ in 0..begin {
            at += ITEM_HEAD + item_len(&self.items[at..]);
        }
        Self { items: self.items.slice(at..), ..Self::default() }
    }

    /// The first `count` items.
    pub(super) fn take(&self, count: u32) -> Self {
        let mut at = 0;
        for _ in 0..count {
            at += ITEM_HEAD + item_len(&self.items[at..]);
        }
        Self { items: self.items.slice(..at), ..Self::default() }
    }
}

/// An item starts with its length.
pub(super) const ITEM_HEAD: usize = size_of::<u32>();

fn item_len(items: &[u8]) -> usize {
    u32::from_le_bytes(items[..ITEM_HEAD].try_into().expect("four bytes")) as usize
}

/// Which frame a parcel belongs to: the number of the run, the item in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) seq: u32,
    pub(super) index: u32,
}

impl Tag {
    const LEN: usize = 8;

    fn to_bytes(self) -> [u8; Self::LEN] {
        (u64::from(self.seq) << 32 | u64::from(self.index)).to_le_bytes()
    }
}

/// The descriptors of a parcel.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    large: Option<Frozen>,
    attachments: Vec<Fd>,
}

impl Parcel {
    /// Takes the parcel that a frame announced.
    pub(super) fn receive(socket: BorrowedFd<'_>, tag: Tag, large: bool) -> io::Result<Self> {
        let mut found = [0; Tag::LEN + 1];
        let mut fds = Vec::new();
        let received = socket::recv(socket, &mut found, &mut fds, Mode::Try)?;
        if received.fds_truncated {
            return Err(sys::fd::exhausted());
        }
        if found[..received.len] != tag.to_bytes() || (large && fds.is_empty()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let large = large.then(|| fds.remove(0)).map(|fd| Frozen::map(fd.as_fd())).transpose()?;
        Ok(Self { large, attachments: fds })
    }

    /// The message, whose bytes are here or were in the frame.
    pub(super) fn message<'a>(&'a mut self, inline: &'a [u8]) -> Incoming<'a> {
        let attachments = std::mem::take(&mut self.attachments);
        Incoming { bytes: self.large.as_deref().unwrap_or(inline), attachments }
    }
}

const RUN: u8 = 0;
const STOP: u8 = 1;

/// A parcel was sent ahead of the frame.
const PARCEL: u8 = 1;
/// The parcel's first descriptor holds the body.
const LARGE: u8 = 2;
/// The function is told in full, not by its place alone.
const IN_FULL: u8 = 4;
/// No further reply to this item follows.
const LAST: u8 = 8;
/// The caller listens to reports of progress.
const REPORTS: u8 = 16;

/// A frame to a worker.
pub(super) enum Order<'a> {
    Run(RunFrame<'a>),
    Stop,
}

/// What a worker is told of a run ahead of the function and the items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RunHead {
    pub(super) seq: u32,
    pub(super) count: u32,
    /// The job's number in the pool.
    pub(super) job: u64,
    /// The job's number for the first item.
    pub(super) first: u64,
    /// How often it was begun before.
    pub(super) attempt: u32,
    /// How long each item may run, in nanoseconds; 0 for as long as it likes.
    pub(super) timeout: u64,
    /// How much more memory each item may take, in bytes; 0 for as much as there is.
    pub(super) memory_limit: u64,
    /// Whether somebody listens to what its items report while they run.
    pub(super) reports: bool,
}

impl RunHead {
    fn write(&self, out: &mut Vec<u8>) {
        let Self { seq, count, job, first, attempt, timeout, memory_limit, reports: _ } = self;
        out.extend_from_slice(&seq.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&job.to_le_bytes());
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&attempt.to_le_bytes());
        out.extend_from_slice(&timeout.to_le_bytes());
        out.extend_from_slice(&memory_limit.to_le_bytes());
    }

    fn read(flags: u8, read: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Self {
            seq: u32::from_le_bytes(read.take()?),
            count: u32::from_le_bytes(read.take()?),
            job: u64::from_le_bytes(read.take()?),
            first: u64::from_le_bytes(read.take()?),
            attempt: u32::from_le_bytes(read.take()?),
            timeout: u64::from_le_bytes(read.take()?),
            memory_limit: u64::from_le_bytes(read.take()?),
            reports: flags & REPORTS != 0,
        })
    }

    /// Whether the worker notes when each item begins.
    pub(super) fn timed(&self) -> bool {
        self.timeout != 0
    }
}

/// Items of one function.
pub(super) struct RunFrame<'a> {
    flags: u8,
    pub(super) head: RunHead,
    pub(super) function: FnId,
    items: &'a [u8],
}

/// Writes everything of a run's frame but its items.
pub(super) fn write_run(out: &mut Vec<u8>, head: &RunHead, function: &FnId, body: &Body) {
    let in_full = !matches!(function, FnId::Place(_));
    let flags = u8::from(in_full) * IN_FULL + u8::from(head.reports) * REPORTS + body.flags();
    out.extend_from_slice(&[RUN, flags]);
    head.write(out);
    match function {
        FnId::Place(place) => out.extend_from_slice(&place.to_le_bytes()),
        FnId::Anywhere { .. } => {
            let at = out.len();
            out.extend_from_slice(&[0; 8]);
            // Text and numbers alone: these can be encoded.
            let _ = encode(function, out, Peer::AnyBuild);
            let len = (out.len() - at - 8) as u64;
            out[at..at + 8].copy_from_slice(&len.to_le_bytes());
        }
    }
}

/// The frame that ends a worker.
pub(super) const STOP_FRAME: &[u8] = &[STOP];

impl<'a> Order<'a> {
    pub(super) fn parse(frame: &'a [u8]) -> Result<Self, Corrupt> {
        let mut read = Reader(frame);
        let [kind] = read.take()?;
        if kind == STOP {
            return Ok(Self::Stop);
        }
        let [flags] = read.take()?;
        let head = RunHead::read(flags, &mut read)?;
        let place = read.take()?;
        let function = if flags & IN_FULL == 0 {
            FnId::Place(i64::from_le_bytes(place))
        } else {
            let id = read.slice(u64::from_le_bytes(place) as usize)?;
            decode(Incoming::bytes(id)).map_err(|_| Corrupt)?
        };
        Ok(Self::Run(RunFrame { flags, head, function, items: read.0 }))
    }
}

impl<'a> RunFrame<'a> {
    /// Takes what was sent ahead of this frame.
    pub(super) fn parcel(&self, socket: BorrowedFd<'_>) -> io::Result<Parcel> {
        if self.flags & PARCEL == 0 {
            return Ok(Parcel::default());
        }
        Parcel::receive(socket, Tag { seq: self.head.seq, index: 0 }, self.is_large())
    }

    fn is_large(&self) -> bool {
        self.flags & LARGE != 0
    }

    /// The next item's bytes; empty for a large one.
    pub(super) fn next_item(&mut self) -> Result<&'a [u8], Corrupt> {
        if self.is_large() {
            return Ok(&[]);
        }
        let mut read = Reader(self.items);
        let len = u32::from_le_bytes(read.take()?);
        let item = read.slice(len as usize)?;
        self.items = read.0;
        Ok(item)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(*taken)
    }

    #[inline]
    fn slice(&mut self, len: usize) -> Result<&'a [u8], Corrupt> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Corrupt)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// What a reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A value of the item.
    Value,
    /// Its [`TaskFailure`].
    Failed,
    /// Its [`RemotePanic`].
    Panicked,
    /// The rest of the run was withdrawn, and this is as far as the worker got.
    Skipped,
    /// The worker takes runs.
    Ready,
    /// Its initializer failed: the worker ends. The reason as text.
    Broken,
    /// The worker should be replaced. It goes on until it is told to end.
    Retire,
    /// What its item reports while it runs: never the last reply.
    Progress,
}

/// A frame from a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    pub(super) kind: Kind,
    flags: u8,
    pub(super) tag: Tag,
    pub(super) payload: &'a [u8],
}

const REPLY_HEAD: usize = 2 + Tag::LEN;

impl<'a> Reply<'a> {
    /// Starts a reply's frame; the payload follows.
    #[inline]
    pub(super) fn head(kind: Kind, tag: Tag, body: &Body) -> [u8; REPLY_HEAD] {
        let mut head = [0; REPLY_HEAD];
        head[0] = kind as u8;
        head[1] = if matches!(kind, Kind::Progress) { 0 } else { LAST | body.flags() };
        head[2..].copy_from_slice(&tag.to_bytes());
        head
    }

    #[inline]
    pub(super) fn parse(frame: &'a [u8]) -> Result<Self, Corrupt> {
        let mut read = Reader(frame);
        let [kind, flags] = read.take()?;
        let kind = match kind {
            0 => Kind::Value,
            1 => Kind::Failed,
            2 => Kind::Panicked,
            3 => Kind::Skipped,
            4 => Kind::Ready,
            5 => Kind::Broken,
            6 => Kind::Retire,
            7 => Kind::Progress,
            _ => return Err(Corrupt),
        };
        let tag = u64::from_le_bytes(read.take()?);
        let tag = Tag { seq: (tag >> 32) as u32, index: tag as u32 };
        Ok(Self { kind, flags, tag, payload: read.0 })
    }

    /// Whether the item is answered for good with this one.
    #[inline]
    pub(super) fn is_last(&self) -> bool {
        self.flags & LAST != 0
    }

    /// Whether a parcel with its body comes with it, which is then too much to decode on the spot.
    pub(super) fn is_large(&self) -> bool {
        self.flags & LARGE != 0
    }

    /// Takes what was sent ahead of this reply.
    #[inline]
    pub(super) fn parcel(&self, socket: BorrowedFd<'_>) -> io::Result<Parcel> {
        if self.flags & PARCEL == 0 {
            return Ok(Parcel::default());
        }
        Parcel::receive(socket, self.tag, self.is_large())
    }
}

/// One answer, on its way to its job.
pub(super) struct Answer<'a> {
    /// The job's number for the item.
    pub(super) index: u64,
    reply: Reply<'a>,
    parcel: io::Result<Parcel>,
}

impl<'a> Answer<'a> {
    /// The answers in frames which the scheduler has seen, and found to be whole.
    pub(super) fn all(base: u64, frames: Frames<'a>, socket: BorrowedFd<'a>) -> impl Iterator<Item = Self> {
        frames.filter_map(move |frame| {
            let reply = Reply::parse(frame.ok()?).ok()?;
            Some(Self { index: base + u64::from(reply.tag.index), reply, parcel: reply.parcel(socket) })
        })
    }

    /// Its bytes, if it is a small one.
    pub(super) fn payload(&self) -> &'a [u8] {
        self.reply.payload
    }

    /// A large answer without the frame it came in, in which there is nothing of it.
    pub(super) fn detach(self) -> Answer<'static> {
        Answer { index: self.index, reply: Reply { payload: &[], ..self.reply }, parcel: self.parcel }
    }

    /// The value, or why there is none.
    #[inline]
    pub(super) fn decode<R: DeserializeOwned>(self) -> Result<R, TaskError> {
        let mut parcel = self.parcel.map_err(|error| TaskError::Undecodable(CodecError::custom(error)))?;
        let message = parcel.message(self.reply.payload);
        match self.reply.kind {
            Kind::Value => decode_caught(message).map_err(TaskError::Undecodable),
            Kind::Panicked => Err(match decode::<RemotePanic>(message) {
                Ok(panic) => TaskError::Panicked(panic),
                Err(error) => TaskError::Undecodable(error),
            }),
            _ => Err(match decode::<TaskFailure>(message) {
                Ok(failure) => failure.into_error(),
                Err(error) => TaskError::Undecodable(error),
            }),
        }
    }
}

/// Decoding runs foreign code, whose panic must not take the pool with it.
fn decode_caught<R: DeserializeOwned>(message: Incoming<'_>) -> Result<R, CodecError> {
    catch_unwind(AssertUnwindSafe(|| decode(message)))
        .unwrap_or_else(|_| Err(CodecError::custom("its `Deserialize` panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reduction::Attachment;

    #[test]
    fn bodies_with_the_same_files_have_the_same_mark() {
        let file = || Arc::new(Fd::from(tempfile::tempfile().unwrap()));
        let mark = |files: &[&Arc<Fd>]| {
            let attachments = files.iter().map(|file| Attachment(Arc::clone(file))).collect();
            Body::single(vec![0; ITEM_HEAD], attachments).unwrap().mark
        };
        let (one, other) = (file(), file());
        let again = Arc::new(one.try_clone().unwrap());
        assert_eq!(mark(&[&one, &other]), mark(&[&again, &other]));
        let different =
            [mark(&[]), mark(&[&one]), mark(&[&other]), mark(&[&one, &other]), mark(&[&other, &one])];
        assert_eq!(std::collections::BTreeSet::from(different).len(), different.len());
    }

    #[test]
    fn a_run_is_read_as_it_was_written() {
        let head = RunHead {
            seq: 1,
            count: 2,
            job: u64::MAX - 3,
            first: 1 << 40,
            attempt: 5,
            timeout: 6_000_000_000,
            memory_limit: 7 << 33,
            reports: true,
        };
        for function in [
            FnId::Place(-8),
            FnId::Anywhere { build: "b".into(), place: None, name: Some("n".into()), type_name: "t".into() },
        ] {
            let mut frame = Vec::new();
            write_run(&mut frame, &head, &function, &Body::default());
            frame.extend_from_slice(&[3, 0, 0, 0, b'a', b'b', b'c']);
            let Ok(Order::Run(mut run)) = Order::parse(&frame) else { panic!("a run") };
            assert_eq!((run.head, &run.function), (head, &function));
            assert_eq!(run.next_item(), Ok(&b"abc"[..]));
            assert_eq!(run.next_item(), Err(Corrupt));
        }
    }
}
