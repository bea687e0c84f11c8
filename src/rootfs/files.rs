//! Making files beside the walk that finds them missing.
//!
//! Unpacking a base image is creating files, and the kernel spends most of that time
//! in calls for one file that wait for nothing of another. The walk hands files out by
//! the batch and makes one itself whenever nobody is free, so a machine with one
//! processor, and a step for which a handful of files is missing, start no thread.

use std::io;
use std::io::Write;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;
use crossbeam_channel::TrySendError;

use super::Error;
use super::write::PIECE;
use super::write::failed;
use super::write::keeping_set_group_id;
use super::write::set_capability;
use super::write::set_owner;
use crate::path::Name;
use crate::path::RootPath;
use crate::root_dir;
use crate::root_dir::Directory;
use crate::tree::Content;
use crate::tree::Stat;

/// Files in a batch. Each may hold a directory open.
const BATCH: usize = 32;

/// Threads beside the walk, at most: creating files scales little further, and memory
/// and descriptors are the container's.
const THREADS: usize = 3;

/// A regular file that isn't there yet.
pub(super) struct NewFile {
    pub(super) directory: Arc<Directory>,
    pub(super) path: RootPath,
    pub(super) name: Name,
    pub(super) stat: Stat,
    pub(super) content: Content,
    /// Value of `security.capability`.
    pub(super) capability: Option<Vec<u8>>,
}

impl NewFile {
    /// Makes it. Gives its path back if its capability isn't allowed here.
    ///
    /// # Errors
    /// `AlreadyExists`; those of writing and of reading the content.
    pub(super) fn make(self, buffer: &mut Vec<u8>) -> io::Result<Option<RootPath>> {
        let mut file = self.directory.create_file(&self.name)?;
        let length = self.content.len();
        let piece = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
        if buffer.len() < piece {
            buffer.resize(piece, 0);
        }
        let mut offset = 0;
        while offset < length {
            let count = self.content.read_at(&mut buffer[..piece], offset)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all(&buffer[..count])?;
            offset += count as u64;
        }
        set_owner(&file, &self.stat)?;
        keeping_set_group_id(&self.stat, || root_dir::set_mode(&file, self.stat.mode))?;
        let is_allowed = match &self.capability {
            Some(value) => set_capability(&file, value)?,
            None => true,
        };
        root_dir::set_mtime(&file, self.stat.mtime)?;
        Ok((!is_allowed).then_some(self.path))
    }
}

/// What a batch came to: paths whose capability isn't allowed here.
type Made = Result<Vec<RootPath>, Error>;

fn make_all(batch: Vec<NewFile>, buffer: &mut Vec<u8>) -> Made {
    let mut without = Vec::new();
    for file in batch {
        let path = file.path.clone();
        without.extend(file.make(buffer).map_err(|source| failed("write", &path, source))?);
    }
    Ok(without)
}

/// Makes files, some of them in other threads. Dropping it waits for those.
#[derive(Default)]
pub(super) struct FileMakers {
    batch: Vec<NewFile>,
    buffer: Vec<u8>,
    threads: Vec<JoinHandle<Made>>,
    queue: Option<Sender<Vec<NewFile>>>,
    without_capability: Vec<RootPath>,
    failed: Option<Error>,
}

impl FileMakers {
    /// Sees to it that `file` is there when [`FileMakers::finish`] has returned.
    pub(super) fn make(&mut self, file: NewFile) {
        self.batch.push(file);
        if self.batch.len() < BATCH {
            return;
        }
        if self.threads.is_empty() {
            self.start();
        }
        let batch = std::mem::take(&mut self.batch);
        let batch = match &self.queue {
            Some(queue) => match queue.try_send(batch) {
                Ok(()) => return,
                // Everyone is busy, or one has failed and `finish` tells why.
                Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => batch,
            },
            None => batch,
        };
        self.make_here(batch);
    }

    /// Makes `file` now.
    ///
    /// # Errors
    /// Those of [`NewFile::make`].
    pub(super) fn make_now(&mut self, file: NewFile) -> io::Result<()> {
        self.without_capability.extend(file.make(&mut self.buffer)?);
        Ok(())
    }

