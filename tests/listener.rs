//! Listeners and clients: every family, keys, paths, runtimes, children.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::future::IntoFuture;
use std::io;
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use support::process::{Call, Meeting};
use support::{PATIENCE, Random, current_thread, eventually, guard, multi_thread, run, run_each};
use tempfile::TempDir;
use tokio_multiprocess as mp;
use tokio_multiprocess::connection::auth::{answer_challenge, deliver_challenge};
use tokio_multiprocess::{Address, AuthKey, Client, Connection, Listener};

/// Longer than any test takes.
const WATCHDOG: u64 = 120;

/// To be bound to a private place, with the key if there is one.
fn temporary(key: &Option<AuthKey>) -> mp::connection::Bind {
    let bind = Listener::temporary();
    match key {
        Some(key) => bind.authkey(key),
        None => bind,
    }
}

fn abstract_name() -> Address {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    Address::Abstract(format!("tokio-multiprocess-test-{}-{n}", std::process::id()).into_bytes())
}

fn has_v6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// An address of each family, in a directory for those that need one.
fn addresses(dir: &TempDir) -> Vec<Address> {
    let mut all: Vec<Address> = vec![
        ("127.0.0.1", 0).into(),
        ("localhost", 0).into(),
        dir.path().join("socket").into(),
        abstract_name(),
    ];
    if has_v6() {
        all.push((Ipv6Addr::LOCALHOST, 0).into());
    }
    all
}

/// A listener of each family.
async fn listeners(dir: &TempDir) -> Vec<Listener> {
    let mut all = vec![Listener::temporary().await.unwrap()];
    for address in addresses(dir) {
        all.push(Listener::bind(address).await.unwrap());
    }
    all
}

/// Both ends of a connection.
async fn meet(listener: &Listener) -> (Connection, Connection) {
    let client = Client::connect(listener.address()).into_future();
    let (accepted, client) = tokio::join!(listener.accept(), client);
    (accepted.unwrap(), client.unwrap())
}

async fn talk(a: &mut Connection, b: &mut Connection) {
    a.send(&1257).await.unwrap();
    assert_eq!(b.recv::<i32>().await.unwrap(), 1257);
    b.send("back").await.unwrap();
    assert_eq!(a.recv::<String>().await.unwrap(), "back");
}

fn io_kind(error: &mp::Error) -> io::ErrorKind {
    match error {
        mp::Error::Io(error) => error.kind(),
        other => panic!("{other}"),
    }
}

// conformance: _TestListener.test_multiple_bind
#[test]
fn an_address_in_use_is_refused_and_left_alone() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        for listener in listeners(&dir).await {
            let again = Listener::bind(listener.address()).await.unwrap_err();
            assert_eq!(io_kind(&again), io::ErrorKind::AddrInUse, "{listener:?}");
            let (mut a, mut b) = meet(&listener).await;
            talk(&mut a, &mut b).await;
        }
        // Whatever lies at a path, it is not ours to remove.
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(io_kind(&Listener::bind(&file).await.unwrap_err()), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    });
}

// conformance: _TestListener.test_context
// conformance: _TestListener.test_abstract_socket
#[test]
fn a_closed_listener_accepts_nobody_and_its_connections_live_on() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        for listener in listeners(&dir).await {
            let (mut a, mut b) = meet(&listener).await;
            let address = listener.address().clone();
            assert!(!listener.is_closed());
            listener.close();
            listener.close();
            assert!(listener.is_closed());
            let error = listener.accept().await.unwrap_err();
            assert!(error.is_closed() && error.to_string() == "listener is closed", "{error}");
            let refused = io_kind(&Client::connect(&address).await.unwrap_err());
            assert!(
                matches!(refused, io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
                "{refused}"
            );
            talk(&mut a, &mut b).await;
            // The same place can be taken at once, also while connections of before live.
            if !matches!(&address, Address::Unix(path) if !path.parent().unwrap().exists()) {
                drop(Listener::bind(&address).await.unwrap());
            }
        }
    });
}

