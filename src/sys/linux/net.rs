//! Sockets that listen, and those that connect to them: Unix and TCP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    self as nix_socket, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr,
    getsockopt, setsockopt, sockopt,
};

use crate::sys::fd::poll_readable;

/// The longest path, and the longest abstract name, that a Unix socket can have, in bytes: a path
/// is followed by a NUL, and a name comes after one.
pub(crate) const MAX_UNIX: usize = 107;

/// The kernel's name of an end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Inet(SocketAddr),
    Path(PathBuf),
    Abstract(Vec<u8>),
    /// A Unix socket that was not bound, as those of clients.
    Unnamed,
}

impl Name {
    fn family(&self) -> AddressFamily {
        match self {
            Self::Inet(SocketAddr::V4(_)) => AddressFamily::Inet,
            Self::Inet(SocketAddr::V6(_)) => AddressFamily::Inet6,
            Self::Path(_) | Self::Abstract(_) | Self::Unnamed => AddressFamily::Unix,
        }
    }

    fn to_kernel(&self) -> io::Result<Box<dyn SockaddrLike>> {
        Ok(match self {
            Self::Inet(address) => Box::new(SockaddrStorage::from(*address)),
            Self::Path(path) => Box::new(UnixAddr::new(path)?),
            Self::Abstract(name) => Box::new(UnixAddr::new_abstract(name)?),
            Self::Unnamed => Box::new(UnixAddr::new_unnamed()),
        })
    }

    fn from_kernel(address: &SockaddrStorage) -> Self {
        if let Some(v4) = address.as_sockaddr_in() {
            return Self::Inet(std::net::SocketAddrV4::from(*v4).into());
        }
        if let Some(v6) = address.as_sockaddr_in6() {
            return Self::Inet(std::net::SocketAddrV6::from(*v6).into());
        }
        let unix = address.as_unix_addr();
        let path = unix.and_then(|unix| unix.path()).map(|path| Self::Path(path.to_owned()));
        let name = || Some(Self::Abstract(unix?.as_abstract()?.to_owned()));
        path.or_else(name).unwrap_or(Self::Unnamed)
    }
}

/// A close-on-exec socket that does not block yet.
fn socket_for(name: &Name) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(nix_socket::socket(name.family(), SockType::Stream, flags, None)?)
}

