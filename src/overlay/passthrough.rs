//! Large files whose bytes the kernel reads and writes by itself (`FUSE_PASSTHROUGH`,
//! Linux 6.9), where the user asked for it: [`MountOptions`](super::MountOptions).
//!
//! A file is *passed through* from an OPEN on: all of its descriptors and mappings are
//! then ones of its *flat file*, the same for all, and no request tells what is done with
//! them. So as long as it is:
//!
//! - Size, time and bytes are those of the flat file, and are looked up there
//!   ([`Table::refresh`]) before anything is said about the file. The kernel is told that
//!   the answer is good for no time.
//! - Nothing else shows bytes of the flat file: no image of what was before, no content
//!   that was handed out, no other file. What wants to gets a copy, so what is sealed stays
//!   as it is.
//! - It is opened in this way, or in the other, by everybody: the kernel refuses to mix.
//!
//! It *lands* when nobody has it open any more: its flat file is one like any other, or
//! its bytes go to the log if they are few. The kernel doesn't say when the last mapping
//! goes, which outlives its descriptor: a lease (fcntl(2)) on the flat file can be had
//! only while nobody else has that open or mapped, so taking one is how to ask. Over an
//! overlayfs it wouldn't see mappings; there, nothing is passed through.
//!
//! Here are what is known of open files and what requests make of it; `passthrough/flat.rs`
//! has what is done to a flat file, `passthrough/door.rs` how the kernel is told of it.

mod door;
mod flat;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::fs::Stat;
use rustix::io::Errno;

use self::flat::MAX_RUNS;
use self::flat::UNWRITTEN;
use self::flat::copy_runs;
use self::flat::is_ours_alone;
use self::flat::punch;
use self::flat::runs;
use self::flat::stamp;
use self::flat::tame;
use super::Overlay;
use super::content::Frozen;
use super::errno::Answer;
use super::errno::Fault;
use super::extent::Backing;
use super::extent::Extent;
use super::extent::Extents;
use super::extent::SEALED;
use super::extent::Source;
use super::inode::Attributes;
use super::inode::Body;
use super::inode::Ino;
use super::inode::Inode;
use super::inode::Matter;
use super::inode::Whole;
use super::inode::now;
use super::ops::NewNode;
use super::ops::Seek;
use super::ops::without_set_id;
use super::recorder::Image;
use super::recorder::Touch;
use super::table::CAPABILITY;
use super::table::Table;
use super::upper::FLAT_FROM;
use crate::tree::Kind;
use crate::tree::Timestamp;

pub(super) use door::BackingId;
pub(super) use door::Door;
pub(super) use door::Refusal;
pub(super) use door::probe;

/// Files that are passed through at a time, each with a descriptor of ours; what is
/// opened beyond that is served as ever.
const LIMIT: usize = 128;
/// How many files that nobody has open are asked for mappings with each OPEN or RELEASE.
const ASKED: usize = 4;
/// How an OPEN is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Opening {
    /// Reads and writes are requests, and what the kernel has of the file is true.
    Served,
    /// Reads and writes are the kernel's.
    Through(BackingId),
}

/// A file that is passed through.
#[derive(Debug)]
struct Through {
    flat: Arc<Backing>,
    id: BackingId,
    /// Whether it was opened for writing.
    is_written: bool,
    /// Time of the flat file when it was last looked at.
    seen: Timestamp,
    /// What was written since was written after this. The kernel's clock may be some
    /// milliseconds behind ours, and times don't go back.
    floor: Timestamp,
    /// Changes with whatever makes a copy of the bytes worthless.
    generation: u64,
    blocks: u64,
}

/// A file that programs have open.
#[derive(Debug, Default)]
struct Opened {
    /// How often.
    count: u64,
    /// Stays while the count is 0 until the file has landed.
    through: Option<Through>,
}

/// Which files are open, where the kernel says so.
#[derive(Debug, Default)]
pub(super) struct Passing {
    door: Option<Door>,
    files: HashMap<Ino, Opened>,
    /// How many of them are passed through.
    count: usize,
    /// Those that nobody has open and that haven't landed.
    idle: VecDeque<Ino>,
}

impl Passing {
    /// Begins to pass files through.
    pub(super) fn begin(&mut self, door: Door) {
        self.door = Some(door);
    }

    fn through(&self, ino: Ino) -> Option<&Through> {
        self.files.get(&ino)?.through.as_ref()
    }

