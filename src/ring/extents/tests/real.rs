//! Extents in a real file: processes that are killed before each of their accesses, memory that is not there or
//! not given back, words that somebody has written over.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::*;
use crate::synchronize::protocol::Here;
use crate::synchronize::protocol::words::kill_points::kill_at;
use crate::sys::fd::poll_readable;
use crate::sys::memory::{Shared, seal_fixed_size, sparse};
use crate::sys::process::{Exit, Fork, exit_now, fork, pidfd_open, try_wait};
use crate::sys::{AsFd, Fd};

const HEAD: usize = 0;
const TAIL: usize = 8;
const FRAMES: usize = 64;
const TABLE: usize = 2048;
const ENTRIES: usize = 3;
const MAPPED: usize = 4096;

/// Two are more than is kept.
const LEN: usize = 9 << 20;

/// A queue for large items, without locks: one process at a time is at it.
struct Queue {
    fd: Fd,
    memory: Shared,
}

type Place<'a> = Extents<'a, Shared, Here, BorrowedFd<'a>>;

impl Queue {
    fn new() -> Self {
        Self::with_file(region(ENTRIES))
    }

    fn with_file(len: usize) -> Self {
        let fd = sparse("test", len, MAPPED).unwrap();
        seal_fixed_size(fd.as_fd()).unwrap();
        let memory = Shared::map_first(fd.as_fd(), MAPPED).unwrap();
        Self { fd, memory }
    }

    fn extents(&self) -> Place<'_> {
        let layout = Layout { table: TABLE, entries: ENTRIES, head: HEAD, tail: TAIL };
        Extents::new(&self.memory, &Here, self.fd.as_fd(), layout)
    }

    fn put(&self, item: u8) {
        let reserved = self.extents().reserve(LEN).unwrap().unwrap();
        reserved.write(0, &vec![item; LEN / 2]).unwrap();
        reserved.write(LEN / 2, &vec![item; LEN / 2]).unwrap();
        let tail = self.memory.load(TAIL, Relaxed);
        let frame = reserved.entry() as u64 | u64::from(item) << 8;
        reserved.commit(tail).unwrap();
        self.memory.store(FRAMES + 8 * tail as usize, frame, Relaxed);
        self.memory.store(TAIL, tail + 1, Release);
    }

    fn get(&self) -> Option<u8> {
        let head = self.memory.load(HEAD, Relaxed);
        if head == self.memory.load(TAIL, Acquire) {
            return None;
        }
        let frame = self.memory.load(FRAMES + 8 * head as usize, Relaxed);
        let claimed = self.extents().claim(frame as usize & 0xff, head).unwrap();
        self.memory.store(HEAD, head + 1, Release);
        let (item, mut bytes) = ((frame >> 8) as u8, Vec::new());
        claimed.read(&mut bytes).unwrap();
        assert!(bytes == vec![item; LEN], "it is as it was put");
        Some(item)
    }

    fn word(&self, at: usize) -> u64 {
        self.memory.load(at, Acquire)
    }

    /// How much memory the extents have.
    fn allocated(&self) -> usize {
        let file = File::from(self.fd.try_clone().unwrap());
        file.metadata().unwrap().blocks() as usize * 512 - MAPPED
    }

    /// Nobody has anything, and little is kept.
    fn assert_at_rest(&self) {
        (0..ENTRIES).for_each(|entry| assert_eq!(self.word(self.extents().owner(entry)), 0));
        assert!(self.allocated() <= KEPT, "{}", self.allocated());
    }
}

/// What a copy of this process came to.
fn child(act: impl FnOnce()) -> Exit {
    match fork().unwrap() {
        Fork::Child => {
            let ended = catch_unwind(AssertUnwindSafe(act)).is_ok();
            exit_now(i32::from(!ended))
        }
        Fork::Parent { pid } => {
            let child = pidfd_open(pid).unwrap();
            poll_readable(child.as_fd(), None).unwrap();
            try_wait(child.as_fd()).unwrap().unwrap()
        }
    }
}

