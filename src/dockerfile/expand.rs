//! Variable expansion: `$NAME`, `${NAME:-word}` and their kin, with quote removal.
//!
//! What a word means depends on the stage, so the parser keeps words raw and
//! `plan` expands them here. The rules are BuildKit's, not a shell's: there is no
//! command substitution, no word splitting (but see [`expand_words`]), and only
//! the modifiers listed at [`expand`].
//!
//! Time and memory are linear in the text and the result; nesting is limited to
//! [`MAX_DEPTH`], so that no text can exhaust the stack.

mod pattern;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::ops::Range;

/// How deep `${A:-${B:-…}}` may nest: far above anything written by hand, far
/// below what the stack of a thread carries.
pub const MAX_DEPTH: usize = 100;

/// Where the values of variables come from.
pub trait Variables {
    /// Value of `name`; `None` if it isn't set.
    fn get(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Variables for F {
    fn get(&self, name: &str) -> Option<String> {
        self(name)
    }
}

impl Variables for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned()
    }
}

impl Variables for HashMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        HashMap::get(self, name).cloned()
    }
}

/// An expanded text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expanded {
    /// The text with variables replaced and (except in heredocs) quotes removed.
    pub value: String,
    /// Names that were asked for and not set, each once, in order of their use.
    pub undefined: Vec<String>,
}

/// Why a text can't be expanded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExpandError {
    /// A quote that is never closed.
    #[error("missing closing {0}")]
    UnclosedQuote(char),
    /// `${` without its `}`.
    #[error("missing `}}` of `${{`")]
    MissingBrace,
    /// `${NAME/pattern` without the second slash.
    #[error("missing second `/` in `${{{0}/…}}`")]
    MissingSlash(String),
    /// `${}`, `${:…}`, `${{…}`.
    #[error("bad substitution: `${{` must be followed by a variable name")]
    BadSubstitution,
    /// A modifier that shells may know and Dockerfiles don't.
    #[error("unsupported modifier `{modifier}` in `${{{name}{modifier}…}}`")]
    UnsupportedModifier {
        /// The variable.
        name: String,
        /// What follows its name.
        modifier: String,
    },
    /// `${NAME?message}` or `${NAME:?message}` of a variable that isn't set (or is empty).
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message, its variables expanded.
        message: String,
    },
    /// A pattern in `#`, `%` or `/` that can't be read.
    #[error("invalid pattern `{pattern}` in substitution: {reason}")]
    BadPattern {
        /// The pattern, its variables expanded.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Substitutions nested deeper than [`MAX_DEPTH`].
    #[error("substitutions are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// Expands `text` and removes its quotes.
///
/// Known forms: `$n`, `${n}`, `${n-w}`, `${n+w}`, `${n?w}` and the same with `:`
/// (empty counts as unset), `${n#p}`, `${n##p}`, `${n%p}`, `${n%%p}`, `${n/p/r}`,
/// `${n//p/r}`. `escape` is the file's escape character.
///
/// Fails on any other modifier, on open quotes and braces, and on `?` of an unset
/// variable.
pub fn expand(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<Expanded, ExpandError> {
    let mut lexer = Lexer::new(text, Options { escape, ..Options::default() }, variables);
    let value = lexer.until(None, false, None)?;
    Ok(Expanded { value, undefined: lexer.undefined.in_order })
}

/// Expands `text` and splits the result at unquoted blanks, those out of variables
/// included. Empty words vanish. Only EXPOSE does this.
pub fn expand_words(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<Vec<String>, ExpandError> {
    let options = Options { escape, ..Options::default() };
    let words = lex_words(text, options, variables)?;
    Ok(words.into_iter().map(|(word, _)| word).collect())
}

/// Expands the body of a here-document: quotes are ordinary characters, and the
/// escape character is `\` whatever the file says. A backslash vanishes and
/// protects what follows it, also where a shell would keep it.
pub fn expand_heredoc(text: &str, variables: &dyn Variables) -> Result<Expanded, ExpandError> {
    let options = Options { quotes: false, ..Options::default() };
    let mut lexer = Lexer::new(text, options, variables);
    let value = lexer.until(None, false, None)?;
    Ok(Expanded { value, undefined: lexer.undefined.in_order })
}

/// Splits `text` into words with the range of `text` each came from.
pub(super) fn lex_words(
    text: &str,
    options: Options,
    variables: &dyn Variables,
) -> Result<Vec<(String, Range<usize>)>, ExpandError> {
    let mut words = Words::default();
    Lexer::new(text, options, variables).until(None, options.raw_escapes, Some(&mut words))?;
    words.end();
    Ok(words.done)
}

/// How the lexer treats what is no variable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// The escape character.
    pub(super) escape: char,
    /// Quotes mean something.
    pub(super) quotes: bool,
    /// Quotes stay in the result.
    pub(super) raw_quotes: bool,
    /// Escape characters stay in the result.
    pub(super) raw_escapes: bool,
    /// References to unset variables stay as they are.
    pub(super) keep_unset: bool,
    /// `<<` swallows the blanks after it, so that `<< EOF` is one word.
    pub(super) heredocs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            escape: '\\',
            quotes: true,
            raw_quotes: false,
            raw_escapes: false,
            keep_unset: false,
            heredocs: false,
        }
    }
}

