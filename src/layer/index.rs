//! The index of a layer: what its tar holds, and where.
//!
//! One flat byte string, little-endian, made to be mapped from a file and used
//! without being read: opening touches the header only, and every accessor
//! checks its bounds, so damaged bytes give empty answers and never a panic.
//! [`LayerIndex::verify`] reads everything.
//!
//! ```text
//! header  96 bytes: magic, version, number of links to layers below, six counts, total length,
//!                   BLAKE3 of the rest, BLAKE3 (16 bytes) of the header
//! nodes   76 each:  metadata and ranges into the other sections; node 0 is the root,
//!                   a directory has a larger number than its parent
//! extents 24 each:  file offset, offset in the tar, length
//! entries 20 each:  name and meaning, sorted by name within a directory
//! xattrs  16 each:  name and value
//! digests 32 each:  BLAKE3 of contents
//! strings           names, link targets, attribute values
//! ```
//!
//! Hard links of one file are entries with the same node.

use std::cmp::Ordering;

use crate::layer::error::Error;
use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::Stat;
use crate::tree::Timestamp;
use crate::tree::Xattr;

mod build;

pub(super) use build::Body;
pub(super) use build::Builder;
pub(super) use build::Node;

const MAGIC: [u8; 8] = *b"yadolidx";
/// Raised whenever the layout changes; an index of another version is rebuilt.
const VERSION: u32 = 2;

const HEADER: usize = 96;
const NODE: usize = 76;
const EXTENT: usize = 24;
const ENTRY: usize = 20;
const XATTR: usize = 16;
const DIGEST: usize = 32;

/// Size of a record in each section, in file order; the strings are single bytes.
const WIDTHS: [usize; 6] = [NODE, EXTENT, ENTRY, XATTR, DIGEST, 1];
const NODES: usize = 0;
const EXTENTS: usize = 1;
const ENTRIES: usize = 2;
const XATTRS: usize = 3;
const DIGESTS: usize = 4;
const STRINGS: usize = 5;

/// Where the header keeps the number of entries that are links to layers below.
const LOWER_LINKS: usize = 12;
/// Where the header keeps the BLAKE3 of everything behind it.
const BODY_SUM: usize = 48;
/// Where the header keeps the checksum of everything before it.
const HEADER_SUM: usize = 80;

const FLAG_IMPLIED: u8 = 1;
const FLAG_OPAQUE: u8 = 2;

const TAG_NODE: u32 = 0;
const TAG_WHITEOUT: u32 = 1;
const TAG_LOWER_LINK: u32 = 2;

/// Marks a file without digest.
const NO_DIGEST: u32 = u32::MAX;

/// Metadata of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Type of the node.
    pub kind: Kind,
    /// `mode & 07777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes of a file (holes included) or link target; 0 for everything else.
    pub size: u64,
    /// Last modification.
    pub mtime: Timestamp,
    /// Device numbers; zero unless `kind` is a device.
    pub device: Device,
    /// A directory that the tar doesn't name itself, only something below it: its
    /// metadata is a guess (0755, root), and what lies there below stays as it is.
    pub implied: bool,
    /// A directory through which nothing from below shows.
    pub opaque: bool,
    /// Number of names in this layer; 1 for directories.
    pub links: u32,
}

impl NodeView {
    /// The same as the words of a tree.
    pub fn stat(&self) -> Stat {
        Stat {
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            mtime: self.mtime,
            device: self.device,
            links: self.links,
        }
    }
}

/// What a name in a directory of a layer stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Gone: nothing of that name shows through from below.
    Whiteout,
    /// The node of that number.
    Node(u32),
    /// A hard link to this path (no leading slash) in the layers below.
    LowerLink(&'a [u8]),
}

/// Where a run of a file's bytes lies in the tar. What no extent covers is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte within the file.
    pub file_offset: u64,
    /// First byte within the uncompressed tar.
    pub blob_offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// The index of one layer; see the head of this file.
pub struct LayerIndex {
    bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
    /// Start of each section and number of records in it.
    sections: [(usize, u32); 6],
}

