//! Who this process is, and who its parent.

use crate::sys::AsFd;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::sentinel::Sentinel;
use crate::authkey::AuthKey;
use crate::control::{Order, ParentInfo};
use crate::error::{Error, Result};
use crate::reduction::Descriptor;
use crate::sys::per_process::PerProcess;
use crate::sys::{self, Fd};
use crate::util::lock;

/// What a process knows of itself.
pub(crate) struct Identity {
    about: Mutex<About>,
    daemon: bool,
    path: Vec<u32>,
    children: AtomicU32,
    parent: Option<Arc<Parent>>,
}

struct About {
    name: String,
    authkey: AuthKey,
}

struct Parent {
    pid: i32,
    name: String,
    exit: Fd,
}

static IDENTITY: PerProcess<Mutex<Arc<Identity>>> =
    PerProcess::new(|| Mutex::new(Arc::new(Identity::main())));

impl Identity {
    fn main() -> Self {
        Self {
            about: Mutex::new(About { name: "MainProcess".to_owned(), authkey: AuthKey::random() }),
            daemon: false,
            path: Vec::new(),
            children: AtomicU32::new(0),
            parent: None,
        }
    }

    pub(crate) fn get() -> Arc<Self> {
        lock(IDENTITY.get()).clone()
    }

    /// Makes this process the one that the order describes.
    pub(crate) fn become_child(order: Order) -> std::io::Result<()> {
        let ParentInfo { pid, name, exit } = order.parent;
        let parent = Parent { pid, name, exit: exit.into_fd()? };
        *lock(IDENTITY.get()) = Arc::new(Self {
            about: Mutex::new(About { name: order.name, authkey: order.authkey }),
            daemon: order.daemon,
            path: order.path,
            children: AtomicU32::new(0),
            parent: Some(Arc::new(parent)),
        });
        Ok(())
    }

    /// The path and default name of this process's next child.
    pub(crate) fn next_child(&self) -> (Vec<u32>, String) {
        let number = self.children.fetch_add(1, Ordering::Relaxed) + 1;
        let path: Vec<u32> = self.path.iter().copied().chain([number]).collect();
        let numbers: Vec<String> = path.iter().map(u32::to_string).collect();
        (path, format!("Process-{}", numbers.join(":")))
    }

    pub(crate) fn is_daemon(&self) -> bool {
        self.daemon
    }

    /// How a child of this process knows it.
    pub(crate) fn as_parent(&self) -> std::io::Result<ParentInfo> {
        static EXIT: PerProcess<OnceLock<Descriptor>> = PerProcess::new(OnceLock::new);
        let cell = EXIT.get();
        let exit = match cell.get() {
            Some(exit) => exit,
            None => {
                let fresh = match sys::process::pidfd_open(sys::process::getpid()) {
                    Ok(pidfd) => Descriptor::new(pidfd),
                    // It hangs up, which is as readable.
                    Err(error) if sys::process::is_refusal(&error) => super::start::lifeline()?,
                    Err(error) => return Err(error),
                };
                cell.get_or_init(|| fresh)
            }
        };
        Ok(ParentInfo {
            pid: sys::process::getpid(),
            name: lock(&self.about).name.clone(),
            exit: exit.clone(),
        })
    }

    pub(crate) fn authkey(&self) -> AuthKey {
        lock(&self.about).authkey.clone()
    }
}

/// The process that asks.
pub fn current_process() -> CurrentProcess {
    CurrentProcess(Identity::get())
}

/// The process that runs this code: see [`current_process`].
#[derive(Clone)]
pub struct CurrentProcess(Arc<Identity>);

impl CurrentProcess {
    /// Its id.
    pub fn pid(&self) -> i32 {
        sys::process::getpid()
    }

    /// `MainProcess`, or what it was given or numbered at its start.
    pub fn name(&self) -> String {
        lock(&self.0.about).name.clone()
    }

    /// Renames it, here; its parent goes on calling it as before.
    pub fn set_name(&self, name: impl Into<String>) {
        lock(&self.0.about).name = name.into();
    }

    /// Whether it ends with its parent.
    pub fn daemon(&self) -> bool {
        self.0.daemon
    }

