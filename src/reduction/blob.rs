//! Bytes that travel without being copied.

use crate::sys::AsFd;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::transfer::{Attachment, attach, detach};
use crate::sys::memory::Frozen;

/// Immutable bytes in shared memory. Sending one sends its descriptor: no byte is copied, whatever
/// the size, and every process that received it reads the same pages.
///
/// Making one copies the bytes once and costs a descriptor until the first clone is dropped with
/// the last. The memory is sealed, so nobody can change or shrink it under a reader; what arrives
/// without these seals is refused. Cloning is cheap and shares the mapping.
///
/// ```
/// let blob = tokio_multiprocess::Blob::new(b"one copy, then none")?;
/// assert_eq!(&blob[..8], b"one copy");
/// # Ok::<(), tokio_multiprocess::Error>(())
/// ```
#[derive(Clone)]
pub struct Blob {
    attachment: Attachment,
    bytes: Bytes,
}

impl Blob {
    /// Copies `bytes` into sealed shared memory.
    ///
    /// # Errors
    /// When no descriptor or no memory is left (a full `/dev/shm` or memory cgroup is an error
    /// here, never a SIGBUS later), and on platforms without processes.
    pub fn new(bytes: impl AsRef<[u8]>) -> crate::Result<Self> {
        let fd = Frozen::create(bytes.as_ref())?;
        Ok(Self::adopt(fd)?)
    }

    fn adopt(fd: crate::sys::Fd) -> std::io::Result<Self> {
        let bytes = Bytes::from_owner(Frozen::map(fd.as_fd())?);
        Ok(Self { attachment: Attachment(fd.into()), bytes })
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Shares the mapping; nothing is copied.
impl From<Blob> for Bytes {
    fn from(blob: Blob) -> Self {
        blob.bytes
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Blob {}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.bytes.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        attach(self.attachment.clone())?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fd = detach(u32::deserialize(deserializer)?)?;
        Self::adopt(fd).map_err(|error| D::Error::custom(format_args!("not a blob: {error}")))
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use super::*;
    use crate::reduction::{Descriptor, Incoming, Peer, decode, encode};
    use crate::sys::Fd;
    use crate::sys::memory::{self, Shared};

    /// What arrives if somebody sends `fd` in the place of a blob's.
    fn received(fd: Fd) -> Result<Blob, crate::reduction::CodecError> {
        let mut bytes = Vec::new();
        let attachments = encode(&Descriptor::new(fd), &mut bytes, Peer::SameBuild).unwrap();
        let attachments = attachments.into_iter().map(|attachment| attachment.into_fd().unwrap()).collect();
        decode(Incoming { bytes: &bytes, attachments })
    }

    #[test]
    fn memory_that_its_sender_can_still_write_is_no_blob() {
        let memory = memory::memfd("test", 8).unwrap();
        memory::seal_fixed_size(memory.as_fd()).unwrap();
        let writable = Shared::map(memory.as_fd()).unwrap();
        assert!(received(memory.try_clone().unwrap()).unwrap_err().to_string().contains("not a blob"));
        writable.write(0, b"changed");
        assert!(received(memory::memfd("test", 8).unwrap()).is_err());
        assert!(received(std::fs::File::open("/proc/self/exe").unwrap().into()).is_err());
        // The same with all seals is one.
        assert_eq!(&received(Frozen::create(b"sealed").unwrap()).unwrap()[..], b"sealed");
    }
}
