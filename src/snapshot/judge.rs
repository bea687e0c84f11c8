//! Decides what is a change, and brings the changes into canonical form.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::io;

use super::Error;
use crate::change::Change;
use crate::change::ChangeSet;
use crate::change::Put;
use crate::path::RootPath;
use crate::tree::Content;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Stat;
use crate::tree::Tree;

/// The extended attribute that a layer carries.
const CAPABILITY: &[u8] = b"security.capability";

/// A node as far as it matters.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) stat: Stat,
    pub(super) link_target: Option<Vec<u8>>,
    pub(super) capability: Option<Vec<u8>>,
}

impl Seen {
    /// Looks at `node`; `None` for a socket, or if the tree doesn't know it.
    pub(super) fn look(tree: &dyn Tree, node: NodeId) -> io::Result<Option<Self>> {
        let stat = match tree.stat(node) {
            Ok(stat) if stat.kind == Kind::Socket => return Ok(None),
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_link = stat.kind == Kind::Symlink;
        Ok(Some(Self {
            stat,
            link_target: if is_link { Some(tree.link_target(node)?) } else { None },
            capability: tree.xattr(node, CAPABILITY)?,
        }))
    }
}

/// How closely two nodes are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scrutiny {
    /// Metadata and bytes.
    Bytes,
    /// Metadata.
    Metadata,
    /// Type and time.
    Time,
}

/// The rules of `snapshot.rs`. Only a test that wants to see the alarm ring turns
/// one off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) subtrees: bool,
    pub(super) names: bool,
    pub(super) relations: bool,
}

impl Rules {
    pub(super) const ALL: Self = Self { subtrees: true, names: true, relations: true };
}

/// What a path led to, before and after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pair {
    pub(super) before: Option<NodeId>,
    pub(super) after: Option<NodeId>,
}

/// The paths to be judged. Complete in this sense: every path where the trees
/// differ is among them, unless a directory that went is above it.
pub(super) type Touched = BTreeMap<RootPath, Pair>;

/// The two states, whatever they are kept in.
pub(super) trait Sides {
    fn before(&mut self, node: NodeId) -> io::Result<Option<Seen>>;
    fn after(&mut self, node: NodeId) -> io::Result<Option<Seen>>;
    fn find_before(&mut self, path: &RootPath) -> io::Result<Option<NodeId>>;
    fn find_after(&mut self, path: &RootPath) -> io::Result<Option<NodeId>>;
    /// Every name of a file.
    fn names_before(&mut self, node: NodeId) -> Result<Vec<RootPath>, Error>;
    /// Every name of a file.
    fn names_after(&mut self, node: NodeId) -> Result<Vec<RootPath>, Error>;
    /// Whether two regular files of equal length hold the same bytes.
    fn same_content(&mut self, before: NodeId, after: NodeId) -> io::Result<bool>;
    /// Bytes of a regular file as it is after.
    fn content(&mut self, node: NodeId) -> io::Result<Content>;
}

/// Judges `touched` and gives the change set.
pub(super) fn judge(
    touched: &Touched,
    sides: &mut dyn Sides,
    scrutiny: Scrutiny,
    rules: Rules,
) -> Result<ChangeSet, Error> {
    let mut judge = Judge { sides, emitted: BTreeMap::new(), deleted: BTreeSet::new() };
    let mut suspects = Vec::new();
    let mut directories = HashMap::new();
    for (path, pair) in touched {
        match judge.verdict(path, *pair, scrutiny)? {
            Verdict::Same => {}
            Verdict::Replaced(before, after) => suspects.push((path, before, after)),
            Verdict::Put(node, seen) => {
                judge.emitted.insert(path.clone(), (node, seen));
            }
            Verdict::Gone => {
                let Some(parent) = path.parent() else { continue };
                let stays = match directories.get(&parent) {
                    Some(stays) => *stays,
                    None => {
                        let stays = judge.is_directory_after(&parent)?;
                        directories.insert(parent, stays);
                        stays
                    }
                };
                if stays {
                    judge.deleted.insert(path.clone());
                }
            }
        }
    }
    if rules.names {
        judge.let_names_travel()?;
    }
    if rules.relations {
        judge.emit_changed_relations(&suspects)?;
        if rules.names {
            judge.let_names_travel()?;
        }
    }
    judge.emit_ancestors()?;
    judge.finish()
}

enum Verdict {
    Same,
    /// Equal in everything, but another file: its links may have changed.
    Replaced(NodeId, NodeId),
    Put(NodeId, Seen),
    Gone,
}

struct Judge<'a> {
    sides: &'a mut dyn Sides,
    emitted: BTreeMap<RootPath, (NodeId, Seen)>,
    deleted: BTreeSet<RootPath>,
}

