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
enum Way {
    Bare(PathBuf),
    Pipe(mp::Connection),
    Listener(mp::Address),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Work {
    Echo { size: usize },
    Take { size: usize, count: u32 },
}

enum End {
    /// Buffered, so that several messages which wait cost one system call here as well.
    Bare(BufReader<UnixStream>),
    Ours(mp::Connection),
}

impl End {
    fn bare(stream: UnixStream) -> Self {
        Self::Bare(BufReader::with_capacity(64 << 10, stream))
    }

    async fn put(&mut self, message: &[u8]) {
        match self {
            Self::Bare(stream) => stream.write_all(message).await.expect("sent"),
            Self::Ours(connection) => connection.send(message).await.expect("sent"),
        }
    }

    /// False at the end.
    async fn take(&mut self, message: &mut Vec<u8>) -> bool {
        match self {
            Self::Bare(stream) => stream.read_exact(message).await.is_ok(),
            Self::Ours(connection) => match connection.recv().await {
                Ok(received) => {
                    *message = received;
                    true
                }
                Err(error) if error.is_eof() => false,
                Err(error) => panic!("{error}"),
            },
        }
    }
}

async fn peer(way: Way, work: Work) {
    let mut end = match way {
        Way::Bare(path) => End::bare(UnixStream::connect(path).await.expect("a connection")),
        Way::Pipe(connection) => End::Ours(connection),
        Way::Listener(address) => End::Ours(mp::Client::connect(address).await.expect("a connection")),
    };
    match work {
        Work::Echo { size } => {
            let mut message = vec![0; size];
            while end.take(&mut message).await {
                end.put(&message).await;
            }
        }
        Work::Take { size, count } => {
            let (mut go, mut message) = (vec![0; 1], vec![0; size]);
            while end.take(&mut go).await {
                end.put(&go).await;
                for _ in 0..count {
                    assert!(end.take(&mut message).await);
                    assert_eq!((message.len(), message[0]), (size, 7));
                }
                end.put(&go).await;
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
        let mut message = vec![7; 64];
        // The first one shows that the peer is there.
        self.end.put(&message).await;
        assert!(self.end.take(&mut message).await);
        measure(count, async {
            for _ in 0..count {
                self.end.put(&message).await;
                assert!(self.end.take(&mut message).await);
            }
        })
        .await
    }

    pub(crate) async fn send(&mut self, size: usize, count: u32) -> f64 {
        let message = vec![7; size];
        self.ready().await;
        measure(count, async {
            for _ in 0..count {
                self.end.put(&message).await;
            }
            assert!(self.end.take(&mut vec![0]).await);
        })
        .await
    }

    pub(crate) async fn feed(&mut self, size: usize, count: u32) -> f64 {
        let message = vec![7u8; size];
        self.ready().await;
        let End::Ours(connection) = &mut self.end else {
            unreachable!("a bare stream is no sink of messages")
        };
        measure(count, async {
            let mut sink = connection.sink();
            for _ in 0..count {
                sink.feed(message.clone()).await.expect("taken");
            }
            sink.flush().await.expect("sent");
            drop(sink);
            connection.recv::<Vec<u8>>().await.expect("that all has arrived");
        })
        .await
    }

    pub(crate) async fn stop(self) {
        drop(self.end);
        self.process.join().await.expect("its end");
    }

    async fn ready(&mut self) {
        self.end.put(&[1]).await;
        assert!(self.end.take(&mut vec![0]).await);
    }
}

/// What one of `count` operations takes on average if `all` does them; in seconds.
async fn measure(count: u32, all: impl Future<Output = ()>) -> f64 {
    let begin = Instant::now();
    all.await;
    begin.elapsed().as_secs_f64() / f64::from(count)
}
