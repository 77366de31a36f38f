//! The life of a process as its parent sees it, by every start method.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::{Pid, gettid};
use serde::{Deserialize, Serialize};
use support::process::{Call, Meeting, eventually, forever, methods, run, run_sync, runtime};
use tokio_multiprocess as mp;

// conformance: _TestProcess.test_current
#[test]
fn the_current_process_knows_itself() {
    run(async {
        let current = mp::current_process();
        assert!(current.is_alive());
        assert!(!current.daemon());
        assert!(!current.authkey().as_bytes().is_empty());
        assert_eq!(current.pid(), std::process::id() as i32);
        assert_eq!(current.exit_code(), None);
        assert_eq!(current.name(), "MainProcess");
        assert!(mp::parent_process().is_none());
        assert!(matches!(current.join().await, Err(mp::Error::JoinSelf)));
    });
}

// conformance: _TestProcess.test_cpu_count
#[test]
fn there_is_a_processor() {
    assert!(mp::cpu_count() >= 1);
    assert!((1..=mp::cpu_count()).contains(&mp::usable_cpu_count()));
}

// conformance: _TestProcess.test_daemon_argument
#[test]
fn a_process_is_a_daemon_as_its_creator_is_unless_told_otherwise() {
    fn default_flag() -> ExitCode {
        ExitCode::from(u8::from(mp::Process::without_target().is_daemon()))
    }
    run(async {
        assert!(!mp::Process::without_target().is_daemon());
        assert!(mp::Process::without_target().daemon(true).is_daemon());
        assert!(!mp::Process::without_target().daemon(false).is_daemon());
        for ctx in methods() {
            for daemon in [false, true] {
                let child = ctx.process(default_flag, ()).daemon(daemon).start().await.unwrap();
                assert_eq!(child.daemon(), daemon);
                assert_eq!(child.join().await.unwrap().code(), Some(i32::from(daemon)));
            }
        }
    });
}

#[derive(Serialize, Deserialize)]
struct Keywords {
    hello: i32,
    bye: f64,
}

// conformance: _TestProcess.test_process
#[test]
fn a_life() {
    async fn target(address: String, number: u8, keywords: Keywords) {
        let mut call = Call::to(&address);
        let current = mp::current_process();
        let Keywords { hello, bye } = keywords;
        call.say(format_args!("{number} {hello} {bye}"));
        call.say(format_args!("{} {} {}", current.name(), current.pid(), current.daemon()));
        let parent = mp::parent_process().unwrap();
        call.say(format_args!("{} {} {}", parent.name(), parent.pid(), parent.is_alive()));
        let key = current.authkey();
        call.say(format_args!("{:02x?}", key.as_bytes()));
        call.hear();
    }
    run(async {
        let meeting = Meeting::new();
        let current = mp::current_process();
        for ctx in methods() {
            let keywords = Keywords { hello: 23, bye: 2.54 };
            let builder =
                ctx.process(target, (meeting.address(), 1, keywords)).name("SomeProcess").daemon(true);
            assert_eq!(builder.get_authkey(), current.authkey());
            assert!(builder.is_daemon());
            assert!(mp::active_children().is_empty());

            let child = builder.start().await.unwrap();
            assert_eq!(child.exit_code(), None);
            assert!(child.is_alive());
            assert!(child.daemon());
            assert_eq!(mp::active_children(), std::slice::from_ref(&child));
            let me = std::process::id();
            let pid = child.pid();
            let shown = format!("<Process name='SomeProcess' pid={pid} parent={me} started daemon>");
            assert_eq!(format!("{child:?}"), shown);

            let mut caller = meeting.accept().await;
            assert_eq!(caller.hear().await.unwrap(), "1 23 2.54");
            assert_eq!(caller.hear().await.unwrap(), format!("SomeProcess {pid} true"));
            assert_eq!(caller.hear().await.unwrap(), format!("MainProcess {me} true"));
            let key = current.authkey();
            assert_eq!(caller.hear().await.unwrap(), format!("{:02x?}", key.as_bytes()));
            assert_eq!(*child.authkey(), key);
            drop(caller);

            assert!(child.join().await.unwrap().success());
            assert_eq!(child.exit_code(), Some(0));
            assert!(!child.is_alive());
            assert!(mp::active_children().is_empty());
            let shown =
                format!("<Process name='SomeProcess' pid={pid} parent={me} stopped exitcode=0 daemon>");
            assert_eq!(format!("{child:?}"), shown);
        }
    });
}