#[test]
fn closing_ends_the_accepts_under_way() {
    run(WATCHDOG, async {
        for key in [None, Some(AuthKey::random())] {
            let listener = temporary(&key).await.unwrap();
            let (first, second) = (listener.accept(), listener.accept());
            tokio::pin!(first, second);
            assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
            listener.close();
            assert!(first.await.unwrap_err().is_closed() && second.await.unwrap_err().is_closed());
        }
    });
}

#[test]
fn a_listener_tells_about_itself() {
    run(WATCHDOG, async {
        let tcp = Listener::bind(("127.0.0.1", 0)).await.unwrap();
        let Address::Inet { host, port } = tcp.address() else { panic!("{tcp:?}") };
        assert!(host == "127.0.0.1" && *port != 0);
        assert_eq!(tcp.family(), mp::connection::Family::Inet);
        assert_eq!(tcp.last_accepted(), None);
        let (_, _client) = meet(&tcp).await;
        let Some(Address::Inet { host, port: theirs }) = tcp.last_accepted() else { panic!("{tcp:?}") };
        assert!(host == "127.0.0.1" && theirs != 0 && theirs != *port);
        let shown = format!("{tcp:?}");
        assert!(
            shown.contains(&tcp.address().to_string()) && shown.contains("authenticates: false"),
            "{shown}"
        );

        let unix = Listener::temporary().authkey(&AuthKey::new("hunter2")).await.unwrap();
        assert_eq!(unix.family(), mp::connection::Family::Unix);
        assert!(format!("{unix:?}").contains("authenticates: true"));
        assert!(!format!("{unix:?}").contains("hunter2"));
        unix.close();
        assert!(format!("{unix:?}").contains("closed"));
    });
}

async fn call(address: Address, key: Option<AuthKey>) {
    let mut connect = Client::connect(address);
    if let Some(key) = &key {
        connect = connect.authkey(key);
    }
    let mut connection = connect.await.unwrap();
    connection.send("hello").await.unwrap();
    assert_eq!(connection.recv::<String>().await.unwrap(), "hello yourself");
}

async fn child_calls(address: Address, with_key: bool) {
    call(address, with_key.then(|| mp::current_process().authkey())).await;
}

async fn answer(connection: &mut Connection) {
    assert_eq!(connection.recv::<String>().await.unwrap(), "hello");
    connection.send("hello yourself").await.unwrap();
}

// conformance: _TestListenerClient.test_listener_client
#[test]
fn children_connect_to_every_family() {
    run_each(WATCHDOG, |ctx| async move {
        let dir = tempfile::tempdir().unwrap();
        for listener in listeners(&dir).await {
            let child = ctx.process(child_calls, (listener.address().clone(), false)).start().await.unwrap();
            answer(&mut listener.accept().await.unwrap()).await;
            assert!(child.join().await.unwrap().success());
        }
        // The key of a process is that of its children.
        let listener = Listener::temporary().authkey(&mp::current_process().authkey()).await.unwrap();
        let child = ctx.process(child_calls, (listener.address().clone(), true)).start().await.unwrap();
        answer(&mut listener.accept().await.unwrap()).await;
        assert!(child.join().await.unwrap().success());
    });
}

// conformance: _TestListenerClient.test_issue14725
#[test]
fn a_client_that_has_gone_is_accepted_with_what_it_said() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        for listener in listeners(&dir).await {
            let mut client = Client::connect(listener.address()).await.unwrap();
            client.send("hello").await.unwrap();
            drop(client);
            let mut accepted = listener.accept().await.unwrap();
            assert_eq!(accepted.recv::<String>().await.unwrap(), "hello");
            assert!(accepted.recv::<String>().await.unwrap_err().is_eof());
        }
    });
}

