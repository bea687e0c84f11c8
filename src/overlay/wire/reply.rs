//! Answers and notifications, as bytes.

use rustix::fs::StatVfs;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use super::abi;
use super::abi::HEADER_OUT;
use super::abi::HeaderOut;
use crate::overlay::answer;
use crate::overlay::answer::FOREVER;
use crate::overlay::errno::Fault;
use crate::overlay::inode::Attributes;
use crate::overlay::inode::Ino;
use crate::overlay::lower;
use crate::overlay::ops::Listed;
use crate::overlay::passthrough::Opening;
use crate::tree::Kind;

/// The longest answer that is made before the request is let go: CREATE's.
const SHORT: usize = size_of::<abi::CreateOut>();

/// An answer of few bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::overlay) struct Short {
    bytes: [u8; SHORT],
    length: usize,
}

impl Short {
    pub(super) fn empty() -> Self {
        Self { bytes: [0; SHORT], length: 0 }
    }

    pub(super) fn new(value: &(impl IntoBytes + Immutable)) -> Self {
        let value = value.as_bytes();
        let mut short = Self { length: value.len(), ..Self::empty() };
        short.bytes[..value.len()].copy_from_slice(value);
        short
    }
}

/// An answer that is made in its place.
#[derive(Clone, Debug)]
pub(in crate::overlay) enum Long {
    Value(Vec<u8>),
    Read { node: Ino, offset: u64, size: u32 },
    ReadDir { node: Ino, offset: u64, size: u32 },
    ReadDirPlus { node: Ino, offset: u64, size: u32 },
}

/// What is to be answered; it holds nothing of the request.
#[derive(Clone, Debug)]
pub(in crate::overlay) enum Reply {
    /// The kernel waits for nothing.
    Nothing,
    /// Number of errno(3).
    Error(i32),
    Short(Short),
    Long(Long),
}

/// What was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::overlay) enum Done {
    /// Nothing.
    Nothing,
    /// Number of errno(3), 0 for success, and bytes behind the header.
    Answer { error: i32, length: usize },
}

impl Done {
    pub(super) fn error(number: i32) -> Self {
        Self::Answer { error: number, length: 0 }
    }

    /// The header of this answer to the request `unique`; `None` if none is due.
    pub(in crate::overlay) fn header(self, unique: u64) -> Option<HeaderOut> {
        let Self::Answer { error, length } = self else { return None };
        let len = u32::try_from(HEADER_OUT + length).unwrap_or(u32::MAX);
        Some(HeaderOut { len, error: -error, unique })
    }
}

impl Short {
    /// Puts the answer at the front of `out`.
    pub(super) fn put(self, out: &mut [u8]) -> Done {
        put(&self.bytes[..self.length], out)
    }
}

/// Puts `value` at the front of `out`.
pub(super) fn put(value: &[u8], out: &mut [u8]) -> Done {
    match out.get_mut(..value.len()) {
        Some(place) => {
            place.copy_from_slice(value);
            Done::Answer { error: 0, length: value.len() }
        }
        None => Done::error(libc::ERANGE),
    }
}

fn attr(attributes: &Attributes) -> abi::Attr {
    let Attributes { ino, face, atime, ctime, blocks, .. } = attributes;
    abi::Attr {
        ino: u64::from(*ino),
        size: answer::shown_size(attributes),
        blocks: *blocks,
        atime: atime.seconds,
        mtime: face.mtime.seconds,
        ctime: ctime.seconds,
        atimensec: atime.nanoseconds,
        mtimensec: face.mtime.nanoseconds,
        ctimensec: ctime.nanoseconds,
        mode: file_type(face.kind) | u32::from(face.mode),
        nlink: face.links,
        uid: face.uid,
        gid: face.gid,
        rdev: answer::packed_device(face.device),
        blksize: answer::BLOCK_SIZE,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Directory => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::CharDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
    }
}

/// How long attributes are good, in seconds.
fn validity(attributes: &Attributes) -> u64 {
    if attributes.last { FOREVER } else { 0 }
}

pub(super) fn attr_out(attributes: &Attributes) -> abi::AttrOut {
    abi::AttrOut {
        attr_valid: validity(attributes),
        attr: attr(attributes),
        ..abi::AttrOut::default()
    }
}

/// An inode number is used again only after the kernel forgot it, so none needs a
/// generation.
pub(super) fn entry_out(attributes: &Attributes) -> abi::EntryOut {
    abi::EntryOut {
        nodeid: u64::from(attributes.ino),
        entry_valid: FOREVER,
        attr_valid: validity(attributes),
        attr: attr(attributes),
        ..abi::EntryOut::default()
    }
}

