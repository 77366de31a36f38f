//! Shared memory with a name: blocks of bytes, and lists of plain values, that any process of this machine
//! can open.
//!
//! Names are those of CPython's `multiprocessing.shared_memory` and of POSIX's `shm_open`: what one side
//! creates the other can open. See [`SharedMemory`] and [`ShareableList`].
//!
//! ```
//! use tokio_multiprocess as mp;
//!
//! # fn main() -> mp::Result<()> {
//! let memory = mp::SharedMemory::create(1024)?;
//! memory.write(0, b"seen by all")?;
//! // Elsewhere, by its name alone.
//! let same = mp::SharedMemory::open(memory.name())?;
//! assert_eq!(same.read_to_vec(0, 11)?, b"seen by all");
//! memory.unlink()
//! # }
//! ```
//!
//! # Which of the crate's memories
//!
//! To send large bytes, take a [`Blob`](crate::Blob): it has no name, needs no unlinking, cannot be
//! changed, and so can be borrowed like any slice. Named memory is for processes that have no channel
//! between them, such as another program, and for data that several processes change.
//!
//! # With CPython
//!
//! Before 3.13 a CPython takes what it has merely opened for its own, and unlinks it when it ends; since then
//! `SharedMemory(name, track=False)` keeps it from that. Until then it is to be told so:
//!
//! ```python
//! memory = SharedMemory(name)
//! resource_tracker.unregister("/" + memory.name, "shared_memory")
//! ```
//!
//! What a CPython has created its own tracker unlinks, also while processes of this crate have it open.
//!
//! # Who may do what
//!
//! Objects are created for this user alone (mode 0600), as CPython's are. A process of the same user, or
//! root, may do with them what it likes: write at any time, unlink, shrink. That is why everything here is
//! read and written by checked copies, which give errors where touching a mapping would kill the process.

mod block;
mod layout;
mod list;
mod name;

pub use block::{MappedMemory, SharedMemory, SharedMemoryBuilder};
pub use layout::ShareableValue;
pub use list::ShareableList;
