//! The environment of this process, and changing it while that is still sound.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A snapshot of all variables, `K=V` each, in whatever encoding.
pub(crate) fn environment() -> Vec<CString> {
    let vars = std::env::vars_os().map(|(key, value)| {
        let mut entry = key.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        CString::new(entry).expect("a variable is itself a C string")
    });
    vars.collect()
}

/// Makes `vars` the whole environment. Variables that cannot be one are left out.
///
/// Only while this process has a single thread: C code reads the environment without a lock.
pub(crate) fn replace_environment(vars: &[(OsString, OsString)]) {
    // SAFETY: by the contract no other thread reads the environment now.
    unsafe { libc::clearenv() };
    for (key, value) in vars {
        set_env(key, value);
    }
}

// std's own functions wait for a lock, which a thread of the parent may have held when this
// process was forked from it.

/// Sets one variable, unless it cannot be one; under the contract of [`replace_environment`].
pub(crate) fn set_env(key: &OsStr, value: &OsStr) {
    if let (Ok(key), Ok(value)) = (c_string(key), c_string(value)) {
        // SAFETY: by the contract no other thread reads the environment now; both strings are
        // copied. A key that is none is refused.
        unsafe { libc::setenv(key.as_ptr(), value.as_ptr(), 1) };
    }
}

/// Removes one variable; under the contract of [`replace_environment`].
pub(crate) fn unset_env(key: &OsStr) {
    if let Ok(key) = c_string(key) {
        // SAFETY: as above.
        unsafe { libc::unsetenv(key.as_ptr()) };
    }
}

/// # Errors
/// If there is a zero byte in it.
pub(crate) fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::super::process::{Exit, Fork, exit_now, fork, pidfd_open, try_wait};
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_snapshot_has_every_variable() {
        let snapshot = environment();
        let path = std::env::var_os("PATH").unwrap();
        let entry = [b"PATH=", path.as_bytes()].concat();
        assert!(snapshot.iter().any(|e| e.as_bytes() == entry));
        assert_eq!(snapshot.len(), std::env::vars_os().count());
    }

    #[test]
    fn the_environment_is_replaced() {
        let child = match fork().unwrap() {
            Fork::Parent { pid } => pidfd_open(pid).unwrap(),
            // One thread here, whatever the others of the test were doing.
            Fork::Child => exit_now(i32::from(!replaces())),
        };
        super::super::fd::poll_readable(child.as_fd(), None).unwrap();
        assert_eq!(try_wait(child.as_fd()).unwrap(), Some(Exit::Code(0)));
    }

    fn replaces() -> bool {
        let var = |k: &[u8], v: &[u8]| (OsString::from_vec(k.into()), OsString::from_vec(v.into()));
        replace_environment(&[
            var(b"A", b"one=two"),
            var(b"B\xff", b"\xfe"),
            var(b"", b"no name"),
            var(b"C=D", b"no name"),
            var(b"E", b"nul\0"),
        ]);
        let first = environment() == [c"A=one=two".to_owned(), c"B\xff=\xfe".to_owned()];
        unset_env(OsStr::new("A"));
        unset_env(OsStr::new(""));
        set_env(OsStr::new("F"), OsStr::new(""));
        first && environment() == [c"B\xff=\xfe".to_owned(), c"F=".to_owned()]
    }
}
