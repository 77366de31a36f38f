//! What stands in for the kernel where processes cannot be started.
//!
//! The same names as on Linux, so that no other room needs to know where it is. What would give a
//! descriptor says `Unsupported`, so what takes one is never reached.

use std::io;
use std::marker::PhantomData;
use std::time::Duration;

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) type RawFd = i32;

/// A descriptor: nothing here makes one.
#[derive(Debug)]
pub(crate) struct Fd(());

#[derive(Clone, Copy, Debug)]
pub(crate) struct BorrowedFd<'a>(PhantomData<&'a Fd>);

impl BorrowedFd<'_> {
    pub(crate) fn try_clone_to_owned(&self) -> io::Result<Fd> {
        unsupported()
    }
}

pub(crate) trait AsFd {
    fn as_fd(&self) -> BorrowedFd<'_>;
}

pub(crate) trait AsRawFd {
    fn as_raw_fd(&self) -> RawFd;
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        BorrowedFd(PhantomData)
    }
}

impl AsFd for BorrowedFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        *self
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

impl Fd {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        unsupported()
    }
}

pub(crate) mod cgroup {
    use super::*;
    use std::path::Path;

    #[derive(Debug)]
    pub(crate) struct Parent(());

    impl Parent {
        pub(crate) fn at(_: &Path) -> io::Result<Self> {
            unsupported()
        }
        pub(crate) fn delegated() -> Option<Self> {
            None
        }
        pub(crate) fn child(&self) -> io::Result<Cgroup> {
            unsupported()
        }
    }

    #[derive(Debug)]
    pub(crate) struct Cgroup(());

    impl Cgroup {
        pub(crate) fn door(&self) -> io::Result<Fd> {
            unsupported()
        }
        pub(crate) fn memory(&self) -> Option<(Fd, Fd)> {
            None
        }
        pub(crate) fn kill(&self) {}
        pub(crate) fn was_out_of_memory(&self) -> bool {
            false
        }
    }

    pub(crate) fn enter(_: Fd) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn limit_memory(_: &Fd, _: &Fd, _: u64) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn lift_limit(_: &Fd) {}
}

pub(crate) mod env {
    use std::ffi::{CString, OsStr, OsString};

    pub(crate) fn environment() -> Vec<CString> {
        Vec::new()
    }
    pub(crate) fn c_string(text: &OsStr) -> std::io::Result<CString> {
        Ok(CString::new(text.as_encoded_bytes())?)
    }
    pub(crate) fn replace_environment(_: &[(OsString, OsString)]) {}
    pub(crate) fn unset_env(_: &OsStr) {}
}

