//! The cache kept within its bounds: what is there, what of it may go, and how it
//! goes without anybody missing it. Also what `yadokari cache` shows and checks.
//!
//! # What goes, in this order
//!
//! 1. *Garbage*: contents that no record and no image names and nobody used for an
//!    hour, layers without index, files set aside a day ago.
//! 2. *Expired*: records older than the limit, as kaniko counts it from when they
//!    were made; contents not used for as long, bases with all of their layers
//!    counting as used when one of them is.
//! 3. *Least recently used*, until the rest is within the highest size. A layer's
//!    tar goes before its compressed blob, which it can be made of again.
//!
//! # How it goes
//!
//! One process collects at a time ([`yadokari_cache::Collector`]); builds don't wait
//! for it but for moments. The records are read first and the contents listed
//! afterwards, so a record that was read has its contents in the list. Then, in
//! small batches and while nobody can begin to hold anything: what a living lease
//! holds and what was used since the listing is left out, the records that would
//! name nothing any more are taken back, durably, and the contents are renamed into
//! `trash/`. Deleting them is done afterwards, as long as there is time.
//!
//! A builder holds a content before it looks for it, and before it puts one there
//! ([`crate::store`]); so it either finds it gone, a miss, or keeps it. Killed at
//! any point, a collector leaves contents without record, which are garbage.

mod choose;
mod error;
mod inventory;
mod listing;
mod references;
mod remove;
mod verify;

use std::path::Path;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use yadokari_cache::Cache;
use yadokari_cache::Collector;
use yadokari_cache::Lease;
use yadokari_cache::trash;

pub use choose::Why;
pub use error::Error;
pub use inventory::Kind;
pub use inventory::Usage;
pub use listing::Entry;
pub use listing::EntryKind;
pub use listing::list;
pub use listing::usage;
pub use remove::Target;
pub use remove::clear;
pub use remove::remove;
pub use verify::Damage;
pub use verify::Verified;
pub use verify::verify;

use choose::Chosen;
use inventory::Content;
use inventory::Inventory;
use references::References;
use references::Remaining;

/// How large and how old a cache may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Bytes on disk of everything in the directory.
    pub max_size: Option<u64>,
    /// Age from which a record isn't used any more, and contents not used since go.
    pub ttl: Option<Duration>,
}

impl Limits {
    /// The age limit in whole seconds.
    pub fn ttl_seconds(&self) -> Option<u64> {
        self.ttl.map(|ttl| ttl.as_secs())
    }
}

/// A collection to be made.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The bounds to be kept.
    pub limits: Limits,
    /// When to stop; whatever was begun is finished.
    pub deadline: Option<Instant>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// Something that went, or would.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    /// What it is.
    pub kind: Kind,
    /// Its path in the cache directory.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was used last, in seconds since 1970, a minute more or less.
    pub used: i64,
    /// Why it went.
    pub why: Why,
}

/// What a collection did, or would do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// What went, in this order.
    pub removed: Vec<Removed>,
    /// Records that went with it or were too old.
    pub records: u64,
    /// Bytes on disk that were given back until now.
    pub freed: u64,
    /// Whether some of it waits in `trash/` for the next who has time.
    pub left: bool,
    /// Bytes on disk that remain, without what waits in `trash/`.
    pub size: u64,
    /// Contents that would have gone, but a running build uses them.
    pub in_use: u64,
}

/// Collects; `None` while another process does. `own` is this process's lease, if it
/// no longer needs what it holds.
///
/// # Errors
/// When the cache can't be listed or locked. What was removed until then is removed.
pub fn collect(
    cache: &Cache,
    own: Option<&Lease>,
    order: &Order,
) -> Result<Option<Collected>, Error> {
    let Some(collector) = Collector::begin(cache.directory(), own)? else { return Ok(None) };
    let now = seconds(SystemTime::now());
    let references = References::read(cache, order.limits.ttl_seconds(), now)?;
    let inventory = Inventory::take(cache.directory())?;
    let mut contents = inventory.contents;
    references.mark(cache.directory(), &mut contents);
    let chosen = choose::choose(&contents, inventory.other, &order.limits, now);

    let mut collected = Collected {
        size: contents.iter().map(|content| content.bytes).sum::<u64>() + inventory.other,
        ..Collected::default()
    };
    if order.dry_run {
        collector.among_held(|held| {
            for chosen in &chosen {
                let content = &contents[chosen.at];
                match held.contains(&content.name) {
                    true => collected.in_use += 1,
                    false => collected.take(content, chosen.why),
                }
            }
        })?;
        return Ok(Some(collected));
    }
    let outdated = references.outdated(&contents);
    collected.records += outdated.len() as u64;
    cache.take_back(&outdated)?;
    let deadline = order.deadline;
    let remaining = references.count(&contents, &chosen);
    remove_chosen(cache, &collector, remaining, &contents, &chosen, deadline, &mut collected)?;
    cache.remove_dead_turns();
    cache.compact(false)?;
    note_collection(cache.directory(), Some(collected.size), now);
    let emptied = trash::empty(cache.directory(), order.deadline);
    collected.freed = emptied.freed;
    collected.left |= emptied.left;
    Ok(Some(collected))
}

impl Collected {
    fn take(&mut self, content: &Content, why: Why) {
        self.size = self.size.saturating_sub(content.bytes);
        self.removed.push(Removed {
            kind: content.kind,
            name: content.name.clone(),
            bytes: content.bytes,
            used: content.used,
            why,
        });
    }
}

