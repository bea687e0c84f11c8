//! Writing contents: into a file of one's own, under its name when complete.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};
use yadokari_cache::Lease;

use crate::oci::digest::{DiffId, Digest};
use crate::store::error::Error;
use crate::store::seal::Seal;
use crate::store::{Store, blob_name, layer_names};

/// A file in `tmp/` that goes unless it gets its name.
#[derive(Debug)]
struct Draft {
    file: File,
    path: PathBuf,
    named: bool,
    // Keeps `tmp/<lease>/` there.
    _lease: Arc<Lease>,
}

impl Draft {
    fn new(lease: Arc<Lease>) -> Result<Self, Error> {
        let path = lease.unique_path();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        Ok(Self { file, path, named: false, _lease: lease })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|error| Error::io("write", &self.path)(error).into_io())
    }

    /// Makes the bytes durable, and seals them as those of `digest`.
    fn sync(&self, digest: &[u8; 32]) -> Result<(), Error> {
        // Without a seal the file is hashed before its first use.
        if let Err(error) = Seal::of(digest).put(&self.file) {
            tracing::debug!(%error, path = %self.path.display(), "not sealed");
        }
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }

    /// Gives the file its name; replaces what has it.
    fn name(mut self, target: &Path) -> Result<(), Error> {
        fs::rename(&self.path, target).map_err(Error::io("rename into", target))?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.named {
            // It goes with the lease otherwise.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Receives the bytes of a blob; hashes and counts them. Dropped without
/// [`commit`](Self::commit) nothing remains.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    store: &'a Store,
    draft: Draft,
    sha256: Sha256,
    size: u64,
}

impl<'a> BlobWriter<'a> {
    pub(super) fn new(store: &'a Store) -> Result<Self, Error> {
        let draft = Draft::new(store.lease()?)?;
        Ok(Self { store, draft, sha256: Sha256::new(), size: 0 })
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Puts the blob under its digest, durably. If it is there already, with the
    /// right length, that one stays.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDigest`] if the bytes are not the expected ones, or what the
    /// disk says. Nothing remains then.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64), Error> {
        let digest = Digest::from_bytes(self.sha256.finalize().into());
        if let Some(&expected) = expected.filter(|expected| **expected != digest) {
            return Err(Error::WrongDigest { expected, found: digest });
        }
        let name = blob_name(&digest);
        self.store.hold(&name)?;
        let target = self.store.directory().join(&name);
        let exists = self.store.stat(&target)?.is_some_and(|found| {
            found.len() == self.size
                && Seal::of(digest.as_bytes()).is_on(&found)
                && !self.store.is_damaged(&name, &found)
        });
        if !exists {
            self.draft.sync(digest.as_bytes())?;
            self.draft.name(&target)?;
            self.store.added.fetch_add(self.size, Ordering::Relaxed);
        }
        // Also where another process was first: its name may not be durable yet.
        self.store.sync_parent(&target)?;
        Ok((digest, self.size))
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.draft.write(bytes)?;
        self.sha256.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Receives the uncompressed tar of a layer. Dropped without
/// [`commit`](Self::commit) nothing remains.
#[derive(Debug)]
pub struct LayerWriter<'a> {
    store: &'a Store,
    tar: Draft,
    sha256: Sha256,
    size: u64,
}

impl<'a> LayerWriter<'a> {
    pub(super) fn new(store: &'a Store) -> Result<Self, Error> {
        let tar = Draft::new(store.lease()?)?;
        Ok(Self { store, tar, sha256: Sha256::new(), size: 0 })
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Puts the tar and then its index under the layer's diff ID, durably: who
    /// finds the index finds a complete layer. A layer that is there stays.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDigest`] if the bytes do not have this diff ID, or what the
    /// disk says; then no index is there.
    pub fn commit(self, diff_id: &DiffId, index: &[u8]) -> Result<(), Error> {
        let found: [u8; 32] = self.sha256.finalize().into();
        if found != *diff_id.as_bytes() {
            return Err(Error::WrongDigest {
                expected: Digest::from_bytes(*diff_id.as_bytes()),
                found: Digest::from_bytes(found),
            });
        }
        if let Some(layer) = self.store.own_layer(diff_id)? {
            return self.store.sync_parent(&layer.index);
        }
        let (tar, index_name) = layer_names(diff_id);
        let directory = self.store.directory();
        self.tar.sync(diff_id.as_bytes())?;
        self.tar.name(&directory.join(tar))?;
        let mut draft = Draft::new(self.store.lease()?)?;
        draft.file.write_all(index).map_err(Error::io("write", &draft.path))?;
        draft.sync(diff_id.as_bytes())?;
        let target = directory.join(index_name);
        draft.name(&target)?;
        self.store.added.fetch_add(self.size + index.len() as u64, Ordering::Relaxed);
        self.store.sync_parent(&target)
    }
}

impl Write for LayerWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.tar.write(bytes)?;
        self.sha256.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
