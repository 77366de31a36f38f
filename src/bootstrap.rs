//! What every child does, from its first instruction to its exit code.
//!
//! A child of any start method has a socket to its parent, and on it an [`Order`]. The methods
//! differ in how it gets there: `spawn` by the start-up hook or `freeze_support`, the fork server
//! and `fork` by a copy of a process. From [`run`] on all are alike.

use crate::sys::{AsFd, AsRawFd, RawFd};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use tokio::runtime::Runtime;

use crate::context::StartMethod;
use crate::control::{self, Guarded, Letter, Order, Report, Work};
use crate::error::{Error, Result};
use crate::function::{TargetCode, TargetRun, TaskCode};
use crate::process::{Identity, Leaving, Phase, leave, remote_task, set_leaving, set_phase};
use crate::reduction::{Descriptor, Incoming};
use crate::sys::image::Entry;
use crate::sys::per_process::PerProcess;
use crate::sys::socket::Mode;
use crate::sys::{self, Fd, program};

/// The number that a spawned child's control socket has.
pub(crate) const CONTROL: RawFd = 3;

/// What a child finds in its environment: `version:build:who runs it`.
pub(crate) fn order_variable(with_hook: bool) -> String {
    variable(program::build_id(), with_hook)
}

/// The same for a resource tracker, for which any build will do.
pub(crate) fn tracker_variable(with_hook: bool) -> String {
    variable(TRACKER, with_hook)
}

/// Stands where a build does, and is none.
const TRACKER: &str = "tracker";

fn variable(build: &str, with_hook: bool) -> String {
    let who = if with_hook { "hook" } else { "main" };
    format!("{}={}:{build}:{who}", sys::init::VARIABLE, env!("CARGO_PKG_VERSION"))
}

/// Called before `main`, in a process whose environment says that it is a child.
#[cfg(all(feature = "init-hook", multiprocess))]
pub(crate) fn from_hook(order: &str, run_entries_after: impl FnOnce()) {
    // Its parent has asked for `freeze_support` instead: the variable stays for that.
    if order.ends_with(":hook") {
        enter(order, run_entries_after);
    }
}

/// In a child, runs it and does not return; anywhere else it does nothing.
///
/// Needed, first thing in `main`, only without the feature `init-hook` or after
/// [`require_freeze_support`].
pub fn freeze_support() {
    let Some(order) = sys::init::order() else { return };
    if sys::process::thread_count().is_ok_and(|threads| threads > 1) {
        eprintln!(
            "`freeze_support` must be the first thing in `main`, before any runtime or thread is started"
        );
        sys::process::exit_now(1);
    }
    enter(&order, || {});
}

/// Has children of this process wait for [`freeze_support`] although the start-up hook is built
/// in: for programs whose `main` must set something up before a child's target runs, in a build
/// where another crate turned the feature on.
pub fn require_freeze_support() {
    let _ = HOOK_REFUSED.get().set(());
}

static HOOK_REFUSED: PerProcess<OnceLock<()>> = PerProcess::new(OnceLock::new);

/// Whether children are to be run by the start-up hook.
pub(crate) fn uses_hook() -> bool {
    cfg!(feature = "init-hook") && HOOK_REFUSED.get().get().is_none()
}

/// The beginning of a child that was executed.
fn enter(order: &str, run_entries_after: impl FnOnce()) -> ! {
    // Before anything else: what this process starts must not take itself for this child.
    sys::env::unset_env(sys::init::VARIABLE.as_ref());
    set_phase(Phase::Bootstrapping);
    // Somebody may have set the variable by hand: then there is nobody to tell.
    let control = match sys::fd::from_raw_checked(CONTROL) {
        Ok(control) if sys::socket::is_seqpacket(CONTROL) => control,
        _ => sys::process::exit_now(1),
    };
    // Libraries in the parent may have opened descriptors without the close-on-exec flag.
    sys::fd::close_from(CONTROL + 1);
    let _ = sys::fd::sanitize_stdio();
    sys::signal::default_sigpipe_ignored();
    let mut parts = order.split(':');
    let (version, build) = (parts.next(), parts.next());
    if version != Some(env!("CARGO_PKG_VERSION")) {
        let ours = env!("CARGO_PKG_VERSION");
        let theirs = version.unwrap_or_default();
        refuse(&control, format!("its program has version {ours} of this crate, its parent {theirs}"));
    }
    if build == Some(TRACKER) {
        crate::resource_tracker::run(control);
    }
    if build != Some(program::build_id()) {
        crate::reduction::set_other_build_than_parent();
    }
    let start = Start::receive(control);
    run_entries_after();
    run(start, true)
}

/// Tells the parent why this child cannot run, and ends it.
pub(crate) fn refuse(control: &Fd, why: String) -> ! {
    let _ = control::send(control.as_fd(), &Report::Refused(why), &[], Vec::new(), Mode::Wait);
    sys::process::exit_now(1)
}

