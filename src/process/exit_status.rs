//! How a process ended.

use std::fmt;

use crate::sys::process::Exit;
use crate::sys::signal;

/// How a process ended: by an exit code, by a signal, or in a way that nobody knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    exit: Exit,
    stack_overflow: bool,
    fault: Option<u64>,
}

impl ExitStatus {
    pub(crate) fn new(exit: Exit, stack_overflow: bool) -> Self {
        Self { exit, stack_overflow, fault: None }
    }

    /// Where it has faulted, if it died of that and not of something later.
    pub(crate) fn at(self, fault: Option<u64>) -> Self {
        Self { fault: fault.filter(|_| self.signal().is_some_and(signal::is_fault)), ..self }
    }

    /// Whether the exit code is 0.
    pub fn success(&self) -> bool {
        self.code() == Some(0)
    }

    /// The exit code, if it ended by one.
    pub fn code(&self) -> Option<i32> {
        match self.exit {
            Exit::Code(code) => Some(code),
            _ => None,
        }
    }

    /// The signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self.exit {
            Exit::Signal { signal, .. } => Some(signal),
            _ => None,
        }
    }

    /// Whether a memory image was written.
    pub fn core_dumped(&self) -> bool {
        matches!(self.exit, Exit::Signal { core: true, .. })
    }

    /// Whether it died because a thread used up its stack.
    pub fn stack_overflow(&self) -> bool {
        self.stack_overflow
    }

    /// The address at which it died: of SIGSEGV and SIGBUS what was accessed, of SIGILL and SIGFPE
    /// the instruction. `None` where the kernel gives none: for a signal that somebody sent, and on
    /// x86-64 for an access beyond all addresses.
    pub fn fault_address(&self) -> Option<u64> {
        self.fault
    }

    /// Whether it ended and nobody knows how: somebody else in this process reaped it, or SIGCHLD
    /// is ignored here, and it had no time to say its code.
    pub fn is_unknown(&self) -> bool {
        self.exit == Exit::Unknown
    }

    /// The code as Python gives it: `-N` for signal N, 255 if nobody knows.
    pub fn exit_code(&self) -> i32 {
        match self.exit {
            Exit::Code(code) => code,
            Exit::Signal { signal, .. } => -signal,
            Exit::Unknown => 255,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit {
            Exit::Code(code) => write!(f, "exit code {code}")?,
            Exit::Signal { signal, core } => {
                write!(f, "{}{}", signal::name(signal), if core { ", core dumped" } else { "" })?;
            }
            Exit::Unknown => write!(f, "exited, status unknown")?,
        }
        if let Some(address) = self.fault {
            write!(f, " at {address:#x}")?;
        }
        if self.stack_overflow {
            write!(f, " (stack overflow)")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExitStatus({self})")
    }
}
