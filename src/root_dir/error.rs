//! Why something inside a root can't be reached.

use std::io;
use std::path::Path;
use std::path::PathBuf;

/// A failed operation, with the path as the user knows it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused, or the way was not allowed.
    #[error("cannot {operation} {}", path.display())]
    Refused {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// `CrossesDevices` (`EXDEV`) when a link leaves the root,
        /// `FilesystemLoop` (`ELOOP`) when links aren't allowed or never end.
        source: io::Error,
    },
    /// Something else stands where a regular file was asked for.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// Where.
        path: PathBuf,
    },
}

impl Error {
    pub(super) fn new(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Refused { operation, path: path.to_owned(), source }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Refused { source, .. } => source.kind(),
            Self::NotAFile { .. } => io::ErrorKind::InvalidInput,
        }
    }

    /// Whether there is nothing at that path.
    pub fn is_not_found(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }
}

/// Keeps kind, message and source.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}
