//! From a tree to the disk: what a directory shows becomes what the tree holds.
//!
//! Nothing is written that is there already. Where two trees are given, what is on
//! disk and what is to be, only their difference is touched; a path of which it isn't
//! known whether the disk has it as it should is looked at.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::thread::Gid;
use rustix::thread::Uid;

use super::Error;
use super::files::FileMakers;
use super::files::NewFile;
use super::outside::Outside;
use crate::path::Name;
use crate::path::RootPath;
use crate::root_dir::Directory;
use crate::root_dir::DiskStat;
use crate::root_dir::Links;
use crate::root_dir::RootDir;
use crate::sandbox::Watches;
use crate::tree::Content;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::ReadAt;
use crate::tree::Stat;
use crate::tree::Tree;
use crate::tree::same_bytes;

const CAPABILITY: &str = "security.capability";

/// Bytes copied at a time.
pub(super) const PIECE: usize = 256 << 10;

/// What is known of the disk besides the tree that it shows.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Device and inode number of directories, by path.
    pub(super) directories: HashMap<RootPath, (u64, u64)>,
    /// Paths that the tree has and the disk can't have: device nodes without
    /// `CAP_MKNOD`, entries where a mount keeps a directory.
    pub(super) missing: BTreeSet<RootPath>,
    /// Files whose capability couldn't be set.
    pub(super) without_capability: BTreeSet<RootPath>,
    /// Watches on those directories, if steps are recorded with them.
    pub(super) watches: Option<Arc<Watches>>,
}

impl Known {
    /// Nothing but the watches.
    pub(super) fn forget(&mut self) {
        *self = Self { watches: self.watches.take(), ..Self::default() };
    }

    /// Notes that `directory` is at `path`.
    pub(super) fn found(&mut self, path: &RootPath, directory: &Directory, seen: &DiskStat) {
        self.directories.insert(path.clone(), (seen.device, seen.inode));
        if let Some(watches) = &self.watches {
            watches.add(directory, path);
        }
    }
}

/// Counts of what was done, for whoever wants to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// Files, links and directories made.
    pub made: u64,
    /// Entries removed.
    pub removed: u64,
    /// Entries of which only metadata was set.
    pub changed: u64,
}

/// Writes a tree to a directory.
pub(super) struct Writer<'a> {
    disk: &'a RootDir,
    outside: &'a Outside,
    known: &'a mut Known,
    /// First path of each file with several names that was written.
    linked: HashMap<NodeId, RootPath>,
    /// Whether both trees are one, so that only suspects matter.
    same_tree: bool,
    written: Written,
    /// Files with one name, made beside the walk.
    files: FileMakers,
}

/// Two states of one directory.
struct Pending {
    path: RootPath,
    was: Option<NodeId>,
    is: NodeId,
    /// Whether the directory itself was made or looked at.
    suspect: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(disk: &'a RootDir, outside: &'a Outside, known: &'a mut Known) -> Self {
        Self {
            disk,
            outside,
            known,
            linked: HashMap::new(),
            same_tree: false,
            written: Written::default(),
            files: FileMakers::default(),
        }
    }

    /// Makes the disk show `tree`, which it does but for `suspects`.
    ///
    /// # Errors
    /// As [`Writer::switch`].
    pub(super) fn mend(
        mut self,
        tree: &dyn Tree,
        suspects: &BTreeSet<RootPath>,
    ) -> Result<Written, Error> {
        self.same_tree = true;
        self.switch(tree, tree, suspects)
    }

