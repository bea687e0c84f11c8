//! Changes made by this process: COPY, ADD, WORKDIR and their kind, without a mount
//! and without a system call per file. Each is recorded like one through the mount.
//!
//! Nodes are named by their [`NodeId`] in [`Overlay::after`]; an id that is gone is
//! answered with `NotFound`. Permissions aren't checked: whoever edits is root.

use std::io;
use std::sync::Arc;

use super::Overlay;
use super::errno::Answer;
use super::errno::Fault;
use super::extent::Extent;
use super::extent::Extents;
use super::extent::SEALED;
use super::extent::Source;
use super::inode::Body;
use super::inode::Ino;
use super::inode::Matter;
use super::inode::Whole;
use super::inode::now;
use super::kernel::Stale;
use super::lower::Layer;
use super::lower::Lower;
use super::lower::Part;
use super::ops::NewNode;
use super::ops::SetMode;
use super::table::Table;
use super::view::ino_of;
use super::view::node_id;
use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Content;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::ReadAt;
use crate::tree::Timestamp;
use crate::tree::resolve::resolve;

/// Metadata to give a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// `mode & 07777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
}

/// Which symbolic links on a path are followed. All stay inside the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// Every one, the last component too.
    All,
    /// Those in the directory part.
    Parents,
}

/// Where a path leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The directory that has, or would have, the entry; the root for the root.
    pub directory: NodeId,
    /// Name of the entry; `None` for the root.
    pub name: Option<Name>,
    /// What is there, if anything is.
    pub node: Option<NodeId>,
    /// The path with links resolved.
    pub path: RootPath,
}

impl Overlay {
    /// Follows `path` as `chroot(2)` would. A missing last component is no error.
    ///
    /// # Errors
    /// `NotFound` if the directory part doesn't exist, `NotADirectory` if it leads
    /// through something else, `ELOOP` after 40 links.
    pub fn resolve(&self, path: &RootPath, follow: Follow) -> io::Result<Place> {
        let tree = self.after();
        let found = resolve(tree.as_ref(), path, follow == Follow::All)?;
        let directory = match found.path.parent() {
            Some(parent) => tree.find(&parent)?.ok_or(Fault::NotFound)?,
            None => tree.root(),
        };
        if !tree.stat(directory)?.is_directory() {
            return Err(Fault::NotDirectory.into());
        }
        let name = found.path.file_name();
        Ok(Place { directory, name, node: found.node, path: found.path })
    }

    /// The directory at `path`, made with `attributes` where it or a parent is
    /// missing, and its path with links resolved. What exists stays as it is.
    ///
    /// # Errors
    /// `NotADirectory` if something else is in the way; those of resolving.
    pub fn make_directories(
        &self,
        path: &RootPath,
        attributes: &Attributes,
    ) -> io::Result<(NodeId, RootPath)> {
        let tree = self.after();
        let path = resolve(tree.as_ref(), path, true)?.path;
        let mut at = tree.root();
        for name in path.components().filter_map(Name::new) {
            at = match tree.child(at, name.as_bytes())? {
                Some(child) => child,
                None => self.make_directory(at, &name, attributes)?,
            };
        }
        if !tree.stat(at)?.is_directory() {
            return Err(Fault::NotDirectory.into());
        }
        Ok((at, path))
    }

    /// Makes the directory `name`. A set-group-id parent has no say.
    ///
    /// # Errors
    /// `AlreadyExists`, whatever is there; `NotADirectory` for the parent.
    pub fn make_directory(
        &self,
        directory: NodeId,
        name: &Name,
        attributes: &Attributes,
    ) -> io::Result<NodeId> {
        let new = NewNode::of(Kind::Directory);
        self.edit(|table, stale| {
            let parent = ino_of(directory)?;
            let ino = table.make(parent, name.as_bytes(), &new)?;
            table.set_face(ino, attributes)?;
            stale.entry(table, parent, name.as_bytes());
            Ok(node_id(ino))
        })
    }

