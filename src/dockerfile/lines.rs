//! Physical lines, and the logical lines they are continued to.

use crate::dockerfile::error::Error;
use crate::dockerfile::instruction::Span;
use std::ops::Range;

/// The longest physical line in bytes, its line feed not counted: BuildKit's limit.
const MAX_LINE: usize = 65535;

/// A text and the name messages give it.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl Text<'_> {
    pub(super) fn error(&self, span: Span, message: impl Into<String>) -> Error {
        Error::in_text(self.name, self.text, span, message)
    }
}

/// The physical lines of a text, one after another.
pub(super) struct Lines<'a> {
    text: Text<'a>,
    at: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: Text<'a>) -> Self {
        Self { text, at: if text.text.starts_with('\u{feff}') { 3 } else { 0 } }
    }

    /// Takes the next physical line, line feed included.
    pub(super) fn take(&mut self) -> Result<Option<Range<usize>>, Error> {
        let rest = &self.text.text[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let length = rest.find('\n').map_or(rest.len(), |newline| newline + 1);
        let range = self.at..self.at + length;
        if rest[..length].trim_end_matches('\n').len() > MAX_LINE {
            let span = Span { start: range.start, end: range.start };
            return Err(self
                .text
                .error(span, format!("line is longer than the allowed {MAX_LINE} bytes")));
        }
        self.at = range.end;
        Ok(Some(range))
    }
}

/// An instruction's text on one line, and where each part of it came from.
#[derive(Debug)]
pub(super) struct Logical {
    /// Continuations joined, comments left out.
    pub(super) text: String,
    /// The physical lines from the first character to the last, without line feed.
    pub(super) span: Span,
    /// First blank line met inside a continuation.
    pub(super) blank: Option<Span>,
    /// (offset in `text`, offset in the source) where each joined part begins.
    parts: Vec<(usize, usize)>,
}

impl Logical {
    /// Offset in the source of the character at `offset` of `text`.
    fn source(&self, offset: usize) -> usize {
        let index = self.parts.partition_point(|&(start, _)| start <= offset).saturating_sub(1);
        self.parts.get(index).map_or(self.span.start, |&(start, source)| source + (offset - start))
    }

    /// Where a range of `text` stands in the source.
    pub(super) fn span(&self, range: &Range<usize>) -> Span {
        if range.is_empty() {
            // After the last character, not before the first of the next line.
            let at = match range.start.checked_sub(1) {
                Some(last) => self.source(last) + 1,
                None => self.source(0),
            };
            return Span { start: at, end: at };
        }
        Span { start: self.source(range.start), end: self.source(range.end - 1) + 1 }
    }
}

/// A line is a comment if its first non-blank is `#`.
pub(super) fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// Reads the instruction that begins on the physical line `first`, taking the
/// lines it is continued on. `None` for a blank line or a comment.
pub(super) fn logical(
    lines: &mut Lines<'_>,
    first: Range<usize>,
    escape: char,
) -> Result<Option<Logical>, Error> {
    let source = lines.text.text;
    let whole = source[first.clone()].trim_end_matches(['\r', '\n']);
    let trimmed = whole.trim_start();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Ok(None);
    }
    let start = first.start + (whole.len() - trimmed.len());
    let (part, mut continued) = continuation(trimmed, escape);
    let mut line = Logical {
        text: part.to_owned(),
        span: Span { start, end: start + trimmed.len() },
        blank: None,
        parts: vec![(0, start)],
    };
    while continued {
        let Some(range) = lines.take()? else { break };
        let physical = source[range.clone()].trim_end_matches(['\r', '\n']);
        if is_comment(physical) {
            continue;
        }
        if physical.trim_start().is_empty() {
            let span = Span { start: range.start, end: range.start + physical.len() };
            line.blank.get_or_insert(span);
            continue;
        }
        let (part, more) = continuation(physical, escape);
        line.parts.push((line.text.len(), range.start));
        line.text.push_str(part);
        line.span.end = range.start + physical.len();
        continued = more;
    }
    Ok(Some(line))
}

/// Cuts the escape character that continues `line`, if there is one: the last
/// non-blank, not itself preceded by an escape character.
fn continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}
