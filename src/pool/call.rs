//! What is called, and how: the parts that all kinds of calls share.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::result::Callbacks;
use super::scheduler::{Class, Spec};
use crate::error::StartError;
use crate::function::{FnId, TaskCode};
use crate::reduction::{Incoming, Message, Peer, decode};
use crate::sys::image::Entry;
use crate::util::lock;

/// A function, as a pool's workers can find it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    id: u64,
    function: Result<FnId, String>,
    name: &'static str,
    defaults: Defaults,
}

/// What holds for a pool's calls that do not say otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Defaults {
    pub(super) timeout: Option<Duration>,
    pub(super) memory_limit: Option<u64>,
    pub(super) kill_on_drop: bool,
}

impl Call {
    /// `id` is the number of the job to be.
    pub(super) fn new(id: u64, entry: &'static Entry<TaskCode>, peer: Peer, defaults: Defaults) -> Self {
        let function = FnId::of(entry, Some(peer)).map_err(|error: StartError| error.to_string());
        Self { id, function, name: (entry.name)(), defaults }
    }
}

/// Who hears what a task reports while it runs.
#[derive(Clone)]
pub(super) struct OnProgress(Arc<Mutex<Listener>>);

type Listener = dyn FnMut(&[u8]) + Send;

impl OnProgress {
    pub(super) fn new<P: Message>(mut listener: impl FnMut(P) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(move |report: &[u8]| match decode::<P>(Incoming::bytes(report)) {
            Ok(report) => listener(report),
            Err(error) => crate::log::warn(format_args!("a task's progress cannot be decoded: {error}")),
        })))
    }

    pub(super) fn hear(&self, report: &[u8]) {
        // Foreign code, all of it.
        if catch_unwind(AssertUnwindSafe(|| lock(&self.0)(report))).is_err() {
            crate::log::warn(format_args!("a pool's progress callback panicked"));
        }
    }
}

impl fmt::Debug for OnProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnProgress")
    }
}

/// The options that all kinds of calls have. Each kind has a `with` that sets one.
macro_rules! common_options {
    () => {
        /// How long each item may run, by the kernel's clock; time in the queue does not count.
        /// Then its worker is killed with all that the task has started, and the error is
        /// [`TaskError::TimedOut`](crate::TaskError::TimedOut).
        pub fn timeout(self, timeout: std::time::Duration) -> Self {
            self.with(|options| options.timeout = Some(timeout))
        }

        /// How much more memory the worker and the processes that it has started may come to hold,
        /// in bytes, at least one, while an item runs, than when the item began. At more it is killed, and the
        /// error is [`TaskError::MemoryLimit`](crate::TaskError::MemoryLimit). In place of
        /// [the pool's](crate::PoolBuilder::memory_limit), which says how it is found out.
        pub fn memory_limit(self, bytes: u64) -> Self {
            self.with(|options| options.memory_limit = Some(bytes.max(1)))
        }

        /// Tasks of a higher priority go first, 0 being that of all others. What runs is not
        /// interrupted, and workers hold up to a millisecond of work that they have not begun.
        /// As long as tasks of a higher priority keep all workers busy, the others wait.
        pub fn priority(self, priority: i32) -> Self {
            self.with(|options| options.class.priority = priority)
        }

        /// Whose task this is. Among tasks of one priority each key gets a fair share of the
        /// workers' time, however many tasks it has and however long they take; tasks without a key
        /// share one share. A key costs nothing once its tasks are done: it may name a tenant, a
        /// user, or one request.
        pub fn key(self, key: impl Into<std::sync::Arc<str>>) -> Self {
            let key = key.into();
            self.with(|options| options.class.key = Some(key))
        }

        /// Hears what the task reports while it runs, by
        /// [`mp::task::progress`](crate::task::progress). The types must agree: a report that is no
        /// `P` is logged and goes. It should be quick, as the pool's supervisor runs it. A panic in
        /// it is caught and logged. Reports of an attempt whose worker dies are heard as well, and
        /// all come before the result.
        pub fn progress<P, F>(self, listener: F) -> Self
        where
            P: crate::Message,
            F: FnMut(P) + Send + 'static,
        {
            self.with(|options| options.progress = Some(super::call::OnProgress::new(listener)))
        }

        /// Dropping this before its end kills what runs, each worker with all that it has started.
        pub fn kill_on_drop(self) -> Self {
            self.with(|options| options.kill_on_drop = true)
        }
    };
}
pub(super) use common_options;

/// The option of those calls that may run more than once.
macro_rules! retry_option {
    () => {
        /// How often an item is run again if its worker dies while it runs, or is killed by the
        /// timeout or the memory limit. With this it may run more than once: "at least once".
        pub fn retries(self, retries: u32) -> Self {
            self.with(|options| options.retries = retries)
        }
    };
}
pub(super) use retry_option;

/// What a caller chooses.
pub(super) struct Options<R> {
    pub(super) timeout: Option<Duration>,
    pub(super) memory_limit: Option<u64>,
    pub(super) retries: u32,
    pub(super) class: Class,
    pub(super) kill_on_drop: bool,
    pub(super) progress: Option<OnProgress>,
    pub(super) chunk_size: Option<usize>,
    pub(super) buffer_size: Option<usize>,
    /// Behind a lock that nobody takes, as they need not be `Sync`.
    callbacks: Mutex<Callbacks<R>>,
}

impl<R> Default for Options<R> {
    fn default() -> Self {
        Self {
            timeout: None,
            memory_limit: None,
            retries: 0,
            class: Class::default(),
            kill_on_drop: false,
            progress: None,
            chunk_size: None,
            buffer_size: None,
            callbacks: Mutex::default(),
        }
    }
}

impl<R> Options<R> {
    pub(super) fn callbacks(&mut self) -> &mut Callbacks<R> {
        self.callbacks.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn into_callbacks(self) -> Callbacks<R> {
        self.callbacks.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn kills_on_drop(&self, call: &Call) -> bool {
        self.kill_on_drop || call.defaults.kill_on_drop
    }

    pub(super) fn spec(&self, call: &Call) -> Spec {
        let Call { id, function, name, defaults } = call.clone();
        Spec {
            id,
            function,
            name,
            timeout: self.timeout.or(defaults.timeout),
            memory_limit: self.memory_limit.or(defaults.memory_limit),
            retries: self.retries,
            class: self.class.clone(),
            progress: self.progress.clone(),
        }
    }
}
