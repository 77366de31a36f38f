//! The secret that processes of one program share, by which they know each other's connections.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serialize, Serializer};
use subtle::ConstantTimeEq;

const RANDOM_LEN: usize = 32;

const REFUSAL: &str = "an AuthKey is only ever sent to a child at its start";

/// A secret shared by the processes that may talk to each other.
///
/// A child inherits its parent's key at its start, and that is the only time a key travels:
/// serialising or deserialising one at any other moment is an error, so a key cannot slip into a
/// queue or a manager as part of a larger value. `Debug` prints no byte of it and comparison takes
/// the same time wherever two keys of one length differ.
///
/// Clones share one copy of the secret in memory. That memory is not wiped on drop.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::AuthKey;
///
/// let key = AuthKey::random();
/// assert_eq!(key.as_bytes().len(), 32);
/// assert_ne!(key, AuthKey::from(b"another secret".as_slice()));
/// assert_eq!(format!("{key:?}"), "AuthKey(..)");
/// ```
#[derive(Clone)]
pub struct AuthKey(Arc<[u8]>);

impl AuthKey {
    /// A key from bytes of the caller's choice, to meet a peer that was given the same ones.
    ///
    /// Any length but zero will do. 32 random bytes are as strong as the handshake gets; a word
    /// that people can remember is weaker, because whoever sees one handshake can try words
    /// against it at leisure.
    ///
    /// # Panics
    ///
    /// If `secret` is empty: such a key would let everybody in.
    #[must_use]
    pub fn new(secret: impl Into<Vec<u8>>) -> Self {
        let secret = secret.into();
        assert!(!secret.is_empty(), "an AuthKey must not be empty");
        Self(secret.into())
    }

    /// A key of 32 random bytes from the operating system.
    ///
    /// # Panics
    ///
    /// If the operating system gives no random bytes; without them nothing can be kept secret.
    #[must_use]
    pub fn random() -> Self {
        let mut secret = [0; RANDOM_LEN];
        getrandom::fill(&mut secret).expect("the operating system gives random bytes");
        Self::new(secret)
    }

    /// The secret itself. Take care where it goes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// As [`AuthKey::new`].
///
/// # Panics
///
/// If the slice is empty.
impl From<&[u8]> for AuthKey {
    fn from(secret: &[u8]) -> Self {
        Self::new(secret)
    }
}

/// As [`AuthKey::new`].
///
/// # Panics
///
/// If the vector is empty.
impl From<Vec<u8>> for AuthKey {
    fn from(secret: Vec<u8>) -> Self {
        Self::new(secret)
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(..)")
    }
}

impl PartialEq for AuthKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for AuthKey {}

thread_local! {
    static TRANSFER_ALLOWED: Cell<bool> = const { Cell::new(false) };
}

/// Lets keys be serialised and deserialised on this thread while `f` runs.
///
/// Both ends of a process start need it: the parent to encode the child's key, the child to decode
/// it.
pub(crate) fn allow_transfer<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);

    impl Drop for Restore {
        fn drop(&mut self) {
            TRANSFER_ALLOWED.set(self.0);
        }
    }

    let _restore = Restore(TRANSFER_ALLOWED.replace(true));
    f()
}

impl Serialize for AuthKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !TRANSFER_ALLOWED.get() {
            return Err(ser::Error::custom(REFUSAL));
        }
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for AuthKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !TRANSFER_ALLOWED.get() {
            return Err(de::Error::custom(REFUSAL));
        }
        deserializer.deserialize_byte_buf(SecretVisitor)
    }
}

