//! Waiting for many objects at once.

mod buffered;

pub(crate) use buffered::Buffered;
