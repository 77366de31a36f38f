//! For tests of single processes: what they are seen to hold, and meetings of processes with their
//! test, so that neither has to sleep.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{BufRead, BufReader as StdBufReader, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_multiprocess as mp;

pub(crate) use super::eventually_blocking as eventually;
pub(crate) use super::{current_thread as runtime, methods, runs};

/// Far beyond what any of these tests takes on a busy machine, in seconds.
const WATCHDOG: u64 = 120;

/// Runs a test on a current-thread runtime, under a [`guard`](super::guard).
pub(crate) fn run(test: impl Future<Output = ()>) {
    run_sync(|| runtime().block_on(test));
}

/// The same for a test that makes its own runtimes, or needs none.
pub(crate) fn run_sync(test: impl FnOnce()) {
    let _guard = super::guard(WATCHDOG);
    test();
}

/// The start methods whose children are not copies of this process.
pub(crate) fn clean_methods() -> Vec<mp::Context> {
    [mp::StartMethod::Spawn, mp::StartMethod::ForkServer].map(mp::Context::new).into()
}

/// A target that never returns.
pub(crate) fn forever() {
    loop {
        std::thread::park();
    }
}

/// This process's descriptors, and what they lead to.
pub(crate) fn descriptors() -> BTreeMap<i32, String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    let links = entries.filter_map(|entry| {
        let link = std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        Some((entry.file_name().to_str()?.parse().ok()?, link))
    });
    // The directory that is being read is one itself.
    let own = format!("/proc/{}/fd", std::process::id());
    links.filter(|(_, link)| *link != own).collect()
}

pub(crate) fn threads() -> BTreeMap<i32, String> {
    let entries = std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
    let threads = entries.filter_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, name.trim().to_owned()))
    });
    threads.collect()
}

/// The fork server of this process.
pub(crate) fn fork_server() -> Option<i32> {
    let me = std::process::id();
    let entries = std::fs::read_dir("/proc").unwrap().map(Result::unwrap);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|&pid| {
        Stat::of(pid)
            .is_some_and(|stat| stat.parent == me as i32 && stat.name == "ForkServer" && stat.state != 'Z')
    })
}

/// What the kernel says of a process.
pub(crate) struct Stat {
    pub(crate) name: String,
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) group: i32,
}

impl Stat {
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        Some(Self {
            name: name.to_owned(),
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        })
    }
}

/// A place where processes report to a test, and wait for its word: lines over a socket.
pub(crate) struct Meeting {
    dir: TempDir,
    listener: UnixListener,
}

impl Meeting {
    /// Needs a runtime.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        Self { dir, listener }
    }

    /// To be handed to a process, for [`Call::to`].
    pub(crate) fn address(&self) -> String {
        self.dir.path().join("socket").to_str().unwrap().to_owned()
    }

    pub(crate) async fn accept(&self) -> Caller {
        Caller(BufReader::new(self.listener.accept().await.unwrap().0))
    }

    /// The first line of the next caller, whose call then ends.
    pub(crate) async fn word(&self) -> String {
        self.accept().await.hear().await.unwrap()
    }
}

/// The test's end of a call.
pub(crate) struct Caller(BufReader<UnixStream>);

impl Caller {
    /// The next line; `None` when the other process has gone.
    pub(crate) async fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        // A killed process may leave what it was told unread, which resets the connection.
        let read = self.0.read_line(&mut line).await.unwrap_or(0);
        (read > 0).then(|| line.trim_end().to_owned())
    }

    pub(crate) async fn say(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

/// A process's end of a call to a [`Meeting`]. It blocks, and works in targets of all kinds.
pub(crate) struct Call(StdBufReader<StdUnixStream>);

impl Call {
    pub(crate) fn to(address: &str) -> Self {
        Self(StdBufReader::new(StdUnixStream::connect(address).unwrap()))
    }

    pub(crate) fn say(&mut self, line: impl std::fmt::Display) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next line; `None` when the test has hung up.
    pub(crate) fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).unwrap_or(0);
        (read > 0).then(|| line.trim_end().to_owned())
    }
}
