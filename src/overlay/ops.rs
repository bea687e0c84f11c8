//! Answers to filesystem requests about names and metadata; `ops/content.rs` has
//! those about bytes.
//!
//! Nothing here knows a kernel or a protocol: an adapter unwraps a request, calls
//! one of these, and wraps the answer. Permissions are the kernel's business
//! (`default_permissions`); what it leaves to a filesystem is done here: set-group-id
//! inheritance, `NAME_MAX`, dropping of file capabilities, times.

mod content;

use std::sync::Arc;

use super::Overlay;
use super::acl;
use super::acl::Acl;
use super::errno::Answer;
use super::errno::Fault;
use super::inode::Attributes;
use super::inode::Directory;
use super::inode::Ino;
use super::inode::Inode;
use super::inode::Matter;
use super::inode::now;
use super::lower;
use super::table::Table;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::Stat;
use crate::tree::Timestamp;

pub(super) use content::Seek;
pub(super) use content::Space;

/// Set-group-ID bit: on a directory, new entries inherit its group.
const SET_GROUP_ID: u16 = 0o2000;

/// The mode of a file that changed its owner, or was written to by somebody without
/// the right to keep the bits (write(2), chown(2)). Set-group-ID without execution
/// by the group meant mandatory locking once, and stays.
pub(super) fn without_set_id(mode: u16) -> u16 {
    let group = if mode & 0o010 != 0 { SET_GROUP_ID } else { 0 };
    mode & !(0o4000 | group)
}

/// A time as utimensat(2) takes it.
#[derive(Clone, Copy, Debug)]
pub(super) enum SetTime {
    Now,
    At(Timestamp),
}

impl SetTime {
    fn value(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Now => now,
            Self::At(time) => time,
        }
    }
}

/// What a `SETATTR` request changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    pub(super) mode: Option<u16>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<SetTime>,
    pub(super) mtime: Option<SetTime>,
}

impl Change {
    /// Whether nothing is to be changed.
    pub(super) fn names_nothing(&self) -> bool {
        let Self { mode, uid, gid, size, atime, mtime } = self;
        mode.is_none()
            && uid.is_none()
            && gid.is_none()
            && size.is_none()
            && atime.is_none()
            && mtime.is_none()
    }
}

/// A node to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewNode<'a> {
    pub(super) kind: Kind,
    /// Permissions, the umask already applied.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Of a device; ignored for anything else.
    pub(super) device: Device,
    /// Of a symbolic link; ignored for anything else.
    pub(super) target: &'a [u8],
}

/// What renameat2(2) may do with the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rename {
    /// Take its place.
    Replace,
    /// Fail if there is one.
    NoReplace,
    /// Swap with it.
    Exchange,
    /// Take its place, and leave a whiteout (character device 0/0) behind.
    Whiteout,
    /// Fail if there is one, and leave a whiteout behind.
    NoReplaceWhiteout,
}

/// An entry for a reader of a directory.
pub(super) struct Listed<'a> {
    pub(super) name: &'a [u8],
    pub(super) ino: Ino,
    pub(super) kind: Kind,
    /// Where reading goes on behind it.
    pub(super) next: u64,
}

/// How setxattr(2) treats an attribute that is there, or isn't.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SetMode {
    Any,
    Create,
    Replace,
}

fn check_name(name: &[u8]) -> Answer<()> {
    if name.len() > lower::MAX_NAME {
        return Err(Fault::NameTooLong);
    }
    if lower::is_name(name) { Ok(()) } else { Err(Fault::Invalid) }
}

/// A filesystem knows the namespaces of its attributes; the kernel leaves that to it
/// (xattr(7)).
fn check_attribute(name: &[u8]) -> Answer<()> {
    const SPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
    match SPACES.iter().find_map(|space| name.strip_prefix(*space)) {
        None => Err(Fault::Unsupported),
        Some(b"") => Err(Fault::Invalid),
        Some(_) => Ok(()),
    }
}

impl Overlay {
    /// `LOOKUP`: `None` for a name that isn't there. What is found counts as looked
    /// up once.
    pub(super) fn op_lookup(&self, parent: Ino, name: &[u8]) -> Answer<Option<Attributes>> {
        if name.len() > lower::MAX_NAME {
            return Err(Fault::NameTooLong);
        }
        let mut table = self.table();
        let Some(ino) = table.child(parent, name)? else { return Ok(None) };
        table.remember(ino);
        table.attributes(ino).map(Some)
    }

