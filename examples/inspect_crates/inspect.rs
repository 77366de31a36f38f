//! The task: what one `.crate` archive holds. It runs wherever it is called, and nothing in it
//! knows about processes.

use std::error::Error;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hostile;

/// What an archive may unpack to, in MiB; crates.io takes archives of 10 MiB.
const UNPACKED_LIMIT_MIB: u64 = 256;

/// What was found in one archive.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// SHA-256 of the archive itself, in hexadecimal.
    pub(crate) sha256: String,
    /// Files of any kind.
    pub(crate) files: u64,
    /// Files that end in `.rs`.
    pub(crate) rust_files: u64,
    /// Lines of those.
    pub(crate) lines: u64,
    /// Items in those, counting into inline modules.
    pub(crate) items: u64,
    /// Rust files without a count of items, because syn refuses them: templates, tests of a
    /// compiler's errors.
    pub(crate) unparsed: u64,
}

/// Hashes and unpacks the archive at `path`, and parses its Rust files, all in memory.
pub(crate) fn inspect(path: PathBuf) -> Result<Report, Box<dyn Error + Send + Sync>> {
    if hostile::is_endless(&path) {
        loop {
            std::hint::spin_loop();
        }
    }
    let archive = fs::read(&path)?;
    let mut report = Report { sha256: hex(&Sha256::digest(&archive)), ..Report::default() };
    // gzip allows several members one after the other, so all of them count.
    let unpacked = Limited { inner: MultiGzDecoder::new(archive.as_slice()), left: UNPACKED_LIMIT_MIB << 20 };
    let mut tar = tar::Archive::new(unpacked);
    for entry in tar.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        report.files += 1;
        if is_rust(&entry.path()?) {
            let mut source = Vec::new();
            entry.read_to_end(&mut source)?;
            report.add_source(&source);
        }
    }
    Ok(report)
}

impl Report {
    fn add_source(&mut self, source: &[u8]) {
        self.rust_files += 1;
        self.lines += source.split_inclusive(|&byte| byte == b'\n').count() as u64;
        match std::str::from_utf8(source).ok().and_then(|text| syn::parse_file(text).ok()) {
            Some(file) => self.items += count_items(&file.items),
            None => self.unparsed += 1,
        }
    }

    /// The sums of two reports; the hash, which has none, stays empty.
    pub(crate) fn plus(self, other: &Report) -> Report {
        Report {
            sha256: String::new(),
            files: self.files + other.files,
            rust_files: self.rust_files + other.rust_files,
            lines: self.lines + other.lines,
            items: self.items + other.items,
            unparsed: self.unparsed + other.unparsed,
        }
    }
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn count_items(items: &[syn::Item]) -> u64 {
    let inner = |item: &syn::Item| match item {
        syn::Item::Mod(module) => module.content.as_ref().map_or(0, |(_, items)| count_items(items)),
        _ => 0,
    };
    items.iter().map(|item| 1 + inner(item)).sum()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A reader that fails, where `Read::take` would end: a bomb must not pass for a short archive.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other(format!("more than {UNPACKED_LIMIT_MIB} MiB unpacked")))?;
        Ok(read)
    }
}
