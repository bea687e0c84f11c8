//! The tar that `docker load` reads (`docker save`'s format of Docker 1.10 and later),
//! laid out as kaniko writes it: `--tar-path`.
//!
//! ```text
//! sha256:<hex of the config>      the config
//! <hex of the layer>.tar.gz       each layer once, as compressed for a registry
//! manifest.json                   [{"Config": …, "RepoTags": […], "Layers": […]}]
//! ```
//!
//! The outer tar is plain. All entries are 0644, 0:0 and from the epoch, so the same
//! image gives the same bytes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use tar::Builder;
use tar::Header;

use super::Blobs;
use super::Error;
use super::Image;
use super::write::check;
use super::write::temporary;
use crate::layer::tee::HashingReader;
use crate::oci::descriptor::Descriptor;
use crate::oci::media_type;

/// What kaniko calls an image that has no destination.
pub const UNSET_NAME: &str = "unset-repo/unset-image-name:latest";

/// Bytes read and written at a time.
const BUFFER: usize = 256 << 10;

/// One image in `manifest.json`. Fields stand in the order in which Docker writes them.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row<'a> {
    config: String,
    repo_tags: &'a [&'a str],
    layers: Vec<String>,
}

/// Writes `image` as an archive to `out`: one name for each of `names`
/// (`repository:tag`), or [`UNSET_NAME`] if there are none. Streams; layers that occur
/// twice are written once.
///
/// # Errors
/// [`Error::Archive`], [`Error::Blob`], and [`Error::Mismatch`] when a blob is not what
/// the image says: what was written so far is useless then.
pub fn write_docker_archive(
    out: impl Write,
    image: &Image,
    names: &[&str],
    blobs: Blobs<'_>,
) -> Result<(), Error> {
    let mut archive = Builder::new(out);
    let config = image.config.digest.to_string();
    append_blob(&mut archive, &config, &image.config, blobs)?;
    let mut written = BTreeSet::new();
    let mut layers = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let name = layer_name(layer);
        if written.insert(layer.digest) {
            append_blob(&mut archive, &name, layer, blobs)?;
        }
        layers.push(name);
    }
    let repo_tags = if names.is_empty() { &[UNSET_NAME] } else { names };
    let rows = [Row { config, repo_tags, layers }];
    let rows = serde_json::to_vec(&rows).map_err(|error| Error::Archive(error.into()))?;
    append(&mut archive, "manifest.json", rows.len() as u64, &rows[..])
        .and_then(|()| archive.into_inner()?.flush())
        .map_err(Error::Archive)
}

/// Writes the archive to the file `path`, which appears whole or not at all; when it is
/// there and no regular file (a pipe, `/dev/stdout`), bytes go straight into it.
///
/// # Errors
/// As for [`write_docker_archive`], and [`Error::Write`].
pub fn save_docker_archive(
    path: &Path,
    image: &Image,
    names: &[&str],
    blobs: Blobs<'_>,
) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let file = fs::OpenOptions::new().write(true).open(path).map_err(failed)?;
        return write_docker_archive(BufWriter::with_capacity(BUFFER, file), image, names, blobs);
    }
    let place = path.parent().filter(|place| !place.as_os_str().is_empty());
    let mut file = temporary(place.unwrap_or(Path::new("."))).map_err(failed)?;
    let out = BufWriter::with_capacity(BUFFER, file.as_file_mut());
    write_docker_archive(out, image, names, blobs)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Readers tell compression by content; the name tells people.
fn layer_name(layer: &Descriptor) -> String {
    let ending = match layer.media_type.as_str() {
        media_type::OCI_LAYER | media_type::DOCKER_LAYER => "tar",
        media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => "tar.zst",
        _ => "tar.gz",
    };
    format!("{}.{ending}", layer.digest.hex())
}

fn append_blob(
    archive: &mut Builder<impl Write>,
    name: &str,
    blob: &Descriptor,
    blobs: Blobs<'_>,
) -> Result<(), Error> {
    let unreadable = |source| Error::Blob { digest: blob.digest, source };
    let file = blobs(&blob.digest).map_err(unreadable)?;
    let mut reader = HashingReader::new(BufReader::with_capacity(BUFFER, file));
    append(archive, name, blob.size, &mut reader).map_err(Error::Archive)?;
    let (_, found, size) = reader.finish();
    // A blob of another size has made the tar unreadable, so this comes in time.
    check(blob, found, size)
}

fn append(
    archive: &mut Builder<impl Write>,
    name: &str,
    size: u64,
    bytes: impl io::Read,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, bytes)
}
