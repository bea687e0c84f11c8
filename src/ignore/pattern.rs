//! One pattern of an ignore list: `filepath.Match` plus `**`.

use crate::ignore::Error;
use crate::ignore::wildcard;
use crate::ignore::wildcard::PathPattern;
use crate::ignore::wildcard::Token;
use crate::path::RootPath;
use regex::bytes::Regex;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// Begins with `!`.
    pub(super) exception: bool,
    form: Form,
    components: Vec<Component>,
}

/// How a path is compared; the first three cover most of what people write.
#[derive(Clone, Debug)]
enum Form {
    /// `a/b`
    Exact(Vec<u8>),
    /// `a/**`: everything that begins so.
    Prefix(Vec<u8>),
    /// `**/a` and `**a`: everything that ends so; `**/a` is `a` too.
    Suffix(Vec<u8>),
    /// The rest. Most paths are told apart by the literal text at its ends.
    Regex { start: Vec<u8>, end: Vec<u8>, regex: Regex },
}

/// A component, for the question what may lie below a directory.
#[derive(Clone, Debug)]
enum Component {
    One(PathPattern),
    /// May match more than one component of a path.
    AnyDepth,
}

impl Pattern {
    /// Compiles a cleaned pattern without its `!`.
    pub(super) fn compile(pattern: &str, exception: bool) -> Result<Self, Error> {
        let tokens = wildcard::tokens(pattern)?;
        let form = match plain_form(&tokens) {
            Some(form) => form,
            None => {
                let regex = Regex::new(&regex(&tokens)).map_err(|_| Error::BadPattern {
                    pattern: pattern.to_owned(),
                    reason: "it is too long",
                })?;
                let end: String = literal(tokens.iter().rev()).chars().rev().collect();
                // `**/` may match nothing, its slash included.
                let end = if tokens.len() > end.chars().count() + 1 && end.starts_with('/') {
                    end[1..].to_owned()
                } else {
                    end
                };
                let start = literal(tokens.iter()).into_bytes();
                Form::Regex { start, end: end.into_bytes(), regex }
            }
        };
        // A negated class matches `/` too, and a plain one may hold it; cutting such
        // a pattern at its slashes would be wrong.
        let components = if pattern.contains('[') {
            vec![Component::AnyDepth]
        } else {
            let component = |part: &str| {
                Ok(if part.contains("**") {
                    Component::AnyDepth
                } else {
                    Component::One(PathPattern::component(part)?)
                })
            };
            pattern.split('/').map(component).collect::<Result<_, Error>>()?
        };
        Ok(Self { exception, form, components })
    }

    /// Whether the pattern matches the whole of `path`.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        match &self.form {
            Form::Exact(exact) => path == exact.as_slice(),
            Form::Prefix(prefix) => path.starts_with(prefix),
            Form::Suffix(suffix) => {
                path.ends_with(suffix) || suffix.strip_prefix(b"/").is_some_and(|name| name == path)
            }
            Form::Regex { start, end, regex } => {
                path.starts_with(start) && path.ends_with(end) && regex.is_match(path)
            }
        }
    }

    /// Whether the pattern may match a path below `directory`.
    pub(super) fn may_match_below(&self, directory: &RootPath) -> bool {
        let mut components = self.components.iter();
        for part in directory.components() {
            match components.next() {
                Some(Component::AnyDepth) => return true,
                Some(Component::One(pattern)) if pattern.matches_bytes(part) => {}
                _ => return false,
            }
        }
        components.next().is_some()
    }
}

/// The characters up to the first wildcard.
fn literal<'a>(tokens: impl Iterator<Item = &'a Token>) -> String {
    tokens
        .map_while(|token| match token {
            Token::Char(char) => Some(*char),
            _ => None,
        })
        .collect()
}

/// The form of a pattern that needs no regular expression.
fn plain_form(tokens: &[Token]) -> Option<Form> {
    let whole = |tokens: &[Token]| {
        let text = literal(tokens.iter());
        (text.chars().count() == tokens.len()).then(|| text.into_bytes())
    };
    match tokens {
        [Token::Star, Token::Star, rest @ ..] => whole(rest).map(Form::Suffix),
        [rest @ .., Token::Star, Token::Star] => whole(rest).map(Form::Prefix),
        _ => whole(tokens).map(Form::Exact),
    }
}

/// `**/` is any number of directories, none included; `**` at the end is anything.
fn regex(tokens: &[Token]) -> String {
    let mut out = String::from(r"\A");
    let mut rest = tokens;
    let mut buffer = [0; 4];
    while let Some((token, after)) = rest.split_first() {
        rest = after;
        match token {
            Token::Star if rest.first() == Some(&Token::Star) => {
                rest = &rest[1..];
                if rest.first() == Some(&Token::Char('/')) {
                    rest = &rest[1..];
                }
                out.push_str(if rest.is_empty() { "(?s-u:.*)" } else { "(?:(?s-u:.*)/)?" });
            }
            Token::Star => out.push_str("(?-u:[^/])*"),
            Token::AnyChar => out.push_str("[^/]"),
            Token::Char(char) => out.push_str(&regex::escape(char.encode_utf8(&mut buffer))),
            Token::Class { negated, ranges } => {
                let ranges: Vec<_> = ranges.iter().filter(|(low, high)| low <= high).collect();
                match (ranges.is_empty(), negated) {
                    // Only ranges like `z-a`, which hold nothing.
                    (true, true) => out.push_str("(?s:.)"),
                    (true, false) => out.push_str(r"[^\x00-\x{10FFFF}]"),
                    (false, _) => {
                        out.push_str(if *negated { "[^" } else { "[" });
                        for (low, high) in ranges {
                            let (low, high) = (u32::from(*low), u32::from(*high));
                            out.push_str(&format!(r"\x{{{low:X}}}-\x{{{high:X}}}"));
                        }
                        out.push(']');
                    }
                }
            }
        }
    }
    out.push_str(r"\z");
    out
}
