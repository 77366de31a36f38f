//! Blocks of shared memory: what they promise to their creator, to who opens them, and to CPython.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use support::process::run_sync;
use support::python::pythons;
use support::{current_thread, kill_9, methods, shm_name};
use tokio_multiprocess as mp;

/// Runs a test with a tracker that was there before.
fn test(test: impl FnOnce()) {
    mp::resource_tracker::ensure_running().unwrap();
    run_sync(test);
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/dev/shm").join(name)
}

fn kind(error: &mp::Error) -> Option<io::ErrorKind> {
    match error {
        mp::Error::Io(error) => Some(error.kind()),
        _ => None,
    }
}

fn is_refused(error: &mp::Error) -> bool {
    matches!(error, mp::Error::InvalidArgument(_))
}

// conformance: _TestSharedMemory.test_shared_memory_basics
#[test]
fn a_block_is_created_opened_and_unlinked() {
    test(|| {
        let name = shm_name("basics");
        let memory = mp::SharedMemory::create_named(&name, 512).unwrap();
        assert_eq!((memory.name(), memory.size()), (&*name, 512));
        let shown = format!("{memory:?}");
        assert!(shown.contains(&name) && shown.contains("512"), "{shown}");
        assert_eq!(memory.read_to_vec(0, 512).unwrap(), [0; 512]);
        memory.write(0, &[42]).unwrap();

        let same = mp::SharedMemory::open(&format!("/{name}")).unwrap();
        assert_eq!((same.name(), same.size()), (&*name, 512));
        assert_eq!(same.read_to_vec(0, 1).unwrap(), [42]);
        same.write(511, &[22]).unwrap();
        assert_eq!(memory.read_to_vec(511, 1).unwrap(), [22]);
        same.close();

        let error = mp::SharedMemory::create_named(&name, 512).unwrap_err();
        assert!(error.is_already_exists() && error.to_string().contains(&name), "{error}");
        let opened = mp::SharedMemory::open_or_create(&name, 4096).unwrap();
        assert_eq!(opened.size(), 512);
        assert_eq!(opened.read_to_vec(0, 1).unwrap(), [42]);

        memory.unlink().unwrap();
        assert!(!path(&name).exists());
        for gone in [memory.unlink(), opened.unlink(), mp::SharedMemory::open(&name).map(drop)] {
            let error = gone.unwrap_err();
            assert!(error.is_not_found() && error.to_string().contains(&name), "{error}");
        }
        // The memory is there as long as somebody has it.
        opened.write(1, &[7]).unwrap();
        assert_eq!(memory.read_to_vec(0, 2).unwrap(), [42, 7]);

        let created = mp::SharedMemory::open_or_create(&name, 4096).unwrap();
        assert_eq!((created.size(), created.read_to_vec(0, 1).unwrap()), (4096, vec![0]));
        // Another object has the name.
        assert!(memory.unlink().unwrap_err().is_not_found());
        created.unlink().unwrap();
    });
}

#[test]
fn made_up_names_differ_and_are_for_this_user_alone() {
    test(|| {
        let (a, b) = (mp::SharedMemory::create(1).unwrap(), mp::SharedMemory::create(1).unwrap());
        assert_ne!(a.name(), b.name());
        for memory in [a, b] {
            assert!(memory.name().starts_with("psm_"), "{memory:?}");
            let mode = fs::metadata(path(memory.name())).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            memory.unlink().unwrap();
        }
    });
}

// conformance: TestResourceTracker.test_too_long_name_resource
#[test]
fn names_and_sizes_that_cannot_be_are_refused() {
    test(|| {
        for name in ["", "/", "a/b", "/a/b", "//a", "..", "a\0b", &"x".repeat(256), &"x".repeat(1000)] {
            let results = [
                mp::SharedMemory::create_named(name, 1),
                mp::SharedMemory::open(name),
                mp::SharedMemory::open_or_create(name, 1),
            ];
            for result in results {
                let error = result.unwrap_err();
                assert!(is_refused(&error), "{name}: {error}");
            }
        }
        let longest = format!("{:x<255}", shm_name("long"));
        mp::SharedMemory::create_named(&longest, 1).unwrap().unlink().unwrap();
        assert!(is_refused(&mp::SharedMemory::create(0).unwrap_err()));
        assert!(is_refused(&mp::SharedMemory::open_or_create(&shm_name("zero"), 0).unwrap_err()));
        assert!(is_refused(&mp::SharedMemory::builder().open_or_create(1).unwrap_err()));
        // More than any machine has: an error, and no attempt.
        for size in [usize::MAX, 1 << 50] {
            assert!(mp::SharedMemory::create_named(&shm_name("huge"), size).is_err());
        }
    });
}

