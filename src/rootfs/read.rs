//! From the disk to the table: what a step changed is found on disk and done to the
//! overlay's table as COPY does its work, so that one judge finds the layer.
//!
//! Two questions, asked apart. *Where to look*: at what the recorder noted, or
//! everywhere. *What is there*: metadata and, where these don't tell, bytes.
//!
//! The inode's change time answers most of it: no program can set it back, and
//! writing, `chmod`, `rename`, `link` and `unlink` all advance it. A file whose change
//! time is before the step began is what it was, at the path where it was; unless a
//! directory above it was exchanged for another one, which its inode number shows.
//! What the table doesn't have and what didn't change since belongs to somebody else:
//! to the builder's own image, or to the job it runs in.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::fs::StatxFlags;

use super::Error;
use super::outside::Outside;
use super::write::Known;
use super::write::OnDisk;
use super::write::capability;
use super::write::failed;
use super::write::look;
use super::write::names_of;
use crate::overlay::Attributes;
use crate::overlay::Overlay;
use crate::path::Name;
use crate::path::RootPath;
use crate::root_dir::Directory;
use crate::root_dir::DiskStat;
use crate::root_dir::Links;
use crate::root_dir::RootDir;
use crate::sandbox::Recording;
use crate::snapshot::Mode;
use crate::tree::Content;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::ReadAt;
use crate::tree::Stat;
use crate::tree::Timestamp;
use crate::tree::Tree;
use crate::tree::same_bytes;

const CAPABILITY: &[u8] = b"security.capability";

/// How a change is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scrutiny {
    /// By change times, then metadata, then bytes.
    Changed,
    /// As kaniko: by metadata and bytes, metadata, or times, of every file.
    Walk(Mode),
}

/// Reads changes from a directory into an overlay.
pub(super) struct Reader<'a> {
    pub(super) disk: &'a RootDir,
    pub(super) outside: &'a Outside,
    pub(super) known: &'a mut Known,
    pub(super) overlay: &'a Overlay,
    /// When the step began.
    pub(super) since: Timestamp,
    pub(super) scrutiny: Scrutiny,
}

/// Paths to compare, each by itself.
pub(super) type Candidates = BTreeSet<RootPath>;

