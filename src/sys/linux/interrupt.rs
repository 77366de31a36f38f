//! SIGINT as an event, for as long as somebody waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::per_process::PerProcess;

/// Where the handler writes: this process's bell, once there is one.
static BELL: AtomicI32 = AtomicI32::new(-1);

#[derive(Default)]
struct Waiting {
    count: usize,
    /// Never closed, as a handler may be about to write to it.
    bell: Option<&'static OwnedFd>,
}

static WAITING: PerProcess<Mutex<Waiting>> = PerProcess::new(Mutex::default);

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.get().lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn handler(_: i32) {
    let bell = BELL.load(Ordering::SeqCst);
    if bell >= 0 {
        let one = 1u64;
        // SAFETY: `write` may be called in a handler; the buffer is eight bytes on this stack. The
        // descriptor is an eventfd of this module that is never closed.
        unsafe { libc::write(bell, (&raw const one).cast(), 8) };
    }
}

/// Sets the disposition of SIGINT, and gives what it was.
fn dispose(handler: SigHandler) -> io::Result<SigAction> {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: either the handler above, which calls only what may be called in one, or what was
    // set before.
    Ok(unsafe { sigaction(Signal::SIGINT, &action) }?)
}

/// While one lives, SIGINT makes its descriptor readable in place of ending the process.
///
/// Only the default disposition is replaced: a program that handles SIGINT, or that ignores it,
/// has decided otherwise. With the last guard the default is back, unless somebody has set
/// another meanwhile.
#[derive(Debug)]
pub(crate) struct Interrupt {
    bell: &'static OwnedFd,
}

impl Interrupt {
    /// `None` if SIGINT is none of our business.
    pub(crate) fn watch() -> io::Result<Option<Self>> {
        let mut waiting = waiting();
        let bell = match waiting.bell {
            Some(bell) => bell,
            None => *waiting.bell.insert(Box::leak(Box::new(super::fd::eventfd()?))),
        };
        if waiting.count == 0 {
            BELL.store(bell.as_raw_fd(), Ordering::SeqCst);
            let before = dispose(SigHandler::Handler(handler))?;
            if !matches!(before.handler(), SigHandler::SigDfl) {
                // SAFETY: puts back what was there.
                unsafe { sigaction(Signal::SIGINT, &before) }?;
                return Ok(None);
            }
        }
        waiting.count += 1;
        Ok(Some(Self { bell }))
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes the interrupt that was seen, so that the next waiter does not see it again.
    pub(crate) fn take(&self) {
        let _ = nix::unistd::read(self.bell, &mut [0; 8]);
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let mut waiting = waiting();
        waiting.count -= 1;
        if waiting.count > 0 {
            return;
        }
        if let Ok(before) = dispose(SigHandler::SigDfl)
            && !matches!(before.handler(), SigHandler::Handler(ours) if ours as usize == handler as *const () as usize)
        {
            // Somebody else handles it by now.
            // SAFETY: puts back what was there.
            let _ = unsafe { sigaction(Signal::SIGINT, &before) };
        }
        self.take();
    }
}
