//! The files of a context under its ignore rules, as a lazy tree.
//!
//! A directory is read when somebody asks for its children: one `openat2`, its
//! `getdents`, and one `statx` for each name that isn't excluded. A single child is
//! one `statx`. No file is opened before its bytes are asked for.
//!
//! Excluded paths do not exist here, with one exception, which is moby's: an
//! excluded directory that holds re-included files (`!` patterns) exists with
//! exactly these. It is searched for them only where patterns say that there may be
//! some. `children_are_those_of_a_full_walk` in the tests pins this rule.
//!
//! What was seen once stays as it was seen: ids are stable, and a build looks at
//! one state of each file. If its bytes turn out to be others, that is an error.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use yadokari_cache::Fingerprint;
use yadokari_cache::Remembered;

use super::Context;
use super::DigestMemory;
use super::Error;
use super::digest::fingerprint;
use crate::ignore::Matcher;
use crate::path::Name;
use crate::path::RootPath;
use crate::root_dir::Directory;
use crate::root_dir::DiskStat;
use crate::root_dir::Links;
use crate::tree::Content;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::ReadAt;
use crate::tree::Stat;
use crate::tree::Tree;
use crate::tree::Xattr;

/// Larger files keep their handle while their content is alive; smaller ones are
/// opened for each read, which is one for most readers' buffers.
const KEEP_OPEN_ABOVE: u64 = 256 << 10;

/// Handles kept at most by all contents of a tree: far below the usual limit of
/// 1024 for a process.
const MOST_KEPT: usize = 256;

/// Which files of a context are not there.
pub trait Ignore: Send + Sync {
    /// Whether the rules exclude `path`, by itself or by a directory above it.
    fn excludes(&self, path: &RootPath) -> bool;

    /// Whether something below the excluded directory `path` may be included again.
    fn may_reinclude_below(&self, path: &RootPath) -> bool;
}

impl Ignore for Matcher {
    fn excludes(&self, path: &RootPath) -> bool {
        Self::excludes(self, path)
    }

    fn may_reinclude_below(&self, path: &RootPath) -> bool {
        Self::may_reinclude_below(self, path)
    }
}

/// No rules: every file is there.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Ignore for Nothing {
    fn excludes(&self, _path: &RootPath) -> bool {
        false
    }

    fn may_reinclude_below(&self, _path: &RootPath) -> bool {
        false
    }
}

/// The tree; [`Tree`] is how to read it. Shared by threads. Names of one file
/// (hard links) have one id. Owners are those on disk.
pub struct ContextTree {
    shared: Arc<Shared>,
    ignore: Box<dyn Ignore>,
    pub(super) memory: Option<Arc<dyn DigestMemory>>,
    state: RwLock<State>,
}

/// What contents need, which may outlive the tree.
struct Shared {
    /// Also keeps unpacked files from being removed.
    context: Context,
    kept: AtomicUsize,
}

impl Shared {
    fn path(&self, path: &RootPath) -> PathBuf {
        self.context.root.shown(path)
    }
}

struct State {
    nodes: Vec<Node>,
    /// Files with more than one name, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
}

/// A node, as it was when it was first seen.
struct Node {
    path: RootPath,
    stat: DiskStat,
    children: Children,
    known: Option<Remembered>,
}

/// What is known of a directory's children.
#[derive(Default)]
struct Children {
    /// Seen one by one, while there is no list.
    some: BTreeMap<Name, NodeId>,
    /// The whole list, sorted.
    all: Option<Arc<[(Name, NodeId)]>>,
}

/// A regular file and what identifies its bytes.
pub(super) struct Bytes {
    pub(super) path: RootPath,
    pub(super) fingerprint: Fingerprint,
    pub(super) known: Option<Remembered>,
}

impl ContextTree {
    pub(super) fn new(context: Context, ignore: Box<dyn Ignore>) -> Result<Self, Error> {
        let root = RootPath::root();
        let stat = context.root.stat(&root, true).map_err(|error| Error::Read {
            path: context.root.path().to_owned(),
            source: error.into(),
        })?;
        let node = Node { path: root, stat, children: Children::default(), known: None };
        Ok(Self {
            shared: Arc::new(Shared { context, kept: AtomicUsize::new(0) }),
            ignore,
            memory: None,
            state: RwLock::new(State { nodes: vec![node], linked: HashMap::new() }),
        })
    }

