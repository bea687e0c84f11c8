//! What the cache holds, for people and programs to read.

use std::collections::HashMap;
use std::time::SystemTime;

use yadokari_cache::Bucket;
use yadokari_cache::Cache;
use yadokari_cache::Key;
use yadokari_cache::Record;
use yadokari_cache::StepRecord;

use super::Error;
use super::Limits;
use super::choose;
use super::inventory::Content;
use super::inventory::Id;
use super::inventory::Inventory;
use super::inventory::Kind;
use super::inventory::Usage;
use super::references::References;
use super::seconds;
use crate::store::mounts::MountId;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EntryKind {
    /// A finished step.
    Step,
    /// A content.
    Content(Kind),
}

impl EntryKind {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Content(kind) => kind.name(),
        }
    }
}

/// One thing in the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// The key of a step, the digest of a blob or layer, else a path in the cache.
    pub name: String,
    /// What a step did, where its record says so.
    pub title: Option<String>,
    /// Bytes on disk; of a step, those of its layer in both forms.
    pub bytes: u64,
    /// When it was used last, in seconds since 1970.
    pub used: i64,
    /// When a step was built, in seconds since 1970.
    pub created: Option<i64>,
    /// Diff ID of a step's layer.
    pub diff_id: Option<String>,
    /// Digest of a step's blob.
    pub blob: Option<String>,
    /// Whether anything names a content.
    pub wanted: bool,
}

/// Lists the cache, least recently used first: steps, with `all` contents as well.
///
/// # Errors
/// When the cache can't be read.
pub fn list(cache: &Cache, all: bool) -> Result<Vec<Entry>, Error> {
    let references = References::read(cache, None, seconds(SystemTime::now()))?;
    let mut steps: Vec<(Key, StepRecord)> = Vec::new();
    cache.each_record(&mut |seen| {
        if seen.bucket == Bucket::Steps.name()
            && let Ok(step) = StepRecord::decode(seen.value)
        {
            steps.push((seen.key, step));
        }
    })?;
    let mut contents = Inventory::take(cache.directory())?.contents;
    references.mark(cache.directory(), &mut contents);
    let by_id: HashMap<Id, &Content> =
        contents.iter().filter_map(|content| Some((content.id?, content))).collect();
    let mut entries: Vec<Entry> = steps
        .into_iter()
        .map(|(key, step)| {
            let blob = step.compressed.as_ref().map(|blob| blob.digest);
            let parts = [Some(Id::Layer(step.diff_id)), blob.map(Id::Blob)];
            let parts: Vec<&&Content> =
                parts.iter().flatten().filter_map(|id| by_id.get(id)).collect();
            let stored = if step.stored == 0 { step.created } else { step.stored };
            let instruction = step.inputs.iter().find(|(name, _)| name == "instruction");
            Entry {
                kind: EntryKind::Step,
                name: key.to_string(),
                title: instruction.map(|(_, value)| value.clone()),
                bytes: parts.iter().map(|content| content.bytes).sum(),
                used: parts.iter().map(|content| content.used).max().unwrap_or(stored),
                created: Some(stored),
                diff_id: Some(sha256(&step.diff_id)),
                blob: blob.map(|digest| sha256(&digest)),
                wanted: !parts.is_empty(),
            }
        })
        .collect();
    let shown = contents.iter().filter(|content| all || content.kind == Kind::Mount);
    entries.extend(shown.map(|content| Entry {
        kind: EntryKind::Content(content.kind),
        name: match content.id {
            Some(Id::Blob(digest) | Id::Layer(digest)) => sha256(&digest),
            None => content.name.clone(),
        },
        title: mount_id(cache, content),
        bytes: content.bytes,
        used: content.used,
        created: None,
        diff_id: None,
        blob: None,
        wanted: content.wanted || !matches!(content.kind, Kind::Blob | Kind::Layer),
    }));
    entries.sort_by(|one, other| (one.used, &one.name).cmp(&(other.used, &other.name)));
    Ok(entries)
}

/// What a Dockerfile calls a cache mount.
fn mount_id(cache: &Cache, content: &Content) -> Option<String> {
    if content.kind != Kind::Mount {
        return None;
    }
    let bytes = std::fs::read(cache.directory().join(&content.name).join("id")).ok()?;
    Some(serde_json::from_slice::<MountId>(&bytes).ok()?.id)
}

fn sha256(digest: &[u8; 32]) -> String {
    format!("sha256:{}", Key::from_bytes(*digest))
}

/// Bytes on disk by what they are for.
///
/// # Errors
/// When the cache can't be read.
pub fn usage(cache: &Cache) -> Result<Usage, Error> {
    let now = seconds(SystemTime::now());
    let references = References::read(cache, None, now)?;
    let inventory = Inventory::take(cache.directory())?;
    let mut contents = inventory.contents;
    references.mark(cache.directory(), &mut contents);
    let garbage = choose::choose(&contents, inventory.other, &Limits::default(), now);
    let garbage: u64 = garbage.iter().map(|chosen| contents[chosen.at].bytes).sum();
    let trash = super::inventory::size_within(&cache.directory().join("trash"));
    Ok(Usage { reclaimable: garbage + trash, ..inventory.usage })
}
