//! Records not yet folded: one frame a file, read once and kept in memory.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::aside::set_aside;
use crate::directory::{Access, Sync, unique_name, write_whole};
use crate::error::{Error, Notice};
use crate::frame::{self, Head, Item};
use crate::index::{Effect, Hash, effect, hash};

/// A directory's time is taken from a clock that stands still for up to 10 ms (a
/// tick at the lowest usual HZ), so a file may come after a listing without the
/// time changing. A time younger than twice that says nothing.
const TICK: Duration = Duration::from_millis(20);

/// The spool as this process knows it.
pub(crate) struct Spool {
    cache: PathBuf,
    directory: PathBuf,
    access: Access,
    /// Time of the directory at the last listing, where it could be trusted.
    listed: Option<(i64, i64)>,
    files: HashSet<OsString>,
    records: HashMap<Vec<u8>, Vec<u8>>,
    /// Records taken back, which the index may still have.
    taken_back: HashMap<Vec<u8>, HashSet<Hash>>,
}

impl Spool {
    pub(crate) fn new(cache: &Path, access: Access) -> Self {
        Self {
            cache: cache.to_owned(),
            directory: cache.join("spool"),
            access,
            listed: None,
            files: HashSet::new(),
            records: HashMap::new(),
            taken_back: HashMap::new(),
        }
    }

    /// This spool as if these files had nothing in them.
    pub(crate) fn without(self, files: HashSet<OsString>) -> Self {
        Self { files, ..self }
    }

    /// Names of the files that were read.
    pub(crate) fn into_files(self) -> HashSet<OsString> {
        self.files
    }

    /// What is known of a key without asking the file system.
    pub(crate) fn get(&self, index_key: &[u8]) -> Option<&[u8]> {
        self.records.get(index_key).map(Vec::as_slice)
    }

    /// Whether a record that the index has was taken back meanwhile.
    pub(crate) fn is_taken_back(&self, index_key: &[u8], value: &[u8]) -> bool {
        self.taken_back.get(index_key).is_some_and(|hashes| hashes.contains(&hash(value)))
    }

    /// All records that wait here, under their index keys.
    pub(crate) fn records(&self) -> &HashMap<Vec<u8>, Vec<u8>> {
        &self.records
    }

    fn apply(&mut self, items: &[Item<'_>]) {
        for item in items {
            match effect(item) {
                (name, Effect::Put(value)) => {
                    if let Some(hashes) = self.taken_back.get_mut(&name) {
                        hashes.remove(&hash(value));
                    }
                    self.records.insert(name, value.to_vec());
                }
                (name, Effect::TakeBack(hashed)) => {
                    if self.records.get(&name).is_some_and(|value| hash(value) == hashed) {
                        self.records.remove(&name);
                    }
                    self.taken_back.entry(name).or_default().insert(hashed);
                }
                (_, Effect::Nothing) => {}
            }
        }
    }

    /// Reads files that came since the last call, if the directory changed.
    /// Returns whether it did: if not, nothing was folded in between either.
    pub(crate) fn refresh(&mut self, notices: &mut Vec<Notice>) -> bool {
        let before = match fs::metadata(&self.directory) {
            Ok(metadata) => metadata,
            // No directory: nothing was ever put (a reader of an empty cache).
            Err(_) => return true,
        };
        let time = (before.mtime(), before.mtime_nsec());
        if self.listed == Some(time) {
            return false;
        }
        let settled = before
            .modified()
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok())
            .is_some_and(|age| age > TICK);
        self.listed = settled.then_some(time);
        let names = match list(&self.directory) {
            Ok(names) => names,
            Err(error) => {
                let reason = error.to_string();
                notices.push(Notice::Unreadable { path: self.directory.clone(), reason });
                return true;
            }
        };
        for name in &names {
            if self.files.contains(name) {
                continue;
            }
            let path = self.directory.join(name);
            let bytes = read(&self.cache, &path, self.access, notices);
            if let Some(Head::Frame(items, _)) = bytes.as_deref().map(frame::head) {
                self.apply(&items);
            }
        }
        self.files = names.into_iter().collect();
        true
    }

    /// Adds a frame as a file: synced, visible to all when this returns.
    pub(crate) fn add(&mut self, scratch: &Path, bytes: &[u8]) -> Result<(), Error> {
        let name = unique_name();
        write_whole(scratch, &self.directory.join(&name), bytes, Sync::Durable)?;
        self.files.insert(name.into());
        if let Head::Frame(items, _) = frame::head(bytes) {
            self.apply(&items);
        }
        Ok(())
    }
}

/// Names of the files in the spool, oldest first.
pub(crate) fn list(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names: Vec<_> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Reads one spool file. `None` when it is gone (folded), unreadable, or no
/// single whole frame; what is damaged is set aside.
pub(crate) fn read(
    cache: &Path,
    path: &Path,
    access: Access,
    notices: &mut Vec<Notice>,
) -> Option<Vec<u8>> {
    let found = fs::symlink_metadata(path).ok();
    let odd = match found.map(|found| (found.is_file(), found.len())) {
        // A pipe, say, which would be read for ever.
        Some((false, _)) => Some("no file"),
        Some((_, length)) if length > frame::MAX_FRAME as u64 => {
            Some("too large for a record file")
        }
        _ => None,
    };
    let read = || match fs::read(path) {
        Ok(bytes) => match frame::head(&bytes) {
            Head::Frame(_, length) if length == bytes.len() => Ok(Some(bytes)),
            Head::Frame(..) => Err("bytes after the end"),
            Head::Incomplete => Err("truncated"),
            Head::Damaged(reason) => Err(reason),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let reason = error.to_string();
            notices.push(Notice::Unreadable { path: path.to_owned(), reason });
            Ok(None)
        }
    };
    let reason = match odd.map_or_else(read, Err) {
        Ok(bytes) => return bytes,
        Err(reason) => reason,
    };
    notices.push(Notice::SetAside { path: path.to_owned(), reason: reason.to_owned() });
    if access == Access::ReadWrite {
        set_aside(cache, path);
    }
    None
}