    /// `FORGET`.
    pub(super) fn op_forget(&self, ino: Ino, count: u64) {
        self.table().forget(ino, count);
    }

    /// `GETATTR`.
    pub(super) fn op_getattr(&self, ino: Ino) -> Answer<Attributes> {
        self.table().attributes(ino)
    }

    /// `SETATTR`.
    pub(super) fn op_setattr(&self, ino: Ino, change: &Change) -> Answer<Attributes> {
        let mut table = self.table();
        let now = now();
        table.refresh(ino)?;
        table.touch(ino, true)?;
        if let Some(size) = change.size {
            table.resize(ino, size)?;
        }
        let is_file = table.inode(ino)?.face.kind == Kind::File;
        if is_file && (change.uid.is_some() || change.gid.is_some() || change.size.is_some()) {
            table.drop_capability(ino)?;
        }
        if let Some(mode) = change.mode {
            table.change_mode(ino, mode)?;
        }
        let inode = table.inode_mut(ino)?;
        let face = &mut inode.face;
        let is_owned = change.uid.is_some() || change.gid.is_some();
        if change.mode.is_none() && is_owned && face.kind != Kind::Directory {
            face.mode = without_set_id(face.mode);
        }
        face.uid = change.uid.unwrap_or(face.uid);
        face.gid = change.gid.unwrap_or(face.gid);
        let resized = change.size.map(|_| SetTime::Now);
        if let Some(time) = change.mtime.or(resized) {
            let is_set = matches!(time, SetTime::At(_));
            inode.set_mtime(time.value(now), is_set.then_some(now));
        }
        if let Some(time) = change.atime {
            inode.set_atime(time.value(now));
        }
        inode.set_ctime(now);
        if change.mtime.is_some() {
            table.restamp(ino)?;
        }
        table.attributes(ino)
    }

    /// Takes set-user-ID and set-group-ID from a file that is about to be written to
    /// by somebody who may not keep them; gives the mode it had, if there was one. The
    /// kernel leaves this to a filesystem that it agreed on `HANDLE_KILLPRIV_V2` with.
    pub(super) fn op_kill_set_id(&self, ino: Ino) -> Answer<Option<u16>> {
        let mut table = self.table();
        let face = table.inode(ino)?.face;
        let mode = without_set_id(face.mode);
        if face.kind != Kind::File || mode == face.mode {
            return Ok(None);
        }
        table.touch(ino, true)?;
        let inode = table.inode_mut(ino)?;
        inode.face.mode = mode;
        inode.set_ctime(now());
        Ok(Some(face.mode))
    }

    /// Undoes [`Overlay::op_kill_set_id`], which gave `mode`, unless the mode was
    /// changed since; whether it did.
    pub(super) fn op_give_set_id_back(&self, ino: Ino, mode: u16) -> Answer<bool> {
        let mut table = self.table();
        let inode = table.inode_mut(ino)?;
        if inode.face.kind != Kind::File || inode.face.mode != without_set_id(mode) {
            return Ok(false);
        }
        inode.face.mode = mode;
        Ok(true)
    }

    /// `READLINK`.
    pub(super) fn op_readlink(&self, ino: Ino) -> Answer<Vec<u8>> {
        self.table().link_target(ino)
    }

    /// `MKNOD`, `MKDIR`, `SYMLINK`. What is made counts as looked up once.
    pub(super) fn op_make(
        &self,
        parent: Ino,
        name: &[u8],
        new: &NewNode<'_>,
    ) -> Answer<Attributes> {
        let mut table = self.table();
        let ino = table.make(parent, name, new)?;
        table.remember(ino);
        table.attributes(ino)
    }

    /// `TMPFILE`: a file in `parent` that has no name, and may be given one later if it
    /// `is_linkable`. Counts as looked up once.
    pub(super) fn op_make_nameless(
        &self,
        parent: Ino,
        new: &NewNode<'_>,
        is_linkable: bool,
    ) -> Answer<Attributes> {
        let mut table = self.table();
        table.directory(parent)?;
        let mut inode = table.new_inode(parent, new, now())?;
        inode.is_linkable = is_linkable;
        let ino = table.create(inode)?;
        table.remember(ino);
        table.attributes(ino)
    }

