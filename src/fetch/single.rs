//! A tree of one file: what COPY sees of something downloaded.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::path::Name;
use crate::tree::Content;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::ReadAt;
use crate::tree::Stat;
use crate::tree::Timestamp;
use crate::tree::Tree;
use crate::tree::Xattr;

const ROOT: NodeId = NodeId(1);
const FILE: NodeId = NodeId(2);

/// Permissions of a downloaded file, as BuildKit gives them.
const MODE: u16 = 0o600;

/// A root directory with one file in it, owned by root, mode 0600.
pub struct SingleFile {
    name: Name,
    content: Arc<Bytes>,
    mtime: Timestamp,
}

struct Bytes {
    file: File,
    length: u64,
}

impl SingleFile {
    /// A tree of `file`, called `name` there.
    ///
    /// # Errors
    /// When the file doesn't tell its length.
    pub fn new(name: Name, file: File, mtime: Timestamp) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { name, content: Arc::new(Bytes { file, length }), mtime })
    }
}

impl ReadAt for Bytes {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

fn unknown() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Tree for SingleFile {
    fn root(&self) -> NodeId {
        ROOT
    }

    fn stat(&self, node: NodeId) -> io::Result<Stat> {
        match node {
            ROOT => Ok(Stat { mtime: self.mtime, ..Stat::new(Kind::Directory, 0o755) }),
            FILE => Ok(Stat {
                size: self.content.length,
                mtime: self.mtime,
                ..Stat::new(Kind::File, MODE)
            }),
            _ => Err(unknown()),
        }
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> io::Result<Option<NodeId>> {
        match directory {
            ROOT => Ok((name == self.name.as_bytes()).then_some(FILE)),
            FILE => Ok(None),
            _ => Err(unknown()),
        }
    }

    fn children(&self, directory: NodeId) -> io::Result<Vec<(Name, NodeId)>> {
        match directory {
            ROOT => Ok(vec![(self.name.clone(), FILE)]),
            FILE => Err(io::ErrorKind::NotADirectory.into()),
            _ => Err(unknown()),
        }
    }

    fn link_target(&self, _node: NodeId) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::InvalidInput.into())
    }

    fn xattrs(&self, _node: NodeId) -> io::Result<Vec<Xattr>> {
        Ok(Vec::new())
    }

    fn content(&self, node: NodeId) -> io::Result<Content> {
        match node {
            FILE => Ok(Arc::clone(&self.content) as Content),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }
}