#[test]
fn a_key_and_a_name_can_be_chosen() {
    fn key() -> Vec<u8> {
        mp::current_process().authkey().as_bytes().to_vec()
    }
    async fn rename() -> (String, Vec<u8>) {
        mp::current_process().set_name("renamed");
        mp::current_process().set_authkey(mp::AuthKey::new("of its own"));
        let grandchild = mp::spawn(key, ()).await.unwrap();
        let name = grandchild.process().name().to_owned();
        (name, grandchild.await.unwrap())
    }
    run(async {
        for ctx in support::process::clean_methods() {
            let handle = ctx.spawn(rename, ()).await.unwrap();
            let name = handle.process().name().to_owned();
            let (grandchild, key) = handle.await.unwrap();
            // A default name is the path of numbers that leads to the process, whatever it is called.
            assert_eq!(grandchild, format!("{name}:1"));
            assert_eq!(key, b"of its own");
            let child = ctx.process(|| (), ()).authkey(mp::AuthKey::new("chosen")).start().await.unwrap();
            assert_eq!(child.authkey().as_bytes(), b"chosen");
            child.join().await.unwrap();
        }
    });
}

// conformance: _TestProcess.test_process_mainthread_native_id
#[test]
fn the_childs_thread_is_not_the_parents() {
    run(async {
        for ctx in methods() {
            let theirs = ctx.spawn(|| gettid().as_raw(), ()).await.unwrap().await.unwrap();
            assert!(!support::process::threads().contains_key(&theirs));
            assert_ne!(theirs, gettid().as_raw());
        }
    });
}

async fn ended_by(end: fn(&mp::Process) -> mp::Result<()>, code: i32) {
    for ctx in methods() {
        let child = ctx.process(forever, ()).daemon(true).start().await.unwrap();
        assert!(child.is_alive());
        assert_eq!(mp::active_children(), std::slice::from_ref(&child));
        assert_eq!(child.exit_code(), None);
        assert_eq!(child.join_timeout(Duration::ZERO).await.unwrap(), None);
        assert_eq!(child.join_timeout(Duration::from_millis(1)).await.unwrap(), None);
        assert!(child.is_alive());

        end(&child).unwrap();
        let status = child.join().await.unwrap();
        assert_eq!(status.exit_code(), code);
        assert_eq!(status.signal(), Some(-code));
        assert_eq!((status.code(), status.success()), (None, false));
        assert!(!child.is_alive());
        assert!(mp::active_children().is_empty());
        assert_eq!(child.join().await.unwrap(), status);
        // Of a process that has ended nobody complains.
        end(&child).unwrap();
        let name = Signal::try_from(-code).unwrap();
        assert!(format!("{child:?}").ends_with(&format!("stopped exitcode=-{name} daemon>")), "{child:?}");
    }
}

// conformance: _TestProcess.test_terminate
#[test]
fn terminated() {
    run(ended_by(mp::Process::terminate, -15));
}

// conformance: _TestProcess.test_kill
#[test]
fn killed() {
    run(ended_by(mp::Process::kill, -9));
}

#[test]
fn interrupted() {
    run(ended_by(mp::Process::interrupt, -2));
}

