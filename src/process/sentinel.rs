//! What becomes ready when a process ends.

use std::sync::Arc;

use crate::sys::AsFd;
#[cfg(multiprocess)]
use crate::sys::{AsRawFd, BorrowedFd, RawFd};

use crate::connection::wait::Source;
use crate::connection::wait::sealed::Sealed;
use crate::error::Result;
use crate::sys::Fd;

/// A descriptor (a pidfd, where a sandbox does not refuse them) that is readable once its process
/// has ended, and stays so.
///
/// It is a duplicate: it stays valid after the [`Process`](crate::Process) was joined or dropped,
/// and closes when dropped. A [`WaitSet`](crate::WaitSet) keeps one that it was given.
#[derive(Debug)]
pub struct Sentinel(Arc<Fd>);

impl Sentinel {
    pub(crate) fn new(exit: Fd) -> Self {
        Self(Arc::new(exit))
    }

    /// Whether the process has ended.
    pub fn is_ready(&self) -> bool {
        crate::sys::process::peek_exited(self.0.as_fd())
    }

    /// Waits until the process has ended.
    ///
    /// # Cancel safety
    /// Nothing is consumed: dropping the future and calling again is the same as waiting on.
    pub async fn ready(&self) -> Result<()> {
        Ok(crate::reactor::readable(self.0.as_fd()).await?)
    }
}

/// A sentinel is often made for this alone, and dropped at once.
impl Sealed for Sentinel {
    fn source(&self) -> Result<Source<'_>> {
        Ok(Source::kept(self.0.clone()))
    }
}

#[cfg(multiprocess)]
impl AsFd for Sentinel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(multiprocess)]
impl AsRawFd for Sentinel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
