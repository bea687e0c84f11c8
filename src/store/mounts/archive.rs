//! A cache mount as a tar: everything that a file system keeps of its files, in a
//! form that any tar reads.
//!
//! Kept: names, types, modes, owners, times to the nanosecond, hard links, and the
//! attributes `user.*`, `security.capability` and POSIX ACLs. Left out, and told:
//! sockets and devices. The first entry is the directory itself; its pax record
//! `YADOKARI.mount` says which mode and owner the Dockerfile asked for.
//!
//! An import trusts nothing: names that lead out, links to outside, entries below
//! something that is no directory, things that stand twice and devices are refused.
//! It writes only into a directory that is its own, made of directories that it made
//! itself, so no link can lead it astray.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use tar::EntryType;
use tar::Header;

use super::MountId;
use crate::layer::decompress;
use crate::path::RootPath;

/// The pax record that says what the mount was made for: mode, owner and group.
const MOUNT_RECORD: &str = "YADOKARI.mount";

/// In front of the names of attributes in pax records, as GNU tar and star have it.
const XATTR_RECORD: &str = "SCHILY.xattr.";

/// Longest name of an entry in bytes: more can't be a path.
const LONGEST_NAME: usize = 4096;

/// Why a cache mount can't be written as a tar, or read from one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk's answer.
    #[error("cannot {action} {}", path.display())]
    Disk {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The archive can't be written or isn't whole.
    #[error("the archive {what}")]
    Archive {
        /// What is wrong.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry that must not be unpacked.
    #[error("entry `{entry}` {reason}; nothing was imported")]
    Entry {
        /// Its name.
        entry: String,
        /// The end of a sentence about it.
        reason: &'static str,
    },
}

impl Error {
    fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { action, path, source }
    }
}

/// Writes the directory of a cache mount as a tar; gives the paths left out.
///
/// # Errors
/// When a file can't be read, changes meanwhile, or `out` can't be written.
pub fn export(mount: &MountId, directory: &Path, out: impl Write) -> Result<Vec<PathBuf>, Error> {
    let mut export = Export {
        top: directory,
        tar: tar::Builder::new(out),
        linked: HashMap::new(),
        skipped: Vec::new(),
    };
    let record = format!("{:o} {} {}", mount.mode, mount.uid, mount.gid);
    export.entry(Path::new(""), Some(&record))?;
    let written = |source| Error::Archive { what: "cannot be written", source };
    export.tar.into_inner().and_then(|mut out| out.flush()).map_err(written)?;
    Ok(export.skipped)
}

struct Export<'a, W: Write> {
    top: &'a Path,
    tar: tar::Builder<W>,
    /// Files with several names, by device and inode, to the first of them.
    linked: HashMap<(u64, u64), PathBuf>,
    skipped: Vec<PathBuf>,
}

impl<W: Write> Export<'_, W> {
    /// Writes what is at `below` and, of a directory, all in it. Recursion ends at the
    /// depth of a path, which the kernel bounds.
    fn entry(&mut self, below: &Path, record: Option<&str>) -> Result<(), Error> {
        let path =
            if below.as_os_str().is_empty() { self.top.to_owned() } else { self.top.join(below) };
        let found = fs::symlink_metadata(&path).map_err(Error::disk("look at", &path))?;
        let kind = found.file_type();
        if kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
            self.skipped.push(below.to_owned());
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_mode(found.mode() & 0o7777);
        header.set_uid(u64::from(found.uid()));
        header.set_gid(u64::from(found.gid()));
        header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
        header.set_size(0);
        let name = if kind.is_dir() {
            Path::new(".").join(below).join("")
        } else {
            Path::new(".").join(below)
        };
        let written = |source| Error::Archive { what: "cannot be written", source };

        let first = (found.nlink() > 1 && !kind.is_dir())
            .then(|| self.linked.insert((found.dev(), found.ino()), name.clone()))
            .flatten();
        if let Some(first) = first {
            self.linked.insert((found.dev(), found.ino()), first.clone());
            header.set_entry_type(EntryType::Link);
            return self.tar.append_link(&mut header, &name, &first).map_err(written);
        }

        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if let Some(record) = record {
            records.push((MOUNT_RECORD.to_owned(), record.into()));
        }
        let time = format!("{}.{:09}", found.mtime(), found.mtime_nsec());
        records.push(("mtime".to_owned(), time.into()));
        if kind.is_file() || kind.is_dir() {
            for (name, value) in attributes(&path)? {
                records.push((format!("{XATTR_RECORD}{name}"), value));
            }
        }
        let extensions = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(extensions).map_err(written)?;

        if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(Error::disk("read the link", &path))?;
            header.set_entry_type(EntryType::Symlink);
            self.tar.append_link(&mut header, &name, target).map_err(written)
        } else if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.tar.append_data(&mut header, &name, io::empty()).map_err(written)?;
            for child in children(&path)? {
                self.entry(&below.join(child), None)?;
            }
            Ok(())
        } else if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(found.size());
            let file = File::open(&path).map_err(Error::disk("open", &path))?;
            let mut whole = Whole { file: file.take(found.size()), missing: found.size() };
            self.tar.append_data(&mut header, &name, &mut whole).map_err(written)
        } else {
            header.set_entry_type(EntryType::Fifo);
            self.tar.append_data(&mut header, &name, io::empty()).map_err(written)
        }
    }
}

