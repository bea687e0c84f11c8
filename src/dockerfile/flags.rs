//! The `--name[=value]` words right after an instruction.

use crate::dockerfile::error::Error;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Word;
use crate::dockerfile::lines::Logical;
use crate::dockerfile::lines::Text;
use crate::dockerfile::suggest;
use std::ops::Range;

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing, `=true` or `=false`.
    Switch,
    /// A value, at most once.
    Value,
    /// A value, any number of times.
    Values,
}

/// A flag as written.
pub(super) struct Raw {
    /// Unquoted, leading dashes included.
    text: String,
    range: Range<usize>,
}

/// Takes the flags at the start of `range`; the second value is what follows them.
///
/// Quotes are removed and `\` escapes (whatever the file's escape character is).
pub(super) fn take(line: &str, range: Range<usize>) -> (Vec<Raw>, Range<usize>) {
    let mut flags = Vec::new();
    let mut at = range.start;
    loop {
        let rest = &line[at..range.end];
        at += rest.len() - rest.trim_start().len();
        let rest = rest.trim_start();
        if !rest.starts_with("--") {
            return (flags, at..range.end);
        }
        let start = at;
        let mut text = String::new();
        let mut quote: Option<char> = None;
        let mut chars = rest.chars();
        while let Some(char) = chars.next() {
            if quote.is_none() && char.is_whitespace() {
                break;
            }
            at += char.len_utf8();
            if quote == Some(char) {
                quote = None;
            } else if quote.is_none() && (char == '\'' || char == '"') {
                quote = Some(char);
            } else if char == '\\' {
                if let Some(escaped) = chars.next() {
                    at += escaped.len_utf8();
                    text.push(escaped);
                }
            } else {
                text.push(char);
            }
        }
        if text == "--" {
            return (flags, at..range.end);
        }
        flags.push(Raw { text, range: start..at });
    }
}

/// The flags of one instruction, checked against the ones it knows.
pub(super) struct Flags {
    found: Vec<(&'static str, Word)>,
}

impl Flags {
    /// Checks `raw` against `known`.
    ///
    /// Fails on unknown and repeated flags, missing values and values of switches
    /// other than `true` and `false`.
    pub(super) fn check(
        text: Text<'_>,
        line: &Logical,
        instruction: &str,
        raw: &[Raw],
        known: &[(&'static str, Kind)],
    ) -> Result<Self, Error> {
        let mut found: Vec<(&'static str, Word)> = Vec::new();
        for flag in raw {
            let span = line.span(&flag.range);
            let body = flag.text.strip_prefix("--").unwrap_or(&flag.text);
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (body, None),
            };
            let Some(&(name, kind)) = known.iter().find(|(known, _)| *known == name) else {
                return Err(unknown(text, span, instruction, name, known));
            };
            if kind != Kind::Values && found.iter().any(|(other, _)| *other == name) {
                return Err(text.error(span, format!("flag --{name} is given twice")));
            }
            let value = match (kind, value) {
                (Kind::Switch, None) => "true".to_owned(),
                (Kind::Switch, Some(value)) => match value.to_ascii_lowercase().as_str() {
                    value @ ("true" | "false") => value.to_owned(),
                    "" => {
                        return Err(text.error(span, format!("missing a value of flag --{name}")));
                    }
                    _ => {
                        let message = format!("flag --{name} is true or false, not `{value}`");
                        return Err(text.error(span, message));
                    }
                },
                (_, Some(value)) => value.to_owned(),
                (_, None) => {
                    return Err(text
                        .error(span, format!("missing a value of flag --{name}"))
                        .with_hint(format!("write --{name}=VALUE, without blanks around the =")));
                }
            };
            let written = &line.text[flag.range.clone()];
            let value_start = written.find('=').map_or(written.len(), |equals| equals + 1);
            let range = flag.range.start + value_start..flag.range.end;
            found.push((name, Word { text: value, span: line.span(&range) }));
        }
        Ok(Self { found })
    }

    /// Value of a flag; `None` if it wasn't given or is empty.
    pub(super) fn value(&self, name: &str) -> Option<Word> {
        self.values(name).into_iter().next().filter(|word| !word.text.is_empty())
    }

    /// Values of a flag that may be repeated.
    pub(super) fn values(&self, name: &str) -> Vec<Word> {
        let found = self.found.iter().filter(|(other, _)| *other == name);
        found.map(|(_, word)| word.clone()).collect()
    }

    /// A switch; `None` if it wasn't given.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.value(name).map(|word| word.text == "true")
    }
}

fn unknown(
    text: Text<'_>,
    span: Span,
    instruction: &str,
    name: &str,
    known: &[(&'static str, Kind)],
) -> Error {
    if instruction == "RUN" && name == "device" {
        return text
            .error(span, "flag --device of RUN is not supported")
            .with_hint("it belongs to the labs syntax and needs devices that a daemon hands out");
    }
    let names: Vec<&'static str> = known.iter().map(|(name, _)| *name).collect();
    let mut hint = match suggest::nearest(name, &names) {
        Some(near) => format!("did you mean --{near}? "),
        None => String::new(),
    };
    if names.is_empty() {
        hint.push_str(&format!("{instruction} has no flags"));
    } else {
        hint.push_str(&format!("{instruction} knows --{}", names.join(", --")));
    }
    text.error(span, format!("unknown flag --{name} of {instruction}")).with_hint(hint)
}
