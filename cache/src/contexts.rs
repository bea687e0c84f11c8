//! Remembered digests of build contexts, like git's index: a file whose
//! [`Fingerprint`] has not changed is not read again.
//!
//! One file a context in `contexts/`, named by the hash of its [`ContextRoot`]:
//!
//! ```text
//! magic 8 "ydkrCTX1", entries u32, length of all paths u32,
//! BLAKE3 of everything behind it 32
//! entries, 104 bytes each, sorted by path:
//!   offset of the path u32, its length u32, device u64, inode u64, size u64,
//!   mtime s i64, ctime s i64, mtime ns u32, ctime ns u32, mode u32, flags u32,
//!   BLAKE3 of the content 32, zero u64
//! paths, end to end
//! ```
//!
//! Flags: 1, the file is known to have no capabilities. Numbers are little-endian.
//! It is read at once and searched in place, so
//! loading 20,000 entries is one read and one hash of 3 MB.
//!
//! # When a fingerprint proves nothing
//!
//! File times come from a clock that stands still for up to 10 ms. A file changed
//! twice within one tick, read in between, has the fingerprint of its second
//! content and the digest of its first. So an entry is kept only if the file's
//! times were already older than [`GRANULARITY`] when this build *began*: every
//! change from then on gets a later ctime, which no program can set back. Others
//! are simply read again next time.
//!
//! The file is a memory aid: it is not synced, the last of several builds wins,
//! and a damaged one is an empty one.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::directory::{Sync, write_whole};
use crate::error::{Error, Notice};
use crate::key::KeyHasher;

const MAGIC: &[u8; 8] = b"ydkrCTX1";
const HEADER: usize = 48;
const ENTRY: usize = 104;

/// Nanoseconds a file's times must lie back to say something. Twice the longest
/// tick of the kernel's coarse clock (10 ms at HZ=100).
pub const GRANULARITY: i128 = 20_000_000;

/// The same for file systems that keep whole seconds (FAT: two). Told by a ctime
/// without nanoseconds: no program sets a ctime, so elsewhere that is chance.
pub const COARSE_GRANULARITY: i128 = 2_000_000_000;

/// A file larger than this is not one of ours: some ten million entries.
const MAX_FILE: u64 = 2 << 30;

/// Entries nobody asked for are kept (the next build may use another part of the
/// context) up to this many, or as many as were asked for.
const SPARE: usize = 10_000;

/// Which directory a context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRoot {
    /// Device of the directory.
    pub device: u64,
    /// Inode of the directory.
    pub inode: u64,
    /// Its absolute path, as bytes.
    pub path: Vec<u8>,
}

impl ContextRoot {
    /// The identity of an existing directory.
    ///
    /// # Errors
    ///
    /// When the path cannot be resolved.
    pub fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let path = fs::canonicalize(path)?;
        let metadata = fs::metadata(&path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            path: path.as_os_str().as_bytes().to_vec(),
        })
    }

    fn file_name(&self) -> String {
        KeyHasher::new("yadokari build context v1")
            .number("device", self.device)
            .number("inode", self.inode)
            .field("path", &self.path)
            .finish()
            .to_string()
    }
}

/// Set in an entry's flags where [`Remembered::is_plain`] is.
const PLAIN: u32 = 1;

/// What is remembered of a file beside its fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// BLAKE3 of the content.
    pub digest: [u8; 32],
    /// Whether it was seen to have no file capabilities. Giving it some changes its
    /// ctime, so this is as good as its fingerprint.
    pub is_plain: bool,
}

impl From<[u8; 32]> for Remembered {
    fn from(digest: [u8; 32]) -> Self {
        Self { digest, is_plain: false }
    }
}

/// What a stat tells about a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Time of last change of content: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Time of last change of the inode: seconds since 1970, nanoseconds.
    pub ctime: (i64, u32),
    /// Type and permissions.
    pub mode: u32,
}

impl Fingerprint {
    /// Out of a stat, taken *before* the content is read.
    pub fn of(metadata: &Metadata) -> Self {
        let nanoseconds = |value: i64| u32::try_from(value).unwrap_or(0);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime: (metadata.mtime(), nanoseconds(metadata.mtime_nsec())),
            ctime: (metadata.ctime(), nanoseconds(metadata.ctime_nsec())),
            mode: metadata.mode(),
        }
    }

    /// Whether a change at or after `began` (nanoseconds since 1970) would show.
    fn is_settled(&self, began: i128) -> bool {
        let latest = self.mtime.max(self.ctime);
        let granularity = if self.ctime.1 == 0 { COARSE_GRANULARITY } else { GRANULARITY };
        i128::from(latest.0) * 1_000_000_000 + i128::from(latest.1) + granularity < began
    }
}

