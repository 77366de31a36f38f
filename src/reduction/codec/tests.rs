use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use proptest::collection::{btree_map, hash_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};
use serde_bytes::ByteBuf;

use super::{Codec, CodecError, MessagePack, NIL, SOME, decode, encode_into};

fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(value, &mut out).unwrap();
    out
}

/// Sends the value through the codec, alone, within other values and skipped over.
#[track_caller]
fn round_trips<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
    let bytes = encode(&value);
    let read: T = decode(&bytes).unwrap_or_else(|error| panic!("{value:?}: {error}: {bytes:02x?}"));
    assert_eq!(read, value, "{bytes:02x?}");

    decode::<IgnoredAny>(&bytes).unwrap();
    for end in 0..bytes.len().min(60) {
        assert!(decode::<T>(&bytes[..end]).is_err());
    }

    let within = (7u8, Some(&value), "after", [&value]);
    let bytes = encode(&within);
    let read: (u8, Option<T>, String, [T; 1]) = decode(&bytes).unwrap();
    assert_eq!(read.1.as_ref(), Some(&value), "{bytes:02x?}");
    assert_eq!((read.0, &*read.2, &read.3[0]), (7, "after", &value));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Unit;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Newtype<T>(T);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Skips {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<u32>,
    second: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    third: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Inner {
    bytes: Vec<u8>,
    nested: Option<Option<u8>>,
    array: [u8; 4],
    buffer: ByteBuf,
    unit: Unit,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Flat {
    id: i64,
    #[serde(flatten)]
    inner: Inner,
    #[serde(flatten)]
    rest: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Negative(i64),
    Real(f64),
    Text(String),
    Struct { inner: Inner },
    Mixed(u8, u8, String),
    Bytes(Vec<u8>),
    Many(Vec<Untagged>),
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Internal {
    Empty,
    Struct { bytes: Vec<u8>, depth: Option<Option<()>> },
    Newtype(Inner),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "content")]
enum Adjacent {
    Empty,
    Newtype(Option<Option<u16>>),
    Tuple(u8, u8),
    Struct { bytes: Vec<u8> },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
enum External {
    Empty,
    Newtype(Option<u8>),
    Unit(()),
    Tuple(u8, u8, String),
    Bytes(u8, u8),
    Struct { a: Vec<u8>, b: Option<()> },
}

fn inner() -> impl Strategy<Value = Inner> {
    (vec(any::<u8>(), 0..40), any::<Option<Option<u8>>>(), any::<[u8; 4]>(), vec(any::<u8>(), 0..40))
        .prop_map(|(bytes, nested, array, buffer)| Inner {
            bytes,
            nested,
            array,
            buffer: ByteBuf::from(buffer),
            unit: Unit,
        })
}

fn untagged() -> impl Strategy<Value = Untagged> {
    let leaf = prop_oneof![
        any::<u64>().prop_map(Untagged::Number),
        (i64::MIN..0).prop_map(Untagged::Negative),
        (-1e9..1e9).prop_map(Untagged::Real),
        ".*".prop_map(Untagged::Text),
        inner().prop_map(|inner| Untagged::Struct { inner }),
        any::<(u8, u8, String)>().prop_map(|(a, b, c)| Untagged::Mixed(a, b, c)),
        vec(any::<u8>(), 0..40).prop_map(Untagged::Bytes),
        Just(Untagged::Nothing),
    ];
    // A list that is empty, or of nothing but bytes, would be read as `Bytes`.
    leaf.prop_recursive(4, 32, 5, |element| {
        vec(element, 1..5).prop_map(|mut list| {
            list.insert(0, Untagged::Nothing);
            Untagged::Many(list)
        })
    })
}

fn internal() -> impl Strategy<Value = Internal> {
    prop_oneof![
        Just(Internal::Empty),
        (vec(any::<u8>(), 0..20), any::<Option<Option<()>>>())
            .prop_map(|(bytes, depth)| Internal::Struct { bytes, depth }),
        inner().prop_map(Internal::Newtype),
    ]
}

fn adjacent() -> impl Strategy<Value = Adjacent> {
    prop_oneof![
        Just(Adjacent::Empty),
        any::<Option<Option<u16>>>().prop_map(Adjacent::Newtype),
        any::<(u8, u8)>().prop_map(|(a, b)| Adjacent::Tuple(a, b)),
        vec(any::<u8>(), 0..20).prop_map(|bytes| Adjacent::Struct { bytes }),
    ]
}

fn external() -> impl Strategy<Value = External> {
    prop_oneof![
        Just(External::Empty),
        any::<Option<u8>>().prop_map(External::Newtype),
        Just(External::Unit(())),
        any::<(u8, u8, String)>().prop_map(|(a, b, c)| External::Tuple(a, b, c)),
        any::<(u8, u8)>().prop_map(|(a, b)| External::Bytes(a, b)),
        (vec(any::<u8>(), 0..20), any::<Option<()>>()).prop_map(|(a, b)| External::Struct { a, b }),
    ]
}

proptest! {
    #[test]
    fn numbers(
        a: u64,
        b: i64,
        c: u128,
        d: i128,
        e: i8,
        f: (u8, u16, u32),
        g: f32,
        h: f64,
        i: bool,
    ) {
        round_trips(a);
        round_trips(b);
        round_trips(c);
        round_trips(d);
        round_trips((a as u128, b as i128, c >> 60, d >> 60));
        round_trips(e);
        round_trips(f);
        round_trips((g, h, i));
    }

    #[test]
    fn text(a: char, b: String, c: Option<char>) {
        round_trips((a, b, c));
    }

    #[test]
    fn options(
        a: Option<Option<Option<u8>>>,
        b: Option<Option<()>>,
        c: Vec<Option<u8>>,
        d: Vec<Option<Option<u8>>>,
        e: Option<Vec<u8>>,
    ) {
        round_trips(b.map(|b| b.map(|()| Unit)));
        round_trips(b.map(Newtype));
        round_trips(a);
        round_trips(b);
        round_trips(c.into_iter().map(|c| c.map(Newtype)).collect::<Vec<_>>());
        round_trips(d);
        round_trips(e);
    }

    #[test]
    fn bytes(a: Vec<u8>, b: [u8; 4], c: (u8, u8, String), d: Vec<(u8, u8)>, e: Vec<Vec<u8>>) {
        round_trips(ByteBuf::from(a.clone()));
        round_trips(a.iter().copied().map(Newtype).collect::<Vec<_>>());
        round_trips(a);
        round_trips(b);
        round_trips(c);
        round_trips(d);
        round_trips(e);
    }

    #[test]
    fn byte_strings_and_sequences_of_bytes_read_as_each_other(a: Vec<u8>) {
        let buffer = ByteBuf::from(a.clone());
        prop_assert_eq!(&decode::<ByteBuf>(&encode(&a)).unwrap(), &buffer);
        prop_assert_eq!(&decode::<Vec<u8>>(&encode(&buffer)).unwrap(), &a);
        prop_assert_eq!(&decode::<ByteBuf>(&rmp_serde::to_vec(&a).unwrap()).unwrap(), &buffer);
        prop_assert_eq!(decode::<Box<[u8]>>(&rmp_serde::to_vec(&a).unwrap()).unwrap(), a.into());
    }

    #[test]
    fn maps(
        a in hash_map(any::<u64>(), any::<Option<String>>(), 0..20),
        b in btree_map(any::<(u8, i32)>(), any::<()>(), 0..20),
        c in btree_map(external(), any::<u8>(), 0..20),
        d in btree_map(option::of(any::<u8>()), vec(any::<u8>(), 0..5), 0..20),
    ) {
        round_trips(a);
        round_trips(b);
        round_trips(c);
        round_trips(d);
    }

    #[test]
    fn skipped_fields(first: Option<u32>, second: bool, third: Vec<u8>) {
        round_trips(Skips { first, second, third });
    }

    #[test]
    fn flattened(
        id: i64,
        inner in inner(),
        rest in btree_map("_[a-z]{1,9}", vec(any::<u8>(), 0..9), 0..20),
    ) {
        round_trips(Flat { id, inner, rest });
    }

    #[test]
    fn tagged(a in untagged(), b in internal(), c in adjacent(), d in external()) {
        round_trips(a);
        round_trips(b);
        round_trips(c);
        round_trips(d.clone());
        round_trips(Some(Newtype(d)));
    }

    #[test]
    fn random_bytes_do_not_panic(bytes: Vec<u8>) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn damaged_messages_do_not_panic(
        message in (internal(), external(), untagged()),
        at: prop::sample::Index,
        byte: u8,
    ) {
        let mut bytes = encode(&message);
        *at.get_mut(&mut bytes) = byte;
        decode_as_everything(&bytes);
    }

    #[test]
    fn plain_values_are_plain_message_pack(
        a in btree_map(any::<String>(), any::<(i64, Option<u32>, String)>(), 0..9),
        b: Vec<(f32, f64, bool, char)>,
        c in vec(any::<u8>(), 0..300),
        first: Option<u32>,
    ) {
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        enum Choice {
            Empty,
            Newtype(i16),
            Tuple(i16, String),
            Struct { list: Vec<u16> },
        }
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        struct Plain<A, B> {
            a: A,
            b: B,
            c: ByteBuf,
            skips: Skips,
            choices: [Choice; 4],
            unit: (),
        }
        let list = c.iter().map(|&c| u16::from(c) * 5).collect();
        let plain = Plain {
            a,
            b,
            c: ByteBuf::from(c),
            skips: Skips { first, second: true, third: vec![] },
            choices: [
                Choice::Empty,
                Choice::Newtype(-3),
                Choice::Tuple(999, "x".into()),
                Choice::Struct { list },
            ],
            unit: (),
        };
        let ours = encode(&plain);
        prop_assert_eq!(&ours, &rmp_serde::to_vec_named(&plain).unwrap());
        prop_assert_eq!(&rmp_serde::from_slice::<Plain<_, _>>(&ours).unwrap(), &plain);
    }

    #[test]
    fn what_rmp_serde_writes_is_read(
        a in inner(),
        b in external(),
        c in adjacent(),
        wide: (u128, i128),
    ) {
        // What it has no form for is not asked of it.
        let inner = Inner { nested: a.nested.filter(Option::is_some), ..a };
        let c = if c == Adjacent::Newtype(Some(None)) { Adjacent::Empty } else { c };
        let b = match b {
            External::Struct { a, .. } => External::Struct { a, b: None },
            b => b,
        };
        let value = (inner, b, c, wide, Unit, Newtype(3u8));
        let read = decode(&rmp_serde::to_vec_named(&value).unwrap()).unwrap();
        prop_assert_eq!(value, read);
    }
}

/// Recursion through an option alone, which takes no bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Chain(Option<Box<Chain>>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct List {
    next: Option<Box<List>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Tree {
    Leaf,
    Node(Vec<Tree>),
}

fn decode_as_everything(bytes: &[u8]) {
    fn attempt<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
        if let Ok(value) = decode::<T>(bytes) {
            decode::<T>(&encode(&value)).unwrap();
        }
    }
    if decode::<Untagged>(bytes).is_ok() {
        decode::<IgnoredAny>(bytes).unwrap();
    }
    attempt::<Untagged>(bytes);
    attempt::<Internal>(bytes);
    attempt::<Adjacent>(bytes);
    attempt::<External>(bytes);
    attempt::<Flat>(bytes);
    attempt::<Chain>(bytes);
    attempt::<List>(bytes);
    attempt::<Tree>(bytes);
    attempt::<Vec<String>>(bytes);
    attempt::<ByteBuf>(bytes);
    attempt::<(u8, i128, Option<Option<char>>)>(bytes);
    attempt::<HashMap<Vec<u8>, Vec<()>>>(bytes);
}

#[track_caller]
fn refused<T: DeserializeOwned + Debug>(bytes: &[u8], why: &str) {
    let error = decode::<T>(bytes).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn the_codec_is_the_default_format() {
    let mut out = vec![9];
    MessagePack::encode(&(1u64, "a"), &mut out).unwrap();
    assert_eq!(out, [9, 0x92, 1, 0xa1, b'a']);
    assert_eq!(MessagePack::decode::<(u64, String)>(&out[1..]).unwrap(), (1, "a".into()));
}

#[test]
fn wide_integers_keep_to_the_short_form_where_they_fit() {
    assert_eq!(encode(&5u128), [5]);
    assert_eq!(encode(&-5i128), [0xfb]);
    for value in
        [i128::MIN, i64::MIN as i128 - 1, i64::MIN as i128, u64::MAX as i128, u64::MAX as i128 + 1, i128::MAX]
    {
        round_trips(value);
    }
    for value in [0, u64::MAX as u128 + 1, i128::MAX as u128, i128::MAX as u128 + 1, u128::MAX] {
        round_trips(value);
    }
    // A sign is not lost by reading one type as the other.
    assert!(decode::<i128>(&encode(&u128::MAX)).is_err());
    assert!(decode::<u128>(&encode(&i128::MIN)).is_err());
}

#[test]
fn options_are_marked_only_where_they_would_be_lost() {
    assert_eq!(encode(&Some(Some(5u8))), [5]);
    assert_eq!(encode(&None::<Option<u8>>), [NIL]);
    assert_eq!(encode(&Some(None::<u8>)), [SOME, NIL]);
    assert_eq!(encode(&Some(Some(()))), [SOME, SOME, NIL]);
    assert_eq!(encode(&Some(Unit)), [SOME, NIL]);
    // Raw bytes that look like the marks are none.
    round_trips(vec![Some(NIL), Some(SOME)]);
    round_trips(vec![Some(NIL), Some(SOME), None]);
    round_trips(vec![Some(Some(NIL)), Some(None), None]);
}

#[test]
fn sequences_of_bytes_are_raw() {
    assert_eq!(encode(&[200u8, 3]), [0xd5, 1, 200, 3]);
    assert_eq!(encode(&(200u8, 3u8)), [0xd5, 1, 200, 3]);
    assert_eq!(encode(&Vec::<u8>::new()), [0x90]);
    assert_eq!(encode(&(200u8, 3u8, true)), [0x93, 0xcc, 200, 3, 0xc3]);
    for len in [1, 2, 3, 4, 8, 15, 16, 17, 255, 256, 65535, 65536] {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        assert!(encode(&bytes).len() <= bytes.len() + 6);
        round_trips(bytes.clone());
        // The last element ends the optimism.
        let mut options: Vec<_> = bytes.into_iter().map(Some).collect();
        options.push(None);
        round_trips(options);
    }
}

/// A sequence that does not know its length, or lies about it.
struct Announced<'a, T>(Option<usize>, &'a [T]);

impl<T: Serialize> Serialize for Announced<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(self.0)?;
        for element in self.1 {
            seq.serialize_element(element)?;
        }
        seq.end()
    }
}

