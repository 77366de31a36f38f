//! The scope in which handles leave or enter a message.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::LocalKey;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::CodecError;
use super::movable::Departing;
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
pub(crate) struct Descriptor(pub(crate) Attachment);

impl Descriptor {
    pub(crate) fn new(fd: Fd) -> Self {
        Self(Attachment(Arc::new(fd)))
    }

    pub(crate) fn into_fd(self) -> std::io::Result<Fd> {
        self.0.into_fd()
    }
}

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        attach(self.0.clone())?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Descriptor {
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

/// Who will read the message, or who has written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process of this family that runs the same build: addresses mean the same there.
    SameBuild,
    /// A process of this family that may run another build: functions go by name as well.
    AnyBuild,
    /// Whoever is at the other end of a listening socket: functions go by name alone, both ways.
    Stranger,
}

impl Peer {
    /// Whether an address that it names may be called, and ours mean something to it.
    pub(crate) fn is_family(self) -> bool {
        self != Self::Stranger
    }
}

/// How many processes will read the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    One,
    /// Such as what each worker of a pool is prepared with.
    Several,
}

/// How many handles go beside one message.
pub(crate) const MAX_HANDLES: usize = 1024;

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

/// The objects that move with a message. Until it is with the kernel, or with who answers for it
/// from then on, it may come to nothing: dropping this gives all of them back to their owners.
#[derive(Default)]
#[must_use = "what is not committed does not move"]
pub(crate) struct Departures(Vec<Arc<dyn Departing>>);

impl Departures {
    /// The message is on its way: they are gone from here.
    pub(crate) fn commit(self) {
        self.0.iter().for_each(|object| object.leave());
    }
}

impl fmt::Debug for Departures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Departures({})", self.0.len())
    }
}

/// What a thread gathers for a message, or has left of one.
trait Gathered: Default {
    fn is_empty(&self) -> bool;
}

#[derive(Default)]
struct Beside {
    attachments: Attachments,
    departures: Departures,
}

impl Gathered for Beside {
    fn is_empty(&self) -> bool {
        self.attachments.is_empty() && self.departures.0.is_empty()
    }
}

impl Gathered for Vec<Option<Fd>> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

thread_local! {
    /// Who will read what is being encoded; `None` outside of a message. A word, so that a message
    /// without handles, which is nearly each, costs next to nothing.
    static READER: Cell<Option<(Peer, Copies)>> = const { Cell::new(None) };
    static OUTGOING: RefCell<Beside> =
        const { RefCell::new(Beside { attachments: Vec::new(), departures: Departures(Vec::new()) }) };
    /// Who has written what is being decoded; `None` outside of a message.
    static WRITER: Cell<Option<Peer>> = const { Cell::new(None) };
    static INCOMING: RefCell<Vec<Option<Fd>>> = const { RefCell::new(Vec::new()) };
}

/// Has the former state of both slots back at its end, also by a panic.
struct Scope<S: Copy + 'static, G: Gathered + 'static> {
    state: &'static LocalKey<Cell<Option<S>>>,
    gathered: &'static LocalKey<RefCell<G>>,
    outer: Option<S>,
    /// What an outer message has gathered so far.
    outer_gathered: G,
}

impl<S: Copy, G: Gathered> Scope<S, G> {
    fn enter(
        state: &'static LocalKey<Cell<Option<S>>>,
        gathered: &'static LocalKey<RefCell<G>>,
        now: S,
    ) -> Self {
        let outer = state.replace(Some(now));
        let outer_gathered = if outer.is_some() { gathered.take() } else { G::default() };
        Self { state, gathered, outer, outer_gathered }
    }
}

impl<S: Copy, G: Gathered> Drop for Scope<S, G> {
    fn drop(&mut self) {
        self.state.set(self.outer);
        if !self.outer_gathered.is_empty() || self.gathered.with_borrow(|gathered| !gathered.is_empty()) {
            self.gathered.set(std::mem::take(&mut self.outer_gathered));
        }
    }
}

/// Runs an encoding and gives what it attached, and what is to move. If it fails or panics, all is
/// dropped, which leaves every handle where it was: an attachment is a duplicate, and what is to
/// move goes back to its owner.
pub(super) fn outgoing(
    peer: Peer,
    copies: Copies,
    encode: impl FnOnce() -> Result<(), CodecError>,
) -> Result<(Attachments, Departures), CodecError> {
    let _scope = Scope::enter(&READER, &OUTGOING, (peer, copies));
    encode()?;
    let Beside { attachments, departures } = OUTGOING.take();
    Ok((attachments, departures))
}

/// Runs a decoding over what came beside the bytes; what it does not take is closed.
pub(super) fn incoming<R>(writer: Peer, attachments: Vec<Fd>, decode: impl FnOnce() -> R) -> R {
    let _scope = Scope::enter(&WRITER, &INCOMING, writer);
    if !attachments.is_empty() {
        INCOMING.set(attachments.into_iter().map(Some).collect());
    }
    decode()
}

