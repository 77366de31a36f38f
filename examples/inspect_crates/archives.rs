//! Which archives to inspect, and where cargo keeps them.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The archives behind a `Cargo.lock`, in its order.
#[derive(Debug, Default)]
pub(crate) struct Archives {
    pub(crate) found: Vec<PathBuf>,
    /// Packages whose archive cargo has not fetched, because no build here needs it.
    pub(crate) missing: usize,
}

/// Looks up each package of the lock file in cargo's registry cache.
pub(crate) fn of_lock(lock: &Path) -> io::Result<Archives> {
    let registries = registries()?;
    let mut archives = Archives::default();
    for name in archive_names(&fs::read_to_string(lock)?) {
        match registries.iter().map(|registry| registry.join(&name)).find(|path| path.is_file()) {
            Some(path) => archives.found.push(path),
            None => archives.missing += 1,
        }
    }
    Ok(archives)
}

/// Cargo writes one key a line, so this needs no TOML parser.
fn archive_names(lock: &str) -> impl Iterator<Item = String> {
    lock.split("[[package]]").skip(1).filter_map(|package| {
        let field = |key: &str| {
            let value = |line: &'_ str| {
                Some(line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned())
            };
            package.lines().find_map(value)
        };
        // Without a source it is the project itself; from git it has no archive.
        field("source").filter(|source| !source.starts_with("git+"))?;
        Some(format!("{}-{}.crate", field("name")?, field("version")?))
    })
}

/// One directory for each registry that cargo has fetched from.
fn registries() -> io::Result<Vec<PathBuf>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let cache = home
        .ok_or_else(|| io::Error::other("neither CARGO_HOME nor a home directory"))?
        .join("registry/cache");
    let entries =
        fs::read_dir(&cache).map_err(|error| io::Error::other(format!("{}: {error}", cache.display())))?;
    let mut registries = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    registries.sort();
    Ok(registries)
}
