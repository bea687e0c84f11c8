//! Instructions of a stage become steps: the walk, and what all instructions share.

use std::collections::BTreeMap;

use super::Plan;
use super::directory;
use super::lint;
use super::scope::Scope;
use super::stage;
use super::stage::Base;
use super::stage::Stage;
use super::step::Action;
use super::step::CopyStep;
use super::step::Origin;
use super::step::Step;
use super::suggest;
use crate::address::redacted;
use crate::dockerfile;
use crate::dockerfile::Error;
use crate::dockerfile::expand;
use crate::dockerfile::instruction::Command;
use crate::dockerfile::instruction::Dockerfile;
use crate::dockerfile::instruction::Instruction;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Warning;
use crate::dockerfile::instruction::Word;
use crate::oci::config::ContainerConfig;
use crate::oci::config::ImageConfig;

/// ARGs that never become environment.
const NEVER_ENVIRONMENT: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// What a stage finds when it starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BaseState {
    /// Container config of the base, its ONBUILD triggers included.
    pub config: ContainerConfig,
    /// Author of the base.
    pub author: Option<String>,
    /// Variables a base *stage* hands down; empty for an image.
    pub scope: Scope,
}

impl BaseState {
    /// The state of `FROM scratch`.
    pub fn scratch() -> Self {
        let config = ContainerConfig { working_dir: "/".to_owned(), ..ContainerConfig::default() };
        Self { config, ..Self::default() }
    }

    /// The state an image leaves.
    pub fn image(image: &ImageConfig) -> Self {
        Self { config: image.config.clone(), author: image.author.clone(), scope: Scope::default() }
    }
}

/// An ARG of a stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its value, if it got one.
    pub value: Option<String>,
    /// Whether it only imports a global ARG.
    pub imported: bool,
    /// The instruction.
    pub span: Span,
}

/// The steps of a stage and what they leave behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Steps {
    /// In order, triggers first.
    pub steps: Vec<Step>,
    /// Container config after the last step; the base's (with PATH, without
    /// triggers) if there is none.
    pub config: ContainerConfig,
    /// Author after the last step.
    pub author: Option<String>,
    /// Variables that child stages inherit.
    pub scope: Scope,
    /// ARGs in order.
    pub arguments: Vec<Declared>,
    /// What is legal but doubtful.
    pub warnings: Vec<Warning>,
    /// Stages named by triggers of the base image that the plan didn't know of, see
    /// [`Plan::add_triggers`].
    pub extra_stages: Vec<usize>,
}

impl Steps {
    /// The state in which a stage `FROM` this one starts.
    pub fn base_state(&self) -> BaseState {
        BaseState {
            config: self.config.clone(),
            author: self.author.clone(),
            scope: self.scope.clone(),
        }
    }
}

/// Parses triggers as an image config stores them; errors point at `place`.
pub(super) fn parse_triggers(
    dockerfile: &Dockerfile,
    place: Span,
    texts: &[String],
) -> Result<Vec<Instruction>, Error> {
    texts
        .iter()
        .map(|text| {
            let wrong = |message: String| {
                Error::at(dockerfile, place, format!("trigger `{text}` of the base: {message}"))
            };
            let trigger = dockerfile::parse_trigger(text)
                .map_err(|error| wrong(error.message().to_owned()))?;
            match trigger.kind {
                InstructionKind::From(_)
                | InstructionKind::Onbuild { .. }
                | InstructionKind::Maintainer(_) => {
                    Err(wrong("this instruction can't be a trigger".to_owned()))
                }
                _ => Ok(trigger),
            }
        })
        .collect()
}