#[test]
fn nothing_is_lost_or_left_at_whatever_a_process_was_killed() {
    for point in 0.. {
        let queue = Queue::new();
        queue.put(1);
        let exit = child(|| {
            kill_at(point);
            queue.put(2);
            assert_eq!(queue.get(), Some(1));
            drop(queue.extents().reserve(LEN).unwrap());
            queue.extents().reap();
        });
        // What is in the ring is whole, and only the item that it had in hand can be gone.
        let head = queue.word(HEAD);
        let left: Vec<_> = std::iter::from_fn(|| queue.get()).collect();
        assert_eq!(left.len() as u64, queue.word(TAIL) - head);
        assert!(matches!(left[..], [1] | [1, 2] | [2]), "{left:?}");
        // Another one goes through, whatever is left of the killed one.
        queue.put(3);
        assert_eq!(queue.get(), Some(3));
        queue.extents().reap();
        queue.assert_at_rest();
        match exit {
            Exit::Code(0) => return assert!(point > 20, "there are points"),
            Exit::Signal { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nothing_of_a_larger_item_is_left_at_whatever_a_process_was_killed() {
    for point in 0.. {
        let queue = Queue::new();
        queue.put(1);
        queue.get();
        let small = || {
            let reserved = queue.extents().reserve(PAGE).unwrap().unwrap();
            reserved.write(0, &[2; PAGE]).unwrap();
        };
        let exit = child(|| {
            kill_at(point);
            small();
        });
        queue.extents().reap();
        let entries = 0..ENTRIES;
        let spare: u64 = entries.map(|entry| queue.word(queue.extents().spare(entry))).sum();
        assert!(queue.allocated() as u64 <= spare, "{point}: {} of {spare}", queue.allocated());
        small();
        assert_eq!(queue.allocated(), PAGE);
        match exit {
            Exit::Code(0) => return assert!(point > 10, "there are points"),
            Exit::Signal { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn memory_is_kept_for_the_next_and_no_more_than_the_limit() {
    let queue = Queue::new();
    queue.put(1);
    queue.get();
    assert_eq!(queue.allocated(), LEN);
    let reserved = [(); ENTRIES].map(|()| queue.extents().reserve(LEN).unwrap().unwrap());
    assert!(queue.extents().reserve(LEN).unwrap().is_none());
    reserved.iter().for_each(|reserved| reserved.write(0, &vec![1; LEN]).unwrap());
    assert_eq!(queue.allocated(), ENTRIES * LEN);
    drop(reserved);
    assert_eq!(queue.allocated(), KEPT);
    queue.assert_at_rest();
    // A small one has the memory of a large one, and all gives back what it does not need.
    let small = [(); ENTRIES].map(|()| queue.extents().reserve(PAGE).unwrap().unwrap());
    drop(small);
    assert!(queue.allocated() <= ENTRIES * PAGE);
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let queue = Queue::with_file(region(0) + PIECE + PAGE);
    let reserved = queue.extents().reserve(LEN).unwrap().unwrap();
    assert!(reserved.write(0, &vec![1; LEN]).is_err());
    assert_eq!(queue.allocated(), PIECE + PAGE);
    drop(reserved);
    // Of what was there, that is.
    queue.assert_at_rest();
    drop(queue.extents().reserve(0).unwrap());
    assert_eq!(queue.allocated(), 0);
}

#[test]
fn what_never_fits_is_an_error() {
    let queue = Queue::new();
    let kind = |len| queue.extents().reserve(len).unwrap_err().kind();
    assert_eq!(kind(REGION), io::ErrorKind::OutOfMemory);
    assert_eq!(kind(REGION + 1), io::ErrorKind::FileTooLarge);
    queue.assert_at_rest();
}

#[test]
fn a_copy_of_a_process_writes_and_frees_nothing() {
    let queue = Queue::new();
    queue.put(1);
    let claimed = queue.extents().claim(0, 0).unwrap();
    queue.memory.store(HEAD, 1, Release);
    let mut held = Some((queue.extents().reserve(LEN).unwrap().unwrap(), claimed));
    let exit = child(|| {
        let (reserved, claimed) = held.take().unwrap();
        let is_refused = |result| assert!(matches!(result, Err(Error::NotOwner)));
        is_refused(reserved.write(0, &[2]));
        is_refused(claimed.read(&mut Vec::new()));
        is_refused(reserved.commit(7));
    });
    assert_eq!(exit, Exit::Code(0));
    let mut bytes = Vec::new();
    held.as_ref().unwrap().1.read(&mut bytes).unwrap();
    assert!(bytes == vec![1; LEN]);
    (0..2).for_each(|entry| assert_eq!(queue.word(queue.extents().owner(entry)), Here.me().0));
    drop(held);
    queue.assert_at_rest();
}

#[test]
fn what_somebody_has_written_over_is_an_error() {
    let queue = Queue::new();
    let extents = queue.extents();
    queue.put(1);
    for (entry, ticket) in [(ENTRIES, 0), (usize::MAX, 0), (0, 1), (0, u64::MAX), (1, 0), (1, u64::MAX)] {
        assert_eq!(extents.claim(entry, ticket).unwrap_err(), Corrupt);
    }
    queue.memory.store(extents.length(0), REGION as u64 + 1, Relaxed);
    assert_eq!(extents.claim(0, 0).unwrap_err(), Corrupt);
    queue.memory.store(HEAD, 1, Release);
    queue.assert_at_rest();
    // A length that could be is not believed, either.
    queue.put(2);
    queue.memory.store(extents.length(0), REGION as u64, Relaxed);
    let (claimed, mut bytes) = (extents.claim(0, 1).unwrap(), Vec::new());
    assert!(matches!(claimed.read(&mut bytes), Err(Error::Malformed(_))));
    assert_eq!(bytes.capacity(), 0);
    drop(claimed);
    queue.memory.store(HEAD, 2, Release);
    queue.assert_at_rest();
    // Whatever is said to be kept.
    (0..ENTRIES).for_each(|entry| queue.memory.store(extents.spare(entry), u64::MAX, Relaxed));
    queue.put(3);
    assert_eq!(queue.get(), Some(3));
    queue.assert_at_rest();
}
