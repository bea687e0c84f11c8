//! Contents on disk, by digest: blobs as registries hold them, and layers as the
//! overlay mounts them. Lives in a cache directory beside the step cache of
//! [`yadokari_cache`], whose leases it uses.
//!
//! ```text
//! blobs/sha256/<hex>           compressed layers, configs, manifests
//! layers/sha256/<hex>.tar      an uncompressed layer, by diff ID
//! layers/sha256/<hex>.index    its layer index; present only when complete
//! mounts/<key>/                directories of RUN --mount=type=cache ([`mounts`])
//! tmp/<lease>/                 in flight, of this process alone
//! ```
//!
//! # Durability order
//!
//! Blob, layer (tar, then index), record: each is synced, renamed and its
//! directory synced before the next is begun. So a record never names what is not
//! there; a content without record is garbage and no harm. Callers put a record
//! only after the commits here have returned.
//!
//! # Who deletes
//!
//! Only a collector, and nothing that a live lease holds. Everything handed out
//! or committed here is held first ([`yadokari_cache::Lease::hold`]) and looked
//! for afterwards, so what was found stays as long as the store is open.
//!
//! The store verifies digests when contents are written and when small ones are
//! read; large ones are read by length, and by whoever hashes them anyway.

mod blob;
mod error;
mod map;
pub mod mounts;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use yadokari_cache::{Access, Lease};

use crate::oci::digest::{DiffId, Digest};

pub use blob::{BlobWriter, LayerWriter};
pub use error::Error;
pub use map::Map;

/// Where a complete layer lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLayer {
    /// The uncompressed tar.
    pub tar: PathBuf,
    /// The bytes of its layer index.
    pub index: PathBuf,
}

/// An opened layer: what the overlay takes for a lower.
#[derive(Debug)]
pub struct OpenLayer {
    /// The uncompressed tar.
    pub tar: Arc<File>,
    /// The bytes of its layer index; not yet checked by anybody.
    pub index: Map,
}

/// Contents by digest in one cache directory, and optionally in a second one that
/// is only read. Shared by threads.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    access: Access,
    lease: Mutex<Option<Arc<Lease>>>,
    behind: Option<Box<Store>>,
}

impl Store {
    /// Opens the store in a cache directory, creating it if needed. Cheap. Use
    /// [`with_lease`](Self::with_lease) where the process already has one.
    ///
    /// # Errors
    ///
    /// When the directory is another program's, or cannot be written.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        yadokari_cache::prepare(directory, Access::ReadWrite)?;
        for part in ["blobs/sha256", "layers/sha256", "mounts"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        Ok(Self::at(directory, Access::ReadWrite))
    }

    /// Opens the store of a cache directory without writing anything there, ever.
    /// A missing one is empty.
    ///
    /// # Errors
    ///
    /// When the directory is another program's.
    pub fn open_read_only(directory: &Path) -> Result<Self, Error> {
        yadokari_cache::prepare(directory, Access::ReadOnly)?;
        Ok(Self::at(directory, Access::ReadOnly))
    }

    fn at(directory: &Path, access: Access) -> Self {
        Self { directory: directory.to_owned(), access, lease: Mutex::new(None), behind: None }
    }

    /// Uses a lease of the same directory instead of taking one.
    #[must_use]
    pub fn with_lease(self, lease: Arc<Lease>) -> Self {
        Self { lease: Mutex::new(Some(lease)), ..self }
    }

    /// Looks for contents in a second store too, when they are not in this one.
    /// For a read-only cache: its hits, and a scratch directory to write to.
    #[must_use]
    pub fn in_front_of(self, behind: Self) -> Self {
        Self { behind: Some(Box::new(behind)), ..self }
    }

    /// The cache directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    // Blobs.

