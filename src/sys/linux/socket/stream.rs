//! Byte streams, read and written without blocking and without `O_NONBLOCK`: that flag belongs to the open
//! file, which other processes may share.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::time::TimeSpec;
use nix::sys::uio::writev;

use super::{CONTROL_LEN, Control, MAX_FDS, Received, take_fds};

/// What can be written to a pipe that has room at all.
const PIECE: usize = 4096;

/// How a descriptor carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A Unix socket of packets.
    Packets,
    /// A Unix socket of bytes, beside which descriptors travel.
    Unix,
    /// Any other socket of bytes.
    Socket,
    /// A pipe or a terminal, for which no call says that it must not block: so it is asked first.
    File,
}

/// What kind of stream a descriptor is.
///
/// # Errors
/// `InvalidInput` for what cannot be waited for, or does not keep the order of what is sent.
pub(crate) fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let unfit = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    match (option(fd, libc::SO_DOMAIN), option(fd, libc::SO_TYPE)) {
        (Ok(libc::AF_UNIX), Ok(libc::SOCK_SEQPACKET)) => Ok(Kind::Packets),
        (Ok(libc::AF_UNIX), Ok(libc::SOCK_STREAM)) => Ok(Kind::Unix),
        (Ok(_), Ok(libc::SOCK_STREAM)) => Ok(Kind::Socket),
        (Ok(_), Ok(_)) => unfit("a socket that is neither of bytes nor of packets cannot be a connection"),
        (Err(Errno::ENOTSOCK), _) => {
            let format = SFlag::from_bits_truncate(fstat(fd)?.st_mode & SFlag::S_IFMT.bits());
            if format == SFlag::S_IFIFO || format == SFlag::S_IFCHR {
                Ok(Kind::File)
            } else {
                unfit("only a socket, a pipe or a terminal can be a connection")
            }
        }
        (Err(error), _) | (_, Err(error)) => Err(error.into()),
    }
}

/// Whether a descriptor is open for reading, and for writing.
pub(crate) fn directions(fd: BorrowedFd<'_>) -> io::Result<(bool, bool)> {
    let mode = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
    Ok((mode != OFlag::O_WRONLY, mode != OFlag::O_RDONLY))
}

fn option(fd: BorrowedFd<'_>, name: libc::c_int) -> Result<libc::c_int, Errno> {
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is room for the answer and `len` says how much; the descriptor is open.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len)
    };
    Errno::result(result).map(|_| value)
}

/// Appends what is there to `into`, at most `most` bytes, and the descriptors beside it to `fds`;
/// without that, the kernel closes them, and none takes a number here. None of the memory is touched
/// but where bytes came. No bytes are the end.
///
/// # Errors
/// `WouldBlock` if nothing is there.
pub(crate) fn read(
    fd: BorrowedFd<'_>,
    kind: Kind,
    into: &mut Vec<u8>,
    most: usize,
    mut fds: Option<&mut Vec<OwnedFd>>,
) -> io::Result<Received> {
    if kind == Kind::File && !is_ready(fd, PollFlags::POLLIN)? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    loop {
        let result = match kind {
            Kind::File => read_append(fd, into, most),
            Kind::Socket => recv_append(fd, into, most, None, 0),
            _ => recv_append(fd, into, most, fds.as_deref_mut(), 0),
        };
        match result {
            Err(Errno::EINTR) => {}
            // A Unix socket says once that its peer left without having read all. What that has sent
            // before is still there, and then the end.
            Err(Errno::ECONNRESET) if kind == Kind::Unix => {}
            result => return Ok(result?),
        }
    }
}

/// As [`read`], but if there is no room for a descriptor that is beside what is there, then all of it
/// stays where it is, and the error says `EMFILE`.
pub(crate) fn read_if_room(
    fd: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    most: usize,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let (len, count) = (into.len(), fds.len());
    let peeked = loop {
        match recv_append(fd, into, most, Some(&mut *fds), libc::MSG_PEEK) {
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            result => break result?,
        }
    };
    into.truncate(len);
    if peeked.fds_truncated {
        fds.truncate(count);
        return Err(Errno::EMFILE.into());
    }
    if peeked.len == 0 {
        return Ok(peeked);
    }
    // The descriptors are here already: without room for them, the kernel closes the ones on their way.
    loop {
        match recv_append(fd, into, peeked.len, None, 0) {
            Err(Errno::EINTR) => {}
            result => {
                result?;
                return Ok(peeked);
            }
        }
    }
}

