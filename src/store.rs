//! Contents on disk, by digest: blobs as registries hold them, and layers as the
//! overlay mounts them. Lives in a cache directory beside the step cache of
//! [`yadokari_cache`], whose leases it uses.
//!
//! ```text
//! blobs/sha256/<hex>           compressed layers, configs, manifests
//! layers/sha256/<hex>.tar      an uncompressed layer, by diff ID
//! layers/sha256/<hex>.index    its layer index; present only when complete
//! mounts/<key>/                directories of RUN --mount=type=cache ([`mounts`])
//! partial/<hex>                the beginning of a blob, for whoever goes on with it
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
//! # Damage
//!
//! Digests are verified when contents are written and when small ones are read;
//! large ones are hashed before their use if their *seal* is broken, as it is when
//! anything wrote into them since (see `store/seal.rs`). What is damaged is set aside
//! and told once ([`Store::take_notices`]); it is missing from then on, and whoever
//! wanted it makes it anew.

mod blob;
mod error;
mod map;
pub mod mounts;
pub(crate) mod partial;
pub(crate) mod seal;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use yadokari_cache::{Access, Lease, Notice};

use crate::layer::LayerIndex;
use crate::oci::digest::{DiffId, Digest};

pub use blob::{BlobWriter, LayerWriter};
pub use error::Error;
pub use map::Map;
pub use partial::PartialBlob;

use seal::Seal;

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