#[test]
fn what_lies_outside_is_refused() {
    test(|| {
        let memory = mp::SharedMemory::create_named(&shm_name("range"), 10).unwrap();
        memory.write(10, &[]).unwrap();
        memory.read(10, &mut []).unwrap();
        memory.write(0, &[1; 10]).unwrap();
        for (offset, len) in [(0, 11), (10, 1), (11, 0), (usize::MAX, 1), (1, usize::MAX)] {
            assert!(is_refused(&memory.read_to_vec(offset, len).unwrap_err()));
        }
        assert!(is_refused(&memory.read(9, &mut [0; 2]).unwrap_err()));
        assert!(is_refused(&memory.write(9, &[2; 2]).unwrap_err()));
        assert_eq!(memory.read_to_vec(0, 10).unwrap(), [1; 10]);
        assert_eq!(fs::metadata(path(memory.name())).unwrap().len(), 10);
        memory.unlink().unwrap();
    });
}

// conformance: _TestSharedMemory.test_shared_memory_pickle_unpickle
#[test]
fn what_is_sent_is_the_name() {
    test(|| {
        current_thread().block_on(async {
            let memory = mp::SharedMemory::create_named(&shm_name("sent"), 512).unwrap();
            memory.write(0, b"hello").unwrap();
            let (mut here, mut there) = mp::pipe().unwrap();
            here.send(&memory).await.unwrap();
            let received: mp::SharedMemory = there.recv().await.unwrap();
            assert_eq!((received.name(), received.size()), (memory.name(), 512));
            received.write(0, b"J").unwrap();
            memory.write(4, b"y").unwrap();
            assert_eq!(memory.read_to_vec(0, 5).unwrap(), b"Jelly");
            assert_eq!(received.read_to_vec(0, 5).unwrap(), b"Jelly");
            // In any format.
            let bytes = rmp_serde::to_vec(&memory).unwrap();
            assert!(bytes.len() <= memory.name().len() + 2);
            let again: mp::SharedMemory = rmp_serde::from_slice(&bytes).unwrap();
            assert_eq!(again.read_to_vec(0, 5).unwrap(), b"Jelly");
            memory.unlink().unwrap();
        });
    });
}

// conformance: _TestSharedMemory.test_shared_memory_pickle_unpickle_dead_object
#[test]
fn a_name_that_is_gone_is_not_received() {
    test(|| {
        current_thread().block_on(async {
            let memory = mp::SharedMemory::create_named(&shm_name("dead"), 512).unwrap();
            let (mut here, mut there) = mp::pipe().unwrap();
            here.send(&memory).await.unwrap();
            memory.unlink().unwrap();
            memory.close();
            let error = there.recv::<mp::SharedMemory>().await.unwrap_err();
            assert!(error.to_string().contains("not found"), "{error}");
        });
    });
}

fn write_by_name(name: String) {
    mp::SharedMemory::open(&name).unwrap().write(0, b"howdy").unwrap();
}

fn write_into(memory: mp::SharedMemory) {
    assert_eq!(memory.read_to_vec(0, 5).unwrap(), b"howdy");
    memory.write(0, b"HELLO").unwrap();
    memory.close();
}

fn write_and_die(memory: mp::SharedMemory) {
    memory.write(0, b"bye!!").unwrap();
    kill_9(std::process::id() as i32);
}

// conformance: _TestSharedMemory.test_shared_memory_across_processes
#[test]
fn children_use_it_and_leave_it() {
    test(|| {
        for context in methods() {
            current_thread().block_on(async {
                let memory = mp::SharedMemory::create_named(&shm_name("across"), 512).unwrap();
                let name = memory.name().to_owned();
                let child = context.process(write_by_name, (name.clone(),)).start().await.unwrap();
                assert!(child.join().await.unwrap().success());
                assert_eq!(memory.read_to_vec(0, 5).unwrap(), b"howdy");
                let child = context.process(write_into, (memory.clone(),)).start().await.unwrap();
                assert!(child.join().await.unwrap().success());
                assert_eq!(memory.read_to_vec(0, 5).unwrap(), b"HELLO");
                let child = context.process(write_and_die, (memory.clone(),)).start().await.unwrap();
                assert_eq!(child.join().await.unwrap().signal(), Some(9));
                assert_eq!(mp::SharedMemory::open(&name).unwrap().read_to_vec(0, 5).unwrap(), b"bye!!");
                memory.unlink().unwrap();
            });
        }
    });
}

