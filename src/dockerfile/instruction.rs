//! The typed instructions of a Dockerfile, not yet expanded.
//!
//! Values that variable expansion applies to are [`Word`]s: the raw text with
//! quotes and escapes still in it, and where it stands. Expansion happens in
//! `plan`, when the environment of the stage is known.

use std::borrow::Cow;

use crate::dockerfile::directives::Check;

/// A half-open range of bytes in the Dockerfile's text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
}

/// A piece of text as written, with its place.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Word {
    /// Raw text: quotes, escapes and variables untouched.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// A parsed Dockerfile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dockerfile {
    /// File name as shown in messages.
    pub name: String,
    /// The whole text, as read (spans index into it).
    pub text: String,
    /// The escape character: `\` or a backtick.
    pub escape: char,
    /// The instructions in order; the first that is no ARG is a FROM.
    pub instructions: Vec<Instruction>,
    /// What is legal but doubtful.
    pub warnings: Vec<Warning>,
    /// Which lint rules are wanted (`# check=`).
    pub check: Check,
}

/// A lint finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// Name of the rule, as BuildKit calls it: `NoEmptyContinuation`.
    pub rule: &'static str,
    /// What is doubtful.
    pub message: String,
    /// Where.
    pub span: Span,
}

/// One instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// The whole instruction, heredoc bodies included.
    pub span: Span,
    /// Its text on one logical line: continuations joined, comments removed,
    /// flags kept, heredoc bodies left out. ONBUILD stores this; history is made of it.
    pub source: String,
    /// What it says.
    pub kind: InstructionKind,
}

/// What an instruction says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InstructionKind {
    /// `FROM [--platform=P] IMAGE [AS NAME]`
    From(From),
    /// `ARG NAME[=DEFAULT] …`
    Arg(Vec<ArgDeclaration>),
    /// `RUN [flags] COMMAND`
    Run(Run),
    /// `COPY [flags] SOURCE… DESTINATION`
    Copy(Copy),
    /// `ADD [flags] SOURCE… DESTINATION`
    Add(Copy),
    /// `ENV KEY=VALUE …` or the legacy `ENV KEY VALUE`
    Env(Vec<(Word, Word)>),
    /// `LABEL KEY=VALUE …` or the legacy `LABEL KEY VALUE`
    Label(Vec<(Word, Word)>),
    /// `WORKDIR PATH`
    Workdir(Word),
    /// `USER NAME[:GROUP]`
    User(Word),
    /// `EXPOSE PORT[/PROTOCOL] …`
    Expose(Vec<Word>),
    /// `VOLUME PATH …` or its JSON form
    Volume(Vec<Word>),
    /// `STOPSIGNAL SIGNAL`
    StopSignal(Word),
    /// `SHELL ["program", "argument"]`
    Shell(Vec<String>),
    /// `CMD`
    Cmd(Command),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `ONBUILD INSTRUCTION`: the trigger's text, and the trigger parsed (it is
    /// valid by itself; a heredoc's bodies are part of the text).
    Onbuild {
        /// Text as the image config stores it.
        text: String,
        /// The same, parsed.
        trigger: Box<Instruction>,
    },
    /// `MAINTAINER NAME`
    Maintainer(String),
}

/// `FROM`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct From {
    /// Image, earlier stage, or `scratch`.
    pub image: Word,
    /// `--platform`.
    pub platform: Option<Word>,
    /// Stage name, lower-cased.
    pub name: Option<String>,
}

/// One `NAME[=DEFAULT]` of an ARG.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArgDeclaration {
    /// Name, and where it stands.
    pub name: Word,
    /// Default; `Some("")` for `ARG X=`.
    pub default: Option<Word>,
}

/// A command in one of its two forms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// `["program", "argument"]`: run as it is.
    Exec(Vec<String>),
    /// Text for the stage's SHELL. Continuations are joined; for a RUN with
    /// heredocs see [`Run::heredocs`].
    Shell(String),
}

/// A here-document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heredoc {
    /// Its word without quotes: the file name for COPY and ADD.
    pub name: String,
    /// Whether variables in the body are expanded (the word had no quotes).
    pub expand: bool,
    /// `<<-`: leading tabs are no part of the content.
    pub chomp: bool,
    /// File descriptor before `<<`, 0 if none was given.
    pub descriptor: u32,
    /// The body as written, each line with its newline.
    pub body: String,
    /// Where the body stands.
    pub span: Span,
}

impl Heredoc {
    /// What the body means: without the leading tabs of `<<-`.
    pub fn content(&self) -> Cow<'_, str> {
        if !self.chomp {
            return Cow::Borrowed(&self.body);
        }
        self.body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// `RUN`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// The command line; with heredocs, its first line (`cat <<EOF > /x`, or just
    /// `<<EOF` for a lone heredoc).
    pub command: Command,
    /// Bodies in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount` values, raw: comma-separated `key=value` fields.
    pub mounts: Vec<Word>,
    /// `--network`.
    pub network: Option<Word>,
    /// `--security`.
    pub security: Option<Word>,
}

/// Where COPY and ADD take a file from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A path, pattern or (ADD) address.
    Path(Word),
    /// A heredoc: a file made on the spot.
    Heredoc(Heredoc),
}

/// `COPY` and `ADD`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Sources in order, at least one.
    pub sources: Vec<Source>,
    /// Destination.
    pub destination: Word,
    /// `--from` (COPY only).
    pub from: Option<Word>,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--parents` (COPY only).
    pub parents: bool,
    /// `--exclude`, in order.
    pub exclude: Vec<Word>,
    /// `--checksum` (ADD only).
    pub checksum: Option<Word>,
    /// `--keep-git-dir` (ADD only).
    pub keep_git_dir: bool,
    /// `--unpack` (ADD only); `None` if not given.
    pub unpack: Option<bool>,
}

/// `HEALTHCHECK`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`
    None,
    /// `HEALTHCHECK [flags] CMD …`; durations in nanoseconds, 0 if not given.
    Check {
        /// The probe.
        command: Command,
        /// `--interval`
        interval: i64,
        /// `--timeout`
        timeout: i64,
        /// `--start-period`
        start_period: i64,
        /// `--start-interval`
        start_interval: i64,
        /// `--retries`, 0 if not given.
        retries: u32,
    },
}
