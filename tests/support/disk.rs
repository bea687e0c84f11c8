//! A disk that can lose its power: a file system in memory, mounted by FUSE, which
//! records every change, and says afterwards what could be left of it at any moment.
//!
//! What survives is what POSIX promises and no more: the bytes of a file up to its
//! last fsync, the names in a directory up to its last fsync. Of what came later,
//! any of a file's writes may be there, and any beginning of a directory's changes;
//! each directory by itself. A renamed file has its old name, its new one or both.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
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
use fuser::LockOwner;
use fuser::OpenFlags;
use fuser::RenameFlags;
use fuser::Request;
use fuser::TimeOrNow;

/// Answers are never kept: everything is asked again.
const TTL: Duration = Duration::ZERO;

type Ino = u64;

/// One change, in the order in which they came.
#[derive(Debug)]
enum Change {
    Name {
        directory: Ino,
        name: OsString,
        ino: Ino,
    },
    /// With the change that gave the file another name, if it was a rename.
    Unname {
        directory: Ino,
        name: OsString,
        moved_by: Option<usize>,
    },
    Write {
        ino: Ino,
        offset: usize,
        bytes: Vec<u8>,
    },
    Resize {
        ino: Ino,
        size: usize,
    },
    Sync {
        ino: Ino,
    },
}

#[derive(Debug, Default)]
struct Node {
    is_directory: bool,
    bytes: Vec<u8>,
    names: BTreeMap<OsString, Ino>,
    links: u32,
    times: Option<SystemTime>,
    mode: u16,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<Ino, Node>,
    changes: Vec<Change>,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<State>>);

fn apply_write(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    if bytes.len() < offset + new.len() {
        bytes.resize(offset + new.len(), 0);
    }
    bytes[offset..offset + new.len()].copy_from_slice(new);
}

