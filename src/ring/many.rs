//! A ring with many producers and many consumers, wherever they are.
//!
//! The producers exclude each other by a lock, and the consumers by another; the two sides know of each other
//! by one word each. Whoever has a lock of a dead one goes on from the words, as what that one had not
//! published, or not yet taken, is as if it had never been begun.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::sync::atomic::Ordering;

use super::parcels::Place;
use super::{Corrupt, Memory, split};

const POSITION_BITS: u32 = 40;
const SEQUENCE_BITS: u32 = 24;

/// How far a side has come: how many bytes (40 bits) and how many items (24 bits), ever, both counted round.
///
/// They lie in one word, so there is no instant at which they contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) u64);

impl Mark {
    fn position(self) -> u64 {
        self.0 >> SEQUENCE_BITS
    }

    /// How many items, the lowest 24 bits of it.
    pub(crate) fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }

    /// After one more item of so many bytes.
    fn after(self, bytes: u64) -> Self {
        let position = self.position().wrapping_add(bytes) << SEQUENCE_BITS;
        let sequence = self.sequence().wrapping_add(1) & ((1 << SEQUENCE_BITS) - 1);
        Self(position | sequence)
    }

    /// How many bytes lie between an earlier mark and this one.
    fn bytes_since(self, earlier: Self) -> u64 {
        self.position().wrapping_sub(earlier.position()) & ((1 << POSITION_BITS) - 1)
    }

    /// How many items lie between an earlier mark and this one.
    pub(crate) fn items_since(self, earlier: Self) -> u64 {
        self.sequence().wrapping_sub(earlier.sequence()) & ((1 << SEQUENCE_BITS) - 1)
    }

    /// Where the frame is that was or will be published under this mark, if the ring has come so far.
    pub(crate) fn place(self, head: Self, tail: Self) -> Place {
        match self.0.wrapping_sub(head.0).cmp(&tail.0.wrapping_sub(head.0)) {
            Less => Place::Queued,
            Equal => Place::Next,
            Greater => Place::Past,
        }
    }
}

/// Where a ring lies in its memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The producers' words: [`Mark`] of what is published, and of what they have last seen as taken.
    pub(crate) tail: usize,
    /// The consumers' words: [`Mark`] of what is taken, and of what they have last seen as published.
    pub(crate) head: usize,
    pub(crate) data: usize,
    /// A power of two.
    pub(crate) capacity: usize,
}

impl Layout {
    const SEEN: usize = 8;
}

/// A frame begins with its length and its flags, in four bytes.
pub(crate) const HEAD: usize = 4;
const FLAGS_AT: u32 = 28;
const LENGTH: u32 = (1 << FLAGS_AT) - 1;
/// Where frames begin.
const ALIGNMENT: u64 = 8;

/// Makes the first four bytes of a frame, all of which is in `frame` but these, say what it is.
pub(crate) fn seal(frame: &mut [u8], flags: u32) {
    debug_assert!(frame.len() <= LENGTH as usize && flags < 16);
    let word = frame.len() as u32 | flags << FLAGS_AT;
    frame[..HEAD].copy_from_slice(&word.to_le_bytes());
}

/// The ring, as one who has it in its memory. Who calls what under which lock is said at each method.
#[derive(Debug)]
pub(crate) struct Ring<M> {
    memory: M,
    layout: Layout,
}

/// Where the next frame goes.
#[derive(Debug)]
pub(crate) struct Room {
    tail: Mark,
    len: usize,
}

impl Room {
    /// Under which it will be published.
    pub(crate) fn ticket(&self) -> Mark {
        self.tail
    }
}

/// An item that is next to be taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front {
    /// Under which it was published.
    pub(crate) ticket: Mark,
    pub(crate) flags: u32,
    /// How long its frame is.
    pub(crate) len: usize,
    end: Mark,
}

impl<M: Memory> Ring<M> {
    pub(crate) fn new(memory: M, layout: Layout) -> Self {
        Self { memory, layout }
    }

    /// How far the producers have come. For any.
    #[inline]
    pub(crate) fn tail(&self) -> Mark {
        Mark(self.memory.load(self.layout.tail, Ordering::Acquire))
    }

    /// How far the consumers have come. For any.
    #[inline]
    pub(crate) fn head(&self) -> Mark {
        Mark(self.memory.load(self.layout.head, Ordering::Acquire))
    }

