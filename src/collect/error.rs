//! Failures of a collection.

use std::io;
use std::path::PathBuf;

/// Why the cache couldn't be listed, collected or checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The records can't be used.
    #[error(transparent)]
    Cache(#[from] yadokari_cache::Error),
    /// The contents can't be used.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// A directory can't be listed.
    #[error("cannot list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Other processes use the cache.
    #[error(
        "{builds} running builds use the cache: wait for them with --wait, or collect with `gc`"
    )]
    InUse {
        /// How many.
        builds: usize,
    },
    /// Another process collects.
    #[error("another process collects this cache at the moment")]
    Busy,
    /// What was asked for isn't there.
    #[error("nothing in the cache is called {0}")]
    Unknown(String),
    /// A running build uses what should go.
    #[error("{0} is in use by a running build")]
    Held(String),
    /// What was asked for is no key and no digest.
    #[error("`{0}` is neither a key (64 hex digits) nor a digest (sha256:…)")]
    NoName(String),
}
