//! Pushing: layers as soon as they are finished, then config and manifest.
//!
//! A destination that has the manifest already costs one request.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::Error;
use super::base::Base;
use super::base::Bases;
use super::base::Origin;
use super::delivery::Delivery;
use super::delivery::Made;
use super::layers::LayerSlot;
use super::progress::Observer;
use super::shared_cache::SharedCache;
use crate::image::Assembled;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::registry;
use crate::store::Store;

/// Blobs on their way at once, as kaniko and BuildKit have it.
pub(super) const UPLOADS: usize = 4;

/// The uploads of a build.
pub struct Uploads<'a> {
    inner: Arc<Inner>,
    bases: &'a Bases,
    /// A tag that may not be moved is left where it is.
    ignore_immutable: bool,
    observer: &'a dyn Observer,
    jobs: Mutex<Option<mpsc::Sender<LayerSlot>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Inner {
    client: Arc<super::client::LazyClient>,
    store: Arc<Store>,
    destinations: Vec<Reference>,
    check: bool,
    /// (destination, blob) pairs that are known to be there.
    there: Mutex<BTreeSet<(usize, Digest)>>,
    /// Why pushing can't work, found out early.
    denied: Mutex<Option<Arc<registry::Error>>>,
}

/// How a push to one destination went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pushed {
    /// Where to.
    pub destination: Reference,
    /// Whether the destination had this very image before.
    pub unchanged: bool,
}

impl<'a> Uploads<'a> {
    /// Nothing happens before the first layer comes. With `check`, the permission to
    /// push is checked when the first step has to run.
    pub fn new(
        bases: &'a Bases,
        destinations: Vec<Reference>,
        check: bool,
        ignore_immutable: bool,
        observer: &'a dyn Observer,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                client: Arc::clone(&bases.client),
                store: Arc::clone(&bases.store),
                destinations,
                check,
                there: Mutex::default(),
                denied: Mutex::default(),
            }),
            bases,
            ignore_immutable,
            observer,
            jobs: Mutex::default(),
            threads: Mutex::default(),
        }
    }

    /// A push will be needed: finds out in the background whether it is allowed.
    pub fn expect_push(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_some() {
            return;
        }
        let (sender, inbox) = mpsc::channel::<LayerSlot>();
        let inbox = Arc::new(Mutex::new(inbox));
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..UPLOADS {
            let inner = Arc::clone(&self.inner);
            let inbox = Arc::clone(&inbox);
            let spawned = std::thread::Builder::new().name("upload".to_owned()).spawn(move || {
                if number == 0 && inner.check {
                    inner.check_permission();
                }
                loop {
                    let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(slot) = next else { return };
                    inner.upload_ahead(&slot);
                }
            });
            // Without a thread the layer is pushed at the end.
            threads.extend(spawned.ok());
        }
        *jobs = Some(sender);
    }

    /// A layer of the image is coming; it is uploaded when it is there.
    pub fn layer(&self, slot: &LayerSlot) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = &*jobs {
            // Nobody listens only when the threads have ended: pushed at the end then.
            let _ = jobs.send(Arc::clone(slot));
        }
    }

    /// Why pushing can't work, if that is known already.
    pub fn denied(&self) -> Option<Arc<registry::Error>> {
        self.inner.denied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Brings what was built to every destination.
    ///
    /// # Errors
    /// The first push's that failed.
    pub(super) fn publish(
        &self,
        delivery: &Delivery,
        repo: Option<&SharedCache>,
    ) -> Result<Vec<Pushed>, Error> {
        self.stop();
        let mut pushed = Vec::new();
        for (number, destination) in self.inner.destinations.iter().enumerate() {
            let unchanged =
                delivery.misses() == 0 && self.inner.has(destination, &delivery.top().digest)?;
            if !unchanged {
                self.push_all(number, destination, delivery, repo).or_else(
                    |error| match error {
                        // The tag is taken, and whoever pushed it first was as good as we.
                        Error::Registry(refused)
                            if self.ignore_immutable && refused.is_immutable_tag() =>
                        {
                            tracing::debug!(error = %refused, "tag is immutable");
                            Ok(())
                        }
                        other => Err(other),
                    },
                )?;
            }
            pushed.push(Pushed { destination: destination.clone(), unchanged });
        }
        Ok(pushed)
    }

    /// The images, what is attested about them, and the index last: it names them.
    fn push_all(
        &self,
        number: usize,
        destination: &Reference,
        delivery: &Delivery,
        repo: Option<&SharedCache>,
    ) -> Result<(), Error> {
        let Some(index) = &delivery.index else {
            let Made { image, base, .. } = delivery.first();
            return self.push_one(number, destination, image, base.as_deref(), repo);
        };
        let client = self.inner.client.get()?;
        for Made { image, base, .. } in &delivery.made {
            let place = destination.with_digest(image.manifest.digest);
            self.push_one(number, &place, image, base.as_deref(), repo)?;
        }
        for attestation in &delivery.attestations {
            for (blob, bytes) in &attestation.blobs {
                self.inner.store.put_blob(bytes)?;
                self.inner.push(number, blob, &[])?;
            }
            let place = destination.with_digest(attestation.manifest.digest);
            client.push_manifest(
                &place,
                &attestation.manifest.media_type,
                &attestation.manifest_json,
            )?;
        }
        client.push_manifest(destination, &index.descriptor.media_type, &index.json)?;
        Ok(())
    }

    fn push_one(
        &self,
        number: usize,
        destination: &Reference,
        image: &Assembled,
        base: Option<&Base>,
        repo: Option<&SharedCache>,
    ) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Error> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(layer) = image.layers.get(at) else { return Ok(()) };
                self.push_layer(number, destination, layer, base, repo)?;
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (1..image.layers.len().min(UPLOADS)).map(|_| scope.spawn(work)).collect();
            work()?;
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(Error::Panic)))
        })?;
        let client = self.inner.client.get()?;
        self.inner.store.put_blob(&image.config_json)?;
        self.inner.push(number, &image.config, &[])?;
        client.push_manifest(destination, &image.manifest.media_type, &image.manifest_json)?;
        Ok(())
    }

    fn push_layer(
        &self,
        number: usize,
        destination: &Reference,
        layer: &Descriptor,
        base: Option<&Base>,
        repo: Option<&SharedCache>,
    ) -> Result<(), Error> {
        let of_base = base.and_then(|base| {
            let found = base.layers.iter().find(|known| known.descriptor.digest == layer.digest)?;
            Some((base, found))
        });
        let Some((base, found)) = of_base else {
            return match repo.filter(|repo| repo.has_layer(&layer.digest)) {
                Some(repo) => self.push_cached(number, destination, layer, repo),
                None => Ok(self.inner.push(number, layer, &[])?),
            };
        };
        // Another repository of the same registry may have it; else it is pulled to
        // be pushed.
        let mount_from: Vec<Reference> = match &base.origin {
            Origin::Registry(reference) if reference.registry() == destination.registry() => {
                vec![reference.clone()]
            }
            _ => Vec::new(),
        };
        if self.inner.client.get()?.has_blob(destination, &layer.digest)? {
            return Ok(());
        }
        if mount_from.is_empty() {
            self.bases.ensure_blob(base, found)?;
        }
        let pushed = self.inner.push(number, layer, &mount_from);
        match pushed {
            // The registry refused to mount, and the blob isn't here yet.
            Err(_) if !mount_from.is_empty() => {
                self.bases.ensure_blob(base, found)?;
                Ok(self.inner.push(number, layer, &[])?)
            }
            other => Ok(other?),
        }
    }

    /// Pushes a layer that the shared cache has: at the same registry it needn't be
    /// here for that.
    fn push_cached(
        &self,
        number: usize,
        destination: &Reference,
        layer: &Descriptor,
        repo: &SharedCache,
    ) -> Result<(), Error> {
        let mount_from: Vec<Reference> = repo
            .mount_from(&layer.digest)
            .filter(|place| place.registry() == destination.registry())
            .into_iter()
            .collect();
        let is_here = || self.inner.store.has_blob(&layer.digest, Some(layer.size));
        if !mount_from.is_empty() {
            match self.inner.push(number, layer, &mount_from) {
                // It can't be mounted, and isn't here to be sent.
                Err(error) if !is_here()? => {
                    tracing::debug!(%error, layer = %layer.digest, "not mounted");
                }
                other => return Ok(other?),
            }
        } else if !is_here()? && self.inner.client.get()?.has_blob(destination, &layer.digest)? {
            return Ok(());
        }
        repo.fetch(&layer.digest, false, self.observer)?;
        Ok(self.inner.push(number, layer, &[])?)
    }

    fn stop(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic in it leaves a layer to be pushed at the end.
            let _ = thread.join();
        }
    }
}

