//! Whatever a worker has started ends with it, also what has left its group and its tree.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "processes escape by bare forks")]

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause, setsid};
use support::process::{Call, Caller, Meeting, Stat};
use support::{Random, eventually, kill_9, methods, run, run_each, runs};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Pool, TaskError};

async fn pool(context: mp::Context, processes: usize) -> Pool {
    Pool::builder().context(context).processes(processes).build().await.unwrap()
}

/// Leaves a process behind that has a session of its own, no parent and no ear for signals. It has
/// told its id and holds the line, as this one does until it hangs up.
fn escape(address: String) -> Call {
    let mut call = Call::to(&address);
    let (told, tells) = nix::unistd::pipe().unwrap();
    // SAFETY: the copies make system calls and allocate, which the libc allows for.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => _ = waitpid(child, None).unwrap(),
        ForkResult::Child => {
            setsid().unwrap();
            // SAFETY: as above.
            if let ForkResult::Child = unsafe { fork() }.unwrap() {
                SigSet::all().thread_block().unwrap();
                call.say(std::process::id());
                drop(tells);
                loop {
                    pause();
                }
            }
            // SAFETY: ends the process without running anybody's code.
            unsafe { libc::_exit(0) }
        }
    }
    drop(tells);
    assert_eq!(nix::unistd::read(told, &mut [0]), Ok(0));
    call
}

fn escape_and_return(address: String) -> i32 {
    drop(escape(address));
    std::process::id() as i32
}

fn escape_and_spin(address: String) {
    let _held = escape(address);
    loop {
        std::hint::spin_loop();
    }
}

fn escape_and_abort(address: String) {
    let _held = escape(address);
    std::process::abort();
}

fn escape_and_tell(address: String) {
    let mut call = escape(address);
    call.say(std::process::id());
    loop {
        pause();
    }
}

/// The id of who has escaped.
async fn escapee(caller: &mut Caller) -> i32 {
    let pid = caller.hear().await.unwrap().parse().unwrap();
    assert!(runs(pid));
    pid
}

/// The ids of who has escaped and of the worker.
async fn escapee_and_worker(caller: &mut Caller) -> (i32, i32) {
    let escaped = escapee(caller).await;
    (escaped, caller.hear().await.unwrap().parse().unwrap())
}

fn guardian_of(worker: i32) -> i32 {
    let guardian = Stat::of(worker).unwrap().parent;
    assert_eq!(Stat::of(guardian).unwrap().name, "mp-guardian");
    guardian
}

#[test]
fn they_live_as_long_as_a_worker_that_returns() {
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let pool = pool(context, 1).await;
        let worker = pool.apply(escape_and_return, (meeting.address(),)).await.unwrap();
        let mut caller = meeting.accept().await;
        let escaped = escapee(&mut caller).await;
        assert_eq!(pool.apply(|| std::process::id() as i32, ()).await.unwrap(), worker);
        assert!(runs(escaped));
        pool.close();
        pool.join().await.unwrap();
        assert!(!runs(escaped));
        assert_eq!(caller.hear().await, None);
    });
}

/// When the error is told, all are gone.
#[test]
fn they_die_with_a_task_that_takes_too_long() {
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let pool = pool(context, 1).await;
        let mut call =
            pool.apply(escape_and_spin, (meeting.address(),)).timeout(Duration::from_secs(1)).submit();
        let mut caller = meeting.accept().await;
        let escaped = escapee(&mut caller).await;
        let error = (&mut call).await.unwrap_err();
        assert!(matches!(error, TaskError::TimedOut), "{error:?}");
        assert!(!runs(escaped));
        assert_eq!(caller.hear().await, None);
        assert_eq!(pool.apply(|| 7, ()).await.unwrap(), 7);
    });
}

