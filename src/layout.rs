//! Images as files: OCI image layouts (image-layout.md of the specification) and
//! the tar that `docker load` reads.
//!
//! [`write()`] puts an image into a layout directory, [`add()`] one more, [`Layout`] finds one in it,
//! [`write_docker_archive`] makes the tar, [`unpack_archive`] makes a layout of one. Blobs come from whoever holds them, as
//! open files; every blob's digest is computed on its way, and a wrong one is an
//! error here and never somebody else's surprise.

mod add;
mod archive;
mod docker_archive;
mod error;
mod index;
mod read;
mod write;

use std::fs::File;
use std::io;

pub use add::Named;
pub use add::add;
pub use archive::unpack_archive;
pub use docker_archive::UNSET_NAME;
pub use docker_archive::save_docker_archive;
pub use docker_archive::write_docker_archive;
pub use error::Error;
pub use index::IndexImage;
pub use index::write_index;
pub use read::Blob;
pub use read::Layout;
pub use write::write;

use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;

/// Annotation in `index.json` that gives an image its name (OCI image
/// specification, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What an image consists of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The manifest, OCI's or Docker's.
    pub manifest: Descriptor,
    /// Its bytes, of which the descriptor holds digest and size.
    pub manifest_bytes: Vec<u8>,
    /// The config.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// Opens a blob for reading from its start; `NotFound` if it isn't there.
pub type Blobs<'a> = &'a dyn Fn(&Digest) -> io::Result<File>;

#[cfg(test)]
mod tests;
