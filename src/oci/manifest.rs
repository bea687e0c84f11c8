//! Image manifests and indexes (OCI image specification, manifest.md and image-index.md),
//! and Docker's schema 2 equivalents, which have the same fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::descriptor::Descriptor;
use super::media_type;
use super::platform::Platform;

/// Largest manifest or index we read, in bytes. Registries refuse more than 4 MiB; we
/// leave room, yet never hold what a hostile server likes to send.
pub const MANIFEST_MAX: usize = 8 << 20;

/// The manifest of one image. Fields stand in the order in which Go's encoder writes them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The manifest's own type; Docker's always have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What an artifact is, when it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Bottom first.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about (signatures, attestations).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests by platform. Fields stand in the order in which Go's encoder
/// writes them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The index's own type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What an artifact is, when it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// One per platform, and attestations.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// The manifest that fits `platform` best, see [`Platform::rank`]. Attestations are
    /// passed over. An index with a single manifest that names no platform gives that one.
    pub fn select(&self, platform: &Platform) -> Option<&Descriptor> {
        let images: Vec<(&Descriptor, &Platform)> = self
            .manifests
            .iter()
            .filter(|entry| is_image(entry))
            .filter_map(|entry| Some((entry, entry.platform.as_ref()?)))
            .collect();
        if let Some(best) = platform.best(images.iter().map(|(_, offered)| *offered)) {
            return images.get(best).map(|(entry, _)| *entry);
        }
        match self.manifests.as_slice() {
            [only] if only.platform.is_none() && is_image(only) => Some(only),
            _ => None,
        }
    }

    /// The platforms of the images, in the index's order, for messages.
    pub fn platforms(&self) -> Vec<Platform> {
        let images = self.manifests.iter().filter(|entry| is_image(entry));
        images.filter_map(|entry| entry.platform.clone()).collect()
    }
}

/// Attestations of BuildKit stand in an index as images of platform `unknown/unknown`.
fn is_image(entry: &Descriptor) -> bool {
    !entry.annotations.contains_key("vnd.docker.reference.type")
        && entry.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
}

/// What stands behind a reference.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, taken apart at once")]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several, by platform.
    Index(Index),
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ParseManifestError {
    /// Longer than [`MANIFEST_MAX`].
    #[error("the manifest has {0} bytes, more than {MANIFEST_MAX}")]
    TooLarge(usize),
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("the manifest is malformed")]
    Malformed(#[source] serde_json::Error),
    /// Docker's first format, which no registry should serve any more.
    #[error(
        "the image is in Docker's schema 1 format, which has no digests of its layers: \
         push it again with a current tool"
    )]
    Schema1,
    /// A version that is not 2.
    #[error("the manifest has schema version {0}, 2 is expected")]
    Version(u64),
    /// Something else than an image.
    #[error("media type `{0}` is neither an image manifest nor an image index")]
    Unknown(String),
    /// The answer's header and the document disagree, or it is manifest and index at once:
    /// two readers could see two images under one digest (CVE-2021-41190).
    #[error("the manifest is ambiguous: {0}")]
    Ambiguous(String),
}