    fn through_mut(&mut self, ino: Ino) -> Option<&mut Through> {
        self.files.get_mut(&ino)?.through.as_mut()
    }

    /// The flat file of `ino`, if that is passed through.
    pub(super) fn flat(&self, ino: Ino) -> Option<&Arc<Backing>> {
        self.through(ino).map(|through| &through.flat)
    }

    /// What the kernel may be told about `ino` for longer, and the blocks that it has if
    /// they are known better here.
    pub(super) fn look(&self, ino: Ino) -> (bool, Option<u64>) {
        match self.through(ino) {
            Some(through) => (!through.is_written, Some(through.blocks)),
            None => (true, None),
        }
    }

    /// Forgets that `ino` is open.
    pub(super) fn forget(&mut self, ino: Ino) -> Option<Arc<Backing>> {
        let through = self.files.remove(&ino)?.through?;
        self.count -= 1;
        self.idle.retain(|idle| *idle != ino);
        if let Some(door) = &self.door {
            door.close(through.id);
        }
        Some(through.flat)
    }
}

/// Bytes of files as they were at one moment.
pub(super) type Copies = HashMap<Ino, Arc<Extents>>;

/// What is left to do to land a file.
enum Landing {
    /// Nothing.
    Done,
    /// Somebody has it open or mapped.
    InUse,
    /// Its bytes have to go to the log.
    Move { flat: Arc<Backing>, extents: Vec<Extent>, generation: u64 },
}

impl Overlay {
    /// `OPEN`.
    pub(super) fn op_open(&self, ino: Ino, writes: bool) -> Answer<Opening> {
        let opening = self.table().open(ino, writes)?;
        self.land_some(ASKED);
        Ok(opening)
    }

    /// `CREATE`: [`Overlay::op_make`] of a file, and its `OPEN`.
    pub(super) fn op_create(
        &self,
        parent: Ino,
        name: &[u8],
        new: &NewNode<'_>,
        writes: bool,
    ) -> Answer<(Attributes, Opening)> {
        let made = {
            let mut table = self.table();
            let ino = table.make(parent, name, new)?;
            table.remember(ino);
            let opening = table.open(ino, writes)?;
            (table.attributes(ino)?, opening)
        };
        self.land_some(ASKED);
        Ok(made)
    }

    /// The `OPEN` of a file that [`Overlay::op_make_nameless`] has made.
    pub(super) fn op_open_nameless(
        &self,
        made: &Attributes,
        writes: bool,
    ) -> Answer<(Attributes, Opening)> {
        let mut table = self.table();
        let opening = table.open(made.ino, writes)?;
        Ok((table.attributes(made.ino)?, opening))
    }

    /// `RELEASE`.
    pub(super) fn op_release(&self, ino: Ino) {
        self.table().close(ino);
        self.land_some(ASKED);
    }

    /// Whether writes to `ino` are no requests.
    pub(super) fn is_passed_through(&self, ino: Ino) -> bool {
        self.table().passing.through(ino).is_some()
    }

    /// Lets some of those files land that nobody has open.
    fn land_some(&self, most: usize) {
        for _ in 0..most {
            let mut table = self.table();
            let Some(ino) = table.passing.idle.pop_front() else { return };
            drop(table);
            if let Err(error) = self.land(ino) {
                tracing::warn!(%error, "a file stays passed through");
                self.table().wait_to_land(ino);
            }
        }
    }

    /// Lets all files land that nobody has open or mapped.
    pub(super) fn land_all(&self) {
        let idle = self.table().passing.idle.len();
        self.land_some(idle);
    }

