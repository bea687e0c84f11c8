//! From base, steps and layers to an image: config, history, manifest. Pure.
//!
//! [`assemble`] writes what BuildKit's exporter writes: the base's config through
//! [`ImageConfig`] (keys it doesn't know are dropped), one history row per step,
//! layers of the base untouched but for the name of their media type, JSON as Go
//! encodes it. Equal inputs give equal bytes; nothing here asks for the time.
//! [`fn@validate`] takes an image apart again and recomputes everything in it.

pub mod annotation;
pub mod index;
mod json;
mod media;
pub mod provenance;
mod validate;

use std::collections::BTreeMap;

use crate::oci::config::ContainerConfig;
use crate::oci::config::History;
use crate::oci::config::ImageConfig;
use crate::oci::config::RootFs;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::media_type;
use crate::oci::platform::Platform;
use crate::tree::Timestamp;

pub use validate::Mismatch;
pub use validate::validate;

/// Comment of history rows written by a Dockerfile builder.
const COMMENT: &str = "buildkit.dockerfile.v0";
/// Comment of rows made up for layers of a base whose history doesn't mention them.
const COMMENT_UNKNOWN: &str = "layer of the base image without history";

/// The two families of names for the same documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `application/vnd.oci.…`
    Oci,
    /// `application/vnd.docker.…`
    Docker,
}

impl Format {
    /// The family a manifest's media type belongs to.
    pub fn of(media_type: &str) -> Self {
        if media_type.starts_with("application/vnd.docker.") { Self::Docker } else { Self::Oci }
    }

    /// Media type of the manifest.
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Oci => media_type::OCI_MANIFEST,
            Self::Docker => media_type::DOCKER_MANIFEST,
        }
    }

    /// Media type of the config.
    pub fn config(self) -> &'static str {
        match self {
            Self::Oci => media_type::OCI_CONFIG,
            Self::Docker => media_type::DOCKER_CONFIG,
        }
    }
}

/// The image that the new one stands on.
#[derive(Clone, Copy, Debug)]
pub struct BaseImage<'a> {
    /// Its config.
    pub config: &'a ImageConfig,
    /// Its layers, bottom first, as its manifest lists them.
    pub layers: &'a [Descriptor],
    /// Media type of its manifest.
    pub media_type: &'a str,
}

/// A new layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerRow {
    /// The blob; its media type may be of either family.
    pub descriptor: Descriptor,
    /// Its uncompressed tar.
    pub diff_id: DiffId,
    /// When it was made.
    pub created: Timestamp,
}

/// A new row of history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The instruction, as [`crate::oci::config::History::created_by`] shows it.
    pub created_by: String,
    /// Its layer; `None` if it only changed the config.
    pub layer: Option<LayerRow>,
}

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Assemble<'a> {
    /// The base; `None` for `FROM scratch`.
    pub base: Option<BaseImage<'a>>,
    /// Container config after the last step.
    pub config: &'a ContainerConfig,
    /// Author after the last step.
    pub author: Option<&'a str>,
    /// What the image is for. The base's OS version and variant stay where this
    /// leaves them open and the rest agrees.
    pub platform: &'a Platform,
    /// One for each step that has a history row, in order.
    pub rows: &'a [Row],
    /// Labels from the command line, over those of the file; they have no history.
    pub labels: &'a [(String, String)],
    /// Annotations of the manifest.
    pub annotations: &'a BTreeMap<String, String>,
    /// `None`: as the base, OCI without one.
    pub format: Option<Format>,
    /// SOURCE_DATE_EPOCH in seconds: no new time is later than this.
    pub epoch: Option<i64>,
}

/// An image, ready to be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assembled {
    /// Bytes of the config.
    pub config_json: Vec<u8>,
    /// Bytes of the manifest.
    pub manifest_json: Vec<u8>,
    /// Names the config.
    pub config: Descriptor,
    /// Names the manifest; without platform.
    pub manifest: Descriptor,
    /// The config as written.
    pub image: ImageConfig,
    /// The layers as the manifest lists them, bottom first.
    pub layers: Vec<Descriptor>,
}

/// Why an image can't be assembled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A base whose two documents don't belong together.
    #[error("base image has {layers} layers in its manifest and {diff_ids} diff IDs in its config")]
    BaseLayers {
        /// Entries in the manifest.
        layers: usize,
        /// Entries in the config.
        diff_ids: usize,
    },
}

