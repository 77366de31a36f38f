//! The ring is a word for its head, one for its tail, and a slot for each frame: what parcels need to know of
//! one. Children are copies of the test that end where they are told to, or are killed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Uid, setresuid};

use super::*;
use crate::reduction::{Incoming, Peer, decode, encode};
use crate::sys::AsRawFd as _;
use crate::sys::fd::{close_inherited, is_exhausted, open_fds, poll_readable};
use crate::sys::kept::kept;
use crate::sys::memory::{self, Shared};
use crate::sys::process::{Exit, Fork, exit_now, fork, pidfd_open, pidfd_signal, try_wait};
use crate::sys::socket::{is_crowded, is_full};

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A child that came to its end, or was told to end where it did.
const DONE: i32 = 0;
const DIED: i32 = 7;

const HEAD: usize = 0;
const TAIL: usize = 64;
/// Counts what a process has done, for who kills it.
const STEPS: usize = 128;
const SLOTS: usize = 192;
const SLOT: usize = 16;
const CAPACITY: u64 = 64;

struct Ring {
    memory: Shared,
    parcels: Parcels,
}

/// After which of its steps a process ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    Never,
    Sent,
    Committed,
    Peeked,
    Taken,
}

impl Death {
    fn at(self, step: Death) {
        if self == step {
            exit_now(DIED);
        }
    }
}

impl Ring {
    fn new() -> Self {
        sys::fd::raise_fd_limit();
        let fd = memory::memfd("test", SLOTS + SLOT * CAPACITY as usize).unwrap();
        memory::seal_fixed_size(fd.as_fd()).unwrap();
        Self { memory: Shared::map(fd.as_fd()).unwrap(), parcels: Parcels::new().unwrap() }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        self.memory.atomic_u64(at)
    }

    fn slot(&self, ticket: u64) -> [&AtomicU64; 2] {
        [0, 8].map(|at| self.word(SLOTS + at + SLOT * (ticket % CAPACITY) as usize))
    }

    fn head(&self) -> u64 {
        self.word(HEAD).load(Ordering::Acquire)
    }

    fn tail(&self) -> u64 {
        self.word(TAIL).load(Ordering::Acquire)
    }

    fn len(&self) -> u64 {
        self.tail() - self.head()
    }

    fn place(&self, ticket: u64) -> Place {
        let (head, tail) = (self.head(), self.tail());
        match ticket {
            _ if ticket == tail => Place::Next,
            _ if (head..tail).contains(&ticket) => Place::Queued,
            _ => Place::Past,
        }
    }

    fn step(&self) {
        self.word(STEPS).fetch_add(1, Ordering::Relaxed);
    }

    fn try_put(&self, parcel: Option<&mut Parcel>, death: Death) -> io::Result<()> {
        let ticket = self.tail();
        let label = match parcel {
            None => Label { producer: 0, count: 0 },
            Some(parcel) => {
                self.parcels.send(ticket, parcel)?;
                death.at(Death::Sent);
                parcel.label()
            }
        };
        self.step();
        let [producer, count] = self.slot(ticket);
        producer.store(label.producer, Ordering::Relaxed);
        count.store(u64::from(label.count), Ordering::Relaxed);
        self.word(TAIL).store(ticket + 1, Ordering::Release);
        death.at(Death::Committed);
        self.step();
        Ok(())
    }

    /// Puts an item with so many files, each of which says whose it is.
    fn put(&self, handles: usize, death: Death) {
        let mut parcel = Parcel::new(files(self.tail(), handles));
        self.try_put(parcel.as_mut(), death).unwrap();
    }

    fn head_label(&self) -> Label {
        let [producer, count] = self.slot(self.head()).map(|word| word.load(Ordering::Relaxed));
        Label { producer, count: count as u32 }
    }

