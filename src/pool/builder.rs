//! A pool in the making.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Pool;
use super::call::{Call, Defaults, Options};
use super::feed::{Piece, single};
use super::output::Output;
use super::scheduler::{Scheduler, Size, Spec};
use super::shared::{Owner, Shared};
use super::supervisor::{Recipe, Supervisor};
use super::wire::{Body, ITEM_HEAD, Preparation};
use crate::context::{Context, get_executable};
use crate::error::{Error, NotStarted, Result, TaskError};
use crate::function::{Always, Load, Task, TaskCode, Trying, load_entry, task_entry};
use crate::process::usable_cpu_count;
use crate::reduction::{Message, Peer, encode_for_several};
use crate::sys::cgroup::Parent;
use crate::sys::image::Entry;
use crate::sys::{self, Mechanism, without};
use crate::testing::{Faults, Plan};
use crate::util::lock;

/// How long a worker that is not wanted may be idle.
const IDLE: Duration = Duration::from_secs(60);

/// A pool in the making: see [`Pool::builder`].
#[derive(Debug, Default)]
#[must_use = "a pool starts only with `build().await`"]
pub struct PoolBuilder {
    context: Context,
    processes: Option<usize>,
    initializer: Option<Result<Prepared, TaskError>>,
    state: Option<Result<Prepared, TaskError>>,
    start_timeout: Option<Duration>,
    max_tasks: Option<usize>,
    timeout: Option<Duration>,
    memory_limit: Option<u64>,
    kill_on_drop: bool,
    max_memory: Option<u64>,
    min_processes: Option<usize>,
    idle_timeout: Option<Duration>,
    spares: Option<usize>,
    lazy: bool,
    fresh: bool,
    max_pending: Option<usize>,
    key_limit: Option<usize>,
    quarantine: Option<(u32, Duration)>,
    name: Option<String>,
    faults: Option<Faults>,
    output: Output,
    core_files: bool,
    cgroup: Option<PathBuf>,
    in_process: bool,
}

