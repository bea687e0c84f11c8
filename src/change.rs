//! What changed, as data: events while a step runs, a change set when it ended.
//!
//! Events say *where to look*; the trees before and after say *what is there*.
//! They carry node ids instead of paths, because a path means something else
//! once a directory above it was renamed.

use std::collections::BTreeSet;

use crate::path::{Name, RootPath};
use crate::tree::{Content, NodeId, Stat};

/// One thing that a step touched.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Event {
    /// The entry `name` of `directory` was added, removed or replaced.
    Entry {
        /// The directory.
        directory: NodeId,
        /// Name of the entry in it.
        name: Name,
    },
    /// Content, metadata or extended attributes of a node were written.
    Node(NodeId),
}

/// Everything a step touched, each thing once.
#[derive(Clone, Debug, Default)]
pub struct ChangeLog {
    /// The events, in no order that means anything.
    pub events: BTreeSet<Event>,
    /// Why the log may be incomplete; a snapshot must walk then.
    pub lost: Option<String>,
}

/// One entry of a change set.
#[derive(Clone, Debug)]
pub enum Change {
    /// The path is there now, as given.
    Put(Put),
    /// The path was there before and is gone.
    Delete(RootPath),
}

/// A path as it is after the step.
#[derive(Clone, Debug)]
pub struct Put {
    /// Where it is.
    pub path: RootPath,
    /// Puts with the same node are hard links of one file.
    pub node: NodeId,
    /// Its metadata.
    pub stat: Stat,
    /// Target, for a symbolic link.
    pub link_target: Option<Vec<u8>>,
    /// Value of `security.capability`, the one extended attribute a layer
    /// carries (as BuildKit writes it).
    pub capability: Option<Vec<u8>>,
    /// Bytes, for a regular file. Stay what they are when the next step writes.
    pub content: Option<Content>,
}

impl Change {
    /// The path concerned.
    pub fn path(&self) -> &RootPath {
        match self {
            Self::Put(put) => &put.path,
            Self::Delete(path) => path,
        }
    }
}

/// The changes of one step in canonical form: sorted by path, so parents come
/// first; each path once; every ancestor directory of a change is a put itself,
/// except the root, which is a put only if its own metadata changed. Equal sets
/// make equal layers.
#[derive(Clone, Debug, Default)]
pub struct ChangeSet {
    /// The changes in path order.
    pub changes: Vec<Change>,
}

impl ChangeSet {
    /// Whether the layer would hold nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}
