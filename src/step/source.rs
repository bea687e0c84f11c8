//! Where COPY, ADD and bind mounts take files from: the build context, or the
//! tree of an earlier stage or an image.

use std::io;
use std::num::NonZeroUsize;

use crate::context::ContextTree;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Tree;

/// A tree that files are taken from.
pub enum Source<'a> {
    /// The build context, ignore rules applied.
    Context(&'a ContextTree),
    /// The files of a stage or an image.
    Layers {
        /// The tree.
        tree: &'a dyn Tree,
        /// `stage build`, `image debian`: for messages.
        whose: String,
    },
}

impl Source<'_> {
    /// The tree to read.
    pub fn tree(&self) -> &dyn Tree {
        match self {
            Self::Context(tree) => *tree,
            Self::Layers { tree, .. } => *tree,
        }
    }

    /// How messages call it.
    pub fn whose(&self) -> &str {
        match self {
            Self::Context(_) => "the build context",
            Self::Layers { whose, .. } => whose,
        }
    }

    /// Whether owners are reset to 0:0: files of the context belong to nobody.
    pub fn resets_owner(&self) -> bool {
        matches!(self, Self::Context(_))
    }

    /// BLAKE3 of a file's bytes, remembered where that is possible.
    ///
    /// # Errors
    /// Those of reading; a context file that changes meanwhile.
    pub fn digest(&self, node: NodeId) -> io::Result<[u8; 32]> {
        match self {
            Self::Context(tree) => tree.digest(node).map_err(io::Error::other),
            Self::Layers { tree, .. } => digest_of(*tree, node),
        }
    }

    /// The file capabilities of a file (`security.capability`), if it has some;
    /// remembered where that is possible.
    ///
    /// # Errors
    /// Those of reading.
    pub fn capability(&self, node: NodeId) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Context(tree) => tree.capability(node),
            Self::Layers { tree, .. } => tree.xattr(node, b"security.capability"),
        }
    }

    /// Looks at everything below `node` at once, in parallel where each look costs
    /// something; walking it is then free.
    ///
    /// # Errors
    /// Those of reading.
    pub fn scan(&self, node: NodeId, threads: NonZeroUsize) -> io::Result<()> {
        match self {
            Self::Context(tree) => tree.scan(node, threads),
            Self::Layers { .. } => Ok(()),
        }
    }

    /// Computes the digests of many files at once, in parallel where nothing is
    /// remembered; [`Source::digest`] then answers at once.
    ///
    /// # Errors
    /// As [`Source::digest`].
    pub fn prefetch(&self, nodes: &[NodeId], threads: NonZeroUsize) -> io::Result<()> {
        match self {
            Self::Context(tree) => tree.prefetch_digests(nodes, threads).map_err(io::Error::other),
            Self::Layers { .. } => Ok(()),
        }
    }
}

/// BLAKE3 of a file in any tree.
fn digest_of(tree: &dyn Tree, node: NodeId) -> io::Result<[u8; 32]> {
    if tree.stat(node)?.kind != Kind::File {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let content = tree.content(node)?;
    if let Some(digest) = content.known_digest() {
        return Ok(digest);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 17];
    let mut offset = 0;
    loop {
        match content.read_at(&mut buffer, offset)? {
            0 => return Ok(*hasher.finalize().as_bytes()),
            count => {
                hasher.update(&buffer[..count]);
                offset += count as u64;
            }
        }
    }
}
