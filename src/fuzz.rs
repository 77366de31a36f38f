//! Where fuzzers come in: what arrives from a peer, whatever it is. Each function takes bytes that a
//! fuzzer has made up, and panics if one of its promises is broken.
//!
//! The targets are in `fuzz/`, to be run by `cargo +nightly fuzz run TARGET` there. What they have found
//! worth keeping lies in `fuzz/corpus`, and is replayed as a test.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use hmac::{Hmac, KeyInit, Mac};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_util::codec::Decoder;

use crate::connection::auth::{self, DigestPolicy};
use crate::connection::{Connection, FrameCodec, RecvHalf};
use crate::reduction::{self, CodecError, Descriptor, Incoming, MessagePack, Peer};
use crate::sys::memory::{self, Frozen};
use crate::sys::socket::{self, Mode};
use crate::sys::{self, AsFd, Fd};
use crate::{AuthKey, Error, Func};

/// Longer inputs say nothing new, and would fill the sockets that some go through.
const LONGEST: usize = 16 << 10;

/// Nothing waits that long, as all that is to come is there.
const FOR_EVER: Duration = Duration::from_secs(20);

const KEY: &[u8] = b"a shared secret";
const CHALLENGE: &[u8] = b"#CHALLENGE#";
const LONGEST_FRAME: usize = 256;

/// A handshake with a peer that says what the input tells it to: nobody comes through who has not
/// proved that he holds the key, and nothing but frames of the handshake's size is said to him.
pub fn handshake(data: &[u8]) {
    let Some((&choice, script)) = data.split_first() else { return };
    let policy = match choice & 2 {
        #[cfg(feature = "md5")]
        2 => DigestPolicy::Md5,
        _ => DigestPolicy::default(),
    };
    let key = AuthKey::from(KEY);
    let mut peer = Scripted { script, heard: VecDeque::new(), proved: false };
    let result = if choice & 1 == 0 {
        auth::mutual_server(&mut peer, &key, policy).now_or_never()
    } else {
        auth::mutual_client(&mut peer, &key, policy).now_or_never()
    };
    if result.expect("the peer never has us wait").is_ok() {
        assert!(peer.proved, "a peer without the key was let in");
    }
}

struct Scripted<'a> {
    script: &'a [u8],
    heard: VecDeque<Vec<u8>>,
    /// It has said the right answer to the last thing that it was told.
    proved: bool,
}

impl Scripted<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.script.split_off_first().copied()
    }

    fn say(&mut self) -> Option<Vec<u8>> {
        let act = self.byte()?;
        let heard = |back: usize| self.heard.iter().nth_back(back).cloned();
        Some(match act {
            0 => {
                let challenge = heard(0).unwrap_or_default();
                let Some(message) = challenge.strip_prefix(CHALLENGE) else { return Some(challenge) };
                let mut mac = Hmac::<Sha256>::new_from_slice(KEY).expect("a key of any length");
                mac.update(message);
                self.proved = true;
                [&b"{sha256}"[..], &mac.finalize().into_bytes()].concat()
            }
            1 => heard(0).unwrap_or_default(),
            2 => heard(1).unwrap_or_default(),
            3 => b"#WELCOME#".to_vec(),
            4 => [CHALLENGE, b"{sha256}", &[7; 40]].concat(),
            len => {
                let len = usize::from(len).min(self.script.len());
                self.script.split_off(..len).unwrap_or_default().to_vec()
            }
        })
    }
}

