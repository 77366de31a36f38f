//! What nobody contends for costs no system call: counted by the kernel, of a process that is traced.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "to fork a process that is traced")]

mod support;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid};
use support::guard;
use tokio_multiprocess as mp;

const TIMES: usize = 1000;

/// What needs not wait.
fn now<T>(future: impl Future<Output = mp::Result<T>>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done.unwrap(),
        Poll::Pending => panic!("it waits"),
    }
}

/// How many system calls a copy of this process makes for something that it does a thousand times.
fn system_calls(operation: impl Fn()) -> usize {
    // SAFETY: the child takes no lock that another thread may hold: it allocates nothing.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            ptrace::traceme().unwrap();
            raise(Signal::SIGSTOP).unwrap();
            // Whatever is found out once, such as who this process is.
            operation();
            getppid();
            (0..TIMES).for_each(|_| operation());
            getppid();
            // SAFETY: it ends this process, and nothing else.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => trace(child),
    }
}

/// Counts the system calls between two that nobody else makes.
fn trace(child: Pid) -> usize {
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Stopped(child, Signal::SIGSTOP)));
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(child, options).unwrap();
    let (mut marks, mut calls) = (0, 0);
    loop {
        ptrace::syscall(child, None).unwrap();
        match waitpid(child, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {}
            WaitStatus::Exited(_, 0) => break,
            other => panic!("{other:?}"),
        }
        let info = ptrace::syscall_info(child).unwrap();
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            continue;
        }
        // SAFETY: by `op` it is an entry.
        let call = unsafe { info.u.entry.nr };
        if call == libc::SYS_getppid as u64 {
            marks += 1;
        } else if marks == 1 {
            calls += 1;
        }
    }
    assert_eq!(marks, 2);
    calls
}

#[test]
fn what_nobody_contends_for_costs_no_system_call() {
    let _guard = guard(60);
    let (lock, rlock) = (mp::Lock::new().unwrap(), mp::RLock::new().unwrap());
    let (semaphore, bounded) = (mp::Semaphore::new(2).unwrap(), mp::BoundedSemaphore::new(2).unwrap());
    let event = mp::Event::new().unwrap();
    let condition = mp::Condition::new(lock.clone()).unwrap();
    let barrier = mp::Barrier::new(1).unwrap();
    let operations: [(&str, &dyn Fn()); 12] = [
        ("Lock::acquire", &|| drop(now(lock.acquire()))),
        ("Lock::try_acquire", &|| drop(lock.try_acquire().unwrap().unwrap())),
        ("Lock::acquire_raw, release", &|| {
            now(lock.acquire_raw());
            lock.release().unwrap();
        }),
        ("RLock::acquire, twice", &|| {
            let guard = now(rlock.acquire());
            drop(guard.reenter().unwrap());
        }),
        ("Semaphore::acquire", &|| drop(now(semaphore.acquire()))),
        ("Semaphore::acquire_raw, release", &|| {
            now(semaphore.acquire_raw());
            semaphore.release().unwrap();
        }),
        ("BoundedSemaphore::acquire", &|| drop(now(bounded.acquire()))),
        ("Event::set, is_set, clear", &|| {
            event.set().unwrap();
            assert!(event.is_set());
            now(event.wait());
            event.clear().unwrap();
        }),
        ("Condition::notify", &|| assert_eq!(now(condition.lock()).notify(1).unwrap(), 0)),
        ("Condition::notify_all", &|| assert_eq!(now(condition.lock()).notify_all().unwrap(), 0)),
        ("Barrier::wait, alone", &|| assert_eq!(now(barrier.wait()), 0)),
        ("std::process::id, to see that they are counted", &|| assert!(std::process::id() > 0)),
    ];
    for (name, operation) in operations {
        let calls = system_calls(operation);
        eprintln!("{name}: {calls} system calls in {TIMES} times");
        assert_eq!(calls, if name.starts_with("std") { TIMES } else { 0 }, "{name}");
    }
}
