//! The guardian: a tiny process between a pool and a worker, in whose reach everything stays that
//! the worker starts.
//!
//! A process that calls `setsid`, or whose parent ends, leaves its group and its tree; only an
//! ancestor that is a *child subreaper* gets it back. So a process on its way to become a worker
//! splits itself: the copy becomes the worker, and what was there becomes its guardian, which does
//! nothing but wait. When the worker ends, or the pool says so, it kills its children, thereby
//! inherits theirs, and goes on until it has none; then it ends as the worker did, for the pool is
//! its parent and has to learn of it.
//!
//! It kills none but its own children. Nobody else can reap these, so no number of theirs can have
//! passed to a stranger.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use libc::c_int;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::time::TimeSpec;
use nix::unistd::getppid;

use super::children::for_each_own;
use super::process::{Exit, Fork, Whom};
use super::process::{exit_now, fork, getpid, kill_group, set_own_group, set_title, wait_for};
use super::socket::{Mode, send};

/// What `ps` calls it.
pub(crate) const NAME: &str = "mp-guardian";

/// What `ps` calls a resource tracker.
pub(crate) const TRACKER: &str = "mp-tracker";

/// How long a worker's resource tracker is let live that has lost its family: longer than it takes for its
/// work. Anything could call itself one.
const TRACKED: Duration = Duration::from_secs(2);

/// What the guardian says of a worker whose memory was dumped, as its own status cannot.
pub(crate) const CORE_DUMPED: &[u8] = b"C";

/// The number that the socket to the pool has in a guardian. It holds no other descriptor, so that
/// nobody waits for the end of a pipe or socket on its account.
const CONTROL: RawFd = 0;

/// How long a guardian tries to end what is left, once its worker has ended or was ordered to, if
/// its pool waits for it. What it could not end by then is out of reach.
const CLEARED_AWAY: Duration = Duration::from_secs(5);

/// How soon the guardian looks again for children, at first and at most: one that comes from below
/// another, which is itself slow to die, is not told of.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Splits this process, which has one thread. Returns in the copy, with the guardian's id; the
/// process that called becomes the guardian, and ends as one.
///
/// The pool holds the other end of `control`. That it shuts it down for writing, or closes it and
/// be it by its death, means the end of the worker and of all that it has started.
///
/// # Errors
/// When the process cannot be copied: it is a child like any other then.
pub(crate) fn split(control: BorrowedFd) -> io::Result<i32> {
    let guardian = getpid();
    // The worker is in this group until it makes its own. A kill of the group that this process
    // was born in must not hit the guardian.
    set_own_group()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    // Before there is a child whose end could be missed. Where SIGCHLD is ignored the kernel would
    // keep no status for anybody.
    let before = Signals::take();
    // The copy gets another.
    set_title(NAME);
    match fork() {
        Ok(Fork::Parent { pid }) => watch(pid, control),
        Ok(Fork::Child) => {
            before.restore();
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            // Of a death before this moment no signal tells.
            if getppid().as_raw() != guardian {
                exit_now(1);
            }
            Ok(guardian)
        }
        Err(error) => {
            before.restore();
            Err(error)
        }
    }
}

/// Signals as they were before the guardian blocked them all: it ends with its worker, and not
/// because a terminal or a service manager says so.
struct Signals {
    mask: SigSet,
    child: libc::sigaction,
}

impl Signals {
    fn take() -> Self {
        extern "C" fn do_nothing(_: c_int) {}
        // SAFETY: all-zero is no flags and an empty mask.
        let mut quiet: libc::sigaction = unsafe { zeroed() };
        // With a handler, since what is ignored by default wakes nobody.
        quiet.sa_sigaction = do_nothing as extern "C" fn(c_int) as usize;
        quiet.sa_flags = libc::SA_NOCLDSTOP;
        // SAFETY: room for what the call fills in below.
        let mut child = unsafe { zeroed() };
        // SAFETY: both outlive the call, and the handler is async-signal-safe.
        unsafe { libc::sigaction(libc::SIGCHLD, &quiet, &mut child) };
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))
            .expect("a full mask is valid");
        Self { mask, child }
    }

    fn restore(&self) {
        // SAFETY: what was in force before.
        unsafe { libc::sigaction(libc::SIGCHLD, &self.child, null_mut()) };
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None).expect("an earlier mask is valid");
    }
}

