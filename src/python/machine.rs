//! The pickle machine: instructions to a [`Graph`].
//!
//! It is a stack of values, marks in that stack, and a memo of values to refer to again. It builds
//! data and no more: what the instructions would have Python import and call is noted by name. Each
//! instruction does work in proportion to its own length and to what it takes from the stack, and
//! each length is checked against what is there before anything is made for it.

use std::borrow::Cow;

use super::bigint;
use super::graph::{Graph, Instance, Node, Value};
use super::opcodes::*;
use super::text;
use crate::reduction::CodecError;

type Result<T> = std::result::Result<T, CodecError>;

/// Runs a pickle that occupies all of `message`, and may grow by `allowance` through sharing.
pub(super) fn run(message: &[u8], allowance: usize) -> Result<Graph<'_>> {
    let mut machine = Machine {
        input: message,
        len: message.len(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        memoized: 0,
        nodes: Vec::new(),
    };
    let root = loop {
        let [opcode] = *machine.take()?;
        if opcode == STOP {
            break machine.pop()?;
        }
        machine.step(opcode)?;
    };
    if !machine.input.is_empty() {
        return Err(CodecError::new(&format!("{} bytes follow the value", machine.input.len())));
    }
    Ok(Graph::new(machine.nodes, root, message.len(), allowance))
}

struct Machine<'de> {
    input: &'de [u8],
    /// Of the whole message.
    len: usize,
    stack: Vec<Value<'de>>,
    /// Where in the stack each mark lies: below the value of that index.
    marks: Vec<usize>,
    memo: Vec<Option<Value<'de>>>,
    /// How many places of the memo are taken: the next number of [`MEMOIZE`].
    memoized: usize,
    nodes: Vec<Node<'de>>,
}

#[cold]
fn truncated() -> CodecError {
    CodecError::new("the pickle ends inside the value")
}

#[cold]
fn refused(what: &str) -> CodecError {
    CodecError::new(&format!("the pickle {what}"))
}

/// A length as it stands in the input: one that does not fit here is more than there can be.
fn length(len: impl TryInto<usize>) -> Result<usize> {
    len.try_into().map_err(|_| truncated())
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| text::surrogate())
}

impl<'de> Machine<'de> {
    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            PROTO => {
                let [version] = *self.take()?;
                if version > NEWEST {
                    return Err(refused(&format!("is of protocol {version}, newer than {NEWEST}")));
                }
            }
            // A hint for readers of files, which they may ignore.
            FRAME => {
                if length(u64::from_le_bytes(*self.take()?))? > self.input.len() {
                    return Err(truncated());
                }
            }

