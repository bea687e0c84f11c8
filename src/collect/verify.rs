//! Everything in the cache held against its digest or checksum, seals or not.

use std::fs;
use std::path::Path;

use yadokari_cache::Cache;
use yadokari_cache::Notice;
use yadokari_cache::contexts;

use super::Error;
use super::inventory::Content;
use super::inventory::Id;
use super::inventory::Inventory;
use super::inventory::Kind;
use super::references::References;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::store::Store;

/// Something damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// What was found, as a line.
    pub what: String,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Contents held against their digests.
    pub contents: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Records read.
    pub records: u64,
    /// What was damaged. It is set aside, or where it is read-only, still there.
    pub damaged: Vec<Damage>,
}

/// Checks the whole cache. Safe beside builds.
///
/// # Errors
/// When the cache can't be read; damage is no error.
pub fn verify(cache: &Cache, store: &Store) -> Result<Verified, Error> {
    let mut verified = Verified::default();
    // Spool, log and index tell what they stumble over.
    cache.each_record(&mut |_| verified.records += 1)?;
    if !cache.check_index()? {
        verified.damaged.push(Damage {
            what: "the index doesn't say what the record log says; it is made anew".to_owned(),
        });
    }
    let references = References::read(cache, None, 0)?;
    let inventory = Inventory::take(cache.directory())?;
    let unreadable = references.unreadable();
    if !unreadable.is_empty() {
        let what = format!("{} records can't be read and are taken back", unreadable.len());
        verified.damaged.push(Damage { what });
        if cache.access() == yadokari_cache::Access::ReadWrite {
            cache.take_back(unreadable)?;
        }
    }
    for content in &inventory.contents {
        verified.contents += 1;
        verified.bytes += content.bytes;
        check(cache.directory(), store, content, &mut verified.damaged)?;
    }
    let notices = cache.take_notices().into_iter().chain(store.take_notices());
    let told: Vec<String> = notices.map(|notice: Notice| notice.to_string()).collect();
    for what in told {
        if !verified.damaged.iter().any(|damage| damage.what == what) {
            verified.damaged.push(Damage { what });
        }
    }
    Ok(verified)
}

fn check(
    cache: &Path,
    store: &Store,
    content: &Content,
    damaged: &mut Vec<Damage>,
) -> Result<(), Error> {
    match content.id {
        Some(Id::Blob(digest)) => store.recheck_blob(&Digest::from_bytes(digest))?,
        Some(Id::Layer(digest)) if !content.incomplete => {
            store.recheck_layer(&DiffId::from_bytes(digest))?;
        }
        _ if content.kind == Kind::Memory && content.name.starts_with("contexts/") => {
            let path = cache.join(&content.name);
            if let Err(reason) = contexts::check(&path) {
                let what = format!("{} is damaged and removed: {reason}", path.display());
                damaged.push(Damage { what });
                let _ = fs::remove_file(&path);
            }
        }
        _ => {}
    }
    Ok(())
}
