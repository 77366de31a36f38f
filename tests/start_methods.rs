//! Start methods and contexts, and what a child of each has and has not from its parent.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::process::{Call, Meeting, clean_methods, forever, methods, run, run_sync, runtime};
use tokio_multiprocess as mp;
use tokio_multiprocess::StartMethod::{self, Fork, ForkServer, Spawn};

/// What the child's default context is, and that of what it makes.
fn method_here() -> (Option<StartMethod>, StartMethod) {
    (mp::get_start_method(true), mp::get_context(None).start_method())
}

// conformance: TestStartMethod.test_context
#[test]
fn a_context_keeps_its_method() {
    run(async {
        for ctx in methods() {
            let method = ctx.start_method();
            assert_eq!(ctx.start_method_if_set(), Some(method));
            assert_eq!(ctx.get_context(None), ctx);
            for other in [None, Some(Spawn), Some(method)] {
                for force in [false, true] {
                    let error = ctx.set_start_method(other, force).unwrap_err();
                    assert!(error.is_already_set(), "{error}");
                }
            }
            assert_eq!(ctx.start_method(), method);
            assert_eq!(ctx.spawn(method_here, ()).await.unwrap().await.unwrap(), (Some(method), method));
        }
    });
}

// conformance: TestStartMethod.test_set_get
#[test]
fn the_default_method_is_fixed_by_use_and_changed_by_force() {
    run(async {
        let all = mp::get_all_start_methods();
        assert_eq!(all, [Spawn, ForkServer, Fork]);
        mp::set_start_method(None, true).unwrap();
        assert_eq!(mp::get_start_method(true), None);
        assert_eq!(mp::get_context(None).start_method_if_set(), None);
        // Fixed by its first use, to the first in the list.
        assert_eq!(mp::get_start_method(false), Some(all[0]));
        assert_eq!(mp::get_start_method(true), Some(all[0]));
        assert!(mp::set_start_method(ForkServer, false).unwrap_err().is_already_set());
        for &method in all {
            mp::set_start_method(method, true).unwrap();
            assert_eq!(mp::get_start_method(false), Some(method));
            assert_eq!(mp::get_context(None).start_method(), method);
            assert!(mp::set_start_method(method, false).unwrap_err().is_already_set());
            if method != Fork {
                assert_eq!(mp::spawn(method_here, ()).await.unwrap().await.unwrap(), (Some(method), method));
            }
        }
        mp::set_start_method(None, true).unwrap();
        mp::set_start_method(ForkServer, false).unwrap();
        mp::set_start_method(None, true).unwrap();
    });
}

#[test]
fn a_method_has_a_name() {
    for (method, name) in [(Spawn, "spawn"), (ForkServer, "forkserver"), (Fork, "fork")] {
        assert_eq!(method.to_string(), name);
        assert_eq!(name.parse::<StartMethod>().unwrap(), method);
        assert_eq!(format!("{method:>12}").len(), 12);
    }
    let error = "vfork".parse::<StartMethod>().unwrap_err();
    assert!(matches!(error, mp::Error::InvalidArgument(_)), "{error:?}");
}

// conformance: TestStartMethod.test_nested_startmethod
#[test]
fn what_a_child_was_given_it_can_pass_on() {
    async fn child(address: String, blob: mp::Blob) -> ExitCode {
        let grandchild =
            mp::Process::builder(grandchild, (address.clone(), blob.clone())).start().await.unwrap();
        let ended = grandchild.join().await.unwrap();
        Call::to(&address).say(format_args!("child {}", blob.len()));
        ExitCode::from(ended.code().unwrap() as u8)
    }
    fn grandchild(address: String, blob: mp::Blob) {
        Call::to(&address).say(format_args!("grandchild {}", blob.len()));
    }
    run(async {
        let meeting = Meeting::new();
        for ctx in methods() {
            let args = (meeting.address(), mp::Blob::new("12345").unwrap());
            let child = ctx.process(child, args).start().await.unwrap();
            assert_eq!(meeting.word().await, "grandchild 5");
            assert_eq!(meeting.word().await, "child 5");
            assert_eq!(child.join().await.unwrap().code(), Some(0));
        }
    });
}

