//! Answers to requests about the bytes of files.
//!
//! The lock is held to look up extents and to put new ones in, never while bytes
//! are read or written.

use std::ops::Range;
use std::sync::Arc;

use rustix::fs::StatVfs;

use crate::overlay::Overlay;
use crate::overlay::errno::Answer;
use crate::overlay::errno::Fault;
use crate::overlay::extent::Backing;
use crate::overlay::extent::Extent;
use crate::overlay::extent::SEALED;
use crate::overlay::extent::Source;
use crate::overlay::inode::Ino;
use crate::overlay::inode::Matter;
use crate::overlay::inode::now;
use crate::overlay::table::Table;
use crate::overlay::upper::FLAT_FROM;
use crate::tree::Timestamp;

/// Longest file: offsets are signed.
const MAX_SIZE: u64 = i64::MAX as u64;
/// Most bytes that one copy answers for: the count of the reply has 32 bits, and
/// the kernel counts in pages.
const MAX_COPY: u64 = 0xffff_f000;

/// Seconds that the kernel keeps a dirty page at most before it writes it (`vm.dirty_expire_centisecs`
/// and `vm.dirty_writeback_centisecs`, as they come): what arrives later was changed later.
const WRITE_BACK: i64 = 35;

/// What fallocate(2) does with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::overlay) enum Space {
    /// Makes the file long enough.
    Extend,
    /// Promises space and changes nothing that can be seen.
    Keep,
    /// Makes it a hole, within the file.
    Punch,
    /// Makes it zeros, and the file long enough.
    Zero,
    /// Makes it zeros, within the file.
    ZeroKeep,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::overlay) enum Seek {
    Data,
    Hole,
}

/// Where the bytes of a write go.
struct Plan {
    backing: Arc<Backing>,
    at: u64,
    epoch: u64,
    /// How often others came to show bytes of the file, when this was made.
    shares: u64,
}

fn checked_range(offset: u64, length: u64) -> Answer<Range<u64>> {
    let end = offset.checked_add(length).filter(|&end| end <= MAX_SIZE);
    end.map(|end| offset..end).ok_or(Fault::TooLarge)
}

impl Overlay {
    /// `READ`: fills `buffer` from `offset` on; short only at the end of the file.
    pub(in crate::overlay) fn op_read(
        &self,
        ino: Ino,
        offset: u64,
        buffer: &mut [u8],
    ) -> Answer<usize> {
        let (extents, size) = {
            let mut table = self.table();
            let (extents, size) = table.extents(ino)?;
            (Arc::clone(extents), size)
        };
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        extents.read(&mut buffer[..count], offset)?;
        Ok(count)
    }

    /// `WRITE` of a call: all of `bytes` at `offset`.
    pub(in crate::overlay) fn op_write(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Answer<()> {
        self.write(ino, offset, bytes, true)
    }

    /// `WRITE` out of the page cache: what was written through a mapping, some time
    /// ago. It takes no capability away, as it wouldn't on a disk: one that is there
    /// may have been set since.
    pub(in crate::overlay) fn op_write_back(
        &self,
        ino: Ino,
        offset: u64,
        bytes: &[u8],
    ) -> Answer<()> {
        self.write(ino, offset, bytes, false)
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8], is_call: bool) -> Answer<()> {
        let range = checked_range(offset, bytes.len() as u64)?;
        if range.is_empty() {
            return Ok(());
        }
        let plan = {
            let mut table = self.table();
            table.touch(ino, true)?;
            if is_call {
                table.drop_capability(ino)?;
            }
            table.plan(ino, &range)?
        };
        plan.backing.write_all(bytes, plan.at)?;
        let mut table = self.table();
        table.written(ino, &range, plan)?;
        if is_call { table.modified(ino, now()) } else { table.modified_late(ino, now()) }
    }

    /// `FALLOCATE`.
    pub(in crate::overlay) fn op_fallocate(
        &self,
        ino: Ino,
        offset: u64,
        length: u64,
        what: Space,
    ) -> Answer<()> {
        let range = checked_range(offset, length)?;
        let mut table = self.table();
        let (_, size) = table.extents(ino)?;
        if what == Space::Keep {
            return Ok(());
        }
        table.touch(ino, true)?;
        table.drop_capability(ino)?;
        if table.passing.flat(ino).is_some() {
            if what != Space::Extend {
                table.zero_through(ino, &range)?;
            }
            if matches!(what, Space::Extend | Space::Zero) {
                table.resize_through(ino, size.max(range.end))?;
            }
            return table.modified(ino, now());
        }
        let (body, face) = table.body_mut(ino)?;
        if what != Space::Extend {
            Arc::make_mut(&mut body.extents).remove(range.start..range.end.min(size));
        }
        if matches!(what, Space::Extend | Space::Zero) {
            face.size = size.max(range.end);
        }
        table.modified(ino, now())
    }

