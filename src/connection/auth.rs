//! Mutual authentication of a fresh connection.
//!
//! One side delivers a challenge of random bytes; the other answers with an HMAC of it under the
//! shared [`AuthKey`], and learns whether it was welcome. Then the roles are exchanged, so that each
//! has seen proof. The key itself never travels. The frames are those of CPython's `multiprocessing`
//! since 3.12 and the digest is SHA-256:
//!
//! ```text
//! accepting → connecting   "#CHALLENGE#" "{sha256}" 40 random bytes
//! connecting → accepting   "{sha256}" HMAC(key, everything after "#CHALLENGE#")
//! accepting → connecting   "#WELCOME#" or "#FAILURE#"
//! … the same three the other way round
//! ```
//!
//! [`mutual_server`] and [`mutual_client`] are the whole handshake for the accepting and the
//! connecting side; [`deliver_challenge`] and [`answer_challenge`] are its halves. They work over
//! any [`Link`] that carries frames.
//!
//! # Examples
//!
//! ```
//! use std::io;
//!
//! use bytes::Bytes;
//! use tokio::sync::mpsc::{Receiver, Sender, channel};
//! use tokio_multiprocess::AuthKey;
//! use tokio_multiprocess::connection::auth::{DigestPolicy, Link, mutual_client, mutual_server};
//!
//! struct Channel(Sender<Bytes>, Receiver<Bytes>);
//!
//! #[async_trait::async_trait]
//! impl Link for Channel {
//!     async fn send_bytes(&mut self, frame: &[u8]) -> io::Result<()> {
//!         let frame = Bytes::copy_from_slice(frame);
//!         self.0.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
//!     }
//!
//!     async fn recv_bytes(&mut self, max_len: usize) -> io::Result<Bytes> {
//!         let frame = self.1.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
//!         if frame.len() > max_len {
//!             return Err(io::ErrorKind::InvalidData.into());
//!         }
//!         Ok(frame)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let ((to_client, from_server), (to_server, from_client)) = (channel(1), channel(1));
//! let mut server = Channel(to_client, from_client);
//! let mut client = Channel(to_server, from_server);
//!
//! let key = AuthKey::random();
//! let policy = DigestPolicy::default();
//! let (accepted, connected) = tokio::join!(
//!     mutual_server(&mut server, &key, policy),
//!     mutual_client(&mut client, &key, policy),
//! );
//! accepted.unwrap();
//! connected.unwrap();
//! # }
//! ```
//!
//! # Caveats
//!
//! - **Deadlines belong to the caller.** A peer may stay silent for ever; wrap these functions in
//!   [`tokio::time::timeout`](https://docs.rs/tokio/latest/tokio/time/fn.timeout.html).
//! - **Cancel safety:** none of these functions is cancel safe. After a cancelled or failed
//!   handshake the peers disagree on what comes next: drop the link.
//! - The handshake proves that a holder of the key takes part, not that it sits at the other end of
//!   *this* link. Who can lure one key holder into connecting to it can pass that holder's answers on
//!   to another. What follows the handshake is neither encrypted nor signed.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::AuthKey;

pub(super) const CHALLENGE: &[u8] = b"#CHALLENGE#";
const WELCOME: &[u8] = b"#WELCOME#";
const FAILURE: &[u8] = b"#FAILURE#";

/// The longest frame of the handshake, in bytes.
const MAX_FRAME: usize = 256;

const NONCE_LEN: usize = 40;

/// No shorter challenge is answered, as an answer to one could be looked up rather than computed.
const MIN_CHALLENGE: usize = 20;

/// Messages of these lengths are of the form without a digest name, whatever they begin with.
const BARE_LENGTHS: [usize; 2] = [16, 20];

/// Where the brace that closes a digest name stands at the latest.
const MAX_BRACE: usize = 9;