    fn land(&self, ino: Ino) -> io::Result<()> {
        let landing = self.table().land(ino)?;
        match landing {
            Landing::Done => {}
            Landing::InUse => self.table().wait_to_land(ino),
            Landing::Move { flat, extents, generation } => {
                for extent in &extents {
                    let Source::Backing(log) = &extent.source else { continue };
                    // Few, as the file is small.
                    let mut bytes = vec![0; usize::try_from(extent.length).unwrap_or(0)];
                    match flat.file().read_exact_at(&mut bytes, extent.start) {
                        Ok(()) => log.write_all(&bytes, extent.at)?,
                        // It was cut meanwhile, so all of this is to be done anew.
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            self.table().wait_to_land(ino);
                            return Ok(());
                        }
                        Err(error) => return Err(error),
                    }
                }
                let extents = Extents::from_sorted(extents.into_iter());
                self.table().landed_in_log(ino, &flat, generation, extents)?;
            }
        }
        Ok(())
    }

    /// The bytes of `ino` if it is passed through: a copy, as programs may write to them.
    pub(super) fn copy_of(&self, ino: Ino) -> Answer<Option<Frozen>> {
        if !self.is_passed_through(ino) {
            return Ok(None);
        }
        self.land_all();
        let mut table = self.table();
        table.refresh(ino)?;
        let Some(flat) = table.passing.flat(ino).map(Arc::clone) else { return Ok(None) };
        let size = table.inode(ino)?.face.size;
        let copy = table.upper.flat_for_copy()?;
        drop(table);
        let extents = copied(&flat, size, &copy)?;
        Ok(Some(Frozen { extents: Arc::new(extents), size, digest: None }))
    }

    /// Copies of the bytes of all files that are passed through.
    pub(super) fn copies(&self) -> Copies {
        self.land_all();
        let files: Vec<Ino> = self.table().passing.files.keys().copied().collect();
        let copies = files.into_iter().filter_map(|ino| Some((ino, self.copy_of(ino).ok()??)));
        copies.map(|(ino, copy)| (ino, copy.extents)).collect()
    }

    /// There is no mount any more. Whoever still has a file open keeps its flat file, and
    /// we a copy.
    pub(super) fn end_passing(&self) {
        let mut table = self.table();
        let passing = &mut table.passing;
        passing.door = None;
        passing.files.retain(|_, opened| opened.through.is_some());
        passing.idle = passing.files.keys().copied().collect();
        passing.files.values_mut().for_each(|opened| opened.count = 0);
        drop(table);
        self.land_all();
        let mut table = self.table();
        for ino in std::mem::take(&mut table.passing.idle) {
            if let Err(error) = table.part(ino) {
                table.recorder.lose(format!("the bytes of an open file can't be copied: {error}"));
            }
        }
    }
}

/// Copies `flat`, which is `size` bytes long, to `copy`.
fn copied(flat: &Backing, size: u64, copy: &Arc<Backing>) -> io::Result<Extents> {
    let runs = copy_runs(flat.file(), runs(flat.file(), size)?, copy.file())?;
    Ok(extents_of(runs, copy, SEALED))
}

/// Runs of a file as a flat file has them.
fn extents_of(runs: Vec<Range<u64>>, flat: &Arc<Backing>, epoch: u64) -> Extents {
    Extents::from_sorted(runs.into_iter().map(|run| Extent {
        start: run.start,
        length: run.end - run.start,
        source: Source::Backing(Arc::clone(flat)),
        at: run.start,
        epoch,
    }))
}

fn time_of(stat: &Stat) -> Timestamp {
    // A time with more nanoseconds than a second has is none.
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Timestamp { seconds: stat.st_mtime, nanoseconds }
}

impl Table {
    /// Counts one more descriptor of `ino` and says how it is served.
    fn open(&mut self, ino: Ino, writes: bool) -> Answer<Opening> {
        let kind = self.inode(ino)?.face.kind;
        if !self.passing.files.contains_key(&ino) {
            let through = if kind == Kind::File { self.begin_through(ino, writes)? } else { None };
            self.passing.count += usize::from(through.is_some());
            self.passing.files.insert(ino, Opened { count: 0, through });
        }
        if writes && self.passing.through(ino).is_some() {
            // From here on, nothing is known about the content as a whole.
            let ready = self.touch(ino, true).and_then(|()| self.body_mut(ino).map(drop));
            if ready.is_err() {
                self.wait_to_land(ino);
            }
            ready?;
        }
        let Some(opened) = self.passing.files.get_mut(&ino) else { return Ok(Opening::Served) };
        opened.count += 1;
        let Some(through) = &mut opened.through else { return Ok(Opening::Served) };
        through.is_written |= writes;
        through.generation += 1;
        let opening = Opening::Through(through.id);
        if opened.count == 1 {
            self.passing.idle.retain(|idle| *idle != ino);
        }
        Ok(opening)
    }

    /// Counts one descriptor of `ino` less.
    fn close(&mut self, ino: Ino) {
        let Some(opened) = self.passing.files.get_mut(&ino) else { return };
        opened.count = opened.count.saturating_sub(1);
        if opened.count > 0 {
            return;
        }
        if opened.through.is_some() {
            self.wait_to_land(ino);
        } else {
            self.passing.files.remove(&ino);
        }
    }

