//! Watches on directories (inotify(7)): they tell of attributes that are changed by
//! descriptor, so that the filter need not ask about these calls.
//!
//! A file that was opened for writing was noted when it was opened. Programs change
//! owner, mode and times of such files by descriptor, three calls for every file that
//! `tar` makes, and a filter can't tell them from the rare ones: of a file that was
//! opened to be read. For these the kernel puts the name into the queue of whoever
//! watches the directory that the file was opened in: `IN_ATTRIB`, or `IN_MODIFY` if it
//! was the time of modification alone (`fsnotify_change` in the kernel).
//!
//! What must hold: every directory of the image is watched before a step starts. One that
//! the step makes isn't; what lies there was made by it, or was brought there by a rename
//! or a link, which the filter asks about. So what a watch tells of counts only if the
//! image has it, or if it is a place of the container's own itself: anything else may be
//! somebody else's doing.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use rustix::fs::inotify;
use rustix::fs::inotify::CreateFlags;
use rustix::fs::inotify::ReadFlags;
use rustix::fs::inotify::WatchFlags;
use rustix::io::Errno;

use crate::path::Name;
use crate::path::RootPath;

/// What is watched at most. The kernel keeps the inode of each in memory, about 2 KiB, which
/// counts as the container's.
const MOST: usize = 16_384;

/// How many watches a user may have, in all of its containers: half of that is left to
/// others.
const LIMIT: &str = "/proc/sys/fs/inotify/max_user_watches";

/// Bytes of events read at once; an event takes up to 272.
const BATCH: usize = 64 << 10;

/// Directories that are watched, and the queue of what happened to attributes in them.
#[derive(Debug)]
pub struct Watches {
    queue: OwnedFd,
    /// Where each watched directory was when it was seen last.
    paths: Mutex<HashMap<i32, RootPath>>,
    most: usize,
    incomplete: AtomicBool,
    /// Whether the queue ever ran over: then it isn't known which of them are gone.
    overflowed: AtomicBool,
}

/// What the queue can say instead of what happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Missed {
    /// More happened than it can hold.
    Overflow,
    /// Something in a directory that nobody remembers.
    Unknown,
}

/// What was read at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batch {
    pub(super) missed: Option<Missed>,
}

