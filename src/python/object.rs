//! Any Python value, as data.

mod codec;

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{BigInt, Pickle};
use crate::reduction::{Codec, CodecError};

pub(super) use codec::Kind;

/// A Python value: what a peer sends when its type is not known beforehand, or has no counterpart in
/// Rust.
///
/// Classes and functions are names here, and their instances are what Python would make them of.
/// Nothing that a peer names is looked up, imported or called.
///
/// ```
/// use tokio_multiprocess::python::{Instance, Object, Pickle};
/// use tokio_multiprocess::reduction::Codec;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // pickle.dumps({"size": (3, 4), 5: ValueError("no")})
/// let pickle = b"\x80\x04}(\x8c\x04sizeK\x03K\x04\x86K\x05\x8c\x08builtins\x8c\x0aValueError\x93\
///                \x8c\x02no\x85Ru.";
/// let object: Object = Pickle::decode(pickle)?;
///
/// assert_eq!(object.get("size"), Some(&Object::from((3, 4))));
/// let Some(Object::Instance(error)) = object.get(5) else { panic!("{object:?}") };
/// assert_eq!(error.class().unwrap().to_string(), "builtins.ValueError");
/// assert_eq!(error.args, [Object::from("no")]);
/// # Ok(())
/// # }
/// ```
///
/// # Equality
///
/// Values of different kinds differ, also where Python calls them equal (`1`, `1.0` and `True`). Sets
/// and dicts are compared in their order.
///
/// # In other formats
///
/// Through [`Pickle`] each object comes back as it was. In other formats it is written as plain data,
/// and so is what a pickle holds when serde buffers it, for `flatten` and untagged enums: a tuple or
/// set comes back as a list, a `bytearray` as `bytes`, and instances are their parts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Object {
    /// `None`.
    None,
    /// A `bool`.
    Bool(bool),
    /// An `int` of at most 64 bits.
    Int(i64),
    /// An `int` that does not fit [`Int`](Self::Int): nothing smaller is ever read as this.
    BigInt(BigInt),
    /// A `float`.
    Float(f64),
    /// A `str`.
    Str(String),
    /// `bytes`.
    Bytes(Vec<u8>),
    /// A `bytearray`.
    ByteArray(Vec<u8>),
    /// A `list`.
    List(Vec<Object>),
    /// A `tuple`.
    Tuple(Vec<Object>),
    /// A `set`, in the order in which it came. Python needs its elements hashable: a list among them is
    /// sent as a tuple, and a dict is an error.
    Set(Vec<Object>),
    /// A `frozenset`, of which the same is true.
    FrozenSet(Vec<Object>),
    /// A `dict`, in the order in which it came. The same is true of its keys.
    Dict(Vec<(Object, Object)>),
    /// A class or function, by its name.
    Global(Global),
    /// An instance of a class.
    Instance(Box<Instance>),
}

/// The name of a class, function or other object that a module holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Global {
    /// The module's name, with dots. Protocols 0 to 2, which no `send` of Python 3 uses, have Python 2's
    /// names: of these only the modules `__builtin__`, `exceptions` and `copy_reg` are given their new
    /// ones.
    pub module: String,
    /// The name in that module, with dots if it lies deeper.
    pub name: String,
}

impl Global {
    /// The name `name` in the module `module`.
    pub fn new(module: impl Into<String>, name: impl Into<String>) -> Self {
        Self { module: module.into(), name: name.into() }
    }

    /// Whether it is this name in this module.
    pub fn is(&self, module: &str, name: &str) -> bool {
        (&*self.module, &*self.name) == (module, name)
    }
}

