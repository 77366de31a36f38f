//! Integers of any size.

use std::fmt;

/// An integer beyond 64 bits, as bytes. There is no arithmetic here: convert it, or hand the bytes
/// to a crate for big numbers.
///
/// ```
/// use tokio_multiprocess::python::BigInt;
///
/// let big = BigInt::from(1u128 << 100);
/// assert_eq!(u128::try_from(&big), Ok(1 << 100));
/// assert!(i64::try_from(&big).is_err());
/// assert_eq!(format!("{big:?}"), "0x10000000000000000000000000");
/// assert_eq!(BigInt::from_le_bytes(&[0xFE, 0xFF, 0xFF]), BigInt::from(-2i128));
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BigInt {
    /// Two's complement, little-endian, no longer than it has to be: none for 0.
    bytes: Box<[u8]>,
}

impl BigInt {
    /// The integer that the bytes are in two's complement, the lowest first; 0 if there are none.
    pub fn from_le_bytes(bytes: &[u8]) -> Self {
        Self { bytes: bytes[..minimal(bytes)].into() }
    }

    /// The integer in two's complement, the lowest byte first: as few as can hold it and its sign,
    /// none for 0.
    pub fn as_le_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it is below 0.
    pub fn is_negative(&self) -> bool {
        is_negative(&self.bytes)
    }
}

fn is_negative(bytes: &[u8]) -> bool {
    bytes.last().is_some_and(|&last| last >= 0x80)
}

/// How many of the bytes hold the number: the rest but repeats its sign.
pub(super) fn minimal(bytes: &[u8]) -> usize {
    let sign = if is_negative(bytes) { 0xFF } else { 0 };
    let mut len = bytes.len();
    while len > 0 && bytes[len - 1] == sign {
        len -= 1;
    }
    // The last that is kept has to show the sign.
    let shows = if len > 0 { bytes[len - 1] >= 0x80 } else { false };
    if shows != (sign == 0xFF) { len + 1 } else { len }
}

/// The first `N` bytes of the number, with its sign repeated in those that it does not have; none if
/// it needs more.
fn extended<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let mut wide = [if is_negative(bytes) { 0xFF } else { 0 }; N];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(wide)
}

/// Of a number that is no longer than it has to be.
pub(super) fn to_i64(bytes: &[u8]) -> Option<i64> {
    extended(bytes).map(i64::from_le_bytes)
}

/// Of a number that is no longer than it has to be.
pub(super) fn to_i128(bytes: &[u8]) -> Option<i128> {
    extended(bytes).map(i128::from_le_bytes)
}

/// Of a number that is no longer than it has to be.
pub(super) fn to_u128(bytes: &[u8]) -> Option<u128> {
    // One byte more, for the sign.
    let wide: [u8; 17] = extended(bytes)?;
    let (value, sign) = wide.split_first_chunk()?;
    (sign == [0]).then(|| u128::from_le_bytes(*value))
}

impl From<i128> for BigInt {
    fn from(value: i128) -> Self {
        Self::from_le_bytes(&value.to_le_bytes())
    }
}

impl From<u128> for BigInt {
    fn from(value: u128) -> Self {
        let mut bytes = [0; 17];
        bytes[..16].copy_from_slice(&value.to_le_bytes());
        Self::from_le_bytes(&bytes)
    }
}

macro_rules! try_from_big {
    ($($type:ident)*) => {$(
        impl TryFrom<&BigInt> for $type {
            type Error = OutOfRange;

            fn try_from(value: &BigInt) -> Result<Self, OutOfRange> {
                let narrow = match to_i128(&value.bytes) {
                    Some(value) => $type::try_from(value).ok(),
                    None => to_u128(&value.bytes).and_then(|value| $type::try_from(value).ok()),
                };
                narrow.ok_or(OutOfRange)
            }
        }
    )*};
}

try_from_big! { i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize }

/// The integer does not fit the type it was to be converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the integer does not fit its type")]
pub struct OutOfRange;

/// Hexadecimal: decimal digits of a number this long would take time that grows with their square.
impl fmt::Debug for BigInt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let negative = self.is_negative();
        // The absolute value: one byte more, since that of the lowest has a bit more.
        let mut bytes = self.bytes.to_vec();
        bytes.push(if negative { 0xFF } else { 0 });
        if negative {
            let mut carry = true;
            for byte in &mut bytes {
                (*byte, carry) = (!*byte).overflowing_add(carry.into());
            }
            f.write_str("-")?;
        }
        let mut digits = bytes.iter().rev().skip_while(|byte| **byte == 0);
        write!(f, "0x{:x}", digits.next().unwrap_or(&0))?;
        digits.try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
