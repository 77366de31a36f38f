//! Queues between processes.

mod acks;
mod core;
mod error;
mod feeder;
mod getting;
mod item;
mod joinable;
mod memory;
mod permit;
mod putting;
mod queue;
mod simple;
mod slots;
mod stream;
#[cfg(all(test, multiprocess))]
mod tests;
mod waitable;

pub use error::{GetError, PutError, PutErrorKind, SinkError};
pub use joinable::JoinableQueue;
pub use permit::Permit;
pub use queue::Queue;
pub use simple::SimpleQueue;
pub use stream::{QueueSink, QueueStream};
