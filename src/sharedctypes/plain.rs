//! The memory of one object: so many items of plain data, in a memfd of their own or in that of a lock.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Pod;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::reduction::{Attachment, Descriptor};
use crate::synchronize::Lock;
use crate::sys::kept::Kept;
use crate::sys::memory::{self, Shared};
use crate::sys::{AsFd, Fd};

/// What such a memory begins with; the last byte is the layout's version.
const MAGIC: u64 = u64::from_be_bytes(*b"mp plai\x01");

/// Where its parts are, in bytes: what never changes, how often there was a commit, and the first of two
/// places for the items. Of the second, pages are there as soon as somebody is going to commit.
const MAGIC_AT: usize = 0;
const ITEM_AT: usize = 8;
const LEN_AT: usize = 16;
const COMMITS_AT: usize = 24;
const FIRST_AT: usize = 64;

/// So many items, which are all zero at first. Clones are the same memory.
///
/// The items lie at one of two places. Who changes them as a whole, holding the lock, writes them all to the
/// other place and then says in one word that they are there: who dies before that has changed nothing.
/// Without the lock they are changed where they are.
pub(super) struct Plain<T> {
    memory: Arc<Memory>,
    items: PhantomData<fn() -> T>,
}

struct Memory {
    home: Home,
    /// Where in it the layout above begins.
    base: usize,
    /// As it was when the size of the memory was compared with it: what lies in the memory can change.
    len: usize,
}

enum Home {
    Own {
        /// For statics in forked children.
        _kept: Kept,
        attachment: Attachment,
        shared: Shared,
    },
    /// Of the lock, after what that needs itself.
    Lock(Lock),
}

impl Home {
    fn own(fd: Fd, shared: Shared) -> Self {
        Self::Own { _kept: Kept::new(fd.as_fd()), attachment: Attachment(Arc::new(fd)), shared }
    }

    fn shared(&self) -> &Shared {
        match self {
            Self::Own { shared, .. } => shared,
            Self::Lock(lock) => lock.memory(),
        }
    }

    fn attachment(&self) -> Attachment {
        match self {
            Self::Own { attachment, .. } => attachment.clone(),
            Self::Lock(lock) => lock.attachment(),
        }
    }
}

/// Where things lie in a memory of `len` items of `item` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Of all items.
    bytes: usize,
    second_at: usize,
    end: usize,
}

impl Layout {
    fn of(item: usize, len: usize) -> Option<Self> {
        let bytes = item.checked_mul(len)?;
        let place = bytes.checked_next_multiple_of(8)?;
        let second_at = FIRST_AT.checked_add(place)?;
        Some(Self { bytes, second_at, end: second_at.checked_add(place)? })
    }
}

