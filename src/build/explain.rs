//! Why a step isn't taken from the cache: compared with what was built last at its
//! place.
//!
//! Beside the cache's records, each stage of a Dockerfile leaves a short description
//! of its steps under its *place* ([`yadokari_cache::places`]): the repository it is
//! pushed to or else the context, the Dockerfile's path, the stage and the platform.
//! The next build finds the step there that a missing one descends from and names
//! what differs, down to the file.
//!
//! Nothing here decides what is built: a lost or stale description makes a reason
//! vaguer, never a result wrong. Values that look like secrets are kept only as keyed
//! digests (`mask`).

mod fields;
mod files;
mod mask;
mod reason;

use serde::Deserialize;
use serde::Serialize;
use yadokari_cache::Key;
use yadokari_cache::KeyHasher;
use yadokari_cache::Places;

pub use reason::FileChange;
pub use reason::Hidden;
pub use reason::MissReason;
pub use reason::Shown;

use super::Error;
use super::inputs::Inputs;
use super::key::StepKeys;
use super::key::Surroundings;
use super::shared::Shared;
use crate::plan::step::Step;
use fields::Field;
use mask::Mask;

/// Fields kept of one step: a Dockerfile with more variables is explained in part.
const MOST_FIELDS: usize = 200;

/// What the look-up of a step in the cache found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Absence {
    /// It wasn't looked up, because of this flag.
    Forced(&'static str),
    /// Its record was there, its layer wasn't.
    LayerGone,
    /// The shared cache has a record that can't be used.
    Unusable(String),
    /// There is no record; with a hint, one on other layers.
    NoRecord {
        /// The step was run on other layers.
        elsewhere: bool,
    },
}

/// A stage as its place keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Name and digest of the base image, or nothing.
    base: Option<(String, String)>,
    steps: Vec<KeptStep>,
}

/// A step as its place keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct KeptStep {
    /// The instruction as written.
    title: String,
    /// Its definition key, in hex.
    definition: String,
    /// Its hint, in hex.
    hint: String,
    /// The fields of its key, see [`fields`].
    fields: Vec<Field>,
}

/// Explains the misses of one stage and keeps its description for the next build.
pub struct Explainer {
    places: Places,
    mask: Mask,
    /// Where the description goes, the one that is looked at first in front.
    own: Vec<Key>,
    former: Kept,
    current: Kept,
    /// Instructions of the stage as written, to tell a step that moved.
    titles: Vec<String>,
    /// Former steps that a current one descends from.
    matched: Vec<bool>,
    /// What of the stage, or below it, changed first.
    first_change: Option<String>,
}