/// An entry with inode number 0 says "there is none", and may be cached.
pub(super) fn no_entry() -> abi::EntryOut {
    abi::EntryOut { entry_valid: FOREVER, ..abi::EntryOut::default() }
}

/// A file that was made and opened at once; `None` where no other file is opened with a
/// request, so that nothing has to be remembered of this one.
pub(super) fn create_out(attributes: &Attributes, opening: Option<Opening>) -> abi::CreateOut {
    let unasked = abi::FOPEN_KEEP_CACHE | abi::FOPEN_NOFLUSH;
    let unasked = abi::OpenOut { open_flags: unasked, ..abi::OpenOut::default() };
    abi::CreateOut { entry: entry_out(attributes), open: opening.map_or(unasked, open_out) }
}

/// What is passed through has nothing in the kernel's cache of the mount, and must not be
/// said to.
pub(super) fn open_out(opening: Opening) -> abi::OpenOut {
    let (open_flags, backing_id) = match opening {
        Opening::Served => (abi::FOPEN_KEEP_CACHE, 0),
        Opening::Through(id) => (abi::FOPEN_PASSTHROUGH, id.0),
    };
    abi::OpenOut { fh: 0, open_flags, backing_id }
}

pub(super) fn statfs_out(stat: &StatVfs) -> abi::StatfsOut {
    abi::StatfsOut {
        blocks: stat.f_blocks,
        bfree: stat.f_bfree,
        bavail: stat.f_bavail,
        files: stat.f_files,
        ffree: stat.f_ffree,
        bsize: u32::try_from(stat.f_bsize).unwrap_or(answer::BLOCK_SIZE),
        namelen: lower::MAX_NAME as u32,
        frsize: u32::try_from(stat.f_frsize).unwrap_or(answer::BLOCK_SIZE),
        ..abi::StatfsOut::default()
    }
}

/// `size` is what the caller has room for; 0 asks for the length alone.
pub(super) fn xattr(value: Vec<u8>, size: u32) -> Reply {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => {
            Reply::Short(Short::new(&abi::GetxattrOut { size: length, padding: 0 }))
        }
        Ok(length) if length <= size => Reply::Long(Long::Value(value)),
        _ => Reply::Error(Fault::Range.errno()),
    }
}

/// A directory that is being listed into a buffer.
#[derive(Debug)]
pub(super) struct Listing<'a> {
    out: &'a mut [u8],
    used: usize,
}

impl<'a> Listing<'a> {
    /// At most `size` bytes at the front of `out`.
    pub(super) fn new(out: &'a mut [u8], size: u32) -> Self {
        let room = out.len().min(size as usize);
        Self { out: &mut out[..room], used: 0 }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// Adds an entry, with metadata if there is `more`; whether it is full instead.
    pub(super) fn add(&mut self, entry: &Listed<'_>, more: Option<&Attributes>) -> bool {
        let entry_out = more.map(entry_out);
        let more = entry_out.as_ref().map_or(&[][..], IntoBytes::as_bytes);
        let dirent = abi::Dirent {
            ino: u64::from(entry.ino),
            off: entry.next,
            // Names are at most 255 bytes long.
            namelen: entry.name.len() as u32,
            kind: file_type(entry.kind) >> 12,
        };
        let parts = [more, dirent.as_bytes(), entry.name];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let padded = length.next_multiple_of(size_of::<u64>());
        let Some(place) = self.out.get_mut(self.used..self.used + padded) else { return true };
        let mut at = 0;
        for part in parts {
            place[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        place[at..].fill(0);
        self.used += padded;
        false
    }
}

fn notification(code: i32, parts: &[&[u8]]) -> Vec<u8> {
    let length = HEADER_OUT + parts.iter().map(|part| part.len()).sum::<usize>();
    let len = u32::try_from(length).unwrap_or(u32::MAX);
    let mut bytes = HeaderOut { len, error: code, unique: 0 }.as_bytes().to_vec();
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// The notification that drops the entry `name` of `parent` from the kernel's cache.
pub(in crate::overlay) fn drop_entry(parent: Ino, name: &[u8]) -> Vec<u8> {
    let namelen = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let what = abi::InvalEntryOut { parent: u64::from(parent), namelen, flags: 0 };
    notification(abi::notify::INVAL_ENTRY, &[what.as_bytes(), name, &[0]])
}

/// The notification that drops attributes of `ino`, and, unless the offset is negative,
/// its content from there on.
pub(in crate::overlay) fn drop_node(ino: Ino, offset: i64) -> Vec<u8> {
    let what = abi::InvalInodeOut { ino: u64::from(ino), off: offset, len: 0 };
    notification(abi::notify::INVAL_INODE, &[what.as_bytes()])
}
