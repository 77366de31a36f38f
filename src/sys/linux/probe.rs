//! Whether the kernel, and what stands between it and this process, gives what this crate uses.
//!
//! Each probe changes nothing that outlasts it unless it says so, and is fast enough to be asked at
//! every start.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access};

use super::process::{getpid, peek_exited, pidfd_open, pidfd_signal};
use super::{cgroup, fd, memory, orphan, socket};

/// The version of the kernel, as far as it is a number: 6.1 of `6.1.0-13-cloud`.
pub(crate) fn kernel() -> io::Result<(u32, u32)> {
    let name = nix::sys::utsname::uname()?;
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(io::Error::other(format!("{release} is no version"))),
    }
}

/// A process file system, and of the PID namespace that this process is in.
pub(crate) fn proc() -> io::Result<()> {
    let this = std::fs::read_link("/proc/self")?;
    if this == Path::new(&getpid().to_string()) {
        Ok(())
    } else {
        Err(io::Error::other("it belongs to another PID namespace"))
    }
}

/// That this program can be executed once more.
pub(crate) fn own_program() -> io::Result<()> {
    Ok(access("/proc/self/exe", AccessFlags::X_OK)?)
}

/// Opening a pidfd, polling it and signalling by it.
pub(crate) fn pidfd() -> io::Result<()> {
    let this = pidfd_open(getpid())?;
    peek_exited(this.as_fd());
    // Signal 0 only asks.
    pidfd_signal(this.as_fd(), 0)
}

pub(crate) fn clone3() -> io::Result<()> {
    // SAFETY: with no arguments there is nothing that the call could do but fail.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::clone_args>(), 0) };
    match Errno::result(result) {
        Err(Errno::ENOSYS) => Err(Errno::ENOSYS.into()),
        Err(Errno::EPERM) => Err(Errno::EPERM.into()),
        _ => Ok(()),
    }
}

pub(crate) fn close_range() -> io::Result<()> {
    // SAFETY: takes integers only, and no descriptor can have this number.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, 0) })?;
    Ok(())
}

/// Memory that can be shared, measured out and sealed.
pub(crate) fn sealed_memory() -> io::Result<()> {
    let shared = memory::memfd("tokio-multiprocess-probe", 4096)?;
    memory::seal_fixed_size(shared.as_fd())?;
    memory::Shared::map(shared.as_fd())?;
    memory::Frozen::map(memory::Frozen::create(b"probe")?.as_fd())?;
    Ok(())
}

/// That such memory can be kept from ever becoming a program.
pub(crate) fn noexec_seal() -> io::Result<()> {
    /// nix lacks it.
    const F_SEAL_EXEC: i32 = 0x20;
    let shared = memory::memfd("tokio-multiprocess-probe", 0)?;
    let seals = fcntl(&shared, FcntlArg::F_GET_SEALS)?;
    if SealFlag::from_bits_retain(seals).contains(SealFlag::from_bits_retain(F_SEAL_EXEC)) {
        Ok(())
    } else {
        Err(io::Error::other("the kernel does not know it"))
    }
}

pub(crate) fn eventfd() -> io::Result<()> {
    fd::eventfd().map(drop)
}

pub(crate) fn timerfd() -> io::Result<()> {
    let timer = fd::timerfd()?;
    fd::arm_timer(timer.as_fd(), None)
}

/// A socket that keeps messages apart, and a descriptor that travels over it.
pub(crate) fn descriptor_passing() -> io::Result<()> {
    let (ours, theirs) = socket::seqpacket_pair()?;
    let message = io::IoSlice::new(b"probe");
    socket::send(ours.as_fd(), &[message], &[theirs.as_fd()], socket::Mode::Try)?;
    let mut arrived = Vec::new();
    socket::recv(theirs.as_fd(), &mut [0; 8], &mut arrived, socket::Mode::Try)?;
    if arrived.len() == 1 { Ok(()) } else { Err(io::Error::other("the descriptor did not arrive")) }
}

