//! Limits that a test sets for its process, until it is done.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Allows for no descriptors beyond those that are open and `more`, until it is dropped.
pub(crate) struct Limited(u64, u64);

pub(crate) fn limited(more: u64) -> Limited {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, next + more, hard).unwrap();
    Limited(soft, hard)
}

impl Drop for Limited {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NOFILE, self.0, self.1).unwrap();
    }
}
