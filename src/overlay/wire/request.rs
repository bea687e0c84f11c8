//! Requests, out of bytes that anybody may have written.

use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::KnownLayout;

use super::abi;
use super::abi::fattr;
use super::abi::opcode;
use crate::overlay::answer::ino;
use crate::overlay::inode::Ino;
use crate::overlay::kernel::Operation;
use crate::overlay::ops::Change;
use crate::overlay::ops::SetTime;
use crate::tree::Timestamp;

/// A request that isn't what its header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed request")]
pub(super) struct Malformed;

/// Nodes, and how often the kernel forgets each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, u64)> {
        let pieces = self.0.chunks_exact(size_of::<abi::ForgetOne>());
        pieces
            .filter_map(|piece| read::<abi::ForgetOne>(piece).ok())
            .map(|one| (ino(one.nodeid), one.nlookup))
    }
}

/// What the kernel asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request<'a> {
    Lookup {
        parent: Ino,
        name: &'a [u8],
    },
    Forget {
        node: Ino,
        count: u64,
    },
    ForgetSome(Forgets<'a>),
    GetAttr {
        node: Ino,
    },
    SetAttr {
        node: Ino,
        change: Change,
        kills_set_id: bool,
    },
    ReadLink {
        node: Ino,
    },
    Symlink {
        parent: Ino,
        name: &'a [u8],
        target: &'a [u8],
    },
    MkNod {
        parent: Ino,
        name: &'a [u8],
        mode: u32,
        device: u32,
    },
    MkDir {
        parent: Ino,
        name: &'a [u8],
        mode: u32,
    },
    TmpFile {
        parent: Ino,
        mode: u32,
        flags: i32,
    },
    Unlink {
        parent: Ino,
        name: &'a [u8],
    },
    RmDir {
        parent: Ino,
        name: &'a [u8],
    },
    Rename {
        from: (Ino, &'a [u8]),
        to: (Ino, &'a [u8]),
        flags: u32,
    },
    Link {
        node: Ino,
        parent: Ino,
        name: &'a [u8],
    },
    Read {
        node: Ino,
        offset: u64,
        size: u32,
    },
    Write {
        node: Ino,
        offset: u64,
        data: &'a [u8],
        flags: u32,
    },
    ReadDir {
        node: Ino,
        offset: u64,
        size: u32,
    },
    ReadDirPlus {
        node: Ino,
        offset: u64,
        size: u32,
    },
    StatFs,
    Open {
        node: Ino,
        flags: i32,
    },
    Create {
        parent: Ino,
        name: &'a [u8],
        mode: u32,
        flags: i32,
    },
    Release {
        node: Ino,
    },
    ReleaseDir,
    SetXattr {
        node: Ino,
        name: &'a [u8],
        value: &'a [u8],
        flags: i32,
    },
    GetXattr {
        node: Ino,
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        node: Ino,
        size: u32,
    },
    RemoveXattr {
        node: Ino,
        name: &'a [u8],
    },
    Fallocate {
        node: Ino,
        offset: u64,
        length: u64,
        mode: i32,
    },
    Lseek {
        node: Ino,
        offset: i64,
        whence: i32,
    },
    Copy {
        from: (Ino, u64),
        to: (Ino, u64),
        length: u64,
        is_wide: bool,
    },
    Ioctl,
    /// The kernel says that nobody needs the answer to another request any more.
    Interrupt,
    /// The mount is gone.
    Destroy,
    /// Something that isn't done here, so that the kernel does without.
    Unserved(Operation),
}

/// The structure at the beginning of `bytes`.
fn read<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<T, Malformed> {
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| Malformed)
}

/// Takes a name and the NUL behind it off the front of `tail`.
fn name<'a>(tail: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let end = tail.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
    let (name, rest) = tail.split_at(end);
    *tail = &rest[1..];
    Ok(name)
}

/// `size` bytes off the front of `tail`.
fn data(tail: &[u8], size: u32) -> Result<&[u8], Malformed> {
    tail.get(..size as usize).ok_or(Malformed)
}

fn change(named: &abi::SetattrIn) -> Change {
    let has = |bit| named.valid & bit != 0;
    let time = |set, now, seconds, nanoseconds| match (has(set), has(now)) {
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Timestamp { seconds, nanoseconds })),
        (false, _) => None,
    };
    Change {
        mode: has(fattr::MODE).then_some((named.mode & 0o7777) as u16),
        uid: has(fattr::UID).then_some(named.uid),
        gid: has(fattr::GID).then_some(named.gid),
        size: has(fattr::SIZE).then_some(named.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, named.atime, named.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, named.mtime, named.mtimensec),
    }
}

