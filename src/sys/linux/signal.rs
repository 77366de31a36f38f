//! Signal dispositions of a child.

use libc::c_int;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction,
};

pub(crate) const ABRT: i32 = libc::SIGABRT;
pub(crate) const INT: i32 = libc::SIGINT;
pub(crate) const KILL: i32 = libc::SIGKILL;
pub(crate) const STOP: i32 = libc::SIGSTOP;
pub(crate) const CONT: i32 = libc::SIGCONT;
pub(crate) const TERM: i32 = libc::SIGTERM;

/// Whether it tells of an instruction that failed at some address.
pub(crate) fn is_fault(signal: i32) -> bool {
    matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE)
}

/// `SIGKILL` and so on.
pub(crate) fn name(signal: i32) -> String {
    match Signal::try_from(signal) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) => format!("signal {signal}"),
    }
}

/// Sends a signal to the calling thread.
pub(crate) fn raise(signal: i32) {
    // An unknown one does nothing.
    let _ = Signal::try_from(signal).and_then(nix::sys::signal::raise);
}

/// Sets every signal to its default and unblocks all of them for the calling thread.
pub(crate) fn reset_signals() {
    // SAFETY: all-zero is SIG_DFL, no flags, empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    for signal in 1..=libc::SIGRTMAX() {
        // Refused for SIGKILL, SIGSTOP and those that the libc keeps to itself.
        // SAFETY: `default` outlives the call, and a default disposition runs no code.
        unsafe { libc::sigaction(signal, &default, std::ptr::null_mut()) };
    }
    unblock_all();
}

/// Survives what a terminal or a supervisor sends to the whole group (`SIGINT`, `SIGQUIT`,
/// `SIGTERM`, `SIGHUP`), so that the parent decides when this process ends.
///
/// A handler that does nothing, not `SIG_IGN`: programs started from here get the defaults back.
pub(crate) fn ignore_group_signals() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        set(signal, SigHandler::Handler(do_nothing));
    }
}

/// Survives `SIGINT`, as [`ignore_group_signals`] does.
pub(crate) fn ignore_interrupt() {
    set(Signal::SIGINT, SigHandler::Handler(do_nothing));
}

/// Lets `SIGINT` end this process again.
pub(crate) fn default_interrupt() {
    set(Signal::SIGINT, SigHandler::SigDfl);
}

/// Ignores `SIGPIPE` as Rust programs do, for a process in which Rust's start-up has not run.
pub(crate) fn default_sigpipe_ignored() {
    set(Signal::SIGPIPE, SigHandler::SigIgn);
}

extern "C" fn do_nothing(_: c_int) {}

fn set(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the only handler of ours is `do_nothing`, which is async-signal-safe.
    unsafe { sigaction(signal, &action) }.expect("these signals can be caught and ignored");
}

fn unblock_all() {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).expect("an empty mask is valid");
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// Forks a child that runs `f` and exits with 0; `f` must not panic.
    fn in_child(f: impl FnOnce()) -> WaitStatus {
        // SAFETY: the child makes system calls only, and ends by _exit.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
            ForkResult::Child => {
                f();
                // SAFETY: ends the process without running anybody's code.
                unsafe { libc::_exit(0) }
            }
        }
    }

    fn raise(signal: Signal) {
        let _ = nix::sys::signal::raise(signal);
    }

    #[test]
    fn a_reset_undoes_handlers_and_masks() {
        let status = in_child(|| {
            ignore_group_signals();
            let _ = SigSet::all().thread_block();
            raise(Signal::SIGTERM);
            reset_signals();
        });
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGTERM, _)));
    }

    #[test]
    fn group_signals_are_survived_and_others_are_not() {
        let status = in_child(|| {
            reset_signals();
            ignore_group_signals();
            raise(Signal::SIGINT);
            raise(Signal::SIGTERM);
            raise(Signal::SIGHUP);
            raise(Signal::SIGQUIT);
            raise(Signal::SIGUSR1);
        });
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGUSR1, _)));
    }

    #[test]
    fn the_interrupt_alone_is_survived() {
        let status = in_child(|| {
            reset_signals();
            ignore_interrupt();
            raise(Signal::SIGINT);
            raise(Signal::SIGTERM);
        });
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGTERM, _)));
    }

    #[test]
    fn a_broken_pipe_is_survived() {
        let status = in_child(|| {
            reset_signals();
            default_sigpipe_ignored();
            raise(Signal::SIGPIPE);
        });
        assert!(matches!(status, WaitStatus::Exited(_, 0)));
    }
}
