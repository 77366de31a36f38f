//! Waiting for many objects: what a call costs beside ten thousand connections that are idle, beside a
//! hundred, and beside what Tokio does by itself. `cargo bench --bench wait`.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{Bound, Figure, heading, once, share};
use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess as mp;
use tokio_multiprocess::{WaitSet, Waitable};

const ROUNDS: usize = 9;
const FEW: usize = 100;
const MANY: usize = 10_000;

fn main() {
    // Ten thousand and some.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("as much as there may be");
    let multi = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut idle = Idle { connections: connections(FEW), ..Idle::default() };
    let mut crowd = Idle { connections: connections(MANY), ..Idle::default() };
    members(&mut idle, &mut crowd);
    calls(&idle, &crowd, &current);
    for (name, runtime) in [("current_thread", &current), ("multi_thread", &multi)] {
        let _here = runtime.enter();
        wake_ups(&format!("from another thread, {name} runtime"), Echo::thread(), &idle, &crowd, runtime);
        let process = runtime.block_on(Echo::process());
        wake_ups(&format!("from another process, {name} runtime"), process, &idle, &crowd, runtime);
    }
    for count in [2, 64] {
        few(count, &current);
    }
}

/// Connections on which nothing happens, and a set with all of them.
#[derive(Default)]
struct Idle {
    connections: Vec<mp::Connection>,
    set: Option<WaitSet>,
}

impl Idle {
    fn set(&self) -> &WaitSet {
        self.set.as_ref().expect("it was filled")
    }
}

/// Both ends of half as many pipes, as there may not be two descriptors for each.
fn connections(count: usize) -> Vec<mp::Connection> {
    (0..count / 2).flat_map(|_| <[_; 2]>::from(mp::pipe().expect("two descriptors"))).collect()
}

/// Entering and removing a member.
fn members(idle: &mut Idle, crowd: &mut Idle) {
    let names = [FEW, MANY].map(|count| format!("of {count}"));
    let mut insert = names.clone().map(|name| Figure::new(format!("insert, {name}")));
    let mut remove = names.map(|name| Figure::new(format!("remove, {name}")));
    for _ in 0..ROUNDS {
        for (which, idle) in [&mut *idle, &mut *crowd].into_iter().enumerate() {
            let count = idle.connections.len() as u32;
            let set = WaitSet::new().expect("a set");
            let mut keys = Vec::with_capacity(idle.connections.len());
            insert[which].push(share(count, || {
                keys.extend(idle.connections.iter().map(|end| set.insert(end).expect("a member")));
            }));
            remove[which].push(share(count, || assert!(keys.iter().all(|key| set.remove(*key)))));
            for end in &idle.connections {
                set.insert(end).expect("a member again");
            }
            idle.set = Some(set);
        }
    }
    heading("members of a set");
    for [few, many] in [insert, remove] {
        few.print();
        many.print_against(&few, Bound::None);
    }
}

/// Calls that need not wait.
fn calls(idle: &Idle, crowd: &Idle, runtime: &Runtime) {
    const CALLS: u32 = 2_000;
    let mut nothing = [FEW, MANY].map(|count| Figure::new(format!("a call, nothing of {count} ready")));
    let mut one = [FEW, MANY].map(|count| Figure::new(format!("a call, one of {count} ready")));
    let (ready, mut writes) = UnixStream::pair().expect("a socket");
    writes.write_all(b"x").expect("sent");
    for _ in 0..ROUNDS {
        for (which, set) in [idle.set(), crowd.set()].into_iter().enumerate() {
            nothing[which].push(share(CALLS, || {
                for _ in 0..CALLS {
                    assert!(set.wait_timeout(Duration::ZERO).now_or_never().expect("at once").is_ok());
                }
            }));
            let key = set.insert(&ready).expect("a member");
            one[which].push(share(CALLS, || {
                runtime.block_on(async {
                    for _ in 0..CALLS {
                        assert_eq!(set.wait().await.expect("one is ready"), [key]);
                    }
                });
            }));
            set.remove(key);
        }
    }
    heading("calls that need not wait");
    for [few, many] in [nothing, one] {
        few.print();
        many.print_against(&few, Bound::Times(1.5));
    }
}

/// Somebody who sends back what he gets.
struct Echo {
    stream: UnixStream,
}

impl Echo {
    fn thread() -> Self {
        let (stream, theirs) = UnixStream::pair().expect("a socket");
        std::thread::spawn(move || echo(theirs));
        Self { stream }
    }

    async fn process() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("echo");
        let listener = UnixListener::bind(&path).expect("a listener");
        let connect = |path: PathBuf| echo(UnixStream::connect(path).expect("a listener"));
        mp::Process::builder(connect, (path,)).start().await.expect("a child");
        Self { stream: listener.accept().expect("a connection").0 }
    }
}

