//! Where connections come in: [`Listener`].

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::acceptor::Acceptor;
use super::address::{Address, Family};
use super::bind::{At, Bind};
use super::callers::Callers;
use super::connection::Connection;
use super::wait::{Source, sealed};
use crate::error::{Error, Result};
use crate::reduction::Movable;
use crate::sys::{AsFd, net};
use crate::util::lock;

/// A socket that connections come in by, over TCP or Unix sockets: Python's `Listener`.
///
/// ```
/// use tokio_multiprocess::{AuthKey, Client, Listener};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tokio_multiprocess::Result<()> {
/// let key = AuthKey::random();
/// let listener = Listener::temporary().authkey(&key).await?;
/// let client = Client::connect(listener.address()).authkey(&key);
/// let (served, client) = tokio::join!(listener.accept(), client);
/// let (mut served, mut client) = (served?, client?);
///
/// client.send("hello").await?;
/// assert_eq!(served.recv::<String>().await?, "hello");
/// # Ok(()) }
/// ```
///
/// # Authentication
///
/// As in Python, there is none without an [`authkey`](Bind::authkey), and the key of
/// [`current_process`](crate::current_process) is used only where it is named. With a key both ends
/// prove by [`auth`](super::auth) that they hold it, before anything else that a peer says is looked
/// at. What it proves and what not is said there: over TCP on a network that is not trusted, run
/// the connection through something that encrypts.
///
/// Handshakes run inside of the listener, side by side, while any [`accept`](Self::accept) is polled.
/// A peer that is silent delays nobody: it is given up at its deadline, or once so many others have
/// come that there is no room for it ([`max_pending`](Bind::max_pending)). Peers are told nothing but
/// that they failed.
///
/// # Paths
///
/// A path that exists is never removed to make room: binding there is an
/// [`AddrInUse`](io::ErrorKind::AddrInUse) error, also when nobody listens any more. It is removed at
/// [`close`](Self::close), drop or a regular exit of the process, by the process that has the
/// listener then; copies of it in forked children remove nothing, nor is removed what somebody else
/// has put there since.
///
/// # In messages
///
/// A listener is a message, and moves: it goes on in the process that receives it, and is closed where
/// it was. Who waits in the backlog notices nothing; handshakes under way are given up. A key does
/// not travel: the listener goes on with the key of the process where it arrives if it had that of
/// the process that sent it, and cannot be sent if it had another. Likewise the path goes over to the
/// receiver, who removes it then, but stays if that is no process of this family. One that such a
/// process has sent lets in with SHA-256 alone, and has the usual [limits](Bind) for handshakes, or
/// lower ones.
///
/// It can only move. Where several processes are to accept at one address, each is given a `Handle` of a
/// listener of std's or Tokio's, and makes connections of what it accepts by
/// `Connection::from_fd`, without a key; or one process accepts, and sends the connections
/// on to the others.
pub struct Listener {
    address: Address,
    last_accepted: Mutex<Option<Address>>,
    callers: Arc<Callers>,
    acceptor: Movable<Acceptor>,
}

impl Listener {
    /// Listens at an address: a pair of host and port, a path, text, or what else [`Address`] is made
    /// of. Its family tells the kind of socket. Await it, after options.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tokio_multiprocess::Result<()> {
    /// let listener = tokio_multiprocess::Listener::bind(("localhost", 0)).backlog(16).await?;
    /// println!("listening at {}", listener.address());
    /// # Ok(()) }
    /// ```
    pub fn bind<A>(address: A) -> Bind
    where
        A: TryInto<Address>,
        A::Error: Into<Error>,
    {
        Bind::new(At::Given(address.try_into().map_err(Into::into)))
    }

    /// Listens at a Unix socket of its own, in a fresh directory that only this user may enter, under
    /// the directory for temporary files. Peers of other users are refused, whatever key they hold;
    /// file and directory are removed with the listener.
    pub fn temporary() -> Bind {
        Bind::new(At::Temporary)
    }

