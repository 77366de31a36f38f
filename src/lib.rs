//! Process-based parallelism for Tokio.

#[cfg(multiprocess)]
mod bootstrap;
mod authkey;
pub mod connection;
mod context;
mod control;
mod error;
#[cfg(multiprocess)]
mod fork;
#[cfg(multiprocess)]
mod forkserver;
mod function;
mod log;
//POOL mod pool;
mod process;
pub mod reduction;
//POOL mod ring;
#[cfg(multiprocess)]
mod spawn;
mod sys;
pub mod util;

pub use async_trait::async_trait;
pub use authkey::AuthKey;
pub use bootstrap::{block_on, freeze_support, require_freeze_support};
pub use context::{
    Context, OnPreloadError, StartMethod, get_all_start_methods, get_context, get_executable, get_start_method,
    set_executable, set_forkserver_preload, set_start_method,
};
pub use error::{
    Error, Failure, NotStarted, Ran, RemoteError, RemotePanic, Result, StartError, TaskError, WorkerDied,
};
pub use function::{Exit, Func, Outcome, Target, Task};
pub use log::{LogLevel, Logger, get_logger, log_to_stderr};
//POOL pub use pool::{Pool, PoolBuilder};
pub use process::{
    CurrentProcess, ExitReason, ExitStatus, JoinHandle, ParentProcess, Process, ProcessBuilder, Run, Sentinel,
    active_children, cpu_count, current_process, exit, parent_process, spawn, usable_cpu_count,
};
pub use reduction::{Blob, Message};
pub use util::register_after_fork;

#[doc(hidden)]
pub mod __private {
    pub use crate::function::Registration;
    pub use inventory;
}
