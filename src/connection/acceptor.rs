//! What a listener does: it takes connections off its socket and runs their handshakes, polled by
//! whichever task accepts.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address::Address;
use super::auth::{AuthError, DigestPolicy, mutual_server};
use super::bind::{BoundFile, BoundPath};
use super::callers::Callers;
use super::connection::Connection;
use super::pending::Pending;
use super::port::Port;
use super::wait::{Buffered, Source};
use crate::error::Result;
use crate::reduction::{Attachment, Descriptor, Moves, Peer, writer};
use crate::sys::{self, AsFd, Fd, net};
use crate::{AuthKey, current_process};

/// How long a peer may take to prove that it holds the key.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many peers may be about to prove it.
const MAX_PENDING: usize = 256;
/// When to look again whether there are descriptors to be had.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(50);

/// On what terms peers are let in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Terms {
    #[serde(with = "key_of_process")]
    pub(super) authkey: Option<AuthKey>,
    pub(super) policy: DigestPolicy,
    pub(super) handshake_timeout: Duration,
    pub(super) max_pending: usize,
    /// Peers of other users are refused.
    pub(super) same_user: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            authkey: None,
            policy: DigestPolicy::default(),
            handshake_timeout: HANDSHAKE_TIMEOUT,
            max_pending: MAX_PENDING,
            same_user: false,
        }
    }
}

impl Terms {
    /// What of them somebody may choose who is not of this family.
    fn of_stranger(self) -> Self {
        let most = Self::default();
        Self {
            policy: most.policy,
            handshake_timeout: self.handshake_timeout.min(most.handshake_timeout),
            max_pending: self.max_pending.min(most.max_pending),
            ..self
        }
    }
}

/// A key inside of a message: whether there is one, which is then that of the process.
mod key_of_process {
    use super::*;

    pub(super) fn serialize<S: Serializer>(key: &Option<AuthKey>, serializer: S) -> Result<S::Ok, S::Error> {
        if key.as_ref().is_some_and(|key| *key != current_process().authkey()) {
            return Err(S::Error::custom(
                "a listener whose key is not the process's own cannot be sent: the key must not travel",
            ));
        }
        key.is_some().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<AuthKey>, D::Error> {
        Ok(bool::deserialize(deserializer)?.then(|| current_process().authkey()))
    }
}

/// What a handshake ends with.
type Outcome = (Result<Connection, AuthError>, Option<Address>);

/// A listening socket and the handshakes of who has come by it.
pub(super) struct Acceptor {
    pub(super) socket: Port,
    pub(super) terms: Terms,
    pub(super) pending: Pending<Outcome>,
    pub(super) callers: Arc<Callers>,
    /// Wakes the callers.
    waker: Waker,
    timer: Port,
    /// What the timer is set to, in nanoseconds of the monotonic clock.
    alarm: Option<u64>,
    /// No descriptor was left: when to see whether there is one.
    paused_until: Option<u64>,
    path: Option<BoundPath>,
    /// Never set, as the socket tells all: for who has to learn of the end of this.
    buffered: Arc<Buffered>,
}

impl Acceptor {
    pub(super) fn new(socket: Fd, path: Option<BoundPath>, terms: Terms) -> io::Result<Self> {
        let callers = Arc::new(Callers::default());
        Ok(Self {
            socket: Port::new(socket),
            pending: Pending::new(terms.max_pending),
            terms,
            waker: callers.clone().into(),
            callers,
            timer: Port::new(sys::fd::timerfd()?),
            alarm: None,
            paused_until: None,
            path,
            buffered: Arc::default(),
        })
    }

    /// By what one sees that somebody has come, for who waits without holding on to this.
    pub(super) fn source(&self) -> Source<'static> {
        Source::buffered(self.socket.fd(), &self.buffered, Self::NAME)
    }

