//! Provenance: an in-toto statement with a SLSA v1 predicate, as an attestation
//! manifest that stands beside its image in an index. The shape is BuildKit's, mode
//! `min`: what the image was made from and when, and neither arguments nor secrets.
//! Pure.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use super::describe;
use super::json;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::media_type;
use crate::oci::platform::Platform;

/// Media type of an in-toto statement.
const STATEMENT: &str = "application/vnd.in-toto+json";
/// What an attestation manifest is.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Media type of the config of an artifact that has none (OCI image specification,
/// manifest.md).
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Type of the predicate.
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// What says how the predicate's fields are to be read.
const BUILD_TYPE: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";

/// What is known about the making of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts<'a> {
    /// The image's manifest.
    pub image: &'a Descriptor,
    /// What it is for.
    pub platform: &'a Platform,
    /// What it was built on.
    pub build_platform: &'a Platform,
    /// Names under which it is published: `registry/repository:tag`.
    pub names: &'a [String],
    /// Path of the Dockerfile as given.
    pub dockerfile: &'a str,
    /// `builder-id`; may be empty.
    pub builder: &'a str,
    /// Images that it was made from.
    pub dependencies: &'a [Dependency],
    /// When it was made, RFC 3339: its config's time, so that a build in which nothing
    /// changed attests the same.
    pub created: Option<&'a str>,
}

/// An image that another was made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dependency {
    /// As FROM or `--from` names it.
    pub name: String,
    /// Its manifest.
    pub digest: Digest,
}

/// An attestation, ready to be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attestation {
    /// The documents that its manifest names, with their bytes.
    pub blobs: Vec<(Descriptor, Vec<u8>)>,
    /// The manifest's bytes.
    pub manifest_json: Vec<u8>,
    /// Names the manifest, as an index does.
    pub manifest: Descriptor,
}

/// Attests `facts`.
pub fn attest(facts: &Facts<'_>) -> Attestation {
    let statement = json::to_vec(&statement(facts));
    let mut layer = describe(STATEMENT, &statement);
    layer.annotations.insert("in-toto.io/predicate-type".to_owned(), PREDICATE.to_owned());
    let config = b"{}".to_vec();
    let empty = describe(EMPTY, &config);
    let manifest_json = json::to_vec(&Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: Some(ARTIFACT.to_owned()),
        config: empty.clone(),
        layers: vec![layer.clone()],
        subject: Some(Descriptor {
            platform: Some(facts.platform.clone()),
            annotations: BTreeMap::new(),
            ..facts.image.clone()
        }),
        annotations: BTreeMap::new(),
    });
    let mut manifest = describe(media_type::OCI_MANIFEST, &manifest_json);
    manifest.platform = Some(Platform {
        architecture: "unknown".to_owned(),
        os: "unknown".to_owned(),
        os_version: None,
        variant: None,
    });
    manifest.annotations = BTreeMap::from([
        ("vnd.docker.reference.digest".to_owned(), facts.image.digest.to_string()),
        ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
    ]);
    Attestation { blobs: vec![(layer, statement), (empty, config)], manifest_json, manifest }
}

fn statement(facts: &Facts<'_>) -> Value {
    let digest = |digest: &Digest| json!({ "sha256": digest.hex() });
    let subjects: Vec<Value> = match facts.names {
        [] => vec![json!({ "name": "_", "digest": digest(&facts.image.digest) })],
        names => names
            .iter()
            .map(|name| {
                let name = package(name, facts.platform);
                json!({ "name": name, "digest": digest(&facts.image.digest) })
            })
            .collect(),
    };
    let dependencies: Vec<Value> = facts
        .dependencies
        .iter()
        .map(|dependency| {
            let uri = package(&dependency.name, facts.platform);
            json!({ "uri": uri, "digest": digest(&dependency.digest) })
        })
        .collect();
    let mut metadata = json!({
        "buildkit_completeness": { "request": false, "resolvedDependencies": true },
    });
    if let Some(created) = facts.created {
        metadata["startedOn"] = json!(created);
        metadata["finishedOn"] = json!(created);
    }
    json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": PREDICATE,
        "subject": subjects,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "configSource": { "path": facts.dockerfile },
                    "request": {
                        "frontend": "dockerfile.v0",
                        "locals": [{ "name": "context" }, { "name": "dockerfile" }],
                    },
                },
                "internalParameters": { "builderPlatform": facts.build_platform.to_string() },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {
                    "id": facts.builder,
                    "version": { "yadokari": env!("CARGO_PKG_VERSION") },
                },
                "metadata": metadata,
            },
        },
    })
}

/// A package URL: `pkg:docker/NAME@TAG?platform=linux%2Famd64`.
fn package(name: &str, platform: &Platform) -> String {
    let (kind, name) = match name.strip_prefix("oci-layout://") {
        Some(place) => ("oci", place.trim_start_matches('/')),
        None => ("docker", name),
    };
    let (name, pinned) = match name.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (name, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    let version = match (tag, pinned) {
        (Some(tag), _) => format!("@{tag}"),
        (None, None) => "@latest".to_owned(),
        (None, Some(_)) => String::new(),
    };
    let escape = |text: &str| text.replace('/', "%2F").replace(':', "%3A");
    let digest = pinned.map(|digest| format!("digest={}&", escape(digest))).unwrap_or_default();
    let platform = escape(&platform.to_string());
    format!("pkg:{kind}/{name}{version}?{digest}platform={platform}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amd64() -> Platform {
        Platform::new("linux", "amd64", None)
    }

    #[test]
    fn packages_are_named_as_buildkit_names_them() {
        for (name, expected) in [
            ("alpine", "pkg:docker/alpine@latest?platform=linux%2Famd64"),
            ("host:5000/a/b:1", "pkg:docker/host:5000/a/b@1?platform=linux%2Famd64"),
            ("a@sha256:00", "pkg:docker/a?digest=sha256%3A00&platform=linux%2Famd64"),
            ("oci-layout:///d/l:x", "pkg:oci/d/l@x?platform=linux%2Famd64"),
        ] {
            assert_eq!(package(name, &amd64()), expected);
        }
    }

    #[test]
    fn an_attestation_names_its_image_and_tells_no_arguments() {
        let image = describe(media_type::OCI_MANIFEST, b"image");
        let dependencies =
            [Dependency { name: "alpine".to_owned(), digest: Digest::of(b"alpine") }];
        let attestation = attest(&Facts {
            image: &image,
            platform: &amd64(),
            build_platform: &amd64(),
            names: &["r/a:1".to_owned()],
            dockerfile: "Dockerfile",
            builder: "",
            dependencies: &dependencies,
            created: Some("2024-01-01T00:00:00Z"),
        });
        let annotations = &attestation.manifest.annotations;
        assert_eq!(annotations["vnd.docker.reference.type"], "attestation-manifest");
        assert_eq!(annotations["vnd.docker.reference.digest"], image.digest.to_string());
        let statement: Value = serde_json::from_slice(&attestation.blobs[0].1).expect("JSON");
        assert_eq!(statement["subject"][0]["digest"]["sha256"], image.digest.hex().to_string());
        assert!(
            statement["predicate"]["buildDefinition"]["externalParameters"]["request"]
                .get("args")
                .is_none()
        );
        for (descriptor, bytes) in &attestation.blobs {
            assert_eq!(descriptor.digest, Digest::of(bytes));
        }
    }
}
