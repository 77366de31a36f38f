//! How a function is named to another process: by its place, or by a name.

use std::any::TypeId;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{BoxFuture, Message, Task, TaskCode, TaskFailure, TaskRun, Written, task_entry};
use crate::error::{NotStarted, StartError, TaskError};
use crate::reduction::{Incoming, Peer, decode, encode, peer, writer};
use crate::sys::Fd;
use crate::sys::image::Entry;
use crate::sys::program;

/// A function as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
// Makes the derived functions inherent ones: reading has to look at what it has read.
#[serde(remote = "Self")]
pub(crate) enum FnId {
    /// Its distance from the base, for a process of the same build.
    Place(i64),
    /// What any build can look up: the place if it is this one, else the registered name.
    Anywhere { build: String, place: Option<i64>, name: Option<String>, type_name: String },
}

impl Serialize for FnId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for FnId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut id = Self::deserialize(deserializer)?;
        // An address that a stranger names is never called, nor one of unknown origin.
        if !writer().is_some_and(Peer::is_family) {
            match &mut id {
                Self::Place(_) => return Err(D::Error::custom("a stranger names a function by its address")),
                Self::Anywhere { place, .. } => *place = None,
            }
        }
        Ok(id)
    }
}

impl FnId {
    /// How a function is named to `peer`.
    pub(crate) fn of<C: Copy + 'static>(
        entry: &'static Entry<C>,
        peer: Option<Peer>,
    ) -> Result<Self, StartError> {
        let name = names().by_type.get(&(entry.type_id)()).map(|name| (*name).to_owned());
        if !peer.is_some_and(Peer::is_family) {
            // Outside of a message to a process of this family only a name means anything: an address
            // tells a stranger where things lie.
            let nameless = || StartError::OtherBuild { function: (entry.name)().to_owned() };
            let name = Some(name.ok_or_else(nameless)?);
            return Ok(Self::Anywhere { build: String::new(), place: None, name, type_name: String::new() });
        }
        let place = program::contains(std::ptr::from_ref(entry) as usize, size_of::<Entry<C>>())
            .then(|| entry.distance());
        match (peer, place) {
            (Some(Peer::SameBuild), Some(place)) => return Ok(Self::Place(place)),
            (Some(Peer::SameBuild), None) => return Err(StartError::OutsideProgram),
            _ => {}
        }
        let (build, type_name) = (program::build_id().to_owned(), (entry.name)().to_owned());
        if place.is_none() && name.is_none() {
            return Err(StartError::OtherBuild { function: type_name });
        }
        Ok(Self::Anywhere { build, place, name, type_name })
    }

    /// The entry that lies at the place named, if the place is one of this build.
    pub(crate) fn at_place<C: Copy + 'static>(&self) -> Option<&'static Entry<C>> {
        let place = match self {
            Self::Place(place) => Some(*place),
            Self::Anywhere { build, place, .. } => place.filter(|_| build == program::build_id()),
        };
        Entry::at(place?, program::contains)
    }

    /// The task that this names.
    pub(crate) fn task(&self) -> Result<&'static Entry<TaskCode>, String> {
        if let Some(entry) = self.at_place() {
            return Ok(entry);
        }
        match self {
            Self::Place(_) => Err("no function lies at this place of the program".to_owned()),
            Self::Anywhere { name: Some(name), .. } => {
                names().by_name.get(name.as_str()).copied().ok_or_else(|| {
                    format!("no function is registered as `{name}` in this program: see `register!`")
                })
            }
            Self::Anywhere { type_name, .. } => Err(format!(
                "another build of the program, and `{type_name}` has no name there: register it in both with `register!`"
            )),
        }
    }
}

/// What `register!` collects at link time.
#[doc(hidden)]
#[derive(Debug)]
pub struct Registration {
    name: &'static str,
    entry: &'static Entry<TaskCode>,
}

impl Registration {
    /// Called by `register!` alone.
    pub const fn new<F: Task<A, M>, A: Message, M: 'static>(name: &'static str, function: F) -> Self {
        Self { name, entry: task_entry(function) }
    }
}

