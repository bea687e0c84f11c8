//! Text → [`Dockerfile`]: the loop over logical lines, and each instruction's grammar.

mod commands;

use crate::dockerfile::directives;
use crate::dockerfile::directives::Check;
use crate::dockerfile::error::Error;
use crate::dockerfile::flags;
use crate::dockerfile::flags::Flags;
use crate::dockerfile::flags::Kind;
use crate::dockerfile::heredoc;
use crate::dockerfile::heredoc::Found;
use crate::dockerfile::instruction::ArgDeclaration;
use crate::dockerfile::instruction::Command;
use crate::dockerfile::instruction::Dockerfile;
use crate::dockerfile::instruction::From;
use crate::dockerfile::instruction::Instruction;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Word;
use crate::dockerfile::lines;
use crate::dockerfile::lines::Lines;
use crate::dockerfile::lines::Logical;
use crate::dockerfile::lines::Text;
use crate::dockerfile::lint;
use crate::dockerfile::suggest;
use crate::dockerfile::words;
use std::ops::Range;

/// Every instruction, as it is written in messages.
const INSTRUCTIONS: [&str; 18] = [
    "FROM",
    "ARG",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "LABEL",
    "WORKDIR",
    "USER",
    "EXPOSE",
    "VOLUME",
    "STOPSIGNAL",
    "SHELL",
    "CMD",
    "ENTRYPOINT",
    "HEALTHCHECK",
    "ONBUILD",
    "MAINTAINER",
];

/// Reads a Dockerfile; messages call it `name`.
///
/// The text must be UTF-8 without NUL bytes, hold at least one FROM, and nothing
/// but ARG before it. The first fault is returned, with its place.
pub fn parse(name: &str, text: &[u8]) -> Result<Dockerfile, Error> {
    parse_with(name, text, Overrides::default())
}

/// What is said outside of a Dockerfile in place of its own directives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// `# check=`. Comments above single instructions still count.
    pub check: Option<Check>,
    /// `# syntax=`: given, and known, so the file's own doesn't matter.
    pub syntax: bool,
}

/// Like [`parse`], with `overrides` in place of what the file's own directives say.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_with(name: &str, text: &[u8], overrides: Overrides) -> Result<Dockerfile, Error> {
    let text = decode(name, text)?;
    let source = Text { name, text };
    let directives = directives::read(source, overrides.syntax)?;
    let parser = Parser { source, escape: directives.escape };
    let mut check = overrides.check.unwrap_or(directives.check);
    let mut lint = lint::Findings::default();
    let mut instructions: Vec<Instruction> = Vec::new();
    let mut lines = Lines::new(source);
    let mut scope: Option<Check> = None;
    let mut staged = false;
    while let Some(range) = lines.take()? {
        let physical = &text[range.clone()];
        let Some(line) = lines::logical(&mut lines, range.clone(), parser.escape)? else {
            if range.start >= directives.end && lines::is_comment(physical) {
                scope = scoped_check(physical).or(scope);
            } else {
                scope = None;
            }
            continue;
        };
        let (instruction, line) = parser.instruction(line, &mut lines)?;
        if let Some(scope) = scope.take() {
            check.scoped.push((instruction.span, scope.skip));
        }
        staged |= matches!(instruction.kind, InstructionKind::From(_));
        if !staged && !matches!(instruction.kind, InstructionKind::Arg(_)) {
            let word = line.text.split(words::is_blank).next().unwrap_or_default();
            return Err(source
                .error(parser.first_word(&line), format!("{word} stands before the first FROM"))
                .with_hint("only ARG may come before FROM"));
        }
        lint.instruction(text, &instruction, &line);
        instructions.push(instruction);
    }
    let end = Span { start: 0, end: 0 };
    if instructions.is_empty() {
        return Err(source
            .error(end, "file has no instructions")
            .with_hint("start a stage with FROM, for example `FROM scratch`"));
    }
    if !staged {
        return Err(source
            .error(end, "file has no FROM, so there is nothing to build")
            .with_hint("start a stage with FROM, for example `FROM scratch`"));
    }
    let warnings = lint.finish(&instructions, &check);
    Ok(Dockerfile {
        name: name.to_owned(),
        text: text.to_owned(),
        escape: parser.escape,
        instructions,
        warnings,
        check,
    })
}