    /// Makes the disk, which shows `old`, show `new`. `suspects` are paths where it
    /// may show something else.
    ///
    /// # Errors
    /// [`Error::Disk`]: the disk shows neither then.
    pub(super) fn switch(
        mut self,
        old: &dyn Tree,
        new: &dyn Tree,
        suspects: &BTreeSet<RootPath>,
    ) -> Result<Written, Error> {
        let suspects = with_names(new, suspects)?;
        let mut pending = vec![Pending {
            path: RootPath::root(),
            was: Some(old.root()),
            is: new.root(),
            suspect: suspects.contains(&RootPath::root()),
        }];
        let mut finished = Vec::new();
        while let Some(next) = pending.pop() {
            self.files.check()?;
            let fail = |source| failed("write", &next.path, source);
            let stat = new.stat(next.is).map_err(fail)?;
            let directory = self
                .disk
                .open_directory(&next.path, Links::Refused)
                .map(Arc::new)
                .map_err(io::Error::from)
                .map_err(fail)?;
            let own = directory.own_stat().map_err(fail)?;
            self.known.found(&next.path, &directory, &own);
            let mut changed = next.suspect || next.was.is_none();
            let mut before = BTreeMap::new();
            if let Some(was) = next.was {
                changed |= old.stat(was).map_err(fail)? != stat;
                before.extend(old.children(was).map_err(fail)?);
            }
            for (name, node) in new.children(next.is).map_err(fail)? {
                let path = next.path.join(&name);
                let was = before.remove(&name);
                if self.outside.covers(&path) {
                    continue;
                }
                let suspect = was.is_none() || suspects.contains(&path);
                if self.same_tree && !suspect {
                    continue;
                }
                let at = At { directory: &directory, path: &path, name: &name };
                let was = was.filter(|_| !suspect || is_directory(old, was));
                changed |= self
                    .child(&at, old, was, new, node, suspect, &mut pending)
                    .map_err(|source| failed("write", &path, source))?;
            }
            for (name, node) in before {
                let path = next.path.join(&name);
                self.remove_known(old, path, node)?;
                changed = true;
            }
            for path in children_of(&suspects, &next.path) {
                let Some(name) = path.file_name() else { continue };
                let known = new.child(next.is, name.as_bytes()).map_err(fail)?;
                if known.is_none() && !self.outside.covers(path) {
                    let at = At { directory: &directory, path, name: &name };
                    self.remove(&at).map_err(|source| failed("remove", path, source))?;
                    changed = true;
                }
            }
            if changed {
                finished.push((next.path, stat));
            }
        }
        self.known.without_capability.extend(self.files.finish()?);
        // Last, since every entry that is made changes the time of its directory.
        for (path, stat) in finished.iter().rev() {
            let set = || -> io::Result<()> {
                let directory = self.disk.open_directory(path, Links::Refused)?;
                set_owner(&directory, stat)?;
                keeping_set_group_id(stat, || directory.set_mode(stat.mode))?;
                directory.set_own_mtime(stat.mtime)
            };
            set().map_err(|source| failed("set the mode of", path, source))?;
        }
        Ok(self.written)
    }

    /// Brings one entry about; says whether its directory changed.
    #[expect(clippy::too_many_arguments, reason = "both trees, each with a node")]
    fn child(
        &mut self,
        at: &At<'_>,
        old: &dyn Tree,
        was: Option<NodeId>,
        new: &dyn Tree,
        node: NodeId,
        suspect: bool,
        pending: &mut Vec<Pending>,
    ) -> io::Result<bool> {
        let stat = new.stat(node)?;
        if stat.kind == Kind::Socket {
            // As good as nothing: no layer holds one.
            return if was.is_some() { self.remove(at) } else { Ok(false) };
        }
        if stat.kind != Kind::Directory && self.outside.is_below(at.path) {
            self.known.missing.insert(at.path.clone());
            return Ok(false);
        }
        self.known.missing.remove(at.path);
        let below = |suspect| Pending { path: at.path.clone(), was, is: node, suspect };
        if let Some(was) = was
            && !suspect
        {
            let before = old.stat(was)?;
            if stat.kind == Kind::Directory && before.kind == Kind::Directory {
                pending.push(below(false));
                return Ok(false);
            }
            if same_node(old, was, new, node)? {
                if metadata(&before) != metadata(&stat)
                    || old.xattr(was, CAPABILITY.as_bytes())?
                        != new.xattr(node, CAPABILITY.as_bytes())?
                {
                    self.set(at, new, node, &stat)?;
                    self.written.changed += 1;
                }
                return Ok(false);
            }
            self.remove(at)?;
            self.make(at, new, node, &stat, pending)?;
            return Ok(true);
        }
        match at.look()? {
            None => self.make(at, new, node, &stat, pending)?,
            Some(seen) if stat.kind == Kind::Directory && seen.stat.kind == Kind::Directory => {
                pending.push(below(true));
                return Ok(false);
            }
            Some(seen) if shows(at, &seen, new, node, &stat)? => {
                self.set(at, new, node, &stat)?;
                self.written.changed += 1;
                return Ok(false);
            }
            Some(_) => {
                self.remove(at)?;
                self.make(at, new, node, &stat, pending)?;
            }
        }
        Ok(true)
    }

