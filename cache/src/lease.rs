//! Leases: who is alive, what each has in flight, and what it is using.
//!
//! A lease is a file in `leases/` that its process keeps locked (flock). The
//! kernel gives the lock up when the process dies, however it dies and in
//! whichever container, so "can be locked by somebody else" means "dead". Work in
//! flight lies in `tmp/<lease>/`; whoever opens a lease removes what dead ones
//! left behind.
//!
//! The file lists, one a line, what the process relies on ([`Lease::hold`]). Who
//! deletes contents takes `leases/collect` exclusively, reads the lists of the
//! living and deletes nothing that is named there; `hold` takes it shared. So a
//! thing that exists after it was held stays.
//!
//! # Order
//!
//! The lease file exists and is locked before `tmp/<lease>/` exists, and is
//! removed after it. A directory in `tmp/` without a lease file is therefore
//! garbage.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::directory::unique_name;
use crate::error::Error;
use crate::trash;
use crate::tree::{Tally, remove_tree};

/// The lock between who holds and who deletes; lives beside the leases.
const COLLECT: &str = "collect";

/// Held by the one process that collects.
const COLLECTOR: &str = "collector";

/// Being alive, and a directory of one's own, until dropped.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    scratch: PathBuf,
    /// Open as long as the lease lives: its lock is the lease.
    list: Mutex<List>,
    collect: File,
}

#[derive(Debug)]
struct List {
    file: File,
    held: HashSet<String>,
    /// The last line may be half a line: a full disk.
    torn: bool,
}

impl Lease {
    /// Takes a new lease in a cache directory that [`crate::prepare`] made, and
    /// removes what dead ones left in `tmp/`. Never waits for anybody.
    ///
    /// # Errors
    ///
    /// When the files cannot be created.
    pub fn acquire(cache: &Path) -> Result<Self, Error> {
        let leases = cache.join("leases");
        let tmp = cache.join("tmp");
        remove_dead(&leases, &tmp);
        let collect = leases.join(COLLECT);
        let collect = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&collect)
            .map_err(Error::io("open", &collect))?;
        loop {
            let name = unique_name();
            let path = leases.join(&name);
            let file = File::create_new(&path).map_err(Error::io("create", &path))?;
            // Between creation and lock someone may have taken us for dead: then
            // the file is locked by him, or has no name any more.
            let alive = file.try_lock().is_ok()
                && file.metadata().map_err(Error::io("look at", &path))?.nlink() > 0;
            if !alive {
                continue;
            }
            let scratch = tmp.join(&name);
            if let Err(source) = fs::create_dir(&scratch) {
                let _ = fs::remove_file(&path);
                return Err(Error::io("create", &scratch)(source));
            }
            let list = Mutex::new(List { file, held: HashSet::new(), torn: false });
            return Ok(Self { path, scratch, list, collect });
        }
    }

    /// The directory for work in flight, on the same file system as the cache; it
    /// goes with the lease.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A path in [`scratch`](Self::scratch) that nobody else uses.
    pub fn unique_path(&self) -> PathBuf {
        self.scratch.join(unique_name())
    }

    /// Says that this process relies on `name` (one line of text: a path in the
    /// cache) until the lease ends. What exists afterwards stays; look *after*
    /// holding. Waits only while somebody deletes, which is done in short batches.
    ///
    /// # Errors
    ///
    /// When the lease file cannot be written.
    pub fn hold(&self, name: &str) -> Result<(), Error> {
        debug_assert!(!name.contains('\n'), "one name a line");
        let mut list = self.list.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if list.held.contains(name) {
            return Ok(());
        }
        // What follows half a line would be held by nobody.
        let line = format!("{}{name}\n", if list.torn { "\n" } else { "" });
        let written = (|| {
            self.collect.lock_shared()?;
            let written = list.file.write_all(line.as_bytes());
            self.collect.unlock()?;
            written
        })();
        list.torn = written.is_err();
        written.map_err(Error::io("write", &self.path))?;
        list.held.insert(name.to_owned());
        Ok(())
    }
}