// conformance: _TestProcess.test_active_children
#[test]
fn active_children_are_those_that_run() {
    run(async {
        let meeting = Meeting::new();
        for ctx in methods() {
            let target = |address: String| drop(Call::to(&address).hear());
            let builder = ctx.process(target, (meeting.address(),));
            assert!(mp::active_children().is_empty());
            let child = builder.start().await.unwrap();
            assert_eq!(mp::active_children(), std::slice::from_ref(&child));
            // A handle from the list is as good as the first.
            let listed = mp::active_children().remove(0);
            let first_dropped = child.pid();
            drop(child);
            assert_eq!(listed.pid(), first_dropped);
            drop(meeting.accept().await);
            assert!(listed.join().await.unwrap().success());
            assert!(mp::active_children().is_empty());
        }
    });
}

/// Says the path of its id, then has two children do so, one after the other.
async fn recurse(address: String, path: Vec<u8>, vouched: bool) {
    Call::to(&address).say(format_args!("{path:?}"));
    if path.len() < 2 {
        for number in 0..2 {
            let mut path = path.clone();
            path.push(number);
            // SAFETY: no other thread of this child takes locks.
            let vouch = || unsafe { mp::Context::fork_with_threads() };
            let ctx = if vouched { vouch() } else { mp::get_context(None) };
            let child = ctx.process(recurse, (address.clone(), path, vouched)).start().await.unwrap();
            assert!(child.join().await.unwrap().success());
        }
    }
}

// conformance: _TestProcess.test_recursion
#[test]
fn children_have_children() {
    run(async {
        let expected = ["[]", "[0]", "[0, 0]", "[0, 1]", "[1]", "[1, 0]", "[1, 1]"];
        for ctx in methods() {
            // A child's default context is that of its own start; in a forked one nothing has to
            // be vouched for, as it has no threads but this crate's.
            for vouched in [false, ctx.start_method() == mp::StartMethod::Fork] {
                let meeting = Meeting::new();
                let root =
                    ctx.process(recurse, (meeting.address(), Vec::new(), vouched)).start().await.unwrap();
                for path in expected {
                    assert_eq!(meeting.word().await, path);
                }
                assert_eq!(root.join().await.unwrap().code(), Some(0));
            }
        }
    });
}

// conformance: _TestProcess.test_sentinel
#[test]
fn a_sentinel_is_ready_once_the_process_has_ended() {
    run(async {
        let meeting = Meeting::new();
        for ctx in methods() {
            let child = ctx.process(|address: String| drop(Call::to(&address).hear()), (meeting.address(),));
            let child = child.start().await.unwrap();
            let sentinel = child.sentinel().unwrap();
            assert!(!sentinel.is_ready());
            drop(meeting.accept().await);
            child.join().await.unwrap();
            assert!(sentinel.is_ready());
            sentinel.ready().await.unwrap();
            child.close().unwrap();
            assert!(matches!(child.sentinel(), Err(mp::Error::Closed(_))));
            drop(child);
            assert!(sentinel.is_ready());
        }
    });
}

// conformance: _TestProcess.test_many_processes
#[test]
fn many_at_a_time() {
    run(async {
        for ctx in methods() {
            let number = if ctx.start_method() == mp::StartMethod::Spawn { 5 } else { 100 };
            let starts = (0..number).map(|_| ctx.process(|| (), ()).start());
            for child in futures::future::join_all(starts).await {
                assert_eq!(child.unwrap().join().await.unwrap().code(), Some(0));
            }
            let starts = (0..number).map(|_| async {
                let child = ctx.process(forever, ()).start().await.unwrap();
                child.terminate().unwrap();
                child
            });
            for child in futures::future::join_all(starts).await {
                assert_eq!(child.join().await.unwrap().exit_code(), -15);
            }
        }
    });
}

/// A message that counts how many of it are there.
struct Counted;
static COUNTED: AtomicUsize = AtomicUsize::new(0);

