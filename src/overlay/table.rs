//! The inode table: the whole filesystem.
//!
//! Inodes come into being when a lower entry is looked up or something is created,
//! and go when they have no name, the kernel forgot them, and the tree *before*
//! doesn't show them. Numbers are slots of the table and stay the same for as long
//! as the inode lives.
//!
//! Everything here runs under one lock, held for microseconds; contents are read
//! and written outside of it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::content::Frozen;
use super::errno::Answer;
use super::errno::Fault;
use super::extent::Extents;
use super::inode::Attributes;
use super::inode::Body;
use super::inode::Directory;
use super::inode::Face;
use super::inode::Ino;
use super::inode::Inode;
use super::inode::Matter;
use super::inode::Place;
use super::inode::Places;
use super::inode::ROOT;
use super::inode::Whole;
use super::inode::Xattrs;
use super::lower;
use super::lower::Found;
use super::lower::Layer;
use super::lower::Lower;
use super::lower::Part;
use super::passthrough::Copies;
use super::passthrough::Passing;
use super::recorder::Image;
use super::recorder::Recorder;
use super::recorder::Touch;
use super::upper::Upper;
use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Kind;
use crate::tree::Stat;
use crate::tree::Timestamp;
use crate::tree::Xattr;

/// Attribute that carries file capabilities; writing to a file drops it.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// The table and everything that changes with it.
#[derive(Debug)]
pub(super) struct Table {
    inodes: Vec<Option<Inode>>,
    free: Vec<Ino>,
    /// The lower layers, bottom first; behind them layers that contents settled in.
    pub(super) layers: Vec<Layer>,
    /// How many of them are part of the tree.
    base: usize,
    pub(super) upper: Upper,
    pub(super) recorder: Recorder,
    pub(super) passing: Passing,
    /// Inodes that nobody needs after the next mark.
    doomed: Vec<Ino>,
    /// Mount points that are there for the time of a step; see `stub.rs`.
    pub(super) stubs: Vec<Ino>,
    /// How many stubs there ever were.
    pub(super) stubs_made: u64,
}

impl Table {
    /// A table over `lowers`, bottom first, that writes below `scratch`.
    pub(super) fn new(lowers: Vec<Lower>, scratch: &Path) -> io::Result<Self> {
        let layers: Vec<Layer> = lowers.into_iter().map(Layer::new).collect();
        let parts = lower::roots(&layers, layers.len());
        let mut table = Self {
            inodes: vec![None],
            free: Vec::new(),
            base: layers.len(),
            layers,
            upper: Upper::new(scratch)?,
            recorder: Recorder::default(),
            passing: Passing::default(),
            doomed: Vec::new(),
            stubs: Vec::new(),
            stubs_made: 0,
        };
        let root = table.directory_of(parts);
        table.inodes.push(Some(root));
        for number in 0..table.base {
            let links = table.layers[number].index.lower_links();
            // Foreign bytes: a link that leads nowhere is no name of anything.
            table.adopt_foreign(&links).map_err(io::Error::from)?;
        }
        Ok(table)
    }