    /// Makes an entry where there is nothing.
    fn make(
        &mut self,
        at: &At<'_>,
        tree: &dyn Tree,
        node: NodeId,
        stat: &Stat,
        pending: &mut Vec<Pending>,
    ) -> io::Result<()> {
        self.written.made += 1;
        if stat.kind != Kind::Directory
            && stat.links > 1
            && let Some(first) = self.linked.get(&node)
        {
            let parent = first.parent().unwrap_or_default();
            let holder = self.disk.open_directory(&parent, Links::Refused)?;
            if let Some(old) = first.file_name()
                && at.directory.create_link(at.name, &holder, &old).is_ok()
            {
                return Ok(());
            }
        }
        match stat.kind {
            Kind::Directory => {
                at.directory.create_directory(at.name)?;
                let path = at.path.clone();
                pending.push(Pending { path, was: None, is: node, suspect: true });
                return Ok(());
            }
            Kind::File => {
                self.known.without_capability.remove(at.path);
                let file = NewFile {
                    directory: Arc::clone(at.directory),
                    path: at.path.clone(),
                    name: at.name.clone(),
                    stat: *stat,
                    content: tree.content(node)?,
                    capability: tree.xattr(node, CAPABILITY.as_bytes())?,
                };
                if stat.links > 1 {
                    // The next name is a link to it.
                    self.files.make_now(file)?;
                } else {
                    self.files.make(file);
                }
            }
            Kind::Symlink => {
                at.directory.create_symlink(at.name, &tree.link_target(node)?)?;
                self.set(at, tree, node, stat)?;
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match stat.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(stat.device.major, stat.device.minor);
                let mode = Mode::RUSR | Mode::WUSR;
                match rustix::fs::mknodat(at.directory, at.name.as_bytes(), kind, mode, device) {
                    Err(Errno::PERM) => {
                        self.known.missing.insert(at.path.clone());
                        return Ok(());
                    }
                    other => other?,
                }
                self.set(at, tree, node, stat)?;
            }
            Kind::Socket => return Ok(()),
        }
        if stat.links > 1 {
            self.linked.insert(node, at.path.clone());
        }
        Ok(())
    }

