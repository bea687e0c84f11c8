//! The index without a database: a map in memory from key to place in the log,
//! built when first asked and extended when something was folded.
//!
//! Always right; costs one pass over the log in every process.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Notice};
use crate::index::log::{Log, Position};
use crate::index::{Effect, Index, effect, hash};

pub(crate) struct Plain {
    cache: PathBuf,
    log: Option<Log>,
    read_to: Position,
    values: HashMap<Vec<u8>, (u64, usize)>,
}

impl Plain {
    pub(crate) fn new(cache: &Path) -> Self {
        Self {
            cache: cache.to_owned(),
            log: None,
            read_to: Position { log: 0, offset: 0 },
            values: HashMap::new(),
        }
    }

    fn read_on(&mut self, notices: &mut Vec<Notice>) -> io::Result<()> {
        let Some(log) = Log::open(&self.cache)? else { return Ok(()) };
        if log.number != self.read_to.log {
            self.values.clear();
            self.read_to = Position { log: log.number, offset: 0 };
        }
        let values = &mut self.values;
        let end = log.read(self.read_to.offset, notices, |start, items| {
            for item in items {
                match effect(item) {
                    (name, Effect::Put(value)) => {
                        values.insert(name, (start + item.value_offset as u64, value.len()));
                    }
                    (name, Effect::TakeBack(hashed)) => {
                        if let Some(&(offset, length)) = values.get(&name)
                            && hash(&log.value(offset, length)?) == hashed
                        {
                            values.remove(&name);
                        }
                    }
                    (_, Effect::Nothing) => {}
                }
            }
            io::Result::Ok(())
        })?;
        self.read_to.offset = end;
        self.log = Some(log);
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
        let &(offset, length) = self.values.get(index_key)?;
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
