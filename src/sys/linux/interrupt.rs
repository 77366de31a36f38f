//! SIGINT as an event, for as long as somebody waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Where the handler writes; -1 while nobody waits.
static BELL: AtomicI32 = AtomicI32::new(-1);
static WAITING: Mutex<usize> = Mutex::new(0);

extern "C" fn handler(_: i32) {
    let bell = BELL.load(Ordering::SeqCst);
    if bell >= 0 {
        let one = 1u64;
        // SAFETY: `write` may be called in a handler; the buffer is eight bytes on this stack. The
        // descriptor is an eventfd of this module that is never closed.
        unsafe { libc::write(bell, (&raw const one).cast(), 8) };
    }
}

/// While one lives, SIGINT makes its descriptor readable in place of ending the process.
///
/// Only the default disposition is replaced: a program that handles SIGINT, or that ignores it,
/// has decided otherwise. With the last guard the default is back.
#[derive(Debug)]
pub(crate) struct Interrupt {
    bell: &'static OwnedFd,
}

impl Interrupt {
    /// `None` if SIGINT is none of our business.
    pub(crate) fn watch() -> io::Result<Option<Self>> {
        static EVENT: super::per_process::PerProcess<std::sync::OnceLock<OwnedFd>> =
            super::per_process::PerProcess::new(std::sync::OnceLock::new);
        let mut waiting = WAITING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cell = EVENT.get();
        let bell = match cell.get() {
            Some(bell) => bell,
            None => {
                let fresh = super::fd::eventfd()?;
                cell.get_or_init(|| fresh)
            }
        };
        if *waiting == 0 {
            BELL.store(bell.as_raw_fd(), Ordering::SeqCst);
            let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: the handler calls only what may be called in one.
            let before = unsafe { sigaction(Signal::SIGINT, &action) }?;
            if !matches!(before.handler(), SigHandler::SigDfl) {
                // SAFETY: puts back what was there.
                unsafe { sigaction(Signal::SIGINT, &before) }?;
                return Ok(None);
            }
        }
        *waiting += 1;
        Ok(Some(Self { bell }))
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let mut waiting = WAITING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *waiting -= 1;
        if *waiting == 0 {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: the default disposition runs no code of this process.
            let _ = unsafe { sigaction(Signal::SIGINT, &default) };
            let mut count = [0; 8];
            let _ = nix::unistd::read(self.bell, &mut count);
        }
    }
}
