//! From a parsed Dockerfile to stages and steps. Pure: opens nothing, asks nobody.
//!
//! [`plan`] splits the file into [`Stage`]s, expands what FROM lines hold, finds
//! the target and which stages it needs. [`Plan::steps`] then places the
//! instructions of one stage: given the state its base left behind, every
//! variable is expanded, triggers are fired, and each instruction becomes a
//! [`step::Step`] with the image config after it and its history text.
//!
//! The semantics are BuildKit's (frontend 1.26). Three rules to keep in mind:
//! - every expansion in one instruction sees the environment from before it;
//!   only ARG goes word by word;
//! - ARG and ENV of one name: the later one wins for what follows, while the
//!   image config only ever holds the ENV;
//! - `FROM name` means the nearest stage above, `--from=name` the last in the file.
//!
//! Start reading at [`plan`], then `plan/stage.rs`, then `plan/steps.rs`.

mod copy;
mod directory;
mod epoch;
mod expose;
mod history;
mod lint;
mod metadata;
mod mount;
pub mod named;
pub mod outline;
mod run;
mod scope;
mod signal;
mod stage;
pub mod step;
mod steps;
mod suggest;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::dockerfile::Error;
use crate::dockerfile::expand;
use crate::dockerfile::instruction::ArgDeclaration;
use crate::dockerfile::instruction::Dockerfile;
use crate::dockerfile::instruction::Instruction;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Warning;
use crate::oci::platform::Platform;

use named::Contexts;
use step::Action;

pub use epoch::Dated;
pub use epoch::Epoch;
pub use epoch::SOURCE_DATE_EPOCH;
pub use mount::parse_size as mount_size;
pub use scope::Scope;
pub use stage::Base;
pub use stage::Stage;
pub use steps::BaseState;
pub use steps::Declared;
pub use steps::Steps;

/// What the caller decides about a build.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `--build-arg`s in order, a later one of the same name wins. `None`: the
    /// name alone was given and the environment has no value for it, which counts
    /// as not given.
    pub build_args: Vec<(String, Option<String>)>,
    /// `--target`: name (any case) or number of a stage; `None` is the last stage.
    pub target: Option<String>,
    /// What the image is for.
    pub platform: Platform,
    /// What the builder runs on.
    pub build_platform: Platform,
    /// `--build-context`s.
    pub contexts: Contexts,
    /// `--network`: that of every RUN without one of its own.
    pub network: step::Network,
}

impl Options {
    /// A build on `platform` for itself, with nothing else said.
    pub fn new(platform: Platform) -> Self {
        Self {
            build_args: Vec::new(),
            target: None,
            build_platform: platform.clone(),
            platform,
            contexts: Contexts::default(),
            network: step::Network::Default,
        }
    }
}

/// The stages of a Dockerfile and which of them are needed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All stages, in the order of the file.
    pub stages: Vec<Stage>,
    /// Index of the stage that becomes the image.
    pub target: usize,
    /// Indexes of the stages that the target needs, itself included, each after
    /// everything it needs. Extended by [`Plan::add_triggers`].
    pub needed: Vec<usize>,
    /// Findings in FROM lines and stage names, for the whole file.
    pub warnings: Vec<Warning>,
    /// SOURCE_DATE_EPOCH, given as build arg or as global ARG.
    pub source_date_epoch: Option<Epoch>,
    dockerfile: Dockerfile,
    build_args: BTreeMap<String, String>,
    globals: Scope,
    contexts: Contexts,
    network: step::Network,
}

/// Plans the build of `dockerfile`.
///
/// # Errors
/// With its place in the file: a FROM that expands to nothing, an unknown target
/// or stage number, stages that need each other in a circle, a bad `--platform`,
/// a bad substitution in a global ARG or a FROM.
pub fn plan(dockerfile: &Dockerfile, options: &Options) -> Result<Plan, Error> {
    let build_args: BTreeMap<String, String> = options
        .build_args
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
        .collect();
    let first = dockerfile
        .instructions
        .iter()
        .position(|instruction| matches!(instruction.kind, InstructionKind::From(_)))
        .ok_or_else(|| {
            Error::at(dockerfile, Span::default(), "there is no FROM: nothing to build")
        })?;
    let (head, body) = dockerfile.instructions.split_at(first);

    let defaults = platform_args(options, &build_args, stage::target_name(body, options));
    let globals = Globals::read(dockerfile, head, defaults.clone(), &build_args)?;
    let mut warnings = stage::base_warnings(dockerfile, body, head, defaults);

    let stages = stage::read(dockerfile, body, &globals, options, &mut warnings)?;
    let target = stage::target(dockerfile, &stages, options.target.as_deref())?;
    let mut plan = Plan {
        stages,
        target,
        needed: Vec::new(),
        warnings,
        source_date_epoch: None,
        dockerfile: dockerfile.clone(),
        build_args,
        globals: globals.scope,
        contexts: options.contexts.clone(),
        network: options.network,
    };
    plan.link()?;
    plan.source_date_epoch = plan.epoch()?;
    Ok(plan)
}

impl Plan {
    /// The Dockerfile this plan was made of.
    pub fn dockerfile(&self) -> &Dockerfile {
        &self.dockerfile
    }

    /// Stages that `stage` needs directly: its base, then those that its COPYs and
    /// mounts (and the triggers it fires, as far as they are known) name, each once.
    pub fn dependencies(&self, stage: usize) -> Vec<usize> {
        let mut found = Vec::new();
        if let Some(stage) = self.stages.get(stage) {
            for dependency in &stage.dependencies {
                if !found.contains(&dependency.stage) {
                    found.push(dependency.stage);
                }
            }
        }
        found
    }

