//! Stages: what FROM lines make of a Dockerfile, who needs whom, and which one
//! becomes the image.

use std::collections::BTreeMap;

use super::Globals;
use super::Options;
use super::Plan;
use super::lint;
use super::mount;
use super::named::Contexts;
use super::named::NamedContext;
use super::scope::Scope;
use super::step::Origin;
use super::suggest;
use crate::dockerfile::Error;
use crate::dockerfile::expand;
use crate::dockerfile::expand::Expanded;
use crate::dockerfile::instruction::Dockerfile;
use crate::dockerfile::instruction::From;
use crate::dockerfile::instruction::Instruction;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Source;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Warning;
use crate::dockerfile::instruction::Word;
use crate::oci::platform::ParsePlatformError;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::oci::reference::layout_place;

/// The name of the image without layers.
const SCRATCH: &str = "scratch";

/// A FROM and what follows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stage {
    /// Position in [`Plan::stages`].
    pub index: usize,
    /// Name given by AS, lower-cased.
    pub name: Option<String>,
    /// Name for the progress: the stage's, or `stage-N`; empty when it is the only one.
    pub title: String,
    /// What it starts from.
    pub base: Base,
    /// The `--build-context` whose files are there from the start; the base is then
    /// `scratch`.
    pub files: Option<String>,
    /// What it is for: that of the base stage, or `--platform`, or the target's.
    pub platform: Platform,
    /// The FROM.
    pub span: Span,
    /// What follows the FROM, in order.
    pub instructions: Vec<Instruction>,
    /// ONBUILD triggers that fire right after the FROM, as far as they are known:
    /// those of a base stage always, those of an image after [`Plan::add_triggers`].
    pub(super) triggers: Vec<Instruction>,
    /// Stages needed, the base first; may name one twice.
    pub(super) dependencies: Vec<Dependency>,
}

/// What a stage starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// The stage with this index, always an earlier one.
    Stage(usize),
    /// An image: its reference as written, after expansion.
    Image(String),
}

/// A stage that another needs, and where that is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Dependency {
    /// The stage needed.
    pub(super) stage: usize,
    /// The instruction that needs it.
    pub(super) span: Span,
}

/// What a `--from` or a mount's `from` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Named {
    /// The stage with this index.
    Stage(usize),
    /// Nothing.
    Scratch,
    /// An image.
    Image(String),
    /// The files of a `--build-context`.
    Files(String),
}

impl std::convert::From<Named> for Origin {
    fn from(named: Named) -> Self {
        match named {
            Named::Stage(stage) => Self::Stage(stage),
            Named::Scratch => Self::Scratch,
            Named::Image(image) => Self::Image(image),
            Named::Files(name) => Self::Named(name),
        }
    }
}