impl Drop for Uploads<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn has(&self, destination: &Reference, digest: &Digest) -> Result<bool, registry::Error> {
        match self.client.get()?.resolve(destination) {
            Ok(resolved) => Ok(resolved.digest == *digest),
            // Not there, or not readable by who may write: pushing will tell.
            Err(error) => {
                tracing::debug!(%error, %destination, "destination not looked up");
                Ok(false)
            }
        }
    }

    fn check_permission(&self) {
        for destination in &self.destinations {
            let checked = self.client.get().and_then(|client| client.check_push(destination));
            if let Err(error) = checked {
                *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(error));
                return;
            }
        }
    }

    /// Uploads a layer while the build goes on. A failure isn't told here: the push
    /// at the end tries again and tells.
    fn upload_ahead(&self, slot: &LayerSlot) {
        let Ok(facts) = slot.wait() else { return };
        for number in 0..self.destinations.len() {
            if let Err(error) = self.push(number, &facts.descriptor, &[]) {
                tracing::debug!(%error, "upload behind the build failed, will be tried again");
            }
        }
    }

    fn push(
        &self,
        number: usize,
        blob: &Descriptor,
        mount_from: &[Reference],
    ) -> Result<(), registry::Error> {
        let known = (number, blob.digest);
        if self.there.lock().unwrap_or_else(PoisonError::into_inner).contains(&known) {
            return Ok(());
        }
        let destination = &self.destinations[number];
        // What another destination in the same registry has can be mounted from there.
        let mut from = mount_from.to_vec();
        {
            let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
            from.extend(
                there
                    .iter()
                    .filter(|(_, digest)| *digest == blob.digest)
                    .map(|(other, _)| self.destinations[*other].clone())
                    .filter(|other| other.registry() == destination.registry()),
            );
        }
        let open = || -> io::Result<File> {
            self.store
                .open_blob(&blob.digest)
                .map_err(io::Error::other)?
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        self.client.get()?.push_blob(destination, blob, &open, &from)?;
        self.there.lock().unwrap_or_else(PoisonError::into_inner).insert(known);
        Ok(())
    }
}
