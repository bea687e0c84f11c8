//! Sparse files, in the four ways GNU tar has written them: its old header, and
//! the PAX formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").

use crate::layer::error::Fault;
use crate::layer::header::BLOCK;
use crate::layer::index::Extent;

use super::fields;
use super::fields::Block;
use super::pax::Records;
use super::pax::decimal;

/// Regions of one file that hold bytes: offset in the file and length.
pub(super) type Map = Vec<(u64, u64)>;

/// More regions than any real file has; keeps a hostile map from taking all memory.
const MAX_REGIONS: usize = 1 << 20;

/// Where the old header has its regions, and the size of the file with its holes.
const OLD_REGIONS: std::ops::Range<usize> = 386..482;
const OLD_EXTENDED: usize = 482;
const OLD_SIZE: std::ops::Range<usize> = 483..495;
/// The same in each extension block.
const MORE_REGIONS: std::ops::Range<usize> = 0..504;
const MORE_EXTENDED: usize = 504;

/// What the extended header says about a sparse file.
pub(super) enum Announced {
    /// The file isn't sparse.
    No,
    /// Formats 0.0 and 0.1: the map is in the extended header.
    Map(Map),
    /// Format 1.0: the map stands in front of the content.
    InContent,
}

/// Looks for a sparse file in `records`.
pub(super) fn announced(records: &mut Records) -> Result<Announced, Fault> {
    match (records.number("GNU.sparse.major")?, records.number("GNU.sparse.minor")?) {
        (Some(1), Some(0)) => return Ok(Announced::InContent),
        (None | Some(0), None | Some(0 | 1)) => {}
        _ => return Err(Fault::SparseMap),
    }
    if let Some(text) = records.get("GNU.sparse.map") {
        let numbers: Result<Vec<_>, _> =
            text.split(|&byte| byte == b',').map(|text| decimal(text, "GNU.sparse.map")).collect();
        return pairs(&numbers?).map(Announced::Map);
    }
    if records.sparse.is_empty() && records.get("GNU.sparse.size").is_none() {
        return Ok(Announced::No);
    }
    Ok(Announced::Map(std::mem::take(&mut records.sparse)))
}

fn pairs(numbers: &[u64]) -> Result<Map, Fault> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > MAX_REGIONS {
        return Err(Fault::SparseMap);
    }
    Ok(pairs.iter().map(|&[offset, length]| (offset, length)).collect())
}

/// The map of format 1.0, taken block by block: lines with the number of
/// regions, then offset and length of each.
#[derive(Default)]
pub(super) struct MapReader {
    line: Vec<u8>,
    numbers: Vec<u64>,
}

impl MapReader {
    /// Takes one more block; gives the map once it is complete.
    pub(super) fn take(&mut self, block: &Block) -> Result<Option<Map>, Fault> {
        for &byte in block {
            if byte != b'\n' {
                // No number is longer than that.
                if self.line.len() >= 20 {
                    return Err(Fault::SparseMap);
                }
                self.line.push(byte);
                continue;
            }
            self.numbers.push(decimal(&self.line, "the sparse map")?);
            self.line.clear();
            let wanted = usize::try_from(self.numbers[0]).unwrap_or(usize::MAX);
            if wanted > MAX_REGIONS {
                return Err(Fault::SparseMap);
            }
            if self.numbers.len() == 1 + 2 * wanted {
                return pairs(&self.numbers[1..]).map(Some);
            }
        }
        Ok(None)
    }
}

/// The part of the map that the old header holds, and whether a block follows
/// that holds more.
pub(super) fn old_header(block: &Block) -> Result<(Map, bool), Fault> {
    let mut map = Map::new();
    regions(&block[OLD_REGIONS], &mut map)?;
    Ok((map, block[OLD_EXTENDED] != 0))
}

/// Size of the file that the old header describes, holes included.
pub(super) fn old_size(block: &Block) -> Result<u64, Fault> {
    fields::unsigned(&block[OLD_SIZE], "realsize")
}