    /// `LSEEK` for data or a hole.
    pub(in crate::overlay) fn op_seek(&self, ino: Ino, offset: u64, what: Seek) -> Answer<u64> {
        let mut table = self.table();
        let (_, size) = table.extents(ino)?;
        if offset >= size {
            return Err(Fault::NoOffset);
        }
        if table.passing.flat(ino).is_some() {
            return table.seek_through(ino, offset, size, what);
        }
        let (extents, size) = table.extents(ino)?;
        match what {
            Seek::Data => {
                extents.next_data(offset).filter(|&data| data < size).ok_or(Fault::NoOffset)
            }
            Seek::Hole => Ok(extents.next_hole(offset).min(size)),
        }
    }

    /// `COPY_FILE_RANGE`: shares extents, copies no byte. Gives the number of bytes. What
    /// is passed through shares nothing: the kernel copies it.
    pub(in crate::overlay) fn op_copy(
        &self,
        (from, offset): (Ino, u64),
        (to, target): (Ino, u64),
        length: u64,
    ) -> Answer<u64> {
        let mut table = self.table();
        if table.passing.flat(from).is_some() || table.passing.flat(to).is_some() {
            return Err(Fault::Unsupported);
        }
        let (_, size) = table.extents(from)?;
        let length = length.min(size.saturating_sub(offset)).min(MAX_COPY);
        let range = checked_range(target, length)?;
        if length == 0 {
            return Ok(0);
        }
        table.extents(to)?;
        // Both are sealed by sharing, and that is no change of the source.
        let shared = match &mut table.inode_mut(from)?.matter {
            Matter::File(Some(body)) => {
                // It would be written in place, below what is shared now.
                body.flat = None;
                body.shares += 1;
                Arc::make_mut(&mut body.extents).share(&(offset..offset + length))
            }
            _ => return Err(Fault::Invalid),
        };
        table.touch(to, true)?;
        table.drop_capability(to)?;
        let (body, face) = table.body_mut(to)?;
        // The flat file may still be shown by the source, at the offsets of this file.
        body.flat = None;
        let extents = Arc::make_mut(&mut body.extents);
        extents.remove(range.clone());
        for extent in shared {
            let start = extent.start - offset + target;
            extents.insert(Extent { start, ..extent });
        }
        face.size = face.size.max(range.end);
        table.modified(to, now())?;
        Ok(length)
    }

    /// `STATFS`: of the filesystem that holds what is written.
    pub(in crate::overlay) fn op_statfs(&self) -> Answer<StatVfs> {
        // Not under the lock: the filesystem below may be slow.
        let scratch =
            rustix::io::dup(self.table().upper.scratch()).map_err(std::io::Error::from)?;
        Ok(rustix::fs::fstatvfs(&scratch).map_err(std::io::Error::from)?)
    }
}

impl Table {
    /// Finds a place for the bytes of `range` of the file `ino`.
    fn plan(&mut self, ino: Ino, range: &Range<u64>) -> Answer<Plan> {
        let epoch = self.upper.epoch();
        let shares = self.body_mut(ino)?.0.shares;
        if let Some(flat) = self.passing.flat(ino) {
            let (backing, at) = (Arc::clone(flat), range.start);
            return Ok(Plan { backing, at, epoch: SEALED, shares });
        }
        let (body, face) = self.body_mut(ino)?;
        if let Some((flat, born)) = &body.flat
            && *born == epoch
        {
            return Ok(Plan { backing: Arc::clone(flat), at: range.start, epoch, shares });
        }
        if let Some(extent) = body.extents.covering(range)
            && extent.epoch == epoch
            && let Source::Backing(backing) = &extent.source
        {
            let at = extent.at + (range.start - extent.start);
            return Ok(Plan { backing: Arc::clone(backing), at, epoch, shares });
        }
        if range.end.max(face.size) > FLAT_FROM {
            // Without a file handle to spare, the log will do.
            if let Ok(flat) = self.upper.flat() {
                let (body, _) = self.body_mut(ino)?;
                body.flat = Some((Arc::clone(&flat), epoch));
                return Ok(Plan { backing: flat, at: range.start, epoch, shares });
            }
        }
        let room = self.upper.reserve(range.end - range.start)?;
        Ok(Plan { backing: room.backing, at: room.at, epoch, shares })
    }