/// The descriptors of the process that runs it, and what they lead to.
fn open_here() -> BTreeMap<i32, String> {
    support::process::descriptors()
}

// conformance: _TestProcess.test_child_fd_inflation
#[test]
fn later_children_have_no_more_descriptors_than_earlier_ones() {
    fn target(address: String) {
        let open = open_here().len();
        let mut call = Call::to(&address);
        call.say(open);
        call.hear();
    }
    run(async {
        let meeting = Meeting::new();
        for ctx in clean_methods() {
            let (mut children, mut callers, mut counts) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..5 {
                children.push(ctx.process(target, (meeting.address(),)).start().await.unwrap());
                let mut caller = meeting.accept().await;
                counts.push(caller.hear().await.unwrap());
                callers.push(caller);
            }
            assert!(counts.iter().all(|count| *count == counts[0]), "{ctx:?}: {counts:?}");
            drop(callers);
            for child in children {
                assert_eq!(child.join().await.unwrap().code(), Some(0));
            }
        }
    });
}

/// A socket at a high number that an `exec` would hand down.
fn stray_socket() -> OwnedFd {
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: the number is fresh, and owned from here on.
    unsafe { OwnedFd::from_raw_fd(libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD, 200)) }
}

// conformance: TestCloseFds.test_closefd
#[test]
fn a_child_has_its_own_descriptors_only() {
    run(async {
        let stray = stray_socket();
        let number = stray.as_raw_fd();
        assert!(number >= 200);
        // SAFETY: the call takes two integers.
        assert_eq!(unsafe { libc::fcntl(number, libc::F_GETFD) } & libc::FD_CLOEXEC, 0);
        for ctx in clean_methods() {
            let report = |address: String| {
                let open = open_here();
                let mut call = Call::to(&address);
                open.into_values().for_each(|link| call.say(link));
            };
            let meeting = Meeting::new();
            for daemon in [false, true] {
                let child = ctx.process(report, (meeting.address(),)).daemon(daemon).start().await.unwrap();
                let mut caller = meeting.accept().await;
                let mut open = Vec::new();
                while let Some(link) = caller.hear().await {
                    open.push(link);
                }
                child.join().await.unwrap();
                assert_eq!(open[0], "/dev/null", "{ctx:?}: {open:?}");
                for standard in [1, 2] {
                    let own = std::fs::read_link(format!("/proc/self/fd/{standard}")).unwrap();
                    assert_eq!(Path::new(&open[standard]), own, "{ctx:?}");
                }
                // The socket to the parent, the parent's pidfd or what stands in for it, and a
                // daemon's lifeline.
                let mut rest: Vec<_> = open[3..].iter().map(|link| link.split(':').next().unwrap()).collect();
                rest.sort_unstable();
                let without = std::env::var("TOKIO_MULTIPROCESS_WITHOUT").unwrap_or_default();
                let parent = if without.contains("pidfd") { "pipe" } else { "anon_inode" };
                let expected = if daemon { &[parent, "pipe", "socket"][..] } else { &[parent, "socket"] };
                assert_eq!(rest, expected, "{ctx:?} daemon {daemon}: {open:?}");
            }
        }
        // A forked child has the number, but not what it stood for: it stands for nothing.
        let target = |number: i32| {
            let mut byte = 0u8;
            // SAFETY: the buffer is one byte long.
            let sent = unsafe { libc::recv(number, (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) };
            (sent, std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock)
        };
        let told = methods()[2].spawn(target, (number,)).await.unwrap().await.unwrap();
        assert_eq!(told, (-1, true));
    });
}

/// Puts the executable back, whatever a test does.
struct Executable;

impl Drop for Executable {
    fn drop(&mut self) {
        mp::set_executable("/proc/self/exe");
        replace_fork_server();
    }
}

/// The next child of the fork server comes from a new one.
fn replace_fork_server() {
    if let Some(server) = support::process::fork_server() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        support::process::eventually("the fork server ends", || !support::process::runs(server));
    }
}