    fn wait_to_land(&mut self, ino: Ino) {
        let idle = |opened: &Opened| opened.count == 0 && opened.through.is_some();
        if self.passing.files.get(&ino).is_some_and(idle) && !self.passing.idle.contains(&ino) {
            self.passing.idle.push_back(ino);
        }
    }

    /// Lets the kernel read and write the flat file of `ino`, which nobody has open, if
    /// that can be.
    fn begin_through(&mut self, ino: Ino, writes: bool) -> Answer<Option<Through>> {
        if self.passing.door.is_none() || self.passing.count >= LIMIT {
            return Ok(None);
        }
        if writes && self.loses_by_writing(ino)? {
            return Ok(None);
        }
        let (_, size) = self.extents(ino)?;
        let flat = if size == 0 && writes {
            // Without a file handle to spare, the log will do.
            self.upper.flat().ok()
        } else if size >= FLAT_FROM {
            self.writable_flat(ino)?
        } else {
            None
        };
        let (Some(flat), Some(door)) = (flat, &self.passing.door) else { return Ok(None) };
        let ready = || -> io::Result<BackingId> {
            // Not where it needn't be: ext4 takes a file that was cut to nothing for one that
            // is about to be replaced, and writes it to the disk with each close.
            if flat.file().metadata()?.len() != size {
                flat.file().set_len(size)?;
            }
            tame(flat.file())?;
            stamp(flat.file())?;
            door.open(flat.file())
        };
        let id = match ready() {
            Ok(id) => id,
            Err(error) => {
                tracing::debug!(%error, "a file is not passed through");
                return Ok(None);
            }
        };
        if writes {
            self.touch(ino, true)?;
        }
        self.set_body(ino, whole(&flat, size), None)?;
        let (is_written, generation, blocks) = (false, 0, 0);
        let (seen, floor) = (UNWRITTEN, now());
        Ok(Some(Through { flat, id, is_written, seen, floor, generation, blocks }))
    }

    /// Whether a write to `ino` may take something else away than bytes: that is to be
    /// seen.
    fn loses_by_writing(&mut self, ino: Ino) -> Answer<bool> {
        let mode = self.inode(ino)?.face.mode;
        let has_capability = self.xattrs(ino)?.iter().any(|(name, _)| name == CAPABILITY);
        Ok(has_capability || without_set_id(mode) != mode)
    }

    /// The flat file that has all bytes of `ino` where the file has them, and that
    /// nothing else shows; holes are made in it where the file has some.
    fn writable_flat(&mut self, ino: Ino) -> Answer<Option<Arc<Backing>>> {
        let epoch = self.upper.epoch();
        // What was before the mark can't be in it then.
        let is_touched = self.recorder.nodes.contains_key(&ino);
        let inode = self.inode(ino)?;
        let Matter::File(Some(body)) = &inode.matter else { return Ok(None) };
        let flat = match &body.flat {
            Some((flat, born)) if *born == epoch && is_touched => flat,
            _ => return Ok(None),
        };
        let Some(holes) = body.extents.holes_in(flat, inode.face.size, MAX_RUNS) else {
            return Ok(None);
        };
        let punched = holes.iter().try_for_each(|hole| punch(flat.file(), hole));
        Ok(punched.is_ok().then(|| Arc::clone(flat)))
    }

    /// Looks up what became of `ino` if it is passed through.
    pub(super) fn refresh(&mut self, ino: Ino) -> Answer<()> {
        if self.passing.files.is_empty() {
            return Ok(());
        }
        let Some(through) = self.passing.through_mut(ino) else { return Ok(()) };
        let stat = rustix::fs::fstat(through.flat.file()).map_err(io::Error::from)?;
        let (size, time) = (u64::try_from(stat.st_size).unwrap_or(0), time_of(&stat));
        through.blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        let is_written = time != through.seen;
        through.seen = time;
        through.generation += u64::from(is_written);
        let written = is_written.then(|| time.max(through.floor));
        let flat = Arc::clone(&through.flat);
        let inode = self.inode_mut(ino)?;
        if let Some(time) = written {
            inode.set_mtime(time, None);
            // It may have got another name since.
            inode.set_ctime(time.max(inode.times().ctime));
        }
        let Inode { face, matter: Matter::File(Some(body)), .. } = inode else {
            return Err(Fault::Invalid);
        };
        if face.size != size || !body.extents.is_one_run(size) {
            face.size = size;
            body.extents = Arc::new(whole(&flat, size));
        }
        Ok(())
    }

