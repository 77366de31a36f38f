use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::time::Instant;

use proptest::collection::{btree_map, btree_set, hash_map, vec};
use proptest::prelude::*;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use serde_bytes::ByteBuf;

use super::*;
use crate::reduction::MessagePack;

fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    Pickle::encode(value, &mut out).unwrap();
    out
}

fn read(pickle: &[u8]) -> Result<Object, CodecError> {
    Pickle::decode(pickle)
}

#[track_caller]
fn refused(pickle: &[u8], why: &str) {
    let error = read(pickle).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

fn list<T: Into<Object>>(items: impl IntoIterator<Item = T>) -> Object {
    items.into_iter().map(Into::into).collect()
}

fn dict<K: Into<Object>, V: Into<Object>>(entries: impl IntoIterator<Item = (K, V)>) -> Object {
    entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

/// Sends the value through the codec, alone, within other values, as an object and skipped over.
#[track_caller]
fn round_trips<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
    let pickle = encode(&value);
    let back: T = Pickle::decode(&pickle).unwrap_or_else(|error| panic!("{value:?}: {error}: {pickle:02x?}"));
    assert_eq!(back, value, "{pickle:02x?}");
    Pickle::decode::<IgnoredAny>(&pickle).unwrap();
    for end in 0..pickle.len().min(60) {
        Pickle::decode::<T>(&pickle[..end]).unwrap_err();
    }

    let object = Object::new(&value).unwrap();
    assert_eq!(object.extract::<T>().unwrap(), value, "{object:?}");

    let pickle = encode(&(7u8, Some(&value), "after", [&value]));
    let back: (u8, Option<T>, String, [T; 1]) = Pickle::decode(&pickle).unwrap();
    assert_eq!((back.0, &*back.2, &back.3[0]), (7, "after", &value));
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Newtype<T>(T);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Inner {
    bytes: Vec<u8>,
    maybe: Option<u8>,
    array: [u8; 4],
    buffer: ByteBuf,
    unit: Unit,
    wide: (i128, u128),
    letter: char,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    skipped: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum External {
    Empty,
    Newtype(Option<u8>),
    Unit(()),
    Tuple(u8, u8, String),
    Struct { a: Vec<u8>, b: Option<()> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(i64),
    Text(String),
    Struct { count: u32 },
    Bytes(ByteBuf),
    Any(Object),
}

fn inner() -> impl Strategy<Value = Inner> {
    let wide = (any::<i128>(), any::<u128>());
    (
        vec(any::<u8>(), 0..300),
        any::<Option<u8>>(),
        any::<[u8; 4]>(),
        vec(any::<u8>(), 0..300),
        wide,
        any::<char>(),
    )
        .prop_map(|(bytes, maybe, array, buffer, wide, letter)| Inner {
            bytes,
            maybe,
            array,
            buffer: ByteBuf::from(buffer),
            unit: Unit,
            wide,
            letter,
            skipped: maybe.map(u32::from),
        })
}

/// What Python can look up.
fn hashable() -> impl Strategy<Value = Object> {
    let leaf = prop_oneof![
        Just(Object::None),
        any::<bool>().prop_map(Object::from),
        any::<i64>().prop_map(Object::from),
        any::<i128>().prop_map(Object::from),
        any::<u128>().prop_map(Object::from),
        vec(any::<u8>(), 0..300).prop_map(|bytes| BigInt::from_le_bytes(&bytes).into()),
        (-1e300..1e300).prop_map(|float: f64| Object::from(float)),
        prop_oneof![4 => ".{0,9}", 1 => "a{250,260}"].prop_map(Object::from),
        vec(any::<u8>(), 0..300).prop_map(Object::from),
        ("[a-z.]{1,9}", "[A-Za-z.]{1,9}").prop_map(|(module, name)| Global::new(module, name).into()),
    ];
    leaf.prop_recursive(3, 16, 5, |item| {
        prop_oneof![
            vec(item.clone(), 0..5).prop_map(Object::Tuple),
            vec(item, 0..5).prop_map(Object::FrozenSet),
        ]
    })
}

fn object() -> impl Strategy<Value = Object> {
    let leaf = prop_oneof![
        4 => hashable(),
        1 => vec(any::<u8>(), 0..300).prop_map(Object::ByteArray),
        1 => vec(hashable(), 0..5).prop_map(Object::Set),
    ];
    leaf.prop_recursive(4, 64, 6, |item| {
        let entries = || vec((hashable(), item.clone()), 0..5);
        let items = || vec(item.clone(), 0..5);
        let instance = (hashable(), items(), items(), entries(), proptest::option::of(item.clone()));
        prop_oneof![
            items().prop_map(Object::List),
            items().prop_map(Object::Tuple),
            entries().prop_map(Object::Dict),
            (instance, entries(), any::<bool>()).prop_map(
                |((callable, args, items, set, state), kwargs, new)| {
                    // A state of None is no state.
                    let state = state.filter(|state| *state != Object::None);
                    let kwargs = if new { kwargs } else { Vec::new() };
                    // `copyreg` and builtins mean something when they are called.
                    let callable = if new { callable } else { Global::new("a", "b").into() };
                    Instance { callable, args, new, kwargs, items, entries: set, state }.into()
                }
            ),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn any_object_comes_back_as_it_was(object in object()) {
        let pickle = encode(&object);
        let back = read(&pickle);
        prop_assert_eq!(back.as_ref(), Ok(&object));
        Pickle::decode::<IgnoredAny>(&pickle).unwrap();
    }

    #[test]
    fn typed_values_come_back(value: (bool, i8, i16, i32, i64), more: (u16, u32, u64, char, String)) {
        round_trips(value);
        round_trips(more);
    }

    #[test]
    fn wide_integers_come_back(i: i128, u: u128) {
        round_trips((i, u, i >> 60, i >> 64, u >> 64, u >> 70));
        round_trips((f64::from(i as f32), i as f32));
    }

    #[test]
    fn structs_and_enums_come_back(inner in inner(), text: String, byte: u8, bytes: Vec<u8>) {
        round_trips(inner.clone());
        round_trips(Newtype(inner));
        round_trips(External::Empty);
        round_trips(External::Unit(()));
        round_trips(External::Newtype(Some(byte)));
        round_trips(External::Tuple(byte, 1, text.clone()));
        round_trips(vec![External::Struct { a: bytes.clone(), b: None }, External::Empty]);
        round_trips(vec![
            Untagged::Number(-5), Untagged::Text(text), Untagged::Struct { count: 1 },
            // Text would be read as such.
            Untagged::Bytes(ByteBuf::from([&[0xFF][..], &bytes].concat())), Untagged::Any(true.into()),
        ]);
    }

    #[test]
    fn collections_come_back(
        list in vec(any::<Option<u8>>(), 0..9),
        set in btree_set(any::<u16>(), 0..9),
        map in btree_map(any::<(u8, String)>(), any::<Vec<u8>>(), 0..9),
        lists in btree_map(vec(any::<u8>(), 0..9), vec(any::<i64>(), 0..9), 0..9),
        table in hash_map(any::<i128>(), vec(any::<String>(), 0..9), 0..9),
    ) {
        round_trips::<Vec<Option<u8>>>(list);
        round_trips::<BTreeSet<u16>>(set);
        round_trips::<BTreeMap<(u8, String), Vec<u8>>>(map);
        round_trips::<BTreeMap<Vec<u8>, Vec<i64>>>(lists);
        round_trips::<HashMap<i128, Vec<String>>>(table);
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, object in object(), at: prop::sample::Index, byte: u8) {
        drop(read(&bytes));
        drop(Pickle::decode::<Inner>(&bytes));
        let mut pickle = encode(&object);
        pickle[at.index(encode(&object).len())] = byte;
        drop(read(&pickle));
        drop(Pickle::decode::<Untagged>(&pickle));
    }

    #[test]
    fn no_program_of_true_instructions_panics(ops in vec(prop::sample::select(&b"(.012NK\x01)]}lotdaesubRcqhg0\n\
        \x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94\x8c\x01xC\x01yI1\nS'a'\nVb\n"[..]), 0..80)) {
        drop(read(&ops));
        drop(Pickle::decode::<Vec<Inner>>(&ops));
    }
}

#[test]
fn bytes_and_numbers_are_told_apart() {
    let objects = [
        (Object::new(&vec![1u8, 2]), Object::from(&[1u8, 2][..])),
        (Object::new(&[1u8, 2]), Object::from((1, 2))),
        (Object::new(&Vec::<u8>::new()), Object::List(Vec::new())),
        (Object::new(&ByteBuf::new()), Object::Bytes(Vec::new())),
        (Object::new(&vec![Some(1u8)]), Object::List(vec![1.into()])),
        (Object::new(&vec![Newtype(1u8)]), Object::List(vec![1.into()])),
        (Object::new(&vec![vec![1u8]]), Object::List(vec![Object::Bytes(vec![1])])),
        (Object::new(&BTreeMap::from([(vec![1u8, 2], 3)])), dict([(&[1u8, 2][..], 3)])),
        (Object::new(&BTreeMap::from([(vec![256, 2], 3)])), dict([((256, 2), 3)])),
        (Object::new(&BTreeMap::from([(vec![vec![256]], 3)])), dict([(((256,),), 3)])),
    ];
    for (object, expected) in objects {
        assert_eq!(object, Ok(expected));
    }
    for written in [Object::from((1, 2)), list([1, 2]), Object::ByteArray(vec![1, 2])] {
        assert_eq!(written.extract(), Ok(vec![1u8, 2]));
        assert_eq!(written.extract(), Ok([1u8, 2]));
        assert_eq!(written.extract(), Ok(ByteBuf::from([1, 2])));
    }
    let keyed = Object::new(&BTreeMap::from([(BTreeMap::from([(1, 2)]), 3)]));
    assert!(keyed.unwrap_err().to_string().contains("dicts for keys"));
}

/// Bytes first, then something else; and lengths that are not known, or not true.
struct Odd {
    announced: Option<usize>,
    bytes: Vec<u8>,
    last: Option<&'static str>,
}

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(self.announced)?;
        self.bytes.iter().try_for_each(|byte| list.serialize_element(byte))?;
        self.last.iter().try_for_each(|last| list.serialize_element(last))?;
        list.end()
    }
}

#[test]
fn a_sequence_may_change_its_mind_and_misjudge_its_length() {
    for len in [1usize, 2, 255, 256, 1000] {
        let bytes = vec![200; len];
        for announced in [None, Some(0), Some(len), Some(300), Some(70_000)] {
            let odd = Odd { announced, bytes: bytes.clone(), last: None };
            assert_eq!(Object::new(&(1, odd)), Ok((1, bytes.clone()).into()));
            let odd = Odd { announced, bytes: bytes.clone(), last: Some("end") };
            let mut list = vec![Object::Int(200); len];
            list.push("end".into());
            assert_eq!(Object::new(&(1, odd)), Ok((1, list).into()));
        }
    }
}

#[test]
fn what_cannot_be_sent_leaves_nothing_behind() {
    let mut out = vec![1, 2, 3];
    let bad =
        Instance { kwargs: vec![("a".into(), 1.into())], ..Instance::call(Global::new("m", "f"), vec![]) };
    Pickle::encode(&bad, &mut out).unwrap_err();
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn instances_are_read_as_what_they_hold() {
    let class = || Global::new("shop", "Job");
    #[derive(Debug, PartialEq, Deserialize)]
    struct Job {
        size: u32,
        name: String,
    }
    let job = Job { size: 3, name: "x".to_owned() };
    let attributes = dict([("size", Object::from(3)), ("name", "x".into())]);
    let plain = Object::from(Instance::new(class(), attributes.clone()));
    let slots = Object::from(Instance::new(class(), (Object::None, attributes)));
    let called = Object::from(Instance::call(class(), vec![3.into(), "x".into()]));
    for object in [plain, slots, called] {
        assert_eq!(object.extract::<Job>().as_ref(), Ok(&job), "{object:?}");
    }
    let ordered =
        |entries| Instance { entries, ..Instance::call(Global::new("collections", "OrderedDict"), vec![]) };
    let empty = Object::from(ordered(vec![]));
    assert_eq!(empty.extract(), Ok(BTreeMap::<String, u8>::new()));
    let one = Object::from(ordered(vec![("a".into(), 1.into())]));
    assert_eq!(one.extract(), Ok(BTreeMap::from([("a".to_owned(), 1u8)])));
    let error = Object::from(Instance::call(Global::new("builtins", "KeyError"), vec!["k".into()]));
    assert_eq!(error.extract(), Ok(("k".to_owned(),)));

    let function = Object::from(Global::new("os", "system"));
    assert!(function.extract::<String>().unwrap_err().to_string().starts_with("os.system is no data"));
}

#[test]
fn objects_survive_where_serde_buffers_and_in_other_formats() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flat {
        id: u8,
        #[serde(flatten)]
        rest: BTreeMap<String, Object>,
    }
    let rest =
        BTreeMap::from([("list".to_owned(), list([Object::from(1), "a".into()])), ("no".into(), ().into())]);
    round_trips(Flat { id: 1, rest });

    let object = dict([("a", list([1.into(), Object::from(u128::MAX), "x".into(), 1.5.into()]))]);
    let mut message = Vec::new();
    MessagePack::encode(&object, &mut message).unwrap();
    assert_eq!(MessagePack::decode::<Object>(&message).as_ref(), Ok(&object));

    let parts =
        (Global::new("m", "C"), Instance::call(Global::new("m", "f"), vec![1.into()]), BigInt::from(5i128));
    round_trips(parts);
}

#[test]
fn conversions_agree_with_what_serde_says() {
    let object = Object::from((true, -1i8, u64::MAX, i128::MIN, 1.5f32, 'x', Some("y"), None::<u8>));
    let written = Object::new(&(true, -1i8, u64::MAX, i128::MIN, 1.5f32, 'x', Some("y"), None::<u8>));
    assert_eq!(written.as_ref(), Ok(&object));
    let items = Vec::<Object>::try_from(object).unwrap();
    assert_eq!(u64::try_from(items[2].clone()), Ok(u64::MAX));
    assert_eq!(i128::try_from(items[3].clone()), Ok(i128::MIN));
    assert_eq!(String::try_from(items[6].clone()), Ok("y".to_owned()));
    let error = i64::try_from(items[2].clone()).unwrap_err();
    assert_eq!(error.to_string(), "the int does not fit i64");
    let error = bool::try_from(items[6].clone()).unwrap_err();
    assert_eq!(error.to_string(), "a bool was expected and a str found");
    assert_eq!(dict([(1, 2), (1, 3)]).get(1), Some(&3.into()));
}

#[test]
fn big_integers_keep_their_value() {
    for (bytes, debug) in [
        (&[][..], "0x0"),
        (&[0, 0], "0x0"),
        (&[0xFF], "-0x1"),
        (&[0x80], "-0x80"),
        (&[0x80, 0], "0x80"),
        (&[0, 0, 1], "0x10000"),
        (&[0, 0xFF, 0xFF], "-0x100"),
        (&[1, 0xFF], "-0xff"),
    ] {
        assert_eq!(format!("{:?}", BigInt::from_le_bytes(bytes)), debug);
    }
    assert_eq!(u128::try_from(&BigInt::from(u128::MAX)), Ok(u128::MAX));
    assert_eq!(i128::try_from(&BigInt::from(i128::MIN)), Ok(i128::MIN));
    assert_eq!(i128::try_from(&BigInt::from(u128::MAX)), Err(OutOfRange));
    assert_eq!(u8::try_from(&BigInt::from(-1i128)), Err(OutOfRange));
    for value in [0, 1, -1, 999_999_999, -1_000_000_000, i128::MAX, i128::MIN, 1 << 64] {
        assert_eq!(read(format!("L{value}L\n.").as_bytes()), Ok(value.into()));
    }
    let wide = read(&[&b"\x8a\x11"[..], &[0xFF; 16], &[1], b"."].concat()).unwrap();
    assert!(wide.extract::<u128>().unwrap_err().to_string().contains("128 bits"));
}

#[test]
fn old_literals_are_read() {
    for (pickle, object) in [
        (&b"I01\n."[..], Object::Bool(true)),
        (b"I-7\n.", (-7).into()),
        (b"F-1e10\n.", (-1e10).into()),
        (b"Finf\n.", f64::INFINITY.into()),
        (b"S'it\\'s\\x41\\n'\n.", "it'sA\n".into()),
        (b"S\"\\xff\"\n.", Object::Bytes(vec![255])),
        (b"U\x02ab.", "ab".into()),
        (b"T\x01\0\0\0\xff.", Object::Bytes(vec![255])),
        (b"Va\\u20ac\\U0001f600\xe9\\x\n.", "a€😀é\\x".into()),
        (b"(I1\nI2\nl.", list([1, 2])),
        (b"(NNd.", dict([((), ())])),
        (b"(im\nC\n.", Instance { new: true, ..Instance::call(Global::new("m", "C"), vec![]) }.into()),
        (b"(cm\nC\nI1\no.", Instance::call(Global::new("m", "C"), vec![1.into()]).into()),
        (b"(I1\n2\x86.", (1, 1).into()),
        (b"N(I1\nI2\n1.", Object::None),
        (b"N(0.", Object::None),
        (b"]\x94\x940h\x01.", Object::List(vec![])),
    ] {
        assert_eq!(read(pickle), Ok(object), "{}", pickle.escape_ascii());
    }
}

#[test]
fn malformed_pickles_say_what_is_wrong() {
    for (pickle, why) in [
        (&b""[..], "ends inside"),
        (b"N", "ends inside"),
        (b".", "stack"),
        (b"(.", "stack"),
        (b"N(R.", "stack"),
        (b"NN.N", "1 bytes follow"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", "ends inside"),
        (b"Pid\n.", "by an id"),
        (b"NQ.", "by an id"),
        (b"\x82\x01.", "by a number"),
        (b"\x97.", "not part of it"),
        (b"C\x01a\x98.", "not part of it"),
        (b"\xff.", "unknown instruction 0xff"),
        (b"h\x00.", "has not shown"),
        (b"N\x72\xff\xff\xff\xff.", "memo larger"),
        (b"Np99999999999999999999\n.", "memo index"),
        (b"(Nd.", "without a value"),
        (b"NNa.", "cannot be changed"),
        (b")Na.", "no list"),
        (b")NNs.", "no dict"),
        (b"](N\x90.", "no set"),
        (b"]Nb.", "cannot have one"),
        (b"cm\nf\n]R.", "no tuple"),
        (b"cm\nf\n))\x92.", "no dict"),
        (b"cm\nf\n)R0N.", "for its effect"),
        (b"NN\x93.", "no str"),
        (b"\x8c\x03\xed\xa0\x80.", "surrogate"),
        (b"V\\ud800\n.", "surrogate"),
        (b"V\\u12\n.", "escape"),
        (b"S'\\\n.", "string"),
        (b"S'\\q'\n.", "escape"),
        (b"I1x\n.", "integer"),
        (b"Fx\n.", "float"),
        (b"\x8b\xff\xff\xff\xff.", "ends inside"),
        (b"T\xff\xff\xff\xff.", "ends inside"),
        (b"c_codecs\nencode\n(\x8c\x03\xe2\x82\xac\x8c\x06latin1tR.", "other characters"),
    ] {
        refused(pickle, why);
    }
    refused(format!("L{}L\n.", "9".repeat(5000)).as_bytes(), "integer");
}

#[test]
fn lengths_are_not_believed() {
    for opcode in *b"XBTC\x8b\x8c\x8d\x8e\x96U" {
        for len in [u64::MAX, 0x7FFF_FFFF_7FFF_FFFF, 0x0100_0000_4000_00FF] {
            let mut pickle = vec![opcode];
            pickle.extend(len.to_le_bytes());
            refused(&pickle, "ends inside");
        }
    }
}

#[test]
fn depth_is_limited_alike_in_both_directions() {
    let nest = |depth| (0..depth).fold(Object::None, |object, _| Object::List(vec![object]));
    let deepest = nest(128);
    assert_eq!(read(&encode(&deepest)), Ok(deepest));
    assert!(Pickle::encode(&nest(129), &mut Vec::new()).unwrap_err().to_string().contains("too deeply"));

    // Deeper than any stack, if each level took some of it.
    let deep = [vec![b'('; 200_000], vec![b't'; 200_000], b".".to_vec()].concat();
    refused(&deep, "too deeply");
    Pickle::decode::<IgnoredAny>(&deep).unwrap();
    let bytearrays =
        [b"c__builtin__\nbytearray\nq\x00C\x00".to_vec(), b"\x85q\x01h\x00h\x01R".repeat(50_000)];
    drop(read(&[bytearrays.concat(), b".".to_vec()].concat()));

    #[derive(Debug, Deserialize)]
    struct Endless(#[expect(dead_code, reason = "never read")] Option<Box<Endless>>);
    assert!(Pickle::decode::<Endless>(b"K\x01.").unwrap_err().to_string().contains("too deeply"));
}

#[test]
fn what_contains_itself_is_refused() {
    refused(b"]\x94h\x00a.", "too deeply");
    refused(b"}\x94Nh\x00s.", "too deeply");
    refused(b"cm\nC\n)\x81\x94h\x00b.", "too deeply");
}

#[test]
fn sharing_does_not_multiply_beyond_measure() {
    let started = Instant::now();
    let mut bomb = b"]\x94".to_vec();
    for level in 0..100u8 {
        bomb.extend([b']', b'(', b'h', level, b'h', level, b'e', 0x94]);
    }
    bomb.push(b'.');
    // Each of its steps counts, so that a small measure shows as much as the true one.
    let error = decode_within::<Object>(1 << 20, &bomb).unwrap_err().to_string();
    assert!(error.contains("beyond measure"), "{error}");

    // A text of 1 MiB, a thousand times.
    let text = [b"X\0\0\x10\0".to_vec(), vec![b'a'; 1 << 20]].concat();
    let texts = [b"(".to_vec(), text, b"\x94".to_vec(), b"h\0".repeat(1000), b"l.".to_vec()].concat();
    refused(&texts, "beyond measure");
    assert!(started.elapsed().as_secs() < 60);

    // What Python shares as a matter of course is read, once for each.
    let shared = [b"(]\x94K\x01a".to_vec(), b"h\0".repeat(100_000), b"l.".to_vec()].concat();
    let copies = read(&shared).unwrap();
    assert_eq!(copies.items().unwrap().len(), 100_001);
    assert_eq!(copies.items().unwrap()[100_000], list([1]));
}

#[test]
fn a_large_message_is_read_without_multiplying() {
    let bytes = ByteBuf::from(vec![7; 20 << 20]);
    let pickle = encode(&bytes);
    assert_eq!(pickle.len(), (20 << 20) + 2 + 5 + 1);
    assert!(Pickle::decode::<ByteBuf>(&pickle).unwrap() == bytes);
    let numbers: Vec<u64> = (0..200_000).collect();
    assert_eq!(Pickle::decode::<Vec<u64>>(&encode(&numbers)), Ok(numbers));
}
