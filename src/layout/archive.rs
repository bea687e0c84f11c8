//! Reads images that come as one tar: an OCI image layout in a tar, or what
//! `docker save` and [`save_docker_archive`](super::save_docker_archive) write.
//!
//! Either is unpacked into a directory that is an OCI image layout then. Foreign bytes:
//! names in the tar never become paths, and what can't be one image is refused.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use tar::Archive;
use tar::EntryType;

use super::Error;
use super::read::read_limited;
use super::write::Fault;
use super::write::copy;
use super::write::put_bytes;
use super::write::put_layout;
use super::write::temporary;
use crate::layer::compress::Compression;
use crate::layer::compress::Compressor;
use crate::layer::decompress::any_reader;
use crate::layer::tee::HashingReader;
use crate::layer::tee::HashingWriter;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::DiffId;
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

/// Unpacks the image archive `path`, compressed or not, into the empty directory
/// `directory`, which is a layout with the image in it then.
///
/// A layout in a tar stays as it is. `docker save` writes both into one tar, and layers
/// that aren't compressed: those are taken as its older versions' are, compressed on
/// `threads` threads, as registries want them.
///
/// # Errors
/// [`Error::Read`] and [`Error::Write`]; [`Error::NotAnArchive`] when the tar holds no
/// image or several, or layers that its config doesn't name; [`Error::Interrupted`] soon
/// after `interrupted` was set.
pub fn unpack_archive(
    path: &Path,
    directory: &Path,
    threads: usize,
    interrupted: &AtomicBool,
) -> Result<(), Error> {
    let unpacked = Unpacking { path, directory, threads, interrupted }.unpack();
    match unpacked {
        Err(_) if interrupted.load(Ordering::Relaxed) => Err(Error::Interrupted),
        other => other,
    }
}

struct Unpacking<'a> {
    path: &'a Path,
    directory: &'a Path,
    threads: usize,
    interrupted: &'a AtomicBool,
}

/// A file that can't be read any more once the user asked to stop.
struct Watched<'a> {
    file: File,
    interrupted: &'a AtomicBool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        self.file.read(buffer)
    }
}

