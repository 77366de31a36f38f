//! Lists in shared memory: what they hold, what does not fit, what strangers do to them, and CPython's.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;

use mp::ShareableValue::{Bool, Bytes, Float, Int, None as Nothing, Str};
use mp::{ShareableList, ShareableValue};
use support::process::run_sync;
use support::python::pythons;
use support::{Random, current_thread, kill_9, methods, shm_name};
use tokio_multiprocess as mp;

/// Runs a test with a tracker that was there before.
fn test(test: impl FnOnce()) {
    mp::resource_tracker::ensure_running().unwrap();
    run_sync(test);
}

fn mixed() -> [ShareableValue; 7] {
    ["howdy".into(), b"HoWdY".into(), (-273.154).into(), 100.into(), ().into(), true.into(), 42.into()]
}

fn list(what: &str, items: impl IntoIterator<Item = ShareableValue>) -> ShareableList {
    ShareableList::create_named(&shm_name(what), items).unwrap()
}

fn is_refused<T: std::fmt::Debug>(result: mp::Result<T>) -> bool {
    matches!(result, Err(mp::Error::InvalidArgument(_)))
}

// conformance: _TestSharedMemory.test_shared_memory_ShareableList_basics
#[test]
fn a_list_holds_values_of_all_kinds() {
    test(|| {
        let list = list("basics", mixed());
        assert_eq!(list.to_vec().unwrap(), mixed());
        assert_eq!((list.len(), list.is_empty(), list.iter().len()), (7, false, 7));
        let shown = format!("{list:?}");
        assert!(shown.contains("howdy") && shown.contains(list.name()), "{shown}");
        assert_eq!(list.shm().name(), list.name());

        for outside in [7, -8, isize::MAX, isize::MIN] {
            assert!(is_refused(list.get(outside)));
            assert!(is_refused(list.set(outside, 1)));
        }
        assert_eq!(list.get(-1).unwrap(), Int(42));
        assert_eq!(list.get(-7).unwrap(), "howdy".into());
        list.set(-2, false).unwrap();
        assert_eq!(list.get(5).unwrap(), Bool(false));
        list.set(-2, true).unwrap();

        assert_eq!(list.format().unwrap(), "8s8sdqxxxxxx?xxxxxxxx?q");
        assert_eq!(list.count(42).unwrap(), 1);
        assert_eq!(list.index(42).unwrap(), Some(6));
        assert_eq!(list.index("howdy").unwrap(), Some(0));
        assert_eq!(list.index("absent").unwrap(), None);
        assert_eq!(list.count("absent").unwrap(), 0);
        // Kinds are not mixed up.
        assert_eq!(list.index(1).unwrap(), None);

        // Another kind, in each place.
        for index in 0..7 {
            for value in
                [Nothing, Bool(true), Int(i64::MIN), Float(-0.5), Str("12345678".into()), Bytes(vec![1; 8])]
            {
                list.set(index, value.clone()).unwrap();
                assert_eq!(list.get(index).unwrap(), value);
            }
        }
        list.unlink().unwrap();
    });
}

// conformance: _TestSharedMemory.test_shared_memory_ShareableList_basics
#[test]
fn what_does_not_fit_changes_nothing() {
    test(|| {
        let list = list("fit", [1.into(), "ä".into(), 2.5.into(), "a longer text".into(), ().into()]);
        let before = list.to_vec().unwrap();
        for (index, largest) in [(0, 8), (1, 8), (2, 8), (3, 16), (4, 8)] {
            assert!(is_refused(list.set(index, "x".repeat(largest + 1))));
            assert!(is_refused(list.set(index, vec![7; largest + 1])));
            // Counted in bytes.
            assert!(is_refused(list.set(index, format!("{}x", "ä".repeat(largest / 2)))));
            assert!(is_refused(list.set(index, "ends in zero\0")));
            assert_eq!(list.to_vec().unwrap(), before);
            for fits in ["x".repeat(largest), "ä".repeat(largest / 2), String::new()] {
                list.set(index, fits.as_str()).unwrap();
                assert_eq!(list.get(index).unwrap(), Str(fits));
            }
            for fits in [vec![7; largest], vec![0; largest], vec![7, 0], vec![0, 7]] {
                list.set(index, fits.clone()).unwrap();
                assert_eq!(list.get(index).unwrap(), Bytes(fits));
            }
            list.set(index, before[index as usize].clone()).unwrap();
            assert_eq!(list.to_vec().unwrap(), before);
        }
        list.unlink().unwrap();
        assert!(is_refused(ShareableList::create_named(&shm_name("zero"), ["a\0".into()])));
    });
}

