//! The last words of a process that dies of a memory fault, or of an instruction that cannot be.
//!
//! Without an alternate stack a stack overflow is a silent SIGSEGV: the handler has no stack to
//! run on. Everything the handler does is async-signal-safe, takes no lock and allocates nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::RawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use libc::{c_int, c_void};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// How far below the guard region an overflow may reach: the frame of a function whose pages are
/// not all probed.
const REACH: usize = 64 * 1024;
/// What the handler needs besides the saved registers.
const HANDLER_STACK: usize = 8 * 1024;
const MIN_ALT_STACK: usize = 16 * 1024;
/// The code of a signal whose address the kernel does not know; the libc crate does not have it.
const SI_KERNEL: c_int = 0x80;
/// The auxiliary value that says how much the kernel saves; the libc crate does not have it.
const AT_MINSIGSTKSZ: libc::c_ulong = 51;

const SIGNALS: [Signal; 4] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE];

static REPORT_TO: AtomicI32 = AtomicI32::new(-1);
/// Only the first of several faults at the same time is reported.
static REPORTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Addresses at which a fault of this thread means that its stack has overflowed.
    static GUARD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    static ALT_STACK: RefCell<Option<AltStack>> = const { RefCell::new(None) };
}

/// Reports SIGSEGV, SIGBUS, SIGILL and SIGFPE of any thread as one message on the socket
/// `report_to`, which must stay open, before the process dies of the signal.
///
/// The message has 11 bytes: `F`; 1 for a stack overflow, 2 for another fault, 0 for one without an
/// address; the signal; the address (64 bits, little-endian). Overflows are only seen on threads
/// that have called [`guard_thread`].
pub(crate) fn install(report_to: RawFd) {
    REPORT_TO.store(report_to, Ordering::SeqCst);
    let mut other = SigSet::empty();
    // A fault in the handler then ends the process at once.
    SIGNALS.iter().for_each(|signal| other.add(*signal));
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_SIGINFO;
    let action = SigAction::new(SigHandler::SigAction(on_fault), flags, other);
    for signal in SIGNALS {
        // SAFETY: `on_fault` is async-signal-safe.
        unsafe { sigaction(signal, &action) }.expect("faults can be caught");
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands a valid `siginfo_t` to a handler with SA_SIGINFO, and for these
    // signals it has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // What another process has sent has no address, nor what the kernel cannot place.
    let placed = code > 0 && code != SI_KERNEL;
    let address = if placed { address } else { 0 };
    let (low, high) = GUARD.get();
    // A bus error comes from a file's mapping, and one may lie right below the guard.
    let overflow = signal == libc::SIGSEGV && (low..high).contains(&address);
    if !REPORTED.swap(true, Ordering::SeqCst) {
        if overflow {
            say_overflow();
        }
        let kind = if overflow { 1 } else { 2 * u8::from(placed) };
        report(kind, signal, address);
    }
    // SAFETY: all-zero is SIG_DFL; `signal` and `raise` are async-signal-safe. With the default
    // back, the instruction that is returned to faults again; where no instruction has faulted,
    // the signal is sent again, and arrives on return.
    unsafe {
        libc::sigaction(signal, &zeroed(), null_mut());
        if code <= 0 {
            libc::raise(signal);
        }
    }
}

fn report(kind: u8, signal: c_int, address: usize) {
    let mut message = [b'F', kind, signal as u8, 0, 0, 0, 0, 0, 0, 0, 0];
    message[3..].copy_from_slice(&(address as u64).to_le_bytes());
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let socket = REPORT_TO.load(Ordering::SeqCst);
    // SAFETY: `message` is that long; a socket that is gone only makes the call fail.
    unsafe { libc::send(socket, message.as_ptr().cast(), message.len(), flags) };
}

fn say_overflow() {
    let mut line = Line { bytes: [0; 64], len: 0 };
    line.push(b"process ");
    line.push_number(std::process::id());
    line.push(b": a thread has overflowed its stack\n");
    // SAFETY: the bytes up to `len` are initialised.
    unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.len) };
}

/// A line that is put together without allocating.
struct Line {
    bytes: [u8; 64],
    len: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (to, from) in self.bytes[self.len..].iter_mut().zip(text) {
            *to = *from;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b'0' + (number % 10) as u8]);
    }
}

/// Gives the calling thread a stack for [`install`]'s handler, until the thread ends, and notes
/// where its own stack ends. Once per thread; whatever alternate stack it had is replaced.
///
/// # Errors
/// For want of memory.
pub(crate) fn guard_thread() -> io::Result<()> {
    ALT_STACK.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(AltStack::new()?);
            let guard = guard_region();
            GUARD.set((guard.start, guard.end));
        }
        Ok(())
    })
}

