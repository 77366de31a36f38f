//! Blocks of shared memory.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::name;
use crate::error::{Error, Result};
use crate::resource_tracker::{self, Object};
use crate::sys::kept::Kept;
use crate::sys::{self, AsFd, BorrowedFd, Fd, memory, shm};

/// How many names are tried that turn out to be taken, before something must be wrong with them.
const ATTEMPTS: usize = 1000;

/// A block of bytes that any process can open by its name.
///
/// Clones are handles of the same open object. Sending one sends its name alone, and whoever receives it
/// opens that: an error if nothing has the name any more.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// fn shout(memory: mp::SharedMemory) -> mp::Result<()> {
///     let words = memory.read_to_vec(0, 5)?;
///     memory.write(0, &words.to_ascii_uppercase())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> mp::Result<()> {
/// let memory = mp::SharedMemory::create(512)?;
/// memory.write(0, b"hello")?;
/// let child = mp::Process::builder(|m| shout(m).unwrap(), (memory.clone(),)).start().await?;
/// child.join().await?;
/// assert_eq!(memory.read_to_vec(0, 5)?, b"HELLO");
/// memory.unlink()
/// # }
/// ```
///
/// # Its end
///
/// Dropping the last handle of a process, or [`close`](Self::close), gives up this process's hold on the
/// memory and leaves its name: others can go on opening it. [`unlink`](Self::unlink) takes the name away,
/// and the memory is free when the last process has closed it. One process should do that, once. What
/// nobody has unlinked when all processes of this family are gone the
/// [resource tracker](crate::resource_tracker) unlinks, unless it was
/// [created without](SharedMemoryBuilder::track). A family begins with the process that first creates shared
/// memory: what a child creates goes with that child and its own children, if its parent had not created any
/// before it started the child, or called [`ensure_running`](crate::resource_tracker::ensure_running).
///
/// # Reading and writing
///
/// [`read`](Self::read) and [`write`](Self::write) copy, with a system call each, and check that the
/// memory is still there: a stranger may shrink it. Nothing orders them: who reads what another is just
/// writing may get old and new bytes mixed, so guard it with a lock, or tell by a message when it is
/// there. [`map`](Self::map) is for those who need the bytes themselves.
///
/// They block no longer than the copy takes; so does creation, which has the kernel clear all of it: half a
/// second for 1 GiB.
///
/// # After a fork
///
/// A child of the start method [`Fork`](crate::StartMethod::Fork) has what its parent has open, so statics
/// work there. Memory that others have unlinked is free when this child has ended, too.
#[derive(Clone)]
pub struct SharedMemory(Arc<Open>);

struct Open {
    object: Object,
    size: usize,
    /// Statics work in a forked child. Dropped before what it keeps.
    _kept: Kept,
    fd: Fd,
}

impl SharedMemory {
    /// Creates `size` bytes, all zero, under a name that nobody has: `psm_` and eight digits.
    ///
    /// # Errors
    /// See [`SharedMemoryBuilder::create`].
    #[doc(alias = "create_shared_memory")]
    pub fn create(size: usize) -> Result<Self> {
        Self::builder().create(size)
    }

    /// Creates `size` bytes, all zero, under this name.
    ///
    /// # Errors
    /// [`is_already_exists`](Error::is_already_exists) if something has that name; else see
    /// [`SharedMemoryBuilder::create`].
    pub fn create_named(name: &str, size: usize) -> Result<Self> {
        Self::builder().name(name).create(size)
    }

    /// Opens what has this name, whoever created it. Nothing is registered with the resource tracker: it
    /// stays when this process and its family end.
    ///
    /// # Errors
    /// [`is_not_found`](Error::is_not_found) if nothing has that name; when it cannot be one; when what
    /// has it is no shared memory, or empty, as another program's is until it was given its size.
    pub fn open(name: &str) -> Result<Self> {
        let name = name::checked(name)?;
        let fd = shm::open_named(name).map_err(|error| explain(error, name))?;
        let size = memory::len(fd.as_fd())?;
        if size == 0 {
            return Err(explain(io::Error::new(io::ErrorKind::InvalidData, "it is empty"), name).into());
        }
        let object = Object { name: name.to_owned(), identity: sys::fd::identity(fd.as_fd())? };
        Ok(Self::of(object, size, fd))
    }

    /// Opens what has this name, with the size that it has; if nothing has, creates it with `size` bytes.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`create_named`](Self::create_named), but for those two.
    pub fn open_or_create(name: &str, size: usize) -> Result<Self> {
        Self::builder().name(name).open_or_create(size)
    }

