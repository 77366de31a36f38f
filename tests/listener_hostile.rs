//! Listeners and clients among those who mean no good, or are gone.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::future::IntoFuture;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use sha2::Sha256;
use support::process::{Call, Meeting};
use support::{PATIENCE, Random, current_thread, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_multiprocess as mp;
use tokio_multiprocess::connection::AuthError;
use tokio_multiprocess::{Address, AuthKey, Client, Listener};

/// Longer than any test takes.
const WATCHDOG: u64 = 120;

const CHALLENGE: &[u8] = b"#CHALLENGE#";

fn path(listener: &Listener) -> &Path {
    match listener.address() {
        Address::Unix(path) => path,
        other => panic!("{other}"),
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes(), body].concat()
}

fn hmac(key: &AuthKey, message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

/// A peer that speaks bytes.
struct Raw(UnixStream);

impl Raw {
    async fn connect(path: &Path) -> Self {
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => return Self(stream),
                // The backlog is full.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::task::yield_now().await
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The other side may have hung up.
    async fn say(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame; `None` at the end.
    async fn hear(&mut self) -> Option<Vec<u8>> {
        let len = self.0.read_u32().await.ok()?;
        let mut body = vec![0; len as usize];
        self.0.read_exact(&mut body).await.ok()?;
        Some(body)
    }

    /// Answers the listener's challenge, which is returned.
    async fn prove(&mut self, key: &AuthKey) -> Vec<u8> {
        let challenge = self.hear().await.unwrap();
        let code = hmac(key, challenge.strip_prefix(CHALLENGE).unwrap());
        self.say(&framed(&[b"{sha256}", &code[..]].concat())).await;
        assert_eq!(self.hear().await.unwrap(), b"#WELCOME#");
        challenge
    }

    /// Has nothing been said but failure? Waits for the end.
    async fn hears_nothing_but_failure(mut self) {
        while let Some(heard) = self.hear().await {
            assert!(heard.starts_with(CHALLENGE) || heard == b"#FAILURE#", "{heard:?}");
        }
    }
}

/// A good client and a word from it.
async fn call(path: PathBuf, key: AuthKey) {
    let mut connection = Client::connect(path).authkey(&key).timeout(PATIENCE).await.unwrap();
    connection.send("good").await.unwrap();
    assert_eq!(connection.recv::<String>().await.unwrap(), "good");
}

/// Accepts and serves until it is dropped, and counts the errors of authentication.
async fn serve(listener: &Listener, refused: &std::sync::atomic::AtomicUsize) {
    let mut served = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok(mut connection) => {
                served.spawn(async move {
                    if let Ok(word) = connection.recv::<String>().await {
                        let _ = connection.send(&word).await;
                    }
                });
            }
            Err(error) => {
                assert!(error.is_authentication(), "{error}");
                refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
}

/// Serves while `test` runs, and gives how many were refused.
async fn served<T>(listener: &Listener, test: impl Future<Output = T>) -> (usize, T) {
    let refused = std::sync::atomic::AtomicUsize::new(0);
    let result = tokio::select! {
        biased;
        result = test => result,
        () = serve(listener, &refused) => unreachable!(),
    };
    (refused.into_inner(), result)
}

#[test]
fn garbage_is_refused_and_the_next_is_served() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let mut random = Random::new();
        let mut garbage: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            framed(b""),
            framed(b"#WELCOME#"),
            framed(b"#CHALLENGE#{sha256}0123456789012345678901234567890123456789"),
            framed(b"{sha256}"),
            framed(&[b"{sha256}", &[0; 32][..]].concat()),
            framed(b"{sha3_256}0123456789012345678901234567890123456789"),
            framed(b"{\x1b[31m}0123456789"),
            framed(&[b'x'; 257]),
            framed(&vec![0; 100_000]),
            // Announced, and never sent: 2 GiB, a length of -2, 2^40.
            vec![0x7f, 0xff, 0xff, 0xff],
            vec![0xff, 0xff, 0xff, 0xfe],
            [&[0xff; 4][..], &(1u64 << 40).to_be_bytes()].concat(),
            [&[0xff; 4][..], &u64::MAX.to_be_bytes()].concat(),
        ];
        for _ in 0..50 {
            garbage.push((0..random.below(400) + 4).map(|_| random.next() as u8 | 0x80).collect());
        }
        let count = garbage.len();
        let test = async {
            for bytes in garbage {
                let mut peer = Raw::connect(path(&listener)).await;
                peer.say(&bytes).await;
                peer.hears_nothing_but_failure().await;
            }
            call(path(&listener).to_owned(), key.clone()).await;
        };
        assert_eq!(served(&listener, test).await.0, count);
    });
}

#[test]
fn a_reflected_challenge_is_not_answered() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let accept = listener.accept();
        let reflect = async {
            let mut peer = Raw::connect(path(&listener)).await;
            let challenge = peer.prove(&key).await;
            peer.say(&framed(&challenge)).await;
            assert_eq!(peer.hear().await, None);
        };
        let (accepted, ()) = tokio::join!(accept, reflect);
        assert!(matches!(accepted, Err(mp::Error::Authentication(AuthError::Reflected))), "{accepted:?}");
    });
}

