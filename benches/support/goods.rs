//! What is put into queues, and into what is compared with them: made and looked at in the same way, whatever
//! it goes through.

use bytes::Bytes;
use tokio_multiprocess as mp;

pub(crate) trait Goods: Send + Sync + 'static {
    type Item: mp::Message;
    /// Whatever is needed to make items.
    fn new(size: usize) -> Self;
    /// The next one, as whoever puts it has to make it.
    fn item(&self, number: u32) -> Self::Item;
    /// Looks at all that was got.
    fn look(item: &Self::Item, size: usize);
}

pub(crate) struct Numbers;

impl Goods for Numbers {
    type Item = u64;

    fn new(_: usize) -> Self {
        Self
    }

    fn item(&self, number: u32) -> u64 {
        number.into()
    }

    fn look(item: &u64, _: usize) {
        std::hint::black_box(*item);
    }
}

/// What bytes consist of.
pub(crate) const BYTE: u8 = 7;

/// Looks at a byte in each page: bytes that nobody has read may not have arrived.
pub(crate) fn look(bytes: &[u8], size: usize) {
    assert_eq!(bytes.len(), size);
    assert!(bytes.iter().step_by(4096).all(|byte| *byte == BYTE));
}

/// A copy of the same bytes each time.
pub(crate) struct Vecs(Vec<u8>);

impl Goods for Vecs {
    type Item = Vec<u8>;

    fn new(size: usize) -> Self {
        Self(vec![BYTE; size])
    }

    fn item(&self, _: u32) -> Vec<u8> {
        self.0.clone()
    }

    fn look(item: &Vec<u8>, size: usize) {
        look(item, size);
    }
}

/// The same bytes each time.
pub(crate) struct SharedBytes(Bytes);

impl Goods for SharedBytes {
    type Item = Bytes;

    fn new(size: usize) -> Self {
        Self(vec![BYTE; size].into())
    }

    fn item(&self, _: u32) -> Bytes {
        self.0.clone()
    }

    fn look(item: &Bytes, size: usize) {
        look(item, size);
    }
}

/// A new blob each time.
pub(crate) struct NewBlobs(Vec<u8>);

impl Goods for NewBlobs {
    type Item = mp::Blob;

    fn new(size: usize) -> Self {
        Self(vec![BYTE; size])
    }

    fn item(&self, _: u32) -> mp::Blob {
        mp::Blob::new(&self.0).expect("memory")
    }

    fn look(item: &mp::Blob, size: usize) {
        look(item, size);
    }
}

/// The same blob each time.
pub(crate) struct OneBlob(mp::Blob);

impl Goods for OneBlob {
    type Item = mp::Blob;

    fn new(size: usize) -> Self {
        Self(mp::Blob::new(vec![BYTE; size]).expect("memory"))
    }

    fn item(&self, _: u32) -> mp::Blob {
        self.0.clone()
    }

    fn look(item: &mp::Blob, size: usize) {
        look(item, size);
    }
}