    fn peek(&self) -> io::Result<Option<Opened<'_>>> {
        self.parcels.peek(self.head_label(), self.head(), |ticket| self.place(ticket))
    }

    fn commit_head(&self) {
        self.word(HEAD).store(self.head() + 1, Ordering::Release);
    }

    fn sweep(&self) {
        self.parcels.sweep(|ticket| self.place(ticket)).unwrap();
    }

    /// Takes the item at the head, which must have its own files, all of them, and gives their number.
    fn get(&self, death: Death) -> usize {
        let (ticket, label) = (self.head(), self.head_label());
        let opened = match label.count {
            0 => None,
            _ => Some(self.peek().unwrap().expect("its parcel is there")),
        };
        death.at(Death::Peeked);
        self.step();
        self.commit_head();
        death.at(Death::Taken);
        self.step();
        let fds = opened.map_or_else(Vec::new, Opened::consume);
        assert_eq!(fds.len(), label.count as usize);
        assert_files(&fds, ticket);
        fds.len()
    }

    /// What lies in the socket, without a look at what it is for.
    fn is_socket_empty(&self) -> bool {
        let next = socket::next_len(self.parcels.receiving.as_fd(), Mode::Try);
        next.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// A message from somebody who has no frame for it.
    fn forge(&self, bytes: &[u8], fds: &[Fd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        socket::send(self.parcels.sending.as_fd(), &[IoSlice::new(bytes)], &fds, Mode::Try).unwrap();
    }

    /// A frame, and a message that fits it as far as its tag.
    fn put_forged(&self, count: u32, fds: &[Fd]) {
        let tag = Tag { producer: identity::me(), ticket: self.tail() };
        self.forge(&tag.to_bytes(), fds);
        self.put_label(count);
    }

    /// A frame that has no message.
    fn put_label(&self, count: u32) {
        let [producer, slot_count] = self.slot(self.tail());
        producer.store(identity::me(), Ordering::Relaxed);
        slot_count.store(u64::from(count), Ordering::Relaxed);
        self.word(TAIL).store(self.tail() + 1, Ordering::Release);
    }
}

fn files(ticket: u64, count: usize) -> Attachments {
    let file = |index| {
        let fd = memory::memfd("test", 16).unwrap();
        memory::write_all_at(fd.as_fd(), 0, &written(ticket, index)).unwrap();
        Attachment(Arc::new(fd))
    };
    (0..count).map(file).collect()
}

fn written(ticket: u64, index: usize) -> Vec<u8> {
    [ticket.to_le_bytes(), index.to_le_bytes()].concat()
}

fn assert_files(fds: &[Fd], ticket: u64) {
    for (index, fd) in fds.iter().enumerate() {
        let mut found = [0; 16];
        File::from(fd.try_clone().unwrap()).read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found[..], written(ticket, index), "file {index} of item {ticket}");
    }
}

struct Child {
    pidfd: Fd,
}

impl Child {
    /// A copy of this process, with this thread alone, that runs `act`.
    fn new(act: impl FnOnce()) -> Self {
        identity::me();
        match fork().unwrap() {
            Fork::Parent { pid } => Self { pidfd: pidfd_open(pid).unwrap() },
            Fork::Child => {
                let Err(panic) = catch_unwind(AssertUnwindSafe(act)) else { exit_now(DONE) };
                let what = panic.downcast_ref::<String>().map_or("a panic without text", |what| what);
                // Past libtest, which would keep it in this copy.
                let _ = writeln!(io::stderr(), "child: {what}");
                exit_now(1)
            }
        }
    }

    fn kill(&self) {
        let _ = pidfd_signal(self.pidfd.as_fd(), 9);
    }

    fn has_ended(&self) -> bool {
        poll_readable(self.pidfd.as_fd(), Some(Duration::ZERO)).unwrap()
    }

    fn wait(&self) -> Exit {
        if !poll_readable(self.pidfd.as_fd(), Some(PATIENCE)).unwrap() {
            self.kill();
            panic!("a child hangs");
        }
        try_wait(self.pidfd.as_fd()).unwrap().unwrap()
    }
}

/// Runs `act` in a copy of this process, and says whether it came to its end; if not, it ended where it was
/// told to.
fn ends(act: impl FnOnce()) -> bool {
    match Child::new(act).wait() {
        Exit::Code(DONE) => true,
        Exit::Code(DIED) => false,
        other => panic!("{other:?}"),
    }
}

