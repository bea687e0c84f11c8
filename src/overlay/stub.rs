//! Mount points for the time of a step: `/proc`, `/etc/resolv.conf`, targets of
//! `RUN --mount`, wherever the root lacks them.
//!
//! A stub is in the table like anything else, but in no log: making and removing it
//! changes no time and no image, so neither layer nor cache sees it. If a program
//! leaves something real in a stub directory or writes to a stub file, it is no stub
//! any more but something that the program made.

use std::io;

use super::Overlay;
use super::errno::Answer;
use super::errno::Fault;
use super::inode::Directory;
use super::inode::Ino;
use super::inode::Inode;
use super::inode::Matter;
use super::inode::ROOT;
use super::inode::now;
use super::kernel::Stale;
use super::lower::MAX_NAME;
use super::recorder::Touch;
use super::table::Table;
use crate::path::RootPath;
use crate::tree::Kind;
use crate::tree::Stat;
use crate::tree::resolve::resolve;

/// What was made for one mount point; give it back to [`Overlay::remove_stubs`].
#[derive(Debug)]
#[must_use = "stubs stay until they are removed"]
pub struct Stubs {
    /// The mount point with links resolved: where to mount.
    pub path: RootPath,
    /// Parents first.
    made: Vec<Stub>,
}

impl Stubs {
    /// Whether the mount point was there and nothing was made.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty()
    }
}

#[derive(Debug)]
struct Stub {
    /// Grows with every stub of an overlay: what was made later hangs below what was
    /// made earlier.
    serial: u64,
    parent: Ino,
    name: Box<[u8]>,
    ino: Ino,
}

impl Overlay {
    /// Sees to it that `path`, links followed, is a directory that can be mounted on.
    /// Missing parents are made as well (0755, root).
    ///
    /// # Errors
    /// `NotADirectory` if something else is there or on the way; those of resolving.
    pub fn make_stub_directory(&self, path: &RootPath) -> io::Result<Stubs> {
        self.make_stubs(path, Kind::Directory)
    }

    /// Sees to it that `path`, links followed, is a file that can be mounted on: an
    /// empty one (0644, root) if there is none.
    ///
    /// # Errors
    /// `IsADirectory` if a directory is there; those of [`Overlay::make_stub_directory`].
    pub fn make_stub_file(&self, path: &RootPath) -> io::Result<Stubs> {
        self.make_stubs(path, Kind::File)
    }

    fn make_stubs(&self, path: &RootPath, kind: Kind) -> io::Result<Stubs> {
        let path = resolve(self.after().as_ref(), path, true)?.path;
        if path.components().any(|name| name.len() > MAX_NAME) {
            return Err(Fault::NameTooLong.into());
        }
        let made = self.edit(|table, stale| {
            let (mut at, mut made) = (ROOT, Vec::new());
            let mut names = path.components().peekable();
            while let Some(name) = names.next() {
                let kind = if names.peek().is_some() { Kind::Directory } else { kind };
                if let Some(child) = table.child(at, name)? {
                    at = child;
                    continue;
                }
                let (serial, ino) = table.make_stub(at, name, kind)?;
                stale.entry(table, at, name);
                made.push(Stub { serial, parent: at, name: name.into(), ino });
                at = ino;
            }
            match (kind, table.is_directory(at)?) {
                (Kind::Directory, false) => Err(Fault::NotDirectory),
                (Kind::Directory, true) | (_, false) => Ok(made),
                (_, true) => Err(Fault::IsDirectory),
            }
        })?;
        Ok(Stubs { path, made })
    }

    /// Removes what was made since the step began; nothing may be mounted there any
    /// more. All at once, because mount points can share parents. To be called before
    /// [`Overlay::log`].
    ///
    /// # Errors
    /// None that is to be expected; what can be removed is removed.
    pub fn remove_stubs(&self, stubs: Vec<Stubs>) -> io::Result<()> {
        let mut made: Vec<Stub> = stubs.into_iter().flat_map(|stubs| stubs.made).collect();
        made.sort_by_key(|stub| std::cmp::Reverse(stub.serial));
        self.edit(|table, stale| {
            let removed: Vec<Answer<()>> =
                made.iter().map(|stub| table.remove_stub(stub, stale)).collect();
            removed.into_iter().collect()
        })
    }
}

impl Table {
    fn make_stub(&mut self, parent: Ino, name: &[u8], kind: Kind) -> Answer<(u64, Ino)> {
        self.load(parent)?;
        let (mode, matter) = match kind {
            Kind::Directory => {
                let directory = Directory { complete: true, ..Directory::default() };
                (0o755, Matter::Directory(Box::new(directory)))
            }
            _ => (0o644, Matter::File(None)),
        };
        let stat = Stat { mtime: now(), ..Stat::new(kind, mode) };
        let ino = self.insert(Inode::new(&stat, matter))?;
        self.inode_mut(ino)?.face.links = 1;
        self.attach(parent, name.into(), ino)?;
        self.stubs.push(ino);
        self.stubs_made += 1;
        Ok((self.stubs_made, ino))
    }

    fn remove_stub(&mut self, stub: &Stub, stale: &mut Stale) -> Answer<()> {
        let Stub { parent, name, ino, .. } = stub;
        if !self.stubs.contains(ino) {
            return Ok(());
        }
        let in_place = self.inode(*parent).is_ok() && self.child(*parent, name)? == Some(*ino);
        let Ok(inode) = self.inode(*ino) else { return self.no_stub(*ino) };
        let touched = self.recorder.nodes.get(ino).is_some_and(|touch| touch.is_event);
        let is_empty = match &inode.matter {
            Matter::Directory(directory) => directory.index.is_empty(),
            _ => inode.face.size == 0,
        };
        let was_linked = inode.face.links != 1;
        if in_place && is_empty && !touched && !was_linked {
            // A name that was not touched would be in the log from here on, were it
            // removed like any other.
            self.detach(*parent, name)?;
            self.inode_mut(*ino)?.face.links = 0;
            self.recorder.forget(*ino);
            self.no_stub(*ino)?;
            stale.entry(self, *parent, name);
            stale.node(self, *ino);
            self.release(*ino);
            return Ok(());
        }
        if in_place {
            self.recorder.entry(*parent, name, None);
        }
        let is_event = touched;
        self.recorder.nodes.insert(*ino, Touch { is_event, image: None });
        self.no_stub(*ino)
    }

    fn no_stub(&mut self, ino: Ino) -> Answer<()> {
        self.stubs.retain(|stub| *stub != ino);
        Ok(())
    }
}
