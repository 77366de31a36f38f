//! Values to pickles.

use serde::ser::{self, Serialize};

use super::bigint;
use super::opcodes::*;
use crate::reduction::{CodecError, Depth};

/// Writes one value to the end of `out`.
pub(super) struct Serializer<'a> {
    out: &'a mut Vec<u8>,
    depth: Depth,
    form: Form,
    /// Whether a `u8` is to be written as itself, without an instruction, because its sequence may be
    /// all bytes.
    raw: bool,
}

/// What a value is written as, where serde's data model leaves that open.
///
/// All but the first two are asked for by [`Object`](super::Object), through newtypes of the names
/// in [`Form::named`]: other formats know nothing of those, and write what is within.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    /// The key of a dict or element of a set: a sequence is a tuple there, since Python has no use
    /// for lists where things are looked up.
    Key,
    Set,
    FrozenSet,
    ByteArray,
    Int,
    Global,
    Instance,
    Items,
    Entries,
}

pub(super) const SET: &str = "tokio_multiprocess::python::Set";
pub(super) const FROZENSET_NAME: &str = "tokio_multiprocess::python::FrozenSet";
pub(super) const BYTEARRAY: &str = "tokio_multiprocess::python::ByteArray";
pub(super) const INTEGER: &str = "tokio_multiprocess::python::BigInt";
pub(super) const GLOBAL_NAME: &str = "tokio_multiprocess::python::Global";
pub(super) const INSTANCE: &str = "tokio_multiprocess::python::Instance";
pub(super) const ITEMS: &str = "tokio_multiprocess::python::Items";
pub(super) const ENTRIES: &str = "tokio_multiprocess::python::Entries";

impl Form {
    fn named(self, name: &str) -> Self {
        match name {
            SET => Self::Set,
            FROZENSET_NAME => Self::FrozenSet,
            BYTEARRAY => Self::ByteArray,
            INTEGER => Self::Int,
            GLOBAL_NAME => Self::Global,
            INSTANCE => Self::Instance,
            ITEMS => Self::Items,
            ENTRIES => Self::Entries,
            // Any other newtype is what it holds.
            _ => self,
        }
    }

    /// The form of an element of a container in this form.
    fn element(self) -> Self {
        match self {
            Self::Key | Self::Set | Self::FrozenSet => Self::Key,
            _ => Self::Plain,
        }
    }
}

/// How a value was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// In full.
    Value,
    /// As one raw byte: it was a `u8`, and its sequence had asked for that.
    Raw,
}

type Result<T = Written> = std::result::Result<T, CodecError>;

impl<'a> Serializer<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, depth: Depth::default(), form: Form::Plain, raw: false }
    }

    fn op(self, opcode: u8) -> Result {
        self.out.push(opcode);
        Ok(Written::Value)
    }

    /// Two's complement, little-endian.
    fn integer(self, bytes: &[u8]) -> Result {
        integer(self.out, bytes)?;
        Ok(Written::Value)
    }

    /// Opens a container that ends with the instruction.
    fn open(self, opcode: u8) -> Result<Container<'a>> {
        let depth = self.depth.in_container()?;
        self.out.push(MARK);
        Ok(Container { out: self.out, depth, element: self.form.element(), end: Some(opcode) })
    }

    fn sequence(self, len: Option<usize>) -> Result<Sequence<'a>> {
        let end = match self.form {
            Form::Key => TUPLE,
            Form::Set => {
                self.out.push(EMPTY_SET);
                ADDITEMS
            }
            Form::FrozenSet => FROZENSET,
            Form::Items => APPENDS,
            _ => LIST,
        };
        let mode = if end == LIST || end == TUPLE { Mode::Undecided } else { Mode::Values };
        let start = self.out.len();
        Ok(Sequence { mode, start, announced: len.unwrap_or(0), body: self.open(end)? })
    }

    fn tuple(self) -> Result<Container<'a>> {
        match self.form {
            Form::Global => Ok(Container {
                depth: self.depth.in_container()?,
                out: self.out,
                element: Form::Plain,
                end: Some(STACK_GLOBAL),
            }),
            _ => self.open(TUPLE),
        }
    }

    fn dict(self) -> Result<Container<'a>> {
        match self.form {
            Form::Key => Err(CodecError::new("Python has no dicts with dicts for keys")),
            Form::Instance => Ok(Container {
                depth: self.depth.in_container()?,
                out: self.out,
                element: Form::Plain,
                end: None,
            }),
            Form::Entries => self.open(SETITEMS),
            _ => self.open(DICT),
        }
    }

    /// Opens `{variant: …}`; the writer of the content, and then [`DICT`], are the caller's.
    fn variant(self, variant: &str) -> Result<(Container<'a>, Depth)> {
        let mut container = self.dict()?;
        container.write(&variant)?;
        let depth = container.depth;
        Ok((container, depth))
    }
}

