//! Every path operation inside a directory, by handle, with links confined.
//!
//! A [`RootDir`] is a directory that somebody else filled: a build context, an
//! unpacked archive, a root filesystem. Paths are resolved by the kernel
//! (`openat2(2)`) or, where a seccomp filter refuses that call, by our own walk
//! from handle to handle; [`RootDir::confinement`] tells which. Neither ever
//! leaves the directory, whatever links it holds and whatever changes in it
//! meanwhile. What happens to a link on the way is the caller's choice: [`Links`].
//!
//! A [`Directory`] is one open directory in it: its operations take a single
//! name and follow nothing.

mod error;
mod walk;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RawDir;
use rustix::fs::ResolveFlags;
use rustix::fs::Statx;
use rustix::fs::StatxFlags;
use rustix::io::Errno;

pub use error::Error;

use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::Stat;
use crate::tree::Timestamp;
use crate::tree::Xattr;

/// What a symbolic link on the way to a file means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Links {
    /// It is followed as in `chroot(2)`: absolute targets start at the root and
    /// `..` stops there.
    Scoped,
    /// It is followed while it stays inside; absolute targets and those that
    /// leave are refused with `EXDEV`.
    Inside,
    /// It is refused with `ELOOP`.
    Refused,
}

/// Who keeps path resolution inside the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confinement {
    /// The kernel, by `openat2(2)`.
    Kernel,
    /// We, from handle to handle: the kernel is older than 5.6 or a seccomp
    /// filter refuses the call.
    Walk,
}

/// The metadata of a file on disk: what an image can carry, and what tells
/// whether it is still the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskStat {
    /// What an image can carry.
    pub stat: Stat,
    /// Number of the device that holds it, as `st_dev`.
    pub device: u64,
    /// Its inode number there.
    pub inode: u64,
    /// Last change of the inode, which no program can set back.
    pub ctime: Timestamp,
    /// Type and permissions, as `st_mode`.
    pub raw_mode: u32,
}

impl DiskStat {
    fn new(from: &Statx) -> io::Result<Self> {
        let raw_mode = u32::from(from.stx_mode);
        let kind = kind(FileType::from_raw_mode(raw_mode))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown file type"))?;
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                Device { major: from.stx_rdev_major, minor: from.stx_rdev_minor }
            }
            _ => Device::default(),
        };
        let has_size = matches!(kind, Kind::File | Kind::Symlink);
        Ok(Self {
            stat: Stat {
                kind,
                mode: from.stx_mode & 0o7777,
                uid: from.stx_uid,
                gid: from.stx_gid,
                size: if has_size { from.stx_size } else { 0 },
                mtime: Timestamp {
                    seconds: from.stx_mtime.tv_sec,
                    nanoseconds: from.stx_mtime.tv_nsec,
                },
                device,
                links: from.stx_nlink,
            },
            device: rustix::fs::makedev(from.stx_dev_major, from.stx_dev_minor),
            inode: from.stx_ino,
            ctime: Timestamp {
                seconds: from.stx_ctime.tv_sec,
                nanoseconds: from.stx_ctime.tv_nsec,
            },
            raw_mode,
        })
    }

    /// That of an open file.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        statx(file.as_fd(), c"", AtFlags::EMPTY_PATH)
    }
}

fn kind(file_type: FileType) -> Option<Kind> {
    Some(match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => return None,
    })
}

fn statx(
    directory: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    flags: AtFlags,
) -> io::Result<DiskStat> {
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    DiskStat::new(&rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)?)
}

/// A directory that paths can't leave.
#[derive(Debug)]
pub struct RootDir {
    directory: OwnedFd,
    path: PathBuf,
    confinement: Confinement,
}

