//! Which paths `.dockerignore`, `--exclude` and `--parents` mean.
//!
//! [`Matcher`] has the semantics of moby's `patternmatcher` as BuildKit uses it
//! when it walks a tree (`MatchesUsingParentResults`): patterns match whole paths
//! from the root, `*` and `?` stop at `/`, `**` is any number of directories, the
//! last pattern that matches a path *or a directory above it* wins, `!` takes back.
//!
//! [`PathPattern`] is Go's `filepath.Match`: the wildcards of COPY and ADD.
//!
//! Patterns are text; paths are bytes.

mod pattern;
mod wildcard;

use crate::ignore::pattern::Pattern;
use crate::path::RootPath;

pub use crate::ignore::wildcard::PathPattern;

/// A pattern that can't be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Open brackets, empty ranges, a lone backslash at the end.
    #[error("bad pattern `{pattern}`: {reason}")]
    BadPattern {
        /// As written.
        pattern: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// `!` with nothing behind it.
    #[error("`!` without a pattern")]
    LoneExclamation,
}

/// A list of patterns, compiled.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
    /// Whether some pattern begins with `!`.
    has_exceptions: bool,
}

impl Matcher {
    /// Reads a `.dockerignore` file: one pattern per line, `#` in the first column
    /// is a comment, white space around a pattern and slashes before it vanish.
    /// Bytes that are no UTF-8 are replaced.
    ///
    /// Fails on the first pattern that can't be read.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let text = String::from_utf8_lossy(text);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        Self::new(text.lines().filter(|line| !line.starts_with('#')).filter_map(from_line))
    }

    /// Compiles `patterns`, later ones overruling earlier ones. Blank ones vanish.
    ///
    /// Fails on the first pattern that can't be read.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, Error> {
        let mut matcher = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let cleaned = clean(pattern);
            let (exception, body) = match cleaned.strip_prefix('!') {
                Some("") => return Err(Error::LoneExclamation),
                Some(body) => (true, body),
                None => (false, cleaned.as_str()),
            };
            matcher.has_exceptions |= exception;
            matcher.patterns.push(Pattern::compile(body, exception)?);
        }
        Ok(matcher)
    }

    /// Whether there are no patterns at all.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether `path` is excluded. The root never is.
    pub fn excludes(&self, path: &RootPath) -> bool {
        let path = path.as_bytes();
        if path.is_empty() || self.patterns.is_empty() {
            return false;
        }
        if !self.has_exceptions {
            return prefixes(path)
                .any(|prefix| self.patterns.iter().any(|pattern| pattern.matches(prefix)));
        }
        let mut few = [false; 64];
        let mut many = Vec::new();
        let matched = match few.get_mut(..self.patterns.len()) {
            Some(few) => few,
            None => {
                many.resize(self.patterns.len(), false);
                many.as_mut_slice()
            }
        };
        // From the top down, as a walk would: a pattern that matched a directory
        // counts for everything below. A pattern that can't change the verdict is
        // not even tried, so it doesn't count below either.
        let mut excluded = false;
        for prefix in prefixes(path) {
            excluded = false;
            for (pattern, matched) in self.patterns.iter().zip(matched.iter_mut()) {
                if !*matched && pattern.exception == excluded {
                    *matched = pattern.matches(prefix);
                }
                if *matched {
                    excluded = !pattern.exception;
                }
            }
        }
        excluded
    }

    /// Whether something below the excluded directory `path` may be taken back by a
    /// `!` pattern, so that the directory must be entered all the same. Errs on the
    /// side of yes.
    pub fn may_reinclude_below(&self, path: &RootPath) -> bool {
        self.has_exceptions
            && self
                .patterns
                .iter()
                .any(|pattern| pattern.exception && pattern.may_match_below(path))
    }
}

/// Go's `filepath.Match` of `pattern` and the whole of `path`, for the wildcards of
/// COPY and ADD. A leading `/` or `./` of the pattern means nothing.
///
/// Fails on a pattern that can't be read. Compile a [`PathPattern`] to match many.
pub fn path_match(pattern: &str, path: &RootPath) -> Result<bool, Error> {
    Ok(PathPattern::new(pattern)?.matches(path))
}

/// Whether `path` holds an unescaped `*`, `?` or `[`.
pub fn has_wildcard(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Reads a line of a `.dockerignore` file; `None` if it is blank.
fn from_line(line: &str) -> Option<String> {
    let line = line.trim();
    let (exclamation, body) = match line.strip_prefix('!') {
        Some(body) => ("!", body.trim()),
        None => ("", line),
    };
    if body.is_empty() {
        return (!exclamation.is_empty()).then(|| exclamation.to_owned());
    }
    let cleaned = clean(body);
    let relative = match cleaned.strip_prefix('/') {
        Some("") | None => cleaned.as_str(),
        Some(relative) => relative,
    };
    Some(format!("{exclamation}{relative}"))
}

/// Go's `path.Clean`: single slashes, no `.`, no inner `..`, no trailing slash.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// The directories above `path` from the top down, and `path` itself.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &path[..at]).chain(std::iter::once(path))
}

#[cfg(test)]
mod tests;