/// The remembered digests of one context. Shared by threads.
#[derive(Debug)]
pub struct ContextDigests {
    path: PathBuf,
    scratch: PathBuf,
    /// Nanoseconds since 1970 when this build began.
    began: i128,
    old: Table,
    state: Mutex<State>,
    notice: Option<Notice>,
}

#[derive(Debug)]
struct State {
    new: BTreeMap<Vec<u8>, (Fingerprint, Remembered)>,
    /// Entries of the old table that were asked for and were right.
    used: Vec<bool>,
    /// The entry behind the one asked for last: walks ask in the order of paths.
    next: u32,
}

impl ContextDigests {
    /// Reads what is remembered of a context. A missing file is empty; a damaged
    /// one too, and [`notice`](Self::notice) says so. Call it before the first
    /// file of the context is looked at.
    pub fn load(cache: &Path, root: &ContextRoot) -> Self {
        Self::load_at(cache, root, SystemTime::now())
    }

    fn load_at(cache: &Path, root: &ContextRoot, now: SystemTime) -> Self {
        let path = cache.join("contexts").join(root.file_name());
        let (old, notice) = match read(&path) {
            Ok(table) => (table, None),
            Err(reason) => {
                let notice = Notice::SetAside { path: path.clone(), reason };
                (Table::default(), Some(notice))
            }
        };
        // A clock before 1970 trusts nothing.
        let began = now
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i128::try_from(since.as_nanos()).ok())
            .unwrap_or(0);
        let scratch = cache.join("tmp");
        let used = vec![false; old.count as usize];
        let state = Mutex::new(State { new: BTreeMap::new(), used, next: 0 });
        Self { path, scratch, began, old, state, notice }
    }

    /// What is remembered of a file with exactly this fingerprint.
    pub fn get(&self, path: &[u8], fingerprint: &Fingerprint) -> Option<Remembered> {
        let mut state = self.state();
        if let Some((known, digest)) = state.new.get(path) {
            return (known == fingerprint).then_some(*digest);
        }
        let at = match self.old.path(state.next) {
            Some(next) if next == path => state.next,
            _ => self.old.find(path)?,
        };
        state.next = at + 1;
        let (known, digest) = self.old.entry(at)?;
        if known != *fingerprint {
            return None;
        }
        if let Some(used) = state.used.get_mut(at as usize) {
            *used = true;
        }
        Some(digest)
    }

    /// Remembers a file, unless the fingerprint proves nothing yet. The fingerprint
    /// must have been taken before the content was read.
    pub fn put(&self, path: &[u8], fingerprint: Fingerprint, known: impl Into<Remembered>) {
        if fingerprint.is_settled(self.began) {
            self.state().new.insert(path.to_vec(), (fingerprint, known.into()));
        }
    }

    /// Writes what changed since [`load`](Self::load); nothing if nothing did.
    /// Returns whether it wrote.
    ///
    /// # Errors
    ///
    /// When the file cannot be written, as in a read-only cache: the build loses
    /// nothing but time.
    pub fn save(&self) -> Result<bool, Error> {
        let state = self.state();
        if state.new.is_empty() {
            return Ok(false);
        }
        let asked = state.new.len() + state.used.iter().filter(|used| **used).count();
        let keep_all = self.old.count as usize <= asked + asked.max(SPARE);
        let mut entries: BTreeMap<&[u8], (Fingerprint, Remembered)> = BTreeMap::new();
        for at in 0..self.old.count {
            if (keep_all || state.used.get(at as usize) == Some(&true))
                && let Some((path, entry)) = self.old.path(at).zip(self.old.entry(at))
            {
                entries.insert(path, entry);
            }
        }
        entries.extend(state.new.iter().map(|(path, entry)| (path.as_slice(), *entry)));
        let Some(bytes) = encode(&entries) else { return Ok(false) };
        write_whole(&self.scratch, &self.path, &bytes, Sync::Lossy)?;
        Ok(true)
    }

    /// What was wrong with the file, if it was damaged.
    pub fn notice(&self) -> Option<&Notice> {
        self.notice.as_ref()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A file as read, searched in place.
#[derive(Debug, Default)]
struct Table {
    bytes: Vec<u8>,
    count: u32,
    /// Where the paths begin.
    paths: usize,
}

/// Checks a file of remembered digests. A missing one is sound.
///
/// # Errors
///
/// What is wrong with it.
pub fn check(path: &Path) -> Result<(), String> {
    read(path).map(drop)
}

fn read(path: &Path) -> Result<Table, String> {
    match fs::metadata(path) {
        // A pipe, say, which would be read for ever.
        Ok(file) if !file.is_file() => return Err("no file".to_owned()),
        Ok(file) if file.len() > MAX_FILE => return Err("too large".to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
        Err(error) => return Err(error.to_string()),
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    Table::check(bytes).map_err(str::to_owned)
}

impl Table {
    /// Checks the frame; what is inside was written by us if that is right, and
    /// is read with bounds all the same.
    fn check(bytes: Vec<u8>) -> Result<Self, &'static str> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or("truncated")?;
        if &header[..8] != MAGIC {
            return Err("another format");
        }
        let count = u32_at(header, 8).ok_or("truncated")?;
        let text = u32_at(header, 12).ok_or("truncated")? as usize;
        let entries = (count as usize).checked_mul(ENTRY).ok_or("impossible length")?;
        if entries.checked_add(text) != Some(rest.len()) {
            return Err("wrong length");
        }
        if blake3::hash(rest) != blake3::Hash::from_slice(&header[16..]).map_err(|_| "truncated")? {
            return Err("wrong checksum");
        }
        Ok(Self { count, paths: HEADER + entries, bytes })
    }

    fn raw(&self, at: u32) -> Option<&[u8]> {
        let start = HEADER.checked_add((at as usize).checked_mul(ENTRY)?)?;
        self.bytes.get(start..start.checked_add(ENTRY)?)
    }

    fn path(&self, at: u32) -> Option<&[u8]> {
        let raw = self.raw(at)?;
        let start = self.paths.checked_add(u32_at(raw, 0)? as usize)?;
        self.bytes.get(start..start.checked_add(u32_at(raw, 4)? as usize)?)
    }

    fn entry(&self, at: u32) -> Option<(Fingerprint, Remembered)> {
        let raw = self.raw(at)?;
        let fingerprint = Fingerprint {
            device: u64_at(raw, 8)?,
            inode: u64_at(raw, 16)?,
            size: u64_at(raw, 24)?,
            mtime: (u64_at(raw, 32)?.cast_signed(), u32_at(raw, 48)?),
            ctime: (u64_at(raw, 40)?.cast_signed(), u32_at(raw, 52)?),
            mode: u32_at(raw, 56)?,
        };
        let digest = raw.get(64..96)?.try_into().ok()?;
        Some((fingerprint, Remembered { digest, is_plain: u32_at(raw, 60)? & PLAIN != 0 }))
    }

    fn find(&self, path: &[u8]) -> Option<u32> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.path(middle)?.cmp(path) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// `None` when there is more than the format can say: 4 GiB of paths.
fn encode(entries: &BTreeMap<&[u8], (Fingerprint, Remembered)>) -> Option<Vec<u8>> {
    let count = u32::try_from(entries.len()).ok()?;
    let text = u32::try_from(entries.keys().map(|path| path.len()).sum::<usize>()).ok()?;
    let mut bytes = vec![0; HEADER];
    bytes.reserve(entries.len() * ENTRY + text as usize);
    let mut offset = 0_u32;
    for (path, (fingerprint, known)) in entries {
        let length = path.len() as u32;
        for number in [offset, length] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [
            fingerprint.device,
            fingerprint.inode,
            fingerprint.size,
            fingerprint.mtime.0.cast_unsigned(),
            fingerprint.ctime.0.cast_unsigned(),
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let flags = if known.is_plain { PLAIN } else { 0 };
        for number in [fingerprint.mtime.1, fingerprint.ctime.1, fingerprint.mode, flags] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&known.digest);
        bytes.extend_from_slice(&[0; 8]);
        offset += length;
    }
    for path in entries.keys() {
        bytes.extend_from_slice(path);
    }
    let sum = blake3::hash(&bytes[HEADER..]);
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..16].copy_from_slice(&text.to_le_bytes());
    bytes[16..HEADER].copy_from_slice(sum.as_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests;