    /// The next peer that has come, and proved that it holds the key if there is one.
    ///
    /// A service goes on after what only one peer has done:
    ///
    /// ```no_run
    /// # async fn demo(listener: tokio_multiprocess::Listener) -> tokio_multiprocess::Result<()> {
    /// use tokio_multiprocess::Connection;
    ///
    /// async fn serve(mut conn: Connection) {
    ///     while let Ok(text) = conn.recv::<String>().await {
    ///         let _ = conn.send(&text.to_uppercase()).await;
    ///     }
    /// }
    ///
    /// loop {
    ///     match listener.accept().await {
    ///         Ok(conn) => drop(tokio::spawn(serve(conn))),
    ///         // A peer without the key: the next one may have it.
    ///         Err(e) if e.is_authentication() => continue,
    ///         // Somebody has called `close`.
    ///         Err(e) if e.is_closed() => break,
    ///         Err(e) => return Err(e),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// Several tasks may wait at a time; each connection goes to one of them. Where the process has no
    /// descriptors left, the oldest handshake is given up for the newcomer, and with none under way
    /// peers wait in the backlog until there are.
    ///
    /// # Errors
    /// [`Error::Authentication`] for a peer that said something wrong; call again for the next. That one
    /// says nothing or leaves is no error, and only traced. [`Error::Closed`] after
    /// [`close`](Self::close), or once the listener has moved elsewhere.
    ///
    /// # Cancel safety
    /// Dropping the future loses neither a connection nor a handshake: what has begun goes on with
    /// the next call.
    ///
    /// # Panics
    /// Outside of a Tokio runtime with I/O.
    pub async fn accept(&self) -> Result<Connection> {
        let caller = self.callers.call();
        let accepted = poll_fn(|cx| {
            caller.waits(cx);
            match self.acceptor.with(Acceptor::poll_accept) {
                Ok(polled) => polled,
                Err(closed) => Poll::Ready(Err(closed)),
            }
        });
        let (connection, peer) = accepted.await?;
        *lock(&self.last_accepted) = peer;
        Ok(connection)
    }

    /// Where it listens: with the port that it was given if it asked for any, and the number of a
    /// host instead of its name.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The kind of its socket.
    pub fn family(&self) -> Family {
        self.address.family()
    }

    /// Where the peer of the last accepted connection is; `None` before the first, and for clients of
    /// Unix sockets, which have no address as a rule.
    pub fn last_accepted(&self) -> Option<Address> {
        lock(&self.last_accepted).clone()
    }

    /// Stops listening, gives up the handshakes under way, and removes the path. Calls of
    /// [`accept`](Self::accept), also those under way, give [`Error::Closed`]. Connections that were
    /// accepted live on. Closing again does nothing.
    pub fn close(&self) {
        self.acceptor.close();
    }

    /// Whether it was closed or has moved elsewhere.
    pub fn is_closed(&self) -> bool {
        self.acceptor.with(|_| ()).is_err()
    }
}

impl Listener {
    pub(super) fn new(acceptor: Acceptor) -> io::Result<Self> {
        let address = Address::from_name(net::local_name(acceptor.socket.as_fd())?);
        Ok(Self {
            address: address.ok_or_else(|| io::Error::other("the listening socket has no name"))?,
            last_accepted: Mutex::default(),
            callers: acceptor.callers.clone(),
            acceptor: Movable::new(acceptor),
        })
    }
}

impl sealed::Sealed for Listener {
    fn source(&self) -> Result<Source<'_>> {
        self.acceptor.with(|acceptor| acceptor.source())
    }
}

/// Moves it, when the message is committed.
impl Serialize for Listener {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.acceptor.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Listener {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Acceptor::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Listener");
        shown.field("address", &format_args!("{}", self.address)).field("family", &self.family());
        match self.acceptor.with(|acceptor| (acceptor.terms.authkey.is_some(), acceptor.pending.len())) {
            Ok((authenticates, pending)) => {
                shown.field("authenticates", &authenticates).field("pending", &pending)
            }
            Err(_) => shown.field("closed", &true),
        };
        shown.finish_non_exhaustive()
    }
}
