//! A process in the making.

use std::time::Duration;

use async_trait::async_trait;

use super::start::{Plan, start};
use super::{About, Identity, JoinHandle, Process};
use crate::authkey::AuthKey;
use crate::context::Context;
use crate::control::Work;
use crate::error::{Error, Failure, Result};
use crate::function::{FnId, Target, target_entry};
use crate::reduction::{Attachments, CodecError, Message, Peer, encode};
use crate::sys::Fd;

/// A value that runs as a process: Python's subclass of `Process` with its own `run`.
///
/// ```no_run
/// use serde::{Deserialize, Serialize};
/// use tokio_multiprocess as mp;
///
/// #[derive(Serialize, Deserialize)]
/// struct Countdown { from: u32 }
///
/// #[mp::async_trait]
/// impl mp::Run for Countdown {
///     async fn run(self) -> Result<(), mp::Failure> {
///         for n in (1..=self.from).rev() {
///             println!("{n}");
///         }
///         Ok(())
///     }
/// }
///
/// # async fn demo() -> mp::Result<()> {
/// mp::Process::from_run(Countdown { from: 3 }).start().await?.join().await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Run: Message {
    /// What the child does. An error is printed with its sources, and the exit code is 1.
    async fn run(self) -> Result<(), Failure>;
}

pub(super) async fn run_value<T: Run>(value: T) -> Result<(), Failure> {
    value.run().await
}

/// How long a child may take to say that it runs.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A process in the making: see [`Process::builder`].
#[derive(Debug)]
#[must_use = "a process starts only with `start().await`"]
pub struct ProcessBuilder {
    work: Result<Work>,
    args: Result<(Vec<u8>, Attachments), CodecError>,
    context: Context,
    name: Option<String>,
    daemon: Option<bool>,
    authkey: Option<AuthKey>,
    start_timeout: Duration,
    worker: bool,
    core_files: bool,
    internal: bool,
    stdout: Option<Fd>,
    stderr: Option<Fd>,
}

impl ProcessBuilder {
    pub(crate) fn new<F, A, M>(target: F, args: A) -> Self
    where
        F: Target<A, M>,
        A: Message,
        M: 'static,
    {
        let id = FnId::of(target_entry(target), Some(Peer::AnyBuild));
        Self::with_work(id.map(Work::Target).map_err(Error::from), &args)
    }

    pub(crate) fn without_target() -> Self {
        Self::with_work(Ok(Work::Nothing), &())
    }

    pub(super) fn with_work<A: Message>(work: Result<Work>, args: &A) -> Self {
        let mut bytes = Vec::new();
        let args = encode(args, &mut bytes, Peer::AnyBuild).map(|attachments| (bytes, attachments));
        Self {
            work,
            args,
            context: Context::default(),
            name: None,
            daemon: None,
            authkey: None,
            start_timeout: START_TIMEOUT,
            worker: false,
            core_files: false,
            internal: false,
            stdout: None,
            stderr: None,
        }
    }

    /// Its name, in place of `Process-1` and so on. Names need not be unique.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether it ends with its parent, however that ends: a daemon is killed by the kernel within
    /// milliseconds when its parent dies. By default it is what its creator is. A daemon leads a
    /// process group of its own, so a terminal's signals do not reach it, and has no children.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = Some(daemon);
        self
    }

    /// Its secret, in place of its parent's.
    pub fn authkey(mut self, key: AuthKey) -> Self {
        self.authkey = Some(key);
        self
    }

    /// The context whose start method is used.
    pub fn context(mut self, context: Context) -> Self {
        self.context = context;
        self
    }

    /// How long it may take to say that its target is about to run; then it is killed, and the
    /// start is an error. 60 seconds by default, by the kernel's clock.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// What [`daemon`](Self::daemon) said, or this process's own flag.
    pub fn is_daemon(&self) -> bool {
        self.daemon.unwrap_or_else(|| Identity::get().is_daemon())
    }

    /// The secret that it will have.
    pub fn get_authkey(&self) -> AuthKey {
        self.authkey.clone().unwrap_or_else(|| Identity::get().authkey())
    }

    /// One of this crate's own processes, which dies with this one and is not among
    /// `active_children`.
    pub(crate) fn internal(mut self) -> Self {
        self.internal = true;
        self.daemon = Some(true);
        self
    }

    /// A pool's worker, or the like: takes no notice of a group's signals.
    pub(crate) fn worker(mut self) -> Self {
        self.worker = true;
        self.internal()
    }

    /// Whether it may leave core files; a worker does not unless this says so.
    pub(crate) fn core_files(mut self, core_files: bool) -> Self {
        self.core_files = core_files;
        self
    }

    /// What becomes its stdout, if not this process's, and its stderr.
    pub(crate) fn output_to(mut self, stdout: Option<Fd>, stderr: Fd) -> Self {
        self.stdout = stdout;
        self.stderr = Some(stderr);
        self
    }

    /// Starts it, and returns when its target is about to run.
    ///
    /// # Errors
    /// When the program cannot be executed, is of another build that does not know the target, or
    /// says nothing for [`start_timeout`](Self::start_timeout); when the arguments cannot be
    /// encoded; in a daemon; in a process that is itself still starting. Nothing is left running.
    /// What goes wrong later, as arguments that do not decode there, is the child's exit.
    ///
    /// # Cancel safety
    /// Dropping the future kills a child that was not handed over yet; it is reaped.
    pub async fn start(self) -> Result<Process> {
        let identity = super::current::may_start()?;
        let (path, default_name) = identity.next_child();
        let about = About {
            name: self.name.clone().unwrap_or(default_name),
            daemon: self.is_daemon(),
            authkey: self.get_authkey(),
            parent: crate::sys::process::getpid(),
            internal: self.internal,
        };
        let args = self.args.map_err(Error::Encode)?;
        let plan = Plan {
            work: self.work?,
            args,
            context: self.context,
            path,
            worker: self.worker,
            core_files: self.core_files || !self.worker,
            stdout: self.stdout,
            stderr: self.stderr,
            timeout: self.start_timeout,
            about,
        };
        start(plan, &identity).await
    }

    pub(super) async fn start_task<R: Message>(self) -> Result<JoinHandle<R>> {
        Ok(JoinHandle::new(self.start().await?))
    }
}
