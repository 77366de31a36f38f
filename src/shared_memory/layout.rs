//! How a [`ShareableList`](super::ShareableList) lies in memory, as bytes alone: no memory is touched here.
//!
//! It is the layout of CPython 3.9 and later, as its `multiprocessing.shared_memory` documents and shows it.
//! For N items, with all numbers in the machine's byte order:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | N |
//! | 8 × (N + 1) | where each item's slot begins, and where the last one ends, from the first slot on |
//! | … | the slots: 8 bytes for a number, a truth value or none; for texts and bytes the next multiple of 8 that is larger than their length |
//! | 8 × N | what lies in each slot, as a format of Python's `struct`: `q`, `d`, `xxxxxxx?`, `xxxxxx?x`, `16s`; shorter ones end in zeros |
//! | N | what is to be made of that: 0 nothing, 1 a text, 2 bytes, both without the zeros at their end, 3 none |
//!
//! CPython loses zeros at the end of bytes in this way. Here such bytes have the format of their true length
//! with a blank behind it, which means nothing to `struct`, and 0 after it, so that they are taken as they are,
//! there too. CPython gives a slot a format of its own again when it overwrites one that does not end in `s`.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};

/// What a number is aligned to, and the size of its slot.
const WORD: usize = 8;

/// The length of a format.
const FORMAT: usize = 8;

/// The longest slot, and the longest bytes with zeros at their end, whose length fits a format.
const LONGEST_PADDED: usize = 9_999_999;
const LONGEST_EXACT: usize = 999_999;

const INT: &[u8] = b"q";
const FLOAT: &[u8] = b"d";
const BOOL: &[u8] = b"xxxxxxx?";
const NONE: &[u8] = b"xxxxxx?x";

/// An item of a [`ShareableList`](super::ShareableList).
///
/// Values of different kinds are never equal, unlike Python's: `Int(1)` is neither `Bool(true)` nor
/// `Float(1.0)`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ShareableValue {
    /// Python's `None`.
    None,
    /// Python's `bool`.
    Bool(bool),
    /// Python's `int`, as far as it fits 64 bits.
    Int(i64),
    /// Python's `float`.
    Float(f64),
    /// Python's `str`. It must not end in a NUL character, which could not be told from the filling of
    /// its slot.
    Str(String),
    /// Python's `bytes`. CPython drops zeros from the end of those that it writes itself.
    Bytes(Vec<u8>),
}

/// `None`.
impl From<()> for ShareableValue {
    fn from((): ()) -> Self {
        Self::None
    }
}

macro_rules! values {
    ($($type:ty => |$value:ident| $made:expr;)*) => {$(
        impl From<$type> for ShareableValue {
            fn from($value: $type) -> Self {
                $made
            }
        }
    )*};
}

values! {
    bool => |value| Self::Bool(value);
    i32 => |value| Self::Int(value.into());
    u32 => |value| Self::Int(value.into());
    i64 => |value| Self::Int(value);
    f64 => |value| Self::Float(value);
    &str => |value| Self::Str(value.to_owned());
    String => |value| Self::Str(value);
    &[u8] => |value| Self::Bytes(value.to_vec());
    Vec<u8> => |value| Self::Bytes(value);
}

/// Bytes.
impl<const N: usize> From<&[u8; N]> for ShareableValue {
    fn from(value: &[u8; N]) -> Self {
        Self::Bytes(value.to_vec())
    }
}

/// What is wrong with what was found in memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged(pub(super) &'static str);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An item as it is written: its format and what is to be made of it, and what fills its slot.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) format: [u8; FORMAT],
    pub(super) code: u8,
    pub(super) bytes: Vec<u8>,
}