impl Explainer {
    /// For stage `index`, whose instructions are `steps`. `base` is name and digest of
    /// its base image, `below` what changed in the stage that it stands on.
    pub fn new(
        shared: &Shared<'_>,
        index: usize,
        steps: &[Step],
        base: Option<(String, String)>,
        below: Option<String>,
    ) -> Self {
        let places = Places::of(&shared.request.cache_dir);
        let variables = steps.iter().flat_map(|step| match &step.action {
            crate::plan::step::Action::Run(run) => run.environment.as_slice(),
            _ => &[],
        });
        let given = shared.request.build_args.iter();
        let given = given.filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)));
        let variables = variables.map(|(name, value)| (name.as_str(), value.as_str()));
        let mask = Mask::new(&places, variables.chain(given));
        let own = places_of(shared, index);
        let former: Kept = own
            .iter()
            .find_map(|place| serde_json::from_slice(&places.read(place)?).ok())
            .unwrap_or_default();
        let titles = steps.iter().map(|step| mask.shown(&step.title)).collect();
        let matched = vec![false; former.steps.len()];
        let current = Kept { base, steps: Vec::new() };
        Self { places, mask, own, former, current, titles, matched, first_change: below }
    }

    /// What changed first in this stage or below it, for the stages that stand on it.
    pub fn first_change(&self) -> Option<String> {
        self.first_change.clone()
    }

    /// `text` without secrets, for reports.
    pub fn shown(&self, text: &str) -> String {
        self.mask.shown(text)
    }

    /// Notes a step that was found in the cache.
    ///
    /// # Errors
    /// Those of listing the files it reads.
    pub fn hit(
        &mut self,
        shared: &Shared<'_>,
        step: &Step,
        inputs: &Inputs,
        keys: &StepKeys,
        surroundings: &Surroundings,
    ) -> Result<(), Error> {
        let definition = keys.definition.to_string();
        let known = self.former.steps.iter().position(|step| step.definition == definition);
        if let Some(at) = known {
            self.matched[at] = true;
            self.current.steps.push(self.former.steps[at].clone());
            return Ok(());
        }
        let kept = self.describe(shared, step, inputs, keys, surroundings)?;
        if let Some(at) = self.ancestor(&kept) {
            self.matched[at] = true;
            if self.former.steps[at].hint != kept.hint {
                self.first_change.get_or_insert_with(|| kept.title.clone());
            }
        }
        self.current.steps.push(kept);
        Ok(())
    }

    /// Says why a step isn't taken from the cache; at least one reason. With them,
    /// the fields of its key for its record.
    ///
    /// # Errors
    /// As [`hit`](Self::hit).
    pub fn miss(
        &mut self,
        shared: &Shared<'_>,
        step: &Step,
        inputs: &Inputs,
        keys: &StepKeys,
        surroundings: &Surroundings,
        absence: Absence,
    ) -> Result<(Vec<MissReason>, Vec<Field>), Error> {
        let kept = self.describe(shared, step, inputs, keys, surroundings)?;
        let reasons = self.reasons(&kept, absence);
        self.first_change.get_or_insert_with(|| kept.title.clone());
        let fields = kept.fields.clone();
        self.current.steps.push(kept);
        Ok((reasons, fields))
    }

    fn reasons(&mut self, kept: &KeptStep, absence: Absence) -> Vec<MissReason> {
        let ancestor = self.ancestor(kept);
        if let Some(at) = ancestor {
            self.matched[at] = true;
        }
        let elsewhere = match absence {
            Absence::Forced(flag) => return vec![MissReason::Forced { flag: flag.to_owned() }],
            Absence::LayerGone => return vec![MissReason::Evicted],
            Absence::Unusable(reason) => return vec![MissReason::Unusable { reason }],
            Absence::NoRecord { elsewhere } => elsewhere,
        };
        let Some(at) = ancestor else { return vec![MissReason::NeverBuilt { elsewhere }] };
        let former = &self.former.steps[at];
        let mut reasons = Vec::new();
        if former.hint != kept.hint {
            reasons.extend(self.differences(&former.fields, &kept.fields));
        }
        if former.definition == kept.definition && self.first_change.is_none() {
            return vec![MissReason::Evicted];
        }
        if let Some(step) = &self.first_change {
            reasons.push(MissReason::ParentChanged { step: step.clone() });
        } else if self.former.base != self.current.base {
            reasons.push(base_changed(&self.former.base, &self.current.base));
        } else if let Some(gone) = self.removed_before(at) {
            reasons.push(MissReason::ParentChanged { step: format!("{gone} (removed)") });
        }
        if reasons.is_empty() {
            // Another key and nothing that is kept of it differs.
            reasons.push(MissReason::NeverBuilt { elsewhere });
        }
        reasons
    }

    /// A former step before `at` that no step of now descends from.
    fn removed_before(&self, at: usize) -> Option<&str> {
        let before = self.former.steps[..at].iter().zip(&self.matched[..at]);
        before.rev().find(|(_, matched)| !**matched).map(|(step, _)| step.title.as_str())
    }

    /// The former step that `kept` descends from: the same by its hint, by its text, or
    /// the one of the same word at the same place whose text is gone.
    fn ancestor(&self, kept: &KeptStep) -> Option<usize> {
        let position = self.current.steps.len();
        let nearest = |fits: &dyn Fn(&KeptStep) -> bool| {
            let free = self.former.steps.iter().zip(&self.matched).enumerate();
            free.filter(|(_, (step, matched))| !**matched && fits(step))
                .map(|(at, _)| at)
                .min_by_key(|at| at.abs_diff(position))
        };
        nearest(&|step| step.hint == kept.hint)
            .or_else(|| nearest(&|step| step.title == kept.title))
            .or_else(|| {
                let word = |title: &str| title.split(' ').next().map(str::to_owned);
                let former = self.former.steps.get(position)?;
                let fits = !self.matched[position]
                    && word(&former.title) == word(&kept.title)
                    && !self.titles.contains(&former.title);
                fits.then_some(position)
            })
    }

    fn describe(
        &self,
        shared: &Shared<'_>,
        step: &Step,
        inputs: &Inputs,
        keys: &StepKeys,
        surroundings: &Surroundings,
    ) -> Result<KeptStep, Error> {
        let mut kept = fields::of_step(step, surroundings, &self.mask);
        for (number, (files, is_whole)) in
            inputs.listings(shared, &step.action, files::MOST_KEPT)?.iter().enumerate()
        {
            let bytes = files::encode(files, *is_whole);
            let place = list_place(&bytes);
            if !self.places.touch(&place)
                && let Err(error) = self.places.write(&place, &bytes)
            {
                tracing::debug!(%error, "list of files not kept");
            }
            kept.push((format!("{} {number}", fields::FILES), format!("={place}")));
        }
        kept.truncate(MOST_FIELDS);
        Ok(KeptStep {
            title: self.mask.shown(&step.title),
            definition: keys.definition.to_string(),
            hint: keys.hint.to_string(),
            fields: kept,
        })
    }

    /// What tells two steps apart, field by field.
    fn differences(&self, old: &[Field], new: &[Field]) -> Vec<MissReason> {
        let value = |fields: &[Field], name: &str| {
            fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        let shown = |value: &Option<String>| value.as_deref().map(mask::show);
        let mut reasons = Vec::new();
        let mut order = None;
        let mut file_lists = Vec::new();
        let gone = old.iter().filter(|(name, _)| value(new, name).is_none());
        for (name, _) in new.iter().chain(gone) {
            let (before, after) = (value(old, name), value(new, name));
            if before == after {
                continue;
            }
            if name == fields::INSTRUCTION {
                let (Some(old), Some(new)) = (shown(&before), shown(&after)) else { continue };
                reasons.push(MissReason::InstructionChanged { old, new });
            } else if name.starts_with(fields::FILES) {
                file_lists.push((before, after));
            } else if name == fields::ORDER {
                order = Some((before, after));
            } else if let Some((kind @ ("ARG" | "ENV"), variable)) = name.split_once(' ') {
                reasons.push(MissReason::VariableChanged {
                    variable: kind.to_owned(),
                    name: variable.to_owned(),
                    old: shown(&before),
                    new: shown(&after),
                });
            } else {
                let (old, new) = (shown(&before), shown(&after));
                reasons.push(MissReason::FieldChanged { field: name.clone(), old, new });
            }
        }
        let is_variable =
            |reason: &MissReason| matches!(reason, MissReason::VariableChanged { .. });
        if let Some((before, after)) = order
            && !reasons.iter().any(is_variable)
        {
            let (old, new) = (shown(&before), shown(&after));
            reasons.push(MissReason::FieldChanged { field: fields::ORDER.to_owned(), old, new });
        }
        // Other sources are other files: naming each of them says nothing more.
        let is_instruction =
            |reason: &MissReason| matches!(reason, MissReason::InstructionChanged { .. });
        if !reasons.iter().any(is_instruction) {
            for (before, after) in file_lists {
                reasons.extend(self.file_differences(before.as_deref(), after.as_deref()));
            }
        }
        reasons
    }

    fn file_differences(&self, old: Option<&str>, new: Option<&str>) -> Vec<MissReason> {
        let list = |kept: Option<&str>| {
            let place = Key::from_hex(kept?.strip_prefix('=')?)?;
            files::decode(&self.places.read(&place)?)
        };
        let told = list(old).zip(list(new)).map(|((old, _), (new, _))| files::compare(&old, &new));
        match told {
            Some(reasons) if !reasons.is_empty() => reasons,
            _ => vec![MissReason::FilesChanged { count: None }],
        }
    }

    /// Keeps the description of this stage, if it is another than before. `is_whole`
    /// tells that all steps were seen: of a stage that failed, what was known of the
    /// steps behind is kept as it was.
    pub fn keep(&mut self, is_whole: bool) {
        if !is_whole {
            let seen = self.current.steps.len();
            let rest = self.former.steps.iter().zip(&self.matched).skip(seen);
            let rest: Vec<KeptStep> =
                rest.filter(|(_, matched)| !**matched).map(|(step, _)| step.clone()).collect();
            self.current.steps.extend(rest);
        }
        if self.current == self.former || self.current.steps.is_empty() {
            return;
        }
        let bytes = serde_json::to_vec(&self.current)
            .expect("text and lists only, and memory takes any bytes");
        for place in &self.own {
            if let Err(error) = self.places.write(place, &bytes) {
                tracing::debug!(%error, "description of the stage not kept");
            }
        }
    }
}