// conformance: _TestListenerClient.test_issue16955
#[test]
fn a_client_sees_what_the_accepting_side_sent() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        for listener in listeners(&dir).await {
            let client = Client::connect(listener.address()).await.unwrap();
            assert!(!client.poll().unwrap());
            let mut accepted = listener.accept().await.unwrap();
            accepted.send_bytes(b"hello").await.unwrap();
            drop(accepted);
            assert!(client.poll_timeout(PATIENCE).await.unwrap());
        }
    });
}

static HANDLED: AtomicBool = AtomicBool::new(false);

extern "C" fn handle(_: i32) {
    HANDLED.store(true, Ordering::Relaxed);
}

async fn accept_one(meeting: String) {
    // Without SA_RESTART: what is interrupted says so.
    let action = SigAction::new(SigHandler::Handler(handle), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler stores to an atomic and no more.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let listener = Listener::temporary().await.unwrap();
    Call::to(&meeting).say(listener.address());
    let mut connection = listener.accept().await.unwrap();
    // It may have come to another thread, which is not there yet.
    eventually("the signal is handled", || HANDLED.load(Ordering::Relaxed)).await;
    connection.send("ready").await.unwrap();
}

// conformance: TestIgnoreEINTR.test_ignore_listener
#[test]
fn a_signal_does_not_end_an_accept() {
    run_each(WATCHDOG, |ctx| async move {
        let meeting = Meeting::new();
        let child = ctx.process(accept_one, (meeting.address(),)).start().await.unwrap();
        let mut caller = meeting.accept().await;
        let address: Address = caller.hear().await.unwrap().parse().unwrap();
        kill(Pid::from_raw(child.pid()), Signal::SIGUSR1).unwrap();
        let mut client = Client::connect(address).await.unwrap();
        assert_eq!(client.recv::<String>().await.unwrap(), "ready");
        assert!(child.join().await.unwrap().success());
    });
}

#[test]
fn what_is_no_place_says_so() {
    run(WATCHDOG, async {
        for bad in ["", "@", r"\\.\pipe\x", "::1:80", "host:99999"] {
            let bound = Listener::bind(bad).await.unwrap_err();
            let connected = Client::connect(bad).await.unwrap_err();
            for error in [bound, connected] {
                assert!(matches!(error, mp::Error::InvalidArgument(_)), "{bad}: {error}");
            }
        }
        // What was made without text is looked at when it is used.
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        let error = Listener::bind(long).await.unwrap_err().to_string();
        assert!(error.contains("107 bytes") && error.contains("205"), "{error}");
        let nowhere = Client::connect(Path::new("/nonexistent/socket")).await.unwrap_err();
        assert_eq!(io_kind(&nowhere), io::ErrorKind::NotFound);
        assert!(nowhere.to_string().contains("/nonexistent/socket"), "{nowhere}");
        let nowhere = Listener::bind(Path::new("/nonexistent/socket")).await.unwrap_err();
        assert_eq!(io_kind(&nowhere), io::ErrorKind::NotFound);
        assert!(nowhere.to_string().contains("/nonexistent/socket"), "{nowhere}");
        assert!(Client::connect("no-such-host.invalid:80").await.is_err());
        // An address that is not of this machine.
        assert!(Listener::bind(("192.0.2.1", 0)).await.is_err());
    });
}

#[test]
fn all_addresses_of_a_host_are_tried() {
    run(WATCHDOG, async {
        if !has_v6() {
            return;
        }
        // `localhost` is `::1` and `127.0.0.1` on most machines, in one order or the other.
        for host in ["127.0.0.1", "::1"] {
            let listener = Listener::bind((host, 0)).await.unwrap();
            let Address::Inet { port, .. } = *listener.address() else { panic!("{listener:?}") };
            let found: Vec<_> =
                std::net::ToSocketAddrs::to_socket_addrs(&("localhost", port)).unwrap().collect();
            if found.iter().any(|address| address.ip().to_string() == host) {
                drop(Client::connect(("localhost", port)).await.unwrap());
                drop(listener.accept().await.unwrap());
            }
        }
        // Everywhere, and from everywhere.
        let listener = Listener::bind(":0").await.unwrap();
        let Address::Inet { port, .. } = *listener.address() else { panic!("{listener:?}") };
        drop(Client::connect(("", port)).await.unwrap());
        drop(listener.accept().await.unwrap());
    });
}

#[test]
fn a_temporary_socket_is_private_and_goes_with_its_listener() {
    run(WATCHDOG, async {
        let place = |listener: &Listener| match listener.address() {
            Address::Unix(path) => path.clone(),
            other => panic!("{other}"),
        };
        let (first, second) = (Listener::temporary().await.unwrap(), Listener::temporary().await.unwrap());
        let (path, directory) = (place(&first), place(&first).parent().unwrap().to_owned());
        assert_ne!(path, place(&second));
        let meta = std::fs::metadata(&directory).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o700, nix::unistd::geteuid().as_raw()));
        assert!(path.exists());
        first.close();
        assert!(!path.exists() && !directory.exists());
        let directory = place(&second).parent().unwrap().to_owned();
        drop(second);
        assert!(!directory.exists());
    });
}

