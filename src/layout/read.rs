//! Finds and reads images in an OCI image layout.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use super::Error;
use super::Image;
use super::REF_NAME;
use super::write::check;
use crate::layer::tee::HashingReader;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Document;
use crate::oci::manifest::Index;
use crate::oci::manifest::MANIFEST_MAX;
use crate::oci::manifest::parse_manifest;
use crate::oci::media_type;
use crate::oci::platform::Platform;

/// Indexes within indexes that are followed. Nobody writes more than two.
const MOST_LEVELS: u32 = 4;

/// A directory that holds images (image-layout.md). Foreign bytes: everything read is
/// verified.
#[derive(Clone, Debug)]
pub struct Layout {
    directory: PathBuf,
    index: Index,
}

/// The file `oci-layout`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

impl Layout {
    /// Opens the layout at `directory` and reads its `index.json`.
    ///
    /// # Errors
    /// [`Error::NotALayout`] when the marker file is missing or of a version other
    /// than 1, [`Error::Read`], [`Error::Malformed`].
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let not = |reason: String| Error::NotALayout { path: directory.to_owned(), reason };
        let marker = match read_limited(&directory.join("oci-layout"), MANIFEST_MAX) {
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(not("it has no file `oci-layout`".to_owned()));
            }
            other => other?,
        };
        let marker: Marker = serde_json::from_slice(&marker)
            .map_err(|error| not(format!("its file `oci-layout` is malformed: {error}")))?;
        if !marker.image_layout_version.starts_with("1.") {
            return Err(not(format!("it has version `{}`", marker.image_layout_version)));
        }
        let path = directory.join("index.json");
        let bytes = read_limited(&path, MANIFEST_MAX)?;
        match parse_manifest(&bytes, "") {
            Ok(Document::Index(index)) => Ok(Self { directory: directory.to_owned(), index }),
            Ok(Document::Manifest(_)) => {
                Err(not("its `index.json` is the manifest of one image".to_owned()))
            }
            Err(source) => Err(Error::Malformed { path, source }),
        }
    }

    /// The image called `name` (its annotation, or a digest), or the only one; of
    /// several for different platforms the one that fits `platform`. The manifest's
    /// digest is verified.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::NoPlatform`], [`Error::TooDeep`], and those of
    /// reading documents.
    pub fn image(&self, name: Option<&str>, platform: &Platform) -> Result<Image, Error> {
        let mut descriptor = self.choose(name, platform)?;
        for _ in 0..MOST_LEVELS {
            let bytes = self.document(&descriptor)?;
            let said = &descriptor.media_type;
            match parse_manifest(&bytes, said) {
                Err(source) => {
                    let path = self.blob_path(&descriptor.digest);
                    return Err(Error::Malformed { path, source });
                }
                Ok(Document::Manifest(manifest)) => {
                    return Ok(Image {
                        manifest: descriptor,
                        manifest_bytes: bytes,
                        config: manifest.config,
                        layers: manifest.layers,
                    });
                }
                Ok(Document::Index(index)) => {
                    descriptor = self.select(&index, platform)?;
                }
            }
        }
        Err(Error::TooDeep { path: self.directory.clone() })
    }

    /// The only image or index of the layout, whatever its name and platform.
    ///
    /// # Errors
    /// [`Error::NoImage`] when there is none, or several.
    pub fn only(&self) -> Result<&Descriptor, Error> {
        match self.index.manifests.as_slice() {
            [only] => Ok(only),
            several => Err(Error::NoImage {
                path: self.directory.clone(),
                wanted: None,
                names: several.iter().map(shown).collect(),
            }),
        }
    }

    /// A blob as an open file, not verified.
    ///
    /// # Errors
    /// `NotFound`, and whatever else opening gives.
    pub fn file(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.blob_path(digest))
    }

    /// The manifest that `index.json` calls `name`; the last, where several are.
    pub fn named(&self, name: &str) -> Option<&Descriptor> {
        let is_wanted = |entry: &&Descriptor| {
            entry.annotations.get(REF_NAME).is_some_and(|known| known == name)
        };
        self.index.manifests.iter().rfind(is_wanted)
    }

    /// The content of `index.json`.
    pub(super) fn into_index(self) -> Index {
        self.index
    }

    fn choose(&self, name: Option<&str>, platform: &Platform) -> Result<Descriptor, Error> {
        let digest = name.and_then(|name| name.parse::<Digest>().ok());
        let is_wanted = |entry: &Descriptor| match (digest, name) {
            (Some(digest), _) => entry.digest == digest,
            (None, Some(name)) => name_of(entry).is_some_and(|known| known == name),
            (None, None) => {
                media_type::is_index(&entry.media_type)
                    || media_type::is_manifest(&entry.media_type)
            }
        };
        let found: Vec<Descriptor> =
            self.index.manifests.iter().filter(|entry| is_wanted(entry)).cloned().collect();
        let names: BTreeSet<Option<String>> = found.iter().map(name_of).collect();
        match found.as_slice() {
            [only] => Ok(only.clone()),
            // One image for several platforms, written without an index of its own.
            [_, ..] if names.len() == 1 && found.iter().all(|entry| entry.platform.is_some()) => {
                self.select(&Index { manifests: found, ..self.index.clone() }, platform)
            }
            _ => Err(Error::NoImage {
                path: self.directory.clone(),
                wanted: name.map(str::to_owned),
                names: self.index.manifests.iter().map(shown).collect(),
            }),
        }
    }

    fn select(&self, index: &Index, platform: &Platform) -> Result<Descriptor, Error> {
        index.select(platform).cloned().ok_or_else(|| Error::NoPlatform {
            path: self.directory.clone(),
            wanted: Box::new(platform.clone()),
            offered: index.platforms(),
        })
    }

    /// A small blob, whole and verified.
    ///
    /// # Errors
    /// [`Error::Read`], also when it has more than [`MANIFEST_MAX`] bytes, and
    /// [`Error::Mismatch`].
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let bytes = read_limited(&self.blob_path(&descriptor.digest), MANIFEST_MAX)?;
        check(descriptor, Digest::of(&bytes), bytes.len() as u64)?;
        Ok(bytes)
    }

    /// A blob to be read from its start; verified at its end, see [`Blob`].
    ///
    /// # Errors
    /// [`Error::Read`] when it can't be opened.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Blob, Error> {
        let path = self.blob_path(&descriptor.digest);
        let file = File::open(&path).map_err(|source| Error::Read { path, source })?;
        Ok(Blob { reader: Some(HashingReader::new(file)), expected: descriptor.clone() })
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.hex())
    }
}

fn name_of(entry: &Descriptor) -> Option<String> {
    entry.annotations.get(REF_NAME).cloned()
}

/// What a message calls an image.
fn shown(entry: &Descriptor) -> String {
    name_of(entry).unwrap_or_else(|| entry.digest.to_string())
}

pub(super) fn read_limited(path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        let text = format!("it has more than {limit} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    Ok(bytes)
}

/// The bytes of a blob. Its end is reached only if digest and size are right; it gives
/// `InvalidData` otherwise, so whoever reads to the end has verified it.
pub struct Blob {
    /// Taken at the end.
    reader: Option<HashingReader<File>>,
    expected: Descriptor,
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(reader) = &mut self.reader else { return Ok(0) };
        let count = reader.read(buffer)?;
        let is_over = reader.count() > self.expected.size || (count == 0 && !buffer.is_empty());
        if is_over && let Some(reader) = self.reader.take() {
            let (_, found, size) = reader.finish();
            check(&self.expected, found, size)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        Ok(count)
    }
}
