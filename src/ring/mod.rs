//! Byte rings in shared memory.
//!
//! What they promise: a frame is seen whole or not at all, once, in order, whoever dies or stops at whatever
//! instant. `README.md` beside this file has the layouts and the arguments.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::synchronize::protocol::words::kill_point;
use crate::sys::memory::Shared;

pub(crate) mod extents;
pub(crate) mod many;
pub(crate) mod parcels;
pub(crate) mod single;

/// The shared memory as the protocol uses it: words that synchronise, and bytes that do not.
///
/// The tests put a memory in its place that stops a side before any chosen access.
pub(crate) trait Memory {
    fn load(&self, at: usize, order: Ordering) -> u64;
    fn store(&self, at: usize, value: u64, order: Ordering);
    fn swap(&self, at: usize, value: u64, order: Ordering) -> u64;
    fn copy_in(&self, at: usize, bytes: &[u8]);
    fn copy_out(&self, at: usize, len: usize, into: &mut Vec<u8>);
}

impl Memory for Shared {
    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u64 {
        kill_point();
        word(self, at).load(order)
    }

    #[inline]
    fn store(&self, at: usize, value: u64, order: Ordering) {
        kill_point();
        word(self, at).store(value, order);
    }

    #[inline]
    fn swap(&self, at: usize, value: u64, order: Ordering) -> u64 {
        kill_point();
        word(self, at).swap(value, order)
    }

    #[inline]
    fn copy_in(&self, at: usize, bytes: &[u8]) {
        kill_point();
        self.write(at, bytes);
    }

    #[inline]
    fn copy_out(&self, at: usize, len: usize, into: &mut Vec<u8>) {
        kill_point();
        self.append_to(at, len, into);
    }
}

impl<M: Memory> Memory for &M {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        (**self).load(at, order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        (**self).store(at, value, order);
    }

    fn swap(&self, at: usize, value: u64, order: Ordering) -> u64 {
        (**self).swap(at, value, order)
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        (**self).copy_in(at, bytes);
    }

    fn copy_out(&self, at: usize, len: usize, into: &mut Vec<u8>) {
        (**self).copy_out(at, len, into);
    }
}

fn word(memory: &Shared, at: usize) -> &AtomicU64 {
    memory.atomic_u64(at)
}

/// The other side broke the protocol: its words or lengths cannot be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Corrupt;

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other side has written what cannot be")
    }
}

impl From<Corrupt> for crate::Error {
    fn from(_: Corrupt) -> Self {
        Self::Malformed("what lies in shared memory cannot be: somebody has written over it")
    }
}

/// The pieces, as place and length, in which `len` bytes from a position on lie in a ring whose bytes begin at
/// `data`.
#[inline]
fn split(data: usize, capacity: usize, position: u64, len: usize) -> ((usize, usize), (usize, usize)) {
    debug_assert!(capacity.is_power_of_two());
    let start = position as usize & (capacity - 1);
    let first = len.min(capacity - start);
    ((data + start, first), (data, len - first))
}
