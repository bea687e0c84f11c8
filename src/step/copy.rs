//! COPY: puts a selection into a root.
//!
//! Contents aren't read here: the root keeps a handle on each source file, and
//! whoever writes the layer reads it once, checking that it still is what the key
//! was made of.

use std::collections::HashMap;
use std::collections::HashSet;

use super::Error;
use super::ownership::Accounts;
use super::ownership::Mode;
use super::select::Item;
use super::select::Selection;
use super::source::Source;
use crate::ignore::Matcher;
use crate::overlay::Attributes;
use crate::overlay::Overlay;
use crate::path::Name;
use crate::path::RootPath;
use crate::plan::step::CopyStep;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Stat;
use crate::tree::Timestamp;
use crate::tree::resolve::resolve;

/// Longest symbolic-link-free name of a capability attribute.
const CAPABILITY: &[u8] = b"security.capability";

/// Who owns what is copied, and with which mode.
pub(crate) struct Rules {
    owner: Option<(u32, u32)>,
    mode: Option<Mode>,
    resets_owner: bool,
    now: Timestamp,
}

impl Rules {
    pub(crate) fn new(
        step: &CopyStep,
        root: &Overlay,
        resets_owner: bool,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let owner = match &step.chown {
            None => None,
            Some(spec) => Some(Accounts::read(&*root.after())?.owner(spec)?),
        };
        let mode = match &step.chmod {
            None => None,
            Some(text) => Some(Mode::parse(text).ok_or_else(|| {
                Error::Ownership(format!("`--chmod={text}` is neither octal nor symbolic"))
            })?),
        };
        Ok(Self { owner, mode, resets_owner, now })
    }

    /// Attributes of a copied node.
    fn copied(&self, stat: &Stat) -> Attributes {
        let mode = match &self.mode {
            Some(mode) if stat.kind != Kind::Symlink => mode.apply(stat.mode, stat.is_directory()),
            _ => stat.mode,
        };
        let (uid, gid) = match self.owner {
            Some(owner) => owner,
            None if self.resets_owner => (0, 0),
            None => (stat.uid, stat.gid),
        };
        Attributes { mode, uid, gid, mtime: stat.mtime }
    }

    /// Attributes of a directory that is made because the destination needs it.
    pub(crate) fn created(&self) -> Attributes {
        let mode = self.mode.as_ref().map_or(0o755, |mode| mode.apply(0o755, true));
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        Attributes { mode, uid, gid, mtime: self.now }
    }
}

/// Where something goes: a directory that is there, and a name in it. `None` as
/// name means the root directory itself.
pub(crate) struct Place {
    pub(crate) directory: NodeId,
    pub(crate) name: Option<Name>,
    pub(crate) path: RootPath,
}

/// Runs `step` with what was selected from `source`.
///
/// # Errors
/// Conflicts between files and directories, and those of reading the source.
pub fn copy(
    root: &Overlay,
    step: &CopyStep,
    source: &Source<'_>,
    selection: &Selection,
    exclude: Option<&Matcher>,
    now: Timestamp,
) -> Result<(), Error> {
    let rules = Rules::new(step, root, source.resets_owner(), now)?;
    let mut copier = Copier { root, source, exclude, rules, link: step.link };
    let as_directory = step.destination.ends_with('/');
    let destination = RootPath::clamped(step.destination.as_bytes()).unwrap_or_default();
    // `--parents` copies a file at a time; names of one file stay links of each other.
    let mut kept_links = HashMap::new();
    for item in &selection.items {
        match item {
            Item::Inline { name, body } => {
                let place = copier.place(&destination, as_directory, name)?;
                let mut stat = Stat::new(Kind::File, 0o644);
                stat.mtime = now;
                let attributes = Attributes {
                    uid: copier.rules.owner.map_or(0, |owner| owner.0),
                    gid: copier.rules.owner.map_or(0, |owner| owner.1),
                    ..copier.rules.copied(&stat)
                };
                copier.make_way(&place, &name.to_string())?;
                let content = std::sync::Arc::new(body.clone().into_bytes());
                if let Some(name) = &place.name {
                    root.put_file(place.directory, name, &attributes, content)
                        .map_err(Error::io("write", &place.path))?;
                }
            }
            Item::Whole { named, node } => {
                copier.whole(&destination, as_directory, named, *node)?;
            }
            Item::Kept { relative, node } => {
                copier.kept(&destination, relative, *node, &mut kept_links)?;
            }
        }
    }
    Ok(())
}