/// A socket that listens at `name` and whose [`accept`] does not block. A TCP port can be taken again
/// while connections of its last owner linger; what lies at a path stays.
///
/// # Errors
/// `AddrInUse` when somebody listens there, or anything lies at the path.
pub(crate) fn listen(name: &Name, backlog: u32) -> io::Result<OwnedFd> {
    let socket = socket_for(name)?;
    if matches!(name, Name::Inet(_)) {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    nix_socket::bind(socket.as_raw_fd(), &*name.to_kernel()?)?;
    let most = i32::from(Backlog::MAXCONN);
    nix_socket::listen(&socket, Backlog::new(i32::try_from(backlog).unwrap_or(most).min(most))?)?;
    Ok(socket)
}

/// Takes the next connection off a listening socket: `WouldBlock` if there is none.
pub(crate) fn accept(listening: BorrowedFd) -> io::Result<OwnedFd> {
    // Whether the call itself blocks is up to all who share the open file, so it is asked first.
    if !poll_readable(listening, Some(Duration::ZERO))? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let socket = loop {
        match nix_socket::accept4(listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the kernel has just made this number for us, and nobody else knows it.
            Ok(raw) => break unsafe { OwnedFd::from_raw_fd(raw) },
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    send_at_once(&socket);
    Ok(socket)
}

/// Begins to connect. If the second is false, it goes on until the socket is writable, and then
/// [`connected`] says how it went.
///
/// # Errors
/// `WouldBlock` when the backlog of a Unix socket is full.
pub(crate) fn connect(name: &Name) -> io::Result<(OwnedFd, bool)> {
    let socket = socket_for(name)?;
    match nix_socket::connect(socket.as_raw_fd(), &*name.to_kernel()?) {
        Ok(()) => {}
        // A signal leaves it going on in the background as well.
        Err(Errno::EINPROGRESS | Errno::EINTR) => return Ok((socket, false)),
        Err(error) => return Err(error.into()),
    }
    connected(socket.as_fd())?;
    Ok((socket, true))
}

/// The outcome of [`connect`]. The socket of a connection blocks by default, as a pipe's would.
pub(crate) fn connected(socket: BorrowedFd) -> io::Result<()> {
    match getsockopt(&socket, sockopt::SocketError)? {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    let mut flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    flags.remove(OFlag::O_NONBLOCK);
    fcntl(socket, FcntlArg::F_SETFL(flags))?;
    send_at_once(&socket);
    Ok(())
}

/// Small messages do not wait for more to go with them. A Unix socket has no such option.
fn send_at_once(socket: &impl AsFd) {
    let _ = setsockopt(socket, sockopt::TcpNoDelay, &true);
}

/// What the socket's own end is called.
pub(crate) fn local_name(socket: BorrowedFd) -> io::Result<Name> {
    Ok(Name::from_kernel(&nix_socket::getsockname::<SockaddrStorage>(socket.as_raw_fd())?))
}

/// What the peer's end is called; it may have gone already.
pub(crate) fn peer_name(socket: BorrowedFd) -> io::Result<Name> {
    Ok(Name::from_kernel(&nix_socket::getpeername::<SockaddrStorage>(socket.as_raw_fd())?))
}

/// Whether connections come in by this socket, if it is one.
pub(crate) fn is_listening(fd: BorrowedFd) -> bool {
    getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false)
}

/// Has [`accept`] not block either when somebody else takes the connection that it has seen.
pub(crate) fn set_nonblocking(listening: BorrowedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(listening, FcntlArg::F_GETFL)?);
    fcntl(listening, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Whether the process that connected this Unix socket belonged to this process's user.
pub(crate) fn peer_is_same_user(socket: BorrowedFd) -> io::Result<bool> {
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(peer.uid() == nix::unistd::geteuid().as_raw())
}

/// Whether an error of [`accept`] is of the one connection that it would have been, or of a network
/// beneath it: the next may well be good.
pub(crate) fn is_of_one_peer(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else { return false };
    matches!(
        Errno::from_raw(code),
        Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::ENONET
    )
}

/// Whether an error says that descriptors or memory have run out, here or in the whole system.
pub(crate) fn is_out_of_resources(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else { return false };
    matches!(Errno::from_raw(code), Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
}

/// Makes a fresh directory, named after `prefix`, that only this process's user may enter.
pub(crate) fn private_directory(prefix: &Path) -> io::Result<PathBuf> {
    let mut template = prefix.as_os_str().to_owned();
    template.push("XXXXXX");
    Ok(nix::unistd::mkdtemp(Path::new(&template))?)
}

/// The path that some bytes name.
pub(crate) fn path_from_bytes(bytes: Vec<u8>) -> io::Result<PathBuf> {
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

/// What tells the file at a path, if it is no link, from one that is put there later.
pub(crate) fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    let stat = nix::sys::stat::lstat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_whose_calls_block_blocks_nobody_here() {
        let listening = listen(&Name::Inet(([127, 0, 0, 1], 0).into()), 8).unwrap();
        let flags = || OFlag::from_bits_retain(fcntl(&listening, FcntlArg::F_GETFL).unwrap());
        fcntl(&listening, FcntlArg::F_SETFL(flags() - OFlag::O_NONBLOCK)).unwrap();
        // If it blocks, it does so for ever.
        let (tells, told) = std::sync::mpsc::channel();
        let listens = listening.try_clone().unwrap();
        std::thread::spawn(move || tells.send(accept(listens.as_fd())));
        let accepted = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        set_nonblocking(listening.as_fd()).unwrap();
        assert!(flags().contains(OFlag::O_NONBLOCK));
    }

    fn meet(name: &Name) -> (OwnedFd, OwnedFd, OwnedFd) {
        let listening = listen(name, 8).unwrap();
        let at = local_name(listening.as_fd()).unwrap();
        assert_eq!(accept(listening.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (client, _) = connect(&at).unwrap();
        assert!(poll_readable(listening.as_fd(), None).unwrap());
        let server = accept(listening.as_fd()).unwrap();
        connected(client.as_fd()).unwrap();
        assert_eq!(peer_name(client.as_fd()).unwrap(), at);
        (listening, server, client)
    }

    #[test]
    fn all_families_meet() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(_) = listen(&Name::Inet(local.parse().unwrap()), 1) else { continue };
            let (listening, server, client) = meet(&Name::Inet(local.parse().unwrap()));
            for end in [&server, &client] {
                assert!(getsockopt(end, sockopt::TcpNoDelay).unwrap());
                let flags = fcntl(end, FcntlArg::F_GETFL).unwrap();
                assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
            }
            assert_eq!(peer_name(server.as_fd()).unwrap(), local_name(client.as_fd()).unwrap());
            drop(listening);
        }
        let name = Name::Abstract(format!("\0odd {}", std::process::id()).into_bytes());
        let (_, server, _client) = meet(&name);
        assert_eq!(peer_name(server.as_fd()).unwrap(), Name::Unnamed);
        assert!(peer_is_same_user(server.as_fd()).unwrap());
    }

    #[test]
    fn a_path_is_taken_once_and_a_private_directory_is_private() {
        let dir = private_directory(&std::env::temp_dir().join("mp-net-")).unwrap();
        let mode = nix::sys::stat::stat(&dir).unwrap().st_mode;
        assert_eq!(mode & 0o777, 0o700);
        let path = dir.join("socket");
        drop(meet(&Name::Path(path.clone())));
        let again = listen(&Name::Path(path.clone()), 1).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn names_of_any_length_up_to_the_limit_fit() {
        let fits = |len| Name::Path(PathBuf::from("p".repeat(len))).to_kernel().is_ok();
        assert!(fits(MAX_UNIX) && !fits(MAX_UNIX + 1));
        let fits = |len| Name::Abstract(vec![b'a'; len]).to_kernel().is_ok();
        assert!(fits(MAX_UNIX) && !fits(MAX_UNIX + 1));
    }
}
