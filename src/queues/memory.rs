//! The memory of a queue, and what its parts are.
//!
//! | bytes | are |
//! |---|---|
//! | 0.. | the parts, [`Part`], each an [`Object`] of 8 KiB |
//! | [`WORDS_AT`].. | the ring's words, [`SHUT_DOWN`], the table of extents |
//! | [`DATA_AT`].. | the ring's bytes |
//! | [`MAPPED`].. | extents, which nobody maps |

use std::sync::atomic::Ordering;

use super::{acks, slots};
use crate::ring::extents;
use crate::ring::many::{Layout, Mark, Ring};
use crate::synchronize::LOCK;
use crate::synchronize::object::{Kind, Object, SIZE};
use crate::synchronize::protocol::Here;
use crate::sys::BorrowedFd;
use crate::sys::memory::Shared;

/// How many bytes the ring has.
pub(super) const CAPACITY: usize = 1 << 20;

/// What sleeps for one thing has a part of its own, so that whoever is rung for can use what the ring is for.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// Who joins the queue, and what was got and not acknowledged.
    Done,
    Producers,
    Consumers,
    /// Who gets, and all who have the queue.
    Items,
    /// Who puts or reserves, and what is held that is not in the ring.
    Slots,
    /// What waits for room.
    Room,
}

impl Part {
    pub(super) const COUNT: usize = 6;

    pub(super) const fn at(self) -> usize {
        self as usize * SIZE
    }
}

pub(super) const WORDS_AT: usize = Part::COUNT * SIZE;
pub(super) const LAYOUT: Layout =
    Layout { tail: WORDS_AT, head: WORDS_AT + 128, data: DATA_AT, capacity: CAPACITY };
/// 1 once nothing more is put.
pub(super) const SHUT_DOWN: usize = WORDS_AT + 256;
pub(super) const EXTENTS: extents::Layout =
    extents::Layout { table: WORDS_AT + 1024, entries: 64, head: LAYOUT.head, tail: LAYOUT.tail };
pub(super) const DATA_AT: usize = WORDS_AT + 4096;
const _: () = assert!(EXTENTS.table + EXTENTS.entries * extents::ENTRY <= DATA_AT);
pub(super) const MAPPED: usize = DATA_AT + CAPACITY;
const _: () = assert!(MAPPED <= extents::REGION);
pub(super) const WHOLE: usize = (EXTENTS.entries + 1) * extents::REGION;

pub(super) type Extents<'a> = extents::Extents<'a, Shared, Here, BorrowedFd<'a>>;
pub(super) type Claimed<'a> = extents::Claimed<'a, Shared, Here, BorrowedFd<'a>>;
pub(super) type Extent<'a> = extents::Reserved<'a, Shared, Here, BorrowedFd<'a>>;

/// The ring, as an object of one part finds it.
pub(super) fn ring_from(object: &Object, part: Part) -> Ring<&Shared> {
    let Layout { tail, head, data, capacity } = LAYOUT;
    let layout = Layout { tail: tail - part.at(), head: head - part.at(), data: data - part.at(), capacity };
    Ring::new(object.words(), layout)
}

/// How many items were put and are not done, and how many were left behind by who died.
pub(super) fn unfinished_from(object: &Object, part: Part, looks: bool) -> (u64, u64) {
    let slots = object.words().tail_from(Part::Slots.at() - part.at());
    let done = object.words().tail_from(Part::Done.at() - part.at());
    let ring = ring_from(object, part);
    unfinished(
        || slots::held(&slots, &Here, looks).waiting,
        || ring.head(),
        || ring.tail(),
        |head| acks::standing(&done, &Here, head.sequence(), looks),
    )
}

/// [`unfinished_from`], of words that are read by these.
///
/// Each item is looked for in the order in which it goes, so that none is missed that was put before. One that is
/// put meanwhile, by who acknowledges another one after that, may be: so there is none only if nothing has moved
/// by then. What is put for an item has moved something before that item is acknowledged.
fn unfinished(
    waiting: impl Fn() -> u32,
    head: impl Fn() -> Mark,
    tail: impl Fn() -> Mark,
    standing: impl Fn(Mark) -> acks::Standing,
) -> (u64, u64) {
    loop {
        let (waits, from) = (waiting(), head());
        let to = tail();
        let acks::Standing { taken, left } = standing(from);
        let all = u64::from(waits) + to.items_since(from) + taken;
        // In that order again: what waits no more is behind the tail.
        if all > 0 || waiting() == waits && tail() == to && head() == from {
            return (all, left);
        }
    }
}

pub(super) fn is_shut_down_from(object: &Object, part: Part) -> bool {
    object.words().atomic_u64(SHUT_DOWN - part.at()).load(Ordering::Acquire) != 0
}

