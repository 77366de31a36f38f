//! A child as its parent sees it: from its birth to the status that it left.

use crate::sys::{AsFd, BorrowedFd};
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;

use bytes::Bytes;

use super::exit_status::ExitStatus;
use crate::control::{self, Guarded, Letter, Report};
use crate::error::TaskError;
use crate::sys::per_process::process_token;
use crate::sys::process::{self as kernel, Exit, Held};
use crate::sys::socket::Mode;
use crate::sys::{self, Fd};
use crate::util::lock;

/// A child that was born: the hold on it, the socket to it, and what is known of its end.
///
/// Whoever looks first after its end takes its status from the kernel; then all know.
#[derive(Debug)]
pub(crate) struct Child {
    /// Of the process that this one waits for, which may be a guardian.
    pid: i32,
    held: Held,
    pub(crate) control: Arc<Fd>,
    /// The process that started it: no other may wait for it.
    owner: u64,
    /// Whom it guards, once that is known: a worker that is about to run.
    ward: OnceLock<Ward>,
    end: Mutex<End>,
}

/// A worker behind its guardian, which is its parent and reaps it.
#[derive(Debug)]
struct Ward {
    pid: i32,
    /// None where the kernel gives none.
    pidfd: Option<Fd>,
}

#[derive(Debug, Default)]
struct End {
    status: Option<ExitStatus>,
    stack_overflow: bool,
    fault: Option<u64>,
    core_dumped: bool,
    last_words: Option<i32>,
    answer: Option<Answer>,
}

/// What came of a one-off task.
pub(crate) type Answer = Result<(Bytes, Vec<Fd>), TaskError>;

impl End {
    fn note(&mut self, letter: Letter<Report>) {
        match letter.split() {
            (Report::Exiting(code), ..) => self.last_words = Some(code),
            (Report::Fault { stack_overflow, address }, ..) => {
                self.stack_overflow |= stack_overflow;
                self.fault = self.fault.or(address);
            }
            (Report::CoreDumped, ..) => self.core_dumped = true,
            (Report::Value, bytes, attachments) => self.answer = Some(Ok((bytes, attachments))),
            (Report::Failed(failure), ..) => self.answer = Some(Err(failure.into_error())),
            (Report::Panicked(panic), ..) => self.answer = Some(Err(TaskError::Panicked(panic))),
            (Report::Born { .. } | Report::Ready { .. } | Report::Refused(_), ..) => {}
        }
    }
}

impl Child {
    fn new(pid: i32, held: Held, control: Arc<Fd>) -> Arc<Self> {
        let (owner, ward, end) = (process_token(), OnceLock::new(), Mutex::default());
        Arc::new(Self { pid, held, control, owner, ward, end })
    }

    /// The child that a report tells of: the fork server does at its birth, and the child itself
    /// does when it is ready, in case the server died in between.
    ///
    /// # Errors
    /// When no descriptor is left: the child is dead and gone then.
    pub(crate) fn announced(report: &mut Report, control: &Arc<Fd>) -> io::Result<Option<Arc<Self>>> {
        let (pid, pidfd) = match report {
            Report::Born { pid, pidfd } => (*pid, pidfd.take()),
            Report::Ready { pid, .. } => (*pid, None),
            _ => return Ok(None),
        };
        let child = match pidfd {
            Some(pidfd) => Self::new(pid, Held::by_pidfd(pid, pidfd.into_fd()?), control.clone()),
            None => Self::born(pid, control.clone())?,
        };
        Ok(Some(child))
    }

    /// Takes hold of a child of this process by its id.
    ///
    /// # Errors
    /// `ESRCH` if it has ended and somebody else has reaped it; with any other it is killed and
    /// reaped here, as nobody could later.
    pub(crate) fn born(pid: i32, control: Arc<Fd>) -> io::Result<Arc<Self>> {
        match Held::open(pid) {
            Ok(held) => Ok(Self::new(pid, held, control)),
            Err(error) => {
                if error.raw_os_error() != Some(kernel::ESRCH) {
                    kernel::kill_and_wait(pid);
                }
                Err(error)
            }
        }
    }

