//! Graphs to values.

use std::borrow::Cow;

use serde::de::value::{SeqAccessDeserializer, SeqDeserializer, U8Deserializer};
use serde::de::{self, Deserialize, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::bigint;
use super::graph::{Graph, Instance, Value, View};
use super::object::Kind;
use crate::reduction::{Bytes, CodecError, Depth};

type Result<T> = std::result::Result<T, CodecError>;

/// The newtype that [`Object`](super::Object) asks for: it is then shown what kind of value it is.
pub(super) const OBJECT: &str = "tokio_multiprocess::python::Object";

/// Reads one value of a graph.
#[derive(Clone, Copy)]
pub(super) struct Deserializer<'g, 'de> {
    graph: &'g Graph<'de>,
    value: Value<'de>,
    depth: Depth,
}

#[cold]
fn no_data(view: &View<'_, '_>) -> CodecError {
    let message = match view {
        View::Global(module, name) => format!("{module}.{name} is no data: only an Object can hold it"),
        _ => format!("{} is no data: only an Object can hold it", view.kind()),
    };
    CodecError::new(&message)
}

impl<'g, 'de> Deserializer<'g, 'de> {
    pub(super) fn new(graph: &'g Graph<'de>) -> Self {
        Self { graph, value: graph.root, depth: Depth::default() }
    }

    /// Hands what the value is to the visitor method of its kind.
    fn visit<V: Visitor<'de>>(self, view: View<'g, 'de>, visitor: V) -> Result<V::Value> {
        match view {
            View::None => visitor.visit_unit(),
            View::Bool(v) => visitor.visit_bool(v),
            View::Int(v) => visitor.visit_i64(v),
            View::Float(v) => visitor.visit_f64(v),
            View::BigInt(v) => visit_big(v, visitor),
            View::Str(v) => visitor.visit_borrowed_str(v),
            View::Text(v) => visitor.visit_str(v),
            View::Bytes(v) | View::ByteArray(v) => visit_bytes(v, visitor),
            View::List(v) | View::Tuple(v) | View::Set(v) | View::FrozenSet(v) => self.sequence(v, visitor),
            View::Dict(v) => self.map(v, visitor),
            View::Instance(instance) => self.content(instance)?.deserialize(visitor),
            View::Global(..) => Err(no_data(&view)),
        }
    }

    fn deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.visit(self.graph.view(self.value)?, visitor)
    }

    /// What an instance is read as where there is nothing that it could be made into: its state if it
    /// has one, else what is set in it, else what is appended to it, else what it was made of.
    fn content(self, instance: &Instance<'de>) -> Result<Self> {
        let depth = self.depth.in_container()?;
        let mut parts = [instance.state, instance.entries, instance.items].into_iter();
        let part = parts.find(|part| !matches!(part, Value::None)).unwrap_or(instance.args);
        // Where a class has `__slots__`, their values stand in second place.
        let value = match self.graph.tuple(part) {
            Some(&[Value::None, slots]) if matches!(self.graph.look(slots)?, View::Dict(_)) => slots,
            _ => part,
        };
        Ok(Self { graph: self.graph, value, depth })
    }

    fn sequence<V: Visitor<'de>>(self, items: &[Value<'de>], visitor: V) -> Result<V::Value> {
        let mut items = Items { graph: self.graph, depth: self.depth.in_container()?, left: items.iter() };
        let value = visitor.visit_seq(&mut items)?;
        exhausted(items.left.len())?;
        Ok(value)
    }

    fn map<V: Visitor<'de>>(self, entries: &'g [(Value<'de>, Value<'de>)], visitor: V) -> Result<V::Value> {
        let depth = self.depth.in_container()?;
        let mut entries = Entries { graph: self.graph, depth, left: entries.iter(), value: None };
        let value = visitor.visit_map(&mut entries)?;
        exhausted(entries.left.len())?;
        Ok(value)
    }

    /// Visits bytes as a sequence of `u8`.
    fn each<V: Visitor<'de>>(self, bytes: &[u8], visitor: V) -> Result<V::Value> {
        let mut bytes = Bytes { depth: self.depth.in_container()?, left: bytes.iter() };
        let value = visitor.visit_seq(&mut bytes)?;
        exhausted(bytes.left.len())?;
        Ok(value)
    }
}