    /// Puts a regular file at `name`; anything there that is no directory is replaced,
    /// not written to, so other names of it keep their bytes. The bytes are read
    /// from `content` whenever they are needed, until the overlay
    /// [settles](Overlay::settle): it must stay what it is.
    ///
    /// # Errors
    /// `IsADirectory` for what is there, `NotADirectory` for the parent.
    pub fn put_file(
        &self,
        directory: NodeId,
        name: &Name,
        attributes: &Attributes,
        content: Content,
    ) -> io::Result<NodeId> {
        let size = content.len();
        let digest = content.known_digest();
        let source = Source::foreign(content);
        let whole = Extent { start: 0, length: size, source, at: 0, epoch: SEALED };
        let body = Body::new(
            Arc::new(Extents::from_sorted([whole].into_iter())),
            digest.map_or(Whole::Unknown, Whole::Digest),
        );
        self.put(directory, name, attributes, &NewNode::of(Kind::File), |table, ino| {
            let inode = table.inode_mut(ino)?;
            inode.face.size = size;
            inode.matter = Matter::File(Some(Box::new(body)));
            Ok(())
        })
    }

    /// Puts a symbolic link to `target` at `name`, replacing as [`Overlay::put_file`] does.
    ///
    /// # Errors
    /// Those of [`Overlay::put_file`].
    pub fn put_symlink(
        &self,
        directory: NodeId,
        name: &Name,
        attributes: &Attributes,
        target: &[u8],
    ) -> io::Result<NodeId> {
        let new = NewNode { target, ..NewNode::of(Kind::Symlink) };
        self.put(directory, name, attributes, &new, |_, _| Ok(()))
    }

    /// Puts a device, pipe or socket at `name`, replacing as [`Overlay::put_file`]
    /// does. Needs no right of the host: it is only an entry in the table.
    ///
    /// # Errors
    /// Those of [`Overlay::put_file`]; `InvalidInput` for another `kind`.
    pub fn put_special(
        &self,
        directory: NodeId,
        name: &Name,
        attributes: &Attributes,
        kind: Kind,
        device: Device,
    ) -> io::Result<NodeId> {
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => device,
            Kind::Fifo | Kind::Socket => Device::default(),
            Kind::File | Kind::Directory | Kind::Symlink => return Err(Fault::Invalid.into()),
        };
        let new = NewNode { device, ..NewNode::of(kind) };
        self.put(directory, name, attributes, &new, |_, _| Ok(()))
    }

    /// Gives `node` the further name `name`, replacing as [`Overlay::put_file`] does.
    ///
    /// # Errors
    /// `PermissionDenied` if `node` is a directory; those of [`Overlay::put_file`].
    pub fn link(&self, node: NodeId, directory: NodeId, name: &Name) -> io::Result<()> {
        self.edit(|table, stale| {
            let (ino, parent) = (ino_of(node)?, ino_of(directory)?);
            if table.is_directory(ino)? {
                return Err(Fault::NotPermitted);
            }
            if table.child(parent, name.as_bytes())? == Some(ino) {
                return Ok(());
            }
            table.make_way(parent, name, stale)?;
            table.link_as(ino, parent, name.as_bytes())?;
            stale.entry(table, parent, name.as_bytes());
            stale.node(table, ino);
            Ok(())
        })
    }

    /// Removes `name` and everything below it.
    ///
    /// # Errors
    /// `NotFound`; `NotADirectory` for the parent.
    pub fn remove(&self, directory: NodeId, name: &Name) -> io::Result<()> {
        self.edit(|table, stale| table.remove_tree(ino_of(directory)?, name.as_bytes(), stale))
    }

    /// Sets mode, owner and time of `node`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_attributes(&self, node: NodeId, attributes: &Attributes) -> io::Result<()> {
        self.edit(|table, stale| {
            let ino = ino_of(node)?;
            table.touch(ino, true)?;
            table.set_face(ino, attributes)?;
            stale.node(table, ino);
            Ok(())
        })
    }

    /// Sets the extended attribute `name` (with its namespace) of `node`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.edit(|table, stale| {
            let ino = ino_of(node)?;
            table.set_xattr(ino, name, value, SetMode::Any)?;
            stale.node(table, ino);
            Ok(())
        })
    }

    /// Removes the extended attribute `name` of `node`.
    ///
    /// # Errors
    /// `NotFound` if there is no such node, `ENODATA` if it has no such attribute.
    pub fn remove_xattr(&self, node: NodeId, name: &[u8]) -> io::Result<()> {
        self.edit(|table, stale| {
            let ino = ino_of(node)?;
            table.remove_xattr(ino, name)?;
            stale.node(table, ino);
            Ok(())
        })
    }

    fn put(
        &self,
        directory: NodeId,
        name: &Name,
        attributes: &Attributes,
        new: &NewNode<'_>,
        fill: impl FnOnce(&mut Table, Ino) -> Answer<()>,
    ) -> io::Result<NodeId> {
        self.edit(|table, stale| {
            let parent = ino_of(directory)?;
            table.make_way(parent, name, stale)?;
            let ino = table.make(parent, name.as_bytes(), new)?;
            fill(table, ino)?;
            table.set_face(ino, attributes)?;
            stale.entry(table, parent, name.as_bytes());
            Ok(node_id(ino))
        })
    }

    /// Runs `body` under the lock, then drops what it made stale from a live mount.
    pub(super) fn edit<T>(
        &self,
        body: impl FnOnce(&mut Table, &mut Stale) -> Answer<T>,
    ) -> io::Result<T> {
        let mut stale = Stale::default();
        let result = body(&mut self.table(), &mut stale);
        let kernel = self.kernel().clone();
        if let Some(kernel) = kernel {
            stale.drop_from(kernel.as_ref());
        }
        Ok(result?)
    }
}

