//! A read-only file tree, whoever holds it: an overlay, a stack of layers, a
//! directory on disk, a model in a test.
//!
//! Nodes are addressed by [`NodeId`], not by path: two names with the same id
//! are hard links of one file, and a node keeps its id when it is renamed. The
//! snapshot rests on both.

pub mod resolve;

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::path::{Name, RootPath};

/// Identity of a file within one tree, and between the *before* and *after*
/// trees of one root. An inode number in the overlay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u64);

/// What a node is (`S_IFMT` of inode(7)).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

/// Seconds and nanoseconds since the epoch, as `struct timespec`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z; negative before it.
    pub seconds: i64,
    /// 0 to 999,999,999, always forward from `seconds`.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// A time on a whole second.
    pub const fn seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }
}

/// Device numbers of a character or block device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// The metadata of a node that an image can carry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stat {
    /// Type of the node.
    pub kind: Kind,
    /// Permission bits, set-id bits and the sticky bit: `mode & 07777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes of a file or link target; 0 for everything else.
    pub size: u64,
    /// Last modification.
    pub mtime: Timestamp,
    /// Device numbers; zero unless `kind` is a device.
    pub device: Device,
    /// Number of names a file has; 1 where the tree doesn't count.
    pub links: u32,
}

impl Stat {
    /// A node of `kind` with permissions `mode`, owned by root, empty, from the epoch.
    pub const fn new(kind: Kind, mode: u16) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Timestamp::seconds(0),
            device: Device { major: 0, minor: 0 },
            links: 1,
        }
    }

    /// Whether this is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// The bytes of a regular file, readable for as long as the value lives,
/// whatever happens to the tree it came from.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads into `buffer` from `offset` on; short only at the end, 0 past it.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// BLAKE3 of all bytes, if it is known without reading them.
    fn known_digest(&self) -> Option<[u8; 32]> {
        None
    }

    /// A token such that two contents with the same token hold the same bytes;
    /// `None` when nothing is known. Lets a snapshot skip comparing bytes.
    fn identity(&self) -> Option<u128> {
        None
    }
}

/// A shared handle on a file's bytes.
pub type Content = Arc<dyn ReadAt>;

impl fmt::Debug for dyn ReadAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.len())
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(Vec::len(self));
        let count = buffer.len().min(Vec::len(self) - start);
        buffer[..count].copy_from_slice(&self[start..start + count]);
        Ok(count)
    }
}

/// Reads a [`Content`] from its start to its end.
pub struct ContentReader {
    content: Content,
    offset: u64,
}

impl ContentReader {
    /// A reader at offset 0.
    pub fn new(content: Content) -> Self {
        Self { content, offset: 0 }
    }
}

impl io::Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl io::Seek for ContentReader {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        let target = match position {
            io::SeekFrom::Start(offset) => Some(offset),
            io::SeekFrom::End(offset) => self.content.len().checked_add_signed(offset),
            io::SeekFrom::Current(offset) => self.offset.checked_add_signed(offset),
        };
        self.offset = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.offset)
    }
}

/// Whether two contents hold the same bytes; reads only where nothing is known.
///
/// # Errors
/// Those of reading either content.
pub fn same_bytes(left: &Content, right: &Content) -> io::Result<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    if let (Some(left), Some(right)) = (left.identity(), right.identity())
        && left == right
    {
        return Ok(true);
    }
    if let (Some(left), Some(right)) = (left.known_digest(), right.known_digest()) {
        return Ok(left == right);
    }
    let (mut one, mut two) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut offset = 0;
    while offset < left.len() {
        let wanted = usize::try_from(left.len() - offset).unwrap_or(usize::MAX).min(one.len());
        read_exact_at(left, &mut one[..wanted], offset)?;
        read_exact_at(right, &mut two[..wanted], offset)?;
        if one[..wanted] != two[..wanted] {
            return Ok(false);
        }
        offset += wanted as u64;
    }
    Ok(true)
}

/// Fills `buffer` from `offset` on.
///
/// # Errors
/// `UnexpectedEof` if the content ends first; else those of reading.
pub fn read_exact_at(content: &Content, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match content.read_at(&mut buffer[done..], offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(())
}

/// An extended attribute: full name (`security.capability`) and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// A file tree that can be read. Ids come from the tree itself; one that it
/// never gave out is answered with `NotFound`.
pub trait Tree {
    /// The root directory.
    fn root(&self) -> NodeId;

    /// Metadata of `node`.
    fn stat(&self, node: NodeId) -> io::Result<Stat>;

    /// The child of `directory` called `name`; `None` if there is none or
    /// `directory` is no directory. Links aren't followed.
    fn child(&self, directory: NodeId, name: &[u8]) -> io::Result<Option<NodeId>>;

    /// All children of `directory`, sorted by the bytes of their names.
    fn children(&self, directory: NodeId) -> io::Result<Vec<(Name, NodeId)>>;

    /// Target of the symbolic link `node`.
    fn link_target(&self, node: NodeId) -> io::Result<Vec<u8>>;

    /// Extended attributes of `node`, sorted by name.
    fn xattrs(&self, node: NodeId) -> io::Result<Vec<Xattr>>;

    /// Bytes of the regular file `node`.
    fn content(&self, node: NodeId) -> io::Result<Content>;

    /// Where the directory `directory` hangs: its parent and its name there; `None`
    /// for the root.
    ///
    /// # Errors
    /// `NotFound` if the tree has no such directory, `Unsupported` if it can't tell
    /// without a search (the default). A snapshot searches then.
    fn parent(&self, directory: NodeId) -> io::Result<Option<(NodeId, Name)>> {
        let _ = directory;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Every name of the file `node`, as (directory, name), in any order; `None` if
    /// the tree can't tell without a search (the default).
    fn names(&self, node: NodeId) -> io::Result<Option<Vec<(NodeId, Name)>>> {
        let _ = node;
        Ok(None)
    }

    /// The node at `path`, links not followed; `None` if there is nothing.
    fn find(&self, path: &RootPath) -> io::Result<Option<NodeId>> {
        let mut node = self.root();
        for name in path.components() {
            match self.child(node, name)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// The extended attribute `name` of `node`.
    fn xattr(&self, node: NodeId, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.xattrs(node)?.into_iter().find(|(key, _)| key == name).map(|(_, value)| value))
    }
}
