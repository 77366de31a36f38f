use std::io;
use std::path::Path;

use super::{Fd, unsupported};

#[derive(Debug)]
pub(crate) struct Parent(());

impl Parent {
    pub(crate) fn at(_: &Path) -> io::Result<Self> {
        unsupported()
    }
    pub(crate) fn delegated() -> Option<Self> {
        None
    }
    pub(crate) fn child(&self) -> io::Result<Cgroup> {
        unsupported()
    }
}

#[derive(Debug)]
pub(crate) struct Cgroup(());

impl Cgroup {
    pub(crate) fn door(&self) -> io::Result<Fd> {
        unsupported()
    }
    pub(crate) fn memory(&self) -> io::Result<Option<(Fd, Fd)>> {
        unsupported()
    }
    pub(crate) fn kill(&self) {}
    pub(crate) fn end(&self) -> bool {
        false
    }
}

pub(crate) fn enter(_: Fd) -> io::Result<()> {
    unsupported()
}
pub(crate) fn limit_memory(_: &Fd, _: &Fd, _: u64) -> io::Result<()> {
    unsupported()
}
pub(crate) fn lift_limit(_: &Fd) {}