fn read_append(fd: BorrowedFd<'_>, into: &mut Vec<u8>, most: usize) -> Result<Received, Errno> {
    into.reserve_exact(most);
    let room = &mut into.spare_capacity_mut()[..most];
    // SAFETY: `room` may be written for its whole length.
    let result = unsafe { libc::read(fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
    let len = Errno::result(result)? as usize;
    // SAFETY: the kernel has just written so many bytes behind those that were there.
    unsafe { into.set_len(into.len() + len) };
    Ok(Received { len, truncated: false, fds_truncated: false })
}

/// Without `fds`, descriptors that are beside the bytes are closed.
fn recv_append(
    fd: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    most: usize,
    fds: Option<&mut Vec<OwnedFd>>,
    flags: libc::c_int,
) -> Result<Received, Errno> {
    into.reserve_exact(most);
    let room = &mut into.spare_capacity_mut()[..most];
    let mut iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let mut control = Control([MaybeUninit::uninit(); CONTROL_LEN]);
    // SAFETY: all-zero is a valid `msghdr`; some libcs have private padding in it.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    if fds.is_some() {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_LEN as _;
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `header` points to `iov` (all of `room`) and to `control` or nothing, with their true
    // lengths, and both live past the call.
    let result = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, flags) };
    let len = Errno::result(result)? as usize;
    if let Some(fds) = fds {
        // SAFETY: `recvmsg` has just filled `header` and the control buffer that it points to.
        unsafe { take_fds(&header, fds) };
    }
    // SAFETY: the kernel has just written so many bytes behind those that were there.
    unsafe { into.set_len(into.len() + len) };
    Ok(Received { len, truncated: false, fds_truncated: header.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Writes as much of the parts, one after the other, as there is room for, and says how much that was.
/// Duplicates of `fds` go beside the first byte.
///
/// # Errors
/// `WouldBlock` if there is no room; `InvalidInput` for descriptors that cannot travel this way.
pub(crate) fn write(
    fd: BorrowedFd<'_>,
    kind: Kind,
    parts: [&[u8]; 2],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if fds.len() > MAX_FDS || (kind != Kind::Unix && !fds.is_empty()) {
        let what = "handles travel over Unix sockets only";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    if kind == Kind::File && !is_ready(fd, PollFlags::POLLOUT)? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        let result = match (kind, parts) {
            (Kind::File, [first, second]) => {
                let first = &first[..first.len().min(PIECE)];
                let second = &second[..second.len().min(PIECE - first.len())];
                writev(fd, &[IoSlice::new(first), IoSlice::new(second)])
            }
            (_, [all, []]) if fds.is_empty() => nix::sys::socket::send(fd.as_raw_fd(), all, flags),
            (_, parts) => {
                let beside = if raw.is_empty() { &[][..] } else { &rights };
                sendmsg::<()>(fd.as_raw_fd(), &parts.map(IoSlice::new), beside, flags, None)
            }
        };
        match result {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Whether it is ready now, or in an error.
fn is_ready(fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<bool> {
    loop {
        match ppoll(&mut [PollFd::new(fd, what)], Some(TimeSpec::new(0, 0)), None) {
            Err(Errno::EINTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Blocks the thread until there is room in one of `fds` or it is in an error, the doorbell was rung,
/// which is then taken, or time is up. Says which of `fds` to look at.
pub(crate) fn wait_writable(
    fds: &[BorrowedFd<'_>],
    bell: BorrowedFd<'_>,
    time: Option<Duration>,
) -> Vec<bool> {
    let writers = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLOUT));
    let mut polled: Vec<_> = [PollFd::new(bell, PollFlags::POLLIN)].into_iter().chain(writers).collect();
    let time = time.map(TimeSpec::from_duration);
    while ppoll(&mut polled, time, None) == Err(Errno::EINTR) {}
    let _ = nix::unistd::read(bell.as_fd(), &mut [0; 8]);
    polled[1..].iter().map(|polled| polled.any().unwrap_or(true)).collect()
}
