//! Objects in messages.
//!
//! [`Pickle`](super::Pickle)'s own reader and writer know newtypes of certain names, which other
//! formats look through. Through these an object says and learns what serde's data model cannot tell.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::ser::{
    Error as _, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple, Serializer,
};

use super::{Global, Instance, Object};
use crate::python::BigInt;
use crate::python::de::OBJECT;
use crate::python::ser;

/// Which of its variants an [`Object`] is, as a reader of pickles tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::python) enum Kind {
    None,
    Bool,
    Int,
    BigInt,
    Float,
    Str,
    Bytes,
    ByteArray,
    List,
    Tuple,
    Set,
    FrozenSet,
    Dict,
    Global,
    Instance,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::None,
        Self::Bool,
        Self::Int,
        Self::BigInt,
        Self::Float,
        Self::Str,
        Self::Bytes,
        Self::ByteArray,
        Self::List,
        Self::Tuple,
        Self::Set,
        Self::FrozenSet,
        Self::Dict,
        Self::Global,
        Self::Instance,
    ];
}

struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

struct Items<'a>(&'a [Object]);

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        self.0.iter().try_for_each(|item| list.serialize_element(item))?;
        list.end()
    }
}

struct Fixed<'a>(&'a [Object]);

impl Serialize for Fixed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|item| tuple.serialize_element(item))?;
        tuple.end()
    }
}

struct Entries<'a>(&'a [(Object, Object)]);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
        map.end()
    }
}

struct Parts<'a>(&'a Instance);

impl Serialize for Parts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Instance { callable, args, new, kwargs, items, entries, state } = self.0;
        if !new && !kwargs.is_empty() {
            return Err(S::Error::custom("only what is `new` can have arguments by keyword"));
        }
        let optional = [!kwargs.is_empty(), !items.is_empty(), !entries.is_empty(), state.is_some()];
        let len = 2 + optional.into_iter().filter(|part| *part).count();
        let mut parts = serializer.serialize_struct("Instance", len)?;
        parts.serialize_field("callable", callable)?;
        parts.serialize_field(if *new { "new_args" } else { "args" }, &Fixed(args))?;
        if !kwargs.is_empty() {
            parts.serialize_field("kwargs", &Entries(kwargs))?;
        }
        if !items.is_empty() {
            parts.serialize_field("items", &Named(ser::ITEMS, Items(items)))?;
        }
        if !entries.is_empty() {
            parts.serialize_field("entries", &Named(ser::ENTRIES, Entries(entries)))?;
        }
        if let Some(state) = state {
            parts.serialize_field("state", state)?;
        }
        parts.end()
    }
}

/// A newtype of that name.
struct Named<T>(&'static str, T);

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(self.0, &self.1)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_unit(),
            Self::Bool(v) => serializer.serialize_bool(*v),
            Self::Int(v) => serializer.serialize_i64(*v),
            Self::BigInt(v) => v.serialize(serializer),
            Self::Float(v) => serializer.serialize_f64(*v),
            Self::Str(v) => serializer.serialize_str(v),
            Self::Bytes(v) => serializer.serialize_bytes(v),
            Self::ByteArray(v) => Named(ser::BYTEARRAY, Raw(v)).serialize(serializer),
            Self::List(v) => Items(v).serialize(serializer),
            Self::Tuple(v) => Fixed(v).serialize(serializer),
            Self::Set(v) => Named(ser::SET, Items(v)).serialize(serializer),
            Self::FrozenSet(v) => Named(ser::FROZENSET_NAME, Items(v)).serialize(serializer),
            Self::Dict(v) => Entries(v).serialize(serializer),
            Self::Global(v) => v.serialize(serializer),
            Self::Instance(v) => v.serialize(serializer),
        }
    }
}

/// Beyond 128 bits, formats other than pickles get the bytes.
impl Serialize for BigInt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(value) = i128::try_from(self) {
            serializer.serialize_i128(value)
        } else if let Ok(value) = u128::try_from(self) {
            serializer.serialize_u128(value)
        } else {
            Named(ser::INTEGER, Raw(self.as_le_bytes())).serialize(serializer)
        }
    }
}

