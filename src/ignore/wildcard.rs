//! Go's `filepath.Match`: `*`, `?`, `[a-z]`, `[^a-z]` and `\`.

use crate::ignore::Error;
use crate::ignore::clean;
use crate::path::RootPath;

/// A compiled pattern for whole paths. `*` and `?` stop at `/`.
#[derive(Clone, Debug)]
pub struct PathPattern {
    tokens: Vec<Token>,
}

/// A piece of a pattern.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// Itself.
    Char(char),
    /// `?`
    AnyChar,
    /// `*`
    Star,
    /// `[…]`; ranges are inclusive and may be empty.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Token {
    /// Whether this, not a star, matches `char`.
    fn matches(&self, char: char) -> bool {
        match self {
            Self::Char(own) => *own == char,
            Self::AnyChar => char != '/',
            Self::Star => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|&(low, high)| low <= char && char <= high) != *negated
            }
        }
    }
}

impl PathPattern {
    /// Compiles `pattern`; it is cleaned first, and slashes before it vanish.
    ///
    /// Fails on open or empty brackets and on a lone backslash at the end.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let cleaned = clean(&format!("/{pattern}"));
        Ok(Self { tokens: tokens(cleaned.trim_start_matches('/'))? })
    }

    /// A pattern for one component, taken as it is.
    pub(super) fn component(pattern: &str) -> Result<Self, Error> {
        Ok(Self { tokens: tokens(pattern)? })
    }

    /// Whether the pattern matches the whole of `path`.
    pub fn matches(&self, path: &RootPath) -> bool {
        self.matches_bytes(path.as_bytes())
    }

    /// Backtracks to the last star only, which is enough because stars match
    /// anything but `/`: time is at most pattern times path.
    pub(super) fn matches_bytes(&self, path: &[u8]) -> bool {
        let tokens = self.tokens.as_slice();
        let (mut token, mut at) = (0, 0);
        // Token after the last star, and where the text it has eaten ends.
        let mut star: Option<(usize, usize)> = None;
        loop {
            if tokens.get(token) == Some(&Token::Star) {
                token += 1;
                star = Some((token, at));
                continue;
            }
            match (tokens.get(token), first_char(&path[at..])) {
                (None, None) => return true,
                (Some(own), Some((char, length))) if own.matches(char) => {
                    token += 1;
                    at += length;
                    continue;
                }
                _ => {}
            }
            let Some((after, eaten)) = star else { return false };
            match first_char(&path[eaten..]) {
                Some((char, length)) if char != '/' => {
                    token = after;
                    at = eaten + length;
                    star = Some((after, at));
                }
                _ => return false,
            }
        }
    }
}

/// The first character and its length; a byte that begins none is U+FFFD, as in Go.
fn first_char(bytes: &[u8]) -> Option<(char, usize)> {
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((char::from(first), 1));
    }
    let length = match first {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    let decoded = bytes.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok());
    match decoded.and_then(|text| text.chars().next()) {
        Some(char) => Some((char, length)),
        None => Some((char::REPLACEMENT_CHARACTER, 1)),
    }
}

/// Reads a pattern; fails where Go's `filepath.Match` says `ErrBadPattern`.
pub(super) fn tokens(pattern: &str) -> Result<Vec<Token>, Error> {
    let bad = |reason| Error::BadPattern { pattern: pattern.to_owned(), reason };
    let escape = "it ends in the middle of an escape";
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        tokens.push(match char {
            '*' => Token::Star,
            '?' => Token::AnyChar,
            '\\' => Token::Char(chars.next().ok_or_else(|| bad(escape))?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                let bound =
                    |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next() {
                        None => Err(bad("a `[` is never closed")),
                        Some('-' | ']') => Err(bad("a range in `[…]` lacks a bound")),
                        Some('\\') => chars.next().ok_or_else(|| bad(escape)),
                        Some(char) => Ok(char),
                    };
                loop {
                    if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
                        break;
                    }
                    let low = bound(&mut chars)?;
                    let dash = chars.next_if_eq(&'-').is_some();
                    let high = if dash { bound(&mut chars)? } else { low };
                    ranges.push((low, high));
                }
                Token::Class { negated, ranges }
            }
            other => Token::Char(other),
        });
    }
    Ok(tokens)
}