/// The module and name, with a dot between them.
impl fmt::Display for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// An instance of a class: what Python is to make it of.
///
/// An exception is a call of its class with `args`, the instance of an ordinary class is [new](Self::new)
/// of no arguments and with a dict of its attributes as `state`.
///
/// Sent to Python, it makes the receiver call what is named, as unpickling does.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Instance {
    /// What is called. Nearly always a [`Global`], most often a class.
    pub callable: Object,
    /// With these arguments.
    pub args: Vec<Object>,
    /// Whether `callable.__new__` is to be called, which leaves `__init__` out.
    pub new: bool,
    /// Arguments by keyword; only where `new` is set.
    pub kwargs: Vec<(Object, Object)>,
    /// What is appended to it, if it is a list of sorts.
    pub items: Vec<Object>,
    /// What is set in it by key, if it is a dict of sorts.
    pub entries: Vec<(Object, Object)>,
    /// What its `__setstate__` gets, or else a dict of attributes.
    pub state: Option<Object>,
}

impl Instance {
    /// What a call of `callable` with `args` gives.
    ///
    /// ```
    /// use tokio_multiprocess::python::{Global, Instance, Object};
    ///
    /// let error = Instance::call(Global::new("builtins", "KeyError"), vec!["colour".into()]);
    /// let reply = Object::from(("#ERROR", error));
    /// # assert_eq!(reply.items().unwrap().len(), 2);
    /// ```
    pub fn call(callable: impl Into<Object>, args: Vec<Object>) -> Self {
        Self {
            callable: callable.into(),
            args,
            new: false,
            kwargs: Vec::new(),
            items: Vec::new(),
            entries: Vec::new(),
            state: None,
        }
    }

    /// An instance of `class` that its `__init__` does not see, with this `state`.
    pub fn new(class: impl Into<Object>, state: impl Into<Object>) -> Self {
        Self { new: true, state: Some(state.into()), ..Self::call(class, Vec::new()) }
    }

    /// The name of the class, or of the function that makes the instance, if it is one.
    pub fn class(&self) -> Option<&Global> {
        match &self.callable {
            Object::Global(class) => Some(class),
            _ => None,
        }
    }
}

impl Object {
    /// What `value` is in Python: see the [table](super#what-is-what).
    ///
    /// # Errors
    ///
    /// When the value cannot be said in Python, or its own `Serialize` fails.
    pub fn new<T: Serialize + ?Sized>(value: &T) -> Result<Self, CodecError> {
        let mut pickle = Vec::new();
        Pickle::encode(value, &mut pickle)?;
        Pickle::decode(&pickle)
    }

    /// The object as a `T`: see the [table](super#what-is-what).
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn extract<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        let mut pickle = Vec::new();
        Pickle::encode(self, &mut pickle)?;
        Pickle::decode(&pickle)
    }

    /// The text of a `str`.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The content of `bytes` and of a `bytearray`.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) | Self::ByteArray(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The elements of a list, tuple or set of either kind.
    pub fn items(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Set(items) | Self::FrozenSet(items) => Some(items),
            _ => None,
        }
    }

    /// What a dict holds for the key. It is searched from its end, so of a key that occurs twice the
    /// last counts, as in Python.
    pub fn get(&self, key: impl Into<Self>) -> Option<&Self> {
        let Self::Dict(entries) = self else { return None };
        let key = key.into();
        entries.iter().rev().find(|entry| entry.0 == key).map(|entry| &entry.1)
    }

    /// What to call it in an error.
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) | Self::BigInt(_) => "an int",
            Self::Float(_) => "a float",
            Self::Str(_) => "a str",
            Self::Bytes(_) => "bytes",
            Self::ByteArray(_) => "a bytearray",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::FrozenSet(_) => "a frozenset",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a function or class",
            Self::Instance(_) => "an instance",
        }
    }
}

macro_rules! from {
    ($($type:ty => |$value:ident| $object:expr;)*) => {$(
        impl From<$type> for Object {
            fn from($value: $type) -> Self {
                $object
            }
        }
    )*};
}