fn wrong(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<T: Pod> Plain<T> {
    /// # Errors
    /// When no descriptor or no memory is left.
    pub(super) fn zeroed(len: usize) -> io::Result<Self> {
        let layout = Self::layout_of(len)?;
        let fd = memory::sparse("tokio-multiprocess-plain", layout.end, layout.second_at)?;
        memory::seal_fixed_size(fd.as_fd())?;
        let shared = Shared::map(fd.as_fd())?;
        Ok(Self::begin(Home::own(fd, shared), 0, len))
    }

    /// As [`zeroed`](Self::zeroed), with a lock of its own in the same memory, and prepared for commits.
    ///
    /// # Errors
    /// As those of [`zeroed`](Self::zeroed).
    pub(super) fn with_lock(len: usize) -> crate::Result<(Lock, Self)> {
        let lock = Lock::with_room(Self::layout_of(len)?.end)?;
        Ok((lock.clone(), Self::begin(Home::Lock(lock), Lock::ROOM_AT, len)))
    }

    fn layout_of(len: usize) -> io::Result<Layout> {
        Layout::of(size_of::<T>(), len).ok_or(io::ErrorKind::OutOfMemory.into())
    }

    fn begin(home: Home, base: usize, len: usize) -> Self {
        for (at, value) in [(ITEM_AT, size_of::<T>() as u64), (LEN_AT, len as u64), (MAGIC_AT, MAGIC)] {
            home.shared().atomic_u64(base + at).store(value, Ordering::Release);
        }
        Self::with(home, base, len)
    }

    fn with(home: Home, base: usize, len: usize) -> Self {
        Self { memory: Arc::new(Memory { home, base, len }), items: PhantomData }
    }

    /// What a message has brought.
    ///
    /// # Errors
    /// When it is something else, or its items are not of the size of a `T`.
    fn adopt(fd: Fd) -> io::Result<Self> {
        let shared = Shared::map(fd.as_fd())?;
        let begins_at = |base: &usize| {
            let end = base + FIRST_AT;
            end <= shared.len() && shared.atomic_u64(base + MAGIC_AT).load(Ordering::Acquire) == MAGIC
        };
        let base = [0, Lock::ROOM_AT].into_iter().find(begins_at).ok_or_else(|| wrong("it is none"))?;
        let len = Self::arrived_len(&shared, base)?;
        Ok(Self::with(Home::own(fd, shared), base, len))
    }

    /// What lies in the memory of a lock that a message has brought.
    ///
    /// # Errors
    /// As those of [`adopt`](Self::adopt).
    fn adopt_beside(lock: &Lock) -> io::Result<Self> {
        let (shared, base) = (lock.memory(), Lock::ROOM_AT);
        if shared.len() < base + FIRST_AT
            || shared.atomic_u64(base + MAGIC_AT).load(Ordering::Acquire) != MAGIC
        {
            return Err(wrong("it is a lock alone"));
        }
        Ok(Self::with(Home::Lock(lock.clone()), base, Self::arrived_len(shared, base)?))
    }

    fn arrived_len(shared: &Shared, base: usize) -> io::Result<usize> {
        let word = |at| shared.atomic_u64(base + at).load(Ordering::Acquire);
        let (item, len) = (word(ITEM_AT), word(LEN_AT));
        if item != size_of::<T>() as u64 {
            return Err(wrong(format!("an item has {item} bytes there, and {} here", size_of::<T>())));
        }
        let len = usize::try_from(len).map_err(|error| wrong(error.to_string()))?;
        let fits = |layout: Layout| layout.end <= shared.len() - base;
        if !Layout::of(size_of::<T>(), len).is_some_and(fits) {
            return Err(wrong(format!("{} bytes have no room for {len} items", shared.len() - base)));
        }
        Ok(len)
    }

    /// What lies in the memory of this lock, unless `apart` says where else.
    pub(super) fn arrived(lock: &Lock, apart: Option<Self>) -> io::Result<Self> {
        apart.map_or_else(|| Self::adopt_beside(lock), Ok)
    }

    /// Finds room for what is going to be committed.
    pub(super) fn prepare_commits(&self) -> io::Result<()> {
        memory::allocate(self.memory.home.attachment().0.as_fd(), self.memory.base + self.layout().end)
    }

    /// Reads items from `index` on.
    pub(super) fn read(&self, index: usize, into: &mut [T]) {
        self.check(index, into.len());
        let at = self.place(self.commits()) + index * size_of::<T>();
        self.shared().load_into(at, bytemuck::cast_slice_mut(into));
    }

    pub(super) fn read_vec(&self, index: usize, len: usize) -> Vec<T> {
        self.check(index, len);
        let mut items = vec![T::zeroed(); len];
        self.read(index, &mut items);
        items
    }

    /// Writes items where they are, one after another.
    pub(super) fn write(&self, index: usize, items: &[T]) {
        self.check(index, items.len());
        let at = self.place(self.commits()) + index * size_of::<T>();
        self.shared().store_from(at, bytemuck::cast_slice(items));
    }

    /// As [`Shared::update`], of the item with this index, which has `N` bytes.
    pub(super) fn update<const N: usize>(
        &self,
        index: usize,
        f: impl FnMut([u8; N]) -> Option<[u8; N]>,
    ) -> [u8; N] {
        self.check(index, 1);
        self.shared().update(self.place(self.commits()) + index * N, f)
    }

    /// Puts these in the place of all items, at once or, if this process dies in the middle, not at all.
    ///
    /// Only who holds the lock may do it, and it must have been [prepared for](Self::prepare_commits).
    pub(super) fn commit(&self, items: &[T]) {
        assert_eq!(items.len(), self.len());
        let next = self.commits().wrapping_add(1);
        self.shared().store_from(self.place(next), bytemuck::cast_slice(items));
        self.shared().atomic_u64(self.memory.base + COMMITS_AT).store(next, Ordering::Release);
    }

    fn commits(&self) -> u64 {
        self.shared().atomic_u64(self.memory.base + COMMITS_AT).load(Ordering::Acquire)
    }

    /// Where the items are after so many commits.
    fn place(&self, commits: u64) -> usize {
        self.memory.base + if commits.is_multiple_of(2) { FIRST_AT } else { self.layout().second_at }
    }

    fn layout(&self) -> Layout {
        Layout::of(size_of::<T>(), self.len()).expect("it was looked at when this was made")
    }

    fn check(&self, index: usize, len: usize) {
        let fits = index.checked_add(len).is_some_and(|end| end <= self.len());
        assert!(fits, "{len} items from {index} on are not within {}", self.len());
    }
}

impl<T> Plain<T> {
    pub(super) fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether it lies in the memory of this lock.
    pub(super) fn is_beside(&self, lock: &Lock) -> bool {
        matches!(&self.memory.home, Home::Lock(its) if its.is(lock))
    }

    fn shared(&self) -> &Shared {
        self.memory.home.shared()
    }
}

impl<T> Clone for Plain<T> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), items: PhantomData }
    }
}

