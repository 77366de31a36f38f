//! The memory, the bells and the socket between a pool and one worker, as each side sees them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use super::host::Host;
use super::scheduler::{Lane, Run, Sent, Ticket};
use super::wire::{self, Body, INLINE, Kind, Reply, STOP_FRAME, Setup, Tag};
use crate::error::NotStarted;
use crate::reduction::Descriptor;
use crate::ring::single::{Consumer, Doze, Layout, Producer};
use crate::ring::{Corrupt, Memory};
use crate::sys::memory::{self, Shared};
use crate::sys::per_process::process_token;
use crate::sys::socket::{Mode, is_crowded, is_full, is_gone, seqpacket_pair};
use crate::sys::{self, AsFd, Fd};
use crate::task::{Reports, TaskId};
use crate::util::lock;

/// How many runs a worker may hold.
pub(super) const SLOTS: usize = 128;

// The words that one side writes often lie two cache lines apart from those of the other, since
// processors fetch lines in pairs.
const RING: usize = 256 << 10;
const TASKS: Layout = Layout { head: 0, tail: 128, data: 4096, capacity: RING };
const REPLIES: Layout = Layout { head: 256, tail: 384, data: 4096 + RING, capacity: RING };
const WORKER_ASLEEP: usize = 512;
const PARENT_ASLEEP: usize = 640;
const BEGAN_AT: usize = 768;
const BEGAN_WITH: usize = BEGAN_AT + 8;
const STDERR_BEGAN: usize = BEGAN_WITH + 8;
const GIVEN_UP: usize = 896;
const STDERR_READ: usize = GIVEN_UP + 8;
/// Beside the position up to which stderr was read: it is being read on.
const READING: u64 = 1 << 63;
/// How often a worker looks whether it is still being read, of some microseconds each: who reads may be stopped.
const LOOKS: u32 = 10_000;
const SLOT_WORDS: usize = 1024;
const MEMORY: usize = 4096 + 2 * RING;

/// In a slot's word: the worker begins no further item of this run.
const CANCEL: u64 = 1 << 63;

/// The word of a run: how many of its items the worker has begun, and whether it may go on.
fn slot(memory: &Shared, seq: u32) -> &AtomicU64 {
    let n = seq as usize % SLOTS;
    // Neighbours in time lie in different cache lines: the parent sets up one while the worker
    // counts in the other.
    let place = n % 16 * 8 + n / 16;
    memory.atomic_u64(SLOT_WORDS + 8 * place)
}

/// Makes the channel of one worker: the parent's two ends, and what the worker is started with.
pub(super) fn channel(parent_bell: &Arc<Fd>) -> io::Result<(Link, Replies, Setup)> {
    let memfd = memory::memfd("tokio-multiprocess-pool", MEMORY)?;
    memory::seal_fixed_size(memfd.as_fd())?;
    let memory = Arc::new(Shared::map(memfd.as_fd())?);
    let bell = Arc::new(sys::fd::eventfd()?);
    let (socket, theirs) = seqpacket_pair()?;
    let socket = Arc::new(socket);
    let setup = Setup {
        memory: Descriptor::new(memfd),
        bell: Descriptor::new(bell.try_clone()?),
        parent_bell: Descriptor::new(parent_bell.try_clone()?),
        socket: Descriptor::new(theirs),
        cgroup: None,
        group_memory: None,
        own_process: false,
        name: String::new(),
        preparations: Vec::new(),
        max_tasks: None,
        max_memory: None,
        faults: None,
    };
    let link = Link {
        tasks: Producer::new(memory.clone(), TASKS),
        worker: Doze::new(memory.clone(), WORKER_ASLEEP),
        memory: memory.clone(),
        socket: socket.clone(),
        bell: bell.clone(),
        head: Vec::new(),
        crowd: Crowd::default(),
    };
    let replies = Replies {
        replies: Consumer::new(memory.clone(), REPLIES),
        parent: Doze::new(memory.clone(), PARENT_ASLEEP),
        worker: Doze::new(memory, WORKER_ASLEEP),
        socket,
        bell,
    };
    Ok((link, replies, setup))
}

/// The parent's end towards the worker.
#[derive(Debug)]
pub(super) struct Link {
    memory: Arc<Shared>,
    tasks: Producer,
    worker: Doze,
    socket: Arc<Fd>,
    bell: Arc<Fd>,
    head: Vec<u8>,
    crowd: Crowd,
}

/// For how long the kernel has refused to take descriptors, as too many of the user's are in flight:
/// those come down when others read what was sent to them, which may be never.
#[derive(Debug, Default)]
struct Crowd {
    since: u64,
    last: u64,
}

