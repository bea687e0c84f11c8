//! The instructions with a grammar of their own: RUN, COPY, ADD, HEALTHCHECK.

use crate::dockerfile::duration;
use crate::dockerfile::error::Error;
use crate::dockerfile::flags::Kind;
use crate::dockerfile::heredoc::Found;
use crate::dockerfile::instruction::Command;
use crate::dockerfile::instruction::Copy;
use crate::dockerfile::instruction::Healthcheck;
use crate::dockerfile::instruction::Run;
use crate::dockerfile::instruction::Source;
use crate::dockerfile::instruction::Word;
use crate::dockerfile::lines::Logical;
use crate::dockerfile::parse::Head;
use crate::dockerfile::parse::Parser;
use crate::dockerfile::parse::word;
use crate::dockerfile::suggest;
use crate::dockerfile::words;
use std::ops::Range;

/// The shortest interval of a HEALTHCHECK in nanoseconds: Docker's limit.
const MIN_INTERVAL: i64 = 1_000_000;

impl Parser<'_> {
    pub(super) fn run(&self, line: &Logical, head: &Head, found: Vec<Found>) -> Result<Run, Error> {
        let known = [("mount", Kind::Values), ("network", Kind::Value), ("security", Kind::Value)];
        let flags = self.flags(line, head, &known)?;
        let choice = |name: &str, choices: &[&str]| match flags.value(name) {
            Some(word) if !choices.contains(&word.text.as_str()) => {
                let message = format!("unknown value `{}` of RUN --{name}", word.text);
                let hint = match suggest::nearest(&word.text, choices) {
                    Some(near) => format!("did you mean {near}? "),
                    None => String::new(),
                };
                Err(self
                    .source
                    .error(word.span, message)
                    .with_hint(format!("{hint}it is one of {}", choices.join(", "))))
            }
            value => Ok(value),
        };
        let network = choice("network", &["default", "none", "host"])?;
        let security = choice("security", &["sandbox", "insecure"])?;
        let command = self.command(line, &head.arguments)?;
        if matches!(&command, Command::Exec(words) if words.is_empty()) {
            return Err(self.at_least_one(line, head));
        }
        let heredocs = found.into_iter().map(|found| found.heredoc).collect();
        Ok(Run { command, heredocs, mounts: flags.values("mount"), network, security })
    }

    pub(super) fn copy(
        &self,
        line: &Logical,
        head: &Head,
        found: Vec<Found>,
    ) -> Result<Copy, Error> {
        let both = [
            ("chown", Kind::Value),
            ("chmod", Kind::Value),
            ("link", Kind::Switch),
            ("exclude", Kind::Values),
        ];
        let own: &[(&'static str, Kind)] = match head.keyword.as_str() {
            "COPY" => &[("from", Kind::Value), ("parents", Kind::Switch)],
            _ => &[
                ("checksum", Kind::Value),
                ("keep-git-dir", Kind::Switch),
                ("unpack", Kind::Switch),
            ],
        };
        let flags = self.flags(line, head, &[&both, own].concat())?;
        let mut sources: Vec<Source> = match self.json(line, &head.arguments)? {
            Some(words) => words
                .into_iter()
                .map(|(text, range)| Source::Path(Word { text, span: line.span(&range) }))
                .collect(),
            None => with_heredocs(
                line,
                words::blank_separated(&line.text, head.arguments.clone()),
                found,
            ),
        };
        let destination = sources.pop().filter(|_| !sources.is_empty());
        let destination = match destination {
            Some(Source::Path(word)) => word,
            Some(Source::Heredoc(_)) => {
                let message = format!("the destination of {} can't be a heredoc", head.keyword);
                return Err(self.error(line, &head.arguments, message));
            }
            None => {
                let message = format!("{} requires at least two arguments", head.keyword);
                return Err(self
                    .error(line, &head.word, message)
                    .with_hint("give at least one source and the destination"));
            }
        };
        Ok(Copy {
            sources,
            destination,
            from: flags.value("from"),
            chown: flags.value("chown"),
            chmod: flags.value("chmod"),
            link: flags.switch("link").unwrap_or(false),
            parents: flags.switch("parents").unwrap_or(false),
            exclude: flags.values("exclude"),
            checksum: flags.value("checksum"),
            keep_git_dir: flags.switch("keep-git-dir").unwrap_or(false),
            unpack: flags.switch("unpack"),
        })
    }

    pub(super) fn healthcheck(&self, line: &Logical, head: &Head) -> Result<Healthcheck, Error> {
        let known = [
            ("interval", Kind::Value),
            ("timeout", Kind::Value),
            ("start-period", Kind::Value),
            ("start-interval", Kind::Value),
            ("retries", Kind::Value),
        ];
        let flags = self.flags(line, head, &known)?;
        if head.arguments.is_empty() {
            return Err(self.at_least_one(line, head));
        }
        let (form, rest) = words::first(&line.text, head.arguments.clone());
        let rest = rest.unwrap_or(form.end..form.end);
        match line.text[form.clone()].to_ascii_uppercase().as_str() {
            "NONE" if rest.is_empty() => return Ok(Healthcheck::None),
            "NONE" => return Err(self.error(line, &rest, "HEALTHCHECK NONE takes no arguments")),
            "CMD" => {}
            _ => {
                let message = format!("unknown type `{}` of HEALTHCHECK", &line.text[form.clone()]);
                return Err(self
                    .error(line, &form, message)
                    .with_hint("write HEALTHCHECK CMD COMMAND or HEALTHCHECK NONE"));
            }
        }
        let command = self.command(line, &rest)?;
        let missing = match &command {
            Command::Exec(words) => words.is_empty(),
            Command::Shell(text) => text.is_empty(),
        };
        if missing {
            return Err(self.error(line, &form, "no command after HEALTHCHECK CMD"));
        }
        let interval = |name: &str| {
            let Some(word) = flags.value(name) else { return Ok(0) };
            let interval = duration::parse(&word.text)
                .map_err(|message| self.source.error(word.span, message))?;
            if interval != 0 && interval < MIN_INTERVAL {
                let message = format!("--{name} can't be less than 1ms");
                return Err(self.source.error(word.span, message));
            }
            Ok(interval)
        };
        let retries = match flags.value("retries") {
            None => 0,
            Some(word) => match word.text.parse::<i32>().map(u32::try_from) {
                Ok(Ok(retries)) => retries,
                Ok(Err(_)) => {
                    return Err(self.source.error(word.span, "--retries can't be negative"));
                }
                Err(_) => {
                    let message = format!("--retries is a number, not `{}`", word.text);
                    return Err(self.source.error(word.span, message));
                }
            },
        };
        Ok(Healthcheck::Check {
            command,
            interval: interval("interval")?,
            timeout: interval("timeout")?,
            start_period: interval("start-period")?,
            start_interval: interval("start-interval")?,
            retries,
        })
    }
}

/// Puts here-documents in the place of the words that name them (`<< EOF` is two).
fn with_heredocs(line: &Logical, words: Vec<Range<usize>>, found: Vec<Found>) -> Vec<Source> {
    let mut sources = Vec::with_capacity(words.len());
    let mut found = found.into_iter().peekable();
    let mut covered = 0;
    for range in words {
        if range.start < covered {
            continue;
        }
        match found.next_if(|found| found.range.start == range.start) {
            Some(Found { heredoc, range }) => {
                covered = range.end;
                sources.push(Source::Heredoc(heredoc));
            }
            None => sources.push(Source::Path(word(line, &range))),
        }
    }
    sources
}
