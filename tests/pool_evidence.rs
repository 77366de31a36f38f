//! What is known of a worker, while it lives and when it has died.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "crashes have to be made, and a debugger attached")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, raise};
use support::process::Stat;
use support::{methods, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Pool, TaskError, WorkerDied};

async fn pool(context: mp::Context) -> Pool {
    Pool::builder().context(context).processes(1).build().await.unwrap()
}

fn pid() -> i32 {
    std::process::id() as i32
}

fn worker_died(error: TaskError) -> (WorkerDied, String) {
    let told = error.to_string();
    match error {
        TaskError::WorkerDied(died) => (*died, told),
        other => panic!("{other:?}"),
    }
}

fn write_to(address: usize) {
    // SAFETY: none: the fault is what this is for.
    unsafe { std::ptr::without_provenance_mut::<u8>(address).write_volatile(1) }
}

#[test]
fn a_fault_is_told_with_its_address() {
    run_each(60, async |context| {
        let pool = pool(context).await;
        let (died, told) = worker_died(pool.apply(write_to, (0x1230,)).await.unwrap_err());
        assert_eq!((died.exit.signal(), died.exit.fault_address()), (Some(11), Some(0x1230)));
        assert!(told.ends_with("write_to: SIGSEGV at 0x1230"), "{told}");
        assert!(!died.exit.stack_overflow());
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn an_impossible_instruction_is_told_with_its_address() {
    fn cannot() {
        // SAFETY: none: the process ends here.
        unsafe { std::arch::asm!("ud2") }
    }
    run(60, async {
        let pool = pool(mp::Context::default()).await;
        let (died, _) = worker_died(pool.apply(cannot, ()).await.unwrap_err());
        assert_eq!(died.exit.signal(), Some(Signal::SIGILL as i32));
        assert!(died.exit.fault_address().is_some());
        // The address is beyond what there is, and so nobody knows it.
        let (died, _) = worker_died(pool.apply(write_to, (1 << 62,)).await.unwrap_err());
        assert_eq!((died.exit.signal(), died.exit.fault_address()), (Some(11), None));
    });
}

#[test]
fn an_overflow_is_told_with_its_address() {
    fn deeper(depth: u64) -> u64 {
        let page = std::hint::black_box([depth; 512]);
        if page[0] == u64::MAX { 0 } else { deeper(depth + 1) + page[1] }
    }
    run(60, async {
        let pool = pool(mp::Context::default()).await;
        let (died, told) = worker_died(pool.apply(deeper, (0,)).await.unwrap_err());
        assert!(died.exit.stack_overflow() && died.exit.fault_address().is_some(), "{died:?}");
        assert!(told.ends_with("(stack overflow)"), "{told}");
    });
}

#[test]
fn what_is_no_fault_has_no_address() {
    run(60, async {
        let pool = pool(mp::Context::default()).await;
        let (died, _) = worker_died(pool.apply(|| raise(Signal::SIGSEGV).unwrap(), ()).await.unwrap_err());
        assert_eq!((died.exit.signal(), died.exit.fault_address()), (Some(11), None));
        let (died, _) = worker_died(pool.apply(|| raise(Signal::SIGKILL).unwrap(), ()).await.unwrap_err());
        assert_eq!((died.exit.signal(), died.exit.fault_address()), (Some(9), None));
    });
}

#[test]
fn workers_and_guardians_have_their_names() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).name("Resizer").build().await.unwrap();
        let worker = Stat::of(pool.apply(pid, ()).await.unwrap()).unwrap();
        assert_eq!(worker.name, "Resizer-1");
        assert_eq!(Stat::of(worker.parent).unwrap().name, "mp-guardian");
    });
}

