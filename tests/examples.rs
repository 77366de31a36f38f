//! The examples as a user runs them: as programs, judged by their output and exit codes.
//!
//! `cargo test` builds them first. With `--test examples` it does not, and these tests run what an
//! earlier build has left: precede it by `cargo build --examples`.

#![cfg(target_os = "linux")]

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Far beyond what any of these takes on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(300);

/// For one archive; enough for the small ones here, in a debug build on a busy machine.
const TIMEOUT: [&str; 2] = ["--timeout", "10"];

/// Packages of this project with small archives.
const PACKAGES: [&str; 4] = ["bytes", "futures-core", "inventory", "subtle"];

/// Cargo builds examples beside the tests, but tells tests nothing about them.
fn example(name: &str) -> Command {
    let test = env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.is_file(), "no {}: build it with `cargo build --examples`", path.display());
    Command::new(path)
}

/// The command's output, or a panic if it hangs.
fn run(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let (done, output) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    match output.recv_timeout(WATCHDOG) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            kill(pid, Signal::SIGKILL).unwrap();
            panic!("{command:?} hangs");
        }
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}\n{}{}", output.status, stdout(output), stderr(output));
}

/// A lock file of the chosen packages, of one that nobody has fetched, and of one without an
/// archive; and the checksums and archive names that it says.
fn small_lock(directory: &Path) -> (PathBuf, Vec<(String, String)>) {
    let whole = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let mut lock = "version = 4\n\n[[package]]\nname = \"local\"\nversion = \"0.1.0\"\n".to_owned();
    let mut expected = Vec::new();
    for package in whole.split("[[package]]").skip(1) {
        let field = |key: &str| {
            let start = format!("{key} = \"");
            package.lines().find_map(|line| Some(line.strip_prefix(&start)?.trim_end_matches('"').to_owned()))
        };
        let name = field("name").unwrap();
        if PACKAGES.contains(&name.as_str()) {
            lock += &format!("\n[[package]]{package}");
            let archive = format!("{name}-{}.crate", field("version").unwrap());
            expected.push((field("checksum").unwrap(), archive));
        }
    }
    assert_eq!(expected.len(), PACKAGES.len());
    lock += "\n[[package]]\nname = \"bytes\"\nversion = \"0.0.0\"\nsource = \"registry+none\"\n";
    let path = directory.join("Cargo.lock");
    fs::write(&path, lock).unwrap();
    (path, expected)
}

fn inspect_crates(lock: &Path) -> Command {
    let mut command = example("inspect_crates");
    command.args(TIMEOUT).arg("--lock").arg(lock);
    command
}

/// The first two columns of each line.
fn sums(output: &Output) -> Vec<(String, String)> {
    let columns = |line: &str| {
        let mut columns = line.split_whitespace().map(str::to_owned);
        (columns.next().unwrap(), columns.next().unwrap())
    };
    stdout(output).lines().map(columns).collect()
}