inventory::collect!(Registration);

/// Gives functions names, for processes that run another build of the program (under
/// `set_executable`) and for the network, where addresses never go.
///
/// The name is the module's path and the function's, so both sides must have it at the same place.
///
/// ```
/// fn square(x: u64) -> u64 { x * x }
/// fn cube(x: u64) -> u64 { x * x * x }
/// tokio_multiprocess::register!(square, cube);
///
/// # fn main() {
/// assert!(tokio_multiprocess::Func::new(square).name().ends_with("::square"));
/// # }
/// ```
#[macro_export]
macro_rules! register {
    ($($function:path),+ $(,)?) => {
        $(
            $crate::__private::inventory::submit! {
                $crate::__private::Registration::new(
                    ::core::concat!(::core::module_path!(), "::", ::core::stringify!($function)),
                    $function,
                )
            }
        )+
    };
}

struct Names {
    by_name: HashMap<&'static str, &'static Entry<TaskCode>>,
    /// Keyed by type: the linker may fold two functions into one address.
    by_type: HashMap<TypeId, &'static str>,
}

fn names() -> &'static Names {
    static NAMES: OnceLock<Names> = OnceLock::new();
    NAMES.get_or_init(|| {
        let all = || inventory::iter::<Registration>.into_iter();
        Names {
            by_name: all().map(|found| (found.name, found.entry)).collect(),
            by_type: all().map(|found| ((found.entry.type_id)(), found.name)).collect(),
        }
    })
}

/// A function as a value: it can be stored, sent in a message, and called where it arrives.
///
/// ```
/// use tokio_multiprocess::Func;
///
/// let double: Func<(u64,), u64> = Func::new(|x: u64| 2 * x);
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// assert_eq!(double.call((21,)).await.unwrap(), 42);
/// # });
/// ```
pub struct Func<Args, R> {
    entry: &'static Entry<TaskCode>,
    signature: PhantomData<fn(Args) -> R>,
}

impl<Args: Message, R: Message> Func<Args, R> {
    /// A function item or a closure without captures.
    pub fn new<F: Task<Args, M, Value = R>, M: 'static>(function: F) -> Self {
        Self { entry: task_entry(function), signature: PhantomData }
    }

    /// Calls it in this process. Arguments and result pass through the codec, as they would on
    /// their way to another process.
    ///
    /// # Errors
    /// As a task's: what it returned, or what cannot be encoded or decoded. A panic goes through
    /// to the caller.
    ///
    /// # Cancel safety
    /// Dropping the future drops an async function where it stands.
    pub async fn call(&self, args: Args) -> Result<R, TaskError> {
        let mut bytes = Vec::new();
        let attachments = encode(&args, &mut bytes, Peer::SameBuild)
            .map_err(|error| TaskError::NotStarted(NotStarted::Unencodable(error)))?;
        let (value, result) = match self.begin(&bytes, owned(attachments)) {
            Ok(written) => written,
            Err(future) => future.await,
        };
        let attachments = result.map_err(TaskFailure::into_error)?;
        decode(Incoming { bytes: &value, attachments: owned(attachments) }).map_err(TaskError::Undecodable)
    }
}

impl<Args, R> Func<Args, R> {
    /// Calls it; the future of an async function is to be awaited.
    fn begin(&self, bytes: &[u8], attachments: Vec<Fd>) -> Result<Written, BoxFuture<Written>> {
        let mut value = Vec::new();
        match (self.entry.code)(Incoming { bytes, attachments }, &mut value) {
            TaskRun::Done(result) => Ok((value, result)),
            TaskRun::Pending(future) => Err(future),
            // It cannot go to another thread, as this call may.
            TaskRun::Here(_) => {
                let why = "a function that waits with a worker's state in its hands is called by a pool only";
                Ok((value, Err(TaskFailure::State(why.to_owned()))))
            }
        }
    }