#[test]
fn they_die_with_a_worker_that_crashes() {
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let pool = pool(context, 1).await;
        let error = pool.apply(escape_and_abort, (meeting.address(),)).await.unwrap_err();
        let mut caller = meeting.accept().await;
        let escaped = caller.hear().await.unwrap().parse().unwrap();
        match error {
            TaskError::WorkerDied(died) => assert_eq!(died.exit.signal(), Some(Signal::SIGABRT as i32)),
            other => panic!("{other:?}"),
        }
        assert!(!runs(escaped));
        assert_eq!(caller.hear().await, None);
    });
}

#[test]
fn they_die_with_an_aborted_task() {
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let pool = pool(context, 1).await;
        let mut call = pool.apply(escape_and_spin, (meeting.address(),)).submit();
        let mut caller = meeting.accept().await;
        let escaped = escapee(&mut caller).await;
        call.abort();
        let error = (&mut call).await.unwrap_err();
        assert!(matches!(error, TaskError::Aborted { began: true }), "{error:?}");
        // Told before the worker is dead.
        assert_eq!(caller.hear().await, None);
        eventually("its end", || !runs(escaped)).await;
    });
}

#[test]
fn they_die_with_a_terminated_pool() {
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let pool = pool(context, 1).await;
        let _call = pool.apply(escape_and_spin, (meeting.address(),)).submit();
        let mut caller = meeting.accept().await;
        let escaped = escapee(&mut caller).await;
        pool.terminate().await.unwrap();
        assert!(!runs(escaped));
        assert_eq!(caller.hear().await, None);
    });
}

#[test]
fn they_die_with_a_worker_that_somebody_kills() {
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let pool = pool(context, 1).await;
        let call = pool.apply(escape_and_tell, (meeting.address(),)).submit();
        let mut caller = meeting.accept().await;
        let (escaped, worker) = escapee_and_worker(&mut caller).await;
        kill_9(worker);
        match call.await.unwrap_err() {
            TaskError::WorkerDied(died) => {
                assert_eq!((died.pid, died.exit.signal()), (worker, Some(Signal::SIGKILL as i32)));
            }
            other => panic!("{other:?}"),
        }
        assert!(!runs(escaped));
        assert_eq!(caller.hear().await, None);
    });
}

/// One that is stopped is set going again.
#[test]
fn they_die_though_their_guardian_was_stopped() {
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let pool = pool(context, 1).await;
        for killed in [false, true] {
            let mut call = pool.apply(escape_and_tell, (meeting.address(),)).submit();
            let mut caller = meeting.accept().await;
            let (escaped, worker) = escapee_and_worker(&mut caller).await;
            let guardian = guardian_of(worker);
            kill(Pid::from_raw(guardian), Signal::SIGSTOP).unwrap();
            eventually("it is stopped", || Stat::of(guardian).is_some_and(|stat| stat.state == 'T')).await;
            if killed {
                kill_9(worker);
                assert!(matches!((&mut call).await.unwrap_err(), TaskError::WorkerDied(_)));
                assert!(!runs(escaped));
            } else {
                call.abort();
            }
            assert_eq!(caller.hear().await, None);
        }
    });
}

