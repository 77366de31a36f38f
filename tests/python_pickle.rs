//! Pickles that real CPythons made, and what they make of ours.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use support::python::{Python, pythons};
use support::watchdog;
use tokio_multiprocess::python::{BigInt, Global, Instance, Object, Pickle};
use tokio_multiprocess::reduction::Codec;

/// What `tests/python/pickles.py` printed under each version that the file names.
const COMMITTED: &str = include_str!("python/pickles.tsv");

fn list<T: Into<Object>>(items: impl IntoIterator<Item = T>) -> Object {
    items.into_iter().map(Into::into).collect()
}

fn dict(entries: Vec<(Object, Object)>) -> Object {
    Object::Dict(entries)
}

fn call(module: &str, name: &str, args: Vec<Object>) -> Instance {
    Instance::call(Global::new(module, name), args)
}

/// The values of `tests/python/pickles.py`.
fn values() -> BTreeMap<&'static str, Object> {
    let mut huge = vec![0u8; 300];
    huge[0] = 1;
    for _ in 0..1400 {
        let mut carry = 0;
        for byte in &mut huge {
            let wide = u16::from(*byte) * 3 + carry;
            *byte = wide as u8;
            carry = wide >> 8;
        }
    }
    let mut carry = true;
    for byte in &mut huge {
        (*byte, carry) = (!*byte).overflowing_add(carry.into());
    }
    let row = || list([1, 2]);
    let mut ordered = call("collections", "OrderedDict", vec![]);
    ordered.entries = vec![("z".into(), 1.into()), ("a".into(), 2.into())];
    let mut default = call("collections", "defaultdict", vec![Global::new("builtins", "list").into()]);
    default.entries = vec![(1.into(), 2.into())];
    let namespace = dict(vec![("x".into(), 1.into()), ("y".into(), "b".into())]);
    let token = Object::from(("list", ("h", 5), "7f"));
    let mut words = call("__main__", "Words", vec![]);
    words.new = true;
    words.items = vec!["w".into()];
    let mut keyed = Instance::new(Global::new("__main__", "Keyed"), dict(vec![("a".into(), 1.into())]));
    keyed.args = vec![1.into()];
    keyed.kwargs = vec![("k".into(), 2.into())];
    BTreeMap::from([
        ("none", Object::None),
        ("true", true.into()),
        ("false", false.into()),
        (
            "ints",
            list([0, -1, 255, 256, 65535, 65536, (1i64 << 31) - 1, 1 << 31, -(1 << 31), -(1 << 31) - 1]),
        ),
        (
            "ints64",
            list([i64::MAX.into(), i64::MIN.into(), 1i128 << 63, -(1i128 << 63) - 1, (1 << 64) - 1, 1 << 64]),
        ),
        ("ints128", list([Object::from(i128::MAX), i128::MIN.into(), u128::MAX.into()])),
        ("int_huge", BigInt::from_le_bytes(&huge).into()),
        ("floats", list([0.0, -0.0, 1.5, -1e308, 5e-324, f64::INFINITY, f64::NEG_INFINITY])),
        ("text", list(["", "plain", "grüß € 𝄞", "back\\slash \\u0041\nline\r\0\x1a"])),
        ("text_long", "x".repeat(300).into()),
        ("bytes", list([vec![], b"ab\n\\".to_vec(), (0..=255).collect()])),
        ("bytearray", list([vec![], b"ab\xff".to_vec(), vec![0; 9]].map(Object::ByteArray))),
        (
            "tuples",
            list([Object::Tuple(vec![]), (1,).into(), (1, 2).into(), (1, 2, 3).into(), (1, 2, 3, 4).into()]),
        ),
        ("list_long", list(0..1100)),
        (
            "dict_mixed",
            dict(vec![
                (1.into(), "a".into()),
                ("b".into(), 2.into()),
                ((1, ()).into(), 2.5.into()),
                (Object::None, Object::List(vec![])),
                (b"k"[..].into(), true.into()),
            ]),
        ),
        (
            "sets",
            list([
                Object::Set(vec![]),
                Object::Set(vec![7.into()]),
                Object::FrozenSet(vec![]),
                Object::FrozenSet(vec!["f".into()]),
            ]),
        ),
        ("shared", list([row(), row(), (row(), row()).into()])),
        (
            "global",
            list([
                Global::new("builtins", "len"),
                Global::new("collections", "OrderedDict"),
                Global::new("builtins", "ValueError"),
            ]),
        ),
        ("exception", call("builtins", "ValueError", vec!["no".into(), 3.into()]).into()),
        ("ordered_dict", ordered.into()),
        ("default_dict", default.into()),
        ("namespace", Instance::new(Global::new("argparse", "Namespace"), namespace).into()),
        ("date", call("datetime", "date", vec![b"\x07\xe4\x01\x02"[..].into()]).into()),
        ("decimal", call("decimal", "Decimal", vec!["1.50".into()]).into()),
        ("complex", call("builtins", "complex", vec![1.0.into(), 2.0.into()]).into()),
        ("token", Instance::new(Global::new("multiprocessing.managers", "Token"), token).into()),
        ("list_subclass", words.into()),
        ("new_with_keywords", keyed.into()),
    ])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

