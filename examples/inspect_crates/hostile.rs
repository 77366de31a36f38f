//! Archives that no inspector wants to meet, made on the spot.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

/// A source file that overflows the stack of a recursive parser, which no Rust program can catch.
const NESTED: &str = "nested-parentheses-0.1.0.crate";
/// 1 MB that unpacks to 1 GiB.
const BOMB: &str = "gzip-bomb-0.1.0.crate";
/// Its name makes [`inspect`](crate::inspect::inspect) loop for ever, in place of a parser's bug
/// that would.
const ENDLESS: &str = "endless-loop-0.1.0.crate";

const PARENTHESES: usize = 20_000;
const MIB: usize = 1 << 20;
const BOMB_MIB: usize = 1024;

pub(crate) fn is_endless(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == ENDLESS)
}

/// Writes the hostile archives into `directory` and returns their paths.
pub(crate) fn write_all(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let nested = format!("fn f() {{ {}{} }}\n", "(".repeat(PARENTHESES), ")".repeat(PARENTHESES));
    let archives = [
        (NESTED, gzip(&tar_of("lib.rs", nested.as_bytes())?)?),
        (BOMB, bomb()?),
        (ENDLESS, gzip(&tar_of("lib.rs", b"")?)?),
    ];
    let write = |(name, bytes): (&str, Vec<u8>)| {
        let path = directory.join(name);
        fs::write(&path, bytes).map(|()| path)
    };
    archives.into_iter().map(write).collect()
}

/// A gzip member for the header and one for each MiB of zeros, always the same one: gzip's members
/// concatenate, and compressing 1 GiB in earnest would take longer than all the rest.
fn bomb() -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_path("hostile-0.1.0/zeros")?;
    header.set_size((BOMB_MIB * MIB) as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut archive = gzip(header.as_bytes())?;
    archive.extend(gzip(&vec![0; MIB])?.repeat(BOMB_MIB));
    Ok(archive)
}

fn tar_of(name: &str, contents: &[u8]) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, Path::new("hostile-0.1.0").join(name), contents)?;
    tar.into_inner()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}
