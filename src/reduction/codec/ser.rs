//! Values to bytes.

use std::any::type_name;
use std::io;

use rmp::encode;
use serde::ser::{self, Serialize};

use super::byte::Byte;
use super::{CodecError, Depth, EXT_BYTES, EXT_I128, EXT_U128, NIL, SOME};

/// Writes one value to the end of `out`.
pub(super) struct Serializer<'a> {
    out: &'a mut Vec<u8>,
    depth: Depth,
    /// Whether a `u8` is to be written as itself, without a marker, because its sequence may be all
    /// bytes.
    raw: bool,
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

/// The result of a write to a `Vec`, which cannot fail.
#[inline]
fn emitted<T, E: Into<io::Error>>(result: std::result::Result<T, E>) -> Result {
    match result {
        Ok(_) => Ok(Written::Value),
        Err(error) => Err(ser::Error::custom(error.into())),
    }
}

/// A length as the format holds it.
#[inline]
fn length(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| CodecError::new("the value is longer than u32::MAX"))
}

/// Appends bytes, in pieces if they are many: longer ones the C library copies with one instruction (`rep movsb`),
/// which some processors take 14 times as long for if its target lies a few bytes further into a page than its
/// source. And that is so after a marker.
#[inline]
fn append(out: &mut Vec<u8>, bytes: &[u8]) {
    const PIECE: usize = 1 << 10;
    out.reserve(bytes.len());
    bytes.chunks(PIECE).for_each(|piece| out.extend_from_slice(piece));
}

/// Puts what `write` appends in the place of `out[from..to]`.
fn replace(
    out: &mut Vec<u8>,
    from: usize,
    to: usize,
    write: impl FnOnce(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    let end = out.len();
    write(out)?;
    let added = out.len() - end;
    out[to..].rotate_right(added);
    out.drain(from..to);
    Ok(())
}

/// What a header announces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Array,
    Map,
    Bytes,
}

impl Shape {
    #[inline]
    fn header(self, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let len = length(len)?;
        emitted(match self {
            Self::Array => encode::write_array_len(out, len),
            Self::Map => encode::write_map_len(out, len),
            Self::Bytes => encode::write_ext_meta(out, len, EXT_BYTES),
        })?;
        Ok(())
    }
}

impl<'a> Serializer<'a> {
    #[inline]
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, depth: Depth::default(), raw: false }
    }

    #[inline]
    fn sequence(self, len: Option<usize>) -> Result<Sequence<'a>> {
        Ok(Sequence { mode: Mode::Undecided, body: Body::open(self, Shape::Array, len.unwrap_or(0))? })
    }

    #[inline]
    fn fields(self, len: Option<usize>) -> Result<Fields<'a>> {
        Ok(Fields { body: Body::open(self, Shape::Map, len.unwrap_or(0))? })
    }

    /// Writes a sequence whose elements are `u8` by their type. A slice's are copied together then.
    fn bytes<I: Iterator<Item: Serialize>>(self, announced: usize, iter: I) -> Result {
        let shape = |count| if count > 0 { Shape::Bytes } else { Shape::Array };
        let mut body = Body::open(self, shape(announced), announced)?;
        let mut refused = Ok(Written::Value);
        body.out.extend(iter.map(|byte| {
            byte.serialize(Byte).unwrap_or_else(|error| {
                refused = Err(error);
                0
            })
        }));
        refused?;
        body.count = body.out.len() - body.elements;
        body.shape = shape(body.count);
        body.close()
    }

    /// Opens `{variant: …}` and returns the writer of the content.
    #[inline]
    fn variant(self, variant: &str) -> Result<Self> {
        let depth = self.depth.in_container()?;
        Shape::Map.header(1, self.out)?;
        emitted(encode::write_str(self.out, variant))?;
        Ok(Self { out: self.out, depth, raw: false })
    }

    #[cold]
    fn wide(self, ext: i8, bytes: [u8; 16]) -> Result {
        emitted(encode::write_ext_meta(self.out, 16, ext))?;
        self.out.extend_from_slice(&bytes);
        Ok(Written::Value)
    }
}