#[test]
fn a_path_goes_with_its_listener_but_not_with_anothers() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::bind(&path).await.unwrap();
        drop(listener);
        assert!(!path.exists());
        // A successor has made room for itself, as while a service is replaced.
        let old = Listener::bind(&path).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let new = Listener::bind(&path).await.unwrap();
        drop(old);
        assert!(path.exists());
        meet(&new).await;
    });
}

fn exit_with_listener(path: PathBuf) {
    let listener = mp::block_on(Listener::bind(path).into_future()).unwrap().unwrap();
    std::mem::forget(listener);
    mp::exit(0);
}

#[test]
fn an_exit_removes_the_paths_of_listeners_that_still_are() {
    run_each(WATCHDOG, |ctx| async move {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let child = ctx.process(exit_with_listener, (path.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert!(!path.exists());
    });
}

/// What a forked child has a copy of.
static COPIED: std::sync::Mutex<Option<Listener>> = std::sync::Mutex::new(None);

#[test]
fn a_forks_copy_removes_nothing() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::bind(&path).await.unwrap();
        *COPIED.lock().unwrap() = Some(listener);
        // SAFETY: the child takes no lock that another thread may hold.
        let fork = unsafe { mp::Context::fork_with_threads() };
        let child = fork.process(|| drop(COPIED.lock().unwrap().take().unwrap()), ()).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert!(path.exists());
        let listener = COPIED.lock().unwrap().take().unwrap();
        meet(&listener).await;
    });
}

async fn serve(listener: Listener, clients: usize) {
    for _ in 0..clients {
        let mut connection = listener.accept().await.unwrap();
        answer(&mut connection).await;
    }
}

#[test]
fn a_listener_moves_to_a_child_while_clients_come() {
    run_each(WATCHDOG, |ctx| async move {
        const CLIENTS: usize = 40;
        let key = mp::current_process().authkey();
        for key in [None, Some(key)] {
            let listener = temporary(&key).await.unwrap();
            let address = listener.address().clone();
            let Address::Unix(path) = address.clone() else { panic!("{address}") };
            let begin = |n: usize| {
                let clients = (0..n).map(|_| tokio::spawn(call(address.clone(), key.clone())));
                clients.collect::<Vec<_>>()
            };
            let mut clients = begin(CLIENTS / 4);
            for _ in 0..CLIENTS / 4 {
                answer(&mut listener.accept().await.unwrap()).await;
            }
            clients.extend(begin(CLIENTS / 4));
            let process = ctx.process(serve, (listener, CLIENTS * 3 / 4));
            clients.extend(begin(CLIENTS / 4));
            assert!(path.exists());
            let child = process.start().await.unwrap();
            clients.extend(begin(CLIENTS / 4));
            for client in clients {
                client.await.unwrap();
            }
            assert!(child.join().await.unwrap().success());
            assert!(!path.exists() && !path.parent().unwrap().exists());
        }
    });
}

