//! Image indexes: several images under one name, by platform, with what is attested
//! about each. Pure.

use std::collections::BTreeMap;

use super::Assembled;
use super::Format;
use super::describe;
use super::json;
use super::provenance::Attestation;
use crate::oci::descriptor::Descriptor;
use crate::oci::manifest::Index;
use crate::oci::media_type;
use crate::oci::platform::Platform;

/// One image of an index.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The image.
    pub image: &'a Assembled,
    /// What it is for.
    pub platform: &'a Platform,
    /// What is attested about it.
    pub attestation: Option<&'a Attestation>,
}

/// An index, ready to be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AssembledIndex {
    /// Its bytes.
    pub json: Vec<u8>,
    /// Names it.
    pub descriptor: Descriptor,
}

/// Puts an index together: the images in their order, then the attestations. Docker's
/// type is used when all images have Docker's and nothing is attested.
pub fn assemble(parts: &[Part<'_>], annotations: BTreeMap<String, String>) -> AssembledIndex {
    let mut manifests: Vec<Descriptor> = parts
        .iter()
        .map(|part| Descriptor {
            platform: Some(part.platform.clone()),
            ..part.image.manifest.clone()
        })
        .collect();
    let attested = parts.iter().filter_map(|part| part.attestation);
    manifests.extend(attested.map(|attestation| attestation.manifest.clone()));
    let is_docker = |entry: &Descriptor| Format::of(&entry.media_type) == Format::Docker;
    let media_type = if manifests.iter().all(is_docker) {
        media_type::DOCKER_INDEX
    } else {
        media_type::OCI_INDEX
    };
    let json = json::to_vec(&Index {
        schema_version: 2,
        media_type: Some(media_type.to_owned()),
        artifact_type: None,
        manifests,
        subject: None,
        annotations,
    });
    AssembledIndex { descriptor: describe(media_type, &json), json }
}
