//! Several waiting messages for one system call.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{CONTROL_LEN, Control, take_fds};

/// How many messages are received at a time, at most.
pub(crate) const BATCH: usize = 32;

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
    /// Descriptors that came with it are lost: this process is at its limit.
    pub(crate) fds_truncated: bool,
}

/// Where messages arrive, once in each thread that receives some. Pages that none has reached cost
/// nothing.
struct Scratch {
    bytes: Vec<u8>,
    controls: Vec<Control>,
}

thread_local! {
    static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// Receives the messages that are there, at most `most` (and [`BATCH`]) of them, without blocking, and
/// gives each to `take`. Says how many there were; if fewer than asked for, no more are there now.
///
/// # Errors
/// `WouldBlock` if there is none.
pub(crate) fn recv_batch(fd: BorrowedFd, most: usize, take: impl FnMut(Datagram<'_>)) -> io::Result<usize> {
    receive(fd, most, 0, take)
}

/// Gives `take` the next message, which stays where it is; its descriptors are duplicates.
///
/// # Errors
/// `WouldBlock` if there is none.
pub(crate) fn peek(fd: BorrowedFd, take: impl FnMut(Datagram<'_>)) -> io::Result<()> {
    receive(fd, 1, libc::MSG_PEEK, take).map(drop)
}

fn receive(
    fd: BorrowedFd,
    most: usize,
    flags: libc::c_int,
    mut take: impl FnMut(Datagram<'_>),
) -> io::Result<usize> {
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { bytes, controls } = scratch.get_or_insert_with(|| Scratch {
            bytes: vec![0; SLOT * BATCH],
            controls: (0..BATCH).map(|_| Control([MaybeUninit::uninit(); CONTROL_LEN])).collect(),
        });
        // SAFETY: all-zero is a valid `mmsghdr`, and a valid `iovec`.
        let (mut headers, mut iovecs): ([libc::mmsghdr; BATCH], [libc::iovec; BATCH]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let most = most.min(BATCH);
        for i in 0..most {
            let slot = &mut bytes[i * SLOT..][..SLOT];
            iovecs[i] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: SLOT };
            let header = &mut headers[i].msg_hdr;
            header.msg_iov = &raw mut iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN as _;
        }
        let count = loop {
            let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
            // SAFETY: the first `most` headers each point to one `iovec`, with a slot of its own, and to
            // control data of their own, with the true lengths; all of it lives past the call.
            let result = unsafe {
                libc::recvmmsg(
                    fd.as_raw_fd(),
                    headers.as_mut_ptr(),
                    most as _,
                    flags as _,
                    std::ptr::null_mut(),
                )
            };
            match Errno::result(result) {
                Ok(count) => break count as usize,
                // As in `recv`.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(e) => return Err(e.into()),
            }
        };
        for (i, received) in headers[..count].iter().enumerate() {
            let header = &received.msg_hdr;
            let mut fds = Vec::new();
            // SAFETY: `recvmmsg` has just filled this header and the control data that it points to, and
            // its descriptors are taken here alone.
            unsafe { take_fds(header, &mut fds) };
            take(Datagram {
                bytes: &bytes[i * SLOT..][..received.msg_len as usize],
                fds,
                truncated: header.msg_flags & libc::MSG_TRUNC != 0,
                fds_truncated: header.msg_flags & libc::MSG_CTRUNC != 0,
            });
        }
        Ok(count)
    })
}
