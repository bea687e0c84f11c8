//! What a cached step is in a registry: a small OCI artifact, foreign bytes until
//! they are checked here.
//!
//! ```text
//! <cache repository>:<definition key>   ┐
//! <cache repository>:<content key>      ├ one manifest
//! <cache repository>:<inferred key>     │
//! <cache repository>:<hint>             ┘
//!   artifactType, config.mediaType   application/vnd.yadokari.step.v1+json
//!   config                           the record (below), also inline as `data`
//!   layers                           the step's layer, the same blob as in the image
//! ```
//!
//! The keys are those of [`crate::build::key`], as 64 hex digits; the inferred one is
//! there for steps that read another stage, see [`crate::build::inferred`]. The record is
//! JSON: keys, diff ID, time, compression. It holds no instruction, no variable, no
//! name of a file: only hashes of them.
//!
//! Checked on reading: the digest of everything, the type, the version, that the
//! record was made for the key it was asked by, that record and manifest name the
//! same layer, and that every number is one that can be meant. What is wrong is a
//! miss with its reason ([`Defect`]), never an error of the build. What can't be
//! checked is whether whoever wrote the record really ran the step: a cache
//! repository must be writable only for those whose images one would run.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::Serialize;
use yadokari_cache::Key;
use yadokari_cache::StepRecord;
use yadokari_cache::record::Compressed;

use crate::oci::descriptor::Descriptor;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::oci::manifest::MANIFEST_MAX;
use crate::oci::media_type;

/// Type of the artifact and of its config. A change that old readers would
/// misunderstand gets another number.
pub const STEP_TYPE: &str = "application/vnd.yadokari.step.v1+json";

/// Version of the record inside, for changes that old readers must not use.
const VERSION: u32 = 1;

/// Largest record that is read, in bytes; ours have about 600.
pub const RECORD_MAX: u64 = 64 << 10;

/// Longest name of a compression setting.
const SETTING_MAX: usize = 64;

/// The last second that can be written in RFC 3339.
const LAST_SECOND: i64 = 253_402_300_799;

/// How far ahead the clock of who wrote a record may be, in seconds.
const CLOCK_SKEW: i64 = 24 * 3600;

/// A step as a registry knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedStep {
    /// As in the local cache, without the inputs that explain misses.
    pub record: StepRecord,
    /// Its layer as it is in the repository.
    pub layer: Descriptor,
    /// Label of the compression that made it.
    pub setting: String,
    /// Key by the definitions of the stages that it reads.
    pub inferred: Option<Key>,
}

/// Which of its keys a record was asked by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// The definition key.
    Definition(Key),
    /// The content key.
    Content(Key),
    /// The key by the definitions of the stages that it reads.
    Inferred(Key),
    /// The step by itself.
    Hint(Key),
}

impl Asked {
    /// The key, which is the tag.
    pub fn key(&self) -> &Key {
        match self {
            Self::Definition(key) | Self::Content(key) | Self::Inferred(key) | Self::Hint(key) => {
                key
            }
        }
    }
}

/// Why something in a cache repository is not used.
#[derive(Debug, thiserror::Error)]
pub enum Defect {
    /// Neither the artifact type nor the config is ours.
    #[error("it is no cached step but `{0}`")]
    Foreign(String),
    /// No JSON, or not of this form.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// Written by a later version.
    #[error("its version is {0}")]
    Version(u32),
    /// Bytes and digest disagree.
    #[error("its record is not what its digest says")]
    Digest,
    /// It was made for another step.
    #[error("it belongs to another key")]
    OtherKey,
    /// A value that no builder writes.
    #[error("its {0} is impossible")]
    Impossible(&'static str),
    /// Older than `--cache-ttl` allows.
    #[error("it is older than --cache-ttl")]
    Expired,
}

/// A manifest as far as it matters here.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Inline,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// A descriptor that may carry its content (descriptor.md, `data`).
#[derive(Serialize, Deserialize)]
struct Inline {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

/// The record. Fields are only ever added.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    version: u32,
    definition: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inferred: Option<String>,
    diff_id: DiffId,
    layer: Digest,
    setting: String,
    created: i64,
    #[serde(default)]
    created_nanoseconds: u32,
    #[serde(default)]
    empty: bool,
    #[serde(default)]
    duration_ms: u64,
}

/// An artifact ready to be pushed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Artifact {
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The record's bytes: the config.
    pub record: Vec<u8>,
    /// What the manifest says of the record.
    pub config: Descriptor,
}

/// Writes the artifact of a step.
pub fn encode(step: &SharedStep) -> Artifact {
    let of = |key: Option<Key>| key.map(|key| key.to_string());
    let document = Document {
        version: VERSION,
        definition: step.record.definition.to_string(),
        content: of(step.record.content),
        hint: of(step.record.hint),
        inferred: of(step.inferred),
        diff_id: DiffId::from_bytes(step.record.diff_id),
        layer: step.layer.digest,
        setting: step.setting.clone(),
        created: step.record.created,
        created_nanoseconds: step.record.created_nanoseconds,
        empty: step.record.empty,
        duration_ms: step.record.duration_ms,
    };
    let record = serde_json::to_vec(&document).expect("text and numbers become JSON");
    let config = Descriptor::new(STEP_TYPE, Digest::of(&record), record.len() as u64);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: Some(STEP_TYPE.to_owned()),
        config: Inline { descriptor: config.clone(), data: Some(STANDARD.encode(&record)) },
        layers: vec![step.layer.clone()],
        annotations: BTreeMap::new(),
    };
    let manifest = serde_json::to_vec(&manifest).expect("text and numbers become JSON");
    Artifact { manifest, record, config }
}