#[test]
fn a_listener_moves_in_a_message_and_is_closed_where_it_was() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        let (mut here, mut there) = mp::pipe().unwrap();
        for listener in listeners(&dir).await {
            let address = listener.address().clone();
            // Who waits in the backlog notices nothing.
            let mut client = Client::connect(&address).await.unwrap();
            let waiting = listener.accept();
            here.send(&listener).await.unwrap();
            assert!(waiting.await.unwrap_err().is_closed() && listener.is_closed());
            drop(listener);
            let moved: Listener = there.recv().await.unwrap();
            assert_eq!(*moved.address(), address);
            let mut accepted = moved.accept().await.unwrap();
            talk(&mut accepted, &mut client).await;
            meet(&moved).await;
            drop(moved);
            assert!(Client::connect(&address).await.is_err());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    });
}

#[test]
fn a_key_of_its_own_keeps_a_listener_where_it_is() {
    run(WATCHDOG, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let error = here.send(&listener).await.unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
        let client = Client::connect(listener.address()).authkey(&key).into_future();
        let (accepted, _client) = tokio::join!(listener.accept(), client);
        accepted.unwrap();
        // That of the process goes on as that of the process.
        let key = mp::current_process().authkey();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        here.send(&listener).await.unwrap();
        let listener: Listener = there.recv().await.unwrap();
        let client = Client::connect(listener.address()).authkey(&key).into_future();
        let (accepted, _client) = tokio::join!(listener.accept(), client);
        accepted.unwrap();
    });
}

#[test]
fn keys_are_proved_over_every_family() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        let (key, wrong) = (AuthKey::random(), AuthKey::random());
        for address in addresses(&dir) {
            let listener = Listener::bind(address).authkey(&key).await.unwrap();
            let good = Client::connect(listener.address()).authkey(&key).into_future();
            let (accepted, client) = tokio::join!(listener.accept(), good);
            talk(&mut accepted.unwrap(), &mut client.unwrap()).await;
            let bad = Client::connect(listener.address()).authkey(&wrong).into_future();
            let (accepted, client) = tokio::join!(listener.accept(), bad);
            assert!(accepted.unwrap_err().is_authentication());
            assert!(client.unwrap_err().is_authentication());
            // That was of one peer only.
            let good = Client::connect(listener.address()).authkey(&key).into_future();
            let (accepted, client) = tokio::join!(listener.accept(), good);
            talk(&mut accepted.unwrap(), &mut client.unwrap()).await;
        }
    });
}

#[test]
fn a_key_on_one_side_alone_ends_at_the_deadline() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let open = Listener::temporary().await.unwrap();
        let connect = Client::connect(open.address()).authkey(&key).timeout(Duration::from_millis(50));
        let (accepted, client) = tokio::join!(open.accept(), connect.into_future());
        let error = client.unwrap_err();
        assert!(error.is_timeout() && error.to_string().contains("authkey"), "{error}");
        assert!(accepted.unwrap().recv_bytes().await.unwrap_err().is_eof());

        let locked = Listener::temporary().authkey(&key).handshake_timeout(Duration::from_millis(50));
        let locked = locked.await.unwrap();
        let mut client = Client::connect(locked.address()).await.unwrap();
        let accept = locked.accept();
        let ended = async {
            assert!(client.recv_bytes().await.unwrap().starts_with(b"#CHALLENGE#"));
            client.recv_bytes().await.unwrap_err().is_eof()
        };
        tokio::select! {
            accepted = accept => panic!("{accepted:?}"),
            ended = ended => assert!(ended),
        }

        // Where a value is asked for, the error says what is missing.
        let mut client = Client::connect(locked.address()).await.unwrap();
        tokio::select! {
            accepted = locked.accept() => panic!("{accepted:?}"),
            received = client.recv::<String>() => {
                let error = received.unwrap_err();
                assert!(error.is_authentication() && error.to_string().contains("authkey"), "{error}");
            }
        }
    });
}

