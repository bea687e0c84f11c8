//! Where written bytes go: one append log for small files, a flat file for each
//! large one. Nothing here has a name on the host: a killed process leaves nothing.
//!
//! So each flat file stays open for as long as somebody shows its bytes, which is until
//! the layer with them is written. A [`Budget`] sees to it that they leave descriptors to
//! the rest of the builder; beyond it the log will do.
//!
//! Bytes are overwritten in place only within the *epoch* in which they were
//! written. An epoch ends when somebody gets a handle on a content, and with each
//! mark, so a handle stays true forever.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

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

/// How many flat files there may be at a time.
#[derive(Debug)]
pub(super) struct Budget {
    most: u64,
    taken: AtomicU64,
}

/// One flat file's part of the budget; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Budget>);

impl Budget {
    fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { most, taken: AtomicU64::new(0) })
    }

    /// What all overlays of this process have together: half of the files that it may
    /// have open.
    fn of_process() -> Arc<Self> {
        static OURS: LazyLock<Arc<Budget>> = LazyLock::new(|| {
            let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            Budget::new(files.unwrap_or(u64::MAX) / 2)
        });
        Arc::clone(&OURS)
    }

    fn take(self: &Arc<Self>) -> Option<Ticket> {
        let more = |taken| Some(taken + 1).filter(|&taken| taken <= self.most);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Ticket(Arc::clone(self)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The writable storage of an overlay.
#[derive(Debug)]
pub(super) struct Upper {
    scratch: OwnedFd,
    budget: Arc<Budget>,
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
        Self::within(Budget::of_process(), scratch)
    }

    fn within(budget: Arc<Budget>, scratch: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let scratch = rustix::fs::open(scratch, flags, Mode::empty())?;
        Ok(Self { scratch, budget, log: None, tail: 0, epoch: SEALED + 1, serial: 0 })
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
                let log = Backing::new(Arc::new(self.unnamed()?));
                Arc::clone(self.log.insert(log))
            }
        };
        let at = self.tail;
        self.tail = at.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(Room { backing, at })
    }

    /// Makes a flat file.
    ///
    /// # Errors
    /// `EMFILE` when there are too many already.
    pub(super) fn flat(&mut self) -> io::Result<Arc<Backing>> {
        let ticket = self.budget.take().ok_or(rustix::io::Errno::MFILE)?;
        Ok(Backing::with_ticket(Arc::new(self.unnamed()?), ticket))
    }

    /// Makes a flat file for a copy that has to be made, whatever the budget says. They are
    /// few, and don't live long.
    pub(super) fn flat_for_copy(&mut self) -> io::Result<Arc<Backing>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::Overlay;
    use crate::overlay::inode::ROOT;
    use crate::overlay::ops::NewNode;
    use crate::tree::Device;
    use crate::tree::Kind;

    #[test]
    fn flat_files_keep_within_the_budget_and_the_log_does_not_count() {
        let mut upper = Upper::within(Budget::new(2), &std::env::temp_dir()).expect("a directory");
        upper.reserve(1).expect("a log");
        let (one, _two) = (upper.flat().expect("the first"), upper.flat().expect("the second"));
        let shown_twice = Arc::clone(&one);
        drop(one);
        assert_eq!(upper.flat().unwrap_err().raw_os_error(), Some(libc::EMFILE));
        drop(shown_twice);
        upper.flat().expect("its place is free");
        upper.turn();
    }

    #[test]
    fn a_large_file_goes_to_the_log_when_there_are_too_many() {
        let place = std::env::temp_dir();
        let overlay = Overlay::new(Vec::new(), &place).expect("a directory");
        overlay.table().upper = Upper::within(Budget::new(1), &place).expect("a directory");
        let new = |name: &[u8]| {
            let (kind, device) = (Kind::File, Device::default());
            let new = NewNode { kind, mode: 0o644, uid: 0, gid: 0, device, target: &[] };
            overlay.op_make(ROOT, name, &new).expect("a file").ino
        };
        let files = [new(b"a"), new(b"b"), new(b"c")];
        let bytes = |number: usize| vec![number as u8 + 1; FLAT_FROM as usize];
        for offset in [0, FLAT_FROM] {
            for (number, ino) in files.into_iter().enumerate() {
                overlay.op_write(ino, offset, &bytes(number)).expect("room");
            }
        }
        for (number, ino) in files.into_iter().enumerate() {
            for offset in [0, FLAT_FROM] {
                let mut read = vec![0; FLAT_FROM as usize];
                overlay.op_read(ino, offset, &mut read).expect("readable");
                assert!(read == bytes(number));
            }
        }
        assert_eq!(overlay.table().upper.budget.taken.load(Ordering::Relaxed), 1);
        overlay.op_unlink(ROOT, b"a").expect("a file");
        overlay.op_forget(files[0], 1);
        overlay.mark();
        assert_eq!(overlay.table().upper.budget.taken.load(Ordering::Relaxed), 0);
    }
}