/// Numbers without an order that one sees, the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Leaves this process, which is a copy, so many numbers for descriptors.
fn limit_to(more: usize) {
    let open = open_fds().unwrap();
    let limit = (0..).filter(|number| !open.contains(number)).nth(more).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, limit as u64, hard).unwrap();
}

fn lift_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

#[test]
fn parcels_of_any_size_arrive_whole_and_in_order() {
    let ring = Ring::new();
    let counts = [1, 2, 0, MAX_FDS, 1, MAX_FDS + 1, 2 * MAX_FDS, 2 * MAX_FDS + 2, MAX_HANDLES];
    counts.iter().for_each(|&count| ring.put(count, Death::Never));
    let arrived = counts.map(|_| ring.get(Death::Never));
    assert_eq!(arrived, counts);
    assert!(ring.is_socket_empty());
}

/// Each operation is a process of its own, which comes to its end or is dead from one of its instants on, in
/// any order. What is committed is taken once, with its own files; what is not never is.
#[test]
fn no_death_gives_an_item_the_files_of_another() {
    let ring = Ring::new();
    let mut numbers = Numbers(1);
    let mut queued = VecDeque::new();
    let mut deaths = Vec::new();
    for round in 0..500 {
        if queued.len() < 8 && numbers.below(2) == 0 {
            let handles = [1, 1, 0, 3, 1, 255][round % 6];
            let death = [Death::Never, Death::Sent, Death::Committed][numbers.below(3) as usize];
            let ended = ends(|| ring.put(handles, death));
            assert_eq!(ended, death == Death::Never || handles == 0 && death == Death::Sent);
            if ended || death == Death::Committed {
                queued.push_back(handles);
            }
            deaths.push(death);
        } else if let Some(&handles) = queued.front() {
            let death = [Death::Never, Death::Peeked, Death::Taken][numbers.below(3) as usize];
            assert_eq!(ends(|| assert_eq!(ring.get(death), handles)), death == Death::Never);
            if death != Death::Peeked {
                queued.pop_front();
            }
            deaths.push(death);
        } else if numbers.below(2) == 0 {
            ring.sweep();
            assert!(ring.is_socket_empty(), "nobody alive has sent anything that is not taken");
        }
        assert_eq!(ring.len(), queued.len() as u64);
    }
    for death in [Death::Never, Death::Sent, Death::Committed, Death::Peeked, Death::Taken] {
        let times = deaths.iter().filter(|&&each| each == death).count();
        assert!(times > 20, "{death:?} {times} times");
    }
    for handles in queued {
        assert_eq!(ring.get(Death::Never), handles);
    }
    ring.sweep();
    assert!(ring.is_socket_empty());
}

/// A producer and a consumer at work, each of which is killed where nobody chose, and followed by another.
#[test]
fn kills_at_any_time_lose_and_mix_nothing() {
    const KILLS: usize = 100;
    let ring = Ring::new();
    let produce = || -> () {
        loop {
            let ticket = ring.tail();
            while ring.len() == CAPACITY {
                std::thread::yield_now();
            }
            let mut parcel = Parcel::new(files(ticket, [1, 2, 0][ticket as usize % 3]));
            while let Err(error) = ring.try_put(parcel.as_mut(), Death::Never) {
                assert!(is_full(&error), "{error}");
            }
        }
    };
    let consume = || -> () {
        loop {
            if ring.len() == 0 {
                ring.sweep();
                std::thread::yield_now();
            } else {
                let expected = [1, 2, 0][ring.head() as usize % 3];
                assert_eq!(ring.get(Death::Never), expected);
            }
        }
    };
    let mut numbers = Numbers(7);
    let mut roles = [Child::new(produce), Child::new(consume)];
    for _ in 0..KILLS {
        let until = ring.word(STEPS).load(Ordering::Relaxed) + numbers.below(200);
        while ring.word(STEPS).load(Ordering::Relaxed) < until && !roles.iter().any(Child::has_ended) {
            std::hint::spin_loop();
        }
        for _ in 0..numbers.below(3000) {
            std::hint::spin_loop();
        }
        let role = numbers.below(2) as usize;
        roles[role].kill();
        assert!(matches!(roles[role].wait(), Exit::Signal { signal: 9, .. }), "it has not ended before");
        roles[role] = if role == 0 { Child::new(produce) } else { Child::new(consume) };
    }
    for role in roles {
        role.kill();
        assert!(matches!(role.wait(), Exit::Signal { signal: 9, .. }));
    }
    assert!(ring.head() > KILLS as u64);
    while ring.len() > 0 {
        ring.get(Death::Never);
    }
    ring.sweep();
    assert!(ring.is_socket_empty());
}

