//! Which descriptors go with which frame of a byte stream.
//!
//! Descriptors are sent with a frame's first byte, so they arrive with the read that brings it, and the
//! kernel ends such a read before others come. That read may begin with the frames before and end with
//! the ones after: so the parts of the stream in which descriptors came are remembered, until the frame
//! that announces them is found there.

use std::collections::VecDeque;
use std::ops::Range;

use super::frames::Fault;

/// Descriptors whose frame was not taken yet.
#[derive(Debug)]
pub(super) struct Beside<T> {
    arrivals: VecDeque<Arrival<T>>,
}

#[derive(Debug)]
struct Arrival<T> {
    /// What was read with them, counted from the stream's beginning.
    part: Range<u64>,
    handles: Vec<T>,
    /// Some are missing, as there was no room for them here.
    lost: bool,
}

/// What came beside a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<T> {
    All(Vec<T>),
    /// There was no room here for all of them.
    Lost,
}

impl<T> Default for Beside<T> {
    fn default() -> Self {
        Self { arrivals: VecDeque::new() }
    }
}

impl<T> Beside<T> {
    /// Notes descriptors that came with a part of the stream; `lost` if others came that did not fit.
    pub(super) fn arrive(&mut self, part: Range<u64>, handles: Vec<T>, lost: bool) {
        if lost || !handles.is_empty() {
            self.arrivals.push_back(Arrival { part, handles, lost });
        }
    }

    /// All that has come and was not taken.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Range<u64>, &[T], bool)> {
        self.arrivals.iter().map(|Arrival { part, handles, lost }| (part, &handles[..], *lost))
    }

    /// Compares what has come with what the next frame announces, as soon as its header is there, so
    /// that nobody fills this process with what no frame announces.
    pub(super) fn check(&self, frame: &Range<u64>, announced: usize) -> Result<(), Fault> {
        let mut arrivals = self.arrivals.iter();
        if announced > 0 {
            let own = arrivals.next().filter(|arrival| {
                arrival.part.contains(&frame.start) && (arrival.lost || arrival.handles.len() == announced)
            });
            own.ok_or(Fault::Malformed("a frame announces descriptors that did not come with it"))?;
        }
        match arrivals.next() {
            Some(arrival) if arrival.part.end <= frame.end => {
                Err(Fault::Malformed("descriptors came that no frame announces"))
            }
            _ => Ok(()),
        }
    }

    /// What has come before there is a header can only be what it will announce, with the frame's first
    /// byte. If it were not looked at until then, each byte of a header would bring others.
    pub(super) fn check_begun(&self, start: u64) -> Result<(), Fault> {
        match self.arrivals.front() {
            Some(own) if self.arrivals.len() > 1 || !own.part.contains(&start) => {
                Err(Fault::Malformed("descriptors came that no frame announces"))
            }
            _ => Ok(()),
        }
    }

    /// Takes those of a frame that was found to be right by [`check`](Self::check).
    pub(super) fn take(&mut self, announced: usize) -> Taken<T> {
        if announced == 0 {
            return Taken::All(Vec::new());
        }
        match self.arrivals.pop_front() {
            Some(Arrival { handles, lost: false, .. }) => Taken::All(handles),
            _ => Taken::Lost,
        }
    }
}

/// For how many messages it is still looked whether descriptors fit here before they are taken: what finds
/// no numbers for them stays in the socket. That costs a call, or a copy, so it begins with the first
/// descriptors that come, and ends when none are expected any more.
#[derive(Debug, Default)]
pub(crate) struct Caution(u8);

impl Caution {
    /// After how many messages without descriptors none is expected any more.
    const MESSAGES: u8 = 64;

    pub(crate) fn is_due(&self) -> bool {
        self.0 > 0
    }

    /// A message came, with descriptors or without.
    pub(crate) fn heed(&mut self, descriptors: bool) {
        self.0 = if descriptors { Self::MESSAGES } else { self.0.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Descriptors with a read from `start` to `end`.
    fn arrived(parts: &[(u64, u64, usize)]) -> Beside<usize> {
        let mut beside = Beside::default();
        for (start, end, count) in parts {
            beside.arrive(*start..*end, (0..*count).collect(), false);
        }
        beside
    }

    #[test]
    fn each_frame_gets_its_own() {
        // Three frames of ten bytes: the last two with descriptors.
        let mut beside = arrived(&[(0, 15, 2), (15, 30, 3)]);
        for (frame, announced) in [(0..10, 0), (10..20, 2), (20..30, 3)] {
            assert_eq!(beside.check(&frame, announced), Ok(()));
            assert_eq!(beside.take(announced), Taken::All((0..announced).collect()));
        }
        assert_eq!(beside.check(&(30..40), 0), Ok(()));
    }

    #[test]
    fn what_was_not_announced_is_found_at_once() {
        for (part, frame, announced) in [
            ((0, 10, 1), 0..10, 0),
            ((3, 5, 1), 0..10, 0),
            ((0, 4, 1), 0..1 << 40, 0),
            ((0, 10, 2), 0..10, 1),
        ] {
            assert!(matches!(arrived(&[part]).check(&frame, announced), Err(Fault::Malformed(_))));
        }
        // The second of these is one too many, while the first is right.
        assert!(arrived(&[(0, 4, 1), (4, 6, 1)]).check(&(0..10), 1).is_err());
        // It may belong to the frame that begins after this one.
        assert_eq!(arrived(&[(0, 11, 1)]).check(&(0..10), 0), Ok(()));
    }

    #[test]
    fn before_a_header_is_there_descriptors_come_once_and_with_its_first_byte() {
        for (parts, right) in [
            (&[][..], true),
            (&[(10, 11, 2)], true),
            // A read that brought the frame before as well.
            (&[(0, 11, 2)], true),
            (&[(11, 12, 2)], false),
            (&[(10, 11, 2), (11, 12, 2)], false),
        ] {
            assert_eq!(arrived(parts).check_begun(10).is_ok(), right, "{parts:?}");
        }
    }

    #[test]
    fn what_was_announced_must_have_come() {
        assert!(arrived(&[]).check(&(0..10), 1).is_err());
        assert!(arrived(&[(4, 8, 1)]).check(&(0..10), 1).is_err());
        assert!(arrived(&[(12, 20, 1)]).check(&(0..10), 1).is_err());
    }

    #[test]
    fn what_did_not_fit_is_the_loss_of_one_frame() {
        let mut beside = Beside::default();
        beside.arrive(0..10, vec![1], true);
        beside.arrive(10..20, vec![2], false);
        assert_eq!(beside.check(&(0..10), 3), Ok(()));
        assert_eq!(beside.take(3), Taken::Lost);
        assert_eq!(beside.check(&(10..20), 1), Ok(()));
        assert_eq!(beside.take(1), Taken::All(vec![2]));
    }

    #[test]
    fn caution_ends_sixty_four_messages_after_the_last_descriptors() {
        let mut caution = Caution::default();
        assert!(!caution.is_due());
        for _ in 0..2 {
            caution.heed(true);
            for _ in 0..64 {
                assert!(caution.is_due());
                caution.heed(false);
            }
            assert!(!caution.is_due());
        }
        caution.heed(false);
        assert!(!caution.is_due());
    }
}