impl Disk {
    pub(crate) fn new() -> Self {
        let root = Node { is_directory: true, links: 2, mode: 0o755, ..Node::default() };
        let state = State { nodes: BTreeMap::from([(1, root)]), changes: Vec::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Mounts it until the result is dropped.
    pub(crate) fn mount(&self, at: &Path) -> fuser::BackgroundSession {
        let mut config = fuser::Config::default();
        config.mount_options = vec![fuser::MountOption::FSName("powerless".to_owned())];
        fuser::spawn_mount(self.clone(), at, &config).expect("a mount")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    /// How many changes there were.
    pub(crate) fn changes(&self) -> usize {
        self.state().changes.len()
    }

    /// What had been written to the file `name` of the root before the power went.
    pub(crate) fn written(&self, name: &str, until: usize) -> Vec<u8> {
        let state = self.state();
        let mut found = None;
        let mut bytes = Vec::new();
        for change in &state.changes[..until] {
            match change {
                Change::Name { directory: 1, name: given, ino } if given == name => {
                    found = Some(*ino);
                }
                Change::Write { ino, offset, bytes: new } if Some(*ino) == found => {
                    apply_write(&mut bytes, *offset, new);
                }
                _ => {}
            }
        }
        bytes
    }

    /// Writes to `target` what may be left when the power goes after `until`
    /// changes; `random` decides within the bounds of what was synced.
    pub(crate) fn lose_power(&self, until: usize, target: &Path, random: &mut dyn FnMut() -> u64) {
        let state = self.state();
        let changes = &state.changes[..until];
        let mut synced: BTreeMap<Ino, usize> = BTreeMap::new();
        for (at, change) in changes.iter().enumerate() {
            if let Change::Sync { ino } = change {
                synced.insert(*ino, at);
            }
        }
        // Up to where each directory's changes are there.
        let mut kept: BTreeMap<Ino, usize> = BTreeMap::new();
        let directories = state.nodes.iter().filter(|(_, node)| node.is_directory);
        for (ino, _) in directories {
            let least = synced.get(ino).copied().unwrap_or(0);
            let more = (until - least) as u64;
            // Often nothing, often everything, else something.
            let kept_of_it = match random() % 4 {
                0 => 0,
                1 => more,
                _ => random() % (more + 1),
            };
            kept.insert(*ino, least + kept_of_it as usize);
        }
        let mut names: BTreeMap<Ino, BTreeMap<&OsStr, Ino>> = BTreeMap::new();
        let mut contents: BTreeMap<Ino, Vec<u8>> = BTreeMap::new();
        let is_kept = |directory: &Ino, at: usize| at < kept.get(directory).copied().unwrap_or(0);
        for (at, change) in changes.iter().enumerate() {
            match change {
                Change::Name { directory, name, ino } if is_kept(directory, at) => {
                    names.entry(*directory).or_default().insert(name, *ino);
                }
                Change::Unname { directory, name, moved_by } if is_kept(directory, at) => {
                    let arrived = moved_by.is_none_or(|by| match &changes[by] {
                        Change::Name { directory, .. } => is_kept(directory, by),
                        _ => true,
                    });
                    if arrived {
                        names.entry(*directory).or_default().remove(name.as_os_str());
                    }
                }
                Change::Write { ino, offset, bytes } => {
                    let durable = synced.get(ino).is_some_and(|sync| at < *sync);
                    if durable || random().is_multiple_of(2) {
                        apply_write(contents.entry(*ino).or_default(), *offset, bytes);
                    }
                }
                Change::Resize { ino, size } => {
                    let durable = synced.get(ino).is_some_and(|sync| at < *sync);
                    if durable || random().is_multiple_of(2) {
                        contents.entry(*ino).or_default().resize(*size, 0);
                    }
                }
                _ => {}
            }
        }
        let mut todo = vec![(1, target.to_owned())];
        while let Some((directory, path)) = todo.pop() {
            fs::create_dir_all(&path).expect("a directory");
            for (name, ino) in names.get(&directory).into_iter().flatten() {
                let path = path.join(name);
                if state.nodes[ino].is_directory {
                    todo.push((*ino, path));
                } else {
                    let bytes = contents.get(ino).map_or(&[][..], Vec::as_slice);
                    fs::write(path, bytes).expect("a file");
                }
            }
        }
    }
}

impl State {
    fn attr(&self, ino: Ino) -> Result<FileAttr, Errno> {
        let node = self.nodes.get(&ino).ok_or(Errno::ENOENT)?;
        let time = node.times.unwrap_or(UNIX_EPOCH);
        Ok(FileAttr {
            ino: INodeNo(ino),
            size: node.bytes.len() as u64,
            blocks: node.bytes.len().div_ceil(512) as u64,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if node.is_directory { FileType::Directory } else { FileType::RegularFile },
            perm: node.mode,
            nlink: node.links,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<Ino, Errno> {
        let parent = self.nodes.get(&parent.0).ok_or(Errno::ENOENT)?;
        parent.names.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn touch(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.times = Some(SystemTime::now());
        }
    }

    fn make(&mut self, parent: INodeNo, name: &OsStr, is_directory: bool, mode: u32) -> Ino {
        let ino = self.nodes.keys().next_back().copied().unwrap_or(1) + 1;
        let mode = (mode & 0o7777) as u16;
        let node = Node { is_directory, links: 1, mode, ..Node::default() };
        self.nodes.insert(ino, node);
        self.touch(ino);
        self.name(parent.0, name, ino);
        ino
    }

    fn name(&mut self, directory: Ino, name: &OsStr, ino: Ino) {
        if let Some(parent) = self.nodes.get_mut(&directory) {
            parent.names.insert(name.to_owned(), ino);
        }
        self.touch(directory);
        self.changes.push(Change::Name { directory, name: name.to_owned(), ino });
    }

    fn unname(&mut self, directory: Ino, name: &OsStr, moved_by: Option<usize>) {
        if let Some(parent) = self.nodes.get_mut(&directory) {
            parent.names.remove(name);
        }
        self.touch(directory);
        self.changes.push(Change::Unname { directory, name: name.to_owned(), moved_by });
    }

    /// One name less; the node itself stays, somebody may have it open.
    fn unlinked(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.links = 0;
        }
    }
}

fn reply_entry(reply: fuser::ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn reply_empty(reply: fuser::ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEntry) {
        let state = self.state();
        reply_entry(reply, state.child(parent, name).and_then(|ino| state.attr(ino)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: fuser::ReplyAttr) {
        match self.state().attr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: fuser::ReplyAttr,
    ) {
        let mut state = self.state();
        if let Some(size) = size {
            let size = size as usize;
            if let Some(node) = state.nodes.get_mut(&ino.0) {
                node.bytes.resize(size, 0);
            }
            state.touch(ino.0);
            state.changes.push(Change::Resize { ino: ino.0, size });
        }
        if let Some(node) = state.nodes.get_mut(&ino.0) {
            node.mode = mode.map_or(node.mode, |mode| (mode & 0o7777) as u16);
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => node.times = Some(time),
                Some(TimeOrNow::Now) => node.times = Some(SystemTime::now()),
                None => {}
            }
        }
        match state.attr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: fuser::ReplyEntry,
    ) {
        let mut state = self.state();
        let result = match state.child(parent, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(_) => {
                let ino = state.make(parent, name, false, mode);
                state.attr(ino)
            }
        };
        reply_entry(reply, result);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: fuser::ReplyEntry,
    ) {
        let mut state = self.state();
        let result = match state.child(parent, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(_) => {
                let ino = state.make(parent, name, true, mode);
                state.attr(ino)
            }
        };
        reply_entry(reply, result);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        let mut state = self.state();
        let result = state.child(parent, name).map(|ino| {
            state.unname(parent.0, name, None);
            state.unlinked(ino);
        });
        reply_empty(reply, result);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        let mut state = self.state();
        let result = state.child(parent, name).and_then(|ino| {
            if state.nodes.get(&ino).is_some_and(|node| !node.names.is_empty()) {
                return Err(Errno::ENOTEMPTY);
            }
            state.unname(parent.0, name, None);
            state.unlinked(ino);
            Ok(())
        });
        reply_empty(reply, result);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: fuser::ReplyEmpty,
    ) {
        let mut state = self.state();
        let result = state.child(parent, name).map(|ino| {
            if let Ok(replaced) = state.child(new_parent, new_name) {
                state.unlinked(replaced);
            }
            let at = state.changes.len();
            state.name(new_parent.0, new_name, ino);
            state.unname(parent.0, name, Some(at));
        });
        reply_empty(reply, result);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: fuser::ReplyOpen) {
        reply.opened(FileHandle(0), fuser::FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: fuser::ReplyData,
    ) {
        let state = self.state();
        let bytes = state.nodes.get(&ino.0).map_or(&[][..], |node| &node.bytes);
        let from = (offset as usize).min(bytes.len());
        let to = (from + size as usize).min(bytes.len());
        reply.data(&bytes[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        let mut state = self.state();
        let offset = offset as usize;
        if let Some(node) = state.nodes.get_mut(&ino.0) {
            apply_write(&mut node.bytes, offset, data);
        }
        state.touch(ino.0);
        state.changes.push(Change::Write { ino: ino.0, offset, bytes: data.to_vec() });
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: fuser::ReplyEmpty) {
        self.state().changes.push(Change::Sync { ino: ino.0 });
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: bool,
        reply: fuser::ReplyEmpty,
    ) {
        self.state().changes.push(Change::Sync { ino: ino.0 });
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: fuser::ReplyDirectory,
    ) {
        let state = self.state();
        let names = state.nodes.get(&ino.0).into_iter().flat_map(|node| &node.names);
        for (at, (name, child)) in names.enumerate().skip(offset as usize) {
            let is_directory = state.nodes.get(child).is_some_and(|node| node.is_directory);
            let kind = if is_directory { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(*child), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