/// What a peer that knows only MD5 says: the code of the answer is 16 bytes.
#[test]
fn md5_is_refused_unless_it_was_asked_for() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let refusal = async |says: Vec<u8>| {
            let peer = async {
                let mut peer = Raw::connect(path(&listener)).await;
                peer.hear().await.unwrap();
                peer.say(&framed(&says)).await;
                peer.hears_nothing_but_failure().await;
            };
            tokio::join!(listener.accept(), peer).0.unwrap_err()
        };
        for says in [vec![7; 16], [b"{md5}", &[7; 16][..]].concat()] {
            let error = refusal(says).await;
            assert!(matches!(error, mp::Error::Authentication(AuthError::TooWeak)), "{error}");
        }
        // One that has the key, and wants MD5 of us.
        for challenge in [vec![7; 20], [b"{md5}", &[7; 40][..]].concat()] {
            let wish = async {
                let mut peer = Raw::connect(path(&listener)).await;
                peer.prove(&key).await;
                peer.say(&framed(&[CHALLENGE, &challenge].concat())).await;
                peer.hears_nothing_but_failure().await;
            };
            let error = tokio::join!(listener.accept(), wish).0.unwrap_err();
            assert!(matches!(error, mp::Error::Authentication(AuthError::TooWeak)), "{error}");
        }
    });
}

#[cfg(feature = "md5")]
#[test]
fn md5_serves_those_who_ask_for_it() {
    use tokio_multiprocess::connection::auth::DigestPolicy;
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).digest_policy(DigestPolicy::Md5).await.unwrap();
        let peer = async {
            let mut peer = Raw::connect(path(&listener)).await;
            let challenge = peer.hear().await.unwrap();
            let mut mac = Hmac::<md5::Md5>::new_from_slice(key.as_bytes()).unwrap();
            mac.update(challenge.strip_prefix(CHALLENGE).unwrap());
            peer.say(&framed(&mac.finalize().into_bytes())).await;
            assert_eq!(peer.hear().await.unwrap(), b"#WELCOME#");
            peer.say(&framed(&[CHALLENGE, &[7; 20]].concat())).await;
            assert_eq!(peer.hear().await.unwrap().len(), 16);
            peer.say(&framed(b"#WELCOME#")).await;
        };
        tokio::join!(listener.accept(), peer).0.unwrap();
    });
}

/// Peers that say the right things, and leave after so many bytes.
#[test]
fn peers_that_leave_at_any_byte_are_no_error() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let test = async {
            for reads_before_leaving in [false, true] {
                // The answer has 44 bytes, our challenge 63, the verdict 13.
                for bytes in 0..44 + 63 + 13 {
                    let mut peer = Raw::connect(path(&listener)).await;
                    leave_after(&mut peer, &key, bytes).await;
                    if reads_before_leaving {
                        let _ = tokio::time::timeout(Duration::ZERO, peer.hear()).await;
                    }
                }
            }
            call(path(&listener).to_owned(), key.clone()).await;
        };
        assert_eq!(served(&listener, test).await.0, 0);
    });
}

