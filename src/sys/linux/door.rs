//! Doors: where a process is rung out of its sleep by others that know the door's name.
//!
//! A doorbell that several processes share would wake all of them, or lose what one of them takes for
//! itself. A door is one process's own: who rings need not be related to it, and need not hold a descriptor
//! of it. Its name lies in shared memory, beside what is waited for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, recv, sendto, socket};

use super::per_process::PerProcess;

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
}

/// Rings a door for what goes by `key`, without waiting.
pub(crate) fn ring(name: [u64; 2], key: u64) -> Ring {
    /// Not bound: it can be sent from, and nothing can be sent to it.
    static SENDER: PerProcess<OnceSocket> = PerProcess::new(OnceSocket::default);
    let (Some(sender), Ok(address)) = (SENDER.get().get(), address(name)) else { return Ring::Full };
    loop {
        return match sendto(sender.as_raw_fd(), &key.to_ne_bytes(), &address, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => Ring::Sent,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ring::Gone,
            Err(_) => Ring::Full,
        };
    }
}

/// Made when it is first needed and a descriptor is left.
#[derive(Default)]
struct OnceSocket(OnceLock<OwnedFd>);

impl OnceSocket {
    fn get(&self) -> Option<&OwnedFd> {
        if self.0.get().is_none() {
            // If another thread was faster, this one's is closed.
            let _ = self.0.set(datagram_socket().ok()?);
        }
        self.0.get()
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
    use super::super::process::{Exit, Fork, exit_now, fork, pidfd_open, try_wait};
    use super::*;

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

    #[test]
    fn a_forked_child_rings_by_a_socket_of_its_own() {
        let door = Door::open().unwrap();
        // So that there is one to inherit.
        ring(door.name(), 1);
        let child = match fork().unwrap() {
            Fork::Parent { pid } => pidfd_open(pid).unwrap(),
            Fork::Child => {
                // As a child closes what it has inherited.
                super::super::fd::close_from(3);
                exit_now(i32::from(ring(door.name(), 2) != Ring::Sent))
            }
        };
        poll_readable(child.as_fd(), None).unwrap();
        assert_eq!(try_wait(child.as_fd()).unwrap(), Some(Exit::Code(0)));
        assert_eq!(drained(&door), [1, 2]);
    }
}