    /// Sets metadata of what is there and no directory.
    fn set(&mut self, at: &At<'_>, tree: &dyn Tree, node: NodeId, stat: &Stat) -> io::Result<()> {
        let name = at.name.as_bytes();
        let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
        let seen = at.directory.stat(at.name)?;
        if (seen.stat.uid, seen.stat.gid) != (stat.uid, stat.gid) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(at.directory, name, Some(uid), Some(gid), flags)?;
        }
        if stat.kind != Kind::Symlink {
            let mode = Mode::from_raw_mode(u32::from(stat.mode));
            keeping_set_group_id(stat, || {
                Ok(rustix::fs::chmodat(at.directory, name, mode, AtFlags::empty())?)
            })?;
        }
        if stat.kind == Kind::File {
            let file = at.directory.open_file(at.name)?;
            match tree.xattr(node, CAPABILITY.as_bytes())? {
                Some(value) => {
                    if set_capability(&file, &value)? {
                        self.known.without_capability.remove(at.path);
                    } else {
                        self.known.without_capability.insert(at.path.clone());
                    }
                }
                None => match rustix::fs::fremovexattr(&file, CAPABILITY) {
                    Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
                    Err(errno) => return Err(errno.into()),
                },
            }
            if stat.links > 1 {
                self.linked.entry(node).or_insert_with(|| at.path.clone());
            }
        }
        at.directory.set_mtime(at.name, stat.mtime)
    }

    /// Removes what `tree` has at `top` and below. What the disk has there besides
    /// came from somebody else and stays.
    fn remove_known(&mut self, tree: &dyn Tree, top: RootPath, node: NodeId) -> Result<(), Error> {
        let mut pending = vec![(top, node, false)];
        while let Some((path, node, entered)) = pending.pop() {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            if self.outside.covers(&path) {
                continue;
            }
            let fail = |source| failed("remove", &path, source);
            if !entered && tree.stat(node).map_err(fail)?.is_directory() {
                let children = tree.children(node).map_err(fail)?;
                pending.push((path.clone(), node, true));
                pending.extend(
                    children.into_iter().map(|(name, child)| (path.join(&name), child, false)),
                );
                continue;
            }
            let remove = || -> io::Result<()> {
                let holder = match self.disk.open_directory(&parent, Links::Refused) {
                    Err(error) if error.is_not_found() => return Ok(()),
                    other => other?,
                };
                let flags = if entered { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                match rustix::fs::unlinkat(&holder, name.as_bytes(), flags) {
                    Err(Errno::NOENT | Errno::NOTEMPTY | Errno::BUSY | Errno::ISDIR) => Ok(()),
                    Err(Errno::NOTDIR) if entered => Ok(()),
                    other => Ok(other?),
                }
            };
            remove().map_err(fail)?;
            self.written.removed += 1;
            self.known.directories.remove(&path);
            self.known.missing.remove(&path);
        }
        Ok(())
    }

    /// Removes an entry and what is below it, but nothing that lies outside. Says
    /// whether there was anything.
    fn remove(&mut self, at: &At<'_>) -> io::Result<bool> {
        let Some(seen) = at.look()? else { return Ok(false) };
        self.written.removed += 1;
        if seen.stat.kind != Kind::Directory {
            at.directory.remove_file(at.name)?;
            return Ok(true);
        }
        self.remove_directory(at.path)?;
        Ok(true)
    }

    /// Removes a directory as far as nothing below it lies outside.
    fn remove_directory(&mut self, top: &RootPath) -> io::Result<()> {
        let mut pending = vec![(top.clone(), false)];
        while let Some((path, entered)) = pending.pop() {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            if entered {
                let holder = self.disk.open_directory(&parent, Links::Refused)?;
                let keeps = self.outside.is_below(&path) || self.outside.covers(&path);
                match rustix::fs::unlinkat(&holder, name.as_bytes(), AtFlags::REMOVEDIR) {
                    Ok(()) => {}
                    Err(Errno::NOTEMPTY | Errno::BUSY) if keeps => {}
                    Err(errno) => return Err(errno.into()),
                }
                self.known.directories.remove(&path);
                continue;
            }
            let directory = self.disk.open_directory(&path, Links::Refused)?;
            pending.push((path.clone(), true));
            for entry in directory.entries()? {
                let below = path.join(&entry.name);
                if self.outside.covers(&below) {
                    continue;
                }
                let kind = match entry.kind {
                    Some(kind) => kind,
                    None => directory.stat(&entry.name)?.stat.kind,
                };
                if kind == Kind::Directory {
                    pending.push((below, false));
                } else {
                    directory.remove_file(&entry.name)?;
                }
            }
        }
        Ok(())
    }

    /// Removes everything that doesn't lie outside: `--cleanup`.
    pub(super) fn clear(mut self) -> Result<Written, Error> {
        let root = RootPath::root();
        let fail = |source| failed("remove", &root, source);
        let directory = self
            .disk
            .open_directory(&root, Links::Refused)
            .map(Arc::new)
            .map_err(io::Error::from)
            .map_err(fail)?;
        for entry in directory.entries().map_err(fail)? {
            let path = root.join(&entry.name);
            if !self.outside.covers(&path) {
                let at = At { directory: &directory, path: &path, name: &entry.name };
                self.remove(&at).map_err(|source| failed("remove", &path, source))?;
            }
        }
        Ok(self.written)
    }
}