impl PoolBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The context whose start method its workers get.
    pub fn context(mut self, context: Context) -> Self {
        self.context = context;
        self
    }

    /// How many tasks may run at a time, at least one, and so how many workers it has unless other
    /// settings say otherwise. By default as many as this process may use
    /// processors: [`usable_cpu_count`].
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = Some(processes);
        self
    }

    /// What each worker runs before its first task, to set up what `main` would have: tracing,
    /// configuration, models. One that fails or panics costs the worker; if they all do, the pool
    /// gives up for the time being, and says why.
    pub fn initializer<F, A, M>(mut self, f: F, args: A) -> Self
    where
        F: Task<A, M>,
        A: Message,
        M: 'static,
    {
        self.initializer = Some(prepare(Preparation::Initializer, task_entry(f), &args));
        self
    }

    /// A value that each worker makes once, after its initializer and before its first task, and
    /// holds for its tasks: a model, a connection, a cache. It stays in the worker, so it need be
    /// neither a message nor `Send`. Tasks take it as `&mut S` before their arguments; those that
    /// are closures over items, as in [`Pool::map`], borrow it by
    /// [`task::with_state`](crate::task::with_state).
    ///
    /// A worker that panics here is replaced, as with the initializer. A task that panics with the
    /// state in its hands costs the worker: a new one loads it afresh.
    ///
    /// It is dropped when its worker ends in an orderly way, before [finalizers](crate::util::Finalize) run,
    /// and not when that is killed or ends itself.
    ///
    /// ```
    /// use tokio_multiprocess as mp;
    ///
    /// struct Counter { step: u64, sum: u64 }
    ///
    /// fn add(counter: &mut Counter, n: u64) -> u64 {
    ///     counter.sum += counter.step * n;
    ///     counter.sum
    /// }
    ///
    /// #[tokio::main]
    /// async fn main() -> mp::Result<()> {
    ///     let load = |step: u64| Counter { step, sum: 0 };
    ///     let pool = mp::Pool::builder().processes(1).state(load, (10,)).build().await?;
    ///     pool.apply(add, (1,)).await?;
    ///     assert_eq!(pool.apply(add, (2,)).await?, 30);
    ///     Ok(())
    /// }
    /// ```
    pub fn state<F, A, S>(mut self, load: F, args: A) -> Self
    where
        F: Load<A, Always<S>>,
        A: Message,
        S: 'static,
    {
        self.state = Some(prepare(Preparation::State, load_entry(load), &args));
        self
    }

    /// As [`state`](Self::state), with a function that may fail: it returns
    /// `Result<S, `[`Failure`](crate::Failure)`>`, a `Result` with a boxed error, or a future of one.
    /// A worker that fails is reported and replaced; if they all do, the pool gives up for the time
    /// being, and says why.
    pub fn try_state<F, A, M>(mut self, load: F, args: A) -> Self
    where
        F: Load<A, Trying<M>>,
        A: Message,
        M: 'static,
    {
        self.state = Some(prepare(Preparation::State, load_entry(load), &args));
        self
    }

    /// How long a worker's process may run until the worker is ready, by the kernel's clock: that is
    /// what its initializer and the load of its state have. Then it is killed, which counts as a
    /// start that failed: others are tried, and the pool is broken if that goes on. By default
    /// there is no limit, and one that hangs there is waited for. What the fork server preloads
    /// does not count.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// After how many tasks a worker is replaced by a fresh one, at least one.
    #[doc(alias = "maxtasksperchild")]
    pub fn max_tasks_per_child(mut self, tasks: usize) -> Self {
        self.max_tasks = Some(tasks);
        self
    }

    /// How long each item of a call may run that has no [`timeout`](super::Apply::timeout) of its own.
    /// [`Duration::MAX`] in a call is as good as none.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Has all calls [killed when they are dropped](super::Apply::kill_on_drop) before their end, also
    /// those that were submitted and whose result nobody keeps.
    pub fn kill_on_drop(mut self) -> Self {
        self.kill_on_drop = true;
        self
    }

    /// How much more memory a worker and the processes that it has started may come to hold, in
    /// bytes, while it runs a task, than when the task began: for calls that have no limit of their
    /// own. At more they are killed, and the error is [`TaskError::MemoryLimit`].
    ///
    /// What counts is anonymous memory, in core or swapped out: of the worker all, of processes
    /// below it what they share with nobody. What the worker held before, such as what its
    /// initializer has loaded, does not.
    ///
    /// The pool looks every 10 ms, and as often as every millisecond where the limit is near, so a
    /// task that grows by 1 GB in a second overshoots by about 1 to 10 MB, and one that has ended
    /// before the first look was not looked at. Beside that the soft `RLIMIT_DATA` is lowered while
    /// the task runs, to twice the limit and 64 MiB beyond what is mapped: a single allocation
    /// beyond that fails at once, by which a Rust program aborts, and that is the same error.
    /// A program that the task starts inherits this.
    ///
    /// In a [control group](Self::cgroup) with the memory controller, which may be found without being
    /// asked for, the kernel counts more: also page cache and memfds, so that a task that returns a
    /// [`Blob`](crate::Blob) larger than its limit is killed there and nowhere else.
    ///
    /// Without `/proc` there is no limit, and none in an [in-process](Self::in_process) pool.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Replaces a worker by a fresh one once it holds more than so many bytes, at least one, of
    /// anonymous memory: what it has allocated, not what it has mapped of files. It is looked at
    /// between two tasks, at most once in a millisecond, so what a task needs only while it runs
    /// does not count: that is [`memory_limit`](Self::memory_limit)'s. What the worker holds from
    /// the start does: with less than that each task gets a worker of its own.
    ///
    /// Without `/proc` in the worker nothing is looked at, and nothing in an
    /// [in-process](Self::in_process) pool.
    pub fn max_memory_per_child(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Makes the pool elastic: it starts with so many workers, zero allowed, has one more whenever
    /// a task waits and nobody is idle, up to [`processes`](Self::processes), and lets those go that
    /// were idle for the [`idle_timeout`](Self::idle_timeout).
    pub fn min_processes(mut self, processes: usize) -> Self {
        self.min_processes = Some(processes);
        self
    }

    /// How long a worker of an elastic pool has nothing to do before it goes, if more are there than
    /// [`min_processes`](Self::min_processes), by the kernel's clock; a minute by default. Given
    /// alone, it makes the pool elastic with one worker at the least.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Keeps so many workers more than may run tasks, started and initialized, which step in the
    /// moment that others die, are killed or are replaced. None by default.
    pub fn spares(mut self, spares: usize) -> Self {
        self.spares = Some(spares);
        self
    }

    /// Starts no worker before the first task, or before [`Pool::ready`] is called; then all that
    /// there should be. [`build`](Self::build) returns at once.
    pub fn lazy(mut self) -> Self {
        self.lazy = true;
        self
    }

    /// Gives each item a worker of its own, which ends with it: nothing that one task leaves behind
    /// is there for the next. As many [`spares`](Self::spares) as [`processes`](Self::processes)
    /// are kept unless told otherwise, so that a task waits for a start only under heavy load.
    pub fn fresh_worker_per_task(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// How many tasks may wait for a worker, at least one; a chunk counts as one. Who awaits a call
    /// beyond that waits until there is room, and is no part of
    /// [`Stats::waiting`](super::Stats::waiting) before. Calls that are submitted do not wait for it. By
    /// default there is no limit: calls wait in this process's memory, however many they are.
    pub fn max_pending(mut self, tasks: usize) -> Self {
        self.max_pending = Some(tasks);
        self
    }

    /// How many workers, at least one, may hold tasks of one [`key`](super::Apply::key) at a time.
    /// Tasks without a key are not limited.
    pub fn key_limit(mut self, workers: usize) -> Self {
        self.key_limit = Some(workers);
        self
    }

    /// Keeps away what kills workers: a task (the same function with the same arguments) of which
    /// so many have died, at least one, no more than `time` apart, is refused for `time` with
    /// [`NotStarted::Quarantined`], and not [retried](super::Apply::retries) either. After that one
    /// is let through: if it gives an answer the task is free again, else it is refused for another
    /// `time`. Deaths by a timeout count, those by an abort do not.
    ///
    /// Arguments are the same if their bytes are, and the open files among them. Arguments of more
    /// than 32 KiB are never the same as those of another call; a [`Blob`](crate::Blob) is the same
    /// as its clones.
    pub fn quarantine(mut self, deaths: u32, time: Duration) -> Self {
        self.quarantine = Some((deaths, time));
        self
    }

    /// What its workers are called, with a number behind; `PoolWorker` by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What is to go wrong in its workers, for tests of what is built on it.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = Some(faults);
        self
    }

    /// Gives each worker a control group of its own, below this directory of cgroup v2, which must be
    /// this program's. Then whatever a worker has started is killed at one stroke, however fast it
    /// forks; and with the memory controller, which this enables for the directory if it can, the
    /// kernel itself keeps tasks to their [`memory_limit`](Self::memory_limit).
    ///
    /// Without this call a pool with a `memory_limit` looks whether its own group was delegated to
    /// it with that controller: marked so (`Delegate=yes` in systemd), or the root of a namespace.
    /// Only a group without processes of its own can have it, so with systemd use
    /// `DelegateSubgroup=` as well. To enter a group makes the start of a worker some milliseconds
    /// longer. Groups that could not be removed, since the program was killed, go when the next pool
    /// is built there.
    pub fn cgroup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(directory.into());
        self
    }

    /// What becomes of what its workers write to stdout and stderr; by default it goes where this
    /// process's goes. The end of stderr is in [`WorkerDied`](crate::WorkerDied) either way.
    pub fn output(mut self, output: Output) -> Self {
        self.output = output;
        self
    }

    /// Whether workers that crash may leave core files, as far as this process may: then its own
    /// limit is theirs (under `forkserver` the one that it had when the server started). By default
    /// they leave none, since writing one takes long, during which the worker is not replaced, and
    /// shows what was in its memory. A task can raise its soft `RLIMIT_CORE` again.
    pub fn core_files(mut self, core_files: bool) -> Self {
        self.core_files = core_files;
        self
    }

    /// Has its workers be threads of this process, for tests and for where no process may be
    /// started: in a daemon or a pool's worker, and in the debugger.
    ///
    /// It is the same pool but for what only a process can give. A thread cannot be killed: who
    /// awaits a task that timed out or was aborted hears of it at once, and a new thread takes its
    /// place, while the old one runs on, unheard, until its task ends. A crash, an `exit`, the
    /// memory that a task takes and what it does to statics are this process's. Nobody reads its
    /// stderr, and it has no process id. The start method means nothing to it. It needs Linux, as
    /// processes do.
    #[doc(alias = "ThreadPool")]
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }

    /// Starts it. Returns when the first worker is ready, if there is to be one from the start; the
    /// others are on their way, and [`Pool::ready`] waits for all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a number is 0 that must not be, or `min_processes` is more than
    /// `processes`; when no worker can be started, or each fails in its initializer; in a daemon,
    /// unless it is [in-process](Self::in_process).
    ///
    /// # Panics
    /// Outside of a Tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    /// Dropping the future ends what was started.
    pub async fn build(self) -> Result<Pool> {
        let processes = at_least_one("processes", Some(self.processes.unwrap_or_else(usable_cpu_count)))?;
        let max_tasks = at_least_one("max_tasks_per_child", self.max_tasks)?;
        let max_pending = at_least_one("max_pending", self.max_pending)?;
        let memory_limit = at_least_one("memory_limit", self.memory_limit)?;
        let max_memory = at_least_one("max_memory_per_child", self.max_memory)?;
        let key_limit = at_least_one("key_limit", self.key_limit)?;
        let start_timeout = at_least_one("start_timeout", self.start_timeout)?;
        at_least_one("quarantine", self.quarantine.map(|(deaths, _)| deaths as usize))?;
        let processes = processes.unwrap_or(1);
        let max_tasks = if self.fresh { Some(1) } else { max_tasks };
        let max_tasks = max_tasks.map(|tasks| u32::try_from(tasks).unwrap_or(u32::MAX));
        let size = self.size(processes)?;
        let cgroups = match &self.cgroup {
            _ if self.in_process || without(Mechanism::Cgroup) => None,
            Some(path) => Some(Parent::at(path)?),
            None if memory_limit.is_some() => Parent::delegated(),
            None => None,
        };
        let recipe = Recipe {
            context: self.context,
            preparations: self.initializer.into_iter().chain(self.state).collect::<Result<_, _>>()?,
            max_tasks,
            max_memory,
            faults: self.faults.map(Plan::new).transpose()?,
            output: self.output,
            core_files: self.core_files,
            cgroups: cgroups.map(Arc::new),
            in_process: self.in_process,
        };
        let timer = sys::fd::timerfd()?;
        let scheduler = Scheduler::new(size, max_tasks)
            .ordered(key_limit, self.quarantine)
            .starting_within(start_timeout);
        let shared = Arc::new(Shared::new(
            scheduler,
            timer.try_clone()?,
            processes,
            max_pending,
            Defaults { timeout: self.timeout, memory_limit, kill_on_drop: self.kill_on_drop },
            peer(),
            self.name.unwrap_or_else(|| "PoolWorker".to_owned()),
        ));
        let pool = Pool { owner: Owner::new(shared.clone()) };
        tokio::spawn(Supervisor::new(shared, recipe, timer)?.run());
        let ready = pool.until(|status| status.ready > 0 || status.wanted == 0).await;
        let start_error = lock(&pool.owner.shared().start_error).take();
        match (ready, start_error) {
            (Ok(()), _) => Ok(pool),
            // In its own words, which say more.
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(error),
        }
    }

    fn size(&self, most: usize) -> Result<Size> {
        let is_elastic = self.min_processes.is_some() || self.idle_timeout.is_some();
        let least = is_elastic.then(|| self.min_processes.unwrap_or(1));
        if least.is_some_and(|least| least > most) {
            return Err(Error::invalid("`min_processes` must not be more than `processes`"));
        }
        Ok(Size {
            most,
            least,
            spares: self.spares.or((!self.fresh).then_some(0)),
            idle: self.idle_timeout.unwrap_or(IDLE),
            asleep: self.lazy,
        })
    }
}

/// What a worker does before it takes runs, as it is told.
type Prepared = (Preparation, Spec, Body);

fn prepare<A: Message>(
    what: Preparation,
    entry: &'static Entry<TaskCode>,
    args: &A,
) -> Result<Prepared, TaskError> {
    let mut buffer = vec![0; ITEM_HEAD];
    let attachments = encode_for_several(args, &mut buffer, peer())
        .map_err(|error| TaskError::NotStarted(NotStarted::Unencodable(error)))?;
    match single(buffer, attachments) {
        Piece::Run { body, .. } => {
            Ok((what, Options::<()>::default().spec(&Call::new(0, entry, peer(), Defaults::default())), body))
        }
        Piece::Refused(error) => Err(error),
    }
}

/// Workers are of this build unless another program was chosen for them.
fn peer() -> Peer {
    if get_executable().is_some() { Peer::AnyBuild } else { Peer::SameBuild }
}

fn at_least_one<N: Default + PartialEq>(what: &str, number: Option<N>) -> Result<Option<N>> {
    match number {
        Some(number) if number == N::default() => Err(Error::invalid(format!("`{what}` must be at least 1"))),
        number => Ok(number),
    }
}
