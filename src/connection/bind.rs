//! Listeners in the making, and the files that their sockets leave.

use std::future::{Future, IntoFuture};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::acceptor::{Acceptor, Terms};
use super::address::Address;
use super::auth::DigestPolicy;
use super::listener::Listener;
use crate::AuthKey;
use crate::error::Result;
use crate::sys::Fd;
use crate::sys::net::{self, Name};
use crate::util::Finalize;

/// How many clients may wait to be accepted before more of them are turned away.
const BACKLOG: u32 = 128;

#[derive(Debug)]
pub(super) enum At {
    Given(Result<Address>),
    Temporary,
}

/// A listener in the making: see [`Listener::bind`]. Awaiting it gives the [`Listener`].
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for what is no address; else what the system says, with the
/// address: `AddrInUse` where somebody listens or a file lies, `PermissionDenied`, `AddrNotAvailable`. A host's name that has
/// several addresses is bound at the first that will do.
///
/// # Cancel safety
/// Nothing is left behind if the future is dropped.
#[derive(Debug)]
#[must_use = "a listener is there only once this was awaited"]
pub struct Bind {
    at: At,
    backlog: u32,
    terms: Terms,
}

impl Bind {
    pub(super) fn new(at: At) -> Self {
        let terms = Terms { same_user: matches!(at, At::Temporary), ..Terms::default() };
        Self { at, backlog: BACKLOG, terms }
    }

    /// Lets only those in who prove that they hold this key.
    pub fn authkey(mut self, key: &AuthKey) -> Self {
        self.terms.authkey = Some(key.clone());
        self
    }

    /// The weakest digest that may prove it; SHA-256 if nothing is said.
    pub fn digest_policy(mut self, policy: DigestPolicy) -> Self {
        self.terms.policy = policy;
        self
    }

    /// How many clients may wait in the kernel to be accepted; 128 if nothing is said. The system has
    /// a limit of its own (`net.core.somaxconn`). Those who find it full wait (Unix) or try again by
    /// themselves (TCP).
    pub fn backlog(mut self, clients: u32) -> Self {
        self.backlog = clients;
        self
    }

    /// How long a peer may take for the whole handshake, by the kernel's clock; then it is given up.
    /// 10 seconds if nothing is said.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.terms.handshake_timeout = timeout;
        self
    }

    /// How many handshakes may be under way; 256 if nothing is said, and never less than one. When
    /// another peer comes the oldest is given up, so that those who say nothing keep nobody out and
    /// do not use up the descriptors.
    pub fn max_pending(mut self, handshakes: usize) -> Self {
        self.terms.max_pending = handshakes;
        self
    }

    async fn bind(self) -> Result<Listener> {
        let (socket, path) = match self.at {
            At::Temporary => bind_temporary(self.backlog)?,
            At::Given(address) => bind_given(&address?, self.backlog).await?,
        };
        Ok(Listener::new(Acceptor::new(socket, path, self.terms)?)?)
    }
}

impl IntoFuture for Bind {
    type Output = Result<Listener>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Listener>> + Send + Sync>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.bind())
    }
}

async fn bind_given(address: &Address, backlog: u32) -> Result<(Fd, Option<BoundPath>)> {
    address.check()?;
    let mut refusal = None;
    let refuses = |error| address.refuses("listen at", error);
    for name in address.resolve().await.map_err(refuses)? {
        match net::listen(&name, backlog) {
            Ok(socket) => {
                let path =
                    if let Name::Path(path) = &name { Some(BoundPath::new(path, false)?) } else { None };
                return Ok((socket, path));
            }
            Err(error) => refusal = Some(error),
        }
    }
    Err(refuses(refusal.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())).into())
}

fn bind_temporary(backlog: u32) -> Result<(Fd, Option<BoundPath>)> {
    const PREFIX: &str = "tokio-multiprocess-";
    const SOCKET: &str = "listener";
    /// What the kernel makes of the end of the directory's name.
    const RANDOM: usize = 6;
    let mut parent = std::env::temp_dir();
    if parent.as_os_str().len() + PREFIX.len() + RANDOM + SOCKET.len() + 2 > net::MAX_UNIX {
        parent = PathBuf::from("/tmp");
    }
    let directory = net::private_directory(&parent.join(PREFIX))?;
    let path = directory.join(SOCKET);
    let socket = net::listen(&Name::Path(path.clone()), backlog).inspect_err(|_| {
        let _ = std::fs::remove_dir(&directory);
    })?;
    Ok((socket, Some(BoundPath::new(&path, true)?)))
}

/// The file of a Unix socket, which is removed when this is dropped, or at the process's exit.
#[derive(Debug)]
pub(super) struct BoundPath {
    file: BoundFile,
    removal: Finalize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BoundFile {
    at: Address,
    /// Tells it from what somebody else puts there.
    identity: (u64, u64),
    /// The directory is there for this file alone.
    with_directory: bool,
}

impl BoundPath {
    fn new(path: &Path, with_directory: bool) -> io::Result<Self> {
        // The current directory may be another by then.
        let path = std::path::absolute(path)?;
        let identity = net::file_identity(&path)?;
        Ok(Self::own(BoundFile { at: path.into(), identity, with_directory }))
    }

    /// Takes it over, to remove it.
    pub(super) fn own(file: BoundFile) -> Self {
        let removed = file.clone();
        Self { file, removal: Finalize::new(0, move || removed.remove()) }
    }

    pub(super) fn file(&self) -> &BoundFile {
        &self.file
    }

    /// Leaves its removal to another process.
    pub(super) fn leave(&self) {
        self.removal.cancel();
    }
}

impl BoundFile {
    fn remove(&self) {
        let Address::Unix(path) = &self.at else { return };
        if net::file_identity(path).is_ok_and(|identity| identity == self.identity) {
            let _ = std::fs::remove_file(path);
        }
        if let (true, Some(directory)) = (self.with_directory, path.parent()) {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        self.removal.call();
    }
}