impl LayerIndex {
    /// The node of the root directory.
    pub const ROOT: u32 = 0;

    /// Takes the bytes of an index, for example a mapped file. Checks the header
    /// and the total length and touches nothing else.
    ///
    /// # Errors
    /// [`Error::Index`] when it is damaged, cut, or of another version.
    pub fn from_bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self, Error> {
        let sections = sections(bytes.as_ref())?;
        Ok(Self { bytes: Box::new(bytes), sections })
    }

    /// The bytes it was made of.
    pub fn as_bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Reads everything: the checksum, and that every reference stays inside.
    ///
    /// # Errors
    /// [`Error::Index`] when anything is wrong.
    pub fn verify(&self) -> Result<(), Error> {
        let bytes = self.as_bytes();
        let (head, body) = bytes.split_at_checked(HEADER).ok_or(Error::Index("cut short"))?;
        if head[BODY_SUM..HEADER_SUM] != blake3::hash(body).as_bytes()[..] {
            return Err(Error::Index("its checksum does not match"));
        }
        for number in 0..self.node_count() {
            self.verify_node(number).ok_or(Error::Index("a node refers outside"))?;
        }
        Ok(())
    }

    fn verify_node(&self, number: u32) -> Option<()> {
        let record = self.record::<NODE>(NODES, number)?;
        let kind = kind_from(record[0])?;
        let (first, count) = (u32_at(record, 48), u32_at(record, 52));
        let end = first.checked_add(count)?;
        match kind {
            Kind::Directory => {
                let mut last: Option<&[u8]> = None;
                for index in first..end {
                    let (name, entry) = self.entry(index)?;
                    if last.is_some_and(|last| last >= name) {
                        return None;
                    }
                    last = Some(name);
                    if let Entry::Node(child) = entry {
                        let child_kind = kind_from(self.record::<NODE>(NODES, child)?[0])?;
                        if child == Self::ROOT || (child_kind == Kind::Directory && child <= number)
                        {
                            return None;
                        }
                    }
                }
            }
            Kind::File => {
                for index in first..end {
                    self.record::<EXTENT>(EXTENTS, index)?;
                }
            }
            _ => {}
        }
        self.string(u32_at(record, 56), u32_at(record, 60))?;
        let digest = u32_at(record, 72);
        if digest != NO_DIGEST {
            self.record::<DIGEST>(DIGESTS, digest)?;
        }
        let first = u32_at(record, 64);
        for index in first..first.checked_add(u32_at(record, 68))? {
            self.xattr(index)?;
        }
        Some(())
    }

    /// Number of nodes; they are numbered from 0, the root.
    pub fn node_count(&self) -> u32 {
        self.sections[NODES].1
    }

    /// Metadata of `node`. A number that the index doesn't have, which only a
    /// damaged index leads to, gives an empty, implied file without permissions.
    pub fn node(&self, node: u32) -> NodeView {
        self.view(node).unwrap_or(NodeView {
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Timestamp::seconds(0),
            device: Device { major: 0, minor: 0 },
            implied: true,
            opaque: false,
            links: 1,
        })
    }

    fn view(&self, node: u32) -> Option<NodeView> {
        let record = self.record::<NODE>(NODES, node)?;
        Some(NodeView {
            kind: kind_from(record[0])?,
            mode: u16::from_le_bytes([record[2], record[3]]) & 0o7777,
            uid: u32_at(record, 4),
            gid: u32_at(record, 8),
            size: u64_at(record, 24),
            mtime: Timestamp {
                seconds: u64_at(record, 16).cast_signed(),
                nanoseconds: u32_at(record, 12).min(999_999_999),
            },
            device: Device { major: u32_at(record, 32), minor: u32_at(record, 36) },
            implied: record[1] & FLAG_IMPLIED != 0,
            opaque: record[1] & FLAG_OPAQUE != 0,
            links: u32_at(record, 40),
        })
    }

