//! What the integration tests share: a watchdog, a check for leaks, contexts of each start method,
//! and a notebook in which tasks write what they did.

#![allow(dead_code, unused_imports, reason = "each test program uses its part")]
#![allow(unsafe_code, reason = "to fork among libtest's threads has to be vouched for")]

pub(crate) mod connection;
pub(crate) mod limits;
pub(crate) mod process;
pub(crate) mod python;
pub(crate) mod scenario;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use tempfile::TempDir;
use tokio_multiprocess as mp;

/// How long anything that is asynchronous but bound to happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A context of each start method. libtest runs threads of its own, so `fork` is vouched for.
pub(crate) fn methods() -> Vec<mp::Context> {
    // SAFETY: what these tests run in a child takes no lock that another thread may hold.
    let fork = unsafe { mp::Context::fork_with_threads() };
    vec![mp::Context::new(mp::StartMethod::Spawn), mp::Context::new(mp::StartMethod::ForkServer), fork]
}

/// Aborts the test program if it is not dropped in time.
pub(crate) struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a [`Watchdog`].
pub(crate) fn watchdog(seconds: u64) -> Watchdog {
    let (stop, stopped) = mpsc::channel();
    let (named, has_name) = mpsc::channel();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        let _ = named.send(());
        if stopped.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
            let _ = writeln!(std::io::stderr(), "watchdog: {test} takes longer than {seconds} s");
            std::process::abort();
        }
    });
    // A thread gives itself its name, and a census counts by names.
    has_name.recv().expect("the watchdog runs");
    Watchdog { stop: Some(stop), thread: Some(thread.expect("a thread for the watchdog")) }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Threads of libtest, which come and go beside a test: see [`alone`].
static LIBTEST: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Lets one test run at a time, as descriptors, threads and children belong to all of a program.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    LIBTEST.lock().unwrap_or_else(PoisonError::into_inner).insert(gettid().as_raw());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process holds.
#[derive(Debug)]
struct Census {
    /// How many descriptors there are of each kind.
    descriptors: BTreeMap<String, usize>,
    threads: BTreeMap<String, usize>,
    children: BTreeSet<i32>,
    /// Shared memory that has one of this program's [names](shm_name).
    shared: BTreeSet<String>,
}

impl Census {
    fn take() -> Self {
        let mut descriptors = BTreeMap::new();
        let listing: Vec<_> = fs::read_dir("/proc/self/fd").unwrap().flatten().collect();
        for entry in listing {
            // What the listing itself had open is gone by now.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let kind = match target.split_once(":[") {
                Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
                _ => target,
            };
            *descriptors.entry(kind).or_insert(0) += 1;
        }
        let libtest = LIBTEST.lock().unwrap_or_else(PoisonError::into_inner);
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir("/proc/self/task").unwrap().flatten() {
            let tid: i32 = entry.file_name().to_string_lossy().parse().unwrap();
            let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
            // What stands in for pidfds where there are none is kept for the next children, and so is
            // who looks at workers' memory and who sees to their groups.
            let kept = ["mp-watch", "mp-looker", "mp-grouper"].contains(&name.trim());
            if !libtest.contains(&tid) && !kept {
                *threads.entry(name.trim().to_owned()).or_insert(0) += 1;
            }
        }
        Self { descriptors, threads, children: children().into_iter().collect(), shared: shm_names() }
    }

    /// What is here and was not there.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let mut more = Vec::new();
        for (what, now, then) in [
            ("descriptor", &self.descriptors, &before.descriptors),
            ("thread", &self.threads, &before.threads),
        ] {
            for (kind, count) in now {
                let known = then.get(kind).copied().unwrap_or(0);
                if *count > known {
                    more.push(format!("{} more {what}s `{kind}`", count - known));
                }
            }
        }
        for child in self.children.difference(&before.children) {
            let status = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            more.push(format!("child {status}"));
        }
        more.extend(self.shared.difference(&before.shared).map(|name| format!("shared memory {name}")));
        more
    }
}