struct SecretVisitor;

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = AuthKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes of an AuthKey, at least one")
    }

    fn visit_bytes<E: de::Error>(self, secret: &[u8]) -> Result<AuthKey, E> {
        self.visit_byte_buf(secret.to_vec())
    }

    fn visit_byte_buf<E: de::Error>(self, secret: Vec<u8>) -> Result<AuthKey, E> {
        if secret.is_empty() {
            return Err(E::invalid_length(0, &self));
        }
        Ok(AuthKey::new(secret))
    }

    // Formats without a byte type write bytes as a list of numbers.
    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<AuthKey, A::Error> {
        let mut secret = Vec::new();
        while let Some(byte) = bytes.next_element()? {
            secret.push(byte);
        }
        self.visit_byte_buf(secret)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn encode(key: &AuthKey) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec(key)
    }

    fn decode(bytes: &[u8]) -> Result<AuthKey, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }

    #[test]
    fn random_keys_are_long_and_differ() {
        let (a, b) = (AuthKey::random(), AuthKey::random());
        assert_eq!(a.as_bytes().len(), 32);
        assert_ne!(a, b);
    }

    #[test]
    fn equality_is_by_bytes() {
        let key = AuthKey::new("secret");
        assert_eq!(key, key.clone());
        assert_eq!(key, AuthKey::from(b"secret".as_slice()));
        assert_eq!(key, AuthKey::from(b"secret".to_vec()));
        assert_ne!(key, AuthKey::new("secreT"));
        assert_ne!(key, AuthKey::new("secret\0"));
        assert_ne!(key, AuthKey::new("s"));
    }

    #[test]
    #[should_panic(expected = "must not be empty")]
    fn an_empty_key_is_refused() {
        let _ = AuthKey::new(Vec::new());
    }

    #[test]
    fn debug_shows_nothing_of_the_secret() {
        let holder = Some(AuthKey::new("hunter2"));
        assert_eq!(format!("{holder:?}"), "Some(AuthKey(..))");
        assert!(!format!("{holder:#?}").contains("hunter2"));
    }

    #[test]
    fn a_key_travels_only_inside_the_scope() {
        let key = AuthKey::random();
        let refused = encode(&key).unwrap_err().to_string();
        assert!(refused.contains(REFUSAL), "{refused}");

        let bytes = allow_transfer(|| encode(&key)).unwrap();
        let refused = decode(&bytes).unwrap_err().to_string();
        assert!(refused.contains(REFUSAL), "{refused}");

        assert_eq!(allow_transfer(|| decode(&bytes)).unwrap(), key);
        assert!(encode(&key).is_err());
    }

    #[test]
    fn scopes_nest_and_survive_panics() {
        let key = AuthKey::random();
        allow_transfer(|| {
            allow_transfer(|| ());
            assert!(encode(&key).is_ok(), "the inner scope ended the outer one");
            let caught = catch_unwind(AssertUnwindSafe(|| allow_transfer(|| panic!("expected"))));
            assert!(caught.is_err());
            assert!(encode(&key).is_ok(), "the panic ended the outer scope");
        });
        let caught = catch_unwind(AssertUnwindSafe(|| allow_transfer(|| panic!("expected"))));
        assert!(caught.is_err());
        assert!(encode(&key).is_err(), "the panic left the scope open");
    }

    #[test]
    fn the_scope_is_of_one_thread() {
        let key = AuthKey::random();
        allow_transfer(|| {
            let elsewhere = std::thread::scope(|s| s.spawn(|| encode(&key).is_err()).join());
            assert!(elsewhere.unwrap());
        });
    }

    #[test]
    fn lists_of_numbers_are_read_and_empty_keys_are_not() {
        let list = rmp_serde::to_vec(&[1u8, 2, 200]).unwrap();
        assert_eq!(allow_transfer(|| decode(&list)).unwrap(), AuthKey::new([1, 2, 200]));

        let empty_list = rmp_serde::to_vec::<[u8; 0]>(&[]).unwrap();
        let empty_bin = [0xc4, 0];
        for empty in [&empty_list[..], &empty_bin] {
            let error = allow_transfer(|| decode(empty)).unwrap_err().to_string();
            assert!(error.contains("at least one"), "{error}");
        }
    }
}
