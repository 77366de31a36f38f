//! What goes to a process and comes back from it: arguments, values, functions, errors.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use support::process::{forever, methods, run, runtime};
use tokio_multiprocess as mp;

/// A message that cannot be written.
#[derive(Deserialize)]
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not today"))
    }
}

/// A message that cannot be read.
#[derive(Serialize)]
struct Unreadable;

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("not tomorrow"))
    }
}

#[test]
fn what_cannot_be_written_starts_nothing() {
    run(async {
        for ctx in methods() {
            let error =
                ctx.process(|_: Unwritable, _: mp::Blob| (), (Unwritable, mp::Blob::new("kept").unwrap()));
            let error = error.start().await.unwrap_err();
            assert!(matches!(error, mp::Error::Encode(_)), "{error:?}");
            assert_eq!(error.to_string(), "cannot encode: not today");
            let error = ctx.spawn(|_: Unwritable| (), (Unwritable,)).await.unwrap_err();
            assert!(matches!(error, mp::Error::Encode(_)), "{error:?}");
            assert!(mp::active_children().is_empty());
            assert!(support::children().is_empty());
        }
    });
}

#[test]
fn what_cannot_be_read_is_the_childs_end() {
    run(async {
        for ctx in methods() {
            let target = |_: Unreadable, _: mp::Blob| {
                let null = std::fs::File::open("/dev/null").unwrap();
                nix::unistd::dup2_stderr(null).unwrap();
            };
            let child =
                ctx.process(target, (Unreadable, mp::Blob::new("lost").unwrap())).start().await.unwrap();
            assert_eq!(child.join().await.unwrap().code(), Some(1));

            let error = ctx.spawn(|_: Unreadable| (), (Unreadable,)).await.unwrap().await.unwrap_err();
            let mp::TaskError::NotStarted(mp::NotStarted::Arguments(why)) = &error else {
                panic!("{error:?}")
            };
            assert!(why.contains("not tomorrow"), "{why}");
            assert_eq!(error.ran(), mp::Ran::No);
        }
    });
}

#[test]
fn a_value_that_cannot_travel_back_is_the_tasks_error() {
    run(async {
        for ctx in methods() {
            let handle = ctx.spawn(|| Unwritable, ()).await.unwrap();
            let child = handle.process().clone();
            let error = handle.await.map(drop).unwrap_err();
            let mp::TaskError::Unencodable { reason, value } = &error else { panic!("{error:?}") };
            assert_eq!(reason, "not today");
            assert!(value.ends_with("::Unwritable"), "{value}");
            assert_eq!(error.ran(), mp::Ran::Yes);
            assert_eq!(child.join().await.unwrap().code(), Some(1));

            let error = ctx.spawn(|| Unreadable, ()).await.unwrap().await.map(drop).unwrap_err();
            assert!(matches!(error, mp::TaskError::Undecodable(_)), "{error:?}");
            assert_eq!(error.ran(), mp::Ran::Yes);
        }
    });
}

#[test]
fn zero_to_eight_arguments_sync_and_async() {
    run(async {
        for ctx in methods() {
            assert_eq!(ctx.spawn(|| 0, ()).await.unwrap().await.unwrap(), 0);
            let sum = |a: u8, b: u16, c: u32, d: u64, e: i8, f: i16, g: i32, h: i64| {
                i128::from(a)
                    + i128::from(b)
                    + i128::from(c)
                    + i128::from(d)
                    + i128::from(e)
                    + i128::from(f)
                    + i128::from(g)
                    + i128::from(h)
            };
            assert_eq!(ctx.spawn(sum, (1, 2, 3, 4, 5, 6, 7, 8)).await.unwrap().await.unwrap(), 36);
            let reversed = async |words: Vec<String>, times: Option<Option<u8>>| {
                tokio::task::yield_now().await;
                (words.into_iter().rev().collect::<Vec<_>>(), times)
            };
            let words = ["a", "b"].map(str::to_owned).to_vec();
            let (words, times) = ctx.spawn(reversed, (words, Some(None))).await.unwrap().await.unwrap();
            assert_eq!((words.concat().as_str(), times), ("ba", Some(None)));
            let map: BTreeMap<String, ()> = [("key".to_owned(), ())].into();
            assert_eq!(
                ctx.spawn(|map: BTreeMap<String, ()>| map, (map.clone(),)).await.unwrap().await.unwrap(),
                map
            );
        }
    });
}

