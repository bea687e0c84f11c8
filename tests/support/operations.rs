//! Random operations on a mounted overlay: system calls, and edits in process as
//! COPY makes them.
//!
//! They go where there is something and may fail as rename(2) or open(2) fail; an
//! error that no caller should ever get (EIO, ESTALE, ENOSYS) is a fault. Links
//! never point up, so nothing leaves the mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FallocateFlags;
use rustix::fs::FileType;
use rustix::fs::RenameFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::XattrFlags;
use yadokari::overlay::Attributes;
use yadokari::overlay::Follow;
use yadokari::overlay::Overlay;
use yadokari::path::Name;
use yadokari::path::RootPath;
use yadokari::tree::Content;
use yadokari::tree::Device;
use yadokari::tree::Kind;
use yadokari::tree::NodeId;
use yadokari::tree::ReadAt;
use yadokari::tree::Timestamp;

use crate::mapper::Mapper;
use crate::random::Random;

/// What callers of these operations must be ready for.
const EXPECTED: [i32; 16] = [
    libc::ENOENT,
    libc::EEXIST,
    libc::ENOTDIR,
    libc::EISDIR,
    libc::ENOTEMPTY,
    libc::EINVAL,
    libc::ELOOP,
    libc::ENODATA,
    libc::EPERM,
    libc::EACCES,
    libc::ENXIO,
    libc::ENAMETOOLONG,
    libc::EADDRINUSE,
    libc::EBUSY,
    libc::EAGAIN,
    libc::EFBIG,
];

/// Who operates, and where.
pub(crate) struct Actor<'a> {
    pub(crate) overlay: &'a Overlay,
    /// Where the overlay is mounted.
    pub(crate) mount: &'a Path,
    /// The directory to stay in.
    pub(crate) area: PathBuf,
    pub(crate) random: Random,
    /// Whether edits in process are mixed in.
    pub(crate) edits: bool,
    /// Whether nobody else may cut a file that is mapped here.
    pub(crate) maps: bool,
    /// Who makes mappings.
    pub(crate) mapper: &'a Mutex<Mapper>,
    /// How often each operation succeeded.
    pub(crate) done: Done,
}

/// How often each operation succeeded, by its name.
pub(crate) type Done = BTreeMap<&'static str, u32>;

type Operation<'a> = fn(&mut Actor<'a>) -> io::Result<()>;

/// Bytes with a digest that is known, as those of a build context are.
struct Digested(Vec<u8>);

impl ReadAt for Digested {
    fn len(&self) -> u64 {
        ReadAt::len(&self.0)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn known_digest(&self) -> Option<[u8; 32]> {
        Some(*blake3::hash(&self.0).as_bytes())
    }
}

/// A system call of rustix has another type of error.
fn call<T>(result: rustix::io::Result<T>) -> io::Result<()> {
    Ok(result.map(drop)?)
}

fn name_of(path: &Path) -> Name {
    Name::new(path.file_name().expect("below the mount").as_bytes()).expect("a name")
}

impl<'a> Actor<'a> {
    /// Name, share of all operations, and what is done.
    const OPERATIONS: [(&'static str, u64, Operation<'a>); 34] = [
        ("create", 8, Self::create),
        ("write", 6, Self::write),
        ("append", 4, Self::append),
        ("overwrite", 5, Self::overwrite),
        ("truncate", 3, Self::truncate),
        ("mkdir", 6, Self::mkdir),
        ("rmdir", 3, Self::rmdir),
        ("unlink", 5, Self::unlink),
        ("rm -r", 1, Self::remove_all),
        ("rename", 8, Self::rename),
        ("exchange", 3, Self::exchange),
        ("rename whiteout", 1, Self::rename_whiteout),
        ("rename and back", 2, Self::rename_and_back),
        ("link", 6, Self::link),
        ("symlink", 3, Self::symlink),
        ("chmod", 4, Self::chmod),
        ("chown", 3, Self::chown),
        ("utimes", 3, Self::utimes),
        ("user xattr", 2, Self::user_xattr),
        ("capability", 2, Self::capability),
        ("no capability", 1, Self::no_capability),
        ("special", 3, Self::special),
        ("map", 3, Self::map),
        ("copy", 3, Self::copy),
        ("punch", 2, Self::punch),
        ("orphan", 2, Self::orphan),
        ("rewrite", 2, Self::rewrite),
        ("replace by copy", 2, Self::replace_by_copy),
        ("read", 3, Self::read),
        ("edit: file", 5, Self::edit_file),
        ("edit: directory", 2, Self::edit_directories),
        ("edit: link", 2, Self::edit_link),
        ("edit: remove", 1, Self::edit_remove),
        ("edit: metadata", 3, Self::edit_metadata),
    ];

