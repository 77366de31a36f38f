//! A condition: each cell counts how many of its process wait, and how many of these are notified.
//!
//! | count of a cell | changed by | in one step |
//! |---|---|---|
//! | waiting + 1 | a process that begins to wait, while it still holds the condition's lock | yes |
//! | notified up to waiting | who notifies, while it holds the lock; who passes on; who reaps | yes, for each cell |
//! | waiting − 1, notified − 1 | a process of which one is notified and goes | yes |
//! | waiting − 1 | a process of which one goes without: in vain, or cancelled | yes |
//!
//! Never are more notified than wait, so no notification is kept for who comes later. Which of a process's
//! waiters are meant is known to that process alone, by their [`Line`]: the first ones. So one that comes after
//! a notification does not take it from one that was there before.
//!
//! Nothing that a process has begun is finished for it when it dies. Whatever it had in hand, a notification
//! that it was giving, had taken or was passing on, those who [`reap`] its cell notify everybody instead, and
//! free the cell only after that.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::{Cell, STATE, Words, World, cells};

/// Where the next one who notifies begins to look: a matter of fairness, so it may be anything.
const TURN: usize = STATE;

/// What a cell counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) waiting: u32,
    pub(crate) notified: u32,
}

impl Count {
    fn of(words: &impl Words, cell: Cell) -> Self {
        Self::from(words.load(cell.count(), Ordering::SeqCst))
    }

    fn unnotified(self) -> u32 {
        self.waiting.saturating_sub(self.notified)
    }
}

impl From<u64> for Count {
    fn from(word: u64) -> Self {
        Self { waiting: (word >> 32) as u32, notified: word as u32 }
    }
}

impl From<Count> for u64 {
    fn from(count: Count) -> Self {
        Self::from(count.waiting) << 32 | Self::from(count.notified)
    }
}

/// Changes what a cell counts, unless `change` finds nothing to do; returns what it counted before.
fn update(words: &impl Words, cell: Cell, change: impl Fn(Count) -> Option<Count>) -> Option<Count> {
    let mut now = words.load(cell.count(), Ordering::SeqCst);
    loop {
        match words.compare_exchange(cell.count(), now, change(now.into())?.into()) {
            Ok(before) => return Some(before.into()),
            Err(other) => now = other,
        }
    }
}

/// Those of a process who wait, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Line {
    places: VecDeque<u64>,
    next: u64,
}

/// Somebody's place in its process's line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Line {
    /// Begins to wait. The condition's lock is held.
    pub(crate) fn enter(&mut self, words: &impl Words, cell: Cell) -> Place {
        let is_first = self.places.is_empty();
        update(words, cell, |count| {
            // What a dead process has left in the cell is forgotten: see `reap`.
            let count = if is_first { Count::default() } else { count };
            Some(Count { waiting: count.waiting.saturating_add(1), ..count })
        });
        let place = self.next;
        self.next += 1;
        self.places.push_back(place);
        Place(place)
    }

    /// Whether somebody is notified.
    pub(crate) fn is_notified(&self, words: &impl Words, cell: Cell, place: &Place) -> bool {
        self.rank(place) < Count::of(words, cell).notified as usize
    }

    /// Waits no more; true if it takes a notification along. One who does not use that has to [`notify`]
    /// another.
    pub(crate) fn leave(&mut self, words: &impl Words, cell: Cell, place: Place) -> bool {
        let rank = self.rank(&place);
        let is_meant = |count: Count| rank < count.notified as usize;
        let before = update(words, cell, |count| {
            Some(Count {
                waiting: count.waiting.saturating_sub(1),
                notified: count.notified - u32::from(is_meant(count)),
            })
        });
        self.places.remove(rank);
        before.is_some_and(is_meant)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many stand before it.
    fn rank(&self, place: &Place) -> usize {
        self.places.partition_point(|other| *other < place.0)
    }
}

/// How many of a process's cell are notified and still here.
pub(crate) fn notified(words: &impl Words, cell: Cell) -> usize {
    Count::of(words, cell).notified as usize
}