static EVERYBODYS: OnceLock<mp::SharedMemory> = OnceLock::new();

fn use_the_static() {
    let memory = EVERYBODYS.get().unwrap();
    assert_eq!(memory.read_to_vec(0, 2).unwrap(), b"ab");
    memory.write(1, b"c").unwrap();
    memory.unlink().unwrap();
    assert_eq!(memory.read_to_vec(0, 2).unwrap(), b"ac");
}

#[test]
fn a_static_works_in_a_forked_child() {
    test(|| {
        let memory = mp::SharedMemory::create_named(&shm_name("static"), 2).unwrap();
        memory.write(0, b"ab").unwrap();
        // In a child of its own, as a static is never dropped.
        // SAFETY: the child's code takes no lock that another thread may hold.
        let fork = unsafe { mp::Context::fork_with_threads() };
        current_thread().block_on(async {
            let set = |name: String| async move {
                EVERYBODYS.set(mp::SharedMemory::open(&name).unwrap()).unwrap();
                // SAFETY: as above.
                let fork = unsafe { mp::Context::fork_with_threads() };
                let child = fork.process(use_the_static, ()).start().await.unwrap();
                assert!(child.join().await.unwrap().success());
                // Open here all the same.
                assert_eq!(EVERYBODYS.get().unwrap().read_to_vec(0, 2).unwrap(), b"ac");
            };
            let child = fork.process(set, (memory.name().to_owned(),)).start().await.unwrap();
            assert!(child.join().await.unwrap().success());
        });
        assert!(memory.unlink().unwrap_err().is_not_found());
    });
}

#[test]
fn memory_that_a_stranger_has_shrunk_is_an_error() {
    test(|| {
        let memory = mp::SharedMemory::create_named(&shm_name("shrunk"), 10_000).unwrap();
        let file = OpenOptions::new().write(true).open(path(memory.name())).unwrap();
        file.set_len(5).unwrap();
        memory.write(0, b"fives").unwrap();
        assert_eq!(memory.read_to_vec(0, 5).unwrap(), b"fives");
        let errors = [
            memory.read_to_vec(0, 6).unwrap_err(),
            memory.read_to_vec(9_999, 1).unwrap_err(),
            memory.write(4, b"xy").unwrap_err(),
            memory.write(9_999, b"x").unwrap_err(),
            memory.map().map(drop).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(kind(&error), Some(io::ErrorKind::UnexpectedEof), "{error}");
            assert!(error.to_string().contains("shrunk"), "{error}");
        }
        assert_eq!(file.metadata().unwrap().len(), 5);
        file.set_len(0).unwrap();
        let error = mp::SharedMemory::open(memory.name()).unwrap_err();
        assert_eq!(kind(&error), Some(io::ErrorKind::InvalidData), "{error}");
        memory.unlink().unwrap();
    });
}

