//! Here-documents: finding `<<WORD` on a line and reading the bodies below it.

use crate::dockerfile::error::Error;
use crate::dockerfile::expand;
use crate::dockerfile::expand::ExpandError;
use crate::dockerfile::expand::Options;
use crate::dockerfile::instruction::Heredoc;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::lines::Lines;
use crate::dockerfile::lines::Logical;
use crate::dockerfile::lines::Text;
use std::ops::Range;

/// A here-document, and where its `<<WORD` stands on the logical line.
pub(super) struct Found {
    pub(super) heredoc: Heredoc,
    pub(super) range: Range<usize>,
}

/// Finds the here-documents of a line, in order, and reads their bodies.
///
/// Their words are always lexed with `\` as escape character. A line that can't be
/// lexed has none: it is for the shell to complain.
pub(super) fn read(
    text: Text<'_>,
    line: &mut Logical,
    lines: &mut Lines<'_>,
) -> Result<Vec<Found>, Error> {
    if !line.text.contains("<<") {
        return Ok(Vec::new());
    }
    let options = Options {
        raw_quotes: true,
        raw_escapes: true,
        keep_unset: true,
        heredocs: true,
        ..Options::default()
    };
    let Ok(words) = expand::lex_words(&line.text, options, &|_: &str| None) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for (word, range) in words {
        let heredoc = parse(&word)
            .map_err(|error| text.error(line.span(&range), format!("bad heredoc word: {error}")))?;
        let Some(mut heredoc) = heredoc else { continue };
        let (span, end) = body(text, line.span(&range), &heredoc, lines)?;
        text.text[span.start..span.end].clone_into(&mut heredoc.body);
        heredoc.span = span;
        line.span.end = end;
        found.push(Found { heredoc, range });
    }
    Ok(found)
}

/// Reads physical lines up to the terminator; the second value is where that ends.
fn body(
    text: Text<'_>,
    word: Span,
    heredoc: &Heredoc,
    lines: &mut Lines<'_>,
) -> Result<(Span, usize), Error> {
    let mut span: Option<Span> = None;
    while let Some(range) = lines.take()? {
        let line = text.text[range.clone()].trim_end_matches(['\r', '\n']);
        let candidate = if heredoc.chomp { line.trim_start_matches('\t') } else { line };
        let span = span.get_or_insert(Span { start: range.start, end: range.start });
        if candidate == heredoc.name {
            return Ok((*span, range.start + line.len()));
        }
        span.end = range.end;
    }
    Err(text
        .error(word, format!("unterminated heredoc `{}`", heredoc.name))
        .with_hint(format!("no line below consists of `{}` alone", heredoc.name)))
}

/// Reads a word as `[descriptor]<<[-]NAME`; `None` if it is something else.
pub(super) fn parse(word: &str) -> Result<Option<Heredoc>, ExpandError> {
    let after = word.trim_start_matches(|char: char| char.is_ascii_digit());
    let digits = &word[..word.len() - after.len()];
    let Some(rest) = after.strip_prefix("<<") else { return Ok(None) };
    let (rest, chomp) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let lex = |raw_quotes| {
        let options = Options { raw_quotes, keep_unset: true, ..Options::default() };
        expand::lex_words(rest, options, &|_: &str| None)
    };
    let (plain, raw) = (lex(false)?, lex(true)?);
    let ([(name, _)], [(raw, _)]) = (plain.as_slice(), raw.as_slice()) else { return Ok(None) };
    // Escaped quotes are in both; those that quoted something only in the raw word.
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: name.clone(),
        expand: quotes(name) == quotes(raw),
        chomp,
        descriptor: if digits.is_empty() { 0 } else { digits.parse().unwrap_or(u32::MAX) },
        body: String::new(),
        span: Span::default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_heredocs_or_not() {
        let name = |word: &str| parse(word).map(|found| found.map(|heredoc| heredoc.name));
        for word in ["<<END", "<<'END'", "<<\"END\"", "<<-END", "<<EN\"D\"", "<< END", "7<<- END"] {
            assert_eq!(name(word), Ok(Some("END".to_owned())), "{word}");
        }
        for word in ["", "END", "<<", "<<-", "<END", "<<<END", "<<END sh", "a<<END", "<<''"] {
            assert_eq!(name(word), Ok(None), "{word}");
        }
        for word in ["<<'END", "<<END\""] {
            assert!(name(word).is_err(), "{word}");
        }
    }

    #[test]
    fn any_quote_turns_expansion_off_and_an_escaped_one_does_not() {
        let seen = |word: &str| {
            let found = parse(word).expect("valid").expect("a heredoc");
            (found.name, found.expand)
        };
        assert_eq!(seen("<<a'b'"), ("ab".to_owned(), false));
        assert_eq!(seen("<<a\\'b"), ("a'b".to_owned(), true));
        assert_eq!(seen("<<'a'\\'b"), ("a'b".to_owned(), false));
        assert_eq!(seen("<<'a b'"), ("a b".to_owned(), false));
        assert_eq!(seen("<<$x"), ("$x".to_owned(), true));
    }
}
