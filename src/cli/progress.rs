//! Progress on standard error, where that is a terminal; nothing otherwise.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{CliResult, print, say, text};

const REDRAW: Duration = Duration::from_millis(200);

/// A bar, or a counter where the end is not known.
pub struct Progress(ProgressBar);

impl Progress {
    /// Starts a bar of bytes.
    pub fn bytes(what: &'static str, total: u64) -> Self {
        let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        Progress::start(ProgressBar::new(total), what, style)
    }

    /// Starts a bar of things.
    pub fn items(what: &'static str, total: u64) -> Self {
        Progress::start(
            ProgressBar::new(total),
            what,
            "{msg} {bar:30} {pos}/{len} {per_sec} {eta}",
        )
    }

    /// Starts a counter.
    pub fn counter(what: &'static str) -> Self {
        Progress::start(
            ProgressBar::new_spinner(),
            what,
            "{spinner} {msg} {pos} {per_sec} {elapsed}",
        )
    }

    fn start(bar: ProgressBar, what: &'static str, template: &str) -> Self {
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        if !bar.is_hidden() {
            bar.enable_steady_tick(REDRAW);
        }
        Progress(bar)
    }

    /// Tells whether anyone sees it: only then is it worth counting first.
    pub fn is_seen() -> bool {
        std::io::IsTerminal::is_terminal(&std::io::stderr())
    }

    /// Moves on.
    pub fn advance(&self, by: u64) {
        self.0.inc(by);
    }

    /// Prints a line to standard output, above the bar.
    pub fn print(&self, line: &str) -> CliResult {
        self.0.suspend(|| print(format!("{line}\n").as_bytes()))
    }

    /// Prints a line to standard error, above the bar.
    pub fn complain(&self, line: &str) {
        self.0.suspend(|| say(format_args!("{}", text::message(line))));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