/// An entry on disk.
struct At<'a> {
    directory: &'a Arc<Directory>,
    path: &'a RootPath,
    name: &'a Name,
}

impl At<'_> {
    fn look(&self) -> io::Result<Option<DiskStat>> {
        look(self.directory, self.name)
    }
}

/// What `name` is on disk, if anything.
pub(super) fn look(directory: &Directory, name: &Name) -> io::Result<Option<DiskStat>> {
    match directory.stat(name) {
        Ok(seen) => Ok(Some(seen)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn failed(action: &'static str, path: &RootPath, source: io::Error) -> Error {
    Error::Disk { action, path: path.to_string().into(), source }
}

fn is_directory(tree: &dyn Tree, node: Option<NodeId>) -> bool {
    node.and_then(|node| tree.stat(node).ok()).is_some_and(|stat| stat.is_directory())
}

/// Those of `paths` that lie in `directory` itself.
fn children_of<'p>(
    paths: &'p BTreeSet<RootPath>,
    directory: &RootPath,
) -> impl Iterator<Item = &'p RootPath> + use<'p> {
    let depth = directory.components().count() + 1;
    let directory = directory.clone();
    let below = paths.range(directory.clone()..);
    below
        .take_while(move |path| path.starts_with(&directory))
        .filter(move |path| path.components().count() == depth)
}

/// `paths`, all above them, and every name of a file that one of them names.
fn with_names(tree: &dyn Tree, paths: &BTreeSet<RootPath>) -> Result<BTreeSet<RootPath>, Error> {
    let mut all = paths.clone();
    for path in paths {
        let fail = |source| failed("look up", path, source);
        if let Some(node) = tree.find(path).map_err(fail)?
            && tree.stat(node).map_err(fail)?.links > 1
        {
            all.extend(names_of(tree, node).map_err(fail)?);
        }
    }
    let mut above = BTreeSet::new();
    for path in &all {
        let mut parent = path.parent();
        while let Some(path) = parent {
            parent = path.parent();
            if !above.insert(path) {
                break;
            }
        }
    }
    all.extend(above);
    Ok(all)
}

/// Every path of the file `node`; none for a directory.
pub(super) fn names_of(tree: &dyn Tree, node: NodeId) -> io::Result<BTreeSet<RootPath>> {
    let mut paths = BTreeSet::new();
    if tree.stat(node)?.is_directory() {
        return Ok(paths);
    }
    for (directory, name) in tree.names(node)?.unwrap_or_default() {
        let (mut trail, mut at) = (vec![name], directory);
        while let Some((parent, name)) = tree.parent(at)? {
            trail.push(name);
            at = parent;
        }
        paths.insert(trail.iter().rev().fold(RootPath::root(), |path, name| path.join(name)));
    }
    Ok(paths)
}

fn metadata(stat: &Stat) -> (u16, u32, u32, crate::tree::Timestamp) {
    (stat.mode, stat.uid, stat.gid, stat.mtime)
}

/// Whether two nodes, neither a directory, are the same but for metadata: kind,
/// bytes, and what they are linked with.
fn same_node(old: &dyn Tree, was: NodeId, new: &dyn Tree, is: NodeId) -> io::Result<bool> {
    let (before, after) = (old.stat(was)?, new.stat(is)?);
    if (before.kind, before.size, before.device) != (after.kind, after.size, after.device) {
        return Ok(false);
    }
    if (before.links > 1 || after.links > 1) && names_of(old, was)? != names_of(new, is)? {
        return Ok(false);
    }
    match after.kind {
        Kind::File => same_bytes(&old.content(was)?, &new.content(is)?),
        Kind::Symlink => Ok(old.link_target(was)? == new.link_target(is)?),
        _ => Ok(true),
    }
}

/// Whether the disk shows at `at`, but for metadata, what the tree has, and linked
/// with nothing.
fn shows(
    at: &At<'_>,
    seen: &DiskStat,
    tree: &dyn Tree,
    node: NodeId,
    stat: &Stat,
) -> io::Result<bool> {
    if (seen.stat.kind, seen.stat.size, seen.stat.device) != (stat.kind, stat.size, stat.device)
        || seen.stat.links > 1
        || stat.links > 1
    {
        return Ok(false);
    }
    match stat.kind {
        Kind::File => {
            let file: Content = std::sync::Arc::new(OnDisk::new(at.directory.open_file(at.name)?)?);
            same_bytes(&with_digest(file, &tree.content(node)?)?, &tree.content(node)?)
        }
        Kind::Symlink => Ok(at.directory.read_link(at.name)? == tree.link_target(node)?),
        _ => Ok(true),
    }
}

/// A file's bytes, with their digest if `other` knows its own: one is read, not both.
fn with_digest(file: Content, other: &Content) -> io::Result<Content> {
    struct Digested(Content, [u8; 32]);
    impl ReadAt for Digested {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buffer, offset)
        }
        fn known_digest(&self) -> Option<[u8; 32]> {
            Some(self.1)
        }
    }
    if other.known_digest().is_none() {
        return Ok(file);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    loop {
        let count = file.read_at(&mut buffer, offset)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        offset += count as u64;
    }
    let digest = *hasher.finalize().as_bytes();
    Ok(std::sync::Arc::new(Digested(file, digest)))
}

/// An open file as a content; whoever has it sees to it that it isn't written to.
pub(super) struct OnDisk {
    file: File,
    length: u64,
}

impl OnDisk {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, length })
    }
}

