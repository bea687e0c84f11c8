//! Grows an index entry by entry, in whatever order a tar has them.
//!
//! What a later entry does to an earlier one of the same layer is decided here:
//! the last one wins, directories merge, and a whiteout speaks of the layers
//! below only, whichever side of its sibling it stands on (OCI image
//! specification, layer.md: "Files that are present in the same layer as a
//! whiteout file can only be hidden by whiteout files in subsequent layers").

use std::collections::BTreeMap;
use std::ops::Range;

use crate::layer::error::Error;
use crate::layer::error::Fault;
use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Kind;
use crate::tree::Stat;
use crate::tree::Xattr;

use super::DIGEST;
use super::ENTRY;
use super::EXTENT;
use super::Extent;
use super::FLAG_IMPLIED;
use super::FLAG_OPAQUE;
use super::HEADER;
use super::HEADER_SUM;
use super::MAGIC;
use super::NO_DIGEST;
use super::NODE;
use super::TAG_LOWER_LINK;
use super::TAG_NODE;
use super::TAG_WHITEOUT;
use super::VERSION;
use super::XATTR;
use super::header_sum;
use super::kind_byte;

/// Nodes that one layer may have: keeps a hostile tar from taking all memory.
const MAX_NODES: usize = 1 << 24;

/// A node before it is in an index.
pub(in crate::layer) struct Node {
    pub(in crate::layer) stat: Stat,
    /// Sorted by name.
    pub(in crate::layer) xattrs: Vec<Xattr>,
    pub(in crate::layer) body: Body,
}

/// What a node has besides its metadata.
pub(in crate::layer) enum Body {
    /// An empty directory.
    Directory,
    /// Where the bytes lie, and the BLAKE3 of them.
    File { extents: Vec<Extent>, digest: Option<[u8; 32]> },
    /// The target.
    Symlink(Vec<u8>),
    /// Devices, pipes.
    Special,
}

struct Grown {
    stat: Stat,
    implied: bool,
    opaque: bool,
    links: u32,
    xattrs: Box<[Xattr]>,
    body: GrownBody,
}

enum GrownBody {
    Directory(BTreeMap<Box<[u8]>, Slot>),
    File { extents: Range<u32>, digest: u32 },
    Symlink(Box<[u8]>),
    Special,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Whiteout,
    Node(u32),
    /// Index into `lower_links`.
    LowerLink(u32),
}

/// An index in the making.
pub(in crate::layer) struct Builder {
    nodes: Vec<Grown>,
    extents: Vec<Extent>,
    digests: Vec<[u8; 32]>,
    lower_links: Vec<Box<[u8]>>,
    /// The directory that was used last: entries of one directory come together.
    nearby: Option<(Vec<u8>, u32)>,
}

impl Builder {
    /// An index that holds nothing but an implied root.
    pub(in crate::layer) fn new() -> Self {
        Self {
            nodes: vec![implied_directory()],
            extents: Vec::new(),
            digests: Vec::new(),
            lower_links: Vec::new(),
            nearby: None,
        }
    }

    /// Adds a node that no name leads to yet.
    pub(in crate::layer) fn add(&mut self, node: Node) -> Result<u32, Fault> {
        let body = match node.body {
            Body::Directory => GrownBody::Directory(BTreeMap::new()),
            Body::Symlink(target) => GrownBody::Symlink(target.into()),
            Body::Special => GrownBody::Special,
            Body::File { extents, digest } => {
                let first = number(self.extents.len())?;
                self.extents.extend(extents);
                let extents = first..number(self.extents.len())?;
                let digest = match digest {
                    None => NO_DIGEST,
                    Some(digest) => {
                        self.digests.push(digest);
                        number(self.digests.len() - 1)?
                    }
                };
                GrownBody::File { extents, digest }
            }
        };
        self.push(Grown {
            stat: node.stat,
            implied: false,
            opaque: false,
            links: 0,
            xattrs: node.xattrs.into(),
            body,
        })
    }

    /// Puts `node` at `path`, over whatever this layer has there.
    pub(in crate::layer) fn put(&mut self, path: &RootPath, node: Node) -> Result<u32, Fault> {
        let is_directory = matches!(node.body, Body::Directory);
        if path.is_root() {
            if !is_directory {
                return Err(Fault::Root);
            }
            self.refresh_directory(0, node);
            return Ok(0);
        }
        let (directory, name) = self.place(path)?;
        let existing = self.slot(directory, name.as_bytes());
        if is_directory
            && let Some(Slot::Node(old)) = existing
            && self.is_directory(old)
        {
            self.refresh_directory(old, node);
            return Ok(old);
        }
        let added = self.add(node)?;
        // Whatever is replaced also hid what lies below; a new directory must go on hiding it.
        if is_directory && existing.is_some() {
            self.nodes[added as usize].opaque = true;
        }
        self.set(directory, name, Slot::Node(added));
        Ok(added)
    }

