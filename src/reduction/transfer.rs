//! The scope in which handles leave or enter a message.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::CodecError;
use crate::sys::Fd;

/// Something that goes beside a message's bytes.
///
/// Shared, because a task may be sent again to another worker.
#[derive(Clone, Debug)]
pub(crate) struct Attachment(pub(crate) Arc<Fd>);

impl Attachment {
    /// The descriptor itself, a duplicate if the attachment is shared.
    pub(crate) fn into_fd(self) -> std::io::Result<Fd> {
        Arc::try_unwrap(self.0).or_else(|shared| shared.try_clone())
    }
}

/// A bare descriptor inside of a message: sending it sends a duplicate. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Handle(pub(crate) Attachment);

impl Handle {
    pub(crate) fn new(fd: Fd) -> Self {
        Self(Attachment(Arc::new(fd)))
    }

    pub(crate) fn into_fd(self) -> std::io::Result<Fd> {
        self.0.into_fd()
    }

}

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        attach(self.0.clone())?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(detach(u32::deserialize(deserializer)?)?))
    }
}

/// What goes beside one message, by index.
pub(crate) type Attachments = Vec<Attachment>;

/// A message as it arrived.
#[derive(Debug)]
pub(crate) struct Incoming<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) attachments: Vec<Fd>,
}

impl<'a> Incoming<'a> {
    pub(crate) fn bytes(bytes: &'a [u8]) -> Self {
        Self { bytes, attachments: Vec::new() }
    }
}

/// Who will read the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process of this family that runs the same build: addresses mean the same there.
    SameBuild,
    /// A process of this family that may run another build: functions go by name as well.
    AnyBuild,
}

/// Whether this process runs another build than its parent.
static OTHER_THAN_PARENT: AtomicBool = AtomicBool::new(false);

/// Notes, at its start, that this process runs another build than its parent.
pub(crate) fn set_other_build_than_parent() {
    OTHER_THAN_PARENT.store(true, Ordering::Relaxed);
}

/// Who reads what this process answers to its parent.
pub(crate) fn parent() -> Peer {
    if OTHER_THAN_PARENT.load(Ordering::Relaxed) { Peer::AnyBuild } else { Peer::SameBuild }
}

struct Outgoing {
    attachments: Attachments,
    peer: Peer,
}

thread_local! {
    static OUTGOING: RefCell<Option<Outgoing>> = const { RefCell::new(None) };
    static INCOMING: RefCell<Option<Vec<Option<Fd>>>> = const { RefCell::new(None) };
}

/// Puts a value into a thread-local slot and the former one back at its end, also by a panic.
struct Scope<T: 'static> {
    slot: &'static std::thread::LocalKey<RefCell<Option<T>>>,
    outer: Option<T>,
}

impl<T> Scope<T> {
    fn enter(slot: &'static std::thread::LocalKey<RefCell<Option<T>>>, value: T) -> Self {
        Self { slot, outer: slot.replace(Some(value)) }
    }

    fn leave(self) -> Option<T> {
        self.slot.take()
    }
}

impl<T> Drop for Scope<T> {
    fn drop(&mut self) {
        self.slot.set(self.outer.take());
    }
}

/// Runs an encoding and gives what it attached. If it fails, what was attached is dropped, which
/// leaves the handles where they were: an attachment is a duplicate until it is sent.
pub(super) fn outgoing(peer: Peer, encode: impl FnOnce() -> Result<(), CodecError>) -> Result<Attachments, CodecError> {
    let scope = Scope::enter(&OUTGOING, Outgoing { attachments: Vec::new(), peer });
    encode()?;
    Ok(scope.leave().map(|outgoing| outgoing.attachments).unwrap_or_default())
}

/// Runs a decoding over what came beside the bytes; what it does not take is closed.
pub(super) fn incoming<R>(attachments: Vec<Fd>, decode: impl FnOnce() -> R) -> R {
    let scope = Scope::enter(&INCOMING, attachments.into_iter().map(Some).collect());
    let decoded = decode();
    drop(scope.leave());
    decoded
}

/// Who reads what this thread is encoding; `None` outside of a message.
pub(crate) fn peer() -> Option<Peer> {
    OUTGOING.with_borrow(|outgoing| outgoing.as_ref().map(|outgoing| outgoing.peer))
}

/// Puts a descriptor beside the message that this thread is encoding, and gives its index.
pub(crate) fn attach<E: serde::ser::Error>(attachment: Attachment) -> Result<u32, E> {
    OUTGOING.with_borrow_mut(|outgoing| match outgoing {
        Some(Outgoing { attachments, .. }) => {
            attachments.push(attachment);
            Ok((attachments.len() - 1) as u32)
        }
        None => Err(E::custom("a handle can only be sent inside of a message to another process")),
    })
}

/// Takes the descriptor that came beside the message which this thread is decoding.
pub(crate) fn detach<E: serde::de::Error>(index: u32) -> Result<Fd, E> {
    INCOMING.with_borrow_mut(|incoming| match incoming {
        Some(attachments) => attachments
            .get_mut(index as usize)
            .and_then(Option::take)
            .ok_or_else(|| E::custom(format_args!("the message has no handle {index} left"))),
        None => Err(E::custom("a handle can only be received inside of a message")),
    })
}
