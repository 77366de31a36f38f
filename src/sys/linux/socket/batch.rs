//! Several waiting messages for one system call.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{CONTROL_LEN, Control, skip, take_fds};
use crate::sys::fd::exhausted;

/// How many messages are received at a time, at most: twice as many would gain nothing more.
pub(crate) const BATCH: usize = 16;

/// How long a message may be, in bytes.
const SLOT: usize = (64 << 10) + 512;

/// One received message.
#[derive(Debug)]
pub(crate) struct Datagram<'a> {
    /// Nothing: the peer is gone.
    pub(crate) bytes: &'a [u8],
    /// Close-on-exec.
    pub(crate) fds: Vec<OwnedFd>,
    /// It was longer than [`SLOT`], and its rest is lost.
    pub(crate) truncated: bool,
    /// Descriptors that came with it are lost: this process is at its limit, and another one has taken the
    /// message that was looked at.
    pub(crate) fds_truncated: bool,
}

/// Where messages arrive, once in each thread that receives some. Pages that none has reached cost
/// nothing.
struct Scratch {
    bytes: Vec<u8>,
    /// Of the first message: of any other it is only told that it has descriptors.
    control: Control,
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
}

thread_local! {
    static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// Makes the messages of a socket visible one after another, as [`recv_ahead`] needs it. False where that
/// cannot be had.
pub(crate) fn look_ahead(fd: BorrowedFd) -> bool {
    // Who says yes to any option may know none.
    set_peek_offset(fd, 0).is_ok() && peek_offset(fd).is_ok_and(|offset| offset == 0)
}

/// Makes only the next message of a socket visible, as [`recv_next`] needs it, whatever [`look_ahead`] did.
pub(crate) fn look_at_next(fd: BorrowedFd) -> io::Result<()> {
    match peek_offset(fd) {
        Ok(0..) => set_peek_offset(fd, -1),
        _ => Ok(()),
    }
}

/// Receives the messages that are there, at most `most` (and [`BATCH`]) of them, without blocking, and
/// gives each to `take`. Says how many there were, and whether there may be more now.
///
/// Descriptors are lost of any message but the first, and at the limit of this process, too.
///
/// # Errors
/// `WouldBlock` if there is none.
pub(crate) fn recv_unseen(
    fd: BorrowedFd,
    most: usize,
    mut take: impl FnMut(Datagram<'_>),
) -> io::Result<(usize, bool)> {
    with_scratch(|scratch| {
        let most = most.min(BATCH);
        let (count, mut fds) = scratch.receive(fd, most, 0)?;
        for i in 0..count {
            take(scratch.datagram(i, std::mem::take(&mut fds)));
        }
        Ok((count, count == most))
    })
}

/// As [`recv_unseen`], but no descriptors are lost. Only the first of the messages may have descriptors:
/// one further on stays in the socket, where it can wait for room.
///
/// Nobody else receives from this socket, and it was told to [`look_ahead`].
///
/// # Errors
/// `WouldBlock` if there is none; `EMFILE` if the first one's descriptors do not fit below the limit.
/// Nothing is lost then.
pub(crate) fn recv_ahead(
    fd: BorrowedFd,
    most: usize,
    mut take: impl FnMut(Datagram<'_>),
) -> io::Result<(usize, bool)> {
    with_scratch(|scratch| {
        let most = most.min(BATCH);
        let (count, mut fds) = scratch.receive(fd, most, libc::MSG_PEEK)?;
        let mut run = 0;
        while run < count && !scratch.has_flag(run, libc::MSG_CTRUNC) {
            run += 1;
            // What comes after the beginning of a message that is too long is its rest.
            if scratch.has_flag(run - 1, libc::MSG_TRUNC) {
                break;
            }
        }
        if run < count {
            set_peek_offset(fd, 0)?;
        }
        if run == 0 {
            return Err(exhausted());
        }
        discard(fd, run)?;
        for i in 0..run {
            take(scratch.datagram(i, std::mem::take(&mut fds)));
        }
        Ok((run, run < count || count == most))
    })
}

/// Receives the next message from a socket that others receive from as well, and gives it to `take`.
///
/// # Errors
/// As those of [`recv_ahead`].
pub(crate) fn recv_next(fd: BorrowedFd, take: impl FnOnce(Datagram<'_>)) -> io::Result<()> {
    with_scratch(|scratch| {
        scratch.receive(fd, 1, libc::MSG_PEEK)?;
        if scratch.has_flag(0, libc::MSG_CTRUNC) {
            return Err(exhausted());
        }
        // What was seen may be somebody else's by now.
        let (_, fds) = scratch.receive(fd, 1, 0)?;
        take(scratch.datagram(0, fds));
        Ok(())
    })
}

fn with_scratch<T>(f: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        f(scratch.get_or_insert_with(|| Scratch {
            bytes: vec![0; SLOT * BATCH],
            control: Control([MaybeUninit::uninit(); CONTROL_LEN]),
            headers: blank().to_vec(),
            // SAFETY: all-zero is a valid `iovec`.
            iovecs: vec![unsafe { std::mem::zeroed() }; BATCH],
        }))
    })
}

impl Scratch {
    /// Says how many messages there were, and gives the descriptors of the first.
    fn receive(
        &mut self,
        fd: BorrowedFd,
        most: usize,
        flags: libc::c_int,
    ) -> io::Result<(usize, Vec<OwnedFd>)> {
        for i in 0..most {
            let slot = &mut self.bytes[i * SLOT..][..SLOT];
            self.iovecs[i] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: SLOT };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
        }
        let first = &mut self.headers[0].msg_hdr;
        first.msg_control = self.control.0.as_mut_ptr().cast();
        first.msg_controllen = CONTROL_LEN as _;
        // SAFETY: each header points to one `iovec`, with a slot of its own, and the first one to control
        // data, with the true lengths; all of it lives past the call.
        let count = unsafe { recvmmsg(fd, &mut self.headers[..most], flags | libc::MSG_CMSG_CLOEXEC) }?;
        let mut fds = Vec::new();
        // SAFETY: `recvmmsg` has just filled this header and the control data that it points to, and its
        // descriptors are taken here alone.
        unsafe { take_fds(&self.headers[0].msg_hdr, &mut fds) };
        Ok((count, fds))
    }

    fn has_flag(&self, i: usize, flag: libc::c_int) -> bool {
        self.headers[i].msg_hdr.msg_flags & flag != 0
    }

    fn datagram(&self, i: usize, fds: Vec<OwnedFd>) -> Datagram<'_> {
        Datagram {
            bytes: &self.bytes[i * SLOT..][..self.headers[i].msg_len as usize],
            fds,
            truncated: self.has_flag(i, libc::MSG_TRUNC),
            fds_truncated: self.has_flag(i, libc::MSG_CTRUNC),
        }
    }
}

