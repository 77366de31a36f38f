//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use lexopt::prelude::*;
use tokio_multiprocess as mp;

pub(crate) const HELP: &str = "\
Inspects .crate archives in worker processes: hash, unpack, parse.

Usage: inspect_crates [OPTIONS] [FILE]...

  [FILE]...              archives to inspect, instead of those of a lock file
  --lock FILE            inspect the packages of this Cargo.lock (default: this project's)
  --processes N          how many at a time (default: one for each usable CPU)
  --start-method METHOD  spawn, forkserver or fork (default: spawn)
  --timeout SECONDS      what one archive may take (default: 10)
  --sums                 print lines for `sha256sum -c` instead
  --hostile              mix in three archives that crash, swell and hang
  --in-threads           use threads instead, to see what --hostile does to them
";

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) lock: PathBuf,
    pub(crate) processes: NonZeroUsize,
    pub(crate) start_method: mp::StartMethod,
    pub(crate) timeout: Duration,
    pub(crate) sums: bool,
    pub(crate) hostile: bool,
    pub(crate) in_threads: bool,
}

impl Args {
    /// `None` if help was asked for.
    pub(crate) fn parse() -> Result<Option<Self>, lexopt::Error> {
        let mut args = Self {
            files: Vec::new(),
            lock: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")),
            processes: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            start_method: mp::StartMethod::Spawn,
            timeout: Duration::from_secs(10),
            sums: false,
            hostile: false,
            in_threads: false,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Value(file) => args.files.push(file.into()),
                Long("lock") => args.lock = parser.value()?.into(),
                Long("processes") => args.processes = parser.value()?.parse()?,
                Long("start-method") => args.start_method = parser.value()?.parse()?,
                Long("timeout") => args.timeout = parser.value()?.parse_with(seconds)?,
                Long("sums") => args.sums = true,
                Long("hostile") => args.hostile = true,
                Long("in-threads") => args.in_threads = true,
                Short('h') | Long("help") => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(args))
    }
}

fn seconds(text: &str) -> Result<Duration, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}