    /// Brings files that layers above gave further names into the table, with all of
    /// their names. The layer that has the file knows nothing of them, so nothing
    /// but this finds them when the file is written to.
    fn adopt_foreign(&mut self, links: &[(RootPath, RootPath)]) -> Answer<()> {
        let mut files = Vec::new();
        for path in links.iter().flat_map(|(link, target)| [link, target]) {
            let found = path.components().try_fold(ROOT, |directory, name| {
                if self.is_directory(directory).ok()? {
                    self.child(directory, name).ok()?
                } else {
                    None
                }
            });
            files.extend(found.filter(|ino| !self.is_directory(*ino).unwrap_or(true)));
        }
        files.sort_unstable();
        files.dedup();
        for ino in files {
            let links = self.names(ino)?.len().max(1);
            self.inode_mut(ino)?.face.links = u32::try_from(links).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    /// The inode `ino`.
    pub(super) fn inode(&self, ino: Ino) -> Answer<&Inode> {
        self.inodes.get(ino as usize).and_then(Option::as_ref).ok_or(Fault::Stale)
    }

    /// The inode `ino`, to be changed.
    pub(super) fn inode_mut(&mut self, ino: Ino) -> Answer<&mut Inode> {
        self.inodes.get_mut(ino as usize).and_then(Option::as_mut).ok_or(Fault::Stale)
    }

    /// The directory `ino`.
    pub(super) fn directory(&self, ino: Ino) -> Answer<&Directory> {
        match &self.inode(ino)?.matter {
            Matter::Directory(directory) => Ok(directory),
            _ => Err(Fault::NotDirectory),
        }
    }

    fn directory_mut(&mut self, ino: Ino) -> Answer<&mut Directory> {
        match &mut self.inode_mut(ino)?.matter {
            Matter::Directory(directory) => Ok(directory),
            _ => Err(Fault::NotDirectory),
        }
    }

    /// Whether `ino` is a directory.
    pub(super) fn is_directory(&self, ino: Ino) -> Answer<bool> {
        Ok(self.inode(ino)?.face.kind == Kind::Directory)
    }

    /// Metadata of `ino` for stat(2).
    pub(super) fn attributes(&mut self, ino: Ino) -> Answer<Attributes> {
        self.refresh(ino)?;
        let (last, blocks) = self.passing.look(ino);
        let inode = self.inode(ino)?;
        let bytes = match &inode.matter {
            Matter::File(Some(body)) => body.extents.allocated(),
            Matter::File(None) => inode.face.size,
            _ => 0,
        };
        let times = inode.times();
        Ok(Attributes {
            ino,
            face: inode.face,
            atime: times.atime,
            ctime: times.ctime,
            blocks: blocks.unwrap_or(bytes.div_ceil(512)),
            last,
        })
    }

    // Looking below.

    /// The entry `name` of `directory`.
    pub(super) fn child(&mut self, directory: Ino, name: &[u8]) -> Answer<Option<Ino>> {
        let entries = self.directory(directory)?;
        if let Some(ino) = entries.get(name) {
            return Ok(Some(ino));
        }
        if entries.complete || !lower::is_name(name) {
            return Ok(None);
        }
        let found = lower::find(&self.layers, &entries.parts, name);
        self.adopt(directory, name, found)
    }

    /// Brings all entries of `directory` into its slots.
    pub(super) fn load(&mut self, directory: Ino) -> Answer<()> {
        let entries = self.directory(directory)?;
        if entries.complete {
            return Ok(());
        }
        let parts = entries.parts.clone();
        for part in &parts {
            let Some(layer) = self.layers.get(part.layer as usize) else { continue };
            let index = Arc::clone(&layer.index);
            for (name, _) in index.children(part.node) {
                if lower::is_name(name) && self.directory(directory)?.get(name).is_none() {
                    // From the top again: what a layer above says about the name counts.
                    let found = lower::find(&self.layers, &parts, name);
                    self.adopt(directory, name, found)?;
                }
            }
        }
        self.directory_mut(directory)?.complete = true;
        Ok(())
    }

    /// Gives what was found below a slot in `directory`, and an inode if it has none.
    fn adopt(&mut self, directory: Ino, name: &[u8], found: Found) -> Answer<Option<Ino>> {
        let ino = match found {
            Found::Nothing => return Ok(None),
            Found::Directory(parts) => {
                let inode = self.directory_of(parts.clone());
                let ino = self.insert(inode)?;
                for part in parts {
                    self.layers[part.layer as usize].set_inode(part.node, ino);
                }
                ino
            }
            Found::Node(part) => match self.layers[part.layer as usize].inode(part.node) {
                Some(ino) => ino,
                None => {
                    let inode = self.node_of(part);
                    let ino = self.insert(inode)?;
                    self.layers[part.layer as usize].set_inode(part.node, ino);
                    ino
                }
            },
        };
        self.attach(directory, name.into(), ino)?;
        Ok(Some(ino))
    }

    fn directory_of(&self, parts: Vec<Part>) -> Inode {
        let origin = lower::face(&self.layers, &parts);
        let stat = match origin {
            Some(part) => self.layers[part.layer as usize].index.node(part.node).stat(),
            None => Stat::new(Kind::Directory, 0o755),
        };
        let complete = parts.is_empty();
        let directory = Directory { parts: parts.into(), complete, ..Directory::default() };
        let mut inode = Inode::new(&stat, Matter::Directory(Box::new(directory)));
        inode.face.kind = Kind::Directory;
        inode.face.size = 0;
        inode.face.links = 1;
        inode.origin = origin;
        if origin.is_some() {
            inode.xattrs = Xattrs::Lower;
        }
        inode
    }

    fn node_of(&self, part: Part) -> Inode {
        let view = self.layers[part.layer as usize].index.node(part.node);
        let matter = match view.kind {
            Kind::File => Matter::File(None),
            Kind::Symlink => Matter::Symlink(None),
            _ => Matter::Special,
        };
        let mut inode = Inode::new(&view.stat(), matter);
        inode.face.links = lower::visible_names(&self.layers[..self.base], part).max(1);
        inode.origin = Some(part);
        inode.xattrs = Xattrs::Lower;
        inode.has_hidden_names = view.links > 1;
        inode
    }

    // Bodies and attributes.

    /// The bytes of the file `ino` as it is now.
    pub(super) fn body(&mut self, ino: Ino) -> Answer<(Body, u64)> {
        self.refresh(ino)?;
        let inode = self.inode(ino)?;
        match &inode.matter {
            Matter::File(Some(body)) => Ok((Body::clone(body), inode.face.size)),
            Matter::File(None) => Ok((self.lower_body(inode.origin), inode.face.size)),
            Matter::Directory(_) => Err(Fault::IsDirectory),
            _ => Err(Fault::Invalid),
        }
    }

    /// The bytes of a file that nothing was written to.
    pub(super) fn lower_body(&self, origin: Option<Part>) -> Body {
        let layer = origin.and_then(|part| Some((part, self.layers.get(part.layer as usize)?)));
        let (extents, whole) = match layer {
            Some((part, layer)) => (layer.extents(part.node), Whole::Lower(part)),
            None => (Extents::default(), Whole::Unknown),
        };
        Body::new(Arc::new(extents), whole)
    }

    /// The extents and size of the file `ino`, read from the index once.
    pub(super) fn extents(&mut self, ino: Ino) -> Answer<(&Arc<Extents>, u64)> {
        self.refresh(ino)?;
        if matches!(self.inode(ino)?.matter, Matter::File(None)) {
            let (body, _) = self.body(ino)?;
            self.inode_mut(ino)?.matter = Matter::File(Some(Box::new(body)));
        }
        let inode = self.inode(ino)?;
        match &inode.matter {
            Matter::File(Some(body)) => Ok((&body.extents, inode.face.size)),
            Matter::Directory(_) => Err(Fault::IsDirectory),
            _ => Err(Fault::Invalid),
        }
    }

    /// The body of the file `ino` and its metadata, to be changed. Nothing is known
    /// about the content as a whole any more.
    pub(super) fn body_mut(&mut self, ino: Ino) -> Answer<(&mut Body, &mut Face)> {
        self.extents(ino)?;
        let inode = self.inode_mut(ino)?;
        match &mut inode.matter {
            Matter::File(Some(body)) => {
                body.whole = Whole::Unknown;
                Ok((body, &mut inode.face))
            }
            _ => Err(Fault::Invalid),
        }
    }

    /// A handle on `body` that stays what it is: ends the epoch if need be.
    pub(super) fn freeze(&mut self, body: &Body, size: u64) -> Frozen {
        if body.extents.is_open_in(self.upper.epoch()) {
            self.upper.seal();
        }
        Frozen { extents: Arc::clone(&body.extents), size, digest: self.digest(body.whole) }
    }

    fn digest(&self, whole: Whole) -> Option<[u8; 32]> {
        match whole {
            Whole::Unknown => None,
            Whole::Digest(digest) => Some(digest),
            Whole::Lower(part) => self.layers.get(part.layer as usize)?.index.digest(part.node),
        }
    }

    /// Extended attributes of `ino`, read from the index once.
    pub(super) fn xattrs(&mut self, ino: Ino) -> Answer<&[Xattr]> {
        let inode = self.inode(ino)?;
        if matches!(inode.xattrs, Xattrs::Lower) {
            let loaded = self.lower_xattrs(inode.origin);
            self.inode_mut(ino)?.xattrs =
                if loaded.is_empty() { Xattrs::None } else { Xattrs::Own(Arc::new(loaded)) };
        }
        match &self.inode(ino)?.xattrs {
            Xattrs::Own(list) => Ok(list),
            _ => Ok(&[]),
        }
    }

    /// Extended attributes of a lower node.
    pub(super) fn lower_xattrs(&self, origin: Option<Part>) -> Vec<Xattr> {
        origin
            .and_then(|part| Some(self.layers.get(part.layer as usize)?.index.xattrs(part.node)))
            .unwrap_or_default()
    }

    /// Removes file capabilities, as the kernel does when a file is written to or
    /// changes its owner. The node must have been touched.
    pub(super) fn drop_capability(&mut self, ino: Ino) -> Answer<()> {
        if self.xattrs(ino)?.iter().any(|(name, _)| name == CAPABILITY) {
            self.change_xattrs(ino, |list| list.retain(|(name, _)| name != CAPABILITY))?;
        }
        Ok(())
    }

    /// Lets `change` work on the list of extended attributes, which it keeps sorted.
    pub(super) fn change_xattrs(
        &mut self,
        ino: Ino,
        change: impl FnOnce(&mut Vec<Xattr>),
    ) -> Answer<()> {
        let mut list = self.xattrs(ino)?.to_vec();
        change(&mut list);
        self.inode_mut(ino)?.xattrs =
            if list.is_empty() { Xattrs::None } else { Xattrs::Own(Arc::new(list)) };
        Ok(())
    }

    /// Target of the symbolic link `ino`.
    pub(super) fn link_target(&self, ino: Ino) -> Answer<Vec<u8>> {
        let inode = self.inode(ino)?;
        match &inode.matter {
            Matter::Symlink(Some(target)) => Ok(target.to_vec()),
            Matter::Symlink(None) => Ok(inode
                .origin
                .and_then(|part| Some((part, self.layers.get(part.layer as usize)?)))
                .map(|(part, layer)| layer.index.link_target(part.node).to_vec())
                .unwrap_or_default()),
            _ => Err(Fault::Invalid),
        }
    }

    // Coming and going.

    /// Gives `inode` a number.
    pub(super) fn insert(&mut self, inode: Inode) -> Answer<Ino> {
        if let Some(ino) = self.free.pop() {
            self.inodes[ino as usize] = Some(inode);
            return Ok(ino);
        }
        let ino = Ino::try_from(self.inodes.len()).map_err(|_| Fault::Full)?;
        self.inodes.push(Some(inode));
        Ok(ino)
    }

    /// Gives `inode` a number and notes that it wasn't there at the mark.
    pub(super) fn create(&mut self, inode: Inode) -> Answer<Ino> {
        let ino = self.insert(inode)?;
        self.recorder.nodes.insert(ino, Touch { is_event: false, image: None });
        Ok(ino)
    }

    /// Keeps the image of `ino` before its first change since the mark; `is_event`
    /// if the change is one by itself.
    pub(super) fn touch(&mut self, ino: Ino, is_event: bool) -> Answer<()> {
        if let Some(touch) = self.recorder.nodes.get_mut(&ino) {
            touch.is_event |= is_event;
            return Ok(());
        }
        let inode = self.inode(ino)?;
        let body = match &inode.matter {
            Matter::File(Some(body)) => Some(Box::new(Body { flat: None, ..Body::clone(body) })),
            _ => None,
        };
        let image = Image { face: inode.face, xattrs: inode.xattrs.clone(), body };
        self.recorder.nodes.insert(ino, Touch { is_event, image: Some(Box::new(image)) });
        Ok(())
    }

    /// Puts an entry into a slot; records nothing.
    pub(super) fn attach(&mut self, directory: Ino, name: Arc<[u8]>, ino: Ino) -> Answer<()> {
        let slot = self.directory_mut(directory)?.add(name, ino);
        self.inode_mut(ino)?.places.add(Place { directory, slot });
        Ok(())
    }

    /// Takes an entry out of its slot; records nothing.
    pub(super) fn detach(&mut self, directory: Ino, name: &[u8]) -> Answer<Ino> {
        self.load(directory)?;
        let (slot, entry) = self.directory_mut(directory)?.take(name).ok_or(Fault::NotFound)?;
        self.inode_mut(entry.ino)?.places.remove(Place { directory, slot });
        Ok(entry.ino)
    }

    /// Adds the entry `name` for `ino`, recorded. Counts no link.
    pub(super) fn enter(
        &mut self,
        directory: Ino,
        name: &[u8],
        ino: Ino,
        now: Timestamp,
    ) -> Answer<()> {
        self.load(directory)?;
        self.recorder.entry(directory, name, None);
        self.attach(directory, name.into(), ino)?;
        self.changed_entries(directory, now)
    }

    /// Removes the entry `name`, recorded. Counts no link.
    pub(super) fn leave(&mut self, directory: Ino, name: &[u8], now: Timestamp) -> Answer<Ino> {
        let ino = self.child(directory, name)?.ok_or(Fault::NotFound)?;
        // A stub was not there before, whoever takes it away.
        let previous = Some(ino).filter(|ino| !self.stubs.contains(ino));
        self.recorder.entry(directory, name, previous);
        self.detach(directory, name)?;
        self.changed_entries(directory, now)?;
        Ok(ino)
    }

    /// Lets the entry `name` stand for `ino` instead, recorded, in the same slot: a
    /// reader of the directory meets the name once. Counts no link; gives the node
    /// that had the name.
    pub(super) fn replace(
        &mut self,
        directory: Ino,
        name: &[u8],
        ino: Ino,
        now: Timestamp,
    ) -> Answer<Ino> {
        let old = self.child(directory, name)?.ok_or(Fault::NotFound)?;
        self.load(directory)?;
        let previous = Some(old).filter(|old| !self.stubs.contains(old));
        self.recorder.entry(directory, name, previous);
        let entries = self.directory_mut(directory)?;
        let slot = *entries.index.get(name).ok_or(Fault::NotFound)?;
        if let Some(Some(entry)) = entries.slots.get_mut(slot as usize) {
            entry.ino = ino;
        }
        let place = Place { directory, slot };
        self.inode_mut(old)?.places.remove(place);
        self.inode_mut(ino)?.places.add(place);
        self.changed_entries(directory, now)?;
        Ok(old)
    }

    fn changed_entries(&mut self, directory: Ino, now: Timestamp) -> Answer<()> {
        self.touch(directory, false)?;
        let inode = self.inode_mut(directory)?;
        inode.set_mtime(now, None);
        inode.set_ctime(now);
        Ok(())
    }

    /// Counts one more name of `ino`.
    pub(super) fn link(&mut self, ino: Ino, now: Timestamp) -> Answer<()> {
        let is_event = self.inode(ino)?.face.links > 0;
        self.touch(ino, is_event)?;
        let inode = self.inode_mut(ino)?;
        inode.face.links = inode.face.links.checked_add(1).ok_or(Fault::Full)?;
        inode.set_ctime(now);
        Ok(())
    }

    /// Counts one name of `ino` less, and lets it go if that was the last.
    pub(super) fn unlink(&mut self, ino: Ino, now: Timestamp) -> Answer<()> {
        let is_event = self.inode(ino)?.face.links > 1;
        self.touch(ino, is_event)?;
        let inode = self.inode_mut(ino)?;
        inode.face.links = inode.face.links.saturating_sub(1);
        inode.set_ctime(now);
        self.release(ino);
        Ok(())
    }

    /// Frees `ino` if nothing needs it: no name, not the kernel, not the tree before.
    pub(super) fn release(&mut self, ino: Ino) {
        let Ok(inode) = self.inode(ino) else { return };
        if ino == ROOT || inode.face.links > 0 || inode.lookups > 0 {
            return;
        }
        if self.recorder.remembers(ino) {
            self.doomed.push(ino);
            return;
        }
        self.recorder.forget(ino);
        self.passing.forget(ino);
        let (origin, directory) = match self.inodes.get_mut(ino as usize).and_then(Option::take) {
            Some(Inode { origin, matter: Matter::Directory(directory), .. }) => {
                (origin, Some(directory))
            }
            Some(inode) => (inode.origin, None),
            None => return,
        };
        let parts = directory.map(|directory| directory.parts).unwrap_or_default();
        for part in parts.into_iter().chain(origin) {
            if let Some(layer) = self.layers.get_mut(part.layer as usize)
                && layer.inode(part.node) == Some(ino)
            {
                layer.set_inode(part.node, 0);
            }
        }
        self.free.push(ino);
    }

    /// The kernel was given `ino` once more.
    pub(super) fn remember(&mut self, ino: Ino) {
        if let Ok(inode) = self.inode_mut(ino) {
            inode.lookups += 1;
        }
    }

    /// The kernel forgot `count` of the times it was given `ino`.
    pub(super) fn forget(&mut self, ino: Ino, count: u64) {
        if let Ok(inode) = self.inode_mut(ino) {
            inode.lookups = inode.lookups.saturating_sub(count);
            self.release(ino);
        }
    }

    /// There is no kernel any more: nothing is looked up or open.
    pub(super) fn forget_all(&mut self) {
        for ino in 0..self.inodes.len() {
            if let Some(inode) = self.inodes[ino].as_mut()
                && inode.lookups > 0
            {
                inode.lookups = 0;
                self.release(ino as Ino);
            }
        }
    }

    /// From now on *before* is what is there now.
    /// `copies` have the bytes of the files that are passed through.
    pub(super) fn mark(&mut self, copies: Copies) {
        self.recorder.clear();
        self.upper.turn();
        self.keep_through(copies);
        for ino in std::mem::take(&mut self.doomed) {
            self.release(ino);
        }
    }

    /// Every name of `ino`. Names that only a layer knows are searched there, once.
    pub(super) fn names(&mut self, ino: Ino) -> Answer<Vec<(Ino, Name)>> {
        let inode = self.inode(ino)?;
        if inode.has_hidden_names {
            if let Some(part) = inode.origin {
                self.find_hidden_names(part)?;
            }
            self.inode_mut(ino)?.has_hidden_names = false;
        }
        let inode = self.inode(ino)?;
        let places = inode.places.as_slice().iter();
        Ok(places.filter_map(|place| Some((place.directory, self.name_at(*place)?))).collect())
    }

    fn name_at(&self, place: Place) -> Option<Name> {
        let directory = self.directory(place.directory).ok()?;
        Name::new(&directory.slots.get(place.slot as usize)?.as_ref()?.name)
    }

    fn find_hidden_names(&mut self, part: Part) -> Answer<()> {
        let Some(layer) = self.layers.get(part.layer as usize) else { return Ok(()) };
        for (trail, name) in layer.places(part.node) {
            let mut at = Some(ROOT);
            for (name, node) in trail {
                let Some(directory) = at else { break };
                // A directory that was moved is known by its node, not by its path.
                at = match self.layers[part.layer as usize].inode(node) {
                    Some(ino) => Some(ino),
                    None => self
                        .child(directory, name.as_bytes())?
                        .filter(|_| self.layers[part.layer as usize].inode(node).is_some()),
                };
            }
            if let Some(directory) = at
                && self.is_directory(directory)?
            {
                self.child(directory, name.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Where the directory `ino` hangs; `None` for the root or one that was removed.
    pub(super) fn place_of(&self, ino: Ino) -> Answer<Option<(Ino, Name)>> {
        let places: &Places = &self.inode(ino)?.places;
        let place = places.as_slice().first();
        Ok(place.and_then(|place| Some((place.directory, self.name_at(*place)?))))
    }
}