pub(crate) mod fault {
    pub(crate) fn install(_: super::RawFd) {}
    pub(crate) fn guard_thread() -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) mod fd {
    use super::*;

    pub(crate) fn eventfd() -> io::Result<Fd> {
        unsupported()
    }
    pub(crate) fn ring(_: BorrowedFd<'_>) {}
    pub(crate) fn wait_ring(_: BorrowedFd<'_>) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn monotonic_ns() -> u64 {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
    pub(crate) fn identity(_: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
        unsupported()
    }
    pub(crate) fn pipe() -> io::Result<(Fd, Fd)> {
        unsupported()
    }
    pub(crate) fn read_some(_: BorrowedFd<'_>, _: &mut [u8]) -> io::Result<usize> {
        unsupported()
    }
    pub(crate) fn timerfd() -> io::Result<Fd> {
        unsupported()
    }
    pub(crate) fn arm_timer(_: BorrowedFd<'_>, _: Option<Duration>) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn poll_readable(_: BorrowedFd<'_>, _: Option<Duration>) -> io::Result<bool> {
        unsupported()
    }
    pub(crate) fn poll_any(_: &[BorrowedFd<'_>], _: BorrowedFd<'_>, _: Option<Duration>) {}
    pub(crate) fn raise_fd_limit() {}
    pub(crate) fn open_fds() -> io::Result<Vec<RawFd>> {
        unsupported()
    }
    pub(crate) fn close_from(_: RawFd) {}
    pub(crate) fn close_inherited(_: &[RawFd]) {}
    pub(crate) fn replace_all_except(_: &[RawFd]) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn null_stdin() -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn sanitize_stdio() -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn from_raw_checked(_: RawFd) -> io::Result<Fd> {
        unsupported()
    }
    pub(crate) fn dup2_onto(_: Fd, _: RawFd) -> io::Result<()> {
        unsupported()
    }
}

pub(crate) mod guardian {
    use super::*;

    pub(crate) const CORE_DUMPED: &[u8] = b"C";

    pub(crate) fn split(_: BorrowedFd<'_>) -> io::Result<i32> {
        unsupported()
    }
}

pub(crate) mod init {
    pub(crate) const VARIABLE: &str = "TOKIO_MULTIPROCESS_CHILD";

    pub(crate) fn order() -> Option<String> {
        None
    }
}

pub(crate) mod interrupt {
    use super::*;

    #[derive(Debug)]
    pub(crate) struct Interrupt(());

    impl Interrupt {
        pub(crate) fn watch() -> io::Result<Option<Self>> {
            Ok(None)
        }
        pub(crate) fn take(&self) {}
        pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
            BorrowedFd(PhantomData)
        }
    }
}

pub(crate) mod memory {
    use std::sync::atomic::AtomicU64;

    use super::*;

    pub(crate) fn memfd(_: &str, _: usize) -> io::Result<Fd> {
        unsupported()
    }
    pub(crate) fn write_all_at(_: BorrowedFd<'_>, _: usize, _: &[u8]) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn read_all(_: BorrowedFd<'_>, _: usize) -> io::Result<Vec<u8>> {
        unsupported()
    }

    pub(crate) fn seal_fixed_size(_: BorrowedFd<'_>) -> io::Result<()> {
        unsupported()
    }

    #[derive(Debug)]
    pub(crate) struct Shared(AtomicU64);

    impl Shared {
        pub(crate) fn map(_: BorrowedFd<'_>) -> io::Result<Self> {
            unsupported()
        }
        pub(crate) fn write(&self, _: usize, _: &[u8]) {}
        pub(crate) fn append_to(&self, _: usize, _: usize, _: &mut Vec<u8>) {}
        pub(crate) fn atomic_u64(&self, _: usize) -> &AtomicU64 {
            &self.0
        }
    }

    impl std::ops::Deref for Frozen {
        type Target = [u8];
        fn deref(&self) -> &[u8] {
            &[]
        }
    }

    #[derive(Debug)]
    pub(crate) struct Frozen(());

    impl Frozen {
        pub(crate) fn create(_: &[u8]) -> io::Result<Fd> {
            unsupported()
        }
        pub(crate) fn map(_: BorrowedFd<'_>) -> io::Result<Self> {
            unsupported()
        }
    }

    impl AsRef<[u8]> for Frozen {
        fn as_ref(&self) -> &[u8] {
            &[]
        }
    }
}

pub(crate) mod orphan {
    use super::*;

    pub(crate) fn lifeline() -> io::Result<(Fd, Fd)> {
        unsupported()
    }
    pub(crate) fn die_with(_: BorrowedFd<'_>, _: bool) -> io::Result<Fd> {
        unsupported()
    }
}

pub(crate) mod per_process {
    use std::sync::OnceLock;

    /// Nothing forks here, so what is made once is made once.
    pub(crate) struct PerProcess<T: 'static> {
        value: OnceLock<T>,
        make: fn() -> T,
    }

    impl<T: Send + Sync> PerProcess<T> {
        pub(crate) const fn new(make: fn() -> T) -> Self {
            Self { value: OnceLock::new(), make }
        }
        pub(crate) fn get(&'static self) -> &'static T {
            self.value.get_or_init(self.make)
        }
    }

    pub(crate) fn process_token() -> u64 {
        1
    }
}

pub(crate) mod process {
    use std::ffi::{CStr, CString};

    use super::*;

    pub(crate) const ESRCH: i32 = 3;

    pub(crate) fn is_shortage(_: &io::Error) -> bool {
        false
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Exit {
        Code(i32),
        Signal { signal: i32, core: bool },
        Unknown,
    }

    #[derive(Debug)]
    pub(crate) struct Held(Fd);

    impl Held {
        pub(crate) fn open(_: i32) -> io::Result<Self> {
            unsupported()
        }
        pub(crate) fn by_pidfd(_: i32, pidfd: Fd) -> Self {
            Self(pidfd)
        }
        pub(crate) fn exit(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
        pub(crate) fn has_exited(&self) -> bool {
            true
        }
        pub(crate) fn try_wait(&self) -> io::Result<Option<Exit>> {
            unsupported()
        }
        pub(crate) fn signal(&self, _: i32) -> io::Result<()> {
            unsupported()
        }
    }

    pub(crate) struct Exec<'a> {
        pub(crate) program: &'a CStr,
        pub(crate) args: &'a [CString],
        pub(crate) env: &'a [CString],
        pub(crate) fds: &'a [(BorrowedFd<'a>, RawFd)],
    }

    pub(crate) enum Fork {
        Parent { pid: i32 },
        Child,
    }

    pub(crate) enum Sibling {
        Parent { pid: i32, pidfd: Option<Fd> },
        Child,
    }

    pub(crate) fn getpid() -> i32 {
        std::process::id() as i32
    }
    pub(crate) fn posix_spawn(_: &Exec<'_>) -> io::Result<i32> {
        unsupported()
    }
    pub(crate) fn kill_and_wait(_: i32) {}
    pub(crate) fn gettid() -> i32 {
        0
    }
    pub(crate) fn join_group_of(_: i32) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn pidfd_open(_: i32) -> io::Result<Fd> {
        unsupported()
    }
    pub(crate) fn is_refusal(_: &io::Error) -> bool {
        false
    }
    pub(crate) fn pidfd_signal(_: BorrowedFd<'_>, _: i32) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn pidfd_signal_group(_: BorrowedFd<'_>, _: i32) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn kill_group(_: i32, _: i32) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn set_own_group() -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn peek_exited(_: BorrowedFd<'_>) -> bool {
        true
    }
    pub(crate) fn fork() -> io::Result<Fork> {
        unsupported()
    }
    pub(crate) fn clone_sibling() -> io::Result<Sibling> {
        unsupported()
    }
    pub(crate) fn exit_now(code: i32) -> ! {
        std::process::exit(code)
    }
    pub(crate) fn exit_with_handlers(code: i32) -> ! {
        std::process::exit(code)
    }
    pub(crate) fn at_exit(_: extern "C" fn()) {}
    pub(crate) fn flush_c_stdio() {}
    pub(crate) fn thread_count() -> io::Result<u64> {
        unsupported()
    }
    pub(crate) fn set_title(_: &str) {}
}

pub(crate) mod program {
    pub(crate) fn contains(_: usize, _: usize) -> bool {
        true
    }
    pub(crate) fn build_id() -> &'static str {
        ""
    }
}

