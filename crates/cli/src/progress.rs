//! How far work has come: a bar per regime, on a terminal only; steps that are done, as a bar or as lines.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use memvirt_lab::Progress;
use memvirt_machine::RegimeKind;

/// The bars of an experiment. Elsewhere than on a terminal there are none, and nothing is printed.
pub(crate) struct Bars {
    bars: Vec<ProgressBar>,
    multi: MultiProgress,
}

impl Bars {
    pub(crate) fn new(regimes: &[RegimeKind]) -> Self {
        let multi = MultiProgress::new();
        let mut bars = Vec::new();
        if std::io::stderr().is_terminal() {
            let width = regimes.iter().map(|regime| regime.name().len()).max().unwrap_or(0);
            let template = format!("{{prefix:{width}}} {{bar:30.cyan/blue}} {{percent:>3}} %  {{msg}}");
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bars.extend(regimes.iter().map(|regime| {
                let bar = multi.add(ProgressBar::new(1).with_style(style.clone()).with_prefix(regime.name()));
                bar.enable_steady_tick(Duration::from_millis(250));
                bar
            }));
        }
        Self { bars, multi }
    }

    /// Shows how far a run has come.
    pub(crate) fn show(&self, progress: Progress) {
        if let Some(bar) = self.bars.get(progress.regime) {
            bar.set_length(progress.total.unwrap_or(progress.done).max(1));
            bar.set_position(progress.done);
            let seconds = bar.elapsed().as_secs_f64().max(1e-3);
            bar.set_message(speed(progress.accesses, seconds));
        }
    }

    /// Takes the bars away.
    pub(crate) fn clear(self) {
        for bar in &self.bars {
            bar.finish_and_clear();
        }
        // The bars are gone from a terminal that may be gone too.
        let _ = self.multi.clear();
    }
}

/// Bytes done, of a total where that is known. On a terminal only.
pub(crate) struct Bytes(Option<ProgressBar>);

impl Bytes {
    pub(crate) fn new(total: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let template = if total.is_some() {
            "{bar:30.cyan/blue} {percent:>3} %  {bytes} of {total_bytes}, {bytes_per_sec}"
        } else {
            "{spinner} {bytes} recorded, {elapsed}"
        };
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(Some(bar))
    }

    pub(crate) fn show(&self, done: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(done);
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Steps that are done: a bar on a terminal; elsewhere a plain line every few seconds, so that a log shows that it goes on.
pub(crate) struct Rows(Shown);

enum Shown {
    Bar(ProgressBar),
    Lines { begun: Instant, said: Mutex<Duration> },
}

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(5);

impl Rows {
    pub(crate) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(Shown::Lines { begun: Instant::now(), said: Mutex::new(Duration::ZERO) });
        }
        let template = "{bar:30.cyan/blue} {pos} of {len} runs, {elapsed}, {eta} left  {wide_msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(1).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(250));
        Self(Shown::Bar(bar))
    }

    /// So many rows of all are done, the last one by this command.
    pub(crate) fn show(&self, done: usize, total: usize, last: &str) {
        match &self.0 {
            Shown::Bar(bar) => {
                bar.set_length(total as u64);
                // Several threads report, not always in turn.
                bar.set_position(bar.position().max(done as u64));
                bar.set_message(last.to_owned());
            }
            Shown::Lines { begun, said } => {
                let now = begun.elapsed();
                let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if now >= *said + PAUSE {
                    *said = now;
                    crate::failure::warn(&format!("{done} of {total} done after {} s, last {last}", now.as_secs()));
                }
            }
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(self) {
        if let Shown::Bar(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a speed for people")]
fn speed(accesses: u64, seconds: f64) -> String {
    format!("{} accesses, {:.1} M/s", memvirt_lab::text::short(accesses), accesses as f64 / seconds / 1e6)
}
