//! Lists of plain values in shared memory.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::layout::{Damaged, Layout, ShareableValue, format_text, image, read};
use super::{SharedMemory, SharedMemoryBuilder, name};
use crate::error::{Error, Result};
use crate::sys::{BorrowedFd, memory};

/// A list of plain values that any process can open by its name, of a length that is fixed.
///
/// ```
/// use tokio_multiprocess::{ShareableList, ShareableValue};
///
/// # fn main() -> tokio_multiprocess::Result<()> {
/// let items = ["howdy".into(), b"HoWdY".into(), (-273.154).into(), 100.into(), ().into(), true.into()];
/// let list = ShareableList::new(items)?;
/// let same = ShareableList::open(list.name())?;
/// same.set(0, "hi")?;
/// assert_eq!(list.get(0)?, ShareableValue::from("hi"));
/// assert_eq!(list.get(-1)?, ShareableValue::Bool(true));
/// // A slot is as long as when the list was made: here 8 bytes.
/// assert!(list.set(0, "good morning").is_err());
/// list.unlink()
/// # }
/// ```
///
/// # Slots
///
/// A value of any kind can take the place of any other. What has no fixed size, texts and bytes, has to fit
/// the slot that its first holder was given: the next multiple of 8 that is larger than the first text's or
/// bytes' length in bytes of UTF-8, and 8 bytes for anything else. So 8 bytes always fit. The longest text is
/// of 9,999,991 bytes; bytes with zeros at their end have at most 999,999.
///
/// # With others
///
/// Clones and what is received are handles of the same list: sending one sends its name. Its end is that of
/// the memory that it lies in: see [`SharedMemory`]. A lock has to be held, or a message awaited, by who
/// reads what another process is just changing: else it may find a value of which a part is another's, or an
/// error.
///
/// Whoever can open the list can write anything there. All that is read is checked: it gives an error of
/// the kind [`InvalidData`](io::ErrorKind::InvalidData), or a value that nobody has meant, and never a panic.
///
/// # CPython
///
/// The list is laid out as that of CPython 3.9 and later, each side opens the other's. What differs: Python
/// drops zeros from the end of bytes that it writes; it does read those that are kept here.
#[derive(Clone)]
pub struct ShareableList {
    memory: SharedMemory,
    layout: Arc<Layout>,
}

impl ShareableList {
    /// Creates a list of these items, under a name that nobody has.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an item that cannot be in a list: see [Slots](Self#slots). Else as
    /// [`SharedMemory::create`].
    pub fn new(items: impl IntoIterator<Item = ShareableValue>) -> Result<Self> {
        SharedMemory::builder().list(items)
    }

    /// Creates a list of these items under this name.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`SharedMemory::create_named`].
    pub fn create_named(name: &str, items: impl IntoIterator<Item = ShareableValue>) -> Result<Self> {
        SharedMemory::builder().name(name).list(items)
    }

    /// Opens the list that has this name.
    ///
    /// # Errors
    /// As [`SharedMemory::open`]; `InvalidData` if what has the name is no list.
    pub fn open(name: &str) -> Result<Self> {
        let memory = SharedMemory::open(name)?;
        let damaged = |damage| damaged(memory.name(), damage);
        let size = memory.size();
        if size < Layout::COUNT {
            return Err(damaged(Damaged("it is too short")).into());
        }
        let mut count = [0; Layout::COUNT];
        memory.read(0, &mut count)?;
        let head = memory.read_to_vec(0, Layout::head_len(count, size).map_err(damaged)?)?;
        let layout = Layout::parse(&head, size).map_err(damaged)?;
        Ok(Self { memory, layout: Arc::new(layout) })
    }

    /// Its name: what another process opens it by.
    pub fn name(&self) -> &str {
        self.memory.name()
    }

    /// The memory that it lies in.
    pub fn shm(&self) -> &SharedMemory {
        &self.memory
    }

    /// Takes its name away: see [`SharedMemory::unlink`].
    pub fn unlink(&self) -> Result<()> {
        self.memory.unlink()
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item at `index`; a negative one counts from the end, so that -1 is the last.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is none; `InvalidData` if what is there is no item; else as
    /// [`SharedMemory::read`].
    pub fn get(&self, index: isize) -> Result<ShareableValue> {
        self.at(self.position(index)?)
    }

    /// Puts a value in the place of the item at `index`; a negative one counts from the end.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such item, or when the value does not fit its
    /// [slot](Self#slots): nothing has changed then. Else as [`SharedMemory::write`].
    pub fn set(&self, index: isize, value: impl Into<ShareableValue>) -> Result<()> {
        let index = self.position(index)?;
        let written = self.layout.write(index, &value.into())?;
        self.memory.write(self.layout.slot(index).start, &written.bytes)?;
        self.memory.write(self.layout.format(index), &written.format)?;
        self.memory.write(self.layout.code(index), &[written.code])
    }

    /// All items, one after the other, each as it is when its turn comes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<ShareableValue>> + '_ {
        (0..self.len()).map(|index| self.at(index))
    }

