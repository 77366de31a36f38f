//! Values and arrays in memory that processes share.

mod integer;
mod plain;
mod raw_array;
mod raw_value;

pub use integer::Integer;
pub use raw_array::RawArray;
pub use raw_value::RawValue;

/// A new object with what is in this one now: a [`RawValue`] of a value, a [`RawArray`] of an array.
///
/// Who writes to it meanwhile may be seen in parts.
///
/// # Errors
/// When no descriptor or no memory is left.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// let original = mp::RawArray::from_items([1u8, 2, 3])?;
/// let copy = mp::copy(&original)?;
/// original.fill(0);
/// assert_eq!(copy.to_vec(), [1, 2, 3]);
/// # Ok::<(), mp::Error>(())
/// ```
pub fn copy<R: Raw>(raw: &R) -> crate::Result<R> {
    raw.copied()
}

/// What [`copy`] copies: a [`RawValue`] or a [`RawArray`]. The trait is sealed.
#[doc(hidden)]
pub trait Raw: Sized + sealed::Sealed {
    #[doc(hidden)]
    fn copied(&self) -> crate::Result<Self>;
}

mod sealed {
    pub trait Sealed {}
}
