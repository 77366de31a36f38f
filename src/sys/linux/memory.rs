//! Memory that processes share: sealed memfds and mappings of them.

use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::sys::stat::fstat;
use nix::sys::uio::pwrite;

mod file;
mod racing;

pub(crate) use file::{admits, is_written, punch, read_at};

/// Memory that can never become a program; nix lacks it.
const MFD_NOEXEC_SEAL: u32 = 8;

/// Anonymous memory of `len` bytes, all zero, close-on-exec and not sealed yet.
///
/// The name, at most 249 bytes, is only shown in `/proc`.
///
/// # Errors
/// `ENOSPC` or `ENOMEM` when there is no room: found out here, and not by a SIGBUS later. A length
/// that the machine has but cannot spare may wake its out-of-memory killer.
pub(crate) fn memfd(name: &str, len: usize) -> io::Result<OwnedFd> {
    let fd = growing(name, len)?;
    allocate(fd.as_fd(), len)?;
    Ok(fd)
}

/// As [`memfd`], but only its first `now` bytes have room found for them: [`allocate`] does it for more.
pub(crate) fn sparse(name: &str, len: usize, now: usize) -> io::Result<OwnedFd> {
    let fd = growing(name, now)?;
    nix::unistd::ftruncate(&fd, file_offset(len)?)?;
    allocate(fd.as_fd(), now)?;
    Ok(fd)
}

/// As [`memfd`], but it is empty, and grows as it is written to with [`write_all_at`]: that is where
/// errors come when there is no room. `len` is how much is going to be written.
///
/// # Errors
/// `ENOMEM` if that is more than the machine has: shared memory has no limit of its own, and the kernel
/// would try, and kill for want of memory.
pub(crate) fn growing(name: &str, len: usize) -> io::Result<OwnedFd> {
    if len as u64 > machine_memory() {
        return Err(Errno::ENOMEM.into());
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let noexec = flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL);
    let fd = match memfd_create(name, noexec) {
        // Kernels before 6.3 do not know it.
        Err(Errno::EINVAL) => memfd_create(name, flags),
        result => result,
    }?;
    Ok(fd)
}

/// Finds room for the first `len` bytes of a file in memory.
///
/// # Errors
/// As those of [`memfd`].
pub(crate) fn allocate(fd: BorrowedFd, len: usize) -> io::Result<()> {
    // The kernel takes no size for a mistake.
    let size = NonZeroUsize::new(len).map(|len| file_offset(len.get())).transpose()?;
    while let Some(size) = size {
        match fallocate(fd, FallocateFlags::empty(), 0, size) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
    Ok(())
}

/// All memory that this machine has, with swap, in bytes.
pub(super) fn machine_memory() -> u64 {
    let mut info = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: `info` is room for a `sysinfo`; the call fails for no other reason, and zeros, which
    // are valid, would only have everything refused.
    let info = unsafe {
        libc::sysinfo(info.as_mut_ptr());
        info.assume_init()
    };
    (info.totalram + info.totalswap) * u64::from(info.mem_unit)
}

/// Fixes the size for ever, and forbids further seals.
pub(crate) fn seal_fixed_size(fd: BorrowedFd) -> io::Result<()> {
    seal(fd, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)
}

/// How often to try to freeze memory of which the kernel itself holds pages for the moment, to move them
/// elsewhere for instance. It waits 150 ms for them, each time.
const FREEZES: usize = 5;

/// Fixes size and content for ever, and forbids further seals.
///
/// # Errors
/// `EBUSY` while a writable mapping exists.
pub(crate) fn seal_frozen(fd: BorrowedFd) -> io::Result<()> {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    let is_busy = |result: &io::Result<()>| matches!(result, Err(e) if e.raw_os_error() == Some(libc::EBUSY));
    let mut sealed = seal(fd, seals);
    for _ in 1..FREEZES {
        if !is_busy(&sealed) {
            break;
        }
        sealed = seal(fd, seals);
    }
    sealed
}

fn seal(fd: BorrowedFd, seals: SealFlag) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    Ok(())
}

/// Whether neither what is there nor that it is there can ever change again.
pub(crate) fn is_frozen(fd: BorrowedFd) -> bool {
    has_seals(fd, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE)
}

