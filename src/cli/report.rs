//! Turns progress into text: the only place that prints.
//!
//! Results go to standard output, everything else to standard error, except what
//! the processes of RUN steps write to their own standard output, which goes to
//! ours as kaniko's does when it is not a step's log line.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use serde_json::json;

use super::call;
use super::flags::LogFormat;
use super::flags::Verbosity;
use super::screen::Screen;
use crate::build::Observer;
use crate::build::Progress;
use crate::build::progress::Outcome;
use crate::build::progress::StepNumber;
use crate::build::progress::Stream;
use crate::build::report::reasons_to_json;
use crate::build::survey::Finding;

/// Writes what a build tells to standard error.
pub(super) struct Reporter {
    format: LogFormat,
    verbosity: Verbosity,
    timestamps: bool,
    color: bool,
    explains: bool,
    screen: Screen,
    lines: Mutex<Lines>,
    findings: Mutex<Vec<Finding>>,
}

#[derive(Default)]
struct Lines {
    /// When a step began, and the unfinished line of each of its outputs.
    steps: HashMap<StepNumber, (Option<Instant>, [Vec<u8>; 2])>,
}

impl Reporter {
    /// A reporter for `--log-format`, `--verbosity` and `--log-timestamp`.
    pub(super) fn new(format: LogFormat, verbosity: Verbosity, timestamps: bool) -> Self {
        let color = format == LogFormat::Color && std::io::stderr().is_terminal();
        let live = color && !timestamps && verbosity == Verbosity::Info;
        let screen = match live {
            true => Screen::live_if_possible(std::env::var("TERM").ok().as_deref()),
            false => Screen::plain(),
        };
        let explains = false;
        let (lines, findings) = (Mutex::default(), Mutex::default());
        Self { format, verbosity, timestamps, color, explains, screen, lines, findings }
    }

    /// This reporter for `--explain`: it also tells why steps missed.
    pub(super) fn explaining(self, explains: bool) -> Self {
        Self { explains, ..self }
    }

    /// Where all lines go.
    pub(super) fn screen(&self) -> &Screen {
        &self.screen
    }

    fn shows(&self, least: Verbosity) -> bool {
        self.verbosity as u8 >= least as u8
    }

    /// One line to standard error.
    fn line(&self, color: &str, text: &str) {
        let time = if self.timestamps { format!("{} ", timestamp()) } else { String::new() };
        self.screen.line(&if self.color && !color.is_empty() {
            format!("{time}\x1b[{color}m{text}\x1b[0m")
        } else {
            format!("{time}{text}")
        });
    }

    fn json(&self, mut value: serde_json::Value) {
        if let Some(object) = value.as_object_mut() {
            object.insert("time".to_owned(), json!(timestamp()));
        }
        self.screen.line(&value.to_string());
    }

    /// An error that ends the program.
    pub(super) fn error(&self, text: &str, hint: Option<&str>) {
        if self.format == LogFormat::Json {
            self.json(json!({ "level": "error", "msg": text, "hint": hint }));
            return;
        }
        self.line("31", &format!("error: {text}"));
        if let Some(hint) = hint {
            self.line("", &format!("hint: {hint}"));
        }
    }

    /// An error with an excerpt of the Dockerfile, which begins with `error:` itself.
    pub(super) fn placed_error(&self, rendered: &str, text: &str, hint: Option<&str>) {
        if self.format == LogFormat::Json {
            return self.error(text, hint);
        }
        self.line("", rendered.trim_end());
        if let Some(hint) = hint {
            self.line("", &format!("hint: {hint}"));
        }
    }

    /// A line that says how the build ended.
    pub(super) fn done(&self, text: &str) {
        if self.format == LogFormat::Json {
            self.json(json!({ "level": "info", "msg": text }));
        } else if self.shows(Verbosity::Info) {
            self.line("32", text);
        }
    }

    /// The lint findings of the build, which stand at its end as BuildKit shows them:
    /// one line for each, in full with `--verbosity=debug`.
    pub(super) fn findings(&self) {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        let findings = std::mem::take(&mut *findings);
        if findings.is_empty() || !self.shows(Verbosity::Warn) || self.format == LogFormat::Json {
            return;
        }
        let found = match findings.len() {
            1 => "1 warning found".to_owned(),
            count => format!("{count} warnings found"),
        };
        if self.shows(Verbosity::Debug) {
            self.line("33", &format!("{found}:"));
            for finding in &findings {
                self.line("", "");
                self.line("", call::warning(finding).trim_end());
            }
            return;
        }
        self.line("33", &format!("{found} (use --verbosity=debug to expand):"));
        for Finding { rule, message, lines, .. } in &findings {
            self.line("33", &format!(" - {rule}: {message} (line {})", lines.0));
        }
    }

