//! Control groups, version 2: one for each worker, below a directory that is this program's.
//!
//! With the memory controller a worker's group has a limit that the kernel keeps to the page. With or
//! without it, all in a group are killed at one stroke, however fast they fork.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::sys::uio::{pread, pwrite};

/// What the groups of workers are called, with the process and a number behind.
const PREFIX: &str = "tokio-multiprocess-";

/// Where workers get their groups.
#[derive(Debug)]
pub(crate) struct Parent(PathBuf);

impl Parent {
    /// # Errors
    /// When it is no directory of cgroup v2, or is not this program's to make groups in.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        if statfs(path)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
            let why = format!("{} is not in a file system of cgroup v2", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let parent = Self::prepare(path);
        // Whoever may not do this may not do anything here.
        drop(parent.child()?);
        Ok(parent)
    }

    /// The one that was delegated to this program, if it was and has the memory controller.
    ///
    /// That is the group that it is in, or the one above: the kernel gives no controllers to groups
    /// below one that has processes itself, so who delegates may have put this program one lower.
    pub(crate) fn delegated() -> Option<Self> {
        let own = own_group(
            &fs::read_to_string("/proc/self/mountinfo").ok()?,
            &fs::read_to_string("/proc/self/cgroup").ok()?,
        )?;
        let above = own.path.parent().filter(|above| has_delegate_mark(above));
        let here = Some(&*own.path).filter(|here| own.is_root || has_delegate_mark(here));
        [above, here].into_iter().flatten().find_map(|path| {
            let parent = Self::prepare(path);
            let controllers = fs::read_to_string(path.join("cgroup.subtree_control")).ok()?;
            let usable = controllers.split_whitespace().any(|name| name == "memory");
            (usable && parent.child().is_ok()).then_some(parent)
        })
    }

    fn prepare(path: &Path) -> Self {
        // Refused without the controller, or where processes are; then there is no limit.
        let _ = open(&path.join("cgroup.subtree_control")).map(|file| pwrite(&file, b"+memory", 0));
        let parent = Self(path.to_owned());
        parent.sweep();
        parent
    }

    /// Makes a group.
    pub(crate) fn child(&self) -> io::Result<Cgroup> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let path = self.0.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                // Of a process with this number in another namespace, or in former times.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            match hold(&path).and_then(|held| held.map(|held| Cgroup::new(&path, held)).transpose()) {
                Ok(Some(group)) => return Ok(group),
                // Somebody has just taken it for one that is left over.
                Ok(None) => continue,
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(error);
                }
            }
        }
    }

    /// Removes what nobody holds and nobody is in: of programs that were killed.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            if let Ok(Some(_held)) = hold(&path) {
                let _ = fs::remove_dir(&path);
            }
        }
    }
}

/// Holds a group as its maker's, as long as the value lives; `None` if somebody does already, or
/// has removed it.
fn hold(path: &Path) -> io::Result<Option<Flock<File>>> {
    let Some(directory) = if_there(File::open(path))? else { return Ok(None) };
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Some(held)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Which of the kernel's files there are depends on its version and on the controllers.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens one of the kernel's files to write to it; never makes one.
fn open(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path)
}

/// A worker's group. Dropped, all in it are killed, and it is removed.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// Until it is removed.
    held: Option<Flock<File>>,
    /// Opened ahead, since when they are needed there may be no descriptor left.
    kill: Option<File>,
    events: Option<File>,
}

impl Cgroup {
    fn new(path: &Path, held: Flock<File>) -> io::Result<Self> {
        if let Some(file) = if_there(open(&path.join("memory.oom.group")))? {
            // Half of a worker is of no use.
            pwrite(&file, b"1", 0)?;
        }
        let kill = if_there(open(&path.join("cgroup.kill")))?;
        let events = if_there(File::open(path.join("memory.events")))?;
        Ok(Self { path: path.to_owned(), held: Some(held), kill, events })
    }

    /// By what the worker enters it: see [`enter`].
    pub(crate) fn door(&self) -> io::Result<OwnedFd> {
        Ok(open(&self.path.join("cgroup.procs"))?.into())
    }