impl Unpacking<'_> {
    fn unpack(&self) -> Result<(), Error> {
        let names = self.names()?;
        let is_layout = names.file("oci-layout").is_some() && names.file("index.json").is_some();
        match names.file("manifest.json") {
            Some(manifest) => match self.only_row(manifest) {
                Ok(row) if !is_layout || names.has_plain_layer(&row) => {
                    self.convert(&names, &row)?;
                }
                Err(error) if !is_layout => return Err(error),
                _ => self.lay_out(&names)?,
            },
            None if is_layout => self.lay_out(&names)?,
            None => {
                let reason = "it has neither `manifest.json` nor `oci-layout`";
                return Err(self.not(reason.to_owned()));
            }
        }
        for place in names.0.values() {
            if let Named::File(place) = place {
                // What became a blob was moved away.
                let _ = fs::remove_file(place);
            }
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> Result<Watched<'_>, Error> {
        let unreadable = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        Ok(Watched { file, interrupted: self.interrupted })
    }

    fn not(&self, reason: String) -> Error {
        Error::NotAnArchive { path: self.path.to_owned(), reason }
    }

    /// Unpacks the files of the tar, under names of our own.
    fn names(&self) -> Result<Names, Error> {
        let unreadable = |source| Error::Read { path: self.path.to_owned(), source };
        let archive = any_reader(self.open(self.path)?).map_err(unreadable)?;
        let mut archive = Archive::new(archive);
        let mut named = BTreeMap::new();
        for (number, entry) in archive.entries().map_err(unreadable)?.enumerate() {
            let mut entry = entry.map_err(unreadable)?;
            if number >= MOST_ENTRIES {
                return Err(self.not(format!("it has more than {MOST_ENTRIES} entries")));
            }
            let name = plain(&String::from_utf8_lossy(&entry.path_bytes()));
            let found = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let place = self.directory.join(format!("entry-{number}"));
                    let unwritable = |source| Error::Write { path: place.clone(), source };
                    let mut out = File::create_new(&place).map_err(unwritable)?;
                    copy(&mut entry, &mut out).map_err(|fault| match fault {
                        Fault::Read(source) => unreadable(source),
                        Fault::Write(source) => unwritable(source),
                    })?;
                    Named::File(place)
                }
                kind @ (EntryType::Symlink | EntryType::Link) => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                    let target = plain(&if kind.is_symlink() && !target.starts_with('/') {
                        format!("{above}/{target}")
                    } else {
                        target
                    });
                    // What tar makes of a file with several names that it is told twice.
                    if target == name {
                        continue;
                    }
                    Named::Link(target)
                }
                _ => continue,
            };
            // As where a tar is unpacked: the last one of a name stays.
            if let Some(Named::File(replaced)) = named.insert(name, found) {
                let _ = fs::remove_file(replaced);
            }
        }
        Ok(Names(named))
    }

    /// The image of `docker save`'s table of contents.
    fn only_row(&self, manifest: &Path) -> Result<Row, Error> {
        let bytes = read_limited(manifest, MANIFEST_MAX)?;
        let rows: Vec<Row> = serde_json::from_slice(&bytes)
            .map_err(|error| self.not(format!("its `manifest.json` is malformed: {error}")))?;
        let count = rows.len();
        let [row] = <[Row; 1]>::try_from(rows)
            .map_err(|_| self.not(format!("it holds {count} images, not exactly one")))?;
        Ok(row)
    }

    /// The tar is a layout already.
    fn lay_out(&self, names: &Names) -> Result<(), Error> {
        let blobs = make_blobs(self.directory)?;
        for name in ["oci-layout", "index.json"] {
            if let Some(place) = names.file(name) {
                take(place, &self.directory.join(name))?;
            }
        }
        for name in names.0.keys() {
            let hex = name.strip_prefix("blobs/sha256/");
            let digest = hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            if let (Some(digest), Some(place)) = (digest, names.file(name)) {
                take(place, &blobs.join(digest.hex()))?;
            }
        }
        Ok(())
    }

    /// The tar is `docker save`'s: its files become blobs, and a manifest is made.
    fn convert(&self, names: &Names, row: &Row) -> Result<(), Error> {
        let find = |name: &str| {
            let missing = || self.not(format!("`{name}` of its `manifest.json` is not in it"));
            names.file(name).ok_or_else(missing)
        };
        let blobs = make_blobs(self.directory)?;
        let config = read_limited(find(&row.config)?, MANIFEST_MAX)?;
        let said: Config = serde_json::from_slice(&config)
            .map_err(|error| self.not(format!("its image config is malformed: {error}")))?;
        let wanted = &said.rootfs.diff_ids;
        if row.layers.len() != wanted.len() {
            let (has, wants) = (row.layers.len(), wanted.len());
            return Err(self.not(format!("it has {has} layers and a config for {wants}")));
        }
        let mut layers = Vec::new();
        // One file may be several layers, and goes when it is a blob: there may be
        // little space for both.
        let mut made: BTreeMap<&Path, (Descriptor, DiffId)> = BTreeMap::new();
        for (name, wanted) in row.layers.iter().zip(wanted) {
            let place = find(name)?;
            let (layer, found) = match made.entry(place) {
                Entry::Occupied(made) => made.into_mut(),
                Entry::Vacant(new) => {
                    let layer = self.put_layer(&blobs, name, place)?;
                    let _ = fs::remove_file(place);
                    new.insert(layer)
                }
            };
            if found.to_string() != *wanted {
                return Err(self.not(format!(
                    "its layer `{name}` has the diff ID {found}, and its config wants {wanted}"
                )));
            }
            layers.push(layer.clone());
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
        let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::Write {
            path: self.directory.to_owned(),
            source: error.into(),
        })?;
        put_layout(self.directory, put(media_type::DOCKER_MANIFEST, &bytes)?)
    }

    /// Makes a layer blob of the file `name`: as it is if it is compressed.
    fn put_layer(
        &self,
        blobs: &Path,
        name: &str,
        place: &Path,
    ) -> Result<(Descriptor, DiffId), Error> {
        let unreadable = |source| Error::Read { path: place.to_owned(), source };
        let unwritable = |source| Error::Write { path: blobs.to_owned(), source };
        let blame = |fault| match fault {
            Fault::Read(error) => self.not(format!("its layer `{name}` is damaged: {error}")),
            Fault::Write(error) => unwritable(error),
        };
        let media_type = compressed_type(place).map_err(unreadable)?;
        let mut file = HashingReader::new(self.open(place)?);
        let mut tar = HashingReader::new(any_reader(&mut file).map_err(unreadable)?);
        let Some(media_type) = media_type else {
            let mut written = temporary(blobs).map_err(unwritable)?;
            let out = BufWriter::with_capacity(BUFFER, written.as_file_mut());
            let out = HashingWriter::new(out);
            let mut out =
                Compressor::new(out, Compression::DEFAULT, self.threads).map_err(unwritable)?;
            copy(&mut tar, &mut out).map_err(blame)?;
            let (_, digest, size) = out.finish().map_err(unwritable)?.finish();
            let blob = blobs.join(digest.hex());
            written.persist(blob).map_err(|error| unwritable(error.error))?;
            let layer = Descriptor::new(media_type::DOCKER_LAYER_GZIP, digest, size);
            return Ok((layer, diff_id(tar)));
        };
        copy(&mut tar, &mut io::sink()).map_err(blame)?;
        let diff_id = diff_id(tar);
        // Of what follows the compressed bytes only the blob's digest knows.
        copy(&mut file, &mut io::sink()).map_err(blame)?;
        let (_, digest, size) = file.finish();
        fs::rename(place, blobs.join(digest.hex())).map_err(unwritable)?;
        Ok((Descriptor::new(media_type, digest, size), diff_id))
    }
}

fn diff_id(tar: HashingReader<impl Read>) -> DiffId {
    let (_, digest, _) = tar.finish();
    DiffId::from_bytes(*digest.as_bytes())
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

    /// Whether a layer of `row` isn't compressed.
    fn has_plain_layer(&self, row: &Row) -> bool {
        let places = row.layers.iter().filter_map(|name| self.file(name));
        places.into_iter().any(|place| matches!(compressed_type(place), Ok(None)))
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

/// The media type of a file that is a layer blob already; `None` if it is to be
/// compressed.
fn compressed_type(place: &Path) -> io::Result<Option<&'static str>> {
    let mut magic = Vec::new();
    File::open(place)?.take(4).read_to_end(&mut magic)?;
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Some(media_type::DOCKER_LAYER_GZIP),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Some(media_type::DOCKER_LAYER_ZSTD)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests;
