//! The directories of RUN --mount=type=cache: found by id, locked while in use.
//!
//! ```text
//! mounts/<key>/             key: hash of the id, mode and owner that a Dockerfile gives;
//!                           its mtime is the last use
//! mounts/<key>/id           JSON: what the key was made of
//! mounts/<key>/<n>/         the directory; further ones where sharing=private asks
//! mounts/<key>/<n>.lock     flock: held shared or alone while a step uses it
//! ```
//!
//! Another owner or mode is another directory, as in BuildKit. A directory appears
//! whole, by a rename out of `tmp/`, so whoever has the lock sees all of it or none.
//! Collectors leave alone what a lease holds, and every use is held.

pub mod archive;

use std::fs;
use std::fs::File;
use std::fs::TryLockError;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Deserialize;
use serde::Serialize;
use yadokari_cache::KeyHasher;

use super::Error;
use super::Store;

/// Which cache mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MountId {
    /// `id=`, by default the target.
    pub id: String,
    /// Mode of the directory when new.
    pub mode: u16,
    /// Owner of the directory when new.
    pub uid: u32,
    /// Group of the directory when new.
    pub gid: u32,
}

impl MountId {
    /// The id with the mode and owner of a mount that names none.
    pub fn plain(id: &str) -> Self {
        Self { id: id.to_owned(), mode: 0o755, uid: 0, gid: 0 }
    }

    /// The name of its directory in the store.
    pub fn key(&self) -> String {
        let mut hasher = KeyHasher::new("cache mount");
        hasher.field("id", self.id.as_bytes());
        hasher.number("mode", u64::from(self.mode));
        hasher.number("uid", u64::from(self.uid));
        hasher.number("gid", u64::from(self.gid));
        hasher.finish().to_string()
    }
}

/// A cache mount that this process uses; others wait or share until it is dropped.
#[derive(Debug)]
pub struct MountLock {
    /// The directory; may not be there yet.
    pub directory: PathBuf,
    /// Holds the lock while it is open.
    pub lock: File,
}

/// A cache mount on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMount {
    /// What it is for.
    pub id: MountId,
    /// Which of its directories: 0 unless several private users met.
    pub number: u32,
    /// The directory.
    pub directory: PathBuf,
    /// When it was used last.
    pub used: SystemTime,
}

impl Store {
    /// Tries to lock a directory of a cache mount, alone or shared. `None` while
    /// somebody has it who doesn't share it. It counts as used now.
    ///
    /// # Errors
    ///
    /// When its lock can't be created.
    pub fn try_mount(
        &self,
        which: &MountId,
        number: u32,
        alone: bool,
    ) -> Result<Option<MountLock>, Error> {
        let parent = self.cache_mount_dir(&which.key())?;
        self.describe_mount(which, &parent)?;
        let path = parent.join(format!("{number}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let locked = if alone { lock.try_lock() } else { lock.try_lock_shared() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path)(source)),
        }
        // Losing this makes it look older than it is, nothing worse.
        let _ = File::open(&parent).and_then(|parent| parent.set_modified(SystemTime::now()));
        Ok(Some(MountLock { directory: parent.join(number.to_string()), lock }))
    }

    fn describe_mount(&self, which: &MountId, parent: &Path) -> Result<(), Error> {
        let path = parent.join("id");
        if path.exists() {
            return Ok(());
        }
        let new = self.lease()?.unique_path();
        let text = serde_json::to_vec(which).expect("text and numbers, and memory takes any bytes");
        fs::write(&new, text).map_err(Error::io("write", &new))?;
        fs::rename(&new, &path).map_err(Error::io("create", &path))
    }

    /// The cache mounts of one id, or all, by id and number. What has no readable
    /// description is left out.
    ///
    /// # Errors
    ///
    /// When the directory can't be listed.
    pub fn mounts(&self, id: Option<&str>) -> Result<Vec<StoredMount>, Error> {
        let top = self.directory.join("mounts");
        let mut found = Vec::new();
        for parent in list(&top)? {
            let Ok(text) = fs::read(parent.join("id")) else { continue };
            let Ok(which) = serde_json::from_slice::<MountId>(&text) else { continue };
            if id.is_some_and(|id| id != which.id) {
                continue;
            }
            let used = fs::metadata(&parent).and_then(|parent| parent.modified());
            let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
            for directory in list(&parent)? {
                let name = directory.file_name().and_then(|name| name.to_str());
                if let Some(number) = name.and_then(|name| name.parse().ok()) {
                    found.push(StoredMount { id: which.clone(), number, directory, used });
                }
            }
        }
        found.sort_by(|one, other| {
            let key = |mount: &StoredMount| {
                (mount.id.id.clone(), mount.id.mode, mount.id.uid, mount.id.gid, mount.number)
            };
            key(one).cmp(&key(other))
        });
        Ok(found)
    }

    /// Puts `fresh`, a directory in the scratch of this store, in the place of a
    /// locked cache mount, at one instant. What was there before is gone then.
    ///
    /// # Errors
    ///
    /// When it can't be renamed; then nothing changed.
    pub fn replace_mount(&self, locked: &MountLock, fresh: &Path) -> Result<(), Error> {
        use rustix::fs::CWD;
        use rustix::fs::RenameFlags;
        use rustix::fs::renameat_with;
        let target = &locked.directory;
        let failed = Error::io("replace", target);
        if fs::symlink_metadata(target).is_err() {
            return fs::rename(fresh, target).map_err(failed);
        }
        match renameat_with(CWD, fresh, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                // A file system that can't exchange: for an instant there is none.
                let aside = self.lease()?.unique_path();
                fs::rename(target, aside).map_err(Error::io("replace", target))?;
                return fs::rename(fresh, target).map_err(failed);
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        // What can't be removed goes with the scratch.
        let _ = fs::remove_dir_all(fresh);
        Ok(())
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", directory))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}