    /// The secret that its children inherit.
    pub fn authkey(&self) -> AuthKey {
        self.0.authkey()
    }

    /// Gives it another secret; children started from now on inherit this one.
    pub fn set_authkey(&self, key: AuthKey) {
        lock(&self.0.about).authkey = key;
    }

    /// True: it asks.
    pub fn is_alive(&self) -> bool {
        true
    }

    /// `None`: it has not ended.
    pub fn exit_code(&self) -> Option<i32> {
        None
    }

    /// An error: a process cannot wait for its own end.
    ///
    /// # Errors
    /// Always [`Error::JoinSelf`].
    #[allow(clippy::unused_async, reason = "the shape of every other `join`")]
    pub async fn join(&self) -> Result<super::ExitStatus> {
        Err(Error::JoinSelf)
    }
}

impl fmt::Debug for CurrentProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<CurrentProcess name='{}' pid={} started", self.name(), self.pid())?;
        f.write_str(if self.daemon() { " daemon>" } else { ">" })
    }
}

/// The process that started this one; `None` in the main process.
pub fn parent_process() -> Option<ParentProcess> {
    Identity::get().parent.clone().map(ParentProcess)
}

/// This process's parent: it can be watched but not ended. See [`parent_process`].
#[derive(Clone)]
pub struct ParentProcess(Arc<Parent>);

impl ParentProcess {
    /// Its id.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// Its name when it started this process.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        !sys::process::peek_exited(self.0.exit.as_fd())
    }

    /// Waits for its end. How it ended, only its own parent learns.
    ///
    /// # Cancel safety
    /// Nothing is consumed: dropping the future and calling again is the same as waiting on.
    pub async fn join(&self) -> Result<()> {
        Ok(crate::reactor::readable(self.0.exit.as_fd()).await?)
    }

    /// Waits for its end for as long as `timeout`; false if it is alive then.
    ///
    /// # Cancel safety
    /// As [`join`](Self::join).
    pub async fn join_timeout(&self, timeout: Duration) -> Result<bool> {
        Ok(crate::reactor::readable_within(self.0.exit.as_fd(), timeout).await?)
    }

    /// What is ready when it has ended.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn sentinel(&self) -> Result<Sentinel> {
        Ok(Sentinel::new(self.0.exit.try_clone()?))
    }
}

impl fmt::Debug for ParentProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_alive() { "started" } else { "stopped" };
        write!(f, "<ParentProcess name='{}' pid={} {state}>", self.name(), self.pid())
    }
}

/// How many processors the machine has; at least 1.
pub fn cpu_count() -> usize {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let count = online.trim().split(',').filter_map(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Some(to.parse::<usize>().ok()? - from.parse::<usize>().ok()? + 1)
    });
    match count.sum() {
        0 => usable_cpu_count(),
        count => count,
    }
}

/// How many processors this process may use, by its affinity and its cgroup's quota; at least 1.
/// The default size of a pool.
#[doc(alias = "process_cpu_count")]
pub fn usable_cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// How far a process is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// It may start children: every process that was not started by this crate, and every child
    /// once its target runs.
    Running,
    Bootstrapping,
}

static PHASE: PerProcess<AtomicU8> = PerProcess::new(|| AtomicU8::new(Phase::Running as u8));

pub(crate) fn set_phase(phase: Phase) {
    PHASE.get().store(phase as u8, Ordering::SeqCst);
}

/// Whether this process may start children now.
pub(crate) fn may_start() -> Result<Arc<Identity>> {
    is_up()?;
    let identity = Identity::get();
    if identity.is_daemon() { Err(Error::DaemonicChild) } else { Ok(identity) }
}

/// Whether this process may execute its program again now.
///
/// # Errors
/// In one that is still on its way to its target: its program could be one that comes this far each time,
/// and would start processes without end.
pub(crate) fn is_up() -> Result<()> {
    if cfg!(not(multiprocess)) {
        return Err(Error::Unsupported);
    }
    // The variable is still there in a child that waits for `freeze_support`.
    if PHASE.get().load(Ordering::SeqCst) == Phase::Bootstrapping as u8 || sys::init::order().is_some() {
        return Err(Error::Bootstrapping);
    }
    Ok(())
}
