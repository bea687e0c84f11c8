//! Former builds by place: what was built last at a place of a Dockerfile, so that
//! a miss can be explained by what differs from it.
//!
//! A place is any key that its user makes, most often of a Dockerfile and a stage;
//! what is kept under it are bytes that this module doesn't read. One file each in
//! `places/`, named by the key: BLAKE3 of the rest (32 bytes), then the rest.
//!
//! All of it is a memory aid: nothing is synced, of several builds at one place the
//! last one wins, a damaged file is an absent one, and whoever needs room may remove
//! any of them at any time ([`Places::collect`]). Nothing here decides what is built.

use std::fs;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::directory::{Sync, unique_name, write_whole};
use crate::error::Error;
use crate::key::Key;

/// Largest file that is read, in bytes; nobody writes one as large.
const MAX_FILE: u64 = 64 << 20;

/// Bytes of the checksum in front.
const SUM: usize = 32;

/// Name of the file with the key that hides values; see [`Places::mask_key`].
const MASK_KEY: &str = "mask.key";

/// The places of one cache directory.
#[derive(Debug, Clone)]
pub struct Places {
    directory: PathBuf,
    scratch: PathBuf,
}

/// What a collection took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Places {
    /// The places of a cache directory. Touches nothing.
    pub fn of(cache: &Path) -> Self {
        Self { directory: cache.join("places"), scratch: cache.join("tmp") }
    }

    /// What is kept at a place; `None` if there is nothing, or nothing whole.
    pub fn read(&self, place: &Key) -> Option<Vec<u8>> {
        let path = self.path(place);
        let found = fs::metadata(&path).ok()?;
        if !found.is_file() || found.len() > MAX_FILE {
            return None;
        }
        let mut bytes = fs::read(path).ok()?;
        let sum = *bytes.first_chunk::<SUM>()?;
        if *blake3::hash(&bytes[SUM..]).as_bytes() != sum {
            return None;
        }
        bytes.drain(..SUM);
        Some(bytes)
    }

    /// Keeps `bytes` at a place, instead of what was there.
    ///
    /// # Errors
    ///
    /// When it can't be written, as in a read-only cache: then nothing is kept.
    pub fn write(&self, place: &Key, bytes: &[u8]) -> Result<(), Error> {
        fs::create_dir_all(&self.directory).map_err(Error::io("create", &self.directory))?;
        let mut framed = blake3::hash(bytes).as_bytes().to_vec();
        framed.extend_from_slice(bytes);
        write_whole(&self.scratch, &self.path(place), &framed, Sync::Lossy)
    }

    /// Marks what is kept at a place as used now. Says whether there is anything.
    pub fn touch(&self, place: &Key) -> bool {
        let file = File::options().append(true).open(self.path(place));
        file.and_then(|file| file.set_modified(SystemTime::now())).is_ok()
    }

    /// Removes what wasn't written or [touched](Self::touch) since `oldest`. Safe
    /// beside builds: they only lose an explanation.
    ///
    /// # Errors
    ///
    /// When the directory can't be listed. A file that can't be removed stays.
    pub fn collect(&self, oldest: SystemTime) -> io::Result<Collected> {
        let mut collected = Collected::default();
        for (path, found) in self.list()? {
            let used = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if used < oldest && fs::remove_file(&path).is_ok() {
                collected.files += 1;
                collected.bytes += found.len();
            }
        }
        Ok(collected)
    }

    /// Bytes of all that is kept.
    ///
    /// # Errors
    ///
    /// When the directory can't be listed.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.list()?.iter().map(|(_, found)| found.len()).sum())
    }

    fn list(&self) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let is_place = entry.file_name().to_str().is_some_and(|n| Key::from_hex(n).is_some());
            // Gone meanwhile: another collector.
            if is_place && let Ok(metadata) = entry.metadata() {
                found.push((entry.path(), metadata));
            }
        }
        Ok(found)
    }

    /// The key of this cache directory for digests of values that must not be read
    /// out of it: 32 random bytes, made when first asked for, readable by their
    /// owner alone. `None` where it can be neither read nor made.
    pub fn mask_key(&self) -> Option<[u8; 32]> {
        let path = self.directory.join(MASK_KEY);
        if let Some(key) = read_mask_key(&path) {
            return Some(key);
        }
        fs::create_dir_all(&self.directory).ok()?;
        let new = self.scratch.join(format!("new-{}", unique_name()));
        let written = write_mask_key(&new);
        // Linked, not renamed: of two that make one, the first wins, and both use it.
        let _ = written.and_then(|()| fs::hard_link(&new, &path));
        let _ = fs::remove_file(&new);
        read_mask_key(&path)
    }

    fn path(&self, place: &Key) -> PathBuf {
        self.directory.join(place.to_string())
    }
}

fn read_mask_key(path: &Path) -> Option<[u8; 32]> {
    fs::read(path).ok()?.try_into().ok()
}

fn write_mask_key(path: &Path) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    // Each hasher is keyed by 128 bits that the kernel made; four of its answers
    // hold them all.
    let mut hasher = blake3::Hasher::new_derive_key("yadokari mask key v1");
    for _ in 0..4 {
        hasher.update(&RandomState::new().build_hasher().finish().to_le_bytes());
    }
    let key = hasher.finalize();
    File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    fn places() -> (tempfile::TempDir, Places) {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir(cache.path().join("tmp")).unwrap();
        let places = Places::of(cache.path());
        (cache, places)
    }

    #[test]
    fn the_last_write_wins_and_damage_is_absence() {
        let (cache, places) = places();
        let place = Key::from_bytes([1; 32]);
        assert_eq!(places.read(&place), None);
        assert!(!places.touch(&place));
        places.write(&place, b"one").unwrap();
        places.write(&place, b"two").unwrap();
        assert_eq!(places.read(&place).as_deref(), Some(&b"two"[..]));
        let path = cache.path().join("places").join(place.to_string());
        for cut in 0..fs::metadata(&path).unwrap().len() {
            File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            assert_eq!(places.read(&place), None, "{cut}");
            places.write(&place, b"two").unwrap();
        }
    }

    #[test]
    fn what_was_not_used_for_long_is_collected() {
        let (_cache, places) = places();
        let (old, used) = (Key::from_bytes([1; 32]), Key::from_bytes([2; 32]));
        let long_ago = SystemTime::now() - Duration::from_secs(1000);
        for place in [&old, &used] {
            places.write(place, b"x").unwrap();
            let file = File::options().append(true).open(places.path(place)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        assert!(places.touch(&used));
        places.mask_key().unwrap();
        let oldest = SystemTime::now() - Duration::from_secs(10);
        assert_eq!(places.collect(oldest).unwrap(), Collected { files: 1, bytes: 33 });
        assert_eq!((places.read(&old), places.read(&used)), (None, Some(b"x".to_vec())));
        assert_eq!(places.size().unwrap(), 33);
        assert!(read_mask_key(&places.directory.join(MASK_KEY)).is_some(), "it is no place");
    }

    #[test]
    fn the_mask_key_is_made_once_and_is_private() {
        let (cache, places) = places();
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| places.mask_key())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        let path = cache.path().join("places/mask.key");
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(cache.path().join("tmp")).unwrap().count(), 0);
    }
}