/// Continued it is not then: it stands still for whoever traces it.
#[test]
fn a_guardian_that_a_debugger_holds() {
    run(90, async {
        let pool = pool(mp::Context::default(), 1).await;
        let worker = pool.apply(|| std::process::id() as i32, ()).await.unwrap();
        let guardian = guardian_of(worker);
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        // Only the thread that traces may do anything with what it traces.
        let debugger = std::thread::spawn(move || {
            let guardian = Pid::from_raw(guardian);
            ptrace::seize(guardian, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(guardian).unwrap();
            let _ = held.recv();
        });
        eventually("it stands still", || Stat::of(guardian).is_some_and(|stat| stat.state == 't')).await;
        kill_9(worker);
        // Another one takes its place at once.
        assert_ne!(pool.apply(|| std::process::id() as i32, ()).retries(1).await.unwrap(), worker);
        pool.close();
        pool.join().await.unwrap();
        assert!(!runs(guardian));
        drop(let_go);
        debugger.join().unwrap();
    });
}

/// It takes its worker with it. The pool goes on.
#[test]
fn a_guardian_that_somebody_kills() {
    run_each(60, async |context| {
        let pool = pool(context, 1).await;
        let worker = pool.apply(|| std::process::id() as i32, ()).await.unwrap();
        let meeting = Meeting::new();
        let call = pool.apply(escape_and_tell, (meeting.address(),)).submit();
        let mut caller = meeting.accept().await;
        let (escaped, same) = escapee_and_worker(&mut caller).await;
        assert_eq!(same, worker);
        kill_9(guardian_of(worker));
        let error = call.await.unwrap_err();
        assert!(matches!(error, TaskError::WorkerDied(_)), "{error:?}");
        eventually("the worker's end", || !runs(worker)).await;
        assert_eq!(pool.apply(|| 7, ()).await.unwrap(), 7);
        // This one is out of reach.
        kill_9(escaped);
    });
}

/// Signals that a terminal or a service manager sends to everybody are the parent's alone.
#[test]
fn a_guardian_hears_no_signal() {
    run_each(60, async |context| {
        let pool = pool(context, 1).await;
        let pid = || std::process::id() as i32;
        let worker = pool.apply(pid, ()).await.unwrap();
        let guardian = guardian_of(worker);
        for signal in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP))
        {
            kill(Pid::from_raw(guardian), signal).unwrap();
        }
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
        // Neither do they come up when it ends, after its worker, by a signal.
        kill_9(worker);
        let died = eventually("another worker", || !runs(worker));
        died.await;
        assert_ne!(pool.apply(pid, ()).await.unwrap(), worker);
        assert!(!runs(guardian));
    });
}

/// It keeps nothing open on whose end somebody may wait.
#[test]
fn a_guardian_holds_one_descriptor() {
    run_each(60, async |context| {
        let pool = pool(context, 1).await;
        let worker = pool.apply(|| std::process::id() as i32, ()).await.unwrap();
        let guardian = guardian_of(worker);
        // It may still be on its way.
        let open = || std::fs::read_dir(format!("/proc/{guardian}/fd")).unwrap().count();
        eventually("that it closes the others", || open() == 1).await;
        let at = || std::fs::read_link(format!("/proc/{guardian}/cwd")).unwrap();
        eventually("that it leaves", || at().to_str() == Some("/")).await;
        assert_ne!(Stat::of(guardian).unwrap().group, Stat::of(worker).unwrap().group);
        assert_ne!(Stat::of(guardian).unwrap().group, Stat::of(std::process::id() as i32).unwrap().group);
    });
}

/// Says in which role, and with which start method, a process runs one of these tests.
const ROLE: &str = "TEST_OF_DESCENDANTS";

/// This program, to run one test.
fn again(runner: &[&str], test: &str) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = match runner {
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args).arg(exe);
            command
        }
        [] => Command::new(exe),
    };
    command.args(["--exact", "--nocapture", test]).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Starts a thread before anything else, as some libraries do, in a process that is to have one.
#[used]
// SAFETY: a function without arguments, which needs nothing of C's or std's that is not there by then.
#[unsafe(link_section = ".init_array.00100")]
static CONSTRUCTOR: extern "C" fn() = {
    extern "C" fn construct() {
        if std::env::var(ROLE).is_ok_and(|role| role == "threads") {
            std::thread::spawn(|| {
                loop {
                    std::thread::park();
                }
            });
        }
    }
    construct
};