    /// Number of names that are hard links to files of the layers below. Hardly any
    /// layer has one.
    pub fn lower_link_count(&self) -> u32 {
        self.as_bytes().first_chunk::<HEADER>().map_or(0, |head| u32_at(head, LOWER_LINKS))
    }

    /// The hard links to files of the layers below: their path, and the path they link
    /// to. Reads the whole index if there is one, and nothing if there is none.
    pub fn lower_links(&self) -> Vec<(RootPath, RootPath)> {
        let mut links = Vec::new();
        let mut pending = Vec::new();
        if self.lower_link_count() > 0 {
            pending.push((RootPath::root(), Self::ROOT));
        }
        while let Some((path, directory)) = pending.pop() {
            for (name, entry) in self.children(directory) {
                let Some(name) = Name::new(name) else { continue };
                match entry {
                    Entry::Whiteout => {}
                    Entry::LowerLink(target) => {
                        links.extend(RootPath::clamped(target).map(|to| (path.join(&name), to)));
                    }
                    // A larger number than its parent's: damaged bytes make no circle.
                    Entry::Node(child)
                        if child > directory && self.node(child).kind == Kind::Directory =>
                    {
                        pending.push((path.join(&name), child));
                    }
                    Entry::Node(_) => {}
                }
            }
        }
        links
    }

    /// What `directory` holds under `name`; `None` if it says nothing about it or
    /// is no directory.
    pub fn child(&self, directory: u32, name: &[u8]) -> Option<Entry<'_>> {
        let (mut low, mut high) = self.entry_range(directory);
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, entry) = self.entry(middle)?;
            match found.cmp(name) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(entry),
            }
        }
        None
    }

    /// Everything `directory` names, sorted by name; nothing if it is no directory.
    pub fn children(&self, directory: u32) -> impl Iterator<Item = (&[u8], Entry<'_>)> {
        let (first, end) = self.entry_range(directory);
        (first..end).map_while(|index| self.entry(index))
    }

    /// Target of the symbolic link `node`; empty for anything else.
    pub fn link_target(&self, node: u32) -> &[u8] {
        self.record::<NODE>(NODES, node)
            .and_then(|record| self.string(u32_at(record, 56), u32_at(record, 60)))
            .unwrap_or_default()
    }

    /// Extended attributes of `node`, sorted by name.
    pub fn xattrs(&self, node: u32) -> Vec<Xattr> {
        let Some(record) = self.record::<NODE>(NODES, node) else { return Vec::new() };
        let first = u32_at(record, 64);
        let end = first.saturating_add(u32_at(record, 68));
        (first..end).map_while(|index| self.xattr(index)).collect()
    }

    /// Where the bytes of the file `node` lie, in order and without overlap;
    /// nothing if it is no file. What lies between is zeros, up to the file's size.
    pub fn extents(&self, node: u32) -> impl Iterator<Item = Extent> {
        let (first, end) = self.range(node, Kind::File);
        (first..end).map_while(|index| {
            let record = self.record::<EXTENT>(EXTENTS, index)?;
            Some(Extent {
                file_offset: u64_at(record, 0),
                blob_offset: u64_at(record, 8),
                length: u64_at(record, 16),
            })
        })
    }

    /// BLAKE3 of the content of the file `node`; `None` if it is no file, or a
    /// sparse one.
    pub fn digest(&self, node: u32) -> Option<[u8; 32]> {
        let record = self.record::<NODE>(NODES, node)?;
        self.record::<DIGEST>(DIGESTS, u32_at(record, 72)).copied()
    }

    fn entry_range(&self, directory: u32) -> (u32, u32) {
        self.range(directory, Kind::Directory)
    }

    /// The range that `node` has in the section of its kind; empty for other kinds.
    fn range(&self, node: u32, kind: Kind) -> (u32, u32) {
        match self.record::<NODE>(NODES, node) {
            Some(record) if kind_from(record[0]) == Some(kind) => {
                let first = u32_at(record, 48);
                (first, first.saturating_add(u32_at(record, 52)))
            }
            _ => (0, 0),
        }
    }

    fn entry(&self, index: u32) -> Option<(&[u8], Entry<'_>)> {
        let record = self.record::<ENTRY>(ENTRIES, index)?;
        let name = self.string(u32_at(record, 0), u32_at(record, 4))?;
        let value = u32_at(record, 12);
        let entry = match u32_at(record, 8) {
            TAG_NODE => Entry::Node(value),
            TAG_WHITEOUT => Entry::Whiteout,
            TAG_LOWER_LINK => Entry::LowerLink(self.string(value, u32_at(record, 16))?),
            _ => return None,
        };
        Some((name, entry))
    }

    fn xattr(&self, index: u32) -> Option<Xattr> {
        let record = self.record::<XATTR>(XATTRS, index)?;
        let name = self.string(u32_at(record, 0), u32_at(record, 4))?;
        let value = self.string(u32_at(record, 8), u32_at(record, 12))?;
        Some((name.to_vec(), value.to_vec()))
    }

    fn string(&self, offset: u32, length: u32) -> Option<&[u8]> {
        let (start, size) = self.sections[STRINGS];
        let end = offset.checked_add(length).filter(|&end| end <= size)?;
        self.as_bytes().get(start + offset as usize..start + end as usize)
    }

    fn record<const SIZE: usize>(&self, section: usize, index: u32) -> Option<&[u8; SIZE]> {
        let (start, count) = self.sections[section];
        if index >= count {
            return None;
        }
        let at = start + index as usize * SIZE;
        self.as_bytes().get(at..at + SIZE)?.try_into().ok()
    }
}

