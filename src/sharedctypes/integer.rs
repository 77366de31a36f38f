//! What can be changed in one step.

use bytemuck::Pod;

use super::plain::Plain;

/// Integers that lie within a word, so that processes can count together without a lock: all up to 64 bits.
/// The trait is sealed.
pub trait Integer: Pod + Ord + sealed::Exchange {}

pub(super) mod sealed {
    use super::Plain;

    pub trait Exchange: Sized {
        #[doc(hidden)]
        fn exchange(place: Place<'_, Self>, f: impl FnMut(Self) -> Option<Self>) -> Result<Self, Self>;
        #[doc(hidden)]
        fn wrapped_add(self, other: Self) -> Self;
        #[doc(hidden)]
        fn wrapped_sub(self, other: Self) -> Self;
    }

    /// One of the items of an object.
    #[doc(hidden)]
    #[allow(missing_debug_implementations, reason = "nobody outside can have one")]
    pub struct Place<'a, T>(pub(in super::super) &'a Plain<T>, pub(in super::super) usize);
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl Integer for $type {}

        impl sealed::Exchange for $type {
            fn exchange(
                sealed::Place(plain, index): sealed::Place<'_, Self>,
                mut f: impl FnMut(Self) -> Option<Self>,
            ) -> Result<Self, Self> {
                let mut refused = false;
                let old = plain.update(index, |bytes| {
                    let new = f(Self::from_ne_bytes(bytes));
                    refused = new.is_none();
                    new.map(Self::to_ne_bytes)
                });
                let old = Self::from_ne_bytes(old);
                if refused { Err(old) } else { Ok(old) }
            }

            fn wrapped_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn wrapped_sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    )*};
}

integers! { u8 u16 u32 u64 usize i8 i16 i32 i64 isize }