/// What is no memfd has no seals.
fn has_seals(fd: BorrowedFd, wanted: SealFlag) -> bool {
    fcntl(fd, FcntlArg::F_GET_SEALS).is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(wanted))
}

/// The length of a file in bytes.
pub(crate) fn len(fd: BorrowedFd) -> io::Result<usize> {
    let size = fstat(fd)?.st_size;
    usize::try_from(size).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Writes all of `bytes` from `offset` of the file on.
pub(crate) fn write_all_at(fd: BorrowedFd, offset: usize, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match pwrite(fd, &bytes[done..], file_offset(offset + done)?) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

pub(super) fn file_offset(n: usize) -> io::Result<i64> {
    i64::try_from(n).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// A shared mapping of a whole file, unmapped on drop; without any pages if the file is empty.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) start: NonNull<u8>,
    pub(super) len: usize,
}

// SAFETY: a range of addresses, which belongs to no thread; the two owners below rule on access.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The file must not shrink while the mapping lives, or access becomes a SIGBUS.
    pub(super) fn new(fd: BorrowedFd, protection: ProtFlags) -> io::Result<Self> {
        Self::first(fd, len(fd)?, protection)
    }

    /// As [`new`](Self::new), the first `len` bytes, which it has to have.
    fn first(fd: BorrowedFd, len: usize, protection: ProtFlags) -> io::Result<Self> {
        let start = match NonZeroUsize::new(len) {
            None => NonNull::dangling(),
            Some(size) => {
                // SAFETY: the kernel chooses the address, so no other mapping is replaced.
                unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, fd, 0) }?.cast()
            }
        };
        Ok(Mapping { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `new` with this length, and no reference outlives its owner.
            let _ = unsafe { munmap(self.start.cast(), self.len) };
        }
    }
}

/// Memory of fixed size that several processes read and write at the same time.
///
/// No reference to its plain bytes ever exists: they are copied in and out, and the words that
/// synchronise are atomics.
#[derive(Debug)]
pub(crate) struct Shared {
    start: NonNull<u8>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: a range of addresses, which belongs to no thread; access is copies and atomics.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps a memfd for reading and writing.
    ///
    /// # Errors
    /// `InvalidInput` if it could still shrink, which would be fatal to who touches it then;
    /// `EPERM` if it is frozen.
    pub(crate) fn map(fd: BorrowedFd) -> io::Result<Self> {
        Self::map_first(fd, len(fd)?)
    }

    /// As [`map`](Self::map), its first `first` bytes alone.
    ///
    /// # Errors
    /// Also `InvalidInput` if it has fewer.
    pub(crate) fn map_first(fd: BorrowedFd, first: usize) -> io::Result<Self> {
        if !has_seals(fd, SealFlag::F_SEAL_SHRINK) || len(fd)? < first {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mapping = Mapping::first(fd, first, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        Ok(Shared { start: mapping.start, len: mapping.len, _mapping: Arc::new(mapping) })
    }

    /// The same memory from `offset` on.
    ///
    /// # Panics
    /// If it ends before that.
    pub(crate) fn tail_from(&self, offset: usize) -> Self {
        let start = self.range(offset, 0);
        Self { start, len: self.len - offset, _mapping: self._mapping.clone() }
    }

    /// How long it is, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends a copy of `len` bytes to `into`. Bytes that somebody is just writing may come mixed of
    /// old and new.
    pub(crate) fn append_to(&self, offset: usize, len: usize, into: &mut Vec<u8>) {
        let from = self.range(offset, len);
        into.reserve(len);
        let spare = into.spare_capacity_mut();
        // A plain copy, since one by atomic words would not be vectorised. A racing peer can be
        // another process only or breaks its protocol; all that the copy yields is bytes.
        // SAFETY: `from` has `len` mapped bytes; `spare` has room for as many, cannot overlap memory
        // to which no reference exists, and is initialised before the length says so.
        unsafe {
            from.as_ptr().copy_to_nonoverlapping(spare.as_mut_ptr().cast(), len);
            into.set_len(into.len() + len);
        }
    }

    /// Copies in. Who reads at the same time may see old and new bytes mixed.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.range(offset, bytes.len());
        // SAFETY: as in `append_to`, with the parts exchanged.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    /// A word in the memory.
    ///
    /// # Panics
    /// Also if the offset is not a multiple of 8.
    #[inline]
    pub(crate) fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        let word = self.range(offset, size_of::<AtomicU64>()).cast();
        assert!(word.is_aligned(), "offset {offset} is not a multiple of 8");
        // SAFETY: mapped and writable as long as `self` lives, aligned, and any bits are a value.
        unsafe { word.as_ref() }
    }

    fn range(&self, offset: usize, len: usize) -> NonNull<u8> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits, "{len} bytes at {offset} are not within {}", self.len);
        // SAFETY: within the mapping, as just checked.
        unsafe { self.start.add(offset) }
    }
}