    /// How many items are in the ring, at an instant during the call. For any.
    #[inline]
    pub(crate) fn items(&self) -> u64 {
        let mut head = self.head();
        loop {
            let tail = self.tail();
            let now = self.head();
            if now == head {
                return tail.items_since(head);
            }
            head = now;
        }
    }

    /// How many bytes are free, at an instant during the call, or fewer. For any.
    #[inline]
    pub(crate) fn free(&self) -> u64 {
        let head = self.head();
        (self.layout.capacity as u64).saturating_sub(self.tail().bytes_since(head))
    }

    /// Room for a frame of this length, if there is some now. With the producers' lock, as long as which it stays so.
    #[inline]
    pub(crate) fn room(&self, len: usize) -> Result<Option<Room>, Corrupt> {
        let (tail, seen) = (self.own(self.layout.tail), self.own(self.layout.tail + Layout::SEEN));
        let free =
            |head: Mark| (self.layout.capacity as u64).checked_sub(tail.bytes_since(head)).ok_or(Corrupt);
        if free(seen)? < padded(len) {
            // What the consumers have copied out may be overwritten from here on.
            let head = self.head();
            let enough = free(head)? >= padded(len);
            self.memory.store(self.layout.tail + Layout::SEEN, head.0, Ordering::Relaxed);
            if !enough {
                return Ok(None);
            }
        }
        Ok(Some(Room { tail, len }))
    }

    /// Publishes a [sealed](seal) frame where there is room for it. With the producers' lock, under which there was.
    #[inline]
    pub(crate) fn push(&self, Room { tail, len }: Room, frame: &[u8]) {
        assert_eq!(frame.len(), len, "room was found for another frame");
        let (first, second) = split(self.layout.data, self.layout.capacity, tail.position(), len);
        self.memory.copy_in(first.0, &frame[..first.1]);
        if second.1 > 0 {
            self.memory.copy_in(second.0, &frame[first.1..]);
        }
        // The frame is whole before a consumer can see that it is there.
        self.memory.store(self.layout.tail, tail.after(padded(len)).0, Ordering::Release);
    }

    /// The next item, if there is one. With the consumers' lock.
    #[inline]
    pub(crate) fn front(&self) -> Result<Option<Front>, Corrupt> {
        let (head, mut tail) = (self.own(self.layout.head), self.own(self.layout.head + Layout::SEEN));
        if tail == head {
            tail = self.tail();
            if tail == head {
                return Ok(None);
            }
            self.memory.store(self.layout.head + Layout::SEEN, tail.0, Ordering::Relaxed);
        }
        let published = tail.bytes_since(head);
        let word = self.memory.load(self.place(head), Ordering::Relaxed).to_le() as u32;
        let (len, flags) = ((word & LENGTH) as usize, word >> FLAGS_AT);
        if published > self.layout.capacity as u64 || len < HEAD || padded(len) > published {
            return Err(Corrupt);
        }
        Ok(Some(Front { ticket: head, flags, len, end: head.after(padded(len)) }))
    }

    /// Appends what a frame has after its first four bytes. With the consumers' lock.
    #[inline]
    pub(crate) fn copy_out(&self, front: &Front, into: &mut Vec<u8>) {
        let position = front.ticket.position().wrapping_add(HEAD as u64);
        let (first, second) = split(self.layout.data, self.layout.capacity, position, front.len - HEAD);
        self.memory.copy_out(first.0, first.1, into);
        if second.1 > 0 {
            self.memory.copy_out(second.0, second.1, into);
        }
    }

    /// Takes the item: it is this process's from here on. With the consumers' lock, under which it was found.
    #[inline]
    pub(crate) fn take(&self, front: &Front) {
        // Copied before a producer can overwrite it.
        self.memory.store(self.layout.head, front.end.0, Ordering::Release);
    }

    /// A word that only those write who have this lock.
    fn own(&self, at: usize) -> Mark {
        Mark(self.memory.load(at, Ordering::Relaxed))
    }

    fn place(&self, mark: Mark) -> usize {
        self.layout.data + (mark.position() as usize & (self.layout.capacity - 1))
    }
}

/// With what is left empty after it, so that the next one's first bytes do not wrap.
fn padded(len: usize) -> u64 {
    (len as u64).next_multiple_of(ALIGNMENT)
}

#[cfg(all(test, multiprocess))]
mod tests;