/// Who lives is not swept away between its message and its frame.
#[test]
fn who_sweeps_leaves_what_the_living_are_about_to_commit() {
    let ring = Ring::new();
    let mut parcel = Parcel::new(files(0, 1)).unwrap();
    ring.parcels.send(0, &mut parcel).unwrap();
    ring.sweep();
    assert!(!ring.is_socket_empty());
    ring.put_label(1);
    ring.sweep();
    assert_eq!(ring.get(Death::Never), 1);
    // One that has committed and died since the words were looked at.
    assert!(!ends(|| ring.put(1, Death::Committed)));
    let looks = AtomicU64::new(0);
    let late = |ticket| match looks.fetch_add(1, Ordering::Relaxed) {
        0 => Place::Next,
        _ => ring.place(ticket),
    };
    ring.parcels.sweep(late).unwrap();
    assert_eq!(ring.get(Death::Never), 1);
}

#[test]
fn what_the_dead_have_sent_is_closed_without_a_further_parcel() {
    let is_closed = |reads: &mut io::PipeReader, before: bool| {
        let end = poll_readable(reads.as_fd(), Some(if before { Duration::ZERO } else { PATIENCE })).unwrap();
        assert!(!end || reads.read(&mut [0]).unwrap() == 0);
        end
    };
    for death in [Death::Sent, Death::Taken] {
        let ring = Ring::new();
        let (mut reads, writes) = io::pipe().unwrap();
        let mut parcel = Parcel::new(vec![Attachment(Arc::new(writes.into()))]);
        ends(|| {
            ring.try_put(parcel.as_mut(), death).unwrap();
            let _ = ring.peek().unwrap();
            ring.commit_head();
            exit_now(DIED);
        });
        drop(parcel);
        assert!(!is_closed(&mut reads, true), "{death:?}");
        ring.sweep();
        assert!(is_closed(&mut reads, false), "{death:?}");
    }
}

/// At any number of descriptors too few, none of an item is taken, and somebody with enough gets all of it.
#[test]
fn at_the_limit_of_descriptors_an_item_stays_whole() {
    let ring = Ring::new();
    for (count, limits) in
        [(1, &[0][..]), (3, &[0, 1, 2, 3]), (300, &[0, 1, 2, 100, 254, 299]), (1024, &[5, 500, 1023])]
    {
        ring.put(count, Death::Never);
        for &limit in limits {
            assert!(ends(|| {
                let before = open_fds().unwrap().len();
                limit_to(limit);
                let error = ring.peek().map(drop).unwrap_err();
                assert!(is_exhausted(&error), "{error}");
                lift_limit();
                assert_eq!(open_fds().unwrap().len(), before);
                assert_eq!(ring.peek().unwrap().unwrap().fds.len(), count);
                assert_eq!(open_fds().unwrap().len(), before, "looking only leaves nothing open");
            }));
        }
        assert_eq!(ring.get(Death::Never), count);
    }
}

#[test]
fn a_carrier_that_cannot_be_made_can_be_made_later() {
    let ring = Ring::new();
    assert!(ends(|| {
        let mut parcel = Parcel::new(files(0, 300)).unwrap();
        let before = open_fds().unwrap().len();
        for limit in 0..4 {
            limit_to(limit);
            assert!(is_exhausted(&parcel.pack().unwrap_err()), "{limit}");
            assert!(is_exhausted(&ring.parcels.send(0, &mut parcel).unwrap_err()), "{limit}");
            lift_limit();
            assert_eq!(open_fds().unwrap().len(), before);
        }
        ring.try_put(Some(&mut parcel), Death::Never).unwrap();
        assert_eq!(open_fds().unwrap().len(), before - 300 + 1, "they are in flight, with their carrier");
    }));
    assert_eq!(ring.get(Death::Never), 300);
}