    /// Makes `path` one more name of `node`.
    pub(in crate::layer) fn link_node(&mut self, path: &RootPath, node: u32) -> Result<(), Fault> {
        self.link_slot(path, Slot::Node(node))
    }

    /// Makes `path` a hard link to what `target` is now: a file of this layer, or
    /// else one of the layers below.
    pub(in crate::layer) fn link(
        &mut self,
        path: &RootPath,
        target: &RootPath,
    ) -> Result<(), Fault> {
        let slot = match self.find(target)? {
            Some(Slot::Node(node)) if self.is_directory(node) => {
                return Err(Fault::LinkToDirectory(target.clone()));
            }
            Some(slot @ (Slot::Node(_) | Slot::LowerLink(_))) => slot,
            Some(Slot::Whiteout) | None => {
                self.lower_links.push(target.as_bytes().into());
                Slot::LowerLink(number(self.lower_links.len() - 1)?)
            }
        };
        self.link_slot(path, slot)
    }

    fn link_slot(&mut self, path: &RootPath, slot: Slot) -> Result<(), Fault> {
        if path.is_root() {
            return Err(Fault::Root);
        }
        let (directory, name) = self.place(path)?;
        self.set(directory, name, slot);
        Ok(())
    }

    /// Says that `path` is gone from the layers below.
    pub(in crate::layer) fn whiteout(&mut self, path: &RootPath) -> Result<(), Fault> {
        if path.is_root() {
            return Err(Fault::Root);
        }
        let (directory, name) = self.place(path)?;
        match self.slot(directory, name.as_bytes()) {
            None => self.set(directory, name, Slot::Whiteout),
            Some(Slot::Node(node)) if self.is_directory(node) => {
                self.nodes[node as usize].opaque = true;
            }
            // What stands there in this layer hides the layers below anyway.
            Some(_) => {}
        }
        Ok(())
    }

    /// Says that nothing below shows through the directory `path`.
    pub(in crate::layer) fn opaque(&mut self, path: &RootPath) -> Result<(), Fault> {
        let directory = self.directory(path.components(), path)?;
        self.nodes[directory as usize].opaque = true;
        Ok(())
    }

    /// The directory that `path` is or will be in, with those above it, and its name there.
    fn place(&mut self, path: &RootPath) -> Result<(u32, Name), Fault> {
        let name = path.file_name().ok_or(Fault::Root)?;
        let whole = path.as_bytes();
        let parent = &whole[..(whole.len() - name.as_bytes().len()).saturating_sub(1)];
        if let Some((nearby, directory)) = &self.nearby
            && nearby == parent
        {
            return Ok((*directory, name));
        }
        let mut components = path.components();
        components.next_back();
        let directory = self.directory(components, path)?;
        self.nearby = Some((parent.to_vec(), directory));
        Ok((directory, name))
    }