/// Notifies up to `n` who wait, or all of them if they are fewer, and says how many: the first of each
/// process, and processes in turn. `call` is told the cells of those. The condition's lock is held, but by who
/// only passes a notification on.
pub(crate) fn notify(words: &impl Words, n: usize, mut call: impl FnMut(Cell)) -> usize {
    let cells = words.cells();
    let turn = words.load(TURN, Ordering::Relaxed) as usize % cells;
    let mut left = n;
    for cell in (0..cells).map(|i| Cell((turn + i) % cells)) {
        if left == 0 {
            words.store(TURN, cell.0 as u64, Ordering::Relaxed);
            break;
        }
        let gives =
            |count: Count| u32::try_from(left).map_or(count.unnotified(), |n| n.min(count.unnotified()));
        // Also of a cell that is free, as it counts none that are not notified; and of a dead process, as it is
        // reaped after this.
        let given = update(words, cell, |count| match gives(count) {
            0 => None,
            more => Some(Count { notified: count.notified + more, ..count }),
        })
        .map(gives);
        if let Some(given) = given {
            left -= given as usize;
            call(cell);
        }
    }
    n - left
}

/// Frees the cells of dead processes, after it has notified everybody. `call` is told the cells of those.
///
/// It may be cut short anywhere, and is then begun anew by the next one, who still finds the dead process. It
/// may be slow, and come when the cell has its next process: then it notifies that one for nothing.
pub(crate) fn reap(words: &impl Words, world: &impl World, mut call: impl FnMut(Cell)) {
    for (cell, owner) in cells::dead(words, world) {
        take_out(words, cell, &mut call);
        cells::clear(words, cell, owner);
    }
}

/// Takes out of a dead process's cell all that belongs to it.
pub(crate) fn take_out(words: &impl Words, dead: Cell, mut call: impl FnMut(Cell)) {
    // First the dead one's, from when on it attracts nothing: what it was given before is made up for in the
    // others, where all are counted that waited then. Such a count says no more than none does.
    notify_all_of(words, dead);
    for cell in cells::all(words) {
        if notify_all_of(words, cell) {
            call(cell);
        }
    }
}

fn notify_all_of(words: &impl Words, cell: Cell) -> bool {
    update(words, cell, |count| {
        (count.unnotified() > 0).then_some(Count { notified: count.waiting, ..count })
    })
    .is_some()
}

/// How many wait and are not notified yet. Those of a dead process count until it is reaped.
pub(crate) fn waiting(words: &impl Words) -> usize {
    cells::all(words).map(|cell| Count::of(words, cell).unnotified() as usize).sum()
}

#[cfg(all(test, multiprocess))]
mod tests {
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::super::model::{Actor, Fate, Model, each_death, each_stop, explore};
    use super::*;

    /// A process that lives, in the cell of its number.
    fn living(model: &Model, number: u64) -> (Actor, Cell) {
        process(model, number, Fate::Lives)
    }

    /// One that was alive when it took its cell.
    fn process(model: &Model, number: u64, fate: Fate) -> (Actor, Cell) {
        let cell = Cell(number as usize - 1);
        model.actor(number, Fate::Lives).store(cell.identity(), number, Ordering::SeqCst);
        (model.actor(number, fate), cell)
    }

    fn count(words: &impl Words, cell: Cell) -> (u32, u32) {
        let count = Count::of(words, cell);
        (count.waiting, count.notified)
    }

    fn notify_n(words: &impl Words, n: usize) -> usize {
        notify(words, n, |_| ())
    }

    #[test]
    fn as_many_are_notified_as_are_asked_for_and_wait() {
        explore(0, || {
            let model = Model::new();
            let processes = [1, 2, 3].map(|number| living(&model, number));
            let words = &model.actor(9, Fate::Lives);
            assert_eq!(notify_n(words, 1), 0);
            let mut lines = [(); 3].map(|()| Line::default());
            let mut places = Vec::new();
            for (i, waiters) in [2, 1, 3].into_iter().enumerate() {
                for _ in 0..waiters {
                    places.push((i, lines[i].enter(words, processes[i].1)));
                }
            }
            let notified = |lines: &[Line; 3]| {
                let all = places.iter().enumerate();
                let notified =
                    all.filter(|(_, (i, place))| lines[*i].is_notified(words, processes[*i].1, place));
                notified.map(|(number, _)| number).collect::<Vec<_>>()
            };
            assert_eq!(waiting(words), 6);
            assert_eq!((notify_n(words, 0), notified(&lines)), (0, vec![]));
            assert_eq!((notify_n(words, 1), notified(&lines)), (1, vec![0]));
            // The next process's turn.
            assert_eq!((notify_n(words, 2), notified(&lines)), (2, vec![0, 2, 3]));
            assert_eq!(waiting(words), 3);
            let mut called = Vec::new();
            assert_eq!(notify(words, usize::MAX, |cell| called.push(cell.0)), 3);
            called.sort_unstable();
            assert_eq!((called, notified(&lines)), (vec![0, 2], vec![0, 1, 2, 3, 4, 5]));
            assert_eq!((notify_n(words, usize::MAX), waiting(words)), (0, 0));
            for (i, place) in places {
                assert!(lines[i].leave(words, processes[i].1, place));
            }
            assert!(processes.iter().all(|(_, cell)| count(words, *cell) == (0, 0)));
        });
    }

