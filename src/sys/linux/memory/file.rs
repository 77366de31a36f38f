//! Shared memory as a file: what is not mapped is reached by calls. Where there is no memory these fail; an
//! access to a mapping could only end the process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Whence, lseek};

use super::{file_offset, machine_memory};

/// Whether `len` bytes could be written that end at `end` of a file.
///
/// # Errors
/// `ENOMEM` if that is more than the machine has: the kernel would try, and kill for want of memory. `EFBIG` if
/// this process may not have files so long: to write would end it.
pub(crate) fn admits(end: usize, len: usize) -> io::Result<()> {
    if len as u64 > machine_memory() {
        return Err(Errno::ENOMEM.into());
    }
    match getrlimit(Resource::RLIMIT_FSIZE) {
        Ok((soft, _)) if soft < end as u64 => Err(Errno::EFBIG.into()),
        _ => Ok(()),
    }
}

/// Appends `len` bytes to `into`, from `offset` of the file on. After an error those that were read before it
/// are there.
///
/// # Errors
/// Also when there are no memory for them, or not so many in the file.
pub(crate) fn read_at(fd: BorrowedFd, offset: usize, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
    into.try_reserve_exact(len)?;
    let end = into.len() + len;
    let from = file_offset(offset)? - into.len() as i64;
    while into.len() < end {
        let left = end - into.len();
        let at = from + into.len() as i64;
        let room = into.spare_capacity_mut();
        // SAFETY: `room` is as long as `left` at least, and nobody else's.
        let read = unsafe { libc::pread(fd.as_raw_fd(), room.as_mut_ptr().cast(), left, at) };
        match Errno::result(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // SAFETY: the kernel has written so many bytes behind those that were there.
            Ok(n) => unsafe { into.set_len(into.len() + n as usize) },
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives the memory of a part of the file back: it reads as zeros from then on.
pub(crate) fn punch(fd: BorrowedFd, offset: usize, len: usize) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(fd, flags, file_offset(offset)?, file_offset(len)?) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Whether something was written to every page of a part of the file, and is there still.
pub(crate) fn is_written(fd: BorrowedFd, offset: usize, len: usize) -> io::Result<bool> {
    // It moves the position of the file, which nobody goes by.
    match lseek(fd, file_offset(offset)?, Whence::SeekHole) {
        Ok(hole) => Ok(hole >= file_offset(offset + len)?),
        // It ends before.
        Err(Errno::ENXIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::resource::setrlimit;

    use super::super::super::fd::poll_readable;
    use super::super::super::process::{Exit, Fork, exit_now, fork, pidfd_open, try_wait};
    use super::super::{sparse, write_all_at};
    use super::*;

    const PAGE: usize = 4096;

    #[test]
    fn what_was_written_is_read_until_it_is_punched() {
        let fd = sparse("test", 1 << 40, 0).unwrap();
        let (fd, at) = (fd.as_fd(), 1 << 39);
        let bytes: Vec<_> = (0..3 * PAGE).map(|i| i as u8 | 1).collect();
        let read = |at, len| {
            let mut into = b"before".to_vec();
            read_at(fd, at, len, &mut into).map(|()| into[6..].to_vec())
        };
        write_all_at(fd, at, &bytes).unwrap();
        assert_eq!(read(at, bytes.len()).unwrap(), bytes);
        assert_eq!(read(at + 5, 7).unwrap(), bytes[5..][..7]);
        assert!(is_written(fd, at, bytes.len()).unwrap() && is_written(fd, at + PAGE, 1).unwrap());
        assert!(!is_written(fd, at, bytes.len() + 1).unwrap() && !is_written(fd, at - 1, 2).unwrap());
        punch(fd, at + PAGE, 1 << 38).unwrap();
        assert!(is_written(fd, at, PAGE).unwrap() && !is_written(fd, at, PAGE + 1).unwrap());
        assert_eq!(read(at + PAGE, PAGE).unwrap(), [0; PAGE]);
        assert_eq!(read(at, PAGE).unwrap(), bytes[..PAGE]);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let fd = sparse("test", PAGE, 0).unwrap();
        let mut into = Vec::new();
        let error = read_at(fd.as_fd(), PAGE - 10, 20, &mut into).unwrap_err();
        assert_eq!((error.kind(), into.len()), (io::ErrorKind::UnexpectedEof, 10));
        assert!(!is_written(fd.as_fd(), PAGE, 1).unwrap());
        assert!(read_at(fd.as_fd(), 0, usize::MAX / 2, &mut into).is_err());
        assert!(admits(1 << 40, PAGE).is_ok());
        assert_eq!(admits(1 << 60, 1 << 50).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    }

    #[test]
    fn who_may_not_have_long_files_is_told_and_not_ended() {
        let fd = sparse("test", 1 << 40, 0).unwrap();
        let child = |act: fn(BorrowedFd) -> io::Result<()>| match fork().unwrap() {
            Fork::Child => {
                setrlimit(Resource::RLIMIT_FSIZE, 1 << 30, 1 << 30).unwrap();
                exit_now(act(fd.as_fd()).err().and_then(|error| error.raw_os_error()).unwrap_or(0))
            }
            Fork::Parent { pid } => {
                let child = pidfd_open(pid).unwrap();
                poll_readable(child.as_fd(), None).unwrap();
                try_wait(child.as_fd()).unwrap().unwrap()
            }
        };
        assert_eq!(child(|_| admits(1 << 30, 1)), Exit::Code(0));
        assert_eq!(child(|_| admits((1 << 30) + 1, 1)), Exit::Code(libc::EFBIG));
        assert!(matches!(child(|fd| write_all_at(fd, 1 << 30, b"x")), Exit::Signal { .. }));
    }
}
