//! The switch that has the crate do without a mechanism which is there: so that a fallback can be
//! tried, by tests and by the curious, on a machine that does not need it.

use std::sync::atomic::{AtomicU32, Ordering};

/// What to do without: names, separated by commas.
pub(crate) const VARIABLE: &str = "TOKIO_MULTIPROCESS_WITHOUT";

/// What the crate uses where it is, and can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// Descriptors that stand for processes.
    Pidfd,
    /// The process between a pool and each of its workers.
    Guardian,
    /// Control groups of workers.
    Cgroup,
}

impl Mechanism {
    const ALL: [Self; 3] = [Self::Pidfd, Self::Guardian, Self::Cgroup];

    /// What it is called in the variable.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pidfd => "pidfd",
            Self::Guardian => "guardian",
            Self::Cgroup => "cgroup",
        }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Whether the environment says to do as if this mechanism were missing.
///
/// The variable is read once, by the first call in a process. A forked child has its parent's
/// answer: reading the environment takes a lock of std's, which may be held in a copy for ever.
pub(crate) fn without(mechanism: Mechanism) -> bool {
    const UNREAD: u32 = 1 << 31;
    static OFF: AtomicU32 = AtomicU32::new(UNREAD);
    let mut off = OFF.load(Ordering::Relaxed);
    if off == UNREAD {
        // Two that read it at a time read the same.
        off = parse(&std::env::var(VARIABLE).unwrap_or_default());
        OFF.store(off, Ordering::Relaxed);
    }
    off & mechanism.bit() != 0
}

/// Names that mean nothing are passed over: another version may know them.
fn parse(names: &str) -> u32 {
    let named = |mechanism: &Mechanism| names.split(',').any(|name| name.trim() == mechanism.name());
    Mechanism::ALL.iter().filter(|mechanism| named(mechanism)).map(|mechanism| mechanism.bit()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!(parse(""), 0);
        assert_eq!(parse("pidfd"), Mechanism::Pidfd.bit());
        assert_eq!(parse(" cgroup, pidfd ,guard"), Mechanism::Pidfd.bit() | Mechanism::Cgroup.bit());
        assert_eq!(parse("Pidfd"), 0);
    }
}
