//! Folded records: the log, which is the truth, and an index over it.
//!
//! Two indexes answer the same questions: [`rocks`] keeps one on disk, [`plain`]
//! builds one in memory from the log. The contract suite in `cache/tests.rs` runs
//! for both, and both may use one directory in turns.

pub(crate) mod log;
pub(crate) mod plain;
#[cfg(feature = "rocksdb")]
pub(crate) mod rocks;

use std::path::Path;

use crate::error::{Error, Notice};
use crate::frame::Item;
use crate::key::Key;

use log::{Log, Position};

/// Which index a cache uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    #[cfg(feature = "rocksdb")]
    Rocks,
    #[cfg_attr(all(feature = "rocksdb", not(test)), expect(dead_code, reason = "chosen by tests"))]
    Plain,
}

impl Kind {
    /// The one this program was compiled for.
    pub(crate) const fn compiled() -> Self {
        #[cfg(feature = "rocksdb")]
        return Self::Rocks;
        #[cfg(not(feature = "rocksdb"))]
        return Self::Plain;
    }

    /// Makes the index of a cache directory; opens nothing yet.
    pub(crate) fn index(self, cache: &Path) -> Box<dyn Index> {
        match self {
            #[cfg(feature = "rocksdb")]
            Self::Rocks => Box::new(rocks::Rocks::new(cache)),
            Self::Plain => Box::new(plain::Plain::new(cache)),
        }
    }
}

/// An index over the log. Whatever cannot be read is a miss and a notice.
pub(crate) trait Index: Send {
    /// Makes [`get`](Self::get) see everything folded before this call. Must
    /// have been called once before the first `get`.
    fn refresh(&mut self, notices: &mut Vec<Notice>);

    /// The value of an [`index_key`].
    fn get(&mut self, index_key: &[u8], notices: &mut Vec<Notice>) -> Option<Vec<u8>>;

    /// Brings what is on disk up to the end of the log, durably. The caller
    /// holds the fold lock. A damaged index is set aside and made anew.
    fn extend(&mut self, log: &Log, notices: &mut Vec<Notice>) -> Result<(), Error>;

    /// The log was replaced by one that says the same in fewer bytes and ends at
    /// `end`. The caller holds the fold lock and has extended to the end of the
    /// old one. Best effort: without it the next `extend` starts over.
    fn moved(&mut self, end: Position);

    /// Puts the house in order after one or more [`extend`](Self::extend): takes half a
    /// second at most, for somebody patient as long as it takes. Delays no reader.
    fn settle(&mut self, patient: bool);
}

/// How a record is named in an index: bucket, `/`, key. A bucket's name carries
/// the version of its records, so a new format needs no migration.
pub(crate) fn index_key(bucket: &str, key: &Key) -> Vec<u8> {
    let mut name = Vec::with_capacity(bucket.len() + 33);
    name.extend_from_slice(bucket.as_bytes());
    name.push(b'/');
    name.extend_from_slice(key.as_bytes());
    name
}

/// Before the name of a bucket: the record under this key is taken back.
const TAKEN_BACK: char = '-';

/// What an item of a frame does to the record under an [`index_key`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect<'a> {
    /// There is a record now, in the place of another.
    Put(&'a [u8]),
    /// The record with this hash, and no other, is there no more. Who takes a
    /// record back can't undo what somebody else has put meanwhile.
    TakeBack(Hash),
    /// Nothing that this program understands.
    Nothing,
}

/// BLAKE3 of a record.
pub(crate) type Hash = [u8; 32];

/// See [`Effect::TakeBack`].
pub(crate) fn hash(value: &[u8]) -> Hash {
    *blake3::hash(value).as_bytes()
}

/// Which record an item is about, as an [`index_key`], and what it does to it.
pub(crate) fn effect<'a>(item: &Item<'a>) -> (Vec<u8>, Effect<'a>) {
    match item.bucket.strip_prefix(TAKEN_BACK) {
        None => (index_key(item.bucket, &item.key), Effect::Put(item.value)),
        Some(bucket) => {
            let effect = match item.value.try_into() {
                Ok(hash) => Effect::TakeBack(hash),
                Err(_) => Effect::Nothing,
            };
            (index_key(bucket, &item.key), effect)
        }
    }
}

/// The bucket name under which records of `bucket` are taken back.
pub(crate) fn taken_back(bucket: &str) -> String {
    format!("{TAKEN_BACK}{bucket}")
}

/// Reads an [`index_key`] backwards.
pub(crate) fn parts(index_key: &[u8]) -> Option<(&str, Key)> {
    let (name, key) = index_key.split_last_chunk::<32>()?;
    let bucket = std::str::from_utf8(name.strip_suffix(b"/")?).ok()?;
    Some((bucket, Key::from_bytes(*key)))
}
