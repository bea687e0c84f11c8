//! SOURCE_DATE_EPOCH: a time, or what has one.
//!
//! As in BuildKit the name of a `--build-context` goes before that of a stage, and a
//! stage that gives its time holds one ADD of something remote, and ARGs.

use super::Action;
use super::Base;
use super::BaseState;
use super::Plan;
use super::Stage;
use super::declarations;
use super::named::NamedContext;
use super::step::CopySource;
use super::suggest;
use crate::dockerfile::Error;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Span;

/// Limits the times of an image.
pub const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What SOURCE_DATE_EPOCH says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Epoch {
    /// Seconds since 1970.
    At(i64),
    /// The time of something, if it has one.
    Of(Dated),
}

/// What may have a time: a repository that of its commit, a file behind a URL that of its
/// Last-Modified or of what it archives. A directory and an image have none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dated {
    /// The build context.
    Context,
    /// An image that a `--build-context` names.
    Image,
    /// The files that the `--build-context` of this name stands for.
    Files(String),
    /// What the one ADD of a stage fetches: [`CopySource::Http`] or [`CopySource::Git`].
    Source(CopySource),
}

impl Plan {
    /// What SOURCE_DATE_EPOCH says, a build argument before a global ARG.
    pub(super) fn epoch(&self) -> Result<Option<Epoch>, Error> {
        let given = self.build_args.get(SOURCE_DATE_EPOCH).map(String::as_str);
        let text = match given.or_else(|| self.globals.get(SOURCE_DATE_EPOCH)) {
            None | Some("") => return Ok(None),
            Some(text) => text,
        };
        if let Ok(seconds) = text.parse() {
            return Ok(Some(Epoch::At(seconds)));
        }
        let dated = if text == "context" {
            Dated::Context
        } else if let Some((name, context)) = self.contexts.find(text) {
            match context {
                NamedContext::Image(_) => Dated::Image,
                NamedContext::Files => Dated::Files(name.to_owned()),
            }
        } else if let Some(stage) = self.stages.iter().find(|stage| is_called(stage, text)) {
            Dated::Source(self.dated_source(stage, text)?)
        } else {
            return Err(self.unknown(text));
        };
        Ok(Some(Epoch::Of(dated)))
    }

    fn unknown(&self, text: &str) -> Error {
        let span = declarations(&self.dockerfile.instructions)
            .find(|(_, argument)| argument.name.text == SOURCE_DATE_EPOCH)
            .map_or_else(Span::default, |(instruction, _)| instruction.span);
        let stages = self.stages.iter().filter_map(|stage| stage.name.as_deref());
        let hint = suggest::hint(text, stages.chain(["context"]));
        let message = format!(
            "{SOURCE_DATE_EPOCH} is `{text}`: whole seconds since 1970, `context`, or the name \
             of a build context or of a stage are expected"
        );
        suggest::advise(Error::at(&self.dockerfile, span, message), hint)
    }

    /// What the ADD of `stage` fetches.
    fn dated_source(&self, stage: &Stage, name: &str) -> Result<CopySource, Error> {
        let fail = |span, what: &str| {
            Error::at(
                &self.dockerfile,
                span,
                format!(
                    "{SOURCE_DATE_EPOCH} is the stage `{name}`, which has no time: {what}; FROM \
                     scratch and one ADD of a URL or a repository are expected, and nothing else \
                     but ARG"
                ),
            )
        };
        if stage.base != Base::Scratch {
            return Err(fail(stage.span, "it doesn't start from scratch"));
        }
        let strange = stage.instructions.iter().find(|instruction| {
            !matches!(instruction.kind, InstructionKind::Arg(_) | InstructionKind::Add(_))
        });
        if let Some(instruction) = strange {
            return Err(fail(instruction.span, "it does more than to ADD"));
        }
        let steps = self.steps(stage.index, &BaseState::scratch())?;
        let mut copies = steps.steps.iter().filter_map(|step| match &step.action {
            Action::Copy(copy) => Some((step.span, copy)),
            _ => None,
        });
        let Some((span, copy)) = copies.next() else {
            return Err(fail(stage.span, "it has no ADD"));
        };
        if let Some((span, _)) = copies.next() {
            return Err(fail(span, "it has a second ADD"));
        }
        match copy.sources.as_slice() {
            [source @ (CopySource::Http { .. } | CopySource::Git { .. })] => Ok(source.clone()),
            _ => Err(fail(span, "what it adds isn't remote")),
        }
    }
}

fn is_called(stage: &Stage, name: &str) -> bool {
    stage.name.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(name))
}