impl<'a> Request<'a> {
    /// Reads the request with `header`.
    pub(super) fn decode(
        header: &abi::HeaderIn,
        head: &[u8],
        mut tail: &'a [u8],
    ) -> Result<Self, Malformed> {
        let node = ino(header.nodeid);
        let tail = &mut tail;
        Ok(match header.opcode {
            opcode::LOOKUP => Self::Lookup { parent: node, name: name(tail)? },
            opcode::FORGET => Self::Forget { node, count: read::<abi::ForgetIn>(head)?.nlookup },
            opcode::BATCH_FORGET => {
                let count = read::<abi::BatchForgetIn>(head)?.count as usize;
                let length = count.checked_mul(size_of::<abi::ForgetOne>()).ok_or(Malformed)?;
                Self::ForgetSome(Forgets(tail.get(..length).ok_or(Malformed)?))
            }
            opcode::GETATTR => Self::GetAttr { node },
            opcode::SETATTR => {
                let named = read::<abi::SetattrIn>(head)?;
                let kills_set_id = named.valid & fattr::KILL_SUIDGID != 0;
                Self::SetAttr { node, change: change(&named), kills_set_id }
            }
            opcode::READLINK => Self::ReadLink { node },
            opcode::SYMLINK => {
                Self::Symlink { parent: node, name: name(tail)?, target: name(tail)? }
            }
            opcode::MKNOD => {
                let made = read::<abi::MknodIn>(head)?;
                let (mode, device) = (made.mode, made.rdev);
                Self::MkNod { parent: node, name: name(tail)?, mode, device }
            }
            opcode::MKDIR => {
                let mode = read::<abi::MkdirIn>(head)?.mode;
                Self::MkDir { parent: node, name: name(tail)?, mode }
            }
            opcode::TMPFILE => {
                let made = read::<abi::CreateIn>(head)?;
                let (mode, flags) = (made.mode, made.flags.cast_signed());
                Self::TmpFile { parent: node, mode, flags }
            }
            opcode::UNLINK => Self::Unlink { parent: node, name: name(tail)? },
            opcode::RMDIR => Self::RmDir { parent: node, name: name(tail)? },
            opcode::RENAME => {
                let to = ino(read::<abi::RenameIn>(head)?.newdir);
                Self::Rename { from: (node, name(tail)?), to: (to, name(tail)?), flags: 0 }
            }
            opcode::RENAME2 => {
                let abi::Rename2In { newdir, flags, .. } = read(head)?;
                let from = (node, name(tail)?);
                Self::Rename { from, to: (ino(newdir), name(tail)?), flags }
            }
            opcode::LINK => {
                let linked = ino(read::<abi::LinkIn>(head)?.oldnodeid);
                Self::Link { node: linked, parent: node, name: name(tail)? }
            }
            opcode::READ => {
                let abi::ReadIn { offset, size, .. } = read(head)?;
                Self::Read { node, offset, size }
            }
            opcode::WRITE => {
                let abi::WriteIn { offset, size, write_flags: flags, .. } = read(head)?;
                Self::Write { node, offset, data: data(tail, size)?, flags }
            }
            opcode::READDIR => {
                let abi::ReadIn { offset, size, .. } = read(head)?;
                Self::ReadDir { node, offset, size }
            }
            opcode::READDIRPLUS => {
                let abi::ReadIn { offset, size, .. } = read(head)?;
                Self::ReadDirPlus { node, offset, size }
            }
            opcode::STATFS => Self::StatFs,
            opcode::OPEN => {
                let flags = read::<abi::OpenIn>(head)?.flags.cast_signed();
                Self::Open { node, flags }
            }
            opcode::CREATE => {
                let made = read::<abi::CreateIn>(head)?;
                let (mode, flags) = (made.mode, made.flags.cast_signed());
                Self::Create { parent: node, name: name(tail)?, mode, flags }
            }
            opcode::RELEASE => Self::Release { node },
            opcode::RELEASEDIR => Self::ReleaseDir,
            opcode::SETXATTR => {
                let abi::SetxattrIn { size, flags } = read(head)?;
                let name = name(tail)?;
                let flags = flags.cast_signed();
                Self::SetXattr { node, name, value: data(tail, size)?, flags }
            }
            opcode::GETXATTR => {
                let size = read::<abi::GetxattrIn>(head)?.size;
                Self::GetXattr { node, name: name(tail)?, size }
            }
            opcode::LISTXATTR => {
                Self::ListXattr { node, size: read::<abi::GetxattrIn>(head)?.size }
            }
            opcode::REMOVEXATTR => Self::RemoveXattr { node, name: name(tail)? },
            opcode::FALLOCATE => {
                let abi::FallocateIn { offset, length, mode, .. } = read(head)?;
                Self::Fallocate { node, offset, length, mode: mode.cast_signed() }
            }
            opcode::LSEEK => {
                let abi::LseekIn { offset, whence, .. } = read(head)?;
                Self::Lseek { node, offset, whence: whence.cast_signed() }
            }
            opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
                let copied = read::<abi::CopyFileRangeIn>(head)?;
                Self::Copy {
                    from: (node, copied.off_in),
                    to: (ino(copied.nodeid_out), copied.off_out),
                    length: copied.len,
                    is_wide: header.opcode == opcode::COPY_FILE_RANGE_64,
                }
            }
            opcode::IOCTL => Self::Ioctl,
            opcode::INTERRUPT => Self::Interrupt,
            opcode::DESTROY => Self::Destroy,
            opcode::OPENDIR => Self::Unserved(Operation::OpenDir),
            // FLUSH, FSYNC, FSYNCDIR: a crash discards the step anyway. ACCESS: the kernel
            // checks permissions. STATX, POLL and others that come: nobody has them.
            _ => Self::Unserved(Operation::Other),
        })
    }
}
