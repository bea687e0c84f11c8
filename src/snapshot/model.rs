//! A file tree in memory that records events as the overlay does.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::change::Change;
use crate::change::ChangeLog;
use crate::change::ChangeSet;
use crate::change::Event;
use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Content;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Stat;
use crate::tree::Timestamp;
use crate::tree::Tree;
use crate::tree::Xattr;

#[derive(Clone, Debug)]
struct Node {
    stat: Stat,
    target: Vec<u8>,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    children: BTreeMap<Name, NodeId>,
}

/// The tree. Files without a name stay, as they do for a process that has them open.
#[derive(Clone, Debug)]
pub(super) struct Model {
    nodes: BTreeMap<NodeId, Node>,
    next: u64,
    /// Whether it can tell parents and names, as the overlay can.
    pub(super) tells_names: bool,
    /// Time that new and written things get.
    pub(super) now: Timestamp,
    pub(super) log: ChangeLog,
    /// How often a directory was listed.
    pub(super) listed: Cell<usize>,
}

pub(super) const ROOT: NodeId = NodeId(1);

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

pub(super) fn path(text: &str) -> RootPath {
    RootPath::clamped(text.as_bytes()).expect("no NUL")
}

impl Model {
    pub(super) fn new() -> Self {
        let mut model = Self {
            nodes: BTreeMap::new(),
            next: 1,
            tells_names: true,
            now: Timestamp::seconds(100),
            log: ChangeLog::default(),
            listed: Cell::new(0),
        };
        model.add(Kind::Directory, 0o755);
        model
    }

