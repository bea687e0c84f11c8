//! Adds to an OCI image layout beside what is in it, for a cache kept as a layout.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;

use super::Blobs;
use super::Error;
use super::Layout;
use super::REF_NAME;
use super::write::put;
use super::write::put_bytes;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Index;
use crate::oci::manifest::MANIFEST_MAX;
use crate::oci::media_type;

/// Held (flock) by whoever changes the index.
const LOCK: &str = ".lock";

/// A manifest with names, to be added to a layout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// Its names; whatever has one of them loses it.
    pub names: Vec<String>,
    /// Its bytes, of OCI's manifest type.
    pub manifest: Vec<u8>,
    /// Its config's bytes.
    pub config: Vec<u8>,
    /// Its layers.
    pub layers: Vec<Descriptor>,
}

/// Adds `entries` to the layout at `directory`, which is made if it isn't there.
///
/// Blobs first, then the index, once, under a lock that waits for other writers;
/// readers see the old index or the new one. When the index grows beyond what
/// readers accept ([`MANIFEST_MAX`]), its oldest entries go. Nothing is synced.
///
/// # Errors
/// As [`write`](super::write()), and those of the index that is there.
pub fn add(directory: &Path, entries: &[Named], blobs: Blobs<'_>) -> Result<(), Error> {
    let place = directory.join("blobs/sha256");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::Write { path, source }
    };
    fs::create_dir_all(&place).map_err(failed(&place))?;
    let mut added = Vec::new();
    for entry in entries {
        for layer in &entry.layers {
            put(&place, layer, || blobs(&layer.digest))?;
        }
        put_bytes(&place, &Digest::of(&entry.config).hex(), &entry.config)?;
        let digest = Digest::of(&entry.manifest);
        put_bytes(&place, &digest.hex(), &entry.manifest)?;
        let size = entry.manifest.len() as u64;
        for name in &entry.names {
            let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest, size);
            descriptor.annotations.insert(REF_NAME.to_owned(), name.clone());
            added.push(descriptor);
        }
    }
    let path = directory.join(LOCK);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed(&path))?;
    lock.lock().map_err(failed(&path))?;
    let mut index = if directory.join("oci-layout").exists() {
        Layout::open(directory)?.into_index()
    } else {
        put_bytes(directory, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests: Vec::new(),
            subject: None,
            annotations: BTreeMap::new(),
        }
    };
    let names: BTreeSet<&String> = entries.iter().flat_map(|entry| &entry.names).collect();
    index
        .manifests
        .retain(|entry| entry.annotations.get(REF_NAME).is_none_or(|name| !names.contains(name)));
    index.manifests.extend(added);
    let path = directory.join("index.json");
    loop {
        let bytes = serde_json::to_vec(&index).map_err(|error| failed(&path)(error.into()))?;
        if bytes.len() <= MANIFEST_MAX {
            return put_bytes(directory, "index.json", &bytes);
        }
        let tenth = index.manifests.len().div_ceil(10);
        index.manifests.drain(..tenth);
    }
}
