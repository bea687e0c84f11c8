//! Comparison of everything, as kaniko does it.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::io;
use std::io::Read;

use super::Error;
use super::Snapshotter;
use super::judge;
use super::judge::Pair;
use super::judge::Rules;
use super::judge::Scrutiny;
use super::judge::Seen;
use super::judge::Sides;
use super::judge::Touched;
use super::log::for_each;
use crate::change::ChangeLog;
use crate::change::ChangeSet;
use crate::path::RootPath;
use crate::tree::Content;
use crate::tree::ContentReader;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Tree;

/// How closely a walk looks: `--snapshot-mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Metadata and a digest of the bytes: misses nothing, reads every file at
    /// every mark unless the tree knows its digest.
    #[default]
    Full,
    /// Metadata alone. Misses bytes rewritten with the same length and the time put
    /// back.
    Redo,
    /// Type and time alone. Misses, besides, every change of mode, owner, size,
    /// capability, link target and device that leaves the time as it was or put
    /// back: `chmod` and `chown` above all, and everything about directories.
    Time,
}

impl Mode {
    fn scrutiny(self) -> Scrutiny {
        match self {
            Self::Full => Scrutiny::Bytes,
            Self::Redo => Scrutiny::Metadata,
            Self::Time => Scrutiny::Time,
        }
    }
}

/// Finds changes by comparing the whole tree with its state at the mark, of which
/// it keeps a manifest. Ignores the tree before and the log.
#[derive(Debug, Default)]
pub struct WalkSnapshotter {
    mode: Mode,
    marked: Option<Manifest>,
}

impl WalkSnapshotter {
    /// A snapshotter without a mark.
    pub fn new(mode: Mode) -> Self {
        Self { mode, marked: None }
    }
}

impl Snapshotter for WalkSnapshotter {
    fn mark(&mut self, tree: &dyn Tree) -> Result<(), Error> {
        self.marked = None;
        self.marked = Some(Manifest::of(tree, self.mode == Mode::Full)?);
        Ok(())
    }

    fn changes(
        &mut self,
        _: &dyn Tree,
        after: &dyn Tree,
        _: &ChangeLog,
    ) -> Result<ChangeSet, Error> {
        let before = self.marked.as_ref().ok_or(Error::NotMarked)?;
        // Bytes are read only where the metadata is equal: see `same_content`.
        let now = Manifest::of(after, false)?;
        let paths: BTreeSet<&RootPath> = before.paths.keys().chain(now.paths.keys()).collect();
        let touched: Touched = paths
            .into_iter()
            .map(|path| {
                let pair = Pair {
                    before: before.paths.get(path).copied(),
                    after: now.paths.get(path).copied(),
                };
                (path.clone(), pair)
            })
            .collect();
        let mut sides = Manifests { before, now: &now, tree: after };
        judge::judge(&touched, &mut sides, self.mode.scrutiny(), Rules::ALL)
    }
}

/// All there is to know of a tree, short of its bytes.
#[derive(Debug, Default)]
struct Manifest {
    paths: HashMap<RootPath, NodeId>,
    nodes: HashMap<NodeId, Record>,
}

#[derive(Debug)]
struct Record {
    /// `None` for a socket.
    seen: Option<Seen>,
    /// BLAKE3 of the bytes of a regular file, if asked for.
    digest: Option<[u8; 32]>,
    names: Vec<RootPath>,
}

impl Manifest {
    fn of(tree: &dyn Tree, digests: bool) -> Result<Self, Error> {
        let mut manifest = Self::default();
        for_each(tree, |path, node| {
            manifest.paths.insert(path.clone(), node);
            if let Some(record) = manifest.nodes.get_mut(&node) {
                record.names.push(path.clone());
                return Ok(());
            }
            let seen = Seen::look(tree, node).map_err(Error::read(path))?;
            let is_file = seen.as_ref().is_some_and(|seen| seen.stat.kind == Kind::File);
            let digest = if digests && is_file {
                Some(tree.content(node).and_then(digest).map_err(Error::read(path))?)
            } else {
                None
            };
            manifest.nodes.insert(node, Record { seen, digest, names: vec![path.clone()] });
            Ok(())
        })?;
        Ok(manifest)
    }

    fn seen(&self, node: NodeId) -> Option<Seen> {
        self.nodes.get(&node).and_then(|record| record.seen.clone())
    }

    fn names(&self, node: NodeId) -> Vec<RootPath> {
        self.nodes.get(&node).map(|record| record.names.clone()).unwrap_or_default()
    }
}

/// BLAKE3 of `content`.
fn digest(content: Content) -> io::Result<[u8; 32]> {
    if let Some(digest) = content.known_digest() {
        return Ok(digest);
    }
    let mut hasher = blake3::Hasher::new();
    let mut reader = ContentReader::new(content);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(*hasher.finalize().as_bytes()),
            count => hasher.update(&buffer[..count]),
        };
    }
}

/// A manifest and a tree as the judge wants to see them.
struct Manifests<'a> {
    before: &'a Manifest,
    now: &'a Manifest,
    tree: &'a dyn Tree,
}

impl Sides for Manifests<'_> {
    fn before(&mut self, node: NodeId) -> io::Result<Option<Seen>> {
        Ok(self.before.seen(node))
    }

    fn after(&mut self, node: NodeId) -> io::Result<Option<Seen>> {
        Ok(self.now.seen(node))
    }

    fn find_before(&mut self, path: &RootPath) -> io::Result<Option<NodeId>> {
        Ok(self.before.paths.get(path).copied())
    }

    fn find_after(&mut self, path: &RootPath) -> io::Result<Option<NodeId>> {
        Ok(self.now.paths.get(path).copied())
    }

    fn names_before(&mut self, node: NodeId) -> Result<Vec<RootPath>, Error> {
        Ok(self.before.names(node))
    }

    fn names_after(&mut self, node: NodeId) -> Result<Vec<RootPath>, Error> {
        Ok(self.now.names(node))
    }

    fn same_content(&mut self, before: NodeId, after: NodeId) -> io::Result<bool> {
        let old = self.before.nodes.get(&before).and_then(|record| record.digest);
        Ok(old == Some(digest(self.tree.content(after)?)?))
    }

    fn content(&mut self, node: NodeId) -> io::Result<Content> {
        self.tree.content(node)
    }
}