    /// The time of `ino` was set, so what is written from now on is what changes it.
    pub(super) fn restamp(&mut self, ino: Ino) -> Answer<()> {
        let Some(through) = self.passing.through_mut(ino) else { return Ok(()) };
        stamp(through.flat.file())?;
        through.seen = UNWRITTEN;
        through.floor = now();
        through.generation += 1;
        Ok(())
    }

    /// Cuts or lengthens the flat file of `ino` if that is passed through; whether it is.
    pub(super) fn resize_through(&mut self, ino: Ino, size: u64) -> Answer<bool> {
        let Some(flat) = self.passing.flat(ino).map(Arc::clone) else { return Ok(false) };
        flat.file().set_len(size)?;
        self.restamp(ino)?;
        self.body_mut(ino)?;
        Ok(true)
    }

    /// Makes `range` zeros in the flat file of `ino`, within the file.
    pub(super) fn zero_through(&mut self, ino: Ino, range: &Range<u64>) -> Answer<()> {
        let (_, face) = self.body_mut(ino)?;
        let range = range.start..range.end.min(face.size);
        if let Some(flat) = self.passing.flat(ino)
            && range.start < range.end
        {
            punch(flat.file(), &range)?;
        }
        Ok(())
    }

    /// Lets `ino` land if nobody has it open or mapped.
    fn land(&mut self, ino: Ino) -> io::Result<Landing> {
        let Some(opened) = self.passing.files.get(&ino) else { return Ok(Landing::Done) };
        let Some(through) = opened.through.as_ref().filter(|_| opened.count == 0) else {
            return Ok(Landing::Done);
        };
        if !is_ours_alone(through.flat.file())? {
            return Ok(Landing::InUse);
        }
        self.refresh(ino)?;
        let size = self.inode(ino)?.face.size;
        let Some(through) = self.passing.through(ino) else { return Ok(Landing::Done) };
        let (flat, generation) = (Arc::clone(&through.flat), through.generation);
        let runs = runs(flat.file(), size)?;
        let epoch = self.upper.epoch();
        if size < FLAT_FROM {
            let length = runs.iter().map(|run| run.end - run.start).sum();
            if length > 0 {
                let room = self.upper.reserve(length)?;
                let mut at = room.at;
                let extents = runs.into_iter().map(|run| {
                    let source = Source::Backing(Arc::clone(&room.backing));
                    let length = run.end - run.start;
                    let extent = Extent { start: run.start, length, source, at, epoch };
                    at += length;
                    extent
                });
                let extents = extents.collect();
                return Ok(Landing::Move { flat, extents, generation });
            }
            self.passing.forget(ino);
            self.set_body(ino, Extents::default(), None)?;
            return Ok(Landing::Done);
        }
        self.passing.forget(ino);
        self.set_body(ino, extents_of(runs, &flat, epoch), Some((flat, epoch)))?;
        Ok(Landing::Done)
    }

    /// The bytes that `flat` had are in the log: they are those of `ino`, unless somebody
    /// had it open meanwhile, or its number is another file's by now.
    fn landed_in_log(
        &mut self,
        ino: Ino,
        flat: &Arc<Backing>,
        generation: u64,
        extents: Extents,
    ) -> Answer<()> {
        match self.passing.files.get(&ino) {
            Some(Opened { count: 0, through: Some(through) })
                if through.generation == generation && Arc::ptr_eq(&through.flat, flat) => {}
            _ => {
                self.wait_to_land(ino);
                return Ok(());
            }
        }
        self.passing.forget(ino);
        self.set_body(ino, extents, None)
    }

    fn set_body(
        &mut self,
        ino: Ino,
        extents: Extents,
        flat: Option<(Arc<Backing>, u64)>,
    ) -> Answer<()> {
        match &mut self.inode_mut(ino)?.matter {
            Matter::File(Some(body)) => {
                body.extents = Arc::new(extents);
                body.flat = flat;
                Ok(())
            }
            _ => Err(Fault::Invalid),
        }
    }