fn base_changed(old: &Option<(String, String)>, new: &Option<(String, String)>) -> MissReason {
    let shown = |base: &Option<(String, String)>| {
        base.as_ref().map_or("scratch".to_owned(), |(name, _)| name.clone())
    };
    match (old, new) {
        (Some((old_name, old)), Some((name, new))) if old_name == name => {
            MissReason::BaseChanged { old: old.clone(), new: new.clone(), name: Some(name.clone()) }
        }
        _ => MissReason::BaseChanged { old: shown(old), new: shown(new), name: None },
    }
}

/// Where a list of files is kept: under its content, so that equal lists are one.
fn list_place(bytes: &[u8]) -> Key {
    let mut hasher = KeyHasher::new("list of files");
    hasher.field("bytes", bytes);
    hasher.finish()
}

/// The places of a stage: by what it is built for, then by where it is built from.
/// In CI, checkouts move about and destinations don't; at home it's the other way
/// round.
fn places_of(shared: &Shared<'_>, index: usize) -> Vec<Key> {
    let request = shared.request;
    let stage = &shared.plan.stages[index];
    let place = |kind: &str, what: &[u8]| {
        let mut hasher = KeyHasher::new("place of a stage");
        hasher.field(kind, what);
        hasher.optional("below", request.context_sub_path.as_deref().map(str::as_bytes));
        hasher.optional("dockerfile", request.dockerfile.as_deref().map(str::as_bytes));
        hasher.field("stage", stage.name.as_deref().unwrap_or_default().as_bytes());
        if stage.name.is_none() {
            hasher.number("number", index as u64);
        }
        hasher.field("platform", stage.platform.to_string().as_bytes());
        hasher.finish()
    };
    let context = if shared.context.is_unpacked() {
        place("archive", request.context.as_bytes())
    } else {
        use std::os::unix::ffi::OsStrExt;
        let directory = shared.context.directory();
        let real = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        place("context", real.as_os_str().as_bytes())
    };
    let first =
        request.destinations.first().map(|first| place("repository", first.name().as_bytes()));
    first.into_iter().chain([context]).collect()
}

#[cfg(test)]
mod tests;
