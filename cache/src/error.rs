//! What can fail, and what is merely worth reporting.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Failure of an operation on the cache directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed for a reason without an own variant.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `create`, `rename` …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// ENOSPC or EDQUOT.
    #[error(
        "no space left to {action} {}: free some, or choose another directory with --cache-dir",
        path.display()
    )]
    NoSpace {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// EACCES, EPERM or EROFS.
    #[error(
        "not permitted to {action} {}: make it writable, or choose another directory with --cache-dir",
        path.display()
    )]
    Denied {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The directory was written by a newer program.
    #[error(
        "{} has cache format {found}, this program knows formats up to {known}: \
         update it, or choose another directory with --cache-dir",
        path.display()
    )]
    NewerFormat {
        /// The cache directory.
        path: PathBuf,
        /// Format in its `VERSION`.
        found: u32,
        /// Highest format this program reads.
        known: u32,
    },
    /// `VERSION` holds something else.
    #[error("{} is not the VERSION file of a cache: choose another directory with --cache-dir", path.display())]
    ForeignDirectory {
        /// The file.
        path: PathBuf,
    },
    /// The cache was opened for reading only.
    #[error("cannot {action}: the cache {} was opened for reading only", path.display())]
    ReadOnly {
        /// What was tried, as a verb.
        action: &'static str,
        /// The cache directory.
        path: PathBuf,
    },
    /// A put holds more than one frame may.
    #[error("records of {size} bytes are too large for one put, at most {limit} bytes fit")]
    TooLarge {
        /// Bytes of all records together.
        size: usize,
        /// Highest allowed.
        limit: usize,
    },
    /// The index database refused its work even after it was made anew.
    #[error("cannot write the index {}: {reason}", path.display())]
    Index {
        /// Directory of the index.
        path: PathBuf,
        /// The database's words.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: sorts an I/O error into the variant that helps its reader.
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Self::NoSpace { action, path }
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Self::Denied { action, path, source }
                }
                _ => Self::Io { action, path, source },
            }
        }
    }
}

/// Something in the cache was damaged or unreadable. The build goes on as if it
/// were not there; the report should name it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A file failed its checksum or format and was set aside (or, in a cache
    /// opened for reading, ignored).
    SetAside {
        /// Where it was.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// Bytes of the record log failed their checksum and were skipped.
    LogDamaged {
        /// The log.
        path: PathBuf,
        /// How many bytes.
        skipped: u64,
    },
    /// The index could not be read; this process reads the record log instead.
    IndexUnreadable {
        /// Directory of the index.
        path: PathBuf,
        /// The database's words.
        reason: String,
    },
    /// The index was set aside and made anew from the record log.
    IndexRebuilt {
        /// Directory of the index.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// A record's bytes are not what its bucket promises.
    RecordUnreadable {
        /// Bucket and key.
        name: String,
        /// What was wrong with it.
        reason: String,
    },
    /// A cache file could not be read for a reason outside of it.
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetAside { path, reason } => {
                write!(f, "cache file {} is damaged and ignored: {reason}", path.display())
            }
            Self::LogDamaged { path, skipped } => {
                write!(f, "{skipped} damaged bytes skipped in {}", path.display())
            }
            Self::IndexUnreadable { path, reason } => {
                write!(
                    f,
                    "cache index {} is unreadable, the record log is used instead: {reason}",
                    path.display()
                )
            }
            Self::IndexRebuilt { path, reason } => {
                write!(f, "cache index {} was rebuilt: {reason}", path.display())
            }
            Self::RecordUnreadable { name, reason } => {
                write!(f, "cache record {name} is unreadable: {reason}")
            }
            Self::Unreadable { path, reason } => {
                write!(f, "cannot read {}: {reason}", path.display())
            }
        }
    }
}