/// Reads the text of a trigger out of an image config: exactly one instruction,
/// with its heredoc bodies, that is none of FROM, MAINTAINER and ONBUILD.
///
/// Its spans are offsets in `text`; the escape character is `\`.
pub fn parse_trigger(text: &str) -> Result<Instruction, Error> {
    let name = "ONBUILD";
    let source = Text { name, text: decode(name, text.as_bytes())? };
    let parser = Parser { source, escape: directives::read(source, false)?.escape };
    let mut lines = Lines::new(source);
    let mut found: Option<Instruction> = None;
    while let Some(range) = lines.take()? {
        let Some(line) = lines::logical(&mut lines, range, parser.escape)? else { continue };
        let word = parser.first_word(&line);
        let (instruction, _) = parser.instruction(line, &mut lines)?;
        check_trigger(source, word, &instruction)?;
        if found.replace(instruction).is_some() {
            return Err(source.error(word, "a trigger is a single instruction"));
        }
    }
    found.ok_or_else(|| source.error(Span::default(), "the trigger is empty"))
}

fn decode<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, Error> {
    let fault = |offset: usize, what: &str| {
        let shown = String::from_utf8_lossy(&bytes[..offset]);
        let span = Span { start: shown.len(), end: shown.len() };
        Error::in_text(name, &shown, span, what)
            .with_hint("is this a Dockerfile? it must be plain UTF-8 text")
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| fault(error.valid_up_to(), "file is not valid UTF-8"))?;
    match text.find('\0') {
        Some(offset) => Err(fault(offset, "file holds a NUL byte")),
        None => Ok(text),
    }
}

/// `# check=skip=Rule` right above an instruction.
fn scoped_check(comment: &str) -> Option<Check> {
    let body = comment.trim().strip_prefix('#')?.trim();
    let (key, value) = body.split_once('=')?;
    key.trim().eq_ignore_ascii_case("check").then(|| Check::parse(value).ok()).flatten()
}

fn check_trigger(source: Text<'_>, word: Span, trigger: &Instruction) -> Result<(), Error> {
    match trigger.kind {
        InstructionKind::Onbuild { .. } => {
            Err(source.error(word, "ONBUILD can't trigger another ONBUILD"))
        }
        InstructionKind::From(_) => Err(source.error(word, "FROM can't be an ONBUILD trigger")),
        InstructionKind::Maintainer(_) => {
            Err(source.error(word, "MAINTAINER can't be an ONBUILD trigger"))
        }
        _ => Ok(()),
    }
}

/// An instruction cut into its word, flags and arguments.
struct Head {
    /// Upper case.
    keyword: String,
    /// From the keyword to the end of the line.
    whole: Range<usize>,
    /// The keyword as written.
    word: Range<usize>,
    flags: Vec<flags::Raw>,
    arguments: Range<usize>,
}

struct Parser<'a> {
    source: Text<'a>,
    escape: char,
}