impl Counted {
    fn new() -> Self {
        COUNTED.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COUNTED.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Serialize for Counted {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer).map(|()| Self::new())
    }
}

// conformance: _TestProcess.test_lose_target_ref
#[test]
fn the_parent_keeps_nothing_of_the_arguments() {
    type Itself = mp::Func<(u8,), u8>;
    fn five(_: u8) -> u8 {
        5
    }
    async fn target(_counted: Counted, function: Itself) -> ExitCode {
        ExitCode::from(function.call((0,)).await.unwrap())
    }
    run(async {
        for ctx in methods() {
            let child = ctx.process(target, (Counted::new(), Itself::new(five))).start().await.unwrap();
            assert_eq!(COUNTED.load(Ordering::SeqCst), 0);
            assert_eq!(child.join().await.unwrap().code(), Some(5));
        }
    });
}

// conformance: _TestProcess.test_parent_process
#[test]
fn a_child_outlives_its_parent_and_knows_of_its_end() {
    async fn grandchild(address: String) {
        let parent = mp::parent_process().unwrap();
        let mut call = Call::to(&address);
        call.say(format_args!("{} {} {}", std::process::id(), parent.name(), parent.is_alive()));
        call.hear();
        let in_time = parent.join_timeout(Duration::from_secs(60)).await.unwrap();
        call.say(format_args!("{in_time} {}", parent.is_alive()));
        parent.join().await.unwrap();
        assert!(parent.sentinel().unwrap().is_ready());
        call.say("joined");
        call.hear();
    }
    async fn middle(address: String) {
        let child = mp::Process::builder(grandchild, (address,)).start().await.unwrap();
        child.join().await.unwrap();
    }
    run(async {
        let meeting = Meeting::new();
        for ctx in methods() {
            for end in [mp::Process::terminate, mp::Process::kill] {
                let child = ctx.process(middle, (meeting.address(),)).name("middle").start().await.unwrap();
                let mut caller = meeting.accept().await;
                let hello = caller.hear().await.unwrap();
                let (pid, hello) = hello.split_once(' ').unwrap();
                assert_eq!(hello, "middle true");
                end(&child).unwrap();
                child.join().await.unwrap();
                caller.say("it is gone").await;
                assert_eq!(caller.hear().await.as_deref(), Some("true false"), "{ctx:?}");
                assert_eq!(caller.hear().await.as_deref(), Some("joined"));
                drop(caller);
                eventually("the orphan ends", || !support::process::runs(pid.parse().unwrap()));
            }
        }
    });
}