impl RootDir {
    /// Opens the directory at `path`, which is resolved as any path of this
    /// process.
    ///
    /// # Errors
    /// When there is no directory or it can't be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| Error::new("open", path, errno.into()))?;
        Ok(Self::around(directory, path.to_owned()))
    }

    fn around(directory: OwnedFd, path: PathBuf) -> Self {
        let probe = openat2(directory.as_fd(), c".", OFlags::PATH, Links::Scoped);
        let confinement = if probe.is_ok() { Confinement::Kernel } else { Confinement::Walk };
        Self { directory, path, confinement }
    }

    /// This directory without the help of `openat2(2)`.
    #[must_use]
    pub fn walking(self) -> Self {
        Self { confinement: Confinement::Walk, ..self }
    }

    /// Who keeps paths inside.
    pub fn confinement(&self) -> Confinement {
        self.confinement
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where `path` is for a user's eyes; never hand this to the system.
    pub fn shown(&self, path: &RootPath) -> PathBuf {
        self.path.join(path.as_path())
    }

    /// The directory at `path` as a root of its own, links scoped to this one.
    ///
    /// # Errors
    /// When there is no directory or it can't be opened.
    pub fn below(&self, path: &RootPath) -> Result<Self, Error> {
        let directory = self.open_directory(path, Links::Scoped)?;
        Ok(Self { directory: directory.0, path: self.shown(path), confinement: self.confinement })
    }

    /// Opens the regular file at `path` for reading. Never blocks on a pipe.
    ///
    /// # Errors
    /// When there is none, it is no regular file, it can't be read, or `links`
    /// forbids the way.
    pub fn open_file(&self, path: &RootPath, links: Links) -> Result<File, Error> {
        let fail = |source| Error::new("open", &self.shown(path), source);
        let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        if links == Links::Refused {
            flags |= OFlags::NOFOLLOW;
        }
        let file = File::from(self.open_at(path, flags, links).map_err(fail)?);
        match DiskStat::of(&file).map_err(fail)?.stat.kind {
            Kind::File => Ok(file),
            _ => Err(Error::NotAFile { path: self.shown(path) }),
        }
    }

    /// Opens the directory at `path` for listing and for work in it.
    ///
    /// # Errors
    /// When there is none, it can't be opened, or `links` forbids the way.
    pub fn open_directory(&self, path: &RootPath, links: Links) -> Result<Directory, Error> {
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY;
        if links == Links::Refused {
            flags |= OFlags::NOFOLLOW;
        }
        self.open_at(path, flags, links)
            .map(Directory)
            .map_err(|source| Error::new("open", &self.shown(path), source))
    }

    /// Metadata of what is at `path`; a link there is itself meant unless
    /// `follow`. Links on the way are scoped.
    ///
    /// # Errors
    /// When there is nothing or it can't be reached.
    pub fn stat(&self, path: &RootPath, follow: bool) -> Result<DiskStat, Error> {
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        self.open_at(path, flags, Links::Scoped)
            .and_then(DiskStat::of)
            .map_err(|source| Error::new("look at", &self.shown(path), source))
    }

    /// Names and types in the directory at `path`, sorted. Links are scoped.
    ///
    /// # Errors
    /// When there is no directory or it can't be read.
    pub fn read_dir(&self, path: &RootPath) -> Result<Vec<DirEntry>, Error> {
        self.open_directory(path, Links::Scoped)?
            .entries()
            .map_err(|source| Error::new("list", &self.shown(path), source))
    }

    /// Target of the symbolic link at `path`. Links on the way are scoped.
    ///
    /// # Errors
    /// When there is no link (`EINVAL` or `ENOENT`) or it can't be reached.
    pub fn read_link(&self, path: &RootPath) -> Result<Vec<u8>, Error> {
        self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Links::Scoped)
            .and_then(|link| Ok(rustix::fs::readlinkat(&link, c"", Vec::new())?.into_bytes()))
            .map_err(|source| Error::new("read the link", &self.shown(path), source))
    }

    /// Where `path` leads when links on the way, and at its end if `follow`, are
    /// followed as in `chroot(2)`: a path without links. What lies there exists.
    ///
    /// # Errors
    /// When there is nothing, or links go round in circles (`ELOOP`).
    pub fn resolve(&self, path: &RootPath, follow: bool) -> Result<RootPath, Error> {
        walk::walk(self.directory.as_fd(), path, Links::Scoped, follow)
            .map(|place| place.path)
            .map_err(|source| Error::new("resolve", &self.shown(path), source))
    }

    /// Extended attributes of the file or directory at `path`, sorted; none for
    /// links and special files, and where the filesystem keeps none. Links on the
    /// way are refused.
    ///
    /// # Errors
    /// When it can't be opened or read.
    pub fn xattrs(&self, path: &RootPath) -> Result<Vec<Xattr>, Error> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        self.open_at(path, flags, Links::Refused)
            .and_then(|file| xattrs(file.as_fd()))
            .map_err(|source| Error::new("read attributes of", &self.shown(path), source))
    }

    fn open_at(&self, path: &RootPath, flags: OFlags, links: Links) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        if self.confinement == Confinement::Kernel {
            let place = if path.is_root() { Path::new(".") } else { path.as_path() };
            match openat2(self.directory.as_fd(), place, flags, links) {
                // Something was renamed meanwhile and the kernel can't tell
                // whether `..` is still inside. The walk can: it holds handles.
                Err(Errno::AGAIN) => {}
                opened => return Ok(opened?),
            }
        }
        walk::open(self.directory.as_fd(), path, flags, links)
    }
}