/// Memory whose content no process can ever change: it can be borrowed like any other.
#[derive(Debug)]
pub(crate) struct Frozen(Mapping);

impl Frozen {
    /// A memfd with these bytes and no others, for ever.
    pub(crate) fn create(bytes: &[u8]) -> io::Result<OwnedFd> {
        let fd = memfd("tokio-multiprocess-blob", bytes.len())?;
        write_all_at(fd.as_fd(), 0, bytes)?;
        seal_frozen(fd.as_fd())?;
        Ok(fd)
    }

    /// Maps a frozen memfd for reading.
    ///
    /// # Errors
    /// `InvalidInput` unless [`is_frozen`].
    pub(crate) fn map(fd: BorrowedFd) -> io::Result<Self> {
        if !is_frozen(fd) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Frozen(Mapping::new(fd, ProtFlags::PROT_READ)?))
    }
}

impl Deref for Frozen {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped as long as `self` lives (or none, at an aligned address).
        // The kernel has seen to it that nobody can write or remove them.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A word that is zero again in every copy of this process, whoever forked it.
#[derive(Debug)]
pub(crate) struct WipedOnFork(&'static AtomicU64);

impl WipedOnFork {
    /// Takes one page, which is never given back.
    ///
    /// # Panics
    /// When there is no memory, or the kernel is older than 4.14.
    pub(crate) fn new() -> Self {
        let page = NonZeroUsize::new(4096).expect("is not zero");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so no other mapping is replaced.
        let start = unsafe { mmap_anonymous(None, page, protection, MapFlags::MAP_PRIVATE) }
            .expect("a page of memory is there");
        // SAFETY: the page is ours alone, and acts on copies of this process only.
        unsafe { madvise(start, page.get(), MmapAdvise::MADV_WIPEONFORK) }
            .expect("the kernel can wipe a page on fork");
        // SAFETY: aligned, zeroed, and mapped for ever.
        WipedOnFork(unsafe { start.cast().as_ref() })
    }

    /// The word.
    pub(crate) fn atomic(&self) -> &'static AtomicU64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::process::{Exit, Fork, exit_now, fork, pidfd_open, try_wait};
    use super::*;

    fn fixed(len: usize) -> OwnedFd {
        let fd = memfd("test", len).unwrap();
        seal_fixed_size(fd.as_fd()).unwrap();
        fd
    }

    fn frozen(bytes: &[u8]) -> OwnedFd {
        let fd = memfd("test", bytes.len()).unwrap();
        write_all_at(fd.as_fd(), 0, bytes).unwrap();
        seal_frozen(fd.as_fd()).unwrap();
        fd
    }

    fn panics(f: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(f).is_err()
    }

    #[test]
    fn a_fixed_size_is_fixed() {
        let fd = memfd("test", 100).unwrap();
        assert_eq!(len(fd.as_fd()).unwrap(), 100);
        assert!(Shared::map(fd.as_fd()).is_err());
        seal_fixed_size(fd.as_fd()).unwrap();
        assert!(!is_frozen(fd.as_fd()));
        assert!(seal_frozen(fd.as_fd()).is_err());
        let file = File::from(fd);
        assert!(file.set_len(99).is_err() && file.set_len(101).is_err());
    }

    #[test]
    fn frozen_memory_is_readable_and_nothing_else() {
        let fd = frozen(b"content");
        assert!(is_frozen(fd.as_fd()));
        let map = Frozen::map(fd.as_fd()).unwrap();
        assert_eq!(&*map, b"content");
        assert!(write_all_at(fd.as_fd(), 0, b"x").is_err());
        assert!(Shared::map(fd.as_fd()).is_err());
        drop(fd);
        assert_eq!(&*map, b"content");
        assert!(Frozen::map(fixed(8).as_fd()).is_err());
    }

    #[test]
    fn memory_that_is_mapped_for_writing_cannot_be_frozen() {
        let fd = memfd("test", 8).unwrap();
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        let map = Shared::map(fd.as_fd()).unwrap();
        let error = seal_frozen(fd.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        drop(map);
        seal_frozen(fd.as_fd()).unwrap();
    }

    /// The seal against future writers leaves those alone who have a mapping.
    #[test]
    fn memory_that_one_can_still_write_is_not_frozen() {
        const F_SEAL_FUTURE_WRITE: i32 = 16;
        let fd = fixed_with(8, SealFlag::from_bits_retain(F_SEAL_FUTURE_WRITE));
        assert!(!is_frozen(fd.as_fd()) && Frozen::map(fd.as_fd()).is_err());
    }

    fn fixed_with(len: usize, seals: SealFlag) -> OwnedFd {
        let fd = memfd("test", len).unwrap();
        seal(fd.as_fd(), SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | seals).unwrap();
        fd
    }

    #[test]
    fn no_bytes_are_fine() {
        assert!(Frozen::map(frozen(b"").as_fd()).unwrap().is_empty());
        let shared = Shared::map(fixed(0).as_fd()).unwrap();
        shared.append_to(0, 0, &mut Vec::new());
        shared.write(0, &[]);
    }

    #[test]
    fn what_is_no_memfd_is_neither() {
        let file = File::open("/proc/self/exe").unwrap();
        assert!(!is_frozen(file.as_fd()));
    }

    #[test]
    fn files_are_written_and_read_whole() {
        let content: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let fd = frozen(&content);
        assert_eq!(&*Frozen::map(fd.as_fd()).unwrap(), content);
    }

    #[test]
    fn more_than_there_is_cannot_be_had() {
        assert!(memfd("test", 1 << 60).is_err());
        assert!(memfd("test", usize::MAX).is_err() && growing("test", usize::MAX).is_err());
    }

    #[test]
    fn two_mappings_are_one_memory() {
        let fd = fixed(64);
        let (a, b) = (Shared::map(fd.as_fd()).unwrap(), Shared::map(fd.as_fd()).unwrap());
        a.write(3, b"hello");
        let mut bytes = b">".to_vec();
        b.append_to(3, 5, &mut bytes);
        assert_eq!(bytes, b">hello");
        a.atomic_u64(56).store(u64::MAX, SeqCst);
        b.append_to(62, 2, &mut bytes);
        assert_eq!(bytes, b">hello\xff\xff");
    }

    #[test]
    fn access_outside_panics() {
        let map = Shared::map(fixed(64).as_fd()).unwrap();
        assert!(panics(|| map.write(60, b"12345")));
        assert!(panics(|| map.append_to(usize::MAX, 2, &mut Vec::new())));
        assert!(panics(|| map.append_to(0, 65, &mut Vec::new())));
        assert!(panics(|| _ = map.atomic_u64(64)));
        assert!(panics(|| _ = map.atomic_u64(4)));
        map.write(64, b"");
    }

    #[test]
    fn a_copy_of_the_process_starts_from_zero() {
        let word = WipedOnFork::new();
        word.atomic().store(5, SeqCst);
        let child = match fork().unwrap() {
            Fork::Parent { pid } => pidfd_open(pid).unwrap(),
            Fork::Child => exit_now(word.atomic().load(SeqCst) as i32),
        };
        super::super::fd::poll_readable(child.as_fd(), None).unwrap();
        assert_eq!(try_wait(child.as_fd()).unwrap(), Some(Exit::Code(0)));
        assert_eq!(word.atomic().load(SeqCst), 5);
    }
}
