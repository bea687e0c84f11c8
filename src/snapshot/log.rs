//! The fold of the change log.
//!
//! An event names a directory by its id; the directory may be called something
//! else before and after, so the name is judged at both paths. Paths come from
//! [`Tree::parent`] and [`Tree::names`]. A tree that can't answer these costs a
//! search: names that the log itself mentions are tried first, and if a file must
//! have more of them, the whole tree is walked, once.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::io;

use super::Error;
use super::Snapshotter;
use super::judge;
use super::judge::Pair;
use super::judge::Rules;
use super::judge::Scrutiny;
use super::judge::Seen;
use super::judge::Sides;
use super::judge::Touched;
use crate::change::ChangeLog;
use crate::change::ChangeSet;
use crate::change::Event;
use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Content;
use crate::tree::NodeId;
use crate::tree::Tree;
use crate::tree::same_bytes;

/// Finds changes by folding the change log. If the log says that it lost events,
/// both trees are walked in full instead: slow, and the same result. Whoever
/// reports fallbacks looks at [`ChangeLog::lost`].
#[derive(Debug)]
pub struct LogSnapshotter {
    rules: Rules,
}

impl Default for LogSnapshotter {
    fn default() -> Self {
        Self { rules: Rules::ALL }
    }
}

impl LogSnapshotter {
    /// A snapshotter that needs no mark: the trees carry the past.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that breaks a rule.
    #[cfg(test)]
    pub(super) fn with_rules(rules: Rules) -> Self {
        Self { rules }
    }
}

impl Snapshotter for LogSnapshotter {
    fn mark(&mut self, _: &dyn Tree) -> Result<(), Error> {
        Ok(())
    }

    fn changes(
        &mut self,
        before: &dyn Tree,
        after: &dyn Tree,
        log: &ChangeLog,
    ) -> Result<ChangeSet, Error> {
        let mut fold = Fold {
            before: Paths::new(before),
            after: Paths::new(after),
            touched: Touched::new(),
            rules: self.rules,
        };
        if log.lost.is_some() {
            let pair = Pair { before: Some(before.root()), after: Some(after.root()) };
            fold.touch_below(RootPath::root(), pair, Depth::Everything)?;
        } else {
            // Entries come first, so their names are known when nodes ask for names.
            for event in &log.events {
                fold.event(event)?;
            }
        }
        let Fold { before, after, touched, .. } = fold;
        let mut sides = Trees { before, after };
        judge::judge(&touched, &mut sides, Scrutiny::Bytes, self.rules)
    }
}

/// How far below a touched directory to look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Where it is another directory now.
    Replaced,
    /// Everywhere.
    Everything,
}

struct Fold<'a> {
    before: Paths<'a>,
    after: Paths<'a>,
    touched: Touched,
    rules: Rules,
}

impl Fold<'_> {
    fn event(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::Entry { directory, name } => {
                let old = self.before.of_directory(*directory)?;
                let new = self.after.of_directory(*directory)?;
                for path in distinct(old, new) {
                    self.touch(path.join(name))?;
                }
            }
            Event::Node(node) => {
                let mut paths: BTreeSet<RootPath> = self.before.of(*node)?.into_iter().collect();
                paths.extend(self.after.of(*node)?);
                for path in paths {
                    self.touch(path)?;
                }
            }
        }
        Ok(())
    }

    fn touch(&mut self, path: RootPath) -> Result<(), Error> {
        if self.touched.contains_key(&path) {
            return Ok(());
        }
        let pair = Pair { before: self.before.find(&path)?, after: self.after.find(&path)? };
        self.touch_below(path, pair, Depth::Replaced)
    }

    /// Touches `path`, and by rule 1 what is below it. No recursion: a tree may be
    /// deeper than a stack.
    fn touch_below(&mut self, path: RootPath, pair: Pair, depth: Depth) -> Result<(), Error> {
        let mut pending = vec![(path, pair)];
        while let Some((path, pair)) = pending.pop() {
            if self.touched.insert(path.clone(), pair).is_some() {
                continue;
            }
            self.before.mention(pair.before, &path);
            self.after.mention(pair.after, &path);
            let same = pair.before == pair.after && depth == Depth::Replaced;
            let Some(after) = pair.after.filter(|_| !same && self.rules.subtrees) else {
                continue;
            };
            if !is_directory(self.after.tree, after, &path)? {
                continue;
            }
            let mut children: BTreeMap<Name, Pair> = BTreeMap::new();
            for (name, node) in self.after.tree.children(after).map_err(Error::read(&path))? {
                children.insert(name, Pair { before: None, after: Some(node) });
            }
            if let Some(before) = pair.before
                && is_directory(self.before.tree, before, &path)?
            {
                let old = self.before.tree.children(before).map_err(Error::read(&path))?;
                for (name, node) in old {
                    let none = Pair { before: None, after: None };
                    children.entry(name).or_insert(none).before = Some(node);
                }
            }
            pending.extend(children.into_iter().map(|(name, pair)| (path.join(&name), pair)));
        }
        Ok(())
    }
}

