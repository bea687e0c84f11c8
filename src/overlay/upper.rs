//! Where written bytes go: one append log for small files, a flat file for each
//! large one. Nothing here has a name on the host: a killed process leaves nothing.
//!
//! Bytes are overwritten in place only within the *epoch* in which they were
//! written. An epoch ends when somebody gets a handle on a content, and with each
//! mark, so a handle stays true forever.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;

use super::extent::Backing;
use super::extent::SEALED;

/// A file longer than this gets a flat file of its own, so its space comes back
/// when it is removed.
pub(super) const FLAT_FROM: u64 = 1 << 20;
/// A log at least this long is left behind at a mark: its space comes back as soon
/// as the layer of that step is written and settled.
const ROTATE_FROM: u64 = 4 << 20;

/// The writable storage of an overlay.
#[derive(Debug)]
pub(super) struct Upper {
    scratch: OwnedFd,
    log: Option<Arc<Backing>>,
    /// First free byte of the log.
    tail: u64,
    epoch: u64,
    serial: u64,
}

/// A place for bytes in the log.
pub(super) struct Room {
    pub(super) backing: Arc<Backing>,
    pub(super) at: u64,
}

impl Upper {
    /// Opens the directory `scratch`; nothing is created until something is written.
    pub(super) fn new(scratch: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let scratch = rustix::fs::open(scratch, flags, Mode::empty())?;
        Ok(Self { scratch, log: None, tail: 0, epoch: SEALED + 1, serial: 0 })
    }

    pub(super) fn scratch(&self) -> &OwnedFd {
        &self.scratch
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Ends the epoch: what was written so far stays as it is.
    pub(super) fn seal(&mut self) {
        self.epoch += 1;
    }

    /// Ends the epoch and lets go of a log that has become long.
    pub(super) fn turn(&mut self) {
        self.seal();
        if self.tail >= ROTATE_FROM {
            self.log = None;
            self.tail = 0;
        }
    }

    /// Takes `length` bytes of the log.
    pub(super) fn reserve(&mut self, length: u64) -> io::Result<Room> {
        let backing = match &self.log {
            Some(log) => Arc::clone(log),
            None => {
                let log = self.flat()?;
                Arc::clone(self.log.insert(log))
            }
        };
        let at = self.tail;
        self.tail = at.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(Room { backing, at })
    }

    /// Makes a flat file.
    pub(super) fn flat(&mut self) -> io::Result<Arc<Backing>> {
        Ok(Backing::new(Arc::new(self.unnamed()?)))
    }

    fn unnamed(&mut self) -> io::Result<File> {
        let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        match rustix::fs::openat(&self.scratch, c".", flags | OFlags::TMPFILE, mode) {
            Ok(file) => Ok(File::from(file)),
            // Not every filesystem has O_TMPFILE (NFS, older overlayfs).
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
                self.serial += 1;
                let name = format!("upper-{}-{}", std::process::id(), self.serial);
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                let file = rustix::fs::openat(&self.scratch, name.as_str(), flags, mode)?;
                rustix::fs::unlinkat(&self.scratch, name.as_str(), AtFlags::empty())?;
                Ok(File::from(file))
            }
            Err(error) => Err(error.into()),
        }
    }
}
