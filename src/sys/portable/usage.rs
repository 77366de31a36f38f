use std::io;

use super::unsupported;

#[derive(Debug)]
pub(crate) struct Own(());

#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) held: io::Result<u64>,
    pub(crate) data: u64,
}

impl Own {
    pub(crate) fn open() -> io::Result<Option<Self>> {
        Ok(None)
    }
    pub(crate) fn anonymous(&self) -> io::Result<u64> {
        unsupported()
    }
    pub(crate) fn look(&self) -> io::Result<Look> {
        unsupported()
    }
}

pub(crate) fn of_tree(_: i32, _: u64) -> io::Result<u64> {
    unsupported()
}

#[derive(Debug)]
pub(crate) struct DataLimit(());

impl DataLimit {
    pub(crate) fn lower(_: u64) -> io::Result<Self> {
        unsupported()
    }
}
