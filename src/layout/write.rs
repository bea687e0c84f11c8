//! Writes an image into an OCI image layout.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::fs::Permissions;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use super::Blobs;
use super::Error;
use super::Image;
use super::REF_NAME;
use crate::layer::tee::HashingWriter;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Index;
use crate::oci::media_type;

/// Bytes copied at a time.
const BUFFER: usize = 256 << 10;

/// Makes `directory` an OCI image layout with `image` as the only entry of its
/// `index.json`, as kaniko does; `reference`, if given, becomes its name.
///
/// Blobs that are already there with the right size are kept, others copied and
/// verified. They are not linked to the files they come from: whoever owns the layout
/// may change it, and a cache must not change with it. Every file appears whole, by
/// rename, the index last; nothing is synced.
///
/// # Errors
/// [`Error::Write`], [`Error::Blob`], and [`Error::Mismatch`] when a blob is not what
/// the image says. `index.json` is untouched then.
pub fn write(
    directory: &Path,
    image: &Image,
    reference: Option<&str>,
    blobs: Blobs<'_>,
) -> Result<(), Error> {
    let place = directory.join("blobs/sha256");
    fs::create_dir_all(&place).map_err(|source| Error::Write { path: place.clone(), source })?;
    let mut done = BTreeSet::new();
    for blob in image.layers.iter().chain([&image.config]) {
        if done.insert(blob.digest) {
            put(&place, blob, || blobs(&blob.digest))?;
        }
    }
    check(&image.manifest, Digest::of(&image.manifest_bytes), image.manifest_bytes.len() as u64)?;
    put_bytes(&place, &image.manifest.digest.hex(), &image.manifest_bytes)?;
    let mut entry = image.manifest.clone();
    if let Some(reference) = reference {
        entry.annotations.insert(REF_NAME.to_owned(), reference.to_owned());
    }
    put_layout(directory, entry)
}

/// Writes `index.json` with `entry` alone, and what says that this is a layout.
pub(super) fn put_layout(directory: &Path, entry: Descriptor) -> Result<(), Error> {
    put_bytes(directory, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: vec![entry],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let failed = |source| Error::Write { path: directory.join("index.json"), source };
    let bytes = serde_json::to_vec(&index).map_err(|error| failed(error.into()))?;
    put_bytes(directory, "index.json", &bytes)
}

/// # Errors
/// [`Error::Mismatch`] unless a blob of `size` bytes with digest `found` is `blob`.
pub(super) fn check(blob: &Descriptor, found: Digest, size: u64) -> Result<(), Error> {
    if blob.digest == found && blob.size == size {
        return Ok(());
    }
    Err(Error::Mismatch { digest: blob.digest, size: blob.size, found, found_size: size })
}

pub(super) fn put(
    place: &Path,
    blob: &Descriptor,
    open: impl FnOnce() -> io::Result<File>,
) -> Result<(), Error> {
    let path = place.join(blob.digest.hex());
    let there = fs::metadata(&path);
    if there.is_ok_and(|found| found.is_file() && found.len() == blob.size) {
        return Ok(());
    }
    let unreadable = |source| Error::Blob { digest: blob.digest, source };
    let mut from = match open() {
        // Foreign layers are fetched from elsewhere by whoever uses the image.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !blob.urls.is_empty() => {
            return Ok(());
        }
        other => other.map_err(unreadable)?,
    };
    let failed = |source| Error::Write { path: path.clone(), source };
    let mut file = temporary(place).map_err(failed)?;
    let mut out = HashingWriter::new(BufWriter::with_capacity(BUFFER, file.as_file_mut()));
    copy(&mut from, &mut out).map_err(|fault| match fault {
        Fault::Read(source) => unreadable(source),
        Fault::Write(source) => failed(source),
    })?;
    out.flush().map_err(failed)?;
    let (_, found, size) = out.finish();
    check(blob, found, size)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Which side of a copy failed.
pub(super) enum Fault {
    Read(io::Error),
    Write(io::Error),
}

/// Copies all bytes; unlike `io::copy` it tells who is to blame.
pub(super) fn copy(from: &mut impl io::Read, to: &mut impl Write) -> Result<(), Fault> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).map_err(Fault::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::Read(error)),
        }
    }
}

pub(super) fn put_bytes(place: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = place.join(name);
    let write = || {
        let mut file = temporary(place)?;
        file.write_all(bytes)?;
        file.persist(&path).map_err(|error| error.error)
    };
    write().map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(())
}

/// A file that others may read once it has its name, as far as the umask lets them.
pub(super) fn temporary(place: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".yadokari-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(place)
}