from! {
    () => |_value| Self::None;
    bool => |value| Self::Bool(value);
    i8 => |value| Self::Int(value.into());
    i16 => |value| Self::Int(value.into());
    i32 => |value| Self::Int(value.into());
    i64 => |value| Self::Int(value);
    u8 => |value| Self::Int(value.into());
    u16 => |value| Self::Int(value.into());
    u32 => |value| Self::Int(value.into());
    u64 => |value| Self::from(u128::from(value));
    usize => |value| Self::from(value as u128);
    isize => |value| Self::from(value as i128);
    i128 => |value| i64::try_from(value).map_or_else(|_| Self::BigInt(value.into()), Self::Int);
    u128 => |value| i64::try_from(value).map_or_else(|_| Self::BigInt(value.into()), Self::Int);
    BigInt => |value| i64::try_from(&value).map_or_else(|_| Self::BigInt(value), Self::Int);
    f32 => |value| Self::Float(value.into());
    f64 => |value| Self::Float(value);
    char => |value| Self::Str(value.into());
    &str => |value| Self::Str(value.into());
    String => |value| Self::Str(value);
    &[u8] => |value| Self::Bytes(value.into());
    Vec<u8> => |value| Self::Bytes(value);
    Bytes => |value| Self::Bytes(value.into());
    Vec<Object> => |value| Self::List(value);
    Global => |value| Self::Global(value);
    Instance => |value| Self::Instance(Box::new(value));
}

impl<T: Into<Object>> From<Option<T>> for Object {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}

macro_rules! from_tuple {
    ($($item:ident)*) => {
        impl<$($item: Into<Object>),*> From<($($item,)*)> for Object {
            #[allow(non_snake_case, reason = "each item is called as its type")]
            fn from(($($item,)*): ($($item,)*)) -> Self {
                Self::Tuple(vec![$($item.into()),*])
            }
        }
    };
}

from_tuple! { A }
from_tuple! { A B }
from_tuple! { A B C }
from_tuple! { A B C D }
from_tuple! { A B C D E }
from_tuple! { A B C D E F }
from_tuple! { A B C D E F G }
from_tuple! { A B C D E F G H }

/// A list.
impl FromIterator<Object> for Object {
    fn from_iter<I: IntoIterator<Item = Self>>(items: I) -> Self {
        Self::List(items.into_iter().collect())
    }
}

/// A dict.
impl FromIterator<(Object, Object)> for Object {
    fn from_iter<I: IntoIterator<Item = (Self, Self)>>(entries: I) -> Self {
        Self::Dict(entries.into_iter().collect())
    }
}

macro_rules! try_from {
    ($($type:ty, $expected:literal: $pattern:pat => $value:expr;)*) => {$(
        impl TryFrom<Object> for $type {
            type Error = CodecError;

            fn try_from(object: Object) -> Result<Self, CodecError> {
                match object {
                    $pattern => Ok($value),
                    other => Err(unexpected($expected, &other)),
                }
            }
        }
    )*};
}

fn unexpected(expected: &str, found: &Object) -> CodecError {
    CodecError::new(&format!("{expected} was expected and {} found", found.kind()))
}

try_from! {
    (), "None": Object::None => ();
    bool, "a bool": Object::Bool(value) => value;
    f64, "a float": Object::Float(value) => value;
    String, "a str": Object::Str(value) => value;
    Vec<u8>, "bytes": Object::Bytes(value) | Object::ByteArray(value) => value;
    Vec<Object>, "a list or tuple": Object::List(value) | Object::Tuple(value) => value;
    Global, "a function or class": Object::Global(value) => value;
    Instance, "an instance": Object::Instance(value) => *value;
}

macro_rules! try_from_int {
    ($($type:ident)*) => {$(
        impl TryFrom<Object> for $type {
            type Error = CodecError;

            fn try_from(object: Object) -> Result<Self, CodecError> {
                let value = match &object {
                    Object::Int(value) => $type::try_from(*value).ok(),
                    Object::BigInt(value) => $type::try_from(value).ok(),
                    other => return Err(unexpected("an int", other)),
                };
                value.ok_or_else(|| CodecError::new(concat!("the int does not fit ", stringify!($type))))
            }
        }
    )*};
}

try_from_int! { i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize }

impl TryFrom<Object> for BigInt {
    type Error = CodecError;

    fn try_from(object: Object) -> Result<Self, CodecError> {
        match object {
            Object::Int(value) => Ok(i128::from(value).into()),
            Object::BigInt(value) => Ok(value),
            other => Err(unexpected("an int", &other)),
        }
    }
}
