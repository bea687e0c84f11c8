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
use crate::key::Key;

use log::Log;

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

    /// Puts the house in order after one or more [`extend`](Self::extend): may
    /// take a second once in a while, delays no reader.
    fn settle(&mut self);
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
