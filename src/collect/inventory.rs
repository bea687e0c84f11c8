//! What is in the cache directory, and how large.

use std::fs;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use yadokari_cache::Cache;
use yadokari_cache::Key;
use yadokari_cache::trash;

use super::Error;
use crate::store::partial;

/// What a content is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A damaged file, set aside.
    Aside,
    /// What is remembered of a build context or of a former build.
    Memory,
    /// The beginning of a blob, for whoever goes on with it.
    Partial,
    /// An uncompressed layer with its index.
    Layer,
    /// A blob as registries hold it.
    Blob,
    /// The directory of a RUN --mount=type=cache.
    Mount,
}

impl Kind {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aside => "aside",
            Self::Memory => "memory",
            Self::Partial => "partial",
            Self::Layer => "layer",
            Self::Blob => "blob",
            Self::Mount => "mount",
        }
    }
}

/// A content by its digest: SHA-256 of a blob, diff ID of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Id {
    Blob([u8; 32]),
    Layer([u8; 32]),
}

/// Something that can go by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) kind: Kind,
    /// Its digest, where its name is one.
    pub(super) id: Option<Id>,
    /// Path in the cache directory, as leases hold it; of a layer, that of its tar.
    pub(super) name: String,
    /// Bytes on disk.
    pub(super) bytes: u64,
    /// When it was used last, in seconds since 1970.
    pub(super) used: i64,
    /// When it, or what it is a part of, was used last.
    pub(super) used_with: i64,
    /// Whether a record or an image names it. Only blobs and layers are named.
    pub(super) wanted: bool,
    /// A layer without tar or without index.
    pub(super) incomplete: bool,
}

impl Content {
    /// Whether somebody used it after it was listed, or it changed otherwise.
    pub(super) fn was_used_since(&self, cache: &Cache) -> bool {
        let path = cache.directory().join(&self.name);
        fs::symlink_metadata(path).is_ok_and(|now| now.mtime() > self.used)
    }

    /// Renames it into the trash. Of a layer the index goes first, so that half of
    /// it never looks complete.
    pub(super) fn discard(&self, cache: &Path) -> io::Result<()> {
        let path = cache.join(&self.name);
        if self.kind == Kind::Layer {
            trash::discard(cache, &path.with_extension("index"))?;
        }
        trash::discard(cache, &path)
    }
}

/// Bytes on disk by what they are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Records: the spool and the log.
    pub records: u64,
    /// The index over them.
    pub index: u64,
    /// Uncompressed layers and their indexes.
    pub layers: u64,
    /// Blobs as registries hold them.
    pub blobs: u64,
    /// Directories of RUN --mount=type=cache.
    pub mounts: u64,
    /// Beginnings of blobs.
    pub partial: u64,
    /// What is remembered of build contexts and former builds.
    pub memory: u64,
    /// Work in flight.
    pub tmp: u64,
    /// Set aside, or on its way out.
    pub waste: u64,
    /// What a collection without any limit would give back: part of the others.
    pub reclaimable: u64,
}

impl Usage {
    /// Everything.
    pub fn total(&self) -> u64 {
        self.records
            + self.index
            + self.layers
            + self.blobs
            + self.mounts
            + self.partial
            + self.memory
            + self.tmp
            + self.waste
    }
}

/// All there is.
pub(super) struct Inventory {
    pub(super) contents: Vec<Content>,
    /// Bytes of what can't go by itself: records, index, work in flight.
    pub(super) other: u64,
    pub(super) usage: Usage,
}

impl Inventory {
    /// Lists a cache directory. What comes or goes meanwhile may be in it or not.
    pub(super) fn take(cache: &Path) -> Result<Self, Error> {
        let mut contents = Vec::new();
        for entry in entries(&cache.join("blobs/sha256"))? {
            contents.push(blob(&entry));
        }
        layers(cache, &mut contents)?;
        for (part, kind) in [
            ("mounts", Kind::Mount),
            (partial::DIRECTORY, Kind::Partial),
            ("contexts", Kind::Memory),
            ("places", Kind::Memory),
            ("aside", Kind::Aside),
        ] {
            for entry in entries(&cache.join(part))? {
                let name = format!("{part}/{}", entry.name);
                contents.push(content(kind, None, name, &entry));
            }
        }
        let sum = |kind: Kind| -> u64 {
            let of_kind = contents.iter().filter(|content| content.kind == kind);
            of_kind.map(|content| content.bytes).sum()
        };
        let size = |part: &str| size_within(&cache.join(part));
        let usage = Usage {
            records: size("records") + size("spool"),
            index: size("index"),
            layers: sum(Kind::Layer),
            blobs: sum(Kind::Blob),
            mounts: sum(Kind::Mount),
            partial: sum(Kind::Partial),
            memory: sum(Kind::Memory),
            tmp: size("tmp") + size("leases") + size("running"),
            waste: sum(Kind::Aside) + size("trash"),
            reclaimable: 0,
        };
        let other = usage.records + usage.index + usage.tmp;
        Ok(Self { contents, other, usage })
    }
}

/// A file in `places/` that stays: see `yadokari_cache::places`.
const MASK_KEY: &str = "mask.key";

struct Found {
    name: String,
    path: PathBuf,
    metadata: Metadata,
}

fn entries(directory: &Path) -> Result<Vec<Found>, Error> {
    let failed = |source| Error::List { path: directory.to_owned(), source };
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(failed)?;
        // Not a name of ours, and no lease could hold it.
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Without it no former build can be compared.
        if name == MASK_KEY {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) => found.push(Found { name, path: entry.path(), metadata }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(found)
}

fn content(kind: Kind, id: Option<Id>, name: String, entry: &Found) -> Content {
    let bytes = match entry.metadata.is_dir() {
        true => tree_size(&entry.path),
        false => disk_bytes(&entry.metadata),
    };
    let used = entry.metadata.mtime();
    let wanted = false;
    Content { kind, id, name, bytes, used, used_with: used, wanted, incomplete: false }
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    Key::from_hex(hex).map(|key| *key.as_bytes())
}

fn blob(entry: &Found) -> Content {
    let id = digest(&entry.name).map(Id::Blob);
    content(Kind::Blob, id, format!("blobs/sha256/{}", entry.name), entry)
}

/// Layers: a tar and an index make one.
fn layers(cache: &Path, contents: &mut Vec<Content>) -> Result<(), Error> {
    let mut found = entries(&cache.join("layers/sha256"))?;
    found.sort_by(|one, other| one.name.cmp(&other.name));
    for files in found.chunk_by(|one, other| stem(&one.name) == stem(&other.name)) {
        let Some(first) = files.first() else { continue };
        let stem = stem(&first.name);
        let id = digest(stem).map(Id::Layer);
        let mut layer = content(Kind::Layer, id, format!("layers/sha256/{stem}.tar"), first);
        for other in &files[1..] {
            layer.bytes += disk_bytes(&other.metadata);
            layer.used = layer.used.max(other.metadata.mtime());
        }
        layer.used_with = layer.used;
        layer.incomplete = files.len() < 2;
        contents.push(layer);
    }
    Ok(())
}

fn stem(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn disk_bytes(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

/// Bytes on disk of what is in a directory.
pub(super) fn size_within(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| tree_size(&entry.path())).sum()
}

/// Bytes on disk of a tree, links not followed, what can't be read not counted.
fn tree_size(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let mut size = disk_bytes(&metadata);
    if metadata.is_dir() {
        size += size_within(path);
    }
    size
}
