//! Reads images that come as one tar: an OCI image layout in a tar, or what
//! `docker save` and [`save_docker_archive`](super::save_docker_archive) write.
//!
//! Either is unpacked into a directory that is an OCI image layout then. Foreign bytes:
//! names in the tar never become paths, and what can't be one image is refused.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use tar::Archive;
use tar::EntryType;

use super::Error;
use super::read::read_limited;
use super::write::put_bytes;
use super::write::put_layout;
use super::write::temporary;
use crate::layer::compress::Compression;
use crate::layer::compress::Compressor;
use crate::layer::tee::HashingWriter;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::MANIFEST_MAX;
use crate::oci::manifest::Manifest;
use crate::oci::media_type;

/// Bytes copied at a time.
const BUFFER: usize = 256 << 10;
/// Links that are followed from one name in the tar to another; `docker save` needs one.
const MOST_LINKS: u32 = 8;
/// More entries than any image has: its layers, three files for each, some more.
const MOST_ENTRIES: usize = 100_000;

/// One image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    config: String,
    layers: Vec<String>,
}

/// The part of an image config that has to fit the layers.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// What a name in the tar stands for.
enum Named {
    File(PathBuf),
    Link(String),
}

/// Unpacks the image archive `path` into the empty directory `directory`, which is a
/// layout with the image in it then. Layers that aren't compressed are compressed on
/// `threads` threads: registries want them so.
///
/// # Errors
/// [`Error::Read`] and [`Error::Write`]; [`Error::NotAnArchive`] when the tar holds no
/// image or several.
pub fn unpack_archive(path: &Path, directory: &Path, threads: usize) -> Result<(), Error> {
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    let not = |reason: String| Error::NotAnArchive { path: path.to_owned(), reason };
    let file = File::open(path).map_err(unreadable)?;
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER, file));
    let mut named = BTreeMap::new();
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let name = plain(&String::from_utf8_lossy(&entry.path_bytes()));
        let found = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let place = directory.join(format!("entry-{}", named.len()));
                let written = File::create_new(&place).map_err(|source| {
                    let path = place.clone();
                    Error::Write { path, source }
                })?;
                let mut out = BufWriter::with_capacity(BUFFER, written);
                io::copy(&mut entry, &mut out).map_err(unreadable)?;
                out.flush().map_err(|source| Error::Write { path: place.clone(), source })?;
                Named::File(place)
            }
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                let is_symbolic = entry.header().entry_type() == EntryType::Symlink;
                let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                Named::Link(plain(&if is_symbolic && !target.starts_with('/') {
                    format!("{above}/{target}")
                } else {
                    target
                }))
            }
            _ => continue,
        };
        named.insert(name, found);
        if named.len() > MOST_ENTRIES {
            return Err(not(format!("it has more than {MOST_ENTRIES} entries")));
        }
    }
    let names = Names(named);
    if names.file("oci-layout").is_some() && names.file("index.json").is_some() {
        names.lay_out(directory)
    } else {
        let manifest = names
            .file("manifest.json")
            .ok_or_else(|| not("it has neither `manifest.json` nor `oci-layout`".to_owned()))?;
        names.convert(manifest, directory, threads, &not)
    }?;
    for place in names.0.values() {
        if let Named::File(place) = place {
            // What became a blob was moved away.
            let _ = fs::remove_file(place);
        }
    }
    Ok(())
}

