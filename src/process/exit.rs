//! The end of a process: what still has to happen, in order.

use crate::sys::AsFd;
use std::fmt;
use std::io::Write;
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::time::Duration;

use super::finalize::run_finalizers;
use super::{HELD_UP, table};
use crate::control::{self, Report};
use crate::sys::per_process::PerProcess;
use crate::sys::socket::Mode;
use crate::sys::{self, Fd};
use crate::util::lock;

/// How long a daemon has after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);

/// How far the exit path is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    NotBegun,
    /// By this thread.
    Begun(i32),
    Done,
}

/// Runs once in a process, on behalf of the thread `by`: finalizers by priority, the last of which moves what
/// waits for room in queues; children that are not daemons joined, daemons ended. Another thread that wants to exit
/// meanwhile waits for it; the same one, out of a finalizer, does not.
fn exit_path(by: i32) {
    static PATH: PerProcess<(Mutex<Path>, Condvar)> =
        PerProcess::new(|| (Mutex::new(Path::NotBegun), Condvar::new()));
    let (path, done) = PATH.get();
    let mut now = lock(path);
    while matches!(*now, Path::Begun(other) if other != by) {
        now = done.wait(now).unwrap_or_else(PoisonError::into_inner);
    }
    if *now != Path::NotBegun {
        return;
    }
    *now = Path::Begun(by);
    drop(now);
    run_exit_path();
    *lock(path) = Path::Done;
    done.notify_all();
}

/// Has the exit path run when this process ends by `exit` or by returning from `main`.
pub(crate) fn install_hook() {
    static INSTALLED: PerProcess<Once> = PerProcess::new(Once::new);
    extern "C" fn at_exit() {
        let by = sys::process::gettid();
        // The thread that exits has lost its thread-locals by now, which finalizers, Tokio and the
        // decoding of last words may need: so this is another thread's work. Without one it is
        // left to what the kernel does for daemons. Stdio is not flushed there: std has done so,
        // and the thread that waits here may hold its locks.
        let path = std::thread::Builder::new().name("mp-exit".to_owned()).spawn(move || exit_path(by));
        if let Ok(thread) = path {
            let _ = thread.join();
        }
    }
    INSTALLED.get().call_once(|| sys::process::at_exit(at_exit));
}

fn run_exit_path() {
    run_finalizers();
    let (daemons, others): (Vec<_>, Vec<_>) =
        table::alive().into_iter().partition(|entry| entry.about.daemon);
    for entry in &others {
        wait(entry, None);
    }
    for entry in daemons.iter().filter(|entry| !entry.about.internal) {
        let _ = entry.child.signal(sys::signal::TERM);
    }
    for entry in &daemons {
        // A worker takes no notice of SIGTERM, and its pool ends with this process.
        if entry.about.internal || !wait(entry, Some(GRACE)) {
            entry.child.kill_tree();
            let mut looks = 0;
            while !wait(entry, Some(GRACE)) {
                looks += 1;
                // Once more: a guardian may have been stopped since.
                entry.child.kill_tree();
                if looks >= HELD_UP {
                    let _ = entry.child.signal(sys::signal::KILL);
                }
            }
        }
    }
}

/// Waits without any runtime: there may be none any more. False if the time ran out.
fn wait(entry: &table::Entry, timeout: Option<Duration>) -> bool {
    let ended = sys::fd::poll_readable(entry.child.exit(), timeout).unwrap_or(true);
    if ended {
        entry.child.status();
    }
    ended
}

/// Flushes what this process has buffered for stdout and stderr; closed ones are none of our
/// business.
pub(crate) fn flush() {
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    sys::process::flush_c_stdio();
}

/// How a child is to leave.
pub(crate) struct Leaving {
    /// The socket to the parent, for the last words.
    pub(crate) control: Fd,
    /// Whether C's exit handlers are this process's own, and not copies of its parent's.
    pub(crate) run_handlers: bool,
}

static LEAVING: PerProcess<std::sync::OnceLock<Leaving>> = PerProcess::new(std::sync::OnceLock::new);

/// Tells how this process, a child, leaves.
pub(crate) fn set_leaving(leaving: Leaving) {
    let _ = LEAVING.get().set(leaving);
}

/// The socket to the parent, in a child.
pub(crate) fn control() -> Option<&'static Fd> {
    LEAVING.get().get().map(|leaving| &leaving.control)
}

/// Ends this process by way of the exit path.
pub(crate) fn leave(code: i32) -> ! {
    exit_path(sys::process::gettid());
    match LEAVING.get().get() {
        Some(leaving) => {
            // For a parent that cannot ask the kernel. It may be gone, or not reading: no matter.
            let _ =
                control::send(leaving.control.as_fd(), &Report::Exiting(code), &[], Vec::new(), Mode::Try);
            flush();
            if leaving.run_handlers {
                sys::process::exit_with_handlers(code)
            }
            sys::process::exit_now(code)
        }
        None => std::process::exit(code),
    }
}

/// Ends this process like Python's `sys.exit`, by way of its exit path: finalizers, queues' feeders
/// and children first. Numbers and truth values are the exit code, `()` is 0; a text is printed on
/// stderr and the code is 1.
///
/// It can be called on any thread of a parent or child. Destructors do not run.
pub fn exit(reason: impl ExitReason) -> ! {
    leave(reason.into_code())
}

/// What [`exit`] takes.
pub trait ExitReason: sealed::Sealed {
    #[doc(hidden)]
    fn into_code(self) -> i32;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! reasons {
    ($($of:ty => |$reason:ident| $code:expr;)*) => {
        $(
            impl sealed::Sealed for $of {}
            impl ExitReason for $of {
                fn into_code(self) -> i32 {
                    let $reason = self;
                    $code
                }
            }
        )*
    };
}

reasons! {
    () => |_none| 0;
    i32 => |code| code & 0xff;
    u8 => |code| i32::from(code);
    bool => |truth| i32::from(truth);
    &str => |text| say(&text);
    String => |text| say(&text);
    std::process::ExitCode => |code| i32::from(crate::function::exit_number(code));
}

impl<T: ExitReason> sealed::Sealed for Option<T> {}
impl<T: ExitReason> ExitReason for Option<T> {
    fn into_code(self) -> i32 {
        self.map_or(0, T::into_code)
    }
}

fn say(text: &dyn fmt::Display) -> i32 {
    let _ = writeln!(std::io::stderr(), "{text}");
    1
}