/// Where this thread's stack overflows into; empty if the libc does not know.
///
/// For the main thread glibc derives the lower end from RLIMIT_STACK.
fn guard_region() -> Range<usize> {
    let mut attr = MaybeUninit::uninit();
    let (mut low, mut size, mut guard) = (null_mut(), 0, 0);
    // SAFETY: the attributes are initialised by the first call if it succeeds, used only then,
    // and destroyed once; all other pointers are room for the values that are asked for.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attr.as_mut_ptr()) != 0 {
            return 0..0;
        }
        libc::pthread_attr_getstack(attr.as_ptr(), &mut low, &mut size);
        libc::pthread_attr_getguardsize(attr.as_ptr(), &mut guard);
        libc::pthread_attr_destroy(attr.as_mut_ptr());
    }
    let low = low as usize;
    // Some libcs count the guard pages to the stack.
    low.saturating_sub(guard + REACH)..low + guard.max(page_size())
}

fn page_size() -> usize {
    // SAFETY: takes an integer only, and this value is always known.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// An alternate signal stack, with a page below it that ends a runaway handler.
struct AltStack {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

impl AltStack {
    fn new() -> io::Result<Self> {
        let page = page_size();
        // SAFETY: takes an integer only; 0 for a value that the kernel does not give.
        let saved = unsafe { libc::getauxval(AT_MINSIGSTKSZ) } as usize;
        let usable = (saved + HANDLER_STACK).max(MIN_ALT_STACK).next_multiple_of(page);
        let len = NonZeroUsize::new(page + usable).expect("is not zero");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_STACK;
        // SAFETY: the kernel chooses the address, so no other mapping is replaced.
        let start = unsafe { mmap_anonymous(None, len, protection, flags) }?;
        let stack = AltStack { start, len };
        // SAFETY: the lowest page of what has just been mapped, used by nobody yet.
        unsafe { mprotect(start, page, ProtFlags::PROT_NONE) }?;
        let description = libc::stack_t {
            // SAFETY: within the mapping, which is longer than a page.
            ss_sp: unsafe { start.add(page) }.as_ptr(),
            ss_flags: 0,
            ss_size: usable,
        };
        // SAFETY: the range is mapped, writable and this thread's alone; it is taken out of use
        // again, on this thread, before it is unmapped.
        if unsafe { libc::sigaltstack(&description, null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// Whether this is the one that the kernel would use now.
    fn is_current(&self) -> bool {
        let mut current = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: a null pointer changes nothing, and `current` is room for the answer.
        let current = unsafe {
            libc::sigaltstack(null_mut(), current.as_mut_ptr());
            current.assume_init()
        };
        let start = self.start.as_ptr() as usize;
        (start..start + self.len.get()).contains(&(current.ss_sp as usize))
    }
}

impl Drop for AltStack {
    fn drop(&mut self) {
        GUARD.set((0, 0));
        if self.is_current() {
            let none = libc::stack_t { ss_sp: null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            // SAFETY: takes the stack out of use; no handler is running on it now.
            unsafe { libc::sigaltstack(&none, null_mut()) };
        }
        // SAFETY: mapped by `new` with this length, and the kernel does not use it any more.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::hint::black_box;
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::time::Duration;

    use super::super::fd::{dup2_onto, poll_readable};
    use super::super::process::{Exit, Fork, exit_now, fork, pidfd_open, pidfd_signal, try_wait};
    use super::super::signal::reset_signals;
    use super::super::socket::{Mode, recv, seqpacket_pair};
    use super::*;

    struct Death {
        exit: Exit,
        /// Kind, signal and address of each report.
        reports: Vec<(u8, i32, u64)>,
        stderr: String,
        pid: i32,
    }

    /// Forks a child that installs the handler and runs `fault`, which must not return.
    fn dies(fault: impl FnOnce()) -> Death {
        let (ours, theirs) = seqpacket_pair().unwrap();
        let (stderr, stderr_in) = nix::unistd::pipe().unwrap();
        let (child, pid) = match fork().unwrap() {
            Fork::Parent { pid } => (pidfd_open(pid).unwrap(), pid),
            Fork::Child => {
                reset_signals();
                let no_core = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
                install(theirs.as_raw_fd());
                if no_core.is_ok() && dup2_onto(stderr_in, 2).is_ok() && guard_thread().is_ok() {
                    fault();
                }
                exit_now(0)
            }
        };
        drop((theirs, stderr_in));
        assert!(poll_readable(child.as_fd(), Some(Duration::from_secs(20))).unwrap());
        let exit = try_wait(child.as_fd()).unwrap().unwrap();
        let mut text = String::new();
        File::from(stderr).read_to_string(&mut text).unwrap();
        Death { exit, reports: reports(&ours), stderr: text, pid }
    }

    fn reports(socket: &OwnedFd) -> Vec<(u8, i32, u64)> {
        let mut reports = Vec::new();
        let mut message = [0; 32];
        while let Ok(received) = recv(socket.as_fd(), &mut message, &mut Vec::new(), Mode::Try) {
            if received.len == 0 {
                break;
            }
            assert_eq!((received.len, message[0]), (11, b'F'));
            let address = u64::from_le_bytes(message[3..11].try_into().unwrap());
            reports.push((message[1], i32::from(message[2]), address));
        }
        reports
    }

    fn died_of(death: &Death, signal: i32) -> bool {
        let core = false;
        death.exit == Exit::Signal { signal, core }
    }

    #[allow(unconditional_recursion)]
    fn recurse(depth: usize) -> usize {
        let frame = black_box([depth; 64]);
        recurse(black_box(depth + 1)) + black_box(frame)[0]
    }

    #[test]
    fn an_overflow_is_told_and_kills() {
        let death = dies(|| {
            recurse(0);
        });
        assert!(died_of(&death, libc::SIGSEGV));
        let line = format!("process {}: a thread has overflowed its stack\n", death.pid);
        assert_eq!(death.stderr, line);
        assert_eq!(death.reports.len(), 1);
        assert_eq!(death.reports[0].0, 1);
        assert_eq!(death.reports[0].1, libc::SIGSEGV);
    }

    #[test]
    fn an_overflow_of_a_new_thread_is_told() {
        let death = dies(|| {
            let thread = std::thread::Builder::new().stack_size(128 * 1024);
            let thread = thread.spawn(|| guard_thread().map(|()| recurse(0)));
            let _ = thread.map(|t| t.join());
        });
        assert!(died_of(&death, libc::SIGSEGV));
        assert_eq!(death.reports.len(), 1);
        assert_eq!(death.reports[0].0, 1);
    }

    #[test]
    fn a_wild_pointer_is_no_overflow() {
        let wild = 0x1000;
        let death = dies(|| {
            let pointer = std::ptr::without_provenance::<u8>(black_box(wild));
            // SAFETY: none: the fault is what this test is about.
            black_box(unsafe { pointer.read_volatile() });
        });
        assert!(died_of(&death, libc::SIGSEGV));
        assert_eq!(death.reports, [(2, libc::SIGSEGV, wild as u64)]);
        assert_eq!(death.stderr, "");
    }

    #[test]
    fn memory_that_was_cut_off_is_a_bus_error() {
        let death = dies(|| {
            let Ok(fd) = super::super::memory::memfd("test", 8) else {
                return;
            };
            let len = NonZeroUsize::MIN;
            // SAFETY: the kernel chooses the address.
            let map = unsafe {
                nix::sys::mman::mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &fd, 0)
            };
            let cut = nix::unistd::ftruncate(&fd, 0);
            if let (Ok(map), Ok(())) = (map, cut) {
                // SAFETY: none: the fault is what this test is about.
                black_box(unsafe { map.cast::<u8>().read_volatile() });
            }
        });
        assert!(died_of(&death, libc::SIGBUS));
        assert_eq!(death.reports.len(), 1);
        assert_eq!((death.reports[0].0, death.reports[0].1), (2, libc::SIGBUS));
    }

    #[test]
    fn a_signal_that_somebody_sends_kills_too() {
        let death = dies(|| {
            let this = pidfd_open(super::super::process::getpid());
            let _ = this.map(|this| pidfd_signal(this.as_fd(), libc::SIGSEGV));
            nix::unistd::pause();
        });
        assert!(died_of(&death, libc::SIGSEGV));
        assert_eq!(death.reports, [(0, libc::SIGSEGV, 0)]);
    }

    #[test]
    fn a_thread_gives_its_stack_back() {
        std::thread::spawn(|| {
            guard_thread().unwrap();
            let first = ALT_STACK.with_borrow(|s| s.as_ref().map(|s| s.start));
            guard_thread().unwrap();
            ALT_STACK.with_borrow(|stack| {
                let stack = stack.as_ref().unwrap();
                assert_eq!(Some(stack.start), first);
                assert!(stack.is_current());
            });
            let here = &raw const first as usize;
            let (low, high) = GUARD.get();
            assert!(low < high && high < here);
            drop(ALT_STACK.take());
            let mut current = MaybeUninit::<libc::stack_t>::zeroed();
            // SAFETY: a null pointer changes nothing.
            let current = unsafe {
                libc::sigaltstack(null_mut(), current.as_mut_ptr());
                current.assume_init()
            };
            assert_eq!(current.ss_flags, libc::SS_DISABLE);
        })
        .join()
        .unwrap();
    }
}