    /// Where a blob lies, or would lie.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let name = blob_name(digest);
        let own = self.directory.join(&name);
        match &self.behind {
            Some(behind) if !own.exists() => {
                let other = behind.blob_path(digest);
                if other.exists() { other } else { own }
            }
            _ => own,
        }
    }

    /// Whether a blob is there, with the given length in bytes if that is known.
    /// One that is stays while this store is open.
    ///
    /// # Errors
    ///
    /// When the disk does not tell.
    pub fn has_blob(&self, digest: &Digest, size: Option<u64>) -> Result<bool, Error> {
        let found = self.blob_length(digest)?;
        if found.is_some_and(|found| size.is_none_or(|size| size == found)) {
            return Ok(true);
        }
        self.behind.as_ref().map_or(Ok(false), |behind| behind.has_blob(digest, size))
    }

    fn blob_length(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let name = blob_name(digest);
        self.hold(&name)?;
        length(&self.directory.join(name))
    }

    /// Opens a blob for reading, unverified. `None` if it is not there.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be opened.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, Error> {
        let name = blob_name(digest);
        self.hold(&name)?;
        match open(&self.directory.join(name))? {
            Some(file) => Ok(Some(file)),
            None => self.behind.as_ref().map_or(Ok(None), |behind| behind.open_blob(digest)),
        }
    }

    /// Reads a blob of at most `limit` bytes and verifies its digest. `None` if it
    /// is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if it has another digest: it is then gone, and a repeated
    /// call says `None` (unless the store is read-only). [`Error::TooLarge`].
    pub fn read_small_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let name = blob_name(digest);
        self.hold(&name)?;
        let path = self.directory.join(name);
        let Some(file) = open(&path)? else {
            return match &self.behind {
                Some(behind) => behind.read_small_blob(digest, limit),
                None => Ok(None),
            };
        };
        let size = file.metadata().map_err(Error::io("look at", &path))?.len();
        if size > limit {
            return Err(Error::TooLarge { path, size, limit });
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        if Digest::of(&bytes) != *digest {
            self.discard_blob(digest)?;
            return Err(Error::Damaged { path });
        }
        Ok(Some(bytes))
    }

    /// Begins a new blob.
    ///
    /// # Errors
    ///
    /// When no file can be created.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>, Error> {
        BlobWriter::new(self)
    }

    /// Stores bytes as a blob. Idempotent, durable.
    ///
    /// # Errors
    ///
    /// As [`BlobWriter::commit`].
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let mut writer = self.blob_writer()?;
        let path = self.blob_path(&Digest::of(bytes));
        io::Write::write_all(&mut writer, bytes).map_err(Error::io("write", &path))?;
        Ok(writer.commit(None)?.0)
    }

    /// Removes a blob that turned out to be damaged. No effect on a read-only
    /// store.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn discard_blob(&self, digest: &Digest) -> Result<(), Error> {
        self.discard(&self.directory.join(blob_name(digest)))
    }

    // Layers.

    /// Where a complete layer lies; `None` if it is not there. It stays while this
    /// store is open.
    ///
    /// # Errors
    ///
    /// When the disk does not tell.
    pub fn layer(&self, diff_id: &DiffId) -> Result<Option<StoredLayer>, Error> {
        match self.own_layer(diff_id)? {
            Some(layer) => Ok(Some(layer)),
            None => self.behind.as_ref().map_or(Ok(None), |behind| behind.layer(diff_id)),
        }
    }

    fn own_layer(&self, diff_id: &DiffId) -> Result<Option<StoredLayer>, Error> {
        let (tar, index) = layer_names(diff_id);
        // One name for both: they come and go together.
        self.hold(&tar)?;
        let layer =
            StoredLayer { tar: self.directory.join(tar), index: self.directory.join(index) };
        let complete = length(&layer.index)?.is_some() && length(&layer.tar)?.is_some();
        Ok(complete.then_some(layer))
    }

    /// Opens a complete layer; `None` if it is not there.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be opened or mapped.
    pub fn open_layer(&self, diff_id: &DiffId) -> Result<Option<OpenLayer>, Error> {
        let Some(layer) = self.layer(diff_id)? else { return Ok(None) };
        let Some((tar, index)) = open(&layer.tar)?.zip(open(&layer.index)?) else {
            return Ok(None);
        };
        let index = Map::of(&index).map_err(Error::io("map", &layer.index))?;
        Ok(Some(OpenLayer { tar: Arc::new(tar), index }))
    }

    /// Begins a new layer.
    ///
    /// # Errors
    ///
    /// When no file can be created.
    pub fn layer_writer(&self) -> Result<LayerWriter<'_>, Error> {
        LayerWriter::new(self)
    }

    /// Removes a layer whose index or tar turned out to be damaged: index first,
    /// so that half of it never looks complete. No effect on a read-only store.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn discard_layer(&self, diff_id: &DiffId) -> Result<(), Error> {
        let (tar, index) = layer_names(diff_id);
        self.discard(&self.directory.join(index))?;
        self.discard(&self.directory.join(tar))
    }

    // Directories.

    /// Makes a new empty directory for work in flight, on the file system of the
    /// store. It goes with the store, or with the next one if this process dies.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub fn scratch(&self) -> Result<PathBuf, Error> {
        let path = self.lease()?.unique_path();
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// The directory of a RUN --mount=type=cache, made if needed; it survives
    /// builds. `id` is a hash in hex of what the Dockerfile calls it.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub fn cache_mount_dir(&self, id: &str) -> Result<PathBuf, Error> {
        assert!(
            !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "cache mounts are named by a hash"
        );
        let name = format!("mounts/{id}");
        self.lease()?;
        self.hold(&name)?;
        let path = self.directory.join(name);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    // Inside.

    /// The lease of this store, taken when first needed.
    fn lease(&self) -> Result<Arc<Lease>, Error> {
        if self.access == Access::ReadOnly {
            let path = self.directory.clone();
            return Err(Error::ReadOnly { action: "write", path });
        }
        let mut lease = self.lease.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*lease {
            Some(lease) => Ok(Arc::clone(lease)),
            None => Ok(Arc::clone(lease.insert(Arc::new(Lease::acquire(&self.directory)?)))),
        }
    }

    /// Keeps collectors away from a content. In a read-only store there is no
    /// lease to say it with; what goes then is a miss.
    fn hold(&self, name: &str) -> Result<(), Error> {
        match self.access {
            Access::ReadOnly => Ok(()),
            Access::ReadWrite => Ok(self.lease()?.hold(name)?),
        }
    }

    fn sync_parent(&self, path: &Path) -> Result<(), Error> {
        let parent = path.parent().unwrap_or(&self.directory);
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(Error::io("sync", parent))
    }

    fn discard(&self, path: &Path) -> Result<(), Error> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Path of a blob in the cache directory.
fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Paths of a layer's tar and index in the cache directory.
fn layer_names(diff_id: &DiffId) -> (String, String) {
    let hex = diff_id.hex();
    (format!("layers/sha256/{hex}.tar"), format!("layers/sha256/{hex}.index"))
}

fn length(path: &Path) -> Result<Option<u64>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

fn open(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

#[cfg(test)]
mod tests;