struct AnnouncedMap<'a>(Option<usize>, &'a BTreeMap<u32, String>);

impl Serialize for AnnouncedMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(self.0)?;
        for (key, value) in self.1 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[test]
fn announced_lengths_are_put_right() {
    for announced in [None, Some(0), Some(1), Some(16), Some(40), Some(70_000)] {
        for len in [0, 1, 15, 16, 17, 300, 65_536] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            assert_eq!(encode(&Announced(announced, &bytes)), encode(&bytes));
            let mut options: Vec<_> = bytes.iter().copied().map(Some).collect();
            options.push(None);
            assert_eq!(encode(&Announced(announced, &options)), encode(&options));
            let map: BTreeMap<u32, String> = (0..len).map(|at| (at, at.to_string())).collect();
            assert_eq!(encode(&AnnouncedMap(announced, &map)), encode(&map));
        }
    }
    let huge = encode_into(&Announced(Some(usize::MAX), &[1u8]), &mut Vec::new());
    assert!(huge.is_err());
}

/// A sequence of which nobody knows how long it is before it is over.
struct Collected<'a, T>(&'a [T]);

impl<T: Serialize + Copy> Serialize for Collected<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().copied().filter(|_| true))
    }
}

#[test]
fn bytes_that_are_collected_are_written_as_those_that_come_one_by_one() {
    for len in [0, 1, 1023, 1024, 1025, 5000] {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let one_by_one = encode(&Announced(None, &bytes));
        assert_eq!(encode(&bytes), one_by_one);
        assert_eq!(encode(&Collected(&bytes)), one_by_one);
        round_trips(bytes);
    }
}

