//! What a build says of its steps when it is through: the build's [`Report`], and
//! the metadata file.
//!
//! The file is JSON with BuildKit's names for what BuildKit's has too; our steps are
//! under `yadokari.steps`.
//!
//! [`Report`]: super::Report

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use super::explain::MissReason;
use super::layers::LayerSlot;
use super::progress::StepNumber;
use crate::image::Assembled;
use crate::oci::reference::Reference;

/// How one step went.
#[derive(Clone)]
pub struct StepReport {
    /// Its number in the progress.
    pub number: StepNumber,
    /// Its stage, as the progress shows it; may be empty.
    pub stage: String,
    /// `[build 2/5] RUN make`.
    pub name: String,
    /// Whether its layer came from the cache.
    pub is_hit: bool,
    /// Why it didn't; none for a hit.
    pub reasons: Vec<MissReason>,
    /// How long it took, the writing of its layer apart.
    pub elapsed: Duration,
    /// Its layer.
    pub layer: Option<LayerSlot>,
}

impl StepReport {
    fn to_json(&self) -> Value {
        let layer = self.layer.as_ref().and_then(|slot| slot.peek()?.ok());
        json!({
            "step": self.number.0,
            "stage": self.stage,
            "name": self.name,
            "cache": if self.is_hit { "hit" } else { "miss" },
            "reasons": reasons_to_json(&self.reasons),
            "seconds": self.elapsed.as_secs_f64(),
            "layer": layer.as_ref().map(|facts| facts.descriptor.digest.to_string()),
            "diffId": layer.as_ref().map(|facts| facts.diff_id.to_string()),
        })
    }
}

/// Reasons as the metadata file and the JSON log hold them: their fields, and the
/// sentence as `text`.
pub fn reasons_to_json(reasons: &[MissReason]) -> Value {
    let one = |reason: &MissReason| {
        let mut value = serde_json::to_value(reason).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("text".to_owned(), reason.to_string().into());
        }
        value
    };
    reasons.iter().map(one).collect()
}

/// The metadata file of a build.
pub(super) fn metadata(
    image: &Assembled,
    destinations: &[Reference],
    steps: &[StepReport],
) -> Value {
    let mut metadata = json!({
        "containerimage.config.digest": image.config.digest.to_string(),
        "containerimage.descriptor": {
            "mediaType": image.manifest.media_type,
            "digest": image.manifest.digest.to_string(),
            "size": image.manifest.size,
        },
        "containerimage.digest": image.manifest.digest.to_string(),
        "yadokari.steps": steps.iter().map(StepReport::to_json).collect::<Value>(),
    });
    let names: Vec<String> = destinations.iter().map(super::outputs::with_tag).collect();
    if let Some(object) = metadata.as_object_mut().filter(|_| !names.is_empty()) {
        object.insert("image.name".to_owned(), names.join(",").into());
    }
    metadata
}
