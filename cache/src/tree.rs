//! Removing directory trees of the cache without leaving it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How far a removal may go and how far it came.
#[derive(Debug)]
pub(crate) struct Tally {
    deadline: Option<Instant>,
    freed: u64,
}

impl Tally {
    pub(crate) fn new(deadline: Option<Instant>) -> Self {
        Self { deadline, freed: 0 }
    }

    /// Bytes on disk that belonged to removed files.
    pub(crate) fn freed(&self) -> u64 {
        self.freed
    }

    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// Removes a file or directory tree, but never enters what is mounted in it: a
/// killed build may have left a bind mount of somebody's files. Without openat2
/// (before Linux 5.6, or refused by a filter) directories are left alone. Stops when
/// the time is over.
pub(crate) fn remove_tree(
    parent: impl AsFd,
    name: &OsStr,
    tally: &mut Tally,
) -> rustix::io::Result<()> {
    let directory = match open_unmounted(&parent, name) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return remove_file(&parent, name, tally),
        Err(errno) => return Err(errno),
    };
    for entry in Dir::read_from(&directory)? {
        if tally.is_over() {
            return Err(Errno::AGAIN);
        }
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            known => known == FileType::Directory,
        };
        // One entry that cannot go must not keep its siblings.
        let _ = match is_directory {
            true => remove_tree(&directory, name, tally),
            false => remove_file(&directory, name, tally),
        };
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn remove_file(parent: impl AsFd, name: &OsStr, tally: &mut Tally) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
    if stat.st_nlink <= 1 {
        tally.freed += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }
    Ok(())
}

fn open_unmounted(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), inside)
}