/// Takes so many messages, which are there, out of the socket.
fn discard(fd: BorrowedFd, mut count: usize) -> io::Result<()> {
    // One alone costs less so, and it is what a request or an answer is.
    if count == 1 {
        return skip(fd);
    }
    let mut headers = blank();
    while count > 0 {
        // SAFETY: the headers point to nothing.
        count -= unsafe { recvmmsg(fd, &mut headers[..count], 0) }?;
    }
    Ok(())
}

fn blank() -> [libc::mmsghdr; BATCH] {
    // SAFETY: all-zero is a valid `mmsghdr`.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// What the headers point to is writable for the lengths that they say.
unsafe fn recvmmsg(fd: BorrowedFd, headers: &mut [libc::mmsghdr], flags: libc::c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    loop {
        // SAFETY: by the contract, and `headers` is as long as it says.
        let result = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as _,
                flags as _,
                std::ptr::null_mut(),
            )
        };
        match Errno::result(result) {
            Ok(count) => return Ok(count as usize),
            // As in `recv`.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// How many bytes of what waits in the socket a look passes over; −1 if each look sees the same.
fn peek_offset(fd: BorrowedFd) -> io::Result<libc::c_int> {
    let mut offset = -1;
    let mut len = size_of_val(&offset) as libc::socklen_t;
    // SAFETY: `offset` is room for the answer, and `len` says how much.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw mut offset).cast(),
            &raw mut len,
        )
    };
    Errno::result(result)?;
    Ok(offset)
}

fn set_peek_offset(fd: BorrowedFd, offset: libc::c_int) -> io::Result<()> {
    let len = size_of_val(&offset) as libc::socklen_t;
    // SAFETY: `offset` is an `int`, and `len` says so.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, (&raw const offset).cast(), len)
    };
    Errno::result(result)?;
    Ok(())
}
