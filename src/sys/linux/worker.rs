//! What a worker asks of the kernel for itself.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Has the kernel, when memory runs out, end this process or what it starts before any other: it
/// can be replaced. To ask for that needs no privilege.
pub(crate) fn offer_to_oom_killer() {
    // Without `/proc` the kernel decides by size.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Leaves no memory image behind, and neither does what it starts; it may change its mind, for the
/// hard limit stays.
pub(crate) fn leave_no_core() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE) {
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, hard);
    }
}

/// Lets any debugger of this user attach to this process, which some systems keep to its ancestors.
pub(crate) fn admit_debugger() {
    // SAFETY: takes integers only. Not all systems know of it.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
}

/// Whether a debugger is attached to this process.
///
/// # Errors
/// Without `/proc`.
pub(crate) fn is_traced() -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    Ok(tracer.ok_or(Errno::ENOENT)?.trim() != "0")
}
