use std::io;

use super::unsupported;

pub(crate) fn own_anonymous() -> io::Result<u64> {
    unsupported()
}
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) held: u64,
    pub(crate) data: u64,
}

impl Own {
    pub(crate) fn look() -> io::Result<Self> {
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