/// `./a//b/../c` as `a/c`.
fn plain(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What is in the tar.
struct Names(BTreeMap<String, Named>);

impl Names {
    fn file(&self, name: &str) -> Option<&Path> {
        let mut name = plain(name);
        for _ in 0..MOST_LINKS {
            match self.0.get(&name)? {
                Named::File(place) => return Some(place),
                Named::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    /// The tar is a layout already.
    fn lay_out(&self, directory: &Path) -> Result<(), Error> {
        let blobs = make_blobs(directory)?;
        for (name, target) in [("oci-layout", "oci-layout"), ("index.json", "index.json")] {
            if let Some(place) = self.file(name) {
                take(place, &directory.join(target))?;
            }
        }
        for name in self.0.keys() {
            let hex = name.strip_prefix("blobs/sha256/");
            let digest = hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            if let (Some(digest), Some(place)) = (digest, self.file(name)) {
                take(place, &blobs.join(digest.hex()))?;
            }
        }
        Ok(())
    }

    /// The tar is `docker save`'s: its files become blobs, and a manifest is made.
    fn convert(
        &self,
        manifest: &Path,
        directory: &Path,
        threads: usize,
        not: &dyn Fn(String) -> Error,
    ) -> Result<(), Error> {
        let bytes = read_limited(manifest, MANIFEST_MAX)?;
        let rows: Vec<Row> = serde_json::from_slice(&bytes)
            .map_err(|error| not(format!("its `manifest.json` is malformed: {error}")))?;
        let [row] = rows.as_slice() else {
            return Err(not(format!("it holds {} images, not exactly one", rows.len())));
        };
        let find = |name: &str| {
            let missing = || not(format!("`{name}` of its `manifest.json` is not in it"));
            self.file(name).ok_or_else(missing)
        };
        let blobs = make_blobs(directory)?;
        let config = read_limited(find(&row.config)?, MANIFEST_MAX)?;
        let said: Config = serde_json::from_slice(&config)
            .map_err(|error| not(format!("its image config is malformed: {error}")))?;
        let (has, wants) = (row.layers.len(), said.rootfs.diff_ids.len());
        if has != wants {
            return Err(not(format!("it has {has} layers and a config for {wants}")));
        }
        let mut layers = Vec::new();
        for name in &row.layers {
            layers.push(put_layer(&blobs, find(name)?, threads)?);
        }
        let put = |media_type: &str, bytes: &[u8]| -> Result<Descriptor, Error> {
            let digest = Digest::of(bytes);
            put_bytes(&blobs, &digest.hex(), bytes)?;
            Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::DOCKER_MANIFEST.to_owned()),
            artifact_type: None,
            config: put(media_type::DOCKER_CONFIG, &config)?,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|error| Error::Write { path: directory.to_owned(), source: error.into() })?;
        put_layout(directory, put(media_type::DOCKER_MANIFEST, &bytes)?)
    }
}

fn make_blobs(directory: &Path) -> Result<PathBuf, Error> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|source| Error::Write { path: blobs.clone(), source })?;
    Ok(blobs)
}

/// Two names may stand for one file, so it is linked, not moved.
fn take(place: &Path, target: &Path) -> Result<(), Error> {
    fs::hard_link(place, target).map_err(|source| Error::Write { path: target.to_owned(), source })
}

/// Makes a layer blob of a file: as it is if it is compressed.
fn put_layer(blobs: &Path, place: &Path, threads: usize) -> Result<Descriptor, Error> {
    let unreadable = |source| Error::Read { path: place.to_owned(), source };
    let failed = |source| Error::Write { path: blobs.to_owned(), source };
    let mut file = File::open(place).map_err(unreadable)?;
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic).map_err(unreadable)?;
    let mut rest = magic.as_slice().chain(file);
    let mut written = temporary(blobs).map_err(failed)?;
    let out = HashingWriter::new(BufWriter::with_capacity(BUFFER, written.as_file_mut()));
    let (media_type, compression) = match magic.as_slice() {
        [0x1f, 0x8b, ..] => (media_type::DOCKER_LAYER_GZIP, Compression::None),
        [0x28, 0xb5, 0x2f, 0xfd] => (media_type::DOCKER_LAYER_ZSTD, Compression::None),
        _ => (media_type::DOCKER_LAYER_GZIP, Compression::DEFAULT),
    };
    let mut out = Compressor::new(out, compression, threads).map_err(failed)?;
    io::copy(&mut rest, &mut out).map_err(failed)?;
    let (_, digest, size) = out.finish().map_err(failed)?.finish();
    written.persist(blobs.join(digest.hex())).map_err(|error| failed(error.error))?;
    Ok(Descriptor::new(media_type, digest, size))
}
