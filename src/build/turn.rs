//! Identical steps of several builds: one builds, the others wait for its record.
//!
//! Waiting is bounded, by twice the time that the step took last where that is
//! known, and ends at once when the one who builds dies: its lock goes with it. Then
//! the step is built here. Two stages of one build with the same step take turns in
//! the same way.
//!
//! Who waited for somebody that made nothing to be kept, because the step failed or can't
//! be kept, builds without the right to be the only one: else each of many builders
//! would wait for all of those before.

use std::time::Duration;
use std::time::Instant;

use yadokari_cache::Bucket;
use yadokari_cache::StepRecord;
use yadokari_cache::Turn;

use super::Error;
use super::Progress;
use super::key::StepKeys;
use super::layers::LayerFacts;
use super::progress::StepNumber;
use super::shared::Shared;

/// Shortest and longest time to wait, and that for a step which was never built.
const SHORTEST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(30 * 60);
const UNKNOWN: Duration = Duration::from_secs(5 * 60);

/// How often the lock is tried.
const INTERVAL: Duration = Duration::from_millis(20);

/// What came of waiting.
pub(super) enum Turned {
    /// Another build made the layer.
    Hit(Box<LayerFacts>),
    /// It is to be built here, with the right to be the only one or, after too long
    /// a time, without.
    Build(Option<Turn>),
}

/// Takes the turn to build the step, or waits for whoever has it. `look_up` is asked
/// again once the turn is had.
///
/// # Errors
/// Those of `look_up`; [`Error::Interrupted`].
pub(super) fn wait(
    shared: &Shared<'_>,
    keys: &StepKeys,
    number: StepNumber,
    look_up: impl FnOnce() -> Result<Option<LayerFacts>, Error>,
) -> Result<Turned, Error> {
    let cache = &shared.workshop.cache;
    let mut until = None;
    loop {
        match cache.take_turn(&keys.definition) {
            Ok(Some(turn)) => {
                let in_vain = until.is_some() && !turn.is_inherited();
                return Ok(match look_up()? {
                    Some(facts) => Turned::Hit(Box::new(facts)),
                    None => Turned::Build(Some(turn).filter(|_| !in_vain)),
                });
            }
            Ok(None) => {}
            // No locks here: everybody builds for himself.
            Err(error) => {
                tracing::debug!(%error, "no turn taken");
                return Ok(Turned::Build(None));
            }
        }
        shared.check_interrupted()?;
        let until = *until.get_or_insert_with(|| {
            let limit = limit(shared, keys);
            shared.observer.observe(Progress::Waiting { step: number, limit });
            Instant::now() + limit
        });
        if Instant::now() >= until {
            return Ok(match look_up()? {
                Some(facts) => Turned::Hit(Box::new(facts)),
                None => Turned::Build(None),
            });
        }
        std::thread::park_timeout(INTERVAL);
    }
}

fn limit(shared: &Shared<'_>, keys: &StepKeys) -> Duration {
    let last: Option<StepRecord> = shared.workshop.cache.record_in(Bucket::Hints, &keys.hint);
    match last {
        Some(record) => {
            Duration::from_millis(record.duration_ms.saturating_mul(2)).clamp(SHORTEST, LONGEST)
        }
        None => UNKNOWN,
    }
}