/// A name for shared memory that no other test program has, and that a [`LeakCheck`] looks for.
pub(crate) fn shm_name(what: &str) -> String {
    format!("{}{what}", shm_prefix())
}

fn shm_prefix() -> String {
    format!("mp-test-{}-", std::process::id())
}

fn shm_names() -> BTreeSet<String> {
    let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&shm_prefix())).collect()
}

/// This process's children, zombies among them, but not its fork server and its resource tracker: if one
/// is killed, the next that need it bring another.
pub(crate) fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let pids =
        lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>());
    pids.filter(|pid| {
        process::Stat::of(*pid).is_none_or(|stat| !["ForkServer", "mp-tracker"].contains(&&*stat.name))
    })
    .collect()
}

/// Panics at its end if this process has more descriptors, threads or children than at its
/// beginning. To be used by who is [`alone`].
pub(crate) struct LeakCheck {
    before: Census,
}

impl LeakCheck {
    pub(crate) fn new() -> Self {
        warm_up();
        Self { before: Census::take() }
    }
}

impl Drop for LeakCheck {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let begin = Instant::now();
        loop {
            let more = Census::take().beyond(&self.before);
            if more.is_empty() {
                return;
            }
            // Ends of processes and threads are seen a little later.
            assert!(begin.elapsed() < PATIENCE, "left behind: {more:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Has everything made that is made once and then kept, such as the fork server.
fn warm_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        multi_thread().block_on(async {
            for context in methods() {
                let child = context.process(|| (), ()).start().await.unwrap();
                assert!(child.join().await.unwrap().success());
            }
            // Brings up the reaper.
            drop(mp::Process::builder(process::forever, ()).daemon(true).start().await.unwrap());
            for child in mp::active_children() {
                child.kill().unwrap();
                child.join().await.unwrap();
            }
        });
        // The door at which whoever sleeps for a lock is rung for.
        let lock = mp::Lock::new().unwrap();
        let _held = lock.try_acquire().unwrap();
        let waited = lock.acquire_timeout(Duration::from_millis(1));
        assert!(current_thread().block_on(waited).unwrap().is_none());
        // The runtime of sync code.
        mp::block_on(async {}).unwrap();
    });
    // The test before may have ended it.
    if process::fork_server().is_none() {
        let context = mp::Context::new(mp::StartMethod::ForkServer);
        current_thread().block_on(async {
            context.process(|| (), ()).start().await.unwrap().join().await.unwrap();
        });
    }
}

/// A runtime as most programs have it, small.
pub(crate) fn multi_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A runtime that makes progress only while it is polled.
pub(crate) fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What a test holds from its first to its last line, on whatever runtimes it uses.
pub(crate) struct Guard {
    _leaks: LeakCheck,
    _watchdog: Watchdog,
    _alone: MutexGuard<'static, ()>,
}

/// [`alone`], under a watchdog and with a check for leaks.
pub(crate) fn guard(seconds: u64) -> Guard {
    let alone = alone();
    let watchdog = watchdog(seconds);
    Guard { _leaks: LeakCheck::new(), _watchdog: watchdog, _alone: alone }
}

/// [`guard`] for a test of a static. It stays: no leak, but neither may it be made while another test looks for
/// some.
pub(crate) fn guard_with<T>(seconds: u64, made: &LazyLock<T>) -> Guard {
    let alone = alone();
    let watchdog = watchdog(seconds);
    LazyLock::force(made);
    Guard { _leaks: LeakCheck::new(), _watchdog: watchdog, _alone: alone }
}

/// Runs a test on a runtime with several threads, under a [`guard`].
pub(crate) fn run(seconds: u64, test: impl Future<Output = ()>) {
    let _guard = guard(seconds);
    multi_thread().block_on(test);
}

