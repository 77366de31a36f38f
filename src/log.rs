//! What this package says of its own doings: `tracing` events, and lines on stderr if asked for.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};

/// How much this package's logger says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LogLevel {
    /// Nothing: the default.
    #[default]
    Off = 0,
    /// What went wrong and nobody else could be told.
    Warn = 1,
    /// Starts and ends of processes.
    Info = 2,
}

impl LogLevel {
    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Off,
            1 => Self::Warn,
            _ => Self::Info,
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "OFF",
            Self::Warn => "WARNING",
            Self::Info => "INFO",
        })
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Off as u8);

/// This package's logger. Children inherit its level when they start.
pub fn get_logger() -> Logger {
    Logger(())
}

/// Has the logger write lines such as `[INFO/Process-1] …` to stderr, at `level` and above.
pub fn log_to_stderr(level: LogLevel) -> Logger {
    let logger = get_logger();
    logger.set_level(level);
    logger
}

/// See [`get_logger`].
#[derive(Clone, Copy, Debug)]
pub struct Logger(());

impl Logger {
    /// What it says.
    pub fn level(&self) -> LogLevel {
        LogLevel::from_number(LEVEL.load(Ordering::Relaxed))
    }

    /// Changes what it says, in this process and the children it starts from now on.
    pub fn set_level(&self, level: LogLevel) {
        LEVEL.store(level as u8, Ordering::Relaxed);
    }
}

pub(crate) fn level_for_child() -> u8 {
    LEVEL.load(Ordering::Relaxed)
}

pub(crate) fn set_level_from_parent(level: u8) {
    LEVEL.store(level, Ordering::Relaxed);
}

/// Says something of interest to whoever looks for it.
pub(crate) fn info(text: fmt::Arguments<'_>) {
    tracing::debug!("{text}");
    line(LogLevel::Info, text);
}

/// Says what went wrong where no caller can be told.
pub(crate) fn warn(text: fmt::Arguments<'_>) {
    tracing::warn!("{text}");
    line(LogLevel::Warn, text);
}

fn line(level: LogLevel, text: fmt::Arguments<'_>) {
    if get_logger().level() >= level {
        let name = crate::process::current_process().name();
        let _ = writeln!(std::io::stderr(), "[{level}/{name}] {text}");
    }
}
