//! The start method `spawn`: this program is executed anew.

use crate::sys::BorrowedFd;
use std::ffi::CString;
use std::io;
use std::path::PathBuf;

use crate::bootstrap::{self, CONTROL};
use crate::context::get_executable;
use crate::error::{Error, StartError};
use crate::sys;

/// Executes the program with `control` as its socket to this process. Blocks until the kernel has
/// taken or refused the program, about half a millisecond.
pub(crate) fn start(control: BorrowedFd<'_>) -> Result<i32, Error> {
    // The link leads to the inode that runs here, whatever a deployment has put in its place.
    let chosen = get_executable();
    let program = chosen.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let run = || -> io::Result<i32> {
        let path = sys::env::c_string(program.as_os_str())?;
        let args: Vec<CString> = arguments()?;
        let mut env = sys::env::environment();
        env.push(CString::new(bootstrap::order_variable(bootstrap::uses_hook()))?);
        sys::process::posix_spawn(&sys::process::Exec {
            program: &path,
            args: &args,
            env: &env,
            fds: &[(control, CONTROL)],
            shielded: false,
        })
    };
    run().map_err(|source| {
        let program =
            chosen.unwrap_or_else(|| std::env::current_exe().unwrap_or(program)).display().to_string();
        StartError::Execute { program, source }.into()
    })
}

/// A child has its parent's arguments; `main` never sees them, but code that asks for them does.
fn arguments() -> io::Result<Vec<CString>> {
    std::env::args_os().map(|arg| sys::env::c_string(&arg)).collect()
}