/// A bidirectional transport of whole frames, over which a handshake can run.
#[async_trait]
pub trait Link: Send {
    /// Sends one frame, delivered whole or not at all.
    ///
    /// # Errors
    ///
    /// What the transport reports.
    async fn send_bytes(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Receives one frame of at most `max_len` bytes.
    ///
    /// # Errors
    ///
    /// What the transport reports; also when the next frame is longer than `max_len`, which must be
    /// found out before room is made for it, or is none ([`io::ErrorKind::InvalidData`]), and when the
    /// peer has gone ([`io::ErrorKind::UnexpectedEof`]).
    async fn recv_bytes(&mut self, max_len: usize) -> io::Result<Bytes>;
}

/// Why a handshake failed.
///
/// Every variant but [`AuthError::Io`] means that the peer must not be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The link failed or the peer hung up, which may be its way of saying no.
    #[error("the connection failed during authentication")]
    Io(#[from] io::Error),
    /// The peer did not accept our answer: it said so, or said something that is not a welcome.
    #[error("the peer rejected our answer to its challenge")]
    Rejected,
    /// The peer's answer to our challenge is wrong, so it does not hold our key.
    #[error("the peer's answer to our challenge is wrong")]
    Mismatch,
    /// The peer sent what is no frame of the handshake, or a challenge shorter than 20 bytes.
    #[error("the peer sent a malformed authentication message")]
    Malformed,
    /// The peer asked for, or answered with, a digest of this name, which is not spoken here.
    #[error("the peer wants the digest {0:?}, which is not supported")]
    UnsupportedDigest(String),
    /// The peer wants MD5, by name or by the form without a name, and the [`DigestPolicy`] forbids
    /// it.
    #[error(
        "the peer wants a digest weaker than the policy allows (CPython before 3.12 knows MD5 only: feature \
         `md5`, `DigestPolicy::Md5`)"
    )]
    TooWeak,
    /// The peer sent us the challenge that we had sent it, so that we answer it in its stead.
    #[error("the peer sent our own challenge back")]
    Reflected,
    /// The peer asks for a proof that we hold its key, and none was given to
    /// [`Client::connect`](crate::Client::connect): a listener with a key, and a client without.
    #[error("the peer asks for an authkey, and this client has connected without one")]
    KeyWanted,
    /// The peer belongs to another user, and the listener is for its own user alone.
    #[error("the peer belongs to another user")]
    OtherUser,
}

/// The weakest digest that a handshake may use.
///
/// CPython before 3.12 knows MD5 only: it takes the feature `md5` and `DigestPolicy::Md5` to talk with it
/// under a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DigestPolicy {
    /// SHA-256 and nothing weaker.
    #[default]
    Sha256,
    /// HMAC-MD5 too, as CPython before 3.12 needs it.
    ///
    /// Our own challenges still ask for SHA-256, but whoever sits between the peers can have MD5
    /// used instead.
    #[cfg(feature = "md5")]
    Md5,
}

impl DigestPolicy {
    /// The code by which a holder of `key` answers `message`, if the policy allows that form.
    fn authenticate(self, form: Form, key: &AuthKey, message: &[u8]) -> Result<Vec<u8>, AuthError> {
        match form {
            Form::Sha256 => Ok(hmac::<Hmac<Sha256>>(key, message)),
            #[cfg(feature = "md5")]
            Form::Md5 | Form::BareMd5 if self == Self::Md5 => Ok(hmac::<Hmac<md5::Md5>>(key, message)),
            Form::Md5 | Form::BareMd5 => Err(AuthError::TooWeak),
        }
    }
}

fn hmac<M: Mac + KeyInit>(key: &AuthKey, message: &[u8]) -> Vec<u8> {
    let mut mac = M::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

/// How a challenge or an answer says which digest it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Sha256,
    Md5,
    /// MD5 without its name: all that CPython before 3.12 knows.
    BareMd5,
}

