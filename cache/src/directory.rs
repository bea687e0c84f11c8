//! The cache directory itself: its format number, its parts, and the one way a
//! file gets into it whole.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::aside::set_aside;
use crate::error::{Error, Notice};

/// Format of the directory as a whole. Raised only when an older program would
/// misread what it finds; formats of single records are versioned by themselves.
pub const FORMAT: u32 = 1;

const VERSION_PREFIX: &str = "yadokari cache ";

/// What every cache has from its first use on.
const PARTS: [&str; 7] = ["spool", "records", "contexts", "leases", "running", "tmp", "trash"];

/// Where whoever keeps contents beside the records puts them.
const CONTENTS: [&str; 3] = ["blobs/sha256", "layers/sha256", "mounts"];

/// What a process may do to a cache directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look up and put.
    ReadWrite,
    /// Look up only; nothing in the directory is created or changed.
    ReadOnly,
}

/// Checks the format of the cache directory and, for [`Access::ReadWrite`],
/// creates it and its parts. Idempotent, cheap, safe beside other processes. A
/// missing directory is an empty cache to a reader.
///
/// # Errors
///
/// [`Error::NewerFormat`], [`Error::ForeignDirectory`], and for writers
/// [`Error::Denied`] where a caller may go on with [`Access::ReadOnly`].
pub fn prepare(cache: &Path, access: Access) -> Result<Option<Notice>, Error> {
    let version = cache.join("VERSION");
    let mut notice = None;
    let mut found = match fs::read(&version) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(Error::io("read", &version)(source)),
    };
    if let Some(bytes) = &found {
        let number = std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.strip_prefix(VERSION_PREFIX))
            .and_then(|text| text.trim_end().parse::<u32>().ok());
        match number {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => {
                return Err(Error::NewerFormat { path: cache.to_owned(), found, known: FORMAT });
            }
            // All the rest is there: it was ours, and every part of it has a format
            // and a checksum of its own.
            _ if PARTS.iter().all(|part| cache.join(part).is_dir()) => {
                let reason = "it names no format".to_owned();
                notice = Some(Notice::SetAside { path: version.clone(), reason });
                if access == Access::ReadWrite {
                    set_aside(cache, &version);
                    found = None;
                }
            }
            _ => return Err(Error::ForeignDirectory { path: version }),
        }
    }
    if access == Access::ReadOnly {
        return Ok(notice);
    }
    for part in PARTS.iter().chain(&CONTENTS) {
        let path = cache.join(part);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    if found.is_none() {
        // VERSION says that every part is there, also after a loss of power; with it
        // the cache directory itself is synced.
        let parents = CONTENTS.iter().filter_map(|part| Path::new(part).parent());
        for directory in parents.map(|parent| cache.join(parent)).chain(cache_parent(cache)) {
            sync_directory(&directory).map_err(Error::io("sync", &directory))?;
        }
        let text = format!("{VERSION_PREFIX}{FORMAT}\n");
        write_whole(&cache.join("tmp"), &version, text.as_bytes(), Sync::Durable)?;
    }
    // A directory that can be read but not written must say so now, not at the
    // first put after the first step.
    let spool = cache.join("spool");
    rustix::fs::access(&spool, rustix::fs::Access::WRITE_OK)
        .map_err(|errno| Error::io("write into", &spool)(errno.into()))?;
    Ok(notice)
}

/// The directory that names the cache directory, if it may be read.
fn cache_parent(cache: &Path) -> Option<PathBuf> {
    let parent = cache.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent).is_ok().then(|| parent.to_owned())
}

/// Whether a file must survive a loss of power, or merely be whole or absent
/// after a kill.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    Durable,
    Lossy,
}

/// Writes `target` so that every reader sees all of it or nothing: a new file in
/// `scratch` (same file system), synced if asked, renamed over `target`. Nothing
/// is left behind on failure.
pub(crate) fn write_whole(
    scratch: &Path,
    target: &Path,
    bytes: &[u8],
    sync: Sync,
) -> Result<(), Error> {
    let new = scratch.join(format!("new-{}", unique_name()));
    let written = (|| {
        let mut file = File::create_new(&new)?;
        file.write_all(bytes)?;
        if sync == Sync::Durable {
            file.sync_data()?;
        }
        fs::rename(&new, target)?;
        match (sync, target.parent()) {
            (Sync::Durable, Some(parent)) => sync_directory(parent),
            _ => Ok(()),
        }
    })();
    written.map_err(|source| {
        // Already renamed or never created: both fine.
        let _ = fs::remove_file(&new);
        Error::io("write", target)(source)
    })
}

/// Makes renames and new names in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A name no other process and no other call makes: 64 random bits and the time
/// in nanoseconds, which comes first so that names sort by age (give or take the
/// difference of clocks).
pub(crate) fn unique_name() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    // `RandomState` is seeded by the kernel; the hash of nothing is 64 of its bits.
    let random = RandomState::new().build_hasher().finish();
    format!("{now:016x}-{random:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_or_foreign_version_is_refused_and_ours_is_accepted_again() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), Access::ReadWrite).unwrap();
        prepare(dir.path(), Access::ReadWrite).unwrap();
        prepare(dir.path(), Access::ReadOnly).unwrap();
        let version = dir.path().join("VERSION");
        // Damaged, and all the rest is there.
        fs::write(&version, "yad").unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let notice = prepare(dir.path(), access).unwrap();
            assert!(matches!(notice, Some(Notice::SetAside { .. })), "{access:?}");
        }
        assert_eq!(prepare(dir.path(), Access::ReadWrite).unwrap(), None);
        fs::remove_dir(dir.path().join("spool")).unwrap();
        fs::write(&version, "yadokari cache 2\n").unwrap();
        assert!(matches!(
            prepare(dir.path(), Access::ReadOnly),
            Err(Error::NewerFormat { found: 2, .. })
        ));
        for foreign in ["", "7", "yadokari cache x", "yadokari cache 0\n"] {
            fs::write(&version, foreign).unwrap();
            assert!(
                matches!(
                    prepare(dir.path(), Access::ReadWrite),
                    Err(Error::ForeignDirectory { .. })
                ),
                "{foreign:?}"
            );
        }
    }

    #[test]
    fn a_reader_creates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("absent");
        prepare(&cache, Access::ReadOnly).unwrap();
        assert!(!cache.exists());
    }

    #[test]
    fn names_are_unique_and_sort_by_age() {
        let names: Vec<String> = (0..1000).map(|_| unique_name()).collect();
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len());
        assert!(names[0] < names[999]);
    }
}
