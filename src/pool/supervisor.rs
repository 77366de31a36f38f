//! The task that runs a pool: it starts workers, takes their replies, and sees them end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::Interest;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use super::channel::{Attached, Link, Replies, channel};
use super::host::{Host, Thread};
use super::memory::was_refused_memory;
use super::output::{Output, Streams};
use super::scheduler::{Death, Delivered, Delivery, Run, Sample, Sent, Spec, WorkerId};
use super::shared::{Job, Shared};
use super::wire::{Answer, Body, Preparation, Tag};
use super::worker;
use crate::context::Context as StartContext;
use crate::error::{Error, Result, StartError, TaskError};
use crate::process::{ExitStatus, GROUPER, LOOKER, Process};
use crate::reduction::Descriptor;
use crate::ring::single::frames;
use crate::sys::cgroup::Parent;
use crate::sys::process::Exit;
use crate::sys::reactor::Registered;
use crate::sys::{self, AsFd, Fd};
use crate::testing::Plan;
use crate::util::lock;

/// How long the supervisor takes replies before others get a turn, in nanoseconds.
const TURN: u64 = 100_000;

/// How workers are made.
pub(super) struct Recipe {
    pub(super) context: StartContext,
    /// What each worker does first, in this order.
    pub(super) preparations: Vec<(Preparation, Spec, Body)>,
    pub(super) max_tasks: Option<u32>,
    pub(super) max_memory: Option<u64>,
    pub(super) faults: Option<Plan>,
    pub(super) output: Output,
    /// Where workers get groups of their own.
    pub(super) cgroups: Option<Arc<Parent>>,
    pub(super) core_files: bool,
    /// On threads of this process.
    pub(super) in_process: bool,
}

/// A worker as the supervisor sees it.
struct Watched {
    id: WorkerId,
    host: Host,
    replies: Replies,
    /// Those of a process.
    streams: Option<Streams>,
    /// It has broken the protocol: killed, and not listened to any more.
    corrupt: bool,
}

enum Event {
    /// `None` if the pool's end came first.
    Started(WorkerId, Option<Result<Box<Born>>>),
    /// And whether the kernel killed it for want of memory, as far as its group tells.
    Exited(WorkerId, bool),
    /// How much memory it holds, for the item that it ran.
    Sampled(WorkerId, Tag, Option<u64>),
}

struct Born {
    lane: Attached,
    replies: Replies,
    streams: Option<Streams>,
}

type Events = FuturesUnordered<Pin<Box<dyn Future<Output = Event> + Send>>>;

pub(super) struct Supervisor {
    shared: Arc<Shared>,
    recipe: Arc<Recipe>,
    bell: Registered,
    timer: Registered,
    ring: Arc<Fd>,
    workers: Vec<Watched>,
    events: Events,
    /// The pool has nothing left to do: no worker's start is worth waiting for.
    over: CancellationToken,
    buffer: Vec<u8>,
}

impl Supervisor {
    /// # Errors
    /// When no descriptor is left.
    ///
    /// # Panics
    /// Outside of a runtime with I/O enabled.
    pub(super) fn new(shared: Arc<Shared>, recipe: Recipe, timer: Fd) -> std::io::Result<Self> {
        let ring = Arc::new(sys::fd::eventfd()?);
        Ok(Self {
            shared,
            recipe: Arc::new(recipe),
            bell: Registered::new(ring.try_clone()?, Interest::READABLE)?,
            timer: Registered::new(timer, Interest::READABLE)?,
            ring,
            workers: Vec::new(),
            events: Events::new(),
            over: CancellationToken::new(),
            buffer: Vec::new(),
        })
    }

