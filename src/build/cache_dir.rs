//! The cache directory of a build: opened as far as it can be, and kept within its
//! bounds afterwards.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;
use yadokari_cache::Access;
use yadokari_cache::Cache;
use yadokari_cache::Error as CacheError;
use yadokari_cache::Fold;
use yadokari_cache::Notice;
use yadokari_cache::trash;

use super::Error;
use super::Observer;
use super::Progress;
use super::Request;
use super::request::RootChoice;
use crate::collect;
use crate::collect::Order;
use crate::store::Store;

/// How long a build may go on at its end to make room.
const COLLECT: Duration = Duration::from_secs(1);

/// How long it may delete what earlier ones had no time for.
const DELETE: Duration = Duration::from_millis(200);

/// Records and contents, of one directory or of a temporary one before one that is
/// only read.
pub(super) struct CacheDir {
    /// Records.
    pub(super) cache: Arc<Cache>,
    /// Contents.
    pub(super) store: Arc<Store>,
    /// Goes with everything in it.
    _temporary: Option<TempDir>,
}

impl CacheDir {
    /// Opens what the request names. One that can't be written still gives hits, one
    /// of a newer program is left alone; then new layers go to a temporary directory,
    /// and the observer is told so once.
    ///
    /// # Errors
    /// When it is no cache, or nothing can be written anywhere.
    pub(super) fn open(request: &Request, observer: &dyn Observer) -> Result<Self, Error> {
        let directory = &request.cache_dir;
        let refused = match open(directory) {
            Ok((cache, store)) => {
                return Ok(Self { cache, store: Arc::new(store), _temporary: None });
            }
            Err(error) => error,
        };
        let readable = matches!(refused, CacheError::Denied { .. }) && directory.is_dir();
        if !readable && !matches!(refused, CacheError::NewerFormat { .. }) {
            return Err(refused.into());
        }
        let mut name = tempfile::Builder::new();
        name.prefix("yadokari-");
        // A RUN in the container's own root may well empty /tmp.
        let own = match &request.root {
            RootChoice::InPlace { state, .. } => name.tempdir_in(state).ok(),
            _ => None,
        };
        let temporary = own
            .map_or_else(|| name.tempdir(), Ok)
            .map_err(|source| Error::Scratch { path: std::env::temp_dir(), source })?;
        let cache = Cache::open(temporary.path(), Access::ReadWrite)?;
        let store = Store::open(temporary.path())?.with_lease(cache.lease()?);
        let use_of_it = if readable { "its layers are used" } else { "it is not used" };
        observer.observe(Progress::Warning(format!(
            "{}; {use_of_it}, and new ones are kept until the end of this build in {}",
            super::chain(&refused),
            temporary.path().display()
        )));
        let (cache, store) = if readable {
            (
                cache.in_front_of(Cache::open(directory, Access::ReadOnly)?),
                store.in_front_of(Store::open_read_only(directory)?),
            )
        } else {
            (cache, store)
        };
        Ok(Self { cache: Arc::new(cache), store: Arc::new(store), _temporary: Some(temporary) })
    }

    /// Tidies up after a build, which needs nothing from here any more: folds,
    /// collects when that is due, deletes for a while, and tells what was found
    /// damaged, each once. Nothing of it can fail the build.
    pub(super) fn finish(&self, request: &Request, observer: &dyn Observer) {
        if self._temporary.is_none() {
            if let Err(error) = self.cache.fold(Fold::IfWorthwhile) {
                let text = format!("the cache index is behind: {}", super::chain(&error));
                observer.observe(Progress::Warning(text));
            }
            self.make_room(request, observer);
        }
        let mut told: Vec<Notice> = Vec::new();
        for notice in self.cache.take_notices().into_iter().chain(self.store.take_notices()) {
            if !told.contains(&notice) {
                observer.observe(Progress::Warning(notice.to_string()));
                told.push(notice);
            }
        }
    }

    fn make_room(&self, request: &Request, observer: &dyn Observer) {
        let limits = request.cache_limits;
        let directory = self.cache.directory();
        if !collect::is_due(directory, self.store.added(), &limits) {
            trash::empty(directory, Some(Instant::now() + DELETE));
            return;
        }
        let order = Order { limits, deadline: Some(Instant::now() + COLLECT), dry_run: false };
        let collected = self
            .cache
            .lease()
            .map_err(collect::Error::from)
            .and_then(|own| collect::collect(&self.cache, Some(&own), &order));
        match collected {
            // Another process does it.
            Ok(None) => {}
            Ok(Some(collected)) => {
                if !collected.removed.is_empty() {
                    let bytes: u64 = collected.removed.iter().map(|one| one.bytes).sum();
                    observer.observe(Progress::Note(format!(
                        "cache: {} contents with {bytes} bytes removed, {} bytes remain",
                        collected.removed.len(),
                        collected.size
                    )));
                }
                let max = limits.max_size.filter(|max| collected.size > *max);
                if let Some(max) = max.filter(|_| !collected.left) {
                    observer.observe(Progress::Warning(format!(
                        "the cache has {} bytes, more than {max}: running builds use the rest",
                        collected.size
                    )));
                }
            }
            Err(error) => {
                let text = format!("the cache was not tidied: {}", super::chain(&error));
                observer.observe(Progress::Warning(text));
            }
        }
    }
}

fn open(directory: &std::path::Path) -> Result<(Arc<Cache>, Store), CacheError> {
    let cache = Cache::open(directory, Access::ReadWrite)?;
    let lease = cache.lease()?;
    let store = Store::open(directory).map_err(|error| match error {
        crate::store::Error::Cache(error) => error,
        other => CacheError::Io {
            action: "prepare",
            path: directory.to_owned(),
            source: std::io::Error::other(other),
        },
    })?;
    Ok((Arc::new(cache), store.with_lease(lease)))
}
