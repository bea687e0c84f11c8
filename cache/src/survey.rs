//! All records of a cache, one after another; and the log without what is no
//! longer there.
//!
//! Both are a collector's work and cost a pass over the log. Builds never do this.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};

use crate::cache::{Cache, RecordName};
use crate::directory::{Access, sync_directory, unique_name};
use crate::error::{Error, Notice};
use crate::frame::{self, Item};
use crate::index::log::{self, Log, Mark, Position};
use crate::index::plain::{Places, note_places};
use crate::index::{Effect, effect, parts};
use crate::key::Key;
use crate::spool::Spool;

/// Bytes of a log that must be dead before it is written anew: as many as the
/// living ones, and at least this many.
const WORTHWHILE: u64 = 1 << 20;

/// Bytes of records in a frame of a log written anew.
const FRAME: usize = 256 << 10;

/// What an item costs in a frame besides bucket name and value.
const ITEM: u64 = 37;

/// A record as [`Cache::each_record`] shows it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Name of its bucket on disk, possibly one only another version knows.
    pub bucket: &'a str,
    /// Its key.
    pub key: Key,
    /// What was put.
    pub value: &'a [u8],
}

impl Seen<'_> {
    /// The name by which this very record is taken back.
    pub fn name(&self) -> RecordName {
        RecordName::new(self.bucket, self.key, self.value)
    }
}

/// Up to where somebody has seen the records: what is put after that can be asked
/// for by itself, see [`Cache::each_record_since`].
#[derive(Debug)]
pub struct SeenUntil {
    spool: HashSet<OsString>,
    /// Number of the log, and how far it was read.
    log: (u64, Mark),
}

/// What [`Cache::compact`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compacted {
    /// The log has this many bytes less.
    Done(u64),
    /// Another process folds.
    Busy,
    /// Too little of it is dead.
    NotWorthwhile,
}