/// The fields that say what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index. `media_type` is what the server or the descriptor says it
/// is; when that names neither (`application/json`, empty), the document itself decides.
///
/// # Errors
///
/// See [`ParseManifestError`]; never panics on foreign bytes.
pub fn parse_manifest(bytes: &[u8], media_type: &str) -> Result<Document, ParseManifestError> {
    if bytes.len() > MANIFEST_MAX {
        return Err(ParseManifestError::TooLarge(bytes.len()));
    }
    let shape: Shape = serde_json::from_slice(bytes).map_err(ParseManifestError::Malformed)?;
    match shape.schema_version {
        Some(2) => {}
        Some(1) => return Err(ParseManifestError::Schema1),
        None if shape.fs_layers.is_some() => return Err(ParseManifestError::Schema1),
        other => return Err(ParseManifestError::Version(other.unwrap_or(0))),
    }
    let own = shape.media_type.as_deref().filter(|own| !own.is_empty());
    let said = media_type.split(';').next().unwrap_or("").trim();
    let is_known = |name: &str| media_type::is_index(name) || media_type::is_manifest(name);
    if let Some(own) = own
        && is_known(said)
        && own != said
    {
        return Err(ParseManifestError::Ambiguous(format!(
            "it was served as `{said}` and says that it is `{own}`"
        )));
    }
    let name = if is_known(said) { said } else { own.unwrap_or("") };
    let is_index =
        if name.is_empty() { shape.manifests.is_some() } else { media_type::is_index(name) };
    if !name.is_empty() && !is_known(name) {
        return Err(ParseManifestError::Unknown(name.to_owned()));
    }
    if shape.manifests.is_some() && (shape.config.is_some() || shape.layers.is_some()) {
        let both = "it lists both manifests and layers";
        return Err(ParseManifestError::Ambiguous(both.to_owned()));
    }
    if is_index {
        serde_json::from_slice(bytes).map(Document::Index)
    } else {
        serde_json::from_slice(bytes).map(Document::Manifest)
    }
    .map_err(ParseManifestError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::digest::Digest;

    fn descriptor(content: &str) -> Descriptor {
        Descriptor::new(media_type::OCI_MANIFEST, Digest::of(content.as_bytes()), 7)
    }

    fn manifest() -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: descriptor("config"),
            layers: vec![descriptor("layer")],
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    fn entry(platform: &str) -> Descriptor {
        let platform: Platform = platform.parse().unwrap();
        Descriptor { platform: Some(platform.clone()), ..descriptor(&platform.to_string()) }
    }

    fn index(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn fields_are_written_in_go_s_order() {
        let text = serde_json::to_string(&manifest()).unwrap();
        let at = |field: &str| text.find(field).unwrap();
        assert!(text.starts_with(r#"{"schemaVersion":2,"mediaType":"#));
        assert!(at("mediaType") < at("config") && at("\"config\"") < at("layers"));
        assert!(!text.contains("annotations"));
    }

    #[test]
    fn manifests_and_indexes_survive_a_round_trip_whatever_the_header_says() {
        let bytes = serde_json::to_vec(&manifest()).unwrap();
        for said in [media_type::OCI_MANIFEST, "application/json; charset=utf-8", ""] {
            let parsed = parse_manifest(&bytes, said).unwrap();
            assert_eq!(parsed, Document::Manifest(manifest()));
        }
        let list = index(vec![entry("linux/amd64")]);
        let bytes = serde_json::to_vec(&list).unwrap();
        for said in [media_type::OCI_INDEX, media_type::DOCKER_INDEX, ""] {
            assert_eq!(parse_manifest(&bytes, said).unwrap(), Document::Index(list.clone()));
        }
    }

    #[test]
    fn ambiguous_old_and_broken_documents_are_refused() {
        let bytes = serde_json::to_vec(&manifest()).unwrap();
        let served_as = |said: &str| parse_manifest(&bytes, said).unwrap_err();
        assert!(matches!(served_as(media_type::OCI_INDEX), ParseManifestError::Ambiguous(_)));
        let parse = |text: &str| parse_manifest(text.as_bytes(), "").unwrap_err();
        assert!(matches!(
            parse(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#),
            ParseManifestError::Ambiguous(_)
        ));
        assert!(matches!(parse(r#"{"schemaVersion":1}"#), ParseManifestError::Schema1));
        assert!(matches!(parse(r#"{"schemaVersion":3}"#), ParseManifestError::Version(3)));
        assert!(matches!(parse("{}"), ParseManifestError::Version(0)));
        assert!(matches!(
            parse(r#"{"schemaVersion":2,"mediaType":"text/x"}"#),
            ParseManifestError::Unknown(_)
        ));
        for text in ["", "[]", "{\"schemaVersion\":2}", "\0", "<html>"] {
            assert!(matches!(parse(text), ParseManifestError::Malformed(_)), "{text}");
        }
        assert!(matches!(
            parse_manifest(&vec![b' '; MANIFEST_MAX + 1], ""),
            Err(ParseManifestError::TooLarge(_))
        ));
    }

    #[test]
    fn the_index_gives_the_best_image_and_never_an_attestation() {
        let mut attestation = entry("linux/amd64");
        attestation
            .annotations
            .insert("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned());
        let list = index(vec![
            attestation.clone(),
            entry("linux/arm/v6"),
            entry("linux/arm64/v8"),
            entry("linux/amd64"),
        ]);
        let select = |platform: &str| list.select(&platform.parse().unwrap());
        assert_eq!(select("linux/amd64"), Some(&entry("linux/amd64")));
        assert_eq!(select("linux/arm64"), Some(&entry("linux/arm64")));
        assert_eq!(select("linux/arm/v7"), Some(&entry("linux/arm/v6")));
        assert_eq!(select("linux/s390x"), None);
        assert_eq!(list.platforms().len(), 3);
        assert_eq!(index(vec![attestation]).select(&"linux/amd64".parse().unwrap()), None);
    }

    #[test]
    fn a_single_manifest_without_platform_is_taken() {
        let list = index(vec![descriptor("only")]);
        assert_eq!(list.select(&"linux/amd64".parse().unwrap()), Some(&descriptor("only")));
    }
}