/// What a manifest says before its record is read.
pub struct Outline {
    config: Descriptor,
    layer: Descriptor,
    inline: Option<Vec<u8>>,
}

impl Outline {
    /// Reads a manifest.
    ///
    /// # Errors
    /// A [`Defect`] for everything that isn't a cached step.
    pub fn read(bytes: &[u8]) -> Result<Self, Defect> {
        if bytes.len() > MANIFEST_MAX {
            return Err(Defect::Impossible("size"));
        }
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|error| Defect::Malformed(error.to_string()))?;
        let config = manifest.config.descriptor;
        if config.media_type != STEP_TYPE {
            return Err(Defect::Foreign(shortened(&config.media_type)));
        }
        let kind = manifest.media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST);
        if manifest.schema_version != 2 || kind != media_type::OCI_MANIFEST {
            return Err(Defect::Foreign(shortened(kind)));
        }
        if config.size > RECORD_MAX {
            return Err(Defect::Impossible("size"));
        }
        let Ok([mut layer]) = <[Descriptor; 1]>::try_from(manifest.layers) else {
            return Err(Defect::Impossible("number of layers"));
        };
        let known = [media_type::OCI_LAYER, media_type::OCI_LAYER_GZIP, media_type::OCI_LAYER_ZSTD];
        if !known.contains(&layer.media_type.as_str()) {
            return Err(Defect::Impossible("layer's media type"));
        }
        if layer.size == 0 || i64::try_from(layer.size).is_err() {
            return Err(Defect::Impossible("layer's size"));
        }
        // Where a stranger says that it lies is nothing to us.
        layer.urls.clear();
        layer.annotations.clear();
        layer.platform = None;
        let inline = match manifest.config.data {
            Some(text) => Some(STANDARD.decode(text).map_err(|_| Defect::Digest)?),
            None => None,
        };
        Ok(Self { config, layer, inline })
    }

    /// The record's blob, if it has to be fetched.
    pub fn missing(&self) -> Option<&Descriptor> {
        self.inline.is_none().then_some(&self.config)
    }

    /// Checks the record (`fetched` where it wasn't inline), that was found under
    /// `asked` at the time `now`, in seconds.
    ///
    /// # Errors
    /// A [`Defect`] for everything that can't be used.
    pub fn step(
        self,
        fetched: Option<Vec<u8>>,
        asked: &Asked,
        now: i64,
        ttl: Option<Duration>,
    ) -> Result<SharedStep, Defect> {
        let bytes = self.inline.or(fetched).unwrap_or_default();
        if bytes.len() as u64 != self.config.size || Digest::of(&bytes) != self.config.digest {
            return Err(Defect::Digest);
        }
        let versioned: Version =
            serde_json::from_slice(&bytes).map_err(|error| Defect::Malformed(error.to_string()))?;
        if versioned.version != VERSION {
            return Err(Defect::Version(versioned.version));
        }
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|error| Defect::Malformed(error.to_string()))?;
        let key = |text: &str| Key::from_hex(text).ok_or(Defect::Impossible("key"));
        let record = StepRecord {
            diff_id: *document.diff_id.as_bytes(),
            compressed: Some(Compressed {
                digest: *self.layer.digest.as_bytes(),
                size: self.layer.size,
                media_type: self.layer.media_type.clone(),
            }),
            created: document.created,
            created_nanoseconds: document.created_nanoseconds,
            empty: document.empty,
            // Its age counts from when it was made.
            stored: 0,
            inputs: Vec::new(),
            definition: key(&document.definition)?,
            content: document.content.as_deref().map(key).transpose()?,
            hint: document.hint.as_deref().map(key).transpose()?,
            duration_ms: document.duration_ms,
        };
        let inferred = document.inferred.as_deref().map(key).transpose()?;
        let belongs = match asked {
            Asked::Definition(key) => record.definition == *key,
            Asked::Content(key) => record.content == Some(*key),
            Asked::Inferred(key) => inferred == Some(*key),
            Asked::Hint(key) => record.hint == Some(*key),
        };
        if !belongs {
            return Err(Defect::OtherKey);
        }
        if document.layer != self.layer.digest {
            return Err(Defect::Impossible("layer"));
        }
        let in_time = (0..=LAST_SECOND).contains(&record.created)
            && record.created <= now.saturating_add(CLOCK_SKEW)
            && record.created_nanoseconds < 1_000_000_000;
        if !in_time {
            return Err(Defect::Impossible("time"));
        }
        let seconds = |ttl: Duration| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        if ttl.is_some_and(|ttl| record.created.saturating_add(seconds(ttl)) < now) {
            return Err(Defect::Expired);
        }
        let printable = document.setting.bytes().all(|byte| byte.is_ascii_graphic());
        if document.setting.len() > SETTING_MAX || !printable {
            return Err(Defect::Impossible("compression"));
        }
        Ok(SharedStep { record, layer: self.layer, setting: document.setting, inferred })
    }
}

/// The one field that every version has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Foreign text for a message.
fn shortened(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests;
