//! A frame: the records of one put, checked as a whole.
//!
//! ```text
//! magic    8   "ydkrREC1"; another format gets another magic
//! length   4   bytes of the body
//! checksum 4   CRC-32 of length and body
//! body         for each record:
//!                length of the bucket's name (u8), name,
//!                key (32), length of the value (u32), value
//! ```
//!
//! Numbers are little-endian. A spool file is one frame; the log is frames end to
//! end. A reader of the log that meets anything else searches the next magic, so
//! a torn append or a damaged sector costs only the records in it.

use crate::key::Key;

const MAGIC: &[u8; 8] = b"ydkrREC1";
pub(crate) const HEADER: usize = 16;

/// Highest length of a body: a put of more is a mistake of the caller, a frame
/// that claims more is damaged.
pub(crate) const MAX_BODY: usize = 16 << 20;

/// Highest length of a frame.
pub(crate) const MAX_FRAME: usize = HEADER + MAX_BODY;

/// One record inside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    /// Versioned name; possibly one only a newer program knows.
    pub(crate) bucket: &'a str,
    pub(crate) key: Key,
    pub(crate) value: &'a [u8],
    /// Where the value starts in the bytes the frame was read from.
    pub(crate) value_offset: usize,
}

/// Encodes the records of one put. `Err` with the size when they are too many.
pub(crate) fn encode<'a>(
    records: impl Iterator<Item = (&'a str, &'a Key, &'a [u8])>,
) -> Result<Vec<u8>, usize> {
    let mut frame = Vec::with_capacity(512);
    frame.extend_from_slice(MAGIC);
    frame.extend_from_slice(&[0; 8]);
    for (bucket, key, value) in records {
        let name_length = u8::try_from(bucket.len()).expect("bucket names are short constants");
        frame.push(name_length);
        frame.extend_from_slice(bucket.as_bytes());
        frame.extend_from_slice(key.as_bytes());
        // Too long a value is caught below, whatever is written here.
        frame.extend_from_slice(&(value.len() as u32).to_le_bytes());
        frame.extend_from_slice(value);
    }
    let body = frame.len() - HEADER;
    if body > MAX_BODY {
        return Err(body);
    }
    frame[8..12].copy_from_slice(&(body as u32).to_le_bytes());
    let sum = checksum(&frame[8..12], &frame[HEADER..]);
    frame[12..16].copy_from_slice(&sum.to_le_bytes());
    Ok(frame)
}

fn checksum(length: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(length);
    crc.update(body);
    crc.finalize()
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq)]
pub(crate) enum Head<'a> {
    /// A whole frame of this length.
    Frame(Vec<Item<'a>>, usize),
    /// The beginning of one: more bytes may complete it.
    Incomplete,
    /// No frame.
    Damaged(&'static str),
}

/// Reads one frame at the beginning of `bytes`. Never panics.
pub(crate) fn head(bytes: &[u8]) -> Head<'_> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Head::Damaged("no record frame");
    }
    let Some((header, rest)) = bytes.split_at_checked(HEADER) else {
        return Head::Incomplete;
    };
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let length = word(8) as usize;
    if length > MAX_BODY {
        return Head::Damaged("impossible length");
    }
    let Some(body) = rest.get(..length) else {
        return Head::Incomplete;
    };
    if checksum(&header[8..12], body) != word(12) {
        return Head::Damaged("wrong checksum");
    }
    match items(body) {
        Some(items) => Head::Frame(items, HEADER + length),
        None => Head::Damaged("malformed record"),
    }
}

fn items(body: &[u8]) -> Option<Vec<Item<'_>>> {
    let mut items = Vec::new();
    let mut rest = body;
    while let Some((&name_length, tail)) = rest.split_first() {
        let (name, tail) = tail.split_at_checked(usize::from(name_length))?;
        let (key, tail) = tail.split_first_chunk::<32>()?;
        let (value_length, tail) = tail.split_first_chunk::<4>()?;
        let value_length = usize::try_from(u32::from_le_bytes(*value_length)).ok()?;
        let value_offset = HEADER + (body.len() - tail.len());
        let (value, tail) = tail.split_at_checked(value_length)?;
        items.push(Item {
            bucket: std::str::from_utf8(name).ok()?,
            key: Key::from_bytes(*key),
            value,
            value_offset,
        });
        rest = tail;
    }
    Some(items)
}