    /// Whether anything in `stage` reads the build context.
    pub fn reads_context(&self, stage: usize) -> bool {
        let Some(stage) = self.stages.get(stage) else { return false };
        stage.instructions.iter().chain(&stage.triggers).any(stage::reads_context)
    }

    /// Makes known the ONBUILD triggers of the image that `stage` starts from:
    /// stages named by them are added to its dependencies and to
    /// [`Plan::needed`]. True if something was added. Idempotent; without effect on
    /// a stage that doesn't start from an image.
    ///
    /// # Errors
    /// At the stage's FROM: a trigger that can't be parsed, or that closes a circle.
    pub fn add_triggers(&mut self, stage: usize, texts: &[String]) -> Result<bool, Error> {
        let span = match self.stages.get(stage) {
            Some(Stage { base: Base::Image(_), span, .. }) => *span,
            _ => return Ok(false),
        };
        let triggers = steps::parse_triggers(&self.dockerfile, span, texts)?;
        let known = self.dependencies(stage);
        let mut added = Vec::new();
        let contexts = &self.contexts;
        for dependency in
            stage::references(&self.dockerfile, &self.stages, contexts, &triggers, Some(span))?
        {
            if !known.contains(&dependency.stage) {
                added.push(dependency);
            }
        }
        let changed = !added.is_empty();
        let place = &mut self.stages[stage];
        place.triggers = triggers;
        place.dependencies.extend(added);
        if changed {
            self.order()?;
        }
        Ok(changed)
    }

    /// `--build-arg`s that no ARG of the file takes, nor one of a trigger in `steps`, and
    /// that mean nothing to the builder itself.
    pub fn unused_arguments<'a>(&'a self, steps: impl Iterator<Item = &'a Steps>) -> Vec<&'a str> {
        let mut taken: BTreeSet<&str> = BTreeSet::new();
        for instruction in &self.dockerfile.instructions {
            let instruction = match &instruction.kind {
                InstructionKind::Onbuild { trigger, .. } => trigger,
                _ => instruction,
            };
            if let InstructionKind::Arg(declarations) = &instruction.kind {
                taken.extend(declarations.iter().map(|argument| argument.name.text.as_str()));
            }
        }
        taken.extend(steps.flat_map(|steps| &steps.arguments).map(|argument| &*argument.name));
        let names = self.build_args.keys().map(String::as_str);
        names.filter(|name| !taken.contains(name) && !is_builders(name)).collect()
    }

    /// Places every instruction of `stage` after a base that left `base` behind.
    ///
    /// # Errors
    /// With its place in the file (for a trigger out of an image: the FROM):
    /// a bad substitution, or an argument that is wrong after expansion.
    pub fn steps(&self, stage: usize, base: &BaseState) -> Result<Steps, Error> {
        steps::place(self, stage, base)
    }
}

/// Global ARGs: what FROM lines see, and what `ARG NAME` in a stage imports.
pub(crate) struct Globals {
    /// Values, the platform's among them.
    pub(crate) scope: Scope,
    /// Every name declared, with a value or not.
    pub(crate) declared: Vec<String>,
}

impl Globals {
    /// Reads the ARGs before the first FROM. Each sees the ones before it.
    pub(crate) fn read(
        dockerfile: &Dockerfile,
        head: &[Instruction],
        defaults: Scope,
        build_args: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let mut globals = Self { scope: defaults, declared: Vec::new() };
        for (instruction, argument) in declarations(head) {
            let name = &argument.name.text;
            let value = match (build_args.get(name), &argument.default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => {
                    let expanded = expand::expand(&default.text, dockerfile.escape, &globals.scope)
                        .map_err(|error| {
                            Error::at(dockerfile, instruction.span, error.to_string())
                        })?;
                    Some(expanded.value)
                }
                (None, None) => None,
            };
            globals.declared.push(name.clone());
            if let Some(value) = value {
                globals.scope.set(name, value);
            }
        }
        Ok(globals)
    }
}

/// Whether a build argument of this name has a meaning without an ARG.
fn is_builders(name: &str) -> bool {
    name.starts_with("BUILDKIT_")
        || name == SOURCE_DATE_EPOCH
        || run::PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

fn declarations(head: &[Instruction]) -> impl Iterator<Item = (&Instruction, &ArgDeclaration)> {
    head.iter().flat_map(|instruction| {
        let declarations: &[ArgDeclaration] = match &instruction.kind {
            InstructionKind::Arg(declarations) => declarations,
            _ => &[],
        };
        declarations.iter().map(move |declaration| (instruction, declaration))
    })
}

/// The predefined platform arguments; build args of the same names win.
fn platform_args(
    options: &Options,
    build_args: &BTreeMap<String, String>,
    target: Option<String>,
) -> Scope {
    let mut scope = Scope::default();
    for (prefix, platform) in [("BUILD", &options.build_platform), ("TARGET", &options.platform)] {
        let values = [
            ("PLATFORM", platform.to_string()),
            ("OS", platform.os.clone()),
            ("OSVERSION", platform.os_version.clone().unwrap_or_default()),
            ("ARCH", platform.architecture.clone()),
            ("VARIANT", platform.variant.clone().unwrap_or_default()),
        ];
        for (suffix, value) in values {
            scope.set(&format!("{prefix}{suffix}"), value);
        }
    }
    scope.set("TARGETSTAGE", target.unwrap_or_else(|| "default".to_owned()));
    let overridden: Vec<(String, String)> = scope
        .environment()
        .iter()
        .filter_map(|(name, _)| Some((name.clone(), build_args.get(name)?.clone())))
        .collect();
    for (name, value) in overridden {
        scope.set(&name, value);
    }
    scope
}

#[cfg(test)]
mod tests;