#[test]
fn another_type_that_is_called_u8_is_written_as_what_it_is() {
    mod other {
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, serde::Serialize)]
        pub(super) struct u8(pub(super) u16);
    }
    let others = [other::u8(1), other::u8(300)];
    assert_eq!(encode(&others[..]), encode(&[1u16, 300][..]));
    assert_eq!(encode(&Collected(&others)), encode(&vec![1u16, 300]));
}

#[test]
fn types_that_differ_by_readability_agree_in_both_directions() {
    round_trips::<IpAddr>("127.0.0.1".parse().unwrap());
    round_trips::<IpAddr>("::1".parse().unwrap());
    round_trips(Duration::new(5, 7));
    round_trips(Ok::<u8, String>(3));
    round_trips(Err::<u8, String>("no".into()));
}

#[test]
fn a_failed_encoding_leaves_nothing_behind() {
    struct Fails;
    impl Serialize for Fails {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("it fails"))
        }
    }
    let mut out = vec![1, 2, 3];
    let error: CodecError = encode_into(&("before", Fails), &mut out).unwrap_err();
    assert_eq!(error.to_string(), "it fails");
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn malformed_input_is_refused() {
    refused::<u64>(&[], "ends inside");
    refused::<Option<u64>>(&[], "ends inside");
    refused::<External>(&[], "ends inside");
    refused::<u64>(&[1, 2], "1 bytes follow");
    refused::<(u64,)>(&[0x92, 1, 2], "1 elements too many");
    refused::<(u64,)>(&[0xd5, 1, 1, 2], "1 elements too many");
    refused::<(u64, u64)>(&[0x91, 1], "invalid length");
    refused::<String>(&[0xa1, 0xff], "utf-8");
    refused::<u64>(&[0xd4, 9, 0], "unknown extension 9");
    refused::<i128>(&[0xd4, 2, 0], "unknown extension 2");
    refused::<External>(&encode("Other"), "unknown variant");
    refused::<External>(&encode("Tuple"), "expected tuple variant");
    refused::<External>(&[0x80], "one entry");
    refused::<External>(&[0x82], "one entry");
    refused::<u64>(&[SOME, 5], "invalid type: Option");
}