    /// This tree with digests remembered from earlier builds.
    #[must_use]
    pub fn remembering(self, memory: Arc<dyn DigestMemory>) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// Whether the ignore rules hide `path`: for telling why it isn't there.
    pub fn is_excluded(&self, path: &RootPath) -> bool {
        self.ignore.excludes(path)
    }

    /// The first path at which `node` was seen.
    ///
    /// # Errors
    /// `NotFound` for an id that is not of this tree.
    pub fn path(&self, node: NodeId) -> io::Result<RootPath> {
        Ok(self.read().node(node)?.path.clone())
    }

    // Whoever panicked with the lock held had only read, or had pushed a whole node.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The regular file `node`; an error for anything else.
    pub(super) fn bytes(&self, node: NodeId) -> io::Result<Bytes> {
        let state = self.read();
        let node = state.node(node)?;
        if node.stat.stat.kind != Kind::File {
            return Err(Error::NotAFile { path: self.shared.path(&node.path) }.into());
        }
        Ok(Bytes {
            path: node.path.clone(),
            fingerprint: fingerprint(&node.stat),
            known: node.known,
        })
    }

    /// What is known of a file without asking anybody; `None` for what is no file.
    pub(super) fn known(&self, node: NodeId) -> io::Result<Option<Remembered>> {
        Ok(self.read().node(node)?.known)
    }

    /// Recalls all that is remembered of `nodes` and gives the files of which nothing
    /// is. What is no file is passed over.
    pub(super) fn recall(&self, nodes: &[NodeId]) -> io::Result<Vec<NodeId>> {
        let mut unknown = Vec::new();
        let mut state = self.write();
        for &id in nodes {
            let node = state.node_mut(id)?;
            if node.stat.stat.kind != Kind::File || node.known.is_some() {
                continue;
            }
            let memory = self.memory.as_ref();
            node.known = memory
                .and_then(|memory| memory.get(node.path.as_bytes(), &fingerprint(&node.stat)));
            if node.known.is_none() {
                unknown.push(id);
            }
        }
        Ok(unknown)
    }

    pub(super) fn set_known(&self, node: NodeId, known: Remembered) -> io::Result<()> {
        self.write().node_mut(node)?.known = Some(known);
        Ok(())
    }

    pub(super) fn open(&self, path: &RootPath) -> Result<File, Error> {
        let opened = self.shared.context.root.open_file(path, Links::Refused);
        opened.map_err(|error| Error::Read { path: self.shared.path(path), source: error.into() })
    }

    pub(super) fn shown(&self, path: &RootPath) -> PathBuf {
        self.shared.path(path)
    }

    fn open_directory(&self, path: &RootPath) -> io::Result<Directory> {
        Ok(self.shared.context.root.open_directory(path, Links::Refused)?)
    }

    fn unreadable(&self, path: &RootPath, source: io::Error) -> io::Error {
        Error::Read { path: self.shared.path(path), source }.into()
    }

