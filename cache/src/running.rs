//! Steps that are being built: a locked file each, so that another process that is
//! about to build the very same step can wait for its record instead.
//!
//! The kernel gives the lock up when its holder dies. Nothing depends on these
//! locks but time saved: who doesn't get one may build the step all the same.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::cache::Cache;
use crate::directory::Access;
use crate::error::Error;
use crate::key::Key;

/// The right to be the one who builds a step; given up when dropped.
#[derive(Debug)]
pub struct Turn {
    path: PathBuf,
    /// Its lock is the turn.
    _file: File,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Still locked, so nobody else takes this name for his.
        let _ = fs::remove_file(&self.path);
    }
}

impl Cache {
    /// Tries to become the one who builds the step with this key. `None` while
    /// somebody else is. Never waits.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], or when the file can't be created or locked.
    pub fn take_turn(&self, key: &Key) -> Result<Option<Turn>, Error> {
        if self.access() == Access::ReadOnly {
            let path = self.directory().to_owned();
            return Err(Error::ReadOnly { action: "take a turn", path });
        }
        let path = self.directory().join("running").join(key.to_string());
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(Error::io("create", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path)(source)),
            }
            // The one before us may have removed it between opening and locking.
            let links = file.metadata().map_err(Error::io("look at", &path))?.nlink();
            if links > 0 {
                return Ok(Some(Turn { path, _file: file }));
            }
        }
    }

    /// Removes files that dead builders left behind.
    pub fn remove_dead_turns(&self) {
        let entries = fs::read_dir(self.directory().join("running")).into_iter().flatten();
        for entry in entries.flatten() {
            let Ok(file) = File::open(entry.path()) else { continue };
            if file.try_lock().is_ok() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_builds_and_the_next_may_when_it_is_done_or_dead() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(dir.path(), Access::ReadWrite).unwrap();
        let (one, two) = (open(), open());
        let (key, other) = (Key::from_bytes([1; 32]), Key::from_bytes([2; 32]));
        let turn = one.take_turn(&key).unwrap().unwrap();
        assert!(two.take_turn(&key).unwrap().is_none());
        assert!(two.take_turn(&other).unwrap().is_some());
        drop(turn);
        // As a killed builder leaves it: a file and no lock.
        fs::write(dir.path().join("running").join(key.to_string()), "").unwrap();
        let turn = two.take_turn(&key).unwrap().unwrap();
        one.remove_dead_turns();
        assert!(one.take_turn(&key).unwrap().is_none());
        drop(turn);
        assert_eq!(fs::read_dir(dir.path().join("running")).unwrap().count(), 0);
    }
}
