//! Which contents the records and the images of a cache name.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use yadokari_cache::Bucket;
use yadokari_cache::Cache;
use yadokari_cache::Record;
use yadokari_cache::RecordName;
use yadokari_cache::Seen;
use yadokari_cache::SeenUntil;
use yadokari_cache::StepRecord;
use yadokari_cache::record::CompressedRecord;
use yadokari_cache::record::ImageRecord;
use yadokari_cache::record::RemoteRecord;

use super::Error;
use super::choose::Chosen;
use super::inventory::Content;
use super::inventory::Id;

/// Blobs larger than this are no manifests and no configs, in bytes.
const DOCUMENT: u64 = 4 << 20;

/// A record, and the contents of which one at least must be there for it to be of
/// any use.
struct Naming {
    name: RecordName,
    any_of: Vec<Id>,
}

/// All records, by what they name.
pub(super) struct References {
    naming: Vec<Naming>,
    /// Records that are too old or can't be read.
    dead: Vec<RecordName>,
    /// What images name: other than a step's, a part of theirs can be fetched again.
    images: HashSet<Id>,
    /// Up to where the records were read.
    until: SeenUntil,
}

enum Sense {
    /// It needs one of these.
    Names(Vec<Id>),
    /// It names nothing, or what it names it doesn't need.
    Stays,
    Dead,
}

impl References {
    /// Reads all records; those that are `ttl` seconds old at `now` are dead.
    pub(super) fn read(cache: &Cache, ttl: Option<u64>, now: i64) -> Result<Self, Error> {
        let (mut naming, mut dead, mut images) = (Vec::new(), Vec::new(), HashSet::new());
        let until = cache.each_record(&mut |seen| match sense(seen, ttl, now, &mut images) {
            Sense::Names(any_of) => naming.push(Naming { name: seen.name(), any_of }),
            Sense::Stays => {}
            Sense::Dead => dead.push(seen.name()),
        })?;
        Ok(Self { naming, dead, images, until })
    }

    /// Marks what is wanted, and what a base was used with.
    pub(super) fn mark(&self, cache: &Path, contents: &mut [Content]) {
        let mut wanted: HashSet<Id> = self.images.clone();
        wanted.extend(self.naming.iter().flat_map(|naming| naming.any_of.iter().copied()));
        let by_id: HashMap<Id, usize> = contents
            .iter()
            .enumerate()
            .filter_map(|(at, content)| Some((content.id?, at)))
            .collect();
        for content in contents.iter_mut() {
            content.wanted = content.id.is_some_and(|id| wanted.contains(&id));
        }
        // Images have no record of their own: a manifest names what belongs to it.
        let documents: Vec<usize> = (0..contents.len())
            .filter(|&at| !contents[at].wanted && contents[at].bytes <= DOCUMENT)
            .collect();
        for at in documents {
            let Some(parts) = image_parts(cache, &contents[at]) else { continue };
            let used = contents[at].used;
            contents[at].wanted = true;
            for part in parts.iter().filter_map(|id| by_id.get(id)) {
                contents[*part].wanted = true;
                contents[*part].used_with = contents[*part].used_with.max(used);
            }
        }
    }

    /// Records that can't be read, if they were read without an age limit.
    pub(super) fn unreadable(&self) -> &[RecordName] {
        &self.dead
    }

    /// Records that are of no use: too old, unreadable, or naming nothing that is in
    /// the list.
    pub(super) fn outdated(&self, contents: &[Content]) -> Vec<RecordName> {
        let there: HashSet<Id> = contents.iter().filter_map(|content| content.id).collect();
        let nowhere = |naming: &&Naming| !naming.any_of.iter().any(|id| there.contains(id));
        let nowhere = self.naming.iter().filter(nowhere).map(|naming| naming.name.clone());
        self.dead.iter().cloned().chain(nowhere).collect()
    }