    /// One in the making.
    pub fn builder() -> SharedMemoryBuilder {
        SharedMemoryBuilder { name: None, track: true }
    }

    fn of(object: Object, size: usize, fd: Fd) -> Self {
        Self(Arc::new(Open { object, size, _kept: Kept::new(fd.as_fd()), fd }))
    }

    /// Its name, without the slash that POSIX puts before it: what another process opens it by.
    pub fn name(&self) -> &str {
        &self.0.object.name
    }

    /// How many bytes it had when it was created or opened here.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for bytes beyond [`size`](Self::size). If somebody has shrunk the memory
    /// since, so that they are gone, an I/O error of the kind `UnexpectedEof`; `into` is then filled in
    /// part.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len())?;
        shm::read_exact_at(self.fd(), offset, into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.shrunk().into(),
            _ => error.into(),
        })
    }

    /// A copy of `len` bytes from `offset` on.
    ///
    /// # Errors
    /// As those of [`read`](Self::read).
    pub fn read_to_vec(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        self.check(offset, len)?;
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// # Errors
    /// As those of [`read`](Self::read). Some of them may be written then.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        // Else what was cut off would be made anew.
        if memory::len(self.fd())? < offset + bytes.len() {
            return Err(self.shrunk().into());
        }
        Ok(memory::write_all_at(self.fd(), offset, bytes)?)
    }

    /// Maps all of it, for who cannot do with copies.
    ///
    /// # Errors
    /// When the kernel refuses; when the memory has shrunk.
    pub fn map(&self) -> Result<MappedMemory> {
        let mapping = shm::Unsealed::map(self.fd())?;
        if mapping.len() < self.size() {
            return Err(self.shrunk().into());
        }
        Ok(MappedMemory { mapping, len: self.size() })
    }

    /// Gives up this handle. It is the same as dropping it; the name stays: see
    /// [Its end](SharedMemory#its-end).
    pub fn close(self) {}

    /// Takes its name away. The memory is free once all who have it open have closed it, until when they
    /// can use it.
    ///
    /// # Errors
    /// [`is_not_found`](Error::is_not_found) when it was unlinked already, also if another object has the
    /// name by now, which keeps it.
    pub fn unlink(&self) -> Result<()> {
        let name = self.name();
        let removed = shm::identity_of(name).and_then(|found| match found == self.0.object.identity {
            true => shm::unlink(name),
            false => Err(io::Error::new(io::ErrorKind::NotFound, "another object has its name by now")),
        });
        if removed.as_ref().is_ok() || removed.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            // Who has no name any more is nobody's to unlink.
            resource_tracker::unregister(&self.0.object);
        }
        Ok(removed.map_err(|error| explain(error, name))?)
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.size()) {
            return Ok(());
        }
        let (name, size) = (self.name(), self.size());
        let what = format!("{len} bytes at {offset} are not within the {size} of shared memory `{name}`");
        Err(Error::InvalidArgument(what))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    fn shrunk(&self) -> io::Error {
        let what = format!("shared memory `{}` has shrunk: somebody has cut it off", self.name());
        io::Error::new(io::ErrorKind::UnexpectedEof, what)
    }
}

/// Of the same kind, but says what it is about.
fn explain(error: io::Error, name: &str) -> io::Error {
    let what = match error.kind() {
        io::ErrorKind::NotFound if error.raw_os_error().is_some() => {
            format!("not found: nothing has the name of shared memory `{name}`")
        }
        _ => format!("shared memory `{name}`: {error}"),
    };
    io::Error::new(error.kind(), what)
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedMemory({:?}, size={})", self.name(), self.size())
    }
}

/// Sends its name.
impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.name().serialize(serializer)
    }
}