    /// Gives `ino` bytes of its own, and leaves the flat file to those who use it.
    fn part(&mut self, ino: Ino) -> io::Result<()> {
        self.refresh(ino)?;
        let size = self.inode(ino)?.face.size;
        let Some(flat) = self.passing.forget(ino) else { return Ok(()) };
        let copy = self.upper.flat_for_copy()?;
        let extents = copied(&flat, size, &copy)?;
        Ok(self.set_body(ino, extents, None)?)
    }

    /// Notes how the files that are passed through are at the mark, with `copies` of their
    /// bytes: no request will say that one is written to.
    pub(super) fn keep_through(&mut self, mut copies: Copies) {
        let files = self.passing.files.iter();
        let files = files.filter(|(_, opened)| opened.through.is_some());
        for ino in files.map(|(ino, _)| *ino).collect::<Vec<_>>() {
            let copy = copies.remove(&ino);
            let (Some(extents), Ok(inode)) = (copy, self.inode(ino)) else {
                // Opened this moment, or there is no room.
                self.recorder.lose("an open file could not be copied".to_owned());
                continue;
            };
            let body = Some(Box::new(Body::new(extents, Whole::Unknown)));
            let image = Image { face: inode.face, xattrs: inode.xattrs.clone(), body };
            let touch = Touch { is_event: true, image: Some(Box::new(image)) };
            self.recorder.nodes.insert(ino, touch);
        }
    }

    /// What lseek(2) looks for in `ino`, which is passed through and `size` bytes long.
    pub(super) fn seek_through(&self, ino: Ino, offset: u64, size: u64, what: Seek) -> Answer<u64> {
        let flat = self.passing.flat(ino).ok_or(Fault::Invalid)?;
        let to = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        match (rustix::fs::seek(flat.file(), to), what) {
            (Ok(found), Seek::Hole) => Ok(found.min(size)),
            (Ok(found), Seek::Data) if found < size => Ok(found),
            (Ok(_) | Err(Errno::NXIO), _) => Err(Fault::NoOffset),
            (Err(error), _) => Err(io::Error::from(error).into()),
        }
    }
}

/// All of a file as a flat file has it.
fn whole(flat: &Arc<Backing>, size: u64) -> Extents {
    extents_of(std::iter::once(0..size).collect(), flat, SEALED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::ops::NewNode;
    use crate::tree::Device;

    /// Makes `ino` a file that is passed through, was written to and is closed.
    fn put(table: &mut Table, ino: Ino, bytes: &[u8]) -> Arc<Backing> {
        let flat = table.upper.flat().expect("a file");
        flat.write_all(bytes, 0).expect("room");
        tame(flat.file()).expect("leases");
        let size = bytes.len() as u64;
        table.touch(ino, true).and_then(|()| table.body_mut(ino).map(drop)).expect("a file");
        table.set_body(ino, whole(&flat, size), None).expect("a file");
        table.inode_mut(ino).expect("a file").face.size = size;
        let stat = rustix::fs::fstat(flat.file()).expect("an open file");
        let (seen, floor) = (time_of(&stat), now());
        let through = Through {
            flat: Arc::clone(&flat),
            id: BackingId(1),
            is_written: true,
            seen,
            floor,
            generation: 2,
            blocks: 0,
        };
        table.passing.files.insert(ino, Opened { count: 0, through: Some(through) });
        table.passing.count = 1;
        flat
    }

    #[test]
    fn bytes_on_their_way_to_the_log_are_not_those_of_the_next_file_with_the_number() {
        let overlay = Overlay::new(Vec::new(), &std::env::temp_dir()).expect("a directory");
        let new = NewNode {
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            device: Device::default(),
            target: b"",
        };
        let mut table = overlay.table();
        let ino = table.make(crate::overlay::inode::ROOT, b"file", &new).expect("made");
        let first = put(&mut table, ino, b"first");
        let landing = table.land(ino).expect("room");
        let Landing::Move { flat, extents, generation } = landing else { panic!("kept") };
        assert!(Arc::ptr_eq(&flat, &first));
        // The file goes meanwhile, and another one comes.
        table.passing.forget(ino);
        let second = put(&mut table, ino, b"other");
        let extents = Extents::from_sorted(extents.into_iter());
        table.landed_in_log(ino, &flat, generation, extents).expect("a file");
        assert!(table.passing.flat(ino).is_some_and(|now| Arc::ptr_eq(now, &second)));
        drop(table);
        let mut bytes = [0; 5];
        assert_eq!(overlay.op_read(ino, 0, &mut bytes).expect("readable"), 5);
        assert_eq!(&bytes, b"other");
    }
}
