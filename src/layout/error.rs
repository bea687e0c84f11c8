//! Why an image can't be written to files or read from them.

use std::io;
use std::path::PathBuf;

use crate::oci::digest::Digest;
use crate::oci::manifest::ParseManifestError;
use crate::oci::platform::Platform;

/// A failure with image files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of a layout can't be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of a layout can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive can't be written.
    #[error("cannot write the image archive")]
    Archive(#[source] io::Error),
    /// A blob of the image can't be had from its source.
    #[error("cannot read blob {digest}")]
    Blob {
        /// Which.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// A blob is not what its descriptor says.
    #[error("blob {digest} should have {size} bytes, but has {found_size} and digest {found}")]
    Mismatch {
        /// What the descriptor says.
        digest: Digest,
        /// Bytes that the descriptor says.
        size: u64,
        /// What was computed.
        found: Digest,
        /// Bytes that were there, as far as they were read.
        found_size: u64,
    },
    /// The directory holds no layout.
    #[error("{} is not an OCI image layout: {reason}", path.display())]
    NotALayout {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The tar holds no image, or not exactly one.
    #[error("{} is not an image archive: {reason}", path.display())]
    NotAnArchive {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A document of the layout is no manifest.
    #[error("{} is malformed", path.display())]
    Malformed {
        /// Where it stands.
        path: PathBuf,
        /// Why.
        source: ParseManifestError,
    },
    /// No image has the name, or one of several must be chosen.
    #[error("{} holds {}: {}", path.display(), wanted_text(wanted.as_ref()), held_text(names))]
    NoImage {
        /// The layout.
        path: PathBuf,
        /// The name asked for; none when the only image was.
        wanted: Option<String>,
        /// The names that are there; digests of images without one.
        names: Vec<String>,
    },
    /// The image is not there for this platform.
    #[error(
        "the image in {} is not there for {wanted}, only for {}",
        path.display(),
        listed(offered)
    )]
    NoPlatform {
        /// The layout.
        path: PathBuf,
        /// The platform asked for.
        wanted: Box<Platform>,
        /// Those that are there.
        offered: Vec<Platform>,
    },
    /// Indexes that name each other, or a senseless number of levels.
    #[error("the image in {} has indexes within indexes too deep to follow", path.display())]
    TooDeep {
        /// The layout.
        path: PathBuf,
    },
}

fn wanted_text(wanted: Option<&String>) -> String {
    match wanted {
        Some(name) => format!("no image `{name}`"),
        None => "not exactly one image".to_owned(),
    }
}

fn held_text(names: &[String]) -> String {
    if names.is_empty() {
        "it is empty".to_owned()
    } else {
        format!("there is {}", names.join(", "))
    }
}

fn listed(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "unnamed ones".to_owned();
    }
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