    /// A copy of all items.
    ///
    /// # Errors
    /// The first of [`get`](Self::get).
    pub fn to_vec(&self) -> Result<Vec<ShareableValue>> {
        self.iter().collect()
    }

    /// Where the first item is that is equal to `value`.
    ///
    /// # Errors
    /// As those of [`get`](Self::get).
    pub fn index(&self, value: impl Into<ShareableValue>) -> Result<Option<usize>> {
        let value = value.into();
        for (index, item) in self.iter().enumerate() {
            if item? == value {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// How many items are equal to `value`.
    ///
    /// # Errors
    /// As those of [`get`](Self::get).
    pub fn count(&self, value: impl Into<ShareableValue>) -> Result<usize> {
        let value = value.into();
        self.iter().try_fold(0, |count, item| Ok(count + usize::from(item? == value)))
    }

    /// What lies in its slots, as a format of Python's `struct`: `8sq` for a short text and a number.
    ///
    /// # Errors
    /// As those of [`get`](Self::get).
    pub fn format(&self) -> Result<String> {
        (0..self.len()).try_fold(String::new(), |all, index| {
            let format = self.stored_format(index)?;
            Ok(all + format_text(&format).map_err(|damage| damaged(self.name(), damage))?)
        })
    }

    /// A list of the same items under a name that nobody has, with slots as they need them.
    ///
    /// # Errors
    /// As those of [`get`](Self::get) and [`new`](Self::new).
    pub fn copy(&self) -> Result<Self> {
        Self::new(self.to_vec()?)
    }

    /// A [`copy`](Self::copy) under this name.
    ///
    /// # Errors
    /// As those of [`get`](Self::get) and [`create_named`](Self::create_named).
    pub fn copy_named(&self, name: &str) -> Result<Self> {
        Self::create_named(name, self.to_vec()?)
    }

    fn position(&self, index: isize) -> Result<usize> {
        let len = self.len();
        let position =
            if index < 0 { len.checked_sub(index.unsigned_abs()) } else { Some(index.unsigned_abs()) };
        position
            .filter(|position| *position < len)
            .ok_or_else(|| Error::invalid(format!("a shareable list of {len} items has none at {index}")))
    }

    fn at(&self, index: usize) -> Result<ShareableValue> {
        let format = self.stored_format(index)?;
        let mut code = [0];
        self.memory.read(self.layout.code(index), &mut code)?;
        let slot = self.layout.slot(index);
        let bytes = self.memory.read_to_vec(slot.start, slot.len())?;
        read(&format, code[0], &bytes).map_err(|damage| damaged(self.name(), damage).into())
    }

    fn stored_format(&self, index: usize) -> Result<[u8; 8]> {
        let mut format = [0; 8];
        self.memory.read(self.layout.format(index), &mut format)?;
        Ok(format)
    }
}

fn damaged(name: &str, damage: Damaged) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("shared memory `{name}` is no shareable list: {damage}"),
    )
}

/// Also its items, as they are now.
impl fmt::Debug for ShareableList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_vec() {
            Ok(items) => write!(f, "ShareableList({items:?}, name={:?})", self.name()),
            Err(error) => write!(f, "ShareableList({error}, name={:?})", self.name()),
        }
    }
}

/// Sends its name.
impl Serialize for ShareableList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.memory.serialize(serializer)
    }
}

/// Opens the list that has the name.
impl<'de> Deserialize<'de> for ShareableList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::open(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl SharedMemoryBuilder {
    /// Creates a list of these items. It is all there before others can find it.
    ///
    /// # Errors
    /// As [`ShareableList::new`] and [`create`](Self::create).
    pub fn list(self, items: impl IntoIterator<Item = ShareableValue>) -> Result<ShareableList> {
        let items: Vec<_> = items.into_iter().collect();
        let (layout, bytes) = image(&items)?;
        let fill = |fd: BorrowedFd<'_>| memory::write_all_at(fd, 0, &bytes);
        let memory = self.create_with(bytes.len(), name::random, fill)?;
        Ok(ShareableList { memory, layout: Arc::new(layout) })
    }
}