/// Being the one who collects, among all processes.
#[derive(Debug)]
pub struct Collector {
    leases: PathBuf,
    /// Name of a lease that isn't to be respected: the collector's own.
    own: Option<OsString>,
    collect: File,
    /// Its lock makes the collector the only one.
    _only: File,
}

impl Collector {
    /// Becomes the collector of a cache that [`crate::prepare`] made; `None` while
    /// another process is. What `own` holds isn't respected. Never waits.
    ///
    /// # Errors
    ///
    /// When the locks can't be had: nothing may be deleted then.
    pub fn begin(cache: &Path, own: Option<&Lease>) -> Result<Option<Self>, Error> {
        let leases = cache.join("leases");
        let open = |name: &str| {
            let path = leases.join(name);
            let options = File::options().create(true).truncate(false).write(true).open(&path);
            options.map_err(Error::io("open", &path))
        };
        let only = open(COLLECTOR)?;
        match only.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => {
                return Err(Error::io("lock", &leases.join(COLLECTOR))(source));
            }
        }
        let collect = open(COLLECT)?;
        let own = own.and_then(|lease| lease.path.file_name()).map(OsStr::to_owned);
        Ok(Some(Self { leases, own, collect, _only: only }))
    }

    /// How many other processes use the cache now.
    pub fn living(&self) -> usize {
        self.lists().len()
    }

    /// Calls `delete` while nobody can begin to hold anything, with everything
    /// that is held. Waits for those who are just beginning, who are quick; and
    /// they wait for `delete`, so it must be quick.
    ///
    /// # Errors
    ///
    /// When the lock can't be had.
    pub fn among_held<T>(&self, delete: impl FnOnce(&HashSet<String>) -> T) -> Result<T, Error> {
        let path = self.leases.join(COLLECT);
        self.collect.lock().map_err(Error::io("lock", &path))?;
        let held = self.lists().iter().flat_map(|list| list.lines()).map(str::to_owned).collect();
        let result = delete(&held);
        self.collect.unlock().map_err(Error::io("unlock", &path))?;
        Ok(result)
    }

    /// What each of the other living has on its list.
    fn lists(&self) -> Vec<String> {
        let others = names(&self.leases).filter(|name| !is_lock(name));
        let others = others.filter(|name| Some(name) != self.own.as_ref());
        others
            .filter_map(|name| {
                let path = self.leases.join(name);
                let file = File::open(&path).ok()?;
                match file.try_lock_shared() {
                    Ok(()) => None,
                    Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {
                        Some(fs::read_to_string(&path).unwrap_or_default())
                    }
                }
            })
            .collect()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What cannot be removed now is garbage without a lease, and goes later.
        if let Some((parent, name)) = self.scratch.parent().zip(self.scratch.file_name()) {
            remove_below(parent, name);
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the scratch directories of dead leases, and their lease files. Best
/// effort: what fails is tried again by the next.
fn remove_dead(leases: &Path, tmp: &Path) {
    // First the directories, then whether a lease exists: see "Order" above.
    let scratch: Vec<_> = names(tmp).collect();
    for name in &scratch {
        let orphan = matches!(
            fs::symlink_metadata(leases.join(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound
        );
        if !orphan {
            continue;
        }
        match tmp.join(name).symlink_metadata() {
            Ok(found) if found.is_dir() => remove_later(tmp, name),
            // Files in `tmp/` itself belong to nobody's lease and are a moment old,
            // unless their writer was killed.
            Ok(found) if is_stale(&found) => drop(fs::remove_file(tmp.join(name))),
            _ => {}
        }
    }
    for name in names(leases).filter(|name| !is_lock(name)) {
        let path = leases.join(&name);
        let Ok(file) = File::open(&path) else { continue };
        match file.try_lock() {
            Ok(()) => {
                remove_later(tmp, &name);
                let _ = fs::remove_file(&path);
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

/// How long a file that is written at once may take, in seconds: for a machine that
/// was asleep meanwhile.
const AT_ONCE: u64 = 3600;

fn is_stale(found: &fs::Metadata) -> bool {
    let age = found.modified().ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age.as_secs() >= AT_ONCE)
}

/// Out of the way at once; deleted when somebody has time.
fn remove_later(tmp: &Path, name: &OsStr) {
    let moved = tmp.parent().map(|cache| trash::discard(cache, &tmp.join(name)));
    if !matches!(moved, Some(Ok(()))) {
        remove_below(tmp, name);
    }
}

/// The two files in `leases/` that are no leases.
fn is_lock(name: &OsStr) -> bool {
    name == COLLECT || name == COLLECTOR
}

fn names(directory: &Path) -> impl Iterator<Item = std::ffi::OsString> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name())
}

/// Removes a directory tree: see [`remove_tree`].
fn remove_below(parent: &Path, name: &OsStr) {
    if let Ok(parent) = File::open(parent) {
        let _ = remove_tree(parent.as_fd(), name, &mut Tally::new(None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Access, prepare};

    fn cache() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), Access::ReadWrite).unwrap();
        dir
    }

    #[test]
    fn a_lease_ends_with_its_files() {
        let cache = cache();
        let lease = Lease::acquire(cache.path()).unwrap();
        fs::create_dir_all(lease.scratch().join("a/b")).unwrap();
        fs::write(lease.scratch().join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink("/", lease.scratch().join("a/root")).unwrap();
        drop(lease);
        assert_eq!(names(&cache.path().join("tmp")).count(), 0);
        assert_eq!(names(&cache.path().join("leases")).collect::<Vec<_>>(), [COLLECT]);
    }

    #[test]
    fn the_scratch_of_the_living_stays_and_of_the_dead_goes() {
        let cache = cache();
        let (leases, tmp) = (cache.path().join("leases"), cache.path().join("tmp"));
        let living = Lease::acquire(cache.path()).unwrap();
        fs::write(living.scratch().join("work"), "x").unwrap();
        // A dead one: its files, but no lock. And one that lost even its file.
        fs::write(leases.join("dead"), "").unwrap();
        fs::create_dir_all(tmp.join("dead/deep/er")).unwrap();
        fs::create_dir_all(tmp.join("orphan")).unwrap();
        let second = Lease::acquire(cache.path()).unwrap();
        assert!(living.scratch().join("work").exists());
        assert!(second.scratch().exists());
        assert!(!tmp.join("dead").exists());
        assert!(!tmp.join("orphan").exists());
        assert!(!leases.join("dead").exists());
    }

    #[test]
    fn a_file_that_a_killed_writer_left_goes_after_a_while() {
        let cache = cache();
        let (fresh, stale) = (cache.path().join("tmp/new-1"), cache.path().join("tmp/new-2"));
        fs::write(&fresh, "x").unwrap();
        fs::write(&stale, "x").unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(AT_ONCE);
        File::options().append(true).open(&stale).unwrap().set_modified(long_ago).unwrap();
        let _lease = Lease::acquire(cache.path()).unwrap();
        assert!(fresh.exists() && !stale.exists());
    }

    #[test]
    fn what_is_held_after_a_line_was_torn_is_held() {
        let cache = cache();
        let lease = Lease::acquire(cache.path()).unwrap();
        {
            // As a disk leaves it that is full in the middle of a line.
            let mut list = lease.list.lock().unwrap();
            list.file.write_all(b"blobs/sha256/a").unwrap();
            list.torn = true;
        }
        lease.hold("blobs/sha256/b").unwrap();
        let collector = Collector::begin(cache.path(), None).unwrap().unwrap();
        assert!(collector.among_held(|held| held.contains("blobs/sha256/b")).unwrap());
    }

    #[test]
    fn a_lease_lists_what_it_holds_once() {
        let cache = cache();
        let lease = Lease::acquire(cache.path()).unwrap();
        lease.hold("blobs/sha256/aa").unwrap();
        lease.hold("layers/sha256/bb").unwrap();
        lease.hold("blobs/sha256/aa").unwrap();
        assert_eq!(fs::read_to_string(&lease.path).unwrap(), "blobs/sha256/aa\nlayers/sha256/bb\n");
    }
}
