//! Bytes to values.

use rmp::Marker;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer as _, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::{CodecError, Depth, EXT_BYTES, EXT_I128, EXT_U128, NIL, SOME};

type Result<T> = std::result::Result<T, CodecError>;

/// Reads one value from the front of `input`.
pub(super) struct Deserializer<'a, 'de> {
    input: &'a mut &'de [u8],
    depth: Depth,
}

/// A scalar, or the header of what is to follow.
enum Token<'de> {
    Nil,
    Some,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    I128(i128),
    U128(u128),
    F32(f32),
    F64(f64),
    Str(&'de str),
    /// Bytes that the writer called bytes.
    Bin(&'de [u8]),
    /// A sequence of `u8`.
    Bytes(&'de [u8]),
    Array(u32),
    Map(u32),
}

#[cold]
fn truncated() -> CodecError {
    CodecError::new("the input ends inside the value")
}

#[inline]
fn take<'de, const N: usize>(input: &mut &'de [u8]) -> Result<&'de [u8; N]> {
    let (head, rest) = input.split_first_chunk().ok_or_else(truncated)?;
    *input = rest;
    Ok(head)
}

#[inline]
fn take_slice<'de>(input: &mut &'de [u8], len: usize) -> Result<&'de [u8]> {
    let (head, rest) = input.split_at_checked(len).ok_or_else(truncated)?;
    *input = rest;
    Ok(head)
}

macro_rules! number {
    ($input:expr, $type:ty) => {
        <$type>::from_be_bytes(*take($input)?)
    };
}

#[inline]
fn string<'de>(input: &mut &'de [u8], len: usize) -> Result<&'de str> {
    std::str::from_utf8(take_slice(input, len)?).map_err(de::Error::custom)
}

fn extension<'de>(input: &mut &'de [u8], len: usize) -> Result<Token<'de>> {
    let kind = number!(input, i8);
    let data = take_slice(input, len)?;
    match (kind, <[u8; 16]>::try_from(data)) {
        (EXT_BYTES, _) => Ok(Token::Bytes(data)),
        (EXT_I128, Ok(wide)) => Ok(Token::I128(i128::from_be_bytes(wide))),
        (EXT_U128, Ok(wide)) => Ok(Token::U128(u128::from_be_bytes(wide))),
        _ => Err(CodecError::new(&format!("unknown extension {kind} of {len} bytes"))),
    }
}

impl<'de> Token<'de> {
    fn read(input: &mut &'de [u8]) -> Result<Self> {
        Ok(match Marker::from_u8(number!(input, u8)) {
            Marker::Null => Self::Nil,
            Marker::Reserved => Self::Some,
            Marker::False => Self::Bool(false),
            Marker::True => Self::Bool(true),
            Marker::FixPos(v) => Self::Unsigned(v.into()),
            Marker::U8 => Self::Unsigned(number!(input, u8).into()),
            Marker::U16 => Self::Unsigned(number!(input, u16).into()),
            Marker::U32 => Self::Unsigned(number!(input, u32).into()),
            Marker::U64 => Self::Unsigned(number!(input, u64)),
            Marker::FixNeg(v) => Self::Signed(v.into()),
            Marker::I8 => Self::Signed(number!(input, i8).into()),
            Marker::I16 => Self::Signed(number!(input, i16).into()),
            Marker::I32 => Self::Signed(number!(input, i32).into()),
            Marker::I64 => Self::Signed(number!(input, i64)),
            Marker::F32 => Self::F32(number!(input, f32)),
            Marker::F64 => Self::F64(number!(input, f64)),
            Marker::FixStr(len) => Self::Str(string(input, len.into())?),
            Marker::Str8 => {
                let len = number!(input, u8);
                Self::Str(string(input, len.into())?)
            }
            Marker::Str16 => {
                let len = number!(input, u16);
                Self::Str(string(input, len.into())?)
            }
            Marker::Str32 => {
                let len = number!(input, u32);
                Self::Str(string(input, len as usize)?)
            }
            Marker::Bin8 => {
                let len = number!(input, u8);
                Self::Bin(take_slice(input, len.into())?)
            }
            Marker::Bin16 => {
                let len = number!(input, u16);
                Self::Bin(take_slice(input, len.into())?)
            }
            Marker::Bin32 => {
                let len = number!(input, u32);
                Self::Bin(take_slice(input, len as usize)?)
            }
            Marker::FixExt1 => extension(input, 1)?,
            Marker::FixExt2 => extension(input, 2)?,
            Marker::FixExt4 => extension(input, 4)?,
            Marker::FixExt8 => extension(input, 8)?,
            Marker::FixExt16 => extension(input, 16)?,
            Marker::Ext8 => {
                let len = number!(input, u8);
                extension(input, len.into())?
            }
            Marker::Ext16 => {
                let len = number!(input, u16);
                extension(input, len.into())?
            }
            Marker::Ext32 => {
                let len = number!(input, u32);
                extension(input, len as usize)?
            }
            Marker::FixArray(len) => Self::Array(len.into()),
            Marker::Array16 => Self::Array(number!(input, u16).into()),
            Marker::Array32 => Self::Array(number!(input, u32)),
            Marker::FixMap(len) => Self::Map(len.into()),
            Marker::Map16 => Self::Map(number!(input, u16).into()),
            Marker::Map32 => Self::Map(number!(input, u32)),
        })
    }
}

