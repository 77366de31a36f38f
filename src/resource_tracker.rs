//! The process that unlinks named shared memory which dead processes have left.
//!
//! Nothing of the kernel's removes the name of a [`SharedMemory`](crate::SharedMemory) when the last
//! process that used it is gone. So whoever creates one first has the tracker started, a small process of
//! this program. The children that are started from then on, by whatever start method, and theirs, share
//! it. When the last of this family has ended, however it did, the tracker unlinks what none of them has
//! unlinked, says on stderr how much that was and what could not be unlinked, and ends.
//!
//! ```
//! use tokio_multiprocess as mp;
//!
//! # fn main() -> mp::Result<()> {
//! mp::resource_tracker::ensure_running()?;
//! let tracker = mp::resource_tracker::pid().unwrap();
//! let memory = mp::SharedMemory::create(4096)?;
//! assert_eq!(mp::resource_tracker::pid(), Some(tracker));
//! memory.unlink()
//! # }
//! ```
//!
//! # What it promises
//!
//! - Memory that was created with tracking, which is the default, goes with the family, were each of its
//!   processes killed between any two instructions: the tracker knows of it before it has its name.
//! - It takes away the very object that was registered, and only if nobody has that open: what was
//!   unlinked and created anew by somebody else, or is in use by a process of another family, stays, with
//!   a word on stderr. Who attaches to memory registers nothing.
//! - No signal but SIGKILL and SIGSTOP reaches it: it leads a session of its own, and blocks all others
//!   from its first instruction on.
//! - If it is killed nevertheless, a process of the family learns of it when it creates memory next. It
//!   says so in one warning to this package's [logger](crate::get_logger), and starts another tracker,
//!   which is told of all that this process has created; what others have created they tell their own.
//!
//! # What it does not
//!
//! - A family whose tracker was killed, and that ends before it creates memory again, leaves what it has
//!   created. So does one in a pid namespace whose first process ends: that kills the tracker, too.
//! - A process that was started before there was a tracker starts its own when it first needs one, and that
//!   unlinks when this process and its descendants are gone: in a pool's worker, with the worker, or even
//!   not at all if the worker's control group is killed. Where tasks create shared memory that is to live
//!   longer, call [`ensure_running`] before the pool is built.
//! - One that somebody has stopped does nothing. Who creates hundreds of objects meanwhile gets an error,
//!   [`is_timeout`](crate::Error::is_timeout), after waiting for five seconds.
//! - Locks, semaphores, events and the like have no names, and need no tracker: the kernel frees them.
//!
//! The tracker keeps stderr open, so who reads a program's stderr to its end learns of leaks as well.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IoSlice, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use std::ffi::CString;

use serde::{Deserialize, Serialize};

use crate::bootstrap::{self, CONTROL};
use crate::context::get_executable;
use crate::control::{self, Report};
use crate::error::{Result, StartError};
use crate::process::ExitStatus;
use crate::reduction::Descriptor;
use crate::sys::guardian::TRACKER;
use crate::sys::per_process::PerProcess;
use crate::sys::process::{Exec, Exit, Held};
use crate::sys::socket::{self, Mode};
use crate::sys::{self, AsFd, Fd};
use crate::util::lock;

/// How long a tracker may take to say that it runs: as long as any child.
const START: Duration = Duration::from_secs(60);

/// How long an object that somebody has open may be one that the last of the family had: the kernel closes
/// a dead process's descriptors one after the other, and that which the tracker listens to not as the last.
const CLOSING: Duration = Duration::from_secs(1);

/// How soon it looks again, at first and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How long a tracker may leave hundreds of notices unread.
const PATIENCE: Duration = Duration::from_secs(5);

/// An object in `/dev/shm`: its name, and what tells it from others that have had that name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) identity: (u64, u64),
}

/// What a tracker is told: in bytes, since several processes share one socket, and what each says has to
/// arrive whole or not at all.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    /// Nothing, by which the sender finds out if somebody is there.
    Probe,
    Created(Object),
    Unlinked(Object),
}

/// More than any notice has, as no name is longer than 255 bytes.
const LONGEST: usize = 512;

impl Notice {
    fn to_bytes(&self) -> Vec<u8> {
        let (kind, object) = match self {
            Self::Probe => return b"?".to_vec(),
            Self::Created(object) => (b'+', object),
            Self::Unlinked(object) => (b'-', object),
        };
        let mut bytes = vec![kind];
        bytes.extend(object.identity.0.to_le_bytes());
        bytes.extend(object.identity.1.to_le_bytes());
        bytes.extend(object.name.as_bytes());
        bytes
    }

    /// Nothing for what was said in error.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        if *kind == b'?' {
            return Some(Self::Probe);
        }
        let (device, rest) = rest.split_first_chunk()?;
        let (number, name) = rest.split_first_chunk()?;
        let identity = (u64::from_le_bytes(*device), u64::from_le_bytes(*number));
        let object = Object { name: String::from_utf8(name.to_vec()).ok()?, identity };
        match kind {
            b'+' => Some(Self::Created(object)),
            b'-' => Some(Self::Unlinked(object)),
            _ => None,
        }
    }
}