#[test]
fn that_there_are_no_guardians_is_said_once() {
    if std::env::var(ROLE).is_ok() {
        mp::log_to_stderr(mp::LogLevel::Warn);
        let spawn = methods().into_iter().find(|it| it.start_method() == mp::StartMethod::Spawn).unwrap();
        return support::multi_thread().block_on(async {
            let pool = pool(spawn, 2).await;
            pool.ready().await.unwrap();
            assert_eq!(pool.apply(|x: u8| x + 1, (1,)).await.unwrap(), 2);
        });
    }
    run(60, async {
        for (role, times) in [("threads", 1), ("none", 0)] {
            let mut parent = again(&[], "that_there_are_no_guardians_is_said_once");
            let output = parent.env(ROLE, role).stderr(Stdio::piped()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            assert_eq!(said.matches("no guardians").count(), times, "{said}");
        }
    });
}

#[test]
fn they_die_with_a_parent_that_is_killed() {
    if let Ok(role) = std::env::var(ROLE) {
        // The parent that will be killed.
        let (index, address) = role.split_once(' ').unwrap();
        let context = methods().remove(index.parse().unwrap());
        support::multi_thread().block_on(async {
            let pool = pool(context, 2).await;
            let tasks =
                [address; 4].map(|address| pool.apply(escape_and_spin, (address.to_owned(),)).submit());
            futures::future::join_all(tasks).await;
        });
        unreachable!("its tasks never end");
    }
    run(60, async {
        for index in 0..methods().len() {
            let meeting = Meeting::new();
            let mut parent = again(&[], "they_die_with_a_parent_that_is_killed")
                .env(ROLE, format!("{index} {}", meeting.address()))
                .spawn()
                .unwrap();
            let mut callers = [meeting.accept().await, meeting.accept().await];
            for caller in &mut callers {
                escapee(caller).await;
            }
            parent.kill().unwrap();
            parent.wait().unwrap();
            for mut caller in callers {
                assert_eq!(caller.hear().await, None);
            }
        }
    });
}

/// In a container a service is often process 1, to which the orphans of all others come.
#[test]
fn they_die_when_the_parent_is_process_1() {
    let _guard = support::guard(120);
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc"];
    let probe = Command::new(unshare[0]).args(&unshare[1..]).arg("true").output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no new namespace of processes can be made here");
        return;
    }
    for test in ["they_die_with_a_task_that_takes_too_long", "they_die_with_a_worker_that_crashes"] {
        let status = again(&unshare, test).status().unwrap();
        assert!(status.success(), "{test}: {status}");
    }
}

/// Many, and more while they are being killed.
#[test]
fn a_brood_dies() {
    fn breed(address: String) {
        loop {
            std::mem::forget(escape(address.clone()));
        }
    }
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let pool = pool(context, 2).await;
        let call = pool.apply(breed, (meeting.address(),)).submit();
        let mut callers = Vec::new();
        for _ in 0..50 {
            callers.push(meeting.accept().await);
        }
        call.abort();
        for caller in &mut callers {
            while caller.hear().await.is_some() {}
        }
        assert_eq!(pool.apply(|| 7, ()).await.unwrap(), 7);
        pool.terminate().await.unwrap();
    });
}

#[test]
fn a_storm_of_kills_leaves_nobody() {
    fn escape_and_wait(address: String) {
        let mut call = escape(address);
        call.say(std::process::id());
        call.hear();
    }
    run_each(120, async |context| {
        let mut random = Random::new();
        let meeting = Meeting::new();
        let pool = pool(context, 3).await;
        let mut callers = Vec::new();
        for _ in 0..40 {
            let mut call = pool.apply(escape_and_wait, (meeting.address(),)).submit();
            let mut caller = meeting.accept().await;
            let (escaped, worker) = escapee_and_worker(&mut caller).await;
            match random.below(4) {
                0 => call.abort(),
                1 => {
                    // Its session lives on without it.
                    kill_9(escaped);
                    caller.say("return").await;
                    (&mut call).await.unwrap();
                    continue;
                }
                2 => {
                    caller.say("return").await;
                    (&mut call).await.unwrap();
                }
                _ => {
                    kill_9(worker);
                    assert!(matches!((&mut call).await.unwrap_err(), TaskError::WorkerDied(_)));
                    assert!(!runs(escaped));
                }
            }
            callers.push(caller);
        }
        pool.close();
        pool.join().await.unwrap();
        for mut caller in callers {
            assert_eq!(caller.hear().await, None);
        }
    });
}
