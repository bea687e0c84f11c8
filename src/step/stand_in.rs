//! What stands in for mounts where nothing can be mounted: files and directories put
//! into the container's root for the time of a step, and taken away again.
//!
//! What is there already is moved aside within its directory and comes back. The
//! times of the directories are as they would be had there been a mount.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use crate::path::RootPath;
use crate::root_dir;
use crate::root_dir::DiskStat;
use crate::root_dir::RootDir;
use crate::tree::Timestamp;
use crate::tree::Tree;
use crate::tree::resolve::resolve;

/// What is put somewhere.
pub(super) enum Contents<'a> {
    /// An empty directory.
    Directory(u32),
    /// A file.
    File {
        /// Its bytes.
        bytes: &'a [u8],
        /// Permissions.
        mode: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A file or directory of this build alone, moved there.
    Moved(&'a Path),
    /// A directory that others may use: moved there and back if it is on the same
    /// filesystem, linked otherwise.
    Kept(&'a Path),
}

enum Undo {
    /// A directory that was missing above a place; it stays if something is in it.
    Made(PathBuf),
    /// What was put there; a directory may be on loan from `from`.
    Put {
        at: PathBuf,
        from: Option<PathBuf>,
    },
    Aside {
        aside: PathBuf,
        at: PathBuf,
    },
}

/// What was put where.
pub(super) struct StandIns<'a> {
    disk: &'a RootDir,
    tree: &'a dyn Tree,
    undo: Vec<Undo>,
    paths: Vec<RootPath>,
    /// Times of directories before anything was put in, and after.
    times: BTreeMap<PathBuf, (Timestamp, Timestamp)>,
}

impl<'a> StandIns<'a> {
    /// `tree` is what `disk` shows.
    pub(super) fn new(disk: &'a RootDir, tree: &'a dyn Tree) -> Self {
        Self { disk, tree, undo: Vec::new(), paths: Vec::new(), times: BTreeMap::new() }
    }

    /// Where something was put: no change there counts.
    pub(super) fn paths(&self) -> impl Iterator<Item = &RootPath> {
        self.paths.iter()
    }

    /// Puts `contents` at `target`, links followed inside the root.
    pub(super) fn put(&mut self, target: &str, contents: Contents<'_>) -> io::Result<()> {
        let target = RootPath::clamped(target.as_bytes()).ok_or(io::ErrorKind::InvalidInput)?;
        let path = resolve(self.tree, &target, true)?.path;
        if path.is_root() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = self.disk.path().join(path.as_path());
        let mut missing = Vec::new();
        let mut above = at.parent();
        while let Some(directory) = above.filter(|directory| !directory.is_dir()) {
            missing.push(directory.to_owned());
            above = directory.parent();
        }
        for directory in missing.into_iter().rev() {
            self.remember(&directory)?;
            fs::create_dir(&directory)?;
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
            self.undo.push(Undo::Made(directory));
        }
        self.remember(&at)?;
        if at.symlink_metadata().is_ok() {
            let aside = at.with_file_name(format!(".yadokari-aside-{}", self.undo.len()));
            fs::rename(&at, &aside)?;
            use std::os::unix::ffi::OsStrExt;
            let name = aside.file_name().unwrap_or_default().as_bytes();
            if let (Some(parent), Some(name)) = (path.parent(), RootPath::clamped(name)) {
                self.paths.push(parent.join_path(&name));
            }
            self.undo.push(Undo::Aside { aside, at: at.clone() });
        }
        let from = self.make(&at, contents)?;
        self.undo.push(Undo::Put { at, from });
        self.paths.push(path);
        Ok(())
    }

    /// Makes `at`; gives the place that it has to go back to.
    fn make(&mut self, at: &Path, contents: Contents<'_>) -> io::Result<Option<PathBuf>> {
        match contents {
            Contents::Directory(mode) => {
                fs::create_dir(at)?;
                fs::set_permissions(at, fs::Permissions::from_mode(mode))?;
                Ok(None)
            }
            Contents::File { bytes, mode, uid, gid } => {
                let mut file =
                    fs::File::options().write(true).create_new(true).mode(0o600).open(at)?;
                file.write_all(bytes)?;
                std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
                root_dir::set_mode(&file, mode)?;
                Ok(None)
            }
            Contents::Moved(source) | Contents::Kept(source) => match fs::rename(source, at) {
                Ok(()) => Ok(Some(source.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    use std::os::unix::ffi::OsStrExt;
                    std::os::unix::fs::symlink(source, at)?;
                    // What is written goes there, and is as little the image's.
                    let real = fs::canonicalize(source)?;
                    self.paths.extend(RootPath::clamped(real.as_os_str().as_bytes()));
                    Ok(None)
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Remembers the time of the directory that `at` is made in.
    fn remember(&mut self, at: &Path) -> io::Result<()> {
        let parent = at.parent().unwrap_or(Path::new("/"));
        if !self.times.contains_key(parent) {
            let before = mtime(parent)?;
            self.times.insert(parent.to_owned(), (before, before));
        }
        Ok(())
    }

    /// Everything is in its place; from here on a directory's time is the step's.
    pub(super) fn ready(&mut self) {
        for (directory, (_, after)) in &mut self.times {
            if let Ok(now) = mtime(directory) {
                *after = now;
            }
        }
    }

    /// Takes everything away.
    pub(super) fn remove(self) -> io::Result<()> {
        let mut times = Vec::new();
        for (directory, (before, after)) in &self.times {
            let Ok(now) = mtime(directory) else { continue };
            times.push((directory, if now == *after { *before } else { now }));
        }
        for undo in self.undo.iter().rev() {
            match undo {
                Undo::Made(directory) => match fs::remove_dir(directory) {
                    Err(error)
                        if !matches!(
                            error.kind(),
                            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                        ) =>
                    {
                        return Err(error);
                    }
                    _ => {}
                },
                Undo::Put { at, from: Some(from) } if at.symlink_metadata().is_ok() => {
                    fs::rename(at, from)?;
                }
                Undo::Put { at, .. } => match at.symlink_metadata() {
                    Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(at)?,
                    Ok(_) => fs::remove_file(at)?,
                    Err(_) => {}
                },
                Undo::Aside { aside, at } => fs::rename(aside, at)?,
            }
        }
        for (directory, time) in times {
            if let Ok(directory) = fs::File::open(directory) {
                root_dir::set_mtime(&directory, time)?;
            }
        }
        Ok(())
    }
}

fn mtime(directory: &Path) -> io::Result<Timestamp> {
    Ok(DiskStat::of(fs::File::open(directory)?)?.stat.mtime)
}