#[async_trait::async_trait]
impl auth::Link for Scripted<'_> {
    async fn send_bytes(&mut self, frame: &[u8]) -> io::Result<()> {
        assert!(frame.len() <= LONGEST_FRAME);
        self.heard.push_back(frame.to_vec());
        Ok(())
    }

    async fn recv_bytes(&mut self, max_len: usize) -> io::Result<Bytes> {
        match self.say() {
            Some(frame) if frame.len() > max_len => Err(io::ErrorKind::InvalidData.into()),
            Some(frame) => Ok(frame.into()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A byte stream that comes in pieces: the decoder of frames and a connection over a socket, also one
/// whose `recv` is given up again and again, read the same messages and agree on whether it ends well.
pub fn frames(data: &[u8]) {
    const MAX: usize = 1 << 10;
    let Some((&pace, stream)) = data.split_first() else { return };
    let stream = &stream[..stream.len().min(LONGEST)];
    let pieces = || stream.chunks(usize::from(pace).max(stream.len() / 16).max(1));

    let mut codec = FrameCodec::new().max_message(MAX);
    let mut buffer = BytesMut::new();
    let mut expected = Vec::new();
    let mut take = |codec: &mut FrameCodec, buffer: &mut BytesMut| {
        loop {
            match codec.decode(buffer) {
                Ok(Some(frame)) => expected.push(frame),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    };
    let ends_well = pieces().all(|piece| {
        buffer.extend_from_slice(piece);
        take(&mut codec, &mut buffer)
    }) && matches!(codec.decode_eof(&mut buffer), Ok(None));

    block_on(async {
        let (mut peer, here) = UnixStream::pair().expect("a pair of sockets");
        let mut connection = RecvHalf::from_fd(here.into()).expect("a connection");
        connection.set_max_message(MAX);
        let mut received = Vec::new();
        let mut fault = None;
        for piece in pieces() {
            peer.write_all(piece).expect("room for it");
            while let Some(message) = connection.recv_bytes().now_or_never() {
                match message {
                    Ok(message) => received.push(message),
                    Err(error) => {
                        fault = Some(error);
                        break;
                    }
                }
            }
            if fault.is_some() {
                break;
            }
            // Has the reactor look as well.
            tokio::task::yield_now().await;
        }
        drop(peer);
        let fault = loop {
            match (fault.take(), connection.recv_bytes().await) {
                (Some(fault), Err(_)) => break fault,
                (Some(fault), Ok(_)) => panic!("a message after {fault}"),
                (None, Ok(message)) => received.push(message),
                (None, Err(error)) => break error,
            }
        };
        assert_eq!(received, expected);
        assert_eq!(matches!(fault, Error::Eof), ends_well, "{fault}");
    });
}

/// Datagrams on a connection of packets, with all kinds of descriptors beside them: each is a message, or
/// several, or an error, and what comes after them arrives.
pub fn packets(data: &[u8]) {
    const LAST: &[u8] = b"\0the last one";
    let Some((as_bytes, mut data)) = data[..data.len().min(LONGEST)].split_first() else { return };
    let (peer, here) = socket::seqpacket_pair().expect("a pair of sockets");
    // Peers of carriers that say neither what is in them nor that there is no more.
    let mut silent = Vec::new();
    while let [len, beside, rest @ ..] = data {
        let (datagram, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        data = rest;
        let kinds = [beside & 15, beside >> 4];
        let fds: Vec<_> = kinds.into_iter().filter_map(|kind| fd(kind, &mut silent)).collect();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // Not without bytes, nor when the socket is full.
        let _ = socket::send(peer.as_fd(), &[IoSlice::new(datagram)], &fds, Mode::Try);
    }
    let sent = socket::send(peer.as_fd(), &[IoSlice::new(LAST)], &[], Mode::Try).is_ok();
    drop(peer);
    block_on(async {
        let mut connection = RecvHalf::from_fd(here).expect("a connection");
        let mut last = None;
        let mut turns = 0..LONGEST;
        loop {
            let turn = turns.next().expect("no more messages than bytes");
            let result = match turn % 2 {
                _ if as_bytes & 1 == 0 => connection.recv_bytes().await.map(|bytes| last = Some(bytes)),
                0 => connection.recv::<Vec<Descriptor>>().await.map(drop),
                _ => connection.recv::<(Connection, Tree)>().await.map(drop),
            };
            match result {
                Err(Error::Eof) => break,
                Err(_) => last = None,
                Ok(()) => {}
            }
        }
        if as_bytes & 1 == 0 && sent {
            assert_eq!(last.as_deref(), Some(&LAST[1..]));
        }
    });
}

/// A descriptor of some kind, to go beside a datagram.
fn fd(kind: u8, silent: &mut Vec<Fd>) -> Option<Fd> {
    const CONTENTS: &[u8] = b"\x92\x00\x01";
    Some(match kind {
        1 => Frozen::create(CONTENTS).expect("memory"),
        2 => memory::memfd("fuzz", 64).expect("memory"),
        3 | 4 => {
            let (carrier, fill) = socket::seqpacket_pair().expect("a pair of sockets");
            let inside = [sys::fd::eventfd().expect("an eventfd"), sys::fd::eventfd().expect("an eventfd")];
            let inside: Vec<_> = inside.iter().map(AsFd::as_fd).collect();
            socket::send(fill.as_fd(), &[IoSlice::new(&[2])], &inside, Mode::Try).expect("room for it");
            if kind == 4 {
                silent.push(fill);
            }
            carrier
        }
        5 => sys::fd::eventfd().expect("an eventfd"),
        _ => return None,
    })
}

/// Runs what never waits for anything but the reactor.
fn block_on(future: impl Future<Output = ()>) {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    let within = RUNTIME.with(|runtime| runtime.block_on(async { timeout(FOR_EVER, future).await }));
    within.expect("all that is to come is there");
}

/// A pickle, read as an object and as values. What can be read is written again, and read once more to
/// the same bytes.
#[cfg(feature = "python")]
pub fn pickle(data: &[u8]) {
    use crate::python::{Object, Pickle};
    use crate::reduction::Codec;

    fn same_again<T: Serialize + DeserializeOwned>(data: &[u8]) {
        let Ok(value) = Pickle::decode::<T>(data) else { return };
        let mut written = Vec::new();
        // A global by itself has no other form than as an object, for one.
        if Pickle::encode(&value, &mut written).is_err() {
            return;
        }
        let again: T = Pickle::decode(&written).expect("what was written can be read");
        let mut rewritten = Vec::new();
        Pickle::encode(&again, &mut rewritten).expect("what was written once can be written");
        assert_eq!(rewritten, written);
    }

    let data = &data[..data.len().min(LONGEST)];
    same_again::<Object>(data);
    same_again::<Tree>(data);
    same_again::<Shapes>(data);
    same_again::<Vec<Untagged>>(data);
    same_again::<(i128, u128, i8, u64, f64, char, bool, ())>(data);
    let _ = Pickle::decode::<IgnoredAny>(data);
}

/// A message of the default codec, read as values of many shapes. What can be read is written again and
/// read once more, to the same bytes.
pub fn message(data: &[u8]) {
    let data = &data[..data.len().min(LONGEST)];
    same_again::<Tree>(data);
    same_again::<Shapes>(data);
    same_again::<Vec<Internal>>(data);
    same_again::<Vec<Untagged>>(data);
    same_again::<BTreeMap<String, Option<Option<Box<[u8]>>>>>(data);
    same_again::<Vec<()>>(data);
    same_again::<(i128, u128, i8, u64, f32, f64, char, bool, ())>(data);
    same_again::<std::net::SocketAddr>(data);
    same_again::<std::time::Duration>(data);
    // Nobody outside of the family has an address called, or hands in a key.
    let function = read::<Func<(u64,), u64>>(data);
    assert!(function.is_err(), "no function of that kind is registered, so none can be named");
    assert!(read::<AuthKey>(data).is_err());
    assert!(read::<crate::Blob>(data).is_err(), "there is no memory beside the message");
    let _ = read::<IgnoredAny>(data);
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    reduction::decode_from::<MessagePack, T>(Incoming::bytes(bytes), Peer::Stranger)
}

fn same_again<T: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(value) = read::<T>(data) else { return };
    let written = write(&value);
    let again = read::<T>(&written).expect("what was written can be read");
    assert_eq!(write(&again), written);
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    reduction::encode(value, &mut bytes, Peer::Stranger).expect("what was read can be written");
    bytes
}

#[derive(Serialize, Deserialize)]
struct Tree {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    children: Vec<Tree>,
    name: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum Shapes {
    Unit,
    New(Box<Shapes>),
    Tuple(u16, Vec<Shapes>),
    Struct {
        bytes: Vec<u8>,
        #[serde(flatten)]
        rest: BTreeMap<String, Untagged>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Internal {
    A { value: i64 },
    B { inner: Option<Box<Internal>> },
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(i64),
    Text(String),
    Several(Vec<Untagged>),
    Named(BTreeMap<String, Untagged>),
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// What fuzzers have found before is found no more.
    #[test]
    fn the_corpus_breaks_no_promise() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        // It is no part of the published package.
        if !fuzz.exists() {
            return;
        }
        type Target = fn(&[u8]);
        let targets: &[(&str, Target)] = &[
            ("frames", super::frames),
            ("handshake", super::handshake),
            ("message", super::message),
            ("packets", super::packets),
            #[cfg(feature = "python")]
            ("pickle", super::pickle),
        ];
        for (name, target) in targets {
            let inputs = fuzz.join("corpus").join(name).read_dir().unwrap();
            let mut count = 0;
            for input in inputs {
                target(&std::fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "no corpus for {name}");
        }
    }
}