    /// Goes down `components` of `path`, making implied directories.
    fn directory<'a>(
        &mut self,
        components: impl Iterator<Item = &'a [u8]>,
        path: &RootPath,
    ) -> Result<u32, Fault> {
        let mut directory = 0;
        for (depth, component) in components.enumerate() {
            let existing = self.slot(directory, component);
            match existing {
                Some(Slot::Node(node)) if self.is_directory(node) => directory = node,
                Some(Slot::Node(node)) if self.kind(node) == Kind::Symlink => {
                    return Err(Fault::ThroughSymlink(prefix(path, depth + 1)));
                }
                Some(Slot::Node(_) | Slot::LowerLink(_)) => {
                    return Err(Fault::ThroughFile(prefix(path, depth + 1)));
                }
                None | Some(Slot::Whiteout) => {
                    let mut implied = implied_directory();
                    implied.opaque = existing.is_some();
                    let made = self.push(implied)?;
                    let name = Name::new(component).ok_or(Fault::Name)?;
                    self.set(directory, name, Slot::Node(made));
                    directory = made;
                }
            }
        }
        Ok(directory)
    }

    /// What this layer says about `path`, without changing anything.
    fn find(&self, path: &RootPath) -> Result<Option<Slot>, Fault> {
        let mut slot = Slot::Node(0);
        for (depth, component) in path.components().enumerate() {
            match slot {
                Slot::Node(node) if self.is_directory(node) => match self.slot(node, component) {
                    Some(next) => slot = next,
                    None => return Ok(None),
                },
                Slot::Node(node) if self.kind(node) == Kind::Symlink => {
                    return Err(Fault::ThroughSymlink(prefix(path, depth)));
                }
                Slot::Whiteout => return Ok(None),
                Slot::Node(_) | Slot::LowerLink(_) => {
                    return Err(Fault::ThroughFile(prefix(path, depth)));
                }
            }
        }
        Ok(Some(slot))
    }

    fn push(&mut self, node: Grown) -> Result<u32, Fault> {
        if self.nodes.len() >= MAX_NODES {
            return Err(Fault::TooLarge("the number of entries"));
        }
        self.nodes.push(node);
        number(self.nodes.len() - 1)
    }

    fn refresh_directory(&mut self, directory: u32, node: Node) {
        let grown = &mut self.nodes[directory as usize];
        grown.stat = node.stat;
        grown.xattrs = node.xattrs.into();
        grown.implied = false;
    }

    fn slot(&self, directory: u32, name: &[u8]) -> Option<Slot> {
        match &self.nodes[directory as usize].body {
            GrownBody::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn set(&mut self, directory: u32, name: Name, slot: Slot) {
        if let GrownBody::Directory(children) = &mut self.nodes[directory as usize].body
            && children.insert(name.as_bytes().into(), slot).is_some()
        {
            // A directory may have been replaced: its path means something else now.
            self.nearby = None;
        }
    }

    fn is_directory(&self, node: u32) -> bool {
        self.kind(node) == Kind::Directory
    }

    fn kind(&self, node: u32) -> Kind {
        self.nodes[node as usize].stat.kind
    }

    /// Lays everything that is still reachable out as the bytes of an index.
    pub(in crate::layer) fn finish(mut self) -> Result<Vec<u8>, Error> {
        let mut out = Sections::default();
        let mut numbers = vec![u32::MAX; self.nodes.len()];
        let mut order = vec![0_u32];
        numbers[0] = 0;
        self.nodes[0].links = 1;
        // Breadth first: a directory is numbered after its parent, and the entries
        // of one directory stand together.
        let mut next = 0;
        let mut ranges = Vec::with_capacity(self.nodes.len());
        while let Some(&old) = order.get(next) {
            next += 1;
            let node = &mut self.nodes[old as usize];
            let GrownBody::Directory(children) = &mut node.body else {
                ranges.push((0, 0));
                continue;
            };
            let children = std::mem::take(children);
            ranges.push((out.entry_count()?, small(children.len())?));
            for (name, slot) in children {
                let name = out.string(&name)?;
                match slot {
                    Slot::Whiteout => out.entry(name, TAG_WHITEOUT, (0, 0)),
                    Slot::LowerLink(index) => {
                        let target = out.string(&self.lower_links[index as usize])?;
                        out.entry(name, TAG_LOWER_LINK, target);
                    }
                    Slot::Node(child) => {
                        let number = &mut numbers[child as usize];
                        if *number == u32::MAX {
                            *number = small(order.len())?;
                            order.push(child);
                        }
                        self.nodes[child as usize].links += 1;
                        out.entry(name, TAG_NODE, (*number, 0));
                    }
                }
            }
        }
        for (&old, &range) in order.iter().zip(&ranges) {
            out.node(&self, &self.nodes[old as usize], range)?;
        }
        out.join(order.len())
    }
}

#[derive(Default)]
struct Sections {
    nodes: Vec<u8>,
    extents: Vec<u8>,
    entries: Vec<u8>,
    xattrs: Vec<u8>,
    digests: Vec<u8>,
    strings: Vec<u8>,
    /// How many of the entries are links to layers below.
    lower_links: u32,
}

impl Sections {
    fn entry_count(&self) -> Result<u32, Error> {
        small(self.entries.len() / ENTRY)
    }

    fn string(&mut self, bytes: &[u8]) -> Result<(u32, u32), Error> {
        let at = (small(self.strings.len())?, small(bytes.len())?);
        self.strings.extend_from_slice(bytes);
        Ok(at)
    }

    fn entry(&mut self, name: (u32, u32), tag: u32, value: (u32, u32)) {
        self.lower_links += u32::from(tag == TAG_LOWER_LINK);
        put_all(&mut self.entries, &[name.0, name.1, tag, value.0, value.1]);
    }

    fn node(&mut self, builder: &Builder, node: &Grown, entries: (u32, u32)) -> Result<(), Error> {
        let (mut range, mut target, mut digest) = (entries, (0, 0), NO_DIGEST);
        match &node.body {
            GrownBody::Directory(_) | GrownBody::Special => {}
            GrownBody::Symlink(bytes) => target = self.string(bytes)?,
            GrownBody::File { extents, digest: index } => {
                range = (small(self.extents.len() / EXTENT)?, extents.end - extents.start);
                for extent in &builder.extents[extents.start as usize..extents.end as usize] {
                    for value in [extent.file_offset, extent.blob_offset, extent.length] {
                        self.extents.extend_from_slice(&value.to_le_bytes());
                    }
                }
                if let Some(known) = builder.digests.get(*index as usize) {
                    digest = small(self.digests.len() / DIGEST)?;
                    self.digests.extend_from_slice(known);
                }
            }
        }
        let xattrs = (small(self.xattrs.len() / XATTR)?, small(node.xattrs.len())?);
        for (name, value) in &node.xattrs {
            let (name, value) = (self.string(name)?, self.string(value)?);
            put_all(&mut self.xattrs, &[name.0, name.1, value.0, value.1]);
        }
        let stat = &node.stat;
        let mut flags = 0;
        if node.implied {
            flags |= FLAG_IMPLIED;
        }
        if node.opaque {
            flags |= FLAG_OPAQUE;
        }
        let links = if stat.kind == Kind::Directory { 1 } else { node.links };
        let out = &mut self.nodes;
        out.extend_from_slice(&[kind_byte(stat.kind), flags]);
        out.extend_from_slice(&stat.mode.to_le_bytes());
        put_all(out, &[stat.uid, stat.gid, stat.mtime.nanoseconds]);
        out.extend_from_slice(&stat.mtime.seconds.to_le_bytes());
        out.extend_from_slice(&stat.size.to_le_bytes());
        put_all(out, &[stat.device.major, stat.device.minor, links, 0]);
        put_all(out, &[range.0, range.1, target.0, target.1, xattrs.0, xattrs.1, digest]);
        Ok(())
    }

    fn join(self, nodes: usize) -> Result<Vec<u8>, Error> {
        debug_assert_eq!(self.nodes.len(), nodes * NODE);
        let parts =
            [self.nodes, self.extents, self.entries, self.xattrs, self.digests, self.strings];
        let total = HEADER + parts.iter().map(Vec::len).sum::<usize>();
        let mut out = Vec::with_capacity(total);
        out.extend_from_slice(&MAGIC);
        put_all(&mut out, &[VERSION, self.lower_links]);
        for (part, width) in parts.iter().zip(super::WIDTHS) {
            out.extend_from_slice(&small(part.len() / width)?.to_le_bytes());
        }
        out.extend_from_slice(&(total as u64).to_le_bytes());
        out.resize(HEADER, 0);
        for part in parts {
            out.extend_from_slice(&part);
        }
        let body_sum = blake3::hash(&out[HEADER..]);
        let head: &mut [u8; HEADER] =
            out.first_chunk_mut().expect("the header was written just above");
        head[super::BODY_SUM..HEADER_SUM].copy_from_slice(body_sum.as_bytes());
        let sum = header_sum(head);
        head[HEADER_SUM..].copy_from_slice(&sum);
        Ok(out)
    }
}

fn implied_directory() -> Grown {
    Grown {
        stat: Stat::new(Kind::Directory, 0o755),
        implied: true,
        opaque: false,
        links: 0,
        xattrs: Box::default(),
        body: GrownBody::Directory(BTreeMap::new()),
    }
}

/// The first `depth` components of `path`.
fn prefix(path: &RootPath, depth: usize) -> RootPath {
    path.components()
        .take(depth)
        .filter_map(Name::new)
        .fold(RootPath::root(), |parent, name| parent.join(&name))
}

fn put_all(out: &mut Vec<u8>, values: &[u32]) {
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn number(value: usize) -> Result<u32, Fault> {
    u32::try_from(value)
        .ok()
        .filter(|&value| value != u32::MAX)
        .ok_or(Fault::TooLarge("the number of data regions"))
}

fn small(value: usize) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error::Index("the layer is too large for it"))
}
