//! A call of a function that gives many values.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::apply::Apply;
use super::call::{Options, common_options};
use crate::error::TaskError;
use crate::reduction::{CodecError, Message};
use crate::sys::Fd;
use crate::task::flow::{Found, Inlet};

/// The values that a function gives one after another: see [`Pool::stream`](super::Pool::stream).
///
/// Nothing happens before it is polled. Values wait in a socket until they are wanted, some hundred
/// KiB of them; after that the function waits. All this time it has its worker, so a timeout
/// counts the time in which it waits for its reader as well.
///
/// Whatever ends the function too early (its own error, a panic, a timeout, its worker's death)
/// comes as the last item, after all values that it had sent. A stream that just ends has given all.
///
/// Dropped before its end, a function that has not begun never does. One that runs has its stream or
/// iterator dropped as soon as it gives the next value; a `Stream` that waits is dropped at once.
/// With [`kill_on_drop`](Self::kill_on_drop) its worker is killed instead.
///
/// It is not run again if its worker dies, as some of its values may have been seen.
///
/// # Panics
/// When it is polled outside of a Tokio runtime with I/O enabled.
#[must_use = "streams do nothing unless polled"]
pub struct TaskStream<R> {
    call: Apply<()>,
    /// How the call ended, until that is told.
    result: Option<Result<(), TaskError>>,
    over: bool,
    /// None if there is no socket; the call says why.
    inlet: Option<Inlet>,
    items: PhantomData<fn() -> R>,
}

impl<R: Message> TaskStream<R> {
    pub(super) fn new(call: Apply<()>, socket: Option<Fd>) -> Self {
        let inlet = socket.map(|socket| Inlet::new(socket.into()));
        Self { call, result: None, over: false, inlet, items: PhantomData }
    }

    fn with(self, set: impl FnOnce(&mut Options<()>)) -> Self {
        // `Drop` forbids taking it apart.
        let mut this = self;
        this.call.set(set);
        this
    }

    common_options!();

    /// What came, or that nothing can come.
    fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Found>> {
        let Some(inlet) = &mut self.inlet else { return Poll::Ready(Ok(Found::Gone)) };
        if self.result.is_some() {
            // Once the call is over nothing more can come than is there.
            return Poll::Ready(inlet.try_packet().map(|found| found.unwrap_or(Found::Gone)));
        }
        inlet.poll_packet(cx)
    }

    fn end(&mut self, error: Option<TaskError>) -> Poll<Option<Result<R, TaskError>>> {
        self.over = true;
        self.inlet = None;
        Poll::Ready(error.map(Err))
    }
}

impl<R: Message> Stream for TaskStream<R> {
    type Item = Result<R, TaskError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            if let Some(item) = this.inlet.as_mut().and_then(Inlet::next) {
                coop.made_progress();
                return Poll::Ready(Some(item.map_err(TaskError::Undecodable)));
            }
            // First the result, then the items: those that came before it are there then.
            if this.result.is_none()
                && let Poll::Ready(result) = Pin::new(&mut this.call).poll(cx)
            {
                this.result = Some(result);
            }
            match this.poll_packet(cx) {
                Poll::Ready(Ok(Found::Packet)) => continue,
                Poll::Ready(Ok(Found::Gone)) => {}
                Poll::Ready(Err(error)) => {
                    coop.made_progress();
                    return this.end(Some(undecodable(error)));
                }
                Poll::Pending => return Poll::Pending,
            }
            let Some(result) = this.result.take() else { return Poll::Pending };
            coop.made_progress();
            return match result {
                Ok(()) if !this.inlet.as_ref().is_some_and(Inlet::has_ended) => {
                    this.end(Some(undecodable("the stream was cut short")))
                }
                result => this.end(result.err()),
            };
        }
    }
}

fn undecodable(why: impl fmt::Display) -> TaskError {
    TaskError::Undecodable(<CodecError as serde::de::Error>::custom(why))
}

impl<R> Drop for TaskStream<R> {
    fn drop(&mut self) {
        if !self.over {
            self.call.withdraw();
        }
    }
}

impl<R> fmt::Debug for TaskStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskStream")
            .field("call", &self.call)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