impl Parser<'_> {
    fn first_word(&self, line: &Logical) -> Span {
        line.span(&self.head(line, 0..line.text.len()).word)
    }

    fn head(&self, line: &Logical, range: Range<usize>) -> Head {
        let whole = words::trimmed(&line.text, range);
        let (word, rest) = words::first(&line.text, whole.clone());
        let rest = rest.unwrap_or(whole.end..whole.end);
        let (flags, arguments) = flags::take(&line.text, rest);
        let arguments = words::trimmed(&line.text, arguments);
        let keyword = line.text[word.clone()].to_ascii_uppercase();
        Head { keyword, whole, word, flags, arguments }
    }

    /// Reads one instruction, and from `lines` the heredoc bodies below it.
    fn instruction(
        &self,
        mut line: Logical,
        lines: &mut Lines<'_>,
    ) -> Result<(Instruction, Logical), Error> {
        let head = self.head(&line, 0..line.text.len());
        let inner = (head.keyword == "ONBUILD").then(|| self.head(&line, head.arguments.clone()));
        let acting = inner.as_ref().unwrap_or(&head);
        let may_have_heredocs = matches!(acting.keyword.as_str(), "RUN" | "COPY" | "ADD")
            && self.json(&line, &acting.arguments)?.is_none();
        let found = if may_have_heredocs {
            heredoc::read(self.source, &mut line, lines)?
        } else {
            Vec::new()
        };
        let instruction = match inner {
            Some(inner) => self.onbuild(&line, &head, inner, found)?,
            None => self.plain(&line, head, found)?,
        };
        Ok((instruction, line))
    }

    fn onbuild(
        &self,
        line: &Logical,
        head: &Head,
        inner: Head,
        found: Vec<Found>,
    ) -> Result<Instruction, Error> {
        self.flags(line, head, &[])?;
        if head.arguments.is_empty() {
            return Err(self.at_least_one(line, head));
        }
        // Blanks at the end of the line are part of what BuildKit stores.
        let mut text = line.text[head.arguments.start..].to_owned();
        for Found { heredoc, .. } in &found {
            text.push('\n');
            text.push_str(&self.source.text[heredoc.span.start..heredoc.span.end]);
            text.push_str(&heredoc.name);
        }
        let word = line.span(&inner.word);
        if inner.keyword == "ONBUILD" {
            return Err(self.source.error(word, "ONBUILD can't trigger another ONBUILD"));
        }
        let trigger = Box::new(self.plain(line, inner, found)?);
        check_trigger(self.source, word, &trigger)?;
        Ok(Instruction {
            span: line.span,
            source: line.text[head.whole.clone()].to_owned(),
            kind: InstructionKind::Onbuild { text, trigger },
        })
    }

    /// Any instruction but ONBUILD.
    fn plain(&self, line: &Logical, head: Head, found: Vec<Found>) -> Result<Instruction, Error> {
        let kind = match head.keyword.as_str() {
            "FROM" => InstructionKind::From(self.from(line, &head)?),
            "ARG" => InstructionKind::Arg(self.arg(line, &head)?),
            "RUN" => InstructionKind::Run(self.run(line, &head, found)?),
            "COPY" => InstructionKind::Copy(self.copy(line, &head, found)?),
            "ADD" => InstructionKind::Add(self.copy(line, &head, found)?),
            "ENV" => InstructionKind::Env(self.pairs(line, &head)?),
            "LABEL" => InstructionKind::Label(self.pairs(line, &head)?),
            "WORKDIR" => InstructionKind::Workdir(self.rest(line, &head)?),
            "USER" => InstructionKind::User(self.rest(line, &head)?),
            "STOPSIGNAL" => InstructionKind::StopSignal(self.rest(line, &head)?),
            "MAINTAINER" => InstructionKind::Maintainer(self.rest(line, &head)?.text),
            "EXPOSE" => {
                self.flags(line, &head, &[])?;
                let ports = words::blank_separated(&line.text, head.arguments.clone());
                if ports.is_empty() {
                    return Err(self.at_least_one(line, &head));
                }
                InstructionKind::Expose(ports.iter().map(|range| word(line, range)).collect())
            }
            "VOLUME" => InstructionKind::Volume(self.volume(line, &head)?),
            "SHELL" => InstructionKind::Shell(self.shell(line, &head)?),
            "CMD" => {
                self.flags(line, &head, &[])?;
                InstructionKind::Cmd(self.command(line, &head.arguments)?)
            }
            "ENTRYPOINT" => {
                self.flags(line, &head, &[])?;
                InstructionKind::Entrypoint(self.command(line, &head.arguments)?)
            }
            "HEALTHCHECK" => InstructionKind::Healthcheck(self.healthcheck(line, &head)?),
            _ => return Err(self.unknown(line, &head)),
        };
        let source = line.text[head.whole.clone()].to_owned();
        let start = line.span(&head.whole).start;
        Ok(Instruction { span: Span { start, end: line.span.end }, source, kind })
    }

    fn unknown(&self, line: &Logical, head: &Head) -> Error {
        let word = &line.text[head.word.clone()];
        if word.is_empty() {
            return self.source.error(line.span, "no instruction follows the line continuation");
        }
        let shown: String = word.chars().take(40).collect();
        let error =
            self.source.error(line.span(&head.word), format!("unknown instruction `{shown}`"));
        match suggest::nearest(word, &INSTRUCTIONS) {
            Some(near) => error.with_hint(format!("did you mean {near}?")),
            None => error,
        }
    }

    fn flags(
        &self,
        line: &Logical,
        head: &Head,
        known: &[(&'static str, Kind)],
    ) -> Result<Flags, Error> {
        Flags::check(self.source, line, &head.keyword, &head.flags, known)
    }

    fn error(&self, line: &Logical, range: &Range<usize>, message: impl Into<String>) -> Error {
        self.source.error(line.span(range), message)
    }

    fn at_least_one(&self, line: &Logical, head: &Head) -> Error {
        let message = format!("{} requires at least one argument", head.keyword);
        self.error(line, &head.word, message)
    }

    fn json(
        &self,
        line: &Logical,
        range: &Range<usize>,
    ) -> Result<Option<words::JsonWords>, Error> {
        words::json(&line.text, range.clone()).map_err(|words::NotStrings| {
            self.error(line, range, "the members of a JSON array must be strings")
                .with_hint("put every argument in double quotes")
        })
    }

    fn command(&self, line: &Logical, range: &Range<usize>) -> Result<Command, Error> {
        Ok(match self.json(line, range)? {
            Some(words) => Command::Exec(words.into_iter().map(|(word, _)| word).collect()),
            None => Command::Shell(line.text[range.clone()].to_owned()),
        })
    }

    /// The whole rest of the line as one argument.
    fn rest(&self, line: &Logical, head: &Head) -> Result<Word, Error> {
        self.flags(line, head, &[])?;
        if head.arguments.is_empty() {
            let message = format!("{} requires exactly one argument", head.keyword);
            return Err(self.error(line, &head.word, message));
        }
        Ok(word(line, &head.arguments))
    }

    fn from(&self, line: &Logical, head: &Head) -> Result<From, Error> {
        let flags = self.flags(line, head, &[("platform", Kind::Value)])?;
        let words = words::blank_separated(&line.text, head.arguments.clone());
        let (image, name) = match words.as_slice() {
            [image] => (image, None),
            [image, keyword, name] if line.text[keyword.clone()].eq_ignore_ascii_case("as") => {
                (image, Some(name))
            }
            _ => {
                let range = if words.is_empty() { &head.word } else { &head.arguments };
                return Err(self
                    .error(line, range, "FROM requires either one or three arguments")
                    .with_hint("write FROM IMAGE or FROM IMAGE AS NAME"));
            }
        };
        let name = match name {
            None => None,
            Some(range) => {
                let name = line.text[range.clone()].to_lowercase();
                let rest = name.strip_prefix(|char: char| char.is_ascii_lowercase());
                let valid = rest.is_some_and(|rest| {
                    rest.bytes()
                        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
                });
                if !valid {
                    let message =
                        format!("invalid name for a build stage: `{}`", &line.text[range.clone()]);
                    return Err(self.error(line, range, message).with_hint(
                        "it starts with a letter; letters, digits, `-`, `_` and `.` may follow",
                    ));
                }
                Some(name)
            }
        };
        Ok(From { image: word(line, image), platform: flags.value("platform"), name })
    }

    fn arg(&self, line: &Logical, head: &Head) -> Result<Vec<ArgDeclaration>, Error> {
        self.flags(line, head, &[])?;
        let words = words::quoted(&line.text, head.arguments.clone(), self.escape);
        if words.is_empty() {
            return Err(self.at_least_one(line, head));
        }
        let declare = |range: &Range<usize>| {
            let (name, value) = split_at_equals(&line.text, range);
            if name.is_empty() {
                return Err(self.error(line, range, "the name of an ARG can't be blank"));
            }
            let default = value.map(|value| word(line, &value));
            Ok(ArgDeclaration { name: word(line, &name), default })
        };
        words.iter().map(declare).collect()
    }

    fn pairs(&self, line: &Logical, head: &Head) -> Result<Vec<(Word, Word)>, Error> {
        self.flags(line, head, &[])?;
        let words = words::quoted(&line.text, head.arguments.clone(), self.escape);
        let Some(first) = words.first() else {
            return Err(self.at_least_one(line, head));
        };
        if !line.text[first.clone()].contains('=') {
            let (key, value) = words::first(&line.text, head.arguments.clone());
            let Some(value) = value else {
                return Err(self
                    .error(line, &key, format!("{} must have two arguments", head.keyword))
                    .with_hint(format!("write {} KEY=VALUE", head.keyword)));
            };
            return Ok(vec![(word(line, &key), word(line, &value))]);
        }
        let pair = |range: &Range<usize>| match split_at_equals(&line.text, range) {
            (name, _) if name.is_empty() => {
                Err(self.error(line, range, format!("{} names can't be blank", head.keyword)))
            }
            (name, Some(value)) => Ok((word(line, &name), word(line, &value))),
            (name, None) => {
                let message = format!("no `=` in `{}`", &line.text[name]);
                Err(self
                    .error(line, range, message)
                    .with_hint("write KEY=VALUE; quote values that hold blanks"))
            }
        };
        words.iter().map(pair).collect()
    }

    fn volume(&self, line: &Logical, head: &Head) -> Result<Vec<Word>, Error> {
        self.flags(line, head, &[])?;
        let volumes: Vec<Word> = match self.json(line, &head.arguments)? {
            Some(words) => words
                .into_iter()
                .map(|(text, range)| Word { text: text.trim().to_owned(), span: line.span(&range) })
                .collect(),
            None => words::blank_separated(&line.text, head.arguments.clone())
                .iter()
                .map(|range| word(line, range))
                .collect(),
        };
        if volumes.is_empty() {
            return Err(self.at_least_one(line, head));
        }
        match volumes.iter().find(|volume| volume.text.is_empty()) {
            Some(volume) => Err(self.source.error(volume.span, "a VOLUME can't be empty")),
            None => Ok(volumes),
        }
    }

    fn shell(&self, line: &Logical, head: &Head) -> Result<Vec<String>, Error> {
        self.flags(line, head, &[])?;
        if head.arguments.is_empty() {
            return Err(self.at_least_one(line, head));
        }
        match self.command(line, &head.arguments)? {
            Command::Exec(words) if words.is_empty() => Err(self.at_least_one(line, head)),
            Command::Exec(words) => Ok(words),
            Command::Shell(_) => Err(self
                .error(line, &head.arguments, "SHELL requires its arguments in JSON form")
                .with_hint("for example SHELL [\"/bin/bash\", \"-c\"]")),
        }
    }
}

fn word(line: &Logical, range: &Range<usize>) -> Word {
    Word { text: line.text[range.clone()].to_owned(), span: line.span(range) }
}

/// Cuts `NAME=VALUE` at its first `=`.
fn split_at_equals(text: &str, range: &Range<usize>) -> (Range<usize>, Option<Range<usize>>) {
    match text[range.clone()].find('=') {
        None => (range.clone(), None),
        Some(offset) => {
            let equals = range.start + offset;
            (range.start..equals, Some(equals + 1..range.end))
        }
    }
}

#[cfg(test)]
mod printed;
#[cfg(test)]
mod tests;
