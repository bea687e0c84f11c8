//! The overlay as a read-only tree: as it is, or as it was at the mark.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::Overlay;
use super::content::Frozen;
use super::errno::Answer;
use super::errno::Fault;
use super::inode::Ino;
use super::inode::ROOT;
use super::inode::Xattrs;
use super::recorder::Image;
use super::table::Table;
use crate::path::Name;
use crate::tree::Content;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Stat;
use crate::tree::Tree;
use crate::tree::Xattr;

/// Which state a view shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    After,
}

/// A state of the overlay. Holds no lock between calls.
pub(super) struct View<'a> {
    pub(super) overlay: &'a Overlay,
    pub(super) side: Side,
}

/// The public number of an inode.
pub(super) fn node_id(ino: Ino) -> NodeId {
    NodeId(u64::from(ino))
}

/// The inode that a public number names.
pub(super) fn ino_of(node: NodeId) -> Answer<Ino> {
    Ino::try_from(node.0).map_err(|_| Fault::NotFound)
}

impl View<'_> {
    fn ask<T>(
        &self,
        node: NodeId,
        body: impl FnOnce(&mut Table, Ino) -> Answer<T>,
    ) -> io::Result<T> {
        let ino = ino_of(node)?;
        let mut table = self.overlay.table();
        if self.side == Side::After {
            table.refresh(ino)?;
        }
        // A node that came after the mark is unknown before it.
        if self.side == Side::Before
            && table.recorder.nodes.get(&ino).is_some_and(|touch| touch.image.is_none())
        {
            return Err(Fault::NotFound.into());
        }
        Ok(body(&mut table, ino)?)
    }

    /// How `ino` was, if that is another state than now.
    fn image<'t>(&self, table: &'t Table, ino: Ino) -> Option<&'t Image> {
        match self.side {
            Side::Before => table.recorder.nodes.get(&ino)?.image.as_deref(),
            Side::After => None,
        }
    }

    /// What the touched names of `directory` stood for, if that is wanted.
    fn former<'t>(
        &self,
        table: &'t Table,
        directory: Ino,
    ) -> Option<&'t BTreeMap<Arc<[u8]>, Option<Ino>>> {
        match self.side {
            Side::Before => table.recorder.entries.get(&directory),
            Side::After => None,
        }
    }

    fn all_names(&self, table: &mut Table, ino: Ino) -> Answer<Vec<(Ino, Name)>> {
        let mut names = table.names(ino)?;
        if self.side == Side::Before {
            let recorder = &table.recorder;
            names.retain(|(directory, name)| {
                let touched = recorder.entries.get(directory);
                touched.is_none_or(|names| !names.contains_key(name.as_bytes()))
            });
            let former = recorder.former.get(&ino).into_iter().flatten();
            names.extend(
                former.filter_map(|(directory, name)| Some((*directory, Name::new(name)?))),
            );
        }
        Ok(names)
    }
}

impl Tree for View<'_> {
    fn root(&self) -> NodeId {
        node_id(ROOT)
    }

    fn stat(&self, node: NodeId) -> io::Result<Stat> {
        self.ask(node, |table, ino| match self.image(table, ino) {
            Some(image) => Ok(image.face.stat()),
            None => Ok(table.inode(ino)?.face.stat()),
        })
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> io::Result<Option<NodeId>> {
        self.ask(directory, |table, ino| {
            if !table.is_directory(ino)? {
                return Ok(None);
            }
            let former = self.former(table, ino).and_then(|names| names.get(name));
            let child = match former {
                Some(child) => *child,
                None => table.child(ino, name)?,
            };
            Ok(child.map(node_id))
        })
    }

    fn children(&self, directory: NodeId) -> io::Result<Vec<(Name, NodeId)>> {
        self.ask(directory, |table, ino| {
            table.load(ino)?;
            let slots = table.directory(ino)?.slots.iter().flatten();
            let mut children: Vec<(Name, NodeId)> = Vec::new();
            let former = self.former(table, ino);
            for slot in slots {
                if former.is_none_or(|names| !names.contains_key(&slot.name))
                    && let Some(name) = Name::new(&slot.name)
                {
                    children.push((name, node_id(slot.ino)));
                }
            }
            for (name, child) in former.into_iter().flatten() {
                if let (Some(child), Some(name)) = (child, Name::new(name)) {
                    children.push((name, node_id(*child)));
                }
            }
            children.sort_unstable();
            Ok(children)
        })
    }

    fn link_target(&self, node: NodeId) -> io::Result<Vec<u8>> {
        // A target never changes.
        self.ask(node, |table, ino| table.link_target(ino))
    }

    fn xattrs(&self, node: NodeId) -> io::Result<Vec<Xattr>> {
        self.ask(node, |table, ino| match self.image(table, ino) {
            Some(Image { xattrs: Xattrs::None, .. }) => Ok(Vec::new()),
            Some(Image { xattrs: Xattrs::Own(list), .. }) => Ok(list.to_vec()),
            Some(Image { xattrs: Xattrs::Lower, .. }) => {
                Ok(table.lower_xattrs(table.inode(ino)?.origin))
            }
            None => Ok(table.xattrs(ino)?.to_vec()),
        })
    }

    fn content(&self, node: NodeId) -> io::Result<Content> {
        if self.side == Side::After
            && let Some(copy) = self.overlay.copy_of(ino_of(node)?)?
        {
            return Ok(Arc::new(copy));
        }
        self.ask(node, |table, ino| {
            let (body, size) = match self.image(table, ino) {
                Some(image) if image.face.kind == Kind::File => match &image.body {
                    Some(body) => (super::inode::Body::clone(body), image.face.size),
                    None => (table.lower_body(table.inode(ino)?.origin), image.face.size),
                },
                _ => table.body(ino)?,
            };
            let frozen: Frozen = table.freeze(&body, size);
            Ok(Arc::new(frozen) as Content)
        })
    }

    fn parent(&self, directory: NodeId) -> io::Result<Option<(NodeId, Name)>> {
        self.ask(directory, |table, ino| {
            if ino == ROOT {
                return Ok(None);
            }
            if !table.is_directory(ino)? {
                return Err(Fault::NotDirectory);
            }
            let place = match self.side {
                Side::After => table.place_of(ino)?,
                Side::Before => self.all_names(table, ino)?.into_iter().next(),
            };
            let (parent, name) = place.ok_or(Fault::NotFound)?;
            Ok(Some((node_id(parent), name)))
        })
    }

    fn names(&self, node: NodeId) -> io::Result<Option<Vec<(NodeId, Name)>>> {
        self.ask(node, |table, ino| {
            let names = self.all_names(table, ino)?;
            Ok(Some(names.into_iter().map(|(parent, name)| (node_id(parent), name)).collect()))
        })
    }
}