#[derive(Default)]
struct Undefined {
    in_order: Vec<String>,
    seen: HashSet<String>,
}

/// Words as they grow; `range` is where in the source the current one stands.
#[derive(Default)]
struct Words {
    done: Vec<(String, Range<usize>)>,
    word: String,
    range: Range<usize>,
    inside: bool,
}

impl Words {
    fn add(&mut self, char: char, at: &Range<usize>) {
        if !char.is_whitespace() {
            self.begin(at);
            self.word.push(char);
        } else if self.inside && !self.word.is_empty() {
            self.end();
        }
    }

    fn add_raw(&mut self, text: &str, at: &Range<usize>) {
        self.begin(at);
        self.word.push_str(text);
    }

    fn begin(&mut self, at: &Range<usize>) {
        if self.inside {
            self.range.end = at.end;
        } else {
            self.range = at.clone();
        }
        self.inside = true;
    }

    fn end(&mut self) {
        if !self.word.is_empty() {
            self.done.push((std::mem::take(&mut self.word), self.range.clone()));
        }
        self.inside = false;
    }
}

struct Lexer<'a> {
    text: &'a str,
    /// Offset of the next character in `text`.
    at: usize,
    options: Options,
    variables: &'a dyn Variables,
    undefined: Undefined,
    /// Escape characters stay: not an option, because it changes inside patterns.
    raw_escapes: bool,
    depth: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, options: Options, variables: &'a dyn Variables) -> Self {
        let raw_escapes = options.raw_escapes;
        let undefined = Undefined::default();
        Self { text, at: 0, options, variables, undefined, raw_escapes, depth: 0 }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let char = self.peek()?;
        self.at += char.len_utf8();
        Some(char)
    }

    fn look_up(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name);
        if value.is_none() && self.undefined.seen.insert(name.to_owned()) {
            self.undefined.in_order.push(name.to_owned());
        }
        value
    }

    /// Reads to `stop` (and past it), or to the end of the text if there is none.
    fn until(
        &mut self,
        stop: Option<char>,
        raw_escapes: bool,
        words: Option<&mut Words>,
    ) -> Result<String, ExpandError> {
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop, words);
        self.raw_escapes = before;
        result
    }

    fn until_inner(
        &mut self,
        stop: Option<char>,
        mut words: Option<&mut Words>,
    ) -> Result<String, ExpandError> {
        let mut result = String::new();
        while let Some(char) = self.peek() {
            let start = self.at;
            if stop == Some(char) {
                self.next();
                return Ok(result);
            }
            let (piece, splits) = match char {
                '$' => (self.dollar()?, true),
                '\'' if self.options.quotes => (self.single_quoted()?, false),
                '"' if self.options.quotes => (self.double_quoted()?, false),
                '<' if self.options.heredocs => (self.maybe_heredoc(), false),
                _ => {
                    self.next();
                    if char != self.options.escape {
                        if let Some(words) = words.as_deref_mut() {
                            words.add(char, &(start..self.at));
                        }
                        result.push(char);
                        continue;
                    }
                    let mut piece = String::new();
                    if self.raw_escapes {
                        piece.push(char);
                    }
                    // An escape character at the very end vanishes.
                    piece.extend(self.next());
                    if piece.is_empty() {
                        continue;
                    }
                    (piece, false)
                }
            };
            if let Some(words) = words.as_deref_mut() {
                let at = start..self.at;
                if splits {
                    piece.chars().for_each(|char| words.add(char, &at));
                } else {
                    words.add_raw(&piece, &at);
                }
            }
            result.push_str(&piece);
        }
        match stop {
            None => Ok(result),
            Some(_) => Err(ExpandError::MissingBrace),
        }
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let mut result = String::new();
        self.next();
        let rest = &self.text[self.at..];
        let length = rest.find('\'').ok_or(ExpandError::UnclosedQuote('\''))?;
        if self.options.raw_quotes {
            result.push('\'');
        }
        result.push_str(&rest[..length]);
        if self.options.raw_quotes {
            result.push('\'');
        }
        self.at += length + 1;
        Ok(result)
    }

    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        let mut result = String::new();
        let escape = self.options.escape;
        self.next();
        if self.options.raw_quotes {
            result.push('"');
        }
        loop {
            match self.peek().ok_or(ExpandError::UnclosedQuote('"'))? {
                '"' => {
                    self.next();
                    if self.options.raw_quotes {
                        result.push('"');
                    }
                    return Ok(result);
                }
                '$' => result.push_str(&self.dollar()?),
                char => {
                    self.next();
                    let mut kept = char;
                    if char == escape {
                        if self.raw_escapes {
                            result.push(char);
                        }
                        match self.peek() {
                            None => continue,
                            Some(next) if next == '"' || next == '$' || next == escape => {
                                self.next();
                                kept = next;
                            }
                            Some(_) => {}
                        }
                    }
                    result.push(kept);
                }
            }
        }
    }

    fn maybe_heredoc(&mut self) -> String {
        let start = self.at;
        self.next();
        if self.peek() == Some('<') {
            self.next();
            while self.peek().is_some_and(char::is_whitespace) {
                self.next();
            }
        }
        self.text[start..self.at].to_owned()
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        if self.depth >= MAX_DEPTH {
            return Err(ExpandError::TooDeep);
        }
        self.depth += 1;
        let result = self.substitution();
        self.depth -= 1;
        result
    }

    fn substitution(&mut self) -> Result<String, ExpandError> {
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.look_up(name) {
                Some(value) => value,
                None if self.options.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.next();
        match self.peek() {
            None => return Err(ExpandError::MissingBrace),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let modifier_at = self.at;
        let first = self.next().ok_or(ExpandError::MissingBrace)?;
        let (colon, operator) = match first {
            '}' => {
                return Ok(match self.look_up(name) {
                    Some(value) => value,
                    None if self.options.keep_unset => format!("${{{name}}}"),
                    None => String::new(),
                });
            }
            ':' => (true, self.next().ok_or(ExpandError::MissingBrace)?),
            other => (false, other),
        };
        let modifier = &self.text[modifier_at..self.at];
        let unsupported = || ExpandError::UnsupportedModifier {
            name: name.to_owned(),
            modifier: modifier.to_owned(),
        };
        match operator {
            '/' if !colon => return self.replacement(name),
            '-' | '+' | '?' | '#' | '%' => {}
            // A whole line is also lexed to find here-documents in it; there the
            // shell may well know a `:` modifier that a Dockerfile doesn't.
            _ if colon && self.options.keep_unset => {}
            _ => return Err(unsupported()),
        }

        // The word is read, and must be sound, even when it isn't used.
        let word = self.until(Some('}'), matches!(operator, '#' | '%'), None)?;
        let value = self.look_up(name);
        if value.is_none() && self.options.keep_unset {
            return Ok(format!("${{{name}{modifier}{word}}}"));
        }
        let present = value.as_ref().is_some_and(|value| !(colon && value.is_empty()));
        match operator {
            '-' if present => Ok(value.unwrap_or_default()),
            '+' if !present => Ok(String::new()),
            '-' | '+' => Ok(word),
            '?' if present => Ok(value.unwrap_or_default()),
            '?' => {
                let default = match value {
                    None => "is not allowed to be unset",
                    Some(_) => "is not allowed to be empty",
                };
                let message = if word.is_empty() { default.to_owned() } else { word };
                Err(ExpandError::Required { name: name.to_owned(), message })
            }
            '#' | '%' if !colon => {
                let value = value.unwrap_or_default();
                let (greedy, pattern) = match word.strip_prefix(operator) {
                    Some(rest) => (true, rest),
                    None => (false, word.as_str()),
                };
                if operator == '#' {
                    pattern::trim_prefix(pattern, &value, greedy)
                } else {
                    pattern::trim_suffix(pattern, &value, greedy)
                }
            }
            _ => Err(unsupported()),
        }
    }

    fn replacement(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.until(Some('/'), true, None).map_err(|error| match error {
            ExpandError::MissingBrace => ExpandError::MissingSlash(name.to_owned()),
            other => other,
        })?;
        let replacement = self.until(Some('}'), true, None)?;
        let value = self.look_up(name);
        match value {
            None if self.options.keep_unset => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
            value => pattern::replace(&pattern, &value.unwrap_or_default(), &replacement, all),
        }
    }

    /// Reads a name: letters, digits and `_`; or a run of digits; or one of the
    /// shell's special parameters.
    fn name(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let length = match rest.chars().next() {
            Some(first) if first.is_ascii_digit() => {
                rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len())
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => {
                rest.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(rest.len())
            }
        };
        self.at += length;
        &rest[..length]
    }
}

#[cfg(test)]
mod tests;
