//! What is asked of a flat file, and done to it, while the kernel uses it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::fs::FallocateFlags;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::tree::Timestamp;

/// Runs of data that a file may have to be passed through, or is looked through for when
/// it lands: behind them all counts as data.
pub(super) const MAX_RUNS: usize = 1024;
/// Time of last modification of a flat file that wasn't written to since. No clock says it.
pub(super) const UNWRITTEN: Timestamp = Timestamp { seconds: 1, nanoseconds: 1 };

/// `F_SETSIG` of fcntl(2), which the crate lacks.
const SET_SIGNAL: i32 = 10;

/// Whether nobody but us has `file` open or mapped.
pub(super) fn is_ours_alone(file: &File) -> io::Result<bool> {
    let lease = |kind: i32| {
        // SAFETY: fcntl with a number as its argument touches no memory of ours.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match lease(libc::F_WRLCK) {
        Ok(()) => lease(libc::F_UNLCK).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a flat file ready to be asked whether it is ours alone: were the lease broken in
/// the moment in which it is held, the signal would be one that does nothing.
pub(super) fn tame(file: &File) -> io::Result<()> {
    // SAFETY: as above.
    match unsafe { libc::fcntl(file.as_raw_fd(), SET_SIGNAL, libc::SIGURG) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Marks `file` as not written to.
pub(super) fn stamp(file: &File) -> io::Result<()> {
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let Timestamp { seconds: tv_sec, nanoseconds } = UNWRITTEN;
    let unwritten = rustix::fs::Timespec { tv_sec, tv_nsec: nanoseconds.into() };
    let times = rustix::fs::Timestamps { last_access: omit, last_modification: unwritten };
    Ok(rustix::fs::futimens(file, &times)?)
}

pub(super) fn punch(file: &File, range: &Range<u64>) -> io::Result<()> {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, how, range.start, range.end - range.start)?)
}

/// Where `file`, `size` bytes long, has data.
pub(super) fn runs(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(_) if runs.len() == MAX_RUNS => size,
            Ok(end) => end.min(size),
            // Cut meanwhile.
            Err(Errno::NXIO) => size,
            Err(error) => return Err(error.into()),
        };
        if start < at {
            runs.push(start..at);
        }
    }
    Ok(runs)
}

/// Copies what `file` has in `runs` to the same places of `to`, without reading it where
/// the filesystem can do that. Gives the runs that there were: less, if the file is cut
/// meanwhile.
pub(super) fn copy_runs(
    file: &File,
    runs: Vec<Range<u64>>,
    to: &File,
) -> io::Result<Vec<Range<u64>>> {
    let mut copied = Vec::with_capacity(runs.len());
    for run in runs {
        let (mut from, mut target) = (run.start, run.start);
        while from < run.end {
            let left = usize::try_from(run.end - from).unwrap_or(usize::MAX).min(1 << 30);
            let done =
                rustix::fs::copy_file_range(file, Some(&mut from), to, Some(&mut target), left)?;
            if done == 0 {
                break;
            }
        }
        if run.start < from {
            copied.push(run.start..from);
        }
    }
    Ok(copied)
}
