//! The real CPythons of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What the tests want to see, if it is there.
const MINORS: std::ops::RangeInclusive<u32> = 8..=15;

/// An interpreter, 3.8 or newer.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    pub(crate) program: PathBuf,
    /// Of 3.`minor`.
    pub(crate) minor: u32,
}

impl Python {
    pub(crate) fn command(&self, script: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script));
        command.stdin(Stdio::null());
        command
    }

    /// Whether its handshake is the one with MD5 and no other.
    pub(crate) fn knows_md5_only(&self) -> bool {
        self.minor < 12
    }
}

/// Every CPython from 3.8 on: `python3` and `python3.N` of the path, and pyenv's. Says which it found
/// and which it misses.
pub(crate) fn pythons() -> &'static [Python] {
    static FOUND: OnceLock<Vec<Python>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let found = find();
        let versions: BTreeSet<_> = found.values().map(|python| python.minor).collect();
        let list = |minors: Vec<u32>| minors.iter().map(|minor| format!(" 3.{minor}")).collect::<String>();
        for (version, python) in &found {
            eprintln!("CPython {version}: {}", python.program.display());
        }
        let missed = MINORS.filter(|minor| !versions.contains(minor)).collect();
        eprintln!("found:{}; not here:{}", list(versions.into_iter().collect()), list(missed));
        found.into_values().collect()
    })
}

fn find() -> BTreeMap<String, Python> {
    let names = MINORS.map(|minor| format!("python3.{minor}")).chain(["python3".to_owned()]);
    let names: Vec<_> = names.collect();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<_> =
        env::split_paths(&path).flat_map(|dir| names.iter().map(move |name| dir.join(name))).collect();
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv"));
    let roots = env::var_os("PYENV_ROOT").map(PathBuf::from).into_iter().chain(home);
    for entry in roots.filter_map(|root| fs::read_dir(root.join("versions")).ok()).flatten().flatten() {
        candidates.push(entry.path().join("bin/python3"));
    }
    candidates.into_iter().filter(|program| program.is_file()).filter_map(|program| ask(&program)).collect()
}

/// Its version and where it is installed, and itself: a launcher of a version that is not chosen is
/// none, and neither is another implementation or an older version.
fn ask(program: &Path) -> Option<(String, Python)> {
    let question = "import platform, sys; v = sys.version_info; \
                    print(platform.python_implementation(), v[0], v[1], v[2], sys.base_prefix, sys.executable)";
    let output = Command::new(program).args(["-I", "-c", question]).stdin(Stdio::null()).output().ok()?;
    let answer = String::from_utf8(output.stdout).ok()?;
    let words: Vec<_> = answer.trim_end().splitn(6, ' ').collect();
    let ["CPython", "3", minor, micro, prefix, executable] = words[..] else { return None };
    let python = Python { program: executable.into(), minor: minor.parse().ok()? };
    let name = format!("3.{minor:0>2}.{micro} in {prefix}");
    (output.status.success() && python.minor >= *MINORS.start()).then_some((name, python))
}