    #[test]
    fn who_comes_later_takes_nothing_from_who_was_there() {
        explore(0, || {
            let (words, cell) = &living(&Model::new(), 1);
            let mut line = Line::default();
            let first = line.enter(words, *cell);
            notify_n(words, 1);
            let second = line.enter(words, *cell);
            assert!(line.is_notified(words, *cell, &first) && !line.is_notified(words, *cell, &second));
            assert_eq!(notified(words, *cell), 1);
            // Nor does one that goes in vain.
            assert!(!line.leave(words, *cell, second));
            assert_eq!(count(words, *cell), (1, 1));
            assert!(line.leave(words, *cell, first));
            assert_eq!(count(words, *cell), (0, 0));
        });
    }

    /// One notification, and two who wait, of which one gives up and passes on what it may have got. Its
    /// process may end before any access, and so may the one that notifies, and one that reaps: the one that
    /// is left is notified all the same. Says which have ended.
    fn one_gives_up([gives_up, notifies, reaps]: [Fate; 3]) -> [bool; 3] {
        let model = Model::new();
        let (patient, patient_cell) = living(&model, 1);
        let (impatient, impatient_cell) = process(&model, 2, gives_up);
        let (notifier, _) = process(&model, 3, notifies);
        let reaper = model.actor(4, reaps);
        let (mut patient_line, mut impatient_line) = (Line::default(), Line::default());
        let place = patient_line.enter(&patient, patient_cell);
        let leaving = impatient_line.enter(&patient, impatient_cell);
        let giving_up = thread::spawn(move || {
            impatient.act(|words| {
                if impatient_line.leave(words, impatient_cell, leaving) {
                    notify_n(words, 1);
                }
            });
            impatient.has_ended()
        });
        let reaping = thread::spawn(move || {
            reaper.act(|actor| reap(actor, actor, |_| ()));
            reaper.has_ended()
        });
        let notified = notifier.act(|words| notify_n(words, 1));
        let ended = [giving_up.join().unwrap(), notifier.has_ended(), reaping.join().unwrap()];
        reap(&patient, &patient, |_| ());
        if ended == [false; 3] {
            assert_eq!(notified, Some(1));
            assert_eq!(count(&patient, impatient_cell), (0, 0));
        }
        let has_stopped = [gives_up, notifies]
            .into_iter()
            .zip(ended)
            .any(|(fate, ended)| ended && matches!(fate, Fate::Stops(_)));
        // Who is stopped goes on some time.
        let is_notified = patient_line.is_notified(&patient, patient_cell, &place);
        assert!(is_notified || has_stopped, "the one that is left waits in vain");
        // Whatever has happened, it can be notified, and so can one that comes later.
        let later = patient_line.enter(&patient, patient_cell);
        assert_eq!(count(&patient, patient_cell), (2, u32::from(is_notified)));
        notify_n(&patient, usize::MAX);
        assert!(patient_line.leave(&patient, patient_cell, later));
        assert!(patient_line.leave(&patient, patient_cell, place));
        assert_eq!(count(&patient, patient_cell), (0, 0));
        ended
    }

    const LIVES: Fate = Fate::Lives;

    #[test]
    fn who_gives_up_may_end_anywhere() {
        each_death(2, |fate| one_gives_up([fate, LIVES, LIVES])[0]);
        each_stop(2, |fate| one_gives_up([fate, LIVES, LIVES])[0]);
    }

    #[test]
    fn who_notifies_may_end_anywhere() {
        each_death(2, |fate| one_gives_up([LIVES, fate, LIVES])[1]);
        each_stop(2, |fate| one_gives_up([LIVES, fate, LIVES])[1]);
    }

