//! A line on the terminal that says how far it is.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// How often the line is written.
const EVERY: Duration = Duration::from_millis(200);

/// The line; where nobody looks there is none.
#[derive(Debug)]
pub struct Progress {
    shown: Option<Instant>,
    on: bool,
}

impl Progress {
    /// On standard error, if that is a terminal.
    pub fn on_terminal() -> Self {
        Progress { shown: None, on: stderr().is_terminal() }
    }

    /// None at all.
    pub fn none() -> Self {
        Progress { shown: None, on: false }
    }

    /// Shows `line`, unless the last one is just being read.
    pub(super) fn show(&mut self, line: impl FnOnce() -> String) {
        if self.on && self.shown.is_none_or(|shown| shown.elapsed() > EVERY) {
            // Whoever closed the terminal does not want to know.
            let _ = write!(stderr(), "\r\x1b[K{}", line());
            self.shown = Some(Instant::now());
        }
    }

    /// Removes the line.
    pub(super) fn clear(&mut self) {
        if self.on && self.shown.take().is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