#[test]
fn deadlines_are_of_the_kernels_clock() {
    let _guard = guard(WATCHDOG);
    let paused =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    paused.block_on(async {
        let key = AuthKey::random();
        // A paused clock leaps ahead whenever nothing runs.
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let connect = || Client::connect(listener.address()).authkey(&key).into_future();
        let (accepted, client) = tokio::join!(listener.accept(), connect());
        talk(&mut accepted.unwrap(), &mut client.unwrap()).await;
    });
}

// conformance: OtherTest.test_deliver_challenge_auth_failure
// conformance: OtherTest.test_answer_challenge_auth_failure
#[test]
fn the_halves_of_the_handshake_work_over_connections() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::bind(dir.path().join("socket")).await.unwrap();
        for (mut a, mut b) in [meet(&listener).await, mp::pipe().unwrap()] {
            let (delivered, answered) =
                tokio::join!(deliver_challenge(&mut a, &key), answer_challenge(&mut b, &key));
            delivered.unwrap();
            answered.unwrap();
            let bogus = async {
                b.recv_bytes().await.unwrap();
                b.send_bytes(b"something bogus").await.unwrap();
                assert_eq!(&b.recv_bytes().await.unwrap()[..], b"#FAILURE#");
            };
            let (delivered, ()) = tokio::join!(deliver_challenge(&mut a, &key), bogus);
            assert!(mp::Error::from(delivered.unwrap_err()).is_authentication());
            let bogus = async {
                b.send_bytes(b"#CHALLENGE#{sha256}0123456789012345678901234567890123456789").await.unwrap();
                b.recv_bytes().await.unwrap();
                b.send_bytes(b"something bogus").await.unwrap();
            };
            let (answered, ()) = tokio::join!(answer_challenge(&mut a, &key), bogus);
            assert!(mp::Error::from(answered.unwrap_err()).is_authentication());
            let (long, told) = tokio::join!(deliver_challenge(&mut a, &key), b.send_bytes(&[b'x'; 1000]));
            told.unwrap();
            assert!(mp::Error::from(long.unwrap_err()).is_authentication());
        }
    });
}