impl ShareableValue {
    /// The texts and bytes that fill a slot from its beginning.
    fn content(&self) -> Option<&[u8]> {
        match self {
            Self::Str(text) => Some(text.as_bytes()),
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// How large its slot is in a new list.
    fn slot(&self) -> usize {
        self.content().map_or(WORD, |content| WORD * (content.len() / WORD + 1))
    }

    /// As it lies in a slot of `slot` bytes, at least a word.
    fn write(&self, slot: usize) -> Result<Written> {
        let number = |format: &[u8], code, bytes: [u8; WORD]| {
            Ok(Written { format: padded(format), code, bytes: bytes.to_vec() })
        };
        let last = |truth| [0, 0, 0, 0, 0, 0, 0, truth];
        match self {
            Self::None => number(NONE, 3, last(0)),
            Self::Bool(truth) => number(BOOL, 0, last(u8::from(*truth))),
            Self::Int(int) => number(INT, 0, int.to_ne_bytes()),
            Self::Float(float) => number(FLOAT, 0, float.to_ne_bytes()),
            Self::Str(text) if text.ends_with('\0') => Err(Error::invalid(
                "a text in a shareable list cannot end in a NUL character: take bytes for that",
            )),
            Self::Str(text) => filled(text.as_bytes(), 1, slot),
            Self::Bytes(bytes) if bytes.ends_with(b"\0") => exact(bytes, slot),
            Self::Bytes(bytes) => filled(bytes, 2, slot),
        }
    }
}

/// With the length of the slot in its format, which CPython goes on using for what it writes there.
fn filled(content: &[u8], code: u8, slot: usize) -> Result<Written> {
    fits(content, slot)?;
    if slot > LONGEST_PADDED {
        return Err(too_long(content));
    }
    Ok(Written { format: padded(format!("{slot}s").as_bytes()), code, bytes: filling(content, slot) })
}

fn exact(content: &[u8], slot: usize) -> Result<Written> {
    fits(content, slot)?;
    if content.len() > LONGEST_EXACT {
        return Err(too_long(content));
    }
    let format = format!("{}s ", content.len());
    Ok(Written { format: padded(format.as_bytes()), code: 0, bytes: filling(content, slot) })
}

fn fits(content: &[u8], slot: usize) -> Result<()> {
    if content.len() > slot {
        let len = content.len();
        return Err(Error::invalid(format!(
            "an item of {len} bytes does not fit its slot, which has {slot}"
        )));
    }
    Ok(())
}

fn too_long(content: &[u8]) -> Error {
    let len = content.len();
    Error::invalid(format!("an item of {len} bytes is longer than the layout of a shareable list allows"))
}

fn filling(content: &[u8], slot: usize) -> Vec<u8> {
    let mut bytes = content.to_vec();
    bytes.resize(slot, 0);
    bytes
}

fn padded(format: &[u8]) -> [u8; FORMAT] {
    let mut padded = [0; FORMAT];
    padded[..format.len()].copy_from_slice(format);
    padded
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// A format as a text.
pub(super) fn format_text(format: &[u8; FORMAT]) -> Result<&str, Damaged> {
    let text = std::str::from_utf8(without_zeros(format)).ok().filter(|text| text.is_ascii());
    text.ok_or(Damaged("a format is no text"))
}

/// What lies in a slot, if it is what can lie there.
pub(super) fn read(format: &[u8; FORMAT], code: u8, slot: &[u8]) -> Result<ShareableValue, Damaged> {
    let word = || slot.first_chunk().ok_or(Damaged("a slot has fewer than eight bytes"));
    match (without_zeros(format), code) {
        (INT, 0) => word().map(|word| ShareableValue::Int(i64::from_ne_bytes(*word))),
        (FLOAT, 0) => word().map(|word| ShareableValue::Float(f64::from_ne_bytes(*word))),
        (BOOL, 0) => word().map(|word| ShareableValue::Bool(word[WORD - 1] != 0)),
        (NONE, 3) => Ok(ShareableValue::None),
        (format, 0..=2) => {
            let content = slot.get(..length(format)?).ok_or(Damaged("an item is longer than its slot"))?;
            match code {
                0 => Ok(ShareableValue::Bytes(content.to_vec())),
                1 => String::from_utf8(without_zeros(content).to_vec())
                    .map(ShareableValue::Str)
                    .map_err(|_| Damaged("a text is no UTF-8")),
                _ => Ok(ShareableValue::Bytes(without_zeros(content).to_vec())),
            }
        }
        _ => Err(Damaged("it has an item of an unknown kind")),
    }
}

/// Of texts and bytes.
fn length(format: &[u8]) -> Result<usize, Damaged> {
    let text = format.strip_suffix(b" ").unwrap_or(format);
    let digits = text.strip_suffix(b"s").filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    number.ok_or(Damaged("it has an item of an unknown format"))
}

/// Where everything lies in a list of N items.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// N + 1, beginning with 0.
    offsets: Vec<usize>,
}

impl Layout {
    /// How many bytes say how many items there are.
    pub(super) const COUNT: usize = WORD;

    /// The length of what stands before the slots, by the first [`COUNT`](Self::COUNT) bytes of a memory
    /// of `size`.
    pub(super) fn head_len(count: [u8; WORD], size: usize) -> Result<usize, Damaged> {
        let count = usize::try_from(i64::from_ne_bytes(count));
        // Each item has an offset, a slot, a format and a code.
        let room = size.saturating_sub(2 * WORD) / (2 * WORD + FORMAT + 1);
        match count {
            Ok(count) if count <= room && size >= 2 * WORD => Ok((count + 2) * WORD),
            _ => Err(Damaged("it says to have a number of items for which there is no room")),
        }
    }

    /// Reads what stands before the slots, of which [`head_len`](Self::head_len) says how long it is.
    pub(super) fn parse(head: &[u8], size: usize) -> Result<Self, Damaged> {
        let words = head.chunks_exact(WORD).skip(1);
        let offset = |word: &[u8]| {
            let word = i64::from_ne_bytes(word.try_into().expect("chunks of eight bytes"));
            usize::try_from(word).map_err(|_| Damaged("the offset of an item is negative"))
        };
        let offsets = words.map(offset).collect::<Result<Vec<_>, _>>()?;
        let in_order =
            offsets.windows(2).all(|pair| pair[0].checked_add(WORD).is_some_and(|end| end <= pair[1]));
        if offsets.first() != Some(&0) || !in_order {
            return Err(Damaged(
                "its items do not lie one behind the other (CPython 3.8 has another layout)",
            ));
        }
        let layout = Self { offsets };
        match layout.end() {
            Some(end) if end <= size => Ok(layout),
            _ => Err(Damaged("its items end behind the memory")),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn slots_start(&self) -> usize {
        (self.offsets.len() + 1) * WORD
    }

    fn slots_end(&self) -> Option<usize> {
        self.slots_start().checked_add(*self.offsets.last()?)
    }

    fn end(&self) -> Option<usize> {
        self.slots_end()?.checked_add(self.len().checked_mul(FORMAT + 1)?)
    }

    /// Where an item lies.
    pub(super) fn slot(&self, index: usize) -> Range<usize> {
        self.slots_start() + self.offsets[index]..self.slots_start() + self.offsets[index + 1]
    }

    /// Where its format is.
    pub(super) fn format(&self, index: usize) -> usize {
        self.slots_end().expect("was checked when it was made") + index * FORMAT
    }

    /// Where it says what is to be made of it.
    pub(super) fn code(&self, index: usize) -> usize {
        self.format(self.len()) + index
    }

    /// An item as it is to be written into its slot.
    pub(super) fn write(&self, index: usize, value: &ShareableValue) -> Result<Written> {
        value.write(self.slot(index).len())
    }
}

/// The bytes of a new list.
pub(super) fn image(items: &[ShareableValue]) -> Result<(Layout, Vec<u8>)> {
    let mut offsets = vec![0];
    let mut end = 0;
    for item in items {
        end += item.slot();
        offsets.push(end);
    }
    let layout = Layout { offsets };
    let mut bytes = (items.len() as i64).to_ne_bytes().to_vec();
    bytes.extend(layout.offsets.iter().flat_map(|offset| (*offset as i64).to_ne_bytes()));
    let written: Vec<_> =
        items.iter().enumerate().map(|(index, item)| layout.write(index, item)).collect::<Result<_>>()?;
    written.iter().for_each(|item| bytes.extend(&item.bytes));
    written.iter().for_each(|item| bytes.extend(item.format));
    bytes.extend(written.iter().map(|item| item.code));
    Ok((layout, bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ShareableValue::*;
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Layout, Damaged> {
        let count = *bytes.first_chunk().ok_or(Damaged("short"))?;
        let head = Layout::head_len(count, bytes.len())?;
        Layout::parse(&bytes[..head], bytes.len())
    }

    fn get(bytes: &[u8], layout: &Layout, index: usize) -> Result<ShareableValue, Damaged> {
        let format = bytes[layout.format(index)..][..FORMAT].try_into().unwrap();
        read(&format, bytes[layout.code(index)], &bytes[layout.slot(index)])
    }

    fn items() -> Vec<ShareableValue> {
        vec![Int(1), "ab".into(), Bytes(b"abcdefgh".to_vec()), None, Bool(true), Float(2.5)]
    }

    #[test]
    fn the_layout_is_cpythons() {
        let mut expected = Vec::new();
        for number in [6i64, 0, 8, 16, 32, 40, 48, 56, 1] {
            expected.extend(number.to_ne_bytes());
        }
        expected.extend(b"ab\0\0\0\0\0\0abcdefgh\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01");
        expected.extend(2.5f64.to_ne_bytes());
        expected.extend(b"q\0\0\0\0\0\0\x008s\0\0\0\0\0\x0016s\0\0\0\0\0xxxxxx?xxxxxxxx?d\0\0\0\0\0\0\0");
        expected.extend([0, 1, 2, 3, 0, 0]);
        assert_eq!(image(&items()).unwrap().1, expected);
    }

    #[test]
    fn a_list_of_another_layout_is_damaged() {
        // CPython 3.8's: sizes instead of offsets.
        let mut bytes = Vec::new();
        for number in [2i64, 8, 8, 1, 2, 0, 0, 0, 0] {
            bytes.extend(number.to_ne_bytes());
        }
        assert!(parse(&bytes).unwrap_err().0.contains("3.8"));
    }

    #[test]
    fn zeros_at_the_end_of_bytes_are_kept() {
        for bytes in [&b"\0"[..], b"\0\0\0\0\0\0\0\0", b"a\0", b"1234567\0", b"12345678\0\0", b"\0a"] {
            let (layout, image) = image(&[bytes.into(), 5.into()]).unwrap();
            assert_eq!(get(&image, &layout, 0).unwrap(), bytes.into());
        }
        let list = image(&["12345678".into()]).unwrap().0;
        let full = list.write(0, &b"0123456789abcde\0".into()).unwrap();
        assert_eq!(&full.format, b"16s \0\0\0\0");
        assert_eq!(read(&full.format, full.code, &full.bytes), Ok(b"0123456789abcde\0".into()));
        assert!(image(&[ShareableValue::from("a\0")]).is_err());
    }

    #[test]
    fn what_is_too_long_is_refused() {
        for (bytes, fits) in [
            (vec![1; 9_999_991], true),
            (vec![1; 9_999_992], false),
            (vec![0; 999_999], true),
            (vec![0; 1_000_000], false),
        ] {
            assert_eq!(image(&[bytes.clone().into()]).is_ok(), fits, "{}", bytes.len());
        }
        let layout = image(&["a".into()]).unwrap().0;
        assert!(layout.write(0, &"12345678".into()).is_ok());
        assert!(layout.write(0, &"123456789".into()).is_err());
        // Counted in bytes.
        assert!(layout.write(0, &"ääää".into()).is_ok());
        assert!(layout.write(0, &"ääääa".into()).is_err());
        assert!(layout.write(0, &b"12345678\0".into()).is_err());
    }

    #[test]
    fn slots_have_what_their_formats_say() {
        let cases: [(&[u8], u8, Result<ShareableValue, ()>); 16] = [
            (b"q", 0, Ok(Int(i64::from_ne_bytes(*b"abcdefgh")))),
            (b"8s", 1, Ok("abcdefgh".into())),
            (b"5s", 1, Ok("abcde".into())),
            (b"5s ", 0, Ok(b"abcde".into())),
            (b"0s", 2, Ok(b"".into())),
            (b"xxxxxxx?", 0, Ok(Bool(true))),
            (b"xxxxxx?x", 3, Ok(None)),
            (b"q", 1, Err(())),
            (b"q", 3, Err(())),
            (b"8s", 3, Err(())),
            (b"8s", 4, Err(())),
            (b"8s", 255, Err(())),
            (b"9s", 2, Err(())),
            (b"+8s", 2, Err(())),
            (b"s", 2, Err(())),
            (b"9999999s", 2, Err(())),
        ];
        for (format, code, value) in cases {
            let found = read(&padded(format), code, b"abcdefgh");
            assert_eq!(found.map_err(drop), value, "{format:?} {code}");
        }
        assert!(read(&padded(b"q"), 0, b"abcdefg").is_err());
        assert!(read(&padded(b"8s"), 1, b"\xffbcdefgh").is_err());
        assert!(format_text(b"\xff\0\0\0\0\0\0\0").is_err());
    }

    fn value() -> impl Strategy<Value = ShareableValue> {
        prop_oneof![
            Just(None),
            any::<bool>().prop_map(Bool),
            any::<i64>().prop_map(Int),
            (-1e300f64..1e300).prop_map(Float),
            "[^\0]{0,20}".prop_map(Str),
            prop::collection::vec(0u8..3, 0..20).prop_map(Bytes),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(items in prop::collection::vec(value(), 0..10)) {
            let (layout, bytes) = image(&items).unwrap();
            prop_assert_eq!(&parse(&bytes).unwrap(), &layout);
            for (index, item) in items.iter().enumerate() {
                prop_assert_eq!(&get(&bytes, &layout, index).unwrap(), item);
            }
        }

        /// A stranger writes what it likes, also after it was looked at.
        #[test]
        fn whatever_is_there_nothing_panics(
            at in prop::collection::vec((0usize..200, any::<u8>()), 0..8),
            len in 0usize..250,
            early in any::<bool>(),
        ) {
            let (intact, mut bytes) = image(&items()).unwrap();
            for (place, byte) in at {
                let len = bytes.len();
                bytes[place % len] = byte;
            }
            if early {
                bytes.truncate(len);
                if let Ok(layout) = parse(&bytes) {
                    (0..layout.len()).for_each(|index| drop(get(&bytes, &layout, index)));
                }
            } else {
                (0..intact.len()).for_each(|index| drop(get(&bytes, &intact, index)));
            }
        }
    }
}
