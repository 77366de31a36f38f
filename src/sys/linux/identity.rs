//! Who a process is, and whether it is dead: for certain or not at all.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::memory::WipedOnFork;
use super::process::{getpid, peek_exited, pidfd_open};

/// The kernel gives no higher numbers.
const PID_BITS: u32 = 22;
/// For 348 years of a clock that ticks a hundred times in a second.
const START_BITS: u32 = 40;

/// This process: when it started, in clock ticks, and its number. The two highest bits are clear, and it is
/// never zero. A forked child is somebody else, also when foreign code forked.
///
/// Where `/proc` is hidden, or is another PID namespace's, the time is zero, which stands for unknown.
#[inline]
pub(crate) fn me() -> u64 {
    static PAGE: OnceLock<WipedOnFork> = OnceLock::new();
    let known = PAGE.get_or_init(WipedOnFork::new).atomic();
    match known.load(Ordering::Relaxed) {
        0 => find_out(known),
        me => me,
    }
}

#[cold]
fn find_out(known: &AtomicU64) -> u64 {
    let start = if proc_is_ours() { Stat::of(getpid()).map_or(0, |stat| stat.start) } else { 0 };
    let me = identity(start, getpid());
    // Of several threads, the first says what all go by: `/proc` may come or go meanwhile.
    known.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|set| set, |_| me)
}

fn identity(start: u64, pid: i32) -> u64 {
    (start & ((1 << START_BITS) - 1)) << PID_BITS | pid as u64
}

/// Whether that process has ended, which includes zombies. What cannot be found out is no: a process that is
/// stopped, hidden, or may not be asked for lives, and so does one whose main thread alone has ended.
pub(crate) fn is_dead(who: u64) -> bool {
    let (start, pid) = (who >> PID_BITS, (who & ((1 << PID_BITS) - 1)) as i32);
    if who == me() {
        return false;
    }
    match pidfd_open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return true,
        Ok(pidfd) if peek_exited(pidfd.as_fd()) => return true,
        Ok(_) => {}
        // Without pidfds, or descriptors.
        Err(_) if nix::sys::signal::kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) => return true,
        Err(_) => {}
    }
    // What bears the number now may be somebody else.
    let Some(stat) = Stat::of(pid).filter(|_| proc_is_ours()) else { return false };
    stat.ended || start != 0 && stat.start != start
}

/// The namespaces in which identities mean what they mean here: that of PIDs, and that of clocks, by which
/// the kernel says when a process started. Zero if that cannot be found out.
pub(crate) fn pid_namespace() -> u64 {
    let inode = |name| nix::sys::stat::stat(name).map_or(0, |stat| stat.st_ino);
    match inode("/proc/self/ns/pid") {
        0 => 0,
        // Kernels without namespaces of clocks have one for all.
        pid => pid << 32 | inode("/proc/self/ns/time"),
    }
}

/// Whether `/proc` is there and speaks of processes by the numbers that they have here.
fn proc_is_ours() -> bool {
    nix::fcntl::readlink("/proc/self").is_ok_and(|pid| pid.to_str() == Some(&getpid().to_string()))
}

