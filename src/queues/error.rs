//! What putting into and getting out of queues can fail by.

use std::fmt;

use crate::error::Error;
use crate::reduction::CodecError;

/// An item that was not put, and why. It is as it was, with all its handles.
#[non_exhaustive]
pub struct PutError<T> {
    /// The item.
    pub item: T,
    /// Why it was not put.
    pub kind: PutErrorKind,
}

/// Why an item was not put.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutErrorKind {
    /// There is no slot free, or there was none within the time allowed.
    #[error("the queue is full")]
    Full,
    /// This process has closed its handle.
    #[error("the queue is closed")]
    Closed,
    /// The queue was shut down, by whichever process.
    #[error("the queue was shut down")]
    ShutDown,
    /// The item cannot be written for another process: its `Serialize` failed, or it holds what cannot travel.
    #[error("cannot encode: {0}")]
    Encode(#[source] CodecError),
    /// The operating system has no memory or descriptors left, or somebody has written what cannot be into the
    /// queue's memory.
    #[error(transparent)]
    Failed(Error),
}

/// Why nothing was got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There is no item, or there was none within the time allowed.
    #[error("the queue is empty")]
    Empty,
    /// This process has closed its handle.
    #[error("the queue is closed")]
    Closed,
    /// The queue was shut down, and all that was put was got.
    #[error("the queue was shut down")]
    ShutDown,
    /// The item is none of this type, or its `Deserialize` failed. It is gone; the next one can be got.
    #[error("cannot decode: {0}")]
    Decode(#[source] CodecError),
    /// The operating system has no memory or descriptors left; the item is still there, for whoever gets it when
    /// there are some. Only one that is larger than 256 KiB is gone if there is no memory to read it to. Or somebody
    /// has written what cannot be into the queue's memory ([`Error::Malformed`]): an item of which that is true is
    /// gone.
    #[error(transparent)]
    Failed(Error),
}

/// Why a [`QueueSink`](super::QueueSink) does not take items, and the one that it was just given.
#[non_exhaustive]
pub struct SinkError<T> {
    /// The item, as it was, if it was not put; `None` if there was no slot to put any into.
    pub item: Option<T>,
    /// Why.
    pub kind: PutErrorKind,
}

impl<T> PutError<T> {
    /// There is no slot free.
    pub fn is_full(&self) -> bool {
        matches!(self.kind, PutErrorKind::Full)
    }
}

impl PutErrorKind {
    /// This process has closed its handle.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// The queue was shut down.
    pub fn is_shut_down(&self) -> bool {
        matches!(self, Self::ShutDown)
    }
}

impl GetError {
    /// There is no item.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// This process has closed its handle.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// The queue was shut down, and all is got.
    pub fn is_shut_down(&self) -> bool {
        matches!(self, Self::ShutDown)
    }
}

impl<T> From<PutError<T>> for SinkError<T> {
    fn from(error: PutError<T>) -> Self {
        Self { item: Some(error.item), kind: error.kind }
    }
}

/// They tell of the kind, also if the item has no forms of its own.
macro_rules! tells_of_kind {
    ($($error:ident),*) => {$(
        impl<T> $error<T> {
            /// This process has closed its handle.
            pub fn is_closed(&self) -> bool {
                self.kind.is_closed()
            }

            /// The queue was shut down.
            pub fn is_shut_down(&self) -> bool {
                self.kind.is_shut_down()
            }
        }

        impl<T> fmt::Debug for $error<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($error)).field("kind", &self.kind).finish_non_exhaustive()
            }
        }

        impl<T> fmt::Display for $error<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.kind.fmt(f)
            }
        }

        impl<T> std::error::Error for $error<T> {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                std::error::Error::source(&self.kind)
            }
        }

        impl<T> From<$error<T>> for Error {
            fn from(error: $error<T>) -> Self {
                error.kind.into()
            }
        }
    )*};
}

tells_of_kind!(PutError, SinkError);

impl From<PutErrorKind> for Error {
    fn from(kind: PutErrorKind) -> Self {
        match kind {
            PutErrorKind::Full => Self::Full,
            PutErrorKind::Closed => Self::Closed("the queue"),
            PutErrorKind::ShutDown => Self::ShutDown,
            PutErrorKind::Encode(error) => Self::Encode(error),
            PutErrorKind::Failed(error) => error,
        }
    }
}

impl From<GetError> for Error {
    fn from(error: GetError) -> Self {
        match error {
            GetError::Empty => Self::Empty,
            GetError::Closed => Self::Closed("the queue"),
            GetError::ShutDown => Self::ShutDown,
            GetError::Decode(error) => Self::Decode(error),
            GetError::Failed(error) => error,
        }
    }
}

impl From<Error> for PutErrorKind {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Error> for GetError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
