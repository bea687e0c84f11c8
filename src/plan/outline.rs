//! What a build can be told: its targets, and the arguments, secrets and agents that a
//! target asks for. `--call=targets` and `--call=outline` show it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::Plan;
use super::stage::Base;
use super::step::Action;
use super::step::MountKind;
use super::steps::Steps;
use crate::dockerfile::excerpt;
use crate::dockerfile::expand;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Span;

/// A stage that can be built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Whether it is built when none is asked for.
    pub default: bool,
    /// What the comment above it says.
    pub description: Option<String>,
    /// What it starts from, as written.
    pub base: String,
    /// `--platform`, as written.
    pub platform: Option<String>,
    /// The FROM.
    pub span: Span,
}

/// What a target asks for. Lists are in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outline {
    /// Name of the target, if it has one.
    pub name: Option<String>,
    /// What the comment above it says.
    pub description: Option<String>,
    /// ARGs that have a say in it.
    pub arguments: Vec<Argument>,
    /// Secrets.
    pub secrets: Vec<Asked>,
    /// Agents of `--ssh`.
    pub ssh: Vec<Asked>,
}

/// An ARG.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Its value as this build has it.
    pub value: Option<String>,
    /// The ARG.
    pub span: Span,
}

/// A secret or an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Its id.
    pub name: String,
    /// Whether a RUN fails without it.
    pub required: bool,
    /// The first RUN that wants it.
    pub span: Span,
}

/// A global ARG and the global ARGs its default is made of.
struct Global {
    argument: Argument,
    needs: Vec<String>,
}

impl Plan {
    /// All stages of the file.
    pub fn targets(&self) -> Vec<Target> {
        let froms =
            self.dockerfile.instructions.iter().filter_map(|instruction| match &instruction.kind {
                InstructionKind::From(from) => Some((from, instruction.span)),
                _ => None,
            });
        let last = self.stages.len().saturating_sub(1);
        froms
            .enumerate()
            .map(|(index, (from, span))| Target {
                name: from.name.clone(),
                default: index == last,
                description: self.described(span, from.name.as_deref()),
                base: from.image.text.clone(),
                platform: from.platform.as_ref().map(|word| word.text.clone()),
                span,
            })
            .collect()
    }

    /// What the target asks for; `steps` are those of the needed stages, by index.
    pub fn outline(&self, steps: &BTreeMap<usize, Steps>) -> Outline {
        let globals = self.globals();
        let mut arguments: BTreeMap<String, Argument> = BTreeMap::new();
        let mut secrets: BTreeMap<String, Asked> = BTreeMap::new();
        let mut ssh: BTreeMap<String, Asked> = BTreeMap::new();
        for stage in self.reachable() {
            let Some(placed) = steps.get(&stage) else { continue };
            let mut used = self.used_in_from(stage);
            for declared in &placed.arguments {
                if declared.imported {
                    used.push(declared.name.clone());
                    continue;
                }
                arguments.entry(declared.name.clone()).or_insert_with(|| Argument {
                    name: declared.name.clone(),
                    description: self.described(declared.span, Some(&declared.name)),
                    value: declared.value.clone(),
                    span: declared.span,
                });
            }
            while let Some(name) = used.pop() {
                if let Some(global) = globals.get(&name)
                    && !arguments.contains_key(&name)
                {
                    arguments.insert(name, global.argument.clone());
                    used.extend(global.needs.iter().cloned());
                }
            }
            for step in &placed.steps {
                let Action::Run(run) = &step.action else { continue };
                for mount in &run.mounts {
                    match &mount.kind {
                        MountKind::Secret { id, required, .. } => {
                            ask(&mut secrets, id, *required, step.span);
                        }
                        MountKind::Ssh { id, required, .. } => {
                            ask(&mut ssh, id, *required, step.span);
                        }
                        _ => {}
                    }
                }
            }
        }
        let target = &self.stages[self.target];
        let mut arguments: Vec<Argument> = arguments.into_values().collect();
        arguments.sort_by_key(|argument| argument.span.start);
        Outline {
            name: target.name.clone(),
            description: self.described(target.span, target.name.as_deref()),
            arguments,
            secrets: in_order(secrets),
            ssh: in_order(ssh),
        }
    }

    fn described(&self, span: Span, name: Option<&str>) -> Option<String> {
        excerpt::description(&self.dockerfile.text, span.start, name?).map(str::to_owned)
    }

    /// The target and everything it needs, the nearest first.
    fn reachable(&self) -> Vec<usize> {
        let mut found = Vec::new();
        let mut open = vec![self.target];
        let mut seen = BTreeSet::new();
        while let Some(stage) = open.pop() {
            if seen.insert(stage) {
                found.push(stage);
                open.extend(self.dependencies(stage).into_iter().rev());
            }
        }
        found
    }

