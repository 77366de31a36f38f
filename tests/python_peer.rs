//! Conversations with real CPythons: `tests/python/peer.py` is at the other end.

#![cfg(target_os = "linux")]

mod support;

use std::fmt::Debug;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use support::python::{Python, pythons};
use support::watchdog;
use tempfile::TempDir;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_multiprocess as mp;
use tokio_multiprocess::connection::auth::{AuthError, DigestPolicy};
use tokio_multiprocess::python::{Global, Object, Pickle};

type Connection = mp::Connection<Pickle>;

const KEY: &str = "a key of both";
/// Bytes of the largest message.
const LARGE: usize = 100 << 20;
/// What a dying peer announces and sends of its last message.
const TORN: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Path,
    Abstract,
    Inet,
}

const KINDS: [Kind; 3] = [Kind::Path, Kind::Abstract, Kind::Inet];

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Abstract => "abstract",
            Self::Inet => "inet",
        }
    }
}

/// A Python that runs the script; killed when it is dropped.
struct Peer {
    child: Child,
    /// Where a server of its makes its files.
    _directory: TempDir,
}

impl Peer {
    fn start(python: &Python, mode: &str, at: &str, key: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let mut command = python.command("peer.py");
        command.args([mode, at, key]).stdout(Stdio::piped()).env("TMPDIR", directory.path());
        Self { child: command.spawn().unwrap(), _directory: directory }
    }

    /// A server that listens: itself, and where.
    async fn server(python: &Python, kind: Kind, key: &str) -> (Self, mp::Address) {
        let mut peer = Self::start(python, "server", kind.word(), key);
        let stdout = peer.child.stdout.take().unwrap();
        let line = spawn_blocking(move || BufReader::new(stdout).lines().next().unwrap().unwrap()).await;
        let line = line.unwrap();
        let address = match kind {
            Kind::Path => mp::Address::Unix(PathBuf::from(line)),
            Kind::Abstract => mp::Address::Abstract(line.into_bytes()),
            Kind::Inet => mp::Address::Inet { host: "127.0.0.1".to_owned(), port: line.parse().unwrap() },
        };
        (peer, address)
    }

    fn client(python: &Python, address: &mp::Address, key: &str) -> Self {
        let literal = match address {
            mp::Address::Unix(path) => format!("{path:?}"),
            mp::Address::Abstract(name) => format!("'\\0{}'", String::from_utf8(name.clone()).unwrap()),
            mp::Address::Inet { host, port } => format!("({host:?}, {port})"),
            other => panic!("{other:?}"),
        };
        Self::start(python, "client", &literal, key)
    }