fn openat2(
    directory: BorrowedFd<'_>,
    path: impl rustix::path::Arg,
    flags: OFlags,
    links: Links,
) -> Result<OwnedFd, Errno> {
    let resolve = match links {
        Links::Scoped => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        Links::Inside => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        Links::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    };
    rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn xattrs(file: BorrowedFd<'_>) -> io::Result<Vec<Xattr>> {
    let mut names = Vec::new();
    // Sizes may change between asking and reading, so ask again on ERANGE.
    let listed = read_growing(&mut names, |buffer| rustix::fs::flistxattr(file, buffer));
    match listed {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    }
    let mut found = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::new();
        match read_growing(&mut value, |buffer| {
            rustix::fs::fgetxattr(file, OsStr::from_bytes(name), buffer)
        }) {
            // Removed meanwhile, or not for our eyes (`trusted.` without privilege).
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno.into()),
            Ok(()) => found.push((name.to_vec(), value)),
        }
    }
    found.sort();
    Ok(found)
}

/// Whether an open file is known to have no file capabilities (`capabilities(7)`).
pub fn has_no_capability(file: impl AsFd) -> bool {
    let mut value = [0; 64];
    let read = rustix::fs::fgetxattr(file, c"security.capability", &mut value);
    matches!(read, Err(Errno::NODATA | Errno::NOTSUP))
}

fn read_growing(
    bytes: &mut Vec<u8>,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    let mut size = 256;
    loop {
        bytes.resize(size, 0);
        match read(bytes.as_mut_slice()) {
            // 64 KiB is the kernel's limit for a value and for a list.
            Err(Errno::RANGE) if size < 1 << 16 => size *= 4,
            Err(errno) => return Err(errno),
            Ok(count) => {
                bytes.truncate(count);
                return Ok(());
            }
        }
    }
}

/// A name in a directory, and what is known about it without looking at it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirEntry {
    /// The name.
    pub name: Name,
    /// Its type, where the filesystem tells.
    pub kind: Option<Kind>,
}

