//! What workers write: passed on or made into events, the end of stderr kept for the error of a
//! death.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, Interest};
use tokio::task::coop::consume_budget;

use super::channel::StderrMarks;
use crate::sys::reactor::Registered;
use crate::sys::{AsFd, Fd, fd};
use crate::util::lock;

/// What becomes of what workers write to stdout and stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// It goes where this process's goes.
    #[default]
    Inherit,
    /// Each line is an event of the crate `tracing`, of level `INFO` and target
    /// `tokio_multiprocess::worker`. The line is its message, and its fields are `worker`, the
    /// worker's name; `stream`, `stdout` or `stderr`; and `task`, the function that the worker runs
    /// when the line is read, or else has run last, if it has run any.
    ///
    /// A line is cut at 8 KiB, and what is not UTF-8 in it is replaced. What has no end yet waits for
    /// it. A worker that writes faster than its lines are taken waits. Programs in C keep what they
    /// write to a pipe until they have some kilobytes of it, or flush it.
    Trace,
}

/// What a worker process writes.
pub(super) struct Streams {
    worker: Arc<str>,
    stderr: Arc<Capture>,
    /// If its lines are traced, and those of stderr.
    stdout: Option<Arc<Capture>>,
}

impl Streams {
    /// This side, and what becomes the worker's stdout, if not its parent's, and stderr.
    pub(super) fn open(
        output: Output,
        worker: &str,
        marks: StderrMarks,
    ) -> io::Result<(Self, Option<Fd>, Fd)> {
        let (stderr, their_stderr) = Capture::pipe(Some(marks))?;
        let (stdout, their_stdout) = match output {
            Output::Inherit => (None, None),
            Output::Trace => Capture::pipe(None).map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
        };
        Ok((Self { worker: worker.into(), stderr, stdout }, their_stdout, their_stderr))
    }

    /// Has tasks of the runtime pass on what is written, until the end. `task` says what the worker
    /// runs.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub(super) fn forward(&self, task: impl Fn() -> Option<&'static str> + Clone + Send + 'static) {
        let Some(stdout) = &self.stdout else {
            tokio::spawn(self.stderr.clone().pass_on());
            return;
        };
        tokio::spawn(stdout.clone().trace(self.worker.clone(), "stdout", task.clone()));
        tokio::spawn(self.stderr.clone().trace(self.worker.clone(), "stderr", task));
    }

    /// The end of what was written to stderr, once the worker is dead, of which `task` was the last.
    pub(super) fn last_words(&self, task: Option<&'static str>) -> LastWords {
        for capture in [Some(&self.stderr), self.stdout.as_ref()].into_iter().flatten() {
            lock(&capture.log).task = task;
        }
        self.stderr.last_words()
    }
}

/// How much of the end is kept, in bytes.
const TAIL: usize = 4 << 10;
/// How much is read for the end's sake once the worker is dead, in bytes: all that a pipe holds by
/// default. Who has inherited the pipe may write for ever.
const REST: usize = 64 << 10;
/// A line is cut here.
const LINE: usize = 8 << 10;

/// One of the streams of a worker.
struct Capture {
    pipe: Fd,
    readiness: Registered,
    /// Of stderr.
    marks: Option<StderrMarks>,
    /// Also held while reading, so that what is kept has the order in which it was written.
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    tail: VecDeque<u8>,
    /// What was read and not passed on yet.
    unsent: Vec<u8>,
    /// How much was read so far.
    read: u64,
    /// Where it was said last that there is no memory, as Rust programs do when they abort for that.
    /// A backtrace may follow that is longer than the tail.
    memory_refused: Option<u64>,
    /// What the worker ran when it died.
    task: Option<&'static str>,
}

/// The end of what a dead worker wrote.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    pub(super) tail: String,
    /// The item that it ran last, if that had a limit, said that there is no memory.
    pub(super) refused_memory: bool,
}

impl Log {
    fn take(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.tail.extend(bytes);
        self.read += bytes.len() as u64;
        // Before it is shortened: the words may lie across two reads.
        let tail = self.tail.make_contiguous();
        if let Some(at) = find_memory_refused(tail) {
            self.memory_refused = Some(self.read - (tail.len() - at) as u64);
        }
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
    }
}

