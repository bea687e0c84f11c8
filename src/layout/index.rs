//! Writes an image index with everything in it into an OCI image layout.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::Blobs;
use super::Error;
use super::REF_NAME;
use super::write::check;
use super::write::put;
use super::write::put_bytes;
use super::write::put_layout;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;

/// An index and what stands below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexImage {
    /// The index.
    pub index: (Descriptor, Vec<u8>),
    /// The manifests it lists, and other small documents.
    pub documents: Vec<(Descriptor, Vec<u8>)>,
    /// Configs and layers.
    pub blobs: Vec<Descriptor>,
}

/// Makes `directory` an OCI image layout with `image` as the only entry of its
/// `index.json`; `reference`, if given, becomes its name. As careful as
/// [`super::write()`].
///
/// # Errors
/// [`Error::Write`], [`Error::Blob`], and [`Error::Mismatch`] when something is not
/// what its descriptor says. `index.json` is untouched then.
pub fn write_index(
    directory: &Path,
    image: &IndexImage,
    reference: Option<&str>,
    blobs: Blobs<'_>,
) -> Result<(), Error> {
    let place = directory.join("blobs/sha256");
    fs::create_dir_all(&place).map_err(|source| Error::Write { path: place.clone(), source })?;
    let mut done = BTreeSet::new();
    for blob in &image.blobs {
        if done.insert(blob.digest) {
            put(&place, blob, || blobs(&blob.digest))?;
        }
    }
    for (descriptor, bytes) in image.documents.iter().chain([&image.index]) {
        check(descriptor, Digest::of(bytes), bytes.len() as u64)?;
        put_bytes(&place, &descriptor.digest.hex(), bytes)?;
    }
    let mut entry = image.index.0.clone();
    if let Some(reference) = reference {
        entry.annotations.insert(REF_NAME.to_owned(), reference.to_owned());
    }
    put_layout(directory, entry)
}