#[test]
fn a_full_backlog_is_waited_out() {
    run(WATCHDOG, async {
        const CLIENTS: usize = 50;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::bind(&path).backlog(1).await.unwrap();
        let mut first = Vec::new();
        let full = loop {
            match tokio::net::UnixStream::connect(&path).await {
                Ok(stream) => first.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        // One that has no patience.
        let error = Client::connect(&path).timeout(Duration::from_millis(50)).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        let connect = || tokio::spawn(Client::connect(&path).into_future());
        let clients: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();
        let mut accepted = Vec::new();
        while accepted.len() < first.len() + CLIENTS {
            accepted.push(listener.accept().await.unwrap());
        }
        for client in clients {
            client.await.unwrap().unwrap();
        }
    });
}

#[test]
fn many_tasks_accept_and_each_connection_goes_to_one() {
    run(WATCHDOG, async {
        for key in [None, Some(AuthKey::random())] {
            let mut bind = Listener::bind(("127.0.0.1", 0));
            if let Some(key) = &key {
                bind = bind.authkey(key);
            }
            let listener = Arc::new(bind.await.unwrap());
            let acceptors: Vec<_> = (0..20)
                .map(|_| {
                    let listener = listener.clone();
                    tokio::spawn(async move { answer(&mut listener.accept().await.unwrap()).await })
                })
                .collect();
            let clients: Vec<_> =
                (0..20).map(|_| tokio::spawn(call(listener.address().clone(), key.clone()))).collect();
            for task in acceptors.into_iter().chain(clients) {
                task.await.unwrap();
            }
        }
    });
}

#[test]
fn an_accept_that_is_polled_no_more_keeps_no_other_waiting() {
    run(WATCHDOG, async {
        for key in [None, Some(AuthKey::random())] {
            let listener = temporary(&key).await.unwrap();
            // One from before and one from after the other has begun to wait, of tasks that sleep on.
            let (before, other, after) = (listener.accept(), listener.accept(), listener.accept());
            tokio::pin!(before, other, after);
            let mut asleep = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(before.as_mut().poll(&mut asleep).is_pending());
            assert!(futures::poll!(&mut other).is_pending());
            assert!(after.as_mut().poll(&mut asleep).is_pending());
            let client = tokio::spawn(call(listener.address().clone(), key.clone()));
            answer(&mut other.await.unwrap()).await;
            client.await.unwrap();
            // They are as good as ever.
            let client = tokio::spawn(call(listener.address().clone(), key));
            answer(&mut before.await.unwrap()).await;
            client.await.unwrap();
        }
    });
}

/// On a runtime that nobody drives any more, until it is dropped there.
#[test]
fn a_dropped_accept_gives_the_listener_back_to_another_runtime() {
    let _guard = guard(WATCHDOG);
    let (here, idle) = (multi_thread(), current_thread());
    let key = AuthKey::random();
    let listener = Arc::new(here.block_on(Listener::temporary().authkey(&key).into_future()).unwrap());
    let (waiting, waits) = tokio::sync::oneshot::channel();
    let accepting = here.spawn({
        let listener = listener.clone();
        async move {
            let accept = listener.accept();
            tokio::pin!(accept);
            assert!(futures::poll!(&mut accept).is_pending());
            waiting.send(()).unwrap();
            answer(&mut accept.await.unwrap()).await;
        }
    });
    let mut accept = Box::pin(listener.accept());
    idle.block_on(async {
        waits.await.unwrap();
        assert!(futures::poll!(&mut accept).is_pending());
    });
    let client = here.spawn(call(listener.address().clone(), Some(key)));
    drop(accept);
    here.block_on(async {
        accepting.await.unwrap();
        client.await.unwrap();
    });
}

/// Polls an accept a few times and drops it, again and again, while clients come.
#[test]
fn a_dropped_accept_loses_no_connection_and_no_handshake() {
    run(WATCHDOG, async {
        const POLLS: usize = 10_000;
        let mut random = Random::new();
        for key in [None, Some(AuthKey::random())] {
            let listener = temporary(&key).await.unwrap();
            let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let mut clients = tokio::task::JoinSet::new();
            for _ in 0..8 {
                let (address, key) = (listener.address().clone(), key.clone());
                let (stop, made) = (stop.clone(), made.clone());
                clients.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        call(address.clone(), key.clone()).await;
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let (mut polls, mut accepted) = (0, 0);
            let mut served = tokio::task::JoinSet::new();
            while !clients.is_empty() {
                stop.fetch_or(polls >= POLLS, Ordering::Relaxed);
                let mut accept = Box::pin(listener.accept());
                for _ in 0..random.below(3) + 1 {
                    polls += 1;
                    if let std::task::Poll::Ready(connection) = futures::poll!(&mut accept) {
                        accepted += 1;
                        let mut connection = connection.unwrap();
                        served.spawn(async move { answer(&mut connection).await });
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                while let Some(ended) = clients.try_join_next() {
                    ended.unwrap();
                }
            }
            while let Some(ended) = served.join_next().await {
                ended.unwrap();
            }
            assert!(polls >= POLLS);
            assert_eq!(accepted, made.load(Ordering::Relaxed));
        }
    });
}

#[test]
fn a_dropped_client_leaves_nothing_and_the_listener_goes_on() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Arc::new(Listener::temporary().authkey(&key).await.unwrap());
        let accepting = tokio::spawn({
            let listener = listener.clone();
            async move {
                loop {
                    match listener.accept().await {
                        Ok(mut connection) => {
                            drop(tokio::spawn(async move { answer(&mut connection).await }))
                        }
                        Err(error) if error.is_closed() => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        for polls in 0..30 {
            let mut connect = Client::connect(listener.address()).authkey(&key).into_future();
            for _ in 0..polls {
                if futures::poll!(&mut connect).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        call(listener.address().clone(), Some(key)).await;
        listener.close();
        accepting.await.unwrap();
    });
}

#[test]
fn a_listener_outlives_its_runtimes() {
    let _guard = guard(WATCHDOG);
    for key in [None, Some(AuthKey::random())] {
        let (first, second, idle) = (current_thread(), multi_thread(), current_thread());
        let listener = first.block_on(temporary(&key).into_future()).unwrap();
        let address = listener.address().clone();
        let client = || {
            let call = call(address.clone(), key.clone());
            std::thread::spawn(move || current_thread().block_on(call))
        };
        // Each of them begins a handshake that another ends: one that nobody drives any more,
        let begun = client();
        let accepted = idle.block_on(poll_a_while(&listener));
        second.block_on(answer_one(&listener, accepted));
        begun.join().unwrap();
        // and one that has ended.
        let begun = client();
        let accepted = first.block_on(poll_a_while(&listener));
        drop(first);
        second.block_on(answer_one(&listener, accepted));
        begun.join().unwrap();
        // Two at a time.
        let others = current_thread();
        let listener = Arc::new(listener);
        let accepting = {
            let listener = listener.clone();
            second.spawn(async move { answer(&mut listener.accept().await.unwrap()).await })
        };
        let clients = [client(), client()];
        others.block_on(async { answer(&mut listener.accept().await.unwrap()).await });
        others.block_on(accepting).unwrap();
        clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

/// Until a client has got halfway, or all the way if it is quick. Without a key nothing is begun.
async fn poll_a_while(listener: &Listener) -> Option<Connection> {
    let says = |what| format!("{listener:?}").contains(what);
    let mut accept = Box::pin(listener.accept());
    while says("authenticates: true") && !says("pending: 1") {
        if let Poll::Ready(accepted) = futures::poll!(&mut accept) {
            return Some(accepted.unwrap());
        }
        tokio::task::yield_now().await;
    }
    None
}

/// Answers whoever was accepted before, or else is now.
async fn answer_one(listener: &Listener, accepted: Option<Connection>) {
    let mut connection = match accepted {
        Some(connection) => connection,
        None => listener.accept().await.unwrap(),
    };
    answer(&mut connection).await;
}

#[test]
fn a_listener_can_be_waited_for() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        for listener in listeners(&dir).await {
            assert_eq!(mp::wait_timeout(&[&listener], Duration::ZERO).await.unwrap(), []);
            let _client = Client::connect(listener.address()).await.unwrap();
            assert_eq!(mp::wait(&[&listener]).await.unwrap(), [0]);
            listener.accept().await.unwrap();
            assert_eq!(mp::wait_timeout(&[&listener], Duration::ZERO).await.unwrap(), []);
            listener.close();
            assert!(mp::wait(&[&listener]).await.unwrap_err().is_closed());
        }
    });
}

fn half(x: u64) -> u64 {
    x / 2
}

fn nameless(x: u64) -> u64 {
    x
}

mp::register!(half);

#[test]
fn functions_cross_a_listener_by_name_alone() {
    run(WATCHDOG, async {
        let listener = Listener::temporary().await.unwrap();
        let (mut a, mut b) = meet(&listener).await;
        for _ in 0..2 {
            a.send(&mp::Func::new(half)).await.unwrap();
            let got: mp::Func<(u64,), u64> = b.recv().await.unwrap();
            assert_eq!(got, mp::Func::new(half));
            let error = a.send(&mp::Func::new(nameless)).await.unwrap_err().to_string();
            assert!(error.contains("nameless") && error.contains("register!"), "{error}");
            let error = a.send(&AuthKey::random()).await.unwrap_err().to_string();
            assert!(error.contains("AuthKey"), "{error}");
            // And the other way.
            std::mem::swap(&mut a, &mut b);
        }
    });
}
