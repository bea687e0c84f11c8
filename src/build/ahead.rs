//! Steps looked at before their turn, so that the shared cache can be asked for all
//! of them at once.

use std::collections::BTreeMap;

use super::inputs::Inputs;
use crate::plan::step::Action;
use crate::plan::step::CopySource;
use crate::plan::step::CopyStep;
use crate::plan::step::MountKind;
use crate::plan::step::Origin;

/// What was found out of the later steps of a stage.
#[derive(Default)]
pub(super) struct Ahead {
    /// The step whose turn it is.
    pub(super) at: usize,
    /// Steps before this one were looked at.
    seen: usize,
    inputs: BTreeMap<usize, Inputs>,
}

impl Ahead {
    /// Where looking ahead goes on; `None` if it got farther than this step before.
    pub(super) fn begin(&mut self) -> Option<usize> {
        let from = self.at + 1;
        (self.seen <= from).then(|| {
            self.seen = from;
            from
        })
    }

    /// Keeps what step `at` reads.
    pub(super) fn put(&mut self, at: usize, inputs: Inputs) {
        self.seen = at + 1;
        self.inputs.insert(at, inputs);
    }

    /// What the step reads whose turn it is, if that was found out before.
    pub(super) fn take(&mut self) -> Option<Inputs> {
        self.inputs.remove(&self.at)
    }
}

/// Whether a step reads files that aren't in the build context.
pub(super) fn needs_other_files(action: &Action) -> bool {
    origins(action).any(|origin| matches!(origin, Origin::Stage(_) | Origin::Image(_)))
}

/// Whether a step reads files of the build context, or of another that was named.
pub(super) fn needs_context(action: &Action) -> bool {
    origins(action).any(|origin| matches!(origin, Origin::Context | Origin::Named(_)))
}

/// Whether a step has to ask other machines what it reads: before its turn that would
/// keep the one whose turn it is.
pub(super) fn reaches_out(action: &Action) -> bool {
    let Action::Copy(copy) = action else { return false };
    let is_far =
        |source: &CopySource| matches!(source, CopySource::Http { .. } | CopySource::Git { .. });
    matches!(copy.origin, Origin::Named(_)) || copy.sources.iter().any(is_far)
}

/// Where a step's files come from.
fn origins(action: &Action) -> impl Iterator<Item = &Origin> {
    let copied = match action {
        Action::Copy(copy) if reads_paths(copy) => Some(&copy.origin),
        _ => None,
    };
    let mounts = match action {
        Action::Run(run) => run.mounts.as_slice(),
        _ => &[],
    };
    let mounted = mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind { origin, .. } | MountKind::Cache { from: Some((origin, _)), .. } => {
            Some(origin)
        }
        _ => None,
    });
    copied.into_iter().chain(mounted)
}

/// Whether there is more than heredocs to copy.
fn reads_paths(copy: &CopyStep) -> bool {
    copy.sources.iter().any(|source| matches!(source, CopySource::Path(_)))
}
