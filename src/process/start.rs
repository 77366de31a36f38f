//! The start of a child: an order, a birth, a handshake, each against a deadline.

use crate::sys::AsFd;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::child::Child;
use super::hand::STARTER;
use super::{About, ExitStatus, Identity, Process, table};
use crate::context::{Context, StartMethod, get_executable};
use crate::control::{self, Draft, Order, Report, Work};
use crate::error::{Error, Result, StartError};
use crate::reactor;
use crate::reduction::{Attachments, Descriptor};
use crate::sys::per_process::PerProcess;
use crate::sys::process::Exit;
use crate::sys::socket::Mode;
use crate::sys::{self, Fd};
use crate::{fork, forkserver, spawn};

/// All that a start needs.
pub(super) struct Plan {
    pub(super) work: Work,
    pub(super) args: (Vec<u8>, Attachments),
    pub(super) context: Context,
    pub(super) path: Vec<u32>,
    pub(super) worker: bool,
    pub(super) core_files: bool,
    pub(super) stdout: Option<Fd>,
    pub(super) stderr: Option<Fd>,
    pub(super) timeout: Duration,
    pub(super) about: About,
}

/// How often a start is tried whose fork server dies before it has made the child.
const ATTEMPTS: usize = 3;

pub(super) async fn start(plan: Plan, identity: &Identity) -> Result<Process> {
    sys::fd::raise_fd_limit();
    let method = plan.context.start_method();
    let order = Order {
        work: plan.work,
        name: plan.about.name.clone(),
        path: plan.path,
        daemon: plan.about.daemon,
        worker: plan.worker,
        core_files: plan.core_files,
        debugged: plan.worker && waits_for_debugger(&plan.about.name),
        authkey: plan.about.authkey.clone(),
        method,
        parent: identity.as_parent()?,
        lifeline: plan.about.daemon.then(lifeline).transpose()?,
        stdout: plan.stdout.map(Descriptor::new),
        stderr: plan.stderr.map(Descriptor::new),
        surroundings: if method == StartMethod::ForkServer {
            forkserver::surroundings()
        } else {
            Default::default()
        },
        log_level: crate::log::level_for_child(),
        executable: get_executable(),
        tracker: crate::resource_tracker::to_inherit(),
    };
    let (args, attachments) = plan.args;

    let deadline = reactor::Deadline::after(plan.timeout)?;
    let (timeout, worker) = (plan.timeout, plan.worker);
    let started = async {
        let order = Draft::packed(&order, &args, attachments).await?;
        for _ in 0..ATTEMPTS {
            let (ours, theirs) = sys::socket::seqpacket_pair()?;
            let newborn = match method {
                StartMethod::Spawn => {
                    STARTER.run(move || Newborn::born(spawn::start(theirs.as_fd())?, ours, worker)).await??
                }
                StartMethod::Fork if plan.context.vouched() => {
                    STARTER.run(move || Newborn::born(fork::start(&theirs, true)?, ours, worker)).await??
                }
                // There is no other thread to hand this to.
                StartMethod::Fork => {
                    let pid = fork::start(&theirs, false)?;
                    drop(theirs);
                    Newborn::born(pid, ours, worker)?
                }
                StartMethod::ForkServer => {
                    let expected = Newborn::expected(ours, worker);
                    forkserver::request(theirs.as_fd()).await?;
                    drop(theirs);
                    expected
                }
            };
            // Not before: where nobody waits for children, one without an order is all that cannot
            // have come and gone before anybody had hold of it.
            match order.send(newborn.control.as_fd(), Mode::Try) {
                // It has ended; how, the handshake finds out.
                Err(error) if sys::socket::is_gone(&error) => {}
                // One message is never more than the socket takes at once.
                given => given?,
            }
            if let Some(child) = newborn.handshake().await? {
                return Ok(child);
            }
        }
        Err(Error::from(StartError::ForkServer(format!("it died during each of {ATTEMPTS} starts"))))
    };
    tokio::select! {
        biased;
        child = started => {
            let child = child?;
            crate::log::info(format_args!("child process {} calling its target: pid {}", plan.about.name, child.pid()));
            Ok(Process::new(child, Arc::new(plan.about)))
        }
        over = deadline.over() => {
            over?;
            Err(StartError::Deadline(timeout).into())
        }
    }
}

/// How long a worker has to end by itself whose start is given up.
const GRACE: Duration = Duration::from_secs(1);

