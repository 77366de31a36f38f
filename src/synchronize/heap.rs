//! What tests wait for: something of which there are some, for whoever comes.

use std::sync::atomic::Ordering;

use super::object::{Kind, Object};
use super::protocol::STATE;

static KIND: Kind = Kind {
    code: 255,
    name: "heap",
    ready: |object, _| object.words().atomic_u64(STATE).load(Ordering::SeqCst) as usize,
    passes_on: true,
    reap: |_, _| {},
    claimed: |_, _| {},
    holds: |_, _| false,
};

#[derive(Clone, Debug)]
pub(crate) struct Heap(pub(crate) Object);

impl Heap {
    pub(crate) fn new() -> Self {
        Self(Object::create(&KIND, 0, 0).unwrap())
    }

    pub(crate) fn len(&self) -> usize {
        (KIND.ready)(&self.0, false)
    }

    pub(crate) fn add(&self) {
        self.0.words().atomic_u64(STATE).fetch_add(1, Ordering::SeqCst);
        self.0.call_one();
    }

    pub(crate) fn take(&self) -> Option<()> {
        let word = self.0.words().atomic_u64(STATE);
        word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).ok().map(drop)
    }
}