impl<T> Serialize for Plain<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Descriptor(self.memory.home.attachment()).serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Plain<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let arrived = Descriptor::deserialize(deserializer)?.into_fd();
        let refused = |error| D::Error::custom(format_args!("not such a shared value or array: {error}"));
        arrived.and_then(Self::adopt).map_err(refused)
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use super::*;
    use crate::reduction::{CodecError, Incoming, Peer, decode, encode};

    /// What arrives if `sent` is sent.
    fn arrived<T: Pod>(sent: &impl Serialize) -> Result<Plain<T>, CodecError> {
        let mut bytes = Vec::new();
        let attachments = encode(sent, &mut bytes, Peer::SameBuild).unwrap();
        let attachments = attachments.into_iter().map(|attachment| attachment.into_fd().unwrap()).collect();
        decode(Incoming { bytes: &bytes, attachments })
    }

    fn refusal<T: Pod>(fd: Fd) -> String {
        arrived::<T>(&Descriptor::new(fd)).err().expect("it is refused").to_string()
    }

    #[test]
    fn what_was_sent_is_the_same_memory() {
        let here = Plain::<u16>::zeroed(3).unwrap();
        let there = arrived::<u16>(&here).unwrap();
        here.write(1, &[7, 8]);
        assert_eq!(there.read_vec(0, 3), [0, 7, 8]);
        // Nothing tells one kind of numbers from another of the same size.
        assert_eq!(arrived::<i16>(&here).unwrap().len(), 3);
        let nothing = Plain::<u64>::zeroed(0).unwrap();
        assert_eq!(arrived::<u64>(&nothing).unwrap().read_vec(0, 0), []);
    }

    #[test]
    fn what_is_something_else_is_refused() {
        let sealed = |len: usize, words: &[u64]| {
            let fd = memory::memfd("test", len).unwrap();
            let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            memory::write_all_at(fd.as_fd(), 0, &bytes).unwrap();
            memory::seal_fixed_size(fd.as_fd()).unwrap();
            fd
        };
        assert!(refusal::<u64>(std::fs::File::open("/proc/self/exe").unwrap().into()).contains("not such"));
        assert!(refusal::<u64>(memory::memfd("test", 4096).unwrap()).contains("not such"), "it could shrink");
        assert!(refusal::<u64>(sealed(16, &[MAGIC, 8])).contains("it is none"));
        assert!(refusal::<u64>(sealed(4096, &[])).contains("it is none"));
        assert!(
            refusal::<u64>(sealed(4096, &[MAGIC, 4, 1])).contains("an item has 4 bytes there, and 8 here")
        );
        for len in [253, 1 << 61, u64::MAX] {
            assert!(refusal::<u64>(sealed(4096, &[MAGIC, 8, len])).contains("no room"), "{len}");
        }
        assert_eq!(arrived::<u64>(&Descriptor::new(sealed(4096, &[MAGIC, 8, 252]))).unwrap().len(), 252);
        let here = Plain::<[u8; 3]>::zeroed(1).unwrap();
        assert!(arrived::<u32>(&here).is_err());
    }

    #[test]
    fn what_lies_with_a_lock_is_found_there() {
        let (lock, here) = Plain::<u16>::with_lock(3).unwrap();
        here.write(0, &[1, 2, 3]);
        assert!(here.is_beside(&lock) && !here.is_beside(&Lock::new().unwrap()));
        let there = arrived::<u16>(&here).unwrap();
        assert_eq!(there.read_vec(0, 3), [1, 2, 3]);
        assert!(arrived::<u32>(&here).err().unwrap().to_string().contains("an item has 2 bytes"));
        assert_eq!(Plain::<u16>::arrived(&lock, None).unwrap().len(), 3);
        assert!(Plain::<u16>::arrived(&Lock::new().unwrap(), None).is_err());
        assert!(Plain::<u64>::arrived(&lock, None).is_err());
        assert!(arrived::<u16>(&Lock::new().unwrap()).is_err());
    }

    /// Who has the memory can write any length into it.
    #[test]
    fn a_length_that_changes_later_does_no_harm() {
        let here = Plain::<u64>::zeroed(2).unwrap();
        here.shared().atomic_u64(LEN_AT).store(u64::MAX, Ordering::SeqCst);
        assert_eq!(here.read_vec(0, here.len()), [0, 0]);
        assert!(arrived::<u64>(&here).is_err());
    }

    #[test]
    fn a_commit_is_seen_whole_or_not_at_all() {
        let plain = Plain::<u64>::zeroed(3).unwrap();
        plain.prepare_commits().unwrap();
        for round in 1..5 {
            plain.commit(&[round; 3]);
            assert_eq!(plain.read_vec(0, 3), [round; 3]);
            plain.write(1, &[100]);
            assert_eq!(plain.read_vec(0, 3), [round, 100, round]);
            // As who dies in the middle of a commit leaves it.
            let next = plain.place(plain.commits() + 1);
            plain.shared().store_from(next, &[0xff; 16]);
            assert_eq!(plain.read_vec(0, 3), [round, 100, round]);
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Plain::<u64>::zeroed(usize::MAX).is_err() && Plain::<u8>::zeroed(usize::MAX).is_err());
        assert!(Plain::<u8>::zeroed(1 << 50).is_err());
    }
}
