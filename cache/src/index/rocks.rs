//! The index in RocksDB, the only file that names it.
//!
//! RocksDB admits one writing process, so it is opened for writing only under the
//! fold lock and only for as long as a fold takes. Readers open it read-only,
//! which takes no lock, writes nothing (so it works on a read-only mount) and sees
//! what was there at that moment. What was folded since they read in the log behind
//! the position of the database, which is a few records; only when that is long, or the
//! log was replaced, they open the database again. That was preferred to a secondary
//! instance that catches up: secondaries need a writable directory of their own and are
//! known to return overwritten values.
//!
//! The database is a view of the log and remembers, in the same write, how far it
//! has come. So writes skip RocksDB's own log and are flushed instead; every
//! doubt about the database is answered by making it anew at the next fold, and
//! until then readers use the plain index instead: slower, never a false miss.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, DB, ErrorKind, LogLevel, Options, WaitForCompactOptions, WriteBatch,
};

use crate::aside::set_aside;
use crate::error::{Error, Notice};
use crate::index::log::{self, Log, Mark, Position};
use crate::index::plain::Plain;
use crate::index::{Effect, Index, effect, hash};

/// Key of the position; no bucket begins with a zero byte.
const POSITION: &[u8] = b"\0position";

/// First byte of the position's value. Raised when the layout of the database
/// changes: an older or newer one is made anew.
const LAYOUT: u8 = 1;

/// Bytes collected before they go to the database: bounds memory when the whole
/// log is read anew.
const BATCH: usize = 4 << 20;

/// Bytes of a block: some 25 records. Larger ones make the list of blocks shorter, which
/// every reader reads, and a look-up longer.
const BLOCK: usize = 16 << 10;

/// Files on level 0 from which a fold waits for their compaction longer, and a
/// collector's without limit. Below, it gives it a moment: readers open every file,
/// and closing the database aborts a compaction.
const MANY_FILES: u64 = 12;

/// How long a fold waits for an ordinary compaction, in microseconds.
const MOMENT: u64 = 100_000;

/// How long that of a build waits for one that is due.
const LONG_MOMENT: u64 = 500_000;

/// Bytes of the log that a reader reads and remembers before it opens the database
/// again: some thousand records, read in a millisecond.
const LONG_TAIL: u64 = 1 << 20;

/// Readers race with a writer that replaces files; the next attempt sees the new.
const ATTEMPTS: usize = 4;

pub(crate) struct Rocks {
    cache: PathBuf,
    path: PathBuf,
    reader: Option<Reader>,
    /// Answers while the database cannot be read.
    substitute: Option<Plain>,
    writer: Option<DB>,
    /// One report is enough.
    reported: bool,
}

/// The database as it was when it was opened, and what the log says since.
struct Reader {
    db: DB,
    /// How far the database had come.
    opened_at: Position,
    read_to: Mark,
    /// Records behind `opened_at`; `None` if taken back. Values, not places: those
    /// of an append that failed are taken by others.
    tail: HashMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Reader {
    fn new(db: DB, at: Position) -> Self {
        Self { db, opened_at: at, read_to: at.into(), tail: HashMap::new() }
    }

    fn get(&self, index_key: &[u8]) -> Result<Option<Vec<u8>>, rocksdb::Error> {
        match self.tail.get(index_key) {
            Some(value) => Ok(value.clone()),
            None => self.db.get(index_key),
        }
    }

    /// Reads what was folded since; `false` if opening the database again is better,
    /// as where the log is damaged: whoever folded has told that.
    fn catch_up(&mut self, cache: &Path) -> Result<bool, Failure> {
        let Some(log) = Log::open(cache)? else { return Ok(false) };
        let behind = log.length()?.checked_sub(self.opened_at.offset);
        if log.number != self.opened_at.log || behind.is_none_or(|behind| behind > LONG_TAIL) {
            return Ok(false);
        }
        let (tail, db) = (&mut self.tail, &self.db);
        let end = log.read_on(self.read_to, |_, items| {
            for item in items {
                match effect(item) {
                    (name, Effect::Put(value)) => {
                        tail.insert(name, Some(value.to_vec()));
                    }
                    (name, Effect::TakeBack(hashed)) => {
                        let there = match tail.get(&name) {
                            Some(value) => value.as_deref().map(hash),
                            None => db.get(&name)?.as_deref().map(hash),
                        };
                        if there == Some(hashed) {
                            tail.insert(name, None);
                        }
                    }
                    (_, Effect::Nothing) => {}
                }
            }
            Ok::<(), Failure>(())
        })?;
        let Some(end) = end else { return Ok(false) };
        self.read_to = end;
        Ok(true)
    }
}

impl Rocks {
    pub(crate) fn new(cache: &Path) -> Self {
        Self {
            cache: cache.to_owned(),
            path: cache.join("index"),
            reader: None,
            substitute: None,
            writer: None,
            reported: false,
        }
    }

    /// A file by which a reader, who must not touch the index, asks the next
    /// writer to make it anew.
    fn suspect(&self) -> PathBuf {
        self.cache.join("records/suspect")
    }