/// See [`Plan::steps`].
pub(super) fn place(plan: &Plan, index: usize, base: &BaseState) -> Result<Steps, Error> {
    let stage = &plan.stages[index];
    let triggers = match stage.base {
        Base::Stage(_) => stage.triggers.clone(),
        _ => parse_triggers(&plan.dockerfile, stage.span, &base.config.on_build)?,
    };
    let known = plan.dependencies(index);
    let mut extra_stages = Vec::new();
    let (stages, contexts) = (&plan.stages, &plan.contexts);
    for dependency in
        stage::references(&plan.dockerfile, stages, contexts, &triggers, Some(stage.span))?
    {
        if !known.contains(&dependency.stage) && !extra_stages.contains(&dependency.stage) {
            extra_stages.push(dependency.stage);
        }
    }

    let mut placer = Placer::new(plan, stage, base)?;
    if let Some(name) = &stage.files {
        placer.files(name);
    }
    placer.trigger = true;
    for trigger in &triggers {
        placer.instruction(trigger)?;
    }
    placer.trigger = false;
    for instruction in &stage.instructions {
        placer.instruction(instruction)?;
    }
    Ok(Steps {
        steps: placer.steps,
        config: placer.config,
        author: placer.author,
        scope: placer.scope,
        arguments: placer.arguments,
        warnings: placer.warnings,
        extra_stages,
    })
}

/// Walks through a stage; the methods for the single instructions are in
/// `metadata`, `run` and `copy`.
pub(super) struct Placer<'a> {
    pub(super) plan: &'a Plan,
    pub(super) stage: &'a Stage,
    pub(super) config: ContainerConfig,
    pub(super) author: Option<String>,
    pub(super) scope: Scope,
    /// Last CMD, ENTRYPOINT and HEALTHCHECK of this stage.
    pub(super) last: BTreeMap<&'static str, Span>,
    pub(super) arguments: Vec<Declared>,
    steps: Vec<Step>,
    warnings: Vec<Warning>,
    /// Whether the instruction at hand is a trigger.
    trigger: bool,
}