/// Puts an image together.
///
/// # Errors
/// [`Error::BaseLayers`] if the base contradicts itself.
pub fn assemble(input: &Assemble<'_>) -> Result<Assembled, Error> {
    let format = input
        .format
        .unwrap_or_else(|| input.base.map_or(Format::Oci, |base| Format::of(base.media_type)));
    let mut image = ImageConfig::default();
    let mut layers = Vec::new();
    if let Some(base) = input.base {
        let diff_ids = base.config.rootfs.diff_ids.len();
        if diff_ids != base.layers.len() {
            return Err(Error::BaseLayers { layers: base.layers.len(), diff_ids });
        }
        image = base.config.clone();
        layers.extend(base.layers.iter().cloned());
    }
    set_platform(&mut image, input.platform);
    image.author = input.author.filter(|author| !author.is_empty()).map(str::to_owned);
    image.config = container(input);
    image.rootfs = RootFs { diff_ids: image.rootfs.diff_ids, ..RootFs::default() };
    image.history = base_history(&image.history, layers.len(), image.created.as_deref());
    image.history.extend(new_history(input));
    image.created = created(&image.history, input.epoch);

    for layer in input.rows.iter().filter_map(|row| row.layer.as_ref()) {
        layers.push(layer.descriptor.clone());
        image.rootfs.diff_ids.push(layer.diff_id);
    }
    for layer in &mut layers {
        layer.media_type = media::layer(&layer.media_type, format).to_owned();
    }

    let config_json = json::to_vec(&image);
    let config = describe(format.config(), &config_json);
    let manifest_json = json::to_vec(&Manifest {
        schema_version: 2,
        media_type: Some(format.manifest().to_owned()),
        artifact_type: None,
        config: config.clone(),
        layers: layers.clone(),
        subject: None,
        annotations: input.annotations.clone(),
    });
    let manifest = describe(format.manifest(), &manifest_json);
    Ok(Assembled { config_json, manifest_json, config, manifest, image, layers })
}

fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

/// As BuildKit: variant and OS version of the base are only trusted when it is for
/// the same OS and architecture.
fn set_platform(image: &mut ImageConfig, platform: &Platform) {
    let same = image.os == platform.os && image.architecture == platform.architecture;
    if platform.variant.is_some() || !same {
        image.variant.clone_from(&platform.variant);
    }
    if platform.os_version.is_some() || !same {
        image.os_version.clone_from(&platform.os_version);
    }
    image.os.clone_from(&platform.os);
    image.architecture.clone_from(&platform.architecture);
}

fn container(input: &Assemble<'_>) -> ContainerConfig {
    let mut config = input.config.clone();
    config.ensure_path();
    // Go leaves out a list without elements.
    config.cmd = config.cmd.filter(|words| !words.is_empty());
    config.entrypoint = config.entrypoint.filter(|words| !words.is_empty());
    config.labels.extend(input.labels.iter().cloned());
    config
}

/// The base's rows, with as many layers among them as it has: rows too many are
/// marked empty, rows too few are made up (their history is optional).
fn base_history(rows: &[History], layers: usize, created: Option<&str>) -> Vec<History> {
    let mut rows = rows.to_vec();
    let mut left = layers;
    for row in rows.iter_mut().filter(|row| !row.empty_layer) {
        match left.checked_sub(1) {
            Some(fewer) => left = fewer,
            None => row.empty_layer = true,
        }
    }
    rows.extend((0..left).map(|_| History {
        created: created.map(str::to_owned),
        comment: Some(COMMENT_UNKNOWN.to_owned()),
        ..History::default()
    }));
    rows
}

/// A layer's row has the layer's time; the others that of the layer before them,
/// or of the first layer to come.
fn new_history(input: &Assemble<'_>) -> Vec<History> {
    let clamp = |time: Timestamp| match input.epoch {
        Some(epoch) => time.min(Timestamp::seconds(epoch)),
        None => time,
    };
    let layer_times = || input.rows.iter().filter_map(|row| row.layer.as_ref());
    let mut time = match layer_times().next() {
        Some(layer) => Some(rfc3339(clamp(layer.created))),
        // No new layer at all: the epoch, or the base's last time.
        None => input.epoch.map(|epoch| rfc3339(Timestamp::seconds(epoch))).or_else(|| {
            let base = input.base?.config;
            let last = base.history.iter().rev().find_map(|row| row.created.clone());
            last.or_else(|| base.created.clone())
        }),
    };
    input
        .rows
        .iter()
        .map(|row| {
            if let Some(layer) = &row.layer {
                time = Some(rfc3339(clamp(layer.created)));
            }
            History {
                created: time.clone(),
                created_by: Some(row.created_by.clone()),
                author: None,
                comment: Some(COMMENT.to_owned()),
                empty_layer: row.layer.is_none(),
            }
        })
        .collect()
}

/// The last time in the history, no later than the epoch.
fn created(history: &[History], epoch: Option<i64>) -> Option<String> {
    let last = history.iter().rev().find_map(|row| row.created.clone());
    let Some(epoch) = epoch else { return last };
    let limit = rfc3339(Timestamp::seconds(epoch));
    match last.as_deref().map(str::parse::<jiff::Timestamp>) {
        Some(Ok(time)) if time.as_second() < epoch => last,
        _ => Some(limit),
    }
}

/// A time as Go prints it (`time.RFC3339Nano` in UTC): `2024-02-29T12:00:00.5Z`.
/// Times outside the years that RFC 3339 can say become the nearest it can.
pub fn rfc3339(time: Timestamp) -> String {
    /// 0000-01-01T00:00:00Z
    const FIRST: i64 = -62_167_219_200;
    let nanoseconds = i32::try_from(time.nanoseconds).unwrap_or(0);
    match jiff::Timestamp::new(time.seconds.max(FIRST), nanoseconds) {
        Ok(time) => time.to_string(),
        Err(_) => jiff::Timestamp::MAX.to_string(),
    }
}

#[cfg(test)]
mod tests;
