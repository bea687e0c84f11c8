//! The rules of the reference, one table for each group.

mod instructions;
mod property;
mod stages;
mod variables;

use super::step::Action;
use super::step::CopyStep;
use super::step::RunStep;
use super::*;
use crate::dockerfile;
use crate::oci::config::ContainerConfig;
use crate::oci::config::DEFAULT_PATH;

fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

fn options() -> Options {
    Options::new(amd64())
}

fn with_args(args: &[(&str, &str)]) -> Options {
    let build_args =
        args.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect();
    Options { build_args, ..options() }
}

fn try_plan(text: &str, options: &Options) -> Result<Plan, Error> {
    plan(&dockerfile::parse("Dockerfile", text.as_bytes())?, options)
}

fn planned(text: &str) -> Plan {
    try_plan(text, &options()).expect("plans")
}

/// Steps of a stage; images have the given config.
fn try_steps(plan: &Plan, stage: usize, image: &ContainerConfig) -> Result<Steps, Error> {
    let base = match &plan.stages[stage].base {
        Base::Scratch => BaseState::scratch(),
        Base::Image(_) => BaseState { config: image.clone(), ..BaseState::default() },
        Base::Stage(base) => try_steps(plan, *base, image)?.base_state(),
    };
    plan.steps(stage, &base)
}

/// Steps of the target of a file whose bases are empty images.
fn steps_with(text: &str, options: &Options) -> Steps {
    let plan = try_plan(text, options).expect("plans");
    try_steps(&plan, plan.target, &ContainerConfig::default()).expect("places")
}

fn steps(text: &str) -> Steps {
    steps_with(text, &options())
}

/// Steps of `FROM image` and `body`, the image having `config`.
fn steps_on(config: ContainerConfig, body: &str) -> Steps {
    let plan = planned(&format!("FROM image\n{body}\n"));
    try_steps(&plan, 0, &config).expect("places")
}

/// What is wrong with `FROM image` and `body`.
fn error(body: &str) -> Error {
    let text = format!("FROM image\n{body}\n");
    let result = try_plan(&text, &options())
        .and_then(|plan| try_steps(&plan, plan.target, &ContainerConfig::default()));
    match result {
        Ok(_) => panic!("no error: {body}"),
        Err(error) => error,
    }
}

fn runs(steps: &Steps) -> Vec<&RunStep> {
    steps
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Run(run) => Some(run),
            _ => None,
        })
        .collect()
}

fn copies(steps: &Steps) -> Vec<&CopyStep> {
    steps
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Copy(copy) => Some(copy),
            _ => None,
        })
        .collect()
}

/// What the last RUN sees under `name`.
fn seen(steps: &Steps, name: &str) -> Option<String> {
    let runs = runs(steps);
    let environment = &runs.last().expect("a RUN").environment;
    environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

fn history(steps: &Steps) -> Vec<&str> {
    steps.steps.iter().map(|step| step.created_by.as_str()).collect()
}

fn rules(warnings: &[Warning]) -> Vec<&str> {
    warnings.iter().map(|warning| warning.rule).collect()
}
