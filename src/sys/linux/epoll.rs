//! Many descriptors that are waited for as one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// How many descriptors or events one system call handles.
const BATCH: usize = 64;

/// A set of descriptors in the kernel, each of which reports once and is then silent until it is
/// armed again. It is itself a descriptor, readable while one of them has something to report.
///
/// It keeps no file open. The kernel knows an entry by the open file *and* the number that it had
/// when it was entered: an entry leaves when the last duplicate of that open file is closed,
/// wherever that is, and cannot be reached once another file has the number. It can report once
/// more then, under its old token.
#[derive(Debug)]
pub(crate) struct Epoll(nix::sys::epoll::Epoll);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(nix::sys::epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Enters a descriptor, armed; one that is in there already gets the new token. False if it is of
    /// a kind that never has to be waited for, such as a regular file.
    pub(crate) fn insert(&self, fd: BorrowedFd, token: u64) -> io::Result<bool> {
        match self.0.add(fd, EpollEvent::new(ARMED, token)) {
            Ok(()) => Ok(true),
            Err(Errno::EPERM) => Ok(false),
            Err(Errno::EEXIST) if self.arm(fd.as_raw_fd(), token) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// Has a descriptor report (again). False if what is open at that number now, if anything, is not
    /// the file that was entered with it.
    pub(crate) fn arm(&self, fd: RawFd, token: u64) -> bool {
        self.control(libc::EPOLL_CTL_MOD, fd, EpollEvent::new(ARMED, token)).is_ok()
    }

    /// Whether the file that was entered with this number is still open there, for one that has
    /// reported and is silent; it stays so.
    pub(crate) fn is_there(&self, fd: RawFd, token: u64) -> bool {
        let silent = EpollEvent::new(EpollFlags::EPOLLONESHOT, token);
        self.control(libc::EPOLL_CTL_MOD, fd, silent).is_ok()
    }

    /// Takes a descriptor out, if it is (still) in there.
    pub(crate) fn remove(&self, fd: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, EpollEvent::empty());
    }

    /// nix wants to see that the number is open, and to find that out is what this is for.
    fn control(&self, operation: libc::c_int, fd: RawFd, event: EpollEvent) -> nix::Result<()> {
        let mut event = libc::epoll_event { events: event.events().bits() as u32, u64: event.data() };
        // SAFETY: the kernel reads `event`, which outlives the call, and compares the number with its
        // entries; nothing is done to the file that is open there.
        let result = unsafe { libc::epoll_ctl(self.0.0.as_raw_fd(), operation, fd, &raw mut event) };
        Errno::result(result).map(drop)
    }

    /// The tokens of up to `most` descriptors that are readable, hung up or in error, without waiting.
    /// They are silent from now on. Those that have waited longest come first.
    pub(crate) fn take(&self, most: usize) -> io::Result<Vec<u64>> {
        let mut tokens = Vec::new();
        let mut events = [EpollEvent::empty(); BATCH];
        while tokens.len() < most {
            let room = BATCH.min(most - tokens.len());
            let count = match self.0.wait(&mut events[..room], EpollTimeout::ZERO) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            tokens.extend(events[..count].iter().map(EpollEvent::data));
            if count < room {
                break;
            }
        }
        Ok(tokens)
    }
}

const ARMED: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLONESHOT);

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// Which of `fds` are readable, hung up or in error, without waiting.
///
/// # Errors
/// `EBADF` when one of them is not open.
pub(crate) fn which_readable(fds: &[BorrowedFd]) -> io::Result<Vec<bool>> {
    let mut readable = Vec::with_capacity(fds.len());
    // The kernel takes no more at once than this process may have open.
    for chunk in fds.chunks(BATCH) {
        let mut polled: Vec<_> = chunk.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        while let Err(e) = poll(&mut polled, PollTimeout::ZERO) {
            if e != Errno::EINTR {
                return Err(e.into());
            }
        }
        for fd in polled {
            let events = fd.revents().unwrap_or(PollFlags::POLLERR);
            if events.contains(PollFlags::POLLNVAL) {
                return Err(Errno::EBADF.into());
            }
            readable.push(!events.is_empty());
        }
    }
    Ok(readable)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn an_entry_reports_once_each_time_it_is_armed() {
        let epoll = Epoll::new().unwrap();
        let (mut reads, mut writes) = UnixStream::pair().unwrap();
        assert!(epoll.insert(reads.as_fd(), 7).unwrap());
        assert!(epoll.take(9).unwrap().is_empty());
        writes.write_all(b"x").unwrap();
        assert_eq!(epoll.take(9).unwrap(), [7]);
        assert!(epoll.is_there(reads.as_raw_fd(), 7));
        assert!(epoll.take(9).unwrap().is_empty());
        assert!(epoll.arm(reads.as_raw_fd(), 8));
        assert_eq!(epoll.take(9).unwrap(), [8]);
        reads.read_exact(&mut [0]).unwrap();
        assert!(epoll.arm(reads.as_raw_fd(), 8));
        assert!(epoll.take(9).unwrap().is_empty());
        drop(writes);
        assert_eq!(epoll.take(9).unwrap(), [8]);
    }

    #[test]
    fn a_number_that_another_file_has_taken_is_another_entry() {
        let epoll = Epoll::new().unwrap();
        let (reads, mut writes) = UnixStream::pair().unwrap();
        let (other, _end) = UnixStream::pair().unwrap();
        // Held somewhere else, so that the entry stays when the number goes.
        let held = reads.try_clone().unwrap();
        assert!(epoll.insert(reads.as_fd(), 1).unwrap());
        let number = reads.as_raw_fd();
        super::super::fd::dup2_onto(other.try_clone().unwrap().into(), number).unwrap();
        assert!(!epoll.arm(number, 2) && !epoll.is_there(number, 2));
        assert!(epoll.insert(reads.as_fd(), 3).unwrap());
        writes.write_all(b"x").unwrap();
        assert_eq!(epoll.take(9).unwrap(), [1]);
        drop((reads, held));
        assert!(!epoll.arm(number, 3));
    }

    #[test]
    fn more_than_a_batch_is_told_in_turn() {
        let epoll = Epoll::new().unwrap();
        let ends: Vec<_> = (0..BATCH + 10).map(|_| UnixStream::pair().unwrap().0).collect();
        for (end, token) in ends.iter().zip(0..) {
            epoll.insert(end.as_fd(), token).unwrap();
        }
        let mut seen = epoll.take(BATCH + 5).unwrap();
        assert_eq!(seen.len(), BATCH + 5);
        seen.extend(epoll.take(usize::MAX).unwrap());
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..ends.len() as u64));
    }

    #[test]
    fn what_needs_no_waiting_is_not_entered() {
        let epoll = Epoll::new().unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(!epoll.insert(file.as_fd(), 1).unwrap());
        assert_eq!(which_readable(&[file.as_fd()]).unwrap(), [true]);
    }

    #[test]
    fn readable_ones_are_told_apart_in_any_number() {
        let (idle, _kept) = UnixStream::pair().unwrap();
        let (ended, _) = UnixStream::pair().unwrap();
        let mut fds = vec![idle.as_fd(); 10_000];
        fds[3] = ended.as_fd();
        fds[9_999] = ended.as_fd();
        let readable = which_readable(&fds).unwrap();
        let indexes = readable.iter().enumerate().filter(|(_, ready)| **ready);
        assert!(indexes.map(|(index, _)| index).eq([3, 9_999]));
    }
}