    /// Metadata of `path`, which is `name` in `directory`; `None` if it is excluded,
    /// or gone since it was listed. `kind` is what the listing said. With it, whether
    /// it is an excluded directory that must be searched.
    fn look(
        &self,
        directory: &Directory,
        name: &Name,
        path: &RootPath,
        kind: Option<Kind>,
    ) -> io::Result<Option<(DiskStat, bool)>> {
        let is_excluded = self.ignore.excludes(path);
        if is_excluded
            && (kind.is_some_and(|kind| kind != Kind::Directory)
                || !self.ignore.may_reinclude_below(path))
        {
            return Ok(None);
        }
        match directory.stat(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.unreadable(path, error)),
            Ok(found) if is_excluded && !found.stat.is_directory() => Ok(None),
            Ok(found) => Ok(Some((found, is_excluded))),
        }
    }

    /// All children of `node`; none if it is no directory.
    fn listing(&self, node: NodeId) -> io::Result<Arc<[(Name, NodeId)]>> {
        let path = {
            let state = self.read();
            let node = state.node(node)?;
            if let Some(all) = &node.children.all {
                return Ok(Arc::clone(all));
            }
            if !node.stat.stat.is_directory() {
                return Ok(Arc::new([]));
            }
            node.path.clone()
        };
        let directory = self.open_directory(&path)?;
        let entries = directory.entries().map_err(|error| self.unreadable(&path, error))?;
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries {
            let path = path.join(&entry.name);
            if let Some((stat, search)) = self.look(&directory, &entry.name, &path, entry.kind)? {
                found.push((entry.name, path, stat, search));
            }
        }
        // Not held while directories below are searched: handles are few.
        drop(directory);
        let mut visible = Vec::with_capacity(found.len());
        for (name, path, stat, search) in found {
            if search {
                let id = self.write().intern(node, &name, path.clone(), stat)?;
                if self.listing(id)?.is_empty() {
                    continue;
                }
            }
            visible.push((name, path, stat));
        }
        // Ids are given and the list is set under one lock, so that a name has one
        // id whoever asks meanwhile. Another thread may have been here: the first
        // list counts.
        let mut state = self.write();
        let known = &mut state.node_mut(node)?.children;
        if let Some(all) = &known.all {
            return Ok(Arc::clone(all));
        }
        let some = std::mem::take(&mut known.some);
        let all: Arc<[(Name, NodeId)]> = visible
            .into_iter()
            .map(|(name, path, stat)| {
                let id = some.get(&name).copied().unwrap_or_else(|| state.add(path, stat));
                (name, id)
            })
            .collect();
        state.node_mut(node)?.children.all = Some(Arc::clone(&all));
        Ok(all)
    }

    /// Lists `node` and gives the directories in it.
    pub(super) fn directories_in(&self, node: NodeId) -> io::Result<Vec<NodeId>> {
        let all = self.listing(node)?;
        let state = self.read();
        let is_directory =
            |id: &NodeId| state.node(*id).is_ok_and(|node| node.stat.stat.is_directory());
        Ok(all.iter().map(|(_, id)| *id).filter(is_directory).collect())
    }

    /// The child `name` of `node`, without reading the whole directory.
    fn single(&self, node: NodeId, name: &Name) -> io::Result<Option<NodeId>> {
        let path = {
            let state = self.read();
            let node = state.node(node)?;
            if let Some(all) = &node.children.all {
                let at = all.binary_search_by(|(known, _)| known.cmp(name));
                return Ok(at.ok().and_then(|at| all.get(at)).map(|(_, id)| *id));
            }
            if !node.stat.stat.is_directory() {
                return Ok(None);
            }
            node.path.clone()
        };
        let directory = self.open_directory(&path)?;
        let path = path.join(name);
        let Some((stat, search)) = self.look(&directory, name, &path, None)? else {
            return Ok(None);
        };
        drop(directory);
        let id = self.write().intern(node, name, path, stat)?;
        Ok((!search || !self.listing(id)?.is_empty()).then_some(id))
    }
}