#[test]
fn what_is_no_shared_memory_is_not_opened() {
    test(|| {
        let name = shm_name("other");
        fs::create_dir(path(&name)).unwrap();
        mp::SharedMemory::open(&name).unwrap_err();
        fs::remove_dir(path(&name)).unwrap();
        nix::unistd::mkfifo(&path(&name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = mp::SharedMemory::open(&name).unwrap_err();
        assert_eq!(kind(&error), Some(io::ErrorKind::InvalidInput), "{error}");
        fs::remove_file(path(&name)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path(&name)).unwrap();
        mp::SharedMemory::open(&name).unwrap_err();
        fs::remove_file(path(&name)).unwrap();
    });
}

#[test]
fn it_can_be_mapped() {
    test(|| {
        let memory = mp::SharedMemory::create_named(&shm_name("mapped"), 5000).unwrap();
        let mapped = memory.map().unwrap();
        assert_eq!(mapped.len(), 5000);
        memory.unlink().unwrap();
        memory.write(4999, b"a").unwrap();
        memory.close();
        // SAFETY: nobody else knows of it by now.
        let bytes = unsafe { std::slice::from_raw_parts_mut(mapped.as_ptr(), mapped.len()) };
        assert_eq!(bytes[4999], b'a');
        bytes.fill(1);
    });
}

/// What the child says where the machine does not let it make a full `/dev/shm`.
const SKIPPED: u8 = 77;

fn fill_a_small_one() -> ExitCode {
    match unshare(CloneFlags::CLONE_NEWNS) {
        Err(Errno::EPERM) => return SKIPPED.into(),
        result => result.unwrap(),
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(none, "/dev/shm", Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    let listed = || fs::read_dir("/dev/shm").unwrap().count();
    for size in [64 * 1024 + 1, 1 << 20, 1 << 40] {
        let error = mp::SharedMemory::create(size).unwrap_err();
        let expected = [Some(io::ErrorKind::StorageFull), Some(io::ErrorKind::OutOfMemory)];
        assert!(expected.contains(&kind(&error)), "{error}");
        assert_eq!(listed(), 0);
    }
    let whole = mp::SharedMemory::create(60 * 1024).unwrap();
    whole.write(0, &vec![1; whole.size()]).unwrap();
    let error = mp::SharedMemory::create(8 * 1024).unwrap_err();
    assert_eq!(kind(&error), Some(io::ErrorKind::StorageFull), "{error}");
    assert_eq!(listed(), 1);
    whole.unlink().unwrap();
    whole.close();
    mp::SharedMemory::create(60 * 1024).unwrap().unlink().unwrap();
    nix::mount::umount2("/dev/shm", nix::mount::MntFlags::MNT_DETACH).unwrap();
    ExitCode::SUCCESS
}

#[test]
fn a_full_dev_shm_is_an_error() {
    test(|| {
        current_thread().block_on(async {
            let child = mp::Process::builder(fill_a_small_one, ()).start().await.unwrap();
            match child.join().await.unwrap().code() {
                Some(code) if code == i32::from(SKIPPED) => eprintln!("skipped: no mount namespaces"),
                code => assert_eq!(code, Some(0)),
            }
        });
    });
}

fn do_without_proc() -> ExitCode {
    match unshare(CloneFlags::CLONE_NEWNS) {
        Err(Errno::EPERM) => return SKIPPED.into(),
        result => result.unwrap(),
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(none, "/proc", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let memory = mp::SharedMemory::create(10).unwrap();
    let same = mp::SharedMemory::open(memory.name()).unwrap();
    memory.write(0, b"a").unwrap();
    assert_eq!(same.read_to_vec(0, 1).unwrap(), b"a");
    memory.unlink().unwrap();
    ExitCode::SUCCESS
}

#[test]
fn it_does_without_proc() {
    test(|| {
        current_thread().block_on(async {
            let child = mp::Process::builder(do_without_proc, ()).start().await.unwrap();
            match child.join().await.unwrap().code() {
                Some(code) if code == i32::from(SKIPPED) => eprintln!("skipped: no mount namespaces"),
                code => assert_eq!(code, Some(0)),
            }
        });
    });
}

/// What a CPython does that is given two names: looks into the first, answers there, and creates the
/// second. Before 3.13 it has to be told not to unlink what it has merely opened.
const PEER: &str = r"
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
ours = SharedMemory(sys.argv[1])
assert ours.size == 100, ours.size
assert bytes(ours.buf[:5]) == b'hello', bytes(ours.buf[:5])
ours.buf[:5] = b'HELLO'
theirs = SharedMemory(sys.argv[2], create=True, size=77)
theirs.buf[:3] = b'bye'
for memory in ours, theirs:
    memory.close()
    resource_tracker.unregister(memory._name, 'shared_memory')
";

#[test]
fn it_is_cpythons() {
    test(|| {
        for python in pythons() {
            let memory = mp::SharedMemory::create_named(&shm_name("ours"), 100).unwrap();
            memory.write(0, b"hello").unwrap();
            let mut peer = std::process::Command::new(&python.program);
            let output = peer.args(["-c", PEER, memory.name(), &shm_name("theirs")]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "3.{}: {said}", python.minor);
            assert_eq!(memory.read_to_vec(0, 5).unwrap(), b"HELLO");
            memory.unlink().unwrap();
            let theirs = mp::SharedMemory::open(&shm_name("theirs")).unwrap();
            assert_eq!(theirs.size(), 77);
            assert_eq!(theirs.read_to_vec(0, 3).unwrap(), b"bye");
            theirs.unlink().unwrap();
        }
    });
}
