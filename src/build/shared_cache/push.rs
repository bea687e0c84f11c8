//! Pushing steps to the shared cache, when the user has what they asked for.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::super::Progress;
use super::super::progress::Observer;
use super::Inner;
use super::PlaceError;
use super::Unsent;
use super::artifact;
use super::lock;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;

/// Steps on their way at once.
const PUSHING: usize = 4;

/// Steps that the shared cache lacks. Keeps their layers from being collected.
pub struct CachePush {
    inner: Arc<Inner>,
    steps: Vec<Unsent>,
    /// Repositories that may have the layers, so that they needn't be sent again.
    mount_from: Vec<Reference>,
}

impl CachePush {
    pub(super) fn new(inner: Arc<Inner>, steps: Vec<Unsent>, mount_from: Vec<Reference>) -> Self {
        Self { inner, steps, mount_from }
    }

    /// Pushes, until `interrupted`. A failure is told, once, and ends it: whatever
    /// is missing is pushed by another build.
    pub fn run(self, observer: &dyn Observer, interrupted: &AtomicBool) {
        let next = AtomicUsize::new(0);
        let pushed = AtomicUsize::new(0);
        let work = || {
            loop {
                let stopped =
                    interrupted.load(Ordering::Relaxed) || lock(&self.inner.trouble).broken;
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(unsent) = self.steps.get(at).filter(|_| !stopped) else { return };
                match self.push(unsent) {
                    Ok(true) => drop(pushed.fetch_add(1, Ordering::Relaxed)),
                    Ok(false) => {}
                    Err(error) => {
                        let reason = super::super::error::chain(&error);
                        self.inner.stop(&format!("steps were not pushed: {reason}"), true);
                    }
                }
            }
        };
        // A layout is written by one at a time anyway.
        let threads = if self.inner.place.repository().is_some() { PUSHING } else { 1 };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(self.steps.len()) {
                scope.spawn(work);
            }
            work();
        });
        let pushed = pushed.into_inner();
        if pushed > 0 {
            let steps = if pushed == 1 { "step" } else { "steps" };
            let name = &self.inner.name;
            observer
                .observe(Progress::Note(format!("{pushed} {steps} pushed to the cache {name}")));
        }
        let notices = std::mem::take(&mut lock(&self.inner.trouble).notices);
        for notice in notices {
            observer.observe(Progress::Warning(notice));
        }
    }

    /// Pushes one step; false if it was there.
    fn push(&self, unsent: &Unsent) -> Result<bool, PlaceError> {
        let inner = &self.inner;
        let definition = &unsent.step.record.definition;
        let is_there = !unsent.is_new && inner.place.has(&definition.to_string())?;
        if !is_there {
            let open = |digest: &Digest| -> io::Result<File> {
                inner
                    .store
                    .open_blob(digest)
                    .map_err(io::Error::other)?
                    .ok_or_else(|| io::ErrorKind::NotFound.into())
            };
            let artifact = artifact::encode(&unsent.step);
            inner.place.put(&unsent.step, &artifact, &open, &self.mount_from)?;
        }
        if let Err(error) = inner.cache.put(&[inner.mark(definition)]) {
            tracing::debug!(%error, "not noted that a step is in the shared cache");
        }
        Ok(!is_there)
    }
}
