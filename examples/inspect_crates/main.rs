//! Inspects the `.crate` archives that cargo keeps: hashes, unpacks and parses each in a worker
//! process.
//!
//! Archives come from strangers. One that overflows the parser's stack, unpacks to a gigabyte or
//! keeps the parser busy for ever costs its own line of the report, not the program:
//!
//! ```sh
//! cargo run --release --example inspect_crates
//! cargo run --release --example inspect_crates -- --hostile
//! cargo run --release --example inspect_crates -- --hostile --in-threads   # dies
//! ```
//!
//! Results go to stdout, failures and the summary to stderr. The exit code is 0 if all went well, 1
//! if an archive failed, 2 if there was nothing to do or no way to do it.

mod archives;
mod args;
mod hostile;
mod inspect;
mod progress;
mod run;

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use futures::StreamExt;

use crate::args::Args;
use crate::inspect::Report;
use crate::progress::Progress;

// One thread is enough to wait for workers, and `fork` refuses to copy a process that has more.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Args::parse() {
        Ok(Some(args)) => inspect_all(&args).await,
        Ok(None) => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("inspect_crates: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns the number of archives that failed.
async fn inspect_all(args: &Args) -> Result<usize, Box<dyn Error>> {
    let mut archives = chosen(args)?;
    // Dropped, and with it removed, after the last worker has read from it.
    let directory = tempfile::Builder::new().prefix("inspect_crates-").tempdir()?;
    if args.hostile {
        mix(&mut archives, hostile::write_all(directory.path())?);
    }

    let begun = Instant::now();
    let mut results = if args.in_threads {
        run::in_threads(args, archives.clone())
    } else {
        run::in_processes(args, archives.clone()).await?
    };
    let mut progress = Progress::new(archives.len());
    let mut total = Report::default();
    let mut failed = 0;
    for archive in &archives {
        let result = results.next().await.ok_or("the results ended early")?;
        progress.step(|| print(archive, &result, args.sums))?;
        match result {
            Ok(report) => total = total.plus(&report),
            Err(_) => failed += 1,
        }
    }
    drop(progress);
    eprintln!(
        "{} archives in {:.1} s: {} files, {} of them Rust with {} lines and {} items \
         ({} not parsed); {failed} archives failed",
        archives.len(),
        begun.elapsed().as_secs_f64(),
        total.files,
        total.rust_files,
        total.lines,
        total.items,
        total.unparsed,
    );
    Ok(failed)
}

fn chosen(args: &Args) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    if !args.files.is_empty() {
        return Ok(args.files.clone());
    }
    let lock = args.lock.display();
    let archives = archives::of_lock(&args.lock).map_err(|error| format!("{lock}: {error}"))?;
    if archives.missing > 0 {
        let packages = archives.missing + archives.found.len();
        eprintln!(
            "skipped {} of {packages} packages of {lock}: \
             cargo has not fetched them, as no build here needs them",
            archives.missing
        );
    }
    if archives.found.is_empty() {
        return Err(format!("cargo's registry cache holds no package of {lock}").into());
    }
    Ok(archives.found)
}

/// Spreads the hostile archives over the others, so that each has neighbours to harm.
fn mix(archives: &mut Vec<PathBuf>, hostile: Vec<PathBuf>) {
    let gap = archives.len() / (hostile.len() + 1);
    for (index, path) in hostile.into_iter().enumerate() {
        archives.insert((index + 1) * gap + index, path);
    }
}

fn print(archive: &Path, result: &Result<Report, String>, sums: bool) -> io::Result<()> {
    let name = archive.file_name().unwrap_or(archive.as_os_str()).display();
    match result {
        Ok(report) if sums => print_sum(archive, &report.sha256),
        Ok(Report { sha256, files, rust_files, lines, items, .. }) => {
            writeln!(io::stdout(), "{sha256}  {name:<40} {files:>6} {rust_files:>6} {lines:>8} {items:>8}")
        }
        Err(error) => writeln!(io::stderr(), "{name}: {error}"),
    }
}

/// As `sha256sum` writes it: a line that begins with a backslash has its path escaped.
fn print_sum(archive: &Path, sha256: &str) -> io::Result<()> {
    let mut line = format!("{sha256}  ").into_bytes();
    for &byte in archive.as_os_str().as_encoded_bytes() {
        match byte {
            b'\\' => line.extend(b"\\\\"),
            b'\n' => line.extend(b"\\n"),
            b'\r' => line.extend(b"\\r"),
            _ => line.push(byte),
        }
    }
    if line.contains(&b'\\') {
        line.insert(0, b'\\');
    }
    line.push(b'\n');
    io::stdout().write_all(&line)
}
