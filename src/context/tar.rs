//! A build context out of a tar: unpacked as a stream, never outside its directory.
//!
//! Modes and modification times are kept, owners aren't: COPY gives files an owner
//! of its own. Entries that reach outside are refused, not bent: an archive with
//! such names was made by mistake or by an attacker.

use std::collections::BTreeMap;
use std::io;
use std::io::Read;

use rustix::io::Errno;
use tar::Archive;
use tar::EntryType;

use super::Error;
use crate::layer::decompress;
use crate::path::Name;
use crate::path::RootPath;
use crate::root_dir;
use crate::root_dir::Directory;
use crate::root_dir::Links;
use crate::root_dir::RootDir;
use crate::tree::Kind;
use crate::tree::Timestamp;

/// Longest name of an entry in bytes: more than `PATH_MAX` can't be a path. It also
/// bounds the depth of directories that one entry makes.
const LONGEST_NAME: usize = 4096;

/// Permissions of directories that the archive doesn't hold itself.
const IMPLIED_MODE: u16 = 0o755;

/// Unpacks `archive` into `root`, which is empty. Gives the latest time of a regular file,
/// in seconds since 1970.
///
/// # Errors
/// Those that name the archive or its entry; `root` is then half full.
pub(super) fn unpack(
    archive: impl Read + Send,
    name: &str,
    root: &RootDir,
) -> Result<Option<i64>, Error> {
    let damaged = |source| Error::Archive { archive: name.to_owned(), source };
    let mut archive = Archive::new(decompress::reader(archive).map_err(damaged)?);
    let mut unpacking = Unpacking {
        archive: name,
        root,
        directories: BTreeMap::new(),
        current: None,
        newest: None,
    };
    let mut is_empty = true;
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        is_empty = false;
        let shown = entry.path_bytes().into_owned();
        unpacking.entry(&shown, &mut entry).map_err(|fault| unpacking.error(&shown, fault))?;
    }
    if is_empty {
        return Err(Error::EmptyArchive { archive: name.to_owned() });
    }
    // To the end: whoever writes into the pipe must not see it break, and the
    // checksum of a compressed stream stands there.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
    unpacking.finish()
}

/// The latest time of a regular file in `archive`, a plain tar, in seconds since 1970.
///
/// # Errors
/// Those of reading it; a header that says no time.
pub fn newest(archive: impl Read) -> io::Result<Option<i64>> {
    let mut newest = None;
    for entry in Archive::new(archive).entries()? {
        let mut entry = entry?;
        let time = modified(&mut entry).map_err(|fault| match fault {
            Fault::Refused(reason) => io::Error::other(reason),
            Fault::Failed(error) => error,
        })?;
        if is_regular(entry.header().entry_type()) {
            newest = newest.max(Some(time.seconds));
        }
    }
    Ok(newest)
}

fn is_regular(kind: EntryType) -> bool {
    kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse()
}

