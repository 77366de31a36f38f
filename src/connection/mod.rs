//! Connections between processes: whole messages over sockets and pipes.
//!
//! [`pipe`] gives two connected ends; an end goes to another process as an argument or in a message, and
//! is then there.
//!
//! ```no_run
//! # async fn demo() -> tokio_multiprocess::Result<()> {
//! use tokio_multiprocess::{Connection, Process, pipe};
//!
//! async fn shout(mut conn: Connection) {
//!     while let Ok(text) = conn.recv::<String>().await {
//!         let _ = conn.send(&text.to_uppercase()).await;
//!     }
//! }
//!
//! let (mut here, there) = pipe()?;
//! let child = Process::builder(shout, (there,)).start().await?;
//! here.send("hello").await?;
//! assert_eq!(here.recv::<String>().await?, "HELLO");
//! // It sees the end.
//! drop(here);
//! child.join().await?;
//! # Ok(()) }
//! ```
//!
//! # Caveats
//!
//! - A message waits in its sender until the kernel has room for it. Two processes that only send to each
//!   other, and do not receive, wait for ever.
//! - A connection reads ahead: several messages that wait in the socket cost one system call. So its
//!   descriptor alone does not say whether there is something to receive; [`poll`](Connection::poll),
//!   [`readable`](Connection::readable) and [`wait`] know both. A [shared](Connection::share) end does not
//!   read ahead.
//! - What a process has received and not answered dies with it. Nothing else does.
//!
//! [`auth`] is the handshake by which both ends of a fresh connection prove that they hold the same
//! [`AuthKey`](crate::AuthKey) before anything else is read from it.

mod acceptor;
mod adaptors;
mod address;
pub mod auth;
mod beside;
mod bind;
mod client;
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
mod listener;
mod packets;
mod pending;
mod pipe;
mod port;
mod receiving;
mod sending;
#[cfg_attr(not(multiprocess), allow(dead_code, reason = "nobody there has a descriptor to begin with"))]
mod stream;
mod wait;

pub use adaptors::{MessageSink, Messages};
pub use address::{Address, Family};
pub use auth::{AuthError, answer_challenge, deliver_challenge};
pub use bind::Bind;
pub use client::{Client, Connect};
pub use connection::Connection;
pub use framed::ByteStream;
pub use frames::FrameCodec;
pub use halves::{RecvHalf, ReuniteError, SendHalf};
pub use listener::Listener;
pub use pipe::{pipe, simplex_pipe};
pub use wait::{WaitKey, WaitSet, Waitable, wait, wait_timeout};
