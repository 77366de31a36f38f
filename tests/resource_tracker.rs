//! The resource tracker, seen from outside of whole families of processes that end in all ways.
//!
//! No harness: each scenario is a `main` of its own. The program runs itself once for each, told which by a
//! variable, and reads its stderr to the end, which comes when its tracker has ended too.

#![cfg_attr(not(target_os = "linux"), allow(unused))]
#![allow(unsafe_code, reason = "each test program uses its part of what tests share")]

#[cfg(target_os = "linux")]
mod support;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, ChildStdout, Command, Stdio};
    use std::sync::LazyLock;

    use nix::sys::signal::{Signal, kill, killpg};
    use nix::unistd::Pid;
    use tokio_multiprocess as mp;

    use crate::support::process::{clean_methods, eventually, forever, runs, runtime};
    use crate::support::scenario::{self, Scenario};
    use crate::support::{Random, kill_9};

    const SCENARIOS: &[Scenario] = &[
        Scenario { name: "what_is_unlinked_is_no_leak", run: tidy, check: is_silent },
        Scenario { name: "leaks_of_a_main_that_returns", run: forgetful, check: leaks_are_told },
        Scenario { name: "a_terminated_owner", run: two, check: owner_is_terminated },
        Scenario { name: "a_killed_group", run: two, check: group_is_killed },
        Scenario { name: "an_owner_killed_at_any_instant", run: busy, check: nothing_is_left },
        Scenario { name: "signals_to_the_tracker", run: signals, check: signals_are_survived },
        Scenario { name: "a_killed_tracker", run: killed_tracker, check: one_warning },
        Scenario { name: "a_killed_owner_and_tracker", run: killed_both, check: the_rest_is_cleaned },
        Scenario { name: "a_stopped_tracker", run: stopped_tracker, check: stopped_is_an_error },
        Scenario { name: "children_share_the_tracker", run: family, check: family_is_cleaned },
        Scenario { name: "a_child_that_lives_longer", run: orphan, check: orphan_is_waited_for },
        Scenario { name: "memory_in_use_by_a_stranger", run: two, check: strangers_keep_it },
        Scenario { name: "a_name_that_passed_to_a_stranger", run: two, check: strangers_object_stays },
        Scenario { name: "memory_that_was_only_opened", run: opens, check: opened_stays },
        Scenario { name: "memory_without_tracking", run: untracked, check: untracked_stays },
        Scenario { name: "a_pool_worker_that_dies", run: pool, check: leaks_are_told },
        Scenario {
            name: "a_pool_worker_with_a_tracker_of_its_own",
            run: lone_worker,
            check: worker_is_cleaned,
        },
        Scenario { name: "a_program_without_this_crate", run: foreign, check: is_silent },
        Scenario { name: "a_program_that_calls_freeze_support", run: frozen, check: leaks_are_told },
        Scenario { name: "a_lock_in_a_static", run: static_lock, check: is_silent },
        Scenario { name: "a_lock_of_a_killed_process", run: killed_lock, check: is_silent },
        Scenario { name: "nothing_of_the_program_is_kept", run: two, check: is_small },
    ];

    pub(crate) fn main() {
        scenario::main(SCENARIOS, Stdio::piped);
    }

    // What programs do, and how they talk to their checks.

    fn say(what: impl std::fmt::Display) {
        println!("{what}");
        std::io::stdout().flush().unwrap();
    }

    /// Says the names of what it has created.
    fn create() -> mp::SharedMemory {
        let memory = mp::SharedMemory::create(512).unwrap();
        say(memory.name());
        memory
    }

    /// Waits for the check, or its end.
    fn hear() {
        let _ = std::io::stdin().read(&mut [0]);
    }

    fn tracker() -> i32 {
        mp::resource_tracker::pid().unwrap()
    }

    fn kill_tracker() -> i32 {
        let pid = tracker();
        kill_9(pid);
        eventually("the end of the tracker", || !runs(pid));
        pid
    }

    // What checks do.

    struct Program {
        child: Child,
        stdout: BufReader<ChildStdout>,
    }

    impl Program {
        fn start(command: &mut Command) -> Self {
            let mut child = command.spawn().unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            Self { child, stdout }
        }

        fn line(&mut self) -> String {
            let mut line = String::new();
            self.stdout.read_line(&mut line).unwrap();
            assert!(line.ends_with('\n'), "{line:?}");
            line.trim_end().to_owned()
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.child.id() as i32)
        }

        fn go_on(&mut self) {
            self.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        }

        /// What was on stderr, and on stdout unread, once the whole family and its tracker have ended.
        fn end(self) -> (String, Vec<String>) {
            let Self { mut child, stdout } = self;
            drop(child.stdin.take());
            let rest = stdout.lines().map(Result::unwrap).collect();
            let output = child.wait_with_output().unwrap();
            (String::from_utf8(output.stderr).unwrap(), rest)
        }
    }

    fn path(name: &str) -> PathBuf {
        Path::new("/dev/shm").join(name)
    }

    fn leaked(count: usize) -> String {
        let s = if count == 1 { "" } else { "s" };
        format!("resource tracker: {count} leaked shared memory object{s}\n")
    }

    fn is_silent(program: &mut Command) {
        let (stderr, names) = Program::start(program).end();
        assert_eq!(stderr, "");
        assert!(names.iter().all(|name| !path(name).exists()), "{names:?}");
    }

    /// All that it names is gone in the end, and was there until then.
    fn leaks_are_told(program: &mut Command) {
        let (stderr, names) = Program::start(program).end();
        assert!(!names.is_empty());
        assert_eq!(stderr, leaked(names.len()));
        assert!(names.iter().all(|name| !path(name).exists()), "{names:?}");
    }

    // The scenarios.

    fn tidy() {
        assert_eq!(mp::resource_tracker::pid(), None);
        let (a, b) = (create(), create());
        let elsewhere = mp::SharedMemory::open(a.name()).unwrap();
        elsewhere.unlink().unwrap();
        b.unlink().unwrap();
    }

    fn forgetful() {
        for _ in 0..3 {
            create().close();
        }
    }

    fn two() {
        let _both = (create(), create());
        say(tracker());
        hear();
    }

    // conformance: TestResourceTracker.test_resource_tracker
    // conformance: _TestSharedMemory.test_shared_memory_cleaned_after_process_termination
    fn owner_is_terminated(program: &mut Command) {
        let mut program = Program::start(program);
        let (a, b) = (program.line(), program.line());
        assert!(path(&a).exists() && path(&b).exists());
        fs::remove_file(path(&a)).unwrap();
        kill(program.pid(), Signal::SIGTERM).unwrap();
        let (stderr, _) = program.end();
        assert!(!path(&b).exists());
        let lines: Vec<_> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert_eq!(format!("{}\n", lines[0]), leaked(2));
        assert!(lines[1].contains(&a) && lines[1].contains("No such file"), "{stderr}");
    }

    fn group_is_killed(command: &mut Command) {
        let mut program = Program::start(command.process_group(0));
        let names = [program.line(), program.line()];
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let _ = killpg(program.pid(), signal);
        }
        let (stderr, _) = program.end();
        assert_eq!(stderr, leaked(2));
        assert!(names.iter().all(|name| !path(name).exists()));
    }

    /// Names begin with this and the number of the process that has created them.
    const BUSY: &str = "mp-test-busy-";

    fn busy() {
        say("ready");
        for round in 0u64.. {
            let name = format!("{BUSY}{}-{round}", std::process::id());
            let memory = mp::SharedMemory::create_named(&name, 1).unwrap();
            if round % 3 == 0 {
                memory.unlink().unwrap();
            }
            if round == 0 {
                say("busy");
            }
        }
    }

    fn nothing_is_left(command: &mut Command) {
        let mut random = Random::new();
        for round in 0..40 {
            let mut program = Program::start(command);
            program.line();
            if round % 4 != 0 {
                program.line();
            }
            // At some instant: what it does meanwhile takes about as long.
            for _ in 0..random.below(40) {
                std::thread::yield_now();
            }
            kill_9(program.pid().as_raw());
            let prefix = format!("{BUSY}{}-", program.pid());
            let (stderr, _) = program.end();
            let entries = fs::read_dir("/dev/shm").unwrap().flatten();
            let left: Vec<_> = entries
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| name.starts_with(&prefix))
                .collect();
            assert!(left.is_empty(), "{left:?}: {stderr}");
            // Of what it was killed in the middle of it may say that it is gone.
            for line in stderr.lines() {
                assert!(line.contains("leaked") || line.contains("No such file"), "{stderr}");
            }
        }
    }

    // conformance: TestResourceTracker.test_resource_tracker_sigint
    // conformance: TestResourceTracker.test_resource_tracker_sigterm
    fn signals() {
        mp::resource_tracker::ensure_running().unwrap();
        let pid = tracker();
        let first = create();
        for signal in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP))
        {
            kill(Pid::from_raw(pid), signal).unwrap();
        }
        let second = create();
        mp::resource_tracker::ensure_running().unwrap();
        assert!(runs(pid));
        assert_eq!(tracker(), pid);
        first.unlink().unwrap();
        // That the signals have not killed it later than all this the check sees.
        std::mem::forget(second);
    }

    fn signals_are_survived(program: &mut Command) {
        let (stderr, names) = Program::start(program).end();
        assert_eq!((stderr, names.len()), (leaked(1), 2));
        assert!(names.iter().all(|name| !path(name).exists()));
    }

    // conformance: TestResourceTracker.test_resource_tracker_sigkill
    fn killed_tracker() {
        mp::log_to_stderr(mp::LogLevel::Warn);
        let (first, second) = (create(), create());
        let dead = kill_tracker();
        second.unlink().unwrap();
        let third = create();
        assert_ne!(tracker(), dead);
        // It was waited for, too.
        assert!(!Path::new(&format!("/proc/{dead}")).exists());
        let fourth = create();
        fourth.unlink().unwrap();
        std::mem::forget((first, third));
    }

    fn one_warning(program: &mut Command) {
        let (stderr, names) = Program::start(program).end();
        let lines: Vec<_> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert!(lines[0].starts_with("[WARNING/MainProcess] the resource tracker"), "{stderr}");
        assert_eq!(format!("{}\n", lines[1]), leaked(2));
        assert_eq!(names.len(), 4);
        assert!(names.iter().all(|name| !path(name).exists()));
    }

    fn killed_both() {
        mp::resource_tracker::ensure_running().unwrap();
        runtime().block_on(async {
            let context = mp::Context::new(mp::StartMethod::Spawn);
            let child = context.process(survive, (tracker(), std::process::id())).start().await.unwrap();
            create();
            hear();
            drop(child);
        });
    }

    /// Goes on when its parent and the tracker are killed.
    fn survive(tracker_then: i32, parent: u32) {
        let first = create();
        eventually("the end of the parent and of its tracker", || {
            !runs(tracker_then) && !runs(parent as i32)
        });
        let second = create();
        assert_ne!(tracker(), tracker_then);
        std::mem::forget((first, second));
    }

    fn the_rest_is_cleaned(program: &mut Command) {
        let mut program = Program::start(program);
        let mut names = vec![program.line(), program.line()];
        // In whichever order they were said.
        let owner = program.pid().as_raw();
        let is_tracker = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "mp-tracker\n")
        };
        let list = fs::read_to_string(format!("/proc/{owner}/task/{owner}/children")).unwrap();
        let mut children = list.split_whitespace().map(|pid| pid.parse().unwrap());
        let tracker: i32 = children.find(is_tracker).unwrap();
        kill_9(tracker);
        kill_9(owner);
        let (stderr, more) = program.end();
        names.extend(more);
        // The survivor's own two are gone, and what the dead have made is left.
        assert_eq!(stderr, leaked(2));
        let left: Vec<_> = names.iter().filter(|name| path(name).exists()).collect();
        assert_eq!((names.len(), left.len()), (3, 1), "{names:?}");
        fs::remove_file(path(left[0])).unwrap();
    }

    fn stopped_tracker() {
        mp::resource_tracker::ensure_running().unwrap();
        let tracker = Pid::from_raw(tracker());
        kill(tracker, Signal::SIGSTOP).unwrap();
        let error = loop {
            if let Err(error) = mp::resource_tracker::ensure_running() {
                break error;
            }
        };
        assert!(error.is_timeout(), "{error}");
        mp::SharedMemory::create(1).unwrap_err();
        kill(tracker, Signal::SIGCONT).unwrap();
        let pid = tracker.as_raw();
        std::mem::forget(create());
        assert_eq!(mp::resource_tracker::pid(), Some(pid));
    }

    /// What could not be registered was not created.
    fn stopped_is_an_error(program: &mut Command) {
        let (stderr, names) = Program::start(program).end();
        assert_eq!((stderr, names.len()), (leaked(1), 1));
        assert!(!path(&names[0]).exists());
    }

    fn all_methods() -> Vec<mp::Context> {
        let mut all = clean_methods();
        // One thread is here, but for this crate's own.
        all.push(mp::Context::new(mp::StartMethod::Fork));
        all
    }

    // conformance: TestResourceTracker.test_resource_tracker_reused
    fn family() {
        mp::resource_tracker::ensure_running().unwrap();
        let pid = tracker();
        assert!(runs(pid));
        runtime().block_on(async {
            for context in all_methods() {
                let child = context.process(descend, (pid, 2u32)).start().await.unwrap();
                assert_eq!(child.join().await.unwrap().signal(), Some(9));
            }
        });
        // Still there: the family lives.
        assert!(runs(pid));
        assert_eq!(tracker(), pid);
    }

    async fn descend(pid: i32, generations: u32) {
        assert_eq!(tracker(), pid);
        mp::resource_tracker::ensure_running().unwrap();
        assert_eq!(tracker(), pid);
        std::mem::forget(create());
        if generations > 1 {
            let context = mp::Context::default();
            let child = context.process(descend, (pid, generations - 1)).start().await.unwrap();
            assert_eq!(child.join().await.unwrap().signal(), Some(9));
        }
        kill_9(std::process::id() as i32);
    }

    fn family_is_cleaned(program: &mut Command) {
        let (stderr, names) = Program::start(program).end();
        assert_eq!(names.len(), 6);
        assert_eq!(stderr, leaked(6));
        assert!(names.iter().all(|name| !path(name).exists()));
    }

    fn orphan() {
        let _memory = create();
        runtime().block_on(async {
            let child = mp::Process::builder(forever, ()).start().await.unwrap();
            say(child.pid());
            hear();
        });
    }

    fn orphan_is_waited_for(program: &mut Command) {
        let mut program = Program::start(program);
        let name = program.line();
        let child: i32 = program.line().parse().unwrap();
        kill_9(program.pid().as_raw());
        eventually("the owner's end", || !runs(program.pid().as_raw()));
        assert!(runs(child));
        assert!(path(&name).exists());
        kill_9(child);
        let (stderr, _) = program.end();
        assert_eq!(stderr, leaked(1));
        assert!(!path(&name).exists());
    }

    /// A process that has nothing to do with the program, and a file open.
    fn stranger(file: &Path) -> Child {
        let script = format!("exec 3<>'{}'; echo open; read line", file.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut stranger = shell.spawn().unwrap();
        let mut line = [0; 5];
        stranger.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        stranger
    }

    fn strangers_keep_it(program: &mut Command) {
        let mut program = Program::start(program);
        let (a, b) = (program.line(), program.line());
        let mut stranger = stranger(&path(&a));
        kill_9(program.pid().as_raw());
        let (stderr, _) = program.end();
        assert!(path(&a).exists() && !path(&b).exists());
        let lines: Vec<_> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert_eq!(format!("{}\n", lines[0]), leaked(2));
        assert!(lines[1].contains(&a) && lines[1].contains("open"), "{stderr}");
        drop(stranger.stdin.take());
        stranger.wait().unwrap();
        fs::remove_file(path(&a)).unwrap();
    }

    fn strangers_object_stays(program: &mut Command) {
        let mut program = Program::start(program);
        let (a, b) = (program.line(), program.line());
        fs::remove_file(path(&a)).unwrap();
        fs::write(path(&a), "somebody else's").unwrap();
        kill_9(program.pid().as_raw());
        let (stderr, _) = program.end();
        assert!(path(&a).exists() && !path(&b).exists());
        assert!(stderr.lines().count() == 2 && stderr.contains("another object"), "{stderr}");
        fs::remove_file(path(&a)).unwrap();
    }

    fn opens() {
        let name = std::env::var("RESOURCE_TRACKER_NAME").unwrap();
        let memory = mp::SharedMemory::open(&name).unwrap();
        let again = mp::SharedMemory::open_or_create(&name, 1).unwrap();
        assert_eq!((memory.size(), again.size()), (3, 3));
        assert_eq!(mp::resource_tracker::pid(), None);
        std::mem::forget(memory);
    }

    fn opened_stays(program: &mut Command) {
        let name = format!("mp-test-{}-opened", std::process::id());
        fs::write(path(&name), "abc").unwrap();
        let (stderr, _) = Program::start(program.env("RESOURCE_TRACKER_NAME", &name)).end();
        assert_eq!(stderr, "");
        fs::remove_file(path(&name)).unwrap();
    }

    fn untracked() {
        let memory = mp::SharedMemory::builder().track(false).create(512).unwrap();
        assert_eq!(mp::resource_tracker::pid(), None);
        say(memory.name());
    }

    fn untracked_stays(program: &mut Command) {
        let (stderr, names) = Program::start(program).end();
        assert_eq!(stderr, "");
        fs::remove_file(path(&names[0])).unwrap();
    }

    fn create_and_die() {
        std::mem::forget(create());
        kill_9(std::process::id() as i32);
    }

    fn pool() {
        mp::resource_tracker::ensure_running().unwrap();
        runtime().block_on(async {
            let pool = mp::Pool::new(1).await.unwrap();
            pool.apply(create_and_die, ()).await.unwrap_err();
            pool.terminate().await.unwrap();
        });
    }

    /// The guardian, which kills what a worker leaves, lets the worker's tracker do its work first.
    fn lone_worker() {
        runtime().block_on(async {
            let pool = mp::Pool::new(1).await.unwrap();
            pool.apply(create_many_and_die, ()).await.unwrap_err();
            assert_eq!(mp::resource_tracker::pid(), None);
            pool.terminate().await.unwrap();
        });
    }

    /// So many that the tracker has not unlinked them before the guardian looks for children.
    const MANY: usize = 2000;

    fn create_many_and_die() {
        (0..MANY).for_each(|_| create().close());
        kill_9(std::process::id() as i32);
    }

    fn worker_is_cleaned(program: &mut Command) {
        let (_, names) = Program::start(program).end();
        assert_eq!(names.len(), MANY);
        // Without a guardian nobody waits for the tracker, which has the worker's stderr.
        eventually("the end of all names", || !names.iter().any(|name| path(name).exists()));
    }

    fn foreign() {
        for program in ["/bin/true", "/nonexistent"] {
            mp::set_executable(program);
            let error = mp::SharedMemory::create(1).unwrap_err();
            assert!(matches!(error, mp::Error::Start(_)), "{error}");
            mp::resource_tracker::ensure_running().unwrap_err();
        }
        assert_eq!(mp::resource_tracker::pid(), None);
        mp::SharedMemory::builder().track(false).create(1).unwrap().unlink().unwrap();
    }

    fn frozen() {
        mp::freeze_support();
        mp::require_freeze_support();
        create();
    }

    static LOCK: LazyLock<mp::Lock> = LazyLock::new(|| mp::Lock::new().unwrap());

    fn use_lock() {
        drop(LOCK.try_acquire().unwrap());
        assert_eq!(mp::resource_tracker::pid(), None);
    }

    /// Each process has made its own of it.
    // conformance: TestNamedResource.test_global_named_resource_spawn
    fn static_lock() {
        use_lock();
        runtime().block_on(async {
            for context in all_methods() {
                let child = context.process(use_lock, ()).start().await.unwrap();
                assert!(child.join().await.unwrap().success());
            }
        });
    }

    /// What primitives lie in has no name that could be left, whoever is killed: no tracker is started for
    /// them, and there is no second kind of objects for it to know.
    // conformance: TestResourceTracker.test_resource_tracker
    fn killed_lock() {
        let fds = || {
            fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|fd| fs::read_link(fd.path()).ok())
        };
        let memory = || fds().filter(|target| target.starts_with("/dev/shm")).count();
        let nameless = || fds().filter(|target| target.to_string_lossy().starts_with("/memfd:")).count();
        let before = nameless();
        use_lock();
        assert_eq!((memory(), nameless()), (0, before + 1));
        kill_9(std::process::id() as i32);
    }

    /// Of the program that it is a copy of, neither streams nor files nor the session.
    fn is_small(program: &mut Command) {
        let mut program = Program::start(program);
        let (_a, _b) = (program.line(), program.line());
        let tracker: i32 = program.line().parse().unwrap();
        let proc = |what: &str| PathBuf::from(format!("/proc/{tracker}/{what}"));
        let link = |what: &str| fs::read_link(proc(what)).unwrap();
        assert_eq!(fs::read_to_string(proc("comm")).unwrap(), "mp-tracker\n");
        assert_eq!(link("cwd"), Path::new("/"));
        assert_eq!(link("fd/0"), Path::new("/dev/null"));
        assert_eq!(link("fd/1"), Path::new("/dev/null"));
        let mut fds: Vec<_> = fs::read_dir(proc("fd")).unwrap().map(|fd| fd.unwrap().file_name()).collect();
        fds.sort();
        assert_eq!(fds, ["0", "1", "2", "3"]);
        let status = fs::read_to_string(proc("status")).unwrap();
        assert!(status.contains("Threads:\t1\n"), "{status}");
        let session = nix::unistd::getsid(Some(Pid::from_raw(tracker))).unwrap();
        assert_eq!(session.as_raw(), tracker);
        program.go_on();
        let (stderr, _) = program.end();
        assert_eq!(stderr, leaked(2));
    }
}
