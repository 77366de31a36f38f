//! The other side of a [`Listener`](crate::Listener).

use std::fmt;
use std::future::{Future, IntoFuture};
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::address::Address;
use super::auth::{DigestPolicy, mutual_client};
use super::connection::Connection;
use crate::AuthKey;
use crate::error::{Error, Result};
use crate::reactor::{self, Deadline};
use crate::sys::net::{self, Name};
use crate::sys::{AsFd, Fd};

/// How long it may take to become a peer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// When to try a Unix socket again whose backlog is full, as nothing tells when there is room: at
/// first soon, and later so that a crowd of clients costs little.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(5)];

/// Connects to a [`Listener`](crate::Listener), ours or Python's: see [`connect`](Self::connect).
#[derive(Debug)]
pub struct Client(());

impl Client {
    /// Connects to a listener. Await it, after options.
    ///
    /// All addresses that a host's name has are tried, one after the other. Where a Unix socket's
    /// backlog is full, it waits for room.
    ///
    /// ```
    /// use tokio_multiprocess::{Client, Listener};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> tokio_multiprocess::Result<()> {
    /// let listener = Listener::bind(("127.0.0.1", 0)).await?;
    /// let mut client = Client::connect(listener.address()).await?;
    /// client.send(&("answer", 42)).await?;
    /// let answer: (String, u32) = listener.accept().await?.recv().await?;
    /// assert_eq!(answer, ("answer".to_owned(), 42));
    /// # Ok(()) }
    /// ```
    pub fn connect<A>(address: A) -> Connect
    where
        A: TryInto<Address>,
        A::Error: Into<Error>,
    {
        let address = address.try_into().map_err(Into::into);
        Connect { address, authkey: None, policy: DigestPolicy::default(), timeout: TIMEOUT }
    }
}

/// A connection in the making: see [`Client::connect`]. Awaiting it gives the [`Connection`].
///
/// With an [`authkey`](Self::authkey) both sides prove that they hold it. A listener without a key
/// does not take part in that: the client gives up when its time is over. The other way round a
/// client without a key is connected at once, and learns of it from what it receives first, the
/// listener's challenge: that is an [`AuthError::KeyWanted`](super::AuthError::KeyWanted) where a value
/// is asked for, and bytes like others for [`recv_bytes`](Connection::recv_bytes). The listener gives it
/// up at its own deadline.
///
/// # Errors
/// [`Error::InvalidArgument`] for what is no address; [`Error::Authentication`] when either side does
/// not hold the key of the other; `TimedOut` ([`Error::is_timeout`]), which says how far it came; else
/// what the system says, with the address: `ConnectionRefused` where nobody listens, `NotFound` for a path or host
/// that does not exist.
///
/// # Cancel safety
/// Dropping the future leaves no connection behind.
#[derive(Debug)]
#[must_use = "nobody connects unless this is awaited"]
pub struct Connect {
    address: Result<Address>,
    authkey: Option<AuthKey>,
    policy: DigestPolicy,
    timeout: Duration,
}

impl Connect {
    /// Proves to the listener that we hold this key, and demands the same.
    pub fn authkey(mut self, key: &AuthKey) -> Self {
        self.authkey = Some(key.clone());
        self
    }

    /// The weakest digest that may be used for it; SHA-256 if nothing is said.
    pub fn digest_policy(mut self, policy: DigestPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How long all of it may take, by the kernel's clock: finding the host, connecting, the handshake.
    /// 20 seconds if nothing is said; `Duration::MAX` is for ever.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn connect(self) -> Result<Connection> {
        let address = self.address?;
        address.check()?;
        let deadline = Deadline::after(self.timeout)?;
        let late = |what: fmt::Arguments<'_>| {
            let message = format!("{what} within {:?}", self.timeout);
            Error::Io(io::Error::new(io::ErrorKind::TimedOut, message))
        };
        let socket = within(&deadline, dial(&address)).await?;
        let socket = socket.ok_or_else(|| late(format_args!("no connection to {address}")))?;
        let socket = socket.map_err(|error| address.refuses("connect to", error))?;
        let mut connection = Connection::of_stranger(socket)?;
        if let Some(key) = &self.authkey {
            let proved = within(&deadline, mutual_client(&mut connection, key, self.policy)).await?;
            proved.ok_or_else(|| {
                late(format_args!("{address} did not finish the handshake (has it an authkey?)"))
            })??;
        }
        Ok(connection)
    }
}

impl IntoFuture for Connect {
    type Output = Result<Connection>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Connection>> + Send + Sync>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(Exclusive(Mutex::new(Box::pin(self.connect()))))
    }
}

/// A future that its owner alone can poll, so that it may be shared whatever is inside.
struct Exclusive<F>(Mutex<Pin<Box<F>>>);

impl<F: Future> Future for Exclusive<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll(cx)
    }
}

/// `None` if the time is over first.
async fn within<T>(deadline: &Deadline, work: impl Future<Output = T>) -> io::Result<Option<T>> {
    tokio::select! {
        biased;
        done = work => Ok(Some(done)),
        over = deadline.over() => over.map(|()| None),
    }
}

async fn dial(address: &Address) -> io::Result<Fd> {
    let mut refusal = None;
    for name in address.resolve().await? {
        match dial_one(&name).await {
            Ok(socket) => return Ok(socket),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

async fn dial_one(name: &Name) -> io::Result<Fd> {
    let [mut pause, longest] = PAUSES;
    loop {
        match net::connect(name) {
            Ok((socket, true)) => return Ok(socket),
            Ok((socket, false)) => {
                reactor::writable(socket.as_fd()).await?;
                net::connected(socket.as_fd())?;
                return Ok(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                reactor::sleep(pause).await?;
                pause = (pause * 2).min(longest);
            }
            Err(error) => return Err(error),
        }
    }
}
