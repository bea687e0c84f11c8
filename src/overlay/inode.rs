//! What the table knows about one node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use super::extent::Backing;
use super::extent::Extents;
use super::lower::Part;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::Stat;
use crate::tree::Timestamp;
use crate::tree::Xattr;

/// Number of an inode: its place in the table. 0 is none.
pub(super) type Ino = u32;

/// The root directory; FUSE wants it to be 1.
pub(super) const ROOT: Ino = 1;

/// The metadata that an image carries, and the link count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Face {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Names of a file; 1 for a directory that is there, 0 for one that was removed.
    pub(super) links: u32,
    /// Bytes of a file or link target.
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) device: Device,
}

impl Face {
    pub(super) fn new(stat: &Stat) -> Self {
        Self {
            kind: stat.kind,
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            links: if stat.is_directory() { 1 } else { stat.links },
            size: stat.size,
            mtime: stat.mtime,
            device: stat.device,
        }
    }

    pub(super) fn stat(&self) -> Stat {
        Stat {
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            mtime: self.mtime,
            device: self.device,
            links: self.links,
        }
    }
}

/// Times that no image carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) atime: Timestamp,
    pub(super) ctime: Timestamp,
    /// When a program set the mtime, and didn't write since.
    pub(super) mtime_set: Option<Timestamp>,
}

/// Extended attributes, read from the layer only when asked for.
#[derive(Clone, Debug, Default)]
pub(super) enum Xattrs {
    /// None.
    #[default]
    None,
    /// Those of the lower node.
    Lower,
    /// These, sorted by name, at least one.
    Own(Arc<Vec<Xattr>>),
}

/// What the bytes of a file are known to be as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whole {
    /// Nothing is known.
    Unknown,
    /// The content of this lower node.
    Lower(Part),
    /// BLAKE3 of the content.
    Digest([u8; 32]),
}

/// The bytes of a file. Copying it copies no extent.
#[derive(Clone, Debug)]
pub(super) struct Body {
    pub(super) extents: Arc<Extents>,
    pub(super) whole: Whole,
    /// Its flat file and the epoch in which that may be written.
    pub(super) flat: Option<(Arc<Backing>, u64)>,
    /// How often another file came to show bytes of this one.
    pub(super) shares: u64,
}

impl Body {
    /// Bytes that were not written here.
    pub(super) fn new(extents: Arc<Extents>, whole: Whole) -> Self {
        Self { extents, whole, flat: None, shares: 0 }
    }
}

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: Arc<[u8]>,
    pub(super) ino: Ino,
}

/// A directory. Its entries sit in slots that keep their number for as long as the
/// directory has any entry, so reading goes on where it was while entries vanish.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// What it is merged of, top first; consulted while `complete` is false.
    pub(super) parts: Box<[Part]>,
    /// Whether all entries are in slots.
    pub(super) complete: bool,
    pub(super) slots: Vec<Option<Slot>>,
    pub(super) index: HashMap<Arc<[u8]>, u32>,
}

impl Directory {
    /// The entry in slots called `name`.
    pub(super) fn get(&self, name: &[u8]) -> Option<Ino> {
        let slot = *self.index.get(name)?;
        self.slots.get(slot as usize)?.as_ref().map(|slot| slot.ino)
    }

    /// Adds an entry and gives its slot.
    pub(super) fn add(&mut self, name: Arc<[u8]>, ino: Ino) -> u32 {
        let slot = self.slots.len() as u32;
        self.index.insert(Arc::clone(&name), slot);
        self.slots.push(Some(Slot { name, ino }));
        slot
    }

    /// Removes an entry and gives its slot and content.
    pub(super) fn take(&mut self, name: &[u8]) -> Option<(u32, Slot)> {
        let number = self.index.remove(name)?;
        let slot = self.slots.get_mut(number as usize)?.take()?;
        if self.index.is_empty() {
            self.slots.clear();
        }
        Some((number, slot))
    }
}

