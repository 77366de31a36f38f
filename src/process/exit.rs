//! The end of a process: what still has to happen, in order.

use std::fmt;
use std::io::Write;
use crate::sys::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::table;
use crate::control::{self, Report};
use crate::sys::per_process::PerProcess;
use crate::sys::socket::Mode;
use crate::sys::{self, Fd};
use crate::util;

/// How long a daemon has after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);

/// Runs once in a process: finalizers by priority, children that are not daemons joined, daemons
/// ended, stdio flushed.
pub(crate) fn exit_path() {
    static BEGUN: PerProcess<AtomicBool> = PerProcess::new(|| AtomicBool::new(false));
    if BEGUN.get().swap(true, Ordering::SeqCst) {
        return;
    }
    util::run_finalizers();
    let (daemons, others): (Vec<_>, Vec<_>) = table::alive().into_iter().partition(|entry| entry.about.daemon);
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
            wait(entry, None);
        }
    }
    flush();
}

/// Waits without any runtime: there may be none any more. False if the time ran out.
fn wait(entry: &table::Entry, timeout: Option<Duration>) -> bool {
    let ended = sys::fd::poll_readable(entry.child.pidfd(), timeout).unwrap_or(true);
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
    exit_path();
    match LEAVING.get().get() {
        Some(leaving) => {
            // For a parent that cannot ask the kernel. It may be gone, or not reading: no matter.
            let _ = control::send(leaving.control.as_fd(), &Report::Exiting(code), &[], Vec::new(), Mode::Try);
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
