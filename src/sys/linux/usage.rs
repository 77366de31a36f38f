//! How much memory processes hold, and how much this one may map.
//!
//! What counts is anonymous memory, in core or swapped out: what was allocated, not what files are
//! mapped. Everything is read from `/proc`, and an error without it.

use std::fs::{self, File};
use std::io::{self, Read, Seek};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::children::{self, if_there};

/// Far more processes than this are not looked at: so many are hardly found while they are counted.
const MOST: usize = 4096;

/// What a process's status says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    parent: i32,
    is_guardian: bool,
    /// In core or swapped out.
    anonymous: u64,
    /// Mapped for private writing, touched or not: what `RLIMIT_DATA` limits.
    data: u64,
}

impl Status {
    fn of(process: i32) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{process}/status"))?)
    }

    fn open() -> io::Result<File> {
        File::open("/proc/self/status")
    }

    /// Of the process that has [opened](Self::open) it.
    fn reread(mut file: &File) -> io::Result<Self> {
        let mut text = String::with_capacity(4096);
        file.rewind()?;
        file.read_to_string(&mut text)?;
        Self::parse(&text)
    }

    /// One that has ended and was not reaped holds nothing, and has no such lines.
    fn parse(text: &str) -> io::Result<Self> {
        let mut status = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let bytes = || parse_kb(value).ok_or(io::ErrorKind::InvalidData);
            match name {
                "Name" => status.is_guardian = value.trim() == super::guardian::NAME,
                "PPid" => status.parent = value.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?,
                "RssAnon" | "VmSwap" => status.anonymous += bytes()?,
                "VmData" => status.data = bytes()?,
                _ => {}
            }
        }
        Ok(status)
    }
}

