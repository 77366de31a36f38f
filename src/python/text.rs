//! Literals as protocols 0 and 1 write them: lines of text.

use crate::reduction::CodecError;

type Result<T> = std::result::Result<T, CodecError>;

/// More digits CPython itself does not read: the effort grows with their square.
const MAX_DIGITS: usize = 4300;

#[cold]
fn malformed(what: &str) -> CodecError {
    CodecError::new(&format!("malformed {what} in a pickle"))
}

/// A decimal integer as two's complement, little-endian.
pub(super) fn integer(line: &[u8]) -> Result<Vec<u8>> {
    let (negative, digits) = match line {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return Err(malformed("integer"));
    }
    // Nine digits at a time fit a limb.
    let mut limbs: Vec<u32> = Vec::new();
    let (first, rest) = digits.split_at(digits.len() % 9);
    for chunk in [first].into_iter().filter(|first| !first.is_empty()).chain(rest.chunks(9)) {
        let scale = 10u64.pow(chunk.len() as u32);
        let mut carry = chunk.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        for limb in &mut limbs {
            let wide = u64::from(*limb) * scale + carry;
            *limb = wide as u32;
            carry = wide >> 32;
        }
        if carry > 0 {
            limbs.push(carry as u32);
        }
    }
    // Room for the sign.
    limbs.push(0);
    let mut bytes: Vec<u8> = limbs.iter().flat_map(|limb| limb.to_le_bytes()).collect();
    if negative {
        let mut carry = true;
        for byte in &mut bytes {
            (*byte, carry) = (!*byte).overflowing_add(carry.into());
        }
    }
    Ok(bytes)
}

/// A float as Python's `repr` writes it.
pub(super) fn float(line: &[u8]) -> Result<f64> {
    std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).ok_or_else(|| malformed("float"))
}

/// A number in a memo instruction.
pub(super) fn index(line: &[u8]) -> Result<usize> {
    std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).ok_or_else(|| malformed("memo index"))
}

/// The value of the first `count` of hexadecimal digits, and what follows them.
fn hexadecimal(digits: &[u8], count: usize) -> Option<(u32, &[u8])> {
    let (digits, rest) = digits.split_at_checked(count)?;
    let value = digits.iter().try_fold(0, |sum, &digit| Some(sum << 4 | char::from(digit).to_digit(16)?))?;
    Some((value, rest))
}

/// A text in which code points beyond a byte, and the backslash, stand as `\u…` or `\U…`.
pub(super) fn unicode(mut line: &[u8]) -> Result<String> {
    let mut text = String::new();
    while let [byte, rest @ ..] = line {
        let (character, rest) = match (byte, rest) {
            (b'\\', [kind @ (b'u' | b'U'), rest @ ..]) => {
                let count = if *kind == b'u' { 4 } else { 8 };
                let (value, rest) = hexadecimal(rest, count).ok_or_else(|| malformed("escape"))?;
                (char::from_u32(value).ok_or_else(surrogate)?, rest)
            }
            _ => (char::from(*byte), rest),
        };
        text.push(character);
        line = rest;
    }
    Ok(text)
}

/// What to say of a `str` that Rust's cannot hold.
#[cold]
pub(super) fn surrogate() -> CodecError {
    CodecError::new("a str holds something that is no character, such as a lone surrogate")
}

/// A quoted literal of Python 2's `str`.
pub(super) fn string(line: &[u8]) -> Result<Vec<u8>> {
    let mut rest = match line {
        [open @ (b'\'' | b'"'), body @ .., close] if open == close => body,
        _ => return Err(malformed("string")),
    };
    let mut bytes = Vec::new();
    while let [byte, after @ ..] = rest {
        let (byte, after) = match (byte, after) {
            (b'\\', [escape, after @ ..]) => match escape {
                b'x' => {
                    let (value, after) = hexadecimal(after, 2).ok_or_else(|| malformed("escape"))?;
                    (value as u8, after)
                }
                b'n' => (b'\n', after),
                b'r' => (b'\r', after),
                b't' => (b'\t', after),
                b'\\' | b'\'' | b'"' => (*escape, after),
                // No other is ever written by `repr`.
                _ => return Err(malformed("escape")),
            },
            _ => (*byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    Ok(bytes)
}