    /// Polls what there is for all [`Callers`], who are woken when there is more.
    pub(super) fn poll_accept(&mut self) -> Poll<Result<(Connection, Option<Address>)>> {
        if self.callers.driven_from(tokio::runtime::Handle::current().id()) {
            self.pending.wake_all();
        }
        let waker = self.waker.clone();
        let cx = &mut Context::from_waker(&waker);
        loop {
            // First those who have waited longer.
            while let Poll::Ready((outcome, peer)) = self.pending.poll(cx) {
                match outcome {
                    Ok(connection) => return Poll::Ready(Ok((connection, peer))),
                    Err(AuthError::Io(error)) => tracing::debug!(?peer, %error, "a peer left its handshake"),
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
            let now = sys::fd::monotonic_ns();
            let deadline = self.pending.give_up_overdue(now);
            if self.paused_until.is_none_or(|until| until <= now) {
                let proceed = ready!(tokio::task::coop::poll_proceed(cx));
                if let Poll::Ready(socket) = self.poll_socket(cx, now)? {
                    proceed.made_progress();
                    if let Some(connection) = self.receive(socket, now)? {
                        return Poll::Ready(Ok(connection));
                    }
                    continue;
                }
            }
            let pause = self.paused_until.filter(|until| *until > now);
            let Some(alarm) = deadline.into_iter().chain(pause).min() else { return Poll::Pending };
            ready!(self.poll_timer(cx, alarm, now))?;
        }
    }

    /// The next peer's socket. What is wrong with one peer is no matter of the listener's.
    fn poll_socket(&mut self, cx: &mut Context<'_>, now: u64) -> Poll<io::Result<Fd>> {
        loop {
            ready!(self.socket.poll_readable(cx))?;
            match net::accept(self.socket.as_fd()) {
                Ok(socket) => {
                    self.paused_until = None;
                    return Poll::Ready(Ok(socket));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.clear_readable(),
                Err(error) if net::is_of_one_peer(&error) => {
                    tracing::debug!(%error, "a peer left before it was accepted");
                }
                Err(error) if net::is_out_of_resources(&error) => {
                    if !self.pending.give_up_oldest() {
                        if self.paused_until.is_none() {
                            tracing::warn!(%error, "peers have to wait until there are descriptors again");
                        }
                        self.paused_until = Some(later(now, EXHAUSTION_PAUSE));
                        return Poll::Pending;
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Lets a peer in, or has it prove first that it may come in.
    fn receive(&mut self, socket: Fd, now: u64) -> Result<Option<(Connection, Option<Address>)>> {
        if self.terms.same_user && !net::peer_is_same_user(socket.as_fd())? {
            return Err(AuthError::OtherUser.into());
        }
        // It has none any more if it has gone already.
        let peer = net::peer_name(socket.as_fd()).ok().and_then(Address::from_name);
        let mut connection = Connection::of_stranger(socket)?;
        let Some(key) = self.terms.authkey.clone() else { return Ok(Some((connection, peer))) };
        let policy = self.terms.policy;
        self.pending.begin(later(now, self.terms.handshake_timeout), async move {
            let proved = mutual_server(&mut connection, &key, policy).await;
            (proved.map(|()| connection), peer)
        });
        Ok(None)
    }

    /// Ready once `alarm` has come, and now and then before.
    fn poll_timer(&mut self, cx: &mut Context<'_>, alarm: u64, now: u64) -> Poll<io::Result<()>> {
        if self.alarm != Some(alarm) {
            let left = Duration::from_nanos(alarm.saturating_sub(now));
            sys::fd::arm_timer(self.timer.as_fd(), Some(left))?;
            self.alarm = Some(alarm);
        }
        ready!(self.timer.poll_readable(cx))?;
        self.timer.clear_readable();
        // Whether it was this alarm or a former one is not known: it is set anew, if it is still to come.
        self.alarm = None;
        Poll::Ready(Ok(()))
    }
}

/// Nanoseconds of the monotonic clock last for centuries.
fn later(now: u64, time: Duration) -> u64 {
    now.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

impl Moves for Acceptor {
    const NAME: &'static str = "listener";
    const FOR_SEVERAL: &'static str = "accept in one, and send the connections to the others";

    fn moved(&mut self) {
        if let Some(path) = &self.path {
            path.leave();
        }
    }
}

/// What of an [`Acceptor`] travels.
#[derive(Serialize, Deserialize)]
struct Moved {
    socket: Descriptor,
    terms: Terms,
    file: Option<BoundFile>,
}

impl Serialize for Acceptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let socket = Descriptor(Attachment(self.socket.fd().clone()));
        let file = self.path.as_ref().map(|path| path.file().clone());
        Moved { socket, terms: self.terms.clone(), file }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Acceptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Moved { socket, terms, file } = Moved::deserialize(deserializer)?;
        let socket = socket.into_fd().map_err(D::Error::custom)?;
        if !net::is_listening(socket.as_fd()) {
            return Err(D::Error::custom("not a listening socket"));
        }
        net::set_nonblocking(socket.as_fd()).map_err(D::Error::custom)?;
        let is_family = writer().is_some_and(Peer::is_family);
        // A stranger must not choose what is removed here, nor what its peers may take up.
        let path = file.filter(|_| is_family).map(BoundPath::own);
        let terms = if is_family { terms } else { terms.of_stranger() };
        Self::new(socket, path, terms).map_err(D::Error::custom)
    }
}

/// Calls of `accept` under way are told that it is over.
impl Drop for Acceptor {
    fn drop(&mut self) {
        self.callers.wake_everyone();
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use super::*;
    use crate::reduction::{Incoming, MessagePack, decode_from, encode};

    #[test]
    fn a_stranger_chooses_no_more_than_is_allowed_to_anybody() {
        let arrived = |terms: Terms, from| {
            let name = net::Name::Inet(([127, 0, 0, 1], 0).into());
            let acceptor = Acceptor::new(net::listen(&name, 1).unwrap(), None, terms).unwrap();
            let mut bytes = Vec::new();
            let beside = encode(&acceptor, &mut bytes, from).unwrap();
            let attachments = beside.into_iter().map(|fd| fd.into_fd().unwrap()).collect();
            let message = Incoming { bytes: &bytes, attachments };
            decode_from::<MessagePack, Acceptor>(message, from).unwrap().terms.clone()
        };
        let terms = |handshake_timeout, max_pending| Terms {
            handshake_timeout,
            max_pending,
            #[cfg(feature = "md5")]
            policy: DigestPolicy::Md5,
            ..Terms::default()
        };
        let chosen = |terms: Terms| (terms.handshake_timeout, terms.max_pending, terms.policy);
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        let weakest = terms(day, 1).policy;
        assert_eq!(chosen(arrived(terms(day, usize::MAX), Peer::AnyBuild)), (day, usize::MAX, weakest));
        let sha = DigestPolicy::Sha256;
        let most = (HANDSHAKE_TIMEOUT, MAX_PENDING, sha);
        assert_eq!(chosen(arrived(terms(day, usize::MAX), Peer::Stranger)), most);
        assert_eq!(chosen(arrived(terms(second, 2), Peer::Stranger)), (second, 2, sha));
    }
}