fn integer(out: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    let bytes = &bytes[..bigint::minimal(bytes)];
    if let Some(value) = bigint::to_i64(bytes) {
        small(out, value);
    } else if let Ok(len) = u8::try_from(bytes.len()) {
        out.extend([LONG1, len]);
        out.extend(bytes);
    } else {
        let len = i32::try_from(bytes.len()).map_err(|_| CodecError::new("the integer is too long"))?;
        out.push(LONG4);
        out.extend(len.to_le_bytes());
        out.extend(bytes);
    }
    Ok(())
}

fn small(out: &mut Vec<u8>, value: i64) {
    if let Ok(value) = u8::try_from(value) {
        out.extend([BININT1, value]);
    } else if let Ok(value) = u16::try_from(value) {
        out.push(BININT2);
        out.extend(value.to_le_bytes());
    } else if let Ok(value) = i32::try_from(value) {
        out.push(BININT);
        out.extend(value.to_le_bytes());
    } else {
        let bytes = value.to_le_bytes();
        let bytes = &bytes[..bigint::minimal(&bytes)];
        out.extend([LONG1, bytes.len() as u8]);
        out.extend(bytes);
    }
}

/// The header of so many bytes or so much text: the instruction goes with the length.
fn header(out: &mut Vec<u8>, [short, middle, long]: [u8; 3], len: usize) {
    if let Ok(len) = u8::try_from(len) {
        out.extend([short, len]);
    } else if let Ok(len) = u32::try_from(len) {
        out.push(middle);
        out.extend(len.to_le_bytes());
    } else {
        out.push(long);
        out.extend((len as u64).to_le_bytes());
    }
}

const BYTES: [u8; 3] = [SHORT_BINBYTES, BINBYTES, BINBYTES8];
const TEXT: [u8; 3] = [SHORT_BINUNICODE, BINUNICODE, BINUNICODE8];

fn text(out: &mut Vec<u8>, text: &str) {
    header(out, TEXT, text.len());
    out.extend(text.as_bytes());
}