    /// Opens the database for reading. `Ok(None)` if it is just being made.
    fn open_reader(&self) -> Result<Option<Reader>, rocksdb::Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let opened = DB::open_for_read_only(&options(-1), &self.path, false)
                .and_then(|db| db.get(POSITION).map(|position| (position, db)));
            match opened {
                // The position comes with the last of the records.
                Ok((position, db)) => {
                    let at = position.as_deref().and_then(decode);
                    return Ok(at.map(|at| Reader::new(db, at)));
                }
                Err(_) if attempt < ATTEMPTS => {}
                Err(_) if self.is_first_fold() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether there is no database because the first fold is still under way.
    fn is_first_fold(&self) -> bool {
        log::folds(&self.cache) == Some(0) && !self.path.join("CURRENT").exists()
    }

    /// Goes on without the database until something is folded again.
    fn give_up(&mut self, error: &rocksdb::Error, notices: &mut Vec<Notice>) {
        if error.kind() == ErrorKind::Corruption {
            // In a read-only cache that is for others to find out.
            let _ = fs::write(self.suspect(), error.to_string());
        }
        if !self.reported {
            self.reported = true;
            notices.push(self.unreadable(error));
        }
        self.substitute(notices);
    }

    fn substitute(&mut self, notices: &mut Vec<Notice>) {
        self.reader = None;
        self.substitute.get_or_insert_with(|| Plain::new(&self.cache)).refresh(notices);
    }

    fn unreadable(&self, error: &rocksdb::Error) -> Notice {
        Notice::IndexUnreadable { path: self.path.clone(), reason: error.to_string() }
    }

    fn failed(&self, error: &rocksdb::Error) -> Error {
        Error::Index { path: self.path.clone(), reason: error.to_string() }
    }

    /// Opens the database for writing, at a position of this very log; sets aside
    /// what does not fit.
    fn open_writer(&self, log: &Log, notices: &mut Vec<Notice>) -> Result<(DB, Position), Error> {
        let suspect = self.suspect();
        let mut doubt = fs::read_to_string(&suspect).ok();
        loop {
            if let Some(reason) = doubt.take() {
                if self.path.exists() {
                    set_aside(&self.cache, &self.path);
                    notices.push(Notice::IndexRebuilt { path: self.path.clone(), reason });
                }
                if self.path.exists() {
                    fs::remove_dir_all(&self.path).map_err(Error::io("remove", &self.path))?;
                }
                match fs::remove_file(&suspect) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &suspect)(error));
                    }
                    _ => {}
                }
            }
            let existed = self.path.join("CURRENT").exists();
            let opened = DB::open(&options(256), &self.path)
                .and_then(|db| db.get(POSITION).map(|position| (db, position)));
            match opened {
                Ok((db, None)) => return Ok((db, Position { log: log.number, offset: 0 })),
                Ok((db, Some(position))) => match decode(&position) {
                    Some(position)
                        if position.log == log.number
                            && log.length().is_ok_and(|length| position.offset <= length) =>
                    {
                        return Ok((db, position));
                    }
                    // Killed after a shorter log was written: no damage.
                    Some(position) if position.log < log.number => {
                        drop(db);
                        fs::remove_dir_all(&self.path).map_err(Error::io("remove", &self.path))?;
                    }
                    _ => doubt = Some("it belongs to another record log".to_owned()),
                },
                // Made anew and still no good: the disk, not the index.
                Err(error) if !existed => return Err(self.failed(&error)),
                Err(error) if is_full(&error) => return Err(self.failed(&error)),
                Err(error) => doubt = Some(error.to_string()),
            }
        }
    }

    fn write_on(
        &self,
        db: &DB,
        from: Position,
        log: &Log,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Failure> {
        let mut batch = WriteBatch::default();
        let mut puts = false;
        let end = log.read(from.into(), notices, |_, items| {
            for item in items {
                match effect(item) {
                    (name, Effect::Put(value)) => {
                        batch.put(name, value);
                        puts = true;
                    }
                    (name, Effect::TakeBack(hashed)) => {
                        // What is in the batch can't be asked.
                        if std::mem::take(&mut puts) {
                            db.write_without_wal(std::mem::take(&mut batch))?;
                        }
                        if db.get(&name)?.is_some_and(|value| hash(&value) == hashed) {
                            batch.delete(name);
                        }
                    }
                    (_, Effect::Nothing) => {}
                }
            }
            if batch.size_in_bytes() > BATCH {
                db.write_without_wal(std::mem::take(&mut batch))?;
            }
            Ok::<(), Failure>(())
        })?;
        if end.offset == from.offset && from.offset != 0 {
            return Ok(());
        }
        batch.put(POSITION, encode(Position { log: log.number, offset: end.offset }));
        db.write_without_wal(batch)?;
        db.flush()?;
        Ok(())
    }
}