pub(crate) mod reactor {
    use super::*;

    #[derive(Debug)]
    pub(crate) struct Registered(Fd);

    impl AsFd for Registered {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Registered {
        pub(crate) fn new(_: Fd, _: tokio::io::Interest) -> io::Result<Self> {
            unsupported()
        }
        #[allow(clippy::unused_async, reason = "the shape of the other face")]
        pub(crate) async fn edge(&self) {}
        pub(crate) fn poll_edge(&self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(unsupported())
        }
        #[allow(clippy::unused_async, reason = "the shape of the other face")]
        pub(crate) async fn write_edge(&self) {}
        #[allow(clippy::unused_async, reason = "the shape of the other face")]
        pub(crate) async fn readable(&self) -> io::Result<()> {
            unsupported()
        }
    }
}

pub(crate) mod signal {
    pub(crate) const ABRT: i32 = 6;
    pub(crate) const INT: i32 = 2;
    pub(crate) const KILL: i32 = 9;
    pub(crate) const STOP: i32 = 19;
    pub(crate) const CONT: i32 = 18;
    pub(crate) const TERM: i32 = 15;

    pub(crate) fn is_fault(_: i32) -> bool {
        false
    }
    pub(crate) fn name(signal: i32) -> String {
        format!("signal {signal}")
    }
    pub(crate) fn raise(_: i32) {}
    pub(crate) fn reset_signals() {}
    pub(crate) fn ignore_group_signals() {}
    pub(crate) fn ignore_interrupt() {}
    pub(crate) fn default_interrupt() {}
    pub(crate) fn default_sigpipe_ignored() {}
}

pub(crate) mod socket {
    use std::io::IoSlice;

