//! Layers as tar archives: change sets become tars, foreign tars become indexes.
//!
//! [`write`](write()) turns a [`ChangeSet`](crate::change::ChangeSet) into the
//! tar a registry gets; [`read`](read()) takes a tar that came from one. Both
//! are one streamed pass that gives, besides the bytes, a [`LayerIndex`]: what
//! the layer holds and where in the tar each content lies, so a layer is used
//! where it is and never unpacked.
//!
//! Nothing here opens a file or knows where bytes come from or go to. Names that
//! begin with `.wh.` exist in `layer/whiteout.rs` alone.

pub mod ahead;
pub mod compress;
pub mod decompress;
pub mod tee;

mod error;
mod header;
mod index;
mod read;
mod whiteout;
mod write;

pub use error::Error;
pub use error::Fault;
pub use index::Entry;
pub use index::Extent;
pub use index::LayerIndex;
pub use index::NodeView;
pub use read::read;
pub use read::read_archive;
pub use write::WriteOptions;
pub use write::write;

use crate::oci::digest::DiffId;

/// What a pass over a layer leaves behind.
#[derive(Clone, Debug)]
pub struct Written {
    /// SHA-256 of the tar.
    pub diff_id: DiffId,
    /// Length of the tar in bytes.
    pub size: u64,
    /// The bytes of the layer's [`LayerIndex`].
    pub index: Vec<u8>,
    /// Number of entries in the tar, whiteouts included.
    pub entries: u64,
}

#[cfg(test)]
mod tests;