#[test]
fn every_end_is_told_as_it_was() {
    fn overflow(depth: u64) -> u64 {
        let frame = std::hint::black_box([depth; 64]);
        if depth == u64::MAX {
            0
        } else {
            overflow(std::hint::black_box(depth + 1)) + std::hint::black_box(frame)[0]
        }
    }
    run(async {
        no_core_dumps();
        for ctx in methods() {
            let end =
                async |builder: mp::ProcessBuilder| builder.start().await.unwrap().join().await.unwrap();
            let code = async |builder| end(builder).await.exit_code();
            assert_eq!(code(ctx.process(|| (), ())).await, 0);
            assert_eq!(code(ctx.process(|| ExitCode::from(7), ())).await, 7);
            assert_eq!(code(ctx.process(|| async { ExitCode::from(8) }, ())).await, 8);
            assert_eq!(code(ctx.process(|| Ok::<(), String>(()), ())).await, 0);
            assert_eq!(code(ctx.process(|| Err::<(), _>(quiet("an error")), ())).await, 1);
            assert_eq!(code(ctx.process(|| async { Err::<(), _>(quiet("an error")) }, ())).await, 1);
            assert_eq!(
                code(ctx.process(
                    || {
                        quiet("");
                        panic!("on purpose")
                    },
                    ()
                ))
                .await,
                1
            );
            assert_eq!(code(ctx.process(|| std::process::exit(3), ())).await, 3);
            assert_eq!(code(ctx.process(|| -> () { std::process::abort() }, ())).await, -6);
            assert_eq!(code(ctx.process(|| raise(Signal::SIGKILL).unwrap(), ())).await, -9);
            assert_eq!(code(ctx.process(|| raise(Signal::SIGTERM).unwrap(), ())).await, -15);
            assert_eq!(code(ctx.process(|| raise(Signal::SIGSEGV).unwrap(), ())).await, -11);
            let real_time = || {
                // SAFETY: raises a signal whose disposition is the default.
                unsafe { libc::raise(libc::SIGRTMIN() + 3) };
            };
            assert_eq!(code(ctx.process(real_time, ())).await, -(libc::SIGRTMIN() + 3));

            let wild = || {
                let pointer = std::ptr::without_provenance::<u8>(std::hint::black_box(0x1000));
                // SAFETY: none: the fault is what this test is about.
                std::hint::black_box(unsafe { pointer.read_volatile() });
            };
            let status = end(ctx.process(wild, ())).await;
            assert_eq!((status.exit_code(), status.stack_overflow()), (-11, false));
            assert_eq!(status.to_string(), "SIGSEGV at 0x1000");

            for on_a_thread in [false, true] {
                let overflow = |on_a_thread: bool| {
                    quiet("");
                    if on_a_thread {
                        std::thread::spawn(|| overflow(0)).join().map(drop).unwrap();
                    } else {
                        overflow(0);
                    }
                };
                let status = end(ctx.process(overflow, (on_a_thread,))).await;
                assert!(!status.success() && status.signal().is_some(), "{status}");
                if !on_a_thread {
                    assert!(status.stack_overflow(), "{ctx:?}");
                    let told = status.to_string();
                    assert!(
                        told.starts_with("SIGSEGV at 0x") && told.ends_with("(stack overflow)"),
                        "{told}"
                    );
                }
            }
        }
    });
}

/// For crashes on purpose: nothing on the terminal. Gives its argument back.
fn quiet<T>(value: T) -> T {
    let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
    nix::unistd::dup2_stderr(&null).unwrap();
    value
}

fn no_core_dumps() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let hard = getrlimit(Resource::RLIMIT_CORE).unwrap().1;
    setrlimit(Resource::RLIMIT_CORE, 0, hard).unwrap();
}

// conformance: _TestSubclassingProcess.test_sys_exit
#[test]
fn the_reason_for_an_exit_becomes_a_code() {
    run(async {
        for ctx in methods() {
            let code = async |builder: mp::ProcessBuilder| {
                builder.start().await.unwrap().join().await.unwrap().code()
            };
            assert_eq!(code(ctx.process(|| -> () { mp::exit(true) }, ())).await, Some(1));
            assert_eq!(code(ctx.process(|| -> () { mp::exit(false) }, ())).await, Some(0));
            assert_eq!(code(ctx.process(|| -> () { mp::exit(8) }, ())).await, Some(8));
            assert_eq!(code(ctx.process(|| -> () { mp::exit(9u8) }, ())).await, Some(9));
            assert_eq!(code(ctx.process(|| -> () { mp::exit(-1) }, ())).await, Some(255));
            assert_eq!(code(ctx.process(|| -> () { mp::exit(None::<i32>) }, ())).await, Some(0));
            assert_eq!(code(ctx.process(|| -> () { mp::exit(()) }, ())).await, Some(0));
            assert_eq!(code(ctx.process(|| -> () { mp::exit(ExitCode::from(4)) }, ())).await, Some(4));
            assert_eq!(code(ctx.process(|| -> () { mp::exit(quiet("a text")) }, ())).await, Some(1));
            assert_eq!(
                code(ctx.process(|| -> () { mp::exit(quiet(String::from("a text"))) }, ())).await,
                Some(1)
            );
            // From any thread, and from inside of a runtime.
            let thread = || std::thread::spawn(|| mp::exit(5)).join().unwrap();
            assert_eq!(code(ctx.process(thread, ())).await, Some(5));
            assert_eq!(code(ctx.process(|| async { mp::exit(6) }, ())).await, Some(6));
        }
    });
}