    use super::*;

    pub(crate) const MAX_FDS: usize = 253;

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Mode {
        Wait,
        Try,
    }

    pub(crate) struct Received {
        pub(crate) len: usize,
        pub(crate) truncated: bool,
        pub(crate) fds_truncated: bool,
    }

    pub(crate) fn seqpacket_pair() -> io::Result<(Fd, Fd)> {
        unsupported()
    }
    pub(crate) fn send(
        _: BorrowedFd<'_>,
        _: &[IoSlice<'_>],
        _: &[BorrowedFd<'_>],
        _: Mode,
    ) -> io::Result<()> {
        unsupported()
    }
    pub(crate) fn shut_down(_: BorrowedFd<'_>) {}
    pub(crate) fn is_gone(_: &io::Error) -> bool {
        true
    }
    pub(crate) fn is_full(_: &io::Error) -> bool {
        false
    }
    pub(crate) fn is_seqpacket(_: RawFd) -> bool {
        false
    }
    pub(crate) fn next_len(_: BorrowedFd<'_>, _: Mode) -> io::Result<usize> {
        unsupported()
    }
    pub(crate) fn recv(_: BorrowedFd<'_>, _: &mut [u8], _: &mut Vec<Fd>, _: Mode) -> io::Result<Received> {
        unsupported()
    }
}

pub(crate) mod usage {
    use super::*;

    pub(crate) fn own_anonymous() -> io::Result<u64> {
        unsupported()
    }
    #[derive(Debug)]
    pub(crate) struct Own {
        pub(crate) held: u64,
        pub(crate) data: u64,
    }

    impl Own {
        pub(crate) fn look() -> io::Result<Self> {
            unsupported()
        }
    }

    pub(crate) fn of_tree(_: i32, _: u64) -> io::Result<u64> {
        unsupported()
    }

    #[derive(Debug)]
    pub(crate) struct DataLimit(());

    impl DataLimit {
        pub(crate) fn lower(_: u64) -> io::Result<Self> {
            unsupported()
        }
    }
}

pub(crate) mod threads {
    use std::io;
    use std::thread::JoinHandle;

    pub(crate) fn spawn<T: Send + 'static>(
        name: &str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        std::thread::Builder::new().name(name.to_owned()).spawn(run)
    }
    pub(crate) fn adopt_current() {}
    pub(crate) fn hold_starts() -> impl Drop {
        static NOTHING: std::sync::Mutex<()> = std::sync::Mutex::new(());
        NOTHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    pub(crate) fn foreign() -> io::Result<usize> {
        Ok(0)
    }
}

pub(crate) mod worker {
    pub(crate) fn offer_to_oom_killer() {}
    pub(crate) fn leave_no_core() {}
    pub(crate) fn admit_debugger() {}
    pub(crate) fn is_traced() -> std::io::Result<bool> {
        super::unsupported()
    }
}