    /// How much is in use, and where to write how much may be; `None` without the controller.
    pub(crate) fn memory(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        let current = if_there(File::open(self.path.join("memory.current")))?;
        let max = if_there(open(&self.path.join("memory.max")))?;
        Ok(current.zip(max).map(|(current, max)| (current.into(), max.into())))
    }

    /// Kills all in it, where the kernel can (5.14).
    pub(crate) fn kill(&self) {
        if let Some(kill) = &self.kill {
            let _ = pwrite(kill, b"1", 0);
        }
    }

    /// Ends it once its worker has ended: kills who is left, removes it if they are gone at once, and
    /// says whether the worker was killed for want of the memory that the group may have.
    pub(crate) fn end(&self) -> bool {
        self.kill();
        // First, as nothing can be read of what is removed.
        let was_out_of_memory = self.was_out_of_memory();
        let _ = self.remove();
        was_out_of_memory
    }

    fn was_out_of_memory(&self) -> bool {
        let mut buffer = [0; 1024];
        let len = self.events.as_ref().and_then(|events| pread(events, &mut buffer, 0).ok()).unwrap_or(0);
        // Where the machine has none left, or a group above, there is a kill, but no want in here.
        says(&buffer[..len], "oom") && says(&buffer[..len], "oom_kill")
    }

    fn remove(&self) -> io::Result<()> {
        if_there(fs::remove_dir(&self.path)).map(|_| ())
    }
}

/// Whether something has happened.
fn says(events: &[u8], what: &str) -> bool {
    let events = std::str::from_utf8(events).unwrap_or_default();
    let mut counts = events.lines().filter_map(|line| line.split_once(' '));
    counts.any(|(name, count)| name == what && count != "0")
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill();
        if self.remove().is_ok() {
            return;
        }
        let (path, held) = (std::mem::take(&mut self.path), self.held.take());
        // Somebody in it is still dying. If there can be no thread, the next sweep removes it.
        let _ = super::threads::spawn("mp-cgroup", move || {
            let patience = (0..1000).map(|_| std::thread::sleep(Duration::from_millis(5)));
            let _ = patience.map(|()| fs::remove_dir(&path)).find(|removed| removed.is_ok());
            drop(held);
        });
    }
}

/// Puts this process into the group whose [`door`](Cgroup::door) this is.
pub(crate) fn enter(door: OwnedFd) -> io::Result<()> {
    nix::unistd::write(&door, b"0")?;
    Ok(())
}

/// Limits a group to what it uses and so much more.
pub(crate) fn limit_memory(current: &OwnedFd, max: &OwnedFd, more: u64) -> io::Result<()> {
    let mut buffer = [0; 24];
    let len = pread(current.as_fd(), &mut buffer, 0)?;
    let used = std::str::from_utf8(&buffer[..len]).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let used = used.ok_or(io::ErrorKind::InvalidData)?;
    pwrite(max.as_fd(), used.saturating_add(more).to_string().as_bytes(), 0)?;
    Ok(())
}

/// Takes the limit away.
pub(crate) fn lift_limit(max: &OwnedFd) {
    let _ = pwrite(max.as_fd(), b"max\n", 0);
}

#[derive(Debug, PartialEq, Eq)]
struct OwnGroup {
    path: PathBuf,
    /// As far as can be seen from here.
    is_root: bool,
}