/// Where the last `memory allocation of 4096 bytes failed` begins.
fn find_memory_refused(text: &[u8]) -> Option<usize> {
    const BEFORE: &[u8] = b"memory allocation of ";
    const AFTER: &[u8] = b" bytes failed";
    let says = |at: &usize| {
        let rest = &text[at + BEFORE.len()..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        digits > 0 && rest[digits..].starts_with(AFTER)
    };
    let places = text.windows(BEFORE.len()).enumerate().rev();
    places.filter(|(_, window)| *window == BEFORE).map(|(at, _)| at).find(says)
}

impl Capture {
    /// This end, and the one to be the worker's.
    fn pipe(marks: Option<StderrMarks>) -> io::Result<(Arc<Self>, Fd)> {
        let (pipe, theirs) = fd::pipe()?;
        let readiness = Registered::new(pipe.try_clone()?, Interest::READABLE)?;
        Ok((Arc::new(Self { pipe, readiness, marks, log: Mutex::default() }), theirs))
    }

    /// Reads some of what is there, and says how much: nothing at the end.
    fn read(&self) -> io::Result<usize> {
        let mut log = lock(&self.log);
        let mut buffer = [0; TAIL];
        self.marks.iter().for_each(|marks| marks.reading(log.read));
        let read = fd::read_some(self.pipe.as_fd(), &mut buffer);
        if let Ok(len) = read {
            log.take(&buffer[..len]);
        }
        self.marks.iter().for_each(|marks| marks.read(log.read));
        read
    }

    /// What is there, as soon as something is; `None` at the end.
    async fn next(&self) -> Option<Vec<u8>> {
        loop {
            let read = self.read();
            let unsent = std::mem::take(&mut lock(&self.log).unsent);
            match read {
                _ if !unsent.is_empty() => return Some(unsent),
                // What `last_words` reads meanwhile has been an edge as well.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readiness.edge().await,
                Ok(_) | Err(_) => return None,
            }
        }
    }

    /// Passes on what the worker writes, until its end, whoever reads it. What this process's
    /// stderr does not take is dropped: it may be closed.
    async fn pass_on(self: Arc<Self>) {
        while let Some(bytes) = self.next().await {
            let mut stderr = tokio::io::stderr();
            let _ = stderr.write_all(&bytes).await;
            let _ = stderr.flush().await;
        }
    }

    /// Makes an event of each line, until the end. `task` says what the worker runs.
    async fn trace(
        self: Arc<Self>,
        worker: Arc<str>,
        stream: &'static str,
        task: impl Fn() -> Option<&'static str>,
    ) {
        let mut lines = Lines::default();
        let emit = |line: &str, task| {
            tracing::info!(target: "tokio_multiprocess::worker", worker = &*worker, task, stream, "{line}");
        };
        let mut last = None;
        while let Some(bytes) = self.next().await {
            lines.unread.extend_from_slice(&bytes);
            // A dead worker is not known any more, but has left word.
            last = task().or(lock(&self.log).task).or(last);
            while let Some(line) = lines.next() {
                emit(&line, last);
                // A flood is taken in turns with everybody else's work.
                consume_budget().await;
            }
            consume_budget().await;
        }
        if !lines.unread.is_empty() {
            emit(&String::from_utf8_lossy(&lines.unread), last);
        }
    }

    /// The end of all that was written, once the worker is dead.
    fn last_words(&self) -> LastWords {
        let mut read = 0;
        while read < REST
            && let Ok(len @ 1..) = self.read()
        {
            read += len;
        }
        let log = lock(&self.log);
        let tail: Vec<u8> = log.tail.iter().copied().collect();
        let began = self.marks.as_ref().map_or(0, StderrMarks::began);
        LastWords {
            tail: String::from_utf8_lossy(&tail).into_owned(),
            refused_memory: log.memory_refused.is_some_and(|at| at >= began),
        }
    }
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    unread: Vec<u8>,
}

impl Lines {
    /// The next line without its end, if all of it is there or it is too long.
    fn next(&mut self) -> Option<String> {
        let end = self.unread.iter().take(LINE + 1).position(|byte| *byte == b'\n');
        let (len, rest) = match end {
            Some(end) => (end, end + 1),
            None if self.unread.len() > LINE => {
                // Not within a character, of which at most three bytes follow the first.
                let starts = |at: &usize| self.unread[*at] & 0b1100_0000 != 0b1000_0000;
                let cut = (LINE - 3..=LINE).rev().find(starts).unwrap_or(LINE);
                (cut, cut)
            }
            None => return None,
        };
        let line = &self.unread[..len];
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
        self.unread.drain(..rest);
        Some(line)
    }
}

#[cfg(test)]
mod line_tests {
    use super::*;

    fn cut(bytes: &[u8]) -> (Vec<String>, usize) {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for byte in bytes {
            lines.unread.push(*byte);
            found.extend(std::iter::from_fn(|| lines.next()));
        }
        (found, lines.unread.len())
    }

    #[test]
    fn lines_end_where_they_end() {
        let (lines, left) = cut(b"one\n\ntwo\r\n\xff\nthree");
        assert_eq!(lines, ["one", "", "two", "\u{fffd}"]);
        assert_eq!(left, 5);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let long = "ä".repeat(LINE);
        let (lines, left) = cut(format!("x{long}\n").as_bytes());
        assert_eq!(left, 0);
        assert!(lines.iter().all(|line| line.len() <= LINE && !line.contains('\u{fffd}')));
        assert_eq!(lines.concat(), format!("x{long}"));
        // One that is just as long as a line may be is whole.
        assert_eq!(cut(format!("{}\n", "y".repeat(LINE)).as_bytes()).0, ["y".repeat(LINE)]);
    }

    #[test]
    fn want_of_memory_is_seen_across_reads_and_ahead_of_a_long_backtrace() {
        let mut log = Log::default();
        log.take(b"no memory allocation of today\nmemory alloc");
        log.take(b"ation of 10");
        assert_eq!(log.memory_refused, None);
        log.take(b"24 bytes failed\n");
        log.take(&[b'.'; 2 * TAIL]);
        assert_eq!((log.memory_refused, log.tail.len()), (Some(30), TAIL));
        let read = log.read;
        log.take(b"memory allocation of 1 bytes failed");
        assert_eq!(log.memory_refused, Some(read));
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use std::io::Write;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    /// Somebody else may hold the pipe and write faster than it is read.
    #[tokio::test]
    async fn the_last_words_are_bounded() {
        let (stderr, theirs) = Capture::pipe(None).unwrap();
        fcntl(&theirs, FcntlArg::F_SETPIPE_SZ(4 * REST as i32)).unwrap();
        let mut theirs = std::fs::File::from(theirs);
        theirs.write_all(&vec![b'.'; REST - 1]).unwrap();
        theirs.write_all(&vec![b'!'; 2 * REST]).unwrap();
        let LastWords { tail, .. } = stderr.last_words();
        assert_eq!(tail.len(), TAIL);
        assert!(tail.ends_with(".!"));
        assert_eq!(lock(&stderr.log).unsent.len(), REST);
    }
}
