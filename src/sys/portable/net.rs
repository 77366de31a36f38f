use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{BorrowedFd, Fd, unsupported};

pub(crate) const MAX_UNIX: usize = 107;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Inet(SocketAddr),
    Path(PathBuf),
    Abstract(Vec<u8>),
    Unnamed,
}

pub(crate) fn listen(_: &Name, _: u32) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn accept(_: BorrowedFd<'_>) -> io::Result<Fd> {
    unsupported()
}
pub(crate) fn connect(_: &Name) -> io::Result<(Fd, bool)> {
    unsupported()
}
pub(crate) fn connected(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}
pub(crate) fn local_name(_: BorrowedFd<'_>) -> io::Result<Name> {
    unsupported()
}
pub(crate) fn peer_name(_: BorrowedFd<'_>) -> io::Result<Name> {
    unsupported()
}
pub(crate) fn is_listening(_: BorrowedFd<'_>) -> bool {
    false
}
pub(crate) fn set_nonblocking(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}
pub(crate) fn peer_is_same_user(_: BorrowedFd<'_>) -> io::Result<bool> {
    unsupported()
}
pub(crate) fn is_of_one_peer(_: &io::Error) -> bool {
    false
}
pub(crate) fn is_out_of_resources(_: &io::Error) -> bool {
    false
}
pub(crate) fn private_directory(_: &Path) -> io::Result<PathBuf> {
    unsupported()
}
pub(crate) fn path_from_bytes(bytes: Vec<u8>) -> io::Result<PathBuf> {
    let text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(text.into())
}
pub(crate) fn file_identity(_: &Path) -> io::Result<(u64, u64)> {
    unsupported()
}