async fn leave_after(peer: &mut Raw, key: &AuthKey, mut bytes: usize) {
    let mut say = async |peer: &mut Raw, what: &[u8]| {
        let what = framed(what);
        let part = what.len().min(bytes);
        bytes -= part;
        peer.say(&what[..part]).await;
        part == what.len() && bytes > 0
    };
    let Some(challenge) = peer.hear().await else { return };
    let code = hmac(key, &challenge[CHALLENGE.len()..]);
    if say(peer, &[b"{sha256}", &code[..]].concat()).await {
        assert_eq!(peer.hear().await.unwrap(), b"#WELCOME#");
        if say(peer, &[CHALLENGE, b"{sha256}", &[b'n'; 40]].concat()).await {
            assert_eq!(peer.hear().await.unwrap().len(), 40);
            assert!(!say(peer, b"#WELCOME#").await);
        }
    }
}

/// A stranger puts descriptors beside all that it says, until it has proved who it is; what it sends
/// from then on arrives with its descriptors, however soon that is.
#[test]
fn a_peer_that_has_proved_nothing_gets_no_descriptor_in_here() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let with_file = |peer: &Raw, bytes: &[u8], count: usize| {
            let fds = vec![file.as_raw_fd(); count];
            let rights = [ControlMessage::ScmRights(&fds)];
            let fd = peer.0.as_raw_fd();
            sendmsg::<()>(fd, &[IoSlice::new(bytes)], &rights, MsgFlags::empty(), None).unwrap();
        };
        let numbers = || {
            let numbers = std::fs::read_dir("/proc/self/fd").unwrap();
            let is_file = |to: PathBuf| to == file.path();
            numbers.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(is_file)).count()
        };
        let stranger = async {
            let mut peer = Raw::connect(path(&listener)).await;
            let challenge = peer.hear().await.unwrap();
            let code = hmac(&key, challenge.strip_prefix(CHALLENGE).unwrap());
            let answer = framed(&[b"{sha256}", &code[..]].concat());
            for byte in &answer[..3] {
                with_file(&peer, &[*byte], 253);
                // Until it was read.
                while has_unread(&peer.0) {
                    tokio::task::yield_now().await;
                }
                assert_eq!(numbers(), 1);
            }
            peer.say(&answer[3..]).await;
            assert_eq!(peer.hear().await.unwrap(), b"#WELCOME#");
            peer.say(&framed(&[CHALLENGE, b"{sha256}", &[7; 40]].concat())).await;
            peer.hear().await.unwrap();
            peer.say(&framed(b"#WELCOME#")).await;
            // A frame with one descriptor: the message is the first of those beside it.
            let header = [&[255; 4][..], &(1u64 << 48 | 1).to_be_bytes(), &[0]].concat();
            with_file(&peer, &header, 1);
            peer
        };
        let (accepted, _peer) = tokio::join!(listener.accept(), stranger);
        let received: mp::Handle<std::fs::File> = accepted.unwrap().recv().await.unwrap();
        assert_eq!(numbers(), 2);
        drop(received);
    });
}

/// Whether the other side has not read all that was sent.
fn has_unread(socket: &UnixStream) -> bool {
    let mut held: nix::libc::c_int = 0;
    // SAFETY: this request writes one `int`, and the socket is open.
    let asked = unsafe { nix::libc::ioctl(socket.as_raw_fd(), nix::libc::TIOCOUTQ, &raw mut held) };
    assert_eq!(asked, 0);
    held > 0
}

#[test]
fn silent_peers_keep_nobody_out_and_use_up_nothing() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let mut silent = Vec::new();
        let test = async {
            for n in 0..1_000 {
                silent.push(Raw::connect(path(&listener)).await);
                if n % 100 == 99 {
                    call(path(&listener).to_owned(), key.clone()).await;
                }
            }
            let pending = format!("{listener:?}");
            let pending: usize =
                pending.split_once("pending: ").unwrap().1.split([',', ' ']).next().unwrap().parse().unwrap();
            assert!(pending <= 256, "{pending}");
            // The oldest have been given up, and told nothing else.
            for peer in silent.drain(..500) {
                peer.hears_nothing_but_failure().await;
            }
        };
        assert_eq!(served(&listener, test).await.0, 0);
    });
}