/// What a target is given: code, found, and its arguments.
enum Found {
    Nothing,
    Target(&'static Entry<TargetCode>),
    Task(&'static Entry<TaskCode>),
    /// A target that was found by its name, and so as a task, whose value nobody wants.
    TaskAsTarget(&'static Entry<TaskCode>),
}

fn find(work: &Work) -> std::result::Result<Found, String> {
    match work {
        Work::Nothing => Ok(Found::Nothing),
        Work::Task(id) => id.task().map(Found::Task),
        Work::Target(id) => match id.at_place() {
            Some(entry) => Ok(Found::Target(entry)),
            None => id.task().map(Found::TaskAsTarget),
        },
    }
}

/// A child that knows what it is to become.
pub(crate) struct Start {
    control: Fd,
    order: Letter<Order>,
    /// Of a worker: its guardian, which is what its parent waits for.
    guardian: Option<i32>,
}

impl Start {
    /// Waits for the order on `control`. A worker comes back from here as a copy, which its
    /// guardian has made: so before any thread, and before anything that is best done once.
    pub(crate) fn receive(control: Fd) -> Self {
        let order = match control::receive::<Order>(control.as_fd(), Mode::Wait) {
            Ok(Some(order)) => order,
            // The parent is gone, or has given up.
            Ok(None) => sys::process::exit_now(1),
            Err(error) => refuse(&control, format!("its order cannot be read: {error}")),
        };
        // A copy would lack other threads, which a constructor may have started.
        let alone = sys::process::thread_count().is_ok_and(|threads| threads == 1);
        let guarded = order.head.worker && alone && !sys::without(sys::Mechanism::Guardian);
        let guardian = guarded.then(|| match sys::guardian::split(control.as_fd()) {
            Ok(guardian) => guardian,
            Err(error) => refuse(&control, format!("no guardian can be put before it: {error}")),
        });
        set_phase(Phase::Bootstrapping);
        // Here, where this is the main thread, whose name is the process's.
        sys::process::set_title(&order.head.name);
        Self { control, order, guardian }
    }
}

/// Becomes the child that the order describes, runs its target, and ends.
///
/// `own_handlers` says whether C's exit handlers are this process's own.
pub(crate) fn run(start: Start, own_handlers: bool) -> ! {
    let Start { control, order, guardian } = start;
    set_phase(Phase::Bootstrapping);
    let debugged = order.head.debugged;
    let (order, bytes, attachments) = order.split();
    let found = find(&order.work);
    if let Err(error) = settle(order, &control) {
        refuse(&control, error.to_string());
    }
    let found = match found {
        Ok(found) => found,
        Err(why) => refuse(&control, why),
    };
    let pid = sys::process::getpid();
    let ready = match guardian {
        Some(guardian) => {
            // Where there are no pidfds the guardian is asked instead.
            let pidfd = sys::process::pidfd_open(pid).ok().map(Descriptor::new);
            Report::Ready { pid: guardian, ward: Some(Guarded { pid, pidfd }) }
        }
        None => Report::Ready { pid, ward: None },
    };
    if control::send(control.as_fd(), &ready, &[], Vec::new(), Mode::Wait).is_err() {
        // Its start was given up.
        sys::process::exit_now(1);
    }
    set_leaving(Leaving { control, run_handlers: own_handlers });
    set_phase(Phase::Running);
    if debugged {
        wait_for_debugger();
    }
    let args = Incoming { bytes: &bytes, attachments };
    // The report of a panic was printed by the panic hook.
    let code = catch_unwind(AssertUnwindSafe(|| call(found, args))).unwrap_or(1);
    leave(code)
}

/// Says where it is, and goes on when a debugger is there. Looks for it now and then, as nothing
/// tells of it.
fn wait_for_debugger() {
    sys::worker::admit_debugger();
    eprintln!("{}: process {} waits for a debugger", current_name(), sys::process::getpid());
    while sys::worker::is_traced().is_ok_and(|traced| !traced) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn call(found: Found, args: Incoming<'_>) -> i32 {
    match found {
        Found::Nothing => 0,
        Found::Target(entry) => match (entry.code)(args) {
            Ok(TargetRun::Done(code)) => i32::from(code),
            Ok(TargetRun::Pending(future)) => i32::from(drive(future)),
            Err(error) => {
                eprintln!(
                    "{}: the arguments of {} cannot be decoded: {error}",
                    current_name(),
                    (entry.name)()
                );
                1
            }
        },
        Found::Task(entry) => remote_task(entry, args),
        Found::TaskAsTarget(entry) => {
            let (_, result) = crate::function::finish((entry.code)(args, &mut Vec::new()), drive);
            match result {
                Ok(_) => 0,
                Err(failure) => {
                    eprintln!("{}: {}", current_name(), failure.into_error());
                    1
                }
            }
        }
    }
}

fn current_name() -> String {
    crate::process::current_process().name()
}

/// Takes its place: descriptors, directory, environment, group, identity.
fn settle(mut order: Order, control: &Fd) -> std::io::Result<()> {
    for (stream, place) in [(order.stdout.take(), 1), (order.stderr.take(), 2)] {
        if let Some(stream) = stream {
            sys::fd::dup2_onto(stream.into_fd()?, place)?;
        }
    }
    if let Some(directory) = &order.surroundings.directory {
        // It may be gone, as it may be for the parent itself.
        let _ = std::env::set_current_dir(directory);
    }
    if let Some(variables) = &order.surroundings.environment {
        sys::env::replace_environment(variables);
    }
    if order.daemon {
        // A terminal's signals are for the parent, and with the group dies what the child started.
        sys::process::set_own_group()?;
    } else if order.method == StartMethod::ForkServer {
        // Not the server's group, which is killed with it. Impossible if the parent has begun a
        // session since the server started.
        sys::process::join_group_of(order.parent.pid).or_else(|_| sys::process::set_own_group())?;
    }
    if order.worker {
        sys::signal::ignore_group_signals();
        sys::worker::offer_to_oom_killer();
    }
    if !order.core_files {
        sys::worker::leave_no_core();
    }
    if let Some(lifeline) = order.lifeline.take() {
        let lifeline = lifeline.into_fd()?;
        let armed = sys::orphan::die_with(lifeline.as_fd(), true).map_err(|error| {
            // What the kernel says names neither the file nor why it is opened.
            std::io::Error::other(format!(
                "it cannot be made to die with its parent (in /proc/self/fd): {error}"
            ))
        })?;
        let _ = LIFELINE.get().set(armed);
    }
    sys::fault::install(control.as_raw_fd());
    guard_thread();
    crate::log::set_level_from_parent(order.log_level);
    crate::context::inherit(order.method, order.executable.take());
    crate::resource_tracker::inherit(order.tracker.take());
    Identity::become_child(order)
}

/// Gives this thread a stack for signal handlers. Without one a stack overflow still ends this
/// process alone, only without a word.
pub(crate) fn guard_thread() {
    let _ = sys::fault::guard_thread();
}

/// Stays open as long as the process lives: closed, it would not bring its end.
static LIFELINE: PerProcess<OnceLock<Fd>> = PerProcess::new(OnceLock::new);

/// The runtime of sync code: one per process, made when it is first needed, since a child that
/// needs none starts twice as fast. It is driven by the threads that block on it.
fn runtime() -> std::io::Result<Arc<Runtime>> {
    static RUNTIME: PerProcess<OnceLock<Arc<Runtime>>> = PerProcess::new(OnceLock::new);
    let own = OWN_RUNTIME.with_borrow(Clone::clone);
    let cell = own.as_deref().unwrap_or_else(|| RUNTIME.get());
    if let Some(runtime) = cell.get() {
        return Ok(runtime.clone());
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(guard_thread).build()?;
    Ok(cell.get_or_init(|| Arc::new(runtime)).clone())
}

thread_local! {
    static OWN_RUNTIME: RefCell<Option<Rc<OnceLock<Arc<Runtime>>>>> = const { RefCell::new(None) };
}

/// Gives this thread a runtime for its sync code that it shares with no other, for as long as `run`
/// takes: a future that blocks must not hold up those of other threads.
pub(crate) fn with_own_runtime<T>(run: impl FnOnce() -> T) -> T {
    struct Restore(Option<Rc<OnceLock<Arc<Runtime>>>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OWN_RUNTIME.set(self.0.take());
        }
    }
    let _restore = Restore(OWN_RUNTIME.replace(Some(Rc::default())));
    run()
}

/// Waits for a future where there is no runtime.
pub(crate) fn drive<F: Future>(future: F) -> F::Output {
    match runtime() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => panic!("cannot make a runtime to wait on: {error}"),
    }
}

/// Waits for a future in sync code: in a sync target or task, or in a `main` without a runtime.
/// Every such call in a process shares one current-thread runtime, which makes progress while
/// somebody blocks on it.
///
/// ```
/// use tokio_multiprocess::{Result, block_on, pipe};
///
/// fn main() -> Result<()> {
///     let (mut here, mut there) = pipe()?;
///     // The inner error is of `send`, the outer one of waiting: SIGINT may come meanwhile.
///     block_on(here.send("hello"))??;
///     let text: String = block_on(there.recv())??;
///     assert_eq!(text, "hello");
///     Ok(())
/// }
/// ```
///
/// # Errors
/// [`Error::Interrupted`] if SIGINT arrives meanwhile; the future is dropped. Only where SIGINT
/// would end the process: a program that handles or ignores it has decided otherwise, and a
/// pool's worker ignores it.
///
/// # Panics
/// In async code, as Tokio's own does: `.await` the future there, or move the sync part to
/// `spawn_blocking`.
pub fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let interrupt = sys::interrupt::Interrupt::watch()?;
    runtime()?.block_on(async {
        let Some(interrupt) = &interrupt else { return Ok(future.await) };
        tokio::select! {
            biased;
            output = future => Ok(output),
            signal = crate::reactor::readable(interrupt.descriptor()) => {
                interrupt.take();
                signal?;
                Err(Error::Interrupted)
            }
        }
    })
}
