//! What a pickle builds: values that may share parts, and even contain themselves.

use std::borrow::Cow;
use std::cell::Cell;

use crate::reduction::CodecError;

/// A value in a graph: a scalar, or where its node lies.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'de> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'de str),
    Bytes(&'de [u8]),
    Node(usize),
}

/// What a value may refer to, and other values may refer to as well.
#[derive(Debug)]
pub(super) enum Node<'de> {
    /// An integer beyond 64 bits: two's complement, little-endian, no longer than it has to be.
    BigInt(Cow<'de, [u8]>),
    /// A string that stands in the pickle with escapes.
    Str(String),
    /// Such bytes.
    Bytes(Vec<u8>),
    ByteArray(&'de [u8]),
    List(Vec<Value<'de>>),
    Tuple(Vec<Value<'de>>),
    Set(Vec<Value<'de>>),
    FrozenSet(Vec<Value<'de>>),
    Dict(Vec<(Value<'de>, Value<'de>)>),
    Global(&'de str, &'de str),
    Instance(Box<Instance<'de>>),
}

/// What Python would make by a call. Nothing is called here.
#[derive(Debug)]
pub(super) struct Instance<'de> {
    pub(super) callable: Value<'de>,
    /// A tuple.
    pub(super) args: Value<'de>,
    /// Whether `callable.__new__` makes it, rather than a call.
    pub(super) new: bool,
    /// A dict, or none.
    pub(super) kwargs: Value<'de>,
    /// What is appended to it: a list, or none.
    pub(super) items: Value<'de>,
    /// What is set in it by key: a dict, or none.
    pub(super) entries: Value<'de>,
    /// Its attributes, or what its `__setstate__` is to get.
    pub(super) state: Value<'de>,
}

/// A value, as its reader sees it.
pub(super) enum View<'g, 'de> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Two's complement, little-endian.
    BigInt(&'g [u8]),
    Str(&'de str),
    Text(&'g str),
    Bytes(Cow<'de, [u8]>),
    ByteArray(Cow<'de, [u8]>),
    List(&'g [Value<'de>]),
    Tuple(&'g [Value<'de>]),
    Set(&'g [Value<'de>]),
    FrozenSet(&'g [Value<'de>]),
    Dict(&'g [(Value<'de>, Value<'de>)]),
    Global(&'de str, &'de str),
    Instance(&'g Instance<'de>),
}

impl View<'_, '_> {
    /// What to call it in an error.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) | Self::BigInt(_) => "an int",
            Self::Float(_) => "a float",
            Self::Str(_) | Self::Text(_) => "a str",
            Self::Bytes(_) => "bytes",
            Self::ByteArray(_) => "a bytearray",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::FrozenSet(_) => "a frozenset",
            Self::Dict(_) => "a dict",
            Self::Global(..) => "a function or class",
            Self::Instance(_) => "an instance",
        }
    }
}

/// A whole message.
///
/// Readers walk it as if it were a tree, and so visit again what is shared. A few bytes can share a
/// part more often than there are atoms, so what readers see is weighed, and there is a limit.
#[derive(Debug)]
pub(super) struct Graph<'de> {
    pub(super) nodes: Vec<Node<'de>>,
    pub(super) root: Value<'de>,
    /// What readers may still see, in bytes.
    allowance: Cell<usize>,
}

/// What each value weighs besides its content: about as much as it occupies in memory.
const WEIGHT: usize = 32;
/// What a message may grow to by sharing alone.
pub(super) const ALLOWANCE: usize = 128 << 20;

impl<'de> Graph<'de> {
    /// The graph of a message of `len` bytes, which may grow by `allowance` through sharing. Two values
    /// per byte are what it may hold without.
    pub(super) fn new(nodes: Vec<Node<'de>>, root: Value<'de>, len: usize, allowance: usize) -> Self {
        let allowance = allowance.saturating_add(len.saturating_mul(2 * WEIGHT));
        Self { nodes, root, allowance: Cell::new(allowance) }
    }

    /// The value, to be read.
    pub(super) fn view(&self, value: Value<'de>) -> Result<View<'_, 'de>, CodecError> {
        let view = self.look(value)?;
        let content = match &view {
            View::Str(v) => v.len(),
            View::Text(v) => v.len(),
            View::BigInt(v) => v.len(),
            View::Bytes(v) | View::ByteArray(v) => v.len(),
            // The rest is weighed as it is visited.
            _ => 0,
        };
        let left = self.allowance.get().checked_sub(WEIGHT + content).ok_or_else(|| {
            CodecError::new("the message shares its parts so often that it would grow beyond measure")
        })?;
        self.allowance.set(left);
        Ok(view)
    }

    /// The value, without weighing it: for who reads it next, or not at all.
    pub(super) fn look(&self, value: Value<'de>) -> Result<View<'_, 'de>, CodecError> {
        Ok(match value {
            Value::None => View::None,
            Value::Bool(v) => View::Bool(v),
            Value::Int(v) => View::Int(v),
            Value::Float(v) => View::Float(v),
            Value::Str(v) => View::Str(v),
            Value::Bytes(v) => View::Bytes(v.into()),
            Value::Node(at) => match &self.nodes[at] {
                Node::BigInt(v) => View::BigInt(v),
                Node::Str(v) => View::Text(v),
                Node::Bytes(v) => View::Bytes(v.clone().into()),
                Node::ByteArray(v) => View::ByteArray((*v).into()),
                Node::List(v) => View::List(v),
                Node::Tuple(v) => View::Tuple(v),
                Node::Set(v) => View::Set(v),
                Node::FrozenSet(v) => View::FrozenSet(v),
                Node::Dict(v) => View::Dict(v),
                Node::Global(module, name) => View::Global(module, name),
                Node::Instance(instance) => match self.well_known(instance)? {
                    Some(view) => view,
                    None => View::Instance(instance),
                },
            },
        })
    }

    /// What older protocols, which have no instructions for it, spell as a call of a builtin.
    fn well_known(&self, instance: &Instance<'de>) -> Result<Option<View<'_, 'de>>, CodecError> {
        let (Some(callable), Some(args)) = (self.global(instance.callable), self.tuple(instance.args)) else {
            return Ok(None);
        };
        if instance.new {
            return Ok(None);
        }
        Ok(match (callable, args) {
            (("builtins", "set"), []) => Some(View::Set(&[])),
            (("builtins", "set"), [items]) => self.list(*items).map(View::Set),
            (("builtins", "frozenset"), []) => Some(View::FrozenSet(&[])),
            (("builtins", "frozenset"), [items]) => self.list(*items).map(View::FrozenSet),
            (("builtins", "bytes"), []) => Some(View::Bytes((&[]).into())),
            (("builtins", "bytearray"), []) => Some(View::ByteArray((&[]).into())),
            (("builtins", "bytearray"), [bytes]) => self.bytes(*bytes)?.map(View::ByteArray),
            (("builtins", "bytearray"), [text, encoding]) => {
                self.latin1(*text, *encoding)?.map(View::ByteArray)
            }
            (("_codecs", "encode"), [text, encoding]) => self.latin1(*text, *encoding)?.map(View::Bytes),
            _ => None,
        })
    }

    fn node(&self, value: Value<'de>) -> Option<&Node<'de>> {
        match value {
            Value::Node(at) => Some(&self.nodes[at]),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, value: Value<'de>) -> Option<&[Value<'de>]> {
        match self.node(value) {
            Some(Node::Tuple(items)) => Some(items),
            _ => None,
        }
    }

    fn list(&self, value: Value<'de>) -> Option<&[Value<'de>]> {
        match self.node(value) {
            Some(Node::List(items)) => Some(items),
            _ => None,
        }
    }

    /// The module and name that the value is.
    pub(super) fn global(&self, value: Value<'de>) -> Option<(&'de str, &'de str)> {
        match self.node(value) {
            Some(Node::Global(module, name)) => Some((module, name)),
            _ => None,
        }
    }

    fn str(&self, value: Value<'de>) -> Option<&str> {
        match (value, self.node(value)) {
            (Value::Str(text), _) => Some(text),
            (_, Some(Node::Str(text))) => Some(text),
            _ => None,
        }
    }

    /// Bytes, also as older protocols spell them.
    fn bytes(&self, value: Value<'de>) -> Result<Option<Cow<'de, [u8]>>, CodecError> {
        Ok(match (value, self.node(value)) {
            (Value::Bytes(bytes), _) => Some(bytes.into()),
            // By name first: a `bytearray` may hold a `bytearray`, and so on without end.
            (_, Some(Node::Instance(instance)))
                if self.global(instance.callable) == Some(("_codecs", "encode")) =>
            {
                match self.well_known(instance)? {
                    Some(View::Bytes(bytes)) => Some(bytes),
                    _ => None,
                }
            }
            _ => None,
        })
    }

    /// The bytes that a text of their code points means.
    fn latin1(&self, text: Value<'de>, encoding: Value<'de>) -> Result<Option<Cow<'de, [u8]>>, CodecError> {
        let (Some(text), Some("latin1" | "latin-1")) = (self.str(text), self.str(encoding)) else {
            return Ok(None);
        };
        let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
        match bytes {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(_) => Err(CodecError::new("a text that stands for bytes holds other characters")),
        }
    }
}