#[test]
fn slow_peers_delay_nobody_and_end_at_the_deadline() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let bind = Listener::temporary().authkey(&key).handshake_timeout(Duration::from_millis(300));
        let listener = bind.await.unwrap();
        let at = path(&listener).to_owned();
        let mut slow = JoinSet::new();
        for _ in 0..50 {
            let at = at.clone();
            slow.spawn(async move {
                let mut peer = Raw::connect(&at).await;
                // A byte of an endless frame now and then, for as long as somebody listens.
                let mut bytes = framed(&[b'{'; 200]).into_iter().chain(std::iter::repeat(b'x'));
                while peer.0.write_all(&[bytes.next().unwrap()]).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        let test = async {
            for _ in 0..50 {
                call(at.clone(), key.clone()).await;
            }
            while let Some(ended) = slow.join_next().await {
                ended.unwrap();
            }
        };
        assert_eq!(served(&listener, test).await.0, 0);
    });
}

#[test]
fn a_flood_does_not_keep_honest_clients_out() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let at = path(&listener).to_owned();
        let mut flood = JoinSet::new();
        for n in 0..8u64 {
            let at = at.clone();
            flood.spawn(async move {
                let mut random = Random::from_seed(n);
                let mut held = std::collections::VecDeque::new();
                loop {
                    let mut peer = Raw::connect(&at).await;
                    if random.below(2) == 0 {
                        peer.say(&random.next().to_ne_bytes()).await;
                    }
                    held.push_back(peer);
                    if held.len() > 20 {
                        held.pop_front();
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        let test = async {
            for _ in 0..30 {
                call(at.clone(), key.clone()).await;
            }
        };
        served(&listener, test).await;
        flood.shutdown().await;
    });
}

/// Lowers this process's limit so that `spare` descriptors can be opened.
fn leave_descriptors(spare: u64) {
    let lowest_free = std::fs::File::open("/dev/null").map(|file| file.as_raw_fd() as u64);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, lowest_free.unwrap() + spare, hard).unwrap();
}

/// Serves one good client among silent ones, with hardly a descriptor to spare.
fn serve_at_the_limit(meeting: String) {
    current_thread().block_on(async {
        let key = mp::current_process().authkey();
        let listener = Listener::temporary().authkey(&key).await.unwrap();
        let mut call = Call::to(&meeting);
        call.say(listener.address());
        let mut accept = Box::pin(listener.accept());
        // So that all that is made once is there.
        assert!(futures::poll!(&mut accept).is_pending());
        leave_descriptors(4);
        let mut connection = accept.await.unwrap();
        assert_eq!(connection.recv::<String>().await.unwrap(), "good");
        connection.send("good").await.unwrap();
        drop(call.hear());
    });
}

#[test]
fn at_the_limit_of_descriptors_the_oldest_handshake_goes() {
    run(WATCHDOG, async {
        let meeting = Meeting::new();
        let child = mp::Process::builder(serve_at_the_limit, (meeting.address(),)).start().await.unwrap();
        let mut caller = meeting.accept().await;
        let at = PathBuf::from(caller.hear().await.unwrap());
        let mut silent = Vec::new();
        for _ in 0..50 {
            silent.push(Raw::connect(&at).await);
        }
        call(at, mp::current_process().authkey()).await;
        drop(caller);
        assert!(child.join().await.unwrap().success());
    });
}

/// Without a descriptor left, and without a key: nobody can be given up.
fn wait_for_descriptors(meeting: String) {
    current_thread().block_on(async {
        let listener = Listener::temporary().await.unwrap();
        let mut call = Call::to(&meeting);
        call.say(listener.address());
        let mut accept = pin!(listener.accept());
        assert!(futures::poll!(&mut accept).is_pending());
        leave_descriptors(0);
        call.say("at the limit");
        // The client is in the backlog now.
        call.hear().unwrap();
        // It looks again at each pause, and hardly more often, however late it is woken.
        let (mut looks, begin) = (0, std::time::Instant::now());
        let looking = std::future::poll_fn(|cx| {
            looks += 1;
            accept.as_mut().poll(cx)
        });
        let waited = tokio::time::timeout(Duration::from_millis(500), looking).await;
        assert!(waited.is_err(), "{waited:?}");
        let pauses = begin.elapsed().as_millis() / 50;
        assert!(looks <= 2 * pauses + 10, "it spins: {looks} looks in {pauses} pauses");
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        accept.await.unwrap().send("at last").await.unwrap();
    });
}

#[test]
fn a_listener_waits_for_descriptors_and_does_not_spin() {
    run(WATCHDOG, async {
        let meeting = Meeting::new();
        let child = mp::Process::builder(wait_for_descriptors, (meeting.address(),)).start().await.unwrap();
        let mut caller = meeting.accept().await;
        let at: Address = caller.hear().await.unwrap().parse().unwrap();
        assert_eq!(caller.hear().await.unwrap(), "at the limit");
        let mut client = Client::connect(at).await.unwrap();
        caller.say("connected").await;
        assert_eq!(client.recv::<String>().await.unwrap(), "at last");
        assert!(child.join().await.unwrap().success());
    });
}

/// Connects as another user, and tells what came of it.
fn connect_as_nobody(meeting: String, path: PathBuf) {
    let mut call = Call::to(&meeting);
    nix::unistd::setuid(nix::unistd::Uid::from_raw(65534)).unwrap();
    let tried = std::os::unix::net::UnixStream::connect(&path);
    call.say(tried.unwrap_err().kind());
    // Somebody has opened the directory, which the listener must not rely on.
    call.hear().unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut heard = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut heard);
    call.say(heard.len());
}

