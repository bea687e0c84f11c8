//! The log of all folded records: frames end to end in `records/<n>.log`.
//!
//! It only grows. A collector replaces it by one with the next number, under the
//! fold lock; the highest number counts, and an index that remembers a position
//! in another one starts over.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::directory::sync_directory;
use crate::error::{Error, Notice};
use crate::frame::{Frames, HEADER, Item, MAX_FRAME};

/// Bytes read at a time. More than the largest frame, so that every frame is
/// seen whole in some window.
const WINDOW: usize = 2 * MAX_FRAME;

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Number of the log.
    pub(crate) log: u64,
    /// Bytes from its beginning.
    pub(crate) offset: u64,
}

/// Up to where a log was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Bytes from its beginning.
    pub(crate) offset: u64,
    /// Where the last frame began, and how: by its header one is told from another.
    last: Option<(u64, [u8; HEADER])>,
}

impl From<Position> for Mark {
    /// For a place up to which everything is durable.
    fn from(position: Position) -> Self {
        Self { offset: position.offset, last: None }
    }
}

/// The current log.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the current log for reading; `None` before the first fold.
    pub(crate) fn open(cache: &Path) -> io::Result<Option<Self>> {
        // A collector may replace the log between listing and opening.
        for _ in 0..3 {
            let Some((number, path)) = current(cache)? else { return Ok(None) };
            match File::open(&path) {
                Ok(file) => return Ok(Some(Self { number, path, file })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Opens the current log for appending, or creates the first. The caller
    /// holds the fold lock.
    pub(crate) fn open_for_append(cache: &Path) -> Result<Self, Error> {
        let records = cache.join("records");
        let (number, path) = current(cache)
            .map_err(Error::io("list", &records))?
            .unwrap_or_else(|| (1, records.join("1.log")));
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        sync_directory(&records).map_err(Error::io("sync", &records))?;
        Ok(Self { number, path, file })
    }

    /// Appends whole frames, durably; all or nothing, unless killed, which later
    /// readers skip. Of an append that fails others may have read frames by then; the
    /// next one, of the same frames and more in between, may write others there
    /// ([`Log::still_has`]).
    pub(crate) fn append(&mut self, frames: &[u8]) -> Result<(), Error> {
        let length = self.length().map_err(Error::io("look at", &self.path))?;
        self.file.write_all(frames).and_then(|()| self.file.sync_data()).map_err(|source| {
            let _ = self.file.set_len(length);
            Error::io("append to", &self.path)(source)
        })
    }

    pub(crate) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Hands every frame from `from` on, with its offset in the log, to `take`.
    /// Returns where to go on later. Damage is skipped and noticed.
    pub(crate) fn read<E>(
        &self,
        from: Mark,
        notices: &mut Vec<Notice>,
        mut take: impl FnMut(u64, &[Item<'_>]) -> Result<(), E>,
    ) -> Result<Mark, E>
    where
        E: From<io::Error>,
    {
        let length = self.length()?;
        let Mark { offset: mut at, mut last } = from;
        let mut skipped = 0;
        while at < length {
            let window = usize::try_from(length - at).unwrap_or(WINDOW).min(WINDOW);
            let mut bytes = vec![0; window];
            self.file.read_exact_at(&mut bytes, at)?;
            let mut frames = Frames::new(&bytes);
            while let Some((start, items)) = frames.next_frame() {
                take(at + start as u64, &items)?;
                let header = bytes[start..].first_chunk();
                last = header.map(|header| (at + start as u64, *header));
            }
            skipped += frames.skipped as u64;
            let progress = frames.position() as u64;
            at += progress;
            if progress == 0 {
                // The end is a frame still being written, or torn.
                break;
            }
        }
        if skipped > 0 {
            notices.push(Notice::LogDamaged { path: self.path.clone(), skipped });
        }
        Ok(Mark { offset: at, last })
    }

    /// [`read`](Self::read) for somebody who has read up to `from` before. `None` if an
    /// append failed whose frames had been read, and others may be there now. Then nothing
    /// counts that was read here or before, and reading begins at 0.
    pub(crate) fn read_on<E>(
        &self,
        from: Mark,
        take: impl FnMut(u64, &[Item<'_>]) -> Result<(), E>,
    ) -> Result<Option<Mark>, E>
    where
        E: From<io::Error>,
    {
        let mut skipped = Vec::new();
        let end = self.read(from, &mut skipped, take)?;
        // Looked at last: it may have happened while this was read.
        Ok((skipped.is_empty() && self.still_has(from)?).then_some(end))
    }

    /// Whether what was read up to `mark` is still there. Frames that took the place of
    /// others begin elsewhere or otherwise where the last of those did: they are the same
    /// in the same order, with more in between.
    pub(crate) fn still_has(&self, mark: Mark) -> io::Result<bool> {
        if self.length()? < mark.offset {
            return Ok(false);
        }
        let Some((start, header)) = mark.last else { return Ok(true) };
        let mut now = [0; HEADER];
        match self.file.read_exact_at(&mut now, start) {
            Ok(()) => Ok(now == header),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads the value that [`read`](Self::read) showed at an offset.
    pub(crate) fn value(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut value = vec![0; length];
        self.file.read_exact_at(&mut value, offset)?;
        Ok(value)
    }
}

fn current(cache: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    Ok(all(cache)?.into_iter().max())
}

/// Numbers and paths of the logs.
fn all(cache: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(cache.join("records")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut logs = Vec::new();
    for entry in entries {
        let entry = entry?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_suffix(".log"))
            .and_then(|number| number.parse::<u64>().ok());
        logs.extend(number.map(|number| (number, entry.path())));
    }
    Ok(logs)
}

/// Removes logs that were replaced. The caller holds the fold lock.
pub(crate) fn remove_before(cache: &Path, number: u64) {
    for (old, path) in all(cache).into_iter().flatten() {
        if old < number {
            let _ = fs::remove_file(path);
        }
    }
}

/// The counter that every fold raises once the index has what it folded. `None`
/// when nothing was ever folded: then there is no index to open.
pub(crate) fn folds(cache: &Path) -> Option<u64> {
    let counter = fs::read(cache.join("records/folds")).ok();
    match counter.and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => Some(u64::from_le_bytes(bytes)),
        // A loss of power may take the counter, which is not synced, but not
        // the log.
        None => matches!(current(cache), Ok(Some(_)) | Err(_)).then_some(0),
    }
}

/// Raises the counter. It serves running readers only, hence no sync.
pub(crate) fn raise_folds(cache: &Path) -> Result<(), Error> {
    let path = cache.join("records/folds");
    let next = folds(cache).unwrap_or(0).wrapping_add(1);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    file.write_all_at(&next.to_le_bytes(), 0).map_err(Error::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Access, prepare};
    use crate::frame;
    use crate::key::Key;

    #[test]
    fn a_log_longer_than_the_window_is_read_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), Access::ReadWrite).unwrap();
        let mut log = Log::open_for_append(dir.path()).unwrap();
        let mut expected = Vec::new();
        // Frames of up to the largest size, so that one lies across each border.
        for (number, megabytes) in [9, 0, 15, 11, 3, 15, 0, 15].into_iter().enumerate() {
            let value = vec![number as u8; (megabytes << 20) + number];
            let key = Key::from_bytes([number as u8; 32]);
            let frame =
                frame::encode(std::iter::once(("steps.v1", &key, value.as_slice()))).unwrap();
            log.append(&frame).unwrap();
            expected.push((key, value.len()));
        }
        let (mut found, mut notices) = (Vec::new(), Vec::new());
        let end = log
            .read(Mark::default(), &mut notices, |start, items| {
                for item in items {
                    let offset = start + item.value_offset as u64;
                    assert_eq!(log.value(offset, item.value.len())?, item.value);
                    found.push((item.key, item.value.len()));
                }
                io::Result::Ok(())
            })
            .unwrap();
        assert!(end.offset > 2 * WINDOW as u64);
        assert_eq!(end.offset, log.length().unwrap());
        assert!(log.still_has(end).unwrap());
        assert_eq!(found, expected);
        assert_eq!(notices, []);
    }

    #[test]
    fn a_fold_is_counted_even_if_the_counter_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), Access::ReadWrite).unwrap();
        assert_eq!(folds(dir.path()), None);
        Log::open_for_append(dir.path()).unwrap();
        assert_eq!(folds(dir.path()), Some(0));
        raise_folds(dir.path()).unwrap();
        raise_folds(dir.path()).unwrap();
        assert_eq!(folds(dir.path()), Some(2));
        fs::write(dir.path().join("records/folds"), "").unwrap();
        assert_eq!(folds(dir.path()), Some(0));
    }
}