    /// Lets the file `ino` show what was written as planned to `range` of it.
    fn written(&mut self, ino: Ino, range: &Range<u64>, plan: Plan) -> Answer<()> {
        let (body, face) = self.body_mut(ino)?;
        // Was the file copied meanwhile, the copy may show the place that was written to.
        let epoch = if body.shares == plan.shares { plan.epoch } else { SEALED };
        Arc::make_mut(&mut body.extents).insert(Extent {
            start: range.start,
            length: range.end - range.start,
            source: Source::Backing(plan.backing),
            at: plan.at,
            epoch,
        });
        face.size = face.size.max(range.end);
        Ok(())
    }

    /// Makes the file `ino` `size` bytes long. The node must have been touched.
    pub(in crate::overlay) fn resize(&mut self, ino: Ino, size: u64) -> Answer<()> {
        if size > MAX_SIZE {
            return Err(Fault::TooLarge);
        }
        if self.resize_through(ino, size)? {
            return Ok(());
        }
        let (body, face) = self.body_mut(ino)?;
        if size < face.size {
            Arc::make_mut(&mut body.extents).remove(size..u64::MAX);
        }
        face.size = size;
        Ok(())
    }

    /// The bytes of `ino` were changed.
    fn modified(&mut self, ino: Ino, now: Timestamp) -> Answer<()> {
        let inode = self.inode_mut(ino)?;
        inode.set_mtime(now, None);
        inode.set_ctime(now);
        self.restamp(ino)
    }

    /// Bytes that were changed through a mapping arrived. If a program set the time
    /// shortly before, they were changed earlier than that, most likely, and on a disk
    /// the time would have stayed.
    fn modified_late(&mut self, ino: Ino, now: Timestamp) -> Answer<()> {
        let set = self.inode(ino)?.times().mtime_set;
        if set.is_some_and(|set| now.seconds - set.seconds <= WRITE_BACK) {
            self.inode_mut(ino)?.set_ctime(now);
            return Ok(());
        }
        self.modified(ino, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::inode::ROOT;
    use crate::overlay::ops::NewNode;
    use crate::tree::Device;
    use crate::tree::Kind;

    fn file(overlay: &Overlay, name: &[u8], bytes: &[u8]) -> Ino {
        let (kind, device) = (Kind::File, Device::default());
        let new = NewNode { kind, mode: 0o644, uid: 0, gid: 0, device, target: &[] };
        let ino = overlay.op_make(ROOT, name, &new).expect("a file").ino;
        overlay.op_write(ino, 0, bytes).expect("room");
        ino
    }

    fn bytes(overlay: &Overlay, ino: Ino) -> Vec<u8> {
        let mut buffer = vec![0; 3 << 20];
        let count = overlay.op_read(ino, 0, &mut buffer).expect("readable");
        buffer.truncate(count);
        buffer
    }

    /// Both ways to write in place: into the log and into a flat file. What happens
    /// between a write and the next one must not let a copy see the latter.
    fn write_around(between: impl Fn(&Overlay, Ino)) {
        for size in [4096, 2 << 20] {
            let overlay = Overlay::new(Vec::new(), &std::env::temp_dir()).expect("a directory");
            let (from, to) = (file(&overlay, b"a", &vec![1; size]), file(&overlay, b"b", b""));
            let range = 0..size as u64;
            let plan = overlay.table().plan(from, &range).expect("room");
            overlay.op_copy((from, 0), (to, 0), size as u64).expect("copied");
            plan.backing.write_all(&vec![2; size], plan.at).expect("room");
            between(&overlay, from);
            overlay.table().written(from, &range, plan).expect("a file");
            let copied = bytes(&overlay, to);
            overlay.op_write(from, 0, &vec![3; size]).expect("room");
            assert_eq!(bytes(&overlay, from), vec![3; size]);
            assert!(bytes(&overlay, to) == copied, "the copy of {size} bytes followed");
        }
    }

    #[test]
    fn a_copy_made_during_a_write_does_not_follow_the_next_one() {
        write_around(|_, _| {});
    }

    #[test]
    fn nor_does_it_if_the_file_lost_those_bytes_meanwhile() {
        write_around(|overlay, from| {
            overlay.table().resize(from, 0).expect("a file");
        });
    }
}