impl<'a> ser::Serializer for Serializer<'a> {
    type Ok = Written;
    type Error = CodecError;
    type SerializeSeq = Sequence<'a>;
    type SerializeTuple = Sequence<'a>;
    type SerializeTupleStruct = Sequence<'a>;
    type SerializeTupleVariant = Sequence<'a>;
    type SerializeMap = Fields<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Fields<'a>;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_bool(self, v: bool) -> Result {
        emitted(encode::write_bool(self.out, v))
    }

    #[inline]
    fn serialize_i8(self, v: i8) -> Result {
        self.serialize_i64(v.into())
    }

    #[inline]
    fn serialize_i16(self, v: i16) -> Result {
        self.serialize_i64(v.into())
    }

    #[inline]
    fn serialize_i32(self, v: i32) -> Result {
        self.serialize_i64(v.into())
    }

    #[inline]
    fn serialize_i64(self, v: i64) -> Result {
        emitted(encode::write_sint(self.out, v))
    }

    #[inline]
    fn serialize_i128(self, v: i128) -> Result {
        if let Ok(v) = u64::try_from(v) {
            self.serialize_u64(v)
        } else if let Ok(v) = i64::try_from(v) {
            self.serialize_i64(v)
        } else {
            self.wide(EXT_I128, v.to_be_bytes())
        }
    }

    #[inline]
    fn serialize_u8(self, v: u8) -> Result {
        if self.raw {
            self.out.push(v);
            Ok(Written::Raw)
        } else {
            self.serialize_u64(v.into())
        }
    }

    #[inline]
    fn serialize_u16(self, v: u16) -> Result {
        self.serialize_u64(v.into())
    }

    #[inline]
    fn serialize_u32(self, v: u32) -> Result {
        self.serialize_u64(v.into())
    }

    #[inline]
    fn serialize_u64(self, v: u64) -> Result {
        emitted(encode::write_uint(self.out, v))
    }

    #[inline]
    fn serialize_u128(self, v: u128) -> Result {
        match i128::try_from(v) {
            Ok(v) => self.serialize_i128(v),
            Err(_) => self.wide(EXT_U128, v.to_be_bytes()),
        }
    }

    #[inline]
    fn serialize_f32(self, v: f32) -> Result {
        emitted(encode::write_f32(self.out, v))
    }

    #[inline]
    fn serialize_f64(self, v: f64) -> Result {
        emitted(encode::write_f64(self.out, v))
    }

    #[inline]
    fn serialize_char(self, v: char) -> Result {
        self.serialize_str(v.encode_utf8(&mut [0; 4]))
    }

    #[inline]
    fn serialize_str(self, v: &str) -> Result {
        emitted(encode::write_str_len(self.out, length(v.len())?))?;
        append(self.out, v.as_bytes());
        Ok(Written::Value)
    }

    #[inline]
    fn serialize_bytes(self, v: &[u8]) -> Result {
        emitted(encode::write_bin_len(self.out, length(v.len())?))?;
        append(self.out, v);
        Ok(Written::Value)
    }

    #[inline]
    fn serialize_none(self) -> Result {
        self.serialize_unit()
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result {
        let start = self.out.len();
        let written = value.serialize(Serializer {
            out: &mut *self.out,
            depth: self.depth.in_option()?,
            raw: self.raw,
        })?;
        if written == Written::Value && matches!(self.out.get(start), Some(&(NIL | SOME))) {
            // Such an encoding is a run of `SOME` that ends in nil: there is little to move.
            self.depth.in_containers(self.out.len() - start)?;
            self.out.insert(start, SOME);
        }
        Ok(written)
    }

    #[inline]
    fn serialize_unit(self) -> Result {
        emitted(encode::write_nil(self.out))
    }

    #[inline]
    fn serialize_unit_struct(self, _name: &'static str) -> Result {
        self.serialize_unit()
    }

    #[inline]
    fn serialize_unit_variant(self, _name: &'static str, _index: u32, variant: &'static str) -> Result {
        self.serialize_str(variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _name: &'static str, value: &T) -> Result {
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result {
        value.serialize(self.variant(variant)?)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Sequence<'a>> {
        self.sequence(len)
    }

    #[inline]
    fn collect_seq<I>(self, iter: I) -> Result
    where
        I: IntoIterator<Item: Serialize>,
    {
        let iter = iter.into_iter();
        let announced = match iter.size_hint() {
            (least, Some(most)) if least == most => least,
            _ => 0,
        };
        // No other type is called so, and one that was would be refused.
        if matches!(type_name::<I::Item>(), "u8" | "&u8") {
            return self.bytes(announced, iter);
        }
        let mut sequence = self.sequence(Some(announced))?;
        for element in iter {
            sequence.element(&element)?;
        }
        sequence.body.close()
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Sequence<'a>> {
        self.sequence(Some(len))
    }

    #[inline]
    fn serialize_tuple_struct(self, _name: &'static str, len: usize) -> Result<Sequence<'a>> {
        self.sequence(Some(len))
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Sequence<'a>> {
        self.variant(variant)?.sequence(Some(len))
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Fields<'a>> {
        self.fields(len)
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, len: usize) -> Result<Fields<'a>> {
        self.fields(Some(len))
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Fields<'a>> {
        self.variant(variant)?.fields(Some(len))
    }
}

/// An open array, map or byte string: a header that announces a length, and the elements after it.
///
/// The announced length is a guess where the value does not know its own; the header is put right
/// at the end.
struct Body<'a> {
    out: &'a mut Vec<u8>,
    /// The depth of the elements.
    depth: Depth,
    shape: Shape,
    header: usize,
    elements: usize,
    announced: usize,
    count: usize,
}

impl<'a> Body<'a> {
    #[inline]
    fn open(to: Serializer<'a>, shape: Shape, announced: usize) -> Result<Self> {
        let depth = to.depth.in_container()?;
        let header = to.out.len();
        shape.header(announced, to.out)?;
        Ok(Self { elements: to.out.len(), out: to.out, depth, shape, header, announced, count: 0 })
    }

    #[inline]
    fn write<T: Serialize + ?Sized>(&mut self, value: &T, raw: bool) -> Result {
        value.serialize(Serializer { out: &mut *self.out, depth: self.depth, raw })
    }

    #[inline]
    fn close(self) -> Result {
        if self.count != self.announced {
            replace(self.out, self.header, self.elements, |out| self.shape.header(self.count, out))?;
        }
        Ok(Written::Value)
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

/// An open sequence or tuple.
pub(super) struct Sequence<'a> {
    body: Body<'a>,
    mode: Mode,
}

impl Sequence<'_> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        let start = self.body.out.len();
        let written = self.body.write(value, self.mode != Mode::Values)?;
        match (self.mode, written) {
            (Mode::Undecided, Written::Value) => self.mode = Mode::Values,
            (Mode::Undecided, Written::Raw) => self.begin_bytes()?,
            (Mode::Bytes, Written::Value) => self.end_bytes(start)?,
            (Mode::Bytes, Written::Raw) | (Mode::Values, _) => {}
        }
        self.body.count += 1;
        Ok(())
    }

    /// The first element was a byte: announces bytes instead of an array.
    #[inline]
    fn begin_bytes(&mut self) -> Result<()> {
        let body = &mut self.body;
        body.shape = Shape::Bytes;
        self.mode = Mode::Bytes;
        let first = body.out.pop();
        body.out.truncate(body.header);
        body.shape.header(body.announced, body.out)?;
        body.elements = body.out.len();
        body.out.extend(first);
        Ok(())
    }

    /// The element at `start` is no byte: writes the bytes before it anew, as an array of values.
    #[cold]
    fn end_bytes(&mut self, start: usize) -> Result<()> {
        let body = &mut self.body;
        body.shape = Shape::Array;
        self.mode = Mode::Values;
        let old = body.elements..start;
        replace(body.out, body.header, start, |out| {
            let header = out.len();
            body.shape.header(body.announced, out)?;
            body.elements = body.header + (out.len() - header);
            for at in old {
                emitted(encode::write_uint(out, out[at].into()))?;
            }
            Ok(())
        })
    }
}