/// A file that must have as many bytes as its header says.
struct Whole {
    file: io::Take<File>,
    missing: u64,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.missing -= count as u64;
        if count == 0 && self.missing > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file became shorter"));
        }
        Ok(count)
    }
}

/// Names in a directory, sorted: equal directories make equal archives.
fn children(directory: &Path) -> Result<Vec<std::ffi::OsString>, Error> {
    let failed = |source| Error::disk("list", directory)(source);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.push(entry.map_err(|source| Error::disk("list", directory)(source))?.file_name());
    }
    names.sort();
    Ok(names)
}

/// Whether an attribute travels with a file.
fn travels(name: &str) -> bool {
    name.starts_with("user.")
        || name == "security.capability"
        || name.starts_with("system.posix_acl_")
}

fn attributes(path: &Path) -> Result<Vec<(String, Vec<u8>)>, Error> {
    // 64 KiB is the kernel's limit for a list and for a value.
    let mut buffer = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut buffer) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(errno) => return Err(Error::disk("list attributes of", path)(errno.into())),
    };
    let names: Vec<String> = buffer[..length]
        .split(|&byte| byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| travels(name))
        .map(str::to_owned)
        .collect();
    let mut found = Vec::new();
    for name in names {
        match rustix::fs::lgetxattr(path, name.as_str(), &mut buffer) {
            Ok(length) => found.push((name, buffer[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(Error::disk("read attributes of", path)(errno.into())),
        }
    }
    found.sort();
    Ok(found)
}

/// What an entry gives to what it makes.
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// Unpacks a tar, plain or compressed, into `directory`, which doesn't exist yet.
/// Gives the mount that it was made of, as far as it says so; `id` names it.
///
/// # Errors
/// See [`Error`]; `directory` is then half full.
pub fn import(id: &str, archive: impl Read + Send, directory: &Path) -> Result<MountId, Error> {
    let damaged = |source| Error::Archive { what: "is damaged", source };
    fs::create_dir(directory).map_err(Error::disk("create", directory))?;
    let mut import = Import {
        top: directory,
        mount: MountId::plain(id),
        made: BTreeMap::from([(RootPath::root(), true)]),
        directories: BTreeMap::new(),
    };
    let mut archive = tar::Archive::new(decompress::reader(archive).map_err(damaged)?);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path_bytes().into_owned();
        import.entry(&name, &mut entry).map_err(|fault| match fault {
            Fault::Refused(reason) => {
                Error::Entry { entry: String::from_utf8_lossy(&name).into_owned(), reason }
            }
            Fault::Failed(error) => error,
        })?;
    }
    // To the end: whoever writes into the pipe must not see it break, and the
    // checksum of a compressed stream stands there.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
    import.finish()
}

enum Fault {
    Refused(&'static str),
    Failed(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Import<'a> {
    top: &'a Path,
    mount: MountId,
    /// What was made, and whether it is a directory.
    made: BTreeMap<RootPath, bool>,
    /// Set at the end: work in a directory changes its time, and its mode may forbid
    /// work.
    directories: BTreeMap<RootPath, Attributes>,
}

impl Import<'_> {
    fn entry<R: Read>(&mut self, name: &[u8], entry: &mut tar::Entry<'_, R>) -> Result<(), Fault> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = inner_path(name)?;
        let is_first = path.is_root();
        let attributes = attributes_of(entry, is_first.then_some(&mut self.mount))?;
        if path.is_root() {
            if kind != EntryType::Directory {
                return Err(Fault::Refused("stands in place of the mount and is no directory"));
            }
            self.directories.insert(path, attributes);
            return Ok(());
        }
        let parent = path.parent().unwrap_or_default();
        self.ensure_directory(&parent)?;
        match (self.made.get(&path), kind) {
            (None, _) => {}
            (Some(true), EntryType::Directory) => {
                self.directories.insert(path, attributes);
                return Ok(());
            }
            (Some(_), _) => return Err(Fault::Refused("stands twice")),
        }
        let place = self.top.join(path.as_path());
        match kind {
            EntryType::Directory => {
                fs::create_dir(&place).map_err(Error::disk("create", &place))?;
                self.directories.insert(path.clone(), attributes);
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let made = File::create_new(&place).map_err(Error::disk("create", &place));
                let mut file = made?;
                io::copy(entry, &mut file).map_err(Error::disk("write", &place))?;
                drop(file);
                apply(&place, &attributes, false)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                if target.is_empty() || target.contains(&0) {
                    return Err(Fault::Refused("is a symbolic link to nowhere"));
                }
                std::os::unix::fs::symlink(OsStr::from_bytes(&target), &place)
                    .map_err(Error::disk("create", &place))?;
                apply(&place, &attributes, true)?;
            }
            EntryType::Link => {
                let target = inner_path(&entry.link_name_bytes().unwrap_or_default())?;
                if self.made.get(&target) != Some(&false) {
                    return Err(Fault::Refused("is a hard link to a file that the archive lacks"));
                }
                // Symbolic links aren't followed: `linkat` without a flag.
                let old = self.top.join(target.as_path());
                rustix::fs::linkat(CWD, &old, CWD, &place, AtFlags::empty())
                    .map_err(|errno| Error::disk("create", &place)(errno.into()))?;
            }
            EntryType::Fifo => {
                let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                rustix::fs::mknodat(CWD, &place, rustix::fs::FileType::Fifo, mode, 0)
                    .map_err(|errno| Error::disk("create", &place)(errno.into()))?;
                apply(&place, &attributes, false)?;
            }
            EntryType::Char | EntryType::Block => {
                return Err(Fault::Refused("is a device, and a cache mount has none"));
            }
            _ => return Err(Fault::Refused("is of a kind that tar does not define")),
        }
        self.made.insert(path, kind == EntryType::Directory);
        Ok(())
    }

    /// Makes the directories down to `path` that the archive left out.
    fn ensure_directory(&mut self, path: &RootPath) -> Result<(), Fault> {
        match self.made.get(path) {
            Some(true) => return Ok(()),
            Some(false) => return Err(Fault::Refused("lies below something that is no directory")),
            None => {}
        }
        if let Some(parent) = path.parent() {
            self.ensure_directory(&parent)?;
        }
        let place = self.top.join(path.as_path());
        fs::create_dir(&place).map_err(Error::disk("create", &place))?;
        self.made.insert(path.clone(), true);
        Ok(())
    }

    fn finish(self) -> Result<MountId, Error> {
        // Children first.
        for (path, attributes) in self.directories.iter().rev() {
            let place =
                if path.is_root() { self.top.to_owned() } else { self.top.join(path.as_path()) };
            apply(&place, attributes, false)?;
        }
        if !self.directories.contains_key(&RootPath::root()) {
            let attributes = Attributes {
                mode: u32::from(self.mount.mode),
                uid: self.mount.uid,
                gid: self.mount.gid,
                mtime: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                xattrs: Vec::new(),
            };
            apply(self.top, &attributes, false)?;
        }
        Ok(self.mount)
    }
}

/// A name in the archive, or the target of a hard link, as a path in the mount.
fn inner_path(name: &[u8]) -> Result<RootPath, Fault> {
    if name.first() == Some(&b'/') {
        return Err(Fault::Refused("has an absolute path"));
    }
    if name.split(|&byte| byte == b'/').any(|part| part == b"..") {
        return Err(Fault::Refused("has `..` in its path"));
    }
    if name.is_empty() || name.len() >= LONGEST_NAME {
        return Err(Fault::Refused("has an empty path or one longer than 4095 bytes"));
    }
    RootPath::clamped(name).ok_or(Fault::Refused("has a NUL byte in its path"))
}

/// Reads header and pax records; those of the first entry say which `mount` it is.
fn attributes_of<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    mount: Option<&mut MountId>,
) -> Result<Attributes, Fault> {
    let malformed = || Fault::Refused("has a malformed header");
    let mut xattrs = Vec::new();
    let mut precise = None;
    let mut record = None;
    if let Some(extensions) = entry.pax_extensions().map_err(|_| malformed())? {
        for extension in extensions {
            let extension = extension.map_err(|_| malformed())?;
            let key = extension.key().map_err(|_| malformed())?;
            if key == "mtime" {
                let text = extension.value().map_err(|_| malformed())?;
                precise = Some(time(text).ok_or_else(malformed)?);
            } else if key == MOUNT_RECORD {
                record = Some(extension.value().map_err(|_| malformed())?.to_owned());
            } else if let Some(name) = key.strip_prefix(XATTR_RECORD) {
                if !travels(name) {
                    return Err(Fault::Refused("has an attribute that cache mounts don't keep"));
                }
                xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    let header = entry.header();
    let number = |value: io::Result<u64>| -> Result<u32, Fault> {
        value.ok().and_then(|value| u32::try_from(value).ok()).ok_or_else(malformed)
    };
    let seconds = header.mtime().map_err(|_| malformed())?.cast_signed();
    let attributes = Attributes {
        mode: header.mode().map_err(|_| malformed())? & 0o7777,
        uid: number(header.uid())?,
        gid: number(header.gid())?,
        mtime: precise.unwrap_or(Timespec { tv_sec: seconds, tv_nsec: 0 }),
        xattrs,
    };
    if let Some(mount) = mount {
        mount.mode = u16::try_from(attributes.mode).map_err(|_| malformed())?;
        (mount.uid, mount.gid) = (attributes.uid, attributes.gid);
        if let Some(record) = record {
            let mut words = record.split(' ');
            let mut word = || words.next().ok_or_else(malformed);
            mount.mode = u16::from_str_radix(word()?, 8).map_err(|_| malformed())? & 0o7777;
            mount.uid = word()?.parse().map_err(|_| malformed())?;
            mount.gid = word()?.parse().map_err(|_| malformed())?;
        }
    }
    Ok(attributes)
}

/// Reads `-12.345`: seconds since the epoch; nanoseconds count forward.
fn time(text: &str) -> Option<Timespec> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let seconds: i64 = whole.parse().ok()?;
    if decimals.is_empty() || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = decimals.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0_i64, |number, digit| number * 10 + i64::from(digit - b'0'));
    // Ours are floored: -1.5 is written as seconds -2 and .5 by others, and by us as
    // the seconds of the file plus its nanoseconds.
    Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
}

/// Gives a new file its owner, mode, attributes and time, in this order: a change of
/// owner takes away the set-user-ID bit and capabilities.
fn apply(path: &Path, attributes: &Attributes, is_link: bool) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    std::os::unix::fs::lchown(path, Some(attributes.uid), Some(attributes.gid))
        .map_err(Error::disk("set the owner of", path))?;
    if !is_link {
        fs::set_permissions(path, fs::Permissions::from_mode(attributes.mode))
            .map_err(Error::disk("set the mode of", path))?;
        for (name, value) in &attributes.xattrs {
            rustix::fs::lsetxattr(path, name.as_str(), value, XattrFlags::empty())
                .map_err(|errno| Error::disk("set attributes of", path)(errno.into()))?;
        }
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: attributes.mtime,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| Error::disk("set the time of", path)(errno.into()))
}
