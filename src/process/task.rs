//! One task in a process of its own: the value comes back.

use crate::sys::AsFd;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context as Waker, Poll};

use super::child::Answer;
use super::{Process, ProcessBuilder, exit};
use crate::bootstrap;
use crate::context::Context;
use crate::control::{self, Report, Work};
use crate::error::{Error, RemotePanic, Result, TaskError, WorkerDied};
use crate::function::{FnId, Task, TaskCode, finish, task_entry};
use crate::reactor;
use crate::reduction::{Incoming, Message, Peer, decode};
use crate::sys::image::Entry;
use crate::sys::socket::Mode;

/// Runs a function in a process of its own and gives a handle that its value comes back to.
///
/// ```no_run
/// use tokio_multiprocess as mp;
/// # async fn demo() -> mp::Result<()> {
/// let handle = mp::spawn(|a: u64, b: u64| a * b, (6, 7)).await?;
/// assert_eq!(handle.await?, 42);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`ProcessBuilder::start`].
///
/// # Cancel safety
/// As [`ProcessBuilder::start`].
pub async fn spawn<F, A, M>(function: F, args: A) -> Result<JoinHandle<F::Value>>
where
    F: Task<A, M>,
    A: Message,
    M: 'static,
{
    Context::default().spawn(function, args).await
}

impl Context {
    /// [`spawn`](crate::spawn) with this context's start method.
    ///
    /// # Errors
    /// As [`ProcessBuilder::start`].
    ///
    /// # Cancel safety
    /// As [`ProcessBuilder::start`].
    pub async fn spawn<F, A, M>(&self, function: F, args: A) -> Result<JoinHandle<F::Value>>
    where
        F: Task<A, M>,
        A: Message,
        M: 'static,
    {
        let id = FnId::of(task_entry(function), Some(Peer::AnyBuild));
        ProcessBuilder::with_work(id.map(Work::Task).map_err(Error::from), &args)
            .context(self.clone())
            .start_task()
            .await
    }
}

/// The value of a function that runs in a process of its own: see [`spawn`].
///
/// # Cancel safety
/// It can be polled through `&mut` in a `select!`; nothing is lost. Dropping it detaches: the
/// process goes on, and its value is thrown away.
#[must_use = "dropping the handle detaches the process and throws its value away"]
pub struct JoinHandle<R> {
    process: Process,
    reply: Pin<Box<dyn Future<Output = Answer> + Send + Sync>>,
    value: PhantomData<fn() -> R>,
}

impl<R: Message> JoinHandle<R> {
    pub(super) fn new(process: Process) -> Self {
        Self { reply: Box::pin(reply(process.clone())), process, value: PhantomData }
    }

    /// The process that runs it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it. The handle then gives [`TaskError::WorkerDied`], or the value, if it came first.
    pub fn abort(&self) {
        self.process.kill_tree();
    }
}

impl<R: Message> Future for JoinHandle<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<Self::Output> {
        self.reply.as_mut().poll(cx).map(|reply| {
            let (bytes, attachments) = reply?;
            decode(Incoming { bytes: &bytes, attachments }).map_err(TaskError::Undecodable)
        })
    }
}

impl<R> std::fmt::Debug for JoinHandle<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("JoinHandle").field(&self.process).finish()
    }
}

/// The reply of the child, or what became of it.
async fn reply(process: Process) -> Answer {
    let child = &process.child;
    loop {
        match child.answer() {
            Poll::Ready(Some(answer)) => return answer,
            Poll::Ready(None) => break,
            Poll::Pending if reactor::readable(child.control.as_fd()).await.is_err() => break,
            Poll::Pending => {}
        }
    }
    let exit = process.join().await;
    let exit = exit.unwrap_or_else(|_| super::ExitStatus::new(crate::sys::process::Exit::Unknown, false));
    let task = process.name().to_owned();
    Err(TaskError::WorkerDied(Box::new(WorkerDied {
        exit,
        stderr_tail: String::new(),
        task,
        pid: process.pid(),
    })))
}

/// In the child: runs the task, sends what came of it, and gives the exit code.
pub(crate) fn remote_task(entry: &'static Entry<TaskCode>, args: Incoming<'_>) -> i32 {
    let mut value = Vec::new();
    let called = catch((entry.name)(), || finish((entry.code)(args, &mut value), bootstrap::drive));
    let (report, value, attachments) = match called {
        Ok((bytes, Ok(attachments))) => (Report::Value, bytes.unwrap_or(value), attachments),
        Ok((_, Err(failure))) => (Report::Failed(failure), Vec::new(), Vec::new()),
        Err(panic) => (Report::Panicked(panic), Vec::new(), Vec::new()),
    };
    let code = i32::from(!matches!(report, Report::Value));
    let Some(control) = exit::control() else { return 1 };
    match control::send(control.as_fd(), &report, &value, attachments, Mode::Wait) {
        Ok(()) => code,
        // Nobody waits for it any more.
        Err(_) => 1,
    }
}

thread_local! {
    /// Whether this thread runs a task whose caller is told of a panic.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static CAUGHT: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Runs a task; a panic becomes what its caller is told, and nothing is printed here.
pub(crate) fn catch<T>(task: &str, run: impl FnOnce() -> T) -> Result<T, RemotePanic> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CATCHING.get() {
                return others(info);
            }
            let location = info.location().map_or_else(String::new, ToString::to_string);
            // Asked for by nobody but wanted by whoever reads the error, since the process where
            // it could be looked for is another one.
            let unwanted = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value == "0");
            let backtrace =
                if unwanted { String::new() } else { std::backtrace::Backtrace::force_capture().to_string() };
            CAUGHT.set(Some((location, backtrace)));
        }));
    });
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    CATCHING.set(outer);
    result.map_err(|payload| {
        let (location, backtrace) = CAUGHT.take().unwrap_or_default();
        let pid = crate::sys::process::getpid();
        RemotePanic { message: panic_message(&*payload), location, backtrace, task: task.to_owned(), pid }
    })
}

/// What a panic said.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic whose payload is not text").to_owned()
}
