//! Connections between processes: message streams over sockets and pipes.
//!
//! [`auth`] is the handshake by which both ends of a fresh connection prove that they hold the same
//! [`AuthKey`](crate::AuthKey) before anything else is read from it.

mod adaptors;
pub mod auth;
mod beside;
#[allow(clippy::module_inception, reason = "the type's own file")]
mod connection;
#[cfg(multiprocess)]
mod descriptor;
mod framed;
#[cfg_attr(not(multiprocess), allow(dead_code, reason = "nobody there has a descriptor to begin with"))]
mod frames;
mod halves;
mod linger;
#[cfg_attr(not(multiprocess), allow(dead_code, reason = "nobody there has a descriptor to begin with"))]
mod link;
mod packets;
mod pipe;
mod port;
mod receiving;
mod sending;
#[cfg_attr(not(multiprocess), allow(dead_code, reason = "nobody there has a descriptor to begin with"))]
mod stream;
mod wait;

pub use adaptors::{MessageSink, Messages};
pub use auth::AuthError;
pub use connection::Connection;
pub use framed::ByteStream;
pub use frames::FrameCodec;
pub use halves::{RecvHalf, ReuniteError, SendHalf};
pub use pipe::{pipe, simplex_pipe};
pub use wait::{WaitKey, WaitSet, Waitable, wait, wait_timeout};