    async fn ended(mut self) -> ExitStatus {
        spawn_blocking(move || self.child.wait().unwrap()).await.unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Fails if it has ended, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(text: &str) -> mp::AuthKey {
    mp::AuthKey::new(text)
}

/// What has to be said for the key to be exchanged with this version at all.
fn policy(python: &Python) -> DigestPolicy {
    if python.knows_md5_only() { DigestPolicy::Md5 } else { DigestPolicy::Sha256 }
}

/// 256 bytes, each once, over and over.
fn large() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| (0..=255).cycle().take(LARGE).collect())
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Job {
    name: String,
    size: Option<(u32, u64)>,
    data: Vec<u8>,
    state: State,
    total: i128,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum State {
    Waiting,
    Failed { code: i32 },
}

async fn echoes<T: Serialize + DeserializeOwned + PartialEq + Debug>(conn: &mut Connection, value: T) {
    conn.send(&("echo", &value)).await.unwrap();
    assert_eq!(conn.recv::<T>().await.unwrap(), value);
}

async fn objects(conn: &mut Connection) {
    echoes(conn, Option::<u8>::None).await;
    for state in [State::Waiting, State::Failed { code: -3 }] {
        let (data, total) = (vec![0, 10, 255], i128::MIN);
        echoes(conn, Job { name: "grüß".to_owned(), size: Some((3, u64::MAX)), data, state, total }).await;
    }
    let mixed: Vec<(Object, Object)> = vec![
        (1.into(), Object::Tuple(vec![1.into(), "a".into()])),
        ((1, "b").into(), Object::FrozenSet(vec![2.5.into()])),
        (Object::None, Object::ByteArray(vec![1, 2])),
        ("big".into(), (1u128 << 100).into()),
        (b"k"[..].into(), Global::new("collections", "OrderedDict").into()),
    ];
    echoes(conn, Object::Dict(mixed)).await;

    for (value, name, shown) in [
        (Object::new(&vec![1u8, 2]), "bytes", r"b'\x01\x02'"),
        (Object::new(&vec![1u32, 2]), "list", "[1, 2]"),
        (Object::new(&(1u8, "x")), "tuple", "(1, 'x')"),
        (Object::new(&State::Failed { code: 1 }), "dict", "{'Failed': {'code': 1}}"),
        (Object::new(&u128::MAX), "int", "340282366920938463463374607431768211455"),
        (Object::new(&0.1f64), "float", "0.1"),
        (Object::new(&'é'), "str", "'é'"),
    ] {
        conn.send(&("type", value.unwrap())).await.unwrap();
        assert_eq!(conn.recv::<(String, String)>().await.unwrap(), (name.to_owned(), shown.to_owned()));
    }

    conn.send(&("raise", "colour")).await.unwrap();
    let Object::Instance(error) = conn.recv().await.unwrap() else { panic!("no exception") };
    assert!(error.class().unwrap().is("builtins", "KeyError"));
    assert_eq!(error.args, [Object::from("colour")]);

    #[derive(Debug, PartialEq, Deserialize)]
    struct Point {
        x: i32,
        y: String,
    }
    conn.send(&("point",)).await.unwrap();
    assert_eq!(conn.recv::<Point>().await.unwrap(), Point { x: 1, y: "b".to_owned() });

    // What does not fit its type costs that message, and no more.
    conn.send(&("echo", "text")).await.unwrap();
    assert!(matches!(conn.recv::<u8>().await, Err(mp::Error::Decode(_))));
    echoes(conn, 1.5).await;
}

async fn bytes(conn: &mut Connection) {
    for len in [0, 1, 16 << 10, 1 << 20] {
        let sent: Vec<u8> = (0..len).map(|at: u32| (at * 7 / 3) as u8).collect();
        conn.send(&("bytes",)).await.unwrap();
        conn.send_bytes(&sent).await.unwrap();
        let back = conn.recv_bytes().await.unwrap();
        assert!(back.iter().rev().eq(&sent), "{len} bytes");
    }
}

async fn large_message(conn: &mut Connection) {
    conn.send(&("large", LARGE)).await.unwrap();
    conn.send_bytes(large()).await.unwrap();
    assert!(conn.recv::<bool>().await.unwrap());
    assert!(conn.recv_bytes().await.unwrap() == large());
}

async fn converse(conn: mp::Connection, kind: Kind) -> Connection {
    let mut conn = conn.with_codec::<Pickle>();
    objects(&mut conn).await;
    bytes(&mut conn).await;
    if kind == Kind::Path {
        large_message(&mut conn).await;
    }
    conn
}

/// The peer kills itself in the middle of a message.
async fn dies(mut conn: Connection, peer: Peer) {
    conn.send(&("die", TORN)).await.unwrap();
    match conn.recv_bytes().await {
        Err(error @ mp::Error::Io(_)) if !error.is_eof() => {
            let mp::Error::Io(error) = error else { unreachable!() };
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(peer.ended().await.signal(), Some(9));
}

#[track_caller]
fn assert_too_weak<T: Debug>(result: mp::Result<T>) {
    match result {
        Err(mp::Error::Authentication(AuthError::TooWeak)) => {}
        other => panic!("{other:?}"),
    }
}

async fn we_connect(python: Python, kind: Kind) {
    let (peer, address) = Peer::server(&python, kind, KEY).await;
    let right = key(KEY);
    let connect = || mp::Client::connect(&address).digest_policy(policy(&python));

    let wrong = connect().authkey(&key("another")).await.unwrap_err();
    assert!(wrong.is_authentication(), "{wrong:?}");
    if python.knows_md5_only() {
        assert_too_weak(mp::Client::connect(&address).authkey(&right).await);
    }
    let conn = converse(connect().authkey(&right).await.unwrap(), kind).await;
    if kind == Kind::Inet {
        dies(conn, peer).await;
        return;
    }
    let mut conn = conn;
    conn.send(&("bye",)).await.unwrap();
    assert!(conn.recv_bytes().await.unwrap_err().is_eof());

    let mut conn = connect().authkey(&right).await.unwrap().with_codec::<Pickle>();
    conn.send(&("stop",)).await.unwrap();
    assert!(conn.recv::<Object>().await.unwrap_err().is_eof());
    assert!(peer.ended().await.success());
}

async fn we_listen(python: Python, kind: Kind) {
    let directory = TempDir::new().unwrap();
    let address = match kind {
        Kind::Path => mp::Address::Unix(directory.path().join("socket")),
        Kind::Abstract => {
            let unique = directory.path().file_name().unwrap().to_string_lossy();
            mp::Address::Abstract(format!("tokio-multiprocess{unique}").into_bytes())
        }
        Kind::Inet => mp::Address::Inet { host: "127.0.0.1".to_owned(), port: 0 },
    };
    if python.knows_md5_only() && kind == Kind::Inet {
        let strict = mp::Listener::bind(&address).authkey(&key(KEY)).await.unwrap();
        let peer = Peer::client(&python, strict.address(), KEY);
        assert_too_weak(strict.accept().await);
        assert_eq!(peer.ended().await.code(), Some(7));
    }
    let bind = mp::Listener::bind(&address).authkey(&key(KEY)).digest_policy(policy(&python));
    let listener = bind.await.unwrap();

    let peer = Peer::client(&python, listener.address(), "another");
    let refused = listener.accept().await.unwrap_err();
    assert!(refused.is_authentication(), "{refused:?}");
    assert_eq!(peer.ended().await.code(), Some(7));

    let peer = Peer::client(&python, listener.address(), KEY);
    let mut conn = converse(listener.accept().await.unwrap(), kind).await;
    if kind == Kind::Abstract {
        dies(conn, peer).await;
    } else {
        conn.send(&("bye",)).await.unwrap();
        assert!(conn.recv_bytes().await.unwrap_err().is_eof());
        assert!(peer.ended().await.success());
    }
}

/// Runs what is given with each Python over each kind of address, side by side.
async fn with_each<F>(test: fn(Python, Kind) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tests = JoinSet::new();
    for python in pythons() {
        for kind in KINDS {
            let (name, test) = (format!("3.{} over {kind:?}", python.minor), test(python.clone(), kind));
            tests.spawn(async move { (name, tokio::spawn(test).await) });
        }
    }
    while let Some(done) = tests.join_next().await {
        let (name, result) = done.unwrap();
        assert!(result.is_ok(), "{name}: {result:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_of_each_python() {
    let _watchdog = watchdog(150);
    with_each(we_connect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn listeners_for_each_python() {
    let _watchdog = watchdog(150);
    with_each(we_listen).await;
}

#[tokio::test]
async fn without_keys_nothing_is_asked() {
    let _watchdog = watchdog(60);
    for python in pythons() {
        let (peer, address) = Peer::server(python, Kind::Path, "-").await;
        let mut conn = mp::Client::connect(&address).await.unwrap().with_codec::<Pickle>();
        echoes(&mut conn, "no key".to_owned()).await;
        conn.send(&("stop",)).await.unwrap();
        assert!(peer.ended().await.success());
        assert!(!Path::new(&address.to_string()).exists());
    }
}