impl Reader<'_> {
    /// Where to look by what was recorded.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub(super) fn recorded(&mut self, recording: &Recording) -> Result<Candidates, Error> {
        let mut found = Candidates::new();
        let tree = self.overlay.after();
        let watched = recording.watched.iter().filter(|path| {
            // Somebody else's, or new: then it was noted as it was made.
            tree.find(path).is_ok_and(|node| node.is_some())
        });
        for path in recording.touched.iter().chain(watched) {
            if self.outside.hides(path) {
                continue;
            }
            let fail = |source| failed("look up", path, source);
            let mut above = Some(path.clone());
            while let Some(path) = above {
                above = path.parent();
                if !found.insert(path) {
                    break;
                }
            }
            let node = tree.find(path).map_err(fail)?;
            if let Some(node) = node
                && tree.stat(node).map_err(fail)?.links > 1
            {
                found.extend(names_of(&*tree, node).map_err(fail)?);
            }
            let Some((directory, name, seen)) = self.on_disk(path).map_err(fail)? else {
                continue;
            };
            if seen.stat.kind != Kind::Directory {
                continue;
            }
            let moved = recording.moved.contains(path);
            if moved
                || (node.is_none() && !self.is_foreign(&directory, &name, &seen).map_err(fail)?)
            {
                self.below(path, true, &mut found)?;
            }
        }
        if !recording.owners.is_empty() {
            self.owned_by(&recording.owners, &mut found)?;
        }
        Ok(found)
    }

    /// Adds the files of these users; those made in this step were noted as they were
    /// made.
    fn owned_by(&self, users: &BTreeSet<u32>, found: &mut Candidates) -> Result<(), Error> {
        let tree = self.overlay.after();
        let mut pending = vec![(RootPath::root(), tree.root())];
        while let Some((path, node)) = pending.pop() {
            let fail = |source| failed("look up", &path, source);
            let stat = tree.stat(node).map_err(fail)?;
            if stat.is_directory() {
                let children = tree.children(node).map_err(fail)?;
                pending.extend(children.into_iter().map(|(name, node)| (path.join(&name), node)));
            }
            let mut above = users.contains(&stat.uid).then_some(path);
            while let Some(path) = above {
                above = path.parent();
                if self.outside.hides(&path) || !found.insert(path) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Everything that could have changed anywhere.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub(super) fn everywhere(&mut self) -> Result<Candidates, Error> {
        let mut found = Candidates::from([RootPath::root()]);
        self.below(&RootPath::root(), false, &mut found)?;
        Ok(found)
    }

    /// Whether a directory that the table doesn't have was there before the step, and
    /// isn't one of the table's under another name.
    fn is_foreign(&self, directory: &Directory, name: &Name, seen: &DiskStat) -> io::Result<bool> {
        let identity = (seen.device, seen.inode);
        Ok(!is_new(directory, name, self.since)?
            && !self.known.directories.values().any(|known| *known == identity))
    }

    /// Adds what could have changed below the directory `top`; everything, if it is
    /// `fresh`: made or moved there.
    fn below(&mut self, top: &RootPath, fresh: bool, found: &mut Candidates) -> Result<(), Error> {
        let tree = self.overlay.after();
        let top_node = tree.find(top).map_err(|source| failed("look up", top, source))?;
        let mut pending = vec![(top.clone(), top_node, fresh)];
        while let Some((path, node, fresh)) = pending.pop() {
            let fail = |source| failed("read", &path, source);
            let directory = match self.disk.open_directory(&path, Links::Refused) {
                Err(error) if error.is_not_found() => continue,
                other => other.map_err(|error| fail(error.into()))?,
            };
            let own = directory.own_stat().map_err(fail)?;
            // A directory that is still the same one was not moved here, so neither was
            // what is in it.
            let is_same = match self.known.directories.get(&path) {
                Some(known) => *known == (own.device, own.inode),
                None => !fresh && (path.is_root() || node.is_none() || own.ctime < self.since),
            };
            // What is known of a path that the table lost is of no use.
            let is_same = is_same && !(fresh && node.is_none());
            let mut children: BTreeMap<Name, NodeId> = BTreeMap::new();
            if let Some(node) = node
                && tree.stat(node).map_err(fail)?.is_directory()
            {
                children.extend(tree.children(node).map_err(fail)?);
            }
            let entries = directory.entries().map_err(fail)?;
            for entry in &entries {
                let path = path.join(&entry.name);
                let child = children.remove(&entry.name);
                if self.outside.hides(&path) {
                    continue;
                }
                let Some(seen) = look(&directory, &entry.name).map_err(fail)? else { continue };
                let trusted = is_same && seen.ctime < self.since;
                let is_directory = seen.stat.kind == Kind::Directory;
                match child {
                    // Somebody else's, from before. What was made in it since counts.
                    None if trusted => {
                        if is_directory {
                            pending.push((path, None, false));
                        }
                        continue;
                    }
                    None if is_directory
                        && is_same
                        && self.is_foreign(&directory, &entry.name, &seen).map_err(fail)? =>
                    {
                        pending.push((path, None, false));
                        continue;
                    }
                    None => {}
                    Some(_) if is_directory => {}
                    Some(_) if trusted && self.scrutiny == Scrutiny::Changed => continue,
                    Some(_) => {}
                }
                if is_directory {
                    pending.push((path.clone(), child, !is_same || child.is_none()));
                }
                let mut above = Some(path);
                while let Some(path) = above {
                    above = path.parent();
                    if !found.insert(path) {
                        break;
                    }
                }
            }
            for name in children.into_keys() {
                let path = path.join(&name);
                if !self.outside.hides(&path) && !self.known.missing.contains(&path) {
                    found.insert(path);
                }
            }
        }
        Ok(())
    }

    fn on_disk(&self, path: &RootPath) -> io::Result<Option<(Directory, Name, DiskStat)>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let directory = match self.disk.open_directory(&parent, Links::Refused) {
            Ok(directory) => directory,
            Err(error) => return no_way(error.into()).map(|()| None),
        };
        Ok(look(&directory, &name)?.map(|seen| (directory, name, seen)))
    }

    /// The paths of the table that the disk shows otherwise. Bytes are compared at
    /// `changed` alone.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub(super) fn differing(&mut self, changed: &Candidates) -> Result<Candidates, Error> {
        let tree = self.overlay.after();
        let mut differing = Candidates::new();
        let mut pending = vec![(RootPath::root(), tree.root())];
        while let Some((path, node)) = pending.pop() {
            let fail = |source| failed("compare", &path, source);
            let directory = match self.disk.open_directory(&path, Links::Refused) {
                Ok(directory) => Some(directory),
                Err(error) => no_way(error.into()).map(|()| None).map_err(fail)?,
            };
            for (name, child) in tree.children(node).map_err(fail)? {
                let path = path.join(&name);
                if self.outside.covers(&path) || self.known.missing.contains(&path) {
                    continue;
                }
                let stat = tree.stat(child).map_err(fail)?;
                let seen = match &directory {
                    Some(directory) => look(directory, &name).map_err(fail)?,
                    None => None,
                };
                let same = match (&seen, &directory) {
                    (Some(seen), Some(directory)) => {
                        let at = Entry { directory, name: &name, seen };
                        comparable(&stat) == comparable(&seen.stat)
                            && (stat.is_directory()
                                || !changed.contains(&path)
                                || !self.differs(&at, &*tree, child, &stat).map_err(fail)?)
                    }
                    _ => stat.kind == Kind::Socket,
                };
                if !same {
                    differing.insert(path.clone());
                }
                if stat.is_directory() && seen.is_some() {
                    pending.push((path, child));
                }
            }
        }
        Ok(differing)
    }

    /// Does to the table what was done to the disk at `candidates`. `scratch` takes
    /// the bytes of changed files, because the next step may write to them.
    ///
    /// # Errors
    /// [`Error::Disk`]; the table is then in between.
    pub(super) fn apply(&mut self, candidates: Candidates, scratch: &Path) -> Result<(), Error> {
        let mut work = Work {
            spool: Spool::new(scratch)
                .map_err(|source| Error::Scratch { path: scratch.to_owned(), source })?,
            claims: HashMap::new(),
            inodes: HashMap::new(),
            directories: BTreeSet::new(),
            open: None,
        };
        for path in &candidates {
            self.entry(path, &mut work).map_err(|source| failed("read", path, source))?;
        }
        // Edits set the times of directories to now; the disk knows better.
        let tree = self.overlay.after();
        for path in candidates.iter().chain(&work.directories) {
            let fail = |source| failed("read", path, source);
            if self.outside.covers(path) {
                continue;
            }
            let Some(node) = tree.find(path).map_err(fail)? else { continue };
            let stat = tree.stat(node).map_err(fail)?;
            if !stat.is_directory() {
                continue;
            }
            let directory = match self.disk.open_directory(path, Links::Refused) {
                Ok(directory) => directory,
                Err(error) => {
                    if let (Err(error), Some(watches)) = (no_way(error.into()), &self.known.watches)
                    {
                        watches.give_up(&error.to_string());
                    }
                    continue;
                }
            };
            let seen = directory.own_stat().map_err(fail)?;
            self.known.found(path, &directory, &seen);
            if self.counts(&stat, &seen.stat) {
                self.overlay.set_attributes(node, &attributes(&seen.stat)).map_err(fail)?;
            }
        }
        Ok(())
    }

    /// Whether metadata differ in what this scrutiny looks at.
    fn counts(&self, old: &Stat, new: &Stat) -> bool {
        let all =
            (old.mode, old.uid, old.gid, old.mtime) != (new.mode, new.uid, new.gid, new.mtime);
        match self.scrutiny {
            Scrutiny::Walk(Mode::Time) => old.mtime != new.mtime,
            _ => all,
        }
    }

    fn entry(&self, path: &RootPath, work: &mut Work) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        if self.outside.hides(path) || self.outside.is_below(path) && !self.is_plain(path)? {
            return Ok(());
        }
        let tree = self.overlay.after();
        let Some(holder) = tree.find(&parent)? else { return Ok(()) };
        if !tree.stat(holder)?.is_directory() {
            return Ok(());
        }
        let node = tree.child(holder, name.as_bytes())?;
        if work.open.as_ref().is_none_or(|(at, _)| *at != parent) {
            let opened = match self.disk.open_directory(&parent, Links::Refused) {
                Ok(directory) => Some(directory),
                Err(error) => no_way(error.into()).map(|()| None)?,
            };
            work.open = Some((parent.clone(), opened));
        }
        let Some((_, Some(directory))) = &work.open else { return Ok(()) };
        let seen = look(directory, &name)?.filter(|seen| seen.stat.kind != Kind::Socket);
        let Some(seen) = seen else {
            if node.is_some() && !self.known.missing.contains(path) {
                self.overlay.remove(holder, &name)?;
                work.directories.insert(parent);
            }
            return Ok(());
        };
        let at = Entry { directory, name: &name, seen: &seen };
        let identity = (seen.device, seen.inode);
        let is_directory = seen.stat.kind == Kind::Directory;
        if !is_directory && let Some(&linked) = work.inodes.get(&identity) {
            if node != Some(linked) {
                make_way(self.overlay, &*tree, holder, &name, node, false)?;
                self.overlay.link(linked, holder, &name)?;
                work.directories.insert(parent);
            }
            return Ok(());
        }
        let old = match node {
            Some(node) => Some((node, tree.stat(node)?)),
            None => None,
        };
        let free = |node: &NodeId| work.claims.get(node).is_none_or(|owner| *owner == identity);
        let new = match old {
            Some((node, _)) if is_directory && tree.stat(node)?.is_directory() => node,
            Some((node, stat)) if stat.kind == seen.stat.kind && free(&node) => {
                if self.differs(&at, &*tree, node, &stat)? {
                    work.directories.insert(parent);
                    self.put(&at, &*tree, holder, Some(node), None, &mut work.spool)?
                } else {
                    if self.counts(&stat, &seen.stat) {
                        self.overlay.set_attributes(node, &attributes(&seen.stat))?;
                    }
                    self.set_capability(&at, &*tree, node, path)?;
                    node
                }
            }
            other => {
                // Another kind, or the other name of it was taken by another file.
                let bytes = match other {
                    Some((node, stat))
                        if stat.kind == Kind::File
                            && seen.stat.kind == Kind::File
                            && !self.differs(&at, &*tree, node, &stat)? =>
                    {
                        Some(tree.content(node)?)
                    }
                    _ => None,
                };
                work.directories.insert(parent);
                let node = other.map(|(node, _)| node);
                self.put(&at, &*tree, holder, node, bytes, &mut work.spool)?
            }
        };
        if !is_directory {
            work.claims.insert(new, identity);
            if seen.stat.links > 1 {
                work.inodes.insert(identity, new);
            }
        }
        Ok(())
    }

    /// Whether `path`, above something that lies outside, is a directory in the table
    /// as it is on disk.
    fn is_plain(&self, path: &RootPath) -> io::Result<bool> {
        let tree = self.overlay.after();
        match tree.find(path)? {
            Some(node) => Ok(tree.stat(node)?.is_directory()),
            // It came with the mount, unless something is in it that counts.
            None => Ok(true),
        }
    }

    /// Whether bytes, link target or device differ, as far as this scrutiny looks.
    fn differs(
        &self,
        at: &Entry<'_>,
        tree: &dyn Tree,
        node: NodeId,
        stat: &Stat,
    ) -> io::Result<bool> {
        let seen = &at.seen.stat;
        let equal = comparable(stat) == comparable(seen);
        match self.scrutiny {
            Scrutiny::Walk(Mode::Time) if stat.mtime == seen.mtime => return Ok(false),
            Scrutiny::Walk(Mode::Redo) if equal => return Ok(false),
            _ => {}
        }
        match seen.kind {
            Kind::File => {
                if stat.size != seen.size {
                    return Ok(true);
                }
                let bytes: Content = Arc::new(OnDisk::new(at.directory.open_file(at.name)?)?);
                Ok(!same_bytes(&bytes, &tree.content(node)?)?)
            }
            Kind::Symlink => Ok(at.directory.read_link(at.name)? != tree.link_target(node)?),
            Kind::CharDevice | Kind::BlockDevice => Ok(stat.device != seen.device),
            _ => Ok(false),
        }
    }

    /// Puts what is on disk into the table, in place of `node`.
    fn put(
        &self,
        at: &Entry<'_>,
        tree: &dyn Tree,
        holder: NodeId,
        node: Option<NodeId>,
        bytes: Option<Content>,
        spool: &mut Spool,
    ) -> io::Result<NodeId> {
        let stat = &at.seen.stat;
        make_way(self.overlay, tree, holder, at.name, node, stat.is_directory())?;
        let attributes = attributes(stat);
        let overlay = self.overlay;
        let node = match stat.kind {
            Kind::Directory => overlay.make_directory(holder, at.name, &attributes)?,
            Kind::Symlink => {
                let target = at.directory.read_link(at.name)?;
                overlay.put_symlink(holder, at.name, &attributes, &target)?
            }
            Kind::File => {
                let content = match bytes {
                    Some(bytes) => bytes,
                    None => spool.take(at.directory.open_file(at.name)?)?,
                };
                overlay.put_file(holder, at.name, &attributes, content)?
            }
            kind => overlay.put_special(holder, at.name, &attributes, kind, stat.device)?,
        };
        if stat.kind == Kind::File
            && let Some(value) = capability(at.directory, at.name)?
        {
            overlay.set_xattr(node, CAPABILITY, &value)?;
        }
        Ok(node)
    }

    fn set_capability(
        &self,
        at: &Entry<'_>,
        tree: &dyn Tree,
        node: NodeId,
        path: &RootPath,
    ) -> io::Result<()> {
        if at.seen.stat.kind != Kind::File
            || matches!(self.scrutiny, Scrutiny::Walk(Mode::Time | Mode::Redo))
                && comparable(&tree.stat(node)?) == comparable(&at.seen.stat)
        {
            return Ok(());
        }
        let (old, new) = (tree.xattr(node, CAPABILITY)?, capability(at.directory, at.name)?);
        match new {
            Some(value) if old.as_ref() != Some(&value) => {
                self.overlay.set_xattr(node, CAPABILITY, &value)
            }
            None if old.is_some() && !self.known.without_capability.contains(path) => {
                self.overlay.remove_xattr(node, CAPABILITY)
            }
            _ => Ok(()),
        }
    }
}

