//! Steps that change files: what COPY, ADD, WORKDIR and RUN do to a root.
//!
//! COPY, ADD and WORKDIR are calls into the overlay's own table and never pass
//! through a mount. RUN needs one; `run` prepares what its process expects and
//! takes every mount point away again before the snapshot.
//!
//! Nothing here knows of caches or layers: a step gets a root and its inputs and
//! changes the root. Start with [`select`] (what a COPY takes) and [`copy`].

pub mod add;
pub mod copy;
pub mod ownership;
pub mod run;
pub mod select;
pub mod source;
pub mod workdir;

use std::io;

use crate::path::RootPath;

/// Why a step failed. The instruction's place in the Dockerfile is added by `build`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source of COPY or ADD isn't there.
    #[error("{path}: not found in {whose}{hint}")]
    NotFound {
        /// As written.
        path: String,
        /// `the build context`, `stage build`, an image.
        whose: String,
        /// What may be the reason.
        hint: String,
    },
    /// A file would replace a directory.
    #[error("cannot copy {from} to {path}: a directory is there")]
    FileOverDirectory {
        /// Source, as named.
        from: String,
        /// Destination.
        path: RootPath,
    },
    /// A directory would replace something else.
    #[error("cannot copy directory {from} to {path}: it is there and not a directory")]
    DirectoryOverFile {
        /// Source, as named.
        from: String,
        /// Destination.
        path: RootPath,
    },
    /// A wildcard or exclude pattern is malformed.
    #[error("bad pattern `{pattern}`: {reason}")]
    Pattern {
        /// As written.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// USER or `--chown` or `--chmod` can't be understood.
    #[error("{0}")]
    Ownership(String),
    /// An archive given to ADD is damaged or tries to leave its destination.
    #[error("cannot unpack {archive}: {reason}")]
    Archive {
        /// Source, as named.
        archive: String,
        /// What is wrong.
        reason: String,
    },
    /// A secret that a RUN requires wasn't given.
    #[error("secret `{0}` is required and was not given: add --secret id={0},src=FILE")]
    MissingSecret(String),
    /// An ssh agent that a RUN requires wasn't given.
    #[error("ssh agent `{0}` is required and was not given: add --ssh {0}")]
    MissingSsh(String),
    /// `--add-host NAME:host-gateway` where no default route leads anywhere.
    #[error("host-gateway of {0} is unknown: there is no default route")]
    NoGateway(String),
    /// The root can't be prepared for a process.
    #[error("cannot prepare the mount at {target}: {reason}")]
    Mount {
        /// Mount point in the root.
        target: String,
        /// What went wrong.
        reason: String,
    },
    /// The process couldn't be started or watched.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::Error),
    /// Reading a source or changing the root failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an I/O error with what was tried on which path.
    pub fn io(action: &'static str, path: impl ToString) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_string(), source }
    }
}
