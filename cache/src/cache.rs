//! The cache as a process uses it: look up, put, fold.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::directory::{Access, prepare};
use crate::error::{Error, Notice};
use crate::frame;
use crate::index::log::{self, Log};
use crate::index::{Index, Kind, hash, index_key, taken_back};
use crate::key::Key;
use crate::lease::Lease;
use crate::record::Record;
use crate::spool::{self, Spool};

/// Spool files from which folding pays. Reading this many small files costs 2 ms;
/// opening the database costs a reader 3 to 15 ms and a writer 20 to 140 ms.
const WORTHWHILE: usize = 64;

/// Spool files folded at a time: bounds memory, and with [`ROUNDS`] the time the
/// lock is held while others keep putting.
const CHUNK: usize = 1024;

/// After which time the fold of a build begins no further chunk.
const LONG: Duration = Duration::from_millis(100);

/// Looks into the spool after which the holder of the lock leaves new arrivals
/// to the next fold.
const ROUNDS: usize = 64;

/// A kind of record. Buckets of different versions have different names and
/// never see each other's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// Definition key of a step → [`StepRecord`](crate::StepRecord).
    Steps,
    /// Content key of a step → [`StepRecord`](crate::StepRecord).
    Content,
    /// Key of a step without its parent → its latest
    /// [`StepRecord`](crate::StepRecord), to explain a miss.
    Hints,
    /// Diff ID and compression setting →
    /// [`CompressedRecord`](crate::record::CompressedRecord).
    Compressed,
    /// Reference and platform → [`ImageRecord`](crate::record::ImageRecord).
    Images,
    /// Diff ID → [`LayerRecord`](crate::record::LayerRecord).
    Layers,
    /// Shared cache and definition key → [`SharedMark`](crate::record::SharedMark).
    Shared,
    /// URL → [`RemoteRecord`](crate::record::RemoteRecord).
    Remotes,
}

impl Bucket {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Steps,
        Self::Content,
        Self::Hints,
        Self::Compressed,
        Self::Images,
        Self::Layers,
        Self::Shared,
        Self::Remotes,
    ];

    /// Name on disk: lower case and a version.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps.v1",
            Self::Content => "content.v1",
            Self::Hints => "hints.v1",
            Self::Compressed => "compressed.v1",
            Self::Images => "images.v1",
            Self::Layers => "layers.v1",
            Self::Shared => "shared.v1",
            Self::Remotes => "remotes.v1",
        }
    }
}

/// When to fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// Only if so many records wait in the spool that readers profit.
    IfWorthwhile,
    /// Whatever waits.
    Now,
}

/// What a fold did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folded {
    /// So many spool files went into the index.
    Done(usize),
    /// Another process holds the lock and does it.
    Busy,
    /// Too few to bother.
    NotWorthwhile,
}

/// A certain record: a bucket, by its name on disk, a key, and what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordName {
    /// Name on disk, possibly one that only another version of this program knows.
    pub bucket: String,
    /// Its key.
    pub key: Key,
    hash: [u8; 32],
}

impl RecordName {
    /// The name of the record that `value` is.
    pub fn new(bucket: &str, key: Key, value: &[u8]) -> Self {
        Self { bucket: bucket.to_owned(), key, hash: hash(value) }
    }
}

/// One process's view of a cache directory. Cheap to open; shared by threads;
/// any number of handles and processes may use one directory.
pub struct Cache {
    directory: PathBuf,
    access: Access,
    kind: Kind,
    state: Mutex<State>,
    lease: Mutex<Option<Arc<Lease>>>,
    behind: Option<Box<Cache>>,
}

struct State {
    spool: Spool,
    /// The index, once it was needed, and the count of folds it has seen.
    index: Option<(Box<dyn Index>, u64)>,
    notices: Vec<Notice>,
}

impl Cache {
    /// Opens a cache directory: checks its format and, for writers, creates its
    /// parts. Opens no index and takes no lock.
    ///
    /// # Errors
    ///
    /// Those of [`prepare`]; on [`Error::Denied`] a caller may go on reading.
    pub fn open(directory: &Path, access: Access) -> Result<Self, Error> {
        Self::open_with(directory, access, Kind::compiled())
    }