impl Crowd {
    /// A refusal that comes so long after the last one is another story.
    const PAUSE: u64 = 1_000_000_000;
    const PATIENCE: u64 = 5_000_000_000;

    /// Notes a refusal, and says whether there were enough.
    fn is_too_long(&mut self, now: u64) -> bool {
        if now.saturating_sub(self.last) > Self::PAUSE {
            self.since = now;
        }
        self.last = now;
        now.saturating_sub(self.since) >= Self::PATIENCE
    }
}

impl Link {
    pub(super) fn leash(&self) -> Leash {
        Leash { memory: self.memory.clone(), bell: self.bell.clone() }
    }

    pub(super) fn stderr_marks(&self) -> StderrMarks {
        StderrMarks(self.memory.clone())
    }

    /// Publishes a run under a number that no run in flight has.
    pub(super) fn send<J: Ticket>(&mut self, seq: u32, run: &Run<J>) -> Sent {
        let spec = run.job.spec();
        let function = match &spec.function {
            Ok(function) => function,
            Err(why) => return Sent::Impossible(NotStarted::Unencodable(serde::ser::Error::custom(why))),
        };
        self.head.clear();
        wire::write_run(&mut self.head, &run.head(seq), function, &run.body);
        let parts = [&self.head[..], &run.body.items];
        match self.tasks.has_room(&parts) {
            Ok(true) => {}
            Ok(false) => return Sent::NoRoom,
            Err(Corrupt) => return Sent::Corrupt,
        }
        // Before the run can be seen.
        if let Err(error) = run.body.send_parcel(self.socket.as_fd(), Tag { seq, index: 0 }, Mode::Try) {
            if is_crowded(&error) && self.crowd.is_too_long(sys::fd::monotonic_ns()) {
                return Sent::Impossible(NotStarted::Unencodable(serde::ser::Error::custom(
                    "too many open files of this user are on their way between processes and were not \
                     received (more than RLIMIT_NOFILE allows)",
                )));
            }
            // Gone is a worker that has just died, and its death takes care of what it held.
            if is_full(&error) || is_gone(&error) {
                return Sent::NoRoom;
            }
            return Sent::Impossible(NotStarted::Unencodable(serde::ser::Error::custom(error)));
        }
        slot(&self.memory, seq).store(0, Ordering::Relaxed);
        match self.tasks.try_push(&parts) {
            Ok(true) => Sent::Yes,
            Ok(false) | Err(Corrupt) => Sent::Corrupt,
        }
    }

    /// What has to be rung for the worker to see what was published.
    pub(super) fn bell(&self) -> Option<Arc<Fd>> {
        self.worker.must_ring().then(|| self.bell.clone())
    }
}

/// Positions in what a worker writes to stderr, in bytes from its beginning: so it can be told what
/// was written by the item that runs, though the other side reads it at its leisure.
#[derive(Clone, Debug)]
pub(super) struct StderrMarks(Arc<Shared>);

impl StderrMarks {
    /// Notes that it is being read from there on: what was taken out of the pipe may not count yet.
    pub(super) fn reading(&self, position: u64) {
        self.0.store(STDERR_READ, position | READING, Ordering::SeqCst);
    }

    /// Notes up to where it was read.
    pub(super) fn read(&self, position: u64) {
        self.0.store(STDERR_READ, position, Ordering::Release);
    }

    /// Where it was at when the item began that began last, if that has a limit; or a little before, if whoever
    /// reads was stopped in the middle just then.
    pub(super) fn began(&self) -> u64 {
        self.0.load(STDERR_BEGAN, Ordering::Acquire)
    }
}

/// By which a worker on a thread learns that nobody waits for it any more.
#[derive(Clone, Debug)]
pub(super) struct Leash {
    memory: Arc<Shared>,
    bell: Arc<Fd>,
}

impl Leash {
    pub(super) fn let_go(&self) {
        self.memory.store(GIVEN_UP, 1, Ordering::Release);
        sys::fd::ring(self.bell.as_fd());
    }
}

/// A worker whose process or thread is there.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) link: Link,
    pub(super) host: Host,
}

impl<J: Ticket> Lane<J> for Attached {
    type Bell = Arc<Fd>;

    fn send(&mut self, seq: u32, run: &Run<J>) -> Sent {
        self.link.send(seq, run)
    }

    fn withdraw(&self, seq: u32) -> u32 {
        slot(&self.link.memory, seq).fetch_or(CANCEL, Ordering::AcqRel) as u32
    }

    fn begun(&self, seq: u32) -> u32 {
        slot(&self.link.memory, seq).load(Ordering::Acquire) as u32
    }

    fn began_at(&self) -> u64 {
        self.link.memory.load(BEGAN_AT, Ordering::Relaxed)
    }

    fn began_with(&self) -> u64 {
        self.link.memory.load(BEGAN_WITH, Ordering::Relaxed)
    }