    /// `UNLINK`.
    pub(super) fn op_unlink(&self, parent: Ino, name: &[u8]) -> Answer<()> {
        let mut table = self.table();
        let ino = table.child(parent, name)?.ok_or(Fault::NotFound)?;
        if table.is_directory(ino)? {
            return Err(Fault::IsDirectory);
        }
        let now = now();
        table.leave(parent, name, now)?;
        table.unlink(ino, now)
    }

    /// `RMDIR`.
    pub(super) fn op_rmdir(&self, parent: Ino, name: &[u8]) -> Answer<()> {
        let mut table = self.table();
        let ino = table.child(parent, name)?.ok_or(Fault::NotFound)?;
        table.check_empty(ino)?;
        let now = now();
        table.leave(parent, name, now)?;
        table.unlink(ino, now)
    }

    /// `LINK`. Counts as one more lookup.
    pub(super) fn op_link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Answer<Attributes> {
        let mut table = self.table();
        table.link_as(ino, parent, name)?;
        table.remember(ino);
        table.attributes(ino)
    }

    /// `RENAME2`.
    pub(super) fn op_rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        how: Rename,
    ) -> Answer<()> {
        self.table().rename(from, to, how)
    }

    /// `READDIR` from `offset` on: calls `take` with entry after entry until it says
    /// that it is full.
    pub(super) fn op_readdir(
        &self,
        ino: Ino,
        offset: u64,
        mut take: impl FnMut(Listed<'_>) -> bool,
    ) -> Answer<()> {
        self.table().list(ino, offset, |_, entry| Ok(take(entry)))
    }

    /// `READDIRPLUS`: like [`Overlay::op_readdir`], with metadata. An entry that was
    /// taken counts as looked up, except the two dots.
    pub(super) fn op_readdirplus(
        &self,
        ino: Ino,
        offset: u64,
        mut take: impl FnMut(Listed<'_>, &Attributes) -> bool,
    ) -> Answer<()> {
        self.table().list(ino, offset, |table, entry| {
            let (ino, dots) = (entry.ino, entry.next <= DOTS);
            let full = take(entry, &table.attributes(ino)?);
            if !full && !dots {
                table.remember(ino);
            }
            Ok(full)
        })
    }

    /// `GETXATTR`: the value.
    pub(super) fn op_getxattr(&self, ino: Ino, name: &[u8]) -> Answer<Vec<u8>> {
        check_attribute(name)?;
        let mut table = self.table();
        let found = table.xattrs(ino)?.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).ok_or(Fault::NoAttribute)
    }

    /// `LISTXATTR`: the names, each followed by a NUL.
    pub(super) fn op_listxattr(&self, ino: Ino) -> Answer<Vec<u8>> {
        let mut table = self.table();
        let mut names = Vec::new();
        for (name, _) in table.xattrs(ino)? {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// `SETXATTR`; whether the mode is another one now.
    pub(super) fn op_setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: SetMode,
    ) -> Answer<bool> {
        check_attribute(name)?;
        self.table().set_xattr(ino, name, value, mode)
    }

    /// `REMOVEXATTR`.
    pub(super) fn op_removexattr(&self, ino: Ino, name: &[u8]) -> Answer<()> {
        check_attribute(name)?;
        self.table().remove_xattr(ino, name)
    }
}

/// Reading a directory goes on at this offset behind `.` and `..`.
const DOTS: u64 = 2;

impl Table {
    /// Makes a node called `name` in `parent`.
    pub(super) fn make(&mut self, parent: Ino, name: &[u8], new: &NewNode<'_>) -> Answer<Ino> {
        check_name(name)?;
        self.check_alive(parent)?;
        if self.child(parent, name)?.is_some() {
            return Err(Fault::Exists);
        }
        let now = now();
        let inode = self.new_inode(parent, new, now)?;
        let ino = self.create(inode)?;
        self.inode_mut(ino)?.face.links = 1;
        self.enter(parent, name, ino, now)?;
        Ok(ino)
    }

    /// What [`Table::make`] puts into `parent`, with no name and no number yet.
    fn new_inode(&self, parent: Ino, new: &NewNode<'_>, now: Timestamp) -> Answer<Inode> {
        let above = self.inode(parent)?.face;
        let mut stat =
            Stat { uid: new.uid, gid: new.gid, mtime: now, ..Stat::new(new.kind, new.mode) };
        match new.kind {
            Kind::Symlink => stat.size = new.target.len() as u64,
            Kind::CharDevice | Kind::BlockDevice => stat.device = new.device,
            _ => {}
        }
        if above.mode & SET_GROUP_ID != 0 {
            stat.gid = above.gid;
            if new.kind == Kind::Directory {
                stat.mode |= SET_GROUP_ID;
            }
        }
        let matter = match new.kind {
            Kind::Directory => {
                Matter::Directory(Box::new(Directory { complete: true, ..Directory::default() }))
            }
            Kind::Symlink => Matter::Symlink(Some(new.target.into())),
            Kind::File => Matter::File(None),
            _ => Matter::Special,
        };
        Ok(Inode::new(&stat, matter))
    }

    /// An entry can't be made in a directory that was removed.
    fn check_alive(&self, directory: Ino) -> Answer<()> {
        let inode = self.inode(directory)?;
        match inode.face.kind {
            Kind::Directory if inode.face.links > 0 => Ok(()),
            Kind::Directory => Err(Fault::NotFound),
            _ => Err(Fault::NotDirectory),
        }
    }

    /// Succeeds for an empty directory.
    pub(super) fn check_empty(&mut self, ino: Ino) -> Answer<()> {
        self.directory(ino)?;
        self.load(ino)?;
        if self.directory(ino)?.index.is_empty() { Ok(()) } else { Err(Fault::NotEmpty) }
    }

    /// Gives `ino` one more name.
    pub(super) fn link_as(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Answer<()> {
        check_name(name)?;
        self.check_alive(parent)?;
        if self.is_directory(ino)? {
            return Err(Fault::NotPermitted);
        }
        let inode = self.inode(ino)?;
        if inode.face.links == 0 && !inode.is_linkable {
            return Err(Fault::NotFound);
        }
        if self.child(parent, name)?.is_some() {
            return Err(Fault::Exists);
        }
        let now = now();
        self.link(ino, now)?;
        self.inode_mut(ino)?.is_linkable = false;
        self.enter(parent, name, ino, now)
    }

    /// Moves an entry; see [`Rename`].
    pub(super) fn rename(
        &mut self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        how: Rename,
    ) -> Answer<()> {
        check_name(new_name)?;
        self.check_alive(new_parent)?;
        let ino = self.child(parent, name)?.ok_or(Fault::NotFound)?;
        let target = self.child(new_parent, new_name)?;
        self.check_no_loop(ino, new_parent)?;
        let now = now();
        match (how, target) {
            (Rename::Exchange, None) => return Err(Fault::NotFound),
            (Rename::NoReplace | Rename::NoReplaceWhiteout, Some(_)) => return Err(Fault::Exists),
            // Two names of one file: rename(2) does nothing.
            (_, Some(target)) if target == ino => return Ok(()),
            (Rename::Exchange, Some(target)) => {
                self.check_no_loop(target, parent)?;
                self.replace(parent, name, target, now)?;
                self.replace(new_parent, new_name, ino, now)?;
                self.inode_mut(target)?.set_ctime(now);
                self.inode_mut(ino)?.set_ctime(now);
                return Ok(());
            }
            (_, Some(target)) => {
                match (self.is_directory(ino)?, self.is_directory(target)?) {
                    (true, true) => self.check_empty(target)?,
                    (true, false) => return Err(Fault::NotDirectory),
                    (false, true) => return Err(Fault::IsDirectory),
                    (false, false) => {}
                }
                self.leave(parent, name, now)?;
                self.replace(new_parent, new_name, ino, now)?;
                self.unlink(target, now)?;
            }
            (_, None) => {
                self.leave(parent, name, now)?;
                self.enter(new_parent, new_name, ino, now)?;
            }
        }
        self.inode_mut(ino)?.set_ctime(now);
        if matches!(how, Rename::Whiteout | Rename::NoReplaceWhiteout) {
            let device = Device { major: 0, minor: 0 };
            let (kind, target) = (Kind::CharDevice, &[][..]);
            let new = NewNode { kind, mode: 0, uid: 0, gid: 0, device, target };
            self.make(parent, name, &new)?;
        }
        Ok(())
    }

    /// A directory can't move below itself. The kernel checks that too, but an edit
    /// doesn't come through the kernel.
    fn check_no_loop(&self, ino: Ino, new_parent: Ino) -> Answer<()> {
        if !self.is_directory(ino)? {
            return Ok(());
        }
        let mut at = new_parent;
        loop {
            if at == ino {
                return Err(Fault::Invalid);
            }
            match self.place_of(at)? {
                Some((above, _)) => at = above,
                None => return Ok(()),
            }
        }
    }

    /// Calls `take` with the entries of `ino` from `offset` on.
    fn list(
        &mut self,
        ino: Ino,
        offset: u64,
        mut take: impl FnMut(&mut Self, Listed<'_>) -> Answer<bool>,
    ) -> Answer<()> {
        self.load(ino)?;
        let parent = self.place_of(ino)?.map_or(ino, |(parent, _)| parent);
        let dots: [(&[u8], Ino); 2] = [(b".", ino), (b"..", parent)];
        for (next, (name, ino)) in (1..).zip(dots) {
            let entry = Listed { name, ino, kind: Kind::Directory, next };
            if offset < next && take(self, entry)? {
                return Ok(());
            }
        }
        let mut number = usize::try_from(offset.saturating_sub(DOTS)).unwrap_or(usize::MAX);
        while let Some(slot) = self.directory(ino)?.slots.get(number) {
            number += 1;
            let Some(slot) = slot else { continue };
            let (name, child) = (Arc::clone(&slot.name), slot.ino);
            let kind = self.inode(child)?.face.kind;
            let entry = Listed { name: &name, ino: child, kind, next: number as u64 + DOTS };
            if take(self, entry)? {
                break;
            }
        }
        Ok(())
    }

    /// Sets an extended attribute; whether the mode is another one now, see `acl.rs`.
    pub(super) fn set_xattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: SetMode,
    ) -> Answer<bool> {
        if name == acl::ACCESS {
            return self.set_acl(ino, value);
        }
        let is_there = self.xattrs(ino)?.iter().any(|(key, _)| key == name);
        match (mode, is_there) {
            (SetMode::Create, true) => return Err(Fault::Exists),
            (SetMode::Replace, false) => return Err(Fault::NoAttribute),
            _ => {}
        }
        self.touch(ino, true)?;
        self.put_xattr(ino, name, value)?;
        self.inode_mut(ino)?.set_ctime(now());
        Ok(false)
    }

    /// Sets the access ACL: the mode says it, and what a mode can't say is kept.
    fn set_acl(&mut self, ino: Ino, value: &[u8]) -> Answer<bool> {
        let acl = Acl::parse(value).ok_or(Fault::Invalid)?;
        if acl.is_empty() {
            return self.remove_xattr(ino, acl::ACCESS).map(|()| false);
        }
        self.touch(ino, true)?;
        if acl.is_only_mode() {
            self.change_xattrs(ino, |list| list.retain(|(key, _)| key != acl::ACCESS))?;
        } else {
            self.put_xattr(ino, acl::ACCESS, value)?;
        }
        let inode = self.inode_mut(ino)?;
        let mode = inode.face.mode & !0o777 | acl.mode();
        let is_changed = mode != inode.face.mode;
        inode.face.mode = mode;
        inode.set_ctime(now());
        Ok(is_changed)
    }

    /// Sets the mode, and what an ACL says of it. The node must have been touched.
    pub(super) fn change_mode(&mut self, ino: Ino, mode: u16) -> Answer<()> {
        self.inode_mut(ino)?.face.mode = mode & 0o7777;
        let kept = self.xattrs(ino)?.iter().find(|(name, _)| name == acl::ACCESS);
        if let Some(mut acl) = kept.and_then(|(_, value)| Acl::parse(value)) {
            acl.set_mode(mode);
            self.put_xattr(ino, acl::ACCESS, &acl.to_bytes())?;
        }
        Ok(())
    }

    fn put_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) -> Answer<()> {
        self.change_xattrs(ino, |list| {
            match list.binary_search_by(|(key, _)| key.as_slice().cmp(name)) {
                Ok(index) => list[index].1 = value.to_vec(),
                Err(index) => list.insert(index, (name.to_vec(), value.to_vec())),
            }
        })
    }

    /// Removes an extended attribute.
    pub(super) fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Answer<()> {
        if !self.xattrs(ino)?.iter().any(|(key, _)| key == name) {
            // Every file has the ACL that its mode is.
            let is_acl = [acl::ACCESS, acl::DEFAULT].contains(&name);
            return if is_acl { Ok(()) } else { Err(Fault::NoAttribute) };
        }
        self.touch(ino, true)?;
        self.change_xattrs(ino, |list| list.retain(|(key, _)| key != name))?;
        self.inode_mut(ino)?.set_ctime(now());
        Ok(())
    }
}
