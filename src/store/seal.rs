//! Whether a stored file is still what it was when it was verified.
//!
//! Hashing gigabytes at each use is too dear, trusting a name too little. So a file
//! whose digest was verified (when it was written, or since) is *sealed*: the
//! nanoseconds of its modification time are set to a number made of its digest.
//! Whatever writes into the file or cuts it sets that time anew and breaks the seal
//! (by chance it fits once in a million times); then the file is hashed before it
//! is used, and sealed again or set aside. A copy of a cache that lost the times is
//! verified once.
//!
//! The seconds of the same time tell when the file was last used, in steps of
//! [`STEP`], which is what a collector goes by. So neither needs a file of its own.
//!
//! A seal finds accidents. Somebody who may write to the cache directory can forge
//! it, as he can forge records; `yadokari cache verify` doesn't look at seals.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustix::fs::AtFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::UTIME_OMIT;
use sha2::Digest as _;
use sha2::Sha256;

/// Seconds by which a last use may be told too old: so often at most is it noted.
const STEP: i64 = 60;

/// What file systems keep of a time at the least, in nanoseconds.
const GRAIN: u32 = 1_000;

/// Bytes hashed at a time.
const BUFFER: usize = 1 << 18;

/// The seal of contents with a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal(u32);

impl Seal {
    /// Of the contents with this SHA-256.
    pub(crate) fn of(digest: &[u8; 32]) -> Self {
        let [a, b, c, d, ..] = *digest;
        let number = u32::from_be_bytes([a, b, c, d]) % (1_000_000_000 / GRAIN);
        // 0 is what a file system without fractions gives any file.
        Self(number.max(1) * GRAIN)
    }

    /// Whether a file with this metadata bears the seal.
    pub(crate) fn is_on(self, metadata: &std::fs::Metadata) -> bool {
        metadata.mtime_nsec() == i64::from(self.0)
    }

    /// Puts the seal on a file of one's own that was just written.
    ///
    /// # Errors
    /// What the system says; without a seal the file is verified at its first use.
    pub(crate) fn put(self, file: &File) -> io::Result<()> {
        Ok(rustix::fs::futimens(file, &self.times(seconds_now()))?)
    }

    /// Notes that a verified file is used now. Best effort: in a directory that
    /// belongs to somebody else the last use may be lost, and the seal with it.
    pub(crate) fn used(self, path: &Path, metadata: &std::fs::Metadata) {
        let now = seconds_now();
        if self.is_on(metadata) && (now - metadata.mtime()).abs() < STEP {
            return;
        }
        let _ = rustix::fs::utimensat(
            rustix::fs::CWD,
            path,
            &self.times(now),
            AtFlags::SYMLINK_NOFOLLOW,
        );
    }

    fn times(self, seconds: i64) -> Timestamps {
        Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: i64::from(self.0) },
        }
    }
}

/// Notes that a directory is used now; see [`Seal::used`].
pub(crate) fn directory_used(path: &Path) {
    let now = Timespec { tv_sec: seconds_now(), tv_nsec: 0 };
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: now,
    };
    let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

fn seconds_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// SHA-256 of a file from its beginning.
///
/// # Errors
/// What reading says.
pub(crate) fn digest(file: &mut File) -> io::Result<[u8; 32]> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(sha256.finalize().into()),
            Ok(count) => sha256.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
