//! Large and absurd values: what is shared is sealed, and no length is believed.

#![cfg(target_os = "linux")]

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_bytes::ByteBuf;
use support::{run, run_each};
use tokio_multiprocess::{Blob, NotStarted, Pool, TaskError};

const LARGE: usize = 64 << 20;

/// The memfds of blobs that this process has mapped, by inode.
fn mapped_blobs() -> Vec<u64> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let blobs = maps.lines().filter(|line| line.contains("memfd:tokio-multiprocess-blob"));
    blobs.map(|line| line.split_whitespace().nth(4).unwrap().parse().unwrap()).collect()
}

/// The memory that a blob lies in, and no copy of it, goes to the worker and comes back.
#[test]
fn a_blob_goes_both_ways_without_a_copy() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let blob = Blob::new(vec![7; LARGE]).unwrap();
        let ours = mapped_blobs();
        assert_eq!(ours.len(), 1);
        let (theirs, len, back) = pool
            .apply(
                |blob: Blob| (mapped_blobs(), blob.iter().filter(|byte| **byte == 7).count(), blob),
                (blob,),
            )
            .await
            .unwrap();
        assert_eq!((&theirs, len), (&ours, LARGE));
        assert_eq!(mapped_blobs(), ours);
        assert!(back.len() == LARGE && back.ends_with(&[7; 9]));
    });
}

#[test]
fn nobody_can_change_a_blob_that_was_sent() {
    fn tamper(blob: Blob) -> (usize, Blob) {
        let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let blobs = links.filter(|link| {
            fs::read_link(link.path()).is_ok_and(|target| target.to_string_lossy().contains("-blob"))
        });
        let tried = blobs.filter(|link| {
            let opened = OpenOptions::new().write(true).open(link.path());
            // Whether it can be opened is up to the kernel; to be written, no.
            opened.and_then(|mut file| file.write(b"changed")).is_err()
        });
        (tried.count(), blob)
    }
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let blob = Blob::new(b"original").unwrap();
        let (tried, back) = pool.apply(tamper, (blob.clone(),)).await.unwrap();
        assert!(tried >= 1);
        assert_eq!((&blob[..], &back[..]), (&b"original"[..], &b"original"[..]));
    });
}

#[test]
fn large_bytes_of_every_kind_come_back() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        for len in [32 << 10, 256 << 10, (256 << 10) + 1, 5 << 20] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let echoed = pool.apply(|bytes: ByteBuf| bytes, (ByteBuf::from(bytes.clone()),)).await.unwrap();
            assert_eq!(echoed, bytes);
            let text = "x".repeat(len);
            assert_eq!(pool.apply(|text: String| text.len(), (text,)).await.unwrap(), len);
            let many = vec![Some(ByteBuf::from(bytes)), None];
            assert_eq!(pool.apply(|many: Vec<Option<ByteBuf>>| many, (many.clone(),)).await.unwrap(), many);
        }
    });
}

/// Claims a number of elements, and gives one.
struct Claims(usize);

impl Serialize for Claims {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut elements = serializer.serialize_seq(Some(self.0))?;
        elements.serialize_element(&1u64)?;
        elements.end()
    }
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u64>::deserialize(deserializer).map(|elements| Self(elements.len()))
    }
}

/// As [`Claims`], for the entries of a map.
struct ClaimsEntries(usize);

impl Serialize for ClaimsEntries {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut entries = serializer.serialize_map(Some(self.0))?;
        entries.serialize_entry(&1u64, &2u64)?;
        entries.end()
    }
}

impl<'de> Deserialize<'de> for ClaimsEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::collections::HashMap::<u64, u64>::deserialize(deserializer).map(|entries| Self(entries.len()))
    }
}

/// Written as text, read as numbers: the value of a peer that is not what it seems.
struct NotWhatItSeems(String);

impl Serialize for NotWhatItSeems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for NotWhatItSeems {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<[u64; 32]>::deserialize(deserializer).map(|numbers| Self(format!("{numbers:?}")))
    }
}