fn unhex(hex: &str) -> Vec<u8> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16).unwrap() as u8;
    hex.as_bytes().chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect()
}

fn encode(object: &Object) -> Vec<u8> {
    let mut pickle = Vec::new();
    Pickle::encode(object, &mut pickle).unwrap();
    pickle
}

/// Reads "name protocol hex" lines, and cuts each pickle short at every byte.
#[track_caller]
fn assert_values(printed: &str, whose: &str) {
    let values = values();
    let mut count = 0;
    for line in printed.lines().filter(|line| !line.starts_with('#')) {
        let [name, protocol, data] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let pickle = unhex(data);
        let object = Pickle::decode::<Object>(&pickle);
        assert_eq!(object.as_ref(), Ok(&values[name]), "{name}, protocol {protocol}, {whose}");
        for end in (0..pickle.len()).step_by(pickle.len().div_ceil(400)) {
            Pickle::decode::<Object>(&pickle[..end]).unwrap_err();
        }
        count += 1;
    }
    assert!(count > 6 * (values.len() - 2), "{whose} printed {count} pickles");
}

/// What the script answers to `input`.
fn run(python: &Python, mode: &[&str], input: &str) -> String {
    let mut command = python.command("pickles.py");
    command.args(mode).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // Beside the reading below, since both pipes may be full.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "3.{}: {}", python.minor, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_committed_pickles_are_read() {
    assert_values(COMMITTED, "the committed file");
}

#[test]
fn each_python_and_this_crate_read_the_others_pickles() {
    let _watchdog = watchdog(120);
    let ours: String =
        values().iter().map(|(name, object)| format!("{name} {}\n", hex(&encode(object)))).collect();
    for python in pythons() {
        assert_values(&run(python, &[], ""), &format!("3.{}", python.minor));
        assert_eq!(run(python, &["check"], &ours), "", "3.{}", python.minor);
    }
}

/// What comes back from Python as it went there: no two keys that Python calls equal, no sets whose
/// order would change.
fn object() -> impl Strategy<Value = Object> {
    let key = prop_oneof![
        any::<i64>().prop_map(Object::from),
        any::<i128>().prop_map(Object::from),
        vec(any::<u8>(), 0..300).prop_map(|bytes| BigInt::from_le_bytes(&bytes).into()),
        prop_oneof![4 => ".{0,9}", 1 => "é{120,140}"].prop_map(Object::from),
        vec(any::<u8>(), 0..300).prop_map(Object::from),
    ];
    let keys = || key.clone();
    let leaf = prop_oneof![
        4 => keys(),
        1 => Just(Object::None),
        1 => any::<bool>().prop_map(Object::from),
        1 => (-1e300..1e300).prop_map(|float: f64| Object::from(float)),
        1 => vec(any::<u8>(), 0..300).prop_map(Object::ByteArray),
        1 => vec(keys(), 0..2).prop_map(Object::Set),
        1 => vec(keys(), 0..2).prop_map(Object::FrozenSet),
    ];
    leaf.prop_recursive(4, 48, 6, move |item| {
        prop_oneof![
            vec(item.clone(), 0..6).prop_map(Object::List),
            vec(item.clone(), 0..6).prop_map(Object::Tuple),
            vec((key.clone(), item.clone()), 0..6).prop_map(|mut entries| {
                let mut seen = Vec::new();
                entries.retain(|(key, _)| {
                    let new = !seen.contains(key);
                    seen.push(key.clone());
                    new
                });
                Object::Dict(entries)
            }),
            vec(item, 0..4).prop_map(|args| call("builtins", "ValueError", args).into()),
        ]
    })
}

#[test]
fn objects_come_back_from_python_in_each_protocol() {
    let _watchdog = watchdog(120);
    let mut runner = TestRunner::deterministic();
    let objects: Vec<_> = (0..200).map(|_| object().new_tree(&mut runner).unwrap().current()).collect();
    let ours: String = objects.iter().map(|object| hex(&encode(object)) + "\n").collect();
    for python in pythons() {
        let theirs = run(python, &["again"], &ours);
        assert_eq!(theirs.lines().count(), objects.len());
        for (line, object) in theirs.lines().zip(&objects) {
            for (protocol, pickle) in line.split(' ').enumerate() {
                let back = Pickle::decode::<Object>(&unhex(pickle));
                assert_eq!(back.as_ref(), Ok(object), "protocol {protocol}, 3.{}", python.minor);
            }
        }
    }
}
