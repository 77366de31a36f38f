//! Queues as something that is waited for: ready when there is an item.

use std::fmt;

use super::core::{Core, WeakCore};
use super::joinable::JoinableQueue;
use super::queue::Queue;
use super::simple::SimpleQueue;
use crate::connection::wait::{Condition, Source, sealed};
use crate::error::{Error, Result};
use crate::synchronize::object::Object;

const NAME: &str = "the queue";

/// That who gets would not have to wait. It keeps nobody's queue.
struct Gives(WeakCore);

impl Gives {
    fn core(&self) -> Option<Core> {
        self.0.upgrade().filter(|core| !core.is_closed())
    }
}

impl Condition for Gives {
    fn name(&self) -> &'static str {
        NAME
    }

    fn object(&self) -> Option<Object> {
        Some(self.core()?.items().clone())
    }

    fn is_met(&self) -> Option<bool> {
        Some(self.core()?.gives())
    }
}

impl fmt::Debug for Gives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("queue")
    }
}

impl<T> sealed::Sealed for Queue<T> {
    fn source(&self) -> Result<Source<'_>> {
        if self.core().is_closed() {
            return Err(Error::Closed(NAME));
        }
        Ok(Source::condition(Gives(self.core().downgrade())))
    }
}

impl<T> sealed::Sealed for JoinableQueue<T> {
    fn source(&self) -> Result<Source<'_>> {
        self.queue().source()
    }
}

impl<T> sealed::Sealed for SimpleQueue<T> {
    fn source(&self) -> Result<Source<'_>> {
        self.queue().source()
    }
}
