//! Connections between processes: message streams over sockets and pipes.
//!
//! [`auth`] is the handshake by which both ends of a fresh connection prove that they hold the same
//! [`AuthKey`](crate::AuthKey) before anything else is read from it.

mod adaptors;
pub mod auth;
#[allow(clippy::module_inception, reason = "the type's own file")]
mod connection;
mod halves;
mod link;
mod packets;
mod pipe;
mod port;
mod receiving;
mod sending;
mod wait;

pub use adaptors::{MessageSink, Messages};
pub use auth::AuthError;
pub use connection::Connection;
pub use halves::{RecvHalf, ReuniteError, SendHalf};
pub use pipe::{pipe, simplex_pipe};
pub use wait::{WaitKey, WaitSet, Waitable, wait, wait_timeout};
