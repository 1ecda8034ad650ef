//! Progress of long steps: a spinner per step on a terminal, plain lines elsewhere.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{Output, Tone, printable};

/// Opens steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    output: Output,
}

impl Progress {
    /// Progress on stderr, in the form that `output` found fit. Silent in JSON mode.
    #[must_use]
    pub(crate) fn new(output: Output) -> Self {
        Self { output }
    }

    /// Starts a step.
    #[must_use]
    pub(crate) fn step(&self, label: &str) -> Step {
        let bar = self.output.is_live.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {prefix} {msg:.dim} {elapsed:.dim}") {
                bar.set_style(style.tick_strings(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏", " "]));
            }
            bar.set_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let step =
            Step { output: self.output, label: label.to_owned(), detail: String::new(), bar, started: Instant::now(), is_ended: false };
        if step.bar.is_none() {
            step.line(&format!("{label} …"));
        }
        step
    }
}

/// A running step. Dropped without [`Step::done`] it failed.
#[derive(Debug)]
pub(crate) struct Step {
    output: Output,
    label: String,
    detail: String,
    bar: Option<ProgressBar>,
    started: Instant,
    is_ended: bool,
}

impl Step {
    /// Says what is happening now; repeated text is shown once.
    pub(crate) fn update(&mut self, detail: &str) {
        let detail = printable(detail, 80);
        if self.detail == detail {
            return;
        }
        match &self.bar {
            Some(bar) => bar.set_message(detail.clone()),
            None => self.line(&format!("  {}: {detail} ({})", self.label, seconds(self.started.elapsed()))),
        }
        self.detail = detail;
    }

    /// Ends the step well. `result`: what came out, may be empty.
    pub(crate) fn done(mut self, result: &str) {
        self.finish("✓", Tone::Good, result);
    }

    /// Ends the step without work.
    pub(crate) fn skipped(mut self, why: &str) {
        self.finish("-", Tone::Quiet, why);
    }

    fn finish(&mut self, mark: &str, tone: Tone, result: &str) {
        self.is_ended = true;
        let palette = self.output.error_palette;
        let time = palette.paint(Tone::Quiet, &seconds(self.started.elapsed()));
        let result = if result.is_empty() { String::new() } else { format!(" {}", palette.paint(Tone::Quiet, result)) };
        let text = format!("{} {}{result} {time}", palette.paint(tone, mark), self.label);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.line(&text);
    }

    fn line(&self, text: &str) {
        if !self.output.is_json {
            let _reader_gone = writeln!(std::io::stderr().lock(), "{text}");
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.is_ended {
            self.finish("✗", Tone::Bad, "");
        }
    }
}

/// `1.2 s`, or milliseconds below one second.
#[must_use]
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) { format!("{} ms", time.as_millis()) } else { format!("{:.1} s", time.as_secs_f64()) }
}