fn echo(mut stream: UnixStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() {
        stream.write_all(&byte).expect("sent");
    }
}

/// Calls that wait until somebody has answered.
fn wake_ups(who: &str, echo: Echo, idle: &Idle, crowd: &Idle, runtime: &Runtime) {
    const TRIPS: u32 = 1_000;
    let mut bare = Figure::new("bare Tokio UnixStream");
    let mut sets = [FEW, MANY].map(|count| Figure::new(format!("WaitSet beside {count} idle ones")));
    let mut stream = echo.stream;
    stream.set_nonblocking(true).expect("a socket");
    for _ in 0..ROUNDS {
        let tokios = stream.try_clone().and_then(tokio::net::UnixStream::from_std).expect("a socket");
        bare.push(share(TRIPS, || {
            runtime.block_on(async {
                tokios.writable().await.expect("room");
                for _ in 0..TRIPS {
                    assert_eq!(tokios.try_write(b"x").expect("sent"), 1);
                    let mut byte = [0];
                    while tokios.try_read(&mut byte).is_err() {
                        tokios.readable().await.expect("an answer");
                    }
                }
            });
        }));
        drop(tokios);
        for (figure, set) in sets.iter_mut().zip([idle.set(), crowd.set()]) {
            let key = set.insert(&stream).expect("a member");
            figure.push(share(TRIPS, || {
                runtime.block_on(async {
                    for _ in 0..TRIPS {
                        stream.write_all(b"x").expect("sent");
                        assert_eq!(set.wait().await.expect("an answer"), [key]);
                        stream.read_exact(&mut [0]).expect("an answer");
                    }
                });
            }));
            set.remove(key);
        }
    }
    heading(&format!("there and back, {who}"));
    bare.print();
    let [few, many] = sets;
    few.print_against(&bare, Bound::None);
    many.print_against(&bare, Bound::None);
    many.print_against(&few, Bound::Times(1.5));
}

/// `wait`, beside a Tokio socket for each object, of which the last becomes ready.
fn few(count: usize, runtime: &Runtime) {
    const CALLS: u32 = 200;
    let mut names = ["ready already", "woken"].map(|when| {
        [
            Figure::new(format!("bare Tokio: readable() of {count}, {when}")),
            Figure::new(format!("wait for {count}, {when}")),
            Figure::new(format!("WaitSet of {count}, {when}")),
        ]
    });
    let _here = runtime.enter();
    let echo = Echo::thread();
    echo.stream.set_nonblocking(true).expect("a socket");
    let pairs: Vec<_> = (1..count).map(|_| UnixStream::pair().expect("a socket")).collect();
    let tokios: Vec<_> = pairs
        .iter()
        .map(|(reads, _)| reads)
        .chain([&echo.stream])
        .map(|reads| {
            reads.set_nonblocking(true).expect("a socket");
            reads.try_clone().and_then(tokio::net::UnixStream::from_std).expect("a socket")
        })
        .collect();
    let last = tokios.last().expect("one at least");
    let objects: Vec<&dyn Waitable> = tokios.iter().map(|socket| socket as _).collect();
    let set = WaitSet::new().expect("a set");
    for object in &objects {
        set.insert(object).expect("a member");
    }
    let empty = || (&echo.stream).read_exact(&mut [0]).expect("it is there");
    let readable = async || drop(select_all(tokios.iter().map(|socket| Box::pin(socket.readable()))).await);
    for _ in 0..ROUNDS {
        for (when, figures) in names.iter_mut().enumerate() {
            let woken = when == 1;
            for (how, figure) in figures.iter_mut().enumerate() {
                let mut time = 0.0;
                for _ in 0..CALLS {
                    // Has Tokio forget that it was ready.
                    drop(last.try_read(&mut [0]));
                    let ask = || (&echo.stream).write_all(b"x").expect("sent");
                    if !woken {
                        ask();
                        runtime.block_on(async { mp::wait(&objects).await.expect("an answer") });
                        runtime.block_on(readable());
                    }
                    time += once(|| {
                        if woken {
                            ask();
                        }
                        runtime.block_on(async {
                            match how {
                                0 => readable().await,
                                1 => drop(mp::wait(&objects).await.expect("an answer")),
                                _ => drop(set.wait().await.expect("an answer")),
                            }
                        });
                    });
                    empty();
                }
                figure.push(time / f64::from(CALLS));
            }
        }
    }
    heading(&format!("the last of {count} is ready, current_thread runtime"));
    for [bare, wait, set] in names {
        bare.print();
        wait.print_against(&bare, Bound::None);
        set.print_against(&bare, Bound::None);
    }
}
