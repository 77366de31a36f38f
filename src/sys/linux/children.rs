//! A process's children, by the kernel's own lists, or else by a look at every process that there is:
//! not every kernel has the lists (`CONFIG_PROC_CHILDREN`).

use std::fs;
use std::io;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

const OWN_LIST: &std::ffi::CStr = c"/proc/thread-self/children";

/// Calls `f` with each child of this thread, or with those of the first hundreds. Allocates nothing
/// where the kernel has lists.
///
/// # Errors
/// When no list is to be had: without `/proc`.
pub(super) fn for_each_own(f: impl FnMut(i32)) -> io::Result<()> {
    let mut list = [0; 4096];
    let read = open(OWN_LIST, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| nix::unistd::read(file, &mut list));
    let Ok(len) = read else { return scan(super::process::getpid(), f) };
    // Each number ends with a space; one that is cut off does not.
    let whole = list[..len].iter().rposition(|byte| *byte == b' ').unwrap_or(0);
    let texts = list[..whole].split(|byte| *byte == b' ');
    texts.filter_map(|text| std::str::from_utf8(text).ok()?.parse().ok()).for_each(f);
    Ok(())
}

/// The children of all of a process's threads; none if it has ended.
///
/// # Errors
/// When they cannot be found out now.
pub(super) fn of(process: i32) -> io::Result<Vec<i32>> {
    let mut children = Vec::new();
    let Some(threads) = if_there(fs::read_dir(format!("/proc/{process}/task")))? else { return Ok(children) };
    for thread in threads {
        let Some(thread) = if_there(thread)? else { break };
        match if_there(fs::read_to_string(thread.path().join("children")))? {
            Some(list) => children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            None if has_lists() => {}
            None => {
                children.clear();
                scan(process, |child| children.push(child))?;
                break;
            }
        }
    }
    Ok(children)
}

/// Asked without a descriptor: there may be none left.
fn has_lists() -> bool {
    nix::unistd::access(OWN_LIST, nix::unistd::AccessFlags::F_OK).is_ok()
}

fn scan(parent: i32, mut f: impl FnMut(i32)) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { continue };
        // The name before may hold anything, and ends with the last parenthesis; the state follows.
        let stat = String::from_utf8_lossy(&stat);
        let found = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        if found.and_then(|found| found.parse().ok()) == Some(parent) {
            f(pid);
        }
    }
    Ok(())
}

/// What was read of a process, unless that has ended.
pub(super) fn if_there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::getpid;

    /// With lists and without.
    #[test]
    fn a_child_is_found_either_way() {
        let mut child = std::process::Command::new("sleep").arg("1000.375").spawn().unwrap();
        let pid = child.id() as i32;
        let (mut own, mut scanned) = (Vec::new(), Vec::new());
        for_each_own(|child| own.push(child)).unwrap();
        scan(getpid(), |child| scanned.push(child)).unwrap();
        for found in [own, scanned, of(getpid()).unwrap()] {
            assert!(found.contains(&pid), "{pid} in {found:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(of(pid).unwrap().is_empty());
    }
}
