//! Stages for another architecture: whether their RUNs can run here is found out
//! before anything is built.

use std::collections::BTreeMap;

use super::Error;
use crate::plan::Plan;
use crate::plan::Steps;
use crate::plan::step::Action;
use crate::sandbox;
use crate::store::Store;

/// Looks for the first RUN that can't run on this machine.
///
/// # Errors
/// [`Error::Foreign`] at that RUN; when the scratch directory can't be written to.
pub(super) fn check(
    plan: &Plan,
    steps: &BTreeMap<usize, Steps>,
    host: &str,
    store: &Store,
) -> Result<(), Error> {
    let mut known: BTreeMap<&str, bool> = BTreeMap::new();
    for (&index, placed) in steps {
        let platform = &plan.stages[index].platform;
        let architecture = platform.architecture.as_str();
        let run = placed.steps.iter().find(|step| matches!(step.action, Action::Run(_)));
        let Some(run) = run.filter(|_| architecture != host) else { continue };
        let runs = match known.get(architecture) {
            Some(runs) => *runs,
            None => {
                let scratch = store.scratch()?;
                let runs = sandbox::runs_here(architecture, &scratch)
                    .map_err(|source| Error::Scratch { path: scratch, source })?;
                // What we can't try may work all the same.
                *known.entry(architecture).or_insert(runs.unwrap_or(true))
            }
        };
        if !runs {
            let error = Error::Foreign { platform: platform.to_string(), host: host.to_owned() };
            return Err(error.at(plan.dockerfile(), run.span));
        }
    }
    Ok(())
}