    fn stop(&mut self) -> bool {
        self.link.tasks.try_push(&[STOP_FRAME]).unwrap_or(false)
    }

    fn kill(&self) {
        self.host.kill();
    }

    fn bell(&self) -> Option<Arc<Fd>> {
        self.link.bell()
    }

    fn pid(&self) -> Option<i32> {
        self.host.pid()
    }
}

/// The parent's end from the worker.
#[derive(Debug)]
pub(super) struct Replies {
    replies: Consumer,
    parent: Doze,
    worker: Doze,
    pub(super) socket: Arc<Fd>,
    bell: Arc<Fd>,
}

impl Replies {
    /// Takes all that the worker has published.
    pub(super) fn drain(&mut self, out: &mut Vec<u8>) -> Result<bool, Corrupt> {
        let some = self.replies.drain(out)?;
        // It may have been waiting for the room.
        if some && self.worker.must_ring() {
            sys::fd::ring(self.bell.as_fd());
        }
        Ok(some)
    }

    /// Has the worker ring from now on; false if it has published something already.
    pub(super) fn sleep(&self) -> bool {
        self.parent.announce();
        self.replies.is_empty()
    }

    pub(super) fn awake(&self) {
        self.parent.awake();
    }
}

/// The worker's side.
#[derive(Debug)]
pub(super) struct WorkerEnd {
    memory: Arc<Shared>,
    tasks: Consumer,
    worker: Doze,
    bell: Fd,
    pub(super) socket: Fd,
    pub(super) outbox: Arc<Outbox>,
}

/// The worker's way to its parent, which its tasks use as well, from any thread.
#[derive(Debug)]
pub(super) struct Outbox {
    writer: Mutex<Writer>,
    parent: Doze,
    parent_bell: Fd,
    /// The worker's process: a copy that a task made of it has nothing to say.
    owner: u64,
}

#[derive(Debug)]
struct Writer {
    replies: Producer,
    /// When the parent was rung last.
    rung_at: u64,
    /// The item that runs, if somebody listens to what it reports.
    reporting: Option<(TaskId, Tag)>,
}

/// A worker that still has work in hand rings its parent no more often than this.
const RING_EVERY: u64 = 100_000;
/// How long a reply waits before it is tried again, for want of what nobody tells of: memory, or
/// descriptors in flight.
const SHORTAGE: Duration = Duration::from_millis(1);

impl WorkerEnd {
    pub(super) fn new(setup: Setup) -> io::Result<Self> {
        let memory = Arc::new(Shared::map(setup.memory.into_fd()?.as_fd())?);
        let replies = Producer::new(memory.clone(), REPLIES);
        let outbox = Outbox {
            writer: Mutex::new(Writer { replies, rung_at: 0, reporting: None }),
            parent: Doze::new(memory.clone(), PARENT_ASLEEP),
            parent_bell: setup.parent_bell.into_fd()?,
            owner: process_token(),
        };
        Ok(Self {
            tasks: Consumer::new(memory.clone(), TASKS),
            worker: Doze::new(memory.clone(), WORKER_ASLEEP),
            memory,
            bell: setup.bell.into_fd()?,
            socket: setup.socket.into_fd()?,
            outbox: Arc::new(outbox),
        })
    }

    /// Waits for frames and appends all that are there.
    pub(super) fn receive(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        while !self.tasks.drain(out).map_err(corrupt)? {
            self.outbox.ring(&mut lock(&self.outbox.writer));
            self.worker.announce();
            if self.tasks.is_empty() {
                self.wait()?;
            }
            self.worker.awake();
        }
        Ok(())
    }

    /// Notes how much memory there is ahead of an item with a limit, and how much was written to
    /// stderr: see [`StderrMarks`].
    pub(super) fn begin_with(&self, memory: u64) {
        self.memory.store(BEGAN_WITH, memory, Ordering::Relaxed);
        // Of an instant at which nobody reads, so that it is neither too much nor too little.
        let mut looks = 0;
        let position = loop {
            let read = self.memory.load(STDERR_READ, Ordering::SeqCst);
            let unread = sys::fd::unread_stderr().unwrap_or(0);
            let is_certain = read & READING == 0 && self.memory.load(STDERR_READ, Ordering::SeqCst) == read;
            if is_certain || looks == LOOKS {
                break (read & !READING).saturating_add(unread);
            }
            looks += 1;
            std::thread::yield_now();
        };
        self.memory.store(STDERR_BEGAN, position, Ordering::Release);
    }