/// Who reads what this thread is encoding; `None` outside of a message.
pub(crate) fn peer() -> Option<Peer> {
    READER.get().map(|(peer, _)| peer)
}

/// Who has written what this thread is decoding; `None` outside of a message.
pub(crate) fn writer() -> Option<Peer> {
    WRITER.get()
}

/// How many processes read what this thread is encoding.
pub(super) fn copies<E: serde::ser::Error>() -> Result<Copies, E> {
    let reader = READER.get();
    let (_, copies) = reader
        .ok_or_else(|| E::custom("a handle can only be sent inside of a message to another process"))?;
    Ok(copies)
}

/// Puts a descriptor beside the message that this thread is encoding, and gives its index.
pub(crate) fn attach<E: serde::ser::Error>(attachment: Attachment) -> Result<u32, E> {
    copies()?;
    OUTGOING.with_borrow_mut(|beside| {
        if beside.attachments.len() >= MAX_HANDLES {
            return Err(E::custom(format_args!("more than {MAX_HANDLES} handles in one message")));
        }
        beside.attachments.push(attachment);
        Ok((beside.attachments.len() - 1) as u32)
    })
}

/// Notes that an object moves with the message that this thread is encoding.
pub(super) fn depart(object: Arc<dyn Departing>) {
    OUTGOING.with_borrow_mut(|beside| beside.departures.0.push(object));
}

/// Takes the descriptor that came beside the message which this thread is decoding.
pub(crate) fn detach<E: serde::de::Error>(index: u32) -> Result<Fd, E> {
    if WRITER.get().is_none() {
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

    fn sending(
        peer: Peer,
        encode: impl FnOnce() -> Result<(), CodecError>,
    ) -> Result<Attachments, CodecError> {
        outgoing(peer, Copies::One, encode).map(|(attachments, _)| attachments)
    }

    #[test]
    fn a_message_has_so_many_handles_and_no_more() {
        let handle = handle();
        let many = |count| {
            sending(Peer::SameBuild, || {
                (0..count).try_for_each(|_| attach::<CodecError>(handle.clone()).map(drop))
            })
        };
        assert_eq!(many(MAX_HANDLES).unwrap().len(), MAX_HANDLES);
        assert!(many(MAX_HANDLES + 1).unwrap_err().to_string().contains("1024"));
    }

    #[test]
    fn who_has_written_a_message_is_known_while_it_is_decoded() {
        incoming(Peer::Stranger, Vec::new(), || {
            incoming(Peer::SameBuild, Vec::new(), || assert_eq!(writer(), Some(Peer::SameBuild)));
            assert_eq!(writer(), Some(Peer::Stranger));
        });
        assert_eq!(writer(), None);
    }

    #[test]
    fn a_nested_message_leaves_the_outer_ones_handles_alone() {
        let inner = |attached: &mut usize| {
            let sent =
                sending(Peer::AnyBuild, || attach::<CodecError>(handle()).map(|index| assert_eq!(index, 0)));
            *attached = sent.unwrap().len();
            // One that fails or panics takes back what it attached.
            assert!(
                sending(Peer::SameBuild, || Err(CodecError::custom(attach::<CodecError>(handle())?)))
                    .is_err()
            );
            let panicked = std::panic::AssertUnwindSafe(|| {
                let _ = sending(Peer::SameBuild, || panic!("{:?}", attach::<CodecError>(handle())));
            });
            assert!(std::panic::catch_unwind(panicked).is_err());
        };
        let mut inner_count = 0;
        let outer = sending(Peer::SameBuild, || {
            assert_eq!(attach::<CodecError>(handle())?, 0);
            inner(&mut inner_count);
            assert_eq!(peer(), Some(Peer::SameBuild));
            assert_eq!(attach::<CodecError>(handle())?, 1);
            Ok(())
        });
        assert_eq!((outer.unwrap().len(), inner_count, peer()), (2, 1, None));
        assert!(attach::<CodecError>(handle()).is_err());
        assert!(OUTGOING.take().attachments.is_empty());
    }

    #[test]
    fn each_handle_is_taken_once_and_only_inside_of_its_message() {
        let fds = || vec![crate::sys::fd::eventfd().unwrap()];
        incoming(Peer::SameBuild, fds(), || {
            incoming(Peer::AnyBuild, fds(), || assert!(detach::<CodecError>(0).is_ok()));
            assert!(detach::<CodecError>(0).is_ok() && detach::<CodecError>(0).is_err());
            assert!(detach::<CodecError>(7).is_err());
        });
        incoming(Peer::SameBuild, Vec::new(), || assert!(detach::<CodecError>(0).is_err()));
        assert!(detach::<CodecError>(0).is_err());
    }
}