/// The directory of the group that this process is in.
fn own_group(mountinfo: &str, cgroup: &str) -> Option<OwnGroup> {
    let mount = mountinfo.lines().find(|line| {
        line.split_once(" - ").is_some_and(|(_, kind)| kind.split(' ').next() == Some("cgroup2"))
    })?;
    let mut fields = mount.split(' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = Path::new(own).strip_prefix(root).ok()?;
    Some(OwnGroup { path: Path::new(at).join(below), is_root: own == "/" })
}

/// Whether whoever manages groups has said that this one is handed over.
fn has_delegate_mark(path: &Path) -> bool {
    let Ok(path) = super::env::c_string(path.as_os_str()) else { return false };
    [c"user.delegate", c"trusted.delegate"].into_iter().any(|mark| {
        let mut value = [0_u8; 1];
        // SAFETY: both names end with a zero, and it writes at most one byte, for which there is room.
        let len = unsafe { libc::getxattr(path.as_ptr(), mark.as_ptr(), value.as_mut_ptr().cast(), 1) };
        len == 1 && value == *b"1"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "25 20 0:22 / /sys rw - sysfs sysfs rw\n\
        30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_own_group_is_found() {
        let group = |mounts: &str, own: &str| {
            own_group(mounts, own).map(|group| (group.path.to_str().unwrap().to_owned(), group.is_root))
        };
        let found = |path: &str, is_root| Some((path.to_owned(), is_root));
        let service = "1:name=systemd:/x\n0::/system.slice/a.service\n";
        assert_eq!(group(MOUNTS, service), found("/sys/fs/cgroup/system.slice/a.service", false));
        assert_eq!(group(MOUNTS, "0::/\n"), found("/sys/fs/cgroup/", true));
        // Only part of the tree is mounted.
        let part = MOUNTS.replace("0:26 / ", "0:26 /system.slice ");
        assert_eq!(group(&part, service), found("/sys/fs/cgroup/a.service", false));
        assert_eq!(group(&part, "0::/user.slice\n"), None);
        // Version 1 alone.
        assert_eq!(group(MOUNTS, "4:memory:/x\n"), None);
        assert_eq!(group("25 20 0:22 / /sys rw - sysfs sysfs rw\n", service), None);
    }

    /// A directory that plays a group with the memory controller.
    fn played(dir: &Path) -> Cgroup {
        for (file, text) in [
            ("memory.oom.group", "0"),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.events", ""),
            ("cgroup.kill", ""),
        ] {
            fs::write(dir.join(file), text).unwrap();
        }
        Cgroup::new(dir, hold(dir).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn the_limit_is_what_is_used_and_more() {
        let dir = tempfile::tempdir().unwrap();
        let group = played(dir.path());
        assert_eq!(fs::read_to_string(dir.path().join("memory.oom.group")).unwrap(), "1");
        let (current, max) = group.memory().unwrap().unwrap();
        let limit = || fs::read_to_string(dir.path().join("memory.max")).unwrap();
        limit_memory(&current, &max, 234).unwrap();
        assert_eq!(limit(), "1234");
        limit_memory(&current, &max, u64::MAX).unwrap();
        assert_eq!(limit(), u64::MAX.to_string());
        lift_limit(&max);
        assert!(limit().starts_with("max\n"));
    }

    #[test]
    fn who_was_killed_for_want_of_memory_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let group = played(dir.path());
        let events = |oom, kills| format!("low 0\nmax 7\noom {oom}\noom_kill {kills}\noom_group_kill 0\n");
        let cases = [(events(0, 0), false), (events(1, 0), false), (events(2, 1), true)];
        // Somebody else's want: the machine's, or that of a group above.
        for (text, told) in cases.into_iter().chain([(String::new(), false), (events(0, 1), false)]) {
            fs::write(dir.path().join("memory.events"), text).unwrap();
            assert_eq!(group.was_out_of_memory(), told);
        }
        group.kill();
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.kill")).unwrap(), "1");
    }

    #[test]
    fn what_others_left_is_swept_and_what_they_hold_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let [left, held, other] = [format!("{PREFIX}1-1"), format!("{PREFIX}1-2"), "other".to_owned()]
            .map(|name| dir.path().join(name));
        for path in [&left, &held, &other] {
            fs::create_dir(path).unwrap();
        }
        let holder = hold(&held).unwrap().unwrap();
        assert!(hold(&held).unwrap().is_none());
        let parent = Parent::prepare(dir.path());
        assert!(!left.exists() && held.exists() && other.exists());
        let child = parent.child().unwrap();
        let path = child.path.clone();
        assert!(path.exists());
        drop(child);
        assert!(!path.exists());
        drop(holder);
        drop(Parent::prepare(dir.path()));
        assert!(!held.exists() && other.exists());
    }

    #[test]
    fn other_file_systems_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Parent::at(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