// conformance: _TestProcess.test_set_executable
#[test]
fn the_executable_can_be_given_in_any_form() {
    run(async {
        let _back = Executable;
        let path = std::env::current_exe().unwrap();
        let text = path.to_str().unwrap();
        let forms: [fn(&str); 3] = [
            |text| mp::set_executable(text),
            |text| mp::set_executable(OsStr::from_bytes(text.as_bytes())),
            |text| mp::set_executable(PathBuf::from(text)),
        ];
        for set in forms {
            set(text);
            assert_eq!(mp::get_executable(), Some(path.clone()));
            replace_fork_server();
            for ctx in clean_methods() {
                let child = mp::Process::without_target().context(ctx.clone()).start().await.unwrap();
                assert_eq!(child.join().await.unwrap().code(), Some(0));
                // It is this build, so no function has to be registered; and its own children run it too.
                let inherited = || (mp::get_executable(), std::env::current_exe().unwrap());
                let child = ctx.spawn(inherited, ()).await.unwrap().await.unwrap();
                assert_eq!(child, (Some(path.clone()), path.clone()));
            }
        }
    });
}

#[test]
fn an_executable_that_is_none_of_ours_is_an_error() {
    run(async {
        let _back = Executable;
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let start = async |ctx: &mp::Context, path: &Path| {
            mp::set_executable(path);
            replace_fork_server();
            let builder = ctx.process(forever, ()).start_timeout(Duration::from_millis(300));
            let error = builder.start().await.unwrap_err();
            let text = error.to_string();
            assert!(mp::active_children().is_empty());
            match error {
                mp::Error::Start(error) => (error, text),
                other => panic!("{other:?}"),
            }
        };
        for ctx in clean_methods() {
            let (missing, plain) = (dir.path().join("missing"), script("plain", "no program", 0o644));
            let text = script("text", "no program", 0o755);
            let refused =
                [(missing, "No such file"), (plain, "Permission denied"), (text, "Exec format error")];
            for (path, why) in refused {
                let (error, text) = start(&ctx, &path).await;
                assert!(matches!(error, mp::StartError::Execute { .. }), "{error:?}");
                assert!(text.contains(why) && text.contains(path.to_str().unwrap()), "{text}");
            }
            let (error, text) = start(&ctx, Path::new("/bin/true")).await;
            assert!(matches!(error, mp::StartError::Exited(status) if status.code() == Some(0)), "{error:?}");
            assert!(text.contains("does its executable link this crate?"), "{text}");
            // One that says nothing, and one that closes the socket and lives on.
            let silent = script("silent", "#!/bin/sh\nexec sleep 1000\n", 0o755);
            let closing = script("closing", "#!/bin/sh\nexec 3>&-\nexec sleep 1000\n", 0o755);
            for path in [silent, closing] {
                let (error, text) = start(&ctx, &path).await;
                assert!(matches!(error, mp::StartError::Deadline(_)), "{error:?}");
                assert!(text.contains("300ms"), "{text}");
            }
        }
    });
}

static COPIED: AtomicU32 = AtomicU32::new(0);

#[test]
fn a_fork_copies_statics_and_others_do_not() {
    run(async {
        COPIED.store(7, Ordering::SeqCst);
        for ctx in methods() {
            let seen = ctx.spawn(|| COPIED.load(Ordering::SeqCst), ()).await.unwrap().await.unwrap();
            assert_eq!(seen, if ctx.start_method() == Fork { 7 } else { 0 });
        }
        COPIED.store(0, Ordering::SeqCst);
    });
}

static AFTER_FORK: Mutex<Vec<u8>> = Mutex::new(Vec::new());

