//! Why a build context can't be used.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::root_dir;

/// A failure to read the build context.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of `--context` that names no place.
    #[error("the build context `{text}` names no path")]
    NoPlace {
        /// The value.
        text: String,
    },
    /// An address on another machine that can't be read.
    #[error(transparent)]
    Address(#[from] crate::address::Error),
    /// An object store, whose clients and credentials we don't have.
    #[error(
        "the build context {scheme}://{object} is in an object store, which is not supported: \
         give a presigned https:// URL of the archive, or pipe it in with its own client and \
         --context tar://stdin"
    )]
    ObjectStore {
        /// `s3` or `gs`.
        scheme: String,
        /// Bucket and object.
        object: String,
    },
    /// What follows the second `#` of kaniko's form of a repository.
    #[error("`{commit}` in the build context is no commit: 40 hexadecimal digits are expected")]
    KanikoCommit {
        /// As written.
        commit: String,
    },
    /// Something that nobody knows.
    #[error(
        "unknown kind of build context `{scheme}://`: \
         expected a path, `dir://`, `tar://`, `git://`, `https://` or `-` for a tar on standard input"
    )]
    UnknownScheme {
        /// Without `://`.
        scheme: String,
    },
    /// Standard input is a terminal or `/dev/null`.
    #[error("the build context should come from standard input, but nothing is piped into it")]
    NothingPiped,
    /// A context that should be a directory is a file.
    #[error(
        "the build context {} is not a directory; for an archive write `tar://` before its path",
        path.display()
    )]
    NotADirectory {
        /// The context.
        path: PathBuf,
    },
    /// The context can't be opened.
    #[error("cannot open the build context {}", path.display())]
    Open {
        /// The context.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the context, or beside it, can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no place to unpack an archive.
    #[error("cannot unpack a build context below {}", path.display())]
    Scratch {
        /// The scratch directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive itself is damaged or can't be read.
    #[error("cannot read the build context {archive}")]
    Archive {
        /// The archive.
        archive: String,
        /// Why.
        source: io::Error,
    },
    /// The archive holds nothing.
    #[error("the build context {archive} holds no files: is it a tar archive?")]
    EmptyArchive {
        /// The archive.
        archive: String,
    },
    /// An entry of the archive that we don't unpack.
    #[error("the build context {archive} holds `{entry}`, which {reason}")]
    Entry {
        /// The archive.
        archive: String,
        /// Name of the entry, as it stands there.
        entry: String,
        /// Why not, as the end of a sentence.
        reason: &'static str,
    },
    /// An entry of the archive that can't be unpacked.
    #[error("cannot unpack `{entry}` of the build context {archive}")]
    Unpack {
        /// The archive.
        archive: String,
        /// Name of the entry, as it stands there.
        entry: String,
        /// Why.
        source: io::Error,
    },
    /// A Dockerfile that would have to be fetched, which kaniko does.
    #[error("the Dockerfile `{url}` is a URL, which is not supported yet: fetch it first")]
    DockerfileUrl {
        /// As given.
        url: String,
    },
    /// No Dockerfile anywhere.
    #[error("there is no Dockerfile at {}", listed(tried))]
    NoDockerfile {
        /// Where it was looked for, in this order.
        tried: Vec<PathBuf>,
    },
    /// A file is not what it was when this build first looked at it.
    #[error("{} changed during the build", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A digest was asked of something without bytes.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What.
        path: PathBuf,
    },
}

impl Error {
    pub(super) fn open(path: &Path, error: root_dir::Error) -> Self {
        let path = path.to_owned();
        if error.kind() == io::ErrorKind::NotADirectory {
            return Self::NotADirectory { path };
        }
        match error {
            // Its own message would name the path a second time.
            root_dir::Error::Refused { source, .. } => Self::Open { path, source },
            other => Self::Open { path, source: other.into() },
        }
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Open { source, .. }
            | Self::Read { source, .. }
            | Self::Scratch { source, .. }
            | Self::Archive { source, .. }
            | Self::Unpack { source, .. } => source.kind(),
            Self::NotADirectory { .. } => io::ErrorKind::NotADirectory,
            Self::NoDockerfile { .. } => io::ErrorKind::NotFound,
            Self::Changed { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::InvalidInput,
        }
    }
}

/// For [`Tree`](crate::tree::Tree): keeps kind, message and source.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

fn listed(paths: &[PathBuf]) -> String {
    let mut text = String::new();
    for (index, path) in paths.iter().enumerate() {
        let before = if index == 0 { "" } else { " nor at " };
        let _ = write!(text, "{before}{}", path.display());
    }
    text
}
