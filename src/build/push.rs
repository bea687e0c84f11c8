//! Pushing an image that is there as files already: `yadokari push`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::Error;
use super::publish::UPLOADS;
use crate::layout;
use crate::layout::Layout;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Document;
use crate::oci::manifest::Manifest;
use crate::oci::manifest::parse_manifest;
use crate::oci::reference::Reference;
use crate::registry;
use crate::registry::Client;

/// Indexes within indexes that are followed. Nobody writes more than two.
const MOST_LEVELS: u32 = 4;

/// What is pushed, and where.
#[derive(Debug)]
pub struct Push<'a> {
    /// An OCI image layout, or a tar as `docker save` writes it or of a layout; one image
    /// or one index.
    pub path: &'a Path,
    /// In order; the first failure ends it.
    pub destinations: &'a [Reference],
    /// Whether the permission to push is checked at all of them before the first blob.
    pub check: bool,
    /// A tag that exists and may not be moved counts as pushed.
    pub ignore_immutable_tags: bool,
    /// Threads that compress.
    pub threads: usize,
    /// Set when the user asks to stop.
    pub interrupted: &'a AtomicBool,
}

/// How often [`Push::interrupted`] is looked at during uploads.
const INTERVAL: Duration = Duration::from_millis(50);

/// Pushes; gives the manifest's or index's digest.
///
/// # Errors
/// Those of the layout or archive, and the first push's that failed;
/// [`Error::Interrupted`]. Then uploads may still be under way: the process should end.
pub fn push(push: &Push<'_>, client: &Client) -> Result<Digest, Error> {
    let unreadable = |source| layout::Error::Read { path: push.path.to_owned(), source };
    let found = std::fs::metadata(push.path).map_err(unreadable)?;
    let scratch;
    let directory = if found.is_dir() {
        push.path
    } else {
        scratch = tempfile::tempdir()
            .map_err(|source| layout::Error::Write { path: std::env::temp_dir(), source })?;
        layout::unpack_archive(push.path, scratch.path(), push.threads, push.interrupted).map_err(
            |error| match error {
                layout::Error::Interrupted => Error::Interrupted,
                other => other.into(),
            },
        )?;
        scratch.path()
    };
    let layout = Layout::open(directory)?;
    let top = layout.only()?.clone();
    let digest = top.digest;
    let pusher = Pusher {
        path: push.path.to_owned(),
        layout,
        client: client.clone(),
        destinations: push.destinations.to_vec(),
        check: push.check,
        ignore_immutable_tags: push.ignore_immutable_tags,
        pushed: Mutex::default(),
    };
    // A thread that nobody waits for if the user doesn't: a registry may take long to
    // answer. It writes no files.
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || sender.send(pusher.run(&top)));
    loop {
        match result.recv_timeout(INTERVAL) {
            Ok(pushed) => return pushed.map(|()| digest),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Panic),
            Err(RecvTimeoutError::Timeout) if push.interrupted.load(Ordering::Relaxed) => {
                return Err(Error::Interrupted);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

struct Pusher {
    path: PathBuf,
    layout: Layout,
    client: Client,
    destinations: Vec<Reference>,
    check: bool,
    ignore_immutable_tags: bool,
    /// Where each blob went: it can be mounted from there.
    pushed: Mutex<BTreeMap<Digest, Vec<Reference>>>,
}

impl Pusher {
    fn run(&self, top: &Descriptor) -> Result<(), Error> {
        if self.check {
            self.destinations.iter().try_for_each(|place| self.client.check_push(place))?;
        }
        for destination in &self.destinations {
            match self.document(destination, top, MOST_LEVELS) {
                // The tag is taken, and whoever pushed it first was as good as we.
                Err(Error::Registry(refused))
                    if self.ignore_immutable_tags && refused.is_immutable_tag() => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// A manifest or an index, after everything that it names.
    fn document(&self, place: &Reference, entry: &Descriptor, levels: u32) -> Result<(), Error> {
        let bytes = self.layout.document(entry)?;
        match parse_manifest(&bytes, &entry.media_type)? {
            Document::Manifest(manifest) => self.blobs(place, &manifest)?,
            Document::Index(_) if levels == 0 => {
                return Err(layout::Error::TooDeep { path: self.path.clone() }.into());
            }
            Document::Index(index) => {
                for below in &index.manifests {
                    self.document(&place.with_digest(below.digest), below, levels - 1)?;
                }
            }
        }
        self.client.push_manifest(place, &entry.media_type, &bytes)?;
        Ok(())
    }

    fn blobs(&self, place: &Reference, manifest: &Manifest) -> Result<(), Error> {
        let all: Vec<&Descriptor> = manifest.layers.iter().chain([&manifest.config]).collect();
        let share = all.len().div_ceil(UPLOADS);
        std::thread::scope(|scope| {
            let push = |blobs: &[&Descriptor]| -> Result<(), Error> {
                blobs.iter().try_for_each(|blob| Ok(self.blob(place, blob)?))
            };
            let threads: Vec<_> =
                all.chunks(share).map(|part| scope.spawn(move || push(part))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(Error::Panic)))
        })
    }

    fn blob(&self, place: &Reference, blob: &Descriptor) -> Result<(), registry::Error> {
        let from: Vec<Reference> = {
            let pushed = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
            let places = pushed.get(&blob.digest).into_iter().flatten();
            places.filter(|other| other.registry() == place.registry()).cloned().collect()
        };
        let open = || self.layout.file(&blob.digest);
        // Foreign layers are fetched from elsewhere by whoever uses the image.
        let is_missing = || matches!(open(), Err(error) if error.kind() == io::ErrorKind::NotFound);
        if !blob.urls.is_empty() && is_missing() {
            return Ok(());
        }
        self.client.push_blob(place, blob, &open, &from)?;
        let mut pushed = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        pushed.entry(blob.digest).or_default().push(place.clone());
        Ok(())
    }
}