/// A length that is only claimed costs nothing: an error, in the caller or in the worker, which
/// lives on.
#[test]
fn absurd_lengths_are_errors_and_nothing_is_allocated() {
    /// The most memory that this process has ever had, in KiB.
    fn peak() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmPeak")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
    const ABSURD: usize = 1 << 60;
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let (pid, there) = pool.apply(|| (std::process::id(), peak()), ()).await.unwrap();
        let here = peak();
        let refused = [
            pool.apply(|_: Claims| (), (Claims(ABSURD),)).await.unwrap_err(),
            pool.apply(|_: ClaimsEntries| (), (ClaimsEntries(ABSURD),)).await.unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error, TaskError::NotStarted(NotStarted::Unencodable(_))), "{error:?}");
        }
        let error = pool.apply(|| Claims(ABSURD), ()).await.err().unwrap();
        assert!(matches!(error, TaskError::Unencodable { .. }), "{error:?}");
        let error = pool.apply(|| ClaimsEntries(ABSURD), ()).await.err().unwrap();
        assert!(matches!(error, TaskError::Unencodable { .. }), "{error:?}");
        // What the format can just say is put right.
        assert_eq!(pool.apply(|claims: Claims| claims.0, (Claims(u32::MAX as usize),)).await.unwrap(), 1);
        let error = pool.apply(|| NotWhatItSeems("x".repeat(100_000)), ()).await.err().unwrap();
        assert!(matches!(error, TaskError::Undecodable(_)), "{error:?}");
        let error =
            pool.apply(|_: NotWhatItSeems| (), (NotWhatItSeems("text".to_owned()),)).await.unwrap_err();
        assert!(matches!(error, TaskError::NotStarted(NotStarted::Arguments(_))), "{error:?}");
        let (same, there_now) = pool.apply(|| (std::process::id(), peak()), ()).await.unwrap();
        assert_eq!(same, pid);
        let (here, there) = (peak() - here, there_now - there);
        assert!(here < 512 << 10 && there < 512 << 10, "{here} KiB here, {there} KiB there");
    });
}

/// What a task that leaks descriptors leaves of its process: nothing that needs one works any more.
fn leak_all_descriptors() -> u32 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // So that it does not take a million.
    setrlimit(Resource::RLIMIT_NOFILE, 128, hard).unwrap();
    while let Ok(file) = fs::File::open("/dev/null") {
        std::mem::forget(file);
    }
    std::process::id()
}

/// A call that its worker has no descriptor for goes to another one, whether or not it may be retried.
#[test]
fn a_worker_without_descriptors_fails_nobodys_calls() {
    run_each(60, async |context| {
        let pool = Pool::builder().context(context).processes(1).build().await.unwrap();
        let spoilt = pool.apply(leak_all_descriptors, ()).await.unwrap();
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let take = |bytes: ByteBuf| (std::process::id(), bytes.len());
                pool.apply(take, (ByteBuf::from(vec![1; 100_000]),)).submit()
            })
            .collect();
        for call in calls {
            let (pid, len) = call.await.unwrap();
            assert!(pid != spoilt && len == 100_000);
        }
    });
}

/// The call whose value finds no descriptor is told so, as it has run; those after it find another worker.
#[test]
fn a_worker_that_cannot_answer_for_want_of_descriptors_is_replaced() {
    run(60, async {
        let pool = Pool::new(1).await.unwrap();
        let spoilt = pool.apply(leak_all_descriptors, ()).await.unwrap();
        let large = || pool.apply(|len: usize| (std::process::id(), ByteBuf::from(vec![1; len])), (100_000,));
        let error = large().await.unwrap_err();
        assert!(matches!(error, TaskError::Unencodable { .. }), "{error:?}");
        let (pid, bytes) = large().await.unwrap();
        assert!(pid != spoilt && bytes.len() == 100_000);
    });
}

/// No other worker could do better: it would be started in vain, one after another.
#[test]
fn a_call_that_asks_for_too_many_descriptors_is_told_so() {
    run(60, async {
        let initializer = || {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        };
        let pool = Pool::builder().processes(1).initializer(initializer, ()).build().await.unwrap();
        let blobs = vec![Blob::new(b"one").unwrap(); 100];
        for _ in 0..3 {
            let error = pool.apply(|blobs: Vec<Blob>| blobs.len(), (blobs.clone(),)).await.unwrap_err();
            assert!(matches!(error, TaskError::NotStarted(NotStarted::Arguments(_))), "{error:?}");
        }
    });
}