fn distinct(one: Option<RootPath>, two: Option<RootPath>) -> impl Iterator<Item = RootPath> {
    let two = if one == two { None } else { two };
    one.into_iter().chain(two)
}

fn is_directory(tree: &dyn Tree, node: NodeId, path: &RootPath) -> Result<bool, Error> {
    tree.stat(node).map(|stat| stat.is_directory()).map_err(Error::read(path))
}

/// `None` for a node or directory that the tree doesn't have.
fn if_there<T>(result: io::Result<T>, path: &RootPath) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::read(path)(error)),
    }
}

/// Finds the paths of nodes in a tree.
struct Paths<'a> {
    tree: &'a dyn Tree,
    /// Directories asked for so far; `None`: not in the tree.
    directories: HashMap<NodeId, Option<RootPath>>,
    /// Nodes at paths asked for so far, for directories only.
    found: HashMap<RootPath, Option<NodeId>>,
    /// Names of files that the log mentions.
    known: HashMap<NodeId, BTreeSet<RootPath>>,
    /// Every name of every node, if it had to be searched.
    index: Option<HashMap<NodeId, Vec<RootPath>>>,
}

impl<'a> Paths<'a> {
    fn new(tree: &'a dyn Tree) -> Self {
        Self {
            tree,
            directories: HashMap::from([(tree.root(), Some(RootPath::root()))]),
            found: HashMap::from([(RootPath::root(), Some(tree.root()))]),
            known: HashMap::new(),
            index: None,
        }
    }

    /// Notes that `node` has the name `path`.
    fn mention(&mut self, node: Option<NodeId>, path: &RootPath) {
        if let Some(node) = node {
            self.known.entry(node).or_default().insert(path.clone());
        }
    }

    /// The node at `path`. Directories on the way are looked up once.
    fn find(&mut self, path: &RootPath) -> Result<Option<NodeId>, Error> {
        if let Some(found) = self.found.get(path) {
            return Ok(*found);
        }
        // Down from the deepest ancestor that is known.
        let mut below: Vec<RootPath> = vec![path.clone()];
        let mut node = None;
        let mut above = path.parent();
        while let Some(parent) = above {
            if let Some(found) = self.found.get(&parent) {
                node = *found;
                break;
            }
            above = parent.parent();
            below.push(parent);
        }
        while let Some(step) = below.pop() {
            node = match (node, step.file_name()) {
                (Some(directory), Some(name)) => {
                    self.tree.child(directory, name.as_bytes()).map_err(Error::read(&step))?
                }
                _ => None,
            };
            if !below.is_empty() {
                self.found.insert(step, node);
            }
        }
        Ok(node)
    }