fn parse_kb(value: &str) -> Option<u64> {
    value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// What this process holds. It keeps the file open that tells of that: when a task has used up the
/// descriptors its limit must hold all the same.
#[derive(Debug)]
pub(crate) struct Own(File);

/// What this process has, in bytes.
#[derive(Debug)]
pub(crate) struct Look {
    /// Held by it and all below it: as [`of_tree`]. An error if those below it cannot be seen now.
    pub(crate) held: io::Result<u64>,
    /// Mapped by it for private writing, touched or not: what [`DataLimit`] limits.
    pub(crate) data: u64,
}

impl Own {
    /// `None` without `/proc`.
    ///
    /// # Errors
    /// When there is no descriptor or no memory for it now.
    pub(crate) fn open() -> io::Result<Option<Self>> {
        match Status::open() {
            Ok(file) => Ok(Some(Self(file))),
            Err(error) if super::process::is_shortage(&error) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// What this process holds, in bytes, without what is below it.
    pub(crate) fn anonymous(&self) -> io::Result<u64> {
        Ok(Status::reread(&self.0)?.anonymous)
    }

    pub(crate) fn look(&self) -> io::Result<Look> {
        let status = Status::reread(&self.0)?;
        Ok(Look { held: Self::held(&status), data: status.data })
    }

    fn held(status: &Status) -> io::Result<u64> {
        let pid = super::process::getpid();
        // Cheaper to ask than to go through all threads' children, and mostly there are none.
        let any = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let childless = matches!(waitid(Id::All, any), Err(Errno::ECHILD));
        tree(pid, status, if childless { Vec::new() } else { children_of(pid)? }, 0)
    }
}

/// What a process and all below it hold, in bytes; below a worker is also what has come to its
/// guardian. Of those below only what they share with nobody: a copy holds nothing before it writes,
/// and what runs in its parent's memory never does.
///
/// To tell that takes long for large processes; where less than `enough` is found even with all
/// that they share, that is the answer.
///
/// # Errors
/// When it cannot be seen now.
pub(crate) fn of_tree(root: i32, enough: u64) -> io::Result<u64> {
    tree(root, &Status::of(root)?, children_of(root)?, enough)
}

fn tree(root: i32, own: &Status, mut below: Vec<(i32, Status)>, enough: u64) -> io::Result<u64> {
    let (own, parent) = (own.anonymous, own.parent);
    if if_there(Status::of(parent))?.is_some_and(|parent| parent.is_guardian) {
        let mut others = children::of(parent)?;
        others.retain(|child| *child != root);
        below.extend(with_status(parent, others)?);
    }
    let mut next = 0;
    while let Some((process, _)) = below.get(next)
        && below.len() < MOST
    {
        below.extend(children_of(*process)?);
        next += 1;
    }
    let at_most = below.iter().map(|(_, status)| status.anonymous).sum::<u64>();
    if below.is_empty() || own.saturating_add(at_most) < enough {
        return Ok(own + at_most);
    }
    let private = below.iter().filter(|(process, status)| !shares_memory(*process, status.parent));
    private.map(|(process, _)| private_memory(*process)).sum::<io::Result<u64>>().map(|private| own + private)
}

/// A process's children and what they say of themselves.
fn children_of(process: i32) -> io::Result<Vec<(i32, Status)>> {
    with_status(process, children::of(process)?)
}

fn with_status(parent: i32, children: Vec<i32>) -> io::Result<Vec<(i32, Status)>> {
    let mut found = Vec::with_capacity(children.len());
    for child in children {
        // One may have ended since, and its number be another's.
        let status = if_there(Status::of(child))?.filter(|status| status.parent == parent);
        found.extend(status.map(|status| (child, status)));
    }
    Ok(found)
}

/// Memory that only this process has, and what of it is swapped out; none if it has ended, or is
/// another user's.
fn private_memory(process: i32) -> io::Result<u64> {
    let rollup = match fs::read_to_string(format!("/proc/{process}/smaps_rollup")) {
        Ok(rollup) => rollup,
        Err(error) if super::process::is_shortage(&error) => return Err(error),
        Err(_) => return Ok(0),
    };
    let lines = rollup.lines().filter_map(|line| line.split_once(':'));
    let counted = lines.filter(|(name, _)| matches!(*name, "Private_Dirty" | "SwapPss"));
    Ok(counted.filter_map(|(_, value)| parse_kb(value)).sum())
}

/// Whether two processes have one address space, as while one starts a program. Where the kernel
/// does not say, they have not.
fn shares_memory(one: i32, other: i32) -> bool {
    /// The kernel's name for it is in no header that every libc has.
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: it compares, and takes numbers alone.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

/// This process may map only so much data, as long as this lives.
#[derive(Debug)]
pub(crate) struct DataLimit {
    before: rlim_t,
    hard: rlim_t,
}

impl DataLimit {
    pub(crate) fn lower(to: u64) -> io::Result<Self> {
        let (before, hard) = getrlimit(Resource::RLIMIT_DATA)?;
        setrlimit(Resource::RLIMIT_DATA, before.min(to), hard)?;
        Ok(Self { before, hard })
    }
}

impl Drop for DataLimit {
    fn drop(&mut self) {
        // A soft limit below the hard one may be raised by anyone.
        let _ = setrlimit(Resource::RLIMIT_DATA, self.before, self.hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn what_is_written_to_counts() {
        const LEN: usize = 64 << 20;
        let own = Own::open().unwrap().unwrap();
        let before = own.anonymous().unwrap();
        let held = vec![1_u8; LEN];
        let after = own.anonymous().unwrap();
        assert!(after >= before + LEN as u64 / 2, "{before} to {after}");
        drop(held);
    }

    #[test]
    fn a_status_in_no_known_shape_is_an_error() {
        let known = Status::parse(
            "Name:\tmp-guardian\nPPid:\t7\nVmData:\t  8 kB\nRssAnon:\t 12 kB\nVmSwap:\t 4 kB\n",
        )
        .unwrap();
        assert_eq!(known, Status { parent: 7, is_guardian: true, anonymous: 16 << 10, data: 8 << 10 });
        assert_eq!(Status::parse("State:\tZ (zombie)\n").unwrap(), Status::default());
        assert!(Status::parse("RssAnon:\t12 pages\n").is_err());
    }

    #[test]
    fn what_children_hold_counts() {
        // `tail` keeps all of a line without an end; its parent is a shell.
        let line = "head -c 64m /dev/zero | tail | cat & read held; kill $!; wait";
        let mut shell = Command::new("sh").args(["-c", line]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = shell.id() as i32;
        let mut most = 0;
        let patience = Instant::now() + Duration::from_secs(30);
        while most < 60 << 20 && Instant::now() < patience {
            most = most.max(of_tree(pid, 0).unwrap_or(0));
        }
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(most >= 60 << 20, "{most}");
    }

    #[test]
    fn memory_is_shared_with_oneself_and_not_with_others() {
        let own = super::super::process::getpid();
        assert!(shares_memory(own, own));
        assert!(!shares_memory(own, nix::unistd::getppid().as_raw()));
    }
}
