//! The adapter between the `fuser` crate and `ops`: unwraps a request, calls, wraps
//! the answer. It decides nothing but protocol: what is answered with ENOSYS so that
//! the kernel never asks again, and how long answers are good.
//!
//! The kernel and this process are the only writers, so what the kernel caches is
//! true until an edit drops it: every answer is good forever, "there is none" too.
//!
//! The file is long because the trait is: each method is a few lines of translation
//! under a signature of ten.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use fuser::Errno;
use fuser::FileAttr;
use fuser::FileHandle;
use fuser::FileType;
use fuser::Filesystem;
use fuser::Generation;
use fuser::INodeNo;
use fuser::KernelConfig;
use fuser::LockOwner;
use fuser::Notifier;
use fuser::OpenFlags;
use fuser::RenameFlags;
use fuser::Request;
use fuser::TimeOrNow;

use super::Overlay;
use super::answer;
use super::errno::Answer;
use super::errno::Fault;
use super::inode::Attributes;
use super::inode::Ino;
use super::kernel::Kernel;
use super::kernel::Operation;
use super::ops::Change;
use super::ops::Listed;
use super::ops::NewNode;
use super::ops::SetTime;
use super::rendezvous::Rendezvous;
use super::table::CAPABILITY;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::Timestamp;

/// Inode numbers are reused only after the kernel forgot them, so they need no generation.
const GENERATION: Generation = Generation(0);
/// See [`answer::FOREVER`].
const FOREVER: Duration = Duration::from_secs(answer::FOREVER);

thread_local! {
    /// Where a thread puts the bytes of a READ; grows to the largest once.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The overlay as fuser sees it.
pub(super) struct Adapter {
    pub(super) overlay: Arc<Overlay>,
    pub(super) rendezvous: Arc<Rendezvous>,
    pub(super) uncapped: Uncapped,
}

/// Which file each thread took the capability of last.
///
/// Before root writes to a file that has one, the kernel sends REMOVEXATTR and then a
/// SETATTR that names nothing, which elsewhere means that set-id bits go. The flag that
/// tells the two apart (`FATTR_KILL_SUIDGID`) isn't handed on by fuser.
#[derive(Default)]
pub(super) struct Uncapped(Mutex<HashMap<u32, Ino>>);

impl Uncapped {
    fn note(&self, thread: u32, ino: Ino) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(thread, ino);
    }

    /// Whether it was `ino`; it is told once.
    fn take(&self, thread: u32, ino: Ino) -> bool {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.remove(&thread) == Some(ino)
    }
}

/// The caches of a mount, by fuser's notifications.
pub(super) struct Caches(pub(super) Notifier);

impl Kernel for Caches {
    fn drop_entry(&self, parent: Ino, name: &[u8]) {
        // The kernel may not know the entry, or the mount may be gone: both are fine.
        let dropped = self.0.inval_entry(INodeNo(u64::from(parent)), OsStr::from_bytes(name));
        trace_failure("entry", dropped);
    }

    fn drop_node(&self, ino: Ino) {
        trace_failure("node", self.0.inval_inode(INodeNo(u64::from(ino)), 0, 0));
    }

    fn drop_attributes(&self, ino: Ino) {
        // A negative offset leaves the pages alone (fuse_reverse_inval_inode).
        trace_failure("attribute", self.0.inval_inode(INodeNo(u64::from(ino)), -1, 0));
    }
}

fn trace_failure(what: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "the kernel did not drop a cached {what}");
    }
}

impl Adapter {
    /// See [`Overlay::answer`].
    fn answer<T>(
        &self,
        operation: Operation,
        body: impl FnOnce(&Overlay) -> Answer<T>,
    ) -> Result<T, Errno> {
        self.overlay.answer(operation, body).map_err(Errno::from_i32)
    }

    /// See [`Overlay::answer_writer`].
    fn answer_writer<T>(
        &self,
        operation: Operation,
        node: INodeNo,
        may_not_keep: bool,
        body: impl FnOnce(&Overlay) -> Answer<T>,
    ) -> Result<T, Errno> {
        let result = self.overlay.answer_writer(operation, ino(node), may_not_keep, body);
        result.map_err(Errno::from_i32)
    }