/// Whether the environment names this worker, or all.
fn waits_for_debugger(name: &str) -> bool {
    let wanted = std::env::var("TOKIO_MULTIPROCESS_WAIT_FOR_DEBUGGER").unwrap_or_default();
    wanted == "1" || !wanted.is_empty() && name.contains(&wanted)
}

/// A child that nobody but its start knows of: dropped, it is killed and reaped.
struct Newborn {
    control: Arc<Fd>,
    /// It puts a guardian before itself, unless it is another program than it should be.
    worker: bool,
    /// `None` until the fork server's child has told its id.
    child: Option<Arc<Child>>,
    handed_over: bool,
}

impl Newborn {
    fn expected(control: Fd, worker: bool) -> Self {
        Self { control: Arc::new(control), worker, child: None, handed_over: false }
    }

    /// Takes hold of a child that was just made.
    fn born(pid: i32, control: Fd, worker: bool) -> Result<Self> {
        let control = Arc::new(control);
        match Child::born(pid, control.clone()) {
            Ok(child) => Ok(Self { control, worker, child: Some(child), handed_over: false }),
            // It has ended and somebody else has reaped it.
            Err(error) if error.raw_os_error() == Some(sys::process::ESRCH) => Err(exited_unseen().into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it says that its target is about to run; `None` if the fork server died before
    /// it made it.
    async fn handshake(mut self) -> Result<Option<Arc<Child>>> {
        let mut early = Vec::new();
        let mut ready = false;
        loop {
            match control::receive::<Report>(self.control.as_fd(), Mode::Try) {
                Ok(Some(mut letter)) => {
                    if self.child.is_none() {
                        // Where nobody waits for children this one may have come and gone.
                        self.child = Child::announced(&mut letter.head, &self.control).unwrap_or(None);
                    }
                    match letter.head {
                        Report::Born { .. } => {}
                        Report::Ready { ward, .. } => {
                            match (&self.child, ward) {
                                (Some(child), Some(ward)) => child.guards(ward)?,
                                (_, None) if self.worker => unguarded(),
                                _ => {}
                            }
                            ready = true;
                        }
                        Report::Refused(why) => return Err(StartError::Refused(why).into()),
                        _ => early.push(letter),
                    }
                }
                Ok(None) if ready && self.child.is_none() => return Err(exited_unseen().into()),
                Ok(None) => {
                    let Some(child) = &self.child else { return Ok(None) };
                    // A foreign program may close the socket and live on.
                    reactor::readable(child.exit()).await?;
                    return Err(child.status().map_or_else(exited_unseen, StartError::Exited).into());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    reactor::readable(self.control.as_fd()).await?;
                }
                Err(error) => return Err(error.into()),
            }
            if ready && let Some(child) = self.child.take() {
                early.into_iter().for_each(|letter| child.note(letter));
                self.handed_over = true;
                return Ok(Some(child));
            }
        }
    }
}

/// A worker has no guardian: says so once.
fn unguarded() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !sys::without(sys::Mechanism::Guardian) && !TOLD.swap(true, Ordering::Relaxed) {
        crate::log::warn(format_args!(
            "workers have no guardians, as they had threads before their start (of a library's constructor), \
             or as there is no /proc: what a task starts is killed only with the worker's process group"
        ));
    }
}

fn exited_unseen() -> StartError {
    StartError::Exited(ExitStatus::new(Exit::Unknown, false))
}

impl Drop for Newborn {
    fn drop(&mut self) {
        match self.child.take() {
            None if self.handed_over => {}
            child => {
                let grace = if self.worker {
                    // Killed, a guardian would leave its worker to nobody.
                    sys::socket::shut_down(self.control.as_fd());
                    GRACE
                } else {
                    Duration::ZERO
                };
                match child {
                    Some(child) => table::dismiss(child, grace),
                    None => table::dismiss_unborn(self.control.clone(), grace),
                }
            }
        }
    }
}

/// The pipe by whose end daemons learn of this process's: the kernel kills them then.
pub(super) fn lifeline() -> io::Result<Descriptor> {
    static LIFELINE: PerProcess<OnceLock<(Descriptor, Fd)>> = PerProcess::new(OnceLock::new);
    let cell = LIFELINE.get();
    let ends = match cell.get() {
        Some(ends) => ends,
        None => {
            let (read, write) = sys::orphan::lifeline()?;
            cell.get_or_init(|| (Descriptor::new(read), write))
        }
    };
    Ok(ends.0.clone())
}