/// The tracker as this process has it, and what it was told by this process.
#[derive(Default)]
struct State {
    tracker: Option<Tracker>,
    objects: BTreeSet<Object>,
}

struct Tracker {
    pid: i32,
    /// Closed by all who have it, the tracker ends.
    socket: Descriptor,
    /// In the process that has started it.
    child: Option<Held>,
}

/// How a child comes by its parent's tracker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Inherited {
    pid: i32,
    socket: Descriptor,
}

static STATE: PerProcess<Mutex<State>> = PerProcess::new(Mutex::default);
/// The tracker of now, for those who must not wait for who waits for it.
static CURRENT: PerProcess<Mutex<Option<Inherited>>> = PerProcess::new(Mutex::default);

/// Starts the tracker unless there is one that lives: so that processes which are started from now on
/// share it, also if they are the first to create shared memory.
///
/// The first call in a family blocks for some milliseconds, as long as it takes to start this program, and
/// so does the creation of the first [`SharedMemory`](crate::SharedMemory). It needs no runtime.
///
/// # Errors
/// When no process can be started, or it does not get as far as this crate: see
/// [`set_executable`](crate::set_executable). [`Error::Bootstrapping`](crate::Error::Bootstrapping) in a child that is itself still
/// starting, [`Error::Unsupported`](crate::Error::Unsupported) where there are no processes.
pub fn ensure_running() -> Result<()> {
    lock(STATE.get()).tell(&Notice::Probe)
}

/// The process id of this process's tracker, if it knows of one. That it lives is not said.
pub fn pid() -> Option<i32> {
    to_inherit().map(|tracker| tracker.pid)
}

/// Has the object unlinked when the family is gone, starting a tracker if need be.
pub(crate) fn register(object: &Object) -> Result<()> {
    let mut state = lock(STATE.get());
    state.objects.insert(object.clone());
    state.tell(&Notice::Created(object.clone())).inspect_err(|_| {
        state.objects.remove(object);
    })
}

/// Leaves the object alone from now on: it has lost its name, or was never given it.
pub(crate) fn unregister(object: &Object) {
    let mut state = lock(STATE.get());
    state.objects.remove(object);
    if let Some(tracker) = &state.tracker {
        // If the tracker is dead, the next one will not be told of this object at all.
        let _ = tracker.tell(&Notice::Unlinked(object.clone()));
    }
}

/// What a child is given. It is there at once, also while somebody waits for the tracker.
pub(crate) fn to_inherit() -> Option<Inherited> {
    lock(CURRENT.get()).clone()
}

/// Takes over the parent's.
pub(crate) fn inherit(inherited: Option<Inherited>) {
    lock(CURRENT.get()).clone_from(&inherited);
    lock(STATE.get()).tracker =
        inherited.map(|Inherited { pid, socket }| Tracker { pid, socket, child: None });
}

impl State {
    /// Says it to the tracker, or to a new one that knows everything else already.
    fn tell(&mut self, notice: &Notice) -> Result<()> {
        if let Some(tracker) = &self.tracker {
            match tracker.tell(notice) {
                Err(error) if socket::is_gone(&error) => {}
                told => return Ok(told?),
            }
            crate::log::warn(format_args!(
                "the resource tracker (process {}) has died and is started anew: shared memory that other \
                 processes have created may be left behind",
                tracker.pid
            ));
            lock(CURRENT.get()).take();
            if let Some(dead) = self.tracker.take() {
                dead.reap();
            }
        }
        let tracker = Tracker::start()?;
        for object in &self.objects {
            tracker.tell(&Notice::Created(object.clone()))?;
        }
        *lock(CURRENT.get()) = Some(Inherited { pid: tracker.pid, socket: tracker.socket.clone() });
        self.tracker = Some(tracker);
        Ok(())
    }
}