impl<'a, 'de> Deserializer<'a, 'de> {
    #[inline]
    pub(super) fn new(input: &'a mut &'de [u8]) -> Self {
        Self { input, depth: Depth::default() }
    }

    /// Hands a token, and what follows it, to the visitor method of its kind.
    #[inline]
    fn visit<V: Visitor<'de>>(self, token: Token<'de>, visitor: V) -> Result<V::Value> {
        match token {
            Token::Nil => visitor.visit_unit(),
            Token::Some => {
                visitor.visit_some(Deserializer { depth: self.depth.in_container()?, input: self.input })
            }
            Token::Bool(v) => visitor.visit_bool(v),
            Token::Unsigned(v) => visitor.visit_u64(v),
            Token::Signed(v) => visitor.visit_i64(v),
            Token::I128(v) => visitor.visit_i128(v),
            Token::U128(v) => visitor.visit_u128(v),
            Token::F32(v) => visitor.visit_f32(v),
            Token::F64(v) => visitor.visit_f64(v),
            Token::Str(v) => visitor.visit_borrowed_str(v),
            Token::Bin(v) => visitor.visit_borrowed_bytes(v),
            Token::Bytes(v) => self.visit_each(v, visitor),
            Token::Array(len) => self.container(len, |elements| visitor.visit_seq(elements)),
            Token::Map(len) => self.container(len, |entries| visitor.visit_map(entries)),
        }
    }

    /// Has `read` read `len` elements or entries, all of them.
    #[inline]
    fn container<T>(self, len: u32, read: impl FnOnce(&mut Elements<'a, 'de>) -> Result<T>) -> Result<T> {
        let mut elements = Elements { depth: self.depth.in_container()?, input: self.input, left: len };
        let value = read(&mut elements)?;
        exhausted(elements.left as usize)?;
        Ok(value)
    }

    /// Visits bytes as a sequence of `u8`.
    #[inline]
    fn visit_each<V: Visitor<'de>>(self, bytes: &'de [u8], visitor: V) -> Result<V::Value> {
        let mut bytes = Bytes { depth: self.depth.in_container()?, left: bytes.iter() };
        let value = visitor.visit_seq(&mut bytes)?;
        exhausted(bytes.left.len())?;
        Ok(value)
    }
}

#[inline]
fn exhausted(left: usize) -> Result<()> {
    if left == 0 { Ok(()) } else { Err(CodecError::new(&format!("{left} elements too many"))) }
}