    /// Names of all operations.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        Self::OPERATIONS.iter().map(|(name, ..)| *name)
    }

    /// Does `count` of them.
    pub(crate) fn operate(&mut self, count: u32) {
        let total = Self::OPERATIONS.iter().map(|(_, share, _)| share).sum();
        for _ in 0..count {
            let mut at = self.random.below(total);
            let chosen = Self::OPERATIONS.iter().find(|(_, share, _)| {
                let here = at < *share;
                at = at.saturating_sub(*share);
                here
            });
            let (name, _, operation) = chosen.expect("below the total");
            if (name.starts_with("edit") && !self.edits) || (*name == "map" && !self.maps) {
                continue;
            }
            match operation(self) {
                Ok(()) => *self.done.entry(name).or_default() += 1,
                Err(error) if error.raw_os_error().is_some_and(|n| EXPECTED.contains(&n)) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }

    /// Names in a directory, sorted, with whether each is a directory itself.
    fn list(at: &Path) -> Vec<(PathBuf, bool)> {
        let Ok(entries) = fs::read_dir(at) else { return Vec::new() };
        let mut found: Vec<_> = entries
            .filter_map(Result::ok)
            .map(|entry| (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir())))
            .collect();
        found.sort();
        found
    }

    fn directory(&mut self) -> PathBuf {
        let mut at = self.area.clone();
        while self.random.chance(65) {
            let all = Self::list(&at);
            let below: Vec<_> = all.into_iter().filter(|(_, directory)| *directory).collect();
            if below.is_empty() {
                break;
            }
            at = self.random.pick(&below).0.clone();
        }
        at
    }

    /// A path that may be there or not.
    fn place(&mut self) -> PathBuf {
        self.directory().join(OsStr::from_bytes(self.random.name()))
    }

    /// A path that is there, below the area; of a directory if so wished.
    fn existing(&mut self, directory: bool) -> io::Result<PathBuf> {
        for _ in 0..8 {
            let at = self.directory();
            let all = Self::list(&at);
            let fit: Vec<_> = all.into_iter().filter(|(_, is)| *is == directory).collect();
            if !fit.is_empty() {
                return Ok(self.random.pick(&fit).0.clone());
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn any(&mut self) -> io::Result<PathBuf> {
        let directory = self.random.chance(35);
        self.existing(directory)
    }

    /// Opens a regular file for reading and writing, and never waits for a pipe.
    fn open(&mut self, change: impl FnOnce(&mut OpenOptions)) -> io::Result<(PathBuf, File)> {
        for _ in 0..4 {
            let path = self.existing(false)?;
            if !fs::symlink_metadata(&path)?.is_file() {
                continue;
            }
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            change(&mut options);
            let file = options.open(&path)?;
            if file.metadata()?.is_file() {
                return Ok((path, file));
            }
            return Err(io::ErrorKind::NotFound.into());
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.random.length();
        self.random.bytes(length)
    }

    fn create(&mut self) -> io::Result<()> {
        let (path, bytes) = (self.place(), self.bytes());
        let mode = u32::from(self.random.mode());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(&bytes)
    }

    fn write(&mut self) -> io::Result<()> {
        let (_, mut file) = self.open(|options| _ = options.truncate(true))?;
        let bytes = self.bytes();
        file.write_all(&bytes)
    }

    fn append(&mut self) -> io::Result<()> {
        let (_, mut file) = self.open(|options| _ = options.append(true))?;
        let bytes = self.bytes();
        file.write_all(&bytes)?;
        file.write_all(b"\n")
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let (_, file) = self.open(|_| ())?;
        for _ in 0..1 + self.random.below(3) {
            let limit = file.metadata()?.len() + 5000;
            let at = self.random.below(limit);
            let length = 1 + self.random.below(6000) as usize;
            file.write_all_at(&self.random.bytes(length), at)?;
        }
        Ok(())
    }

    fn truncate(&mut self) -> io::Result<()> {
        let (_, file) = self.open(|_| ())?;
        let limit = 2 * file.metadata()?.len().min(4_000_000) + 5000;
        file.set_len(self.random.below(limit))
    }

    fn mkdir(&mut self) -> io::Result<()> {
        fs::create_dir(self.place())
    }

    fn rmdir(&mut self) -> io::Result<()> {
        fs::remove_dir(self.existing(true)?)
    }

    fn unlink(&mut self) -> io::Result<()> {
        fs::remove_file(self.existing(false)?)
    }

    fn remove_all(&mut self) -> io::Result<()> {
        fs::remove_dir_all(self.existing(true)?)
    }

    fn rename(&mut self) -> io::Result<()> {
        let from = self.any()?;
        let to = if self.random.chance(50) { self.place() } else { self.any()? };
        fs::rename(from, to)
    }

    fn rename_with(&mut self, flags: RenameFlags) -> io::Result<()> {
        let from = self.any()?;
        let to = if flags == RenameFlags::EXCHANGE { self.any()? } else { self.place() };
        call(rustix::fs::renameat_with(CWD, from, CWD, to, flags))
    }

    fn exchange(&mut self) -> io::Result<()> {
        self.rename_with(RenameFlags::EXCHANGE)
    }

    fn rename_whiteout(&mut self) -> io::Result<()> {
        let alone = self.random.chance(50);
        let no = if alone { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        self.rename_with(RenameFlags::WHITEOUT | no)
    }

    /// With a write on the way.
    fn rename_and_back(&mut self) -> io::Result<()> {
        let (from, away) = (self.existing(true)?, self.place());
        call(rustix::fs::renameat_with(CWD, &from, CWD, &away, RenameFlags::NOREPLACE))?;
        if self.random.chance(60) {
            let inner = away.join(OsStr::from_bytes(self.random.name()));
            let mut options = OpenOptions::new();
            options.append(true).create(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let _ = options.open(inner).and_then(|mut file| file.write_all(b"inner"));
        }
        fs::rename(away, from)
    }

    fn link(&mut self) -> io::Result<()> {
        fs::hard_link(self.existing(false)?, self.place())
    }

    fn symlink(&mut self) -> io::Result<()> {
        let target = OsStr::from_bytes(self.random.name());
        std::os::unix::fs::symlink(target, self.place())
    }

    fn chmod(&mut self) -> io::Result<()> {
        let path = self.any()?;
        if fs::symlink_metadata(&path)?.is_symlink() {
            return Err(io::ErrorKind::NotFound.into());
        }
        call(rustix::fs::chmod(path, u32::from(self.random.mode()).into()))
    }

    fn chown(&mut self) -> io::Result<()> {
        let (uid, gid) = (self.random.id(), self.random.id());
        let uid = self.random.chance(70).then_some(uid);
        std::os::unix::fs::lchown(self.any()?, uid, Some(gid))
    }

    fn time(&mut self) -> Timestamp {
        let seconds = self.random.below(2_000_000_000) as i64 - 5;
        let nanoseconds = if self.random.chance(50) { 0 } else { 999_999_999 };
        Timestamp { seconds, nanoseconds }
    }

    fn utimes(&mut self) -> io::Result<()> {
        let time = self.time();
        set_time(&self.any()?, time.seconds, i64::from(time.nanoseconds))
    }

    fn user_xattr(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let value = self.random.bytes(12);
        if self.random.chance(30) {
            return call(rustix::fs::lremovexattr(path, "user.one"));
        }
        call(rustix::fs::lsetxattr(path, "user.one", &value, XattrFlags::empty()))
    }

    fn capability(&mut self) -> io::Result<()> {
        let (path, value) = (self.any()?, self.random.capability());
        call(rustix::fs::lsetxattr(path, "security.capability", &value, XattrFlags::empty()))
    }

    fn no_capability(&mut self) -> io::Result<()> {
        let mut last = Ok(());
        for _ in 0..6 {
            last = call(rustix::fs::lremovexattr(self.any()?, "security.capability"));
        }
        last
    }

    fn special(&mut self) -> io::Result<()> {
        let path = self.place();
        let mode = u32::from(self.random.mode()).into();
        let kinds =
            [FileType::Fifo, FileType::CharacterDevice, FileType::BlockDevice, FileType::Socket];
        let kind = *self.random.pick(&kinds);
        let device = match kind {
            FileType::CharacterDevice => rustix::fs::makedev(1, 3),
            FileType::BlockDevice => rustix::fs::makedev(259, 300),
            _ => 0,
        };
        call(rustix::fs::mknodat(CWD, path, kind, mode, device))
    }

    fn map(&mut self) -> io::Result<()> {
        let (path, file) = self.open(|_| ())?;
        let data = file.metadata()?;
        if data.len() == 0 || data.len() > 1 << 20 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let length_of_file = data.len() as usize;
        let mut writes = Vec::new();
        for _ in 0..3 {
            let at = self.random.below(data.len()) as usize;
            let length = (1 + self.random.below(5000) as usize).min(length_of_file - at);
            writes.push((at, self.random.bytes(length)));
        }
        let mut mapper = self.mapper.lock().expect("no panic while it was held");
        mapper.write(&path, &writes)?;
        mapper.forget()
    }

    fn copy(&mut self) -> io::Result<()> {
        let (_, from) = self.open(|_| ())?;
        let to = OpenOptions::new().write(true).create_new(true).open(self.place())?;
        let length = from.metadata()?.len() as usize;
        let mut at = self.random.below(100);
        rustix::fs::copy_file_range(&from, Some(&mut at), &to, None, length)?;
        Ok(())
    }

    fn punch(&mut self) -> io::Result<()> {
        let (_, file) = self.open(|_| ())?;
        let keep = FallocateFlags::KEEP_SIZE;
        let modes = [
            FallocateFlags::PUNCH_HOLE | keep,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::empty(),
        ];
        let mode = *self.random.pick(&modes);
        let at = self.random.below(file.metadata()?.len() + 1);
        call(rustix::fs::fallocate(&file, mode, at, 1 + self.random.below(9000)))
    }

    /// Goes on with a file that has lost its name.
    fn orphan(&mut self) -> io::Result<()> {
        let (path, mut file) = self.open(|_| ())?;
        fs::remove_file(&path)?;
        file.write_all(b"nobody sees this")?;
        if self.random.chance(50) {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).open(path)?.write_all(b"another")?;
        }
        file.set_len(3)?;
        let mut rest = Vec::new();
        file.read_to_end(&mut rest)?;
        Ok(())
    }

    /// Writes what is there again, and puts the time back: no change.
    fn rewrite(&mut self) -> io::Result<()> {
        let (path, mut file) = self.open(|_| ())?;
        let data = file.metadata()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if self.random.chance(30) && !bytes.is_empty() {
            bytes[0] ^= 1;
        }
        file.write_all_at(&bytes, 0)?;
        set_time(&path, data.mtime(), data.mtime_nsec())
    }

    /// Puts an equal file in the place of one: its links are another matter.
    fn replace_by_copy(&mut self) -> io::Result<()> {
        let (path, mut file) = self.open(|_| ())?;
        let data = file.metadata()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let made = path.with_file_name("copy");
        let mut copy = OpenOptions::new().write(true).create_new(true).open(&made)?;
        copy.write_all(&bytes)?;
        std::os::unix::fs::fchown(&copy, Some(data.uid()), Some(data.gid()))?;
        rustix::fs::fchmod(&copy, (data.mode() & 0o7777).into())?;
        set_time(&made, data.mtime(), data.mtime_nsec())?;
        fs::rename(made, path)
    }

    fn read(&mut self) -> io::Result<()> {
        let (_, mut file) = self.open(|_| ())?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map(drop)
    }

    // Edits in this process.

    fn attributes(&mut self) -> Attributes {
        Attributes {
            mode: self.random.mode(),
            uid: self.random.id(),
            gid: self.random.id(),
            mtime: self.time(),
        }
    }

    fn inside(&self, path: &Path) -> RootPath {
        let path = path.strip_prefix(self.mount).expect("below the mount");
        RootPath::clamped(path.as_os_str().as_bytes()).expect("no NUL")
    }

    fn node(&self, path: &Path) -> io::Result<NodeId> {
        let place = self.overlay.resolve(&self.inside(path), Follow::Parents)?;
        place.node.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn parent(&self, path: &Path) -> io::Result<NodeId> {
        self.node(path.parent().expect("below the mount"))
    }

    fn edit_file(&mut self) -> io::Result<()> {
        let path = if self.random.chance(50) { self.place() } else { self.existing(false)? };
        let (bytes, attributes) = (self.bytes(), self.attributes());
        let content: Content =
            if self.random.chance(50) { Arc::new(Digested(bytes)) } else { Arc::new(bytes) };
        let (parent, name) = (self.parent(&path)?, name_of(&path));
        match self.random.below(10) {
            0 => self.overlay.put_symlink(parent, &name, &attributes, b"a")?,
            1 => {
                let device = Device { major: 1, minor: 5 };
                self.overlay.put_special(parent, &name, &attributes, Kind::CharDevice, device)?
            }
            _ => self.overlay.put_file(parent, &name, &attributes, content)?,
        };
        Ok(())
    }

    fn edit_directories(&mut self) -> io::Result<()> {
        let path = self.place().join(OsStr::from_bytes(self.random.name()));
        let attributes = self.attributes();
        self.overlay.make_directories(&self.inside(&path), &attributes).map(drop)
    }

    fn edit_link(&mut self) -> io::Result<()> {
        let (from, to) = (self.existing(false)?, self.place());
        self.overlay.link(self.node(&from)?, self.parent(&to)?, &name_of(&to))
    }

    fn edit_remove(&mut self) -> io::Result<()> {
        let path = self.any()?;
        self.overlay.remove(self.parent(&path)?, &name_of(&path))
    }

    fn edit_metadata(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let node = self.node(&path)?;
        match self.random.below(4) {
            0 => self.overlay.set_xattr(node, b"security.capability", &self.random.capability()),
            1 => self.overlay.remove_xattr(node, b"security.capability"),
            _ => self.overlay.set_attributes(node, &self.attributes()),
        }
    }
}

/// Sets the time of last modification.
pub(crate) fn set_time(path: &Path, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    };
    call(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW))
}
