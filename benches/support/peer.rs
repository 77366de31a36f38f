//! A process at the other end of a connection of each kind, and what it does there.
//!
//! In every round it says that it is ready before the clock starts, and that it has taken all before the
//! clock stops.

use std::path::PathBuf;
use std::time::Instant;

use futures::SinkExt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_multiprocess as mp;

use crate::support::KeptOn;

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Bare,
    Pipe,
    Listener,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare Tokio UnixStream",
            Self::Pipe => "pipe()",
            Self::Listener => "Listener, on a Unix socket",
        }
    }
}

/// How a peer gets its end.
#[derive(Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "there is one")]
enum Way {
    Bare(PathBuf),
    Pipe(mp::Connection),
    Listener(mp::Address),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Sends back what it gets.
    Echo,
    /// Takes bytes.
    Bytes { size: usize, count: u32 },
    /// Takes values of 64 B.
    Values { count: u32 },
}

/// 64 B, as a value: none of its numbers is small.
pub(crate) type Value = [u64; 8];
pub(crate) const VALUE: Value = [u64::MAX; 8];
pub(crate) const SIZE: usize = size_of::<Value>();

#[allow(clippy::large_enum_variant, reason = "there is one")]
enum End {
    /// Buffered, so that several messages which wait cost one system call here as well.
    Bare(BufReader<UnixStream>),
    Ours(mp::Connection),
}

impl End {
    fn bare(stream: UnixStream) -> Self {
        Self::Bare(BufReader::with_capacity(64 << 10, stream))
    }

    async fn put(&mut self, bytes: &[u8]) {
        match self {
            Self::Bare(stream) => stream.write_all(bytes).await.expect("sent"),
            Self::Ours(connection) => connection.send_bytes(bytes).await.expect("sent"),
        }
    }

    /// Takes as many bytes as `room` has; false at the end.
    async fn take(&mut self, room: &mut [u8]) -> bool {
        match self {
            Self::Bare(stream) => stream.read_exact(room).await.is_ok(),
            Self::Ours(connection) => match connection.recv_bytes().await {
                // Nobody needs a copy of what is there.
                Ok(bytes) => {
                    assert_eq!(bytes.len(), room.len());
                    true
                }
                Err(error) if error.is_eof() => false,
                Err(error) => panic!("{error}"),
            },
        }
    }

    async fn put_value(&mut self) {
        match self {
            Self::Bare(stream) => stream.write_all(&[7; SIZE]).await.expect("sent"),
            Self::Ours(connection) => connection.send(&VALUE).await.expect("sent"),
        }
    }

    async fn take_value(&mut self) {
        match self {
            Self::Bare(stream) => {
                stream.read_exact(&mut [0; SIZE]).await.expect("received");
            }
            Self::Ours(connection) => {
                let value: Value = connection.recv().await.expect("received");
                assert_eq!(value, VALUE);
            }
        }
    }

    /// Asks whether the other side is ready.
    async fn meet(&mut self) -> bool {
        self.put(&[1]).await;
        self.take(&mut [0]).await
    }
}

async fn peer(way: Way, work: Work) {
    let _elsewhere = KeptOn::processor(1);
    let mut end = match way {
        Way::Bare(path) => End::bare(UnixStream::connect(path).await.expect("a connection")),
        Way::Pipe(connection) => End::Ours(connection),
        Way::Listener(address) => End::Ours(mp::Client::connect(address).await.expect("a connection")),
    };
    match work {
        Work::Echo => {
            let mut bytes = [0; SIZE];
            while end.take(&mut bytes).await {
                end.put(&bytes).await;
            }
        }
        Work::Bytes { size, count } => {
            let mut room = vec![0; size];
            while end.take(&mut [0]).await {
                end.put(&[1]).await;
                for _ in 0..count {
                    assert!(end.take(&mut room).await);
                }
                end.put(&[1]).await;
            }
        }
        Work::Values { count } => {
            while end.take(&mut [0]).await {
                end.put(&[1]).await;
                for _ in 0..count {
                    end.take_value().await;
                }
                end.put(&[1]).await;
            }
        }
    }
}

/// A process that works at the other end.
pub(crate) struct Peer {
    process: mp::Process,
    end: End,
}

impl Peer {
    pub(crate) async fn start(kind: Kind, work: Work) -> Self {
        let start = async |way| mp::Process::builder(peer, (way, work)).start().await.expect("a child");
        match kind {
            Kind::Bare => {
                let directory = tempfile::tempdir().expect("a directory");
                let path = directory.path().join("socket");
                let listener = UnixListener::bind(&path).expect("a listener");
                let process = start(Way::Bare(path)).await;
                let (stream, _) = listener.accept().await.expect("a connection");
                Self { process, end: End::bare(stream) }
            }
            Kind::Pipe => {
                let (here, there) = mp::pipe().expect("a pipe");
                Self { process: start(Way::Pipe(there)).await, end: End::Ours(here) }
            }
            Kind::Listener => {
                let listener = mp::Listener::temporary().await.expect("a listener");
                let process = start(Way::Listener(listener.address().clone())).await;
                Self { process, end: End::Ours(listener.accept().await.expect("a connection")) }
            }
        }
    }

    /// What one takes, in seconds.
    pub(crate) async fn round_trips(&mut self, count: u32) -> f64 {
        let mut bytes = [7; SIZE];
        // The first one shows that the peer is there.
        self.end.put(&bytes).await;
        assert!(self.end.take(&mut bytes).await);
        each(count, async {
            for _ in 0..count {
                self.end.put(&bytes).await;
                assert!(self.end.take(&mut bytes).await);
            }
        })
        .await
    }

    pub(crate) async fn send_bytes(&mut self, size: usize, count: u32) -> f64 {
        let bytes = vec![7; size];
        assert!(self.end.meet().await);
        each(count, async {
            for _ in 0..count {
                self.end.put(&bytes).await;
            }
            assert!(self.end.take(&mut [0]).await);
        })
        .await
    }

    pub(crate) async fn send(&mut self, count: u32) -> f64 {
        assert!(self.end.meet().await);
        each(count, async {
            for _ in 0..count {
                self.end.put_value().await;
            }
            assert!(self.end.take(&mut [0]).await);
        })
        .await
    }

    pub(crate) async fn feed(&mut self, count: u32) -> f64 {
        assert!(self.end.meet().await);
        let End::Ours(connection) = &mut self.end else { unreachable!("a bare stream is no sink of values") };
        each(count, async {
            let mut sink = connection.sink::<Value>();
            for _ in 0..count {
                sink.feed(VALUE).await.expect("taken");
            }
            sink.flush().await.expect("sent");
            drop(sink);
            connection.recv_bytes().await.expect("that all has arrived");
        })
        .await
    }

    pub(crate) async fn stop(self) {
        drop(self.end);
        self.process.join().await.expect("its end");
    }
}

/// What one of `count` operations takes on average if `all` does them; in seconds.
async fn each(count: u32, all: impl Future<Output = ()>) -> f64 {
    let begin = Instant::now();
    all.await;
    begin.elapsed().as_secs_f64() / f64::from(count)
}