/// Device and inode number: what a file stays while names come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// Contents by digest in one cache directory, and optionally in a second one that
/// is only read. Shared by threads.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    access: Access,
    lease: Mutex<Option<Arc<Lease>>>,
    behind: Option<Box<Store>>,
    /// Names of files without a seal that were found good and can't be sealed.
    verified: Mutex<HashSet<String>>,
    notices: Mutex<Vec<Notice>>,
    /// Files that have another digest than they should and can't be set aside, by name.
    /// Another file of that name may be good.
    damaged: Mutex<HashMap<String, FileId>>,
    /// Something that was found turned out to be damaged or gone when it was used.
    lost: AtomicBool,
    /// Bytes of contents that this store added.
    added: AtomicU64,
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
        Self {
            directory: directory.to_owned(),
            access,
            lease: Mutex::new(None),
            behind: None,
            verified: Mutex::default(),
            notices: Mutex::default(),
            damaged: Mutex::default(),
            lost: AtomicBool::new(false),
            added: AtomicU64::new(0),
        }
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

    /// Bytes of contents that were added through this store.
    pub fn added(&self) -> u64 {
        self.added.load(Ordering::Relaxed)
    }

    /// What was found damaged since the last call.
    pub fn take_notices(&self) -> Vec<Notice> {
        let mut notices = std::mem::take(&mut *lock(&self.notices));
        notices.extend(self.behind.iter().flat_map(|behind| behind.take_notices()));
        notices
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
        let path = self.directory.join(&name);
        let Some(metadata) = self.stat(&path)? else { return Ok(None) };
        let sound = self.is_sound(&name, digest.as_bytes(), &metadata)?;
        Ok(sound.then_some(metadata.len()))
    }

    /// Opens a blob for reading. `None` if it is not there, or was found damaged.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be opened.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, Error> {
        let there = self.blob_length(digest)?.is_some();
        let own = if there { open(&self.directory.join(blob_name(digest)))? } else { None };
        match own {
            Some(file) => Ok(Some(file)),
            None => self.behind.as_ref().map_or(Ok(None), |behind| behind.open_blob(digest)),
        }
    }

    /// Reads a blob of at most `limit` bytes and verifies its digest. `None` if it
    /// is not there, or was found damaged.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], or what the disk says.
    pub fn read_small_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let name = blob_name(digest);
        self.hold(&name)?;
        let path = self.directory.join(name);
        if self.stat(&path)?.is_some()
            && let Some(file) = open(&path)?
        {
            let metadata = file.metadata().map_err(Error::io("look at", &path))?;
            let size = metadata.len();
            if size > limit {
                return Err(Error::TooLarge { path, size, limit });
            }
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
            if Digest::of(&bytes) == *digest {
                self.note_use(&path, Seal::of(digest.as_bytes()), &metadata);
                return Ok(Some(bytes));
            }
            if !self.set_file_aside(&metadata, &[&path], OTHER_DIGEST)? {
                return self.read_small_blob(digest, limit);
            }
        }
        self.behind.as_ref().map_or(Ok(None), |behind| behind.read_small_blob(digest, limit))
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
        let digest = Digest::of(bytes);
        // One that is there may be damaged under its seal; then it is set aside.
        let _ = self.read_small_blob(&digest, bytes.len() as u64);
        let mut writer = self.blob_writer()?;
        let path = self.blob_path(&digest);
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

    /// Goes on with a blob that may have been begun before. Waits while another
    /// process does; look for the blob when it has come.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or locked.
    pub fn partial_blob(&self, digest: &Digest) -> Result<PartialBlob<'_>, Error> {
        PartialBlob::new(self, digest)
    }

    /// Removes beginnings of blobs that nobody has gone on with since `before`, in
    /// seconds since 1970. Best effort.
    pub fn forget_partial_blobs(&self, before: i64) {
        if self.access == Access::ReadWrite {
            partial::forget(&self.directory, before);
        }
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
        let Some((index, tar)) = self.stat(&layer.index)?.zip(self.stat(&layer.tar)?) else {
            return Ok(None);
        };
        let (tar_name, index_name) = layer_names(diff_id);
        let sound = self.is_sound(&tar_name, diff_id.as_bytes(), &tar)?
            && self.is_index_sound(&index_name, diff_id, &index)?;
        Ok(sound.then_some(layer))
    }

    /// Whether the index of a layer, whose tar is sound, is what was written.
    fn is_index_sound(
        &self,
        name: &str,
        diff_id: &DiffId,
        metadata: &Metadata,
    ) -> Result<bool, Error> {
        let seal = Seal::of(diff_id.as_bytes());
        if seal.is_on(metadata) || lock(&self.verified).contains(name) {
            return Ok(true);
        }
        let sound = self.check_index(name)?;
        if sound {
            self.note_use(&self.directory.join(name), seal, metadata);
            lock(&self.verified).insert(name.to_owned());
        }
        Ok(sound)
    }

    /// Whether a layer index is whole; a damaged one is set aside and told.
    fn check_index(&self, name: &str) -> Result<bool, Error> {
        let path = self.directory.join(name);
        let Some(file) = open(&path)? else { return Ok(false) };
        let metadata = file.metadata().map_err(Error::io("look at", &path))?;
        let bytes = Map::of(&file).map_err(Error::io("map", &path))?;
        match LayerIndex::from_bytes(bytes).and_then(|index| index.verify()) {
            Ok(()) => Ok(true),
            Err(error) if self.set_file_aside(&metadata, &[&path], &error.to_string())? => {
                Ok(false)
            }
            Err(_) => self.check_index(name),
        }
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
        seal::directory_used(&path);
        Ok(path)
    }

    // Checks.

    /// Whether a blob is there with the digest it should have, whatever its seal says:
    /// for one that made trouble.
    ///
    /// # Errors
    ///
    /// When it is there and can't be read.
    pub fn has_sound_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.recheck_blob(digest)?;
        let own = self.blob_length(digest)?.is_some();
        Ok(own || self.behind.as_ref().map_or(Ok(false), |behind| behind.has_sound_blob(digest))?)
    }

    /// A blob that was found made trouble: looks whether it is damaged or gone, as when
    /// a collector passed by a reader, who can hold nothing. [`lost`](Self::lost) says
    /// so from then on.
    pub fn doubt_blob(&self, digest: &Digest) {
        if !matches!(self.has_sound_blob(digest), Ok(true)) {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// Whether something that was found turned out to be damaged or gone: it is made
    /// anew if the build begins again.
    pub fn lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// [`lost`](Self::lost), for the last time.
    pub fn take_lost(&self) -> bool {
        self.lost.swap(false, Ordering::Relaxed)
    }

    /// Hashes a blob whatever its seal says; a damaged one is set aside and told.
    ///
    /// # Errors
    ///
    /// When it is there and can't be read.
    pub fn recheck_blob(&self, digest: &Digest) -> Result<(), Error> {
        self.recheck(&blob_name(digest), digest.as_bytes()).map(drop)
    }

    /// Hashes a layer whatever its seal says and checks its index; a damaged one is
    /// set aside and told.
    ///
    /// # Errors
    ///
    /// When it is there and can't be read.
    pub fn recheck_layer(&self, diff_id: &DiffId) -> Result<(), Error> {
        let (tar, index) = layer_names(diff_id);
        if !self.recheck(&tar, diff_id.as_bytes())? {
            return Ok(());
        }
        match self.stat(&self.directory.join(&index))? {
            Some(_) => self.check_index(&index).map(drop),
            None => Ok(()),
        }
    }

    /// Whether a file has the digest it should have, or isn't there.
    fn recheck(&self, name: &str, digest: &[u8; 32]) -> Result<bool, Error> {
        self.hold(name)?;
        let path = self.directory.join(name);
        if self.stat(&path)?.is_none() {
            return Ok(true);
        }
        let Some(mut file) = open(&path)? else { return Ok(true) };
        let metadata = file.metadata().map_err(Error::io("look at", &path))?;
        let found = seal::digest(&mut file).map_err(Error::io("read", &path))?;
        if found == *digest {
            return Ok(true);
        }
        let index = path.with_extension("index");
        let pair: &[&Path] = if name.ends_with(".tar") { &[&index, &path] } else { &[&path] };
        if !self.set_file_aside(&metadata, pair, OTHER_DIGEST)? {
            return self.recheck(name, digest);
        }
        // Where it can't go, only another one under its name will do.
        if path.exists() {
            lock(&self.damaged).insert(name.to_owned(), FileId::of(&metadata));
        }
        Ok(false)
    }

    // Inside.

    /// What is at a path; `None` if no file is. What is something else, which would
    /// be in the way and, a pipe, wait for ever, is set aside.
    fn stat(&self, path: &Path) -> Result<Option<Metadata>, Error> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
            Ok(_) => {
                self.set_aside(&[path], "it is no file");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look at", path)(error)),
        }
    }

    /// Whether the file of that name has the digest it should have. One that
    /// hasn't is set aside. Notes that it is used.
    fn is_sound(&self, name: &str, digest: &[u8; 32], metadata: &Metadata) -> Result<bool, Error> {
        let seal = Seal::of(digest);
        let path = self.directory.join(name);
        if self.is_damaged(name, metadata) {
            return Ok(false);
        }
        if !seal.is_on(metadata) && !lock(&self.verified).contains(name) {
            if !self.recheck(name, digest)? {
                return Ok(false);
            }
            lock(&self.verified).insert(name.to_owned());
        }
        self.note_use(&path, seal, metadata);
        Ok(true)
    }

    /// Whether this very file was found damaged before.
    fn is_damaged(&self, name: &str, metadata: &Metadata) -> bool {
        lock(&self.damaged).get(name) == Some(&FileId::of(metadata))
    }

    fn note_use(&self, path: &Path, seal: Seal, metadata: &Metadata) {
        if self.access == Access::ReadWrite {
            seal.used(path, metadata);
        }
    }

    /// [`set_aside`](Self::set_aside) for a file that was opened and found damaged.
    /// `false` if another has its name by now: somebody made the content anew.
    fn set_file_aside(
        &self,
        file: &Metadata,
        paths: &[&Path],
        reason: &str,
    ) -> Result<bool, Error> {
        let Some(path) = paths.last() else { return Ok(true) };
        match self.stat(path)? {
            Some(found) if FileId::of(&found) != FileId::of(file) => Ok(false),
            Some(_) => {
                self.set_aside(paths, reason);
                Ok(true)
            }
            None => Ok(true),
        }
    }

    /// Moves a damaged file, with what depends on it before it, out of the way; the
    /// last of them is told.
    fn set_aside(&self, paths: &[&Path], reason: &str) {
        if self.access == Access::ReadWrite {
            for path in paths.iter().filter(|path| path.exists()) {
                yadokari_cache::set_aside(&self.directory, path);
            }
        }
        if let Some(&path) = paths.last() {
            let notice = Notice::SetAside { path: path.to_owned(), reason: reason.to_owned() };
            let mut notices = lock(&self.notices);
            if !notices.contains(&notice) {
                notices.push(notice);
            }
        }
    }

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

/// Why most files are set aside.
const OTHER_DIGEST: &str = "it has another digest than its name";

/// Path of a blob in the cache directory.
fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Paths of a layer's tar and index in the cache directory.
fn layer_names(diff_id: &DiffId) -> (String, String) {
    let hex = diff_id.hex();
    (format!("layers/sha256/{hex}.tar"), format!("layers/sha256/{hex}.index"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
