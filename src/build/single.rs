//! `--single-snapshot`: everything above the base image as one layer.
//!
//! Steps run and are cached as ever; their layers are merged at the end by comparing
//! the two trees, and the merged layer is remembered under the layers it is made of.

use yadokari_cache::Bucket;
use yadokari_cache::Key;
use yadokari_cache::KeyHasher;
use yadokari_cache::Record;
use yadokari_cache::StepRecord;

use super::Error;
use super::layers;
use super::layers::LayerFacts;
use super::shared::Shared;
use super::stage::Finished;
use super::stage::Row;
use crate::change::ChangeLog;
use crate::oci::digest::DiffId;
use crate::snapshot::Mode;
use crate::snapshot::Snapshotter;
use crate::snapshot::WalkSnapshotter;

/// `finished` with one layer in place of all those above its base. The last row that
/// had a layer keeps it; what was changed by several steps is in it once.
///
/// # Errors
/// Those of its layers, and of writing the merged one.
pub(super) fn merge(shared: &Shared<'_>, finished: &Finished) -> Result<Finished, Error> {
    let chain = layers::wait_all(&finished.chain)?;
    let mut rows = finished.rows.clone();
    let merged = match chain.as_slice() {
        [] | [_] => chain.first().cloned(),
        _ => Some(merged(shared, finished, &chain)?),
    };
    let slot = merged.map(layers::ready);
    let last = rows.iter().rposition(|row: &Row| row.layer.is_some());
    for (index, row) in rows.iter_mut().enumerate() {
        row.layer = slot.clone().filter(|_| Some(index) == last);
    }
    Ok(Finished {
        base: finished.base.clone(),
        chain: slot.into_iter().collect(),
        rows,
        steps: finished.steps.clone(),
        definition: finished.definition,
        misses: finished.misses,
        first_change: finished.first_change.clone(),
    })
}

fn merged(
    shared: &Shared<'_>,
    finished: &Finished,
    chain: &[LayerFacts],
) -> Result<LayerFacts, Error> {
    let workshop = shared.workshop;
    let base: Vec<DiffId> =
        finished.base.iter().flat_map(|base| &base.layers).map(|layer| layer.diff_id).collect();
    let key = key(&base, chain);
    if let Some(record) = workshop.cache.record::<StepRecord>(&key)
        && let Some(facts) = workshop.usable(&record)?
    {
        return Ok(facts);
    }
    let below = match &finished.base {
        Some(base) => shared.base_lowers(base)?,
        None => Vec::new(),
    };
    let before = shared.overlay(below)?;
    let after = shared.overlay(shared.stage_lowers(finished)?)?;
    // Comparing bytes is cheap here: the layers' indexes know the digests.
    let mut snapshotter = WalkSnapshotter::new(Mode::Full);
    snapshotter.mark(&*before.after())?;
    let log = ChangeLog { events: Default::default(), lost: None };
    let set = snapshotter.changes(&*before.after(), &*after.after(), &log)?;
    let created = chain.iter().map(|facts| facts.created).max().unwrap_or_else(|| shared.now());
    let facts = workshop.write_set(&set, created)?;
    let record = layers::record_of(&facts, key, set.is_empty());
    workshop.cache.put(&[(Bucket::Steps, key, record.encode())])?;
    Ok(facts)
}

fn key(base: &[DiffId], chain: &[LayerFacts]) -> Key {
    let mut hasher = KeyHasher::new("single");
    hasher.list("base", base.iter().map(|layer| layer.as_bytes().as_slice()));
    hasher.list("chain", chain.iter().map(|facts| facts.diff_id.as_bytes().as_slice()));
    hasher.finish()
}