    /// And who reaps a dead one may end as well.
    #[test]
    fn who_reaps_may_end_anywhere() {
        for at in 0..12 {
            let died = Fate::Dies(at);
            each_death(1, move |fate| one_gives_up([died, LIVES, fate])[2]);
            each_death(1, move |fate| one_gives_up([LIVES, died, fate])[2]);
        }
        each_stop(1, |fate| one_gives_up([Fate::Dies(1), LIVES, fate])[2]);
    }

    /// Two of one process, of which one gives up while another process notifies one, and then waits itself in
    /// the first one's process: what it gave does not come to it, but by way of the one that gave up.
    #[test]
    fn one_process_passes_on_within_itself() {
        explore(3, || {
            let model = Model::new();
            let (words, cell) = living(&model, 1);
            let (other, _) = living(&model, 2);
            let line = Arc::new(Mutex::new(Line::default()));
            let mut here = line.lock().unwrap();
            let (first, second) = (here.enter(&words, cell), here.enter(&words, cell));
            drop(here);
            let giving_up = thread::spawn({
                let line = line.clone();
                move || {
                    let has_one = line.lock().unwrap().leave(&words, cell, first);
                    if has_one {
                        notify_n(&words, 1);
                    }
                }
            });
            assert_eq!(notify_n(&other, 1), 1);
            let third = line.lock().unwrap().enter(&other, cell);
            giving_up.join().unwrap();
            let line = line.lock().unwrap();
            assert!(line.is_notified(&other, cell, &second));
            assert!(!line.is_notified(&other, cell, &third));
            assert_eq!(count(&other, cell), (2, 1));
        });
    }

    /// Somebody comes while a dead process is reaped, and a notification goes to the dead one first.
    #[test]
    fn a_dead_process_keeps_nothing_that_it_is_given() {
        explore(3, || {
            let model = Model::new();
            let (waiter, waiter_cell) = living(&model, 1);
            let (dead, dead_cell) = process(&model, 2, Fate::Dies(0));
            Line::default().enter(&waiter, dead_cell);
            waiter.store(TURN, dead_cell.0 as u64, Ordering::SeqCst);
            dead.act(|words| notify_n(words, 1));
            let reaper = model.actor(3, Fate::Lives);
            let reaping = thread::spawn(move || reap(&reaper, &reaper, |_| ()));
            let mut line = Line::default();
            let place = line.enter(&waiter, waiter_cell);
            notify_n(&waiter, 1);
            reaping.join().unwrap();
            reap(&waiter, &waiter, |_| ());
            assert!(line.is_notified(&waiter, waiter_cell, &place));
        });
    }

    /// Two reap the same dead process, however slow one of them is, and a process takes the cell over as soon as
    /// it is free.
    #[test]
    fn a_cell_goes_from_a_dead_process_to_a_living_one() {
        explore(3, || {
            let model = Model::new();
            let (dead, cell) = process(&model, 1, Fate::Dies(0));
            let (waiter, waiter_cell) = living(&model, 2);
            let (mut line, mut dead_line) = (Line::default(), Line::default());
            dead_line.enter(&waiter, cell);
            dead_line.enter(&waiter, cell);
            let place = line.enter(&waiter, waiter_cell);
            // It was meant for both, and one has died with it.
            notify_n(&waiter, 1);
            dead.act(|words| notify_n(words, 1));
            let slow = model.actor(3, Fate::Lives);
            let reaping = thread::spawn(move || reap(&slow, &slow, |_| ()));
            reap(&waiter, &waiter, |_| ());
            assert!(line.is_notified(&waiter, waiter_cell, &place));
            assert!(line.leave(&waiter, waiter_cell, place));
            // The next process, which waits, and is notified only for nothing or in earnest.
            let next = model.actor(4, Fate::Lives);
            assert_eq!(cells::claim(&next, &next, |_| unreachable!()), Some(cell));
            let mut line = Line::default();
            let place = line.enter(&next, cell);
            let by_now = Count::of(&next, cell);
            assert!(by_now.waiting == 1 && by_now.notified <= 1);
            notify_n(&next, 1);
            assert!(line.is_notified(&next, cell, &place));
            reaping.join().unwrap();
            assert!(line.leave(&next, cell, place));
            assert_eq!(count(&next, cell), (0, 0));
        });
    }
}