    /// Notes whom it guards.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(crate) fn guards(&self, ward: Guarded) -> io::Result<()> {
        let pidfd = ward.pidfd.map(crate::reduction::Descriptor::into_fd).transpose()?;
        let _ = self.ward.set(Ward { pid: ward.pid, pidfd });
        Ok(())
    }

    /// The id of the process that runs the target.
    pub(crate) fn pid(&self) -> i32 {
        self.ward.get().map_or(self.pid, |ward| ward.pid)
    }

    /// Whether it stands before the process that runs the target.
    pub(crate) fn is_guardian(&self) -> bool {
        self.ward.get().is_some()
    }

    /// Of one behind a guardian, what tells of its own end, before its guardian's.
    pub(crate) fn ward(&self) -> Option<BorrowedFd<'_>> {
        self.ward.get()?.pidfd.as_ref().map(Fd::as_fd)
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.owner == process_token()
    }

    /// What is readable once it has ended, and stays so.
    pub(crate) fn exit(&self) -> BorrowedFd<'_> {
        self.held.exit()
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.held.has_exited()
    }

    /// Notes what it said.
    pub(crate) fn note(&self, letter: Letter<Report>) {
        lock(&self.end).note(letter);
    }

    /// The answer of a one-off task: `Ready(None)` if it has ended without one, `Pending` if it
    /// may still come.
    pub(crate) fn answer(&self) -> Poll<Option<Answer>> {
        let mut end = lock(&self.end);
        let over = self.listen(&mut end);
        match end.answer.take() {
            None if !over => Poll::Pending,
            answer => Poll::Ready(answer),
        }
    }

    /// Takes in what it has said so far; true if it can say no more. Under the lock, so that
    /// nothing is in anybody's hands but noted here.
    fn listen(&self, end: &mut End) -> bool {
        loop {
            match control::receive::<Report>(self.control.as_fd(), Mode::Try) {
                Ok(Some(letter)) => end.note(letter),
                Ok(None) => return true,
                // The kernel gives nothing, now or ever.
                Err(error) if error.raw_os_error().is_some() || error.kind() == io::ErrorKind::WouldBlock => {
                    return error.kind() != io::ErrorKind::WouldBlock;
                }
                // A message was taken that cannot be read: an answer, if there is to be one.
                Err(error) => {
                    let why = serde::de::Error::custom(error);
                    end.answer.get_or_insert(Err(TaskError::Undecodable(why)));
                }
            }
        }
    }

    /// How it ended, if it has. The first call after its end reaps it.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        // First: in a copy of this process the lock may be taken for ever.
        if !self.is_ours() {
            return None;
        }
        if let Some(status) = lock(&self.end).status {
            return Some(status);
        }
        if !self.has_exited() {
            return None;
        }
        let mut end = lock(&self.end);
        // What it said before its end is in the socket; nothing can follow.
        self.listen(&mut end);
        if end.status.is_none() {
            let exit = match self.held.try_wait() {
                Ok(Some(Exit::Unknown)) | Err(_) => end.last_words.map_or(Exit::Unknown, Exit::Code),
                Ok(Some(Exit::Signal { signal, core })) => {
                    Exit::Signal { signal, core: core || end.core_dumped }
                }
                Ok(Some(exit)) => exit,
                Ok(None) => return None,
            };
            end.status = Some(ExitStatus::new(exit, end.stack_overflow).at(end.fault));
        }
        end.status
    }

    /// Sends it a signal; none if it has been reaped.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        // Under the lock, as nobody may reap it before the signal is sent.
        let end = lock(&self.end);
        if end.status.is_some() { Ok(()) } else { self.held.signal(signal) }
    }

    /// Kills it with what it has started: behind a guardian all of that, else what is in the
    /// process group that it leads. That group is safe to name only while the leader is not reaped:
    /// until then nobody else can have its number, and a process that leads none has none by its
    /// number.
    pub(crate) fn kill_tree(&self) {
        if !self.is_ours() {
            return;
        }
        let end = lock(&self.end);
        if end.status.is_some() {
            return;
        }
        let Some(ward) = self.ward.get() else {
            let _ = kernel::kill_group(self.pid, sys::signal::KILL);
            let _ = self.held.signal(sys::signal::KILL);
            return;
        };
        // First what has a processor, which the guardian may have to wait for.
        if let Some(pidfd) = &ward.pidfd {
            let _ = kernel::pidfd_signal_group(pidfd.as_fd(), sys::signal::KILL);
            let _ = kernel::pidfd_signal(pidfd.as_fd(), sys::signal::KILL);
        }
        sys::socket::shut_down(self.control.as_fd());
        let _ = self.held.signal(sys::signal::CONT);
    }
}