/// What the kernel says of a process, or a thread.
#[derive(Debug)]
struct Stat {
    /// The main thread has ended, and there is no other.
    ended: bool,
    /// As in an identity.
    start: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        // The kernel gives all of it at once, and it is never longer.
        let mut stat = [0; 1024];
        let len = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut stat)).ok()?;
        Self::parse(&stat[..len])
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name before may hold anything, and ends with the last parenthesis; the state, the third
        // field, follows.
        let name_end = stat.iter().rposition(|&byte| byte == b')')?;
        let fields: Vec<_> = std::str::from_utf8(&stat[name_end + 1..]).ok()?.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let (state, threads, start) = (field(3)?, field(20)?, field(22)?);
        Some(Self {
            ended: matches!(state, "Z" | "X") && matches!(threads, "0" | "1"),
            start: start.parse::<u64>().ok()? & ((1 << START_BITS) - 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    use nix::sys::signal::Signal;

    use super::super::fd::poll_readable;
    use super::super::process::{Fork, fork, gettid, pidfd_signal, try_wait};
    use super::*;

    const WATCHDOG: Duration = Duration::from_secs(20);

    /// A child that has said who it is and then does what `then` does; it does not end by itself.
    struct Child {
        pidfd: OwnedFd,
        pid: i32,
        identity: u64,
    }

    impl Child {
        fn new(then: impl FnOnce()) -> Self {
            me();
            let (mut reads, writes) = std::io::pipe().unwrap();
            match fork().unwrap() {
                Fork::Parent { pid } => {
                    let mut identity = [0; 8];
                    reads.read_exact(&mut identity).unwrap();
                    let identity = u64::from_ne_bytes(identity);
                    Child { pidfd: pidfd_open(pid).unwrap(), pid, identity }
                }
                Fork::Child => {
                    let _ = nix::unistd::write(&writes, &me().to_ne_bytes());
                    then();
                    loop {
                        nix::unistd::pause();
                    }
                }
            }
        }

        fn signal(&self, signal: Signal) {
            pidfd_signal(self.pidfd.as_fd(), signal as i32).unwrap();
        }

        fn await_exit(&self) {
            assert!(poll_readable(self.pidfd.as_fd(), Some(WATCHDOG)).unwrap());
        }

        fn await_state(&self, state: &str) {
            let since = Instant::now();
            let path = format!("/proc/{}/stat", self.pid);
            while !std::fs::read_to_string(&path).unwrap().contains(&format!(") {state} ")) {
                assert!(since.elapsed() < WATCHDOG);
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = pidfd_signal(self.pidfd.as_fd(), Signal::SIGKILL as i32);
            let _ = poll_readable(self.pidfd.as_fd(), Some(WATCHDOG));
            let _ = try_wait(self.pidfd.as_fd());
        }
    }

    #[test]
    fn an_identity_has_a_start_and_a_number() {
        assert_eq!(me(), me());
        assert_eq!((me() >> 62, me() & 0x3f_ffff), (0, u64::from(std::process::id())));
        assert!(me() >> PID_BITS > 0);
        assert!(!is_dead(me()));
        assert!(pid_namespace() > 1 << 32);
    }

    #[test]
    fn a_forked_child_is_somebody_else_who_lives() {
        let child = Child::new(|| ());
        assert_eq!(child.identity & 0x3f_ffff, child.pid as u64);
        assert!(child.identity >> PID_BITS >= me() >> PID_BITS);
        assert!(!is_dead(child.identity));
    }

    #[test]
    fn a_zombie_is_dead_and_so_is_who_was_reaped() {
        let child = Child::new(|| ());
        child.signal(Signal::SIGKILL);
        child.await_exit();
        assert!(nix::sys::signal::kill(Pid::from_raw(child.pid), None).is_ok(), "a zombie is there");
        assert!(is_dead(child.identity));
        assert!(Stat::of(child.pid).unwrap().ended, "without a pidfd");
        try_wait(child.pidfd.as_fd()).unwrap();
        assert!(is_dead(child.identity));
    }

    #[test]
    fn who_is_stopped_lives() {
        let child = Child::new(|| ());
        child.signal(Signal::SIGSTOP);
        child.await_state("T");
        assert!(!is_dead(child.identity));
    }

    #[test]
    fn who_has_lost_its_main_thread_lives() {
        let child = Child::new(|| {
            std::thread::spawn(|| {
                loop {
                    nix::unistd::pause();
                }
            });
            // SAFETY: ends this thread, whose stack stays; nothing in this process waits for it.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
        child.await_state("Z");
        assert!(!is_dead(child.identity) && !Stat::of(child.pid).unwrap().ended);
        child.signal(Signal::SIGKILL);
        child.await_exit();
        assert!(is_dead(child.identity));
    }

    #[test]
    fn a_number_that_is_anothers_now_is_no_life() {
        let child = Child::new(|| ());
        let earlier = |identity| identity - (1 << PID_BITS);
        assert!(is_dead(earlier(child.identity)));
        assert!(is_dead(earlier(me())));
        // A thread of somebody's has it.
        let tid = std::thread::spawn(move || is_dead(earlier(identity(me() >> PID_BITS, gettid()))));
        assert!(tid.join().unwrap());
    }

    #[test]
    fn whose_start_is_unknown_is_not_dead_by_it() {
        let child = Child::new(|| ());
        assert!(!is_dead(identity(0, child.pid)) && !is_dead(identity(0, getpid())));
        child.signal(Signal::SIGKILL);
        child.await_exit();
        assert!(is_dead(identity(0, child.pid)));
    }

    #[test]
    fn a_name_can_hold_anything() {
        let fields: Vec<_> = (4..=19).map(|i| i.to_string()).collect();
        let line = |state, threads| {
            format!("7 (a) Z 1 (\u{fffd}) {state} {} {threads} 21 1234 23", fields.join(" "))
        };
        let parsed = |state, threads| Stat::parse(line(state, threads).as_bytes()).unwrap();
        assert_eq!((parsed("S", 1).start, parsed("S", 1).ended), (1234, false));
        assert!(parsed("Z", 1).ended && !parsed("Z", 2).ended);
        assert!(Stat::parse(b"").is_none() && Stat::parse(b"7 (a) Z 1").is_none());
    }
}
