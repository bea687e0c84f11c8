//! The index without a database: a map in memory from key to place in the log,
//! built when first asked and extended when something was folded.
//!
//! Always right; costs one pass over the log in every process.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Notice};
use crate::frame::Item;
use crate::index::log::{Log, Mark, Position};
use crate::index::{Effect, Index, effect, hash};

/// Where the living records of a log are: index key to offset and length.
pub(crate) type Places = HashMap<Vec<u8>, (u64, usize)>;

pub(crate) struct Plain {
    cache: PathBuf,
    log: Option<Log>,
    read_to: Mark,
    places: Places,
}

impl Plain {
    pub(crate) fn new(cache: &Path) -> Self {
        Self { cache: cache.to_owned(), log: None, read_to: Mark::default(), places: Places::new() }
    }

    fn read_on(&mut self, notices: &mut Vec<Notice>) -> io::Result<()> {
        let Some(log) = Log::open(&self.cache)? else { return Ok(()) };
        if self.log.as_ref().is_none_or(|old| old.number != log.number) {
            self.places.clear();
            self.read_to = Mark::default();
        }
        // Before it is read: places are in this one from here on.
        let log = &*self.log.insert(log);
        let places = &mut self.places;
        let read =
            log.read_on(self.read_to, |start, items| note_places(places, log, start, items))?;
        self.read_to = match read {
            Some(end) => end,
            None => {
                places.clear();
                self.read_to = Mark::default();
                log.read(self.read_to, notices, |start, items| {
                    note_places(places, log, start, items)
                })?
            }
        };
        Ok(())
    }

    fn unreadable(&self, error: &io::Error) -> Notice {
        Notice::Unreadable { path: self.cache.join("records"), reason: error.to_string() }
    }
}

impl Index for Plain {
    fn refresh(&mut self, notices: &mut Vec<Notice>) {
        if let Err(error) = self.read_on(notices) {
            notices.push(self.unreadable(&error));
        }
    }

    fn get(&mut self, index_key: &[u8], notices: &mut Vec<Notice>) -> Option<Vec<u8>> {
        let &(offset, length) = self.places.get(index_key)?;
        match self.log.as_ref()?.value(offset, length) {
            Ok(value) => Some(value),
            Err(error) => {
                notices.push(self.unreadable(&error));
                None
            }
        }
    }

    fn extend(&mut self, _log: &Log, _notices: &mut Vec<Notice>) -> Result<(), Error> {
        Ok(())
    }

    fn moved(&mut self, _end: Position) {}

    fn settle(&mut self, _patient: bool) {}
}

/// Notes what the items of a frame, which starts at `start` in `log`, do to its records.
pub(crate) fn note_places(
    places: &mut Places,
    log: &Log,
    start: u64,
    items: &[Item<'_>],
) -> io::Result<()> {
    for item in items {
        match effect(item) {
            (name, Effect::Put(value)) => {
                places.insert(name, (start + item.value_offset as u64, value.len()));
            }
            (name, Effect::TakeBack(hashed)) => {
                if let Some(&(offset, length)) = places.get(&name)
                    && hash(&log.value(offset, length)?) == hashed
                {
                    places.remove(&name);
                }
            }
            (_, Effect::Nothing) => {}
        }
    }
    Ok(())
}
