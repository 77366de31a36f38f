//! The memory of a primitive, and who shares it.
//!
//! | bytes | are |
//! |---|---|
//! | 0..8 | [`MAGIC`], with the version of this layout and the kind |
//! | 8..16 | the key: a random number, by which bells say what they ring for |
//! | 16..24 | the PID namespace of who made it: processes know each other by their numbers |
//! | 24..32 | what the primitive was made with |
//! | 64..8192 | as [`protocol`](super::protocol) says |
//! | 8192.. | what else belongs to it |

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::exchange::Exchange;
use super::protocol::{CELL, CELLS, CELLS_AT, Cell, Here, STATE, Words, World, bells, cells};
use crate::error::{Error, Result};
use crate::reduction::{Attachment, Descriptor};
use crate::sys::door::Ring;
use crate::sys::kept::Kept;
use crate::sys::memory::{self, Shared};
use crate::sys::per_process::process_token;
use crate::sys::{self, AsFd, Fd};

/// How many bytes each primitive has for itself.
pub(crate) const SIZE: usize = 8 << 10;
const _: () = assert!(CELLS_AT + CELLS * CELL <= SIZE);

/// "mp", the version of the layout; the lowest byte is the kind.
const MAGIC: u64 = u64::from_be_bytes(*b"tokiom\x01\0");

/// When somebody last looked who is dead, in milliseconds of the kernel's clock, and how long that is enough.
const LOOKED: usize = STATE + 56;
const LOOK_EVERY: u64 = 50;

const KEY: usize = 8;
const NAMESPACE: usize = 16;
const CONFIGURATION: usize = 24;

/// What tells one primitive from another.
pub(crate) struct Kind {
    /// Not zero, and no other kind's.
    pub(crate) code: u8,
    pub(crate) name: &'static str,
    /// How many of this process's sleepers could go on now. With `looks`, also whether somebody's death lets
    /// them.
    pub(crate) ready: fn(&Object, looks: bool) -> usize,
    /// What one of several leaves, others may have, wherever they sleep: not so where all go on at once, and
    /// each process was rung for.
    pub(crate) passes_on: bool,
    /// Takes all that belongs to the dead process of a cell out of it.
    pub(crate) reap: fn(&Object, Cell),
    /// Makes a cell this process's that somebody else had before, and that nobody here uses yet.
    pub(crate) claimed: fn(&Shared, Cell),
    /// Whether something in a cell still belongs to its process, such as what a guard holds that was
    /// forgotten: its cell is then kept until the process ends.
    pub(crate) holds: fn(&Shared, Cell) -> bool,
}

/// A primitive's memory. Clones are the same object, and so is what arrives in a message where there is one
/// already.
#[derive(Clone)]
pub(crate) struct Object(Arc<Inner>);

/// An object in this process: its key, and where it is, as a copy of this process may have one twice.
pub(crate) type Place = (u64, usize);

struct Inner {
    /// Not so if it is a part of what is kept itself.
    _kept: Option<Kept>,
    /// For messages, and for copies of this process.
    fd: Arc<Fd>,
    memory: Shared,
    kind: &'static Kind,
    key: u64,
    /// This process's cell: its token, and the cell's number and one in the lowest [`CELL_BITS`].
    cell: AtomicU64,
    /// From where on to look for the next one to ring for.
    next: AtomicUsize,
}

const CELL_BITS: u32 = 8;
const _: () = assert!(CELLS < 1 << CELL_BITS);

impl Object {
    /// A new one, and `extra` bytes of zeros after what it needs itself.
    ///
    /// # Errors
    /// When there are no descriptors or no memory left, and on platforms without processes.
    pub(crate) fn create(kind: &'static Kind, configuration: u64, extra: usize) -> Result<Self> {
        let len = SIZE.checked_add(extra).ok_or(io::ErrorKind::OutOfMemory).map_err(io::Error::from)?;
        let fd = memory::memfd("tokio-multiprocess-object", len)?;
        memory::seal_fixed_size(fd.as_fd())?;
        let memory = Shared::map(fd.as_fd())?;
        Self::lay(&memory, kind, configuration)?;
        // Nothing else can be the same.
        Ok(Exchange::get().known(Self::adopt(fd, memory, kind), |_| false))
    }