/// Bytes that tell their places.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes.chunks_mut(1000).enumerate().for_each(|(n, chunk)| chunk.fill(n as u8));
    bytes
}

#[test]
fn large_arguments_and_values() {
    run(async {
        let large = pattern(5 << 20);
        for ctx in methods() {
            let task = |bytes: Vec<u8>| (bytes == pattern(5 << 20), pattern(1 << 20), "x".repeat(1 << 20));
            let (same, bytes, text) = ctx.spawn(task, (large.clone(),)).await.unwrap().await.unwrap();
            assert!(same && bytes == large[..1 << 20] && text.len() == 1 << 20);
        }
    });
}

/// The seals of every blob that this process holds.
fn seals() -> Vec<i32> {
    let memfds = support::process::descriptors().into_iter().filter(|(_, link)| link.starts_with("/memfd:"));
    // SAFETY: the call takes two integers.
    memfds.map(|(fd, _)| unsafe { libc::fcntl(fd, libc::F_GET_SEALS) }).collect()
}

#[test]
fn a_blob_travels_and_stays_sealed() {
    fn target(blob: mp::Blob) -> (mp::Blob, mp::Blob, Vec<i32>, bool) {
        let same = *blob == *pattern(16 << 20);
        let mut turned = blob.to_vec();
        turned.rotate_left(1);
        (mp::Blob::new(turned).unwrap(), blob, seals(), same)
    }
    run(async {
        let bytes = pattern(16 << 20);
        let blob = mp::Blob::new(&bytes).unwrap();
        for ctx in methods() {
            let (turned, returned, seals, same) =
                ctx.spawn(target, (blob.clone(),)).await.unwrap().await.unwrap();
            assert!(same);
            assert!(returned == blob && returned[..] == bytes[..]);
            assert!(turned[..turned.len() - 1] == bytes[1..] && turned.last() == bytes.first());
            let all = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
            assert!(seals.len() >= 2, "{seals:?}");
            assert!(seals.iter().all(|seals| seals & all == all), "{seals:?}");
            let shared: bytes::Bytes = returned.into();
            assert_eq!(shared.len(), bytes.len());
        }
        let empty = mp::spawn(|blob: mp::Blob| blob, (mp::Blob::new("").unwrap(),)).await.unwrap();
        assert!(empty.await.unwrap().is_empty());
    });
}

#[test]
fn hundreds_of_blobs_in_one_message() {
    const NUMBER: usize = 300;
    fn target(blobs: Vec<mp::Blob>) -> Vec<mp::Blob> {
        for (n, blob) in blobs.iter().enumerate() {
            assert_eq!(**blob, *n.to_string().as_bytes());
        }
        blobs.into_iter().rev().collect()
    }
    run(async {
        // A start raises the limit, but these are made before one.
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(hard > 4 * NUMBER as u64, "this test needs more descriptors than {hard}");
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let blobs: Vec<_> = (0..NUMBER).map(|n| mp::Blob::new(n.to_string()).unwrap()).collect();
        for ctx in methods() {
            let returned = ctx.spawn(target, (blobs.clone(),)).await.unwrap().await.unwrap();
            assert!(returned.iter().eq(blobs.iter().rev()));
        }
    });
}

