//! What this machine gives, and what the crate does without the rest: see [`doctor`].

use std::fmt;

/// Looks at each mechanism of the kernel that this crate uses: whether it is there for this
/// process, and what happens where it is not.
///
/// It looks each time anew, at this process with its limits and its sandbox. Nothing is changed,
/// no process is started; it takes milliseconds, and longer only where thousands of processes are
/// to be counted. It blocks for that long.
///
/// ```
/// use tokio_multiprocess as mp;
///
/// let diagnosis = mp::doctor();
/// print!("{diagnosis}");
/// assert!(diagnosis.is_fit());
/// ```
pub fn doctor() -> Diagnosis {
    Diagnosis { checks: checks() }
}

/// What [`doctor`] has found.
///
/// Displayed, it is a table: a line for each check, with columns that are aligned.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    checks: Vec<Check>,
}

impl Diagnosis {
    /// What was looked at, the indispensable first.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Whether everything is there that a pool cannot do without.
    pub fn is_fit(&self) -> bool {
        self.checks.iter().all(|check| !check.indispensable || check.status.is_present())
    }
}

/// One mechanism.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Check {
    /// What it is called; the same in every version, as programs may look for it.
    pub name: &'static str,
    /// Whether it is there.
    pub status: Status,
    /// Whether no pool can run without it.
    pub indispensable: bool,
    /// What the crate does where it is missing.
    pub then: &'static str,
}

/// Whether a mechanism is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It is.
    Present,
    /// It is not, and what the kernel said.
    Missing(String),
    /// It was not looked for, as `TOKIO_MULTIPROCESS_WITHOUT` names it: the crate does as if it
    /// were missing.
    SwitchedOff,
}

impl Status {
    /// Whether it is [`Present`](Self::Present).
    pub fn is_present(&self) -> bool {
        *self == Self::Present
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("present"),
            Self::Missing(why) => write!(f, "missing: {why}"),
            Self::SwitchedOff => f.write_str("switched off"),
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for Check { name, status, indispensable, then } in &self.checks {
            writeln!(f, "{name:width$}  {status}")?;
            if !status.is_present() {
                let mark = if *indispensable { "needed" } else { "then" };
                writeln!(f, "{:width$}  {mark}: {then}", "")?;
            }
        }
        f.write_str(if self.is_fit() { "pools can run here\n" } else { "pools cannot run here\n" })
    }
}

#[cfg(not(multiprocess))]
fn checks() -> Vec<Check> {
    let status = Status::Missing("processes need Linux".to_owned());
    vec![Check {
        name: "linux",
        status,
        indispensable: true,
        then: "starting a process gives Error::Unsupported",
    }]
}

#[cfg(multiprocess)]
fn checks() -> Vec<Check> {
    use crate::sys::{Mechanism, probe};

    let needed = |name, found: std::io::Result<()>, then| Check {
        name,
        status: found.map_or_else(|error| Status::Missing(error.to_string()), |()| Status::Present),
        indispensable: true,
        then,
    };
    let useful = |name, found, then| Check { indispensable: false, ..needed(name, found, then) };
    let unless_off = |mechanism: Mechanism, check: fn() -> std::io::Result<()>, then| {
        if crate::sys::without(mechanism) {
            let (name, status) = (mechanism.name(), Status::SwitchedOff);
            return Check { name, status, indispensable: false, then };
        }
        useful(mechanism.name(), check(), then)
    };
    vec![
        needed("kernel", kernel(), "the crate needs Linux 5.10"),
        needed(
            "/proc",
            probe::proc(),
            "no pool and no daemon starts: the program, the descriptors and the threads are found there",
        ),
        needed("memfd", probe::sealed_memory(), "pools have no rings, and a Blob cannot be made"),
        needed("eventfd", probe::eventfd(), "nobody can be woken"),
        needed("timerfd", probe::timerfd(), "nothing that is limited in time can be awaited"),
        needed("descriptor passing", probe::descriptor_passing(), "no child can be given anything"),
        needed(
            "lifeline",
            probe::lifeline(),
            "pool workers and daemons would outlive a parent that is killed, so they do not start",
        ),
        needed(
            "descriptors",
            enough(probe::descriptors_left().map(Some), 16),
            "calls and starts fail with “too many open files”: raise the limit (ulimit -n); a worker takes seven",
        ),
        useful(
            "own program",
            probe::own_program(),
            "spawn and forkserver fail with StartError::Execute; fork works, and set_executable may help",
        ),
        useful(
            "processes",
            probe::processes_left().and_then(|left| enough(Ok(left), 8)),
            "starts fail, and the pool tries again: raise the limit (ulimit -u), which counts threads too",
        ),
        unless_off(
            Mechanism::Pidfd,
            probe::pidfd,
            "a thread per child waits for its exit, and signals go by number",
        ),
        useful("clone3", probe::clone3(), "the fork server uses clone"),
        useful("close_range", probe::close_range(), "a child closes descriptors one by one"),
        useful("noexec seal", probe::noexec_seal(), "shared memory could be made executable"),
        unless_off(
            Mechanism::Guardian,
            probe::subreaper,
            "what a worker has started is only killed with its process group: a setsid escapes",
        ),
        unless_off(
            Mechanism::Cgroup,
            probe::delegated_cgroup,
            "memory limits are kept by looking every few milliseconds, not by the kernel to the page",
        ),
        useful(
            "children list",
            probe::children_list(),
            "descendants are looked for in the whole of /proc, which takes longer",
        ),
        useful(
            "oom_score_adj",
            probe::oom_score(),
            "when memory runs out the kernel may end the service in place of a worker",
        ),
    ]
}

#[cfg(multiprocess)]
fn kernel() -> std::io::Result<()> {
    match crate::sys::probe::kernel()? {
        version if version >= (5, 10) => Ok(()),
        (major, minor) => Err(std::io::Error::other(format!("this is {major}.{minor}"))),
    }
}

/// `None` stands for no limit.
#[cfg(multiprocess)]
fn enough(left: std::io::Result<Option<u64>>, wanted: u64) -> std::io::Result<()> {
    match left? {
        Some(left) if left < wanted => Err(std::io::Error::other(format!("only {left} more are allowed"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, status: Status, indispensable: bool) -> Check {
        Check { name, status, indispensable, then: "it is slow" }
    }

    #[test]
    fn what_is_indispensable_decides() {
        let missing = || Status::Missing("no".to_owned());
        let all = |checks| Diagnosis { checks };
        assert!(all(vec![check("a", Status::Present, true), check("b", missing(), false)]).is_fit());
        assert!(all(vec![check("a", Status::SwitchedOff, false)]).is_fit());
        assert!(!all(vec![check("a", missing(), true)]).is_fit());
    }

    #[test]
    fn a_diagnosis_is_a_table() {
        let missing = Status::Missing("no".to_owned());
        let checks = vec![check("long name", Status::Present, true), check("b", missing, false)];
        let table = Diagnosis { checks }.to_string();
        assert_eq!(
            table,
            "long name  present\n\
             b          missing: no\n           then: it is slow\n\
             pools can run here\n"
        );
    }

    #[cfg(multiprocess)]
    #[test]
    fn a_machine_that_runs_tests_is_fit() {
        let diagnosis = doctor();
        assert!(diagnosis.is_fit(), "{diagnosis}");
    }
}