    /// Makes the beginning of a memory, of zeros so far, a new object.
    pub(crate) fn lay(memory: &Shared, kind: &'static Kind, configuration: u64) -> Result<()> {
        let key = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
        for (at, value) in [
            (0, MAGIC | u64::from(kind.code)),
            (KEY, key),
            (NAMESPACE, sys::identity::pid_namespace()),
            (CONFIGURATION, configuration),
        ] {
            memory.atomic_u64(at).store(value, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The object that begins where `memory` does, a part of something that lies in `fd`: who has that sees
    /// to it that it has each part once, and that copies of this process keep the descriptor.
    pub(crate) fn part(fd: &Arc<Fd>, memory: Shared, kind: &'static Kind) -> Result<Self> {
        Self::check(&memory, kind)?;
        Ok(Self::of(None, fd.clone(), memory, kind))
    }

    /// What has arrived in a message, from whomever.
    fn open(fd: Fd, kind: &'static Kind) -> Result<Self> {
        let memory = Shared::map(fd.as_fd())?;
        Self::check(&memory, kind)?;
        let identity = sys::fd::identity(fd.as_fd())?;
        let arrived = Self::adopt(fd, memory, kind);
        Ok(Exchange::get().known(arrived, |there| {
            sys::fd::identity(there.0.fd.as_fd()).is_ok_and(|there| there == identity)
        }))
    }

    fn check(memory: &Shared, kind: &'static Kind) -> Result<()> {
        if memory.len() < SIZE || memory.atomic_u64(0).load(Ordering::Relaxed) != MAGIC | u64::from(kind.code)
        {
            return Err(Error::Malformed("it is another object than expected"));
        }
        if memory.atomic_u64(NAMESPACE).load(Ordering::Relaxed) != sys::identity::pid_namespace() {
            return Err(Error::invalid(format!(
                "a {} works within one PID namespace: processes of another are not known by their numbers",
                kind.name
            )));
        }
        Ok(())
    }

    fn adopt(fd: Fd, memory: Shared, kind: &'static Kind) -> Self {
        let fd = Arc::new(fd);
        Self::of(Some(Kept::new(fd.as_fd())), fd, memory, kind)
    }

    fn of(kept: Option<Kept>, fd: Arc<Fd>, memory: Shared, kind: &'static Kind) -> Self {
        let key = Self::key_at(&memory);
        let (cell, next) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self(Arc::new(Inner { _kept: kept, fd, memory, kind, key, cell, next }))
    }

    pub(crate) fn words(&self) -> &Shared {
        &self.0.memory
    }

    /// What goes beside a message for it.
    pub(crate) fn attachment(&self) -> Attachment {
        Attachment(self.0.fd.clone())
    }

    pub(crate) fn kind(&self) -> &'static Kind {
        self.0.kind
    }

    /// What it was made with.
    pub(crate) fn configuration(&self) -> u64 {
        self.words().atomic_u64(CONFIGURATION).load(Ordering::Relaxed)
    }

    pub(crate) fn key(&self) -> u64 {
        self.0.key
    }

    /// The key of the object that begins where `memory` does.
    pub(crate) fn key_at(memory: &Shared) -> u64 {
        memory.atomic_u64(KEY).load(Ordering::Relaxed)
    }

    /// By what this process keeps what it knows of it.
    pub(crate) fn place(&self) -> Place {
        (self.key(), Arc::as_ptr(&self.0).addr())
    }

    /// This process's cell, if it has one.
    pub(crate) fn own_cell(&self) -> Option<Cell> {
        self.0.own_cell()
    }

    /// This process's cell.
    ///
    /// # Errors
    /// When all are taken, by living processes.
    pub(crate) fn cell(&self) -> Result<Cell> {
        if let Some(cell) = self.own_cell() {
            return Ok(cell);
        }
        let claimed = cells::claim(self.words(), &Here, |cell| (self.kind().reap)(self, cell));
        let Some(cell) = claimed else {
            return Err(Error::invalid(format!(
                "a {} can be used by {CELLS} processes at a time",
                self.kind().name
            )));
        };
        (self.kind().claimed)(self.words(), cell);
        let before = self.0.cell.load(Ordering::Acquire);
        let own = process_token() << CELL_BITS | (cell.0 as u64 + 1);
        let taken = match self.own_cell() {
            None => self.0.cell.compare_exchange(before, own, Ordering::AcqRel, Ordering::Acquire),
            Some(_) => Err(before),
        };
        if taken.is_err() {
            // Another thread was faster.
            cells::clear(self.words(), cell, Here.me());
        }
        self.cell()
    }

    /// Whether it is this process's turn to look who is dead, which costs some 10 µs for each who uses the
    /// object: not if another has looked just now.
    pub(crate) fn takes_turn(&self) -> bool {
        let now = sys::fd::monotonic_ns() / 1_000_000;
        let last = self.words().atomic_u64(LOOKED).load(Ordering::Relaxed);
        now.abs_diff(last) >= LOOK_EVERY && self.words().compare_exchange(LOOKED, last, now).is_ok()
    }

    /// Rings for one who sleeps, wherever that is.
    pub(crate) fn call_one(&self) {
        while let Some(cell) = bells::call(self.words(), self.0.next.load(Ordering::Relaxed)) {
            self.0.next.store(cell.0 + 1, Ordering::Relaxed);
            if self.ring(cell) {
                return;
            }
        }
    }

    /// Rings for all who sleep.
    pub(crate) fn call_all(&self) {
        // At most once for each: who looks again, and has to sleep on, is there again.
        for _ in 0..CELLS {
            let Some(cell) = bells::call(self.words(), self.0.next.load(Ordering::Relaxed)) else { return };
            self.0.next.store(cell.0 + 1, Ordering::Relaxed);
            self.ring(cell);
        }
    }

    /// Rings for those who sleep in one cell's process.
    pub(crate) fn call_at(&self, cell: Cell) {
        if bells::call_at(self.words(), cell) {
            self.ring(cell);
        }
    }

    /// Has all who sleep in this process look again.
    pub(crate) fn wake_here(&self) {
        Exchange::get().wake_all(self);
    }

    /// Whether there is somebody there.
    fn ring(&self, cell: Cell) -> bool {
        if self.own_cell() == Some(cell) {
            Exchange::get().attend(self, false);
            return true;
        }
        let [a, b] = [0, 8].map(|i| self.words().atomic_u64(cell.door() + i).load(Ordering::Relaxed));
        // If bells wait there already, it will look here as well.
        Exchange::get().ring([a, b], self.key()) != Ring::Gone
    }

    /// Says where the bells for a cell of this process's are to be rung.
    pub(crate) fn put_door(&self, cell: Cell, name: [u64; 2]) {
        for (i, part) in name.into_iter().enumerate() {
            let word = self.words().atomic_u64(cell.door() + 8 * i);
            if word.load(Ordering::Relaxed) != part {
                word.store(part, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn downgrade(&self) -> WeakObject {
        WeakObject(Arc::downgrade(&self.0))
    }
}

/// An [`Object`] that may be gone.
pub(crate) struct WeakObject(std::sync::Weak<Inner>);

impl WeakObject {
    pub(crate) fn upgrade(&self) -> Option<Object> {
        self.0.upgrade().map(Object)
    }

    pub(crate) fn lives(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Inner {
    fn own_cell(&self) -> Option<Cell> {
        let cell = self.cell.load(Ordering::Acquire);
        let number = cell & ((1 << CELL_BITS) - 1);
        // A copy of the process that took it has none.
        let own = number != 0 && cell >> CELL_BITS == process_token();
        own.then(|| Cell(number as usize - 1))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(cell) = self.own_cell() {
            bells::withdraw(&self.memory, cell);
            if !(self.kind.holds)(&self.memory, cell) {
                cells::clear(&self.memory, cell, Here.me());
            }
        }
        Exchange::get().forget(self.key);
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().name)
    }
}

/// Sending it sends its descriptor.
impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Descriptor(self.attachment()).serialize(serializer)
    }
}

impl Object {
    /// One of this kind, from a message.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        kind: &'static Kind,
        deserializer: D,
    ) -> Result<Self, D::Error> {
        let fd = Descriptor::deserialize(deserializer)?.into_fd().map_err(de::Error::custom)?;
        Self::open(fd, kind).map_err(|error| de::Error::custom(format_args!("no {}: {error}", kind.name)))
    }
}
