//! A look over the whole build before anything is done: every stage placed, every
//! lint rule applied. What `--check` and `--call` show comes from here too.

use std::collections::BTreeMap;

use super::Crew;
use super::Error;
use super::base::Bases;
use crate::dockerfile::Dockerfile;
use crate::dockerfile::Warning;
use crate::dockerfile::excerpt::Lines;
use crate::dockerfile::rules;
use crate::ignore::Matcher;
use crate::plan;
use crate::plan::BaseState;
use crate::plan::Plan;
use crate::plan::Steps;

use super::Progress;

/// A lint finding, ready to be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The rule, as BuildKit calls it.
    pub rule: &'static str,
    /// What the rule asks for.
    pub description: &'static str,
    /// What was found.
    pub message: String,
    /// First and last line concerned, from 1.
    pub lines: (usize, usize),
    /// The lines in question with those around them; several lines.
    pub excerpt: String,
}

/// Steps of `stages`, which must hold every stage that one of them starts from, the
/// earlier ones first.
///
/// # Errors
/// The first stage's that can't be placed, or whose base can't be resolved.
pub(super) fn place(
    plan: &Plan,
    bases: &Bases,
    stages: &[usize],
) -> Result<(BTreeMap<usize, Steps>, Vec<Warning>), Error> {
    let mut placed: BTreeMap<usize, Steps> = BTreeMap::new();
    let mut warnings = Vec::new();
    for &index in stages {
        let stage = &plan.stages[index];
        let state = match &stage.base {
            plan::Base::Scratch => BaseState::scratch(),
            plan::Base::Stage(parent) => match placed.get(parent) {
                Some(steps) => steps.base_state(),
                None => return Err(Error::Panic),
            },
            plan::Base::Image(name) => {
                let base = bases
                    .resolve(name, &stage.platform)
                    .map_err(|error| error.or_stage(name, plan))
                    .map_err(|error| error.at(plan.dockerfile(), stage.span))?;
                warnings.extend(plan.base_platform(index, &base.config));
                BaseState::image(&base.config)
            }
        };
        placed.insert(index, plan.steps(index, &state)?);
    }
    Ok((placed, warnings))
}

/// Every finding about `stages`, in the order of the file, each once.
pub(super) fn findings(
    plan: &Plan,
    steps: &BTreeMap<usize, Steps>,
    of_bases: Vec<Warning>,
    ignore: &Matcher,
) -> Vec<Warning> {
    let dockerfile = plan.dockerfile();
    let mut all: Vec<Warning> = dockerfile.warnings.clone();
    all.extend(plan.warnings.iter().cloned());
    all.extend(of_bases);
    for steps in steps.values() {
        all.extend(steps.warnings.iter().cloned());
        all.extend(plan.ignored_sources(steps, ignore));
    }
    all.sort_by(|a, b| (a.span.start, a.rule, &a.message).cmp(&(b.span.start, b.rule, &b.message)));
    all.dedup();
    all
}

/// The findings with all that is needed to show them.
pub(super) fn shown(dockerfile: &Dockerfile, warnings: &[Warning]) -> Vec<Finding> {
    let lines = Lines::of(dockerfile);
    warnings
        .iter()
        .map(|warning| Finding {
            rule: warning.rule,
            description: rules::find(warning.rule).map_or("", |rule| rule.description),
            message: warning.message.clone(),
            lines: lines.range(warning.span),
            excerpt: lines.excerpt(warning.span),
        })
        .collect()
}

/// Applies the rules to the needed stages of `plan` and tells what they find. Gives the
/// stages' steps.
///
/// # Errors
/// [`Error::Lint`] when the file asks that findings are errors and there is one;
/// those of [`place`].
pub(super) fn lint(
    plan: &Plan,
    bases: &Bases,
    ignore: &Matcher,
    crew: &Crew<'_>,
) -> Result<BTreeMap<usize, Steps>, Error> {
    let (steps, of_bases) = place(plan, bases, &plan.needed)?;
    let found = findings(plan, &steps, of_bases, ignore);
    if found.is_empty() {
        return Ok(steps);
    }
    crew.observer.observe(Progress::Findings(shown(plan.dockerfile(), &found)));
    if plan.dockerfile().check.error { Err(violated(&found)) } else { Ok(steps) }
}

/// The error that names the rules of `warnings`.
pub(super) fn violated(warnings: &[Warning]) -> Error {
    let mut rules: Vec<&str> = warnings.iter().map(|warning| warning.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    Error::Lint { rules: rules.join(", ") }
}
