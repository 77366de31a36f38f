use std::collections::VecDeque;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::*;

// The codes below were computed with CPython's `hmac` for these two inputs.
const KEY: &[u8] = b"a shared secret";
const SHA256_CODE: &str = "8588032ec7c07cb4e06aba65cd2c8366b3c55dc6d7ae8164f46ea3e226217f96";
const LONG_KEY: &[u8] = &[b'k'; 100];
const LONG_KEY_SHA256_CODE: &str = "92a28f957d705592e88ca4ee0f82e4b409c0458d65e1d7d224d9e27f259b7007";

/// 0, 1, 2, …
fn nonce<const N: usize>() -> [u8; N] {
    std::array::from_fn(|i| i as u8)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn key() -> AuthKey {
    AuthKey::from(KEY)
}

fn policies() -> Vec<DigestPolicy> {
    vec![
        DigestPolicy::Sha256,
        #[cfg(feature = "md5")]
        DigestPolicy::Md5,
    ]
}

fn judge(key: &AuthKey, policy: DigestPolicy, answer: &[u8]) -> Result<(), AuthError> {
    Challenger::new(key, policy, &nonce()).judge(answer)
}

/// Answers a challenge that carries `message`.
fn reply(policy: DigestPolicy, message: &[u8]) -> Result<Vec<u8>, AuthError> {
    let key = key();
    Answerer { key: &key, policy, issued: None }.answer(&[CHALLENGE, message].concat())
}

/// A peer that says what it was told to say and records what it hears.
#[derive(Default)]
struct Script {
    says: VecDeque<Bytes>,
    heard: Vec<Bytes>,
}

impl Script {
    fn new(says: impl IntoIterator<Item = &'static [u8]>) -> Self {
        Self { says: says.into_iter().map(Bytes::from_static).collect(), heard: Vec::new() }
    }
}

#[async_trait]
impl Link for Script {
    async fn send_bytes(&mut self, frame: &[u8]) -> io::Result<()> {
        self.heard.push(Bytes::copy_from_slice(frame));
        Ok(())
    }

    async fn recv_bytes(&mut self, max_len: usize) -> io::Result<Bytes> {
        assert_eq!(max_len, 256);
        Ok(self.says.pop_front().ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}

struct Channel(Sender<Bytes>, Receiver<Bytes>);

impl Channel {
    fn pair() -> (Self, Self) {
        let ((to_b, from_a), (to_a, from_b)) = (channel(1), channel(1));
        (Self(to_b, from_b), Self(to_a, from_a))
    }
}

#[async_trait]
impl Link for Channel {
    async fn send_bytes(&mut self, frame: &[u8]) -> io::Result<()> {
        let frame = Bytes::copy_from_slice(frame);
        self.0.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn recv_bytes(&mut self, _max_len: usize) -> io::Result<Bytes> {
        Ok(self.1.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}

async fn shake(server_key: &AuthKey, client_key: &AuthKey) -> (Result<(), AuthError>, Result<(), AuthError>) {
    let (mut server, mut client) = Channel::pair();
    // Each side drops its link as it ends, so that a failing test ends instead of waiting.
    tokio::join!(
        async move { mutual_server(&mut server, server_key, DigestPolicy::Sha256).await },
        async move { mutual_client(&mut client, client_key, DigestPolicy::Sha256).await },
    )
}

#[test]
fn answers_are_those_of_cpython() {
    for (key, code) in [(KEY, SHA256_CODE), (LONG_KEY, LONG_KEY_SHA256_CODE)] {
        let key = AuthKey::from(key);
        let challenger = Challenger::new(&key, DigestPolicy::Sha256, &nonce());
        let challenge = challenger.challenge();
        assert_eq!(challenge, [b"#CHALLENGE#{sha256}", &nonce::<40>()[..]].concat());

        let answerer = Answerer { key: &key, policy: DigestPolicy::Sha256, issued: None };
        let answer = answerer.answer(&challenge).unwrap();
        assert_eq!(&answer[..8], b"{sha256}");
        assert_eq!(hex(&answer[8..]), code);
        challenger.judge(&answer).unwrap();
    }
}

#[test]
fn every_altered_bit_of_an_answer_is_noticed() {
    let key = key();
    let good = [b"{sha256}", &unhex(SHA256_CODE)[..]].concat();
    judge(&key, DigestPolicy::Sha256, &good).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(judge(&key, DigestPolicy::Sha256, &bad).is_err(), "bit {bit}");
    }
    let longer = [&good[..], b"\0"].concat();
    for wrong in [&good[..good.len() - 1], &longer, b"{sha256}"] {
        let judgement = judge(&key, DigestPolicy::Sha256, wrong);
        assert!(matches!(judgement, Err(AuthError::Mismatch)), "{judgement:?}");
    }
}

#[test]
fn other_digests_are_refused_by_name() {
    for name in ["sha384", "sha3_256", "sha3_384", "SHA256", "sha1", "blake2s"] {
        let message = [b"{", name.as_bytes(), b"}", &nonce::<40>()].concat();
        for policy in policies() {
            for result in [judge(&key(), policy, &message), reply(policy, &message).map(drop)] {
                match result {
                    Err(AuthError::UnsupportedDigest(got)) => assert_eq!(got, name),
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn what_is_no_digest_name_is_malformed() {
    for start in ["", "sha256", "{sha256", "{}", "{\n}", "{a b}", "{\u{fc}}", "}{", "{sha3_2560}"] {
        let message = [start.as_bytes(), &[b'x'; 40]].concat();
        let judgement = judge(&key(), DigestPolicy::Sha256, &message);
        assert!(matches!(judgement, Err(AuthError::Malformed)), "{start}: {judgement:?}");
        let answer = reply(DigestPolicy::Sha256, &message);
        assert!(matches!(answer, Err(AuthError::Malformed)), "{start}: {answer:?}");
    }
}

#[test]
fn challenges_have_bounds() {
    for (len, fits) in [(19, false), (21, true), (245, true), (246, false)] {
        let mut message = b"{sha256}".to_vec();
        message.resize(len, 7);
        let answer = reply(DigestPolicy::Sha256, &message);
        assert_eq!(answer.is_ok(), fits, "{len}: {answer:?}");
        assert!(fits || matches!(answer, Err(AuthError::Malformed)));
    }
}

#[test]
fn md5_is_refused_unless_asked_for() {
    let answers = [
        // The right code of each form: refused for its form and not for its bytes.
        unhex("e72bf546bb0875b186dc159b3505f2ba"),
        [b"{md5}", &unhex("e72bf546bb0875b186dc159b3505f2ba")[..]].concat(),
        vec![7; 20],
    ];
    for answer in answers {
        let judgement = judge(&key(), DigestPolicy::default(), &answer);
        assert!(matches!(judgement, Err(AuthError::TooWeak)), "{judgement:?}");
    }
    let named_but_as_long_as_bare = [b"{sha256}", &nonce::<12>()[..]].concat();
    let challenges =
        [nonce::<20>().to_vec(), [b"{md5}", &nonce::<40>()[..]].concat(), named_but_as_long_as_bare];
    for message in challenges {
        let answer = reply(DigestPolicy::default(), &message);
        assert!(matches!(answer, Err(AuthError::TooWeak)), "{answer:?}");
    }
}

#[cfg(feature = "md5")]
#[test]
fn md5_is_spoken_when_asked_for() {
    let policy = DigestPolicy::Md5;
    let code = unhex("e72bf546bb0875b186dc159b3505f2ba");
    judge(&key(), policy, &code).unwrap();
    judge(&key(), policy, &[b"{md5}", &code[..]].concat()).unwrap();
    judge(&key(), policy, &[b"{sha256}", &unhex(SHA256_CODE)[..]].concat()).unwrap();
    for wrong in [vec![7; 16], vec![7; 20], [b"{md5}", &[7; 16][..]].concat()] {
        let judgement = judge(&key(), policy, &wrong);
        assert!(matches!(judgement, Err(AuthError::Mismatch)), "{judgement:?}");
    }

    let bare = reply(policy, &nonce::<20>()).unwrap();
    assert_eq!(hex(&bare), "796fd68797f0f89425d8997dadf3b3d7");
    let named = reply(policy, &[b"{md5}", &nonce::<40>()[..]].concat()).unwrap();
    assert_eq!(&named[..5], b"{md5}");
    assert_eq!(hex(&named[5..]), "b017c98dd7d3550844628ee27258e715");
}

#[test]
fn garbage_never_passes_and_never_panics() {
    let key = key();
    let starts: [&[u8]; 7] =
        [b"", CHALLENGE, b"{", b"{sha256}", b"{md5}", b"#CHALLENGE#{", b"#CHALLENGE#{md5}"];
    for policy in policies() {
        let answerer = Answerer { key: &key, policy, issued: None };
        for start in starts {
            for len in 0..300 {
                for fill in [0, b'}', b'{', 0xff] {
                    let mut frame = start.to_vec();
                    frame.resize(len, fill);
                    assert!(judge(&key, policy, &frame).is_err());
                    assert!(Answerer::accept_verdict(&frame).is_err());
                    if !frame.starts_with(CHALLENGE) || len > MAX_FRAME {
                        assert!(answerer.answer(&frame).is_err());
                    } else if let Ok(answer) = answerer.answer(&frame) {
                        assert!(answer.len() <= MAX_FRAME);
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_bogus_answer_gets_failure_and_nothing_else() {
    // conformance: OtherTest.test_deliver_challenge_auth_failure
    static TOO_LONG: [u8; 257] = [b'x'; 257];
    let bogus: [&'static [u8]; 5] = [b"something bogus", b"", b"{sha256}", b"{sha384}0123456789", &TOO_LONG];
    for answer in bogus {
        let mut link = Script::new([answer]);
        let error = deliver_challenge(&mut link, &key()).await.unwrap_err();
        assert!(!matches!(error, AuthError::Io(_)), "{error:?}");
        assert_eq!(link.heard.len(), 2);
        assert!(link.heard[0].starts_with(b"#CHALLENGE#{sha256}"));
        assert_eq!(link.heard[1], "#FAILURE#");
    }
}

#[tokio::test]
async fn a_bogus_verdict_is_a_rejection() {
    // conformance: OtherTest.test_answer_challenge_auth_failure
    let challenge = b"#CHALLENGE#{sha256}0123456789012345678901234567890123456789";
    for verdict in ["something bogus", "", "#FAILURE#", "#WELCOME#!", "#WELCOME"] {
        let mut link = Script::new([challenge.as_slice(), verdict.as_bytes()]);
        let error = answer_challenge(&mut link, &key()).await.unwrap_err();
        assert!(matches!(error, AuthError::Rejected), "{verdict}: {error:?}");
        assert_eq!(link.heard.len(), 1);
    }
    let mut link = Script::new([challenge.as_slice(), WELCOME]);
    answer_challenge(&mut link, &key()).await.unwrap();
}

#[tokio::test]
async fn a_bad_challenge_gets_no_answer() {
    let bad: [&'static [u8]; 4] = [b"", b"hello", b"#CHALLENGE#{sha256}short", b"#WELCOME#"];
    for challenge in bad {
        let mut link = Script::new([challenge, WELCOME]);
        let error = answer_challenge(&mut link, &key()).await.unwrap_err();
        assert!(matches!(error, AuthError::Malformed), "{error:?}");
        assert!(link.heard.is_empty());
    }
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_an_io_error() {
    let eof = |error| matches!(error, AuthError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof);
    assert!(eof(deliver_challenge(&mut Script::default(), &key()).await.unwrap_err()));
    assert!(eof(answer_challenge(&mut Script::default(), &key()).await.unwrap_err()));
}

#[tokio::test]
async fn a_failed_verdict_does_not_hide_the_mismatch() {
    struct Deaf(bool);

    #[async_trait]
    impl Link for Deaf {
        async fn send_bytes(&mut self, _frame: &[u8]) -> io::Result<()> {
            if self.0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        }

        async fn recv_bytes(&mut self, _max_len: usize) -> io::Result<Bytes> {
            self.0 = true;
            Ok(Bytes::from_static(b"{sha256}wrong"))
        }
    }

    let error = deliver_challenge(&mut Deaf(false), &key()).await.unwrap_err();
    assert!(matches!(error, AuthError::Mismatch), "{error:?}");
}

#[tokio::test]
async fn one_key_on_both_sides_is_welcome() {
    let (server, client) = shake(&key(), &key()).await;
    server.unwrap();
    client.unwrap();
}

#[tokio::test]
async fn two_keys_are_told_apart() {
    let (server, client) = shake(&key(), &AuthKey::random()).await;
    assert!(matches!(server, Err(AuthError::Mismatch)), "{server:?}");
    assert!(matches!(client, Err(AuthError::Rejected)), "{client:?}");
}

#[tokio::test]
async fn a_server_without_the_key_fails_at_the_second_half() {
    let (mut server, mut client) = Channel::pair();
    let imposter = async move {
        let challenge = [CHALLENGE, b"{sha256}", &nonce::<40>()].concat();
        server.send_bytes(&challenge).await.unwrap();
        let answer = server.recv_bytes(MAX_FRAME).await.unwrap();
        server.send_bytes(WELCOME).await.unwrap();
        server.recv_bytes(MAX_FRAME).await.unwrap();
        // All it has is the client's answer to another challenge.
        server.send_bytes(&answer).await.unwrap();
        assert_eq!(server.recv_bytes(MAX_FRAME).await.unwrap(), FAILURE);
    };
    let key = key();
    let connecting = async move { mutual_client(&mut client, &key, DigestPolicy::Sha256).await };
    let (connected, ()) = tokio::join!(connecting, imposter);
    assert!(matches!(connected, Err(AuthError::Mismatch)), "{connected:?}");
}

#[tokio::test]
async fn a_reflected_challenge_gets_no_answer() {
    let (mut server, mut peer) = Channel::pair();
    let reflecting = async move {
        let challenge = peer.recv_bytes(MAX_FRAME).await.unwrap();
        let key = key();
        let answerer = Answerer { key: &key, policy: DigestPolicy::Sha256, issued: None };
        peer.send_bytes(&answerer.answer(&challenge).unwrap()).await.unwrap();
        assert_eq!(peer.recv_bytes(MAX_FRAME).await.unwrap(), WELCOME);
        peer.send_bytes(&challenge).await.unwrap();
        let end = peer.recv_bytes(MAX_FRAME).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    };
    let key = key();
    let serving = async move { mutual_server(&mut server, &key, DigestPolicy::Sha256).await };
    let (served, ()) = tokio::join!(serving, reflecting);
    assert!(matches!(served, Err(AuthError::Reflected)), "{served:?}");
}

#[tokio::test]
async fn challenges_differ() {
    let mut links = [Script::default(), Script::default()];
    for link in &mut links {
        deliver_challenge(link, &key()).await.unwrap_err();
        assert_eq!(link.heard[0].len(), CHALLENGE.len() + 8 + NONCE_LEN);
    }
    assert_ne!(links[0].heard, links[1].heard);
}

#[test]
fn handshakes_may_move_between_threads() {
    fn assert_send<T: Send>(_: T) {}
    let (key, mut link) = (key(), Script::default());
    let link: &mut dyn Link = &mut link;
    assert_send(mutual_server(link, &key, DigestPolicy::default()));
    assert_send(mutual_client(link, &key, DigestPolicy::default()));
}
