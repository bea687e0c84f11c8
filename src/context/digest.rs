//! BLAKE3 of a context's files, read only where nothing is remembered.
//!
//! Threads start here too, as an exception to the rule that hands have none: a
//! first build hashes the whole context before it knows its first key, and cores
//! would idle meanwhile. They end before [`ContextTree::prefetch_digests`] returns.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use yadokari_cache::ContextDigests;
use yadokari_cache::Fingerprint;
use yadokari_cache::Remembered;

use super::ContextTree;
use super::Error;
use super::dir::Bytes;
use crate::path::RootPath;
use crate::root_dir;
use crate::root_dir::DiskStat;
use crate::tree::NodeId;
use crate::tree::Tree;

/// Bytes read at a time: BLAKE3 reaches its full speed at 16 KiB, and larger reads
/// save calls.
const BUFFER: usize = 256 << 10;

/// Digests that outlive a build. Whoever implements it judges which fingerprints
/// are old enough to be trusted.
pub trait DigestMemory: Send + Sync {
    /// What is known of the file at `path`, relative to the context's root, if it was
    /// put with exactly this fingerprint.
    fn get(&self, path: &[u8], fingerprint: &Fingerprint) -> Option<Remembered>;

    /// Remembers it. The fingerprint was taken before the content was read, and was
    /// the same afterwards.
    fn put(&self, path: &[u8], fingerprint: Fingerprint, known: Remembered);
}

impl DigestMemory for ContextDigests {
    fn get(&self, path: &[u8], fingerprint: &Fingerprint) -> Option<Remembered> {
        Self::get(self, path, fingerprint)
    }

    fn put(&self, path: &[u8], fingerprint: Fingerprint, known: Remembered) {
        Self::put(self, path, fingerprint, known);
    }
}

/// What tells that a file's bytes are still the same.
pub(super) fn fingerprint(stat: &DiskStat) -> Fingerprint {
    let time = |time: crate::tree::Timestamp| (time.seconds, time.nanoseconds);
    Fingerprint {
        device: stat.device,
        inode: stat.inode,
        size: stat.stat.size,
        mtime: time(stat.stat.mtime),
        ctime: time(stat.ctime),
        mode: stat.raw_mode,
    }
}

impl ContextTree {
    /// BLAKE3 of the regular file `node`: remembered, or read now and remembered.
    ///
    /// # Errors
    /// [`Error::NotAFile`]; [`Error::Read`]; [`Error::Changed`] when the file is not
    /// what it was when the tree first saw it, or changes while it is read.
    pub fn digest(&self, node: NodeId) -> Result<[u8; 32], Error> {
        if let Ok(Some(known)) = self.known(node) {
            return Ok(known.digest);
        }
        let bytes = self.file(node)?;
        let known = match self.remembered(&bytes) {
            Some(known) => known,
            None => self.hash(&bytes)?,
        };
        self.keep(node, &bytes, known)?;
        Ok(known.digest)
    }

    /// Makes [`digest`](Self::digest) of `nodes` free: those that nothing is
    /// remembered of are hashed by `threads` threads. Nodes that are no regular files
    /// are passed over.
    ///
    /// # Errors
    /// As for `digest`; the error of the first node, in the order given, that fails.
    pub fn prefetch_digests(&self, nodes: &[NodeId], threads: NonZeroUsize) -> Result<(), Error> {
        let unknown = self
            .recall(nodes)
            .map_err(|source| Error::Read { path: self.shown(&RootPath::root()), source })?;
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(&node) = unknown.get(at) else { break };
                if let Err(error) = self.digest(node) {
                    let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(earlier, _)| at < *earlier) {
                        *first = Some((at, error));
                    }
                    // Nodes before this one are taken already; those behind no
                    // longer matter.
                    next.store(unknown.len(), Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.get().min(unknown.len()) {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// The capabilities of the file `node` (`security.capability`). Nothing is opened
    /// where it was seen before that there are none.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn capability(&self, node: NodeId) -> std::io::Result<Option<Vec<u8>>> {
        if self.known(node)?.is_some_and(|known| known.is_plain) {
            return Ok(None);
        }
        let bytes = self.bytes(node)?;
        let found = self.xattr(node, b"security.capability")?;
        // What an older build remembered without looking, or when there were some.
        if let (None, Some(known), Some(memory)) = (&found, bytes.known, &self.memory) {
            let known = Remembered { is_plain: true, ..known };
            memory.put(bytes.path.as_bytes(), bytes.fingerprint, known);
        }
        Ok(found)
    }

    fn file(&self, node: NodeId) -> Result<Bytes, Error> {
        self.bytes(node).map_err(|error| match error.downcast::<Error>() {
            Ok(error) => error,
            Err(source) => Error::Read { path: self.shown(&RootPath::root()), source },
        })
    }

    /// What is known without reading the file.
    pub(super) fn remembered(&self, bytes: &Bytes) -> Option<Remembered> {
        bytes.known.or_else(|| {
            let memory = self.memory.as_ref()?;
            memory.get(bytes.path.as_bytes(), &bytes.fingerprint)
        })
    }

    fn keep(&self, node: NodeId, bytes: &Bytes, known: Remembered) -> Result<(), Error> {
        self.set_known(node, known)
            .map_err(|source| Error::Read { path: self.shown(&bytes.path), source })
    }

    fn hash(&self, bytes: &Bytes) -> Result<Remembered, Error> {
        let file = self.open(&bytes.path)?;
        self.hash_open(bytes, &file, &file)
    }

    /// Hashes what `reader` gives, which reads `file`.
    fn hash_open(
        &self,
        bytes: &Bytes,
        file: &File,
        reader: impl Read,
    ) -> Result<Remembered, Error> {
        let path = || self.shown(&bytes.path);
        let is_same = || {
            let now = DiskStat::of(file).map_err(|source| Error::Read { path: path(), source })?;
            Ok::<_, Error>(fingerprint(&now) == bytes.fingerprint)
        };
        if !is_same()? {
            return Err(Error::Changed { path: path() });
        }
        let size = bytes.fingerprint.size;
        let (digest, length) =
            blake3_of(reader, size).map_err(|source| Error::Read { path: path(), source })?;
        let is_plain = root_dir::has_no_capability(file);
        if length != size || !is_same()? {
            return Err(Error::Changed { path: path() });
        }
        let known = Remembered { digest, is_plain };
        if let Some(memory) = &self.memory {
            memory.put(bytes.path.as_bytes(), bytes.fingerprint, known);
        }
        Ok(known)
    }
}

/// BLAKE3 and number of all bytes, of which `expected` are expected.
fn blake3_of(mut reader: impl Read, expected: u64) -> std::io::Result<([u8; 32], u64)> {
    let mut hasher = blake3::Hasher::new();
    // Zeroing more than a small file needs would cost more than reading it.
    let length = usize::try_from(expected).unwrap_or(BUFFER).clamp(1, BUFFER);
    let mut buffer = vec![0; length];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finalize().into(), hasher.count())),
            Ok(count) => {
                hasher.update(&buffer[..count]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
