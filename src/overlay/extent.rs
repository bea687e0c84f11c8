//! Where the bytes of a file are: sorted extents, with holes between them.
//!
//! Bytes never move when a file changes: a write adds an extent, a copy shares
//! extents, a truncation drops some. What no extent covers reads as zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::upper::Ticket;
use crate::tree::Content;
use crate::tree::read_exact_at;

/// Epoch of extents that are never overwritten in place.
pub(super) const SEALED: u64 = 0;

/// A number that no other backing of this process ever had. Addresses won't do:
/// they are reused, and an identity may outlive what it was made of.
fn fresh_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A file of ours that holds bytes of many files or of one: a layer blob, a log, a
/// flat file.
#[derive(Debug)]
pub(super) struct Backing {
    id: u64,
    file: Arc<File>,
    /// What a flat file has of the files that may be open.
    _ticket: Option<Ticket>,
}

impl Backing {
    pub(super) fn new(file: Arc<File>) -> Arc<Self> {
        Arc::new(Self { id: fresh_id(), file, _ticket: None })
    }

    /// One that gives `ticket` back when nobody shows its bytes any more.
    pub(super) fn with_ticket(file: Arc<File>, ticket: Ticket) -> Arc<Self> {
        Arc::new(Self { id: fresh_id(), file, _ticket: Some(ticket) })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn write_all(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
}

/// Whose bytes an extent shows.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A range of one of our files.
    Backing(Arc<Backing>),
    /// A range of a content that somebody handed in; the number is its identity.
    Foreign(u64, Content),
}

impl Source {
    pub(super) fn foreign(content: Content) -> Self {
        Self::Foreign(fresh_id(), content)
    }

    fn id(&self) -> u64 {
        match self {
            Self::Backing(backing) => backing.id,
            Self::Foreign(id, _) => *id,
        }
    }

    fn read_exact(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Self::Backing(backing) => backing.file.read_exact_at(buffer, at),
            Self::Foreign(_, content) => read_exact_at(content, buffer, at),
        }
    }
}

/// A run of a file's bytes.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// First byte within the file.
    pub(super) start: u64,
    /// Number of bytes, at least one.
    pub(super) length: u64,
    /// Where they are.
    pub(super) source: Source,
    /// First byte within the source.
    pub(super) at: u64,
    /// When they were written; see [`Upper`](super::upper::Upper).
    pub(super) epoch: u64,
}

impl Extent {
    pub(super) fn end(&self) -> u64 {
        self.start + self.length
    }

    /// The part of it within `range`, which it must overlap.
    fn cut(&self, range: &Range<u64>) -> Self {
        let start = self.start.max(range.start);
        let end = self.end().min(range.end);
        Self {
            start,
            length: end - start,
            source: self.source.clone(),
            at: self.at + (start - self.start),
            epoch: self.epoch,
        }
    }

    /// Whether `next` only continues what `self` begins.
    fn continues(&self, next: &Self) -> bool {
        self.end() == next.start
            && self.at + self.length == next.at
            && self.epoch == next.epoch
            && self.source.id() == next.source.id()
    }
}

/// The extents of one file: in order, none empty, none overlapping.
#[derive(Clone, Debug, Default)]
pub(super) struct Extents(Vec<Extent>);

impl Extents {
    /// Takes extents as a layer index lists them. Foreign bytes may be wrong: an
    /// extent that overlaps its predecessor or overflows is dropped, so its range
    /// reads as zeros and the digest of the content tells.
    pub(super) fn from_sorted(extents: impl Iterator<Item = Extent>) -> Self {
        let mut list: Vec<Extent> = Vec::new();
        for extent in extents {
            let fits = extent.start.checked_add(extent.length).is_some()
                && extent.at.checked_add(extent.length).is_some();
            if fits
                && extent.length > 0
                && list.last().is_none_or(|last| last.end() <= extent.start)
            {
                list.push(extent);
            }
        }
        Self(list)
    }

    /// Those that overlap `range`, as indexes.
    fn overlapping(&self, range: &Range<u64>) -> Range<usize> {
        let first = self.0.partition_point(|extent| extent.end() <= range.start);
        let count = self.0[first..].partition_point(|extent| extent.start < range.end);
        first..first + count
    }

    /// The one extent that covers all of `range`.
    pub(super) fn covering(&self, range: &Range<u64>) -> Option<&Extent> {
        let index = self.0.partition_point(|extent| extent.end() <= range.start);
        self.0.get(index).filter(|extent| extent.start <= range.start && extent.end() >= range.end)
    }