/// An entry on disk.
struct Entry<'a> {
    directory: &'a Directory,
    name: &'a Name,
    seen: &'a DiskStat,
}

/// What has been done so far.
struct Work {
    spool: Spool,
    /// Which file on disk each node of the table stands for.
    claims: HashMap<NodeId, (u64, u64)>,
    /// Nodes by file, for those with several names.
    inodes: HashMap<(u64, u64), NodeId>,
    /// Directories whose entries were edited.
    directories: BTreeSet<RootPath>,
    /// The directory looked at last; `None` if it isn't there.
    open: Option<(RootPath, Option<Directory>)>,
}

/// Removes what stands at `name` if it is a directory, or a directory is to come:
/// nothing else is in the way.
fn make_way(
    overlay: &Overlay,
    tree: &dyn Tree,
    holder: NodeId,
    name: &Name,
    node: Option<NodeId>,
    for_directory: bool,
) -> io::Result<()> {
    if let Some(node) = node
        && (for_directory || tree.stat(node)?.is_directory())
    {
        overlay.remove(holder, name)?;
    }
    Ok(())
}

/// `Ok` if `error`, or what it is about, says that there is no such path.
pub(super) fn no_way(error: io::Error) -> io::Result<()> {
    let kind = error.kind();
    let errno = error.raw_os_error().or_else(|| {
        let cause = error.get_ref().and_then(|error| error.source());
        cause.and_then(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
    });
    let gone = matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || matches!(errno, Some(libc::ELOOP | libc::ENAMETOOLONG));
    if gone { Ok(()) } else { Err(error) }
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime }
}