/// Reads the stages of `body`, which starts with a FROM. Dependencies are not
/// filled in yet (a COPY may name a later stage), see [`Plan::link`].
pub(super) fn read(
    dockerfile: &Dockerfile,
    body: &[Instruction],
    globals: &Globals,
    options: &Options,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Stage>, Error> {
    let mut stages: Vec<Stage> = Vec::new();
    // A stage that a `--build-context` replaces has no instructions.
    let mut is_replaced = false;
    for instruction in body {
        let InstructionKind::From(from) = &instruction.kind else {
            if let Some(stage) = stages.last_mut().filter(|_| !is_replaced) {
                stage.instructions.push(instruction.clone());
            }
            continue;
        };
        let span = instruction.span;
        let mut lints = FromLints { dockerfile, globals, span, warnings };
        let image = lints.expand(&from.image)?.value;
        if image.is_empty() {
            let message = format!("base name `{}` expands to nothing", from.image.text);
            return Err(Error::at(dockerfile, from.image.span, message));
        }
        let explicit = match &from.platform {
            Some(word) => Some(lints.platform(word, from)?),
            None => None,
        };
        let nearest = stages.iter().rposition(|stage| has_name(stage, &image));
        let replacement = from.name.as_deref().and_then(|name| options.contexts.find(name));
        is_replaced = replacement.is_some();
        let platform = || explicit.clone().unwrap_or_else(|| options.platform.clone());
        let mut files = None;
        let (base, platform) = match (replacement, nearest) {
            (None, Some(index)) => (Base::Stage(index), stages[index].platform.clone()),
            (None, None) if image == SCRATCH => (Base::Scratch, options.platform.clone()),
            (replacement, _) => match replacement.or_else(|| options.contexts.find(&image)) {
                Some((name, NamedContext::Files)) => {
                    files = Some(name.to_owned());
                    (Base::Scratch, platform())
                }
                Some((_, NamedContext::Image(image))) => (Base::Image(image.clone()), platform()),
                None => (Base::Image(image), platform()),
            },
        };
        let triggers = match base {
            Base::Stage(index) => own_triggers(&stages[index]),
            _ => Vec::new(),
        };
        let index = stages.len();
        stages.push(Stage {
            index,
            name: from.name.clone(),
            title: from.name.clone().unwrap_or_else(|| format!("stage-{index}")),
            base,
            files,
            platform,
            span,
            instructions: Vec::new(),
            triggers,
            dependencies: Vec::new(),
        });
    }
    if let [only] = stages.as_mut_slice() {
        only.title.clear();
    }
    Ok(stages)
}

/// What an expanded FROM line gives rise to.
struct FromLints<'a> {
    dockerfile: &'a Dockerfile,
    globals: &'a Globals,
    span: Span,
    warnings: &'a mut Vec<Warning>,
}

impl FromLints<'_> {
    fn warn(&mut self, rule: &'static str, message: String) {
        if self.dockerfile.check.allows(rule, self.span) {
            self.warnings.push(Warning { rule, message, span: self.span });
        }
    }

    fn expand(&mut self, word: &Word) -> Result<Expanded, Error> {
        let expanded = expand::expand(&word.text, self.dockerfile.escape, &self.globals.scope)
            .map_err(|error| Error::at(self.dockerfile, word.span, error.to_string()))?;
        for name in &expanded.undefined {
            if !self.globals.declared.contains(name) {
                let known = self.globals.declared.iter().map(String::as_str);
                let near = suggest::nearest(name, known.chain(self.globals.scope.names()));
                self.warn("UndefinedArgInFrom", lint::undefined_in_from(name, near));
            }
        }
        Ok(expanded)
    }

    fn platform(&mut self, word: &Word, from: &From) -> Result<Platform, Error> {
        let text = self.expand(word)?.value;
        if text.is_empty() {
            let message = format!("platform `{}` expands to nothing", word.text);
            return Err(Error::at(self.dockerfile, word.span, message));
        }
        let platform: Platform = text.parse().map_err(|error: ParsePlatformError| {
            Error::at(self.dockerfile, word.span, error.to_string())
        })?;
        if matches!(word.text.as_str(), "$TARGETPLATFORM" | "${TARGETPLATFORM}") {
            self.warn("RedundantTargetPlatform", lint::redundant_platform(&word.text));
        } else if !word.text.contains('$') {
            let name = from.name.as_deref().unwrap_or_default();
            if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
                self.warn("FromPlatformFlagConstDisallowed", lint::constant_platform(&text));
            }
        }
        Ok(platform)
    }
}

/// Warns of bases that come out empty or malformed when no build arg is given.
pub(super) fn base_warnings(
    dockerfile: &Dockerfile,
    body: &[Instruction],
    head: &[Instruction],
    defaults: Scope,
) -> Vec<Warning> {
    const RULE: &str = "InvalidDefaultArgInFrom";
    // A mistake in the ARGs is reported when they are read for good.
    let Ok(globals) = Globals::read(dockerfile, head, defaults, &BTreeMap::new()) else {
        return Vec::new();
    };
    body.iter()
        .filter(|instruction| dockerfile.check.allows(RULE, instruction.span))
        .filter_map(|instruction| match &instruction.kind {
            InstructionKind::From(from) => Some((instruction.span, &from.image)),
            _ => None,
        })
        .filter(|(_, word)| {
            expand::expand(&word.text, dockerfile.escape, &globals.scope)
                .is_ok_and(|expanded| !names_an_image(&expanded.value))
        })
        .map(|(span, word)| Warning {
            rule: RULE,
            message: lint::invalid_default(&word.text),
            span,
        })
        .collect()
}

