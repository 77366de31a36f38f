//! Talks with the `python3` of this machine in both directions: `multiprocessing.connection` is at one
//! end and this crate at the other.
//!
//! ```text
//! cargo run --example python_peer --features python,md5
//! ```
//!
//! Before 3.12, CPython proves that it holds a key by MD5 alone. That is refused here unless it is asked
//! for, which needs the feature `md5`; without the feature such a Python is talked with without a key,
//! over sockets in directories that only this user may enter.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};
use tokio_multiprocess as mp;
use tokio_multiprocess::connection::auth::DigestPolicy;
use tokio_multiprocess::python::{Object, Pickle};

/// In Python, a dict with `str` keys.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    item: String,
    count: u32,
    note: Option<String>,
}

/// Connects to us, orders something and says what it got.
const CLIENT: &str = r#"
import os, signal, sys
from multiprocessing.connection import Client
signal.alarm(30)
key = bytes.fromhex(os.environ["PEER_KEY"]) or None
with Client(sys.argv[1], authkey=key) as conn:
    conn.send({"item": "spam", "count": 3, "note": None})
    print("Python, as client, got", conn.recv(), flush=True)
    conn.send({1: "mixed", "keys": (2.5, 2**80), None: KeyError("colour")})
    conn.send_bytes(conn.recv_bytes()[::-1])
"#;

/// Listens, and adds up what each message holds until it is told that this was all.
const SERVER: &str = r#"
import os, signal, sys, tempfile
from multiprocessing.connection import Listener
signal.alarm(30)
key = bytes.fromhex(os.environ["PEER_KEY"]) or None
with tempfile.TemporaryDirectory() as directory:
    with Listener(os.path.join(directory, "socket"), authkey=key) as listener:
        print(listener.address, flush=True)
        with listener.accept() as conn:
            for numbers in iter(conn.recv, None):
                conn.send(sum(numbers))
"#;

/// The key that both sides hold, and the weakest digest that may prove it.
struct Trust {
    key: Option<mp::AuthKey>,
    policy: DigestPolicy,
}

impl Trust {
    fn with(minor: u32) -> Self {
        let key = Some(mp::AuthKey::random());
        if minor >= 12 {
            return Self { key, policy: DigestPolicy::Sha256 };
        }
        #[cfg(feature = "md5")]
        {
            println!("it proves its key by MD5, which is allowed here for its sake");
            Self { key, policy: DigestPolicy::Md5 }
        }
        #[cfg(not(feature = "md5"))]
        {
            println!("it could prove a key by MD5 only: there is none, then");
            Self { key: None, policy: DigestPolicy::Sha256 }
        }
    }

    /// Starts Python with the key in its surroundings, where other users do not see it.
    fn python(&self, script: &str, argument: &str) -> std::io::Result<Child> {
        let key = self.key.iter().flat_map(|key| key.as_bytes());
        let key: String = key.map(|byte| format!("{byte:02x}")).collect();
        let mut command = Command::new("python3");
        command.args(["-c", script, argument]).env("PEER_KEY", key).stdin(Stdio::null());
        command.stdout(Stdio::piped()).spawn()
    }
}

/// The minor version of `python3`, if there is one.
fn python3() -> Option<u32> {
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.version_info[1])"])
        .stdin(Stdio::null())
        .output();
    let output = output.ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The next line that the child prints.
async fn line(child: &mut Child) -> Result<String, Box<dyn Error>> {
    let stdout = child.stdout.take().ok_or("nothing is printed any more")?;
    let mut line = String::new();
    let line = tokio::task::spawn_blocking(move || BufReader::new(stdout).read_line(&mut line).map(|_| line));
    Ok(line.await??.trim_end().to_owned())
}

async fn we_listen(trust: &Trust) -> Result<(), Box<dyn Error>> {
    let mut listener = mp::Listener::temporary().digest_policy(trust.policy);
    if let Some(key) = &trust.key {
        listener = listener.authkey(key);
    }
    let listener = listener.await?;
    let mut python = trust.python(CLIENT, &listener.address().to_string())?;
    let mut conn = listener.accept().await?.with_codec::<Pickle>();

    let order: Order = conn.recv().await?;
    println!("we, listening, got {order:?}");
    conn.send(&Order { note: Some("shipped".to_owned()), ..order }).await?;
    println!("{}", line(&mut python).await?);

    let anything: Object = conn.recv().await?;
    let Some(Object::Instance(error)) = anything.get(()) else { return Err("no exception came".into()) };
    println!("an exception is data here: class {:?} with {:?}", error.class(), error.args);

    conn.send_bytes(b"bytes are bytes").await?;
    println!("bytes came back as {:?}", conn.recv_bytes().await?);
    python.wait()?;
    Ok(())
}

async fn we_connect(trust: &Trust) -> Result<(), Box<dyn Error>> {
    let mut python = trust.python(SERVER, "")?;
    let address = line(&mut python).await?;
    let mut client = mp::Client::connect(mp::Address::Unix(address.into())).digest_policy(trust.policy);
    if let Some(key) = &trust.key {
        client = client.authkey(key);
    }
    let mut conn = client.await?.with_codec::<Pickle>();
    for numbers in [vec![1u64, 2, 3], vec![u64::MAX, u64::MAX]] {
        conn.send(&numbers).await?;
        println!("we, connected, have {numbers:?} added: {}", conn.recv::<u128>().await?);
    }
    conn.send(&()).await?;
    python.wait()?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Some(minor) = python3() else {
        println!("There is no python3 on this machine, so there is nobody to talk with.");
        return Ok(());
    };
    println!("python3 is 3.{minor}");
    let trust = Trust::with(minor);
    we_listen(&trust).await?;
    we_connect(&trust).await
}