// conformance: _TestSharedMemory.test_shared_memory_ShareableList_basics
#[test]
fn a_copy_is_another_list_and_an_opened_one_the_same() {
    test(|| {
        let first = list("first", mixed());
        let copy = first.copy_named(&shm_name("copy")).unwrap();
        let made_up = copy.copy().unwrap();
        let same = ShareableList::open(first.name()).unwrap();
        first.set(0, "changed").unwrap();
        assert_eq!(same.get(0).unwrap(), "changed".into());
        for other in [&copy, &made_up] {
            assert_ne!(other.name(), first.name());
            assert_eq!(other.to_vec().unwrap(), mixed());
            other.unlink().unwrap();
        }
        same.unlink().unwrap();

        let empty = list("empty", []);
        assert!(empty.is_empty());
        assert_eq!((empty.format().unwrap().as_str(), empty.to_vec().unwrap()), ("", vec![]));
        assert!(is_refused(empty.get(0)) && is_refused(empty.get(-1)));
        assert!(ShareableList::open(empty.name()).unwrap().is_empty());
        let error = ShareableList::create_named(empty.name(), []).unwrap_err();
        assert!(error.is_already_exists(), "{error}");
        empty.unlink().unwrap();
        assert!(ShareableList::open(empty.name()).unwrap_err().is_not_found());
    });
}

// conformance: _TestSharedMemory.test_shared_memory_ShareableList_pickling
#[test]
fn what_is_sent_is_the_name() {
    test(|| {
        current_thread().block_on(async {
            let (short, long) = (list("10", (0..10).map(Int)), list("99", (0..400).map(Int)));
            let len = |list: &ShareableList| rmp_serde::to_vec(list).unwrap().len();
            assert_eq!(len(&short), len(&long));
            let (mut here, mut there) = mp::pipe().unwrap();
            here.send(&short).await.unwrap();
            let received: ShareableList = there.recv().await.unwrap();
            assert_eq!((received.name(), received.len()), (short.name(), 10));
            received.set(0, "text").unwrap();
            assert_eq!(short.get(0).unwrap(), "text".into());
            short.set(-1, 10).unwrap();
            assert_eq!(received.get(9).unwrap(), Int(10));
            for list in [short, long] {
                list.unlink().unwrap();
            }
        });
    });
}

// conformance: _TestSharedMemory.test_shared_memory_ShareableList_pickling_dead_object
#[test]
fn a_name_that_is_gone_is_not_received() {
    test(|| {
        let gone = list("gone", [1.into()]);
        let bytes = rmp_serde::to_vec(&gone).unwrap();
        gone.unlink().unwrap();
        drop(gone);
        let error = rmp_serde::from_slice::<ShareableList>(&bytes).unwrap_err();
        assert!(error.to_string().contains("not found"), "{error}");
    });
}

fn double_and_die(list: ShareableList) {
    for index in 0..list.len() as isize {
        let ShareableValue::Int(number) = list.get(index).unwrap() else { panic!("{list:?}") };
        list.set(index, 2 * number).unwrap();
    }
    kill_9(std::process::id() as i32);
}

#[test]
fn children_change_it_and_leave_it() {
    test(|| {
        for context in methods() {
            current_thread().block_on(async {
                let list = list("children", (0..5).map(Int));
                let child = context.process(double_and_die, (list.clone(),)).start().await.unwrap();
                assert_eq!(child.join().await.unwrap().signal(), Some(9));
                let same = ShareableList::open(list.name()).unwrap();
                assert_eq!(same.to_vec().unwrap(), [0, 2, 4, 6, 8].map(Int));
                list.unlink().unwrap();
            });
        }
    });
}

