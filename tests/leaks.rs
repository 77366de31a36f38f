//! Thousands of starts and joins leave a process as it was.
//!
//! `TOKIO_MULTIPROCESS_STORM_SECONDS` makes it go on for so long, and ten thousand at least.

#![cfg(target_os = "linux")]

mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::process::{methods, run};
use tokio_multiprocess as mp;

/// For each ten of the fork server's, two of the others'.
const PER_ROUND: [usize; 3] = [2, 10, 2];

/// Kilobytes of this process that are in memory.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn start_and_join(ctx: &mp::Context, number: usize) {
    let code = number as u8;
    match number % 4 {
        0 => {
            let blob = mp::Blob::new([code; 100]).unwrap();
            let value = ctx.spawn(|blob: mp::Blob| blob, (blob,)).await.unwrap().await.unwrap();
            assert_eq!(value[..], [code; 100]);
        }
        1 => {
            let child = ctx.process(support::process::forever, ()).daemon(true).start().await.unwrap();
            child.kill().unwrap();
            assert_eq!(child.join().await.unwrap().signal(), Some(9));
        }
        _ => {
            let child = ctx.process(|code: u8| ExitCode::from(code), (code,)).start().await.unwrap();
            assert_eq!(child.join().await.unwrap().code(), Some(i32::from(code)));
        }
    }
}

#[test]
fn starts_and_joins_leave_nothing() {
    let storm = std::env::var("TOKIO_MULTIPROCESS_STORM_SECONDS").ok();
    let storm = storm.map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    let least = if storm.is_some() { 10_000 } else { 700 };
    run(async {
        let begun = Instant::now();
        let (mut number, mut settled) = (0, None);
        while number < least || storm.is_some_and(|storm| begun.elapsed() < storm) {
            for (ctx, times) in methods().iter().zip(PER_ROUND) {
                for _ in 0..times {
                    start_and_join(ctx, number).await;
                    number += 1;
                }
            }
            // By then what is allocated once has been.
            if number > least / 5 {
                settled.get_or_insert_with(resident);
            }
        }
        assert!(mp::active_children().is_empty());
        let grown = resident() - settled.unwrap();
        // A leak of 100 bytes a start would be seen in the long run, one of a page in the short.
        assert!(grown < 1024, "{grown} KiB more after {number} starts");
    });
}