    /// Whether it is worth going on.
    ///
    /// # Errors
    /// [`Error::Disk`] of a file that failed in this thread.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn make_here(&mut self, batch: Vec<NewFile>) {
        match make_all(batch, &mut self.buffer) {
            Ok(without) => self.without_capability.extend(without),
            Err(error) => self.failed = self.failed.take().or(Some(error)),
        }
    }

    fn start(&mut self) {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let wanted = (processors - 1).min(THREADS);
        let (queue, batches) = crossbeam_channel::bounded(wanted);
        for _ in 0..wanted {
            let batches: Receiver<Vec<NewFile>> = batches.clone();
            let thread = std::thread::Builder::new().name("unpack".into()).spawn(move || {
                let (mut buffer, mut without) = (Vec::new(), Vec::new());
                for batch in batches {
                    without.extend(make_all(batch, &mut buffer)?);
                }
                Ok(without)
            });
            match thread {
                Ok(thread) => self.threads.push(thread),
                // A container with a limit on processes: whoever there is does it.
                Err(_) => break,
            }
        }
        self.queue = (!self.threads.is_empty()).then_some(queue);
    }

    /// Waits until every file is there. Gives back those whose capability isn't
    /// allowed here.
    ///
    /// # Errors
    /// [`Error::Disk`] of the first that failed.
    pub(super) fn finish(&mut self) -> Made {
        let last = std::mem::take(&mut self.batch);
        self.make_here(last);
        self.queue = None;
        for thread in std::mem::take(&mut self.threads) {
            match thread.join() {
                Ok(Ok(without)) => self.without_capability.extend(without),
                Ok(Err(error)) => self.failed = self.failed.take().or(Some(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        self.check()?;
        Ok(std::mem::take(&mut self.without_capability))
    }
}

impl Drop for FileMakers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::root_dir::Links;
    use crate::root_dir::RootDir;
    use crate::tree::Kind;
    use crate::tree::ReadAt;
    use crate::tree::Timestamp;

    /// Ends before it should.
    struct Short;

    impl ReadAt for Short {
        fn len(&self) -> u64 {
            10
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
    }

    fn content(number: usize) -> Vec<u8> {
        format!("{number} ").repeat(number).into_bytes()
    }

    fn file(directory: &Arc<Directory>, number: usize) -> NewFile {
        let name = format!("f{number}");
        let content = content(number);
        NewFile {
            directory: Arc::clone(directory),
            path: RootPath::clamped(name.as_bytes()).unwrap(),
            name: Name::new(name.as_bytes()).unwrap(),
            stat: Stat {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                mtime: Timestamp::seconds(1_000_000_000),
                size: content.len() as u64,
                ..Stat::new(Kind::File, 0o640)
            },
            content: Arc::new(content),
            capability: None,
        }
    }

    fn directory() -> (tempfile::TempDir, Arc<Directory>) {
        let directory = tempfile::tempdir().unwrap();
        let disk = RootDir::open(directory.path()).unwrap();
        let open = disk.open_directory(&RootPath::root(), Links::Refused).unwrap();
        (directory, Arc::new(open))
    }

    #[test]
    fn every_file_of_every_batch_is_there_at_the_end() {
        let (place, directory) = directory();
        let mut makers = FileMakers::default();
        let count = 20 * BATCH + 7;
        for number in 0..count {
            makers.make(file(&directory, number));
        }
        assert_eq!(makers.finish().unwrap(), []);
        for number in 0..count {
            let path = place.path().join(format!("f{number}"));
            assert_eq!(std::fs::read(&path).unwrap(), content(number), "f{number}");
            let seen = path.metadata().unwrap();
            assert_eq!((seen.mode() & 0o7777, seen.mtime()), (0o640, 1_000_000_000), "f{number}");
        }
    }

    #[test]
    fn a_file_that_fails_is_named_wherever_it_is_made() {
        for bad in [0, BATCH, 10 * BATCH + 3] {
            let (_place, directory) = directory();
            let mut makers = FileMakers::default();
            for number in 0..=10 * BATCH + 3 {
                let mut file = file(&directory, number);
                if number == bad {
                    file.content = Arc::new(Short);
                }
                makers.make(file);
            }
            let error = makers.finish().unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot write /f{bad}: ")), "{error}");
        }
    }
}