impl NewNode<'_> {
    fn of(kind: Kind) -> Self {
        Self { kind, mode: 0, uid: 0, gid: 0, device: Device::default(), target: &[] }
    }
}

impl Table {
    fn set_face(&mut self, ino: Ino, attributes: &Attributes) -> Answer<()> {
        let now = now();
        self.change_mode(ino, attributes.mode)?;
        let inode = self.inode_mut(ino)?;
        inode.face.uid = attributes.uid;
        inode.face.gid = attributes.gid;
        inode.set_mtime(attributes.mtime, Some(now));
        inode.set_ctime(now);
        self.restamp(ino)
    }

    /// Removes `name` unless it is a directory.
    fn make_way(&mut self, parent: Ino, name: &Name, stale: &mut Stale) -> Answer<()> {
        let Some(old) = self.child(parent, name.as_bytes())? else { return Ok(()) };
        if self.is_directory(old)? {
            return Err(Fault::IsDirectory);
        }
        self.remove_tree(parent, name.as_bytes(), stale)
    }

    fn remove_tree(&mut self, parent: Ino, name: &[u8], stale: &mut Stale) -> Answer<()> {
        let now = now();
        let top = self.child(parent, name)?.ok_or(Fault::NotFound)?;
        let mut pending: Vec<(Ino, Arc<[u8]>, Ino, bool)> = vec![(parent, name.into(), top, false)];
        while let Some((parent, name, ino, entered)) = pending.pop() {
            if !entered && self.is_directory(ino)? {
                self.load(ino)?;
                pending.push((parent, name, ino, true));
                let slots = self.directory(ino)?.slots.iter().flatten();
                pending.extend(slots.map(|slot| (ino, Arc::clone(&slot.name), slot.ino, false)));
                continue;
            }
            stale.entry(self, parent, &name);
            stale.node(self, ino);
            self.leave(parent, &name, now)?;
            self.unlink(ino, now)?;
        }
        Ok(())
    }

    /// Takes a layer that contents may settle in; it isn't part of the tree.
    pub(super) fn add_settled(&mut self, layer: Lower) -> u32 {
        self.layers.push(Layer::new(layer));
        (self.layers.len() - 1) as u32
    }

    /// Lets `ino` and its image read from `part` where they hold `content`.
    pub(super) fn settle(&mut self, ino: Ino, content: &dyn ReadAt, part: Part) {
        let Some(layer) = self.layers.get(part.layer as usize) else { return };
        let view = layer.index.node(part.node);
        if view.kind != Kind::File || view.size != content.len() {
            return;
        }
        let token = content.identity();
        let settled = Body::new(Arc::new(layer.extents(part.node)), Whole::Lower(part));
        let holds = |body: &Body, size: u64| Some(body.extents.identity(size)) == token;
        if let Ok(inode) = self.inode_mut(ino)
            && let Matter::File(Some(body)) = &mut inode.matter
            && holds(body, inode.face.size)
        {
            **body = settled.clone();
        }
        if let Some(image) =
            self.recorder.nodes.get_mut(&ino).and_then(|touch| touch.image.as_mut())
            && let Some(body) = &mut image.body
            && holds(body, image.face.size)
        {
            **body = settled;
        }
    }
}