impl State {
    fn node(&self, id: NodeId) -> io::Result<&Node> {
        let at = usize::try_from(id.0).ok();
        at.and_then(|at| self.nodes.get(at)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn node_mut(&mut self, id: NodeId) -> io::Result<&mut Node> {
        let at = usize::try_from(id.0).ok();
        at.and_then(|at| self.nodes.get_mut(at)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The id of `name` in `directory`, which is at `path` and new unless it was
    /// seen before.
    fn intern(
        &mut self,
        directory: NodeId,
        name: &Name,
        path: RootPath,
        stat: DiskStat,
    ) -> io::Result<NodeId> {
        let known = &self.node(directory)?.children;
        if let Some(id) = known.some.get(name) {
            return Ok(*id);
        }
        if let Some(all) = &known.all
            && let Ok(at) = all.binary_search_by(|(known, _)| known.cmp(name))
            && let Some((_, id)) = all.get(at)
        {
            return Ok(*id);
        }
        let id = self.add(path, stat);
        self.node_mut(directory)?.children.some.insert(name.clone(), id);
        Ok(id)
    }

    /// A new id, unless another name of the same file has one.
    fn add(&mut self, path: RootPath, stat: DiskStat) -> NodeId {
        // A directory that is mounted in two places is two directories: rules go by
        // path.
        let is_linked = stat.stat.links > 1 && !stat.stat.is_directory();
        let file = (stat.device, stat.inode);
        if is_linked && let Some(id) = self.linked.get(&file) {
            return *id;
        }
        let id = NodeId(self.nodes.len() as u64);
        self.nodes.push(Node { path, stat, children: Children::default(), known: None });
        if is_linked {
            self.linked.insert(file, id);
        }
        id
    }
}

impl Tree for ContextTree {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn stat(&self, node: NodeId) -> io::Result<Stat> {
        Ok(self.read().node(node)?.stat.stat)
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> io::Result<Option<NodeId>> {
        match Name::new(name) {
            Some(name) => self.single(directory, &name),
            None => Ok(None),
        }
    }

    fn children(&self, directory: NodeId) -> io::Result<Vec<(Name, NodeId)>> {
        Ok(self.listing(directory)?.to_vec())
    }

    fn link_target(&self, node: NodeId) -> io::Result<Vec<u8>> {
        let path = self.path(node)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = self.open_directory(&parent)?;
        directory.read_link(&name).map_err(|error| self.unreadable(&path, error))
    }

    fn xattrs(&self, node: NodeId) -> io::Result<Vec<Xattr>> {
        let path = {
            let state = self.read();
            let node = state.node(node)?;
            if !matches!(node.stat.stat.kind, Kind::File | Kind::Directory) {
                return Ok(Vec::new());
            }
            node.path.clone()
        };
        Ok(self.shared.context.root.xattrs(&path)?)
    }

    fn content(&self, node: NodeId) -> io::Result<Content> {
        let bytes = self.bytes(node)?;
        let digest = self.remembered(&bytes).map(|known| known.digest);
        Ok(Arc::new(FileContent {
            shared: Arc::clone(&self.shared),
            path: bytes.path,
            fingerprint: bytes.fingerprint,
            digest,
            file: OnceLock::new(),
        }))
    }
}

/// The bytes of a file of the context.
struct FileContent {
    shared: Arc<Shared>,
    path: RootPath,
    fingerprint: Fingerprint,
    digest: Option<[u8; 32]>,
    /// Set for some large files.
    file: OnceLock<File>,
}

impl FileContent {
    fn open(&self) -> io::Result<File> {
        let file = self.shared.context.root.open_file(&self.path, Links::Refused)?;
        if fingerprint(&DiskStat::of(&file)?) != self.fingerprint {
            return Err(Error::Changed { path: self.shared.path(&self.path) }.into());
        }
        Ok(file)
    }

    /// Whether the handle may be kept; then it is counted.
    fn may_keep(&self) -> bool {
        let free = |kept: usize| (kept < MOST_KEPT).then_some(kept + 1);
        self.len() > KEEP_OPEN_ABOVE
            && self.shared.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).is_ok()
    }
}

impl ReadAt for FileContent {
    fn len(&self) -> u64 {
        self.fingerprint.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.len() || buffer.is_empty() {
            return Ok(0);
        }
        let count = if let Some(file) = self.file.get() {
            file.read_at(buffer, offset)
        } else {
            let file = self.open()?;
            let count = file.read_at(buffer, offset);
            if self.may_keep() && self.file.set(file).is_err() {
                // Another thread kept its own meanwhile.
                self.shared.kept.fetch_sub(1, Ordering::Relaxed);
            }
            count
        };
        let path = || self.shared.path(&self.path);
        match count.map_err(|source| io::Error::from(Error::Read { path: path(), source }))? {
            // It is shorter than it was.
            0 => Err(Error::Changed { path: path() }.into()),
            count => Ok(count),
        }
    }

    fn known_digest(&self) -> Option<[u8; 32]> {
        self.digest
    }
}

impl Drop for FileContent {
    fn drop(&mut self) {
        if self.file.get().is_some() {
            self.shared.kept.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
