//! Names of shared memory.

use crate::error::{Error, Result};

/// The longest name of a file, in bytes.
const LONGEST: usize = 255;

/// Checks a name, and takes off the slash that POSIX wants before it.
///
/// # Errors
/// If it cannot be one.
pub(super) fn checked(name: &str) -> Result<&str> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let wrong = match bare {
        "" => "is empty",
        "." | ".." => "is a directory's",
        _ if bare.contains('/') => "has a slash that is not its first character",
        _ if bare.contains('\0') => "has a zero in it",
        _ if bare.len() > LONGEST => "is longer than 255 bytes",
        _ => return Ok(bare),
    };
    Err(Error::invalid(format!("the name of shared memory `{}` {wrong}", name.escape_debug())))
}

/// A name that hardly anybody has, of the kind that CPython gives.
pub(super) fn random() -> Result<String> {
    let number = getrandom::u32().map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(format!("psm_{number:08x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_slash_at_most_and_that_first() {
        for name in ["a", "/a", "psm_1", ".a", "ä b", &"x".repeat(255), &format!("/{}", "x".repeat(255))] {
            assert_eq!(checked(name).unwrap(), name.trim_start_matches('/'));
        }
        for name in ["", "/", "//a", "a/b", "a/", ".", "..", "/..", "a\0", &"ä".repeat(128)] {
            let error = checked(name).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        }
    }

    #[test]
    fn random_names_are_names() {
        let (a, b) = (random().unwrap(), random().unwrap());
        assert_ne!(a, b);
        assert_eq!(checked(&a).unwrap(), a);
        assert_eq!(a.len(), 12);
    }
}