impl ser::SerializeSeq for Sequence<'_> {
    type Ok = Written;
    type Error = CodecError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(value)
    }

    #[inline]
    fn end(self) -> Result {
        self.body.close()
    }
}

impl ser::SerializeTuple for Sequence<'_> {
    type Ok = Written;
    type Error = CodecError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(value)
    }

    #[inline]
    fn end(self) -> Result {
        self.body.close()
    }
}

impl ser::SerializeTupleStruct for Sequence<'_> {
    type Ok = Written;
    type Error = CodecError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(value)
    }

    #[inline]
    fn end(self) -> Result {
        self.body.close()
    }
}

impl ser::SerializeTupleVariant for Sequence<'_> {
    type Ok = Written;
    type Error = CodecError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(value)
    }

    #[inline]
    fn end(self) -> Result {
        self.body.close()
    }
}

/// An open map or struct.
pub(super) struct Fields<'a> {
    body: Body<'a>,
}

impl Fields<'_> {
    #[inline]
    fn field<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<()> {
        self.body.count += 1;
        emitted(encode::write_str(self.body.out, key))?;
        self.body.write(value, false)?;
        Ok(())
    }
}

impl ser::SerializeMap for Fields<'_> {
    type Ok = Written;
    type Error = CodecError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<()> {
        self.body.count += 1;
        self.body.write(key, false)?;
        Ok(())
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.body.write(value, false)?;
        Ok(())
    }

    #[inline]
    fn end(self) -> Result {
        self.body.close()
    }
}

impl ser::SerializeStruct for Fields<'_> {
    type Ok = Written;
    type Error = CodecError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<()> {
        self.field(key, value)
    }

    #[inline]
    fn end(self) -> Result {
        self.body.close()
    }
}

impl ser::SerializeStructVariant for Fields<'_> {
    type Ok = Written;
    type Error = CodecError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<()> {
        self.field(key, value)
    }

    #[inline]
    fn end(self) -> Result {
        self.body.close()
    }
}