#[derive(Serialize, Deserialize)]
struct Uppercase {
    address: String,
    lines: usize,
}

#[mp::async_trait]
impl mp::Run for Uppercase {
    async fn run(self) -> Result<(), mp::Failure> {
        let mut call = Call::to(&self.address);
        let mut answered = 0;
        while let Some(line) = call.hear() {
            call.say(line.to_uppercase());
            answered += 1;
        }
        if answered == self.lines { Ok(()) } else { Err(mp::Failure::msg(quiet("too few"))) }
    }
}

// conformance: _TestSubclassingProcess.test_subclassing
#[test]
fn a_value_runs_as_a_process() {
    run(async {
        let meeting = Meeting::new();
        for ctx in methods() {
            for (lines, code) in [(2, 0), (3, 1)] {
                let value = Uppercase { address: meeting.address(), lines };
                let child =
                    mp::Process::from_run(value).context(ctx.clone()).daemon(true).start().await.unwrap();
                let mut caller = meeting.accept().await;
                for (line, answer) in [("hello", "HELLO"), ("hello again", "HELLO AGAIN")] {
                    caller.say(line).await;
                    assert_eq!(caller.hear().await.unwrap(), answer);
                }
                drop(caller);
                assert_eq!(child.join().await.unwrap().code(), Some(code));
            }
        }
    });
}

#[test]
fn a_handle_is_closed_after_the_end_and_not_before() {
    run(async {
        for ctx in methods() {
            let child = ctx.process(forever, ()).start().await.unwrap();
            let other = child.clone();
            let error = child.close().unwrap_err();
            assert!(error.is_still_running(), "{error}");
            assert!(matches!(error, mp::Error::StillRunning(pid) if pid == child.pid()));
            child.kill().unwrap();
            child.join().await.unwrap();
            child.close().unwrap();
            child.close().unwrap();
            for handle in [child, other] {
                assert!(handle.join().await.unwrap_err().is_closed());
                assert!(handle.join_timeout(Duration::ZERO).await.unwrap_err().is_closed());
                assert!(handle.terminate().unwrap_err().is_closed());
                assert!(handle.kill().unwrap_err().is_closed());
                assert!(handle.interrupt().unwrap_err().is_closed());
                assert!(handle.sentinel().unwrap_err().is_closed());
                assert_eq!(handle.exit_code(), None);
                assert!(format!("{handle:?}").ends_with(" closed>"), "{handle:?}");
            }
        }
    });
}

#[test]
fn a_daemon_has_no_children() {
    async fn target(address: String) {
        let told = |error| matches!(error, Err(mp::Error::DaemonicChild));
        let mut told = vec![
            told(mp::Process::without_target().start().await.map(drop)),
            told(mp::Process::without_target().daemon(true).start().await.map(drop)),
            told(mp::spawn(|| (), ()).await.map(drop)),
        ];
        for ctx in methods() {
            let error = ctx.process(forever, ()).start().await.unwrap_err();
            told.push(error.to_string() == "daemonic processes are not allowed to have children");
        }
        Call::to(&address).say(format_args!("{}", told.iter().all(|told| *told)));
    }
    run(async {
        let meeting = Meeting::new();
        for ctx in methods() {
            let child = ctx.process(target, (meeting.address(),)).daemon(true).start().await.unwrap();
            assert_eq!(meeting.word().await, "true");
            assert_eq!(child.join().await.unwrap().code(), Some(0));
        }
    });
}

