//! A root filesystem: the overlay over a stack of layers, shown to processes only
//! when one has to see it: by mounting it ([`Root::mount`]), or, where nothing can be
//! mounted, by making the container's own `/` a mirror of it ([`in_place`]).

mod files;
pub mod in_place;
pub mod outside;
mod read;
mod watched;
mod write;

pub use in_place::InPlace;
pub use write::Written;

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::overlay::Lower;
use crate::overlay::MountError;
use crate::overlay::MountOptions;
use crate::overlay::Overlay;
use crate::overlay::Session;
use crate::overlay::Transport;

/// An overlay, and its mount once there is one. Dropping it unmounts.
pub struct Root {
    // Declared first: the session goes before the overlay it serves.
    session: Option<Session>,
    overlay: Arc<Overlay>,
    scratch: PathBuf,
}

/// Why a root can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The scratch directory can't be used.
    #[error("cannot use {path} for the root filesystem: {source}")]
    Scratch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The overlay can't be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The container's own root can't be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another build uses the container's root.
    #[error("another build is using the root of this container")]
    Busy,
    /// `--ignore-path` is malformed.
    #[error("--ignore-path: {0}")]
    Pattern(String),
}

impl Root {
    /// A root over `lowers`, bottom first. What is written to it lies in `scratch`,
    /// a directory of this root alone.
    ///
    /// # Errors
    /// [`Error::Scratch`].
    pub fn new(lowers: Vec<Lower>, scratch: PathBuf) -> Result<Self, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Scratch { path, source }
        };
        let upper = scratch.join("upper");
        fs::create_dir_all(&upper).map_err(failed(&upper))?;
        let overlay = Overlay::new(lowers, &upper).map_err(failed(&upper))?;
        Ok(Self { session: None, overlay, scratch })
    }

    /// The files.
    pub fn overlay(&self) -> &Arc<Overlay> {
        &self.overlay
    }

    /// A directory for whatever belongs to this root.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Mounts the overlay if it isn't mounted yet; the only place where a mount of a
    /// root happens. Gives the directory.
    ///
    /// # Errors
    /// [`Error::Mount`] naming what the host doesn't allow.
    pub fn mount(&mut self, transport: Transport, passthrough: bool) -> Result<PathBuf, Error> {
        let at = self.scratch.join("root");
        if self.session.is_none() {
            fs::create_dir_all(&at)
                .map_err(|source| Error::Scratch { path: at.clone(), source })?;
            let options = MountOptions { transport, passthrough, ..MountOptions::default() };
            self.session = Some(self.overlay.mount(&at, options)?);
        }
        Ok(at)
    }

    /// Why the mount, if there is one, isn't served in the best way that the host offers.
    pub fn fallback(&self) -> Option<&str> {
        self.session.as_ref()?.fallback()
    }

    /// Brings every write of ended processes into the overlay: pages of shared
    /// memory maps may still be on their way.
    ///
    /// # Errors
    /// Those of `syncfs(2)`.
    pub fn sync(&self) -> io::Result<()> {
        self.session.as_ref().map_or(Ok(()), Session::sync)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.session = None;
        // The lease's directory goes as a whole at the end; this only frees space early.
        let _ = fs::remove_dir(self.scratch.join("root"));
        let _ = fs::remove_dir_all(&self.scratch);
    }
}
