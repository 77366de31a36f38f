//! The start method `forkserver`: a process, started once, that copies itself for each child.
//!
//! The server is a child like any other whose target is [`serve`]. It has one thread and no
//! runtime, so copying it is safe. Its children are made siblings of its own (`CLONE_PARENT`):
//! they are children of the process that asked, which waits for them and learns how they ended
//! even when the server is gone.

use crate::sys::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::io::{self, IoSlice};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use crate::bootstrap;
use crate::context::{OnPreloadError, Preload, StartMethod, preload};
use crate::control::{self, Report, Surroundings};
use crate::error::{Result, StartError};
use crate::function::{TaskRun, finish};
use crate::process::{Process, ProcessBuilder};
use crate::reduction::{Descriptor, Incoming};
use crate::sys::per_process::PerProcess;
use crate::sys::process::Sibling;
use crate::sys::socket::{self, Mode};
use crate::sys::{self, Fd};
use crate::util::lock;

/// The server of this process.
struct Server {
    process: Process,
    /// Where requests go: a control socket each.
    requests: Fd,
    /// What it, and so each of its children, has from its start.
    surroundings: Surroundings,
}

static SERVER: PerProcess<Mutex<Option<Server>>> = PerProcess::new(Mutex::default);
/// Held while a server is started, so that several first starts make one server.
static STARTING: PerProcess<tokio::sync::Mutex<()>> = PerProcess::new(|| tokio::sync::Mutex::new(()));

/// Asks the server, started or replaced if need be, for a child that speaks on `theirs`. The
/// child's id comes as a [`Report::Born`] on the other end.
pub(crate) async fn request(theirs: BorrowedFd<'_>) -> Result<()> {
    if ask_in_turn(theirs).await? {
        return Ok(());
    }
    let _turn = STARTING.get().lock().await;
    if ask_in_turn(theirs).await? {
        return Ok(());
    }
    // Boxed: the server is itself started by the code that this is part of.
    let server = Box::pin(launch()).await?;
    *lock(SERVER.get()) = Some(server);
    if ask_in_turn(theirs).await? {
        return Ok(());
    }
    Err(StartError::ForkServer("it ended as soon as it was started".to_owned()).into())
}

/// How soon a server is asked again that has many requests unread: it may be stopped.
const PATIENCE: Duration = Duration::from_millis(5);

/// False if there is no server, or none any more. Waits while it takes no more requests.
async fn ask_in_turn(theirs: BorrowedFd<'_>) -> Result<bool> {
    loop {
        match ask(theirs) {
            Err(error) if socket::is_full(&error) => crate::reactor::sleep(PATIENCE).await?,
            asked => return Ok(asked?),
        }
    }
}

fn ask(theirs: BorrowedFd<'_>) -> io::Result<bool> {
    let mut server = lock(SERVER.get());
    let Some(running) = &*server else { return Ok(false) };
    // A dead server's socket may still take a message while its process goes: look at it first.
    if running.process.exit_code().is_none() {
        match socket::send(running.requests.as_fd(), &[IoSlice::new(b"c")], &[theirs], Mode::Try) {
            Ok(()) => return Ok(true),
            Err(error) if socket::is_gone(&error) => {}
            Err(error) => return Err(error),
        }
        let _ = running.process.kill();
    }
    *server = None;
    Ok(false)
}

async fn launch() -> Result<Server> {
    let preload = preload();
    let fails = preload.on_error == OnPreloadError::Fail;
    let (requests, theirs) = sys::socket::seqpacket_pair()?;
    let (ready, readies) = sys::socket::seqpacket_pair()?;
    let surroundings = Surroundings::now();
    let process = ProcessBuilder::new(serve, (preload, Descriptor::new(theirs), Descriptor::new(readies)))
        .context(crate::Context::new(StartMethod::Spawn))
        .name("ForkServer")
        .internal()
        .start()
        .await?;
    // Preloading may take its time, and may fail.
    crate::reactor::readable(ready.as_fd()).await?;
    match control::receive::<Report>(ready.as_fd(), Mode::Try)?.map(|letter| letter.head) {
        Some(Report::Ready { .. }) => Ok(Server { process, requests, surroundings }),
        Some(Report::Refused(why)) => Err(StartError::ForkServer(why).into()),
        _ if fails => Err(StartError::ForkServer("it died while it preloaded".to_owned()).into()),
        _ => Err(StartError::ForkServer("it died before it was ready".to_owned()).into()),
    }
}