/// When memory runs out the kernel takes a worker, not the service and not what cleans up after it.
#[test]
fn workers_are_the_first_to_go() {
    fn score(pid: i32) -> i32 {
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        score.trim().parse().unwrap()
    }
    run_each(60, async |context| {
        let before = score(pid());
        let pool = pool(context).await;
        let worker = pool.apply(pid, ()).await.unwrap();
        assert_eq!(score(worker), 1000);
        assert_eq!(score(Stat::of(worker).unwrap().parent), before);
        assert_eq!(score(pid()), before);
    });
}

fn core_limit() -> u64 {
    getrlimit(Resource::RLIMIT_CORE).unwrap().0
}

fn crash_in(directory: String) {
    std::env::set_current_dir(directory).unwrap();
    std::process::abort();
}

#[test]
fn core_files_are_left_only_on_request() {
    run(60, async {
        let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
        setrlimit(Resource::RLIMIT_CORE, hard, hard).unwrap();
        // Children of the fork server have the limit that this process had when the server started.
        let [spawn, _, fork] = <[mp::Context; 3]>::try_from(methods()).unwrap();
        for (context, wanted) in [(&spawn, false), (&spawn, true), (&fork, false), (&fork, true)] {
            let pool = Pool::builder().context(context.clone()).processes(1).core_files(wanted);
            let pool = pool.build().await.unwrap();
            assert_eq!(pool.apply(core_limit, ()).await.unwrap(), if wanted { hard } else { 0 });
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().to_str().unwrap().to_owned();
            let (died, told) = worker_died(pool.apply(crash_in, (path,)).await.unwrap_err());
            // Where the system has them land elsewhere, none is seen here.
            let files = fs::read_dir(directory.path()).unwrap().count();
            assert!(files == 0 || wanted && died.exit.core_dumped(), "{files} files, {died:?}");
            assert_eq!(told.contains("core dumped"), died.exit.core_dumped());
        }
        setrlimit(Resource::RLIMIT_CORE, soft, hard).unwrap();
    });
}

/// Says that a process is the parent in the test below.
const ROLE: &str = "TEST_OF_EVIDENCE";

#[test]
fn a_worker_waits_for_a_debugger() {
    const THIS: &str = "a_worker_waits_for_a_debugger";
    if std::env::var_os(ROLE).is_some() {
        support::multi_thread().block_on(async {
            let pool = pool(mp::Context::new(mp::StartMethod::Spawn)).await;
            assert_eq!(pool.apply(|| 7, ()).await.unwrap(), 7);
            eprintln!("done");
        });
        return;
    }
    run(60, async {
        // Not asked for, it does not wait.
        for (wanted, waits) in [("1", true), ("Worker-1", true), ("Other", false)] {
            let mut parent = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture", THIS])
                .env(ROLE, "parent")
                .env("TOKIO_MULTIPROCESS_WAIT_FOR_DEBUGGER", wanted)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(parent.stderr.take().unwrap()).lines().map(Result::unwrap);
            let worker = waits.then(|| {
                let line = lines.find(|line| line.ends_with("waits for a debugger")).unwrap();
                let worker: i32 = line.split_whitespace().nth(2).unwrap().parse().unwrap();
                assert!(line.starts_with("PoolWorker-1: process "), "{line}");
                // SAFETY: the kernel only notes who traces whom.
                let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, worker, 0, 0) };
                assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
                worker
            });
            let before: Vec<_> = lines.by_ref().take_while(|line| line != "done").collect();
            assert!(!before.iter().any(|line| line.contains("debugger")), "{before:?}");
            if let Some(worker) = worker {
                // Its own parent hears of its end only after who traces it.
                // SAFETY: numbers, and null for a status that nobody wants. A process that has ended
                // meanwhile is reaped by the second call, and unknown to the others.
                unsafe {
                    libc::ptrace(libc::PTRACE_INTERRUPT, worker, 0, 0);
                    libc::waitpid(worker, std::ptr::null_mut(), libc::__WALL);
                    libc::ptrace(libc::PTRACE_DETACH, worker, 0, 0);
                }
            }
            let status = parent.wait().unwrap();
            assert!(status.success(), "{status}, {before:?}");
        }
    });
}