/// An open directory. Each operation takes one name in it and follows no link.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// Names and types, sorted by name.
    ///
    /// # Errors
    /// Those of `getdents(2)`.
    pub fn entries(&self) -> io::Result<Vec<DirEntry>> {
        // Room for some 1000 names a call.
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = Vec::new();
        let mut listing = RawDir::new(&self.0, &mut buffer);
        while let Some(entry) = listing.next() {
            let entry = entry?;
            // `.` and `..` are no names.
            if let Some(name) = Name::new(entry.file_name().to_bytes()) {
                entries.push(DirEntry { name, kind: kind(entry.file_type()) });
            }
        }
        entries.sort();
        Ok(entries)
    }

    /// Metadata of `name`.
    ///
    /// # Errors
    /// `NotFound` if there is nothing.
    pub fn stat(&self, name: &Name) -> io::Result<DiskStat> {
        statx(self.0.as_fd(), name.as_bytes(), AtFlags::empty())
    }

    /// Metadata of the directory itself.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn own_stat(&self) -> io::Result<DiskStat> {
        DiskStat::of(&self.0)
    }

    /// Opens the directory `name` in it.
    ///
    /// # Errors
    /// `NotADirectory` for anything else, a link too.
    pub fn open_directory(&self, name: &Name) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(&self.0, name.as_bytes(), flags, Mode::empty())?))
    }

    /// Opens the regular file `name` for reading.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub fn open_file(&self, name: &Name) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.0, name.as_bytes(), flags, Mode::empty())?))
    }

    /// Target of the symbolic link `name`.
    ///
    /// # Errors
    /// `InvalidInput` if it is no link.
    pub fn read_link(&self, name: &Name) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, name.as_bytes(), Vec::new())?.into_bytes())
    }

    /// Makes the directory `name`, open to its owner.
    ///
    /// # Errors
    /// `AlreadyExists` if there is anything of this name.
    pub fn create_directory(&self, name: &Name) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.0, name.as_bytes(), Mode::RWXU)?)
    }

    /// Makes the file `name` for writing, readable by its owner alone.
    ///
    /// # Errors
    /// `AlreadyExists` if there is anything of this name.
    pub fn create_file(&self, name: &Name) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(File::from(rustix::fs::openat(&self.0, name.as_bytes(), flags, mode)?))
    }

    /// Makes the symbolic link `name`; `target` is not looked at.
    ///
    /// # Errors
    /// `AlreadyExists` if there is anything of this name.
    pub fn create_symlink(&self, name: &Name, target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name.as_bytes())?)
    }

    /// Makes the named pipe `name`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is anything of this name.
    pub fn create_fifo(&self, name: &Name) -> io::Result<()> {
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(rustix::fs::mknodat(&self.0, name.as_bytes(), FileType::Fifo, mode, 0)?)
    }

    /// Makes `name` another name of `old` in the directory `of`; a link there is
    /// linked itself.
    ///
    /// # Errors
    /// `AlreadyExists` if there is anything of this name, `NotFound` if there is
    /// no `old`.
    pub fn create_link(&self, name: &Name, of: &Self, old: &Name) -> io::Result<()> {
        let (name, old) = (name.as_bytes(), old.as_bytes());
        Ok(rustix::fs::linkat(&of.0, old, &self.0, name, AtFlags::empty())?)
    }

    /// Removes `name`, which is no directory.
    ///
    /// # Errors
    /// `NotFound` if there is nothing, `IsADirectory` if it is one.
    pub fn remove_file(&self, name: &Name) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name.as_bytes(), AtFlags::empty())?)
    }

    /// Sets permissions of the directory itself.
    ///
    /// # Errors
    /// Those of `fchmod(2)`.
    pub fn set_mode(&self, mode: u16) -> io::Result<()> {
        set_mode(&self.0, mode)
    }

    /// Sets the modification time of `name`, be it a link.
    ///
    /// # Errors
    /// Those of `utimensat(2)`.
    pub fn set_mtime(&self, name: &Name, mtime: Timestamp) -> io::Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::utimensat(&self.0, name.as_bytes(), &modified(mtime), flags)?)
    }

    /// Sets the modification time of the directory itself.
    ///
    /// # Errors
    /// Those of `utimensat(2)`.
    pub fn set_own_mtime(&self, mtime: Timestamp) -> io::Result<()> {
        set_mtime(&self.0, mtime)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sets permissions (`mode & 07777`) of an open file.
///
/// # Errors
/// Those of `fchmod(2)`.
pub fn set_mode(file: impl AsFd, mode: u16) -> io::Result<()> {
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(u32::from(mode & 0o7777)))?)
}

/// Sets the modification time of an open file.
///
/// # Errors
/// Those of `futimens(3)`.
pub fn set_mtime(file: impl AsFd, mtime: Timestamp) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &modified(mtime))?)
}

fn modified(mtime: Timestamp) -> rustix::fs::Timestamps {
    rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.into(),
        },
    }
}

#[cfg(test)]
mod tests;
