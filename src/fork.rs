//! The start method `fork`: this process is copied.

use crate::sys::{AsRawFd, RawFd};

use crate::bootstrap;
use crate::error::{Error, StartError};
use crate::sys::process::Fork;
use crate::sys::{self, Fd};
use crate::util;

/// Copies this process; the copy becomes the child that speaks on `theirs`.
///
/// Refused while threads other than this crate's run, unless the caller has `vouched` for them.
pub(crate) fn start(theirs: &Fd, vouched: bool) -> Result<i32, Error> {
    if !vouched {
        match sys::threads::foreign()? {
            0 => {}
            threads => return Err(StartError::Threads(threads).into()),
        }
    }
    // Another thread that held one of these locks would hold it in the copy for ever.
    let streams = (std::io::stdout().lock(), std::io::stderr().lock());
    let kept = sys::kept::kept();
    let held = (streams, util::hold_after_fork(), sys::threads::hold_starts());
    // Else the copy would write out again what waits in these buffers.
    crate::process::flush();
    match sys::process::fork()? {
        Fork::Parent { pid } => Ok(pid),
        Fork::Child => {
            let control = theirs.as_raw_fd();
            let keep: Vec<_> = kept.iter().copied().chain([control]).collect();
            drop((held, kept));
            become_child(control, &keep)
        }
    }
}

/// The copy's first act: descriptors that were not transferred, nor are to be kept, go dead before any other code could
/// use them. Dead and not closed, as what holds their numbers here (a runtime's epoll, its signal
/// pipe) would else act on whatever got the numbers next. Nothing inherited is ever dropped.
fn become_child(control: RawFd, keep: &[RawFd]) -> ! {
    if let Err(error) = sys::fd::replace_all_except(keep) {
        let Ok(control) = sys::fd::from_raw_checked(control) else { sys::process::exit_now(1) };
        bootstrap::refuse(&control, format!("its parent's descriptors (in /proc/self/fd): {error}"));
    }
    let _ = sys::fd::null_stdin();
    sys::signal::reset_signals();
    sys::signal::default_sigpipe_ignored();
    let Ok(control) = sys::fd::from_raw_checked(control) else { sys::process::exit_now(1) };
    let start = bootstrap::Start::receive(control);
    // This thread is inside of the parent's runtime, as it seems to Tokio: it stays where it is,
    // and another one is the child. No fork of that one need fear this one's locks.
    sys::threads::adopt_current();
    let child = sys::threads::spawn("main", move || {
        util::run_after_fork();
        // C's exit handlers are copies of the parent's.
        bootstrap::run(start, false)
    });
    if let Ok(thread) = child {
        let _ = thread.join();
    }
    sys::process::exit_now(1)
}