impl Cache {
    /// Shows every record that is there, in no order, each once. Records put
    /// meanwhile may be missing: they are behind what is returned.
    ///
    /// # Errors
    ///
    /// When spool or log can't be read; then not everything was shown.
    pub fn each_record(&self, take: &mut dyn FnMut(&Seen<'_>)) -> Result<SeenUntil, Error> {
        let mut notices = Vec::new();
        // In this order: records move from the spool to the log.
        let mut spool = Spool::new(self.directory(), Access::ReadOnly);
        spool.refresh(&mut notices);
        let records = self.directory().join("records");
        let mut until = (0, Mark::default());
        if let Some(log) = Log::open(self.directory()).map_err(Error::io("open", &records))? {
            let (places, end) = living(&log, &mut notices).map_err(Error::io("read", &log.path))?;
            until = (log.number, end);
            let mut places: Vec<_> = places.into_iter().collect();
            places.sort_unstable_by_key(|(_, place)| *place);
            for (name, (offset, length)) in places {
                let Some((bucket, key)) = parts(&name) else { continue };
                let value = log.value(offset, length).map_err(Error::io("read", &log.path))?;
                if spool.get(&name).is_none() && !spool.is_taken_back(&name, &value) {
                    take(&Seen { bucket, key, value: &value });
                }
            }
            if !log.still_has(end).map_err(Error::io("read", &log.path))? {
                let changed = io::Error::other("an append to it failed while it was read");
                return Err(Error::io("read", &log.path)(changed));
            }
        }
        for (name, value) in spool.records() {
            let Some((bucket, key)) = parts(name) else { continue };
            take(&Seen { bucket, key, value });
        }
        self.add_notices(notices);
        Ok(SeenUntil { spool: spool.into_files(), log: until })
    }

    /// Shows the records that were put since, and moves the mark on. One that was in
    /// the spool before may be shown again; all that ever were in the log, if it is
    /// damaged behind the mark.
    ///
    /// # Errors
    ///
    /// As [`each_record`](Self::each_record); the mark stays where it was.
    pub fn each_record_since(
        &self,
        since: &mut SeenUntil,
        take: &mut dyn FnMut(&Seen<'_>),
    ) -> Result<(), Error> {
        let mut notices = Vec::new();
        let known = since.spool.clone();
        let mut spool = Spool::new(self.directory(), Access::ReadOnly).without(known);
        spool.refresh(&mut notices);
        let records = self.directory().join("records");
        let mut until = since.log;
        if let Some(log) = Log::open(self.directory()).map_err(Error::io("open", &records))? {
            if log.number != until.0 {
                until = (log.number, Mark::default());
            }
            let mut show = |_, items: &[Item<'_>]| {
                for item in items {
                    if let (name, Effect::Put(value)) = effect(item)
                        && let Some((bucket, key)) = parts(&name)
                    {
                        take(&Seen { bucket, key, value });
                    }
                }
                io::Result::Ok(())
            };
            let shown = match log.read_on(until.1, &mut show) {
                Ok(None) => log.read(Mark::default(), &mut notices, show),
                Ok(Some(end)) => Ok(end),
                Err(error) => Err(error),
            };
            until.1 = shown.map_err(Error::io("read", &log.path))?;
        }
        for (name, value) in spool.records() {
            if let Some((bucket, key)) = parts(name) {
                take(&Seen { bucket, key, value });
            }
        }
        self.add_notices(notices);
        *since = SeenUntil { spool: spool.into_files(), log: until };
        Ok(())
    }

    /// Holds the index against the log, record by record; makes it anew if they
    /// differ. Returns whether they agreed; also when another process folds just
    /// now, or nothing was folded yet.
    ///
    /// # Errors
    ///
    /// When the log can't be read or the index not be made.
    pub fn check_index(&self) -> Result<bool, Error> {
        let records = self.directory().join("records");
        let opened = Log::open(self.directory()).map_err(Error::io("open", &records))?;
        let Some(log) = opened else { return Ok(true) };
        let lock = match self.access() {
            Access::ReadOnly => None,
            Access::ReadWrite => match self.fold_lock()? {
                Some(lock) => Some(lock),
                None => return Ok(true),
            },
        };
        let mut notices = Vec::new();
        let mut index = self.new_index();
        if lock.is_some() {
            index.extend(&log, &mut notices)?;
        }
        index.refresh(&mut notices);
        let mut agree = notices.is_empty();
        for (name, (offset, length)) in
            living(&log, &mut Vec::new()).map_err(Error::io("read", &log.path))?.0
        {
            let value = log.value(offset, length).map_err(Error::io("read", &log.path))?;
            agree &= index.get(&name, &mut notices) == Some(value);
        }
        agree &= notices.is_empty();
        if !agree && lock.is_some() {
            let suspect = records.join("suspect");
            fs::write(&suspect, "it differs from the record log")
                .map_err(Error::io("write", &suspect))?;
            drop(index);
            self.new_index().extend(&log, &mut notices)?;
        }
        self.add_notices(notices);
        Ok(agree)
    }

    /// Folds, and then replaces the log by one that holds only what is there, if
    /// much of it isn't; with `always`, in any case. Waits for nobody.
    ///
    /// # Errors
    ///
    /// When the new log can't be written: then the old one stays.
    pub fn compact(&self, always: bool) -> Result<Compacted, Error> {
        self.fold(crate::Fold::Now)?;
        let Some(_lock) = self.fold_lock()? else { return Ok(Compacted::Busy) };
        let directory = self.directory().join("records");
        let mut notices = Vec::new();
        let opened = Log::open(self.directory()).map_err(Error::io("open", &directory))?;
        let Some(old) = opened else { return Ok(Compacted::NotWorthwhile) };
        // Whoever replaced one may have been killed before this.
        log::remove_before(self.directory(), old.number);
        let (places, _) = living(&old, &mut notices).map_err(Error::io("read", &old.path))?;
        let length = old.length().map_err(Error::io("look at", &old.path))?;
        let alive: u64 = places
            .iter()
            .map(|(name, (_, length))| ITEM + name.len() as u64 - 33 + *length as u64)
            .sum();
        let dead = length.saturating_sub(alive);
        if !always && (dead < WORTHWHILE || dead < alive) {
            return Ok(Compacted::NotWorthwhile);
        }
        // The index says what the old log says, up to its end …
        let mut index = self.new_index();
        index.extend(&old, &mut notices)?;
        let new = self.lease()?.scratch().join(format!("log-{}", unique_name()));
        let number = old.number + 1;
        let target = directory.join(format!("{number}.log"));
        let written = write_anew(&old, &places, &new)
            .and_then(|end| fs::rename(&new, &target).map(|()| end))
            .and_then(|end| sync_directory(&directory).map(|()| end));
        let end = written.map_err(|source| {
            let _ = fs::remove_file(&new);
            Error::io("write", &target)(source)
        })?;
        // … and so what the new one says. Killed before this, the next fold reads
        // the new log from its beginning.
        index.moved(Position { log: number, offset: end });
        drop(index);
        log::raise_folds(self.directory())?;
        fs::remove_file(&old.path).map_err(Error::io("remove", &old.path))?;
        self.add_notices(notices);
        Ok(Compacted::Done(length.saturating_sub(end)))
    }
}

/// The living records of a log, and up to where it was read.
fn living(log: &Log, notices: &mut Vec<Notice>) -> io::Result<(Places, Mark)> {
    let mut places = Places::new();
    let end = log.read(Mark::default(), notices, |start, items| {
        note_places(&mut places, log, start, items)
    })?;
    Ok((places, end))
}

/// Writes the records at `places` of `old` to a new file, synced. Returns its
/// length.
fn write_anew(old: &Log, places: &Places, new: &std::path::Path) -> io::Result<u64> {
    let mut places: Vec<_> = places.iter().collect();
    places.sort_unstable_by_key(|(_, place)| **place);
    let mut out = BufWriter::new(File::create_new(new)?);
    let (mut waiting, mut size, mut end) = (Vec::new(), 0, 0);
    let mut write = |waiting: &mut Vec<(String, Key, Vec<u8>)>| -> io::Result<u64> {
        if waiting.is_empty() {
            return Ok(0);
        }
        let items = waiting.iter().map(|(bucket, key, value)| (bucket.as_str(), key, &value[..]));
        let frame = frame::encode(items)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "records of one frame"))?;
        out.write_all(&frame)?;
        waiting.clear();
        Ok(frame.len() as u64)
    };
    for (name, &(offset, length)) in places {
        let Some((bucket, key)) = parts(name) else { continue };
        // One that came in a frame of its own fits into one again, alone.
        if size + length > FRAME {
            end += write(&mut waiting)?;
            size = 0;
        }
        waiting.push((bucket.to_owned(), key, old.value(offset, length)?));
        size += length + name.len();
    }
    end += write(&mut waiting)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(end)
}