    /// Runs until the pool is over.
    pub(super) async fn run(mut self) {
        let mut turn = sys::fd::monotonic_ns();
        loop {
            let busy = self.take_replies();
            if sys::fd::monotonic_ns() >= self.shared.armed() {
                self.shared.disarmed();
                let samples = self.shared.with(|scheduler, now| {
                    scheduler.tick(now);
                    scheduler.samples_due(now)
                });
                samples.into_iter().flatten().for_each(|sample| self.sample(sample));
            }
            self.start_workers();
            if self.report() {
                return;
            }
            if busy {
                if sys::fd::monotonic_ns() - turn < TURN {
                    continue;
                }
                yield_now().await;
                self.handle_ready_events().await;
            } else if self.fall_asleep() {
                self.wait().await;
            } else {
                // Never round without a chance for others, whatever a worker has written.
                yield_now().await;
                self.handle_ready_events().await;
            }
            self.workers.iter().for_each(|worker| worker.replies.awake());
            turn = sys::fd::monotonic_ns();
        }
    }

    /// Has each worker ring for its next reply; false if one has published something already.
    fn fall_asleep(&self) -> bool {
        self.workers.iter().all(|worker| worker.corrupt || worker.replies.sleep())
    }

    async fn wait(&mut self) {
        let event = tokio::select! {
            biased;
            // Nobody drains the bell: each ring is an edge.
            () = self.bell.edge() => None,
            () = self.timer.edge() => None,
            event = self.events.next(), if !self.events.is_empty() => event,
            () = self.shared.attention.notified() => None,
        };
        if let Some(event) = event {
            self.handle(event);
        }
    }

    /// What happened to processes must be seen however busy the rings are.
    async fn handle_ready_events(&mut self) {
        let next = |cx: &mut Context<'_>| Poll::Ready(self.events.poll_next_unpin(cx));
        if let Poll::Ready(Some(event)) = std::future::poll_fn(next).await {
            self.handle(event);
        }
    }

    // Replies.