#[test]
fn a_full_socket_takes_more_when_something_was_taken() {
    let ring = Ring::new();
    let parcel = &mut Parcel::new(files(0, 1)).unwrap();
    let fits = (0..).find(|&ticket| match ring.parcels.send(ticket, parcel) {
        Ok(()) => false,
        Err(error) => is_full(&error) || panic!("{error}"),
    });
    assert!((100..MOST as u64).contains(&fits.unwrap()), "{fits:?}");
    socket::skip(ring.parcels.receiving.as_fd()).unwrap();
    ring.parcels.send(fits.unwrap(), parcel).unwrap();
}

#[test]
fn too_many_in_flight_is_full_as_well() {
    const LIMIT: usize = 40;
    let ring = Ring::new();
    assert!(ends(|| {
        // What tests beside this one have open.
        let own = [&ring.parcels.sending, &ring.parcels.receiving].map(|fd| fd.as_raw_fd());
        close_inherited(&open_fds().unwrap().into_iter().filter(|fd| !own.contains(fd)).collect::<Vec<_>>());
        if Uid::effective().is_root() {
            // To root nothing is too many; of this user nothing else runs.
            let nobody = Uid::from_raw(54_321);
            setresuid(nobody, nobody, nobody).unwrap();
        }
        let mut many = Parcel::new(files(0, LIMIT / 2)).unwrap();
        let mut more = Parcel::new(files(0, 2)).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, LIMIT as u64, LIMIT as u64).unwrap();
        let mut sent = 0;
        let mut full = None;
        while full.is_none() && sent <= 2 * LIMIT {
            full = ring.parcels.send(0, &mut many).err();
            sent += 1;
        }
        let error = full.expect("too many");
        assert!(is_crowded(&error) && is_full(&error), "{error}");
        let error = more.pack().unwrap_err();
        assert!(is_full(&error), "{error}");
        while !ring.is_socket_empty() {
            socket::skip(ring.parcels.receiving.as_fd()).unwrap();
        }
        more.pack().unwrap();
        ring.parcels.send(0, &mut more).unwrap();
    }));
}

/// Whatever lies in front, the right parcel is found behind it, and nothing of the rest stays open.
#[test]
fn what_means_nothing_is_thrown_away() {
    let ring = Ring::new();
    (0..5).for_each(|_| ring.put(0, Death::Never));
    (0..5).for_each(|_| assert_eq!(ring.get(Death::Never), 0));
    let file = || vec![memory::memfd("test", 1).unwrap()];
    let tag = |producer, ticket| Tag { producer, ticket }.to_bytes();
    ring.forge(b"?", &file());
    ring.forge(&[0; 100], &[]);
    ring.forge(&[&tag(identity::me(), 5)[..], b"?"].concat(), &file());
    ring.forge(&tag(identity::me(), 4), &file());
    ring.forge(&tag(identity::me() - 1, 5), &file());
    ring.forge(&tag(identity::me(), u64::MAX), &file());
    // Without a byte, and so without its descriptor the same as the end.
    nix::sys::socket::send(ring.parcels.sending.as_raw_fd(), &[], nix::sys::socket::MsgFlags::empty())
        .unwrap();
    ring.put(2, Death::Never);
    assert!(ends(|| {
        let before = open_fds().unwrap().len();
        let fds = ring.peek().unwrap().unwrap().consume();
        assert_files(&fds, 5);
        assert_eq!(open_fds().unwrap().len(), before + 2);
    }));
    assert!(ring.is_socket_empty());
}

/// The item whose parcel was taken away is lost, and only that.
#[test]
fn an_absent_parcel_costs_its_item_alone() {
    let ring = Ring::new();
    ring.put_label(1);
    for death in [Death::Never, Death::Sent] {
        assert!(ring.peek().unwrap().is_none());
        ends(|| ring.put(1, death));
    }
    // One that is sent while it is looked for, and committed after that.
    let mut parcel = Parcel::new(files(ring.tail(), 1)).unwrap();
    ring.parcels.send(ring.tail(), &mut parcel).unwrap();
    assert!(ring.peek().unwrap().is_none());
    ring.commit_head();
    assert_eq!(ring.get(Death::Never), 1);
    ring.put_label(1);
    assert_eq!(ring.get(Death::Never), 1);
    assert!(ring.is_socket_empty());
}

