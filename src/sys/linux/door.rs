//! Doors: where a process is rung out of its sleep by others that know the door's name.
//!
//! A doorbell that several processes share would wake all of them, or lose what one of them takes for
//! itself. A door is one process's own: who rings need not be related to it, and need not hold a descriptor
//! of it. Its name lies in shared memory, beside what is waited for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, recv, sendto, socket};

/// A socket with a name that nobody can guess, at which others ring.
#[derive(Debug)]
pub(crate) struct Door {
    socket: Arc<OwnedFd>,
    name: [u64; 2],
}

/// What became of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    Sent,
    /// The door has as many rings waiting as it takes: its process is going to look anyway. Or nothing can
    /// be sent from here just now, which its process's tick makes good.
    Full,
    /// There is no such door (any more). Its process may live all the same.
    Gone,
}

impl Door {
    /// Close-on-exec. That it does not block is said at each call: the descriptor itself would.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = datagram_socket()?;
        let random = || getrandom::u64().map_err(|error| io::Error::other(error.to_string()));
        let name = [random()?, random()?];
        bind(socket.as_raw_fd(), &address(name)?)?;
        Ok(Self { socket: Arc::new(socket), name })
    }

    pub(crate) fn name(&self) -> [u64; 2] {
        self.name
    }

    /// What is readable when somebody has rung.
    pub(crate) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Takes all that has been rung. What is no key is passed over: anybody on this machine may send it who
    /// has come by the name.
    pub(crate) fn drain(&self, mut take: impl FnMut(u64)) {
        // Longer than a key, so that what is longer shows.
        let mut datagram = [0; 9];
        loop {
            match recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
                Ok(8) => take(u64::from_ne_bytes(*datagram.first_chunk().expect("it has more bytes"))),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Rings another door for what goes by `key`, without waiting.
    pub(crate) fn ring(&self, name: [u64; 2], key: u64) -> Ring {
        let Ok(address) = address(name) else { return Ring::Full };
        loop {
            let sent = sendto(self.socket.as_raw_fd(), &key.to_ne_bytes(), &address, MsgFlags::MSG_DONTWAIT);
            return match sent {
                Ok(_) => Ring::Sent,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ring::Gone,
                Err(_) => Ring::Full,
            };
        }
    }
}

fn datagram_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn address(name: [u64; 2]) -> nix::Result<UnixAddr> {
    UnixAddr::new_abstract(format!("tokio-multiprocess-{:016x}{:016x}", name[0], name[1]).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::fd::poll_readable;
    use super::*;

    fn ring(name: [u64; 2], key: u64) -> Ring {
        Door::open().unwrap().ring(name, key)
    }

    fn drained(door: &Door) -> Vec<u64> {
        let mut keys = Vec::new();
        door.drain(|key| keys.push(key));
        keys
    }

    #[test]
    fn rings_arrive_at_the_door_with_that_name() {
        let (here, there) = (Door::open().unwrap(), Door::open().unwrap());
        assert_ne!(here.name(), there.name());
        assert_eq!(drained(&here), []);
        assert_eq!((ring(here.name(), 7), ring(here.name(), u64::MAX)), (Ring::Sent, Ring::Sent));
        assert!(poll_readable(here.socket().as_fd(), None).unwrap());
        assert_eq!(drained(&there), []);
        assert_eq!(drained(&here), [7, u64::MAX]);
        assert_eq!(drained(&here), []);
    }

    #[test]
    fn a_full_door_is_said_to_be_full_and_can_be_rung_again() {
        let door = Door::open().unwrap();
        let sent = (0..).take_while(|&key| ring(door.name(), key) == Ring::Sent).count() as u64;
        assert!(sent > 0);
        assert_eq!(ring(door.name(), 0), Ring::Full);
        assert_eq!(drained(&door), (0..sent).collect::<Vec<_>>());
        assert_eq!(ring(door.name(), 1), Ring::Sent);
    }

    #[test]
    fn a_door_that_is_gone_is_said_to_be() {
        let door = Door::open().unwrap();
        let name = door.name();
        drop(door);
        assert_eq!((ring(name, 1), ring([1, 2], 1)), (Ring::Gone, Ring::Gone));
    }

    #[test]
    fn what_is_no_key_is_passed_over() {
        let door = Door::open().unwrap();
        let (sender, address) = (datagram_socket().unwrap(), address(door.name()).unwrap());
        for len in [0, 7, 9, 1000] {
            sendto(sender.as_raw_fd(), &vec![1; len], &address, MsgFlags::MSG_DONTWAIT).unwrap();
        }
        ring(door.name(), 5);
        assert_eq!(drained(&door), [5]);
    }
}