    fn take_replies(&mut self) -> bool {
        let mut busy = false;
        let mut wakers = Vec::new();
        for index in 0..self.workers.len() {
            busy |= self.take_replies_of(index, &mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
        busy
    }

    fn take_replies_of(&mut self, index: usize, wakers: &mut Vec<Waker>) -> bool {
        let worker = &mut self.workers[index];
        // Its ring will never be empty, and nothing in it means anything.
        if worker.corrupt {
            return false;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let drained = worker.replies.drain(&mut buffer);
        if drained != Ok(false) {
            let effects = self.shared.locked(0, |scheduler, now| {
                worker.corrupt = drained.is_err() || scheduler.replies(worker.id, &buffer, now).is_err();
                if worker.corrupt {
                    scheduler.kill(worker.id);
                }
            });
            if let Some(((), mut effects)) = effects {
                let deliveries = std::mem::take(&mut effects.deliveries);
                self.shared.carry_out(effects);
                for delivery in deliveries {
                    deliver(delivery, &buffer, &worker.replies, &self.shared, wakers);
                }
            }
            buffer.clear();
        }
        self.buffer = buffer;
        drained == Ok(true)
    }

    /// Has another thread find it out: it may be many processes, and their memory large.
    fn sample(&mut self, sample: Sample) {
        let Some(worker) = self.workers.iter().find(|worker| worker.id == sample.worker) else { return };
        let (root, Sample { worker, tag, enough }) = (worker.host.pid(), sample);
        self.events.push(Box::pin(async move {
            let held = LOOKER.run(move || sys::usage::of_tree(root?, enough).ok()).await;
            Event::Sampled(worker, tag, held.ok().flatten())
        }));
    }

    // Workers' lives.

    fn start_workers(&mut self) {
        while let Some(Some(id)) = self.shared.with(|scheduler, now| scheduler.start_due(now)) {
            let (recipe, ring) = (self.recipe.clone(), self.ring.clone());
            let name = self.shared.worker_name(id + 1);
            let over = self.over.clone();
            self.events.push(Box::pin(async move {
                // Dropped halfway, a start kills what there is of its process.
                Event::Started(id, over.run_until_cancelled(recipe.start(&ring, name)).await)
            }));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Started(id, Some(Ok(born))) => {
                let Born { lane, replies, streams } = *born;
                let host = lane.host.clone();
                let watched = host.clone();
                self.events.push(Box::pin(async move {
                    watched.exited().await;
                    Event::Exited(id, watched.end_group().await)
                }));
                if let Some(streams) = &streams {
                    let shared = Arc::downgrade(&self.shared);
                    streams.forward(move || shared.upgrade()?.with(|scheduler, _| scheduler.task_of(id))?);
                }
                self.workers.push(Watched { id, host, replies, streams, corrupt: false });
                self.shared.with(|scheduler, now| scheduler.started(id, lane, now));
            }
            Event::Started(id, Some(Err(error))) => {
                // The next one may find more memory or a calmer machine, but not another program.
                let hopeless = match &error {
                    Error::Io(_) => false,
                    Error::Start(StartError::Execute { source, .. }) => !sys::process::is_shortage(source),
                    Error::Start(StartError::OtherBuild { .. } | StartError::OutsideProgram) => true,
                    Error::Start(StartError::Threads(_)) => true,
                    Error::Start(_) => false,
                    _ => true,
                };
                let why = error.to_string();
                lock(&self.shared.start_error).get_or_insert(error);
                self.shared.with(|scheduler, now| scheduler.start_failed(id, why, hopeless, now));
            }
            Event::Started(id, None) => {
                let why = "the pool ended first".to_owned();
                self.shared.with(|scheduler, now| scheduler.start_failed(id, why, false, now));
            }
            Event::Exited(id, was_out_of_memory) => self.bury(id, was_out_of_memory),
            Event::Sampled(id, tag, held) => {
                self.shared.with(|scheduler, now| scheduler.sampled(id, tag, held, now));
            }
        }
    }

    fn bury(&mut self, id: WorkerId, was_out_of_memory: bool) {
        let Some(index) = self.workers.iter().position(|worker| worker.id == id) else { return };
        // What it has started must not outlive it, and its group has its number until it is reaped.
        self.workers[index].host.kill();
        let mut wakers = Vec::new();
        self.take_replies_of(index, &mut wakers);
        let worker = self.workers.swap_remove(index);
        let exit = worker.host.reap().unwrap_or_else(|| ExitStatus::new(Exit::Unknown, false));
        let task = self.shared.with(|scheduler, _| scheduler.task_of(id)).flatten();
        let words = worker.streams.map(|streams| streams.last_words(task)).unwrap_or_default();
        let out_of_memory = was_out_of_memory || was_refused_memory(exit, &words);
        let death = Death { exit, stderr_tail: words.tail, out_of_memory };
        self.shared.with(|scheduler, now| scheduler.died(id, &death, now));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Tells who waits how the pool is; true if it is over.
    fn report(&self) -> bool {
        let Some(status) = self.shared.current_status() else { return true };
        if status.ends {
            self.over.cancel();
        }
        let done = status.done;
        self.shared.status.send_if_modified(|known| {
            let news = *known != status;
            *known = status;
            news
        });
        done
    }
}

impl Drop for Supervisor {
    /// Also when the runtime ends under the pool: then nobody may be left waiting.
    fn drop(&mut self) {
        drop(self.shared.with(|scheduler, _| scheduler.abandon()));
        self.recipe.faults.iter().for_each(Plan::warn_of_unmet);
        self.shared.status.send_modify(|status| {
            status.ready = 0;
            status.done = true;
        });
    }
}

fn deliver(
    delivery: Delivery<Arc<dyn Job>>,
    buffer: &[u8],
    replies: &Replies,
    shared: &Shared,
    wakers: &mut Vec<Waker>,
) {
    let Delivery { job, base, frames: range, what } = delivery;
    let mut answers = Answer::all(base, frames(&buffer[range]), replies.socket.as_fd());
    match (what, &job.spec().progress) {
        (Delivered::Answers, _) => job.answer(&mut answers, wakers),
        (Delivered::LargeAnswer, _) => {
            if let Some(answer) = answers.next() {
                let handed = Handed { job, index: answer.index, answer: Some(answer.detach()) };
                // Its parcel was taken here, as parcels come in order; decoding it takes its time.
                hand_over(handed, shared);
            }
        }
        (Delivered::Progress, Some(listener)) => answers.for_each(|answer| listener.hear(answer.payload())),
        (Delivered::Progress, None) => {}
    }
}

/// Has a thread decode it, or does so here if there can be no further thread: Tokio panics then.
fn hand_over(handed: Handed, shared: &Shared) {
    let handed = Arc::new(Mutex::new(Some(handed)));
    let theirs = handed.clone();
    let deliver = |handed: &Mutex<Option<Handed>>| {
        let handed = lock(handed).take();
        handed.into_iter().for_each(Handed::deliver);
    };
    let spawn = || drop(shared.runtime.spawn_blocking(move || deliver(&theirs)));
    if catch_unwind(AssertUnwindSafe(spawn)).is_err() {
        deliver(&handed);
    }
}

/// An answer on its way to a thread that decodes it, or that never comes to it.
struct Handed {
    job: Arc<dyn Job>,
    index: u64,
    answer: Option<Answer<'static>>,
}

impl Handed {
    fn deliver(mut self) {
        let mut wakers = Vec::new();
        self.job.answer(&mut self.answer.take().into_iter(), &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if self.answer.is_some() {
            let mut wakers = Vec::new();
            let error = TaskError::Aborted { began: true };
            self.job.lose(self.index..self.index + 1, error, &mut wakers);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Recipe {
    async fn start(&self, ring: &Arc<Fd>, name: String) -> Result<Box<Born>> {
        let (mut link, replies, mut setup) = channel(ring)?;
        setup.preparations.extend(self.preparations.iter().map(|(what, ..)| *what));
        setup.max_tasks = self.max_tasks;
        setup.faults = self.faults.clone();
        setup.name.clone_from(&name);
        if self.in_process {
            self.prepare(&mut link)?;
            let host = Host::Thread(Thread::start(name, setup, link.leash())?);
            return Ok(Box::new(Born { lane: Attached { link, host }, replies, streams: None }));
        }
        setup.own_process = true;
        // The memory of this process is not a worker's.
        setup.max_memory = self.max_memory;
        let cgroup = match self.cgroups.clone() {
            Some(parent) => {
                let open = move || {
                    let cgroup = parent.child()?;
                    let (door, memory) = (cgroup.door()?, cgroup.memory()?);
                    Ok::<_, std::io::Error>((cgroup, door, memory))
                };
                let (cgroup, door, memory) = GROUPER.run(open).await??;
                setup.cgroup = Some(Descriptor::new(door));
                setup.group_memory = memory.map(|(used, max)| (Descriptor::new(used), Descriptor::new(max)));
                Some(Arc::new(cgroup))
            }
            None => None,
        };
        let (streams, stdout, stderr) = Streams::open(self.output, &name, link.stderr_marks())?;
        let process = Process::builder(worker::main, (setup,))
            .context(self.context.clone())
            .name(name)
            .worker()
            .core_files(self.core_files)
            .output_to(stdout, stderr)
            .start()
            .await?;
        // Not before: a start that is given up kills the process, but knows nothing yet of what user
        // code may have started there.
        self.prepare(&mut link).inspect_err(|_| process.kill_tree())?;
        let lane = Attached { link, host: Host::Process(process, cgroup) };
        Ok(Box::new(Born { lane, replies, streams: Some(streams) }))
    }

    /// Sends the first frames.
    fn prepare(&self, link: &mut Link) -> Result<()> {
        for (seq, (_, spec, args)) in self.preparations.iter().enumerate() {
            let run = Run::new(spec.clone(), 0, 1, args.clone());
            match link.send(seq as u32, &run) {
                Sent::Yes => {}
                Sent::Impossible(why) => return Err(TaskError::NotStarted(why).into()),
                Sent::NoRoom | Sent::Corrupt => {
                    return Err(Error::invalid("the initializer's or the state's arguments are too large"));
                }
            }
        }
        link.bell().inspect(|bell| sys::fd::ring(bell.as_fd()));
        Ok(())
    }
}

/// For the initializer, whose reply goes to no job.
impl super::scheduler::Ticket for Spec {
    fn spec(&self) -> &Spec {
        self
    }

    fn is(&self, _: &Self) -> bool {
        false
    }

    fn is_single(&self) -> bool {
        true
    }
}