/// The guardian's life. It writes to next to nothing, so that its memory stays shared with the
/// worker's, or with the process that both are copies of. Where it does allocate, to look through
/// `/proc`, no lock can be in its way: there was one thread when this process was made a guardian.
fn watch(worker: i32, control: BorrowedFd) -> ! {
    // SAFETY: two numbers. No owner of a descriptor is ever used or dropped in this process again.
    if control.as_raw_fd() != CONTROL && unsafe { libc::dup2(control.as_raw_fd(), CONTROL) } != CONTROL {
        // Its worker goes with it.
        exit_now(1);
    }
    super::fd::close_from(CONTROL + 1);
    // Not to keep a file system in use.
    let _ = nix::unistd::chdir(c"/");
    // SAFETY: just made, and open as long as this process lives.
    let control = unsafe { BorrowedFd::borrow_raw(CONTROL) };

    let pool = getppid();
    let mut exit = None;
    let mut ordered = false;
    let mut began = None;
    let mut pause = LOOK.0;
    while reap(worker, &mut exit) {
        if exit.is_none() && !ordered {
            ordered = rest(Some(control), None);
            if ordered {
                // Not reaped, so the number is its own, and so is its group's.
                let _ = kill_group(worker, libc::SIGKILL);
                kill(worker);
            }
            continue;
        }
        let began = *began.get_or_insert_with(Instant::now);
        let late = began.elapsed() >= CLEARED_AWAY && getppid() == pool;
        if late || !kill_children(began.elapsed() < TRACKED).unwrap_or(exit.is_none()) {
            break;
        }
        rest(None, Some(pause));
        pause = (2 * pause).min(LOOK.1);
    }
    end_as(exit.unwrap_or(Exit::Unknown), control)
}

/// Reaps whoever is dead, the worker only when its group is; false if no child is left.
fn reap(worker: i32, exit: &mut Option<Exit>) -> bool {
    let flags = libc::WEXITED | libc::WNOHANG;
    loop {
        match wait_for(Whom::Any, flags | libc::WNOWAIT) {
            Ok(Some((pid, status))) => {
                // Later its number may be another's.
                if pid == worker && exit.is_none() {
                    let _ = kill_group(worker, libc::SIGKILL);
                    *exit = Some(status);
                }
                let _ = wait_for(Whom::Pid(pid), flags);
            }
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Kills all children, but for resource trackers if they are to be spared, which have yet to unlink what the
/// others have left; false if there is none that this process may kill, as those that are left belong to
/// other users.
///
/// # Errors
/// When no list is to be had. There is nothing to go by then: what has left the worker's group
/// lives on.
fn kill_children(spare_trackers: bool) -> io::Result<bool> {
    let (mut there, mut refused) = (false, false);
    for_each_own(|child| {
        let counts = spare_trackers && is_tracker(child) || kill(child);
        *(if counts { &mut there } else { &mut refused }) = true;
    })?;
    // One that comes just now may be in no list.
    Ok(there || !refused)
}

fn is_tracker(child: i32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{child}/comm"));
    name.is_ok_and(|name| name.trim_end() == TRACKER)
}

/// Whether it was allowed to.
fn kill(child: i32) -> bool {
    // SAFETY: takes integers only.
    unsafe { libc::kill(child, libc::SIGKILL) == 0 }
}

/// Waits until a child ends or the time is up; true if instead the pool has said its word, or is
/// gone.
fn rest(control: Option<BorrowedFd>, time: Option<Duration>) -> bool {
    let mut mask = SigSet::all();
    mask.remove(Signal::SIGCHLD);
    // Nothing is sent after the order, so what can be read is the end.
    let mut polled = control.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let polled = polled.as_mut().map_or(&mut [][..], std::slice::from_mut);
    ppoll(polled, time.map(TimeSpec::from_duration), Some(mask)).is_ok_and(|ready| ready > 0)
}

/// Ends this process as its worker has ended.
fn end_as(exit: Exit, control: BorrowedFd) -> ! {
    let signal = match exit {
        Exit::Code(code) => exit_now(code),
        Exit::Unknown => exit_now(255),
        Exit::Signal { signal, core } => {
            if core {
                let _ = send(control, &[io::IoSlice::new(CORE_DUMPED)], &[], Mode::Try);
            }
            signal
        }
    };
    // Its own memory is of no interest, whether a file or a program would take it.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = nix::sys::prctl::set_dumpable(false);
    die_of(signal);
    // Not a signal that ends anybody.
    exit_now(128 + signal)
}

/// Lets this one signal through, and no other that may have come in the meantime.
fn die_of(signal: i32) {
    // SAFETY: all-zero is SIG_DFL, no flags and an empty mask, for an action and a set alike; all
    // outlive the calls. nix knows no real-time signals.
    unsafe {
        libc::sigaction(signal, &zeroed(), null_mut());
        libc::kill(getpid(), signal);
        let mut this: libc::sigset_t = zeroed();
        libc::sigaddset(&mut this, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &this, null_mut());
    }
}
