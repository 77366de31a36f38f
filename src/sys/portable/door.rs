use std::io;
use std::sync::Arc;

use super::{Fd, unsupported};

#[derive(Debug)]
pub(crate) struct Door(Arc<Fd>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    Sent,
    Full,
    Gone,
}

impl Door {
    pub(crate) fn open() -> io::Result<Self> {
        unsupported()
    }
    pub(crate) fn name(&self) -> [u64; 2] {
        [0; 2]
    }
    pub(crate) fn socket(&self) -> &Arc<Fd> {
        &self.0
    }
    pub(crate) fn drain(&self, _: impl FnMut(u64)) {}
    pub(crate) fn ring(&self, _: [u64; 2], _: u64) -> Ring {
        Ring::Gone
    }
}