/// What a node is made of besides its metadata.
#[derive(Debug)]
pub(super) enum Matter {
    /// A file; `None`: as the lower node has it.
    File(Option<Box<Body>>),
    /// A directory.
    Directory(Box<Directory>),
    /// A symbolic link; `None`: as the lower node has it.
    Symlink(Option<Box<[u8]>>),
    /// Nothing.
    Special,
}

/// Where a node hangs: slot of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) directory: Ino,
    pub(super) slot: u32,
}

/// The known names of a node.
#[derive(Debug, Default)]
pub(super) enum Places {
    #[default]
    None,
    One(Place),
    Many(Vec<Place>),
}

impl Places {
    pub(super) fn as_slice(&self) -> &[Place] {
        match self {
            Self::None => &[],
            Self::One(place) => std::slice::from_ref(place),
            Self::Many(places) => places,
        }
    }

    pub(super) fn add(&mut self, place: Place) {
        match self {
            Self::None => *self = Self::One(place),
            Self::One(first) => *self = Self::Many(vec![*first, place]),
            Self::Many(places) => places.push(place),
        }
    }

    pub(super) fn remove(&mut self, place: Place) {
        match self {
            Self::One(only) if *only == place => *self = Self::None,
            // Order means nothing; a file may have 65,000 names.
            Self::Many(places) => {
                if let Some(index) = places.iter().rposition(|known| *known == place) {
                    places.swap_remove(index);
                }
            }
            _ => {}
        }
    }
}

/// A node of the table.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) face: Face,
    /// `None`: all times are the mtime.
    pub(super) times: Option<Box<Times>>,
    /// How often the kernel was given it and hasn't forgotten.
    pub(super) lookups: u64,
    /// The lower node that it shows, for a directory the one with its metadata.
    pub(super) origin: Option<Part>,
    pub(super) xattrs: Xattrs,
    pub(super) matter: Matter,
    pub(super) places: Places,
    /// Whether `places` may lack names that a layer has and nobody looked up.
    pub(super) has_hidden_names: bool,
    /// Whether it was made without a name and may be given one (`O_TMPFILE`).
    pub(super) is_linkable: bool,
}

impl Inode {
    /// A node that no layer has, with no name yet.
    pub(super) fn new(stat: &Stat, matter: Matter) -> Self {
        Self {
            face: Face { links: 0, ..Face::new(stat) },
            times: None,
            lookups: 0,
            origin: None,
            xattrs: Xattrs::None,
            matter,
            places: Places::None,
            has_hidden_names: false,
            is_linkable: false,
        }
    }

    pub(super) fn times(&self) -> Times {
        let mtime = self.face.mtime;
        self.times.as_deref().copied().unwrap_or(Times {
            atime: mtime,
            ctime: mtime,
            mtime_set: None,
        })
    }

    pub(super) fn set_atime(&mut self, atime: Timestamp) {
        self.set_times(Times { atime, ..self.times() });
    }

    pub(super) fn set_ctime(&mut self, ctime: Timestamp) {
        self.set_times(Times { ctime, ..self.times() });
    }

    /// Sets the mtime; `by_program` for a call that names the time, not one that
    /// changes the content.
    pub(super) fn set_mtime(&mut self, mtime: Timestamp, by_program: Option<Timestamp>) {
        // What isn't kept yet is read off the old mtime.
        let times = Times { mtime_set: by_program, ..self.times() };
        self.face.mtime = mtime;
        self.set_times(times);
    }

    fn set_times(&mut self, times: Times) {
        match &mut self.times {
            Some(kept) => **kept = times,
            None => self.times = Some(Box::new(times)),
        }
    }
}

/// Metadata of a node as stat(2) wants it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) ino: Ino,
    pub(super) face: Face,
    pub(super) atime: Timestamp,
    pub(super) ctime: Timestamp,
    /// Units of 512 bytes that are no hole.
    pub(super) blocks: u64,
    /// Whether they stay until somebody changes them by a request.
    pub(super) last: bool,
}

/// The time, to the nanosecond.
pub(super) fn now() -> Timestamp {
    // A clock before 1970 is as wrong as one that stands there.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: since.subsec_nanos(),
    }
}