    /// Waits for the bell.
    ///
    /// # Errors
    /// When it was given up, as only a thread can be: a process is dead by then.
    fn wait(&self) -> io::Result<()> {
        // Noted before the bell is rung, so that no wait can miss it.
        if self.memory.load(GIVEN_UP, Ordering::Acquire) != 0 {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        sys::fd::wait_ring(self.bell.as_fd())
    }

    /// Claims the next item of a run, and gives the time if it is `timed`; `None` if the rest of
    /// the run was withdrawn.
    pub(super) fn begin(&self, seq: u32, timed: bool) -> Option<u64> {
        let now = if timed { sys::fd::monotonic_ns() } else { 0 };
        if timed {
            self.memory.store(BEGAN_AT, now, Ordering::Relaxed);
        }
        (slot(&self.memory, seq).fetch_add(1, Ordering::AcqRel) & CANCEL == 0).then_some(now)
    }

    /// Waits until nobody waits for it any more; for a process that is for ever.
    pub(super) fn until_given_up(&self) -> io::Error {
        loop {
            if let Err(given_up) = self.wait() {
                return given_up;
            }
        }
    }

    /// Publishes what is no reply.
    pub(super) fn garble(&self) -> io::Result<()> {
        let writer = &mut *lock(&self.outbox.writer);
        writer.replies.try_push(&[&[0xff; 24]]).map_err(corrupt)?;
        self.outbox.ring(writer);
        Ok(())
    }

    /// Publishes a reply; `more` says that the next item is in hand.
    pub(super) fn reply(
        &mut self,
        kind: Kind,
        tag: Tag,
        payload: &[u8],
        body: &Body,
        more: bool,
    ) -> io::Result<()> {
        let outbox = &*self.outbox;
        let writer = &mut *lock(&outbox.writer);
        writer.reporting = None;
        let mut mode = Mode::Try;
        while let Err(error) = body.send_parcel(self.socket.as_fd(), tag, mode) {
            if !is_full(&error) {
                return Err(error);
            }
            // The parent must hear of the replies whose parcels are in the way.
            outbox.ring(writer);
            if error.kind() != io::ErrorKind::WouldBlock {
                std::thread::sleep(SHORTAGE);
            }
            mode = Mode::Wait;
        }
        let head = Reply::head(kind, tag, body);
        debug_assert!(payload.len() <= INLINE);
        while !writer.replies.try_push(&[&head, payload]).map_err(corrupt)? {
            outbox.ring(writer);
            self.worker.announce();
            if !writer.replies.has_room(&[&head, payload]).map_err(corrupt)? {
                self.wait()?;
            }
            self.worker.awake();
        }
        let idle = !more && self.tasks.is_empty();
        let late = || sys::fd::monotonic_ns() - writer.rung_at >= RING_EVERY;
        if idle || outbox.parent.seems_asleep() && late() {
            outbox.ring(writer);
        }
        Ok(())
    }
}

impl Outbox {
    /// Wakes the parent if it sleeps.
    fn ring(&self, writer: &mut Writer) {
        if self.parent.must_ring() {
            writer.rung_at = sys::fd::monotonic_ns();
            sys::fd::ring(self.parent_bell.as_fd());
        }
    }

    /// From now on until its reply, this item may report.
    pub(super) fn expect_reports(&self, id: TaskId, tag: Tag) {
        lock(&self.writer).reporting = Some((id, tag));
    }

    /// Acts for an item that runs and may report, unless somebody else is writing just now.
    fn with_reporting(&self, id: TaskId, act: impl FnOnce(&mut Writer, Tag)) -> bool {
        if self.owner != process_token() {
            return false;
        }
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(writer)) => writer.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        match writer.reporting {
            Some((running, tag)) if running == id => {
                act(&mut writer, tag);
                true
            }
            _ => false,
        }
    }
}

impl Reports for Outbox {
    fn wants(&self, id: TaskId) -> bool {
        self.with_reporting(id, |_, _| {})
    }

    fn report(&self, id: TaskId, value: &[u8]) {
        if value.len() > INLINE {
            crate::log::warn(format_args!("a progress report of {} bytes is too large", value.len()));
            return;
        }
        self.with_reporting(id, |writer, tag| {
            let head = Reply::head(Kind::Progress, tag, &Body::default());
            // Without room it is dropped, and a broken ring is found by the next reply.
            if writer.replies.try_push(&[&head, value]) == Ok(true) {
                self.ring(writer);
            }
        });
    }
}

fn corrupt(error: Corrupt) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_waited_out_for_a_while_each_time() {
        let step = Crowd::PAUSE;
        let mut crowd = Crowd::default();
        for begin in [1_000 * step, 2_000 * step] {
            let tries = Crowd::PATIENCE / step;
            assert!((0..tries).all(|n| !crowd.is_too_long(begin + n * step)));
            assert!(crowd.is_too_long(begin + tries * step));
        }
    }
}
