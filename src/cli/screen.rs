//! Standard error: plain lines or, on a terminal, lines above a live view with one
//! row for each running step.

use std::collections::HashMap;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use crate::build::progress::StepNumber;

/// How often a running step's clock and spinner move.
const TICK: Duration = Duration::from_millis(120);

/// Where lines go. Cheap to clone; clones write to the same place.
#[derive(Clone)]
pub(super) struct Screen {
    live: Option<Arc<Live>>,
}

struct Live {
    rows: MultiProgress,
    running: Mutex<HashMap<StepNumber, ProgressBar>>,
}

impl Screen {
    /// Plain lines.
    pub(super) fn plain() -> Self {
        Self { live: None }
    }

    /// A live view where standard error is a terminal that can move its cursor,
    /// plain lines elsewhere.
    pub(super) fn live_if_possible(term: Option<&str>) -> Self {
        if !io::stderr().is_terminal() || matches!(term, None | Some("" | "dumb")) {
            return Self::plain();
        }
        let live = Live { rows: MultiProgress::new(), running: Mutex::default() };
        Self { live: Some(Arc::new(live)) }
    }

    /// Whether running steps are shown in rows of their own.
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Writes a line. Losing it (a closed pipe) must not end a build.
    pub(super) fn line(&self, text: &str) {
        let _ = match &self.live {
            Some(live) => live.rows.println(text),
            None => writeln!(io::stderr().lock(), "{text}"),
        };
    }

    /// Shows the row of a running step.
    pub(super) fn open_row(&self, step: StepNumber, title: &str) {
        let Some(live) = &self.live else { return };
        let row = live.rows.add(ProgressBar::new_spinner());
        let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
            .expect("a constant that a test draws");
        row.set_style(style);
        row.set_prefix(format!("#{} {title}", step.0));
        row.enable_steady_tick(TICK);
        if let Some(former) = lock(&live.running).insert(step, row) {
            former.finish_and_clear();
        }
    }

    /// Shows the latest line of a running step's output in its row.
    pub(super) fn set_row(&self, step: StepNumber, text: &str) {
        let Some(live) = &self.live else { return };
        if let Some(row) = lock(&live.running).get(&step) {
            row.set_message(text.replace('\t', " "));
        }
    }

    /// Takes the row of a step away; gives its title with the number.
    pub(super) fn close_row(&self, step: StepNumber) -> Option<String> {
        let row = lock(&self.live.as_ref()?.running).remove(&step)?;
        row.finish_and_clear();
        Some(row.prefix())
    }

    /// Takes all rows away: what follows is the end of the program.
    pub(super) fn close(&self) {
        let Some(live) = &self.live else { return };
        for (_, row) in lock(&live.running).drain() {
            row.finish_and_clear();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whole lines of diagnostics go through the screen, so that they never tear a row.
impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Screen {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { screen: self, text: Vec::new() }
    }
}

/// Gathers one event's text; writes it when dropped.
pub(super) struct LineWriter<'a> {
    screen: &'a Screen,
    text: Vec<u8>,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        if !text.is_empty() {
            self.screen.line(text.trim_end_matches('\n'));
        }
    }
}