/// Why an entry stays out.
enum Fault {
    /// The archive's fault: the end of a sentence about the entry.
    Refused(&'static str),
    /// The disk's, or the stream's in the middle of a file.
    Failed(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<root_dir::Error> for Fault {
    fn from(error: root_dir::Error) -> Self {
        let loops = io::Error::from(Errno::LOOP).kind();
        match error.kind() {
            io::ErrorKind::CrossesDevices => {
                Self::Refused("leads out of it through a symbolic link")
            }
            kind if kind == loops => Self::Refused("leads through symbolic links without end"),
            io::ErrorKind::NotADirectory => {
                Self::Refused("lies below something that is no directory")
            }
            _ => Self::Failed(error.into()),
        }
    }
}

struct Unpacking<'a> {
    archive: &'a str,
    root: &'a RootDir,
    /// Mode and time of directories. They are set at the end, as work in a
    /// directory changes its time and its mode may forbid work.
    directories: BTreeMap<RootPath, (u16, Option<Timestamp>)>,
    /// The directory of the last entry: mostly also that of the next.
    current: Option<(RootPath, Directory)>,
    /// The latest time of a regular file, in seconds.
    newest: Option<i64>,
}

impl Unpacking<'_> {
    fn error(&self, entry: &[u8], fault: Fault) -> Error {
        let archive = self.archive.to_owned();
        let entry = String::from_utf8_lossy(entry).into_owned();
        match fault {
            Fault::Refused(reason) => Error::Entry { archive, entry, reason },
            Fault::Failed(source) => Error::Unpack { archive, entry, source },
        }
    }

    fn entry<R: Read>(&mut self, shown: &[u8], entry: &mut tar::Entry<'_, R>) -> Result<(), Fault> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = inner_path(shown)?;
        let mtime = modified(entry)?;
        if is_regular(kind) {
            self.newest = self.newest.max(Some(mtime.seconds));
        }
        // Bits above the permissions say nothing; their meaning left tar long ago.
        let mode = entry.header().mode()? & 0o7777;
        let mode = u16::try_from(mode).unwrap_or(IMPLIED_MODE);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            if !kind.is_dir() {
                return Err(Fault::Refused("stands in place of its root and is no directory"));
            }
            self.directories.insert(path, (IMPLIED_MODE, Some(mtime)));
            return Ok(());
        };
        // A hard link may name a file in the very directory that is kept open.
        let link = match kind {
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                Some(inner_path(&target)?)
            }
            _ => None,
        };
        self.enter(&parent)?;
        let Some((_, directory)) = &self.current else {
            return Err(Fault::Failed(io::ErrorKind::NotFound.into()));
        };
        match kind {
            EntryType::Directory => {
                if !matches!(directory.stat(&name), Ok(found) if found.stat.is_directory()) {
                    make_room(directory, &name)?;
                    directory.create_directory(&name)?;
                }
                self.directories.insert(path, (mode, Some(mtime)));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                make_room(directory, &name)?;
                let mut file = directory.create_file(&name)?;
                io::copy(entry, &mut file)?;
                root_dir::set_mode(&file, mode)?;
                root_dir::set_mtime(&file, mtime)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                if target.is_empty() || target.contains(&0) {
                    return Err(Fault::Refused("is a symbolic link to nowhere"));
                }
                make_room(directory, &name)?;
                directory.create_symlink(&name, &target)?;
                directory.set_mtime(&name, mtime)?;
            }
            EntryType::Link => {
                let target = link.unwrap_or_default();
                let (Some(of), Some(old)) = (target.parent(), target.file_name()) else {
                    return Err(Fault::Refused("is a hard link to its root"));
                };
                if target == path {
                    return Ok(());
                }
                let of = self.root.open_directory(&of, Links::Inside)?;
                match of.stat(&old) {
                    Ok(found) if !found.stat.is_directory() => {}
                    _ => return Err(Fault::Refused("is a hard link to a file that it lacks")),
                }
                make_room(directory, &name)?;
                directory.create_link(&name, &of, &old)?;
            }
            EntryType::Fifo => {
                make_room(directory, &name)?;
                directory.create_fifo(&name)?;
                directory.set_mtime(&name, mtime)?;
            }
            EntryType::Char | EntryType::Block => {
                return Err(Fault::Refused("is a device, and no image gets devices from there"));
            }
            _ => return Err(Fault::Refused("is of a kind that tar does not define")),
        }
        Ok(())
    }

    /// Makes the directory at `path` the current one; what is missing is made.
    fn enter(&mut self, path: &RootPath) -> Result<(), Fault> {
        if !matches!(&self.current, Some((current, _)) if current == path) {
            let directory = self.directory(path)?;
            self.current = Some((path.clone(), directory));
        }
        Ok(())
    }

    fn directory(&mut self, path: &RootPath) -> Result<Directory, Fault> {
        match self.root.open_directory(path, Links::Inside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return Ok(other?),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Fault::Failed(io::ErrorKind::NotFound.into()));
        };
        match self.directory(&parent)?.create_directory(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Fault::Refused("lies below a symbolic link to nowhere"));
            }
            made => made?,
        }
        self.directories.insert(path.clone(), (IMPLIED_MODE, None));
        Ok(self.root.open_directory(path, Links::Inside)?)
    }

    /// Gives directories their modes and times, children first.
    fn finish(self) -> Result<Option<i64>, Error> {
        for (path, (mode, mtime)) in self.directories.iter().rev() {
            let set = || -> Result<(), Fault> {
                let directory = self.root.open_directory(path, Links::Inside)?;
                if let Some(mtime) = mtime {
                    directory.set_own_mtime(*mtime)?;
                }
                Ok(directory.set_mode(*mode)?)
            };
            set().map_err(|fault| self.error(path.as_bytes(), fault))?;
        }
        Ok(self.newest)
    }
}

/// Takes away what an earlier entry put at `name`: the last one counts.
fn make_room(directory: &Directory, name: &Name) -> Result<(), Fault> {
    match directory.stat(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
        Ok(found) if found.stat.kind == Kind::Directory => {
            Err(Fault::Refused("takes the place of a directory"))
        }
        Ok(_) => Ok(directory.remove_file(name)?),
    }
}

/// A name in the archive, or a target of a hard link, as a path in the context.
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

/// Modification time: that of the pax header where it has one, to the nanosecond.
fn modified<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Timestamp, Fault> {
    let malformed = || Fault::Refused("has a malformed header");
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if extension.key_bytes() == b"mtime" {
                let text = extension.value().map_err(|_| malformed())?;
                return parse_time(text).ok_or_else(malformed);
            }
        }
    }
    let seconds = entry.header().mtime()?;
    // Base-256 numbers may be negative; the crate hands out their bits.
    Ok(Timestamp::seconds(seconds.cast_signed()))
}

/// Reads `-12.345`: seconds since the epoch with any number of decimals.
fn parse_time(text: &str) -> Option<Timestamp> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds = decimals
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |number: u32, digit| number * 10 + u32::from(digit - b'0'));
    if whole.starts_with('-') && nanoseconds > 0 {
        // Nanoseconds count forward.
        let seconds = seconds.checked_sub(1)?;
        return Some(Timestamp { seconds, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Timestamp { seconds, nanoseconds })
}

#[cfg(test)]
mod tests;