impl Form {
    /// Tells the form of a message from what follows its digest name.
    fn split(message: &[u8]) -> Result<(Self, &[u8]), AuthError> {
        // Before the name: the random bytes of the bare form can look like one.
        if BARE_LENGTHS.contains(&message.len()) {
            return Ok((Self::BareMd5, message));
        }
        let brace =
            message.iter().take(MAX_BRACE + 1).position(|&byte| byte == b'}').ok_or(AuthError::Malformed)?;
        let name = message[..brace].strip_prefix(b"{").ok_or(AuthError::Malformed)?;
        let form = match name {
            b"sha256" => Self::Sha256,
            b"md5" => Self::Md5,
            // The name ends up in logs: let no stranger write anything but a word there.
            name if is_word(name) => {
                let name = String::from_utf8_lossy(name).into_owned();
                return Err(AuthError::UnsupportedDigest(name));
            }
            _ => return Err(AuthError::Malformed),
        };
        Ok((form, &message[brace + 1..]))
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Sha256 => b"{sha256}",
            Self::Md5 => b"{md5}",
            Self::BareMd5 => b"",
        }
    }
}

fn is_word(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(byte))
}

fn check_len(frame: &[u8]) -> Result<(), AuthError> {
    if frame.len() > MAX_FRAME {
        return Err(AuthError::Malformed);
    }
    Ok(())
}

/// The side that delivers a challenge and judges the answer.
struct Challenger<'a> {
    key: &'a AuthKey,
    policy: DigestPolicy,
    message: Vec<u8>,
}

impl<'a> Challenger<'a> {
    /// `nonce` must be fresh randomness: an answer to a repeated challenge can be replayed.
    fn new(key: &'a AuthKey, policy: DigestPolicy, nonce: &[u8; NONCE_LEN]) -> Self {
        let message = [Form::Sha256.prefix(), nonce].concat();
        Self { key, policy, message }
    }

    fn challenge(&self) -> Vec<u8> {
        [CHALLENGE, &self.message].concat()
    }

    fn judge(&self, answer: &[u8]) -> Result<(), AuthError> {
        check_len(answer)?;
        let (form, code) = Form::split(answer)?;
        let expected = self.policy.authenticate(form, self.key, &self.message)?;
        if bool::from(expected.ct_eq(code)) { Ok(()) } else { Err(AuthError::Mismatch) }
    }

    /// The frame that tells the peer how it was judged: never why.
    fn verdict(judgement: &Result<(), AuthError>) -> &'static [u8] {
        if judgement.is_ok() { WELCOME } else { FAILURE }
    }
}

/// The side that answers a challenge and waits for its welcome.
struct Answerer<'a> {
    key: &'a AuthKey,
    policy: DigestPolicy,
    /// The message that this side issued on the same link, if it did.
    issued: Option<&'a [u8]>,
}

impl Answerer<'_> {
    fn answer(&self, challenge: &[u8]) -> Result<Vec<u8>, AuthError> {
        check_len(challenge)?;
        let message = challenge.strip_prefix(CHALLENGE).ok_or(AuthError::Malformed)?;
        if message.len() < MIN_CHALLENGE {
            return Err(AuthError::Malformed);
        }
        if self.issued == Some(message) {
            return Err(AuthError::Reflected);
        }
        let (form, _nonce) = Form::split(message)?;
        let code = self.policy.authenticate(form, self.key, message)?;
        Ok([form.prefix(), &code].concat())
    }

    fn accept_verdict(verdict: &[u8]) -> Result<(), AuthError> {
        if verdict == WELCOME { Ok(()) } else { Err(AuthError::Rejected) }
    }
}

/// Challenges the peer to prove that it holds `key`, by SHA-256 only.
///
/// Returns once the peer has proved it and has been told so. On a wrong answer the peer is told
/// `#FAILURE#` and nothing else.
///
/// # Errors
///
/// Any [`AuthError`] but [`AuthError::Rejected`] and [`AuthError::Reflected`].
///
/// # Cancel safety
///
/// Not cancel safe: drop the link afterwards. There is no deadline but the caller's.
pub async fn deliver_challenge<L: Link + ?Sized>(link: &mut L, key: &AuthKey) -> Result<(), AuthError> {
    deliver_challenge_with(link, key, DigestPolicy::default()).await
}

