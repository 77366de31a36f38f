//! A worker's stderr: passed on to this process's, its end kept for the error of a death.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, Interest};

use crate::sys::reactor::Registered;
use crate::sys::{AsFd, Fd, fd};
use crate::util::lock;

/// How much of its end is kept, in bytes.
const TAIL: usize = 4 << 10;
/// How much is read for the end's sake once the worker is dead, in bytes: all that a pipe holds by
/// default. Who has inherited the pipe may write for ever.
const REST: usize = 64 << 10;

pub(super) struct Stderr {
    pipe: Fd,
    readiness: Registered,
    /// Also held while reading, so that what is kept has the order in which it was written.
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    tail: VecDeque<u8>,
    /// What was read and not passed on yet.
    unsent: Vec<u8>,
}

impl Stderr {
    /// This end, and the one to be the worker's.
    pub(super) fn pipe() -> io::Result<(Arc<Self>, Fd)> {
        let (pipe, theirs) = fd::pipe()?;
        let readiness = Registered::new(pipe.try_clone()?, Interest::READABLE)?;
        Ok((Arc::new(Self { pipe, readiness, log: Mutex::default() }), theirs))
    }

    /// Reads some of what is there, and says how much: nothing at the end.
    fn read(&self) -> io::Result<usize> {
        let mut log = lock(&self.log);
        let mut buffer = [0; TAIL];
        let len = fd::read_some(self.pipe.as_fd(), &mut buffer)?;
        log.unsent.extend_from_slice(&buffer[..len]);
        log.tail.extend(&buffer[..len]);
        let excess = log.tail.len().saturating_sub(TAIL);
        log.tail.drain(..excess);
        Ok(len)
    }

    /// Passes on what the worker writes, until its end, whoever reads it. What this process's
    /// stderr does not take is dropped: it may be closed.
    pub(super) async fn forward(self: Arc<Self>) {
        loop {
            let read = self.read();
            let unsent = std::mem::take(&mut lock(&self.log).unsent);
            if !unsent.is_empty() {
                pass_on(&unsent).await;
            }
            match read {
                Ok(0) => return,
                Ok(_) => {}
                // What `rest` reads meanwhile has been an edge as well.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readiness.edge().await,
                Err(_) => return,
            }
        }
    }

    /// The end of all that it wrote, once it is dead.
    pub(super) fn rest(&self) -> String {
        let mut read = 0;
        while read < REST
            && let Ok(len @ 1..) = self.read()
        {
            read += len;
        }
        let tail: Vec<u8> = lock(&self.log).tail.iter().copied().collect();
        String::from_utf8_lossy(&tail).into_owned()
    }
}

async fn pass_on(bytes: &[u8]) {
    let mut stderr = tokio::io::stderr();
    let _ = stderr.write_all(bytes).await;
    let _ = stderr.flush().await;
}

#[cfg(all(test, multiprocess))]
mod tests {
    use std::io::Write;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    /// Somebody else may hold the pipe and write faster than it is read.
    #[tokio::test]
    async fn the_rest_is_bounded() {
        let (stderr, theirs) = Stderr::pipe().unwrap();
        fcntl(&theirs, FcntlArg::F_SETPIPE_SZ(4 * REST as i32)).unwrap();
        let mut theirs = std::fs::File::from(theirs);
        theirs.write_all(&vec![b'.'; REST - 1]).unwrap();
        theirs.write_all(&vec![b'!'; 2 * REST]).unwrap();
        let rest = stderr.rest();
        assert_eq!(rest.len(), TAIL);
        assert!(rest.ends_with(".!"));
        assert_eq!(lock(&stderr.log).unsent.len(), REST);
    }
}
