//! A ring with one producer and one consumer in different processes.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::{Corrupt, Memory, split};
use crate::sys::memory::Shared;

/// Where a ring lies in its memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The consumer's word: how many bytes it has taken, ever.
    pub(crate) head: usize,
    /// The producer's word: how many bytes it has published, ever.
    pub(crate) tail: usize,
    pub(crate) data: usize,
    /// A power of two.
    pub(crate) capacity: usize,
}

/// A frame starts with its length.
const LENGTH: usize = size_of::<u32>();

/// The side that puts frames in.
#[derive(Debug)]
pub(crate) struct Producer<M = Shared> {
    memory: Arc<M>,
    layout: Layout,
    tail: u64,
    /// The head as last seen: read again only when there seems to be no room.
    head: u64,
}

impl<M: Memory> Producer<M> {
    /// Of a ring that is still empty.
    pub(crate) fn new(memory: Arc<M>, layout: Layout) -> Self {
        Self { memory, layout, tail: 0, head: 0 }
    }

    /// Publishes one frame, the concatenation of `parts`. False if there is no room now, or ever:
    /// a frame and its length must fit the ring.
    pub(crate) fn try_push(&mut self, parts: &[&[u8]]) -> Result<bool, Corrupt> {
        if !self.has_room(parts)? {
            return Ok(false);
        }
        // It fits the ring, which is smaller than this number can say.
        let length = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
        let mut at = self.tail;
        for part in std::iter::once(&length.to_le_bytes()[..]).chain(parts.iter().copied()) {
            let (first, second) = split(self.layout.data, self.layout.capacity, at, part.len());
            self.memory.copy_in(first.0, &part[..first.1]);
            if second.1 > 0 {
                self.memory.copy_in(second.0, &part[first.1..]);
            }
            at = at.wrapping_add(part.len() as u64);
        }
        self.tail = at;
        // The frame is whole before the consumer can see that it is there.
        self.memory.store(self.layout.tail, at, Ordering::Release);
        Ok(true)
    }

    /// Whether a frame of these parts would fit. It then goes on to fit until it is pushed.
    pub(crate) fn has_room(&mut self, parts: &[&[u8]]) -> Result<bool, Corrupt> {
        let len = LENGTH + parts.iter().map(|part| part.len()).sum::<usize>();
        let room = |head: u64| {
            let used = self.tail.wrapping_sub(head);
            (self.layout.capacity as u64).checked_sub(used).ok_or(Corrupt)
        };
        if room(self.head)? >= len as u64 {
            return Ok(true);
        }
        // What the consumer has copied out may be overwritten from here on.
        let head = self.memory.load(self.layout.head, Ordering::Acquire);
        let enough = room(head)? >= len as u64;
        self.head = head;
        Ok(enough)
    }
}

/// The side that takes frames out.
#[derive(Debug)]
pub(crate) struct Consumer<M = Shared> {
    memory: Arc<M>,
    layout: Layout,
    head: u64,
}

impl<M: Memory> Consumer<M> {
    /// Of a ring from which nothing was taken yet.
    pub(crate) fn new(memory: Arc<M>, layout: Layout) -> Self {
        Self { memory, layout, head: 0 }
    }

    /// Whether nothing is published that was not taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.memory.load(self.layout.tail, Ordering::Acquire) == self.head
    }

    /// Appends all that is published to `out`, at most the ring's capacity; false if that is
    /// nothing. [`frames`] parts it.
    pub(crate) fn drain(&mut self, out: &mut Vec<u8>) -> Result<bool, Corrupt> {
        let tail = self.memory.load(self.layout.tail, Ordering::Acquire);
        let len = tail.wrapping_sub(self.head);
        if len == 0 {
            return Ok(false);
        }
        if len > self.layout.capacity as u64 {
            return Err(Corrupt);
        }
        let (first, second) = split(self.layout.data, self.layout.capacity, self.head, len as usize);
        self.memory.copy_out(first.0, first.1, out);
        self.memory.copy_out(second.0, second.1, out);
        self.head = tail;
        // Copied before the producer can overwrite it, and looked at only where it cannot.
        self.memory.store(self.layout.head, tail, Ordering::Release);
        Ok(true)
    }
}

/// The frames in bytes that were [drained](Consumer::drain).
pub(crate) fn frames(bytes: &[u8]) -> Frames<'_> {
    Frames { rest: bytes }
}

/// See [`frames`]. After an error nothing follows.
#[derive(Clone, Debug)]
pub(crate) struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// How many bytes were not looked at yet.
    pub(crate) fn rest(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<&'a [u8], Corrupt>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else { return Some(Err(Corrupt)) };
        let Some((frame, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else {
            return Some(Err(Corrupt));
        };
        self.rest = rest;
        Some(Ok(frame))
    }
}

/// The word by which a side says that it sleeps, so that the other rings only then.
#[derive(Debug)]
pub(crate) struct Doze<M = Shared> {
    memory: Arc<M>,
    at: usize,
}

impl<M: Memory> Doze<M> {
    pub(crate) fn new(memory: Arc<M>, at: usize) -> Self {
        Self { memory, at }
    }

    /// Called by the side that wants to sleep. It must then look again for what it waits for, and
    /// sleep only if that is still not there.
    pub(crate) fn announce(&self) {
        self.memory.store(self.at, 1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Called by that side when it does not sleep after all, or has woken.
    pub(crate) fn awake(&self) {
        self.memory.store(self.at, 0, Ordering::Relaxed);
    }

    /// Called by the other side after it has published something: whether it must ring.
    pub(crate) fn must_ring(&self) -> bool {
        // Between the publishing store and this load. Without it both sides could read the past:
        // one sees no frame, the other sees nobody asleep.
        fence(Ordering::SeqCst);
        self.seems_asleep() && self.memory.swap(self.at, 0, Ordering::SeqCst) != 0
    }

    /// A cheap look, which may miss who is just falling asleep.
    pub(crate) fn seems_asleep(&self) -> bool {
        self.memory.load(self.at, Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests;