    /// Keeps count of what is there while contents go.
    pub(super) fn count(self, contents: &[Content], chosen: &[Chosen]) -> Remaining {
        let there = contents.iter().filter_map(|content| content.id).collect();
        let going: HashSet<Id> =
            chosen.iter().filter_map(|chosen| contents[chosen.at].id).collect();
        let mut remaining = Remaining {
            naming: Vec::new(),
            there,
            going,
            by_id: HashMap::new(),
            until: self.until,
        };
        self.naming.into_iter().for_each(|naming| remaining.add(naming));
        remaining
    }
}

/// What is still there, and which records name what goes.
pub(super) struct Remaining {
    naming: Vec<Naming>,
    there: HashSet<Id>,
    going: HashSet<Id>,
    by_id: HashMap<Id, Vec<usize>>,
    until: SeenUntil,
}

impl Remaining {
    fn add(&mut self, naming: Naming) {
        let at = self.naming.len();
        let going = naming.any_of.iter().filter(|id| self.going.contains(id));
        for id in going {
            self.by_id.entry(*id).or_default().push(at);
        }
        self.naming.push(naming);
    }

    /// Reads the records that were put since: a build that has ended by now may have
    /// put some for what goes. Those of who still holds it don't matter, as it stays.
    pub(super) fn catch_up(&mut self, cache: &Cache) -> Result<(), Error> {
        let mut new = Vec::new();
        let mut images = HashSet::new();
        cache.each_record_since(&mut self.until, &mut |seen| {
            if let Sense::Names(any_of) = sense(seen, None, 0, &mut images) {
                new.push(Naming { name: seen.name(), any_of });
            }
        })?;
        new.into_iter().for_each(|naming| self.add(naming));
        Ok(())
    }

    /// These go. Returns the records that named something of them and nothing else
    /// that is there, each once.
    pub(super) fn without(&mut self, ids: &[Id]) -> Vec<RecordName> {
        ids.iter().for_each(|id| {
            self.there.remove(id);
        });
        let touched: HashSet<usize> =
            ids.iter().filter_map(|id| self.by_id.remove(id)).flatten().collect();
        touched
            .into_iter()
            .map(|at| &self.naming[at])
            .filter(|naming| !naming.any_of.iter().any(|id| self.there.contains(id)))
            .map(|naming| naming.name.clone())
            .collect()
    }
}

fn sense(seen: &Seen<'_>, ttl: Option<u64>, now: i64, images: &mut HashSet<Id>) -> Sense {
    let of = |bucket: Bucket| seen.bucket == bucket.name();
    let is_old = |stored: i64| ttl.is_some_and(|ttl| stored.saturating_add_unsigned(ttl) <= now);
    if of(Bucket::Steps) || of(Bucket::Content) || of(Bucket::Hints) {
        let Ok(step) = StepRecord::decode(seen.value) else { return Sense::Dead };
        if ttl.is_some_and(|ttl| step.is_expired(ttl, now)) {
            return Sense::Dead;
        }
        // What was built once explains a miss, also when its layer has gone.
        if of(Bucket::Hints) {
            return Sense::Stays;
        }
        let mut ids = vec![Id::Layer(step.diff_id)];
        ids.extend(step.compressed.map(|blob| Id::Blob(blob.digest)));
        return Sense::Names(ids);
    }
    if of(Bucket::Compressed) {
        return match CompressedRecord::decode(seen.value) {
            Ok(record) => Sense::Names(vec![Id::Blob(record.blob.digest)]),
            Err(_) => Sense::Dead,
        };
    }
    if of(Bucket::Remotes) {
        return match RemoteRecord::decode(seen.value) {
            Ok(record) => Sense::Names(vec![Id::Blob(record.digest)]),
            Err(_) => Sense::Dead,
        };
    }
    if of(Bucket::Images) {
        let Ok(image) = ImageRecord::decode(seen.value) else { return Sense::Dead };
        if is_old(image.resolved) {
            return Sense::Dead;
        }
        images.insert(Id::Blob(image.config));
        images.extend(image.layers.iter().map(|&layer| Id::Layer(layer)));
        // The manifest is found by `mark`, with the time of its use.
        return Sense::Names(vec![Id::Blob(image.manifest)]);
    }
    // Another version's; it knows what they are for.
    Sense::Stays
}