impl Judge<'_> {
    fn verdict(
        &mut self,
        path: &RootPath,
        pair: Pair,
        scrutiny: Scrutiny,
    ) -> Result<Verdict, Error> {
        let failed = || Error::read(path);
        let before = match pair.before {
            Some(node) => self.sides.before(node).map_err(failed())?.map(|seen| (node, seen)),
            None => None,
        };
        let after = match pair.after {
            Some(node) => self.sides.after(node).map_err(failed())?.map(|seen| (node, seen)),
            None => None,
        };
        let (old, new) = match (before, after) {
            (None, None) => return Ok(Verdict::Same),
            (Some(_), None) => return Ok(Verdict::Gone),
            (None, Some((node, seen))) => return Ok(Verdict::Put(node, seen)),
            (Some(old), Some(new)) => (old, new),
        };
        let compare_bytes = scrutiny == Scrutiny::Bytes && new.1.stat.kind == Kind::File;
        if metadata_differs(&old.1, &new.1, scrutiny)
            || (compare_bytes && !self.sides.same_content(old.0, new.0).map_err(failed())?)
        {
            return Ok(Verdict::Put(new.0, new.1));
        }
        if new.1.stat.is_directory() || old.0 == new.0 {
            return Ok(Verdict::Same);
        }
        Ok(Verdict::Replaced(old.0, new.0))
    }

    fn is_directory_after(&mut self, path: &RootPath) -> Result<bool, Error> {
        let Some(node) = self.sides.find_after(path).map_err(Error::read(path))? else {
            return Ok(false);
        };
        let seen = self.sides.after(node).map_err(Error::read(path))?;
        Ok(seen.is_some_and(|seen| seen.stat.is_directory()))
    }

    /// Rule 2.
    fn let_names_travel(&mut self) -> Result<(), Error> {
        let mut done = HashSet::new();
        let linked: Vec<(NodeId, Seen)> = self
            .emitted
            .values()
            .filter(|(node, seen)| {
                !seen.stat.is_directory() && seen.stat.links > 1 && done.insert(*node)
            })
            .cloned()
            .collect();
        for (node, seen) in linked {
            for name in self.sides.names_after(node)? {
                self.emitted.entry(name).or_insert_with(|| (node, seen.clone()));
            }
        }
        Ok(())
    }

    /// Rule 3. A name that isn't emitted keeps the file it had, so among those the
    /// links must be as before. Of two names whose relation changed, one at least
    /// leads to another file than before: a suspect.
    fn emit_changed_relations(
        &mut self,
        suspects: &[(&RootPath, NodeId, NodeId)],
    ) -> Result<(), Error> {
        let mut found = BTreeSet::new();
        for &(path, before, after) in suspects {
            if self.emitted.contains_key(path) {
                continue;
            }
            let look = |seen: io::Result<Option<Seen>>| -> Result<bool, Error> {
                let seen = seen.map_err(Error::read(path))?;
                Ok(seen.is_some_and(|seen| seen.stat.links > 1))
            };
            let mut partners = Vec::new();
            if look(self.sides.before(before))? {
                for name in self.sides.names_before(before)? {
                    let now = self.sides.find_after(&name).map_err(Error::read(&name))?;
                    if now.is_some_and(|now| now != after) {
                        partners.push(name);
                    }
                }
            }
            if look(self.sides.after(after))? {
                for name in self.sides.names_after(after)? {
                    let then = self.sides.find_before(&name).map_err(Error::read(&name))?;
                    if then.is_some_and(|then| then != before) {
                        partners.push(name);
                    }
                }
            }
            partners
                .retain(|name| !self.emitted.contains_key(name) && !self.deleted.contains(name));
            if !partners.is_empty() {
                found.extend(partners);
                found.insert(path.clone());
            }
        }
        for path in found {
            self.emit(path)?;
        }
        Ok(())
    }

    /// Makes a put of what is at `path` after; nothing if there is nothing.
    fn emit(&mut self, path: RootPath) -> Result<(), Error> {
        let Some(node) = self.sides.find_after(&path).map_err(Error::read(&path))? else {
            return Ok(());
        };
        if let Some(seen) = self.sides.after(node).map_err(Error::read(&path))? {
            self.emitted.insert(path, (node, seen));
        }
        Ok(())
    }

    fn emit_ancestors(&mut self) -> Result<(), Error> {
        let mut missing = BTreeSet::new();
        for path in self.emitted.keys().chain(&self.deleted) {
            let mut above = path.parent();
            while let Some(parent) = above {
                // The ancestors of what is emitted or missing are seen to already.
                if parent.is_root()
                    || self.emitted.contains_key(&parent)
                    || !missing.insert(parent.clone())
                {
                    break;
                }
                above = parent.parent();
            }
        }
        for path in missing {
            self.emit(path)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<ChangeSet, Error> {
        let Self { sides, emitted, deleted } = self;
        let mut changes = Vec::with_capacity(emitted.len() + deleted.len());
        let mut deleted = deleted.into_iter().peekable();
        for (path, (node, seen)) in emitted {
            while let Some(gone) = deleted.next_if(|gone| *gone < path) {
                changes.push(Change::Delete(gone));
            }
            let content = match seen.stat.kind {
                Kind::File => Some(sides.content(node).map_err(Error::read(&path))?),
                _ => None,
            };
            let Seen { stat, link_target, capability } = seen;
            changes.push(Change::Put(Put { path, node, stat, link_target, capability, content }));
        }
        changes.extend(deleted.map(Change::Delete));
        Ok(ChangeSet { changes })
    }
}

/// Whether two nodes differ in what is known without reading them.
fn metadata_differs(before: &Seen, after: &Seen, scrutiny: Scrutiny) -> bool {
    let (old, new) = (&before.stat, &after.stat);
    if old.kind != new.kind {
        return true;
    }
    let is_directory = new.is_directory();
    if scrutiny == Scrutiny::Time {
        return !is_directory && old.mtime != new.mtime;
    }
    (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid)
        || before.capability != after.capability
        || (!is_directory
            && ((old.size, old.mtime, old.device) != (new.size, new.mtime, new.device)
                || before.link_target != after.link_target))
}
