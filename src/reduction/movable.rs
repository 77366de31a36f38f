//! Objects of which there is one: sending one moves it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::transfer::{self, Copies};
use crate::error::{Error, Result};

/// What lives in a [`Movable`]. Its `Serialize` attaches duplicates and writes what is unread, and
/// changes nothing: the cell around it knows when it is gone.
pub(crate) trait Moves: Serialize + Send + 'static {
    /// What it is called when it is closed.
    const NAME: &'static str;

    /// What to do where several processes are to have it.
    const FOR_SEVERAL: &'static str = "see `share()`";

    /// It has moved, and what is dropped next is only its shell here.
    fn moved(&mut self) {}

    /// Whether several processes may have it at a time, so that a message to several takes
    /// duplicates of it and leaves it here.
    fn is_shared(&self) -> bool {
        false
    }
}

/// The cell of an object that moves when it is sent.
///
/// Serialising it takes the object out. When the message is committed it is dropped here, so that its
/// descriptor is closed as soon as the other process has its own; if the message comes to nothing,
/// the object is back as soon as anybody looks. Meanwhile, and once it is gone, each use gives
/// [`Error::Closed`].
///
/// [`get_mut`](Self::get_mut) costs a comparison; through `&self` there is a lock, which is free
/// unless two threads use one object at the same moment. The cell lends no `&T`, since what is
/// borrowed could not be closed at the commit.
pub(crate) struct Movable<T>(Mutex<Place<T>>);

enum Place<T> {
    Here(T),
    /// In the hands of a message under way, which takes it out when it is committed. When the
    /// message is no more this is the only owner.
    InTransit(Arc<Mutex<Option<T>>>),
    Gone,
}

impl<T> Place<T> {
    /// Has the object back from a message that came to nothing.
    #[inline]
    fn settled(&mut self) -> Option<&mut T> {
        if let Self::InTransit(_) = self {
            self.settle();
        }
        match self {
            Self::Here(object) => Some(object),
            Self::InTransit(_) | Self::Gone => None,
        }
    }

    #[cold]
    fn settle(&mut self) {
        let Self::InTransit(object) = std::mem::replace(self, Self::Gone) else { return };
        *self = match Arc::try_unwrap(object) {
            Ok(object) => match object.into_inner().unwrap_or_else(PoisonError::into_inner) {
                Some(object) => Self::Here(object),
                None => Self::Gone,
            },
            Err(object) => Self::InTransit(object),
        };
    }
}

impl<T: Moves> Movable<T> {
    /// The cell of an object, or of none as it was closed before.
    pub(crate) fn new(object: impl Into<Option<T>>) -> Self {
        Self(Mutex::new(object.into().map_or(Place::Gone, Place::Here)))
    }

    /// The object, if it is here.
    ///
    /// # Errors
    /// [`Error::Closed`], as of all methods.
    #[inline]
    pub(crate) fn get_mut(&mut self) -> Result<&mut T> {
        let place = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        place.settled().ok_or(Error::Closed(T::NAME))
    }

    /// Looks at the object. No foreign code may run in `look`: it could come back in.
    #[inline]
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Result<R> {
        self.place().settled().map(look).ok_or(Error::Closed(T::NAME))
    }

    /// Takes the object out for good: to close it, or to go on with it elsewhere.
    pub(crate) fn take(&mut self) -> Result<T> {
        self.get_mut()?;
        let place = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(place, Place::Gone) {
            Place::Here(object) => Ok(object),
            Place::InTransit(_) | Place::Gone => Err(Error::Closed(T::NAME)),
        }
    }

    /// Whether it is neither here nor about to be back.
    pub(crate) fn is_closed(&self) -> bool {
        self.with(|_| ()).is_err()
    }

    /// Drops the object; if it is in a message under way, it does not come back from there.
    pub(crate) fn close(&self) {
        let place = std::mem::replace(&mut *self.place(), Place::Gone);
        // Not under the lock.
        drop(place);
    }

    /// A panic while it was locked has left the object where it was.
    fn place(&self) -> MutexGuard<'_, Place<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Moves> Serialize for Movable<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let copies = transfer::copies()?;
        let mut place = self.place();
        let Some(object) = place.settled() else {
            let is = if matches!(*place, Place::Gone) { "is closed" } else { "is already in a message" };
            return Err(S::Error::custom(format_args!("this {} {is}", T::NAME)));
        };
        if copies == Copies::Several {
            if object.is_shared() {
                return object.serialize(serializer);
            }
            return Err(S::Error::custom(format_args!(
                "this {} can move to one process only, and the message goes to several: {}",
                T::NAME,
                T::FOR_SEVERAL
            )));
        }
        let written = object.serialize(serializer)?;
        if let Place::Here(object) = std::mem::replace(&mut *place, Place::Gone) {
            let object = Arc::new(Mutex::new(Some(object)));
            *place = Place::InTransit(Arc::clone(&object));
            transfer::depart(object);
        }
        Ok(written)
    }
}

impl<'de, T: Moves + Deserialize<'de>> Deserialize<'de> for Movable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::new)
    }
}

impl<T: fmt::Debug> fmt::Debug for Movable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).settled() {
            Some(object) => object.fmt(f),
            None => f.write_str("closed"),
        }
    }
}

/// A moved object, as its message has it.
pub(super) trait Departing: Send + Sync {
    /// It was sent: here it is dropped.
    fn leave(&self);
}

impl<T: Moves> Departing for Mutex<Option<T>> {
    fn leave(&self) {
        // Not under the lock.
        let object = self.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut object) = object {
            object.moved();
        }
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::reduction::{
        CodecError, Incoming, MessagePack, Peer, decode, encode, encode_for_several, encode_uncommitted,
    };

