//! What a worker does, be it a process or a thread: takes runs, runs their items one after another, replies.

mod fault;

use std::io;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::Arc;

use super::channel::WorkerEnd;
use super::memory::{Group, Limited, MemoryWatch};
use super::wire::{Body, INLINE, ITEM_HEAD, Kind, Order, Preparation, RunFrame, RunHead, Setup, Tag};
use crate::bootstrap::drive;
use crate::error::{RemotePanic, TaskError};
use crate::function::{TaskCode, TaskFailure, finish};
use crate::process::catch;
use crate::reduction::{Attachments, Incoming, Peer, encode};
use crate::ring::single::frames;
use crate::sys::AsFd;
use crate::sys::cgroup;
use crate::sys::fd;
use crate::sys::image::Entry;
use crate::sys::per_process::process_token;
use crate::sys::process::exit_now;
use crate::sys::usage::Own;
use crate::task::{self, TaskId, state};
use crate::testing::Injector;

/// The target of a worker process.
pub(super) fn main(setup: Setup) -> ExitCode {
    match serve(setup) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("a pool's worker lost touch with its pool: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Works until the pool wants no more, and gives the exit code.
pub(super) fn serve(mut setup: Setup) -> io::Result<u8> {
    let preparations = std::mem::take(&mut setup.preparations);
    let name = std::mem::take(&mut setup.name);
    let (own_process, left) = (setup.own_process, setup.max_tasks);
    if let Some(door) = setup.cgroup.take() {
        cgroup::enter(door.into_fd()?)?;
    }
    let group = match setup.group_memory.take() {
        Some((used, max)) => Some(Arc::new(Group { used: used.into_fd()?, max: max.into_fd()? })),
        None => None,
    };
    let faults = setup.faults.take().map(Injector::new).transpose()?;
    let memory = setup.max_memory.map(MemoryWatch::new);
    let own = if own_process { Own::open()? } else { None };
    let end = WorkerEnd::new(setup)?;
    let about = Arc::new(task::Worker { name, reports: end.outbox.clone() });
    let worker = Worker {
        end,
        about,
        value: Vec::new(),
        token: process_token(),
        own_process,
        left,
        own,
        used: false,
        memory,
        group,
        retiring: false,
        faults,
    };
    let code = worker.run(preparations)?;
    // Not left to the thread's end, which the main thread of a forked process does not have. A panic
    // is printed, as any is.
    let _ = catch_unwind(state::clear);
    Ok(code)
}

/// What came of an item; the bytes of a value are in [`Worker::value`].
enum Outcome {
    Value(Attachments),
    Failed(TaskFailure),
    Panicked(RemotePanic),
}

struct Worker {
    end: WorkerEnd,
    /// What its tasks may know of it.
    about: Arc<task::Worker>,
    /// The encoded outcome of an item.
    value: Vec<u8>,
    /// This process: a copy that a task made of it is not the worker.
    token: u64,
    /// It is no thread of somebody else's.
    own_process: bool,
    /// How many items it may still begin.
    left: Option<u32>,
    /// Its own memory, where there is a way to see that.
    own: Option<Own>,
    /// It has called a task, which may have changed what this process can do.
    used: bool,
    memory: Option<MemoryWatch>,
    group: Option<Arc<Group>>,
    /// It has asked to be replaced.
    retiring: bool,
    faults: Option<Injector>,
}

impl Worker {
    fn run(mut self, preparations: Vec<Preparation>) -> io::Result<u8> {
        let mut preparations = preparations.into_iter().peekable();
        if preparations.peek().is_none() {
            self.say(Kind::Ready, b"")?;
        }
        let mut inbox = Vec::new();
        loop {
            inbox.clear();
            self.end.receive(&mut inbox)?;
            let mut orders = frames(&inbox);
            while let Some(frame) = orders.next() {
                let order =
                    frame.and_then(Order::parse).map_err(|error| io::Error::other(error.to_string()))?;
                match order {
                    Order::Stop => return Ok(0),
                    Order::Run(run) => match preparations.next() {
                        None => self.run_items(run, orders.rest() > 0)?,
                        Some(what) => {
                            if let Err(why) = self.prepare(run) {
                                let why = what.failed(why);
                                self.say(Kind::Broken, &why.as_bytes()[..why.len().min(INLINE)])?;
                                return Ok(1);
                            }
                            if preparations.peek().is_none() {
                                self.say(Kind::Ready, b"")?;
                            }
                        }
                    },
                }
                if self.left == Some(0) {
                    return Ok(0);
                }
            }
        }
    }

    /// Replies for the worker as a whole.
    fn say(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let tag = Tag { seq: u32::MAX, index: 0 };
        self.end.reply(kind, tag, payload, &Body::default(), false)
    }

    fn prepare(&mut self, mut run: RunFrame<'_>) -> Result<(), TaskError> {
        let unusable = |why: String| TaskFailure::Arguments(why).into_error();
        let entry = run.function.task().map_err(unusable)?;
        let mut parcel = run.parcel(self.end.socket.as_fd()).map_err(|error| unusable(error.to_string()))?;
        let item = run.next_item().map_err(|error| unusable(error.to_string()))?;
        match self.call(entry, parcel.message(item)) {
            Outcome::Value(_) => Ok(()),
            Outcome::Failed(failure) => Err(failure.into_error()),
            Outcome::Panicked(panic) => Err(TaskError::Panicked(panic)),
        }
    }

    fn run_items(&mut self, mut run: RunFrame<'_>, more: bool) -> io::Result<()> {
        let entry = run.function.task();
        let mut parcel = run.parcel(self.end.socket.as_fd());
        if parcel.as_ref().is_err_and(|error| self.is_spent(error)) {
            // Before anything of it has begun: it goes to another worker.
            self.left = Some(0);
            return Ok(());
        }
        let RunHead { seq, count, job, first, attempt, timeout, reports, .. } = run.head;
        let mut id = TaskId { job, item: first };
        task::set_running(entry.as_ref().ok().map(|entry| task::Running {
            id,
            attempt,
            timeout,
            began_at: 0,
            name: (entry.name)(),
            worker: self.about.clone(),
        }));
        for index in 0..count {
            let tag = Tag { seq, index };
            let item = run.next_item().map_err(|error| io::Error::other(error.to_string()))?;
            let limit = Some(run.head.memory_limit).filter(|limit| *limit > 0 && self.own_process);
            let limited = limit.map(|limit| Limited::begin(limit, self.own.as_ref(), self.group.clone()));
            if let Some(limited) = &limited {
                self.end.begin_with(limited.held.unwrap_or(u64::MAX));
            }
            let Some(began_at) = self.end.begin(seq, run.head.timed()) else {
                return self.end.reply(Kind::Skipped, tag, b"", &Body::default(), more);
            };
            id.item = first + u64::from(index);
            task::set_item(id.item, began_at);
            if reports {
                self.end.outbox.expect_reports(id, tag);
            }
            let fault = match (&self.faults, &entry) {
                (Some(faults), Ok(entry)) => faults.draw((entry.name)()),
                _ => None,
            };
            if let Some(fault) = fault {
                self.suffer(fault)?;
            }
            self.used |= parcel.is_ok();
            let outcome = match (&entry, &mut parcel) {
                (Ok(entry), Ok(parcel)) => self.call(entry, parcel.message(item)),
                (Err(why), _) => Outcome::Failed(TaskFailure::Arguments(why.clone())),
                (_, Err(error)) => Outcome::Failed(TaskFailure::Arguments(error.to_string())),
            };
            // It has used up something that it needs to see what there is below it.
            let blind = limited.is_some_and(|limited| limited.held.is_none()) && self.own.is_some();
            self.left = self.left.map(|left| left - 1);
            if state::is_lost() {
                // It ends, and what it holds goes to others: the one that replaces it loads afresh.
                self.left = Some(0);
            }
            let more = (more || index + 1 < count) && self.left != Some(0);
            match fault {
                None => self.answer(tag, outcome, more)?,
                Some(fault) => self.answer_under(fault, tag, outcome, more)?,
            }
            if self.left == Some(0) {
                break;
            }
            let too_much = match (&mut self.memory, &self.own) {
                (Some(watch), Some(own)) => watch.is_too_much(own),
                _ => false,
            };
            if too_much || blind {
                self.retire()?;
            }
        }
        task::set_running(None);
        Ok(())
    }

    /// Whether an error says that tasks before have left this process no descriptors: it would fail at
    /// once all that needs one, and get the more of it. In one that is as it was started the call
    /// asks for too much, and others could do no better.
    fn is_spent(&self, error: &io::Error) -> bool {
        self.used && self.own_process && fd::is_exhausted(error)
    }

    /// Asks to be replaced once it is idle. Until it is told to end it goes on as before.
    fn retire(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.retiring, true) {
            return Ok(());
        }
        self.say(Kind::Retire, b"")
    }

    fn call(&mut self, entry: &Entry<TaskCode>, args: Incoming<'_>) -> Outcome {
        self.value.clear();
        let called = catch((entry.name)(), || finish((entry.code)(args, &mut self.value), drive));
        if process_token() != self.token {
            // The task has forked, and this is the copy that came back from it: the ring and the
            // caller are the worker's.
            exit_now(0);
        }
        match called {
            Ok((bytes, Ok(attachments))) => {
                self.value = bytes.unwrap_or(std::mem::take(&mut self.value));
                Outcome::Value(attachments)
            }
            Ok((_, Err(failure))) => Outcome::Failed(failure),
            Err(panic) => Outcome::Panicked(panic),
        }
    }

    fn answer(&mut self, tag: Tag, outcome: Outcome, more: bool) -> io::Result<()> {
        let (kind, body) = self.write_down(outcome)?;
        let payload = if body.items.is_empty() { &self.value } else { &body.items[ITEM_HEAD..] };
        self.end.reply(kind, tag, payload, &body, more)
    }

    /// Encodes what is to be said: into [`value`](Self::value) if there is room for it in a frame
    /// and nothing goes beside it, else into a body, by which that is left empty.
    fn write_down(&mut self, outcome: Outcome) -> io::Result<(Kind, Body)> {
        let (kind, attachments) = match outcome {
            Outcome::Value(attachments) => (Kind::Value, attachments),
            Outcome::Failed(failure) => self.report(Kind::Failed, &failure, "error")?,
            Outcome::Panicked(panic) => self.report(Kind::Panicked, &panic, "panic")?,
        };
        if self.value.len() <= INLINE && attachments.is_empty() {
            return Ok((kind, Body::default()));
        }
        let mut buffer = vec![0; ITEM_HEAD];
        buffer.append(&mut self.value);
        match Body::single(buffer, attachments) {
            Ok(body) => Ok((kind, body)),
            Err(error) => {
                if self.is_spent(&error) {
                    self.left = Some(0);
                }
                self.unencodable(error.to_string(), "value")?;
                Ok((Kind::Failed, Body::default()))
            }
        }
    }

    /// Puts what is no value into the place of one, or else why that cannot be told: a report that
    /// nobody can read must not cost the worker.
    fn report<T: serde::Serialize>(
        &mut self,
        kind: Kind,
        report: &T,
        what: &str,
    ) -> io::Result<(Kind, Attachments)> {
        match self.encode(report) {
            Ok(attachments) => Ok((kind, attachments)),
            Err(error) => Ok((Kind::Failed, self.unencodable(error.to_string(), what)?)),
        }
    }

    fn unencodable(&mut self, reason: String, what: &str) -> io::Result<Attachments> {
        self.encode(&TaskFailure::Unencodable { reason, value: what.to_owned() })
    }

    fn encode<T: serde::Serialize>(&mut self, report: &T) -> io::Result<Attachments> {
        self.value.clear();
        encode(report, &mut self.value, Peer::SameBuild).map_err(io::Error::other)
    }
}