fn names_an_image(text: &str) -> bool {
    text.parse::<Reference>().is_ok() || layout_place(text).is_some_and(|place| !place.is_empty())
}

/// What TARGETSTAGE says: the target as asked for, else the last stage's name.
pub(super) fn target_name(body: &[Instruction], options: &Options) -> Option<String> {
    options.target.clone().or_else(|| {
        body.iter()
            .filter_map(|instruction| match &instruction.kind {
                InstructionKind::From(from) => Some(from.name.clone()),
                _ => None,
            })
            .next_back()
            .flatten()
    })
}

/// Index of the stage that `wanted` names: by name in any case (the last of that
/// name), else by number; without it the last stage.
pub(super) fn target(
    dockerfile: &Dockerfile,
    stages: &[Stage],
    wanted: Option<&str>,
) -> Result<usize, Error> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return Ok(stages.len() - 1);
    };
    let by_name = stages.iter().rposition(|stage| has_name(stage, wanted));
    let by_number = || wanted.parse().ok().filter(|&index: &usize| index < stages.len());
    by_name.or_else(by_number).ok_or_else(|| {
        let names: Vec<&str> = stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
        let known = if names.is_empty() {
            format!("no stage has a name; numbers are 0 to {}", stages.len() - 1)
        } else {
            format!("the stages are: {}", names.join(", "))
        };
        let span = stages.last().map_or_else(Span::default, |stage| stage.span);
        let error =
            Error::at(dockerfile, span, format!("there is no target stage `{wanted}`; {known}"));
        suggest::advise(error, suggest::hint(wanted, names))
    })
}

fn has_name(stage: &Stage, name: &str) -> bool {
    stage.name.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(name))
}

/// The triggers that `stage` leaves to those that start from it.
fn own_triggers(stage: &Stage) -> Vec<Instruction> {
    stage
        .instructions
        .iter()
        .filter_map(|instruction| match &instruction.kind {
            InstructionKind::Onbuild { trigger, .. } => Some((**trigger).clone()),
            _ => None,
        })
        .collect()
}

/// What `from` names in a COPY or a mount: a number is a stage's, then stages by
/// name (the last one of that name), then `scratch`, then `--build-context`s, then
/// images.
///
/// # Errors
/// The message: a number without a stage, a variable.
pub(super) fn named(stages: &[Stage], contexts: &Contexts, from: &str) -> Result<Named, String> {
    if from.contains('$') {
        return Err(format!(
            "`{from}`: from takes no variables; define a stage `FROM $NAME AS name` with a global ARG and name that"
        ));
    }
    if let Ok(number) = from.parse::<i64>() {
        return usize::try_from(number)
            .ok()
            .filter(|&index| index < stages.len())
            .map(Named::Stage)
            .ok_or_else(|| {
                format!("there is no stage {number}: the last one is {}", stages.len() - 1)
            });
    }
    Ok(match stages.iter().rposition(|stage| has_name(stage, from)) {
        Some(index) => Named::Stage(index),
        None if from == SCRATCH => Named::Scratch,
        None => match contexts.find(from) {
            Some((name, NamedContext::Files)) => Named::Files(name.to_owned()),
            Some((_, NamedContext::Image(image))) => Named::Image(image.clone()),
            None => Named::Image(from.to_owned()),
        },
    })
}