/// Whether the kernel would kill a child when its parent ends. Nothing is armed: another thread
/// might fork just now, and a copy of what is armed would outlive this probe.
pub(crate) fn lifeline() -> io::Result<()> {
    let (ours, _theirs) = orphan::lifeline()?;
    let path = format!("/proc/self/fd/{}", ours.as_raw_fd());
    let own = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?;
    orphan::choose_kill(own.as_fd())
}

/// Whether the parent of orphans can be chosen.
pub(crate) fn subreaper() -> io::Result<()> {
    nix::sys::prctl::get_child_subreaper()?;
    Ok(())
}

/// Whether the kernel can be told to keep workers to their limits. Where it is to be had, the memory
/// controller is on afterwards for groups below this program's, as a pool would have it.
pub(crate) fn delegated_cgroup() -> io::Result<()> {
    let none = || io::Error::other("no group with a memory controller is delegated to this program");
    cgroup::Parent::delegated().map(drop).ok_or_else(none)
}

/// Whether `/proc` lists a thread's children.
pub(crate) fn children_list() -> io::Result<()> {
    std::fs::read("/proc/thread-self/children").map(drop)
}

/// Whether a worker may offer itself to the out-of-memory killer.
pub(crate) fn oom_score() -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj").map(drop)
}

/// How many more descriptors this process may open: up to its hard limit, which it raises itself to.
pub(crate) fn descriptors_left() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(hard.saturating_sub(fd::open_fds()?.len() as u64))
}

/// How many more processes and threads may be started: `None` for no limit.
///
/// The kernel counts per user and namespace; here, what of it `/proc` shows is counted. The
/// process's cgroup may have a limit of its own.
pub(crate) fn processes_left() -> io::Result<Option<u64>> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NPROC)?;
    let user = nix::unistd::getuid();
    // The limit does not bind root.
    let by_user = if soft == libc::RLIM_INFINITY || user.is_root() {
        None
    } else {
        Some(soft.saturating_sub(threads_of(user.as_raw())?))
    };
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let by_group = left_in_group(Path::new("/sys/fs/cgroup"), &groups);
    Ok(by_user.into_iter().chain(by_group).min())
}

/// What is left to this process's cgroup, of both versions, of those that are mounted at `root`.
fn left_in_group(root: &Path, groups: &str) -> Option<u64> {
    let left = groups.lines().filter_map(|line| {
        // hierarchy:controllers:path
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let hierarchy = match controllers {
            "" => root.to_owned(),
            "pids" => root.join("pids"),
            _ => return None,
        };
        let group = hierarchy.join(path.trim_start_matches('/'));
        let number = |file: &str| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
        // “max” is no number.
        Some(number("pids.max")?.saturating_sub(number("pids.current")?))
    });
    left.min()
}

fn threads_of(user: u32) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut count = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        // It may be gone by now.
        if is_process
            && let Ok(tasks) = std::fs::metadata(entry.path().join("task"))
            && tasks.uid() == user
        {
            // A directory has one link more for each that lies in it, and two to begin with.
            count += tasks.nlink().saturating_sub(2).max(1);
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_may_have_a_limit() {
        let root = std::env::temp_dir().join(format!("tokio-multiprocess-probe-{}", getpid()));
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        write("a/b/pids.max", "10\n");
        write("a/b/pids.current", "7\n");
        write("free/pids.max", "max\n");
        write("free/pids.current", "7\n");
        write("pids/c/pids.max", "5\n");
        write("pids/c/pids.current", "9\n");
        assert_eq!(left_in_group(&root, "0::/a/b\n"), Some(3));
        assert_eq!(left_in_group(&root, "0::/free\n"), None);
        assert_eq!(left_in_group(&root, "0::/missing\n3:cpu:/a/b\n"), None);
        assert_eq!(left_in_group(&root, "9:pids:/c\n0::/a/b\n"), Some(0));
        std::fs::remove_dir_all(root).unwrap();
    }
}