fn exhausted(left: usize) -> Result<()> {
    if left == 0 { Ok(()) } else { Err(CodecError::new(&format!("{left} elements too many"))) }
}

fn visit_bytes<'de, V: Visitor<'de>>(bytes: Cow<'de, [u8]>, visitor: V) -> Result<V::Value> {
    match bytes {
        Cow::Borrowed(bytes) => visitor.visit_borrowed_bytes(bytes),
        Cow::Owned(bytes) => visitor.visit_byte_buf(bytes),
    }
}

fn visit_big<'de, V: Visitor<'de>>(bytes: &[u8], visitor: V) -> Result<V::Value> {
    match (bigint::to_i128(bytes), bigint::to_u128(bytes)) {
        (_, Some(v)) if v <= u64::MAX.into() => visitor.visit_u64(v as u64),
        (Some(v), _) => visitor.visit_i128(v),
        (_, Some(v)) => visitor.visit_u128(v),
        _ => Err(CodecError::new("an int of more than 128 bits: only an Object can hold it")),
    }
}

impl<'de> de::Deserializer<'de> for Deserializer<'_, 'de> {
    type Error = CodecError;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.value {
            Value::None => visitor.visit_none(),
            _ => visitor.visit_some(Self { depth: self.depth.in_option()?, ..self }),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value> {
        if name == OBJECT {
            return visitor.visit_enum(Kinded(self));
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.graph.view(self.value)? {
            // No arguments.
            View::Tuple([]) => visitor.visit_unit(),
            view => self.visit(view, visitor),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.graph.view(self.value)? {
            View::Bytes(bytes) | View::ByteArray(bytes) => self.each(&bytes, visitor),
            View::Instance(instance) => self.content(instance)?.deserialize_seq(visitor),
            view => self.visit(view, visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.graph.view(self.value)? {
            View::Instance(instance) => {
                let content = self.content(instance)?;
                match self.graph.view(content.value)? {
                    // An `OrderedDict` or the like in which nothing was set.
                    View::Tuple([]) => self.map(&[], visitor),
                    view => content.visit(view, visitor),
                }
            }
            view => self.visit(view, visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_map(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.graph.view(self.value)? {
            View::List(v) | View::Tuple(v) => {
                let mut items =
                    Items { graph: self.graph, depth: self.depth.in_container()?, left: v.iter() };
                let bytes = Vec::deserialize(SeqAccessDeserializer::new(&mut items))?;
                visitor.visit_byte_buf(bytes)
            }
            view => self.visit(view, visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        match self.graph.view(self.value)? {
            View::Dict(&[(name, content)]) => {
                let depth = self.depth.in_container()?;
                visitor.visit_enum(Variant {
                    name: Self { value: name, depth, ..self },
                    content: Some(Self { value: content, depth, ..self }),
                })
            }
            View::Str(_) | View::Text(_) => visitor.visit_enum(Variant { name: self, content: None }),
            _ => Err(CodecError::new("an enum is a str, or a dict from its variant to the content")),
        }
    }

    /// Anything may be skipped, also what only an object can hold.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string identifier
    }
}

/// The elements of a sequence that are still to be read.
struct Items<'g, 'de> {
    graph: &'g Graph<'de>,
    depth: Depth,
    left: std::slice::Iter<'g, Value<'de>>,
}

impl<'de> de::SeqAccess<'de> for Items<'_, 'de> {
    type Error = CodecError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        let Some(&value) = self.left.next() else { return Ok(None) };
        seed.deserialize(Deserializer { graph: self.graph, value, depth: self.depth }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.len())
    }
}

/// The entries of a dict that are still to be read.
struct Entries<'g, 'de> {
    graph: &'g Graph<'de>,
    depth: Depth,
    left: std::slice::Iter<'g, (Value<'de>, Value<'de>)>,
    /// Of the key that was read last.
    value: Option<Value<'de>>,
}

impl<'de> de::MapAccess<'de> for Entries<'_, 'de> {
    type Error = CodecError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        let Some(&(key, value)) = self.left.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(Deserializer { graph: self.graph, value: key, depth: self.depth }).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value> {
        let value = self.value.take().ok_or_else(|| CodecError::new("a value is read before its key"))?;
        seed.deserialize(Deserializer { graph: self.graph, value, depth: self.depth })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.len())
    }
}

/// A variant of an enum: its name, and perhaps the content.
struct Variant<'g, 'de> {
    name: Deserializer<'g, 'de>,
    content: Option<Deserializer<'g, 'de>>,
}

impl<'g, 'de> de::EnumAccess<'de> for Variant<'g, 'de> {
    type Error = CodecError;
    type Variant = Content<'g, 'de>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Content<'g, 'de>)> {
        Ok((seed.deserialize(self.name)?, Content(self.content)))
    }
}

/// The content of a variant, if it has any.
struct Content<'g, 'de>(Option<Deserializer<'g, 'de>>);

impl<'g, 'de> Content<'g, 'de> {
    fn expect(self, expected: &'static str) -> Result<Deserializer<'g, 'de>> {
        self.0.ok_or_else(|| de::Error::invalid_type(Unexpected::UnitVariant, &expected))
    }
}

impl<'de> de::VariantAccess<'de> for Content<'_, 'de> {
    type Error = CodecError;

    fn unit_variant(self) -> Result<()> {
        match self.0 {
            Some(content) => Deserialize::deserialize(content),
            None => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        seed.deserialize(self.expect("newtype variant")?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value> {
        de::Deserializer::deserialize_tuple(self.expect("tuple variant")?, len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        de::Deserializer::deserialize_struct(self.expect("struct variant")?, "", fields, visitor)
    }
}

/// A value that is asked of which kind it is: the number of the [`Kind`], and the content.
struct Kinded<'g, 'de>(Deserializer<'g, 'de>);

impl<'g, 'de> de::EnumAccess<'de> for Kinded<'g, 'de> {
    type Error = CodecError;
    type Variant = KindedContent<'g, 'de>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, KindedContent<'g, 'de>)> {
        // What is seen here is weighed when the content is read.
        let kind = match self.0.graph.look(self.0.value)? {
            View::None => Kind::None,
            View::Bool(_) => Kind::Bool,
            View::Int(_) => Kind::Int,
            View::Float(_) => Kind::Float,
            View::BigInt(_) => Kind::BigInt,
            View::Str(_) | View::Text(_) => Kind::Str,
            View::Bytes(_) => Kind::Bytes,
            View::ByteArray(_) => Kind::ByteArray,
            View::List(_) => Kind::List,
            View::Tuple(_) => Kind::Tuple,
            View::Set(_) => Kind::Set,
            View::FrozenSet(_) => Kind::FrozenSet,
            View::Dict(_) => Kind::Dict,
            View::Global(..) => Kind::Global,
            View::Instance(_) => Kind::Instance,
        };
        let number: U8Deserializer<CodecError> = (kind as u8).into_deserializer();
        Ok((seed.deserialize(number)?, KindedContent(self.0)))
    }
}

struct KindedContent<'g, 'de>(Deserializer<'g, 'de>);

impl<'de> de::VariantAccess<'de> for KindedContent<'_, 'de> {
    type Error = CodecError;

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        seed.deserialize(self)
    }

    fn unit_variant(self) -> Result<()> {
        Deserialize::deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        de::Deserializer::deserialize_any(self, visitor)
    }
}

/// Shows what the data model has no place for as bytes and sequences.
impl<'de> de::Deserializer<'de> for KindedContent<'_, 'de> {
    type Error = CodecError;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let Self(value) = self;
        match value.graph.view(value.value)? {
            View::BigInt(bytes) => visitor.visit_bytes(bytes),
            View::Global(module, name) => visitor.visit_seq(SeqDeserializer::new([module, name].into_iter())),
            View::Instance(&Instance { callable, args, new, kwargs, items, entries, state }) => {
                let parts = [callable, args, Value::Bool(new), kwargs, items, entries, state];
                value.sequence(&parts, visitor)
            }
            view => value.visit(view, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
