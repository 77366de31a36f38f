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
//! # Two kinds of link
//!
//! | | [`pipe`], [`simplex_pipe`] | [`Listener`] and [`Client`], descriptors |
//! |---|---|---|
//! | between | processes of one family | any, also [CPython's](#cpython), also on other machines |
//! | underneath | a pair of packet sockets | a byte stream, in CPython's frames |
//! | a message is whole, | as it is one packet, whoever dies | as its sender finishes what it has begun |
//! | an end is [shared](Connection::share) | by any number of processes | by one alone |
//! | handles travel | yes | over Unix sockets |
//! | functions travel | as their place in the program | by [registered](crate::register) name alone |
//!
//! # Who is at the other end
//!
//! Whoever can reach the address of a listener can connect to it. With an [`AuthKey`](crate::AuthKey) on
//! both sides each proves to the other that it holds the key ([`auth`] says how) before anything else is
//! read; a stranger learns no more than that it has failed, costs a bounded number of descriptors for a
//! bounded time, and holds up nobody. Without a key the address decides: the file's permissions, or those
//! of the private directory of [`Listener::temporary`]; anybody, over TCP and abstract names. Nothing is
//! encrypted. What a peer sends is decoded as data, with limits on its length, depth and handles.
//!
//! # CPython
//!
//! `multiprocessing.connection.Listener` and `Client` of CPython 3.8 and later are peers, with the same
//! key. Messages of bytes need nothing more; for Python's objects there is the feature `python` with the
//! codec `python::Pickle`. Before 3.12 CPython authenticates by MD5 alone, which has to be asked for: the
//! feature `md5`, and [`DigestPolicy::Md5`](DigestPolicy). `examples/python_peer.rs` talks in both
//! directions with the Python of the machine.
//!
//! # Caveats
//!
//! - A message waits in its sender until the kernel has room for it. Two processes that only send to each
//!   other, and do not receive, wait for ever.
//! - A connection reads ahead: several messages that wait in the socket cost one system call. So its
//!   descriptor alone does not say whether there is something to receive; [`poll`](Connection::poll),
//!   [`readable`](Connection::readable) and [`wait`] know both. A [shared](Connection::share) end does not
//!   read ahead.
//! - Small messages that were read together lie in one buffer: the [bytes](Connection::recv_bytes) of one
//!   that is kept keep up to a quarter of a MiB. Whoever keeps many copies them. Each thread that receives
//!   has a room that it reads to, of 2 MiB for pipes and 64 KiB for streams of bytes, as far as it was used.
//! - What a process has received and not answered dies with it. Nothing else does.

mod acceptor;
mod adaptors;
mod address;
pub mod auth;
mod beside;
mod bind;
mod callers;
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
mod resolver;
mod sending;
#[cfg_attr(not(multiprocess), allow(dead_code, reason = "nobody there has a descriptor to begin with"))]
mod stream;
pub(crate) mod wait;

pub use adaptors::{MessageSink, Messages};
pub use address::{Address, Family};
pub use auth::{AuthError, DigestPolicy, answer_challenge, deliver_challenge};
pub use bind::Bind;
pub use client::{Client, Connect};
pub use connection::Connection;
pub use framed::{ByteStream, IntoFramedError};
pub use frames::FrameCodec;
pub use halves::{RecvHalf, ReuniteError, SendHalf};
pub use listener::Listener;
pub use pipe::{pipe, simplex_pipe};
pub use wait::{WaitKey, WaitSet, Waitable, wait, wait_timeout};