impl<'a> ser::Serializer for Serializer<'a> {
    type Ok = Written;
    type Error = CodecError;
    type SerializeSeq = Sequence<'a>;
    type SerializeTuple = Container<'a>;
    type SerializeTupleStruct = Container<'a>;
    type SerializeTupleVariant = Variant<'a>;
    type SerializeMap = Container<'a>;
    type SerializeStruct = Container<'a>;
    type SerializeStructVariant = Variant<'a>;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, v: bool) -> Result {
        self.op(if v { NEWTRUE } else { NEWFALSE })
    }

    fn serialize_i8(self, v: i8) -> Result {
        self.serialize_i64(v.into())
    }

    fn serialize_i16(self, v: i16) -> Result {
        self.serialize_i64(v.into())
    }

    fn serialize_i32(self, v: i32) -> Result {
        self.serialize_i64(v.into())
    }

    fn serialize_i64(self, v: i64) -> Result {
        small(self.out, v);
        Ok(Written::Value)
    }

    fn serialize_i128(self, v: i128) -> Result {
        self.integer(&v.to_le_bytes())
    }

    #[inline]
    fn serialize_u8(self, v: u8) -> Result {
        if self.raw {
            self.out.push(v);
            return Ok(Written::Raw);
        }
        self.serialize_i64(v.into())
    }

    fn serialize_u16(self, v: u16) -> Result {
        self.serialize_i64(v.into())
    }

    fn serialize_u32(self, v: u32) -> Result {
        self.serialize_i64(v.into())
    }

    fn serialize_u64(self, v: u64) -> Result {
        match i64::try_from(v) {
            Ok(v) => self.serialize_i64(v),
            Err(_) => self.serialize_u128(v.into()),
        }
    }

    fn serialize_u128(self, v: u128) -> Result {
        self.integer(bigint::BigInt::from(v).as_le_bytes())
    }

    fn serialize_f32(self, v: f32) -> Result {
        self.serialize_f64(v.into())
    }

    fn serialize_f64(self, v: f64) -> Result {
        self.out.push(BINFLOAT);
        self.out.extend(v.to_be_bytes());
        Ok(Written::Value)
    }

    fn serialize_char(self, v: char) -> Result {
        self.serialize_str(v.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, v: &str) -> Result {
        text(self.out, v);
        Ok(Written::Value)
    }

    fn serialize_bytes(self, v: &[u8]) -> Result {
        match self.form {
            Form::Int => return self.integer(v),
            Form::ByteArray => {
                text(self.out, "builtins");
                text(self.out, "bytearray");
                self.out.push(STACK_GLOBAL);
            }
            _ => {}
        }
        header(self.out, BYTES, v.len());
        self.out.extend(v);
        if self.form == Form::ByteArray {
            self.out.extend([TUPLE1, REDUCE]);
        }
        Ok(Written::Value)
    }

    fn serialize_none(self) -> Result {
        self.op(NONE)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result {
        let depth = self.depth.in_option()?;
        // In a sequence of `Option`s, bytes would only be what happens to be written.
        value.serialize(Serializer { depth, raw: false, ..self })
    }

    fn serialize_unit(self) -> Result {
        self.op(NONE)
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result {
        self.op(NONE)
    }

    fn serialize_unit_variant(self, _name: &'static str, _index: u32, variant: &'static str) -> Result {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result {
        value.serialize(Serializer { form: self.form.named(name), raw: false, ..self })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result {
        let (mut dict, _) = self.variant(variant)?;
        dict.write(value)?;
        dict.close()
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Sequence<'a>> {
        self.sequence(len)
    }

    fn serialize_tuple(self, _len: usize) -> Result<Container<'a>> {
        self.tuple()
    }

    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<Container<'a>> {
        self.tuple()
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<Variant<'a>> {
        let (dict, depth) = self.variant(variant)?;
        Serializer { out: dict.out, depth, form: Form::Plain, raw: false }.tuple().map(Variant)
    }

    fn serialize_map(self, _len: Option<usize>) -> Result<Container<'a>> {
        self.dict()
    }

    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Container<'a>> {
        self.dict()
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<Variant<'a>> {
        let (dict, depth) = self.variant(variant)?;
        Serializer { out: dict.out, depth, form: Form::Plain, raw: false }.dict().map(Variant)
    }
}

/// An open container: its elements follow, and at last the instruction that makes one of them.
pub(super) struct Container<'a> {
    out: &'a mut Vec<u8>,
    /// The depth of the elements.
    depth: Depth,
    element: Form,
    /// None for an instance: its parts have an instruction each.
    end: Option<u8>,
}

impl Container<'_> {
    fn write_as<T: Serialize + ?Sized>(&mut self, value: &T, form: Form, raw: bool) -> Result {
        value.serialize(Serializer { out: &mut *self.out, depth: self.depth, form, raw })
    }

    fn write<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.write_as(value, self.element, false).map(drop)
    }

    fn close(self) -> Result {
        self.out.extend(self.end);
        Ok(Written::Value)
    }
}

impl ser::SerializeTuple for Container<'_> {
    type Ok = Written;
    type Error = CodecError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.write(value)
    }

    fn end(self) -> Result {
        self.close()
    }
}

impl ser::SerializeTupleStruct for Container<'_> {
    type Ok = Written;
    type Error = CodecError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.write(value)
    }

    fn end(self) -> Result {
        self.close()
    }
}