/// The same for each start method. Says which one it was if it fails.
pub(crate) fn run_each<F: Future<Output = ()>>(seconds: u64, test: impl Fn(mp::Context) -> F) {
    let _guard = guard(seconds);
    for context in methods() {
        eprintln!("start method: {}", context.start_method());
        multi_thread().block_on(test(context));
    }
}

/// Waits until something is so that is bound to be, and panics if it does not come.
#[track_caller]
pub(crate) fn eventually<'a>(
    what: &'a str,
    mut is_so: impl FnMut() -> bool + 'a,
) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < PATIENCE, "{caller}: never seen: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// [`eventually`] where no runtime is.
#[track_caller]
pub(crate) fn eventually_blocking(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "never seen: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process runs: a zombie does not.
pub(crate) fn runs(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name before the state may hold anything, also parentheses.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

pub(crate) fn kill_9(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Processes whose command line contains a text.
pub(crate) fn processes_with(text: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() as i32 && String::from_utf8_lossy(&line).contains(text) && runs(*pid)
    })
    .collect()
}

/// What tasks wrote down, and a gate that holds them up. Tasks know it by its [`path`](Self::path).
pub(crate) struct Notebook {
    dir: TempDir,
    gate: Mutex<Option<Flock<File>>>,
}

impl Notebook {
    /// An empty one, whose gate is shut.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("gate")).unwrap();
        let gate = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
        File::create(dir.path().join("notes")).unwrap();
        Self { dir, gate: Mutex::new(Some(gate)) }
    }

    pub(crate) fn path(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    /// Lets all pass that wait at the gate, and all that come later.
    pub(crate) fn open_gate(&self) {
        if let Some(gate) = self.gate.lock().unwrap().take() {
            gate.unlock().map_err(|(_, error)| error).unwrap();
        }
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        fs::read_to_string(notes(self.dir.path())).unwrap().lines().map(str::to_owned).collect()
    }

    /// How often a note was written.
    pub(crate) fn count(&self, note: impl fmt::Display) -> usize {
        let note = note.to_string();
        self.notes().iter().filter(|written| **written == note).count()
    }

    /// Waits until a note has been written `times` times.
    #[track_caller]
    pub(crate) fn wait_for<'a>(&'a self, note: &'a str, times: usize) -> impl Future<Output = ()> + 'a {
        eventually(note, move || self.count(note) >= times)
    }

    /// Panics if a note was written twice.
    pub(crate) fn assert_no_repetition(&self) {
        let mut seen = HashSet::new();
        for note in self.notes() {
            assert!(seen.insert(note.clone()), "`{note}` was written twice");
        }
    }
}

fn notes(dir: &Path) -> PathBuf {
    dir.join("notes")
}

/// Writes a line into a notebook. Whole lines are appended, whatever happens to the writer.
pub(crate) fn note(notebook: &str, line: impl fmt::Display) {
    let line = format!("{line}\n");
    let mut file = OpenOptions::new().append(true).open(notes(Path::new(notebook))).unwrap();
    assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
}

/// How often a line stands in a notebook.
pub(crate) fn noted(notebook: &str, line: impl fmt::Display) -> usize {
    let line = line.to_string();
    let all = fs::read_to_string(notes(Path::new(notebook))).unwrap();
    all.lines().filter(|written| *written == line).count()
}

/// Blocks until the gate is open.
pub(crate) fn pass_gate(notebook: &str) {
    let file = File::open(Path::new(notebook).join("gate")).unwrap();
    drop(Flock::lock(file, FlockArg::LockShared).map_err(|(_, error)| error).unwrap());
}

/// Random numbers for storms: xorshift, so that a seed gives the same again.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Seeded by `TOKIO_MULTIPROCESS_STORM_SEED`, or else by the clock; printed either way.
    pub(crate) fn new() -> Self {
        let given = std::env::var("TOKIO_MULTIPROCESS_STORM_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_nanos() as u64
        });
        eprintln!("TOKIO_MULTIPROCESS_STORM_SEED={seed}");
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }
}
