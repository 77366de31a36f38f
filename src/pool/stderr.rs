//! A worker's stderr: passed on to this process's, its end kept for the error of a death.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, Interest};

use crate::sys::reactor::Registered;
use crate::sys::{self, Fd};
use crate::util::lock;

/// How much of its end is kept, in bytes.
const TAIL: usize = 4 << 10;

pub(super) struct Stderr {
    pipe: PipeReader,
    readiness: Registered,
    /// Also held while reading, so that what is kept has the order in which it was written.
    tail: Mutex<VecDeque<u8>>,
}

impl Stderr {
    /// This end, and the one to be the worker's.
    pub(super) fn pipe() -> io::Result<(Arc<Self>, Fd)> {
        let (ours, theirs) = io::pipe()?;
        sys::fd::set_nonblocking(ours.as_fd(), true)?;
        let readiness = Registered::new(ours.try_clone()?.into(), Interest::READABLE)?;
        Ok((Arc::new(Self { pipe: ours, readiness, tail: Mutex::default() }), theirs.into()))
    }

    /// Reads what is there; nothing at the end.
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut tail = lock(&self.tail);
        let mut buffer = vec![0; TAIL];
        let len = (&self.pipe).read(&mut buffer)?;
        buffer.truncate(len);
        tail.extend(&buffer);
        let excess = tail.len().saturating_sub(TAIL);
        tail.drain(..excess);
        Ok(buffer)
    }

    /// Passes on what the worker writes, until its end. What this process's stderr does not take
    /// is dropped: it may be closed.
    pub(super) async fn forward(self: Arc<Self>) {
        while let Ok(mut guard) = self.readiness.get().readable().await {
            match self.read() {
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => pass_on(bytes).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(_) => return,
            }
        }
    }

    /// The end of all that it wrote, once it is dead.
    pub(super) fn rest(&self) -> String {
        while let Ok(bytes) = self.read() {
            if bytes.is_empty() {
                break;
            }
            tokio::spawn(pass_on(bytes));
        }
        let tail: Vec<u8> = lock(&self.tail).iter().copied().collect();
        String::from_utf8_lossy(&tail).into_owned()
    }
}

async fn pass_on(bytes: Vec<u8>) {
    let mut stderr = tokio::io::stderr();
    let _ = stderr.write_all(&bytes).await;
    let _ = stderr.flush().await;
}