impl Watches {
    /// An empty set.
    ///
    /// # Errors
    /// Those of inotify_init1(2): `EMFILE` where the user has too many of them.
    pub fn new() -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let limit = std::fs::read_to_string(LIMIT).ok();
        let limit = limit.and_then(|text| text.trim().parse::<usize>().ok());
        Ok(Self {
            queue,
            paths: Mutex::default(),
            most: limit.map_or(MOST, |limit| MOST.min(limit / 2)),
            incomplete: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
        })
    }

    /// Watches the open `file`, usually a directory, which is at `path`; again, if it was
    /// moved there. If it can't be watched, the set is [incomplete](Self::is_complete)
    /// from here on.
    pub fn add(&self, file: impl AsFd, path: &RootPath) {
        self.watch(file, |paths, watch| {
            paths.insert(watch, path.clone());
        });
    }

    /// As [`add`](Self::add), but what has a path already keeps it.
    pub fn add_new(&self, file: impl AsFd, path: &RootPath) {
        self.watch(file, |paths, watch| {
            paths.entry(watch).or_insert_with(|| path.clone());
        });
    }

    fn watch(&self, file: impl AsFd, note: impl FnOnce(&mut HashMap<i32, RootPath>, i32)) {
        if !self.is_complete() {
            return;
        }
        // A path would be cut short at 4,096 bytes.
        let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let mut paths = self.lock();
        match inotify::add_watch(&self.queue, link, WatchFlags::ATTRIB | WatchFlags::MODIFY) {
            Ok(watch) => note(&mut paths, watch),
            Err(errno) => self.give_up(&format!("inotify_add_watch: {errno}")),
        }
        if paths.len() > self.most {
            self.give_up("there are too many directories");
        }
    }

    /// From here on the set is incomplete.
    pub fn give_up(&self, why: &str) {
        if !self.incomplete.swap(true, Ordering::SeqCst) {
            tracing::debug!(why, "not every directory can be watched");
        }
    }

    /// Whether every directory that was to be watched is.
    pub fn is_complete(&self) -> bool {
        !self.incomplete.load(Ordering::SeqCst)
    }

    /// Forgets what happened up to now. Says whether it was told of everything since it was
    /// made; otherwise it may hold directories that are gone.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn forget(&self) -> io::Result<bool> {
        self.take_all(|_| {})?;
        Ok(!self.overflowed.load(Ordering::SeqCst))
    }

    /// Takes all that happened up to now out of the queue: paths of which attributes or
    /// bytes may have changed. Says if it isn't everything.
    ///
    /// # Errors
    /// Those of read(2).
    pub(super) fn take_all(&self, mut each: impl FnMut(RootPath)) -> io::Result<Option<Missed>> {
        let mut missed = None;
        while let Some(batch) = self.take(&mut each)? {
            missed = missed.or(batch.missed);
        }
        Ok(missed)
    }

    /// Takes as much as is read at once; `None` if there is nothing.
    ///
    /// # Errors
    /// Those of read(2).
    pub(super) fn take(&self, mut each: impl FnMut(RootPath)) -> io::Result<Option<Batch>> {
        let mut buffer = vec![MaybeUninit::uninit(); BATCH];
        let mut events = inotify::Reader::new(&self.queue, &mut buffer);
        let mut batch = Batch::default();
        let mut paths = self.lock();
        let mut is_first = true;
        while std::mem::take(&mut is_first) || !events.is_buffer_empty() {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {
                    is_first = true;
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                self.overflowed.store(true, Ordering::SeqCst);
                batch.missed = Some(Missed::Overflow);
            } else if event.events().contains(ReadFlags::IGNORED) {
                paths.remove(&event.wd());
            } else if let Some(directory) = paths.get(&event.wd()) {
                let name = event.file_name().and_then(|name| Name::new(name.to_bytes()));
                each(name.map_or_else(|| directory.clone(), |name| directory.join(&name)));
            } else {
                batch.missed.get_or_insert(Missed::Unknown);
            }
        }
        Ok(Some(batch))
    }

    #[cfg(test)]
    pub(crate) fn paths_told(&self) -> std::collections::BTreeSet<RootPath> {
        let mut told = std::collections::BTreeSet::new();
        self.take_all(|path| told.extend([path])).expect("a queue");
        told
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, RootPath>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Watches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::fs::File;

    fn path(text: &str) -> RootPath {
        RootPath::clamped(text.as_bytes()).expect("no NUL")
    }

    /// Watches on `root` and those of its directories that are named.
    fn watching(root: &std::path::Path, directories: &[&str]) -> Watches {
        let watches = Watches::new().expect("inotify");
        watches.add(File::open(root).expect("a directory"), &RootPath::root());
        for name in directories {
            watches.add(File::open(root.join(name)).expect("a directory"), &path(name));
        }
        watches
    }

    fn told(watches: &Watches) -> (BTreeSet<RootPath>, Option<Missed>) {
        let mut told = BTreeSet::new();
        let missed = watches.take_all(|path| told.extend([path])).expect("a queue");
        (told, missed)
    }

    #[test]
    fn attributes_that_a_descriptor_changed_are_told_with_their_path() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("a/b")).expect("a directory");
        for file in ["a/file", "a/b/file", "file"] {
            fs::write(at(file), "").expect("a file");
        }
        let watches = watching(root.path(), &["a", "a/b"]);
        for file in ["a/file", "file", "a/b"] {
            let file = File::open(at(file)).expect("a file");
            file.set_permissions(file.metadata().expect("metadata").permissions()).expect("a mode");
        }
        let all = ["a/file", "file", "a/b"].map(path).into();
        assert_eq!(told(&watches), (all, None));
        // Where it was is where it counts: whoever moved it was asked about that.
        fs::rename(at("a"), at("c")).expect("a rename");
        let file = File::open(at("c/b/file")).expect("a file");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
        assert_eq!(told(&watches), ([path("a/b/file")].into(), None));
        watches.add(File::open(at("c/b")).expect("a directory"), &path("c/b"));
        file.set_modified(std::time::SystemTime::now()).expect("a time");
        assert_eq!(told(&watches), ([path("c/b/file")].into(), None));
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
        assert!(watches.forget().expect("a queue"));
        assert_eq!(told(&watches), (BTreeSet::new(), None));
    }

    #[test]
    fn a_directory_that_is_gone_is_forgotten() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("a")).expect("a directory");
        let watches = watching(root.path(), &["a"]);
        assert_eq!(watches.lock().len(), 2);
        fs::remove_dir(root.path().join("a")).expect("a directory");
        assert_eq!(told(&watches).1, None);
        assert_eq!(watches.lock().len(), 1);
        assert!(watches.is_complete());
    }

    #[test]
    fn more_than_the_queue_holds_is_said() {
        let root = tempfile::tempdir().expect("a directory");
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("a limit");
        let limit: usize = limit.trim().parse().expect("a number");
        let files = ["a", "b"].map(|name| File::create(root.path().join(name)).expect("a file"));
        let watches = watching(root.path(), &[]);
        for number in 0..limit + 2 {
            // By turns: the same again would be one event.
            files[number % 2].set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
        }
        assert_eq!(told(&watches), (["a", "b"].map(path).into(), Some(Missed::Overflow)));
        files[0].set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
        assert_eq!(told(&watches), ([path("a")].into(), None));
        assert!(!watches.forget().expect("a queue"));
    }

    #[test]
    fn what_can_not_be_watched_makes_the_set_incomplete() {
        let root = tempfile::tempdir().expect("a directory");
        let watches = watching(root.path(), &[]);
        assert!(watches.is_complete());
        watches.give_up("as if the host had no room");
        let directory = File::open(root.path()).expect("a directory");
        watches.add(&directory, &path("other"));
        assert!(!watches.is_complete());
        // Nothing was added: it is known by its first path.
        directory.set_modified(std::time::SystemTime::now()).expect("a time");
        assert_eq!(told(&watches), ([RootPath::root()].into(), None));
    }
}