    fn output(&self, step: StepNumber, stream: Stream, bytes: &[u8]) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, unfinished) = lines.steps.entry(step).or_default();
        let unfinished = &mut unfinished[stream as usize];
        unfinished.extend_from_slice(bytes);
        while let Some(end) = unfinished.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = unfinished.drain(..=end).collect();
            self.output_line(step, stream, &line[..end]);
        }
    }

    fn output_line(&self, step: StepNumber, stream: Stream, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if self.format == LogFormat::Json {
            let stream = if stream == Stream::Out { "stdout" } else { "stderr" };
            self.json(json!({ "level": "info", "step": step.0, "stream": stream, "msg": text }));
        } else if self.screen.is_live() {
            self.screen.set_row(step, text.trim_end_matches('\r'));
        } else {
            self.line("", &format!("#{} {}", step.0, text.trim_end_matches('\r')));
        }
    }

    fn flush_step(&self, step: StepNumber) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, unfinished)) = lines.steps.remove(&step) else { return };
        drop(lines);
        for (stream, line) in [Stream::Out, Stream::Err].into_iter().zip(unfinished) {
            if !line.is_empty() && self.shows(Verbosity::Info) {
                self.output_line(step, stream, &line);
            }
        }
    }
}

impl Observer for Reporter {
    fn observe(&self, progress: Progress) {
        let json = self.format == LogFormat::Json;
        match progress {
            Progress::Root { root, detail } if self.shows(Verbosity::Info) => {
                if json {
                    self.json(json!({ "level": "info", "root": root, "msg": detail }));
                } else {
                    self.line("", &format!("root: {root} ({detail})"));
                }
            }
            Progress::Started { step, title } => {
                let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.steps.entry(step).or_default().0 = Some(Instant::now());
                drop(lines);
                if !self.shows(Verbosity::Info) {
                } else if json {
                    self.json(json!({ "level": "info", "step": step.0, "event": "started", "msg": title }));
                } else if self.screen.is_live() {
                    self.screen.open_row(step, &title);
                } else {
                    self.line("1", &format!("#{} {title}", step.0));
                }
            }
            Progress::Waiting { step, limit } if self.shows(Verbosity::Info) => {
                if json {
                    self.json(json!({
                        "level": "info", "step": step.0, "event": "waiting",
                        "limitSeconds": limit.as_secs_f64(), "msg": "waiting for another build",
                    }));
                } else {
                    self.line("", &format!("#{} waiting for another build of this step", step.0));
                }
            }
            Progress::Output { step, stream, bytes } if self.shows(Verbosity::Info) => {
                self.output(step, stream, &bytes);
            }
            Progress::Finished { step, outcome, elapsed } => {
                self.flush_step(step);
                let (word, color) = match outcome {
                    Outcome::Cached => ("CACHED", "36"),
                    Outcome::Done => ("DONE", ""),
                    Outcome::Absent => ("NOT CACHED", ""),
                    Outcome::Failed => ("ERROR", "31"),
                };
                // In the live view the title was only in the row that goes now.
                let title = self.screen.close_row(step);
                let title = title.unwrap_or_else(|| format!("#{}", step.0));
                if !self.shows(Verbosity::Info) {
                } else if json {
                    self.json(json!({
                        "level": "info", "step": step.0, "event": word.to_lowercase(),
                        "seconds": elapsed.as_secs_f64(), "msg": word,
                    }));
                } else if outcome == Outcome::Cached {
                    self.line(color, &format!("{title} {word}"));
                } else {
                    self.line(color, &format!("{title} {word} {:.2}s", elapsed.as_secs_f64()));
                }
            }
            Progress::Missed { step, reasons } if json && self.shows(Verbosity::Info) => {
                let text: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                self.json(json!({
                    "level": "info", "step": step.0, "event": "missed",
                    "reasons": reasons_to_json(&reasons), "msg": text.join("; "),
                }));
            }
            Progress::Missed { step, reasons } if self.explains || self.shows(Verbosity::Debug) => {
                for reason in reasons {
                    self.line("", &format!("#{} not cached: {reason}", step.0));
                }
            }
            Progress::Warning(text) if self.shows(Verbosity::Warn) => {
                if json {
                    self.json(json!({ "level": "warning", "msg": text }));
                } else {
                    self.line("33", &format!("warning: {text}"));
                }
            }
            Progress::Findings(found) => {
                if json && self.shows(Verbosity::Warn) {
                    for Finding { rule, message, lines, .. } in &found {
                        self.json(json!({
                            "level": "warning", "rule": rule, "line": lines.0, "msg": message,
                        }));
                    }
                }
                let mut known = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
                for finding in found {
                    // Several platforms find the same.
                    if !known.contains(&finding) {
                        known.push(finding);
                    }
                }
            }
            Progress::Note(text) if self.shows(Verbosity::Info) => {
                if json {
                    self.json(json!({ "level": "info", "msg": text }));
                } else {
                    self.line("", &text);
                }
            }
            _ => {}
        }
    }
}

fn timestamp() -> String {
    jiff::Timestamp::now().to_string()
}