    /// Makes `range` a hole.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.start < range.end {
            self.replace(range, None);
        }
    }

    /// Puts `extent` over whatever is there.
    pub(super) fn insert(&mut self, extent: Extent) {
        if extent.length > 0 {
            self.replace(extent.start..extent.end(), Some(extent));
        }
    }

    fn replace(&mut self, range: Range<u64>, new: Option<Extent>) {
        let hit = self.overlapping(&range);
        let mut parts: [Option<Extent>; 3] = [None, new, None];
        if let Some(first) = self.0.get(hit.start).filter(|_| !hit.is_empty())
            && first.start < range.start
        {
            parts[0] = Some(first.cut(&(first.start..range.start)));
        }
        if let Some(last) = self.0.get(hit.end.wrapping_sub(1)).filter(|_| !hit.is_empty())
            && last.end() > range.end
        {
            parts[2] = Some(last.cut(&(range.end..last.end())));
        }
        // The usual case of a file written from its start to its end: grow the last one.
        if hit.is_empty()
            && let Some(new) = &parts[1]
            && let Some(before) = hit.start.checked_sub(1).and_then(|index| self.0.get_mut(index))
            && before.continues(new)
        {
            before.length += new.length;
            self.join(hit.start - 1);
            return;
        }
        if hit.len() == 1
            && parts[0].is_none()
            && parts[2].is_none()
            && let Some(new) = parts[1].take()
        {
            self.0[hit.start] = new;
            self.join(hit.start);
            if let Some(before) = hit.start.checked_sub(1) {
                self.join(before);
            }
            return;
        }
        let start = hit.start;
        let made = parts.iter().flatten().count();
        self.0.splice(hit, parts.into_iter().flatten());
        // From behind, so that the indexes before stay right.
        for index in (start.saturating_sub(1)..start + made).rev() {
            self.join(index);
        }
    }

    /// Joins the extent at `index` with the next one if they are one run.
    fn join(&mut self, index: usize) {
        if let [one, two, ..] = &self.0[index.min(self.0.len())..]
            && one.continues(two)
        {
            let length = two.length;
            self.0[index].length += length;
            self.0.remove(index + 1);
        }
    }

    /// A copy of what `range` holds, each extent sealed.
    pub(super) fn share(&mut self, range: &Range<u64>) -> Vec<Extent> {
        let hit = self.overlapping(range);
        let mut shared = Vec::with_capacity(hit.len());
        for extent in &mut self.0[hit.clone()] {
            extent.epoch = SEALED;
            shared.push(extent.cut(range));
        }
        // What only its epoch kept apart from its neighbour is one run now.
        for index in (hit.start.saturating_sub(1)..hit.end).rev() {
            self.join(index);
        }
        shared
    }

    /// Whether they are one run of `size` bytes.
    pub(super) fn is_one_run(&self, size: u64) -> bool {
        match self.0.as_slice() {
            [] => size == 0,
            [extent] => extent.start == 0 && extent.length == size,
            _ => false,
        }
    }

    /// The holes of a file of `size` bytes that are all in `flat`, where the file has them;
    /// `None` if they aren't, or are more than `most` runs.
    pub(super) fn holes_in(
        &self,
        flat: &Arc<Backing>,
        size: u64,
        most: usize,
    ) -> Option<Vec<Range<u64>>> {
        let is_there = |extent: &Extent| {
            let is_flat = matches!(&extent.source, Source::Backing(own) if Arc::ptr_eq(own, flat));
            is_flat && extent.at == extent.start && extent.end() <= size
        };
        if self.0.len() > most || !self.0.iter().all(is_there) {
            return None;
        }
        let starts = self.0.iter().map(|extent| extent.start).chain([size]);
        let ends = std::iter::once(0).chain(self.0.iter().map(Extent::end));
        let holes = ends.zip(starts).map(|(end, start)| end..start);
        Some(holes.filter(|hole| !hole.is_empty()).collect())
    }

    /// Number of bytes that are no hole.
    pub(super) fn allocated(&self) -> u64 {
        self.0.iter().map(|extent| extent.length).sum()
    }

    /// Whether any byte may still be overwritten in place in `epoch`.
    pub(super) fn is_open_in(&self, epoch: u64) -> bool {
        self.0.iter().any(|extent| extent.epoch == epoch)
    }

    /// First byte at or after `offset` that is no hole.
    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let index = self.0.partition_point(|extent| extent.end() <= offset);
        self.0.get(index).map(|extent| extent.start.max(offset))
    }

    /// First byte at or after `offset` that is in a hole; the end of the last run
    /// if there is none.
    pub(super) fn next_hole(&self, offset: u64) -> u64 {
        let mut offset = offset;
        let first = self.0.partition_point(|extent| extent.end() <= offset);
        for extent in &self.0[first..] {
            if extent.start > offset {
                break;
            }
            offset = extent.end();
        }
        offset
    }

    /// Fills `buffer` with the bytes from `offset` on, zeros where there is a hole.
    ///
    /// # Errors
    /// Those of the sources; `UnexpectedEof` when a source is shorter than it was.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = offset..offset.saturating_add(buffer.len() as u64);
        let mut done = 0;
        for extent in &self.0[self.overlapping(&range)] {
            let from = extent.start.max(range.start);
            let to = extent.end().min(range.end);
            // Both lie within the buffer, whose length is a usize.
            let (first, last) = ((from - offset) as usize, (to - offset) as usize);
            buffer[done..first].fill(0);
            extent
                .source
                .read_exact(&mut buffer[first..last], extent.at + (from - extent.start))?;
            done = last;
        }
        buffer[done..].fill(0);
        Ok(())
    }

    /// A token of what bytes these are; see [`ReadAt::identity`](crate::tree::ReadAt::identity).
    pub(super) fn identity(&self, size: u64) -> u128 {
        if let [extent] = self.0.as_slice()
            && let Source::Foreign(_, content) = &extent.source
            && extent.start == 0
            && extent.length == size
            && content.len() == size
            && let Some(identity) = content.identity()
        {
            return identity;
        }
        let mut hasher = blake3::Hasher::new_derive_key("yadokari overlay content identity 1");
        hasher.update(&size.to_le_bytes());
        for extent in &self.0 {
            for number in [extent.start, extent.length, extent.source.id(), extent.at] {
                hasher.update(&number.to_le_bytes());
            }
        }
        let mut token = [0; 16];
        hasher.finalize_xof().fill(&mut token);
        u128::from_le_bytes(token)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(start: u64, length: u64, source: &Source, at: u64) -> Extent {
        Extent { start, length, source: source.clone(), at, epoch: 1 }
    }

    #[test]
    fn holes_of_a_flat_file_are_told_only_if_it_has_all_bytes_in_their_places() {
        let file = || Backing::new(Arc::new(tempfile::tempfile().expect("a file")));
        let flat = file();
        let source = Source::Backing(Arc::clone(&flat));
        let map = |list: &[Extent]| Extents::from_sorted(list.iter().cloned());
        let two = [extent(10, 10, &source, 10), extent(30, 5, &source, 30)];
        let holes = map(&two).holes_in(&flat, 40, 9).expect("all in it");
        assert_eq!(holes, [0..10, 20..30, 35..40]);
        let one = |hole| Some(std::iter::once(hole).collect::<Vec<Range<u64>>>());
        assert_eq!(map(&two[1..]).holes_in(&flat, 35, 9), one(0..30));
        assert_eq!(map(&[]).holes_in(&flat, 7, 9), one(0..7));
        assert_eq!(map(&two).holes_in(&flat, 40, 1), None);
        assert_eq!(map(&two).holes_in(&flat, 34, 9), None);
        assert_eq!(map(&two).holes_in(&file(), 40, 9), None);
        assert_eq!(map(&[extent(10, 10, &source, 11)]).holes_in(&flat, 40, 9), None);
    }

    proptest! {
        /// Inserting, punching and sharing do to the map what they do to plain bytes.
        #[test]
        fn an_extent_map_is_a_byte_array(
            steps in prop::collection::vec((0_u8..3, 0_u64..200, 1_u64..80, 0_u64..100), 1..60)
        ) {
            let bytes: Vec<u8> = (0..=255).map(|byte: u8| byte | 1).collect();
            let source = Source::foreign(Arc::new(bytes.clone()));
            let (mut map, mut model) = (Extents::default(), vec![0_u8; 400]);
            for (what, start, length, at) in steps {
                let (from, to) = (start as usize, (start + length) as usize);
                match what {
                    0 => {
                        map.insert(extent(start, length, &source, at));
                        model[from..to].copy_from_slice(&bytes[at as usize..(at + length) as usize]);
                    }
                    1 => {
                        map.remove(start..start + length);
                        model[from..to].fill(0);
                    }
                    _ => {
                        let target = at;
                        let shared = map.share(&(start..start + length));
                        map.remove(target..target + length);
                        for mut piece in shared {
                            piece.start = piece.start - start + target;
                            map.insert(piece);
                        }
                        model.copy_within(from..to, target as usize);
                    }
                }
                let mut read = vec![7; 400];
                map.read(&mut read, 0).unwrap();
                prop_assert_eq!(&read, &model);
                for pair in map.0.windows(2) {
                    prop_assert!(pair[0].end() <= pair[1].start);
                }
                for offset in [0, 50, 111, 399] {
                    let data = (offset..400).find(|&at| map.covering(&(at..at + 1)).is_some());
                    prop_assert_eq!(map.next_data(offset), data);
                    let hole = (offset..400).find(|&at| map.covering(&(at..at + 1)).is_none());
                    prop_assert_eq!(Some(map.next_hole(offset)), hole);
                }
            }
        }
    }

    #[test]
    fn a_file_written_in_pieces_is_one_extent() {
        let source = Source::foreign(Arc::new(vec![1; 100]));
        let mut map = Extents::default();
        for at in [0, 10, 30, 20] {
            map.insert(extent(at, 10, &source, at));
        }
        assert_eq!(map.0.len(), 1);
    }

    #[test]
    fn equal_maps_have_equal_identities_and_other_sources_do_not() {
        let (one, two) = (vec![1; 10], vec![1; 10]);
        let (one, two) = (Source::foreign(Arc::new(one)), Source::foreign(Arc::new(two)));
        let map = |source| Extents(vec![extent(0, 10, source, 0)]);
        assert_eq!(map(&one).identity(10), map(&one).identity(10));
        assert_ne!(map(&one).identity(10), map(&two).identity(10));
        assert_ne!(map(&one).identity(10), map(&one).identity(11));
    }
}