    /// Whether set-id bits go with `change`. One that names nothing is how the kernel
    /// says just that, after chown(2) to nobody in particular and before a write;
    /// or it means the capability that root writes over (see [`Uncapped`]).
    fn takes_set_id(&self, request: &Request, node: INodeNo, change: &Change) -> bool {
        let uncapped = self.uncapped.take(request.pid(), ino(node));
        let Change { mode, uid, gid, size, atime, mtime } = change;
        let times = atime.is_some() || mtime.is_some();
        if size.is_some() {
            is_unprivileged(request)
        } else if mode.is_some() || uid.is_some() || gid.is_some() || times {
            false
        } else {
            is_unprivileged(request) || !uncapped
        }
    }

    fn refuse(&self, operation: Operation) -> Errno {
        Errno::from_i32(self.overlay.refuse(operation))
    }
}

fn ino(number: INodeNo) -> Ino {
    answer::ino(number.0)
}

/// Whether set-id bits of a file go when this caller writes to it. The kernel says it
/// for each write, by CAP_FSETID; where fuser passes that on for nothing else, root is
/// taken to have it.
fn is_unprivileged(request: &Request) -> bool {
    request.uid() != 0
}

fn reply_entry(reply: fuser::ReplyEntry, result: Result<Attributes, Errno>) {
    match result {
        Ok(attributes) => reply.entry(&FOREVER, &file_attr(&attributes), GENERATION),
        Err(error) => reply.error(error),
    }
}

fn reply_attr(reply: fuser::ReplyAttr, result: Result<Attributes, Errno>) {
    match result {
        Ok(attributes) => reply.attr(&FOREVER, &file_attr(&attributes)),
        Err(error) => reply.error(error),
    }
}

fn reply_empty(reply: fuser::ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

/// `size` is what the caller has room for; 0 asks for the length alone.
fn reply_xattr(reply: fuser::ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::from_i32(Fault::Range.errno())),
        Err(error) => reply.error(error),
    }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let face = &attributes.face;
    FileAttr {
        ino: INodeNo(u64::from(attributes.ino)),
        size: answer::shown_size(attributes),
        blocks: attributes.blocks,
        atime: system_time(attributes.atime),
        mtime: system_time(face.mtime),
        ctime: system_time(attributes.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(face.kind),
        perm: face.mode,
        nlink: face.links,
        uid: face.uid,
        gid: face.gid,
        rdev: answer::packed_device(face.device),
        blksize: answer::BLOCK_SIZE,
        flags: 0,
    }
}