/// As [`deliver_challenge`], with a choice of what digests to accept.
///
/// # Errors
///
/// As for [`deliver_challenge`].
///
/// # Cancel safety
///
/// As for [`deliver_challenge`].
pub async fn deliver_challenge_with<L: Link + ?Sized>(
    link: &mut L,
    key: &AuthKey,
    policy: DigestPolicy,
) -> Result<(), AuthError> {
    deliver(link, key, policy).await.map(drop)
}

/// Proves to the peer that we hold `key`, by SHA-256 only.
///
/// Returns once the peer has said that we are welcome.
///
/// # Errors
///
/// Any [`AuthError`] but [`AuthError::Mismatch`] and [`AuthError::Reflected`]. A verdict that is
/// neither welcome nor failure counts as [`AuthError::Rejected`].
///
/// # Cancel safety
///
/// Not cancel safe: drop the link afterwards. There is no deadline but the caller's.
pub async fn answer_challenge<L: Link + ?Sized>(link: &mut L, key: &AuthKey) -> Result<(), AuthError> {
    answer_challenge_with(link, key, DigestPolicy::default()).await
}

/// As [`answer_challenge`], with a choice of what digests to use when asked.
///
/// # Errors
///
/// As for [`answer_challenge`].
///
/// # Cancel safety
///
/// As for [`answer_challenge`].
pub async fn answer_challenge_with<L: Link + ?Sized>(
    link: &mut L,
    key: &AuthKey,
    policy: DigestPolicy,
) -> Result<(), AuthError> {
    answer(link, Answerer { key, policy, issued: None }).await
}

/// The whole handshake for the side that accepted the connection: it challenges, then answers.
///
/// A peer that sends our own challenge back is refused.
///
/// # Errors
///
/// Any [`AuthError`].
///
/// # Cancel safety
///
/// Not cancel safe: drop the link afterwards. There is no deadline but the caller's.
pub async fn mutual_server<L: Link + ?Sized>(
    link: &mut L,
    key: &AuthKey,
    policy: DigestPolicy,
) -> Result<(), AuthError> {
    let issued = deliver(link, key, policy).await?;
    answer(link, Answerer { key, policy, issued: Some(&issued) }).await
}

/// The whole handshake for the side that connected: it answers, then challenges.
///
/// # Errors
///
/// Any [`AuthError`] but [`AuthError::Reflected`].
///
/// # Cancel safety
///
/// Not cancel safe: drop the link afterwards. There is no deadline but the caller's.
pub async fn mutual_client<L: Link + ?Sized>(
    link: &mut L,
    key: &AuthKey,
    policy: DigestPolicy,
) -> Result<(), AuthError> {
    // Nothing can be reflected here: our challenge is drawn only after we have answered for the
    // last time.
    answer_challenge_with(link, key, policy).await?;
    deliver_challenge_with(link, key, policy).await
}

/// What is too long, or no frame at all, is no more of a handshake than wrong words are.
async fn hear<L: Link + ?Sized>(link: &mut L) -> Result<Bytes, AuthError> {
    let heard = link.recv_bytes(MAX_FRAME).await;
    heard.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => AuthError::Malformed,
        _ => AuthError::Io(error),
    })
}

/// Returns the message that was issued.
async fn deliver<L: Link + ?Sized>(
    link: &mut L,
    key: &AuthKey,
    policy: DigestPolicy,
) -> Result<Vec<u8>, AuthError> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    let challenger = Challenger::new(key, policy, &nonce);
    link.send_bytes(&challenger.challenge()).await?;
    let judgement = match hear(link).await {
        Ok(answer) => challenger.judge(&answer),
        Err(AuthError::Io(error)) => return Err(error.into()),
        Err(error) => Err(error),
    };
    let told = link.send_bytes(Challenger::verdict(&judgement)).await;
    // That the peer is no friend matters more than that it could not be told so.
    judgement?;
    told?;
    Ok(challenger.message)
}

async fn answer<L: Link + ?Sized>(link: &mut L, answerer: Answerer<'_>) -> Result<(), AuthError> {
    let answer = answerer.answer(&hear(link).await?)?;
    link.send_bytes(&answer).await?;
    Answerer::accept_verdict(&hear(link).await?)
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
