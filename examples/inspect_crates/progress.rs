//! A progress bar for people: nothing is drawn when stderr is not a terminal.

use std::io::{self, IsTerminal, Write};

const WIDTH: usize = 30;

#[derive(Debug)]
pub(crate) struct Progress {
    done: usize,
    total: usize,
    visible: bool,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        let progress = Self { done: 0, total, visible: io::stderr().is_terminal() };
        progress.draw();
        progress
    }

    /// Counts one more as done, and lets `print` write whole lines where the bar was.
    pub(crate) fn step<R>(&mut self, print: impl FnOnce() -> R) -> R {
        self.erase();
        let result = print();
        self.done += 1;
        self.draw();
        result
    }

    fn draw(&self) {
        if self.visible {
            let filled = WIDTH * self.done / self.total.max(1);
            let bar = format!("{}{}", "#".repeat(filled), "-".repeat(WIDTH - filled));
            // A bar that cannot be drawn is no reason to stop.
            let _ = write!(io::stderr(), "\r[{bar}] {}/{}", self.done, self.total);
        }
    }

    fn erase(&self) {
        if self.visible {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.erase();
    }
}