/// Opens what has the name.
impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::open(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Shared memory in the making: see [`SharedMemory::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is created before `create`"]
pub struct SharedMemoryBuilder {
    name: Option<String>,
    track: bool,
}

impl SharedMemoryBuilder {
    /// Its name: up to 255 bytes without a slash, but that it may begin with one. By default it is made up.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether the [resource tracker](crate::resource_tracker) unlinks it when nobody else of this family
    /// is left to; the default. Without, it stays until somebody unlinks it, or the machine is restarted.
    pub fn track(mut self, track: bool) -> Self {
        self.track = track;
        self
    }

    /// Creates `size` bytes, all zero. The memory is all there before others can find it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a size of 0, or a name that cannot be one;
    /// [`is_already_exists`](Error::is_already_exists) if something has the name given; an I/O error of the kind
    /// `StorageFull` or `OutOfMemory` when there is no room, and others when there is no `/dev/shm`, or
    /// one that cannot hold files without a name. When it is to be tracked and the tracker cannot be
    /// started: see [`ensure_running`](crate::resource_tracker::ensure_running).
    pub fn create(self, size: usize) -> Result<SharedMemory> {
        self.create_with(size, name::random, |_| Ok(()))
    }

    /// Opens what has the [name](Self::name), with the size that it has, and then tracks nothing; if
    /// nothing has, creates it with `size` bytes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a name; else as [`SharedMemory::open`] and
    /// [`create`](Self::create), but for those two.
    pub fn open_or_create(self, size: usize) -> Result<SharedMemory> {
        let Some(name) = &self.name else {
            return Err(Error::invalid("shared memory that is to be opened needs a name"));
        };
        loop {
            match SharedMemory::open(name) {
                Err(error) if error.is_not_found() => {}
                opened => return opened,
            }
            match self.clone().create(size) {
                // Somebody was faster.
                Err(error) if error.is_already_exists() => {}
                created => return created,
            }
        }
    }

    /// As [`create`](Self::create), with other names, and with what it is to hold before others can find
    /// it.
    pub(super) fn create_with(
        self,
        size: usize,
        mut names: impl FnMut() -> Result<String>,
        fill: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<SharedMemory> {
        if size == 0 {
            return Err(Error::invalid("shared memory needs a size of at least one byte"));
        }
        let given = self.name.as_deref().map(name::checked).transpose()?;
        let fd = shm::unnamed(size)?;
        fill(fd.as_fd())?;
        let identity = sys::fd::identity(fd.as_fd())?;
        for attempt in 1.. {
            let name = given.map_or_else(&mut names, |name| Ok(name.to_owned()))?;
            let object = Object { name, identity };
            // First: it may be the last thing that this process does.
            if self.track {
                resource_tracker::register(&object)?;
            }
            let Err(error) = shm::link(fd.as_fd(), &object.name) else {
                return Ok(SharedMemory::of(object, size, fd));
            };
            if self.track {
                resource_tracker::unregister(&object);
            }
            let taken = error.kind() == io::ErrorKind::AlreadyExists;
            if !taken || given.is_some() || attempt == ATTEMPTS {
                return Err(explain(error, &object.name).into());
            }
        }
        unreachable!("it ends at the latest after the last attempt")
    }
}

/// Where shared memory lies in this process, until this is dropped: see [`SharedMemory::map`].
///
/// It gives the address, and using it takes `unsafe` code, whose author then promises that
/// - no process shrinks the object while its bytes are touched: that would be a SIGBUS;
/// - no other thread or process writes to bytes to which there is a reference, nor reads those to which
///   there is an exclusive one; what several touch at the same time is accessed as atomics alone, or with
///   a lock held;
/// - what is read as a type may hold any bytes that others write.
///
/// ```
/// use tokio_multiprocess as mp;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// # fn main() -> mp::Result<()> {
/// let memory = mp::SharedMemory::create(8)?;
/// let mapped = memory.map()?;
/// // SAFETY: nobody shrinks it, all access it as this atomic, and a mapping begins at a page.
/// let counter = unsafe { &*mapped.as_ptr().cast::<AtomicU64>() };
/// counter.fetch_add(7, Ordering::Relaxed);
/// assert_eq!(memory.read_to_vec(0, 8)?, 7u64.to_ne_bytes());
/// memory.unlink()
/// # }
/// ```
#[derive(Debug)]
pub struct MappedMemory {
    mapping: shm::Unsealed,
    len: usize,
}

impl MappedMemory {
    /// Its first byte, at the beginning of a page; readable and writable.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// How many bytes it has: the size of the memory.
    #[allow(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.len
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use super::*;

    // conformance: _TestSharedMemory.test_shared_memory_basics
    #[test]
    fn a_name_that_is_taken_is_followed_by_the_next() {
        let mut names =
            ["taken", "taken", "free"].map(|what| format!("psm_test_{}_{what}", std::process::id()));
        let untracked = || SharedMemory::builder().track(false);
        let first = untracked().name(names[0].clone()).create(1).unwrap();
        names.reverse();
        let mut names = names.into_iter();
        let mut tried = 0;
        let next = || {
            tried += 1;
            Ok(names.next_back().unwrap())
        };
        let second = untracked().create_with(1, next, |_| Ok(())).unwrap();
        assert!(second.name().ends_with("_free"), "{second:?}");
        assert_eq!(tried, 3);
        let endless = || Ok(second.name().to_owned());
        let error = untracked().create_with(1, endless, |_| Ok(())).unwrap_err();
        assert!(error.is_already_exists(), "{error}");
        first.unlink().unwrap();
        second.unlink().unwrap();
    }
}