    fn add(&mut self, kind: Kind, mode: u16) -> NodeId {
        let id = NodeId(self.next);
        self.next += 1;
        let mut stat = Stat::new(kind, mode);
        stat.mtime = self.now;
        stat.links = u32::from(kind == Kind::Directory);
        let node = Node {
            stat,
            target: Vec::new(),
            content: Vec::new(),
            xattrs: BTreeMap::new(),
            children: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
        id
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    pub(super) fn edit(&mut self, id: NodeId) -> &mut Stat {
        self.log.events.insert(Event::Node(id));
        &mut self.nodes.get_mut(&id).expect("there").stat
    }

    fn entry(&mut self, directory: NodeId, name: &Name) {
        self.log.events.insert(Event::Entry { directory, name: name.clone() });
        let now = self.now;
        self.nodes.get_mut(&directory).expect("there").stat.mtime = now;
    }

    pub(super) fn at(&self, text: &str) -> NodeId {
        self.find(&path(text)).expect("readable").unwrap_or_else(|| panic!("no {text}"))
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub(super) fn kind(&self, id: NodeId) -> Kind {
        self.node(id).stat.kind
    }

    /// Directories that can be reached from the root.
    pub(super) fn directories(&self) -> Vec<NodeId> {
        let mut found = vec![ROOT];
        let mut at = 0;
        while at < found.len() {
            let children = self.node(found[at]).children.values();
            found.extend(children.filter(|id| self.kind(**id) == Kind::Directory));
            at += 1;
        }
        found
    }

    fn is_below(&self, node: NodeId, top: NodeId) -> bool {
        node == top || self.node(top).children.values().any(|child| self.is_below(node, *child))
    }

    fn put(&mut self, directory: NodeId, name: &Name, node: NodeId) {
        if self.kind(node) != Kind::Directory {
            self.nodes.get_mut(&node).expect("there").stat.links += 1;
        }
        self.nodes.get_mut(&directory).expect("there").children.insert(name.clone(), node);
        self.entry(directory, name);
    }

    fn take(&mut self, directory: NodeId, name: &Name) -> Option<NodeId> {
        let node = self.nodes.get_mut(&directory).expect("there").children.remove(name)?;
        if self.kind(node) != Kind::Directory {
            self.nodes.get_mut(&node).expect("there").stat.links -= 1;
        }
        self.entry(directory, name);
        Some(node)
    }

    /// Makes a node; `None` if the name is taken.
    pub(super) fn make(&mut self, directory: NodeId, name: &Name, kind: Kind) -> Option<NodeId> {
        if self.node(directory).children.contains_key(name) {
            return None;
        }
        let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
        let node = self.add(kind, mode);
        self.put(directory, name, node);
        Some(node)
    }

    pub(super) fn symlink(&mut self, directory: NodeId, name: &Name, target: &[u8]) {
        if let Some(node) = self.make(directory, name, Kind::Symlink) {
            let node = self.nodes.get_mut(&node).expect("there");
            node.target = target.to_vec();
            node.stat.size = target.len() as u64;
        }
    }

    pub(super) fn write(&mut self, node: NodeId, content: &[u8]) {
        let now = self.now;
        let stat = self.edit(node);
        stat.mtime = now;
        stat.size = content.len() as u64;
        self.nodes.get_mut(&node).expect("there").content = content.to_vec();
    }

    pub(super) fn set_xattr(&mut self, node: NodeId, name: &[u8], value: &[u8]) {
        self.edit(node);
        let node = self.nodes.get_mut(&node).expect("there");
        node.xattrs.insert(name.to_vec(), value.to_vec());
    }

    /// Removes a name and everything below it, from the leaves up.
    pub(super) fn remove(&mut self, directory: NodeId, name: &Name) {
        let Some(&node) = self.node(directory).children.get(name) else { return };
        for child in self.node(node).children.keys().cloned().collect::<Vec<_>>() {
            self.remove(node, &child);
        }
        self.take(directory, name);
    }

    /// rename(2); with `exchange`, of both. Nothing where the kernel refuses.
    pub(super) fn rename(
        &mut self,
        (from, old): (NodeId, &Name),
        (to, new): (NodeId, &Name),
        exchange: bool,
    ) {
        let Some(&node) = self.node(from).children.get(old) else { return };
        let there = self.node(to).children.get(new).copied();
        if self.is_below(to, node) || there == Some(node) {
            return;
        }
        if exchange {
            let Some(there) = there.filter(|there| !self.is_below(from, *there)) else { return };
            self.take(from, old);
            self.take(to, new);
            self.put(to, new, node);
            self.put(from, old, there);
            return;
        }
        if let Some(there) = there {
            let both = (self.kind(node) == Kind::Directory, self.kind(there) == Kind::Directory);
            let empty = self.node(there).children.is_empty();
            if !matches!(both, (false, false) | (true, true)) || !empty {
                return;
            }
            self.take(to, new);
        }
        self.take(from, old);
        self.put(to, new, node);
    }

    /// link(2); nothing if the name is taken or the file is a directory or has no name.
    pub(super) fn link(&mut self, node: NodeId, directory: NodeId, name: &Name) {
        let taken = self.node(directory).children.contains_key(name);
        let orphan = self.node(node).stat.links == 0;
        if !taken && !orphan && self.kind(node) != Kind::Directory {
            self.put(directory, name, node);
        }
    }

    /// Does what whoever unpacks the layer does.
    pub(super) fn apply(&mut self, set: &ChangeSet) {
        let mut written: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        for change in &set.changes {
            let node = match change.path().file_name() {
                Some(name) => match self.place(change, &name, &mut written) {
                    Some(node) => node,
                    None => continue,
                },
                None => ROOT,
            };
            let Change::Put(put) = change else { panic!("the root was deleted") };
            let links = self.node(node).stat.links;
            let node = self.nodes.get_mut(&node).expect("there");
            node.stat = Stat { links, ..put.stat };
            node.target = put.link_target.clone().unwrap_or_default();
            node.content = put.content.as_ref().map(bytes).unwrap_or_default();
            node.xattrs.clear();
            if let Some(value) = &put.capability {
                node.xattrs.insert(b"security.capability".to_vec(), value.clone());
            }
        }
    }

    /// Deletes what a change takes away and makes what it puts there, empty.
    fn place(
        &mut self,
        change: &Change,
        name: &Name,
        written: &mut BTreeMap<NodeId, NodeId>,
    ) -> Option<NodeId> {
        let parent = change.path().parent().expect("not the root");
        let parent = self.find(&parent).expect("readable").expect("parents come first");
        let there = self.node(parent).children.get(name).copied();
        let put = match change {
            Change::Delete(path) => {
                assert!(there.is_some(), "nothing to delete at {path}");
                self.remove(parent, name);
                return None;
            }
            Change::Put(put) => put,
        };
        let there =
            there.filter(|there| put.stat.is_directory() && self.kind(*there) == Kind::Directory);
        if there.is_some() {
            return there;
        }
        self.remove(parent, name);
        let node = written.get(&put.node).copied();
        let node = node.unwrap_or_else(|| self.add(put.stat.kind, 0));
        self.put(parent, name, node);
        written.insert(put.node, node);
        Some(node)
    }

    /// Everything a layer can say of the tree, one line per entry.
    pub(super) fn describe(&self) -> String {
        let mut lines = Vec::new();
        let mut groups: BTreeMap<NodeId, Vec<RootPath>> = BTreeMap::new();
        let mut pending = vec![(RootPath::root(), ROOT)];
        while let Some((path, id)) = pending.pop() {
            let node = self.node(id);
            let stat = &node.stat;
            if stat.kind == Kind::Socket {
                continue;
            }
            if stat.is_directory() {
                let children = node.children.iter();
                pending.extend(children.map(|(name, child)| (path.join(name), *child)));
            } else {
                groups.entry(id).or_default().push(path.clone());
            }
            let time = if stat.is_directory() { Timestamp::default() } else { stat.mtime };
            let capability = node.xattrs.get(&b"security.capability"[..]);
            lines.push(format!(
                "{path} {:?} {:o} {}:{} {time:?} {capability:?} {:?} {:?}",
                stat.kind, stat.mode, stat.uid, stat.gid, node.target, node.content
            ));
        }
        for mut group in groups.into_values().filter(|group| group.len() > 1) {
            group.sort();
            lines.push(format!("links {group:?}"));
        }
        lines.sort();
        lines.join("\n")
    }
}

/// The bytes of a content.
pub(super) fn bytes(content: &Content) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(content.len()).expect("small")];
    crate::tree::read_exact_at(content, &mut bytes, 0).expect("readable");
    bytes
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Tree for Model {
    fn root(&self) -> NodeId {
        ROOT
    }

    fn stat(&self, node: NodeId) -> io::Result<Stat> {
        self.nodes.get(&node).map(|node| node.stat).ok_or_else(missing)
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> io::Result<Option<NodeId>> {
        let node = self.nodes.get(&directory).ok_or_else(missing)?;
        Ok(node.children.get(name).copied())
    }

    fn children(&self, directory: NodeId) -> io::Result<Vec<(Name, NodeId)>> {
        self.listed.set(self.listed.get() + 1);
        let node = self.nodes.get(&directory).ok_or_else(missing)?;
        Ok(node.children.iter().map(|(name, id)| (name.clone(), *id)).collect())
    }

    fn link_target(&self, node: NodeId) -> io::Result<Vec<u8>> {
        self.nodes.get(&node).map(|node| node.target.clone()).ok_or_else(missing)
    }

    fn xattrs(&self, node: NodeId) -> io::Result<Vec<Xattr>> {
        let node = self.nodes.get(&node).ok_or_else(missing)?;
        Ok(node.xattrs.clone().into_iter().collect())
    }

    fn content(&self, node: NodeId) -> io::Result<Content> {
        let node = self.nodes.get(&node).ok_or_else(missing)?;
        Ok(Arc::new(node.content.clone()))
    }

    fn parent(&self, directory: NodeId) -> io::Result<Option<(NodeId, Name)>> {
        if !self.tells_names {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if directory == ROOT {
            return Ok(None);
        }
        self.holders(directory).into_iter().next().map(Some).ok_or_else(missing)
    }

    fn names(&self, node: NodeId) -> io::Result<Option<Vec<(NodeId, Name)>>> {
        Ok(self.tells_names.then(|| self.holders(node)))
    }
}

impl Model {
    /// Whoever has `node` as a child, reachable or not.
    fn holders(&self, node: NodeId) -> Vec<(NodeId, Name)> {
        let mut found = Vec::new();
        for (id, holder) in &self.nodes {
            let names = holder.children.iter().filter(|(_, child)| **child == node);
            found.extend(names.map(|(name, _)| (*id, name.clone())));
        }
        found
    }
}