/// Stages that `instructions` name in `--from` and in mounts. Found at `place`, if
/// given, else at the instruction.
pub(super) fn references(
    dockerfile: &Dockerfile,
    stages: &[Stage],
    contexts: &Contexts,
    instructions: &[Instruction],
    place: Option<Span>,
) -> Result<Vec<Dependency>, Error> {
    let mut found = Vec::new();
    for instruction in instructions {
        let names: Vec<(String, Span)> = match &instruction.kind {
            InstructionKind::Copy(copy) => {
                copy.from.iter().map(|word| (word.text.clone(), word.span)).collect()
            }
            InstructionKind::Run(run) => run
                .mounts
                .iter()
                .filter_map(|word| Some((mount::origin_name(&word.text)?, word.span)))
                .collect(),
            _ => Vec::new(),
        };
        for (name, span) in names {
            let named = named(stages, contexts, &name)
                .map_err(|message| Error::at(dockerfile, place.unwrap_or(span), message))?;
            if let Named::Stage(stage) = named {
                found.push(Dependency { stage, span: place.unwrap_or(instruction.span) });
            }
        }
    }
    Ok(found)
}

/// Whether `instruction` reads files of the build context.
pub(super) fn reads_context(instruction: &Instruction) -> bool {
    match &instruction.kind {
        InstructionKind::Copy(copy) | InstructionKind::Add(copy) => {
            copy.from.is_none()
                && copy.sources.iter().any(|source| matches!(source, Source::Path(_)))
        }
        InstructionKind::Run(run) => run.mounts.iter().any(|word| mount::reads_context(&word.text)),
        _ => false,
    }
}

impl Plan {
    /// Fills in the dependencies of every stage and the order of the needed ones.
    pub(super) fn link(&mut self) -> Result<(), Error> {
        for index in 0..self.stages.len() {
            let stage = &self.stages[index];
            let mut dependencies = Vec::new();
            if let Base::Stage(base) = stage.base {
                dependencies.push(Dependency { stage: base, span: stage.span });
            }
            let (dockerfile, stages, contexts) = (&self.dockerfile, &self.stages, &self.contexts);
            let of = |instructions: &[Instruction], place| {
                references(dockerfile, stages, contexts, instructions, place)
            };
            dependencies.extend(of(&stage.triggers, Some(stage.span))?);
            dependencies.extend(of(&stage.instructions, None)?);
            self.stages[index].dependencies = dependencies;
        }
        self.order()
    }

    /// Looks for circles among all stages, then puts those that the target needs in
    /// an order in which each comes after what it needs.
    pub(super) fn order(&mut self) -> Result<(), Error> {
        let mut states = vec![Visit::New; self.stages.len()];
        let mut order = Vec::new();
        self.visit(self.target, &mut states, &mut order)?;
        self.needed = order.clone();
        for index in 0..self.stages.len() {
            self.visit(index, &mut states, &mut order)?;
        }
        Ok(())
    }

    /// Depth first, without recursion: a file may hold any number of stages.
    fn visit(
        &self,
        root: usize,
        states: &mut [Visit],
        order: &mut Vec<usize>,
    ) -> Result<(), Error> {
        if states[root] == Visit::Done {
            return Ok(());
        }
        states[root] = Visit::Open;
        let mut path = vec![(root, 0)];
        while let Some((index, next)) = path.last_mut() {
            let index = *index;
            let Some(dependency) = self.stages[index].dependencies.get(*next).copied() else {
                states[index] = Visit::Done;
                order.push(index);
                path.pop();
                continue;
            };
            *next += 1;
            match states[dependency.stage] {
                Visit::Done => {}
                Visit::New => {
                    states[dependency.stage] = Visit::Open;
                    path.push((dependency.stage, 0));
                }
                Visit::Open => {
                    let start = path
                        .iter()
                        .position(|(open, _)| *open == dependency.stage)
                        .unwrap_or_default();
                    let circle: Vec<String> = path[start..]
                        .iter()
                        .map(|(open, _)| *open)
                        .chain([dependency.stage])
                        .map(|open| self.shown(open))
                        .collect();
                    let message = format!("stages need each other: {}", circle.join(" needs "));
                    return Err(Error::at(&self.dockerfile, dependency.span, message));
                }
            }
        }
        Ok(())
    }

    fn shown(&self, stage: usize) -> String {
        let stage = &self.stages[stage];
        stage.name.clone().unwrap_or_else(|| format!("stage {}", stage.index))
    }
}

/// How far a stage was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    New,
    Open,
    Done,
}