/// What a child of the server needs to be told of this process's directory and environment.
pub(crate) fn surroundings() -> Surroundings {
    let now = Surroundings::now();
    match &*lock(SERVER.get()) {
        Some(server) => Surroundings {
            directory: now.directory.filter(|new| server.surroundings.directory.as_ref() != Some(new)),
            environment: now.environment.filter(|new| server.surroundings.environment.as_ref() != Some(new)),
        },
        None => now,
    }
}

impl Surroundings {
    fn now() -> Self {
        Self { directory: std::env::current_dir().ok(), environment: Some(std::env::vars_os().collect()) }
    }
}

/// The server's life.
fn serve(preload: Preload, requests: Descriptor, ready: Descriptor) -> ExitCode {
    // A terminal's interrupt is for the parent; children get the default back.
    sys::signal::ignore_interrupt();
    let (Ok(requests), Ok(ready)) = (requests.into_fd(), ready.into_fd()) else { return ExitCode::FAILURE };
    // All that is open now is the server's own; what preloading opens is for the children.
    let mut own = sys::fd::open_fds().unwrap_or_default();
    // Closed before the first request, whose socket may then have its number.
    own.retain(|fd| *fd != ready.as_raw_fd());
    let answer = match run_preload(&preload).and_then(|()| alone()) {
        Ok(()) => Report::Ready { pid: sys::process::getpid(), ward: None },
        Err(why) => Report::Refused(why),
    };
    let sent = control::send(ready.as_fd(), &answer, &[], Vec::new(), Mode::Wait);
    if sent.is_err() || !matches!(answer, Report::Ready { .. }) {
        return ExitCode::FAILURE;
    }
    drop(ready);
    let mut byte = [0; 8];
    loop {
        let mut sockets = Vec::new();
        match socket::recv(requests.as_fd(), &mut byte, &mut sockets, Mode::Wait) {
            // The process that this server belongs to has closed its end: it is gone.
            Ok(received) if received.len == 0 => return ExitCode::SUCCESS,
            Ok(_) => {}
            Err(_) => return ExitCode::FAILURE,
        }
        for control in sockets {
            make_child(control, &own);
        }
    }
}

fn make_child(control: Fd, servers: &[RawFd]) {
    let report = match sys::process::clone_sibling() {
        Ok(Sibling::Child) => {
            sys::fd::close_inherited(servers);
            // The server's only disposition that is not for its children.
            sys::signal::default_interrupt();
            bootstrap::run(bootstrap::Start::receive(control), false)
        }
        Ok(Sibling::Parent { pid, pidfd }) => Report::Born { pid, pidfd: pidfd.map(Descriptor::new) },
        Err(error) => Report::Refused(format!("the fork server cannot fork: {error}")),
    };
    // If nobody reads it, the start was given up: then whoever reads the socket sees to the child.
    let _ = control::send(control.as_fd(), &report, &[], Vec::new(), Mode::Wait);
}

fn run_preload(preload: &Preload) -> std::result::Result<(), String> {
    for function in &preload.functions {
        let call = || {
            let mut value = Vec::new();
            let run: TaskRun = (function.entry().code)(Incoming::bytes(&unit()), &mut value);
            finish(run, on_own_runtime).1.map(drop).map_err(|failure| failure.into_error().to_string())
        };
        let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        let failed = called.unwrap_or_else(|_| Err("it panicked".to_owned())).err();
        match (failed, preload.on_error) {
            (None, _) | (Some(_), OnPreloadError::Ignore) => {}
            (Some(why), OnPreloadError::Warn) => {
                eprintln!("fork server: preloading {} failed: {why}", function.name())
            }
            (Some(why), OnPreloadError::Fail) => {
                return Err(format!("preloading {} failed: {why}", function.name()));
            }
        }
    }
    Ok(())
}

/// The encoding of no arguments.
fn unit() -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = crate::reduction::encode(&(), &mut bytes, crate::reduction::Peer::SameBuild);
    bytes
}

/// A runtime that is gone before the first fork.
fn on_own_runtime<F: Future>(future: F) -> F::Output {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => panic!("cannot make a runtime to preload with: {error}"),
    }
}

fn alone() -> std::result::Result<(), String> {
    match sys::process::thread_count() {
        Ok(threads @ 2..) => Err(format!(
            "{threads} threads run after preloading: a fork copies one, and the others may hold locks"
        )),
        _ => Ok(()),
    }
}
