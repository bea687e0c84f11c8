//! Steps that are being built: a locked file each, so that another process that is
//! about to build the very same step can wait for its record instead.
//!
//! The kernel gives the lock up when its holder dies. Nothing depends on these
//! locks but time saved: who doesn't get one may build the step all the same.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::cache::Cache;
use crate::directory::Access;
use crate::directory::unique_name;
use crate::error::Error;
use crate::key::Key;

/// The right to be the one who builds a step; given up when dropped.
#[derive(Debug)]
pub struct Turn {
    path: PathBuf,
    /// Its lock is the turn.
    _file: File,
    is_inherited: bool,
    is_abandoned: bool,
}

impl Turn {
    /// Whether it was taken from somebody who died or gave up, and so left no result.
    pub fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// Gives it up as if its holder had died: one of those who wait is the next.
    pub fn abandon(mut self) {
        self.is_abandoned = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_abandoned {
            // Still locked, so nobody else takes this name for his.
            let _ = fs::remove_file(&self.path);
        }
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
        let running = self.directory().join("running");
        let path = running.join(key.to_string());
        loop {
            let (file, is_inherited) = match File::options().write(true).open(&path) {
                Ok(file) => match file.try_lock() {
                    Ok(()) => (file, true),
                    Err(TryLockError::WouldBlock) => return Ok(None),
                    Err(TryLockError::Error(source)) => {
                        return Err(Error::io("lock", &path)(source));
                    }
                },
                // Locked before it has its name, so that nobody takes its maker for dead.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let new = running.join(unique_name());
                    let file = File::create_new(&new).map_err(Error::io("create", &new))?;
                    let linked = file.lock().and_then(|()| fs::hard_link(&new, &path));
                    let _ = fs::remove_file(&new);
                    match linked {
                        Ok(()) => (file, false),
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                        Err(error) => return Err(Error::io("create", &path)(error)),
                    }
                }
                Err(error) => return Err(Error::io("open", &path)(error)),
            };
            // The one before us may have removed it between opening and locking.
            let links = file.metadata().map_err(Error::io("look at", &path))?.nlink();
            if links > 0 {
                return Ok(Some(Turn { path, _file: file, is_inherited, is_abandoned: false }));
            }
        }
    }

    /// Removes files that dead builders left behind.
    pub fn remove_dead_turns(&self) {
        let entries = fs::read_dir(self.directory().join("running")).into_iter().flatten();
        for entry in entries.flatten() {
            let Ok(file) = File::open(entry.path()) else { continue };
            // Without a name it is another's by now.
            let is_named = || file.metadata().is_ok_and(|found| found.nlink() > 0);
            if file.try_lock().is_ok() && is_named() {
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
        assert!(!two.take_turn(&key).unwrap().unwrap().is_inherited());
        // As a killed builder leaves it: a file and no lock.
        fs::write(dir.path().join("running").join(key.to_string()), "").unwrap();
        let turn = two.take_turn(&key).unwrap().unwrap();
        assert!(turn.is_inherited());
        turn.abandon();
        let turn = two.take_turn(&key).unwrap().unwrap();
        assert!(turn.is_inherited());
        one.remove_dead_turns();
        assert!(one.take_turn(&key).unwrap().is_none());
        drop(turn);
        assert_eq!(fs::read_dir(dir.path().join("running")).unwrap().count(), 0);
    }
}