/// What is there, but is not what the label says, is an error and no trap, and leaves nothing open.
#[test]
fn a_parcel_that_is_something_else_costs_its_item_alone() {
    let ring = Ring::new();
    let file = |_| memory::memfd("test", 1).unwrap();
    let with = |fds: usize| carrier(&vec![file(0).as_fd(); fds]).unwrap();
    let (stream, other_stream) = std::os::unix::net::UnixStream::pair().unwrap();
    let (open_carrier, _fill) = socket::seqpacket_pair().unwrap();
    let too_many = pack(&vec![Attachment(Arc::new(file(0))); MAX_HANDLES + 1]).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cases: Vec<(u32, Vec<Fd>)> = vec![
        (1, vec![]),
        (1, (0..2).map(file).collect()),
        (2, vec![file(0)]),
        (2, (0..2).map(file).collect()),
        (2, vec![with(1)]),
        (2, vec![with(3)]),
        (2, vec![stream.into()]),
        (2, vec![open_carrier]),
        (2, vec![listener.into()]),
        (2, vec![io::pipe().unwrap().0.into()]),
        (300, vec![with(2)]),
        (300, vec![with(MAX_FDS)]),
        (0, vec![with(0)]),
        (MAX_HANDLES as u32 + 1, vec![too_many.try_clone().unwrap()]),
        (u32::MAX, vec![with(2)]),
    ];
    drop(other_stream);
    for (count, fds) in cases {
        ring.put_forged(count, &fds);
        let what = format!("{count} of {fds:?}");
        ring.put(3, Death::Never);
        assert!(
            ends(|| {
                let before = open_fds().unwrap().len();
                assert!(ring.peek().unwrap().is_none(), "{what}");
                assert_eq!(open_fds().unwrap().len(), before, "{what}");
            }),
            "{what}"
        );
        ring.commit_head();
        assert_eq!(ring.get(Death::Never), 3);
    }
}

#[test]
fn a_socket_that_somebody_has_shut_down_or_fills_for_ever_hangs_nobody() {
    let ring = Ring::new();
    ring.put_label(1);
    socket::shut_down(ring.parcels.sending.as_fd());
    assert!(ends(|| {
        assert!(ring.peek().unwrap().is_none());
        ring.sweep();
    }));
    let ring = Ring::new();
    ring.put_label(1);
    let filler = Child::new(|| {
        loop {
            let _ = socket::try_send_bytes(ring.parcels.sending.as_fd(), b"?");
        }
    });
    assert!(ends(|| (0..10).for_each(|_| assert!(ring.peek().unwrap().is_none()))));
    filler.kill();
    filler.wait();
}

#[test]
fn who_gets_it_in_a_message_has_the_same_socket() {
    let ring = Ring::new();
    ring.put(2, Death::Never);
    let mut bytes = Vec::new();
    let attachments = encode(&ring.parcels, &mut bytes, Peer::AnyBuild).unwrap();
    let attachments = attachments.into_iter().map(|attachment| attachment.0.try_clone().unwrap()).collect();
    let parcels: Parcels = decode(Incoming { bytes: &bytes, attachments }).unwrap();
    let ring = Ring { memory: ring.memory, parcels };
    let ends = [&ring.parcels.sending, &ring.parcels.receiving].map(|fd| fd.as_raw_fd());
    assert!(ends.iter().all(|end| kept().contains(end)), "a forked child has them as well");
    assert_eq!(ring.get(Death::Never), 2);
    ring.put(1, Death::Never);
    assert_eq!(ring.get(Death::Never), 1);
}

#[test]
fn a_label_is_taken_off_its_frame() {
    let label = Label { producer: 1 << 61 | 5, count: 77 };
    let bytes = [&label.to_bytes()[..], b"rest"].concat();
    assert_eq!(Label::split(&bytes), Some((label, &b"rest"[..])));
    assert_eq!(Label::split(&bytes[..Label::LEN - 1]), None);
}