impl ReadAt for OnDisk {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buffer, offset)
    }
}

/// Gives an open file or directory its owner, if it has another one.
pub(super) fn set_owner(file: &impl AsFd, stat: &Stat) -> io::Result<()> {
    let seen = rustix::fs::fstat(file)?;
    if (seen.st_uid, seen.st_gid) == (stat.uid, stat.gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
    Ok(rustix::fs::fchown(file, Some(uid), Some(gid))?)
}

/// Gives a file its capability; says whether that is allowed here.
pub(super) fn set_capability(file: &File, value: &[u8]) -> io::Result<bool> {
    match rustix::fs::fsetxattr(file, CAPABILITY, value, XattrFlags::empty()) {
        Err(Errno::PERM | Errno::NOTSUP) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

/// Value of the capability of the file `name`, if it has one.
pub(super) fn capability(directory: &Directory, name: &Name) -> io::Result<Option<Vec<u8>>> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::path::Path::new("/proc/self/fd")
        .join(directory.as_fd().as_raw_fd().to_string())
        .join(std::ffi::OsStr::from_bytes(name.as_bytes()));
    let mut value = [0; 64];
    match rustix::fs::lgetxattr(&path, CAPABILITY, &mut value) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Does `act`, which sets the mode of a file of `stat`, as a member of its group if need
/// be: without CAP_FSETID, which kaniko's pods lack, the kernel takes set-group-ID away
/// from files of other groups, and says nothing.
pub(super) fn keeping_set_group_id(
    stat: &Stat,
    act: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    if stat.mode & 0o2000 == 0 {
        return act();
    }
    let before: Vec<Gid> = rustix::process::getgroups()?;
    let joined = rustix::thread::set_thread_groups(&[Gid::from_raw(stat.gid)]);
    let done = act();
    if joined.is_ok() {
        rustix::thread::set_thread_groups(&before)?;
    }
    done
}