/// The parts of a manifest or index that matter here.
#[derive(Deserialize)]
struct Document {
    config: Option<Named>,
    #[serde(default)]
    layers: Vec<Named>,
    #[serde(default)]
    manifests: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    digest: crate::oci::digest::Digest,
}

/// The part of a config that matters here.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<crate::oci::digest::DiffId>,
}

/// What a blob names if it is an image's manifest or index.
fn image_parts(cache: &Path, content: &Content) -> Option<Vec<Id>> {
    let Some(Id::Blob(_)) = content.id else { return None };
    let bytes = fs::read(cache.join(&content.name)).ok()?;
    if bytes.first() != Some(&b'{') {
        return None;
    }
    let document: Document = serde_json::from_slice(&bytes).ok()?;
    let mut parts: Vec<Id> = Vec::new();
    let blobs = document.config.iter().chain(&document.layers).chain(&document.manifests);
    parts.extend(blobs.map(|named| Id::Blob(*named.digest.as_bytes())));
    if let Some(config) = &document.config {
        let path = cache.join("blobs/sha256").join(config.digest.hex());
        let config = fs::metadata(&path)
            .ok()
            .filter(|metadata| metadata.len() <= DOCUMENT)
            .and_then(|_| fs::read(&path).ok())
            .and_then(|bytes| serde_json::from_slice::<Config>(&bytes).ok());
        let layers = config.into_iter().flat_map(|config| config.rootfs.diff_ids);
        parts.extend(layers.map(|layer| Id::Layer(*layer.as_bytes())));
    }
    (!parts.is_empty()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use yadokari_cache::Access;
    use yadokari_cache::Fold;
    use yadokari_cache::Key;
    use yadokari_cache::record::Compressed;

    use super::super::choose::Why;
    use super::super::inventory::Kind;
    use super::*;

    fn put(cache: &Cache, number: u8, blob: [u8; 32]) {
        let compressed = Compressed { digest: blob, size: 1, media_type: String::new() };
        let record = StepRecord {
            diff_id: [0; 32],
            compressed: Some(compressed),
            created: i64::from(number),
            created_nanoseconds: 0,
            stored: 0,
            empty: false,
            inputs: Vec::new(),
            definition: Key::from_bytes([number; 32]),
            content: None,
            hint: None,
            duration_ms: 0,
        };
        cache.put(&record.puts()).expect("a put");
    }

    fn open(directory: &Path) -> Cache {
        Cache::open(directory, Access::ReadWrite).expect("a cache")
    }

    #[test]
    fn a_record_put_after_the_records_were_read_goes_with_what_it_names() {
        let directory = tempfile::tempdir().expect("a directory");
        let (cache, builder) = (open(directory.path()), open(directory.path()));
        let blob = [7; 32];
        put(&builder, 1, blob);
        let references = References::read(&cache, None, 0).expect("records");
        let content = Content {
            kind: Kind::Blob,
            id: Some(Id::Blob(blob)),
            name: String::new(),
            bytes: 1,
            used: 0,
            used_with: 0,
            wanted: true,
            incomplete: false,
        };
        let chosen = [Chosen { at: 0, why: Why::LeastRecentlyUsed }];
        let mut remaining = references.count(&[content], &chosen);
        // A build that hits this blob by another key, and ends.
        put(&builder, 2, blob);
        builder.fold(Fold::Now).expect("a fold");
        put(&builder, 3, blob);
        remaining.catch_up(&cache).expect("records");
        let orphaned = remaining.without(&[Id::Blob(blob)]);
        let mut keys: Vec<u8> = orphaned.iter().map(|name| name.key.as_bytes()[0]).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys, [1, 2, 3]);
    }
}
