//! Every name of the public face is there.

#![cfg(target_os = "linux")]

/// That it compiles is the test; that it is run, that there is something to run.
// conformance: _TestImportStar.test_import
#[test]
fn all_names_can_be_imported() {
    #[allow(unused_imports, reason = "they are only looked for")]
    use tokio_multiprocess::{
        Address, Apply, Array, ArrayGuard, AsyncResult, AuthKey, Barrier, Blob, BoundedSemaphore, Client,
        Condition, Connection, Context, CurrentProcess, DigestPolicy, DrainReport, Error, Event, ExitStatus,
        Failure, Family, Func, GetError, Handle, JoinHandle, JoinableQueue, Listener, Lock, LockGuard,
        LogLevel, Logger, Map, MapStream, Message, NotStarted, OnPreloadError, Outcome, OwnedLockGuard,
        ParentProcess, Permit, Pool, PoolBuilder, Process, ProcessBuilder, PutError, PutErrorKind, Queue,
        RLock, Ran, RawArray, RawValue, RecvHalf, RemoteError, RemotePanic, Result, Run, Semaphore, SendHalf,
        Sentinel, ShareableList, SharedMemory, SimpleQueue, StartError, StartMethod, Stats, Target, Task,
        TaskError, TaskStream, Value, ValueGuard, WaitSet, Waitable, WorkerDied, active_children,
        allow_connection_pickling, async_trait, block_on, copy, cpu_count, current_process, doctor, exit,
        freeze_support, get_all_start_methods, get_context, get_executable, get_logger, get_start_method,
        log_to_stderr, parent_process, pipe, reduction, register, resource_tracker, set_executable,
        set_forkserver_preload, set_start_method, shared_memory, simplex_pipe, spawn, synchronized, task,
        testing, usable_cpu_count, util, wait, wait_timeout,
    };
    assert_eq!(get_all_start_methods().len(), 3);
}
