//! Cutting an instruction's arguments into words, without unquoting them.

use std::ops::Range;

/// The blanks between arguments: Go's `[\t\v\f\r ]`.
pub(super) fn is_blank(char: char) -> bool {
    matches!(char, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// `range` of `text` without the white space at its ends.
pub(super) fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let slice = &text[range.clone()];
    let start = range.start + (slice.len() - slice.trim_start().len());
    start..(start + slice.trim().len())
}

/// Cuts at the first run of blanks: the first word and the rest, if there is any.
pub(super) fn first(text: &str, range: Range<usize>) -> (Range<usize>, Option<Range<usize>>) {
    let slice = &text[range.clone()];
    match slice.find(is_blank) {
        None => (range, None),
        Some(end) => {
            let rest = slice[end..].trim_start_matches(is_blank);
            (range.start..range.start + end, Some(range.end - rest.len()..range.end))
        }
    }
}

/// Cuts at every run of blanks.
pub(super) fn blank_separated(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut rest = Some(trimmed(text, range)).filter(|range| !range.is_empty());
    while let Some(range) = rest {
        let (word, after) = first(text, range);
        words.push(word);
        rest = after.filter(|range| !range.is_empty());
    }
    words
}

/// Cuts at white space outside of quotes; quotes and escapes stay in the words.
pub(super) fn quoted(text: &str, range: Range<usize>, escape: char) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start: Option<usize> = None;
    let mut quote: Option<char> = None;
    let mut end = range.start;
    let mut chars = text[range.clone()].char_indices();
    while let Some((offset, char)) = chars.next() {
        let at = range.start + offset;
        if quote.is_none() && char.is_whitespace() {
            words.extend(start.take().map(|start| start..end));
            continue;
        }
        start.get_or_insert(at);
        end = at + char.len_utf8();
        if char == escape && quote != Some('\'') {
            match chars.next() {
                Some((offset, escaped)) => end = range.start + offset + escaped.len_utf8(),
                // An escape character at the end of the line vanishes.
                None => end = at,
            }
        } else if quote == Some(char) {
            quote = None;
        } else if quote.is_none() && (char == '\'' || char == '"') {
            quote = Some(char);
        }
    }
    words.extend(start.map(|start| start..end).filter(|word| !word.is_empty()));
    words
}

/// The strings of a JSON array, each with its place (quotes included).
pub(super) type JsonWords = Vec<(String, Range<usize>)>;

/// A JSON array of something else than strings.
#[derive(Debug)]
pub(super) struct NotStrings;

/// Reads `range` as a JSON array of strings, each with its place. `None` if it is
/// no valid JSON array: then the arguments are in their other form.
pub(super) fn json(text: &str, range: Range<usize>) -> Result<Option<JsonWords>, NotStrings> {
    let range = trimmed(text, range);
    let slice = &text[range.clone()];
    if !slice.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(slice) else {
        return Ok(None);
    };
    let mut words = Vec::with_capacity(values.len());
    let bytes = slice.as_bytes();
    let mut at = 0;
    for value in values {
        let serde_json::Value::String(value) = value else { return Err(NotStrings) };
        // Everything before was strings, so the next quote opens this one.
        while bytes.get(at).is_some_and(|&byte| byte != b'"') {
            at += 1;
        }
        let start = at;
        at += 1;
        while bytes.get(at).is_some_and(|&byte| byte != b'"') {
            at += if bytes[at] == b'\\' { 2 } else { 1 };
        }
        at += 1;
        words.push((value, range.start + start..range.start + at));
    }
    Ok(Some(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<&str> {
        quoted(text, 0..text.len(), '\\').into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn quotes_and_escapes_hold_words_together() {
        assert_eq!(cut(" a=b  c='d e' f=\"g \\\" h\""), ["a=b", "c='d e'", "f=\"g \\\" h\""]);
        assert_eq!(cut("a\\ b c"), ["a\\ b", "c"]);
        assert_eq!(cut("'a\\' b"), ["'a\\'", "b"]);
        assert_eq!(cut("a 'open b"), ["a", "'open b"]);
        assert_eq!(cut("a \\"), ["a"]);
        assert_eq!(cut("\"\" ü"), ["\"\"", "ü"]);
    }

    #[test]
    fn json_strings_know_their_place() {
        let text = r#" ["a", "b\"]", "ü"] "#;
        let words = json(text, 0..text.len()).expect("strings").expect("valid");
        let raw: Vec<_> = words.iter().map(|(_, range)| &text[range.clone()]).collect();
        assert_eq!(raw, [r#""a""#, r#""b\"]""#, r#""ü""#]);
        assert_eq!(words[1].0, "b\"]");
    }

    #[test]
    fn broken_json_is_words_and_other_members_are_an_error() {
        for text in ["['a']", r#"["a",]"#, r#"["a"] x"#, "[", r#"["\d"]"#, "x"] {
            assert!(json(text, 0..text.len()).expect("no error").is_none(), "{text}");
        }
        for text in ["[1]", r#"["a", null]"#, "[[]]"] {
            assert!(json(text, 0..text.len()).is_err(), "{text}");
        }
    }
}
