//! The scope in which handles leave or enter a message.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::LocalKey;

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

thread_local! {
    /// Who will read what is being encoded; `None` outside of a message. A word, so that a message
    /// without handles, which is nearly each, costs next to nothing.
    static PEER: Cell<Option<Peer>> = const { Cell::new(None) };
    static OUTGOING: RefCell<Attachments> = const { RefCell::new(Vec::new()) };
    static DECODING: Cell<bool> = const { Cell::new(false) };
    static INCOMING: RefCell<Vec<Option<Fd>>> = const { RefCell::new(Vec::new()) };
}

/// Has the former state of both slots back at its end, also by a panic.
struct Scope<S: Copy + 'static, T: 'static> {
    state: &'static LocalKey<Cell<S>>,
    list: &'static LocalKey<RefCell<Vec<T>>>,
    outer: S,
    /// What an outer message has gathered so far.
    outer_list: Vec<T>,
}

impl<S: Copy, T> Scope<S, T> {
    fn enter(
        state: &'static LocalKey<Cell<S>>,
        list: &'static LocalKey<RefCell<Vec<T>>>,
        now: S,
        nested: bool,
    ) -> Self {
        let outer_list = if nested { list.take() } else { Vec::new() };
        Self { state, list, outer: state.replace(now), outer_list }
    }
}

impl<S: Copy, T> Drop for Scope<S, T> {
    fn drop(&mut self) {
        self.state.set(self.outer);
        if !self.outer_list.is_empty() || self.list.with_borrow(|list| !list.is_empty()) {
            self.list.set(std::mem::take(&mut self.outer_list));
        }
    }
}

/// Runs an encoding and gives what it attached. If it fails, what was attached is dropped, which
/// leaves the handles where they were: an attachment is a duplicate until it is sent.
pub(super) fn outgoing(
    peer: Peer,
    encode: impl FnOnce() -> Result<(), CodecError>,
) -> Result<Attachments, CodecError> {
    let _scope = Scope::enter(&PEER, &OUTGOING, Some(peer), PEER.get().is_some());
    encode()?;
    Ok(OUTGOING.take())
}

/// Runs a decoding over what came beside the bytes; what it does not take is closed.
pub(super) fn incoming<R>(attachments: Vec<Fd>, decode: impl FnOnce() -> R) -> R {
    let _scope = Scope::enter(&DECODING, &INCOMING, true, DECODING.get());
    if !attachments.is_empty() {
        INCOMING.set(attachments.into_iter().map(Some).collect());
    }
    decode()
}

/// Who reads what this thread is encoding; `None` outside of a message.
pub(crate) fn peer() -> Option<Peer> {
    PEER.get()
}

/// Puts a descriptor beside the message that this thread is encoding, and gives its index.
pub(crate) fn attach<E: serde::ser::Error>(attachment: Attachment) -> Result<u32, E> {
    if PEER.get().is_none() {
        return Err(E::custom("a handle can only be sent inside of a message to another process"));
    }
    OUTGOING.with_borrow_mut(|attachments| {
        attachments.push(attachment);
        Ok((attachments.len() - 1) as u32)
    })
}

/// Takes the descriptor that came beside the message which this thread is decoding.
pub(crate) fn detach<E: serde::de::Error>(index: u32) -> Result<Fd, E> {
    if !DECODING.get() {
        return Err(E::custom("a handle can only be received inside of a message"));
    }
    let taken =
        INCOMING.with_borrow_mut(|attachments| attachments.get_mut(index as usize).and_then(Option::take));
    taken.ok_or_else(|| E::custom(format_args!("the message has no handle {index} left")))
}

#[cfg(all(test, multiprocess))]
mod tests {
    use serde::de::Error as _;

    use super::*;

    fn handle() -> Attachment {
        Attachment(Arc::new(crate::sys::fd::eventfd().unwrap()))
    }

    #[test]
    fn a_nested_message_leaves_the_outer_ones_handles_alone() {
        let inner = |attached: &mut usize| {
            let sent =
                outgoing(Peer::AnyBuild, || attach::<CodecError>(handle()).map(|index| assert_eq!(index, 0)));
            *attached = sent.unwrap().len();
            // One that fails or panics takes back what it attached.
            assert!(
                outgoing(Peer::SameBuild, || Err(CodecError::custom(attach::<CodecError>(handle())?)))
                    .is_err()
            );
            let panicked = std::panic::AssertUnwindSafe(|| {
                let _ = outgoing(Peer::SameBuild, || panic!("{:?}", attach::<CodecError>(handle())));
            });
            assert!(std::panic::catch_unwind(panicked).is_err());
        };
        let mut inner_count = 0;
        let outer = outgoing(Peer::SameBuild, || {
            assert_eq!(attach::<CodecError>(handle())?, 0);
            inner(&mut inner_count);
            assert_eq!(peer(), Some(Peer::SameBuild));
            assert_eq!(attach::<CodecError>(handle())?, 1);
            Ok(())
        });
        assert_eq!((outer.unwrap().len(), inner_count, peer()), (2, 1, None));
        assert!(attach::<CodecError>(handle()).is_err());
        assert!(OUTGOING.take().is_empty());
    }

    #[test]
    fn each_handle_is_taken_once_and_only_inside_of_its_message() {
        let fds = || vec![crate::sys::fd::eventfd().unwrap()];
        incoming(fds(), || {
            incoming(fds(), || assert!(detach::<CodecError>(0).is_ok()));
            assert!(detach::<CodecError>(0).is_ok() && detach::<CodecError>(0).is_err());
            assert!(detach::<CodecError>(7).is_err());
        });
        incoming(Vec::new(), || assert!(detach::<CodecError>(0).is_err()));
        assert!(detach::<CodecError>(0).is_err());
    }
}
