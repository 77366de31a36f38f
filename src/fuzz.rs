//! Where fuzzers come in: what arrives from a peer, whatever it is. Each function takes bytes that a
//! fuzzer has made up, and panics if one of its promises is broken.
//!
//! The targets are in `fuzz/`, to be run by `cargo +nightly fuzz run TARGET` there. What they have found
//! worth keeping lies in `fuzz/corpus`, and is replayed as a test.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use bytes::Bytes;
use futures_util::FutureExt;
use hmac::{Hmac, KeyInit, Mac};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::connection::auth::{self, DigestPolicy};
use crate::reduction::{self, CodecError, Incoming, MessagePack, Peer};
use crate::{AuthKey, Func};

/// Longer inputs say nothing new, and would fill the sockets that some go through.
const LONGEST: usize = 64 << 10;

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
        for (name, target) in [("handshake", super::handshake as Target), ("message", super::message)] {
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
