//! What a step changed: from the change log, or from a walk.
//!
//! [`LogSnapshotter`] folds the log of the overlay: it looks only where something
//! happened, so a step that changed nothing costs nothing, however large the root.
//! [`WalkSnapshotter`] compares everything, kaniko's way; it needs no log and
//! checks the other. Both give the same [`ChangeSet`], because one judge
//! (`judge.rs`) decides what counts:
//!
//! - Of a directory, mode, owner and capability count, not its time: a bare
//!   `touch` of a directory is no change. Of everything else all metadata counts,
//!   times to the nanosecond, and the bytes where the metadata is equal.
//! - Of extended attributes `security.capability` alone counts.
//! - Identity doesn't count: what was moved there and back, or made anew with the
//!   same metadata and bytes, is no change.
//! - A socket is as good as nothing, before and after.
//! - A directory that went is one deletion; where something else stands now, the
//!   puts say it all.
//!
//! Three rules keep layers true (STYLE: the seam); each has a planted fault in
//! `tests.rs` that must be noticed:
//!
//! 1. A touched name whose directory is another one now is judged subtree against
//!    subtree: nothing below it was touched by name.
//! 2. Every name of an emitted file travels with it: a layer can't link to a file
//!    below it, so the name left behind would keep the old bytes.
//! 3. Names that stay, but are linked where they weren't or no longer linked, are
//!    changes although nothing else about them changed.
//!
//! Nothing here opens a file, and nothing depends on the order of events.

mod judge;
mod log;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod walk;

pub use log::LogSnapshotter;
pub use walk::Mode;
pub use walk::WalkSnapshotter;

use std::io;

use crate::change::ChangeLog;
use crate::change::ChangeSet;
use crate::path::RootPath;
use crate::tree::Tree;

/// Why there is no change set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tree can't be read.
    #[error("can't read {path} for the snapshot")]
    Read {
        /// Where; a node whose path isn't known is shown as the root.
        path: RootPath,
        /// What the tree said.
        #[source]
        source: io::Error,
    },
    /// A walk has nothing to compare with.
    #[error("snapshot without a mark before it")]
    NotMarked,
}

impl Error {
    /// For `map_err` after reading at `path`.
    fn read(path: &RootPath) -> impl FnOnce(io::Error) -> Self {
        let path = path.clone();
        move |source| Self::Read { path, source }
    }
}

/// Finds what a step changed.
pub trait Snapshotter: Send {
    /// Remembers `tree` as the state before the step, as far as needed.
    ///
    /// # Errors
    /// [`Error::Read`].
    fn mark(&mut self, tree: &dyn Tree) -> Result<(), Error>;

    /// What is different in `after`. `before` is the tree as it was at the mark,
    /// with the same node ids, and `log` everything touched since. Changes neither;
    /// the contents in the result stay what they are when the next step writes.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::NotMarked`].
    fn changes(
        &mut self,
        before: &dyn Tree,
        after: &dyn Tree,
        log: &ChangeLog,
    ) -> Result<ChangeSet, Error>;
}