#[test]
fn another_user_is_refused_at_a_temporary_listener() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    run(WATCHDOG, async {
        let key = AuthKey::random();
        for bind in [Listener::temporary(), Listener::temporary().authkey(&key)] {
            let listener = bind.await.unwrap();
            let meeting = Meeting::new();
            let args = (meeting.address(), path(&listener).to_owned());
            let child = mp::Process::builder(connect_as_nobody, args).start().await.unwrap();
            let mut caller = meeting.accept().await;
            assert_eq!(caller.hear().await.unwrap(), "permission denied");
            let open =
                |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
            open(path(&listener));
            open(path(&listener).parent().unwrap());
            caller.say("open").await;
            let error = listener.accept().await.unwrap_err();
            assert!(matches!(error, mp::Error::Authentication(AuthError::OtherUser)), "{error}");
            assert_eq!(caller.hear().await.unwrap(), "0");
            assert!(child.join().await.unwrap().success());
        }
    });
}

#[test]
fn a_client_survives_bad_listeners() {
    run(WATCHDOG, async {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("socket");
        let listener = UnixListener::bind(&at).unwrap();
        let key = AuthKey::random();
        let meets = |says: Vec<u8>, stays: bool| {
            let (listener, at, key) = (&listener, &at, &key);
            async move {
                let timeout = if stays { Duration::from_millis(50) } else { PATIENCE };
                let connect = Client::connect(at).authkey(key).timeout(timeout).into_future();
                let meanwhile = async {
                    let mut peer = Raw(listener.accept().await.unwrap().0);
                    peer.say(&says).await;
                    if !stays {
                        let _ = peer.0.shutdown().await;
                    }
                    peer
                };
                tokio::join!(connect, meanwhile).0.unwrap_err()
            }
        };
        let challenge = framed(&[CHALLENGE, b"{sha256}", &[7; 40]].concat());
        for len in 0..challenge.len() {
            let error = meets(challenge[..len].to_vec(), false).await;
            assert!(!error.is_authentication() && !error.is_timeout(), "{len}: {error}");
        }
        for says in [&[][..], &challenge[..10], &challenge] {
            let error = meets(says.to_vec(), true).await;
            assert!(error.is_timeout(), "{error}");
        }
        for says in [
            framed(b"hello"),
            framed(&[CHALLENGE, &[7; 20]].concat()),
            framed(&[CHALLENGE, b"{md5}", &[7; 40]].concat()),
            [&[0xff; 4][..], &(1u64 << 40).to_be_bytes()].concat(),
            [&challenge[..], &framed(b"#FAILURE#")].concat(),
            [&challenge[..], &framed(b"#WELCOME"), b"more"].concat(),
        ] {
            let error = meets(says.clone(), false).await;
            assert!(error.is_authentication(), "{says:?}: {error}");
        }
    });
}

/// A service that is asked to stop has peers of every kind in its hands.
#[test]
fn closing_lets_go_of_handshakes_under_way() {
    run(WATCHDOG, async {
        let key = AuthKey::random();
        let listener = Arc::new(Listener::temporary().authkey(&key).await.unwrap());
        let accepting = tokio::spawn({
            let listener = listener.clone();
            async move { listener.accept().await }
        });
        let mut peer = Raw::connect(path(&listener)).await;
        peer.hear().await.unwrap();
        listener.close();
        assert!(accepting.await.unwrap().unwrap_err().is_closed());
        assert_eq!(peer.hear().await, None);
    });
}
