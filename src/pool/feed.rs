//! From items to runs: reading the input, encoding, cutting into chunks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;

use super::wire::{Body, INLINE, ITEM_HEAD};
use crate::error::{NotStarted, TaskError};
use crate::process::panic_message;
use crate::reduction::{Attachments, CodecError, Message, Peer, encode};

/// A run's items stay below this, so that several fit a ring.
const RUN_BYTES: usize = 16 << 10;
/// A chunk is read before any of it is handed on, unless it is larger than this.
const CHUNK_BYTES: usize = 64 << 10;

/// Items, one after another, as bytes.
pub(super) trait Source: Send {
    /// Appends the next item to `out`, and gives what goes beside it.
    fn poll_item(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Option<Result<Attachments, CodecError>>>;
    /// How many items there are at least.
    fn at_least(&self) -> usize;
}

/// The items of an iterator, each made into arguments by `args`.
pub(super) struct Items<I, F> {
    pub(super) items: I,
    pub(super) args: F,
    pub(super) peer: Peer,
}

impl<I, F, A> Source for Items<I, F>
where
    I: Iterator + Send,
    F: Fn(I::Item) -> A + Send,
    A: Message,
{
    fn poll_item(
        &mut self,
        _: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Option<Result<Attachments, CodecError>>> {
        let item = self.items.next().map(&self.args);
        Poll::Ready(item.map(|item| encode(&item, out, self.peer)))
    }

    fn at_least(&self) -> usize {
        self.items.size_hint().0
    }
}

/// The items of a stream.
pub(super) struct StreamItems<S, F> {
    pub(super) items: Pin<Box<S>>,
    pub(super) args: F,
    pub(super) peer: Peer,
}

impl<S, F, A> Source for StreamItems<S, F>
where
    S: Stream + Send,
    F: Fn(S::Item) -> A + Send,
    A: Message,
{
    fn poll_item(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Option<Result<Attachments, CodecError>>> {
        let item = self.items.as_mut().poll_next(cx).map(|item| item.map(&self.args));
        item.map(|item| item.map(|item| encode(&item, out, self.peer)))
    }

    fn at_least(&self) -> usize {
        self.items.size_hint().0
    }
}

/// Some consecutive items, ready for the scheduler, or one that cannot be sent.
#[derive(Debug)]
pub(super) enum Piece {
    Run { count: u32, body: Body },
    Refused(TaskError),
}

/// Why reading stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The chunk is full.
    Full,
    /// No further item is there at the moment.
    Waiting,
    End,
    /// The input panicked with this message; what was read of the chunk is gone.
    Panicked(String),
}

/// The input of a job.
pub(super) struct Feed {
    /// `None` after its end. Behind a lock that nobody takes, as it need not be `Sync`.
    source: Option<Mutex<Box<dyn Source>>>,
    pub(super) chunk: usize,
    pub(super) pieces: Vec<Piece>,
}

impl Feed {
    pub(super) fn new(source: Box<dyn Source>) -> Self {
        Self { source: Some(Mutex::new(source)), chunk: 1, pieces: Vec::new() }
    }

    pub(super) fn at_least(&mut self) -> usize {
        self.source().map_or(0, |source| source.at_least())
    }

    pub(super) fn is_over(&self) -> bool {
        self.source.is_none()
    }

    fn source(&mut self) -> Option<&mut Box<dyn Source>> {
        self.source.as_mut().map(|source| source.get_mut().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads up to a chunk of at most `limit` items into `pieces`.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, limit: usize) -> Stopped {
        let chunk = self.chunk.min(limit);
        let mut pieces = std::mem::take(&mut self.pieces);
        let Some(source) = self.source() else { return Stopped::End };
        // The input is foreign code. After a panic nobody looks at it again.
        let read = catch_unwind(AssertUnwindSafe(|| read_chunk(&mut **source, cx, chunk, &mut pieces)));
        let stopped = read.unwrap_or_else(|panic| {
            pieces.clear();
            Stopped::Panicked(panic_message(&*panic))
        });
        self.pieces = pieces;
        if matches!(stopped, Stopped::End | Stopped::Panicked(_)) {
            self.source = None;
        }
        stopped
    }
}

fn read_chunk(
    source: &mut dyn Source,
    cx: &mut Context<'_>,
    chunk: usize,
    pieces: &mut Vec<Piece>,
) -> Stopped {
    let mut buffer = Vec::new();
    let (mut count, mut read, mut bytes) = (0, 0, 0);
    let stopped = loop {
        if read == chunk || bytes >= CHUNK_BYTES {
            break Stopped::Full;
        }
        let start = buffer.len();
        buffer.extend_from_slice(&[0; ITEM_HEAD]);
        let item = match source.poll_item(cx, &mut buffer) {
            Poll::Ready(Some(item)) => item,
            not_now => {
                buffer.truncate(start);
                break if not_now.is_ready() { Stopped::End } else { Stopped::Waiting };
            }
        };
        read += 1;
        let len = buffer.len() - start - ITEM_HEAD;
        bytes += len;
        match item {
            Ok(attachments) if attachments.is_empty() && len <= INLINE => {
                buffer[start..start + ITEM_HEAD].copy_from_slice(&(len as u32).to_le_bytes());
                count += 1;
                if buffer.len() >= RUN_BYTES {
                    cut(&mut buffer, &mut count, pieces);
                }
            }
            // What does not fit between others goes alone.
            Ok(attachments) => {
                let alone = buffer.split_off(start);
                cut(&mut buffer, &mut count, pieces);
                pieces.push(single(alone, attachments));
            }
            Err(error) => {
                buffer.truncate(start);
                cut(&mut buffer, &mut count, pieces);
                pieces.push(Piece::Refused(TaskError::NotStarted(NotStarted::Unencodable(error))));
            }
        }
    };
    cut(&mut buffer, &mut count, pieces);
    stopped
}

fn cut(buffer: &mut Vec<u8>, count: &mut u32, pieces: &mut Vec<Piece>) {
    let count = std::mem::take(count);
    if count > 0 {
        let items = std::mem::take(buffer).into();
        pieces.push(Piece::Run { count, body: Body { items, ..Body::default() } });
    }
}

/// One item, from a buffer that begins with room for its length.
pub(super) fn single(buffer: Vec<u8>, attachments: Attachments) -> Piece {
    match Body::single(buffer, attachments) {
        Ok(body) => Piece::Run { count: 1, body },
        Err(error) => {
            let error = <CodecError as serde::ser::Error>::custom(error);
            Piece::Refused(TaskError::NotStarted(NotStarted::Unencodable(error)))
        }
    }
}