#[test]
fn a_handle_outside_of_a_message_cannot_be_written() {
    run(async {
        let error = rmp_serde::to_vec(&mp::Blob::new("x").unwrap()).unwrap_err();
        assert!(error.to_string().contains("inside of a message"), "{error}");
        // Nor can a key travel in a message.
        let error = mp::spawn(|_: mp::AuthKey| (), (mp::AuthKey::new("secret"),)).await.unwrap_err();
        assert!(matches!(error, mp::Error::Encode(_)), "{error:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
    });
}

mod arithmetic {
    pub(crate) fn square(x: u64) -> u64 {
        x * x
    }
    pub(crate) async fn cube(x: u64) -> u64 {
        x * x * x
    }
}
use arithmetic::{cube, square};
mp::register!(square, arithmetic::cube);

#[test]
fn functions_are_values() {
    type Unary = mp::Func<(u64,), u64>;
    async fn apply(functions: Vec<Unary>, x: u64) -> Vec<(Unary, String, u64)> {
        let mut results = Vec::new();
        for function in functions {
            results.push((function, function.name().to_owned(), function.call((x,)).await.unwrap()));
        }
        results
    }
    run(async {
        let functions: [Unary; 3] =
            [mp::Func::new(square), mp::Func::new(cube), mp::Func::new(|x: u64| x + 1)];
        assert_eq!(functions[0].name(), "process_args::square");
        assert_eq!(functions[1].name(), "process_args::arithmetic::cube");
        assert!(functions[2].name().contains("{{closure}}"), "{}", functions[2].name());
        assert!(functions[0] != functions[1] && functions[0] == mp::Func::new(square));
        for ctx in methods() {
            let results = ctx.spawn(apply, (functions.to_vec(), 3)).await.unwrap().await.unwrap();
            for ((function, name, value), (expected, result)) in
                results.iter().zip(functions.iter().zip([9, 27, 4]))
            {
                assert_eq!((function, name.as_str(), *value), (expected, expected.name(), result));
                assert_eq!(function.call((3,)).await.unwrap(), result);
            }
        }
    });
}

#[test]
fn what_a_task_returns_comes_back_and_so_does_what_went_wrong() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Door(#[source] std::fmt::Error);
    fn door() -> Result<(), mp::Failure> {
        Err(Door(std::fmt::Error))?
    }
    async fn boxed() -> Result<u8, Box<dyn std::error::Error + Send + Sync>> {
        Err("no key")?
    }
    fn own(fail: bool) -> Result<u8, String> {
        if fail { Err("mine".to_owned()) } else { Ok(1) }
    }
    fn panics(what: String) {
        std::panic::panic_any(what)
    }
    run(async {
        for ctx in methods() {
            let error = ctx.spawn(door, ()).await.unwrap().await.unwrap_err();
            let mp::TaskError::Returned(remote) = &error else { panic!("{error:?}") };
            assert_eq!(remote.to_string(), "cannot open the door");
            let source = std::error::Error::source(remote).unwrap();
            assert_eq!(source.to_string(), std::fmt::Error.to_string());
            assert!(remote.kind().ends_with("Door"), "{}", remote.kind());
            let error = ctx.spawn(boxed, ()).await.unwrap().await.unwrap_err();
            assert!(matches!(&error, mp::TaskError::Returned(remote) if remote.to_string() == "no key"));
            // An error that is itself a message is a value like any other.
            assert_eq!(ctx.spawn(own, (true,)).await.unwrap().await.unwrap(), Err("mine".to_owned()));
            assert_eq!(ctx.spawn(own, (false,)).await.unwrap().await.unwrap(), Ok(1));

            let handle = ctx.spawn(panics, ("dropped it".to_owned(),)).await.unwrap();
            let child = handle.process().clone();
            let error = handle.await.unwrap_err();
            let mp::TaskError::Panicked(panic) = &error else { panic!("{error:?}") };
            assert_eq!(panic.message, "dropped it");
            assert_eq!(panic.pid, child.pid());
            assert!(panic.location.starts_with("tests/process_args.rs:"), "{}", panic.location);
            assert!(panic.task.ends_with("panics"), "{}", panic.task);
            assert_eq!(error.ran(), mp::Ran::Yes);
            assert_eq!(child.join().await.unwrap().code(), Some(1));

            let error = ctx.spawn(|| -> u8 { std::process::exit(3) }, ()).await.unwrap().await.unwrap_err();
            let mp::TaskError::WorkerDied(died) = &error else { panic!("{error:?}") };
            assert_eq!(died.exit.code(), Some(3));
            assert_eq!(error.ran(), mp::Ran::Maybe);
        }
    });
}

#[test]
fn a_task_is_aborted_or_detached_by_its_handle() {
    run(async {
        for ctx in methods() {
            let mut handle = ctx.spawn(forever, ()).await.unwrap();
            tokio::select! {
                biased;
                ended = &mut handle => panic!("{ended:?}"),
                () = tokio::task::yield_now() => {}
            }
            handle.abort();
            let error = handle.await.unwrap_err();
            assert!(
                matches!(&error, mp::TaskError::WorkerDied(died) if died.exit.signal() == Some(9)),
                "{error:?}"
            );

            let meeting = support::process::Meeting::new();
            let task = |address: String| support::process::Call::to(&address).hear();
            let handle = ctx.spawn(task, (meeting.address(),)).await.unwrap();
            let child = handle.process().clone();
            let caller = meeting.accept().await;
            drop(handle);
            assert!(child.is_alive());
            drop(caller);
            assert!(child.join().await.is_ok());
        }
    });
}

#[test]
fn sync_code_waits_for_futures() {
    fn target() -> ExitCode {
        let sum = mp::block_on(async {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let task = tokio::spawn(async move { sender.send(20).unwrap() });
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            task.await.unwrap();
            receiver.await.unwrap() + 1
        });
        let child = mp::block_on(mp::spawn(|x: u8| 2 * x, (sum.unwrap(),))).unwrap().unwrap();
        ExitCode::from(mp::block_on(child).unwrap().unwrap())
    }
    run(async {
        for ctx in support::process::clean_methods() {
            let child = ctx.process(target, ()).start().await.unwrap();
            assert_eq!(child.join().await.unwrap().code(), Some(42));
        }
    });
}

#[test]
fn sigint_interrupts_who_waits_in_sync_code() {
    fn target(address: String) -> ExitCode {
        let mut call = support::process::Call::to(&address);
        let waited = mp::block_on(async {
            call.say("waiting");
            std::future::pending::<()>().await;
        });
        assert!(matches!(waited, Err(mp::Error::Interrupted)));
        call.say("interrupted");
        // One is told of, not two.
        assert_eq!(mp::block_on(async { 5 }).unwrap(), 5);
        call.say("waiting no more");
        call.hear();
        ExitCode::SUCCESS
    }
    run(async {
        let meeting = support::process::Meeting::new();
        for ctx in methods() {
            let child = ctx.process(target, (meeting.address(),)).start().await.unwrap();
            let mut caller = meeting.accept().await;
            assert_eq!(caller.hear().await.unwrap(), "waiting");
            child.interrupt().unwrap();
            assert_eq!(caller.hear().await.unwrap(), "interrupted");
            assert_eq!(caller.hear().await.unwrap(), "waiting no more");
            // Nobody waits any more, so SIGINT ends it as it ends any process.
            child.interrupt().unwrap();
            assert_eq!(child.join().await.unwrap().exit_code(), -2);
        }
    });
}

#[test]
fn waiting_for_a_future_in_async_code_is_a_panic() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

    /// Sets SIGINT's default, and gives what there was.
    fn set_default() -> SigAction {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default disposition runs no code.
        unsafe { sigaction(Signal::SIGINT, &default) }.unwrap()
    }

    support::process::run_sync(|| {
        // Whoever runs this in the background may have it ignored.
        set_default();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let caught =
            std::panic::catch_unwind(|| runtime().block_on(async { mp::block_on(async {}) }).is_ok());
        std::panic::set_hook(hook);
        let message = *caught.unwrap_err().downcast::<&str>().unwrap();
        assert!(message.contains("within a runtime"), "{message}");
        // It is back.
        assert!(matches!(set_default().handler(), SigHandler::SigDfl));
    });
}