/// What two files have in common as far as metadata tell. The permissions of a
/// symbolic link mean nothing.
fn comparable(stat: &Stat) -> (Kind, u16, u32, u32, u64, Timestamp) {
    let mode = if stat.kind == Kind::Symlink { 0o777 } else { stat.mode };
    let size = if stat.is_directory() { 0 } else { stat.size };
    (stat.kind, mode, stat.uid, stat.gid, size, stat.mtime)
}

/// Whether the directory `name` was made since, as far as the filesystem tells.
fn is_new(directory: &Directory, name: &Name, since: Timestamp) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let seen = rustix::fs::statx(directory.as_fd(), name.as_bytes(), flags, StatxFlags::BTIME)?;
    if seen.stx_mask & StatxFlags::BTIME.bits() == 0 {
        return Ok(true);
    }
    let made = Timestamp { seconds: seen.stx_btime.tv_sec, nanoseconds: seen.stx_btime.tv_nsec };
    Ok(made >= since)
}

/// One file that takes the bytes of all that changed in a step.
struct Spool {
    file: Arc<File>,
    end: u64,
}

impl Spool {
    fn new(scratch: &Path) -> io::Result<Self> {
        Ok(Self { file: Arc::new(tempfile::tempfile_in(scratch)?), end: 0 })
    }

    /// Copies `from`, by reference where the filesystem can.
    fn take(&mut self, from: File) -> io::Result<Content> {
        use io::Seek;
        let mut from = from;
        let mut to = &*self.file;
        to.seek(io::SeekFrom::Start(self.end))?;
        let length = io::copy(&mut from, &mut to)?;
        let part = Part { file: Arc::clone(&self.file), start: self.end, length };
        self.end += length;
        Ok(Arc::new(part))
    }
}

/// A part of the spool.
struct Part {
    file: Arc<File>,
    start: u64,
    length: u64,
}

impl ReadAt for Part {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        std::os::unix::fs::FileExt::read_at(&*self.file, &mut buffer[..wanted], self.start + offset)
    }
}