#[test]
fn declared_lengths_are_not_believed() {
    for marker in [0xc6, 0xc9, 0xdb, 0xdd, 0xdf] {
        let bytes = [marker, 0xff, 0xff, 0xff, 0xff, 1, 0];
        decode_as_everything(&bytes);
        refused::<IgnoredAny>(&bytes, "ends inside");
        refused::<Untagged>(&bytes, "ends inside");
        refused::<Vec<u64>>(&[0xdd, 0xff, 0xff, 0xff, 0xff, 1, 0], "ends inside");
    }
}

#[test]
fn nesting_is_limited_in_both_directions() {
    fn tree(depth: usize) -> Tree {
        // Each node is a map and an array.
        (0..depth).fold(Tree::Leaf, |tree, _| Tree::Node(vec![tree]))
    }
    fn list(depth: usize) -> Option<Box<List>> {
        (0..depth).fold(None, |next, _| Some(Box::new(List { next })))
    }
    fn chain(depth: usize) -> Chain {
        (0..depth).fold(Chain(None), |chain, _| Chain(Some(Box::new(chain))))
    }
    let mut out = Vec::new();

    let deep = encode(&tree(64));
    assert_eq!(decode::<Tree>(&deep).unwrap(), tree(64));
    assert!(encode_into(&tree(65), &mut out).is_err());

    let deep = encode(&list(128));
    assert_eq!(decode::<Option<Box<List>>>(&deep).unwrap(), list(128));
    assert!(encode_into(&list(129), &mut out).is_err());

    decode::<Chain>(&encode(&chain(128))).unwrap();
    assert!(encode_into(&chain(129), &mut out).is_err());
    assert!(out.is_empty());
    refused::<Chain>(&[5], "too deeply");

    for byte in [0x91, 0x81, SOME] {
        let deep = vec![byte; 100_000];
        refused::<IgnoredAny>(&deep, "too deeply");
        refused::<Untagged>(&deep, "too deeply");
        decode_as_everything(&deep);
    }
    // Options between the containers do not add up beyond the limit.
    let mut deep = vec![SOME; 127];
    deep.push(0x91);
    refused::<IgnoredAny>(&deep.repeat(127), "too deeply");
}