impl Tracker {
    fn tell(&self, notice: &Notice) -> io::Result<()> {
        let bytes = notice.to_bytes();
        let begin = Instant::now();
        loop {
            match socket::send(self.socket.0.0.as_fd(), &[IoSlice::new(&bytes)], &[], Mode::Try) {
                Err(error) if !socket::is_full(&error) => return Err(error),
                Ok(()) => return Ok(()),
                Err(_) if begin.elapsed() >= PATIENCE => {
                    let what = format!("the resource tracker (process {}) does nothing: stopped?", self.pid);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                Err(_) => std::thread::sleep(LOOK.0),
            }
        }
    }

    /// This program once more, which never comes to its `main`: see [`run`].
    fn start() -> Result<Self> {
        crate::process::is_up()?;
        let (ours, theirs) = socket::seqpacket_pair()?;
        let program = get_executable().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let spawn = || -> io::Result<i32> {
            let mut env = sys::env::environment();
            env.push(CString::new(bootstrap::tracker_variable(bootstrap::uses_hook()))?);
            let name = std::env::args_os().next().unwrap_or_else(|| TRACKER.into());
            sys::process::posix_spawn(&Exec {
                program: &sys::env::c_string(program.as_os_str())?,
                args: &[sys::env::c_string(&name)?],
                env: &env,
                fds: &[(theirs.as_fd(), CONTROL)],
                shielded: true,
            })
        };
        let spawned = spawn();
        // Else its end could not be seen.
        drop(theirs);
        let pid = spawned
            .map_err(|source| StartError::Execute { program: program.display().to_string(), source })?;
        let child = Held::open(pid)?;
        let refused = match greeting(&ours) {
            Ok(()) => return Ok(Self { pid, socket: Descriptor::new(ours), child: Some(child) }),
            Err(refused) => refused,
        };
        let _ = child.signal(sys::signal::KILL);
        let status = wait(&child);
        Err(refused.unwrap_or(StartError::Exited(ExitStatus::new(status, false))).into())
    }

    /// Waits for the end of one that has closed its socket.
    fn reap(self) {
        self.child.as_ref().map(wait);
    }
}

fn wait(child: &Held) -> Exit {
    let _ = sys::fd::poll_readable(child.exit(), None);
    child.try_wait().ok().flatten().unwrap_or(Exit::Unknown)
}

/// Waits for a new tracker's first word. The error is why there is none, if more is known than that it
/// has ended.
fn greeting(socket: &Fd) -> std::result::Result<(), Option<StartError>> {
    if !sys::fd::poll_readable(socket.as_fd(), Some(START)).unwrap_or(true) {
        return Err(Some(StartError::Deadline(START)));
    }
    match control::receive::<Report>(socket.as_fd(), Mode::Try) {
        Ok(Some(letter)) => match letter.head {
            Report::Ready { .. } => Ok(()),
            Report::Refused(why) => Err(Some(StartError::Refused(why))),
            _ => Err(None),
        },
        _ => Err(None),
    }
}

/// The tracker's life.
pub(crate) fn run(socket: Fd) -> ! {
    sys::process::set_title(TRACKER);
    // Not to keep a file system, or a pipeline, in use.
    let _ = std::env::set_current_dir("/");
    let _ = sys::fd::null_stdout();
    let ready = Report::Ready { pid: sys::process::getpid(), ward: None };
    let _ = control::send(socket.as_fd(), &ready, &[], Vec::new(), Mode::Try);
    let mut objects = BTreeSet::new();
    let mut bytes = [0; LONGEST];
    loop {
        let received = socket::recv(socket.as_fd(), &mut bytes, &mut Vec::new(), Mode::Wait);
        match received.map(|received| Notice::from_bytes(&bytes[..received.len])) {
            Ok(Some(Notice::Created(object))) => {
                objects.insert(object);
            }
            Ok(Some(Notice::Unlinked(object))) => {
                objects.remove(&object);
            }
            Ok(Some(Notice::Probe)) => {}
            // The last process of the family is gone.
            Ok(None) | Err(_) => break,
        }
    }
    unlink_all(objects);
    sys::process::exit_now(0)
}

fn unlink_all(mut objects: BTreeSet<Object>) {
    match objects.len() {
        0 => return,
        1 => say(format_args!("1 leaked shared memory object")),
        count => say(format_args!("{count} leaked shared memory objects")),
    }
    let failed = |object: &Object, why: &dyn fmt::Display| {
        say(format_args!("cannot unlink shared memory `{}`: {why}", object.name));
    };
    let begin = Instant::now();
    let mut pause = LOOK.0;
    loop {
        objects.retain(|object| match unlink(object) {
            Ok(done) => !done,
            Err(why) => {
                failed(object, &why);
                false
            }
        });
        if objects.is_empty() || begin.elapsed() >= CLOSING {
            break;
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(LOOK.1);
    }
    objects.iter().for_each(|object| failed(object, &"another process has it open"));
}

/// False if somebody has it open.
fn unlink(object: &Object) -> io::Result<bool> {
    let found = sys::shm::open_named(&object.name)?;
    if sys::fd::identity(found.as_fd())? != object.identity {
        return Err(io::Error::other("it is another object by now"));
    }
    if sys::shm::is_open_elsewhere(found.as_fd())? {
        return Ok(false);
    }
    sys::shm::unlink(&object.name)?;
    Ok(true)
}

/// Nobody may be there to read it.
fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "resource tracker: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_read_back() {
        let object = Object { name: "psm_ä".to_owned(), identity: (1, u64::MAX) };
        for notice in [Notice::Probe, Notice::Created(object.clone()), Notice::Unlinked(object)] {
            assert_eq!(Notice::from_bytes(&notice.to_bytes()), Some(notice));
        }
        let longest = Object { name: "x".repeat(255), identity: (0, 0) };
        assert!(Notice::Created(longest).to_bytes().len() <= LONGEST);
    }

    #[test]
    fn what_is_no_notice_is_none() {
        for bytes in [&b""[..], b"+", b"+1234567812345", b"*1234567812345678x", b"+1234567812345678\xff"] {
            assert_eq!(Notice::from_bytes(bytes), None);
        }
    }
}