    pub(crate) fn open_with(directory: &Path, access: Access, kind: Kind) -> Result<Self, Error> {
        let notices = prepare(directory, access)?.into_iter().collect();
        let state = State { spool: Spool::new(directory, access), index: None, notices };
        Ok(Self {
            directory: directory.to_owned(),
            access,
            kind,
            state: Mutex::new(state),
            lease: Mutex::new(None),
            behind: None,
        })
    }

    /// Looks records up in a second cache too, when they are not in this one. For
    /// one that can only be read: its hits, and another directory to write to.
    #[must_use]
    pub fn in_front_of(self, behind: Self) -> Self {
        Self { behind: Some(Box::new(behind)), ..self }
    }

    /// The cache directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What this handle may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The lease of this handle, taken when first needed and kept until the
    /// handle and all clones of the lease are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], or when it cannot be created.
    pub fn lease(&self) -> Result<Arc<Lease>, Error> {
        self.check_writable("take a lease")?;
        let mut lease = self.lease.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*lease {
            Some(lease) => Ok(Arc::clone(lease)),
            None => Ok(Arc::clone(lease.insert(Arc::new(Lease::acquire(&self.directory)?)))),
        }
    }

    /// The bytes put under a key by anybody, or `None`. What cannot be read is
    /// `None` and a notice. Never waits for another process.
    ///
    /// A record may name contents that were collected since: look for them
    /// before acting on it.
    pub fn get(&self, bucket: Bucket, key: &Key) -> Option<Vec<u8>> {
        let own = self.get_own(bucket, key);
        own.or_else(|| self.behind.as_ref()?.get(bucket, key))
    }

    fn get_own(&self, bucket: Bucket, key: &Key) -> Option<Vec<u8>> {
        let name = index_key(bucket.name(), key);
        let mut state = self.state();
        let State { spool, index, notices } = &mut *state;
        if let Some(value) = spool.get(&name) {
            return Some(value.to_vec());
        }
        // First the spool, then the index: a record moves in this direction.
        let changed = spool.refresh(notices);
        if let Some(value) = spool.get(&name) {
            return Some(value.to_vec());
        }
        if changed || index.is_none() {
            let folds = log::folds(&self.directory)?;
            if index.as_ref().is_none_or(|(_, seen)| *seen != folds) {
                let (index, seen) =
                    index.get_or_insert_with(|| (self.kind.index(&self.directory), folds));
                index.refresh(notices);
                *seen = folds;
            }
        }
        let (index, _) = index.as_mut()?;
        index.get(&name, notices).filter(|value| !spool.is_taken_back(&name, value))
    }

    /// The record under a key of its own bucket; a malformed one is `None` and a
    /// notice.
    pub fn record<R: Record>(&self, key: &Key) -> Option<R> {
        self.record_in(R::BUCKET, key)
    }

    /// The record under a key of the named bucket, as [`Bucket::Content`] holds
    /// step records too.
    pub fn record_in<R: Record>(&self, bucket: Bucket, key: &Key) -> Option<R> {
        let bytes = self.get(bucket, key)?;
        match R::decode(&bytes) {
            Ok(record) => Some(record),
            Err(defect) => {
                let name = format!("{}/{key}", bucket.name());
                let reason = defect.to_string();
                self.state().notices.push(Notice::RecordUnreadable { name, reason });
                None
            }
        }
    }

    /// Puts records, all or none, durable and visible to every process when this
    /// returns. What the records name must be durable before. A key that is there
    /// already is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], [`Error::TooLarge`], or what the disk says; then
    /// nothing was put.
    pub fn put(&self, records: &[(Bucket, Key, Vec<u8>)]) -> Result<(), Error> {
        self.check_writable("put records")?;
        if records.is_empty() {
            return Ok(());
        }
        let frame = frame::encode(
            records.iter().map(|(bucket, key, value)| (bucket.name(), key, value.as_slice())),
        )
        .map_err(|size| Error::TooLarge { size, limit: frame::MAX_BODY })?;
        let lease = self.lease()?;
        self.state().spool.add(lease.scratch(), &frame)
    }