impl Index for Rocks {
    fn refresh(&mut self, notices: &mut Vec<Notice>) {
        if let Some(reader) = &mut self.reader
            && reader.catch_up(&self.cache).unwrap_or(false)
        {
            return;
        }
        self.reader = None;
        match self.open_reader() {
            Ok(Some(reader)) => {
                self.reader = Some(reader);
                self.substitute = None;
            }
            Ok(None) => self.substitute(notices),
            Err(error) => self.give_up(&error, notices),
        }
    }

    fn get(&mut self, index_key: &[u8], notices: &mut Vec<Notice>) -> Option<Vec<u8>> {
        if let Some(reader) = &self.reader {
            match reader.get(index_key) {
                Ok(value) => return value,
                // A file may have been replaced under us: look with new eyes.
                Err(_) => {
                    self.reader = None;
                    self.refresh(notices);
                }
            }
        }
        if let Some(reader) = &self.reader {
            match reader.get(index_key) {
                Ok(value) => return value,
                Err(error) => self.give_up(&error, notices),
            }
        }
        self.substitute.as_mut()?.get(index_key, notices)
    }

    fn extend(&mut self, log: &Log, notices: &mut Vec<Notice>) -> Result<(), Error> {
        if let Some(db) = &self.writer {
            let from = db.get(POSITION).ok().flatten().as_deref().and_then(decode);
            if let Some(position) = from {
                return self
                    .write_on(db, position, log, notices)
                    .map_err(|failure| failure.named(self, log));
            }
        }
        self.writer = None;
        for last in [false, true] {
            let (db, from) = self.open_writer(log, notices)?;
            match self.write_on(&db, from, log, notices) {
                Ok(()) => {
                    self.writer = Some(db);
                    return Ok(());
                }
                Err(Failure::Database(error)) if !last && !is_full(&error) => {
                    drop(db);
                    let suspect = self.suspect();
                    fs::write(&suspect, error.to_string()).map_err(Error::io("write", &suspect))?;
                }
                Err(failure) => return Err(failure.named(self, log)),
            }
        }
        unreachable!("the last attempt returns")
    }

    fn moved(&mut self, end: Position) {
        if let Some(db) = &self.writer {
            let _ = db.put(POSITION, encode(end)).and_then(|()| db.flush());
        }
    }

    fn settle(&mut self, patient: bool) {
        let Some(db) = self.writer.take() else { return };
        let files = db.property_int_value(rocksdb::properties::num_files_at_level(0));
        let files = files.ok().flatten().unwrap_or(0);
        let mut wait = WaitForCompactOptions::default();
        wait.set_timeout(match (files < MANY_FILES, patient) {
            (true, _) => MOMENT,
            (false, false) => LONG_MOMENT,
            (false, true) => 0,
        });
        // Not finished in time, or failed: the next fold tries again.
        let _ = db.wait_for_compact(&wait);
    }
}

/// Why the log did not get into the database.
enum Failure {
    Log(io::Error),
    Database(rocksdb::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Log(error)
    }
}

impl From<rocksdb::Error> for Failure {
    fn from(error: rocksdb::Error) -> Self {
        Self::Database(error)
    }
}

impl Failure {
    fn named(self, index: &Rocks, log: &Log) -> Error {
        match self {
            Self::Log(error) => Error::io("read", &log.path)(error),
            Self::Database(error) => index.failed(&error),
        }
    }
}

fn is_full(error: &rocksdb::Error) -> bool {
    // RocksDB hands on the words of strerror.
    let text = error.to_string();
    text.contains("No space left") || text.contains("NoSpace") || text.contains("quota")
}

fn encode(position: Position) -> [u8; 17] {
    let mut bytes = [LAYOUT; 17];
    bytes[1..9].copy_from_slice(&position.log.to_le_bytes());
    bytes[9..].copy_from_slice(&position.offset.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Position> {
    let (&layout, rest) = bytes.split_first()?;
    let (log, offset) = rest.split_first_chunk::<8>()?;
    let offset = <[u8; 8]>::try_from(offset).ok()?;
    (layout == LAYOUT)
        .then_some(Position { log: u64::from_le_bytes(*log), offset: u64::from_le_bytes(offset) })
}

fn options(open_files: i32) -> Options {
    let mut table = BlockBasedOptions::default();
    // A miss should not read a block.
    table.set_bloom_filter(10.0, false);
    // Whoever opens the index reads where all blocks begin: few blocks, few bytes each.
    table.set_block_size(BLOCK);
    table.set_index_block_restart_interval(16);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_max_open_files(open_files);
    // Sixteen builders that each start sixteen threads wait for one another.
    options.set_max_file_opening_threads(1);
    options.set_write_buffer_size(BATCH);
    options.set_compression_type(rocksdb::DBCompressionType::None);
    // A fold must never wait for compactions that earlier folds had no time for.
    options.set_level_zero_slowdown_writes_trigger(200);
    options.set_level_zero_stop_writes_trigger(400);
    options.set_max_background_jobs(2);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_keep_log_file_num(2);
    options.set_log_level(LogLevel::Warn);
    options
}
