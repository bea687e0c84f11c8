//! Space on its way back: what is no longer wanted is renamed into `trash/`, which
//! takes no time and is seen by all at once, and deleted later by whoever has time.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use crate::directory::unique_name;
use crate::tree::{Tally, remove_tree};

/// Moves a file or directory of the cache out of everybody's sight.
///
/// # Errors
///
/// When it can't be renamed; one that is gone is no error.
pub fn discard(cache: &Path, path: &Path) -> io::Result<()> {
    let target = cache.join("trash").join(unique_name());
    match fs::rename(path, target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => Ok(()),
        other => other,
    }
}

/// What [`empty`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Emptied {
    /// Bytes on disk given back.
    pub freed: u64,
    /// Whether something is left, for want of time or of permission.
    pub left: bool,
}

/// Deletes what lies in `trash/` until `deadline`. Safe beside other processes that
/// do the same; never enters what is mounted there.
pub fn empty(cache: &Path, deadline: Option<Instant>) -> Emptied {
    let trash = cache.join("trash");
    let mut tally = Tally::new(deadline);
    let Ok(entries) = fs::read_dir(&trash) else { return Emptied::default() };
    let Ok(parent) = File::open(&trash) else { return Emptied::default() };
    for entry in entries.flatten() {
        if tally.is_over() {
            break;
        }
        // Gone already: another process had the same idea.
        let _ = remove_tree(parent.as_fd(), &entry.file_name(), &mut tally);
    }
    let left = fs::read_dir(&trash).is_ok_and(|mut entries| entries.next().is_some());
    Emptied { freed: tally.freed(), left }
}