    /// Takes records back, all or none, durably: a record goes only if it still is
    /// the one given, so what somebody else puts meanwhile stays. Nothing may be
    /// deleted that a record names before this has returned.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn take_back(&self, records: &[RecordName]) -> Result<(), Error> {
        self.check_writable("take records back")?;
        let lease = self.lease()?;
        // Far below the limit of a frame: an item has some hundred bytes.
        for records in records.chunks(10_000) {
            let names: Vec<_> = records.iter().map(|record| taken_back(&record.bucket)).collect();
            let items = records.iter().zip(&names);
            let frame = frame::encode(
                items.map(|(record, name)| (name.as_str(), &record.key, &record.hash[..])),
            )
            .map_err(|size| Error::TooLarge { size, limit: frame::MAX_BODY })?;
            self.state().spool.add(lease.scratch(), &frame)?;
        }
        Ok(())
    }

    /// Moves what waits in the spool into the index. Best done in the background
    /// after a build: it may take 20 to 200 ms. Waits for nobody.
    ///
    /// # Errors
    ///
    /// When the log or the index cannot be written; the records stay in the spool.
    pub fn fold(&self, when: Fold) -> Result<Folded, Error> {
        self.check_writable("fold records")?;
        let directory = self.directory.join("spool");
        let list = || spool::list(&directory).map_err(Error::io("list", &directory));
        let waiting = list()?.len();
        if waiting == 0 || (when == Fold::IfWorthwhile && waiting < WORTHWHILE) {
            return Ok(Folded::NotWorthwhile);
        }
        let Some(_lock) = self.fold_lock()? else { return Ok(Folded::Busy) };
        let mut notices = Vec::new();
        // An index of its own: this handle's readers are not disturbed.
        let mut index = self.kind.index(&self.directory);
        let mut folded = 0;
        let mut result = Ok(());
        let begun = Instant::now();
        for _ in 0..ROUNDS {
            // Others keep putting; a build shouldn't do all of their work.
            if folded > 0 && when == Fold::IfWorthwhile && begun.elapsed() > LONG {
                break;
            }
            let mut names = match list() {
                Ok(names) if !names.is_empty() => names,
                Ok(_) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            names.truncate(CHUNK);
            let paths: Vec<_> = names.iter().map(|name| directory.join(name)).collect();
            match self.fold_files(&paths, index.as_mut(), &mut notices) {
                Ok(count) => folded += count,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        index.settle(when == Fold::Now);
        self.state().notices.append(&mut notices);
        result.map(|()| Folded::Done(folded))
    }

    /// The lock of whoever changes log and index, if nobody has it.
    pub(crate) fn fold_lock(&self) -> Result<Option<File>, Error> {
        let path = self.directory.join("records/lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(Error::io("lock", &path)(source)),
        }
    }

    /// The steps of a fold, in the order that keeps every record findable.
    fn fold_files(
        &self,
        paths: &[PathBuf],
        index: &mut dyn Index,
        notices: &mut Vec<Notice>,
    ) -> Result<usize, Error> {
        let mut frames = Vec::new();
        let mut count = 0;
        for path in paths {
            if let Some(bytes) = spool::read(&self.directory, path, self.access, notices) {
                frames.extend_from_slice(&bytes);
                count += 1;
            }
        }
        let mut log = Log::open_for_append(&self.directory)?;
        // What a killed fold left undone; and if the index cannot be written now,
        // the log does not grow by the same records again with every attempt.
        index.extend(&log, notices)?;
        log.append(&frames)?;
        index.extend(&log, notices)?;
        log::raise_folds(&self.directory)?;
        for path in paths {
            // Gone already if it was set aside; if it cannot go, it is folded
            // again, which changes nothing.
            let _ = std::fs::remove_file(path);
        }
        Ok(count)
    }

    /// An index of this cache for somebody who holds the fold lock.
    pub(crate) fn new_index(&self) -> Box<dyn Index> {
        self.kind.index(&self.directory)
    }

    pub(crate) fn add_notices(&self, mut notices: Vec<Notice>) {
        self.state().notices.append(&mut notices);
    }

    /// What was damaged or unreadable since the last call.
    pub fn take_notices(&self) -> Vec<Notice> {
        let mut notices = std::mem::take(&mut self.state().notices);
        notices.extend(self.behind.iter().flat_map(|behind| behind.take_notices()));
        notices
    }

    fn check_writable(&self, action: &'static str) -> Result<(), Error> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Error::ReadOnly { action, path: self.directory.clone() }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves at worst records unknown to this process.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("directory", &self.directory)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