/// Walks the frames of a log.
pub(crate) struct Frames<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes that belonged to no frame.
    pub(crate) skipped: usize,
}

impl<'a> Frames<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, skipped: 0 }
    }

    /// The next whole frame and where it starts; `None` at the end.
    pub(crate) fn next_frame(&mut self) -> Option<(usize, Vec<Item<'a>>)> {
        let bytes = self.bytes;
        let mut incomplete = None;
        let mut at = self.at;
        while at < bytes.len() {
            match head(&bytes[at..]) {
                Head::Frame(items, length) => {
                    self.skipped += at - self.at;
                    self.at = at + length;
                    return Some((at, items));
                }
                // It may be completed yet, unless a whole frame follows: then
                // its writer is dead.
                Head::Incomplete => incomplete = incomplete.or(Some(at)),
                Head::Damaged(_) => {}
            }
            at = find(bytes, at + 1);
        }
        let end = incomplete.unwrap_or(bytes.len());
        self.skipped += end - self.at;
        self.at = end;
        None
    }

    /// Where reading should go on when the log has grown: behind everything read
    /// or skipped, before a frame that is not complete.
    pub(crate) fn position(&self) -> usize {
        self.at
    }
}

/// Where at or behind `from` the next magic, or at the very end its beginning,
/// stands; the length of `bytes` when there is none.
fn find(bytes: &[u8], from: usize) -> usize {
    (from..bytes.len())
        .find(|&at| {
            let known = (bytes.len() - at).min(MAGIC.len());
            bytes[at..at + known] == MAGIC[..known]
        })
        .unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(values: &[&[u8]]) -> Vec<u8> {
        let keys: Vec<Key> = (0..values.len()).map(|i| Key::from_bytes([i as u8; 32])).collect();
        encode(values.iter().zip(&keys).map(|(value, key)| ("steps.v1", key, *value))).unwrap()
    }

    fn values(log: &[u8]) -> (Vec<Vec<u8>>, usize, usize) {
        let mut frames = Frames::new(log);
        let mut found = Vec::new();
        while let Some((start, items)) = frames.next_frame() {
            for item in items {
                let offset = start + item.value_offset;
                assert_eq!(&log[offset..offset + item.value.len()], item.value);
                found.push(item.value.to_vec());
            }
        }
        (found, frames.skipped, frames.position())
    }

    #[test]
    fn damage_costs_only_the_frames_it_touches() {
        let (a, b, c) = (frame(&[b"one", b""]), frame(&[b"two"]), frame(&[b"three"]));
        let log = [a.clone(), b.clone(), c].concat();
        let all = vec![b"one".to_vec(), vec![], b"two".to_vec(), b"three".to_vec()];
        assert_eq!(values(&log), (all.clone(), 0, log.len()));
        for at in a.len()..a.len() + b.len() {
            let mut damaged = log.clone();
            damaged[at] ^= 0x10;
            let (found, skipped, _) = values(&damaged);
            assert_eq!(found, [&all[..2], &all[3..]].concat(), "byte {at}");
            assert_eq!(skipped, b.len());
        }
        // A torn append followed by whole ones, and zeroes as after a power loss.
        for torn in 1..b.len() {
            let log = [&a[..], &b[..torn], &[0; 100], &b].concat();
            let (found, skipped, end) = values(&log);
            assert_eq!((found.len(), skipped, end), (3, torn + 100, log.len()), "{torn}");
        }
    }

    #[test]
    fn an_incomplete_end_is_read_when_it_is_complete() {
        let (a, b) = (frame(&[b"one"]), frame(&[b"two"]));
        for cut in 1..b.len() {
            let log = [&a[..], &b[..cut]].concat();
            let (found, skipped, position) = values(&log);
            assert_eq!((found.len(), skipped, position), (1, 0, a.len()), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = head(&bytes);
            let prefixed = [&MAGIC[..], &bytes].concat();
            let _ = head(&prefixed);
            let _ = values(&prefixed);
            let _ = items(&bytes);
        }
    }

    #[test]
    fn an_oversized_put_is_refused() {
        let key = Key::from_bytes([0; 32]);
        let large = vec![0; MAX_BODY + 1];
        assert!(encode(std::iter::once(("steps.v1", &key, &large[..]))).is_err());
    }
}
