use std::io;
use std::io::IoSlice;

use super::{BorrowedFd, Fd, RawFd, unsupported};

pub(crate) const MAX_FDS: usize = 253;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    Wait,
    Try,
}

pub(crate) struct Received {
    pub(crate) len: usize,
    pub(crate) truncated: bool,
    pub(crate) fds_truncated: bool,
}

pub(crate) const BATCH: usize = 32;

pub(crate) struct Datagram<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) fds: Vec<Fd>,
    pub(crate) truncated: bool,
    pub(crate) fds_truncated: bool,
}

pub(crate) fn look_ahead(_: BorrowedFd<'_>) -> bool {
    false
}
pub(crate) fn look_at_next(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}
pub(crate) fn recv_unseen(
    _: BorrowedFd<'_>,
    _: usize,
    _: impl FnMut(Datagram<'_>),
) -> io::Result<(usize, bool)> {
    unsupported()
}
pub(crate) fn recv_ahead(
    _: BorrowedFd<'_>,
    _: usize,
    _: impl FnMut(Datagram<'_>),
) -> io::Result<(usize, bool)> {
    unsupported()
}
pub(crate) fn recv_next(_: BorrowedFd<'_>, _: impl FnOnce(Datagram<'_>)) -> io::Result<()> {
    unsupported()
}
pub(crate) fn try_send_bytes(_: BorrowedFd<'_>, _: &[u8]) -> io::Result<()> {
    unsupported()
}
pub(crate) fn is_reset(_: &io::Error) -> bool {
    false
}
pub(crate) fn seqpacket_pair() -> io::Result<(Fd, Fd)> {
    unsupported()
}
pub(crate) fn send(_: BorrowedFd<'_>, _: &[IoSlice<'_>], _: &[BorrowedFd<'_>], _: Mode) -> io::Result<()> {
    unsupported()
}
pub(crate) fn shut_down(_: BorrowedFd<'_>) {}
pub(crate) fn is_gone(_: &io::Error) -> bool {
    true
}
pub(crate) fn is_full(_: &io::Error) -> bool {
    false
}
pub(crate) fn has_unread(_: BorrowedFd<'_>) -> bool {
    false
}
pub(crate) fn is_crowded(_: &io::Error) -> bool {
    false
}
pub(crate) fn is_seqpacket(_: RawFd) -> bool {
    false
}
pub(crate) fn next_len(_: BorrowedFd<'_>, _: Mode) -> io::Result<usize> {
    unsupported()
}
pub(crate) fn peek(_: BorrowedFd<'_>, _: &mut [u8], _: Mode) -> io::Result<usize> {
    unsupported()
}
pub(crate) fn recv_duplicates(
    _: BorrowedFd<'_>,
    _: &mut [u8],
    _: &mut Vec<Fd>,
    _: Mode,
) -> io::Result<Received> {
    unsupported()
}
pub(crate) fn skip(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}
pub(crate) fn recv(_: BorrowedFd<'_>, _: &mut [u8], _: &mut Vec<Fd>, _: Mode) -> io::Result<Received> {
    unsupported()
}

pub(crate) mod stream {
    use std::io;
    use std::time::Duration;

    use super::super::{BorrowedFd, Fd, unsupported};
    use super::Received;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Kind {
        Packets,
        Unix,
        Socket,
        File,
    }

    pub(crate) fn kind(_: BorrowedFd<'_>) -> io::Result<Kind> {
        unsupported()
    }
    pub(crate) fn directions(_: BorrowedFd<'_>) -> io::Result<(bool, bool)> {
        unsupported()
    }
    pub(crate) fn read(
        _: BorrowedFd<'_>,
        _: Kind,
        _: &mut Vec<u8>,
        _: usize,
        _: Option<&mut Vec<Fd>>,
    ) -> io::Result<Received> {
        unsupported()
    }
    pub(crate) fn read_if_room(
        _: BorrowedFd<'_>,
        _: &mut Vec<u8>,
        _: usize,
        _: &mut Vec<Fd>,
    ) -> io::Result<Received> {
        unsupported()
    }
    pub(crate) fn write(
        _: BorrowedFd<'_>,
        _: Kind,
        _: [&[u8]; 2],
        _: &[BorrowedFd<'_>],
    ) -> io::Result<usize> {
        unsupported()
    }
    pub(crate) fn wait_writable(fds: &[BorrowedFd<'_>], _: BorrowedFd<'_>, _: Option<Duration>) -> Vec<bool> {
        vec![false; fds.len()]
    }
}
