//! A blob that is downloaded in pieces, maybe by several processes one after
//! another: what one leaves behind when it is killed, the next goes on with.

use std::fs::{self, File};
use std::io::{self, Seek as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::oci::digest::Digest;
use crate::store::error::Error;
use crate::store::{Store, blob_name};

/// Where beginnings lie, by digest, in the cache directory.
pub(crate) const DIRECTORY: &str = "partial";

/// What has come of a blob. Locked: one process works at it, others wait for it.
/// Dropped without [`commit`](Self::commit) it stays for the next.
#[derive(Debug)]
pub struct PartialBlob<'a> {
    store: &'a Store,
    file: File,
    path: PathBuf,
    length: u64,
}

impl<'a> PartialBlob<'a> {
    pub(super) fn new(store: &'a Store, digest: &Digest) -> Result<Self, Error> {
        store.lease()?;
        let name = format!("{DIRECTORY}/{}", digest.hex());
        // Held first, so that no collector takes it from us.
        store.hold(&name)?;
        let directory = store.directory().join(DIRECTORY);
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let path = store.directory().join(name);
        loop {
            let file = File::options()
                .create(true)
                .read(true)
                .append(true)
                .open(&path)
                .map_err(Error::io("open", &path))?;
            file.lock().map_err(Error::io("lock", &path))?;
            // Whoever had it before may have finished it, or thrown it away: then our
            // file has another name by now, or none.
            let metadata = file.metadata().map_err(Error::io("look at", &path))?;
            let named = fs::metadata(&path).is_ok_and(|found| found.ino() == metadata.ino());
            if named {
                let length = metadata.len();
                return Ok(Self { store, file, path, length });
            }
        }
    }

    /// Bytes that are here.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What is here, from its start.
    ///
    /// # Errors
    ///
    /// Those of the file.
    pub fn reader(&self) -> Result<File, Error> {
        let mut file = self.file.try_clone().map_err(Error::io("read", &self.path))?;
        file.rewind().map_err(Error::io("read", &self.path))?;
        Ok(file)
    }

    /// Puts the whole blob under its digest, durably. Whoever wrote it has verified
    /// its bytes.
    ///
    /// # Errors
    ///
    /// What the disk says; what is here stays.
    pub fn commit(self, digest: &Digest) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))?;
        let name = blob_name(digest);
        self.store.hold(&name)?;
        let target = self.store.directory().join(name);
        fs::rename(&self.path, &target).map_err(Error::io("rename into", &target))?;
        self.store.sync_parent(&target)
    }

    /// Throws away what is here: it is no beginning of the blob.
    pub fn discard(self) {
        // What stays is found wrong again.
        let _ = fs::remove_file(&self.path);
    }
}

impl Write for PartialBlob<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes what nobody has gone on with since `before`, in seconds since 1970.
/// Best effort.
pub(super) fn forget(directory: &Path, before: i64) {
    let entries = fs::read_dir(directory.join(DIRECTORY)).into_iter().flatten().flatten();
    for entry in entries {
        let path = entry.path();
        let is_old = entry.metadata().is_ok_and(|metadata| metadata.mtime() < before);
        let unlocked = || File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if is_old && unlocked() {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_one_leaves_the_next_goes_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = Digest::of(b"whole");
        let mut first = store.partial_blob(&digest).unwrap();
        first.write_all(b"who").unwrap();
        drop(first);
        let mut second = store.partial_blob(&digest).unwrap();
        assert_eq!(second.length(), 3);
        second.write_all(b"le").unwrap();
        let mut text = String::new();
        second.reader().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");
        second.commit(&digest).unwrap();
        assert!(store.has_blob(&digest, Some(5)).unwrap());
        assert_eq!(store.partial_blob(&digest).unwrap().length(), 0);
    }

    #[test]
    fn who_waited_for_a_finished_blob_does_not_write_into_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = Digest::of(b"whole");
        let mut first = store.partial_blob(&digest).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let mut second = store.partial_blob(&digest).unwrap();
                second.write_all(b"other").unwrap();
            });
            first.write_all(b"whole").unwrap();
            first.commit(&digest).unwrap();
            second.join().unwrap();
        });
        assert_eq!(store.read_small_blob(&digest, 100).unwrap().unwrap(), b"whole");
    }

    #[test]
    fn only_what_is_old_and_idle_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (idle, busy) = (Digest::of(b"idle"), Digest::of(b"busy"));
        drop(store.partial_blob(&idle).unwrap());
        let _busy = store.partial_blob(&busy).unwrap();
        let there = |digest: &Digest| directory.path().join("partial").join(digest.hex()).exists();
        store.forget_partial_blobs(0);
        assert!(there(&idle));
        store.forget_partial_blobs(i64::MAX);
        assert!(!there(&idle) && there(&busy));
    }
}
