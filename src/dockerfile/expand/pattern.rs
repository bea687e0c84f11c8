//! The patterns of `${n#p}`, `${n%p}` and `${n/p/r}`: `*`, `?` and `\`, nothing else.

use crate::dockerfile::expand::ExpandError;
use regex::Regex;

/// Cuts what `pattern` matches at the start of `value`: as much as it can if `greedy`.
pub(super) fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, ExpandError> {
    let regex = compile(pattern, greedy, true)?;
    let cut = regex.find(value).map_or(0, |found| found.end());
    Ok(value[cut..].to_owned())
}

/// Cuts what `pattern` matches at the end of `value`: as much as it can if `greedy`.
///
/// A regular expression finds leftmost matches only, so both sides are reversed.
pub(super) fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, ExpandError> {
    let value: String = value.chars().rev().collect();
    // Checked the right way round first, so that the message shows what was written.
    compile(pattern, greedy, true)?;
    let rest = trim_prefix(&reversed(pattern), &value, greedy)?;
    Ok(rest.chars().rev().collect())
}

/// Replaces what `pattern` matches in `value`: the first, or all.
///
/// As in BuildKit, `replacement` is literal for the first and a template (`$0`,
/// `$$`) for all.
pub(super) fn replace(
    pattern: &str,
    value: &str,
    replacement: &str,
    all: bool,
) -> Result<String, ExpandError> {
    let regex = compile(pattern, true, false)?;
    Ok(if all {
        regex.replace_all(value, replacement).into_owned()
    } else {
        regex.replacen(value, 1, regex::NoExpand(replacement)).into_owned()
    })
}

/// Reverses a pattern; an escape stays in front of what it escapes.
fn reversed(pattern: &str) -> String {
    let mut units: Vec<(Option<char>, char)> = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some(escaped) => units.push((Some('\\'), escaped)),
                None => units.push((None, '\\')),
            },
            _ => units.push((None, char)),
        }
    }
    let mut out = String::with_capacity(pattern.len());
    for (escape, char) in units.into_iter().rev() {
        out.extend(escape);
        out.push(char);
    }
    out
}

fn compile(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex, ExpandError> {
    let bad = |reason: String| ExpandError::BadPattern { pattern: pattern.to_owned(), reason };
    let mut out = String::with_capacity(pattern.len() * 2 + 1);
    if anchored {
        out.push('^');
    }
    let mut literal = [0; 4];
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        let char = match char {
            '*' => {
                out.push_str(if greedy { ".*" } else { ".*?" });
                continue;
            }
            '?' => {
                out.push('.');
                continue;
            }
            '\\' => match chars.next() {
                Some(escaped @ ('}' | '/' | '*' | '?' | '\\')) => escaped,
                Some(other) => return Err(bad(format!("invalid escape `\\{other}`"))),
                None => return Err(bad("it ends in the middle of an escape".to_owned())),
            },
            other => other,
        };
        out.push_str(&regex::escape(char.encode_utf8(&mut literal)));
    }
    Regex::new(&out).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => bad("it is too long".to_owned()),
        other => bad(other.to_string()),
    })
}