    /// Counts its drops.
    #[derive(Clone, Debug, Default)]
    struct Object {
        drops: Arc<AtomicUsize>,
        shared: bool,
    }

    impl Drop for Object {
        fn drop(&mut self) {
            self.drops.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Serialize for Object {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            "what is unread".serialize(serializer)
        }
    }

    impl Moves for Object {
        const NAME: &'static str = "object";

        fn is_shared(&self) -> bool {
            self.shared
        }
    }

    fn movable() -> (Movable<Object>, Arc<AtomicUsize>) {
        let object = Object::default();
        let drops = Arc::clone(&object.drops);
        (Movable::new(object), drops)
    }

    fn is_here(object: &mut Movable<Object>) -> bool {
        let seen = object.with(|_| ()).is_ok();
        assert_eq!(seen, object.get_mut().is_ok());
        assert_eq!(seen, format!("{object:?}") != "closed");
        seen
    }

    fn uncommitted<T: Serialize>(value: &T) -> Result<transfer::Departures, CodecError> {
        encode_uncommitted::<MessagePack, _>(value, &mut Vec::new(), Peer::SameBuild).map(|(_, moves)| moves)
    }

    /// Serialises what it holds, and then fails or panics.
    struct Then<'a, T>(&'a T, fn() -> bool);

    impl<T: Serialize> Serialize for Then<'_, T> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let written = self.0.serialize(serializer)?;
            if (self.1)() { Ok(written) } else { Err(S::Error::custom("no")) }
        }
    }

    #[test]
    fn a_committed_object_is_dropped_here_at_once() {
        let (mut object, drops) = movable();
        let moves = uncommitted(&object).unwrap();
        assert!(!is_here(&mut object) && drops.load(Ordering::Relaxed) == 0);
        moves.commit();
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert!(!is_here(&mut object));
        assert!(object.get_mut().unwrap_err().is_closed() && object.take().unwrap_err().is_closed());
        assert!(uncommitted(&object).unwrap_err().to_string().contains("object is closed"));
    }

    #[test]
    fn what_comes_to_nothing_gives_the_object_back() {
        let (mut object, drops) = movable();
        drop(uncommitted(&object).unwrap());
        assert!(is_here(&mut object));
        assert!(uncommitted(&Then(&object, || false)).is_err() && is_here(&mut object));
        assert!(uncommitted(&(&object, Then(&0, || false))).is_err() && is_here(&mut object));
        let panics = catch_unwind(AssertUnwindSafe(|| uncommitted(&Then(&object, || panic!("no")))));
        assert!(panics.is_err() && is_here(&mut object));
        assert_eq!(drops.load(Ordering::Relaxed), 0);
        // Once more, for good.
        encode(&object, &mut Vec::new(), Peer::AnyBuild).unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_object_goes_into_one_message_once() {
        let (mut object, _) = movable();
        let error = uncommitted(&(&object, &object)).unwrap_err();
        assert!(error.to_string().contains("already in a message"), "{error}");
        assert!(is_here(&mut object));
        let _moves = uncommitted(&object).unwrap();
        assert!(uncommitted(&object).is_err());
    }

    #[test]
    fn a_nested_message_commits_its_own_objects_alone() {
        struct Nested<'a>(&'a Movable<Object>, &'a Movable<Object>);
        impl Serialize for Nested<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let written = self.0.serialize(serializer)?;
                encode(self.1, &mut Vec::new(), Peer::SameBuild).map_err(S::Error::custom)?;
                Ok(written)
            }
        }
        let ((mut outer, outer_drops), (inner, inner_drops)) = (movable(), movable());
        let drops = || (outer_drops.load(Ordering::Relaxed), inner_drops.load(Ordering::Relaxed));
        let moves = uncommitted(&Nested(&outer, &inner)).unwrap();
        assert_eq!(drops(), (0, 1));
        moves.commit();
        assert_eq!(drops(), (1, 1));
        assert!(!is_here(&mut outer));
        // Without a nested commit the inner one is as before, whatever becomes of the outer.
        let ((outer, _), (mut inner, _)) = (movable(), movable());
        uncommitted(&(&outer, Then(&0, || true))).unwrap().commit();
        assert!(is_here(&mut inner));
    }

    #[test]
    fn a_message_to_several_takes_what_is_shared_and_leaves_it_here() {
        let several =
            |object: &Movable<Object>| encode_for_several(object, &mut Vec::new(), Peer::SameBuild).map(drop);
        let (mut object, _) = movable();
        let error = several(&object).unwrap_err();
        assert!(error.to_string().contains("share()"), "{error}");
        assert!(is_here(&mut object));
        object.get_mut().unwrap().shared = true;
        several(&object).unwrap();
        assert!(is_here(&mut object));
        // To one process it moves like others.
        uncommitted(&object).unwrap().commit();
        assert!(!is_here(&mut object));
    }

    #[test]
    fn an_object_whose_cell_is_dropped_meanwhile_ends_with_the_message() {
        for commits in [true, false] {
            let (object, drops) = movable();
            let moves = uncommitted(&object).unwrap();
            drop(object);
            assert_eq!(drops.load(Ordering::Relaxed), 0);
            if commits {
                moves.commit()
            } else {
                drop(moves)
            }
            assert_eq!(drops.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn outside_of_a_message_it_stays() {
        let (mut object, _) = movable();
        assert!(rmp_serde::to_vec(&object).unwrap_err().to_string().contains("inside of a message"));
        assert!(is_here(&mut object));
        assert!(object.take().is_ok() && !is_here(&mut object));
        assert!(decode::<u8>(Incoming::bytes(&[7])).is_ok());
    }
}