struct Copier<'a> {
    root: &'a Overlay,
    source: &'a Source<'a>,
    exclude: Option<&'a Matcher>,
    rules: Rules,
    link: bool,
}

impl Copier<'_> {
    fn excluded(&self, path: &RootPath) -> bool {
        self.exclude.is_some_and(|matcher| matcher.excludes(path))
    }

    /// Where a single file called `name` goes.
    fn place(
        &self,
        destination: &RootPath,
        as_directory: bool,
        name: &Name,
    ) -> Result<Place, Error> {
        let into = |directory: RootPath| -> Result<Place, Error> {
            let node = self.directories(&directory)?;
            let path = directory.join(name);
            Ok(Place { directory: node, name: Some(name.clone()), path })
        };
        if as_directory || destination.is_root() {
            return into(destination.clone());
        }
        if self.link {
            return self.exact(destination);
        }
        let there = resolve(&*self.root.after(), destination, true)
            .map_err(Error::io("look up", destination))?;
        if let Some(node) = there.node
            && self.stat(node, destination)?.is_directory()
        {
            return into(there.path);
        }
        self.exact(&there.path)
    }

    /// The place `path` itself, with the directories above it made.
    fn exact(&self, path: &RootPath) -> Result<Place, Error> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let directory = self.directories(&parent)?;
                Ok(Place { directory, name: Some(name), path: path.clone() })
            }
            _ => Ok(Place {
                directory: self.root.after().root(),
                name: None,
                path: RootPath::root(),
            }),
        }
    }

    /// Makes `path` and every missing directory above it.
    fn directories(&self, path: &RootPath) -> Result<NodeId, Error> {
        if self.link {
            let attributes = self.rules.created();
            return replace_directories(self.root, path, &attributes, &mut HashSet::new());
        }
        make_directories(self.root, path, &self.rules.created())
    }

    fn stat(&self, node: NodeId, path: &RootPath) -> Result<Stat, Error> {
        self.root.after().stat(node).map_err(Error::io("look up", path))
    }

    /// Takes away what a file at `place` replaces; a directory stays, as an error.
    fn make_way(&self, place: &Place, from: &str) -> Result<(), Error> {
        let Some(name) = &place.name else {
            return Err(Error::FileOverDirectory {
                from: from.to_owned(),
                path: place.path.clone(),
            });
        };
        let there = self
            .root
            .after()
            .child(place.directory, name.as_bytes())
            .map_err(Error::io("look up", &place.path))?;
        let Some(node) = there else { return Ok(()) };
        if self.stat(node, &place.path)?.is_directory() {
            if self.link {
                return self
                    .root
                    .remove(place.directory, name)
                    .map_err(Error::io("replace", &place.path));
            }
            return Err(Error::FileOverDirectory {
                from: from.to_owned(),
                path: place.path.clone(),
            });
        }
        self.root.remove(place.directory, name).map_err(Error::io("replace", &place.path))
    }

    fn whole(
        &mut self,
        destination: &RootPath,
        as_directory: bool,
        named: &RootPath,
        node: NodeId,
    ) -> Result<(), Error> {
        let tree = self.source.tree();
        let stat = tree.stat(node).map_err(Error::io("look up", named))?;
        if !stat.is_directory() {
            let name = named
                .file_name()
                .unwrap_or_else(|| Name::new(b"file").expect("a constant that is a name"));
            if self.excluded(&RootPath::root().join(&name)) {
                return Ok(());
            }
            let place = self.place(destination, as_directory, &name)?;
            self.make_way(&place, &named.to_string())?;
            return self.put(&place, node, &stat, &mut HashMap::new());
        }
        let (target, top) = self.top_directory(destination, named)?;
        let mut links = HashMap::new();
        self.contents(node, &stat, target, &top, &mut links)?;
        // The top keeps its mode and owner and takes the time of its source.
        let there = self.stat(target, &top)?;
        let attributes =
            Attributes { mode: there.mode, uid: there.uid, gid: there.gid, mtime: stat.mtime };
        self.root.set_attributes(target, &attributes).map_err(Error::io("change", &top))
    }

    /// The directory that a copied directory's contents go into.
    fn top_directory(
        &self,
        destination: &RootPath,
        named: &RootPath,
    ) -> Result<(NodeId, RootPath), Error> {
        if self.link {
            return Ok((self.directories(destination)?, destination.clone()));
        }
        let there = resolve(&*self.root.after(), destination, true)
            .map_err(Error::io("look up", destination))?;
        if let Some(node) = there.node
            && !self.stat(node, destination)?.is_directory()
        {
            return Err(Error::DirectoryOverFile {
                from: named.to_string(),
                path: destination.clone(),
            });
        }
        Ok((self.directories(&there.path)?, there.path))
    }

    /// Copies everything in `from` into the directory `into`.
    fn contents(
        &mut self,
        from: NodeId,
        _stat: &Stat,
        into: NodeId,
        at: &RootPath,
        links: &mut HashMap<NodeId, NodeId>,
    ) -> Result<(), Error> {
        let tree = self.source.tree();
        // (source directory, path below the top, destination directory, its path);
        // directories get their times when their contents are complete.
        let mut open = vec![(from, RootPath::root(), into, at.clone())];
        let mut finished: Vec<(NodeId, RootPath, Attributes)> = Vec::new();
        while let Some((from, below, into, at)) = open.pop() {
            for (name, node) in tree.children(from).map_err(Error::io("list", &below))? {
                let path = below.join(&name);
                let stat = tree.stat(node).map_err(Error::io("look up", &path))?;
                let target = at.join(&name);
                let skipped = self.excluded(&path);
                if !stat.is_directory() {
                    if skipped {
                        continue;
                    }
                    let place = Place { directory: into, name: Some(name), path: target };
                    self.make_way(&place, &path.to_string())?;
                    self.put(&place, node, &stat, links)?;
                    continue;
                }
                if skipped && !self.keeps_something_below(node, &path)? {
                    continue;
                }
                let attributes = self.rules.copied(&stat);
                let made = self.nested_directory(into, &name, &target, &path, &attributes)?;
                finished.push((made, target.clone(), attributes));
                open.push((node, path, made, target));
            }
        }
        for (node, path, attributes) in finished.iter().rev() {
            self.root.set_attributes(*node, attributes).map_err(Error::io("change", path))?;
        }
        Ok(())
    }

    /// Whether an excluded directory holds something that `!` takes back in.
    fn keeps_something_below(&self, node: NodeId, path: &RootPath) -> Result<bool, Error> {
        let Some(matcher) = self.exclude else { return Ok(true) };
        if !matcher.may_reinclude_below(path) {
            return Ok(false);
        }
        let mut kept = false;
        super::select::walk(self.source.tree(), node, path, &mut |path, _| {
            kept |= !matcher.excludes(path);
        })
        .map_err(Error::io("list", path))?;
        Ok(kept)
    }

    fn nested_directory(
        &self,
        into: NodeId,
        name: &Name,
        target: &RootPath,
        from: &RootPath,
        attributes: &Attributes,
    ) -> Result<NodeId, Error> {
        let there =
            self.root.after().child(into, name.as_bytes()).map_err(Error::io("look up", target))?;
        if let Some(node) = there {
            if self.stat(node, target)?.is_directory() {
                return Ok(node);
            }
            if !self.link {
                return Err(Error::DirectoryOverFile {
                    from: from.to_string(),
                    path: target.clone(),
                });
            }
            self.root.remove(into, name).map_err(Error::io("replace", target))?;
        }
        self.root.make_directory(into, name, attributes).map_err(Error::io("make", target))
    }

    fn kept(
        &mut self,
        destination: &RootPath,
        relative: &RootPath,
        node: NodeId,
        links: &mut HashMap<NodeId, NodeId>,
    ) -> Result<(), Error> {
        if self.excluded(relative) {
            return Ok(());
        }
        let stat = self.source.tree().stat(node).map_err(Error::io("look up", relative))?;
        let base = if self.link {
            destination.clone()
        } else {
            resolve(&*self.root.after(), destination, true)
                .map_err(Error::io("look up", destination))?
                .path
        };
        let Some(name) = relative.file_name() else {
            self.directories(&base)?;
            return Ok(());
        };
        let target = base.join_path(relative);
        let parent = target.parent().unwrap_or_default();
        let directory = self.directories(&parent)?;
        if stat.is_directory() {
            let attributes = self.rules.copied(&stat);
            let made = self.nested_directory(directory, &name, &target, relative, &attributes)?;
            return self
                .root
                .set_attributes(made, &attributes)
                .map_err(Error::io("change", &target));
        }
        let place = Place { directory, name: Some(name), path: target };
        self.make_way(&place, &relative.to_string())?;
        self.put(&place, node, &stat, links)
    }

    /// Puts one node that is no directory.
    fn put(
        &self,
        place: &Place,
        node: NodeId,
        stat: &Stat,
        links: &mut HashMap<NodeId, NodeId>,
    ) -> Result<(), Error> {
        let Some(name) = &place.name else { return Ok(()) };
        let tree = self.source.tree();
        let attributes = self.rules.copied(stat);
        let read = || Error::io("read", &place.path);
        let write = || Error::io("write", &place.path);
        match stat.kind {
            Kind::File => {
                if stat.links > 1
                    && let Some(&made) = links.get(&node)
                {
                    return self.root.link(made, place.directory, name).map_err(write());
                }
                let content = tree.content(node).map_err(read())?;
                let made = self
                    .root
                    .put_file(place.directory, name, &attributes, content)
                    .map_err(write())?;
                if let Some(capability) = self.source.capability(node).map_err(read())? {
                    self.root.set_xattr(made, CAPABILITY, &capability).map_err(write())?;
                }
                if stat.links > 1 {
                    links.insert(node, made);
                }
            }
            Kind::Symlink => {
                let target = tree.link_target(node).map_err(read())?;
                self.root
                    .put_symlink(place.directory, name, &attributes, &target)
                    .map_err(write())?;
            }
            // As BuildKit: a socket in the context becomes an empty file.
            Kind::Socket => {
                self.root
                    .put_file(place.directory, name, &attributes, std::sync::Arc::new(Vec::new()))
                    .map_err(write())?;
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let device = if stat.kind == Kind::Fifo { Device::default() } else { stat.device };
                self.root
                    .put_special(place.directory, name, &attributes, stat.kind, device)
                    .map_err(write())?;
            }
            Kind::Directory => {}
        }
        Ok(())
    }
}

