//! Results on disk: OCI layout, docker archive, digest files.

use std::fs;
use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use super::Error;
use super::base::Bases;
use super::delivery::Delivery;
use super::delivery::Made;
use super::report;
use super::report::StepReport;
use super::request::Request;
use crate::image::index::AssembledIndex;
use crate::layout;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;

/// Writes what `request` asks for.
///
/// # Errors
/// Those of the disk, and of fetching layers of the base image.
pub(super) fn write(
    request: &Request,
    delivery: &Delivery,
    bases: &Bases,
    steps: &[StepReport],
) -> Result<(), Error> {
    let image = &delivery.first().image;
    if request.oci_layout.is_some() || request.tar.is_some() {
        for Made { image, base, .. } in &delivery.made {
            bases.store.put_blob(&image.config_json)?;
            if let Some(base) = base {
                for layer in &base.layers {
                    bases.ensure_blob(base, layer)?;
                }
            }
        }
    }
    let open = |digest: &Digest| -> io::Result<File> {
        bases
            .store
            .open_blob(digest)
            .map_err(io::Error::other)?
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let whole = layout::Image {
        manifest: image.manifest.clone(),
        manifest_bytes: image.manifest_json.clone(),
        config: image.config.clone(),
        layers: image.layers.clone(),
    };
    if let Some(directory) = &request.oci_layout {
        let tag = request
            .destinations
            .first()
            .map(|reference| reference.tag().unwrap_or("latest").to_owned());
        match &delivery.index {
            None => layout::write(directory, &whole, tag.as_deref(), &open)?,
            Some(index) => {
                let whole = with_everything(delivery, index);
                layout::write_index(directory, &whole, tag.as_deref(), &open)?;
            }
        }
    }
    if let Some(path) = &request.tar {
        let names: Vec<String> = request.destinations.iter().map(with_tag).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        replace(path, |out| {
            let mut out = BufWriter::with_capacity(1 << 18, out);
            layout::write_docker_archive(&mut out, &whole, &names, &open)
                .map_err(io::Error::other)?;
            out.flush()
        })?;
    }
    let digest = delivery.top().digest;
    if let Some(path) = &request.digest_file {
        replace(path, |out| write!(out, "{digest}"))?;
    }
    if let Some(path) = &request.metadata_file {
        let metadata = report::metadata(image, &request.destinations, steps);
        replace(path, |out| writeln!(out, "{metadata:#}"))?;
    }
    let lines = |name: fn(&Reference) -> String| -> String {
        request
            .destinations
            .iter()
            .map(|reference| format!("{}@{digest}\n", name(reference)))
            .collect()
    };
    if let Some(path) = &request.name_digest_file {
        replace(path, |out| out.write_all(lines(Reference::name).as_bytes()))?;
    }
    if let Some(path) = &request.name_tag_digest_file {
        replace(path, |out| out.write_all(lines(with_tag).as_bytes()))?;
    }
    Ok(())
}

/// The index and all that it leads to.
fn with_everything(delivery: &Delivery, index: &AssembledIndex) -> layout::IndexImage {
    let mut documents = Vec::new();
    let mut blobs = Vec::new();
    for Made { image, .. } in &delivery.made {
        documents.push((image.manifest.clone(), image.manifest_json.clone()));
        documents.push((image.config.clone(), image.config_json.clone()));
        blobs.extend(image.layers.iter().cloned());
    }
    for attestation in &delivery.attestations {
        documents.push((attestation.manifest.clone(), attestation.manifest_json.clone()));
        documents.extend(attestation.blobs.iter().cloned());
    }
    let index = (index.descriptor.clone(), index.json.clone());
    layout::IndexImage { index, documents, blobs }
}

/// `registry/repository:tag`.
pub(super) fn with_tag(reference: &Reference) -> String {
    format!("{}:{}", reference.name(), reference.tag().unwrap_or("latest"))
}

/// Writes a file beside `path` and moves it there, so that nothing half-written is
/// ever seen; makes missing directories with mode 0700, as kaniko does.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |path: PathBuf| move |source: io::Error| Error::Output { path, source };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(failed(parent.to_owned()))?;
    // A device or pipe (`/dev/stdout`) is written to as it is.
    if path.exists() && !path.is_file() {
        let mut file = File::options().write(true).open(path).map_err(failed(path.to_owned()))?;
        return write(&mut file).map_err(failed(path.to_owned()));
    }
    let mut fresh = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(parent)
        .map_err(failed(path.to_owned()))?;
    write(fresh.as_file_mut()).map_err(failed(path.to_owned()))?;
    fresh.persist(path).map_err(|error| failed(path.to_owned())(error.error))?;
    Ok(())
}