    fn globals(&self) -> BTreeMap<String, Global> {
        let mut globals = BTreeMap::new();
        let head = self
            .dockerfile
            .instructions
            .iter()
            .take_while(|instruction| !matches!(instruction.kind, InstructionKind::From(_)));
        for instruction in head {
            let InstructionKind::Arg(declarations) = &instruction.kind else { continue };
            for declaration in declarations {
                let name = &declaration.name.text;
                let default = declaration.default.as_ref().map_or("", |word| &word.text);
                let argument = Argument {
                    name: name.clone(),
                    description: self.described(instruction.span, Some(name)),
                    value: self.globals.get(name).map(str::to_owned),
                    span: instruction.span,
                };
                globals.insert(name.clone(), Global { argument, needs: self.names_in(default) });
            }
        }
        globals
    }

    fn used_in_from(&self, stage: usize) -> Vec<String> {
        let span = self.stages[stage].span;
        let from = self.dockerfile.instructions.iter().find(|known| known.span == span);
        match from.map(|instruction| &instruction.kind) {
            Some(InstructionKind::From(from)) => {
                let platform = from.platform.as_ref().map_or("", |word| &word.text);
                let mut names = self.names_in(&from.image.text);
                names.extend(self.names_in(platform));
                names
            }
            _ => Vec::new(),
        }
    }

    /// The variables that `text` asks for.
    fn names_in(&self, text: &str) -> Vec<String> {
        let names = RefCell::new(Vec::new());
        let look_up = |name: &str| {
            names.borrow_mut().push(name.to_owned());
            self.globals.get(name).map(str::to_owned)
        };
        // What can't be expanded has been an error before.
        let _ = expand::expand(text, self.dockerfile.escape, &look_up);
        names.into_inner()
    }

    /// Whether `stage` starts from an image, and from which.
    pub fn image_of(&self, stage: usize) -> Option<&str> {
        match &self.stages.get(stage)?.base {
            Base::Image(name) => Some(name),
            _ => None,
        }
    }
}

fn ask(found: &mut BTreeMap<String, Asked>, id: &str, required: bool, span: Span) {
    let asked = found.entry(id.to_owned()).or_insert(Asked { name: id.to_owned(), required, span });
    asked.required |= required;
}

fn in_order(asked: BTreeMap<String, Asked>) -> Vec<Asked> {
    let mut asked: Vec<Asked> = asked.into_values().collect();
    asked.sort_by_key(|asked| asked.span.start);
    asked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile;
    use crate::oci::platform::Platform;
    use crate::plan::BaseState;
    use crate::plan::Options;
    use crate::plan::plan;

    fn outlined(text: &str, target: Option<&str>) -> Outline {
        let dockerfile = dockerfile::parse("Dockerfile", text.as_bytes()).expect("valid");
        let platform = Platform::new("linux", "amd64", None);
        let plan = plan(
            &dockerfile,
            &Options {
                build_args: vec![("GIVEN".to_owned(), Some("outside".to_owned()))],
                target: target.map(str::to_owned),
                ..Options::new(platform)
            },
        )
        .expect("plans");
        let mut steps: BTreeMap<usize, Steps> = BTreeMap::new();
        for &stage in &plan.needed {
            let base = match plan.stages[stage].base {
                Base::Stage(base) => steps[&base].base_state(),
                _ => BaseState::scratch(),
            };
            steps.insert(stage, plan.steps(stage, &base).expect("places"));
        }
        plan.outline(&steps)
    }

    const FILE: &str = "# TAG which base\nARG TAG=1\nARG OTHER=2\nARG BASE=img:${TAG}\n\
        # build makes it\nFROM ${BASE} AS build\n# GIVEN from outside\nARG GIVEN\nARG OTHER\n\
        RUN --mount=type=secret,id=key,required --mount=type=ssh true\n\
        FROM scratch AS unused\nARG NOBODY=1\n\
        FROM scratch\nCOPY --from=build / /\nARG HERE=here\n";

    #[test]
    fn an_outline_lists_what_the_target_and_its_stages_ask_for() {
        let outline = outlined(FILE, None);
        let arguments: Vec<(&str, Option<&str>)> = outline
            .arguments
            .iter()
            .map(|argument| (argument.name.as_str(), argument.value.as_deref()))
            .collect();
        assert_eq!(
            arguments,
            [
                ("TAG", Some("1")),
                ("OTHER", Some("2")),
                ("BASE", Some("img:1")),
                ("GIVEN", Some("outside")),
                ("HERE", Some("here")),
            ]
        );
        assert_eq!(outline.arguments[0].description.as_deref(), Some("which base"));
        assert_eq!(outline.arguments[3].description.as_deref(), Some("from outside"));
        assert_eq!((outline.secrets[0].name.as_str(), outline.secrets[0].required), ("key", true));
        assert_eq!((outline.ssh[0].name.as_str(), outline.ssh[0].required), ("default", false));
        assert_eq!(outline.name, None);
    }

    #[test]
    fn an_outline_of_a_target_leaves_the_others_out() {
        let outline = outlined(FILE, Some("build"));
        assert_eq!(outline.name.as_deref(), Some("build"));
        assert_eq!(outline.description.as_deref(), Some("makes it"));
        assert!(outline.arguments.iter().all(|argument| argument.name != "HERE"));
        assert!(outlined(FILE, Some("unused")).secrets.is_empty());
    }
}