/// Makes `path` and every missing directory above it, links followed; what is
/// there already stays as it is.
///
/// # Errors
/// [`Error::DirectoryOverFile`] when something on the way is no directory.
pub(crate) fn make_directories(
    root: &Overlay,
    path: &RootPath,
    attributes: &Attributes,
) -> Result<NodeId, Error> {
    let resolved = resolve(&*root.after(), path, true).map_err(Error::io("look up", path))?.path;
    let mut node = root.after().root();
    let mut at = RootPath::root();
    for part in resolved.components() {
        let Some(name) = Name::new(part) else { continue };
        at = at.join(&name);
        let child = root.after().child(node, part).map_err(Error::io("look up", &at))?;
        node = match child {
            Some(child) => {
                let stat = root.after().stat(child).map_err(Error::io("look up", &at))?;
                if !stat.is_directory() {
                    return Err(Error::DirectoryOverFile { from: path.to_string(), path: at });
                }
                child
            }
            None => root.make_directory(node, &name, attributes).map_err(Error::io("make", &at))?,
        };
    }
    Ok(node)
}

/// As [`make_directories`], the way `--link` does it: links aren't followed, and
/// every directory on the way becomes a fresh one over what was there. Those in
/// `fresh` are already, and stay as they are; the others are added to it.
pub(crate) fn replace_directories(
    root: &Overlay,
    path: &RootPath,
    attributes: &Attributes,
    fresh: &mut HashSet<RootPath>,
) -> Result<NodeId, Error> {
    let mut node = root.after().root();
    let mut at = RootPath::root();
    for part in path.components() {
        let Some(name) = Name::new(part) else { continue };
        at = at.join(&name);
        let child = root.after().child(node, part).map_err(Error::io("look up", &at))?;
        let is_directory = match child {
            Some(child) => {
                root.after().stat(child).map_err(Error::io("look up", &at))?.is_directory()
            }
            None => false,
        };
        node = match child {
            Some(child) if is_directory && fresh.contains(&at) => child,
            Some(child) if is_directory => {
                root.set_attributes(child, attributes).map_err(Error::io("change", &at))?;
                child
            }
            there => {
                if there.is_some() {
                    root.remove(node, &name).map_err(Error::io("replace", &at))?;
                }
                root.make_directory(node, &name, attributes).map_err(Error::io("make", &at))?
            }
        };
        fresh.insert(at.clone());
    }
    Ok(node)
}