    /// The registered name, else the name of the function's type.
    pub fn name(&self) -> &'static str {
        names().by_type.get(&(self.entry.type_id)()).copied().unwrap_or_else(self.entry.name)
    }

    pub(crate) fn entry(&self) -> &'static Entry<TaskCode> {
        self.entry
    }
}

/// A message that never left this process still owns what was attached to it.
fn owned(attachments: crate::reduction::Attachments) -> Vec<Fd> {
    attachments.into_iter().filter_map(|attachment| attachment.into_fd().ok()).collect()
}

impl TaskFailure {
    /// What the caller of the task gets.
    pub(crate) fn into_error(self) -> TaskError {
        match self {
            Self::Arguments(reason) => TaskError::NotStarted(NotStarted::Arguments(reason)),
            Self::State(why) => TaskError::NotStarted(NotStarted::State(why)),
            Self::Returned(error) => TaskError::Returned(error),
            Self::Unencodable { reason, value } => TaskError::Unencodable { reason, value },
        }
    }
}

impl<Args, R> Clone for Func<Args, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Args, R> Copy for Func<Args, R> {}

/// Two are equal if they are the same function.
impl<Args, R> PartialEq for Func<Args, R> {
    fn eq(&self, other: &Self) -> bool {
        self.entry.same(other.entry)
    }
}

impl<Args, R> Eq for Func<Args, R> {}

impl<Args, R> fmt::Debug for Func<Args, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Func").field(&self.name()).finish()
    }
}

impl<Args, R> Serialize for Func<Args, R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let id = FnId::of(self.entry, peer()).map_err(S::Error::custom)?;
        Serialize::serialize(&id, serializer)
    }
}

impl<'de, Args, R> Deserialize<'de> for Func<Args, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = <FnId as Deserialize>::deserialize(deserializer)?;
        let entry = id.task().map_err(D::Error::custom)?;
        Ok(Self { entry, signature: PhantomData })
    }
}

#[cfg(all(test, multiprocess))]
mod tests {
    use super::*;
    use crate::reduction::{CodecError, MessagePack, decode_from, encode_uncommitted};

    type Unary = Func<(u64,), u64>;

    fn half(x: u64) -> u64 {
        x / 2
    }
    crate::register!(half);

    fn nameless(x: u64) -> u64 {
        x
    }

    fn written(f: fn() -> Unary, peer: Peer) -> Result<Vec<u8>, CodecError> {
        let mut bytes = Vec::new();
        encode_uncommitted::<MessagePack, _>(&f(), &mut bytes, peer).map(|_| bytes)
    }

    fn read(bytes: &[u8], peer: Peer) -> Result<Unary, CodecError> {
        decode_from::<MessagePack, _>(Incoming::bytes(bytes), peer)
    }

    #[test]
    fn a_stranger_gets_a_name_and_nothing_else() {
        let bytes = written(|| Func::new(half), Peer::Stranger).unwrap();
        assert_eq!(read(&bytes, Peer::Stranger).unwrap(), Func::new(half));
        let decoded: FnId = decode(Incoming::bytes(&bytes)).unwrap();
        let FnId::Anywhere { build, place: None, name: Some(_), type_name } = decoded else {
            panic!("{decoded:?}")
        };
        assert_eq!(build + &type_name, "");
        let error = written(|| Func::new(nameless), Peer::Stranger).unwrap_err().to_string();
        assert!(error.contains("nameless") && error.contains("register!"), "{error}");
    }

    #[test]
    fn an_address_that_a_stranger_names_is_not_called() {
        for peer in [Peer::SameBuild, Peer::AnyBuild] {
            let bytes = written(|| Func::new(nameless), peer).unwrap();
            assert_eq!(read(&bytes, peer).unwrap(), Func::new(nameless));
            assert!(read(&bytes, Peer::Stranger).is_err());
            assert!(rmp_serde::from_slice::<Unary>(&bytes).is_err());
        }
        // What has a name beside its address is found by that.
        let bytes = written(|| Func::new(half), Peer::AnyBuild).unwrap();
        assert_eq!(read(&bytes, Peer::Stranger).unwrap(), Func::new(half));
    }
}