/// Takes an extension block; whether one more follows.
pub(super) fn old_extension(block: &Block, map: &mut Map) -> Result<bool, Fault> {
    regions(&block[MORE_REGIONS], map)?;
    Ok(block[MORE_EXTENDED] != 0)
}

fn regions(bytes: &[u8], map: &mut Map) -> Result<(), Fault> {
    for region in bytes.chunks_exact(24) {
        if region[0] == 0 {
            break;
        }
        let offset = fields::unsigned(&region[..12], "offset")?;
        let length = fields::unsigned(&region[12..], "numbytes")?;
        map.push((offset, length));
    }
    if map.len() > MAX_REGIONS { Err(Fault::SparseMap) } else { Ok(()) }
}

/// Checks `map` against the size of the file and the `stored` bytes that begin at
/// `position` of the tar: in order, without overlap, and every stored byte used.
pub(super) fn extents(
    map: &Map,
    size: u64,
    stored: u64,
    position: u64,
) -> Result<Vec<Extent>, Fault> {
    let mut extents = Vec::with_capacity(map.len());
    let (mut end, mut used) = (0_u64, 0_u64);
    for &(offset, length) in map {
        let region_end = offset.checked_add(length).ok_or(Fault::SparseMap)?;
        if offset < end || region_end > size {
            return Err(Fault::SparseMap);
        }
        end = region_end;
        if length == 0 {
            continue;
        }
        // GNU tar starts each region on a block of its own, others pack them: only
        // where both agree is it certain where the bytes are.
        if used % BLOCK as u64 != 0 {
            return Err(Fault::SparseMap);
        }
        let blob_offset = position.checked_add(used).ok_or(Fault::SparseMap)?;
        extents.push(Extent { file_offset: offset, blob_offset, length });
        used += length;
    }
    if used == stored { Ok(extents) } else { Err(Fault::SparseMap) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_contradict_the_file_are_refused() {
        let good = extents(&vec![(0, 512), (4096, 100)], 5000, 612, 1024);
        let place = |file_offset, blob_offset, length| Extent { file_offset, blob_offset, length };
        assert_eq!(good, Ok(vec![place(0, 1024, 512), place(4096, 1536, 100)]));
        assert_eq!(extents(&vec![(5000, 0)], 5000, 0, 0), Ok(vec![]));
        for (map, stored) in [
            (vec![(0, 512), (256, 512)], 1024),
            (vec![(4096, 512), (0, 512)], 1024),
            (vec![(4900, 101)], 101),
            (vec![(u64::MAX, 2)], 2),
            (vec![(0, 512)], 511),
            (vec![(0, 512)], 1024),
            // Packed, or each region on a block of its own? Nobody can tell.
            (vec![(0, 100), (4096, 100)], 200),
        ] {
            assert_eq!(extents(&map, 5000, stored, 0), Err(Fault::SparseMap), "{map:?}");
        }
    }

    #[test]
    fn a_map_in_the_content_may_span_blocks_and_must_be_numbers() {
        let mut text = b"100\n".to_vec();
        for at in 0..100_u64 {
            text.extend_from_slice(format!("{}\n512\n", at * 1024).as_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let (blocks, _) = text.as_chunks::<BLOCK>();
        let mut reader = MapReader::default();
        let (last, before) = blocks.split_last().expect("several blocks");
        for block in before {
            assert_eq!(reader.take(block), Ok(None));
        }
        let map = reader.take(last).expect("numbers").expect("complete");
        assert_eq!((map.len(), map[99]), (100, (99 * 1024, 512)));
        for text in ["x\n", "-1\n", "99999999\n", "111111111111111111111\n"] {
            let mut block = [0; BLOCK];
            block[..text.len()].copy_from_slice(text.as_bytes());
            assert!(MapReader::default().take(&block).is_err(), "{text:?}");
        }
    }
}
