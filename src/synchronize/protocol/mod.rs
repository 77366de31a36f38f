//! The pure part: what each primitive does to its words in shared memory, without I/O and without a clock.
//!
//! Everything here is generic over the memory ([`Words`]) and over who lives ([`World`]), so that tests can
//! run the same code over a memory that lets a process die, or stop, before any access it makes.

mod words;

pub(crate) use words::{Identity, Words, World};
