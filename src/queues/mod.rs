//! Queues between processes.
//!
//! A queue is one shared memory, with a ring for its items, a lock for each side, and cells that say what belongs
//! to which process. An item is put, and taken, by the store of one word, so nothing needs repair, whoever dies.
//! `README.md` beside this file has the protocol, the states, and who may change them.

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
