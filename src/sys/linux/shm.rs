//! Shared memory with names: files in `/dev/shm`, where POSIX's functions have them on Linux.
//!
//! Anybody who may open such a file may shrink it at any time, and no seal forbids that: so what is here
//! reads and writes through the descriptor, which gives errors where a mapping gives a SIGBUS.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::mman::ProtFlags;
use nix::sys::stat::{Mode, SFlag, fstat, lstat};
use nix::sys::uio::pread;
use nix::unistd::{linkat, unlink as unlink_file};

use super::memory::{Mapping, allocate, file_offset, machine_memory};

const DIRECTORY: &str = "/dev/shm";

fn path(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(name)
}

/// Memory of `size` bytes, which must not be none, all zero, for this user alone, close-on-exec and
/// without a name: it is gone with its last descriptor, unless [`link`] gives it one.
///
/// # Errors
/// `ENOSPC` or `ENOMEM` when there is no room: found out here, and not later by who uses it.
pub(crate) fn unnamed(size: usize) -> io::Result<OwnedFd> {
    if size as u64 > machine_memory() {
        return Err(Errno::ENOMEM.into());
    }
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let fd = match open(DIRECTORY, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        // It would be taken for what is said of a name.
        Err(Errno::ENOENT) => return Err(io::Error::other("there is no /dev/shm for shared memory")),
        result => result?,
    };
    allocate(fd.as_fd(), size)?;
    Ok(fd)
}

/// Gives memory a name by which others can open it.
///
/// # Errors
/// `EEXIST` if something has that name.
pub(crate) fn link(fd: BorrowedFd, name: &str) -> io::Result<()> {
    let (target, file) = (path(name), format!("/proc/self/fd/{}", fd.as_raw_fd()));
    match linkat(AT_FDCWD, file.as_str(), AT_FDCWD, &target, AtFlags::AT_SYMLINK_FOLLOW) {
        // Without `/proc`, which takes a privilege on older kernels.
        Err(Errno::ENOENT) => Ok(linkat(fd, "", AT_FDCWD, &target, AtFlags::AT_EMPTY_PATH)?),
        result => Ok(result?),
    }
}

/// Opens what has this name, for reading and writing.
///
/// # Errors
/// `ENOENT`; `InvalidInput` if it is no plain file.
pub(crate) fn open_named(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = loop {
        match open(&path(name), flags, Mode::empty()) {
            // While somebody holds a lease of it.
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode & SFlag::S_IFMT.bits());
    if kind != SFlag::S_IFREG {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no shared memory"));
    }
    Ok(fd)
}

/// What tells the object that has this name now from others, as [`identity`](super::fd::identity) does.
pub(crate) fn identity_of(name: &str) -> io::Result<(u64, u64)> {
    let stat = lstat(&path(name))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Takes a name away. Who has the object open keeps it.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    Ok(unlink_file(&path(name))?)
}

/// Whether anybody has this object open or mapped by another descriptor than this one; if not, who opens
/// it from now on waits until this one is closed.
///
/// # Errors
/// Where it cannot be told: who asks must be the owner of the file.
pub(crate) fn is_open_elsewhere(fd: BorrowedFd) -> io::Result<bool> {
    // The kernel gives a lease for writing to nobody but the only one who has the file open.
    // SAFETY: the command, which nix lacks, takes one integer.
    match Errno::result(unsafe {
        libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK as libc::c_int)
    }) {
        Ok(_) => Ok(false),
        Err(Errno::EAGAIN) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Fills `into` from `offset` of the file on.
///
/// # Errors
/// `UnexpectedEof` if the file ends before that.
pub(crate) fn read_exact_at(fd: BorrowedFd, offset: usize, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        match pread(fd, &mut into[done..], file_offset(offset + done)?) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A mapping of memory that may shrink at any time: it gives its address, and no access.
#[derive(Debug)]
pub(crate) struct Unsealed(Mapping);

impl Unsealed {
    pub(crate) fn map(fd: BorrowedFd) -> io::Result<Self> {
        Ok(Self(Mapping::new(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?))
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.0.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len
    }
}

#[cfg(test)]
mod tests {
    use super::super::fd::identity;
    use super::super::memory::{len, write_all_at};
    use super::*;

    /// A name that no other test has.
    fn fresh(what: &str) -> String {
        format!("tokio-multiprocess-test-{}-{what}", std::process::id())
    }

    #[test]
    fn memory_has_its_size_before_it_has_a_name() {
        let name = fresh("named");
        let fd = unnamed(100).unwrap();
        assert_eq!(open_named(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
        link(fd.as_fd(), &name).unwrap();
        let again = link(fd.as_fd(), &name).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let other = open_named(&name).unwrap();
        assert_eq!(len(other.as_fd()).unwrap(), 100);
        assert_eq!(identity(other.as_fd()).unwrap(), identity_of(&name).unwrap());
        write_all_at(fd.as_fd(), 98, b"ab").unwrap();
        let mut bytes = [1; 3];
        read_exact_at(other.as_fd(), 97, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0ab");
        let short = read_exact_at(other.as_fd(), 98, &mut bytes).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        unlink(&name).unwrap();
        assert_eq!(unlink(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_open_or_mapped_elsewhere_is_known() {
        let name = fresh("leased");
        link(unnamed(100).unwrap().as_fd(), &name).unwrap();
        let here = open_named(&name).unwrap();
        let there = open_named(&name).unwrap();
        assert!(is_open_elsewhere(here.as_fd()).unwrap());
        let mapped = Unsealed::map(there.as_fd()).unwrap();
        drop(there);
        assert!(is_open_elsewhere(here.as_fd()).unwrap());
        drop(mapped);
        assert!(!is_open_elsewhere(here.as_fd()).unwrap());
        unlink(&name).unwrap();
    }

    #[test]
    fn too_much_is_an_error() {
        for size in [usize::MAX, 1 << 50] {
            assert!(unnamed(size).is_err());
        }
    }
}