impl ser::SerializeMap for Container<'_> {
    type Ok = Written;
    type Error = CodecError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<()> {
        self.write_as(key, Form::Key, false).map(drop)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.write(value)
    }

    fn end(self) -> Result {
        self.close()
    }
}

impl ser::SerializeStruct for Container<'_> {
    type Ok = Written;
    type Error = CodecError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<()> {
        if self.end.is_some() {
            text(self.out, key);
            return self.write(value);
        }
        // A part of an instance: what is done with it goes by its name.
        if key == "kwargs" {
            // They change the instruction after the arguments.
            self.out.pop();
        }
        self.write(value)?;
        self.out.extend(match key {
            "args" => Some(REDUCE),
            "new_args" => Some(NEWOBJ),
            "kwargs" => Some(NEWOBJ_EX),
            "state" => Some(BUILD),
            _ => None,
        });
        Ok(())
    }

    fn end(self) -> Result {
        self.close()
    }
}

/// The content of an enum's variant: with its end, the dict around it ends, too.
pub(super) struct Variant<'a>(Container<'a>);

impl Variant<'_> {
    fn close(self) -> Result {
        self.0.out.extend(self.0.end);
        self.0.out.push(DICT);
        Ok(Written::Value)
    }
}

impl ser::SerializeTupleVariant for Variant<'_> {
    type Ok = Written;
    type Error = CodecError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.0.write(value)
    }

    fn end(self) -> Result {
        self.close()
    }
}

impl ser::SerializeStructVariant for Variant<'_> {
    type Ok = Written;
    type Error = CodecError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<()> {
        text(self.0.out, key);
        self.0.write(value)
    }

    fn end(self) -> Result {
        self.close()
    }
}

/// What the elements of a sequence are written as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing is written yet.
    Undecided,
    /// Raw bytes, as long as every element is a `u8`.
    Bytes,
    /// Values.
    Values,
}

/// An open sequence: a list, or bytes if its elements are.
pub(super) struct Sequence<'a> {
    body: Container<'a>,
    mode: Mode,
    /// Where it starts.
    start: usize,
    /// How many elements it said it has, if it did.
    announced: usize,
}

impl Sequence<'_> {
    /// The length of the header of so many bytes.
    fn header_len(len: usize) -> usize {
        let mut out = Vec::with_capacity(9);
        header(&mut out, BYTES, len);
        out.len()
    }

    /// The first element was a byte: announces bytes instead of a list.
    fn begin_bytes(&mut self) {
        self.mode = Mode::Bytes;
        let first = self.body.out.pop();
        self.body.out.truncate(self.start);
        header(self.body.out, BYTES, self.announced);
        self.body.out.extend(first);
    }

    /// The element at `from` is no byte: writes the bytes before it anew, as a list.
    #[cold]
    fn end_bytes(&mut self, from: usize) {
        self.mode = Mode::Values;
        let bytes = self.start + Self::header_len(self.announced)..from;
        let mut list = vec![MARK];
        for at in bytes {
            small(&mut list, self.body.out[at].into());
        }
        self.body.out.splice(self.start..from, list);
    }
}

impl ser::SerializeSeq for Sequence<'_> {
    type Ok = Written;
    type Error = CodecError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        let from = self.body.out.len();
        let written = self.body.write_as(value, self.body.element, self.mode != Mode::Values)?;
        match (self.mode, written) {
            (Mode::Undecided, Written::Value) => self.mode = Mode::Values,
            (Mode::Undecided, Written::Raw) => self.begin_bytes(),
            (Mode::Bytes, Written::Value) => self.end_bytes(from),
            (Mode::Bytes, Written::Raw) | (Mode::Values, _) => {}
        }
        Ok(())
    }

    fn end(self) -> Result {
        if self.mode != Mode::Bytes {
            return self.body.close();
        }
        let first = self.start + Self::header_len(self.announced);
        let count = self.body.out.len() - first;
        if count != self.announced {
            let mut right = Vec::with_capacity(9);
            header(&mut right, BYTES, count);
            self.body.out.splice(self.start..first, right);
        }
        Ok(Written::Value)
    }
}
