//! Keys of steps that read other stages or images, known without reading them.
//!
//! A `COPY --from=build` is keyed by the content of what it takes, which must be
//! here to be digested. A machine that has nothing of that stage would have to fetch
//! all its layers only to learn that the COPY is in the shared cache as well. The
//! *inferred* key stands on what makes those files instead: the stage's definition
//! key, or the layers of the image, and the paths taken out of them. It is asked by
//! only in the shared cache, and only where the files aren't here: where they are,
//! the content decides, as a stage that ran again may have made the same files.

use yadokari_cache::Key;
use yadokari_cache::KeyHasher;

use super::Error;
use super::key;
use super::layers;
use super::shared::Shared;
use crate::oci::digest::DiffId;
use crate::oci::platform::Platform;
use crate::plan::step::Action;
use crate::plan::step::CopySource;
use crate::plan::step::MountKind;
use crate::plan::step::Origin;

/// The inferred key of a step that stands on `parent`; `None` for one that reads no
/// stage or image, or the build context beside it. Waits for the stages it reads.
///
/// # Errors
/// Those of the stages and images.
pub fn key_of(
    shared: &Shared<'_>,
    parent: &Key,
    action: &Action,
    surroundings: &key::Surroundings,
) -> Result<Option<Key>, Error> {
    let mut contents = Vec::new();
    for (origin, taken) in reads(action) {
        let Some(origin) = of_origin(shared, origin, &surroundings.platform)? else {
            return Ok(None);
        };
        let mut hasher = KeyHasher::new("inferred");
        hasher.key("origin", &origin);
        hasher.list("taken", taken);
        contents.push(hasher.finish());
    }
    if contents.is_empty() {
        return Ok(None);
    }
    Ok(Some(key::of_step(parent, action, &contents, surroundings).definition))
}

/// Whether the files that a step reads out of stages and images are all here. Waits
/// for the stages.
///
/// # Errors
/// Those of the stages and images.
pub fn is_here(shared: &Shared<'_>, action: &Action, platform: &Platform) -> Result<bool, Error> {
    let has = |diff_id: &DiffId| -> Result<bool, Error> {
        Ok(shared.bases.store.layer(diff_id)?.is_some())
    };
    for (origin, _) in reads(action) {
        let (base, chain) = match origin {
            Origin::Context | Origin::Named(_) | Origin::Scratch => continue,
            Origin::Image(name) => (Some(shared.bases.resolve(name, platform)?), Vec::new()),
            Origin::Stage(index) => {
                let finished = shared.stage(*index)?;
                (finished.base.clone(), layers::wait_all(&finished.chain)?)
            }
        };
        for layer in base.iter().flat_map(|base| &base.layers) {
            if !has(&layer.diff_id)? {
                return Ok(false);
            }
        }
        for facts in chain {
            if !has(&facts.diff_id)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn of_origin(
    shared: &Shared<'_>,
    origin: &Origin,
    platform: &Platform,
) -> Result<Option<Key>, Error> {
    Ok(match origin {
        Origin::Context | Origin::Named(_) => None,
        Origin::Scratch => Some(key::of_base(&[])),
        Origin::Stage(index) => Some(shared.stage(*index)?.definition),
        Origin::Image(name) => {
            let image = shared.bases.resolve(name, platform)?;
            let layers: Vec<DiffId> = image.layers.iter().map(|layer| layer.diff_id).collect();
            Some(key::of_base(&layers))
        }
    })
}

/// What a step reads: whose files, and which, as written.
fn reads(action: &Action) -> Vec<(&Origin, Vec<Vec<u8>>)> {
    match action {
        Action::Copy(copy) => {
            let mut taken: Vec<Vec<u8>> = Vec::new();
            for source in &copy.sources {
                match source {
                    CopySource::Path(path) => taken.extend([b"path".to_vec(), path.clone().into()]),
                    // Only of the build context, for which there is no such key.
                    CopySource::Http { .. } | CopySource::Git { .. } => {}
                    CopySource::Inline { name, body } => {
                        taken.extend([
                            b"inline".to_vec(),
                            name.clone().into(),
                            body.clone().into(),
                        ]);
                    }
                }
            }
            for pattern in &copy.exclude {
                taken.extend([b"exclude".to_vec(), pattern.clone().into()]);
            }
            vec![(&copy.origin, taken)]
        }
        Action::Run(run) => run
            .mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                MountKind::Bind { origin, source, .. }
                | MountKind::Cache { from: Some((origin, source)), .. } => {
                    Some((origin, vec![source.clone().into()]))
                }
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}
