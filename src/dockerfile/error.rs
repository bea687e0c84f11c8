//! An error with its place in the Dockerfile.

use crate::dockerfile::instruction::Dockerfile;
use crate::dockerfile::instruction::Span;
use annotate_snippets::AnnotationKind;
use annotate_snippets::Level;
use annotate_snippets::Renderer;
use annotate_snippets::Snippet;
use std::fmt;

/// How many lines an excerpt shows at most.
const EXCERPT_LINES: usize = 6;

/// Something wrong in a Dockerfile: what, where, and perhaps what to do about it.
///
/// Used by everyone who finds fault with the text: the parser, `plan`, `build`.
/// It keeps an excerpt, not the file, so it is cheap to clone and to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error(Box<Fault>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Fault {
    name: String,
    message: String,
    hint: Option<String>,
    span: Span,
    line: usize,
    column: usize,
    /// Lines of the file from `line` on, and where in them the fault is.
    excerpt: String,
    marked: std::ops::Range<usize>,
}

impl Error {
    /// An error about `span` of `dockerfile`; `message` is lower case, without a period.
    pub fn at(dockerfile: &Dockerfile, span: Span, message: impl Into<String>) -> Self {
        Self::in_text(&dockerfile.name, &dockerfile.text, span, message)
    }

    /// An error about `span` of `text`, which messages call `name`.
    pub fn in_text(name: &str, text: &str, span: Span, message: impl Into<String>) -> Self {
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let lead = text[line_start..start].trim_start_matches('\u{feff}');
        let excerpt: String =
            text[line_start..].split_inclusive('\n').take(EXCERPT_LINES).collect();
        let marked_end = (end - line_start).min(excerpt.trim_end().len()).max(start - line_start);
        Self(Box::new(Fault {
            name: name.to_owned(),
            message: message.into(),
            hint: None,
            span: Span { start, end },
            line,
            column: lead.chars().count() + 1,
            marked: start - line_start..marked_end,
            excerpt,
        }))
    }

    /// The same error with advice; lower case, without a period.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Name of the file.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where, in bytes of the text.
    pub fn span(&self) -> Span {
        self.0.span
    }

    /// Line of the first wrong character, from 1.
    pub fn line(&self) -> usize {
        self.0.line
    }

    /// Column of the first wrong character, from 1, in characters.
    pub fn column(&self) -> usize {
        self.0.column
    }

    /// The error with an excerpt of the file, in several lines without colours.
    pub fn render(&self) -> String {
        self.render_with(&Renderer::plain())
    }

    /// Like [`Error::render`], with terminal colours.
    pub fn render_coloured(&self) -> String {
        self.render_with(&Renderer::styled())
    }

    fn render_with(&self, renderer: &Renderer) -> String {
        let fault = &*self.0;
        let snippet = Snippet::source(fault.excerpt.as_str())
            .path(fault.name.as_str())
            .line_start(fault.line)
            .annotation(AnnotationKind::Primary.span(fault.marked.clone()));
        let mut group = Level::ERROR.primary_title(fault.message.as_str()).element(snippet);
        if let Some(hint) = &fault.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        renderer.render(&[group])
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { name, line, column, message, hint, .. } = &*self.0;
        write!(f, "{name}:{line}:{column}: {message}")?;
        match hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The last character boundary at or before `offset`.
fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_counts_characters_and_skips_the_byte_order_mark() {
        let text = "\u{feff}FROM ü x\nRUN y";
        let error = Error::in_text("D", text, Span { start: 11, end: 12 }, "bad");
        assert_eq!((error.line(), error.column()), (1, 8));
        assert_eq!(error.to_string(), "D:1:8: bad");
    }

    #[test]
    fn rendering_shows_the_line_a_mark_and_the_hint() {
        let text = "FROM a\nRUNN x\n";
        let error = Error::in_text("Dockerfile", text, Span { start: 7, end: 11 }, "no such thing")
            .with_hint("did you mean RUN?");
        let shown = error.render();
        for part in ["no such thing", "Dockerfile:2:1", "RUNN x", "^^^^", "did you mean RUN?"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
    }

    #[test]
    fn any_span_can_be_shown() {
        let text = "é\r\n\tü\n";
        for start in 0..12 {
            for end in 0..12 {
                let error = Error::in_text("D", text, Span { start, end }, "m");
                assert!(error.render().contains('m'));
            }
        }
    }
}
