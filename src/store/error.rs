//! Failures of the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::oci::digest::Digest;

/// Failure of an operation on stored contents.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error(transparent)]
    Cache(#[from] yadokari_cache::Error),
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
    /// The store was opened for reading only.
    #[error("cannot {action}: the store {} was opened for reading only", path.display())]
    ReadOnly {
        /// What was tried, as a verb.
        action: &'static str,
        /// The cache directory.
        path: PathBuf,
    },
    /// The bytes written are not those that were promised.
    #[error("the content has digest {found}, {expected} was expected")]
    WrongDigest {
        /// What the caller promised.
        expected: Digest,
        /// What the bytes gave.
        found: Digest,
    },
    /// A blob is larger than the caller is willing to hold in memory.
    #[error("{} has {size} bytes, at most {limit} were expected", path.display())]
    TooLarge {
        /// The blob.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
        /// The highest accepted, in bytes.
        limit: u64,
    },
}

impl Error {
    /// For `map_err`: sorts an I/O error into the variant that helps its reader.
    pub(super) fn io<'a>(
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

    /// The same error where an [`io::Error`] is asked for, as by [`io::Write`].
    pub(super) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::NoSpace { .. } => io::ErrorKind::StorageFull,
            Self::Denied { .. } => io::ErrorKind::PermissionDenied,
            Self::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}