impl Serialize for Global {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Named(ser::GLOBAL_NAME, (&self.module, &self.name)).serialize(serializer)
    }
}

impl Serialize for Instance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Named(ser::INSTANCE, Parts(self)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(OBJECT, ObjectVisitor)
    }
}

macro_rules! part_of_object {
    ($($type:ident)*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Object::deserialize(deserializer)?.try_into().map_err(de::Error::custom)
            }
        }
    )*};
}

part_of_object! { BigInt Global Instance }

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Python value")
    }

    /// A pickle's reader tells the kind.
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Object, A::Error> {
        let (number, content): (u8, _) = access.variant()?;
        let unknown = || de::Error::custom("an enum is no Python value");
        let kind = Kind::ALL.get(usize::from(number)).copied().ok_or_else(unknown)?;
        Ok(match kind {
            Kind::None => content.newtype_variant::<()>().map(|()| Object::None)?,
            Kind::Bool => Object::Bool(content.newtype_variant()?),
            Kind::Int => Object::Int(content.newtype_variant()?),
            Kind::BigInt => {
                let Buffer(bytes) = content.newtype_variant()?;
                Object::BigInt(BigInt::from_le_bytes(&bytes))
            }
            Kind::Float => Object::Float(content.newtype_variant()?),
            Kind::Str => Object::Str(content.newtype_variant()?),
            Kind::Bytes => Object::Bytes(content.newtype_variant::<Buffer>()?.0),
            Kind::ByteArray => Object::ByteArray(content.newtype_variant::<Buffer>()?.0),
            Kind::List => Object::List(content.newtype_variant()?),
            Kind::Tuple => Object::Tuple(content.newtype_variant()?),
            Kind::Set => Object::Set(content.newtype_variant()?),
            Kind::FrozenSet => Object::FrozenSet(content.newtype_variant()?),
            Kind::Dict => Object::Dict(content.newtype_variant::<Pairs>()?.0),
            Kind::Global => {
                let (module, name) = content.newtype_variant()?;
                Object::Global(Global { module, name })
            }
            Kind::Instance => {
                let (callable, args, new, kwargs, items, entries, state): (
                    _,
                    _,
                    _,
                    Option<Pairs>,
                    Option<_>,
                    Option<Pairs>,
                    _,
                ) = content.newtype_variant()?;
                Object::Instance(Box::new(Instance {
                    callable,
                    args,
                    new,
                    kwargs: kwargs.unwrap_or_default().0,
                    items: items.unwrap_or_default(),
                    entries: entries.unwrap_or_default().0,
                    state,
                }))
            }
        })
    }

    /// Another format has plain data.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Object, E> {
        Ok(Object::None)
    }

    fn visit_none<E: de::Error>(self) -> Result<Object, E> {
        Ok(Object::None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        Object::deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_i128<E: de::Error>(self, v: i128) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_u128<E: de::Error>(self, v: u128) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_string<E: de::Error>(self, v: String) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_byte_buf<E: de::Error>(self, v: Vec<u8>) -> Result<Object, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Object::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Object, A::Error> {
        PairsVisitor.visit_map(access).map(|Pairs(entries)| Object::Dict(entries))
    }
}

/// Bytes, of which serde's own `Vec<u8>` would make a sequence.
struct Buffer(Vec<u8>);

impl<'de> Deserialize<'de> for Buffer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(BufferVisitor)
    }
}

struct BufferVisitor;

impl<'de> Visitor<'de> for BufferVisitor {
    type Value = Buffer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<Buffer, E> {
        Ok(Buffer(v.to_vec()))
    }

    fn visit_byte_buf<E: de::Error>(self, v: Vec<u8>) -> Result<Buffer, E> {
        Ok(Buffer(v))
    }
}

/// A dict's entries in their order.
#[derive(Default)]
struct Pairs(Vec<(Object, Object)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a dict")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Pairs, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Pairs(entries))
    }
}