#[track_caller]
fn assert_sha256sum_accepts(sums: &[u8]) {
    let mut check =
        Command::new("sha256sum").args(["-c", "--quiet", "--strict"]).stdin(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(sums).unwrap();
    assert!(check.wait().unwrap().success());
}

#[test]
fn hello_process_greets_from_a_child() {
    let output = run(&mut example("hello_process"));
    assert_code(&output, 0);
    let lines: Vec<_> = stdout(&output).lines().collect();
    let [parent, child, greeting, ended] = lines[..] else { panic!("{lines:?}") };
    let parent = parent.strip_prefix("MainProcess is process ").unwrap();
    let (child, its_parent) =
        child.strip_prefix("greeter is process ").unwrap().split_once(", started by ").unwrap();
    assert_eq!(its_parent, parent);
    assert_ne!(child, parent);
    assert_eq!(greeting, "hello, bob");
    assert_eq!(ended, "greeter ended: exit code 0");
}

#[test]
fn context_isolation_holds_under_each_start_method() {
    let output = run(&mut example("context_isolation"));
    assert_code(&output, 0);
    let methods: Vec<_> = stdout(&output).lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(methods, ["spawn", "forkserver", "fork"]);
}

#[test]
fn service_tells_whose_fault_it_was() {
    let output = run(&mut example("service"));
    assert_code(&output, 0);
    let lines: Vec<_> = stdout(&output).lines().collect();
    let statuses: Vec<_> = lines.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(statuses[..8], ["200", "500", "504", "413", "400", "200", "200", "200"], "{lines:?}");
    assert!(lines.contains(&"/numbers/1000  200 OK: 999"), "{lines:?}");
    assert_eq!(lines.last(), Some(&"done, with 0 killed at the deadline"));
}

#[test]
fn workers_call_what_they_find_in_a_queue() {
    let output = run(&mut example("workers"));
    assert_code(&output, 0);
    let lines: Vec<_> = stdout(&output).lines().collect();
    let calls = |function: &str| lines.iter().filter(|line| line.contains(function)).count();
    assert_eq!((calls("workers::times("), calls("workers::plus(")), (20, 19), "{lines:?}");
    assert_eq!(lines.last(), Some(&"the first 20 squares add up to 2870"));
}

#[test]
fn producers_and_consumers_that_are_killed_change_no_sum() {
    let output = run(&mut example("producer_consumer"));
    assert_code(&output, 0);
    let lines: Vec<_> = stdout(&output).lines().collect();
    assert_eq!(lines[..2], ["producer-0 was killed: SIGKILL", "consumer-0 was killed: SIGKILL"]);
    // What the producer had not put; the consumer had one more at most.
    let missing: u64 = lines[2].split_once(' ').unwrap().0.parse().unwrap();
    assert!((1..1_001).contains(&missing), "{lines:?}");
    assert_eq!(lines.last(), Some(&"the primes below 1000000 add up to 37550402023"));
}

#[cfg(feature = "python")]
#[test]
fn python_peer_talks_in_both_directions() {
    let nobody = run(example("python_peer").env("PATH", "/nonexistent"));
    assert_code(&nobody, 0);
    assert!(stdout(&nobody).starts_with("There is no python3"), "{}", stdout(&nobody));

    let output = run(&mut example("python_peer"));
    assert_code(&output, 0);
    if stdout(&output) != stdout(&nobody) {
        let last = stdout(&output).lines().last();
        assert!(last.is_some_and(|last| last.ends_with(" added: 36893488147419103230")), "{last:?}");
    }
}

#[test]
fn archives_have_the_checksums_of_the_lock_file_in_its_order() {
    let directory = TempDir::new().unwrap();
    let (lock, expected) = small_lock(directory.path());
    let output = run(&mut inspect_crates(&lock));
    assert_code(&output, 0);
    assert_eq!(sums(&output), expected);
    assert!(stderr(&output).starts_with("skipped 1 of 5 packages "), "{}", stderr(&output));

    let sums = run(inspect_crates(&lock).arg("--sums"));
    assert_code(&sums, 0);
    assert_eq!(stdout(&sums).lines().count(), expected.len());
    assert_sha256sum_accepts(&sums.stdout);
}

#[test]
fn an_archive_is_counted_right() {
    let directory = TempDir::new().unwrap();
    // `sha256sum` escapes such a name, so `--sums` has to as well.
    let path = directory.path().join("od\\d\nname.crate");
    let mut tar = tar::Builder::new(GzEncoder::new(fs::File::create(&path).unwrap(), Compression::fast()));
    for (name, contents) in [
        ("p/README.md", "fn not_counted() {}\n"),
        ("p/src/lib.rs", "mod inline {\n    fn a() {}\n    mod deeper { fn b() {} }\n}\nfn c() {}"),
        ("p/src/empty.rs", ""),
        ("p/tests/refused.rs", "fn {\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, contents.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();

    for extra in [&[][..], &["--in-threads"]] {
        let output = run(example("inspect_crates").args(TIMEOUT).args(extra).arg(&path));
        assert_code(&output, 0);
        let counts: Vec<_> = stdout(&output).split_whitespace().rev().take(4).collect();
        // Items, lines, Rust files, files.
        assert_eq!(counts, ["5", "6", "3", "4"], "{}", stdout(&output));
        assert!(stderr(&output).contains("(1 not parsed)"), "{}", stderr(&output));
    }
    assert_sha256sum_accepts(&run(example("inspect_crates").arg("--sums").arg(&path)).stdout);
}

/// Each hostile archive is reported for what it is, and the others as if it were not there.
fn hostile_archives_fail_alone(start_method: &str) {
    let directory = TempDir::new().unwrap();
    let (lock, expected) = small_lock(directory.path());
    let clean = run(inspect_crates(&lock).args(["--start-method", start_method]));
    assert_code(&clean, 0);
    assert_eq!(sums(&clean), expected);

    let temporary = TempDir::new().unwrap();
    let hostile = run(inspect_crates(&lock)
        .args(["--start-method", start_method, "--hostile"])
        .env("TMPDIR", temporary.path()));
    assert_code(&hostile, 1);
    assert_eq!(stdout(&hostile), stdout(&clean));
    for (archive, what) in [
        ("nested-parentheses-0.1.0.crate", "stack overflow"),
        ("gzip-bomb-0.1.0.crate", "more than 256 MiB unpacked"),
        ("endless-loop-0.1.0.crate", "timeout"),
    ] {
        let report = |line: &str| line.starts_with(archive) && line.contains(what);
        assert_eq!(stderr(&hostile).lines().filter(|line| report(line)).count(), 1, "{}", stderr(&hostile));
    }
    assert!(stderr(&hostile).trim_end().ends_with("3 archives failed"), "{}", stderr(&hostile));
    let left = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("inspect_crates");
    assert_eq!(fs::read_dir(&temporary).unwrap().filter(|entry| left(entry.as_ref().unwrap())).count(), 0);
}

#[test]
fn hostile_archives_fail_alone_under_spawn() {
    hostile_archives_fail_alone("spawn");
}

#[test]
fn hostile_archives_fail_alone_under_forkserver() {
    hostile_archives_fail_alone("forkserver");
}

#[test]
fn hostile_archives_fail_alone_under_fork() {
    hostile_archives_fail_alone("fork");
}

#[test]
fn threads_give_the_same_results_but_die_of_hostile_archives() {
    let directory = TempDir::new().unwrap();
    let (lock, _) = small_lock(directory.path());
    let processes = run(&mut inspect_crates(&lock));
    let threads = run(inspect_crates(&lock).arg("--in-threads"));
    assert_code(&threads, 0);
    assert_eq!(stdout(&threads), stdout(&processes));

    // Nobody is left to remove the archives, so they go where the test cleans up.
    let dead = run(inspect_crates(&lock).args(["--in-threads", "--hostile"]).env("TMPDIR", directory.path()));
    assert_eq!(dead.status.signal(), Some(Signal::SIGABRT as i32), "{}\n{}", dead.status, stderr(&dead));
    assert!(stderr(&dead).contains("has overflowed its stack"), "{}", stderr(&dead));
}

#[test]
fn unreadable_archives_are_reported_and_bad_arguments_refused() {
    let directory = TempDir::new().unwrap();
    let text = directory.path().join("text.crate");
    fs::write(&text, "no gzip at all").unwrap();
    let missing = directory.path().join("missing.crate");
    let output = run(example("inspect_crates").arg(&text).arg(&missing));
    assert_code(&output, 1);
    let reported: Vec<_> = stderr(&output).lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(reported[..2], ["text.crate", "missing.crate"]);

    for arguments in
        [&["--processes", "0"][..], &["--start-method", "teleport"], &["--timeout", "-1"], &["--frobnicate"]]
    {
        let output = run(example("inspect_crates").args(arguments));
        assert_code(&output, 2);
        assert!(stderr(&output).starts_with("inspect_crates: "), "{}", stderr(&output));
    }
    let output = run(example("inspect_crates").arg("--lock").arg(&missing));
    assert_code(&output, 2);
    assert!(stderr(&output).contains("missing.crate"), "{}", stderr(&output));
}
