//! Memory that is read while others write it, without being torn below a word.
//!
//! Rust, as the processor's manuals, says nothing of accesses of different sizes that race for the same
//! bytes. So there is one size: everything is a word, and what is smaller than that is exchanged within its
//! word.

use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::Shared;

const WORD: usize = size_of::<AtomicU64>();

impl Shared {
    /// Copies out. What lies within a word, of those that the whole memory consists of, comes as somebody
    /// has written it; several words may be of several writers. What a writer did before, who was read
    /// here, is seen from here on.
    ///
    /// # Panics
    /// As all access here: when that is outside of the memory, up to a last word that is not whole.
    pub(crate) fn load_into(&self, offset: usize, into: &mut [u8]) {
        let skip = offset % WORD;
        let (head, rest) = into.split_at_mut(into.len().min((WORD - skip) % WORD));
        let (whole, tail) = rest.as_chunks_mut();
        let mut words = self.words(offset, head.len() + WORD * whole.len() + tail.len());
        let mut next = || words.next().expect("there are as many").load(Relaxed).to_ne_bytes();
        if !head.is_empty() {
            head.copy_from_slice(&next()[skip..][..head.len()]);
        }
        whole.iter_mut().for_each(|chunk| *chunk = next());
        if !tail.is_empty() {
            tail.copy_from_slice(&next()[..tail.len()]);
        }
        fence(Ordering::Acquire);
    }

    /// Copies in: see [`load_into`](Self::load_into). The other bytes of a word stay as others write them.
    pub(crate) fn store_from(&self, offset: usize, bytes: &[u8]) {
        fence(Ordering::Release);
        let skip = offset % WORD;
        let (head, rest) = bytes.split_at(bytes.len().min((WORD - skip) % WORD));
        let (whole, tail) = rest.as_chunks();
        let mut words = self.words(offset, bytes.len());
        let mut next = || words.next().expect("there are as many");
        if !head.is_empty() {
            exchange(next(), skip, head);
        }
        whole.iter().for_each(|chunk| next().store(u64::from_ne_bytes(*chunk), Relaxed));
        if !tail.is_empty() {
            exchange(next(), 0, tail);
        }
    }

    /// Replaces a few bytes, which lie within one word, by what `f` makes of them, unless it says `None`: as
    /// one step that nobody's writing can come between. Gives what was there.
    pub(crate) fn update<const N: usize>(
        &self,
        offset: usize,
        mut f: impl FnMut([u8; N]) -> Option<[u8; N]>,
    ) -> [u8; N] {
        let skip = offset % WORD;
        let word = self.words(offset, N).next().expect("more than no bytes are exchanged");
        let part = |word: u64| *word.to_ne_bytes()[skip..].first_chunk().expect("they lie within a word");
        let result =
            word.fetch_update(AcqRel, Ordering::Acquire, |old| Some(with(old, skip, &f(part(old))?)));
        part(result.unwrap_or_else(|old| old))
    }

    /// The words in which these bytes lie.
    fn words(&self, offset: usize, len: usize) -> std::slice::Iter<'_, AtomicU64> {
        if len == 0 {
            return [].iter();
        }
        let skip = offset % WORD;
        let count = len.saturating_add(skip).div_ceil(WORD);
        let first = self.range(offset - skip, count.saturating_mul(WORD)).cast::<AtomicU64>();
        assert!(first.is_aligned());
        // SAFETY: so many words are mapped and writable as long as `self` lives, aligned, and any bits are
        // a value.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), count) }.iter()
    }
}

fn exchange(word: &AtomicU64, skip: usize, bytes: &[u8]) {
    let _ = word.fetch_update(AcqRel, Relaxed, |old| Some(with(old, skip, bytes)));
}

/// The word with other bytes in the place of some.
fn with(word: u64, skip: usize, bytes: &[u8]) -> u64 {
    let mut all = word.to_ne_bytes();
    all[skip..][..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(all)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::{memfd, seal_fixed_size};
    use super::*;

    fn shared(len: usize) -> Shared {
        let fd = memfd("test", len).unwrap();
        seal_fixed_size(fd.as_fd()).unwrap();
        Shared::map(fd.as_fd()).unwrap()
    }

    #[test]
    fn any_bytes_can_be_copied_out_and_in_and_no_others_change() {
        for offset in 0..24 {
            for len in 0..=32 - offset {
                let memory = shared(32);
                memory.store_from(0, &[0xee; 32]);
                let bytes: Vec<_> = (1..=len as u8).collect();
                memory.store_from(offset, &bytes);
                let mut all = [0; 32];
                memory.load_into(0, &mut all);
                let mut expected = [0xee; 32];
                expected[offset..][..len].copy_from_slice(&bytes);
                assert_eq!(all, expected, "{len} at {offset}");
                let mut part = vec![0; len];
                memory.load_into(offset, &mut part);
                assert_eq!(part, bytes, "{len} at {offset}");
            }
        }
    }

    #[test]
    fn a_few_bytes_can_be_exchanged_within_their_word() {
        let memory = shared(16);
        memory.store_from(0, &[0xee; 16]);
        assert_eq!(memory.update(10, |[a, b]| Some([a - 1, b - 2])), [0xee, 0xee]);
        assert_eq!(memory.update(10, |_: [u8; 2]| None), [0xed, 0xec]);
        let mut bytes = [0; 4];
        memory.load_into(9, &mut bytes);
        assert_eq!(bytes, [0xee, 0xed, 0xec, 0xee]);
    }

    #[test]
    fn what_is_outside_or_no_word_is_not_there() {
        let memory = shared(20);
        let panics = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
        assert!(panics(&|| memory.store_from(16, &[1])), "the last word is not whole");
        assert!(panics(&|| memory.load_into(15, &mut [0; 2])));
        assert!(panics(&|| memory.load_into(usize::MAX, &mut [0; 2])));
        assert!(panics(&|| _ = memory.update(6, |bytes: [u8; 4]| Some(bytes))));
        memory.load_into(20, &mut []);
        shared(0).store_from(0, &[]);
    }

    /// Also of neighbours within a word nothing is lost.
    #[test]
    fn racing_writers_tear_nothing_below_a_word() {
        let memory = shared(16);
        let rounds = 100_000u32;
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for byte in [0, 1] {
                let (memory, start) = (&memory, &start);
                scope.spawn(move || {
                    start.wait();
                    (0..rounds).for_each(|i| memory.store_from(byte, &[i as u8]));
                    memory.store_from(byte, &[7]);
                });
            }
            scope.spawn(|| {
                start.wait();
                for i in 0..rounds {
                    memory.update(4, |old: [u8; 4]| Some((u32::from_ne_bytes(old) + 1).to_ne_bytes()));
                    memory.store_from(8, &[i as u8; 8]);
                }
            });
            let mut word = [0; 8];
            for _ in 0..rounds {
                memory.load_into(8, &mut word);
                assert_eq!(word, [word[0]; 8]);
            }
        });
        let mut bytes = [0; 8];
        memory.load_into(0, &mut bytes);
        assert_eq!((bytes[..4].to_vec(), &bytes[4..]), (vec![7, 7, 0, 0], &rounds.to_ne_bytes()[..]));
    }
}