    /// The path of a directory; `None` if it isn't in the tree, or no directory.
    fn of_directory(&mut self, directory: NodeId) -> Result<Option<RootPath>, Error> {
        // Up to the first directory that is known, then down again.
        let mut chain = Vec::new();
        let mut at = directory;
        let mut path = loop {
            if let Some(known) = self.directories.get(&at) {
                break known.clone();
            }
            let parent = match self.tree.parent(at) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    let found = self.indexed(directory)?.first().cloned();
                    let is_directory = match &found {
                        Some(path) => is_directory(self.tree, directory, path)?,
                        None => false,
                    };
                    let found = found.filter(|_| is_directory);
                    self.directories.insert(directory, found.clone());
                    return Ok(found);
                }
                parent => if_there(parent, &RootPath::root())?.flatten(),
            };
            let Some((parent, name)) = parent else {
                chain.push((at, None));
                break None;
            };
            // A directory that was removed may still know its old place.
            let there = if_there(self.tree.child(parent, name.as_bytes()), &RootPath::root())?;
            if there.flatten() != Some(at) || chain.iter().any(|(seen, _)| *seen == parent) {
                chain.push((at, None));
                break None;
            }
            chain.push((at, Some(name)));
            at = parent;
        };
        for (node, name) in chain.into_iter().rev() {
            path = match (&path, name) {
                (Some(path), Some(name)) => Some(path.join(&name)),
                _ => None,
            };
            self.directories.insert(node, path.clone());
        }
        Ok(path)
    }

    /// Every path of a node; none if it isn't in the tree.
    fn of(&mut self, node: NodeId) -> Result<Vec<RootPath>, Error> {
        let root = RootPath::root();
        let Some(stat) = if_there(self.tree.stat(node), &root)? else { return Ok(Vec::new()) };
        if stat.is_directory() {
            return Ok(self.of_directory(node)?.into_iter().collect());
        }
        let Some(names) = self.tree.names(node).or_else(not_there).map_err(Error::read(&root))?
        else {
            if let Some(known) = self.known.get(&node)
                && known.len() >= usize::try_from(stat.links).unwrap_or(usize::MAX)
            {
                return Ok(known.iter().cloned().collect());
            }
            return self.indexed(node);
        };
        let mut paths = Vec::with_capacity(names.len());
        for (directory, name) in names {
            if let Some(path) = self.of_directory(directory)?
                && self.tree.child(directory, name.as_bytes()).map_err(Error::read(&path))?
                    == Some(node)
            {
                paths.push(path.join(&name));
            }
        }
        Ok(paths)
    }

    /// The paths of `node` by a walk of the whole tree, which is made once.
    fn indexed(&mut self, node: NodeId) -> Result<Vec<RootPath>, Error> {
        if self.index.is_none() {
            let mut index: HashMap<NodeId, Vec<RootPath>> = HashMap::new();
            for_each(self.tree, |path, node| {
                index.entry(node).or_default().push(path.clone());
                Ok(())
            })?;
            self.index = Some(index);
        }
        Ok(self.index.as_ref().and_then(|index| index.get(&node)).cloned().unwrap_or_default())
    }
}

fn not_there<T: Default>(error: io::Error) -> io::Result<T> {
    if error.kind() == io::ErrorKind::NotFound { Ok(T::default()) } else { Err(error) }
}

/// Calls `visit` for every path of `tree` with the node there, parents first.
pub(super) fn for_each(
    tree: &dyn Tree,
    mut visit: impl FnMut(&RootPath, NodeId) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut pending = vec![(RootPath::root(), tree.root())];
    while let Some((path, node)) = pending.pop() {
        visit(&path, node)?;
        if is_directory(tree, node, &path)? {
            let children = tree.children(node).map_err(Error::read(&path))?;
            pending.extend(children.into_iter().map(|(name, child)| (path.join(&name), child)));
        }
    }
    Ok(())
}

/// Two trees as the judge wants to see them.
struct Trees<'a> {
    before: Paths<'a>,
    after: Paths<'a>,
}

/// The judge adds the path to an error itself.
fn unwrapped<T>(result: Result<T, Error>) -> io::Result<T> {
    result.map_err(|error| match error {
        Error::Read { source, .. } => source,
        Error::NotMarked => io::ErrorKind::Other.into(),
    })
}

impl Sides for Trees<'_> {
    fn before(&mut self, node: NodeId) -> io::Result<Option<Seen>> {
        Seen::look(self.before.tree, node)
    }

    fn after(&mut self, node: NodeId) -> io::Result<Option<Seen>> {
        Seen::look(self.after.tree, node)
    }

    fn find_before(&mut self, path: &RootPath) -> io::Result<Option<NodeId>> {
        unwrapped(self.before.find(path))
    }

    fn find_after(&mut self, path: &RootPath) -> io::Result<Option<NodeId>> {
        unwrapped(self.after.find(path))
    }

    fn names_before(&mut self, node: NodeId) -> Result<Vec<RootPath>, Error> {
        self.before.of(node)
    }

    fn names_after(&mut self, node: NodeId) -> Result<Vec<RootPath>, Error> {
        self.after.of(node)
    }

    fn same_content(&mut self, before: NodeId, after: NodeId) -> io::Result<bool> {
        same_bytes(&self.before.tree.content(before)?, &self.after.tree.content(after)?)
    }

    fn content(&mut self, node: NodeId) -> io::Result<Content> {
        self.after.tree.content(node)
    }
}
