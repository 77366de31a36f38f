//! The fork server: what it preloads, what its children have of it, and its own death.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::os::fd::{AsRawFd, IntoRawFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp};
use support::process::{Call, Meeting, Stat, eventually, forever, run};
use tokio_multiprocess as mp;
use tokio_multiprocess::OnPreloadError::{self, Fail, Ignore, Warn};

fn server() -> mp::Context {
    mp::Context::new(mp::StartMethod::ForkServer)
}

fn signal_server(signal: Signal) -> i32 {
    let pid = support::process::fork_server().unwrap();
    kill(Pid::from_raw(pid), signal).unwrap();
    pid
}

/// If there is one.
fn kill_server() {
    if let Some(pid) = support::process::fork_server() {
        // It may be on its way out already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        eventually("the fork server ends", || !support::process::runs(pid));
    }
}

/// A new server with these functions; at its end, one with none.
struct Preloaded;

fn preload(functions: &[mp::Func<(), ()>], on_error: OnPreloadError) -> Preloaded {
    kill_server();
    mp::set_forkserver_preload(functions.iter().copied(), on_error);
    Preloaded
}

impl Drop for Preloaded {
    fn drop(&mut self) {
        mp::set_forkserver_preload([], Ignore);
        kill_server();
    }
}

static LOADED: AtomicU32 = AtomicU32::new(0);
static LOADED_BY: AtomicU32 = AtomicU32::new(0);

fn load() {
    LOADED.fetch_add(1, Ordering::SeqCst);
    LOADED_BY.store(std::process::id(), Ordering::SeqCst);
}

async fn load_async() {
    tokio::task::yield_now().await;
    LOADED.fetch_add(10, Ordering::SeqCst);
}

fn load_badly() {
    quiet();
    panic!("cannot be loaded");
}

fn load_fallibly() -> Result<(), mp::Failure> {
    Err(mp::Failure::msg("no such model"))
}

/// Nothing on the terminal, as this is on purpose.
fn quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn loaded() -> (u32, u32) {
    (LOADED.load(Ordering::SeqCst), LOADED_BY.load(Ordering::SeqCst))
}

async fn loaded_in_child() -> (u32, u32) {
    server().spawn(loaded, ()).await.unwrap().await.unwrap()
}

// conformance: TestStartMethod.test_preload_resources
#[test]
fn what_is_preloaded_is_loaded_once_and_seen_by_every_child() {
    run(async {
        let _preloaded = preload(&[mp::Func::new(load), mp::Func::new(load_async)], Fail);
        let first = loaded_in_child().await;
        assert_eq!(first.0, 11);
        assert_eq!(first.1, support::process::fork_server().unwrap() as u32);
        for _ in 0..3 {
            assert_eq!(loaded_in_child().await, first);
        }
        // It runs in the server only.
        assert_eq!(loaded(), (0, 0));
        assert_eq!(
            mp::Context::new(mp::StartMethod::Spawn).spawn(loaded, ()).await.unwrap().await.unwrap(),
            (0, 0)
        );
        // A server that replaces it loads again.
        kill_server();
        let second = loaded_in_child().await;
        assert_eq!(second.0, 11);
        assert_ne!(second.1, first.1);
    });
}

#[test]
fn a_preload_that_fails_is_told_or_not_as_was_asked() {
    run(async {
        let functions = [mp::Func::new(load_badly), mp::Func::new(load_fallibly), mp::Func::new(load)];
        for on_error in [Ignore, Warn] {
            let _preloaded = preload(&functions, on_error);
            assert_eq!(loaded_in_child().await.0, 1, "the next one is loaded all the same");
        }
        for (number, why) in [(0, "it panicked"), (1, "no such model")] {
            let _preloaded = preload(&functions[number..], Fail);
            let error = server().process(forever, ()).start().await.unwrap_err();
            assert!(matches!(error, mp::Error::Start(mp::StartError::ForkServer(_))), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(functions[number].name()) && text.contains(why), "{text}");
            eventually("the server has ended", || support::process::fork_server().is_none());
        }
        // With nothing more to fail, the next start works.
        assert_eq!(loaded_in_child().await.0, 0);
    });
}

#[test]
fn a_preload_that_leaves_a_thread_or_dies_is_an_error() {
    run(async {
        let thread = mp::Func::new(|| drop(std::thread::spawn(forever)));
        let death = mp::Func::new(|| -> () { std::process::exit(3) });
        for on_error in [Ignore, Fail] {
            let _preloaded = preload(&[thread], on_error);
            let error = server().process(forever, ()).start().await.unwrap_err();
            assert!(error.to_string().contains("2 threads run after preloading"), "{error}");
            let _preloaded = {
                mp::set_forkserver_preload([death], on_error);
                Preloaded
            };
            let error = server().process(forever, ()).start().await.unwrap_err();
            assert!(matches!(error, mp::Error::Start(mp::StartError::ForkServer(_))), "{error:?}");
            assert!(error.to_string().contains("died"), "{error}");
            drop(_preloaded);
            // For the next round.
            server().process(|| (), ()).start().await.unwrap().join().await.unwrap();
        }
    });
}

#[test]
fn what_is_opened_while_preloading_is_open_in_the_children() {
    static FD: AtomicU32 = AtomicU32::new(0);
    fn open() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        FD.store(file.into_raw_fd() as u32, Ordering::SeqCst);
    }
    run(async {
        let _preloaded = preload(&[mp::Func::new(open)], Fail);
        let target = || support::process::descriptors().remove(&(FD.load(Ordering::SeqCst) as i32));
        let file = server().spawn(target, ()).await.unwrap().await.unwrap();
        assert_eq!(file, Some(std::env::current_exe().unwrap().to_str().unwrap().to_owned()));
    });
}

