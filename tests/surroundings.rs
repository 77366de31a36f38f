//! Pools on meagre machines: in containers that lack this or that, under sandboxes and low limits.
//!
//! No harness: each scenario is a process of its own, this program once more, which first makes its
//! surroundings poor, for itself alone, and then runs pools in them. Where the machine does not let
//! it, the scenario is skipped and says why.

#![cfg_attr(not(target_os = "linux"), allow(unused))]
#![allow(unsafe_code, reason = "a sandbox is made by a system call that nobody wraps")]

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
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, setns, unshare};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::wait::waitpid;
    use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, pause, setgid, setsid, setuid};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;
    use tokio_multiprocess as mp;

    use crate::support::{PATIENCE, current_thread, eventually, kill_9, methods, runs, watchdog};

    const SCENARIO: &str = "SURROUNDINGS_SCENARIO";
    /// A directory for the scenario, which is removed after it.
    const DIRECTORY: &str = "SURROUNDINGS_DIRECTORY";
    const SKIPPED: i32 = 77;
    const NOBODY: u32 = 65534;
    /// An id that nobody has: the kernel counts processes by user.
    const LONER: u32 = 64_013;

    struct Scenario {
        name: &'static str,
        run: fn(),
        /// Who runs it, if it is not who runs the tests.
        user: Option<u32>,
    }

    const fn scenario(name: &'static str, run: fn()) -> Scenario {
        Scenario { name, run, user: None }
    }

    const SCENARIOS: &[Scenario] = &[
        scenario("everything_is_there", plenty),
        scenario("a_read_only_root", read_only_root),
        scenario("no_tmp", no_tmp),
        scenario("no_dev_shm", no_dev_shm),
        scenario("a_small_dev_shm", small_dev_shm),
        scenario("no_pidfd_open", no_pidfd_open),
        scenario("no_pidfds_at_all", no_pidfds),
        scenario("no_clone3", no_clone3),
        scenario("no_close_range", no_close_range),
        scenario("no_landlock", no_landlock),
        scenario("few_descriptors", few_descriptors),
        Scenario { user: Some(LONER), ..scenario("few_processes", few_processes) },
        Scenario { user: Some(NOBODY), ..scenario("an_unprivileged_user", unprivileged) },
        scenario("privileges_that_were_dropped", dropped_privileges),
        scenario("no_proc", no_proc),
        scenario("what_cannot_be_killed", unkillable),
        scenario("what_cannot_be_killed_without_pidfds", unkillable_without_pidfds),
    ];

    pub(crate) fn main() {
        if let Ok(name) = std::env::var(SCENARIO) {
            let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
            return (scenario.run)();
        }
        // As far as test runners ask: a list, a filter.
        let args: Vec<String> = std::env::args().skip(1).collect();
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
        for scenario in SCENARIOS {
            let fits = |filter: &&String| {
                if has("--exact") {
                    *filter == scenario.name
                } else {
                    scenario.name.contains(filter.as_str())
                }
            };
            if has("--ignored") || !filters.is_empty() && !filters.iter().any(fits) {
                continue;
            }
            if has("--list") {
                println!("{}: test", scenario.name);
                continue;
            }
            scenario.check();
        }
    }

    impl Scenario {
        fn check(&self) {
            let name = self.name;
            if self.user.is_some() && !nix::unistd::getuid().is_root() {
                return println!("test {name} ... skipped: only root can become another user");
            }
            let directory = tempfile::tempdir().unwrap();
            // The link and not the path, into which another user may not be allowed to look.
            let mut program = Command::new("/proc/self/exe");
            program.env(SCENARIO, name).env(DIRECTORY, directory.path()).env("RUST_BACKTRACE", "0");
            program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            if let Some(user) = self.user {
                program.env_remove("HOME").env_remove("TMPDIR").current_dir("/");
                program.uid(user).gid(user);
            }
            let output = program.output().unwrap();
            let stdout = String::from_utf8_lossy(&output.stdout);
            let said = stdout.trim();
            match output.status.code() {
                Some(0) => println!("test {name} ... ok{}", if said.is_empty() { "" } else { ":" }),
                Some(SKIPPED) => println!("test {name} ... skipped"),
                _ => panic!("{name}: {}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr)),
            }
            said.lines().for_each(|line| println!("    {line}"));
        }
    }

    /// Ends a scenario for which the machine is not made.
    fn skip(why: impl std::fmt::Display) -> ! {
        println!("{why}");
        std::process::exit(SKIPPED);
    }

    // What runs in the surroundings.

    fn spin() {
        loop {
            std::hint::spin_loop();
        }
    }

    fn abort() {
        std::process::abort();
    }

    /// What a pool is for, once in each way of starting it.
    fn pools_work() {
        let _watchdog = watchdog(240);
        current_thread().block_on(async {
            for context in methods() {
                pool_works(context).await;
            }
        });
    }

    async fn pool_works(context: mp::Context) {
        let method = context.start_method();
        let pool = mp::Pool::builder().processes(2).context(context).build().await;
        let pool = pool.unwrap_or_else(|error| panic!("{method}: {error}"));
        pool.ready().await.unwrap_or_else(|error| panic!("{method}: {error}"));
        let product = pool.apply(|a: u64, b: u64| a * b, (6, 7)).await;
        assert_eq!(product.unwrap(), 42, "{method}");
        assert_eq!(pool.map(|x: u64| x + 1, 0..100).await.unwrap(), (1..101).collect::<Vec<_>>());
        let late = pool.apply(spin, ()).timeout(Duration::from_millis(50)).await;
        assert!(matches!(late, Err(mp::TaskError::TimedOut)), "{method}: {late:?}");
        let dead = pool.apply(abort, ()).await;
        assert!(matches!(dead, Err(mp::TaskError::WorkerDied(_))), "{method}: {dead:?}");
        let blob = mp::Blob::new(vec![7; 1 << 20]).unwrap();
        let back = pool.apply(|blob: mp::Blob| blob, (blob,)).await.unwrap();
        assert!(back.len() == 1 << 20 && back.iter().all(|byte| *byte == 7), "{method}");
        pool.close();
        pool.join().await.unwrap();
    }

    #[track_caller]
    fn lacks(name: &str) {
        let diagnosis = mp::doctor();
        let check = diagnosis.checks().iter().find(|check| check.name == name).unwrap();
        assert!(matches!(check.status, mp::doctor::Status::Missing(_)), "{diagnosis}");
    }

    #[track_caller]
    fn is_fit() {
        let diagnosis = mp::doctor();
        assert!(diagnosis.is_fit(), "{diagnosis}");
    }

    fn plenty() {
        is_fit();
        pools_work();
    }

    // File systems.

    /// Gives this process mounts of its own; as a user without privileges in a namespace of users.
    fn own_mounts() {
        let user = nix::unistd::getuid();
        let made = match unshare(CloneFlags::CLONE_NEWNS) {
            Err(nix::errno::Errno::EPERM) => unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER)
                .map(|()| {
                    fs::write("/proc/self/uid_map", format!("0 {user} 1")).unwrap();
                }),
            made => made,
        };
        if let Err(error) = made {
            skip(format_args!("no mounts of one's own: {error}"));
        }
        let none = None::<&str>;
        if let Err(error) = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none) {
            skip(format_args!("mounts cannot be made private: {error}"));
        }
    }

    fn bind(from: &Path, to: &Path) {
        let none = None::<&str>;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        if let Err(error) = mount(Some(from), to, none, flags, none) {
            skip(format_args!("{} cannot be mounted: {error}", from.display()));
        }
    }

    fn tmpfs(at: &Path, options: &str) {
        if let Err(error) = mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)) {
            skip(format_args!("no tmpfs: {error}"));
        }
    }

    /// Changes to a root with all that the former has, but `/tmp` and what is in `/dev`; there only
    /// the usual devices are.
    fn bare_root() -> PathBuf {
        own_mounts();
        let root = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
        tmpfs(&root, "mode=755");
        for entry in fs::read_dir("/").unwrap().map(Result::unwrap) {
            let (from, to) = (entry.path(), root.join(entry.file_name()));
            match entry.file_type().unwrap() {
                _ if ["tmp", "dev"].iter().any(|omitted| entry.file_name() == *omitted) => {}
                kind if kind.is_symlink() => {
                    std::os::unix::fs::symlink(fs::read_link(from).unwrap(), to).unwrap();
                }
                kind if kind.is_dir() => {
                    fs::create_dir(&to).unwrap();
                    bind(&from, &to);
                }
                _ => {}
            }
        }
        fs::create_dir(root.join("dev")).unwrap();
        for device in ["null", "zero", "full", "random", "urandom"] {
            let to = root.join("dev").join(device);
            fs::write(&to, "").unwrap();
            bind(&Path::new("/dev").join(device), &to);
        }
        root
    }

    fn enter(root: &Path) {
        if let Err(error) = nix::unistd::chroot(root) {
            skip(format_args!("the root cannot be changed: {error}"));
        }
        std::env::set_current_dir("/").unwrap();
        // SAFETY: this process has one thread.
        unsafe { std::env::remove_var("TMPDIR") };
    }

    fn read_only_root() {
        own_mounts();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for mount_point in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            // Whatever stays writable is found below.
            let _ = mount(None::<&str>, mount_point, None::<&str>, flags, None::<&str>);
        }
        let own = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
        for directory in [Path::new("/"), Path::new("/tmp"), Path::new("/dev/shm"), &own] {
            match fs::write(directory.join("written"), "") {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotFound
                    ) => {}
                Err(error) => skip(format_args!("{}: {error}", directory.display())),
                Ok(()) => {
                    let _ = fs::remove_file(directory.join("written"));
                    skip(format_args!("{} stays writable", directory.display()));
                }
            }
        }
        is_fit();
        pools_work();
    }

    fn no_tmp() {
        let root = bare_root();
        fs::create_dir(root.join("dev/shm")).unwrap();
        tmpfs(&root.join("dev/shm"), "");
        enter(&root);
        assert!(!Path::new("/tmp").exists());
        is_fit();
        pools_work();
    }

    fn no_dev_shm() {
        enter(&bare_root());
        assert!(!Path::new("/dev/shm").exists());
        is_fit();
        pools_work();
    }

    fn small_dev_shm() {
        let root = bare_root();
        let shm = root.join("dev/shm");
        fs::create_dir(&shm).unwrap();
        tmpfs(&shm, "size=64m");
        enter(&root);
        assert!(fs::write("/dev/shm/large", vec![1; 65 << 20]).is_err());
        fs::remove_file("/dev/shm/large").unwrap();
        is_fit();
        pools_work();
        // Nothing of this crate's lies there.
        let _watchdog = watchdog(120);
        current_thread().block_on(async {
            let pool = mp::Pool::new(1).await.unwrap();
            let blob = mp::Blob::new(vec![7; 100 << 20]).unwrap();
            assert_eq!(pool.apply(|blob: mp::Blob| blob.len(), (blob,)).await.unwrap(), 100 << 20);
            assert_eq!(fs::read_dir("/dev/shm").unwrap().count(), 0);
        });
    }

    fn no_proc() {
        let program = std::env::current_exe().unwrap();
        own_mounts();
        if umount2("/proc", MntFlags::MNT_DETACH).is_err() {
            // Not in a namespace of users; but something else can lie over it.
            tmpfs(Path::new("/proc"), "");
        }
        assert!(!Path::new("/proc/self").exists());
        lacks("/proc");
        assert!(!mp::doctor().is_fit());
        let _watchdog = watchdog(120);
        current_thread().block_on(async {
            for context in methods() {
                let method = context.start_method();
                let child = context.process(|| (), ()).start().await;
                let error = child.expect_err("it was started").to_string();
                assert!(error.contains("/proc"), "{method}: {error}");
                let pool = mp::Pool::builder().processes(1).context(context).build().await;
                let error = pool.expect_err("it has a worker").to_string();
                assert!(error.contains("/proc"), "{method}: {error}");
            }
            // With a program that is found otherwise there are processes, but none that would be
            // sure to end with this one.
            mp::set_executable(program);
            let context = mp::Context::new(mp::StartMethod::Spawn);
            assert_eq!(context.spawn(|x: u8| x + 1, (1,)).await.unwrap().await.unwrap(), 2);
            let daemon = context.process(|| (), ()).daemon(true).start().await;
            let error = daemon.expect_err("it was started").to_string();
            assert!(error.contains("/proc"), "{error}");
            let pool = mp::Pool::builder().processes(1).in_process().build().await.unwrap();
            assert_eq!(pool.apply(|x: u8| x + 1, (1,)).await.unwrap(), 2);
        });
    }

    // Sandboxes.

    /// Has the kernel refuse these system calls to this process and all that come of it.
    fn refuse(calls: &[libc::c_long], errno: i32) {
        let instruction =
            |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
        // The number of the call is the first word of what the filter looks at.
        let mut filter = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
        for call in calls {
            let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
            filter.push(instruction(equal, 0, 1, u32::try_from(*call).unwrap()));
            filter.push(instruction(
                libc::BPF_RET | libc::BPF_K,
                0,
                0,
                libc::SECCOMP_RET_ERRNO | errno as u32,
            ));
        }
        filter.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        nix::sys::prctl::set_no_new_privs().unwrap();
        // SAFETY: `program` and what it points to outlive the call.
        let result = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as libc::c_ulong, &raw const program)
        };
        if result != 0 {
            skip(format_args!("no filter of system calls: {}", io::Error::last_os_error()));
        }
    }

    fn no_pidfd_open() {
        refuse(&[libc::SYS_pidfd_open], libc::EPERM);
        lacks("pidfd");
        is_fit();
        pools_work();
    }

    fn refuse_pidfds() {
        refuse(&[libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal, libc::SYS_clone3], libc::ENOSYS);
        lacks("pidfd");
    }

    fn no_pidfds() {
        refuse_pidfds();
        is_fit();
        pools_work();
        parents_and_signals();
    }

    /// What else goes by pidfds: a parent that is watched, a child that is ended.
    fn parents_and_signals() {
        let _watchdog = watchdog(120);
        let watched = || {
            let parent = mp::parent_process().unwrap();
            u8::from(parent.is_alive() && !parent.sentinel().unwrap().is_ready())
        };
        current_thread().block_on(async {
            for context in methods() {
                assert_eq!(context.spawn(watched, ()).await.unwrap().await.unwrap(), 1);
                let child = context.process(spin, ()).start().await.unwrap();
                let sentinel = child.sentinel().unwrap();
                assert!(child.is_alive() && !sentinel.is_ready());
                child.terminate().unwrap();
                sentinel.ready().await.unwrap();
                assert_eq!(child.join().await.unwrap().signal(), Some(libc::SIGTERM));
                child.kill().unwrap();
            }
        });
    }

    fn no_clone3() {
        // Not EPERM: glibc itself starts no thread then.
        refuse(&[libc::SYS_clone3], libc::ENOSYS);
        lacks("clone3");
        is_fit();
        pools_work();
    }

    fn no_close_range() {
        refuse(&[libc::SYS_close_range], libc::ENOSYS);
        lacks("close_range");
        is_fit();
        pools_work();
    }

    fn no_landlock() {
        let calls = [
            libc::SYS_landlock_create_ruleset,
            libc::SYS_landlock_add_rule,
            libc::SYS_landlock_restrict_self,
        ];
        refuse(&calls, libc::EPERM);
        is_fit();
        pools_work();
    }

    // Limits and users.

    fn few_descriptors() {
        setrlimit(Resource::RLIMIT_NOFILE, 60, 60).unwrap();
        is_fit();
        pools_work();
        let _watchdog = watchdog(120);
        current_thread().block_on(async {
            for context in methods() {
                let method = context.start_method();
                let crowd = mp::Pool::builder().processes(30).context(context);
                let pool = crowd.build().await.unwrap_or_else(|error| panic!("{method}: {error}"));
                // It goes on trying to have them all, while tasks run on those that it has.
                eventually("the descriptors run out", || {
                    fs::read_dir("/proc/self/fd").map_or(60, Iterator::count) > 45
                })
                .await;
                assert_eq!(pool.map(|x: u64| x + 1, 0..100).await.unwrap(), (1..101).collect::<Vec<_>>());
                assert!(pool.worker_pids().len() < 30, "{method}");
                pool.terminate().await.unwrap();
            }
        });
        pools_work();
        setrlimit(Resource::RLIMIT_NOFILE, 12, 12).unwrap();
        lacks("descriptors");
        assert!(!mp::doctor().is_fit());
    }

    fn few_processes() {
        let _watchdog = watchdog(240);
        let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        let allow = |processes| setrlimit(Resource::RLIMIT_NPROC, processes, hard).unwrap();
        current_thread().block_on(async {
            // The fork server's limit is what it was when the server was started.
            for context in methods().into_iter().filter(|it| it.start_method() != mp::StartMethod::ForkServer)
            {
                let method = context.start_method();
                let build = || mp::Pool::builder().processes(2).context(context.clone()).build();
                allow(hard);
                let pool = build().await.unwrap();
                pool.ready().await.unwrap();
                allow(1);
                lacks("processes");
                let error = build().await.expect_err("it has a worker").to_string();
                assert!(error.contains("Resource temporarily unavailable"), "{method}: {error}");
                // Each takes a worker with it, until none is left and none can be had.
                let why = loop {
                    match pool.apply(abort, ()).await.unwrap_err() {
                        mp::TaskError::WorkerDied(_) => {}
                        mp::TaskError::NotStarted(mp::NotStarted::NoWorker(why)) => break why,
                        error => panic!("{method}: {error}"),
                    }
                };
                assert!(why.contains("Resource temporarily unavailable"), "{method}: {why}");
                allow(hard);
                recovers(&pool).await;
            }
        });
    }

    /// A pool that has no workers goes on trying.
    async fn recovers(pool: &mp::Pool) {
        let recovered = async {
            while let Err(error) = pool.apply(|| (), ()).await {
                assert!(matches!(error, mp::TaskError::NotStarted(_)), "{error}");
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, recovered).await.unwrap();
    }

    fn unprivileged() {
        assert_eq!(nix::unistd::getuid().as_raw(), NOBODY);
        assert!(fs::write("/written", "").is_err());
        is_fit();
        pools_work();
    }

    /// A service that begins as root: what it is afterwards may not look into itself everywhere.
    fn dropped_privileges() {
        if !nix::unistd::getuid().is_root() {
            skip("only root has privileges to drop");
        }
        let (user, group) = (nix::unistd::Uid::from_raw(NOBODY), nix::unistd::Gid::from_raw(NOBODY));
        nix::unistd::setgroups(&[]).unwrap();
        nix::unistd::setgid(group).unwrap();
        nix::unistd::setuid(user).unwrap();
        is_fit();
        pools_work();
    }

    // What nobody can kill.

    /// Leaves a process behind, tells its id, and crashes at a word.
    ///
    /// It is another user's, in a session of its own; or the first in a namespace of processes, which
    /// cannot end before a zombie in there is reaped.
    fn leave_behind(address: PathBuf, namespace: bool) {
        let mut line = UnixStream::connect(address).unwrap();
        let (told, tells) = nix::unistd::pipe().unwrap();
        if namespace {
            unshare(CloneFlags::CLONE_NEWPID).unwrap();
        }
        // SAFETY: the copy only makes system calls.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                drop(tells);
                assert_eq!(nix::unistd::read(told, &mut [0]), Ok(0));
                writeln!(line, "{child}").unwrap();
            }
            ForkResult::Child => {
                setsid().unwrap();
                if !namespace {
                    setgid(Gid::from_raw(NOBODY)).unwrap();
                    setuid(Uid::from_raw(NOBODY)).unwrap();
                }
                drop(tells);
                loop {
                    pause();
                }
            }
        }
        let _ = line.read(&mut [0]);
        abort();
    }

    /// Puts a child of this process into another's namespace.
    fn send_into_namespace_of(pid: i32) -> Pid {
        // Of a thread of its own, as it is for all later children of the thread.
        let enter = move || {
            let namespace = fs::File::open(format!("/proc/{pid}/ns/pid")).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWPID).unwrap();
            // SAFETY: the copy only makes system calls.
            match unsafe { fork() }.unwrap() {
                ForkResult::Parent { child } => child,
                ForkResult::Child => loop {
                    pause();
                },
            }
        };
        std::thread::spawn(enter).join().unwrap()
    }

    fn unkillable() {
        const CAP_KILL: libc::c_ulong = 5;
        // SAFETY: takes integers only. It is this process's children who lose it, by their `exec`.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_KILL, 0, 0, 0) } != 0 {
            skip("only root can see to it that something cannot be killed");
        }
        let _watchdog = watchdog(240);
        current_thread().block_on(async {
            for (namespace, crash) in [(false, false), (false, true), (true, false), (true, true)] {
                answers_all_the_same(namespace, crash).await;
            }
        });
    }

    fn unkillable_without_pidfds() {
        refuse_pidfds();
        unkillable();
    }

    /// It is left to whoever started this process, and nobody waits for it.
    async fn answers_all_the_same(namespace: bool, crash: bool) {
        let at = format!("namespace: {namespace}, crash: {crash}");
        let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
        let address = directory.join(format!("{namespace} {crash}"));
        let listener = UnixListener::bind(&address).unwrap();
        let spawn = methods().into_iter().find(|it| it.start_method() == mp::StartMethod::Spawn).unwrap();
        let pool = mp::Pool::builder().processes(1).context(spawn).build().await.unwrap();
        let call = pool.apply(leave_behind, (address, namespace)).submit();
        let mut line = BufReader::new(listener.accept().await.unwrap().0);
        let mut pid = String::new();
        line.read_line(&mut pid).await.unwrap();
        let pid = pid.trim().parse().unwrap();
        let zombie = namespace.then(|| send_into_namespace_of(pid));
        if crash {
            line.write_all(b"!").await.unwrap();
            let died = tokio::time::timeout(PATIENCE, call).await.expect(&at);
            assert!(matches!(died, Err(mp::TaskError::WorkerDied(_))), "{at}: {died:?}");
            assert_eq!(pool.apply(|x: u8| x + 1, (1,)).await.unwrap(), 2);
        }
        tokio::time::timeout(PATIENCE, pool.terminate()).await.expect(&at).unwrap();
        assert!(runs(pid), "{at}: it could be killed");
        match zombie {
            Some(zombie) => _ = waitpid(zombie, None).unwrap(),
            None => kill_9(pid),
        }
        eventually("its end", || !runs(pid)).await;
    }
}