            MARK => self.marks.push(self.stack.len()),
            POP => self.discard()?,
            POP_MARK => {
                let items = self.pop_mark()?;
                items.into_iter().try_for_each(|item| self.forget(item))?;
            }
            DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }

            NONE => self.stack.push(Value::None),
            NEWTRUE => self.stack.push(Value::Bool(true)),
            NEWFALSE => self.stack.push(Value::Bool(false)),
            INT => match self.line()? {
                b"00" => self.stack.push(Value::Bool(false)),
                b"01" => self.stack.push(Value::Bool(true)),
                line => self.integer(text::integer(line)?.into()),
            },
            LONG => {
                let line = self.line()?;
                self.integer(text::integer(line.strip_suffix(b"L").unwrap_or(line))?.into());
            }
            BININT => {
                let value = i32::from_le_bytes(*self.take()?);
                self.small(value);
            }
            BININT1 => {
                let value = u8::from_le_bytes(*self.take()?);
                self.small(value);
            }
            BININT2 => {
                let value = u16::from_le_bytes(*self.take()?);
                self.small(value);
            }
            LONG1 => {
                let [len] = *self.take()?;
                let bytes = self.take_slice(len.into())?;
                self.integer(bytes.into());
            }
            LONG4 => {
                let len = length(i32::from_le_bytes(*self.take()?))?;
                let bytes = self.take_slice(len)?;
                self.integer(bytes.into());
            }
            FLOAT => {
                let value = text::float(self.line()?)?;
                self.stack.push(Value::Float(value));
            }
            BINFLOAT => {
                let value = f64::from_be_bytes(*self.take()?);
                self.stack.push(Value::Float(value));
            }

            UNICODE => {
                let text = text::unicode(self.line()?)?;
                self.push(Node::Str(text));
            }
            SHORT_BINUNICODE | BINUNICODE | BINUNICODE8 => {
                let bytes = self.counted(opcode)?;
                self.stack.push(Value::Str(utf8(bytes)?));
            }
            SHORT_BINBYTES | BINBYTES | BINBYTES8 => {
                let bytes = self.counted(opcode)?;
                self.stack.push(Value::Bytes(bytes));
            }
            BYTEARRAY8 => {
                let bytes = self.counted(opcode)?;
                self.push(Node::ByteArray(bytes));
            }
            // Python 2's `str` is text or bytes: text if it can be.
            STRING => {
                let bytes = text::string(self.line()?)?;
                self.push(if bytes.is_ascii() {
                    Node::Str(bytes.into_iter().map(char::from).collect())
                } else {
                    Node::Bytes(bytes)
                });
            }
            SHORT_BINSTRING | BINSTRING => {
                let bytes = self.counted(opcode)?;
                self.stack.push(if bytes.is_ascii() {
                    Value::Str(utf8(bytes)?)
                } else {
                    Value::Bytes(bytes)
                });
            }

            EMPTY_LIST => self.push(Node::List(Vec::new())),
            EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            EMPTY_SET => self.push(Node::Set(Vec::new())),
            LIST => {
                let items = self.pop_mark()?;
                self.push(Node::List(items));
            }
            TUPLE => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            TUPLE1 | TUPLE2 | TUPLE3 => {
                let items = self.pop_many(usize::from(opcode - TUPLE1) + 1)?;
                self.push(Node::Tuple(items));
            }
            FROZENSET => {
                let items = self.pop_mark()?;
                self.push(Node::FrozenSet(items));
            }
            DICT => {
                let entries = pairs(self.pop_mark()?)?;
                self.push(Node::Dict(entries));
            }
            APPEND => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            APPENDS => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            SETITEM => {
                let entry = self.pop_many(2)?;
                self.insert(pairs(entry)?)?;
            }
            SETITEMS => {
                let entries = pairs(self.pop_mark()?)?;
                self.insert(entries)?;
            }
            ADDITEMS => {
                let items = self.pop_mark()?;
                let at = self.top_at()?;
                match &mut self.nodes[at] {
                    Node::Set(set) => set.extend(items),
                    _ => return Err(refused("adds items to what is no set")),
                }
            }

            PUT | BINPUT | LONG_BINPUT => {
                let index = self.index(opcode)?;
                self.memoize(index)?;
            }
            MEMOIZE => self.memoize(self.memoized)?,
            GET | BINGET | LONG_BINGET => {
                let index = self.index(opcode)?;
                let value = self.memo.get(index).copied().flatten();
                self.stack.push(value.ok_or_else(|| refused("refers to what it has not shown"))?);
            }

            GLOBAL => {
                let (module, name) = (utf8(self.line()?)?, utf8(self.line()?)?);
                self.global(module, name);
            }
            STACK_GLOBAL => {
                let (Value::Str(name), Value::Str(module)) = (self.pop()?, self.pop()?) else {
                    return Err(refused("names a class by something that is no str"));
                };
                self.global(module, name);
            }
            REDUCE => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.instance(callable, args, Value::None, false)?;
            }
            NEWOBJ => {
                let (args, class) = (self.pop()?, self.pop()?);
                self.instance(class, args, Value::None, true)?;
            }
            NEWOBJ_EX => {
                let (kwargs, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                if !matches!(kwargs, Value::Node(at) if matches!(self.nodes[at], Node::Dict(_))) {
                    return Err(refused("calls a class with keywords that are no dict"));
                }
                self.instance(class, args, kwargs, true)?;
            }
            INST => {
                let (module, name) = (utf8(self.line()?)?, utf8(self.line()?)?);
                let args = self.pop_mark()?;
                self.global(module, name);
                let class = self.pop()?;
                self.call(class, args)?;
            }
            OBJ => {
                let mut args = self.pop_mark()?.into_iter();
                let class = args.next().ok_or_else(underflow)?;
                self.call(class, args.collect())?;
            }
            BUILD => {
                let state = self.pop()?;
                let at = self.top_at()?;
                match &mut self.nodes[at] {
                    Node::Instance(instance) if matches!(instance.state, Value::None) => {
                        instance.state = state;
                    }
                    _ => return Err(refused("gives a state to what cannot have one")),
                }
            }

            PERSID | BINPERSID => return Err(refused("refers to an object of its sender's by an id")),
            EXT1 | EXT2 | EXT4 => return Err(refused("refers to a class by a number")),
            NEXT_BUFFER | READONLY_BUFFER => {
                return Err(refused("refers to a buffer that is not part of it"));
            }
            _ => return Err(refused(&format!("holds the unknown instruction {opcode:#04x}"))),
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<&'de [u8; N]> {
        let (head, rest) = self.input.split_first_chunk().ok_or_else(truncated)?;
        self.input = rest;
        Ok(head)
    }

    fn take_slice(&mut self, len: usize) -> Result<&'de [u8]> {
        let (head, rest) = self.input.split_at_checked(len).ok_or_else(truncated)?;
        self.input = rest;
        Ok(head)
    }

    /// What is left of the line, without its end.
    fn line(&mut self) -> Result<&'de [u8]> {
        let end = self.input.iter().position(|&byte| byte == b'\n').ok_or_else(truncated)?;
        let line = self.take_slice(end)?;
        self.take_slice(1)?;
        Ok(line)
    }

    /// The bytes after a length, of the width that goes with the instruction.
    fn counted(&mut self, opcode: u8) -> Result<&'de [u8]> {
        let len = match opcode {
            SHORT_BINUNICODE | SHORT_BINBYTES | SHORT_BINSTRING => length(u8::from_le_bytes(*self.take()?)),
            BINSTRING => length(i32::from_le_bytes(*self.take()?)),
            BINUNICODE | BINBYTES => length(u32::from_le_bytes(*self.take()?)),
            _ => length(u64::from_le_bytes(*self.take()?)),
        }?;
        self.take_slice(len)
    }

    /// A number in the memo, of the width that goes with the instruction.
    fn index(&mut self, opcode: u8) -> Result<usize> {
        match opcode {
            GET | PUT => text::index(self.line()?),
            BINGET | BINPUT => length(u8::from_le_bytes(*self.take()?)),
            _ => length(u32::from_le_bytes(*self.take()?)),
        }
    }

    fn memoize(&mut self, index: usize) -> Result<()> {
        // Writers number what they memoize, so that no number exceeds the length of what they write.
        if index >= self.len {
            return Err(refused("has a memo larger than itself"));
        }
        if index >= self.memo.len() {
            self.memo.resize(index + 1, None);
        }
        let top = self.top()?;
        if self.memo[index].replace(top).is_none() {
            self.memoized += 1;
        }
        Ok(())
    }

    fn small(&mut self, value: impl Into<i64>) {
        self.stack.push(Value::Int(value.into()));
    }

    /// Two's complement, little-endian.
    fn integer(&mut self, bytes: Cow<'de, [u8]>) {
        let len = bigint::minimal(&bytes);
        if let Some(value) = bigint::to_i64(&bytes[..len]) {
            self.stack.push(Value::Int(value));
            return;
        }
        self.push(Node::BigInt(match bytes {
            Cow::Borrowed(bytes) => bytes[..len].into(),
            Cow::Owned(mut bytes) => {
                bytes.truncate(len);
                bytes.into()
            }
        }));
    }

    fn push(&mut self, node: Node<'de>) {
        self.stack.push(Value::Node(self.nodes.len()));
        self.nodes.push(node);
    }

    /// The highest value above the last mark.
    fn top(&self) -> Result<Value<'de>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(underflow)
    }

    /// Where the node of the highest value lies.
    fn top_at(&self) -> Result<usize> {
        match self.top()? {
            Value::Node(at) => Ok(at),
            _ => Err(refused("changes a value that cannot be changed")),
        }
    }

    fn pop(&mut self) -> Result<Value<'de>> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value<'de>>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(count).filter(|from| *from >= floor);
        Ok(self.stack.split_off(from.ok_or_else(underflow)?))
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'de>>> {
        let mark = self.marks.pop().ok_or_else(underflow)?;
        Ok(self.stack.split_off(mark))
    }

    /// Drops the highest value, or the mark if there is none above it.
    fn discard(&mut self) -> Result<()> {
        match self.pop() {
            Ok(value) => self.forget(value),
            Err(error) => self.marks.pop().map(drop).ok_or(error),
        }
    }

    /// What is dropped has had its effect in Python: without that, it would be a silent loss.
    fn forget(&self, value: Value<'de>) -> Result<()> {
        match value {
            Value::Node(at) if matches!(self.nodes[at], Node::Instance(_)) => {
                Err(refused("calls a function for its effect"))
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, items: Vec<Value<'de>>) -> Result<()> {
        match self.target(|instance| &mut instance.items, Node::List(Vec::new()))? {
            Node::List(list) => list.extend(items),
            _ => return Err(refused("appends to what is no list")),
        }
        Ok(())
    }

    fn insert(&mut self, entries: Vec<(Value<'de>, Value<'de>)>) -> Result<()> {
        match self.target(|instance| &mut instance.entries, Node::Dict(Vec::new()))? {
            Node::Dict(dict) => dict.extend(entries),
            _ => return Err(refused("sets items in what is no dict")),
        }
        Ok(())
    }

    /// The container on top of the stack; for an instance there, the part that stands for it, which is
    /// `empty` at first.
    fn target(
        &mut self,
        part: for<'i> fn(&'i mut Instance<'de>) -> &'i mut Value<'de>,
        empty: Node<'de>,
    ) -> Result<&mut Node<'de>> {
        let top = self.top_at()?;
        let fresh = self.nodes.len();
        let at = match &mut self.nodes[top] {
            Node::Instance(instance) => match part(instance) {
                Value::Node(at) => *at,
                part => {
                    *part = Value::Node(fresh);
                    fresh
                }
            },
            _ => top,
        };
        if at == fresh {
            self.nodes.push(empty);
        }
        Ok(&mut self.nodes[at])
    }

    fn global(&mut self, module: &'de str, name: &'de str) {
        // Protocols 0 to 2 are written under the names of Python 2.
        let module = match module {
            "__builtin__" | "exceptions" => "builtins",
            "copy_reg" => "copyreg",
            _ => module,
        };
        self.push(Node::Global(module, name));
    }

    /// What protocols 0 and 1 write for a class's instance is a call if there are arguments.
    fn call(&mut self, class: Value<'de>, args: Vec<Value<'de>>) -> Result<()> {
        let new = args.is_empty();
        self.push(Node::Tuple(args));
        let args = self.pop()?;
        self.instance(class, args, Value::None, new)
    }

    fn instance(
        &mut self,
        callable: Value<'de>,
        args: Value<'de>,
        kwargs: Value<'de>,
        new: bool,
    ) -> Result<()> {
        let Some(items) = self.tuple(args) else {
            return Err(refused("calls with arguments that are no tuple"));
        };
        // How protocols 0 and 1 make an instance of an ordinary class.
        let class = match (items, self.named(callable)) {
            (&[class, base, Value::None], Some(("copyreg", "_reconstructor"))) if !new => {
                (self.named(base) == Some(("builtins", "object"))).then_some(class)
            }
            _ => None,
        };
        let (callable, args, new) = match class {
            Some(class) => {
                self.push(Node::Tuple(Vec::new()));
                (class, self.pop()?, true)
            }
            None => (callable, args, new),
        };
        self.push(Node::Instance(Box::new(Instance {
            callable,
            args,
            new,
            kwargs,
            items: Value::None,
            entries: Value::None,
            state: Value::None,
        })));
        Ok(())
    }

    fn tuple(&self, value: Value<'de>) -> Option<&[Value<'de>]> {
        match value {
            Value::Node(at) => match &self.nodes[at] {
                Node::Tuple(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    fn named(&self, value: Value<'de>) -> Option<(&str, &str)> {
        match value {
            Value::Node(at) => match self.nodes[at] {
                Node::Global(module, name) => Some((module, name)),
                _ => None,
            },
            _ => None,
        }
    }
}

#[cold]
fn underflow() -> CodecError {
    refused("takes more from its stack than is there")
}

fn pairs<'de>(items: Vec<Value<'de>>) -> Result<Vec<(Value<'de>, Value<'de>)>> {
    let (pairs, rest) = items.as_chunks();
    if !rest.is_empty() {
        return Err(refused("has a key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}
