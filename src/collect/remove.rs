//! Removal of what somebody asked to be removed, and of everything.

use std::collections::HashSet;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use yadokari_cache::Cache;
use yadokari_cache::Collector;
use yadokari_cache::Key;
use yadokari_cache::Lease;
use yadokari_cache::RecordName;
use yadokari_cache::trash;

use super::Collected;
use super::Error;
use super::choose::Chosen;
use super::choose::Why;
use super::inventory::Content;
use super::inventory::Id;
use super::inventory::Inventory;
use super::references::References;
use super::remove_chosen;
use super::seconds;

/// Something that can be named to be removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Records under this key, of any kind.
    Key(Key),
    /// A blob with this digest, a layer with this diff ID, or both.
    Digest([u8; 32]),
}

impl Target {
    /// Reads a key (64 hex digits) or a digest (`sha256:` and 64 hex digits).
    ///
    /// # Errors
    /// [`Error::NoName`] for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let parsed = match text.strip_prefix("sha256:") {
            Some(hex) => Key::from_hex(hex).map(|key| Self::Digest(*key.as_bytes())),
            None => Key::from_hex(text).map(Self::Key),
        };
        parsed.ok_or_else(|| Error::NoName(text.to_owned()))
    }

    fn name(&self) -> String {
        match self {
            Self::Key(key) => key.to_string(),
            Self::Digest(digest) => format!("sha256:{}", Key::from_bytes(*digest)),
        }
    }
}

/// Removes what is asked for. Contents that only a removed record names are left to
/// the next collection.
///
/// # Errors
/// [`Error::Unknown`] and [`Error::Held`] for the first target that isn't there or is
/// in use, with nothing removed of the others after it.
pub fn remove(cache: &Cache, own: Option<&Lease>, targets: &[Target]) -> Result<Collected, Error> {
    let collector = Collector::begin(cache.directory(), own)?.ok_or(Error::Busy)?;
    let inventory = Inventory::take(cache.directory())?;
    let mut contents = inventory.contents;
    let mut collected = Collected {
        size: inventory.other + contents.iter().map(|content| content.bytes).sum::<u64>(),
        ..Collected::default()
    };
    for target in targets {
        match target {
            Target::Key(key) => {
                let mut found: Vec<RecordName> = Vec::new();
                cache.each_record(&mut |seen| {
                    if seen.key == *key {
                        found.push(seen.name());
                    }
                })?;
                if found.is_empty() {
                    return Err(Error::Unknown(target.name()));
                }
                cache.take_back(&found)?;
                collected.records += found.len() as u64;
            }
            Target::Digest(digest) => {
                let ids = [Id::Blob(*digest), Id::Layer(*digest)];
                let asked = |content: &Content| content.id.is_some_and(|id| ids.contains(&id));
                let chosen = choose_all(&contents, asked);
                if chosen.is_empty() {
                    return Err(Error::Unknown(target.name()));
                }
                let before = collected.in_use;
                let references = References::read(cache, None, seconds(SystemTime::now()))?;
                remove_chosen(
                    cache,
                    &collector,
                    references.count(&contents, &chosen),
                    &contents,
                    &chosen,
                    None,
                    &mut collected,
                )?;
                if collected.in_use > before {
                    return Err(Error::Held(target.name()));
                }
                // A record whose blob went now has lost its last with the layer.
                contents.retain(|content| !asked(content));
            }
        }
    }
    cache.compact(false)?;
    let emptied = trash::empty(cache.directory(), None);
    collected.freed = emptied.freed;
    collected.left = emptied.left;
    Ok(collected)
}

fn choose_all(contents: &[Content], which: impl Fn(&Content) -> bool) -> Vec<Chosen> {
    let all = contents.iter().enumerate().filter(|(_, content)| which(content));
    all.map(|(at, _)| Chosen { at, why: Why::Asked }).collect()
}

/// Removes everything: records, contents, cache mounts. Waits up to `wait` for
/// running builds to end, and does nothing while there are any. A build that begins
/// meanwhile keeps what it holds and what it puts.
///
/// # Errors
/// [`Error::InUse`] when builds are still running, [`Error::Busy`] when another
/// process collects.
pub fn clear(cache: &Cache, own: Option<&Lease>, wait: Duration) -> Result<Collected, Error> {
    let until = Instant::now() + wait;
    let collector = loop {
        let collector = Collector::begin(cache.directory(), own)?;
        let builds = collector.as_ref().map(Collector::living);
        match (collector, builds) {
            (Some(collector), Some(0)) => break collector,
            (_, Some(builds)) if Instant::now() >= until => {
                return Err(Error::InUse { builds });
            }
            (_, None) if Instant::now() >= until => return Err(Error::Busy),
            _ => std::thread::park_timeout(Duration::from_millis(50)),
        }
    };
    let mut records: Vec<RecordName> = Vec::new();
    cache.each_record(&mut |seen| records.push(seen.name()))?;
    let references = References::read(cache, None, seconds(SystemTime::now()))?;
    let inventory = Inventory::take(cache.directory())?;
    let contents = inventory.contents;
    let mut collected = Collected {
        size: inventory.other + contents.iter().map(|content| content.bytes).sum::<u64>(),
        ..Collected::default()
    };
    // What somebody holds by now keeps its records.
    let free: HashSet<String> = collector.among_held(|held| {
        let free = contents.iter().filter(|content| !held.contains(&content.name));
        free.map(|content| content.name.clone()).collect()
    })?;
    let chosen = choose_all(&contents, |content| free.contains(&content.name));
    let remaining = references.count(&contents, &chosen);
    remove_chosen(cache, &collector, remaining, &contents, &chosen, None, &mut collected)?;
    if chosen.len() == contents.len() && collected.in_use == 0 {
        collected.records = records.len() as u64;
        cache.take_back(&records)?;
    }
    cache.remove_dead_turns();
    cache.compact(true)?;
    let emptied = trash::empty(cache.directory(), None);
    collected.freed = emptied.freed;
    collected.left = emptied.left;
    Ok(collected)
}