#[test]
fn only_the_starter_may_wait() {
    static SIBLING: Mutex<Option<mp::Process>> = Mutex::new(None);
    async fn target() -> ExitCode {
        let sibling = SIBLING.lock().unwrap().clone().unwrap();
        let told = [
            matches!(sibling.join().await, Err(mp::Error::NotChild)),
            matches!(sibling.join_timeout(Duration::ZERO).await, Err(mp::Error::NotChild)),
            matches!(sibling.kill(), Err(mp::Error::NotChild)),
            matches!(sibling.terminate(), Err(mp::Error::NotChild)),
            // Nothing is known of it here.
            sibling.exit_code().is_none(),
            mp::active_children().is_empty(),
        ];
        ExitCode::from(told.iter().filter(|told| !**told).count() as u8)
    }
    run(async {
        let fork = methods().remove(2);
        let sibling = fork.process(forever, ()).start().await.unwrap();
        *SIBLING.lock().unwrap() = Some(sibling.clone());
        let child = fork.process(target, ()).start().await.unwrap();
        assert_eq!(child.join().await.unwrap().code(), Some(0));
        assert!(sibling.is_alive());
        sibling.kill().unwrap();
        sibling.join().await.unwrap();
        *SIBLING.lock().unwrap() = None;
    });
}

#[test]
fn a_dropped_process_goes_on_and_is_reaped() {
    run_sync(|| {
        for ctx in methods() {
            let (pid, mut caller) = runtime().block_on(async {
                let meeting = Meeting::new();
                let target = |address: String| drop(Call::to(&address).hear());
                let child = ctx.process(target, (meeting.address(),)).start().await.unwrap();
                let pid = child.pid();
                drop(child);
                let caller = meeting.accept().await;
                assert_eq!(mp::active_children().len(), 1);
                (pid, Some(caller))
            });
            assert!(support::process::runs(pid));
            let entered = runtime();
            let _inside = entered.enter();
            drop(caller.take());
            // Without any runtime at work, and without anybody asking.
            eventually("it is reaped", || support::process::Stat::of(pid).is_none());
        }
    });
}

// conformance: _TestPollEintr.test_poll_eintr
#[test]
fn a_signal_does_not_end_a_join() {
    run(async {
        let meeting = Meeting::new();
        let mut handled =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined1()).unwrap();
        for ctx in methods() {
            let target = |address: String, parent: i32| {
                let mut call = Call::to(&address);
                for _ in 0..10 {
                    kill(Pid::from_raw(parent), Signal::SIGUSR1).unwrap();
                }
                call.hear();
            };
            let args = (meeting.address(), std::process::id() as i32);
            let child = ctx.process(target, args).start().await.unwrap();
            let caller = meeting.accept().await;
            let mut joining = Box::pin(child.join());
            tokio::select! {
                biased;
                status = &mut joining => panic!("it still runs: {status:?}"),
                handled = handled.recv() => handled.unwrap(),
            }
            drop(caller);
            assert_eq!(joining.await.unwrap().code(), Some(0));
        }
    });
}

#[test]
fn a_child_does_not_share_its_parents_signals() {
    // The parent handles SIGTERM by Tokio and blocks it: its child has neither from it.
    run_sync(|| {
        let blocked = nix::sys::signal::SigSet::from(Signal::SIGTERM);
        blocked.thread_block().unwrap();
        let runtime = runtime();
        runtime.block_on(async {
            let kind = tokio::signal::unix::SignalKind::window_change();
            let mut handled = tokio::signal::unix::signal(kind).unwrap();
            for ctx in methods() {
                let child = ctx.process(forever, ()).start().await.unwrap();
                kill(Pid::from_raw(child.pid()), Signal::SIGWINCH).unwrap();
                child.terminate().unwrap();
                assert_eq!(child.join().await.unwrap().exit_code(), -15);
                // The parent's driver lives on in the parent alone.
                raise(Signal::SIGWINCH).unwrap();
                handled.recv().await.unwrap();
            }
        });
        blocked.thread_unblock().unwrap();
    });
}
