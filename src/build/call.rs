//! What can be asked of a Dockerfile without building it: lint findings, the targets,
//! and what a target asks for (`--check`, `--call`). Base images are resolved, no layer
//! is fetched.

use std::collections::BTreeMap;
use std::sync::Arc;

use yadokari_cache::Access;
use yadokari_cache::Cache;

use super::Crew;
use super::Error;
use super::Progress;
use super::base::Bases;
use super::client::LazyClient;
use super::remote::Remotes;
use super::remote::Watch;
use super::request::Request;
use super::survey;
use super::survey::Finding;
use crate::dockerfile::Dockerfile;
use crate::dockerfile::excerpt::Lines;
use crate::dockerfile::instruction::Span;
use crate::ignore::Matcher;
use crate::path::RootPath;
use crate::plan;
use crate::plan::Plan;
use crate::plan::Steps;
use crate::plan::outline::Outline;
use crate::plan::outline::Target;
use crate::store::Store;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Lint findings.
    Check,
    /// What the target asks for.
    Outline,
    /// The stages that can be built.
    Targets,
    /// What would be done (`--dryrun`).
    Plan,
}

/// What the answer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// Findings, and why the Dockerfile can't be built if it can't.
    Check(Vec<Finding>, Option<String>),
    /// See [`Question::Outline`].
    Outline(Outline),
    /// See [`Question::Targets`].
    Targets(Vec<Target>),
    /// The lines of each needed stage, then those of what is delivered.
    Plan(Vec<Vec<String>>),
}

/// An answer and the file it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The answer.
    pub said: Said,
    /// The Dockerfile.
    pub dockerfile: Dockerfile,
}

impl Answer {
    /// First and last line of a place in the Dockerfile, from 1.
    pub fn lines(&self, span: Span) -> (usize, usize) {
        Lines::of(&self.dockerfile).range(span)
    }
}

/// Answers `question`. A check without a target looks at all stages, one with a target
/// at those it needs.
///
/// # Errors
/// A Dockerfile that can't be read; for an outline, one that can't be planned. What a
/// check finds wrong beyond that is part of its answer.
pub fn ask(request: &Request, question: Question, crew: &Crew<'_>) -> Result<Answer, Error> {
    let cache = Arc::new(Cache::open(&request.cache_dir, Access::ReadWrite)?);
    let store = Arc::new(Store::open(&request.cache_dir)?.with_lease(cache.lease()?));
    let remotes = Remotes::new(request, Arc::clone(&store), Arc::clone(&cache));
    let watch = Watch { observer: crew.observer, interrupted: crew.interrupted };
    let mut context = remotes.context(&request.context, watch)?;
    if let Some(below) = &request.context_sub_path {
        context = context.below(&RootPath::clamped(below.as_bytes()).unwrap_or_default())?;
    }
    let (dockerfile, ignore) =
        super::read_dockerfile(request, request.dockerfile.as_deref(), &context)?;
    let client = LazyClient::new(request.registry.clone(), request.credentials.clone());
    let bases = Bases::new(Arc::new(client), store);
    let options = super::plan_options(request, &request.platform);
    let said = match question {
        Question::Check => check(request, &dockerfile, &ignore, &bases),
        Question::Outline => {
            let plan = super::plan_stages(&options, &dockerfile, &bases)?;
            let (steps, _) = survey::place(&plan, &bases, &plan.needed)?;
            Said::Outline(plan.outline(&steps))
        }
        Question::Plan => {
            let plan = super::plan_stages(&options, &dockerfile, &bases)?;
            let (steps, _) = survey::place(&plan, &bases, &plan.needed)?;
            Said::Plan(planned(request, &plan, &steps))
        }
        Question::Targets => Said::Targets(plan::plan(&dockerfile, &options)?.targets()),
    };
    for notice in cache.take_notices() {
        crew.observer.observe(Progress::Warning(notice.to_string()));
    }
    Ok(Answer { said, dockerfile })
}

fn check(request: &Request, dockerfile: &Dockerfile, ignore: &Matcher, bases: &Bases) -> Said {
    let shown = |warnings: &[_]| survey::shown(dockerfile, warnings);
    let told = |error: &Error| match error.placed() {
        Some(place) => place.render(),
        None => super::chain(error),
    };
    let plan = match super::plan_stages(
        &super::plan_options(request, &request.platform),
        dockerfile,
        bases,
    ) {
        Ok(plan) => plan,
        Err(error) => return Said::Check(shown(&dockerfile.warnings), Some(told(&error))),
    };
    let stages: Vec<usize> = match &request.target {
        Some(_) => plan.needed.clone(),
        None => (0..plan.stages.len()).collect(),
    };
    match placed(&plan, bases, &stages) {
        Ok((steps, of_bases)) => {
            Said::Check(shown(&survey::findings(&plan, &steps, of_bases, ignore)), None)
        }
        Err(error) => {
            let known = survey::findings(&plan, &BTreeMap::new(), Vec::new(), ignore);
            Said::Check(shown(&known), Some(told(&error)))
        }
    }
}

/// What would be done, in kaniko's words where it has them.
fn planned(request: &Request, plan: &Plan, steps: &BTreeMap<usize, Steps>) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for &index in &plan.needed {
        let stage = &plan.stages[index];
        let from = match &stage.base {
            plan::Base::Scratch => "scratch".to_owned(),
            plan::Base::Image(name) => format!("{name} for {}", stage.platform),
            plan::Base::Stage(parent) => format!("stage {parent}"),
        };
        let name = stage.name.as_ref().map(|name| format!(" AS {name}")).unwrap_or_default();
        let mut lines = vec![format!("STAGE {index}"), format!("FROM {from}{name}")];
        if let Some(placed) = steps.get(&index) {
            lines.extend(placed.steps.iter().map(|step| step.title.clone()));
        }
        if index != plan.target {
            lines.push(format!("SAVE STAGE {index}"));
        }
        all.push(lines);
    }
    if request.push {
        let to = request.destinations.iter().map(|destination| format!("PUSH {destination}"));
        all.push(to.collect());
    }
    all
}

type Placed = (BTreeMap<usize, Steps>, Vec<crate::dockerfile::Warning>);

/// Stages in an order in which each comes after the one it starts from, which is
/// always an earlier one.
fn placed(plan: &Plan, bases: &Bases, stages: &[usize]) -> Result<Placed, Error> {
    let mut stages = stages.to_vec();
    stages.sort_unstable();
    survey::place(plan, bases, &stages)
}