/// Contents that go while everybody else is kept from beginning to hold something.
const BATCH: usize = 64;

/// Lets the chosen contents go, and the records that would name nothing any more.
fn remove_chosen(
    cache: &Cache,
    collector: &Collector,
    mut remaining: Remaining,
    contents: &[Content],
    chosen: &[Chosen],
    deadline: Option<Instant>,
    collected: &mut Collected,
) -> Result<(), Error> {
    for batch in chosen.chunks(BATCH) {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            collected.left = true;
            return Ok(());
        }
        collector.among_held(|held| -> Result<(), Error> {
            let free: Vec<(&Content, Why)> = batch
                .iter()
                .map(|chosen| (&contents[chosen.at], chosen.why))
                .filter(|(content, _)| !held.contains(&content.name))
                .filter(|(content, why)| *why == Why::Asked || !content.was_used_since(cache))
                .collect();
            collected.in_use += (batch.len() - free.len()) as u64;
            // What was put by those who no longer hold anything is there by now.
            remaining.catch_up(cache)?;
            // First the records, durably; then what they name.
            let ids: Vec<_> = free.iter().filter_map(|(content, _)| content.id).collect();
            let orphaned = remaining.without(&ids);
            collected.records += orphaned.len() as u64;
            cache.take_back(&orphaned)?;
            for (content, why) in free {
                match content.discard(cache.directory()) {
                    Ok(()) => collected.take(content, why),
                    // Without a record it is garbage, and tried again.
                    Err(error) => tracing::debug!(%error, name = content.name, "not removed"),
                }
            }
            Ok(())
        })??;
    }
    Ok(())
}

/// File that tells when a collection was made last and what it left, then what builds
/// added since: a line `<seconds since 1970> <bytes>`, then a line of bytes for each.
const NOTE: &str = "records/collected";

/// Hours between collections that no new contents give reason for, in seconds.
const INTERVAL: i64 = 3600;

/// Whether a build that added so many bytes should collect at its end: the contents
/// may have become too large, or nobody collected for an hour. To know the first
/// without listing a large cache after each build, builds keep count together; an
/// addition that is lost, and what cache mounts grow by, is found an hour later.
pub fn is_due(cache: &Path, added: u64, limits: &Limits) -> bool {
    is_due_at(cache, added, limits, seconds(SystemTime::now()))
}

fn is_due_at(cache: &Path, added: u64, limits: &Limits, now: i64) -> bool {
    let path = cache.join(NOTE);
    let note = std::fs::read_to_string(&path).ok();
    if added > 0 && note.is_some() {
        use std::io::Write;
        let note = std::fs::File::options().append(true).open(&path);
        let _ = note.and_then(|mut note| note.write_all(format!("{added}\n").as_bytes()));
    }
    let known = note.as_deref().map(read_note);
    match (known, limits.max_size) {
        (Some(Some((time, size))), max_size) => {
            let is_much = max_size.is_some_and(|max_size| size.saturating_add(added) > max_size);
            (added > 0 && is_much) || now.saturating_sub(time) >= INTERVAL
        }
        // Damaged, or an older program's.
        (Some(None), _) => true,
        (None, Some(_)) if added > 0 => true,
        // A new cache: nothing in it is old.
        (None, _) => {
            note_collection(cache, None, now);
            false
        }
    }
}

/// When a collection was made, and bytes that are there since, at the least.
fn read_note(text: &str) -> Option<(i64, u64)> {
    let mut lines = text.lines();
    let (time, left) = lines.next()?.split_once(' ')?;
    let left = match left {
        // Unknown: whatever is added may be too much.
        "?" => u64::MAX,
        bytes => bytes.parse().ok()?,
    };
    // A line that is being written may be cut.
    let added = lines.filter_map(|line| line.parse::<u64>().ok());
    Some((time.parse().ok()?, added.fold(left, u64::saturating_add)))
}

/// Best effort: without it the next build collects as well.
fn note_collection(cache: &Path, left: Option<u64>, now: i64) {
    let left = left.map_or("?".to_owned(), |bytes| bytes.to_string());
    let _ = std::fs::write(cache.join(NOTE), format!("{now} {left}\n"));
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_count_together_and_collect_when_it_may_be_too_much() {
        let cache = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(cache.path().join("records")).expect("a directory");
        let limits = Limits { max_size: Some(1000), ttl: None };
        let due = |added: u64, now: i64| is_due_at(cache.path(), added, &limits, now);
        assert!(!due(0, 0), "a new one");
        assert!(due(1, 0), "nobody knows its size");
        note_collection(cache.path(), Some(700), 0);
        assert!(!due(100, 1) && !due(200, 1), "1000 in all");
        assert!(!due(0, 1) && due(1, 1));
        note_collection(cache.path(), Some(700), 0);
        assert!(!due(100, INTERVAL - 1) && due(0, INTERVAL));
        note_collection(cache.path(), Some(2000), 0);
        assert!(!due(0, 1), "what could go has gone");
        for damaged in ["", "x", "1", "1 x\n", "\n5\n"] {
            std::fs::write(cache.path().join(NOTE), damaged).expect("a file");
            assert!(due(0, 1), "{damaged:?}");
        }
    }
}
