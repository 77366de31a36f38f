//! A worker as one makes it by hand with `tokio::process`: this program once more, frames with a
//! length on its stdin and stdout.

use std::io::{self, Read, Write};
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;

/// The argument that makes this program the worker.
const ARGUMENT: &str = "--work-by-hand";
/// A frame that is no payload: work for ever, after one that says so.
const SPIN: u64 = u64::MAX;

/// Runs the worker if that is what this process is.
pub(crate) fn enter() {
    if std::env::args().nth(1).as_deref() == Some(ARGUMENT) {
        // Its parent's end is its own.
        let _ = work();
        std::process::exit(0);
    }
}

fn work() -> io::Result<()> {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    loop {
        let mut length = [0; 8];
        stdin.read_exact(&mut length)?;
        stdout.write_all(&length)?;
        if u64::from_le_bytes(length) == SPIN {
            stdout.flush()?;
            loop {
                std::hint::spin_loop();
            }
        }
        let mut payload = vec![0; u64::from_le_bytes(length) as usize];
        stdin.read_exact(&mut payload)?;
        stdout.write_all(&payload)?;
        stdout.flush()?;
    }
}

pub(crate) struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Worker {
    /// Returns when it has answered.
    pub(crate) async fn start() -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a worker");
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut worker = Self { child, stdin, stdout };
        worker.echo_all(&[1], 1, 1).await;
        worker
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().expect("it runs") as i32
    }

    /// Sends a payload there and back as often, with some of them under way at a time.
    pub(crate) async fn echo_all(&mut self, payload: &[u8], count: usize, at_once: usize) {
        let (stdin, stdout) = (&mut self.stdin, &mut self.stdout);
        let room = Semaphore::new(at_once);
        let sent = async {
            for _ in 0..count {
                room.acquire().await.expect("open").forget();
                stdin.write_all(&(payload.len() as u64).to_le_bytes()).await.expect("sent");
                stdin.write_all(payload).await.expect("sent");
            }
        };
        let received = async {
            let mut back = vec![0; payload.len()];
            for _ in 0..count {
                let length = stdout.read_u64_le().await.expect("received");
                assert_eq!(length, payload.len() as u64);
                stdout.read_exact(&mut back).await.expect("received");
                room.add_permits(1);
            }
        };
        tokio::join!(sent, received);
    }

    /// Has it work for ever, and returns when it does.
    pub(crate) async fn spin(&mut self) {
        self.stdin.write_all(&SPIN.to_le_bytes()).await.expect("sent");
        assert_eq!(self.stdout.read_u64_le().await.expect("received"), SPIN);
    }

    pub(crate) fn kill(&mut self) {
        self.child.start_kill().expect("killed");
    }

    pub(crate) async fn end(mut self) {
        drop((self.stdin, self.stdout));
        self.child.wait().await.expect("its end");
    }
}