pub(super) static ITEMS: Kind = Kind {
    code: 7,
    name: "queue",
    ready: |object, _| match ring_from(object, Part::Items).items() {
        0 if is_shut_down_from(object, Part::Items) => usize::MAX,
        items => items as usize,
    },
    passes_on: true,
    reap: |_, _| {},
    claimed: |_, _| {},
    // A process that uses the queue has one as long as it has the queue.
    holds: |_, _| false,
};

pub(super) static SLOTS: Kind = Kind {
    code: 8,
    name: "queue",
    ready: |object, looks| {
        if is_shut_down_from(object, Part::Slots) {
            return usize::MAX;
        }
        let held = slots::held(object.words(), &Here, looks).all();
        let used = ring_from(object, Part::Slots).items() + held;
        object.configuration().saturating_sub(used) as usize
    },
    passes_on: true,
    reap: |_, _| {},
    claimed: |words, cell| slots::claimed(words, cell),
    holds: |words, cell| slots::held_at(words, cell).all() > 0,
};

pub(super) static ROOM: Kind = Kind {
    code: 9,
    name: "queue",
    ready: |object, _| {
        let may_go_on = ring_from(object, Part::Room).free() > 0 || is_shut_down_from(object, Part::Room);
        if may_go_on { usize::MAX } else { 0 }
    },
    passes_on: false,
    reap: |_, _| {},
    claimed: |_, _| {},
    holds: |_, _| false,
};

pub(super) static DONE: Kind = Kind {
    code: 10,
    name: "queue",
    ready: |object, looks| match unfinished_from(object, Part::Done, looks) {
        (0, _) => usize::MAX,
        _ => 0,
    },
    passes_on: false,
    reap: |_, _| {},
    claimed: |words, cell| {
        let head = words.atomic_u64(LAYOUT.head - Part::Done.at()).load(Ordering::Acquire);
        acks::claimed(words, cell, Mark(head).sequence());
    },
    holds: |words, cell| acks::holds(words, cell),
};

/// All parts, and what each is.
pub(super) fn parts() -> [(Part, &'static Kind); Part::COUNT] {
    [
        (Part::Done, &DONE),
        (Part::Producers, &LOCK),
        (Part::Consumers, &LOCK),
        (Part::Items, &ITEMS),
        (Part::Slots, &SLOTS),
        (Part::Room, &ROOM),
    ]
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What a worker changes, and a joiner reads.
    #[derive(Default)]
    struct Shared {
        waiting: Cell<u32>,
        tail: Cell<u64>,
        taken: Cell<u64>,
    }

    type Step = fn(&Shared);

    /// A worker that has an item puts the next one, and acknowledges the first after that.
    const TO_THE_RING: &[Step] = &[|s| s.tail.set(1), |s| s.taken.set(0)];
    const BY_THE_BACKLOG: &[Step] =
        &[|s| s.waiting.set(1), |s| s.taken.set(0), |s| s.tail.set(1), |s| s.waiting.set(0)];

    /// Whether each of the steps is done ahead of the read whose number it has here.
    fn joins_early(steps: &[Step], at: &[usize]) -> bool {
        let shared = Shared::default();
        shared.taken.set(1);
        let (reads, done) = (Cell::new(0), Cell::new(0));
        let read = || {
            while done.get() < steps.len() && at[done.get()] <= reads.get() {
                steps[done.get()](&shared);
                done.set(done.get() + 1);
            }
            reads.set(reads.get() + 1);
        };
        let (all, _) = unfinished(
            || {
                read();
                shared.waiting.get()
            },
            || {
                read();
                Mark(0)
            },
            || {
                read();
                Mark(shared.tail.get())
            },
            |_| {
                read();
                acks::Standing { taken: shared.taken.get(), left: 0 }
            },
        );
        all == 0
    }

    /// All ways in which so many steps come between so many reads.
    fn each_order(
        steps: usize,
        reads: usize,
        from: usize,
        at: &mut Vec<usize>,
        check: &mut impl FnMut(&[usize]),
    ) {
        if at.len() == steps {
            return check(at);
        }
        for next in from..=reads {
            at.push(next);
            each_order(steps, reads, next, at, check);
            at.pop();
        }
    }

    #[test]
    fn there_is_always_one_if_each_is_put_before_the_last_is_acknowledged() {
        for steps in [TO_THE_RING, BY_THE_BACKLOG] {
            each_order(steps.len(), 9, 0, &mut Vec::new(), &mut |at| {
                assert!(!joins_early(steps, at), "{at:?}");
            });
        }
    }
}