impl std::fmt::Debug for LayerIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LayerIndex({} nodes)", self.node_count())
    }
}

/// Reads and checks the header of an index.
fn sections(bytes: &[u8]) -> Result<[(usize, u32); 6], Error> {
    let head: &[u8; HEADER] = bytes.first_chunk().ok_or(Error::Index("cut short"))?;
    if head[..8] != MAGIC {
        return Err(Error::Index("not an index"));
    }
    if u32_at(head, 8) != VERSION {
        return Err(Error::Index("another version"));
    }
    if head[HEADER_SUM..] != header_sum(head) {
        return Err(Error::Index("its header is damaged"));
    }
    let mut sections = [(0, 0); 6];
    let mut start = HEADER;
    for (index, width) in WIDTHS.iter().enumerate() {
        let count = u32_at(head, 16 + 4 * index);
        sections[index] = (start, count);
        start = (count as usize)
            .checked_mul(*width)
            .and_then(|length| start.checked_add(length))
            .ok_or(Error::Index("its header is damaged"))?;
    }
    if start != bytes.len() || u64_at(head, 40) != start as u64 {
        return Err(Error::Index("cut short"));
    }
    Ok(sections)
}

fn header_sum(head: &[u8; HEADER]) -> [u8; HEADER - HEADER_SUM] {
    let mut sum = [0; HEADER - HEADER_SUM];
    sum.copy_from_slice(&blake3::hash(&head[..HEADER_SUM]).as_bytes()[..HEADER - HEADER_SUM]);
    sum
}

/// Reads at a fixed place of a fixed-size record.
fn u32_at<const SIZE: usize>(record: &[u8; SIZE], at: usize) -> u32 {
    u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
}

/// Reads at a fixed place of a fixed-size record.
fn u64_at<const SIZE: usize>(record: &[u8; SIZE], at: usize) -> u64 {
    u64::from(u32_at(record, at)) | u64::from(u32_at(record, at + 4)) << 32
}

fn kind_byte(kind: Kind) -> u8 {
    match kind {
        Kind::File => 0,
        Kind::Directory => 1,
        Kind::Symlink => 2,
        Kind::CharDevice => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
    }
}

fn kind_from(byte: u8) -> Option<Kind> {
    Some(match byte {
        0 => Kind::File,
        1 => Kind::Directory,
        2 => Kind::Symlink,
        3 => Kind::CharDevice,
        4 => Kind::BlockDevice,
        5 => Kind::Fifo,
        6 => Kind::Socket,
        _ => return None,
    })
}