/// An entry with inode number 0 says "there is none", and may be cached.
fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::from(time.nanoseconds));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds >= 0 {
        UNIX_EPOCH.checked_add(seconds)
    } else {
        UNIX_EPOCH.checked_sub(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

/// Undoes fuser's reading of a time. Before 1970 it takes the nanoseconds backwards
/// (`time.rs` of 0.18), which loses nothing but has to be known.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp {
                seconds: 0_i64.saturating_sub_unsigned(before.as_secs()),
                nanoseconds: before.subsec_nanos(),
            }
        }
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in answer::WANTED {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel lacks a FUSE feature");
            }
        }
        // Both are within fuser's limits; if that changes, its own choice works too.
        let _ = config.set_max_write(answer::MAX_WRITE);
        let _ = config.set_max_background(answer::MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEntry) {
        let found = self
            .answer(Operation::Lookup, |overlay| overlay.op_lookup(ino(parent), name.as_bytes()));
        match found {
            Ok(Some(attributes)) => reply.entry(&FOREVER, &file_attr(&attributes), GENERATION),
            Ok(None) => reply.entry(&FOREVER, &no_entry(), GENERATION),
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, node: INodeNo, nlookup: u64) {
        let _: Result<(), Errno> = self.answer(Operation::Forget, |overlay| {
            overlay.op_forget(ino(node), nlookup);
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: fuser::ReplyAttr) {
        let result = self.answer(Operation::GetAttr, |overlay| overlay.op_getattr(ino(node)));
        reply_attr(reply, result);
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: fuser::ReplyAttr,
    ) {
        let change = Change {
            mode: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let may_not_keep = self.takes_set_id(request, node, &change);
        let result = self.answer_writer(Operation::SetAttr, node, may_not_keep, |overlay| {
            overlay.op_setattr(ino(node), &change)
        });
        reply_attr(reply, result);
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: fuser::ReplyData) {
        match self.answer(Operation::ReadLink, |overlay| overlay.op_readlink(ino(node))) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: fuser::ReplyEntry,
    ) {
        let result = self.answer(Operation::MkNod, |overlay| {
            let kind = answer::kind_of(mode)?;
            let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
            let new = NewNode {
                kind,
                mode: (mode & 0o7777) as u16,
                uid: request.uid(),
                gid: request.gid(),
                device: if is_device { answer::unpacked_device(rdev) } else { Device::default() },
                target: &[],
            };
            overlay.op_make(ino(parent), name.as_bytes(), &new)
        });
        reply_entry(reply, result);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: fuser::ReplyEntry,
    ) {
        let new = NewNode {
            kind: Kind::Directory,
            mode: (mode & 0o7777) as u16,
            uid: request.uid(),
            gid: request.gid(),
            device: Device::default(),
            target: &[],
        };
        let result = self.answer(Operation::MkDir, |overlay| {
            overlay.op_make(ino(parent), name.as_bytes(), &new)
        });
        reply_entry(reply, result);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        let result = self
            .answer(Operation::Unlink, |overlay| overlay.op_unlink(ino(parent), name.as_bytes()));
        reply_empty(reply, result);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        let result =
            self.answer(Operation::RmDir, |overlay| overlay.op_rmdir(ino(parent), name.as_bytes()));
        reply_empty(reply, result);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: fuser::ReplyEntry,
    ) {
        let new = NewNode {
            kind: Kind::Symlink,
            mode: 0o777,
            uid: request.uid(),
            gid: request.gid(),
            device: Device::default(),
            target: target.as_os_str().as_bytes(),
        };
        let result = self.answer(Operation::Symlink, |overlay| {
            overlay.op_make(ino(parent), name.as_bytes(), &new)
        });
        reply_entry(reply, result);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: fuser::ReplyEmpty,
    ) {
        let result = self.answer(Operation::Rename, |overlay| {
            let how = answer::rename_mode(flags.bits())?;
            let from = (ino(parent), name.as_bytes());
            overlay.op_rename(from, (ino(newparent), newname.as_bytes()), how)
        });
        reply_empty(reply, result);
    }

    fn link(
        &self,
        _: &Request,
        node: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: fuser::ReplyEntry,
    ) {
        let result = self.answer(Operation::Link, |overlay| {
            overlay.op_link(ino(node), ino(newparent), newname.as_bytes())
        });
        reply_entry(reply, result);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: fuser::ReplyOpen) {
        reply.error(self.refuse(Operation::Open));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: fuser::ReplyOpen) {
        reply.error(self.refuse(Operation::OpenDir));
    }

    fn create(
        &self,
        _: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: fuser::ReplyCreate,
    ) {
        reply.error(self.refuse(Operation::Create));
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: fuser::ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let wanted = size.min(answer::MAX_WRITE) as usize;
            if buffer.len() < wanted {
                buffer.resize(wanted, 0);
            }
            let buffer = &mut buffer[..wanted];
            let result =
                self.answer(Operation::Read, |overlay| overlay.op_read(ino(node), offset, buffer));
            match result {
                Ok(count) => reply.data(&buffer[..count]),
                Err(error) => reply.error(error),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        let late = write_flags.contains(fuser::WriteFlags::FUSE_WRITE_CACHE);
        let write = if late { Overlay::op_write_back } else { Overlay::op_write };
        // Pages of a mapping never take set-id bits away, whoever writes them back.
        let may_not_keep =
            !late && write_flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let result = self.answer_writer(Operation::Write, node, may_not_keep, |overlay| {
            write(overlay, ino(node), offset, data)
        });
        match result {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        reply: fuser::ReplyEmpty,
    ) {
        reply.error(self.refuse(Operation::Other));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: fuser::ReplyEmpty) {
        // A crash discards the step anyway.
        reply.error(self.refuse(Operation::Other));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: fuser::ReplyEmpty) {
        reply.error(self.refuse(Operation::Other));
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: fuser::ReplyEmpty) {
        reply.error(self.refuse(Operation::Other));
    }

    fn readdir(
        &self,
        _: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: fuser::ReplyDirectory,
    ) {
        let result = self.answer(Operation::ReadDir, |overlay| {
            overlay.op_readdir(ino(node), offset, |entry| {
                let Listed { name, ino, kind, next } = entry;
                let number = INodeNo(u64::from(ino));
                reply.add(number, next, file_type(kind), OsStr::from_bytes(name))
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: fuser::ReplyDirectoryPlus,
    ) {
        let result = self.answer(Operation::ReadDirPlus, |overlay| {
            overlay.op_readdirplus(ino(node), offset, |entry, attributes| {
                let attr = file_attr(attributes);
                let name = OsStr::from_bytes(entry.name);
                reply.add(attr.ino, entry.next, name, &FOREVER, &attr, GENERATION)
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: fuser::ReplyStatfs) {
        match self.answer(Operation::StatFs, Overlay::op_statfs) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(answer::BLOCK_SIZE),
                super::lower::MAX_NAME as u32,
                u32::try_from(stat.f_frsize).unwrap_or(answer::BLOCK_SIZE),
            ),
            Err(error) => reply.error(error),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: fuser::ReplyEmpty,
    ) {
        let result = self.overlay.answer_setxattr(ino(node), name.as_bytes(), value, flags);
        reply_empty(reply, result.map_err(Errno::from_i32));
    }

    fn getxattr(
        &self,
        _: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: fuser::ReplyXattr,
    ) {
        if self.rendezvous.is_meant(name.as_bytes()) {
            let met = if self.rendezvous.meet() { Errno::ENODATA } else { Errno::EIO };
            return reply.error(met);
        }
        let result = self
            .answer(Operation::GetXattr, |overlay| overlay.op_getxattr(ino(node), name.as_bytes()));
        reply_xattr(reply, size, result);
    }

    fn listxattr(&self, _: &Request, node: INodeNo, size: u32, reply: fuser::ReplyXattr) {
        let result = self.answer(Operation::ListXattr, |overlay| overlay.op_listxattr(ino(node)));
        reply_xattr(reply, size, result);
    }

    fn removexattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        reply: fuser::ReplyEmpty,
    ) {
        if name.as_bytes() == CAPABILITY {
            self.uncapped.note(request.pid(), ino(node));
        }
        let result = self.answer(Operation::RemoveXattr, |overlay| {
            overlay.op_removexattr(ino(node), name.as_bytes())
        });
        reply_empty(reply, result);
    }

    fn ioctl(
        &self,
        _: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _flags: fuser::IoctlFlags,
        _cmd: u32,
        _data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        self.overlay.requests().count(Operation::Other);
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: fuser::ReplyEmpty,
    ) {
        let may_not_keep = is_unprivileged(request);
        let result = self.answer_writer(Operation::Fallocate, node, may_not_keep, |overlay| {
            overlay.op_fallocate(ino(node), offset, length, answer::space(mode)?)
        });
        reply_empty(reply, result);
    }

    fn lseek(
        &self,
        _: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: fuser::ReplyLseek,
    ) {
        let result =
            self.answer(Operation::Lseek, |overlay| overlay.seek(ino(node), offset, whence));
        match result {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(error),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _from_handle: FileHandle,
        offset: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        target: u64,
        length: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: fuser::ReplyWrite,
    ) {
        let may_not_keep = is_unprivileged(request);
        let result = self.answer_writer(Operation::CopyFileRange, to, may_not_keep, |overlay| {
            overlay.op_copy((ino(from), offset), (ino(to), target), length)
        });
        match result {
            // No copy is longer than 32 bits can say.
            Ok(count) => reply.written(count as u32),
            Err(error) => reply.error(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_read_as_fuser_means_them() {
        // fuser turns (-2 s, 800 ms) into "2.8 s before the epoch".
        let misread = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(timestamp(misread), Timestamp { seconds: -2, nanoseconds: 800_000_000 });
        let right = system_time(Timestamp { seconds: -2, nanoseconds: 800_000_000 });
        assert_eq!(right, UNIX_EPOCH - Duration::new(1, 200_000_000));
    }
}
