//! Why a layer couldn't be written or read.

use std::io;

use crate::path::RootPath;

/// Why a layer couldn't be written, read or looked into.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source of a foreign layer failed.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// The sink of the tar failed.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// The bytes of a file in a change set couldn't be read.
    #[error("cannot read the content of {path}")]
    Content {
        /// The file.
        path: RootPath,
        /// What reading it said.
        #[source]
        source: io::Error,
    },
    /// A content isn't what the change set says: another length or digest.
    #[error("the content of {path} changed after its step ended")]
    ContentChanged {
        /// The file.
        path: RootPath,
    },
    /// A tar layer has no way to say this.
    #[error("{path} cannot be in a layer: {reason}")]
    Unrepresentable {
        /// The path in the change set.
        path: RootPath,
        /// What stands against it.
        reason: &'static str,
    },
    /// An entry of a foreign layer is damaged or refused.
    #[error("bad layer entry `{name}` at byte {offset}")]
    Entry {
        /// Name of the entry, as far as it is known; bytes that are no UTF-8 are replaced.
        name: String,
        /// Where its header starts in the tar.
        offset: u64,
        /// What is wrong with it.
        #[source]
        fault: Fault,
    },
    /// The bytes are no layer index of this version, or damaged.
    #[error("the layer index is unusable: {0}")]
    Index(&'static str),
}

/// What is wrong with an entry of a foreign layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The archive ends inside the entry.
    #[error("the archive is truncated")]
    Truncated,
    /// No header, or a damaged one.
    #[error("the header checksum does not match")]
    Checksum,
    /// One zero block with something other than a zero block behind it.
    #[error("a single zero block stands before a header")]
    LoneZeroBlock,
    /// A number of the header or its extensions can't be read.
    #[error("the field `{0}` is no valid number")]
    Number(&'static str),
    /// An extended header isn't made of `length key=value` records.
    #[error("the extended header is malformed")]
    ExtendedHeader,
    /// A name, an extended header or a count above what is accepted.
    #[error("{0} is too large")]
    TooLarge(&'static str),
    /// A type of entry that has no meaning in a layer.
    #[error("entry type {0:?} is not supported")]
    Type(char),
    /// The list of data regions of a sparse file contradicts itself or its size.
    #[error("the sparse map is invalid")]
    SparseMap,
    /// An extended attribute whose encoding is wrong.
    #[error("an extended attribute is malformed")]
    Xattr,
    /// An empty name, or one with a NUL byte.
    #[error("the name is invalid")]
    Name,
    /// The name, or the target of a hard link, leaves the root.
    #[error("the path leaves the root of the layer")]
    Escapes,
    /// The way to the entry leads through a symbolic link of the same layer.
    #[error("its parent {0} is a symbolic link in the same layer")]
    ThroughSymlink(RootPath),
    /// The way to the entry leads through something that is no directory.
    #[error("its parent {0} is not a directory")]
    ThroughFile(RootPath),
    /// A hard link to a directory.
    #[error("a hard link cannot point to the directory {0}")]
    LinkToDirectory(RootPath),
    /// A hard link into aufs metadata that the layer doesn't hold.
    #[error("the hard link points to metadata that is not in the layer")]
    LinkToMetadata,
    /// The root is something other than a directory.
    #[error("the root can only be a directory")]
    Root,
}
