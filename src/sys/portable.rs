//! What stands in for the kernel where processes cannot be started.

/// A descriptor: there are none here, and the type says so.
#[derive(Debug)]
pub(crate) enum Fd {}