/// Waits to be told its exit code.
fn told(address: String) -> ExitCode {
    let line = Call::to(&address).hear();
    ExitCode::from(line.unwrap().parse::<u8>().unwrap())
}

async fn next_start_works(meeting: &Meeting) {
    let child = server().process(told, (meeting.address(),)).start().await.unwrap();
    meeting.accept().await.say("4").await;
    assert_eq!(child.join().await.unwrap().code(), Some(4));
}

// conformance: _TestProcess.test_forkserver_sigint
#[test]
fn sigint_does_the_server_no_harm() {
    run(async {
        let meeting = Meeting::new();
        let earlier = server().process(told, (meeting.address(),)).start().await.unwrap();
        let mut caller = meeting.accept().await;
        let before = signal_server(Signal::SIGINT);
        next_start_works(&meeting).await;
        assert_eq!(support::process::fork_server(), Some(before));
        assert!(earlier.is_alive());
        // A child has the default back.
        let child = server().process(forever, ()).start().await.unwrap();
        child.interrupt().unwrap();
        assert_eq!(child.join().await.unwrap().exit_code(), -2);
        caller.say("3").await;
        assert_eq!(earlier.join().await.unwrap().code(), Some(3));
    });
}

// conformance: _TestProcess.test_forkserver_sigkill
#[test]
fn a_killed_server_is_replaced_and_its_children_keep_their_exit_codes() {
    run(async {
        let meeting = Meeting::new();
        let earlier = server().process(told, (meeting.address(),)).start().await.unwrap();
        let later = server().process(told, (meeting.address(),)).start().await.unwrap();
        let mut callers = [meeting.accept().await, meeting.accept().await];
        let before = support::process::fork_server();
        kill_server();
        assert!(earlier.is_alive() && later.is_alive());
        callers[0].say("3").await;
        next_start_works(&meeting).await;
        assert_ne!(support::process::fork_server(), before);
        callers[1].say("3").await;
        for child in [earlier, later] {
            assert_eq!(child.join().await.unwrap().code(), Some(3));
        }
    });
}

#[test]
fn a_start_is_not_lost_to_a_server_that_dies_meanwhile() {
    run(async {
        for _ in 0..30 {
            // Not waited for: it dies before, while or after it is asked.
            signal_server(Signal::SIGKILL);
            let child = server().process(|| ExitCode::from(6), ()).start().await.unwrap();
            assert_eq!(child.join().await.unwrap().code(), Some(6));
        }
    });
}

#[test]
fn many_first_starts_make_one_server() {
    run(async {
        kill_server();
        let parent = || std::os::unix::process::parent_id();
        let starts = futures::future::join_all(
            (0..20).map(|_| async { server().spawn(parent, ()).await.unwrap().await.unwrap() }),
        );
        // Its children are this process's: the server may die, and they are still waited for.
        assert!(starts.await.iter().all(|parent| *parent == std::process::id()));
        let named = |pid: &i32| Stat::of(*pid).is_some_and(|stat| stat.name == "ForkServer");
        let all = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let me = std::process::id() as i32;
        let servers = all
            .filter(named)
            .filter(|pid| Stat::of(*pid).is_some_and(|stat| stat.parent == me && stat.state != 'Z'));
        assert_eq!(servers.count(), 1);
        assert!(!mp::active_children().iter().any(|child| child.name() == "ForkServer"));
    });
}

#[test]
fn a_child_belongs_to_its_parents_group_and_not_to_the_servers() {
    run(async {
        let ours = getpgrp().as_raw();
        let group = || getpgrp().as_raw();
        for ctx in support::process::methods() {
            assert_eq!(ctx.spawn(group, ()).await.unwrap().await.unwrap(), ours, "{ctx:?}");
            let daemon = ctx.process(forever, ()).daemon(true).start().await.unwrap();
            assert_eq!(Stat::of(daemon.pid()).unwrap().group, daemon.pid(), "{ctx:?}");
            daemon.kill().unwrap();
            daemon.join().await.unwrap();
        }
    });
}

#[test]
fn a_child_has_nothing_of_its_siblings() {
    run(async {
        let meeting = Meeting::new();
        let sibling = server().process(told, (meeting.address(),)).start().await.unwrap();
        let mut caller = meeting.accept().await;
        let blob = mp::Blob::new("of the sibling").unwrap();
        let other = server().process(
            |_: mp::Blob, address: String| drop(Call::to(&address).hear()),
            (blob, meeting.address()),
        );
        let other = other.start().await.unwrap();
        let other_caller = meeting.accept().await;
        let links = || support::process::descriptors().into_values().collect::<Vec<_>>();
        let links = server().spawn(links, ()).await.unwrap().await.unwrap();
        assert!(!links.iter().any(|link| link.contains("memfd")), "{links:?}");
        let own = support::process::descriptors();
        let listener = own
            .values()
            .filter(|link| link.starts_with("socket:"))
            .filter(|link| links.contains(link))
            .count();
        assert_eq!(listener, 0, "{links:?}");
        drop(other_caller);
        other.join().await.unwrap();
        caller.say("0").await;
        sibling.join().await.unwrap();
        assert!(std::io::stdin().as_raw_fd() == 0);
    });
}