#[test]
fn a_list_that_is_none_is_an_error() {
    test(|| {
        let name = shm_name("none");
        let path = format!("/dev/shm/{name}");
        let word = |number: i64| number.to_ne_bytes();
        let lists: [Vec<u8>; 7] = [
            b"short".to_vec(),
            word(0).to_vec(),
            [word(-1), word(0)].concat(),
            [word(1), word(0), word(8), word(0)].concat(),
            [word(i64::MAX), word(0), word(8), word(0)].concat(),
            [[word(1), word(8), word(16)].concat(), vec![0; 100]].concat(),
            [[word(2), word(0), word(8), word(4)].concat(), vec![0; 100]].concat(),
        ];
        for bytes in lists {
            fs::write(&path, &bytes).unwrap();
            match ShareableList::open(&name) {
                Err(mp::Error::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
                other => panic!("{other:?}"),
            }
        }
        fs::remove_file(path).unwrap();
    });
}

#[test]
fn whatever_a_stranger_does_gives_errors_and_no_panic() {
    test(|| {
        let mut random = Random::new();
        let list = list("stranger", mixed());
        let size = list.shm().size() as u64;
        let file = OpenOptions::new().write(true).open(format!("/dev/shm/{}", list.name())).unwrap();
        for _ in 0..2000 {
            file.write_at(&[random.next() as u8], random.below(size)).unwrap();
            // Kind by kind, whatever comes of it.
            let _ = (list.to_vec(), list.format(), list.index(1), list.count("a"), format!("{list:?}"));
            let _ = ShareableList::open(list.name()).and_then(|again| again.to_vec());
            list.set(random.below(7) as isize, 5).unwrap();
        }
        (0..7).for_each(|index| list.set(index, 0).unwrap());
        file.set_len(size - 1).unwrap();
        match list.get(-1) {
            Err(mp::Error::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}"),
            other => panic!("{other:?}"),
        }
        assert!(format!("{list:?}").contains("shrunk"));
        list.unlink().unwrap();
    });
}

/// What a CPython does that is given two names: looks at the list that has the first, changes it, and makes
/// another with the second. Before 3.13 it has to be told not to unlink what it has merely opened.
const PEER: &str = r"
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import ShareableList
ours = ShareableList(name=sys.argv[1])
assert list(ours) == ['häwdy', b'HoWdY', -273.154, 100, None, True, b'zeros\0\0', ''], list(ours)
assert ours.format == '8s8sdqxxxxxx?xxxxxxxx?7s 8s', ours.format
ours[0] = 'ä' * 4
ours[3] = -1
ours[4] = 'now text'
ours[6] = b'12345678'
ours[7] = None
theirs = ShareableList([1, 'text', b'bytes', None, False, 2.5, b'x' * 20], name=sys.argv[2])
for l in ours, theirs:
    l.shm.close()
    resource_tracker.unregister(l.shm._name, 'shared_memory')
";

#[test]
fn it_is_cpythons() {
    test(|| {
        // 3.8 has another layout.
        for python in pythons().iter().filter(|python| python.minor >= 9) {
            let ours = list(
                "ours",
                [
                    "häwdy".into(),
                    b"HoWdY".into(),
                    (-273.154).into(),
                    100.into(),
                    ().into(),
                    true.into(),
                    b"zeros\0\0".into(),
                    "".into(),
                ],
            );
            let mut peer = Command::new(&python.program);
            let output = peer.args(["-c", PEER, ours.name(), &shm_name("theirs")]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "3.{}: {said}", python.minor);
            let expected = [
                "ääää".into(),
                b"HoWdY".into(),
                (-273.154).into(),
                (-1).into(),
                "now text".into(),
                true.into(),
                b"12345678".into(),
                ().into(),
            ];
            assert_eq!(ours.to_vec().unwrap(), expected);
            ours.unlink().unwrap();
            let theirs = ShareableList::open(&shm_name("theirs")).unwrap();
            let expected = [
                1.into(),
                "text".into(),
                b"bytes".into(),
                ().into(),
                false.into(),
                2.5.into(),
                vec![b'x'; 20].into(),
            ];
            assert_eq!(theirs.to_vec().unwrap(), expected);
            assert_eq!(theirs.format().unwrap(), "q8s8sxxxxxx?xxxxxxxx?d24s");
            theirs.set(1, b"a\0").unwrap();
            assert_eq!(theirs.get(1).unwrap(), b"a\0".into());
            theirs.unlink().unwrap();
        }
    });
}