impl<'de> de::Deserializer<'de> for Deserializer<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let token = Token::read(self.input)?;
        self.visit(token, visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.input.split_first() {
            Some((&NIL, rest)) => {
                *self.input = rest;
                visitor.visit_none()
            }
            Some((&SOME, _)) => self.deserialize_any(visitor),
            _ => visitor.visit_some(Self { depth: self.depth.in_option()?, input: self.input }),
        }
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value> {
        match Token::read(self.input)? {
            // Other writers take it for a struct without fields.
            Token::Array(0) => visitor.visit_unit(),
            token => self.visit(token, visitor),
        }
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match Token::read(self.input)? {
            Token::Bin(bytes) => self.visit_each(bytes, visitor),
            token => self.visit(token, visitor),
        }
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    #[inline]
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match Token::read(self.input)? {
            Token::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            Token::Array(len) => {
                let bytes =
                    self.container(len, |elements| Vec::deserialize(SeqAccessDeserializer::new(elements)))?;
                visitor.visit_byte_buf(bytes)
            }
            token => self.visit(token, visitor),
        }
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_bytes(visitor)
    }

    #[inline]
    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match Token::read(self.input)? {
            // Other writers have no extension for it.
            Token::Bin(bytes) if bytes.len() == 16 => visitor.visit_i128(number!(&mut &*bytes, i128)),
            token => self.visit(token, visitor),
        }
    }

    #[inline]
    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match Token::read(self.input)? {
            Token::Bin(bytes) if bytes.len() == 16 => visitor.visit_u128(number!(&mut &*bytes, u128)),
            token => self.visit(token, visitor),
        }
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let marker = self.input.first().map(|&byte| Marker::from_u8(byte));
        if !matches!(marker, Some(Marker::FixMap(_) | Marker::Map16 | Marker::Map32)) {
            return visitor.visit_enum(Variant { name: self, has_content: false });
        }
        match Token::read(self.input)? {
            Token::Map(1) => visitor.visit_enum(Variant {
                name: Self { depth: self.depth.in_container()?, input: self.input },
                has_content: true,
            }),
            _ => Err(CodecError::new("an enum is a map of one entry, from its variant to the content")),
        }
    }

    #[inline]
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match Token::read(self.input)? {
            // There is nothing in them to walk through.
            Token::Bytes(_) => visitor.visit_unit(),
            token => self.visit(token, visitor),
        }
    }

    // Names of fields and variants are most of what there is to read, and nearly all are short.
    #[inline]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if let Some((&first, rest)) = self.input.split_first()
            && let Marker::FixStr(len) = Marker::from_u8(first)
        {
            *self.input = rest;
            return visitor.visit_borrowed_str(string(self.input, len.into())?);
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string
        unit map struct
    }
}

/// The elements of an array, or the entries of a map, that are still to be read.
struct Elements<'a, 'de> {
    input: &'a mut &'de [u8],
    depth: Depth,
    left: u32,
}

impl<'de> Elements<'_, 'de> {
    #[inline]
    fn next<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value> {
        seed.deserialize(Deserializer { input: &mut *self.input, depth: self.depth })
    }

    /// How many are still to come: never more than the input has bytes, so that it is safe to
    /// allocate for.
    #[inline]
    fn remaining(&self) -> usize {
        self.input.len().min(self.left as usize)
    }
}

impl<'de> de::SeqAccess<'de> for Elements<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.next(seed).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.remaining())
    }
}

impl<'de> de::MapAccess<'de> for Elements<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.next(seed).map(Some)
    }

    #[inline]
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value> {
        self.next(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.remaining())
    }
}

/// A variant of an enum: its name, and after it perhaps the content.
struct Variant<'a, 'de> {
    name: Deserializer<'a, 'de>,
    has_content: bool,
}

impl<'a, 'de> de::EnumAccess<'de> for Variant<'a, 'de> {
    type Error = CodecError;
    type Variant = Content<'a, 'de>;

    #[inline]
    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Content<'a, 'de>)> {
        let Deserializer { input, depth } = self.name;
        let name = seed.deserialize(Deserializer { input: &mut *input, depth })?;
        let content = self.has_content.then_some(Deserializer { input, depth });
        Ok((name, Content(content)))
    }
}

/// The content of a variant, if it has any.
struct Content<'a, 'de>(Option<Deserializer<'a, 'de>>);

impl<'a, 'de> Content<'a, 'de> {
    #[inline]
    fn expect(self, expected: &'static str) -> Result<Deserializer<'a, 'de>> {
        self.0.ok_or_else(|| de::Error::invalid_type(Unexpected::UnitVariant, &expected))
    }
}

impl<'de> de::VariantAccess<'de> for Content<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn unit_variant(self) -> Result<()> {
        match self.0 {
            Some(content) => Deserialize::deserialize(content),
            None => Ok(()),
        }
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        seed.deserialize(self.expect("newtype variant")?)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value> {
        self.expect("tuple variant")?.deserialize_seq(visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.expect("struct variant")?.deserialize_any(visitor)
    }
}

/// The elements of a byte string that are still to be read.
pub(crate) struct Bytes<'a> {
    pub(crate) left: std::slice::Iter<'a, u8>,
    pub(crate) depth: Depth,
}

impl<'de> de::SeqAccess<'de> for Bytes<'_> {
    type Error = CodecError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        match self.left.next() {
            Some(&value) => seed.deserialize(Byte { value, depth: self.depth }).map(Some),
            None => Ok(None),
        }
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left.len())
    }
}

/// One element of a byte string.
///
/// Serde's own deserializer of a `u8` does not see through `Option`s and newtypes as the one of a
/// written value does.
struct Byte {
    value: u8,
    depth: Depth,
}

impl<'de> de::Deserializer<'de> for Byte {
    type Error = CodecError;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_u8(self.value)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_some(Self { depth: self.depth.in_option()?, ..self })
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