// conformance: TestForkAwareThreadLock.test_lock
#[test]
fn what_is_registered_runs_in_each_fork_once_and_in_order() {
    fn generation(left: u8) -> Vec<Vec<u8>> {
        let mut seen = vec![std::mem::take(&mut *AFTER_FORK.lock().unwrap())];
        if left > 0 {
            let child = mp::block_on(mp::spawn(generation, (left - 1,))).unwrap().unwrap();
            seen.extend(mp::block_on(child).unwrap().unwrap());
        }
        seen
    }
    run(async {
        for number in [1, 2] {
            mp::register_after_fork(move || AFTER_FORK.lock().unwrap().push(number));
        }
        let fork = methods().remove(2);
        let seen = fork.spawn(generation, (4,)).await.unwrap().await.unwrap();
        assert_eq!(seen, vec![vec![1, 2]; 5]);
        assert!(AFTER_FORK.lock().unwrap().is_empty());
        for ctx in clean_methods() {
            assert_eq!(ctx.spawn(generation, (0,)).await.unwrap().await.unwrap(), [[]]);
        }
    });
}

#[test]
fn a_fork_beside_foreign_threads_is_refused() {
    run(async {
        // The harness's threads are foreign.
        let error = mp::Context::new(Fork).process(forever, ()).start().await.unwrap_err();
        assert!(matches!(error, mp::Error::Start(mp::StartError::Threads(1..))), "{error:?}");
        assert!(error.to_string().contains("fork_with_threads"), "{error}");
    });
}

#[test]
fn streams_that_another_thread_writes_to_are_usable_in_a_fork() {
    run_sync(|| {
        use std::io::Write;
        use std::sync::atomic::AtomicBool;
        let over = AtomicBool::new(false);
        let fork = methods().remove(2);
        std::thread::scope(|scope| {
            // It holds one lock or the other nearly all the time.
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    std::io::stdout().lock().flush().unwrap();
                    std::io::stderr().lock().flush().unwrap();
                }
            });
            runtime().block_on(async {
                for _ in 0..50 {
                    let child = fork.process(|| std::io::stdout().flush(), ()).start().await.unwrap();
                    assert_eq!(child.join().await.unwrap().code(), Some(0));
                }
            });
            over.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn a_child_is_where_its_parent_is_now() {
    fn target() -> (PathBuf, Option<String>, Option<String>, Vec<String>) {
        let variable = |name: &str| std::env::var(name).ok();
        let here = std::env::current_dir().unwrap();
        (here, variable("TEST_ADDED"), variable("TEST_REMOVED"), std::env::args().collect())
    }
    run(async {
        let before = std::env::current_dir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().canonicalize().unwrap();
        // The fork server is at work already; what it has from its start is no longer so.
        // SAFETY: tests take turns, so nobody else reads the environment now.
        unsafe { std::env::set_var("TEST_REMOVED", "still there") };
        replace_fork_server();
        for ctx in methods() {
            let seen = ctx.spawn(target, ()).await.unwrap().await.unwrap();
            assert_eq!((seen.0, seen.1, seen.2.as_deref()), (before.clone(), None, Some("still there")));
        }
        std::env::set_current_dir(&here).unwrap();
        // SAFETY: as above.
        unsafe {
            std::env::set_var("TEST_ADDED", "new=1");
            std::env::remove_var("TEST_REMOVED");
        }
        for ctx in methods() {
            let (directory, added, removed, args) = ctx.spawn(target, ()).await.unwrap().await.unwrap();
            assert_eq!(directory, here, "{ctx:?}");
            assert_eq!((added.as_deref(), removed), (Some("new=1"), None), "{ctx:?}");
            assert!(args.iter().eq(&std::env::args().collect::<Vec<_>>()));
        }
        std::env::set_current_dir(before).unwrap();
        // SAFETY: as above.
        unsafe { std::env::remove_var("TEST_ADDED") };
    });
}