impl<'a> Placer<'a> {
    fn new(plan: &'a Plan, stage: &'a Stage, base: &BaseState) -> Result<Self, Error> {
        let mut placer = Self {
            plan,
            stage,
            config: base.config.clone(),
            author: base.author.clone(),
            scope: base.scope.clone(),
            last: BTreeMap::new(),
            arguments: Vec::new(),
            steps: Vec::new(),
            warnings: Vec::new(),
            trigger: false,
        };
        let config = &mut placer.config;
        config.on_build.clear();
        config.cmd = config.cmd.take().filter(|words| !words.is_empty());
        config.entrypoint = config.entrypoint.take().filter(|words| !words.is_empty());
        config.ensure_path();
        if !config.working_dir.is_empty() {
            config.working_dir = directory::join("/", &config.working_dir).ok_or_else(|| {
                let message = "the base's working directory holds a NUL byte";
                Error::at(&plan.dockerfile, stage.span, message)
            })?;
        }
        // Also for a base stage: what the config holds wins over its ARGs of the same name.
        for entry in &placer.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            placer.scope.set(name, value.to_owned());
        }
        Ok(placer)
    }

    /// The step that brings in the files of a `--build-context` used as a base.
    fn files(&mut self, name: &str) {
        self.steps.push(Step {
            span: self.stage.span,
            title: format!("FROM {name}"),
            created_by: format!("FROM {name} # buildkit"),
            config: self.config.clone(),
            author: self.author.clone(),
            action: Action::Copy(CopyStep::whole(Origin::Named(name.to_owned()), "/")),
        });
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), Error> {
        use InstructionKind as Kind;
        let span = instruction.span;
        let (action, created_by) = match &instruction.kind {
            // A FROM ends the stage before it; none is left inside one.
            Kind::From(_) => return Ok(()),
            Kind::Run(run) => self.run(span, run)?,
            Kind::Copy(copy) => self.copy(span, copy, false)?,
            Kind::Add(copy) => self.copy(span, copy, true)?,
            Kind::Arg(declarations) => (Action::Config, self.arg(span, declarations)?),
            Kind::Env(pairs) => (Action::Config, self.env(span, pairs)?),
            Kind::Label(pairs) => (Action::Config, self.label(span, pairs)?),
            Kind::Workdir(path) => self.workdir(span, path)?,
            Kind::User(user) => (Action::Config, self.user(span, user)?),
            Kind::Expose(words) => (Action::Config, self.expose(span, words)?),
            Kind::Volume(words) => (Action::Config, self.volume(span, words)?),
            Kind::StopSignal(word) => (Action::Config, self.stop_signal(span, word)?),
            Kind::Shell(words) => (Action::Config, self.shell_instruction(words)),
            Kind::Cmd(command) => (Action::Config, self.cmd(span, command)),
            Kind::Entrypoint(command) => (Action::Config, self.entrypoint(span, command)),
            Kind::Healthcheck(check) => (Action::Config, self.healthcheck(span, check)),
            Kind::Maintainer(name) => (Action::Config, self.maintainer(name)),
            Kind::Onbuild { text, .. } => {
                self.config.on_build.push(text.clone());
                (Action::Silent, String::new())
            }
        };
        self.steps.push(Step {
            span: self.locate(span),
            title: self.title(instruction),
            created_by,
            config: self.config.clone(),
            author: self.author.clone(),
            action,
        });
        Ok(())
    }

    /// The instruction on one line, its name in capitals; for a lone heredoc the
    /// first line of its body is added.
    fn title(&self, instruction: &Instruction) -> String {
        let (word, rest) =
            instruction.source.split_once(char::is_whitespace).unwrap_or((&instruction.source, ""));
        let mut title = redacted(&format!("{} {}", word.to_uppercase(), rest.trim_start()));
        if let InstructionKind::Run(run) = &instruction.kind
            && let Some(heredoc) = super::run::lone_heredoc(run)
        {
            let body = heredoc.content();
            let body = body.trim();
            let first = body.lines().next().unwrap_or_default();
            let dots = if body.lines().nth(1).is_some() { "..." } else { "" };
            title = format!("{title} ({first}{dots})");
        }
        let title = title.trim_end();
        if self.trigger { format!("ONBUILD {title}") } else { title.to_owned() }
    }

    /// Where to point at: spans of a trigger mean nothing in this file.
    pub(super) fn locate(&self, span: Span) -> Span {
        if self.trigger { self.stage.span } else { span }
    }

    pub(super) fn fail(&self, span: Span, message: impl Into<String>) -> Error {
        Error::at(&self.plan.dockerfile, self.locate(span), message.into())
    }

    pub(super) fn warn(&mut self, rule: &'static str, message: String, span: Span) {
        let span = self.locate(span);
        if self.plan.dockerfile.check.allows(rule, span) {
            self.warnings.push(Warning { rule, message, span });
        }
    }

    /// An instruction of which a stage keeps only the last, and its command.
    pub(super) fn once(&mut self, keyword: &'static str, span: Span, command: Option<&Command>) {
        // BuildKit points at the one that has no effect.
        if let Some(earlier) = self.last.insert(keyword, self.locate(span)) {
            self.warn("MultipleInstructionsDisallowed", lint::repeated(keyword), earlier);
        }
        if matches!(command, Some(Command::Shell(_))) && self.config.shell.is_empty() {
            self.warn("JSONArgsRecommended", lint::json_arguments(keyword), span);
        }
    }

    /// Expands a word of the instruction at `span` in the environment as it is now.
    pub(super) fn expand(&mut self, span: Span, word: &Word) -> Result<String, Error> {
        self.expand_text(span, &word.text)
    }

    pub(super) fn expand_text(&mut self, span: Span, text: &str) -> Result<String, Error> {
        let expanded = expand::expand(text, self.plan.dockerfile.escape, &self.scope)
            .map_err(|error| self.fail(span, error.to_string()))?;
        self.note_undefined(span, &expanded.undefined);
        Ok(expanded.value)
    }

    /// Warns of variables without a value, other than ARGs that were given none.
    pub(super) fn note_undefined(&mut self, span: Span, names: &[String]) {
        for name in names {
            if self.scope.is_declared(name) || is_never_environment(name) {
                continue;
            }
            let near = suggest::nearest(name, self.scope.names());
            let message = lint::undefined(name, near);
            self.warn("UndefinedVar", message, span);
        }
    }

    /// WORKDIR in force, absolute.
    pub(super) fn directory(&self) -> &str {
        if self.config.working_dir.is_empty() { "/" } else { &self.config.working_dir }
    }

    /// `text` as an argument of SHELL.
    pub(super) fn in_shell(&self, text: String) -> Vec<String> {
        let mut arguments = self.config.shell.clone();
        if arguments.is_empty() {
            arguments = vec!["/bin/sh".to_owned(), "-c".to_owned()];
        }
        arguments.push(text);
        arguments
    }
}

/// Whether an ARG of this name only steers the builder.
pub(super) fn is_never_environment(name: &str) -> bool {
    NEVER_ENVIRONMENT.contains(&name)
}
